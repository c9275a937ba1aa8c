//! Vector instructions on the memories of several PEs that do the same: word by word the memories lie side by side, so that an element of
//! an instruction is a row of elements, one of each PE, and each PE's come in the order that they have by themselves.

use super::bulk::{Nest, Scratch};
use super::vector::{Arg, Run};
use crate::engine::PeCounters;
use crate::engine::wavelets::Wavelets;
use crate::numerics::axpy::{self, Axpy, overlap};
use crate::numerics::block::{Host, Word, canonical, widen};
use crate::program::Ty;

/// PEs side by side.
pub(in crate::engine) const LANES: usize = 32;

/// The SRAM of `LANES` PEs: word 0 of each, then word 1 of each, ...
#[derive(Default)]
pub(in crate::engine) struct Memory {
    words: Vec<Word>,
    /// Bytes of a PE.
    bytes: usize,
}

impl Memory {
    /// Of SRAMs of one length. If they are fewer than there are lanes, the last one's twins fill the others: they do as it does.
    pub fn new(srams: &[Vec<u8>]) -> Memory {
        let bytes = srams[0].len();
        let mut words = vec![[0; 4]; bytes.div_ceil(4) * LANES];
        for (i, to) in words.chunks_exact_mut(LANES).enumerate() {
            let at = 4 * i;
            for (lane, to) in to.iter_mut().enumerate() {
                let sram = &srams[lane.min(srams.len() - 1)];
                match sram.get(at..at + 4) {
                    Some(word) => *to = [word[0], word[1], word[2], word[3]],
                    None => to[..bytes - at].copy_from_slice(&sram[at..]),
                }
            }
        }
        Memory { words, bytes }
    }

    /// The SRAMs of the first `n` PEs.
    pub fn into_srams(self, n: usize) -> Vec<Vec<u8>> {
        let mut srams: Vec<_> = (0..n)
            .map(|_| Vec::with_capacity(4 * self.words.len() / LANES))
            .collect();
        for words in self.words.chunks_exact(LANES) {
            for (sram, word) in srams.iter_mut().zip(words) {
                sram.extend_from_slice(word);
            }
        }
        srams.iter_mut().for_each(|sram| sram.truncate(self.bytes));
        srams
    }

    /// Stores the same in all PEs.
    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        self.each(at, bytes, |word, place, byte| word[place] = byte);
    }

    /// Whether all PEs have this.
    pub fn holds(&mut self, at: usize, bytes: &[u8]) -> bool {
        let mut all = true;
        self.each(at, bytes, |word, place, byte| all &= word[place] == byte);
        all
    }

    fn each(&mut self, at: usize, bytes: &[u8], mut f: impl FnMut(&mut Word, usize, u8)) {
        for (at, byte) in (at..).zip(bytes) {
            let lanes = &mut self.words[at / 4 * LANES..][..LANES];
            lanes.iter_mut().for_each(|word| f(word, at % 4, *byte));
        }
    }

    /// Copies bytes of a PE, whole words with them, to their place.
    fn copy(&self, lane: usize, (low, high): (i64, i64), to: &mut [u8]) {
        let words = low as usize / 4..(high as usize).div_ceil(4);
        for (word, to) in words.clone().zip(to[4 * words.start..].chunks_mut(4)) {
            to.copy_from_slice(&self.words[word * LANES + lane][..to.len()]);
        }
    }

    /// Puts bytes of a PE, whole words with them, from their place back.
    fn put(&mut self, lane: usize, (low, high): (i64, i64), from: &[u8]) {
        let words = low as usize / 4..(high as usize).div_ceil(4);
        for (word, from) in words.clone().zip(from[4 * words.start..].chunks(4)) {
            self.words[word * LANES + lane][..from.len()].copy_from_slice(from);
        }
    }

    /// AXPYs of rows of `n` elements, y f32 and x of a type, whose two rows have no byte in common.
    pub fn axpys(&mut self, scratch: &mut Scratch, n: usize, ty: Ty, all: &[Axpy]) {
        let Scratch {
            host, axpys, wide, ..
        } = scratch;
        let aligned = |one: &Axpy| one.y.is_multiple_of(4) && one.x.is_multiple_of(ty.bytes() as usize);
        if !all.iter().all(aligned) {
            return self.apart(scratch, n, ty, all);
        }
        axpys.clear();
        axpys.extend(all.iter().map(|one| Axpy {
            y: one.y * LANES,
            x: one.x * LANES,
            ..*one
        }));
        if ty == Ty::F32 {
            let memory = self.words.as_flattened_mut();
            return axpy::axpys(*host, memory, n * LANES, ty, axpys, wide);
        }
        // a weight's neighbours in a list have the same x, which nobody writes but an AXPY on it
        let mut row = 0..0;
        for one in all {
            if one.x != row.start || row.is_empty() {
                row = one.x..one.x + 2 * n;
                wide.clear();
                for at in row.clone().step_by(2) {
                    let lanes = &self.words[at / 4 * LANES..][..LANES];
                    let half: [[u8; 2]; LANES] = match at % 4 {
                        0 => std::array::from_fn(|l| [lanes[l][0], lanes[l][1]]),
                        _ => std::array::from_fn(|l| [lanes[l][2], lanes[l][3]]),
                    };
                    widen(*host, &half, wide);
                }
            }
            let y = &mut self.words[one.y / 4 * LANES..][..n * LANES];
            axpy::row_of_words(*host, one, wide, y);
            if overlap(&(one.y..one.y + 4 * n), &row) {
                row = 0..0;
            }
        }
    }

    /// The same PE by PE, for rows at any address.
    fn apart(&mut self, scratch: &mut Scratch, n: usize, ty: Ty, all: &[Axpy]) {
        let mut own = vec![0; self.bytes];
        for lane in 0..LANES {
            for one in all {
                let y = (one.y as i64, (one.y + 4 * n) as i64);
                let x = (one.x as i64, (one.x + ty.bytes() as usize * n) as i64);
                self.copy(lane, y, &mut own);
                self.copy(lane, x, &mut own);
                axpy::axpys(scratch.host, &mut own, n, ty, &[*one], &mut scratch.wide);
                self.put(lane, y, &own);
            }
        }
    }
}

