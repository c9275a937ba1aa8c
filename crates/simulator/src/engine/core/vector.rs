//! Vector instructions: how they issue (operands, width, bank conflicts), and what each slot that they get does (rules M8, M9, M12 to M14).

use super::record::Record;
use super::{DescPlace, Ports, Range, Rules, State, Wait};
use crate::engine::PeCounters;
use crate::engine::network::NONE;
use crate::machine::Machine;
use crate::numerics as num;
use crate::program::*;

/// An operand of a vector instruction that runs.
#[derive(Clone, Copy)]
pub(in crate::engine) enum Arg {
    Memory {
        ty: Ty,
        base: i64,
        strides: [i64; 4],
        at: i64,
    },
    In {
        ty: Ty,
        color: Color,
        queue: u32,
    },
    Out {
        ty: Ty,
        color: Color,
        queue: u32,
        flag: bool,
    },
    Imm(f32),
}

/// The sparse elements of an Axpy that runs.
#[derive(Clone, Copy)]
pub(super) struct Sparse {
    pub(super) modulo: i64,
    pub(super) divisor: i64,
    pub(super) y_step: i64,
    pub(super) x_step: i64,
    pub(super) source: Source,
    pub(super) value: f32,
    pub(super) last: bool,
    index: Option<i64>,
}

#[derive(Clone, Copy)]
pub(super) enum Source {
    Fabric {
        queue: u32,
        color: Color,
        ty: Ty,
    },
    Memory {
        index: i64,
        value: i64,
        left: i64,
        ty: Ty,
    },
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Phase {
    /// Cycles until the first step may happen.
    Issue(u32),
    /// An Axpy's element comes from the fabric.
    Fetch,
    Step,
    Done,
}

/// A vector instruction between its issue and its last step.
#[derive(Clone)]
pub(in crate::engine) struct Run {
    pub(super) pc: u32,
    pub(super) op: Op,
    pub dst: Arg,
    pub a: Arg,
    pub b: Arg,
    pub(super) sparse: Option<Sparse>,
    pub(super) shape: [i64; 4],
    pub(super) index: [i64; 3],
    pub(super) column: i64,
    pub(super) width: i64,
    pub(super) cost: u32,
    pub(super) paid: u32,
    pub(super) count: Count,
    pub(super) phase: Phase,
    pub(super) then: Option<u16>,
}

impl State<'_> {
    /// Checks that a memory operand stays inside the buffers.
    fn bounds(&self, base: i64, strides: &[i64; 4], shape: &[i64; 4], ty: Ty) -> Result<(), String> {
        let (low, high) = reach(base, strides, shape, ty);
        if shape.contains(&0) || (low >= 0 && high <= self.memory.len() as i64) {
            return Ok(());
        }
        Err(format!(
            "bytes {low} to {high} of a memory operand are outside the {} bytes that the block's buffers cover",
            self.memory.len()
        ))
    }

