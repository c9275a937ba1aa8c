//! Queues, routers and edge channels: rules M3 to M7 and M15.

use super::{Arrivals, QueueKind};
use crate::machine::{Channel, Machine};
use crate::program::{Color, Feed, Port, Stage, Wavelet};
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) const NONE: u32 = u32::MAX;

/// The queue at the end of a link, with what is in flight on it.
pub(super) struct Queue {
    /// Cycle of arrival, and the wavelet.
    wavelets: VecDeque<(u64, Wavelet)>,
    /// Arrival of the first one; the end of time if there is none.
    arrival: u64,
    /// When the last one was taken, and how many in that cycle: their room is not to be used in it.
    taken_at: u64,
    taken: u32,
    pub capacity: u32,
    /// Of the link that ends in it.
    pub latency: u32,
    pub pe: u32,
    /// The PE whose core or router sends into it.
    pub sender: u32,
}

impl Queue {
    fn new(pe: u32, depth: u32, latency: u32) -> Queue {
        let capacity = depth + latency;
        Queue {
            // only one of the engines puts wavelets here
            wavelets: VecDeque::new(),
            arrival: u64::MAX,
            taken_at: u64::MAX,
            taken: 0,
            capacity,
            latency,
            pe,
            sender: pe,
        }
    }

    /// Whether its first wavelet has arrived.
    #[inline]
    pub fn arrived(&self, now: u64) -> bool {
        self.arrival <= now
    }

    #[inline]
    pub fn has_room(&self, now: u64) -> bool {
        let taken = if self.taken_at == now { self.taken } else { 0 };
        self.wavelets.len() + (taken as usize) < self.capacity as usize
    }

    /// Wavelets in it, in flight included.
    pub fn len(&self) -> usize {
        self.wavelets.len()
    }
}

/// Where an output leads.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// A queue, over a link of this latency.
    Queue { queue: u32, latency: u32 },
    /// A drain, over a channel.
    Drain { drain: u32, channel: u32 },
}

#[derive(Clone, Copy)]
pub(super) struct Output {
    pub port: Port,
    pub target: Target,
    /// Index into the router's filters, or `NONE`.
    pub filter: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Position {
    pub input: Port,
    pub queue: u32,
    /// First and last + 1 of its outputs in [`Network::outputs`].
    pub outputs: (u32, u32),
    pub hold: u64,
}

pub(super) struct Filter {
    pub first: u64,
    pub count: u64,
    pub period: u64,
    pub seen: u64,
}

impl Filter {
    pub fn passes(&self) -> bool {
        self.period == 0 || (self.seen >= self.first && self.seen < self.first + self.count)
    }

    /// For how many more wavelets it does what it does now, at least.
    pub fn changes_after(&self) -> u64 {
        if self.period == 0 || (self.first == 0 && self.count >= self.period) {
            return u64::MAX;
        }
        let ends = [self.first, self.first.saturating_add(self.count), self.period];
        ends.into_iter()
            .filter(|e| *e > self.seen)
            .min()
            .map_or(1, |e| e - self.seen)
    }

    /// So many wavelets were granted, all before it changes.
    pub fn advance_by(&mut self, wavelets: u64) {
        self.seen += wavelets;
        if self.period > 0 {
            self.seen %= self.period;
        }
    }

    fn advance(&mut self) {
        self.seen += 1;
        if self.seen == self.period {
            self.seen = 0;
        }
    }
}

/// One colour in one router.
pub(super) struct Routed {
    pub color: Color,
    /// Region and route in the program, for messages.
    pub route: (u32, u32),
    /// First and last + 1 of its positions in [`Network::positions`].
    positions: (u32, u32),
    /// The position now.
    pub current: u32,
    /// Flagged wavelets that left at it.
    flags: u64,
    /// It has several positions and all their holds are 0: it grants nothing.
    dead: bool,
    pub filters: Vec<Filter>,
}

impl Routed {
    /// Whether all holds of its switch are 0.
    pub fn grants_nothing(&self) -> bool {
        self.dead
    }

