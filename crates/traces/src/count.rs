//! From an engine's counters to the figures of a run. Every figure is a count or a quotient of counts; none is a
//! remainder. `docs/report.md` defines them.

use crate::report::{
    Cycles, Flops, Kernel, MachineSummary, Memory, Operations, Outputs, Paths, Rect, Run, RunName, Slots,
    StageCycles, Traffic,
};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Class, Outcome, PeCounters};

/// A kernel's place, and what the compiler knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRegion {
    /// Name of the graph's node.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Stage, from 0.
    pub stage: u32,
    /// Its PEs.
    pub rect: Rect,
    /// Cycles that the compiler's cost formula expected.
    pub estimated_cycles: u64,
}

/// What a run's figures need beside the engine's outcome.
#[derive(Clone, Debug)]
pub struct RunInput<'a> {
    /// Which run it is.
    pub name: RunName,
    /// The machine that the engine simulated.
    pub machine: &'a Machine,
    /// Name of the engine: `reference` or `fast`.
    pub engine: &'a str,
    /// Sparsity asked for, 0 to 1.
    pub sparsity: f64,
    /// Multiply-adds one step can do for the type of the model, see [`multiply_add_lanes`].
    pub lanes: u32,
    /// PEs that have code.
    pub pes_in_use: u64,
    /// The kernels, in the order of the program.
    pub kernels: &'a [KernelRegion],
    /// Indices into [`Outcome::drains`] of those that carry the model's outputs, an equal part of the wavelets an item.
    pub output_drains: &'a [usize],
    /// Items that streamed through.
    pub items: u64,
    /// Operations without sparsity.
    pub dense: Operations,
    /// Operations with this run's nonzero weights.
    pub theoretical: Operations,
    /// Multiply-adds with weights in the published convention.
    pub published: u64,
    /// Bytes in the fullest PE.
    pub peak_pe_bytes: u64,
    /// The comparison with the evaluator, if one was made.
    pub outputs: Option<Outputs>,
    /// Seconds that the simulation took.
    pub wall_seconds: f64,
    /// Most memory of the process so far, if it is known.
    pub peak_memory_bytes: Option<u64>,
    /// The same of each stage; may be left out, then they are 0.
    pub stage_seconds: &'a [f64],
}

/// An outcome that does not fit what was said about it, or whose counters contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// The outcome is of another mesh.
    #[error("the outcome has counters of {found} PEs, the machine has {expected}")]
    Mesh {
        /// PEs in the outcome.
        found: usize,
        /// PEs of the machine.
        expected: u64,
    },
    /// A stage's cycles are not in order, or there is no stage.
    #[error(
        "stage {stage} ended before its epoch 1 or began before the one before ended: there is no window to count in"
    )]
    NoInput {
        /// Its number.
        stage: usize,
    },
    /// A kernel's stage does not exist.
    #[error("kernel `{kernel}` is in stage {stage} of {stages}")]
    NoStage {
        /// The kernel.
        kernel: String,
        /// Its stage.
        stage: u32,
        /// Stages of the run.
        stages: usize,
    },
    /// A PE's classes do not add up to the cycles that passed.
    #[error("the classes of PE ({x}, {y}) {window} add up to {found} cycles instead of {expected}")]
    Classes {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// `of the whole run` or `of stage 1`, and `in load` for the cycles of changes and before epoch 1.
        window: String,
        /// Their sum.
        found: u64,
        /// Cycles that passed.
        expected: u64,
    },
    /// A PE had more cycles of a class before epoch 1 than in the whole run.
    #[error("PE ({x}, {y}) has {load} {class:?} cycles before epoch 1, but {all} in the whole run")]
    Backwards {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// The class.
        class: Class,
        /// Cycles of load.
        load: u64,
        /// Cycles of the whole run.
        all: u64,
    },
    /// A kernel is not on the mesh.
    #[error("kernel `{kernel}`: its region {rect} is not on the mesh")]
    Region {
        /// The kernel.
        kernel: String,
        /// Its region.
        rect: Rect,
    },
    /// A drain that was named does not exist.
    #[error("there is no drain {index}: the program has {drains}")]
    NoDrain {
        /// The index given.
        index: usize,
        /// Drains of the program.
        drains: usize,
    },
    /// No output left the mesh.
    #[error("no output left the mesh")]
    NoOutput,
    /// A drain's wavelets can't be shared out to the items.
    #[error("drain {index} has {wavelets} wavelets, not a multiple of {items} items")]
    Items {
        /// The drain.
        index: usize,
        /// Wavelets that left.
        wavelets: usize,
        /// Items.
        items: u64,
    },
}

