//! The reference evaluator: every operator as the ONNX standard defines it, in f64, with plain loops. What everything else is
//! compared with; it shares no code with the compiler.

use crate::graph::{Graph, NodeId, Op, TensorId};
use crate::shapes::{Window, windows};
use std::collections::BTreeMap;
use thiserror::Error;

/// The most values that one evaluation may hold (8 GiB).
pub const MAX_VALUES: usize = 1 << 30;

/// Why a graph cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvaluateError {
    /// A graph input was not given.
    #[error("no values for the input `{name}` (given: {given})")]
    Missing {
        /// The input.
        name: String,
        /// The names that were given.
        given: String,
    },
    /// Values were given for something that is no graph input.
    #[error("the model has no input `{name}` (it has: {inputs})")]
    Unknown {
        /// The name.
        name: String,
        /// The inputs that there are.
        inputs: String,
    },
    /// The number of values is not that of the shape.
    #[error("input `{name}` of shape {shape:?} needs {expected} values, got {got}")]
    Length {
        /// The input.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The product of the shape.
        expected: usize,
        /// The values given.
        got: usize,
    },
    /// All tensors together are larger than [`MAX_VALUES`].
    #[error("all tensors together have {0} values (at most {MAX_VALUES} are possible); use a smaller batch")]
    TooLarge(usize),
}

/// All tensors of one run, by [`TensorId`]: inputs, constants and everything that a node makes, in row-major order.
/// `None` for leftovers that nothing makes.
///
/// # Errors
/// If the inputs given are not those of the graph, or the graph is too large.
pub fn evaluate(
    graph: &Graph,
    inputs: &BTreeMap<String, Vec<f64>>,
) -> Result<Vec<Option<Vec<f64>>>, EvaluateError> {
    let size = |t: TensorId| graph.tensor(t).shape.iter().product::<usize>();
    let total = graph
        .tensors()
        .iter()
        .fold(0usize, |n, t| n.saturating_add(t.shape.iter().product()));
    if total > MAX_VALUES {
        return Err(EvaluateError::TooLarge(total));
    }
    let names: Vec<&str> = graph
        .inputs()
        .iter()
        .map(|t| graph.tensor(*t).name.as_str())
        .collect();
    if let Some(name) = inputs.keys().find(|k| !names.contains(&k.as_str())) {
        return Err(EvaluateError::Unknown {
            name: name.clone(),
            inputs: names.join(", "),
        });
    }
    let constant = |d: &std::sync::Arc<Vec<f32>>| d.iter().map(|v| f64::from(*v)).collect();
    let mut values: Vec<Option<Vec<f64>>> = graph
        .tensors()
        .iter()
        .map(|t| t.data.as_ref().map(constant))
        .collect();
    for &t in graph.inputs() {
        let tensor = graph.tensor(t);
        let name = tensor.name.clone();
        let Some(given) = inputs.get(&name) else {
            let given = inputs.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(EvaluateError::Missing { name, given });
        };
        if given.len() != size(t) {
            let (shape, expected, got) = (tensor.shape.clone(), size(t), given.len());
            return Err(EvaluateError::Length {
                name,
                shape,
                expected,
                got,
            });
        }
        values[t.0 as usize] = Some(given.clone());
    }
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        let of: Option<Vec<&[f64]>> = node
            .inputs
            .iter()
            .map(|t| values[t.0 as usize].as_deref())
            .collect();
        if let Some(of) = of {
            values[node.output.0 as usize] = Some(evaluate_node(graph, id, &of));
        }
    }
    Ok(values)
}

