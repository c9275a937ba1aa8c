//! The numbers of columns that are timed with another one (`fast::columns`): what its cores did ([`Record`]) is done again on each
//! column's memory and streams, core by core, as far as what it takes was sent; by as many threads as the host has.

use super::flow::Log;
use crate::engine::core::{Arg, Record, Recorded, Run, Scratch};
use crate::engine::network::NONE;
use crate::engine::wavelets::Wavelets;
use crate::engine::{PeCounters, core};
use crate::program::Wavelet;
use std::sync::Arc;

/// Bytes of records and of what was sent that are done again at once.
const ENOUGH: u64 = 1 << 26;

/// Bytes that a wavelet takes, more or less.
const WAVELET: u64 = 5;

/// Wavelets that follow each other in a log.
#[derive(Clone, Copy)]
struct Source {
    log: u32,
    index: u64,
    n: u64,
}

/// What a core of a column sent on a colour, as far as it may still be asked for.
#[derive(Default)]
struct Sent {
    values: Wavelets,
    /// The number of the first value.
    first: u64,
}

/// A column: memory by core, streams by log.
#[derive(Default)]
struct Column {
    memories: Vec<Vec<u8>>,
    sent: Vec<Sent>,
}

/// Room of a thread that works on one column after another.
#[derive(Default)]
struct Work {
    scratch: Scratch,
    sent: Vec<Sent>,
}

/// The columns that are timed with one, and what has still to be done in them.
pub(super) struct Others {
    columns: Vec<Column>,
    /// Of each queue, where what was taken came from.
    taken: Vec<Vec<Source>>,
    /// Of each log its place in [`Column::sent`].
    places: Vec<u32>,
    /// Of each queue the log of what is put into it.
    log_of: Vec<u32>,
    feeds: Vec<Option<Arc<Vec<Wavelet>>>>,
    /// Wavelets sent in what was done again.
    sent: u64,
}

/// Something to be done again, what it takes where that is the same in all columns, and the wavelets that it takes of each source.
struct Step {
    op: Recorded,
    same: [Option<Wavelets>; 2],
    wavelets: u64,
}

impl Others {
    /// For columns with the SRAM of their cores each, of cores that send into the logs that `log_of` says by queue.
    pub fn new(srams: Vec<Vec<Vec<u8>>>, logs: &[Log], log_of: &[u32]) -> Others {
        let mut places = vec![NONE; logs.len()];
        let mut n = 0;
        for log in log_of.iter().filter(|l| **l != NONE) {
            places[*log as usize] = n;
            n += 1;
        }
        let column = |memories| {
            let mut column = Column {
                memories,
                sent: Vec::new(),
            };
            column.sent.resize_with(n as usize, Sent::default);
            column
        };
        Others {
            columns: srams.into_iter().map(column).collect(),
            taken: vec![Vec::new(); log_of.len()],
            places,
            log_of: log_of.to_vec(),
            feeds: logs.iter().map(|l| l.feed.clone()).collect(),
            sent: 0,
        }
    }

    /// The first column's core took these.
    pub fn takes(&mut self, queue: u32, log: u32, index: u64, n: u64) {
        let taken = &mut self.taken[queue as usize];
        match taken.last_mut() {
            Some(last) if last.log == log && last.index + last.n == index => last.n += n,
            _ => taken.push(Source { log, index, n }),
        }
    }

    /// Whether so many bytes of records are to be done again, cores having sent so many wavelets in all.
    pub fn enough(&self, bytes: usize, sent: u64) -> bool {
        bytes as u64 + (sent - self.sent) * WAVELET >= ENOUGH
    }

