//! Many AXPYs of short rows, one after another: y += a * x, each element by a fused multiply-add, as the rules say (M19); or y = a * x,
//! which is the same on a y of -0, the one number that changes no product.

use super::block::{Host, Word, widen};
use crate::numerics as num;
use crate::program::Ty;
use fearless_simd::prelude::*;
use fearless_simd::{Simd, f32x8, f32x16};
use std::ops::Range;

/// A value, and where in memory its row of accumulators and its row of x begin.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Axpy {
    pub a: f32,
    pub y: usize,
    pub x: usize,
    /// y begins with this product.
    pub fresh: bool,
}

/// Does them in their order; rows have `n` elements, y f32 and x of a type. An AXPY's two rows have no byte in common.
pub(crate) fn axpys(host: Host, memory: &mut [u8], n: usize, x_ty: Ty, all: &[Axpy], wide: &mut Vec<Word>) {
    if x_ty == Ty::F16 {
        let mut row = usize::MAX;
        for one in all {
            // a weight's neighbours in a list have the same x, which nobody writes but an AXPY on it
            if one.x != row {
                let (halves, _) = memory[one.x..][..2 * n].as_chunks();
                wide.clear();
                widen(host, halves, wide);
                row = one.x;
            }
            let y = one.y..one.y + 4 * n;
            row_of_words(host, one, wide, words(&mut memory[y.clone()]));
            if overlap(&y, &(row..row + 2 * n)) {
                row = usize::MAX;
            }
        }
        return;
    }
    host.apply(Rows { memory, n, all });
}

/// One AXPY.
fn row_of_words(host: Host, one: &Axpy, x: &[Word], y: &mut [Word]) {
    begin(one, y);
    host.apply(Row { a: one.a, x, y });
}

fn begin(one: &Axpy, y: &mut [Word]) {
    if one.fresh {
        y.fill((-0f32).to_le_bytes());
    }
}

/// Whether two ranges have a byte in common.
pub(crate) fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn words(bytes: &mut [u8]) -> &mut [Word] {
    bytes.as_chunks_mut().0
}

struct Row<'a> {
    a: f32,
    x: &'a [Word],
    y: &'a mut [Word],
}

struct Rows<'a> {
    memory: &'a mut [u8],
    n: usize,
    all: &'a [Axpy],
}

pub(super) trait Work {
    fn on<S: Simd>(self, simd: S);
    fn plain(self);
}

impl Host {
    /// With the host's vector instructions, if it has such as multiply and add at once.
    pub(super) fn apply(self, work: impl Work) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = self.level().as_avx512() {
                return avx512.vectorize(
                    #[inline(always)]
                    || work.on(avx512),
                );
            }
            if let Some(avx2) = self.level().as_avx2() {
                return avx2.vectorize(
                    #[inline(always)]
                    || work.on(avx2),
                );
            }
        }
        work.plain();
    }
}

impl Work for Row<'_> {
    #[inline(always)]
    fn on<S: Simd>(self, simd: S) {
        row(simd, self.a, self.x, self.y);
    }

    fn plain(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = num::mac(Ty::F32, f32::from_le_bytes(*y), self.a, f32::from_le_bytes(*x)).to_le_bytes();
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn each(self, mut f: impl FnMut(f32, &[Word], &mut [Word])) {
        for one in self.all {
            let ranges = [one.y..one.y + 4 * self.n, one.x..one.x + 4 * self.n];
            let [y, x] = self
                .memory
                .get_disjoint_mut(ranges)
                .expect("rows within memory, without a common byte");
            begin(one, words(y));
            f(one.a, words(x), words(y));
        }
    }
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn on<S: Simd>(self, simd: S) {
        self.each(
            #[inline(always)]
            |a, x, y| row(simd, a, x, y),
        );
    }

    fn plain(self) {
        self.each(|a, x, y| Row { a, x, y }.plain());
    }
}