/// The output of one node for given inputs (row-major, of the shapes that the graph says; constants included).
///
/// # Panics
/// If the number of inputs or their lengths are not those of the graph.
pub fn evaluate_node(graph: &Graph, id: NodeId, inputs: &[&[f64]]) -> Vec<f64> {
    let node = graph.node(id);
    let shapes: Vec<&[usize]> = node
        .inputs
        .iter()
        .map(|t| graph.tensor(*t).shape.as_slice())
        .collect();
    assert_eq!(
        inputs.len(),
        shapes.len(),
        "node `{}`: number of inputs",
        node.name
    );
    for (values, shape) in inputs.iter().zip(&shapes) {
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "node `{}`: length of an input",
            node.name
        );
    }
    let out = graph.tensor(node.output).shape.as_slice();
    match &node.op {
        Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } => {
            let w = windows(
                shapes[0],
                [shapes[1][2], shapes[1][3]],
                *strides,
                *pads,
                *dilations,
            );
            conv(inputs, shapes[0], out, w, *groups)
        }
        Op::Linear => linear(inputs, shapes[0][1], out),
        Op::Add => element_wise(inputs, &shapes, out, |a, b| a + b),
        Op::Mul => element_wise(inputs, &shapes, out, |a, b| a * b),
        Op::Relu => inputs[0].iter().map(|v| v.max(0.0)).collect(),
        Op::MaxPool {
            kernel,
            strides,
            pads,
        } => {
            let w = windows(shapes[0], *kernel, *strides, *pads, [1, 1]);
            pool(inputs[0], out, w, f64::NEG_INFINITY, f64::max).0
        }
        Op::AvgPool {
            kernel,
            strides,
            pads,
            count_include_pad,
        } => {
            let w = windows(shapes[0], *kernel, *strides, *pads, [1, 1]);
            let (mut sums, hits) = pool(inputs[0], out, w, 0.0, |a, b| a + b);
            let all = (kernel[0] * kernel[1]) as f64;
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum /= if *count_include_pad {
                    all
                } else {
                    hits[i % hits.len()] as f64
                };
            }
            sums
        }
        Op::Softmax { axis } => softmax(inputs[0], out, *axis),
        Op::Reshape => inputs[0].to_vec(),
        Op::Transpose { perm } => transpose(inputs[0], shapes[0], perm),
        Op::BatchNorm { epsilon } => {
            let inner: usize = out[2..].iter().product();
            let normed = |(i, x): (usize, &f64)| {
                let c = i / inner % out[1];
                (x - inputs[3][c]) / (inputs[4][c] + f64::from(*epsilon)).sqrt() * inputs[1][c] + inputs[2][c]
            };
            inputs[0].iter().enumerate().map(normed).collect()
        }
    }
}

/// y[n, m, p] = bias[m] + sum over the group's channels c and taps t: w[m, c, t] * x[n, c, element(t, p)].
fn conv(
    inputs: &[&[f64]],
    input: &[usize],
    out: &[usize],
    [rows, columns]: [Window; 2],
    groups: usize,
) -> Vec<f64> {
    let (x, w) = (inputs[0], inputs[1]);
    let (channels, plane_in) = (input[1], input[2] * input[3]);
    let (features, plane_out) = (out[1], out[2] * out[3]);
    let (group_in, group_out, taps) = (channels / groups, features / groups, rows.kernel * columns.kernel);
    let mut y = vec![0.0; out.iter().product()];
    for (at, y) in y.chunks_exact_mut(plane_out).enumerate() {
        let (n, m) = (at / features, at % features);
        y.fill(inputs.get(2).map_or(0.0, |bias| bias[m]));
        for c in 0..group_in {
            let channel = n * channels + m / group_out * group_in + c;
            let x = &x[channel * plane_in..][..plane_in];
            let w = &w[(m * group_in + c) * taps..][..taps];
            for (tap, w) in w.iter().enumerate() {
                let (ky, kx) = (tap / columns.kernel, tap % columns.kernel);
                let hit = columns.hits(kx, out[3]);
                if hit.is_empty() {
                    continue;
                }
                let first = columns.element(kx, hit.start);
                for oy in rows.hits(ky, out[2]) {
                    let line =
                        &x[rows.element(ky, oy) * input[3] + first..(rows.element(ky, oy) + 1) * input[3]];
                    let y = &mut y[oy * out[3]..][hit.clone()];
                    for (y, x) in y.iter_mut().zip(line.iter().step_by(columns.stride)) {
                        *y += w * x;
                    }
                }
            }
        }
    }
    y
}

