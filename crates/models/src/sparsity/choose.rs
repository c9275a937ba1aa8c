//! Which values of one weight tensor stay. Row-major `[output features, input features, taps...]`.

use super::{Mask, kept};
use crate::random::Stream;
use libm::exp;

/// The indices of the values that stay, each once.
pub(super) fn indices(
    data: &[f32],
    shape: &[usize],
    fraction: f64,
    mask: Mask,
    seed: u64,
    name: &str,
) -> Vec<usize> {
    let keep = kept(data.len(), fraction);
    match mask {
        Mask::Existing => (0..data.len()).collect(),
        Mask::Magnitude => largest(data, (0..data.len()).collect(), keep),
        Mask::Uniform => draw(&mut Stream::new(seed, "mask", name), data.len(), keep),
        Mask::NM { n, m } => groups(shape, m)
            .flat_map(|group| {
                let keep = group_keeps(group.len(), n, m);
                largest(data, group, keep)
            })
            .collect(),
        Mask::Skewed { cv } => {
            let rows = shape[0];
            let length = data.len() / rows;
            let mut stream = Stream::new(seed, "skewed mask", name);
            let scores: Vec<f64> = (0..rows).map(|_| stream.normal()).collect();
            let counts = row_counts(&scores, length, keep, cv);
            let mut all = Vec::with_capacity(keep);
            for (row, count) in counts.into_iter().enumerate() {
                all.extend(
                    draw(&mut stream, length, count)
                        .into_iter()
                        .map(|i| row * length + i),
                );
            }
            all
        }
    }
}

/// How many values other than 0 stay of a tensor of which `nonzeros` are, from the shape alone: what [`indices`] would give,
/// or, where there are zeros already, what it would give if these were spread evenly.
pub(super) fn count(shape: &[usize], nonzeros: u64, fraction: f64, mask: Mask) -> u64 {
    let all: usize = shape.iter().product();
    let kept = match mask {
        Mask::Existing => all,
        Mask::Uniform | Mask::Magnitude | Mask::Skewed { .. } => kept(all, fraction),
        Mask::NM { n, m } => {
            let features = shape.get(1).copied().unwrap_or(1);
            let a_row = features / m * n + group_keeps(features % m, n, m);
            all / features * a_row
        }
    } as u64;
    match mask {
        // zeros go first
        Mask::Magnitude => kept.min(nonzeros),
        _ => (u128::from(kept) * u128::from(nonzeros) / all.max(1) as u128) as u64,
    }
}

/// `keep` of `n` indices at random: the first steps of a Fisher-Yates shuffle.
pub(crate) fn draw(stream: &mut Stream, n: usize, keep: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..n).collect();
    for i in 0..keep {
        let j = i + stream.below((n - i) as u64) as usize;
        indices.swap(i, j);
    }
    indices.truncate(keep);
    indices
}

/// The `keep` indices of the largest magnitudes, the first of equals.
fn largest(data: &[f32], mut indices: Vec<usize>, keep: usize) -> Vec<usize> {
    indices.sort_by(|a, b| data[*b].abs().total_cmp(&data[*a].abs()).then(a.cmp(b)));
    indices.truncate(keep);
    indices
}

/// How many an N:M mask keeps of a group of `size`, at most `m`.
fn group_keeps(size: usize, n: usize, m: usize) -> usize {
    (size * n).div_ceil(m)
}

/// Groups of `m` consecutive input features, of one output feature and one tap.
fn groups(shape: &[usize], m: usize) -> impl Iterator<Item = Vec<usize>> {
    let features = shape.get(1).copied().unwrap_or(1);
    let taps: usize = shape.iter().skip(2).product();
    let rows = shape[0];
    (0..rows).flat_map(move |row| {
        (0..taps).flat_map(move |tap| {
            (0..features).step_by(m).map(move |first| {
                (first..features.min(first + m))
                    .map(|f| (row * features + f) * taps + tap)
                    .collect()
            })
        })
    })
}

/// Standard deviation over mean; 0 if the mean is.
pub(super) fn variation(counts: &[f64]) -> f64 {
    let n = counts.len() as f64;
    let mean = counts.iter().sum::<f64>() / n;
    if mean == 0.0 {
        return 0.0;
    }
    (counts.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / n).sqrt() / mean
}

/// How many of its `length` values each row keeps, `keep` in all: `min(length, a * exp(b * score))`, with `a` such that the
/// sum is `keep` and `b` such that the coefficient of variation is `cv`, or as near as full rows let it come. `scores` are
/// standard normal, one a row.
fn row_counts(scores: &[f64], length: usize, keep: usize, cv: f64) -> Vec<usize> {
    // beyond this width rows are full or all but empty, and nothing changes any more
    let (mut low, mut high) = (0.0, 32.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if variation(&shares(scores, length, keep, middle)) < cv {
            low = middle;
        } else {
            high = middle;
        }
    }
    let shares = shares(scores, length, keep, low);
    let mut counts: Vec<usize> = shares.iter().map(|s| s.floor() as usize).collect();
    // largest remainders first, so that the total is exact
    let mut order: Vec<usize> = (0..counts.len()).collect();
    let rest = |i: &usize| shares[*i] - shares[*i].floor();
    order.sort_by(|i, j| rest(j).total_cmp(&rest(i)).then(i.cmp(j)));
    let mut missing = keep.saturating_sub(counts.iter().sum());
    while missing > 0 {
        for i in &order {
            if missing > 0 && counts[*i] < length {
                counts[*i] += 1;
                missing -= 1;
            }
        }
    }
    counts
}

