//! Arrays in `.npz` files: inputs from the user, outputs of a run.

use crate::error::Error;
use meshloom_models::Graph;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpzError, ReadableElement};
use std::fs::File;
use std::path::Path;

/// Named arrays with their shapes.
pub type Arrays = Vec<(String, Vec<usize>, Vec<f32>)>;

/// All items of each input, one after another, by the input's name.
pub type Items = Vec<(String, Vec<f32>)>;

/// An array as it is in a file.
struct Found {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Whether the file holds whole numbers.
    integers: bool,
}

/// Reads all arrays of a file; float32 and float64 are taken, and int32 and int64 whose numbers float32 has.
pub fn read(path: &Path) -> Result<Arrays, Error> {
    let all = read_all(path)?;
    Ok(all.into_iter().map(|f| (f.name, f.shape, f.values)).collect())
}

fn read_all(path: &Path) -> Result<Vec<Found>, Error> {
    let bad = |message: String| Error::Input(format!("{}: {message}", path.display()));
    let file = File::open(path).map_err(|e| bad(format!("can't open it: {e}")))?;
    if path.is_dir() {
        return Err(bad("a folder; expected an .npz file".into()));
    }
    let not = |e: ReadNpzError| bad(format!("not an .npz file, or not a whole one: {e}"));
    let mut npz = NpzReader::new(file).map_err(not)?;
    let names = npz.names().map_err(not)?;
    let mut all = Vec::new();
    for name in names {
        let unreadable = |e: ReadNpzError| bad(format!("array `{name}` can't be read: {e}"));
        let wrong = |i: usize, v: &dyn std::fmt::Display, why: &str| {
            bad(format!(
                "array `{name}` has {v} at element {i} (in row-major order): {why}"
            ))
        };
        let floats = match typed::<f32>(&mut npz, &name).map_err(unreadable)? {
            Ok(a) => Some(a.mapv(f64::from)),
            Err(_) => typed::<f64>(&mut npz, &name).map_err(unreadable)?.ok(),
        };
        if let Some(array) = floats {
            if let Some((i, v)) = array.iter().enumerate().find(|(_, v)| !(**v as f32).is_finite()) {
                let why = if v.is_finite() {
                    "beyond float32"
                } else {
                    "inputs must be finite"
                };
                return Err(wrong(i, &format!("{v:?}"), why));
            }
            all.push(Found {
                shape: array.shape().to_vec(),
                values: array.iter().map(|v| *v as f32).collect(),
                integers: false,
                name,
            });
            continue;
        }
        let integers = match typed::<i64>(&mut npz, &name).map_err(unreadable)? {
            Ok(a) => a,
            Err(_) => match typed::<i32>(&mut npz, &name).map_err(unreadable)? {
                Ok(a) => a.mapv(i64::from),
                Err(found) => {
                    return Err(bad(format!(
                        "array `{name}` has the type {found}; expected float32 ('<f4') or float64 ('<f8'), or for ids int32 ('<i4') or int64 ('<i8')"
                    )));
                }
            },
        };
        let exact = |v: i64| (v as f32) as i128 == v as i128;
        if let Some((i, v)) = integers.iter().enumerate().find(|(_, v)| !exact(**v)) {
            return Err(wrong(
                i,
                v,
                "float32, in which ids travel, has no such number; expected whole numbers up to 16777216",
            ));
        }
        all.push(Found {
            shape: integers.shape().to_vec(),
            values: integers.iter().map(|v| *v as f32).collect(),
            integers: true,
            name,
        });
    }
    Ok(all)
}

/// An array if its elements have this type; else the type that they have.
fn typed<T: ReadableElement>(
    npz: &mut NpzReader<File>,
    name: &str,
) -> Result<Result<ArrayD<T>, String>, ReadNpzError> {
    match npz.by_name(name) {
        Ok(array) => Ok(Ok(array)),
        Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(d))) => Ok(Err(d.to_string())),
        Err(e) => Err(e),
    }
}

/// The graph's inputs from a file: one tensor each, or with one more leading axis that many items. Returns the items' number. Whole
/// numbers are taken where the input holds ids of a table, and there they must be rows of it.
pub fn inputs(path: &Path, graph: &Graph) -> Result<(Items, usize), Error> {
    let mut arrays = read_all(path)?;
    let bad = |message: String| Error::Input(format!("{}: {message}", path.display()));
    let mut found = Vec::new();
    let mut items: Option<usize> = None;
    for &id in graph.inputs() {
        let t = graph.tensor(id);
        let Some(i) = arrays.iter().position(|a| a.name == t.name) else {
            let names: Vec<&str> = arrays.iter().map(|a| a.name.as_str()).collect();
            return Err(bad(format!(
                "no array named `{}` (the model's input); it has {}",
                t.name,
                names.join(", ")
            )));
        };
        let Found {
            name,
            shape,
            values,
            integers,
        } = arrays.swap_remove(i);
        match graph.vocabulary(id) {
            None if integers => {
                return Err(bad(format!(
                    "array `{name}` holds integers; expected float32 ('<f4') or float64 ('<f8'): the model's input holds no ids"
                )));
            }
            Some(rows) => {
                let row = |v: f32| v >= 0.0 && v.fract() == 0.0 && (v as usize) < rows;
                if let Some((i, v)) = values.iter().enumerate().find(|(_, v)| !row(**v)) {
                    return Err(bad(format!(
                        "array `{name}` has {v} at element {i} (in row-major order); expected ids, whole numbers from 0 to {}",
                        rows - 1
                    )));
                }
            }
            None => {}
        }
        let n = if shape == t.shape {
            1
        } else if shape.len() == t.shape.len() + 1 && shape[1..] == t.shape && shape[0] > 0 {
            shape[0]
        } else {
            return Err(bad(format!(
                "array `{name}` has shape {shape:?}; the model's input has {:?}; expected that, or one more leading axis for several items",
                t.shape
            )));
        };
        if items.is_some_and(|m| m != n) {
            return Err(bad(format!(
                "array `{name}` holds {n} items, another input {}",
                items.unwrap_or(0)
            )));
        }
        items = Some(n);
        found.push((name, values));
    }
    if let Some(Found { name, .. }) = arrays.first() {
        return Err(bad(format!("array `{name}` is not an input of the model")));
    }
    Ok((found, items.unwrap_or(1)))
}

/// Writes arrays; the same arrays give the same bytes.
pub fn write(path: &Path, arrays: &Arrays) -> Result<(), Error> {
    let bad = |e: &dyn std::fmt::Display| Error::Input(format!("{}: can't write: {e}", path.display()));
    let file = File::create(path).map_err(|e| bad(&e))?;
    let mut npz = NpzWriter::new(file);
    for (name, shape, values) in arrays {
        let array = ArrayD::from_shape_vec(IxDyn(shape), values.clone()).map_err(|e| bad(&e))?;
        npz.add_array(name.as_str(), &array).map_err(|e| bad(&e))?;
    }
    npz.finish().map_err(|e| bad(&e))?;
    Ok(())
}