    /// Issues a vector instruction: captures its operands, fixes the width of its steps and their cost (rules M8, M9).
    pub(super) fn start(
        &self,
        v: &Vector,
        pc: u32,
        then: Option<u16>,
        net: &impl Ports,
        rules: &Rules,
    ) -> Result<Run, String> {
        let machine = rules.machine;
        let queue = |q: u32, c: Color| {
            if q == NONE {
                Err(format!("colour {c} has no route to this core"))
            } else {
                Ok(q)
            }
        };
        let mut shape: Option<[i64; 4]> = None;
        let mut width = i64::MAX;
        let mut half = false;
        let mut sources = Sources::default();
        let mut arg = |o: Operand, write: bool, source: bool| -> Result<Arg, String> {
            let d = match o {
                Operand::Imm(x) => return Ok(Arg::Imm(x)),
                Operand::Reg(r) => return Ok(Arg::Imm(f32::from_bits(self.registers[r as usize] as u32))),
                Operand::Desc(d) => self.get(d)?,
            };
            match shape {
                None => shape = Some(d.shape),
                Some(s) if s != d.shape => {
                    return Err(format!(
                        "operands of shapes {s:?} and {:?} in one instruction",
                        d.shape
                    ));
                }
                _ => {}
            }
            half |= d.ty == Ty::F16;
            match d.place {
                DescPlace::Memory { base, strides, wide } => {
                    self.bounds(base, &strides, &d.shape, d.ty)?;
                    width = width.min(access_width(d.ty, base, &strides, &d.shape, wide, machine));
                    if source && (strides[3] != 0 || d.shape[3] == 1) {
                        sources.push(base);
                    }
                    Ok(Arg::Memory {
                        ty: d.ty,
                        base,
                        strides,
                        at: base,
                    })
                }
                DescPlace::In(c) if !write => {
                    width = width.min(fabric_width(d.ty, machine));
                    Ok(Arg::In {
                        ty: d.ty,
                        color: c,
                        queue: queue(net.core_in(self.pe, c), c)?,
                    })
                }
                DescPlace::Out(c, flag) if write => {
                    width = width.min(fabric_width(d.ty, machine));
                    Ok(Arg::Out {
                        ty: d.ty,
                        color: c,
                        queue: queue(net.core_out(self.pe, c), c)?,
                        flag,
                    })
                }
                DescPlace::In(_) => Err("an `in` descriptor cannot be a destination".into()),
                DescPlace::Out(..) => Err("an `out` descriptor cannot be a source".into()),
            }
        };
        let issue = Phase::Issue(machine.pe.cost.issue);
        match v {
            Vector::Map { op, dst, a, b, count } => {
                let a = arg(*a, false, true)?;
                let b = b.map_or(Ok(Arg::Imm(0.0)), |b| arg(b, false, true))?;
                let dst = arg(Operand::Desc(*dst), true, *op == Op::Mac)?;
                if let (Arg::In { color, .. }, Arg::In { color: other, .. }) = (a, b)
                    && color == other
                {
                    return Err(format!("both sources take wavelets of colour {color}"));
                }
                if *op == Op::Mac && !matches!(dst, Arg::Memory { .. }) {
                    return Err("the accumulator of a multiply-accumulate must be in memory".into());
                }
                let shape = shape.unwrap_or([0; 4]);
                let cost = match op {
                    Op::Exp => machine.pe.special.exp,
                    Op::Div => machine.pe.special.divide,
                    Op::Rsqrt => machine.pe.special.rsqrt,
                    Op::Tanh => machine.pe.special.tanh,
                    _ if sources.conflict(machine) => 2,
                    _ => 1,
                };
                let special = matches!(op, Op::Exp | Op::Div | Op::Rsqrt | Op::Tanh);
                let lanes = if special {
                    1
                } else {
                    lanes(*op == Op::Mac, half, dst, machine)
                };
                Ok(Run {
                    pc,
                    op: *op,
                    dst,
                    a,
                    b,
                    sparse: None,
                    shape,
                    index: [0; 3],
                    column: 0,
                    width: width.min(lanes).max(1),
                    cost,
                    paid: 0,
                    count: *count,
                    phase: issue,
                    then,
                })
            }
            Vector::Axpy {
                y,
                x,
                list,
                modulo,
                divisor,
                y_step,
                x_step,
                count,
            } => {
                let x = arg(Operand::Desc(*x), false, true)?;
                let y = arg(Operand::Desc(*y), true, true)?;
                if !matches!((x, y), (Arg::Memory { .. }, Arg::Memory { .. })) {
                    return Err("both operands of an axpy must be in memory".into());
                }
                let (modulo, divisor) = (self.val(*modulo), self.val(*divisor));
                if modulo < 1 || divisor < 1 {
                    return Err(format!(
                        "an axpy's modulo and divisor are at least 1, not {modulo} and {divisor}"
                    ));
                }
                let source = match list {
                    List::Fabric { color, ty } => Source::Fabric {
                        queue: queue(net.core_in(self.pe, *color), *color)?,
                        color: *color,
                        ty: *ty,
                    },
                    List::Memory {
                        index,
                        value,
                        count,
                        ty,
                    } => {
                        let (index, value, left) = (self.val(*index), self.val(*value), self.val(*count));
                        let size = self.memory.len() as i64;
                        if left < 0
                            || index < 0
                            || value < 0
                            || left > size
                            || index > size - 2 * left
                            || value > size - ty.bytes() as i64 * left
                        {
                            return Err(format!(
                                "a list of {left} elements at {index} and {value} is outside the {size} bytes of buffers"
                            ));
                        }
                        Source::Memory {
                            index,
                            value,
                            left,
                            ty: *ty,
                        }
                    }
                };
                // each element's operands must keep the alignment that the width rests on
                let (y_step, x_step) = (self.val(*y_step), self.val(*x_step));
                let granule = (machine.pe.sram.port_bits / 8) as i64;
                if y_step % granule != 0 || x_step % granule != 0 {
                    width = 1;
                }
                let lanes = lanes(true, half, y, machine);
                let shape = shape.unwrap_or([0; 4]);
                if shape.contains(&0) {
                    return Err("the operands of an axpy have no elements".into());
                }
                let empty = matches!(source, Source::Memory { left: 0, .. });
                let mut run = Run {
                    pc,
                    op: Op::Mac,
                    dst: y,
                    a: Arg::Imm(0.0),
                    b: x,
                    sparse: Some(Sparse {
                        modulo,
                        divisor,
                        y_step,
                        x_step,
                        source,
                        value: 0.0,
                        last: empty,
                        index: None,
                    }),
                    shape,
                    index: [0; 3],
                    column: 0,
                    width: width.min(lanes).max(1),
                    cost: 1,
                    paid: 0,
                    count: *count,
                    phase: issue,
                    then,
                };
                if matches!(source, Source::Fabric { .. }) {
                    run.phase = Phase::Fetch;
                } else if empty {
                    run.shape[3] = 0;
                } else {
                    run.next_from_memory(self.memory, machine)?;
                }
                Ok(run)
            }
        }
    }
}

