//! Which weights may be masked.
//!
//! Weights of convolutions and products are. By default some of them stay dense, in a graph that has convolutions or
//! embeddings (in a plain perceptron all are masked, for it has nothing else):
//!
//! - **embeddings**: a table that a gather reads, also where the head shares it;
//! - **the stem**: a convolution that a graph input reaches through no other product;
//! - **the head**: the product whose result reaches a graph output through no other product.
//!
//! "Reaches" is along operators that have one activation among their inputs (softmax, reshape, addition of a constant...);
//! where two activations meet, as in a residual addition, the search ends. For a GPT what is left is just the attention and
//! MLP products, for a ResNet all but the first convolution and the classifier.

use crate::graph::{Graph, Node, NodeId, Op, TensorId};
use std::collections::BTreeSet;

/// A convolution or a product with weights.
fn is_product(node: &Node) -> bool {
    matches!(node.op, Op::Conv { .. } | Op::Linear)
}

/// The constant weights of convolutions and products, each once, by id; abstract ones too.
pub fn weights(graph: &Graph) -> Vec<TensorId> {
    let of = |id: NodeId| {
        let node = graph.node(id);
        is_product(node).then(|| node.inputs[1])
    };
    let all: BTreeSet<TensorId> = graph.nodes_in_order().into_iter().filter_map(of).collect();
    all.into_iter()
        .filter(|t| graph.tensor(*t).is_constant())
        .collect()
}

/// The weights that are masked unless asked otherwise, by id.
pub fn maskable(graph: &Graph) -> Vec<TensorId> {
    let dense: BTreeSet<TensorId> = dense_by_default(graph).into_iter().collect();
    weights(graph)
        .into_iter()
        .filter(|t| !dense.contains(t))
        .collect()
}

/// The weights of convolutions and products that stay dense unless asked for, by id: embeddings, stem, head.
pub fn dense_by_default(graph: &Graph) -> Vec<TensorId> {
    let nodes = graph.nodes_in_order();
    let special = |id: &NodeId| matches!(graph.node(*id).op, Op::Conv { .. } | Op::Gather);
    if !nodes.iter().any(special) {
        return Vec::new();
    }
    let weights: BTreeSet<TensorId> = weights(graph).into_iter().collect();
    let mut dense = BTreeSet::new();
    for id in &nodes {
        let node = graph.node(*id);
        match node.op {
            // ids, table
            Op::Gather => drop(dense.insert(node.inputs[1])),
            Op::Conv { .. } if begins(graph, node.inputs[0]) => drop(dense.insert(node.inputs[1])),
            _ => {}
        }
    }
    let heads = graph.outputs().iter().filter_map(|t| last_product(graph, *t));
    dense.extend(heads.map(|id| graph.node(id).inputs[1]));
    dense.into_iter().filter(|t| weights.contains(t)).collect()
}

/// The activation that a node reads, if it is one only.
fn only_activation(graph: &Graph, node: &Node) -> Option<TensorId> {
    let reads: BTreeSet<TensorId> = node
        .inputs
        .iter()
        .copied()
        .filter(|t| !graph.tensor(*t).is_constant())
        .collect();
    reads.first().copied().filter(|_| reads.len() == 1)
}

/// Whether a tensor is a graph input, or comes from one through no product.
fn begins(graph: &Graph, mut t: TensorId) -> bool {
    while let Some(id) = graph.producer(t) {
        let node = graph.node(id);
        match only_activation(graph, node).filter(|_| !is_product(node)) {
            Some(before) => t = before,
            None => return false,
        }
    }
    graph.inputs().contains(&t)
}

