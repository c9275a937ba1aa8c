//! Neural networks for meshloom: the graph the compiler reads, importing it from ONNX files or building it
//! from a description, a plain reference evaluator, sparsifying, and counting the work.

pub mod builders;
pub mod evaluate;
pub mod flops;
pub mod graph;
pub mod onnx;
mod random;
pub mod shapes;
pub mod sparsity;

pub use graph::{Graph, GraphError, Node, NodeId, Op, Tensor, TensorId};

use std::collections::BTreeMap;

/// Seeded standard normal values for every input of a network, by the input's name: `items` items one after
/// the other, each of the input's shape. Item `i` does not depend on how many items are asked for.
#[must_use]
pub fn seeded_inputs(graph: &Graph, seed: u64, items: usize) -> BTreeMap<String, Vec<f32>> {
    let make = |id: &TensorId| {
        let tensor = graph.tensor(*id);
        let each: usize = tensor.shape.iter().product();
        let mut normal = random::Normal::new(seed, &format!("input {}", tensor.name));
        (
            tensor.name.clone(),
            (0..items.saturating_mul(each))
                .map(|_| normal.next() as f32)
                .collect(),
        )
    };
    graph.inputs().iter().map(make).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_items_major() {
        let graph = builders::mlp(&[5, 2], 4, 0);
        let (few, many) = (seeded_inputs(&graph, 3, 2), seeded_inputs(&graph, 3, 1000));
        // Two items of the whole shape [4, 5].
        assert_eq!(few["x"].len(), 40);
        assert_eq!(few["x"][..], many["x"][..40]);
        let mean = many["x"].iter().sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.06, "{mean}");
    }
}
