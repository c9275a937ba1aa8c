//! Transformations that replace a layer by several: parallel branches, two factors, sparse plus low rank.

use super::rebuild::Rebuild;
use super::{Transform, TransformError, Transformed, TransformedLayer};
use crate::graph::{Graph, GraphError, Node, NodeId, Op, TensorId};
use crate::sparsity::{kept, maskable};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn split(
    graph: &Graph,
    which: Transform,
    sparsity: f64,
    seed: u64,
) -> Result<Transformed, TransformError> {
    let weights: BTreeSet<TensorId> = maskable(graph).into_iter().collect();
    let mut splitter = Splitter {
        rebuild: Rebuild::new(graph, seed)?,
        sparsity,
        branches: BTreeMap::new(),
        layers: Vec::new(),
    };
    let mut left = Vec::new();
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        let layer = matches!(node.op, Op::Conv { .. } | Op::Linear)
            && weights.contains(&node.inputs[1])
            // a weight that several layers share stays shared
            && graph.consumers(node.inputs[1]).len() == 1;
        let grouped = matches!(node.op, Op::Conv { groups, .. } if groups > 1);
        match which {
            Transform::Parallel if layer => splitter.parallel(id)?,
            Transform::Parallel if splitter.branches.contains_key(&node.inputs[0]) => splitter.norms(node)?,
            Transform::Factorized if layer && !grouped => splitter.factorized(node)?,
            Transform::Doped if layer && !grouped && splitter.low_rank_fits(node) => splitter.doped(node)?,
            _ => {
                if layer {
                    left.push(graph.tensor(node.inputs[1]).name.clone());
                }
                splitter.rebuild.copy(node)?;
            }
        }
    }
    Ok(Transformed {
        layers: splitter.layers,
        graph: splitter.rebuild.finish()?,
        widened: Vec::new(),
        left,
    })
}

/// What a branch's result is called: as the layer's, if it is the only one.
fn branch_name(output: &str, index: usize, count: usize) -> String {
    match count {
        1 => output.into(),
        _ => format!("{output}.{index}"),
    }
}

struct Splitter<'a> {
    rebuild: Rebuild<'a>,
    sparsity: f64,
    /// Branches of a layer that are not summed yet: each gets its own batch norm first.
    branches: BTreeMap<TensorId, Vec<TensorId>>,
    layers: Vec<TransformedLayer>,
}

/// A layer's weight: inputs a position, outputs, nonzero values.
struct Dense {
    weight: TensorId,
    name: String,
    shape: Vec<usize>,
    inputs: usize,
    outputs: usize,
    nonzeros: u64,
    /// Root mean square of the values other than 0.
    scale: f64,
}

