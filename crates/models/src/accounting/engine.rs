//! This project's own count: what its engines execute.
//!
//! Forward: 2 (`mac_theoretical` + `mac_act`) + `other` of [`crate::flops`]. Backward, as the graphs of gradients have it:
//! - a product with weights: as many multiply-adds for the gradient of its weights, at nonzero weights only, and as many
//!   for that of its input, unless nothing before it is trained;
//! - a product of two activations: as many for each of the two gradients;
//! - any other operation: as many as forward.

use super::Flops;
use crate::flops::node_counts;
use crate::graph::{Graph, NodeId, TensorId};
use std::collections::BTreeSet;

pub(super) fn flops(graph: &Graph, id: NodeId, learnt: &BTreeSet<TensorId>) -> Flops {
    let counts = node_counts(graph, id);
    let node = graph.node(id);
    let through = node.inputs.iter().any(|t| learnt.contains(t));
    let weights = 2 * counts.mac_theoretical;
    let activations = 2 * counts.mac_act;
    let inference = weights + activations + counts.other;
    let inputs = if through { weights } else { 0 };
    let rest = if through {
        2 * activations + counts.other
    } else {
        0
    };
    Flops {
        inference,
        training: inference + weights + inputs + rest,
    }
}
