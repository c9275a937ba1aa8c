//! Counters of all PEs in little memory: a large program has many stages, and in each of them most PEs of a large mesh are idle.

use super::PeCounters;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::{Index, IndexMut};

/// The counters of each PE, row by row of the mesh; those that are equal are kept once.
#[derive(Clone, Debug, Default)]
pub struct SharedCounters {
    different: Vec<PeCounters>,
    /// Of each PE, which of them.
    of: Vec<u32>,
}

impl SharedCounters {
    /// How many PEs.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there is no PE.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Those of all PEs.
    pub fn iter(&self) -> impl Iterator<Item = &PeCounters> {
        self.of.iter().map(|i| &self.different[*i as usize])
    }
}

impl From<Vec<PeCounters>> for SharedCounters {
    fn from(all: Vec<PeCounters>) -> SharedCounters {
        let mut shared = SharedCounters::default();
        // by hash: the counters themselves are kept once
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let mut known: HashMap<u64, u32> = HashMap::new();
        for pe in all {
            // idle neighbours are equal
            if let Some(&last) = shared.of.last()
                && shared.different[last as usize] == pe
            {
                shared.of.push(last);
                continue;
            }
            let next = shared.different.len() as u32;
            let index = *known.entry(hasher.hash_one(pe)).or_insert(next);
            let same = shared.different.get(index as usize) == Some(&pe);
            if !same {
                shared.different.push(pe);
            }
            shared.of.push(if same { index } else { next });
        }
        shared.different.shrink_to_fit();
        shared
    }
}

impl Index<usize> for SharedCounters {
    type Output = PeCounters;

    fn index(&self, pe: usize) -> &PeCounters {
        &self.different[self.of[pe] as usize]
    }
}

impl IndexMut<usize> for SharedCounters {
    fn index_mut(&mut self, pe: usize) -> &mut PeCounters {
        // others may share what it has
        let own = self[pe];
        self.of[pe] = self.different.len() as u32;
        self.different.push(own);
        let last = self.different.len() - 1;
        &mut self.different[last]
    }
}

impl PartialEq for SharedCounters {
    fn eq(&self, other: &SharedCounters) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for SharedCounters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_counters_are_kept_once_and_change_alone() {
        let of = |busy: u64| PeCounters {
            last_busy: busy,
            ..PeCounters::default()
        };
        let all: Vec<PeCounters> = [3, 7, 3, 3].map(of).to_vec();
        let mut shared = SharedCounters::from(all.clone());
        assert_eq!((shared.len(), shared.different.len()), (4, 2));
        assert!(shared.iter().eq(&all));
        shared[2].last_busy = 8;
        assert!(shared.iter().eq(&[3, 7, 8, 3].map(of)));
        assert_ne!(shared, SharedCounters::from(all));
        shared[2].last_busy = 3;
        assert_eq!(shared, SharedCounters::from([3, 7, 3, 3].map(of).to_vec()));
    }
}
