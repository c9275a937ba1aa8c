//! From operators to kernels: folds batch norms into what feeds them, adds up convolutions and products whose results are only added
//! (one kernel with several inputs), takes ReLUs into the kernel before, reads through inserted zeros, turns the transpose of an input
//! into the order in which it is fed, lets a product send queries, keys and values head by head, and sees through reshapes that move
//! nothing.

use super::lanes;
use crate::kernels::per_wavelet;
use crate::plan::*;
use crate::{CompileError, Options};
use meshloom_models::{Graph, Node, NodeId, Op, TensorId};
use meshloom_simulator::Machine;
use meshloom_simulator::program::Ty;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A window that moves over a plane, along rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Size.
    pub kernel: [usize; 2],
    /// Elements between output positions.
    pub strides: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    /// Elements between taps.
    pub dilations: [usize; 2],
    /// The plane is the input with zeros inserted: every so many rows and columns there is an element of it.
    pub zeros: [usize; 2],
}

/// The output rectangles hit by each element of a window; `input` is without inserted zeros.
pub fn taps(window: &Window, input: (usize, usize), output: (usize, usize)) -> Vec<Tap> {
    /// The outputs o = first, first + step, ... whose o * stride + offset is an element: number, first, step, its first index, and step.
    fn hits(
        offset: i64,
        stride: usize,
        zeros: usize,
        size: usize,
        out: usize,
    ) -> (usize, usize, usize, usize, usize) {
        let hit = |o: usize| {
            let at = (o * stride) as i64 + offset;
            let element = at >= 0 && at % zeros as i64 == 0 && at / (zeros as i64) < size as i64;
            element.then(|| at as usize / zeros)
        };
        let mut all = (0..out).filter_map(|o| hit(o).map(|i| (o, i)));
        let Some((first, from)) = all.next() else {
            return (0, 0, 1, 0, 1);
        };
        // o and its element both advance by constant steps
        match all.next() {
            None => (1, first, 1, from, 1),
            Some((second, next)) => (2 + all.count(), first, second - first, from, next - from),
        }
    }
    let mut all = Vec::new();
    for a in 0..window.kernel[0] {
        for b in 0..window.kernel[1] {
            let along = |axis: usize, tap: usize, size: usize, out: usize| {
                let offset = (tap * window.dilations[axis]) as i64 - window.pads[axis] as i64;
                hits(offset, window.strides[axis], window.zeros[axis], size, out)
            };
            let (rows, y, step_y, row, stride_y) = along(0, a, input.0, output.0);
            let (columns, x, step_x, column, stride_x) = along(1, b, input.1, output.1);
            if rows > 0 && columns > 0 {
                all.push(Tap {
                    index: a * window.kernel[1] + b,
                    rows,
                    columns,
                    y: y * output.1 + x,
                    x: row * input.1 + column,
                    steps: [step_y, step_x],
                    strides: [stride_y, stride_x],
                });
            }
        }
    }
    all
}

/// Builds the plan's kernels and edges.
pub fn run(graph: &Graph, machine: &Machine, options: &Options) -> Result<Plan, CompileError> {
    let mut r = Rewriter {
        graph,
        skip: options.skip_zeros,
        narrow: machine.link.bits / options.ty.bits() == 1,
        per: per_wavelet(machine, options.ty) as usize,
        lanes: options.lanes,
        plan: Plan {
            name: graph.name.clone(),
            stage_name: String::new(),
            ty: options.ty,
            items: options.items,
            tiles: 1,
            kernels: Vec::new(),
            edges: Vec::new(),
            outputs: Vec::new(),
            places: Vec::new(),
            estimates: Vec::new(),
            balance: Vec::new(),
            regions: Vec::new(),
            weights: Vec::new(),
            early: None,
            next: None,
        },
        uses: BTreeMap::new(),
        done: BTreeSet::new(),
    };
    for (i, &t) in graph.inputs().iter().enumerate() {
        let consumers = graph.consumers(t);
        let first = consumers.first().map(|c| graph.node(*c));
        // a transpose of an input is the order in which the host feeds it
        if let (
            Some(Node {
                op: Op::Transpose { perm },
                output,
                ..
            }),
            1,
        ) = (first, consumers.len())
        {
            let edge = r.edge(*output, Source::Input(i), perm.clone())?;
            r.done.insert(consumers[0]);
            r.uses.insert(*output, Use { edge, flat: false });
        } else {
            let axes = (0..graph.tensor(t).shape.len()).collect();
            let edge = r.edge(t, Source::Input(i), axes)?;
            r.uses.insert(t, Use { edge, flat: false });
        }
    }
    for id in graph.nodes_in_order() {
        if !r.done.contains(&id) {
            r.node(id)?;
        }
    }
    for &t in graph.outputs() {
        let name = graph.tensor(t).name.clone();
        let Some(u) = r.uses.get(&t) else {
            return Err(CompileError::Unsupported {
                node: name,
                message: "the output is a constant or an input: nothing to run".into(),
            });
        };
        r.plan.outputs.push((name, *u));
    }
    Ok(r.plan)
}

