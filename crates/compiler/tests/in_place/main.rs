//! Operators in place: over random shapes and machines both engines agree in everything, results are what f64 gives, and each column but
//! the first does what its neighbour does, a hop later.

mod bands;
mod operators;
mod products;
mod transformer;

use meshloom_compiler::in_place::Tensor;
use meshloom_simulator::engine::{self, Engine, Outcome, Paths, QueueKind, Sram};
use meshloom_simulator::program::*;
use meshloom_simulator::verify::verify;
use meshloom_simulator::{Expr, Machine};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::Cell;

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../../machines/small.toml");
    Machine::parse("machines/small.toml", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

fn mesh(width: u32, height: u32, more: &[&str]) -> Machine {
    let mesh = [format!("mesh.width={width}"), format!("mesh.height={height}")];
    let sets: Vec<String> = mesh
        .into_iter()
        .chain(more.iter().map(|s| s.to_string()))
        .collect();
    machine(&sets)
}

/// Well-mixed values from -0.5 to 0.5, of which `zeros` of 16 are 0.
fn values(n: usize, seed: u64, zeros: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s
    };
    (0..n)
        .map(|_| (next(), next()))
        .map(|(kept, value)| match kept >> 20 & 15 >= zeros {
            true => (value >> 40) as f32 / (1 << 24) as f32 - 0.5 + 1e-3,
            false => 0.0,
        })
        .collect()
}

/// SRAM of every PE, with a tensor's values in it.
fn placed(machine: &Machine, all: &[(&Tensor, &[f32])]) -> Sram {
    let mut sram = Sram::new(machine);
    for (tensor, values) in all {
        tensor.place(values, &mut sram);
    }
    sram
}

/// What both engines make of a program: the SRAM that is left, and the fast engine's outcome.
fn run(program: &Program, machine: &Machine, sram: &Sram) -> Result<(Sram, Outcome), String> {
    if let Err(all) = verify(program, machine) {
        return Err(all.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("\n"));
    }
    let one = |engine: Engine| -> Result<(Sram, Outcome), String> {
        let options = engine::Options {
            engine,
            max_cycles: Some(2_000_000),
            record: true,
            ..engine::Options::default()
        };
        let mut sram = sram.clone();
        let outcome = engine::run_on(program, machine, &options, &mut sram).map_err(|e| e.to_string())?;
        Ok((sram, outcome))
    };
    let (fast, reference) = (one(Engine::Fast)?, one(Engine::Reference)?);
    if fast.0 != reference.0 {
        return Err("the engines leave different SRAM".into());
    }
    let plain = |o: &Outcome| Outcome {
        engine: Engine::Reference,
        paths: Paths::default(),
        active_pe_cycles: 0,
        ..o.clone()
    };
    if plain(&fast.1) != plain(&reference.1) {
        return Err(format!("{:?}\nis not\n{:?}", fast.1, reference.1));
    }
    Ok(fast)
}

/// Of the runs of programs whose columns are copies of each other, how many the fast engine did with one column timed for all, and how many it
/// could have.
#[derive(Default)]
struct Timed {
    once: Cell<usize>,
    all: Cell<usize>,
}

impl Timed {
    fn add(&self, outcome: &Outcome, machine: &Machine) {
        if machine.mesh.width > 2 {
            self.all.set(self.all.get() + 1);
            self.once
                .set(self.once.get() + (outcome.paths.columns > 0) as usize);
        }
    }

    /// None was run again with each column by itself.
    fn each(&self) {
        let (once, all) = (self.once.get(), self.all.get());
        assert!(all > 0 && once == all, "{once} of {all}");
    }
}

/// What both engines make of a program whose columns are copies of each other, each a hop after the one before.
fn run_columns(
    timed: &Timed,
    program: &Program,
    machine: &Machine,
    sram: &Sram,
) -> Result<(Sram, Outcome), String> {
    alike(program, machine)?;
    let (sram, outcome) = run(program, machine, sram)?;
    shifted(&outcome, machine)?;
    timed.add(&outcome, machine);
    Ok((sram, outcome))
}

/// Holds results to what is wanted, relative to its standard deviation (or root mean square, where there is none): the bounds that kernels
/// are held to.
fn compare(got: &[f32], want: &[f64], ty: Ty) -> Result<(), String> {
    let most = if ty == Ty::F32 { 1e-5 } else { 2e-2 };
    if got.len() != want.len() {
        return Err(format!("{} results, not {}", got.len(), want.len()));
    }
    let n = want.len() as f64;
    let mean = want.iter().sum::<f64>() / n;
    let sd = (want.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
    let scale = if n < 16.0 || sd < 1e-9 { rms.max(1e-9) } else { sd };
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let e = (*g as f64 - w).abs() / scale;
        if e.is_nan() || e > most {
            return Err(format!("element {i} is {g}, not {w}: off by {e:.1e}"));
        }
    }
    Ok(())
}

/// The values as an engine has them.
fn rounded(ty: Ty, all: &[f32]) -> Vec<f64> {
    let one = |v: &f32| match ty {
        Ty::F32 => *v as f64,
        Ty::F16 => half::f16::from_f32(*v).to_f64(),
    };
    all.iter().map(one).collect()
}

