//! The numbers of columns that are timed with another one (`fast::columns`): what its cores did ([`Recorded`]) is done again on the other
//! columns' memory and streams, many columns at once ([`LANES`]), core by core, as far as what it takes was sent; by as many threads as
//! the host has.

use super::flow::Log;
use crate::engine::core::{Arg, Input, LANES, Memory, Recorded, Run, Scratch};
use crate::engine::network::NONE;
use crate::engine::sram::{joined, threads_of};
use crate::engine::wavelets::Wavelets;
use crate::program::Wavelet;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes of records that are done again at once.
const RECORDS: usize = 1 << 26;

/// Wavelets that a core sends, on the mean, in what is done again at once: those of many columns fit a host's cache.
const SENT: u64 = 1 << 13;

/// Steps among which one that can be done is looked for, if the first one can't.
const FAR: usize = 64;

/// Wavelets that follow each other in a log, or, if it is `NONE`, among those of [`Others::outside`].
#[derive(Clone, Copy)]
struct Source {
    log: u32,
    index: u64,
    n: u64,
}

/// What a core sent on a colour, as far as it may still be asked for.
#[derive(Default)]
struct Sent {
    values: Wavelets,
    /// The number of the first value.
    first: u64,
    /// There is more memory than for the values, from among what is free.
    room: bool,
}

/// Columns side by side: memory by core, streams by log, each with a wavelet of each column, then the next one of each, ...
#[derive(Default)]
struct Group {
    memories: Vec<Memory>,
    sent: Vec<Sent>,
}

/// Room of a thread that works on one group after another.
#[derive(Default)]
struct Work {
    scratch: Scratch,
    /// For streams.
    free: Vec<Wavelets>,
}

/// The columns that are timed with one, and what has still to be done in them.
pub(super) struct Others {
    /// Of each queue, where what was taken came from.
    taken: Vec<Vec<Source>>,
    /// By queue, what was taken that cores before the columns sent: the same for all of them.
    outside: Vec<Wavelets>,
    map: Arc<Map>,
    /// How many a column has.
    cores: u64,
    /// Wavelets sent in what was done again.
    sent: u64,
    crew: Crew,
    /// The crew is away, and does some of it, while the first column goes on.
    away: Option<JoinHandle<(Crew, Result<(), ()>)>>,
}

/// Where streams come from.
struct Map {
    /// Of each log its place in [`Group::sent`].
    places: Vec<u32>,
    /// Of each queue the log of what is put into it.
    log_of: Vec<u32>,
    feeds: Vec<Option<Arc<Vec<Wavelet>>>>,
}

/// The columns, and those who work on them.
#[derive(Default)]
struct Crew {
    groups: Vec<Group>,
    /// Of each thread.
    rooms: Vec<Work>,
}

impl Crew {
    /// Does a batch in all columns.
    fn execute(&mut self, batch: &Batch) -> Result<(), ()> {
        let each = self.groups.len().div_ceil(self.rooms.len()).max(1);
        let ended = std::thread::scope(|scope| {
            let running: Vec<_> = self
                .groups
                .chunks_mut(each)
                .zip(&mut self.rooms)
                .map(|(some, work)| {
                    scope.spawn(move || some.iter_mut().try_for_each(|group| batch.execute(group, work)))
                })
                .collect();
            running.into_iter().map(|r| joined(r.join())).collect::<Vec<_>>()
        });
        ended.into_iter().collect()
    }
}

impl Drop for Others {
    /// Nobody goes on with what is not asked for.
    fn drop(&mut self) {
        if let Some(away) = self.away.take() {
            drop(away.join());
        }
    }
}

/// Something to be done again, what it takes where that is the same in all columns, and the wavelets that it takes of each source.
struct Step {
    op: Recorded,
    same: [Option<Wavelets>; 2],
    wavelets: u64,
    /// It may take numbers from where they lie.
    in_words: bool,
}

