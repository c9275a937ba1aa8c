//! Measures matrix products with streamed weights on the machine `small`, f32, and prints the tables of docs/streaming.md:
//!
//!     cargo run --release --example streaming -- utilisation     (a minute or two)
//!     cargo run --release --example streaming -- sparsity        (a minute or two)
//!     cargo run --release --example streaming -- scale           (some minutes)
//!
//!     cargo run --release --example streaming -- in-place TOKENS K M SIDE SPARSITY [BANDS] [SETTING...]
//!     cargo run --release --example streaming -- in-place-mlp TOKENS WIDTH SIDE [SETTING...]
//!     cargo run --release --example streaming -- in-place-attention TOKENS WIDTH HEADS SIDE [SETTING...]
//!     cargo run --release --example streaming -- in-place-gpt MODEL SIDE f32|f16 SPARSITY [SETTING...]
//!
//! `scale TOKENS K M` takes another product, and `scale TOKENS K M SIDE SPARSITY` measures a single mesh of SIDE x SIDE PEs. `ENGINE=reference`
//! in the environment asks for the other engine. `in-place` has its
//! activations on the mesh at the start, and leaves its results there; sparsity 0 is the dense kernel; bands of rows are chosen where their number is not given. `in-place-mlp` and `in-place-attention` are the two halves
//! of a transformer's block, operator after operator; `in-place-gpt` is a whole model (`gpt:layers=2,width=128,...`) but for its embedding, whose result the
//! evaluator gives; settings are those of `--set`, as `edge.bits_per_second=7e12`.

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

use meshloom_compiler::in_place::{
    Attention, Bands, Decoder, Linear, Mlp, Operator, Product, Replicate, Room, Tensor, causal_mask,
    even_features,
};
use meshloom_compiler::plan::{Function, Norm};
use meshloom_compiler::{Options, Stages, Weights, compile};
use meshloom_models::{Graph, Mask, Op, seeded_inputs, sparsify};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Engine, Outcome, PeCounters, Sram};
use meshloom_simulator::program::Ty;
use std::time::Instant;

/// Cycles and multiply-adds of a product of \[tokens, k\] and \[k, m\].
struct Measured {
    cycles: u64,
    multiply_adds: u64,
    /// Additions of partial sums.
    reductions: u64,
    /// Seconds to compile, the verifier included, and to simulate.
    compile: f64,
    simulate: f64,
}

/// Bands over which the residual of a transformer's block is spread.
const BANDS: usize = 12;

type Failure = Box<dyn std::error::Error>;

/// Well-mixed weights, none of them zero.
fn weights(n: usize) -> Vec<f32> {
    let mut s = 1u64;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| Some(next()).filter(|w| *w != 0.0).unwrap_or(0.5))
        .collect()
}

/// The engine that the environment asks for.
fn engine_options() -> engine::Options {
    engine::Options {
        engine: match std::env::var("ENGINE").as_deref() {
            Ok("reference") => Engine::Reference,
            _ => Engine::Fast,
        },
        ..engine::Options::default()
    }
}

/// Compiles and simulates; `sparsity` none is the dense kernel, 0 the one for lists (a single weight is zero).
fn measure(
    tokens: usize,
    k: usize,
    m: usize,
    sets: &[&str],
    sparsity: Option<f64>,
) -> Result<Measured, Failure> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let machine = meshloom::machines::load("small", &sets)?;
    let mut graph = Graph::new("product");
    let x = graph.add_input("x", &[tokens, k])?;
    let mut values = weights(m * k);
    if sparsity.is_some() {
        values[0] = 0.0;
    }
    let w = graph.add_constant("w", &[m, k], values)?;
    let y = graph.add_node("fc", Op::Linear, &[x, w], "y")?;
    graph.add_output(y)?;
    let graph = match sparsity {
        Some(s) if s > 0.0 => sparsify(&graph, s, Mask::Uniform, 1)?,
        _ => graph,
    };
    let inputs: Vec<_> = seeded_inputs(&graph, 1, 1).into_iter().collect();
    let options = Options {
        skip_zeros: sparsity.is_some(),
        stages: Stages::Layer,
        weights: Weights::Streamed,
        ..Options::default()
    };
    let began = Instant::now();
    let compiled = compile(&graph, &machine, &options, &inputs)?;
    let compile = began.elapsed().as_secs_f64();
    let options = engine_options();
    let began = Instant::now();
    let outcome = engine::run(&compiled.program, &machine, &options)?;
    let operations = |class: usize| outcome.pes.iter().map(|pe| pe.operations[class]).sum();
    Ok(Measured {
        cycles: outcome.cycles,
        multiply_adds: operations(0),
        reductions: operations(2),
        compile,
        simulate: began.elapsed().as_secs_f64(),
    })
}

