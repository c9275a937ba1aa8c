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
    /// Entries in `near`, stale ones included.
    listed: usize,
}

impl Calendar {
    pub fn new(components: usize) -> Calendar {
        Calendar {
            near: vec![Vec::new(); NEAR as usize],
            far: BinaryHeap::new(),
            at: vec![u64::MAX; components],
            listed: 0,
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
            self.near[(time % NEAR) as usize].push(component);
            self.listed += 1;
        } else {
            self.far.push(Reverse((time, component)));
        }
    }

    /// The first cycle from `now` on in which there is something to look at.
    pub fn earliest(&mut self, now: u64) -> Option<u64> {
        let mut time = now;
        loop {
            while let Some(&Reverse((far, component))) = self.far.peek()
                && far - time < NEAR
            {
                self.far.pop();
                if self.at[component as usize] == far {
                    self.near[(far % NEAR) as usize].push(component);
                    self.listed += 1;
                }
            }
            let list = &mut self.near[(time % NEAR) as usize];
            while let Some(&component) = list.last() {
                if self.at[component as usize] == time {
                    return Some(time);
                }
                list.pop();
                self.listed -= 1;
            }
            if self.listed > 0 {
                time += 1;
            } else if let Some(&Reverse((far, _))) = self.far.peek() {
                time = far;
            } else {
                return None;
            }
        }
    }

    /// A component to look at in cycle `now`, before which there is none.
    #[inline]
    pub fn pop(&mut self, now: u64) -> Option<u32> {
        while let Some(component) = self.near[(now % NEAR) as usize].pop() {
            self.listed -= 1;
            if self.at[component as usize] == now {
                self.at[component as usize] = u64::MAX;
                return Some(component);
            }
        }
        None
    }
}
