//! The operators of transformers: table look-up, normalisation over features, activation functions, attention, products of
//! activations.

use super::product::{add_product, matrix};

/// Rows of a table `[v, d]`, one an id.
///
/// # Panics
/// If an id is not a row.
pub(super) fn gather(ids: &[f64], table: &[f64], d: usize) -> Vec<f64> {
    let row = |id: &f64| {
        assert!(
            is_row(*id, table.len() / d),
            "id {id} is no row of a table of {}",
            table.len() / d
        );
        &table[*id as usize * d..][..d]
    };
    ids.iter().flat_map(row).copied().collect()
}

/// Whether a value is a whole number in `0..rows`.
pub(super) fn is_row(id: f64, rows: usize) -> bool {
    id >= 0.0 && id < rows as f64 && id.fract() == 0.0
}

/// Each row of `d` values normalised, then scaled and shifted. The variance is the mean of the squared differences.
pub(super) fn layer_norm(x: &[f64], scale: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let d = scale.len();
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(d) {
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64;
        let deviation = (variance + epsilon).sqrt();
        let normed = row.iter().zip(scale.iter().zip(bias));
        y.extend(normed.map(|(x, (scale, bias))| (x - mean) / deviation * scale + bias));
    }
    y
}

/// The Gaussian error linear unit, with the error function or its approximation by tanh.
pub(super) fn gelu(x: f64, tanh: bool) -> f64 {
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let of = if tanh {
        // sqrt(2 / pi)
        (half * std::f64::consts::FRAC_2_SQRT_PI * (x + 0.044715 * x * x * x)).tanh()
    } else {
        libm::erf(x * half)
    };
    0.5 * x * (1.0 + of)
}

/// Queries of a head whose scores are worked on together.
const QUERIES: usize = 256;

/// Multi-head attention over `shape = [batch, tokens, d]`.
pub(super) fn attention([q, k, v]: [&[f64]; 3], shape: &[usize], heads: usize, causal: bool) -> Vec<f64> {
    let (tokens, d) = (shape[1], shape[2]);
    let width = d / heads;
    let scale = 1.0 / (width as f64).sqrt();
    let mut y = vec![0.0; q.len()];
    for item in 0..shape[0] {
        for head in 0..heads {
            let of = |all: &[f64], from: usize, to: usize| -> Vec<f64> {
                let rows = all[(item * tokens + from) * d..(item * tokens + to) * d].chunks_exact(d);
                rows.flat_map(|row| &row[head * width..][..width])
                    .copied()
                    .collect()
            };
            for from in (0..tokens).step_by(QUERIES) {
                let to = (from + QUERIES).min(tokens);
                // what the last of these queries sees
                let most = if causal { to } else { tokens };
                let (q, k, v) = (of(q, from, to), of(k, 0, most), of(v, 0, most));
                let mut scores = vec![0.0; (to - from) * most];
                add_product(matrix(&q, width), matrix(&k, width).reversed_axes(), &mut scores);
                for (token, scores) in (from..).zip(scores.chunks_exact_mut(most)) {
                    let (seen, unseen) = scores.split_at_mut(if causal { token + 1 } else { tokens });
                    let max = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    seen.iter_mut().for_each(|s| *s = (scale * (*s - max)).exp());
                    let sum: f64 = seen.iter().sum();
                    seen.iter_mut().for_each(|s| *s /= sum);
                    unseen.fill(0.0);
                }
                let mut results = vec![0.0; q.len()];
                add_product(matrix(&scores, most), matrix(&v, width), &mut results);
                for (token, result) in (from..).zip(results.chunks_exact(width)) {
                    y[(item * tokens + token) * d + head * width..][..width].copy_from_slice(result);
                }
            }
        }
    }
    y
}
