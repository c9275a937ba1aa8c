//! Shape inference. All arithmetic is checked: a shape that claims an absurd size is an error, found before anything is
//! allocated for it.

use crate::graph::Op;
use std::ops::Range;
use thiserror::Error;

/// The largest number of elements that a tensor may have (16 GiB of f64 in the evaluator).
pub const MAX_ELEMENTS: usize = 1 << 31;

/// The largest number of axes that a tensor may have.
pub const MAX_RANK: usize = 16;

/// The largest kernel size, stride, padding or dilation.
pub const MAX_WINDOW: usize = 1 << 20;

/// Why shapes do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// The operator was given too few or too many inputs.
    #[error("{op} takes {expected} inputs, got {got}")]
    Arity {
        /// The operator.
        op: &'static str,
        /// How many it takes, in words.
        expected: &'static str,
        /// How many there are.
        got: usize,
    },
    /// A size is zero, or the product of sizes is above [`MAX_ELEMENTS`].
    #[error("shape {0:?} has no or too many elements (1 to {MAX_ELEMENTS} are possible)")]
    Size(Vec<usize>),
    /// There are more than [`MAX_RANK`] axes.
    #[error("{0} axes (at most {MAX_RANK} are possible)")]
    Rank(usize),
    /// An input has a shape that the operator cannot take.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Mismatch {
        /// Which input.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What it should be, in words.
        expected: String,
    },
    /// Two shapes cannot be broadcast to one.
    #[error("shapes {0:?} and {1:?} cannot be broadcast together")]
    Broadcast(Vec<usize>, Vec<usize>),
    /// An attribute has no meaning for these inputs.
    #[error("{0}")]
    Attribute(String),
}

fn mismatch<T>(what: &'static str, got: &[usize], expected: impl Into<String>) -> Result<T, ShapeError> {
    Err(ShapeError::Mismatch {
        what,
        got: got.to_vec(),
        expected: expected.into(),
    })
}

fn attribute<T>(message: String) -> Result<T, ShapeError> {
    Err(ShapeError::Attribute(message))
}

/// The number of elements of a shape (1 for a scalar `[]`).
///
/// # Errors
/// [`ShapeError::Size`] if a size is zero or the product is above [`MAX_ELEMENTS`], [`ShapeError::Rank`] if there are
/// too many axes.
pub fn elements(shape: &[usize]) -> Result<usize, ShapeError> {
    if shape.len() > MAX_RANK {
        return Err(ShapeError::Rank(shape.len()));
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| (1..=MAX_ELEMENTS).contains(n))
        .ok_or_else(|| ShapeError::Size(shape.to_vec()))
}

/// The shape of an element-wise result, by the rules of NumPy: aligned at the last axis, sizes equal or one of them 1.
///
/// # Errors
/// [`ShapeError::Broadcast`] if the shapes do not go together, [`ShapeError::Size`] if the result is absurd.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, ShapeError> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], axis: usize| {
        if axis + s.len() < rank {
            1
        } else {
            s[axis + s.len() - rank]
        }
    };
    let shape = (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Ok(x),
            (x, 1) => Ok(x),
            (1, y) => Ok(y),
            _ => Err(ShapeError::Broadcast(a.to_vec(), b.to_vec())),
        })
        .collect::<Result<Vec<_>, _>>()?;
    elements(&shape)?;
    Ok(shape)
}

/// A window that slides along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Elements of the input along the axis.
    pub input: usize,
    /// Taps.
    pub kernel: usize,
    /// Elements between two output positions.
    pub stride: usize,
    /// Elements before the first.
    pub before: usize,
    /// Elements after the last.
    pub after: usize,
    /// Elements between two taps.
    pub dilation: usize,
}

