//! How much arithmetic a graph is, counted exactly.
//!
//! Multiply-adds count one each. A bias is where a sum starts, and counts nothing. Products with weights (`mac_*`) and
//! products of two activations (`mac_act*`: attention, matmul) are kept apart. Where a convolution reads what a zero
//! insertion makes, only its taps on elements of the insertion's input count, as with padding.
//!
//! Of an abstract constant only the number of its nonzero values is known; a convolution with one is taken to have them
//! spread evenly over its taps (rounded down).
//!
//! `other` counts one for every elementary operation on an element:
//!
//! | operator | operations |
//! |---|---|
//! | add, sub, mul, div, where, relu, tanh, erf, sqrt, pow | 1 an output element |
//! | clip | 2 an element: maximum, minimum |
//! | gelu | 9 an element with tanh: cube (2), its factor, sum, factor, tanh, 1 +, times x, half; 5 with erf |
//! | maximum pooling | elements hit by the window, less 1 |
//! | average pooling | elements hit by the window: the additions and one division |
//! | softmax | 5 an element: maximum, subtraction, exponential, addition, division |
//! | batch normalisation | 2 an element: scale and shift, once folded |
//! | layer normalisation | 7 an element: sum, subtraction, square, sum, division by the deviation, scale, shift; 5 a row: 2 divisions, epsilon, root, reciprocal |
//! | attention | 6 a head and pair of tokens (causal: pairs that see each other): scaling, and a softmax's 5 |
//! | mean | elements of the input: the additions and one division |
//! | gather, slice, zero insertion, reshape, transpose | 0 |

use crate::graph::{Graph, NodeId, Op, TensorId};
use crate::shapes::{Window, windows};

/// Operations of a node or a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Multiply-adds of all weights, at the positions whose tap hits an element of the input (neither padding nor an
    /// inserted zero).
    pub mac_dense: u64,
    /// As `mac_dense`, of weights other than 0 only.
    pub mac_theoretical: u64,
    /// Multiply-adds as papers count them: all weights at all positions, padding and inserted zeros included.
    pub mac_published: u64,
    /// Multiply-adds of two activations; in causal attention, of the pairs of tokens that see each other.
    pub mac_act: u64,
    /// As `mac_act`, as papers count them: all pairs of tokens.
    pub mac_act_published: u64,
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
            mac_act: self.mac_act.saturating_add(other.mac_act),
            mac_act_published: self.mac_act_published.saturating_add(other.mac_act_published),
            other: self.other.saturating_add(other.other),
        }
    }
}

/// For each tap of a window, at how many of the positions it hits an element; of those only every `step`-th from the first
/// on, where the others are inserted zeros.
fn hits(window: &Window, positions: usize, step: usize) -> Vec<u64> {
    let count = |tap: usize| {
        let hit = window.hits(tap, positions);
        if step == 1 {
            return hit.len();
        }
        hit.filter(|o| window.element(tap, *o).is_multiple_of(step))
            .count()
    };
    (0..window.kernel).map(|tap| count(tap) as u64).collect()
}

/// How far apart along rows and columns the elements of a tensor are that are not inserted zeros.
fn steps(graph: &Graph, mut t: TensorId) -> [usize; 2] {
    let mut steps = [1, 1];
    while let Some(node) = graph.producer(t).map(|p| graph.node(p))
        && let Op::ZeroInsert { factor } = node.op
    {
        // no more than the sizes of the tensor
        steps = [steps[0] * factor[0], steps[1] * factor[1]];
        t = node.inputs[0];
    }
    steps
}

/// The part of `all` equal shares that `nonzero` weights of `weights` have: exact where each weight is used equally often.
fn share(all: u64, nonzero: u64, weights: u64) -> u64 {
    (u128::from(all) * u128::from(nonzero) / u128::from(weights.max(1))) as u64
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().map(|d| *d as u64).product()
}

/// The elements that all windows of a pooling hit.
fn pooled(x: &[usize], y: &[usize], kernel: [usize; 2], strides: [usize; 2], pads: [usize; 4]) -> u64 {
    let [rows, columns] = windows(x, kernel, strides, pads, [1, 1]);
    let sum = |w: &Window, positions: usize| hits(w, positions, 1).iter().sum::<u64>();
    product(&y[..2]) * sum(&rows, y[2]) * sum(&columns, y[3])
}

