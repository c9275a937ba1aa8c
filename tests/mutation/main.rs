//! The path is real: every number that leaves the mesh is made by the routes, filters, switches, weights, descriptors, parameters and
//! operations that the compiler emitted, and by nothing beside them. For tiny models of every kernel each of these is corrupted, one at
//! a time ([`breed`]). The corrupted program must be refused, must fail, or must give other outputs. Corruptions that cannot change
//! anything are told apart beforehand, each by one of few reasons ([`Reason`]), and must indeed change nothing (`Surely`), or no
//! output, though other checks may notice them (`Perhaps`); only what waits keep in order may come out either way (`Timing`). The reasons
//! are read from the program alone: where wavelets go ([`traffic`]) and what each PE's code does ([`trace`]). What survives is counted in a snapshot, by kernel and reason. Names, on the other hand, have no effect at all.

mod breed;
mod change;
#[path = "../common/mod.rs"]
mod common;
mod trace;
mod traffic;

use breed::{Breeder, Mutant};
use common::{Model, comparable, kernels, residual, tiny};
use meshloom_simulator::engine::{self, Options, Outcome};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine, verify};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// At most this many mutants of one kind, taken at even distances.
const MOST: usize = 150;
/// Of the mutants without an excuse so many must be noticed, in percent.
const NOTICED: usize = 95;

