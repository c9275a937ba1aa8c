//! Models by the command's `MODEL` argument: a built-in name with parameters, or the path of an ONNX file.

use crate::error::Error;
use meshloom_models::{Graph, builders, onnx};
use std::path::Path;

/// A model, and how it is named in reports.
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// Short name.
    pub name: String,
    /// Resolved parameters, or the file.
    pub source: String,
}

/// Loads a model. `batch` replaces the leading axis of its inputs.
pub fn load(spec: &str, batch: Option<usize>, seed: u64) -> Result<Model, Error> {
    if batch == Some(0) {
        return Err(Error::Input("--batch 0: a tensor has at least one sample".into()));
    }
    if spec.ends_with(".onnx") {
        let path = Path::new(spec);
        let graph = onnx::import(path, &onnx::ImportOptions { batch }).map_err(Error::input)?;
        let name = path
            .file_stem()
            .map_or("model".into(), |s| s.to_string_lossy().into_owned());
        let folder = path
            .parent()
            .and_then(|p| p.file_name())
            .map(|p| p.to_string_lossy().into_owned());
        // `resnet8/model.onnx` is better known by its folder
        let name = match folder {
            Some(folder) if name == "model" => folder,
            _ => name,
        };
        return Ok(Model {
            graph,
            name,
            source: spec.into(),
        });
    }
    if Path::new(spec).exists() {
        return Err(Error::Input(format!("{spec}: model files end in .onnx")));
    }
    let built = builders::builtin(spec, batch.unwrap_or_else(|| builders::default_batch(spec)), seed)
        .map_err(Error::input)?;
    let name = spec.split(':').next().unwrap_or(spec).to_string();
    Ok(Model {
        graph: built.graph,
        name,
        source: built.resolved,
    })
}
