//! What users wait for: compiling a model, and simulating it on the reference engine. `cargo bench`; the engine's throughput is in active
//! PE-cycles a second (at least 5 million a core on a busy mesh).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use meshloom_compiler::{Compiled, Options, compile};
use meshloom_models::{Graph, builders, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Engine};
use meshloom_simulator::program::Ty;
use std::hint::black_box;

fn inputs(graph: &Graph, items: usize) -> Vec<(String, Vec<f32>)> {
    seeded_inputs(graph, 0, items).into_iter().collect()
}

fn compiled(graph: &Graph, machine: &Machine, items: usize) -> Compiled {
    let options = Options {
        ty: Ty::F32,
        items,
        skip_zeros: false,
        ..Options::default()
    };
    compile(graph, machine, &options, &inputs(graph, items)).expect("the model fits")
}

fn benches(c: &mut Criterion) {
    let machine = meshloom::machines::load("small", &[]).expect("a machine of ours");
    let whole = builders::mlp(&[784, 512, 512, 10], 32, 0).expect("valid widths");
    c.bench_function("compile mlp", |b| {
        b.iter(|| black_box(compiled(&whole, &machine, 1)))
    });

    // a mesh on which nearly every PE works nearly always
    let busy = builders::mlp(&[256, 256, 256, 10], 32, 0).expect("valid widths");
    let program = compiled(&busy, &machine, 2).program;
    let reference = engine::Options {
        engine: Engine::Reference,
        ..engine::Options::default()
    };
    let cycles = engine::run(&program, &machine, &reference)
        .expect("it runs")
        .active_pe_cycles;
    let mut group = c.benchmark_group("reference engine");
    group.sample_size(10).throughput(Throughput::Elements(cycles));
    group.bench_function("active PE-cycles, mlp:layers=256-256-256-10", |b| {
        b.iter(|| black_box(engine::run(&program, &machine, &reference)));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
