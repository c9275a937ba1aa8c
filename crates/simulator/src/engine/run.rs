//! A run: its stages one after another, by either engine. Each stage runs on a clock of its own from 0, which makes it independent of
//! what came before; the run adds the cycle at which it began.

use super::fast::Stop;
use super::sram::Sram;
use super::{Engine, Landed, Options, Outcome, Paths, PeCounters, RunError, StageOutcome};
use crate::change::Change;
use crate::machine::Machine;
use crate::program::{Cut, Feed, FeedData, Piece, Program, Stage, Wavelet};
use crate::text::stage_name;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Runs a verified program to its end, from SRAM that is 0. The same program gives the same outcome whatever the options.
pub fn run(program: &Program, machine: &Machine, options: &Options) -> Result<Outcome, RunError> {
    run_on(program, machine, options, &mut Sram::new(machine))
}

/// The same from what an earlier program left in SRAM, which becomes what this program leaves. If there is an error, it stays what it was,
/// but for what was where a core's code is put.
///
/// # Panics
/// `sram` is of another number of PEs than the machine has.
pub fn run_on(
    program: &Program,
    machine: &Machine,
    options: &Options,
    sram: &mut Sram,
) -> Result<Outcome, RunError> {
    let pes = machine.mesh.width as usize * machine.mesh.height as usize;
    assert_eq!(sram.pes(), pes, "as many PEs as the machine has");
    if options.engine == Engine::Fast {
        // a single stage takes back what it wrote by itself
        let before = (program.stages.len() > 1).then(|| sram.clone());
        let ended = all_stages(program, machine, options, Engine::Fast, |run, outcome| {
            run.fast(sram, outcome)
        });
        let stop = match ended {
            Ok(outcome) => return Ok(outcome),
            Err(stop) => stop,
        };
        if let Some(before) = before {
            *sram = before;
        }
        if let Stop::TooLong = stop {
            return Err(RunError::TooLong {
                cycles: options.max_cycles.unwrap_or(u64::MAX),
            });
        }
        // what is wrong is found by running it again by the rules, cycle by cycle
    }
    let left = sram.apart(options.threads);
    let before = left.to_vec();
    let ended = all_stages(program, machine, options, Engine::Reference, |run, outcome| {
        run.reference(left, outcome)
            .map_err(|e| in_stage(e, program, run.number as usize, run.begin))
    });
    if ended.is_err() {
        left.clone_from_slice(&before);
    }
    ended
}

/// The stages one after another, each by `one`.
fn all_stages<E>(
    program: &Program,
    machine: &Machine,
    options: &Options,
    engine: Engine,
    mut one: impl FnMut(&StageRun, &mut Outcome) -> Result<StageOutcome, E>,
) -> Result<Outcome, E> {
    let mut outcome = Outcome {
        engine,
        cycles: 0,
        stages: Vec::new(),
        pes: Vec::new(),
        drains: Vec::new(),
        probes: vec![Vec::new(); options.probes.len()],
        arrivals: Vec::new(),
        wavelets: 0,
        hops: 0,
        edge_wavelets: 0,
        active_pe_cycles: 0,
        paths: Paths::default(),
    };
    let mut times: Vec<Duration> = Vec::new();
    for (number, stage) in program.stages.iter().enumerate() {
        let started = Instant::now();
        let change = match number {
            0 => Change::default(),
            _ => Change::to(program, number, machine),
        };
        let run = StageRun {
            stage,
            number: number as u32,
            machine,
            options,
            only: program.stages.len() == 1,
            begin: outcome.cycles + change.cycles(),
            data: stage
                .feeds
                .iter()
                .map(|f| relay(program, f, &outcome.drains))
                .collect(),
        };
        let ended = one(&run, &mut outcome)?;
        if number == 0 {
            outcome.pes.extend(ended.pes.iter());
        } else {
            for (sum, pe) in outcome.pes.iter_mut().zip(ended.pes.iter()) {
                sum.change(change.cycles());
                sum.follow(pe);
            }
        }
        outcome.cycles = ended.end;
        outcome.stages.push(StageOutcome { change, ..ended });
        times.push(started.elapsed());
    }
    let pes = machine.mesh.width as usize * machine.mesh.height as usize;
    outcome.pes.resize(pes, PeCounters::default());
    if let Some(all) = &options.times {
        *all.lock().unwrap_or_else(PoisonError::into_inner) = times;
    }
    Ok(outcome)
}

