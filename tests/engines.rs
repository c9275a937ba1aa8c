//! The fast engine answers as the reference engine does, in everything: outputs, cycles, counters, errors, limits, and the cycle of
//! every wavelet's arrival in every queue. The programs here are random and made for what a fast engine takes at once: long streams
//! that flow through many routers and are broken in their middle by other streams on their links and ramps, by filters and switches,
//! by full queues, by threads that compete for the slot, by tasks that take from the same queue, by values that go around in circles.
//! `tests/determinism.rs` has short and wilder programs, `tests/kernels.rs` and `tests/families.rs` compiled ones.

mod common;

use common::{Choices, on_both, small};
use meshloom_simulator::engine::{self, Engine, Options, Outcome, Probe, RunError};
use meshloom_simulator::program::*;
use meshloom_simulator::text::{DataStore, parse};
use meshloom_simulator::{Expr, Machine, Side, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Numbers of a PE's memory: those of f32 from address 0, those of f16 behind them, indices of lists behind those.
const NUMBERS: u32 = 2048;
const HALVES: u32 = 4 * NUMBERS;
const INDICES: u32 = HALVES + 2 * NUMBERS;
const BYTES: u32 = INDICES + 64;
/// The highest colour: each PE sends part of its memory to itself at its end.
const DUMP: Color = 23;

/// A wavelet of a stream, as far as routers see it: elements and flag.
type Mark = (u8, bool);

/// A block of a stream: rows and elements a row.
type Shape = [u32; 2];

/// What a PE's code does with a stream or by itself.
enum Act {
    /// Takes a stream, one instruction a shape.
    Take {
        color: Color,
        ty: Ty,
        shapes: Vec<Shape>,
    },
    /// Sends blocks, the last wavelet of each flagged.
    Send {
        color: Color,
        ty: Ty,
        blocks: u32,
        shape: Shape,
    },
    /// Sends op(what comes, memory) or op(what comes, what comes on another colour).
    Pass {
        from: Color,
        with: Option<Color>,
        to: Color,
        ty: Ty,
        blocks: u32,
        shape: Shape,
    },
    /// As many lists of sparse elements from the fabric.
    Axpy { color: Color, ty: Ty, lists: u32 },
    /// A data task takes so many wavelets.
    Task { color: Color, wavelets: u32 },
    /// Work on memory alone.
    Work,
}

/// A stage under construction.
struct Plan<'a, 'c, 'm> {
    c: &'a mut Choices<'c>,
    machine: &'m Machine,
    routes: Vec<Route>,
    acts: BTreeMap<(u32, u32), Vec<Act>>,
    feeds: Vec<Feed>,
    drains: Vec<Drain>,
    /// What leaves by each drain.
    left: Vec<Vec<Mark>>,
    /// What left before: stage, drain, and what.
    before: &'m [(u32, u32, Vec<Mark>)],
    color: Color,
}

/// Where a port leads.
fn beyond(x: u32, y: u32, port: Port, w: u32, h: u32) -> Option<(u32, u32)> {
    match port {
        Port::North if y > 0 => Some((x, y - 1)),
        Port::East if x + 1 < w => Some((x + 1, y)),
        Port::South if y + 1 < h => Some((x, y + 1)),
        Port::West if x > 0 => Some((x - 1, y)),
        _ => None,
    }
}

/// What a router of one input makes of a stream: what leaves by each output (rule M7).
fn routed(marks: &[Mark], route: &Route) -> BTreeMap<Port, Vec<Mark>> {
    let hold = |p: &Position| p.hold.at(0, 0);
    let mut out = BTreeMap::<Port, Vec<Mark>>::new();
    let mut seen = vec![0; route.filters.len()];
    let turns = route.positions.len() > 1;
    let mut at = 0;
    if turns {
        let Some(first) = route.positions.iter().position(|p| hold(p) > 0) else {
            return out;
        };
        at = first;
    }
    let mut flags = 0;
    for mark in marks {
        let position = &route.positions[at];
        for o in &position.outputs {
            let mut passes = true;
            if let Some(i) = route.filters.iter().position(|f| f.output == *o) {
                let f = &route.filters[i];
                let (first, count, period) = (f.first.at(0, 0), f.count.at(0, 0), f.period.at(0, 0));
                passes = period == 0 || (seen[i] >= first && seen[i] < first + count);
                seen[i] += 1;
                if seen[i] == period {
                    seen[i] = 0;
                }
            }
            if passes {
                out.entry(*o).or_default().push(*mark);
            }
        }
        if turns && mark.1 {
            flags += 1;
            if flags == hold(position) {
                flags = 0;
                let next = (1..=route.positions.len()).map(|i| (at + i) % route.positions.len());
                at = next
                    .into_iter()
                    .find(|i| hold(&route.positions[*i]) > 0)
                    .unwrap_or(at);
            }
        }
    }
    out
}

fn constant(n: u32) -> Expr {
    Expr::Const(n as i64)
}

