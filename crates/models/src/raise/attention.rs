//! Attention: `transpose(softmax(scale * q4 * kT4 + mask) * v4)` with q4, kT4 and v4 transposed from `[batch, tokens, heads,
//! width]`.

use super::{made, near, scalar, scaled};
use crate::evaluate::{steps, walk};
use crate::graph::{Graph, NodeId, Op, TensorId};

/// Scores at most this far below the others leave nothing in a softmax: exp(-1e4) is 0 in float64 too.
const MASKED: f64 = -1e4;

/// Which pairs of tokens see each other.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    All,
    Causal,
}

/// Replaces the transpose that ends an attention by the attention and a reshape to the transpose's shape.
pub(super) fn raise(graph: &mut Graph, id: NodeId) -> bool {
    find(graph, id).is_some()
}

fn find(graph: &mut Graph, id: NodeId) -> Option<()> {
    let last = graph.node(id);
    if !matches!(&last.op, Op::Transpose { perm } if perm[..] == [0, 2, 1, 3]) {
        return None;
    }
    let &[batch, tokens, heads, width] = graph.tensor(last.output).shape.as_slice() else {
        return None;
    };
    let mixed = made(graph, last.inputs[0]).filter(|n| n.op == Op::MatMul)?;
    let softmax = made(graph, mixed.inputs[0]).filter(|n| n.op == Op::Softmax { axis: 3 })?;
    let (mut scores, mut seen) = (softmax.inputs[0], Seen::All);
    let square = [batch, heads, tokens, tokens];
    if graph.tensor(scores).shape != square {
        return None;
    }
    if let Some((below, kind)) = mask(graph, scores) {
        (scores, seen) = (below, kind?);
    }
    let mut scale = 1.0;
    peel(graph, &mut scores, &mut scale);
    let product = made(graph, scores).filter(|n| n.op == Op::MatMul)?;
    let (q4, k4) = (product.inputs[0], product.inputs[1]);
    let (name, end) = (softmax.name.clone(), graph.tensor(last.output).name.clone());
    let v4 = mixed.inputs[1];

    let shape = [batch, tokens, heads, width];
    let q = source(graph, q4, [0, 2, 1, 3], &shape, &mut scale)?;
    let k = source(graph, k4, [0, 2, 3, 1], &shape, &mut scale)?;
    let mut unscaled = 1.0;
    let v = source(graph, v4, [0, 2, 1, 3], &shape, &mut unscaled)?;
    if !near(scale, 1.0 / (width as f64).sqrt()) || unscaled != 1.0 {
        return None;
    }
    let joined = [batch, tokens, heads * width];
    let mut inputs = Vec::new();
    for t in [q, k, v] {
        if graph.tensor(t).shape == joined {
            inputs.push(t);
            continue;
        }
        let name = graph.fresh_name(&format!("{}.joined", graph.tensor(t).name));
        inputs.push(graph.add_reshape(name.as_str(), t, name.as_str(), &joined).ok()?);
    }
    let op = Op::Attention {
        heads,
        causal: seen == Seen::Causal,
    };
    let output = graph.fresh_name(&format!("{end}.attention"));
    let attention = graph.add_node(name, op, &inputs, output).ok()?;
    graph.replace_node(id, Op::Reshape, &[attention]).ok()
}

/// Takes constant factors off a tensor.
fn peel(graph: &Graph, t: &mut TensorId, scale: &mut f64) {
    for _ in 0..4 {
        let Some((factor, x)) = scaled(graph, *t) else {
            return;
        };
        *scale *= factor;
        *t = x;
    }
}

