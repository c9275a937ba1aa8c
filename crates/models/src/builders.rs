//! Networks made from nothing but a description and a seed, for trials without a model file.

use crate::graph::{Graph, Op};
use crate::random;

/// A built-in network together with the full description it was made from.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// The network.
    pub graph: Graph,
    /// The description with every default filled in, such as `mlp:layers=784-512-512-10`.
    pub resolved: String,
}

/// Why a description names no built-in network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// There is no such network.
    #[error("{name:?} is not a built-in model; there are: {known}")]
    UnknownModel {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The network has no such setting.
    #[error("{model:?} has no setting {setting:?}; write {model}:layers=64-32-10")]
    UnknownSetting {
        /// The network.
        model: String,
        /// The setting given.
        setting: String,
    },
    /// The layer widths cannot be read.
    #[error("layers {layers:?}: {part:?} is not a width between 1 and 65536; write for example 64-32-10")]
    Width {
        /// The whole list.
        layers: String,
        /// The part that cannot be read.
        part: String,
    },
    /// There are too few or too many layers.
    #[error("layers {layers:?} has {found} widths; between 2 and 256 are needed, the inputs first")]
    LayerCount {
        /// The whole list.
        layers: String,
        /// Number of widths.
        found: usize,
    },
    /// The network would be too large.
    #[error(
        "{what} would have {elements} elements; at most {limit} are allowed, so use smaller layers or batches"
    )]
    TooLarge {
        /// What would be too large.
        what: &'static str,
        /// Its size in elements.
        elements: u128,
        /// The limit in elements.
        limit: u128,
    },
    /// The batch is zero.
    #[error("a batch must have at least 1 item")]
    EmptyBatch,
}

const DEFAULT_LAYERS: [usize; 4] = [784, 512, 512, 10];
/// Most weights a built-in network may have: 2^28, one gigabyte.
const MAX_WEIGHTS: u128 = 1 << 28;

/// Names and one-line descriptions of the built-in networks.
#[must_use]
pub fn list() -> Vec<(&'static str, &'static str)> {
    vec![(
        "mlp",
        "fully connected layers with ReLU between them; layers=784-512-512-10 gives the widths, inputs first",
    )]
}

/// A multilayer perceptron: input `x[batch, layers[0]]`, layers `fc1`, `fc2`, ... each with a bias, a ReLU
/// between layers and none after the last, whose output tensor is `y`. Weights are normal with variance 2/K
/// for K inputs, biases are small and never zero; both depend only on the seed and the layer.
///
/// # Panics
/// If there are fewer than two widths, a width or the batch is zero, or a tensor would have more than 2^31
/// elements; [`builtin`] reports the same as errors.
#[must_use]
pub fn mlp(layers: &[usize], batch: usize, seed: u64) -> Graph {
    assert!(layers.len() >= 2, "an mlp needs at least two widths");
    let mut graph = Graph::new("mlp");
    let mut value = graph.add_input("x", &[batch, layers[0]]);
    let last = layers.len() - 1;
    for (i, pair) in layers.windows(2).enumerate() {
        let (k, m, name) = (pair[0], pair[1], format!("fc{}", i + 1));
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let deviation = (2.0 / k as f64).sqrt();
        let mut normal = random::Normal::new(seed, &weight);
        let data = (0..k * m).map(|_| (normal.next() * deviation) as f32).collect();
        let w = graph.add_constant(&weight, &[m, k], data);
        let mut normal = random::Normal::new(seed, &bias);
        let small = |v: f64| (v.signum() * (0.01 + 0.02 * v.abs().min(4.0))) as f32;
        let b = graph.add_constant(&bias, &[m], (0..m).map(|_| small(normal.next())).collect());
        let is_last = i + 1 == last;
        let output = if is_last { "y" } else { name.as_str() };
        value = graph
            .add_node_as(&name, output, Op::Linear, &[value, w, b], None)
            .expect("shapes fit");
        if !is_last {
            value = graph
                .add_node(&format!("relu{}", i + 1), Op::Relu, &[value])
                .expect("shapes fit");
        }
    }
    graph.set_outputs(&[value]).expect("the output is in the graph");
    graph
}

