//! Products of matrices, by the GEMM of the matrixmultiply crate through ndarray, on all cores. Rows are dealt out in blocks of a fixed
//! size: the sums, and so the last bits of results, do not depend on the number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use std::sync::{Mutex, PoisonError};

/// Rows of a block.
const ROWS: usize = 128;

/// Multiply-adds below which threads are not worth their start.
const SMALL: usize = 1 << 20;

/// A row-major matrix of so many columns.
///
/// # Panics
/// If the number of values is not a multiple of that.
pub(super) fn matrix(values: &[f64], columns: usize) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape((values.len() / columns, columns), values).expect("whole rows")
}

/// y += a b, for `a` \[m, k\] and `b` \[k, n\], and `y` \[m, n\] row by row.
///
/// # Panics
/// If the sizes do not agree.
pub(super) fn add_product(a: ArrayView2<f64>, b: ArrayView2<f64>, y: &mut [f64]) {
    let n = b.ncols();
    assert_eq!(y.len(), a.nrows() * n, "elements of a product");
    if y.is_empty() {
        return;
    }
    let threads = match y.len() * a.ncols() {
        ..SMALL => 1,
        _ => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let blocks = Mutex::new(a.axis_chunks_iter(Axis(0), ROWS).zip(y.chunks_mut(ROWS * n)));
    let work = || {
        loop {
            let block = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((a, y)) = block else { break };
            let mut y = ArrayViewMut2::from_shape((a.nrows(), n), y).expect("whole rows");
            general_mat_mul(1.0, &a, &b, 1.0, &mut y);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sum term by term, over several blocks, the last of them with a few rows.
    #[test]
    fn products_are_their_sums() {
        let (m, k, n) = (2 * ROWS + 5, 67, 131);
        let values = |count: usize, seed: usize| -> Vec<f64> {
            (0..count)
                .map(|i| ((i * 7919 + seed) % 1013) as f64 / 512.0 - 1.0)
                .collect()
        };
        assert!(m * k * n > SMALL);
        let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
        let mut y = start.clone();
        add_product(matrix(&a, k), matrix(&b, n), &mut y);
        for (at, got) in y.iter().enumerate() {
            let (row, column) = (at / n, at % n);
            let products = (0..k).map(|i| a[row * k + i] * b[i * n + column]);
            let want = start[at] + products.sum::<f64>();
            assert!((got - want).abs() < 1e-12, "{at}: {got}, expected {want}");
        }
        let mut again = start.clone();
        add_product(matrix(&a, k), matrix(&b, n), &mut again);
        assert_eq!(y, again);
    }
}