impl Window {
    /// The number of output positions.
    ///
    /// # Errors
    /// [`ShapeError::Attribute`] if a parameter is zero or above [`MAX_WINDOW`], or the window is larger than the padded
    /// input.
    pub fn positions(&self) -> Result<usize, ShapeError> {
        let limits = 1..=MAX_WINDOW;
        if ![self.kernel, self.stride, self.dilation]
            .iter()
            .all(|v| limits.contains(v))
        {
            return attribute(format!(
                "kernel {}, stride {} and dilation {} must each be 1 to {MAX_WINDOW}",
                self.kernel, self.stride, self.dilation
            ));
        }
        if self.before > MAX_WINDOW || self.after > MAX_WINDOW || self.input > MAX_ELEMENTS {
            return attribute(format!(
                "padding {} and {} must be at most {MAX_WINDOW}",
                self.before, self.after
            ));
        }
        // below 2^41 each: no overflow
        let reach = (self.kernel - 1) * self.dilation + 1;
        let padded = self.input + self.before + self.after;
        if reach > padded {
            return attribute(format!(
                "the window reaches over {reach} elements, the padded input has {padded}"
            ));
        }
        Ok((padded - reach) / self.stride + 1)
    }

    /// The output positions (of `positions`) at which a tap hits an element of the input, not padding.
    pub fn hits(&self, tap: usize, positions: usize) -> Range<usize> {
        let offset = tap * self.dilation;
        // position o reads element o * stride + offset - before
        let first = self.before.saturating_sub(offset).div_ceil(self.stride);
        let last = (self.input + self.before)
            .saturating_sub(offset)
            .div_ceil(self.stride);
        let last = last.min(positions);
        first.min(last)..last
    }

    /// The input element that a tap reads at an output position where it hits one.
    pub fn element(&self, tap: usize, position: usize) -> usize {
        position * self.stride + tap * self.dilation - self.before
    }
}

/// The windows of a 2D operator along rows and columns; `input` is `[n, c, h, w]`.
pub fn windows(
    input: &[usize],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
) -> [Window; 2] {
    [0, 1].map(|i| Window {
        input: input[2 + i],
        kernel: kernel[i],
        stride: strides[i],
        before: pads[i],
        after: pads[2 + i],
        dilation: dilations[i],
    })
}

fn pool(
    x: &[usize],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
) -> Result<Vec<usize>, ShapeError> {
    if x.len() != 4 {
        return mismatch("the input", x, "[n, c, h, w]");
    }
    // otherwise a window could lie in the padding alone, where a maximum or an average means nothing
    if (0..4).any(|i| pads[i] > 0 && pads[i] >= kernel[i % 2]) {
        return attribute(format!(
            "padding {pads:?} must be smaller than the kernel {kernel:?}"
        ));
    }
    let [h, w] = windows(x, kernel, strides, pads, [1, 1]);
    Ok(vec![x[0], x[1], h.positions()?, w.positions()?])
}

fn conv(
    inputs: &[&[usize]],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
    groups: usize,
) -> Result<Vec<usize>, ShapeError> {
    let (x, w) = (inputs[0], inputs[1]);
    if x.len() != 4 {
        return mismatch("the input", x, "[n, c, h, w]");
    }
    if groups == 0 || x[1] % groups != 0 {
        return attribute(format!(
            "{} input channels cannot be split into {groups} groups",
            x[1]
        ));
    }
    if w.len() != 4 || w[1] != x[1] / groups {
        let expected = format!(
            "[m, {}, kh, kw] ({} channels, groups={groups})",
            x[1] / groups,
            x[1]
        );
        return mismatch("the weight", w, expected);
    }
    if w[0] % groups != 0 {
        return attribute(format!(
            "{} output channels cannot be split into {groups} groups",
            w[0]
        ));
    }
    if let Some(b) = inputs.get(2)
        && **b != [w[0]]
    {
        return mismatch("the bias", b, format!("[{}]", w[0]));
    }
    let [rows, columns] = windows(x, [w[2], w[3]], strides, pads, dilations);
    Ok(vec![x[0], w[0], rows.positions()?, columns.positions()?])
}

fn linear(inputs: &[&[usize]]) -> Result<Vec<usize>, ShapeError> {
    let (x, w) = (inputs[0], inputs[1]);
    let Some((features, rows)) = x.split_last().filter(|(_, rows)| !rows.is_empty()) else {
        return mismatch("the input", x, "[..., k] with two axes or more");
    };
    if w.len() != 2 || w[1] != *features {
        return mismatch("the weight", w, format!("[m, {features}]"));
    }
    if let Some(b) = inputs.get(2)
        && **b != [w[0]]
    {
        return mismatch("the bias", b, format!("[{}]", w[0]));
    }
    Ok([rows, &w[..1]].concat())
}

