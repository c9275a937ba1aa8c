//! Shape inference: from an operator and the shapes of its inputs to the shape of its output.
//!
//! All arithmetic is checked, so any operator settings whatever give either a shape or a [`ShapeError`], never
//! an overflow. Shapes are row-major, in elements, and every dimension is at least one.

use crate::graph::Op;

/// Largest number of elements an activation may have (2^31).
pub const MAX_ELEMENTS: usize = 1 << 31;
/// Largest number of dimensions a tensor may have.
pub const MAX_RANK: usize = 8;

/// Why an operator cannot be applied to inputs of these shapes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The operator was given too few or too many inputs.
    #[error("takes {expected} inputs, but has {found}")]
    InputCount {
        /// What the operator takes, such as `2 or 3`.
        expected: &'static str,
        /// How many inputs were given.
        found: usize,
    },
    /// An input has the wrong number of dimensions.
    #[error("its {input} must have {expected} dimensions, but has shape {found:?}")]
    Rank {
        /// Which input.
        input: &'static str,
        /// Dimensions needed.
        expected: usize,
        /// The shape found.
        found: Vec<usize>,
    },
    /// Two shapes do not fit together.
    #[error("its {input} has shape {found:?}, but {expected} is needed")]
    Mismatch {
        /// Which input.
        input: &'static str,
        /// What would fit.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A setting of the operator is out of range.
    #[error("its setting {setting} is wrong: {reason}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A window (kernel with dilation) is larger than the padded input.
    #[error("its window spans {window} elements, but the padded input has only {input}")]
    WindowTooLarge {
        /// Extent of the dilated window, in elements.
        window: usize,
        /// Extent of the padded input, in elements.
        input: usize,
    },
    /// A shape has a dimension of zero, too many dimensions, or more than [`MAX_ELEMENTS`] elements.
    #[error(
        "shape {shape:?} is out of range: at most {MAX_RANK} dimensions, each at least 1, and at most \
         {MAX_ELEMENTS} elements in all"
    )]
    Range {
        /// The shape found (at most nine dimensions of it).
        shape: Vec<usize>,
    },
}

/// Number of elements of a shape.
///
/// # Errors
/// [`ShapeError::Range`] for a zero dimension, more than [`MAX_RANK`] dimensions or more than
/// [`MAX_ELEMENTS`] elements.
pub fn elements(shape: &[usize]) -> Result<usize, ShapeError> {
    let fail = || ShapeError::Range {
        shape: shape.iter().copied().take(MAX_RANK + 1).collect(),
    };
    if shape.len() > MAX_RANK || shape.contains(&0) {
        return Err(fail());
    }
    let n = shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(fail)?;
    if n > MAX_ELEMENTS { Err(fail()) } else { Ok(n) }
}

/// The shape two operands broadcast to under the NumPy rules, if they do.
#[must_use]
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Extent of the output of a sliding window along one axis, in elements.
///
/// # Errors
/// [`ShapeError::Setting`] for zero settings or overflow, [`ShapeError::WindowTooLarge`] if no window fits.
pub fn window(
    input: usize,
    kernel: usize,
    stride: usize,
    before: usize,
    after: usize,
    dilation: usize,
) -> Result<usize, ShapeError> {
    for (setting, value) in [("kernel", kernel), ("strides", stride), ("dilations", dilation)] {
        if value == 0 {
            return Err(ShapeError::Setting {
                setting,
                reason: "it must be at least 1".into(),
            });
        }
    }
    let overflow = |setting| ShapeError::Setting {
        setting,
        reason: "it is too large".into(),
    };
    let span = (kernel - 1)
        .checked_mul(dilation)
        .and_then(|s| s.checked_add(1))
        .ok_or_else(|| overflow("dilations"))?;
    let padded = input
        .checked_add(before)
        .and_then(|p| p.checked_add(after))
        .ok_or_else(|| overflow("pads"))?;
    if span > padded {
        return Err(ShapeError::WindowTooLarge {
            window: span,
            input: padded,
        });
    }
    Ok((padded - span) / stride + 1)
}

