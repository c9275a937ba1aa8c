//! The SRAM of all PEs, from one program to the next. A PE's bytes lie by themselves, or side by side with those of the PEs east of it, as
//! columns that are timed as one have them (`core::lockstep`): they stay so until a program needs them otherwise.

use super::core::{LANES, Memory};
use crate::machine::Machine;
use std::collections::BTreeMap;
use std::ops::Range;

/// The SRAM of each PE of a mesh: PEs are numbered row by row.
#[derive(Clone)]
pub struct Sram {
    /// Those that lie by themselves: from address 0 on, 0 beyond; nothing of the others.
    own: Vec<Vec<u8>>,
    /// The others, by the first PE of those side by side.
    beside: BTreeMap<usize, Beside>,
}

#[derive(Clone)]
struct Beside {
    /// PEs.
    n: usize,
    memory: Memory,
}

/// PEs of a row of the mesh that are to lie side by side.
pub(super) struct Row {
    pub first: usize,
    pub n: usize,
    /// Bytes that a PE has at least, 0 where nothing was left.
    pub least: usize,
    /// Bytes that a PE keeps at most.
    pub most: usize,
}

impl Row {
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (first, n) = (self.first, self.n);
        (0..n).step_by(LANES).map(move |i| (first + i, LANES.min(n - i)))
    }
}

/// What is needed to go back to an earlier state.
pub(super) struct Before {
    own: Vec<Vec<u8>>,
}

impl Sram {
    /// That of all PEs of a machine, 0 everywhere.
    pub fn new(machine: &Machine) -> Sram {
        let pes = machine.mesh.width as usize * machine.mesh.height as usize;
        Sram {
            own: vec![Vec::new(); pes],
            beside: BTreeMap::new(),
        }
    }

    /// How many PEs there are.
    pub fn pes(&self) -> usize {
        self.own.len()
    }

    /// Reads a PE's bytes from an address on.
    pub fn read(&self, pe: usize, at: usize, to: &mut [u8]) {
        match self.beside_of(pe) {
            Some((first, all)) => all.memory.read(pe - first, at, to),
            None => {
                let from = self.own[pe].get(at..).unwrap_or(&[]);
                let n = from.len().min(to.len());
                to[..n].copy_from_slice(&from[..n]);
                to[n..].fill(0);
            }
        }
    }

    /// Writes a PE's bytes from an address on.
    pub fn write(&mut self, pe: usize, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if let Some((lanes, memory)) = self.beside_of_mut(pe) {
            memory.resize(memory.bytes().max(end));
            return memory.write(lanes, at, bytes);
        }
        let own = &mut self.own[pe];
        if own.len() < end {
            own.resize(end, 0);
        }
        own[at..end].copy_from_slice(bytes);
    }

    /// Forgets what is beyond the first bytes of each PE, as many as `keeps` says: it is 0 then. A simulation need not carry along what is not read any more.
    pub fn trim(&mut self, keeps: impl Fn(usize) -> usize) {
        for (pe, own) in self.own.iter_mut().enumerate() {
            own.truncate(keeps(pe));
            own.shrink_to_fit();
        }
        let differs = |(first, all): (&usize, &Beside)| {
            let mut pes = *first..first + all.n;
            let other = pes.any(|pe| keeps(pe) != keeps(*first));
            other.then_some(*first)
        };
        let apart: Vec<usize> = self.beside.iter().filter_map(differs).collect();
        for first in apart {
            self.part(first);
            let all = self.own[first..].iter_mut().take(LANES);
            (first..).zip(all).for_each(|(pe, own)| own.truncate(keeps(pe)));
        }
        for (first, all) in &mut self.beside {
            all.memory.resize(all.memory.bytes().min(keeps(*first)));
        }
    }

    fn beside_of(&self, pe: usize) -> Option<(usize, &Beside)> {
        let (first, all) = self.beside.range(..=pe).next_back()?;
        (pe < first + all.n).then_some((*first, all))
    }

