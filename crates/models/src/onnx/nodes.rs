//! One node of the file at a time: its attributes are read and checked, and it becomes an operator.

use std::collections::{HashMap, HashSet};

use super::constants::Store;
use super::error::ImportError;
use super::proto::{Attribute, NodeProto, TensorProto};
use super::{place, quoted};
use crate::graph::{Graph, GraphError, Op, TensorId};

/// What a name in the file stands for.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A tensor of the graph.
    Activation(TensorId),
    /// A constant: its name and its data.
    Constant(&'a str, &'a TensorProto),
    /// A single number in a `Constant` node.
    Float(&'a str, f32),
    /// Whole numbers in a `Constant` node.
    Integers(&'a [i64]),
}

/// How a constant is changed on the way into the graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    transposed: bool,
    /// Bits of the factor.
    factor: u32,
    /// Length a bias is spread to; zero for everything else.
    spread: usize,
}

const PLAIN: Form = Form {
    transposed: false,
    factor: 1.0f32.to_bits(),
    spread: 0,
};
/// Largest value of a kernel, stride, pad, dilation or group number.
const MAX_SETTING: i64 = 1 << 31;

pub(crate) struct Builder<'a> {
    pub graph: Graph,
    pub values: HashMap<&'a str, Value<'a>>,
    store: Store,
    opset: i64,
    constants: HashMap<(&'a str, Form), TensorId>,
    tensor_names: HashSet<String>,
    node_names: HashSet<String>,
    fresh: usize,
}

/// A node with its attributes and the place for messages.
struct Reading<'a> {
    node: &'a NodeProto,
    place: String,
    file: String,
}

