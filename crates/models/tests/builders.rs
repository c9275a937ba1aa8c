//! The graphs of the built-in families as text: names, order and shapes, which sparsity settings and reports refer to.

use meshloom_models::builders::fabric;
use meshloom_models::{Values, builtin, builtin_with};

#[test]
fn graphs_of_the_families() {
    let text: Vec<String> = [
        "mlp:layers=6-5-4",
        "gpt:layers=1,width=8,heads=2,seq=5,vocab=7",
        "fabric:layers=2,scales=2,channels=4,banded=true",
        "fabric:layers=2,scales=2,channels=2,readout=finest",
        "resnet18:width=4",
    ]
    .iter()
    .map(|spec| {
        let built = builtin(spec, 1, 0).unwrap();
        format!("{}\n{}", built.resolved, built.graph.to_text())
    })
    .collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn a_path_and_its_fabric() {
    let fabric = builtin("fabric", 1, 0).unwrap().graph;
    let paths = fabric::paths(3, 4);
    let path = &paths[paths.len() / 2];
    let chain = fabric::chain(&fabric, path).unwrap();
    let only = fabric::keep_path(&fabric, path).unwrap();
    assert!(only.nonzeros() < fabric.nonzeros());
    insta::assert_snapshot!(format!("{path:?}\n{}", chain.to_text()));
}

/// A model of 1.3 G parameters without its values.
#[test]
fn paper_scale() {
    let xl = builtin_with("gpt3-xl", 1, 0, Values::Abstract).unwrap();
    let text = xl.graph.to_text();
    insta::assert_snapshot!(text.lines().take(24).collect::<Vec<_>>().join("\n"));
}
