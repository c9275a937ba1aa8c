//! Attention: `transpose(softmax(scale * q4 * kT4 + mask) * v4)` with q4, kT4 and v4 transposed from `[batch, tokens, heads,
//! width]`.

use super::{made, near, scalar, scaled};
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
    graph.replace_upstream(id, Op::Reshape, &[attention]).ok()
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
    let constant = |t: TensorId| graph.tensor(t).data.is_some();
    let (below, seen) = match node.op {
        Op::Add => {
            let (x, m) = match (constant(node.inputs[0]), constant(node.inputs[1])) {
                (false, true) => (node.inputs[0], node.inputs[1]),
                (true, false) => (node.inputs[1], node.inputs[0]),
                _ => return None,
            };
            let kept = |v: f32| match f64::from(v) {
                0.0 => Some(true),
                v if v <= MASKED => Some(false),
                _ => None,
            };
            (x, kind(graph, m, shape[3], kept))
        }
        Op::Where => {
            let (condition, a, b) = (node.inputs[0], node.inputs[1], node.inputs[2]);
            let (x, fill, where_true) = match (scalar(graph, a), scalar(graph, b)) {
                (None, Some(fill)) => (a, fill, true),
                (Some(fill), None) => (b, fill, false),
                _ => return None,
            };
            if fill > MASKED || !constant(condition) {
                return None;
            }
            (
                x,
                kind(graph, condition, shape[3], |v| Some((v != 0.0) == where_true)),
            )
        }
        _ => return None,
    };
    (graph.tensor(below).shape == *shape).then_some((below, seen))
}

/// Which pairs a mask keeps, if it is all of them, or the causal ones for every item and head.
fn kind(graph: &Graph, mask: TensorId, tokens: usize, kept: impl Fn(f32) -> Option<bool>) -> Option<Seen> {
    let mask = graph.tensor(mask);
    let data = mask.data.as_deref()?;
    if data.iter().all(|v| kept(*v) == Some(true)) {
        return Some(Seen::All);
    }
    let causal = |(i, v): (usize, &f32)| kept(*v) == Some(i % tokens <= i / tokens % tokens);
    let square = mask.shape.ends_with(&[tokens, tokens]);
    (square && data.iter().enumerate().all(causal)).then_some(Seen::Causal)
}
