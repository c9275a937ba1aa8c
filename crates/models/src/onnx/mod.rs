//! ONNX files to graphs. A file is scanned for what decoding it would cost, decoded, checked as a graph, and translated
//! node by node; products with constants become [`Op::Linear`](crate::Op::Linear), constant additions become biases,
//! what is computed of constants alone becomes a constant, and what moves nothing (Identity, Dropout) goes. Then
//! [`raise`](crate::raise()) makes single operators of attention, norms and activations that are written out.
//!
//! Whatever bytes a file holds, an import ends with a graph or an error, in memory proportional to the file's size.

mod attributes;
mod constants;
mod convert;
mod error;
mod operators;
mod proto;
mod rearrange;
mod scan;
mod select;
mod sequence;
mod values;

pub use error::{ImportError, Problem, UnsupportedOperator};

use crate::graph::Graph;
use prost::Message;
use prost::bytes::Bytes;
use std::path::Path;

/// The largest file: that of a protobuf message.
const MAX_FILE: u64 = (1 << 31) - 1;

/// How to import.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// The first size of all inputs. Without it: what the file says, or 1 where the file leaves it open.
    pub batch: Option<usize>,
}

/// How much an import makes of what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Patterns of operators become single ones.
    Raised,
    /// Each operator of the file stays one.
    AsWritten,
}

/// Reads a model file and the data files beside it. Reads nothing outside the model's folder.
///
/// # Errors
/// An [`ImportError`] with the file and a [`Problem`].
pub fn import(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Graph, ImportError> {
    import_at(path, options, Level::Raised)
}

/// As [`import`], at either level.
///
/// # Errors
/// As [`import`].
pub fn import_at(
    path: impl AsRef<Path>,
    options: &ImportOptions,
    level: Level,
) -> Result<Graph, ImportError> {
    let path = path.as_ref();
    let fail = |problem| ImportError::new(path, problem);
    let read = |e: std::io::Error| {
        fail(Problem::Read {
            reason: e.to_string(),
        })
    };
    let meta = std::fs::metadata(path).map_err(read)?;
    if !meta.is_file() {
        return Err(fail(Problem::Read {
            reason: "is not a file".into(),
        }));
    }
    if meta.len() > MAX_FILE {
        return Err(fail(Problem::FileSize {
            bytes: meta.len(),
            limit: MAX_FILE,
        }));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    from_bytes(bytes, path, options, level)
}

/// Imports a model whose bytes are in memory. `path` names it in messages; data files are looked for beside it.
///
/// # Errors
/// As [`import`].
pub fn import_bytes(bytes: Vec<u8>, path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    from_bytes(bytes, path, options, Level::Raised)
}

fn from_bytes(
    bytes: Vec<u8>,
    path: &Path,
    options: &ImportOptions,
    level: Level,
) -> Result<Graph, ImportError> {
    let fail = |problem| ImportError::new(path, problem);
    let mut budget = scan::Budget::new(bytes.len() as u64);
    scan::scan(&bytes, &mut budget).map_err(fail)?;
    let model = proto::Model::decode(Bytes::from(bytes)).map_err(|e| {
        fail(Problem::Malformed {
            detail: error::shown(&e.to_string()),
        })
    })?;
    convert::convert(model, path, budget, options, level).map_err(fail)
}
