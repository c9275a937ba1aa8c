//! What can be wrong with a model file. Every message names the file and the place in it, what was expected and
//! what to do.

use crate::graph::GraphError;

/// An operator of the file that cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedOperator {
    /// Its type, with the domain in front unless that is the standard one.
    pub op_type: String,
    /// How many nodes have this type.
    pub count: usize,
    /// The first such node.
    pub first: String,
}

fn listed(operators: &[UnsupportedOperator]) -> String {
    let one = |o: &UnsupportedOperator| {
        let more = if o.count > 1 {
            format!(" and {} more", o.count - 1)
        } else {
            String::new()
        };
        format!("{} ({}{more})", o.op_type, o.first)
    };
    operators.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Why a model file could not be imported. `file` is the path as given; `place` names the node or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{file}: cannot be read ({source}); check the path and its permissions")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The path is a folder, pipe or device.
    #[error("{file}: is not a regular file; give the path of an .onnx file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The file, or what it describes, is too large.
    #[error("{file}: {what} is too large: {found}, with at most {limit} allowed; use a smaller model")]
    TooLarge {
        /// The file.
        file: String,
        /// What is too large.
        what: String,
        /// How large it is.
        found: String,
        /// The limit.
        limit: String,
    },
    /// The file ends, or an inner message ends, before a field does.
    #[error(
        "{file}: is cut short: the field at byte {at} needs {needed} bytes, but {left} are left; copy or export \
         the file again"
    )]
    Truncated {
        /// The file.
        file: String,
        /// Position of the field, in bytes from the start of the file.
        at: usize,
        /// Bytes the field needs.
        needed: u64,
        /// Bytes there are.
        left: usize,
    },
    /// The file is no ONNX model, or damaged.
    #[error("{file}: is not an ONNX model, or damaged: {reason}; export the file again")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong and where.
        reason: String,
    },
    /// The file has no graph or the graph lacks inputs, operators or outputs.
    #[error("{file}: the model has no {missing}, so there is nothing to run; export the file again")]
    Empty {
        /// The file.
        file: String,
        /// What is missing.
        missing: &'static str,
    },
    /// The version of the operators is unknown.
    #[error("{file}: uses operator set {found}, but 7 to 25 are understood; export with opset 17")]
    Opset {
        /// The file.
        file: String,
        /// What the file says.
        found: String,
    },
    /// Operators that cannot be imported, all of them.
    #[error(
        "{file}: has operators that are not supported: {}; supported are {}; replace them and export again",
        listed(.operators),
        super::SUPPORTED.join(", ")
    )]
    UnsupportedOperators {
        /// The file.
        file: String,
        /// Each type once, by name.
        operators: Vec<UnsupportedOperator>,
    },
    /// A supported operator is used in a way that is not.
    #[error(
        "{file}: {place}: {found} is not supported; expected {expected}; change the model and export again"
    )]
    UnsupportedForm {
        /// The file.
        file: String,
        /// The node or tensor.
        place: String,
        /// What it has.
        found: String,
        /// What would be supported.
        expected: String,
    },
    /// A tensor has the wrong element type.
    #[error("{file}: {place}: has elements of type {found}; expected {expected}; export with that type")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        place: String,
        /// The type found.
        found: String,
        /// The type needed.
        expected: &'static str,
    },
    /// A dimension of a tensor is not a usable number.
    #[error("{file}: {place}: has dimension {found}; expected {expected}; fix the shape and export again")]
    Dimension {
        /// The file.
        file: String,
        /// The tensor.
        place: String,
        /// The dimension or shape found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A constant has more or less data than its shape says.
    #[error(
        "{file}: {place}: its shape needs {expected} bytes of data, but it has {found}; copy or export the file \
         again"
    )]
    DataLength {
        /// The file.
        file: String,
        /// The tensor.
        place: String,
        /// Bytes by the shape.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A weight is infinite or not a number.
    #[error(
        "{file}: tensor {tensor}: element {index} (counted from 0, row-major) is {value}; expected finite \
         numbers; train or export the model again"
    )]
    NonFinite {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Which element, row-major.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A tensor is made twice.
    #[error(
        "{file}: tensor {tensor} is defined twice, {first} and {second}; give each tensor a name of its own"
    )]
    Duplicate {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The first place.
        first: String,
        /// The second place.
        second: String,
    },
    /// A tensor is read but nothing makes it.
    #[error(
        "{file}: {place} reads tensor {tensor}, which no input, initializer or node makes; export the file again"
    )]
    NeverMade {
        /// The file.
        file: String,
        /// What reads it.
        place: String,
        /// The tensor.
        tensor: String,
    },
    /// Nodes wait for each other.
    #[error(
        "{file}: has a cycle: {count} nodes wait for each other's outputs, the first of them {first}; expected a \
         graph without cycles; unroll loops before export"
    )]
    Cycle {
        /// The file.
        file: String,
        /// A node on the cycle.
        first: String,
        /// Nodes on a cycle or behind one.
        count: usize,
    },
    /// Weights in another file cannot be had.
    #[error(
        "{file}: {place}: external data {location}: {reason}; keep the weights beside the model as exported"
    )]
    External {
        /// The file.
        file: String,
        /// The tensor.
        place: String,
        /// Where the data should be.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// The network does not fit together, or not with the batch asked for.
    #[error("{file}: {source}; fix the model and export again, or choose another batch")]
    Graph {
        /// The file.
        file: String,
        /// What does not fit.
        source: Box<GraphError>,
    },
}
