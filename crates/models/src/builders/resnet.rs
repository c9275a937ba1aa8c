//! Residual networks as torchvision has them, 18, 34 or 50 layers deep, with a stem for large or for small images.

use super::maker::{Maker, Window};
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{GraphError, Op, TensorId};

const PARAMETERS: &[&str] = &["stem", "width", "classes", "size"];

/// A depth's family.
const fn family(about: &'static str, build: super::Build) -> Family {
    Family {
        parameters: PARAMETERS,
        about,
        batch: 1,
        build,
    }
}

pub(super) const RESNET18: Family = family(
    "ResNet-18; stem=cifar (or imagenet), width=16 (64), classes=10 (1000), size=32 (224): defaults follow the stem",
    |p, m, batch| build(p, m, batch, [2, 2, 2, 2], false),
);
pub(super) const RESNET34: Family = family("ResNet-34; parameters as resnet18", |p, m, batch| {
    build(p, m, batch, [3, 4, 6, 3], false)
});
pub(super) const RESNET50: Family = family(
    "ResNet-50 (bottlenecks, stride in the 3x3); parameters as resnet18",
    |p, m, batch| build(p, m, batch, [3, 4, 6, 3], true),
);

fn build(
    p: &mut Parameters,
    m: &mut Maker,
    batch: usize,
    blocks: [usize; 4],
    bottleneck: bool,
) -> Result<(), BuilderError> {
    let large = p.choice("stem", &["cifar", "imagenet"])? == 1;
    let width = p.size("width", if large { 64 } else { 16 })?;
    let classes = p.size("classes", if large { 1000 } else { 10 })?;
    let size = p.size("size", if large { 224 } else { 32 })?;

    let x = m.graph.add_input("image", &[batch, 3, size, size])?;
    let stem = if large {
        Window::same(7, 2)
    } else {
        Window::same(3, 1)
    };
    let x = m.conv("conv1", x, width, stem)?;
    let x = m.batch_norm("bn1", x)?;
    let mut x = m.relu("relu", x)?;
    if large {
        let op = Op::MaxPool {
            kernel: [3, 3],
            strides: [2, 2],
            pads: [1; 4],
        };
        // about the mean square of the maximum of nine such values
        let square = 2.5 * m.square(x);
        x = m.node("maxpool", op, &[x], square)?;
    }
    for (stage, blocks) in blocks.into_iter().enumerate() {
        for block in 0..blocks {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = residual(m, &name, x, width << stage, stride, bottleneck)?;
        }
    }
    let x = m.global_average("avgpool", x)?;
    let k = m.graph.tensor(x).shape[1];
    let weight = m.normal("fc.weight", &[classes, k], (1.0 / k as f64).sqrt())?;
    let bias = m.bias("fc.bias", classes)?;
    let logits = m.graph.add_node("fc", Op::Linear, &[x, weight, bias], "logits")?;
    m.graph.add_output(logits)?;
    Ok(())
}

/// Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width, and what goes around them.
fn residual(
    m: &mut Maker,
    name: &str,
    x: TensorId,
    width: usize,
    stride: usize,
    bottleneck: bool,
) -> Result<TensorId, GraphError> {
    let (windows, out) = if bottleneck {
        let all = [Window::same(1, 1), Window::same(3, stride), Window::same(1, 1)];
        (all.to_vec(), 4 * width)
    } else {
        (vec![Window::same(3, stride), Window::same(3, 1)], width)
    };
    let mut y = x;
    for (i, window) in windows.iter().enumerate() {
        let (n, last) = (i + 1, i + 1 == windows.len());
        let channels = if last { out } else { width };
        y = m.conv(&format!("{name}.conv{n}"), y, channels, *window)?;
        y = m.batch_norm(&format!("{name}.bn{n}"), y)?;
        if !last {
            y = m.relu(&format!("{name}.relu{n}"), y)?;
        }
    }
    let keeps = stride == 1 && m.graph.tensor(x).shape[1] == out;
    let around = if keeps {
        x
    } else {
        let conv = m.conv(&format!("{name}.downsample.0"), x, out, Window::same(1, stride))?;
        m.batch_norm(&format!("{name}.downsample.1"), conv)?
    };
    let square = if keeps {
        // what goes around is not negative
        m.square(y) / 2.0 + m.square(x)
    } else {
        (m.square(y) + m.square(around)) / 2.0
    };
    let sum = m.add(&format!("{name}.add"), y, around)?;
    m.node(&format!("{name}.relu"), Op::Relu, &[sum], square)
}

#[cfg(test)]
mod tests {
    use crate::builders::{Values, builtin_with};
    use crate::flops;

    #[test]
    fn sizes_are_those_of_torchvision() {
        for (name, parameters, macs) in [
            ("resnet18", 11_689_512, 1_814_073_344),
            ("resnet34", 21_797_672, 3_663_761_408),
            ("resnet50", 25_557_032, 4_089_184_256),
        ] {
            let g = builtin_with(&format!("{name}:stem=imagenet"), 1, 0, Values::Abstract)
                .unwrap()
                .graph;
            assert_eq!(g.trainable_parameters(), parameters, "{name}");
            assert_eq!(flops::total(&g).mac_published, macs, "{name}");
        }
    }
}
