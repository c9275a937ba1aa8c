//! Import of ONNX model files into [`Graph`].
//!
//! Files are not trusted: sizes are checked before memory is taken for them, paths of external weights must
//! stay in the model's folder, and whatever bytes a file has, the import ends with a graph or an
//! [`ImportError`]. It takes less memory than four times the files' size and 256 MB.

mod constants;
mod error;
mod nodes;
mod proto;
#[cfg(test)]
mod tests;
mod wire;

pub use error::{ImportError, UnsupportedOperator};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use crate::graph::Graph;
use crate::shapes;
use constants::Store;
use nodes::{Builder, Value};
use proto::{Model, NodeProto, ValueInfo};

/// The operators that can be imported.
pub(crate) const SUPPORTED: [&str; 19] = [
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Constant",
    "Conv",
    "Dropout",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "Identity",
    "MatMul",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Softmax",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
/// Largest model file, in bytes; the format itself ends at 2 GiB.
const MAX_FILE: u64 = 1 << 31;

/// What to change while importing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Number of items in a batch; otherwise the file's, and one if the file leaves it open.
    pub batch: Option<usize>,
}

/// A name from a file as part of a message: quoted, escaped and at most 80 characters.
pub(crate) fn quoted(name: &str) -> String {
    let mut short: String = name.chars().take(80).collect();
    if short.len() < name.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

/// How messages name a node.
pub(crate) fn place(index: usize, node: &NodeProto) -> String {
    if node.name.is_empty() {
        format!(
            "node number {index} ({}, unnamed, making {})",
            escaped(&node.op_type),
            outputs(node)
        )
    } else {
        format!(
            "node {} ({}, number {index})",
            quoted(&node.name),
            escaped(&node.op_type)
        )
    }
}

fn outputs(node: &NodeProto) -> String {
    node.output
        .first()
        .map_or_else(|| "nothing".to_owned(), |name| quoted(name))
}

fn escaped(name: &str) -> String {
    quoted(name).trim_matches('"').to_owned()
}

/// Imports a model file.
///
/// # Errors
/// [`ImportError`] names the file, the place in it, what was expected and what to do.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    let file = path.display().to_string();
    let read = |source| ImportError::Read {
        file: file.clone(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return Err(ImportError::NotAFile { file });
    }
    if metadata.len() > MAX_FILE {
        return Err(ImportError::TooLarge {
            what: "the file".into(),
            found: format!("{} bytes", metadata.len()),
            limit: format!("{MAX_FILE} bytes"),
            file,
        });
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    File::open(path)
        .and_then(|f| f.take(metadata.len()).read_to_end(&mut bytes))
        .map_err(read)?;
    wire::scan(&bytes).map_err(|fault| match fault {
        wire::Fault::Truncated { at, needed, left } => ImportError::Truncated {
            file: file.clone(),
            at,
            needed,
            left,
        },
        wire::Fault::Malformed { at, reason } => ImportError::Malformed {
            file: file.clone(),
            reason: format!("{reason}, at byte {at}"),
        },
        wire::Fault::TooManyPieces { at } => ImportError::TooLarge {
            file: file.clone(),
            what: format!("the number of nodes, names and dimensions, at byte {at},"),
            found: format!("more than {} bytes in memory", wire::LIMIT),
            limit: format!("{} bytes", wire::LIMIT),
        },
    })?;
    let store = Store::new(path, file.clone(), bytes.len() as u64);
    let model = Model::decode(Bytes::from(bytes)).map_err(|e| ImportError::Malformed {
        file: file.clone(),
        reason: e.to_string(),
    })?;
    build(&model, store, *options)
}

fn build(model: &Model, store: Store, options: ImportOptions) -> Result<Graph, ImportError> {
    let file = store.file.clone();
    let empty = |missing| ImportError::Empty {
        file: file.clone(),
        missing,
    };
    let graph = model.graph.as_ref().ok_or_else(|| empty("graph"))?;
    if graph.node.is_empty() {
        return Err(empty("nodes"));
    }
    if graph.output.is_empty() {
        return Err(empty("outputs"));
    }
    let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let opset = model
        .opset_import
        .iter()
        .find(|o| standard(&o.domain))
        .map(|o| o.version);
    let opset = match opset {
        Some(v @ 7..=25) => v,
        Some(v) => {
            return Err(ImportError::Opset {
                file,
                found: v.to_string(),
            });
        }
        None => {
            return Err(ImportError::Opset {
                file,
                found: "none".into(),
            });
        }
    };
    supported(&graph.node, &file)?;
    if !graph.sparse_initializer.is_empty() {
        return Err(ImportError::UnsupportedForm {
            file,
            place: "the graph".into(),
            found: format!("{} sparse initializers", graph.sparse_initializer.len()),
            expected: "dense initializers (zeros are found again)".into(),
        });
    }

    let mut builder = Builder::new(Graph::new(&graph.name), store, opset);
    // Every tensor with the place that makes it.
    let mut made: HashMap<&str, Maker> = HashMap::new();
    for (i, tensor) in graph.initializer.iter().enumerate() {
        define(&mut made, &tensor.name, Maker::Initializer(i), graph, &file)?;
        builder
            .values
            .insert(&tensor.name, Value::Constant(&tensor.name, tensor));
    }
    let mut open_batch = false;
    for (i, input) in graph.input.iter().enumerate() {
        if let Some(Maker::Initializer(_)) = made.get(input.name.as_str()) {
            continue;
        }
        define(&mut made, &input.name, Maker::Input(i), graph, &file)?;
        let (shape, open) = input_shape(input, options.batch, &file)?;
        open_batch |= open;
        let id = builder.graph.add_input(&input.name, &shape);
        builder.values.insert(&input.name, Value::Activation(id));
    }
    if builder.graph.inputs().is_empty() {
        return Err(empty("inputs"));
    }
    for (i, node) in graph.node.iter().enumerate() {
        if node.output.first().is_none_or(String::is_empty) {
            return Err(ImportError::Malformed {
                file,
                reason: format!("{} makes no tensor", place(i, node)),
            });
        }
        if node.op_type != "Dropout" && node.output.iter().skip(1).any(|o| !o.is_empty()) {
            return Err(ImportError::UnsupportedForm {
                file,
                place: place(i, node),
                found: format!("a second output {}", quoted(&node.output[1])),
                expected: "one output".into(),
            });
        }
        define(&mut made, &node.output[0], Maker::Node(i), graph, &file)?;
    }
    for i in order(&graph.node, &made, &file)? {
        builder.node(i, &graph.node[i])?;
    }

    let mut outputs = Vec::new();
    for output in &graph.output {
        let Some(value) = builder.values.get(output.name.as_str()).copied() else {
            let tensor = quoted(&output.name);
            return Err(ImportError::NeverMade {
                file,
                place: "the list of outputs".into(),
                tensor,
            });
        };
        let place = format!("output {}", quoted(&output.name));
        let id = builder.tensor(value, &place)?;
        declared(output, &builder.graph.tensor(id).shape, &file)?;
        outputs.push(id);
    }
    let mut graph = builder.graph;
    let wrap = |source| ImportError::Graph {
        file: file.clone(),
        source: Box::new(source),
    };
    graph.set_outputs(&outputs).map_err(wrap)?;
    graph.verify().map_err(wrap)?;
    match options.batch {
        Some(batch) if !open_batch => graph.with_batch(batch).map_err(wrap),
        _ => Ok(graph),
    }
}

/// Names all operators that cannot be imported.
fn supported(nodes: &[NodeProto], file: &str) -> Result<(), ImportError> {
    let mut unknown: BTreeMap<String, UnsupportedOperator> = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        let standard = node.domain.is_empty() || node.domain == "ai.onnx";
        let known = SUPPORTED.contains(&node.op_type.as_str());
        if standard && known {
            continue;
        }
        let mut op_type = escaped(&node.op_type);
        if !standard {
            op_type = format!("{}.{op_type}", escaped(&node.domain));
        }
        let entry = unknown
            .entry(op_type.clone())
            .or_insert_with(|| UnsupportedOperator {
                op_type,
                count: 0,
                first: place(i, node),
            });
        entry.count += 1;
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ImportError::UnsupportedOperators {
        file: file.to_owned(),
        operators: unknown.into_values().collect(),
    })
}

#[derive(Clone, Copy)]
enum Maker {
    Initializer(usize),
    Input(usize),
    Node(usize),
}

fn define<'a>(
    made: &mut HashMap<&'a str, Maker>,
    name: &'a str,
    maker: Maker,
    graph: &proto::GraphProto,
    file: &str,
) -> Result<(), ImportError> {
    let describe = |maker| match maker {
        Maker::Initializer(i) => format!("by initializer number {i}"),
        Maker::Input(i) => format!("by input number {i}"),
        Maker::Node(i) => format!("by {}", place(i, &graph.node[i])),
    };
    if name.is_empty() {
        let reason = format!("a tensor made {} has no name", describe(maker));
        return Err(ImportError::Malformed {
            file: file.to_owned(),
            reason,
        });
    }
    match made.insert(name, maker) {
        None => Ok(()),
        Some(first) => Err(ImportError::Duplicate {
            file: file.to_owned(),
            tensor: quoted(name),
            first: describe(first),
            second: describe(maker),
        }),
    }
}