/// y[n, m] = bias[m] + sum over k: w[m, k] * x[n, k].
fn linear(inputs: &[&[f64]], k: usize, out: &[usize]) -> Vec<f64> {
    let mut y = Vec::with_capacity(out[0] * out[1]);
    for x in inputs[0].chunks_exact(k) {
        for (m, w) in inputs[1].chunks_exact(k).enumerate() {
            let bias = inputs.get(2).map_or(0.0, |bias| bias[m]);
            y.push(w.iter().zip(x).fold(bias, |sum, (w, x)| sum + w * x));
        }
    }
    y
}

/// The steps through the elements of `shape` for each axis of `out`: 0 where the axis is broadcast.
fn steps(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let mut steps = vec![0; out.len()];
    let mut step = 1;
    for (axis, size) in shape.iter().enumerate().rev() {
        if *size > 1 {
            steps[axis + out.len() - shape.len()] = step;
        }
        step *= size;
    }
    steps
}

/// Calls `visit` with the offset that `steps` gives for each index of `shape`, in row-major order.
fn walk(shape: &[usize], steps: &[&[usize]], mut visit: impl FnMut(&[usize])) {
    let mut index = vec![0; shape.len()];
    let mut at = vec![0; steps.len()];
    for _ in 0..shape.iter().product::<usize>() {
        visit(&at);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            let wrapped = index[axis] == shape[axis];
            for (at, steps) in at.iter_mut().zip(steps) {
                *at = if wrapped {
                    *at - (shape[axis] - 1) * steps[axis]
                } else {
                    *at + steps[axis]
                };
            }
            if !wrapped {
                break;
            }
            index[axis] = 0;
        }
    }
}

fn element_wise(
    inputs: &[&[f64]],
    shapes: &[&[usize]],
    out: &[usize],
    op: impl Fn(f64, f64) -> f64,
) -> Vec<f64> {
    let (a, b) = (steps(shapes[0], out), steps(shapes[1], out));
    let mut y = Vec::with_capacity(out.iter().product());
    walk(out, &[&a, &b], |at| {
        y.push(op(inputs[0][at[0]], inputs[1][at[1]]))
    });
    y
}

/// Axis `i` of the result is axis `perm[i]` of `x`.
pub(crate) fn transpose<T: Copy>(x: &[T], shape: &[usize], perm: &[usize]) -> Vec<T> {
    let from = steps(shape, shape);
    let out: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
    let of: Vec<usize> = perm.iter().map(|p| from[*p]).collect();
    let mut y = Vec::with_capacity(x.len());
    walk(&out, &[&of], |at| y.push(x[at[0]]));
    y
}

/// Folds `op` over the elements that each window hits; also how many those are for each position of a plane.
fn pool(
    x: &[f64],
    out: &[usize],
    [rows, columns]: [Window; 2],
    start: f64,
    op: impl Fn(f64, f64) -> f64,
) -> (Vec<f64>, Vec<usize>) {
    let (plane_in, plane_out) = (rows.input * columns.input, out[2] * out[3]);
    // elements from..to that the window at a position hits
    let range = |w: &Window, o: usize| {
        let from = o * w.stride;
        from.saturating_sub(w.before)..(from + w.kernel).saturating_sub(w.before).min(w.input)
    };
    let mut y = vec![start; out.iter().product()];
    let mut hits = vec![0; plane_out];
    for (x, y) in x.chunks_exact(plane_in).zip(y.chunks_exact_mut(plane_out)) {
        for (at, y) in y.iter_mut().enumerate() {
            let (iy, ix) = (range(&rows, at / out[3]), range(&columns, at % out[3]));
            hits[at] = iy.len() * ix.len();
            for row in iy {
                *y = x[row * columns.input..][ix.clone()]
                    .iter()
                    .fold(*y, |y, x| op(y, *x));
            }
        }
    }
    (y, hits)
}

