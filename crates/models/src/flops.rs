//! How much arithmetic a graph is, counted exactly.
//!
//! Multiply-adds count one each. A bias is where a sum starts, and counts nothing. `other` counts one for every elementary
//! operation on an element:
//!
//! | operator | operations |
//! |---|---|
//! | add, mul, relu | 1 an output element |
//! | maximum pooling | elements hit by the window, less 1 |
//! | average pooling | elements hit by the window: the additions and one division |
//! | softmax | 5 an element: maximum, subtraction, exponential, addition, division |
//! | batch normalisation | 2 an element: scale and shift, once folded |
//! | reshape, transpose | 0 |

use crate::graph::{Graph, NodeId, Op};
use crate::shapes::{Window, windows};

/// Operations of a node or a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Multiply-adds of all weights, at the positions whose tap hits an element of the input (not padding).
    pub mac_dense: u64,
    /// As `mac_dense`, of weights other than 0 only.
    pub mac_theoretical: u64,
    /// Multiply-adds as papers count them: all weights at all positions, padding included.
    pub mac_published: u64,
    /// All other arithmetic; see the module's text.
    pub other: u64,
}

impl Counts {
    /// The sum of two counts.
    #[must_use]
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            mac_dense: self.mac_dense.saturating_add(other.mac_dense),
            mac_theoretical: self.mac_theoretical.saturating_add(other.mac_theoretical),
            mac_published: self.mac_published.saturating_add(other.mac_published),
            other: self.other.saturating_add(other.other),
        }
    }
}

/// For each tap of a window, at how many of the positions it hits an element.
fn hits(window: &Window, positions: usize) -> Vec<u64> {
    (0..window.kernel)
        .map(|tap| window.hits(tap, positions).len() as u64)
        .collect()
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().map(|d| *d as u64).product()
}

/// The elements that all windows of a pooling hit.
fn pooled(x: &[usize], y: &[usize], kernel: [usize; 2], strides: [usize; 2], pads: [usize; 4]) -> u64 {
    let [rows, columns] = windows(x, kernel, strides, pads, [1, 1]);
    let sum = |w: &Window, positions: usize| hits(w, positions).iter().sum::<u64>();
    product(&y[..2]) * sum(&rows, y[2]) * sum(&columns, y[3])
}

/// The operations of one node. Weights that are not constant count as all nonzero.
pub fn node_counts(graph: &Graph, id: NodeId) -> Counts {
    let node = graph.node(id);
    let shape = |i: usize| graph.tensor(node.inputs[i]).shape.as_slice();
    let weights = || graph.tensor(node.inputs[1]).data.as_deref();
    let y = graph.tensor(node.output).shape.as_slice();
    let all = product(y);
    let other = |other: u64| Counts {
        other,
        ..Counts::default()
    };
    match &node.op {
        Op::Conv {
            strides,
            pads,
            dilations,
            ..
        } => {
            let w = shape(1);
            let [rows, columns] = windows(shape(0), [w[2], w[3]], *strides, *pads, *dilations);
            let (rows, columns) = (hits(&rows, y[2]), hits(&columns, y[3]));
            // a tap hits rows[i] * columns[j] elements, whatever the channels
            let taps: Vec<u64> = rows
                .iter()
                .flat_map(|r| columns.iter().map(move |c| r * c))
                .collect();
            let mac_dense = y[0] as u64 * product(&w[..2]) * taps.iter().sum::<u64>();
            let nonzero = |data: &Vec<f32>| -> u64 {
                let hits = |d: &[f32]| {
                    d.iter()
                        .zip(&taps)
                        .filter(|(v, _)| **v != 0.0)
                        .map(|(_, t)| t)
                        .sum::<u64>()
                };
                y[0] as u64 * data.chunks_exact(taps.len()).map(hits).sum::<u64>()
            };
            Counts {
                mac_dense,
                mac_theoretical: weights().map_or(mac_dense, nonzero),
                mac_published: product(&w[1..]) * all,
                other: 0,
            }
        }
        Op::Linear => {
            let mac_dense = y[0] as u64 * product(shape(1));
            let nonzero = |d: &Vec<f32>| y[0] as u64 * d.iter().filter(|v| **v != 0.0).count() as u64;
            let mac_theoretical = weights().map_or(mac_dense, nonzero);
            Counts {
                mac_dense,
                mac_theoretical,
                mac_published: mac_dense,
                other: 0,
            }
        }
        Op::Add | Op::Mul | Op::Relu => other(all),
        Op::MaxPool {
            kernel,
            strides,
            pads,
        } => other(pooled(shape(0), y, *kernel, *strides, *pads) - all),
        Op::AvgPool {
            kernel,
            strides,
            pads,
            ..
        } => other(pooled(shape(0), y, *kernel, *strides, *pads)),
        Op::Softmax { .. } => other(5 * all),
        Op::BatchNorm { .. } => other(2 * all),
        Op::Reshape | Op::Transpose { .. } => other(0),
    }
}

