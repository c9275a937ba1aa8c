//! Blocks of streamed weights, and the code that multiplies them: what a PE does whose activations stay while the weights come by.
//!
//! Outputs are worked on in groups. For each group a PE gets one block, the weights of its input features for the group's outputs: dense
//! values, or, where zeros are skipped, a list of those that are not 0. A microthread takes a block in while the one before is multiplied,
//! by one instruction. A group's partial sums lie in one of several accumulators until another microthread has added them to what the
//! neighbour sent, and handed them on.

use super::{Context, balanced, colors, per_wavelet};
use crate::assemble::Assembler;
use meshloom_simulator::Machine;
use meshloom_simulator::program::*;
use std::ops::Range;

/// Groups whose partial sums a PE can hold at once.
pub(crate) const RING: usize = 4;

/// Groups of an item, as long as they are not small: fewer would make the first block's arrival and the last sums' way long beside the work.
const GROUPS: usize = 16;
/// Output features of a small group, whose instructions and header are dear beside the work.
const SMALL: usize = 16;
/// Groups above this many output features are multiples of it.
pub(crate) const CHUNK: usize = 8;

/// Words that a list begins with: its length, and the words of the block after it.
pub(crate) const HEADER: usize = 2;
/// Indices of a list stay below this: words that hold two of them, moved as f32, are never a NaN, whose bits would not be kept (M19).
pub(crate) const INDICES: usize = 0x7f80;

/// The microthread that hands partial sums on comes first: the PEs after this one wait for it.
pub(crate) const SUMS: u8 = 1;
/// The microthread that takes in the next block of weights.
pub(crate) const FETCH: u8 = 2;
/// The microthread that takes in activations.
pub(crate) const TAKE: u8 = 3;

