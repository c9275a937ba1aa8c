//! Small hand-written programs whose times are known from outside: published cycle models of collectives, and measured cycles of
//! local kernels. They hold the machine against numbers that nobody here made up (`docs/validation.md`).
//!
//! This module only writes programs and says what to read off a run. A runner gives each [`Case`]'s program to an engine,
//! compares what the probed PEs send with `expected`, and turns the counters into cycles with [`Case::measured`].

mod collectives;
mod local;

use crate::assemble::Assembler;
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{Outcome, Probe};
use meshloom_simulator::program::*;
use std::sync::Arc;

/// Whether a cost was chosen to meet a number, or the number is a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cost in the machine description, or an instruction in the program's scalar code, was chosen to meet this number.
    Fitted,
    /// Nothing was chosen to meet this number.
    Predicted,
}

/// A number from outside beside the machine's.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What was run.
    pub name: String,
    /// Its sizes.
    pub parameters: String,
    /// Where the published number is from.
    pub source: String,
    /// Cycles by the source.
    pub published: f64,
    /// Cycles on this machine.
    pub measured: u64,
    /// How far `measured` may be from `published`.
    pub tolerance: Tolerance,
    /// Fitted or predicted.
    pub kind: Kind,
}

impl Point {
    /// Whether the measured cycles are within the tolerance.
    pub fn holds(&self) -> bool {
        (self.measured as f64 - self.published).abs()
            <= self.tolerance.cycles + self.tolerance.share * self.published
    }

    /// (measured - published) / published.
    pub fn error(&self) -> f64 {
        (self.measured as f64 - self.published) / self.published
    }
}

/// A distance: so many cycles and a share of the published number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Cycles.
    pub cycles: f64,
    /// Share of the published number, 0.01 for 1 %.
    pub share: f64,
}

/// How cycles are counted.
#[derive(Clone, Debug, PartialEq)]
pub enum Clock {
    /// From the first wavelet that any core sends to the last write of a vector step on any PE, both included. What comes before
    /// (initial values, descriptors, the issue of the first instruction, equal on all PEs) and after (reading the result out:
    /// it sends, but does not write) is not counted.
    Exchange,
    /// The time from cycle 0 to the end of the main thread's last used slot, less the same of this program, which
    /// lacks the timed part. Whatever precedes the timed part cancels.
    Beyond(Program),
}

/// One program to run, and what to expect of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The point, with 0 measured cycles.
    pub point: Point,
    /// Columns and rows of the mesh it needs.
    pub mesh: (u32, u32),
    /// The program.
    pub program: Program,
    /// What is counted.
    pub clock: Clock,
    /// PEs that send their result when done, into their own router, which drops it: only probes see it.
    pub probes: Vec<Probe>,
    /// The f32 elements that each of them must send, exactly.
    pub expected: Arc<Vec<f32>>,
}

impl Case {
    /// The machine with the mesh that this case needs; nothing else is changed.
    pub fn machine(&self, machine: &Machine) -> Machine {
        let mut m = machine.clone();
        (m.mesh.width, m.mesh.height) = self.mesh;
        m
    }

    /// The cycles counted in a run, given the run of the program in [`Clock::Beyond`].
    pub fn measured(&self, outcome: &Outcome, without: Option<&Outcome>) -> u64 {
        let end = |o: &Outcome| o.pes.iter().map(|p| p.last_busy + 1).max().unwrap_or(0);
        match (&self.clock, without) {
            (Clock::Beyond(_), Some(without)) => end(outcome) - end(without),
            _ => {
                let first = outcome.pes.iter().filter_map(|p| p.first_send).min().unwrap_or(0);
                outcome
                    .pes
                    .iter()
                    .filter_map(|p| p.last_write)
                    .max()
                    .map_or(0, |last| last + 1 - first)
            }
        }
    }

    /// Says what is wrong with the numbers that the probed PEs sent, if anything is.
    pub fn check(&self, outcome: &Outcome) -> Result<(), String> {
        for (probe, sent) in self.probes.iter().zip(&outcome.probes) {
            let at = format!(
                "{} ({}), PE ({}, {})",
                self.point.name, self.point.parameters, probe.x, probe.y
            );
            let sent: Vec<u32> = sent
                .iter()
                .flat_map(|w| (0..w.elements as u32).map(|i| (w.bits >> (32 * i)) as u32))
                .collect();
            if sent.len() != self.expected.len() {
                return Err(format!(
                    "{at}: {} elements, not {}",
                    sent.len(),
                    self.expected.len()
                ));
            }
            if let Some(i) = (0..sent.len()).find(|&i| sent[i] != self.expected[i].to_bits()) {
                return Err(format!(
                    "{at}: element {i} is {}, not {}",
                    f32::from_bits(sent[i]),
                    self.expected[i]
                ));
            }
        }
        Ok(())
    }
}

/// All cases; `quick` leaves out the ones that take more than a moment.
pub fn all(machine: &Machine, quick: bool) -> Vec<Case> {
    let mut cases = collectives::all(machine, quick);
    cases.extend(local::all());
    cases
}

/// The colour on which results are sent to a router that drops them.
const SINK: Color = 20;

/// The route of [`SINK`]: back to the core, but a filter drops everything.
fn sink(at: Lattice) -> Route {
    Route {
        color: SINK,
        stream: "result, seen by probes only".into(),
        at,
        positions: vec![Position {
            input: Port::Ramp,
            outputs: vec![Port::Ramp],
            hold: 1.into(),
        }],
        filters: vec![Filter {
            output: Port::Ramp,
            first: 0.into(),
            count: 0.into(),
            period: 1.into(),
        }],
    }
}

/// Sends `n` elements at `base` to the sink.
fn read_out(a: &mut Assembler, base: i64, n: i64) {
    a.memory(42, Ty::F32, base.into(), &[n.into()], &[1], false);
    a.output(43, SINK, Ty::F32, &[n.into()], false);
    a.map(Op::Mov, 43, Operand::Desc(42), None, Count::None);
}

/// The elements that [`fill`] writes: 1 + (first + i) / 8192, so that a sum of 512 of them is exact.
fn filled(first: i64, n: i64) -> impl Iterator<Item = f32> {
    (first..first + n).map(|i| 1.0 + i as f32 / 8192.0)
}

/// Writes [`filled`]`(first, n)` at `base`; its time depends on `n` only. `first + n` is at most 8192.
fn fill(a: &mut Assembler, base: i64, first: i64, n: i64) {
    // adding 1024 to the bits of a number between 1 and 2 adds 1 / 8192 to it
    a.emit(Instr::Store(
        Word::I32,
        base.into(),
        0.into(),
        (1f32.to_bits() as i64 + 1024 * first).into(),
    ));
    let mut done = 1;
    while done < n {
        let m = done.min(n - done);
        a.memory(42, Ty::F32, base.into(), &[m.into()], &[1], false);
        a.memory(43, Ty::F32, (base + 4 * done).into(), &[m.into()], &[1], false);
        a.map(
            Op::Add,
            43,
            Operand::Desc(42),
            Some(Operand::Imm(done as f32 / 8192.0)),
            Count::None,
        );
        done += m;
    }
}
