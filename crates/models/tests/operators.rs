//! The evaluator against onnxruntime: single operators, imported from files (see tests/data/README.md).

mod common;

use meshloom_models::{ImportOptions, Op, evaluate, import};
use std::collections::BTreeMap;

#[test]
fn operators_are_those_of_onnxruntime() {
    let cases = common::cases();
    assert!(cases.len() > 30, "{cases:?}");
    for case in cases {
        let graph = import(common::data(&format!("{case}.onnx")), &ImportOptions::default()).unwrap();
        let x = common::floats(&format!("{case}.x.f32"));
        let values = evaluate(&graph, &BTreeMap::from([("x".to_string(), x)])).unwrap();
        let got = values[graph.outputs()[0].0 as usize].as_ref().unwrap();
        let want = common::floats(&format!("{case}.y.f32"));
        assert_eq!(got.len(), want.len(), "{case}");
        assert_eq!(graph.tensor(graph.outputs()[0]).name, "y");
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(
                (g - w).abs() < 2e-6 * (1.0 + w.abs()),
                "{case} at {i}: {g} instead of {w}"
            );
        }
    }
}

#[test]
fn constant_additions_become_biases() {
    let graph = import(common::data("matmul_bias.onnx"), &ImportOptions::default()).unwrap();
    let nodes = graph.nodes_in_order();
    assert_eq!(nodes.len(), 1, "{}", graph.to_text());
    let node = graph.node(nodes[0]);
    assert!(node.op == Op::Linear && node.inputs.len() == 3);
    insta::assert_snapshot!(graph.to_text());
}

#[test]
fn graph_text() {
    let text: Vec<String> = [
        "conv_groups",
        "avgpool_pads",
        "batchnorm",
        "gemm_column",
        "constants",
    ]
    .iter()
    .map(|case| {
        import(common::data(&format!("{case}.onnx")), &ImportOptions::default())
            .unwrap()
            .to_text()
    })
    .collect();
    insta::assert_snapshot!(text.join("\n"));
}

/// A batch of two is two runs of one, for every case whose axes do not mix samples.
#[test]
fn a_batch_is_its_samples() {
    let mut checked = 0;
    for case in common::cases() {
        let path = common::data(&format!("{case}.onnx"));
        let Ok(one) = import(&path, &ImportOptions { batch: Some(1) }) else {
            continue;
        };
        let Ok(two) = import(&path, &ImportOptions { batch: Some(2) }) else {
            continue;
        };
        // along the first axis this one mixes samples, and this one transposes them
        if ["softmax_first", "transpose_reversed", "gemm_transposed"].contains(&case.as_str()) {
            continue;
        }
        let run = |graph: &meshloom_models::Graph, x: &[f64]| {
            let mut values = evaluate(graph, &BTreeMap::from([("x".to_string(), x.to_vec())])).unwrap();
            values[graph.outputs()[0].0 as usize].take().unwrap()
        };
        let n: usize = one.tensor(one.inputs()[0]).shape.iter().product();
        let rows = one.vocabulary(one.inputs()[0]);
        let value = |i: usize| match rows {
            Some(rows) => (i * 37 % rows) as f64,
            None => ((i * 37 % 101) as f64 - 50.0) / 20.0,
        };
        let x: Vec<f64> = (0..2 * n).map(value).collect();
        let both = [run(&one, &x[..n]), run(&one, &x[n..])].concat();
        assert_eq!(run(&two, &x), both, "{case}");
        checked += 1;
    }
    assert!(checked > 25, "{checked}");
}