impl Plan<'_, '_, '_> {
    fn size(&self) -> (u32, u32) {
        (self.machine.mesh.width, self.machine.mesh.height)
    }

    fn next_color(&mut self) -> Color {
        self.color += 1;
        self.color - 1
    }

    fn act(&mut self, x: u32, y: u32, act: Act) {
        self.acts.entry((x, y)).or_default().push(act);
    }

    /// Elements of a stream: none, shorter than the queues, or long.
    fn length(&mut self) -> u32 {
        match self.c.below(8) {
            0 => self.c.below(4),
            1..=3 => 5 + self.c.below(56),
            4..=6 => 60 + self.c.below(340),
            _ => 400 + self.c.below(1200),
        }
    }

    /// Blocks of rows, and how their wavelets look.
    fn blocks(&mut self) -> (Ty, u32, Shape) {
        let ty = if self.c.one_in(4) { Ty::F16 } else { Ty::F32 };
        let n = self.length();
        let blocks = 1 + self.c.below(3);
        let rows = if self.c.one_in(3) { 1 + self.c.below(5) } else { 1 };
        (ty, blocks, [rows, (n / blocks / rows).min(NUMBERS)])
    }

    fn marks(&self, ty: Ty, blocks: u32, [rows, columns]: Shape) -> Vec<Mark> {
        let mut all = Vec::new();
        let width = match ty {
            Ty::F32 => self.machine.link.bits.min(self.machine.pe.sram.port_bits) / 32,
            Ty::F16 => (self.machine.link.bits / 16).min(self.machine.pe.sram.port_bits / 32),
        };
        for _ in 0..blocks {
            for row in 0..rows {
                let mut left = columns;
                while left > 0 {
                    let n = left.min(width);
                    left -= n;
                    all.push((n as u8, left == 0 && row + 1 == rows));
                }
            }
        }
        all
    }

    fn route(&mut self, color: Color, x: u32, y: u32, positions: Vec<Position>, filters: Vec<Filter>) {
        self.routes.push(Route {
            color,
            stream: format!("s{color}"),
            at: Lattice::rect(x, y, 1, 1),
            positions,
            filters,
        });
    }

    /// A route of one position.
    fn straight(&mut self, color: Color, x: u32, y: u32, input: Port, outputs: &[Port]) {
        let position = self.position(input, outputs, 1);
        self.route(color, x, y, vec![position], Vec::new());
    }

    fn position(&self, input: Port, outputs: &[Port], hold: u32) -> Position {
        Position {
            input,
            outputs: outputs.to_vec(),
            hold: constant(hold),
        }
    }

    fn drain(&mut self, side: Side, y: u32, color: Color, marks: &[Mark]) {
        let wavelets = marks.len() as u32;
        let wavelets = if self.c.one_in(50) {
            self.c.below(40)
        } else {
            wavelets
        };
        self.left.push(marks.to_vec());
        self.drains.push(Drain {
            name: "d".into(),
            side,
            row: y,
            color,
            wavelets: wavelets as u64,
        });
    }

    fn has_channel(&self, side: Side, y: u32) -> bool {
        self.machine
            .channels()
            .iter()
            .any(|c| c.side == side && c.row == y)
    }

    /// A core takes a stream of these wavelets, which were sent in blocks of this shape unless some were dropped.
    fn take(&mut self, x: u32, y: u32, color: Color, marks: &[Mark], sent: Option<(Ty, u32, Shape)>) {
        let n = marks.len() as u32;
        if marks.iter().all(|m| m.0 == 1) && !matches!(sent, Some((Ty::F16, ..))) {
            if n <= 200 && self.c.one_in(5) {
                self.act(x, y, Act::Task { color, wavelets: n });
                return;
            }
            let mut left = n;
            if n <= 400 && self.c.one_in(3) {
                // a task and a move take from one queue
                let wavelets = n - self.c.below(n + 1);
                self.act(x, y, Act::Task { color, wavelets });
                left -= wavelets;
            }
            let mut shapes = Vec::new();
            for part in [2, 3, 1] {
                let n = if part == 1 { left } else { left / part };
                let rows = [1, 1, 2, 3, 4][self.c.below(5) as usize];
                if n > 0 && self.c.below(3) > 0 || part == 1 {
                    left -= n;
                    let rows = if n % rows == 0 { rows } else { 1 };
                    shapes.push([rows, n / rows]);
                }
            }
            shapes.retain(|[rows, columns]| rows * columns > 0);
            let ty = Ty::F32;
            self.act(x, y, Act::Take { color, ty, shapes });
            return;
        }
        if let Some((ty, blocks, shape)) = sent
            && self.marks(ty, blocks, shape) == marks
        {
            let shapes = vec![shape; blocks as usize];
            self.act(x, y, Act::Take { color, ty, shapes });
            return;
        }
        // runs of wavelets with as many elements
        let mut shapes: Vec<Shape> = Vec::new();
        for m in marks {
            match shapes.last_mut() {
                Some([rows, columns]) if *columns == m.0 as u32 => *rows += 1,
                _ => shapes.push([1, m.0 as u32]),
            }
        }
        shapes.truncate(10);
        let ty = sent.map_or(Ty::F16, |s| s.0);
        self.act(x, y, Act::Take { color, ty, shapes });
    }

    /// What the host feeds: elements or sparse elements, flagged now and then.
    fn fed(&mut self) -> (Vec<Wavelet>, Option<Ty>) {
        let n = self.length();
        let sparse = self.c.one_in(3);
        let every = [1, 3, 17, 64][self.c.below(4) as usize];
        let mut data = Vec::new();
        if sparse {
            let ty = if self.c.one_in(2) { Ty::F16 } else { Ty::F32 };
            let n = (n / 8).min(40);
            let zeros = 1 + self.c.below(4);
            for i in 0..n {
                let flag = i + 1 == n || i % every == every - 1;
                let value = if i % zeros == 1 { 0.0 } else { 0.5 + (i % 7) as f32 };
                let index = (i * 5 % 12) as u64;
                let one = |bits, flag| Wavelet {
                    bits,
                    elements: 1,
                    flag,
                };
                match (ty, self.machine.link.bits) {
                    (Ty::F16, _) => {
                        // 1.0 and its like
                        let bits = if value == 0.0 {
                            0
                        } else {
                            0x3c00 + (i as u64 % 7) * 64
                        };
                        data.push(one(index << 16 | bits, flag));
                    }
                    (Ty::F32, 32) => {
                        data.push(one(index, false));
                        data.push(one(value.to_bits() as u64, flag));
                    }
                    _ => data.push(one(index << 32 | value.to_bits() as u64, flag)),
                }
            }
            return (data, Some(ty));
        }
        let (elements, shift) = if self.c.one_in(6) { (2, 16) } else { (1, 0) };
        for i in 0..n {
            let bits = if elements == 2 {
                0x3800_3c00 + ((i as u64 % 50) << shift)
            } else {
                (0.25 * (i as f32 - 9.0)).to_bits() as u64
            };
            let flag = every > 1 && i % every == every - 1;
            data.push(Wavelet { bits, elements, flag });
        }
        if self.c.one_in(20) && n > 0 {
            // a fault in the middle
            let i = self.c.below(n) as usize;
            data[i].elements = 3 - elements;
        }
        (data, None)
    }

    /// A tree of up to 10 routers from a core or from the edge.
    fn tree(&mut self) {
        let (w, h) = self.size();
        let color = self.next_color();
        let edge = self.machine.channels();
        let (x, y, input, marks, sent, sparse);
        if self.c.one_in(3) {
            let channel = &edge[self.c.below(edge.len() as u32) as usize];
            let (data, ty) = self.fed();
            sparse = ty;
            let again = self.c.below(self.before.len() as u32 + 1) as usize;
            (x, input) = match channel.side {
                Side::West => (0, Port::West),
                Side::East => (w - 1, Port::East),
            };
            y = channel.row;
            sent = None;
            let epoch = self.c.below(3);
            let feed = |data| Feed {
                name: "f".into(),
                side: channel.side,
                row: channel.row,
                color,
                epoch,
                data,
            };
            if let (Some((stage, drain, left)), None) = (self.before.get(again), ty) {
                let (count, flag_every) = (left.len() as u64, self.c.below(40) as u64);
                let span = Span {
                    stage: *stage,
                    drain: *drain,
                    first: 0,
                    count,
                    flag_every,
                };
                self.feeds.push(feed(FeedData::Drained(vec![span])));
                let flagged = |n: u64| flag_every > 0 && n.is_multiple_of(flag_every);
                marks = left.iter().zip(1..).map(|(m, n)| (m.0, flagged(n))).collect();
            } else {
                marks = data.iter().map(|w| (w.elements, w.flag)).collect::<Vec<_>>();
                // now and then in two feeds
                let cut = if self.c.one_in(3) {
                    self.c.below(data.len() as u32 + 1)
                } else {
                    0
                };
                for part in [&data[..cut as usize], &data[cut as usize..]] {
                    self.feeds.push(feed(part.to_vec().into()));
                }
            }
        } else {
            (x, y, input) = (self.c.below(w), self.c.below(h), Port::Ramp);
            let (ty, blocks, shape) = self.blocks();
            sparse = None;
            marks = self.marks(ty, blocks, shape);
            sent = Some((ty, blocks, shape));
            self.act(
                x,
                y,
                Act::Send {
                    color,
                    ty,
                    blocks,
                    shape,
                },
            );
        }
        let most = 1 + self.c.below(10) as usize;
        let branchy = 2 + self.c.below(3);
        let mut seen = vec![(x, y)];
        let mut ahead = vec![(x, y, input, marks)];
        while let Some((x, y, input, marks)) = ahead.pop() {
            let mut outputs = Vec::new();
            // straight on first
            let order = [input.opposite(), Port::East, Port::South, Port::West, Port::North];
            for (i, p) in order.into_iter().enumerate() {
                if p == input || p == Port::Ramp || outputs.contains(&p) {
                    continue;
                }
                let goes = if i < 2 {
                    self.c.below(4) > 0
                } else {
                    self.c.one_in(branchy)
                };
                match beyond(x, y, p, w, h) {
                    Some(to) if goes && !seen.contains(&to) && seen.len() < most => {
                        seen.push(to);
                        outputs.push(p);
                    }
                    None if goes && matches!(p, Port::East | Port::West) => {
                        let side = if p == Port::West { Side::West } else { Side::East };
                        if self.has_channel(side, y) {
                            outputs.push(p);
                        }
                    }
                    _ => {}
                }
            }
            if outputs.is_empty() || self.c.below(3) > 0 {
                outputs.push(Port::Ramp);
            }
            let mut positions = vec![self.position(input, &outputs, 1)];
            let mut filters = Vec::new();
            if sparse.is_none() {
                while self.c.one_in(5) && positions.len() < 4 {
                    // fewer outputs for some blocks
                    let n = 1 + self.c.below(outputs.len() as u32) as usize;
                    let hold = self.c.below(4);
                    let from = self.c.below((outputs.len() - n) as u32 + 1) as usize;
                    positions.push(self.position(input, &outputs[from..from + n], hold));
                }
                if self.c.one_in(4) {
                    let output = outputs[self.c.below(outputs.len() as u32) as usize];
                    let period = match self.c.below(4) {
                        0 => 1 + self.c.below(4),
                        1 => 5 + self.c.below(30),
                        2 => marks.len() as u32 + 1 - self.c.below(3).min(marks.len() as u32),
                        _ => 100 + self.c.below(300),
                    };
                    let first = self.c.below(period);
                    filters.push(Filter {
                        output,
                        first: constant(first),
                        count: constant(self.c.below(period - first + 2)),
                        period: constant(period),
                    });
                }
            }
            self.route(color, x, y, positions, filters);
            let out = routed(&marks, &self.routes[self.routes.len() - 1]);
            for p in outputs {
                let marks = out.get(&p).cloned().unwrap_or_default();
                match (p, beyond(x, y, p, w, h)) {
                    (Port::Ramp, _) => match sparse {
                        Some(ty) if self.c.below(4) > 0 => {
                            let lists = marks.iter().filter(|m| m.1).count() as u32;
                            self.act(x, y, Act::Axpy { color, ty, lists });
                        }
                        _ => self.take(x, y, color, &marks, sent),
                    },
                    (_, Some((x, y))) => ahead.push((x, y, p.opposite(), marks)),
                    (Port::West, None) => self.drain(Side::West, y, color, &marks),
                    _ => self.drain(Side::East, y, color, &marks),
                }
            }
        }
    }

    /// Places one after another along a row or a column, and the port from each to the next.
    fn line(&mut self) -> (Vec<(u32, u32)>, Port) {
        let (w, h) = self.size();
        let to = match self.c.below(6) {
            0 | 1 => Port::West,
            2 => Port::South,
            3 => Port::North,
            _ => Port::East,
        };
        let (x, y) = (self.c.below(w), self.c.below(h));
        let most = 2 + self.c.below(11) as usize;
        let mut places = match to {
            Port::West => vec![(w - 1 - x / 2, y)],
            Port::East => vec![(x / 2, y)],
            Port::South => vec![(x, y / 2)],
            _ => vec![(x, h - 1 - y / 2)],
        };
        while let Some(next) = places.last().and_then(|(x, y)| beyond(*x, *y, to, w, h))
            && places.len() < most
        {
            places.push(next);
        }
        (places, to)
    }

    /// Each PE adds to what comes and passes it on.
    fn chain(&mut self) {
        let (places, to) = self.line();
        let colors = [self.next_color(), self.next_color()];
        let (ty, blocks, shape) = self.blocks();
        let last = places.len() - 1;
        for (i, &(x, y)) in places.iter().enumerate() {
            let (from, into) = (colors[i % 2], colors[(i + 1) % 2]);
            if i > 0 {
                self.straight(from, x, y, to.opposite(), &[Port::Ramp]);
            }
            if i < last {
                self.straight(into, x, y, Port::Ramp, &[to]);
            }
            if i == 0 && last > 0 {
                self.act(
                    x,
                    y,
                    Act::Send {
                        color: into,
                        ty,
                        blocks,
                        shape,
                    },
                );
            } else if i < last {
                let with = None;
                self.act(
                    x,
                    y,
                    Act::Pass {
                        from,
                        with,
                        to: into,
                        ty,
                        blocks,
                        shape,
                    },
                );
            } else if i > 0 {
                let marks = self.marks(ty, blocks, shape);
                let side = if to == Port::West { Side::West } else { Side::East };
                let (w, h) = self.size();
                let leaves = matches!(to, Port::West | Port::East)
                    && beyond(x, y, to, w, h).is_none()
                    && self.has_channel(side, y);
                if leaves && self.c.one_in(2) {
                    let with = None;
                    self.act(
                        x,
                        y,
                        Act::Pass {
                            from,
                            with,
                            to: into,
                            ty,
                            blocks,
                            shape,
                        },
                    );
                    self.straight(into, x, y, Port::Ramp, &[to]);
                    self.drain(side, y, into, &marks);
                } else {
                    self.take(x, y, from, &marks, Some((ty, blocks, shape)));
                }
            }
        }
    }

    /// Blocks of all PEs of a line come to its last one, in an order that switches set.
    fn gather(&mut self) {
        let (places, to) = self.line();
        let color = self.next_color();
        let rounds = 1 + self.c.below(3);
        let own_first = self.c.one_in(2);
        let several = 1 + self.c.below(2);
        let last = places.len() - 1;
        if last == 0 {
            return;
        }
        let mut all: Vec<Vec<Mark>> = vec![Vec::new(); rounds as usize];
        for (i, &(x, y)) in places[..last].iter().enumerate() {
            let shape = [1, 1 + self.length() / (last as u32 * rounds)];
            let own = self.position(Port::Ramp, &[to], several);
            let others = self.position(to.opposite(), &[to], several * i as u32);
            let positions = match i {
                0 => vec![own],
                _ if own_first => vec![own, others],
                _ => vec![others, own],
            };
            self.route(color, x, y, positions, Vec::new());
            let blocks = rounds * several;
            self.act(
                x,
                y,
                Act::Send {
                    color,
                    ty: Ty::F32,
                    blocks,
                    shape,
                },
            );
            let marks = self.marks(Ty::F32, several, shape);
            for round in &mut all {
                let at = if own_first { 0 } else { round.len() };
                round.splice(at..at, marks.iter().copied());
            }
        }
        let (x, y) = places[last];
        self.straight(color, x, y, to.opposite(), &[Port::Ramp]);
        let all: Vec<Mark> = all.into_iter().flatten().collect();
        self.take(x, y, color, &all, None);
    }

    /// Blocks of the first PE of a line go to the others, by switches or by filters.
    fn scatter(&mut self) {
        let (places, to) = self.line();
        let color = self.next_color();
        let n = places.len() as u32 - 1;
        if n == 0 {
            return;
        }
        let rounds = 1 + self.c.below(3);
        let columns = 1 + self.length() / (n * rounds);
        let filters = self.c.one_in(2);
        let (blocks, shape) = (n * rounds, [1, columns]);
        let (x, y) = places[0];
        self.act(
            x,
            y,
            Act::Send {
                color,
                ty: Ty::F32,
                blocks,
                shape,
            },
        );
        self.straight(color, x, y, Port::Ramp, &[to]);
        for (i, &(x, y)) in places.iter().enumerate().skip(1) {
            let (i, ahead) = (i as u32 - 1, n - i as u32);
            let (on, off) = ([to, Port::Ramp], to.opposite());
            let mine = vec![(1, false); (rounds * columns) as usize];
            if filters {
                let outputs = if ahead > 0 { &on[..] } else { &on[1..] };
                let position = self.position(off, outputs, 1);
                let filter = Filter {
                    output: Port::Ramp,
                    first: constant(i * columns),
                    count: constant(columns),
                    period: constant(n * columns),
                };
                self.route(color, x, y, vec![position], vec![filter]);
            } else {
                let own = self.position(off, &[Port::Ramp], 1);
                let mut positions = vec![own];
                if ahead > 0 {
                    positions.push(self.position(off, &[to], ahead));
                }
                self.route(color, x, y, positions, Vec::new());
            }
            self.take(x, y, color, &mine, None);
        }
    }

    /// Two neighbours: the first sends some, which go around and are changed on both sides.
    fn exchange(&mut self) {
        let (places, to) = self.line();
        let (there, back) = (self.next_color(), self.next_color());
        let &[a, b, ..] = &places[..] else { return };
        self.straight(there, a.0, a.1, Port::Ramp, &[to]);
        // now and then by a switch that turns to the same again
        let positions = 1 + self.c.below(2) as usize;
        let into = self.position(to.opposite(), &[Port::Ramp], 1);
        self.route(there, b.0, b.1, vec![into; positions], Vec::new());
        self.straight(back, b.0, b.1, Port::Ramp, &[to.opposite()]);
        self.straight(back, a.0, a.1, to, &[Port::Ramp]);
        let n = self.length();
        // as many as queues and links hold, or a few more
        let first = 1 + self.c.below(24);
        let ty = Ty::F32;
        let shape = [1, n];
        let blocks = 1;
        let one = |n| Act::Send {
            color: there,
            ty,
            blocks,
            shape: [1, n],
        };
        self.act(a.0, a.1, one(first));
        self.act(
            a.0,
            a.1,
            Act::Pass {
                from: back,
                with: None,
                to: there,
                ty,
                blocks,
                shape,
            },
        );
        let all = [1, n + first];
        self.act(
            b.0,
            b.1,
            Act::Pass {
                from: there,
                with: None,
                to: back,
                ty,
                blocks,
                shape: all,
            },
        );
        let shapes = vec![[1, first]];
        self.act(
            a.0,
            a.1,
            Act::Take {
                color: back,
                ty,
                shapes,
            },
        );
    }

    /// Both neighbours of a PE send; it combines the two streams and sends the result to both or to one.
    fn join(&mut self) {
        let (places, to) = self.line();
        let &[a, m, b, ..] = &places[..] else { return };
        let (left, right, out) = (self.next_color(), self.next_color(), self.next_color());
        let back = to.opposite();
        let (ty, blocks, shape) = self.blocks();
        self.straight(left, a.0, a.1, Port::Ramp, &[to]);
        self.straight(left, m.0, m.1, back, &[Port::Ramp]);
        self.straight(right, b.0, b.1, Port::Ramp, &[back]);
        self.straight(right, m.0, m.1, to, &[Port::Ramp]);
        let ports: &[Port] = match self.c.below(3) {
            0 => &[to, back],
            1 => &[to],
            _ => &[back],
        };
        self.straight(out, m.0, m.1, Port::Ramp, ports);
        self.act(
            a.0,
            a.1,
            Act::Send {
                color: left,
                ty,
                blocks,
                shape,
            },
        );
        self.act(
            b.0,
            b.1,
            Act::Send {
                color: right,
                ty,
                blocks,
                shape,
            },
        );
        let with = Some(right);
        self.act(
            m.0,
            m.1,
            Act::Pass {
                from: left,
                with,
                to: out,
                ty,
                blocks,
                shape,
            },
        );
        let marks = self.marks(ty, blocks, shape);
        for p in ports {
            let (end, input) = if *p == to { (b, back) } else { (a, to) };
            self.straight(out, end.0, end.1, input, &[Port::Ramp]);
            self.take(end.0, end.1, out, &marks, Some((ty, blocks, shape)));
        }
    }

    /// The stage, and all streams that cores send.
    fn done(mut self) -> (Stage, Vec<Probe>, Vec<Vec<Mark>>) {
        let (width, height) = self.size();
        let mut blocks = Vec::new();
        let mut probes = Vec::new();
        for ((x, y), acts) in std::mem::take(&mut self.acts) {
            let sends = acts.iter().filter_map(|a| match a {
                Act::Send { color, .. } | Act::Pass { to: color, .. } => Some(*color),
                _ => None,
            });
            let colors = sends.chain([DUMP]);
            probes.extend(colors.map(|color| Probe {
                stage: 0,
                x,
                y,
                color,
            }));
            self.straight(DUMP, x, y, Port::Ramp, &[Port::Ramp]);
            blocks.push(Code::new(self.c).block(x, y, acts));
        }
        self.feeds.sort_by_key(|f| f.epoch);
        let priority = if self.c.one_in(2) {
            vec![self.color, 0]
        } else {
            Vec::new()
        };
        let region = Region {
            name: "r".into(),
            x: 0,
            y: 0,
            width,
            height,
            routes: self.routes,
            blocks,
        };
        let stage = Stage {
            name: String::new(),
            priority,
            regions: vec![region],
            feeds: self.feeds,
            drains: self.drains,
        };
        (stage, probes, self.left)
    }
}

