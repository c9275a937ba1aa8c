//! The fast engine: the same answer as `reference`, without visiting every PE in every cycle. `docs/fast-engine.md` has the argument.
//!
//! What happens in a cycle is decided by the state at its start, so a component (a router, a core, a channel) that does in one cycle
//! what it did in the cycle before, and whose surroundings change by rule (one wavelet a cycle comes, one a cycle goes), does it again.
//! Each component is therefore looked at only when something may become different: it says itself when that is, as far as it can know
//! (a segment of wavelets ends, a filter opens, an instruction comes to its last step), and those at the other ends of its queues tell
//! it when a flow begins or ends. Cores execute the cycles in between in one go, when they are next looked at or when another core
//! needs the numbers.

mod calendar;
mod channels;
mod columns;
mod cores;
mod flow;
mod others;
mod routers;

use super::core::{Core, Memory, Outlook, Ports, Record, Rules, Scratch, extent};
use super::counters;
use super::network::{NONE, Network, Position, Routed, Target};
use super::run::StageRun;
use super::sram::{Row, Sram, joined};
use super::wavelets::Wavelets;
use super::{Class, Landed, Outcome, Paths, PeCounters, StageOutcome};
use crate::change::Change;
use crate::machine::Machine;
use crate::program::{Drain, Port, Stage, Wavelet};
use calendar::Calendar;
use channels::Gate;
use columns::Columns;
use flow::{Log, Moves, Queue};
use others::Others;
use routers::Routers;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Why the fast engine has no answer: the reference engine is to say what is wrong, or this is what ends the run.
#[derive(Debug)]
pub(super) enum Stop {
    /// A fault, a deadlock or left-overs.
    Ask,
    /// `Options::max_cycles` was reached.
    TooLong,
    /// Columns timed as one are not equal, or something went wrong in one of them: each is to be simulated.
    Apart,
}

/// Wavelets of a drain for which room is made at once.
const MOST_RESERVED: u64 = 1 << 20;

/// Bytes of stack that asking one core for its numbers takes, with a margin.
const STACK_A_CORE: usize = 2048;

/// A PE's core, executed up to before `from`, and what it does from there on.
struct Pe<'p> {
    core: Core<'p>,
    from: u64,
    outlook: Outlook,
}

/// Where all wavelets of a queue go.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Into the core.
    Core,
    On(u32),
    /// Out at the edge, by this port.
    Out(u8),
    Several,
}

/// A stage being simulated.
struct Simulation<'p, 'm> {
    net: Network<'p>,
    rules: Rules<'m>,
    queues: Vec<Queue>,
    logs: Vec<Log>,
    /// The log of what enters a core's output queue, by queue.
    log_of: Vec<u32>,
    feed_logs: Vec<u32>,
    /// The log of what a switch lets by, by routed colour, where it is joined.
    joined: Vec<u32>,
    routers: Routers,
    channels: Vec<Gate>,
    cores: Vec<Option<Box<Pe<'p>>>>,
    /// Routers by PE, then cores.
    calendar: Calendar,
    /// Channels, then the begin of epoch 1: looked at before the rest of a cycle.
    gates: Calendar,
    now: u64,
    last_event: Option<u64>,
    landed: Vec<Vec<Landed>>,
    probes: Vec<Vec<(u8, usize)>>,
    probed: &'m mut [Vec<Wavelet>],
    /// Something that the rules forbid happened.
    fault: bool,
    paths: Paths,
    /// Epoch 1 has begun.
    computes: bool,
    scratch: Scratch,
    /// The columns that do what this one does.
    others: Option<Others>,
    taken: [Wavelets; 2],
    popped: Wavelets,
}

