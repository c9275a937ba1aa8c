//! The `meshloom` command: one file a verb.

mod verbs;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A simulation takes tens of megabytes and gives them back; the system's allocator returns them to the system each time, and touching them
/// again is about a fifth of a run.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A compiler and cycle-accurate numeric simulator for neural networks on a 2D mesh of processing elements.
///
/// MODEL is a built-in name with parameters (`mlp`, `mlp:layers=64-32-10`; see `meshloom list models`) or an .onnx file.
#[derive(Parser)]
#[command(name = "meshloom", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compile a model, simulate it, check its numbers and report: dense, sparse without skipping, sparse.
    Run(verbs::run::Arguments),
    /// Compile a model and print what a pass made of it.
    Compile(verbs::compile::Arguments),
    /// Count a model's FLOPs by several conventions, at any size; nothing is run.
    Flops(verbs::flops::Arguments),
    /// What there is: machines, models, kernels or passes.
    List(verbs::list::Arguments),
    /// Show a machine description, a model or a kernel by its name.
    Show(verbs::show::Arguments),
    /// Measure the simulated machine against published numbers, and the simulator itself.
    Bench(verbs::bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.verb {
        Verb::Run(a) => verbs::run::run(a),
        Verb::Compile(a) => verbs::compile::run(a),
        Verb::Flops(a) => verbs::flops::run(a),
        Verb::List(a) => verbs::list::run(a),
        Verb::Show(a) => verbs::show::run(a),
        Verb::Bench(a) => verbs::bench::run(a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = e.code();
            eprintln!("error: {e}");
            ExitCode::from(code)
        }
    }
}
