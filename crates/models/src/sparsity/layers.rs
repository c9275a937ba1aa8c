//! Sparsities by layer: patterns of weight names, each with a fraction and a mask.

use super::selection::{dense_by_default, weights};
use super::{Entry, Mask, Plan, SparsityError};
use crate::graph::{Graph, TensorId};
use thiserror::Error;

/// Sparsities by layer. Every weight that is masked by default must be matched by a rule; the first that matches counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layers {
    /// Patterns of weights that stay dense by default (embeddings, stem, head) and are to be masked like the others.
    pub include: Vec<String>,
    /// The rules, in order.
    pub rules: Vec<LayerRule>,
}

/// A rule of [`Layers`].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRule {
    /// Which weights, by name: `*` stands for any number of characters, `?` for one.
    pub pattern: String,
    /// The share of zeros; may be left out where the mask has one of its own.
    pub sparsity: Option<f64>,
    /// Which weights become zero.
    pub mask: Mask,
}

/// Why sparsities by layer cannot be used with a model.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LayersError {
    /// A pattern matches no weight.
    #[error("pattern `{pattern}` matches no weight; the model's weights are: {known}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// All weights.
        known: String,
    },
    /// A pattern matches nothing but weights that stay dense.
    #[error(
        "pattern `{pattern}` matches only weights that stay dense by default: {dense}; to mask them, name them in `include`"
    )]
    OnlyDense {
        /// The pattern.
        pattern: String,
        /// What it matches.
        dense: String,
    },
    /// An earlier rule matches all that a later one does.
    #[error(
        "pattern `{pattern}` is never used: earlier patterns match all of its weights ({weights}); put it before them"
    )]
    Shadowed {
        /// The pattern.
        pattern: String,
        /// What it matches.
        weights: String,
    },
    /// Weights have no rule.
    #[error("no pattern matches {weights}; give them a sparsity, 0 to leave them dense")]
    Unmatched {
        /// The weights.
        weights: String,
    },
}

/// Whether a name matches a pattern in which `*` stands for any number of characters and `?` for one.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // can[i]: the pattern so far matches the first i characters
    let mut can = vec![false; name.len() + 1];
    can[0] = true;
    for p in pattern {
        if p == '*' {
            for i in 0..name.len() {
                can[i + 1] |= can[i];
            }
        } else {
            for i in (0..name.len()).rev() {
                can[i + 1] = can[i] && (p == '?' || p == name[i]);
            }
            can[0] = false;
        }
    }
    can[name.len()]
}

impl Layers {
    /// The plan for a graph.
    ///
    /// # Errors
    /// [`LayersError`], with the names; if a rule's fraction is none, missing, or contradicts its mask.
    pub fn plan(&self, graph: &Graph) -> Result<Plan, SparsityError> {
        let all = weights(graph);
        let name = |t: &TensorId| graph.tensor(*t).name.as_str();
        let list = |of: &[TensorId]| of.iter().map(name).collect::<Vec<_>>().join(", ");
        let matched = |pattern: &str| -> Result<Vec<TensorId>, LayersError> {
            let found: Vec<TensorId> = all
                .iter()
                .copied()
                .filter(|t| matches(pattern, name(t)))
                .collect();
            match found.is_empty() {
                true => Err(LayersError::NoMatch {
                    pattern: pattern.into(),
                    known: list(&all),
                }),
                false => Ok(found),
            }
        };
        let mut dense = dense_by_default(graph);
        for pattern in &self.include {
            let found = matched(pattern)?;
            dense.retain(|t| !found.contains(t));
        }
        let mut left: Vec<TensorId> = all.iter().copied().filter(|t| !dense.contains(t)).collect();
        let mut plan = Plan::default();
        for rule in &self.rules {
            let found = matched(&rule.pattern)?;
            let fraction = rule
                .mask
                .fraction(rule.sparsity, &format!("pattern `{}`", rule.pattern))?;
            if found.iter().all(|t| dense.contains(t)) {
                return Err(LayersError::OnlyDense {
                    pattern: rule.pattern.clone(),
                    dense: list(&found),
                }
                .into());
            }
            let before = plan.entries.len();
            left.retain(|t| {
                let takes = found.contains(t);
                if takes {
                    plan.entries.push(Entry {
                        weight: *t,
                        fraction,
                        mask: rule.mask,
                    });
                }
                !takes
            });
            if plan.entries.len() == before {
                return Err(LayersError::Shadowed {
                    pattern: rule.pattern.clone(),
                    weights: list(&found),
                }
                .into());
            }
        }
        match left.is_empty() {
            true => Ok(plan),
            false => Err(LayersError::Unmatched { weights: list(&left) }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::mlp;

    fn rule(pattern: &str, sparsity: f64) -> LayerRule {
        LayerRule {
            pattern: pattern.into(),
            sparsity: Some(sparsity),
            mask: Mask::Uniform,
        }
    }

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("fc0.weight", "fc0.weight", "fc0.weights"),
            ("*", "", "never"),
            ("h.*.mlp.*", "h.11.mlp.c_fc.weight", "h.11.attn.c_fc.weight"),
            ("h.?.x", "h.1.x", "h.11.x"),
            ("*a*b*", "xxaxxbxx", "bxxa"),
            ("", "", "a"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes}");
            if no != "never" {
                assert!(!matches(pattern, no), "{pattern} {no}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let g = mlp(&[8, 8, 8, 8], 1, 0).unwrap();
        let layers = Layers {
            include: vec![],
            rules: vec![rule("fc1.*", 0.75), rule("*", 0.5)],
        };
        let plan = layers.plan(&g).unwrap();
        let sparse = plan.apply(&g, 0).unwrap();
        let nonzero = |name: &str| sparse.tensor(g.find(name).unwrap()).nonzero_count().unwrap();
        assert_eq!(
            ["fc0.weight", "fc1.weight", "fc2.weight"].map(nonzero),
            [32, 16, 32]
        );
        assert!((plan.sparsity(&g) - 112.0 / 192.0).abs() < 1e-12);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let g = mlp(&[8, 8, 8], 1, 0).unwrap();
        let error = |rules: Vec<LayerRule>, include: &[&str]| {
            let include = include.iter().map(|s| s.to_string()).collect();
            Layers { include, rules }.plan(&g).unwrap_err().to_string()
        };
        assert_eq!(
            error(vec![rule("conv*", 0.5)], &[]),
            "pattern `conv*` matches no weight; the model's weights are: fc0.weight, fc1.weight"
        );
        assert_eq!(
            error(vec![rule("fc1.weight", 0.5)], &[]),
            "no pattern matches fc0.weight; give them a sparsity, 0 to leave them dense"
        );
        assert!(
            error(vec![rule("*", 0.5), rule("fc1*", 0.9)], &[]).starts_with("pattern `fc1*` is never used")
        );
        assert!(error(vec![rule("*", 0.5)], &["lm_head*"]).contains("matches no weight"));
        assert!(error(vec![rule("*", 1.5)], &[]).contains("is not a fraction"));
        let none = LayerRule {
            sparsity: None,
            ..rule("*", 0.0)
        };
        assert!(error(vec![none], &[]).contains("needs a sparsity"));
    }
}
