//! Products of matrices in the machine's order: every accumulator takes its features one after another, each by a fused multiply-add, as the
//! rules say (M19). That order leaves free which accumulators are worked on together: a tile of them stays in the host's
//! vector registers over all features. Every NaN becomes the one only at the end; in between any NaN stays some NaN.

use super::block::{Host, Word};
use crate::numerics as num;
use fearless_simd::prelude::*;
use fearless_simd::{Simd, f32x16};

/// y\[o]\[p] becomes y\[o]\[p] + a\[f]\[o] * b\[f]\[p] for one feature f after another.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub features: usize,
    pub outputs: usize,
    pub positions: usize,
    /// Words from one output's accumulators to the next one's.
    pub y_row: usize,
    /// Compact: `features` rows of `outputs`.
    pub a: &'a [Word],
    /// `features` rows, `b_row` words apart.
    pub b: &'a [Word],
    pub b_row: usize,
}

/// Elements of a vector.
pub(crate) const VECTOR: usize = 16;
const V: usize = VECTOR;

/// Outputs of a tile.
const TILE: usize = 6;

impl Product<'_> {
    /// How many words from the first one on are looked at in a matrix of rows so far apart: the last vector of a row is read, and put back,
    /// whole.
    pub fn span(&self, rows: usize, row: usize) -> usize {
        (rows - 1) * row + self.positions.next_multiple_of(V)
    }

    /// Adds to the accumulators `y`. Both `y` and `b` have as many words as [`Self::span`] says.
    pub fn add_to(&self, host: Host, y: &mut [Word]) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = host.level().as_avx512() {
                avx512.vectorize(
                    #[inline(always)]
                    || self.tiles::<_, 2>(avx512, y),
                );
                return;
            }
            if let Some(avx2) = host.level().as_avx2() {
                avx2.vectorize(
                    #[inline(always)]
                    || self.tiles::<_, 1>(avx2, y),
                );
                return;
            }
        }
        self.plain(y);
    }

    /// One accumulator after another.
    fn plain(&self, y: &mut [Word]) {
        for o in 0..self.outputs {
            let y = &mut y[o * self.y_row..][..self.positions];
            for f in 0..self.features {
                let a = f32::from_le_bytes(self.a[f * self.outputs + o]);
                for (y, b) in y.iter_mut().zip(&self.b[f * self.b_row..]) {
                    *y = a
                        .mul_add(f32::from_le_bytes(*b), f32::from_le_bytes(*y))
                        .to_le_bytes();
                }
            }
            y.iter_mut()
                .for_each(|y| *y = num::canonical(f32::from_le_bytes(*y)).to_le_bytes());
        }
    }

    /// Tiles of `TILE` outputs and `N` vectors of positions; what is left at the edges in smaller ones.
    #[inline(always)]
    fn tiles<S: Simd, const N: usize>(&self, simd: S, y: &mut [Word]) {
        let mut o = 0;
        while o < self.outputs {
            let rows = &mut y[o * self.y_row..];
            o += match self.outputs - o {
                TILE.. => self.outputs_from::<S, TILE, N>(simd, o, rows),
                4.. => self.outputs_from::<S, 4, N>(simd, o, rows),
                2.. => self.outputs_from::<S, 2, N>(simd, o, rows),
                _ => self.outputs_from::<S, 1, N>(simd, o, rows),
            };
        }
    }

    /// All positions of `M` outputs from `o` on. Returns `M`.
    #[inline(always)]
    fn outputs_from<S: Simd, const M: usize, const N: usize>(
        &self,
        simd: S,
        o: usize,
        y: &mut [Word],
    ) -> usize {
        let mut p = 0;
        while p + N * V <= self.positions {
            self.tile::<S, M, N>(simd, [o, p], &mut y[p..], V);
            p += N * V;
        }
        while p < self.positions {
            self.tile::<S, M, 1>(simd, [o, p], &mut y[p..], self.positions - p);
            p += V;
        }
        M
    }

    /// The accumulators of `M` outputs and `N` vectors, in registers over all features. Of the last vector only `lanes` change.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(
        &self,
        simd: S,
        [o, p]: [usize; 2],
        y: &mut [Word],
        lanes: usize,
    ) {
        let mut acc = [[f32x16::splat(simd, 0.0); N]; M];
        for m in 0..M {
            let y = &y[m * self.y_row..][..N * V];
            for n in 0..N {
                acc[m][n] = load(simd, &y[n * V..]);
            }
        }
        for f in 0..self.features {
            let a = &self.a[f * self.outputs + o..][..M];
            let b = &self.b[f * self.b_row + p..][..N * V];
            let mut x = [f32x16::splat(simd, 0.0); N];
            for n in 0..N {
                x[n] = load(simd, &b[n * V..]);
            }
            for m in 0..M {
                let w = f32x16::splat(simd, f32::from_le_bytes(a[m]));
                for n in 0..N {
                    acc[m][n] = w.mul_add_precise(x[n], acc[m][n]);
                }
            }
        }
        let nan = f32x16::splat(simd, num::NAN);
        for m in 0..M {
            let y = &mut y[m * self.y_row..][..N * V];
            for n in 0..N {
                let mut sum = acc[m][n];
                sum = simd.select_f32x16(sum.simd_eq(sum), sum, nan);
                let y = &mut y[n * V..];
                if N == 1 && lanes < V {
                    let index: [f32; V] = std::array::from_fn(|i| i as f32);
                    let index: f32x16<S> = index.simd_into(simd);
                    let changes = index.simd_lt(f32x16::splat(simd, lanes as f32));
                    sum = simd.select_f32x16(changes, sum, load(simd, y));
                }
                let sum: [f32; V] = sum.into();
                y[..V].copy_from_slice(&sum.map(f32::to_le_bytes));
            }
        }
    }
}

