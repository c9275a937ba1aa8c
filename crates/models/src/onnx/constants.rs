//! Arithmetic on constants: what exporters leave of shapes, positions and masks is computed here, so that the graph has none
//! of it.

use super::convert::{Integers, Value};
use super::error::{Problem, shown};
use super::operators::{Node, constant_tensor};
use super::values::{self, Values};
use crate::evaluate::{evaluate_node, steps, walk};
use crate::graph::{Graph, GraphError, Op, TensorId};
use crate::shapes;
use std::sync::Arc;

/// A constant's shape and values.
type Folded = (Vec<usize>, Vec<f32>);

/// `data` of `shape`, repeated to `target`, to which it can be broadcast.
fn repeat<T: Copy>(data: &[T], shape: &[usize], target: &[usize]) -> Vec<T> {
    let from = steps(shape, target);
    let mut all = Vec::with_capacity(target.iter().product());
    walk(target, &[&from], |at| all.push(data[at[0]]));
    all
}

impl Node<'_, '_, '_> {
    /// Takes room for `count` elements of so many bytes, and checks a shape.
    pub(super) fn room(&mut self, shape: &[usize], bytes: u64) -> Result<(), Problem> {
        match shapes::elements(shape) {
            Ok(count) => self.importer.budget.charge(count as u64 * bytes),
            Err(error) => self.shape_error(error),
        }
    }

    /// Sets the output to constant integers.
    pub(super) fn set_integers(&mut self, shape: Vec<usize>, data: Vec<i64>) -> Result<(), Problem> {
        let value = Value::Integers(Arc::new(Integers { shape, data }));
        self.importer.set_value(&self.proto.output[0], value);
        Ok(())
    }

    /// The result of a cheap operator whose inputs are all constant; `None` where one is not.
    pub(super) fn fold(&mut self, op: &Op, inputs: &[TensorId]) -> Result<Option<Folded>, Problem> {
        let heavy = matches!(
            op,
            Op::Conv { .. }
                | Op::Linear
                | Op::MatMul
                | Op::Attention { .. }
                | Op::MaxPool { .. }
                | Op::AvgPool { .. }
        );
        if heavy || inputs.iter().any(|t| self.data(*t).is_none()) {
            return Ok(None);
        }
        let mut scratch = Graph::new("constants");
        let mut of = Vec::new();
        for (i, t) in inputs.iter().enumerate() {
            of.push(scratch.add_input(format!("{i}"), &self.shape(*t))?);
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|t| self.shape(*t)).collect();
        let all: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let shape = match shapes::infer(op, &all, None) {
            Ok(shape) => shape,
            Err(error) => return self.shape_error(error),
        };
        let count = |s: &[usize]| s.iter().product::<usize>() as u64;
        let working = 8 * (count(&shape) + shapes.iter().map(|s| count(s)).sum::<u64>());
        self.importer.budget.charge(working)?;
        self.importer.budget.charge(4 * count(&shape))?;
        let made = match scratch.add_node("node", op.clone(), &of, "y") {
            Ok(made) => made,
            Err(GraphError::Shape { error, .. }) => return self.shape_error(error),
            Err(other) => return Err(other.into()),
        };
        let wide: Vec<Vec<f64>> = inputs
            .iter()
            .map(|t| {
                self.data(*t)
                    .unwrap_or_default()
                    .iter()
                    .map(|v| f64::from(*v))
                    .collect()
            })
            .collect();
        let wide: Vec<&[f64]> = wide.iter().map(Vec::as_slice).collect();
        let Some(node) = scratch.producer(made) else {
            return Ok(None);
        };
        // masks may reach below the least number
        let narrow = |v: f64| (v as f32).max(f32::MIN);
        let y = evaluate_node(&scratch, node, &wide);
        if let Some(index) = y.iter().position(|v| v.is_nan() || !narrow(*v).is_finite()) {
            return Err(Problem::NotFinite {
                tensor: shown(&self.proto.output[0]),
                index,
                value: y[index],
            });
        }
        let data = y.into_iter().map(narrow).collect();
        self.importer.budget.grow(working);
        Ok(Some((shape, data)))
    }

    /// Element-wise arithmetic, of tensors or of constant integers.
    pub(super) fn arithmetic(
        &mut self,
        op: Op,
        integer: impl Fn(i64, i64) -> Option<i64>,
    ) -> Result<(), Problem> {
        let (Value::Integers(a), Value::Integers(b)) = (self.value(0)?, self.value(1)?) else {
            let inputs = [self.tensor(0)?, self.tensor(1)?];
            return self.emit(op, &inputs);
        };
        self.combine(&a, &b, integer)
    }

    /// Combines constant integers element by element.
    fn combine(
        &mut self,
        a: &Integers,
        b: &Integers,
        op: impl Fn(i64, i64) -> Option<i64>,
    ) -> Result<(), Problem> {
        let shape = match shapes::broadcast(&a.shape, &b.shape) {
            Ok(shape) => shape,
            Err(error) => return self.shape_error(error),
        };
        self.room(&shape, 8)?;
        let (x, y) = (steps(&a.shape, &shape), steps(&b.shape, &shape));
        let mut data = Vec::with_capacity(shape.iter().product());
        let mut possible = true;
        walk(&shape, &[&x, &y], |at| {
            let value = op(a.data[at[0]], b.data[at[1]]);
            possible &= value.is_some();
            data.push(value.unwrap_or(0));
        });
        if !possible {
            return self.usage("overflows, or divides by 0");
        }
        self.set_integers(shape, data)
    }

    /// Truth values of a comparison of constant integers.
    pub(super) fn compare(&mut self, op: impl Fn(i64, i64) -> bool) -> Result<(), Problem> {
        let (a, b) = (
            self.integers(0, "first input")?,
            self.integers(1, "second input")?,
        );
        self.combine(&a, &b, |a, b| Some(i64::from(op(a, b))))
    }

    pub(super) fn not(&mut self) -> Result<(), Problem> {
        let x = self.integers(0, "input")?;
        self.importer.budget.charge(8 * x.data.len() as u64)?;
        let data = x.data.iter().map(|v| i64::from(*v == 0)).collect();
        self.set_integers(x.shape.clone(), data)
    }

    /// `Where` of a constant condition.
    pub(super) fn choose(&mut self) -> Result<(), Problem> {
        let condition = self.integers(0, "condition")?;
        if let (Value::Integers(a), Value::Integers(b)) = (self.value(1)?, self.value(2)?) {
            let whole =
                shapes::broadcast(&a.shape, &b.shape).and_then(|s| shapes::broadcast(&s, &condition.shape));
            let shape = match whole {
                Ok(shape) => shape,
                Err(error) => return self.shape_error(error),
            };
            self.room(&shape, 8)?;
            let of = [&condition, &a, &b].map(|v| steps(&v.shape, &shape));
            let mut data = Vec::with_capacity(shape.iter().product());
            walk(&shape, &[&of[0], &of[1], &of[2]], |at| {
                data.push(if condition.data[at[0]] != 0 {
                    a.data[at[1]]
                } else {
                    b.data[at[2]]
                });
            });
            return self.set_integers(shape, data);
        }
        let (a, b) = (self.tensor(1)?, self.tensor(2)?);
        self.room(&condition.shape, 4)?;
        let name = self
            .importer
            .fresh_name(&format!("{}.condition", self.proto.output[0]));
        let data = condition.data.iter().map(|v| f32::from(*v != 0)).collect();
        let condition = self.importer.graph.add_constant(name, &condition.shape, data)?;
        self.emit(Op::Where, &[condition, a, b])
    }

    /// Between types of one kind nothing happens; of constants, numbers become integers and back.
    pub(super) fn cast(&mut self) -> Result<(), Problem> {
        let to = self.attributes.int("to", 0)?;
        let to = i32::try_from(to).unwrap_or(0);
        let truth = to == values::BOOL;
        let float = values::is_float(to);
        if !(float || truth || values::is_integer(to)) {
            let expected = "a floating-point type, int64, int32 or bool";
            return self.attributes.bad("to", super::error::type_name(to), expected);
        }
        let output = self.proto.output[0].clone();
        match self.value(0)? {
            Value::Integers(v) if float => {
                self.room(&v.shape, 4)?;
                let data = v.data.iter().map(|v| *v as f32).collect();
                let t = self
                    .importer
                    .graph
                    .add_constant(output.as_str(), &v.shape, data)?;
                self.importer.set_value(&output, Value::Tensor(t));
                Ok(())
            }
            Value::Integers(v) if truth => {
                self.importer.budget.charge(8 * v.data.len() as u64)?;
                let data = v.data.iter().map(|v| i64::from(*v != 0)).collect();
                self.set_integers(v.shape.clone(), data)
            }
            Value::Integers(_) => self.alias(),
            Value::Tensor(t)
                if self.importer.ids.contains(&t) != float && !truth && self.data(t).is_none() =>
            {
                self.alias()
            }
            Value::Tensor(t) => match self.data(t).map(<[f32]>::to_vec) {
                Some(_) if float => self.alias(),
                Some(data) => {
                    let shape = self.shape(t);
                    self.room(&shape, 8)?;
                    let whole = |v: &f32| if truth { i64::from(*v != 0.0) } else { *v as i64 };
                    self.set_integers(shape, data.iter().map(whole).collect())
                }
                None => self.usage("between integers and numbers is supported for constants only"),
            },
        }
    }

    /// The sizes of a tensor, which are all known.
    pub(super) fn shape_values(&mut self) -> Result<(), Problem> {
        let value = self.value(0)?;
        let sizes: Vec<i64> = self.shape_of(&value).iter().map(|d| *d as i64).collect();
        let place = |v: i64| {
            let from_end = if v < 0 {
                v.saturating_add(sizes.len() as i64)
            } else {
                v
            };
            from_end.clamp(0, sizes.len() as i64) as usize
        };
        let start = place(self.attributes.int("start", 0)?);
        let end = place(self.attributes.int("end", i64::MAX)?).max(start);
        self.set_integers(vec![end - start], sizes[start..end].to_vec())
    }

    /// Integers from `start` to before `limit` in steps of `delta`.
    pub(super) fn range(&mut self) -> Result<(), Problem> {
        let mut given = [0i64; 3];
        for (i, what) in ["start", "limit", "delta"].into_iter().enumerate() {
            let v = self.integers(i, what)?;
            match v.data[..] {
                [v] => given[i] = v,
                _ => return self.mismatch(what, &v.shape.clone(), "one number"),
            }
        }
        let [start, limit, delta] = given.map(i128::from);
        if delta == 0 {
            return self.usage("has a delta of 0");
        }
        let span = limit - start;
        let count = if (span > 0) == (delta > 0) && span != 0 {
            span.unsigned_abs().div_ceil(delta.unsigned_abs())
        } else {
            0
        };
        let Ok(count) = usize::try_from(count) else {
            return self.usage("has too many elements");
        };
        self.room(&[count], 8)?;
        let data = (0..count).map(|i| (start + delta * i as i128) as i64).collect();
        self.set_integers(vec![count], data)
    }

    pub(super) fn constant_of_shape(&mut self) -> Result<(), Problem> {
        let asked = self.integers(0, "shape")?;
        let shape = values::sizes(&self.proto.output[0], &asked.data)?;
        let value = match constant_tensor(self.proto) {
            None => Values::Floats(vec![0.0]),
            Some(tensor) => {
                let importer = &mut *self.importer;
                values::decode(self.name, tensor, &mut importer.folder, &mut importer.budget)?.1
            }
        };
        let count = shape.iter().product::<usize>();
        match value {
            Values::Floats(v) if v.len() == 1 => {
                self.room(&shape, 4)?;
                let output = self.proto.output[0].as_str();
                let t = self
                    .importer
                    .graph
                    .add_constant(output, &shape, vec![v[0]; count])?;
                self.importer.set_value(output, Value::Tensor(t));
                Ok(())
            }
            Values::Integers(v) if v.len() == 1 => {
                self.room(&shape, 8)?;
                self.set_integers(shape, vec![v[0]; count])
            }
            _ => self.attributes.bad("value", "several numbers", "one number"),
        }
    }

    /// `Expand` of constants, or to a shape that changes nothing.
    pub(super) fn expand(&mut self) -> Result<(), Problem> {
        let (x, asked) = (self.value(0)?, self.integers(1, "shape")?);
        let (from, asked) = (
            self.shape_of(&x),
            values::sizes(&self.proto.output[0], &asked.data)?,
        );
        let shape = match shapes::broadcast(&from, &asked) {
            Ok(shape) => shape,
            Err(error) => return self.shape_error(error),
        };
        if shape == from {
            return self.alias();
        }
        self.room(&shape, 8)?;
        match x {
            Value::Integers(v) => self.set_integers(shape.clone(), repeat(&v.data, &from, &shape)),
            Value::Tensor(t) => {
                let Some(data) = self.data(t) else {
                    return self.not_constant(
                        "input (unless its shape stays)",
                        self.input(0).unwrap_or_default(),
                    );
                };
                let data = repeat(data, &from, &shape);
                let output = self.proto.output[0].as_str();
                let t = self.importer.graph.add_constant(output, &shape, data)?;
                self.importer.set_value(output, Value::Tensor(t));
                Ok(())
            }
        }
    }

    /// The upper or lower triangle of constant matrices; the rest becomes 0.
    pub(super) fn trilu(&mut self) -> Result<(), Problem> {
        let upper = self.attributes.flag("upper", true)?;
        let k = if self.input(1).is_some() {
            self.integers(1, "diagonal")?.data.first().copied().unwrap_or(0)
        } else {
            0
        };
        let x = self.value(0)?;
        let shape = self.shape_of(&x);
        let &[.., rows, columns] = shape.as_slice() else {
            return self.mismatch("the input", &shape, "two axes or more");
        };
        let kept = |i: usize| {
            let (row, column) = ((i / columns % rows) as i128, (i % columns) as i128);
            let off = column - row - i128::from(k);
            if upper { off >= 0 } else { off <= 0 }
        };
        self.room(&shape, 8)?;
        match x {
            Value::Integers(v) => {
                let all = v.data.iter().enumerate();
                let data = all.map(|(i, v)| if kept(i) { *v } else { 0 }).collect();
                self.set_integers(shape, data)
            }
            Value::Tensor(t) => {
                let Some(data) = self.data(t) else {
                    return self.not_constant("input", self.input(0).unwrap_or_default());
                };
                let all = data.iter().enumerate();
                let data = all.map(|(i, v)| if kept(i) { *v } else { 0.0 }).collect();
                let output = self.proto.output[0].as_str();
                let t = self.importer.graph.add_constant(output, &shape, data)?;
                self.importer.set_value(output, Value::Tensor(t));
                Ok(())
            }
        }
    }
}