/// A PE's code under construction.
struct Code<'a, 'c> {
    c: &'a mut Choices<'c>,
    code: Vec<Instr>,
    descriptor: u8,
    /// Elements handed to each microthread.
    handed: [i64; 8],
}

impl<'a, 'c> Code<'a, 'c> {
    fn new(c: &'a mut Choices<'c>) -> Self {
        Code {
            c,
            code: Vec::new(),
            descriptor: 0,
            handed: [0; 8],
        }
    }

    fn desc(&mut self, ty: Ty, shape: Shape, place: Place) -> u8 {
        let d = self.descriptor;
        self.descriptor = (d + 1) % 44;
        let shape = if shape[0] == 1 { &shape[1..] } else { &shape[..] };
        let shape = shape.iter().map(|n| Val::Imm(*n as i64)).collect();
        self.code.push(Instr::Desc(d, Descriptor { ty, shape, place }));
        d
    }

    /// A part of memory; `narrow` if it must not make steps narrower than a wavelet of halves.
    fn memory(&mut self, ty: Ty, shape: Shape, halves: bool) -> u8 {
        let [rows, columns] = shape;
        let free = !halves || self.c.one_in(150);
        let inner = match self.c.below(12) {
            0 => 0,
            1 if free && columns * 2 <= NUMBERS => 2,
            _ => 1,
        };
        let even = columns.next_multiple_of(2);
        let fits = |stride: u32| (rows.max(1) - 1) * stride + columns * inner.max(1) <= NUMBERS;
        let outer = match self.c.below(3) {
            0 if fits(even) => even,
            1 if free && fits(columns) => columns,
            _ => 0,
        };
        let reach = (rows.max(1) - 1) * outer + (columns.max(1) - 1) * inner + 1;
        let room = NUMBERS.saturating_sub(reach);
        let mut first = self.c.below(room + 1);
        if !free || self.c.one_in(2) {
            first -= first % (8 / ty.bytes());
        }
        let start = if ty == Ty::F16 { HALVES } else { 0 };
        let wide = halves && ty == Ty::F32 || self.c.one_in(3);
        let strides = if rows == 1 {
            vec![inner]
        } else {
            vec![outer, inner]
        };
        let place = Place::Memory {
            base: Val::Imm((start + first * ty.bytes()) as i64),
            strides: strides.into_iter().map(|s| Val::Imm(s as i64)).collect(),
            wide,
        };
        self.desc(ty, shape, place)
    }

