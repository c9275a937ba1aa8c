//! Changes to a graph: what a rewrite needs (other constants, nodes, inputs), removal of what is not needed, another batch.

use crate::graph::{Graph, GraphError, Node, NodeId, Op, TensorId, check_constant, index};
use crate::shapes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Graph {
    /// Gives a node another name.
    ///
    /// # Errors
    /// If the node is not of this graph.
    pub fn rename_node(&mut self, id: NodeId, name: impl Into<String>) -> Result<(), GraphError> {
        let node = self.net.node_weight_mut(index(id)).ok_or(GraphError::Missing {
            what: "node",
            id: id.0,
        })?;
        node.name = name.into();
        Ok(())
    }

    /// A name that no tensor has: `name`, or with a number after it.
    pub fn fresh_name(&self, name: &str) -> String {
        let numbered = (2u64..).map(|i| format!("{name}.{i}"));
        let mut all = std::iter::once(name.to_string()).chain(numbered);
        all.find(|n| !self.names.contains_key(n)).unwrap_or_default()
    }

    /// As [`Graph::replace_node`], without looking for cycles: for inputs that the node depends on already.
    pub(crate) fn rewire(&mut self, id: NodeId, op: Op, inputs: &[TensorId]) {
        let node = &mut self.net[index(id)];
        node.op = op;
        node.inputs = inputs.to_vec();
        self.connect(index(id));
    }

    /// Replaces the values of a constant.
    ///
    /// # Errors
    /// If the tensor is no constant, the length is not that of its shape, or a value is not finite.
    pub fn set_constant(&mut self, t: TensorId, data: Vec<f32>) -> Result<(), GraphError> {
        self.known(&[t])?;
        let tensor = &mut self.tensors[t.0 as usize];
        if !tensor.is_constant() {
            return Err(GraphError::NotConstant(tensor.name.clone()));
        }
        check_constant(&tensor.name, &tensor.shape, &data)?;
        tensor.data = Some(Arc::new(data));
        tensor.nonzeros = None;
        Ok(())
    }

    /// Says how many values of an abstract constant are not 0.
    ///
    /// # Errors
    /// If the tensor is no abstract constant, or has fewer elements.
    pub fn set_nonzeros(&mut self, t: TensorId, nonzeros: u64) -> Result<(), GraphError> {
        self.known(&[t])?;
        let tensor = &mut self.tensors[t.0 as usize];
        if tensor.nonzeros.is_none() {
            return Err(GraphError::NotConstant(tensor.name.clone()));
        }
        if nonzeros > tensor.elements() {
            return Err(GraphError::Malformed(format!(
                "constant `{}` has {} values: {nonzeros} of them cannot be other than 0",
                tensor.name,
                tensor.elements()
            )));
        }
        tensor.nonzeros = Some(nonzeros);
        Ok(())
    }

    /// Gives a tensor another name.
    ///
    /// # Errors
    /// If another tensor has it.
    pub fn rename(&mut self, t: TensorId, name: impl Into<String>) -> Result<(), GraphError> {
        self.known(&[t])?;
        let name = name.into();
        match self.names.get(&name) {
            Some(other) if *other == t => return Ok(()),
            Some(_) => return Err(GraphError::Duplicate(name)),
            None => {}
        }
        let old = std::mem::replace(&mut self.tensors[t.0 as usize].name, name.clone());
        self.names.remove(&old);
        self.names.insert(name, t);
        Ok(())
    }

    /// Replaces a node's operator and inputs; its output keeps its shape.
    ///
    /// # Errors
    /// If the shapes do not fit, the output's shape would change, or the node would read what comes of it.
    pub fn replace_node(&mut self, id: NodeId, op: Op, inputs: &[TensorId]) -> Result<(), GraphError> {
        self.known(inputs)?;
        let Some(node) = self.net.node_weight(index(id)) else {
            return Err(GraphError::Missing {
                what: "node",
                id: id.0,
            });
        };
        if inputs
            .iter()
            .any(|t| self.producer(*t).is_some_and(|p| self.reaches(id, p)))
        {
            return Err(GraphError::Cycle(node.name.clone()));
        }
        self.replace_upstream(id, op, inputs)
    }

    /// As [`Graph::replace_node`], without looking for cycles: for inputs that do not come of the node.
    pub(crate) fn replace_upstream(
        &mut self,
        id: NodeId,
        op: Op,
        inputs: &[TensorId],
    ) -> Result<(), GraphError> {
        let node = self.node(id);
        let made = self.tensor(node.output);
        let of: Vec<&[usize]> = inputs.iter().map(|t| self.tensor(*t).shape.as_slice()).collect();
        let target = Some(made.shape.as_slice());
        let shape = shapes::infer(&op, &of, target).map_err(|error| GraphError::Shape {
            node: node.name.clone(),
            error,
        })?;
        if shape != made.shape {
            return Err(GraphError::ShapeChange {
                tensor: made.name.clone(),
                old: made.shape.clone(),
                new: shape,
            });
        }
        self.rewire(id, op, inputs);
        Ok(())
    }

    /// Makes every reader of `old` read `new` instead, and the graph give `new` where it gave `old`.
    ///
    /// # Errors
    /// If the shapes differ, a reader would read what comes of it, or both are graph outputs.
    pub fn replace_tensor(&mut self, old: TensorId, new: TensorId) -> Result<(), GraphError> {
        self.known(&[old, new])?;
        if old != new
            && let Some(made) = self.producer(new)
            && let Some(reader) = self.consumers(old).into_iter().find(|r| self.reaches(*r, made))
        {
            return Err(GraphError::Cycle(self.node(reader).name.clone()));
        }
        self.redirect(old, new)
    }

    /// As [`Graph::replace_tensor`], without looking for cycles: for a `new` that does not come of `old`.
    pub(crate) fn redirect(&mut self, old: TensorId, new: TensorId) -> Result<(), GraphError> {
        let (a, b) = (self.tensor(old), self.tensor(new));
        if a.shape != b.shape {
            return Err(GraphError::ShapeChange {
                tensor: a.name.clone(),
                old: a.shape.clone(),
                new: b.shape.clone(),
            });
        }
        if old == new {
            return Ok(());
        }
        if self.outputs.contains(&old) && self.outputs.contains(&new) {
            return Err(GraphError::Malformed(format!(
                "`{}` and `{}` are both graph outputs",
                a.name, b.name
            )));
        }
        for r in self.consumers(old) {
            for t in &mut self.net[index(r)].inputs {
                if *t == old {
                    *t = new;
                }
            }
            self.connect(index(r));
        }
        for t in &mut self.outputs {
            if *t == old {
                *t = new;
            }
        }
        Ok(())
    }

    /// Removes a node whose output nobody reads. The tensor stays in the list, without a producer, until
    /// [`Graph::compact`].
    ///
    /// # Errors
    /// If the output is read or is a graph output.
    pub fn remove_node(&mut self, id: NodeId) -> Result<Node, GraphError> {
        let Some(node) = self.net.node_weight(index(id)) else {
            return Err(GraphError::Missing {
                what: "node",
                id: id.0,
            });
        };
        if self.outputs.contains(&node.output) || !self.consumers(node.output).is_empty() {
            return Err(GraphError::InUse(node.name.clone()));
        }
        self.producers[node.output.0 as usize] = None;
        self.net.remove_node(index(id)).ok_or(GraphError::Missing {
            what: "node",
            id: id.0,
        })
    }

    /// Whether `to` reads, directly or through others, what `from` makes (or is `from`).
    fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        let (mut seen, mut todo) = (BTreeSet::from([from]), vec![from]);
        while let Some(n) = todo.pop() {
            if n == to {
                return true;
            }
            for next in self.net.neighbors(index(n)) {
                let next = NodeId(next.index() as u32);
                if seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        false
    }

    /// The graph without nodes, constants and leftover tensors that no output needs, with new ids. Inputs stay.
    pub fn compact(&self) -> Graph {
        let mut needed: BTreeSet<TensorId> = self.outputs.iter().copied().collect();
        let order = self.nodes_in_order();
        for id in order.iter().rev() {
            let node = self.node(*id);
            if needed.contains(&node.output) {
                needed.extend(&node.inputs);
            }
        }
        let mut graph = Graph::new(self.name.clone());
        let mut map: BTreeMap<TensorId, TensorId> = BTreeMap::new();
        let mut keep = |graph: &mut Graph, t: TensorId, producer: Option<NodeId>| {
            let id = TensorId(graph.tensors.len() as u32);
            graph.names.insert(self.tensor(t).name.clone(), id);
            graph.tensors.push(self.tensor(t).clone());
            graph.producers.push(producer);
            map.insert(t, id);
        };
        let inputs: BTreeSet<TensorId> = self.inputs.iter().copied().collect();
        for (i, _) in self.tensors.iter().enumerate() {
            let t = TensorId(i as u32);
            if inputs.contains(&t) || (needed.contains(&t) && self.producer(t).is_none()) {
                keep(&mut graph, t, None);
            }
        }
        let kept: Vec<&Node> = order
            .iter()
            .map(|id| self.node(*id))
            .filter(|n| needed.contains(&n.output))
            .collect();
        for (i, node) in kept.iter().enumerate() {
            keep(&mut graph, node.output, Some(NodeId(i as u32)));
        }
        for node in kept {
            let inputs = node.inputs.iter().map(|t| map[t]).collect();
            let n = graph.net.add_node(Node {
                inputs,
                output: map[&node.output],
                ..node.clone()
            });
            graph.connect(n);
        }
        graph.inputs = self.inputs.iter().map(|t| map[t]).collect();
        graph.outputs = self.outputs.iter().map(|t| map[t]).collect();
        graph
    }

    /// The same graph for another batch: the first size of every graph input becomes `batch`, and all shapes are inferred
    /// anew. Ids and names stay. The first size of a reshape's target grows as its input does.
    ///
    /// # Errors
    /// If `batch` is 0, an input has no axes, a reshape or transpose mixes the batch into other axes, or the shapes no
    /// longer fit.
    pub fn with_batch(&self, batch: usize) -> Result<Graph, GraphError> {
        let fail = |reason: String| Err(GraphError::Batch { batch, reason });
        let mut graph = self.clone();
        // tensors whose first axis is the batch
        let mut leading: BTreeSet<TensorId> = BTreeSet::new();
        for &t in &self.inputs {
            let tensor = &mut graph.tensors[t.0 as usize];
            let Some(first) = tensor.shape.first_mut() else {
                return fail(format!("input `{}` is a scalar", tensor.name));
            };
            *first = batch;
            shapes::elements(&tensor.shape).map_err(|error| GraphError::Tensor {
                tensor: tensor.name.clone(),
                error,
            })?;
            leading.insert(t);
        }
        for id in graph.nodes_in_order() {
            let node = &graph.net[index(id)];
            let old = &self.tensor(node.output).shape;
            let batched = node.inputs.iter().any(|t| leading.contains(t));
            let mut target = old.clone();
            if matches!(node.op, Op::Reshape) && batched {
                let input = node.inputs[0];
                let (from, to) = (self.tensor(input).shape[0], graph.tensor(input).shape[0]);
                // from > 0, and both are below 2^31
                match target.first_mut() {
                    Some(first) if *first * to % from == 0 => *first = *first * to / from,
                    _ if from == to => {}
                    _ => return fail(format!("node `{}` reshapes the batch away", node.name)),
                }
            }
            if let Op::ReduceMean { axes, .. } = &node.op
                && batched
                && axes.contains(&0)
                && batch != self.tensor(node.inputs[0]).shape[0]
            {
                return fail(format!("node `{}` takes the mean over the batch", node.name));
            }
            if let Op::Transpose { perm } = &node.op
                && batched
                && perm.first() != Some(&0)
                && batch != self.tensor(node.inputs[0]).shape[0]
            {
                return fail(format!("node `{}` moves the batch to another axis", node.name));
            }
            let of: Vec<&[usize]> = node
                .inputs
                .iter()
                .map(|t| graph.tensor(*t).shape.as_slice())
                .collect();
            let shape = shapes::infer(&node.op, &of, Some(&target)).map_err(|error| GraphError::Shape {
                node: node.name.clone(),
                error,
            })?;
            // the output grows along its first axis as each input does: a constant may not be broadcast over the batch
            let grows = |t: &&TensorId| {
                let (from, to) = (self.tensor(**t).shape.first(), graph.tensor(**t).shape.first());
                let product = |a: Option<&usize>, b: Option<&usize>| Some(*a? as u64 * *b? as u64);
                shape.get(1..) == old.get(1..) && product(shape.first(), from) == product(old.first(), to)
            };
            if !node
                .inputs
                .iter()
                .filter(|t| leading.contains(t))
                .all(|t| grows(&t))
            {
                return fail(format!(
                    "node `{}` joins the batch with something of a fixed size (a constant of another batch?)",
                    node.name
                ));
            }
            let output = node.output;
            if batched {
                leading.insert(output);
            }
            graph.tensors[output.0 as usize].shape = shape;
        }
        Ok(graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::evaluate;

    /// x -> a -> b -> y, all ReLU, with b + x at the end.
    fn chain() -> Graph {
        let mut g = Graph::new("chain");
        let x = g.add_input("x", &[1, 3]).unwrap();
        let a = g.add_node("to_a", Op::Relu, &[x], "a").unwrap();
        let b = g.add_node("to_b", Op::Relu, &[a], "b").unwrap();
        let y = g.add_node("to_y", Op::Add, &[b, x], "y").unwrap();
        g.add_output(y).unwrap();
        g.verify().unwrap();
        g
    }

    fn t(g: &Graph, name: &str) -> TensorId {
        g.find(name).unwrap()
    }

    fn run(g: &Graph) -> Vec<f64> {
        let values = evaluate(g, &BTreeMap::from([("x".to_string(), vec![-1.0, 2.0, 3.0])])).unwrap();
        values[g.outputs()[0].0 as usize].clone().unwrap()
    }

    #[test]
    fn a_doubled_relu_goes() {
        let mut g = chain();
        let before = run(&g);
        let (a, b) = (t(&g, "a"), t(&g, "b"));
        let second = g.producer(b).unwrap();
        assert_eq!(g.remove_node(second), Err(GraphError::InUse("to_b".into())));
        g.replace_tensor(b, a).unwrap();
        assert_eq!(g.remove_node(second).unwrap().name, "to_b");
        g.verify().unwrap();
        assert_eq!(
            (run(&g), g.consumers(a)),
            (before.clone(), vec![g.producer(t(&g, "y")).unwrap()])
        );
        let small = g.compact();
        small.verify().unwrap();
        assert_eq!((small.tensors().len(), run(&small)), (3, before));
    }

    #[test]
    fn a_node_never_reads_its_own_result() {
        let mut g = chain();
        let (a, b, y) = (t(&g, "a"), t(&g, "b"), t(&g, "y"));
        let first = g.producer(a).unwrap();
        assert_eq!(
            g.replace_node(first, Op::Relu, &[b]),
            Err(GraphError::Cycle("to_a".into()))
        );
        assert_eq!(g.replace_tensor(a, y), Err(GraphError::Cycle("to_b".into())));
        assert_eq!(run(&g), run(&chain()));
    }

    #[test]
    fn shapes_and_names_are_kept() {
        let mut g = chain();
        let c = g.add_constant("c", &[2], vec![1.0, 0.0]).unwrap();
        let (a, first) = (t(&g, "a"), g.producer(t(&g, "a")).unwrap());
        assert!(matches!(
            g.replace_node(first, Op::Relu, &[c]),
            Err(GraphError::ShapeChange { .. })
        ));
        assert!(matches!(
            g.replace_tensor(a, c),
            Err(GraphError::ShapeChange { .. })
        ));
        assert!(matches!(
            g.set_constant(c, vec![1.0]),
            Err(GraphError::Length {
                expected: 2,
                got: 1,
                ..
            })
        ));
        assert!(matches!(
            g.set_constant(c, vec![1.0, f32::NAN]),
            Err(GraphError::NotFinite { index: 1, .. })
        ));
        assert_eq!(
            g.set_constant(a, vec![]),
            Err(GraphError::NotConstant("a".into()))
        );
        assert_eq!(g.rename(a, "b"), Err(GraphError::Duplicate("b".into())));
        g.rename(a, "first").unwrap();
        assert_eq!(
            (g.find("a"), g.find("first"), g.fresh_name("b")),
            (None, Some(a), "b.2".into())
        );
        assert_eq!(
            g.add_constant("x", &[1], vec![0.0]),
            Err(GraphError::Duplicate("x".into()))
        );
        assert!(matches!(
            g.add_node("n", Op::Relu, &[TensorId(99)], "n"),
            Err(GraphError::Missing { .. })
        ));
    }

    #[test]
    fn the_batch_goes_through_reshapes() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[2, 3, 4]).unwrap();
        let rows = g.add_reshape("rows", x, "r", &[6, 4]).unwrap();
        let back = g.add_reshape("back", rows, "y", &[2, 12]).unwrap();
        g.add_output(back).unwrap();
        let h = g.with_batch(5).unwrap();
        assert_eq!(
            (h.tensor(rows).shape.as_slice(), h.tensor(back).shape.as_slice()),
            (&[15, 4][..], &[5, 12][..])
        );
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[2, 6]).unwrap();
        let y = g.add_reshape("halves", x, "y", &[1, 12]).unwrap();
        g.add_output(y).unwrap();
        assert_eq!(g.with_batch(4).unwrap().tensor(y).shape, [2, 12]);
        assert!(matches!(g.with_batch(3), Err(GraphError::Batch { .. })));
    }
}