/// One AXPY.
#[inline(always)]
fn row<S: Simd>(simd: S, a: f32, x: &[Word], y: &mut [Word]) {
    let (x16, x) = x.as_chunks::<16>();
    let (y16, y) = y.as_chunks_mut::<16>();
    let (w, nan) = (f32x16::splat(simd, a), f32x16::splat(simd, num::NAN));
    for (y, x) in y16.iter_mut().zip(x16) {
        let x: f32x16<S> = x.map(f32::from_le_bytes).simd_into(simd);
        let old: f32x16<S> = y.map(f32::from_le_bytes).simd_into(simd);
        let sum = w.mul_add_precise(x, old);
        let sum: [f32; 16] = simd.select_f32x16(sum.simd_eq(sum), sum, nan).into();
        *y = sum.map(f32::to_le_bytes);
    }
    let (x8, x) = x.as_chunks::<8>();
    let (y8, y) = y.as_chunks_mut::<8>();
    let (w, nan) = (f32x8::splat(simd, a), f32x8::splat(simd, num::NAN));
    for (y, x) in y8.iter_mut().zip(x8) {
        let x: f32x8<S> = x.map(f32::from_le_bytes).simd_into(simd);
        let old: f32x8<S> = y.map(f32::from_le_bytes).simd_into(simd);
        let sum = w.mul_add_precise(x, old);
        let sum: [f32; 8] = simd.select_f32x8(sum.simd_eq(sum), sum, nan).into();
        *y = sum.map(f32::to_le_bytes);
    }
    for (y, x) in y.iter_mut().zip(x) {
        *y = num::canonical(a.mul_add(f32::from_le_bytes(*x), f32::from_le_bytes(*y))).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Op;
    use fearless_simd::Level;
    use half::f16;

    /// All lengths of rows, both types of x, on all that the host can do, against one multiply-add after another.
    #[test]
    fn rows_of_all_lengths_are_those_of_single_elements() {
        let mut state = 1u64;
        let mut draw = move || {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as usize
        };
        let special = [f32::INFINITY, f32::NAN, -0.0, 0.0, f32::MAX, f32::from_bits(1)];
        let mut number = |n: usize| match draw() % 64 {
            0 => special[n % special.len()],
            _ => (draw() % 8192) as f32 / 1024.0 - 4.0,
        };
        let mut hosts = vec![Host::default(), Host::of(Level::baseline())];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        hosts.extend(Level::new().as_avx2().map(|avx2| Host::of(Level::Avx2(avx2))));
        for n in 1..=40 {
            for ty in [Ty::F32, Ty::F16] {
                let (ys, xs) = (3, 2);
                // an odd place, rows not next to one another
                let (y_at, x_at) = (
                    |i: usize| 2 + i * (4 * n + 6),
                    |i: usize| 2 + ys * (4 * n + 6) + i * (4 * n + 2),
                );
                let mut memory = vec![0u8; x_at(xs)];
                for i in 0..ys {
                    for k in 0..n {
                        num::store(&mut memory, Ty::F32, y_at(i) + 4 * k, number(k));
                    }
                }
                for i in 0..xs {
                    for k in 0..n {
                        let x = f16::from_f32(number(k)).to_f32();
                        num::store(&mut memory, ty, x_at(i) + ty.bytes() as usize * k, x);
                    }
                }
                let all: Vec<Axpy> = (0..20)
                    .map(|i| Axpy {
                        a: number(i),
                        y: y_at(i * 7 % ys),
                        x: x_at(i / 5 % xs),
                        fresh: i % 3 == 0,
                    })
                    .collect();
                let mut want = memory.clone();
                for one in &all {
                    for k in 0..n {
                        let x = num::load(&want, ty, one.x + ty.bytes() as usize * k);
                        let y = match one.fresh {
                            true => num::apply(Op::Mul, one.a, x),
                            false => num::mac(Ty::F32, num::load(&want, Ty::F32, one.y + 4 * k), one.a, x),
                        };
                        num::store(&mut want, Ty::F32, one.y + 4 * k, y);
                    }
                }
                for host in &hosts {
                    let mut got = memory.clone();
                    axpys(*host, &mut got, n, ty, &all, &mut Vec::new());
                    assert!(got == want, "{n} elements, x {ty:?}, {:?}", host.level());
                }
            }
        }
    }
}
