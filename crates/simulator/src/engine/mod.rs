//! What an engine is given and what it answers. `reference` is the plain transcription of `docs/machine.md`: the oracle.

mod core;
mod counters;
mod explain;
mod fast;
mod memory;
mod network;
mod reference;
mod run;
mod sram;
mod wavelets;

use crate::change::Change;
use crate::program::{Color, Port, Wavelet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use counters::SharedCounters;
pub use memory::{MemoryNeed, memory};
pub use run::{run, run_on};
pub use sram::Sram;

/// How to run; nothing here may change a result.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which engine.
    pub engine: Engine,
    /// Which PEs the reference engine visits each cycle, and in which order.
    pub visit: Visit,
    /// Streams to record where their core sends them.
    pub probes: Vec<Probe>,
    /// Gives up after this many cycles.
    pub max_cycles: Option<u64>,
    /// Fills [`Outcome::arrivals`]: for comparing engines, not for long runs.
    pub record: bool,
    /// Threads of the host at most; 0 for as many as it has.
    pub threads: usize,
    /// Updated with the cycle now and then, for a progress bar.
    pub progress: Option<Arc<AtomicU64>>,
    /// Gets the time that each stage took to simulate: beside the outcome, which is always the same.
    pub times: Option<Arc<Mutex<Vec<Duration>>>>,
}

/// Which engine runs a program; results never depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Streams that flow and cores that repeat themselves, many cycles at a time: `docs/fast-engine.md`.
    #[default]
    Fast,
    /// Every router and core that can change, every cycle: the oracle.
    Reference,
}

/// Order of visits; results never depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visit {
    /// Only PEs in which something can happen.
    #[default]
    Active,
    /// Every PE, every cycle.
    All,
    /// Every PE, every cycle, in another order, drawn from this seed.
    Shuffled(u64),
}

/// Records all wavelets that the core at (x, y) sends on `color` in a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Stage, from 0.
    pub stage: u32,
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
    /// Colour.
    pub color: Color,
}

/// What a PE did in a cycle (rule M18); the numbers index [`PeCounters::classes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The step slot was used.
    Busy = 0,
    /// A thread was issuing or launching.
    Launch = 1,
    /// A thread waited for credit.
    WaitRoom = 2,
    /// A thread waited for a wavelet.
    WaitInput = 3,
    /// None of these.
    Idle = 4,
}

/// Counters of one PE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeCounters {
    /// Cycles by [`Class`].
    pub classes: [u64; 5],
    /// Of these, the cycles before epoch 1 of a stage began, and those of changes of stages.
    pub load_classes: [u64; 5],
    /// Operations executed: multiply-adds with weights, of activations, reduction additions, others.
    pub operations: [u64; 4],
    /// Step slots by what used them (their sum is the busy cycles): moves and fetched list elements, steps of the four classes of
    /// `operations`, scalar code.
    pub slots: [u64; 6],
    /// Of these, the slots before epoch 1 of a stage began.
    pub load_slots: [u64; 6],
    /// First cycle of a stage's epoch 1 or later in which the slot was used.
    pub first_busy: Option<u64>,
    /// Last cycle in which the slot was used.
    pub last_busy: u64,
    /// First cycle in which the core sent a wavelet.
    pub first_send: Option<u64>,
    /// Last cycle in which a vector instruction's step wrote to memory.
    pub last_write: Option<u64>,
}

/// A wavelet that left at the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Cycle of its arrival outside.
    pub cycle: u64,
    /// The wavelet.
    pub wavelet: Wavelet,
}

/// A queue of the network (rule M3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// A router's, at the end of the link into this port; `Ramp` is the ramp up.
    Router(Port),
    /// From the core to the ramp up.
    CoreOutput,
    /// From the router to the core.
    CoreInput,
}

/// When the wavelets of a queue arrived in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// Stage, from 0.
    pub stage: u32,
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
    /// Colour.
    pub color: Color,
    /// Which of the PE's queues of that colour.
    pub queue: QueueKind,
    /// The run's cycle of each arrival, in order.
    pub cycles: Vec<u64>,
}

impl Paths {
    fn add(&mut self, other: &Paths) {
        self.single += other.single;
        self.leap += other.leap;
        self.ahead += other.ahead;
        self.columns += other.columns;
        self.hops_single += other.hops_single;
        self.hops_flow += other.hops_flow;
        self.hops_columns += other.hops_columns;
    }
}

impl PeCounters {
    /// Counts a change of stages, in which every PE is idle, as load.
    fn change(&mut self, cycles: u64) {
        self.classes[Class::Idle as usize] += cycles;
        self.load_classes[Class::Idle as usize] += cycles;
    }

