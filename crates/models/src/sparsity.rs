//! Which weights are zero. Only weights of convolutions and products are masked; biases and norms stay as they are.
//!
//! Three questions, a file each: which weights may be masked ([`selection`]), how sparse each of them becomes ([`Plan`],
//! [`layers`]) and which of its values stay (`choose`).

mod choose;
pub mod layers;
pub mod selection;

use crate::graph::{Graph, GraphError, TensorId};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

pub(crate) use choose::draw;
pub use layers::{LayerRule, Layers};
pub use selection::{dense_by_default, maskable, weights};

/// How the weights that stay are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mask {
    /// At random, each as likely as any other.
    Uniform,
    /// Those of the largest magnitude; among equals those that come first.
    Magnitude,
    /// The zeros that the model has; the fraction is ignored.
    Existing,
    /// Of each `m` consecutive weights along the input features (of one output feature and one tap) the `n` of the largest
    /// magnitude; among equals those that come first. Of a shorter last group, of `r` weights, `r n / m` rounded up. The
    /// sparsity is `1 - n / m`.
    NM {
        /// Kept of each group, at least 1.
        n: usize,
        /// Size of a group, more than `n`.
        m: usize,
    },
    /// At random within an output feature (a row), and the number of weights that a row keeps varies: log-normal, at most
    /// the whole row, the total exact, with the coefficient of variation `cv` over the rows as nearly as whole numbers and
    /// full rows allow ([`row_variation`] gives the one that came out).
    Skewed {
        /// Standard deviation of the rows' counts over their mean.
        cv: f64,
    },
}

/// Why weights cannot be masked.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SparsityError {
    /// The fraction is not in [0, 1).
    #[error("sparsity {0} is not a fraction: expected at least 0 and less than 1")]
    Fraction(f64),
    /// No mask has this name.
    #[error(
        "no mask is called `{0}`; there are: uniform, magnitude, existing, N:M such as 2:4, skewed:CV such as skewed:0.3"
    )]
    Unknown(String),
    /// A mask's numbers make no sense.
    #[error("mask `{mask}`: expected {expected}")]
    Malformed {
        /// As it was written.
        mask: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The fraction is not that of an N:M mask.
    #[error("sparsity {fraction} contradicts mask {mask}, whose sparsity is {own}; leave the sparsity away")]
    Contradiction {
        /// The fraction asked for.
        fraction: f64,
        /// The mask.
        mask: Mask,
        /// The fraction that the mask has.
        own: f64,
    },
    /// No fraction is given, and the mask has none of its own.
    #[error("{place}: mask {mask} needs a sparsity, a fraction from 0 to below 1")]
    NoFraction {
        /// Where.
        place: String,
        /// The mask.
        mask: Mask,
    },
    /// There is nothing to mask.
    #[error(
        "model `{model}` has no weights to mask: its embeddings, its stem and its head stay dense unless asked for ({dense})"
    )]
    Nothing {
        /// The model.
        model: String,
        /// The weights that stay dense, or "it has no weights".
        dense: String,
    },
    /// A rule by layer cannot be used.
    #[error(transparent)]
    Layers(#[from] layers::LayersError),
    /// The graph refused the masked weights.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Mask {
    /// The sparsity that the mask has by itself.
    pub fn own_fraction(self) -> Option<f64> {
        match self {
            Mask::NM { n, m } => Some(1.0 - n as f64 / m as f64),
            _ => None,
        }
    }

    /// The fraction that goes with the mask: the one asked for, or the mask's own; `place` names it in the error.
    ///
    /// # Errors
    /// If it is no fraction, contradicts the mask, or is missing.
    pub fn fraction(self, asked: Option<f64>, place: &str) -> Result<f64, SparsityError> {
        match (asked, self.own_fraction()) {
            (Some(fraction), _) if !(0.0..1.0).contains(&fraction) => Err(SparsityError::Fraction(fraction)),
            (Some(fraction), Some(own)) if (fraction - own).abs() > 1e-9 => {
                Err(SparsityError::Contradiction {
                    fraction,
                    mask: self,
                    own,
                })
            }
            (_, Some(own)) => Ok(own),
            (Some(fraction), None) => Ok(fraction),
            (None, None) => Err(SparsityError::NoFraction {
                place: place.into(),
                mask: self,
            }),
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::Uniform => write!(f, "uniform"),
            Mask::Magnitude => write!(f, "magnitude"),
            Mask::Existing => write!(f, "existing"),
            Mask::NM { n, m } => write!(f, "{n}:{m}"),
            Mask::Skewed { cv } => write!(f, "skewed:{cv}"),
        }
    }
}

