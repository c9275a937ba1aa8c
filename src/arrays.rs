//! Arrays in `.npz` files: inputs from the user, outputs of a run.

use crate::error::Error;
use meshloom_models::Graph;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, NpzWriter};
use std::fs::File;
use std::path::Path;

/// Named arrays with their shapes.
pub type Arrays = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Reads all arrays of a file; f32 and f64 are taken.
pub fn read(path: &Path) -> Result<Arrays, Error> {
    let bad = |message: String| Error::Input(format!("{}: {message}", path.display()));
    let file = File::open(path).map_err(|e| bad(format!("can't open it: {e}")))?;
    let mut npz = NpzReader::new(file).map_err(|e| bad(format!("not an .npz file: {e}")))?;
    let names = npz.names().map_err(|e| bad(format!("not an .npz file: {e}")))?;
    let mut all = Vec::new();
    for name in names {
        let single: Result<ArrayD<f32>, _> = npz.by_name(&name);
        let array = match single {
            Ok(a) => a,
            Err(_) => {
                let double: Result<ArrayD<f64>, _> = npz.by_name(&name);
                double.map_err(|e| bad(format!("array `{name}`: expected float32 or float64: {e}")))?.mapv(|v| v as f32)
            }
        };
        let shape = array.shape().to_vec();
        let values: Vec<f32> = array.iter().copied().collect();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(bad(format!("array `{name}` has {} at element {i}: inputs must be finite", values[i])));
        }
        all.push((name, shape, values));
    }
    Ok(all)
}

/// The graph's inputs from a file: one tensor each, or with one more leading axis that many items. Returns the items' number.
pub fn inputs(path: &Path, graph: &Graph) -> Result<(Vec<(String, Vec<f32>)>, usize), Error> {
    let mut arrays = read(path)?;
    let bad = |message: String| Error::Input(format!("{}: {message}", path.display()));
    let mut found = Vec::new();
    let mut items: Option<usize> = None;
    for &id in graph.inputs() {
        let t = graph.tensor(id);
        let Some(i) = arrays.iter().position(|(n, ..)| *n == t.name) else {
            let names: Vec<&str> = arrays.iter().map(|(n, ..)| n.as_str()).collect();
            return Err(bad(format!("no array named `{}` (the model's input); it has {}", t.name, names.join(", "))));
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
            return Err(bad(format!("array `{name}` holds {n} items, another input {}", items.unwrap_or(0))));
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
