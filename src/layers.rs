//! Sparsities by layer in a TOML file (`--sparsity-file`):
//!
//! ```toml
//! include = ["fc.weight"]       # weights that stay dense by default and are to be masked too
//!
//! [[layers]]                    # the first that matches a weight counts; every other weight needs one
//! weights = "layer1.*"          # a name or pattern, or a list of them
//! sparsity = 0.5
//! mask = "magnitude"            # default: uniform
//!
//! [[layers]]
//! weights = ["layer2.*", "layer3.*"]
//! mask = "2:4"                  # has a sparsity of its own
//! ```

use crate::error::Error;
use meshloom_models::sparsity::{LayerRule, Layers, Mask};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    layers: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    weights: Patterns,
    sparsity: Option<f64>,
    mask: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Layers, Error> {
    let bad = |message: String| Error::Input(format!("--sparsity-file {}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("can't read it: {e}")))?;
    let file: File = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if file.layers.is_empty() {
        return Err(bad(
            "it has no [[layers]]; expected at least one with `weights` and `sparsity`".into(),
        ));
    }
    let mut rules = Vec::new();
    for rule in file.layers {
        let mask = match &rule.mask {
            Some(mask) => mask
                .parse()
                .map_err(|e: meshloom_models::SparsityError| bad(e.to_string()))?,
            None => Mask::Uniform,
        };
        let patterns = match rule.weights {
            Patterns::One(pattern) => vec![pattern],
            Patterns::Several(patterns) => patterns,
        };
        rules.extend(patterns.into_iter().map(|pattern| LayerRule {
            pattern,
            sparsity: rule.sparsity,
            mask,
        }));
    }
    Ok(Layers {
        include: file.include,
        rules,
    })
}
