//! The machine's arithmetic (rule M19): f32 with fused multiply-add, f16 storage, and the special functions as fixed
//! sequences of f32 operations, so that every engine on every host gives the same bits.

pub(crate) mod axpy;
pub(crate) mod block;
pub(crate) mod product;
pub(crate) mod sums;

use crate::program::{Op, Ty};
use half::f16;

/// The NaN that is sent and stored for every NaN, as f32.
pub const NAN: f32 = f32::from_bits(0x7fc0_0000);

/// Reads an element as f32 (f16 widens exactly).
#[inline]
pub fn load(memory: &[u8], ty: Ty, at: usize) -> f32 {
    match ty {
        Ty::F32 => f32::from_le_bytes(memory[at..at + 4].try_into().expect("four bytes")),
        Ty::F16 => f16::from_le_bytes(memory[at..at + 2].try_into().expect("two bytes")).to_f32(),
    }
}

/// Writes an element, rounding to nearest even.
#[inline]
pub fn store(memory: &mut [u8], ty: Ty, at: usize, value: f32) {
    match ty {
        Ty::F32 => memory[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        Ty::F16 => memory[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
}

/// An element's bits on the fabric; every NaN becomes the canonical one.
#[inline(always)]
pub fn to_bits(ty: Ty, value: f32) -> u64 {
    let value = canonical(value);
    match ty {
        Ty::F32 => value.to_bits() as u64,
        Ty::F16 => f16::from_f32(value).to_bits() as u64,
    }
}

/// The element at position `i` of a wavelet's payload.
#[inline(always)]
pub fn from_bits(ty: Ty, bits: u64, i: u32) -> f32 {
    match ty {
        Ty::F32 => f32::from_bits((bits >> (32 * i)) as u32),
        Ty::F16 => f16::from_bits((bits >> (16 * i)) as u16).to_f32(),
    }
}

/// Every NaN becomes the one NaN: which of two operands' payloads survives, and with which sign, depends on the host's instructions.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { NAN } else { x }
}

/// dst + a * b with one rounding: to f32, or to f16 where the accumulator is f16.
#[inline(always)]
pub fn mac(ty: Ty, dst: f32, a: f32, b: f32) -> f32 {
    match ty {
        Ty::F32 => canonical(a.mul_add(b, dst)),
        Ty::F16 => f16::from_f32(mac_to_odd(dst, a, b)).to_f32(),
    }
}

/// dst + a * b as an f32 whose last bit is set if it is not exact, so that a further rounding, to f16, is the only one that shows.
#[inline(always)]
pub(crate) fn mac_to_odd(dst: f32, a: f32, b: f32) -> f32 {
    // the product of two f32 is exact in f64; the sum's lost part decides its last bit
    let (p, d) = (a as f64 * b as f64, dst as f64);
    let sum = p + d;
    let t = sum - p;
    let lost = (p - (sum - t)) + (d - t);
    canonical(narrow(odd(sum, lost)))
}

/// `x`, with its last bit set if `lost` says that it is not exact: moved toward zero first where it was rounded away from it.
#[inline(always)]
fn odd(x: f64, lost: f64) -> f64 {
    let exact = (lost == 0.0) | !x.is_finite() | !lost.is_finite();
    let away = (lost < 0.0) == (x > 0.0);
    let toward_zero = x.to_bits().wrapping_sub(away as u64);
    if exact { x } else { f64::from_bits(toward_zero | 1) }
}

/// f64 to f32, rounded to odd.
#[inline(always)]
fn narrow(x: f64) -> f32 {
    let near = x as f32;
    let lost = x - near as f64;
    let exact = (lost == 0.0) | !near.is_finite() | !lost.is_finite();
    let away = (lost < 0.0) == (near > 0.0);
    let toward_zero = if away {
        near.to_bits().saturating_sub(1)
    } else {
        near.to_bits()
    };
    if exact {
        near
    } else {
        f32::from_bits(toward_zero | 1)
    }
}

/// The element-wise operations but `Mac`, in f32. `Mov` keeps all bits, the others send every NaN to the one.
#[inline(always)]
pub fn apply(op: Op, a: f32, b: f32) -> f32 {
    let value = match op {
        Op::Mov | Op::Mac => return a,
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Max => maximum(a, b),
        Op::Min => -maximum(-a, -b),
        Op::Exp => exp(a),
        Op::Div => a / b,
        Op::Rsqrt => 1.0 / a.sqrt(),
        Op::Tanh => tanh(a),
    };
    canonical(value)
}

/// IEEE 754-2019 maximum: NaN if either is, and +0 above -0.
#[inline(always)]
pub fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        NAN
    } else if a > b || (a == b && a.is_sign_positive()) {
        a
    } else {
        b
    }
}

