//! One PE's core: threads, the step slot, scalar code and tasks (rules M10 to M12, M18). Vector instructions are in `vector`.

mod ahead;
mod bulk;
mod leap;
mod list;
mod lockstep;
mod record;
mod uniform;
mod vector;

use super::{Class, PeCounters};
use crate::machine::{Cost, Machine};

use crate::program::*;
pub(super) use bulk::Scratch;
pub(super) use leap::{Flows, Head, Outlook, Room};
pub(super) use lockstep::{Input, LANES, Memory};
pub(super) use record::{Op as Recorded, Record};
use std::collections::VecDeque;
use vector::Phase;
pub(super) use vector::{Arg, Run};

/// What a core sees of the network: its own queues, by number.
pub(super) trait Ports {
    /// The queue into this core, or `NONE`.
    fn core_in(&self, pe: u32, color: Color) -> u32;
    /// The queue out of this core, or `NONE`.
    fn core_out(&self, pe: u32, color: Color) -> u32;
    /// Whether the queue's first wavelet has arrived.
    fn arrived(&self, queue: u32, now: u64) -> bool;
    /// Whether the queue has room at the start of the cycle.
    fn has_room(&self, queue: u32, now: u64) -> bool;
    /// Takes the first wavelet, which must have arrived.
    fn pop(&mut self, queue: u32, now: u64) -> Wavelet;
    /// The core's step of this cycle puts a wavelet into its output queue.
    fn send(&mut self, queue: u32, now: u64, wavelet: Wavelet);
}

/// A descriptor register's contents, padded in front to four extents.
#[derive(Clone, Copy, Debug)]
struct Desc {
    ty: Ty,
    shape: [i64; 4],
    place: DescPlace,
}

#[derive(Clone, Copy, Debug)]
enum DescPlace {
    /// Base address and strides in bytes.
    Memory {
        base: i64,
        strides: [i64; 4],
        wide: bool,
    },
    In(Color),
    Out(Color, bool),
}

/// What a thread that can't go on waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Input(Color),
    Room(Color),
    /// Another thread.
    Thread(u8),
}

enum Main {
    Idle,
    Launching(u32),
    Ready,
    Scalar(u32),
    Vector(Box<Run>),
    Halted,
}

#[derive(Default)]
struct Micro {
    queue: VecDeque<Run>,
    elements: u64,
}

pub(super) struct Core<'p> {
    pub region: u32,
    pub block_index: u32,
    block: &'p Block,
    params: Vec<i64>,
    memory: Vec<u8>,
    /// SRAM above the block's buffers, which it cannot reach.
    above: Vec<u8>,
    /// What it does, for those that do the same in other columns.
    pub record: Option<Box<Record>>,
    registers: [i64; 16],
    /// Up to the last one that was set.
    descriptors: Vec<Option<Desc>>,
    active: Vec<bool>,
    blocked: Vec<bool>,
    pc: u32,
    main: Main,
    micro: Vec<Micro>,
    /// Vector instructions in all microthreads' queues.
    queued: usize,
    pe: u32,
    pub counters: PeCounters,
    /// What the core does in the cycle that was visited last.
    pub class: Class,
}

/// What operands are resolved with.
#[derive(Clone, Copy)]
struct State<'a> {
    registers: &'a [i64; 16],
    params: &'a [i64],
    descriptors: &'a [Option<Desc>],
    /// Descriptors that differ from these, the last one of a number counts.
    changed: &'a [(u8, Desc)],
    memory: &'a [u8],
    pe: u32,
}

/// A fault: the instruction's index and what is wrong.
pub(super) type Fault = (u32, String);

/// What one cycle of a core did.
pub(super) struct Cycle {
    /// Anything changed, or will by itself.
    pub event: bool,
    /// A wavelet sent, for probes.
    pub sent: Option<(Color, Wavelet)>,
}

/// What the machine description says, in the form that a core needs.
#[derive(Clone, Copy)]
pub(super) struct Rules<'m> {
    pub machine: &'m Machine,
}

