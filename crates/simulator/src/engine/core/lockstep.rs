//! Vector instructions on the memories of several PEs that do the same: word by word the memories lie side by side, so that an element of
//! an instruction is a row of elements, one of each PE, and each PE's come in the order that they have by themselves.

use super::bulk::{Nest, Scratch};
use super::vector::{Arg, Run};
use crate::engine::PeCounters;
use crate::engine::wavelets::Wavelets;
use crate::numerics::axpy::{self, Axpy};
use crate::numerics::block::{Word, canonical, widen};
use crate::numerics::sums::Sums;
use crate::program::{Op, Ty};
use std::ops::Range;

/// PEs side by side.
pub(in crate::engine) const LANES: usize = 32;

/// Words of each PE that are saved at once before they are overwritten.
const SAVED: usize = 64;

/// Elements of rows of sums that are worked on at once: those of all PEs stay in the host's registers, and what is multiplied near it.
const PIECE: usize = 4;

/// The SRAM of `LANES` PEs: word 0 of each, then word 1 of each, ...
#[derive(Clone, Default)]
pub(in crate::engine) struct Memory {
    words: Vec<Word>,
    /// Bytes of a PE.
    bytes: usize,
    /// Words, of all PEs, beyond which all were 0 when nothing was [to be saved](Memory::mark).
    filled: usize,
    before: Option<Before>,
}

/// What was there before it was overwritten.
#[derive(Clone, Default)]
struct Before {
    /// By number, of `SAVED` words each.
    blocks: Vec<(usize, Vec<Word>)>,
    /// Whether a block is among them.
    has: Vec<bool>,
}

