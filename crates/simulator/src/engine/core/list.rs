//! An axpy's list in memory: how many cycles its elements take (rules M9, M12), and many of them at once. The same numbers, in the same
//! order, as one element after another.

use super::bulk::Scratch;
use super::record::Record;
use super::vector::{Arg, Phase, Run, Source, reach};
use crate::engine::{Class, PeCounters};
use crate::machine::Machine;
use crate::numerics as num;
use crate::numerics::axpy::{Axpy, axpys, overlap};
use crate::program::*;
use std::ops::Range;

/// Banks of two addresses, by shifts and masks where the machine's numbers are powers of two.
#[derive(Clone, Copy)]
enum Banks {
    Bits { shift: u32, mask: i64 },
    Any { bytes: i64, banks: i64, modulus: i64 },
}

impl Banks {
    fn new(machine: &Machine) -> Banks {
        let s = &machine.pe.sram;
        let all = [s.bank_bytes, s.banks, s.conflict_modulus];
        match all.iter().all(|n| n.is_power_of_two()) {
            true => Banks::Bits {
                shift: s.bank_bytes.trailing_zeros(),
                mask: s.banks.min(s.conflict_modulus) as i64 - 1,
            },
            false => Banks::Any {
                bytes: s.bank_bytes as i64,
                banks: s.banks as i64,
                modulus: s.conflict_modulus as i64,
            },
        }
    }

    /// Rule M9: whether two memory sources that begin there conflict.
    fn conflict(self, a: i64, b: i64) -> bool {
        match self {
            Banks::Bits { shift, mask } => (a ^ b) >> shift & mask == 0,
            Banks::Any {
                bytes,
                banks,
                modulus,
            } => {
                let bank = |a: i64| (a / bytes).rem_euclid(banks) % modulus;
                bank(a) == bank(b)
            }
        }
    }
}

/// What an instruction's elements have in common.
struct Walk {
    /// At most 65536: indices have 16 bits.
    modulo: u32,
    divisor: u32,
    y_step: i64,
    x_step: i64,
    /// Where the operands begin for index 0, and the bytes around there that they reach.
    y: i64,
    x: i64,
    y_reach: (i64, i64),
    x_reach: (i64, i64),
    /// Both take part in conflicts.
    both: bool,
    banks: Banks,
    issue: u64,
    steps: u64,
    /// The list's bytes that are still to be read: indices, values.
    index: usize,
    value: usize,
    left: usize,
    ty: Ty,
}

/// An element of a list.
#[derive(Clone, Copy)]
struct Element {
    axpy: Axpy,
    /// The slots of a step.
    cost: u32,
}

impl Walk {
    /// `None` if there is no list in memory.
    fn new(run: &Run, machine: &Machine) -> Option<Walk> {
        let s = run.sparse.as_ref()?;
        let Source::Memory {
            index,
            value,
            left,
            ty,
        } = s.source
        else {
            return None;
        };
        let operand = |arg: &Arg| match arg {
            Arg::Memory {
                ty, base, strides, ..
            } => {
                let reach = reach(0, strides, &run.shape, *ty);
                (*base, reach, strides[3] != 0 || run.shape[3] == 1)
            }
            _ => unreachable!("checked at issue"),
        };
        let ((y, y_reach, first), (x, x_reach, second)) = (operand(&run.dst), operand(&run.b));
        let row = (run.shape[3] + run.width - 1) / run.width;
        Some(Walk {
            modulo: s.modulo.min(1 << 16) as u32,
            divisor: s.divisor.min(1 << 16) as u32,
            y_step: s.y_step,
            x_step: s.x_step,
            y,
            x,
            y_reach,
            x_reach,
            both: first && second,
            banks: Banks::new(machine),
            issue: machine.pe.cost.issue as u64,
            steps: (run.shape[0] * run.shape[1] * run.shape[2] * row) as u64,
            index: index as usize,
            value: value as usize,
            left: left as usize,
            ty,
        })
    }

    /// The cycles of an element.
    fn cycles(&self, cost: u32) -> u64 {
        self.issue + self.steps * cost as u64
    }

    /// The bytes that an AXPY writes.
    fn written(&self, y: usize) -> Range<usize> {
        let y = y as i64;
        (y + self.y_reach.0) as usize..(y + self.y_reach.1) as usize
    }

