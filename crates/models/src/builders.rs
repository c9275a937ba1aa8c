//! Models that are built, not read: the registry of their names and parameters, and the builders.

use crate::graph::{Graph, GraphError, Op};
use crate::random::Stream;
use thiserror::Error;

/// Why a built-in model cannot be built.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BuilderError {
    /// No model has this name.
    #[error("no built-in model is called `{name}`; there are: {known}")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The model has no such parameter.
    #[error("`{model}` has no parameter `{parameter}`; it has: {known}")]
    UnknownParameter {
        /// The model.
        model: &'static str,
        /// The parameter asked for.
        parameter: String,
        /// Those that exist.
        known: &'static str,
    },
    /// A parameter's value cannot be read.
    #[error("parameter `{parameter}` is `{value}`: expected {expected}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A parameter is given twice.
    #[error("parameter `{0}` is given twice")]
    Twice(String),
    /// The graph cannot be built with these parameters.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A built-in model.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// The model.
    pub graph: Graph,
    /// The specification with all parameters spelt out: with it, the batch and the seed the same graph is built.
    pub resolved: String,
}

/// The built-in models, each with its parameters and what it is.
pub fn list() -> Vec<(&'static str, &'static str)> {
    vec![(
        "mlp",
        "fully connected layers with ReLU between them; layers=784-512-512-10 (sizes, input first)",
    )]
}

/// Builds the model of a specification: a name and optionally parameters, `mlp:layers=64-32-10`. `seed` is that of the
/// weights.
///
/// # Errors
/// A [`BuilderError`] that lists what exists.
pub fn builtin(spec: &str, batch: usize, seed: u64) -> Result<BuiltIn, BuilderError> {
    let (name, parameters) = spec.split_once(':').unwrap_or((spec, ""));
    if name != "mlp" {
        let known = list().iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
        return Err(BuilderError::UnknownModel {
            name: name.into(),
            known,
        });
    }
    let mut layers = None;
    for part in parameters.split(',').filter(|p| !p.trim().is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if key.trim() != "layers" {
            let (parameter, known) = (key.trim().into(), "layers");
            return Err(BuilderError::UnknownParameter {
                model: "mlp",
                parameter,
                known,
            });
        }
        if layers.replace(parse_layers(value.trim())?).is_some() {
            return Err(BuilderError::Twice(key.trim().into()));
        }
    }
    let layers = layers.unwrap_or_else(|| vec![784, 512, 512, 10]);
    let sizes = layers.iter().map(usize::to_string).collect::<Vec<_>>().join("-");
    Ok(BuiltIn {
        graph: mlp(&layers, batch, seed)?,
        resolved: format!("mlp:layers={sizes}"),
    })
}

fn parse_layers(value: &str) -> Result<Vec<usize>, BuilderError> {
    let sizes: Option<Vec<usize>> = value
        .split('-')
        .map(|v| v.parse().ok().filter(|v| *v > 0))
        .collect();
    sizes.filter(|s| s.len() >= 2).ok_or_else(|| BuilderError::Value {
        parameter: "layers",
        value: value.into(),
        expected: "at least two sizes joined by `-`, such as 64-32-10",
    })
}

/// A multi-layer perceptron: input `x [batch, layers[0]]`, a product with bias for each further size, ReLU between them and
/// none after the last; output `y [batch, last]`.
///
/// Weights are normal with variance 2 / inputs, biases of magnitude 0.01 to 0.05 with random sign: never zero, so that a
/// bias that is left out shows.
///
/// # Errors
/// If there are fewer than two sizes, a size or the batch is 0, or they are absurd.
pub fn mlp(layers: &[usize], batch: usize, seed: u64) -> Result<Graph, GraphError> {
    if layers.len() < 2 {
        return Err(GraphError::Malformed(
            "a perceptron needs at least two sizes".into(),
        ));
    }
    let mut g = Graph::new("mlp");
    let mut t = g.add_input("x", &[batch, layers[0]])?;
    for (i, pair) in layers.windows(2).enumerate() {
        let (k, m) = (pair[0], pair[1]);
        let names = [format!("fc{i}.weight"), format!("fc{i}.bias")];
        // the sizes are checked before the weights are made
        crate::shapes::elements(&[m, k]).map_err(|error| GraphError::Tensor {
            tensor: names[0].clone(),
            error,
        })?;
        let scale = (2.0 / k as f64).sqrt();
        let mut stream = Stream::new(seed, "weights", &names[0]);
        let data = (0..m * k).map(|_| (stream.normal() * scale) as f32).collect();
        let w = g.add_constant(&names[0], &[m, k], data)?;
        let mut stream = Stream::new(seed, "weights", &names[1]);
        let mut bias = || {
            let magnitude = 0.01 + 0.04 * stream.uniform();
            (if stream.below(2) == 0 {
                magnitude
            } else {
                -magnitude
            }) as f32
        };
        let data = (0..m).map(|_| bias()).collect();
        let b = g.add_constant(&names[1], &[m], data)?;
        let last = i + 2 == layers.len();
        let output = if last { "y".into() } else { format!("fc{i}.out") };
        t = g.add_node(format!("fc{i}"), Op::Linear, &[t, w, b], output)?;
        if !last {
            t = g.add_node(format!("relu{i}"), Op::Relu, &[t], format!("relu{i}.out"))?;
        }
    }
    g.add_output(t)?;
    Ok(g)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_spelt_out() {
        let b = builtin("mlp", 3, 0).unwrap();
        assert_eq!(b.resolved, "mlp:layers=784-512-512-10");
        assert_eq!(
            b.graph.parameters(),
            (784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10) as u64
        );
        assert_eq!(b.graph.nonzeros(), b.graph.parameters());
        b.graph.verify().unwrap();
        let again = builtin(&b.resolved, 3, 0).unwrap();
        assert_eq!(again.graph.tensors(), b.graph.tensors());
    }

    #[test]
    fn weights_have_the_scale_of_their_layer() {
        let g = mlp(&[256, 128], 1, 9).unwrap();
        let w = g.tensor(g.find("fc0.weight").unwrap()).data.clone().unwrap();
        let variance = w.iter().map(|v| f64::from(v * v)).sum::<f64>() / w.len() as f64;
        assert!((variance * 128.0 - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn seeds_and_batches() {
        let (a, b) = (mlp(&[4, 3], 1, 1).unwrap(), mlp(&[4, 3], 1, 2).unwrap());
        assert_ne!(a.tensors(), b.tensors());
        assert_eq!(
            mlp(&[4, 3], 5, 1).unwrap().tensors(),
            a.with_batch(5).unwrap().tensors()
        );
        assert!(mlp(&[4, 3], 0, 1).is_err());
        assert!(mlp(&[1 << 20, 1 << 20], 1, 1).is_err());
    }
}