impl<'a> Reading<'a> {
    fn form(&self, found: impl Into<String>, expected: impl Into<String>) -> ImportError {
        ImportError::UnsupportedForm {
            file: self.file.clone(),
            place: self.place.clone(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// Refuses attributes that are unknown or given twice.
    fn only(&self, known: &[&str]) -> Result<(), ImportError> {
        for (i, a) in self.node.attribute.iter().enumerate() {
            if !known.contains(&a.name.as_str()) {
                return Err(self.form(
                    format!("attribute {}", quoted(&a.name)),
                    format!("one of {known:?}"),
                ));
            }
            // Known names are few, so this stops after a few attributes.
            if self.node.attribute[..i].iter().any(|b| b.name == a.name) {
                return Err(self.form(format!("attribute {} twice", quoted(&a.name)), "each once"));
            }
        }
        Ok(())
    }

    fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    fn int(&self, name: &str, default: i64) -> Result<i64, ImportError> {
        match self.attribute(name) {
            None => Ok(default),
            Some(a) if a.kind == 2 || a.kind == 0 => Ok(a.i.unwrap_or(0)),
            Some(_) => Err(self.form(format!("attribute {name} of another type"), "a whole number")),
        }
    }

    fn float(&self, name: &str, default: f32) -> Result<f32, ImportError> {
        match self.attribute(name) {
            None => Ok(default),
            Some(a) if (a.kind == 1 || a.kind == 0) && a.f.unwrap_or(0.0).is_finite() => {
                Ok(a.f.unwrap_or(0.0))
            }
            Some(_) => Err(self.form(format!("attribute {name} of another kind"), "a finite number")),
        }
    }

    fn fixed(&self, name: &str, default: i64, needed: i64) -> Result<(), ImportError> {
        let found = self.int(name, default)?;
        if found == needed {
            Ok(())
        } else {
            Err(self.form(
                format!("attribute {name} = {found}"),
                format!("{name} = {needed}"),
            ))
        }
    }

    fn ints<const N: usize>(&self, name: &str, low: i64) -> Result<Option<[usize; N]>, ImportError> {
        let Some(a) = self.attribute(name) else {
            return Ok(None);
        };
        let fail = || {
            let shown: Vec<i64> = a.ints.iter().copied().take(9).collect();
            let expected = format!("{N} numbers between {low} and 2^31 (two-dimensional windows)");
            self.form(format!("attribute {name} = {shown:?}"), expected)
        };
        let values: [i64; N] = a.ints.as_slice().try_into().map_err(|_| fail())?;
        if values.iter().any(|v| !(low..=MAX_SETTING).contains(v)) {
            return Err(fail());
        }
        Ok(Some(values.map(|v| v as usize)))
    }

    /// Where a possibly negative axis is, among `rank` dimensions (or one more if `end`).
    fn axis(&self, axis: i64, rank: usize, end: bool) -> Result<usize, ImportError> {
        let from_front = if axis < 0 {
            axis.checked_add(rank as i64)
        } else {
            Some(axis)
        };
        let limit = rank + usize::from(end);
        match from_front.map(usize::try_from) {
            Some(Ok(a)) if a < limit => Ok(a),
            _ => Err(self.form(
                format!("axis {axis}"),
                format!("an axis of a tensor with {rank} dimensions"),
            )),
        }
    }

    /// Input `i`; absent if it is not given or has no name.
    fn input(&self, i: usize) -> Option<&'a str> {
        self.node
            .input
            .get(i)
            .map(String::as_str)
            .filter(|n| !n.is_empty())
    }

    fn inputs(&self, low: usize, high: usize) -> Result<(), ImportError> {
        let n = self.node.input.len();
        if (low..=high).contains(&n) && (0..low).all(|i| self.input(i).is_some()) {
            Ok(())
        } else {
            Err(self.form(format!("{n} inputs"), format!("between {low} and {high} inputs")))
        }
    }

    fn wrap(&self, source: GraphError) -> ImportError {
        ImportError::Graph {
            file: self.file.clone(),
            source: Box::new(source),
        }
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn new(graph: Graph, store: Store, opset: i64) -> Self {
        Self {
            graph,
            values: HashMap::new(),
            store,
            opset,
            constants: HashMap::new(),
            tensor_names: HashSet::new(),
            node_names: HashSet::new(),
            fresh: 0,
        }
    }

    /// A value as a tensor of the graph; constants are added when first used.
    pub(crate) fn tensor(&mut self, value: Value<'a>, place: &str) -> Result<TensorId, ImportError> {
        match value {
            Value::Activation(id) => Ok(id),
            _ => self.constant(value, PLAIN, place),
        }
    }

    fn constant(&mut self, value: Value<'a>, form: Form, place: &str) -> Result<TensorId, ImportError> {
        let name = match value {
            Value::Constant(name, _) | Value::Float(name, _) => name,
            Value::Activation(_) | Value::Integers(_) => {
                let found = if matches!(value, Value::Integers(_)) {
                    "int64"
                } else {
                    "an activation"
                };
                return Err(ImportError::Dtype {
                    file: self.store.file.clone(),
                    place: place.to_owned(),
                    found: found.to_owned(),
                    expected: "constant float32",
                });
            }
        };
        if let Some(id) = self.constants.get(&(name, form)) {
            return Ok(*id);
        }
        let (mut shape, mut data) = match value {
            Value::Constant(name, t) => self.store.floats(name, t)?,
            Value::Float(_, v) => (vec![], vec![v]),
            Value::Activation(_) | Value::Integers(_) => unreachable!("refused above"),
        };
        if form.transposed && shape.len() == 2 {
            let (rows, columns) = (shape[0], shape[1]);
            let mut turned = vec![0.0; data.len()];
            for (r, row) in data.chunks_exact(columns).enumerate() {
                for (c, v) in row.iter().enumerate() {
                    turned[c * rows + r] = *v;
                }
            }
            (shape, data) = (vec![columns, rows], turned);
        }
        let factor = f32::from_bits(form.factor);
        if form.factor != PLAIN.factor {
            data.iter_mut().for_each(|v| *v *= factor);
        }
        if form.spread > 0 {
            if data.len() == 1 && form.spread > 1 {
                self.store.charge(form.spread, place)?;
                data = vec![data[0]; form.spread];
            }
            shape = vec![form.spread];
        }
        self.store.finite(name, &data)?;
        // The first form of a constant keeps its name; every name of the file is unique.
        let mut tensor_name = name.to_owned();
        while self.tensor_names.contains(&tensor_name)
            || (tensor_name != name && self.values.contains_key(tensor_name.as_str()))
        {
            self.fresh += 1;
            tensor_name = format!("{name}#{}", self.fresh);
        }
        self.tensor_names.insert(tensor_name.clone());
        let id = self.graph.add_constant(&tensor_name, &shape, data);
        self.constants.insert((name, form), id);
        Ok(id)
    }

    /// The shape of a value, without its data.
    fn shape(&self, value: Value<'a>) -> Result<Vec<usize>, ImportError> {
        match value {
            Value::Activation(id) => Ok(self.graph.tensor(id).shape.clone()),
            Value::Constant(name, t) => self.store.shape(name, t),
            Value::Float(..) => Ok(vec![]),
            Value::Integers(v) => Ok(vec![v.len()]),
        }
    }

    fn value(&self, r: &Reading<'a>, i: usize) -> Result<Value<'a>, ImportError> {
        let name = r.input(i).unwrap_or_default();
        self.values
            .get(name)
            .copied()
            .ok_or_else(|| ImportError::NeverMade {
                file: r.file.clone(),
                place: r.place.clone(),
                tensor: quoted(name),
            })
    }

    fn parameter(&mut self, r: &Reading<'a>, i: usize, form: Form) -> Result<TensorId, ImportError> {
        let value = self.value(r, i)?;
        if let Value::Activation(_) = value {
            let name = quoted(r.input(i).unwrap_or_default());
            return Err(r.form(
                format!("computed parameter {name}"),
                "a constant (an initializer)",
            ));
        }
        self.constant(value, form, &r.place)
    }

    fn integers(&mut self, r: &Reading<'a>, i: usize) -> Result<Vec<i64>, ImportError> {
        match self.value(r, i)? {
            Value::Integers(v) => Ok(v.to_vec()),
            Value::Constant(name, t) => self.store.integers(name, t),
            Value::Activation(_) | Value::Float(..) => {
                let name = quoted(r.input(i).unwrap_or_default());
                Err(r.form(format!("shape or axes {name}"), "a constant list of int64"))
            }
        }
    }

    /// Adds the operator of a node and makes its output known.
    fn add(
        &mut self,
        r: &Reading<'a>,
        op: Op,
        inputs: &[TensorId],
        reshape: Option<&[usize]>,
    ) -> Result<(), ImportError> {
        let output = r.node.output[0].as_str();
        let wanted = if r.node.name.is_empty() {
            output
        } else {
            r.node.name.as_str()
        };
        let mut name = wanted.to_owned();
        while !self.node_names.insert(name.clone()) {
            self.fresh += 1;
            name = format!("{wanted}#{}", self.fresh);
        }
        let id = self
            .graph
            .add_node_as(&name, output, op, inputs, reshape)
            .map_err(|e| r.wrap(e))?;
        self.values.insert(output, Value::Activation(id));
        Ok(())
    }

    fn reshape(&mut self, r: &Reading<'a>, target: &[usize]) -> Result<(), ImportError> {
        let x = self.value(r, 0)?;
        let x = self.tensor(x, &r.place)?;
        self.add(r, Op::Reshape, &[x], Some(target))
    }

    /// Imports one node, all of whose inputs are known.
    pub(crate) fn node(&mut self, index: usize, node: &'a NodeProto) -> Result<(), ImportError> {
        let r = Reading {
            node,
            place: place(index, node),
            file: self.store.file.clone(),
        };
        match node.op_type.as_str() {
            "Constant" => self.constant_node(&r),
            "Conv" => self.conv(&r),
            "Gemm" => self.gemm(&r),
            "MatMul" => self.matmul(&r),
            "Add" | "Mul" => {
                r.only(&[])?;
                r.inputs(2, 2)?;
                let (a, b) = (self.value(&r, 0)?, self.value(&r, 1)?);
                let inputs = [self.tensor(a, &r.place)?, self.tensor(b, &r.place)?];
                self.add(
                    &r,
                    if node.op_type == "Add" { Op::Add } else { Op::Mul },
                    &inputs,
                    None,
                )
            }
            "Relu" => {
                r.only(&[])?;
                r.inputs(1, 1)?;
                self.unary(&r, Op::Relu)
            }
            "MaxPool" | "AveragePool" => self.pool(&r),
            "GlobalAveragePool" => {
                r.only(&[])?;
                r.inputs(1, 1)?;
                let shape = self.shape(self.value(&r, 0)?)?;
                let [_, _, h, w] = shape[..] else {
                    return Err(r.form(format!("an input of shape {shape:?}"), "shape [N, C, H, W]"));
                };
                let op = Op::AvgPool {
                    kernel: [h, w],
                    strides: [1, 1],
                    pads: [0; 4],
                    count_include_pad: false,
                };
                self.unary(&r, op)
            }
            "Softmax" => {
                r.only(&["axis"])?;
                r.inputs(1, 1)?;
                let rank = self.shape(self.value(&r, 0)?)?.len();
                let axis = r.axis(r.int("axis", if self.opset < 13 { 1 } else { -1 })?, rank, false)?;
                // Before version 13 all axes from this one on were taken together.
                if self.opset < 13 && axis + 1 != rank {
                    return Err(r.form(format!("axis {axis}"), "the last axis (or opset 13 and later)"));
                }
                self.unary(&r, Op::Softmax { axis })
            }
            "Transpose" => {
                r.only(&["perm"])?;
                r.inputs(1, 1)?;
                let rank = self.shape(self.value(&r, 0)?)?.len();
                let perm = match r.attribute("perm") {
                    None => (0..rank).rev().collect(),
                    Some(a) if a.ints.len() == rank => {
                        let axes: Result<Vec<usize>, _> =
                            a.ints.iter().map(|i| r.axis(*i, rank, false)).collect();
                        axes?
                    }
                    Some(a) => {
                        let found = format!("attribute perm with {} numbers", a.ints.len());
                        return Err(r.form(found, format!("{rank} numbers")));
                    }
                };
                self.unary(&r, Op::Transpose { perm })
            }
            "BatchNormalization" => {
                r.only(&["epsilon", "momentum", "spatial", "training_mode"])?;
                r.fixed("spatial", 1, 1)?;
                r.fixed("training_mode", 0, 0)?;
                r.inputs(5, 5)?;
                let x = self.value(&r, 0)?;
                let mut inputs = vec![self.tensor(x, &r.place)?];
                for i in 1..5 {
                    inputs.push(self.parameter(&r, i, PLAIN)?);
                }
                let epsilon = r.float("epsilon", 1e-5)?;
                let variance = self.graph.tensor(inputs[4]).data.as_ref();
                if variance.is_some_and(|v| v.iter().any(|v| f64::from(*v) + f64::from(epsilon) <= 0.0)) {
                    return Err(r.form("a variance that is not positive", "variances above -epsilon"));
                }
                self.add(&r, Op::BatchNorm { epsilon }, &inputs, None)
            }
            "Identity" | "Dropout" => {
                if node.op_type == "Identity" {
                    r.only(&[])?;
                    r.inputs(1, 1)?;
                } else {
                    r.only(&["ratio", "seed"])?;
                    r.inputs(1, 2)?;
                }
                match self.value(&r, 0)? {
                    Value::Activation(id) => {
                        let shape = self.graph.tensor(id).shape.clone();
                        self.reshape(&r, &shape)
                    }
                    constant => {
                        self.values.insert(&node.output[0], constant);
                        Ok(())
                    }
                }
            }
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.reshaping(&r),
            // Refused with all others before; kept so that this never panics.
            _ => Err(r.form("this operator", super::SUPPORTED.join(", "))),
        }
    }

    fn unary(&mut self, r: &Reading<'a>, op: Op) -> Result<(), ImportError> {
        let x = self.value(r, 0)?;
        let x = self.tensor(x, &r.place)?;
        self.add(r, op, &[x], None)
    }

    fn constant_node(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        r.only(&["value", "value_float", "value_int", "value_ints"])?;
        let output = r.node.output[0].as_str();
        let one = r.node.attribute.first().filter(|_| r.node.attribute.len() == 1);
        let value = match one {
            Some(a) if a.name == "value" => a.t.as_deref().map(|t| Value::Constant(output, t)),
            Some(a) if a.name == "value_float" => a.f.map(|v| Value::Float(output, v)),
            Some(a) if a.name == "value_int" => {
                a.i.as_ref().map(|i| Value::Integers(std::slice::from_ref(i)))
            }
            Some(a) => Some(Value::Integers(&a.ints)),
            None => None,
        };
        let value = value.ok_or_else(|| r.form("no single value", "one value attribute"))?;
        self.values.insert(output, value);
        Ok(())
    }

    /// Pads `[top, left, bottom, right]` from `pads` or `auto_pad`.
    fn pads(
        r: &Reading<'a>,
        x: &[usize],
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
    ) -> Result<[usize; 4], ImportError> {
        let auto = r
            .attribute("auto_pad")
            .and_then(|a| a.s.as_deref())
            .unwrap_or(b"NOTSET");
        let explicit = r.ints::<4>("pads", 0)?;
        match auto {
            b"NOTSET" => Ok(explicit.unwrap_or([0; 4])),
            b"VALID" if explicit.is_none() => Ok([0; 4]),
            b"SAME_UPPER" | b"SAME_LOWER" if explicit.is_none() && x.len() == 4 => {
                let mut pads = [0; 4];
                for d in 0..2 {
                    let (input, stride) = (x[d + 2], strides[d]);
                    let total = (input.div_ceil(stride) - 1)
                        .checked_mul(stride)
                        .and_then(|v| v.checked_add((kernel[d] - 1).checked_mul(dilations[d])?))
                        .map(|v| (v + 1).saturating_sub(input))
                        .filter(|v| *v <= MAX_SETTING as usize)
                        .ok_or_else(|| r.form("an absurdly large window", "kernels smaller than 2^31"))?;
                    let (less, more) = (total / 2, total - total / 2);
                    (pads[d], pads[d + 2]) = if auto == b"SAME_UPPER" {
                        (less, more)
                    } else {
                        (more, less)
                    };
                }
                Ok(pads)
            }
            _ => {
                let found = format!("attribute auto_pad = {}", quoted(&String::from_utf8_lossy(auto)));
                Err(r.form(found, "NOTSET, or VALID, SAME_UPPER or SAME_LOWER without pads"))
            }
        }
    }

    fn conv(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        r.only(&[
            "auto_pad",
            "dilations",
            "group",
            "kernel_shape",
            "pads",
            "strides",
        ])?;
        r.inputs(2, 3)?;
        let x = self.value(r, 0)?;
        let (shape, weights) = (self.shape(x)?, self.shape(self.value(r, 1)?)?);
        let [_, _, kh, kw] = weights[..] else {
            return Err(r.form(
                format!("weights of shape {weights:?}"),
                "shape [M, C/group, kh, kw]",
            ));
        };
        if let Some(k) = r.ints::<2>("kernel_shape", 1)?
            && k != [kh, kw]
        {
            return Err(r.form(
                format!("kernel_shape {k:?}"),
                format!("[{kh}, {kw}] as in the weights"),
            ));
        }
        let strides = r.ints("strides", 1)?.unwrap_or([1, 1]);
        let dilations = r.ints("dilations", 1)?.unwrap_or([1, 1]);
        let group = r.int("group", 1)?;
        if !(1..=MAX_SETTING).contains(&group) {
            return Err(r.form(format!("group {group}"), "a number between 1 and 2^31"));
        }
        let pads = Self::pads(r, &shape, [kh, kw], strides, dilations)?;
        let mut inputs = vec![self.tensor(x, &r.place)?, self.parameter(r, 1, PLAIN)?];
        if r.input(2).is_some() {
            inputs.push(self.parameter(r, 2, PLAIN)?);
        }
        self.add(
            r,
            Op::Conv {
                strides,
                pads,
                dilations,
                groups: group as usize,
            },
            &inputs,
            None,
        )
    }

    fn pool(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        let known = [
            "auto_pad",
            "ceil_mode",
            "count_include_pad",
            "dilations",
            "kernel_shape",
            "pads",
            "strides",
        ];
        r.only(&known)?;
        r.inputs(1, 1)?;
        r.fixed("ceil_mode", 0, 0)?;
        if let Some(d) = r.ints::<2>("dilations", 1)?
            && d != [1, 1]
        {
            return Err(r.form(format!("dilations {d:?}"), "[1, 1]"));
        }
        let shape = self.shape(self.value(r, 0)?)?;
        let kernel = r
            .ints("kernel_shape", 1)?
            .ok_or_else(|| r.form("no kernel_shape", "attribute kernel_shape"))?;
        let strides = r.ints("strides", 1)?.unwrap_or([1, 1]);
        let pads = Self::pads(r, &shape, kernel, strides, [1, 1])?;
        let op = if r.node.op_type == "MaxPool" {
            Op::MaxPool {
                kernel,
                strides,
                pads,
            }
        } else {
            let count_include_pad = r.int("count_include_pad", 0)? != 0;
            Op::AvgPool {
                kernel,
                strides,
                pads,
                count_include_pad,
            }
        };
        self.unary(r, op)
    }

    fn gemm(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        r.only(&["alpha", "beta", "transA", "transB"])?;
        r.inputs(2, 3)?;
        r.fixed("transA", 0, 0)?;
        let transposed = r.int("transB", 0)? == 0;
        let (alpha, beta) = (r.float("alpha", 1.0)?, r.float("beta", 1.0)?);
        self.linear(r, transposed, alpha, beta)
    }

    fn matmul(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        r.only(&[])?;
        r.inputs(2, 2)?;
        self.linear(r, true, 1.0, 1.0)
    }

    fn linear(
        &mut self,
        r: &Reading<'a>,
        transposed: bool,
        alpha: f32,
        beta: f32,
    ) -> Result<(), ImportError> {
        let x = self.value(r, 0)?;
        let (shape, weights) = (self.shape(x)?, self.shape(self.value(r, 1)?)?);
        if shape.len() != 2 || weights.len() != 2 {
            let found = format!("a product of shapes {shape:?} and {weights:?}");
            return Err(r.form(found, "two dimensions each (flatten the left side)"));
        }
        let m = if transposed { weights[1] } else { weights[0] };
        let mut inputs = vec![
            self.tensor(x, &r.place)?,
            self.parameter(
                r,
                1,
                Form {
                    transposed,
                    factor: alpha.to_bits(),
                    spread: 0,
                },
            )?,
        ];
        if r.input(2).is_some() {
            let bias = self.shape(self.value(r, 2)?)?;
            let last = bias.last().copied().unwrap_or(1);
            if bias.len() > 2 || bias.iter().product::<usize>() != last || (last != m && last != 1) {
                let found = format!("a bias of shape {bias:?}");
                return Err(r.form(found, format!("[{m}], [1, {m}] or a single number")));
            }
            let form = Form {
                transposed: false,
                factor: beta.to_bits(),
                spread: m,
            };
            inputs.push(self.parameter(r, 2, form)?);
        }
        self.add(r, Op::Linear, &inputs, None)
    }

    fn reshaping(&mut self, r: &Reading<'a>) -> Result<(), ImportError> {
        let allowed: &[&str] = match r.node.op_type.as_str() {
            "Flatten" => &["axis"],
            "Reshape" => &["allowzero"],
            _ => &["axes"],
        };
        r.only(allowed)?;
        let kind = r.node.op_type.as_str();
        let (low, high) = match kind {
            "Flatten" => (1, 1),
            "Reshape" => (2, 2),
            "Squeeze" => (1, 2),
            _ => (if self.opset < 13 { 1 } else { 2 }, 2),
        };
        r.inputs(low, high)?;
        let shape = self.shape(self.value(r, 0)?)?;
        let target = match kind {
            "Flatten" => {
                let axis = r.axis(r.int("axis", 1)?, shape.len(), true)?;
                vec![shape[..axis].iter().product(), shape[axis..].iter().product()]
            }
            "Reshape" => {
                let wanted = self.integers(r, 1)?;
                let keep = r.int("allowzero", 0)? == 0;
                reshape_target(&shape, &wanted, keep).ok_or_else(|| {
                    r.form(
                        format!("a reshape of {shape:?} to {wanted:?}"),
                        "as many elements, at most one -1, and at most 8 dimensions",
                    )
                })?
            }
            _ => {
                let axes = match (r.input(1), r.attribute("axes")) {
                    (Some(_), None) => Some(self.integers(r, 1)?),
                    (None, Some(a)) => Some(a.ints.clone()),
                    (None, None) => None,
                    (Some(_), Some(_)) => return Err(r.form("axes twice", "axes once")),
                };
                self.squeezed(r, &shape, axes)?
            }
        };
        self.reshape(r, &target)
    }

    fn squeezed(
        &self,
        r: &Reading<'a>,
        shape: &[usize],
        axes: Option<Vec<i64>>,
    ) -> Result<Vec<usize>, ImportError> {
        let squeeze = r.node.op_type == "Squeeze";
        let Some(axes) = axes else {
            if squeeze {
                return Ok(shape.iter().copied().filter(|d| *d != 1).collect());
            }
            return Err(r.form("no axes", "a list of axes"));
        };
        let rank = if squeeze {
            shape.len()
        } else {
            shape.len() + axes.len().min(64)
        };
        let places: Result<HashSet<usize>, _> = axes.iter().map(|a| r.axis(*a, rank, false)).collect();
        let places = places?;
        if places.len() != axes.len() || rank > crate::shapes::MAX_RANK {
            return Err(r.form(
                "repeated or too many axes",
                "each axis once, and at most 8 dimensions",
            ));
        }
        if squeeze {
            if places.iter().any(|p| shape[*p] != 1) {
                return Err(r.form(format!("squeezing axes {axes:?} of {shape:?}"), "dimensions of 1"));
            }
            return Ok((0..rank)
                .filter(|i| !places.contains(i))
                .map(|i| shape[i])
                .collect());
        }
        let mut rest = shape.iter().copied();
        Ok((0..rank)
            .map(|i| {
                if places.contains(&i) {
                    1
                } else {
                    rest.next().unwrap_or(1)
                }
            })
            .collect())
    }
}

/// The target of a reshape: zero keeps a dimension (if `keep`), -1 takes what is left.
fn reshape_target(shape: &[usize], wanted: &[i64], keep: bool) -> Option<Vec<usize>> {
    if wanted.len() > crate::shapes::MAX_RANK {
        return None;
    }
    let (mut target, mut open) = (Vec::new(), None);
    for (i, &w) in wanted.iter().enumerate() {
        target.push(match w {
            0 if keep => *shape.get(i)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            _ => usize::try_from(w).ok().filter(|w| *w > 0)?,
        });
    }
    let total: usize = shape.iter().product();
    let known = target.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match open {
        Some(i) if total.is_multiple_of(known) => target[i] = total / known,
        None if total == known => {}
        _ => return None,
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::reshape_target;

    #[test]
    fn targets() {
        assert_eq!(reshape_target(&[2, 3, 4], &[0, -1], true), Some(vec![2, 12]));
        assert_eq!(reshape_target(&[2, 3, 4], &[24], true), Some(vec![24]));
        assert_eq!(reshape_target(&[2, 3, 4], &[-1, -1], true), None);
        assert_eq!(reshape_target(&[2, 3, 4], &[0, 12], false), None);
        assert_eq!(reshape_target(&[2, 3, 4], &[5, -1], true), None);
        assert_eq!(reshape_target(&[2], &[i64::MAX, i64::MAX], true), None);
        assert_eq!(reshape_target(&[2], &[0, 0], true), None);
    }
}
