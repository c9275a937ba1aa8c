//! Raising: what exporters write out becomes single operators, and computes the same.

mod common;

use meshloom_models::onnx::{Level, import_at};
use meshloom_models::{Graph, ImportOptions, evaluate, raise, seeded_inputs};
use std::collections::BTreeMap;

fn load(case: &str, level: Level) -> Graph {
    import_at(
        common::data(&format!("{case}.onnx")),
        &ImportOptions::default(),
        level,
    )
    .unwrap()
}

fn run(graph: &Graph, seed: u64) -> Vec<f64> {
    let inputs = seeded_inputs(graph, seed, 1).into_iter();
    let inputs: BTreeMap<_, _> = inputs
        .map(|(name, v)| (name, v.into_iter().map(f64::from).collect()))
        .collect();
    let mut values = evaluate(graph, &inputs).unwrap();
    values[graph.outputs()[0].0 as usize].take().unwrap()
}

/// How often each operator is there, in the order of their names.
fn operators(graph: &Graph) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in graph.nodes_in_order() {
        *counts.entry(graph.node(id).op.name()).or_default() += 1;
    }
    let all: Vec<String> = counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
    all.join(", ")
}

#[test]
fn raised_graphs_compute_the_same() {
    for case in common::cases() {
        let (low, high) = (load(&case, Level::AsWritten), load(&case, Level::Raised));
        assert_eq!(low.inputs().len(), high.inputs().len());
        assert_eq!(
            low.tensor(low.outputs()[0]).shape,
            high.tensor(high.outputs()[0]).shape,
            "{case}"
        );
        for seed in 0..3 {
            let (a, b) = (run(&low, seed), run(&high, seed));
            let scale = a.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() <= 2e-7 * scale, "{case}: {a} and {b}");
            }
        }
        // nothing is left to raise
        assert_eq!(raise(&high).to_text(), high.to_text(), "{case}");
    }
}

#[test]
fn exported_blocks_become_single_operators() {
    let text = |case: &str| operators(&load(case, Level::Raised));
    assert_eq!(
        text("block_gpt2"),
        "3 add, 1 attention, 1 gather, 1 gelu, 3 layernorm, 5 linear, 3 slice"
    );
    assert_eq!(
        text("block_gpt2_old"),
        "2 add, 1 attention, 1 gather, 1 layernorm, 2 linear, 3 slice"
    );
    assert_eq!(text("block_sdpa"), "1 attention, 1 gelu, 1 layernorm, 3 linear");
    assert_eq!(
        text("block_resnet"),
        "1 add, 1 avgpool, 4 batchnorm, 4 conv, 1 linear, 1 maxpool, 3 relu, 1 reshape"
    );
    insta::assert_snapshot!(load("block_gpt2", Level::Raised).to_text());
}

#[test]
fn what_does_not_match_stays() {
    for case in ["block_not_attention", "block_not_causal"] {
        let (low, high) = (load(case, Level::AsWritten), load(case, Level::Raised));
        assert_eq!(operators(&low), operators(&high), "{case}");
        assert!(operators(&high).contains("2 matmul"), "{case}");
    }
    let counts = |level| operators(&load("block_gpt2", level));
    assert!(counts(Level::AsWritten).contains("2 matmul") && counts(Level::AsWritten).contains("1 tanh"));
}

#[test]
fn raised_graphs_take_any_batch() {
    for case in ["block_gpt2", "block_gpt2_old", "block_sdpa"] {
        let one = load(case, Level::Raised).with_batch(1).unwrap();
        let three = one.with_batch(3).unwrap();
        let inputs = seeded_inputs(&one, 5, 3);
        let x: Vec<f64> = inputs["x"].iter().map(|v| f64::from(*v)).collect();
        let give = |graph: &Graph, x: &[f64]| {
            let mut values = evaluate(graph, &BTreeMap::from([("x".to_string(), x.to_vec())])).unwrap();
            values[graph.outputs()[0].0 as usize].take().unwrap()
        };
        let each: Vec<f64> = x.chunks_exact(x.len() / 3).flat_map(|x| give(&one, x)).collect();
        assert_eq!(give(&three, &x), each, "{case}");
    }
}

/// Long chains take time in proportion to their length.
#[test]
fn long_chains_are_quick() {
    let mut graph = Graph::new("chain");
    let mut t = graph.add_input("x", &[2, 3]).unwrap();
    for i in 0..40_000 {
        let shape: &[usize] = [&[6][..], &[2, 3], &[2, 3], &[3, 2]][i % 4];
        t = graph.add_reshape("r", t, format!("t{i}"), shape).unwrap();
    }
    graph.add_output(t).unwrap();
    let start = std::time::Instant::now();
    let raised = raise(&graph);
    assert_eq!(operators(&raised), "1 reshape");
    // a check of all that follows at each step would take minutes
    assert!(start.elapsed().as_secs() < 20);
}