    /// The memory that a PE shares, and its lanes there: the last one's twins fill what would be free.
    fn beside_of_mut(&mut self, pe: usize) -> Option<(Range<usize>, &mut Memory)> {
        let (first, all) = self.beside.range_mut(..=pe).next_back()?;
        let lane = pe.checked_sub(*first).filter(|lane| *lane < all.n)?;
        let end = if lane + 1 == all.n { LANES } else { lane + 1 };
        Some((lane..end, &mut all.memory))
    }

    /// Has PEs side by side lie by themselves.
    fn part(&mut self, first: usize) {
        if let Some(Beside { n, memory }) = self.beside.remove(&first) {
            for (own, bytes) in self.own[first..].iter_mut().zip(memory.into_srams(n)) {
                *own = bytes;
            }
        }
    }

    /// Each PE's by itself.
    pub(super) fn apart(&mut self, threads: usize) -> &mut [Vec<u8>] {
        let all = std::mem::take(&mut self.beside).into_iter().collect();
        let parted = in_parallel(threads, all, |(first, Beside { n, memory })| {
            (first, memory.into_srams(n))
        });
        for (first, srams) in parted {
            for (own, bytes) in self.own[first..].iter_mut().zip(srams) {
                *own = bytes;
            }
        }
        &mut self.own
    }

    /// PEs of these rows side by side, [`LANES`] at once; PEs in none of them stay as they are if no row needs a part of those that they
    /// lie with.
    pub(super) fn arrange(&mut self, rows: &[Row], threads: usize) {
        let wanted: BTreeMap<usize, usize> = rows.iter().flat_map(Row::groups).collect();
        let in_the_way = |(first, all): (&usize, &Beside)| {
            let same = wanted.get(first) == Some(&all.n);
            let mut met = wanted.range(..first + all.n).next_back().into_iter();
            let met = met.any(|(f, n)| f + n > *first);
            (met && !same).then_some(*first)
        };
        let apart: Vec<usize> = self.beside.iter().filter_map(in_the_way).collect();
        apart.into_iter().for_each(|first| self.part(first));
        let own = &mut self.own;
        let mut jobs = Vec::new();
        for row in rows {
            for (first, n) in row.groups() {
                let srams: Vec<Vec<u8>> = own[first..first + n].iter_mut().map(std::mem::take).collect();
                jobs.push((first, n, self.beside.remove(&first), srams, row.least, row.most));
            }
        }
        let all = in_parallel(threads, jobs, |(first, n, beside, srams, least, most)| {
            let mut memory = match beside {
                Some(beside) => beside.memory,
                None => Memory::new(&srams),
            };
            memory.resize(memory.bytes().min(most).max(least));
            (first, Beside { n, memory })
        });
        self.beside.extend(all);
    }

    /// Has PEs lie so that the SRAM of cores can be had, which reach so many bytes in all: by themselves, or, if there are more than these,
    /// as they do, since cores get copies of what they reach.
    pub(super) fn ready(&mut self, bytes: usize, threads: usize) {
        let beside = self.beside.values().map(|all| all.n * all.memory.bytes());
        if beside.sum::<usize>() < bytes {
            self.apart(threads);
        }
    }

    /// A PE's SRAM for a core that reaches its first `bytes`: all of it, or these.
    pub(super) fn found(&mut self, pe: usize, bytes: usize) -> Vec<u8> {
        match self.beside_of(pe) {
            Some((first, all)) => {
                let mut found = vec![0; bytes];
                all.memory.read(pe - first, 0, &mut found);
                found
            }
            None => std::mem::take(&mut self.own[pe]),
        }
    }

    /// What a core left of what it found; of the rest `keeps` bytes stay.
    pub(super) fn left(&mut self, pe: usize, left: Vec<u8>, keeps: usize) {
        match self.beside_of_mut(pe) {
            Some((lanes, memory)) => {
                memory.resize(memory.bytes().max(left.len()));
                memory.write(lanes.clone(), 0, &left);
                let lost = memory.bytes().saturating_sub(keeps);
                memory.write(lanes, keeps, &vec![0; lost]);
            }
            None => self.own[pe] = left,
        }
    }

