//! The network: routes by themselves, and then each colour on the whole mesh: its links, its circles, and where feeds, drains and cores
//! meet it.

use super::{Check, MAX_CUT, MAX_EPOCH, Use};
use crate::expr::Expr;
use crate::machine::Side;
use crate::program::*;
use crate::text::{name, port, side};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

const RAMP: u8 = 1 << Port::Ramp as u8;

impl<'a> Check<'a> {
    /// Filters of all colours together.
    pub(super) fn filters(&mut self) {
        let (width, most) = (self.machine.mesh.width as usize, self.machine.router.filters);
        let mut count: Vec<u16> = Vec::new();
        for c in 0..self.colors.len() {
            for k in 0..self.colors[c].routes.len() {
                let (r, i) = self.colors[c].routes[k];
                let region = &self.stage.regions[r];
                let route = &region.routes[i];
                if route.filters.is_empty() {
                    continue;
                }
                count.resize(width * self.machine.mesh.height as usize, 0);
                for (x, y) in route.at.places() {
                    let (x, y) = (region.x + x, region.y + y);
                    let n = &mut count[y as usize * width + x as usize];
                    *n = n.saturating_add(route.filters.len().min(u16::MAX as usize) as u16);
                    if *n as u32 > most {
                        let problem = format!("PE ({x}, {y}) needs {n} filters, a router has {most}");
                        let help = "filter fewer colours there, or raise router.filters";
                        self.add(self.route_place(r, i), "M7", problem, help);
                        break;
                    }
                }
            }
        }
    }

    // ---- routes

    pub(super) fn route(&mut self, r: usize, i: usize, ok: bool) {
        let route: &'a Route = &self.stage.regions[r].routes[i];
        let place = self.route_place(r, i);
        let at = ok.then_some(&route.at);
        let router = &self.machine.router;
        if !self.color(route.color, &place) {
            return;
        }
        if ok {
            self.colors[route.color as usize].routes.push((r, i));
        }
        let n = route.positions.len();
        if n == 0 || n as u64 > router.switch_positions as u64 {
            let problem = format!(
                "it has {n} switch positions, a router has 1 to {}",
                router.switch_positions
            );
            self.add(
                &place,
                "M7",
                problem,
                "merge positions, use a second colour, or raise router.switch_positions",
            );
        }
        let mut out = 0u8;
        for (k, p) in route.positions.iter().enumerate() {
            let mut own = 0u8;
            for o in &p.outputs {
                let bit = 1 << *o as u8;
                if own & bit != 0 {
                    let problem = format!("position {k} has the output {} twice", port(*o));
                    self.add(&place, "M4", problem, "name each output once");
                }
                if *o == p.input && *o != Port::Ramp {
                    let problem = format!("position {k} sends back to {}, where it comes from", port(*o));
                    self.add(&place, "M4", problem, "only ramp -> ramp may turn back");
                }
                own |= bit;
            }
            if own == 0 {
                let problem = format!("position {k} has no output");
                self.add(&place, "M4", problem, "name one to five outputs");
            }
            out |= own;
            self.expr(&p.hold, at, &place, &format!("the hold of position {k}"));
            if let Some(l) = at
                && n > 1
            {
                self.natural(&p.hold, l, &place, "M7", &format!("the hold of position {k}"));
            }
        }
        let mut filtered = 0u8;
        for f in &route.filters {
            let bit = 1 << f.output as u8;
            let p = port(f.output);
            if out & bit == 0 {
                let problem = format!("it filters the output {p}, which no position has");
                self.add(&place, "M7", problem, "filter an output of this route");
            }
            if filtered & bit != 0 {
                let problem = format!("it filters the output {p} twice");
                self.add(&place, "M7", problem, "one filter an output");
            }
            filtered |= bit;
            for (e, what) in [(&f.first, "first"), (&f.count, "count"), (&f.period, "period")] {
                let what = format!("the {what} of the filter on {p}");
                self.expr(e, at, &place, &what);
                if let Some(l) = at {
                    self.natural(e, l, &place, "M7", &what);
                }
            }
        }
    }