impl FromStr for Mask {
    type Err = SparsityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let malformed = |expected| SparsityError::Malformed {
            mask: s.into(),
            expected,
        };
        match s {
            "uniform" => return Ok(Mask::Uniform),
            "magnitude" => return Ok(Mask::Magnitude),
            "existing" => return Ok(Mask::Existing),
            _ => {}
        }
        match s.split_once(':') {
            Some(("skewed", cv)) => match cv.parse::<f64>() {
                Ok(cv) if cv.is_finite() && cv >= 0.0 => Ok(Mask::Skewed { cv }),
                _ => Err(malformed(
                    "skewed:CV with a coefficient of variation of at least 0, such as skewed:0.3",
                )),
            },
            Some((n, m)) if !n.starts_with(char::is_alphabetic) => match (n.parse(), m.parse()) {
                (Ok(n), Ok(m)) if 0 < n && n < m => Ok(Mask::NM { n, m }),
                _ => Err(malformed(
                    "N:M, N of each M weights kept, with 0 < N < M, such as 2:4",
                )),
            },
            _ if s == "skewed" => Err(malformed(
                "skewed:CV with a coefficient of variation of at least 0, such as skewed:0.3",
            )),
            _ => Err(SparsityError::Unknown(s.into())),
        }
    }
}

/// How many of `n` weights a sparsity of `fraction` keeps: `n * (1 - fraction)`, rounded to the nearest.
pub fn kept(n: usize, fraction: f64) -> usize {
    (n as f64 * (1.0 - fraction)).round() as usize
}

/// How sparse each weight becomes: weights of one graph, each at most once, with their fraction and mask.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The weights; those that are not listed stay as they are.
    pub entries: Vec<Entry>,
}

/// A weight of a [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The weight.
    pub weight: TensorId,
    /// The share that becomes 0, at least 0 and below 1.
    pub fraction: f64,
    /// Which of them.
    pub mask: Mask,
}

impl Plan {
    /// The same fraction and mask for some weights.
    ///
    /// # Errors
    /// If the fraction is none, or contradicts the mask.
    pub fn same(weights: &[TensorId], fraction: f64, mask: Mask) -> Result<Plan, SparsityError> {
        let fraction = mask.fraction(Some(fraction), "all layers")?;
        let entry = |weight: &TensorId| Entry {
            weight: *weight,
            fraction,
            mask,
        };
        Ok(Plan {
            entries: weights.iter().map(entry).collect(),
        })
    }

    /// The same fraction and mask for all weights that are masked by default ([`maskable`]).
    ///
    /// # Errors
    /// As [`Plan::same`]; also if no weights are.
    pub fn default_weights(graph: &Graph, fraction: f64, mask: Mask) -> Result<Plan, SparsityError> {
        let weights = maskable(graph);
        if weights.is_empty() {
            let dense: Vec<&str> = dense_by_default(graph)
                .into_iter()
                .map(|t| graph.tensor(t).name.as_str())
                .collect();
            return Err(SparsityError::Nothing {
                model: graph.name.clone(),
                dense: match dense.is_empty() {
                    true => "it has no weights".into(),
                    false => dense.join(", "),
                },
            });
        }
        Plan::same(&weights, fraction, mask)
    }

    /// The share of zeros that the plan leaves among its weights; 0 if it has none.
    pub fn sparsity(&self, graph: &Graph) -> f64 {
        // one fraction for all is that fraction, without a rounding
        if let Some(first) = self.entries.first()
            && self.entries.iter().all(|e| e.fraction == first.fraction)
        {
            return first.fraction;
        }
        let elements = |e: &Entry| graph.tensor(e.weight).elements() as f64;
        let all: f64 = self.entries.iter().map(elements).sum();
        let zero: f64 = self.entries.iter().map(|e| elements(e) * e.fraction).sum();
        if all > 0.0 { zero / all } else { 0.0 }
    }

