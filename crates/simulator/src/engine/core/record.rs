//! What a core does to its memory and streams, in an order that gives the same numbers when it is done again: in the columns that are
//! timed with this one (`fast::columns`). Threads take turns slot by slot; what one of them does is kept together as long as no other one
//! touches the same memory or stream, so that most of it is whole instructions.
//!
//! What comes from the edge is the same in all columns ([`Uniform`]): weights are not written there at all if all that is done with them
//! is to multiply, since the record has their values.

use super::uniform::Uniform;
use super::vector::{Arg, Run, Source};
use super::{NOTHING, Range};
use crate::numerics as num;
use crate::numerics::axpy::Axpy;
use crate::numerics::sums::Sums;
use crate::program::{Op as Operation, Ty, Wavelet};
use std::ops::Range as Bytes;

/// Something to be done again.
pub(in crate::engine) enum Op {
    /// Slots of a vector instruction from this state on.
    Slots { run: Box<Run>, slots: u64 },
    /// AXPYs, as sums.
    Sums(Sums),
    /// AXPYs one after another, of rows of `n` elements, y f32 and x of a type, whose two rows have no byte in common.
    Axpys { all: Vec<Axpy>, n: usize, ty: Ty },
    /// These bytes are stored.
    Store { at: usize, bytes: Vec<u8> },
    /// These bytes decide what follows.
    Same { at: usize, bytes: Vec<u8> },
    /// This wavelet is taken, and decides what follows.
    Takes { queue: u32, wavelet: Wavelet },
    /// So many wavelets are taken, which are the same in all columns, and what is done with them needs no more to be done.
    Skips { queue: u32, n: u64 },
}

