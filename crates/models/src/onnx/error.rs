//! Everything that can be wrong with an ONNX file: what it is, where, what was expected and what to do.

use crate::graph::GraphError;
use crate::shapes::ShapeError;
use std::path::Path;
use thiserror::Error;

/// Why a file could not be imported.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{file}: {problem}")]
pub struct ImportError {
    /// The model file.
    pub file: String,
    /// What is wrong.
    pub problem: Box<Problem>,
}

impl ImportError {
    pub(crate) fn new(file: &Path, problem: Problem) -> Self {
        Self {
            file: file.display().to_string(),
            problem: Box::new(problem),
        }
    }
}

/// An operator that cannot be imported, with the nodes that use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedOperator {
    /// The operator, with its domain unless that is ONNX's own.
    pub operator: String,
    /// How many nodes use it.
    pub count: usize,
    /// The first few of them.
    pub nodes: Vec<String>,
}

/// What is wrong with a file. Names are shortened and escaped.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Problem {
    /// The file cannot be opened or read.
    #[error("cannot be read: {reason}")]
    Read {
        /// The system's message.
        reason: String,
    },
    /// The file is larger than a protobuf message can be.
    #[error("has {bytes} bytes, and an ONNX file at most {limit}; export the weights as external data")]
    FileSize {
        /// Its size.
        bytes: u64,
        /// The most.
        limit: u64,
    },
    /// A length in the file reaches beyond the bytes there are.
    #[error(
        "is cut off or no ONNX file: the field at byte {at} needs {needed} bytes, {left} are left; copy or export it again"
    )]
    Truncated {
        /// Where the field begins.
        at: usize,
        /// The bytes that it says it has.
        needed: u64,
        /// The bytes there are.
        left: u64,
    },
    /// The bytes are no ONNX model.
    #[error("is not a valid ONNX file: {detail}; check it with `onnx.checker`, or export it again")]
    Malformed {
        /// Where and why.
        detail: String,
    },
    /// The contents would take far more memory than the file has bytes.
    #[error(
        "would take more than {limit} bytes of memory, far beyond its size: it is damaged, or repeats constants; simplify it"
    )]
    Memory {
        /// The most that is allowed.
        limit: u64,
    },
    /// There is no graph, or it has no outputs.
    #[error("has no {what}: expected an ONNX model with a graph that has outputs")]
    Missing {
        /// "graph" or "outputs".
        what: &'static str,
    },
    /// The version of the operators is not known.
    #[error(
        "uses version {found} of the ONNX operators; versions {least} to {most} are supported: export with opset 17"
    )]
    Opset {
        /// The version in the file.
        found: i64,
        /// The least.
        least: i64,
        /// The greatest.
        most: i64,
    },
    /// Operators that there is no import for: all of them.
    #[error("uses operators that are not supported: {}; replace or remove them before exporting (supported: {supported})", show_operators(.operators))]
    Operators {
        /// The operators, by name.
        operators: Vec<UnsupportedOperator>,
        /// Those that are supported.
        supported: String,
    },
    /// A supported operator, used in a way that is not.
    #[error("node `{node}` ({operator}): {message}")]
    Usage {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// What is not supported, and what is.
        message: String,
    },
    /// An attribute has a wrong type or value.
    #[error("node `{node}`: attribute `{attribute}` is {found}, expected {expected}")]
    Attribute {
        /// The node.
        node: String,
        /// The attribute.
        attribute: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A node has too few or too many inputs or outputs.
    #[error("node `{node}` ({operator}) has {got} {what}, expected {expected}")]
    Arity {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// "inputs" or "outputs".
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there should be.
        expected: String,
    },
    /// An input of a node must be in the file, and is computed.
    #[error(
        "node `{node}` ({operator}): its {what} `{tensor}` must be a constant; fold constants before exporting"
    )]
    NotConstant {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// What the input is.
        what: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// Two things make one tensor.
    #[error(
        "tensor `{tensor}` is made twice, by {first} and by {second}; names must be unique: export it again"
    )]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// What makes it first.
        first: String,
        /// What makes it again.
        second: String,
    },
    /// A tensor is used and nothing makes it.
    #[error(
        "tensor `{tensor}`, used by {user}, is made by no node, input or initializer; the file is incomplete: export it again"
    )]
    NeverMade {
        /// The tensor.
        tensor: String,
        /// Who uses it.
        user: String,
    },
    /// Nodes that wait for each other.
    #[error("nodes depend on each other in a circle: {nodes}; an ONNX graph must be acyclic")]
    Cycle {
        /// The nodes, in order.
        nodes: String,
    },
    /// A graph input has no tensor type or no shape.
    #[error("input `{tensor}` has no tensor shape; export with shapes, or run ONNX shape inference")]
    NoShape {
        /// The input.
        tensor: String,
    },
    /// Sizes other than the first that are only named.
    #[error(
        "input `{tensor}` has sizes that are not fixed: {axes}; only the first (the batch) may be: export with fixed sizes"
    )]
    Symbolic {
        /// The input.
        tensor: String,
        /// The axes with their names.
        axes: String,
    },
    /// A size is zero or negative.
    #[error("tensor `{tensor}`: size {size} of axis {axis} is not possible, expected at least 1")]
    Size {
        /// The tensor.
        tensor: String,
        /// The axis.
        axis: usize,
        /// The size.
        size: i64,
    },
    /// The sizes are absurd.
    #[error("tensor `{tensor}`: {error}; the file is damaged, or the model too large")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// What is wrong with its shape.
        error: ShapeError,
    },
    /// An element type that cannot be read here.
    #[error(
        "tensor `{tensor}` has elements of type {found}, expected {expected}; convert the model to float32"
    )]
    DataType {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// The types that can be read.
        expected: &'static str,
    },
    /// The data of a constant are not as many as its shape says.
    #[error(
        "tensor `{tensor}` of shape {shape:?} needs {expected} {unit}, the file has {got}; export it again"
    )]
    DataLength {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How much data it needs.
        expected: u64,
        /// How much there is.
        got: u64,
        /// "bytes" or "values".
        unit: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{tensor}` holds {value} at index {index}; all weights must be finite float32 values: retrain or export it again"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row-major index.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A data file beside the model cannot be used.
    #[error("tensor `{tensor}`: external data `{location}`: {reason}")]
    External {
        /// The tensor.
        tensor: String,
        /// The data file, as the model names it.
        location: String,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// A node's inputs do not fit together.
    #[error("node `{node}` ({operator}): {error}")]
    Shape {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// What does not fit.
        error: ShapeError,
    },
    /// The graph cannot be put together, or not for the batch asked for.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

fn show_operators(operators: &[UnsupportedOperator]) -> String {
    let show = |o: &UnsupportedOperator| {
        let more = if o.count > o.nodes.len() { ", ..." } else { "" };
        format!("{} ({} x: {}{more})", o.operator, o.count, o.nodes.join(", "))
    };
    operators.iter().map(show).collect::<Vec<_>>().join("; ")
}

/// A name from a file, fit for a message: escaped, and no longer than 80 characters.
pub(crate) fn shown(name: &str) -> String {
    let mut all = name.chars().flat_map(char::escape_debug);
    let mut text: String = all.by_ref().take(80).collect();
    if all.next().is_some() {
        text.push_str("...");
    }
    text
}

/// The name of an ONNX element type.
pub(crate) fn type_name(code: i32) -> String {
    let names = [
        "undefined",
        "float32",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "float64",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
    ];
    let name = usize::try_from(code).ok().and_then(|i| names.get(i));
    name.map_or_else(|| format!("number {code}"), ToString::to_string)
}