impl Splitter<'_> {
    fn dense(&self, node: &Node) -> Dense {
        let weight = node.inputs[1];
        let tensor = self.rebuild.old.tensor(weight);
        let nonzeros = tensor.nonzero_count().unwrap_or(tensor.elements());
        Dense {
            weight,
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            inputs: tensor.shape[1..].iter().product(),
            outputs: tensor.shape[0],
            nonzeros,
            scale: self.rebuild.root_mean_square(weight)
                * (tensor.elements() as f64 / nonzeros.max(1) as f64).sqrt(),
        }
    }

    /// What the layer reads: the activation, and the bias if there is one.
    fn reads(&mut self, node: &Node) -> Result<(TensorId, Vec<TensorId>), GraphError> {
        let x = self.rebuild.carry(node.inputs[0])?;
        let mut bias = Vec::new();
        for t in &node.inputs[2..] {
            bias.push(self.rebuild.carry(*t)?);
        }
        Ok((x, bias))
    }

    fn parallel(&mut self, id: NodeId) -> Result<(), GraphError> {
        let old = self.rebuild.old;
        let node = old.node(id);
        let dense = self.dense(node);
        let (x, bias) = self.reads(node)?;
        let branches = (1.0 / (1.0 - self.sparsity)).round().max(1.0) as u64;
        let count = branches as usize;
        let output = old.tensor(node.output).name.clone();
        let (mut made, mut outputs) = (Vec::new(), Vec::new());
        for i in 0..branches {
            let nonzeros = dense.nonzeros / branches + u64::from(i < dense.nonzeros % branches);
            let name = format!("{}.{i}", dense.name);
            let weight = self
                .rebuild
                .weight(dense.weight, &name, &dense.shape, nonzeros, dense.scale)?;
            made.push((name, dense.shape.clone(), nonzeros));
            // one bias is as good as the sum of several
            let bias: &[TensorId] = if i == 0 { &bias } else { &[] };
            let inputs = [&[x, weight], bias].concat();
            outputs.push(self.rebuild.add(
                &format!("{}.{i}", node.name),
                &node.op,
                &inputs,
                branch_name(&output, i as usize, count),
                &[],
            )?);
        }
        let elements: usize = dense.shape.iter().product();
        let all = branches * elements as u64;
        self.layers.push(TransformedLayer::new(
            (dense.name, dense.shape, dense.nonzeros),
            made,
            branches * kept(elements, self.sparsity) as u64,
            1.0 - dense.nonzeros as f64 / all as f64,
        ));
        let readers = old.consumers(node.output);
        let norm = |r: &NodeId| {
            let reader = old.node(*r);
            matches!(reader.op, Op::BatchNorm { .. }) && reader.inputs[0] == node.output
        };
        if readers.len() == 1 && readers.iter().all(norm) && !old.outputs().contains(&node.output) {
            self.branches.insert(node.output, outputs);
            return Ok(());
        }
        self.sum(node, &outputs)
    }

    /// The batch norm after a layer, for each of its branches. Each branch has a share of the variance; scaled by the root
    /// of their number, the sum is of the scale that the one norm's result had.
    fn norms(&mut self, node: &Node) -> Result<(), GraphError> {
        let branches = self.branches.remove(&node.inputs[0]).unwrap_or_default();
        let count = branches.len();
        let share = 1.0 / count as f64;
        let output = self.rebuild.old.tensor(node.output).name.clone();
        let mut outputs = Vec::new();
        for (i, branch) in branches.into_iter().enumerate() {
            let mut inputs = vec![branch];
            // scale, bias, mean, variance
            for (t, factor) in node.inputs[1..].iter().zip([share.sqrt(), share, share, share]) {
                let tensor = self.rebuild.old.tensor(*t);
                let name = self.rebuild.new.fresh_name(&format!("{}.{i}", tensor.name));
                inputs.push(match &tensor.data {
                    Some(data) => {
                        let data = data.iter().map(|v| (f64::from(*v) * factor) as f32).collect();
                        self.rebuild.new.add_constant(name, &tensor.shape, data)?
                    }
                    None => self.rebuild.new.add_abstract_constant(name, &tensor.shape)?,
                });
            }
            outputs.push(self.rebuild.add(
                &format!("{}.{i}", node.name),
                &node.op,
                &inputs,
                branch_name(&output, i, count),
                &[],
            )?);
        }
        self.sum(node, &outputs)
    }

    /// The sum of some tensors, in place of a node's output.
    fn sum(&mut self, node: &Node, parts: &[TensorId]) -> Result<(), GraphError> {
        let output = self.rebuild.old.tensor(node.output).name.clone();
        let mut sum = parts[0];
        for (i, part) in parts.iter().enumerate().skip(1) {
            let name = match i + 1 == parts.len() {
                true => output.clone(),
                false => format!("{output}.sum{i}"),
            };
            sum = self.rebuild.add(
                &format!("{}.sum{i}", node.name),
                &Op::Add,
                &[sum, *part],
                name,
                &[],
            )?;
        }
        self.rebuild.map.insert(node.output, sum);
        Ok(())
    }

    /// Two layers in a row: to `rank` features as the layer reads its input, and from there to its outputs, with the bias.
    /// `nonzeros` are those of the two weights.
    fn factors(
        &mut self,
        node: &Node,
        dense: &Dense,
        nonzeros: [u64; 2],
        (rank, bias): (usize, &[TensorId]),
        output: String,
        made: &mut Vec<(String, Vec<usize>, u64)>,
    ) -> Result<TensorId, GraphError> {
        let x = self.rebuild.carry(node.inputs[0])?;
        let first = [&[rank], &dense.shape[1..]].concat();
        let mut second = vec![dense.outputs, rank];
        second.resize(dense.shape.len(), 1);
        // the first keeps the mean square, the second gives what the dense layer would
        let deviations = [
            (rank as f64 / nonzeros[0].max(1) as f64).sqrt(),
            dense.scale
                * (dense.nonzeros as f64 * self.share(dense, rank) / nonzeros[1].max(1) as f64).sqrt(),
        ];
        let then = match &node.op {
            Op::Conv { .. } => Op::Conv {
                strides: [1; 2],
                pads: [0; 4],
                dilations: [1; 2],
                groups: 1,
            },
            op => op.clone(),
        };
        let mut t = x;
        for (i, (letter, shape, op)) in [("u", first, &node.op), ("v", second, &then)]
            .into_iter()
            .enumerate()
        {
            let name = format!("{}.{letter}", dense.name);
            let weight = self
                .rebuild
                .weight(dense.weight, &name, &shape, nonzeros[i], deviations[i])?;
            made.push((name, shape, nonzeros[i]));
            let output = match i {
                0 => format!("{output}.{letter}"),
                _ => output.clone(),
            };
            let bias: &[TensorId] = if i == 1 { bias } else { &[] };
            let inputs = [&[t, weight], bias].concat();
            t = self
                .rebuild
                .add(&format!("{}.{letter}", node.name), op, &inputs, output, &[])?;
        }
        Ok(t)
    }

    /// The part of the dense layer's variance that a product of this rank is to give.
    fn share(&self, dense: &Dense, rank: usize) -> f64 {
        let weights = rank * (dense.inputs + dense.outputs);
        (weights as f64 / (dense.inputs * dense.outputs) as f64).min(1.0)
    }

    fn factorized(&mut self, node: &Node) -> Result<(), GraphError> {
        let dense = self.dense(node);
        let (inputs, outputs) = (dense.inputs, dense.outputs);
        let exact = (inputs * outputs) as f64 / ((inputs + outputs) as f64 * (1.0 - self.sparsity));
        let rank = (exact - 1e-9).ceil().max(1.0) as usize;
        let sizes = [(rank * inputs) as u64, (rank * outputs) as u64];
        let all = sizes[0] + sizes[1];
        let first = (u128::from(dense.nonzeros) * u128::from(sizes[0]) / u128::from(all)) as u64;
        let nonzeros = [first, dense.nonzeros - first];
        let mut made = Vec::new();
        let output = self.rebuild.old.tensor(node.output).name.clone();
        let bias = self.reads(node)?.1;
        let t = self.factors(node, &dense, nonzeros, (rank, &bias), output, &mut made)?;
        self.rebuild.map.insert(node.output, t);
        self.layers.push(TransformedLayer::new(
            (dense.name, dense.shape, dense.nonzeros),
            made,
            sizes
                .iter()
                .map(|n| kept(*n as usize, self.sparsity) as u64)
                .sum(),
            1.0 - dense.nonzeros as f64 / all as f64,
        ));
        Ok(())
    }

    fn doped_rank(&self, dense: &Dense) -> usize {
        let elements = (dense.inputs * dense.outputs) as f64;
        let exact = self.sparsity * elements / (dense.inputs + dense.outputs) as f64;
        (exact + 1e-9).floor() as usize
    }

    /// Whether a layer has as many values other than 0 as its low rank would.
    fn low_rank_fits(&self, node: &Node) -> bool {
        let dense = self.dense(node);
        let low = self.doped_rank(&dense) * (dense.inputs + dense.outputs);
        low as u64 <= dense.nonzeros
    }

    fn doped(&mut self, node: &Node) -> Result<(), GraphError> {
        let dense = self.dense(node);
        let elements = dense.inputs * dense.outputs;
        let rank = self.doped_rank(&dense);
        let low = [(rank * dense.inputs) as u64, (rank * dense.outputs) as u64];
        let nonzeros = dense.nonzeros - low[0] - low[1];
        let output = self.rebuild.old.tensor(node.output).name.clone();
        let (x, bias) = self.reads(node)?;
        let name = format!("{}.sparse", dense.name);
        let weight = self
            .rebuild
            .weight(dense.weight, &name, &dense.shape, nonzeros, dense.scale)?;
        let mut made = vec![(name, dense.shape.clone(), nonzeros)];
        let inputs = [&[x, weight], bias.as_slice()].concat();
        let node_name = format!("{}.sparse", node.name);
        let sparse_name = match rank {
            0 => output.clone(),
            _ => format!("{output}.sparse"),
        };
        let sparse = self
            .rebuild
            .add(&node_name, &node.op, &inputs, sparse_name, &[])?;
        if rank == 0 {
            self.rebuild.map.insert(node.output, sparse);
        } else {
            let output = format!("{output}.low");
            let low_rank = self.factors(node, &dense, low, (rank, &[]), output, &mut made)?;
            self.sum(node, &[sparse, low_rank])?;
        }
        self.layers.push(TransformedLayer::new(
            (dense.name, dense.shape, dense.nonzeros),
            made,
            kept(elements, self.sparsity) as u64 + low[0] + low[1],
            1.0 - nonzeros as f64 / elements as f64,
        ));
        Ok(())
    }
}
