//! Routers and ramps: which of their streams flow, and until when (rules M3 to M7).

use super::Simulation;
use super::flow::{Segment, end_joined, join, read};
use crate::engine::Landed;
use crate::engine::core::{Head, Room};
use crate::engine::network::{NONE, Network, Target};
use crate::program::Port;

/// Most outputs of a position.
const OUTPUTS: usize = 5;

/// One wavelet a cycle moves from a queue to others.
#[derive(Clone, Copy)]
struct Flow {
    from: u32,
    /// The number, in that queue, of the first wavelet of the segment that moves.
    segment: u64,
    to: [Target; OUTPUTS],
    /// How many of `to` there are.
    outputs: u8,
    /// How many of them are links between routers.
    hops: u8,
    /// The router's ports that it uses, one bit each.
    ports: u8,
    /// Up to this cycle its moves are counted.
    settled: u64,
}

impl Flow {
    /// From a segment of a queue, to nowhere yet.
    fn new(from: u32, segment: u64, settled: u64) -> Flow {
        let nowhere = Target::Queue {
            queue: NONE,
            latency: 0,
        };
        Flow {
            from,
            segment,
            to: [nowhere; OUTPUTS],
            outputs: 0,
            hops: 0,
            ports: 0,
            settled,
        }
    }

    fn to(&self) -> &[Target] {
        &self.to[..self.outputs as usize]
    }

    /// Whether it puts into queues, and not only out at the edge.
    fn puts(&self) -> bool {
        self.to().iter().any(|t| matches!(t, Target::Queue { .. }))
    }

    fn same(&self, other: &Flow) -> bool {
        self.from == other.from && self.segment == other.segment && self.same_outputs(other)
    }

    fn same_outputs(&self, other: &Flow) -> bool {
        let queue = |t: &Target| match *t {
            Target::Queue { queue, .. } => (queue, NONE),
            Target::Drain { drain, .. } => (NONE, drain),
        };
        self.outputs == other.outputs
            && self
                .to()
                .iter()
                .zip(other.to())
                .all(|(a, b)| queue(a) == queue(b))
    }
}

/// A switch joins what it lets by.
#[derive(Clone, Copy)]
struct Joins {
    log: u32,
    /// Flagged wavelets of the round that has just ended; 0 within a round.
    flags: u64,
}

/// Why a stream does not flow, and so what must happen before it is worth another look.
#[derive(Clone, Copy)]
enum Wait {
    /// A wavelet has to be put into its queue, or to be taken from one that it puts into: it is told then.
    Told,
    /// This cycle has to come.
    Until(u64),
    /// A port has to be free.
    Port,
}

/// A stream of a router: a ramp up, or a colour.
#[derive(Clone, Copy)]
enum Stream {
    /// It does not end before this cycle unless it is told. It uses these ports.
    Flows {
        until: u64,
        ports: u8,
    },
    Waits(Wait),
}

/// The streams of all routers: of each its core's output queues with the ramp up, then its colours, both highest priority first.
pub(super) struct Routers {
    /// Where each PE's begin, and where the last one's end.
    first: Vec<u32>,
    streams: Vec<Stream>,
    /// What those that flow do. Apart from the rest, which is all that most visits look at.
    flows: Vec<Flow>,
    /// Of each PE the streams that were told to look again, one bit each; the last bit stands for all beyond.
    told: Vec<u64>,
}

impl Routers {
    pub fn new(net: &Network) -> Routers {
        let pes = net.ramps.len();
        let mut first = vec![0; pes + 1];
        for pe in 0..pes {
            let streams = net.ramps[pe].len() + net.router(pe as u32).len();
            first[pe + 1] = first[pe] + streams as u32;
        }
        let all = first[pes] as usize;
        Routers {
            first,
            streams: vec![Stream::Waits(Wait::Until(0)); all],
            flows: vec![Flow::new(NONE, 0, 0); all],
            told: vec![0; pes],
        }
    }

    /// A flow of a router's stream may end, or begin. Other components know by themselves.
    fn tell(&mut self, component: u32, stream: u8) {
        if let Some(told) = self.told.get_mut(component as usize) {
            *told |= 1 << stream.min(63);
        }
    }
}

impl Simulation<'_, '_> {
    /// A wavelet is taken from the queue in cycle `t`, the first after a pause: who waits for room is to look again.
    #[inline]
    pub fn taken_from(&mut self, queue: u32, t: u64) {
        let q = &mut self.queues[queue as usize];
        if q.wants_room {
            q.wants_room = false;
            let (putter, stream) = (q.putter, q.putting);
            self.routers.tell(putter, stream);
            self.wake(putter, t + 1);
        }
    }

