//! The values of constants: decoded, checked, and counted against a budget of memory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::error::ImportError;
use super::proto::{TensorProto, type_name};
use super::{quoted, wire};
use crate::shapes;

const FLOAT: i32 = 1;
const INT64: i32 = 7;

/// Where constants come from: the file for messages, its folder for external data, and the memory left.
pub(crate) struct Store {
    pub file: String,
    folder: PathBuf,
    budget: u64,
    allowed: u64,
    opened: HashSet<PathBuf>,
}

impl Store {
    pub(crate) fn new(path: &Path, file: String, bytes: u64) -> Self {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let budget = bytes.saturating_mul(2).saturating_add(64 << 20);
        Self {
            file,
            folder,
            budget,
            allowed: budget,
            opened: HashSet::new(),
        }
    }

    /// Takes memory for `elements` floats from the budget.
    pub(crate) fn charge(&mut self, elements: usize, place: &str) -> Result<(), ImportError> {
        let bytes = 4 * elements as u64;
        let Some(left) = self.budget.checked_sub(bytes) else {
            return Err(ImportError::TooLarge {
                file: self.file.clone(),
                what: format!("the memory for constants, at {place},"),
                found: format!("more than {} bytes", self.allowed),
                limit: format!("{} bytes (twice the files' size and 64 MiB)", self.allowed),
            });
        };
        self.budget = left;
        Ok(())
    }

    /// The shape of a constant, each dimension at least 1.
    pub(crate) fn shape(&self, name: &str, t: &TensorProto) -> Result<Vec<usize>, ImportError> {
        let fail = |found: String| ImportError::Dimension {
            file: self.file.clone(),
            place: format!("tensor {}", quoted(name)),
            found,
            expected: "at most 8 dimensions of at least 1, with at most 2^31 elements in all".into(),
        };
        if t.dims.len() > shapes::MAX_RANK {
            return Err(fail(format!("number {}", t.dims.len())));
        }
        let dims: Result<Vec<usize>, _> = t.dims.iter().map(|d| usize::try_from(*d)).collect();
        let dims = dims.map_err(|_| fail(format!("{:?}", t.dims)))?;
        shapes::elements(&dims).map_err(|_| fail(format!("{:?}", t.dims)))?;
        Ok(dims)
    }

    fn dtype(
        &self,
        name: &str,
        t: &TensorProto,
        code: i32,
        expected: &'static str,
    ) -> Result<(), ImportError> {
        if t.data_type == code {
            return Ok(());
        }
        Err(ImportError::Dtype {
            file: self.file.clone(),
            place: format!("tensor {}", quoted(name)),
            found: type_name(t.data_type),
            expected,
        })
    }

    fn length(&self, name: &str, expected: usize, found: usize) -> Result<(), ImportError> {
        if expected == found {
            return Ok(());
        }
        Err(ImportError::DataLength {
            file: self.file.clone(),
            place: format!("tensor {}", quoted(name)),
            expected: expected as u64,
            found: found as u64,
        })
    }

    /// Shape and values of a float constant; every value is finite.
    pub(crate) fn floats(
        &mut self,
        name: &str,
        t: &TensorProto,
    ) -> Result<(Vec<usize>, Vec<f32>), ImportError> {
        self.dtype(name, t, FLOAT, "float32")?;
        let shape = self.shape(name, t)?;
        let n: usize = shape.iter().product();
        let place = format!("tensor {}", quoted(name));
        let mut values: Vec<f32>;
        if t.data_location == 1 {
            let mut reader = self.external(name, t, n * 4)?;
            self.charge(n, &place)?;
            values = Vec::with_capacity(n);
            let mut buffer = vec![0u8; 1 << 16];
            while values.len() < n {
                let take = buffer.len().min((n - values.len()) * 4);
                let part = &mut buffer[..take];
                reader.read_exact(part).map_err(|source| ImportError::Read {
                    file: self.file.clone(),
                    source,
                })?;
                extend(&mut values, part);
            }
        } else {
            let typed: usize = t.float_data.iter().map(|b| b.len()).sum();
            self.length(name, n * 4, t.raw_data.len() + typed)?;
            self.charge(n, &place)?;
            values = Vec::with_capacity(n);
            extend(&mut values, &t.raw_data);
            for part in &t.float_data {
                extend(&mut values, part);
            }
            self.length(name, n * 4, values.len() * 4)?;
        }
        self.finite(name, &values)?;
        Ok((shape, values))
    }