    /// A number of wavelets: 0 to 2^32 - 1 on every PE.
    fn natural(&mut self, e: &Expr, l: &Lattice, place: &str, rule: &'static str, what: &str) {
        if let Some((x, y, v)) = self.outside(e, l, 0, u32::MAX as i64) {
            let problem = format!("{what} is {v} at x {x}, y {y} of the region");
            self.add(place, rule, problem, "expected 0 to 4294967295");
        }
    }

    // ---- feeds and drains

    pub(super) fn edge(&mut self) {
        let channels: HashSet<(Side, u32)> =
            self.machine.channels().iter().map(|c| (c.side, c.row)).collect();
        let bits = self.machine.link.bits;
        let mut drained = HashSet::new();
        let mut seen: HashSet<*const Vec<Wavelet>> = HashSet::new();
        let mut epochs: HashMap<(Side, u32), u32> = HashMap::new();
        for (i, f) in self.stage.feeds.iter().enumerate() {
            let place = feed_place(f);
            let before = epochs.insert((f.side, f.row), f.epoch).unwrap_or(0);
            if f.epoch > MAX_EPOCH {
                let problem = format!("epoch {} is above {MAX_EPOCH}", f.epoch);
                self.add(&place, "P6", problem, "number the epochs from 0, without gaps");
            }
            if f.epoch < before {
                let problem = format!(
                    "epoch {} comes after epoch {before} on the same channel: it can never enter",
                    f.epoch
                );
                self.add(&place, "M15", problem, "order a channel's feeds by epoch");
            }
            if self.channel(&channels, f.side, f.row, &place) & self.color(f.color, &place) {
                self.colors[f.color as usize].feeds.push(i);
            }
            let fits = |w: &Wavelet| w.elements as u32 <= bits / 16 && (bits >= 64 || w.bits >> bits == 0);
            let data = match &f.data {
                FeedData::Host(data) => data,
                FeedData::Drained(spans) => {
                    self.spans(spans, &place);
                    continue;
                }
                FeedData::Cut(cut) => {
                    self.cut(cut, &place);
                    continue;
                }
            };
            if seen.insert(Arc::as_ptr(data))
                && let Some(k) = data.iter().position(|w| !fits(w))
            {
                let w = &data[k];
                let problem = format!(
                    "wavelet {k} ({:#x}, {} elements) is wider than {bits} bits",
                    w.bits, w.elements
                );
                self.add(
                    &place,
                    "M3",
                    problem,
                    "pack fewer elements in a wavelet, or raise link.bits",
                );
            }
            if self.full() {
                return;
            }
        }
        for (i, d) in self.stage.drains.iter().enumerate() {
            let place = drain_place(d);
            if self.channel(&channels, d.side, d.row, &place) & self.color(d.color, &place) {
                if !drained.insert((d.side, d.row, d.color)) {
                    let problem = "a second drain of this channel and colour".into();
                    self.add(&place, "M15", problem, "drain each colour of a channel once");
                }
                self.colors[d.color as usize].drains.push(i);
            }
            if self.full() {
                return;
            }
        }
    }

    /// What a feed takes from earlier stages is there.
    fn spans(&mut self, spans: &[Span], place: &str) {
        for (k, s) in spans.iter().enumerate() {
            let (first, n) = (s.first, s.count);
            self.kept(
                &format!("span {k}"),
                (s.stage, s.drain),
                (first, n, first.checked_add(n)),
                place,
            );
        }
    }

