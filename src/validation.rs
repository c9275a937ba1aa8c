//! `docs/validation.md`: every number from outside beside the simulated machine's, with its source and whether anything was fitted to it.

use crate::error::Error;
use meshloom_compiler::microbenchmarks::{self, Case, Clock, Kind, Point};
use meshloom_simulator::engine::{self, Options, Outcome};
use meshloom_simulator::program::Program;
use meshloom_simulator::{Machine, verify};
use rayon::prelude::*;

/// Runs a case on the reference engine, checks its results, and gives the point with its measured cycles.
pub fn measure(case: &Case, machine: &Machine) -> Result<Point, Error> {
    let run = |program: &Program| -> Result<Outcome, Error> {
        let options = Options {
            probes: case.probes.clone(),
            ..Options::default()
        };
        let machine = case.machine(machine);
        verify::verify(program, &machine).map_err(|all| {
            let (name, parameters) = (&case.point.name, &case.point.parameters);
            Error::Internal(format!("{name} ({parameters}): {}", all[0]))
        })?;
        Ok(engine::run(program, &machine, &options)?)
    };
    let outcome = run(&case.program)?;
    case.check(&outcome).map_err(Error::Internal)?;
    let without = match &case.clock {
        Clock::Beyond(program) => Some(run(program)?),
        Clock::Exchange => None,
    };
    Ok(Point {
        measured: case.measured(&outcome, without.as_ref()),
        ..case.point.clone()
    })
}

/// All points, in order.
pub fn points(machine: &Machine, quick: bool) -> Result<Vec<Point>, Error> {
    let results: Vec<_> = microbenchmarks::all(machine, quick)
        .par_iter()
        .map(|c| measure(c, machine))
        .collect();
    results.into_iter().collect()
}

/// The page.
pub fn page(machine: &Machine, quick: bool) -> Result<String, Error> {
    let points = points(machine, quick)?;
    let mut out = String::from(
        "# Validation\n\n\
         Numbers published by others beside what the reference engine measures on the machine of `machines/small.toml` (a mesh as wide as the \
         case needs). Made by `meshloom bench machine --out docs/validation.md`; a test holds every row to its tolerance.\n\n\
         *Predicted*: nothing was chosen to meet the number. *Fitted*: an instruction of that program's scalar code was chosen to meet this \
         one number; the other rows of the same program are then predictions. Nothing here was measured on hardware by us.\n",
    );
    let mut source = String::new();
    for p in &points {
        if p.source != source {
            source.clone_from(&p.source);
            out += &format!(
                "\n## {source}\n\n| what | sizes | published | ours | difference | tolerance | |\n|---|---|---:|---:|---:|---:|---|\n"
            );
        }
        let kind = if p.kind == Kind::Fitted {
            "fitted"
        } else {
            "predicted"
        };
        let miss = if p.holds() { "" } else { " **outside**" };
        let mut tolerance = Vec::new();
        if p.tolerance.cycles > 0.0 {
            tolerance.push(format!("{} cycles", p.tolerance.cycles));
        }
        if p.tolerance.share > 0.0 {
            tolerance.push(format!("{} %", (p.tolerance.share * 1000.0).round() / 10.0));
        }
        out += &format!(
            "| {} | {} | {:.1} | {} | {:+.2} % | {} | {kind}{miss} |\n",
            p.name,
            p.parameters,
            p.published,
            p.measured,
            100.0 * p.error(),
            tolerance.join(" + ")
        );
    }
    let held = points.iter().filter(|p| p.holds()).count();
    out += &format!("\n{held} of {} rows are within their tolerance.\n", points.len());
    Ok(out)
}
