//! What one thread does by itself, over several instructions: vector instructions whose operands are all in memory,
//! the stored weights of an axpy one after another, and scalar code between them. As long as no other thread of the core wants the
//! slot, none of it depends on anything outside the core. [`Core::ahead`] counts the cycles, [`Core::run_ahead`] executes them.
//!
//! It ends before whatever others may notice or decide: an instruction that moves wavelets, a microthread's last step, a
//! hand-over to a microthread, a `wait` that still waits.

use super::bulk::Scratch;
use super::vector::{Arg, Phase, Run, Source};
use super::*;
use crate::engine::network::NONE;

/// Instructions that are looked at at most: others may interrupt, and it is then done again.
const FAR: usize = 64;

/// The same of what is executed at once.
const FAR_ALONE: usize = 1024;

/// Cycles of scalar code that are executed at once: it may go on for ever.
const SCALAR_ALONE: u64 = 1024;

/// Stored weights that are looked at at most.
const FAR_IN_LIST: usize = 256;

impl Core<'_> {
    /// For how many cycles thread `t` goes on by itself, if it is the only one that wants the slot; 0 if that can't be said. Something else
    /// ends it after `most` cycles: it need not be looked at much further.
    pub(super) fn ahead(&self, rules: &Rules, t: u8, most: u64) -> u64 {
        if t > 0 {
            let run = self.micro[t as usize].queue.front();
            // its last step makes it leave the queue
            return run.map_or(0, |run| {
                run.ahead(&self.memory, rules.machine, most).0.saturating_sub(1)
            });
        }
        match &self.main {
            Main::Vector(run) => {
                let (cycles, ends) = run.ahead(&self.memory, rules.machine, most);
                match ends && (1..most).contains(&cycles) {
                    true => cycles + self.code_ahead(rules, self.pc + 1, None, run.writes(), most - cycles),
                    false => cycles,
                }
            }
            Main::Scalar(left) => self.code_ahead(rules, self.pc, Some(*left), NOTHING, most),
            Main::Ready => self.code_ahead(rules, self.pc, None, NOTHING, most),
            _ => 0,
        }
    }

    /// What the main thread comes to next, if it is between two instructions.
    pub(super) fn next_instruction(&self) -> Next {
        let mut pc = self.pc;
        while let Some(Instr::Wait(t, n)) = self.block.code.get(pc as usize)
            && self.is_over(*t, n.map(|n| self.val(n)))
        {
            pc += 1;
        }
        match self.block.code.get(pc as usize) {
            Some(Instr::Vector(v)) if self.state().is_apart(v) => Next::InMemory,
            Some(instr) if is_scalar(instr) => Next::Scalar,
            _ => Next::Other,
        }
    }

    /// Whether nobody waits any more for a microthread's end, or for a number of its elements.
    fn is_over(&self, t: u8, n: Option<i64>) -> bool {
        let m = &self.micro[t as usize];
        match n {
            Some(n) => m.elements as i64 >= n,
            None => m.queue.is_empty(),
        }
    }

    /// The cycles of the code from `pc` on, of whose first instruction `left` slots are left if it has begun. Of SRAM all is what it will be
    /// but for the bytes that are `stale`.
    fn code_ahead(
        &self,
        rules: &Rules,
        mut pc: u32,
        mut left: Option<u32>,
        mut stale: Range,
        most: u64,
    ) -> u64 {
        let cost = &rules.machine.pe.cost;
        let mut registers = self.registers;
        let mut changed: Vec<(u8, Desc)> = Vec::new();
        let mut cycles = 0;
        for _ in 0..FAR {
            let Some(instr) = self.block.code.get(pc as usize).filter(|_| cycles < most) else {
                break;
            };
            let state = State {
                registers: &registers,
                changed: &changed,
                ..self.state()
            };
            let val = |v: &Val| state.val(*v);
            if left.is_none() && !is_scalar(instr) {
                match instr {
                    Instr::Wait(t, n) if self.is_over(*t, n.as_ref().map(val)) => {}
                    Instr::Vector(v) if state.is_apart(v) => {
                        // a list that is still to be written
                        if matches!(v, Vector::Axpy { .. }) && stale != NOTHING {
                            break;
                        }
                        let Ok(run) = state.start(v, pc, None, &Apart, rules) else {
                            break;
                        };
                        let (all, ends) = run.ahead(&self.memory, rules.machine, most - cycles);
                        cycles += all;
                        if !ends {
                            break;
                        }
                        let writes = run.writes();
                        stale = match stale {
                            NOTHING => writes,
                            stale => (stale.0.min(writes.0), stale.1.max(writes.1)),
                        };
                    }
                    _ => break,
                }
                pc += 1;
                continue;
            }
            let here = left.take().unwrap_or_else(|| slots(instr, cost)) as u64;
            pc += 1;
            match instr {
                Instr::Set(d, a) => registers[*d as usize] = wrap(val(a)),
                Instr::Add(d, a, b) => registers[*d as usize] = wrap(val(a).wrapping_add(val(b))),
                Instr::Sub(d, a, b) => registers[*d as usize] = wrap(val(a).wrapping_sub(val(b))),
                Instr::Mul(d, a, b) => registers[*d as usize] = wrap(val(a).wrapping_mul(val(b))),
                Instr::Load(word, d, a, b) => {
                    let at = val(a).saturating_add(val(b));
                    let (first, end) = word_at(at);
                    match self.load(*word, at) {
                        Ok(value) if end <= stale.0 || stale.1 <= first => registers[*d as usize] = value,
                        // what follows may depend on it
                        _ => return cycles + here - 1,
                    }
                }
                Instr::Store(..) => stale = (i64::MIN, i64::MAX),
                Instr::Jump(to) => pc = *to,
                Instr::Branch(cond, a, b, to) if cond.holds(val(a), val(b)) => pc = *to,
                Instr::Branch(..) => {}
                Instr::Desc(..) | Instr::Base(..) | Instr::Advance(..) => match state.redescribed(instr) {
                    Ok(new) => changed.push(new),
                    // it faults when it is executed
                    Err(_) => return cycles + here,
                },
                Instr::Activate(_) | Instr::Block(_) | Instr::Unblock(_) => {}
                // already fetched: its last slot hands something over
                _ => return cycles + here - 1,
            }
            cycles += here;
        }
        cycles
    }

    /// Executes from cycle `from` on what the main thread does by itself, if there is no other thread: then nothing can interrupt it.
    /// Returns for how many cycles. `Err` for a fault.
    pub fn run_alone(&mut self, rules: &Rules, from: u64, scratch: &mut Scratch) -> Result<u64, ()> {
        if self.queued > 0 {
            return Ok(0);
        }
        scratch.defers = self.record.is_none(); // a record reads memory
        let mut cycles = 0;
        let mut done = Ok(());
        for _ in 0..FAR_ALONE {
            let n = match &self.main {
                Main::Vector(run) => {
                    if run.sparse.is_some() {
                        scratch.settle(&mut self.memory);
                    }
                    run.ahead(&self.memory, rules.machine, u64::MAX).0
                }
                // its last slot may hand something over
                Main::Scalar(_) if !self.block.code.get(self.pc as usize).is_some_and(is_scalar) => 0,
                Main::Scalar(_) => SCALAR_ALONE,
                Main::Ready => match self.next_instruction() {
                    Next::Scalar => SCALAR_ALONE,
                    Next::InMemory => {
                        done = self.begin(rules, scratch);
                        if done.is_err() {
                            break;
                        }
                        continue;
                    }
                    Next::Other => 0,
                },
                _ => 0,
            };
            if n == 0 {
                break;
            }
            let used = match &self.main {
                Main::Vector(_) => self
                    .run_deferring(rules, 0, from + cycles, n, scratch)
                    .map(|()| n),
                _ => self.run_scalar(rules, from + cycles, n, scratch),
            };
            match used {
                Ok(used) => cycles += used,
                Err(()) => {
                    done = Err(());
                    break;
                }
            }
        }
        scratch.defers = false;
        scratch.settle(&mut self.memory);
        done.map(|()| cycles)
    }

    /// Executes `cycles` of the cycles that [`Self::ahead`] counted for thread `t`, from cycle `from` on. `Err` for a fault.
    pub(super) fn run_ahead(
        &mut self,
        rules: &Rules,
        t: u8,
        from: u64,
        cycles: u64,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        scratch.defers = self.record.is_none(); // a record reads memory
        let done = self.run_deferring(rules, t, from, cycles, scratch);
        scratch.defers = false;
        scratch.settle(&mut self.memory);
        done
    }

    fn run_deferring(
        &mut self,
        rules: &Rules,
        t: u8,
        from: u64,
        cycles: u64,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        let (mut none, mut out) = Default::default();
        let mut left = cycles;
        while left > 0 {
            let now = from + (cycles - left);
            if t == 0 && matches!(self.main, Main::Ready) && self.next_instruction() == Next::InMemory {
                self.begin(rules, scratch)?;
            }
            let Core {
                micro,
                main,
                memory,
                record,
                counters,
                ..
            } = self;
            let mut record = record.as_deref_mut();
            let (run, elements) = match (t, &mut *main) {
                (0, Main::Vector(run)) => (&mut **run, &mut 0),
                (0, _) => {
                    left -= self.run_scalar(rules, now, left, scratch)?;
                    continue;
                }
                (t, _) => {
                    let m = &mut micro[t as usize];
                    (m.queue.front_mut().expect("it goes on"), &mut m.elements)
                }
            };
            let recorded = record.as_deref_mut().map(|r| (r, t));
            if run.sparse.is_some() {
                scratch.settle(memory);
            }
            let listed = run.leap_list(
                now,
                left,
                memory,
                rules.machine,
                counters,
                elements,
                scratch,
                recorded,
            );
            if listed > 0 {
                left -= listed;
                self.class = Class::Busy;
                continue;
            }
            if let Phase::Issue(issue) = &mut run.phase {
                let n = left.min(*issue as u64);
                *issue -= n as u32;
                left -= n;
                counters.classes[Class::Launch as usize] += n;
                self.class = Class::Launch;
                if left == 0 {
                    break;
                }
                run.phase = Phase::Step;
            }
            let n = left.min(run.slots_left());
            left -= n;
            counters.classes[Class::Busy as usize] += n;
            self.class = Class::Busy;
            let now = from + (cycles - left) - n;
            counters.last_busy = now + n - 1;
            if let Some(record) = &mut record {
                record.slots(t, run, n, memory);
            }
            *elements += run.leap(now, n, memory, &mut none, &mut out, counters, scratch)?;
            if run.phase == Phase::Done && !run.next(memory, rules.machine, record).map_err(|_| ())? {
                debug_assert!(t == 0, "a microthread's last step is not ahead");
                self.pc += 1;
                self.main = Main::Ready;
            }
        }
        Ok(())
    }

    /// The main thread begins an instruction in memory.
    fn begin(&mut self, rules: &Rules, scratch: &mut Scratch) -> Result<(), ()> {
        while let Some(Instr::Wait(..)) = self.block.code.get(self.pc as usize) {
            self.pc += 1;
        }
        let Some(Instr::Vector(v)) = self.block.code.get(self.pc as usize) else {
            return Err(());
        };
        if matches!(v, Vector::Axpy { .. }) {
            scratch.settle(&mut self.memory);
        }
        let run = self
            .state()
            .start(v, self.pc, None, &Apart, rules)
            .map_err(|_| ())?;
        if let Some(record) = &mut self.record {
            record.element(&run, &self.memory);
        }
        self.main = Main::Vector(Box::new(run));
        Ok(())
    }

    /// Scalar code of the main thread, for at most `most` cycles. Returns for how many.
    fn run_scalar(&mut self, rules: &Rules, now: u64, most: u64, scratch: &mut Scratch) -> Result<u64, ()> {
        let mut used = 0;
        while used < most {
            if let Main::Ready = self.main {
                match self.block.code.get(self.pc as usize) {
                    Some(instr) if is_scalar(instr) => {
                        self.main = Main::Scalar(slots(instr, &rules.machine.pe.cost));
                    }
                    Some(Instr::Wait(t, n)) if self.is_over(*t, n.map(|n| self.val(n))) => {
                        self.pc += 1;
                        continue;
                    }
                    _ => break,
                }
            }
            let Main::Scalar(left) = &mut self.main else {
                unreachable!("scalar code")
            };
            let n = (most - used).min(*left as u64);
            *left -= n as u32;
            used += n;
            if *left == 0 {
                self.main = Main::Ready;
                let pc = self.pc;
                self.pc += 1;
                if let Instr::Load(..) | Instr::Store(..) = self.block.code[pc as usize] {
                    scratch.settle(&mut self.memory);
                }
                self.scalar(pc, &Apart, rules).map_err(|_| ())?;
            }
        }
        if used == 0 {
            return Err(());
        }
        self.counters.classes[Class::Busy as usize] += used;
        self.counters.slots[5] += used;
        self.counters.last_busy = now + used - 1;
        self.class = Class::Busy;
        Ok(used)
    }
}

