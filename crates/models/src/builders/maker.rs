//! What builders make graphs with: layers with seeded weights, scaled so that activations stay of order 1.
//!
//! For that the maker keeps the mean square that is expected of each tensor: 1 for a graph input; for a convolution that
//! of its input times the weights' variance and the products that hit an element; 1 after a norm, half after a ReLU. The
//! statistics of a batch norm lie around what is expected of its input, as those of a trained network do.

use crate::flops;
use crate::graph::{Graph, GraphError, Op, TensorId};
use crate::random::Stream;
use crate::shapes;
use std::collections::BTreeMap;

/// Whether a graph is built with its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// With values that depend on the seed and on each constant's name alone.
    Seeded,
    /// Without: all constants are abstract ([`Graph::add_abstract_constant`]).
    Abstract,
}

/// A convolution's parameters.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

impl Window {
    /// An odd kernel in one group, padded so that a stride of 1 keeps the size.
    pub(super) fn same(kernel: usize, stride: usize) -> Self {
        Self {
            kernel,
            stride,
            pad: kernel / 2,
            groups: 1,
        }
    }
}

/// A graph in the making.
pub(super) struct Maker {
    pub graph: Graph,
    seed: u64,
    values: Values,
    /// Expected mean squares.
    squares: BTreeMap<TensorId, f64>,
}

type Made = Result<TensorId, GraphError>;

impl Maker {
    pub(super) fn new(name: &str, seed: u64, values: Values) -> Self {
        Self {
            graph: Graph::new(name),
            seed,
            values,
            squares: BTreeMap::new(),
        }
    }

    // ---- tensors

    /// A constant whose values come one after another from its own stream.
    pub(super) fn constant(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        mut value: impl FnMut(&mut Stream) -> f64,
    ) -> Made {
        let name = name.into();
        if self.values == Values::Abstract {
            return self.graph.add_abstract_constant(name, shape);
        }
        // before the values are made
        let count = shapes::elements(shape).map_err(|error| GraphError::Tensor {
            tensor: name.clone(),
            error,
        })?;
        let mut stream = Stream::new(self.seed, "weights", &name);
        let data = (0..count).map(|_| value(&mut stream) as f32).collect();
        self.graph.add_constant(name, shape, data)
    }

    /// Normal weights.
    pub(super) fn normal(&mut self, name: impl Into<String>, shape: &[usize], deviation: f64) -> Made {
        self.constant(name, shape, |s| s.normal() * deviation)
    }

    /// Normal weights where `kept` says so of their index, otherwise 0.
    pub(super) fn masked(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        deviation: f64,
        kept: impl Fn(usize) -> bool,
    ) -> Made {
        let mut index = 0;
        let t = self.constant(name, shape, |s| {
            let value = s.normal() * deviation;
            index += 1;
            if kept(index - 1) { value } else { 0.0 }
        })?;
        if self.values == Values::Abstract {
            let all = self.graph.tensor(t).elements() as usize;
            let nonzeros = (0..all).filter(|i| kept(*i)).count() as u64;
            self.graph.set_nonzeros(t, nonzeros)?;
        }
        Ok(t)
    }

    /// Biases of magnitude 0.01 to 0.05 with random sign: never zero, so that a bias that is left out shows.
    pub(super) fn bias(&mut self, name: impl Into<String>, n: usize) -> Made {
        self.constant(name, &[n], |s| {
            let magnitude = 0.01 + 0.04 * s.uniform();
            signed(s, magnitude)
        })
    }

    /// Gains between 0.9 and 1.1.
    fn gain(&mut self, name: impl Into<String>, n: usize) -> Made {
        self.constant(name, &[n], |s| 0.9 + 0.2 * s.uniform())
    }

    /// The expected mean square of a tensor.
    pub(super) fn square(&self, t: TensorId) -> f64 {
        self.squares.get(&t).copied().unwrap_or(1.0)
    }

    /// Says what a tensor's mean square is expected to be.
    pub(super) fn expect(&mut self, t: TensorId, square: f64) {
        self.squares.insert(t, square);
    }

    // ---- layers; each is called `name` and makes the tensor `name.out`

    /// An operator, and the mean square that is expected of it.
    pub(super) fn node(&mut self, name: &str, op: Op, inputs: &[TensorId], square: f64) -> Made {
        let t = self.graph.add_node(name, op, inputs, format!("{name}.out"))?;
        self.expect(t, square);
        Ok(t)
    }

    /// A product with `name.weight [m, k]` of this deviation and `name.bias [m]`.
    pub(super) fn linear(&mut self, name: &str, x: TensorId, m: usize, deviation: f64) -> Made {
        let k = self.graph.tensor(x).shape.last().copied().unwrap_or(1);
        let weight = self.normal(format!("{name}.weight"), &[m, k], deviation)?;
        let bias = self.bias(format!("{name}.bias"), m)?;
        let square = self.square(x) * deviation * deviation * k as f64;
        self.node(name, Op::Linear, &[x, weight, bias], square)
    }

