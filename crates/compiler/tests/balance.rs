//! The balance pass on whole programs: orders change no value, make no kernel less even and are the same every time. And, when asked
//! for, the tables of docs/sparsity.md: what resident sparse products gain, and how even masks are.

use meshloom_compiler::{Compiled, Options, compile};
use meshloom_models::sparsity::Mask;
use meshloom_models::{Graph, Op, builtin, evaluate, flops, seeded_inputs, sparsify};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Class, Outcome};
use proptest::prelude::*;

fn machine(sets: &[&str]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Machine::parse("small", text, &sets).unwrap_or_else(|e| panic!("{e}"))
}

fn inputs(graph: &Graph, items: usize) -> Vec<(String, Vec<f32>)> {
    seeded_inputs(graph, 1, items).into_iter().collect()
}

/// Compiles and runs; a graph with zeros skips them.
fn run(graph: &Graph, machine: &Machine, options: &Options) -> (Compiled, Outcome) {
    let compiled =
        compile(graph, machine, options, &inputs(graph, options.items)).unwrap_or_else(|e| panic!("{e}"));
    let outcome = engine::run(&compiled.program, machine, &engine::Options::default());
    (compiled, outcome.unwrap_or_else(|e| panic!("{e}")))
}

/// Largest error of the first output against the evaluator, in its standard deviations.
fn error(graph: &Graph, compiled: &Compiled, outcome: &Outcome, items: usize) -> f64 {
    let (got, _) = compiled.outputs[0].values(&compiled.program, &outcome.drains, items);
    let mut want = Vec::new();
    for i in 0..items {
        let one = inputs(graph, items).into_iter().map(|(name, v)| {
            let n = v.len() / items;
            (name, v[i * n..(i + 1) * n].iter().map(|x| *x as f64).collect())
        });
        let all = evaluate(graph, &one.collect()).unwrap();
        want.extend(all[graph.outputs()[0].0 as usize].clone().unwrap());
    }
    assert_eq!(got.len(), want.len());
    let n = want.len() as f64;
    let mean = want.iter().sum::<f64>() / n;
    let deviation = (want.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n).sqrt();
    let worst = got.iter().zip(&want).map(|(g, w)| (*g as f64 - w).abs());
    worst.fold(0.0, |a: f64, b| if b.is_nan() { f64::NAN } else { a.max(b) }) / deviation
}