/// The bytes from the first to before the last of a memory operand.
pub(super) fn reach(at: i64, strides: &[i64; 4], shape: &[i64; 4], ty: Ty) -> (i64, i64) {
    let (mut low, mut high) = (at, at.saturating_add(ty.bytes() as i64));
    for (s, n) in strides.iter().zip(shape) {
        let reach = s.saturating_mul((n - 1).max(0));
        if reach < 0 {
            low = low.saturating_add(reach)
        } else {
            high = high.saturating_add(reach)
        }
    }
    (low, high)
}

/// Elements that a step takes from a wavelet or sends in one: what fits the link, and f32 accumulators can keep up with (rule M8).
fn fabric_width(ty: Ty, machine: &Machine) -> i64 {
    (machine.link.bits / ty.bits()).min(machine.pe.sram.port_bits / 32) as i64
}

/// Elements that a memory operand's accesses give a step (rule M8).
fn access_width(
    ty: Ty,
    base: i64,
    strides: &[i64; 4],
    shape: &[i64; 4],
    wide: bool,
    machine: &Machine,
) -> i64 {
    let element = ty.bytes() as i64;
    if strides[3] == 0 || shape[3] == 1 {
        return if strides[3] == 0 && shape[3] > 1 {
            i64::MAX
        } else {
            (machine.pe.sram.port_bits / ty.bits()) as i64
        };
    }
    if strides[3] != element {
        return 1;
    }
    let bytes = if wide {
        machine.pe.sram.port_bits as i64 / 8
    } else {
        4
    };
    let aligned = base % bytes == 0 && (0..3).all(|i| shape[i] <= 1 || strides[i] % bytes == 0);
    if aligned { bytes / element } else { 1 }
}

/// The base addresses of an instruction's memory sources that take part in conflicts.
#[derive(Default)]
struct Sources {
    at: [i64; 3],
    count: usize,
}

impl Sources {
    fn push(&mut self, at: i64) {
        self.at[self.count] = at;
        self.count += 1;
    }

    /// Rule M9: whether they conflict.
    fn conflict(&self, machine: &Machine) -> bool {
        let s = &machine.pe.sram;
        let bank = |a: i64| (a / s.bank_bytes as i64).rem_euclid(s.banks as i64) % s.conflict_modulus as i64;
        self.count > 2 || (self.count == 2 && bank(self.at[0]) == bank(self.at[1]))
    }
}

