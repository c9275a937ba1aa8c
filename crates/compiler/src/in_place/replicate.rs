//! Brings all features of a tensor to each band of rows, for a product whose outputs are shared by bands ([`super::Source::Edge`]).
//!
//! In each column features go south, row by row, the first row's first: a router passes what comes from the north, then its own core's. The last row's core
//! sends them on north, past all rows, each of which takes the features that it is to have in its band: a stretch of them, so one filter does.
//! Both ways are in use at once, at a wavelet a cycle; a feature of a few tokens is a few wavelets.
//!
//! *No circle of waits.* What goes north is taken by a microthread that waits for nothing else, from a row's start on; so what goes south, from rows that each wait for
//! those north of them alone, goes on.

use super::{Bands, Frame, RESULTS, Tensor, WEIGHTS, declare, switch};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::blocks::{SUMS, TAKE};
use crate::kernels::{colors, per_wavelet, wide};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine};

/// From the rows to the last one.
const DOWN: Color = colors::REDUCE[0];

/// y = x, once in each band.
#[derive(Clone, Debug)]
pub struct Replicate<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// The bands of Y.
    pub bands: &'a Bands,
    /// Any rows of PEs but the last may have its features.
    pub x: &'a Tensor,
    /// As many features in each band as X has, in the same order; of X's type, at another place.
    pub y: &'a Tensor,
}

impl Replicate<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: tensors that do not lie as they have to; what does not fit.
    pub fn map(&self, machine: &Machine) -> Result<Program, CompileError> {
        let (x, y) = (self.x, self.y);
        let one = Bands::new(machine, 1)?;
        let frame = Frame {
            name: self.name,
            machine,
            bands: &one,
        };
        let of_bands = Frame {
            bands: self.bands,
            ..frame
        };
        let end = x.behind().max(y.behind());
        of_bands.check(y, &[], end)?;
        frame.check(y, &[x], end)?;
        if of_bands.features_of_band(y) != Some(x.all()) || x.all() == 0 {
            return frame.refuse(format!(
                "{} features for {} bands to have, of {}: expected all in each, and at least one",
                y.all(),
                self.bands.len(),
                x.all()
            ));
        }
        if x.ty != y.ty || x.address == y.address {
            return frame
                .refuse("X and Y of two types or at one place: expected one type, two places".into());
        }
        let last = frame.bands.height() - 1;
        let mut blocks = Vec::new();
        // rows one behind another that all have features, or all have none
        let mut from = 0;
        while from < last {
            let has = x.of(from) > 0;
            let to = (from..last).find(|row| (x.of(*row) > 0) != has).unwrap_or(last);
            blocks.push(self.rows(&frame, (from, to), has));
            from = to;
        }
        blocks.push(self.turn(&frame, last));
        let mut region = frame.region(blocks);
        self.down(&frame, &mut region, last);
        let wavelets = x.tokens.div_ceil(per_wavelet(machine, x.ty) as usize);
        let own = |row: usize| {
            let before = y.features[row] % x.all();
            [before, y.of(row), x.all()].map(|n| n * wavelets)
        };
        frame.results(&mut region, Some(&own));
        let begin = Wavelet {
            bits: 0,
            elements: 1,
            flag: true,
        };
        let feeds = frame.enter(&mut region, 1, |_, _| vec![begin]);
        frame.finish(region, feeds)
    }

    /// The code of rows before the last, which send features if they have any.
    fn rows(&self, frame: &Frame, (from, to): (usize, usize), sends: bool) -> Block {
        let (x, y) = (self.x, self.y);
        let at = frame.lattice(from, to, 1);
        let mut a = Assembler::new();
        declare(&mut a, "y", y);
        // numbers of all rows, so that these rows' code is the same where it can be
        let all = frame.lattice(0, frame.bands.height() - 1, 1);
        let kept = a.param("kept", frame.number("rows", "kept", all, |row| y.of(row)));
        let wide = wide(frame.machine, x.ty);
        let features = |a: &mut Assembler, d: u8, t: &Tensor, n: Val| -> [Val; 2] {
            let shape = [n, Val::Imm(t.tokens as i64)];
            let per = (t.pitch() / t.ty.bytes()) as i64;
            a.memory(d, t.ty, Val::Imm(t.address as i64), &shape, &[per, 1], wide);
            shape
        };
        a.task("main", Trigger::Data(WEIGHTS));
        let shape = features(&mut a, 0, y, kept);
        a.input(1, RESULTS, y.ty, &shape);
        a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        if sends {
            declare(&mut a, "x", x);
            let own = a.param("own", frame.number("rows", "own", all, |row| x.of(row)));
            let shape = features(&mut a, 2, x, own);
            a.output(3, DOWN, x.ty, &shape, true);
            // before what is taken: all rows to the south wait for it
            a.start(SUMS, Op::Mov, 3, Operand::Desc(2), None, Count::None);
        }
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The code of the last row.
    fn turn(&self, frame: &Frame, last: usize) -> Block {
        let x = self.x;
        let shape = [Val::Imm(x.all() as i64), Val::Imm(x.tokens as i64)];
        let mut a = Assembler::new();
        a.task("main", Trigger::Data(WEIGHTS));
        a.input(0, DOWN, x.ty, &shape);
        a.output(1, RESULTS, x.ty, &shape, false);
        a.map(Op::Mov, 1, Operand::Desc(0), None, Count::None);
        a.emit(Instr::Halt);
        a.finish(frame.lattice(last, last + 1, 1))
    }

    /// The ways south: each row's features behind those of the rows before it.
    fn down(&self, frame: &Frame, region: &mut Region, last: usize) {
        let has = |row: usize| (self.x.of(row) > 0) as usize;
        let stream = format!("{}: x", frame.name);
        let mut add = |from: usize, to: usize, positions: Vec<(Port, Port, Expr)>| {
            switch(region, DOWN, &stream, frame.lattice(from, to, 1), positions);
        };
        let one = Expr::Const(1);
        // nothing comes from rows before it
        let first = (0..last).find(|row| has(*row) > 0).unwrap_or(0);
        add(first, first + 1, vec![(Port::Ramp, Port::South, one.clone())]);
        let at = frame.lattice(first + 1, last, 1);
        if at.ny > 0 {
            let above = frame.number("rows", "above", at, |row| (0..row).map(has).sum());
            let own = frame.number("rows", "sends", at, has);
            let positions = vec![(Port::North, Port::South, above), (Port::Ramp, Port::South, own)];
            add(first + 1, last, positions);
        }
        add(last, last + 1, vec![(Port::North, Port::Ramp, one)]);
    }
}