impl Memory {
    /// Of SRAMs, 0 beyond their ends. If they are fewer than there are lanes, the last one's twins fill the others: they do as it does.
    pub fn new(srams: &[Vec<u8>]) -> Memory {
        let bytes = srams.iter().map(Vec::len).max().unwrap_or(0);
        let mut words = vec![[0; 4]; bytes.div_ceil(4) * LANES];
        for (i, to) in words.chunks_exact_mut(LANES).enumerate() {
            let at = 4 * i;
            for (lane, to) in to.iter_mut().enumerate() {
                let sram = &srams[lane.min(srams.len() - 1)];
                match sram.get(at..at + 4) {
                    Some(word) => *to = [word[0], word[1], word[2], word[3]],
                    None => (to.iter_mut().zip(sram.iter().skip(at))).for_each(|(to, byte)| *to = *byte),
                }
            }
        }
        Memory {
            filled: words.len(),
            words,
            bytes,
            before: None,
        }
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

    /// Bytes of a PE.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Has so many bytes of each PE, 0 where there were none.
    pub fn resize(&mut self, bytes: usize) {
        let words = bytes.div_ceil(4) * LANES;
        if self.words.is_empty() {
            // fresh memory is 0 without being touched
            self.words = vec![[0; 4]; words];
        }
        self.words.reserve_exact(words.saturating_sub(self.words.len()));
        self.words.resize(words, [0; 4]);
        if !bytes.is_multiple_of(4) && bytes < self.bytes {
            let last = &mut self.words[words - LANES..];
            last.iter_mut().for_each(|word| word[bytes % 4..].fill(0));
        }
        self.bytes = bytes;
        self.filled = self.filled.min(words);
    }

    /// Reads a PE's bytes from an address on, 0 where there are none.
    pub fn read(&self, lane: usize, at: usize, to: &mut [u8]) {
        let n = to.len();
        let (first, rest) = to.split_at_mut((at.next_multiple_of(4) - at).min(n));
        let word = |at: usize| self.words.get(at / 4 * LANES + lane).copied().unwrap_or_default();
        first.copy_from_slice(&word(at)[at % 4..][..first.len()]);
        let mut words = (at.next_multiple_of(4)..).step_by(4).map(word);
        let (whole, last) = rest.as_chunks_mut::<4>();
        whole.iter_mut().zip(&mut words).for_each(|(to, word)| *to = word);
        last.iter_mut()
            .zip(words.next().unwrap_or_default())
            .for_each(|(to, byte)| *to = byte);
    }

    /// Writes the same bytes in some PEs, from an address on.
    pub fn write(&mut self, lanes: Range<usize>, at: usize, bytes: &[u8]) {
        for (word, part, bytes) in parts(at, bytes) {
            let words = &mut self.words[word * LANES..][lanes.clone()];
            match bytes.try_into() {
                Ok(whole) => words.fill(whole),
                Err(_) => words
                    .iter_mut()
                    .for_each(|w| w[part.clone()].copy_from_slice(bytes)),
            }
        }
        if self.before.is_none() {
            self.filled = self.words.len();
        }
    }

    /// From here on what is overwritten is saved, if it is [said](Memory::save) before; what is 0 for sure need not be.
    pub fn mark(&mut self) {
        self.before = Some(Before {
            blocks: Vec::new(),
            has: vec![false; self.filled.div_ceil(SAVED * LANES)],
        });
    }

    /// These bytes are about to be overwritten.
    pub fn save(&mut self, (low, high): (i64, i64)) {
        let Some(Before { blocks, has }) = &mut self.before else {
            return;
        };
        if low >= high {
            return;
        }
        let (first, end) = (low as usize / 4 / SAVED, (high as usize).div_ceil(4 * SAVED));
        for block in first..end.min(has.len()) {
            if !std::mem::replace(&mut has[block], true) {
                let words = self.words.chunks(SAVED * LANES).nth(block);
                blocks.push((block, words.unwrap_or_default().to_vec()));
            }
        }
    }

    /// All is again as it was when it was marked.
    pub fn back(&mut self) {
        for (block, words) in self.before.take().unwrap_or_default().blocks {
            self.words[block * SAVED * LANES..][..words.len()].copy_from_slice(&words);
        }
        self.words[self.filled..].fill([0; 4]);
    }

    /// What was overwritten is not needed any more.
    pub fn keep(&mut self) {
        self.before = None;
        self.filled = self.words.len();
    }

    /// Whether all PEs have this.
    pub fn holds(&self, at: usize, bytes: &[u8]) -> bool {
        parts(at, bytes).all(|(word, part, bytes)| {
            let lanes = &self.words[word * LANES..][..LANES];
            lanes.iter().all(|w| w[part.clone()] == *bytes)
        })
    }

    /// Copies bytes of a PE to their place among all of its own.
    fn copy(&self, lane: usize, (low, high): (i64, i64), own: &mut [u8]) {
        self.read(lane, low as usize, &mut own[low as usize..high as usize]);
    }

    /// Puts them back.
    fn put(&mut self, lane: usize, (low, high): (i64, i64), own: &[u8]) {
        self.write(lane..lane + 1, low as usize, &own[low as usize..high as usize]);
    }

    /// Adds to sums.
    pub fn sums(&mut self, scratch: &mut Scratch, sums: &Sums) {
        let Scratch { host, wide, .. } = scratch;
        for first in (0..sums.n).step_by(PIECE) {
            let elements = first..sums.n.min(first + PIECE);
            // what is multiplied, one row after another, as f32
            wide.clear();
            for x in sums.x() {
                match sums.ty {
                    Ty::F32 => {
                        let row = &self.words[x / 4 * LANES..];
                        wide.extend_from_slice(&row[elements.start * LANES..elements.end * LANES]);
                    }
                    Ty::F16 => {
                        for at in elements.clone().map(|i| x + 2 * i) {
                            let lanes = &self.words[at / 4 * LANES..][..LANES];
                            let half: [[u8; 2]; LANES] = match at % 4 {
                                0 => std::array::from_fn(|l| [lanes[l][0], lanes[l][1]]),
                                _ => std::array::from_fn(|l| [lanes[l][2], lanes[l][3]]),
                            };
                            widen(*host, &half, wide);
                        }
                    }
                }
            }
            let piece = elements.start * LANES..elements.end * LANES;
            sums.add(*host, &mut self.words, LANES, piece, wide);
        }
    }

    /// AXPYs one after another, of rows of `n` elements at any address, y f32 and x of a type, whose two rows have no byte in common: PE by
    /// PE.
    pub fn axpys(&mut self, scratch: &mut Scratch, n: usize, ty: Ty, all: &[Axpy]) {
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

/// Of bytes that lie at an address, those of each word, and their place in it.
fn parts(at: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, Range<usize>, &[u8])> {
    let end = at + bytes.len();
    (at / 4..end.div_ceil(4)).map(move |word| {
        let (from, to) = (at.max(4 * word), end.min(4 * word + 4));
        (word, from - 4 * word..to - 4 * word, &bytes[from - at..to - at])
    })
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
        let nest = Nest::of(self, span.first, came);
        let (mut at, end) = (span.first, span.first + span.n);
        out.add_single(|to| {
            // what it sends goes where it stays
            std::mem::swap(to, &mut scratch.sent);
            while at < end {
                let (piece, n) = nest.piece(at, end);
                piece.side_by_side(LANES as i64, |nest| {
                    let bytes = memory.words.as_flattened_mut();
                    let begin = scratch.sent.len();
                    match nest.rows_sent(self.op) {
                        Some(rows) => {
                            rows.for_each(|row| scratch.sent.extend_from_slice(bytes[row].as_chunks().0));
                        }
                        None => nest.execute(self.op, bytes, scratch),
                    }
                    if self.op == Op::Mov {
                        canonical(scratch.host, &mut scratch.sent[begin..]);
                    }
                });
                at += n;
            }
            std::mem::swap(to, &mut scratch.sent);
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::core::vector::Phase;
    use crate::numerics as num;
    use crate::numerics::block::Host;
    use crate::program::Count;
    use fearless_simd::Level;

    const BYTES: usize = 1200;

    /// The same numbers in every run.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (self.0 >> 33) as usize % n
        }

        fn number(&mut self) -> f32 {
            let special = [f32::INFINITY, f32::NAN, -0.0, 0.0, f32::MAX, f32::MIN_POSITIVE];
            match self.below(24) {
                0 => special[self.below(special.len())],
                // products of which one half is lost, or more
                1 => f32::from_bits((self.below(1 << 24) + (32 << 23)) as u32),
                _ => (self.below(8192) as f32 - 4096.0) / 1024.0,
            }
        }
    }

    fn hosts() -> Vec<Host> {
        let mut hosts = vec![Host::default(), Host::of(Level::baseline())];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        hosts.extend(Level::new().as_avx2().map(|avx2| Host::of(Level::Avx2(avx2))));
        hosts
    }

    fn srams(draw: &mut Draw, ty: Ty) -> Vec<Vec<u8>> {
        (0..LANES)
            .map(|_| {
                let mut sram = vec![0; BYTES];
                let bytes = ty.bytes() as usize;
                (0..BYTES / bytes).for_each(|i| num::store(&mut sram, ty, bytes * i, draw.number()));
                sram
            })
            .collect()
    }

    /// Does a list in lockstep on each host, and by its elements. Returns whether it was taken as sums.
    fn compare(draw: &mut Draw, n: usize, ty: Ty, all: &[Axpy]) -> bool {
        let before = srams(draw, ty);
        let mut want = before.clone();
        for sram in &mut want {
            for one in all {
                for k in 0..n {
                    let x = num::load(sram, ty, one.x + ty.bytes() as usize * k);
                    let at = one.y + 4 * k;
                    let y = match one.fresh {
                        true => num::apply(Op::Mul, one.a, x),
                        false => num::mac(Ty::F32, num::load(sram, Ty::F32, at), one.a, x),
                    };
                    num::store(sram, Ty::F32, at, y);
                }
            }
        }
        let sums = Sums::new(all, n, ty);
        for host in hosts() {
            let mut scratch = Scratch::default();
            scratch.host = host;
            let mut memory = Memory::new(&before);
            match &sums {
                Some(sums) => memory.sums(&mut scratch, sums),
                None => memory.axpys(&mut scratch, n, ty, all),
            }
            let got = memory.into_srams(LANES);
            assert!(got == want, "rows of {n}, {ty:?}, {:?}: {all:?}", host.level());
        }
        sums.is_some()
    }

    /// Rows of all lengths, at their places or anywhere: over each other, over what is multiplied, at odd addresses.
    #[test]
    fn sums_are_those_of_single_elements() {
        let mut draw = Draw(5);
        let mut as_sums = [0, 0];
        for case in 0..600 {
            let (n, ty) = (1 + draw.below(11), [Ty::F32, Ty::F16][draw.below(2)]);
            let bytes = ty.bytes() as usize;
            let (rows, features) = (1 + draw.below(6), 1 + draw.below(6));
            let anywhere = case % 3 == 0;
            let step = if anywhere { [1, 2, 4][draw.below(3)] } else { 4 };
            // rows of sums begin behind those that are multiplied, or anywhere near
            let (x_bytes, mut behind, mut pitch) = (bytes * n, 0, 4 * n + step * draw.below(3));
            if anywhere {
                behind = step * draw.below(1 + features * x_bytes / step);
                pitch -= step * draw.below(2);
            } else {
                behind += (features * x_bytes).next_multiple_of(4);
            }
            let all: Vec<Axpy> = (0..draw.below(40))
                .map(|_| Axpy {
                    a: draw.number(),
                    y: behind + pitch * draw.below(rows),
                    x: x_bytes * draw.below(features),
                    fresh: draw.below(5) == 0,
                })
                // an AXPY's own two rows never meet
                .filter(|one| one.x + x_bytes <= one.y || one.y + 4 * n <= one.x)
                .collect();
            let sums = compare(&mut draw, n, ty, &all);
            assert!(sums || anywhere);
            as_sums[sums as usize] += 1;
        }
        assert!(as_sums[0] > 60 && as_sums[1] > 400, "{as_sums:?}");
    }

    /// What must not be taken as sums: each of the ways in which order between them matters, by one element or less.
    #[test]
    fn rows_that_meet_are_not_sums() {
        let mut draw = Draw(6);
        let n = 5;
        let axpy = |a, y, x| Axpy {
            a,
            y,
            x,
            fresh: false,
        };
        for (what, apart, ty, all) in [
            (
                "apart",
                true,
                Ty::F32,
                vec![axpy(2.0, 100, 40), axpy(3.0, 120, 60), axpy(0.5, 80, 40)],
            ),
            (
                "sums over sums",
                false,
                Ty::F32,
                vec![axpy(2.0, 100, 0), axpy(3.0, 116, 20)],
            ),
            (
                "a sum is multiplied",
                false,
                Ty::F32,
                vec![axpy(2.0, 100, 0), axpy(3.0, 200, 100)],
            ),
            (
                "its end is",
                false,
                Ty::F32,
                vec![axpy(2.0, 100, 116), axpy(3.0, 200, 0)],
            ),
            (
                "its begin is",
                false,
                Ty::F16,
                vec![axpy(2.0, 100, 92), axpy(3.0, 200, 0)],
            ),
            (
                "right before it",
                true,
                Ty::F16,
                vec![axpy(2.0, 100, 90), axpy(3.0, 200, 120)],
            ),
            ("at an odd address", false, Ty::F32, vec![axpy(2.0, 102, 0)]),
            ("of odd ones", false, Ty::F16, vec![axpy(2.0, 100, 1)]),
        ] {
            let own = |one: &Axpy| one.x + ty.bytes() as usize * n <= one.y || one.y + 4 * n <= one.x;
            if all.iter().all(own) {
                assert_eq!(compare(&mut draw, n, ty, &all), apart, "{what}");
            } else {
                assert_eq!(Sums::new(&all, n, ty).is_some(), apart, "{what}");
            }
        }
    }

    /// Rows that are sent as they are, and what is computed of them, come behind what was sent before, every NaN as the one.
    #[test]
    fn what_is_sent_has_one_nan() {
        let mut draw = Draw(7);
        let before = srams(&mut draw, Ty::F32);
        let other = 0xffc0_1234u32.to_le_bytes();
        for (op, strides) in [
            (Op::Mov, [0, 0, 40, 4]),
            (Op::Mov, [0, 0, 4, 40]),
            (Op::Add, [0, 0, 40, 4]),
        ] {
            let mut srams = before.clone();
            srams
                .iter_mut()
                .for_each(|sram| sram[144..148].copy_from_slice(&other));
            let mut memory = Memory::new(&srams);
            let from = Arg::Memory {
                ty: Ty::F32,
                base: 100,
                strides,
                at: 100,
            };
            let run = Run {
                pc: 0,
                op,
                dst: Arg::Out {
                    ty: Ty::F32,
                    color: 0,
                    queue: 0,
                    flag: false,
                },
                a: from,
                b: Arg::Imm(0.5),
                sparse: None,
                shape: [1, 1, 3, 2],
                index: [0; 3],
                column: 0,
                width: 1,
                cost: 1,
                paid: 0,
                count: Count::None,
                phase: Phase::Step,
                then: None,
            };
            let mut out = Wavelets::default();
            out.add_words([[1, 2, 3, 4]; LANES].into_iter());
            let mut scratch = Scratch::default();
            let none = || Input::Words(&[]);
            run.lockstep(6, &mut memory, [none(), none()], &mut out, &mut scratch)
                .expect("words");
            let mut want = vec![[1, 2, 3, 4]; LANES];
            for (row, i) in (0..3).flat_map(|row| (0..2).map(move |i| (row, i))) {
                let at = (100 + row * strides[2] + i * strides[3]) as usize;
                let sent = |sram: &Vec<u8>| num::apply(op, num::load(sram, Ty::F32, at), 0.5);
                want.extend(srams.iter().map(|sram| num::canonical(sent(sram)).to_le_bytes()));
            }
            assert!(out.single_words() == Some(&want), "{op:?} by {strides:?}");
        }
    }
}