impl Others {
    /// For so many columns, of cores that send into the logs that `log_of` says by queue; what comes from other ones is the same for all.
    /// So many threads of the host work on them; 0 for as many as it has.
    pub fn new(columns: usize, threads: usize, logs: &[Log], log_of: &[u32]) -> Others {
        let mut places = vec![NONE; logs.len()];
        let mut n = 0;
        for log in log_of.iter().filter(|l| **l != NONE) {
            places[*log as usize] = n;
            n += 1;
        }
        let group = |_| {
            let mut group = Group::default();
            group.sent.resize_with(n as usize, Sent::default);
            group
        };
        let mut crew = Crew {
            groups: (0..columns).step_by(LANES).map(group).collect(),
            rooms: Vec::new(),
        };
        crew.rooms.resize_with(threads_of(threads), Work::default);
        Others {
            taken: vec![Vec::new(); log_of.len()],
            outside: vec![Wavelets::default(); log_of.len()],
            map: Arc::new(Map {
                places,
                log_of: log_of.to_vec(),
                feeds: logs.iter().map(|l| l.feed.clone()).collect(),
            }),
            cores: 0,
            sent: 0,
            crew,
            away: None,
        }
    }

    /// The next core, of which the columns have this memory.
    pub fn add(&mut self, all: Vec<Memory>) {
        self.cores += 1;
        for (group, memory) in self.crew.groups.iter_mut().zip(all) {
            group.memories.push(memory);
        }
    }

    /// What the columns' memory of each core is now.
    pub fn into_memories(mut self) -> Vec<Vec<Memory>> {
        // nobody is away after a batch that was waited for; after an error, what the crew did is taken back anyway
        let _ = self.come_back();
        let mut groups: Vec<_> = std::mem::take(&mut self.crew.groups)
            .into_iter()
            .map(|group| group.memories.into_iter())
            .collect();
        (0..self.cores)
            .map(|_| groups.iter_mut().filter_map(Iterator::next).collect())
            .collect()
    }

    /// The first column's core takes these. Returns whether their values are to be [kept](Others::keep).
    pub fn takes(&mut self, queue: u32, log: u32, index: u64, n: u64) -> bool {
        let outside = self.map.feeds[log as usize].is_none() && self.map.places[log as usize] == NONE;
        let (log, index) = match outside {
            true => (NONE, self.taken_outside(queue)),
            false => (log, index),
        };
        let taken = &mut self.taken[queue as usize];
        match taken.last_mut() {
            Some(last) if last.log == log && last.index + last.n == index => last.n += n,
            _ => taken.push(Source { log, index, n }),
        }
        outside
    }

    /// How many wavelets of other cores a queue's core has taken.
    fn taken_outside(&self, queue: u32) -> u64 {
        let last = self.taken[queue as usize].iter().rfind(|s| s.log == NONE);
        last.map_or(0, |s| s.index + s.n)
    }

    /// What a core took of other cores.
    pub fn keep(&mut self, queue: u32, from: &Wavelets, range: Range<usize>) {
        self.outside[queue as usize].add(from, range);
    }

    /// Whether so many bytes of records are to be done again, cores having sent so many wavelets in all.
    pub fn enough(&self, bytes: usize, sent: u64) -> bool {
        bytes >= RECORDS || sent - self.sent >= SENT * self.cores
    }

    /// Has what the cores of the first column did, in the order of their places in a column's memory, up to when they had sent so many
    /// wavelets, done again: now, or while they go on. `Err` if columns differ in what decides the order, here or before.
    pub fn catch_up(
        &mut self,
        records: impl Iterator<Item = Vec<Recorded>>,
        sent: u64,
        logs: &[Log],
        now: bool,
    ) -> Result<(), ()> {
        self.sent = sent;
        let mut at = vec![(0, 0); self.taken.len()];
        let steps: Vec<Vec<Step>> = records
            .map(|ops| ops.into_iter().map(|op| self.step(op, &mut at)).collect())
            .collect();
        let queues = self.taken.len();
        let taken = std::mem::replace(&mut self.taken, vec![Vec::new(); queues]);
        let outside = std::mem::replace(&mut self.outside, vec![Wavelets::default(); queues]);
        let batch = Batch::new(self.map.clone(), taken, outside, logs, steps);
        self.come_back()?;
        let mut crew = std::mem::take(&mut self.crew);
        if now || crew.rooms.len() == 1 {
            let ended = crew.execute(&batch);
            self.crew = crew;
            return ended;
        }
        self.away = Some(std::thread::spawn(move || {
            let ended = crew.execute(&batch);
            (crew, ended)
        }));
        Ok(())
    }

