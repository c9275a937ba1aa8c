//! Queues whose contents are known by rule rather than wavelet by wavelet: one wavelet in each cycle of an interval is put, one in each
//! cycle of another is taken.

use crate::engine::core::{Head, Room};
use crate::engine::wavelets::Wavelets;
use crate::program::Wavelet;
use std::collections::VecDeque;
use std::sync::Arc;

/// The cycles in which something happened, at most once a cycle but for one exception.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moves {
    /// How often before `since`.
    base: u64,
    /// Once in each cycle from here ...
    since: u64,
    /// ... to before this one; `u64::MAX` if it goes on.
    end: u64,
    /// A cycle with one more, `u64::MAX` if there is none: a task and a step may take from one queue in one cycle.
    extra: u64,
}

impl Default for Moves {
    fn default() -> Moves {
        Moves {
            base: 0,
            since: 0,
            end: 0,
            extra: u64::MAX,
        }
    }
}

impl Moves {
    /// How often before cycle `t`.
    #[inline]
    pub fn before(&self, t: u64) -> u64 {
        self.base + t.min(self.end).saturating_sub(self.since) + (self.extra < t) as u64
    }

    /// Whether it goes on until it is closed.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.end == u64::MAX
    }

    /// Whether it goes on, and did or does so in cycle `t`.
    #[inline]
    pub fn flows(&self, t: u64) -> bool {
        self.is_open() && self.since <= t
    }

    /// The cycle after the last one, unless it is open.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Begins in cycle `t`, or goes on. What happened in the cycle before stays apart: others may still ask for its start.
    fn restart(&mut self, t: u64) {
        if self.end != t {
            self.base = self.before(t);
            self.since = t;
            self.extra = u64::MAX;
        } else if self.extra < t.saturating_sub(1) {
            self.base += 1;
            self.extra = u64::MAX;
        }
    }

    /// Once in cycle `t`.
    #[inline]
    pub fn once(&mut self, t: u64) {
        if self.end == t + 1 {
            debug_assert!(self.extra != t, "three wavelets in a cycle");
            self.base += (self.extra < u64::MAX) as u64;
            self.extra = t;
            return;
        }
        self.restart(t);
        self.end = t + 1;
    }

    /// Once a cycle from `t` on.
    #[inline]
    pub fn open(&mut self, t: u64) {
        self.restart(t);
        self.end = u64::MAX;
    }

    /// Not in cycle `t` nor later.
    #[inline]
    pub fn close(&mut self, t: u64) {
        debug_assert!(self.is_open() && self.since <= t);
        self.end = t;
    }
}

/// Wavelets that follow each other in the cycles from `at` on, numbered from `first` in this queue and from `index` in their log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub first: u64,
    /// `u64::MAX` while more come.
    pub count: u64,
    /// The cycle in which the first one was put on the link.
    pub at: u64,
    pub log: u32,
    pub index: u64,
    /// The flagged ones among them, the last one being one, for who turns a switch by them. 0 in a feed's, which knows its flags.
    pub flags: u64,
}

impl Segment {
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// A queue and the link that ends in it.
pub(super) struct Queue {
    pub capacity: u64,
    pub latency: u64,
    pub puts: Moves,
    pub takes: Moves,
    pub segments: VecDeque<Segment>,
    /// The component that puts, and the one that takes.
    pub putter: u32,
    pub taker: u32,
    /// Of a router the stream that does.
    pub putting: u8,
    pub taking: u8,
    /// The taker waits for a wavelet, the putter for room.
    pub wants_head: bool,
    pub wants_room: bool,
    /// Of the flagged wavelets that are put only every so manieth may turn a switch: 0 if none may. Cores see the wavelets themselves.
    pub turns: u64,
    /// Wavelets of which a core has read the values.
    pub read: u64,
    /// Arrivals of the wavelets of forgotten segments, if they are recorded.
    pub record: Option<Vec<u64>>,
}

impl Queue {
    /// What can be taken from cycle `t` on.
    pub fn head(&self, t: u64) -> Head {
        let n = self.takes.before(t);
        match self.segment(n) {
            None => Head::None,
            Some(s) => {
                let arrival = s.at + (n - s.first) + self.latency;
                if arrival > t {
                    Head::At(arrival)
                } else if s.count == u64::MAX {
                    Head::Now(u64::MAX)
                } else {
                    Head::Now(s.end() - n)
                }
            }
        }
    }

