//! Typed access to the attributes of a node.

use super::error::{Problem, shown};
use super::proto::{Attribute, NodeProto};
use crate::shapes::MAX_WINDOW;

// AttributeProto.AttributeType
const FLOAT: i32 = 1;
const INT: i32 = 2;
const STRING: i32 = 3;
const FLOATS: i32 = 6;
const INTS: i32 = 7;

/// A node's attributes, and its name for messages.
pub(crate) struct Attributes<'a> {
    pub node: &'a NodeProto,
    pub name: &'a str,
}

impl Attributes<'_> {
    /// An error about one attribute.
    pub(crate) fn bad<T>(
        &self,
        attribute: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Result<T, Problem> {
        Err(Problem::Attribute {
            node: shown(self.name),
            attribute: attribute.into(),
            found: found.into(),
            expected: expected.into(),
        })
    }

    fn get(&self, name: &str, code: i32, what: &str) -> Result<Option<&Attribute>, Problem> {
        match self.node.attribute.iter().find(|a| a.name == name) {
            // files before IR version 3 have no type
            Some(a) if a.r#type == code || a.r#type == 0 => Ok(Some(a)),
            Some(a) => self.bad(name, format!("of attribute type {}", a.r#type), what),
            None => Ok(None),
        }
    }

    /// An integer.
    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, Problem> {
        Ok(self.get(name, INT, "an integer")?.map_or(default, |a| a.i))
    }

    /// An integer that is 0 or 1.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.int(name, i64::from(default))? {
            0 => Ok(false),
            1 => Ok(true),
            other => self.bad(name, other.to_string(), "0 or 1"),
        }
    }

    /// A finite number.
    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, Problem> {
        let value = self.get(name, FLOAT, "a number")?.map_or(default, |a| a.f);
        if value.is_finite() {
            Ok(value)
        } else {
            self.bad(name, value.to_string(), "a finite number")
        }
    }

    /// A list of numbers.
    pub(crate) fn floats(&self, name: &str) -> Result<Option<&[f32]>, Problem> {
        Ok(self
            .get(name, FLOATS, "a list of numbers")?
            .map(|a| a.floats.as_slice()))
    }

    /// A string.
    pub(crate) fn string(&self, name: &str, default: &str) -> Result<String, Problem> {
        let value = self.get(name, STRING, "a string")?;
        Ok(value.map_or_else(|| default.into(), |a| String::from_utf8_lossy(&a.s).into_owned()))
    }

    /// A list of integers.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<&[i64]>, Problem> {
        Ok(self
            .get(name, INTS, "a list of integers")?
            .map(|a| a.ints.as_slice()))
    }

    /// Exactly `N` sizes of a window, each at least `least`.
    pub(crate) fn window<const N: usize>(
        &self,
        name: &str,
        least: usize,
    ) -> Result<Option<[usize; N]>, Problem> {
        let Some(ints) = self.ints(name)? else {
            return Ok(None);
        };
        let expected = || format!("{N} integers from {least} to {MAX_WINDOW} (2D operators only)");
        let size = |v: &i64| {
            usize::try_from(*v)
                .ok()
                .filter(|v| (least..=MAX_WINDOW).contains(v))
        };
        let sizes: Option<Vec<usize>> = if ints.len() == N {
            ints.iter().map(size).collect()
        } else {
            None
        };
        match sizes.and_then(|s| <[usize; N]>::try_from(s).ok()) {
            Some(sizes) => Ok(Some(sizes)),
            None => self.bad(name, show_ints(ints), expected()),
        }
    }
}

/// The first few of a list.
pub(crate) fn show_ints(ints: &[i64]) -> String {
    let more = if ints.len() > 8 { ", ..." } else { "" };
    let all: Vec<String> = ints.iter().take(8).map(i64::to_string).collect();
    format!("[{}{more}]", all.join(", "))
}

/// An axis, counted from the last where negative.
pub(crate) fn axis(value: i64, rank: usize) -> Option<usize> {
    let axis = if value < 0 {
        value.checked_add(rank as i64)?
    } else {
        value
    };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}
