//! Layer normalisation in place, over the features.
//!
//! Each PE adds up its features, for each of its tokens; the sums go south along the column, each PE adding its own; the last row makes the mean of
//! them and sends it north to all rows. Once more the same for the squares of the differences. Scales and shifts of a row's features enter with
//! the wavelet that begins it, which says how many words they are.

use super::{Bands, Frame, RESULTS, Role, Tensor, WEIGHTS, declare};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::Context;
use crate::kernels::blocks::{self, FETCH};
use meshloom_simulator::Machine;
use meshloom_simulator::program::*;

/// y = (x - mean) / sqrt(variance + epsilon) * scale + shift, for each token; all but X and Y is f32.
#[derive(Clone, Debug)]
pub struct LayerNorm<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// What is normalised.
    pub x: &'a Tensor,
    /// Where results go: another place, or X's.
    pub y: &'a Tensor,
    /// Of each feature.
    pub scale: &'a [f32],
    /// Of each feature.
    pub shift: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// SRAM from this address on may be used; all tensors lie before it.
    pub scratch: u32,
}

impl LayerNorm<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: slices of another length than X's features, tensors that do not lie as they have to; what does not fit.
    pub fn map(&self, machine: &Machine) -> Result<Program, CompileError> {
        let bands = Bands::new(machine, 1)?;
        let frame = Frame {
            name: self.name,
            machine,
            bands: &bands,
        };
        frame.check(self.y, &[self.x], self.scratch)?;
        let n = self.x.all();
        if n == 0 || self.scale.len() != n || self.shift.len() != n {
            return frame.refuse(format!(
                "{n} features, {} scales and {} shifts: expected as many of each, and at least one",
                self.scale.len(),
                self.shift.len()
            ));
        }
        if self.x.features != self.y.features {
            return frame.refuse("features of X and Y on different rows: expected the same".into());
        }
        let least =
            self.scratch as u64 + self.x.most() as u64 * Context::pitch(Ty::F32, self.x.tokens) as u64;
        if least > machine.pe.sram_bytes as u64 {
            return Err(frame.too_large((1, 0), least));
        }
        let mut all: Vec<Block> = frame.working().iter().map(|r| self.working(&frame, r)).collect();
        all.extend(frame.last().iter().map(|r| self.last(r)));
        let mut region = frame.region(all);
        let feeds = frame.enter(&mut region, 1, |_, row| {
            let features = self.x.features[row]..self.x.features[row + 1];
            let both = [&self.scale[features.clone()], &self.shift[features]].concat();
            let bits: Vec<u32> = both.iter().map(|v| v.to_bits()).collect();
            // the first is a task's
            let mut all = blocks::wavelets(machine, Ty::F32, &[bits.len() as u32]);
            all.extend(blocks::wavelets(machine, Ty::F32, &bits));
            all
        });
        frame.partial_sums(&mut region);
        frame.results(&mut region, None);
        frame.finish(region, feeds)
    }

    /// The code of rows with features.
    fn working(&self, frame: &Frame, role: &Role) -> Block {
        let (x, y) = (self.x, self.y);
        let (reg, of) = (Val::Reg, Operand::Desc);
        let pitch = Context::pitch(Ty::F32, x.tokens);
        let mut a = Assembler::from(self.scratch);
        declare(&mut a, "x", x);
        if y != x {
            declare(&mut a, "y", y);
        }
        let differences = match y.ty {
            Ty::F32 => y.address as i64,
            Ty::F16 => a.buffer("differences", (x.most() as i64 * pitch) as u32, 0),
        };
        let sum = a.buffer("sum", pitch as u32, 16);
        let constants = a.buffer("constants", 8 * x.most() as u32, 0);
        let features = a.param(
            "features",
            frame.number(&role.name, "features", role.at, |row| x.of(row)),
        );
        let length = Val::Imm(x.tokens as i64);
        let all = [features, length];
        a.task("main", Trigger::Data(WEIGHTS));
        // r0 words of scales and shifts; r1 where the shifts are
        a.memory(0, Ty::F32, Val::Imm(constants), &[reg(0)], &[1], true);
        a.input(1, WEIGHTS, Ty::F32, &[reg(0)]);
        a.start(FETCH, Op::Mov, 0, of(1), None, Count::None);
        a.emit(Instr::Mul(1, features, Val::Imm(4)));
        a.emit(Instr::Add(1, reg(1), Val::Imm(constants)));
        x.operand(&mut a, 2, features);
        a.memory(3, Ty::F32, Val::Imm(differences), &all, &[pitch / 4, 1], true);
        // d4 the sum, for every feature; d5 by itself
        a.memory(4, Ty::F32, Val::Imm(sum), &all, &[0, 1], true);
        a.memory(5, Ty::F32, Val::Imm(sum), &[length], &[1], true);
        a.memory(6, Ty::F32, Val::Imm(constants), &all, &[1, 0], true);
        a.memory(7, Ty::F32, reg(1), &all, &[1, 0], true);
        y.operand(&mut a, 8, features);
        role.ways(&mut a, [9, 10, 11], length);
        let exchange = |a: &mut Assembler| role.exchange(a, 5, [9, 10, 11], Op::Add, Count::Reduce);
        a.map(Op::Mov, 5, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Add, 4, of(4), Some(of(2)), Count::Other);
        exchange(&mut a);
        a.map(Op::Sub, 3, of(2), Some(of(4)), Count::Other);
        a.map(Op::Mov, 5, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Mac, 4, of(3), Some(of(3)), Count::Other);
        exchange(&mut a);
        a.map(Op::Mul, 3, of(3), Some(of(4)), Count::Other);
        a.emit(Instr::Wait(FETCH, None));
        a.map(Op::Mul, 3, of(3), Some(of(6)), Count::Other);
        a.map(Op::Add, 8, of(3), Some(of(7)), Count::Other);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }

    /// The code of the last row.
    fn last(&self, role: &Role) -> Block {
        let of = Operand::Desc;
        let length = Val::Imm(self.x.tokens as i64);
        let mut a = Assembler::from(self.scratch);
        let sum = a.buffer("sum", Context::pitch(Ty::F32, self.x.tokens) as u32, 16);
        a.task("main", Trigger::Data(WEIGHTS));
        a.memory(0, Ty::F32, Val::Imm(sum), &[length], &[1], true);
        a.input(1, role.takes(), Ty::F32, &[length]);
        a.output(2, RESULTS, Ty::F32, &[length], false);
        let share = Some(Operand::Imm((1.0 / self.x.all() as f64) as f32));
        a.map(Op::Mul, 0, of(1), share, Count::Other);
        a.map(Op::Mov, 2, of(0), None, Count::None);
        a.map(Op::Mul, 0, of(1), share, Count::Other);
        a.map(Op::Add, 0, of(0), Some(Operand::Imm(self.epsilon)), Count::Other);
        a.map(Op::Rsqrt, 0, of(0), None, Count::Other);
        a.map(Op::Mov, 2, of(0), None, Count::None);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }
}