    /// Does again what the cores of the first column did, in the order of their places in a column's memory, up to when they had sent so
    /// many wavelets. `Err` if columns differ in what decides the order.
    pub fn catch_up<'a>(
        &mut self,
        records: impl Iterator<Item = &'a mut Record>,
        sent: u64,
        logs: &[Log],
    ) -> Result<(), ()> {
        self.sent = sent;
        let mut at = vec![(0, 0); self.taken.len()];
        let steps: Vec<Vec<Step>> = records
            .map(|r| r.take().into_iter().map(|op| self.step(op, &mut at)).collect())
            .collect();
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut columns = std::mem::take(&mut self.columns);
        let each = columns.len().div_ceil(threads).max(1);
        let this = &*self;
        // what the first column's logs have forgotten is not asked for any more
        let mut needed = vec![0; columns.first().map_or(0, |c| c.sent.len())];
        for (log, place) in logs.iter().zip(&self.places).filter(|(_, place)| **place != NONE) {
            needed[*place as usize] = log.first();
        }
        let needed = &needed;
        let ended = std::thread::scope(|scope| {
            let running: Vec<_> = columns
                .chunks_mut(each)
                .map(|some| {
                    let steps = &steps;
                    scope.spawn(move || {
                        let mut work = Work::default();
                        some.iter_mut().try_for_each(|column| {
                            work.sent.resize_with(column.sent.len(), Sent::default);
                            for (now, before) in work.sent.iter_mut().zip(&column.sent) {
                                now.values.clear();
                                now.values.add(&before.values, 0..before.values.len());
                                now.first = before.first;
                            }
                            this.column(column, steps, &mut work)?;
                            for ((now, left), first) in work.sent.iter().zip(&mut column.sent).zip(needed) {
                                *left = now.from(*first);
                            }
                            Ok(())
                        })
                    })
                })
                .collect();
            let ended = running.into_iter().map(|r| r.join());
            ended.fold(Ok(()), |all, one| match one {
                Ok(one) => all.and(one),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        });
        self.columns = columns;
        self.taken.iter_mut().for_each(Vec::clear);
        ended
    }

    /// The SRAMs of the columns' cores.
    pub fn into_srams(self) -> impl Iterator<Item = Vec<Vec<u8>>> {
        self.columns.into_iter().map(|c| c.memories)
    }

    /// Looks for what is the same in all columns; `at` is the first source of each queue that no step before takes from, and how much of
    /// it one does.
    fn step(&self, op: Recorded, at: &mut [(usize, u64)]) -> Step {
        let (queues, wavelets) = taken(&op);
        let mut same = [None, None];
        for (queue, same) in queues.into_iter().zip(&mut same) {
            let Some(queue) = queue else { continue };
            let mut all = Wavelets::default();
            let mut from_feeds = true;
            let parts = parts(&self.taken[queue as usize], &mut at[queue as usize], wavelets);
            for Source { log, index, n } in parts {
                match &self.feeds[log as usize] {
                    Some(feed) if from_feeds => all.add_all(&feed[index as usize..(index + n) as usize]),
                    _ => from_feeds = false,
                }
            }
            *same = from_feeds.then_some(all);
        }
        Step { op, same, wavelets }
    }

    /// Does all steps of a column's cores.
    fn column(&self, column: &mut Column, steps: &[Vec<Step>], work: &mut Work) -> Result<(), ()> {
        let Work { scratch, sent } = work;
        let mut done = vec![0; steps.len()];
        let mut at = vec![(0, 0); self.taken.len()];
        let mut inputs = [Wavelets::default(), Wavelets::default()];
        let mut out = Wavelets::default();
        let mut unused = PeCounters::default();
        loop {
            let mut moved = false;
            for (i, steps) in steps.iter().enumerate() {
                while let Some(step) = steps.get(done[i])
                    && self.fetch(sent, step, &mut at, &mut inputs)
                {
                    let memory = &mut column.memories[i];
                    match &step.op {
                        Recorded::Slots { run, slots } => {
                            out.clear();
                            let mut run = (**run).clone();
                            run.leap(0, *slots, memory, &mut inputs, &mut out, &mut unused, scratch)?;
                            if let Arg::Out { queue, .. } = run.dst {
                                let place = self.places[self.log_of[queue as usize] as usize];
                                sent[place as usize].values.add(&out, 0..out.len());
                            }
                        }
                        Recorded::Axpys { all, n, ty } => core::axpys(scratch, memory, *n, *ty, all),
                        Recorded::Store { at, bytes } => {
                            memory[*at..*at + bytes.len()].copy_from_slice(bytes)
                        }
                        Recorded::Same { at, bytes } if memory[*at..*at + bytes.len()] != **bytes => {
                            return Err(());
                        }
                        Recorded::Takes { wavelet, .. } if inputs[0].get(0).bits != wavelet.bits => {
                            return Err(());
                        }
                        Recorded::Same { .. } | Recorded::Takes { .. } => {}
                    }
                    done[i] += 1;
                    moved = true;
                }
            }
            if done.iter().zip(steps).all(|(d, s)| *d == s.len()) {
                return Ok(());
            }
            if !moved {
                return Err(());
            }
        }
    }

    /// What a step takes, if all of it was sent.
    fn fetch(
        &self,
        all_sent: &[Sent],
        step: &Step,
        at: &mut [(usize, u64)],
        inputs: &mut [Wavelets; 2],
    ) -> bool {
        let (queues, wavelets) = (taken(&step.op).0, step.wavelets);
        let sent = |log: u32| &all_sent[self.places[log as usize] as usize];
        let all = || queues.iter().zip(&step.same);
        // first whether it is there, of all of them
        for (queue, _) in all().filter(|(_, same)| same.is_none()) {
            let Some(queue) = *queue else { continue };
            let mut at = at[queue as usize];
            let there = |s: Source| match self.feeds[s.log as usize] {
                Some(_) => true,
                None => sent(s.log).first + sent(s.log).values.len() as u64 >= s.index + s.n,
            };
            if !parts(&self.taken[queue as usize], &mut at, wavelets).all(there) {
                return false;
            }
        }
        for ((queue, same), to) in all().zip(inputs) {
            to.clear();
            let Some(queue) = *queue else { continue };
            let parts = parts(&self.taken[queue as usize], &mut at[queue as usize], wavelets);
            if let Some(same) = same {
                to.add(same, 0..same.len());
                parts.for_each(drop);
                continue;
            }
            for Source { log, index, n } in parts {
                match &self.feeds[log as usize] {
                    Some(feed) => to.add_all(&feed[index as usize..(index + n) as usize]),
                    None => {
                        let from = (index - sent(log).first) as usize;
                        to.add(&sent(log).values, from..from + n as usize);
                    }
                }
            }
        }
        true
    }
}

impl Sent {
    /// What may still be asked for, if values before `first` are not.
    fn from(&self, first: u64) -> Sent {
        let n = first.saturating_sub(self.first).min(self.values.len() as u64);
        let mut left = Sent {
            first: self.first + n,
            ..Sent::default()
        };
        left.values.add(&self.values, n as usize..self.values.len());
        left
    }
}

/// The queues from which something takes, and how many wavelets of each.
fn taken(op: &Recorded) -> ([Option<u32>; 2], u64) {
    let of = |run: &Run| {
        [&run.a, &run.b].map(|arg| match arg {
            Arg::In { queue, .. } => Some(*queue),
            _ => None,
        })
    };
    match op {
        Recorded::Slots { run, slots } => (of(run), run.steps(*slots)),
        Recorded::Takes { queue, .. } => ([Some(*queue), None], 1),
        _ => ([None; 2], 0),
    }
}

/// The next `n` wavelets of sources, from the place that then moves behind them.
fn parts<'a>(
    sources: &'a [Source],
    at: &'a mut (usize, u64),
    mut n: u64,
) -> impl Iterator<Item = Source> + use<'a> {
    std::iter::from_fn(move || {
        let (i, used) = *at;
        let s = sources.get(i).filter(|_| n > 0)?;
        let part = n.min(s.n - used);
        n -= part;
        *at = if used + part == s.n {
            (i + 1, 0)
        } else {
            (i, used + part)
        };
        Some(Source {
            log: s.log,
            index: s.index + used,
            n: part,
        })
    })
}
