//! MobileNetV2 for CIFAR-100 as the public collection weiaicunzai/pytorch-cifar100 has it: the network of `mobilenet`, with
//! a 1x1 stem padded to 34x34, a first block that has an expansion (by 1), its last stages at stride 1, biases in every
//! convolution, and a 1x1 convolution for a classifier. The Sparse-IFT paper's FLOP budget for MobileNetV2 is this one's.

use super::maker::{Maker, Window, he};
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{GraphError, Op, TensorId};

pub(super) const FAMILY: Family = Family {
    parameters: &["classes"],
    about: "MobileNetV2 for CIFAR-100 (images 32x32; biases, 1x1 stem and classifier); classes=100",
    batch: 1,
    build,
};

/// Expansion, channels, blocks, stride of the first.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
];

fn build(p: &mut Parameters, m: &mut Maker, batch: usize) -> Result<(), BuilderError> {
    let classes = p.size("classes", 100)?;
    let x = m.graph.add_input("image", &[batch, 3, 32, 32])?;
    let stem = Window {
        pad: 1,
        ..Window::same(1, 1)
    };
    let mut x = layer(m, "pre", 0, x, 32, stem)?;
    for (stage, (expansion, channels, blocks, stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let name = match blocks {
                1 => format!("stage{}.residual", stage + 1),
                _ => format!("stage{}.{block}.residual", stage + 1),
            };
            let stride = if block == 0 { stride } else { 1 };
            x = inverted(m, &name, x, expansion, channels, stride)?;
        }
    }
    let x = layer(m, "conv1", 0, x, 1280, Window::same(1, 1))?;
    let shape = m.graph.tensor(x).shape.clone();
    let op = Op::AvgPool {
        kernel: [shape[2], shape[3]],
        strides: [1; 2],
        pads: [0; 4],
        count_include_pad: false,
    };
    let square = m.square(x);
    let x = m.node("avgpool", op, &[x], square)?;
    let x = biased(m, "conv2", x, classes, Window::same(1, 1))?;
    let logits = m.graph.add_reshape("flatten", x, "logits", &[batch, classes])?;
    m.graph.add_output(logits)?;
    Ok(())
}

/// A convolution with a bias.
fn biased(
    m: &mut Maker,
    name: &str,
    x: TensorId,
    channels: usize,
    window: Window,
) -> Result<TensorId, GraphError> {
    let shape = m.conv_shape(x, channels, window);
    let weight = m.normal(format!("{name}.weight"), &shape, he(&shape))?;
    let bias = m.bias(format!("{name}.bias"), channels)?;
    m.conv_with(name, x, &[weight, bias], window, 2.0)
}

/// Convolution, norm, ReLU6, numbered from `at`.
fn layer(
    m: &mut Maker,
    name: &str,
    at: usize,
    x: TensorId,
    channels: usize,
    window: Window,
) -> Result<TensorId, GraphError> {
    let x = biased(m, &format!("{name}.{at}"), x, channels, window)?;
    let x = m.batch_norm(&format!("{name}.{}", at + 1), x)?;
    let square = m.square(x) / 2.0;
    let op = Op::Clip { min: 0.0, max: 6.0 };
    m.node(&format!("{name}.{}", at + 2), op, &[x], square)
}

/// Expansion, depthwise convolution, projection without ReLU6; added to the input where shapes allow.
fn inverted(
    m: &mut Maker,
    name: &str,
    x: TensorId,
    expansion: usize,
    channels: usize,
    stride: usize,
) -> Result<TensorId, GraphError> {
    let from = m.graph.tensor(x).shape[1];
    let hidden = from * expansion;
    let depthwise = Window {
        groups: hidden,
        ..Window::same(3, stride)
    };
    let y = layer(m, name, 0, x, hidden, Window::same(1, 1))?;
    let y = layer(m, name, 3, y, hidden, depthwise)?;
    let y = biased(m, &format!("{name}.6"), y, channels, Window::same(1, 1))?;
    let y = m.batch_norm(&format!("{name}.7"), y)?;
    match stride == 1 && from == channels {
        true => m.add(&format!("{name}.add"), x, y),
        false => Ok(y),
    }
}
