//! What a core does to its memory and streams, in an order that gives the same numbers when it is done again: in the columns that are
//! timed with this one (`fast::columns`). Threads take turns slot by slot; what one of them does is kept together as long as no other one
//! touches the same memory or stream, so that most of it is whole instructions.

use super::vector::{Arg, Run, Source, reach};
use crate::numerics::axpy::Axpy;
use crate::program::{Op as Operation, Ty, Wavelet};
use std::ops::Range as Bytes;

/// Something to be done again.
pub(in crate::engine) enum Op {
    /// Slots of a vector instruction from this state on.
    Slots { run: Box<Run>, slots: u64 },
    /// AXPYs of rows of `n` elements, y f32 and x of a type, whose two rows have no byte in common.
    Axpys { all: Vec<Axpy>, n: usize, ty: Ty },
    /// These bytes are stored.
    Store { at: usize, bytes: Vec<u8> },
    /// These bytes decide what follows.
    Same { at: usize, bytes: Vec<u8> },
    /// This wavelet is taken, and decides what follows.
    Takes { queue: u32, wavelet: Wavelet },
}

/// Bytes of memory from an address to before another one.
type Range = (i64, i64);

/// What an operation touches.
#[derive(Clone, Copy)]
struct Touch {
    writes: Range,
    reads: [Range; 3],
    queues: [Option<u32>; 3],
}

const NOTHING: Range = (0, 0);

