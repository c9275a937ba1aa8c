//! The graph of a model: operators, each making one tensor, and the tensors between them. Operators sit in a petgraph graph
//! (stable, so that ids survive removals), tensors in a list.
//!
//! A graph is acyclic by construction: a node is added after its inputs, and no change may make a node read what comes of it.

use crate::shapes::{self, ShapeError};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// A tensor of one graph: an index into [`Graph::tensors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// A node of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A tensor: a graph input, a constant or the output of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Unique in its graph.
    pub name: String,
    /// Sizes, outermost first; none is 0.
    pub shape: Vec<usize>,
    /// The values in row-major order, for constants only.
    pub data: Option<Arc<Vec<f32>>>,
    /// Of an abstract constant, whose values are not held, how many are not 0. `None` for all other tensors.
    pub nonzeros: Option<u64>,
}

impl Tensor {
    /// Whether this is a constant, with its values or abstract.
    pub fn is_constant(&self) -> bool {
        self.data.is_some() || self.nonzeros.is_some()
    }

    /// The number of elements: the product of the sizes.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }

    /// How many of a constant's values are not 0; `None` if this is no constant.
    pub fn nonzero_count(&self) -> Option<u64> {
        match &self.data {
            Some(data) => Some(data.iter().filter(|v| **v != 0.0).count() as u64),
            None => self.nonzeros,
        }
    }
}

/// An operator with its inputs and its output.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// As in the file or builder; need not be unique.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// What it reads, in the order that the operator defines.
    pub inputs: Vec<TensorId>,
    /// What it makes.
    pub output: TensorId,
}

/// An operator. Semantics are those of the ONNX operators of these names. Pads are `[top, left, bottom, right]`, other
/// pairs `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// 2D convolution: `x [n, c, h, w]`, weight `[m, c / groups, kh, kw]`, optional bias `[m]` to `[n, m, oh, ow]`.
    Conv {
        /// Elements between output positions.
        strides: [usize; 2],
        /// Zeros around the input.
        pads: [usize; 4],
        /// Elements between taps.
        dilations: [usize; 2],
        /// Independent groups of channels.
        groups: usize,
    },
    /// Matrix product with weights along the last axis: `x [..., k]` of two axes or more, weight `[m, k]`, optional bias
    /// `[m]` to `[..., m]`.
    Linear,
    /// Matrix product of two activations: `[..., m, k]` and `[..., k, n]` to `[..., m, n]`; axes before the last two are
    /// broadcast.
    MatMul,
    /// Rows of a table: ids of any shape (whole numbers from 0, less than `v`), table `[v, d]` to `ids.shape + [d]`.
    Gather,
    /// Element-wise sum with broadcasting.
    Add,
    /// Element-wise difference with broadcasting.
    Sub,
    /// Element-wise product with broadcasting.
    Mul,
    /// Element-wise quotient with broadcasting.
    Div,
    /// Inputs `condition, a, b`, broadcast together: `a` where the condition is not 0, otherwise `b`.
    Where,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, min), max)`.
    Clip {
        /// The least value.
        min: f32,
        /// The greatest value.
        max: f32,
    },
    /// Gaussian error linear unit: `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu {
        /// Whether `erf(x / sqrt(2))` is approximated by `tanh(sqrt(2 / pi) * (x + 0.044715 x^3))`, as in GPT-2.
        tanh: bool,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// Gauss error function.
    Erf,
    /// Square root.
    Sqrt,
    /// `x ^ exponent`.
    Pow {
        /// The exponent.
        exponent: f32,
    },
    /// Maximum over windows of `[n, c, h, w]`; padding never wins.
    MaxPool {
        /// Window size.
        kernel: [usize; 2],
        /// Elements between output positions.
        strides: [usize; 2],
        /// Padding, smaller than the kernel.
        pads: [usize; 4],
    },
    /// Average over windows of `[n, c, h, w]`.
    AvgPool {
        /// Window size.
        kernel: [usize; 2],
        /// Elements between output positions.
        strides: [usize; 2],
        /// Padding, smaller than the kernel.
        pads: [usize; 4],
        /// Whether the sum is divided by the window's size, rather than by the number of elements that it hits.
        count_include_pad: bool,
    },
    /// `exp(x) / sum(exp(x))` along an axis.
    Softmax {
        /// The axis, counted from the first.
        axis: usize,
    },
    /// The same elements in the same order in another shape, which is that of the output tensor.
    Reshape,
    /// Axis `i` of the output is axis `perm[i]` of the input.
    Transpose {
        /// A permutation of the axes.
        perm: Vec<usize>,
    },
    /// `(x - mean) / sqrt(var + epsilon) * scale + bias` for each channel (axis 1); inputs `x, scale, bias, mean, var`.
    BatchNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// `(x - mean) / sqrt(var + epsilon) * scale + bias` with mean and variance taken over the last axis; inputs
    /// `x [..., d]` of two axes or more, scale `[d]`, bias `[d]`.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Multi-head attention: inputs q, k, v, each `[batch, tokens, d]`, to `[batch, tokens, d]`. Head `h` has the features
    /// `h * d / heads` onwards; its result is `softmax(q k^T / sqrt(d / heads)) v`.
    Attention {
        /// The number of heads, which divides `d`.
        heads: usize,
        /// Whether a token sees itself and those before it only.
        causal: bool,
    },
    /// Zeros between the elements of a plane: `[n, c, h, w]` to `[n, c, h * f0, w * f1]`, where element `(f0 * i, f1 * j)`
    /// is element `(i, j)` of the input and all others are 0.
    ZeroInsert {
        /// `[f0, f1]`, each at least 1.
        factor: [usize; 2],
    },
    /// The elements `start..end` along one axis.
    Slice {
        /// The axis, counted from the first.
        axis: usize,
        /// The first element.
        start: usize,
        /// The element after the last.
        end: usize,
    },
    /// The mean over some axes.
    ReduceMean {
        /// The axes, ascending.
        axes: Vec<usize>,
        /// Whether the axes stay, with size 1.
        keep: bool,
    },
}

