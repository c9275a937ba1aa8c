//! The count of "Sparse Iso-FLOP Transformations for Maximizing Training Efficiency" (2024): the rules of the counter that
//! the authors published with their code (github.com/CerebrasResearch/Sparse-IFT, `cbsparse/sparse/utils/profiler_utils.py`,
//! read, not copied). It counts additions and multiplications of PyTorch *modules*, one sample at a time:
//!
//! | module | FLOPs |
//! |---|---|
//! | convolution with W weights | W multiplications and W - 1 additions a position; a bias one an output element |
//! | linear, k to m features | m (2k - 1) a position; a bias one an output element |
//! | batch norm | 7 an element, 1 less a channel (statistics of the batch included) |
//! | layer norm | 7 an element, 1 less a sample |
//! | ReLU, ReLU6 | 1, 2 an element |
//! | tanh | 5 an element |
//! | maximum, average pooling | window - 1 (maxima), window (additions and one product) an output element |
//! | softmax | 3 a row, 1 less in all |
//!
//! Of a sparse weight the additions and the multiplications are each multiplied by its density and rounded down. Products
//! of two activations, embeddings, GELU and residual additions are no modules of the counter's, and count nothing.
//!
//! A functional call (`F.relu`) is no module either. Which operations of a model are called so is a fact about its authors'
//! code, not about the graph: [`Functional`].

use super::{nonzero_share, weight};
use crate::graph::{Graph, NodeId, Op};

/// What a model's PyTorch code calls as a function, so that the counter does not see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Functional {
    /// `F.relu`.
    pub relu: bool,
    /// `F.avg_pool2d` or `F.adaptive_avg_pool2d`.
    pub average_pool: bool,
}

impl Functional {
    /// What is known of a built-in model, by its resolved specification. The authors' ResNets call `F.relu`, that for CIFAR
    /// also `F.avg_pool2d`; the MobileNetV2 for CIFAR-100 whose count is theirs calls `F.adaptive_avg_pool2d`. Of other
    /// models everything is taken to be a module.
    pub fn of(resolved: &str) -> Functional {
        let resnet = resolved.starts_with("resnet");
        Functional {
            relu: resnet,
            average_pool: (resnet && resolved.contains("stem=cifar"))
                || resolved.starts_with("mobilenetv2-cifar"),
        }
    }
}

pub(super) fn forward(graph: &Graph, id: NodeId, functional: Functional) -> u64 {
    let node = graph.node(id);
    let x = graph.tensor(node.inputs[0]);
    let y = graph.tensor(node.output);
    let samples = y.shape.first().copied().unwrap_or(1) as u64;
    let (inputs, outputs) = (x.elements(), y.elements());
    let product = |additions: u64, multiplications: u64| {
        let sparse = |n: u64| weight(graph, id).map_or(n, |w| nonzero_share(graph, w, n));
        let bias = if node.inputs.len() > 2 { outputs } else { 0 };
        sparse(additions) + sparse(multiplications) + bias
    };
    match &node.op {
        Op::Conv { .. } => {
            let weights = graph.tensor(node.inputs[1]).elements();
            let positions = samples * y.shape[2..].iter().map(|d| *d as u64).product::<u64>();
            product(positions * (weights - 1), positions * weights)
        }
        Op::Linear => {
            let k = x.shape.last().copied().unwrap_or(1) as u64;
            product(outputs * (k - 1), outputs * k)
        }
        Op::MatMul if weight(graph, id).is_some() => {
            let k = x.shape.last().copied().unwrap_or(1) as u64;
            product(outputs * (k - 1), outputs * k)
        }
        Op::BatchNorm { .. } => 7 * inputs - x.shape[1] as u64,
        Op::LayerNorm { .. } => 7 * inputs - samples,
        Op::Relu if !functional.relu => outputs,
        Op::Clip { .. } => 2 * outputs,
        Op::Tanh => 5 * outputs,
        Op::MaxPool { kernel, .. } => outputs * (kernel[0] * kernel[1] - 1) as u64,
        Op::AvgPool { kernel, .. } if !functional.average_pool => outputs * (kernel[0] * kernel[1]) as u64,
        Op::Softmax { axis } => (3 * outputs / x.shape[*axis] as u64).saturating_sub(1),
        _ => 0,
    }
}
