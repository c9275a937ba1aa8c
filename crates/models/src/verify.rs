//! What makes a graph well-formed, one rule after the other.

use crate::graph::{Graph, GraphError, TensorId, check_constant};
use crate::shapes;
use std::collections::BTreeSet;

impl Graph {
    /// Checks every rule: names are unique; sizes are sane; constants are finite and as long as their shapes; every tensor
    /// that is read has a value (an input, a constant or made by one node before); shapes are those that the operators
    /// infer; there is an output.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(&self) -> Result<(), GraphError> {
        let bad = |message: String| Err(GraphError::Malformed(message));
        let inputs: BTreeSet<TensorId> = self.inputs.iter().copied().collect();
        for (i, tensor) in self.tensors.iter().enumerate() {
            let id = TensorId(i as u32);
            if self.find(&tensor.name) != Some(id) {
                return Err(GraphError::Duplicate(tensor.name.clone()));
            }
            shapes::elements(&tensor.shape).map_err(|error| GraphError::Tensor {
                tensor: tensor.name.clone(),
                error,
            })?;
            if let Some(data) = &tensor.data {
                check_constant(&tensor.name, &tensor.shape, data)?;
            }
            if tensor.data.is_some() && tensor.nonzeros.is_some() {
                return bad(format!("constant `{}` is abstract and has values", tensor.name));
            }
            if tensor.nonzeros.is_some_and(|n| n > tensor.elements()) {
                return bad(format!(
                    "constant `{}` has more nonzero values than elements",
                    tensor.name
                ));
            }
            let sources = [
                inputs.contains(&id),
                tensor.is_constant(),
                self.producer(id).is_some(),
            ];
            if sources.iter().filter(|s| **s).count() > 1 {
                return bad(format!("tensor `{}` has more than one source", tensor.name));
            }
        }
        let order = self.nodes_in_order();
        if order.len() != self.net.node_count() {
            return bad("the graph has a cycle".into());
        }
        let mut ready: Vec<bool> = self.tensors.iter().map(|t| t.is_constant()).collect();
        for t in &self.inputs {
            ready[t.0 as usize] = true;
        }
        for id in order {
            let node = self.node(id);
            for t in &node.inputs {
                if !ready[t.0 as usize] {
                    return bad(format!(
                        "node `{}` reads `{}`, which has no value",
                        node.name,
                        self.tensor(*t).name
                    ));
                }
            }
            if self.producer(node.output) != Some(id) {
                return bad(format!(
                    "node `{}` is not what makes `{}`",
                    node.name,
                    self.tensor(node.output).name
                ));
            }
            ready[node.output.0 as usize] = true;
            let made = self.tensor(node.output);
            let of: Vec<&[usize]> = node
                .inputs
                .iter()
                .map(|t| self.tensor(*t).shape.as_slice())
                .collect();
            let shape =
                shapes::infer(&node.op, &of, Some(&made.shape)).map_err(|error| GraphError::Shape {
                    node: node.name.clone(),
                    error,
                })?;
            if shape != made.shape {
                let (tensor, old) = (made.name.clone(), made.shape.clone());
                return Err(GraphError::ShapeChange {
                    tensor,
                    old,
                    new: shape,
                });
            }
        }
        if self.outputs.is_empty() {
            return bad("the graph has no output".into());
        }
        match self.outputs.iter().find(|t| !ready[t.0 as usize]) {
            Some(t) => bad(format!("the output `{}` has no value", self.tensor(*t).name)),
            None => Ok(()),
        }
    }
}
