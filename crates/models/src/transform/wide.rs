//! More features in all inner layers.
//!
//! First every activation's feature axis is followed through the graph: it begins at the outputs of products (but not those
//! that give a graph output) and of embeddings, and goes through everything that works feature by feature. All widths along
//! those axes are multiples of a unit, their greatest common divisor (64 in a ResNet-18, the width in a GPT). The unit times
//! sqrt(1 / (1 - s)), rounded down, then up until the heads of attentions divide their width, is the new one; that is how
//! the paper comes from 64 to 90 and from 768 to 1092. Then the graph is made anew with the new widths.

use super::rebuild::Rebuild;
use super::{TransformError, Transformed, TransformedLayer, Widened};
use crate::graph::{Graph, Node, NodeId, Op, TensorId};
use crate::sparsity::selection::last_product;
use crate::sparsity::{kept, maskable};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn wide(graph: &Graph, sparsity: f64, seed: u64) -> Result<Transformed, TransformError> {
    let heads: BTreeSet<NodeId> = graph
        .outputs()
        .iter()
        .filter_map(|t| last_product(graph, *t))
        .collect();
    let mut axes = BTreeMap::new();
    for id in graph.nodes_in_order() {
        if let Some(axis) = feature_axis(graph, id, &heads, &axes)? {
            axes.insert(graph.node(id).output, axis);
        }
    }
    if let Some(t) = graph.outputs().iter().find(|t| axes.contains_key(t)) {
        let tensor = graph.tensor(*t);
        let node = graph.producer(*t).map(|id| graph.node(id));
        return Err(TransformError::CannotWiden {
            node: node.map_or(String::new(), |n| n.name.clone()),
            op: node.map_or("", |n| n.op.name()),
            why: format!(
                "graph output `{}` would widen; expected a product that gives it",
                tensor.name
            ),
        });
    }
    let factor = (1.0 / (1.0 - sparsity)).sqrt();
    let widths = Widths::new(graph, &axes, factor);
    if !axes.is_empty() && widths.new_unit == widths.unit {
        let unit = widths.unit;
        return Err(TransformError::NoWider { unit, factor });
    }
    let mut widener = Widener {
        rebuild: Rebuild::new(graph, seed)?,
        axes: &axes,
        heads: &heads,
        widths,
        sparse: maskable(graph).into_iter().collect(),
        sparsity,
        layers: Vec::new(),
        widened: Vec::new(),
    };
    for id in graph.nodes_in_order() {
        widener.node(id)?;
    }
    Ok(Transformed {
        layers: widener.layers,
        widened: widener.widened,
        graph: widener.rebuild.finish()?,
        left: Vec::new(),
    })
}

/// The axis of a node's output along which it widens, given those of what it reads.
fn feature_axis(
    graph: &Graph,
    id: NodeId,
    heads: &BTreeSet<NodeId>,
    axes: &BTreeMap<TensorId, usize>,
) -> Result<Option<usize>, TransformError> {
    let node = graph.node(id);
    let cannot = |why: &str| {
        Err(TransformError::CannotWiden {
            node: node.name.clone(),
            op: node.op.name(),
            why: why.into(),
        })
    };
    let rank = |t: TensorId| graph.tensor(t).shape.len();
    let out = &graph.tensor(node.output).shape;
    let first = axes.get(&node.inputs[0]).copied();
    let constant = |i: usize| graph.tensor(node.inputs[i]).is_constant();
    match &node.op {
        Op::Conv { .. } | Op::Linear if !constant(1) => cannot("its weight is no constant"),
        Op::Conv { .. } => Ok((!heads.contains(&id)).then_some(1)),
        Op::Linear => Ok((!heads.contains(&id)).then_some(out.len() - 1)),
        Op::Gather if constant(1) => Ok(Some(out.len() - 1)),
        Op::Gather => cannot("its table is no constant"),
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Where => {
            let activations: Vec<TensorId> = node
                .inputs
                .iter()
                .copied()
                .filter(|t| !graph.tensor(*t).is_constant())
                .collect();
            // counted from the last axis, as broadcasting does
            let of = |t: &TensorId| axes.get(t).map(|a| rank(*t) - a);
            let Some(back) = activations.iter().find_map(of) else {
                return Ok(None);
            };
            let fits = |t: &TensorId| {
                let shape = &graph.tensor(*t).shape;
                of(t) == Some(back)
                    || (of(t).is_none() && (shape.len() < back || shape[shape.len() - back] == 1))
            };
            match activations.iter().all(fits) {
                true => Ok(Some(out.len() - back)),
                false => cannot("it joins features that widen with some that don't"),
            }
        }
        Op::Attention { .. } => match node.inputs.iter().all(|t| axes.get(t) == Some(&2)) {
            true => Ok(Some(2)),
            false => Ok(None),
        },
        Op::Transpose { perm } => Ok(first.and_then(|a| perm.iter().position(|p| *p == a))),
        Op::Reshape => {
            let Some(axis) = first else { return Ok(None) };
            let shape = &graph.tensor(node.inputs[0]).shape;
            let before: usize = shape[..axis].iter().product();
            let found = (0..out.len()).find(|i| {
                out[..*i].iter().product::<usize>() == before && out[*i].is_multiple_of(shape[axis])
            });
            match found {
                Some(axis) => Ok(Some(axis)),
                None => cannot("it splits the features"),
            }
        }
        Op::ReduceMean { axes: over, keep } => Ok(first.filter(|a| !over.contains(a)).map(|a| match keep {
            true => a,
            false => a - over.iter().filter(|o| **o < a).count(),
        })),
        Op::MatMul if node.inputs.iter().any(|t| axes.contains_key(t)) => {
            cannot("products of activations are not followed; attention as one operator is")
        }
        _ => Ok(first),
    }
}

