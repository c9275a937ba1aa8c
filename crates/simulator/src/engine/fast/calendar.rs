//! Which component is to be looked at when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Cycles ahead that have a list of their own.
const NEAR: u64 = 1024;

/// A list a cycle for the near ones, a heap for the rest. A component is in it once: at its earliest cycle.
pub(super) struct Calendar {
    near: Vec<Vec<u32>>,
    far: BinaryHeap<Reverse<(u64, u32)>>,
    /// When each component is to be looked at; `u64::MAX` for never.
    at: Vec<u64>,
    /// Which lists of `near` have entries, stale ones included, one bit each.
    listed: [u64; NEAR as usize / 64],
}

impl Calendar {
    pub fn new(components: usize) -> Calendar {
        Calendar {
            near: vec![Vec::new(); NEAR as usize],
            far: BinaryHeap::new(),
            at: vec![u64::MAX; components],
            listed: [0; NEAR as usize / 64],
        }
    }

    /// Has the component looked at in cycle `time`, not before `now`, unless that happens earlier anyway.
    #[inline]
    pub fn schedule(&mut self, component: u32, time: u64, now: u64) {
        let at = &mut self.at[component as usize];
        if *at <= time {
            return;
        }
        *at = time;
        if time - now < NEAR {
            let list = (time % NEAR) as usize;
            self.near[list].push(component);
            self.listed[list / 64] |= 1 << (list % 64);
        } else {
            self.far.push(Reverse((time, component)));
        }
    }

    /// The first cycle from `now` on in which there is something to look at.
    pub fn earliest(&mut self, now: u64) -> Option<u64> {
        while let Some(&Reverse((far, component))) = self.far.peek()
            && self.at[component as usize] != far
        {
            self.far.pop();
        }
        let far = self.far.peek().map(|Reverse((far, _))| *far);
        while let Some(time) = self.listed_from(now) {
            let i = (time % NEAR) as usize;
            let list = &mut self.near[i];
            while let Some(&component) = list.last() {
                if self.at[component as usize] == time {
                    return Some(far.map_or(time, |far| far.min(time)));
                }
                list.pop();
            }
            self.listed[i / 64] &= !(1 << (i % 64));
        }
        far
    }

    /// The first near cycle, `now` or later, whose list has entries.
    #[inline]
    fn listed_from(&self, now: u64) -> Option<u64> {
        let (words, from) = (self.listed.len(), (now % NEAR) as usize);
        // the word of `now` comes twice: first the bits from there on, at the end those before
        for n in 0..=words {
            let i = (from / 64 + n) % words;
            let mut word = self.listed[i];
            if n == 0 {
                word &= u64::MAX << (from % 64);
            }
            if word > 0 {
                let list = (64 * i + word.trailing_zeros() as usize) as u64;
                return Some(now + (NEAR + list - from as u64) % NEAR);
            }
        }
        None
    }

    /// A component to look at in cycle `now`, before which there is none.
    #[inline]
    pub fn pop(&mut self, now: u64) -> Option<u32> {
        while let Some(component) = self.near[(now % NEAR) as usize].pop() {
            if self.at[component as usize] == now {
                self.at[component as usize] = u64::MAX;
                return Some(component);
            }
        }
        while let Some(&Reverse((far, component))) = self.far.peek()
            && far <= now
        {
            self.far.pop();
            if self.at[component as usize] == now {
                self.at[component as usize] = u64::MAX;
                return Some(component);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Near and far entries, some overtaken by an earlier one, come in the order of their cycles, each once.
    #[test]
    fn in_order_near_and_far() {
        let mut c = Calendar::new(6);
        for (component, time) in [(0, 3), (1, 3 + NEAR), (2, 5 * NEAR + 3), (3, 7 * NEAR), (4, 2)] {
            c.schedule(component, time, 0);
        }
        c.schedule(3, 40, 0);
        let (mut now, mut got) = (0, Vec::new());
        while let Some(time) = c.earliest(now) {
            now = time;
            while let Some(component) = c.pop(now) {
                got.push((now, component));
                if component == 0 && now == 3 {
                    // in the slot that the far entry of component 1 will have
                    c.schedule(5, 2 + NEAR, now);
                    c.schedule(0, 3 + NEAR, now);
                }
            }
        }
        got.sort();
        let want = [
            (2, 4),
            (3, 0),
            (40, 3),
            (2 + NEAR, 5),
            (3 + NEAR, 0),
            (3 + NEAR, 1),
            (5 * NEAR + 3, 2),
        ];
        assert_eq!(got, want);
    }
}