    /// Those that it reads beside these.
    fn read(&self, x: usize) -> Range<usize> {
        let x = x as i64;
        (x + self.x_reach.0) as usize..(x + self.x_reach.1) as usize
    }

    /// Whether what it writes is part of what is left of the list.
    fn touches(&self, y: usize) -> bool {
        let y = self.written(y);
        overlap(&y, &(self.index..self.index + 2 * self.left))
            || overlap(
                &y,
                &(self.value..self.value + self.ty.bytes() as usize * self.left),
            )
    }

    /// The next element; `None` if there is none, or if it reaches outside memory.
    fn next(&mut self, memory: &[u8]) -> Option<Element> {
        if self.left == 0 {
            return None;
        }
        let i = u16::from_le_bytes([memory[self.index], memory[self.index + 1]]) as u32;
        let y = self
            .y
            .saturating_add(((i % self.modulo) as i64).saturating_mul(self.y_step));
        let x = self
            .x
            .saturating_add(((i / self.divisor) as i64).saturating_mul(self.x_step));
        let inside = |at: i64, (low, high): (i64, i64)| {
            at.saturating_add(low) >= 0 && at.saturating_add(high) <= memory.len() as i64
        };
        if !(inside(y, self.y_reach) && inside(x, self.x_reach)) {
            return None;
        }
        let a = num::load(memory, self.ty, self.value);
        self.index += 2;
        self.value += self.ty.bytes() as usize;
        self.left -= 1;
        Some(Element {
            axpy: Axpy {
                a,
                y: y as usize,
                x: x as usize,
                fresh: false,
            },
            cost: 1 + (self.both && self.banks.conflict(y, x)) as u32,
        })
    }
}

impl Run {
    /// The cycles of the sparse elements that follow the one at hand, of at most `far`, until there are `most` cycles, and whether these
    /// are all. `None` if it has no list.
    ///
    /// None are counted where the products may change the list itself, or reach where they must not: those are looked at one by one.
    pub(super) fn rest_of_list(
        &self,
        memory: &[u8],
        machine: &Machine,
        far: usize,
        most: u64,
    ) -> Option<(u64, bool)> {
        self.sparse.as_ref()?;
        let Some(mut walk) = Walk::new(self, machine) else {
            return Some((0, false));
        };
        let Arg::Memory { at, strides, .. } = &self.dst else {
            unreachable!("checked at issue")
        };
        let begun: i64 = (0..3).map(|d| strides[d] * self.index[d]).sum();
        if walk.touches((at - begun) as usize) {
            return Some((0, walk.left == 0));
        }
        let (mut cycles, mut seen) = (0, 0);
        while walk.left > 0 && seen < far && cycles < most {
            // what is read of the list is not what the elements before it write, nor what this one does
            match walk.next(memory) {
                Some(e) if !walk.touches(e.axpy.y) => cycles += walk.cycles(e.cost),
                _ => return Some((cycles, false)),
            }
            seen += 1;
        }
        Some((cycles, walk.left == 0))
    }

