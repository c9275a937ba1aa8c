//! `meshloom bench`: the simulated machine against published numbers, as docs/validation.md has them.

use super::print;
use meshloom::error::Error;
use meshloom::{machines, validation};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// Only points that take seconds.
    #[arg(long)]
    quick: bool,
    /// Write the page to this file (docs/validation.md in the repository) instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Collectives and local kernels against published cycles.
    Machine,
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    let What::Machine = a.what;
    let page = validation::page(&machines::load("small", &[])?, a.quick)?;
    match a.out {
        None => print(&page),
        Some(path) => {
            let aside = path.with_extension("partial");
            let bad = |e: std::io::Error| Error::Input(format!("--out {}: can't write: {e}", path.display()));
            std::fs::write(&aside, page).map_err(bad)?;
            std::fs::rename(&aside, &path).map_err(bad)
        }
    }
}
