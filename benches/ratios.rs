//! The fast engine against the reference engine, whole programs, in one run on the same machine: `cargo bench --bench ratios`, with parts of the
//! names below to choose (`-- products resnet18`). The reference engine runs once (minutes for the larger ones), the fast one five times: the
//! median counts. Compilation is not in the times; both engines get the same program and must give the same number of cycles. For profiles, and
//! comparisons on a busy machine, FAST_ALONE=N in the environment runs the fast engine alone, N times: the least counts.

use meshloom::{machines, models};
use meshloom_compiler::{Compiled, Options, compile, compile_alone, kernels};
use meshloom_models::{Graph, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Engine};
use meshloom_simulator::program::{Program, Ty};
use std::time::Instant;

/// As in the program.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The graph that `meshloom run NAME --batch BATCH` has.
fn graph(name: &str, batch: usize) -> Graph {
    models::load(name, Some(batch), 0)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .graph
}

fn options(skip_zeros: bool) -> Options {
    Options {
        ty: Ty::F32,
        items: 1,
        skip_zeros,
        ..Options::default()
    }
}

fn compiled(graph: &Graph, machine: &Machine) -> Compiled {
    let inputs: Vec<_> = seeded_inputs(graph, 0, 1).into_iter().collect();
    compile(graph, machine, &options(false), &inputs).unwrap_or_else(|e| panic!("{e}"))
}

/// Seconds that an engine takes, and the cycles that it counts.
fn seconds(program: &Program, machine: &Machine, engine: Engine) -> (f64, u64) {
    let options = engine::Options {
        engine,
        ..engine::Options::default()
    };
    let start = Instant::now();
    let outcome = engine::run(program, machine, &options).unwrap_or_else(|e| panic!("{e}"));
    (start.elapsed().as_secs_f64(), outcome.cycles)
}

/// Seconds of the reference engine, and the median of the fast one's.
fn both(program: &Program, machine: &Machine) -> (f64, f64) {
    if let Some(times) = std::env::var("FAST_ALONE").ok().and_then(|n| n.parse().ok()) {
        let mut fast: Vec<f64> = (0..times)
            .map(|_| seconds(program, machine, Engine::Fast).0)
            .collect();
        fast.sort_by(f64::total_cmp);
        return (f64::NAN, fast[0]);
    }
    let (reference, cycles) = seconds(program, machine, Engine::Reference);
    let mut fast: Vec<f64> = (0..5)
        .map(|_| {
            let (seconds, again) = seconds(program, machine, Engine::Fast);
            assert_eq!(again, cycles, "the engines differ");
            seconds
        })
        .collect();
    fast.sort_by(f64::total_cmp);
    (reference, fast[2])
}

fn show(what: &str, (reference, fast): (f64, f64)) {
    println!(
        "{what:60} {reference:10.3} s {fast:9.4} s {:8.1}x",
        reference / fast
    );
}

/// The matrix products of a model, each alone in the rectangle that it has there: sums of times.
fn products(model: &str, machine: &Machine) -> (f64, f64) {
    let whole = compiled(&graph(model, 1), machine);
    let mut sum = (0.0, 0.0);
    for (stage, plan) in whole.plans.iter().enumerate() {
        for (i, kernel) in plan.kernels.iter().enumerate() {
            if !kernels::of(&kernel.kind).op().ends_with("matmul") {
                continue;
            }
            let inputs: Vec<Vec<f32>> = kernel
                .inputs
                .iter()
                .map(|u| {
                    let n: usize = plan.edges[u.edge].shape.iter().product();
                    (0..n).map(|i| ((i * 37 % 201) as f32 - 100.0) / 64.0).collect()
                })
                .collect();
            let alone = compile_alone(&whole, stage, i, machine, &options(false), &inputs)
                .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
            let (reference, fast) = both(&alone.program, machine);
            show(&format!("  {}", kernel.name), (reference, fast));
            sum = (sum.0 + reference, sum.1 + fast);
        }
    }
    sum
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let mesh = |side: u32| {
        let set = [format!("mesh.width={side}"), format!("mesh.height={side}")];
        machines::load("small", &set).unwrap_or_else(|e| panic!("{e}"))
    };
    println!("{:60} {:>12} {:>11} {:>9}", "", "reference", "fast", "ratio");
    let gpt = "gpt:layers=4,width=256,seq=128";
    if is_wanted("products") {
        show(&format!("the products of {gpt}, 64x64"), products(gpt, &mesh(64)));
    }
    let whole = [
        ("gpt", gpt, 1, 64),
        ("resnet18", "resnet18:stem=cifar,width=64", 1, 64),
        ("mlp", "mlp:layers=1984-1984", 32, 32),
        ("fabric", "fabric", 1, 32),
    ];
    for (name, model, batch, side) in whole {
        if is_wanted(name) {
            let machine = mesh(side);
            let program = compiled(&graph(model, batch), &machine).program;
            show(&format!("{model}, {side}x{side}"), both(&program, &machine));
        }
    }
}