/// Multiply-adds that one step can do: `f32`, `f16` (accumulated in f32), or `f16` accumulated in f16. Absent for
/// another type's name.
pub fn multiply_add_lanes(machine: &Machine, dtype: &str, f16_accumulate: bool) -> Option<u32> {
    match (dtype, f16_accumulate) {
        ("f32", _) => Some(machine.pe.lanes.f32),
        ("f16", false) => Some(machine.pe.lanes.f16),
        ("f16", true) => Some(machine.pe.lanes.f16_accumulate),
        _ => None,
    }
}

/// The figures of a run.
pub fn count_run(outcome: &Outcome, input: RunInput<'_>) -> Result<Run, CountError> {
    let mesh = &input.machine.mesh;
    let pes = mesh.width as u64 * mesh.height as u64;
    if outcome.pes.len() as u64 != pes {
        return Err(CountError::Mesh {
            found: outcome.pes.len(),
            expected: pes,
        });
    }
    check_stages(outcome, mesh.width)?;
    let load = outcome.load_before(outcome.cycles);
    let total = outcome.cycles - load;
    let seconds = input.stage_seconds.iter().copied().chain(std::iter::repeat(0.0));
    let stages = outcome
        .stages
        .iter()
        .zip(seconds)
        .map(|(s, wall_seconds)| StageCycles {
            change: s.change.cycles(),
            load: s.load_end - s.begin,
            total: s.end - s.load_end,
            wall_seconds,
        });

    let kernels: Vec<Kernel> = input
        .kernels
        .iter()
        .map(|k| {
            if !k.rect.fits(mesh.width, mesh.height) {
                return Err(CountError::Region {
                    kernel: k.name.clone(),
                    rect: k.rect,
                });
            }
            if k.stage as usize >= outcome.stages.len() {
                return Err(CountError::NoStage {
                    kernel: k.name.clone(),
                    stage: k.stage,
                    stages: outcome.stages.len(),
                });
            }
            Ok(count_kernel(outcome, mesh.width, k))
        })
        .collect::<Result<_, _>>()?;

    let mut executed = Operations::default();
    for pe in &outcome.pes {
        add_operations(&mut executed, pe);
    }
    let multiply_adds = executed.multiply_adds() as f64;
    let share = |pes: u64| {
        let slots = pes as f64 * input.lanes as f64 * total as f64;
        if slots == 0.0 { 0.0 } else { multiply_adds / slots }
    };
    let (first_output, interval) = output_times(outcome, input.output_drains, input.items)?;
    let wall = input.wall_seconds;
    Ok(Run {
        name: input.name,
        machine: MachineSummary {
            name: input.machine.name.clone(),
            width: mesh.width,
            height: mesh.height,
            clock_hz: input.machine.clock_hz,
        },
        sparsity: input.sparsity,
        engine: input.engine.into(),
        cycles: Cycles {
            load,
            first_output,
            interval,
            total,
            stages: stages.collect(),
        },
        seconds: total as f64 / input.machine.clock_hz,
        flops: Flops {
            dense: input.dense,
            theoretical: input.theoretical,
            executed,
            published: input.published,
        },
        utilisation: share(pes),
        utilisation_in_use: share(input.pes_in_use),
        imbalance: worst_imbalance(outcome, mesh.width, input.kernels),
        traffic: Traffic {
            wavelets: outcome.wavelets,
            hops: outcome.hops,
            offchip_bytes: outcome.edge_wavelets * (input.machine.link.bits as u64 / 8),
        },
        memory: Memory {
            peak_pe_bytes: input.peak_pe_bytes,
        },
        energy_joules: energy(outcome, input.machine, &executed),
        outputs: input.outputs,
        wall_seconds: wall,
        pe_cycles_per_second: if wall > 0.0 {
            pes as f64 * outcome.cycles as f64 / wall
        } else {
            0.0
        },
        peak_memory_bytes: input.peak_memory_bytes,
        paths: paths(&outcome.paths),
        kernels,
    })
}

