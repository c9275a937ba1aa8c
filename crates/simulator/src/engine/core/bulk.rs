//! Many steps of a vector instruction at once: the same numbers, in the same order, as one step after another.
//!
//! The instruction is seen as a nest of loops over its elements, as few as say the same. What is left of it is cut into pieces: whole turns of
//! a loop, as outer a one as possible, from where it is. A piece that is a product of matrices goes to `matrices`. Any other one
//! goes block by block, rows of the two inner loops. A block's
//! sources are read where they lie if they are f32 in place and the destination has none of their bytes, else gathered first; its
//! results are written in place, or scattered afterwards. Where an element might read what another one wrote, the block is cut
//! into rows, and these into elements: the order of the step-by-step form, always.

use super::vector::{Arg, Run};
use crate::engine::PeCounters;
use crate::engine::wavelets::Wavelets;
use crate::numerics as num;
use crate::numerics::axpy::Axpy;
use crate::numerics::block::{self, Host, Operand, Target, Word};
use crate::program::*;
use half::f16;
use std::ops::Range;

mod matrices;
#[cfg(test)]
mod tests;

/// Room for operands, kept from one use to the next.
#[derive(Default)]
pub(in crate::engine) struct Scratch {
    pub(super) host: Host,
    /// What came from the fabric, by source.
    pub(super) came: [Vec<Word>; 2],
    gathered: [Vec<Word>; 2],
    results: Vec<Word>,
    /// What goes to the fabric.
    pub(super) sent: Vec<Word>,
    convert: Convert,
    /// Of an axpy's list, a row of each element after another; and a row of f16 as f32.
    pub(super) axpys: Vec<Axpy>,
    pub(super) wide: Vec<Word>,
    /// Whole instructions in memory may be executed a little later, with those that go on where they end.
    pub(super) defers: bool,
    deferred: Option<(Op, Nest<'static>)>,
}

impl Scratch {
    /// Executes what was deferred, before something else looks at memory.
    pub(super) fn settle(&mut self, memory: &mut [u8]) {
        if let Some((op, nest)) = self.deferred.take() {
            nest.execute(op, memory, self);
        }
    }

    /// Executes a whole instruction, later.
    fn defer(&mut self, op: Op, nest: Nest<'static>, memory: &mut [u8]) {
        if let Some((before, all)) = &mut self.deferred
            && *before == op
            && all.append(&nest)
        {
            return;
        }
        self.settle(memory);
        self.deferred = Some((op, nest));
    }
}

/// Room for conversions between f16 and f32.
#[derive(Default)]
struct Convert {
    host: Host,
    half: Vec<f16>,
    bytes: Vec<[u8; 2]>,
    single: Vec<f32>,
}

/// Where a block's elements lie in memory: the first one's address, bytes from one row to the next and from one element to the next.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Place {
    ty: Ty,
    at: i64,
    row: i64,
    step: i64,
}

/// A source of a block.
#[derive(Clone, Copy)]
enum Source<'a> {
    Memory(Place),
    /// Compact rows from the fabric, `row` elements apart.
    Came {
        words: &'a [Word],
        row: usize,
    },
    Imm(Word),
}

/// A block: how many rows of how many elements, and what to do.
#[derive(Clone, Copy)]
struct Block<'a> {
    op: Op,
    rows: usize,
    n: usize,
    sources: [Source<'a>; 2],
}

/// Elements of an instruction, by their numbers.
pub(super) struct Span {
    pub first: i64,
    pub n: i64,
    /// All in the row that it is at.
    in_row: bool,
}