fn lanes(mac: bool, half: bool, dst: Arg, machine: &Machine) -> i64 {
    let l = &machine.pe.lanes;
    let narrow = matches!(dst, Arg::Memory { ty: Ty::F16, .. });
    (match (mac, half) {
        (true, false) => l.f32,
        (true, true) if narrow => l.f16_accumulate,
        (true, true) => l.f16,
        (false, false) => l.f32_simple,
        (false, true) => l.f16_simple,
    }) as i64
}

impl Run {
    /// A cycle of issue passes.
    pub(super) fn hold(&mut self) {
        if let Phase::Issue(left) = &mut self.phase {
            if *left > 0 {
                *left -= 1;
                return;
            }
            self.phase = if self.shape.contains(&0) {
                Phase::Done
            } else {
                Phase::Step
            };
        }
    }

    pub(super) fn may_step(&self) -> bool {
        matches!(self.phase, Phase::Step | Phase::Fetch)
    }

    /// Whether the next slot can be used: inputs there, room for what is sent.
    pub(super) fn ready(&self, net: &impl Ports, now: u64) -> Result<(), Wait> {
        if self.phase == Phase::Fetch {
            return match self.sparse {
                Some(Sparse {
                    source: Source::Fabric { queue, color, .. },
                    ..
                }) => {
                    if net.arrived(queue, now) {
                        Ok(())
                    } else {
                        Err(Wait::Input(color))
                    }
                }
                _ => Ok(()),
            };
        }
        if let Arg::Out { color, queue, .. } = self.dst
            && !net.has_room(queue, now)
        {
            return Err(Wait::Room(color));
        }
        for arg in [&self.a, &self.b] {
            if let Arg::In { color, queue, .. } = arg
                && !net.arrived(*queue, now)
            {
                return Err(Wait::Input(*color));
            }
        }
        Ok(())
    }

    /// The bytes from the first to before the last of all that an operand is in memory, of an axpy for the element at hand; none if it is
    /// elsewhere.
    pub(super) fn reaches(&self, arg: &Arg) -> Range {
        match arg {
            Arg::Memory { ty, strides, at, .. } => {
                let begun: i64 = (0..3).map(|d| strides[d] * self.index[d]).sum();
                reach(at - begun, strides, &self.shape, *ty)
            }
            _ => (0, 0),
        }
    }

    /// The bytes among which those are that it writes.
    pub(super) fn writes(&self) -> Range {
        match &self.dst {
            Arg::Memory {
                ty, base, strides, ..
            } if self.sparse.is_none() => reach(*base, strides, &self.shape, *ty),
            Arg::Out { .. } => (0, 0),
            // a list leads anywhere
            _ => (i64::MIN, i64::MAX),
        }
    }

    /// Uses one slot. Returns the elements handled. What it does is recorded as the given thread's.
    #[allow(clippy::too_many_arguments)] // one private call; a struct for it would only rename them
    pub(super) fn slot(
        &mut self,
        memory: &mut [u8],
        net: &mut impl Ports,
        rules: &Rules,
        now: u64,
        counters: &mut PeCounters,
        sent: &mut Option<(Color, Wavelet)>,
        mut record: Option<(&mut Record, u8)>,
    ) -> Result<i64, String> {
        counters.last_busy = now;
        if self.phase == Phase::Fetch {
            counters.slots[0] += 1;
            self.fetch(net, memory, rules, now, record)?;
            return Ok(0);
        }
        if let Some((record, thread)) = &mut record {
            record.slots(*thread, self, 1, memory);
        }
        counters.slots[self.count as usize] += 1;
        self.paid += 1;
        if self.paid < self.cost {
            return Ok(0);
        }
        self.paid = 0;
        let n = self.width.min(self.shape[3] - self.column);
        self.step(n, memory, net, now, sent)?;
        if sent.is_some() {
            counters.first_send.get_or_insert(now);
        } else {
            counters.last_write = Some(now);
        }
        if self.count != Count::None {
            counters.operations[self.count as usize - 1] += n as u64;
        }
        self.advance(n);
        if self.phase == Phase::Done {
            self.next(memory, rules.machine, record.map(|r| r.0))?;
        }
        Ok(n)
    }