    /// Whether the wavelet of this number has arrived in cycle `t`.
    pub fn arrived(&self, n: u64, t: u64) -> bool {
        self.segment(n)
            .is_some_and(|s| s.at + (n - s.first) + self.latency <= t)
    }

    /// The segment of the wavelet of this number.
    #[inline]
    pub fn segment(&self, n: u64) -> Option<&Segment> {
        let first = self.segments.front()?;
        if n < first.end() {
            return Some(first);
        }
        self.segments.iter().skip(1).find(|s| n < s.end())
    }

    /// What can be put from cycle `t` on.
    pub fn room(&self, t: u64) -> Room {
        // a flow whose end in this cycle is still to be found may seem to take more than there is; its end wakes who relied on it
        let held = self.puts.before(t).saturating_sub(self.takes.before(t));
        if held >= self.capacity {
            if self.takes.flows(t) || self.takes.end() == t + 1 {
                return Room::Soon;
            }
            return Room::None;
        }
        if self.takes.flows(t) {
            Room::Now(u64::MAX)
        } else {
            Room::Now(self.capacity - held)
        }
    }

    /// Whether a wavelet put in cycle `t` would follow the last segment without a gap.
    fn follows(&self, t: u64, log: u32, index: u64) -> bool {
        self.segments.back().is_some_and(|s| {
            s.flags == 0
                && s.count != u64::MAX
                && s.log == log
                && s.index + s.count == index
                && s.at + s.count == t
        })
    }

    /// Puts one wavelet in cycle `t`.
    pub fn put(&mut self, t: u64, log: u32, index: u64, flag: bool, logs: &mut [Log]) {
        let first = self.puts.before(t);
        let flags = (flag && self.turns > 0) as u64;
        self.puts.once(t);
        if self.follows(t, log, index) {
            let last = self.segments.back_mut().expect("it was looked at");
            last.count += 1;
            last.flags = flags;
            return;
        }
        logs[log as usize].held += 1;
        self.segments.push_back(Segment {
            first,
            count: 1,
            at: t,
            log,
            index,
            flags,
        });
    }

    /// Puts one wavelet a cycle from `t` on.
    pub fn put_on(&mut self, t: u64, log: u32, index: u64, logs: &mut [Log]) {
        let first = self.puts.before(t);
        self.puts.open(t);
        if self.follows(t, log, index) {
            self.segments.back_mut().expect("it was looked at").count = u64::MAX;
            return;
        }
        logs[log as usize].held += 1;
        self.segments.push_back(Segment {
            first,
            count: u64::MAX,
            at: t,
            log,
            index,
            flags: 0,
        });
    }

    /// No more is put from `t` on; so many were flagged, the last one among them.
    pub fn end_puts(&mut self, t: u64, flags: u64) {
        self.puts.close(t);
        let n = self.puts.before(t);
        let last = self.segments.back_mut().expect("an open segment");
        last.count = n - last.first;
        last.flags = if self.turns > 0 { flags } else { 0 };
    }

    /// Forgets segments of which all wavelets have numbers below `n`.
    pub fn forget(&mut self, n: u64, logs: &mut [Log]) {
        while let Some(s) = self.segments.front()
            && s.count != u64::MAX
            && s.end() <= n
        {
            let log = s.log;
            release(logs, log);
            if let (Some(record), Some(s)) = (&mut self.record, self.segments.pop_front()) {
                let first = s.at + self.latency;
                record.extend(first..first + s.count);
            }
        }
    }