/// What was transposed by `perm` from `[batch, tokens, heads, width]`, before it was given that shape. Factors on the way
/// are taken into the scale.
fn source(
    graph: &Graph,
    mut t: TensorId,
    perm: [usize; 4],
    shape: &[usize; 4],
    scale: &mut f64,
) -> Option<TensorId> {
    let mut all = [0, 1, 2, 3];
    for _ in 0..3 {
        peel(graph, &mut t, scale);
        let Some(node) = made(graph, t) else { break };
        let Op::Transpose { perm } = &node.op else { break };
        // axis i is axis all[i] of this transpose's output
        all = all.map(|i| perm.get(i).copied().unwrap_or(0));
        t = node.inputs[0];
    }
    if all != perm || graph.tensor(t).shape != shape {
        return None;
    }
    if let Some(node) = made(graph, t).filter(|n| n.op == Op::Reshape) {
        t = node.inputs[0];
    }
    // not beyond what scales both sides alike
    if !near(*scale, 1.0 / (shape[3] as f64).sqrt()) {
        peel(graph, &mut t, scale);
    }
    Some(t)
}

/// If scores are masked by a constant: those before, and which pairs stay (`None` if neither all nor the causal ones).
fn mask(graph: &Graph, scores: TensorId) -> Option<(TensorId, Option<Seen>)> {
    let node = made(graph, scores)?;
    let shape = &graph.tensor(scores).shape;
    let constant = |t: TensorId| graph.tensor(t).data.as_deref();
    let same = |t: TensorId| graph.tensor(t).shape == *shape;
    let (below, kept): (TensorId, Vec<Option<bool>>) = match node.op {
        Op::Add => {
            let (x, m) = match (constant(node.inputs[0]), constant(node.inputs[1])) {
                (None, Some(_)) => (node.inputs[0], node.inputs[1]),
                (Some(_), None) => (node.inputs[1], node.inputs[0]),
                _ => return None,
            };
            let keep = |v: &f32| match f64::from(*v) {
                0.0 => Some(true),
                v if v <= MASKED => Some(false),
                _ => None,
            };
            (x, spread(graph, m, shape).iter().map(keep).collect())
        }
        Op::Where => {
            let (a, b) = (node.inputs[1], node.inputs[2]);
            constant(node.inputs[0])?;
            let (x, fill, of_scores) = match (scalar(graph, a), scalar(graph, b)) {
                (None, Some(fill)) => (a, fill, true),
                (Some(fill), None) => (b, fill, false),
                _ => return None,
            };
            if fill > MASKED {
                return None;
            }
            let keep = |v: &f32| Some((*v != 0.0) == of_scores);
            (x, spread(graph, node.inputs[0], shape).iter().map(keep).collect())
        }
        _ => return None,
    };
    if !same(below) {
        return None;
    }
    let tokens = shape[3];
    let all = kept.iter().all(|k| *k == Some(true));
    let causal = |(i, k): (usize, &Option<bool>)| *k == Some(i % tokens <= i / tokens % tokens);
    let seen = if all {
        Some(Seen::All)
    } else if kept.iter().enumerate().all(causal) {
        Some(Seen::Causal)
    } else {
        None
    };
    Some((below, seen))
}

/// A constant's values, repeated to a shape; nothing if it does not go.
fn spread(graph: &Graph, t: TensorId, shape: &[usize]) -> Vec<f32> {
    let tensor = graph.tensor(t);
    let fits = crate::shapes::broadcast(&tensor.shape, shape).is_ok_and(|s| s == shape);
    let Some(data) = tensor.data.as_deref().filter(|_| fits) else {
        return vec![f32::NAN];
    };
    // the same for all items and heads in most files: one matrix is enough
    let rank = tensor.shape.len();
    let square = &shape[shape.len() - 2..];
    let (target, own) = if tensor.shape.iter().take(rank.saturating_sub(2)).all(|d| *d == 1) {
        (square, &tensor.shape[rank.saturating_sub(2)..])
    } else {
        (shape, tensor.shape.as_slice())
    };
    let from = steps(own, target);
    let mut all = Vec::with_capacity(target.iter().product());
    walk(target, &[&from], |at| all.push(data[at[0]]));
    all
}