fn mat_mul(a: &[usize], b: &[usize]) -> Result<Vec<usize>, ShapeError> {
    if a.len() < 2 {
        return mismatch("the first factor", a, "[..., m, k]");
    }
    let (k, n) = (a[a.len() - 1], b.last().copied().unwrap_or(1));
    if b.len() < 2 || b[b.len() - 2] != k {
        return mismatch("the second factor", b, format!("[..., {k}, n]"));
    }
    let mut shape = broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
    shape.extend([a[a.len() - 2], n]);
    Ok(shape)
}

/// Inputs `x, scale [d], bias [d]`.
fn layer_norm(inputs: &[&[usize]]) -> Result<Vec<usize>, ShapeError> {
    let x = inputs[0];
    let Some(d) = x.last().filter(|_| x.len() >= 2) else {
        return mismatch("the input", x, "[..., d] with two axes or more");
    };
    for s in &inputs[1..] {
        if **s != [*d] {
            return mismatch("a parameter", s, format!("[{d}]"));
        }
    }
    Ok(x.to_vec())
}

fn attention(inputs: &[&[usize]], heads: usize) -> Result<Vec<usize>, ShapeError> {
    let q = inputs[0];
    if q.len() != 3 {
        return mismatch("q", q, "[batch, tokens, d]");
    }
    for (what, s) in ["k", "v"].iter().zip(&inputs[1..]) {
        if *s != q {
            return mismatch(what, s, format!("{q:?}, as q"));
        }
    }
    if heads == 0 || !q[2].is_multiple_of(heads) {
        return attribute(format!("{} features cannot be split into {heads} heads", q[2]));
    }
    Ok(q.to_vec())
}

fn zero_insert(x: &[usize], factor: [usize; 2]) -> Result<Vec<usize>, ShapeError> {
    let &[n, c, h, w] = x else {
        return mismatch("the input", x, "[n, c, h, w]");
    };
    if factor.iter().any(|f| !(1..=MAX_WINDOW).contains(f)) {
        return attribute(format!("factor {factor:?} must be 1 to {MAX_WINDOW}"));
    }
    // each size is at most 2^31, each factor 2^20
    Ok(vec![n, c, h * factor[0], w * factor[1]])
}

fn slice(x: &[usize], axis: usize, start: usize, end: usize) -> Result<Vec<usize>, ShapeError> {
    let Some(size) = x.get(axis) else {
        return attribute(format!("axis {axis} of a tensor with {} axes", x.len()));
    };
    if start >= end || end > *size {
        return attribute(format!("elements {start}..{end} of an axis of {size}"));
    }
    let mut shape = x.to_vec();
    shape[axis] = end - start;
    Ok(shape)
}

fn reduce(x: &[usize], axes: &[usize], keep: bool) -> Result<Vec<usize>, ShapeError> {
    if axes.is_empty() || axes.windows(2).any(|a| a[0] >= a[1]) || axes.iter().any(|a| *a >= x.len()) {
        return attribute(format!(
            "axes {axes:?} of a tensor with {} axes: expected ascending ones",
            x.len()
        ));
    }
    let sizes = x.iter().enumerate();
    Ok(match keep {
        true => sizes
            .map(|(i, d)| if axes.contains(&i) { 1 } else { *d })
            .collect(),
        false => sizes
            .filter(|(i, _)| !axes.contains(i))
            .map(|(_, d)| *d)
            .collect(),
    })
}