impl StageRun<'_> {
    /// Runs it from the SRAM that it finds to that which it leaves; adds to the outcome what it drained, probed and moved. If it does not
    /// end well, SRAM is what it was, if this is the only stage.
    ///
    /// Numbers are asked for from core to core, at worst through all of them: the stack that this takes is set aside (it costs address
    /// space, not memory).
    pub fn fast(&self, sram: &mut Sram, outcome: &mut Outcome) -> Result<StageOutcome, Stop> {
        let stack = (8 << 20) + sram.pes() * STACK_A_CORE;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("fast engine".into())
                .stack_size(stack);
            match thread.spawn_scoped(scope, || self.in_columns_or_apart(sram, outcome)) {
                Ok(running) => joined(running.join()),
                // no such thread to be had: the other engine needs none
                Err(_) => Err(Stop::Ask),
            }
        })
    }

    /// Columns as one, or, if there are none or something goes wrong, each by itself.
    fn in_columns_or_apart(&self, sram: &mut Sram, outcome: &mut Outcome) -> Result<StageOutcome, Stop> {
        let StageRun {
            stage,
            machine,
            options,
            ..
        } = *self;
        let probed = options.probes.iter().any(|p| p.stage == self.number);
        let columns = match probed {
            true => None,
            false => Columns::find(stage, machine),
        };
        if let Some(columns) = columns {
            let rows = columns.rows(stage, machine);
            sram.arrange(&rows, options.threads);
            let before = sram.mark();
            if let Ok(ended) = self.simulate(Some((columns, &rows)), sram, outcome) {
                sram.keep();
                return Ok(ended);
            }
            sram.back(before);
        }
        let blocks = stage.regions.iter().flat_map(|r| &r.blocks);
        let reached = blocks.map(|block| block.at.places().count() * extent(block, machine).0);
        sram.ready(reached.sum(), options.threads);
        let before = self.only.then(|| sram.mark());
        let ended = self.simulate(None, sram, outcome);
        match (&ended, before) {
            (Err(_), Some(before)) => sram.back(before),
            _ => sram.keep(),
        }
        ended
    }

    fn simulate(
        &self,
        columns: Option<(Columns, &[Row])>,
        sram: &mut Sram,
        outcome: &mut Outcome,
    ) -> Result<StageOutcome, Stop> {
        let StageRun {
            stage,
            machine,
            options,
            begin,
            ..
        } = *self;
        let (columns, rows) = match columns {
            Some((columns, rows)) => (Some(columns), rows),
            None => (None, &[][..]),
        };
        let folded = columns.map(|c| c.fold(stage));
        let stage = folded.as_ref().unwrap_or(stage);
        let pes = sram.pes();
        let width = machine.mesh.width;
        let net = Network::new(stage, self.data.clone(), machine);
        let mut cores: Vec<Option<Box<Pe>>> = (0..pes).map(|_| None).collect();
        for (r, region) in stage.regions.iter().enumerate() {
            for (b, block) in region.blocks.iter().enumerate() {
                for (x, y) in block.at.places() {
                    let pe = (region.y + y) * width + region.x + x;
                    let found = sram.found(pe as usize, extent(block, machine).0);
                    let core = Core::new(stage, r as u32, b as u32, x, y, pe, machine, found);
                    cores[pe as usize] = Some(Box::new(Pe {
                        core,
                        from: 0,
                        outlook: Outlook::nothing(0),
                    }));
                }
            }
        }
        let mut probes = vec![Vec::new(); pes];
        let here = options
            .probes
            .iter()
            .enumerate()
            .filter(|(_, p)| p.stage == self.number);
        for (i, p) in here {
            probes[(p.y * width + p.x) as usize].push((p.color, i));
        }
        let probed = &mut outcome.probes;
        let mut simulation = Simulation::new(net, machine, cores, probes, probed, &stage.drains);
        if let Some(columns) = columns {
            let memories = rows.iter().map(|row| sram.take(row));
            simulation.follow(columns, options.threads, memories);
        }
        if options.record {
            let queues = simulation.queues.iter_mut();
            queues.for_each(|q| q.record = Some(Vec::new()));
        }
        let limit = options.max_cycles.map(|c| c.saturating_sub(begin));
        let ended = simulation.run(limit, |now| {
            if let Some(p) = &options.progress {
                p.store(begin + now, Ordering::Relaxed);
            }
        });
        let behind = columns.map_or(0, |c| c.behind());
        let too_late = |cycles: u64| behind > 0 && limit.is_some_and(|l| cycles + behind >= l);
        let ended = match ended {
            Ok(cycles) if simulation.ended_well(stage) && !too_late(cycles) => {
                simulation.others_catch_up(true).map(|()| cycles + behind)
            }
            _ if columns.is_some() => Err(Stop::Apart),
            ended => ended.and(Err(Stop::Ask)),
        };
        if let Some(others) = simulation.others.take() {
            let all = rows.iter().zip(others.into_memories());
            all.for_each(|(row, memories)| sram.put(row, memories));
        }
        let cycles = ended?;
        let (in_columns, sent_in_columns) = columns.map_or_else(Default::default, |c| c.rest(&simulation));
        let Simulation {
            net,
            cores,
            mut landed,
            mut queues,
            mut logs,
            paths,
            ..
        } = simulation;
        let timed = |pe: usize| columns.is_some_and(|c| pe as u32 % width == c.first);
        if options.record {
            let cycles = queues.iter_mut().filter_map(|q| q.recorded(&mut logs));
            let arrivals = net.arrivals(cycles.collect(), self.number, begin);
            outcome.arrivals.extend(match columns {
                Some(columns) => columns.arrivals(arrivals),
                None => arrivals,
            });
        }
        let mut idle = PeCounters::default();
        idle.classes[Class::Idle as usize] = cycles;
        idle.load_classes[Class::Idle as usize] = net.epochs[1];
        let mut counters = counters::Builder::new(pes, idle);
        let mut count = |pe: usize, mut c: PeCounters| {
            outcome.active_pe_cycles += cycles - c.classes[Class::Idle as usize];
            c.shift(begin);
            counters.set(pe, c);
        };
        for (pe, core) in cores.into_iter().enumerate() {
            let Some(Pe { core, .. }) = core.map(|core| *core) else {
                continue;
            };
            let own = core.counters;
            match columns {
                None => count(pe, own),
                Some(columns) => {
                    let waits = Columns::waits(core.block());
                    let n = if timed(pe) { columns.count } else { 1 };
                    (0..n).for_each(|i| count(pe + i as usize, columns.counters(&own, waits, i)));
                }
            }
            let (_, keeps) = extent(core.block(), machine);
            sram.left(pe, core.into_sram(), keeps);
        }
        outcome.paths.add(&paths);
        outcome.paths.add(&in_columns);
        outcome.wavelets += net.wavelets + sent_in_columns;
        outcome.hops += net.hops + in_columns.hops_columns;
        outcome.edge_wavelets += net.edge_wavelets;
        if begin > 0 {
            landed.iter_mut().flatten().for_each(|l| l.cycle += begin);
        }
        outcome.drains.append(&mut landed);
        let epochs: Vec<u64> = net.epochs.iter().map(|e| begin + e).collect();
        Ok(StageOutcome {
            change: Change::default(),
            begin,
            load_end: epochs[1],
            end: begin + cycles,
            epochs,
            pes: counters.done(),
        })
    }
}