/// Share of the multiply-adds that all PEs of the mesh could do.
fn utilisation() -> Result<(), Failure> {
    let (tokens, k, pes) = (1024, 2048, 1024);
    println!(
        "| Output features | Cycles | Multiply-adds | Of the peak | Simulated in s |\n|---|---|---|---|---|"
    );
    let row = |name: String, cycles: u64, multiply_adds: u64, seconds: f64| {
        let share = multiply_adds as f64 / (pes * cycles) as f64;
        println!(
            "| {name} | {cycles} | {multiply_adds} | {:.1} % | {seconds:.1} |",
            share * 100.0
        );
    };
    let sizes = [128, 1024];
    let mut all = Vec::new();
    for m in sizes {
        let one = measure(tokens, k, m, &[], None)?;
        row(m.to_string(), one.cycles, one.multiply_adds, one.simulate);
        all.push(one);
    }
    row(
        format!("from {} to {}", sizes[0], sizes[1]),
        all[1].cycles - all[0].cycles,
        all[1].multiply_adds - all[0].multiply_adds,
        all[1].simulate - all[0].simulate,
    );
    Ok(())
}

/// Speed-ups of lists at uniform sparsity, 32 tokens and 64 features a PE with weights.
fn sparsity() -> Result<(), Failure> {
    // 28 columns with weights, 8 rows
    let (tokens, k, sets) = (256, 1792, ["mesh.height=9"]);
    let sizes = [256, 768];
    println!(
        "| Sparsity | Cycles, {} outputs | Cycles, {} outputs | A further output | Over lists at 0 % | Of theoretical | Over dense | Simulated in s |\n|---|---|---|---|---|---|---|---|",
        sizes[0], sizes[1]
    );
    let mut base: Vec<(f64, f64)> = Vec::new();
    for (name, sparsity) in [
        ("dense", None),
        ("0 %, lists", Some(0.0)),
        ("50 %", Some(0.5)),
        ("75 %", Some(0.75)),
        ("90 %", Some(0.9)),
    ] {
        let (a, b) = (
            measure(tokens, k, sizes[0], &sets, sparsity)?,
            measure(tokens, k, sizes[1], &sets, sparsity)?,
        );
        let steady = (b.cycles - a.cycles) as f64 / (sizes[1] - sizes[0]) as f64;
        let work = (b.multiply_adds - a.multiply_adds) as f64;
        base.push((steady, work));
        let dense = format!("{:.2}", base[0].0 / steady);
        let (over, share) = match base.get(1) {
            Some((cycles, all)) => {
                let (speedup, theoretical) = (cycles / steady, all / work);
                (
                    format!("{speedup:.2}"),
                    format!("{:.0} % of {theoretical:.2}", speedup / theoretical * 100.0),
                )
            }
            None => ("-".into(), "-".into()),
        };
        println!(
            "| {name} | {} | {} | {steady:.0} | {over} | {share} | {dense} | {:.1} |",
            a.cycles,
            b.cycles,
            a.simulate + b.simulate
        );
    }
    Ok(())
}

/// Most bytes of memory that this process has had, in MiB.
fn peak_memory() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or("/proc/self/status has no VmHWM")?.parse::<f64>()? / 1024.0)
}

