//! Measures matrix products with streamed weights on the machine `small`, f32, and prints the tables of docs/streaming.md:
//!
//!     cargo run --release --example streaming -- utilisation     (a minute or two)
//!     cargo run --release --example streaming -- sparsity        (a minute or two)
//!     cargo run --release --example streaming -- scale           (some minutes)
//!
//!     cargo run --release --example streaming -- in-place TOKENS K M SIDE SPARSITY
//!
//! `scale TOKENS K M` takes another product, and `scale TOKENS K M SIDE SPARSITY` measures a single mesh of SIDE x SIDE PEs. `ENGINE=reference`
//! in the environment asks for the other engine. `in-place` has its
//! activations on the mesh at the start, and leaves its results there; sparsity 0 is the dense kernel.

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

use meshloom_compiler::in_place::Product;
use meshloom_compiler::{Options, Stages, Weights, compile};
use meshloom_models::{Graph, Mask, Op, seeded_inputs, sparsify};
use meshloom_simulator::engine::{self, Engine, PeCounters};
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
    let [tokens, k, m, side, sparsity] = arguments else {
        return Err("expected TOKENS K M SIDE SPARSITY".into());
    };
    let (tokens, k, m): (usize, usize, usize) = (tokens.parse()?, k.parse()?, m.parse()?);
    let (side, sparsity): (usize, f64) = (side.parse()?, sparsity.parse()?);
    let sets = [format!("mesh.width={side}"), format!("mesh.height={side}")];
    let machine = meshloom::machines::load("small", &sets)?;
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
    let product = Product {
        name: "product",
        tokens,
        k,
        m,
        ty: Ty::F32,
        weights: &w,
        bias: None,
        relu: false,
        lists: sparsity > 0.0,
        outputs: None,
        x: 0,
    };
    let began = Instant::now();
    let mapped = product.map(&machine)?;
    let mut sram = mapped.place(&x);
    let compile = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let outcome = engine::run_on(&mapped.program, &machine, &engine_options(), &mut sram)?;
    let simulate = began.elapsed().as_secs_f64();
    // a few of the results
    let got = mapped.read(&sram);
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
    let peak = (side * side) as u64 * lanes * outcome.cycles;
    println!(
        "| Mesh | Sparsity | Outputs a group | Cycles | Multiply-adds | Utilisation | Compiled in s | Simulated in s | Peak MiB |\n|---|---|---|---|---|---|---|---|---|"
    );
    println!(
        "| {side} x {side} | {sparsity} | {} | {} | {multiply_adds} | {:.1} % | {compile:.1} | {simulate:.1} | {:.0} |",
        mapped.group,
        outcome.cycles,
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
    share("with features", &|row| row + 1 < side);
    share("last row", &|row| row + 1 == side);
    share("first row", &|row| row == 0);
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("utilisation") => utilisation(),
        Some("sparsity") => sparsity(),
        Some("scale") => scale(&arguments[1..]),
        Some("in-place") => in_place(&arguments[1..]),
        other => Err(format!(
            "{}: expected `utilisation`, `sparsity`, `scale` or `in-place`",
            other.unwrap_or("no table")
        ))
        .map_err(Into::into),
    }
}