    /// Its switch's position, counted from 0.
    pub fn stands_at(&self) -> u32 {
        self.current - self.positions.0
    }

    fn next(&mut self) {
        self.current += 1;
        if self.current == self.positions.1 {
            self.current = self.positions.0;
        }
    }

    fn skip_empty(&mut self, all: &[Position]) {
        for _ in self.positions.0 + 1..self.positions.1 {
            if all[self.current as usize].hold > 0 {
                return;
            }
            self.next();
        }
    }

    /// A flagged wavelet left.
    pub fn count_flag(&mut self, all: &[Position]) {
        self.count_flags(1, all);
    }

    /// So many flagged wavelets left, none of which but the last could turn the switch. Returns whether it stands where it began.
    pub fn count_flags(&mut self, flags: u64, all: &[Position]) -> bool {
        if !self.is_switch() {
            return false;
        }
        self.flags += flags;
        let before = self.current;
        if self.flags < all[before as usize].hold {
            return false;
        }
        self.flags = 0;
        self.next();
        self.skip_empty(all);
        self.current <= before
    }

    /// Whether it has several positions.
    pub fn is_switch(&self) -> bool {
        self.positions.1 - self.positions.0 > 1
    }

    /// Before how many more flagged wavelets its switch does not turn.
    pub fn flags_left(&self, all: &[Position]) -> u64 {
        all[self.current as usize].hold - self.flags
    }
}

/// An edge channel with what is still to enter.
pub(super) struct EdgePort {
    pub channel: Channel,
    /// Indices of the program's feeds, in order.
    pub feeds: VecDeque<u32>,
    pub position: usize,
    pub next_in: u64,
    pub next_out: u64,
}

impl EdgePort {
    /// Whether all its feeds have entered.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }
}

/// What is known of a PE's next cycles.
#[derive(Clone, Copy, Default)]
struct Activity {
    /// The last cycle in which it must be visited, as far as is known now.
    until: u64,
    /// Wavelets in all its queues, in flight included.
    held: u32,
    /// Whether nothing can change in it unless another one does something.
    asleep: bool,
}

/// A number for each colour of those PEs that have any. Most of a large mesh may have none.
pub(super) struct ByColor {
    colors: usize,
    /// Of each PE which row of `numbers`.
    rows: Vec<u32>,
    numbers: Vec<u32>,
}

impl ByColor {
    fn new(pes: usize, colors: u32) -> ByColor {
        ByColor {
            colors: colors as usize,
            rows: vec![NONE; pes],
            numbers: Vec::new(),
        }
    }

    /// `NONE` if there is none.
    #[inline]
    pub fn get(&self, pe: u32, color: Color) -> u32 {
        match self.rows[pe as usize] {
            NONE => NONE,
            row => self.numbers[row as usize * self.colors + color as usize],
        }
    }

    fn set(&mut self, pe: u32, color: Color, number: u32) {
        let row = &mut self.rows[pe as usize];
        if *row == NONE {
            *row = (self.numbers.len() / self.colors) as u32;
            self.numbers.resize(self.numbers.len() + self.colors, NONE);
        }
        self.numbers[*row as usize * self.colors + color as usize] = number;
    }
}

/// The queues of routers by PE, colour and input.
struct Inputs {
    /// Of each PE and colour which of `queues`, if it has a route.
    places: ByColor,
    queues: Vec<[u32; 5]>,
}

impl Inputs {
    fn get(&self, pe: u32, color: Color, port: Port) -> Option<u32> {
        let queues = self.queues.get(self.places.get(pe, color) as usize)?;
        Some(queues[port as usize]).filter(|q| *q != NONE)
    }