    /// Executes elements of a list of which no cycle has passed, whole ones, but not the last one: as many as take at most `most`
    /// cycles, from cycle `from` on. Returns their cycles; 0 if it is not that simple. `elements` counts the shape's, once for each.
    #[allow(clippy::too_many_arguments)] // one call; a struct for it would only rename them
    pub(super) fn leap_list(
        &mut self,
        from: u64,
        most: u64,
        memory: &mut [u8],
        machine: &Machine,
        counters: &mut PeCounters,
        elements: &mut u64,
        scratch: &mut Scratch,
        record: Option<(&mut Record, u8)>,
    ) -> u64 {
        if self.phase != Phase::Issue(machine.pe.cost.issue) {
            return 0;
        }
        let Some(mut walk) = Walk::new(self, machine) else {
            return 0;
        };
        let (Arg::Memory { at: y, .. }, Arg::Memory { at: x, .. }) = (&self.dst, &self.b) else {
            return 0;
        };
        let Some(rows) = self.rows() else { return 0 };
        let read = (walk.index, walk.value);
        let mut here = Element {
            axpy: Axpy {
                a: self.sparse.as_ref().map_or(0.0, |s| s.value),
                y: *y as usize,
                x: *x as usize,
                fresh: false,
            },
            cost: self.cost,
        };
        let (mut cycles, mut slots) = (0, 0);
        let axpys_of_rows = &mut scratch.axpys;
        axpys_of_rows.clear();
        let mut done = 0;
        loop {
            let after = cycles + walk.cycles(here.cost);
            let apart = || {
                let (y, x) = (walk.written(here.axpy.y), walk.read(here.axpy.x));
                !overlap(&y, &x) && !walk.touches(here.axpy.y)
            };
            if after > most || !apart() {
                break;
            }
            let Some(next) = walk.next(memory) else { break };
            axpys_of_rows.extend(rows.clone().map(|(y, x)| Axpy {
                a: here.axpy.a,
                y: (here.axpy.y as i64 + y) as usize,
                x: (here.axpy.x as i64 + x) as usize,
                fresh: false,
            }));
            done += 1;
            slots += walk.steps * here.cost as u64;
            cycles = after;
            here = next;
        }
        if done == 0 {
            return 0;
        }
        if let Some((record, thread)) = record {
            record.axpys(
                thread,
                axpys_of_rows,
                self.shape[3] as usize,
                self.ty_of_x(),
                memory,
            );
            record.same(memory, read.0..walk.index);
            record.same(memory, read.1..walk.value);
        }
        let x_ty = self.ty_of_x();
        axpys(
            scratch.host,
            memory,
            self.shape[3] as usize,
            x_ty,
            axpys_of_rows,
            &mut scratch.wide,
        );
        let n = done * (self.shape.iter().product::<i64>() as u64);
        *elements += n;
        counters.classes[Class::Launch as usize] += cycles - slots;
        counters.classes[Class::Busy as usize] += slots;
        counters.slots[self.count as usize] += slots;
        if self.count != Count::None {
            counters.operations[self.count as usize - 1] += n;
        }
        (counters.last_busy, counters.last_write) = (from + cycles - 1, Some(from + cycles - 1));
        self.stand_at(&walk, here);
        cycles
    }

    fn ty_of_x(&self) -> Ty {
        match self.b {
            Arg::Memory { ty, .. } => ty,
            _ => Ty::F32,
        }
    }

    /// Where each row of an element begins, in bytes from its first one; `None` if rows are not f32 sums of f32 or f16 in a line.
    pub(super) fn rows(&self) -> Option<impl Iterator<Item = (i64, i64)> + Clone + use<>> {
        match &self.b {
            Arg::Memory { ty, strides, .. } => self.rows_with(strides, *ty),
            _ => None,
        }
    }

    /// The same with another operand than the second one.
    pub(super) fn rows_with(
        &self,
        x: &[i64; 4],
        ty: Ty,
    ) -> Option<impl Iterator<Item = (i64, i64)> + Clone + use<>> {
        let Arg::Memory {
            ty: Ty::F32,
            strides: y,
            ..
        } = &self.dst
        else {
            return None;
        };
        let [a, b, c, n] = self.shape;
        if n > 1 && (y[3] != 4 || x[3] != ty.bytes() as i64) {
            return None;
        }
        let (y, x) = (*y, *x);
        let rows = (0..a * b * c).map(move |row| {
            let at = |s: &[i64; 4]| row / (b * c) * s[0] + row / c % b * s[1] + row % c * s[2];
            (at(&y), at(&x))
        });
        Some(rows)
    }

    /// It is about to issue this element, which the walk has just come to.
    fn stand_at(&mut self, walk: &Walk, here: Element) {
        let Some(s) = &mut self.sparse else { return };
        s.source = Source::Memory {
            index: walk.index as i64,
            value: walk.value as i64,
            left: walk.left as i64,
            ty: walk.ty,
        };
        s.value = here.axpy.a;
        s.last = walk.left == 0;
        self.a = Arg::Imm(here.axpy.a);
        self.cost = here.cost;
        for (arg, to) in [(&mut self.dst, here.axpy.y), (&mut self.b, here.axpy.x)] {
            if let Arg::Memory { at, .. } = arg {
                *at = to as i64;
            }
        }
    }
}