    /// After the last step: an axpy goes on with its next sparse element, if there is one. Returns whether.
    pub(super) fn next(
        &mut self,
        memory: &[u8],
        machine: &Machine,
        record: Option<&mut Record>,
    ) -> Result<bool, String> {
        let Some(s) = &self.sparse else { return Ok(false) };
        if s.last {
            return Ok(false);
        }
        let from_memory = matches!(s.source, Source::Memory { .. });
        self.index = [0; 3];
        self.column = 0;
        if from_memory {
            self.phase = Phase::Issue(machine.pe.cost.issue);
            self.next_from_memory(memory, machine)?;
            if let Some(record) = record {
                record.element(self, memory);
            }
        } else {
            self.phase = Phase::Fetch;
        }
        Ok(true)
    }

    /// The next (index, value) of a list in memory.
    fn next_from_memory(&mut self, memory: &[u8], machine: &Machine) -> Result<(), String> {
        let s = self.sparse.as_mut().expect("an axpy");
        let Source::Memory {
            index,
            value,
            left,
            ty,
        } = &mut s.source
        else {
            unreachable!("memory list")
        };
        let i = u16::from_le_bytes([memory[*index as usize], memory[*index as usize + 1]]) as i64;
        s.value = num::load(memory, *ty, *value as usize);
        *index += 2;
        *value += ty.bytes() as i64;
        *left -= 1;
        s.last = *left == 0;
        self.element(i, memory.len() as i64, machine)
    }

    /// One wavelet of a sparse element from the fabric.
    fn fetch(
        &mut self,
        net: &mut impl Ports,
        memory: &[u8],
        rules: &Rules,
        now: u64,
        record: Option<(&mut Record, u8)>,
    ) -> Result<(), String> {
        let s = self.sparse.as_mut().expect("an axpy");
        let Source::Fabric { queue, ty, color } = s.source else {
            unreachable!("fabric list")
        };
        let w = net.pop(queue, now);
        if let Some((record, _)) = record {
            record.takes(queue, w, memory);
        }
        if w.elements != 1 {
            return Err(format!(
                "a sparse element of colour {color} came in a wavelet of {} elements",
                w.elements
            ));
        }
        let two = ty == Ty::F32 && rules.machine.link.bits < 48;
        let index = match s.index {
            None if two => {
                s.index = Some((w.bits & 0xffff) as i64);
                return Ok(());
            }
            None => (w.bits >> if ty == Ty::F16 { 16 } else { 32 }) as i64 & 0xffff,
            Some(i) => i,
        };
        s.index = None;
        s.value = num::from_bits(ty, w.bits, 0);
        s.last = w.flag;
        if rules.machine.skip.zero_operands && s.value == 0.0 {
            self.phase = if s.last { Phase::Done } else { Phase::Fetch };
            return Ok(());
        }
        self.phase = Phase::Issue(rules.machine.pe.cost.issue);
        self.element(index, memory.len() as i64, rules.machine)
    }

    /// Points the operands at a sparse element's accumulator and operand, and decides their conflict.
    fn element(&mut self, index: i64, size: i64, machine: &Machine) -> Result<(), String> {
        let s = self.sparse.as_ref().expect("an axpy");
        let (y_at, x_at) = (
            index.rem_euclid(s.modulo).saturating_mul(s.y_step),
            index.div_euclid(s.divisor).saturating_mul(s.x_step),
        );
        self.a = Arg::Imm(s.value);
        let mut sources = Sources::default();
        for (arg, offset) in [(&mut self.dst, y_at), (&mut self.b, x_at)] {
            let Arg::Memory {
                ty,
                base,
                strides,
                at,
            } = arg
            else {
                unreachable!("checked at issue")
            };
            *at = base.saturating_add(offset);
            let (low, high) = reach(*at, strides, &self.shape, *ty);
            if low < 0 || high > size {
                return Err(format!(
                    "index {index} of a list points to bytes {low} to {high}, outside the {size} bytes of buffers"
                ));
            }
            if strides[3] != 0 || self.shape[3] == 1 {
                sources.push(*at);
            }
        }
        self.cost = if sources.conflict(machine) { 2 } else { 1 };
        Ok(())
    }

