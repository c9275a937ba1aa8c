//! Many steps of a vector instruction at once: the same numbers, in the same order, as one step after another.

use super::vector::{Arg, Run};
use crate::engine::PeCounters;
use crate::numerics as num;
use crate::program::*;

/// Room for operands, kept from one use to the next.
#[derive(Default)]
pub(in crate::engine) struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    d: Vec<f32>,
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
        let (mut done, mut elements) = (0usize, 0u64);
        while done < steps as usize {
            let left = self.shape[3] - self.column;
            let here = (steps as usize - done).min((left as u64).div_ceil(self.width as u64) as usize);
            let n = left.min(here as i64 * self.width);
            let part = inputs.map(|w| w.get(done..done + here).unwrap_or_default());
            self.elements(n, memory, part, out, scratch)?;
            self.advance(n);
            done += here;
            elements += n as u64;
        }
        if self.count != Count::None {
            counters.operations[self.count as usize - 1] += elements;
        }
        Ok(elements)
    }

    /// `n` elements of the innermost row that it is in.
    fn elements(
        &mut self,
        n: i64,
        memory: &mut [u8],
        inputs: [&[Wavelet]; 2],
        out: &mut Vec<Wavelet>,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        let count = n as usize;
        let place = |arg: &Arg| match arg {
            Arg::Memory { ty, strides, at, .. } => {
                let step = strides[3];
                Some((*ty, at + step * self.column, step))
            }
            _ => None,
        };
        let to = place(&self.dst);
        // an element may read what the one before it wrote
        let chained = to.is_some_and(|to| {
            to.2 == 0
                || [&self.a, &self.b]
                    .into_iter()
                    .filter_map(place)
                    .any(|from| from != to && overlap(from, to, n))
        });
        let size = if chained && count > 1 { 1 } else { count };
        let Scratch { a, b, d } = scratch;
        let mut first = 0;
        while first < count {
            for (arg, wavelets, to) in [(&self.a, inputs[0], &mut *a), (&self.b, inputs[1], &mut *b)] {
                to.clear();
                match arg {
                    Arg::Memory { ty, strides, at, .. } => {
                        gather(
                            memory,
                            *ty,
                            at + strides[3] * (self.column + first as i64),
                            strides[3],
                            size,
                            to,
                        );
                    }
                    Arg::In { ty, .. } => take(wavelets, *ty, self.width as usize, first, size, count, to)?,
                    Arg::Imm(x) => to.resize(size, *x),
                    Arg::Out { .. } => unreachable!("never a source"),
                }
            }
            match &self.dst {
                Arg::Memory { ty, strides, at, .. } => {
                    let at = at + strides[3] * (self.column + first as i64);
                    if self.op == Op::Mac {
                        d.clear();
                        gather(memory, *ty, at, strides[3], size, d);
                        for ((d, a), b) in d.iter_mut().zip(&*a).zip(&*b) {
                            *d = num::mac(*ty, *d, *a, *b);
                        }
                        scatter(memory, *ty, at, strides[3], d);
                    } else {
                        apply(self.op, a, b);
                        scatter(memory, *ty, at, strides[3], a);
                    }
                }
                Arg::Out { ty, .. } => {
                    apply(self.op, a, b);
                    for part in a.chunks(self.width as usize) {
                        let mut bits = 0;
                        for (i, x) in part.iter().enumerate() {
                            bits |= num::to_bits(*ty, *x) << (ty.bits() as usize * i);
                        }
                        out.push(Wavelet {
                            bits,
                            elements: part.len() as u8,
                            flag: false,
                        });
                    }
                }
                _ => unreachable!("never a destination"),
            }
            first += size;
        }
        Ok(())
    }
}

/// Whether two rows of `n` elements have bytes in common: type, address of the first, bytes from one to the next.
fn overlap(a: (Ty, i64, i64), b: (Ty, i64, i64), n: i64) -> bool {
    let range = |(ty, at, step): (Ty, i64, i64)| {
        let last = at + step * (n - 1);
        (at.min(last), at.max(last) + ty.bytes() as i64)
    };
    let (a, b) = (range(a), range(b));
    a.0 < b.1 && b.0 < a.1
}

/// `a` becomes op(a, b), element by element.
fn apply(op: Op, a: &mut [f32], b: &[f32]) {
    let each = a.iter_mut().zip(b);
    match op {
        Op::Mov | Op::Mac => {}
        Op::Add => each.for_each(|(a, b)| *a += b),
        Op::Sub => each.for_each(|(a, b)| *a -= b),
        Op::Mul => each.for_each(|(a, b)| *a *= b),
        op => each.for_each(|(a, b)| *a = num::apply(op, *a, *b)),
    }
}

/// Elements from memory, as f32.
fn gather(memory: &[u8], ty: Ty, at: i64, step: i64, n: usize, to: &mut Vec<f32>) {
    if step == 0 {
        to.resize(n, num::load(memory, ty, at as usize));
    } else if ty == Ty::F32 && step == 4 {
        let bytes = &memory[at as usize..at as usize + 4 * n];
        to.extend(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        );
    } else {
        to.extend((0..n as i64).map(|i| num::load(memory, ty, (at + step * i) as usize)));
    }
}

/// Elements to memory.
fn scatter(memory: &mut [u8], ty: Ty, at: i64, step: i64, from: &[f32]) {
    if ty == Ty::F32 && step == 4 {
        let bytes = &mut memory[at as usize..at as usize + 4 * from.len()];
        for (b, x) in bytes.chunks_exact_mut(4).zip(from) {
            b.copy_from_slice(&x.to_le_bytes());
        }
    } else {
        for (i, x) in from.iter().enumerate() {
            num::store(memory, ty, (at + step * i as i64) as usize, *x);
        }
    }
}

/// Elements `first` to `first + n` of the `count` that wavelets carry, `width` each.
fn take(
    wavelets: &[Wavelet],
    ty: Ty,
    width: usize,
    first: usize,
    n: usize,
    count: usize,
    to: &mut Vec<f32>,
) -> Result<(), ()> {
    for i in first..first + n {
        let (w, lane) = (i / width, i % width);
        let of_step = width.min(count - w * width);
        let Some(wavelet) = wavelets.get(w).filter(|w| w.elements as usize == of_step) else {
            return Err(());
        };
        to.push(num::from_bits(ty, wavelet.bits, lane as u32));
    }
    Ok(())
}
