//! A decoder-only transformer, from a graph to operators in place: what follows its embedding, in one sequence of layer norms, products, attention,
//! GELU and residual additions, as GPT-2 has them.

use super::{Attention, Linear, Mlp, Operator, Room, Tensor, causal_mask};
use super::{Bands, choose, transformer};
use crate::CompileError;
use crate::plan::{Function, Norm};
use meshloom_models::graph::{Graph, Node, Op, TensorId};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::Sram;
use meshloom_simulator::program::Ty;

/// A graph's residual stream on a mesh, and what is done with it, part by part.
#[derive(Clone, Debug)]
pub struct Decoder<'g> {
    machine: Machine,
    /// The tensor that lies on the mesh at the start: what the first layer norm reads.
    pub start: TensorId,
    /// Its tokens; the mesh may have more, which are 0.
    pub tokens: usize,
    /// The residual stream.
    pub x: Tensor,
    /// Of all attentions.
    pub mask: Option<Tensor>,
    /// What the last product gives.
    pub logits: Tensor,
    heads: usize,
    room: Room,
    parts: Vec<Part<'g>>,
}

#[derive(Clone, Debug)]
enum Part<'g> {
    Attention {
        name: String,
        norm: Norm,
        /// Queries, keys, values, and the last product.
        linears: [Linear<'g>; 4],
        scale: f32,
    },
    Mlp {
        name: String,
        norm: Norm,
        up: Linear<'g>,
        function: Function,
        down: Linear<'g>,
    },
    Head {
        norm: Norm,
        linear: Linear<'g>,
    },
}

impl Part<'_> {
    /// Cycles that its products with weights are expected to take, but for the last part's: wherever its results lie, it only reads the residual.
    fn cycles(&self, machine: &Machine, heads: usize, x: &Tensor) -> f64 {
        let cycles = match self {
            Part::Attention {
                linears: [query, key, value, output],
                ..
            } => transformer::attention_cycles(machine, heads, x, [*query, *key, *value], *output),
            Part::Mlp { up, down, .. } => {
                transformer::hidden(machine, x, *up, *down).map(|(_, cycles)| cycles)
            }
            Part::Head { .. } => Ok(0.0),
        };
        cycles.unwrap_or(f64::INFINITY)
    }
}

/// A graph's nodes in order.
struct Reader<'g> {
    graph: &'g Graph,
    nodes: Vec<&'g Node>,
    at: usize,
    skip_zeros: bool,
}

impl<'g> Reader<'g> {
    fn refuse<T>(&self, message: String) -> Result<T, CompileError> {
        let node = self.nodes.get(self.at.saturating_sub(1));
        Err(CompileError::Unsupported {
            node: node.map_or(self.graph.name.clone(), |n| n.name.clone()),
            message: format!("{message}, in place"),
        })
    }

    /// The next node, which has to read these tensors first.
    fn next(&mut self, what: &str, reads: &[TensorId]) -> Result<&'g Node, CompileError> {
        let Some(node) = self.nodes.get(self.at).copied() else {
            return self.refuse(format!("the end: expected {what}"));
        };
        self.at += 1;
        if !node.inputs.starts_with(reads) {
            return self.refuse(format!("it does not read what comes before it: expected {what}"));
        }
        Ok(node)
    }

    fn peek(&self) -> Option<&'g Op> {
        self.nodes.get(self.at).map(|n| &n.op)
    }

    fn data(&self, t: TensorId) -> Result<&'g std::sync::Arc<Vec<f32>>, CompileError> {
        match &self.graph.tensor(t).data {
            Some(data) => Ok(data),
            None => self.refuse(format!(
                "{} has no values: expected a constant",
                self.graph.tensor(t).name
            )),
        }
    }

    fn norm(&mut self, x: TensorId) -> Result<(Norm, TensorId), CompileError> {
        let node = self.next("a layer norm", &[x])?;
        let Op::LayerNorm { epsilon } = node.op else {
            return self.refuse(format!("{}: expected a layer norm", node.op.name()));
        };
        let norm = Norm {
            scale: self.data(node.inputs[1])?.clone(),
            shift: self.data(node.inputs[2])?.clone(),
            epsilon,
        };
        Ok((norm, node.output))
    }

    /// Weights of rows `from..to`, with their biases.
    fn rows(&self, node: &'g Node, from: usize, to: usize) -> Result<Linear<'g>, CompileError> {
        let k = self.graph.tensor(node.inputs[1]).shape[1];
        let weights = &self.data(node.inputs[1])?[from * k..to * k];
        let bias = match node.inputs.get(2) {
            Some(b) => Some(&self.data(*b)?[from..to]),
            None => None,
        };
        Ok(Linear {
            weights,
            bias,
            lists: self.skip_zeros && weights.contains(&0.0),
        })
    }

    fn linear(&mut self, x: TensorId) -> Result<(Linear<'g>, TensorId, &'g Node), CompileError> {
        let node = self.next("a product", &[x])?;
        if !matches!(node.op, Op::Linear) {
            return self.refuse(format!("{}: expected a product", node.op.name()));
        }
        let m = self.graph.tensor(node.inputs[1]).shape[0];
        Ok((self.rows(node, 0, m)?, node.output, node))
    }

    /// The product that ends a part, and the sum with the residual.
    fn end(&mut self, x: TensorId, residual: TensorId) -> Result<(Linear<'g>, TensorId), CompileError> {
        let (linear, y, _) = self.linear(x)?;
        let node = self.next("a sum with the residual", &[])?;
        let both = node.inputs[..] == [residual, y] || node.inputs[..] == [y, residual];
        if !matches!(node.op, Op::Add) || !both {
            return self.refuse("expected a sum with the residual".into());
        }
        Ok((linear, node.output))
    }
}

