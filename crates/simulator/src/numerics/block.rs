//! The machine's arithmetic on blocks: rows of elements, each the same operation as its scalar form in [`super`], bit for bit.
//! Element-wise loops carry nothing from one element to the next, so the compiler
//! may use vector instructions; with those of AVX2 a fused multiply-add is one instruction instead of a call. `fearless_simd` finds
//! at run time whether the host has them, and needs no `unsafe` here; a host without runs the same loops as it can.

use crate::numerics as num;
use crate::program::{Op, Ty};
use fearless_simd::{Level, Simd};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// An f32 as it lies in SRAM, at any address.
pub(crate) type Word = [u8; 4];

/// What the host can do.
#[derive(Clone, Copy)]
pub(crate) struct Host(Level);

impl Default for Host {
    fn default() -> Self {
        Host(Level::new())
    }
}

impl Host {
    pub(crate) fn level(self) -> Level {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn of(level: Level) -> Host {
        Host(level)
    }

    /// Executes `f` (an inlined closure) with the host's vector instructions.
    #[inline(always)]
    fn with<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(avx2) = self.0.as_avx2() {
            return avx2.vectorize(f);
        }
        f()
    }
}

/// An operand: rows that start `row` words apart, each of as many elements as the block has columns, or of one element for all.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub words: &'a [Word],
    pub row: usize,
    pub splat: bool,
}

/// The rows of a destination that start `row` words apart, each of `columns` elements.
pub(crate) struct Target<'a> {
    pub words: &'a mut [Word],
    pub row: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Each element d of the destination becomes op(a, b), of a `Mac` d + a * b. In `Ty::F16` the sum is rounded to odd, so that the
/// rounding to f16 that must follow is the only one that shows.
pub(crate) fn compute(host: Host, op: Op, ty: Ty, to: Target, a: Operand, b: Operand) {
    macro_rules! each {
        ($f:expr) => {
            host.with(
                #[inline(always)]
                || rows(to, a, b, $f),
            )
        };
    }
    match (op, ty) {
        (Op::Mac, Ty::F32) => each!(|d, a, b| num::mac(Ty::F32, d, a, b)),
        (Op::Mac, Ty::F16) => each!(num::mac_to_odd),
        (Op::Mov, _) => each!(|_, a, _| a),
        (Op::Add, _) => each!(|_, a, b| num::apply(Op::Add, a, b)),
        (Op::Sub, _) => each!(|_, a, b| num::apply(Op::Sub, a, b)),
        (Op::Mul, _) => each!(|_, a, b| num::apply(Op::Mul, a, b)),
        (Op::Max, _) => each!(|_, a, b| num::apply(Op::Max, a, b)),
        (Op::Min, _) => each!(|_, a, b| num::apply(Op::Min, a, b)),
        (Op::Exp, _) => each!(|_, a, b| num::apply(Op::Exp, a, b)),
        (Op::Div, _) => each!(|_, a, b| num::apply(Op::Div, a, b)),
        (Op::Rsqrt, _) => each!(|_, a, b| num::apply(Op::Rsqrt, a, b)),
        (Op::Tanh, _) => each!(|_, a, b| num::apply(Op::Tanh, a, b)),
    }
}

#[inline(always)]
fn rows(to: Target, a: Operand, b: Operand, f: impl Fn(f32, f32, f32) -> f32) {
    let get = |w: &Word| f32::from_le_bytes(*w);
    for r in 0..to.rows {
        let d = &mut to.words[r * to.row..][..to.columns];
        let (a_row, b_row) = (&a.words[r * a.row..], &b.words[r * b.row..]);
        match (a.splat, b.splat) {
            (true, true) => {
                let (a, b) = (get(&a_row[0]), get(&b_row[0]));
                d.iter_mut().for_each(|d| *d = f(get(d), a, b).to_le_bytes());
            }
            (true, false) => {
                let a = get(&a_row[0]);
                let b_row = &b_row[..to.columns];
                for (d, b) in d.iter_mut().zip(b_row) {
                    *d = f(get(d), a, get(b)).to_le_bytes();
                }
            }
            (false, true) => {
                let b = get(&b_row[0]);
                let a_row = &a_row[..to.columns];
                for (d, a) in d.iter_mut().zip(a_row) {
                    *d = f(get(d), get(a), b).to_le_bytes();
                }
            }
            (false, false) => {
                let (a_row, b_row) = (&a_row[..to.columns], &b_row[..to.columns]);
                for ((d, a), b) in d.iter_mut().zip(a_row).zip(b_row) {
                    *d = f(get(d), get(a), get(b)).to_le_bytes();
                }
            }
        }
    }
}