/// One product on meshes of more and more PEs, each in a process of its own, since a process's peak of memory never falls.
fn scale(arguments: &[String]) -> Result<(), Failure> {
    let sizes = match arguments {
        [] => ["512", "2048", "2048"].map(String::from).to_vec(),
        sizes => sizes[..3.min(sizes.len())].to_vec(),
    };
    let numbers: Vec<usize> = sizes.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
    let [tokens, k, m] = numbers[..] else {
        return Err("expected TOKENS K M".into());
    };
    if let [_, _, _, side, sparsity] = arguments {
        let sets = [format!("mesh.width={side}"), format!("mesh.height={side}")];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let one = measure(tokens, k, m, &sets, Some(sparsity.parse()?).filter(|s| *s > 0.0))?;
        println!(
            "| {side} x {side} | {sparsity} | {} | {} | {} | {:.1} | {:.1} | {:.0} |",
            one.cycles,
            one.multiply_adds,
            one.reductions,
            one.compile,
            one.simulate,
            peak_memory()?
        );
        return Ok(());
    }
    println!(
        "| Mesh | Sparsity | Cycles | Multiply-adds | Reductions | Compiled in s | Simulated in s | Peak MiB |\n|---|---|---|---|---|---|---|---|"
    );
    for sparsity in ["0", "0.75"] {
        for side in ["64", "128", "256", "512"] {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            let done = command
                .arg("scale")
                .args(&sizes)
                .args([side, sparsity])
                .status()?;
            if !done.success() {
                return Err(format!("{side} x {side}: {done}").into());
            }
        }
    }
    Ok(())
}

/// A product that begins and ends in SRAM.
fn in_place(arguments: &[String]) -> Result<(), Failure> {
    let [tokens, k, m, side, sparsity, more @ ..] = arguments else {
        return Err("expected TOKENS K M SIDE SPARSITY and, if wanted, BANDS and settings".into());
    };
    let (tokens, k, m): (usize, usize, usize) = (tokens.parse()?, k.parse()?, m.parse()?);
    let (side, sparsity): (usize, f64) = (side.parse()?, sparsity.parse()?);
    let (sets, fixed): (Vec<&String>, Vec<&String>) = more.iter().partition(|s| s.contains('='));
    let fixed: Option<usize> = fixed.first().map(|n| n.parse()).transpose()?;
    let mut all = vec![format!("mesh.width={side}"), format!("mesh.height={side}")];
    all.extend(sets.into_iter().cloned());
    let machine = meshloom::machines::load("small", &all)?;
    let mut graph = Graph::new("product");
    let x = graph.add_input("x", &[tokens, k])?;
    let w = graph.add_constant("w", &[m, k], weights(m * k))?;
    let y = graph.add_node("fc", Op::Linear, &[x, w], "y")?;
    graph.add_output(y)?;
    let graph = match sparsity > 0.0 {
        true => sparsify(&graph, sparsity, Mask::Uniform, 1)?,
        false => graph,
    };
    let w = graph
        .nodes_in_order()
        .first()
        .and_then(|id| graph.tensor(graph.node(*id).inputs[1]).data.clone());
    let w = w.ok_or("the product has no weights")?;
    let x = weights(tokens * k);
    let (columns, lists) = (side - 1, sparsity > 0.0);
    if !tokens.is_multiple_of(columns) {
        return Err(format!("{tokens} tokens are not equally many for {columns} columns").into());
    }
    let each = tokens / columns;
    let one = Bands::new(&machine, 1)?;
    let mut room = Room::default();
    let features = match lists {
        true => even_features(&machine, Ty::F32, each, k, &w)?,
        false => one.share(k),
    };
    let operand = room.tensor(Ty::F32, each, &features);
    let linear = Linear {
        weights: &w,
        bias: None,
        lists,
    };
    let bands = match fixed {
        Some(n) => Bands::new(&machine, n)?,
        None => Bands::for_product(&machine, &operand, &linear)?,
    };
    let result = room.tensor(Ty::F32, each, &bands.share(m));
    let mut programs = Vec::new();
    let began = Instant::now();
    let copies = (bands.len() > 1).then(|| room.tensor(Ty::F32, each, &bands.spread(k)));
    if let Some(copies) = &copies {
        let replicate = Replicate {
            name: "replicate",
            bands: &bands,
            x: &operand,
            y: copies,
        };
        programs.push(replicate.map(&machine)?);
    }
    let product = Product {
        name: "product",
        x: copies.as_ref().unwrap_or(&operand),
        y: &result,
        source: linear.source(&bands),
        relu: false,
        scratch: room.end(),
    };
    let mapped = product.map(&machine)?;
    programs.push(mapped.program);
    let mut sram = Sram::new(&machine);
    operand.place(&x, &mut sram);
    let compile = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let outcomes: Vec<Outcome> = programs
        .iter()
        .map(|program| engine::run_on(program, &machine, &engine_options(), &mut sram))
        .collect::<Result<_, _>>()?;
    let simulate = began.elapsed().as_secs_f64();
    let cycles: u64 = outcomes.iter().map(|o| o.cycles).sum();
    let Some(outcome) = outcomes.last() else {
        return Err("no product".into());
    };
    // a few of the results
    let got = result.read(&sram);
    for i in (0..tokens * m).step_by(tokens * m / 64 + 1) {
        let (token, output) = (i / m, i % m);
        let products = (0..k).map(|f| x[token * k + f] as f64 * w[output * k + f] as f64);
        let want: f64 = products.sum();
        if (got[i] as f64 - want).abs() > 1e-4 * (k as f64).sqrt() {
            return Err(format!("token {token}, output {output} is {}, not {want}", got[i]).into());
        }
    }
    let multiply_adds: u64 = outcome.pes.iter().map(|pe| pe.operations[0]).sum();
    let lanes = machine.pe.lanes.f32 as u64;
    let peak = (side * side) as u64 * lanes * cycles;
    println!(
        "| Mesh | Sparsity | Bands | Outputs a group | Replicate | Cycles, both | Expected | Multiply-adds | Utilisation | Compiled in s | Simulated in s | Peak MiB |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    println!(
        "| {side} x {side} | {sparsity} | {} | {} | {} | {cycles} | {:.0} | {multiply_adds} | {:.1} % | {compile:.1} | {simulate:.1} | {:.0} |",
        bands.len(),
        mapped.group,
        cycles - outcome.cycles,
        bands.expected(&machine, &operand, &result, &[linear]),
        multiply_adds as f64 / peak as f64 * 100.0,
        peak_memory()?
    );
    // where the cycles of its PEs went
    println!(
        "\n| PEs | Multiply-adds | Partial sums | Moves | Scalar code | Other | Launch | Wait for room | Wait for input | Idle |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    let share = |name: &str, of: &dyn Fn(usize) -> bool| {
        let pes: Vec<&PeCounters> = (0..side * side)
            .filter(|i| i % side > 0 && of(i / side))
            .map(|i| &outcome.pes[i])
            .collect();
        let all = (pes.len() as u64 * outcome.cycles) as f64 / 100.0;
        let slots = |class: usize| pes.iter().map(|pe| pe.slots[class]).sum::<u64>() as f64 / all;
        let cycles = |class: usize| pes.iter().map(|pe| pe.classes[class]).sum::<u64>() as f64 / all;
        println!(
            "| {name} | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % |",
            slots(1),
            slots(3),
            slots(0),
            slots(5),
            slots(4),
            cycles(1),
            cycles(2),
            cycles(3),
            cycles(4)
        );
    };
    let last = |row: usize| bands.each().any(|(_, last)| last == row);
    share("with features", &|row| !last(row));
    share("last rows", &last);
    share("first row", &|row| row == 0);
    Ok(())
}

