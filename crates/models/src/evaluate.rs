//! The reference evaluator: every operator as the ONNX standard defines it, in f64: products of matrices by a library, all else with plain
//! loops. What everything else is compared with; it shares no code with the compiler.

mod product;
mod sequence;

use crate::graph::{Graph, NodeId, Op, TensorId};
use crate::shapes::{Window, windows};
use product::{add_product, matrix};
use std::collections::BTreeMap;
use std::ops::Range;
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
    /// A constant's values are not held.
    #[error(
        "constant `{0}` is abstract (its values are not held): the graph can be counted, not evaluated; build it with values"
    )]
    Abstract(String),
    /// An id is no row of the table that it chooses from.
    #[error("node `{node}`: id {id} at index {index} is no row of its table: expected a whole number from 0 to {last}", last = rows - 1)]
    Id {
        /// The node.
        node: String,
        /// The row-major index of the id.
        index: usize,
        /// The id, as it would be printed.
        id: String,
        /// The rows of the table.
        rows: usize,
    },
    /// All tensors together are larger than [`MAX_VALUES`].
    #[error("all tensors together have {0} values (at most {MAX_VALUES} are possible); use a smaller batch")]
    TooLarge(usize),
}

/// All tensors of one run, by [`TensorId`]: inputs, constants and everything that a node makes, in row-major order.
/// `None` for leftovers that nothing makes.
///
/// # Errors
/// If the inputs given are not those of the graph, an id is no row of its table, a constant is abstract or the graph is too
/// large.
pub fn evaluate(
    graph: &Graph,
    inputs: &BTreeMap<String, Vec<f64>>,
) -> Result<Vec<Option<Vec<f64>>>, EvaluateError> {
    evaluate_adjusted(graph, inputs, |_, _| ())
}

/// The same, where `adjust` may change every tensor before anything reads it: each input and constant, and what each node makes.
/// With a function that rounds, it tells what a narrower type costs by itself.
///
/// # Errors
/// Those of [`evaluate`].
pub fn evaluate_adjusted(
    graph: &Graph,
    inputs: &BTreeMap<String, Vec<f64>>,
    adjust: impl Fn(TensorId, &mut [f64]),
) -> Result<Vec<Option<Vec<f64>>>, EvaluateError> {
    let size = |t: TensorId| graph.tensor(t).shape.iter().product::<usize>();
    let total = graph
        .tensors()
        .iter()
        .fold(0usize, |n, t| n.saturating_add(t.shape.iter().product()));
    if total > MAX_VALUES {
        return Err(EvaluateError::TooLarge(total));
    }
    let held = |t: &&TensorId| graph.tensor(**t).data.is_some();
    if let Some(t) = graph.constants().iter().find(|t| !held(t)) {
        return Err(EvaluateError::Abstract(graph.tensor(*t).name.clone()));
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
    for (t, v) in (0..).map(TensorId).zip(&mut values) {
        if let Some(v) = v {
            adjust(t, v);
        }
    }
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        let of: Option<Vec<&[f64]>> = node
            .inputs
            .iter()
            .map(|t| values[t.0 as usize].as_deref())
            .collect();
        if let Some(of) = of {
            if node.op == Op::Gather {
                check_ids(&node.name, of[0], graph.tensor(node.inputs[1]).shape[0])?;
            }
            let mut made = evaluate_node(graph, id, &of);
            adjust(node.output, &mut made);
            values[node.output.0 as usize] = Some(made);
        }
    }
    Ok(values)
}

fn check_ids(node: &str, ids: &[f64], rows: usize) -> Result<(), EvaluateError> {
    match ids.iter().position(|id| !sequence::is_row(*id, rows)) {
        None => Ok(()),
        Some(index) => Err(EvaluateError::Id {
            node: node.into(),
            index,
            id: ids[index].to_string(),
            rows,
        }),
    }
}

