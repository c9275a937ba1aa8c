//! From operators to kernels: folds batch norms into what feeds them, takes ReLUs into the kernel before, turns the transpose of an
//! input into the order in which it is fed, and sees through flattenings that move nothing.

use crate::plan::*;
use crate::{CompileError, Options};
use meshloom_models::{Graph, Node, NodeId, Op, TensorId};
use meshloom_simulator::Machine;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The output rectangles hit by each element of a window.
pub fn taps(
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
    input: (usize, usize),
    output: (usize, usize),
) -> Vec<Tap> {
    // outputs o with 0 <= o * stride + offset < size
    let hits = |offset: i64, stride: usize, size: usize, out: usize| {
        let first = ((-offset).max(0) as u64).div_ceil(stride as u64) as i64;
        let last = (size as i64 - 1 - offset)
            .div_euclid(stride as i64)
            .min(out as i64 - 1);
        (first as usize, (last - first + 1).max(0) as usize)
    };
    let mut all = Vec::new();
    for a in 0..kernel[0] {
        for b in 0..kernel[1] {
            let (oa, ob) = (
                (a * dilations[0]) as i64 - pads[0] as i64,
                (b * dilations[1]) as i64 - pads[1] as i64,
            );
            let (y, rows) = hits(oa, strides[0], input.0, output.0);
            let (x, columns) = hits(ob, strides[1], input.1, output.1);
            if rows > 0 && columns > 0 {
                let row = (y * strides[0]) as i64 + oa;
                let column = (x * strides[1]) as i64 + ob;
                all.push(Tap {
                    index: a * kernel[1] + b,
                    rows,
                    columns,
                    y: y * output.1 + x,
                    x: row as usize * input.1 + column as usize,
                    strides,
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
        plan: Plan {
            name: graph.name.clone(),
            ty: options.ty,
            items: options.items,
            kernels: Vec::new(),
            edges: Vec::new(),
            outputs: Vec::new(),
            places: Vec::new(),
            estimates: Vec::new(),
            regions: Vec::new(),
        },
        uses: BTreeMap::new(),
        done: BTreeMap::new(),
    };
    for (i, &t) in graph.inputs().iter().enumerate() {
        let shape = &graph.tensor(t).shape;
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
            r.done.insert(consumers[0], ());
            r.uses.insert(*output, Use { edge, flat: false });
        } else {
            let edge = r.edge(t, Source::Input(i), (0..shape.len()).collect())?;
            r.uses.insert(t, Use { edge, flat: false });
        }
    }
    for id in graph.nodes_in_order() {
        if r.done.contains_key(&id) {
            continue;
        }
        r.node(id)?;
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
    /// One element a wavelet: a flattening of one sample changes nothing on the lanes.
    narrow: bool,
    plan: Plan,
    /// Where each tensor is.
    uses: BTreeMap<TensorId, Use>,
    /// Nodes that a kernel has taken in.
    done: BTreeMap<NodeId, ()>,
}

impl Rewriter<'_> {
    fn bad<T>(&self, node: &Node, message: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Unsupported {
            node: node.name.clone(),
            message: message.into(),
        })
    }

    fn edge(&mut self, tensor: TensorId, source: Source, axes: Vec<usize>) -> Result<usize, CompileError> {
        let t = self.graph.tensor(tensor);
        if t.shape.len() < 2 || t.shape.contains(&0) {
            return Err(CompileError::Unsupported {
                node: t.name.clone(),
                message: format!(
                    "its shape is {:?}; the mesh takes tensors [samples, features, ...] of at least two axes",
                    t.shape
                ),
            });
        }
        let layout = Layout {
            n: t.shape[0],
            inner: t.shape[2..].to_vec(),
            starts: vec![0, t.shape[1]],
        };
        self.plan.edges.push(Edge {
            tensor,
            name: t.name.clone(),
            source,
            layout,
            axes,
            to: Vec::new(),
            color: 0,
        });
        Ok(self.plan.edges.len() - 1)
    }

    fn constant(&self, node: &Node, i: usize) -> Result<Arc<Vec<f32>>, CompileError> {
        match self.graph.tensor(node.inputs[i]).data.clone() {
            Some(d) => Ok(d),
            None => self.bad(node, format!("its input {i} must be a constant")),
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

    /// Takes a following ReLU in; returns the last node of the kernel.
    fn take_relu(&mut self, nodes: &mut Vec<NodeId>) -> bool {
        let last = *nodes.last().expect("a kernel has nodes");
        match self.only_consumer(last) {
            Some(next) if matches!(self.graph.node(next).op, Op::Relu) => {
                nodes.push(next);
                true
            }
            _ => false,
        }
    }

    fn kernel(&mut self, kind: Kind, inputs: Vec<Use>, nodes: Vec<NodeId>) -> Result<(), CompileError> {
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
        for n in &nodes {
            self.done.insert(*n, ());
        }
        self.uses.insert(output, Use { edge, flat: false });
        self.plan.kernels.push(Kernel {
            name,
            kind,
            inputs,
            output: edge,
            nodes,
        });
        Ok(())
    }

    fn node(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let shape = |t: TensorId| &self.graph.tensor(t).shape;
        match &node.op {
            Op::Conv { .. } | Op::Linear => self.mix(id),
            Op::Add | Op::Mul => {
                let inputs = vec![self.input(node, 0)?, self.input(node, 1)?];
                if shape(node.inputs[0]) != shape(node.inputs[1]) || inputs[0].flat || inputs[1].flat {
                    return self.bad(
                        node,
                        "element-wise operators take two tensors of one shape on the mesh",
                    );
                }
                if inputs[0].edge == inputs[1].edge {
                    return self.bad(node, "both operands are one tensor");
                }
                let mut nodes = vec![id];
                let relu = self.take_relu(&mut nodes);
                self.kernel(
                    Kind::Binary {
                        multiply: matches!(node.op, Op::Mul),
                        relu,
                    },
                    inputs,
                    nodes,
                )
            }
            Op::Relu => {
                let input = self.input(node, 0)?;
                self.kernel(Kind::Relu, vec![input], vec![id])
            }
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
                if *axis != 1 {
                    return self.bad(
                        node,
                        format!("softmax over axis {axis}: on the mesh it runs over the features, axis 1"),
                    );
                }
                let input = self.input(node, 0)?;
                self.kernel(Kind::Softmax, vec![input], vec![id])
            }
            Op::Reshape => {
                let (from, to) = (shape(node.inputs[0]).clone(), shape(node.output).clone());
                let input = self.input(node, 0)?;
                if from == to {
                    self.uses.insert(node.output, input);
                    return Ok(());
                }
                let p: usize = from[2..].iter().product();
                if to.len() != 2 || to[0] != from[0] || to[1] != from[1] * p {
                    return self.bad(
                        node,
                        format!("reshape {from:?} to {to:?}: on the mesh only [n, c, ...] to [n, c * ...]"),
                    );
                }
                if p == 1 || (from[0] == 1 && self.narrow) {
                    self.uses.insert(
                        node.output,
                        Use {
                            edge: input.edge,
                            flat: true,
                        },
                    );
                    return Ok(());
                }
                self.kernel(Kind::Flatten, vec![input], vec![id])
            }
            Op::Transpose { perm } => self.bad(
                node,
                format!(
                    "transpose {perm:?} inside the model: on the mesh only that of an input used nowhere else"
                ),
            ),
            Op::BatchNorm { .. } => self.bad(
                node,
                "a batch norm is run only where it can be folded into the convolution or product before it",
            ),
            #[allow(unreachable_patterns)] // operators that the importer learns before the compiler does
            op => self.bad(node, format!("{op:?} has no kernel")),
        }
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
        let (i, o) = (
            &self.graph.tensor(node.inputs[0]).shape,
            &self.graph.tensor(node.output).shape,
        );
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
        self.kernel(Kind::Pool(pool), vec![use_], vec![id])
    }

    fn mix(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.graph.node(id);
        let shape = |t: TensorId| &self.graph.tensor(t).shape;
        let input = self.input(node, 0)?;
        let mut weights = self.constant(node, 1)?;
        let mut bias = if node.inputs.len() > 2 {
            Some(self.constant(node, 2)?)
        } else {
            None
        };
        let (from, to, w) = (shape(node.inputs[0]), shape(node.output), shape(node.inputs[1]));
        let mut nodes = vec![id];
        if let Some(next) = self.only_consumer(id)
            && let Op::BatchNorm { epsilon } = self.graph.node(next).op
        {
            (weights, bias) = self.fold(self.graph.node(next), epsilon, &weights, bias.as_deref())?;
            nodes.push(next);
        }
        let relu = self.take_relu(&mut nodes);
        let (k, m, n) = (from[1], to[1], from[0]);
        let inner: usize = from[2..].iter().product();
        let mut mix = Mix {
            k,
            m,
            groups: 1,
            window: 1,
            weights,
            bias,
            relu,
            taps: Vec::new(),
            input: (1, n * inner),
            output: (1, n * inner),
            samples: 1,
            sparse: false,
        };
        let flat = Tap {
            index: 0,
            rows: 1,
            columns: n * inner,
            y: 0,
            x: 0,
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
            mix.groups = *groups;
            mix.window = w[2] * w[3];
            if mix.window == 1 && *strides == [1, 1] && *pads == [0; 4] {
                mix.taps.push(flat);
            } else {
                (mix.input, mix.output, mix.samples) = ((from[2], from[3]), (to[2], to[3]), n);
                mix.taps = taps([w[2], w[3]], *strides, *pads, *dilations, mix.input, mix.output);
            }
        } else {
            mix.taps.push(flat);
        }
        mix.sparse = self.skip && mix.weights.contains(&0.0);
        let depthwise = mix.groups == k && m % k == 0 && k > 1;
        let mix = Arc::new(mix);
        self.kernel(
            if depthwise {
                Kind::Depthwise(mix)
            } else {
                Kind::Mix(mix)
            },
            vec![input],
            nodes,
        )
    }

    /// Weights and bias with a batch norm folded in: scale / sqrt(variance + epsilon) a feature, in f64, rounded once.
    #[allow(clippy::type_complexity)] // weights and bias, nothing more
    fn fold(
        &self,
        norm: &Node,
        epsilon: f32,
        weights: &[f32],
        bias: Option<&Vec<f32>>,
    ) -> Result<(Arc<Vec<f32>>, Option<Arc<Vec<f32>>>), CompileError> {
        let (scale, shift) = (self.constant(norm, 1)?, self.constant(norm, 2)?);
        let (mean, variance) = (self.constant(norm, 3)?, self.constant(norm, 4)?);
        let m = scale.len();
        let factor = |i: usize| scale[i] as f64 / (variance[i] as f64 + epsilon as f64).sqrt();
        let each = weights.len() / m;
        let folded = weights
            .iter()
            .enumerate()
            .map(|(j, w)| (*w as f64 * factor(j / each)) as f32)
            .collect();
        let bias = (0..m)
            .map(|i| {
                ((bias.map_or(0.0, |b| b[i] as f64) - mean[i] as f64) * factor(i) + shift[i] as f64) as f32
            })
            .collect();
        Ok((Arc::new(folded), Some(Arc::new(bias))))
    }
}

/// The kernels and edges, one a line.
pub fn show(plan: &Plan) -> String {
    let mut out = String::new();
    for e in plan.edges.iter().filter(|e| matches!(e.source, Source::Input(_))) {
        out += &format!(
            "input {} [{} x {} x {:?}], axes {:?}\n",
            e.name,
            e.layout.n,
            e.layout.features(),
            e.layout.inner,
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
            Kind::Mix(m) | Kind::Depthwise(m) => {
                let lists = if m.sparse { ", nonzeros only" } else { "" };
                let bias = if m.bias.is_some() { ", bias" } else { "" };
                format!(
                    "{} -> {} features, {} taps{bias}{lists}{}",
                    m.k,
                    m.m,
                    m.taps.len(),
                    if m.relu { ", relu" } else { "" }
                )
            }
            Kind::Pool(p) => format!("window {}x{}", p.kernel[0], p.kernel[1]),
            Kind::Binary { relu: true, .. } => "relu".into(),
            _ => String::new(),
        };
        out += &format!(
            "{} = {}({}) -> {} [{} x {} x {:?}]  {about}",
            k.name,
            crate::kernels::of(&k.kind).op(),
            inputs.join(", "),
            e.name,
            e.layout.n,
            e.layout.features(),
            e.layout.inner
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
