//! The invariants of a report: what `docs/report.md` promises to add up, adds up.

use crate::report::{Kernel, Operations, Report, Run, RunName, SCHEMA, StageCycles, compare, headline};

/// An invariant of `docs/report.md` that a report violates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Violation {
    /// Where: a field, with its run and kernel.
    pub place: String,
    /// What does not hold, with the numbers.
    pub message: String,
}

/// Tells a violation of a field of something that `self` names.
struct At<'a>(&'a str);

impl At<'_> {
    fn holds(&self, holds: bool, field: &str, message: impl FnOnce() -> String) -> Result<(), Violation> {
        if holds {
            return Ok(());
        }
        let place = [self.0, field]
            .iter()
            .filter(|s| !s.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(": ");
        Err(Violation {
            place,
            message: message(),
        })
    }

    fn near(&self, field: &str, found: f64, expected: f64) -> Result<(), Violation> {
        let close = (found - expected).abs() <= 1e-9 * expected.abs().max(found.abs());
        self.holds(close, field, || format!("{found} instead of {expected}"))
    }

    fn within(&self, field: &str, x: f64, low: f64, high: f64) -> Result<(), Violation> {
        // a quotient of exact counts may round up past its bound
        let inside = x >= low * (1.0 - 1e-12) && x <= high * (1.0 + 1e-12);
        self.holds(inside, field, || match high {
            f64::INFINITY | f64::MAX => format!("{x} is not a number of at least {low}"),
            _ => format!("{x} is not from {low} to {high}"),
        })
    }
}

pub(crate) fn validate(report: &Report) -> Result<(), Violation> {
    let at = At("");
    at.holds(report.schema == SCHEMA, "schema", || {
        format!("`{}` instead of `{SCHEMA}`", report.schema)
    })?;
    at.holds(report.batch > 0, "batch", || "0".into())?;
    at.holds(report.items > 0, "items", || "0".into())?;
    at.holds(
        report.model.nonzeros <= report.model.parameters,
        "model.nonzeros",
        || {
            format!(
                "{} of {} parameters",
                report.model.nonzeros, report.model.parameters
            )
        },
    )?;
    for (i, run) in report.runs.iter().enumerate() {
        let same = |r: &Run| r.name == run.name && r.machine == run.machine && r.sparsity == run.sparsity;
        let name = format!(
            "run {} on {}, sparsity {}",
            run.name, run.machine.name, run.sparsity
        );
        let at = At(&name);
        at.holds(!report.runs[..i].iter().any(same), "", || {
            "it is there twice".into()
        })?;
        validate_run(&at, run, report.items)?;
    }
    let comparisons = compare(&report.runs);
    at.holds(report.comparisons == comparisons, "comparisons", || {
        "not what the runs give".into()
    })?;
    at.holds(report.comparison == headline(&comparisons), "comparison", || {
        "not what the runs give".into()
    })
}

fn validate_run(at: &At, run: &Run, items: u64) -> Result<(), Violation> {
    let Run {
        cycles,
        flops,
        machine,
        ..
    } = run;
    let pes = machine.width as u64 * machine.height as u64;
    at.holds(pes > 0, "machine", || {
        format!("a mesh of {}x{}", machine.width, machine.height)
    })?;
    at.within("machine.clock_hz", machine.clock_hz, f64::MIN_POSITIVE, f64::MAX)?;
    at.within("sparsity", run.sparsity, 0.0, 1.0)?;

    at.holds(cycles.total > 0, "cycles.total", || "0".into())?;
    at.holds(cycles.first_output <= cycles.total, "cycles.first_output", || {
        format!("{} is after the end, {}", cycles.first_output, cycles.total)
    })?;
    at.holds(
        cycles.interval.is_some() == (items > 1),
        "cycles.interval",
        || format!("{:?} with {items} items", cycles.interval),
    )?;
    if let Some(interval) = cycles.interval {
        at.within("cycles.interval", interval, 0.0, cycles.total as f64)?;
    }
    if !cycles.stages.is_empty() {
        let sum = |f: fn(&StageCycles) -> u64| cycles.stages.iter().map(f).sum::<u64>();
        let (load, total) = (sum(|s| s.change + s.load), sum(|s| s.total));
        at.holds(
            (load, total) == (cycles.load, cycles.total),
            "cycles.stages",
            || {
                format!(
                    "they add up to {load} + {total} instead of {} + {}",
                    cycles.load, cycles.total
                )
            },
        )?;
    }
    at.near("seconds", run.seconds, cycles.total as f64 / machine.clock_hz)?;

    let (dense, theoretical, executed) = (&flops.dense, &flops.theoretical, &flops.executed);
    for (class, d, t) in [
        ("mac", dense.mac, theoretical.mac),
        ("mac_act", dense.mac_act, theoretical.mac_act),
    ] {
        at.holds(t <= d, "flops.theoretical", || {
            format!("{class} {t} is more than dense {d}")
        })?;
    }
    at.holds(flops.published >= dense.mac, "flops.published", || {
        format!("{} is less than dense mac {}", flops.published, dense.mac)
    })?;
    let (found, expected) = (executed.mac, theoretical.mac);
    match run.name {
        RunName::Dense | RunName::Sparse => at.holds(found == expected, "flops.executed", || {
            format!("mac {found} is not exactly theoretical mac {expected}")
        })?,
        RunName::SparseNoSkip => at.holds(found >= expected, "flops.executed", || {
            format!("mac {found} is less than theoretical mac {expected}")
        })?,
    }

    at.within("utilisation", run.utilisation, 0.0, 1.0)?;
    at.within("utilisation_in_use", run.utilisation_in_use, run.utilisation, 1.0)?;
    let lanes = run.lanes();
    at.holds(
        lanes.is_some() == (executed.multiply_adds() > 0),
        "utilisation",
        || {
            format!(
                "{} with {} multiply-adds executed",
                run.utilisation,
                executed.multiply_adds()
            )
        },
    )?;
    if let Some(lanes) = lanes {
        let whole = lanes.round() >= 1.0 && (lanes - lanes.round()).abs() <= 1e-9 * lanes;
        at.holds(whole, "utilisation", || {
            format!("{} means {lanes} lanes", run.utilisation)
        })?;
    }
    at.within("imbalance", run.imbalance, 1.0, f64::MAX)?;
    if let Some(joules) = run.energy_joules {
        at.within("energy_joules", joules, 0.0, f64::MAX)?;
    }
    if let Some(o) = &run.outputs {
        for (field, x) in [
            ("outputs.max_abs_error", o.max_abs_error),
            ("outputs.max_rel_error", o.max_rel_error),
        ] {
            at.holds(x.is_nan() || x >= 0.0, field, || format!("{x} is negative"))?;
            at.holds(x.is_finite() || o.first_departing.is_some(), field, || {
                format!("{x}, and yet no tensor departs")
            })?;
        }
    }
    at.within("wall_seconds", run.wall_seconds, 0.0, f64::MAX)?;
    let rate = match run.wall_seconds {
        0.0 => 0.0,
        wall => pes as f64 * (cycles.load + cycles.total) as f64 / wall,
    };
    at.near("pe_cycles_per_second", run.pe_cycles_per_second, rate)?;
    let p = &run.paths;
    for (field, parts) in [
        (
            "paths.cycles_*",
            vec![p.cycles_single, p.cycles_leap, p.cycles_ahead, p.cycles_columns],
        ),
        ("paths.hops_*", vec![p.hops_single, p.hops_flow, p.hops_columns]),
    ] {
        let sum: f64 = parts.iter().sum();
        let shares = parts.iter().all(|x| (0.0..=1.0).contains(x));
        at.holds(shares && (sum == 0.0 || (sum - 1.0).abs() < 1e-9), field, || {
            format!("{parts:?} are not shares of a whole")
        })?;
    }
    validate_kernels(at, run, lanes)
}