/// The output of one node for given inputs (row-major, of the shapes that the graph says; constants included).
///
/// # Panics
/// If the number of inputs or their lengths are not those of the graph, or an id is no row of its table.
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
        Op::Linear => linear(inputs, shapes[1][1], out),
        Op::MatMul => mat_mul(inputs, &shapes, out),
        Op::Gather => sequence::gather(inputs[0], inputs[1], shapes[1][1]),
        Op::Add => element_wise(inputs, &shapes, out, |a, b| a + b),
        Op::Sub => element_wise(inputs, &shapes, out, |a, b| a - b),
        Op::Mul => element_wise(inputs, &shapes, out, |a, b| a * b),
        Op::Div => element_wise(inputs, &shapes, out, |a, b| a / b),
        Op::Where => choose(inputs, &shapes, out),
        Op::Relu => map(inputs[0], |x| x.max(0.0)),
        Op::Clip { min, max } => map(inputs[0], |x| x.max(f64::from(*min)).min(f64::from(*max))),
        Op::Gelu { tanh } => map(inputs[0], |x| sequence::gelu(x, *tanh)),
        Op::Tanh => map(inputs[0], f64::tanh),
        Op::Erf => map(inputs[0], libm::erf),
        Op::Sqrt => map(inputs[0], f64::sqrt),
        Op::Pow { exponent } => map(inputs[0], |x| power(x, f64::from(*exponent))),
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
        Op::LayerNorm { epsilon } => {
            sequence::layer_norm(inputs[0], inputs[1], inputs[2], f64::from(*epsilon))
        }
        Op::Attention { heads, causal } => {
            sequence::attention([inputs[0], inputs[1], inputs[2]], out, *heads, *causal)
        }
        Op::ZeroInsert { factor } => zero_insert(inputs[0], out, *factor),
        Op::Slice { axis, start, end } => slice(inputs[0], shapes[0], *axis, *start..*end),
        Op::ReduceMean { axes, .. } => reduce_mean(inputs[0], shapes[0], axes),
    }
}

fn map(x: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|x| f(*x)).collect()
}

/// Whole exponents exactly as repeated products.
fn power(x: f64, exponent: f64) -> f64 {
    if exponent.fract() == 0.0 && exponent.abs() <= 64.0 {
        x.powi(exponent as i32)
    } else {
        x.powf(exponent)
    }
}

/// `a` where the condition is not 0, otherwise `b`.
fn choose(inputs: &[&[f64]], shapes: &[&[usize]], out: &[usize]) -> Vec<f64> {
    let steps: Vec<Vec<usize>> = shapes.iter().map(|s| steps(s, out)).collect();
    let mut y = Vec::with_capacity(out.iter().product());
    walk(out, &[&steps[0], &steps[1], &steps[2]], |at| {
        y.push(if inputs[0][at[0]] != 0.0 {
            inputs[1][at[1]]
        } else {
            inputs[2][at[2]]
        });
    });
    y
}

/// Products of the last two axes, one for each index of those before, which are broadcast.
fn mat_mul(inputs: &[&[f64]], shapes: &[&[usize]], out: &[usize]) -> Vec<f64> {
    let before = out.len() - 2;
    let (m, n, k) = (out[before], out[before + 1], shapes[0][shapes[0].len() - 1]);
    let of = |i: usize| steps(&shapes[i][..shapes[i].len() - 2], &out[..before]);
    let (a, b) = (of(0), of(1));
    let mut y = vec![0.0; out.iter().product()];
    let mut products = y.chunks_exact_mut(m * n);
    walk(&out[..before], &[&a, &b], |at| {
        if let Some(y) = products.next() {
            let (a, b) = (&inputs[0][at[0] * m * k..], &inputs[1][at[1] * k * n..]);
            add_product(matrix(&a[..m * k], k), matrix(&b[..k * n], n), y);
        }
    });
    y
}

/// Zeros between the elements of each plane.
fn zero_insert(x: &[f64], out: &[usize], factor: [usize; 2]) -> Vec<f64> {
    let mut y = vec![0.0; out.iter().product()];
    let lines = y.chunks_exact_mut(out[3]).step_by(factor[0]);
    for (y, x) in lines.zip(x.chunks_exact(out[3] / factor[1])) {
        y.iter_mut().step_by(factor[1]).zip(x).for_each(|(y, x)| *y = *x);
    }
    y
}

/// Some elements along one axis.
pub(crate) fn slice<T: Copy>(x: &[T], shape: &[usize], axis: usize, range: Range<usize>) -> Vec<T> {
    let inner: usize = shape[axis + 1..].iter().product();
    let block = |x: &[T]| x[range.start * inner..range.end * inner].to_vec();
    x.chunks_exact(shape[axis] * inner).flat_map(block).collect()
}

