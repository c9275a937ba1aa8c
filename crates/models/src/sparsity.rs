//! Which weights are zero. Masks are made for convolution and product weights only; biases and norms stay as they are.

use crate::graph::{Graph, GraphError, Op, TensorId};
use crate::random::Stream;
use std::collections::BTreeSet;
use std::str::FromStr;
use thiserror::Error;

/// How the weights that stay are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mask {
    /// At random, each as likely as any other.
    Uniform,
    /// Those of the largest magnitude; among equals those that come first.
    Magnitude,
    /// The zeros that the model has; the fraction is ignored.
    Existing,
}

/// Why weights cannot be masked.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SparsityError {
    /// The fraction is not in [0, 1).
    #[error("sparsity {0} is not a fraction: expected at least 0 and less than 1")]
    Fraction(f64),
    /// No mask has this name.
    #[error("no mask is called `{0}`; there are: uniform, magnitude, existing")]
    Unknown(String),
    /// The graph refused the masked weights.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl FromStr for Mask {
    type Err = SparsityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "uniform" => Ok(Mask::Uniform),
            "magnitude" => Ok(Mask::Magnitude),
            "existing" => Ok(Mask::Existing),
            _ => Err(SparsityError::Unknown(s.into())),
        }
    }
}

/// How many of `n` weights a sparsity of `fraction` keeps: `n * (1 - fraction)`, rounded to the nearest.
pub fn kept(n: usize, fraction: f64) -> usize {
    (n as f64 * (1.0 - fraction)).round() as usize
}

/// The constant weights of convolutions and products, each once, by id; abstract ones too.
pub fn weights(graph: &Graph) -> Vec<TensorId> {
    let of = |id| {
        let node = graph.node(id);
        matches!(node.op, Op::Conv { .. } | Op::Linear).then(|| node.inputs[1])
    };
    let all: BTreeSet<TensorId> = graph.nodes_in_order().into_iter().filter_map(of).collect();
    all.into_iter()
        .filter(|t| graph.tensor(*t).is_constant())
        .collect()
}

/// The graph with a `fraction` of every weight tensor set to zero: exactly [`kept`] values of each stay.
///
/// A tensor's random choice depends on the seed and on its name alone. A kept weight that is 0.0 in the model stays so, and
/// counts as zero in [`Graph::nonzeros`]. Of an abstract constant only the count is set.
///
/// # Errors
/// [`SparsityError::Fraction`] if `fraction` is not in [0, 1).
pub fn sparsify(graph: &Graph, fraction: f64, mask: Mask, seed: u64) -> Result<Graph, SparsityError> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(SparsityError::Fraction(fraction));
    }
    let mut sparse = graph.clone();
    if mask == Mask::Existing {
        return Ok(sparse);
    }
    for t in weights(graph) {
        let tensor = graph.tensor(t);
        let Some(data) = tensor.data.as_deref() else {
            sparse.set_nonzeros(t, kept(tensor.elements() as usize, fraction) as u64)?;
            continue;
        };
        let mut masked = vec![0.0; data.len()];
        for i in choose(data, kept(data.len(), fraction), mask, seed, &tensor.name) {
            masked[i] = data[i];
        }
        sparse.set_constant(t, masked)?;
    }
    Ok(sparse)
}

/// The indices of the weights that stay.
fn choose(data: &[f32], keep: usize, mask: Mask, seed: u64, name: &str) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..data.len()).collect();
    if mask == Mask::Magnitude {
        indices.sort_by(|a, b| data[*b].abs().total_cmp(&data[*a].abs()).then(a.cmp(b)));
    } else {
        // the first steps of a Fisher-Yates shuffle
        let mut stream = Stream::new(seed, "mask", name);
        for i in 0..keep {
            let j = i + stream.below((indices.len() - i) as u64) as usize;
            indices.swap(i, j);
        }
    }
    indices.truncate(keep);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(names: &[&str], n: usize) -> Graph {
        let mut g = Graph::new("g");
        let mut t = g.add_input("x", &[1, n]).unwrap();
        for (i, name) in names.iter().enumerate() {
            let data = (0..n * n)
                .map(|j| (j as f32 - 7.5) * if j % 2 == 0 { 1.0 } else { -1.0 })
                .collect();
            let w = g.add_constant(*name, &[n, n], data).unwrap();
            let b = g
                .add_constant(format!("{name}.bias"), &[n], vec![1.0; n])
                .unwrap();
            t = g
                .add_node(format!("l{i}"), Op::Linear, &[t, w, b], format!("y{i}"))
                .unwrap();
        }
        g.add_output(t).unwrap();
        g
    }

    fn data(g: &Graph, name: &str) -> Vec<f32> {
        g.tensor(g.find(name).unwrap()).data.as_ref().unwrap().to_vec()
    }

    #[test]
    fn a_tensors_mask_does_not_depend_on_the_others() {
        let (a, b) = (graph(&["u", "v"], 8), graph(&["v", "w"], 8));
        let (a, b) = (
            sparsify(&a, 0.7, Mask::Uniform, 3).unwrap(),
            sparsify(&b, 0.7, Mask::Uniform, 3).unwrap(),
        );
        assert_eq!(data(&a, "v"), data(&b, "v"));
        assert_ne!(data(&a, "u"), data(&a, "v"));
        assert_eq!(data(&a, "u.bias"), vec![1.0; 8]);
    }

    #[test]
    fn magnitude_keeps_the_largest_and_the_first_of_equals() {
        let g = sparsify(&graph(&["w"], 4), 0.75, Mask::Magnitude, 0).unwrap();
        // magnitudes are 7.5, 6.5, ... 0.5, 0.5, ... 7.5
        let nonzero: Vec<usize> = (0..16).filter(|i| data(&g, "w")[*i] != 0.0).collect();
        assert_eq!(nonzero, [0, 1, 14, 15]);
        let g = sparsify(&graph(&["w"], 4), 15.0 / 16.0, Mask::Magnitude, 0).unwrap();
        assert_ne!(data(&g, "w")[0], 0.0);
    }

    #[test]
    fn fractions_are_checked() {
        for f in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                sparsify(&graph(&["w"], 2), f, Mask::Uniform, 0),
                Err(SparsityError::Fraction(_))
            ));
        }
        assert_eq!(
            sparsify(&graph(&["w"], 2), 0.0, Mask::Uniform, 0)
                .unwrap()
                .nonzeros(),
            6
        );
        assert!("half".parse::<Mask>().is_err());
    }
}