struct Rewriter<'a> {
    graph: &'a Graph,
    skip: bool,
    /// One element a wavelet: a flattening of one sample changes nothing in the stream.
    narrow: bool,
    /// Elements a wavelet.
    per: usize,
    /// Most lanes of a stream.
    lanes: usize,
    plan: Plan,
    /// Where each tensor is.
    uses: BTreeMap<TensorId, Use>,
    /// Nodes that a kernel has taken in.
    done: BTreeSet<NodeId>,
}

/// The axis of a tensor's features: the channels of images, else the last.
fn feature_axis(shape: &[usize]) -> usize {
    if shape.len() == 4 { 1 } else { shape.len() - 1 }
}

impl<'a> Rewriter<'a> {
    fn bad<T>(&self, node: &Node, message: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Unsupported {
            node: node.name.clone(),
            message: message.into(),
        })
    }

    fn shape(&self, t: TensorId) -> &'a [usize] {
        &self.graph.tensor(t).shape
    }

    fn edge(&mut self, tensor: TensorId, source: Source, axes: Vec<usize>) -> Result<usize, CompileError> {
        let t = self.graph.tensor(tensor);
        let ids = self.graph.consumers(tensor).iter().any(|c| {
            let node = self.graph.node(*c);
            node.op == Op::Gather && node.inputs[0] == tensor
        });
        if t.shape.contains(&0) || (t.shape.len() < 2 && !ids) {
            return Err(CompileError::Unsupported {
                node: t.name.clone(),
                message: format!(
                    "its shape is {:?}; the mesh takes tensors of at least two axes, one of them features",
                    t.shape
                ),
            });
        }
        let axis = (!ids).then(|| feature_axis(&t.shape));
        self.plan.edges.push(Edge {
            tensor,
            name: t.name.clone(),
            source,
            layout: Layout::new(&t.shape, axis),
            // token numbers need not be f16 numbers
            ty: if ids { Ty::F32 } else { self.plan.ty },
            axes,
            shape: t.shape.clone(),
            to: Vec::new(),
            ways: Vec::new(),
        });
        Ok(self.plan.edges.len() - 1)
    }

    fn constant(&self, node: &Node, i: usize) -> Result<Arc<Vec<f32>>, CompileError> {
        match self.graph.tensor(node.inputs[i]).data.clone() {
            Some(d) => Ok(d),
            None => self.bad(node, format!("its input {i} must be a constant with values")),
        }
    }

    fn input(&self, node: &Node, i: usize) -> Result<Use, CompileError> {
        match self.uses.get(&node.inputs[i]) {
            Some(u) => Ok(*u),
            None => self.bad(
                node,
                format!("its input {i} is a constant, which only weights may be"),
            ),
        }
    }

    /// The only consumer of a node's output, if the tensor is not a graph output as well.
    fn only_consumer(&self, id: NodeId) -> Option<NodeId> {
        let t = self.graph.node(id).output;
        match self.graph.consumers(t).as_slice() {
            [one] if !self.graph.outputs().contains(&t) => Some(*one),
            _ => None,
        }
    }

    /// Takes a following node in, if it is of this kind and nothing else reads what is before it.
    fn take(&self, nodes: &mut Vec<NodeId>, wanted: impl Fn(&Op) -> bool) -> Option<NodeId> {
        let last = *nodes.last().expect("a kernel has nodes");
        let next = self
            .only_consumer(last)
            .filter(|n| wanted(&self.graph.node(*n).op))?;
        nodes.push(next);
        Some(next)
    }

    fn take_relu(&self, nodes: &mut Vec<NodeId>) -> bool {
        self.take(nodes, is_relu).is_some()
    }

    fn kernel(&mut self, kind: Kind, inputs: Vec<Use>, nodes: Vec<NodeId>) -> Result<usize, CompileError> {
        let first = self.graph.node(nodes[0]);
        let output = self.graph.node(*nodes.last().expect("a kernel has nodes")).output;
        let index = self.plan.kernels.len();
        let edge = self.edge(output, Source::Kernel(index), Vec::new())?;
        for u in &inputs {
            self.plan.edges[u.edge].to.push(index);
        }
        let mut name = if first.name.is_empty() {
            self.graph.tensor(first.output).name.clone()
        } else {
            first.name.clone()
        };
        if self.plan.kernels.iter().any(|k| k.name == name) {
            name = format!("{name}.{index}");
        }
        self.done.extend(&nodes);
        self.uses.insert(output, Use { edge, flat: false });
        self.plan.kernels.push(Kernel {
            name,
            kind,
            inputs,
            output: edge,
            nodes,
        });
        Ok(edge)
    }

    fn node(&mut self, id: NodeId) -> Result<(), CompileError> {
        let graph = self.graph;
        let node = graph.node(id);
        match &node.op {
            Op::Conv { .. } | Op::Linear => match self.sum_of(id) {
                // comes with the last of the additions
                Some(_) => Ok(()),
                None => self.linear(id),
            },
            Op::Add if self.summands(id).is_some() => {
                if self.sum_of(id) == Some(id) {
                    self.sum(id)
                } else {
                    Ok(())
                }
            }
            Op::Add | Op::Mul => self.element_wise(id),
            op if is_relu(op) => self.pointwise(id, Function::Relu),
            Op::Clip { min, max } => {
                // the graph has finite limits only: the largest numbers stand for none
                let least = if *min == f32::MIN { f32::NEG_INFINITY } else { *min };
                let most = if *max == f32::MAX { f32::INFINITY } else { *max };
                self.pointwise(id, Function::Clip { least, most })
            }
            Op::Gelu { tanh } => self.pointwise(id, Function::Gelu { tanh: *tanh }),
            Op::BatchNorm { epsilon } => {
                if self.sum_of(id).is_some() {
                    return Ok(());
                }
                let (scale, shift) = self.norm(node, *epsilon)?;
                let mut nodes = vec![id];
                let relu = self.take_relu(&mut nodes);
                let input = self.input(node, 0)?;
                let to_f32 = |v: Vec<f64>| Arc::new(v.into_iter().map(|x| x as f32).collect());
                let affine = Function::Affine {
                    scale: to_f32(scale),
                    shift: to_f32(shift),
                    relu,
                };
                self.kernel(Kind::Pointwise(affine), vec![input], nodes).map(drop)
            }
            Op::ZeroInsert { .. } => {
                let readers = graph.consumers(node.output);
                let convolutions = readers
                    .iter()
                    .all(|r| matches!(graph.node(*r).op, Op::Conv { .. }));
                if convolutions && !graph.outputs().contains(&node.output) {
                    return Ok(());
                }
                self.bad(node, "inserted zeros are taken in by convolutions only")
            }
            Op::Gather => self.embedding(id),
            Op::LayerNorm { epsilon } => {
                let norm = Norm {
                    scale: self.constant(node, 1)?,
                    shift: self.constant(node, 2)?,
                    epsilon: *epsilon,
                };
                let input = self.input(node, 0)?;
                self.kernel(Kind::LayerNorm(Arc::new(norm)), vec![input], vec![id])
                    .map(drop)
            }
            Op::Slice { .. } => {
                let readers = graph.consumers(node.output);
                if readers
                    .iter()
                    .all(|r| matches!(graph.node(*r).op, Op::Attention { .. }))
                {
                    return Ok(());
                }
                self.bad(
                    node,
                    "a slice is run only as the queries, keys or values of an attention",
                )
            }
            Op::Attention { heads, causal } => self.attention(id, *heads, *causal),
            Op::MaxPool {
                kernel,
                strides,
                pads,
            } => self.pool(id, true, false, *kernel, *strides, *pads),
            Op::AvgPool {
                kernel,
                strides,
                pads,
                count_include_pad,
            } => self.pool(id, false, *count_include_pad, *kernel, *strides, *pads),
            Op::Softmax { axis } => {
                let features = feature_axis(self.shape(node.inputs[0]));
                if *axis != features {
                    return self.bad(
                        node,
                        format!(
                            "softmax over axis {axis}: on the mesh it runs over the features, axis {features}"
                        ),
                    );
                }
                let input = self.input(node, 0)?;
                self.kernel(Kind::Softmax, vec![input], vec![id]).map(drop)
            }
            Op::Reshape => self.reshape(id),
            Op::Transpose { perm } => self.bad(
                node,
                format!(
                    "transpose {perm:?} inside the model: on the mesh only that of an input used nowhere else"
                ),
            ),
            op => self.bad(node, format!("the operator {} has no kernel", op.name())),
        }
    }

    fn reshape(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let (from, to) = (self.shape(node.inputs[0]), self.shape(node.output));
        let input = self.input(node, 0)?;
        // axes before the features may be split and merged at will
        let rows = |s: &[usize]| s.len() < 4 && s.last() == from.last();
        if from == to || (rows(from) && rows(to)) {
            self.uses.insert(node.output, input);
            return Ok(());
        }
        let p: usize = from[2..].iter().product();
        if from.len() != 4 || to.len() != 2 || to[0] != from[0] || to[1] != from[1] * p {
            return self.bad(
                node,
                format!("reshape {from:?} to {to:?}: on the mesh only [n, c, ...] to [n, c * ...], or of axes before the features"),
            );
        }
        if p == 1 || (from[0] == 1 && self.narrow) {
            let flat = Use {
                edge: input.edge,
                flat: true,
            };
            self.uses.insert(node.output, flat);
            return Ok(());
        }
        self.kernel(Kind::Flatten, vec![input], vec![id]).map(drop)
    }

    fn pointwise(&mut self, id: NodeId, function: Function) -> Result<(), CompileError> {
        let input = self.input(self.graph.node(id), 0)?;
        self.kernel(Kind::Pointwise(function), vec![input], vec![id])
            .map(drop)
    }

    /// A sum or product of two tensors, or of a tensor and a constant of each feature.
    fn element_wise(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let multiply = matches!(node.op, Op::Mul);
        let mut nodes = vec![id];
        if let Some(c) = (0..2).find(|i| self.graph.tensor(node.inputs[*i]).data.is_some()) {
            let shape = self.shape(node.output);
            let features = shape[feature_axis(shape)];
            let values = self.constant(node, c)?;
            let own = self.shape(node.inputs[c]);
            // aligned at the last axes, only that of the features may differ from 1
            let axis = feature_axis(shape) as i64 - (shape.len() as i64 - own.len() as i64);
            let by_feature = own.iter().enumerate().all(|(i, n)| *n == 1 || i as i64 == axis);
            if !by_feature || self.shape(node.inputs[1 - c]) != shape {
                return self.bad(
                    node,
                    format!("a constant of shape {own:?}: on the mesh one number, or one for each feature"),
                );
            }
            let each = Arc::new(
                (0..features)
                    .map(|f| values[f % values.len()])
                    .collect::<Vec<f32>>(),
            );
            let other = |v: f32| Arc::new(vec![v; features]);
            let relu = self.take_relu(&mut nodes);
            let (scale, shift) = if multiply {
                (each, other(0.0))
            } else {
                (other(1.0), each)
            };
            let input = self.input(node, 1 - c)?;
            let function = Function::Affine { scale, shift, relu };
            return self
                .kernel(Kind::Pointwise(function), vec![input], nodes)
                .map(drop);
        }
        let inputs = vec![self.input(node, 0)?, self.input(node, 1)?];
        if self.shape(node.inputs[0]) != self.shape(node.inputs[1]) || inputs[0].flat || inputs[1].flat {
            return self.bad(
                node,
                "element-wise operators take two tensors of one shape on the mesh",
            );
        }
        if inputs[0].edge == inputs[1].edge {
            return self.bad(node, "both operands are one tensor");
        }
        if inputs
            .iter()
            .any(|u| self.plan.edges[u.edge].layout.order.is_some())
        {
            return self.bad(node, "an operand whose features are not in order");
        }
        let relu = self.take_relu(&mut nodes);
        self.kernel(Kind::Binary { multiply, relu }, inputs, nodes)
            .map(drop)
    }

    /// Rows of a table, with a constant that is added to them.
    fn embedding(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let values = self.constant(node, 1)?;
        let input = self.input(node, 0)?;
        let table = self.shape(node.inputs[1]);
        let out = self.shape(node.output);
        let mut nodes = vec![id];
        let mut start = None;
        if let Some(next) = self.only_consumer(id)
            && matches!(self.graph.node(next).op, Op::Add)
        {
            let add = self.graph.node(next);
            let other = add.inputs.iter().find(|t| **t != node.output);
            let constant = other.map(|t| self.graph.tensor(*t)).filter(|t| t.data.is_some());
            // [positions, width], the same for all samples
            if let Some(t) = constant
                && let Some(data) = &t.data
                && self.shape(add.output) == out
                && out.ends_with(t.shape.trim_ones())
            {
                let positions = out[..out.len() - 1].iter().product::<usize>();
                let repeated = (0..positions * table[1]).map(|i| data[i % data.len()]).collect();
                start = Some(Arc::new(repeated));
                nodes.push(next);
            }
        }
        let table = Table {
            rows: table[0],
            width: table[1],
            values,
            start,
            starts: 1,
        };
        self.kernel(Kind::Embedding(Arc::new(table)), vec![input], nodes)
            .map(drop)
    }

    /// The product whose output an attention's three slices read, with nothing else reading it: q, k and v in this order.
    fn attention(&mut self, id: NodeId, heads: usize, causal: bool) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let shape = self.shape(node.output);
        let (batch, d) = (shape[0], shape[2]);
        let sliced = |i: usize| {
            let slice = self.graph.node(self.graph.producer(node.inputs[i])?);
            match slice.op {
                Op::Slice { axis: 2, start, end } if (start, end) == (i * d, (i + 1) * d) => {
                    Some(slice.inputs[0])
                }
                _ => None,
            }
        };
        let source = sliced(0).filter(|t| sliced(1) == Some(*t) && sliced(2) == Some(*t));
        let u = source.and_then(|t| self.uses.get(&t).copied());
        let Some(u) = u.filter(|u| self.plan.edges[u.edge].layout.order.is_some()) else {
            return self.bad(
                node,
                "queries, keys and values must be the three thirds of one product's result, which nothing else reads",
            );
        };
        if batch != 1 {
            return self.bad(
                node,
                format!("attention over a batch of {batch}: on the mesh one sample at a time; use --items"),
            );
        }
        let kind = self.attention_of(node, heads, causal);
        let order = kind.output_order();
        if order.iter().enumerate().any(|(place, feature)| place != *feature)
            && let Some(other) = self
                .graph
                .consumers(node.output)
                .into_iter()
                .find(|n| !self.mixes(*n))
        {
            return self.bad(
                self.graph.node(other),
                "it reads the result of an attention, whose features are not in order: on the mesh only products may",
            );
        }
        let edge = self.kernel(Kind::Attention(kind), vec![u], vec![id])?;
        self.plan.edges[edge].layout.order = Some(Arc::new(order));
        Ok(())
    }

    /// The attention of a node; its heads are in as many groups as its result, the smaller of its streams, may have lanes.
    fn attention_of(&self, node: &Node, heads: usize, causal: bool) -> Attention {
        let shape = self.shape(node.output);
        let (tokens, d) = (shape[1], shape[2]);
        let mut groups = lanes::by_size(d * tokens.div_ceil(self.per), self.lanes);
        while !heads.is_multiple_of(groups) {
            groups /= 2;
        }
        Attention {
            heads,
            width: d / heads,
            causal,
            tokens,
            groups,
        }
    }

    /// The order in which a product sends its features, if all that read it are the slices of one attention.
    fn attended(&self, output: TensorId) -> Option<Arc<Vec<usize>>> {
        if self.graph.outputs().contains(&output) {
            return None;
        }
        let slices = self.graph.consumers(output);
        let readers: BTreeSet<NodeId> = slices
            .iter()
            .flat_map(|s| match self.graph.node(*s).op {
                Op::Slice { .. } => self.graph.consumers(self.graph.node(*s).output),
                _ => vec![*s],
            })
            .collect();
        let [attention] = readers.into_iter().collect::<Vec<_>>()[..] else {
            return None;
        };
        let node = self.graph.node(attention);
        let Op::Attention { heads, causal } = node.op else {
            return None;
        };
        Some(Arc::new(self.attention_of(node, heads, causal).input_order()))
    }

    fn pool(
        &mut self,
        id: NodeId,
        max: bool,
        count_padding: bool,
        kernel: [usize; 2],
        strides: [usize; 2],
        pads: [usize; 4],
    ) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let (i, o) = (self.shape(node.inputs[0]), self.shape(node.output));
        let use_ = self.input(node, 0)?;
        if i.len() != 4 || use_.flat {
            return self.bad(node, "pooling takes a tensor [n, c, h, w]");
        }
        let pool = Pool {
            max,
            count_padding,
            kernel,
            strides,
            pads,
            input: (i[2], i[3]),
            output: (o[2], o[3]),
        };
        self.kernel(Kind::Pool(pool), vec![use_], vec![id]).map(drop)
    }

    /// Whether a node is a convolution or product that mixes features.
    fn mixes(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        match node.op {
            Op::Linear => true,
            Op::Conv { groups, .. } => !is_depthwise(groups, self.shape(node.inputs[0])[1]),
            _ => false,
        }
    }

    /// The convolutions and products (with the batch norm behind each) of which a sum consists, if it consists of nothing else.
    fn summands(&self, add: NodeId) -> Option<Vec<Vec<NodeId>>> {
        let node = self.graph.node(add);
        if !matches!(node.op, Op::Add) || node.inputs[0] == node.inputs[1] {
            return None;
        }
        let mut all = Vec::new();
        for t in &node.inputs {
            let producer = self.graph.producer(*t)?;
            if self.only_consumer(producer) != Some(add) || self.shape(*t) != self.shape(node.output) {
                return None;
            }
            let before = self.graph.node(producer);
            match before.op {
                Op::Add => all.extend(self.summands(producer)?),
                Op::BatchNorm { .. } => {
                    let linear = self.graph.producer(before.inputs[0])?;
                    if !self.mixes(linear) || self.only_consumer(linear) != Some(producer) {
                        return None;
                    }
                    all.push(vec![linear, producer]);
                }
                _ if self.mixes(producer) => all.push(vec![producer]),
                _ => return None,
            }
        }
        // a tensor that is read twice would have to come in twice
        let inputs: BTreeSet<TensorId> = all.iter().map(|n| self.source(n[0]).0).collect();
        (inputs.len() == all.len()).then_some(all)
    }

    /// The last of the additions by which a node's result goes into a sum of convolutions and products.
    fn sum_of(&self, id: NodeId) -> Option<NodeId> {
        let mut at = id;
        let mut last = self.summands(id).map(|_| id);
        while let Some(next) = self.only_consumer(at) {
            match self.graph.node(next).op {
                Op::Add if self.summands(next).is_some() => last = Some(next),
                // the batch norm between a convolution and the sum
                Op::BatchNorm { .. } if at == id && self.mixes(id) => {}
                _ => break,
            }
            at = next;
        }
        last
    }

    /// What a convolution or product reads, seen through inserted zeros, and their distances.
    fn source(&self, id: NodeId) -> (TensorId, [usize; 2]) {
        let input = self.graph.node(id).inputs[0];
        match self.graph.producer(input).map(|p| self.graph.node(p)) {
            Some(Node {
                op: Op::ZeroInsert { factor },
                inputs,
                ..
            }) => (inputs[0], *factor),
            _ => (input, [1, 1]),
        }
    }

    /// Several convolutions and products whose results are added.
    fn sum(&mut self, add: NodeId) -> Result<(), CompileError> {
        let summands = self.summands(add).expect("it is a sum");
        let mut nodes: Vec<NodeId> = Vec::new();
        let (mut terms, mut inputs) = (Vec::new(), Vec::new());
        let mut bias: Option<Vec<f64>> = None;
        for summand in &summands {
            let (linear, b, input) = self.term(summand)?;
            if let Some(b) = b {
                let sum = bias.get_or_insert_with(|| vec![0.0; linear.m]);
                sum.iter_mut().zip(b).for_each(|(s, b)| *s += b);
            }
            terms.push(linear);
            inputs.push(input);
            nodes.extend(summand);
        }
        // the additions inside
        let inner: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let mut adds: Vec<NodeId> = Vec::new();
        self.additions(add, &inner, &mut adds);
        nodes.extend(adds);
        if let Some(norm) = self.take(&mut nodes, |op| matches!(op, Op::BatchNorm { .. }))
            && let Op::BatchNorm { epsilon } = self.graph.node(norm).op
        {
            let (scale, shift) = self.norm(self.graph.node(norm), epsilon)?;
            for t in &mut terms {
                scale_rows(t, &scale);
            }
            let m = scale.len();
            let before = bias.unwrap_or_else(|| vec![0.0; m]);
            bias = Some((0..m).map(|i| before[i] * scale[i] + shift[i]).collect());
        }
        let relu = self.take_relu(&mut nodes);
        let mix = Mix {
            terms,
            bias: bias.map(|b| Arc::new(b.into_iter().map(|v| v as f32).collect())),
            relu,
        };
        self.kernel(Kind::Mix(Arc::new(mix)), inputs, nodes).map(drop)
    }

    fn additions(&self, add: NodeId, leaves: &BTreeSet<NodeId>, all: &mut Vec<NodeId>) {
        for t in &self.graph.node(add).inputs {
            if let Some(p) = self.graph.producer(*t).filter(|p| !leaves.contains(p)) {
                self.additions(p, leaves, all);
            }
        }
        all.push(add);
    }

    /// A convolution or product alone.
    fn linear(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let mut nodes = vec![id];
        self.take(&mut nodes, |op| matches!(op, Op::BatchNorm { .. }));
        let (mut linear, bias, input) = self.term(&nodes)?;
        let bias = bias.map(|b| Arc::new(b.into_iter().map(|v| v as f32).collect::<Vec<f32>>()));
        let relu = self.take_relu(&mut nodes);
        if !self.mixes(id) {
            (linear.bias, linear.relu) = (bias, relu);
            return self
                .kernel(Kind::Depthwise(Arc::new(linear)), vec![input], nodes)
                .map(drop);
        }
        let order = if relu { None } else { self.attended(node.output) };
        let mix = Mix {
            terms: vec![linear],
            bias,
            relu,
        };
        let edge = self.kernel(Kind::Mix(Arc::new(mix)), vec![input], nodes)?;
        self.plan.edges[edge].layout.order = order;
        Ok(())
    }

    /// One convolution or product, with the batch norm behind it folded in; its bias in f64, and its input.
    #[allow(clippy::type_complexity)] // three things, named in the line above
    fn term(&self, nodes: &[NodeId]) -> Result<(Linear, Option<Vec<f64>>, Use), CompileError> {
        let node = self.graph.node(nodes[0]);
        let (source, zeros) = self.source(nodes[0]);
        let Some(&input) = self.uses.get(&source) else {
            return self.bad(node, "its input 0 is a constant, which only weights may be");
        };
        let weights = self.constant(node, 1)?;
        let mut bias: Option<Vec<f64>> = match node.inputs.len() > 2 {
            true => Some(self.constant(node, 2)?.iter().map(|b| *b as f64).collect()),
            false => None,
        };
        let (from, to, w) = (
            self.shape(source),
            self.shape(node.output),
            self.shape(node.inputs[1]),
        );
        let (k, m) = (from[feature_axis(from)], to[feature_axis(to)]);
        let length = from.iter().product::<usize>() / k;
        let mut linear = Linear {
            k,
            m,
            groups: 1,
            window: 1,
            weights,
            bias: None,
            relu: false,
            taps: Vec::new(),
            input: (1, length),
            output: (1, length),
            samples: 1,
            sparse: false,
            slides: None,
            tiled: None,
        };
        let flat = Tap {
            index: 0,
            rows: 1,
            columns: length,
            y: 0,
            x: 0,
            steps: [1, 1],
            strides: [1, 1],
        };
        if let Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } = &node.op
        {
            if from.len() != 4 || input.flat {
                return self.bad(
                    node,
                    format!("convolution of a tensor of shape {from:?}: expected [n, c, h, w]"),
                );
            }
            linear.groups = *groups;
            linear.window = w[2] * w[3];
            if linear.window == 1 && *strides == [1, 1] && *pads == [0; 4] && zeros == [1, 1] {
                linear.taps.push(flat);
            } else {
                let window = Window {
                    kernel: [w[2], w[3]],
                    strides: *strides,
                    pads: *pads,
                    dilations: *dilations,
                    zeros,
                };
                (linear.input, linear.output, linear.samples) = ((from[2], from[3]), (to[2], to[3]), from[0]);
                linear.taps = taps(&window, linear.input, linear.output);
                linear.slides = Some(window);
            }
        } else {
            linear.taps.push(flat);
        }
        if let Some(norm) = nodes.get(1).map(|n| self.graph.node(*n))
            && let Op::BatchNorm { epsilon } = norm.op
        {
            let (scale, shift) = self.norm(norm, epsilon)?;
            scale_rows(&mut linear, &scale);
            let before = bias.unwrap_or_else(|| vec![0.0; m]);
            bias = Some((0..m).map(|i| before[i] * scale[i] + shift[i]).collect());
        }
        linear.sparse = self.skip && linear.weights.contains(&0.0);
        Ok((linear, bias, input))
    }

    /// A batch norm as a scale and a shift of each feature, in f64.
    fn norm(&self, norm: &Node, epsilon: f32) -> Result<(Vec<f64>, Vec<f64>), CompileError> {
        let (scale, shift) = (self.constant(norm, 1)?, self.constant(norm, 2)?);
        let (mean, variance) = (self.constant(norm, 3)?, self.constant(norm, 4)?);
        let factor = |i: usize| scale[i] as f64 / (variance[i] as f64 + epsilon as f64).sqrt();
        Ok((0..scale.len())
            .map(|i| (factor(i), shift[i] as f64 - mean[i] as f64 * factor(i)))
            .unzip())
    }
}