    /// Waits for the crew.
    fn come_back(&mut self) -> Result<(), ()> {
        let Some(away) = self.away.take() else {
            return Ok(());
        };
        let (crew, ended) = joined(away.join());
        self.crew = crew;
        ended
    }

    /// Looks for what is the same in all columns; `at` is the first source of each queue that no step before takes from, and how much of
    /// it one does.
    fn step(&self, op: Recorded, at: &mut [(usize, u64)]) -> Step {
        let (queues, wavelets) = taken(&op);
        let skips = matches!(op, Recorded::Skips { .. });
        let mut same = [None, None];
        for (queue, same) in queues.into_iter().zip(&mut same) {
            let Some(queue) = queue else { continue };
            let mut all = Wavelets::default();
            let mut from_feeds = true;
            let parts = parts(&self.taken[queue as usize], &mut at[queue as usize], wavelets);
            for Source { log, index, n } in parts {
                if skips {
                    continue;
                }
                let range = index as usize..(index + n) as usize;
                match self.map.feeds.get(log as usize) {
                    None if from_feeds => self.outside[queue as usize].times(range, LANES, &mut all),
                    Some(Some(feed)) if from_feeds => side_by_side(&feed[range], &mut all),
                    _ => from_feeds = false,
                }
            }
            *same = from_feeds.then_some(all);
        }
        let in_words = match &op {
            Recorded::Slots { run, .. } => run.in_words(),
            _ => false,
        };
        Step {
            op,
            same,
            wavelets,
            in_words,
        }
    }
}

/// Of a group's stream, by its place, some wavelets.
type Piece = (usize, Range<usize>);

/// What is done again at once.
struct Batch {
    map: Arc<Map>,
    /// Of each queue, where what was taken came from.
    taken: Vec<Vec<Source>>,
    outside: Vec<Wavelets>,
    /// By core.
    steps: Vec<Vec<Step>>,
    /// How many wavelets are taken out of each log, by its place.
    takes: Vec<u64>,
    /// Whether one queue alone takes them.
    one_taker: Vec<bool>,
    /// Values of each log that the first column has forgotten are not asked for any more.
    first: Vec<u64>,
}

impl Batch {
    fn new(
        map: Arc<Map>,
        taken: Vec<Vec<Source>>,
        outside: Vec<Wavelets>,
        logs: &[Log],
        steps: Vec<Vec<Step>>,
    ) -> Batch {
        let n = map.places.iter().filter(|p| **p != NONE).count();
        let (mut takes, mut first) = (vec![0; n], vec![0; n]);
        for (log, place) in logs.iter().zip(&map.places).filter(|(_, place)| **place != NONE) {
            first[*place as usize] = log.first();
        }
        let mut takers = vec![None; n];
        let mut one_taker = vec![true; n];
        for (queue, source) in (0..).zip(&taken).flat_map(|(q, s)| s.iter().map(move |s| (q, s))) {
            let place = map.places.get(source.log as usize).map_or(n, |p| *p as usize);
            if place < n {
                takes[place] += source.n;
                one_taker[place] &= *takers[place].get_or_insert(queue) == queue;
            }
        }
        Batch {
            map,
            taken,
            outside,
            steps,
            takes,
            one_taker,
            first,
        }
    }

