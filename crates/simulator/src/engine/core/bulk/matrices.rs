//! Multiply-adds that are a product of matrices: found among the loops of an instruction, and done by [`Product`] in registers.

use super::{Convert, Nest, Place, Scratch, Side, gather, scatter};
use crate::numerics::block::Word;
use crate::numerics::product::{Product, VECTOR};
use crate::program::Ty;

impl Nest<'_> {
    /// Multiply-adds that are a product of matrices: positions innermost, along which one factor stays; then outputs, along which the
    /// other one does; then features, along which the accumulators do. `false` if they are none, or if order might matter.
    pub(super) fn multiply(&self, memory: &mut [u8], scratch: &mut Scratch) -> bool {
        let Side::Memory { ty: Ty::F32, .. } = self.sides[0] else {
            return false;
        };
        let dim = |d: usize| Dim {
            n: self.turns[d],
            y: self.strides[0][d],
            by: [self.strides[1][d], self.strides[2][d]],
        };
        for stays in [0, 1] {
            let moves = 1 - stays;
            let positions = |d: usize| dim(d).n > 1 && dim(d).y != 0 && dim(d).by[stays] == 0;
            if !positions(3) {
                continue;
            }
            let mut d = if positions(2) && dim(2).by[moves] != 0 {
                2
            } else {
                3
            };
            let (row, column) = (if d == 2 { dim(2) } else { Dim::ONE }, dim(3));
            let mut next = |is: fn(&Dim, usize) -> bool| {
                if d > 0 && dim(d - 1).n > 1 && is(&dim(d - 1), moves) {
                    d -= 1;
                    dim(d)
                } else {
                    Dim::ONE
                }
            };
            let output = next(|d, moves| d.y != 0 && d.by[moves] == 0);
            let feature = next(|d, _| d.y == 0);
            if output.n == 1 && feature.n == 1 {
                continue;
            }
            let few = row.n * column.n < 8 && output.n > 2 * row.n * column.n;
            let matrices = match few {
                false => Matrices {
                    feature,
                    outputs: [Dim::ONE, output],
                    positions: [row, column],
                    a: stays,
                },
                true => Matrices {
                    feature,
                    outputs: [row, column],
                    positions: [Dim::ONE, output],
                    a: moves,
                },
            };
            if !(matrices.distinct() && matrices.apart(self)) {
                return false;
            }
            // loops outside of these
            let turns = |k: usize| if k < d { self.turns[k] } else { 1 };
            for i in 0..turns(0) {
                for j in 0..turns(1) {
                    for k in 0..turns(2) {
                        matrices.multiply(&self.from([i, j, k, 0]), memory, scratch);
                    }
                }
            }
            return true;
        }
        false
    }
}

/// A loop of a product: its turns, and strides of the accumulators and of both factors.
#[derive(Clone, Copy)]
struct Dim {
    n: i64,
    y: i64,
    by: [i64; 2],
}

impl Dim {
    const ONE: Dim = Dim {
        n: 1,
        y: 0,
        by: [0; 2],
    };
}

/// The loops of a product y\[o]\[p] += a\[f]\[o] * b\[f]\[p], and which of the two factors is a.
#[derive(Clone, Copy)]
struct Matrices {
    feature: Dim,
    outputs: [Dim; 2],
    positions: [Dim; 2],
    a: usize,
}

impl Matrices {
    fn dims(&self) -> [Dim; 5] {
        let ([o, p], [r, c]) = (self.outputs, self.positions);
        [self.feature, o, p, r, c]
    }

    /// Whether no two accumulators share bytes.
    fn distinct(&self) -> bool {
        let mut dims = self.dims();
        dims.sort_unstable_by_key(|d| d.y.abs());
        let mut reach = 0;
        dims.iter().skip_while(|d| d.y == 0).all(|d| {
            let apart = d.n == 1 || d.y.abs() > reach;
            reach += d.y.abs() * (d.n - 1);
            apart
        })
    }

    /// Whether no factor shares bytes with an accumulator, in all turns of the loops outside.
    fn apart(&self, nest: &Nest) -> bool {
        let range = |i: usize| {
            let Side::Memory { ty, at } = nest.sides[i] else {
                return None;
            };
            let reach = |d: usize| nest.strides[i][d] * (nest.turns[d] - 1);
            let low = (0..4).map(|d| reach(d).min(0)).sum::<i64>();
            let high = (0..4).map(|d| reach(d).max(0)).sum::<i64>();
            Some((at + low, at + high + ty.bytes() as i64))
        };
        let y = range(0);
        [1, 2].into_iter().all(|i| match (y, range(i)) {
            (Some(y), Some(x)) => x.1 <= y.0 || y.1 <= x.0,
            _ => true,
        })
    }

