//! The ONNX operators that transformers are exported with: norms, activations, means, choices.

use super::attributes::axis;
use super::convert::Value;
use super::error::{Problem, shown};
use super::operators::Node;
use crate::graph::Op;
use crate::shapes;

impl Node<'_, '_, '_> {
    /// `LayerNormalization` over the last axis.
    pub(super) fn layer_norm(&mut self) -> Result<(), Problem> {
        let (x, scale) = (self.tensor(0)?, self.tensor(1)?);
        let rank = self.shape(x).len();
        let given = self.attributes.int("axis", -1)?;
        if axis(given, rank) != rank.checked_sub(1) {
            return self.attributes.bad(
                "axis",
                given.to_string(),
                "the last axis (others are not supported)",
            );
        }
        let epsilon = self.attributes.float("epsilon", 1e-5)?;
        if epsilon < 0.0 {
            return self.attributes.bad("epsilon", epsilon.to_string(), "at least 0");
        }
        let bias = if self.input(2).is_some() {
            self.tensor(2)?
        } else {
            let shape = self.shape(scale);
            if self.data(scale).is_none() {
                return self.not_constant("scale", self.input(1).unwrap_or_default());
            }
            self.importer
                .prepare(scale, "no bias", &shape, |d| vec![0.0; d.len()])?
        };
        self.emit(Op::LayerNorm { epsilon }, &[x, scale, bias])
    }

    pub(super) fn gelu(&mut self) -> Result<(), Problem> {
        let mode = self.attributes.string("approximate", "none")?;
        let tanh = match mode.as_str() {
            "none" => false,
            "tanh" => true,
            other => {
                return self
                    .attributes
                    .bad("approximate", shown(other), "`none` or `tanh`");
            }
        };
        self.unary(Op::Gelu { tanh })
    }

    /// `Pow` with a constant exponent, one for all elements.
    pub(super) fn pow(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let exponent = match self.value(1)? {
            Value::Integers(v) if v.data.len() == 1 => v.data[0] as f32,
            Value::Tensor(t) => match self.data(t) {
                Some([v]) => *v,
                _ => return self.not_constant("exponent (one number)", self.input(1).unwrap_or_default()),
            },
            Value::Integers(v) => {
                return self.mismatch("the exponent", &v.shape.clone(), "one number");
            }
        };
        self.emit(Op::Pow { exponent }, &[x])
    }

    /// Axes: an attribute before version 18, an input since.
    pub(super) fn reduce_mean(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let rank = self.shape(x).len();
        let given = if self.importer.opset >= 18 && self.input(1).is_some() {
            Some(self.integers(1, "axes")?.data.clone())
        } else {
            self.attributes.ints("axes")?.map(<[i64]>::to_vec)
        };
        let given = given.filter(|g| !g.is_empty());
        if given.is_none() && self.attributes.flag("noop_with_empty_axes", false)? {
            return self.alias();
        }
        let all = given.unwrap_or_else(|| (0..rank as i64).collect());
        let axes: Option<Vec<usize>> = all
            .iter()
            .take(shapes::MAX_RANK + 1)
            .map(|a| axis(*a, rank))
            .collect();
        let Some(mut axes) = axes else {
            return self.attributes.bad(
                "axes",
                super::attributes::show_ints(&all),
                format!("axes of {rank}"),
            );
        };
        axes.sort_unstable();
        axes.dedup();
        if axes.is_empty() {
            return self.alias();
        }
        let keep = self.attributes.flag("keepdims", true)?;
        self.emit(Op::ReduceMean { axes, keep }, &[x])
    }
}