    /// A vector instruction in the main thread or on a microthread.
    fn issue(&mut self, v: Vector, thread: u8, elements: i64) {
        if thread == 0 {
            self.code.push(Instr::Vector(v));
        } else {
            self.code.push(Instr::Async(thread, v, None));
            self.handed[thread as usize] += elements;
        }
    }

    /// The same instruction so many times, each time written down or in a loop.
    fn repeat(&mut self, v: Vector, thread: u8, elements: i64, times: u32) {
        if times > 1 && self.c.one_in(2) {
            self.code.push(Instr::Set(8, Val::Imm(times as i64)));
            let top = self.code.len() as u32;
            self.issue(v, thread, elements * times as i64);
            self.code.push(Instr::Sub(8, Val::Reg(8), Val::Imm(1)));
            self.code
                .push(Instr::Branch(Cond::Ne, Val::Reg(8), Val::Imm(0), top));
        } else {
            for _ in 0..times {
                self.issue(v.clone(), thread, elements);
            }
        }
    }

    fn thread(&mut self) -> u8 {
        [0, 1, 2, 3, 4, 6, 7][self.c.below(7) as usize]
    }

    fn count(&mut self) -> Count {
        [Count::None, Count::Mac, Count::Reduce, Count::Other][self.c.below(4) as usize]
    }

    /// Operations on two operands.
    fn op(&mut self) -> Op {
        [Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min][self.c.below(5) as usize]
    }

    fn take(&mut self, color: Color, ty: Ty, shape: Shape, thread: u8) {
        let halves = ty == Ty::F16;
        let into = if halves && self.c.one_in(4) { Ty::F32 } else { ty };
        let from = self.desc(ty, shape, Place::In(color));
        let dst = self.memory(into, shape, halves);
        let from = Operand::Desc(from);
        let (op, b) = match self.c.below(6) {
            0 => (Op::Mac, Some(Operand::Imm(0.5))),
            1 => {
                let m = self.memory(ty, shape, halves);
                (self.op(), Some(Operand::Desc(m)))
            }
            2 => (self.op(), Some(Operand::Imm(0.75))),
            3 if !halves && shape[1] < 60 && self.c.one_in(3) => (Op::Tanh, None),
            _ => (Op::Mov, None),
        };
        let count = self.count();
        let v = Vector::Map {
            op,
            dst,
            a: from,
            b,
            count,
        };
        self.issue(v, thread, (shape[0] * shape[1]) as i64);
    }

    fn send(&mut self, color: Color, ty: Ty, blocks: u32, shape: Shape) {
        let halves = ty == Ty::F16;
        let dst = self.desc(ty, shape, Place::Out { color, flag: true });
        let mut a = Operand::Imm(1.5);
        if self.c.below(6) > 0 {
            a = Operand::Desc(self.memory(ty, shape, halves));
        }
        let (op, b) = match self.c.below(6) {
            0 => (self.op(), Some(Operand::Imm(0.75))),
            1 => {
                let m = self.memory(ty, shape, halves);
                (self.op(), Some(Operand::Desc(m)))
            }
            2 if !halves && shape[1] < 60 && self.c.one_in(3) => (Op::Exp, None),
            _ => (Op::Mov, None),
        };
        let (thread, count) = (self.thread(), self.count());
        let v = Vector::Map { op, dst, a, b, count };
        self.repeat(v, thread, (shape[0] * shape[1]) as i64, blocks);
    }

    fn act(&mut self, act: Act, tasks: &mut Vec<(Color, u32)>) {
        match act {
            Act::Take { color, ty, shapes } => {
                let mut thread = self.thread();
                for shape in shapes {
                    self.take(color, ty, shape, thread);
                    if self.c.one_in(12) {
                        thread = self.thread();
                    }
                }
            }
            Act::Send {
                color,
                ty,
                blocks,
                shape,
            } => self.send(color, ty, blocks, shape),
            Act::Pass {
                from,
                with,
                to,
                ty,
                blocks,
                shape,
            } => {
                if with.is_none() && self.c.one_in(6) {
                    // by way of memory
                    let thread = self.thread();
                    for _ in 0..blocks {
                        self.take(from, ty, shape, thread);
                        self.send(to, ty, 1, shape);
                    }
                    return;
                }
                let halves = ty == Ty::F16;
                let a = Operand::Desc(self.desc(ty, shape, Place::In(from)));
                let b = match with {
                    Some(color) => Operand::Desc(self.desc(ty, shape, Place::In(color))),
                    None if self.c.one_in(5) => Operand::Imm(0.25),
                    None => Operand::Desc(self.memory(ty, shape, halves)),
                };
                let flag = true;
                let dst = self.desc(ty, shape, Place::Out { color: to, flag });
                let (op, thread, count) = (self.op(), self.thread(), self.count());
                let v = Vector::Map {
                    op,
                    dst,
                    a,
                    b: Some(b),
                    count,
                };
                self.repeat(v, thread, (shape[0] * shape[1]) as i64, blocks);
            }
            Act::Axpy { color, ty, lists } => {
                let v = self.axpy(List::Fabric { color, ty });
                // how many elements are dropped is not known here
                let thread = self.thread();
                self.repeat(v, thread, 0, lists);
            }
            Act::Task { color, wavelets } => tasks.push((color, wavelets)),
            Act::Work => self.work(),
        }
    }