    /// The arrivals of all wavelets, of which none is to come.
    pub fn recorded(&mut self, logs: &mut [Log]) -> Option<Vec<u64>> {
        self.forget(u64::MAX - 1, logs);
        self.record.take()
    }
}

/// Values at the front of a log that are worth being forgotten.
const PAST: usize = 1024;

/// The wavelets that a core sent on a colour, or those of a feed, by number. A core's are kept while any queue holds one of them, a feed's
/// always.
#[derive(Default)]
pub(super) struct Log {
    pub feed: Option<Arc<Vec<Wavelet>>>,
    /// The numbers of a feed's flagged wavelets.
    flags: Vec<u64>,
    /// The PE whose core sends them.
    pub source: u32,
    values: Wavelets,
    /// The number of the first value.
    base: u64,
    /// Of these values so many at the front are not asked for any more.
    past: usize,
    /// Only one core or drain gets what the core sends, each wavelet once: what it has read is not asked for any more.
    pub one_reader: bool,
    /// Segments, and parts of joined logs, that refer to it.
    held: u32,
    /// What was sent by several, one after another ([`Joined`]).
    joined: Option<Joined>,
}

/// What flows on from a switch to where no other one is: wavelets of one source after those of another, as if they were of one.
#[derive(Default)]
struct Joined {
    parts: VecDeque<JoinedPart>,
    /// Up to before this number all values are known to be there.
    supplied: u64,
}

/// Wavelets that follow each other in a log, numbered from `first` in the joined one.
#[derive(Clone, Copy)]
pub(super) struct JoinedPart {
    pub first: u64,
    /// `u64::MAX` while more come.
    pub count: u64,
    pub log: u32,
    pub index: u64,
}

impl JoinedPart {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

impl Log {
    /// Of what a core sends.
    pub fn of_core(source: u32) -> Log {
        Log {
            source,
            ..Log::default()
        }
    }

    /// Of a feed.
    pub fn of_feed(data: Arc<Vec<Wavelet>>) -> Log {
        let mut values = Wavelets::with_capacity(data.len());
        let mut flags = Vec::new();
        // few enough at a time to be in the host's cache for all that is done with them
        for part in data.chunks(1024) {
            let first = values.len() as u64;
            if values.add_host(part) {
                flags.extend((first..).zip(part).filter(|(_, w)| w.flag).map(|(n, _)| n));
            }
        }
        Log {
            flags,
            values,
            feed: Some(data),
            ..Log::default()
        }
    }

    /// How many of `n` wavelets of a feed from `index` on are flagged; `None` if it is another kind of log.
    pub fn feed_flags(&self, index: u64, n: u64) -> Option<u64> {
        self.feed.as_ref()?;
        let before = |index| self.flags.partition_point(|f| *f < index) as u64;
        Some(before(index + n) - before(index))
    }

    /// How many wavelets of a feed there are from `index` on up to the one that is the `n`th flagged one; `None` if there is none.
    pub fn up_to_flag(&self, index: u64, n: u64) -> Option<u64> {
        let first = self.flags.partition_point(|f| *f < index);
        let flag = self.flags.get(first + n as usize - 1)?;
        Some(flag + 1 - index)
    }

    /// Of what a switch lets by.
    pub fn of_switch() -> Log {
        Log {
            joined: Some(Joined::default()),
            ..Log::default()
        }
    }

    /// The part of a joined log whose values come next, and up to where they are there; `None` if it is another kind of log.
    pub fn unsupplied(&self) -> Option<(u64, Option<JoinedPart>)> {
        let j = self.joined.as_ref()?;
        let i = j.parts.partition_point(|p| p.end() <= j.supplied);
        Some((j.supplied, j.parts.get(i).copied()))
    }

    /// Values of a joined log are there up to before `index`.
    pub fn supplied(&mut self, index: u64) {
        if let Some(j) = &mut self.joined {
            j.supplied = index;
        }
    }

