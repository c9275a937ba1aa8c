//! The machine against numbers from outside: every microbenchmark's cycles on the reference engine, and its results, exactly.

use meshloom_compiler::microbenchmarks::{self, Case, Clock, Point};
use meshloom_simulator::engine::{self, Options, Outcome, Visit};
use meshloom_simulator::program::Program;
use meshloom_simulator::{Machine, verify};

fn machine() -> Machine {
    let file = "machines/small.toml";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Machine::parse(file, &text, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn run(case: &Case, program: &Program, machine: &Machine) -> Result<Outcome, String> {
    let options = Options {
        probes: case.probes.clone(),
        ..Options::default()
    };
    let machine = case.machine(machine);
    let of = |e: &dyn std::fmt::Display| format!("{} ({}): {e}", case.point.name, case.point.parameters);
    verify::verify(program, &machine).map_err(|all| of(&all[0]))?;
    engine::run(program, &machine, &options).map_err(|e| of(&e))
}

/// Runs a case and checks its results.
fn measure(case: &Case, machine: &Machine) -> Result<Point, String> {
    let outcome = run(case, &case.program, machine)?;
    case.check(&outcome)?;
    let without = match &case.clock {
        Clock::Beyond(program) => Some(run(case, program, machine)?),
        Clock::Exchange => None,
    };
    Ok(Point {
        measured: case.measured(&outcome, without.as_ref()),
        ..case.point.clone()
    })
}

/// One line of the table.
fn line(p: &Point) -> String {
    let verdict = if p.holds() {
        ""
    } else {
        "  <-- outside its tolerance"
    };
    format!(
        "{:17} {:52} {:?} {:>10.1} {:>9} {:>+7.2} %{verdict}",
        p.name,
        p.parameters,
        p.kind,
        p.published,
        p.measured,
        100.0 * p.error()
    )
}

#[test]
fn cycles_agree_with_published_ones() {
    let machine = machine();
    // optimised builds run everything
    let cases = microbenchmarks::all(&machine, cfg!(debug_assertions));
    let points: Result<Vec<Point>, String> = cases.iter().map(|c| measure(c, &machine)).collect();
    let points = points.unwrap_or_else(|e| panic!("{e}"));
    points.iter().for_each(|p| println!("{}", line(p)));
    let wrong: Vec<String> = points.iter().filter(|p| !p.holds()).map(line).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} points:\n{}",
        wrong.len(),
        points.len(),
        wrong.join("\n")
    );
}

#[test]
fn results_do_not_depend_on_which_pes_are_visited_or_when() {
    let machine = machine();
    let small = |c: &&Case| c.mesh.0 <= 16 && c.point.published < 1e4;
    for case in microbenchmarks::all(&machine, true).iter().filter(small) {
        let run = |visit| {
            let options = Options {
                probes: case.probes.clone(),
                visit,
                ..Options::default()
            };
            let outcome = engine::run(&case.program, &case.machine(&machine), &options);
            outcome.map(|o| Outcome {
                active_pe_cycles: 0,
                paths: Default::default(),
                ..o
            })
        };
        let active = run(Visit::Active);
        for visit in [Visit::All, Visit::Shuffled(1), Visit::Shuffled(77)] {
            assert!(
                run(visit) == active,
                "{} ({}): {visit:?}",
                case.point.name,
                case.point.parameters
            );
        }
    }
}
