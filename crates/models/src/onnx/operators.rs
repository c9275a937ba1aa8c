//! One function an ONNX operator: attributes and inputs to nodes of the graph.

use super::attributes::{Attributes, axis};
use super::convert::{Importer, Integers, Value, node_name};
use super::error::{Problem, shown};
use super::proto::{NodeProto, TensorProto};
use crate::evaluate::transpose;
use crate::graph::{GraphError, Op, TensorId};
use crate::shapes::{self, ShapeError};
use std::sync::Arc;

/// The operators that can be imported.
pub(crate) const SUPPORTED: [&str; 48] = [
    "Add",
    "And",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "Div",
    "Dropout",
    "Equal",
    "Erf",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "MatMul",
    "MaxPool",
    "Mul",
    "Not",
    "Or",
    "Pow",
    "Range",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Shape",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// The tensor of a `Constant` node that has one.
pub(crate) fn constant_tensor(node: &NodeProto) -> Option<&TensorProto> {
    node.attribute
        .iter()
        .find(|a| a.name == "value")
        .and_then(|a| a.t.as_ref())
}

/// Adds a node of the file to the graph.
pub(crate) fn convert(importer: &mut Importer, proto: &NodeProto) -> Result<(), Problem> {
    let name = node_name(proto);
    let (least, most) = match proto.op_type.as_str() {
        "Constant" => (0, 0),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "MatMul" | "Reshape" | "Gather" | "Expand" => (2, 2),
        "And" | "Or" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => (2, 2),
        "Range" | "Where" => (3, 3),
        "Conv" | "Gemm" | "LayerNormalization" => (2, 3),
        "Concat" => (1, usize::MAX),
        "Slice" => (1, 5),
        "ReduceMean" | "Split" | "Trilu" => (1, 2),
        "BatchNormalization" => (5, 5),
        "Clip" | "Dropout" => (1, 3),
        "Squeeze" | "Unsqueeze" => (1, 2),
        _ => (1, 1),
    };
    let mut node = Node {
        importer,
        proto,
        attributes: Attributes { node: proto, name },
        name,
    };
    let (inputs, outputs) = (proto.input.len(), proto.output.len());
    if !(least..=most).contains(&inputs) {
        let expected = if least == most {
            least.to_string()
        } else if most == usize::MAX {
            format!("at least {least}")
        } else {
            format!("{least} to {most}")
        };
        return node.arity("inputs", inputs, &expected);
    }
    if outputs == 0 || proto.output[0].is_empty() {
        return node.arity("outputs", 0, "1");
    }
    match proto.op_type.as_str() {
        "Add" => node.arithmetic(Op::Add, i64::checked_add),
        "Sub" => node.arithmetic(Op::Sub, i64::checked_sub),
        "Mul" => node.arithmetic(Op::Mul, i64::checked_mul),
        "Div" => node.arithmetic(Op::Div, i64::checked_div),
        "And" => node.compare(|a, b| a != 0 && b != 0),
        "Or" => node.compare(|a, b| a != 0 || b != 0),
        "Equal" => node.compare(|a, b| a == b),
        "Less" => node.compare(|a, b| a < b),
        "LessOrEqual" => node.compare(|a, b| a <= b),
        "Greater" => node.compare(|a, b| a > b),
        "GreaterOrEqual" => node.compare(|a, b| a >= b),
        "Not" => node.not(),
        "Cast" => node.cast(),
        "Concat" => node.concat(),
        "ConstantOfShape" => node.constant_of_shape(),
        "Erf" => node.unary(Op::Erf),
        "Expand" => node.expand(),
        "Gather" => node.gather(),
        "Gelu" => node.gelu(),
        "LayerNormalization" => node.layer_norm(),
        "Pow" => node.pow(),
        "Range" => node.range(),
        "ReduceMean" => node.reduce_mean(),
        "Shape" => node.shape_values(),
        "Slice" => node.slice(),
        "Split" => node.split(),
        "Sqrt" => node.unary(Op::Sqrt),
        "Tanh" => node.unary(Op::Tanh),
        "Trilu" => node.trilu(),
        "Where" => node.choose(),
        "AveragePool" | "MaxPool" => node.pool(),
        "BatchNormalization" => node.batch_norm(),
        "Clip" => node.clip(),
        "Constant" => node.constant(),
        "Conv" => node.conv(),
        "Dropout" => node.dropout(),
        "Flatten" => node.flatten(),
        "Gemm" => node.gemm(),
        "GlobalAveragePool" => node.global_pool(),
        "Identity" => node.alias(),
        "MatMul" => node.mat_mul(),
        "Relu" => node.unary(Op::Relu),
        "Reshape" => node.reshape(),
        "Softmax" => node.softmax(),
        "Squeeze" => node.squeeze(),
        "Transpose" => node.transpose(),
        "Unsqueeze" => node.unsqueeze(),
        other => node.usage(format!("`{}` is not supported", shown(other))),
    }
}

/// A node on its way into the graph.
pub(super) struct Node<'i, 'a, 'n> {
    pub(super) importer: &'i mut Importer<'a>,
    pub(super) proto: &'n NodeProto,
    pub(super) attributes: Attributes<'n>,
    pub(super) name: &'n str,
}