/// The wavelets of a feed: the host's, or those that left before, as they left but for their flags.
fn relay(program: &Program, feed: &Feed, drains: &[Vec<Landed>]) -> Arc<Vec<Wavelet>> {
    let spans = match &feed.data {
        FeedData::Host(data) => return data.clone(),
        FeedData::Cut(cut) => return Arc::new(pack(program, cut, drains)),
        FeedData::Drained(spans) => spans,
    };
    let mut data = Vec::new();
    for s in spans {
        let landed = &drains[program.drain_index(s.stage as usize, s.drain as usize)];
        let part = &landed[s.first as usize..(s.first + s.count) as usize];
        data.extend(part.iter().zip(1u64..).map(|(l, n)| Wavelet {
            flag: s.flag_every > 0 && n.is_multiple_of(s.flag_every),
            ..l.wavelet
        }));
    }
    Arc::new(data)
}

/// The wavelets of elements that are put together anew.
fn pack(program: &Program, cut: &Cut, drains: &[Vec<Landed>]) -> Vec<Wavelet> {
    let (bits, per) = (cut.ty.bits(), cut.per as u64);
    let mask = u64::MAX >> (64 - bits);
    let mut all = Vec::with_capacity(cut.wavelets() as usize);
    for row in 0..cut.rows {
        let mut w = Wavelet::default();
        let mut add = |element: u64| {
            w.bits |= element << (w.elements as u32 * bits);
            w.elements += 1;
            if w.elements as u64 == per {
                all.push(std::mem::take(&mut w));
            }
        };
        for piece in &cut.pieces {
            match *piece {
                Piece::Fill { bits, count } => (0..count).for_each(|_| add(bits as u64 & mask)),
                Piece::Kept {
                    stage,
                    drain,
                    first,
                    skip,
                    count,
                    step,
                } => {
                    let landed = &drains[program.drain_index(stage as usize, drain as usize)];
                    let from = first + row * step;
                    for i in skip..skip + count {
                        let kept = &landed[(from + i / per) as usize].wavelet;
                        add(kept.bits >> ((i % per) as u32 * bits) & mask);
                    }
                }
            }
        }
        if w.elements > 0 {
            all.push(w);
        }
    }
    all
}

/// An error with the run's cycle, and with its stage if there are several.
fn in_stage(mut error: RunError, program: &Program, number: usize, begin: u64) -> RunError {
    let several = program.stages.len() > 1;
    let stage = || stage_name(program, number);
    match &mut error {
        RunError::Fault { cycle, place, .. } => {
            *cycle += begin;
            if several {
                *place = format!("{}, {place}", stage());
            }
        }
        RunError::Deadlock { cycle, explanation } => {
            *cycle += begin;
            if several {
                *explanation = format!("in {}, {explanation}", stage());
            }
        }
        RunError::LeftOver { cycle, message } => {
            *cycle += begin;
            if several {
                *message = format!("{message}, in {}", stage());
            }
        }
        RunError::TooLong { .. } => {}
    }
    error
}

/// One stage, ready to run.
pub(super) struct StageRun<'a> {
    pub stage: &'a Stage,
    pub number: u32,
    pub machine: &'a Machine,
    pub options: &'a Options,
    /// The program has no other one.
    pub only: bool,
    /// The run's cycle that is the stage's cycle 0.
    pub begin: u64,
    /// The wavelets of each feed.
    pub data: Vec<Arc<Vec<Wavelet>>>,
}