/// `n` elements one after another into one place that holds `value`: `None` for an operand is that place itself. Rounds to the type
/// each time.
pub(crate) fn fold(
    host: Host,
    op: Op,
    ty: Ty,
    value: f32,
    n: usize,
    a: Option<Operand>,
    b: Option<Operand>,
) -> f32 {
    host.with(
        #[inline(always)]
        || {
            let get = |o: &Option<Operand>, i: usize, value: f32| match o {
                Some(o) => f32::from_le_bytes(o.words[if o.splat { 0 } else { i }]),
                None => value,
            };
            let mut value = value;
            for i in 0..n {
                let (a, b) = (get(&a, i, value), get(&b, i, value));
                value = match op {
                    Op::Mac => num::mac(ty, value, a, b),
                    op => num::apply(op, a, b),
                };
                if ty == Ty::F16 {
                    value = f16::from_f32(value).to_f32();
                }
            }
            value
        },
    )
}

/// Every NaN becomes the one NaN.
pub(crate) fn canonical(host: Host, words: &mut [Word]) {
    let one = |w: &mut Word| *w = num::canonical(f32::from_le_bytes(*w)).to_le_bytes();
    host.with(
        #[inline(always)]
        || words.iter_mut().for_each(one),
    );
}

/// f16, as they lie in SRAM, to words of f32, exactly.
pub(crate) fn widen(host: Host, from: &[[u8; 2]], to: &mut Vec<Word>) {
    // in whole numbers, so that it is vectorised: the same digits with another exponent, which a product corrects
    let single = |half: &[u8; 2]| {
        let half = u16::from_le_bytes(*half) as u32;
        let (digits, sign) = ((half & 0x7fff) << 13, (half & 0x8000) << 16);
        let finite = (f32::from_bits(digits) * 2f32.powi(112)).to_bits();
        // infinity and NaN, the latter quiet
        let quiet = if half & 0x3ff == 0 { 0 } else { 1 << 22 };
        let other = digits | 0x7f80_0000 | quiet;
        let bits = if half & 0x7c00 == 0x7c00 { other } else { finite };
        (bits | sign).to_le_bytes()
    };
    host.with(
        #[inline(always)]
        || to.extend(from.iter().map(single)),
    );
}