/// The slots of a scalar instruction (rule M11).
fn slots(instr: &Instr, cost: &Cost) -> u32 {
    match instr {
        Instr::Load(..) | Instr::Store(..) => cost.load,
        Instr::Mul(..) => cost.multiply,
        Instr::Jump(_) | Instr::Branch(..) => cost.branch,
        Instr::Desc(..) => cost.descriptor,
        _ => cost.add,
    }
}

/// From an address to before another one.
type Range = (i64, i64);

const NOTHING: Range = (0, 0);

/// The bytes that a load or store may touch.
fn word_at(at: i64) -> Range {
    (at, at.saturating_add(4))
}

/// Registers hold 32 bits.
fn wrap(n: i64) -> i64 {
    n as i32 as i64
}

impl Cond {
    fn holds(self, a: i64, b: i64) -> bool {
        match self {
            Cond::Eq => a == b,
            Cond::Ne => a != b,
            Cond::Lt => a < b,
            Cond::Ge => a >= b,
        }
    }
}

/// How much of an SRAM a block's buffers need, and how much is left below its code, which is at the top: what was there before is lost.
pub(super) fn extent(block: &Block, machine: &Machine) -> (usize, usize) {
    let code = block.code.len() * machine.pe.instruction_bytes as usize;
    let ends = block.memory.iter().map(|b| b.address as usize + b.bytes as usize);
    let free = (machine.pe.sram_bytes as usize).saturating_sub(code);
    (ends.max().unwrap_or(0), free)
}

/// The SRAM that a block finds: its buffers' bytes, 0 where nothing was left, and what is above them.
fn split(mut sram: Vec<u8>, block: &Block, machine: &Machine) -> (Vec<u8>, Vec<u8>) {
    let (bytes, free) = extent(block, machine);
    sram.truncate(free);
    let above = sram.split_off(bytes.min(sram.len()));
    if sram.is_empty() {
        // fresh memory is 0 without being touched
        sram = vec![0; bytes];
    }
    sram.resize(bytes, 0);
    (sram, above)
}

