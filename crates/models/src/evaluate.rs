//! A reference evaluator: plain loops over `f64`, written to be obviously right and not fast.

use std::collections::BTreeMap;

use crate::graph::{Graph, GraphError, Node, NodeId, Op};

/// Why a network could not be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The graph is inconsistent.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// No values were given for an input.
    #[error("no values were given for input {name:?}")]
    Missing {
        /// Name of the input.
        name: String,
    },
    /// Values were given for something that is not an input.
    #[error("values were given for {name:?}, which is not an input; the inputs are: {inputs}")]
    Unknown {
        /// The name given.
        name: String,
        /// Names of the inputs.
        inputs: String,
    },
    /// An input has the wrong number of values.
    #[error("input {name:?} of shape {shape:?} needs {expected} values, but {found} were given")]
    Length {
        /// Name of the input.
        name: String,
        /// Its shape, in elements.
        shape: Vec<usize>,
        /// Values needed.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

/// Evaluates the whole network. `inputs` has the values of every input by name, row-major with the batch first.
/// The result has the values of every tensor by [`TensorId`](crate::TensorId), constants included.
///
/// # Errors
/// If the graph is inconsistent or the inputs given are not exactly the network's.
pub fn evaluate(
    graph: &Graph,
    inputs: &BTreeMap<String, Vec<f64>>,
) -> Result<Vec<Option<Vec<f64>>>, EvaluateError> {
    graph.verify()?;
    let names: Vec<&str> = graph
        .inputs()
        .iter()
        .map(|id| graph.tensor(*id).name.as_str())
        .collect();
    if let Some(name) = inputs.keys().find(|k| !names.contains(&k.as_str())) {
        return Err(EvaluateError::Unknown {
            name: name.clone(),
            inputs: names.join(", "),
        });
    }
    let constant = |t: &crate::Tensor| t.data.as_ref().map(|d| d.iter().map(|v| f64::from(*v)).collect());
    let mut values: Vec<Option<Vec<f64>>> = graph.tensors().iter().map(constant).collect();
    for id in graph.inputs() {
        let tensor = graph.tensor(*id);
        let given = inputs.get(&tensor.name).ok_or_else(|| EvaluateError::Missing {
            name: tensor.name.clone(),
        })?;
        let expected = tensor.shape.iter().product();
        if given.len() != expected {
            return Err(EvaluateError::Length {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                expected,
                found: given.len(),
            });
        }
        values[id.index()] = Some(given.clone());
    }
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        let given: Vec<&[f64]> = node
            .inputs
            .iter()
            .map(|t| values[t.index()].as_deref().unwrap_or_default())
            .collect();
        let made = evaluate_node(graph, id, &given);
        values[node.output.index()] = Some(made);
    }
    Ok(values)
}

/// Evaluates one operator. `inputs` has the values of all its inputs in order, constants included, row-major.
///
/// # Panics
/// If an input is missing or has another length than its tensor's shape says.
#[must_use]
pub fn evaluate_node(graph: &Graph, id: NodeId, inputs: &[&[f64]]) -> Vec<f64> {
    let node = graph.node(id);
    let x = inputs[0];
    let shape = graph.tensor(node.inputs[0]).shape.as_slice();
    let output = graph.tensor(node.output).shape.as_slice();
    match &node.op {
        Op::Conv { .. } => conv(graph, node, inputs),
        Op::Linear => {
            let (k, m) = (shape[1], output[1]);
            let mut y = Vec::with_capacity(output[0] * m);
            for row in x.chunks_exact(k) {
                for (j, w) in inputs[1].chunks_exact(k).enumerate() {
                    let bias = inputs.get(2).map_or(0.0, |b| b[j]);
                    y.push(row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>() + bias);
                }
            }
            y
        }
        Op::Add | Op::Mul => {
            let second = graph.tensor(node.inputs[1]).shape.as_slice();
            let (a, b) = (strides_in(shape, output), strides_in(second, output));
            let f = if node.op == Op::Add {
                |a: f64, b: f64| a + b
            } else {
                |a: f64, b: f64| a * b
            };
            positions(output)
                .map(|p| f(x[dot(&a, &p)], inputs[1][dot(&b, &p)]))
                .collect()
        }
        Op::Relu => x.iter().map(|v| v.max(0.0)).collect(),
        Op::MaxPool {
            kernel,
            strides,
            pads,
        } => pool(x, shape, output, *kernel, *strides, *pads, |w, _| {
            w.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        }),
        Op::AvgPool {
            kernel,
            strides,
            pads,
            count_include_pad,
        } => pool(x, shape, output, *kernel, *strides, *pads, |w, padded| {
            w.iter().sum::<f64>() / if *count_include_pad { padded } else { w.len() } as f64
        }),
        Op::Softmax { axis } => {
            let (length, inner) = (shape[*axis], shape[axis + 1..].iter().product::<usize>());
            let mut y = x.to_vec();
            for block in y.chunks_exact_mut(length * inner) {
                for i in 0..inner {
                    let line = || (0..length).map(|k| k * inner + i);
                    let largest = line().map(|p| block[p]).fold(f64::NEG_INFINITY, f64::max);
                    line().for_each(|p| block[p] = (block[p] - largest).exp());
                    let sum: f64 = line().map(|p| block[p]).sum();
                    line().for_each(|p| block[p] /= sum);
                }
            }
            y
        }
        Op::Reshape => x.to_vec(),
        Op::Transpose { perm } => {
            let own = strides_in(shape, shape);
            let moved: Vec<usize> = perm.iter().map(|p| own[*p]).collect();
            positions(output).map(|p| x[dot(&moved, &p)]).collect()
        }
        Op::BatchNorm { epsilon } => {
            let inner: usize = shape[2..].iter().product();
            let normal = |(i, v): (usize, &f64)| {
                let c = i / inner % shape[1];
                let deviation = (inputs[4][c] + f64::from(*epsilon)).sqrt();
                (v - inputs[3][c]) / deviation * inputs[1][c] + inputs[2][c]
            };
            x.iter().enumerate().map(normal).collect()
        }
    }
}

