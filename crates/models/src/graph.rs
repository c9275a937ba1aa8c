//! The network itself: operators as the nodes of a directed graph, tensors as the labels of its edges.
//!
//! A [`Graph`] can only be built forwards (each operator takes tensors that already exist), so it is free of
//! cycles by construction and its nodes, in the order they were added, are in topological order. Constant data
//! is shared: cloning a graph or changing its batch size copies no weights.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};

use crate::shapes::{self, ShapeError};

/// Names a tensor of one graph; tensors are numbered from zero in the order they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// Names an operator of one graph; operators are numbered from zero in the order they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl TensorId {
    /// Position in [`Graph::tensors`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// Position among the operators.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value that flows between operators, or a constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name, unique in the graph.
    pub name: String,
    /// Extents in elements, row-major; activations have the batch first.
    pub shape: Vec<usize>,
    /// The values, row-major; constants only.
    pub data: Option<Arc<Vec<f32>>>,
}

/// One operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name, unique among the operators.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The tensors it reads, in the order [`Op`] gives.
    pub inputs: Vec<TensorId>,
    /// The tensor it makes.
    pub output: TensorId,
}

/// What an operator computes. Kernels, strides and dilations are `[height, width]` in elements; pads are
/// `[top, left, bottom, right]` in elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Two-dimensional convolution: inputs `x[N,C,H,W]`, `w[M,C/groups,kh,kw]` and optionally `b[M]`.
    Conv {
        /// Step between windows.
        strides: [usize; 2],
        /// Zeros around the input.
        pads: [usize; 4],
        /// Distance between taps.
        dilations: [usize; 2],
        /// Number of channel groups.
        groups: usize,
    },
    /// Fully connected layer `x * w^T + b`: inputs `x[N,K]`, `w[M,K]` and optionally `b[M]`.
    Linear,
    /// Elementwise sum of two inputs, broadcasting.
    Add,
    /// Elementwise product of two inputs, broadcasting.
    Mul,
    /// `max(x, 0)`.
    Relu,
    /// Largest element of each window of `x[N,C,H,W]`; padding never wins.
    MaxPool {
        /// Window.
        kernel: [usize; 2],
        /// Step between windows.
        strides: [usize; 2],
        /// Padding.
        pads: [usize; 4],
    },
    /// Mean of each window of `x[N,C,H,W]`.
    AvgPool {
        /// Window.
        kernel: [usize; 2],
        /// Step between windows.
        strides: [usize; 2],
        /// Padding.
        pads: [usize; 4],
        /// Whether the divisor counts padding.
        count_include_pad: bool,
    },
    /// Softmax along one axis.
    Softmax {
        /// The axis, counted from the front.
        axis: usize,
    },
    /// The same elements in another shape: that of the output tensor.
    Reshape,
    /// Reordered dimensions: dimension `i` of the output is dimension `perm[i]` of the input.
    Transpose {
        /// The order.
        perm: Vec<usize>,
    },
    /// `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel: inputs `x[N,C,..]` and, all `[C]`,
    /// scale, bias, mean and variance.
    BatchNorm {
        /// Added to the variance.
        epsilon: f32,
    },
}

impl Op {
    /// Name of the operator, as in [`Graph::to_text`].
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "Conv",
            Op::Linear => "Linear",
            Op::Add => "Add",
            Op::Mul => "Mul",
            Op::Relu => "Relu",
            Op::MaxPool { .. } => "MaxPool",
            Op::AvgPool { .. } => "AvgPool",
            Op::Softmax { .. } => "Softmax",
            Op::Reshape => "Reshape",
            Op::Transpose { .. } => "Transpose",
            Op::BatchNorm { .. } => "BatchNorm",
        }
    }

    /// Whether inputs from position 1 on must be constants.
    fn needs_constants(&self) -> bool {
        matches!(self, Op::Conv { .. } | Op::Linear | Op::BatchNorm { .. })
    }
}

