//! The data of constants: inside the file in one of several forms, or in a data file beside it.

use super::error::{Problem, shown, type_name};
use super::proto::TensorProto;
use super::scan::Budget;
use crate::shapes;
use half::{bf16, f16};
use prost::bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// A decoded constant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// Weights.
    Floats(Vec<f32>),
    /// Shapes, axes, flags.
    Integers(Vec<i64>),
}

/// Element types of `TensorProto.DataType`.
pub(crate) const FLOAT: i32 = 1;
const INT32: i32 = 6;
const INT64: i32 = 7;
pub(crate) const BOOL: i32 = 9;
const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;
const BFLOAT16: i32 = 16;

const READABLE: &str = "float32, float64, float16, bfloat16 (or int64, int32, bool for shapes and flags)";

/// Whether the elements are numbers that a network computes with.
pub(crate) fn is_float(data_type: i32) -> bool {
    matches!(data_type, FLOAT | FLOAT16 | DOUBLE | BFLOAT16)
}

/// Whether the elements are ids, shapes or axes.
pub(crate) fn is_integer(data_type: i32) -> bool {
    matches!(data_type, INT64 | INT32)
}

/// Where data files may be, and those seen so far.
pub(crate) struct Folder {
    model: PathBuf,
    seen: BTreeSet<PathBuf>,
}

impl Folder {
    pub(crate) fn new(model: &Path) -> Self {
        Self {
            model: model.to_path_buf(),
            seen: BTreeSet::new(),
        }
    }
}

/// Sizes as counts, all of them possible.
pub(crate) fn sizes(name: &str, dims: &[i64]) -> Result<Vec<usize>, Problem> {
    let error = |error| Problem::TensorShape {
        tensor: shown(name),
        error,
    };
    if dims.len() > shapes::MAX_RANK {
        return Err(error(shapes::ShapeError::Rank(dims.len())));
    }
    let size = |(axis, size): (usize, &i64)| {
        let count = usize::try_from(*size).ok().filter(|s| *s > 0);
        count.ok_or(Problem::Size {
            tensor: shown(name),
            axis,
            size: *size,
        })
    };
    let shape = dims.iter().enumerate().map(size).collect::<Result<Vec<_>, _>>()?;
    shapes::elements(&shape).map_err(error)?;
    Ok(shape)
}

/// The shape and values of a constant. All lengths are checked before anything is allocated.
pub(crate) fn decode(
    name: &str,
    tensor: &TensorProto,
    folder: &mut Folder,
    budget: &mut Budget,
) -> Result<(Vec<usize>, Values), Problem> {
    let width = match tensor.data_type {
        FLOAT | INT32 => 4,
        DOUBLE | INT64 => 8,
        FLOAT16 | BFLOAT16 => 2,
        BOOL => 1,
        other => {
            let (tensor, found) = (shown(name), type_name(other));
            return Err(Problem::DataType {
                tensor,
                found,
                expected: READABLE,
            });
        }
    };
    // an empty list of axes or sizes is the only tensor of size 0 that is used
    let empty = !is_float(tensor.data_type) && tensor.dims == [0];
    let shape = if empty {
        vec![0]
    } else {
        sizes(name, &tensor.dims)?
    };
    let count: usize = shape.iter().product();
    let length = |expected: u64, got: u64, unit| {
        if expected == got {
            return Ok(());
        }
        let (tensor, shape) = (shown(name), shape.clone());
        Err(Problem::DataLength {
            tensor,
            shape,
            expected,
            got,
            unit,
        })
    };
    let target = if is_float(tensor.data_type) { 4 } else { 8 };
    let bytes = if tensor.data_location == 1 {
        Some(external(name, tensor, count as u64 * width, folder, budget)?)
    } else {
        tensor.raw_data.clone()
    };
    let mut values = if let Some(bytes) = bytes {
        length(count as u64 * width, bytes.len() as u64, "bytes")?;
        budget.charge(count as u64 * target)?;
        from_bytes(&bytes, tensor.data_type)
    } else {
        let got = match tensor.data_type {
            FLOAT => tensor.float_data.len(),
            DOUBLE => tensor.double_data.len(),
            INT64 => tensor.int64_data.len(),
            _ => tensor.int32_data.len(),
        };
        length(count as u64, got as u64, "values")?;
        budget.charge(count as u64 * target)?;
        let halves = || tensor.int32_data.iter().map(|v| *v as u16);
        match tensor.data_type {
            FLOAT => Values::Floats(tensor.float_data.clone()),
            DOUBLE => Values::Floats(tensor.double_data.iter().map(|v| *v as f32).collect()),
            FLOAT16 => Values::Floats(halves().map(|v| f16::from_bits(v).to_f32()).collect()),
            BFLOAT16 => Values::Floats(halves().map(|v| bf16::from_bits(v).to_f32()).collect()),
            INT64 => Values::Integers(tensor.int64_data.clone()),
            _ => Values::Integers(tensor.int32_data.iter().map(|v| i64::from(*v)).collect()),
        }
    };
    if let Values::Floats(floats) = &mut values {
        clamp_mask(floats);
    }
    if let Values::Floats(floats) = &values
        && let Some(index) = floats.iter().position(|v| !v.is_finite())
    {
        return Err(Problem::NotFinite {
            tensor: shown(name),
            index,
            value: f64::from(floats[index]),
        });
    }
    Ok((shape, values))
}

