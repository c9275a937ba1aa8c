//! Element-wise sum or product of two tensors: each row works on its own lanes.
//!
//! The input that comes over the shorter way is kept in SRAM, for as many items as the other way can hold, so that paths that part
//! and meet again cannot block each other; the other input is used as it arrives.

use super::*;

pub(super) struct BinaryKernel {
    pub multiply: bool,
    pub relu: bool,
}

/// Which input is kept, and for how many items.
fn kept(c: &Context) -> (usize, usize) {
    let input = if c.slack[1] > c.slack[0] { 1 } else { 0 };
    (
        input,
        c.slack[input]
            .clamp(1, c.items.max(1))
            .min(c.machine.pe.move_queue as usize),
    )
}

impl Implementation for BinaryKernel {
    fn op(&self) -> &'static str {
        if self.multiply { "mul" } else { "add" }
    }

    fn about(&self) -> &'static str {
        "element-wise sum or product of two tensors, the earlier one kept until the other comes"
    }

    fn layout(&self, inputs: &[Layout], n: usize, _: usize, inner: Vec<usize>) -> Layout {
        Layout {
            n,
            inner,
            starts: inputs[0].starts.clone(),
        }
    }

    fn widest(&self, _: &Context) -> u32 {
        1
    }

    fn estimate(&self, c: &Context, _: u32) -> Estimate {
        let (f, l) = (c.output.widest(), c.output.length());
        let passes = if self.relu { 3 } else { 2 };
        let bytes = f as u64 * Context::pitch(c.ty, l) as u64 * kept(c).1 as u64;
        let result = if self.relu {
            f as u64 * Context::pitch(c.ty, l) as u64
        } else {
            0
        };
        Estimate {
            cycles: passes * c.move_slots(f, l) + 60,
            bytes: bytes + result + code_bytes(c.machine, 40),
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let l = c.output.length();
        let pitch = Context::pitch(c.ty, l);
        let per_pitch = pitch / c.ty.bytes() as i64;
        let mut k = RowLocal::new(c);
        let (early, depth) = kept(c);
        let slot = c.output.widest() as i64 * pitch;
        let buffer = k.a.buffer("kept", (slot * depth as i64) as u32, 0);
        let features = k.features(name, "features", &c.output);
        let shape = [features, Val::Imm(l as i64)];
        let reg = Val::Reg;
        let end = Val::Imm(buffer + slot * depth as i64);
        k.a.task("main", Trigger::Start);
        k.a.memory(0, c.ty, Val::Imm(buffer), &shape, &[per_pitch, 1], c.wide());
        k.a.input(1, c.input_colors[early], c.ty, &shape);
        k.a.memory(2, c.ty, Val::Imm(buffer), &shape, &[per_pitch, 1], c.wide());
        k.a.input(3, c.input_colors[1 - early], c.ty, &shape);
        k.a.output(4, c.output_color, c.ty, &shape, true);
        if self.relu {
            let result = k.a.buffer("result", slot as u32, 16);
            k.a.memory(5, c.ty, Val::Imm(result), &shape, &[per_pitch, 1], c.wide());
        }
        // r1: where the next item is kept; r2: where the current one is; r3: items still to take in
        for _ in 0..depth {
            k.a.start(1, Op::Mov, 0, Operand::Desc(1), None, Count::None);
            k.a.emit(Instr::Advance(0, Val::Imm(slot)));
        }
        k.a.emit(Instr::Set(1, Val::Imm(buffer)));
        k.a.emit(Instr::Set(3, Val::Imm((c.items - depth) as i64)));
        k.a.emit(Instr::Set(4, Val::Imm(0)));
        let item = k.begin_items();
        // elements of the kept input that must be there: all of this item's, as its place is used again
        k.a.emit(Instr::Mul(5, features, Val::Imm(l as i64)));
        k.a.emit(Instr::Add(4, reg(4), reg(5)));
        k.a.emit(Instr::Wait(1, Some(reg(4))));
        k.a.emit(Instr::Base(2, reg(1)));
        let op = if self.multiply { Op::Mul } else { Op::Add };
        k.a.map(
            op,
            if self.relu { 5 } else { 4 },
            Operand::Desc(3),
            Some(Operand::Desc(2)),
            Count::Other,
        );
        let none = k.a.label("none");
        k.a.branch(Cond::Eq, reg(3), Val::Imm(0), none);
        k.a.emit(Instr::Base(0, reg(1)));
        k.a.start(1, Op::Mov, 0, Operand::Desc(1), None, Count::None);
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
        k.finish(name, item, vec![Vec::new(); c.lanes()])
    }
}
