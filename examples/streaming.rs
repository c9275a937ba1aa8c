//! Measures matrix products with streamed weights on the machine `small`, f32, and prints the tables of docs/streaming.md:
//!
//!     cargo run --release --example streaming -- utilisation     (a minute or two)
//!     cargo run --release --example streaming -- sparsity        (a minute or two)

use meshloom_compiler::{Options, Stages, Weights, compile};
use meshloom_models::{Graph, Mask, Op, seeded_inputs, sparsify};
use meshloom_simulator::engine;

/// Cycles and multiply-adds of a product of \[tokens, k\] and \[k, m\].
struct Measured {
    cycles: u64,
    multiply_adds: u64,
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
    let compiled = compile(&graph, &machine, &options, &inputs)?;
    let outcome = engine::run(&compiled.program, &machine, &engine::Options::default())?;
    Ok(Measured {
        cycles: outcome.cycles,
        multiply_adds: outcome.pes.iter().map(|pe| pe.operations[0]).sum(),
    })
}

/// Share of the multiply-adds that all PEs of the mesh could do.
fn utilisation() -> Result<(), Failure> {
    let (tokens, k, pes) = (1024, 2048, 1024);
    println!("| Output features | Cycles | Multiply-adds | Of the peak |\n|---|---|---|---|");
    let row = |name: String, cycles: u64, multiply_adds: u64| {
        let share = multiply_adds as f64 / (pes * cycles) as f64;
        println!("| {name} | {cycles} | {multiply_adds} | {:.1} % |", share * 100.0);
    };
    let sizes = [128, 1024];
    let mut all = Vec::new();
    for m in sizes {
        let one = measure(tokens, k, m, &[], None)?;
        row(m.to_string(), one.cycles, one.multiply_adds);
        all.push(one);
    }
    row(
        format!("from {} to {}", sizes[0], sizes[1]),
        all[1].cycles - all[0].cycles,
        all[1].multiply_adds - all[0].multiply_adds,
    );
    Ok(())
}

/// Speed-ups of lists at uniform sparsity, 32 tokens and 64 features a PE with weights.
fn sparsity() -> Result<(), Failure> {
    // 28 columns with weights, 8 rows
    let (tokens, k, sets) = (256, 1792, ["mesh.height=9"]);
    let sizes = [256, 768];
    println!(
        "| Sparsity | Cycles, {} outputs | Cycles, {} outputs | A further output | Over lists at 0 % | Of theoretical | Over dense |\n|---|---|---|---|---|---|---|",
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
            "| {name} | {} | {} | {steady:.0} | {over} | {share} | {dense} |",
            a.cycles, b.cycles
        );
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("utilisation") => utilisation(),
        Some("sparsity") => sparsity(),
        other => Err(format!(
            "{}: expected `utilisation` or `sparsity`",
            other.unwrap_or("no table")
        ))
        .map_err(Into::into),
    }
}