/// Why a corruption changes no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It has no effect: were it noticed, the reason would be wrong.
    Surely(&'static str),
    /// No output depends on it: were they others, the reason would be wrong. But a check may notice it, such as one of addresses.
    Perhaps(&'static str),
    /// What is waited for may be there in time without the wait.
    Timing(&'static str),
}
use Reason::{Perhaps, Surely, Timing};

/// What leaves, bit for bit, without times and flags.
fn payloads(o: &Outcome) -> Vec<Vec<(u64, u8)>> {
    o.drains
        .iter()
        .map(|d| d.iter().map(|l| (l.wavelet.bits, l.wavelet.elements)).collect())
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Refused,
    Failed,
    Differs,
    Survived,
}

/// What became of a mutant, and the reason not to be noticed that it had beforehand.
fn fate(
    mutant: Mutant,
    breeder: &Breeder,
    original: &Program,
    machine: &Machine,
    expected: &[Vec<(u64, u8)>],
    max_cycles: u64,
) -> (Option<Reason>, Fate) {
    let mut first = None;
    let mut accepted = None;
    for way in mutant.ways {
        let mut program = original.clone();
        way(&mut program);
        if verify::verify(&program, machine).is_ok() {
            accepted = Some(program);
            break;
        }
        first.get_or_insert(program);
    }
    let program = accepted.as_ref().or(first.as_ref()).expect("a way to corrupt");
    let same = |changed| breeder.same(program, mutant.kind, changed);
    let excuse = mutant.excuse.or_else(|| same(mutant.changes.as_ref()?));
    let Some(program) = accepted else {
        return (excuse, Fate::Refused);
    };
    let options = Options {
        max_cycles: Some(max_cycles),
        ..Options::default()
    };
    let fate = match engine::run(&program, machine, &options) {
        Err(_) => Fate::Failed,
        Ok(o) if payloads(&o) != expected => Fate::Differs,
        Ok(_) => Fate::Survived,
    };
    (excuse, fate)
}

/// A kernel's mutants: a line for the table, what survived, and what is wrong.
fn trial(model: &Model, machine: &Machine) -> (String, BTreeMap<String, usize>, Vec<String>) {
    let compiled = model.compile(machine);
    let outcome = engine::run(&compiled.program, machine, &Options::default())
        .unwrap_or_else(|e| panic!("{}: {e}", model.name));
    let expected = payloads(&outcome);
    let mut breeder = Breeder::new(&compiled, machine);
    // at even distances, kind by kind
    let mut by_kind: BTreeMap<&str, Vec<Mutant>> = BTreeMap::new();
    let all = std::mem::take(&mut breeder.all);
    all.into_iter()
        .for_each(|m| by_kind.entry(m.kind).or_default().push(m));
    let bred: usize = by_kind.values().map(Vec::len).sum();
    let sample: Vec<Mutant> = by_kind
        .into_values()
        .flat_map(|all| {
            let step = all.len().div_ceil(MOST);
            all.into_iter().step_by(step).collect::<Vec<_>>()
        })
        .collect();
    let max = 3 * outcome.cycles + 5000;
    let fates: Vec<_> = sample
        .into_par_iter()
        .map(|m| {
            let (kind, what) = (m.kind, m.what.clone());
            let (excuse, fate) = fate(m, &breeder, &compiled.program, machine, &expected, max);
            (kind, what, excuse, fate)
        })
        .collect();
    let tried = fates.len();

    let mut counts = [0usize; 4];
    let mut survivors: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut excused = 0;
    for (kind, what, excuse, f) in fates {
        match (excuse, f) {
            (Some(Surely(why)), Fate::Survived) => {
                excused += 1;
                *survivors.entry(why.into()).or_default() += 1;
            }
            // refusing what would not matter is no error
            (Some(Surely(_)), Fate::Refused) => excused += 1,
            (Some(Perhaps(why)), Fate::Survived) => {
                excused += 1;
                *survivors.entry(format!("{why} (perhaps)")).or_default() += 1;
            }
            (Some(Timing(why)), Fate::Survived) => {
                excused += 1;
                *survivors.entry(format!("{why} (timing)")).or_default() += 1;
            }
            (Some(Surely(why)), f) | (Some(Perhaps(why)), f @ Fate::Differs) => wrong.push(format!(
                "{}: {kind}: {what}: {f:?}, though it is {why}",
                model.name
            )),
            (Some(Perhaps(_) | Timing(_)), f) => counts[f as usize] += 1,
            (None, f) => {
                counts[f as usize] += 1;
                if f == Fate::Survived {
                    *survivors.entry(format!("NO REASON: {}", kind)).or_default() += 1;
                    if std::env::var_os("SURVIVORS").is_some() {
                        println!("{}: {}: {}", model.name, kind, what);
                    }
                }
            }
        }
    }
    let [refused, failed, differs, survived] = counts;
    let total: usize = counts.iter().sum();
    if (total - survived) * 100 < NOTICED * total {
        wrong.push(format!(
            "{}: only {} of {total} mutants were noticed",
            model.name,
            total - survived
        ));
    }
    let line = format!(
        "{:<30} {bred:>5} {:>6} {refused:>8} {failed:>7} {differs:>8} {survived:>9} {excused:>8}",
        model.name, tried
    );
    (line, survivors, wrong)
}

#[test]
fn every_corruption_is_noticed() {
    let machine = tiny();
    let mut table = format!(
        "{:<30} {:>5} {:>6} {:>8} {:>7} {:>8} {:>9} {:>8}\n",
        "kernel", "bred", "tried", "refused", "failed", "differs", "survived", "excused"
    );
    let (mut why, mut shown) = (String::new(), String::new());
    let mut wrong = Vec::new();
    for model in kernels() {
        let (line, survivors, bad) = trial(&model, &machine);
        writeln!(table, "{}", line.trim_end()).expect("a string");
        writeln!(shown, "{}", model.name).expect("a string");
        for (category, n) in survivors {
            writeln!(why, "{:<30} {n:>5} {category}", model.name).expect("a string");
            // numbers follow every change of the compiler; the categories should not
            writeln!(shown, "  {category}").expect("a string");
        }
        wrong.extend(bad);
    }
    println!("{table}\n{why}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    insta::with_settings!({snapshot_path => "../snapshots"}, {
        insta::assert_snapshot!("survivors", shown);
    });
}

/// The program with all names replaced by numbers, so that nothing of them is left.
fn nameless(program: &Program) -> Program {
    fn expr(e: &Expr) -> Expr {
        let of = |e: &Expr| Box::new(expr(e));
        match e {
            Expr::Const(_) | Expr::X | Expr::Y => e.clone(),
            Expr::Add(a, b) => Expr::Add(of(a), of(b)),
            Expr::Sub(a, b) => Expr::Sub(of(a), of(b)),
            Expr::Mul(a, b) => Expr::Mul(of(a), of(b)),
            Expr::Min(a, b) => Expr::Min(of(a), of(b)),
            Expr::Max(a, b) => Expr::Max(of(a), of(b)),
            Expr::Div(a, n) => Expr::Div(of(a), *n),
            Expr::Mod(a, n) => Expr::Mod(of(a), *n),
            Expr::Table(t) => Expr::Table(Arc::new(meshloom_simulator::Table {
                name: String::new(),
                ..(**t).clone()
            })),
        }
    }
    let mut p = program.clone();
    p.name.clear();
    for region in p.stages.iter_mut().flat_map(|s| &mut s.regions) {
        region.name.clear();
        for route in &mut region.routes {
            route.stream.clear();
            route.positions.iter_mut().for_each(|p| p.hold = expr(&p.hold));
            route
                .filters
                .iter_mut()
                .flat_map(|f| [&mut f.first, &mut f.count, &mut f.period])
                .for_each(|e| *e = expr(e));
        }
        for block in &mut region.blocks {
            block.labels.clear();
            block.memory.iter_mut().for_each(|b| b.name.clear());
            block.tasks.iter_mut().for_each(|t| t.name.clear());
            for param in &mut block.params {
                param.name.clear();
                param.value = expr(&param.value);
            }
        }
    }
    for stage in &mut p.stages {
        stage.name.clear();
        stage.feeds.iter_mut().for_each(|f| f.name.clear());
        stage.drains.iter_mut().for_each(|d| d.name.clear());
    }
    p
}

#[test]
fn names_have_no_effect() {
    let machine = tiny();
    let wide = common::small(&["mesh.width=24", "mesh.height=6"]);
    let all = kernels()
        .into_iter()
        .map(|m| (m, &machine))
        .chain([(residual(), &wide)]);
    for (model, machine) in all {
        let program = model.compile(machine).program;
        let run = |p: &Program| engine::run(p, machine, &Options::default()).map(comparable);
        let stripped = nameless(&program);
        assert_ne!(stripped, program);
        let text = format!("{stripped:?}");
        assert!(
            !text.contains("name: \"x") && !text.contains("weights"),
            "{}: a name is left",
            model.name
        );
        assert!(run(&stripped) == run(&program), "{}", model.name);
    }
}
