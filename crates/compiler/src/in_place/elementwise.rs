//! Element-wise operators in place: a function of a tensor's elements, or the sum or product of two tensors. PEs exchange nothing; a
//! wavelet begins each row.

use super::{Bands, Frame, Tensor, WEIGHTS, declare};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::Context;
use crate::kernels::pointwise::{Arg, Step};
use crate::plan::Function;
use meshloom_simulator::Machine;
use meshloom_simulator::program::*;

/// A function of each element: the operations of the kernel of the same name.
#[derive(Clone, Debug)]
pub struct Unary<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// Any but [`Function::Affine`].
    pub function: &'a Function,
    /// Operand.
    pub x: &'a Tensor,
    /// Where results go: another place, or X's.
    pub y: &'a Tensor,
    /// SRAM from this address on may be used; all tensors lie before it.
    pub scratch: u32,
}

/// The sum or product of two tensors, element by element.
#[derive(Clone, Debug)]
pub struct Pair<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// The product instead of the sum.
    pub multiply: bool,
    /// Operands.
    pub x: [&'a Tensor; 2],
    /// Where results go: another place, or that of an operand.
    pub y: &'a Tensor,
    /// SRAM from this address on is free; all tensors lie before it.
    pub scratch: u32,
}

impl Unary<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: functions with constants of each feature, tensors that do not lie as they have to; what does not fit.
    pub fn map(&self, machine: &Machine) -> Result<Program, CompileError> {
        let (x, y) = (self.x, self.y);
        let bands = Bands::new(machine, 1)?;
        let frame = frame(self.name, machine, &bands);
        if let Function::Affine { .. } = self.function {
            return frame
                .refuse("scale and shift of each feature: expected a function without constants".into());
        }
        let (steps, (last, with)) = self.function.steps(x.ty);
        let pitch = Context::pitch(Ty::F32, x.tokens);
        emit(&frame, y, &[x], self.scratch, |a, features| {
            let all = [features, Val::Imm(x.tokens as i64)];
            let uses = |arg: Arg| steps.iter().any(|s| s.1 == arg);
            // in different banks than X and each other, where they can be (M9)
            for (i, _) in [Arg::A, Arg::B]
                .into_iter()
                .enumerate()
                .filter(|(_, arg)| uses(*arg))
            {
                let phase = match (machine.pe.sram.port_bits > 64, i) {
                    (_, 0) => 16,
                    (true, _) => 0,
                    (false, _) => 8,
                };
                let at = a.buffer(["a", "b"][i], (x.most() as i64 * pitch) as u32, phase);
                a.memory(2 + i as u8, Ty::F32, Val::Imm(at), &all, &[pitch / 4, 1], true);
            }
            x.operand(a, 0, features);
            y.operand(a, 1, features);
            // X stays as it is: what replaces it is Y
            let mut replaced = false;
            let operand = |arg: Arg, replaced: bool| match arg {
                Arg::X => Operand::Desc(replaced as u8),
                Arg::A => Operand::Desc(2),
                Arg::B => Operand::Desc(3),
                Arg::Number(v) => Operand::Imm(v),
                Arg::Scale | Arg::Shift => unreachable!("refused above"),
            };
            for Step(op, to, one, other) in steps {
                let (one, other) = (operand(one, replaced), other.map(|o| operand(o, replaced)));
                let to = match to {
                    Arg::A => 2,
                    Arg::B => 3,
                    _ => {
                        replaced = true;
                        1
                    }
                };
                a.map(op, to, one, other, Count::Other);
            }
            if last != Op::Mov || !replaced {
                let with = with.map(|w| operand(w, replaced));
                a.map(last, 1, Operand::Desc(replaced as u8), with, Count::Other);
            }
        })
    }
}

impl Pair<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: tensors that do not lie as they have to.
    pub fn map(&self, machine: &Machine) -> Result<Program, CompileError> {
        let bands = Bands::new(machine, 1)?;
        let frame = frame(self.name, machine, &bands);
        emit(&frame, self.y, &self.x, self.scratch, |a, features| {
            self.x[0].operand(a, 0, features);
            self.x[1].operand(a, 1, features);
            self.y.operand(a, 2, features);
            let op = if self.multiply { Op::Mul } else { Op::Add };
            a.map(op, 2, Operand::Desc(0), Some(Operand::Desc(1)), Count::Other);
        })
    }
}

fn frame<'a>(name: &'a str, machine: &'a Machine, bands: &'a Bands) -> Frame<'a> {
    Frame { name, machine, bands }
}

/// All rows do the same with their features, the last one with none.
fn emit(
    frame: &Frame,
    y: &Tensor,
    x: &[&Tensor],
    scratch: u32,
    code: impl FnOnce(&mut Assembler, Val),
) -> Result<Program, CompileError> {
    frame.check(y, x, scratch)?;
    if x.iter().any(|x| x.features != y.features) {
        return frame.refuse("features of operands and results on different rows: expected the same".into());
    }
    let least = scratch as u64 + y.most() as u64 * Context::pitch(Ty::F32, y.tokens) as u64;
    if least > frame.machine.pe.sram_bytes as u64 {
        return Err(frame.too_large((1, 0), least));
    }
    let at = frame.lattice(0, frame.bands.height(), 1);
    let mut a = Assembler::from(scratch);
    declare(&mut a, "y", y);
    for (i, t) in x.iter().enumerate() {
        let before = [y].into_iter().chain(x[..i].iter().copied());
        if before.into_iter().all(|b| b != *t) {
            declare(&mut a, ["x", "z"][i], t);
        }
    }
    let features = a.param("features", frame.number("all", "features", at, |row| y.of(row)));
    a.task("main", Trigger::Data(WEIGHTS));
    code(&mut a, features);
    a.emit(Instr::Halt);
    let mut region = frame.region(vec![a.finish(at)]);
    let begin = Wavelet {
        bits: 0,
        elements: 1,
        flag: true,
    };
    let feeds = frame.enter(&mut region, 1, |_, _| vec![begin]);
    frame.finish(region, feeds)
}