/// What a thread between two instructions comes to next, behind what it need not wait for any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Scalar,
    /// A vector instruction whose operands are all in memory.
    InMemory,
    Other,
}

/// Whether it takes slots of its own, and may begin whatever the other threads do.
pub(super) fn is_scalar(instr: &Instr) -> bool {
    !matches!(
        instr,
        Instr::Vector(_) | Instr::Async(..) | Instr::Wait(..) | Instr::End | Instr::Halt
    )
}

impl State<'_> {
    /// Whether the operands of an instruction are all in memory, an axpy's list too.
    fn is_apart(&self, v: &Vector) -> bool {
        let apart = |d: u8| {
            let place = self.get_quietly(d).map(|desc| desc.place);
            matches!(place, Some(DescPlace::Memory { .. }))
        };
        let operand = |o: &Operand| match o {
            Operand::Desc(d) => apart(*d),
            Operand::Imm(_) | Operand::Reg(_) => true,
        };
        match v {
            Vector::Map { dst, a, b, .. } => apart(*dst) && operand(a) && b.as_ref().is_none_or(operand),
            Vector::Axpy { y, x, list, .. } => apart(*y) && apart(*x) && matches!(list, List::Memory { .. }),
        }
    }

    /// The descriptor that an instruction sets, and to what.
    fn redescribed(&self, instr: &Instr) -> Result<(u8, Desc), String> {
        let based = |d: u8, to: &dyn Fn(i64) -> i64| {
            let mut desc = self.get(d)?;
            let DescPlace::Memory { base, .. } = &mut desc.place else {
                return Err(format!("d{d} is not a memory descriptor"));
            };
            *base = to(*base);
            Ok((d, desc))
        };
        match instr {
            Instr::Desc(d, descriptor) => Ok((*d, self.descriptor(descriptor)?)),
            Instr::Base(d, a) => based(*d, &|_| self.val(*a)),
            Instr::Advance(d, a) => based(*d, &|base| base.saturating_add(self.val(*a))),
            _ => Err("sets no descriptor".into()),
        }
    }
}