/// The queues that a position puts into.
fn outputs<'n>(net: &'n Network, position: &'n Position) -> impl Iterator<Item = u32> + use<'n> {
    net.outputs(position).iter().filter_map(|o| match o.target {
        Target::Queue { queue, .. } if queue != NONE => Some(queue),
        _ => None,
    })
}

/// The greatest common divisor; 0 is a multiple of everything.
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Routed {
    /// The positions at which it may stand.
    fn live<'n>(&self, net: &'n Network) -> impl Iterator<Item = &'n Position> + use<'n> {
        let switch = self.is_switch();
        net.positions(self).iter().filter(move |p| !switch || p.hold > 0)
    }

    /// The flagged wavelets of a round, after which a switch stands where it began.
    fn round(&self, net: &Network) -> u64 {
        self.live(net).map(|p| p.hold).sum()
    }

    /// Whether a switch may hide which wavelets within a round are flagged: only every `turns`th one turns a switch behind it, if any,
    /// and all of a round's go there.
    fn joins(&self, net: &Network, turns: u64) -> bool {
        let mut positions = self.live(net).map(|p| outputs(net, p).collect::<Vec<_>>());
        let first = positions.next();
        turns == 0
            || (self.filters.is_empty()
                && turns.is_multiple_of(self.round(net).max(1))
                && positions.all(|to| Some(&to) == first.as_ref()))
    }
}

