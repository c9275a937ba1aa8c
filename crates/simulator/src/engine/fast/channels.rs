//! Edge channels: what enters, and when (rule M15).

use super::Simulation;
use crate::engine::core::Room;

/// What enters by a channel, one wavelet a cycle.
#[derive(Clone, Default)]
pub(super) struct Gate {
    flow: Option<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    feed: u32,
    /// Up to this cycle what entered is counted.
    settled: u64,
}

impl Simulation<'_, '_> {
    /// Decides what enters by a channel from now on.
    pub fn visit_channel(&mut self, c: u32) {
        let (t, i) = (self.now, c as usize);
        let mut next = u64::MAX;
        if let Some(mut entry) = self.channels[i].flow {
            let cycles = t - entry.settled;
            if cycles > 0 {
                self.enter(i, cycles, t);
                entry.settled = t;
                self.channels[i].flow = Some(entry);
            } else if self.net.channels[i].channel.gap > 1 {
                // it began in this cycle, and ends with it
                self.gates.schedule(c, t + 1, t);
                return;
            }
        }
        let found = self.entering(i, t, &mut next);
        let goes_on = match (&self.channels[i].flow, &found) {
            (Some(old), Some((_, new))) => old.feed == new.feed,
            _ => false,
        };
        if !goes_on {
            if let Some(old) = self.channels[i].flow.take() {
                let queue = self.net.feed_queue[old.feed as usize];
                self.queues[queue as usize].end_puts(t, 0);
                self.puts_ended(queue, t);
            }
            if let Some((_, new)) = found {
                let queue = self.net.feed_queue[new.feed as usize];
                let log = self.feed_logs[new.feed as usize];
                let at = self.net.channels[i].position as u64;
                self.queues[queue as usize].put_on(t, log, at, &mut self.logs);
                self.put_into(queue, t);
                let channel = &mut self.net.channels[i];
                channel.next_in = t + channel.channel.gap as u64;
                self.channels[i].flow = Some(new);
            }
        }
        if let Some((cycles, _)) = found {
            next = next.min(t.saturating_add(cycles));
        }
        if next != u64::MAX {
            self.gates.schedule(c, next, t);
        }
    }

    /// `cycles` wavelets have entered, the last one in the cycle before `t`.
    fn enter(&mut self, i: usize, cycles: u64, t: u64) {
        self.event(t - 1);
        let latency = self.net.edge_latency as u64;
        self.net.last_arrival = self.net.last_arrival.max(t - 1 + latency);
        self.net.wavelets += cycles;
        self.net.edge_wavelets += cycles;
        let channel = &mut self.net.channels[i];
        channel.position += cycles as usize;
        if let Some(&f) = channel.feeds.front()
            && channel.position == self.net.data[f as usize].len()
        {
            channel.feeds.pop_front();
            channel.position = 0;
        }
        let before = self.net.epoch;
        self.net.left_in_epoch[before as usize] -= cycles as usize;
        if self.net.advance_epoch(t) {
            for c in 0..self.channels.len() as u32 {
                self.gates.schedule(c, t, t);
            }
            if before == 0 {
                self.gates.schedule(self.channels.len() as u32, t, t);
            }
        }
    }

    /// What enters in cycle `t`, and for how many cycles for sure.
    fn entering(&mut self, i: usize, t: u64, next: &mut u64) -> Option<(u64, Entry)> {
        let c = &self.net.channels[i];
        let &feed = c.feeds.front()?;
        if self.net.feeds[feed as usize].epoch != self.net.epoch {
            return None;
        }
        let gap = c.channel.gap as u64;
        if gap > 1 && t < c.next_in {
            let waits = c.next_in;
            self.event(waits - 1);
            *next = (*next).min(waits);
            return None;
        }
        let queue = self.net.feed_queue[feed as usize];
        let q = &mut self.queues[queue as usize];
        let room = match q.room(t) {
            Room::Now(n) => n,
            Room::Soon => {
                *next = (*next).min(t + 1);
                return None;
            }
            Room::None => {
                q.wants_room = true;
                return None;
            }
        };
        let left = self.net.data[feed as usize].len() - c.position;
        let cycles = if gap > 1 { 1 } else { room.min(left as u64) };
        Some((cycles, Entry { feed, settled: t }))
    }
}
