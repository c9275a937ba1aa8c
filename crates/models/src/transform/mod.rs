//! The Sparse-IFT transformations (Sparse Iso-FLOP Transformations, 2024), graph to graph: each makes a layer larger and
//! sparse, so that it has as many nonzero weights, and at the same positions as many FLOPs, as the dense layer had.
//!
//! | transformation | a layer of Di inputs and Do outputs (a convolution: Di = taps x inputs for the first factor) becomes, for a sparsity s |
//! |---|---|
//! | [`Transform::Wide`] | one of sqrt(1 / (1 - s)) times the inputs and outputs |
//! | [`Transform::Parallel`] | round(1 / (1 - s)) of the same size, summed; each with its own batch norm where one follows |
//! | [`Transform::Factorized`] | a product of two, by way of ceil(Di Do / ((Di + Do)(1 - s))) features |
//! | [`Transform::Doped`] | a sparse one plus a dense product of two, by way of floor(s Di Do / (Di + Do)) features |
//!
//! Widths and ranks are whole, so that the published sparsity gives slightly more or fewer nonzero weights than the dense
//! layer has. Here the sparsity is nudged instead, and the number is the dense layer's exactly; [`TransformedLayer`] has both.
//!
//! Transformed are the weights that are masked by default ([`crate::sparsity::maskable`]): embeddings, stem and head stay
//! dense (but widen where they touch widened features), as do norms and biases. Grouped convolutions cannot be factorized
//! or doped and stay as they are. Of a weight that has zeros already (a banded fabric's) the number of the others counts,
//! not their places; if that is smaller than a low rank, it stays as it is.
//!
//! The weights of a graph that has values are drawn anew, by seed and name, with deviations that keep the scale of the
//! activations; those of an abstract graph are abstract.

mod rebuild;
mod split;
mod wide;

use crate::graph::{Graph, GraphError};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Which transformation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// More features in all inner layers.
    Wide,
    /// Several branches a layer.
    Parallel,
    /// Two factors a layer.
    Factorized,
    /// A sparse layer plus one of low rank.
    Doped,
}

impl Transform {
    /// All of them.
    pub const ALL: [Transform; 4] = [
        Transform::Wide,
        Transform::Parallel,
        Transform::Factorized,
        Transform::Doped,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transform::Wide => "wide",
            Transform::Parallel => "parallel",
            Transform::Factorized => "factorized",
            Transform::Doped => "doped",
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Transform {
    type Err = TransformError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Transform::ALL
            .into_iter()
            .find(|t| t.name() == s)
            .ok_or_else(|| TransformError::Unknown(s.into()))
    }
}

/// Why a graph cannot be transformed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TransformError {
    /// No transformation has this name.
    #[error("no transformation is called `{0}`; there are: wide, parallel, factorized, doped")]
    Unknown(String),
    /// The sparsity is not above 0 and below 1.
    #[error("a transformation needs a sparsity above 0 and below 1, got {0}")]
    Sparsity(f64),
    /// No layer can be transformed.
    #[error(
        "model `{0}` has no layers to transform: embeddings, stem and head stay dense, grouped convolutions and weights with few values stay as they are"
    )]
    Nothing(String),
    /// The model's widths have too small a common divisor to be widened by so little.
    #[error(
        "all inner widths are multiples of {unit}, and {unit} times {factor:.3} rounds down to {unit}; expected a higher sparsity or a wider model"
    )]
    NoWider {
        /// The divisor.
        unit: usize,
        /// What it would be multiplied by.
        factor: f64,
    },
    /// A node stands in the way of widening.
    #[error("node `{node}` ({op}) can't be widened: {why}")]
    CannotWiden {
        /// The node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// Why.
        why: String,
    },
    /// The new graph is not well-formed.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A transformed graph and what became of its layers.
#[derive(Debug, Clone)]
pub struct Transformed {
    /// The new graph.
    pub graph: Graph,
    /// The layers that were transformed, in order.
    pub layers: Vec<TransformedLayer>,
    /// Constants that stay dense and are larger than before, in order; by wide only.
    pub widened: Vec<Widened>,
    /// Weights that are masked by default and stay as they are: those of grouped convolutions, those with too few values
    /// other than 0, those that several layers share.
    pub left: Vec<String>,
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformedLayer {
    /// The weight.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values other than 0: as many as the new weights have together.
    pub nonzeros: u64,
    /// The new weights: name, shape, values other than 0.
    pub made: Vec<(String, Vec<usize>, u64)>,
    /// The values other than 0 that the sparsity asked for gives with the same shapes.
    pub published: u64,
    /// The sparsity that gives `nonzeros`: of all new weights, or of the sparse one where others are dense.
    pub sparsity: f64,
}

impl TransformedLayer {
    /// A layer, `kept` of whose new values the sparsity asked for would keep if the dense layer had no zeros.
    fn new(
        (name, shape, nonzeros): (String, Vec<usize>, u64),
        made: Vec<(String, Vec<usize>, u64)>,
        kept: u64,
        sparsity: f64,
    ) -> TransformedLayer {
        let elements = shape.iter().map(|d| *d as u128).product::<u128>().max(1);
        TransformedLayer {
            published: (u128::from(kept) * u128::from(nonzeros) / elements) as u64,
            name,
            shape,
            nonzeros,
            made,
            sparsity,
        }
    }

    /// How far the published sparsity is from the dense layer's count, as a share of it.
    pub fn deviation(&self) -> f64 {
        self.published as f64 / self.nonzeros.max(1) as f64 - 1.0
    }
}

/// A dense constant that has grown.
#[derive(Debug, Clone, PartialEq)]
pub struct Widened {
    /// Its name.
    pub name: String,
    /// Its shape before.
    pub from: Vec<usize>,
    /// Its shape now.
    pub to: Vec<usize>,
}

/// Transforms a graph. `sparsity` is that of the paper, before rounding; `seed` is that of new weights.
///
/// # Errors
/// If the sparsity is not above 0 and below 1, there is no layer to transform, or a node cannot be widened.
pub fn transform(
    graph: &Graph,
    which: Transform,
    sparsity: f64,
    seed: u64,
) -> Result<Transformed, TransformError> {
    if !(sparsity > 0.0 && sparsity < 1.0) {
        return Err(TransformError::Sparsity(sparsity));
    }
    let made = match which {
        Transform::Wide => wide::wide(graph, sparsity, seed)?,
        split => split::split(graph, split, sparsity, seed)?,
    };
    match made.layers.is_empty() {
        true => Err(TransformError::Nothing(graph.name.clone())),
        false => Ok(made),
    }
}

#[cfg(test)]
mod tests;