impl<'p, 'm> Simulation<'p, 'm> {
    fn new(
        net: Network<'p>,
        machine: &'m Machine,
        cores: Vec<Option<Box<Pe<'p>>>>,
        probes: Vec<Vec<(u8, usize)>>,
        probed: &'m mut [Vec<Wavelet>],
        drains: &[Drain],
    ) -> Simulation<'p, 'm> {
        let pes = cores.len();
        let mut s = Simulation {
            queues: net
                .queues
                .iter()
                .map(|q| Queue {
                    capacity: q.capacity as u64,
                    latency: q.latency as u64,
                    puts: Moves::default(),
                    takes: Moves::default(),
                    segments: VecDeque::new(),
                    putter: q.sender,
                    taker: q.pe,
                    putting: 0,
                    taking: 0,
                    wants_head: true,
                    wants_room: false,
                    turns: 0,
                    read: 0,
                    record: None,
                })
                .collect(),
            logs: Vec::new(),
            log_of: vec![NONE; net.queues.len()],
            feed_logs: Vec::new(),
            joined: vec![NONE; net.routed.len()],
            routers: Routers::new(&net),
            channels: vec![Gate::default(); net.channels.len()],
            cores,
            calendar: Calendar::new(2 * pes),
            gates: Calendar::new(net.channels.len() + 1),
            now: 0,
            last_event: None,
            landed: drains
                .iter()
                .map(|d| Vec::with_capacity(d.wavelets.min(MOST_RESERVED) as usize))
                .collect(),
            probes,
            probed,
            fault: false,
            paths: Paths::default(),
            computes: false,
            scratch: Scratch::default(),
            others: None,
            taken: Default::default(),
            popped: Wavelets::default(),
            rules: Rules { machine },
            net,
        };
        for pe in 0..pes {
            s.name_streams(pe as u32);
        }
        let routed = (0..pes as u32).flat_map(|pe| s.net.router(pe).iter().map(move |r| (pe, r.color)));
        for (pe, color) in routed.collect::<Vec<_>>() {
            let (into, out) = (s.net.core_in.get(pe, color), s.net.core_out.get(pe, color));
            if into != NONE {
                s.queues[into as usize].taker = s.core(pe);
            }
            if out != NONE {
                s.queues[out as usize].putter = s.core(pe);
                s.log_of[out as usize] = s.logs.len() as u32;
                s.logs.push(Log::of_core(pe));
            }
        }
        s.find_turns();
        s.find_readers();
        for (f, data) in s.net.data.iter().enumerate() {
            s.feed_logs.push(s.logs.len() as u32);
            s.logs.push(Log::of_feed(data.clone()));
            let feed = &s.net.feeds[f];
            let channel = s
                .net
                .channels
                .iter()
                .position(|c| c.channel.side == feed.side && c.channel.row == feed.row);
            let queue = s.net.feed_queue[f];
            if let (Some(c), true) = (channel, queue != NONE) {
                s.queues[queue as usize].putter = 2 * pes as u32 + c as u32;
            }
        }
        s
    }

    /// Tells the queues of a router which of its streams they belong to.
    fn name_streams(&mut self, pe: u32) {
        let Simulation { net, queues, .. } = self;
        let number = |i: usize| i.min(255) as u8;
        let ramps = &net.ramps[pe as usize];
        for (i, (out, into)) in ramps.iter().enumerate() {
            queues[*out as usize].taking = number(i);
            queues[*into as usize].putting = number(i);
        }
        for (i, r) in net.router(pe).iter().enumerate() {
            let i = number(ramps.len() + i);
            for p in net.positions(r) {
                queues[p.queue as usize].taking = i;
                for o in net.outputs(p) {
                    if let Target::Queue { queue, .. } = o.target
                        && queue != NONE
                    {
                        queues[queue as usize].putting = i;
                    }
                }
            }
        }
    }

