//! Multi-head attention of a stream of queries, keys and values.
//!
//! Heads lie in columns: one head in one or several columns or, where the rectangle has fewer columns than there are heads, several
//! heads in a column. Several columns of a head divide its queries, and so do the PEs of a column. Keys and values are never stored:
//! all PEs of a column take the same features as they come, one after another, into two places by turns, and a PE keeps no more than
//! the scores of its queries. The stream has query and key features by turns, so that the products are added to the scores at once:
//! `S[i][j] += q[i] * k[j]` for all queries i of the PE and all tokens j. The softmax is the PE's own. Then come the values, and each
//! feature of the result, `o[i] = sum of S[i][j] * v[j]`, leaves as soon as it is there. Heads take turns within a feature
//! ([`Attention::input_order`]), so that all columns work at the same time. Each lane has some rows of the rectangle and some groups of
//! heads, which it brings one after another.
//!
//! With a causal mask token i sees i + 1 tokens. A PE has a block of queries from the front of its column's tokens and the mirror image
//! from their back, so that all PEs of a column do about the same work, and takes no more of a feature than the last of its queries
//! sees. A block of b queries from token a on is worked on as b rows of a + b tokens; of these the b (b - 1) / 2 beyond the mask are
//! multiplied for nothing, and are minus infinity from the start. Blocks are cut in two where that is expected to pay.
//!
//! The parts of a result feature come together in the order of the tokens: up a column the front block, then what comes from below, then
//! the back block; then along the first row, column by column. Where a column has several heads, a row of routers before the PEs does
//! that.

use super::*;
use crate::passes::memory::bytes;
use std::cell::RefCell;
use std::collections::HashMap;

pub(super) struct AttentionKernel<'a> {
    all: &'a Attention,
    /// Expected cycles by columns, rows, and parts of a block; none where there is no such division.
    cycles: RefCell<HashMap<(u32, u32, usize), Option<u64>>>,
    /// The best part of a rectangle by columns of a head, and rows of a lane.
    best: RefCell<HashMap<(u32, u32), (u32, u32)>>,
}

impl Attention {
    /// The attention of one group of heads.
    fn group(&self) -> Attention {
        Attention {
            heads: self.heads / self.groups,
            groups: 1,
            ..self.clone()
        }
    }

    /// The features of \[queries | keys | values\] (each `heads * width` features, head by head) in the order of the kernel's input. In
    /// each group of heads: for each feature of a head, the queries of all heads, then their keys; then for each feature of a head, the
    /// values of all heads.
    pub fn input_order(&self) -> Vec<usize> {
        let all = self.heads * self.width;
        let heads = self.heads / self.groups;
        let of = |group: usize, kind: usize, feature: usize| {
            (group * heads..(group + 1) * heads).map(move |h| kind * all + h * self.width + feature)
        };
        let mut order = Vec::with_capacity(3 * all);
        for group in 0..self.groups {
            for feature in 0..self.width {
                order.extend(of(group, 0, feature).chain(of(group, 1, feature)));
            }
            (0..self.width).for_each(|feature| order.extend(of(group, 2, feature)));
        }
        order
    }

    /// The result's features (head by head) in the order of the kernel's output: in each group of heads, for each feature of a head, all
    /// heads.
    pub fn output_order(&self) -> Vec<usize> {
        let heads = self.heads / self.groups;
        let of = |group: usize, feature: usize| {
            (group * heads..(group + 1) * heads).map(move |h| h * self.width + feature)
        };
        (0..self.groups)
            .flat_map(|group| (0..self.width).flat_map(move |feature| of(group, feature)))
            .collect()
    }
}

/// The queries of a PE: tokens from..to of the front and of the back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    front: (usize, usize),
    back: (usize, usize),
}

/// Queries that are worked on together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rows {
    /// First token.
    from: usize,
    /// How many.
    rows: usize,
    /// Tokens that they see, those beyond the mask of all but the last included.
    sees: usize,
    /// First place among the PE's results, in elements.
    place: usize,
    /// First byte among the scores of a head.
    scores: usize,
}

/// How the work of a lane lies in its rows of the rectangle.
#[derive(Clone, Debug)]
struct Division {
    /// One group of heads.
    a: Attention,
    /// Groups that come one after another, an item.
    groups: usize,
    columns: usize,
    /// Columns of a head; 1 where a column has several heads.
    of_head: usize,
    /// Rows of routers before the PEs.
    header: usize,
    /// PEs of a column.
    pes: usize,
    /// First head of each column, and the heads of the column.
    heads: Vec<(usize, usize)>,
    /// Of each PE, column by column of a head.
    shares: Vec<Share>,
    /// Whether any PE has a block from the back.
    mirrored: bool,
    /// Parts of a block.
    parts: usize,
    /// First place of the back block's results, in elements.
    back: usize,
    /// Places for the results of a head.
    results: usize,
}