    /// Does all steps of the columns' cores.
    fn execute(&self, group: &mut Group, work: &mut Work) -> Result<(), ()> {
        let steps = &self.steps;
        // of each core: steps done, and those among the others that were done before their turn
        let mut done = vec![0; steps.len()];
        let mut early: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
        let mut cursor = Cursor {
            at: vec![(0, 0); self.taken.len()],
            left: self.takes.clone(),
            took: Vec::new(),
            copied: Default::default(),
        };
        loop {
            let mut moved = false;
            for (i, steps) in steps.iter().enumerate() {
                while let Some(step) = steps.get(done[i])
                    && (early[i].contains(&done[i]) || self.one(group, i, step, &mut cursor, work)?)
                {
                    early[i].retain(|j| *j != done[i]);
                    done[i] += 1;
                    moved = true;
                }
                self.forget(group, &mut cursor, work);
            }
            if done.iter().zip(steps).all(|(d, s)| *d == s.len()) {
                break;
            }
            if moved {
                continue;
            }
            // instructions that ran beside each other are whole here: one may have to be done before another one that ended first
            for (i, steps) in steps.iter().enumerate() {
                let far = steps.len().min(done[i] + FAR);
                for j in done[i] + 1..far {
                    let mut before = (done[i]..j).filter(|k| !early[i].contains(k));
                    if !early[i].contains(&j)
                        && before.all(|k| !steps[k].op.meets(&steps[j].op))
                        && self.one(group, i, &steps[j], &mut cursor, work)?
                    {
                        early[i].push(j);
                        moved = true;
                    }
                }
                self.forget(group, &mut cursor, work);
            }
            if !moved {
                return Err(());
            }
        }
        let free = &mut work.free;
        for (sent, first) in group.sent.iter_mut().zip(&self.first) {
            sent.settle(*first, free);
        }
        Ok(())
    }

    /// Does a step of a core, if what it takes was sent. Returns whether.
    fn one(
        &self,
        group: &mut Group,
        core: usize,
        step: &Step,
        cursor: &mut Cursor,
        work: &mut Work,
    ) -> Result<bool, ()> {
        let Work { scratch, free } = work;
        let Group { memories, sent, .. } = group;
        // the stream into which it sends
        let own = match &step.op {
            Recorded::Slots { run, .. } => match run.dst {
                Arg::Out { queue, .. } => {
                    Some(self.map.places[self.map.log_of[queue as usize] as usize] as usize)
                }
                _ => None,
            },
            _ => None,
        };
        let Some(lie) = self.fetch(sent, step, own, cursor) else {
            return Ok(false);
        };
        let memory = &mut memories[core];
        memory.save(step.op.writes());
        let copied = &cursor.copied;
        match &step.op {
            Recorded::Slots { run, slots } => {
                let mut out = own.map_or_else(Sent::default, |place| std::mem::take(&mut sent[place]));
                let input = |i: usize| match &lie[i] {
                    Some((place, range)) => Input::Words(sent[*place].values.words_of(range.clone())),
                    None => Input::Any(&copied[i]),
                };
                let values = match own {
                    Some(_) => out.room(free),
                    None => &mut out.values,
                };
                let ended = run.lockstep(*slots, memory, [input(0), input(1)], values, scratch);
                if let Some(place) = own {
                    sent[place] = out;
                }
                ended?;
            }
            Recorded::Sums(sums) => memory.sums(scratch, sums),
            Recorded::Axpys { all, n, ty } => memory.axpys(scratch, *n, *ty, all),
            Recorded::Store { at, bytes } => memory.write(0..LANES, *at, bytes),
            Recorded::Same { at, bytes } if !memory.holds(*at, bytes) => return Err(()),
            Recorded::Takes { wavelet, .. } if copied[0].iter().any(|w| w.bits != wavelet.bits) => {
                return Err(());
            }
            Recorded::Same { .. } | Recorded::Takes { .. } | Recorded::Skips { .. } => {}
        }
        Ok(true)
    }

    /// Values that a core took, and that nobody will ask for, are forgotten.
    fn forget(&self, group: &mut Group, cursor: &mut Cursor, work: &mut Work) {
        for (place, taken) in cursor.took.drain(..) {
            let sent = &mut group.sent[place];
            let first = self.first[place];
            if cursor.left[place] == 0 {
                sent.settle(first, &mut work.free);
            } else if self.one_taker[place] {
                // half of it gone is worth a copy of the rest
                let gone = taken.min(first);
                if 2 * gone.saturating_sub(sent.first) >= sent.end() - sent.first {
                    sent.settle(gone, &mut work.free);
                }
            }
        }
    }

