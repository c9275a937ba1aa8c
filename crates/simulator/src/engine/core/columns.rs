//! One core that stands for the same one in other columns: they execute the same instructions in the same order, at times that differ by a
//! constant (`fast::columns`), on numbers of their own. What decides the order or the time, registers and lists, must be the same in
//! all of them: that is looked at wherever it is read, and is an error if it does not hold.

use super::bulk::Scratch;
use super::vector::{Arg, Phase, Run, Source};
use super::*;
use std::ops::Range as Bytes;

/// What the other columns have of their own.
pub(in crate::engine) struct Others {
    memories: Vec<Vec<u8>>,
    /// SRAM above the block's buffers.
    above: Vec<Vec<u8>>,
    counters: PeCounters,
    scratch: Scratch,
    taken: [Wavelets; 2],
    plain: [Wavelets; 2],
    /// What each of them sends.
    theirs: Vec<Wavelets>,
    sent: Wavelets,
}

impl Core<'_> {
    /// Has it stand for cores with the same block that find these SRAMs.
    pub fn stand_for(&mut self, srams: Vec<Vec<u8>>, machine: &Machine) {
        let (memories, above) = srams.into_iter().map(|s| split(s, self.block, machine)).unzip();
        let mut others = Others {
            memories,
            above,
            counters: PeCounters::default(),
            scratch: Scratch::default(),
            taken: Default::default(),
            plain: Default::default(),
            theirs: Vec::new(),
            sent: Wavelets::default(),
        };
        others
            .theirs
            .resize_with(others.memories.len(), Wavelets::default);
        self.others = Some(Box::new(others));
    }

    /// The SRAMs that the stage leaves in those that it stands for.
    pub fn srams_of_others(&mut self) -> Vec<Vec<u8>> {
        let Some(others) = self.others.take() else {
            return Vec::new();
        };
        let Others {
            mut memories, above, ..
        } = *others;
        for (memory, mut above) in memories.iter_mut().zip(above) {
            memory.append(&mut above);
        }
        memories
    }
}

impl Others {
    pub fn memories(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memories.iter_mut().map(Vec::as_mut_slice)
    }

    /// What the last slot sent.
    pub fn sent(&self) -> &Wavelets {
        &self.sent
    }

    /// Whether all have the same bytes there.
    pub fn same(&self, memory: &[u8], bytes: Bytes<usize>) -> Result<(), String> {
        match self
            .memories
            .iter()
            .all(|m| m[bytes.clone()] == memory[bytes.clone()])
        {
            true => Ok(()),
            false => Err(format!(
                "bytes {bytes:?} decide what follows, and differ between columns"
            )),
        }
    }

    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        for m in self.memories() {
            m[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// [`Run::slot`] for all of them.
    #[allow(clippy::too_many_arguments)] // as for one
    pub fn slot(
        &mut self,
        run: &mut Run,
        memory: &mut [u8],
        net: &mut impl Ports,
        rules: &Rules,
        now: u64,
        counters: &mut PeCounters,
        sent: &mut Option<(Color, Wavelet)>,
    ) -> Result<i64, String> {
        if run.phase == Phase::Fetch || run.paid + 1 < run.cost {
            return run.slot(memory, net, rules, now, counters, sent);
        }
        counters.last_busy = now;
        let mut taken = std::mem::take(&mut self.taken);
        for (arg, to) in [&run.a, &run.b].into_iter().zip(&mut taken) {
            to.clear();
            if let Arg::In { queue, .. } = arg {
                net.pop_for_all(*queue, now, to);
            }
        }
        let mut out = std::mem::take(&mut self.sent);
        out.clear();
        let mut scratch = std::mem::take(&mut self.scratch);
        let wrong = |_| "a wavelet has another number of elements than its step".to_string();
        let n = leap_all(
            run,
            Some(self),
            now,
            1,
            memory,
            &mut taken,
            &mut out,
            counters,
            &mut scratch,
        )
        .map_err(wrong)?;
        if let Arg::Out { color, flag, .. } = run.dst {
            if flag && run.phase == Phase::Done {
                out.flag_last();
            }
            *sent = Some((color, out.get(0)));
        }
        (self.taken, self.sent, self.scratch) = (taken, out, scratch);
        if run.phase == Phase::Done {
            next_for_all(run, Some(self), memory, rules.machine)?;
        }
        Ok(n as i64)
    }
}

/// [`Run::leap`] for one core and those that it stands for.
#[allow(clippy::too_many_arguments)] // as for one
pub(super) fn leap_all(
    run: &mut Run,
    others: Option<&mut Others>,
    from: u64,
    slots: u64,
    memory: &mut [u8],
    inputs: &mut [Wavelets; 2],
    out: &mut Wavelets,
    counters: &mut PeCounters,
    scratch: &mut Scratch,
) -> Result<u64, ()> {
    let Some(others) = others else {
        return run.leap(from, slots, memory, inputs, out, counters, scratch);
    };
    let Others {
        memories,
        plain,
        theirs,
        counters: unused,
        ..
    } = others;
    for (i, (memory, theirs)) in memories.iter_mut().zip(&mut *theirs).enumerate() {
        for (from, to) in inputs.iter().zip(&mut *plain) {
            from.of_column(i, to);
        }
        theirs.clear();
        run.clone()
            .leap(from, slots, memory, plain, theirs, unused, scratch)?;
    }
    let first = out.len();
    let n = run.leap(from, slots, memory, inputs, out, counters, scratch)?;
    out.carry(first, theirs);
    Ok(n)
}

/// [`Run::next`] for one core and those that it stands for.
pub(super) fn next_for_all(
    run: &mut Run,
    others: Option<&mut Others>,
    memory: &[u8],
    machine: &Machine,
) -> Result<bool, String> {
    if let (Some(others), Some(s)) = (others, &run.sparse)
        && let Source::Memory {
            index,
            value,
            left,
            ty,
        } = s.source
        && left > 0
    {
        let (index, value) = (index as usize, value as usize);
        others.same(memory, index..index + 2)?;
        others.same(memory, value..value + ty.bytes() as usize)?;
    }
    run.next(memory, machine)
}