    /// What a feed puts together anew is there, and its wavelets are no wider than a link.
    fn cut(&mut self, cut: &Cut, place: &str) {
        let link = self.machine.link.bits;
        if cut.per == 0 || cut.per > link / cut.ty.bits() {
            let problem = format!(
                "wavelets of {} elements of {} bits on links of {link} bits",
                cut.per,
                cut.ty.bits()
            );
            let help = format!("at least 1, at most {}", link / cut.ty.bits());
            self.add(place, "M3", problem, help);
            return;
        }
        if cut.wavelets() > MAX_CUT {
            let problem = format!("{} wavelets cut of what left before", cut.wavelets());
            let help = format!("at most {MAX_CUT} in a feed: several feeds follow one another");
            self.add(place, "P6", problem, help);
        }
        for (k, piece) in cut.pieces.iter().enumerate() {
            let what = format!("piece {k}");
            match *piece {
                Piece::Fill { bits, .. } if cut.ty.bits() < 32 && bits >> cut.ty.bits() != 0 => {
                    let problem = format!("{what} is of elements {bits:#x}, wider than their type");
                    self.add(place, "M16", problem, "bits of an element of the feed's type");
                }
                Piece::Fill { .. } => {}
                Piece::Kept {
                    stage,
                    drain,
                    first,
                    skip,
                    count,
                    step,
                } => {
                    let end = |row: u64| {
                        let elements = skip.checked_add(count)?;
                        first
                            .checked_add(row.checked_mul(step)?)?
                            .checked_add(elements.div_ceil(cut.per.into()))
                    };
                    let end = match cut.rows {
                        0 => Some(0),
                        rows => end(rows - 1),
                    };
                    let n = end.unwrap_or(u64::MAX).saturating_sub(first);
                    self.kept(&what, (stage, drain), (first, n, end), place);
                }
            }
        }
    }

    /// Wavelets that an earlier stage's drain got: of which drain, the first one, how many, and the last one's number + 1.
    fn kept(
        &mut self,
        what: &str,
        (stage, drain): (u32, u32),
        (first, n, end): (u64, u64, Option<u64>),
        place: &str,
    ) {
        let from = format!("stage {stage} drain {drain}");
        if stage as usize >= self.number {
            let problem = format!(
                "{what} takes from {from}, which is not before stage {}",
                self.number
            );
            self.add(place, "M16", problem, "feed back what an earlier stage drained");
            return;
        }
        let drains = &self.program.stages[stage as usize].drains;
        let Some(drain) = drains.get(drain as usize) else {
            let help = format!("drains of that stage, numbered from 0: {}", drains.len());
            let problem = format!("{what} takes from {from}, which does not exist");
            self.add(place, "M16", problem, help);
            return;
        };
        if end.is_none_or(|end| end > drain.wavelets) {
            let problem = format!("{what} takes {n} from number {first} on of the wavelets of {from}");
            let help = format!("that drain gets {}, numbered from 0", drain.wavelets);
            self.add(place, "M16", problem, help);
        }
    }

    fn channel(&mut self, channels: &HashSet<(Side, u32)>, s: Side, row: u32, place: &str) -> bool {
        if channels.contains(&(s, row)) {
            return true;
        }
        let near = channels
            .iter()
            .filter(|c| c.0 == s)
            .map(|c| c.1)
            .min_by_key(|r| (r.abs_diff(row), *r));
        let help = match near {
            Some(r) => format!("the nearest one on that side is at row {r}"),
            None => format!("the {} side has none", side(s)),
        };
        self.add(
            place,
            "M15",
            format!("there is no channel on the {} side at row {row}", side(s)),
            help,
        );
        false
    }

    // ---- the network, a colour at a time

    pub(super) fn network(&mut self) {
        let mut net = Net::new(self.machine.mesh.width, self.machine.mesh.height);
        for c in 0..self.colors.len() {
            let used = std::mem::take(&mut self.colors[c]);
            for (k, &(r, i)) in used.routes.iter().enumerate() {
                self.lay(&mut net, &used.routes, k, r, i);
            }
            let ends: HashSet<(Side, u32)> = used
                .drains
                .iter()
                .map(|d| (self.stage.drains[*d].side, self.stage.drains[*d].row))
                .collect();
            for (k, &(r, i)) in used.routes.iter().enumerate() {
                self.connected(&mut net, &ends, k, r, i);
                if self.full() {
                    return;
                }
            }
            self.circle(&mut net, c as Color, &used.routes);
            self.ends(&net, c as Color, &used);
            if self.full() {
                return;
            }
            for &(r, i) in &used.routes {
                let region = &self.stage.regions[r];
                for (x, y) in region.routes[i].at.places() {
                    let cell = net.cell(region.x + x, region.y + y);
                    (net.owner[cell], net.ins[cell], net.outs[cell], net.degree[cell]) = (0, 0, 0, 0);
                }
            }
        }
    }

