//! Counting the work: multiply-accumulates and other operations per operator, for the graph's whole batch.

use crate::graph::{Graph, NodeId, Op};

/// Operations of one operator or a network, for the whole batch. All counts saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiply-accumulates of all weights, where the weight meets an element of the input and not padding.
    pub mac_dense: u64,
    /// The same for the weights that are not zero.
    pub mac_theoretical: u64,
    /// Multiply-accumulates of all weights at all output positions, padding included: the number papers give.
    pub mac_published: u64,
    /// Other arithmetic: one per output for a bias, sum, product or ReLU, two per output for a batch
    /// normalisation, one per element of each pooling window (not padding), and one more per output for the
    /// division of an average, four per element of a softmax (maximum, exponential, sum, division). Moving data
    /// is free.
    pub other: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.mac_dense = self.mac_dense.saturating_add(more.mac_dense);
        self.mac_theoretical = self.mac_theoretical.saturating_add(more.mac_theoretical);
        self.mac_published = self.mac_published.saturating_add(more.mac_published);
        self.other = self.other.saturating_add(more.other);
    }
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |n, f| n.saturating_mul(*f as u64))
}

/// Output positions along one axis at which a tap hits one of the `size` elements.
fn hits(outputs: usize, stride: usize, offset: u128, pad: usize, size: usize) -> u64 {
    // The tap of window o is at o * stride + offset - pad, which must be in 0..size.
    let (stride, pad) = (stride as u128, pad as u128);
    let first = pad.saturating_sub(offset).div_ceil(stride);
    let end = (pad + size as u128)
        .saturating_sub(offset)
        .div_ceil(stride)
        .min(outputs as u128);
    end.saturating_sub(first) as u64
}

fn axis(outputs: usize, stride: usize, kernel: usize, dilation: usize, pad: usize, size: usize) -> Vec<u64> {
    (0..kernel)
        .map(|k| hits(outputs, stride, k as u128 * dilation as u128, pad, size))
        .collect()
}

/// Sum over all taps of an axis; unlike [`axis`] it keeps no list, as pooling kernels have no weights to bound
/// their size.
fn axis_sum(outputs: usize, stride: usize, kernel: usize, pad: usize, size: usize) -> u64 {
    (0..kernel).fold(0u64, |n, k| {
        n.saturating_add(hits(outputs, stride, k as u128, pad, size))
    })
}

/// Operations of every operator, in topological order.
#[must_use]
pub fn count(graph: &Graph) -> Vec<(NodeId, Counts)> {
    graph
        .nodes_in_order()
        .into_iter()
        .map(|id| (id, node(graph, id)))
        .collect()
}

/// Operations of the whole network.
#[must_use]
pub fn total(graph: &Graph) -> Counts {
    let mut sum = Counts::default();
    for (_, counts) in count(graph) {
        sum += counts;
    }
    sum
}

fn node(graph: &Graph, id: NodeId) -> Counts {
    let node = graph.node(id);
    let y = graph.tensor(node.output).shape.as_slice();
    let outputs = product(y);
    let x = graph.tensor(node.inputs[0]).shape.as_slice();
    let mut counts = Counts::default();
    let bias = if node.inputs.len() > 2 { outputs } else { 0 };
    match &node.op {
        Op::Conv {
            strides,
            pads,
            dilations,
            ..
        } => {
            let weight = graph.tensor(node.inputs[1]);
            let w = weight.shape.as_slice();
            let rows = axis(y[2], strides[0], w[2], dilations[0], pads[0], x[2]);
            let columns = axis(y[3], strides[1], w[3], dilations[1], pads[1], x[3]);
            let data = weight.data.as_ref().map(|d| d.as_slice()).unwrap_or_default();
            for (i, v) in data.iter().enumerate() {
                let (kh, kw) = (i / w[3] % w[2], i % w[3]);
                let macs = rows[kh].saturating_mul(columns[kw]).saturating_mul(y[0] as u64);
                counts.mac_dense = counts.mac_dense.saturating_add(macs);
                if *v != 0.0 {
                    counts.mac_theoretical = counts.mac_theoretical.saturating_add(macs);
                }
            }
            counts.mac_published = product(w).saturating_mul(product(&[y[0], y[2], y[3]]));
            counts.other = bias;
        }
        Op::Linear => {
            let weight = graph.tensor(node.inputs[1]);
            let data = weight.data.as_ref().map(|d| d.as_slice()).unwrap_or_default();
            let nonzero = data.iter().filter(|v| **v != 0.0).count();
            counts.mac_dense = product(&[y[0], data.len()]);
            counts.mac_theoretical = product(&[y[0], nonzero]);
            counts.mac_published = counts.mac_dense;
            counts.other = bias;
        }
        Op::Add | Op::Mul | Op::Relu => counts.other = outputs,
        Op::MaxPool {
            kernel,
            strides,
            pads,
        }
        | Op::AvgPool {
            kernel,
            strides,
            pads,
            ..
        } => {
            let rows = axis_sum(y[2], strides[0], kernel[0], pads[0], x[2]);
            let columns = axis_sum(y[3], strides[1], kernel[1], pads[1], x[3]);
            let elements = rows.saturating_mul(columns).saturating_mul(product(&y[..2]));
            let divisions = if matches!(node.op, Op::AvgPool { .. }) {
                outputs
            } else {
                0
            };
            counts.other = elements.saturating_add(divisions);
        }
        Op::Softmax { .. } => counts.other = outputs.saturating_mul(4),
        Op::BatchNorm { .. } => counts.other = outputs.saturating_mul(2),
        Op::Reshape | Op::Transpose { .. } => {}
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers() {
        let g = crate::builders::mlp(&[4, 3, 2], 5, 0);
        let t = total(&g);
        assert_eq!((t.mac_dense, t.mac_theoretical, t.mac_published), (90, 90, 90));
        assert_eq!(t.other, 5 * (3 + 3 + 2));
    }

    #[test]
    fn padding_is_not_counted() {
        let mut g = Graph::new("t");
        let x = g.add_input("x", &[2, 1, 4, 4]);
        let mut data = vec![1.0; 9];
        data[4] = 0.0;
        let w = g.add_constant("w", &[1, 1, 3, 3], data);
        let op = Op::Conv {
            strides: [1, 1],
            pads: [1; 4],
            dilations: [1, 1],
            groups: 1,
        };
        g.add_node("y", op, &[x, w]).unwrap();
        let t = total(&g);
        // Along each axis the three taps hit 3, 4 and 3 elements.
        assert_eq!((t.mac_dense, t.mac_theoretical, t.mac_published), (200, 168, 288));
    }

    #[test]
    fn hits_agree_with_counting() {
        for (size, stride, pad, after, kernel, dilation) in [
            (7, 2, 1, 2, 3, 2),
            (5, 3, 4, 0, 2, 1),
            (1, 1, 3, 3, 4, 2),
            (9, 4, 0, 0, 3, 3),
        ] {
            let n = crate::shapes::window(size, kernel, stride, pad, after, dilation).unwrap();
            for (k, found) in axis(n, stride, kernel, dilation, pad, size)
                .into_iter()
                .enumerate()
            {
                let inside = |o: &usize| {
                    (o * stride + k * dilation)
                        .checked_sub(pad)
                        .is_some_and(|p| p < size)
                };
                assert_eq!(found, (0..n).filter(inside).count() as u64);
            }
        }
    }
}
