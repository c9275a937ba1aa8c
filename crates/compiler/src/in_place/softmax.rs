//! Softmax in place, over the features of each band of rows: of an attention's scores, whose features are the keys that a head's queries meet.
//!
//! Each PE takes the largest of its scores for each of its tokens; the largest goes south along the band, each PE taking the larger, and
//! comes back from the last row to all. Then so the sums of the exponentials, whose inverses come back.

use super::{Bands, Frame, RESULTS, Role, Tensor, WEIGHTS, declare};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::Context;
use meshloom_simulator::Machine;
use meshloom_simulator::program::*;

/// x = exp(s - max s) / sum of exp(s - max s), s = x * scale + mask, where x was; in f32.
#[derive(Clone, Debug)]
pub struct Softmax<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// Each band's features are a distribution of their own.
    pub bands: &'a Bands,
    /// Scores, and then probabilities.
    pub x: &'a Tensor,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Added to each score: 0, or minus infinity where it does not count. It has X's features.
    pub mask: Option<&'a Tensor>,
    /// SRAM from this address on may be used; all tensors lie before it.
    pub scratch: u32,
}

/// The mask of a causal attention of `heads`: token i sees tokens 0 to i. \[tokens, heads x tokens\].
pub fn causal_mask(tokens: usize, heads: usize) -> Vec<f32> {
    let see = |query: usize, key: usize| if key <= query { 0.0 } else { f32::NEG_INFINITY };
    let of = |query: usize| (0..heads * tokens).map(move |i| see(query, i % tokens));
    (0..tokens).flat_map(of).collect()
}

impl Softmax<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: a mask of other features, tensors that do not lie as they have to; what does not fit.
    pub fn map(&self, machine: &Machine) -> Result<Program, CompileError> {
        let frame = Frame {
            name: self.name,
            machine,
            bands: self.bands,
        };
        let read: Vec<&Tensor> = self.mask.into_iter().collect();
        frame.check(self.x, &read, self.scratch)?;
        if [self.x].into_iter().chain(self.mask).any(|t| t.ty != Ty::F32) {
            return frame.refuse("scores or a mask of f16: expected f32".into());
        }
        if self
            .mask
            .is_some_and(|m| m.features != self.x.features || m == self.x)
        {
            return frame.refuse("a mask of other features than the scores, or at their place: expected the same features elsewhere".into());
        }
        let mut all: Vec<Block> = frame.working().iter().map(|r| self.working(&frame, r)).collect();
        all.extend(frame.last().iter().map(|r| self.last(r)));
        let mut region = frame.region(all);
        let begin = Wavelet {
            bits: 0,
            elements: 1,
            flag: true,
        };
        let feeds = frame.enter(&mut region, 1, |_, _| vec![begin]);
        frame.partial_sums(&mut region);
        frame.results(&mut region, None);
        frame.finish(region, feeds)
    }

    /// The code of rows with features.
    fn working(&self, frame: &Frame, role: &Role) -> Block {
        let (x, of) = (self.x, Operand::Desc);
        let mut a = Assembler::from(self.scratch);
        declare(&mut a, "x", x);
        if let Some(mask) = self.mask {
            declare(&mut a, "mask", mask);
        }
        let own = a.buffer("own", Context::pitch(Ty::F32, x.tokens) as u32, 16);
        let features = a.param(
            "features",
            frame.number(&role.name, "features", role.at, |row| x.of(row)),
        );
        let length = Val::Imm(x.tokens as i64);
        a.task("main", Trigger::Data(WEIGHTS));
        x.operand(&mut a, 0, features);
        // d1 the largest, or the sum, for every feature; d2 by itself
        a.memory(1, Ty::F32, Val::Imm(own), &[features, length], &[0, 1], true);
        a.memory(2, Ty::F32, Val::Imm(own), &[length], &[1], true);
        role.ways(&mut a, [3, 4, 5], length);
        let exchange = |a: &mut Assembler, op, count| role.exchange(a, 2, [3, 4, 5], op, count);
        if self.scale != 1.0 {
            a.map(Op::Mul, 0, of(0), Some(Operand::Imm(self.scale)), Count::Other);
        }
        if let Some(mask) = self.mask {
            mask.operand(&mut a, 6, features);
            a.map(Op::Add, 0, of(0), Some(of(6)), Count::Other);
        }
        a.map(Op::Mov, 2, Operand::Imm(f32::NEG_INFINITY), None, Count::None);
        a.map(Op::Max, 1, of(1), Some(of(0)), Count::Other);
        exchange(&mut a, Op::Max, Count::Other);
        a.map(Op::Sub, 0, of(0), Some(of(1)), Count::Other);
        a.map(Op::Exp, 0, of(0), None, Count::Other);
        a.map(Op::Mov, 2, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Add, 1, of(1), Some(of(0)), Count::Other);
        exchange(&mut a, Op::Add, Count::Reduce);
        a.map(Op::Mul, 0, of(0), Some(of(1)), Count::Other);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }

    /// The code of a band's last row.
    fn last(&self, role: &Role) -> Block {
        let of = Operand::Desc;
        let length = Val::Imm(self.x.tokens as i64);
        let mut a = Assembler::from(self.scratch);
        let sum = a.buffer("sum", Context::pitch(Ty::F32, self.x.tokens) as u32, 16);
        a.task("main", Trigger::Data(WEIGHTS));
        a.memory(0, Ty::F32, Val::Imm(sum), &[length], &[1], true);
        a.input(1, role.takes(), Ty::F32, &[length]);
        a.output(2, RESULTS, Ty::F32, &[length], false);
        a.map(Op::Mov, 0, of(1), None, Count::None);
        a.map(Op::Mov, 2, of(0), None, Count::None);
        a.map(Op::Mov, 0, of(1), None, Count::None);
        a.map(Op::Div, 0, Operand::Imm(1.0), Some(of(0)), Count::Other);
        a.map(Op::Mov, 2, of(0), None, Count::None);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }
}
