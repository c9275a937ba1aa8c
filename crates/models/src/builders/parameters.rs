//! The parameters of a specification, `key=value,key=value`: parsed, looked up by the builders, and spelt out again.

use super::{BuilderError, Model};
use std::collections::BTreeMap;
use std::str::FromStr;

/// What a size may be.
const MAX_SIZE: usize = 1 << 24;

/// What a number of layers may be.
const MAX_LAYERS: usize = 4096;

/// The parameters of one model. Each is asked for once, with a default; what was used is kept.
pub(super) struct Parameters {
    given: BTreeMap<&'static str, String>,
    used: Vec<(&'static str, String)>,
}

fn value<T>(parameter: &'static str, value: &str, expected: impl Into<String>) -> Result<T, BuilderError> {
    Err(BuilderError::Value {
        parameter,
        value: value.into(),
        expected: expected.into(),
    })
}

impl Parameters {
    /// Reads `key=value,key=value` and adds the model's own defaults.
    pub(super) fn parse(model: &Model, text: &str) -> Result<Self, BuilderError> {
        let known = model.family.parameters;
        let mut given: BTreeMap<&'static str, String> = BTreeMap::new();
        let mut last: Option<&'static str> = None;
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            // a comma within a value: what is wrong is said of the value
            if let Some(value) = last.and_then(|key| given.get_mut(key))
                && !part.contains('=')
            {
                value.push_str(&format!(",{}", part.trim()));
                continue;
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let Some(key) = known.iter().find(|k| **k == key.trim()) else {
                return Err(BuilderError::UnknownParameter {
                    model: model.name,
                    parameter: key.trim().into(),
                    known: known.join(", "),
                });
            };
            if given.insert(*key, value.trim().to_string()).is_some() {
                return Err(BuilderError::Twice((*key).into()));
            }
            last = Some(*key);
        }
        for (key, value) in model.defaults {
            given.entry(key).or_insert_with(|| (*value).into());
        }
        Ok(Self {
            given,
            used: Vec::new(),
        })
    }

    /// The specification with every parameter that was asked for, in that order.
    pub(super) fn resolved(&self, name: &str) -> String {
        let all: Vec<String> = self.used.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{name}:{}", all.join(","))
    }

    /// The text of a parameter, and a note of what was used.
    pub(super) fn text(&mut self, key: &'static str, default: &str) -> String {
        let text = self.given.get(key).map_or(default, String::as_str).to_string();
        self.used.push((key, text.clone()));
        text
    }

    fn number<T: FromStr + PartialOrd>(
        &mut self,
        key: &'static str,
        default: &str,
        [least, most]: [T; 2],
        expected: String,
    ) -> Result<T, BuilderError> {
        let text = self.text(key, default);
        match text.parse() {
            Ok(number) if number >= least && number <= most => Ok(number),
            _ => value(key, &text, expected),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn within(
        &mut self,
        key: &'static str,
        default: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, BuilderError> {
        let expected = format!("a whole number from {least} to {most}");
        self.number(key, &default.to_string(), [least, most], expected)
    }

    /// A size, at least 1.
    pub(super) fn size(&mut self, key: &'static str, default: usize) -> Result<usize, BuilderError> {
        self.within(key, default, 1, MAX_SIZE)
    }

    /// A number of layers, at least `least`.
    pub(super) fn layers(
        &mut self,
        key: &'static str,
        default: usize,
        least: usize,
    ) -> Result<usize, BuilderError> {
        self.within(key, default, least, MAX_LAYERS)
    }

    /// A positive factor.
    pub(super) fn factor(&mut self, key: &'static str, default: &str) -> Result<f64, BuilderError> {
        let expected = "a number from 0.001 to 1000".into();
        self.number(key, default, [0.001, 1000.0], expected)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, BuilderError> {
        let text = self.text(key, if default { "true" } else { "false" });
        text.parse().or_else(|_| value(key, &text, "true or false"))
    }

    /// One of some words: its place among them. The first is the default.
    pub(super) fn choice(&mut self, key: &'static str, words: &[&str]) -> Result<usize, BuilderError> {
        let text = self.text(key, words[0]);
        match words.iter().position(|w| *w == text) {
            Some(place) => Ok(place),
            None => value(key, &text, format!("one of: {}", words.join(", "))),
        }
    }

    /// An error about a parameter that was read.
    pub(super) fn bad<T>(&self, key: &'static str, expected: impl Into<String>) -> Result<T, BuilderError> {
        let text = self
            .used
            .iter()
            .find(|(k, _)| *k == key)
            .map_or("", |(_, v)| v.as_str());
        value(key, text, expected)
    }
}
