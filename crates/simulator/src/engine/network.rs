//! Queues, routers and edge channels: rules M3 to M7 and M15.

use crate::machine::{Channel, Machine};
use crate::program::{Color, Feed, Port, Program, Wavelet};
use std::collections::{HashMap, VecDeque};

pub(super) const NONE: u32 = u32::MAX;

/// The queue at the end of a link. `held` counts what its sender may not reuse yet: pops are given back at the cycle's end.
pub(super) struct Queue {
    pub wavelets: VecDeque<(u64, Wavelet)>,
    pub held: u32,
    pub capacity: u32,
    pub pe: u32,
}

impl Queue {
    /// The first wavelet, if it has arrived.
    #[inline]
    pub fn head(&self, now: u64) -> Option<Wavelet> {
        self.wavelets.front().filter(|(at, _)| *at <= now).map(|(_, w)| *w)
    }

    #[inline]
    pub fn has_room(&self) -> bool {
        self.held < self.capacity
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

pub(super) struct Output {
    pub port: Port,
    pub target: Target,
    /// Index into the router's filters, or `NONE`.
    pub filter: u32,
}

pub(super) struct Position {
    pub input: Port,
    pub queue: u32,
    pub outputs: Vec<Output>,
    pub hold: u64,
}

pub(super) struct Filter {
    first: u64,
    count: u64,
    period: u64,
    seen: u64,
}

impl Filter {
    fn passes(&self) -> bool {
        self.period == 0 || (self.seen >= self.first && self.seen < self.first + self.count)
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
    pub positions: Vec<Position>,
    pub current: usize,
    flags: u64,
    filters: Vec<Filter>,
}

impl Routed {
    fn skip_empty(&mut self) {
        if self.positions.len() > 1 {
            for _ in 0..self.positions.len() {
                if self.positions[self.current].hold > 0 {
                    return;
                }
                self.current = (self.current + 1) % self.positions.len();
            }
        }
    }

    fn leave(&mut self, flag: bool) {
        if flag && self.positions.len() > 1 {
            self.flags += 1;
            if self.flags == self.positions[self.current].hold {
                self.flags = 0;
                self.current = (self.current + 1) % self.positions.len();
                self.skip_empty();
            }
        }
    }
}

/// An edge channel with what is still to enter.
pub(super) struct EdgePort {
    pub channel: Channel,
    /// Indices of the program's feeds, in order.
    feeds: VecDeque<u32>,
    position: usize,
    next_in: u64,
    next_out: u64,
}

impl EdgePort {
    /// Whether all its feeds have entered.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }
}

pub(super) struct Network<'p> {
    pub queues: Vec<Queue>,
    /// One a PE: the colours it routes, highest priority first.
    pub routers: Vec<Vec<Routed>>,
    /// Queue into the core / out of the core, at `pe * colors + color`.
    pub core_in: Vec<u32>,
    pub core_out: Vec<u32>,
    pub colors: u32,
    pub width: u32,
    pub height: u32,
    /// Wavelets in all queues of a PE, in flight included.
    pub held: Vec<u32>,
    pub channels: Vec<EdgePort>,
    feeds: &'p [Feed],
    /// Queue that a feed enters.
    feed_queue: Vec<u32>,
    pub epoch: u32,
    left_in_epoch: Vec<usize>,
    pub epochs: Vec<u64>,
    freed: Vec<u32>,
    /// PEs that got a wavelet this cycle.
    pub woken: Vec<u32>,
    pub last_arrival: u64,
    pub wavelets: u64,
    pub hops: u64,
    pub edge_wavelets: u64,
    /// One a PE: the core's output queues and the router's ramp queues behind them, highest priority first.
    ramps: Vec<Vec<(u32, u32)>>,
    ramp: u32,
    edge_latency: u32,
}

impl<'p> Network<'p> {
    /// Builds the routers of a verified program.
    pub fn new(program: &'p Program, machine: &Machine) -> Network<'p> {
        let (width, height, colors) = (machine.mesh.width, machine.mesh.height, machine.router.colors);
        let pes = (width * height) as usize;
        let mut rank = vec![0usize; 256];
        program.priority_order(colors).iter().enumerate().for_each(|(i, c)| rank[*c as usize] = i);
        let mut net = Network {
            queues: Vec::new(),
            routers: (0..pes).map(|_| Vec::new()).collect(),
            core_in: vec![NONE; pes * colors as usize],
            core_out: vec![NONE; pes * colors as usize],
            colors,
            width,
            height,
            held: vec![0; pes],
            channels: machine
                .channels()
                .into_iter()
                .map(|channel| EdgePort { channel, feeds: VecDeque::new(), position: 0, next_in: 0, next_out: 0 })
                .collect(),
            feeds: &program.feeds,
            feed_queue: Vec::new(),
            epoch: 0,
            left_in_epoch: Vec::new(),
            epochs: vec![0],
            freed: Vec::new(),
            woken: Vec::new(),
            last_arrival: 0,
            wavelets: 0,
            hops: 0,
            edge_wavelets: 0,
            ramps: vec![Vec::new(); pes],
            ramp: machine.router.ramp_cycles,
            edge_latency: machine.edge.latency_cycles,
        };
        // first every input queue, so that outputs can name their neighbours'
        let mut input = HashMap::new();
        for region in &program.regions {
            for route in &region.routes {
                for (x, y) in route.at.places() {
                    let pe = (region.y + y) * width + region.x + x;
                    for p in &route.positions {
                        let edge = (p.input == Port::West && region.x + x == 0) || (p.input == Port::East && region.x + x + 1 == width);
                        let latency = match p.input {
                            Port::Ramp => machine.router.ramp_cycles,
                            _ if edge => machine.edge.latency_cycles,
                            _ => machine.router.hop_cycles,
                        };
                        input.entry((pe, route.color, p.input)).or_insert_with(|| {
                            net.queues.push(Queue { wavelets: VecDeque::new(), held: 0, capacity: machine.router.queue_depth + latency, pe });
                            net.queues.len() as u32 - 1
                        });
                        let slot = (pe * colors) as usize + route.color as usize;
                        if p.input == Port::Ramp && net.core_out[slot] == NONE {
                            net.queues.push(Queue { wavelets: VecDeque::new(), held: 0, capacity: machine.pe.output_queue_depth + 1, pe });
                            net.core_out[slot] = net.queues.len() as u32 - 1;
                        }
                        if p.outputs.contains(&Port::Ramp) && net.core_in[slot] == NONE {
                            let capacity = machine.pe.input_queue_depth + machine.router.ramp_cycles;
                            net.queues.push(Queue { wavelets: VecDeque::new(), held: 0, capacity, pe });
                            net.core_in[slot] = net.queues.len() as u32 - 1;
                        }
                    }
                }
            }
        }
        for (r, region) in program.regions.iter().enumerate() {
            for (i, route) in region.routes.iter().enumerate() {
                for (x, y) in route.at.places() {
                    let (gx, gy) = (region.x + x, region.y + y);
                    let pe = gy * width + gx;
                    let at = |e: &crate::expr::Expr| e.at(x as i64, y as i64).max(0) as u64;
                    let filters = route
                        .filters
                        .iter()
                        .map(|f| Filter { first: at(&f.first), count: at(&f.count), period: at(&f.period), seen: 0 })
                        .collect();
                    let positions = route
                        .positions
                        .iter()
                        .map(|p| Position {
                            input: p.input,
                            queue: input[&(pe, route.color, p.input)],
                            hold: at(&p.hold),
                            outputs: p
                                .outputs
                                .iter()
                                .map(|&port| Output {
                                    port,
                                    target: net.target(program, machine, &input, gx, gy, route.color, port),
                                    filter: route.filters.iter().position(|f| f.output == port).map_or(NONE, |i| i as u32),
                                })
                                .collect(),
                        })
                        .collect();
                    let mut routed =
                        Routed { color: route.color, route: (r as u32, i as u32), positions, current: 0, flags: 0, filters };
                    routed.skip_empty();
                    net.routers[pe as usize].push(routed);
                }
            }
        }
        for (pe, router) in net.routers.iter_mut().enumerate() {
            router.sort_by_key(|r| rank[r.color as usize]);
            for r in router.iter() {
                if let Some(p) = r.positions.iter().find(|p| p.input == Port::Ramp) {
                    net.ramps[pe].push((net.core_out[pe * colors as usize + r.color as usize], p.queue));
                }
            }
        }
        for (i, feed) in program.feeds.iter().enumerate() {
            let (x, port) = match feed.side {
                crate::Side::West => (0, Port::West),
                crate::Side::East => (width - 1, Port::East),
            };
            net.feed_queue.push(input.get(&(feed.row * width + x, feed.color, port)).copied().unwrap_or(NONE));
            if let Some(c) = net.channels.iter_mut().find(|c| c.channel.side == feed.side && c.channel.row == feed.row) {
                c.feeds.push_back(i as u32);
            }
            let e = feed.epoch as usize;
            if net.left_in_epoch.len() <= e {
                net.left_in_epoch.resize(e + 1, 0);
            }
            net.left_in_epoch[e] += feed.data.len();
        }
        net.advance_epoch(0);
        net
    }

    #[allow(clippy::too_many_arguments)] // one private call; a struct for it would only rename them
    fn target(
        &self,
        program: &Program,
        machine: &Machine,
        input: &HashMap<(u32, Color, Port), u32>,
        x: u32,
        y: u32,
        color: Color,
        port: Port,
    ) -> Target {
        let missing = Target::Queue { queue: NONE, latency: 1 };
        let (nx, ny) = match port {
            Port::Ramp => {
                let queue = self.core_in[((y * self.width + x) * self.colors) as usize + color as usize];
                return Target::Queue { queue, latency: machine.router.ramp_cycles };
            }
            Port::North => (x as i64, y as i64 - 1),
            Port::South => (x as i64, y as i64 + 1),
            Port::West => (x as i64 - 1, y as i64),
            Port::East => (x as i64 + 1, y as i64),
        };
        if nx < 0 || nx >= self.width as i64 {
            let side = if nx < 0 { crate::Side::West } else { crate::Side::East };
            let drain = program.drains.iter().position(|d| d.side == side && d.row == y && d.color == color);
            let channel = self.channels.iter().position(|c| c.channel.side == side && c.channel.row == y);
            return match (drain, channel) {
                (Some(d), Some(c)) => Target::Drain { drain: d as u32, channel: c as u32 },
                _ => missing,
            };
        }
        let neighbour = ny as u32 * self.width + nx as u32;
        match input.get(&(neighbour, color, port.opposite())) {
            Some(&queue) if ny >= 0 && ny < self.height as i64 => Target::Queue { queue, latency: machine.router.hop_cycles },
            _ => missing,
        }
    }

    /// Puts a wavelet on the link that ends in `queue`.
    #[inline]
    pub fn push(&mut self, queue: u32, arrival: u64, wavelet: Wavelet) {
        let q = &mut self.queues[queue as usize];
        q.wavelets.push_back((arrival, wavelet));
        q.held += 1;
        self.last_arrival = self.last_arrival.max(arrival);
        if self.held[q.pe as usize] == 0 {
            self.woken.push(q.pe);
        }
        self.held[q.pe as usize] += 1;
    }

    /// Takes the head; its room is usable from the next cycle.
    #[inline]
    pub fn pop(&mut self, queue: u32) -> Option<Wavelet> {
        let q = &mut self.queues[queue as usize];
        let (_, w) = q.wavelets.pop_front()?;
        self.held[q.pe as usize] -= 1;
        self.freed.push(queue);
        Some(w)
    }

    /// Ends a cycle: what was freed becomes room.
    pub fn settle(&mut self) {
        for q in self.freed.drain(..) {
            self.queues[q as usize].held -= 1;
        }
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
            if feed.data.is_empty() {
                c.feeds.pop_front();
                event = true;
                continue;
            }
            if now < c.next_in {
                event = true;
                continue;
            }
            let queue = self.feed_queue[f as usize];
            if !self.queues[queue as usize].has_room() {
                continue;
            }
            let wavelet = feed.data[c.position];
            c.position += 1;
            if c.position == feed.data.len() {
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

    fn advance_epoch(&mut self, from: u64) -> bool {
        let mut moved = false;
        while (self.epoch as usize) < self.left_in_epoch.len() && self.left_in_epoch[self.epoch as usize] == 0 {
            self.epoch += 1;
            self.epochs.push(from);
            moved = true;
        }
        moved
    }

    /// What is still to enter on a colour, for explanations.
    pub fn feed_left(&self, row: u32, side: crate::Side, color: Color) -> usize {
        let Some(c) = self.channels.iter().find(|c| c.channel.side == side && c.channel.row == row) else { return 0 };
        let sum: usize = c.feeds.iter().map(|f| &self.feeds[*f as usize]).filter(|f| f.color == color).map(|f| f.data.len()).sum();
        sum.saturating_sub(if c.feeds.front().is_some_and(|f| self.feeds[*f as usize].color == color) { c.position } else { 0 })
    }

    /// Rule M6 for the core's own output queues and the ramp up, then for the router. Returns whether anything moved.
    pub fn route(&mut self, pe: u32, now: u64, landed: &mut [Vec<super::Landed>]) -> bool {
        let mut event = false;
        for i in 0..self.ramps[pe as usize].len() {
            let (out, into) = self.ramps[pe as usize][i];
            if self.queues[out as usize].head(now).is_some() && self.queues[into as usize].has_room() {
                let w = self.pop(out).expect("head was there");
                self.push(into, now + self.ramp as u64, w);
                event = true;
                break;
            }
        }
        let mut used = 0u8;
        let mut router = std::mem::take(&mut self.routers[pe as usize]);
        for r in &mut router {
            let position = &r.positions[r.current];
            let Some(w) = self.queues[position.queue as usize].head(now) else { continue };
            let mut granted = true;
            for o in &position.outputs {
                if o.filter != NONE && !r.filters[o.filter as usize].passes() {
                    continue;
                }
                let free = used & (1 << o.port as u8) == 0
                    && match o.target {
                        Target::Queue { queue, .. } => self.queues[queue as usize].has_room(),
                        Target::Drain { channel, .. } => {
                            let c = &self.channels[channel as usize];
                            if now < c.next_out {
                                event = true; // the gap ends by itself
                            }
                            now >= c.next_out
                        }
                    };
                if !free {
                    granted = false;
                    break;
                }
            }
            if !granted {
                continue;
            }
            event = true;
            self.pop(position.queue);
            for o in &position.outputs {
                if o.filter != NONE {
                    let f = &mut r.filters[o.filter as usize];
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
                        if o.port != Port::Ramp {
                            self.hops += 1;
                        }
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
            r.leave(w.flag);
        }
        self.routers[pe as usize] = router;
        event
    }
}