fn reduce_mean(x: &[f64], shape: &[usize], axes: &[usize]) -> Vec<f64> {
    let kept: Vec<usize> = shape
        .iter()
        .enumerate()
        .map(|(i, d)| if axes.contains(&i) { 1 } else { *d })
        .collect();
    let (from, to) = (steps(shape, shape), steps(&kept, shape));
    let mut y = vec![0.0; kept.iter().product()];
    walk(shape, &[&from, &to], |at| y[at[1]] += x[at[0]]);
    let count = (x.len() / y.len()) as f64;
    y.iter_mut().for_each(|y| *y /= count);
    y
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
    // the element that each tap of each channel of a group hits at each position; 0 where it hits none
    let mut hit = vec![0.0; group_in * taps * plane_out];
    for (at, y) in y.chunks_exact_mut(group_out * plane_out).enumerate() {
        let (n, group) = (at / groups, at % groups);
        for (m, y) in (group * group_out..).zip(y.chunks_exact_mut(plane_out)) {
            y.fill(inputs.get(2).map_or(0.0, |bias| bias[m]));
        }
        let first = n * channels + group * group_in;
        let planes = x[first * plane_in..].chunks_exact(plane_in);
        for (x, hit) in planes.zip(hit.chunks_exact_mut(taps * plane_out)) {
            for (tap, hit) in hit.chunks_exact_mut(plane_out).enumerate() {
                let (ky, kx) = (tap / columns.kernel, tap % columns.kernel);
                let (across, down) = (columns.hits(kx, out[3]), rows.hits(ky, out[2]));
                if across.is_empty() {
                    continue;
                }
                for oy in down {
                    let row = rows.element(ky, oy) * input[3];
                    let line = &x[row + columns.element(kx, across.start)..row + input[3]];
                    let hit = &mut hit[oy * out[3]..][across.clone()];
                    for (hit, x) in hit.iter_mut().zip(line.iter().step_by(columns.stride)) {
                        *hit = *x;
                    }
                }
            }
        }
        let w = &w[group * group_out * group_in * taps..][..group_out * group_in * taps];
        add_product(matrix(w, group_in * taps), matrix(&hit, plane_out), y);
    }
    y
}

/// y[n, m] = bias[m] + sum over k: w[m, k] * x[n, k], where n counts the rows of all axes but the last.
fn linear(inputs: &[&[f64]], k: usize, out: &[usize]) -> Vec<f64> {
    let mut y = vec![0.0; out.iter().product()];
    if let (Some(bias), Some(m)) = (inputs.get(2), out.last()) {
        y.chunks_exact_mut(*m).for_each(|y| y.copy_from_slice(bias));
    }
    add_product(matrix(inputs[0], k), matrix(inputs[1], k).reversed_axes(), &mut y);
    y
}