fn rank<'a>(shape: &'a [usize], expected: usize, input: &'static str) -> Result<&'a [usize], ShapeError> {
    if shape.len() == expected {
        Ok(shape)
    } else {
        Err(ShapeError::Rank {
            input,
            expected,
            found: shape.to_vec(),
        })
    }
}

fn exactly(shape: &[usize], expected: &[usize], input: &'static str) -> Result<(), ShapeError> {
    if shape == expected {
        Ok(())
    } else {
        Err(ShapeError::Mismatch {
            input,
            expected: format!("{expected:?}"),
            found: shape.to_vec(),
        })
    }
}

fn count(inputs: &[&[usize]], low: usize, high: usize, expected: &'static str) -> Result<(), ShapeError> {
    if (low..=high).contains(&inputs.len()) {
        Ok(())
    } else {
        Err(ShapeError::InputCount {
            expected,
            found: inputs.len(),
        })
    }
}

fn pool(x: &[usize], k: [usize; 2], s: [usize; 2], p: [usize; 4]) -> Result<Vec<usize>, ShapeError> {
    let x = rank(x, 4, "input")?;
    if p[0] >= k[0].max(1) || p[2] >= k[0].max(1) || p[1] >= k[1].max(1) || p[3] >= k[1].max(1) {
        let reason = format!("pads {p:?} must each be smaller than the kernel {k:?}");
        return Err(ShapeError::Setting {
            setting: "pads",
            reason,
        });
    }
    let h = window(x[2], k[0], s[0], p[0], p[2], 1)?;
    let w = window(x[3], k[1], s[1], p[1], p[3], 1)?;
    Ok(vec![x[0], x[1], h, w])
}