/// What an instruction takes from a queue: a wavelet of each PE, then the next one of each, ...
pub(in crate::engine) enum Input<'a> {
    /// Wavelets of one f32 each.
    Words(&'a [Word]),
    Any(&'a Wavelets),
}

impl Run {
    /// Whether all its operands are f32 at addresses of words, a wavelet an element.
    pub(in crate::engine) fn in_words(&self) -> bool {
        let plain = |arg: &Arg| match arg {
            Arg::Memory {
                ty: Ty::F32,
                strides,
                at,
                ..
            } => at % 4 == 0 && strides.iter().all(|s| s % 4 == 0),
            Arg::In { ty: Ty::F32, .. } | Arg::Out { ty: Ty::F32, .. } => self.width == 1,
            Arg::Imm(_) => true,
            _ => false,
        };
        [&self.dst, &self.a, &self.b].into_iter().all(plain)
    }

    /// Does what [`Run::leap`] does, in all PEs. What it sends is added to `out`, side by side like the inputs.
    pub(in crate::engine) fn lockstep(
        &self,
        slots: u64,
        memory: &mut Memory,
        inputs: [Input; 2],
        out: &mut Wavelets,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        let Some(span) = self.span(slots) else {
            return Ok(());
        };
        let words = inputs.each_ref().map(|input| match input {
            Input::Words(words) => Some(*words),
            Input::Any(wavelets) => wavelets.single_words(),
        });
        let ([Some(a), Some(b)], true) = (words, self.in_words()) else {
            return self.lane_by_lane(slots, memory, inputs, out, scratch);
        };
        let came = [a, b];
        scratch.sent.clear();
        let nest = Nest::of(self, span.first, came);
        let (mut at, end) = (span.first, span.first + span.n);
        while at < end {
            let (piece, n) = nest.piece(at, end);
            piece.side_by_side(LANES as i64, |nest| {
                let bytes = memory.words.as_flattened_mut();
                match nest.rows_sent(self.op) {
                    Some(rows) if scratch.sent.is_empty() => {
                        rows.for_each(|row| send(scratch.host, bytes[row].as_chunks().0, out));
                    }
                    _ => nest.execute(self.op, bytes, scratch),
                }
            });
            at += n;
        }
        send(scratch.host, &scratch.sent, out);
        Ok(())
    }

    /// The same PE by PE: for f16, several elements a wavelet, odd addresses.
    fn lane_by_lane(
        &self,
        slots: u64,
        memory: &mut Memory,
        inputs: [Input; 2],
        out: &mut Wavelets,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        let inputs = inputs.map(|input| match input {
            Input::Words(words) => {
                let mut wavelets = Wavelets::default();
                wavelets.add_single(|to| to.extend_from_slice(words));
                wavelets
            }
            Input::Any(wavelets) => wavelets.clone(),
        });
        let mut own = vec![0; memory.bytes];
        let mut sent = vec![Wavelets::default(); LANES];
        let mut unused = PeCounters::default();
        for (lane, sent) in sent.iter_mut().enumerate() {
            for arg in [&self.dst, &self.a, &self.b] {
                memory.copy(lane, self.reaches(arg), &mut own);
            }
            let mut came = inputs.each_ref().map(|all| all.of(lane, LANES));
            let mut run = self.clone();
            run.leap(0, slots, &mut own, &mut came, sent, &mut unused, scratch)?;
            memory.put(lane, self.reaches(&self.dst), &own);
        }
        out.add_side_by_side(&sent);
        Ok(())
    }
}

/// Sends numbers.
fn send(host: Host, words: &[Word], out: &mut Wavelets) {
    out.add_single(|to| canonical(host, words, to));
}