/// Shares of work.
fn paths(of: &engine::Paths) -> Paths {
    let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    let cycles = of.single + of.leap + of.ahead + of.columns;
    let hops = of.hops_single + of.hops_flow + of.hops_columns;
    Paths {
        cycles_single: share(of.single, cycles),
        cycles_leap: share(of.leap, cycles),
        cycles_ahead: share(of.ahead, cycles),
        cycles_columns: share(of.columns, cycles),
        hops_single: share(of.hops_single, hops),
        hops_flow: share(of.hops_flow, hops),
        hops_columns: share(of.hops_columns, hops),
    }
}

/// Stages follow one another, and every PE has one class a cycle (rule M18), in load and after, in each stage and in all.
fn check_stages(outcome: &Outcome, width: u32) -> Result<(), CountError> {
    let mut before = 0;
    for (stage, s) in outcome.stages.iter().enumerate() {
        if s.begin != before + s.change.cycles() || s.load_end < s.begin || s.end < s.load_end {
            return Err(CountError::NoInput { stage });
        }
        before = s.end;
        let of = format!("of stage {stage}");
        check_classes(s.pes.iter(), width, s.load_end - s.begin, s.end - s.begin, &of)?;
    }
    if outcome.stages.is_empty() || before != outcome.cycles {
        let stage = outcome.stages.len();
        return Err(CountError::NoInput { stage });
    }
    let load = outcome.load_before(outcome.cycles);
    check_classes(
        outcome.pes.iter(),
        width,
        load,
        outcome.cycles,
        "of the whole run",
    )
}

fn check_classes<'a>(
    pes: impl Iterator<Item = &'a PeCounters>,
    width: u32,
    load: u64,
    all: u64,
    of: &str,
) -> Result<(), CountError> {
    for (i, pe) in pes.enumerate() {
        let (x, y) = (i as u32 % width, i as u32 / width);
        for class in [
            Class::Busy,
            Class::Launch,
            Class::WaitRoom,
            Class::WaitInput,
            Class::Idle,
        ] {
            let (load, all) = (pe.load_classes[class as usize], pe.classes[class as usize]);
            if load > all {
                return Err(CountError::Backwards {
                    x,
                    y,
                    class,
                    load,
                    all,
                });
            }
        }
        let windows = [(" in load", &pe.load_classes, load), ("", &pe.classes, all)];
        for (window, classes, expected) in windows {
            let found = classes.iter().sum();
            if found != expected {
                return Err(CountError::Classes {
                    x,
                    y,
                    window: format!("{of}{window}"),
                    found,
                    expected,
                });
            }
        }
    }
    Ok(())
}

/// The counters of a kernel's PEs, which are on the mesh, in its stage.
fn region<'a>(
    outcome: &'a Outcome,
    width: u32,
    kernel: &KernelRegion,
) -> impl Iterator<Item = &'a PeCounters> + use<'a> {
    let Rect {
        x,
        y,
        width: columns,
        height,
    } = kernel.rect;
    let pes = &outcome.stages[kernel.stage as usize].pes;
    (y..y + height).flat_map(move |row| {
        let start = row as usize * width as usize + x as usize;
        (start..start + columns as usize).map(move |pe| &pes[pe])
    })
}

fn add_operations(sum: &mut Operations, pe: &PeCounters) {
    let [mac, mac_act, reduce, other] = pe.operations;
    sum.mac += mac;
    sum.mac_act += mac_act;
    sum.reduce += reduce;
    sum.other += other;
}