/// ReLU, also where it is written as a clip without an upper bound.
fn is_relu(op: &Op) -> bool {
    match op {
        Op::Relu => true,
        Op::Clip { min, max } => (*min, *max) == (0.0, f32::MAX),
        _ => false,
    }
}

/// Whether each output feature reads one input feature.
fn is_depthwise(groups: usize, k: usize) -> bool {
    groups == k && k > 1
}

/// Scales the weights of each output feature, rounded once.
fn scale_rows(linear: &mut Linear, scale: &[f64]) {
    let each = linear.weights.len() / scale.len();
    let scaled = linear.weights.iter().enumerate();
    linear.weights = Arc::new(
        scaled
            .map(|(j, w)| (*w as f64 * scale[j / each]) as f32)
            .collect(),
    );
}

/// A shape without its leading axes of one.
trait TrimOnes {
    fn trim_ones(&self) -> &[usize];
}

impl TrimOnes for Vec<usize> {
    fn trim_ones(&self) -> &[usize] {
        let ones = self.iter().take_while(|n| **n == 1).count();
        &self[ones..]
    }
}

/// The kernels and edges, one a line.
pub fn show(plan: &Plan) -> String {
    let term = |t: &Linear| {
        let lists = if t.sparse { ", nonzeros only" } else { "" };
        format!("{} -> {} features, {} taps{lists}", t.k, t.m, t.taps.len())
    };
    let mut out = String::new();
    for e in plan.edges.iter().filter(|e| matches!(e.source, Source::Input(_))) {
        out += &format!(
            "input {} {:?}: {} features x {} elements, axes {:?}\n",
            e.name,
            e.shape,
            e.layout.features,
            e.layout.length(),
            e.axes
        );
    }
    for k in &plan.kernels {
        let inputs: Vec<String> = k
            .inputs
            .iter()
            .map(|u| {
                format!(
                    "{}{}",
                    plan.edges[u.edge].name,
                    if u.flat { " (flat)" } else { "" }
                )
            })
            .collect();
        let e = &plan.edges[k.output];
        let about = match &k.kind {
            Kind::Mix(m) | Kind::Streamed(m) => {
                let terms: Vec<String> = m.terms.iter().map(term).collect();
                let bias = if m.bias.is_some() { ", bias" } else { "" };
                let relu = if m.relu { ", relu" } else { "" };
                format!("{}{bias}{relu}", terms.join(" + "))
            }
            Kind::Depthwise(m) => {
                let bias = if m.bias.is_some() { ", bias" } else { "" };
                let relu = if m.relu { ", relu" } else { "" };
                format!("{}{bias}{relu}", term(m))
            }
            Kind::Pool(p) => format!("window {}x{}", p.kernel[0], p.kernel[1]),
            Kind::Binary { relu: true, .. } => "relu".into(),
            _ => String::new(),
        };
        out += &format!(
            "{} = {}({}) -> {}: {} features x {} elements  {about}",
            k.name,
            crate::kernels::of(&k.kind).op(),
            inputs.join(", "),
            e.name,
            e.layout.features,
            e.layout.length()
        );
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    for (name, u) in &plan.outputs {
        out += &format!(
            "output {name} = {}{}\n",
            plan.edges[u.edge].name,
            if u.flat { " (flat)" } else { "" }
        );
    }
    out
}