    /// A convolution with `name.weight` of variance 2 / fan-in, without bias.
    pub(super) fn conv(&mut self, name: &str, x: TensorId, channels: usize, w: Window) -> Made {
        let shape = self.conv_shape(x, channels, w);
        let deviation = he(&shape);
        let weight = self.normal(format!("{name}.weight"), &shape, deviation)?;
        self.conv_with(name, x, &[weight], w, 2.0)
    }

    /// The shape of a convolution's weight.
    pub(super) fn conv_shape(&self, x: TensorId, channels: usize, w: Window) -> [usize; 4] {
        let from = self.graph.tensor(x).shape.get(1).copied().unwrap_or(1);
        [channels, (from / w.groups.max(1)).max(1), w.kernel, w.kernel]
    }

    /// A convolution with a weight (and bias) that is there; `variance` is that of the weight, times its fan-in.
    pub(super) fn conv_with(
        &mut self,
        name: &str,
        x: TensorId,
        weights: &[TensorId],
        w: Window,
        variance: f64,
    ) -> Made {
        let op = Op::Conv {
            strides: [w.stride; 2],
            pads: [w.pad; 4],
            dilations: [1; 2],
            groups: w.groups,
        };
        let t = self.node(name, op, &[&[x], weights].concat(), 1.0)?;
        // padding and inserted zeros add nothing
        let counts = self
            .graph
            .producer(t)
            .map(|id| flops::node_counts(&self.graph, id));
        let hit = counts.map_or(1.0, |c| c.mac_dense as f64 / c.mac_published.max(1) as f64);
        let square = self.zeros_left_out(x) * variance * hit;
        self.expect(t, square);
        Ok(t)
    }

    /// The expected mean square of a tensor's elements that are not inserted zeros.
    fn zeros_left_out(&self, x: TensorId) -> f64 {
        match self.graph.producer(x).map(|p| self.graph.node(p)) {
            Some(node) if matches!(node.op, Op::ZeroInsert { .. }) => self.square(node.inputs[0]),
            _ => self.square(x),
        }
    }

    /// Batch norm with `name.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub(super) fn batch_norm(&mut self, name: &str, x: TensorId) -> Made {
        let n = self.graph.tensor(x).shape.get(1).copied().unwrap_or(1);
        let square = self.square(x);
        let inputs = [
            x,
            self.gain(format!("{name}.weight"), n)?,
            self.bias(format!("{name}.bias"), n)?,
            self.constant(format!("{name}.running_mean"), &[n], |s| {
                let magnitude = (0.1 + 0.2 * s.uniform()) * square.sqrt();
                signed(s, magnitude)
            })?,
            self.constant(format!("{name}.running_var"), &[n], |s| {
                square * (0.5 + s.uniform())
            })?,
        ];
        self.node(name, Op::BatchNorm { epsilon: 1e-5 }, &inputs, 1.0)
    }

    /// Layer norm over the last axis with `name.weight` and `name.bias`.
    pub(super) fn layer_norm(&mut self, name: &str, x: TensorId) -> Made {
        let d = self.graph.tensor(x).shape.last().copied().unwrap_or(1);
        let inputs = [
            x,
            self.gain(format!("{name}.weight"), d)?,
            self.bias(format!("{name}.bias"), d)?,
        ];
        self.node(name, Op::LayerNorm { epsilon: 1e-5 }, &inputs, 1.0)
    }

    pub(super) fn relu(&mut self, name: &str, x: TensorId) -> Made {
        let square = self.square(x) / 2.0;
        self.node(name, Op::Relu, &[x], square)
    }

    pub(super) fn add(&mut self, name: &str, a: TensorId, b: TensorId) -> Made {
        let square = self.square(a) + self.square(b);
        self.node(name, Op::Add, &[a, b], square)
    }

    /// The mean over each plane, `[n, c, h, w]` to `[n, c]`.
    pub(super) fn global_average(&mut self, name: &str, x: TensorId) -> Made {
        let shape = self.graph.tensor(x).shape.clone();
        let op = Op::AvgPool {
            kernel: [shape[2], shape[3]],
            strides: [1; 2],
            pads: [0; 4],
            count_include_pad: false,
        };
        let square = self.square(x);
        let pooled = self.node(name, op, &[x], square)?;
        let flat = self
            .graph
            .add_reshape("flatten", pooled, "flatten.out", &shape[..2])?;
        self.expect(flat, square);
        Ok(flat)
    }
}

/// The deviation of a convolution's weights that keeps a ReLU's mean square: sqrt(2 / fan-in).
pub(super) fn he(shape: &[usize]) -> f64 {
    (2.0 / shape[1..].iter().product::<usize>() as f64).sqrt()
}

fn signed(s: &mut Stream, magnitude: f64) -> f64 {
    if s.below(2) == 0 { magnitude } else { -magnitude }
}