    /// A wavelet is put into the queue in cycle `t`, the first after a pause: who waits for it is to look again.
    #[inline]
    pub fn put_into(&mut self, queue: u32, t: u64) {
        let q = &mut self.queues[queue as usize];
        if q.wants_head {
            q.wants_head = false;
            self.routers.tell(q.taker, q.taking);
            self.calendar.schedule(q.taker, t + q.latency, self.now);
        }
    }

    /// What was taken every cycle is no longer, from cycle `t` on: who puts without end, or counts on room, is to look again.
    #[inline]
    pub fn takes_ended(&mut self, queue: u32, t: u64) {
        let q = &self.queues[queue as usize];
        if q.puts.is_open() || q.wants_room {
            let (putter, stream) = (q.putter, q.putting);
            self.routers.tell(putter, stream);
            self.wake(putter, t + 1);
        }
    }

    /// What was put every cycle is no longer, from cycle `t` on: who takes without end is to look again.
    #[inline]
    pub fn puts_ended(&mut self, queue: u32, t: u64) {
        let q = &self.queues[queue as usize];
        if q.takes.is_open() {
            self.routers.tell(q.taker, q.taking);
            self.calendar.schedule(q.taker, t + q.latency, self.now);
        }
    }

    /// Decides what a router does from now on.
    pub fn visit_router(&mut self, pe: u32) {
        let t = self.now;
        // what it tells itself is for its next visit
        let all_told = std::mem::take(&mut self.routers.told[pe as usize]);
        let streams = self.routers.first[pe as usize] as usize..self.routers.first[pe as usize + 1] as usize;
        let ramps = self.net.ramps[pe as usize].len();
        let first = self.net.first_routed[pe as usize] as usize;
        let mut next = u64::MAX;
        let mut ramp = false;
        let mut used = 0u8;
        for (i, stream) in streams.enumerate() {
            let told = all_told >> i.min(63) & 1 == 1;
            let routed = i.checked_sub(ramps).map(|i| first + i);
            let (mut flow, mut round) = (None, false);
            match self.routers.streams[stream] {
                Stream::Flows { until, ports } => {
                    let free = if routed.is_some() {
                        ports & used == 0
                    } else {
                        !ramp
                    };
                    if !told && t < until && free {
                        next = next.min(until);
                        ramp |= routed.is_none();
                        used |= ports;
                        continue;
                    }
                    let mut old = self.routers.flows[stream];
                    round = self.settle(&mut old, routed, t);
                    flow = Some(old);
                }
                Stream::Waits(wait) => {
                    let asleep = match wait {
                        Wait::Told => !told,
                        Wait::Until(cycle) => {
                            if t < cycle {
                                next = next.min(cycle);
                            }
                            t < cycle
                        }
                        Wait::Port => false,
                    };
                    if asleep {
                        continue;
                    }
                }
            }
            let found = match routed {
                None if ramp => Err(Wait::Port),
                None => {
                    let (from, to) = self.net.ramps[pe as usize][i];
                    self.ramp(from, to, t)
                }
                Some(i) => self.granted(i, used, t),
            };
            self.routers.streams[stream] = match &found {
                Ok((cycles, flow)) => {
                    let (until, ports) = (t.saturating_add(*cycles), flow.ports);
                    next = next.min(until);
                    ramp |= routed.is_none();
                    used |= ports;
                    Stream::Flows { until, ports }
                }
                Err(wait) => {
                    if let Wait::Until(cycle) = wait {
                        next = next.min(*cycle);
                    }
                    Stream::Waits(*wait)
                }
            };
            let joins = routed.filter(|i| self.joined[*i] != NONE).map(|i| Joins {
                log: self.joined[i],
                flags: match round {
                    true => self.net.routed[i].round(&self.net),
                    false => 0,
                },
            });
            self.change(&mut flow, found.ok().map(|(_, flow)| flow), joins, t);
            if let Some(flow) = flow {
                self.routers.flows[stream] = flow;
            }
        }
        if next != u64::MAX {
            self.calendar.schedule(pe, next, t);
        }
    }

    /// The segment at the head of a queue, and how many of its wavelets can be taken one a cycle.
    fn head(&mut self, queue: u32, t: u64) -> Result<(u64, Segment), Wait> {
        let q = &mut self.queues[queue as usize];
        match q.head(t) {
            Head::Now(n) => Ok((n, *q.segment(q.takes.before(t)).expect("its head is there"))),
            Head::At(cycle) => Err(Wait::Until(cycle)),
            Head::None => {
                q.wants_head = true;
                Err(Wait::Told)
            }
        }
    }

