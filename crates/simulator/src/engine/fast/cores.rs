//! Cores: the cycle in which one is looked at is executed as the rules say; those in between in one go, when their numbers are needed.

use super::flow::{read, sources};
use super::{Pe, Simulation};
use crate::engine::Class;
use crate::engine::core::{Flows, Head, Outlook, Ports, Room};
use crate::engine::wavelets::Wavelets;
use crate::program::{Color, Wavelet};

impl Ports for Simulation<'_, '_> {
    fn core_in(&self, pe: u32, color: Color) -> u32 {
        self.net.core_in.get(pe, color)
    }

    fn core_out(&self, pe: u32, color: Color) -> u32 {
        self.net.core_out.get(pe, color)
    }

    fn arrived(&self, queue: u32, now: u64) -> bool {
        let q = &self.queues[queue as usize];
        // a task may have taken one in this very cycle
        q.arrived(q.read, now)
    }

    fn has_room(&self, queue: u32, now: u64) -> bool {
        matches!(self.queues[queue as usize].room(now), Room::Now(_))
    }

    fn pop(&mut self, queue: u32, now: u64) -> Wavelet {
        let q = &self.queues[queue as usize];
        let n = q.read;
        let s = *q.segment(n).expect("only arrived wavelets are taken");
        let index = s.index + (n - s.first);
        let wavelet = if self.supply(s.log, index + 1) > index {
            let mut one = std::mem::take(&mut self.popped);
            one.clear();
            self.take(queue, s.log, index, 1, &mut one);
            let wavelet = one.get(0);
            self.popped = one;
            wavelet
        } else {
            self.fault = true;
            Wavelet::default()
        };
        let q = &mut self.queues[queue as usize];
        q.takes.once(now);
        q.read += 1;
        q.forget(n + 1, &mut self.logs);
        self.taken_from(queue, now);
        wavelet
    }

    fn send(&mut self, queue: u32, now: u64, wavelet: Wavelet) {
        let log = self.log_of[queue as usize];
        let index = self.logs[log as usize].next();
        self.logs[log as usize].push(wavelet);
        self.queues[queue as usize].put(now, log, index, wavelet.flag, &mut self.logs);
        self.put_into(queue, now);
        self.net.wavelets += 1;
        self.net.last_arrival = self.net.last_arrival.max(now + 1);
    }
}

impl Flows for Simulation<'_, '_> {
    fn head(&self, queue: u32, now: u64) -> Head {
        self.queues[queue as usize].head(now)
    }

    fn room(&self, queue: u32, now: u64) -> Room {
        self.queues[queue as usize].room(now)
    }

    fn await_head(&mut self, queue: u32) {
        self.queues[queue as usize].wants_head = true;
    }

    fn await_room(&mut self, queue: u32) {
        self.queues[queue as usize].wants_room = true;
    }

    fn was_taken(&self, queue: u32, now: u64) -> bool {
        self.queues[queue as usize].takes.end() == now
    }

    fn was_put(&self, queue: u32, now: u64) -> bool {
        self.queues[queue as usize].puts.end() == now
    }
}

impl Simulation<'_, '_> {
    /// A core takes `n` wavelets of a log from `index` on: other columns take theirs.
    fn take(&mut self, queue: u32, log: u32, index: u64, n: u64, to: &mut Wavelets) {
        let Some(others) = &mut self.others else {
            return read(&mut self.logs, log, index, n, to);
        };
        let (from, mut outside) = (to.len(), Vec::new());
        let mut at = from;
        let tell = &mut |log, index, n: u64| {
            let range = at..at + n as usize;
            at = range.end;
            if others.takes(queue, log, index, n) {
                outside.push(range);
            }
        };
        sources(&self.logs, log, index, n, tell);
        read(&mut self.logs, log, index, n, to);
        for range in outside {
            others.keep(queue, to, range);
        }
    }

