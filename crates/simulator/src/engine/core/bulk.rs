//! Many steps of a vector instruction at once: the same numbers, in the same order, as one step after another.
//!
//! What is left of the instruction is cut into blocks (rows of the two inner extents; a part of a row first and last). A block's
//! sources are read where they lie if they are f32 in place and the destination has none of their bytes, else gathered first; its
//! results are written in place, or scattered afterwards. Where an element might read what another one wrote, the block is cut
//! into rows, and these into elements: the order of the step-by-step form, always.

use super::vector::{Arg, Run};
use crate::engine::PeCounters;
use crate::numerics as num;
use crate::numerics::block::{self, Host, Operand, Target, Word};
use crate::program::*;
use half::f16;

#[cfg(test)]
mod tests;

/// Room for operands, kept from one use to the next.
#[derive(Default)]
pub(in crate::engine) struct Scratch {
    host: Host,
    /// What came from the fabric, by source.
    came: [Vec<Word>; 2],
    gathered: [Vec<Word>; 2],
    results: Vec<Word>,
    convert: Convert,
}

/// Room for conversions between f16 and f32.
#[derive(Default)]
struct Convert {
    half: Vec<f16>,
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

impl Run {
    /// Uses `slots` slots from cycle `from` on, of which none ends the instruction (nor, of an axpy, a sparse element). Each step
    /// takes a wavelet of each of `inputs`; what it sends is added to `out`. Returns the elements handled.
    ///
    /// # Errors
    /// A wavelet has another number of elements than its step.
    #[allow(clippy::too_many_arguments)] // one call; a struct for it would only rename them
    pub(super) fn leap(
        &mut self,
        from: u64,
        slots: u64,
        memory: &mut [u8],
        inputs: [&[Wavelet]; 2],
        out: &mut Vec<Wavelet>,
        counters: &mut PeCounters,
        scratch: &mut Scratch,
    ) -> Result<u64, ()> {
        counters.slots[self.count as usize] += slots;
        let (paid, cost) = (self.paid as u64, self.cost as u64);
        let steps = (paid + slots) / cost;
        self.paid = ((paid + slots) % cost) as u32;
        if steps == 0 {
            return Ok(0);
        }
        if self.puts().is_some() {
            counters.first_send.get_or_insert(from + cost - paid - 1);
        } else {
            counters.last_write = Some(from + steps * cost - paid - 1);
        }
        let row_steps = self.shape[3].div_euclid(self.width) + (self.shape[3] % self.width != 0) as i64;
        let (steps, mut done, mut elements) = (steps as i64, 0, 0);
        while done < steps {
            let left = steps - done;
            let (rows, n, here) = if self.column == 0 && left >= row_steps {
                let rows = (left / row_steps).min(self.shape[2] - self.index[2]);
                (rows, self.shape[3], rows * row_steps)
            } else {
                let rest = self.shape[3] - self.column;
                let here = left.min((rest + self.width - 1) / self.width);
                (1, rest.min(here * self.width), here)
            };
            let part = inputs.map(|w| w.get(done as usize..(done + here) as usize).unwrap_or_default());
            self.block(rows as usize, n as usize, memory, part, out, scratch)?;
            self.advance_rows(rows, n);
            done += here;
            elements += (rows * n) as u64;
        }
        if self.count != Count::None {
            counters.operations[self.count as usize - 1] += elements;
        }
        Ok(elements)
    }

    /// Moves past `rows` rows of the second inner extent, or, if it is one, past `n` elements of a row.
    fn advance_rows(&mut self, rows: i64, n: i64) {
        self.index[2] += rows - 1;
        for arg in [&mut self.dst, &mut self.a, &mut self.b] {
            if let Arg::Memory { strides, at, .. } = arg {
                *at += strides[2] * (rows - 1);
            }
        }
        self.advance(n);
    }