/// Why a graph could not be built or changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An operator does not fit its inputs.
    #[error("operator {node:?} ({op}): {source}")]
    Shape {
        /// Name of the operator.
        node: String,
        /// Kind of operator.
        op: &'static str,
        /// What does not fit.
        source: ShapeError,
    },
    /// A tensor's shape is out of range.
    #[error("tensor {tensor:?}: {source}")]
    TensorShape {
        /// Name of the tensor.
        tensor: String,
        /// What is out of range.
        source: ShapeError,
    },
    /// A weight or other parameter is not a constant.
    #[error("operator {node:?} ({op}): its parameter {tensor:?} must be a constant; freeze it before export")]
    NotConstant {
        /// Name of the operator.
        node: String,
        /// Kind of operator.
        op: &'static str,
        /// Name of the tensor.
        tensor: String,
    },
    /// A constant's data does not match its shape.
    #[error("constant {tensor:?}: its shape needs {expected} elements, but {found} were given")]
    DataLength {
        /// Name of the tensor.
        tensor: String,
        /// Elements by the shape.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// Data was given for a tensor that is not a constant.
    #[error("tensor {tensor:?} is not a constant, so it cannot be given data")]
    NoConstant {
        /// Name of the tensor.
        tensor: String,
    },
    /// An identifier belongs to no tensor of this graph.
    #[error("tensor number {0} is not in this graph, which has {1} tensors")]
    UnknownTensor(u32, usize),
    /// Two tensors or two operators share a name.
    #[error("the {what} name {name:?} is used twice; rename one")]
    Duplicate {
        /// `tensor` or `operator`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The batch size cannot be changed because an operator mixes or moves the items of a batch.
    #[error("operator {node:?} ({op}): the batch cannot be changed here: {reason}")]
    Batch {
        /// Name of the operator.
        node: String,
        /// Kind of operator.
        op: &'static str,
        /// What is in the way.
        reason: String,
    },
    /// The batch size asked for is zero, or the graph's inputs have none.
    #[error("a batch of {batch} cannot be set: {reason}")]
    BatchSize {
        /// The batch asked for, in items.
        batch: usize,
        /// What is in the way.
        reason: &'static str,
    },
    /// The operators depend on each other in a circle, or the tables disagree.
    #[error("the graph is inconsistent: {0}")]
    Inconsistent(String),
}

/// A neural network; see the module's description.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    net: DiGraph<Node, TensorId>,
    tensors: Vec<Tensor>,
    producers: Vec<Option<NodeId>>,
    consumers: Vec<Vec<NodeId>>,
    inputs: Vec<TensorId>,
    outputs: Vec<TensorId>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            net: DiGraph::new(),
            tensors: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    fn push(&mut self, tensor: Tensor) -> TensorId {
        let id = TensorId(u32::try_from(self.tensors.len()).expect("fewer than 2^32 tensors"));
        self.tensors.push(tensor);
        self.producers.push(None);
        self.consumers.push(Vec::new());
        id
    }

    fn check(&self, id: TensorId) -> Result<(), GraphError> {
        if id.index() < self.tensors.len() {
            Ok(())
        } else {
            Err(GraphError::UnknownTensor(id.0, self.tensors.len()))
        }
    }

    /// Adds an input of the network; dimension 0 is the batch. [`Graph::verify`] checks name and shape.
    pub fn add_input(&mut self, name: &str, shape: &[usize]) -> TensorId {
        let id = self.push(Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data: None,
        });
        self.inputs.push(id);
        id
    }

    /// Adds a constant, row-major. [`Graph::verify`] checks name, shape and length.
    pub fn add_constant(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> TensorId {
        self.push(Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data: Some(Arc::new(data)),
        })
    }

    /// Adds an operator and infers the shape of its output tensor, which gets the operator's name.
    ///
    /// # Errors
    /// If the inputs are unknown, do not fit, or should be constants; a reshape needs
    /// [`Graph::add_reshape`].
    pub fn add_node(&mut self, name: &str, op: Op, inputs: &[TensorId]) -> Result<TensorId, GraphError> {
        self.add_node_as(name, name, op, inputs, None)
    }

    /// Adds a reshape to a target shape; its output tensor gets the operator's name.
    ///
    /// # Errors
    /// If the input is unknown or has another number of elements.
    pub fn add_reshape(
        &mut self,
        name: &str,
        input: TensorId,
        shape: &[usize],
    ) -> Result<TensorId, GraphError> {
        self.add_node_as(name, name, Op::Reshape, &[input], Some(shape))
    }

    /// Adds an operator whose output tensor has a name of its own; `reshape` is the target of a reshape.
    ///
    /// # Errors
    /// As [`Graph::add_node`].
    pub fn add_node_as(
        &mut self,
        name: &str,
        output: &str,
        op: Op,
        inputs: &[TensorId],
        reshape: Option<&[usize]>,
    ) -> Result<TensorId, GraphError> {
        for &id in inputs {
            self.check(id)?;
        }
        if op.needs_constants()
            && let Some(&id) = inputs.iter().skip(1).find(|id| self.tensor(**id).data.is_none())
        {
            let tensor = self.tensor(id).name.clone();
            return Err(GraphError::NotConstant {
                node: name.to_owned(),
                op: op.name(),
                tensor,
            });
        }
        let shapes: Vec<&[usize]> = inputs
            .iter()
            .map(|id| self.tensor(*id).shape.as_slice())
            .collect();
        let shape = shapes::infer(&op, &shapes, reshape).map_err(|source| GraphError::Shape {
            node: name.to_owned(),
            op: op.name(),
            source,
        })?;
        let output = self.push(Tensor {
            name: output.to_owned(),
            shape,
            data: None,
        });
        let index = self.net.add_node(Node {
            name: name.to_owned(),
            op,
            inputs: inputs.to_vec(),
            output,
        });
        let node = NodeId(u32::try_from(index.index()).expect("fewer than 2^32 operators"));
        self.producers[output.index()] = Some(node);
        for &id in inputs {
            let consumers = &mut self.consumers[id.index()];
            if consumers.last() != Some(&node) {
                consumers.push(node);
            }
            if let Some(from) = self.producers[id.index()] {
                self.net.add_edge(NodeIndex::new(from.index()), index, id);
            }
        }
        Ok(output)
    }

    /// Says which tensors are the network's outputs.
    ///
    /// # Errors
    /// If one is not in this graph.
    pub fn set_outputs(&mut self, outputs: &[TensorId]) -> Result<(), GraphError> {
        for &id in outputs {
            self.check(id)?;
        }
        self.outputs = outputs.to_vec();
        Ok(())
    }

    /// Replaces the data of a constant, row-major.
    ///
    /// # Errors
    /// If the tensor is not a constant of this graph or the length is not that of its shape.
    pub fn set_constant(&mut self, id: TensorId, data: Vec<f32>) -> Result<(), GraphError> {
        self.check(id)?;
        let tensor = &mut self.tensors[id.index()];
        let Some(old) = &mut tensor.data else {
            return Err(GraphError::NoConstant {
                tensor: tensor.name.clone(),
            });
        };
        let expected = tensor.shape.iter().product();
        if data.len() != expected {
            return Err(GraphError::DataLength {
                tensor: tensor.name.clone(),
                expected,
                found: data.len(),
            });
        }
        *old = Arc::new(data);
        Ok(())
    }

    /// All operators in topological order: each after those whose outputs it reads.
    #[must_use]
    pub fn nodes_in_order(&self) -> Vec<NodeId> {
        // Operators are only ever added after the tensors they read.
        (0..self.net.node_count()).map(|i| NodeId(i as u32)).collect()
    }

    /// An operator.
    ///
    /// # Panics
    /// If the identifier is of another graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.net[NodeIndex::new(id.index())]
    }

    /// A tensor.
    ///
    /// # Panics
    /// If the identifier is of another graph.
    #[must_use]
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.index()]
    }

    /// All tensors; a [`TensorId`] is an index into this slice.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The operator that makes a tensor; none for inputs and constants.
    #[must_use]
    pub fn producer(&self, id: TensorId) -> Option<NodeId> {
        self.producers.get(id.index()).copied().flatten()
    }

    /// The operators that read a tensor, in topological order, each once.
    #[must_use]
    pub fn consumers(&self, id: TensorId) -> Vec<NodeId> {
        self.consumers.get(id.index()).cloned().unwrap_or_default()
    }

    /// The network's inputs.
    #[must_use]
    pub fn inputs(&self) -> &[TensorId] {
        &self.inputs
    }

    /// The network's outputs.
    #[must_use]
    pub fn outputs(&self) -> &[TensorId] {
        &self.outputs
    }

    /// Number of constant elements (weights, biases, normalisation parameters).
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .filter_map(|t| t.data.as_ref())
            .map(|d| d.len() as u64)
            .sum()
    }

    /// Number of constant elements that are not zero.
    #[must_use]
    pub fn nonzeros(&self) -> u64 {
        let nonzero = |d: &Arc<Vec<f32>>| d.iter().filter(|&&v| v != 0.0).count() as u64;
        self.tensors
            .iter()
            .filter_map(|t| t.data.as_ref())
            .map(nonzero)
            .sum()
    }

    /// The same network with a batch of `batch` items: dimension 0 of every input. Weights are shared.
    ///
    /// # Errors
    /// If the batch is zero, the inputs have no dimension or differ in their batch, an operator mixes items
    /// (such as a softmax over the batch) or reshapes the batch away, or a shape becomes too large.
    pub fn with_batch(&self, batch: usize) -> Result<Self, GraphError> {
        let fail = |reason| GraphError::BatchSize { batch, reason };
        if batch == 0 {
            return Err(fail("it must be at least 1"));
        }
        let mut axes: Vec<Option<usize>> = vec![None; self.tensors.len()];
        let mut old = None;
        for &id in &self.inputs {
            let &first = self
                .tensor(id)
                .shape
                .first()
                .ok_or_else(|| fail("an input has no dimensions"))?;
            if *old.get_or_insert(first) != first {
                return Err(fail("the inputs differ in their dimension 0"));
            }
            axes[id.index()] = Some(0);
        }
        let mut graph = self.clone();
        for &id in &self.inputs {
            graph.tensors[id.index()].shape[0] = batch;
            shapes::elements(&graph.tensors[id.index()].shape).map_err(|source| GraphError::TensorShape {
                tensor: self.tensor(id).name.clone(),
                source,
            })?;
        }
        for id in self.nodes_in_order() {
            let node = self.node(id);
            let (axis, target) = self.batch_through(node, &axes, batch)?;
            let shapes: Vec<&[usize]> = node
                .inputs
                .iter()
                .map(|t| graph.tensor(*t).shape.as_slice())
                .collect();
            let shape =
                shapes::infer(&node.op, &shapes, target.as_deref()).map_err(|source| GraphError::Shape {
                    node: node.name.clone(),
                    op: node.op.name(),
                    source,
                })?;
            // Anything but the batch that changes is a constant meant for the old batch.
            let mut expected = self.tensor(node.output).shape.clone();
            if let Some(axis) = axis {
                expected[axis] = batch;
            }
            if shape != expected {
                let reason = format!("its output would have shape {shape:?} in place of {expected:?}");
                return Err(GraphError::Batch {
                    node: node.name.clone(),
                    op: node.op.name(),
                    reason,
                });
            }
            axes[node.output.index()] = axis;
            graph.tensors[node.output.index()].shape = shape;
        }
        Ok(graph)
    }

    /// Where the batch is in the output of a node, and for a reshape its new target.
    fn batch_through(
        &self,
        node: &Node,
        axes: &[Option<usize>],
        batch: usize,
    ) -> Result<(Option<usize>, Option<Vec<usize>>), GraphError> {
        let fail = |reason: String| GraphError::Batch {
            node: node.name.clone(),
            op: node.op.name(),
            reason,
        };
        let axis = node.inputs.first().and_then(|t| axes[t.index()]);
        let output = &self.tensor(node.output).shape;
        match &node.op {
            Op::Relu => Ok((axis, None)),
            Op::Softmax { axis: over } if Some(*over) == axis => {
                Err(fail("it normalises over the batch".into()))
            }
            Op::Softmax { .. } => Ok((axis, None)),
            Op::Transpose { perm } => Ok((axis.and_then(|a| perm.iter().position(|&p| p == a)), None)),
            Op::Add | Op::Mul => {
                // Axes are compared from the back, as broadcasting does.
                let mut found = None;
                for id in &node.inputs {
                    if let Some(axis) = axes[id.index()] {
                        let axis = axis + output.len() - self.tensor(*id).shape.len();
                        if *found.get_or_insert(axis) != axis {
                            return Err(fail("its inputs have the batch in different dimensions".into()));
                        }
                    }
                }
                Ok((found, None))
            }
            Op::Reshape => {
                let mut target = output.clone();
                let input = &self.tensor(node.inputs[0]).shape;
                match axis {
                    None => Ok((None, Some(target))),
                    Some(0) if target.first() == input.first() => {
                        target[0] = batch;
                        Ok((Some(0), Some(target)))
                    }
                    Some(_) => Err(fail(format!(
                        "it turns {input:?} into {target:?}, which does not keep the batch as dimension 0"
                    ))),
                }
            }
            Op::Conv { .. } | Op::Linear | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::BatchNorm { .. } => {
                match axis {
                    None | Some(0) => Ok((axis, None)),
                    Some(a) => Err(fail(format!(
                        "the batch is dimension {a} of its input in place of 0"
                    ))),
                }
            }
        }
    }

    /// Checks everything the graph promises: unique names, shapes in range, data as long as its shape, shapes
    /// as inferred, no cycle.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), GraphError> {
        let mut names = HashSet::new();
        for tensor in &self.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(GraphError::Duplicate {
                    what: "tensor",
                    name: tensor.name.clone(),
                });
            }
            let expected = shapes::elements(&tensor.shape).map_err(|source| GraphError::TensorShape {
                tensor: tensor.name.clone(),
                source,
            })?;
            if let Some(found) = tensor.data.as_ref().map(|d| d.len())
                && found != expected
            {
                return Err(GraphError::DataLength {
                    tensor: tensor.name.clone(),
                    expected,
                    found,
                });
            }
        }
        names.clear();
        for node in self.net.node_weights() {
            if !names.insert(node.name.as_str()) {
                return Err(GraphError::Duplicate {
                    what: "operator",
                    name: node.name.clone(),
                });
            }
            let shapes: Vec<&[usize]> = node
                .inputs
                .iter()
                .map(|t| self.tensor(*t).shape.as_slice())
                .collect();
            let output = self.tensor(node.output);
            let shape = shapes::infer(&node.op, &shapes, Some(&output.shape)).map_err(|source| {
                GraphError::Shape {
                    node: node.name.clone(),
                    op: node.op.name(),
                    source,
                }
            })?;
            if shape != output.shape {
                return Err(GraphError::Inconsistent(format!(
                    "tensor {:?} has shape {:?}, but its operator makes {shape:?}",
                    output.name, output.shape
                )));
            }
        }
        // Not is_cyclic_directed: that one recurses, and long chains overflow the stack.
        if petgraph::algo::toposort(&self.net, None).is_err() {
            return Err(GraphError::Inconsistent(
                "its operators depend on each other in a circle".into(),
            ));
        }
        Ok(())
    }

    /// The network as text, one line per input, constant, operator and output, the same on every run.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("graph {}\n", self.name);
        let label = |id: &TensorId| {
            let tensor = self.tensor(*id);
            format!("{}{}", tensor.name, dims(&tensor.shape))
        };
        for id in &self.inputs {
            let _ = writeln!(text, "input {}", label(id));
        }
        for (i, tensor) in self.tensors.iter().enumerate() {
            if let Some(data) = &tensor.data {
                let nonzeros = data.iter().filter(|&&v| v != 0.0).count();
                let _ = writeln!(text, "const {} nonzero {nonzeros}", label(&TensorId(i as u32)));
            }
        }
        for node in self.net.node_weights() {
            let inputs: Vec<&str> = node
                .inputs
                .iter()
                .map(|t| self.tensor(*t).name.as_str())
                .collect();
            let _ = writeln!(
                text,
                "node {}: {}{}({}) -> {}",
                node.name,
                node.op.name(),
                settings(&node.op),
                inputs.join(", "),
                label(&node.output)
            );
        }
        for id in &self.outputs {
            let _ = writeln!(text, "output {}", label(id));
        }
        text
    }
}