/// Columns that hold tokens are copies of each other, and live by what comes from the west alone.
fn alike(program: &Program, machine: &Machine) -> Result<(), String> {
    let stage = &program.stages[0];
    let [region] = &stage.regions[..] else {
        return Err("not one region".into());
    };
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    if !stage.drains.is_empty()
        || stage
            .feeds
            .iter()
            .any(|f| f.epoch != 1 || f.side != meshloom_simulator::Side::West)
    {
        return Err("something else than weights from the west".into());
    }
    let columns = |l: &Lattice| l.places().map(|p| p.0).collect::<std::collections::BTreeSet<_>>();
    let all: std::collections::BTreeSet<u32> = (1..width).collect();
    for block in &region.blocks {
        if columns(&block.at) != all {
            return Err(format!("a block at {:?}", block.at));
        }
        for param in &block.params {
            for (x, y) in block.at.places() {
                if param.value.at(x as i64, y as i64) != param.value.at(1, y as i64) {
                    return Err(format!("parameter {} differs", param.name));
                }
            }
        }
        if block.tasks.iter().any(|t| t.trigger == Trigger::Start) {
            return Err("a task that starts by itself".into());
        }
    }
    // of each router beyond column 0 all routes with their numbers, but for the way east
    let router = |x: u32, y: u32| {
        let number = |e: &Expr| e.at(x as i64, y as i64);
        let here = region
            .routes
            .iter()
            .filter(|r| r.at.places().any(|p| p == (x, y)));
        let mut here: Vec<_> = here
            .map(|r| {
                let positions: Vec<_> = r
                    .positions
                    .iter()
                    .map(|p| {
                        let mut outputs = p.outputs.clone();
                        outputs.retain(|o| *o != Port::East);
                        (p.input, outputs, number(&p.hold))
                    })
                    .collect();
                let filters: Vec<_> = r
                    .filters
                    .iter()
                    .map(|f| (f.output, number(&f.first), number(&f.count), number(&f.period)))
                    .collect();
                let east = r.positions.iter().any(|p| p.outputs.contains(&Port::East));
                let west = r
                    .positions
                    .iter()
                    .any(|p| p.input == Port::West || p.outputs.contains(&Port::West));
                (r.color, positions, filters, east, west)
            })
            .collect();
        here.sort_by_key(|r| r.0);
        here
    };
    for y in 0..height {
        let first: Vec<_> = router(1, y);
        for x in 1..width {
            let here = router(x, y);
            if !here
                .iter()
                .zip(&first)
                .all(|(a, b)| (&a.0, &a.1, &a.2) == (&b.0, &b.1, &b.2))
                || here.len() != first.len()
            {
                return Err(format!("router ({x}, {y}) differs"));
            }
            let east: Vec<_> = here.iter().filter(|r| r.3).collect();
            let whole = east.iter().all(|r| r.1.len() == 1 && r.1[0].1 == [Port::Ramp]);
            if east.len() != (x + 1 < width) as usize || !whole || here.iter().filter(|r| r.4).count() != 1 {
                return Err(format!("router ({x}, {y}) leads elsewhere than east"));
            }
        }
    }
    Ok(())
}

/// In each column but the first everything comes one hop later than in the one before, but for weights at the routers of the first with
/// tokens: these alone wait there for all columns.
fn shifted(outcome: &Outcome, machine: &Machine) -> Result<(), String> {
    let (width, hop) = (machine.mesh.width, machine.router.hop_cycles as u64);
    let west = QueueKind::Router(Port::West);
    let column = |x: u32| {
        outcome
            .arrivals
            .iter()
            .filter(move |a| a.x == x && a.queue != west)
    };
    for x in 2..width {
        let later = (x - 1) as u64 * hop;
        if column(x).count() != column(1).count() {
            return Err(format!("column {x} has other queues than column 1"));
        }
        for (here, first) in column(x).zip(column(1)) {
            let same = (here.y, here.color, here.queue) == (first.y, first.color, first.queue);
            if !same
                || !here
                    .cycles
                    .iter()
                    .copied()
                    .eq(first.cycles.iter().map(|c| c + later))
            {
                return Err(format!("{here:?}\nis not {later} cycles after\n{first:?}"));
            }
        }
        for y in 0..machine.mesh.height {
            let pe = |x: u32| &outcome.pes[(y * width + x) as usize];
            let (here, first) = (pe(x), pe(1));
            let counts = (here.operations, here.slots) == (first.operations, first.slots);
            let times = here.last_busy == first.last_busy + later
                && here.first_busy == first.first_busy.map(|c| c + later)
                && here.first_send == first.first_send.map(|c| c + later)
                && here.last_write == first.last_write.map(|c| c + later);
            if !counts || !times || here.classes[..3] != first.classes[..3] {
                return Err(format!(
                    "PE ({x}, {y}): {here:?}\nis not {later} cycles after\n{first:?}"
                ));
            }
        }
    }
    Ok(())
}

/// Settings of a machine that change times, not results.
fn settings() -> impl Strategy<Value = Vec<String>> {
    let sets = (
        1u32..4,
        prop::bool::ANY,
        1u32..3,
        0usize..4,
        1u32..3,
        prop::bool::ANY,
        1u32..4,
    );
    sets.prop_map(|(depth, long, lanes, edge, input, moves, hop)| {
        // from one slow channel to one in each row
        let edge = ["20e9", "60e9", "220e9", "5e12"][edge];
        vec![
            format!("router.queue_depth={depth}"),
            format!("link.bits={}", if long { 64 } else { 32 }),
            format!("pe.lanes.f32={lanes}"),
            format!("edge.bits_per_second={edge}"),
            format!("pe.input_queue_depth={input}"),
            format!("router.hop_cycles={hop}"),
            format!("pe.moves_first={moves}"),
        ]
    })
}

/// Runs a property on so many cases, fewer where the compiler does not optimise.
fn over<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), String>) {
    let cases = if cfg!(debug_assertions) { cases / 8 } else { cases };
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    });
    let result = runner.run(&strategy, |case| check(case).map_err(TestCaseError::fail));
    result.unwrap_or_else(|e| panic!("{e}"));
}
