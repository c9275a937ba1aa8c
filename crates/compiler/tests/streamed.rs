//! Streamed weights: over random shapes, masks, machines and items the results agree with the f64 evaluator, every stored weight is
//! multiplied once for each position and nothing else is, and no weight enters before the computation.

use meshloom_compiler::passes::memory;
use meshloom_compiler::plan::{Kind, WeightWay};
use meshloom_compiler::{CompileError, Compiled, Options, Stages, Weights, compile};
use meshloom_models::{Graph, Op, evaluate::evaluate, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Outcome};
use meshloom_simulator::program::Ty;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Which weights are zero.
#[derive(Clone, Copy, Debug)]
enum Mask {
    /// About this share of 16, anywhere.
    Share(u64),
    /// All of every third input feature, and about half of the others.
    Columns,
    /// All but those of a block: first inputs for first outputs, and so on.
    Diagonal,
    /// All.
    All,
}

/// A product with its surroundings.
#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    /// Input features of the first product, and output features of each.
    sizes: Vec<usize>,
    mask: Mask,
    skip: bool,
    bias: bool,
    relu: bool,
    ty: Ty,
    items: usize,
    lanes: usize,
    stages: Stages,
    sets: Vec<String>,
    seed: u64,
}

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    Machine::parse("machines/small.toml", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

/// A well-mixed number of an index.
fn mixed(i: usize, seed: u64) -> u64 {
    let mut s = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd134_2543_de82_ef95);
    s ^= s >> 31;
    s = s.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    s ^ s >> 29
}

/// Weights \[m, k\].
fn weights(case: &Case, m: usize, k: usize) -> Vec<f32> {
    let value = |i: usize| {
        let s = mixed(i, case.seed);
        let (row, column) = (i / k, i % k);
        let kept = match case.mask {
            Mask::Share(n) => s >> 8 & 15 >= n,
            Mask::Columns => column % 3 != 1 && s >> 8 & 1 == 0,
            Mask::Diagonal => row * 4 / m == column * 4 / k,
            Mask::All => false,
        };
        let size = 0.25 + (s >> 40) as f32 / (1 << 24) as f32;
        match (kept, s & 1) {
            (false, _) => 0.0,
            (_, 0) => size,
            _ => -size,
        }
    };
    (0..m * k).map(value).collect()
}

fn graph(case: &Case) -> Graph {
    let mut g = Graph::new("products");
    let mut x = g.add_input("x", &[case.tokens, case.sizes[0]]).unwrap();
    for (i, w) in case.sizes.windows(2).enumerate() {
        let (k, m) = (w[0], w[1]);
        let name = format!("fc{i}");
        let own = g
            .add_constant(format!("{name}.w"), &[m, k], weights(case, m, k))
            .unwrap();
        let mut inputs = vec![x, own];
        if case.bias {
            let bias = (0..m)
                .map(|i| mixed(i, 7) as f32 / u64::MAX as f32 - 0.5)
                .collect();
            inputs.push(g.add_constant(format!("{name}.b"), &[m], bias).unwrap());
        }
        x = g.add_node(&name, Op::Linear, &inputs, &name).unwrap();
        if case.relu {
            x = g
                .add_node(format!("{name}.relu"), Op::Relu, &[x], format!("{name}.relu"))
                .unwrap();
        }
    }
    g.add_output(x).unwrap();
    g
}