    /// Finds for each queue how many of the flagged wavelets in it it takes to turn a switch ([`Queue::turns`]), from the ends of the
    /// streams back to their beginnings; and the switches that join what they let by, since nobody behind them turns within a round
    /// of theirs.
    fn find_turns(&mut self) {
        let Simulation {
            net,
            queues,
            joined,
            logs,
            ..
        } = self;
        // who takes from a queue: a router's colour, or a ramp up into another queue
        let mut colors = vec![NONE; queues.len()];
        let mut ramps = vec![NONE; queues.len()];
        for (i, r) in net.routed.iter().enumerate() {
            for p in net.positions(r) {
                if p.queue != NONE {
                    colors[p.queue as usize] = i as u32;
                }
            }
        }
        for (from, to) in net.ramps.iter().flatten() {
            ramps[*from as usize] = *to;
        }
        let behind = |q: u32| -> Vec<u32> {
            match colors[q as usize] {
                NONE => Some(ramps[q as usize])
                    .filter(|to| *to != NONE)
                    .into_iter()
                    .collect(),
                i => net.routed[i as usize]
                    .live(net)
                    .flat_map(|p| outputs(net, p))
                    .collect(),
            }
        };
        // queues in an order in which those behind come first; a circle, which the verifier refuses, would end somewhere in it
        let mut order = Vec::new();
        let mut seen = vec![false; queues.len()];
        for q in 0..queues.len() as u32 {
            let mut open = vec![(q, false)];
            while let Some((q, done)) = open.pop() {
                if done {
                    order.push(q);
                } else if !std::mem::replace(&mut seen[q as usize], true) {
                    open.push((q, true));
                    open.extend(behind(q).into_iter().map(|to| (to, false)));
                }
            }
        }
        for q in order {
            let turns = match colors[q as usize] {
                NONE => behind(q)
                    .iter()
                    .fold(0, |all, to| gcd(all, queues[*to as usize].turns)),
                i => {
                    let r = &net.routed[i as usize];
                    let all = behind(q)
                        .iter()
                        .fold(0, |all, to| gcd(all, queues[*to as usize].turns));
                    match r.is_switch() {
                        // what a filter drops is not counted behind it
                        false => {
                            if r.filters.is_empty() {
                                all
                            } else {
                                all.min(1)
                            }
                        }
                        true if r.joins(net, all) => {
                            let own = r.live(net).filter(|p| p.queue == q);
                            own.fold(0, |all, p| gcd(all, p.hold))
                        }
                        true => 1,
                    }
                }
            };
            queues[q as usize].turns = turns;
        }
        for (i, r) in net.routed.iter().enumerate() {
            let to = || r.live(net).flat_map(|p| outputs(net, p));
            let all = to().fold(0, |all, to| gcd(all, queues[to as usize].turns));
            if r.is_switch() && to().next().is_some() && r.joins(net, all) {
                joined[i] = logs.len() as u32;
                logs.push(Log::of_switch());
            }
        }
    }

    /// Finds the logs of which each value is read once: their wavelets have one way, without a multicast.
    fn find_readers(&mut self) {
        let Simulation {
            net, logs, log_of, ..
        } = self;
        // where a queue's wavelets go
        let mut ways = vec![Way::Core; log_of.len()];
        for p in net.routed.iter().flat_map(|r| net.positions(r)) {
            let way = &mut ways[p.queue as usize];
            for o in net.outputs(p) {
                let to = match o.target {
                    Target::Queue { queue, .. } if queue != NONE => Way::On(queue),
                    Target::Queue { .. } => Way::Several,
                    Target::Drain { .. } => Way::Out(o.port as u8),
                };
                *way = match *way {
                    Way::Core => to,
                    same if same == to => same,
                    _ => Way::Several,
                };
            }
        }
        for (from, to) in net.ramps.iter().flatten() {
            ways[*from as usize] = Way::On(*to);
        }
        for (from, log) in log_of.iter().enumerate().filter(|(_, log)| **log != NONE) {
            let mut way = ways[from];
            // positions that are never taken may go in a circle
            for _ in 0..ways.len() {
                match way {
                    Way::On(queue) => way = ways[queue as usize],
                    _ => break,
                }
            }
            logs[*log as usize].one_reader = matches!(way, Way::Core | Way::Out(_));
        }
    }

    /// Has other columns do what this one does, given their memory by core.
    fn follow(&mut self, columns: Columns, threads: usize, memories: impl Iterator<Item = Vec<Memory>>) {
        let machine = self.rules.machine;
        let n = columns.count as usize - 1;
        let in_first = |pe: usize| pe as u32 % self.net.width == columns.first;
        let mut log_of = vec![NONE; self.log_of.len()];
        for (_, ramps) in self.net.ramps.iter().enumerate().filter(|(pe, _)| in_first(*pe)) {
            for (out, _) in ramps {
                log_of[*out as usize] = self.log_of[*out as usize];
            }
        }
        let mut others = Others::new(n, threads, &self.logs, &log_of);
        let cores = self.cores.iter_mut().enumerate();
        let first = cores.filter_map(|(pe, core)| Some((pe, &mut core.as_deref_mut()?.core)));
        for ((pe, core), memories) in first.filter(|(pe, _)| in_first(*pe)).zip(memories) {
            // what comes from the west comes to all of them
            let colors = self.net.router(pe as u32).iter();
            let from_west = colors.filter(|r| self.net.positions(r).iter().all(|p| p.input == Port::West));
            let queues = from_west.map(|r| self.net.core_in(pe as u32, r.color));
            let record = Record::new(machine.pe.threads as usize, queues.collect());
            core.record = Some(Box::new(record));
            others.add(memories);
        }
        self.others = Some(others);
    }