/// Infers the shape of an operator's output. `reshape` is the target of [`Op::Reshape`] and ignored otherwise.
///
/// # Errors
/// A [`ShapeError`] that says which input or setting does not fit.
pub fn infer(op: &Op, inputs: &[&[usize]], reshape: Option<&[usize]>) -> Result<Vec<usize>, ShapeError> {
    for shape in inputs {
        elements(shape)?;
    }
    let shape = match op {
        Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } => {
            count(inputs, 2, 3, "2 or 3")?;
            let (x, w) = (rank(inputs[0], 4, "input")?, rank(inputs[1], 4, "weight")?);
            if *groups == 0 || !x[1].is_multiple_of(*groups) || !w[0].is_multiple_of(*groups) {
                let reason = format!(
                    "{groups} groups must divide {} input and {} output channels",
                    x[1], w[0]
                );
                return Err(ShapeError::Setting {
                    setting: "groups",
                    reason,
                });
            }
            if w[1] != x[1] / groups {
                let expected = format!("{} input channels per group (dimension 1)", x[1] / groups);
                return Err(ShapeError::Mismatch {
                    input: "weight",
                    expected,
                    found: w.to_vec(),
                });
            }
            if let Some(b) = inputs.get(2) {
                exactly(b, &[w[0]], "bias")?;
            }
            let h = window(x[2], w[2], strides[0], pads[0], pads[2], dilations[0])?;
            let v = window(x[3], w[3], strides[1], pads[1], pads[3], dilations[1])?;
            vec![x[0], w[0], h, v]
        }
        Op::Linear => {
            count(inputs, 2, 3, "2 or 3")?;
            let (x, w) = (rank(inputs[0], 2, "input")?, rank(inputs[1], 2, "weight")?);
            if x[1] != w[1] {
                let expected = format!("{} columns (dimension 1)", x[1]);
                return Err(ShapeError::Mismatch {
                    input: "weight",
                    expected,
                    found: w.to_vec(),
                });
            }
            if let Some(b) = inputs.get(2) {
                exactly(b, &[w[0]], "bias")?;
            }
            vec![x[0], w[0]]
        }
        Op::Add | Op::Mul => {
            count(inputs, 2, 2, "2")?;
            broadcast(inputs[0], inputs[1]).ok_or_else(|| ShapeError::Mismatch {
                input: "second input",
                expected: format!("a shape that broadcasts with {:?}", inputs[0]),
                found: inputs[1].to_vec(),
            })?
        }
        Op::Relu => {
            count(inputs, 1, 1, "1")?;
            inputs[0].to_vec()
        }
        Op::MaxPool {
            kernel,
            strides,
            pads,
        }
        | Op::AvgPool {
            kernel,
            strides,
            pads,
            ..
        } => {
            count(inputs, 1, 1, "1")?;
            pool(inputs[0], *kernel, *strides, *pads)?
        }
        Op::Softmax { axis } => {
            count(inputs, 1, 1, "1")?;
            if *axis >= inputs[0].len() {
                let reason = format!("axis {axis} is not a dimension of {:?}", inputs[0]);
                return Err(ShapeError::Setting {
                    setting: "axis",
                    reason,
                });
            }
            inputs[0].to_vec()
        }
        Op::Reshape => {
            count(inputs, 1, 1, "1")?;
            let target = reshape.ok_or_else(|| ShapeError::Setting {
                setting: "shape",
                reason: "a reshape needs its target shape".into(),
            })?;
            if elements(target)? != elements(inputs[0])? {
                let expected = format!("a shape with as many elements as the target {target:?}");
                return Err(ShapeError::Mismatch {
                    input: "input",
                    expected,
                    found: inputs[0].to_vec(),
                });
            }
            target.to_vec()
        }
        Op::Transpose { perm } => {
            count(inputs, 1, 1, "1")?;
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..inputs[0].len()) {
                let reason = format!("it must order the dimensions of {:?}", inputs[0]);
                return Err(ShapeError::Setting {
                    setting: "perm",
                    reason,
                });
            }
            perm.iter().map(|&p| inputs[0][p]).collect()
        }
        Op::BatchNorm { epsilon } => {
            count(inputs, 5, 5, "5")?;
            if !epsilon.is_finite() || *epsilon < 0.0 {
                let reason = format!("{epsilon} is not a finite number of at least 0");
                return Err(ShapeError::Setting {
                    setting: "epsilon",
                    reason,
                });
            }
            let x = inputs[0];
            if x.len() < 2 {
                return Err(ShapeError::Rank {
                    input: "input",
                    expected: 4,
                    found: x.to_vec(),
                });
            }
            for (shape, name) in inputs[1..].iter().zip(["scale", "bias", "mean", "variance"]) {
                exactly(shape, &[x[1]], name)?;
            }
            x.to_vec()
        }
    };
    elements(&shape)?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        assert_eq!(window(32, 3, 2, 0, 1, 1), Ok(16));
        assert_eq!(window(5, 3, 1, 0, 0, 2), Ok(1));
        assert!(matches!(
            window(4, 3, 1, 0, 0, 2),
            Err(ShapeError::WindowTooLarge { window: 5, input: 4 })
        ));
        assert!(window(usize::MAX, 1, 1, 1, 0, 1).is_err());
        assert!(window(1, usize::MAX, 1, 0, 0, usize::MAX).is_err());
        assert!(window(1, 1, 0, 0, 0, 1).is_err());
    }

    #[test]
    fn broadcasting() {
        assert_eq!(broadcast(&[2, 3, 4], &[3, 1]), Some(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[2]), Some(vec![2]));
        assert_eq!(broadcast(&[2], &[3]), None);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(elements(&[1 << 16, 1 << 15]), Ok(1 << 31));
        assert!(elements(&[1 << 16, 1 << 16]).is_err());
        assert!(elements(&[usize::MAX, 2]).is_err());
        assert!(elements(&[0]).is_err());
        assert!(elements(&[1; 9]).is_err());
    }
}
