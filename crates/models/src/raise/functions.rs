//! GELU, layer norms and global pooling that are written out.

use super::{made, near, scalar, scaled};
use crate::graph::{Graph, NodeId, Op, TensorId};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// The most factors of a product that are told apart.
const FACTORS: usize = 8;

/// A product as a number and the tensors that are multiplied, all of the product's shape. `x` is not taken apart.
fn product(graph: &Graph, t: TensorId, x: Option<TensorId>) -> Option<(f64, Vec<TensorId>)> {
    let shape = &graph.tensor(t).shape;
    let (mut number, mut factors, mut todo) = (1.0, Vec::new(), vec![t]);
    while let Some(t) = todo.pop() {
        if let Some(c) = scalar(graph, t) {
            number *= c;
            continue;
        }
        match made(graph, t).filter(|_| Some(t) != x) {
            Some(node) if node.op == Op::Mul => todo.extend(node.inputs.iter().rev()),
            Some(node) if node.op == Op::Div && scalar(graph, node.inputs[1]).is_some() => {
                number /= scalar(graph, node.inputs[1])?;
                todo.push(node.inputs[0]);
            }
            _ => factors.push(t),
        }
        if todo.len() + factors.len() > FACTORS {
            return None;
        }
    }
    let same = factors.iter().all(|f| graph.tensor(*f).shape == *shape);
    same.then_some((number, factors))
}

/// If `t` is a sum of a constant number and something: both.
fn shifted(graph: &Graph, t: TensorId) -> Option<(f64, TensorId)> {
    let node = made(graph, t).filter(|n| n.op == Op::Add)?;
    match (scalar(graph, node.inputs[0]), scalar(graph, node.inputs[1])) {
        (Some(c), None) => Some((c, node.inputs[1])),
        (None, Some(c)) => Some((c, node.inputs[0])),
        _ => None,
    }
}

/// `0.5 * x * (1 + f(x))` with the function of either form of GELU, in any order and nesting of the products.
pub(super) fn gelu(graph: &mut Graph, id: NodeId) -> bool {
    match find_gelu(graph, id) {
        Some((x, tanh)) => graph.replace_upstream(id, Op::Gelu { tanh }, &[x]).is_ok(),
        None => false,
    }
}

fn find_gelu(graph: &Graph, id: NodeId) -> Option<(TensorId, bool)> {
    let node = graph.node(id);
    if !matches!(node.op, Op::Mul | Op::Div) {
        return None;
    }
    let (_, factors) = product(graph, node.output, None)?;
    for factor in factors {
        let Some((one, inner)) = shifted(graph, factor) else {
            continue;
        };
        let Some(function) = made(graph, inner).filter(|_| one == 1.0) else {
            continue;
        };
        let argument = function.inputs[0];
        let (x, tanh) = match function.op {
            Op::Erf => match scaled(graph, argument) {
                Some((c, x)) if near(c, FRAC_1_SQRT_2) => (x, false),
                _ => continue,
            },
            Op::Tanh => match cubic(graph, argument) {
                Some(x) => (x, true),
                None => continue,
            },
            _ => continue,
        };
        let (half, mut parts) = product(graph, node.output, Some(x))?;
        parts.sort_unstable();
        let mut expected = [x, factor];
        expected.sort_unstable();
        if near(half, 0.5) && parts == expected {
            return Some((x, tanh));
        }
    }
    None
}

/// The `x` of `sqrt(2 / pi) * (x + 0.044715 x^3)`.
fn cubic(graph: &Graph, t: TensorId) -> Option<TensorId> {
    let (c, sum) = scaled(graph, t)?;
    let sum = made(graph, sum).filter(|n| n.op == Op::Add && near(c, FRAC_1_SQRT_2 * FRAC_2_SQRT_PI))?;
    let (a, b) = (sum.inputs[0], sum.inputs[1]);
    let is_cube = |cube: TensorId, x: TensorId| {
        let Some((c, factors)) = product(graph, cube, Some(x)) else {
            return false;
        };
        let power = |t: TensorId| match made(graph, t) {
            _ if t == x => Some(1.0),
            Some(n) => match n.op {
                Op::Pow { exponent } if n.inputs[0] == x => Some(f64::from(exponent)),
                _ => None,
            },
            None => None,
        };
        let all: Option<Vec<f64>> = factors.into_iter().map(power).collect();
        near(c, 0.044_715) && all.is_some_and(|p| p.iter().sum::<f64>() == 3.0)
    };
    [(a, b), (b, a)]
        .into_iter()
        .find(|(x, cube)| is_cube(*cube, *x))
        .map(|(x, _)| x)
}

/// Whether a tensor is the mean of `x` over its last axis, which stays.
fn is_mean(graph: &Graph, t: TensorId, x: TensorId) -> bool {
    let last = graph.tensor(x).shape.len().wrapping_sub(1);
    made(graph, t).is_some_and(|n| {
        n.inputs[0] == x && matches!(&n.op, Op::ReduceMean { axes, keep: true } if axes[..] == [last])
    })
}

/// `x - mean(x)`: the `x`.
fn centred(graph: &Graph, t: TensorId) -> Option<TensorId> {
    let node = made(graph, t).filter(|n| n.op == Op::Sub)?;
    is_mean(graph, node.inputs[1], node.inputs[0]).then_some(node.inputs[0])
}