/// The shape of an operator's output. `target` is the shape asked for, which only [`Op::Reshape`] needs.
///
/// # Errors
/// A [`ShapeError`] if the inputs do not fit the operator or each other.
pub fn infer(op: &Op, inputs: &[&[usize]], target: Option<&[usize]>) -> Result<Vec<usize>, ShapeError> {
    let (least, most, expected) = match op {
        Op::Conv { .. } | Op::Linear => (2, 3, "2 or 3"),
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::MatMul | Op::Gather => (2, 2, "2"),
        Op::Where | Op::LayerNorm { .. } | Op::Attention { .. } => (3, 3, "3"),
        Op::BatchNorm { .. } => (5, 5, "5"),
        _ => (1, 1, "1"),
    };
    if !(least..=most).contains(&inputs.len()) {
        return Err(ShapeError::Arity {
            op: op.name(),
            expected,
            got: inputs.len(),
        });
    }
    for shape in inputs {
        elements(shape)?;
    }
    let x = inputs[0];
    let shape = match op {
        Op::Conv {
            strides,
            pads,
            dilations,
            groups,
        } => conv(inputs, *strides, *pads, *dilations, *groups)?,
        Op::Linear => linear(inputs)?,
        Op::MatMul => mat_mul(x, inputs[1])?,
        Op::Gather => match inputs[1] {
            [_, d] => [x, &[*d]].concat(),
            table => return mismatch("the table", table, "[v, d]"),
        },
        Op::Add | Op::Sub | Op::Mul | Op::Div => broadcast(x, inputs[1])?,
        Op::Where => broadcast(&broadcast(x, inputs[1])?, inputs[2])?,
        Op::Relu | Op::Gelu { .. } | Op::Tanh | Op::Erf | Op::Sqrt => x.to_vec(),
        Op::Clip { min, max } => {
            if !(min.is_finite() && max.is_finite() && min <= max) {
                return attribute(format!(
                    "limits {min:e} and {max:e}: expected finite ones, ascending"
                ));
            }
            x.to_vec()
        }
        Op::Pow { exponent } => {
            if !exponent.is_finite() {
                return attribute(format!("exponent {exponent}: expected a finite one"));
            }
            x.to_vec()
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
        } => pool(x, *kernel, *strides, *pads)?,
        Op::Softmax { axis } => {
            if *axis >= x.len() {
                return attribute(format!("axis {axis} of a tensor with {} axes", x.len()));
            }
            x.to_vec()
        }
        Op::Reshape => {
            let Some(target) = target else {
                return attribute("a reshape needs the shape of its output".into());
            };
            if elements(target)? != elements(x)? {
                return mismatch(
                    "the input",
                    x,
                    format!("as many elements as the target shape {target:?}"),
                );
            }
            target.to_vec()
        }
        Op::Transpose { perm } => {
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted.len() != x.len() || sorted.iter().enumerate().any(|(i, p)| i != *p) {
                return attribute(format!("{perm:?} is no permutation of the {} axes", x.len()));
            }
            perm.iter().map(|&p| x[p]).collect()
        }
        Op::BatchNorm { .. } => {
            if x.len() < 2 {
                return mismatch("the input", x, "[n, c, ...]");
            }
            for s in &inputs[1..] {
                if **s != [x[1]] {
                    return mismatch("a parameter", s, format!("[{}]", x[1]));
                }
            }
            x.to_vec()
        }
        Op::LayerNorm { .. } => layer_norm(inputs)?,
        Op::Attention { heads, .. } => attention(inputs, *heads)?,
        Op::ZeroInsert { factor } => zero_insert(x, *factor)?,
        Op::Slice { axis, start, end } => slice(x, *axis, *start, *end)?,
        Op::ReduceMean { axes, keep } => reduce(x, axes, *keep)?,
    };
    elements(&shape)?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(elements(&[usize::MAX, usize::MAX]).is_err());
        assert!(elements(&[MAX_ELEMENTS, 2]).is_err());
        assert!(elements(&[3, 0]).is_err());
        assert!(elements(&[1; MAX_RANK + 1]).is_err());
        assert_eq!(elements(&[]), Ok(1));
        assert!(broadcast(&[1 << 30, 1], &[1, 1 << 30]).is_err());
    }

    #[test]
    fn broadcasting_aligns_last_axes() {
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[5]), Ok(vec![5]));
        assert!(broadcast(&[2, 3], &[2]).is_err());
    }

    #[test]
    fn operators_check_their_inputs() {
        let ok = |op: Op, inputs: &[&[usize]]| infer(&op, inputs, None).ok();
        assert_eq!(ok(Op::Linear, &[&[2, 3, 4], &[5, 4], &[5]]), Some(vec![2, 3, 5]));
        assert_eq!(ok(Op::Linear, &[&[4], &[5, 4]]), None);
        assert_eq!(ok(Op::Gather, &[&[2, 3], &[9, 4]]), Some(vec![2, 3, 4]));
        assert_eq!(ok(Op::Gather, &[&[2, 3], &[9]]), None);
        assert_eq!(
            ok(Op::MatMul, &[&[2, 1, 3, 4], &[5, 4, 6]]),
            Some(vec![2, 5, 3, 6])
        );
        assert_eq!(ok(Op::MatMul, &[&[3, 4], &[3, 4]]), None);
        let attention = |heads| Op::Attention { heads, causal: true };
        assert_eq!(
            ok(attention(2), &[&[1, 3, 4], &[1, 3, 4], &[1, 3, 4]]),
            Some(vec![1, 3, 4])
        );
        assert_eq!(ok(attention(3), &[&[1, 3, 4], &[1, 3, 4], &[1, 3, 4]]), None);
        assert_eq!(ok(attention(2), &[&[1, 3, 4], &[1, 2, 4], &[1, 3, 4]]), None);
        let slice = |start, end| Op::Slice { axis: 1, start, end };
        assert_eq!(ok(slice(1, 3), &[&[2, 3]]), Some(vec![2, 2]));
        assert_eq!(ok(slice(1, 4), &[&[2, 3]]), None);
        assert_eq!(ok(slice(2, 2), &[&[2, 3]]), None);
        let mean = |axes: &[usize], keep| Op::ReduceMean {
            axes: axes.to_vec(),
            keep,
        };
        assert_eq!(ok(mean(&[1], true), &[&[2, 3]]), Some(vec![2, 1]));
        assert_eq!(ok(mean(&[0, 1], false), &[&[2, 3]]), Some(vec![]));
        assert_eq!(ok(mean(&[1, 0], false), &[&[2, 3]]), None);
        let zeros = |f| Op::ZeroInsert { factor: [f, 2] };
        assert_eq!(ok(zeros(3), &[&[1, 2, 3, 4]]), Some(vec![1, 2, 9, 8]));
        assert_eq!(ok(zeros(0), &[&[1, 2, 3, 4]]), None);
        assert_eq!(ok(zeros(MAX_WINDOW), &[&[1, 1, MAX_ELEMENTS, 1]]), None);
        let clip = |min, max| Op::Clip { min, max };
        assert_eq!(ok(clip(0.0, 6.0), &[&[2]]), Some(vec![2]));
        assert_eq!(ok(clip(6.0, 0.0), &[&[2]]), None);
        assert_eq!(ok(clip(0.0, f32::NAN), &[&[2]]), None);
        assert_eq!(ok(Op::LayerNorm { epsilon: 0.1 }, &[&[2, 3], &[3], &[2]]), None);
    }

    #[test]
    fn hits_are_those_of_the_definition() {
        for (input, kernel, stride, before, after, dilation) in [
            (7, 3, 2, 1, 1, 1),
            (5, 4, 3, 3, 2, 2),
            (1, 3, 1, 1, 1, 1),
            (9, 2, 4, 0, 0, 3),
            (2, 5, 1, 4, 4, 1),
            (1, 1, 5, 7, 9, 1),
        ] {
            let w = Window {
                input,
                kernel,
                stride,
                before,
                after,
                dilation,
            };
            let n = w.positions().unwrap();
            for tap in 0..kernel {
                let want: Vec<usize> = (0..n)
                    .filter(|o| {
                        let at = (o * stride + tap * dilation) as i64 - before as i64;
                        (0..input as i64).contains(&at)
                    })
                    .collect();
                assert_eq!(w.hits(tap, n).collect::<Vec<_>>(), want, "{w:?} tap {tap}");
            }
        }
    }

    #[test]
    fn windows_beyond_the_input_are_refused() {
        let w = Window {
            input: 2,
            kernel: 3,
            stride: 1,
            before: 0,
            after: 0,
            dilation: 1,
        };
        assert!(w.positions().is_err());
        assert!(
            Window {
                stride: 0,
                before: 1,
                ..w
            }
            .positions()
            .is_err()
        );
        assert!(
            Window {
                before: usize::MAX,
                ..w
            }
            .positions()
            .is_err()
        );
    }
}