/// Row-major strides of a shape seen through the shape it broadcasts to: zero where it repeats.
fn strides_in(shape: &[usize], output: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; output.len()];
    let mut stride = 1;
    for (i, &d) in shape.iter().enumerate().rev() {
        strides[i + output.len() - shape.len()] = if d == 1 { 0 } else { stride };
        stride *= d;
    }
    strides
}

fn dot(strides: &[usize], position: &[usize]) -> usize {
    strides.iter().zip(position).map(|(s, p)| s * p).sum()
}

/// All positions of a shape, row-major.
fn positions(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    (0..shape.iter().product::<usize>()).map(move |mut i| {
        let mut position = vec![0; shape.len()];
        for (p, d) in position.iter_mut().zip(shape).rev() {
            *p = i % d;
            i /= d;
        }
        position
    })
}

/// Where tap `tap` of window `at` falls in an axis of `size` elements; none in the padding.
fn tap(at: usize, stride: usize, tap: usize, dilation: usize, pad: usize, size: usize) -> Option<usize> {
    (at * stride + tap * dilation)
        .checked_sub(pad)
        .filter(|p| *p < size)
}

fn conv(graph: &Graph, node: &Node, inputs: &[&[f64]]) -> Vec<f64> {
    let Op::Conv {
        strides,
        pads,
        dilations,
        groups,
    } = &node.op
    else {
        return Vec::new();
    };
    let x = &graph.tensor(node.inputs[0]).shape;
    let w = &graph.tensor(node.inputs[1]).shape;
    let y = &graph.tensor(node.output).shape;
    let (channels, per_group) = (w[1], y[1] / groups);
    let mut result = Vec::with_capacity(y.iter().product());
    for n in 0..y[0] {
        for m in 0..y[1] {
            for oh in 0..y[2] {
                for ow in 0..y[3] {
                    let mut sum = inputs.get(2).map_or(0.0, |b| b[m]);
                    for c in 0..channels {
                        let plane = (n * x[1] + m / per_group * channels + c) * x[2];
                        for kh in 0..w[2] {
                            let Some(h) = tap(oh, strides[0], kh, dilations[0], pads[0], x[2]) else {
                                continue;
                            };
                            for kw in 0..w[3] {
                                let Some(v) = tap(ow, strides[1], kw, dilations[1], pads[1], x[3]) else {
                                    continue;
                                };
                                let weight = inputs[1][((m * channels + c) * w[2] + kh) * w[3] + kw];
                                sum += inputs[0][(plane + h) * x[3] + v] * weight;
                            }
                        }
                    }
                    result.push(sum);
                }
            }
        }
    }
    result
}