    fn multiply(&self, nest: &Nest, memory: &mut [u8], scratch: &mut Scratch) {
        let Scratch {
            host,
            gathered,
            results,
            convert,
            ..
        } = scratch;
        let Side::Memory { at: y, .. } = nest.sides[0] else {
            unreachable!("accumulators are in memory")
        };
        let (f, [o, p], [r, c]) = (self.feature, self.outputs, self.positions);
        let (a, b) = (self.a, 1 - self.a);
        let [to_a, to_b] = gathered;
        let pick = |d: Dim, i: usize| (d.n, d.by[i]);
        panel(
            nest.sides[1 + a],
            [f, o, p].map(|d| pick(d, a)),
            memory,
            to_a,
            convert,
        );
        // rows of positions by themselves, where they lie, or copies of all of them as one: what costs less
        let vectors = |n: i64| (n as usize).div_ceil(VECTOR);
        let (alone, joined) = (r.n as usize * vectors(c.n), vectors(r.n * c.n));
        let by_rows = r.n == 1 || alone * f.n as usize <= joined * f.n as usize + 12 * r.n as usize;
        let product = Product {
            features: f.n as usize,
            outputs: (o.n * p.n) as usize,
            positions: c.n as usize,
            y_row: (p.y / 4) as usize,
            a: to_a,
            b: &[],
            b_row: (f.by[b] / 4) as usize,
        };
        let span = |rows: i64, row: usize| 4 * product.span(rows as usize, row);
        let last = y + (r.y * (r.n - 1)).max(0);
        let by_rows = by_rows && o.n == 1 && c.y == 4 && p.y >= 0;
        if by_rows && last as usize + span(p.n, product.y_row) <= memory.len() {
            // f16 is widened once, for all rows, with the gaps between them
            let wide = match nest.sides[1 + b] {
                Side::Memory { ty: Ty::F16, .. } if c.by[b] == 2 && f.by[b] >= 0 && r.by[b] >= 0 => {
                    let n = (f.by[b] * (f.n - 1) + r.by[b] * (r.n - 1)) / 2 + c.n;
                    (n <= 2 * f.n * r.n * c.n).then_some(n)
                }
                _ => None,
            };
            if let Some(n) = wide {
                panel(nest.sides[1 + b], [(1, 0), (1, 0), (n, 2)], memory, to_b, convert);
                to_b.resize(to_b.len() + VECTOR, [0; 4]);
            }
            for turn in 0..r.n {
                let start = (y + r.y * turn) as usize;
                let end = start + span(p.n, product.y_row);
                let side = nest.sides[1 + b].moved(r.by[b] * turn);
                let direct = match side {
                    Side::Memory { ty: Ty::F32, at } if c.by[b] == 4 && f.by[b] >= 0 => {
                        let (at, n) = (at as usize, span(f.n, product.b_row));
                        (at + n <= start || end <= at && at + n <= memory.len()).then_some(at)
                    }
                    _ => None,
                };
                if direct.is_none() && wide.is_none() {
                    let dims = [f, Dim::ONE, c].map(|d| pick(d, b));
                    panel(side, dims, memory, to_b, convert);
                    to_b.resize(to_b.len() + VECTOR, [0; 4]);
                }
                let (low, rest) = memory.split_at_mut(start);
                let (words, high) = rest.split_at_mut(end - start);
                let (b, b_row) = match direct {
                    Some(at) if at < start => (low[at..].as_chunks().0, product.b_row),
                    Some(at) => (high[at - end..].as_chunks().0, product.b_row),
                    None if wide.is_some() => {
                        let row = (r.by[b] / 2 * turn) as usize;
                        (&to_b[row..], (f.by[b] / 2) as usize)
                    }
                    None => (to_b.as_slice(), product.positions),
                };
                let product = Product { b, b_row, ..product };
                product.add_to(*host, words.as_chunks_mut().0);
            }
            return;
        }
        panel(
            nest.sides[1 + b],
            [f, r, c].map(|d| pick(d, b)),
            memory,
            to_b,
            convert,
        );
        to_b.resize(to_b.len() + VECTOR, [0; 4]);
        let outputs = (0..o.n).flat_map(|i| (0..p.n).map(move |j| o.y * i + p.y * j));
        let place = |from: i64| Place {
            ty: Ty::F32,
            at: y + from,
            row: r.y,
            step: c.y,
        };
        let (rows, n) = (r.n as usize, c.n as usize);
        results.clear();
        for from in outputs.clone() {
            gather(memory, place(from), rows, n, results, convert);
        }
        results.resize(results.len() + VECTOR, [0; 4]);
        let product = Product {
            positions: rows * n,
            y_row: rows * n,
            b: to_b,
            b_row: rows * n,
            ..product
        };
        product.add_to(*host, results);
        for (from, words) in outputs.zip(results.chunks_exact(rows * n)) {
            scatter(memory, place(from), rows, n, words, convert);
        }
    }
}

/// A factor's compact rows, three loops of turns and strides.
fn panel(side: Side, dims: [(i64, i64); 3], memory: &[u8], to: &mut Vec<Word>, convert: &mut Convert) {
    let [(n, s), (rows, row), (columns, step)] = dims;
    to.clear();
    match side {
        Side::Memory { ty, at } if rows == 1 => {
            let from = Place { ty, at, row: s, step };
            gather(memory, from, n as usize, columns as usize, to, convert);
        }
        Side::Memory { ty, at } => {
            for i in 0..n {
                let at = at + s * i;
                let from = Place { ty, at, row, step };
                gather(memory, from, rows as usize, columns as usize, to, convert);
            }
        }
        Side::Came { words, at } => {
            for at in (0..n).flat_map(|i| (0..rows).map(move |j| at + s * i + row * j)) {
                to.extend((0..columns).map(|k| words[(at + step * k) as usize]));
            }
        }
        Side::Imm(x) => to.resize((n * rows * columns) as usize, x),
        Side::Out => unreachable!("never a source"),
    }
}