/// Makes the -inf of an attention mask, which is nothing but 0 and -inf, the least finite number: added to a score or put in
/// its place, it leaves nothing of it in a softmax either.
fn clamp_mask(data: &mut [f32]) {
    if data.iter().all(|v| *v == 0.0 || *v == f32::NEG_INFINITY) {
        data.iter_mut().for_each(|v| *v = v.max(f32::MIN));
    }
}

/// Little-endian elements, as ONNX stores them.
fn from_bytes(bytes: &[u8], data_type: i32) -> Values {
    let (pairs, fours, eights) = (
        bytes.as_chunks::<2>().0,
        bytes.as_chunks::<4>().0,
        bytes.as_chunks::<8>().0,
    );
    match data_type {
        FLOAT => Values::Floats(fours.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        DOUBLE => Values::Floats(eights.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
        FLOAT16 => Values::Floats(pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        BFLOAT16 => Values::Floats(pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        INT64 => Values::Integers(eights.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        INT32 => Values::Integers(fours.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()),
        _ => Values::Integers(bytes.iter().map(|b| i64::from(*b)).collect()),
    }
}

/// Reads the `needed` bytes of a constant from its data file, which must be in the model's folder.
fn external(
    name: &str,
    tensor: &TensorProto,
    needed: u64,
    folder: &mut Folder,
    budget: &mut Budget,
) -> Result<Bytes, Problem> {
    let entry = |key: &str| {
        tensor
            .external_data
            .iter()
            .find(|e| e.key == key)
            .map(|e| e.value.as_str())
    };
    let location = entry("location").unwrap_or_default();
    let fail = |reason: String| Problem::External {
        tensor: shown(name),
        location: shown(location),
        reason,
    };
    let inside = "data files must be in the model's folder";
    if location.is_empty() {
        return Err(fail("no location is given".into()));
    }
    // the same on every platform: a backslash separates on some
    if location.contains(['\\', '\0'])
        || !Path::new(location)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(fail(format!("the path is absolute or has `..` in it; {inside}")));
    }
    let model_folder = folder
        .model
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let real = |p: &Path| {
        p.canonicalize()
            .map_err(|e| fail(format!("cannot be found: {e}")))
    };
    let (root, path) = (real(model_folder)?, real(&model_folder.join(location))?);
    // after links are followed
    if !path.starts_with(&root) {
        return Err(fail(format!("a link leads out of the model's folder; {inside}")));
    }
    if !path.is_file() {
        return Err(fail("is not a file".into()));
    }
    let number = |key: &str, default: u64| match entry(key) {
        Some(v) => v
            .parse::<u64>()
            .map_err(|_| fail(format!("{key} is `{}`, expected a number of bytes", shown(v)))),
        None => Ok(default),
    };
    let mut file = File::open(&path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    let size = file
        .metadata()
        .map_err(|e| fail(format!("cannot be read: {e}")))?
        .len();
    let offset = number("offset", 0)?;
    let length = number("length", size.saturating_sub(offset))?;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(fail(format!(
            "bytes {offset} to {offset} + {length} are asked for, the file has {size}"
        )));
    }
    if length != needed {
        return Err(fail(format!(
            "{length} bytes are given, the shape needs {needed}"
        )));
    }
    if folder.seen.insert(path) {
        budget.grow(size.saturating_mul(3));
    }
    budget.charge(length)?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(offset))
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    file.take(length)
        .read_to_end(&mut bytes)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 != length {
        return Err(fail("became shorter while it was read".into()));
    }
    // given back when the bytes have become values
    budget.left = budget.left.saturating_add(length);
    Ok(bytes.into())
}
