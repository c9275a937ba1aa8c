//! How many FLOPs a model's training and inference are, one sequence (or image) at a time, from its graph alone and by
//! several conventions. Nothing is run, and no size is known but those in the graph.
//!
//! | convention | what counts |
//! |---|---|
//! | [`Convention::Engine`] | what this project's engines execute: `engine` |
//! | [`Convention::Spdf`] | the SPDF paper's: 6 a token and nonzero weight, attention in full: `spdf` |
//! | [`Convention::SparseIft`] | the Sparse-IFT paper's: what its published counter counts: `sparse_ift` |

mod engine;
mod sparse_ift;
mod spdf;

pub use sparse_ift::Functional;

use crate::graph::{Graph, NodeId, Op, TensorId};
use std::collections::BTreeSet;
use std::fmt;

/// A way to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// 2 a multiply-add of a nonzero weight at a position where its tap hits an element, and of two activations where a
    /// token sees the other; 1 for any other elementary operation.
    Engine,
    /// 2 a multiply-add of products only, padding and masked pairs of tokens included; training is three times inference.
    Spdf,
    /// Multiplications and additions of PyTorch modules as the authors' counter has them; training is three times inference.
    SparseIft,
}

impl Convention {
    /// All of them.
    pub const ALL: [Convention; 3] = [Convention::Engine, Convention::Spdf, Convention::SparseIft];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Convention::Engine => "engine",
            Convention::Spdf => "spdf",
            Convention::SparseIft => "sparse-ift",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// FLOPs of a node or a graph, for all samples of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flops {
    /// Of one forward pass.
    pub inference: u64,
    /// Of one forward and one backward pass. The optimizer's step, once a batch, is in no convention.
    pub training: u64,
}

impl Flops {
    /// A forward pass, and two more for the gradients of inputs and of weights.
    fn three(inference: u64) -> Flops {
        Flops {
            inference,
            training: inference.saturating_mul(3),
        }
    }
}

/// Counts every node, in order. `functional` matters to [`Convention::SparseIft`] only.
pub fn per_node(graph: &Graph, convention: Convention, functional: Functional) -> Vec<(NodeId, Flops)> {
    let learnt = learnt(graph);
    let count = |id: NodeId| match convention {
        Convention::Engine => engine::flops(graph, id, &learnt),
        Convention::Spdf => Flops::three(spdf::forward(graph, id)),
        Convention::SparseIft => Flops::three(sparse_ift::forward(graph, id, functional)),
    };
    graph
        .nodes_in_order()
        .into_iter()
        .map(|id| (id, count(id)))
        .collect()
}

/// Counts a graph.
pub fn total(graph: &Graph, convention: Convention, functional: Functional) -> Flops {
    per_node(graph, convention, functional)
        .into_iter()
        .fold(Flops::default(), |sum, (_, f)| Flops {
            inference: sum.inference.saturating_add(f.inference),
            training: sum.training.saturating_add(f.training),
        })
}

/// The graph with all values of its constants taken to be other than 0, and not held: what it would be without zeros.
/// Constants that are abstract already keep their count (a banded fabric's zeros are how it is built).
pub fn dense(graph: &Graph) -> Graph {
    let mut dense = graph.clone();
    for tensor in &mut dense.tensors {
        if tensor.data.take().is_some() {
            tensor.nonzeros = Some(tensor.elements());
        }
    }
    dense
}

/// Trainable constants: all but the means and variances of batch norms. Their values, and how many are not 0.
pub fn parameters(graph: &Graph) -> (u64, u64) {
    let statistics: BTreeSet<TensorId> = graph
        .nodes_in_order()
        .into_iter()
        .map(|id| graph.node(id))
        .filter(|n| matches!(n.op, Op::BatchNorm { .. }))
        .flat_map(|n| n.inputs[3..].to_vec())
        .collect();
    let trainable = graph.constants().into_iter().filter(|t| !statistics.contains(t));
    trainable.fold((0, 0), |(all, nonzero), t| {
        let tensor = graph.tensor(t);
        (
            all + tensor.elements(),
            nonzero + tensor.nonzero_count().unwrap_or(0),
        )
    })
}

/// The activations that depend on a constant: those through which a gradient goes.
fn learnt(graph: &Graph) -> BTreeSet<TensorId> {
    let mut learnt = BTreeSet::new();
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        let depends = |t: &TensorId| graph.tensor(*t).is_constant() || learnt.contains(t);
        if node.inputs.iter().any(depends) {
            learnt.insert(node.output);
        }
    }
    learnt
}

