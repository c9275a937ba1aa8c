//! The figures of a run, their sums, and the file.

mod common;

use common::*;
use meshloom_simulator::change::Change;
use meshloom_simulator::engine::{Landed, Outcome, PeCounters, StageOutcome};
use meshloom_traces::*;

fn input<'a>(
    machine: &'a meshloom_simulator::Machine,
    kernels: &'a [KernelRegion],
    items: u64,
) -> RunInput<'a> {
    RunInput {
        name: RunName::SparseNoSkip,
        machine,
        engine: "fast",
        sparsity: 0.5,
        lanes: 2,
        pes_in_use: kernels.iter().map(|k| k.rect.area()).sum(),
        kernels,
        output_drains: &[0, 1],
        items,
        dense: Operations::default(),
        theoretical: Operations::default(),
        published: 0,
        peak_pe_bytes: 100,
        outputs: None,
        wall_seconds: 0.5,
        peak_memory_bytes: None,
        stage_seconds: &[0.5],
    }
}

#[test]
fn the_file_is_of_the_form() {
    let mut runs = Vec::new();
    let m = machine("tiny", 4, 2);
    let kernels = [kernel("fc", "matmul", 0, 0, 3, 2)];
    for (name, sparsity) in [(RunName::Dense, 0.0), (RunName::Sparse, 0.75)] {
        runs.push(run(
            name,
            sparsity,
            &m,
            &kernels,
            &Story {
                total: 400,
                load: 100,
                items: 4,
                ..dense()
            },
        ));
    }
    let report = report(4, runs);
    report.validate().unwrap();
    insta::assert_snapshot!(report.to_json());
    let back = Report::from_json("report.json", &report.to_json()).unwrap();
    assert_eq!(back, report);
}