impl Node<'_, '_, '_> {
    // ---- errors

    fn operator(&self) -> String {
        shown(&self.proto.op_type)
    }

    pub(super) fn usage<T>(&self, message: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::Usage {
            node: shown(self.name),
            operator: self.operator(),
            message: message.into(),
        })
    }

    fn arity(&self, what: &'static str, got: usize, expected: &str) -> Result<(), Problem> {
        let (node, operator) = (shown(self.name), self.operator());
        Err(Problem::Arity {
            node,
            operator,
            what,
            got,
            expected: expected.into(),
        })
    }

    pub(super) fn not_constant<T>(&self, what: &'static str, tensor: &str) -> Result<T, Problem> {
        Err(Problem::NotConstant {
            node: shown(self.name),
            operator: self.operator(),
            what,
            tensor: shown(tensor),
        })
    }

    pub(super) fn shape_error<T>(&self, error: ShapeError) -> Result<T, Problem> {
        Err(Problem::Shape {
            node: shown(self.name),
            operator: self.operator(),
            error,
        })
    }

    pub(super) fn mismatch<T>(
        &self,
        what: &'static str,
        got: &[usize],
        expected: &str,
    ) -> Result<T, Problem> {
        self.shape_error(ShapeError::Mismatch {
            what,
            got: got.to_vec(),
            expected: expected.into(),
        })
    }

    // ---- inputs

    /// The name of an input that is there.
    pub(super) fn input(&self, i: usize) -> Option<&str> {
        self.proto
            .input
            .get(i)
            .map(String::as_str)
            .filter(|n| !n.is_empty())
    }

    pub(super) fn value(&mut self, i: usize) -> Result<Value, Problem> {
        let Some(name) = self.proto.input.get(i).filter(|n| !n.is_empty()) else {
            return self.usage(format!("its input {i} is left out, which is not possible"));
        };
        match self.importer.value(name)? {
            Some(value) => Ok(value),
            None => self.usage(format!(
                "its input `{}` is not the first output of its node; only that is supported",
                shown(name)
            )),
        }
    }

    /// An input that holds floating-point numbers.
    pub(super) fn tensor(&mut self, i: usize) -> Result<TensorId, Problem> {
        match self.value(i)? {
            Value::Tensor(t) if !self.importer.ids.contains(&t) => Ok(t),
            _ => Err(Problem::DataType {
                tensor: shown(self.input(i).unwrap_or_default()),
                found: "integers".into(),
                expected: "floating-point numbers",
            }),
        }
    }

    /// An input that must be constant integers.
    pub(super) fn integers(&mut self, i: usize, what: &'static str) -> Result<Arc<Integers>, Problem> {
        match self.value(i)? {
            Value::Integers(v) => Ok(v),
            Value::Tensor(_) => self.not_constant(what, self.input(i).unwrap_or_default()),
        }
    }

    pub(super) fn shape_of(&self, value: &Value) -> Vec<usize> {
        match value {
            Value::Tensor(t) => self.shape(*t),
            Value::Integers(v) => v.shape.clone(),
        }
    }

    pub(super) fn is_constant(&self, value: &Value) -> bool {
        match value {
            Value::Tensor(t) => self.data(*t).is_some(),
            Value::Integers(_) => true,
        }
    }

    pub(super) fn shape(&self, t: TensorId) -> Vec<usize> {
        self.importer.graph.tensor(t).shape.clone()
    }

    pub(super) fn data(&self, t: TensorId) -> Option<&[f32]> {
        self.importer.graph.tensor(t).data.as_deref().map(Vec::as_slice)
    }

    /// The last two sizes of a tensor that must have four.
    fn plane(&self, t: TensorId, what: &'static str) -> Result<[usize; 2], Problem> {
        match self.shape(t)[..] {
            [_, _, h, w] => Ok([h, w]),
            ref other => self.mismatch(what, other, "four axes (2D operators only)"),
        }
    }

    // ---- results

    /// Adds a node for this one's first output.
    pub(super) fn emit(&mut self, op: Op, inputs: &[TensorId]) -> Result<(), Problem> {
        self.emit_as(0, op, inputs)
    }

    /// Adds a node for one of this one's outputs. What is computed of constants alone is a constant.
    pub(super) fn emit_as(&mut self, i: usize, op: Op, inputs: &[TensorId]) -> Result<(), Problem> {
        let output = self.proto.output[i].clone();
        let t = match self.fold(&op, inputs)? {
            Some((shape, data)) => self.importer.graph.add_constant(output, &shape, data)?,
            None => self.add(op, inputs, output)?,
        };
        self.importer.set_value(&self.proto.output[i], Value::Tensor(t));
        Ok(())
    }

    pub(super) fn add(&mut self, op: Op, inputs: &[TensorId], output: String) -> Result<TensorId, Problem> {
        match self.importer.graph.add_node(self.name, op, inputs, output) {
            Ok(t) => Ok(t),
            Err(GraphError::Shape { error, .. }) => self.shape_error(error),
            Err(other) => Err(other.into()),
        }
    }

    /// The input under another name.
    pub(super) fn alias(&mut self) -> Result<(), Problem> {
        let value = self.value(0)?;
        self.importer.set_value(&self.proto.output[0], value);
        Ok(())
    }

    // ---- operators

    pub(super) fn unary(&mut self, op: Op) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        self.emit(op, &[x])
    }

    /// Padding `[top, left, bottom, right]`, given or for an output of `ceil(input / stride)`.
    fn pads(
        &self,
        input: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
    ) -> Result<[usize; 4], Problem> {
        let mode = self.attributes.string("auto_pad", "NOTSET")?;
        let upper = match mode.as_str() {
            "NOTSET" | "" => return Ok(self.attributes.window("pads", 0)?.unwrap_or([0; 4])),
            "VALID" => return Ok([0; 4]),
            "SAME_UPPER" => true,
            "SAME_LOWER" => false,
            other => {
                return self.attributes.bad(
                    "auto_pad",
                    shown(other),
                    "NOTSET, VALID, SAME_UPPER or SAME_LOWER",
                );
            }
        };
        let mut pads = [0; 4];
        for i in 0..2 {
            // each at most 2^20, the input at most 2^31
            let reach = (kernel[i] - 1) * dilations[i] + 1;
            let last = (input[i].div_ceil(strides[i]) - 1) * strides[i];
            let all = (last + reach).saturating_sub(input[i]);
            let before = if upper { all / 2 } else { all.div_ceil(2) };
            (pads[i], pads[2 + i]) = (before, all - before);
        }
        Ok(pads)
    }

    fn conv(&mut self) -> Result<(), Problem> {
        let (x, w) = (self.tensor(0)?, self.tensor(1)?);
        let mut inputs = vec![x, w];
        if self.input(2).is_some() {
            inputs.push(self.tensor(2)?);
        }
        let (input, kernel) = (self.plane(x, "the input")?, self.plane(w, "the weight")?);
        if let Some(given) = self.attributes.window::<2>("kernel_shape", 1)?
            && given != kernel
        {
            return self.attributes.bad(
                "kernel_shape",
                format!("{given:?}"),
                format!("{kernel:?}, as the weight has"),
            );
        }
        if kernel.iter().any(|k| *k > shapes::MAX_WINDOW) {
            return self.usage(format!("kernel {kernel:?} is larger than {}", shapes::MAX_WINDOW));
        }
        let strides = self.attributes.window("strides", 1)?.unwrap_or([1; 2]);
        let dilations = self.attributes.window("dilations", 1)?.unwrap_or([1; 2]);
        let groups = self.attributes.int("group", 1)?;
        let Ok(groups) = usize::try_from(groups) else {
            return self.attributes.bad("group", groups.to_string(), "at least 1");
        };
        let pads = self.pads(input, kernel, strides, dilations)?;
        self.emit(
            Op::Conv {
                strides,
                pads,
                dilations,
                groups,
            },
            &inputs,
        )
    }

    fn pool(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let input = self.plane(x, "the input")?;
        let Some(kernel) = self.attributes.window::<2>("kernel_shape", 1)? else {
            return self.attributes.bad("kernel_shape", "not there", "2 integers");
        };
        let strides = self.attributes.window("strides", 1)?.unwrap_or([1; 2]);
        let dilations = self.attributes.window("dilations", 1)?.unwrap_or([1; 2]);
        if dilations != [1; 2] {
            return self
                .attributes
                .bad("dilations", format!("{dilations:?}"), "[1, 1] in a pooling");
        }
        let given = self.pads(input, kernel, strides, dilations)?;
        let mut pads = given;
        if self.attributes.flag("ceil_mode", false)? {
            for i in 0..2 {
                pads[2 + i] = ceil_pad(input[i], kernel[i], strides[i], given[i], given[2 + i]);
            }
        }
        if self.proto.op_type == "MaxPool" {
            return self.emit(
                Op::MaxPool {
                    kernel,
                    strides,
                    pads,
                },
                &[x],
            );
        }
        let count_include_pad = self.attributes.flag("count_include_pad", false)?;
        if count_include_pad && pads != given {
            return self.usage(
                "ceil_mode and count_include_pad together are supported only where windows fit exactly",
            );
        }
        self.emit(
            Op::AvgPool {
                kernel,
                strides,
                pads,
                count_include_pad,
            },
            &[x],
        )
    }

    fn global_pool(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let kernel = self.plane(x, "the input")?;
        self.emit(
            Op::AvgPool {
                kernel,
                strides: [1; 2],
                pads: [0; 4],
                count_include_pad: false,
            },
            &[x],
        )
    }

    fn batch_norm(&mut self) -> Result<(), Problem> {
        if self.attributes.flag("training_mode", false)? || !self.attributes.flag("spatial", true)? {
            return self.usage("only inference with one mean and variance a channel is supported (training_mode=0, spatial=1)");
        }
        let epsilon = self.attributes.float("epsilon", 1e-5)?;
        let mut inputs = Vec::new();
        for i in 0..5 {
            inputs.push(self.tensor(i)?);
        }
        let positive = |v: &f32| f64::from(*v) + f64::from(epsilon) > 0.0;
        if let Some(index) = self
            .data(inputs[4])
            .and_then(|d| d.iter().position(|v| !positive(v)))
        {
            return self.usage(format!("variance + epsilon is not positive at index {index}"));
        }
        self.emit(Op::BatchNorm { epsilon }, &inputs)
    }

    /// `Clip`, which from 0 without upper limit is a ReLU.
    fn clip(&mut self) -> Result<(), Problem> {
        let (mut min, mut max) = (f32::MIN, f32::MAX);
        if self.importer.opset < 11 {
            (min, max) = (
                self.attributes.float("min", min)?,
                self.attributes.float("max", max)?,
            );
        } else {
            for (i, limit) in [(1, &mut min), (2, &mut max)] {
                if self.input(i).is_none() {
                    continue;
                }
                let t = self.tensor(i)?;
                *limit = match self.data(t) {
                    Some([v]) => *v,
                    _ => return self.not_constant("limit", self.input(i).unwrap_or_default()),
                };
            }
        }
        if min == 0.0 && max == f32::MAX {
            return self.unary(Op::Relu);
        }
        self.unary(Op::Clip { min, max })
    }

    fn constant(&mut self) -> Result<(), Problem> {
        let a = &self.attributes;
        let floats = match (
            a.floats("value_floats")?,
            self.proto.attribute.iter().find(|a| a.name == "value_float"),
        ) {
            (Some(f), _) => Some((vec![f.len()], f.to_vec())),
            (_, Some(_)) => Some((vec![], vec![a.float("value_float", 0.0)?])),
            _ => None,
        };
        let integers = match (
            a.ints("value_ints")?,
            self.proto.attribute.iter().find(|a| a.name == "value_int"),
        ) {
            (Some(v), _) => Some(v.to_vec()),
            (_, Some(_)) => Some(vec![a.int("value_int", 0)?]),
            _ => None,
        };
        let output = self.proto.output[0].as_str();
        let value = match (floats, integers) {
            (Some((shape, data)), None) => {
                Value::Tensor(self.importer.graph.add_constant(output, &shape, data)?)
            }
            (None, Some(data)) => {
                let single = self.proto.attribute.iter().any(|a| a.name == "value_int");
                let shape = if single { vec![] } else { vec![data.len()] };
                Value::Integers(Arc::new(Integers { shape, data }))
            }
            _ => return self.usage("expected one of value, value_float(s) and value_int(s)"),
        };
        self.importer.set_value(output, value);
        Ok(())
    }

    fn dropout(&mut self) -> Result<(), Problem> {
        if self.input(2).is_some() && self.integers(2, "training mode")?.data.iter().any(|v| *v != 0) {
            return self.usage("is in training mode; export for inference");
        }
        self.alias()
    }

    fn softmax(&mut self) -> Result<(), Problem> {
        let x = self.tensor(0)?;
        let shape = self.shape(x);
        let old = self.importer.opset < 13;
        let given = self.attributes.int("axis", if old { 1 } else { -1 })?;
        let Some(at) = axis(given, shape.len()) else {
            return self
                .attributes
                .bad("axis", given.to_string(), format!("an axis of {}", shape.len()));
        };
        // before version 13 all axes from this one on were one
        if old && shape[at + 1..].iter().any(|d| *d != 1) {
            return self.usage("over several axes is not supported; export with opset 13 or later");
        }
        self.emit(Op::Softmax { axis: at }, &[x])
    }

    /// The second factor as the weight `[m, k]` of a product, scaled.
    fn weight(&mut self, transposed: bool, scale: f32) -> Result<TensorId, Problem> {
        let w = self.tensor(1)?;
        let shape = self.shape(w);
        if self.data(w).is_none() {
            return self.not_constant("second factor", self.input(1).unwrap_or_default());
        }
        let &[rows, columns] = shape.as_slice() else {
            return self.mismatch("the second factor", &shape, "two axes");
        };
        let scaled = if scale == 1.0 {
            String::new()
        } else {
            format!("x{scale}")
        };
        match (transposed, scaled.is_empty()) {
            (true, true) => Ok(w),
            (true, false) => self
                .importer
                .prepare(w, &scaled, &shape, |d| d.iter().map(|v| v * scale).collect()),
            (false, _) => self
                .importer
                .prepare(w, &format!("T{scaled}"), &[columns, rows], |d| {
                    let mut t = transpose(d, &shape, &[1, 0]);
                    t.iter_mut().for_each(|v| *v *= scale);
                    t
                }),
        }
    }

    /// A product with a constant matrix is `Linear`.
    fn mat_mul(&mut self) -> Result<(), Problem> {
        let (x, second) = (self.tensor(0)?, self.tensor(1)?);
        if self.data(second).is_none() || self.shape(second).len() != 2 {
            return self.emit(Op::MatMul, &[x, second]);
        }
        let w = self.weight(false, 1.0)?;
        self.emit(Op::Linear, &[x, w])
    }

    fn gemm(&mut self) -> Result<(), Problem> {
        let (alpha, beta) = (
            self.attributes.float("alpha", 1.0)?,
            self.attributes.float("beta", 1.0)?,
        );
        let flags = (
            self.attributes.flag("transA", false)?,
            self.attributes.flag("transB", false)?,
        );
        let mut x = self.tensor(0)?;
        let w = self.weight(flags.1, alpha)?;
        let m = self.shape(w)[0];
        let output = self.proto.output[0].clone();
        if flags.0 {
            let name = self.importer.fresh_name(&format!("{output}.transposed"));
            x = self.add(Op::Transpose { perm: vec![1, 0] }, &[x], name)?;
        }
        if self.input(2).is_none() || beta == 0.0 {
            return self.emit(Op::Linear, &[x, w]);
        }
        let c = self.tensor(2)?;
        let shape = self.shape(c);
        let scaled = if beta == 1.0 {
            String::new()
        } else {
            format!("x{beta}")
        };
        let constant = self.data(c).is_some();
        if constant && matches!(shape[..], [] | [_] | [1, _]) {
            // one value a feature, or one for all
            let count = shape.iter().product::<usize>();
            if count != m && count != 1 {
                return self.mismatch(
                    "the third input",
                    &shape,
                    &format!("[{m}], or one that broadcasts to it"),
                );
            }
            let bias = if shape == [m] && beta == 1.0 {
                c
            } else {
                let fill = |d: &[f32]| {
                    (0..m)
                        .map(|i| beta * d[if d.len() == m { i } else { 0 }])
                        .collect()
                };
                self.importer
                    .prepare(c, &format!("bias{m}{scaled}"), &[m], fill)?
            };
            return self.emit(Op::Linear, &[x, w, bias]);
        }
        let c = match (constant, beta == 1.0) {
            (_, true) => c,
            (true, false) => self
                .importer
                .prepare(c, &scaled, &shape, |d| d.iter().map(|v| v * beta).collect())?,
            (false, false) => return self.usage("beta other than 1 needs a constant third input"),
        };
        let name = self.importer.fresh_name(&format!("{output}.product"));
        let product = self.add(Op::Linear, &[x, w], name)?;
        self.emit(Op::Add, &[product, c])
    }
}

/// The padding after the last element with which windows of ceil mode fit exactly. Windows that would begin in it are
/// left out, as the standard says.
fn ceil_pad(input: usize, kernel: usize, stride: usize, before: usize, after: usize) -> usize {
    let padded = input + before + after;
    if kernel > padded {
        return after;
    }
    let mut last = (padded - kernel).div_ceil(stride) * stride;
    if last >= input + before {
        last -= stride;
    }
    (last + kernel).saturating_sub(input + before).max(after)
}