impl Run {
    /// Uses `slots` slots from cycle `from` on, of which none ends the instruction (nor, of an axpy, a sparse element). Each step
    /// takes a wavelet of each of `inputs`; what it sends is added to `out`. Returns the elements handled.
    ///
    /// # Errors
    /// A wavelet has another number of elements than its step.
    #[allow(clippy::too_many_arguments)] // one call; a struct for it would only rename them
    pub(in crate::engine) fn leap(
        &mut self,
        from: u64,
        slots: u64,
        memory: &mut [u8],
        inputs: &mut [Wavelets; 2],
        out: &mut Wavelets,
        counters: &mut PeCounters,
        scratch: &mut Scratch,
    ) -> Result<u64, ()> {
        counters.slots[self.count as usize] += slots;
        let (paid, cost) = (self.paid as u64, self.cost as u64);
        let steps = match cost {
            1 => slots,
            _ => (paid + slots) / cost,
        };
        self.paid = (paid + slots - steps * cost) as u32;
        if steps == 0 {
            return Ok(0);
        }
        if self.puts().is_some() {
            counters.first_send.get_or_insert(from + cost - paid - 1);
        } else {
            counters.last_write = Some(from + steps * cost - paid - 1);
        }
        let Span { first, n, in_row } = self.elements_of(steps as i64);
        let mut came = std::mem::take(&mut scratch.came);
        let grid = Grid {
            first: self.column as usize,
            columns: self.shape[3] as usize,
            width: self.width as usize,
            n: n as usize,
        };
        for ((arg, wavelets), to) in [&self.a, &self.b].into_iter().zip(inputs).zip(&mut came) {
            if let Arg::In { ty, .. } = arg {
                to.clear();
                take(wavelets, *ty, grid, to)?;
            }
        }
        scratch.sent.clear();
        let whole = first == 0 && n == self.shape.iter().product::<i64>() && self.sparse.is_none();
        let later = if whole && scratch.defers {
            Nest::of(self, first, [&came[0], &came[1]]).in_memory()
        } else {
            None
        };
        if later.is_none() {
            scratch.settle(memory);
        }
        if let Some(nest) = later {
            scratch.defer(self.op, nest, memory);
            self.move_to(n - 1);
            self.advance(1);
        } else if in_row {
            Nest::row(self, n, [&came[0], &came[1]]).execute(self.op, memory, scratch);
            self.advance(n);
        } else {
            let (nest, end) = (Nest::of(self, first, [&came[0], &came[1]]), first + n);
            let mut at = first;
            while at < end {
                let (piece, n) = nest.piece(at, end);
                piece.execute(self.op, memory, scratch);
                at += n;
            }
            self.move_to(end - 1);
            self.advance(1);
        }
        if let Arg::Out { ty, .. } = &self.dst {
            give(&scratch.sent, *ty, grid, out);
        }
        scratch.came = came;
        if self.count != Count::None {
            counters.operations[self.count as usize - 1] += n as u64;
        }
        Ok(n as u64)
    }

    /// The elements that so many slots handle, if any.
    pub(super) fn span(&self, slots: u64) -> Option<Span> {
        let steps = self.steps(slots);
        (steps > 0).then(|| self.elements_of(steps as i64))
    }

    /// The elements that so many steps handle.
    fn elements_of(&self, steps: i64) -> Span {
        let [_, b, c, columns] = self.shape;
        let row = (self.index[0] * b + self.index[1]) * c + self.index[2];
        let first = row * columns + self.column;
        let rest = columns - self.column;
        let in_row = (steps - 1) * self.width < rest;
        let n = if in_row {
            rest.min(steps * self.width)
        } else {
            // a row begins with a step of its own
            let row_steps = (columns + self.width - 1) / self.width;
            let step = row * row_steps + self.column / self.width + steps;
            step / row_steps * columns + step % row_steps * self.width - first
        };
        Span { first, n, in_row }
    }

    fn args(&self) -> [&Arg; 3] {
        [&self.dst, &self.a, &self.b]
    }

    /// Moves to an element by its number.
    fn move_to(&mut self, element: i64) {
        let [_, b, c, columns] = self.shape;
        let row = element / columns;
        let index = [row / (b * c), row / c % b, row % c];
        for arg in [&mut self.dst, &mut self.a, &mut self.b] {
            if let Arg::Memory { strides, at, .. } = arg {
                for d in 0..3 {
                    *at += strides[d] * (index[d] - self.index[d]);
                }
            }
        }
        (self.index, self.column) = (index, element % columns);
    }
}