fn softmax(x: &[f64], shape: &[usize], axis: usize) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product();
    let n = shape[axis];
    let mut y = x.to_vec();
    for block in y.chunks_exact_mut(n * inner) {
        for i in 0..inner {
            let line = || (0..n).map(move |k| i + k * inner);
            let max = line().map(|k| block[k]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = line().map(|k| (block[k] - max).exp()).sum();
            for k in line() {
                block[k] = (block[k] - max).exp() / sum;
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(op: Op, shapes: &[&[usize]]) -> Graph {
        let mut g = Graph::new("g");
        let inputs: Vec<TensorId> = shapes
            .iter()
            .enumerate()
            .map(|(i, s)| g.add_input(format!("i{i}"), s).unwrap())
            .collect();
        let y = g.add_node("node", op, &inputs, "y").unwrap();
        g.add_output(y).unwrap();
        g
    }

    fn run(op: Op, inputs: &[(&[usize], &[f64])]) -> Vec<f64> {
        let g = graph(op, &inputs.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        evaluate_node(&g, NodeId(0), &inputs.iter().map(|(_, v)| *v).collect::<Vec<_>>())
    }

    #[test]
    fn element_wise_operators_broadcast() {
        let y = run(
            Op::Add,
            &[(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), (&[2], &[10.0, 20.0])],
        );
        assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
        let y = run(Op::Mul, &[(&[2, 1], &[2.0, 3.0]), (&[1, 3], &[1.0, 2.0, 4.0])]);
        assert_eq!(y, [2.0, 4.0, 8.0, 3.0, 6.0, 12.0]);
    }

    #[test]
    fn transposing_twice_is_nothing() {
        let x: Vec<f64> = (0..24).map(f64::from).collect();
        let y = run(Op::Transpose { perm: vec![2, 0, 1] }, &[(&[2, 3, 4], &x)]);
        assert_eq!(y[..4], [0.0, 4.0, 8.0, 12.0]);
        assert_eq!(run(Op::Transpose { perm: vec![1, 2, 0] }, &[(&[4, 2, 3], &y)]), x);
    }

    #[test]
    fn a_convolution_by_hand() {
        let op = Op::Conv {
            strides: [1, 2],
            pads: [0, 1, 0, 0],
            dilations: [1, 1],
            groups: 1,
        };
        let y = run(
            op,
            &[
                (&[1, 1, 1, 4], &[1.0, 2.0, 3.0, 4.0]),
                (&[1, 1, 1, 2], &[10.0, 1.0]),
                (&[1], &[0.5]),
            ],
        );
        assert_eq!(y, [1.5, 23.5]);
    }

    #[test]
    fn softmax_of_large_values_is_finite() {
        let y = run(Op::Softmax { axis: 1 }, &[(&[1, 2], &[1e4, 1e4])]);
        assert_eq!(y, [0.5, 0.5]);
    }

    #[test]
    fn wrong_inputs_are_named() {
        let g = graph(Op::Relu, &[&[2]]);
        let give = |name: &str, n: usize| evaluate(&g, &BTreeMap::from([(name.to_string(), vec![0.0; n])]));
        assert!(matches!(give("x", 2), Err(EvaluateError::Unknown { .. })));
        assert!(matches!(
            give("i0", 3),
            Err(EvaluateError::Length {
                expected: 2,
                got: 3,
                ..
            })
        ));
        assert!(matches!(
            evaluate(&g, &BTreeMap::new()),
            Err(EvaluateError::Missing { .. })
        ));
        assert_eq!(give("i0", 2).unwrap()[1], Some(vec![0.0; 2]));
    }
}