    /// What a step takes, if all of it was sent: as numbers that lie in one piece of a stream, another one than its own, or copied.
    fn fetch(
        &self,
        sent: &[Sent],
        step: &Step,
        own: Option<usize>,
        cursor: &mut Cursor,
    ) -> Option<[Option<Piece>; 2]> {
        let Map { feeds, places, .. } = &*self.map;
        let sources = &self.taken;
        let (queues, wavelets) = (taken(&step.op).0, step.wavelets);
        let all = || queues.iter().zip(&step.same);
        // first whether it is there, of all of them
        for (queue, _) in all().filter(|(_, same)| same.is_none()) {
            let Some(queue) = *queue else { continue };
            let mut at = cursor.at[queue as usize];
            let there = |s: Source| match feeds.get(s.log as usize) {
                None | Some(Some(_)) => true,
                Some(None) => sent[places[s.log as usize] as usize].end() >= s.index + s.n,
            };
            if !parts(&sources[queue as usize], &mut at, wavelets).all(there) {
                return None;
            }
        }
        let mut lie = [None, None];
        for (((queue, same), to), lie) in all().zip(&mut cursor.copied).zip(&mut lie) {
            to.clear();
            let Some(queue) = *queue else { continue };
            if let Some(same) = same {
                to.add(same, 0..same.len());
            }
            for Source { log, index, n } in
                parts(&sources[queue as usize], &mut cursor.at[queue as usize], wavelets)
            {
                let range = index as usize..(index + n) as usize;
                match feeds.get(log as usize) {
                    _ if same.is_some() => {}
                    None => self.outside[queue as usize].times(range, LANES, to),
                    Some(Some(feed)) => side_by_side(&feed[range], to),
                    Some(None) => {
                        let place = places[log as usize] as usize;
                        let from = (index - sent[place].first) as usize * LANES;
                        let range = from..from + n as usize * LANES;
                        let values = &sent[place].values;
                        let lies = step.in_words && n == wavelets && own != Some(place);
                        if lies && values.are_single(range.clone()) {
                            *lie = Some((place, range));
                        } else {
                            to.add(values, range);
                        }
                        cursor.left[place] -= n;
                        match cursor.took.iter_mut().find(|(p, _)| *p == place) {
                            Some((_, taken)) => *taken = index + n,
                            None => cursor.took.push((place, index + n)),
                        }
                    }
                }
            }
        }
        Some(lie)
    }
}

/// How far a group is in what it takes.
struct Cursor {
    /// Of each queue: the first source that no step before takes from, and how much of it one does.
    at: Vec<(usize, u64)>,
    /// Of each log: wavelets that are still to be taken in this batch.
    left: Vec<u64>,
    /// Logs from which the core at hand took something, and up to which value.
    took: Vec<(usize, u64)>,
    /// What the step at hand takes, where it had to be copied.
    copied: [Wavelets; 2],
}

impl Sent {
    /// The number after the last value's.
    fn end(&self) -> u64 {
        self.first + (self.values.len() / LANES) as u64
    }

    /// Where more is added.
    fn room(&mut self, free: &mut Vec<Wavelets>) -> &mut Wavelets {
        if !self.room
            && let Some(room) = free.pop()
        {
            let before = std::mem::replace(&mut self.values, room);
            self.values.add(&before, 0..before.len());
        }
        self.room = true;
        &mut self.values
    }

    /// Keeps what may still be asked for if values before `first` are not, in no more memory than that needs.
    fn settle(&mut self, first: u64, free: &mut Vec<Wavelets>) {
        let n = first.saturating_sub(self.first).min(self.end() - self.first);
        if n == 0 && !self.room {
            return;
        }
        let mut left = Wavelets::default();
        left.add(&self.values, n as usize * LANES..self.values.len());
        self.first += n;
        let mut room = std::mem::replace(&mut self.values, left);
        if std::mem::take(&mut self.room) {
            room.clear();
            free.push(room);
        }
    }
}

/// Adds wavelets that are the same in all columns.
fn side_by_side(wavelets: &[Wavelet], to: &mut Wavelets) {
    let mut some = Wavelets::default();
    some.add_all(wavelets);
    some.times(0..some.len(), LANES, to);
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
        Recorded::Skips { queue, n } => ([Some(*queue), None], *n),
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