    /// An axpy whose elements have indices up to 11.
    fn axpy(&mut self, list: List) -> Vector {
        let shape = [1 + self.c.below(2), 1 + self.c.below(40)];
        let ty = if self.c.one_in(3) { Ty::F16 } else { Ty::F32 };
        let place = |first: u32| Place::Memory {
            base: Val::Imm((if ty == Ty::F16 { HALVES } else { 0 } + first) as i64),
            strides: if shape[0] == 1 { vec![1] } else { vec![40, 1] }
                .into_iter()
                .map(Val::Imm)
                .collect(),
            wide: first.is_multiple_of(16),
        };
        let (y, x) = (8 * self.c.below(40), 8 * self.c.below(40));
        let y = self.desc(ty, shape, place(y));
        let x = self.desc(ty, shape, place(x));
        let step = |c: &mut Choices| Val::Imm([0, 4, 8, 160][c.below(4) as usize]);
        Vector::Axpy {
            y,
            x,
            list,
            modulo: Val::Imm(1 + self.c.below(5) as i64),
            divisor: Val::Imm(1 + self.c.below(5) as i64),
            y_step: step(self.c),
            x_step: step(self.c),
            count: self.count(),
        }
    }

    /// Something that needs the slot: vectors in memory, scalars, a list.
    fn work(&mut self) {
        let n = [3, 30, 200][self.c.below(3) as usize];
        let shape = [1, 1 + self.c.below(n)];
        match self.c.below(4) {
            0 => {
                let list = List::Memory {
                    index: Val::Imm(INDICES as i64),
                    value: Val::Imm(4 * self.c.below(40) as i64),
                    count: Val::Imm(self.c.below(12) as i64),
                    ty: Ty::F32,
                };
                let v = self.axpy(list);
                let thread = self.thread();
                self.issue(v, thread, 0);
            }
            1 => {
                let n = self.c.below(12) as i64;
                self.code.push(Instr::Set(3, Val::Imm(n)));
                self.code.push(Instr::Mul(4, Val::Reg(3), Val::Imm(7)));
                let at = Val::Imm(INDICES as i64 + 2 * n);
                self.code
                    .push(Instr::Store(Word::U16, at, Val::Imm(0), Val::Reg(3)));
            }
            _ => {
                let ty = if self.c.one_in(4) { Ty::F16 } else { Ty::F32 };
                let dst = self.memory(ty, shape, false);
                let a = Operand::Desc(self.memory(ty, shape, false));
                let (op, b) = match self.c.below(4) {
                    0 => (Op::Mov, None),
                    1 => (Op::Mac, Some(Operand::Imm(0.5))),
                    2 if shape[1] < 31 => (Op::Exp, None),
                    _ => (self.op(), Some(Operand::Desc(self.memory(ty, shape, false)))),
                };
                let (thread, count) = (self.thread(), self.count());
                let times = 1 + self.c.below(3);
                let v = Vector::Map { op, dst, a, b, count };
                self.repeat(v, thread, shape[1] as i64, times);
            }
        }
    }

    /// Numbers in memory that are not all equal.
    fn fill(&mut self) {
        let n = 1 + self.c.below(80);
        let at = |i: u32| Place::Memory {
            base: Val::Imm(4 * i as i64),
            strides: vec![Val::Imm(1)],
            wide: false,
        };
        let count = Count::Other;
        let first = self.desc(Ty::F32, [1, 1], at(0));
        let seed = Operand::Imm(self.c.below(9) as f32 - 4.0);
        let v = Vector::Map {
            op: Op::Mov,
            dst: first,
            a: seed,
            b: None,
            count,
        };
        self.issue(v, 0, 1);
        let (from, to) = (
            self.desc(Ty::F32, [1, n], at(0)),
            self.desc(Ty::F32, [1, n], at(1)),
        );
        let v = Vector::Map {
            op: Op::Add,
            dst: to,
            a: Operand::Desc(from),
            b: Some(Operand::Imm(0.25)),
            count,
        };
        self.issue(v, 0, n as i64);
        let halves = Place::Memory {
            base: Val::Imm(HALVES as i64),
            strides: vec![Val::Imm(1)],
            wide: true,
        };
        let dst = self.desc(Ty::F16, [1, n], halves);
        let a = Operand::Desc(from);
        self.issue(
            Vector::Map {
                op: Op::Mov,
                dst,
                a,
                b: None,
                count,
            },
            0,
            n as i64,
        );
    }

    fn block(mut self, x: u32, y: u32, mut acts: Vec<Act>) -> Block {
        for _ in 0..self.c.below(3) {
            let at = self.c.below(acts.len() as u32 + 1) as usize;
            acts.insert(at, Act::Work);
        }
        if self.c.below(3) > 0 {
            self.fill();
        }
        let mut data = Vec::new();
        for act in acts {
            self.act(act, &mut data);
            if self.c.one_in(6) {
                let thread = 1 + self.c.below(4) as usize;
                let n = self.handed[thread].clamp(0, 60_000) as u32;
                let n = self.c.one_in(2).then(|| Val::Imm(self.c.below(n + 1) as i64));
                self.code.push(Instr::Wait(thread as u8, n));
            }
        }
        // part of the memory goes around
        if self.c.one_in(2) {
            let shape = [1, 1 + self.c.below(120)];
            let back = self.desc(Ty::F32, shape, Place::In(DUMP));
            let dst = self.memory(Ty::F32, shape, false);
            let (a, b, count) = (Operand::Desc(back), None, Count::None);
            self.issue(
                Vector::Map {
                    op: Op::Mov,
                    dst,
                    a,
                    b,
                    count,
                },
                5,
                0,
            );
            let out = Place::Out {
                color: DUMP,
                flag: false,
            };
            let dst = self.desc(Ty::F32, shape, out);
            let a = Operand::Desc(self.memory(Ty::F32, shape, false));
            self.issue(
                Vector::Map {
                    op: Op::Mov,
                    dst,
                    a,
                    b,
                    count,
                },
                0,
                0,
            );
        }
        let mut tasks = vec![Task {
            name: "main".into(),
            trigger: Trigger::Start,
            blocked: false,
            entry: 0,
        }];
        data.retain(|d| d.1 > 0);
        if data.is_empty() {
            self.code.push(Instr::Halt);
        } else {
            // r5 counts down what the tasks are to take
            let all: u32 = data.iter().map(|d| d.1).sum();
            self.code.push(Instr::Set(5, Val::Imm(all as i64)));
            self.code.push(Instr::End);
            for (k, (color, _)) in data.into_iter().enumerate() {
                tasks.push(Task {
                    name: format!("t{k}"),
                    trigger: Trigger::Data(color),
                    blocked: false,
                    entry: self.code.len() as u32,
                });
                self.task();
            }
        }
        let bytes = BYTES;
        Block {
            at: Lattice::rect(x, y, 1, 1),
            params: Vec::new(),
            memory: vec![Buffer {
                name: "m".into(),
                address: 0,
                bytes,
            }],
            tasks,
            labels: Vec::new(),
            code: self.code,
        }
    }

    /// The code of a data task: its work depends on the value now and then.
    fn task(&mut self) {
        self.code.push(Instr::Sub(5, Val::Reg(5), Val::Imm(1)));
        match self.c.below(4) {
            0 => self.code.push(Instr::Add(6, Val::Reg(6), Val::Reg(0))),
            1 => {
                let over = self.code.len() as u32 + 2;
                self.code
                    .push(Instr::Branch(Cond::Lt, Val::Reg(0), Val::Imm(0x3f80_0000), over));
                self.code.push(Instr::Mul(6, Val::Reg(6), Val::Reg(1)));
            }
            2 => {
                // part of the value's bits, at a place of its own
                let at = Val::Imm(INDICES as i64 + 32);
                self.code
                    .push(Instr::Store(Word::I32, at, Val::Imm(0), Val::Reg(0)));
                let shape = [1, 1 + self.c.below(6)];
                let dst = self.memory(Ty::F32, shape, false);
                let (a, b) = (Operand::Reg(0), Some(Operand::Imm(2.0)));
                let (op, count) = (Op::Mac, Count::Mac);
                let thread = [0, 0, 3][self.c.below(3) as usize];
                self.issue(Vector::Map { op, dst, a, b, count }, thread, 0);
            }
            _ => {}
        }
        let end = self.code.len() as u32 + 2;
        self.code
            .push(Instr::Branch(Cond::Ne, Val::Reg(5), Val::Imm(0), end));
        self.code.push(Instr::Halt);
        self.code.push(Instr::End);
    }
}