    /// How many wavelets can be put one a cycle.
    fn room(&mut self, queue: u32, t: u64) -> Result<u64, Wait> {
        let q = &mut self.queues[queue as usize];
        match q.room(t) {
            Room::Now(n) => Ok(n),
            Room::Soon => Err(Wait::Until(t + 1)),
            Room::None => {
                q.wants_room = true;
                Err(Wait::Told)
            }
        }
    }

    /// Step B: whether the ramp up moves from this output queue, and for how many cycles for sure.
    fn ramp(&mut self, from: u32, to: u32, t: u64) -> Result<(u64, Flow), Wait> {
        let (cycles, segment) = self.head(from, t)?;
        let room = self.room(to, t)?;
        let latency = self.queues[to as usize].latency as u32;
        let mut flow = Flow::new(from, segment.first, t);
        flow.to[0] = Target::Queue { queue: to, latency };
        flow.outputs = 1;
        Ok((cycles.min(room), flow))
    }

    /// Rule M6 for a colour of a router: whether it is granted, and for how many cycles for sure.
    fn granted(&mut self, routed: usize, used: u8, t: u64) -> Result<(u64, Flow), Wait> {
        let r = &self.net.routed[routed];
        if r.grants_nothing() {
            return Err(Wait::Until(u64::MAX));
        }
        let position = *self.net.position(r);
        let (mut cycles, segment) = self.head(position.queue, t)?;
        let r = &self.net.routed[routed];
        if r.is_switch() {
            let n = self.queues[position.queue as usize].takes.before(t);
            let log = &self.logs[segment.log as usize];
            let turn = log.up_to_flag(
                segment.index + (n - segment.first),
                r.flags_left(&self.net.positions),
            );
            cycles = turn.map_or(cycles, |turn| cycles.min(turn));
        }
        let mut flow = Flow::new(position.queue, segment.first, t);
        let mut gap = false;
        for o in position.outputs.0..position.outputs.1 {
            let output = self.net.outputs[o as usize];
            if output.filter != NONE {
                let f = &self.net.routed[routed].filters[output.filter as usize];
                cycles = cycles.min(f.changes_after());
                if !f.passes() {
                    continue;
                }
            }
            let port = 1 << output.port as u8;
            if used & port != 0 {
                return Err(Wait::Port);
            }
            match output.target {
                Target::Queue { queue, .. } => {
                    cycles = cycles.min(self.room(queue, t)?);
                    flow.hops += (output.port != Port::Ramp) as u8;
                }
                Target::Drain { channel, .. } => {
                    let c = &self.net.channels[channel as usize];
                    gap |= t < c.next_out;
                    if c.channel.gap > 1 {
                        cycles = 1;
                    }
                }
            }
            flow.ports |= port;
            flow.to[flow.outputs as usize] = output.target;
            flow.outputs += 1;
        }
        if gap {
            self.event(t);
            return Err(Wait::Until(t + 1));
        }
        Ok((cycles, flow))
    }

    /// Ends, begins or leaves what a stream does. Where what it lets by is joined, others need not know that one source follows another,
    /// but for the end of a round.
    fn change(&mut self, slot: &mut Option<Flow>, found: Option<Flow>, joins: Option<Joins>, t: u64) {
        let mut takes = false;
        if let Some(old) = *slot {
            let turns = |to: &Target| match *to {
                Target::Queue { queue, .. } => self.queues[queue as usize].turns > 0,
                Target::Drain { .. } => false,
            };
            let parts = joins.is_some_and(|j| j.flags > 0) && old.to().iter().any(turns);
            if !parts && found.is_some_and(|new| new.same(&old)) {
                return;
            }
            takes = found.is_some_and(|new| new.from == old.from);
            let follows = joins.is_some() && !parts && found.is_some_and(|new| new.same_outputs(&old));
            self.stop(&old, takes, follows, joins, t);
            *slot = None;
            if let (true, Some(new)) = (follows, found) {
                self.start(&new, takes, true, joins, t);
                *slot = Some(new);
                return;
            }
        }
        if let Some(new) = found {
            self.start(&new, takes, false, joins, t);
            *slot = Some(new);
        }
    }

