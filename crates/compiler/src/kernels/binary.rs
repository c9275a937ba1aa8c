//! Element-wise sum or product of two tensors: each PE has some features of both.
//!
//! The input that comes over the shorter way is kept in SRAM, for as many items as the other way can hold (or fewer where SRAM ends; one
//! is enough for paths that part and meet again not to block each other, more let the longer one fill); the other input is used as it
//! arrives.

use super::*;

pub(super) struct BinaryKernel {
    pub multiply: bool,
    pub relu: bool,
}

/// The microthread of results comes first: the stream of all PEs waits for it.
const RESULT: u8 = 1;
/// The microthread that takes in what is kept.
const TAKE: u8 = 2;

/// Instructions without those that begin to keep an item.
const CODE: usize = 40;

/// Which input is kept, and for how many items at best.
fn kept(c: &Context) -> (usize, usize) {
    let input = if c.slack[1] > c.slack[0] { 1 } else { 0 };
    // one more than there are kernels on the way, which work on an item each
    let wanted = (c.slack[input] + 1).clamp(1, c.items.max(1));
    (input, wanted.min(c.machine.pe.move_queue as usize))
}

impl BinaryKernel {
    /// SRAM bytes with so many items kept, of PEs that have at most `features`.
    fn bytes(&self, c: &Context, features: usize, depth: usize) -> u64 {
        let slot = features as u64 * Context::pitch(c.ty, c.output.length()) as u64;
        let results = if self.relu { 1 } else { 0 };
        (depth as u64 + results) * slot + code_bytes(c.machine, CODE + 2 * depth)
    }

    /// Items that SRAM has room for, at least one.
    fn depth(&self, c: &Context, features: usize) -> usize {
        let fits = |depth: &usize| self.bytes(c, features, *depth) <= c.machine.pe.sram_bytes as u64;
        (1..=kept(c).1).rev().find(fits).unwrap_or(1)
    }

    fn cycles(&self, c: &Context, width: u32, height: u32) -> u64 {
        let (features, l) = (
            local::widest(c, Split::Features, width, height),
            c.output.length(),
        );
        let passes = if self.relu { 3 } else { 2 };
        // both inputs share the links from the first PE of a lane on
        let lanes = local::lanes(c);
        let own = if width == 1 { features } else { 0 };
        let beyond = (c.inputs[0].features / lanes).saturating_sub(own);
        let work = (passes * c.move_slots(features, l) + 60).max(2 * c.move_slots(beyond, l));
        work.max(c.stream_cycles())
    }

    /// Cycles of a rectangle, after whether it lacks SRAM: for the items at best, and for one.
    fn rank(&self, c: &Context, width: u32, height: u32) -> (bool, bool, u64) {
        let features = local::widest(c, Split::Features, width, height);
        let lacks = |depth| self.bytes(c, features, depth) > c.machine.pe.sram_bytes as u64;
        (lacks(1), lacks(kept(c).1), self.cycles(c, width, height))
    }
}

impl Implementation for BinaryKernel {
    fn op(&self) -> &'static str {
        if self.multiply { "mul" } else { "add" }
    }

    fn about(&self) -> &'static str {
        "element-wise sum or product of two tensors, the earlier one kept until the other comes"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        // one column is best for the links; more are for what needs the SRAM
        let lanes = local::lanes(c) as u32;
        let most = (c.inputs[0].features as u32 / lanes).max(1);
        let rows = (1..=(height / lanes).clamp(1, most)).map(|r| r * lanes);
        let wide = (2..=width).map(|w| (w, height.clamp(lanes, most.div_ceil(w).saturating_mul(lanes))));
        let all = rows.map(|h| (1, h)).chain(wide);
        all.min_by_key(|(w, h)| (self.rank(c, *w, *h), w * h))
            .unwrap_or((1, lanes))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let features = local::widest(c, Split::Features, width, height);
        Some(Estimate {
            cycles: self.cycles(c, width, height),
            bytes: match c.keep_all {
                true => self.bytes(c, features, kept(c).1),
                false => self.bytes(c, features, self.depth(c, features)),
            },
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let l = c.output.length();
        let pitch = Context::pitch(c.ty, l);
        let per_pitch = pitch / c.ty.bytes() as i64;
        let mut k = Local::new(name, c, Split::Features, width, height);
        let early = kept(c).0;
        let depth = self.depth(c, k.widest());
        let slot = k.widest() as i64 * pitch;
        let buffer = k.a.buffer("kept", (slot * depth as i64) as u32, 0);
        let features = k.share("features");
        let shape = [features, Val::Imm(l as i64)];
        let reg = Val::Reg;
        let end = Val::Imm(buffer + slot * depth as i64);
        k.a.task("main", Trigger::Start);
        k.a.memory(0, c.ty, Val::Imm(buffer), &shape, &[per_pitch, 1], c.wide());
        k.a.input(1, c.input_colors[early][0], c.ty, &shape);
        k.a.memory(2, c.ty, Val::Imm(buffer), &shape, &[per_pitch, 1], c.wide());
        k.a.input(3, c.input_colors[1 - early][0], c.ty, &shape);
        k.a.output(4, c.output_colors[0], c.ty, &shape, true);
        if self.relu {
            let result = k.a.buffer("result", slot as u32, 16);
            k.a.memory(5, c.ty, Val::Imm(result), &shape, &[per_pitch, 1], c.wide());
        }
        // r1: where the current item is kept, and then a later one; r3: items still to take in; r4: elements that must be there
        for _ in 0..depth {
            k.a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
            k.a.emit(Instr::Advance(0, Val::Imm(slot)));
        }
        k.a.emit(Instr::Set(1, Val::Imm(buffer)));
        k.a.emit(Instr::Set(3, Val::Imm((c.items - depth) as i64)));
        k.a.emit(Instr::Set(4, Val::Imm(0)));
        let item = k.begin_items();
        // all elements of the item must be there, as its place is used again
        k.a.emit(Instr::Mul(5, features, Val::Imm(l as i64)));
        k.a.emit(Instr::Add(4, reg(4), reg(5)));
        k.a.emit(Instr::Wait(TAKE, Some(reg(4))));
        k.a.emit(Instr::Base(2, reg(1)));
        let op = if self.multiply { Op::Mul } else { Op::Add };
        let result = if self.relu { 5 } else { 4 };
        let (late, early) = (Operand::Desc(3), Some(Operand::Desc(2)));
        k.a.start(RESULT, op, result, late, early, Count::Other);
        k.a.emit(Instr::Wait(RESULT, None));
        let none = k.a.label("none");
        k.a.branch(Cond::Eq, reg(3), Val::Imm(0), none);
        k.a.emit(Instr::Base(0, reg(1)));
        k.a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        k.a.emit(Instr::Sub(3, reg(3), Val::Imm(1)));
        k.a.bind(none);
        k.a.emit(Instr::Add(1, reg(1), Val::Imm(slot)));
        let inside = k.a.label("inside");
        k.a.branch(Cond::Lt, reg(1), end, inside);
        k.a.emit(Instr::Set(1, Val::Imm(buffer)));
        k.a.bind(inside);
        if self.relu {
            k.a.map(
                Op::Max,
                4,
                Operand::Desc(5),
                Some(Operand::Imm(0.0)),
                Count::Other,
            );
        }
        k.finish(item, vec![Vec::new(); (width * height) as usize])
    }
}
