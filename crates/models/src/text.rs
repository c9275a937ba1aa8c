//! The readable dump of a graph: one line a node, stable, without the values of constants.

use crate::graph::{Graph, Op, TensorId};
use std::fmt::Write;

/// A name that cannot break the line or be taken for several words.
fn show_name(name: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"`\"(),=".contains(c);
    if !name.is_empty() && name.chars().all(plain) {
        name.into()
    } else {
        format!("{name:?}")
    }
}

/// Sizes joined with `x`; `scalar` for none.
fn show_shape(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

fn show_op(op: &Op) -> String {
    match op {
        Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } => {
            format!("strides={strides:?} pads={pads:?} dilations={dilations:?} groups={groups}")
        }
        Op::MaxPool {
            kernel,
            strides,
            pads,
        } => format!("kernel={kernel:?} strides={strides:?} pads={pads:?}"),
        Op::AvgPool {
            kernel,
            strides,
            pads,
            count_include_pad,
        } => {
            format!(
                "kernel={kernel:?} strides={strides:?} pads={pads:?} count_include_pad={count_include_pad}"
            )
        }
        Op::Softmax { axis } => format!("axis={axis}"),
        Op::Transpose { perm } => format!("perm={perm:?}"),
        Op::BatchNorm { epsilon } | Op::LayerNorm { epsilon } => format!("epsilon={epsilon:e}"),
        Op::Clip { min, max } => format!("min={min:e} max={max:e}"),
        Op::Gelu { tanh } => format!("tanh={tanh}"),
        Op::Pow { exponent } => format!("exponent={exponent:e}"),
        Op::Attention { heads, causal } => format!("heads={heads} causal={causal}"),
        Op::ZeroInsert { factor } => format!("factor={factor:?}"),
        Op::Slice { axis, start, end } => format!("axis={axis} elements={start}..{end}"),
        Op::ReduceMean { axes, keep } => format!("axes={axes:?} keep={keep}"),
        Op::Linear
        | Op::MatMul
        | Op::Gather
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Where
        | Op::Relu
        | Op::Tanh
        | Op::Erf
        | Op::Sqrt
        | Op::Reshape => String::new(),
    }
}

impl Graph {
    /// The graph as text: its name and sizes, inputs, nodes in order and outputs, one a line. Shapes are `2x3x4`;
    /// constants show how many of their values are not zero, `[nonzero/all]`.
    pub fn to_text(&self) -> String {
        let shape = |t: TensorId| show_shape(&self.tensor(t).shape);
        let name = |t: TensorId| show_name(&self.tensor(t).name);
        let mut out = String::new();
        let (all, nonzero) = (self.parameters(), self.nonzeros());
        // writing to a string cannot fail
        let _ = writeln!(
            out,
            "graph {}: {all} parameters, {nonzero} nonzero",
            show_name(&self.name)
        );
        for &t in self.inputs() {
            let _ = writeln!(out, "input {} {}", name(t), shape(t));
        }
        for id in self.nodes_in_order() {
            let node = self.node(id);
            let inputs: Vec<String> = node
                .inputs
                .iter()
                .map(|t| match self.tensor(*t).nonzero_count() {
                    Some(nonzero) => {
                        format!(
                            "{} {} [{nonzero}/{}]",
                            name(*t),
                            shape(*t),
                            self.tensor(*t).elements()
                        )
                    }
                    None => name(*t),
                })
                .collect();
            let op = node.op.name();
            let line = format!(
                "{} {} = {op}({}) {}",
                name(node.output),
                shape(node.output),
                inputs.join(", "),
                show_op(&node.op)
            );
            let _ = write!(out, "{}", line.trim_end());
            if node.name != self.tensor(node.output).name {
                let _ = write!(out, " # {}", show_name(&node.name));
            }
            out.push('\n');
        }
        for &t in self.outputs() {
            let _ = writeln!(out, "output {} {}", name(t), shape(t));
        }
        out
    }
}
