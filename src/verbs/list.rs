//! `meshloom list`: what there is.

use super::print;
use meshloom::error::Error;
use meshloom::machines;
use meshloom_compiler::{kernels, passes};
use meshloom_models::builders;

/// Arguments of `list`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to list.
    #[arg(value_enum)]
    what: What,
}

/// What can be listed.
#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Machine descriptions that come with the tool.
    Machines,
    /// Built-in models.
    Models,
    /// Kernels of the compiler.
    Kernels,
    /// Passes of the compiler, in order.
    Passes,
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    let rows: Vec<(String, String)> = match a.what {
        What::Machines => machines::BUILT_IN
            .iter()
            .map(|(name, _)| {
                let m = machines::load(name, &[])?;
                let about = format!(
                    "{}x{} PEs, {} GHz, {} KiB a PE",
                    m.mesh.width,
                    m.mesh.height,
                    m.clock_hz / 1e9,
                    m.pe.sram_bytes / 1024
                );
                Ok((name.to_string(), about))
            })
            .collect::<Result<_, Error>>()?,
        What::Models => builders::list()
            .iter()
            .map(|(n, about)| (n.to_string(), about.to_string()))
            .collect(),
        What::Kernels => kernels::list()
            .iter()
            .map(|(n, about)| (n.to_string(), about.to_string()))
            .collect(),
        What::Passes => passes::PASSES
            .iter()
            .map(|p| (p.name.to_string(), p.about.to_string()))
            .collect(),
    };
    let width = rows.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    print(
        &rows
            .iter()
            .map(|(n, about)| format!("{n:<width$}  {about}\n"))
            .collect::<String>(),
    )
}
