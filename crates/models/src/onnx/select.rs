//! The ONNX operators that pick elements: Gather, Slice, Split, and Concat, which puts constants together.

use super::attributes::{axis, show_ints};
use super::convert::Value;
use super::error::Problem;
use super::operators::Node;
use crate::graph::Op;
use crate::shapes;
use std::ops::Range;

/// Elements `indices` along an axis.
fn pick<T: Copy>(data: &[T], shape: &[usize], axis: usize, indices: &[usize]) -> Vec<T> {
    let inner: usize = shape[axis + 1..].iter().product();
    let blocks = data.chunks_exact((shape[axis] * inner).max(1));
    let mut picked = Vec::with_capacity(blocks.len() * indices.len() * inner);
    for block in blocks {
        for i in indices {
            picked.extend_from_slice(&block[i * inner..(i + 1) * inner]);
        }
    }
    picked
}

impl Node<'_, '_, '_> {
    fn axis_of(&self, given: i64, rank: usize) -> Result<usize, Problem> {
        match axis(given, rank) {
            Some(axis) => Ok(axis),
            None => self
                .attributes
                .bad("axis", given.to_string(), format!("an axis of {rank}")),
        }
    }

    /// Rows of a table by ids, or elements by constant indices.
    pub(super) fn gather(&mut self) -> Result<(), Problem> {
        let (x, indices) = (self.value(0)?, self.value(1)?);
        let shape = self.shape_of(&x);
        let at = self.axis_of(self.attributes.int("axis", 0)?, shape.len())?;
        let indices = match indices {
            Value::Integers(v) => v,
            Value::Tensor(ids) => {
                let table = self.tensor(0)?;
                if at != 0 || shape.len() != 2 || !self.importer.ids.contains(&ids) {
                    return self.usage(
                        "indices that are not constant can only be an integer input that picks rows of a matrix (axis 0)",
                    );
                }
                return self.emit(Op::Gather, &[ids, table]);
            }
        };
        let place = |i: &i64| axis(*i, shape[at]);
        let places: Option<Vec<usize>> = indices.data.iter().map(place).collect();
        let Some(places) = places else {
            return self.usage(format!(
                "indices {} are not all in an axis of {}",
                show_ints(&indices.data),
                shape[at]
            ));
        };
        let target = [&shape[..at], &indices.shape, &shape[at + 1..]].concat();
        if let Value::Integers(v) = &x {
            self.importer
                .budget
                .charge(8 * target.iter().product::<usize>() as u64)?;
            return self.set_integers(target, pick(&v.data, &shape, at, &places));
        }
        let t = self.tensor(0)?;
        if self.data(t).is_some() {
            self.room(&target, 4)?;
            let data = pick(self.data(t).unwrap_or_default(), &shape, at, &places);
            let output = self.proto.output[0].as_str();
            let t = self.importer.graph.add_constant(output, &target, data)?;
            self.importer.set_value(output, Value::Tensor(t));
            return Ok(());
        }
        // of a computed tensor: elements that follow each other
        let (Some(first), true) = (
            places.first().copied(),
            places.windows(2).all(|p| p[1] == p[0] + 1),
        ) else {
            return self.usage("picks elements of a computed tensor that do not follow each other");
        };
        let end = first + places.len();
        let mut part = t;
        if first > 0 || end < shape[at] {
            let op = Op::Slice {
                axis: at,
                start: first,
                end,
            };
            let name = self
                .importer
                .fresh_name(&format!("{}.part", self.proto.output[0]));
            part = self.add(op, &[t], name)?;
        }
        self.emit_reshape(&Value::Tensor(part), &target)
    }

    /// Starts, ends, axes and steps: attributes before version 10, inputs since.
    pub(super) fn slice(&mut self) -> Result<(), Problem> {
        let x = self.value(0)?;
        let shape = self.shape_of(&x);
        let mut lists: [Option<Vec<i64>>; 4] = [const { None }; 4];
        for (i, name) in ["starts", "ends", "axes", "steps"].into_iter().enumerate() {
            if self.importer.opset < 10 {
                lists[i] = self.attributes.ints(name)?.map(<[i64]>::to_vec);
            } else if self.input(i + 1).is_some() {
                lists[i] = Some(self.integers(i + 1, name)?.data.clone());
            }
        }
        let [Some(starts), Some(ends), axes, steps] = lists else {
            return self.usage("has no starts or no ends");
        };
        let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let lengths = [
            ends.len(),
            axes.len(),
            steps.as_ref().map_or(starts.len(), Vec::len),
        ];
        if lengths.iter().any(|n| *n != starts.len()) || starts.len() > shapes::MAX_RANK {
            return self.usage("its starts, ends, axes and steps are not equally many");
        }
        if let Some(steps) = &steps
            && steps.iter().any(|s| *s != 1)
        {
            return self.usage(format!("steps {} are not supported, only 1", show_ints(steps)));
        }
        let mut ranges: Vec<Range<usize>> = shape.iter().map(|d| 0..*d).collect();
        for (i, given) in axes.iter().enumerate() {
            let at = self.axis_of(*given, shape.len())?;
            let size = shape[at] as i64;
            let place = |v: i64| {
                let from_start = if v < 0 { v.saturating_add(size) } else { v };
                from_start.clamp(0, size) as usize
            };
            ranges[at] = place(starts[i])..place(ends[i]);
        }
        self.parts(x, &shape, &ranges)
    }

    /// The elements in these ranges of all axes.
    fn parts(&mut self, x: Value, shape: &[usize], ranges: &[Range<usize>]) -> Result<(), Problem> {
        let cut: Vec<usize> = (0..shape.len())
            .filter(|i| ranges[*i] != (0..shape[*i]))
            .collect();
        let Some(last) = cut.last() else {
            return self.alias();
        };
        match x {
            Value::Integers(v) => {
                let (mut data, mut now) = (v.data.clone(), shape.to_vec());
                self.importer.budget.charge(16 * data.len() as u64)?;
                for at in &cut {
                    let all: Vec<usize> = ranges[*at].clone().collect();
                    data = pick(&data, &now, *at, &all);
                    now[*at] = all.len();
                }
                self.set_integers(now, data)
            }
            Value::Tensor(_) => {
                let mut t = self.tensor(0)?;
                for at in &cut {
                    let Range { start, end } = ranges[*at].clone();
                    let op = Op::Slice {
                        axis: *at,
                        start,
                        end,
                    };
                    if at == last {
                        return self.emit(op, &[t]);
                    }
                    let name = self
                        .importer
                        .fresh_name(&format!("{}.part", self.proto.output[0]));
                    t = match self.fold(&op, &[t])? {
                        Some((shape, data)) => self.importer.graph.add_constant(name, &shape, data)?,
                        None => self.add(op, &[t], name)?,
                    };
                }
                Ok(())
            }
        }
    }

    /// Parts along one axis, one an output.
    pub(super) fn split(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let shape = self.shape(x);
        let at = self.axis_of(self.attributes.int("axis", 0)?, shape.len())?;
        let given = if self.importer.opset < 13 {
            self.attributes.ints("split")?.map(<[i64]>::to_vec)
        } else if self.input(1).is_some() {
            Some(self.integers(1, "split")?.data.clone())
        } else {
            None
        };
        let outputs = self.proto.output.len();
        let sizes: Vec<usize> = match given {
            Some(sizes) => sizes.iter().map(|s| usize::try_from(*s).unwrap_or(0)).collect(),
            // all equal, the last perhaps smaller
            None => {
                let each = shape[at].div_ceil(outputs);
                let left = |i: usize| shape[at].saturating_sub(i * each).min(each);
                (0..outputs).map(left).collect()
            }
        };
        let sum = sizes.iter().fold(0usize, |n, s| n.saturating_add(*s));
        if sizes.len() != outputs || sum != shape[at] || sizes.contains(&0) {
            return self.usage(format!(
                "cannot split an axis of {} into {outputs} parts of sizes {sizes:?}",
                shape[at]
            ));
        }
        let mut start = 0;
        for (i, size) in sizes.into_iter().enumerate() {
            let op = Op::Slice {
                axis: at,
                start,
                end: start + size,
            };
            start += size;
            if !self.proto.output[i].is_empty() {
                self.emit_as(i, op, &[x])?;
            }
        }
        Ok(())
    }

    /// `Concat` of constants.
    pub(super) fn concat(&mut self) -> Result<(), Problem> {
        let mut parts = Vec::new();
        for i in 0..self.proto.input.len() {
            parts.push(self.value(i)?);
        }
        let first = self.shape_of(&parts[0]);
        let at = self.axis_of(self.attributes.int("axis", 0)?, first.len())?;
        let mut target = first.clone();
        target[at] = 0;
        for (i, part) in parts.iter().enumerate() {
            if !self.is_constant(part) {
                return self.not_constant("input", self.input(i).unwrap_or_default());
            }
            let shape = self.shape_of(part);
            let fits =
                shape.len() == first.len() && (0..shape.len()).all(|a| a == at || shape[a] == first[a]);
            if !fits {
                return self.mismatch("an input", &shape, &format!("{first:?} but for axis {at}"));
            }
            target[at] = target[at].saturating_add(shape[at]);
        }
        if parts.len() == 1 {
            return self.alias();
        }
        let inner: usize = target[at + 1..].iter().product();
        let outer: usize = target[..at].iter().product();
        // an empty list of sizes may be among them
        if target.iter().product::<usize>() > 0 {
            self.room(&target, 8)?;
        }
        if let Value::Integers(_) = parts[0] {
            let mut data = Vec::with_capacity(target.iter().product());
            for o in 0..outer {
                for (i, part) in parts.iter().enumerate() {
                    let Value::Integers(v) = part else {
                        return self.not_constant("input of integers", self.input(i).unwrap_or_default());
                    };
                    let size = v.shape[at] * inner;
                    data.extend_from_slice(&v.data[o * size..(o + 1) * size]);
                }
            }
            return self.set_integers(target, data);
        }
        let mut data = Vec::with_capacity(target.iter().product());
        for o in 0..outer {
            for i in 0..parts.len() {
                let t = self.tensor(i)?;
                let size = self.shape(t)[at] * inner;
                data.extend_from_slice(&self.data(t).unwrap_or_default()[o * size..(o + 1) * size]);
            }
        }
        let output = self.proto.output[0].as_str();
        let t = self.importer.graph.add_constant(output, &target, data)?;
        self.importer.set_value(output, Value::Tensor(t));
        Ok(())
    }
}