fn validate_kernels(at: &At, run: &Run, lanes: Option<f64>) -> Result<(), Violation> {
    let mut sum = Operations::default();
    for (i, k) in run.kernels.iter().enumerate() {
        let name = format!("{}: kernel {}", at.0, k.name);
        let at = At(&name);
        at.holds(
            k.region.fits(run.machine.width, run.machine.height),
            "region",
            || format!("{} is not on the mesh", k.region),
        )?;
        let Some(total) = run.cycles.of_stage(k.stage) else {
            return at.holds(false, "stage", || format!("there is no stage {}", k.stage));
        };
        let (found, expected) = (k.pe_cycles(), k.region.area() * total);
        at.holds(
            found == expected,
            "busy + wait_input + wait_room + launch + idle",
            || {
                format!(
                    "{found} instead of {} PEs x {total} cycles = {expected}",
                    k.region.area()
                )
            },
        )?;
        at.within("imbalance", k.imbalance, 1.0, f64::MAX)?;
        at.holds(k.slots.total() == k.busy, "slots", || {
            format!("their sum {} is not busy = {}", k.slots.total(), k.busy)
        })?;
        at.holds(k.cycles <= total, "cycles", || format!("{} of {total}", k.cycles))?;
        let most = k.region.area() * k.cycles;
        at.holds(k.busy <= most, "busy", || {
            format!("{} of {} PEs x {} cycles", k.busy, k.region.area(), k.cycles)
        })?;
        if let Some(lanes) = lanes {
            let slots = k.executed.multiply_adds() as f64 / lanes.round();
            at.holds(slots <= k.busy as f64, "executed", || {
                format!("{slots} slots of multiply-adds in {} busy PE-cycles", k.busy)
            })?;
        }
        for other in &run.kernels[..i] {
            let shared = k.region.overlaps(&other.region);
            at.holds(!shared || k.stage != other.stage, "region", || {
                format!(
                    "{} overlaps {} of `{}` in stage {}",
                    k.region, other.region, other.name, k.stage
                )
            })?;
        }
        sum.mac += k.executed.mac;
        sum.mac_act += k.executed.mac_act;
        sum.reduce += k.executed.reduce;
        sum.other += k.executed.other;
    }
    let e = &run.flops.executed;
    let parts = [
        ("mac", sum.mac, e.mac),
        ("mac_act", sum.mac_act, e.mac_act),
        ("reduce", sum.reduce, e.reduce),
        ("other", sum.other, e.other),
    ];
    for (class, kernels, all) in parts {
        at.holds(run.kernels.is_empty() || kernels == all, "flops.executed", || {
            format!("{class} {all}, but its kernels executed {kernels}")
        })?;
    }
    Ok(())
}

impl Run {
    /// Lanes that `utilisation` was taken with: executed multiply-adds / (PEs x total x utilisation). Absent if no
    /// multiply-add was executed.
    pub(crate) fn lanes(&self) -> Option<f64> {
        let pes = self.machine.width as f64 * self.machine.height as f64;
        let slots = pes * self.cycles.total as f64 * self.utilisation;
        let multiply_adds = self.flops.executed.multiply_adds() as f64;
        (slots > 0.0 && multiply_adds > 0.0).then(|| multiply_adds / slots)
    }

    /// Cycles a PE that this kernel works, on average: busy or launching.
    pub(crate) fn work(&self, k: &Kernel) -> f64 {
        (k.busy + k.launch) as f64 / k.region.area().max(1) as f64
    }
}