impl<'p> Core<'p> {
    /// A core at the start of a stage; `sram` is what the stages before left, and 0 beyond.
    #[allow(clippy::too_many_arguments)] // one call; a struct for it would only rename them
    pub fn new(
        stage: &'p Stage,
        region: u32,
        block_index: u32,
        x: u32,
        y: u32,
        pe: u32,
        machine: &Machine,
        sram: Vec<u8>,
    ) -> Core<'p> {
        let block = &stage.regions[region as usize].blocks[block_index as usize];
        let (memory, above) = split(sram, block, machine);
        Core {
            region,
            block_index,
            block,
            params: block
                .params
                .iter()
                .map(|p| p.value.at(x as i64, y as i64))
                .collect(),
            memory,
            above,
            record: None,
            registers: [0; 16],
            descriptors: Vec::new(),
            active: block.tasks.iter().map(|t| t.trigger == Trigger::Start).collect(),
            blocked: block.tasks.iter().map(|t| t.blocked).collect(),
            pc: 0,
            main: Main::Idle,
            micro: (0..machine.pe.threads).map(|_| Micro::default()).collect(),
            queued: 0,
            pe,
            counters: PeCounters::default(),
            class: Class::Idle,
        }
    }

    /// What it did since it was asked before, if that is recorded; after the `last` time others have memory of their own.
    pub fn recorded(&mut self, last: bool) -> Option<Vec<Recorded>> {
        let record = self.record.as_mut()?;
        Some(record.take(&self.memory, last))
    }

    /// Its code.
    pub fn block(&self) -> &'p Block {
        self.block
    }

    /// The SRAM that the stage leaves.
    pub fn into_sram(mut self) -> Vec<u8> {
        self.memory.append(&mut self.above);
        self.memory
    }

    /// Whether the main thread has halted and the microthreads are idle.
    pub fn halted(&self) -> bool {
        matches!(self.main, Main::Halted) && self.queued == 0
    }

    /// What its threads wait for, given the state at `now`: thread number, instruction, reason.
    pub fn waits(&self, net: &impl Ports, now: u64) -> Vec<(u8, u32, Wait)> {
        let mut all = Vec::new();
        for (t, m) in self.micro.iter().enumerate() {
            if let Some(run) = m.queue.front()
                && let Err(w) = run.ready(net, now)
            {
                all.push((t as u8, run.pc, w));
            }
        }
        match &self.main {
            Main::Vector(run) => all.extend(run.ready(net, now).err().map(|w| (0, run.pc, w))),
            Main::Ready => match &self.block.code[self.pc as usize] {
                Instr::Wait(t, _) | Instr::Async(t, ..) => all.push((0, self.pc, Wait::Thread(*t))),
                _ => {}
            },
            Main::Idle => {
                for (i, task) in self.block.tasks.iter().enumerate() {
                    if let (Trigger::Data(c), false) = (task.trigger, self.blocked[i]) {
                        all.push((0, task.entry, Wait::Input(c)));
                    }
                }
            }
            _ => {}
        }
        all
    }

    /// Whether the main thread idles for good: no task can start without an activation that nobody will give.
    pub fn idle_main(&self) -> bool {
        matches!(self.main, Main::Idle)
    }

    fn state(&self) -> State<'_> {
        State {
            registers: &self.registers,
            params: &self.params,
            descriptors: &self.descriptors,
            changed: &[],
            memory: &self.memory,
            pe: self.pe,
        }
    }

    fn val(&self, v: Val) -> i64 {
        self.state().val(v)
    }

    /// One cycle: threads that hold, the main thread's next instruction, the step slot, the class.
    pub fn cycle(&mut self, net: &mut impl Ports, rules: &Rules, now: u64) -> Result<Cycle, Fault> {
        let mut event = false;
        let mut launch = false;
        // microthreads that issue; those that may step are looked at below
        let busy = if self.queued > 0 { self.micro.len() } else { 0 };
        for m in &mut self.micro[..busy] {
            if let Some(run) = m.queue.front_mut() {
                if let Phase::Issue(left) = run.phase
                    && left > 0
                {
                    launch = true;
                }
                run.hold();
            }
        }
        let main_wait = self.fetch(net, rules, now, &mut launch, &mut event)?;
        event |= launch;
        // rule M10: of the ready threads one gets the slot
        let mut waits: [Option<Wait>; 2] = [None, None];
        let mut note = |w: Wait| match w {
            Wait::Room(_) => waits[0] = Some(w),
            Wait::Input(_) => waits[1] = Some(w),
            Wait::Thread(_) => {}
        };
        if let Some(w) = main_wait {
            note(w);
        }
        let mut winner = None;
        let main_ready = match &self.main {
            Main::Scalar(_) => true,
            Main::Vector(run) if run.may_step() => match run.ready(net, now) {
                Ok(()) => true,
                Err(w) => {
                    note(w);
                    false
                }
            },
            _ => false,
        };
        if main_ready && !rules.machine.pe.moves_first {
            winner = Some(0);
        }
        for (t, m) in self.micro[..busy].iter().enumerate() {
            if let Some(run) = m.queue.front()
                && run.may_step()
            {
                match run.ready(net, now) {
                    Ok(()) => winner = winner.or(Some(t)),
                    Err(w) => note(w),
                }
            }
        }
        if main_ready && winner.is_none() {
            winner = Some(0);
        }
        let mut sent = None;
        if let Some(t) = winner {
            event = true;
            if t == 0 {
                self.main_slot(net, rules, now, &mut sent)?;
            } else {
                let Core {
                    micro,
                    memory,
                    record,
                    counters,
                    ..
                } = self;
                let run = micro[t].queue.front_mut().expect("it was ready");
                let record = record.as_deref_mut().map(|r| (r, t as u8));
                let done = run
                    .slot(memory, net, rules, now, counters, &mut sent, record)
                    .map_err(|m| (run.pc, m))?;
                micro[t].elements += done as u64;
            }
        }
        // instructions of no elements end with their issue
        for m in &mut self.micro[..busy] {
            if m.queue.front().is_some_and(|run| run.phase == Phase::Done) {
                let run = m.queue.pop_front().expect("just looked");
                self.queued -= 1;
                event = true;
                if let Some(task) = run.then {
                    self.active[task as usize] = true;
                }
            }
        }
        self.class = if winner.is_some() {
            Class::Busy
        } else if launch {
            Class::Launch
        } else if waits[0].is_some() {
            Class::WaitRoom
        } else if waits[1].is_some() {
            Class::WaitInput
        } else {
            Class::Idle
        };
        if let Some((color, w)) = sent {
            let queue = net.core_out(self.pe, color);
            net.send(queue, now, w);
        }
        Ok(Cycle { event, sent })
    }

    /// Advances the main thread to something that takes time. Returns what it waits for.
    fn fetch(
        &mut self,
        net: &mut impl Ports,
        rules: &Rules,
        now: u64,
        launch: &mut bool,
        event: &mut bool,
    ) -> Result<Option<Wait>, Fault> {
        let cost = &rules.machine.pe.cost;
        let mut launched = false;
        loop {
            match &mut self.main {
                Main::Halted | Main::Scalar(_) => return Ok(None),
                Main::Launching(left) => {
                    if *left > 0 {
                        *left -= 1;
                        *launch = true;
                        return Ok(None);
                    }
                    self.main = Main::Ready;
                }
                Main::Vector(run) => {
                    if matches!(run.phase, Phase::Issue(left) if left > 0) {
                        *launch = true;
                    }
                    run.hold();
                    if run.phase == Phase::Done {
                        self.pc += 1;
                        self.main = Main::Ready;
                        continue;
                    }
                    return Ok(None);
                }
                Main::Idle => {
                    if launched {
                        return Ok(None);
                    }
                    match self.choose_task(net, now) {
                        Ok(entry) => {
                            *event = true;
                            launched = true;
                            self.pc = entry;
                            self.main = Main::Launching(cost.task_launch);
                        }
                        Err(wait) => return Ok(wait),
                    }
                }
                Main::Ready => {
                    let block = self.block;
                    let Some(instr) = block.code.get(self.pc as usize) else {
                        return Err((self.pc, "the code ends without `end` or `halt`".into()));
                    };
                    match instr {
                        Instr::Wait(t, n) => {
                            let m = &self.micro[*t as usize];
                            let done = match n {
                                Some(n) => m.elements as i64 >= self.val(*n),
                                None => m.queue.is_empty(),
                            };
                            if !done {
                                return Ok(m
                                    .queue
                                    .front()
                                    .filter(|r| r.may_step())
                                    .and_then(|r| r.ready(net, now).err()));
                            }
                            *event = true;
                            self.pc += 1;
                        }
                        Instr::End => {
                            *event = true;
                            self.main = Main::Idle;
                        }
                        Instr::Halt => {
                            *event = true;
                            self.main = Main::Halted;
                        }
                        Instr::Vector(v) => {
                            let run = self
                                .state()
                                .start(v, self.pc, None, net, rules)
                                .map_err(|m| (self.pc, m))?;
                            if let Some(record) = &mut self.record {
                                record.element(&run, &self.memory);
                            }
                            self.main = Main::Vector(Box::new(run));
                        }
                        Instr::Async(t, ..)
                            if self.micro[*t as usize].queue.len()
                                >= rules.machine.pe.move_queue as usize =>
                        {
                            let front = self.micro[*t as usize].queue.front();
                            return Ok(front
                                .filter(|r| r.may_step())
                                .and_then(|r| r.ready(net, now).err()));
                        }
                        scalar => self.main = Main::Scalar(slots(scalar, cost)),
                    }
                }
            }
        }
    }

    /// Rule M12. The entry of the lowest ready task, or what an idle main thread waits for.
    fn choose_task(&mut self, net: &mut impl Ports, now: u64) -> Result<u32, Option<Wait>> {
        let mut waits = None;
        for (i, task) in self.block.tasks.iter().enumerate() {
            if self.blocked[i] {
                continue;
            }
            if self.active[i] {
                self.active[i] = false;
                return Ok(task.entry);
            }
            if let Trigger::Data(color) = task.trigger {
                let queue = net.core_in(self.pe, color);
                if net.arrived(queue, now) {
                    let w = net.pop(queue, now);
                    if let Some(record) = &mut self.record {
                        record.takes(queue, w, &self.memory);
                    }
                    self.registers[0] = w.bits as u32 as i32 as i64;
                    self.registers[1] = w.flag as i64;
                    return Ok(task.entry);
                }
                waits = waits.or(Some(Wait::Input(color)));
            }
        }
        Err(waits)
    }

    /// The main thread has the slot.
    fn main_slot(
        &mut self,
        net: &mut impl Ports,
        rules: &Rules,
        now: u64,
        sent: &mut Option<(Color, Wavelet)>,
    ) -> Result<(), Fault> {
        self.counters.last_busy = now;
        if let Main::Vector(run) = &mut self.main {
            let record = self.record.as_deref_mut().map(|r| (r, 0));
            run.slot(
                &mut self.memory,
                net,
                rules,
                now,
                &mut self.counters,
                sent,
                record,
            )
            .map_err(|m| (run.pc, m))?;
            if run.phase == Phase::Done {
                self.pc += 1;
                self.main = Main::Ready;
            }
            return Ok(());
        }
        let Main::Scalar(left) = &mut self.main else {
            unreachable!("only these get the slot")
        };
        self.counters.slots[5] += 1;
        *left -= 1;
        if *left > 0 {
            return Ok(());
        }
        self.main = Main::Ready;
        let pc = self.pc;
        self.pc += 1;
        self.scalar(pc, net, rules).map_err(|m| (pc, m))
    }

    /// The effect of a scalar instruction.
    fn scalar(&mut self, pc: u32, net: &impl Ports, rules: &Rules) -> Result<(), String> {
        let block = self.block;
        match &block.code[pc as usize] {
            Instr::Set(d, a) => self.registers[*d as usize] = wrap(self.val(*a)),
            Instr::Add(d, a, b) => {
                self.registers[*d as usize] = wrap(self.val(*a).wrapping_add(self.val(*b)))
            }
            Instr::Sub(d, a, b) => {
                self.registers[*d as usize] = wrap(self.val(*a).wrapping_sub(self.val(*b)))
            }
            Instr::Mul(d, a, b) => {
                self.registers[*d as usize] = wrap(self.val(*a).wrapping_mul(self.val(*b)))
            }
            Instr::Load(word, d, a, b) => {
                let at = self.val(*a).saturating_add(self.val(*b));
                self.registers[*d as usize] = self.load(*word, at)?;
                if let Some(record) = &mut self.record {
                    let bytes = if *word == Word::U16 { 2 } else { 4 };
                    record.same(&self.memory, at as usize..at as usize + bytes);
                }
            }
            Instr::Store(word, a, b, v) => {
                let at = self.address(*word, self.val(*a).saturating_add(self.val(*b)))?;
                let bytes = (self.val(*v) as i32).to_le_bytes();
                let bytes = &bytes[..if *word == Word::U16 { 2 } else { 4 }];
                if let Some(record) = &mut self.record {
                    record.store(at, bytes, &self.memory);
                }
                self.memory[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Instr::Jump(to) => self.pc = *to,
            Instr::Branch(cond, a, b, to) => {
                if cond.holds(self.val(*a), self.val(*b)) {
                    self.pc = *to;
                }
            }
            Instr::Desc(d, descriptor) => {
                let (d, descriptor) = (*d as usize, self.state().descriptor(descriptor)?);
                if self.descriptors.len() <= d {
                    self.descriptors.resize(d + 1, None);
                }
                self.descriptors[d] = Some(descriptor);
            }
            Instr::Base(d, a) => *self.base(*d)? = self.val(*a),
            Instr::Advance(d, a) => {
                let by = self.val(*a);
                let base = self.base(*d)?;
                *base = base.saturating_add(by);
            }
            Instr::Async(t, vector, then) => {
                let run = self.state().start(vector, pc, *then, net, rules)?;
                if let Some(record) = &mut self.record {
                    record.element(&run, &self.memory);
                }
                self.micro[*t as usize].queue.push_back(run);
                self.queued += 1;
            }
            Instr::Activate(t) => self.active[*t as usize] = true,
            Instr::Block(t) => self.blocked[*t as usize] = true,
            Instr::Unblock(t) => self.blocked[*t as usize] = false,
            Instr::Vector(_) | Instr::Wait(..) | Instr::End | Instr::Halt => unreachable!("not scalar"),
        }
        Ok(())
    }

    /// What a scalar load gets.
    fn load(&self, word: Word, at: i64) -> Result<i64, String> {
        let at = self.address(word, at)?;
        let m = &self.memory;
        Ok(match word {
            Word::U16 => u16::from_le_bytes([m[at], m[at + 1]]) as i64,
            Word::I32 => i32::from_le_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]) as i64,
        })
    }

    fn address(&self, word: Word, at: i64) -> Result<usize, String> {
        let bytes = if word == Word::U16 { 2 } else { 4 };
        if at < 0 || at > self.memory.len() as i64 - bytes {
            return Err(format!(
                "address {at} is outside the {} bytes that the block's buffers cover",
                self.memory.len()
            ));
        }
        Ok(at as usize)
    }

    fn base(&mut self, d: u8) -> Result<&mut i64, String> {
        match self.descriptors.get_mut(d as usize) {
            Some(Some(Desc {
                place: DescPlace::Memory { base, .. },
                ..
            })) => Ok(base),
            _ => Err(format!("d{d} is not a memory descriptor")),
        }
    }
}