/// A machine, and a program of one stage or two for it.
fn random(all: &[u16]) -> (Machine, Program, Vec<Probe>) {
    let c = &mut Choices::new(all);
    let (w, h) = (1 + c.below(12), 1 + c.below(3));
    let channels = c.below(2 * h + 1);
    let bits = if c.one_in(5) { 64 } else { 32 };
    let sets = [
        format!("mesh.width={w}"),
        format!("mesh.height={h}"),
        format!("link.bits={bits}"),
        format!("pe.input_queue_depth={}", 1 + c.below(8)),
        format!("pe.output_queue_depth={}", 1 + c.below(8)),
        format!("router.queue_depth={}", 1 + c.below(8)),
        format!("router.hop_cycles={}", 1 + c.below(3)),
        format!("router.ramp_cycles={}", 1 + c.below(3)),
        format!("pe.moves_first={}", c.below(2) == 0),
        format!("pe.move_queue={}", 1 + c.below(4)),
        format!("pe.cost.task_launch={}", c.below(3)),
        format!("pe.cost.issue={}", 1 + c.below(6)),
        format!("pe.cost.descriptor={}", 1 + 8 * c.below(2)),
        format!("skip.zero_operands={}", c.below(2) == 1),
        format!("edge.latency_cycles={}", 1 + c.below(9)),
        // no channel's worth gives one channel with a gap
        format!(
            "edge.bits_per_second={}",
            0.85e9 * bits as f64 * channels as f64 + [9.1e9, 3.1e9][c.below(2) as usize]
        ),
    ];
    let machine = small(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    let mut stages = Vec::new();
    let mut probes = Vec::new();
    let mut before = Vec::new();
    for number in 0..1 + c.one_in(6) as u32 {
        let mut plan = Plan {
            c: &mut *c,
            machine: &machine,
            routes: Vec::new(),
            acts: BTreeMap::new(),
            feeds: Vec::new(),
            drains: Vec::new(),
            left: Vec::new(),
            before: &before,
            color: 0,
        };
        for _ in 0..1 + plan.c.below(5) {
            match plan.c.below(10) {
                0..=2 => plan.tree(),
                3 => plan.chain(),
                4 => plan.gather(),
                5 => plan.scatter(),
                6 => plan.exchange(),
                _ => plan.join(),
            }
        }
        let (stage, sent, left) = plan.done();
        // only what is declared as it leaves
        let all = left.into_iter().zip(&stage.drains).zip(0..);
        let all = all.filter(|((l, d), _)| l.len() as u64 == d.wavelets && !l.is_empty());
        before.extend(all.map(|((l, _), drain)| (number, drain, l)));
        probes.extend(sent.into_iter().map(|p| Probe { stage: number, ..p }));
        stages.push(stage);
    }
    let name = "random".into();
    (machine, Program { name, stages }, probes)
}

/// The fast engine with a limit says what the rules say: the limit is reached if the run has that many cycles.
fn limited(program: &Program, machine: &Machine, probes: &[Probe], o: &Outcome) -> Result<(), String> {
    for more in [0, 1] {
        let options = Options {
            engine: Engine::Fast,
            probes: probes.to_vec(),
            max_cycles: Some(o.cycles + more),
            ..Options::default()
        };
        match engine::run(program, machine, &options) {
            Err(RunError::TooLong { .. }) if more == 0 => {}
            Ok(again) if more == 1 && common::comparable(again.clone()) == *o => {}
            other => {
                return Err(format!(
                    "{} cycles, with a limit of {more} more: {:?}",
                    o.cycles,
                    other.map(|o| o.cycles)
                ));
            }
        }
    }
    Ok(())
}

/// Both engines, without a limit that matters, at the end, and somewhere before; how it ended.
fn compare(
    program: &Program,
    machine: &Machine,
    probes: &[Probe],
    part: u16,
) -> Result<(&'static str, u64), String> {
    let options = |max| Options {
        probes: probes.to_vec(),
        max_cycles: Some(max),
        ..Options::default()
    };
    let (kind, cycles) = match on_both(program, machine, &options(40_000))? {
        Ok(o) => {
            limited(program, machine, probes, &o)?;
            ("done", o.cycles)
        }
        Err(RunError::Fault { cycle, .. }) => ("fault", cycle),
        Err(RunError::Deadlock { cycle, .. }) => ("deadlock", cycle),
        Err(RunError::LeftOver { cycle, .. }) => ("left over", cycle),
        Err(RunError::TooLong { .. }) => return Ok(("too long", 0)),
    };
    let mut limits = vec![cycles * part as u64 / 65_536];
    if kind != "done" {
        limits.extend([cycles, cycles + 1, cycles + 2, cycles + part as u64 % 40]);
    }
    for limit in limits {
        let _ = on_both(program, machine, &options(limit))?;
    }
    Ok((kind, cycles))
}

fn run(cases: u32) {
    let kinds = RefCell::new(BTreeMap::<&str, u32>::new());
    let cycles = RefCell::new(0u64);
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (any::<u16>(), prop::collection::vec(any::<u16>(), 40..700));
    let result = runner.run(&strategy, |(part, all)| {
        let (machine, program, probes) = random(&all);
        let (kind, ran) = if let Err(v) = verify::verify(&program, &machine) {
            prop_assert!(!v.is_empty());
            if std::env::var_os("REFUSED").is_some() {
                println!("{}", v[0]);
            }
            ("refused", 0)
        } else {
            match compare(&program, &machine, &probes, part) {
                Ok(kind) => kind,
                Err(e) => {
                    let text = meshloom_simulator::text::print(&program);
                    return Err(TestCaseError::fail(format!("{e}\n{text}\n{machine:?}")));
                }
            }
        };
        *kinds.borrow_mut().entry(kind).or_default() += 1;
        *cycles.borrow_mut() += ran;
        Ok(())
    });
    let kinds = kinds.into_inner();
    println!("{kinds:?}, {} cycles", cycles.into_inner());
    result.unwrap_or_else(|e| panic!("{e}"));
    for (kind, share) in [("done", 3), ("fault", 100), ("deadlock", 100)] {
        assert!(
            kinds.get(kind).is_some_and(|n| *n >= cases / share),
            "too few that end in `{kind}`: {kinds:?}"
        );
    }
    let few = |kind, share| kinds.get(kind).is_none_or(|n| *n <= cases / share);
    assert!(few("refused", 10) && few("too long", 20), "{kinds:?}");
}

#[test]
fn long_streams_are_equal_on_both_engines() {
    run(1000);
}

#[test]
#[ignore = "minutes: before a change of the fast engine is merged"]
fn many_long_streams_are_equal_on_both_engines() {
    run(10_000);
}

/// What the last of many PEs in a row did is asked for first: nothing grows with their number but the work.
#[test]
fn a_chain_of_thousands_flows() {
    // the depth is no matter of the caller's stack
    let small_stack = std::thread::Builder::new().stack_size(512 << 10);
    let running = small_stack
        .spawn(chain_of_thousands)
        .unwrap_or_else(|e| panic!("{e}"));
    running
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn chain_of_thousands() {
    let all = 4000;
    let machine = small(&[&format!("mesh.width={all}"), "mesh.height=1"]);
    let columns = 30_000;
    let mut region = Region {
        name: "r".into(),
        x: 0,
        y: 0,
        width: all,
        height: 1,
        routes: Vec::new(),
        blocks: Vec::new(),
    };
    let desc = |d, place| {
        let shape = vec![Val::Imm(columns)];
        Instr::Desc(
            d,
            Descriptor {
                ty: Ty::F32,
                shape,
                place,
            },
        )
    };
    for x in 0..all {
        // from east to west
        let (from, to) = ((x % 2) as Color, ((x + 1) % 2) as Color);
        let route = |color, input, output| Route {
            color,
            stream: "s".into(),
            at: Lattice::rect(x, 0, 1, 1),
            positions: vec![Position {
                input,
                outputs: vec![output],
                hold: constant(1),
            }],
            filters: Vec::new(),
        };
        let memory = Place::Memory {
            base: Val::Imm(0),
            strides: vec![Val::Imm(0)],
            wide: false,
        };
        let mut code = vec![desc(2, memory)];
        let (mut dst, mut a) = (2, Operand::Imm(1.0));
        if x + 1 < all {
            region.routes.push(route(from, Port::East, Port::Ramp));
            code.push(desc(0, Place::In(from)));
            a = Operand::Desc(0);
        }
        if x > 0 {
            region.routes.push(route(to, Port::Ramp, Port::West));
            code.push(desc(
                1,
                Place::Out {
                    color: to,
                    flag: false,
                },
            ));
            dst = 1;
        }
        let (op, b, count) = (Op::Add, Some(Operand::Imm(0.5)), Count::Reduce);
        code.push(Instr::Vector(Vector::Map { op, dst, a, b, count }));
        code.push(Instr::Halt);
        region.blocks.push(Block {
            at: Lattice::rect(x, 0, 1, 1),
            params: Vec::new(),
            memory: vec![Buffer {
                name: "m".into(),
                address: 0,
                bytes: 4,
            }],
            tasks: vec![Task {
                name: "main".into(),
                trigger: Trigger::Start,
                blocked: false,
                entry: 0,
            }],
            labels: Vec::new(),
            code,
        });
    }
    let stage = Stage {
        regions: vec![region],
        ..Stage::default()
    };
    let program = Program::single("chain", stage);
    // all of them are in the middle of it
    let limit = 29_000;
    let options = Options {
        max_cycles: Some(limit),
        ..Options::default()
    };
    let ended = engine::run(&program, &machine, &options);
    assert_eq!(ended, Err(RunError::TooLong { cycles: limit }));
    let ended = engine::run(&program, &machine, &Options::default());
    // the second PE's first step is after 27 slots of descriptors and 6 cycles of issue; the next ones follow by 2 T_R + 2 each (see
    // docs/machine.md); `halt` is passed in the cycle after the last step
    let cycles = ended.map(|o| (o.engine, o.cycles));
    let last = 27 + 6 + 6 * (all as u64 - 2) + columns as u64;
    assert_eq!(cycles, Ok((Engine::Fast, last + 1)));
}

/// What a thread does by itself (an axpy's list, scalar code, an instruction in memory, again) is cut by the begin of epoch 1 at every one of its
/// cycles: what it did before and after is counted as the rules say.
#[test]
fn an_epoch_begins_anywhere_in_what_a_thread_does_alone() {
    let machine = small(&["mesh.width=2", "mesh.height=1"]);
    let data = DataStore::default();
    for words in 1..160 {
        let loads = ["1"; 160][..words].join(" ");
        let text = format!(
            "program epochs
region a at 0, 0 size 2 x 1
route c1 w 0 x 0: west -> east
route c1 w 1 x 0: west -> ramp
block 0 x 0
  memory y @0 64 bytes
  memory x @64 64 bytes
  memory i @128 64 bytes
  memory v @192 64 bytes
  task main start -> main
  main:
    desc d0 = mem f32 @y [5] by [1]
    desc d1 = mem f32 @x [5] by [1]
    axpy d0 += d1 * list mem f32 index @i value @v count 4 modulo 1 divisor 1 y_step 4 x_step 4 #mac
    set r1 = 3
    mac d0 += d0 * d1 #mac
    add r1 = r1 + 1
    axpy d0 += d1 * list mem f32 index @i value @v count 3 modulo 1 divisor 1 y_step 4 x_step 4 #mac
    halt
block 1 x 0
  memory w @0 640 bytes
  task main start -> main
  main:
    desc d0 = mem f32 @w [{words}] by [1]
    desc d1 = in c1 f32 [{words}]
    mov d0 = d1
    halt
feed w west row 0 c1 epoch 0 = [{loads}]
"
        );
        let program = parse(&text, &data).unwrap_or_else(|e| panic!("{e}"));
        let violations = verify::verify(&program, &machine);
        violations.unwrap_or_else(|v| panic!("{}", v[0]));
        let outcome = on_both(&program, &machine, &Options::default());
        let outcome = outcome.unwrap_or_else(|e| panic!("{words} words: {e}"));
        outcome.unwrap_or_else(|e| panic!("{words} words: {e}"));
    }
}

/// Words of memory of what follows, and the bytes behind them that lists take.
const WORDS: u32 = 24;

/// One PE whose main thread works for itself: scalar code that stores, loads what was stored or what a vector instruction wrote, branches on
/// it, axpys that may change their own lists, products in parts, microthreads now and then. At its end it sends its memory to itself, to a
/// microthread that in half of the programs has waited for it all the time.
fn alone(c: &mut Choices) -> Program {
    let mut code = vec![Instr::Set(1, Val::Imm(3 + c.below(5) as i64))];
    // the list's indices and values, and some numbers
    for i in 0..WORDS {
        let value = if i < 8 {
            c.below(40)
        } else {
            (0.5 * c.below(9) as f32).to_bits()
        };
        let (at, value) = (Val::Imm(4 * i as i64), Val::Imm(value as i64));
        if i < 8 || c.one_in(2) {
            code.push(Instr::Store(Word::I32, at, Val::Imm(0), value));
        }
    }
    let place = |first: u32, step: i64| Place::Memory {
        base: Val::Imm(4 * first as i64),
        strides: vec![Val::Imm(step)],
        wide: false,
    };
    let desc = |d, n: u32, place| {
        let shape = vec![Val::Imm(n as i64)];
        Instr::Desc(
            d,
            Descriptor {
                ty: Ty::F32,
                shape,
                place,
            },
        )
    };
    // what vector instructions use is set once, so that little lies between them and scalar code
    for d in 0..6 {
        let n = 1 + d as u32 % 3 * 2;
        let step = [0, 1, 1, 2][c.below(4) as usize];
        code.push(desc(d, n, place(c.below(WORDS - 2 * n), step)));
    }
    code.push(desc(40, WORDS, Place::In(DUMP)));
    code.push(desc(43, WORDS, place(WORDS, 1)));
    let mov = |dst, a| Vector::Map {
        op: Op::Mov,
        dst,
        a: Operand::Desc(a),
        b: None,
        count: Count::None,
    };
    let receive = Instr::Async(3, mov(43, 40), None);
    let waits = c.one_in(2);
    if waits {
        code.push(receive.clone());
    }
    let top = code.len() as u32;
    code.push(Instr::Add(9, Val::Reg(9), Val::Imm(1)));
    for _ in 0..4 + c.below(24) {
        let r = 2 + c.below(4) as u8;
        let at = Val::Imm(4 * c.below(WORDS) as i64);
        let word = if c.one_in(2) { Word::I32 } else { Word::U16 };
        let d = c.below(3) as u8;
        let thread = if c.one_in(8) { 1 + c.below(2) as u8 } else { 0 };
        let mut issue = |v| {
            code.push(match thread {
                0 => Instr::Vector(v),
                t => Instr::Async(t, v, None),
            });
        };
        match c.below(9) {
            0 => code.push(Instr::Add(r, Val::Reg(r), Val::Reg(9))),
            1 => code.push(Instr::Mul(r, Val::Reg(r), Val::Imm(3))),
            2 => code.push(Instr::Store(word, at, Val::Imm(0), Val::Reg(r))),
            3 | 4 => {
                // its value says how much comes next
                code.push(Instr::Load(word, r, at, Val::Imm(0)));
                let cond = [Cond::Eq, Cond::Ne, Cond::Lt, Cond::Ge][c.below(4) as usize];
                let over = code.len() as u32 + 2 + c.below(2);
                let than = Val::Imm([0, 5, 0x3f00_0000][c.below(3) as usize]);
                code.push(Instr::Branch(cond, Val::Reg(r), than, over));
                code.push(Instr::Mul(6, Val::Reg(6), Val::Reg(9)));
                code.push(Instr::Add(7, Val::Reg(7), Val::Imm(1)));
            }
            5 => {
                let list = List::Memory {
                    index: Val::Imm(4 * c.below(4) as i64),
                    value: Val::Imm(4 * (8 + c.below(8)) as i64),
                    count: Val::Imm(c.below(7) as i64),
                    ty: Ty::F32,
                };
                issue(Vector::Axpy {
                    y: d,
                    x: d + 3,
                    list,
                    modulo: Val::Imm(1 + c.below(4) as i64),
                    divisor: Val::Imm(1 << 20),
                    y_step: Val::Imm(4),
                    x_step: Val::Imm(4),
                    count: Count::Mac,
                });
            }
            6 if c.one_in(2) => code.push(Instr::Wait(1 + c.below(2) as u8, None)),
            6 => {
                // a product of matrices in parts of some features, as kernels have it; at times the next part begins elsewhere
                let (y, a, b) = (c.below(WORDS - 6), c.below(WORDS - 8), c.below(WORDS - 12));
                let mut done = 0;
                while done < 4 {
                    let n = (1 + c.below(3)).min(4 - done);
                    let off = c.one_in(8) as u32;
                    let part = |d, first: u32, steps: [i64; 3]| {
                        let shape = [n as i64, 2, 3].map(Val::Imm).to_vec();
                        let base = Val::Imm(4 * first as i64);
                        let place = Place::Memory {
                            base,
                            strides: steps.map(Val::Imm).to_vec(),
                            wide: false,
                        };
                        let ty = Ty::F32;
                        Instr::Desc(d, Descriptor { ty, shape, place })
                    };
                    code.push(part(10, y, [0, 3, 1]));
                    code.push(part(11, a + 2 * done, [2, 1, 0]));
                    code.push(part(12, b + 3 * done - (done > 0) as u32 * off, [3, 0, 1]));
                    code.push(Instr::Vector(Vector::Map {
                        op: Op::Mac,
                        dst: 10,
                        a: Operand::Desc(11),
                        b: Some(Operand::Desc(12)),
                        count: Count::Mac,
                    }));
                    done += n;
                }
            }
            _ => {
                let (op, b) = match c.below(3) {
                    0 => (Op::Mov, None),
                    1 => (Op::Add, Some(Operand::Reg(9))),
                    _ => (Op::Mac, Some(Operand::Imm(0.5))),
                };
                let count = Count::Other;
                let a = Operand::Desc(d + 3);
                issue(Vector::Map {
                    op,
                    dst: d,
                    a,
                    b,
                    count,
                });
            }
        }
    }
    code.push(Instr::Sub(1, Val::Reg(1), Val::Imm(1)));
    code.push(Instr::Branch(Cond::Ne, Val::Reg(1), Val::Imm(0), top));
    code.extend([Instr::Wait(1, None), Instr::Wait(2, None)]);
    for r in 2..8 {
        let at = Val::Imm(4 * r as i64);
        code.push(Instr::Store(Word::I32, at, Val::Imm(0), Val::Reg(r)));
    }
    let (out, flag) = (DUMP, false);
    code.push(desc(41, WORDS, Place::Out { color: out, flag }));
    code.push(desc(42, WORDS, place(0, 1)));
    if !waits {
        code.push(receive);
    }
    code.extend([Instr::Vector(mov(41, 42)), Instr::Halt]);
    let position = Position {
        input: Port::Ramp,
        outputs: vec![Port::Ramp],
        hold: constant(1),
    };
    let route = Route {
        color: DUMP,
        stream: "s".into(),
        at: Lattice::rect(0, 0, 1, 1),
        positions: vec![position],
        filters: Vec::new(),
    };
    let block = Block {
        at: Lattice::rect(0, 0, 1, 1),
        params: Vec::new(),
        memory: vec![Buffer {
            name: "m".into(),
            address: 0,
            bytes: 8 * WORDS,
        }],
        tasks: vec![Task {
            name: "main".into(),
            trigger: Trigger::Start,
            blocked: false,
            entry: 0,
        }],
        labels: Vec::new(),
        code,
    };
    let region = Region {
        name: "r".into(),
        x: 0,
        y: 0,
        width: 1,
        height: 1,
        routes: vec![route],
        blocks: vec![block],
    };
    let stage = Stage {
        regions: vec![region],
        ..Stage::default()
    };
    Program::single("alone", stage)
}

#[test]
fn what_a_thread_does_by_itself_is_equal_on_both_engines() {
    let machine = small(&["mesh.width=1", "mesh.height=1"]);
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let done = RefCell::new(0);
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&prop::collection::vec(any::<u16>(), 40..250), |all| {
        let program = alone(&mut Choices::new(&all));
        let options = Options {
            probes: vec![Probe {
                color: DUMP,
                ..Probe::default()
            }],
            max_cycles: Some(40_000),
            ..Options::default()
        };
        let text = || meshloom_simulator::text::print(&program);
        let violations = verify::verify(&program, &machine);
        prop_assert!(violations.is_ok(), "{}", text());
        match on_both(&program, &machine, &options) {
            Ok(ended) => *done.borrow_mut() += ended.is_ok() as u32,
            Err(e) => return Err(TestCaseError::fail(format!("{e}\n{}", text()))),
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let done = done.into_inner();
    assert!(done > 2500, "only {done} end well");
}

/// What one stage drains enters the next one cut anew: rows of pieces of any size, of f32 or of pairs of f16, and what surrounds them. A core
/// takes each row and sends it on.
#[test]
fn what_is_cut_anew_is_equal_on_both_engines() {
    let machine = small(&["mesh.width=3", "mesh.height=1", "edge.bits_per_second=54.4e9"]);
    let config = Config {
        cases: 500,
        failure_persistence: None,
        ..Config::default()
    };
    let most = RefCell::new(0);
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&prop::collection::vec(any::<u16>(), 10..80), |all| {
        let (program, elements) = cut(&mut Choices::new(&all));
        let text = || meshloom_simulator::text::print(&program);
        let violations = verify::verify(&program, &machine);
        prop_assert!(violations.is_ok(), "{}", text());
        match on_both(&program, &machine, &Options::default()) {
            Ok(Ok(o)) => {
                let left: u64 = o.drains[1].iter().map(|l| l.wavelet.elements as u64).sum();
                prop_assert_eq!(left, elements, "{}", text());
                let kept = most.replace(elements).max(elements);
                most.replace(kept);
                Ok(())
            }
            Ok(Err(e)) => Err(TestCaseError::fail(format!("{e}\n{}", text()))),
            Err(e) => Err(TestCaseError::fail(format!("{e}\n{}", text()))),
        }
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let most = most.into_inner();
    assert!(most > 400, "at most {most} elements");
}

/// Two stages for `what_is_cut_anew_is_equal_on_both_engines`, and the elements that leave the second one.
fn cut(c: &mut Choices) -> (Program, u64) {
    let (ty, per) = if c.one_in(3) { (Ty::F16, 2) } else { (Ty::F32, 1) };
    let n = 1 + c.below(200);
    let one = |i: u32| Wavelet {
        bits: match ty {
            Ty::F32 => (i as f32 + 0.5).to_bits() as u64,
            Ty::F16 => 0x3c00_3800 + i as u64,
        },
        // a last wavelet may be narrower
        elements: if i + 1 == n { 1 } else { per as u8 },
        flag: i % 7 == 3,
    };
    let data: Vec<Wavelet> = (0..n)
        .map(one)
        .map(|w| Wavelet {
            bits: w.bits & (u64::MAX >> (64 - 16 * w.elements as u32 * 2 / per)),
            ..w
        })
        .collect();
    let rows = 1 + c.below(4);
    let mut pieces = Vec::new();
    for _ in 0..1 + c.below(3) {
        let step = c.below(n / rows + 1);
        let first = c.below(n - (rows - 1) * step);
        let left = (n - (rows - 1) * step - first) * per;
        let skip = c.below(left.min(4));
        pieces.push(Piece::Kept {
            stage: 0,
            drain: 0,
            first: first.into(),
            skip: skip.into(),
            count: (1 + c.below(left - skip)).into(),
            step: step.into(),
        });
        if c.one_in(2) {
            let (bits, count) = (0x3c00, c.below(5).into());
            let at = c.below(pieces.len() as u32 + 1) as usize;
            pieces.insert(at, Piece::Fill { bits, count });
        }
    }
    let columns: u64 = pieces.iter().map(Piece::count).sum();
    let cut = Cut {
        ty,
        per,
        rows: rows.into(),
        pieces,
    };
    let wavelets = cut.wavelets();
    let route = |color, x, input, output| Route {
        color,
        stream: "s".into(),
        at: Lattice::rect(x, 0, 1, 1),
        positions: vec![Position {
            input,
            outputs: vec![output],
            hold: constant(1),
        }],
        filters: Vec::new(),
    };
    let stage = |routes, blocks, data, wavelets| {
        let region = Region {
            name: "r".into(),
            x: 0,
            y: 0,
            width: 3,
            height: 1,
            routes,
            blocks,
        };
        Stage {
            regions: vec![region],
            feeds: vec![Feed {
                name: "f".into(),
                side: Side::West,
                row: 0,
                color: 0,
                epoch: 1,
                data,
            }],
            drains: vec![Drain {
                name: "d".into(),
                side: Side::East,
                row: 0,
                color: 1,
                wavelets,
            }],
            ..Stage::default()
        }
    };
    // the first stage's core passes on what comes, wavelet by wavelet as it came
    let desc = |d, shape: &[u32], place| {
        let shape = shape.iter().map(|n| Val::Imm(*n as i64)).collect();
        Instr::Desc(d, Descriptor { ty, shape, place })
    };
    let pass = |shape: &[u32], op| {
        let flag = false;
        let vector = Vector::Map {
            op,
            dst: 1,
            a: Operand::Desc(0),
            b: (op != Op::Mov).then_some(Operand::Imm(0.25)),
            count: Count::Other,
        };
        let code = vec![
            desc(0, shape, Place::In(0)),
            desc(1, shape, Place::Out { color: 1, flag }),
            Instr::Vector(vector),
            Instr::Halt,
        ];
        let task = Task {
            name: "main".into(),
            trigger: Trigger::Start,
            blocked: false,
            entry: 0,
        };
        Block {
            at: Lattice::rect(1, 0, 1, 1),
            params: Vec::new(),
            memory: Vec::new(),
            tasks: vec![task],
            labels: Vec::new(),
            code,
        }
    };
    let routes = || {
        vec![
            route(0, 0, Port::West, Port::East),
            route(0, 1, Port::West, Port::Ramp),
            route(1, 1, Port::Ramp, Port::East),
            route(1, 2, Port::West, Port::East),
        ]
    };
    let elements: u32 = data.iter().map(|w| w.elements as u32).sum();
    let first = stage(routes(), vec![pass(&[elements], Op::Mov)], data.into(), n.into());
    let op = if c.one_in(2) { Op::Mov } else { Op::Add };
    let block = pass(&[rows, columns as u32], op);
    let second = stage(routes(), vec![block], FeedData::Cut(cut), wavelets);
    let program = Program {
        name: "cut".into(),
        stages: vec![first, second],
    };
    (program, rows as u64 * columns)
}
