//! The ONNX operators that compute nothing: those that give a tensor another shape, and Transpose. Of constants they make
//! constants.

use super::attributes::{axis, show_ints};
use super::convert::{Integers, Value};
use super::error::Problem;
use super::operators::Node;
use crate::evaluate::transpose;
use crate::graph::Op;
use crate::shapes;
use std::sync::Arc;

impl Node<'_, '_, '_> {
    /// The input in another shape; of a constant, another constant.
    pub(super) fn emit_reshape(&mut self, x: &Value, shape: &[usize]) -> Result<(), Problem> {
        let from = self.shape_of(x);
        let empty = |s: &[usize]| s.iter().product::<usize>() == 0;
        if !(empty(&from) && empty(shape))
            && let Err(error) = shapes::infer(&Op::Reshape, &[&from], Some(shape))
        {
            return self.shape_error(error);
        }
        let output = self.proto.output[0].as_str();
        let value = match x {
            Value::Integers(v) => {
                self.importer.budget.charge(8 * v.data.len() as u64)?;
                Value::Integers(Arc::new(Integers {
                    shape: shape.to_vec(),
                    data: v.data.clone(),
                }))
            }
            Value::Tensor(x) if self.data(*x).is_some() => {
                let how = format!("as{shape:?}");
                Value::Tensor(self.importer.prepare(*x, &how, shape, <[f32]>::to_vec)?)
            }
            Value::Tensor(x) => {
                let t = self.importer.graph.add_reshape(self.name, *x, output, shape)?;
                if self.importer.ids.contains(x) {
                    self.importer.ids.insert(t);
                }
                Value::Tensor(t)
            }
        };
        self.importer.set_value(output, value);
        Ok(())
    }

    pub(super) fn flatten(&mut self) -> Result<(), Problem> {
        let x = self.value(0)?;
        let shape = self.shape_of(&x);
        let given = self.attributes.int("axis", 1)?;
        // unlike elsewhere, the axis may be the number of axes
        let at = if given == shape.len() as i64 {
            Some(shape.len())
        } else {
            axis(given, shape.len())
        };
        let Some(at) = at else {
            return self.attributes.bad(
                "axis",
                given.to_string(),
                format!("an axis of {} or their number", shape.len()),
            );
        };
        let target = [shape[..at].iter().product(), shape[at..].iter().product()];
        self.emit_reshape(&x, &target)
    }

    pub(super) fn reshape(&mut self) -> Result<(), Problem> {
        let x = self.value(0)?;
        let asked = self.integers(1, "shape")?.data.clone();
        let allow_zero = self.attributes.flag("allowzero", false)?;
        let from = self.shape_of(&x);
        let bad = |node: &Self| node.usage(format!("shape {from:?} cannot become {}", show_ints(&asked)));
        if asked.len() > shapes::MAX_RANK || asked.iter().filter(|v| **v == -1).count() > 1 {
            return bad(self);
        }
        let mut target = Vec::new();
        for (i, v) in asked.iter().enumerate() {
            target.push(match (*v, from.get(i)) {
                (0, Some(size)) if !allow_zero => *size,
                (-1, _) => 1,
                (v @ 1.., _) => v as usize,
                _ => return bad(self),
            });
        }
        if let Some(open) = asked.iter().position(|v| *v == -1) {
            let Ok(rest) = shapes::elements(&target) else {
                return bad(self);
            };
            target[open] = from.iter().product::<usize>() / rest;
        }
        match shapes::elements(&target) {
            Ok(n) if n == from.iter().product() => self.emit_reshape(&x, &target),
            _ => bad(self),
        }
    }

    /// The axes of a Squeeze or Unsqueeze among `rank`: an attribute before version 13, an input since.
    fn axes(&mut self, rank: usize) -> Result<Option<Vec<usize>>, Problem> {
        let given = if self.importer.opset < 13 {
            self.attributes.ints("axes")?.map(<[i64]>::to_vec)
        } else if self.input(1).is_some() {
            Some(self.integers(1, "axes")?.data.clone())
        } else {
            None
        };
        let Some(given) = given else { return Ok(None) };
        let axes: Option<Vec<usize>> = given.iter().map(|a| axis(*a, rank)).collect();
        let mut axes = match axes {
            Some(axes) if axes.len() <= shapes::MAX_RANK => axes,
            _ => return self.usage(format!("axes {} of a tensor with {rank} axes", show_ints(&given))),
        };
        axes.sort_unstable();
        axes.dedup();
        Ok(Some(axes))
    }

    pub(super) fn squeeze(&mut self) -> Result<(), Problem> {
        let x = self.value(0)?;
        let shape = self.shape_of(&x);
        let target: Vec<usize> = match self.axes(shape.len())? {
            Some(axes) => {
                if let Some(a) = axes.iter().find(|a| shape[**a] != 1) {
                    return self.usage(format!("axis {a} of {shape:?} cannot be squeezed: it is not 1"));
                }
                (0..shape.len())
                    .filter(|i| !axes.contains(i))
                    .map(|i| shape[i])
                    .collect()
            }
            None if shape.first() == Some(&1) && !self.is_constant(&x) => {
                return self.usage("without axes the batch would go as well; give the axes");
            }
            None => shape.iter().copied().filter(|d| *d != 1).collect(),
        };
        self.emit_reshape(&x, &target)
    }

    pub(super) fn unsqueeze(&mut self) -> Result<(), Problem> {
        let x = self.value(0)?;
        let shape = self.shape_of(&x);
        // axes count in the result
        let count = match (self.importer.opset < 13, self.input(1).is_some()) {
            (true, _) => self.attributes.ints("axes")?.map_or(0, <[i64]>::len),
            (false, true) => self.integers(1, "axes")?.data.len(),
            (false, false) => 0,
        };
        let rank = shape.len().saturating_add(count);
        let axes = if count == 0 || rank > shapes::MAX_RANK {
            None
        } else {
            self.axes(rank)?
        };
        let Some(axes) = axes.filter(|a| a.len() == count) else {
            return self.usage(format!(
                "expected different axes, at most {} in all",
                shapes::MAX_RANK
            ));
        };
        let mut sizes = shape.iter();
        let target: Vec<usize> = (0..rank)
            .map(|i| {
                if axes.contains(&i) {
                    1
                } else {
                    sizes.next().copied().unwrap_or(1)
                }
            })
            .collect();
        self.emit_reshape(&x, &target)
    }

    pub(super) fn transpose(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let shape = self.shape(x);
        let perm: Vec<usize> = match self.attributes.ints("perm")? {
            Some(p) => match p
                .iter()
                .take(shapes::MAX_RANK + 1)
                .map(|v| usize::try_from(*v))
                .collect()
            {
                Ok(perm) => perm,
                Err(_) => {
                    return self
                        .attributes
                        .bad("perm", show_ints(p), "a permutation of the axes");
                }
            },
            None => (0..shape.len()).rev().collect(),
        };
        let op = Op::Transpose { perm: perm.clone() };
        let target = match shapes::infer(&op, &[&shape], None) {
            Ok(target) => target,
            Err(error) => return self.shape_error(error),
        };
        if self.data(x).is_none() {
            return self.emit(op, &[x]);
        }
        let t = self
            .importer
            .prepare(x, &format!("T{perm:?}"), &target, |d| transpose(d, &shape, &perm))?;
        self.importer.set_value(&self.proto.output[0], Value::Tensor(t));
        Ok(())
    }
}
