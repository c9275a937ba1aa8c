//! AXPYs by their sums. Where no row of sums has a byte of another one or of a row that is multiplied, each may take all its AXPYs at
//! once, in their order (M19): a piece of it then stays in the host's vector registers over all of them. Every NaN becomes the one only at
//! the end; in between any NaN stays some NaN.

use super::axpy::{Axpy, Work};
use super::block::{Host, Word};
use crate::numerics as num;
use crate::program::Ty;
use fearless_simd::prelude::*;
use fearless_simd::{Simd, f32x16};
use std::ops::Range;

/// A list of AXPYs of rows of `n` elements, y f32 and x of type `ty`, as sums.
pub(crate) struct Sums {
    pub n: usize,
    pub ty: Ty,
    /// Where rows of x begin, in order.
    x: Vec<usize>,
    /// In the order of their places.
    rows: Vec<Row>,
    /// Of the first row, then of the next one, ...
    terms: Vec<Term>,
}

struct Row {
    y: usize,
    /// It begins with its first product.
    fresh: bool,
    /// Where its terms end.
    end: usize,
}

struct Term {
    a: f32,
    /// The place among the rows of x.
    x: u32,
}

impl Sums {
    /// `None` if order between sums might matter, or if rows are not at multiples of their elements' sizes.
    pub fn new(all: &[Axpy], n: usize, ty: Ty) -> Option<Sums> {
        let bytes = ty.bytes() as usize;
        if all.iter().any(|one| one.y % 4 > 0 || one.x % bytes > 0) {
            return None;
        }
        let mut x: Vec<usize> = all.iter().map(|one| one.x).collect();
        x.dedup();
        x.sort_unstable();
        x.dedup();
        // each row's AXPYs stay in their order
        let mut sorted = all.to_vec();
        sorted.sort_by_key(|one| one.y);
        let mut rows: Vec<Row> = Vec::new();
        let mut terms: Vec<Term> = Vec::with_capacity(all.len());
        for one in &sorted {
            match rows.last_mut() {
                Some(row) if row.y == one.y && one.fresh => {
                    // what it was before is gone
                    let begin = rows.iter().rev().nth(1).map_or(0, |before| before.end);
                    terms.truncate(begin);
                    rows.pop();
                }
                Some(row) if one.y < row.y + 4 * n && row.y != one.y => return None,
                _ => {}
            }
            if rows.last().is_none_or(|row| row.y != one.y) {
                let (y, fresh) = (one.y, one.fresh);
                rows.push(Row { y, fresh, end: 0 });
            }
            let x = x.binary_search(&one.x).ok()? as u32;
            terms.push(Term { a: one.a, x });
            rows.last_mut()?.end = terms.len();
        }
        let apart = |x: &usize| {
            let after = rows.partition_point(|row| row.y + 4 * n <= *x);
            rows.get(after).is_none_or(|row| x + bytes * n <= row.y)
        };
        x.iter().all(apart).then_some(Sums {
            n,
            ty,
            x,
            rows,
            terms,
        })
    }

    /// Bytes that it takes, roughly.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.x[..]) + size_of_val(&self.rows[..]) + size_of_val(&self.terms[..])
    }

    /// Where rows of x begin.
    pub fn x(&self) -> &[usize] {
        &self.x
    }

    /// The bytes among which all sums lie, and those among which all rows of x do.
    pub fn reach(&self) -> [Range<usize>; 2] {
        let around = |first: Option<usize>, last: Option<usize>, bytes: usize| {
            first.unwrap_or(0)..last.map_or(0, |at| at + bytes * self.n)
        };
        let y = |row: Option<&Row>| row.map(|row| row.y);
        [
            around(y(self.rows.first()), y(self.rows.last()), 4),
            around(
                self.x.first().copied(),
                self.x.last().copied(),
                self.ty.bytes() as usize,
            ),
        ]
    }

    /// Adds to a piece of each row of sums, so many words of memory, in which each word of a PE is `lanes` words side by side. `x` has the
    /// same piece of each row of x. A piece is a multiple of two vectors.
    pub fn add(&self, host: Host, memory: &mut [Word], lanes: usize, piece: Range<usize>, x: &[Word]) {
        let sums = self;
        host.apply(Pieces {
            sums,
            memory,
            lanes,
            piece,
            x,
        });
    }
}

/// Elements of a vector.
const V: usize = 16;

struct Pieces<'a> {
    sums: &'a Sums,
    memory: &'a mut [Word],
    lanes: usize,
    piece: Range<usize>,
    x: &'a [Word],
}

impl Pieces<'_> {
    #[inline(always)]
    fn each(self, mut f: impl FnMut(bool, &[Term], &[Word], &mut [Word])) {
        let mut begin = 0;
        for row in &self.sums.rows {
            let terms = &self.sums.terms[begin..row.end];
            begin = row.end;
            let y = &mut self.memory[row.y / 4 * self.lanes..][self.piece.clone()];
            f(row.fresh, terms, self.x, y);
        }
    }
}

impl Work for Pieces<'_> {
    #[inline(always)]
    fn on<S: Simd>(self, simd: S) {
        self.each(
            #[inline(always)]
            |fresh, terms, x, y| {
                let (width, mut at) = (y.len(), 0);
                while at < width {
                    let (x, y) = (&x[at..], &mut y[at..]);
                    at += match width - at {
                        n if n >= 8 * V => sum::<S, 8>(simd, fresh, terms, x, width, y),
                        n if n >= 4 * V => sum::<S, 4>(simd, fresh, terms, x, width, y),
                        _ => sum::<S, 2>(simd, fresh, terms, x, width, y),
                    };
                }
            },
        );
    }

    fn plain(self) {
        self.each(|fresh, terms, x, y| {
            let width = y.len();
            for (i, y) in y.iter_mut().enumerate() {
                let begin = if fresh { -0.0 } else { f32::from_le_bytes(*y) };
                let add = |sum, t: &Term| t.a.mul_add(f32::from_le_bytes(x[t.x as usize * width + i]), sum);
                *y = num::canonical(terms.iter().fold(begin, add)).to_le_bytes();
            }
        });
    }
}

/// `N` vectors of sums, over all terms; rows of x are `width` words apart. A fresh one is -0, the one number that changes no product that
/// is added. Returns how many words they are.
#[inline(always)]
fn sum<S: Simd, const N: usize>(
    simd: S,
    fresh: bool,
    terms: &[Term],
    x: &[Word],
    width: usize,
    y: &mut [Word],
) -> usize {
    let y = &mut y[..N * V];
    let mut acc = [f32x16::splat(simd, -0.0); N];
    if !fresh {
        for (acc, y) in acc.iter_mut().zip(y.as_chunks::<V>().0) {
            *acc = load(simd, y);
        }
    }
    for term in terms {
        let a = f32x16::splat(simd, term.a);
        let x = x[term.x as usize * width..][..N * V].as_chunks::<V>().0;
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = a.mul_add_precise(load(simd, x), *acc);
        }
    }
    let nan = f32x16::splat(simd, num::NAN);
    for (acc, y) in acc.iter().zip(y.as_chunks_mut::<V>().0) {
        let sum: [f32; V] = simd.select_f32x16(acc.simd_eq(*acc), *acc, nan).into();
        *y = sum.map(f32::to_le_bytes);
    }
    N * V
}

#[inline(always)]
fn load<S: Simd>(simd: S, words: &[Word; V]) -> f32x16<S> {
    words.map(f32::from_le_bytes).simd_into(simd)
}