    /// The slots that its steps still need before it ends, or, of an axpy, before the next sparse element.
    pub(super) fn slots_left(&self) -> u64 {
        let row = |from: i64| ((self.shape[3] - from) as u64).div_ceil(self.width as u64);
        let mut rows = 0;
        for d in 0..3 {
            rows = rows * self.shape[d] + (self.shape[d] - 1 - self.index[d]);
        }
        let steps = row(self.column) + rows as u64 * row(0);
        steps * self.cost as u64 - self.paid as u64
    }

    /// The fewest slots after which it has handled so many more elements.
    pub(super) fn slots_for(&self, elements: i64) -> u64 {
        ((elements as u64).div_ceil(self.width as u64).max(1) * self.cost as u64)
            .saturating_sub(self.paid as u64)
    }

    /// Slots a step.
    pub(super) fn cost(&self) -> u32 {
        self.cost
    }

    /// `cycles` cycles of issue pass, if it issues.
    pub(super) fn hold_for(&mut self, cycles: u32) {
        if let Phase::Issue(left) = &mut self.phase {
            *left -= cycles;
        }
    }

    /// The arithmetic of one step of `n` elements.
    fn step(
        &mut self,
        n: i64,
        memory: &mut [u8],
        net: &mut impl Ports,
        now: u64,
        sent: &mut Option<(Color, Wavelet)>,
    ) -> Result<(), String> {
        let mut taken = [0u64; 2];
        for (arg, bits) in [&self.a, &self.b].into_iter().zip(&mut taken) {
            if let Arg::In { queue, color, .. } = arg {
                let w = net.pop(*queue, now);
                if w.elements as i64 != n {
                    return Err(format!(
                        "a wavelet of colour {color} carries {} elements, the step takes {n}: sender and receiver disagree (rule M8)",
                        w.elements
                    ));
                }
                *bits = w.bits;
            }
        }
        // where an innermost row starts, for each operand; its elements follow at the inner stride
        let (op, base) = (self.op, self.column);
        let source = |arg: &Arg, memory: &[u8], bits: u64, i: i64| -> f32 {
            match arg {
                Arg::Memory { ty, strides, at, .. } => {
                    num::load(memory, *ty, (at + strides[3] * (base + i)) as usize)
                }
                Arg::In { ty, .. } => num::from_bits(*ty, bits, i as u32),
                Arg::Imm(x) => *x,
                Arg::Out { .. } => unreachable!("never a source"),
            }
        };
        let mut bits = 0u64;
        for i in 0..n {
            let a = source(&self.a, memory, taken[0], i);
            let b = source(&self.b, memory, taken[1], i);
            match &self.dst {
                Arg::Memory { ty, strides, at, .. } => {
                    let at = (at + strides[3] * (base + i)) as usize;
                    let value = match op {
                        Op::Mac => num::mac(*ty, num::load(memory, *ty, at), a, b),
                        op => num::apply(op, a, b),
                    };
                    num::store(memory, *ty, at, value);
                }
                Arg::Out { ty, .. } => {
                    bits |= num::to_bits(*ty, num::apply(op, a, b)) << (ty.bits() as i64 * i)
                }
                _ => unreachable!("never a destination"),
            }
        }
        if let Arg::Out { color, flag, .. } = self.dst {
            let last = self.column + n == self.shape[3] && (0..3).all(|d| self.index[d] + 1 == self.shape[d]);
            *sent = Some((
                color,
                Wavelet {
                    bits,
                    elements: n as u8,
                    flag: flag && last,
                },
            ));
        }
        Ok(())
    }

    /// Moves to the next step's place, or to the end.
    pub(super) fn advance(&mut self, n: i64) {
        self.column += n;
        if self.column < self.shape[3] {
            return;
        }
        self.column = 0;
        for d in (0..3).rev() {
            self.index[d] += 1;
            let wraps = self.index[d] == self.shape[d];
            let back = if wraps { -(self.shape[d] - 1) } else { 1 };
            for arg in [&mut self.dst, &mut self.a, &mut self.b] {
                if let Arg::Memory { strides, at, .. } = arg {
                    *at += strides[d] * back;
                }
            }
            if !wraps {
                return;
            }
            self.index[d] = 0;
        }
        self.phase = Phase::Done;
    }
}