    /// Enters a route's ports on its PEs.
    fn lay(&mut self, net: &mut Net, routes: &[(usize, usize)], k: usize, r: usize, i: usize) {
        let region = &self.stage.regions[r];
        let route = &region.routes[i];
        let mask = |p: &Position| p.outputs.iter().fold(0u8, |m, o| m | 1 << *o as u8);
        let masks: Vec<(u8, u8)> = route
            .positions
            .iter()
            .map(|p| (1 << p.input as u8, mask(p)))
            .collect();
        let all = masks.iter().fold((0, 0), |m, p| (m.0 | p.0, m.1 | p.1));
        let constant = route.positions.len() == 1
            || route
                .positions
                .iter()
                .all(|p| self.range(&p.hold, &route.at).is_some_and(|b| b.0 > 0));
        for (x, y) in route.at.places() {
            let cell = net.cell(region.x + x, region.y + y);
            if net.owner[cell] != 0 {
                let (r0, i0) = routes[net.owner[cell] as usize - 1];
                let problem = format!(
                    "PE ({}, {}) already has a route of c{}: {}",
                    region.x + x,
                    region.y + y,
                    route.color,
                    self.route_place(r0, i0)
                );
                self.add(
                    self.route_place(r, i),
                    "M4",
                    problem,
                    "use another colour, or make the lattices disjoint",
                );
                return;
            }
            let active = if constant {
                all
            } else {
                let holds = route.positions.iter().zip(&masks);
                holds
                    .filter(|(p, _)| p.hold.at(x as i64, y as i64) != 0)
                    .fold((0, 0), |m, (_, p)| (m.0 | p.0, m.1 | p.1))
            };
            // the core's own ports are there even where their positions are passed over: code of several PEs may name them
            let ramp = 1 << Port::Ramp as u8;
            let active = (active.0 | all.0 & ramp, active.1 | all.1 & ramp);
            net.owner[cell] = k as u32 + 1;
            (net.ins[cell], net.outs[cell]) = active;
        }
    }

    /// Every output of a route reaches somebody; counts the arrivals at each PE on the way.
    fn connected(&mut self, net: &mut Net, drains: &HashSet<(Side, u32)>, k: usize, r: usize, i: usize) {
        let region = &self.stage.regions[r];
        let route = &region.routes[i];
        // For each direction: no route there, a route that does not listen, beyond the mesh. Each: how many PEs, the first.
        let mut wrong = [[(0u64, (0u32, 0u32)); 3]; 4];
        for (x, y) in route.at.places() {
            let (x, y) = (region.x + x, region.y + y);
            let cell = net.cell(x, y);
            if net.owner[cell] as usize != k + 1 {
                continue;
            }
            for (d, p) in Port::ALL.iter().take(4).enumerate() {
                if net.outs[cell] & (1 << d) == 0 {
                    continue;
                }
                let kind = match net.neighbour(x, y, *p) {
                    Some(n) if net.owner[n] == 0 => 0,
                    Some(n) if net.ins[n] & (1 << p.opposite() as u8) == 0 => 1,
                    Some(n) => {
                        net.degree[n] += 1;
                        continue;
                    }
                    None if *p == Port::West && drains.contains(&(Side::West, y)) => continue,
                    None if *p == Port::East && drains.contains(&(Side::East, y)) => continue,
                    None => 2,
                };
                let w = &mut wrong[d][kind];
                if w.0 == 0 {
                    w.1 = (x, y);
                }
                w.0 += 1;
            }
        }
        for (d, kinds) in wrong.iter().enumerate() {
            for (kind, &(n, (x, y))) in kinds.iter().enumerate().filter(|(_, w)| w.0 > 0) {
                let (p, from) = (port(Port::ALL[d]), port(Port::ALL[d].opposite()));
                let more = if n > 1 {
                    format!(" and {} more PEs", n - 1)
                } else {
                    String::new()
                };
                let (what, help) = match kind {
                    0 => (
                        format!("whose neighbour has no route of c{}", route.color),
                        "extend the route by that neighbour, or drop the output there".to_string(),
                    ),
                    1 => (
                        format!("whose neighbour takes no c{} from {from}", route.color),
                        format!(
                            "give the neighbour a position with input {from} and a hold, or drop the output"
                        ),
                    ),
                    _ => (
                        "which is the mesh's border without a drain".to_string(),
                        "add a drain of this colour at a channel there, or drop the output".to_string(),
                    ),
                };
                let problem = format!("the output {p} leads nowhere at PE ({x}, {y}){more}, {what}");
                self.add(
                    self.route_place(r, i),
                    if kind == 2 { "M15" } else { "M4" },
                    problem,
                    help,
                );
            }
        }
    }

