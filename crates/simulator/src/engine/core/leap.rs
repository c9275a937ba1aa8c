//! Many equal cycles of a core at once. After a cycle that was executed as the rules say, [`Core::outlook`] tells for how many more
//! cycles the same thread does the same thing if nothing else happens around it; [`Core::leap`] then executes them in one go. What is
//! not provably the same again (the end of an instruction, scalar effects, a task, a thread that may become ready) is left to
//! [`Core::cycle`].

use super::ahead::Next;
use super::bulk::Scratch;
use super::vector::{Arg, Phase, Run};
use super::{Core, Main, Ports, Rules, Wait};
use crate::engine::Class;
use crate::engine::wavelets::Wavelets;
use crate::program::*;

/// What is at the head of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Head {
    /// Wavelets that may be taken one a cycle from this cycle on: so many; `u64::MAX` if no end is in sight.
    Now(u64),
    /// The first one arrives in this later cycle.
    At(u64),
    /// Nothing is on its way.
    None,
}

/// The room in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Room {
    /// Wavelets that may be put one a cycle from this cycle on: so many; `u64::MAX` if no end is in sight.
    Now(u64),
    /// None in this cycle, some in the next.
    Soon,
    /// None until something else happens.
    None,
}

/// Queues that know what flows through them.
pub(in crate::engine) trait Flows: Ports {
    /// What can be taken from the cycle `now` on.
    fn head(&self, queue: u32, now: u64) -> Head;
    /// What can be put from the cycle `now` on.
    fn room(&self, queue: u32, now: u64) -> Room;
    /// The core is to be told when a wavelet is put into the queue.
    fn await_head(&mut self, queue: u32);
    /// The core is to be told when a wavelet is taken out of the queue.
    fn await_room(&mut self, queue: u32);
    /// Whether a wavelet was taken in the cycle before `now`.
    fn was_taken(&self, queue: u32, now: u64) -> bool;
    /// Whether a wavelet was put in the cycle before `now`.
    fn was_put(&self, queue: u32, now: u64) -> bool;
}

/// The cycles from the next one on, as long as nothing happens from outside.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Outlook {
    /// All of them have this class.
    pub class: Class,
    /// The thread that has the slot in all of them, or, if it goes ahead, in those in which it does not issue.
    pub winner: Option<u8>,
    /// The winner goes on by itself, over several instructions ([`Core::ahead`]). Their classes are its own.
    pub ahead: bool,
    /// The queues from which and into which it moves a wavelet in each of them.
    pub takes: [Option<u32>; 2],
    pub puts: Option<u32>,
    /// The first cycle that is not one of them: `u64::MAX` if only something from outside ends them.
    pub until: u64,
}

impl Outlook {
    /// Nothing is known of cycle `u`.
    pub fn nothing(u: u64) -> Outlook {
        Outlook {
            class: Class::Idle,
            winner: None,
            ahead: false,
            takes: [None; 2],
            puts: None,
            until: u,
        }
    }

    /// Whether there is an event in all cycles (rule M17).
    pub fn is_event(&self) -> bool {
        self.ahead || matches!(self.class, Class::Busy | Class::Launch)
    }
}

/// What is known of a cycle to come.
struct Found {
    until: u64,
    winner: Option<u8>,
    /// Threads that could use the slot.
    ready: u32,
    /// The thread that issues, and for how many more cycles, if it is the only one; else they bound `until`.
    issuing: Option<(u8, u32)>,
    /// How many threads issue or launch.
    issuers: u32,
    /// When the first of them is done.
    holds: u64,
    launch: bool,
    room: bool,
    input: bool,
}

impl Found {
    /// A thread issues for `left` more cycles, or its phase changes at once.
    fn issues(&mut self, u: u64, t: u8, left: u32) {
        self.launches(u, left);
        self.issuing = (self.issuers == 1).then_some((t, left));
    }

    /// The same of a thread that does not go ahead.
    fn launches(&mut self, u: u64, left: u32) {
        self.launch |= left > 0;
        self.issuers += 1;
        self.holds = self.holds.min(u + left as u64);
        self.issuing = None;
    }