/// Executed multiply-adds, and the report's imbalance of a kernel, from the counters.
fn executed(compiled: &Compiled, outcome: &Outcome, machine: &Machine, kernel: usize) -> (u64, f64) {
    let r = compiled.plans[0].places[kernel];
    let all: Vec<u64> = (r.y..r.y + r.height)
        .flat_map(|y| (r.x..r.x + r.width).map(move |x| (x, y)))
        .map(|(x, y)| outcome.stages[0].pes[(y * machine.mesh.width + x) as usize].operations[0])
        .collect();
    let (sum, some) = (all.iter().sum::<u64>(), all.iter().filter(|n| **n > 0).count());
    let most = all.iter().max().copied().unwrap_or(0);
    (sum, most as f64 * some as f64 / sum as f64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn orders_change_no_value_and_make_nothing_less_even(
        sizes in prop::collection::vec(4usize..70, 2..5),
        skewed in 0usize..3,
        fraction in 0.2f64..0.9,
        batch in 1usize..7,
        items in 1usize..4,
        side in (5u32..12, 4u32..12),
        lanes in prop::sample::select(vec![1usize, 4]),
        f16: bool,
        seed in 0u64..1000,
    ) {
        let name: Vec<String> = sizes.iter().map(usize::to_string).collect();
        let model = builtin(&format!("mlp:layers={}", name.join("-")), batch, seed).unwrap();
        let mask = [Mask::Uniform, Mask::Magnitude, Mask::Skewed { cv: 1.0 }][skewed];
        let graph = sparsify(&model.graph, fraction, mask, seed).unwrap();
        let (width, height) = (format!("mesh.width={}", side.0), format!("mesh.height={}", side.1));
        let machine = machine(&[&width, &height]);
        let ty = if f16 { meshloom_simulator::program::Ty::F16 } else { meshloom_simulator::program::Ty::F32 };
        let options = Options { ty, items, lanes, seed, ..Options::default() };
        let (compiled, outcome) = run(&graph, &machine, &options);
        let off = Options { balance: false, ..options.clone() };
        let (plain, unchanged) = run(&graph, &machine, &off);
        let close = if f16 { 2e-2 } else { 1e-5 };
        prop_assert!(error(&graph, &compiled, &outcome, items) < close);
        prop_assert!(error(&graph, &plain, &unchanged, items) < close);
        let mut total = 0;
        for b in &compiled.plans[0].balance {
            prop_assert!(b.after <= b.before, "{b:?}");
            // what the pass says is what the engine counts
            let (mac, found) = executed(&compiled, &outcome, &machine, b.kernel);
            prop_assert!((found - b.after).abs() < 1e-9, "{found} {b:?}");
            let (_, found) = executed(&plain, &unchanged, &machine, b.kernel);
            prop_assert!((found - b.before).abs() < 1e-9, "{found} {b:?}");
            total += mac;
        }
        prop_assert_eq!(total, flops::total(&graph).mac_theoretical * items as u64);
        let again = compile(&graph, &machine, &options, &inputs(&graph, items)).unwrap();
        prop_assert_eq!(again.program, compiled.program);
    }
}

#[test]
fn rows_of_very_unequal_weight_are_evened_out() {
    let model = builtin("mlp:layers=128-128-128", 4, 3).unwrap();
    let graph = sparsify(&model.graph, 0.75, Mask::Skewed { cv: 1.0 }, 3).unwrap();
    let machine = machine(&["mesh.width=18", "mesh.height=9"]);
    let compiled = compile(&graph, &machine, &Options::default(), &inputs(&graph, 1)).unwrap();
    for b in &compiled.plans[0].balance {
        assert!(b.before > 1.25 && b.after < 1.1, "{b:?}");
    }
    let off = Options {
        balance: false,
        ..Options::default()
    };
    let compiled = compile(&graph, &machine, &off, &inputs(&graph, 1)).unwrap();
    assert!(compiled.plans[0].balance.iter().all(|b| b.before == b.after));
    assert!(compiled.plans[0].edges.iter().all(|e| e.layout.order.is_none()));
}

/// A weight of the model becomes zero, so that the product takes the form of lists although it has (all but) no zeros.
fn one_zero(graph: &Graph) -> Graph {
    let mut g = graph.clone();
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        if matches!(node.op, Op::Linear) {
            let mut w = graph.tensor(node.inputs[1]).data.as_ref().unwrap().to_vec();
            w[0] = 0.0;
            g.set_constant(node.inputs[1], w).unwrap();
        }
    }
    g
}

struct Row {
    interval: f64,
    mac: u64,
    balance: (f64, f64),
    text: String,
}

/// One product on a mesh: cycles an item in the steady state, and shares of its PEs' cycles by class, load apart.
fn measure(graph: &Graph, machine: &Machine, options: &Options) -> Row {
    let (compiled, outcome) = run(graph, machine, options);
    let items = options.items;
    let (_, done) = compiled.outputs[0].values(&compiled.program, &outcome.drains, items);
    let (last, from) = (items - 1, (items - 1) / 2);
    let stage = &outcome.stages[0];
    let r = compiled.plans[0].places[0];
    let pes = (r.width * r.height) as u64;
    let at = |x: u32, y: u32| &stage.pes[(y * machine.mesh.width + x) as usize];
    let all: Vec<_> = (r.y..r.y + r.height)
        .flat_map(|y| (r.x..r.x + r.width).map(move |x| at(x, y)))
        .collect();
    let class = |c: Class| {
        all.iter()
            .map(|p| p.classes[c as usize] - p.load_classes[c as usize])
            .sum::<u64>()
    };
    let slot = |i: usize| all.iter().map(|p| p.slots[i] - p.load_slots[i]).sum::<u64>();
    let n = pes * items as u64;
    let text = format!(
        "{} | {} | {} | {} | {} | {} | {} ",
        slot(1) / n,
        slot(0) / n,
        slot(3) / n,
        slot(5) / n,
        class(Class::Launch) / n,
        class(Class::WaitInput) / n,
        class(Class::WaitRoom) / n,
    );
    let balance = compiled.plans[0]
        .balance
        .first()
        .map_or((1.0, 1.0), |b| (b.before, b.after));
    assert!(error(graph, &compiled, &outcome, items) < 1e-5);
    Row {
        interval: match last {
            0 => (stage.end - stage.load_end) as f64,
            _ => (done[last] - done[from]) as f64 / (last - from) as f64,
        },
        mac: all.iter().map(|p| p.operations[0]).sum::<u64>() / n * pes,
        balance,
        text,
    }
}

