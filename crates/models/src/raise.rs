//! From operators that are written out, as exporters leave them, to the single ones that they are: attention, GELU, layer
//! norms, products along the last axis, pooling. What matches no pattern stays as it is.
//!
//! A raised graph computes the same function; constants such as `sqrt(2 / pi)` are taken for what their float32 values
//! stand for, so results agree to about 1e-6, not bit for bit.

mod attention;
mod functions;

use crate::graph::{Graph, Node, NodeId, Op, TensorId};

/// How often all patterns are tried: one that was found can complete another.
const ROUNDS: usize = 8;

/// The longest chain of operators between two reshapes that is looked through.
const CHAIN: usize = 8;

/// The graph with patterns replaced by single operators, and nothing that its outputs do not need.
pub fn raise(graph: &Graph) -> Graph {
    let mut graph = graph.compact();
    for _ in 0..ROUNDS {
        let mut changed = false;
        for id in graph.nodes_in_order() {
            changed |= attention::raise(&mut graph, id)
                || functions::gelu(&mut graph, id)
                || functions::layer_norm(&mut graph, id)
                || functions::scale_and_shift(&mut graph, id)
                || functions::pooling(&mut graph, id)
                || trim(&mut graph, id)
                || turned_in_three(&mut graph, id)
                || reshapes(&mut graph, id);
        }
        graph = graph.compact();
        if !changed {
            break;
        }
    }
    graph
}

/// The node that makes a tensor.
fn made(graph: &Graph, t: TensorId) -> Option<&Node> {
    graph.producer(t).map(|id| graph.node(id))
}

/// The value of a constant of one element.
fn scalar(graph: &Graph, t: TensorId) -> Option<f64> {
    match graph.tensor(t).data.as_deref().map(Vec::as_slice) {
        Some([v]) => Some(f64::from(*v)),
        _ => None,
    }
}

/// If `t` is another tensor of its shape times a constant (or divided by one): the factor and that tensor.
fn scaled(graph: &Graph, t: TensorId) -> Option<(f64, TensorId)> {
    let node = made(graph, t)?;
    let (factor, x) = match node.op {
        Op::Mul => match (scalar(graph, node.inputs[0]), scalar(graph, node.inputs[1])) {
            (None, Some(c)) => (c, node.inputs[0]),
            (Some(c), None) => (c, node.inputs[1]),
            _ => return None,
        },
        Op::Div => (1.0 / scalar(graph, node.inputs[1])?, node.inputs[0]),
        _ => return None,
    };
    (graph.tensor(x).shape == graph.tensor(t).shape).then_some((factor, x))
}

/// Equal but for float32 rounding.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

/// Constant operands of element-wise operators without leading axes of size 1, which change nothing: positions `[1, tokens,
/// d]` become `[tokens, d]`.
fn trim(graph: &mut Graph, id: NodeId) -> bool {
    let node = graph.node(id).clone();
    if !matches!(node.op, Op::Add | Op::Sub | Op::Mul | Op::Div) {
        return false;
    }
    let mut inputs = node.inputs.clone();
    for t in &mut inputs {
        let tensor = graph.tensor(*t).clone();
        let ones = tensor.shape.iter().take_while(|d| **d == 1).count();
        // two axes stay
        let ones = ones.min(tensor.shape.len().saturating_sub(2));
        if let (Some(data), true) = (tensor.data, ones > 0) {
            let shape = &tensor.shape[ones..];
            let name = format!("{}.trimmed", tensor.name);
            let there = graph.find(&name).filter(|t| graph.tensor(*t).shape == shape);
            let new = match there {
                Some(new) => Ok(new),
                None => graph.add_shared_constant(graph.fresh_name(&name), shape, data),
            };
            let Ok(new) = new else { return false };
            *t = new;
        }
    }
    inputs != node.inputs && graph.replace_upstream(id, node.op, &inputs).is_ok()
}