    /// Executes a core's cycle, and decides what it does from the next one on.
    pub fn visit_core(&mut self, pe: u32) {
        let t = self.now;
        self.catch_up(pe, t);
        let Some(mut core) = self.cores[pe as usize].take() else {
            return;
        };
        if core.from > t {
            // what it did alone goes on
            let component = self.core(pe);
            self.calendar.schedule(component, core.from, t);
            self.cores[pe as usize] = Some(core);
            return;
        }
        if core.from != t {
            self.fault = true;
        }
        if self.fault {
            return;
        }
        let (takes, puts) = (core.outlook.takes, core.outlook.puts);
        let takes = takes.map(|q| q.filter(|q| self.queues[*q as usize].takes.is_open()));
        let puts = puts.filter(|q| self.queues[*q as usize].puts.is_open());
        for q in takes.into_iter().flatten() {
            self.queues[q as usize].takes.close(t);
        }
        if let Some(q) = puts {
            self.queues[q as usize].end_puts(t, 0);
        }
        let rules = self.rules;
        match core.core.cycle(self, &rules, t) {
            Ok(cycle) => {
                if cycle.event {
                    self.event(t);
                }
                if let Some((color, w)) = cycle.sent {
                    for &(c, i) in &self.probes[pe as usize] {
                        if c == color {
                            self.probed[i].push(w);
                        }
                    }
                }
            }
            Err(_) => {
                self.fault = true;
                return;
            }
        }
        let class = core.core.class;
        core.core.counters.classes[class as usize] += 1;
        self.paths.single += matches!(class, Class::Busy | Class::Launch) as u64;
        if self.computes && class == Class::Busy {
            core.core.counters.first_busy.get_or_insert(t);
        }
        // what nobody can interrupt or see is done at once
        let alone = match self.computes {
            true => self.alone(&mut core, t + 1),
            false => 0,
        };
        let u = t + 1 + alone;
        let mut outlook = match alone {
            0 => core.core.outlook(self, &rules, u),
            _ => Outlook::nothing(u),
        };
        if outlook.until > u {
            for q in outlook.takes.into_iter().flatten() {
                self.queues[q as usize].takes.open(u);
            }
            if let Some(q) = outlook.puts {
                let log = self.log_of[q as usize];
                let index = self.logs[log as usize].next();
                self.queues[q as usize].put_on(u, log, index, &mut self.logs);
            }
        } else {
            (outlook.takes, outlook.puts) = ([None; 2], None);
        }
        for q in takes.into_iter().flatten() {
            let moves = self.queues[q as usize].takes;
            if !moves.is_open() {
                self.takes_ended(q, moves.end());
            }
        }
        if let Some(q) = puts {
            let moves = self.queues[q as usize].puts;
            if !moves.is_open() {
                self.puts_ended(q, moves.end());
            }
        }
        if outlook.until != u64::MAX {
            let component = self.core(pe);
            self.calendar.schedule(component, outlook.until.max(u), t);
        }
        core.outlook = outlook;
        core.from = u;
        self.cores[pe as usize] = Some(core);
    }

    /// Executes what a core's main thread does by itself from cycle `u` on, if it has no other thread. Returns for how many cycles.
    fn alone(&mut self, core: &mut Pe, u: u64) -> u64 {
        let issue = core.core.issue_first(&self.rules);
        let Ok(cycles) = core.core.run_alone(&self.rules, u, &mut self.scratch) else {
            self.fault = true;
            return 0;
        };
        if cycles > 0 {
            core.core.counters.first_busy.get_or_insert(u + issue);
            self.paths.ahead += cycles;
            self.event(u + cycles - 1);
        }
        cycles
    }