fn meet(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The smallest range with both.
fn hull(a: Range, b: Range) -> Range {
    if a == NOTHING {
        return b;
    }
    if b == NOTHING {
        return a;
    }
    (a.0.min(b.0), a.1.max(b.1))
}

impl Touch {
    fn memory(writes: Range, reads: Range) -> Touch {
        Touch {
            writes,
            reads: [reads, NOTHING, NOTHING],
            queues: [None; 3],
        }
    }

    /// Of all that a vector instruction still does, of an axpy for the element at hand.
    fn of(run: &Run) -> Touch {
        let memory = |arg: &Arg| match arg {
            Arg::Memory {
                ty,
                base,
                strides,
                at,
            } => {
                let begun: i64 = (0..3).map(|d| strides[d] * run.index[d]).sum();
                let base = if run.sparse.is_some() { at - begun } else { *base };
                reach(base, strides, &run.shape, *ty)
            }
            _ => NOTHING,
        };
        let queue = |arg: &Arg| match arg {
            Arg::In { queue, .. } | Arg::Out { queue, .. } => Some(*queue),
            _ => None,
        };
        let dst = memory(&run.dst);
        let accumulates = if run.op == Operation::Mac { dst } else { NOTHING };
        Touch {
            writes: dst,
            reads: [memory(&run.a), memory(&run.b), accumulates],
            queues: [&run.dst, &run.a, &run.b].map(queue),
        }
    }

    /// Whether the order of the two matters.
    fn meets(&self, other: &Touch) -> bool {
        let reads = |a: &Touch, b: &Touch| b.reads.iter().any(|r| meet(a.writes, *r));
        meet(self.writes, other.writes)
            || reads(self, other)
            || reads(other, self)
            || self
                .queues
                .iter()
                .flatten()
                .any(|q| other.queues.contains(&Some(*q)))
    }

    fn add(&mut self, other: &Touch) {
        self.writes = hull(self.writes, other.writes);
        for (a, b) in self.reads.iter_mut().zip(other.reads) {
            *a = hull(*a, b);
        }
    }
}

/// What a thread did that has no place in the order yet.
#[derive(Default)]
struct Thread {
    list: Option<List>,
    /// After the list.
    part: Option<Part>,
}

struct List {
    all: Vec<Axpy>,
    n: usize,
    ty: Ty,
    touch: Touch,
}

struct Part {
    run: Box<Run>,
    slots: u64,
    touch: Touch,
}

/// What a core did.
#[derive(Default)]
pub(in crate::engine) struct Record {
    ops: Vec<Op>,
    threads: Vec<Thread>,
    /// Bytes that it takes, roughly.
    bytes: usize,
}

impl Record {
    pub fn new(threads: usize) -> Record {
        Record {
            threads: (0..threads).map(|_| Thread::default()).collect(),
            ..Record::default()
        }
    }

    /// Bytes that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, which is then forgotten.
    pub fn take(&mut self) -> Vec<Op> {
        for t in 0..self.threads.len() {
            self.settle(t);
        }
        self.bytes = 0;
        std::mem::take(&mut self.ops)
    }

    fn push(&mut self, op: Op) {
        self.bytes += size_of::<Op>()
            + match &op {
                Op::Slots { .. } => size_of::<Run>(),
                Op::Axpys { all, .. } => size_of_val(&all[..]),
                Op::Store { bytes, .. } | Op::Same { bytes, .. } => bytes.len(),
                Op::Takes { .. } => 0,
            };
        self.ops.push(op);
    }

    /// What a thread did gets its place.
    fn settle(&mut self, t: usize) {
        let Thread { list, part } = std::mem::take(&mut self.threads[t]);
        if let Some(List { all, n, ty, .. }) = list {
            self.push(Op::Axpys { all, n, ty });
        }
        if let Some(Part { run, slots, .. }) = part {
            self.push(Op::Slots { run, slots });
        }
    }

    /// What threads but `own` did before and must stay before this gets its place.
    fn before(&mut self, own: Option<usize>, touch: &Touch) {
        for t in 0..self.threads.len() {
            let Thread { list, part } = &self.threads[t];
            let list = list.as_ref().is_some_and(|l| l.touch.meets(touch));
            let part = part.as_ref().is_some_and(|p| p.touch.meets(touch));
            if (list || part) && own != Some(t) {
                self.settle(t);
            }
        }
    }

    /// Thread `t` is about to use so many slots for steps of a vector instruction, of an axpy's element none after the last.
    pub fn slots(&mut self, t: u8, run: &Run, slots: u64) {
        if slots == 0 {
            return;
        }
        let (thread, ends) = (t as usize, slots == run.slots_left());
        let touch = Touch::of(run);
        self.before(Some(thread), &touch);
        let part = self.threads[thread].part.get_or_insert_with(|| Part {
            run: Box::new(run.clone()),
            slots: 0,
            touch,
        });
        part.slots += slots;
        if !ends {
            return;
        }
        let whole = part.run.is_fresh();
        if let (true, Some((all, n, ty))) = (whole, part.run.axpys()) {
            self.threads[thread].part = None;
            self.list(thread, &all, n, ty, touch);
        } else {
            self.settle(thread);
        }
    }

    /// Thread `t` does AXPYs of rows of `n` elements, f32 and of a type.
    pub fn axpys(&mut self, t: u8, all: &[Axpy], n: usize, ty: Ty) {
        let around = |at: fn(&Axpy) -> usize, bytes: u32| {
            let (low, high) = (all.iter().map(at).min(), all.iter().map(at).max());
            let end = high.map_or(0, |h| h + n * bytes as usize);
            (low.unwrap_or(0) as i64, end as i64)
        };
        let (y, x) = (around(|a| a.y, 4), around(|a| a.x, ty.bytes()));
        let touch = Touch {
            reads: [x, y, NOTHING],
            ..Touch::memory(y, NOTHING)
        };
        self.before(Some(t as usize), &touch);
        self.list(t as usize, all, n, ty, touch);
    }

    fn list(&mut self, t: usize, all: &[Axpy], n: usize, ty: Ty, touch: Touch) {
        if let Some(list) = &mut self.threads[t].list
            && (list.n, list.ty) == (n, ty)
        {
            list.all.extend_from_slice(all);
            list.touch.add(&touch);
            return;
        }
        self.settle(t);
        let all = all.to_vec();
        self.threads[t].list = Some(List { all, n, ty, touch });
    }

    /// A wavelet was taken that decides what follows.
    pub fn takes(&mut self, queue: u32, wavelet: Wavelet) {
        let touch = Touch {
            queues: [Some(queue), None, None],
            ..Touch::memory(NOTHING, NOTHING)
        };
        self.before(None, &touch);
        self.push(Op::Takes { queue, wavelet });
    }

    /// Bytes of memory were read that decide what follows.
    pub fn same(&mut self, memory: &[u8], at: Bytes<usize>) {
        if at.is_empty() {
            return;
        }
        let range = (at.start as i64, at.end as i64);
        self.before(None, &Touch::memory(NOTHING, range));
        self.push(Op::Same {
            at: at.start,
            bytes: memory[at].to_vec(),
        });
    }

    /// Bytes of memory are stored.
    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        let range = (at as i64, (at + bytes.len()) as i64);
        self.before(None, &Touch::memory(range, NOTHING));
        self.push(Op::Store {
            at,
            bytes: bytes.to_vec(),
        });
    }

    /// The element of a list in memory that a run has come to was read there.
    pub fn element(&mut self, run: &Run, memory: &[u8]) {
        if let Some(s) = &run.sparse
            && let Source::Memory { index, value, ty, .. } = s.source
            && run.shape[3] > 0
        {
            let (index, value, bytes) = (index as usize, value as usize, ty.bytes() as usize);
            self.same(memory, index - 2..index);
            self.same(memory, value - bytes..value);
        }
    }
}

impl Run {
    /// Whether no slot was used for it, or for an axpy's element at hand.
    fn is_fresh(&self) -> bool {
        self.index == [0; 3] && self.column == 0 && self.paid == 0
    }

    /// The rows of an axpy's element, if they are f32 sums in a line that have no byte in common with what is multiplied.
    fn axpys(&self) -> Option<(Vec<Axpy>, usize, Ty)> {
        self.sparse.as_ref()?;
        let (
            Arg::Memory { at: y, .. },
            Arg::Memory {
                at: x, ty, strides, ..
            },
        ) = (&self.dst, &self.b)
        else {
            return None;
        };
        let Arg::Memory { strides: sums, .. } = &self.dst else {
            return None;
        };
        let rows = self.rows()?;
        let apart = !meet(
            reach(*y, sums, &self.shape, Ty::F32),
            reach(*x, strides, &self.shape, *ty),
        );
        let Arg::Imm(a) = self.a else { return None };
        let one = |(row, from): (i64, i64)| Axpy {
            a,
            y: (y + row) as usize,
            x: (x + from) as usize,
        };
        apart.then(|| (rows.map(one).collect(), self.shape[3] as usize, *ty))
    }

    /// The wavelets that it takes of each stream when it uses so many slots.
    pub fn steps(&self, slots: u64) -> u64 {
        (self.paid as u64 + slots) / self.cost as u64
    }
}