impl Op {
    /// The operator's name in lower case, as in [`Graph::to_text`].
    pub fn name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "conv",
            Op::Linear => "linear",
            Op::MatMul => "matmul",
            Op::Gather => "gather",
            Op::Add => "add",
            Op::Sub => "sub",
            Op::Mul => "mul",
            Op::Div => "div",
            Op::Where => "where",
            Op::Relu => "relu",
            Op::Clip { .. } => "clip",
            Op::Gelu { .. } => "gelu",
            Op::Tanh => "tanh",
            Op::Erf => "erf",
            Op::Sqrt => "sqrt",
            Op::Pow { .. } => "pow",
            Op::MaxPool { .. } => "maxpool",
            Op::AvgPool { .. } => "avgpool",
            Op::Softmax { .. } => "softmax",
            Op::Reshape => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::BatchNorm { .. } => "batchnorm",
            Op::LayerNorm { .. } => "layernorm",
            Op::Attention { .. } => "attention",
            Op::ZeroInsert { .. } => "zeroinsert",
            Op::Slice { .. } => "slice",
            Op::ReduceMean { .. } => "reducemean",
        }
    }
}

/// Why a graph cannot be built or changed so, or is not well-formed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum GraphError {
    /// The shapes of a node's inputs do not fit.
    #[error("node `{node}`: {error}")]
    Shape {
        /// The node.
        node: String,
        /// What does not fit.
        error: ShapeError,
    },
    /// The shape of a graph input or constant is absurd.
    #[error("tensor `{tensor}`: {error}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        error: ShapeError,
    },
    /// Two tensors have one name.
    #[error("two tensors are called `{0}`")]
    Duplicate(String),
    /// An id is not of this graph.
    #[error("no {what} with id {id} in this graph")]
    Missing {
        /// "tensor" or "node".
        what: &'static str,
        /// The id.
        id: u32,
    },
    /// The number of values is not that of the shape.
    #[error("constant `{tensor}` of shape {shape:?} needs {expected} values, got {got}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The product of the shape.
        expected: usize,
        /// The values there are.
        got: usize,
    },
    /// A constant holds an infinity or NaN.
    #[error("constant `{tensor}` holds {value} at index {index}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row-major index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A change asks for a constant, and the tensor is none.
    #[error("tensor `{0}` is not a constant")]
    NotConstant(String),
    /// A change would make a node read what comes of it.
    #[error("node `{0}` would read its own result")]
    Cycle(String),
    /// A node cannot be removed: its output is read or is a graph output.
    #[error("node `{0}` is still in use")]
    InUse(String),
    /// A change would give a tensor another shape.
    #[error("tensor `{tensor}` has shape {old:?} and would get {new:?}")]
    ShapeChange {
        /// The tensor.
        tensor: String,
        /// Its shape.
        old: Vec<usize>,
        /// The shape it would have.
        new: Vec<usize>,
    },
    /// The batch cannot be changed.
    #[error("the batch cannot be set to {batch}: {reason}")]
    Batch {
        /// The batch asked for.
        batch: usize,
        /// Why not.
        reason: String,
    },
    /// The graph breaks a rule of well-formedness.
    #[error("{0}")]
    Malformed(String),
}