/// What operators took, by name.
struct Table<'m> {
    machine: &'m Machine,
    /// Multiply-adds of a PE a cycle.
    lanes: u32,
    rows: Vec<Row>,
}

#[derive(Default)]
struct Row {
    name: String,
    cycles: u64,
    multiply_adds: u64,
    /// PE-cycles in columns timed as one.
    columns: u64,
    seconds: f64,
}

impl Table<'_> {
    fn new(machine: &Machine, ty: Ty) -> Table<'_> {
        Table {
            machine,
            lanes: match ty {
                Ty::F32 => machine.pe.lanes.f32,
                Ty::F16 => machine.pe.lanes.f16,
            },
            rows: Vec::new(),
        }
    }

    /// Runs an operator and adds what it took to the row of that name.
    fn run(&mut self, o: &Operator, name: &str, sram: &mut Sram) -> Result<(), Failure> {
        let began = Instant::now();
        let outcome = engine::run_on(&o.program, self.machine, &engine_options(), sram)?;
        let seconds = began.elapsed().as_secs_f64();
        o.trim(self.machine, sram);
        let at = self.rows.iter().position(|r| r.name == name);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.into(),
                ..Row::default()
            });
            self.rows.len() - 1
        });
        let macs = |pe: &PeCounters| pe.operations[0] + pe.operations[1];
        let row = &mut self.rows[at];
        row.cycles += outcome.cycles;
        row.multiply_adds += outcome.pes.iter().map(macs).sum::<u64>();
        row.columns += outcome.paths.columns;
        row.seconds += seconds;
        Ok(())
    }

    fn print(&self) {
        println!(
            "| Operator | Cycles | Multiply-adds | Utilisation | In columns timed as one | Simulated in s |\n|---|---|---|---|---|---|"
        );
        let mut all = Row {
            name: "all".into(),
            ..Row::default()
        };
        for r in &self.rows {
            all.cycles += r.cycles;
            all.multiply_adds += r.multiply_adds;
            all.columns += r.columns;
            all.seconds += r.seconds;
        }
        let pes = (self.machine.mesh.width * self.machine.mesh.height) as u64;
        for r in self.rows.iter().chain([&all]) {
            let peak = (pes * self.lanes as u64 * r.cycles) as f64;
            println!(
                "| {} | {} | {} | {:.1} % | {:.0} % | {:.1} |",
                r.name,
                r.cycles,
                r.multiply_adds,
                r.multiply_adds as f64 / peak * 100.0,
                r.columns as f64 / (pes * r.cycles) as f64 * 100.0,
                r.seconds
            );
        }
    }
}

