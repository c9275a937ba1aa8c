//! The terminal table, as it is read.

mod common;

use common::*;
use meshloom_traces::table::{simulation, table};
use meshloom_traces::*;

#[test]
fn one_dense_run() {
    let m = machine("small", 32, 32);
    let report = report(1, vec![run(RunName::Dense, 0.0, &m, &mlp(), &dense())]);
    report.validate().unwrap();
    assert_eq!(report.comparison, None);
    insta::assert_snapshot!(table(&report));
}

/// Changes have a line of their own, as a part of load.
#[test]
fn several_stages() {
    let m = machine("small", 32, 32);
    let mut one = run(RunName::Dense, 0.0, &m, &mlp(), &dense());
    let (load, total) = (one.cycles.load, one.cycles.total);
    one.kernels.clear();
    let stage = |change, load, total| StageCycles {
        change,
        load,
        total,
        wall_seconds: 0.0,
    };
    one.cycles.stages = vec![stage(0, load - 1500, 1000), stage(1234, 266, total - 1000)];
    let report = report(1, vec![one]);
    report.validate().unwrap();
    let text = table(&report);
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| l.contains("load") || l.contains("changes"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn three_runs_of_one_machine() {
    let report = report(1, three_runs(&machine("small", 32, 32), 1));
    report.validate().unwrap();
    insta::assert_snapshot!(table(&report));
}

#[test]
fn two_machines_and_two_sparsities() {
    let mut runs = three_runs(&machine("small", 32, 32), 8);
    let mut wide = machine("small-64bit", 40, 32);
    wide.link.bits = 64;
    wide.energy = None;
    let kernels = mlp();
    runs.push(run(
        RunName::Dense,
        0.0,
        &wide,
        &kernels,
        &Story { items: 8, ..dense() },
    ));
    runs.push(run(
        RunName::Sparse,
        0.75,
        &wide,
        &kernels,
        &Story { items: 8, ..sparse() },
    ));
    let more = Story {
        total: 40_100,
        low: 9,
        high: 20,
        items: 8,
        ..sparse()
    };
    runs.push(run(RunName::Sparse, 0.875, &wide, &kernels[..6], &more));
    let last = runs.last_mut().unwrap().outputs.as_mut().unwrap();
    last.max_rel_error = f64::NAN;
    last.first_departing = Some("fc2.out".into());
    let report = report(8, runs);
    report.validate().unwrap();
    assert_eq!(report.comparisons.len(), 3);
    insta::assert_snapshot!(table(&report));
}

#[test]
fn a_report_without_runs_or_kernels() {
    let empty = report(1, vec![]);
    assert_eq!(table(&empty), "mlp  784-512-512-10   0.67 M parameters\n");
    assert_eq!(simulation(&empty), "");
    let bare = report(
        1,
        vec![run(RunName::Dense, 0.0, &machine("tiny", 4, 4), &[], &dense())],
    );
    bare.validate().unwrap();
    let text = table(&bare);
    assert!(
        text.contains("0 stages, 0 kernels") && !text.contains("slowest"),
        "{text}"
    );
}

#[test]
fn the_simulation_itself() {
    let report = report(1, three_runs(&machine("small", 32, 32), 1));
    insta::assert_snapshot!(simulation(&report), @r"
    simulated dense on small in 1.25 s with the reference engine, 117 M PE-cycles/s
    simulated sparse 75%, no skip on small in 1.25 s with the reference engine, 120 M PE-cycles/s
    simulated sparse 75%, skip on small in 1.25 s with the reference engine, 47.5 M PE-cycles/s
    ");
}

#[test]
fn the_shares_of_the_gap_add_up() {
    for run in three_runs(&machine("small", 32, 32), 1) {
        let gap = gap(&run).unwrap();
        assert!((gap.shares.iter().map(|s| s.1).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(gap.shares.is_sorted_by(|a, b| a.1 >= b.1));
        let k = run.kernels.iter().find(|k| k.name == gap.kernel).unwrap();
        // one lane: a multiply-add is a slot
        assert!((gap.multiply_adds - k.executed.mac as f64 / k.pe_cycles() as f64).abs() < 1e-12);
        let others = (k.pe_cycles() - k.executed.mac) as f64;
        let of = |name: &str| gap.shares.iter().find(|s| s.0 == name).map_or(0.0, |s| s.1);
        assert!((of("reduction") - k.slots.reduce as f64 / others).abs() < 1e-9);
        assert!((of("moves") - k.slots.moves as f64 / others).abs() < 1e-9);
        assert!((of("idle") - k.idle as f64 / others).abs() < 1e-9);
    }
}