/// Descriptor registers. Those of [`Rows`] follow [`desc::ROWS`].
mod desc {
    pub const QUERY: u8 = 0; // a feature of the queries, where it is kept
    pub const ROW: u8 = 1; // a feature of keys or values, where it is kept
    pub const COMES: u8 = 2; // either, arriving
    pub const SEND: [u8; 2] = [3, 4]; // results of the front and of the back block, leaving
    pub const RESULT: [u8; 2] = [5, 6]; // the same in SRAM
    pub const SHARE: [u8; 2] = [7, 8]; // 1 / sum of their exponentials
    pub const RESULTS: u8 = 9; // results of all heads
    pub const SCORES: u8 = 10; // scores of all heads
    pub const NORM: u8 = 11; // maxima, then sums, then their inverses, of all heads
    pub const INVERT: [u8; 2] = [12, 13]; // the same, of the front and of the back block
    pub const DIAGONAL: u8 = 14; // scores of a block's queries and its own tokens
    pub const MASK: u8 = 15; // 0 or minus infinity for them
    pub const ROWS: u8 = 16; // and one more for each of the following
    pub const EACH: u8 = 5;
    pub const S: u8 = 0; // scores [heads, queries, tokens]
    pub const K: u8 = 1; // key or value of each token
    pub const Q: u8 = 2; // query
    pub const O: u8 = 3; // result
    pub const M: u8 = 4; // maximum, then sum
}

/// Blocks of rows that descriptors are there for.
const MOST_ROWS: usize = 5;

/// The microthread that takes the stream in, and the one that sends.
const TAKE: u8 = 1;
const SEND: u8 = 2;

impl Division {
    /// `None` if the rectangle can't be divided so.
    fn new(all: &Attention, c: &Context, width: u32, height: u32, parts: usize) -> Option<Division> {
        let a = all.group();
        let lanes = c.output.lanes;
        if c.inputs[0].lanes != lanes
            || !all.groups.is_multiple_of(lanes)
            || !height.is_multiple_of(lanes as u32)
        {
            return None;
        }
        let height = height / lanes as u32;
        let (columns, per) = (width as usize, c.per_wavelet() as usize);
        let header = (columns < a.heads) as usize;
        let of_head = (columns / a.heads).max(1);
        let pes = (height as usize).checked_sub(header).filter(|n| *n > 0)?;
        if columns == 0 || (header == 0 && columns != of_head * a.heads) {
            return None;
        }
        let starts = balanced(a.heads, columns);
        let heads = (0..columns)
            .map(|x| match header {
                0 => (x / of_head, 1),
                _ => (starts[x], starts[x + 1] - starts[x]),
            })
            .collect();
        let wavelets = a.tokens.div_ceil(per);
        let token = |w: usize| (w * per).min(a.tokens);
        let least = least(&a, pes);
        if wavelets < of_head * least {
            return None;
        }
        let mut shares = Vec::new();
        let mut from = 0;
        for column in 1..=of_head {
            // the work of the queries before a token grows with its square
            let part = column as f64 / of_head as f64;
            let part = if a.causal { part.sqrt() } else { part };
            let to = ((wavelets as f64 * part).round() as usize)
                .clamp(from + least, wavelets - (of_head - column) * least);
            let n = to - from;
            let front = if a.causal { n.div_ceil(2) } else { n };
            let longer_first = balanced(front, pes);
            for pe in 0..pes {
                // those who take more of the stream have no more queries than the others
                let start = |pe: usize| front - longer_first[pes - pe];
                let (a0, a1) = (from + start(pe), from + start(pe + 1));
                let (b0, b1) = ((from + to - a1).max(from + front), from + to - a0);
                let back = if a.causal { (token(b0), token(b1)) } else { (0, 0) };
                shares.push(Share {
                    front: (token(a0), token(a1)),
                    back,
                });
            }
            from = to;
        }
        let longest = |side: fn(&Share) -> (usize, usize)| {
            let lengths = shares.iter().map(side).map(|(from, to)| to - from);
            lengths.max().unwrap_or(0)
        };
        // results of both blocks begin where a wide access may
        let unit = (c.machine.pe.sram.port_bits as usize / 32).max(1);
        let back = longest(|s| s.front).next_multiple_of(unit);
        let (back_length, mirrored) = (longest(|s| s.back), longest(|s| s.back) > 0);
        if parts * (1 + mirrored as usize) > MOST_ROWS {
            return None;
        }
        Some(Division {
            groups: all.groups / lanes,
            a,
            columns,
            of_head,
            header,
            pes,
            heads,
            shares,
            mirrored,
            parts,
            back,
            results: (back + back_length).next_multiple_of(unit.max(8)),
        })
    }

    /// Rows of a lane.
    fn rows_of_lane(&self) -> u32 {
        (self.header + self.pes) as u32
    }

    /// The PEs of a lane.
    fn places(&self, lane: usize) -> Lattice {
        let top = lane as u32 * self.rows_of_lane() + self.header as u32;
        Lattice::rect(0, top, self.columns as u32, self.pes as u32)
    }