/// What an operand of a nest is.
#[derive(Clone, Copy)]
enum Side<'a> {
    /// The first element's address; strides are bytes.
    Memory {
        ty: Ty,
        at: i64,
    },
    /// Elements that came from the fabric, and the place of the first one; strides are elements.
    Came {
        words: &'a [Word],
        at: i64,
    },
    Imm(Word),
    /// Goes to the fabric.
    Out,
}

impl<'a> Side<'a> {
    /// The operands of an instruction, those in memory so many bytes, told from the strides, before where the row that it is at begins.
    /// What came from the fabric begins with element `first`.
    fn of(run: &Run, came: [&'a [Word]; 2], back: impl Fn(&[i64; 4]) -> i64, first: i64) -> [Side<'a>; 3] {
        let side = |arg: &Arg, words: &'a [Word]| match arg {
            Arg::Memory { ty, strides, at, .. } => Side::Memory {
                ty: *ty,
                at: at - back(strides),
            },
            Arg::In { .. } => Side::Came { words, at: -first },
            Arg::Imm(x) => Side::Imm(x.to_le_bytes()),
            Arg::Out { .. } => Side::Out,
        };
        [side(&run.dst, &[]), side(&run.a, came[0]), side(&run.b, came[1])]
    }

    /// Whether both begin in the same place of memory, or are the same value.
    fn is(&self, other: &Side) -> bool {
        match (self, other) {
            (Side::Memory { ty, at }, Side::Memory { ty: t, at: a }) => ty == t && at == a,
            (Side::Imm(x), Side::Imm(y)) => x == y,
            _ => false,
        }
    }

    /// So many bytes, or elements, further on.
    fn moved(self, by: i64) -> Self {
        match self {
            Side::Memory { ty, at } => Side::Memory { ty, at: at + by },
            Side::Came { words, at } => Side::Came { words, at: at + by },
            other => other,
        }
    }
}

/// Elements as nested loops, outermost first: turns of each loop, and the strides of destination and sources in it. Loops of one turn
/// are outside all others.
#[derive(Clone, Copy)]
pub(super) struct Nest<'a> {
    turns: [i64; 4],
    strides: [[i64; 4]; 3],
    sides: [Side<'a>; 3],
}

