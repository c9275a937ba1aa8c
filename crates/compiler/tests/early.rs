//! Weights that arrive while the stage before computes: over random products, machines and items results agree with the f64 evaluator,
//! and the load falls by what arrived. What keeps weights from arriving early is named.

use meshloom_compiler::{CompileError, Compiled, Options, Stages, Weights, compile, passes};
use meshloom_models::{Graph, Op, evaluate::evaluate, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Outcome};
use meshloom_simulator::program::Ty;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Products that follow one another.
#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    /// Input features of the first product, and output features of each.
    sizes: Vec<usize>,
    /// One of so many weights is zero; none if 0.
    zeros: usize,
    gelu: bool,
    ty: Ty,
    items: usize,
    stages: Stages,
    sets: Vec<String>,
}

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    Machine::parse("machines/small.toml", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

fn graph(case: &Case) -> Graph {
    let mut g = Graph::new("products");
    let mut x = g.add_input("x", &[case.tokens, case.sizes[0]]).unwrap();
    for (i, w) in case.sizes.windows(2).enumerate() {
        let (k, m) = (w[0], w[1]);
        let name = format!("fc{i}");
        let value = |j: usize| match case.zeros > 0 && j.is_multiple_of(case.zeros) {
            true => 0.0,
            false => (((j * 7919 + i * 31) % 127) as f32 + 0.5) / 64.0 - 1.0,
        };
        let own = g.add_constant(format!("{name}.w"), &[m, k], (0..m * k).map(value).collect());
        let bias = g.add_constant(
            format!("{name}.b"),
            &[m],
            (0..m).map(|j| j as f32 / m as f32).collect(),
        );
        x = g
            .add_node(&name, Op::Linear, &[x, own.unwrap(), bias.unwrap()], &name)
            .unwrap();
        if case.gelu {
            let gelu = Op::Gelu { tanh: true };
            x = g
                .add_node(format!("{name}.gelu"), gelu, &[x], format!("{name}.gelu"))
                .unwrap();
        }
    }
    g.add_output(x).unwrap();
    g
}

/// Compiles, runs and checks it; `None` if it does not fit.
fn run(case: &Case) -> Result<Option<(Compiled, Outcome)>, String> {
    let (graph, machine) = (graph(case), machine(&case.sets));
    let inputs: Vec<(String, Vec<f32>)> = seeded_inputs(&graph, 5, case.items).into_iter().collect();
    let options = Options {
        ty: case.ty,
        items: case.items,
        stages: case.stages,
        weights: Weights::Resident,
        ..Options::default()
    };
    let compiled = match compile(&graph, &machine, &options, &inputs) {
        Ok(compiled) => compiled,
        Err(CompileError::DoesNotFit { .. }) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let outcome =
        engine::run(&compiled.program, &machine, &engine::Options::default()).map_err(|e| e.to_string())?;
    let (got, _) = compiled.outputs[0].values(&compiled.program, &outcome.drains, case.items);
    let mut want = Vec::new();
    for item in inputs[0].1.chunks(inputs[0].1.len() / case.items) {
        let one = BTreeMap::from([(inputs[0].0.clone(), item.iter().map(|v| *v as f64).collect())]);
        let all = evaluate(&graph, &one).map_err(|e| e.to_string())?;
        want.extend(all[graph.outputs()[0].0 as usize].clone().ok_or("no output")?);
    }
    if got.len() != want.len() {
        return Err(format!("{} elements, not {}", got.len(), want.len()));
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    let most = if case.ty == Ty::F32 { 1e-5 } else { 2e-2 };
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let e = (*g as f64 - w).abs() / scale.max(1e-3);
        if e.is_nan() || e > most {
            return Err(format!("element {i} is {g}, not {w}"));
        }
    }
    for (plan, stage) in compiled.plans.iter().zip(&outcome.stages) {
        let Some(early) = &plan.early else { continue };
        let load = stage.load_end - stage.begin;
        if early.arrived == early.words && load > 0 {
            return Err(format!(
                "all {} words came early, but {load} cycles of load",
                early.words
            ));
        }
        if early.arrived < early.words && (load == 0 || early.why.is_none()) {
            return Err(format!("{early:?}, but {load} cycles of load"));
        }
    }
    Ok(Some((compiled, outcome)))
}

fn cases() -> impl Strategy<Value = Case> {
    let sets =
        (4u32..14, 4u32..12, prop::bool::ANY, 0usize..3, 0usize..3).prop_map(|(w, h, wide, edge, sram)| {
            let edge = ["110e9", "220e9", "435e9"][edge];
            let sram = [4096, 6144, 49152][sram];
            vec![
                format!("mesh.width={w}"),
                format!("mesh.height={h}"),
                format!("link.bits={}", if wide { 64 } else { 32 }),
                format!("edge.bits_per_second={edge}"),
                format!("pe.sram_bytes={sram}"),
            ]
        });
    let sizes = prop::collection::vec(40usize..140, 3..6);
    let how = (
        prop::bool::ANY,
        prop::bool::ANY,
        prop::bool::ANY,
        0usize..4,
        1usize..3,
    );
    (4usize..100, sizes, how, sets).prop_map(|(tokens, sizes, (gelu, half, layer, zeros, items), sets)| {
        Case {
            tokens,
            sizes,
            zeros,
            gelu,
            ty: if half { Ty::F16 } else { Ty::F32 },
            items,
            stages: if layer { Stages::Layer } else { Stages::Auto },
            sets,
        }
    })
}

#[test]
fn products() {
    let cases_n = if cfg!(debug_assertions) { 24 } else { 120 };
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases_n)
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    // what was met: all words early, a part, none; PEs that only take words in
    let met: RefCell<[usize; 4]> = Default::default();
    let result = runner.run(&cases(), |case| {
        let done = run(&case).map_err(TestCaseError::fail)?;
        let mut met = met.borrow_mut();
        for plan in done.iter().flat_map(|(compiled, _)| &compiled.plans) {
            if let Some(early) = &plan.early {
                let which = match early.arrived {
                    0 => 2,
                    n => (n < early.words) as usize,
                };
                met[which] += 1;
            }
            met[3] += plan.next.as_ref().is_some_and(|n| !n.blocks.is_empty()) as usize;
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let met = met.into_inner();
    assert!(met.iter().all(|n| *n > 0), "{met:?}");
}

/// Three products, each on the whole mesh, whose weights would take some thousand cycles to load.
fn layers(sets: &[&str]) -> Case {
    Case {
        tokens: 128,
        sizes: vec![128, 256, 256, 128],
        zeros: 0,
        gelu: false,
        ty: Ty::F32,
        items: 1,
        stages: Stages::Layer,
        sets: ["mesh.width=16", "mesh.height=16", "edge.bits_per_second=217.6e9"]
            .iter()
            .chain(sets)
            .map(|s| s.to_string())
            .collect(),
    }
}

#[test]
fn a_stage_of_its_own_finds_its_weights_in_place() {
    let (compiled, outcome) = run(&layers(&[]))
        .unwrap_or_else(|e| panic!("{e}"))
        .expect("it fits");
    for (plan, stage) in compiled.plans.iter().zip(&outcome.stages).skip(1) {
        let early = plan.early.as_ref().expect("it has weights");
        assert!(early.words > 32768, "{early:?}");
        assert_eq!((early.arrived, &early.why), (early.words, &None));
        assert_eq!(stage.load_end, stage.begin);
    }
}

#[test]
fn what_keeps_weights_from_arriving_early_is_named() {
    for (set, what) in [
        ("pe.sram_bytes=22000", "bytes of SRAM"),
        ("router.colors=8", "all 8 colours are in use"),
        ("pe.threads=3", "all 3 threads"),
        ("router.switch_positions=3", "switch positions"),
        ("edge.bits_per_second=27.2e9", "all 1 channels"),
    ] {
        let case = layers(&[set]);
        let done = run(&case).unwrap_or_else(|e| panic!("{set}: {e}"));
        let Some((compiled, _)) = done else {
            panic!("{set}: it does not fit");
        };
        let shown: Vec<String> = compiled
            .plans
            .iter()
            .map(|p| passes::stages::show(p, &machine(&case.sets)))
            .collect();
        assert!(shown[1..].iter().any(|s| s.contains(what)), "{set}: {shown:#?}");
    }
}

/// Of a stage of several kernels, those have their weights early whose PEs have room.
#[test]
fn kernels_of_a_stage_get_their_weights_each() {
    let case = Case {
        sizes: vec![128; 9],
        stages: Stages::Auto,
        ..layers(&["pe.sram_bytes=16000"])
    };
    let done = run(&case).unwrap_or_else(|e| panic!("{e}"));
    let (compiled, _) = done.expect("it fits");
    let plan = &compiled.plans[1];
    assert_eq!(plan.kernels.len(), 2);
    let left = |k: usize| plan.regions[k].weights.iter().map(Vec::len).sum::<usize>();
    assert!(left(0) > 0 && left(1) == 0, "{:?}", plan.early);
}