/// e to the x: reduction by multiples of ln 2, a polynomial of degree 7, scaling in two halves; error below 2 units in the last place.
/// Without branches, so that loops over it can be vectorised.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let y = x.clamp(-104.0, 89.0);
    let n = (y * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_145_75, y);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let mut p = 1.984_127e-4f32;
    for c in [
        1.388_888_9e-3,
        8.333_334e-3,
        4.166_666_8e-2,
        0.166_666_67,
        0.5,
        1.0,
        1.0,
    ] {
        p = p.mul_add(r, c);
    }
    // to an integer by the bits of 1.5 * 2^23 + n: unlike a saturating conversion, that is vectorised
    let n = (n + 12_582_912.0).to_bits() as i32 - 0x4b40_0000;
    let half = n / 2;
    let power = |k: i32| f32::from_bits(((k + 127) as u32) << 23);
    let p = p * power(half) * power(n - half);
    let p = if x > 89.0 { f32::INFINITY } else { p };
    let p = if x < -104.0 { 0.0 } else { p };
    if x.is_nan() { NAN } else { p }
}

/// Hyperbolic tangent: an odd polynomial below 0.55, else 1 - 2 / (exp(2x) + 1).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let mut p = 1.455_834_4e-3f32;
    for c in [
        3.592_128e-3,
        8.863_236e-3,
        2.186_949e-2,
        5.396_825_4e-2,
        0.133_333_34,
        0.333_333_34,
    ] {
        p = (-s).mul_add(p, c);
    }
    let near = (p * s).mul_add(-x, x);
    let y = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let far = if x < 0.0 { -y } else { y };
    if a < 0.55 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_functions_are_close_to_f64() {
        for i in -8800..8800 {
            let x = i as f32 / 100.0;
            let want = (x as f64).exp();
            assert!((exp(x) as f64 - want).abs() <= want * 2.5e-7, "exp({x})");
        }
        for i in -4000..4000 {
            let x = i as f32 / 500.0;
            let want = (x as f64).tanh();
            assert!(
                (tanh(x) as f64 - want).abs() <= want.abs() * 5e-7,
                "tanh({x}) = {} not {want}",
                tanh(x)
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert!(exp(-100.0) > 0.0, "subnormals are kept");
    }

    #[test]
    fn maximum_follows_ieee() {
        assert_eq!(maximum(-0.0, 0.0).to_bits(), 0);
        assert_eq!(maximum(0.0, -0.0).to_bits(), 0);
        assert!(maximum(f32::NAN, 1.0).is_nan() && maximum(1.0, f32::NAN).is_nan());
        assert_eq!(apply(Op::Min, -0.0, 0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(apply(Op::Min, 2.0, 3.0), 2.0);
    }

    #[test]
    fn f16_accumulation_rounds_once() {
        // 2048 + 1 rounds to even in f16; the product's low bits must take part before that rounding
        assert_eq!(mac(Ty::F16, 2048.0, 1.0, 1.0), 2048.0);
        assert_eq!(mac(Ty::F16, 2048.0, 1.0, 1.0 + 1.0 / 1024.0), 2050.0);
        // just below the middle between 2050 and 2052: a detour over f32 would round up
        assert_eq!(
            mac(Ty::F16, 2050.0, 1.0 + 1.0 / 1024.0, 1.0 - 1.0 / 1024.0),
            2050.0
        );
        // a lost part below the 53rd bit still decides a tie
        assert_eq!(mac(Ty::F16, 2048.0, 1.0, 1.0), 2048.0);
        let tiny = f32::from_bits(1);
        assert_eq!(mac(Ty::F16, 1.0, tiny, 1.0), 1.0);
        assert_eq!(mac(Ty::F16, -2048.0, -1.0, 1.0 + 1.0 / 1024.0), -2050.0);
        assert!(mac(Ty::F16, f32::INFINITY, 1.0, f32::NEG_INFINITY).is_nan());
        assert_eq!(mac(Ty::F32, 1.0, 3.0, 2.0), 7.0);
    }
}