    /// `rows` rows of `n` elements from where it is.
    fn block(
        &self,
        rows: usize,
        n: usize,
        memory: &mut [u8],
        inputs: [&[Wavelet]; 2],
        out: &mut Vec<Wavelet>,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        let place = |ty: Ty, at: i64, strides: &[i64; 4]| Place {
            ty,
            at: at + strides[3] * self.column,
            row: strides[2],
            step: strides[3],
        };
        let width = self.width as usize;
        let mut came = std::mem::take(&mut scratch.came);
        for ((arg, wavelets), to) in [&self.a, &self.b].into_iter().zip(inputs).zip(&mut came) {
            if let Arg::In { ty, .. } = arg {
                to.clear();
                take(wavelets, *ty, width, rows, n, to)?;
            }
        }
        let source = |arg: &Arg, words| match arg {
            Arg::Memory { ty, strides, at, .. } => Source::Memory(place(*ty, *at, strides)),
            Arg::In { .. } => Source::Came { words, row: n },
            Arg::Imm(x) => Source::Imm(x.to_le_bytes()),
            Arg::Out { .. } => unreachable!("never a source"),
        };
        let block = Block {
            op: self.op,
            rows,
            n,
            sources: [source(&self.a, &came[0]), source(&self.b, &came[1])],
        };
        match &self.dst {
            Arg::Memory { ty, strides, at, .. } => block.store(place(*ty, *at, strides), memory, scratch),
            Arg::Out { ty, .. } => {
                block.send(memory, scratch);
                give(&scratch.results, *ty, width, n, out);
            }
            _ => unreachable!("never a destination"),
        }
        scratch.came = came;
        Ok(())
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

    /// A column is a row as well, and rows that follow each other without a gap are one.
    fn flat(&self, dst: Place) -> (Block<'a>, Place) {
        let (rows, n) = (self.rows, self.n);
        let swap = n == 1;
        let joins = |p: &Place| p.row == p.step * n as i64;
        let all = self.sources.iter().all(|s| match s {
            Source::Memory(p) => joins(p),
            Source::Came { row, .. } => *row == n,
            Source::Imm(_) => true,
        });
        if rows == 1 || !(swap || all && joins(&dst)) {
            return (*self, dst);
        }
        let flat = |p: Place| Place {
            step: if swap { p.row } else { p.step },
            row: 0,
            ..p
        };
        let sources = self.sources.map(|s| match s {
            Source::Memory(p) => Source::Memory(flat(p)),
            other => other,
        });
        let block = Block {
            rows: 1,
            n: rows * n,
            sources,
            ..*self
        };
        (block, flat(dst))
    }

    /// Results go to memory.
    fn store(&self, dst: Place, memory: &mut [u8], scratch: &mut Scratch) {
        let (block, dst) = self.flat(dst);
        let Block { op, rows, n, .. } = block;
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

    /// Results go to `scratch.results`.
    fn send(&self, memory: &[u8], scratch: &mut Scratch) {
        let Scratch {
            host,
            gathered,
            results,
            convert,
            ..
        } = scratch;
        for (i, room) in gathered.iter_mut().enumerate() {
            self.gather(i, memory, room, convert);
        }
        results.clear();
        results.resize(self.rows * self.n, [0; 4]);
        self.apply(*host, Ty::F32, results, gathered);
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
            let half = &mut convert.half;
            half.clear();
            for at in starts {
                if step == 2 {
                    let bytes = memory[at as usize..at as usize + 2 * n].as_chunks().0;
                    half.extend(bytes.iter().map(|b| f16::from_le_bytes(*b)));
                } else {
                    half.extend((0..n as i64).map(|i| {
                        let at = (at + step * i) as usize;
                        f16::from_le_bytes([memory[at], memory[at + 1]])
                    }));
                }
            }
            block::widen(half, &mut convert.single, to);
        }
    }
}

/// Compact rows of f32 to memory, in order.
fn scatter(memory: &mut [u8], to: Place, rows: usize, n: usize, from: &[Word], convert: &mut Convert) {
    let Place { ty, at, row, step } = to;
    match ty {
        Ty::F32 => {
            for (r, words) in (0..rows as i64).zip(from.chunks_exact(n)) {
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

/// The elements that wavelets carry, `width` each, for `rows` rows of `n` elements, each of which begins with a wavelet.
fn take(
    wavelets: &[Wavelet],
    ty: Ty,
    width: usize,
    rows: usize,
    n: usize,
    to: &mut Vec<Word>,
) -> Result<(), ()> {
    if wavelets.len() != rows * n.div_ceil(width) {
        return Err(());
    }
    if width == 1 {
        if wavelets.iter().fold(false, |other, w| other | (w.elements != 1)) {
            return Err(());
        }
        match ty {
            Ty::F32 => to.extend(wavelets.iter().map(|w| (w.bits as u32).to_le_bytes())),
            Ty::F16 => to.extend(
                wavelets
                    .iter()
                    .map(|w| num::from_bits(ty, w.bits, 0).to_le_bytes()),
            ),
        }
        return Ok(());
    }
    for row in wavelets.chunks_exact(n.div_ceil(width)) {
        for (i, w) in row.iter().enumerate() {
            let lanes = width.min(n - i * width);
            if w.elements as usize != lanes {
                return Err(());
            }
            to.extend((0..lanes as u32).map(|lane| num::from_bits(ty, w.bits, lane).to_le_bytes()));
        }
    }
    Ok(())
}

/// Results as wavelets of `width` elements; each row of `n` begins with a new one.
fn give(results: &[Word], ty: Ty, width: usize, n: usize, out: &mut Vec<Wavelet>) {
    let wavelet = |words: &[Word]| {
        let mut bits = 0;
        for (i, w) in words.iter().enumerate() {
            bits |= num::to_bits(ty, f32::from_le_bytes(*w)) << (ty.bits() as usize * i);
        }
        Wavelet {
            bits,
            elements: words.len() as u8,
            flag: false,
        }
    };
    if width == 1 {
        let one = |bits| Wavelet {
            bits,
            elements: 1,
            flag: false,
        };
        let values = results.iter().map(|w| f32::from_le_bytes(*w));
        match ty {
            Ty::F32 => out.extend(values.map(|x| one(num::to_bits(Ty::F32, x)))),
            Ty::F16 => out.extend(values.map(|x| one(num::to_bits(Ty::F16, x)))),
        }
        return;
    }
    for row in results.chunks_exact(n) {
        out.extend(row.chunks(width).map(wavelet));
    }
}