/// What an operation touches.
#[derive(Clone, Copy)]
struct Touch {
    writes: Range,
    reads: [Range; 3],
    queues: [Option<u32>; 3],
}

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
        let queue = |arg: &Arg| match arg {
            Arg::In { queue, .. } | Arg::Out { queue, .. } => Some(*queue),
            _ => None,
        };
        let dst = run.reaches(&run.dst);
        let accumulates = if run.op == Operation::Mac { dst } else { NOTHING };
        Touch {
            writes: dst,
            reads: [run.reaches(&run.a), run.reaches(&run.b), accumulates],
            queues: [&run.dst, &run.a, &run.b].map(queue),
        }
    }

    /// Of AXPYs of rows of `n` elements, f32 and of a type.
    fn of_axpys(all: &[Axpy], n: usize, ty: Ty) -> Touch {
        let around = |at: fn(&Axpy) -> usize, bytes: u32| {
            let (low, high) = (all.iter().map(at).min(), all.iter().map(at).max());
            let end = high.map_or(0, |h| h + n * bytes as usize);
            (low.unwrap_or(0) as i64, end as i64)
        };
        let (y, x) = (around(|a| a.y, 4), around(|a| a.x, ty.bytes()));
        Touch::of_sums(y, x)
    }

    /// Of sums and of what is multiplied.
    fn of_sums(y: Range, x: Range) -> Touch {
        Touch {
            reads: [x, NOTHING, y],
            ..Touch::memory(y, NOTHING)
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

    /// Of AXPYs: whether no sums are what others multiply.
    fn sums_apart(&self, other: &Touch) -> bool {
        !other.reads[..2].iter().any(|x| meet(self.writes, *x))
    }

    fn add(&mut self, other: &Touch) {
        self.writes = hull(self.writes, other.writes);
        for (a, b) in self.reads.iter_mut().zip(other.reads) {
            *a = hull(*a, b);
        }
    }
}

impl Op {
    /// Whether the order of the two matters.
    pub fn meets(&self, other: &Op) -> bool {
        self.touch().meets(&other.touch())
    }

    /// The smallest range with all bytes that it writes.
    pub fn writes(&self) -> Range {
        self.touch().writes
    }

    fn touch(&self) -> Touch {
        let of_queue = |queue: u32| Touch {
            queues: [Some(queue), None, None],
            ..Touch::memory(NOTHING, NOTHING)
        };
        let bytes = |at: usize, bytes: &[u8]| (at as i64, (at + bytes.len()) as i64);
        match self {
            Op::Slots { run, .. } => Touch::of(run),
            Op::Sums(sums) => {
                let [y, x] = sums.reach().map(|r| (r.start as i64, r.end as i64));
                Touch::of_sums(y, x)
            }
            Op::Axpys { all, n, ty } => Touch::of_axpys(all, *n, *ty),
            Op::Store { at, bytes: b } => Touch::memory(bytes(*at, b), NOTHING),
            Op::Same { at, bytes: b } => Touch::memory(NOTHING, bytes(*at, b)),
            Op::Takes { queue, .. } | Op::Skips { queue, .. } => of_queue(*queue),
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

impl From<List> for Op {
    fn from(List { all, n, ty, .. }: List) -> Op {
        match Sums::new(&all, n, ty) {
            Some(sums) => Op::Sums(sums),
            None => Op::Axpys { all, n, ty },
        }
    }
}

struct Part {
    run: Box<Run>,
    slots: u64,
    touch: Touch,
    kind: Kind,
}

/// What columns need for a part, if it is not done to its end before others look.
#[derive(Clone, Copy)]
enum Kind {
    /// They have it.
    Apart,
    /// All its operands are the same in all columns: it need not be done again.
    Uniform,
    /// One factor of its products is, and lies there: the record has its values.
    Factor(Range),
}

/// What a core did.
#[derive(Default)]
pub(in crate::engine) struct Record {
    ops: Vec<Op>,
    threads: Vec<Thread>,
    /// Bytes that it takes, roughly.
    bytes: usize,
    /// The queues into which all columns get the same.
    queues: Vec<u32>,
    uniform: Uniform,
}

impl Record {
    /// For so many threads, and queues into which all columns get the same.
    pub fn new(threads: usize, queues: Vec<u32>) -> Record {
        Record {
            threads: (0..threads).map(|_| Thread::default()).collect(),
            queues,
            ..Record::default()
        }
    }

    /// Bytes that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, which is then forgotten. After the `last` one all columns have their own memory.
    pub fn take(&mut self, memory: &[u8], last: bool) -> Vec<Op> {
        for t in 0..self.threads.len() {
            self.settle(t, memory);
        }
        if last {
            self.write((0, i64::MAX), memory);
        }
        self.bytes = 0;
        std::mem::take(&mut self.ops)
    }

    fn push(&mut self, op: Op) {
        self.bytes += size_of::<Op>()
            + match &op {
                Op::Slots { .. } => size_of::<Run>(),
                Op::Sums(sums) => sums.bytes(),
                Op::Axpys { all, .. } => size_of_val(&all[..]),
                Op::Store { bytes, .. } | Op::Same { bytes, .. } => bytes.len(),
                Op::Takes { .. } | Op::Skips { .. } => 0,
            };
        self.ops.push(op);
    }

    /// Columns get what they have not got of these bytes: after what needs what was there before, and before what needs them, as parts do
    /// whose operands are the same in all columns.
    fn write(&mut self, range: Range, memory: &[u8]) {
        let stale: Vec<Range> = self.uniform.stale(range).collect();
        for (from, end) in stale {
            let touch = Touch::memory((from, end), NOTHING);
            for t in 0..self.threads.len() {
                if let Some(list) = self.threads[t].list.take_if(|list| list.touch.meets(&touch)) {
                    self.push(list.into());
                }
            }
            let bytes = memory[from as usize..end as usize].to_vec();
            let at = from as usize;
            self.push(Op::Store { at, bytes });
        }
    }

    /// What is touched is about to be read and written in each column by itself.
    fn apart(&mut self, touch: &Touch, memory: &[u8]) {
        for range in touch.reads.into_iter().chain([touch.writes]) {
            self.write(range, memory);
        }
        self.uniform.remove(touch.writes);
    }

    /// What a thread did gets its place.
    fn settle(&mut self, t: usize, memory: &[u8]) {
        let Thread { list, part } = std::mem::take(&mut self.threads[t]);
        if let Some(list) = list {
            self.push(list.into());
        }
        if let Some(Part {
            run,
            slots,
            touch,
            kind,
        }) = part
        {
            match kind {
                Kind::Apart => {}
                Kind::Uniform => self.apart(&touch, memory),
                Kind::Factor(range) => self.write(range, memory),
            }
            self.push(Op::Slots { run, slots });
        }
    }

    /// What threads but `own` did before and must stay before this gets its place.
    fn before(&mut self, own: Option<usize>, touch: &Touch, memory: &[u8]) {
        for t in 0..self.threads.len() {
            let Thread { list, part } = &self.threads[t];
            let list = list.as_ref().is_some_and(|l| l.touch.meets(touch));
            let part = part.as_ref().is_some_and(|p| p.touch.meets(touch));
            if (list || part) && own != Some(t) {
                self.settle(t, memory);
            }
        }
    }

    /// Thread `t` is about to use so many slots for steps of a vector instruction, of an axpy's element none after the last.
    pub fn slots(&mut self, t: u8, run: &Run, slots: u64, memory: &[u8]) {
        if slots == 0 {
            return;
        }
        let (thread, ends) = (t as usize, slots == run.slots_left());
        let touch = Touch::of(run);
        self.before(Some(thread), &touch, memory);
        if self.threads[thread].part.is_none() {
            let kind = self.kind(run);
            match kind {
                Kind::Apart => self.apart(&touch, memory),
                Kind::Uniform => {}
                Kind::Factor(range) => {
                    let mut others = touch;
                    if let Some(factor) = others.reads.iter_mut().find(|r| **r == range) {
                        *factor = NOTHING;
                    }
                    self.apart(&others, memory);
                }
            }
            self.threads[thread].part = Some(Part {
                run: Box::new(run.clone()),
                slots: 0,
                touch,
                kind,
            });
        }
        let Some(part) = &mut self.threads[thread].part else {
            return;
        };
        part.slots += slots;
        if !ends {
            return;
        }
        if let Kind::Uniform = part.kind {
            let slots = part.slots;
            let steps = part.run.steps(slots);
            self.threads[thread].part = None;
            for arg in [&run.a, &run.b] {
                if let Arg::In { queue, .. } = arg {
                    let (queue, n) = (*queue, steps);
                    self.push(Op::Skips { queue, n });
                }
            }
            self.uniform.add(touch.writes);
            return;
        }
        let whole = part.run.is_fresh();
        if let (true, Some((all, n, ty))) = (whole, part.run.axpys(memory, part.kind)) {
            self.threads[thread].part = None;
            self.list(thread, &all, n, ty, touch, memory);
        } else {
            self.settle(thread, memory);
        }
    }

    /// What columns need for a vector instruction that begins.
    fn kind(&self, run: &Run) -> Kind {
        let Arg::Memory { ty, strides, .. } = &run.dst else {
            return Kind::Apart;
        };
        if run.sparse.is_some() || !run.is_fresh() {
            return Kind::Apart;
        }
        let dst = run.reaches(&run.dst);
        let known = |arg: &Arg| match arg {
            Arg::Memory { .. } => self.uniform.covers(run.reaches(arg)) && !meet(run.reaches(arg), dst),
            Arg::In { queue, .. } => self.queues.contains(queue),
            _ => true,
        };
        let factor = || {
            let mut both = [&run.a, &run.b].into_iter();
            let factor = both.find(|arg| run.stays(arg) && known(arg));
            factor.map_or(Kind::Apart, |arg| Kind::Factor(run.reaches(arg)))
        };
        if run.op == Operation::Mac {
            return factor();
        }
        // what it makes has no gaps
        let mut step = ty.bytes() as i64;
        let mut piece = true;
        for (stride, n) in strides.iter().zip(&run.shape).rev().filter(|(_, n)| **n > 1) {
            piece &= *stride == step;
            step *= n;
        }
        let from_edge = [&run.a, &run.b].iter().any(|arg| !matches!(arg, Arg::Imm(_)));
        match piece && from_edge && known(&run.a) && known(&run.b) {
            true => Kind::Uniform,
            false if run.op == Operation::Mul => factor(),
            false => Kind::Apart,
        }
    }

    /// Thread `t` does AXPYs of rows of `n` elements, f32 and of a type.
    pub fn axpys(&mut self, t: u8, all: &[Axpy], n: usize, ty: Ty, memory: &[u8]) {
        let touch = Touch::of_axpys(all, n, ty);
        self.before(Some(t as usize), &touch, memory);
        self.apart(&touch, memory);
        self.list(t as usize, all, n, ty, touch, memory);
    }

    fn list(&mut self, t: usize, all: &[Axpy], n: usize, ty: Ty, touch: Touch, memory: &[u8]) {
        if let Some(list) = &mut self.threads[t].list
            && (list.n, list.ty) == (n, ty)
            && list.touch.sums_apart(&touch)
            && touch.sums_apart(&list.touch)
        {
            list.all.extend_from_slice(all);
            list.touch.add(&touch);
            return;
        }
        self.settle(t, memory);
        let all = all.to_vec();
        self.threads[t].list = Some(List { all, n, ty, touch });
    }

    /// A wavelet was taken that decides what follows.
    pub fn takes(&mut self, queue: u32, wavelet: Wavelet, memory: &[u8]) {
        let touch = Touch {
            queues: [Some(queue), None, None],
            ..Touch::memory(NOTHING, NOTHING)
        };
        self.before(None, &touch, memory);
        self.push(match self.queues.contains(&queue) {
            true => Op::Skips { queue, n: 1 },
            false => Op::Takes { queue, wavelet },
        });
    }

    /// Bytes of memory were read that decide what follows.
    pub fn same(&mut self, memory: &[u8], at: Bytes<usize>) {
        let range = (at.start as i64, at.end as i64);
        if self.uniform.covers(range) {
            return;
        }
        self.before(None, &Touch::memory(NOTHING, range), memory);
        self.write(range, memory);
        self.push(Op::Same {
            at: at.start,
            bytes: memory[at].to_vec(),
        });
    }

    /// Bytes of memory were stored.
    pub fn store(&mut self, at: usize, bytes: &[u8], memory: &[u8]) {
        let touch = Touch::memory((at as i64, (at + bytes.len()) as i64), NOTHING);
        self.before(None, &touch, memory);
        self.apart(&touch, memory);
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

    /// Whether an operand lies in memory and is one element for each innermost row.
    fn stays(&self, arg: &Arg) -> bool {
        matches!(arg, Arg::Memory { strides, .. } if strides[3] == 0)
    }

    /// The rows of an axpy's element, or of products whose one factor the record has, if they are f32 in a line that have no
    /// byte in common with what is multiplied.
    fn axpys(&self, memory: &[u8], kind: Kind) -> Option<(Vec<Axpy>, usize, Ty)> {
        let Arg::Memory { at: y, .. } = &self.dst else {
            return None;
        };
        let lies = |arg: &Arg, range: Range| self.stays(arg) && self.reaches(arg) == range;
        let (factor, multiplied) = match (&self.a, &self.b, kind) {
            (a @ Arg::Imm(_), b, _) if self.sparse.is_some() => (a, b),
            (a, b, Kind::Factor(range)) if lies(a, range) => (a, b),
            (a, b, Kind::Factor(range)) if lies(b, range) => (b, a),
            _ => return None,
        };
        let Arg::Memory {
            at: x, ty, strides, ..
        } = multiplied
        else {
            return None;
        };
        let rows = self.rows_with(strides, *ty)?;
        if meet(self.reaches(&self.dst), self.reaches(multiplied)) {
            return None;
        }
        let [_, b, c, n] = self.shape;
        let value = |row: i64| match factor {
            Arg::Memory {
                ty, strides: s, base, ..
            } => {
                let at = base + row / (b * c) * s[0] + row / c % b * s[1] + row % c * s[2];
                num::load(memory, *ty, at as usize)
            }
            Arg::Imm(a) => *a,
            _ => unreachable!("looked at above"),
        };
        let one = |(i, (row, from)): (i64, (i64, i64))| Axpy {
            a: value(i),
            y: (y + row) as usize,
            x: (x + from) as usize,
            fresh: self.op == Operation::Mul,
        };
        Some(((0..).zip(rows).map(one).collect(), n as usize, *ty))
    }

    /// The wavelets that it takes of each stream when it uses so many slots.
    pub fn steps(&self, slots: u64) -> u64 {
        (self.paid as u64 + slots) / self.cost as u64
    }
}