    fn set(&mut self, pe: u32, color: Color, port: Port, queue: u32) {
        if self.places.get(pe, color) == NONE {
            self.places.set(pe, color, self.queues.len() as u32);
            self.queues.push([NONE; 5]);
        }
        self.queues[self.places.get(pe, color) as usize][port as usize] = queue;
    }
}

pub(super) struct Network<'p> {
    pub queues: Vec<Queue>,
    /// The colours of all routers by PE, highest priority first, and where each PE's begin.
    pub routed: Vec<Routed>,
    pub first_routed: Vec<u32>,
    pub positions: Vec<Position>,
    pub outputs: Vec<Output>,
    /// Queue into the core / out of the core.
    pub core_in: ByColor,
    pub core_out: ByColor,
    pub width: u32,
    pub height: u32,
    /// One a PE.
    activity: Vec<Activity>,
    pub channels: Vec<EdgePort>,
    pub feeds: &'p [Feed],
    /// The wavelets of each feed.
    pub data: Vec<Arc<Vec<Wavelet>>>,
    /// Queue that a feed enters.
    pub feed_queue: Vec<u32>,
    pub epoch: u32,
    pub left_in_epoch: Vec<usize>,
    pub epochs: Vec<u64>,
    /// PEs that were asleep until this cycle.
    woken: Vec<u32>,
    pub last_arrival: u64,
    pub wavelets: u64,
    pub hops: u64,
    pub edge_wavelets: u64,
    /// One a PE: the core's output queues and the router's ramp queues behind them, highest priority first.
    pub ramps: Vec<Vec<(u32, u32)>>,
    ramp: u32,
    pub edge_latency: u32,
    /// Arrivals of the reference engine's wavelets by queue, if they are recorded.
    pub record: Option<Vec<Vec<u64>>>,
}

