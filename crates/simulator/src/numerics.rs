//! The machine's arithmetic (rule M19): f32 with fused multiply-add, f16 storage, and the special functions as fixed
//! sequences of f32 operations, so that every engine on every host gives the same bits.

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
#[inline]
pub fn to_bits(ty: Ty, value: f32) -> u64 {
    let value = if value.is_nan() { NAN } else { value };
    match ty {
        Ty::F32 => value.to_bits() as u64,
        Ty::F16 => f16::from_f32(value).to_bits() as u64,
    }
}

/// The element at position `i` of a wavelet's payload.
#[inline]
pub fn from_bits(ty: Ty, bits: u64, i: u32) -> f32 {
    match ty {
        Ty::F32 => f32::from_bits((bits >> (32 * i)) as u32),
        Ty::F16 => f16::from_bits((bits >> (16 * i)) as u16).to_f32(),
    }
}

/// dst + a * b with one rounding: to f32, or to f16 where the accumulator is f16.
#[inline]
pub fn mac(ty: Ty, dst: f32, a: f32, b: f32) -> f32 {
    match ty {
        Ty::F32 => a.mul_add(b, dst),
        Ty::F16 => {
            // the product of two f32 is exact in f64; the sum's lost part decides its last bit (rounding to odd), so that
            // rounding on to f16 is the only one that shows
            let (p, d) = (a as f64 * b as f64, dst as f64);
            let sum = p + d;
            let t = sum - p;
            let lost = (p - (sum - t)) + (d - t);
            narrow(odd(sum, lost)).to_f32()
        }
    }
}

/// `x`, with its last bit set if `lost` says that it is not exact: moved toward zero first where it was rounded away from it.
fn odd(x: f64, lost: f64) -> f64 {
    if lost == 0.0 || !x.is_finite() || !lost.is_finite() {
        return x;
    }
    let toward_zero = if (lost < 0.0) == (x > 0.0) {
        x.to_bits() - 1
    } else {
        x.to_bits()
    };
    f64::from_bits(toward_zero | 1)
}

/// f64 to f16 with one rounding, on any host: first to f32, rounded to odd, then to nearest even.
fn narrow(x: f64) -> f16 {
    let near = x as f32;
    let lost = x - near as f64;
    if lost == 0.0 || !near.is_finite() || !lost.is_finite() {
        return f16::from_f32(near);
    }
    let toward_zero = if (lost < 0.0) == (near > 0.0) {
        near.to_bits().saturating_sub(1)
    } else {
        near.to_bits()
    };
    f16::from_f32(f32::from_bits(toward_zero | 1))
}

/// The element-wise operations but `Mac`, in f32.
#[inline]
pub fn apply(op: Op, a: f32, b: f32) -> f32 {
    match op {
        Op::Mov | Op::Mac => a,
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Max => maximum(a, b),
        Op::Min => -maximum(-a, -b),
        Op::Exp => exp(a),
        Op::Div => a / b,
        Op::Rsqrt => 1.0 / a.sqrt(),
        Op::Tanh => tanh(a),
    }
}

/// IEEE 754-2019 maximum: NaN if either is, and +0 above -0.
#[inline]
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
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return NAN;
    }
    if x > 89.0 {
        return f32::INFINITY;
    }
    if x < -104.0 {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_145_75, x);
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
    let n = n as i32;
    let half = n / 2;
    let power = |k: i32| f32::from_bits(((k + 127) as u32) << 23);
    p * power(half) * power(n - half)
}

/// Hyperbolic tangent: an odd polynomial below 0.55, else 1 - 2 / (exp(2x) + 1).
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    if a < 0.55 {
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
        return (p * s).mul_add(-x, x);
    }
    let y = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    if x < 0.0 { -y } else { y }
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