/// Words of f32 to f16, to nearest even.
pub(crate) fn narrow(from: &[Word], room: &mut Vec<f32>, to: &mut Vec<f16>) {
    room.clear();
    room.extend(from.iter().map(|w| f32::from_le_bytes(*w)));
    to.resize(from.len(), f16::ZERO);
    to.convert_from_f32_slice(room);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns of bits of all exponents, special values among them, the same in every run.
    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let special = [
            0.0f32,
            1.0,
            f32::INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            1.5,
        ];
        let mut state = seed;
        let mut draw = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        (0..n)
            .map(|_| match draw() % 8 {
                0 => f32::from_bits(draw() as u32),
                1 => special[draw() as usize % special.len()] * if draw() % 2 == 0 { 1.0 } else { -1.0 },
                // near one another, so that sums cancel and ties occur
                2..4 => (draw() % 4096) as f32 / 1024.0 - 2.0,
                _ => f32::from_bits((draw() as u32 & 0x81ff_ffff) + 0x3e00_0000),
            })
            .collect()
    }

    fn words(x: &[f32]) -> Vec<Word> {
        x.iter().map(|x| x.to_le_bytes()).collect()
    }

    fn computed(host: Host, op: Op, ty: Ty, d: &[f32], a: &[f32], b: &[f32]) -> Vec<u32> {
        let (mut d, a, b) = (words(d), words(a), words(b));
        let columns = d.len();
        let operand = |words| Operand {
            words,
            row: columns,
            splat: false,
        };
        let to = Target {
            words: &mut d,
            row: columns,
            rows: 1,
            columns,
        };
        compute(host, op, ty, to, operand(&a), operand(&b));
        d.iter().map(|w| u32::from_le_bytes(*w)).collect()
    }

    /// a * b + c without a fused instruction: in f64, rounded to odd, then to f32.
    fn fused_by_hand(c: f32, a: f32, b: f32) -> f32 {
        let (p, c) = (a as f64 * b as f64, c as f64);
        let sum = p + c;
        let t = sum - p;
        let lost = (p - (sum - t)) + (c - t);
        num::odd(sum, lost) as f32
    }

    #[test]
    fn with_and_without_vector_instructions() {
        const N: usize = 1 << 16;
        let plain = Host(Level::baseline());
        for seed in 0..40 {
            let [d, a, b] = [0, 1, 2].map(|i| numbers(N, 3 * seed + i));
            let got = computed(Host::default(), Op::Mac, Ty::F32, &d, &a, &b);
            for i in 0..N {
                let (d, a, b) = (d[i], a[i], b[i]);
                assert_eq!(
                    got[i],
                    num::canonical(a.mul_add(b, d)).to_bits(),
                    "{a} * {b} + {d}"
                );
                assert_eq!(
                    got[i],
                    num::canonical(fused_by_hand(d, a, b)).to_bits(),
                    "{a} * {b} + {d}, by hand"
                );
            }
            assert_eq!(got, computed(plain, Op::Mac, Ty::F32, &d, &a, &b));
            if seed >= 4 {
                continue;
            }
            for (op, ty) in [
                (Op::Mac, Ty::F16),
                (Op::Mov, Ty::F32),
                (Op::Add, Ty::F32),
                (Op::Sub, Ty::F32),
                (Op::Mul, Ty::F32),
                (Op::Max, Ty::F32),
                (Op::Min, Ty::F32),
                (Op::Exp, Ty::F32),
                (Op::Div, Ty::F32),
                (Op::Rsqrt, Ty::F32),
                (Op::Tanh, Ty::F32),
            ] {
                let got = computed(Host::default(), op, ty, &d, &a, &b);
                assert_eq!(got, computed(plain, op, ty, &d, &a, &b), "{op:?}");
                for i in 0..N {
                    let want = match op {
                        Op::Mac => num::mac_to_odd(d[i], a[i], b[i]),
                        op => num::apply(op, a[i], b[i]),
                    };
                    assert_eq!(got[i], want.to_bits(), "{op:?} {} {} {}", d[i], a[i], b[i]);
                }
            }
        }
    }

    #[test]
    fn conversions_are_those_of_single_elements() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let (mut room, mut wide, mut back) = (Vec::new(), Vec::new(), Vec::new());
        let bytes: Vec<[u8; 2]> = all.iter().map(|h| h.to_le_bytes()).collect();
        widen(Host::default(), &bytes, &mut wide);
        let mut plain = Vec::new();
        widen(Host(Level::baseline()), &bytes, &mut plain);
        assert_eq!(wide, plain);
        for (h, w) in all.iter().zip(&wide) {
            assert_eq!(h.to_f32().to_bits(), f32::from_le_bytes(*w).to_bits(), "{h}");
        }
        narrow(&wide, &mut room, &mut back);
        for (h, b) in wide.iter().zip(&back) {
            assert_eq!(f16::from_f32(f32::from_le_bytes(*h)).to_bits(), b.to_bits());
        }
        let x = numbers(1 << 20, 7);
        narrow(&words(&x), &mut room, &mut back);
        for (x, b) in x.iter().zip(&back) {
            assert_eq!(f16::from_f32(*x).to_bits(), b.to_bits(), "{x}");
        }
    }
}