/// Compiles and runs it, and checks it; `None` if it does not fit.
fn run(case: &Case, weights: Weights) -> Result<Option<(Compiled, Outcome)>, String> {
    let (graph, machine) = (graph(case), machine(&case.sets));
    let values = seeded_inputs(&graph, case.seed, case.items);
    let inputs: Vec<(String, Vec<f32>)> = values.into_iter().collect();
    let options = Options {
        ty: case.ty,
        items: case.items,
        skip_zeros: case.skip,
        stages: case.stages,
        weights,
        lanes: case.lanes,
        ..Options::default()
    };
    let compiled = match compile(&graph, &machine, &options, &inputs) {
        Ok(compiled) => compiled,
        Err(CompileError::DoesNotFit { .. }) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    for (plan, kernel) in compiled
        .plans
        .iter()
        .flat_map(|p| p.kernels.iter().map(move |k| (p, k)))
    {
        let place = plan.kernels.iter().position(|k| k.name == kernel.name).unwrap();
        if !matches!(kernel.kind, Kind::Streamed(_)) {
            continue;
        }
        let shown = meshloom_compiler::passes::stages::show(plan, &machine);
        let needs = plan.regions[place]
            .region
            .blocks
            .iter()
            .map(|b| memory::bytes(b, &machine))
            .max()
            .unwrap();
        let line = shown.lines().nth(place).unwrap_or("");
        let said: u64 = line
            .split(", ")
            .nth(2)
            .and_then(|s| s.split(' ').next()?.parse().ok())
            .unwrap_or(0);
        if needs > said {
            return Err(format!("{needs} bytes of SRAM: {shown}"));
        }
    }
    let outcome =
        engine::run(&compiled.program, &machine, &engine::Options::default()).map_err(|e| e.to_string())?;
    // the numbers
    let (got, _) = compiled.outputs[0].values(&compiled.program, &outcome.drains, case.items);
    let each = inputs[0].1.len() / case.items;
    let mut want = Vec::new();
    for item in inputs[0].1.chunks(each) {
        let one = BTreeMap::from([(inputs[0].0.clone(), item.iter().map(|v| *v as f64).collect())]);
        let all = evaluate(&graph, &one).map_err(|e| e.to_string())?;
        want.extend(all[graph.outputs()[0].0 as usize].clone().ok_or("no output")?);
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64)
        .sqrt()
        .max(1e-3);
    let most = if case.ty == Ty::F32 { 1e-5 } else { 2e-2 };
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let e = (*g as f64 - w).abs() / scale;
        if e.is_nan() || e > most {
            return Err(format!("element {i} is {g}, not {w}"));
        }
    }
    if got.len() != want.len() {
        return Err(format!("{} elements, not {}", got.len(), want.len()));
    }
    // the multiply-adds
    let stored: usize = graph_weights(&graph)
        .iter()
        .map(|w| w.iter().filter(|w| !case.skip || **w != 0.0).count())
        .sum();
    let theoretical = (stored * case.tokens * case.items) as u64;
    let executed: u64 = outcome.pes.iter().map(|pe| pe.operations[0]).sum();
    if executed != theoretical {
        return Err(format!("executed {executed} multiply-adds, not {theoretical}"));
    }
    Ok(Some((compiled, outcome)))
}

/// The matrices of all products.
fn graph_weights(graph: &Graph) -> Vec<Vec<f32>> {
    let products = graph.nodes_in_order().into_iter().map(|id| graph.node(id));
    let products = products.filter(|n| matches!(n.op, Op::Linear));
    products
        .map(|n| graph.tensor(n.inputs[1]).data.as_ref().unwrap().to_vec())
        .collect()
}

fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![
        4 => (0u64..16).prop_map(Mask::Share),
        1 => Just(Mask::Columns),
        1 => Just(Mask::Diagonal),
        1 => Just(Mask::All),
    ]
}