    /// Checks that every value is finite.
    pub(crate) fn finite(&self, tensor: &str, values: &[f32]) -> Result<(), ImportError> {
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(index) => Err(ImportError::NonFinite {
                file: self.file.clone(),
                tensor: quoted(tensor),
                index,
                value: values[index],
            }),
        }
    }

    /// The values of a short list of whole numbers, such as a target shape; at most 64.
    pub(crate) fn integers(&mut self, name: &str, t: &TensorProto) -> Result<Vec<i64>, ImportError> {
        self.dtype(name, t, INT64, "int64")?;
        let n: usize = self.shape(name, t)?.iter().product();
        if n > 64 {
            return Err(ImportError::Dimension {
                file: self.file.clone(),
                place: format!("tensor {}", quoted(name)),
                found: format!("{:?}", t.dims),
                expected: "a list of at most 64 numbers".into(),
            });
        }
        let mut raw = t.raw_data.to_vec();
        if t.data_location == 1 {
            let mut reader = self.external(name, t, n * 8)?;
            raw = vec![0; n * 8];
            reader.read_exact(&mut raw).map_err(|source| ImportError::Read {
                file: self.file.clone(),
                source,
            })?;
        }
        let mut values: Vec<i64> = raw
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes))
            .collect();
        let mut found = raw.len();
        for part in &t.int64_data {
            let mut at = 0;
            while at < part.len() && values.len() <= n {
                let value = wire::varint(part, &mut at, part.len()).map_err(|_| ImportError::Malformed {
                    file: self.file.clone(),
                    reason: format!("tensor {} has a damaged list of numbers", quoted(name)),
                })?;
                values.push(value.cast_signed());
                found += 8;
            }
        }
        self.length(name, n * 8, found)?;
        Ok(values)
    }

    /// Opens external data at the right place, after checking that `bytes` bytes are there.
    fn external(
        &mut self,
        name: &str,
        t: &TensorProto,
        bytes: usize,
    ) -> Result<impl Read + use<>, ImportError> {
        let entry = |key: &str| {
            t.external_data
                .iter()
                .find(|e| e.key == key)
                .map(|e| e.value.as_str())
        };
        let location = entry("location").unwrap_or_default();
        let fail = |reason: String| ImportError::External {
            file: self.file.clone(),
            place: format!("tensor {}", quoted(name)),
            location: quoted(location),
            reason,
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| fail(format!("its {key} {} is not a number of bytes", quoted(text)))),
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let relative = Path::new(location);
        let inside = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || location.contains('\0') || !relative.components().all(inside) {
            return Err(fail(
                "it must be a path inside the model's folder, without ..".into(),
            ));
        }
        let unreadable = |e: std::io::Error| fail(format!("it cannot be read ({e})"));
        let folder = self.folder.canonicalize().map_err(unreadable)?;
        let target = folder.join(relative).canonicalize().map_err(unreadable)?;
        if !target.starts_with(&folder) {
            return Err(fail("it leads out of the model's folder".into()));
        }
        let metadata = target.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(fail("it is not a regular file".into()));
        }
        let size = metadata.len();
        if offset > size {
            return Err(fail(format!(
                "its offset {offset} is behind the end of the file at {size} bytes"
            )));
        }
        let length = length.unwrap_or(size - offset);
        if length > size - offset {
            return Err(fail(format!(
                "bytes {offset} and the {length} after end behind the file's {size} bytes"
            )));
        }
        if length != bytes as u64 {
            return Err(fail(format!(
                "its length is {length} bytes, but the tensor's shape needs {bytes}"
            )));
        }
        let mut reader = File::open(&target).map_err(unreadable)?;
        reader.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        if self.opened.insert(target) {
            let more = size.saturating_mul(2);
            self.budget = self.budget.saturating_add(more);
            self.allowed = self.allowed.saturating_add(more);
        }
        Ok(reader)
    }
}

fn extend(values: &mut Vec<f32>, bytes: &[u8]) {
    values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
}
