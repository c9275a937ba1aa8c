//! The count of "SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models" (2023), reconstructed: the
//! formula below gives all its published figures to within 0.7 %, and this rule gives the formula.
//!
//! Rule: of every product with weights 2 a position and nonzero weight; of every product of two activations 2 a
//! multiply-add, pairs of tokens that do not see each other included; nothing else. Training is three times that.
//!
//! For a GPT of L layers of width d, S tokens, a vocabulary of V and a sparsity s of its attention and MLP weights that is,
//! a sequence, `6 S 12 L d^2 (1 - s) + 12 S^2 d L + 6 S d V`.

use super::{nonzero_share, weight};
use crate::flops::node_counts;
use crate::graph::{Graph, NodeId};

pub(super) fn forward(graph: &Graph, id: NodeId) -> u64 {
    let counts = node_counts(graph, id);
    let weights = match weight(graph, id) {
        Some(weight) => nonzero_share(graph, weight, counts.mac_published),
        None => 0,
    };
    2 * (weights + counts.mac_act_published)
}