impl Run {
    /// Whether its operands are all in memory, an axpy's list too.
    fn is_apart(&self) -> bool {
        let apart = |arg: &Arg| matches!(arg, Arg::Memory { .. } | Arg::Imm(_));
        let list = self
            .sparse
            .as_ref()
            .is_none_or(|s| matches!(s.source, Source::Memory { .. }));
        list && apart(&self.a) && apart(&self.b) && apart(&self.dst)
    }

    /// The cycles of its issue and steps, of an axpy for some stored weights, and whether that is all of it.
    fn ahead(&self, memory: &[u8], machine: &Machine, most: u64) -> (u64, bool) {
        if !self.is_apart() || self.shape.contains(&0) {
            return (0, false);
        }
        let issue = match self.phase {
            Phase::Issue(left) => left as u64,
            Phase::Step => 0,
            Phase::Fetch | Phase::Done => return (0, false),
        };
        let here = issue + self.slots_left();
        let Some((list, ends)) = self.rest_of_list(memory, machine, FAR_IN_LIST, most.saturating_sub(here))
        else {
            return (here, true);
        };
        (here + list, ends)
    }
}

/// The network of code that has nothing to do with it.
struct Apart;

impl Ports for Apart {
    fn core_in(&self, _: u32, _: Color) -> u32 {
        NONE
    }
    fn core_out(&self, _: u32, _: Color) -> u32 {
        NONE
    }
    fn arrived(&self, _: u32, _: u64) -> bool {
        false
    }
    fn has_room(&self, _: u32, _: u64) -> bool {
        false
    }
    fn pop(&mut self, _: u32, _: u64) -> Wavelet {
        unreachable!("no queue")
    }
    fn send(&mut self, _: u32, _: u64, _: Wavelet) {
        unreachable!("no queue")
    }
}