    /// The graph with its weights masked.
    ///
    /// A tensor's random choice depends on the seed and on its name alone. A kept weight that is 0.0 in the model stays so,
    /// and counts as zero in [`Graph::nonzeros`]. Of an abstract constant only the count is set, as if zeros that it has already
    /// were spread evenly.
    ///
    /// # Errors
    /// If a weight is not of this graph, or no constant.
    pub fn apply(&self, graph: &Graph, seed: u64) -> Result<Graph, SparsityError> {
        let mut sparse = graph.clone();
        for Entry {
            weight,
            fraction,
            mask,
        } in &self.entries
        {
            if *mask == Mask::Existing {
                continue;
            }
            let tensor = graph.tensor(*weight);
            match tensor.data.as_deref() {
                None => {
                    let nonzeros = tensor.nonzeros.unwrap_or(tensor.elements());
                    let left = choose::count(&tensor.shape, nonzeros, *fraction, *mask);
                    sparse.set_nonzeros(*weight, left)?;
                }
                Some(data) => {
                    let mut masked = vec![0.0; data.len()];
                    for i in choose::indices(data, &tensor.shape, *fraction, *mask, seed, &tensor.name) {
                        masked[i] = data[i];
                    }
                    sparse.set_constant(*weight, masked)?;
                }
            }
        }
        Ok(sparse)
    }
}

/// The graph with a `fraction` of *every* weight of a convolution or product set to zero, stem and head included: with
/// masks other than N:M exactly [`kept`] values of each stay. [`Plan::default_weights`] is what the command does.
///
/// # Errors
/// [`SparsityError::Fraction`] if `fraction` is not in [0, 1); if it contradicts the mask.
pub fn sparsify(graph: &Graph, fraction: f64, mask: Mask, seed: u64) -> Result<Graph, SparsityError> {
    Plan::same(&weights(graph), fraction, mask)?.apply(graph, seed)
}

/// The coefficient of variation of the rows' counts of nonzero values: standard deviation over mean, a row being all that
/// has one index along the first axis. 0 for a tensor of zeros; `None` where the values are not held.
pub fn row_variation(graph: &Graph, weight: TensorId) -> Option<f64> {
    let tensor = graph.tensor(weight);
    let data = tensor.data.as_deref()?;
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let count = |row: &[f32]| row.iter().filter(|v| **v != 0.0).count() as f64;
    let counts: Vec<f64> = data.chunks_exact(data.len() / rows).map(count).collect();
    Some(choose::variation(&counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Op;

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
        for mask in [Mask::Uniform, Mask::Skewed { cv: 0.5 }] {
            let (a, b) = (
                sparsify(&a, 0.7, mask, 3).unwrap(),
                sparsify(&b, 0.7, mask, 3).unwrap(),
            );
            assert_eq!(data(&a, "v"), data(&b, "v"));
            assert_ne!(data(&a, "u"), data(&a, "v"));
            assert_eq!(data(&a, "u.bias"), vec![1.0; 8]);
        }
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
        let mask = Mask::NM { n: 1, m: 2 };
        assert!(sparsify(&graph(&["w"], 2), 0.5, mask, 0).is_ok());
        assert!(matches!(
            sparsify(&graph(&["w"], 2), 0.6, mask, 0),
            Err(SparsityError::Contradiction { .. })
        ));
        assert_eq!(mask.fraction(None, "").unwrap(), 0.5);
        assert!(Mask::Uniform.fraction(None, "").is_err());
    }

    #[test]
    fn masks_are_written_as_they_are_read() {
        for text in [
            "uniform",
            "magnitude",
            "existing",
            "2:4",
            "1:16",
            "skewed:0.3",
            "skewed:0",
        ] {
            assert_eq!(text.parse::<Mask>().unwrap().to_string(), text);
        }
        for text in [
            "half",
            "",
            "0:4",
            "4:4",
            "5:4",
            "2:",
            ":4",
            "2:x",
            "-1:2",
            "skewed",
            "skewed:",
            "skewed:-1",
            "skewed:nan",
            "skewed:inf",
            "skew:1",
        ] {
            assert!(text.parse::<Mask>().is_err(), "{text}");
        }
    }
}
