//! A core's memory, and a product that waits. Where a core multiplies a few features at a time, as they come, reading and writing all
//! accumulators each time would be most of the work: the factors are kept instead (copies, so that their places may be used again), and added
//! when somebody wants to see an accumulator. Each accumulator still takes its features one by one in their order, and
//! nobody can see it before it has: whoever reads or writes memory says which part of it.

use crate::numerics::block::{Host, Word};
use crate::numerics::product::{Product, VECTOR};

/// Features that wait at most.
const MOST: usize = 64;

/// From an address to before another one.
pub(super) type Range = (i64, i64);

#[derive(Default)]
pub(super) struct Sram {
    bytes: Vec<u8>,
    waiting: Option<Box<Waiting>>,
    /// What waited last: room for the next one.
    spare: Option<Box<Waiting>>,
}

/// Rows of accumulators, and what is to be added to them.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Accumulators {
    /// The first one's address.
    pub at: usize,
    pub outputs: usize,
    pub positions: usize,
    /// Words from one output's to the next one's.
    pub row: usize,
}

impl Accumulators {
    /// Their bytes, with what lies between them.
    fn range(&self) -> Range {
        let words = (self.outputs - 1) * self.row + self.positions;
        (self.at as i64, (self.at + 4 * words) as i64)
    }
}

struct Waiting {
    y: Accumulators,
    features: usize,
    a: Vec<Word>,
    b: Vec<Word>,
}

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

impl Sram {
    pub fn new(bytes: Vec<u8>) -> Sram {
        Sram {
            bytes,
            ..Sram::default()
        }
    }

    pub fn into_bytes(mut self) -> Vec<u8> {
        self.settle();
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether anything is still to be added.
    pub fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether anything is still to be added to some bytes.
    pub fn waits_for(&self, range: Range) -> bool {
        self.waiting.as_ref().is_some_and(|w| overlap(w.y.range(), range))
    }

    /// All bytes, of which those are as they must be for which nothing waits.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, as they must be.
    pub fn settled(&mut self) -> &mut [u8] {
        self.settle();
        &mut self.bytes
    }

    /// All bytes, for one who reads and writes only parts of these ranges.
    pub fn within(&mut self, ranges: impl IntoIterator<Item = Range>) -> &mut [u8] {
        if self.waiting.is_some() && ranges.into_iter().any(|r| self.waits_for(r)) {
            self.settle();
        }
        &mut self.bytes
    }

    /// Has features wait: compact rows of factors, for all outputs and all positions.
    pub fn add_later(&mut self, y: Accumulators, features: usize, a: &[Word], b: &[Word]) {
        if self
            .waiting
            .as_ref()
            .is_some_and(|w| w.y != y || w.features + features > MOST)
        {
            self.settle();
        }
        let w = self.waiting.get_or_insert_with(|| {
            let mut empty = self.spare.take().unwrap_or_else(|| {
                Box::new(Waiting {
                    y,
                    features: 0,
                    a: Vec::new(),
                    b: Vec::new(),
                })
            });
            empty.y = y;
            empty
        });
        w.features += features;
        w.a.extend_from_slice(&a[..features * y.outputs]);
        w.b.extend_from_slice(&b[..features * y.positions]);
    }

    /// Adds what waits.
    fn settle(&mut self) {
        let Some(mut w) = self.waiting.take() else { return };
        w.b.resize(w.b.len() + VECTOR, [0; 4]);
        let product = Product {
            features: w.features,
            outputs: w.y.outputs,
            positions: w.y.positions,
            y_row: w.y.row,
            a: &w.a,
            b: &w.b,
            b_row: w.y.positions,
        };
        let end = w.y.at + 4 * product.span(w.y.outputs, w.y.row);
        let words = self.bytes[w.y.at..end].as_chunks_mut().0;
        product.add_to(Host::default(), words);
        w.features = 0;
        w.a.clear();
        w.b.clear();
        self.spare = Some(w);
    }
}
