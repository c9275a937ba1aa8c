//! What kernels share that work over all features of a position: each PE has some positions of every feature, whole in SRAM as f32, and
//! gives its part feature by feature. Where SRAM allows, the next item arrives while this one is worked on.

use super::*;
use crate::assemble::Label;

/// Descriptor registers: the item that is worked on; a feature of it; and that as it is sent. Kernels have those from `FREE` on.
pub(super) const ITEM: u8 = 2;
const ROW: u8 = 3;
const OUT: u8 = 4;
pub(super) const FREE: u8 = 5;

/// The microthread that sends comes first: all other PEs wait for the one whose turn it is.
const SEND: u8 = 1;
/// The microthread that takes in.
const TAKE: u8 = 2;

/// The items in a PE's SRAM.
pub(super) struct Items {
    /// Bytes between features.
    pub pitch: i64,
    /// Bytes of an item.
    each: u64,
    /// Two items have room.
    double: bool,
    /// SRAM bytes with what the kernel needs.
    pub bytes: u64,
}

/// Instructions of the frame that [`Items`] makes.
pub(super) const CODE: usize = 36;

impl Items {
    /// For PEs of at most `positions`; `other` bytes are the kernel's own, code included.
    pub fn new(c: &Context, positions: usize, other: u64) -> Items {
        let granule = c.machine.pe.sram.port_bits as u64 / 8;
        let pitch = (positions as u64 * 4).next_multiple_of(granule);
        let each = (c.inputs[0].features as u64 * pitch).next_multiple_of(32);
        let double = c.items > 1 && 2 * each + other <= c.machine.pe.sram_bytes as u64;
        Items {
            pitch: pitch as i64,
            each,
            double,
            bytes: each * if double { 2 } else { 1 } + other,
        }
    }

    /// Cycles from item to item, where work on one takes so many slots: results leave after all work on an item, and meanwhile the next
    /// arrives if there is room for it.
    pub fn cycles(&self, c: &Context, positions: usize, work: u64) -> u64 {
        let cost = &c.machine.pe.cost;
        let f = c.inputs[0].features;
        let scalar = (5 * cost.add + cost.load + cost.branch) as u64;
        let moves = c.move_slots(f, positions);
        let busy = work + f as u64 * scalar + 2 * moves;
        let streams = if self.double { 1 } else { 2 };
        busy.max(work + streams * c.stream_cycles())
    }

    /// Opens the loop: the item is in SRAM after this. Needs the kernel's constants loaded.
    pub fn begin(&self, k: &mut Local) -> Label {
        let c = k.c;
        let f = c.inputs[0].features as i64;
        let blocks = if self.double { 2 } else { 1 };
        let x = k.a.buffer("x", (self.each * blocks) as u32, 0);
        let other = x + if self.double { self.each as i64 } else { 0 };
        let positions = k.share("positions");
        let elements = k.number("elements", |from, to| (to - from) as i64 * f);
        let (imm, reg) = (Val::Imm, Val::Reg);
        let shape = [imm(f), positions];
        k.a.memory(0, Ty::F32, imm(x), &shape, &[self.pitch / 4, 1], true);
        k.a.input(1, c.input_colors[0][0], c.ty, &shape);
        k.a.memory(ITEM, Ty::F32, imm(x), &shape, &[self.pitch / 4, 1], true);
        k.a.memory(ROW, Ty::F32, imm(x), &[positions], &[1], true);
        k.a.output(OUT, c.output_colors[0], c.ty, &[positions], true);
        // r1 this item, r2 the place of the next, r3 elements that must be there
        k.a.emit(Instr::Set(1, imm(x)));
        k.a.emit(Instr::Set(2, imm(other)));
        k.a.emit(Instr::Set(3, imm(0)));
        k.a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        let item = k.begin_items();
        k.a.emit(Instr::Add(3, reg(3), elements));
        k.a.emit(Instr::Wait(TAKE, Some(reg(3))));
        if self.double {
            // what the item before is sent from, and with, is used again
            k.a.emit(Instr::Wait(SEND, None));
            self.next(k);
        }
        k.a.emit(Instr::Base(ITEM, reg(1)));
        item
    }

    /// Begins to take in the next item; what was in its place must have left.
    fn next(&self, k: &mut Local) {
        let none = k.a.label("none");
        k.a.branch(Cond::Eq, Val::Reg(0), Val::Imm(1), none);
        k.a.emit(Instr::Base(0, Val::Reg(2)));
        k.a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        k.a.bind(none);
    }

    /// Sends the item feature by feature as op(feature, b), and closes the loop; `before` comes before each feature.
    pub fn finish(
        &self,
        mut k: Local,
        item: Label,
        (op, b): (Op, Option<Operand>),
        before: impl Fn(&mut Assembler),
        weights: Vec<Vec<u32>>,
    ) -> Emitted {
        let (imm, reg) = (Val::Imm, Val::Reg);
        k.a.emit(Instr::Add(5, reg(1), imm(0)));
        k.a.emit(Instr::Set(6, imm(k.c.inputs[0].features as i64)));
        let row = k.a.here("row");
        k.a.emit(Instr::Base(ROW, reg(5)));
        before(&mut k.a);
        k.a.start(SEND, op, OUT, Operand::Desc(ROW), b, Count::Other);
        k.a.emit(Instr::Add(5, reg(5), imm(self.pitch)));
        k.a.emit(Instr::Sub(6, reg(6), imm(1)));
        k.a.branch(Cond::Ne, reg(6), imm(0), row);
        if self.double {
            k.a.emit(Instr::Add(7, reg(1), imm(0)));
            k.a.emit(Instr::Add(1, reg(2), imm(0)));
            k.a.emit(Instr::Add(2, reg(7), imm(0)));
        } else {
            k.a.emit(Instr::Wait(SEND, None));
            self.next(&mut k);
        }
        k.finish(item, weights)
    }
}