/// The operations of one node. Weights that are not constant count as all nonzero.
pub fn node_counts(graph: &Graph, id: NodeId) -> Counts {
    let node = graph.node(id);
    let shape = |i: usize| graph.tensor(node.inputs[i]).shape.as_slice();
    // the part of the multiply-adds that have a weight other than 0
    let nonzero = |all: u64, i: usize| {
        let weight = graph.tensor(node.inputs[i]);
        let nonzero = weight.nonzero_count();
        nonzero.map_or(all, |nonzero| share(all, nonzero, weight.elements()))
    };
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
            let step = steps(graph, node.inputs[0]);
            let (rows, columns) = (hits(&rows, y[2], step[0]), hits(&columns, y[3], step[1]));
            // a tap hits rows[i] * columns[j] elements, whatever the channels
            let taps: Vec<u64> = rows
                .iter()
                .flat_map(|r| columns.iter().map(move |c| r * c))
                .collect();
            let mac_dense = y[0] as u64 * product(&w[..2]) * taps.iter().sum::<u64>();
            let used = |data: &[f32]| {
                let hits = data.iter().zip(&taps).filter(|(v, _)| **v != 0.0);
                hits.map(|(_, t)| t).sum::<u64>()
            };
            let mac_theoretical = match graph.tensor(node.inputs[1]).data.as_deref() {
                Some(data) => y[0] as u64 * data.chunks_exact(taps.len()).map(used).sum::<u64>(),
                None => nonzero(mac_dense, 1),
            };
            Counts {
                mac_dense,
                mac_theoretical,
                mac_published: product(&w[1..]) * all,
                ..Counts::default()
            }
        }
        Op::Linear => {
            let mac_dense = all * shape(1)[1] as u64;
            Counts {
                mac_dense,
                mac_theoretical: nonzero(mac_dense, 1),
                mac_published: mac_dense,
                ..Counts::default()
            }
        }
        Op::MatMul => {
            let macs = all * shape(0).last().copied().unwrap_or(1) as u64;
            match (0..2).find(|i| graph.tensor(node.inputs[*i]).is_constant()) {
                Some(weight) => Counts {
                    mac_dense: macs,
                    mac_theoretical: nonzero(macs, weight),
                    mac_published: macs,
                    ..Counts::default()
                },
                None => Counts {
                    mac_act: macs,
                    mac_act_published: macs,
                    ..Counts::default()
                },
            }
        }
        Op::Attention { heads, causal } => {
            let (batch, tokens, d) = (y[0] as u64, y[1] as u64, y[2] as u64);
            let seen = if *causal {
                tokens * (tokens + 1) / 2
            } else {
                tokens * tokens
            };
            // q k^T and the weighted sum of v
            Counts {
                mac_act: 2 * batch * seen * d,
                mac_act_published: 2 * batch * tokens * tokens * d,
                other: 6 * batch * *heads as u64 * seen,
                ..Counts::default()
            }
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Where => other(all),
        Op::Relu | Op::Tanh | Op::Erf | Op::Sqrt | Op::Pow { .. } => other(all),
        Op::Clip { .. } => other(2 * all),
        Op::Gelu { tanh } => other(if *tanh { 9 } else { 5 } * all),
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
        Op::LayerNorm { .. } => other(7 * all + 5 * (all / y.last().copied().unwrap_or(1) as u64)),
        Op::ReduceMean { .. } => other(product(shape(0))),
        Op::Gather | Op::Slice { .. } | Op::ZeroInsert { .. } | Op::Reshape | Op::Transpose { .. } => {
            other(0)
        }
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
    fn inserted_zeros_count_as_padding_does() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[1, 2, 3, 2]).unwrap();
        let op = Op::ZeroInsert { factor: [2, 2] };
        let z = g.add_node("up", op, &[x], "z").unwrap();
        let data: Vec<f32> = (0..4 * 2 * 9).map(|i| ((i * 5) % 3) as f32).collect();
        let w = g.add_constant("w", &[4, 2, 3, 3], data.clone()).unwrap();
        let op = Op::Conv {
            strides: [1, 1],
            pads: [1; 4],
            dilations: [1, 1],
            groups: 1,
        };
        g.add_node("conv", op, &[z, w], "y").unwrap();
        let (mut dense, mut sparse) = (0, 0);
        for (i, v) in data.iter().enumerate() {
            for (oy, ox) in (0..6).flat_map(|y| (0..4).map(move |x| (y, x))) {
                let (iy, ix) = (oy + (i as i64 / 3) % 3 - 1, ox + i as i64 % 3 - 1);
                let inside = (0..6).contains(&iy) && (0..4).contains(&ix);
                if inside && iy % 2 == 0 && ix % 2 == 0 {
                    dense += 1;
                    sparse += u64::from(*v != 0.0);
                }
            }
        }
        let c = total(&g);
        assert_eq!((c.mac_dense, c.mac_theoretical), (dense, sparse));
        assert_eq!(c.mac_published, 4 * 2 * 9 * 24);
    }

    #[test]
    fn products_of_activations_are_kept_apart() {
        let count = |causal| {
            let mut g = Graph::new("g");
            let q = g.add_input("q", &[2, 5, 6]).unwrap();
            let op = Op::Attention { heads: 3, causal };
            g.add_node("attention", op, &[q, q, q], "y").unwrap();
            total(&g)
        };
        let (all, causal) = (count(false), count(true));
        assert_eq!((all.mac_act, all.other), (2 * 2 * 25 * 6, 6 * 2 * 3 * 25));
        assert_eq!((causal.mac_act, causal.other), (2 * 2 * 15 * 6, 6 * 2 * 3 * 15));
        assert_eq!(causal.mac_act_published, all.mac_act);
        let mut g = Graph::new("g");
        let a = g.add_input("a", &[2, 3, 4]).unwrap();
        let b = g.add_input("b", &[2, 4, 5]).unwrap();
        let c = g
            .add_constant("c", &[4, 2], vec![0.0, 1.0, 0.0, 0.0, 2.0, 3.0, 0.0, 1.0])
            .unwrap();
        g.add_node("product", Op::MatMul, &[a, b], "y").unwrap();
        assert_eq!((total(&g).mac_act, total(&g).mac_dense), (2 * 3 * 4 * 5, 0));
        g.add_node("weights", Op::MatMul, &[a, c], "z").unwrap();
        assert_eq!((total(&g).mac_theoretical, total(&g).mac_dense), (6 * 4, 6 * 8));
    }

    #[test]
    fn abstract_constants_count() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", &[1, 2048, 2048]).unwrap();
        let w = g.add_abstract_constant("w", &[50257, 2048]).unwrap();
        let y = g.add_node("head", Op::Linear, &[x, w], "y").unwrap();
        g.add_output(y).unwrap();
        g.verify().unwrap();
        assert_eq!((g.parameters(), g.nonzeros()), (50257 * 2048, 50257 * 2048));
        g.set_nonzeros(w, 1000).unwrap();
        assert!(g.set_nonzeros(w, u64::MAX).is_err() && g.set_nonzeros(x, 1).is_err());
        let c = total(&g.with_batch(2).unwrap());
        assert_eq!(c.mac_dense, 2 * 2048 * 50257 * 2048);
        assert_eq!(c.mac_theoretical, 2 * 2048 * 1000);
        let sparse = crate::sparsify(&g, 0.75, crate::Mask::Uniform, 0).unwrap();
        // zeros that are there stay
        assert_eq!(sparse.nonzeros(), 250);
        g.set_nonzeros(w, 50257 * 2048).unwrap();
        let sparse = crate::sparsify(&g, 0.75, crate::Mask::Uniform, 0).unwrap();
        assert_eq!(sparse.nonzeros(), 50257 * 512);
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

        let count = |op: Op, inputs: &[&[usize]]| {
            let mut g = Graph::new("g");
            let of: Vec<TensorId> = inputs
                .iter()
                .enumerate()
                .map(|(i, s)| g.add_input(format!("i{i}"), s).unwrap())
                .collect();
            g.add_node("n", op, &of, "y").unwrap();
            total(&g).other
        };
        let x: &[usize] = &[2, 3, 4];
        assert_eq!(count(Op::Clip { min: 0.0, max: 1.0 }, &[x]), 48);
        assert_eq!(count(Op::Gelu { tanh: true }, &[x]), 9 * 24);
        assert_eq!(count(Op::Gelu { tanh: false }, &[x]), 5 * 24);
        assert_eq!(
            count(Op::LayerNorm { epsilon: 1e-5 }, &[x, &[4], &[4]]),
            7 * 24 + 5 * 6
        );
        let (axes, keep) = (vec![1], false);
        assert_eq!(count(Op::ReduceMean { axes, keep }, &[x]), 24);
        assert_eq!(count(Op::Div, &[x, &[4]]), 24);
        assert_eq!(count(Op::Gather, &[&[2], &[5, 3]]), 0);
        assert_eq!(count(Op::MatMul, &[x, &[4, 2]]), 0);
    }
}