/// A model's graph. See the module's text for what it holds to.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// An edge from producer to reader for each (reader, tensor).
    pub(crate) net: StableDiGraph<Node, TensorId>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) producers: Vec<Option<NodeId>>,
    pub(crate) names: BTreeMap<String, TensorId>,
    pub(crate) inputs: Vec<TensorId>,
    pub(crate) outputs: Vec<TensorId>,
}

/// The petgraph index of a node.
pub(crate) fn index(id: NodeId) -> NodeIndex {
    NodeIndex::new(id.0 as usize)
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            net: StableDiGraph::new(),
            tensors: Vec::new(),
            producers: Vec::new(),
            names: BTreeMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    // ---- reading

    /// All nodes, each after those whose outputs it reads; among those ready, in the order of their ids.
    pub fn nodes_in_order(&self) -> Vec<NodeId> {
        let mut waits: BTreeMap<NodeIndex, usize> = self
            .net
            .node_indices()
            .map(|n| (n, self.net.edges_directed(n, Direction::Incoming).count()))
            .collect();
        let mut ready: BTreeSet<NodeIndex> =
            waits.iter().filter(|(_, w)| **w == 0).map(|(n, _)| *n).collect();
        let mut order = Vec::with_capacity(waits.len());
        while let Some(n) = ready.pop_first() {
            order.push(NodeId(n.index() as u32));
            for e in self.net.edges(n) {
                if let Some(w) = waits.get_mut(&e.target()) {
                    *w -= 1;
                    if *w == 0 {
                        ready.insert(e.target());
                    }
                }
            }
        }
        order
    }

    /// A node. Panics if the id is not of this graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.net[index(id)]
    }

    /// A tensor. Panics if the id is not of this graph.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// All tensors, by id. After removals some may be used by no node; [`Graph::compact`] drops them.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.names.get(name).copied()
    }

    /// The node that makes a tensor; `None` for graph inputs and constants.
    pub fn producer(&self, t: TensorId) -> Option<NodeId> {
        self.producers.get(t.0 as usize).copied().flatten()
    }

    /// The nodes that read a tensor, each once, by id.
    pub fn consumers(&self, t: TensorId) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = match self.producer(t) {
            Some(p) => self
                .net
                .edges(index(p))
                .filter(|e| *e.weight() == t)
                .map(|e| NodeId(e.target().index() as u32))
                .collect(),
            None => {
                let reads = |n: &NodeIndex| self.net[*n].inputs.contains(&t);
                self.net
                    .node_indices()
                    .filter(reads)
                    .map(|n| NodeId(n.index() as u32))
                    .collect()
            }
        };
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What a run must be given: the graph inputs, without constants.
    pub fn inputs(&self) -> &[TensorId] {
        &self.inputs
    }

    /// What a run gives.
    pub fn outputs(&self) -> &[TensorId] {
        &self.outputs
    }

    /// The constants that a node reads or that are graph outputs, by id; abstract ones too.
    pub fn constants(&self) -> Vec<TensorId> {
        let mut used: BTreeSet<TensorId> = self.outputs.iter().copied().collect();
        used.extend(self.net.node_weights().flat_map(|n| n.inputs.iter().copied()));
        used.into_iter()
            .filter(|t| self.tensor(*t).is_constant())
            .collect()
    }

    /// The number of values in all constants in use.
    pub fn parameters(&self) -> u64 {
        self.constants().iter().map(|t| self.tensor(*t).elements()).sum()
    }

    /// The number of values other than 0 in all constants in use.
    pub fn nonzeros(&self) -> u64 {
        self.constants()
            .iter()
            .filter_map(|t| self.tensor(*t).nonzero_count())
            .sum()
    }

    /// As [`Graph::parameters`], without the means and variances of batch norms: what a training step changes, which papers
    /// count.
    pub fn trainable_parameters(&self) -> u64 {
        let statistics: BTreeSet<TensorId> = self
            .net
            .node_weights()
            .filter(|n| matches!(n.op, Op::BatchNorm { .. }))
            .flat_map(|n| n.inputs[3..].iter().copied())
            .collect();
        let all = self.constants().into_iter();
        all.filter(|t| !statistics.contains(t))
            .map(|t| self.tensor(t).elements())
            .sum()
    }

    /// If a tensor holds ids, the number of rows of the table that they choose from (the least, where there are several):
    /// a [`Op::Gather`] reads it as such, directly or through reshapes.
    pub fn vocabulary(&self, t: TensorId) -> Option<usize> {
        let (mut rows, mut todo): (Option<usize>, _) = (None, vec![t]);
        while let Some(t) = todo.pop() {
            for id in self.consumers(t) {
                let node = self.node(id);
                match node.op {
                    Op::Gather if node.inputs[0] == t => {
                        let v = self.tensor(node.inputs[1]).shape[0];
                        rows = Some(rows.map_or(v, |r| r.min(v)));
                    }
                    Op::Reshape => todo.push(node.output),
                    _ => {}
                }
            }
        }
        rows
    }

    // ---- building

    fn add_tensor(&mut self, tensor: Tensor, producer: Option<NodeId>) -> Result<TensorId, GraphError> {
        let id = TensorId(self.tensors.len() as u32);
        if self.names.contains_key(&tensor.name) {
            return Err(GraphError::Duplicate(tensor.name));
        }
        self.names.insert(tensor.name.clone(), id);
        self.tensors.push(tensor);
        self.producers.push(producer);
        Ok(id)
    }

    /// Adds a graph input.
    ///
    /// # Errors
    /// If the name is taken or the shape absurd.
    pub fn add_input(&mut self, name: impl Into<String>, shape: &[usize]) -> Result<TensorId, GraphError> {
        let name = name.into();
        shapes::elements(shape).map_err(|error| GraphError::Tensor {
            tensor: name.clone(),
            error,
        })?;
        let id = self.add_tensor(
            Tensor {
                name,
                shape: shape.to_vec(),
                data: None,
                nonzeros: None,
            },
            None,
        )?;
        self.inputs.push(id);
        Ok(id)
    }

    /// Adds a constant with its values in row-major order.
    ///
    /// # Errors
    /// If the name is taken, the shape absurd or not that of the data, or a value not finite.
    pub fn add_constant(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        data: Vec<f32>,
    ) -> Result<TensorId, GraphError> {
        let name = name.into();
        check_constant(&name, shape, &data)?;
        self.add_tensor(
            Tensor {
                name,
                shape: shape.to_vec(),
                data: Some(Arc::new(data)),
                nonzeros: None,
            },
            None,
        )
    }

    /// Adds a constant that shares the values of another one.
    pub(crate) fn add_shared_constant(
        &mut self,
        name: String,
        shape: &[usize],
        data: Arc<Vec<f32>>,
    ) -> Result<TensorId, GraphError> {
        check_constant(&name, shape, &data)?;
        let shape = shape.to_vec();
        self.add_tensor(
            Tensor {
                name,
                shape,
                data: Some(data),
                nonzeros: None,
            },
            None,
        )
    }

    /// Adds an abstract constant: one whose values are not held, all of them taken to be other than 0. A graph with such
    /// constants can be counted, not evaluated.
    ///
    /// # Errors
    /// If the name is taken or the shape absurd.
    pub fn add_abstract_constant(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
    ) -> Result<TensorId, GraphError> {
        let name = name.into();
        let elements = shapes::elements(shape).map_err(|error| GraphError::Tensor {
            tensor: name.clone(),
            error,
        })?;
        self.add_tensor(
            Tensor {
                name,
                shape: shape.to_vec(),
                data: None,
                nonzeros: Some(elements as u64),
            },
            None,
        )
    }

    /// Adds a node and its output tensor, whose shape is inferred. For [`Op::Reshape`] use [`Graph::add_reshape`].
    ///
    /// # Errors
    /// If an input is not of this graph, the shapes do not fit, or the output's name is taken.
    pub fn add_node(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[TensorId],
        output: impl Into<String>,
    ) -> Result<TensorId, GraphError> {
        self.add(name.into(), op, inputs, output.into(), None)
    }

    /// Adds a node that gives a tensor another shape.
    ///
    /// # Errors
    /// As [`Graph::add_node`]; also if the shapes have different numbers of elements.
    pub fn add_reshape(
        &mut self,
        name: impl Into<String>,
        input: TensorId,
        output: impl Into<String>,
        shape: &[usize],
    ) -> Result<TensorId, GraphError> {
        self.add(name.into(), Op::Reshape, &[input], output.into(), Some(shape))
    }

    fn add(
        &mut self,
        name: String,
        op: Op,
        inputs: &[TensorId],
        output: String,
        target: Option<&[usize]>,
    ) -> Result<TensorId, GraphError> {
        self.known(inputs)?;
        let of: Vec<&[usize]> = inputs.iter().map(|t| self.tensor(*t).shape.as_slice()).collect();
        let shape = shapes::infer(&op, &of, target).map_err(|error| GraphError::Shape {
            node: name.clone(),
            error,
        })?;
        let t = self.add_tensor(
            Tensor {
                name: output,
                shape,
                data: None,
                nonzeros: None,
            },
            None,
        )?;
        let n = self.net.add_node(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            output: t,
        });
        self.producers[t.0 as usize] = Some(NodeId(n.index() as u32));
        self.connect(n);
        Ok(t)
    }

    /// Makes a tensor a graph output.
    ///
    /// # Errors
    /// If the tensor is not of this graph, or is one already.
    pub fn add_output(&mut self, t: TensorId) -> Result<(), GraphError> {
        self.known(&[t])?;
        if self.outputs.contains(&t) {
            return Err(GraphError::Malformed(format!(
                "tensor `{}` is a graph output twice",
                self.tensor(t).name
            )));
        }
        self.outputs.push(t);
        Ok(())
    }

    /// Whether tensors are of this graph.
    pub(crate) fn known(&self, tensors: &[TensorId]) -> Result<(), GraphError> {
        match tensors.iter().find(|t| t.0 as usize >= self.tensors.len()) {
            Some(t) => Err(GraphError::Missing {
                what: "tensor",
                id: t.0,
            }),
            None => Ok(()),
        }
    }

    /// (Re-)makes the edges that lead to a node.
    pub(crate) fn connect(&mut self, n: NodeIndex) {
        let old: Vec<_> = self
            .net
            .edges_directed(n, Direction::Incoming)
            .map(|e| e.id())
            .collect();
        for e in old {
            self.net.remove_edge(e);
        }
        let reads: BTreeSet<TensorId> = self.net[n].inputs.iter().copied().collect();
        for t in reads {
            if let Some(p) = self.producer(t) {
                self.net.add_edge(index(p), n, t);
            }
        }
    }
}

/// Whether data are finite and as many as the shape says.
pub(crate) fn check_constant(name: &str, shape: &[usize], data: &[f32]) -> Result<(), GraphError> {
    let expected = shapes::elements(shape).map_err(|error| GraphError::Tensor {
        tensor: name.into(),
        error,
    })?;
    if data.len() != expected {
        return Err(GraphError::Length {
            tensor: name.into(),
            shape: shape.to_vec(),
            expected,
            got: data.len(),
        });
    }
    match data.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(GraphError::NotFinite {
            tensor: name.into(),
            index,
            value: data[index],
        }),
        None => Ok(()),
    }
}