    /// Has the values of a log up to before `index` computed, as far as they can be now. Returns how far they are.
    pub fn supply(&mut self, log: u32, index: u64) -> u64 {
        if let Some((mut there, mut part)) = self.logs[log as usize].unsupplied() {
            while let Some(p) = part
                && there < index
            {
                let wanted = index.min(p.first.saturating_add(p.count));
                let got = self.supply(p.log, p.index + (wanted - p.first));
                there = wanted.min((p.first + got).saturating_sub(p.index)).max(there);
                self.logs[log as usize].supplied(there);
                if there < wanted {
                    break;
                }
                part = self.logs[log as usize].unsupplied().and_then(|(_, part)| part);
            }
            return there;
        }
        let l = &self.logs[log as usize];
        if let Some(feed) = &l.feed {
            return feed.len() as u64;
        }
        if l.next() < index {
            let source = l.source;
            self.catch_up(source, self.now);
        }
        self.logs[log as usize].next()
    }

    /// How many of the next `n` wavelets in a queue into a core have values.
    fn readable(&mut self, queue: u32, n: u64) -> u64 {
        let mut got = 0;
        while got < n {
            let q = &self.queues[queue as usize];
            let number = q.read + got;
            let s = *q.segment(number).expect("what is taken was put");
            let part = (n - got).min(s.first.saturating_add(s.count) - number);
            let index = s.index + (number - s.first);
            let there = self.supply(s.log, index + part).saturating_sub(index).min(part);
            got += there;
            if there < part {
                break;
            }
        }
        got
    }

    /// Executes a core's cycles up to before `t`; fewer if it needs numbers of a core that is just being executed.
    pub fn catch_up(&mut self, pe: u32, t: u64) {
        let Some(mut core) = self.cores[pe as usize].take() else {
            return;
        };
        while core.from < t && !self.fault {
            let mut n = t - core.from;
            for q in core.outlook.takes.into_iter().flatten() {
                n = n.min(self.readable(q, n));
            }
            if n == 0 {
                break;
            }
            let mut taken = std::mem::take(&mut self.taken);
            for (q, to) in core.outlook.takes.iter().zip(&mut taken) {
                to.clear();
                if let Some(q) = q {
                    self.read(*q, n, to);
                }
            }
            let (from, outlook) = (core.from, core.outlook);
            // what it sends goes to the end of its log at once
            let log = outlook.puts.map(|q| self.log_of[q as usize] as usize);
            let mut sent = match log {
                Some(log) => std::mem::take(self.logs[log].values()),
                None => Wavelets::default(),
            };
            let before = sent.len();
            let busy = core.core.busy_after(&self.rules, &outlook, n);
            let done = core.core.leap(
                &self.rules,
                &outlook,
                from,
                n,
                &mut taken,
                &mut sent,
                &mut self.scratch,
            );
            self.fault |= done.is_err();
            core.from += n;
            if let (Some(q), Some(log)) = (outlook.puts, log) {
                for &(c, i) in &self.probes[pe as usize] {
                    if self.core_out(pe, c) == q {
                        self.probed[i].extend(sent.iter().skip(before));
                    }
                }
                self.net.wavelets += (sent.len() - before) as u64;
                self.net.last_arrival = self.net.last_arrival.max(core.from);
                *self.logs[log].values() = sent;
            }
            self.taken = taken;
            if outlook.is_event() {
                let path = match outlook.ahead {
                    true => &mut self.paths.ahead,
                    false => &mut self.paths.leap,
                };
                *path += n;
                self.event(core.from - 1);
            }
            if let (true, Some(idle)) = (self.computes, busy) {
                core.core.counters.first_busy.get_or_insert(from + idle);
            }
        }
        self.cores[pe as usize] = Some(core);
    }

    /// The values of the next `n` wavelets in a queue into a core, which are then read.
    fn read(&mut self, queue: u32, n: u64, to: &mut Wavelets) {
        let mut got = 0;
        while got < n {
            let q = &self.queues[queue as usize];
            let number = q.read + got;
            let s = *q.segment(number).expect("what is taken was put");
            let part = (n - got).min(s.first.saturating_add(s.count) - number);
            let index = s.index + (number - s.first);
            self.take(queue, s.log, index, part, to);
            got += part;
        }
        let q = &mut self.queues[queue as usize];
        q.read += n;
        q.forget(q.read, &mut self.logs);
    }
}
