//! Code for taps that are not the same in all tiles of a sample (see [`Tiled`]): tiles are counted, and where a tap's rows differ in the first
//! or the last one there is code for each case.

use super::*;
use crate::assemble::Assembler;

/// The register that counts a sample's tiles, down to 1 in the last.
const LEFT: u8 = 12;

/// Before the first item.
pub(super) fn begin(a: &mut Assembler, linear: &Linear) {
    if let Some(tiled) = &linear.tiled {
        a.emit(Instr::Set(LEFT, Val::Imm(tiled.bands as i64)));
    }
}

/// After each item.
pub(super) fn next(a: &mut Assembler, linear: &Linear) {
    if linear.tiled.is_some() {
        let within = a.label("within");
        a.emit(Instr::Sub(LEFT, Val::Reg(LEFT), Val::Imm(1)));
        a.branch(Cond::Ne, Val::Reg(LEFT), Val::Imm(0), within);
        begin(a, linear);
        a.bind(within);
    }
}

/// Emits the code of every tap, given its number and what it is in the tile that is worked on.
pub(super) fn taps(a: &mut Assembler, linear: &Linear, mut one: impl FnMut(&mut Assembler, usize, &Tap)) {
    let Some(tiled) = &linear.tiled else {
        let all = linear.taps.iter().enumerate();
        return all.for_each(|(t, tap)| one(a, t, tap));
    };
    let differs = |t: usize| (tiled.first[t] != linear.taps[t], tiled.last[t] != linear.taps[t]);
    let all: Vec<usize> = (0..linear.taps.len()).collect();
    for run in all.chunk_by(|t, u| differs(*t) == differs(*u)) {
        let (first, last) = differs(run[0]);
        let done = a.label("done");
        let cases = [(first, tiled.bands, &tiled.first), (last, 1, &tiled.last)];
        for (_, left, taps) in cases.into_iter().filter(|c| c.0) {
            let other = a.label("other");
            a.branch(Cond::Ne, Val::Reg(LEFT), Val::Imm(left as i64), other);
            run.iter().for_each(|t| one(a, *t, &taps[*t]));
            a.jump(done);
            a.bind(other);
        }
        run.iter().for_each(|t| one(a, *t, &linear.taps[*t]));
        a.bind(done);
    }
}
