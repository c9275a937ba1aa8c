//! MobileNetV2 as torchvision has it: inverted residuals with depthwise convolutions and ReLU6.

use super::maker::{Maker, Window};
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{GraphError, Op, TensorId};

pub(super) const FAMILY: Family = Family {
    parameters: &["width", "size", "classes"],
    about: "MobileNetV2; width=1.0 (factor of all channels), size=224, classes=1000",
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
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// Channels times a factor, to the nearest multiple of 8 that is not over a tenth less.
fn scaled(channels: usize, factor: f64) -> usize {
    let exact = channels as f64 * factor;
    let near = (((exact + 4.0) as usize) / 8 * 8).max(8);
    if (near as f64) < 0.9 * exact {
        near + 8
    } else {
        near
    }
}

fn build(p: &mut Parameters, m: &mut Maker, batch: usize) -> Result<(), BuilderError> {
    let factor = p.factor("width", "1.0")?;
    let (size, classes) = (p.size("size", 224)?, p.size("classes", 1000)?);
    let x = m.graph.add_input("image", &[batch, 3, size, size])?;
    let mut x = layer(
        m,
        ["features.0.0", "features.0.1", "features.0.2"],
        x,
        scaled(32, factor),
        Window::same(3, 2),
    )?;
    let mut index = 1;
    for (expansion, channels, blocks, stride) in STAGES {
        for block in 0..blocks {
            let stride = if block == 0 { stride } else { 1 };
            let name = format!("features.{index}.conv");
            x = inverted(m, &name, x, expansion, scaled(channels, factor), stride)?;
            index += 1;
        }
    }
    let names = ["features.18.0", "features.18.1", "features.18.2"];
    let x = layer(m, names, x, scaled(1280, factor.max(1.0)), Window::same(1, 1))?;
    let x = m.global_average("avgpool", x)?;
    let k = m.graph.tensor(x).shape[1];
    let weight = m.normal("classifier.1.weight", &[classes, k], (1.0 / k as f64).sqrt())?;
    let bias = m.bias("classifier.1.bias", classes)?;
    let logits = m
        .graph
        .add_node("classifier.1", Op::Linear, &[x, weight, bias], "logits")?;
    m.graph.add_output(logits)?;
    Ok(())
}

/// Convolution, norm, ReLU6, under these names.
fn layer(
    m: &mut Maker,
    names: [&str; 3],
    x: TensorId,
    channels: usize,
    window: Window,
) -> Result<TensorId, GraphError> {
    let x = m.conv(names[0], x, channels, window)?;
    let x = m.batch_norm(names[1], x)?;
    let square = m.square(x) / 2.0;
    m.node(names[2], Op::Clip { min: 0.0, max: 6.0 }, &[x], square)
}

/// Expansion by a 1x1 convolution, a depthwise one, a 1x1 projection without ReLU6; added to the input where shapes allow.
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
    let (mut y, mut at) = (x, 0);
    let names = |at: usize| [0, 1, 2].map(|i| format!("{name}.{at}.{i}"));
    if expansion > 1 {
        let all = names(at);
        y = layer(m, [&all[0], &all[1], &all[2]], y, hidden, Window::same(1, 1))?;
        at += 1;
    }
    let depthwise = Window {
        groups: hidden,
        ..Window::same(3, stride)
    };
    let all = names(at);
    y = layer(m, [&all[0], &all[1], &all[2]], y, hidden, depthwise)?;
    y = m.conv(&format!("{name}.{}", at + 1), y, channels, Window::same(1, 1))?;
    y = m.batch_norm(&format!("{name}.{}", at + 2), y)?;
    if stride == 1 && from == channels {
        y = m.add(&format!("{name}.add"), x, y)?;
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::{Values, builtin_with};
    use crate::flops;

    #[test]
    fn sizes_are_those_of_torchvision() {
        let g = builtin_with("mobilenetv2", 1, 0, Values::Abstract).unwrap().graph;
        assert_eq!(g.trainable_parameters(), 3_504_872);
        assert_eq!(flops::total(&g).mac_published, 300_774_272);
        assert_eq!([0.5, 0.75, 1.4].map(|f| scaled(24, f)), [16, 24, 32]);
    }
}