impl State<'_> {
    fn val(&self, v: Val) -> i64 {
        match v {
            Val::Imm(c) => c,
            Val::Reg(r) => self.registers[r as usize],
            Val::Param(p) => self.params[p as usize],
        }
    }

    fn descriptor(&self, d: &Descriptor) -> Result<Desc, String> {
        let rank = d.shape.len();
        if rank == 0 || rank > 4 {
            return Err(format!("a descriptor has one to four extents, not {rank}"));
        }
        let mut shape = [1i64; 4];
        for (i, n) in d.shape.iter().enumerate() {
            shape[4 - rank + i] = self.val(*n);
        }
        if shape.iter().any(|n| !(0..=1 << 24).contains(n)) {
            return Err(format!(
                "extents {:?} are outside 0 to {}",
                &shape[4 - rank..],
                1 << 24
            ));
        }
        let place = match &d.place {
            Place::Memory {
                base,
                strides: s,
                wide,
            } => {
                let mut strides = [0i64; 4];
                for (i, n) in s.iter().take(rank).enumerate() {
                    strides[4 - rank + i] = self.val(*n).saturating_mul(d.ty.bytes() as i64);
                }
                DescPlace::Memory {
                    base: self.val(*base),
                    strides,
                    wide: *wide,
                }
            }
            Place::In(c) => DescPlace::In(*c),
            Place::Out { color, flag } => DescPlace::Out(*color, *flag),
        };
        Ok(Desc {
            ty: d.ty,
            shape,
            place,
        })
    }

    fn get(&self, d: u8) -> Result<Desc, String> {
        self.get_quietly(d).ok_or_else(|| format!("d{d} was never set"))
    }

    /// `None` if it was never set.
    fn get_quietly(&self, d: u8) -> Option<Desc> {
        let changed = self.changed.iter().rev().find(|(other, _)| *other == d);
        let set = || self.descriptors.get(d as usize).copied().flatten();
        changed.map(|(_, desc)| *desc).or_else(set)
    }
}