impl<'a> Nest<'a> {
    /// All elements of an instruction; what it takes from the fabric begins with the element `first`. A loop is
    /// joined with the next inner one where all operands go on from its last turn as within it.
    pub(super) fn of(run: &Run, first: i64, came: [&'a [Word]; 2]) -> Nest<'a> {
        let [_, b, c, d] = run.shape;
        let strides = run.args().map(|arg| match arg {
            Arg::Memory { strides, .. } => *strides,
            Arg::In { .. } | Arg::Out { .. } => [b * c * d, c * d, d, 1],
            Arg::Imm(_) => [0; 4],
        });
        let from = |s: &[i64; 4]| s[0] * run.index[0] + s[1] * run.index[1] + s[2] * run.index[2];
        let mut nest = Nest {
            turns: [1; 4],
            strides: [[0; 4]; 3],
            sides: Side::of(run, came, from, first),
        };
        let mut k = 4;
        for d in (0..4).rev().filter(|d| run.shape[*d] > 1) {
            let joins = |i: usize| strides[i][d] == nest.strides[i][k] * nest.turns[k];
            if k < 4 && (0..3).all(joins) {
                nest.turns[k] *= run.shape[d];
                continue;
            }
            k -= 1;
            nest.turns[k] = run.shape[d];
            for (to, from) in nest.strides.iter_mut().zip(&strides) {
                to[k] = from[d];
            }
        }
        nest
    }

    /// The same, if nothing of it moves wavelets.
    fn in_memory(&self) -> Option<Nest<'static>> {
        let side = |side: Side| match side {
            Side::Memory { ty, at } => Some(Side::Memory { ty, at }),
            Side::Imm(x) => Some(Side::Imm(x)),
            Side::Came { .. } | Side::Out => None,
        };
        let [dst, a, b] = self.sides;
        Some(Nest {
            turns: self.turns,
            strides: self.strides,
            sides: [side(dst)?, side(a)?, side(b)?],
        })
    }

    /// Adds more turns of the outermost loop, if that is what another one's elements are.
    fn append(&mut self, next: &Nest) -> bool {
        let Some(k) = (0..4).find(|k| self.turns[*k] > 1) else {
            return false;
        };
        let goes_on = |i: usize| {
            let (own, other) = (&self.strides[i], &next.strides[i]);
            own[k + 1..] == other[k + 1..]
                && (next.turns[k] == 1 || own[k] == other[k])
                && self.sides[i].moved(own[k] * self.turns[k]).is(&next.sides[i])
        };
        let same = next.turns[..k].iter().all(|n| *n == 1)
            && self.turns[k + 1..] == next.turns[k + 1..]
            && (0..3).all(goes_on);
        if same {
            self.turns[k] += next.turns[k];
        }
        same
    }

    /// The next `n` elements of a row, for which `came` is what was taken.
    fn row(run: &Run, n: i64, came: [&'a [Word]; 2]) -> Nest<'a> {
        let strides = run.args().map(|arg| match arg {
            Arg::Memory { strides, .. } => [0, 0, 0, strides[3]],
            Arg::In { .. } | Arg::Out { .. } => [0, 0, 0, 1],
            Arg::Imm(_) => [0; 4],
        });
        Nest {
            turns: [1, 1, 1, n],
            strides,
            sides: Side::of(run, came, |s| -s[3] * run.column, 0),
        }
    }

    /// The piece that begins with an element and ends before another one at the latest, and its number of elements.
    pub(super) fn piece(&self, element: i64, end: i64) -> (Nest<'a>, i64) {
        let mut index = [0; 4];
        let mut rest = element;
        for d in (0..4).rev().take_while(|d| self.turns[*d] > 1) {
            (index[d], rest) = (rest % self.turns[d], rest / self.turns[d]);
        }
        let (mut level, mut size) = (3, 1);
        while level > 0 && index[level] == 0 && size * self.turns[level] <= end - element {
            size *= self.turns[level];
            level -= 1;
        }
        let turns = ((end - element) / size).min(self.turns[level] - index[level]);
        let mut piece = self.from(index);
        piece.turns[..level].fill(1);
        piece.turns[level] = turns;
        (piece, turns * size)
    }

    /// The same loops where each word has `lanes` in its place, side by side, all of which do the same: handed to `f`, as one nest or
    /// as the turns of the outermost loop.
    pub(super) fn side_by_side(&self, lanes: i64, mut f: impl FnMut(&Nest<'a>)) {
        let mut nest = *self;
        nest.sides = self.sides.map(|side| match side {
            Side::Memory { ty, at } => Side::Memory { ty, at: at * lanes },
            Side::Came { words, at } => Side::Came {
                words,
                at: at * lanes,
            },
            other => other,
        });
        let beside = self.sides.map(|side| match side {
            Side::Memory { .. } => 4,
            Side::Came { .. } | Side::Out => 1,
            Side::Imm(_) => 0,
        });
        // elements that lie one after another go on as the lanes do
        if self.turns[3] == 1 || (0..3).all(|i| self.strides[i][3] == beside[i]) {
            nest.turns[3] *= lanes;
            for (strides, beside) in nest.strides.iter_mut().zip(beside) {
                strides[..3].iter_mut().for_each(|s| *s *= lanes);
                strides[3] = beside;
            }
            return f(&nest);
        }
        for turn in 0..self.turns[0] {
            let mut inner = nest;
            let [_, a, b, c] = self.turns;
            inner.turns = [a, b, c, lanes];
            for (i, beside) in beside.into_iter().enumerate() {
                let [outer, a, b, c] = self.strides[i].map(|s| s * lanes);
                inner.sides[i] = nest.sides[i].moved(outer * turn);
                inner.strides[i] = [a, b, c, beside];
            }
            f(&inner);
        }
    }

    /// Where the bytes of rows lie that it sends as they are, if it does no more.
    pub(super) fn rows_sent(&self, op: Op) -> Option<impl Iterator<Item = Range<usize>> + use<>> {
        let (Side::Out, Side::Memory { ty: Ty::F32, at }, Op::Mov) = (self.sides[0], self.sides[1], op)
        else {
            return None;
        };
        let ([outer, inner, rows, n], strides) = (self.turns, self.strides[1]);
        if n > 1 && strides[3] != 4 {
            return None;
        }
        let row = move |i: i64| {
            let at =
                at + i / (inner * rows) * strides[0] + i / rows % inner * strides[1] + i % rows * strides[2];
            at as usize..(at + 4 * n) as usize
        };
        Some((0..outer * inner * rows).map(row))
    }

    /// The same loops from other elements on.
    fn from(&self, index: [i64; 4]) -> Nest<'a> {
        let mut from = *self;
        for (side, strides) in from.sides.iter_mut().zip(&self.strides) {
            *side = side.moved((0..4).map(|d| strides[d] * index[d]).sum());
        }
        from
    }

    pub(super) fn execute(&self, op: Op, memory: &mut [u8], scratch: &mut Scratch) {
        // (a single row is none)
        if op == Op::Mac && self.turns[2] > 1 && self.multiply(memory, scratch) {
            return;
        }
        for i in 0..self.turns[0] {
            for j in 0..self.turns[1] {
                let moved = |k: usize| {
                    let [outer, inner, ..] = self.strides[k];
                    self.sides[k].moved(outer * i + inner * j)
                };
                let place = |i: usize, ty: Ty, at: i64| Place {
                    ty,
                    at,
                    row: self.strides[i][2],
                    step: self.strides[i][3],
                };
                let source = |i: usize| match moved(i) {
                    Side::Memory { ty, at } => Source::Memory(place(i, ty, at)),
                    Side::Came { words, at } => Source::Came {
                        words: &words[at as usize..],
                        row: self.strides[i][2] as usize,
                    },
                    Side::Imm(x) => Source::Imm(x),
                    Side::Out => unreachable!("never a source"),
                };
                let block = Block {
                    op,
                    rows: self.turns[2] as usize,
                    n: self.turns[3] as usize,
                    sources: [source(1), source(2)],
                };
                match moved(0) {
                    Side::Memory { ty, at } => block.store(place(0, ty, at), memory, scratch),
                    _ => block.send(memory, scratch),
                }
            }
        }
    }
}

impl Place {
    /// The bytes from the first to before the last.
    fn range(&self, rows: usize, n: usize) -> (i64, i64) {
        let (r, c) = (self.row * (rows as i64 - 1), self.step * (n as i64 - 1));
        (
            self.at + r.min(0) + c.min(0),
            self.at + r.max(0) + c.max(0) + self.ty.bytes() as i64,
        )
    }

    /// Whether no two elements share bytes, as far as can be told at once. Strides are multiples of the type's size.
    fn distinct(&self, rows: usize, n: usize) -> bool {
        let (row, step) = (self.row.abs(), self.step.abs());
        let (rows, n) = (rows as i64, n as i64);
        (n == 1 || step > 0)
            && (rows == 1 || row > 0)
            && (n == 1 || rows == 1 || row > step * (n - 1) || step > row * (rows - 1))
    }

    /// Whether it is f32, each row's elements one after another, rows not before one another.
    fn plain(&self, rows: usize, n: usize) -> bool {
        self.ty == Ty::F32 && (self.step == 4 || n == 1) && (rows == 1 || self.row >= 0 && self.row % 4 == 0)
    }
}

impl<'a> Block<'a> {
    /// Row `r`, or element `i` of a single row.
    fn part(&self, dst: Place, r: usize, i: Option<usize>) -> (Block<'a>, Place) {
        let n = if i.is_some() { 1 } else { self.n };
        let i = i.unwrap_or(0);
        let moved = |p: Place| Place {
            at: p.at + p.row * r as i64 + p.step * i as i64,
            ..p
        };
        let sources = self.sources.map(|s| match s {
            Source::Memory(p) => Source::Memory(moved(p)),
            Source::Came { words, row } => Source::Came {
                words: &words[r * row + i..],
                row,
            },
            imm => imm,
        });
        let block = Block {
            rows: 1,
            n,
            sources,
            ..*self
        };
        (block, moved(dst))
    }

    /// Results go to memory.
    fn store(&self, dst: Place, memory: &mut [u8], scratch: &mut Scratch) {
        let block = self;
        let Block { op, rows, n, .. } = *self;
        let to = dst.range(rows, n);
        let apart = |s: &Source| match s {
            Source::Memory(p) => {
                let from = p.range(rows, n);
                from.1 <= to.0 || to.1 <= from.0
            }
            _ => true,
        };
        let same = |s: &Source| matches!(s, Source::Memory(p) if *p == dst);
        let apart = [apart(&block.sources[0]), apart(&block.sources[1])];
        let same = [same(&block.sources[0]), same(&block.sources[1])];
        let in_place = dst.plain(rows, n);
        let fits = (0..2).all(|i| apart[i] || same[i]);
        // what is read of the destination must be what was there before: row after row in place, or all of it at once
        let old_is_read = same[0] || same[1] || (op == Op::Mac && !in_place);
        let in_order = !fits || old_is_read && !dst.distinct(rows, n) || op == Op::Mac && dst.step == 0;
        if in_order && rows * n > 1 {
            if rows > 1 {
                for r in 0..rows {
                    let (row, dst) = block.part(dst, r, None);
                    row.store(dst, memory, scratch);
                }
            } else if fits && dst.step == 0 {
                block.fold(dst, same, memory, scratch);
            } else {
                for i in 0..n {
                    let (element, dst) = block.part(dst, 0, Some(i));
                    element.store(dst, memory, scratch);
                }
            }
            return;
        }
        let Scratch {
            host,
            gathered,
            results,
            convert,
            ..
        } = scratch;
        let in_memory = |i: usize| match block.sources[i] {
            Source::Memory(p) => apart[i] && (p.plain(rows, n) || p.step == 0 && p.plain(rows, 1)),
            _ => false,
        };
        if in_place {
            for (i, room) in gathered.iter_mut().enumerate() {
                if !in_memory(i) {
                    block.gather(i, memory, room, convert);
                }
            }
            let (low, rest) = memory.split_at_mut(to.0 as usize);
            let (words, high) = rest.split_at_mut((to.1 - to.0) as usize);
            let operand = |i: usize| match block.sources[i] {
                Source::Memory(p) if in_memory(i) => {
                    let splat = p.step == 0 && n > 1;
                    let (from, end) = p.range(rows, if splat { 1 } else { n });
                    let bytes = if end <= to.0 {
                        &low[from as usize..end as usize]
                    } else {
                        &high[(from - to.1) as usize..(end - to.1) as usize]
                    };
                    Operand {
                        words: bytes.as_chunks().0,
                        row: (p.row / 4) as usize,
                        splat,
                    }
                }
                _ => block.operand(i, &gathered[i]),
            };
            let (a, b) = (operand(0), operand(1));
            let target = Target {
                words: words.as_chunks_mut().0,
                row: (dst.row / 4) as usize,
                rows,
                columns: n,
            };
            block::compute(*host, op, Ty::F32, target, a, b);
            return;
        }
        for (i, room) in gathered.iter_mut().enumerate() {
            block.gather(i, memory, room, convert);
        }
        results.clear();
        if op == Op::Mac {
            gather(memory, dst, rows, n, results, convert);
        } else {
            results.resize(rows * n, [0; 4]);
        }
        block.apply(*host, dst.ty, results, gathered);
        scatter(memory, dst, rows, n, results, convert);
    }

    /// Results are added to `scratch.sent`.
    fn send(&self, memory: &[u8], scratch: &mut Scratch) {
        let Scratch {
            host,
            gathered,
            sent,
            convert,
            ..
        } = scratch;
        let (rows, n) = (self.rows, self.n);
        let lies = |i: usize| match self.sources[i] {
            Source::Memory(p) => p.plain(rows, n) || p.step == 0 && p.plain(rows, 1),
            _ => false,
        };
        for (i, room) in gathered.iter_mut().enumerate().filter(|(i, _)| !lies(*i)) {
            self.gather(i, memory, room, convert);
        }
        let begin = sent.len();
        sent.resize(begin + rows * n, [0; 4]);
        let operand = |i: usize| match self.sources[i] {
            Source::Memory(p) if lies(i) => {
                let splat = p.step == 0 && n > 1;
                let (from, end) = p.range(rows, if splat { 1 } else { n });
                Operand {
                    words: memory[from as usize..end as usize].as_chunks().0,
                    row: (p.row / 4) as usize,
                    splat,
                }
            }
            _ => self.operand(i, &gathered[i]),
        };
        let target = Target {
            words: &mut sent[begin..],
            row: n,
            rows,
            columns: n,
        };
        block::compute(*host, self.op, Ty::F32, target, operand(0), operand(1));
    }

    /// Computes compact rows from what was gathered.
    fn apply(&self, host: Host, ty: Ty, results: &mut [Word], gathered: &[Vec<Word>; 2]) {
        let target = Target {
            words: results,
            row: self.n,
            rows: self.rows,
            columns: self.n,
        };
        let (a, b) = (self.operand(0, &gathered[0]), self.operand(1, &gathered[1]));
        block::compute(host, self.op, ty, target, a, b);
    }

    /// One place takes all results, one after another.
    fn fold(&self, dst: Place, same: [bool; 2], memory: &mut [u8], scratch: &mut Scratch) {
        let Scratch {
            host,
            gathered,
            convert,
            ..
        } = scratch;
        for (i, room) in gathered.iter_mut().enumerate() {
            self.gather(i, memory, room, convert);
        }
        let operand = |i: usize| (!same[i]).then(|| self.operand(i, &gathered[i]));
        let at = dst.at as usize;
        let value = num::load(memory, dst.ty, at);
        let value = block::fold(*host, self.op, dst.ty, value, self.n, operand(0), operand(1));
        num::store(memory, dst.ty, at, value);
    }

    /// Copies source `i` out of memory, if it is there.
    fn gather(&self, i: usize, memory: &[u8], to: &mut Vec<Word>, convert: &mut Convert) {
        if let Source::Memory(p) = self.sources[i] {
            to.clear();
            let n = if p.step == 0 { 1 } else { self.n };
            gather(memory, p, self.rows, n, to, convert);
        }
    }

    /// Source `i`, gathered if it was in memory.
    fn operand<'b>(&'b self, i: usize, gathered: &'b [Word]) -> Operand<'b> {
        match &self.sources[i] {
            Source::Memory(p) => {
                let splat = p.step == 0 && self.n > 1;
                Operand {
                    words: gathered,
                    row: if splat { 1 } else { self.n },
                    splat,
                }
            }
            Source::Came { words, row } => Operand {
                words,
                row: *row,
                splat: false,
            },
            Source::Imm(x) => Operand {
                words: std::slice::from_ref(x),
                row: 0,
                splat: true,
            },
        }
    }
}

/// Elements from memory, as compact rows of f32.
fn gather(memory: &[u8], from: Place, rows: usize, n: usize, to: &mut Vec<Word>, convert: &mut Convert) {
    let Place { ty, at, row, step } = from;
    // rows without a gap are one
    let (rows, n) = if row == step * n as i64 {
        (1, rows * n)
    } else {
        (rows, n)
    };
    let starts = (0..rows as i64).map(|r| at + row * r);
    match ty {
        Ty::F32 if step == 4 || n == 1 => {
            for at in starts {
                to.extend_from_slice(memory[at as usize..at as usize + 4 * n].as_chunks().0);
            }
        }
        Ty::F32 => {
            for at in starts {
                to.extend((0..n as i64).map(|i| {
                    let at = (at + step * i) as usize;
                    [memory[at], memory[at + 1], memory[at + 2], memory[at + 3]]
                }));
            }
        }
        Ty::F16 => {
            let Convert { host, bytes, .. } = convert;
            for at in starts {
                if step == 2 {
                    block::widen(*host, memory[at as usize..at as usize + 2 * n].as_chunks().0, to);
                    continue;
                }
                bytes.clear();
                bytes.extend((0..n as i64).map(|i| {
                    let at = (at + step * i) as usize;
                    [memory[at], memory[at + 1]]
                }));
                block::widen(*host, bytes, to);
            }
        }
    }
}

/// Compact rows of f32 to memory, in order.
fn scatter(memory: &mut [u8], to: Place, rows: usize, n: usize, from: &[Word], convert: &mut Convert) {
    let Place { ty, at, row, step } = to;
    match ty {
        Ty::F32 => {
            for (r, words) in (0..rows as i64).zip(from.chunks_exact(n)) {
                if step == 4 {
                    let at = (at + row * r) as usize;
                    memory[at..at + 4 * n].copy_from_slice(words.as_flattened());
                    continue;
                }
                for (i, w) in (0..).zip(words) {
                    let at = (at + row * r + step * i) as usize;
                    memory[at..at + 4].copy_from_slice(w);
                }
            }
        }
        Ty::F16 => {
            block::narrow(from, &mut convert.single, &mut convert.half);
            for (r, halves) in (0..rows as i64).zip(convert.half.chunks_exact(n)) {
                let at = at + row * r;
                if step == 2 {
                    let bytes = memory[at as usize..at as usize + 2 * n].as_chunks_mut().0;
                    for (b, x) in bytes.iter_mut().zip(halves) {
                        *b = x.to_le_bytes();
                    }
                } else {
                    for (i, x) in (0..).zip(halves) {
                        let at = (at + step * i) as usize;
                        memory[at..at + 2].copy_from_slice(&x.to_le_bytes());
                    }
                }
            }
        }
    }
}

/// Elements as steps move them: `n` of them in rows of `columns`, from the column `first` on, `width` a step; each row begins
/// with a step.
#[derive(Clone, Copy)]
struct Grid {
    first: usize,
    columns: usize,
    width: usize,
    n: usize,
}

impl Grid {
    /// The elements of each step.
    fn steps(self) -> impl Iterator<Item = usize> {
        let (mut column, mut left) = (self.first, self.n);
        std::iter::from_fn(move || {
            let lanes = self.width.min(self.columns - column).min(left);
            left -= lanes;
            column = (column + lanes) % self.columns;
            (lanes > 0).then_some(lanes)
        })
    }
}

/// The elements that wavelets carry, a wavelet a step.
fn take(wavelets: &mut Wavelets, ty: Ty, grid: Grid, to: &mut Vec<Word>) -> Result<(), ()> {
    if grid.width == 1 && ty == Ty::F32 && wavelets.single() {
        std::mem::swap(wavelets.words(), to);
        return if to.len() == grid.n { Ok(()) } else { Err(()) };
    }
    let mut wavelets = wavelets.iter();
    for lanes in grid.steps() {
        match wavelets.next() {
            Some(w) if w.elements as usize == lanes => {
                to.extend((0..lanes as u32).map(|lane| num::from_bits(ty, w.bits, lane).to_le_bytes()));
            }
            _ => return Err(()),
        }
    }
    if wavelets.next().is_none() {
        Ok(())
    } else {
        Err(())
    }
}

/// Results as wavelets, one a step.
fn give(results: &[Word], ty: Ty, grid: Grid, out: &mut Wavelets) {
    if grid.width == 1 {
        let values = results.iter().map(|w| f32::from_le_bytes(*w));
        match ty {
            Ty::F32 => out.add_words(values.map(|x| num::canonical(x).to_le_bytes())),
            Ty::F16 => out.add_words(values.map(|x| (num::to_bits(Ty::F16, x) as u32).to_le_bytes())),
        }
        return;
    }
    let mut left = results;
    for lanes in grid.steps() {
        let (words, rest) = left.split_at(lanes);
        left = rest;
        let mut bits = 0;
        for (i, w) in words.iter().enumerate() {
            bits |= num::to_bits(ty, f32::from_le_bytes(*w)) << (ty.bits() as usize * i);
        }
        out.push(Wavelet {
            bits,
            elements: lanes as u8,
            flag: false,
        });
    }
}