/// The first words as a vector.
#[inline(always)]
fn load<S: Simd>(simd: S, words: &[Word]) -> f32x16<S> {
    let words: &[Word; V] = words.first_chunk().expect("a vector of words");
    words.map(f32::from_le_bytes).simd_into(simd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Ty;
    use fearless_simd::Level;

    /// Numbers of all kinds, the same in every run.
    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let special = [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            0.0,
            -0.0,
            f32::MAX,
            f32::from_bits(1),
        ];
        let mut state = seed;
        let mut draw = || {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as usize
        };
        (0..n)
            .map(|_| match draw() % 256 {
                0 => special[draw() % special.len()],
                1..64 => (draw() % 4096) as f32 / 1024.0 - 2.0,
                _ => f32::from_bits((draw() as u32 & 0x81ff_ffff) + 0x3e00_0000),
            })
            .collect()
    }

    fn words(x: &[f32]) -> Vec<Word> {
        x.iter().map(|x| x.to_le_bytes()).collect()
    }

    /// All sizes of tiles and of what is left beside them, on all that the host can do, against one multiply-add after another.
    #[test]
    fn every_accumulator_takes_its_features_in_order() {
        let mut hosts = vec![Host::default(), Host::of(Level::baseline())];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        hosts.extend(Level::new().as_avx2().map(|avx2| Host::of(Level::Avx2(avx2))));
        for outputs in (1..=14).chain([24, 37]) {
            for positions in [1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 50, 80] {
                for (features, gap) in [(1, 0), (2, 3), (5, 0), (13, 1)] {
                    let seed = (outputs * 1000 + positions * 10 + features) as u64;
                    let (y_row, b_row) = (positions + gap, positions + 2 * gap);
                    let y = numbers(outputs * y_row, seed);
                    let a = numbers(features * outputs, seed + 1);
                    let b = numbers(features * b_row, seed + 2);
                    let mut want = y.clone();
                    for (o, y) in want.chunks_mut(y_row).enumerate() {
                        for (p, y) in y[..positions].iter_mut().enumerate() {
                            for f in 0..features {
                                *y = num::mac(Ty::F32, *y, a[f * outputs + o], b[f * b_row + p]);
                            }
                        }
                    }
                    let (mut want, mut y, a, mut b) = (words(&want), words(&y), words(&a), words(&b));
                    for x in [&mut want, &mut y, &mut b] {
                        x.extend([[7; 4]; V]);
                    }
                    let product = Product {
                        features,
                        outputs,
                        positions,
                        y_row,
                        a: &a,
                        b: &b,
                        b_row,
                    };
                    for host in &hosts {
                        let mut y = y.clone();
                        product.add_to(*host, &mut y);
                        assert!(
                            y == want,
                            "{outputs} x {positions}, {features} features, {:?}",
                            host.level()
                        );
                    }
                }
            }
        }
    }
}