/// The residual, on a mesh for a transformer's block, and what lies on it.
struct Block {
    machine: Machine,
    tokens: usize,
    x: Tensor,
    room: Room,
}

impl Block {
    fn new(tokens: usize, width: usize, side: usize, sets: &[String]) -> Result<Block, Failure> {
        let mut all = vec![format!("mesh.width={side}"), format!("mesh.height={side}")];
        all.extend_from_slice(sets);
        let machine = meshloom::machines::load("small", &all)?;
        if side < 2 || !tokens.is_multiple_of(side - 1) {
            return Err(format!("{tokens} tokens are not equally many for {side} columns but one").into());
        }
        let mut room = Room::default();
        // rows without features, at which bands of products may end
        let bands = Bands::new(&machine, BANDS.min(side / 2))?;
        let x = room.tensor(Ty::F32, tokens / (side - 1), &bands.share(width));
        Ok(Block {
            machine,
            tokens,
            x,
            room,
        })
    }

    /// Runs operators one after another, prints what each took, and returns the residual before and after.
    fn run(
        &self,
        operators: &[Operator],
        more: &[(&Tensor, &[f32])],
        compile: f64,
    ) -> Result<[Vec<f32>; 2], Failure> {
        let mut sram = Sram::new(&self.machine);
        let x: Vec<f32> = weights(self.tokens * self.x.all())
            .iter()
            .map(|v| v * 3.4)
            .collect();
        self.x.place(&x, &mut sram);
        for (tensor, values) in more {
            tensor.place(values, &mut sram);
        }
        let mut table = Table::new(&self.machine, Ty::F32);
        for o in operators {
            table.run(o, &o.name, &mut sram)?;
        }
        table.print();
        println!("\ncompiled in {compile:.1} s; peak {:.0} MiB", peak_memory()?);
        Ok([x, self.x.read(&sram)])
    }
}

/// A layer norm that changes something, and its result for a token.
fn layer_norm(width: usize) -> Norm {
    let values = |from: f32| weights(width).iter().map(|v| v + from).collect::<Vec<f32>>();
    Norm {
        scale: values(1.0).into(),
        shift: values(0.0).into(),
        epsilon: 1e-5,
    }
}

fn normal(x: &[f32], norm: &Norm) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| *v as f64).sum::<f64>() / n;
    let variance = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n;
    let deviation = (variance + norm.epsilon as f64).sqrt();
    let one =
        |(f, v): (usize, &f32)| (*v as f64 - mean) / deviation * norm.scale[f] as f64 + norm.shift[f] as f64;
    x.iter().enumerate().map(one).collect()
}

/// Weights \[m, k\] that keep a deviation, and biases.
fn layer(k: usize, m: usize) -> (Vec<f32>, Vec<f32>) {
    let scale = 3.4 / (k as f32).sqrt();
    (weights(k * m).iter().map(|v| v * scale).collect(), weights(m))
}

fn linear((weights, bias): &(Vec<f32>, Vec<f32>)) -> Linear<'_> {
    Linear {
        weights,
        bias: Some(bias),
        lists: false,
    }
}