/// `min(length, a * exp(width * score))` for each row, with `a` such that the sum is `keep`.
fn shares(scores: &[f64], length: usize, keep: usize, width: f64) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| exp(width * (s - most))).collect();
    // rows that would be more than full are full; the others share what is left
    let mut full = vec![false; scores.len()];
    loop {
        let filled = full.iter().filter(|f| **f).count();
        let left = keep.saturating_sub(filled * length) as f64;
        let sum: f64 = weights
            .iter()
            .zip(&full)
            .filter(|(_, f)| !**f)
            .map(|(w, _)| w)
            .sum();
        let scale = if sum > 0.0 { left / sum } else { 0.0 };
        let over: Vec<usize> = (0..weights.len())
            .filter(|i| !full[*i] && weights[*i] * scale > length as f64)
            .collect();
        if over.is_empty() {
            let share = |(w, f): (&f64, &bool)| if *f { length as f64 } else { w * scale };
            return weights.iter().zip(&full).map(share).collect();
        }
        for i in over {
            full[i] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        let mut s = Stream::new(1, "values", "");
        (0..n).map(|_| s.normal() as f32).collect()
    }

    #[test]
    fn n_of_m_are_kept_in_every_group_of_input_features() {
        let (n, m, shape) = (2, 4, [3, 8, 2, 1]);
        let data = values(48);
        let mut kept = [false; 48];
        for i in indices(&data, &shape, 0.5, Mask::NM { n, m }, 0, "w") {
            assert!(!kept[i]);
            kept[i] = true;
        }
        for row in 0..3 {
            for tap in 0..2 {
                for group in 0..2 {
                    let at: Vec<usize> = (0..4).map(|f| (row * 8 + group * 4 + f) * 2 + tap).collect();
                    let (stay, go): (Vec<usize>, Vec<usize>) = at.iter().partition(|i| kept[**i]);
                    assert_eq!(stay.len(), 2);
                    let least = stay.iter().map(|i| data[*i].abs()).fold(f32::MAX, f32::min);
                    assert!(go.iter().all(|i| data[*i].abs() <= least));
                }
            }
        }
    }

    #[test]
    fn a_short_last_group_keeps_its_share_rounded_up() {
        for (features, n, m, a_row) in [(10, 2, 4, 5), (9, 2, 4, 5), (3, 1, 4, 1), (5, 3, 4, 4)] {
            let (shape, mask) = ([2, features], Mask::NM { n, m });
            let kept = indices(&values(2 * features), &shape, 0.0, mask, 0, "w");
            assert_eq!(kept.len(), 2 * a_row, "{features} {n}:{m}");
            assert_eq!(count(&shape, 2 * features as u64, 0.0, mask), kept.len() as u64);
        }
    }

    #[test]
    fn skewed_rows_have_the_variation_asked_for_and_the_exact_total() {
        for (fraction, cv) in [
            (0.5, 0.0),
            (0.5, 0.3),
            (0.75, 0.3),
            (0.75, 1.0),
            (0.9, 1.0),
            (0.9, 2.0),
        ] {
            for seed in 0..4 {
                let shape = [64, 16, 3, 3];
                let data = values(64 * 144);
                let mut rows = vec![0.0; 64];
                let all = indices(&data, &shape, fraction, Mask::Skewed { cv }, seed, "w");
                assert_eq!(all.len(), kept(data.len(), fraction));
                assert_eq!(
                    count(&shape, 64 * 144, fraction, Mask::Skewed { cv }),
                    all.len() as u64
                );
                for i in &all {
                    rows[i / 144] += 1.0;
                }
                let got = variation(&rows);
                assert!((got - cv).abs() < 0.02, "{fraction} {cv}: {got}");
                let mut sorted = all.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), all.len());
            }
        }
    }

    #[test]
    fn zeros_that_are_there_stay() {
        for (mask, nonzeros) in [
            (Mask::Uniform, 25),
            (Mask::Magnitude, 50),
            (Mask::NM { n: 1, m: 2 }, 25),
        ] {
            assert_eq!(count(&[10, 10], 50, 0.5, mask), nonzeros);
            assert_eq!(count(&[10, 10], 0, 0.5, mask), 0);
        }
    }

    #[test]
    fn a_variation_that_full_rows_forbid_comes_as_near_as_it_can() {
        // half of the weights: at most half of the rows full, the others empty, a variation of 1
        let all = indices(&values(32 * 50), &[32, 50], 0.5, Mask::Skewed { cv: 3.0 }, 1, "w");
        assert_eq!(all.len(), 800);
        let mut rows = vec![0.0; 32];
        for i in all {
            rows[i / 50] += 1.0;
        }
        let got = variation(&rows);
        assert!(got > 0.95 && got <= 1.0, "{got}");
    }

    #[test]
    fn within_a_skewed_row_every_place_is_as_likely() {
        let mut hits = [0u32; 20];
        for seed in 0..400 {
            for i in indices(&values(80), &[4, 20], 0.5, Mask::Skewed { cv: 0.3 }, seed, "w") {
                hits[i % 20] += 1;
            }
        }
        // 800 expected each, standard deviation about 20
        assert!(hits.iter().all(|h| (690..910).contains(h)), "{hits:?}");
    }
}