impl<'g> Decoder<'g> {
    /// How a graph's layers lie on a machine. `ty` is that of activations and weights; zero weights are skipped if asked.
    ///
    /// Errors: graphs of another form, a batch of several, constants without values; a mesh with too few rows for the heads.
    pub fn new(
        graph: &'g Graph,
        machine: &Machine,
        ty: Ty,
        skip_zeros: bool,
    ) -> Result<Decoder<'g>, CompileError> {
        let nodes = graph.nodes_in_order();
        let nodes: Vec<&Node> = nodes.iter().map(|id| graph.node(*id)).collect();
        let first = nodes.iter().position(|n| matches!(n.op, Op::LayerNorm { .. }));
        let mut reader = Reader {
            graph,
            nodes,
            at: first.unwrap_or(0),
            skip_zeros,
        };
        let Some(start) = first.map(|at| reader.nodes[at].inputs[0]) else {
            return reader.refuse("no layer norm: expected a decoder-only transformer".into());
        };
        let shape = &graph.tensor(start).shape;
        let (width, tokens) = match shape[..] {
            [tokens, width] | [1, tokens, width] => (width, tokens),
            _ => {
                return reader.refuse(format!("a residual of {shape:?}: expected [1, tokens, features]"));
            }
        };
        let (mut parts, mut x, mut all_heads) = (Vec::new(), start, None);
        let outputs = loop {
            let (norm, y) = reader.norm(x)?;
            let (linear, product, node) = reader.linear(y)?;
            let name = node.name.clone();
            let m = graph.tensor(node.inputs[1]).shape[0];
            match reader.peek() {
                None => {
                    parts.push(Part::Head { norm, linear });
                    break m;
                }
                Some(Op::Gelu { tanh }) => {
                    let function = Function::Gelu { tanh: *tanh };
                    let y = reader.next("GELU", &[product])?.output;
                    let (down, sum) = reader.end(y, x)?;
                    parts.push(Part::Mlp {
                        name,
                        norm,
                        up: linear,
                        function,
                        down,
                    });
                    x = sum;
                }
                Some(Op::Slice { .. }) => {
                    let mut inputs = Vec::new();
                    let mut linears = Vec::new();
                    for _ in 0..3 {
                        let slice = reader.next("queries, keys and values", &[product])?;
                        let Op::Slice { axis, start, end } = slice.op else {
                            return reader.refuse("expected queries, keys and values".into());
                        };
                        if axis + 1 != shape.len() || end - start != width {
                            return reader.refuse(format!("expected {width} features of each token"));
                        }
                        linears.push(reader.rows(node, start, end)?);
                        inputs.push(slice.output);
                    }
                    let attention = reader.next("attention", &inputs)?;
                    let Op::Attention { heads, causal: true } = attention.op else {
                        return reader.refuse("expected causal attention".into());
                    };
                    if all_heads.is_some_and(|n| n != heads) {
                        return reader.refuse(format!("{heads} heads: expected as many in all layers"));
                    }
                    all_heads = Some(heads);
                    let (last, sum) = reader.end(attention.output, x)?;
                    parts.push(Part::Attention {
                        name,
                        norm,
                        linears: [linears[0], linears[1], linears[2], last],
                        scale: (1.0 / (width as f64 / heads as f64).sqrt()) as f32,
                    });
                    x = sum;
                }
                Some(other) => {
                    return reader.refuse(format!(
                        "{} follows: expected GELU, attention or the end",
                        other.name()
                    ));
                }
            }
        };
        Bands::new(machine, 1)?;
        let each = tokens.div_ceil(machine.mesh.width as usize - 1);
        let tensor = |features: &[usize]| Tensor {
            ty,
            tokens: each,
            features: features.to_vec(),
            address: 0,
        };
        let heads = all_heads.unwrap_or(1);
        Bands::new(machine, heads)?;
        let features = choose::layout(machine, width, |features| {
            let x = tensor(features);
            // layers are alike: the first of a kind stands for all
            let kinds: Vec<_> = parts.iter().map(std::mem::discriminant).collect();
            let cycles = |(i, part): (usize, &Part)| match kinds[..i].contains(&kinds[i]) {
                true => 0.0,
                false => part.cycles(machine, heads, &x),
            };
            parts.iter().enumerate().map(cycles).sum()
        })?;
        let mut room = Room::default();
        let x = room.tensor(ty, each, &features);
        let mask = match all_heads {
            Some(heads) => Some(Attention::mask(machine, heads, each, &mut room)?),
            None => None,
        };
        let mut last = room;
        last.tensor(ty, each, &x.features);
        let head = parts.last().and_then(|part| match part {
            Part::Head { linear, .. } => Some(linear),
            _ => None,
        });
        let features = choose::layout(machine, outputs, |features| {
            head.map_or(0.0, |linear| {
                choose::cycles(machine, &x, &tensor(features), &[*linear])
            })
        })?;
        let logits = last.tensor(ty, each, &features);
        Ok(Decoder {
            machine: machine.clone(),
            start,
            tokens,
            x,
            mask,
            logits,
            heads,
            room,
            parts,
        })
    }

    /// How many parts: halves of blocks, and the last product.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The operators of a part, to be run after those of the part before. Programs hold their weights: those of all parts are many bytes.
    ///
    /// Errors: what does not fit the machine.
    ///
    /// # Panics
    /// There is no such part.
    pub fn part(&self, i: usize) -> Result<Vec<Operator>, CompileError> {
        match &self.parts[i] {
            Part::Attention {
                name,
                norm,
                linears: [query, key, value, output],
                scale,
            } => Attention {
                name,
                norm,
                query: *query,
                key: *key,
                value: *value,
                output: *output,
                heads: self.heads,
                scale: *scale,
                mask: self.mask.as_ref(),
            }
            .map(&self.machine, &self.x, self.room),
            Part::Mlp {
                name,
                norm,
                up,
                function,
                down,
            } => Mlp {
                name,
                norm,
                up: *up,
                function,
                down: *down,
            }
            .map(&self.machine, &self.x, self.room),
            Part::Head { norm, linear } => {
                transformer::head(&self.machine, norm, *linear, &self.x, &self.logits, self.room)
            }
        }
    }

    /// The SRAM of every PE, with the first tensor's values \[tokens, features\] in it, and the mask.
    ///
    /// # Panics
    /// There are not as many values as elements.
    pub fn place(&self, values: &[f32]) -> Sram {
        let mesh = &self.machine.mesh;
        let mut sram = Sram::new(&self.machine);
        assert_eq!(
            values.len(),
            self.tokens * self.x.all(),
            "values are [tokens, features]"
        );
        let on_mesh = self.x.tokens * (mesh.width as usize - 1);
        let mut padded = values.to_vec();
        padded.resize(on_mesh * self.x.all(), 0.0);
        self.x.place(&padded, &mut sram);
        if let Some(mask) = &self.mask {
            mask.place(&causal_mask(on_mesh, self.heads), &mut sram);
        }
        sram
    }

    /// The last product's results \[tokens, outputs\].
    pub fn read(&self, sram: &Sram) -> Vec<f32> {
        let mut all = self.logits.read(sram);
        all.truncate(self.tokens * self.logits.all());
        all
    }
}