    /// Does in the other columns what was done in this one, if it is enough, or is to be done now.
    fn others_catch_up(&mut self, now: bool) -> Result<(), Stop> {
        let (Some(others), sent) = (&mut self.others, self.net.wavelets) else {
            return Ok(());
        };
        let records = self
            .cores
            .iter()
            .flatten()
            .filter_map(|pe| pe.core.record.as_ref());
        if !now && !others.enough(records.map(|r| r.bytes()).sum(), sent) {
            return Ok(());
        }
        let cores = self.cores.iter_mut().flatten();
        let records = cores.filter_map(|pe| pe.core.recorded(now));
        others
            .catch_up(records, sent, &self.logs, now)
            .map_err(|()| Stop::Apart)
    }

    fn core(&self, pe: u32) -> u32 {
        self.cores.len() as u32 + pe
    }

    /// Has a component looked at.
    fn wake(&mut self, component: u32, time: u64) {
        match component.checked_sub(2 * self.cores.len() as u32) {
            Some(gate) => self.gates.schedule(gate, time, self.now),
            None => self.calendar.schedule(component, time, self.now),
        }
    }

    fn event(&mut self, cycle: u64) {
        self.last_event = self.last_event.max(Some(cycle));
    }

    /// To the last event. Returns the number of cycles (rule M17).
    fn run(&mut self, limit: Option<u64>, progress: impl Fn(u64)) -> Result<u64, Stop> {
        let pes = self.cores.len() as u32;
        for pe in 0..pes {
            if self.cores[pe as usize].is_some() {
                self.calendar.schedule(pes + pe, 0, 0);
            }
        }
        let channels = self.channels.len() as u32;
        for c in 0..channels {
            self.gates.schedule(c, 0, 0);
        }
        if self.net.epoch >= 1 {
            self.gates.schedule(channels, 0, 0);
        }
        let mut turns = 0u32;
        while let Some(now) = self
            .calendar
            .earliest(self.now)
            .into_iter()
            .chain(self.gates.earliest(self.now))
            .min()
        {
            self.now = now;
            turns = turns.wrapping_add(1);
            if turns & 0x3ff == 0 {
                progress(now);
                self.others_catch_up(false)?;
            }
            // something is looked at at most two cycles after the last event
            if let Some(l) = limit
                && now > l.saturating_add(2)
            {
                return Err(self.too_long(l));
            }
            while let Some(gate) = self.gates.pop(now) {
                if gate < channels {
                    self.visit_channel(gate);
                } else {
                    self.begin_computing();
                }
            }
            while let Some(component) = self.calendar.pop(now) {
                if component < pes {
                    self.visit_router(component);
                } else {
                    self.visit_core(component - pes);
                }
                if self.fault {
                    return Err(Stop::Ask);
                }
            }
        }
        // rule M17: the first cycle without an event and with nothing on its way
        let cycles = self.last_event.map_or(0, |c| c + 1).max(self.net.last_arrival);
        if let Some(l) = limit
            && cycles >= l
        {
            return Err(self.too_long(l));
        }
        self.now = cycles;
        for pe in 0..pes {
            self.catch_up(pe, cycles);
        }
        if self.fault { Err(Stop::Ask) } else { Ok(cycles) }
    }

    /// The limit is reached, unless there is a fault before it in what cores have still to execute.
    fn too_long(&mut self, limit: u64) -> Stop {
        self.now = self.now.max(limit);
        for pe in 0..self.cores.len() as u32 {
            self.catch_up(pe, limit);
        }
        if self.fault { Stop::Ask } else { Stop::TooLong }
    }

    /// Epoch 1 begins: what was counted up to now is load.
    fn begin_computing(&mut self) {
        for pe in 0..self.cores.len() as u32 {
            self.catch_up(pe, self.now);
            if let Some(pe) = &mut self.cores[pe as usize] {
                pe.core.counters.load_classes = pe.core.counters.classes;
                pe.core.counters.load_slots = pe.core.counters.slots;
            }
        }
        self.computes = true;
    }

    /// Whether nothing waits and nothing is left (rule M17).
    fn ended_well(&self, stage: &Stage) -> bool {
        self.cores.iter().flatten().all(|pe| pe.core.halted())
            && self.net.channels.iter().all(|c| c.is_empty())
            && self
                .queues
                .iter()
                .all(|q| q.puts.before(u64::MAX - 1) == q.takes.before(u64::MAX - 1))
            && stage
                .drains
                .iter()
                .zip(&self.landed)
                .all(|(d, l)| d.wavelets == l.len() as u64)
    }
}