    /// Who is ready, in order of priority.
    fn is_ready(&mut self, t: u8) {
        self.ready += 1;
        self.winner = self.winner.or(Some(t));
    }

    fn waits(&mut self, wait: Wait) {
        match wait {
            Wait::Room(_) => self.room = true,
            Wait::Input(_) => self.input = true,
            Wait::Thread(_) => {}
        }
    }
}

impl Core<'_> {
    /// What happens from cycle `u` on, the state being that at its start. If nothing can be said of it, `until` is `u`.
    pub fn outlook(&self, net: &mut impl Flows, rules: &Rules, u: u64) -> Outlook {
        let mut found = Found {
            until: u64::MAX,
            winner: None,
            ready: 0,
            issuing: None,
            issuers: 0,
            holds: u64::MAX,
            launch: false,
            room: false,
            input: false,
        };
        if self.queued > 0 {
            for (t, m) in self.micro.iter().enumerate() {
                if let Some(run) = m.queue.front()
                    && self.ready_thread(net, t as u8, run, u, &mut found)
                {
                    found.is_ready(t as u8);
                }
            }
        }
        let mut begins = false;
        let main_ready = match &self.main {
            Main::Halted => false,
            Main::Scalar(_) => true,
            Main::Launching(left) => {
                found.launches(u, *left);
                false
            }
            Main::Vector(run) => self.ready_thread(net, 0, run, u, &mut found),
            Main::Idle => {
                self.idle_outlook(net, u, &mut found);
                false
            }
            Main::Ready => match self.next_instruction() {
                Next::Scalar => true,
                Next::InMemory => {
                    begins = true;
                    found.issues(u, 0, rules.machine.pe.cost.issue);
                    false
                }
                Next::Other => {
                    self.waiting_outlook(net, rules, u, &mut found);
                    false
                }
            },
        };
        if main_ready {
            found.is_ready(0);
            if !rules.machine.pe.moves_first {
                found.winner = Some(0);
            }
        }
        let (alone, until) = match (found.winner, found.issuing) {
            // others that issue can't interrupt before they are done
            (Some(t), _) if found.ready == 1 => (Some(t), found.until.min(found.holds)),
            (None, issuing) => (issuing.map(|(t, _)| t), found.until),
            _ => (None, u),
        };
        if let Some(t) = alone.filter(|t| *t == 0 || !begins)
            && until > u
        {
            let cycles = self.ahead(rules, t, until - u);
            if cycles > 0 {
                return Outlook {
                    winner: Some(t),
                    ahead: true,
                    until: until.min(u.saturating_add(cycles)),
                    ..Outlook::nothing(u)
                };
            }
        }
        if begins {
            // it has not issued yet
            found.until = u;
        }
        found.until = found.until.min(found.holds);
        self.flowing(net, u, found)
    }

    /// Whether a thread with a vector instruction is ready to use the slot; if not, when that may change.
    fn ready_thread(&self, net: &mut impl Flows, t: u8, run: &Run, u: u64, found: &mut Found) -> bool {
        match run.phase {
            Phase::Done => found.until = u,
            Phase::Issue(left) => found.issues(u, t, left),
            Phase::Step | Phase::Fetch => match run.ready(net, u) {
                Ok(()) => return true,
                Err(wait) => {
                    found.waits(wait);
                    found.until = found.until.min(self.wakes(net, wait, u));
                    // should the room that was seen turn out not to be there, it waits for that
                    if let (Wait::Input(_), Some(queue)) = (wait, run.puts()) {
                        net.await_room(queue);
                    }
                }
            },
        }
        false
    }

    /// The cycle in which what is waited for is there, as far as is known now.
    fn wakes(&self, net: &mut impl Flows, wait: Wait, u: u64) -> u64 {
        match wait {
            Wait::Input(color) => {
                let queue = net.core_in(self.pe, color);
                match net.head(queue, u) {
                    Head::Now(_) => u,
                    Head::At(cycle) => cycle,
                    Head::None => {
                        net.await_head(queue);
                        u64::MAX
                    }
                }
            }
            Wait::Room(color) => {
                let queue = net.core_out(self.pe, color);
                match net.room(queue, u) {
                    Room::Now(_) => u,
                    Room::Soon => u + 1,
                    Room::None => {
                        net.await_room(queue);
                        u64::MAX
                    }
                }
            }
            Wait::Thread(_) => u64::MAX,
        }
    }

    /// The main thread has no task.
    fn idle_outlook(&self, net: &mut impl Flows, u: u64, found: &mut Found) {
        for (i, task) in self.block.tasks.iter().enumerate() {
            if self.blocked[i] {
                continue;
            }
            if self.active[i] {
                found.until = u;
            }
            if let Trigger::Data(color) = task.trigger {
                found.waits(Wait::Input(color));
                found.until = found.until.min(self.wakes(net, Wait::Input(color), u));
            }
        }
    }

    /// The main thread is at an instruction that takes time, or waits for a microthread.
    fn waiting_outlook(&self, net: &impl Flows, rules: &Rules, u: u64, found: &mut Found) {
        let depth = rules.machine.pe.move_queue as usize;
        let thread = match self.block.code.get(self.pc as usize) {
            Some(Instr::Wait(t, n)) => {
                let m = &self.micro[*t as usize];
                if let Some(n) = n {
                    let left = self.val(*n) - m.elements as i64;
                    if left <= 0 {
                        found.until = u;
                    } else if let Some(run) = m.queue.front() {
                        // after so many slots the number is reached, and seen in the cycle after
                        let issue = match found.issuing {
                            Some((issuing, left)) if issuing == *t => Some(left),
                            _ => (found.winner == Some(*t)).then_some(0),
                        };
                        if let Some(issue) = issue {
                            let slots = issue as u64 + run.slots_for(left);
                            found.until = found.until.min(u.saturating_add(slots));
                        }
                    }
                } else if m.queue.is_empty() {
                    found.until = u;
                }
                *t
            }
            Some(Instr::Async(t, ..)) if self.micro[*t as usize].queue.len() >= depth => *t,
            _ => {
                found.until = u;
                return;
            }
        };
        let front = self.micro[thread as usize].queue.front();
        if let Some(wait) = front.filter(|r| r.may_step()).and_then(|r| r.ready(net, u).err()) {
            found.waits(wait);
        }
    }

    /// How long the winner keeps the slot.
    fn flowing(&self, net: &impl Flows, u: u64, found: Found) -> Outlook {
        let mut until = found.until;
        let (mut takes, mut puts) = ([None; 2], None);
        if let Some(t) = found.winner {
            let run = match (t, &self.main) {
                (0, Main::Scalar(left)) => {
                    // the last slot has the effect
                    until = until.min(u + *left as u64 - 1);
                    None
                }
                (0, Main::Ready) => {
                    until = u;
                    None
                }
                (0, Main::Vector(run)) => Some(&**run),
                (t, _) => self.micro[t as usize].queue.front(),
            };
            if let Some(run) = run {
                (takes, puts) = (run.takes(), run.puts());
                // the last step decides what follows; a fetch, what its element is
                until = match run.phase {
                    Phase::Fetch => u,
                    _ => until.min(u.saturating_add(run.slots_left() - 1)),
                };
                // a flow begins with a step of its own
                for queue in takes.into_iter().flatten() {
                    match net.head(queue, u) {
                        Head::Now(n) if run.cost() == 1 && net.was_taken(queue, u) => {
                            until = until.min(u.saturating_add(n));
                        }
                        _ => until = u,
                    }
                }
                if let Some(queue) = puts {
                    match net.room(queue, u) {
                        Room::Now(n) if run.cost() == 1 && net.was_put(queue, u) => {
                            until = until.min(u.saturating_add(n));
                        }
                        _ => until = u,
                    }
                }
            }
        }
        let class = if found.winner.is_some() {
            Class::Busy
        } else if found.launch {
            Class::Launch
        } else if found.room {
            Class::WaitRoom
        } else if found.input {
            Class::WaitInput
        } else {
            Class::Idle
        };
        Outlook {
            class,
            winner: found.winner,
            ahead: false,
            takes,
            puts,
            until,
        }
    }

    /// Before which of the next `cycles` cycles of an outlook the slot is used for the first time, if in any.
    pub fn busy_after(&self, rules: &Rules, outlook: &Outlook, cycles: u64) -> Option<u64> {
        let idle = match outlook.winner? {
            _ if !outlook.ahead => 0,
            0 => self.issue_first(rules),
            t => self.micro[t as usize].queue.front().map_or(0, Run::issue_left),
        };
        (idle < cycles).then_some(idle)
    }

    /// The cycles for which the main thread issues before it uses the slot.
    pub fn issue_first(&self, rules: &Rules) -> u64 {
        match &self.main {
            Main::Vector(run) => run.issue_left(),
            Main::Ready if self.next_instruction() == Next::InMemory => rules.machine.pe.cost.issue as u64,
            _ => 0,
        }
    }

    /// Executes `cycles` cycles of an outlook from cycle `from` on, with the wavelets that the winner takes; what it sends is added to
    /// `out`. `Err` if wavelets and steps disagree in their number of elements.
    #[allow(clippy::too_many_arguments)] // one call; a struct for it would only rename them
    pub fn leap(
        &mut self,
        rules: &Rules,
        outlook: &Outlook,
        from: u64,
        cycles: u64,
        inputs: &mut [Wavelets; 2],
        out: &mut Wavelets,
        scratch: &mut Scratch,
    ) -> Result<(), ()> {
        if cycles == 0 {
            return Ok(());
        }
        let alone = outlook.winner.filter(|_| outlook.ahead);
        if self.queued > 0 {
            for (t, m) in self.micro.iter_mut().enumerate() {
                if let Some(run) = m.queue.front_mut()
                    && alone != Some(t as u8)
                {
                    run.hold_for(cycles as u32);
                }
            }
        }
        match &mut self.main {
            _ if alone == Some(0) => {}
            Main::Launching(left) => *left -= cycles as u32,
            Main::Vector(run) => run.hold_for(cycles as u32),
            _ => {}
        }
        if let Some(t) = alone {
            return self.run_ahead(rules, t, from, cycles, scratch);
        }
        self.counters.classes[outlook.class as usize] += cycles;
        self.class = outlook.class;
        let Some(t) = outlook.winner else { return Ok(()) };
        self.counters.last_busy = from + cycles - 1;
        let Core {
            micro,
            main,
            memory,
            record,
            counters,
            ..
        } = self;
        let mut record = |run: &Run, memory: &[u8]| {
            if let Some(record) = record {
                record.slots(t, run, cycles, memory);
            }
        };
        match (t, main) {
            (0, Main::Scalar(left)) => {
                *left -= cycles as u32;
                counters.slots[5] += cycles;
            }
            (0, Main::Vector(run)) => {
                record(run, memory);
                run.leap(from, cycles, memory, inputs, out, counters, scratch)?;
            }
            (0, _) => unreachable!("only these are ready"),
            (t, _) => {
                let m = &mut micro[t as usize];
                let run = m.queue.front_mut().expect("it was ready");
                record(run, memory);
                m.elements += run.leap(from, cycles, memory, inputs, out, counters, scratch)?;
            }
        }
        Ok(())
    }
}

impl Run {
    fn issue_left(&self) -> u64 {
        match self.phase {
            Phase::Issue(left) => left as u64,
            _ => 0,
        }
    }

    /// The queues from which each step takes a wavelet.
    pub(super) fn takes(&self) -> [Option<u32>; 2] {
        [&self.a, &self.b].map(|arg| match arg {
            Arg::In { queue, .. } => Some(*queue),
            _ => None,
        })
    }

    /// The queue into which each step puts a wavelet.
    pub(super) fn puts(&self) -> Option<u32> {
        match self.dst {
            Arg::Out { queue, .. } => Some(queue),
            _ => None,
        }
    }
}