impl<'p> Network<'p> {
    /// Builds the routers of a stage of a verified program; `data` are the wavelets of its feeds.
    pub fn new(stage: &'p Stage, data: Vec<Arc<Vec<Wavelet>>>, machine: &Machine) -> Network<'p> {
        let (width, height, colors) = (machine.mesh.width, machine.mesh.height, machine.router.colors);
        let pes = (width * height) as usize;
        let mut rank = vec![0usize; 256];
        stage
            .priority_order(colors)
            .iter()
            .enumerate()
            .for_each(|(i, c)| rank[*c as usize] = i);
        let mut net = Network {
            queues: Vec::new(),
            routed: Vec::new(),
            first_routed: vec![0; pes + 1],
            positions: Vec::new(),
            outputs: Vec::new(),
            core_in: ByColor::new(pes, colors),
            core_out: ByColor::new(pes, colors),
            width,
            height,
            activity: vec![Activity::default(); pes],
            channels: machine
                .channels()
                .into_iter()
                .map(|channel| EdgePort {
                    channel,
                    feeds: VecDeque::new(),
                    position: 0,
                    next_in: 0,
                    next_out: 0,
                })
                .collect(),
            feeds: &stage.feeds,
            data,
            feed_queue: Vec::new(),
            epoch: 0,
            left_in_epoch: vec![0],
            epochs: vec![0],
            woken: Vec::new(),
            last_arrival: 0,
            wavelets: 0,
            hops: 0,
            edge_wavelets: 0,
            ramps: vec![Vec::new(); pes],
            ramp: machine.router.ramp_cycles,
            edge_latency: machine.edge.latency_cycles,
            record: None,
        };
        // by PE, so that what one PE needs lies together; a router's colours highest priority first
        let mut places = Vec::new();
        for (r, region) in stage.regions.iter().enumerate() {
            for (i, route) in region.routes.iter().enumerate() {
                places.extend(route.at.places().map(|(x, y)| {
                    let pe = (region.y + y) * width + region.x + x;
                    (pe, rank[route.color as usize], r as u32, i as u32, x, y)
                }));
            }
        }
        places.sort_unstable();
        // first every queue, so that outputs can name their neighbours'
        let mut input = Inputs {
            places: ByColor::new(pes, colors),
            queues: Vec::with_capacity(places.len()),
        };
        for &(pe, _, r, i, ..) in &places {
            let route = &stage.regions[r as usize].routes[i as usize];
            for p in &route.positions {
                let edge = (p.input == Port::West && pe % width == 0)
                    || (p.input == Port::East && (pe + 1) % width == 0);
                let latency = match p.input {
                    Port::Ramp => machine.router.ramp_cycles,
                    _ if edge => machine.edge.latency_cycles,
                    _ => machine.router.hop_cycles,
                };
                let into = match input.get(pe, route.color, p.input) {
                    Some(queue) => queue,
                    None => {
                        let queue = net.queue(pe, machine.router.queue_depth, latency);
                        input.set(pe, route.color, p.input, queue);
                        queue
                    }
                };
                if p.input == Port::Ramp && net.core_out.get(pe, route.color) == NONE {
                    let queue = net.queue(pe, machine.pe.output_queue_depth, 1);
                    net.core_out.set(pe, route.color, queue);
                    net.ramps[pe as usize].push((queue, into));
                }
                if p.outputs.contains(&Port::Ramp) && net.core_in.get(pe, route.color) == NONE {
                    let queue = net.queue(pe, machine.pe.input_queue_depth, machine.router.ramp_cycles);
                    net.core_in.set(pe, route.color, queue);
                }
            }
        }
        for &(pe, _, r, i, x, y) in &places {
            let route = &stage.regions[r as usize].routes[i as usize];
            let at = |e: &crate::expr::Expr| e.at(x as i64, y as i64).max(0) as u64;
            let filter = |f: &crate::program::Filter| Filter {
                first: at(&f.first),
                count: at(&f.count),
                period: at(&f.period),
                seen: 0,
            };
            let first = net.positions.len() as u32;
            for p in &route.positions {
                let first = net.outputs.len() as u32;
                for &port in &p.outputs {
                    let target =
                        net.target(stage, machine, &input, pe % width, pe / width, route.color, port);
                    let filter = route
                        .filters
                        .iter()
                        .position(|f| f.output == port)
                        .map_or(NONE, |i| i as u32);
                    net.outputs.push(Output { port, target, filter });
                    if let Target::Queue { queue, .. } = target
                        && queue != NONE
                    {
                        net.queues[queue as usize].sender = pe;
                    }
                }
                let (queue, outputs) = (
                    input.get(pe, route.color, p.input).unwrap_or(NONE),
                    (first, net.outputs.len() as u32),
                );
                net.positions.push(Position {
                    input: p.input,
                    queue,
                    outputs,
                    hold: at(&p.hold),
                });
            }
            let mine = &net.positions[first as usize..];
            let dead = mine.len() > 1 && mine.iter().all(|p| p.hold == 0);
            let mut routed = Routed {
                color: route.color,
                route: (r, i),
                positions: (first, net.positions.len() as u32),
                current: first,
                flags: 0,
                dead,
                filters: route.filters.iter().map(filter).collect(),
            };
            routed.skip_empty(&net.positions);
            net.routed.push(routed);
            net.first_routed[pe as usize + 1] += 1;
        }
        for pe in 0..pes {
            net.first_routed[pe + 1] += net.first_routed[pe];
        }
        for (i, feed) in stage.feeds.iter().enumerate() {
            let (x, port) = match feed.side {
                crate::Side::West => (0, Port::West),
                crate::Side::East => (width - 1, Port::East),
            };
            let queue = input.get(feed.row * width + x, feed.color, port);
            net.feed_queue.push(queue.unwrap_or(NONE));
            if net.data[i].is_empty() {
                continue;
            }
            if let Some(c) = net
                .channels
                .iter_mut()
                .find(|c| c.channel.side == feed.side && c.channel.row == feed.row)
            {
                c.feeds.push_back(i as u32);
            }
            let e = feed.epoch as usize;
            if net.left_in_epoch.len() <= e {
                net.left_in_epoch.resize(e + 1, 0);
            }
            net.left_in_epoch[e] += net.data[i].len();
        }
        net.advance_epoch(0);
        net
    }

    /// The colours that a PE's router routes, highest priority first.
    pub fn router(&self, pe: u32) -> &[Routed] {
        &self.routed[self.first_routed[pe as usize] as usize..self.first_routed[pe as usize + 1] as usize]
    }

    /// All positions of a colour's switch.
    pub fn positions(&self, r: &Routed) -> &[Position] {
        &self.positions[r.positions.0 as usize..r.positions.1 as usize]
    }

    /// The position at which a colour's switch stands.
    pub fn position(&self, r: &Routed) -> &Position {
        &self.positions[r.current as usize]
    }

    /// The outputs of a position.
    pub fn outputs(&self, p: &Position) -> &[Output] {
        &self.outputs[p.outputs.0 as usize..p.outputs.1 as usize]
    }

    /// Arrivals in the stage's cycles, one list a queue, as [`super::Outcome::arrivals`] has them.
    pub fn arrivals(&self, mut cycles: Vec<Vec<u64>>, stage: u32, begin: u64) -> Vec<Arrivals> {
        let mut all = Vec::new();
        for pe in 0..self.width * self.height {
            for r in self.router(pe) {
                let positions = self.positions(r).iter();
                let mut queues: Vec<(u32, QueueKind)> =
                    positions.map(|p| (p.queue, QueueKind::Router(p.input))).collect();
                queues.push((self.core_out.get(pe, r.color), QueueKind::CoreOutput));
                queues.push((self.core_in.get(pe, r.color), QueueKind::CoreInput));
                // positions may share an input
                queues.sort_by_key(|q| q.0);
                queues.dedup_by_key(|q| q.0);
                for (q, queue) in queues.into_iter().filter(|q| q.0 != NONE) {
                    let mut cycles = std::mem::take(&mut cycles[q as usize]);
                    cycles.iter_mut().for_each(|c| *c += begin);
                    let (x, y) = (pe % self.width, pe / self.width);
                    all.push(Arrivals {
                        stage,
                        x,
                        y,
                        color: r.color,
                        queue,
                        cycles,
                    });
                }
            }
        }
        all
    }

    /// A new queue at the end of a link.
    fn queue(&mut self, pe: u32, depth: u32, latency: u32) -> u32 {
        self.queues.push(Queue::new(pe, depth, latency));
        self.queues.len() as u32 - 1
    }

    #[allow(clippy::too_many_arguments)] // one private call; a struct for it would only rename them
    fn target(
        &self,
        stage: &Stage,
        machine: &Machine,
        input: &Inputs,
        x: u32,
        y: u32,
        color: Color,
        port: Port,
    ) -> Target {
        let missing = Target::Queue {
            queue: NONE,
            latency: 1,
        };
        let (nx, ny) = match port {
            Port::Ramp => {
                let queue = self.core_in.get(y * self.width + x, color);
                return Target::Queue {
                    queue,
                    latency: machine.router.ramp_cycles,
                };
            }
            Port::North => (x as i64, y as i64 - 1),
            Port::South => (x as i64, y as i64 + 1),
            Port::West => (x as i64 - 1, y as i64),
            Port::East => (x as i64 + 1, y as i64),
        };
        if nx < 0 || nx >= self.width as i64 {
            let side = if nx < 0 {
                crate::Side::West
            } else {
                crate::Side::East
            };
            let drain = stage
                .drains
                .iter()
                .position(|d| d.side == side && d.row == y && d.color == color);
            let channel = self
                .channels
                .iter()
                .position(|c| c.channel.side == side && c.channel.row == y);
            return match (drain, channel) {
                (Some(d), Some(c)) => Target::Drain {
                    drain: d as u32,
                    channel: c as u32,
                },
                _ => missing,
            };
        }
        let inside = ny >= 0 && ny < self.height as i64;
        let neighbour = || ny as u32 * self.width + nx as u32;
        match inside
            .then(|| input.get(neighbour(), color, port.opposite()))
            .flatten()
        {
            Some(queue) => Target::Queue {
                queue,
                latency: machine.router.hop_cycles,
            },
            _ => missing,
        }
    }

    /// Puts a wavelet on the link that ends in `queue`.
    #[inline]
    pub fn push(&mut self, queue: u32, arrival: u64, wavelet: Wavelet) {
        let q = &mut self.queues[queue as usize];
        if q.wavelets.is_empty() {
            q.arrival = arrival;
        }
        q.wavelets.push_back((arrival, wavelet));
        self.last_arrival = self.last_arrival.max(arrival);
        let pe = q.pe;
        if let Some(record) = &mut self.record {
            record[queue as usize].push(arrival);
        }
        self.activity[pe as usize].held += 1;
        self.visit(pe, arrival);
    }

    /// The PE must be visited in all cycles from the next to this one.
    #[inline]
    pub fn visit(&mut self, pe: u32, until: u64) {
        let a = &mut self.activity[pe as usize];
        a.until = a.until.max(until);
        if a.asleep {
            a.asleep = false;
            self.woken.push(pe);
        }
    }

    /// Leaves in `active` the PEs that must be visited in the next cycle.
    pub fn sleep(&mut self, active: &mut Vec<u32>, now: u64) {
        active.retain(|&pe| {
            let a = &mut self.activity[pe as usize];
            a.asleep = a.until <= now;
            !a.asleep
        });
        active.append(&mut self.woken);
    }

    /// Takes the first wavelet, which must have arrived; its room is usable from the next cycle.
    #[inline]
    pub fn pop(&mut self, queue: u32, now: u64) -> Wavelet {
        let q = &mut self.queues[queue as usize];
        let (_, w) = q.wavelets.pop_front().expect("only arrived wavelets are taken");
        q.arrival = q.wavelets.front().map_or(u64::MAX, |(at, _)| *at);
        q.taken = if q.taken_at == now { q.taken + 1 } else { 1 };
        q.taken_at = now;
        let sender = q.sender;
        self.activity[q.pe as usize].held -= 1;
        self.visit(sender, now + 1);
        w
    }

    /// Rule M15: what enters this cycle. Returns whether anything did, or will without another event.
    pub fn feed(&mut self, now: u64) -> bool {
        let mut event = false;
        for i in 0..self.channels.len() {
            let c = &mut self.channels[i];
            let Some(&f) = c.feeds.front() else { continue };
            let feed = &self.feeds[f as usize];
            if feed.epoch != self.epoch {
                continue;
            }
            if now < c.next_in {
                event = true;
                continue;
            }
            let queue = self.feed_queue[f as usize];
            if !self.queues[queue as usize].has_room(now) {
                continue;
            }
            let data = &self.data[f as usize];
            let wavelet = data[c.position];
            c.position += 1;
            if c.position == data.len() {
                c.feeds.pop_front();
                c.position = 0;
            }
            c.next_in = now + c.channel.gap as u64;
            self.push(queue, now + self.edge_latency as u64, wavelet);
            self.left_in_epoch[self.epoch as usize] -= 1;
            self.wavelets += 1;
            self.edge_wavelets += 1;
            event = true;
        }
        self.advance_epoch(now + 1) || event
    }

    pub fn advance_epoch(&mut self, from: u64) -> bool {
        let mut moved = false;
        while (self.epoch as usize) < self.left_in_epoch.len() && self.left_in_epoch[self.epoch as usize] == 0
        {
            self.epoch += 1;
            self.epochs.push(from);
            moved = true;
        }
        moved
    }

    /// What is still to enter on a colour, for explanations.
    pub fn feed_left(&self, row: u32, side: crate::Side, color: Color) -> usize {
        let Some(c) = self
            .channels
            .iter()
            .find(|c| c.channel.side == side && c.channel.row == row)
        else {
            return 0;
        };
        let sum: usize = c
            .feeds
            .iter()
            .filter(|f| self.feeds[**f as usize].color == color)
            .map(|f| self.data[*f as usize].len())
            .sum();
        sum.saturating_sub(
            if c.feeds
                .front()
                .is_some_and(|f| self.feeds[*f as usize].color == color)
            {
                c.position
            } else {
                0
            },
        )
    }

    /// The first channel of which a wavelet could enter but for room, and that wavelet's colour; else the first that has any.
    pub fn entering(&self) -> Option<(Channel, Color)> {
        let next = |c: &EdgePort| c.feeds.front().map(|f| (c.channel, &self.feeds[*f as usize]));
        let ready = self
            .channels
            .iter()
            .filter_map(next)
            .find(|(_, f)| f.epoch == self.epoch);
        ready
            .or_else(|| self.channels.iter().find_map(next))
            .map(|(c, f)| (c, f.color))
    }

    /// Rule M6 for the core's own output queues and the ramp up, then for the router. Returns whether anything moved.
    pub fn route(&mut self, pe: u32, now: u64, landed: &mut [Vec<super::Landed>]) -> bool {
        if self.activity[pe as usize].held == 0 {
            return false;
        }
        let mut event = false;
        for i in 0..self.ramps[pe as usize].len() {
            let (out, into) = self.ramps[pe as usize][i];
            if self.queues[out as usize].arrived(now) && self.queues[into as usize].has_room(now) {
                let w = self.pop(out, now);
                self.push(into, now + self.ramp as u64, w);
                event = true;
                break;
            }
        }
        let mut used = 0u8;
        'colors: for i in self.first_routed[pe as usize] as usize..self.first_routed[pe as usize + 1] as usize
        {
            let r = &self.routed[i];
            let position = self.positions[r.current as usize];
            if r.dead || !self.queues[position.queue as usize].arrived(now) {
                continue;
            }
            let outputs = position.outputs.0 as usize..position.outputs.1 as usize;
            // a channel's gap ends by itself: an event, if nothing else holds the wavelet
            let mut gap = false;
            for o in &self.outputs[outputs.clone()] {
                if o.filter != NONE && !r.filters[o.filter as usize].passes() {
                    continue;
                }
                if used & (1 << o.port as u8) != 0 {
                    continue 'colors;
                }
                match o.target {
                    Target::Queue { queue, .. } if !self.queues[queue as usize].has_room(now) => {
                        continue 'colors;
                    }
                    Target::Queue { .. } => {}
                    Target::Drain { channel, .. } => gap |= now < self.channels[channel as usize].next_out,
                }
            }
            if gap {
                event = true;
                continue;
            }
            event = true;
            let w = self.pop(position.queue, now);
            for o in outputs {
                let o = self.outputs[o];
                if o.filter != NONE {
                    let f = &mut self.routed[i].filters[o.filter as usize];
                    let passes = f.passes();
                    f.advance();
                    if !passes {
                        continue;
                    }
                }
                used |= 1 << o.port as u8;
                match o.target {
                    Target::Queue { queue, latency } => {
                        self.push(queue, now + latency as u64, w);
                        self.hops += (o.port != Port::Ramp) as u64;
                    }
                    Target::Drain { drain, channel } => {
                        let c = &mut self.channels[channel as usize];
                        c.next_out = now + c.channel.gap as u64;
                        let cycle = now + self.edge_latency as u64;
                        self.last_arrival = self.last_arrival.max(cycle);
                        self.edge_wavelets += 1;
                        landed[drain as usize].push(super::Landed { cycle, wavelet: w });
                    }
                }
            }
            if w.flag {
                self.routed[i].count_flag(&self.positions);
            }
        }
        event
    }
}

impl super::core::Ports for Network<'_> {
    fn core_in(&self, pe: u32, color: Color) -> u32 {
        self.core_in.get(pe, color)
    }

    fn core_out(&self, pe: u32, color: Color) -> u32 {
        self.core_out.get(pe, color)
    }

    fn arrived(&self, queue: u32, now: u64) -> bool {
        self.queues[queue as usize].arrived(now)
    }

    fn has_room(&self, queue: u32, now: u64) -> bool {
        self.queues[queue as usize].has_room(now)
    }

    fn pop(&mut self, queue: u32, now: u64) -> Wavelet {
        Network::pop(self, queue, now)
    }

    fn send(&mut self, queue: u32, now: u64, wavelet: Wavelet) {
        self.push(queue, now + 1, wavelet);
        self.wavelets += 1;
    }
}