fn product(x: &[f64], (w, bias): &(Vec<f32>, Vec<f32>)) -> Vec<f64> {
    let sum = |w: &[f32]| w.iter().zip(x).map(|(w, x)| *w as f64 * x).sum::<f64>();
    let rows = w.chunks(x.len()).zip(bias);
    rows.map(|(w, b)| sum(w) + *b as f64).collect()
}

/// Compares a token's results.
fn check(token: usize, got: &[f32], want: &[f64]) -> Result<(), Failure> {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if (*g as f64 - w).abs() > 1e-4 {
            return Err(format!("token {token}, feature {i} is {g}, not {w}").into());
        }
    }
    Ok(())
}

/// Layer norm, product, GELU, product, and the sum with the residual.
fn in_place_mlp(arguments: &[String]) -> Result<(), Failure> {
    let [tokens, width, side, sets @ ..] = arguments else {
        return Err("expected TOKENS WIDTH SIDE and settings".into());
    };
    let (tokens, width, side): (usize, usize, usize) = (tokens.parse()?, width.parse()?, side.parse()?);
    let block = Block::new(tokens, width, side, sets)?;
    let norm = layer_norm(width);
    let (up, down) = (layer(width, 4 * width), layer(4 * width, width));
    let mlp = Mlp {
        name: "",
        norm: &norm,
        up: linear(&up),
        function: &Function::Gelu { tanh: true },
        down: linear(&down),
    };
    let began = Instant::now();
    let operators = mlp.map(&block.machine, &block.x, block.room)?;
    let [before, after] = block.run(&operators, &[], began.elapsed().as_secs_f64())?;
    // a few of the results
    let gelu = |x: f64| {
        let of = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + of.tanh())
    };
    for token in (0..tokens).step_by(tokens.div_ceil(8)) {
        let own = token * width..(token + 1) * width;
        let x = &before[own.clone()];
        let hidden: Vec<f64> = product(&normal(x, &norm), &up).into_iter().map(gelu).collect();
        let add = product(&hidden, &down);
        let want: Vec<f64> = x.iter().zip(add).map(|(x, y)| *x as f64 + y).collect();
        check(token, &after[own], &want)?;
    }
    Ok(())
}

/// Layer norm, queries, keys, values, causal attention, product, and the sum with the residual.
fn in_place_attention(arguments: &[String]) -> Result<(), Failure> {
    let [tokens, width, heads, side, sets @ ..] = arguments else {
        return Err("expected TOKENS WIDTH HEADS SIDE and settings".into());
    };
    let (tokens, width): (usize, usize) = (tokens.parse()?, width.parse()?);
    let (heads, side): (usize, usize) = (heads.parse()?, side.parse()?);
    let mut block = Block::new(tokens, width, side, sets)?;
    let mask = Attention::mask(&block.machine, heads, block.x.tokens, &mut block.room)?;
    let norm = layer_norm(width);
    let all: Vec<_> = (0..4).map(|_| layer(width, width)).collect();
    let of_head = width / heads.max(1);
    let scale = 1.0 / (of_head as f64).sqrt();
    let attention = Attention {
        name: "",
        norm: &norm,
        query: linear(&all[0]),
        key: linear(&all[1]),
        value: linear(&all[2]),
        output: linear(&all[3]),
        heads,
        scale: scale as f32,
        mask: Some(&mask),
    };
    let began = Instant::now();
    let operators = attention.map(&block.machine, &block.x, block.room)?;
    let compile = began.elapsed().as_secs_f64();
    let [before, after] = block.run(&operators, &[(&mask, &causal_mask(tokens, heads))], compile)?;
    // a few of the results
    let y: Vec<Vec<f64>> = before.chunks(width).map(|x| normal(x, &norm)).collect();
    for token in (0..tokens).step_by(tokens.div_ceil(4)) {
        let query = product(&y[token], &all[0]);
        let seen: Vec<[Vec<f64>; 2]> = y[..=token]
            .iter()
            .map(|y| [product(y, &all[1]), product(y, &all[2])])
            .collect();
        let mut given = vec![0.0; width];
        for head in 0..heads {
            let own = head * of_head..(head + 1) * of_head;
            let score = |key: &[f64]| {
                let products = query[own.clone()].iter().zip(&key[own.clone()]);
                products.map(|(q, k)| q * k).sum::<f64>() * scale
            };
            let scores: Vec<f64> = seen.iter().map(|[key, _]| score(key).exp()).collect();
            let sum: f64 = scores.iter().sum();
            for f in own {
                let values = scores.iter().zip(&seen);
                given[f] = values.map(|(s, [_, value])| s / sum * value[f]).sum();
            }
        }
        let own = token * width..(token + 1) * width;
        let add = product(&given, &all[3]);
        let want: Vec<f64> = before[own.clone()]
            .iter()
            .zip(add)
            .map(|(x, y)| *x as f64 + y)
            .collect();
        check(token, &after[own], &want)?;
    }
    Ok(())
}