/// The product whose result reaches a tensor through no other product.
pub(crate) fn last_product(graph: &Graph, mut t: TensorId) -> Option<NodeId> {
    loop {
        let id = graph.producer(t)?;
        let node = graph.node(id);
        if is_product(node) {
            return Some(id);
        }
        t = only_activation(graph, node)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::{Values, builtin_with, mlp};

    fn names(graph: &Graph, of: &[TensorId]) -> Vec<String> {
        of.iter().map(|t| graph.tensor(*t).name.clone()).collect()
    }

    /// A small network: `x` shifted, a stem, a residual block of two convolutions, a classifier, softmax.
    fn residual() -> Graph {
        let conv = Op::Conv {
            strides: [1, 1],
            pads: [1; 4],
            dilations: [1, 1],
            groups: 1,
        };
        let mut g = Graph::new("residual");
        let x = g.add_input("x", &[1, 3, 4, 4]).unwrap();
        let shift = g.add_constant("shift", &[1], vec![0.5]).unwrap();
        let w = |g: &mut Graph, name: &str, shape: &[usize]| {
            let n = shape.iter().product();
            g.add_constant(name, shape, vec![1.0; n]).unwrap()
        };
        let ws = w(&mut g, "stem.weight", &[4, 3, 3, 3]);
        let wa = w(&mut g, "a.weight", &[4, 4, 3, 3]);
        let wb = w(&mut g, "b.weight", &[4, 4, 3, 3]);
        let wf = w(&mut g, "fc.weight", &[5, 64]);
        let t = g.add_node("shift", Op::Add, &[x, shift], "shifted").unwrap();
        let t = g.add_node("stem", conv.clone(), &[t, ws], "stem").unwrap();
        let a = g.add_node("a", conv.clone(), &[t, wa], "a").unwrap();
        let b = g.add_node("b", conv, &[a, wb], "b").unwrap();
        let t = g.add_node("sum", Op::Add, &[b, t], "sum").unwrap();
        let t = g.add_reshape("flat", t, "flat", &[1, 64]).unwrap();
        let t = g.add_node("fc", Op::Linear, &[t, wf], "fc").unwrap();
        let t = g.add_node("softmax", Op::Softmax { axis: 1 }, &[t], "y").unwrap();
        g.add_output(t).unwrap();
        g
    }

    #[test]
    fn stem_and_head_stay_dense() {
        let g = residual();
        assert_eq!(names(&g, &dense_by_default(&g)), ["stem.weight", "fc.weight"]);
        assert_eq!(names(&g, &maskable(&g)), ["a.weight", "b.weight"]);
    }

    #[test]
    fn all_layers_of_a_perceptron_are_masked() {
        let g = mlp(&[8, 6, 4, 2], 1, 0).unwrap();
        assert_eq!(
            names(&g, &maskable(&g)),
            ["fc0.weight", "fc1.weight", "fc2.weight"]
        );
        assert_eq!(maskable(&g), weights(&g));
    }

    #[test]
    fn built_in_models_keep_their_stem_head_and_embeddings() {
        for (spec, dense) in [
            ("gpt:layers=2", &["lm_head.weight"][..]),
            ("gpt:layers=2,tied=true", &["wte.weight"]),
            ("resnet18", &["conv1.weight", "fc.weight"]),
            ("resnet50:stem=imagenet", &["conv1.weight", "fc.weight"]),
            ("mobilenetv2", &["features.0.0.weight", "classifier.1.weight"]),
            ("mobilenetv2-cifar", &["pre.0.weight", "conv2.weight"]),
            ("fabric", &["l1s1.input.weight", "readout.weight"]),
            ("fabric:readout=finest", &["l1s1.input.weight", "readout.weight"]),
        ] {
            let g = builtin_with(spec, 1, 0, Values::Abstract).unwrap().graph;
            let mut found = names(&g, &dense_by_default(&g));
            found.sort();
            let mut expected: Vec<String> = dense.iter().map(|s| s.to_string()).collect();
            expected.sort();
            assert_eq!(found, expected, "{spec}");
            assert_eq!(maskable(&g).len() + dense.len(), weights(&g).len(), "{spec}");
        }
        let g = builtin_with("gpt:layers=1", 1, 0, Values::Abstract)
            .unwrap()
            .graph;
        assert_eq!(
            names(&g, &maskable(&g)),
            [
                "h0.attn.c_attn.weight",
                "h0.attn.c_proj.weight",
                "h0.mlp.c_fc.weight",
                "h0.mlp.c_proj.weight"
            ]
        );
    }
}