/// The steps through the elements of `shape` for each axis of `out`: 0 where the axis is broadcast.
pub(crate) fn steps(shape: &[usize], out: &[usize]) -> Vec<usize> {
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
pub(crate) fn walk(shape: &[usize], steps: &[&[usize]], mut visit: impl FnMut(&[usize])) {
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

    /// Attention as a formula, element by element.
    #[test]
    fn attention_is_its_formula() {
        let (batch, tokens, d, heads) = (2, 4, 6, 3);
        let value = |seed: usize| -> Vec<f64> {
            (0..batch * tokens * d)
                .map(|i| ((i * 31 + seed) % 17) as f64 / 8.0 - 1.0)
                .collect()
        };
        let (q, k, v) = (value(1), value(5), value(9));
        let shape: &[usize] = &[batch, tokens, d];
        for causal in [false, true] {
            let y = run(
                Op::Attention { heads, causal },
                &[(shape, &q), (shape, &k), (shape, &v)],
            );
            for (i, got) in y.iter().enumerate() {
                let (n, t, f) = (i / (tokens * d), i / d % tokens, i % d);
                let at = |token: usize, feature: usize| (n * tokens + token) * d + feature;
                let features = f / 2 * 2..f / 2 * 2 + 2;
                let score =
                    |o: usize| features.clone().map(|f| q[at(t, f)] * k[at(o, f)]).sum::<f64>() / 2f64.sqrt();
                let seen = if causal { t + 1 } else { tokens };
                let all: f64 = (0..seen).map(|o| score(o).exp()).sum();
                let want: f64 = (0..seen).map(|o| score(o).exp() / all * v[at(o, f)]).sum();
                assert!((got - want).abs() < 1e-12, "{causal} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn norms_and_activations() {
        let y = run(
            Op::LayerNorm { epsilon: 0.0 },
            &[(&[1, 2], &[1.0, 3.0]), (&[2], &[2.0, 10.0]), (&[2], &[0.5, 1.0])],
        );
        assert_eq!(y, [-1.5, 11.0]);
        // known values of both forms
        let x: &[f64] = &[-1.0, 0.0, 2.0];
        for (tanh, want) in [
            (false, [-0.158_655_253_931_457, 0.0, 1.954_499_736_103_642]),
            (true, [-0.158_808_009_391_723, 0.0, 1.954_597_694_087_775]),
        ] {
            let y = run(Op::Gelu { tanh }, &[(&[3], x)]);
            assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-12), "{y:?}");
        }
        assert_eq!(
            run(Op::Clip { min: 0.0, max: 1.5 }, &[(&[3], x)]),
            [0.0, 0.0, 1.5]
        );
        assert_eq!(run(Op::Pow { exponent: 3.0 }, &[(&[3], x)]), [-1.0, 0.0, 8.0]);
        assert_eq!(run(Op::Pow { exponent: 0.5 }, &[(&[1], &[9.0])]), [3.0]);
    }

    #[test]
    fn products_and_choices_broadcast() {
        let b: &[f64] = &[1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
        let y = run(Op::MatMul, &[(&[1, 2], &[1.0, 10.0]), (&[2, 2, 2], b)]);
        assert_eq!(y, [31.0, 42.0, 310.0, 420.0]);
        let y = run(
            Op::Where,
            &[(&[2, 1], &[0.0, 1.0]), (&[], &[7.0]), (&[1, 2], &[1.0, 2.0])],
        );
        assert_eq!(y, [1.0, 2.0, 7.0, 7.0]);
    }

    #[test]
    fn parts_and_means() {
        let x: Vec<f64> = (0..12).map(f64::from).collect();
        let op = Op::Slice {
            axis: 1,
            start: 1,
            end: 3,
        };
        let y = run(op, &[(&[2, 3, 2], &x)]);
        assert_eq!(y, [2.0, 3.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
        let mean = |axes: &[usize], keep| {
            let axes = axes.to_vec();
            run(Op::ReduceMean { axes, keep }, &[(&[2, 3, 2], &x)])
        };
        assert_eq!(mean(&[0, 2], true), [3.5, 5.5, 7.5]);
        assert_eq!(mean(&[1], false), [2.0, 3.0, 8.0, 9.0]);
        let y = run(Op::ZeroInsert { factor: [2, 3] }, &[(&[1, 1, 2, 1], &[5.0, 6.0])]);
        assert_eq!(y, [5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn ids_are_rows_of_their_table() {
        let mut g = Graph::new("g");
        let ids = g.add_input("ids", &[1, 2]).unwrap();
        let table = g
            .add_constant("table", &[3, 2], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
            .unwrap();
        let flat = g.add_reshape("flat", ids, "flat", &[2]).unwrap();
        let y = g.add_node("look up", Op::Gather, &[flat, table], "y").unwrap();
        g.add_output(y).unwrap();
        let give = |ids: &[f64]| evaluate(&g, &BTreeMap::from([("ids".to_string(), ids.to_vec())]));
        assert_eq!(
            give(&[2.0, 0.0]).unwrap()[y.0 as usize],
            Some(vec![4.0, 5.0, 0.0, 1.0])
        );
        for bad in [0.5, 3.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                give(&[0.0, bad]),
                Err(EvaluateError::Id { index: 1, .. })
            ));
        }
        let seeded = crate::seeded_inputs(&g, 1, 50);
        assert!((0..3).all(|id| seeded["ids"].contains(&(id as f32))));
        assert!(seeded["ids"].iter().all(|id| sequence::is_row(f64::from(*id), 3)));
    }

    #[test]
    fn abstract_constants_are_refused() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[1, 2]).unwrap();
        let w = g.add_abstract_constant("w", &[1, 2]).unwrap();
        let y = g.add_node("fc", Op::Linear, &[x, w], "y").unwrap();
        g.add_output(y).unwrap();
        let give = |g: &Graph| evaluate(g, &BTreeMap::from([("x".to_string(), vec![1.0, 2.0])]));
        assert_eq!(give(&g), Err(EvaluateError::Abstract("w".into())));
        g.set_constant(w, vec![3.0, 4.0]).unwrap();
        assert_eq!(give(&g).unwrap()[y.0 as usize], Some(vec![11.0]));
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
