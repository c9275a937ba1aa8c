//! Counters of all PEs in little memory: a large program has many stages, and in each of them most PEs of a large mesh are idle.

use super::PeCounters;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
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

/// Counters of PEs that are told one after another.
pub(super) struct Builder {
    shared: SharedCounters,
    /// By hash: the counters themselves are kept once.
    known: HashMap<u64, u32, BuildHasherDefault<Fold>>,
}

impl Builder {
    /// All have the same.
    pub fn new(pes: usize, all: PeCounters) -> Builder {
        let mut known = HashMap::default();
        known.insert(hash(&all), 0);
        Builder {
            shared: SharedCounters {
                different: vec![all],
                of: vec![0; pes],
            },
            known,
        }
    }

    /// This one has others.
    pub fn set(&mut self, pe: usize, counters: PeCounters) {
        let next = self.shared.different.len() as u32;
        let index = *self.known.entry(hash(&counters)).or_insert(next);
        let same = self.shared.different.get(index as usize) == Some(&counters);
        if !same {
            self.shared.different.push(counters);
        }
        self.shared.of[pe] = if same { index } else { next };
    }

    /// The counters of all.
    pub fn done(mut self) -> SharedCounters {
        self.shared.different.shrink_to_fit();
        self.shared
    }
}

fn hash(counters: &PeCounters) -> u64 {
    BuildHasherDefault::<Fold>::default().hash_one(counters)
}

/// A quick hash of numbers that nobody chooses to be unfortunate.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|w| self.write_u64(u64::from_le_bytes(*w)));
        rest.iter().for_each(|b| self.write_u64(*b as u64));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

impl From<Vec<PeCounters>> for SharedCounters {
    fn from(all: Vec<PeCounters>) -> SharedCounters {
        let Some(first) = all.first() else {
            return SharedCounters::default();
        };
        let mut builder = Builder::new(all.len(), *first);
        for (pe, counters) in all.into_iter().enumerate() {
            builder.set(pe, counters);
        }
        builder.done()
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