    /// A flow begins in cycle `t`; `takes` if its queue was taken from in the cycle before and goes on being so, `puts` if the same of
    /// all its outputs.
    fn start(&mut self, flow: &Flow, takes: bool, puts: bool, joins: Option<Joins>, t: u64) {
        let q = &mut self.queues[flow.from as usize];
        let n = q.takes.before(t);
        let segment = *q.segment(n).expect("it begins with a wavelet");
        if !takes {
            q.takes.open(t);
            self.taken_from(flow.from, t);
        }
        let (mut log, mut index) = (segment.log, segment.index + (n - segment.first));
        if let Some(j) = joins.filter(|_| flow.puts()) {
            index = join(&mut self.logs, j.log, log, index);
            log = j.log;
        }
        for to in flow.to() {
            match *to {
                Target::Queue { .. } if puts => {}
                Target::Queue { queue, .. } => {
                    self.queues[queue as usize].put_on(t, log, index, &mut self.logs);
                    self.put_into(queue, t);
                }
                Target::Drain { channel, .. } => {
                    let c = &mut self.net.channels[channel as usize];
                    c.next_out = t + c.channel.gap as u64;
                }
            }
        }
    }

    /// A flow has ended: it moves nothing in cycle `t`. `takes` and `puts` as for [`Self::start`].
    fn stop(&mut self, flow: &Flow, takes: bool, puts: bool, joins: Option<Joins>, t: u64) {
        let q = &mut self.queues[flow.from as usize];
        let n = q.takes.before(t);
        let segment = q.segments.iter().find(|s| s.first == flow.segment);
        let mut flags = segment.map_or(0, |s| if s.end() == n { s.flags } else { 0 });
        if let Some(j) = joins {
            flags = j.flags;
            if flow.puts() {
                let s = segment.expect("its segment is not forgotten before it ends");
                end_joined(&mut self.logs, j.log, s.index + (n - s.first));
            }
        }
        if !takes {
            q.takes.close(t);
            self.takes_ended(flow.from, t);
        }
        self.queues[flow.from as usize].forget(n, &mut self.logs);
        for to in flow.to() {
            if let (Target::Queue { queue, .. }, false) = (*to, puts) {
                self.queues[queue as usize].end_puts(t, flags);
                self.puts_ended(queue, t);
            }
        }
    }

    /// Counts what a flow moved up to before cycle `t`: filters, the switch, and what left at the edge. Returns whether a round of the
    /// switch ended.
    fn settle(&mut self, flow: &mut Flow, routed: Option<usize>, t: u64) -> bool {
        let cycles = t - flow.settled;
        if cycles == 0 {
            return false;
        }
        self.event(t - 1);
        let q = &self.queues[flow.from as usize];
        let (n, end) = (q.takes.before(flow.settled), q.takes.before(t));
        let segment = *q.segment(n).expect("it moved");
        for to in flow.to() {
            match *to {
                Target::Queue { queue, .. } => {
                    let arrival = t - 1 + self.queues[queue as usize].latency;
                    self.net.last_arrival = self.net.last_arrival.max(arrival);
                }
                Target::Drain { drain, .. } => {
                    let latency = self.net.edge_latency as u64;
                    self.net.last_arrival = self.net.last_arrival.max(t - 1 + latency);
                    self.net.edge_wavelets += cycles;
                    let index = segment.index + (n - segment.first);
                    if self.supply(segment.log, index + cycles) < index + cycles {
                        self.fault = true;
                        return false;
                    }
                    let mut left = std::mem::take(&mut self.popped);
                    left.clear();
                    read(&mut self.logs, segment.log, index, cycles, &mut left);
                    let landed = left.iter().zip(flow.settled + latency..);
                    self.landed[drain as usize]
                        .extend(landed.map(|(wavelet, cycle)| Landed { cycle, wavelet }));
                    self.popped = left;
                }
            }
        }
        flow.settled = t;
        let Some(routed) = routed else { return false };
        let r = &mut self.net.routed[routed];
        let position = self.net.positions[r.current as usize];
        for output in &self.net.outputs[position.outputs.0 as usize..position.outputs.1 as usize] {
            if output.filter != NONE {
                r.filters[output.filter as usize].advance_by(cycles);
            }
        }
        let hops = cycles * flow.hops as u64;
        self.net.hops += hops;
        match cycles {
            1 => self.paths.hops_single += hops,
            _ => self.paths.hops_flow += hops,
        }
        if !r.is_switch() {
            return false;
        }
        let index = segment.index + (n - segment.first);
        let flags = match self.logs[segment.log as usize].feed_flags(index, cycles) {
            Some(flags) => flags,
            None if segment.end() == end => segment.flags,
            None => 0,
        };
        flags > 0 && r.count_flags(flags, &self.net.positions)
    }
}
