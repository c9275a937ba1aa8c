//! Seeded randomness that is the same on every platform: ChaCha8 streams, each derived from a seed, a purpose and a name,
//! and samplers made of exactly rounded operations only (the platform's `ln` and `cos` are not).

use crate::graph::{Graph, TensorId};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// FNV-1a: short, and fixed for ever.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A stream of random numbers.
pub(crate) struct Stream {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Stream {
    /// The stream of a seed for one purpose and name. Streams of different names do not depend on each other.
    pub(crate) fn new(seed: u64, purpose: &str, name: &str) -> Self {
        let mut key = [0; 32];
        for (part, value) in [seed, hash(purpose), hash(name), name.len() as u64]
            .iter()
            .enumerate()
        {
            key[part * 8..part * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        Self {
            rng: ChaCha8Rng::from_seed(key),
            spare: None,
        }
    }

    /// Uniform in 0..n (n > 0), without bias.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let rest = (u64::MAX % n + 1) % n;
        loop {
            let v = self.rng.next_u64();
            if v <= u64::MAX - rest {
                return v % n;
            }
        }
    }

    /// Uniform in [0, 1), 53 bits.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by the polar method.
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(v) = self.spare.take() {
            return v;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                let f = (-2.0 * ln(s) / s).sqrt();
                self.spare = Some(v * f);
                return u * f;
            }
        }
    }
}

/// Natural logarithm of a positive normal number, to about 1e-16 relative: `x = m * 2^e`, `ln m = 2 atanh((m-1)/(m+1))`.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        e += 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    // |t| < 0.172: terms beyond t^23 are below 1e-18
    let series = (0..12)
        .rev()
        .fold(0.0, |sum, i| sum * (t * t) + 1.0 / (2 * i + 1) as f64);
    e as f64 * std::f64::consts::LN_2 + 2.0 * t * series
}

/// Values for every graph input: standard normal, or uniform whole numbers in `0..v` where the input holds ids of a table
/// with `v` rows ([`Graph::vocabulary`]). `items` runs come after one another, so each vector is `[items, shape...]` in
/// row-major order. The first items do not depend on how many there are, nor an input on the others.
pub fn seeded_inputs(graph: &Graph, seed: u64, items: usize) -> BTreeMap<String, Vec<f32>> {
    let fill = |t: &TensorId| {
        let tensor = graph.tensor(*t);
        let mut stream = Stream::new(seed, "input", &tensor.name);
        let rows = graph.vocabulary(*t);
        let mut value = || match rows {
            Some(rows) => stream.below(rows as u64) as f32,
            None => stream.normal() as f32,
        };
        let count = items * tensor.shape.iter().product::<usize>();
        (tensor.name.clone(), (0..count).map(|_| value()).collect())
    };
    graph.inputs().iter().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_right() {
        for i in 1..2000 {
            let x = f64::from(i) / 1000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-15, "{x}");
        }
        assert!((ln(1e-16) - 1e-16f64.ln()).abs() < 1e-13);
    }

    #[test]
    fn normal_has_its_moments() {
        let mut s = Stream::new(1, "test", "");
        let v: Vec<f64> = (0..40_000).map(|_| s.normal()).collect();
        let mean = |p: i32| v.iter().map(|x| x.powi(p)).sum::<f64>() / v.len() as f64;
        assert!(mean(1).abs() < 0.02 && (mean(2) - 1.0).abs() < 0.03 && (mean(4) - 3.0).abs() < 0.15);
    }

    #[test]
    fn streams_are_recorded_values() {
        // a change here changes every seeded model and mask
        let mut s = Stream::new(7, "test", "a");
        assert_eq!([s.below(1000), s.below(1000), s.below(1000)], [924, 69, 427]);
    }

    #[test]
    fn inputs_have_a_leading_axis_of_items() {
        let mut g = Graph::new("g");
        g.add_input("x", &[2, 3]).unwrap();
        let (one, two) = (seeded_inputs(&g, 5, 1), seeded_inputs(&g, 5, 2));
        assert_eq!(two["x"].len(), 12);
        assert_eq!(one["x"], two["x"][..6]);
    }
}