/// `cargo test -p meshloom-compiler --release --test balance -- --ignored --nocapture resident_products`
#[test]
#[ignore = "a table of docs/sparsity.md: minutes"]
fn resident_products() {
    println!(
        "| shape, PEs | weights | cycles an item | speed-up | theoretical | share | imbalance before, after | mac slots | moves | reduce | scalar | issue | wait_input | wait_room |"
    );
    let shapes = std::env::var("SHAPES")
        .unwrap_or("512-512,8,8,16,48 512-512,8,8,32,128 768-768,8,8,32,128 1024-512,8,8,32,128".into());
    for shape in shapes.split(' ') {
        let [layers, width, height, tokens, kib] = shape.split(',').collect::<Vec<_>>()[..] else {
            panic!("{shape}: expected layers,columns,rows,tokens,KiB of SRAM")
        };
        let (w, h): (u32, u32) = (width.parse().unwrap(), height.parse().unwrap());
        let tokens: usize = tokens.parse().unwrap();
        let model = builtin(&format!("mlp:layers={layers}"), tokens, 0).unwrap();
        let sets = [
            format!("mesh.width={}", w + 1),
            format!("mesh.height={}", h + 1),
            format!("pe.sram_bytes={}", kib.parse::<u32>().unwrap() * 1024),
        ];
        let machine = machine(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        let options = Options {
            items: std::env::var("ITEMS").map_or(6, |n| n.parse().unwrap()),
            ..Options::default()
        };
        let print = |what: &str, row: &Row, base: &Row| {
            let (gain, theory) = (base.interval / row.interval, base.mac as f64 / row.mac as f64);
            println!(
                "| {layers}, {width}x{height} | {what} | {} | {gain:.2} | {theory:.2} | {:.1}% | {:.3}, {:.3} | {}|",
                row.interval.round(),
                100.0 * gain / theory,
                row.balance.0,
                row.balance.1,
                row.text
            );
        };
        let zero = measure(&one_zero(&model.graph), &machine, &options);
        let dense = measure(&model.graph, &machine, &options);
        print("dense", &dense, &zero);
        print("lists, 0%", &zero, &zero);
        for fraction in [0.5, 0.75, 0.9] {
            let graph = sparsify(&model.graph, fraction, Mask::Uniform, 0).unwrap();
            for balance in [true, false] {
                let row = measure(
                    &graph,
                    &machine,
                    &Options {
                        balance,
                        ..options.clone()
                    },
                );
                let name = format!(
                    "lists, {}%{}",
                    100.0 * fraction,
                    if balance { "" } else { ", order as it is" }
                );
                print(&name, &row, &zero);
            }
        }
        let utilisation = dense.mac as f64 / (dense.interval * (w * h) as f64);
        println!(
            "dense: {:.1}% of the peak in the steady interval",
            100.0 * utilisation
        );
    }
}

/// The seed is for orders of features; the floor plan is the best one whatever the seed.
#[test]
fn the_floor_plan_does_not_depend_on_the_seed() {
    let model = builtin("mlp:layers=24-16-8", 4, 0).unwrap();
    let machine = machine(&["mesh.width=12", "mesh.height=9"]);
    let places = |seed| {
        let options = Options {
            seed,
            ..Options::default()
        };
        let compiled = compile(&model.graph, &machine, &options, &inputs(&model.graph, 1)).unwrap();
        compiled.plans[0].places.clone()
    };
    for seed in [1, 3, 7, 15] {
        assert_eq!(places(seed), places(0), "seed {seed}");
    }
}