#[test]
fn other_files_are_refused() {
    let error = |text: &str| Report::from_json("r.json", text).unwrap_err().to_string();
    let other = error(r#"{"schema": "meshloom.report/2"}"#);
    assert_eq!(
        other,
        "r.json: the schema is `meshloom.report/2`, expected `meshloom.report/1`"
    );
    assert_eq!(
        error("[]"),
        "r.json: not a report: invalid length 0, expected struct Head with 1 element at line 1 column 2"
    );
    assert!(error(r#"{"schema": "meshloom.report/1"}"#).contains("missing field `model`"));
}

#[test]
fn an_error_that_is_not_finite_survives_the_file() {
    let mut r = report(1, three_runs(&machine("small", 32, 32), 1));
    let o = r.runs[0].outputs.as_mut().unwrap();
    o.max_rel_error = f64::INFINITY;
    assert_eq!(
        r.validate().unwrap_err().to_string(),
        "run dense on small, sparsity 0: outputs.max_rel_error: inf, and yet no tensor departs"
    );
    r.runs[0].outputs.as_mut().unwrap().first_departing = Some("x".into());
    r.validate().unwrap();
    let back = Report::from_json("r", &r.to_json()).unwrap();
    assert!(back.runs[0].outputs.as_ref().unwrap().max_rel_error.is_nan());
    back.validate().unwrap();
}

#[test]
fn sums_hold_for_any_outcome() {
    let mut random = Random(7);
    for round in 0..200 {
        let (w, h) = (2 + random.below(12) as u32, 1 + random.below(12) as u32);
        let m = machine("any", w, h);
        let cut = 1 + random.below(w as u64 - 1) as u32;
        let kernels = [
            kernel("a", "conv", 0, 0, cut, h),
            kernel("b", "relayout", cut, 0, w - cut, h),
        ];
        let story = Story {
            load: random.below(5_000),
            total: 200 + random.below(100_000),
            other: [random.below(12), random.below(12), random.below(12)],
            low: random.below(20),
            high: 20 + random.below(35),
            items: 1 + random.below(9),
            seed: round,
        };
        let outcome = outcome(w, h, &kernels, &story);
        let run = count_run(&outcome, input(&m, &kernels, story.items)).unwrap();
        let report = report(story.items, vec![run]);
        report.validate().unwrap();
        let run = &report.runs[0];
        assert_eq!((run.cycles.load, run.cycles.total), (story.load, story.total));
        for k in &run.kernels {
            assert_eq!(k.pe_cycles(), k.region.area() * story.total);
        }
        let slots = run.utilisation * (w * h) as f64 * 2.0 * story.total as f64;
        assert!((slots - run.flops.executed.multiply_adds() as f64).abs() < 1e-6 * slots.max(1.0));
        assert_eq!(Report::from_json("r", &report.to_json()).unwrap(), report);
    }
}

#[test]
fn times_and_energy_by_hand() {
    let m = machine("tiny", 2, 1);
    let kernels = [kernel("a", "matmul", 0, 0, 1, 1)];
    let story = Story {
        load: 100,
        total: 1000,
        other: [0, 0, 0],
        low: 50,
        high: 50,
        items: 5,
        seed: 0,
    };
    let outcome = outcome(2, 1, &kernels, &story);
    let run = count_run(&outcome, input(&m, &kernels, 5)).unwrap();
    // the items end 50 cycles apart; the first wavelet of the first leaves 25 before its last, 7 earlier at the second drain
    assert_eq!(
        run.cycles,
        Cycles {
            load: 100,
            first_output: 1000 - 200 - 25 - 7,
            interval: Some(50.0),
            total: 1000,
            stages: vec![StageCycles {
                change: 0,
                load: 100,
                total: 1000,
                wall_seconds: 0.5,
            }],
        }
    );
    assert_eq!(run.kernels[0].cycles, (1100 - 10) - (100 + 20) + 1);
    assert_eq!(run.kernels[0].busy, 540);
    assert_eq!(run.utilisation, 500.0 / (2.0 * 2.0 * 1000.0));
    assert_eq!(run.utilisation_in_use, 500.0 / (2.0 * 1000.0));
    assert_eq!(run.imbalance, 1.0);
    assert_eq!(run.traffic.offchip_bytes, 8_192 * 4);
    let picojoules = 500.0 + 0.5 * (10.0 + 5.0) + 2.0 * 871_220.0 + 20.0 * 8_192.0 + 0.1 * 2.0 * 1100.0;
    assert!((run.energy_joules.unwrap() / (picojoules * 1e-12) - 1.0).abs() < 1e-12);
    assert_eq!(run.pe_cycles_per_second, 2.0 * 1100.0 / 0.5);
}

/// Two PEs: 100 cycles of load and 500 of work; a change of 50; 50 of load and 300 of work.
fn two_stages() -> Outcome {
    let pe = |classes, load_idle, mac, busy: (u64, u64)| PeCounters {
        classes,
        load_classes: [0, 0, 0, 0, load_idle],
        operations: [mac, 0, 0, 0],
        slots: [classes[0] - mac, mac, 0, 0, 0, 0],
        first_busy: (mac > 0).then_some(busy.0),
        last_busy: busy.1,
        ..PeCounters::default()
    };
    let stages = [
        StageOutcome {
            change: Change::default(),
            begin: 0,
            load_end: 100,
            end: 600,
            epochs: vec![0, 100],
            pes: vec![
                pe([250, 50, 0, 0, 300], 100, 200, (120, 500)),
                pe([300, 0, 0, 100, 200], 100, 200, (130, 520)),
            ]
            .into(),
        },
        StageOutcome {
            change: Change {
                barrier: 30,
                bytes: 60,
                enter: 15,
                write: 5,
            },
            begin: 650,
            load_end: 700,
            end: 1000,
            epochs: vec![650, 700],
            pes: vec![
                pe([120, 10, 0, 0, 220], 50, 100, (710, 960)),
                pe([0, 0, 0, 0, 350], 50, 0, (0, 0)),
            ]
            .into(),
        },
    ];
    let drain = |cycles: &[u64]| {
        let one = |cycle: &u64| Landed {
            cycle: *cycle,
            wavelet: Default::default(),
        };
        cycles.iter().map(one).collect()
    };
    Outcome {
        engine: meshloom_simulator::engine::Engine::Fast,
        cycles: 1000,
        pes: vec![
            pe([370, 60, 0, 0, 570], 200, 300, (120, 960)),
            pe([300, 0, 0, 100, 600], 200, 200, (130, 520)),
        ],
        stages: stages.to_vec(),
        drains: vec![drain(&[400, 500]), drain(&[850, 900, 940, 980])],
        probes: vec![],
        arrivals: vec![],
        wavelets: 10,
        hops: 20,
        edge_wavelets: 6,
        active_pe_cycles: 0,
        paths: Default::default(),
    }
}

#[test]
fn stages_by_hand() {
    let m = machine("tiny", 2, 1);
    let mut kernels = [
        kernel("a", "matmul", 0, 0, 2, 1),
        kernel("b", "matmul", 0, 0, 1, 1),
    ];
    kernels[1].stage = 1;
    let of = |kernels: &[KernelRegion], drains: &[usize]| {
        let input = RunInput {
            output_drains: drains,
            pes_in_use: 2,
            ..input(&m, kernels, 2)
        };
        count_run(&two_stages(), input)
    };
    let run = of(&kernels, &[1]).unwrap();
    // the time of the first stage is given, not that of the second
    let stage = |change, load, total, wall_seconds| StageCycles {
        change,
        load,
        total,
        wall_seconds,
    };
    assert_eq!(
        run.cycles,
        Cycles {
            load: 100 + 50 + 50,
            first_output: 850 - 200,
            interval: Some((980 - 900) as f64),
            total: 500 + 300,
            stages: vec![stage(0, 100, 500, 0.5), stage(50, 50, 300, 0.0)],
        }
    );
    // an output of the first stage, and one of both: the second item lies 150 cycles of load and change later than the clock says
    assert_eq!(of(&kernels, &[0]).unwrap().cycles.first_output, 300);
    let both = of(&kernels, &[0, 1]).unwrap().cycles;
    assert_eq!((both.first_output, both.interval), (300, Some(80.0)));
    // each kernel has what its PEs did in its stage
    let [a, b] = &run.kernels[..] else {
        panic!("two kernels")
    };
    assert_eq!((a.busy, a.launch, a.wait_input, a.idle), (550, 50, 100, 300));
    assert_eq!(
        (a.pe_cycles(), a.cycles, a.executed.mac),
        (2 * 500, 520 - 120 + 1, 400)
    );
    assert_eq!((b.busy, b.launch, b.idle, b.executed.mac), (120, 10, 170, 100));
    assert_eq!((b.pe_cycles(), b.cycles), (300, 960 - 710 + 1));
    assert_eq!(run.utilisation, 500.0 / (2.0 * 2.0 * 800.0));
    let good = report(2, vec![run]);
    good.validate().unwrap();
    assert_eq!(Report::from_json("r", &good.to_json()).unwrap(), good);

    let changes: [fn(&mut Run); 5] = [
        |r| r.cycles.stages[0].load += 1,
        |r| r.cycles.stages[1].change -= 1,
        |r| r.cycles.stages[1].total += 1,
        |r| r.kernels[1].stage = 2,
        |r| r.kernels[1].stage = 0,
    ];
    let mut all = String::new();
    for change in changes {
        let mut changed = good.clone();
        change(&mut changed.runs[0]);
        all += &format!("{}\n", changed.validate().unwrap_err());
    }
    let mut astray = kernels.clone();
    astray[1].stage = 2;
    all += &format!("{}\n", of(&astray, &[1]).unwrap_err());
    let wrong: [fn(&mut Outcome); 3] = [
        |o| o.stages[1].begin += 1,
        |o| o.stages[1].pes[0].classes[0] += 1,
        |o| o.pes[1].load_classes = [0, 0, 0, 1, 198],
    ];
    for change in wrong {
        let mut o = two_stages();
        change(&mut o);
        all += &format!("{}\n", count_run(&o, input(&m, &kernels[..1], 2)).unwrap_err());
    }
    insta::assert_snapshot!(all);
}

#[test]
fn imbalance_is_that_of_the_pe_with_the_most() {
    let m = machine("tiny", 4, 1);
    let kernels = [
        kernel("a", "matmul", 0, 0, 3, 1),
        kernel("b", "matmul", 3, 0, 1, 1),
    ];
    let story = Story {
        load: 0,
        total: 1000,
        other: [0, 0, 0],
        low: 0,
        high: 0,
        items: 1,
        seed: 0,
    };
    let mut outcome = outcome(4, 1, &kernels, &story);
    let one = |o: &Outcome| count_run(o, input(&m, &kernels, 1)).unwrap().imbalance;
    assert_eq!(one(&outcome), 1.0);
    // a PE without any is a helper: 30 over the mean of 30 and 10; that b's only PE has fewer changes nothing
    let pes = &mut outcome.stages[0].pes;
    pes[0].operations[0] = 20;
    pes[0].operations[1] = 10;
    pes[2].operations[0] = 10;
    pes[3].operations[0] = 29;
    assert_eq!(one(&outcome), 1.5);
}

#[test]
fn outcomes_that_do_not_fit_are_refused() {
    let m = machine("tiny", 2, 2);
    let kernels = [kernel("a", "matmul", 0, 0, 2, 1)];
    let story = || Story {
        load: 10,
        total: 1000,
        items: 2,
        ..sparse()
    };
    let good = || outcome(2, 2, &kernels, &story());
    let error = |o: &Outcome, i: RunInput| count_run(o, i).unwrap_err().to_string();
    let mut all = Vec::new();
    let mut o = good();
    o.pes.pop();
    all.push(error(&o, input(&m, &kernels, 2)));
    o = good();
    o.stages.clear();
    all.push(error(&o, input(&m, &kernels, 2)));
    o = good();
    o.pes[3].classes[4] -= 1;
    all.push(error(&o, input(&m, &kernels, 2)));
    o = good();
    o.pes[1].load_classes[0] += 1;
    all.push(error(&o, input(&m, &kernels, 2)));
    o = good();
    o.pes[2].load_classes = [1, 0, 0, 0, 9];
    all.push(error(&o, input(&m, &kernels, 2)));
    o = good();
    all.push(error(&o, input(&m, &[kernel("b", "relu", 1, 1, 2, 1)], 2)));
    all.push(error(&o, input(&m, &kernels, 3)));
    all.push(error(
        &o,
        RunInput {
            output_drains: &[2],
            ..input(&m, &kernels, 2)
        },
    ));
    all.push(error(
        &o,
        RunInput {
            output_drains: &[],
            ..input(&m, &kernels, 2)
        },
    ));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn comparisons() {
    let (a, b) = (machine("a", 32, 32), machine("b", 32, 40));
    let mut runs = three_runs(&a, 1);
    runs.extend(
        three_runs(&b, 1)
            .into_iter()
            .filter(|r| r.name != RunName::SparseNoSkip),
    );
    let all = compare(&runs);
    assert_eq!(all.len(), 2);
    let c = &all[0];
    assert_eq!((c.machine.as_str(), c.sparsity), ("a", 0.75));
    assert_eq!(c.speedup, 118_204.0 / 51_020.0);
    assert_eq!(c.speedup_with_load, (118_204.0 + 24_310.0) / (51_020.0 + 7_007.0));
    assert_eq!(c.speedup_no_skip, Some(118_204.0 / 121_950.0));
    assert!((c.theoretical_speedup - 4.0).abs() < 1e-6);
    assert_eq!(all[1].speedup_no_skip, None);
    // without a dense run there is nothing to compare with
    assert!(compare(&runs[1..3]).is_empty());
    // a sparse run of sparsity 0 is compared, but does not stand for the report
    runs.truncate(1);
    runs.push(run(RunName::Sparse, 0.0, &a, &mlp(), &dense()));
    let r = report(1, runs);
    assert_eq!((r.comparisons.len(), r.comparison.clone()), (1, None));
    r.validate().unwrap();
}

#[test]
fn every_figure_that_is_changed_is_noticed() {
    let good = report(4, three_runs(&machine("small", 32, 32), 4));
    good.validate().unwrap();
    type Change = (&'static str, fn(&mut Report));
    let changes: [Change; 28] = [
        ("schema", |r| r.schema.push('x')),
        ("items", |r| r.items = 0),
        ("nonzeros", |r| r.model.nonzeros += 1),
        ("twice", |r| r.runs.push(r.runs[0].clone())),
        ("sparsity", |r| r.runs[1].sparsity = f64::NAN),
        ("seconds", |r| r.runs[0].seconds *= 1.001),
        ("total", |r| r.runs[0].cycles.total += 1),
        ("first output", |r| r.runs[0].cycles.first_output = 1 << 40),
        ("interval", |r| r.runs[0].cycles.interval = None),
        ("load", |r| r.runs[2].cycles.load += 1),
        ("theoretical", |r| r.runs[0].flops.theoretical.mac += 1),
        ("published", |r| r.runs[0].flops.published = 0),
        ("executed, dense", |r| r.runs[0].flops.executed.mac += 1),
        ("executed, no skip", |r| r.runs[1].flops.executed.mac = 1),
        ("executed, other", |r| r.runs[1].flops.executed.other += 1),
        ("utilisation", |r| r.runs[0].utilisation *= 1.1),
        ("in use", |r| r.runs[0].utilisation_in_use = 0.0),
        ("imbalance", |r| r.runs[0].imbalance = 0.9),
        ("energy", |r| r.runs[0].energy_joules = Some(f64::NAN)),
        ("rate", |r| r.runs[0].pe_cycles_per_second *= 2.0),
        ("class", |r| r.runs[2].kernels[1].idle += 1),
        ("classes", |r| {
            let k = &mut r.runs[2].kernels[1];
            k.idle += std::mem::take(&mut k.busy);
        }),
        ("span", |r| r.runs[2].kernels[1].cycles = 1),
        ("too long", |r| r.runs[2].kernels[1].cycles = 1 << 40),
        ("off the mesh", |r| r.runs[2].kernels[6].region.x += 1),
        ("overlap", |r| r.runs[2].kernels[6].region.x -= 1),
        ("comparison", |r| r.comparison = None),
        ("comparisons", |r| r.comparisons[0].speedup += 0.1),
    ];
    let mut all = String::new();
    for (what, change) in changes {
        let mut changed = good.clone();
        change(&mut changed);
        match changed.validate() {
            Ok(()) => panic!("{what}: not noticed"),
            Err(violation) => all += &format!("{what} -> {violation}\n"),
        }
    }
    insta::assert_snapshot!(all);
}