    /// No colour comes back to a PE that it left.
    fn circle(&mut self, net: &mut Net, c: Color, routes: &[(usize, usize)]) {
        let mut left = 0u64;
        let mut ready: Vec<(u32, u32)> = Vec::new();
        for (k, (r, i)) in routes.iter().enumerate() {
            let region = &self.stage.regions[*r];
            for (x, y) in region.routes[*i].at.places() {
                let (x, y) = (region.x + x, region.y + y);
                let cell = net.cell(x, y);
                if net.owner[cell] as usize == k + 1 {
                    left += 1;
                    if net.degree[cell] == 0 {
                        ready.push((x, y));
                    }
                }
            }
        }
        while let Some((x, y)) = ready.pop() {
            left -= 1;
            for p in &Port::ALL[..4] {
                if let Some(n) = net.link(x, y, *p) {
                    net.degree[n] -= 1;
                    if net.degree[n] == 0 {
                        ready.push(net.place(n));
                    }
                }
            }
        }
        if left == 0 {
            return;
        }
        // Every PE that is left has a predecessor that is left: walk back until one comes twice.
        let start = routes.iter().find_map(|(r, i)| {
            let region = &self.stage.regions[*r];
            let mut places = region.routes[*i]
                .at
                .places()
                .map(|(x, y)| (region.x + x, region.y + y));
            places.find(|(x, y)| net.degree[net.cell(*x, *y)] > 0)
        });
        let Some(start) = start else { return };
        let mut path = vec![start];
        let mut met = HashMap::from([(start, 0)]);
        let round = loop {
            let (x, y) = path[path.len() - 1];
            let before = Port::ALL[..4].iter().find_map(|p| {
                let n = net.neighbour(x, y, *p)?;
                let (nx, ny) = net.place(n);
                let linked = net.link(nx, ny, p.opposite()).is_some();
                (linked && net.owner[n] != 0 && net.degree[n] > 0).then_some((nx, ny))
            });
            let Some(before) = before else { return };
            if let Some(at) = met.get(&before) {
                break path[*at..].iter().rev().copied().collect::<Vec<_>>();
            }
            met.insert(before, path.len());
            path.push(before);
        };
        let (x, y) = round[0];
        let (r, i) = routes[net.owner[net.cell(x, y)] as usize - 1];
        let shown: Vec<String> = round.iter().take(6).map(|(x, y)| format!("({x}, {y})")).collect();
        let gap = if round.len() > 6 { " -> ..." } else { "" };
        let problem = format!(
            "c{c} goes in a circle of {} PEs: {}{gap} -> ({x}, {y})",
            round.len(),
            shown.join(" -> ")
        );
        self.add(
            self.route_place(r, i),
            "M4",
            problem,
            "use a second colour for the way back",
        );
    }