    /// What was arranged as a row, to be [put back](Sram::put).
    pub(super) fn take(&mut self, row: &Row) -> Vec<Memory> {
        let take = |(first, _)| self.beside.remove(&first).map(|b| b.memory);
        row.groups().filter_map(take).collect()
    }

    /// Puts back what was taken.
    pub(super) fn put(&mut self, row: &Row, all: Vec<Memory>) {
        let all = row.groups().zip(all);
        self.beside
            .extend(all.map(|((first, n), memory)| (first, Beside { n, memory })));
    }

    /// From here on what is written can be [taken back](Sram::back), where no PE comes to lie otherwise.
    pub(super) fn mark(&mut self) -> Before {
        self.beside.values_mut().for_each(|b| b.memory.mark());
        Before {
            own: self.own.clone(),
        }
    }

    /// Takes back all that was written since the mark.
    pub(super) fn back(&mut self, before: Before) {
        self.own = before.own;
        self.beside.values_mut().for_each(|b| b.memory.back());
    }

    /// What was written stays.
    pub(super) fn keep(&mut self) {
        self.beside.values_mut().for_each(|b| b.memory.keep());
    }
}

impl PartialEq for Sram {
    /// Whether each PE has the same bytes, however they lie.
    fn eq(&self, other: &Sram) -> bool {
        let [mut a, mut b] = [self, other].map(Sram::clone);
        let [a, b] = [a.apart(1), b.apart(1)];
        let filled = |all: &[u8]| all.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        a.len() == b.len()
            && a.iter()
                .zip(b.iter())
                .all(|(a, b)| a[..filled(a)] == b[..filled(b)])
    }
}

/// Does all jobs, on so many threads of the host; 0 for as many as it has.
fn in_parallel<J: Send, R: Send>(threads: usize, jobs: Vec<J>, f: impl Fn(J) -> R + Sync) -> Vec<R> {
    let each = jobs.len().div_ceil(threads_of(threads)).max(1);
    if each >= jobs.len() {
        return jobs.into_iter().map(f).collect();
    }
    let mut jobs = jobs.into_iter();
    std::thread::scope(|scope| {
        let running: Vec<_> = std::iter::from_fn(|| {
            let some: Vec<J> = jobs.by_ref().take(each).collect();
            let f = &f;
            (!some.is_empty()).then(|| scope.spawn(move || some.into_iter().map(f).collect::<Vec<R>>()))
        })
        .collect();
        running.into_iter().flat_map(|r| joined(r.join())).collect()
    })
}

