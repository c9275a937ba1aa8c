//! Setting weights to zero, exactly as many as asked for.

use std::collections::BTreeSet;

use crate::graph::{Graph, GraphError, Op, TensorId};
use crate::random;

/// Which weights are set to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Chosen by lot: without replacement, seeded per tensor name.
    Uniform,
    /// The smallest by magnitude; of equal ones, the later by index.
    Magnitude,
    /// None: the zeros the model has are all there are, and the fraction is not used.
    Existing,
}

/// Why a network could not be sparsified.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SparsityError {
    /// The fraction of zeros is not between 0 and 1.
    #[error("a sparsity of {0} is out of range; give the fraction of zeros, between 0 and 1")]
    Fraction(f64),
    /// The graph is inconsistent.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The weights of the `Conv` and `Linear` operators, each tensor once.
#[must_use]
pub fn weights(graph: &Graph) -> Vec<TensorId> {
    let weight = |id| {
        let node = graph.node(id);
        let holds = matches!(node.op, Op::Conv { .. } | Op::Linear);
        node.inputs.get(1).copied().filter(|_| holds)
    };
    let all: BTreeSet<TensorId> = graph.nodes_in_order().into_iter().filter_map(weight).collect();
    all.into_iter().collect()
}

/// A copy of the network in which, of the `n` weights of each `Conv` and `Linear`, exactly
/// `round(n * (1 - fraction))` are kept and the others are zero. Kept weights that were zero before stay zero.
/// Biases and everything else are left alone.
///
/// # Errors
/// If `fraction` is not between 0 and 1, or the graph is inconsistent.
pub fn sparsify(graph: &Graph, fraction: f64, mask: Mask, seed: u64) -> Result<Graph, SparsityError> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(SparsityError::Fraction(fraction));
    }
    graph.verify()?;
    let mut result = graph.clone();
    if mask == Mask::Existing {
        return Ok(result);
    }
    for id in weights(graph) {
        let tensor = graph.tensor(id);
        let Some(old) = &tensor.data else {
            continue;
        };
        let n = old.len();
        let keep = ((n as f64 * (1.0 - fraction)).round() as usize).min(n);
        let mut order: Vec<usize> = (0..n).collect();
        match mask {
            Mask::Uniform => {
                let mut rng = random::generator(seed, &format!("mask {}", tensor.name));
                for i in 0..keep {
                    let other = i + random::below(&mut rng, n - i);
                    order.swap(i, other);
                }
            }
            Mask::Magnitude => {
                order.sort_by(|a, b| old[*b].abs().total_cmp(&old[*a].abs()).then(a.cmp(b)));
            }
            Mask::Existing => {}
        }
        let mut data = vec![0.0; n];
        for &i in &order[..keep] {
            data[i] = old[i];
        }
        result.set_constant(id, data)?;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::mlp;

    fn nonzeros(graph: &Graph) -> Vec<usize> {
        let count = |id| {
            graph
                .tensor(id)
                .data
                .as_ref()
                .unwrap()
                .iter()
                .filter(|v| **v != 0.0)
                .count()
        };
        weights(graph).into_iter().map(count).collect()
    }

    #[test]
    fn counts_are_exact() {
        let g = mlp(&[7, 9, 3], 1, 1);
        for mask in [Mask::Uniform, Mask::Magnitude] {
            for fraction in [0.0, 0.1, 0.5, 0.9, 0.99, 1.0] {
                let s = sparsify(&g, fraction, mask, 5).unwrap();
                let kept = |n: f64| (n * (1.0 - fraction)).round() as usize;
                assert_eq!(nonzeros(&s), [kept(63.0), kept(27.0)]);
                assert_eq!(s.parameters(), g.parameters());
            }
        }
        let s = sparsify(&g, 0.5, Mask::Uniform, 5).unwrap();
        let again = sparsify(&s, 0.9, Mask::Existing, 6).unwrap();
        assert_eq!(again.nonzeros(), s.nonzeros());
        assert_eq!(
            sparsify(&g, 1.5, Mask::Uniform, 0).unwrap_err(),
            SparsityError::Fraction(1.5)
        );
        assert!(sparsify(&g, f64::NAN, Mask::Existing, 0).is_err());
    }

    #[test]
    fn magnitude_keeps_the_largest_and_earliest() {
        let mut g = Graph::new("t");
        let x = g.add_input("x", &[1, 5]);
        let w = g.add_constant("w", &[1, 5], vec![1.0, -3.0, 1.0, 2.0, -1.0]);
        g.add_node("y", Op::Linear, &[x, w]).unwrap();
        let s = sparsify(&g, 0.4, Mask::Magnitude, 0).unwrap();
        assert_eq!(**s.tensor(w).data.as_ref().unwrap(), [1.0, -3.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn uniform_follows_the_seed() {
        let g = mlp(&[40, 40], 1, 1);
        let mask = |seed| {
            sparsify(&g, 0.5, Mask::Uniform, seed)
                .unwrap()
                .tensor(weights(&g)[0])
                .data
                .clone()
        };
        assert_eq!(mask(1), mask(1));
        assert_ne!(mask(1), mask(2));
    }
}