    /// Feeds, drains and cores have a route where they meet the network.
    fn ends(&mut self, net: &Net, c: Color, used: &Use) {
        let border = |s: Side| match s {
            Side::West => (0, Port::West),
            Side::East => (net.width - 1, Port::East),
        };
        for f in &used.feeds {
            let f = &self.stage.feeds[*f];
            let (x, p) = border(f.side);
            if net.ins[net.cell(x, f.row)] & (1 << p as u8) == 0 {
                let problem = format!("PE ({x}, {}) takes no c{c} from {}", f.row, port(p));
                let help = format!("add a route of c{c} there with input {}", port(p));
                self.add(feed_place(f), "M15", problem, help);
            }
        }
        for d in &used.drains {
            let d = &self.stage.drains[*d];
            let (x, p) = border(d.side);
            if net.outs[net.cell(x, d.row)] & (1 << p as u8) == 0 {
                let problem = format!("PE ({x}, {}) sends no c{c} to {}", d.row, port(p));
                let help = format!("add a route of c{c} there with output {}", port(p));
                self.add(drain_place(d), "M15", problem, help);
            }
        }
        for (r, b, sends, what) in &used.cores {
            let region = &self.stage.regions[*r];
            let ports = if *sends { &net.ins } else { &net.outs };
            let missing = |(x, y): &(u32, u32)| ports[net.cell(region.x + x, region.y + y)] & RAMP == 0;
            let mut all = region.blocks[*b].at.places().filter(missing);
            if let Some((x, y)) = all.next() {
                let more = match all.count() {
                    0 => String::new(),
                    n => format!(" and {n} more PEs"),
                };
                let at = format!("PE ({}, {}){more}", region.x + x, region.y + y);
                let (problem, help) = if *sends {
                    (
                        format!("it sends c{c}, but no route takes that from the ramp at {at}"),
                        "input ramp",
                    )
                } else {
                    (
                        format!("it takes c{c}, but no route brings that to the ramp at {at}"),
                        "output ramp",
                    )
                };
                let help = format!("add a route of c{c} there with {help}");
                self.add(what.clone(), "M4", problem, help);
            }
        }
    }
}

/// One colour's ports on all PEs.
struct Net {
    width: u32,
    height: u32,
    /// Which route, from 1; 0 for none.
    owner: Vec<u32>,
    /// Inputs and outputs of the positions with a hold, as bits.
    ins: Vec<u8>,
    outs: Vec<u8>,
    /// Neighbours that send here and are not yet known to be outside a circle.
    degree: Vec<u8>,
}

impl Net {
    fn new(width: u32, height: u32) -> Net {
        let n = width as usize * height as usize;
        Net {
            width,
            height,
            owner: vec![0; n],
            ins: vec![0; n],
            outs: vec![0; n],
            degree: vec![0; n],
        }
    }

    fn cell(&self, x: u32, y: u32) -> usize {
        y as usize * self.width as usize + x as usize
    }

    fn place(&self, cell: usize) -> (u32, u32) {
        (
            (cell % self.width as usize) as u32,
            (cell / self.width as usize) as u32,
        )
    }

    fn neighbour(&self, x: u32, y: u32, p: Port) -> Option<usize> {
        match p {
            Port::North if y > 0 => Some(self.cell(x, y - 1)),
            Port::South if y + 1 < self.height => Some(self.cell(x, y + 1)),
            Port::West if x > 0 => Some(self.cell(x - 1, y)),
            Port::East if x + 1 < self.width => Some(self.cell(x + 1, y)),
            _ => None,
        }
    }

    /// The neighbour, if this PE sends there and it listens.
    fn link(&self, x: u32, y: u32, p: Port) -> Option<usize> {
        let n = self.neighbour(x, y, p)?;
        let sends = self.outs[self.cell(x, y)] & (1 << p as u8) != 0;
        (sends && self.ins[n] & (1 << p.opposite() as u8) != 0).then_some(n)
    }
}

fn feed_place(f: &Feed) -> String {
    format!(
        "feed {} ({} row {}, c{}, epoch {})",
        name(&f.name),
        side(f.side),
        f.row,
        f.color,
        f.epoch
    )
}

fn drain_place(d: &Drain) -> String {
    format!(
        "drain {} ({} row {}, c{})",
        name(&d.name),
        side(d.side),
        d.row,
        d.color
    )
}