    /// Which share the PE in a column and row of the rectangle has.
    fn index(&self, x: u32, y: u32) -> usize {
        let row = ((y % self.rows_of_lane()) as usize).saturating_sub(self.header);
        x as usize % self.of_head * self.pes + row
    }

    /// The share of the PE in a column and row of the rectangle.
    fn share(&self, x: u32, y: u32) -> Share {
        self.shares[self.index(x, y)]
    }

    /// Blocks of rows of a share; the same number for all PEs, some may be empty.
    fn rows(&self, c: &Context, share: Share) -> Vec<Rows> {
        let unit = (c.machine.pe.sram.port_bits as usize / 32).max(1);
        let mut all = Vec::new();
        let mut scores = 0;
        let sides = [(share.front, 0), (share.back, self.back)];
        for ((from, to), place) in sides.into_iter().take(1 + self.mirrored as usize) {
            for s in balanced(to - from, self.parts).windows(2) {
                let sees = match (self.a.causal, s[1] > s[0]) {
                    (_, false) => 0,
                    (true, _) => from + s[1],
                    (false, _) => self.a.tokens,
                };
                all.push(Rows {
                    from: from + s[0],
                    rows: s[1] - s[0],
                    sees,
                    place: place + s[0],
                    scores,
                });
                scores += ((s[1] - s[0]) * sees.next_multiple_of(unit) * 4).next_multiple_of(32);
            }
        }
        all
    }

    /// Elements of a feature that a PE takes: to the last one that any of its queries sees.
    fn takes(&self, share: Share) -> usize {
        if self.a.causal {
            share.front.1.max(share.back.1)
        } else {
            self.a.tokens
        }
    }

    /// Flagged blocks of a head's feature that a PE sends: from the front, from the PEs below it, from the back.
    fn sends(&self, x: u32, y: u32) -> [usize; 3] {
        let blocks = |s: Share| [s.front, s.back].map(|(from, to)| (to > from) as usize);
        let own = blocks(self.share(x, y));
        let end = (y / self.rows_of_lane() + 1) * self.rows_of_lane();
        let below = (y + 1..end)
            .map(|y| blocks(self.share(x, y)).iter().sum::<usize>())
            .sum();
        [own[0], below, own[1]]
    }
}

/// Wavelets of a column's tokens that `pes` PEs need to have work each.
fn least(a: &Attention, pes: usize) -> usize {
    if a.causal { 2 * pes - 1 } else { pes }
}