/// Builds the network a description names: `mlp` or `mlp:layers=64-32-10`.
///
/// # Errors
/// [`SpecError`] if there is no such network or setting, or it would be too large.
pub fn builtin(spec: &str, batch: usize, seed: u64) -> Result<BuiltIn, SpecError> {
    let (name, settings) = spec.split_once(':').map_or((spec, None), |(n, s)| (n, Some(s)));
    if name != "mlp" {
        let known: Vec<&str> = list().into_iter().map(|(n, _)| n).collect();
        return Err(SpecError::UnknownModel {
            name: name.to_owned(),
            known: known.join(", "),
        });
    }
    let layers = match settings {
        None => DEFAULT_LAYERS.to_vec(),
        Some(setting) => match setting.strip_prefix("layers=") {
            Some(layers) => widths(layers)?,
            None => {
                let setting = setting.split('=').next().unwrap_or_default().to_owned();
                return Err(SpecError::UnknownSetting {
                    model: name.to_owned(),
                    setting,
                });
            }
        },
    };
    if batch == 0 {
        return Err(SpecError::EmptyBatch);
    }
    let weights: u128 = layers.windows(2).map(|p| p[0] as u128 * p[1] as u128).sum();
    if weights > MAX_WEIGHTS {
        return Err(SpecError::TooLarge {
            what: "the weights",
            elements: weights,
            limit: MAX_WEIGHTS,
        });
    }
    let limit = crate::shapes::MAX_ELEMENTS as u128;
    let widest = layers.iter().copied().max().unwrap_or(1) as u128 * batch as u128;
    if widest > limit {
        return Err(SpecError::TooLarge {
            what: "the widest activation",
            elements: widest,
            limit,
        });
    }
    let text: Vec<String> = layers.iter().map(ToString::to_string).collect();
    Ok(BuiltIn {
        graph: mlp(&layers, batch, seed),
        resolved: format!("mlp:layers={}", text.join("-")),
    })
}

fn widths(layers: &str) -> Result<Vec<usize>, SpecError> {
    let found = layers.split('-').count();
    if !(2..=256).contains(&found) {
        return Err(SpecError::LayerCount {
            layers: layers.chars().take(80).collect(),
            found,
        });
    }
    let width = |part: &str| match part.parse::<usize>() {
        Ok(n) if (1..=65536).contains(&n) && part.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(SpecError::Width {
            layers: layers.to_owned(),
            part: part.to_owned(),
        }),
    };
    layers.split('-').map(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_resolved() {
        let b = builtin("mlp", 3, 1).unwrap();
        assert_eq!(b.resolved, "mlp:layers=784-512-512-10");
        b.graph.verify().unwrap();
        assert_eq!(
            b.graph.parameters(),
            784 * 512 + 512 + 512 * 512 + 512 + 5120 + 10
        );
        let y = b.graph.tensor(b.graph.outputs()[0]);
        assert_eq!((y.name.as_str(), y.shape.as_slice()), ("y", &[3, 10][..]));
        assert_eq!(b.graph.tensor(b.graph.inputs()[0]).name, "x");
        assert_eq!(b.graph.nonzeros(), b.graph.parameters());
    }

    #[test]
    fn weights_have_the_right_spread_and_repeat() {
        let (a, b) = (mlp(&[100, 200, 10], 1, 7), mlp(&[100, 200, 10], 4, 7));
        let w = a
            .tensors()
            .iter()
            .find(|t| t.name == "fc1.weight")
            .unwrap()
            .data
            .clone()
            .unwrap();
        let variance = w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64;
        assert!((variance - 0.02).abs() < 0.001, "{variance}");
        assert_eq!(
            Some(w),
            b.tensors()
                .iter()
                .find(|t| t.name == "fc1.weight")
                .unwrap()
                .data
                .clone()
        );
    }

    #[test]
    fn bad_descriptions() {
        for spec in [
            "",
            "cnn",
            "mlp:",
            "mlp:depth=3",
            "mlp:layers=",
            "mlp:layers=4",
            "mlp:layers=4-0",
        ] {
            assert!(builtin(spec, 1, 0).is_err(), "{spec}");
        }
        for spec in [
            "mlp:layers=+4-3",
            "mlp:layers=65536-65536",
            "mlp:layers=99999999999999999999-2",
        ] {
            assert!(builtin(spec, 1, 0).is_err(), "{spec}");
        }
        assert_eq!(builtin("mlp", 0, 0).unwrap_err(), SpecError::EmptyBatch);
        assert!(builtin("mlp", usize::MAX, 0).is_err());
    }
}