/// How many threads of the host are meant by an option.
pub(super) fn threads_of(option: usize) -> usize {
    match option {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
}

/// What a thread returned.
pub(super) fn joined<R>(ended: std::thread::Result<R>) -> R {
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 PEs in a row, of which PE `i` has `i` bytes.
    fn sram() -> Sram {
        let sets = ["mesh.width=40", "mesh.height=1"].map(String::from);
        let machine = Machine::parse("small", include_str!("../../../../machines/small.toml"), &sets);
        let mut sram = Sram::new(&machine.unwrap());
        for pe in 0..40 {
            let bytes: Vec<u8> = (0..pe).map(|i| (100 + pe + i) as u8).collect();
            sram.write(pe, 0, &bytes);
        }
        sram
    }

    fn row(first: usize, n: usize) -> Row {
        Row {
            first,
            n,
            least: 300,
            most: 400,
        }
    }

    fn byte(sram: &Sram, pe: usize, at: usize) -> u8 {
        let mut to = [7];
        sram.read(pe, at, &mut to);
        to[0]
    }

    #[test]
    fn bytes_are_the_same_however_they_lie() {
        let plain = sram();
        let mut sram = sram();
        for rows in [
            vec![row(2, 35)],
            vec![row(2, 35)],
            vec![row(1, 3), row(20, 4)],
            vec![row(0, 40)],
        ] {
            sram.arrange(&rows, 2);
            assert!(sram == plain);
            for (pe, at) in [
                (0, 0),
                (3, 2),
                (3, 3),
                (33, 0),
                (36, 35),
                (36, 36),
                (39, 38),
                (39, 5000),
            ] {
                assert_eq!(byte(&sram, pe, at), byte(&plain, pe, at), "byte {at} of PE {pe}");
            }
        }
        sram.apart(2);
        assert!(sram == plain);
        sram.write(9, 8, &[1]);
        assert!(sram != plain);
    }

    #[test]
    fn writes_reach_one_pe_each() {
        let (mut plain, mut sram) = (sram(), sram());
        sram.arrange(&[row(2, 33)], 1);
        // the last one of the first 32, the only one of the next, and one that lies by itself; inside, and far behind what there was
        for pe in [33, 34, 39] {
            for at in [5, 1001] {
                plain.write(pe, at, &[1, 2, 3]);
                sram.write(pe, at, &[1, 2, 3]);
            }
        }
        assert!(sram == plain);
    }

    #[test]
    fn what_is_trimmed_is_0() {
        for arranged in [false, true] {
            let mut sram = sram();
            if arranged {
                sram.arrange(&[row(2, 33)], 1);
            }
            sram.trim(|pe| if pe == 10 { 3 } else { 30 });
            sram.arrange(&[row(2, 33)], 1);
            assert_eq!([2, 3].map(|at| byte(&sram, 10, at)), [112, 0]);
            assert_eq!([29, 30].map(|at| byte(&sram, 33, at)), [162, 0]);
            assert_eq!([29, 30].map(|at| byte(&sram, 39, at)), [168, 0]);
        }
    }

    #[test]
    fn cores_find_and_leave_their_own() {
        let plain = sram();
        for n in [0, 33, 35] {
            let mut sram = sram();
            sram.arrange(&[row(2, n)], 1);
            sram.ready(400, 1);
            for pe in 0..40 {
                let mut found = sram.found(pe, 10);
                found.resize(10, 0);
                assert_eq!(found[4], byte(&plain, pe, 4));
                found[4] = pe as u8;
                sram.left(pe, found, 20);
            }
            for pe in [1, 2, 33, 34, 36, 39] {
                assert_eq!(byte(&sram, pe, 4), pe as u8, "PE {pe} of {n}");
                assert_eq!(byte(&sram, pe, 5), byte(&plain, pe, 5), "PE {pe} of {n}");
            }
            // what was where code lies is lost, of those that had it
            assert_eq!(n == 35, byte(&sram, 36, 19) != 0 && byte(&sram, 36, 20) == 0);
            sram.ready(40_000, 1);
            assert!(sram.beside.is_empty());
        }
    }

    #[test]
    fn what_was_written_is_taken_back() {
        let plain = sram();
        let mut sram = sram();
        let row = row(2, 33);
        for kept in [false, true] {
            sram.arrange(std::slice::from_ref(&row), 1);
            let before = sram.mark();
            let mut all = sram.take(&row);
            for memory in &mut all {
                for (at, bytes) in [(4, vec![9; 2]), (290, vec![9; 10])] {
                    memory.save((at as i64, (at + bytes.len()) as i64));
                    memory.write(0..LANES, at, &bytes);
                }
            }
            sram.put(&row, all);
            sram.left(0, vec![5], 400);
            assert!(sram != plain);
            match kept {
                false => sram.back(before),
                true => sram.keep(),
            }
            assert_eq!(sram == plain, !kept);
        }
        // of what was kept nothing comes back
        let before = sram.mark();
        sram.back(before);
        assert_eq!(
            [byte(&sram, 0, 0), byte(&sram, 20, 5), byte(&sram, 20, 299)],
            [5, 9, 9]
        );
    }
}