/// Cuts costs in `parts` consecutive shares, none empty and none with many more entries than the others, whose largest is as small as can
/// be; returns their starts and the end.
pub(crate) fn even(costs: &[u64], parts: usize) -> Vec<usize> {
    let n = costs.len();
    let most = (n.div_ceil(parts) * 5).div_ceil(4);
    let cut = |limit: u64| -> Option<Vec<usize>> {
        let mut starts = vec![0];
        let (mut sum, mut count) = (0, 0);
        for (i, cost) in costs.iter().enumerate() {
            // each share after this one needs an entry
            let later = parts - starts.len();
            if count > 0 && (sum + cost > limit || count == most || n - i <= later) {
                if later == 0 {
                    return None;
                }
                starts.push(i);
                (sum, count) = (0, 0);
            }
            sum += cost;
            count += 1;
        }
        starts.push(n);
        Some(starts)
    };
    let (mut low, mut high) = (costs.iter().max().copied().unwrap_or(0), costs.iter().sum());
    while low < high {
        let middle = low + (high - low) / 2;
        if cut(middle).is_some() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    cut(high).unwrap_or_else(|| balanced(n, parts))
}

/// Sizes that a group of `m` outputs may have, the best first, where a PE has at most `widest` features: several groups, so that their sums
/// are added while others are worked on.
pub(crate) fn group_sizes(m: usize, widest: usize, lists: bool) -> impl Iterator<Item = usize> + Clone {
    let indices = if lists { INDICES } else { 65536 };
    let most = (m.div_ceil(RING).min(SMALL))
        .max(m.div_ceil(GROUPS))
        .min(indices / widest.max(1))
        .max(1);
    (1..=most)
        .rev()
        .filter(|n| *n <= SMALL || n.is_multiple_of(CHUNK))
}

/// Words of a list of so many elements: its header, values, and indices of 16 bits.
pub(crate) fn list_words(ty: Ty, elements: u64) -> u64 {
    HEADER as u64
        + match ty {
            Ty::F32 => elements + elements.div_ceil(2),
            Ty::F16 => elements,
        }
}

/// The bits of a value as an element.
fn bits(ty: Ty, value: f32) -> u32 {
    match ty {
        Ty::F32 => value.to_bits(),
        Ty::F16 => half::f16::from_f32(value).to_bits() as u32,
    }
}

/// Elements, by their bits, as the wavelets that carry them.
pub(crate) fn wavelets(machine: &Machine, ty: Ty, elements: &[u32]) -> Vec<Wavelet> {
    let wavelet = |chunk: &[u32]| Wavelet {
        bits: chunk.iter().rev().fold(0, |all, b| all << ty.bits() | *b as u64),
        elements: chunk.len() as u8,
        flag: false,
    };
    let per = per_wavelet(machine, ty) as usize;
    elements.chunks(per).map(wavelet).collect()
}

/// The elements of a dense block: the weights (of output and feature) of each feature for each output, and zeros up to `length`.
pub(crate) fn dense(
    ty: Ty,
    features: Range<usize>,
    outputs: &[usize],
    length: usize,
    weight: impl Fn(usize, usize) -> f32,
) -> Vec<u32> {
    let mut values: Vec<u32> = features
        .flat_map(|k| outputs.iter().map(move |m| (k, *m)))
        .map(|(k, m)| bits(ty, weight(m, k)))
        .collect();
    values.resize(length, 0);
    values
}

/// The words of a list of the weights (of output and feature) that are there, in groups of `group` outputs. The header's second word, the
/// words of the next block, is left 0.
pub(crate) fn list(
    ty: Ty,
    features: Range<usize>,
    outputs: &[usize],
    group: usize,
    weight: impl Fn(usize, usize) -> Option<f32>,
) -> Vec<u32> {
    let halves = |all: &[u32]| -> Vec<u32> {
        let pair = |pair: &[u32]| pair[0] | pair.get(1).map_or(0, |high| high << 16);
        all.chunks(2).map(pair).collect()
    };
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for k in features.clone() {
        for (o, &m) in outputs.iter().enumerate() {
            if let Some(w) = weight(m, k) {
                indices.push(((k - features.start) * group + o) as u32);
                values.push(bits(ty, w));
            }
        }
    }
    let mut words = vec![values.len() as u32, 0];
    match ty {
        Ty::F32 => {
            words.append(&mut values);
            words.extend(halves(&indices));
        }
        Ty::F16 => {
            values.append(&mut indices);
            words.extend(halves(&values));
        }
    }
    words
}

/// The code of a PE that has features and gets blocks, but for how it begins and ends.
///
/// Registers: r2 sums handed on so far, r8 to r11 the same up to the groups before; r3 the block; r4 outputs left; r5 those of this group;
/// r6 its accumulators; r14 elements of weights that came; r7, r12, r13 and r15 for a moment. Descriptors: d9 and d11 accumulators, d12 X, d13 weights, d14 and
/// d15 partial sums, d18 and d19 the block that comes.
pub(crate) struct Products {
    /// Type of activations.
    pub ty: Ty,
    /// Type of weights: of a list's that of activations.
    pub weights: Ty,
    /// See [`Context::wide`].
    pub wide: bool,
    /// Blocks are lists.
    pub lists: bool,
    /// Colour of the blocks.
    pub color: Color,
    /// Outputs.
    pub m: usize,
    /// Outputs of a group.
    pub group: usize,
    /// Features of the PE.
    pub features: Val,
    /// Elements of a dense block for each output.
    pub each: Val,
    /// Positions: elements of a feature.
    pub length: Val,
    /// Bytes from feature to feature.
    pub pitch_x: i64,
    /// Bytes from output to output.
    pub pitch_y: i64,
    /// Address of the first feature. Lists have it in d12.
    pub x: Val,
    /// Address of the accumulators.
    pub y: i64,
    /// The sum of the addresses of the two buffers for blocks.
    pub both: i64,
    /// Sums go out on this one of the two colours, and come on the other.
    pub parity: usize,
    /// No sums come.
    pub first: bool,
    /// r0 items are left, each of which gets all blocks: behind its last block comes the first one of the next item.
    pub items: bool,
    /// Accounting of the products.
    pub count: Count,
    /// Where the products of a dense block's first feature are written to the accumulators, and only those of the others added: whether a PE may have no
    /// feature at all. Without this the accumulators are cleared before. It takes r13, and an `x` that is a constant.
    pub fresh: Option<bool>,
}

impl Products {
    /// Begins to take in a block of r15 elements: dense weights, or a list's words.
    pub fn fetch(&self, a: &mut Assembler, to: Val) {
        let (ty, wide) = if self.lists {
            (Ty::F32, true)
        } else {
            (self.weights, self.wide)
        };
        fetch(a, self.color, ty, wide, to);
    }

    /// Waits for the block at r3, and begins to take in the next one, at r7.
    fn fetch_next(&self, a: &mut Assembler) {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let (none, more) = (a.label("none"), a.label("more"));
        a.emit(Instr::Wait(FETCH, Some(reg(14))));
        a.emit(Instr::Sub(7, Val::Imm(self.both), reg(3)));
        // r12 outputs after this group, of this item or the next
        a.emit(Instr::Sub(12, reg(4), reg(5)));
        if self.items {
            a.branch(Cond::Ne, reg(12), imm(0), more);
            a.branch(Cond::Eq, reg(0), imm(1), none);
            a.emit(Instr::Set(12, imm(self.m)));
        } else {
            a.branch(Cond::Eq, reg(12), imm(0), none);
        }
        a.bind(more);
        if self.lists {
            a.emit(Instr::Load(Word::I32, 15, reg(3), imm(4)));
        } else {
            let full = a.label("full");
            a.emit(Instr::Set(15, imm(self.group)));
            a.branch(Cond::Ge, reg(12), reg(15), full);
            a.emit(Instr::Set(15, reg(12)));
            a.bind(full);
            a.emit(Instr::Mul(15, reg(15), self.each));
        }
        self.fetch(a, reg(7));
        a.bind(none);
    }

    /// All groups once.
    pub fn groups(&self, a: &mut Assembler) {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let group_bytes = self.group as i64 * self.pitch_y;
        // d9 accumulators, d14 and d15 partial sums, all of r5 outputs
        let shape = [reg(5), self.length];
        let describe = |a: &mut Assembler| {
            a.memory(9, Ty::F32, reg(6), &shape, &[self.pitch_y / 4, 1], true);
            if !self.first {
                a.input(14, colors::REDUCE[1 - self.parity], Ty::F32, &shape);
            }
            a.output(15, colors::REDUCE[self.parity], Ty::F32, &shape, false);
        };
        a.emit(Instr::Set(4, imm(self.m)));
        a.emit(Instr::Set(5, imm(self.group)));
        describe(a);
        // r4 outputs left, r5 outputs of this group, r6 Y
        let group = a.here("group");
        let full = a.label("full");
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Set(5, reg(4)));
        describe(a);
        a.bind(full);
        self.fetch_next(a);
        // r2 sums handed on so far, r8 to r11 up to the groups before
        a.emit(Instr::Wait(SUMS, Some(reg(8 + RING as u8 - 1))));
        a.emit(Instr::Base(9, reg(6)));
        match (self.lists, self.fresh) {
            (false, Some(none)) => self.dense_anew(a, none),
            (lists, _) => {
                a.map(Op::Mov, 9, Operand::Imm(0.0), None, Count::None);
                if lists {
                    self.list(a);
                } else {
                    self.dense(a, self.features, self.x, reg(3));
                }
            }
        }
        a.emit(Instr::Set(3, reg(7)));
        if self.first {
            a.start(SUMS, Op::Mov, 15, of(9), None, Count::None);
        } else {
            a.start(SUMS, Op::Add, 15, of(14), Some(of(9)), Count::Reduce);
        }
        for i in (1..RING as u8).rev() {
            a.emit(Instr::Set(8 + i, reg(8 + i - 1)));
        }
        a.emit(Instr::Mul(7, reg(5), self.length));
        a.emit(Instr::Add(2, reg(2), reg(7)));
        a.emit(Instr::Set(8, reg(2)));
        let within = a.label("within");
        a.emit(Instr::Add(6, reg(6), Val::Imm(group_bytes)));
        a.branch(
            Cond::Lt,
            reg(6),
            Val::Imm(self.y + RING as i64 * group_bytes),
            within,
        );
        a.emit(Instr::Set(6, Val::Imm(self.y)));
        a.bind(within);
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), imm(0), group);
    }

    /// The products of the list at r3.
    fn list(&self, a: &mut Assembler) {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        a.emit(Instr::Base(11, reg(6)));
        // r12 elements, r3 values, r15 indices
        a.emit(Instr::Load(Word::I32, 12, reg(3), imm(0)));
        a.emit(Instr::Add(3, reg(3), imm(4 * HEADER)));
        a.emit(Instr::Mul(15, reg(12), imm(self.ty.bytes() as usize)));
        a.emit(Instr::Add(15, reg(15), reg(3)));
        a.emit(Instr::Vector(Vector::Axpy {
            y: 11,
            x: 12,
            list: List::Memory {
                index: reg(15),
                value: reg(3),
                count: reg(12),
                ty: self.ty,
            },
            modulo: imm(self.group),
            divisor: imm(self.group),
            y_step: Val::Imm(self.pitch_y),
            x_step: Val::Imm(self.pitch_x),
            count: self.count,
        }));
    }

    /// The products of the dense block at r3, where nothing is in the accumulators.
    fn dense_anew(&self, a: &mut Assembler, none: bool) {
        let (imm, reg, of) = (Val::Imm, Val::Reg, Operand::Desc);
        let Val::Imm(x) = self.x else {
            unreachable!("the address of the first feature is a constant")
        };
        let (some, done) = (a.label("some"), a.label("done"));
        if none {
            a.branch(Cond::Ne, self.features, imm(0), some);
            a.map(Op::Mov, 9, Operand::Imm(0.0), None, Count::None);
            a.jump(done);
        }
        a.bind(some);
        let shape = [reg(5), self.length];
        let anew = |a: &mut Assembler, d: u8, ty: Ty, base: Val, strides: [i64; 2]| {
            a.memory(d, ty, base, &shape, &strides, true);
        };
        anew(a, 12, self.ty, imm(x), [0, 1]);
        anew(a, 13, self.weights, reg(3), [1, 0]);
        a.map(Op::Mul, 9, of(13), Some(of(12)), self.count);
        // r13 other features, r12 their weights
        a.emit(Instr::Sub(13, self.features, imm(1)));
        a.emit(Instr::Mul(12, reg(5), imm(self.weights.bytes() as i64)));
        a.emit(Instr::Add(12, reg(12), reg(3)));
        self.dense(a, reg(13), imm(x + self.pitch_x), reg(12));
        a.bind(done);
    }

    /// Adds the products of so many features: they, and their weights, lie at these addresses.
    fn dense(&self, a: &mut Assembler, features: Val, x: Val, weights: Val) {
        let reg = Val::Reg;
        let shape = [features, reg(5), self.length];
        let (ex, ey) = (self.pitch_x / self.ty.bytes() as i64, self.pitch_y / 4);
        a.memory(11, Ty::F32, reg(6), &shape, &[0, ey, 1], true);
        a.memory(12, self.ty, x, &shape, &[ex, 0, 1], true);
        a.emit(Instr::Desc(
            13,
            Descriptor {
                ty: self.weights,
                shape: shape.to_vec(),
                place: Place::Memory {
                    base: weights,
                    strides: vec![reg(5), Val::Imm(1), Val::Imm(0)],
                    wide: true,
                },
            },
        ));
        a.map(
            Op::Mac,
            11,
            Operand::Desc(13),
            Some(Operand::Desc(12)),
            self.count,
        );
    }
}

/// Begins to take in a block of r15 elements; then r14 elements came, when all that were asked for are there.
pub(crate) fn fetch(a: &mut Assembler, color: Color, ty: Ty, wide: bool, to: Val) {
    a.memory(18, ty, to, &[Val::Reg(15)], &[1], wide);
    a.input(19, color, ty, &[Val::Reg(15)]);
    a.start(FETCH, Op::Mov, 18, Operand::Desc(19), None, Count::None);
    a.emit(Instr::Add(14, Val::Reg(14), Val::Reg(15)));
}

/// Bytes of a feature of so many positions in SRAM, of activations and of sums.
pub(crate) fn pitches(ty: Ty, positions: usize) -> (i64, i64) {
    (Context::pitch(ty, positions), Context::pitch(Ty::F32, positions))
}
