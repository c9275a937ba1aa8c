//! The operators of transformers: table look-up, normalisation over features, activation functions, attention, products of
//! activations.

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

/// Multi-head attention over `shape = [batch, tokens, d]`.
pub(super) fn attention([q, k, v]: [&[f64]; 3], shape: &[usize], heads: usize, causal: bool) -> Vec<f64> {
    let (tokens, d) = (shape[1], shape[2]);
    let width = d / heads;
    let scale = 1.0 / (width as f64).sqrt();
    let mut y = vec![0.0; q.len()];
    let mut scores = vec![0.0; tokens];
    for item in 0..shape[0] {
        for head in 0..heads {
            let of = |token: usize| (item * tokens + token) * d + head * width;
            for token in 0..tokens {
                let seen = if causal { token + 1 } else { tokens };
                let q = &q[of(token)..][..width];
                for (other, score) in scores[..seen].iter_mut().enumerate() {
                    let k = &k[of(other)..][..width];
                    *score = scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                }
                let max = scores[..seen].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores[..seen].iter().map(|s| (s - max).exp()).sum();
                let y = &mut y[of(token)..][..width];
                for (other, score) in scores[..seen].iter().enumerate() {
                    let part = (score - max).exp() / sum;
                    let v = &v[of(other)..][..width];
                    y.iter_mut().zip(v).for_each(|(y, v)| *y += part * v);
                }
            }
        }
    }
    y
}

/// One product of matrices `[m, k]` and `[k, n]`, added to `y [m, n]`.
pub(super) fn mat_mul(a: &[f64], b: &[f64], y: &mut [f64], k: usize, n: usize) {
    for (a, y) in a.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            y.iter_mut().zip(b).for_each(|(y, b)| *y += a * b);
        }
    }
}