/// Old widths and new ones.
struct Widths {
    unit: usize,
    new_unit: usize,
}

impl Widths {
    fn new(graph: &Graph, axes: &BTreeMap<TensorId, usize>, factor: f64) -> Widths {
        let (mut unit, mut heads) = (0, Vec::new());
        for id in graph.nodes_in_order() {
            let node = graph.node(id);
            let Some(axis) = axes.get(&node.output) else {
                continue;
            };
            let width = graph.tensor(node.output).shape[*axis];
            match node.op {
                Op::Conv { .. } | Op::Linear | Op::Gather => unit = gcd(unit, width),
                Op::Slice { axis: a, start, end } if a == *axis => unit = gcd(gcd(unit, start), end),
                Op::Attention { heads: h, .. } => heads.push((width, h)),
                _ => {}
            }
        }
        let unit = unit.max(1);
        let mut new_unit = ((unit as f64 * factor + 1e-9).floor() as usize).max(1);
        // a multiple of all heads, at the latest, will do
        while heads
            .iter()
            .any(|(width, h)| !(width / unit * new_unit).is_multiple_of(*h))
        {
            new_unit += 1;
        }
        Widths { unit, new_unit }
    }

    fn new_width(&self, width: usize) -> usize {
        width / self.unit * self.new_unit
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

struct Widener<'a> {
    rebuild: Rebuild<'a>,
    axes: &'a BTreeMap<TensorId, usize>,
    heads: &'a BTreeSet<NodeId>,
    widths: Widths,
    /// Weights that become sparse.
    sparse: BTreeSet<TensorId>,
    sparsity: f64,
    layers: Vec<TransformedLayer>,
    widened: Vec<Widened>,
}

impl Widener<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), TransformError> {
        let old = self.rebuild.old;
        let node = old.node(id);
        let mut op = node.op.clone();
        let out_axis = self.axes.get(&node.output).copied();
        let in_axis = self.axes.get(&node.inputs[0]).copied();
        let mut shape = old.tensor(node.output).shape.clone();
        if let Some(axis) = out_axis {
            shape[axis] = self.widths.new_width(shape[axis]);
        }
        let mut inputs = Vec::new();
        for (i, t) in node.inputs.iter().enumerate() {
            if !old.tensor(*t).is_constant() {
                inputs.push(self.rebuild.carry(*t)?);
                continue;
            }
            let wide = self.constant_axes(id, i, in_axis, out_axis);
            inputs.push(self.constant(*t, &wide)?);
        }
        match &mut op {
            Op::Conv { groups, .. } if in_axis.is_some() && *groups > 1 => {
                let channels = old.tensor(node.inputs[0]).shape[1];
                if *groups != channels {
                    return Err(TransformError::CannotWiden {
                        node: node.name.clone(),
                        op: node.op.name(),
                        why: "its groups are neither one nor one a channel".into(),
                    });
                }
                *groups = self.widths.new_width(channels);
            }
            Op::Slice { axis, start, end } if Some(*axis) == in_axis => {
                (*start, *end) = (self.widths.new_width(*start), self.widths.new_width(*end));
            }
            _ => {}
        }
        let output = old.tensor(node.output).name.clone();
        let made = self.rebuild.add(&node.name, &op, &inputs, output, &shape)?;
        self.rebuild.map.insert(node.output, made);
        Ok(())
    }

    /// The axes of a node's constant input along which it widens.
    fn constant_axes(
        &self,
        id: NodeId,
        input: usize,
        in_axis: Option<usize>,
        out_axis: Option<usize>,
    ) -> Vec<usize> {
        let node: &Node = self.rebuild.old.node(id);
        let shape = &self.rebuild.old.tensor(node.inputs[input]).shape;
        let out = out_axis.is_some() && !self.heads.contains(&id);
        match &node.op {
            Op::Conv { groups, .. } if input == 1 => {
                // a depthwise filter has one input channel, wide or not
                let inner = in_axis.is_some() && *groups == 1;
                (0..2).filter(|a| [out, inner][*a]).collect()
            }
            Op::Linear if input == 1 => {
                let inner = in_axis.is_some();
                (0..2).filter(|a| [out, inner][*a]).collect()
            }
            // biases
            Op::Conv { .. } | Op::Linear => (0..1).filter(|_| out).collect(),
            Op::Gather if input == 1 => vec![shape.len() - 1],
            Op::Gather => Vec::new(),
            Op::BatchNorm { .. } | Op::LayerNorm { .. } => (0..1).filter(|_| in_axis.is_some()).collect(),
            _ => {
                // broadcast to the output from the last axis on
                let rank = self.rebuild.old.tensor(node.output).shape.len();
                let Some(back) = out_axis.map(|a| rank - a) else {
                    return Vec::new();
                };
                match shape.len() >= back && shape[shape.len() - back] > 1 {
                    true => vec![shape.len() - back],
                    false => Vec::new(),
                }
            }
        }
    }

    /// A constant in the new graph, widened along some axes; once, however many nodes read it.
    fn constant(&mut self, t: TensorId, wide: &[usize]) -> Result<TensorId, TransformError> {
        let old = self.rebuild.old;
        let tensor = old.tensor(t);
        let mut shape = tensor.shape.clone();
        for axis in wide {
            shape[*axis] = self.widths.new_width(shape[*axis]);
        }
        if let Some(there) = self.rebuild.map.get(&t) {
            if self.rebuild.new.tensor(*there).shape == shape {
                return Ok(*there);
            }
            return Err(TransformError::CannotWiden {
                node: tensor.name.clone(),
                op: "constant",
                why: "two nodes that share it would widen it differently".into(),
            });
        }
        if shape == tensor.shape {
            return Ok(self.rebuild.carry(t)?);
        }
        let elements: usize = shape.iter().product();
        let nonzeros = match self.sparse.contains(&t) {
            true => tensor.nonzero_count().unwrap_or(tensor.elements()),
            false => elements as u64,
        };
        let there = if shape.len() == 1 {
            self.rebuild.longer(t, &shape)?
        } else {
            // a row's sum of squares stays
            let rows = tensor.elements() as f64 / tensor.shape[0] as f64;
            let new_rows = nonzeros as f64 / shape[0] as f64;
            let scale = self.rebuild.root_mean_square(t);
            let table = !self.sparse.contains(&t) && shape[0] == tensor.shape[0];
            let deviation = match table {
                true => scale,
                false => scale * (rows / new_rows).sqrt(),
            };
            self.rebuild
                .weight(t, &tensor.name, &shape, nonzeros, deviation)?
        };
        self.rebuild.map.insert(t, there);
        if self.sparse.contains(&t) {
            self.layers.push(TransformedLayer::new(
                (tensor.name.clone(), tensor.shape.clone(), nonzeros),
                vec![(tensor.name.clone(), shape, nonzeros)],
                kept(elements, self.sparsity) as u64,
                1.0 - nonzeros as f64 / elements as f64,
            ));
        } else {
            self.widened.push(Widened {
                name: tensor.name.clone(),
                from: tensor.shape.clone(),
                to: shape,
            });
        }
        Ok(there)
    }
}