/// Reduces each window to a number; `reduce` gets its elements and its size with padding.
fn pool(
    values: &[f64],
    x: &[usize],
    y: &[usize],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    reduce: impl Fn(&[f64], usize) -> f64,
) -> Vec<f64> {
    let mut result = Vec::with_capacity(y.iter().product());
    let mut window = Vec::new();
    for plane in values.chunks_exact(x[2] * x[3]) {
        for oh in 0..y[2] {
            for ow in 0..y[3] {
                window.clear();
                for kh in 0..kernel[0] {
                    for kw in 0..kernel[1] {
                        if let (Some(h), Some(w)) = (
                            tap(oh, strides[0], kh, 1, pads[0], x[2]),
                            tap(ow, strides[1], kw, 1, pads[1], x[3]),
                        ) {
                            window.push(plane[h * x[3] + w]);
                        }
                    }
                }
                result.push(reduce(&window, kernel[0] * kernel[1]));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorId;

    fn one(
        shape: &[usize],
        x: &[f64],
        build: impl Fn(&mut Graph, TensorId) -> Result<TensorId, GraphError>,
    ) -> Vec<f64> {
        let mut g = Graph::new("t");
        let id = g.add_input("x", shape);
        let y = build(&mut g, id).unwrap();
        let values = evaluate(&g, &BTreeMap::from([("x".to_owned(), x.to_vec())])).unwrap();
        values[y.index()].clone().unwrap()
    }

    #[test]
    fn linear_by_hand() {
        let y = one(&[1, 2], &[3.0, 4.0], |g, x| {
            let w = g.add_constant("w", &[2, 2], vec![1.0, 2.0, -1.0, 0.5]);
            let b = g.add_constant("b", &[2], vec![0.25, 1.0]);
            g.add_node("y", Op::Linear, &[x, w, b])
        });
        assert_eq!(y, [11.25, 0.0]);
    }

    #[test]
    fn conv_with_groups_pads_and_dilation() {
        // Two depthwise channels on 1x3 planes, taps two apart with one element of padding on each side.
        let y = one(&[1, 2, 1, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], |g, x| {
            let w = g.add_constant("w", &[2, 1, 1, 2], vec![1.0, 10.0, 1.0, 0.0]);
            let op = Op::Conv {
                strides: [1, 1],
                pads: [0, 1, 0, 1],
                dilations: [1, 2],
                groups: 2,
            };
            g.add_node("y", op, &[x, w])
        });
        assert_eq!(y, [20.0, 31.0, 2.0, 0.0, 10.0, 20.0]);
    }

    #[test]
    fn pools() {
        let x = [1.0, -2.0, 3.0, -4.0];
        let (kernel, strides, pads) = ([2, 2], [2, 2], [1, 1, 1, 1]);
        let y = one(&[1, 1, 2, 2], &x, |g, t| {
            g.add_node(
                "y",
                Op::MaxPool {
                    kernel,
                    strides,
                    pads,
                },
                &[t],
            )
        });
        assert_eq!(y, [1.0, -2.0, 3.0, -4.0]);
        for (count_include_pad, expected) in [(false, 1.0), (true, 0.25)] {
            let op = Op::AvgPool {
                kernel,
                strides,
                pads,
                count_include_pad,
            };
            let y = one(&[1, 1, 2, 2], &x, |g, t| g.add_node("y", op.clone(), &[t]));
            assert!((y[0] - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn elementwise_and_moves() {
        let y = one(&[2, 2], &[1.0, 2.0, 3.0, 4.0], |g, x| {
            let c = g.add_constant("c", &[2], vec![10.0, 20.0]);
            g.add_node("y", Op::Add, &[x, c])
        });
        assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
        let y = one(&[2, 2], &[1.0, 2.0, 3.0, 4.0], |g, x| {
            let c = g.add_constant("c", &[2, 1], vec![10.0, -1.0]);
            g.add_node("y", Op::Mul, &[c, x])
        });
        assert_eq!(y, [10.0, 20.0, -3.0, -4.0]);
        let y = one(&[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], |g, x| {
            g.add_node("y", Op::Transpose { perm: vec![2, 0, 1] }, &[x])
        });
        assert_eq!(y, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let y = one(&[2, 2], &[0.0, 1000.0, 0.0, 1000.0], |g, x| {
            g.add_node("y", Op::Softmax { axis: 0 }, &[x])
        });
        assert_eq!(y, [0.5; 4]);
        let y = one(&[1, 2], &[3.0, 5.0], |g, x| {
            let c = |g: &mut Graph, n: &str, v: [f32; 2]| g.add_constant(n, &[2], v.to_vec());
            let p = [
                x,
                c(g, "s", [2.0, 1.0]),
                c(g, "b", [1.0, 0.0]),
                c(g, "m", [1.0, 5.0]),
                c(g, "v", [4.0, 1.0]),
            ];
            g.add_node("y", Op::BatchNorm { epsilon: 0.0 }, &p)
        });
        assert_eq!(y, [3.0, 0.0]);
    }

    #[test]
    fn wrong_inputs() {
        let g = crate::builders::mlp(&[2, 1], 1, 0);
        let run = |name: &str, n: usize| evaluate(&g, &BTreeMap::from([(name.to_owned(), vec![0.0; n])]));
        assert!(matches!(run("z", 2), Err(EvaluateError::Unknown { .. })));
        assert!(matches!(
            run("x", 3),
            Err(EvaluateError::Length {
                expected: 2,
                found: 3,
                ..
            })
        ));
        assert!(matches!(
            evaluate(&g, &BTreeMap::new()),
            Err(EvaluateError::Missing { .. })
        ));
        assert!(run("x", 2).is_ok());
    }
}