fn settings() -> impl Strategy<Value = Vec<String>> {
    let sets = (3u32..14, 2u32..10, 1u32..4, prop::bool::ANY, 1u32..3, 0usize..4);
    sets.prop_map(|(w, h, depth, wide, lanes, edge)| {
        let bits = if wide { 64 } else { 32 };
        // from one slow channel to one in each row
        let edge = ["20e9", "60e9", "220e9", "5e12"][edge];
        vec![
            format!("mesh.width={w}"),
            format!("mesh.height={h}"),
            format!("router.queue_depth={depth}"),
            format!("link.bits={bits}"),
            format!("pe.lanes.f32={lanes}"),
            format!("edge.bits_per_second={edge}"),
        ]
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = prop::collection::vec(1usize..70, 2..4);
    let how = (
        prop::bool::ANY,
        prop::bool::ANY,
        prop::bool::ANY,
        prop::bool::ANY,
        prop::bool::ANY,
    );
    let more = (masks(), 1usize..4, 0usize..3, settings(), 0u64..1000);
    (1usize..60, sizes, how, more).prop_map(
        |(tokens, sizes, (skip, bias, relu, half, layer), (mask, items, lanes, sets, seed))| Case {
            tokens,
            sizes: sizes
                .iter()
                .map(|s| if lanes > 0 { s.next_multiple_of(4) } else { *s })
                .collect(),
            mask,
            skip,
            bias,
            relu,
            ty: if half { Ty::F16 } else { Ty::F32 },
            items,
            lanes: 1 << lanes,
            stages: if layer { Stages::Layer } else { Stages::One },
            sets,
            seed,
        },
    )
}

#[test]
fn products() {
    let cases_n = if cfg!(debug_assertions) { 40 } else { 400 };
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases_n)
    });
    // what was met: all that ran, dense blocks, lists, several lanes in, out, columns that share a channel, with unequal blocks
    let met: RefCell<[usize; 7]> = Default::default();
    let result = runner.run(&cases(), |case| {
        let done = run(&case, Weights::Streamed).map_err(TestCaseError::fail)?;
        let mut met = met.borrow_mut();
        if let Some((compiled, _)) = &done {
            met[0] += 1;
            for plan in &compiled.plans {
                for (kernel, region) in plan.kernels.iter().zip(&plan.regions) {
                    let Some(streamed) = &region.streamed else {
                        continue;
                    };
                    met[1] += !streamed.lists as usize;
                    met[2] += streamed.lists as usize;
                    met[3] += (plan.edges[kernel.inputs[0].edge].layout.lanes > 1) as usize;
                    met[4] += (plan.edges[kernel.output].layout.lanes > 1) as usize;
                    let ways = plan.weights.iter().filter(|w| w.columns.len() > 1);
                    met[5] += (ways.clone().count() > 0) as usize;
                    let lengths = |column: &u32| streamed.columns[*column as usize].iter().map(Vec::len);
                    let uneven =
                        |w: &WeightWay| w.columns.windows(2).any(|c| !lengths(&c[0]).eq(lengths(&c[1])));
                    met[6] += (plan.kernels.len() == 1 && ways.clone().any(uneven)) as usize;
                }
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let met = met.into_inner();
    eprintln!("{met:?}");
    assert!(
        met[0] > cases_n as usize / 2 && met.iter().all(|n| *n > 0),
        "{met:?}"
    );
}

fn case(tokens: usize, k: usize, m: usize, mask: Mask, sets: &[&str]) -> Case {
    Case {
        tokens,
        sizes: vec![k, m],
        mask,
        skip: true,
        bias: false,
        relu: false,
        ty: Ty::F32,
        items: 1,
        lanes: 4,
        stages: Stages::Auto,
        sets: sets.iter().map(|s| s.to_string()).collect(),
        seed: 1,
    }
}

/// Weights that do not fit are streamed, and those that do are resident; a stage for each kernel streams them.
#[test]
fn chosen_by_what_fits() {
    let small = ["mesh.width=8", "mesh.height=8", "pe.sram_bytes=8192"];
    let large = ["mesh.width=8", "mesh.height=8"];
    for (sets, stages, weights, streamed) in [
        (&small[..], Stages::Auto, Weights::Auto, Some(true)),
        (&large, Stages::Auto, Weights::Auto, Some(false)),
        (&large, Stages::Layer, Weights::Auto, Some(true)),
        (&large, Stages::Layer, Weights::Resident, Some(false)),
        (&small, Stages::Layer, Weights::Resident, None),
        (&large, Stages::Auto, Weights::Streamed, Some(true)),
    ] {
        let case = Case {
            stages,
            ..case(8, 256, 256, Mask::Share(0), sets)
        };
        let done = run(&case, weights).unwrap_or_else(|e| panic!("{e}"));
        let found = done
            .as_ref()
            .map(|(c, _)| matches!(c.plans[0].kernels[0].kind, Kind::Streamed(_)));
        assert_eq!(found, streamed, "{sets:?} {stages:?} {weights:?}");
        // streamed weights are never load
        for (_, outcome) in done.iter().filter(|_| streamed == Some(true)) {
            assert_eq!(outcome.stages[0].load_end, outcome.stages[0].begin);
        }
    }
}

/// Expected beside simulated cycles from item to item.
#[test]
fn estimates_are_near() {
    let sets = ["mesh.width=14", "mesh.height=9"];
    let mut bad = String::new();
    for (tokens, k, m, mask) in [
        (256, 192, 96, Mask::Share(0)),
        (256, 192, 96, Mask::Share(8)),
        (256, 192, 96, Mask::Share(14)),
        (64, 96, 256, Mask::Share(12)),
        (16, 384, 128, Mask::Share(4)),
        (512, 48, 48, Mask::Share(0)),
    ] {
        let case = Case {
            items: 4,
            ..case(tokens, k, m, mask, &sets)
        };
        let (compiled, outcome) = run(&case, Weights::Streamed)
            .unwrap_or_else(|e| panic!("{e}"))
            .expect("it fits");
        let (_, done) = compiled.outputs[0].values(&compiled.program, &outcome.drains, case.items);
        let (interval, expected) = ((done[3] - done[1]) / 2, compiled.plans[0].estimates[0]);
        let line = format!("{tokens} x {k} x {m} {mask:?}: expected {expected}, simulated {interval}");
        eprintln!("{line}");
        let ratio = expected as f64 / interval as f64;
        if !(0.67..1.5).contains(&ratio) {
            bad += &format!("{line}\n");
        }
    }
    assert!(bad.is_empty(), "{bad}");
}