    /// Adds the counters of a stage that follows.
    fn follow(&mut self, next: &PeCounters) {
        fn add<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
        add(&mut self.classes, &next.classes);
        add(&mut self.load_classes, &next.load_classes);
        add(&mut self.operations, &next.operations);
        add(&mut self.slots, &next.slots);
        add(&mut self.load_slots, &next.load_slots);
        self.first_busy = self.first_busy.or(next.first_busy);
        self.last_busy = self.last_busy.max(next.last_busy);
        self.first_send = self.first_send.or(next.first_send);
        self.last_write = next.last_write.or(self.last_write);
    }

    /// Counts its cycles from another one on.
    fn shift(&mut self, by: u64) {
        if self.classes[Class::Busy as usize] > 0 {
            self.last_busy += by;
        }
        for cycle in [&mut self.first_busy, &mut self.first_send, &mut self.last_write] {
            *cycle = cycle.map(|c| c + by);
        }
    }
}

/// The result of a run that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The engine that gave it: a fast one leaves programs that do not end well to the reference engine.
    pub engine: Engine,
    /// Cycles from 0 to the last event, changes of stages included.
    pub cycles: u64,
    /// What each stage took.
    pub stages: Vec<StageOutcome>,
    /// One a PE, row by row; all stages and changes together.
    pub pes: Vec<PeCounters>,
    /// What left, one list a drain: those of the first stage, then those of the next, see [`crate::program::Program::drain_index`].
    pub drains: Vec<Vec<Landed>>,
    /// What was sent, one list a probe.
    pub probes: Vec<Vec<Wavelet>>,
    /// With [`Options::record`] all queues of all stages: by stage, PE in row order, priority of colours, and kind. Else empty.
    pub arrivals: Vec<Arrivals>,
    /// Wavelets sent by cores and entered at the edge.
    pub wavelets: u64,
    /// Link traversals between routers.
    pub hops: u64,
    /// Wavelets over edge channels, both ways.
    pub edge_wavelets: u64,
    /// Cycles simulated for PEs that were visited.
    pub active_pe_cycles: u64,
    /// How the engine came by it.
    pub paths: Paths,
}

/// How much of the work of a simulation took which form (docs/fast-engine.md). PE-cycles are those in which a core issues, launches or
/// uses the slot; the reference engine does all of it one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// PE-cycles executed one by one.
    pub single: u64,
    /// PE-cycles of an instruction in one go.
    pub leap: u64,
    /// PE-cycles in one go with those of other instructions.
    pub ahead: u64,
    /// PE-cycles in columns that do what another one does.
    pub columns: u64,
    /// Link traversals looked at one by one.
    pub hops_single: u64,
    /// Link traversals of a stream in one go.
    pub hops_flow: u64,
    /// Link traversals in and to columns that do what another one does.
    pub hops_columns: u64,
}

/// What one stage took (rule M16); cycles are those of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOutcome {
    /// The change before it; nothing for the first stage. It took the `change.cycles()` cycles before `begin`.
    pub change: Change,
    /// Its first cycle.
    pub begin: u64,
    /// The cycle at which its epoch 1 began: the end of its load.
    pub load_end: u64,
    /// The cycle after its last event.
    pub end: u64,
    /// The cycle at which each of its epochs' feeds could first enter.
    pub epochs: Vec<u64>,
    /// One a PE, row by row: from `begin` to before `end`.
    pub pes: SharedCounters,
}

impl Outcome {
    /// Cycles of load before this cycle: those of stages before their epoch 1, and those of changes.
    pub fn load_before(&self, cycle: u64) -> u64 {
        let loads = self
            .stages
            .iter()
            .map(|s| (s.begin - s.change.cycles(), s.load_end));
        loads.map(|(from, to)| to.min(cycle).saturating_sub(from)).sum()
    }
}

/// Why a run did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// An instruction did what the rules forbid.
    #[error("program fault at cycle {cycle} on PE ({x}, {y}), {place}: {message}")]
    Fault {
        /// When.
        cycle: u64,
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// Region, block and instruction.
        place: String,
        /// What happened and what the rule asks.
        message: String,
    },
    /// Nothing can happen any more, and something waits.
    #[error("deadlock at cycle {cycle}: {explanation}")]
    Deadlock {
        /// The cycle after the last event.
        cycle: u64,
        /// The circle or the chain of waits.
        explanation: String,
    },
    /// All threads halted, but wavelets are left or missing.
    #[error("the program ended at cycle {cycle} with {message}")]
    LeftOver {
        /// The cycle after the last event.
        cycle: u64,
        /// Which wavelets, where.
        message: String,
    },
    /// `Options::max_cycles` was reached.
    #[error("not finished after {cycles} cycles")]
    TooLong {
        /// The limit.
        cycles: u64,
    },
}
