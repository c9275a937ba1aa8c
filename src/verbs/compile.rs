//! `meshloom compile`: what a pass makes of a model.

use super::{Common, print};
use meshloom::error::Error;
use meshloom::machines;
use meshloom_compiler::{Options, compile, passes, show};

/// Arguments of `compile`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  meshloom compile mlp --emit placement
  meshloom compile model.onnx --sparsity 0.75 --emit program")]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The pass whose result is printed (`meshloom list passes`).
    #[arg(long, value_name = "WHAT", default_value = "placement")]
    emit: String,
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    if !passes::PASSES.iter().any(|p| p.name == a.emit) {
        let names: Vec<&str> = passes::PASSES.iter().map(|p| p.name).collect();
        return Err(Error::Input(format!(
            "--emit {}: no such pass; there are {}",
            a.emit,
            names.join(", ")
        )));
    }
    let model = a.common.load()?;
    let sparse = a.common.sparse(&model)?;
    if sparse.len() > 1 {
        return Err(Error::Input("--sparsity: compile takes one value".into()));
    }
    let graph = sparse.first().map_or(&model.graph, |s| &s.graph);
    let inputs = a.common.inputs(&model)?;
    for name in &a.common.machine {
        let machine = machines::load(name, &a.common.set)?;
        let skip_zeros = !sparse.is_empty() && machine.skip.zero_weights;
        let options = Options {
            skip_zeros,
            ..a.common.options(inputs.items)
        };
        let compiled = compile(graph, &machine, &options, &inputs.arrays)?;
        print(&show(&compiled, graph, &machine, &a.emit).unwrap_or_default())?;
    }
    Ok(())
}