/// The nodes in topological order, otherwise that of the file.
fn order(nodes: &[NodeProto], made: &HashMap<&str, Maker>, file: &str) -> Result<Vec<usize>, ImportError> {
    let mut waiting = vec![0usize; nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for name in node.input.iter().filter(|n| !n.is_empty()) {
            match made.get(name.as_str()) {
                Some(Maker::Node(from)) => {
                    readers[*from].push(i);
                    waiting[i] += 1;
                }
                Some(_) => {}
                None => {
                    return Err(ImportError::NeverMade {
                        file: file.to_owned(),
                        place: place(i, node),
                        tensor: quoted(name),
                    });
                }
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|i| waiting[*i] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &reader in &readers[i] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    let Some(mut first) = waiting.iter().position(|w| *w > 0) else {
        return Ok(order);
    };
    // Walk backwards along unfinished nodes, of which each has another before it; the first met twice is on a
    // cycle.
    let mut met = vec![false; nodes.len()];
    while !std::mem::replace(&mut met[first], true) {
        let maker = |name: &String| match made.get(name.as_str()) {
            Some(Maker::Node(from)) if waiting[*from] > 0 => Some(*from),
            _ => None,
        };
        first = nodes[first].input.iter().find_map(maker).unwrap_or(first);
    }
    let count = waiting.iter().filter(|w| **w > 0).count();
    Err(ImportError::Cycle {
        file: file.to_owned(),
        first: place(first, &nodes[first]),
        count,
    })
}

/// The shape of an input, and whether the file leaves its batch open.
fn input_shape(
    input: &ValueInfo,
    batch: Option<usize>,
    file: &str,
) -> Result<(Vec<usize>, bool), ImportError> {
    let place = format!("input {}", quoted(&input.name));
    let dimension = |found: String, expected: &str| ImportError::Dimension {
        file: file.to_owned(),
        place: place.clone(),
        found,
        expected: expected.to_owned(),
    };
    let Some(tensor) = input.kind.as_ref().and_then(|t| t.tensor.as_ref()) else {
        let found = "something other than a tensor".to_owned();
        return Err(ImportError::Dtype {
            file: file.to_owned(),
            place,
            found,
            expected: "float32",
        });
    };
    if tensor.elem_type != 1 {
        let found = proto::type_name(tensor.elem_type);
        return Err(ImportError::Dtype {
            file: file.to_owned(),
            place,
            found,
            expected: "float32",
        });
    }
    let shape = tensor
        .shape
        .as_ref()
        .ok_or_else(|| dimension("unknown".into(), "a shape"))?;
    if shape.dim.is_empty() || shape.dim.len() > shapes::MAX_RANK {
        return Err(dimension(
            format!("number {}", shape.dim.len()),
            "between 1 and 8 dimensions",
        ));
    }
    let (mut dims, mut open) = (Vec::new(), false);
    for (i, dim) in shape.dim.iter().enumerate() {
        match dim.value {
            Some(value) => {
                let positive = usize::try_from(value).ok().filter(|v| *v > 0);
                dims.push(positive.ok_or_else(|| dimension(value.to_string(), "a number of at least 1"))?);
            }
            None if i == 0 => {
                open = true;
                dims.push(batch.unwrap_or(1));
            }
            None => {
                let name = quoted(dim.param.as_deref().unwrap_or("?"));
                return Err(dimension(
                    format!("{name} in place {i}"),
                    "a number (only the batch, in place 0, may be left open)",
                ));
            }
        }
    }
    let wrong = |_| {
        dimension(
            format!("{dims:?}"),
            "at least 1 each and at most 2^31 elements in all",
        )
    };
    shapes::elements(&dims).map_err(wrong)?;
    Ok((dims, open))
}

/// Checks an output's shape against what the file declares, if it does.
fn declared(output: &ValueInfo, found: &[usize], file: &str) -> Result<(), ImportError> {
    let Some(tensor) = output.kind.as_ref().and_then(|t| t.tensor.as_ref()) else {
        return Ok(());
    };
    let place = format!("output {}", quoted(&output.name));
    if tensor.elem_type != 1 {
        let found = proto::type_name(tensor.elem_type);
        return Err(ImportError::Dtype {
            file: file.to_owned(),
            place,
            found,
            expected: "float32",
        });
    }
    let Some(shape) = &tensor.shape else {
        return Ok(());
    };
    let fits = |(dim, n): (&proto::Dim, &usize)| dim.value.is_none_or(|v| usize::try_from(v) == Ok(*n));
    if shape.dim.len() == found.len() && shape.dim.iter().zip(found).all(fits) {
        return Ok(());
    }
    let says: Vec<String> = shape
        .dim
        .iter()
        .take(9)
        .map(|d| d.value.map_or_else(|| "?".into(), |v| v.to_string()))
        .collect();
    Err(ImportError::Dimension {
        file: file.to_owned(),
        place,
        found: format!("list [{}]", says.join(", ")),
        expected: format!("{found:?}, which is what the nodes make"),
    })
}