/// `all` times the share of nonzero values of a weight, rounded down; all of it if the tensor is no constant.
fn nonzero_share(graph: &Graph, weight: TensorId, all: u64) -> u64 {
    let tensor = graph.tensor(weight);
    match tensor.nonzero_count() {
        Some(nonzero) => {
            (u128::from(all) * u128::from(nonzero) / u128::from(tensor.elements().max(1))) as u64
        }
        None => all,
    }
}

/// The weight of a node that is a product with weights: a convolution, a linear layer, a product with one constant.
fn weight(graph: &Graph, id: NodeId) -> Option<TensorId> {
    let node = graph.node(id);
    match node.op {
        Op::Conv { .. } | Op::Linear => Some(node.inputs[1]),
        Op::MatMul => node
            .inputs
            .iter()
            .copied()
            .find(|t| graph.tensor(*t).is_constant()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::{Values, builtin_with};
    use crate::sparsity::{Mask, Plan};

    fn graph(spec: &str, sparsity: f64) -> (Graph, Functional) {
        let built = builtin_with(spec, 1, 0, Values::Abstract).unwrap();
        let plan = Plan::default_weights(&built.graph, sparsity, Mask::Uniform).unwrap();
        (
            plan.apply(&built.graph, 0).unwrap(),
            Functional::of(&built.resolved),
        )
    }

    fn training(spec: &str, sparsity: f64, convention: Convention) -> u64 {
        let (graph, functional) = graph(spec, sparsity);
        total(&graph, convention, functional).training
    }

    #[test]
    fn spdf_from_the_graph_is_the_closed_form() {
        for (layers, d, seq, vocab) in [
            (12u64, 768u64, 2048u64, 50257u64),
            (24, 2048, 2048, 50257),
            (3, 96, 50, 1001),
        ] {
            let spec = format!("gpt:layers={layers},width={d},heads=4,seq={seq},vocab={vocab}");
            for kept in [4u64, 2, 1] {
                // 12 layers d^2 divides by 4, so that the kept weights are whole
                let closed = 6 * seq * 12 * layers * d * d * kept / 4
                    + 12 * seq * seq * d * layers
                    + 6 * seq * d * vocab;
                assert_eq!(training(&spec, 1.0 - kept as f64 / 4.0, Convention::Spdf), closed);
            }
        }
    }

    #[test]
    fn spdf_masks_what_the_paper_masks() {
        let (g, _) = graph("gpt2-small", 0.75);
        let sparse: Vec<&str> = g
            .constants()
            .into_iter()
            .map(|t| g.tensor(t))
            .filter(|t| t.nonzero_count() < Some(t.elements()))
            .map(|t| t.name.as_str())
            .collect();
        assert_eq!(sparse.len(), 12 * 4);
        for part in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
            let of_part = sparse.iter().filter(|n| n.ends_with(&format!("{part}.weight")));
            assert_eq!(of_part.count(), 12, "{part}");
        }
    }

    #[test]
    fn the_dense_budgets_of_sparse_ift_are_met_exactly() {
        for (spec, budget) in [
            ("resnet18:stem=cifar,width=64,classes=100", 1_115_226_800),
            ("resnet18:stem=imagenet", 3_647_128_359),
            ("resnet34:stem=imagenet", 7_355_270_501),
            ("mobilenetv2-cifar", 138_538_103),
        ] {
            let (graph, functional) = graph(spec, 0.0);
            assert_eq!(
                total(&graph, Convention::SparseIft, functional).inference,
                budget,
                "{spec}"
            );
        }
    }

    #[test]
    fn the_engines_count_by_hand() {
        // fc0: 4 weights a row, 3 rows; nothing is trained before it
        let (g, f) = graph("mlp:layers=4-3-2", 0.0);
        let all = total(&g, Convention::Engine, f);
        assert_eq!(all.inference, 2 * (12 + 6) + 3);
        assert_eq!(all.training, all.inference + 2 * 12 + 2 * 2 * 6 + 3);
        let (g, f) = graph("mlp:layers=4-3-2", 0.5);
        let half = total(&g, Convention::Engine, f);
        assert_eq!(half.training, 3 * 2 * (6 + 3) - 2 * 6 + 2 * 3);
    }

    #[test]
    fn statistics_are_no_parameters() {
        let (g, _) = graph("resnet18:stem=imagenet", 0.0);
        assert_eq!(parameters(&g), (11_689_512, 11_689_512));
        assert_eq!(parameters(&g).0, g.trainable_parameters());
        let (g, _) = graph("gpt2-small", 0.75);
        // 75 % of 12 layers of 12 d^2 weights
        assert_eq!(parameters(&g), (124_439_808, 124_439_808 - 9 * 12 * 768 * 768));
    }
}
