//! What a narrow type costs by itself: the graph evaluated in f64, with a rounding wherever the mesh keeps or sends f16, and nowhere
//! else. The mesh can do no better than this but by luck; where it is much worse, a kernel rounds more often than it must.

use crate::error::Error;
use crate::simulate::{Expected, all_items, difference, items_of, scale};
use meshloom_compiler::Compiled;
use meshloom_compiler::plan::{Kernel, Kind};
use meshloom_models::{Graph, NodeId, Op, TensorId, evaluate_adjusted};
use meshloom_simulator::numerics::{from_bits, to_bits};
use meshloom_simulator::program::Ty;
use std::collections::BTreeMap;

/// Where a compiled model rounds.
struct Places {
    /// Tensors that travel between kernels.
    streams: BTreeMap<TensorId, Ty>,
    /// Constants that are kept in the model's type, each with the factor that is multiplied into every row of it before (1 / 1 but for
    /// weights with a batch norm behind them).
    weights: BTreeMap<TensorId, Vec<f64>>,
    ty: Ty,
}

/// The nearest number of the type to the nearest f32: what is stored of a sum in f32.
fn rounded(ty: Ty, value: f64) -> f64 {
    f64::from(from_bits(ty, to_bits(ty, value as f32), 0))
}

/// The factor of each feature by the batch norms between a node and the end of its kernel; none if there are none.
fn norms(graph: &Graph, kernel: &Kernel, from: NodeId) -> Vec<f64> {
    let mut all: Vec<f64> = Vec::new();
    let mut at = from;
    while let [next] = graph.consumers(graph.node(at).output)[..]
        && kernel.nodes.contains(&next)
    {
        let node = graph.node(next);
        let values = |i: usize| graph.tensor(node.inputs[i]).data.as_deref();
        if let Op::BatchNorm { epsilon } = node.op
            && let (Some(gain), Some(variance)) = (values(1), values(4))
        {
            let one = gain.iter().zip(variance);
            let one = one.map(|(g, v)| f64::from(*g) / (f64::from(*v) + f64::from(epsilon)).sqrt());
            all = match all.is_empty() {
                true => one.collect(),
                false => all.iter().zip(one).map(|(a, b)| a * b).collect(),
            };
        }
        at = next;
    }
    all
}

impl Places {
    fn of(graph: &Graph, compiled: &Compiled) -> Places {
        let edges = compiled.plans.iter().flat_map(|p| &p.edges);
        let mut weights = BTreeMap::new();
        for kernel in compiled.plans.iter().flat_map(|p| &p.kernels) {
            for &id in &kernel.nodes {
                let node = graph.node(id);
                match node.op {
                    Op::Conv { .. } | Op::Linear => {
                        weights.insert(node.inputs[1], norms(graph, kernel, id));
                    }
                    // the table, and what is added to its rows
                    _ if matches!(kernel.kind, Kind::Embedding(_)) => {
                        let constants = node.inputs.iter().filter(|t| graph.tensor(**t).data.is_some());
                        weights.extend(constants.map(|t| (*t, Vec::new())));
                    }
                    _ => {}
                }
            }
        }
        Places {
            streams: edges.map(|e| (e.tensor, e.ty)).collect(),
            weights,
            ty: compiled.plans.first().map_or(Ty::F32, |p| p.ty),
        }
    }

    fn round(&self, tensor: TensorId, values: &mut [f64]) {
        if let Some(&ty) = self.streams.get(&tensor) {
            values.iter_mut().for_each(|v| *v = rounded(ty, *v));
        } else if let Some(factors) = self.weights.get(&tensor) {
            let each = values.len() / factors.len().max(1);
            for (i, v) in values.iter_mut().enumerate() {
                let factor = factors.get(i / each.max(1)).copied().unwrap_or(1.0);
                // a feature that its norm sets to a constant has no weights left
                *v = if factor == 0.0 {
                    0.0
                } else {
                    rounded(self.ty, *v * factor) / factor
                };
            }
        }
    }
}

/// What rounding by itself does to each tensor of a compiled model.
pub struct Rounding {
    /// By the tensor's number: the largest error, relative as in [`difference`], and what one rounding more or less of the tensor's
    /// largest element would be.
    tensors: Vec<(f64, f64)>,
}

impl Rounding {
    /// Evaluates every item once more. `exact` are the evaluator's tensors for the same inputs.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn of(
        graph: &Graph,
        compiled: &Compiled,
        inputs: &[(String, Vec<f32>)],
        items: usize,
        exact: &Expected,
    ) -> Result<Rounding, Error> {
        let places = Places::of(graph, compiled);
        let rounded: Expected = items_of(inputs, items)
            .map(|one| evaluate_adjusted(graph, &one, |t, v| places.round(t, v)).map_err(Error::input))
            .collect::<Result<_, _>>()?;
        let epsilon = match places.ty {
            Ty::F16 => 2f64.powi(-10),
            Ty::F32 => f64::from(f32::EPSILON),
        };
        let of = |t: TensorId| {
            let want = all_items(exact, t);
            let got: Vec<f32> = all_items(&rounded, t).iter().map(|v| *v as f32).collect();
            let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let scale = scale(&want);
            (
                difference(&got, &want).1,
                if scale > 0.0 {
                    epsilon * largest / scale
                } else {
                    0.0
                },
            )
        };
        Ok(Rounding {
            tensors: (0..graph.tensors().len() as u32)
                .map(|t| of(TensorId(t)))
                .collect(),
        })
    }

    /// The largest error that rounding by itself makes in a tensor.
    pub fn error(&self, tensor: TensorId) -> f64 {
        self.tensors[tensor.0 as usize].0
    }

    /// The largest error that the mesh may make: half as much again, and one rounding that falls the other way, because sums are f32 on
    /// the mesh and f64 here.
    pub fn most(&self, tensor: TensorId) -> f64 {
        let (error, one) = self.tensors[tensor.0 as usize];
        1.5 * error + one
    }
}