/// The last two axes of `[a, b, m, n]` transposed as `[a * b, m, n]`, as exporters do it for keys: a transpose with all four axes.
fn turned_in_three(graph: &mut Graph, id: NodeId) -> bool {
    let found = || {
        let last = graph.node(id);
        let middle = made(graph, last.inputs[0])?;
        let first = made(graph, middle.inputs[0])?;
        let turned = matches!(&middle.op, Op::Transpose { perm } if perm[..] == [0, 2, 1]);
        if last.op != Op::Reshape || first.op != Op::Reshape || !turned {
            return None;
        }
        let &[a, b, m, n] = graph.tensor(first.inputs[0]).shape.as_slice() else {
            return None;
        };
        let same = graph.tensor(first.output).shape == [a * b, m, n]
            && graph.tensor(last.output).shape == [a, b, n, m];
        same.then_some(first.inputs[0])
    };
    let Some(source) = found() else { return false };
    let perm = vec![0, 1, 3, 2];
    graph
        .replace_upstream(id, Op::Transpose { perm }, &[source])
        .is_ok()
}

/// Reshapes of reshapes, those that change nothing, and those around operators that do not care.
fn reshapes(graph: &mut Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    if node.op != Op::Reshape {
        return false;
    }
    let (x, y) = (node.inputs[0], node.output);
    if graph.tensor(x).shape == graph.tensor(y).shape {
        return drop_reshape(graph, x, y);
    }
    if let Some(before) = made(graph, x)
        && before.op == Op::Reshape
    {
        let source = before.inputs[0];
        return graph.replace_upstream(id, Op::Reshape, &[source]).is_ok();
    }
    around(graph, id).is_some()
}

/// Makes readers of `y` read `x`. The name of a graph output stays.
fn drop_reshape(graph: &mut Graph, x: TensorId, y: TensorId) -> bool {
    let output = graph.outputs().contains(&y);
    if graph.consumers(y).is_empty() && !output {
        return false;
    }
    if output && (graph.producer(x).is_none() || graph.outputs().contains(&x)) {
        return false;
    }
    if graph.redirect(y, x).is_err() {
        return false;
    }
    if output {
        let name = graph.tensor(y).name.clone();
        let other = graph.fresh_name(&name);
        // the first makes room for the second
        let _ = graph.rename(y, other);
        let _ = graph.rename(x, name);
    }
    true
}

/// Whether an operator works along the last axis of its first input or element by element, whatever the other axes.
fn along_last_axis(op: &Op) -> bool {
    matches!(
        op,
        Op::Linear
            | Op::LayerNorm { .. }
            | Op::Gelu { .. }
            | Op::Relu
            | Op::Clip { .. }
            | Op::Tanh
            | Op::Erf
            | Op::Sqrt
            | Op::Pow { .. }
    )
}

/// `[..., k]` to `[n, k]`, operators along the last axis, and back to `[..., m]`: the operators alone.
fn around(graph: &mut Graph, last: NodeId) -> Option<()> {
    let out = graph.tensor(graph.node(last).output).shape.clone();
    let (mut chain, mut t) = (Vec::new(), graph.node(last).inputs[0]);
    let source = loop {
        let id = graph.producer(t)?;
        let node = graph.node(id);
        if node.op == Op::Reshape {
            break node.inputs[0];
        }
        let alone = graph.consumers(t).len() == 1 && !graph.outputs().contains(&t);
        if !along_last_axis(&node.op) || !alone || chain.len() == CHAIN {
            return None;
        }
        chain.push(id);
        t = node.inputs[0];
    };
    let (rank, flat) = (out.len(), &graph.tensor(t).shape);
    let from = &graph.tensor(source).shape;
    let same = from.len() == rank && rank >= 2 && from[..rank - 1] == out[..rank - 1];
    if chain.is_empty() || !same || from.last() != flat.last() {
        return None;
    }
    let mut x = source;
    chain.reverse();
    for (i, id) in chain.iter().enumerate() {
        let node = graph.node(*id).clone();
        let inputs = [&[x], &node.inputs[1..]].concat();
        if i + 1 == chain.len() {
            graph.replace_upstream(last, node.op, &inputs).ok()?;
            graph.rename_node(last, node.name).ok()?;
        } else {
            let name = graph.tensor(node.output).name.clone();
            let other = graph.fresh_name(&name);
            graph.rename(node.output, other).ok()?;
            x = graph.add_node(node.name, node.op, &inputs, name).ok()?;
        }
    }
    Some(())
}