/// `(x - mean) / sqrt(mean((x - mean)^2) + epsilon)`: a layer norm that neither scales nor shifts.
pub(super) fn layer_norm(graph: &mut Graph, id: NodeId) -> bool {
    raise_layer_norm(graph, id).is_some()
}

fn raise_layer_norm(graph: &mut Graph, id: NodeId) -> Option<()> {
    let node = graph.node(id);
    if node.op != Op::Div {
        return None;
    }
    let x = centred(graph, node.inputs[0])?;
    let root = made(graph, node.inputs[1])?;
    if !matches!(root.op, Op::Sqrt) && root.op != (Op::Pow { exponent: 0.5 }) {
        return None;
    }
    let (epsilon, variance) = shifted(graph, root.inputs[0])?;
    let squares = made(graph, variance)?.inputs[0];
    let square = made(graph, squares)?;
    let of_centred = |t: TensorId| centred(graph, t) == Some(x);
    let squared = match square.op {
        Op::Pow { exponent: 2.0 } => true,
        Op::Mul => of_centred(square.inputs[1]),
        _ => false,
    };
    if !is_mean(graph, variance, squares) || !squared || !of_centred(square.inputs[0]) || epsilon < 0.0 {
        return None;
    }
    let d = graph.tensor(x).shape.last().copied()?;
    let mut constant = |what: &str, value: f32| {
        let name = graph.fresh_name(&format!("{}.{what}", graph.tensor(graph.node(id).output).name));
        graph.add_constant(name, &[d], vec![value; d]).ok()
    };
    let (scale, bias) = (constant("scale", 1.0)?, constant("bias", 0.0)?);
    let op = Op::LayerNorm {
        epsilon: epsilon as f32,
    };
    graph.replace_upstream(id, op, &[x, scale, bias]).ok()
}

/// A constant factor or addend, one a feature, after a layer norm that does not scale or shift: its scale or bias.
pub(super) fn scale_and_shift(graph: &mut Graph, id: NodeId) -> bool {
    absorb(graph, id).is_some()
}

fn absorb(graph: &mut Graph, id: NodeId) -> Option<()> {
    let node = graph.node(id);
    if !matches!(node.op, Op::Mul | Op::Add) {
        return None;
    }
    let constant = |t: TensorId| graph.tensor(t).data.clone();
    let (x, data) = match (constant(node.inputs[0]), constant(node.inputs[1])) {
        (None, Some(data)) => (node.inputs[0], data),
        (Some(data), None) => (node.inputs[1], data),
        _ => return None,
    };
    let norm = made(graph, x).filter(|n| matches!(n.op, Op::LayerNorm { .. }))?;
    let alone = graph.consumers(x).len() == 1 && !graph.outputs().contains(&x);
    let shape = &graph.tensor(x).shape;
    let all = |t: TensorId, value: f32| constant(t).is_some_and(|d| d.iter().all(|v| *v == value));
    let free = all(norm.inputs[2], 0.0) && (node.op == Op::Add || all(norm.inputs[1], 1.0));
    // one value a feature, and no more axes than the norm's result
    let fits = *shape == graph.tensor(node.output).shape && shape.last() == Some(&data.len());
    let aligned = node.inputs.iter().all(|t| {
        let s = &graph.tensor(*t).shape;
        *t == x || s.last() == Some(&data.len())
    });
    if !alone || !free || !fits || !aligned {
        return None;
    }
    let (op, mut inputs) = (norm.op.clone(), norm.inputs.clone());
    let place = if node.op == Op::Mul { 1 } else { 2 };
    let name = graph.fresh_name(&format!(
        "{}.{}",
        graph.tensor(node.output).name,
        if place == 1 { "scale" } else { "bias" }
    ));
    let t = graph
        .add_shared_constant(name, &[data.len()], data.clone())
        .ok()?;
    inputs[place] = t;
    graph.replace_upstream(id, op, &inputs).ok()
}

/// The mean over all of a plane: average pooling.
pub(super) fn pooling(graph: &mut Graph, id: NodeId) -> bool {
    raise_pooling(graph, id).is_some()
}

fn raise_pooling(graph: &mut Graph, id: NodeId) -> Option<()> {
    let node = graph.node(id);
    let Op::ReduceMean { axes, keep } = &node.op else {
        return None;
    };
    let (x, keep) = (node.inputs[0], *keep);
    let &[_, _, h, w] = graph.tensor(x).shape.as_slice() else {
        return None;
    };
    if axes[..] != [2, 3] {
        return None;
    }
    let op = Op::AvgPool {
        kernel: [h, w],
        strides: [1; 2],
        pads: [0; 4],
        count_include_pad: false,
    };
    if keep {
        return graph.replace_upstream(id, op, &[x]).ok();
    }
    let (name, output) = (node.name.clone(), graph.tensor(node.output).name.clone());
    let output = graph.fresh_name(&format!("{output}.pooled"));
    let pooled = graph.add_node(name, op, &[x], output).ok()?;
    graph.replace_upstream(id, Op::Reshape, &[pooled]).ok()
}
