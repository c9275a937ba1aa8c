//! A graph made anew, node by node, from another one.

use crate::graph::{Graph, GraphError, Node, Op, TensorId};
use crate::random::Stream;
use crate::sparsity::draw;
use std::collections::BTreeMap;

/// A graph in the making.
pub(super) struct Rebuild<'a> {
    pub old: &'a Graph,
    pub new: Graph,
    /// Where old tensors are now.
    pub map: BTreeMap<TensorId, TensorId>,
    seed: u64,
}

type Made = Result<TensorId, GraphError>;

impl<'a> Rebuild<'a> {
    /// A graph with the inputs of the old one.
    pub(super) fn new(old: &'a Graph, seed: u64) -> Result<Self, GraphError> {
        let mut new = Graph::new(old.name.clone());
        let mut map = BTreeMap::new();
        for t in old.inputs() {
            let tensor = old.tensor(*t);
            map.insert(*t, new.add_input(tensor.name.as_str(), &tensor.shape)?);
        }
        Ok(Self { old, new, map, seed })
    }

    /// An old tensor in the new graph; a constant is copied when it is first asked for.
    pub(super) fn carry(&mut self, t: TensorId) -> Made {
        if let Some(there) = self.map.get(&t) {
            return Ok(*there);
        }
        let tensor = self.old.tensor(t);
        let there = match &tensor.data {
            Some(data) => self
                .new
                .add_constant(tensor.name.as_str(), &tensor.shape, data.to_vec())?,
            None => {
                let there = self
                    .new
                    .add_abstract_constant(tensor.name.as_str(), &tensor.shape)?;
                self.new
                    .set_nonzeros(there, tensor.nonzeros.unwrap_or(tensor.elements()))?;
                there
            }
        };
        self.map.insert(t, there);
        Ok(there)
    }

    /// A node as it was, reading what became of its inputs.
    pub(super) fn copy(&mut self, node: &Node) -> Result<(), GraphError> {
        let mut inputs = Vec::new();
        for t in &node.inputs {
            inputs.push(self.carry(*t)?);
        }
        let shape = self.old.tensor(node.output).shape.clone();
        let made = self.add(
            &node.name,
            &node.op,
            &inputs,
            self.old.tensor(node.output).name.clone(),
            &shape,
        )?;
        self.map.insert(node.output, made);
        Ok(())
    }

    /// A new node; `shape` matters to a reshape only.
    pub(super) fn add(
        &mut self,
        name: &str,
        op: &Op,
        inputs: &[TensorId],
        output: String,
        shape: &[usize],
    ) -> Made {
        let output = self.new.fresh_name(&output);
        match op {
            Op::Reshape => self.new.add_reshape(name, inputs[0], output, shape),
            op => self.new.add_node(name, op.clone(), inputs, output),
        }
    }

    /// A new weight with so many values other than 0, at random places; abstract if `like` is.
    pub(super) fn weight(
        &mut self,
        like: TensorId,
        name: &str,
        shape: &[usize],
        nonzeros: u64,
        deviation: f64,
    ) -> Made {
        let name = self.new.fresh_name(name);
        if self.old.tensor(like).data.is_none() {
            let t = self.new.add_abstract_constant(name, shape)?;
            self.new.set_nonzeros(t, nonzeros)?;
            return Ok(t);
        }
        let all: usize = shape.iter().product();
        let mut stream = Stream::new(self.seed, "transformed weights", &name);
        let mut data = vec![0.0; all];
        for i in draw(&mut stream, all, nonzeros as usize) {
            data[i] = (stream.normal() * deviation) as f32;
        }
        self.new.add_constant(name, shape, data)
    }

    /// A constant of one axis, longer than before: its values again and again; abstract if it is.
    pub(super) fn longer(&mut self, t: TensorId, shape: &[usize]) -> Made {
        let tensor = self.old.tensor(t);
        let all: usize = shape.iter().product();
        match &tensor.data {
            Some(data) => {
                let data = data.iter().copied().cycle().take(all).collect();
                self.new.add_constant(tensor.name.as_str(), shape, data)
            }
            None => self.new.add_abstract_constant(tensor.name.as_str(), shape),
        }
    }

    /// The root mean square of a constant's values; 1 if they are not held.
    pub(super) fn root_mean_square(&self, t: TensorId) -> f64 {
        match &self.old.tensor(t).data {
            Some(data) => {
                let sum: f64 = data.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
                (sum / data.len().max(1) as f64).sqrt()
            }
            None => 1.0,
        }
    }

    /// The new graph, with the old one's outputs.
    pub(super) fn finish(mut self) -> Result<Graph, GraphError> {
        for t in self.old.outputs() {
            let there = self.carry(*t)?;
            self.new.add_output(there)?;
        }
        self.new.verify()?;
        Ok(self.new)
    }
}