fn dims(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(","))
}

fn settings(op: &Op) -> String {
    match op {
        Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } => format!(
            "{{strides {} pads {} dilations {} groups {groups}}}",
            dims(strides),
            dims(pads),
            dims(dilations)
        ),
        Op::MaxPool {
            kernel,
            strides,
            pads,
        } => {
            format!(
                "{{kernel {} strides {} pads {}}}",
                dims(kernel),
                dims(strides),
                dims(pads)
            )
        }
        Op::AvgPool {
            kernel,
            strides,
            pads,
            count_include_pad,
        } => format!(
            "{{kernel {} strides {} pads {} count_include_pad {count_include_pad}}}",
            dims(kernel),
            dims(strides),
            dims(pads)
        ),
        Op::Softmax { axis } => format!("{{axis {axis}}}"),
        Op::Transpose { perm } => format!("{{perm {}}}", dims(perm)),
        Op::BatchNorm { epsilon } => format!("{{epsilon {epsilon:e}}}"),
        Op::Linear | Op::Add | Op::Mul | Op::Relu | Op::Reshape => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Graph {
        let mut g = Graph::new("small");
        let x = g.add_input("x", &[2, 3]);
        let w = g.add_constant("w", &[4, 3], vec![1.0; 12]);
        let h = g.add_node("fc", Op::Linear, &[x, w]).unwrap();
        let y = g.add_node("y", Op::Relu, &[h]).unwrap();
        g.set_outputs(&[y]).unwrap();
        g
    }

    #[test]
    fn tables_agree() {
        let g = small();
        g.verify().unwrap();
        let nodes = g.nodes_in_order();
        assert_eq!(nodes.len(), 2);
        assert_eq!(g.consumers(g.node(nodes[0]).output), vec![nodes[1]]);
        assert_eq!(g.producer(g.outputs()[0]), Some(nodes[1]));
        assert_eq!(g.parameters(), 12);
        assert_eq!(
            g.to_text(),
            "graph small\ninput x[2,3]\nconst w[4,3] nonzero 12\nnode fc: Linear(x, w) -> fc[2,4]\n\
             node y: Relu(fc) -> y[2,4]\noutput y[2,4]\n"
        );
    }

    #[test]
    fn long_chains_do_not_overflow_the_stack() {
        let mut g = Graph::new("long");
        let mut t = g.add_input("x", &[1]);
        for i in 0..200_000 {
            t = g.add_node(&format!("r{i}"), Op::Relu, &[t]).unwrap();
        }
        g.verify().unwrap();
        assert_eq!(g.with_batch(2).unwrap().tensor(t).shape, [2]);
    }

    #[test]
    fn batches() {
        let g = small().with_batch(7).unwrap();
        g.verify().unwrap();
        assert_eq!(g.tensor(g.outputs()[0]).shape, [7, 4]);
        assert!(matches!(small().with_batch(0), Err(GraphError::BatchSize { .. })));
        assert!(small().with_batch(usize::MAX).is_err());
        let mut g = Graph::new("r");
        let x = g.add_input("x", &[1, 6]);
        let r = g.add_reshape("r", x, &[1, 2, 3]).unwrap();
        let t = g
            .add_node("t", Op::Transpose { perm: vec![1, 0, 2] }, &[r])
            .unwrap();
        let s = g.add_node("s", Op::Softmax { axis: 2 }, &[t]).unwrap();
        g.set_outputs(&[s]).unwrap();
        assert_eq!(g.with_batch(5).unwrap().tensor(s).shape, [2, 5, 3]);
        g.add_node("bad", Op::Softmax { axis: 1 }, &[t]).unwrap();
        assert!(matches!(g.with_batch(5), Err(GraphError::Batch { .. })));
    }

    #[test]
    fn mistakes_are_errors() {
        let mut g = small();
        assert!(g.add_node("z", Op::Relu, &[TensorId(99)]).is_err());
        let x = g.inputs()[0];
        assert!(matches!(
            g.add_node("z", Op::Linear, &[x, x]),
            Err(GraphError::NotConstant { .. })
        ));
        assert!(g.set_constant(x, vec![]).is_err());
        assert!(g.set_constant(TensorId(1), vec![0.0]).is_err());
        g.set_constant(TensorId(1), vec![0.0; 12]).unwrap();
        assert_eq!(g.nonzeros(), 0);
        g.add_constant("w", &[1], vec![1.0]);
        assert!(matches!(g.verify(), Err(GraphError::Duplicate { .. })));
    }
}