fn count_kernel(outcome: &Outcome, width: u32, kernel: &KernelRegion) -> Kernel {
    let mut classes = [0u64; 5];
    let mut executed = Operations::default();
    let mut slots = [0u64; 6];
    let mut span: Option<(u64, u64)> = None;
    for pe in region(outcome, width, kernel) {
        for (sum, (all, load)) in classes.iter_mut().zip(pe.classes.iter().zip(&pe.load_classes)) {
            *sum += all - load;
        }
        add_operations(&mut executed, pe);
        for (sum, (all, load)) in slots.iter_mut().zip(pe.slots.iter().zip(&pe.load_slots)) {
            *sum += all - load;
        }
        if let Some(first) = pe.first_busy {
            let (a, b) = span.unwrap_or((first, pe.last_busy));
            span = Some((a.min(first), b.max(pe.last_busy)));
        }
    }
    let of = |class: Class| classes[class as usize];
    let [moves, mac, mac_act, reduce, other, scalar] = slots;
    Kernel {
        name: kernel.name.clone(),
        op: kernel.op.clone(),
        stage: kernel.stage,
        region: kernel.rect,
        cycles: span.map_or(0, |(first, last)| last.saturating_sub(first) + 1),
        estimated_cycles: kernel.estimated_cycles,
        imbalance: imbalance(region(outcome, width, kernel)).1,
        executed,
        busy: of(Class::Busy),
        slots: Slots {
            mac,
            mac_act,
            reduce,
            other,
            moves,
            scalar,
        },
        wait_input: of(Class::WaitInput),
        wait_room: of(Class::WaitRoom),
        launch: of(Class::Launch),
        idle: of(Class::Idle),
    }
}

/// The most multiply-adds of a PE, and these over the mean of the PEs that have any (1 where none has).
fn imbalance<'a>(pes: impl Iterator<Item = &'a PeCounters>) -> (u64, f64) {
    let (mut most, mut sum, mut count) = (0u64, 0u64, 0u64);
    for pe in pes {
        let n = pe.operations[0] + pe.operations[1];
        most = most.max(n);
        sum += n;
        count += (n > 0) as u64;
    }
    let quotient = if sum == 0 {
        1.0
    } else {
        most as f64 * count as f64 / sum as f64
    };
    (most, quotient)
}

/// That of the kernel that has the PE with the most; of equal ones the first.
fn worst_imbalance(outcome: &Outcome, width: u32, kernels: &[KernelRegion]) -> f64 {
    let mut worst = (0u64, 1.0);
    for kernel in kernels {
        let own = imbalance(region(outcome, width, kernel));
        if own.0 > worst.0 {
            worst = own;
        }
    }
    worst.1
}

/// First output wavelet after the window's start, and the mean distance of items over the second half of them; cycles of load that
/// lie before are not counted.
fn output_times(outcome: &Outcome, drains: &[usize], items: u64) -> Result<(u64, Option<f64>), CountError> {
    let mut first = None::<u64>;
    let mut done = vec![0u64; items as usize];
    for &index in drains {
        let count = outcome.drains.len();
        let landed = outcome
            .drains
            .get(index)
            .ok_or(CountError::NoDrain { index, drains: count })?;
        let Some(head) = landed.first() else { continue };
        first = Some(first.map_or(head.cycle, |f| f.min(head.cycle)));
        if items == 0 || !(landed.len() as u64).is_multiple_of(items) {
            return Err(CountError::Items {
                index,
                wavelets: landed.len(),
                items,
            });
        }
        for (done, part) in done.iter_mut().zip(landed.chunks(landed.len() / items as usize)) {
            *done = part.iter().map(|l| l.cycle).fold(*done, u64::max);
        }
    }
    let counted = |cycle: u64| cycle - outcome.load_before(cycle);
    let first = counted(first.ok_or(CountError::NoOutput)?);
    let last = done.len() - 1;
    let from = last / 2;
    let interval = (last > 0)
        .then(|| counted(done[last]).saturating_sub(counted(done[from])) as f64 / (last - from) as f64);
    Ok((first, interval))
}

/// Joules of the whole run, loading included.
fn energy(outcome: &Outcome, machine: &Machine, executed: &Operations) -> Option<f64> {
    let e = machine.energy.as_ref()?;
    let pe_cycles = outcome.pes.len() as f64 * outcome.cycles as f64;
    let picojoules = executed.multiply_adds() as f64 * e.multiply_add_pj
        + (executed.reduce + executed.other) as f64 * e.operation_pj
        + outcome.hops as f64 * e.hop_pj
        + outcome.edge_wavelets as f64 * e.edge_pj
        + pe_cycles * e.pe_cycle_pj;
    Some(picojoules * 1e-12)
}
