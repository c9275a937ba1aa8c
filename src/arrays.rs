//! Arrays in `.npz` files: inputs from the user, outputs of a run.

use crate::error::Error;
use meshloom_models::Graph;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpzError};
use std::fs::File;
use std::path::Path;

/// Named arrays with their shapes.
pub type Arrays = Vec<(String, Vec<usize>, Vec<f32>)>;

/// All items of each input, one after another, by the input's name.
pub type Items = Vec<(String, Vec<f32>)>;

/// Reads all arrays of a file; f32 and f64 are taken.
pub fn read(path: &Path) -> Result<Arrays, Error> {
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
        let single: Result<ArrayD<f32>, _> = npz.by_name(&name);
        let array = match single {
            Ok(a) => a.mapv(f64::from),
            Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => match npz.by_name(&name) {
                Ok(double) => double,
                Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(d))) => {
                    let found = d.to_string();
                    return Err(bad(format!(
                        "array `{name}` has the type {found}; expected float32 ('<f4') or float64 ('<f8')"
                    )));
                }
                Err(e) => return Err(bad(format!("array `{name}` can't be read: {e}"))),
            },
            Err(e) => return Err(bad(format!("array `{name}` can't be read: {e}"))),
        };
        let shape = array.shape().to_vec();
        if let Some((i, v)) = array.iter().enumerate().find(|(_, v)| !(**v as f32).is_finite()) {
            let (v, why) = (
                *v,
                if v.is_finite() {
                    "beyond float32"
                } else {
                    "inputs must be finite"
                },
            );
            return Err(bad(format!(
                "array `{name}` has {v:?} at element {i} (in row-major order): {why}"
            )));
        }
        let values: Vec<f32> = array.iter().map(|v| *v as f32).collect();
        all.push((name, shape, values));
    }
    Ok(all)
}

/// The graph's inputs from a file: one tensor each, or with one more leading axis that many items. Returns the items' number.
pub fn inputs(path: &Path, graph: &Graph) -> Result<(Items, usize), Error> {
    let mut arrays = read(path)?;
    let bad = |message: String| Error::Input(format!("{}: {message}", path.display()));
    let mut found = Vec::new();
    let mut items: Option<usize> = None;
    for &id in graph.inputs() {
        let t = graph.tensor(id);
        let Some(i) = arrays.iter().position(|(n, ..)| *n == t.name) else {
            let names: Vec<&str> = arrays.iter().map(|(n, ..)| n.as_str()).collect();
            return Err(bad(format!(
                "no array named `{}` (the model's input); it has {}",
                t.name,
                names.join(", ")
            )));
        };
        let (name, shape, values) = arrays.swap_remove(i);
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
    if let Some((name, ..)) = arrays.first() {
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