impl<'a> AttentionKernel<'a> {
    pub(super) fn new(all: &'a Attention) -> AttentionKernel<'a> {
        AttentionKernel {
            all,
            cycles: RefCell::default(),
            best: RefCell::default(),
        }
    }

    /// Expected cycles of an item: of the slower of the busiest PE and the stream, phase by phase.
    fn cycles(&self, c: &Context, d: &Division) -> u64 {
        let (m, a) = (c.machine, &d.a);
        let wide = (m.pe.sram.port_bits / 32).max(1) as u64;
        let simple = (m.pe.lanes.f32_simple as u64).min(wide);
        let lanes = c.multiply_lanes().min(wide);
        let issue = m.pe.cost.issue as u64;
        let each = (a.tokens as u64).div_ceil(c.per_wavelet());
        let (mut scores, mut softmax, mut values) = (0, 0, 0);
        let heads = d.heads.iter().map(|h| h.1).max().unwrap_or(0) as u64;
        for share in &d.shares {
            let rows = d.rows(c, *share);
            let n = rows.len() as u64;
            let takes = heads * (d.takes(*share) as u64).div_ceil(c.per_wavelet());
            let (mut products, mut elements, mut steps, mut own) = (0, 0, 0, 0);
            for r in &rows {
                let (rows, sees) = (heads * r.rows as u64, r.sees as u64);
                // a row of one element has three sources (rule M9)
                products += rows * sees.div_ceil(lanes) * if sees == 1 { 2 } else { 1 };
                elements += rows * sees;
                steps += rows * sees.div_ceil(simple);
                own += rows;
            }
            let loops = 11 * m.pe.cost.add as u64 + 2 * m.pe.cost.branch as u64 + 2 * n;
            scores = scores.max(2 * takes + products + loops + n * issue);
            let sends = own.div_ceil(c.per_wavelet()) + heads * (7 * (d.header as u64) + 2);
            let zero = heads * (d.results as u64).div_ceil(simple);
            values = values.max(takes + products + loops + sends + zero + (n + 1) * issue);
            softmax = softmax.max(
                elements * m.pe.special.exp as u64
                    + 4 * steps
                    + own * (m.pe.special.divide as u64 + 2)
                    + (4 * n + 6) * issue
                    + 4 * n * m.pe.cost.descriptor as u64,
            );
        }
        let all = a.heads as u64 * each;
        d.groups as u64 * (a.width as u64 * (scores.max(2 * all) + values.max(all)) + softmax)
    }

    /// The same of a rectangle that is divided into so many parts; worked out once.
    fn cycles_of(&self, c: &Context, width: u32, height: u32, parts: usize) -> Option<u64> {
        let known = self.cycles.borrow().get(&(width, height, parts)).copied();
        known.unwrap_or_else(|| {
            let division = Division::new(self.all, c, width, height, parts);
            let cycles = division.map(|d| self.cycles(c, &d));
            self.cycles.borrow_mut().insert((width, height, parts), cycles);
            cycles
        })
    }

    /// The lowest rectangle of that width that fits and is little slower: the stream comes no faster, and what the softmax gains of more
    /// rows its results lose on their longer ways.
    fn fewer(&self, c: &Context, cycles: u64, (width, height): (u32, u32)) -> (u32, u32) {
        let lanes = c.output.lanes as u32;
        let enough = |h: &u32| {
            let other = self.cycles_of(c, width, *h, 1);
            other.is_some_and(|n| n <= cycles + cycles / 20)
        };
        let fits = |h: &u32| {
            let estimate = self.estimate(c, width, *h);
            estimate.is_some_and(|e| e.bytes <= c.machine.pe.sram_bytes as u64)
        };
        let heights = (1..height / lanes).map(|pes| pes * lanes);
        let height = heights.filter(enough).find(fits).unwrap_or(height);
        (width, height)
    }

    /// The division of a rectangle into the number of parts that is expected to be the fastest.
    fn division(&self, c: &Context, width: u32, height: u32) -> Option<(Division, u64)> {
        let cycles = |parts: usize| Some((self.cycles_of(c, width, height, parts)?, parts));
        let (cycles, parts) = (1..=MOST_ROWS)
            .filter_map(cycles)
            .min_by_key(|(cycles, _)| *cycles)?;
        Some((Division::new(self.all, c, width, height, parts)?, cycles))
    }

    /// The code of the PEs `at` some places of a lane; it is as long, and needs as many bytes, at all of them.
    fn block(&self, name: &str, c: &Context, d: &Division, lane: usize, at: Lattice) -> Block {
        let a = &d.a;
        let (tokens, unit) = (a.tokens, (c.machine.pe.sram.port_bits as usize / 32).max(1));
        let heads = d.heads.iter().map(|h| h.1).max().unwrap_or(1);
        let mut p = c.assembler();
        let number = |p: &mut Assembler, what: &str, value: &dyn Fn(u32, u32) -> usize| {
            let table = table(&format!("{name}.{lane}.{what}"), at, |x, y| value(x, y) as i64);
            p.param(what, table)
        };
        let imm = |n: usize| Val::Imm(n as i64);
        let strides = |all: &[usize]| all.iter().map(|s| *s as i64).collect::<Vec<_>>();

        // memory: scores and results in other banks than what they are multiplied with (rule M9)
        let all_rows: Vec<Vec<Rows>> = d.shares.iter().map(|s| d.rows(c, *s)).collect();
        let ends = |r: &Rows| r.scores + r.rows * r.sees.next_multiple_of(unit) * 4;
        let scores = all_rows
            .iter()
            .flatten()
            .map(ends)
            .max()
            .unwrap_or(0)
            .next_multiple_of(32);
        let longest = all_rows.iter().flatten().map(|r| r.rows).max().unwrap_or(0);
        let row = Context::pitch(c.ty, tokens) as usize;
        let query = Context::pitch(Ty::F32, tokens) as usize;
        let turn = heads * (row + query);
        let s = p.buffer("scores", (heads * scores) as u32, 0);
        let k = p.buffer("features", 2 * turn as u32, 16);
        let q = k + (heads * row) as i64;
        let results = heads * d.results * 4;
        let o = p.buffer("results", 2 * results as u32, 0);
        let norm = p.buffer("sums", results as u32, 16);
        let masked = a.causal && longest > 1;
        let mask = if masked {
            p.buffer("mask", (2 * longest - 1) as u32 * 4, 0)
        } else {
            0
        };

        let own = number(&mut p, "heads", &|x, _| d.heads[x as usize].1);
        let takes = number(&mut p, "takes", &|x, y| d.takes(d.share(x, y)));
        let block = |share: Share, side: usize| [share.front, share.back][side];
        let sides: Vec<usize> = (0..1 + d.mirrored as usize).collect();
        let lengths: Vec<Val> = sides
            .iter()
            .map(|side| {
                number(&mut p, ["front", "back"][*side], &|x, y| {
                    let (from, to) = block(d.share(x, y), *side);
                    to - from
                })
            })
            .collect();
        let n = all_rows[0].len();
        let of = |x: u32, y: u32, i: usize| all_rows[d.index(x, y)][i];

        p.task("main", Trigger::Start);
        if masked {
            // 0 on and before the diagonal: SRAM may hold what an earlier stage left
            p.memory(desc::MASK, Ty::F32, Val::Imm(mask), &[imm(longest)], &[1], false);
            p.map(Op::Mov, desc::MASK, Operand::Imm(0.0), None, Count::None);
            let after = Val::Imm(mask + longest as i64 * 4);
            p.memory(desc::MASK, Ty::F32, after, &[imm(longest - 1)], &[1], false);
            p.map(
                Op::Mov,
                desc::MASK,
                Operand::Imm(f32::NEG_INFINITY),
                None,
                Count::None,
            );
        }
        let feature = [own, takes];
        p.memory(
            desc::QUERY,
            Ty::F32,
            Val::Imm(q),
            &feature,
            &strides(&[query / 4, 1]),
            true,
        );
        let pitch = row / c.ty.bytes() as usize;
        p.memory(
            desc::ROW,
            c.ty,
            Val::Imm(k),
            &feature,
            &strides(&[pitch, 1]),
            true,
        );
        p.input(desc::COMES, c.input_colors[0][lane], c.ty, &feature);
        for &side in &sides {
            let (length, first) = (lengths[side], side * d.back * 4);
            let at = |base: i64| Val::Imm(base + first as i64);
            p.output(desc::SEND[side], c.output_colors[lane], c.ty, &[length], true);
            p.memory(desc::RESULT[side], Ty::F32, at(o), &[length], &[1], true);
            p.memory(desc::SHARE[side], Ty::F32, at(norm), &[length], &[1], true);
            let of_heads = strides(&[d.results, 1]);
            p.memory(
                desc::INVERT[side],
                Ty::F32,
                at(norm),
                &[own, length],
                &of_heads,
                true,
            );
        }
        let all = [own, imm(d.results)];
        p.memory(
            desc::RESULTS,
            Ty::F32,
            Val::Imm(o),
            &all,
            &strides(&[d.results, 1]),
            true,
        );
        p.memory(
            desc::NORM,
            Ty::F32,
            Val::Imm(norm),
            &all,
            &strides(&[d.results, 1]),
            true,
        );
        let all = [own, imm(scores / 4)];
        p.memory(
            desc::SCORES,
            Ty::F32,
            Val::Imm(s),
            &all,
            &strides(&[scores / 4, 1]),
            true,
        );
        let reg = |i: usize, which: u8| desc::ROWS + desc::EACH * i as u8 + which;
        let mut diagonals = Vec::new();
        for i in 0..n {
            let mut number = |what: &str, value: &dyn Fn(Rows) -> usize| {
                number(&mut p, &format!("rows{i}.{what}"), &|x, y| value(of(x, y, i)))
            };
            let rows = number("rows", &|r| r.rows);
            let sees = number("sees", &|r| r.sees);
            let pitch = number("pitch", &|r| r.sees.next_multiple_of(unit));
            let at_scores = number("scores", &|r| s as usize + r.scores);
            let at_query = number("queries", &|r| q as usize + r.from * 4);
            let at_result = number("results", &|r| o as usize + r.place * 4);
            let at_norm = number("sums", &|r| norm as usize + r.place * 4);
            if masked {
                let at = number("diagonal", &|r| s as usize + r.scores + r.from * 4);
                diagonals.push((at, rows, pitch));
            }
            let shape = [own, rows, sees];
            let mut memory = |which: u8, ty: Ty, base: Val, strides: [Val; 3]| {
                let strides = strides.to_vec();
                p.emit(Instr::Desc(
                    reg(i, which),
                    Descriptor {
                        ty,
                        shape: shape.to_vec(),
                        place: Place::Memory {
                            base,
                            strides,
                            wide: true,
                        },
                    },
                ));
            };
            let result = [imm(d.results), imm(1), imm(0)];
            memory(desc::S, Ty::F32, at_scores, [imm(scores / 4), pitch, imm(1)]);
            memory(
                desc::K,
                c.ty,
                Val::Imm(k),
                [imm(row / c.ty.bytes() as usize), imm(0), imm(1)],
            );
            memory(desc::Q, Ty::F32, at_query, [imm(query / 4), imm(1), imm(0)]);
            memory(desc::O, Ty::F32, at_result, result);
            memory(desc::M, Ty::F32, at_norm, result);
        }

        // r0: groups left in all items; r1: features left; r2: heads left; r3: bytes to the other place of what is taken next, r4: of what is worked
        // on, r5: of results
        let (next, current, other) = (Val::Reg(3), Val::Reg(4), Val::Reg(5));
        let scale = Operand::Imm((1.0 / (a.width as f64).sqrt()) as f32);
        let comes = Operand::Desc(desc::COMES);
        let take_queries = |p: &mut Assembler| {
            p.start(TAKE, Op::Mul, desc::QUERY, comes, Some(scale), Count::Other);
            p.emit(Instr::Advance(desc::QUERY, next));
        };
        let take_rows = |p: &mut Assembler| {
            p.start(TAKE, Op::Mov, desc::ROW, comes, None, Count::None);
            p.emit(Instr::Advance(desc::ROW, next));
        };
        let turn_over = |p: &mut Assembler, registers: &[u8]| {
            for &r in registers {
                p.emit(Instr::Sub(r, Val::Imm(0), Val::Reg(r)));
            }
        };
        p.emit(Instr::Set(0, imm(c.items * d.groups)));
        p.emit(Instr::Set(3, imm(turn)));
        p.emit(Instr::Set(4, imm(turn)));
        p.emit(Instr::Set(5, imm(results)));
        take_queries(&mut p);
        take_rows(&mut p);
        turn_over(&mut p, &[3]);

        let group = p.here("group");
        p.map(Op::Mov, desc::SCORES, Operand::Imm(0.0), None, Count::None);
        for (at, rows, pitch) in diagonals {
            let shape = vec![own, rows, rows];
            let mut set = |d: u8, base: Val, strides: Vec<Val>| {
                let place = Place::Memory {
                    base,
                    strides,
                    wide: false,
                };
                let (ty, shape) = (Ty::F32, shape.clone());
                p.emit(Instr::Desc(d, Descriptor { ty, shape, place }));
            };
            set(desc::DIAGONAL, at, vec![imm(scores / 4), pitch, imm(1)]);
            let middle = Val::Imm(mask + (longest as i64 - 1) * 4);
            set(desc::MASK, middle, vec![imm(0), Val::Imm(-1), imm(1)]);
            p.map(
                Op::Mov,
                desc::DIAGONAL,
                Operand::Desc(desc::MASK),
                None,
                Count::None,
            );
        }

        // queries and keys: while a feature is worked on the next one comes; after the last one the first values
        p.emit(Instr::Set(1, imm(a.width)));
        let scoring = p.here("scores");
        p.emit(Instr::Wait(TAKE, None));
        p.emit(Instr::Sub(1, Val::Reg(1), Val::Imm(1)));
        let last = p.label("last");
        p.branch(Cond::Eq, Val::Reg(1), Val::Imm(0), last);
        take_queries(&mut p);
        p.bind(last);
        take_rows(&mut p);
        for i in 0..n {
            let (k, q) = (Operand::Desc(reg(i, desc::K)), Operand::Desc(reg(i, desc::Q)));
            p.map(Op::Mac, reg(i, desc::S), k, Some(q), Count::MacAct);
        }
        for i in 0..n {
            p.emit(Instr::Advance(reg(i, desc::K), current));
            p.emit(Instr::Advance(reg(i, desc::Q), current));
        }
        turn_over(&mut p, &[3, 4]);
        p.branch(Cond::Ne, Val::Reg(1), Val::Imm(0), scoring);
        if a.width % 2 == 1 {
            // queries begin every group at their first place
            p.emit(Instr::Advance(desc::QUERY, Val::Imm(-(turn as i64))));
            for i in 0..n {
                p.emit(Instr::Advance(reg(i, desc::Q), Val::Imm(-(turn as i64))));
            }
        }

        // softmax; the sums of the group before may still be needed
        p.emit(Instr::Wait(SEND, None));
        let by_rows = |p: &mut Assembler, op: Op, dst: u8, a: u8, b: u8| {
            for i in 0..n {
                let (a, b) = (Operand::Desc(reg(i, a)), Operand::Desc(reg(i, b)));
                p.map(op, reg(i, dst), a, Some(b), Count::Other);
            }
        };
        p.map(
            Op::Mov,
            desc::NORM,
            Operand::Imm(f32::NEG_INFINITY),
            None,
            Count::None,
        );
        by_rows(&mut p, Op::Max, desc::M, desc::M, desc::S);
        by_rows(&mut p, Op::Sub, desc::S, desc::S, desc::M);
        for i in 0..n {
            let s = reg(i, desc::S);
            p.map(Op::Exp, s, Operand::Desc(s), None, Count::Other);
        }
        p.map(Op::Mov, desc::NORM, Operand::Imm(0.0), None, Count::None);
        by_rows(&mut p, Op::Add, desc::M, desc::M, desc::S);
        for side in &sides {
            let sums = desc::INVERT[*side];
            p.map(
                Op::Div,
                sums,
                Operand::Imm(1.0),
                Some(Operand::Desc(sums)),
                Count::Other,
            );
        }

        // values; after the last ones the next group's first queries and keys
        p.emit(Instr::Set(1, imm(a.width)));
        let weighing = p.here("values");
        p.emit(Instr::Wait(TAKE, None));
        p.emit(Instr::Sub(1, Val::Reg(1), Val::Imm(1)));
        let (more, none) = (p.label("more"), p.label("none"));
        p.branch(Cond::Ne, Val::Reg(1), Val::Imm(0), more);
        p.branch(Cond::Eq, Val::Reg(0), Val::Imm(1), none);
        take_queries(&mut p);
        p.bind(more);
        take_rows(&mut p);
        p.bind(none);
        p.map(Op::Mov, desc::RESULTS, Operand::Imm(0.0), None, Count::None);
        for i in 0..n {
            let (v, s) = (Operand::Desc(reg(i, desc::K)), Operand::Desc(reg(i, desc::S)));
            p.map(Op::Mac, reg(i, desc::O), v, Some(s), Count::MacAct);
        }
        // the other place is free when all before has been sent
        p.emit(Instr::Wait(SEND, None));
        let send = |p: &mut Assembler| {
            for &side in &sides {
                let (o, s) = (desc::RESULT[side], desc::SHARE[side]);
                let by = Some(Operand::Desc(s));
                p.start(
                    SEND,
                    Op::Mul,
                    desc::SEND[side],
                    Operand::Desc(o),
                    by,
                    Count::Other,
                );
            }
        };
        if heads == 1 {
            send(&mut p);
        } else {
            p.emit(Instr::Set(2, own));
            let each = p.here("heads");
            send(&mut p);
            for &side in &sides {
                p.emit(Instr::Advance(desc::RESULT[side], imm(d.results * 4)));
                p.emit(Instr::Advance(desc::SHARE[side], imm(d.results * 4)));
            }
            p.emit(Instr::Sub(2, Val::Reg(2), Val::Imm(1)));
            p.branch(Cond::Ne, Val::Reg(2), Val::Imm(0), each);
            for &side in &sides {
                let first = |base: i64| Val::Imm(base + (side * d.back * 4) as i64);
                p.emit(Instr::Base(desc::SHARE[side], first(norm)));
                p.emit(Instr::Mul(2, own, Val::Imm(-((d.results * 4) as i64))));
                p.emit(Instr::Advance(desc::RESULT[side], Val::Reg(2)));
            }
        }
        for i in 0..n {
            p.emit(Instr::Advance(reg(i, desc::K), current));
            p.emit(Instr::Advance(reg(i, desc::O), other));
        }
        for &side in &sides {
            p.emit(Instr::Advance(desc::RESULT[side], other));
        }
        p.emit(Instr::Advance(desc::RESULTS, other));
        turn_over(&mut p, &[3, 4, 5]);
        p.branch(Cond::Ne, Val::Reg(1), Val::Imm(0), weighing);
        p.emit(Instr::Sub(0, Val::Reg(0), Val::Imm(1)));
        p.branch(Cond::Ne, Val::Reg(0), Val::Imm(0), group);
        p.emit(Instr::Halt);
        p.finish(at)
    }

    /// A lane's way in: along its first row, and down the columns what their heads need of it.
    fn distribute(&self, region: &mut Region, c: &Context, d: &Division, lane: usize) {
        let (a, name) = (&d.a, region.name.clone());
        let (w, h) = (region.width, d.rows_of_lane());
        let top = lane as u32 * h;
        let per = c.per_wavelet() as usize;
        let each = a.tokens.div_ceil(per);
        let turn = each * a.heads;
        // wavelets first.. first + count of every period
        let down = |x: u32| {
            let (first, heads) = d.heads[x as usize];
            (first * each, heads * each, turn)
        };
        let up = |x: u32, y: u32| {
            let takes = d.takes(d.share(x, y)).div_ceil(per);
            match y == top {
                true => (down(x).0, takes, turn),
                false => (0, takes, each),
            }
        };
        let filtered = |(first, count, period): (usize, usize, usize)| first > 0 || count < period;
        let key = |x: u32, y: u32| {
            let ramp = (y >= top + d.header as u32).then(|| filtered(up(x, y)));
            let south = (y + 1 < top + h).then(|| y == top && filtered(down(x)));
            let first = y == top;
            (y >= top).then_some((ramp, south, first && x + 1 < w, first, (x, y) == (0, top)))
        };
        for (n, (at, (ramp, south, east, first, entry))) in
            rectangles(w, top + h, key).into_iter().enumerate()
        {
            let mut outputs = Vec::new();
            let mut filters = Vec::new();
            let mut add =
                |output: Port, is: Option<bool>, pass: &dyn Fn(u32, u32) -> (usize, usize, usize)| {
                    let Some(is) = is else { return };
                    outputs.push(output);
                    if is {
                        let number = |what: &str, f: fn((usize, usize, usize)) -> usize| {
                            let name = format!("{name}.input{lane}.{n}.{output:?}.{what}").to_lowercase();
                            table(&name, at, |x, y| f(pass(x, y)) as i64)
                        };
                        filters.push(Filter {
                            output,
                            first: number("first", |p| p.0),
                            count: number("count", |p| p.1),
                            period: number("period", |p| p.2),
                        });
                    }
                };
            add(Port::Ramp, ramp, &up);
            add(Port::South, south, &|x, _| down(x));
            add(Port::East, east.then_some(false), &|_, _| (0, 0, 0));
            // which way the stream comes to the entry is known when it is routed
            let input = match (entry, first) {
                (true, _) => Port::Ramp,
                (_, true) => Port::West,
                _ => Port::North,
            };
            region.routes.push(Route {
                color: c.input_colors[0][lane],
                stream: format!("{name}: input"),
                at,
                positions: vec![position(input, &outputs, 1)],
                filters,
            });
        }
    }

    /// A lane's way out: up the columns and west along its first row, the parts of a feature in the order of the tokens.
    fn collect(&self, region: &mut Region, c: &Context, d: &Division, lane: usize) -> Exit {
        let name = region.name.clone();
        let (w, h) = (region.width, d.rows_of_lane());
        let top = lane as u32 * h;
        // blocks of one feature of the heads that a column has
        let column = |x: u32| {
            let [front, below, back] = d.sends(x, top + d.header as u32);
            d.heads[x as usize].1 * (front + below + back)
        };
        let holds = |x: u32, y: u32| -> Vec<(Port, usize)> {
            let mut all = Vec::new();
            if d.header == 1 && y == top {
                all.push((Port::South, column(x)));
            } else {
                let [front, below, back] = d.sends(x, y);
                all.extend([(Port::Ramp, front), (Port::South, below), (Port::Ramp, back)]);
            }
            if y == top {
                all.push((Port::East, (x + 1..w).map(column).sum()));
            }
            all.retain(|(_, n)| *n > 0);
            // where nothing comes from below, both blocks of the PE are one
            all.dedup_by(|next, before| {
                let same = next.0 == before.0;
                before.1 += if same { next.1 } else { 0 };
                same
            });
            all
        };
        let key = |x: u32, y: u32| {
            let inputs: Vec<Port> = holds(x, y).into_iter().map(|(p, _)| p).collect();
            (y >= top && (x, y) != (0, top)).then_some((y == top, inputs))
        };
        for (n, (at, (first, inputs))) in rectangles(w, top + h, key).into_iter().enumerate() {
            let out = if first { Port::West } else { Port::North };
            let positions = inputs
                .iter()
                .enumerate()
                .map(|(i, &input)| {
                    let name = format!("{name}.output{lane}.{n}.{i}");
                    let hold = table(&name, at, |x, y| holds(x, y)[i].1 as i64);
                    position(input, &[out], hold)
                })
                .collect();
            region.routes.push(route(
                c.output_colors[lane],
                &format!("{name}: output"),
                at,
                positions,
            ));
        }
        let from = holds(0, top)
            .into_iter()
            .map(|(p, n)| (p, Expr::Const(n as i64)))
            .collect();
        Exit { at: (0, top), from }
    }
}

impl Implementation for AttentionKernel<'_> {
    fn op(&self) -> &'static str {
        "attention"
    }

    fn about(&self) -> &'static str {
        "multi-head attention, heads by column and queries by PE; keys and values stream by, scores stay"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let a = &self.all.group();
        let lanes = c.output.lanes as u32;
        let rows = height / lanes;
        let wavelets = a.tokens.div_ceil(c.per_wavelet() as usize);
        let heads = a.heads as u32;
        if width < heads {
            let columns = fewest(a.heads, width);
            let front = if a.causal { wavelets.div_ceil(2) } else { wavelets };
            return (
                columns,
                lanes * (1 + fewest(front, rows.saturating_sub(1).max(1))),
            );
        }
        // as many columns of a head, and as many PEs a column, as make it faster
        let most_columns = (width / heads).min(8);
        if let Some(best) = self.best.borrow().get(&(most_columns, rows)) {
            return *best;
        }
        let mut best: Option<(u64, (u32, u32))> = None;
        for of_head in 1..=most_columns {
            let share = wavelets / of_head as usize;
            let most = if a.causal { share.div_ceil(2) } else { share };
            for pes in (1..=rows.min(most as u32)).rev() {
                let shape = (of_head * heads, lanes * pes);
                let Some(cycles) = self.cycles_of(c, shape.0, shape.1, 1) else {
                    break;
                };
                if best.is_some_and(|(least, (w, h))| (cycles, shape.0 * shape.1) >= (least, w * h)) {
                    break;
                }
                best = Some((cycles, shape));
            }
        }
        let fewer = best.map(|(cycles, shape)| self.fewer(c, cycles, shape));
        let best = fewer.unwrap_or((heads, lanes));
        self.best.borrow_mut().insert((most_columns, rows), best);
        best
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (d, cycles) = self.division(c, width, height)?;
        Some(Estimate {
            cycles,
            bytes: bytes(
                &self.block("", c, &d, 0, Lattice::rect(0, d.header as u32, 1, 1)),
                c.machine,
            ),
            fullest: (0, d.header as u32),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let mut region = region(name, width, height);
        let (d, _) = self
            .division(c, width, height)
            .expect("a rectangle that `fit` and `estimate` accept");
        let (mut entries, mut exits, mut gives) = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..c.output.lanes {
            region.blocks.push(self.block(name, c, &d, lane, d.places(lane)));
            self.distribute(&mut region, c, &d, lane);
            let exit = self.collect(&mut region, c, &d, lane);
            entries.push(exit.at);
            exits.push(exit);
            gives.extend(d.places(lane).places().map(|(x, y)| {
                let (first, heads) = d.heads[x as usize];
                let share = d.share(x, y);
                Give {
                    at: (x, y),
                    features: c.output.lane(lane),
                    turn: Some((d.a.heads, (first, first + heads))),
                    positions: vec![share.front, share.back],
                }
            }));
        }
        Emitted {
            region,
            weights: vec![Vec::new(); (width * height) as usize],
            entries: vec![entries],
            exits,
            gives,
            streamed: None,
        }
    }
}