    /// The number of the first value that may still be asked for.
    pub fn first(&self) -> u64 {
        self.base + self.past as u64
    }

    /// The number of the next value.
    pub fn next(&self) -> u64 {
        self.base + self.values.len() as u64
    }

    pub fn push(&mut self, w: Wavelet) {
        self.values.push(w);
    }

    /// The values, to add some at the end.
    pub fn values(&mut self) -> &mut Wavelets {
        &mut self.values
    }

    /// Adds `n` values from `index` on, of a log that is not joined, to others.
    fn read(&mut self, index: u64, n: u64, to: &mut Wavelets) {
        let from = (index - self.base) as usize;
        let end = from + n as usize;
        if self.one_reader && from == 0 && end == self.values.len() && to.len() == 0 {
            self.base += n;
            self.past = 0;
            std::mem::swap(&mut self.values, to);
            return;
        }
        to.add(&self.values, from..end);
        if self.one_reader {
            self.past = end;
            if self.past == self.values.len() {
                self.empty();
            } else if self.past >= PAST && 2 * self.past > self.values.len() {
                self.values.drop_first(self.past);
                self.base += self.past as u64;
                self.past = 0;
            }
        }
    }

    /// None of its values is asked for any more.
    fn empty(&mut self) {
        self.base = self.next();
        self.values.clear();
        self.past = 0;
    }
}

/// Adds `n` values of a log from `index` on, which a core or drain gets.
pub(super) fn read(logs: &mut [Log], log: u32, index: u64, n: u64, to: &mut Wavelets) {
    let (mut at, end) = (index, index + n);
    let Some(j) = &logs[log as usize].joined else {
        logs[log as usize].read(index, n, to);
        return;
    };
    let mut i = j.parts.partition_point(|p| p.end() <= at);
    while at < end
        && let Some(j) = &logs[log as usize].joined
    {
        let p = j.parts[i];
        let n = end.min(p.end()) - at;
        read(logs, p.log, p.index + (at - p.first), n, to);
        at += n;
        i += 1;
    }
}

/// Where `n` values of a log from `index` on lie, in logs that are not joined: tells each part's log, first number and how many.
pub(super) fn sources(logs: &[Log], log: u32, index: u64, n: u64, tell: &mut impl FnMut(u32, u64, u64)) {
    let Some(j) = &logs[log as usize].joined else {
        tell(log, index, n);
        return;
    };
    let (mut at, end) = (index, index + n);
    for p in &j.parts {
        if at < end && at >= p.first && at < p.end() {
            let n = end.min(p.end()) - at;
            sources(logs, p.log, p.index + (at - p.first), n, tell);
            at += n;
        }
    }
}

/// What follows in a joined log comes from another one, from `index` on. Returns its number in the joined one.
pub(super) fn join(logs: &mut [Log], joined: u32, log: u32, index: u64) -> u64 {
    logs[log as usize].held += 1;
    let into = &mut logs[joined as usize];
    let first = into.base;
    let j = into.joined.as_mut().expect("a switch's log");
    j.parts.push_back(JoinedPart {
        first,
        count: u64::MAX,
        log,
        index,
    });
    first
}

/// What was joined last has come up to before `index` of its own log.
pub(super) fn end_joined(logs: &mut [Log], joined: u32, index: u64) {
    let into = &mut logs[joined as usize];
    let j = into.joined.as_mut().expect("a switch's log");
    let last = j.parts.back_mut().expect("a part that comes");
    last.count = index - last.index;
    into.base = last.end();
}

/// A segment that refers to a log is forgotten.
fn release(logs: &mut [Log], log: u32) {
    let l = &mut logs[log as usize];
    l.held -= 1;
    if l.held > 0 {
        return;
    }
    let Some(j) = &mut l.joined else {
        if l.feed.is_none() {
            l.empty();
        }
        return;
    };
    // a part that still comes has a segment
    j.supplied = l.base;
    for part in std::mem::take(&mut j.parts) {
        release(logs, part.log);
    }
}