/// The operations of every node, in order.
pub fn per_node(graph: &Graph) -> Vec<(NodeId, Counts)> {
    graph
        .nodes_in_order()
        .into_iter()
        .map(|id| (id, node_counts(graph, id)))
        .collect()
}

/// The operations of the whole graph.
pub fn total(graph: &Graph) -> Counts {
    per_node(graph)
        .into_iter()
        .fold(Counts::default(), |sum, (_, c)| sum.plus(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts (weight, position) pairs one by one.
    fn by_hand(x: &[usize], w: (&[usize], &[f32]), op: (usize, usize, usize), out: &[usize]) -> (u64, u64) {
        let (stride, pad, dilation) = op;
        let (mut dense, mut sparse) = (0, 0);
        for (i, v) in w.1.iter().enumerate() {
            let (ky, kx) = (i / w.0[3] % w.0[2], i % w.0[3]);
            for at in 0..out[2] * out[3] {
                let iy = (at / out[3] * stride + ky * dilation) as i64 - pad as i64;
                let ix = (at % out[3] * stride + kx * dilation) as i64 - pad as i64;
                if (0..x[2] as i64).contains(&iy) && (0..x[3] as i64).contains(&ix) {
                    dense += x[0] as u64;
                    sparse += if *v != 0.0 { x[0] as u64 } else { 0 };
                }
            }
        }
        (dense, sparse)
    }

    #[test]
    fn convolutions_count_taps_that_hit() {
        for (stride, pad, dilation, groups) in [
            (1, 0, 1, 1),
            (1, 1, 1, 1),
            (2, 1, 1, 2),
            (3, 2, 2, 4),
            (2, 4, 1, 1),
        ] {
            let (x, w) = ([2, 4, 6, 5], [8, 4 / groups, 3, 2]);
            let data: Vec<f32> = (0..w.iter().product::<usize>())
                .map(|i| ((i * 7) % 3) as f32)
                .collect();
            let mut g = Graph::new("g");
            let input = g.add_input("x", &x).unwrap();
            let weight = g.add_constant("w", &w, data.clone()).unwrap();
            let op = Op::Conv {
                strides: [stride; 2],
                pads: [pad; 4],
                dilations: [dilation; 2],
                groups,
            };
            let y = g.add_node("conv", op, &[input, weight], "y").unwrap();
            let c = total(&g);
            let out = g.tensor(y).shape.clone();
            let (dense, sparse) = by_hand(&x, (&w, &data), (stride, pad, dilation), &out);
            assert_eq!((c.mac_dense, c.mac_theoretical), (dense, sparse));
            assert_eq!(
                c.mac_published,
                (w[1] * w[2] * w[3] * out.iter().product::<usize>()) as u64
            );
        }
    }

    #[test]
    fn other_operators_follow_the_table() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[1, 2, 4, 4]).unwrap();
        let pool = Op::MaxPool {
            kernel: [3, 3],
            strides: [2, 2],
            pads: [1, 1, 0, 0],
        };
        let p = g.add_node("pool", pool, &[x], "p").unwrap();
        let r = g.add_node("relu", Op::Relu, &[p], "r").unwrap();
        let s = g.add_node("softmax", Op::Softmax { axis: 1 }, &[r], "s").unwrap();
        g.add_output(s).unwrap();
        // windows hit 2 then 3 elements along each axis: 25 a plane, 4 positions
        let counts: Vec<u64> = per_node(&g).iter().map(|(_, c)| c.other).collect();
        assert_eq!(counts, [2 * (25 - 4), 8, 40]);
    }
}