/// A whole model but for its embedding, and how far its results are from the evaluator's.
fn in_place_gpt(arguments: &[String]) -> Result<(), Failure> {
    let [model, side, ty, sparsity, sets @ ..] = arguments else {
        return Err("expected MODEL SIDE f32|f16 SPARSITY and settings".into());
    };
    let sparsity: f64 = sparsity.parse()?;
    let ty = match ty.as_str() {
        "f32" => Ty::F32,
        "f16" => Ty::F16,
        other => return Err(format!("{other}: expected f32 or f16").into()),
    };
    let mut all = vec![format!("mesh.width={side}"), format!("mesh.height={side}")];
    all.extend_from_slice(sets);
    let machine = meshloom::machines::load("small", &all)?;
    let graph = meshloom_models::builtin(model, 1, 1)?.graph;
    let graph = match sparsity > 0.0 {
        true => sparsify(&graph, sparsity, Mask::Uniform, 1)?,
        false => graph,
    };
    let wide = |(name, values): (String, Vec<f32>)| (name, values.into_iter().map(f64::from).collect());
    let inputs = seeded_inputs(&graph, 1, 1).into_iter().map(wide).collect();
    let began = Instant::now();
    let values = meshloom_models::evaluate(&graph, &inputs)?;
    let decoder = Decoder::new(&graph, &machine, ty, sparsity > 0.0)?;
    let of = |t: meshloom_models::TensorId| {
        let values = values[t.0 as usize].as_ref();
        values.ok_or_else(|| format!("{} was not evaluated", graph.tensor(t).name))
    };
    let start: Vec<f32> = of(decoder.start)?.iter().map(|v| *v as f32).collect();
    let want = of(graph.outputs()[0])?.clone();
    drop(values);
    println!("evaluated in {:.1} s\n", began.elapsed().as_secs_f64());
    let mut sram = decoder.place(&start);
    let mut table = Table::new(&machine, ty);
    let mut compile = 0.0;
    for i in 0..decoder.parts() {
        let began = Instant::now();
        let operators = decoder.part(i)?;
        compile += began.elapsed().as_secs_f64();
        for o in operators {
            // without the layer's name
            let name = o.name.split_once(' ').map_or(o.name.as_str(), |(_, what)| what);
            table.run(&o, name, &mut sram)?;
        }
    }
    table.print();
    let n = want.len() as f64;
    let mean = want.iter().sum::<f64>() / n;
    let deviation = (want.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n).sqrt();
    let errors = decoder.read(&sram).into_iter().zip(&want);
    let largest = errors.map(|(g, w)| (g as f64 - w).abs()).fold(0.0, f64::max);
    println!(
        "\nlargest error {:.1e} of the logits' deviation; compiled in {compile:.1} s; peak {:.0} MiB",
        largest / deviation,
        peak_memory()?
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("utilisation") => utilisation(),
        Some("sparsity") => sparsity(),
        Some("scale") => scale(&arguments[1..]),
        Some("in-place") => in_place(&arguments[1..]),
        Some("in-place-mlp") => in_place_mlp(&arguments[1..]),
        Some("in-place-gpt") => in_place_gpt(&arguments[1..]),
        Some("in-place-attention") => in_place_attention(&arguments[1..]),
        other => Err(format!(
            "{}: expected `utilisation`, `sparsity`, `scale`, `in-place`, `in-place-mlp`, `in-place-attention` or `in-place-gpt`",
            other.unwrap_or("no table")
        ))
        .map_err(Into::into),
    }
}
