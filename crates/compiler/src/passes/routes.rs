//! Streams between kernels: each is a tree of routers from its producer's exit to the entries of its consumers, and to an edge channel
//! if it is a graph output, on one colour. Short ways are preferred, over links that carry little. A colour serves one stream in a router.

use super::stages::{input_color, output_color};
use crate::CompileError;
use crate::kernels::colors;
use crate::plan::*;
use meshloom_simulator::program::{Color, Port, Route};
use meshloom_simulator::{Machine, Side};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

const STEPS: [(Port, i64, i64); 4] = [
    (Port::North, 0, -1),
    (Port::East, 1, 0),
    (Port::South, 0, 1),
    (Port::West, -1, 0),
];

/// Cost of a hop over an idle link; a link that is busy all the time costs this much more.
const HOP: u64 = 16;
const BUSY: u64 = 640;

struct Mesh<'m> {
    machine: &'m Machine,
    width: u32,
    height: u32,
    /// Bit c: colour c has a route in this router.
    used: Vec<u32>,
    /// Wavelets an item over the link out of a router, by port.
    load: Vec<[u64; 4]>,
    /// Cycles an item that the slowest kernel is expected to take.
    interval: u64,
    /// Rows of the channels by which inputs enter.
    entered: Vec<u32>,
    /// Channels by which outputs leave.
    left: Vec<(Side, u32)>,
    /// Kept from search to search: most look at a small part of a large mesh.
    search: RefCell<Search>,
}

/// What a search knows of the routers that it looked at.
struct Search {
    cost: Vec<u64>,
    /// The port by which the way to a router leaves the one before it, as the index of its step.
    from: Vec<Option<u8>>,
    seen: Vec<u32>,
}

impl Search {
    fn new(routers: usize) -> Search {
        Search {
            cost: vec![u64::MAX; routers],
            from: vec![None; routers],
            seen: Vec::new(),
        }
    }

    fn clear(&mut self) {
        for pe in self.seen.drain(..) {
            (self.cost[pe as usize], self.from[pe as usize]) = (u64::MAX, None);
        }
    }

    fn set(&mut self, pe: u32, cost: u64, from: Option<u8>) {
        (self.cost[pe as usize], self.from[pe as usize]) = (cost, from);
        self.seen.push(pe);
    }

    fn cost(&self, pe: u32) -> u64 {
        self.cost[pe as usize]
    }

    fn from(&self, pe: u32) -> Option<usize> {
        self.from[pe as usize].map(usize::from)
    }
}

/// Where a stream starts, what it must reach, and where it may not go.
struct Net {
    /// Starting router and ports that it may not leave by; or the border routers of channels.
    exit: Option<((u32, u32), Vec<Port>)>,
    entries: Vec<(u32, u32)>,
    /// The ports by which each entry may be reached.
    doors: BTreeMap<u32, Vec<Port>>,
    leaves: bool,
    /// Routers inside kernels that the stream uses there.
    inside: Vec<u32>,
    volume: u64,
}

#[derive(Clone, Debug, Default)]
struct Tree {
    cost: u64,
    way: Way,
    /// Bit c: colour c has a route in one of the routers that were looked at.
    met: u32,
}

impl Mesh<'_> {
    fn at(&self, x: u32, y: u32) -> u32 {
        y * self.width + x
    }

    fn step(&self, pe: u32, (_, dx, dy): (Port, i64, i64)) -> Option<u32> {
        let (x, y) = ((pe % self.width) as i64 + dx, (pe / self.width) as i64 + dy);
        let inside = (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y);
        inside.then(|| self.at(x as u32, y as u32))
    }

    fn hop(&self, pe: u32, port: usize) -> u64 {
        HOP + BUSY * self.load[pe as usize][port] / self.interval
    }

    /// The cheapest tree on a colour (any, if none is given), if there is one at most as dear as `most`.
    fn tree(&self, net: &Net, color: Option<Color>, most: u64) -> Option<Tree> {
        let met = Cell::new(0);
        let free = |pe: u32| {
            met.set(met.get() | self.used[pe as usize]);
            color.is_none_or(|c| self.used[pe as usize] >> c & 1 == 0)
        };
        if !net.inside.iter().all(|pe| free(*pe)) {
            return None;
        }
        let mut blocked = vec![false; self.used.len()];
        net.inside.iter().for_each(|pe| blocked[*pe as usize] = true);
        let channels = self.machine.channels();
        // routers of the tree so far, with the ports that are taken: (input, outputs)
        let mut routers: BTreeMap<u32, (Port, Vec<Port>)> = BTreeMap::new();
        let mut first = None;
        let mut tree = Tree::default();
        tree.way.color = color.unwrap_or(0);
        tree.way.entries = vec![Port::Ramp; net.entries.len()];
        let mut forbidden: Vec<Port> = Vec::new();
        if let Some(((x, y), ports)) = &net.exit {
            let pe = self.at(*x, *y);
            if !free(pe) || blocked[pe as usize] {
                return None;
            }
            first = Some(pe);
            routers.insert(pe, (Port::Ramp, Vec::new()));
            forbidden.clone_from(ports);
        }
        let mut missing: Vec<usize> = (0..net.entries.len()).collect();
        let mut leaves = net.leaves;
        let search = &mut *self.search.borrow_mut();
        while !missing.is_empty() || leaves {
            search.clear();
            let mut heap = BinaryHeap::new();
            if first.is_none() {
                // an input: any west channel whose border router is free
                for c in channels.iter().filter(|c| c.side == Side::West) {
                    let pe = self.at(0, c.row);
                    if free(pe) && !blocked[pe as usize] {
                        // a channel of its own, if there is one
                        let shared = if self.entered.contains(&c.row) {
                            HOP * 1000
                        } else {
                            0
                        };
                        search.set(pe, shared, None);
                        heap.push(Reverse((shared, pe)));
                    }
                }
            } else {
                for pe in routers.keys() {
                    search.set(*pe, 0, None);
                    heap.push(Reverse((0, *pe)));
                }
            }
            let mut reached = None;
            while let Some(Reverse((d, pe))) = heap.pop() {
                if d > search.cost(pe) {
                    continue;
                }
                let target = missing
                    .iter()
                    .position(|i| self.at(net.entries[*i].0, net.entries[*i].1) == pe);
                if let Some(i) = target {
                    reached = Some((pe, Some(i)));
                    break;
                }
                let own = routers.get(&pe);
                let arrives = match (own, search.from(pe)) {
                    (Some((input, _)), _) => Some(*input),
                    (None, Some(port)) => Some(STEPS[port].0.opposite()),
                    (None, None) => Some(Port::West),
                };
                let may_leave = |port: Port| {
                    arrives != Some(port)
                        && own.is_none_or(|(_, outputs)| !outputs.contains(&port))
                        && (first != Some(pe) || !forbidden.contains(&port))
                };
                let column = pe % self.width;
                if leaves && missing.is_empty() && (column == 0 || column + 1 == self.width) {
                    let side = channels.iter().find(|c| {
                        let (x, port) = match c.side {
                            Side::West => (0, Port::West),
                            Side::East => (self.width - 1, Port::East),
                        };
                        let channel = (c.side, c.row);
                        let spare = !self.left.contains(&channel) || self.left.len() >= channels.len();
                        self.at(x, c.row) == pe && may_leave(port) && spare
                    });
                    if let Some(c) = side {
                        tree.way.leaves = Some((c.side, c.row));
                        reached = Some((pe, None));
                        break;
                    }
                }
                for (n, step) in STEPS.iter().enumerate() {
                    let Some(next) = self.step(pe, *step) else {
                        continue;
                    };
                    if !may_leave(step.0) || routers.contains_key(&next) {
                        continue;
                    }
                    let entry = missing
                        .iter()
                        .any(|i| self.at(net.entries[*i].0, net.entries[*i].1) == next);
                    let open = if entry {
                        net.doors[&next].contains(&step.0.opposite())
                    } else {
                        !blocked[next as usize] && free(next)
                    };
                    let d = d + self.hop(pe, n);
                    if open && d < search.cost(next) {
                        search.set(next, d, Some(n as u8));
                        heap.push(Reverse((d, next)));
                    }
                }
            }
            let (end, target) = reached?;
            tree.cost += search.cost(end);
            if tree.cost > most {
                return None;
            }
            // back from the end to the tree
            let input = |search: &Search, pe: u32| {
                let port = search.from(pe).map(|n| STEPS[n].0.opposite());
                port.unwrap_or(Port::West)
            };
            let mut pe = end;
            match target {
                Some(i) => {
                    let consumer = missing.remove(i);
                    tree.way.entries[consumer] = input(search, end);
                }
                None => {
                    leaves = false;
                    let port = match tree.way.leaves {
                        Some((Side::East, _)) => Port::East,
                        _ => Port::West,
                    };
                    let own = routers.entry(end).or_insert((input(search, end), Vec::new()));
                    own.1.push(port);
                }
            }
            while let Some(n) = search.from(pe) {
                let back = STEPS.iter().find(|s| s.0 == STEPS[n].0.opposite());
                let Some(before) = back.and_then(|s| self.step(pe, *s)) else {
                    break;
                };
                if !routers.contains_key(&before) && search.from(before).is_none() {
                    tree.way.enters = Some((Side::West, before / self.width));
                    first = Some(before);
                }
                let own = routers
                    .entry(before)
                    .or_insert((input(search, before), Vec::new()));
                own.1.push(STEPS[n].0);
                pe = before;
            }
        }
        let place = |pe: u32| (pe % self.width, pe / self.width);
        let order = routers
            .into_iter()
            .map(|(pe, (input, outputs))| (place(pe), input, outputs));
        tree.way.routers = order.collect();
        // the start first
        if let Some(first) = first {
            tree.way
                .routers
                .sort_by_key(|(at, ..)| (*at != place(first), at.1, at.0));
        }
        tree.met = met.get();
        Some(tree)
    }

    /// The cheapest tree over all colours; an early one that is as cheap as if there were no others is taken at once.
    fn best(&self, net: &Net) -> Option<Tree> {
        let any = self.tree(net, None, u64::MAX)?;
        let ideal = any.cost;
        let mut best: Option<Tree> = None;
        for color in colors::STREAMS..self.machine.router.colors.min(32) as Color {
            // on a colour that is free wherever was looked it is the same; a detour for two targets may have been cheaper
            if any.met >> color & 1 == 0 {
                if best.as_ref().is_some_and(|b| b.cost <= ideal) {
                    continue;
                }
                let way = Way { color, ..any.way };
                return Some(Tree { way, ..any });
            }
            let most = best.as_ref().map_or(u64::MAX, |b| b.cost - 1);
            if let Some(tree) = self.tree(net, Some(color), most) {
                let done = tree.cost == ideal;
                best = Some(tree);
                if done {
                    break;
                }
            }
        }
        best
    }

    /// Takes what a tree uses.
    fn take(&mut self, net: &Net, way: &Way) {
        let bit = 1u32 << way.color;
        net.inside.iter().for_each(|pe| self.used[*pe as usize] |= bit);
        for ((x, y), _, outputs) in &way.routers {
            let pe = self.at(*x, *y) as usize;
            self.used[pe] |= bit;
            for (n, step) in STEPS.iter().enumerate() {
                if outputs.contains(&step.0) {
                    self.load[pe][n] += net.volume;
                }
            }
        }
    }
}

/// The routes of a colour in a kernel's own region.
fn own(plan: &Plan, kernel: usize, color: Color) -> impl Iterator<Item = &Route> {
    let routes = &plan.regions[kernel].region.routes;
    routes.iter().filter(move |r| r.color == color)
}

/// What one lane of an edge must connect.
fn net(plan: &Plan, mesh: &Mesh, edge: &Edge, lane: usize, leaves: bool, volume: u64) -> Net {
    let mut inside = Vec::new();
    let mut add = |kernel: usize, color: Color| {
        let at = plan.places[kernel];
        let places = own(plan, kernel, color).flat_map(|r| r.at.places());
        inside.extend(places.map(|(x, y)| mesh.at(at.x + x, at.y + y)));
    };
    let exit = match edge.source {
        Source::Kernel(k) => {
            add(k, output_color(lane));
            let (exit, at) = (&plan.regions[k].exits[lane], plan.places[k]);
            let ports = exit.from.iter().map(|(p, _)| *p).collect();
            Some(((at.x + exit.at.0, at.y + exit.at.1), ports))
        }
        Source::Input(_) | Source::Stored(..) => None,
    };
    let (mut entries, mut doors) = (Vec::new(), BTreeMap::new());
    for &k in &edge.to {
        let input = input_of(plan, k, edge);
        add(k, input_color(input, lane));
        let (entry, at) = (plan.regions[k].entries[input][lane], plan.places[k]);
        let place = (at.x + entry.0, at.y + entry.1);
        // the ports to the outside by which the lane does not go on
        let route = own(plan, k, input_color(input, lane)).find(|r| r.at.places().eq([entry]));
        let onwards = route.map_or(&[][..], |r| &r.positions[0].outputs);
        let outside = [
            (Port::West, entry.0 == 0),
            (Port::North, entry.1 == 0),
            (Port::South, entry.1 + 1 == at.height),
            (Port::East, entry.0 + 1 == at.width),
        ];
        let open = outside
            .iter()
            .filter(|(p, out)| *out && !onwards.contains(p))
            .map(|(p, _)| *p);
        doors.insert(mesh.at(place.0, place.1), open.collect());
        entries.push(place);
    }
    Net {
        exit,
        entries,
        doors,
        leaves,
        inside,
        volume,
    }
}

/// Which input of a kernel an edge is.
pub fn input_of(plan: &Plan, kernel: usize, edge: &Edge) -> usize {
    let inputs = &plan.kernels[kernel].inputs;
    inputs
        .iter()
        .position(|u| plan.edges[u.edge].name == edge.name)
        .unwrap_or(0)
}

/// Why streams have no ways, and the edge for one of whose lanes none was found.
pub struct NoWay {
    /// The edge.
    pub edge: Option<usize>,
    /// What to tell.
    pub error: CompileError,
}

impl From<CompileError> for NoWay {
    fn from(error: CompileError) -> NoWay {
        NoWay { edge: None, error }
    }
}

/// Finds every stream's way, the largest streams first.
pub fn run(plan: &mut Plan, machine: &Machine) -> Result<(), NoWay> {
    let pes = machine.mesh.width as usize * machine.mesh.height as usize;
    let mut mesh = Mesh {
        machine,
        width: machine.mesh.width,
        height: machine.mesh.height,
        used: vec![0; pes],
        load: vec![[0; 4]; pes],
        interval: plan.estimates.iter().max().copied().unwrap_or(1).max(1),
        entered: Vec::new(),
        left: Vec::new(),
        search: RefCell::new(Search::new(pes)),
    };
    for way in &plan.weights {
        let wavelets = way.data.len() as u64;
        mesh.entered
            .extend((way.enters.0 == Side::West).then_some(way.enters.1));
        for route in &way.routes {
            for (x, y) in route.at.places() {
                let pe = mesh.at(x, y) as usize;
                mesh.used[pe] |= 1 << way.color;
                for (n, step) in STEPS.iter().enumerate() {
                    if route.positions[0].outputs.contains(&step.0) {
                        // along the row all of it, along a column its share
                        let filtered = route.filters.iter().any(|f| f.output == step.0);
                        let parts = if filtered { way.columns.len() as u64 } else { 1 };
                        mesh.load[pe][n] += wavelets / parts;
                    }
                }
            }
        }
    }
    let volume = |e: &Edge| {
        let per = crate::kernels::per_wavelet(machine, e.ty);
        (e.layout.features / e.layout.lanes) as u64 * (e.layout.length() as u64).div_ceil(per)
    };
    let mut order: Vec<(usize, usize)> = (0..plan.edges.len())
        .flat_map(|e| (0..plan.edges[e].layout.lanes).map(move |lane| (e, lane)))
        .collect();
    order.sort_by_key(|(e, lane)| (Reverse(volume(&plan.edges[*e])), *e, *lane));
    for (e, lane) in order {
        let edge = &plan.edges[e];
        let leaves = plan.outputs.iter().any(|(_, u)| u.edge == e);
        if edge.to.is_empty() && !leaves {
            return Err(CompileError::Unsupported {
                node: edge.name.clone(),
                message: "nothing takes its result".into(),
            }
            .into());
        }
        let net = net(plan, &mesh, edge, lane, leaves, volume(edge));
        let Some(tree) = mesh.best(&net) else {
            let busiest = mesh.used.iter().map(|u| u.count_ones()).max().unwrap_or(0);
            let error = CompileError::DoesNotFit {
                what: format!("the stream {}", edge.name),
                needs: format!(
                    "a colour that is free all along its way; {} more are for use inside kernels, and up to {busiest} streams already share a router",
                    colors::STREAMS
                ),
                has: format!("{} colours on {}", machine.router.colors, machine.name),
                helps: match machine.router.colors as usize {
                    n if n <= colors::STREAMS as usize => format!("--set router.colors={}", n.max(4) + 8),
                    n => format!(
                        "several stages (--stages auto or layer), a larger mesh, or --set router.colors={}",
                        (n + 8).min(32)
                    ),
                },
            };
            return Err(NoWay { edge: Some(e), error });
        };
        mesh.take(&net, &tree.way);
        mesh.entered.extend(tree.way.enters.map(|(_, row)| row));
        mesh.left.extend(tree.way.leaves);
        plan.edges[e].ways.push(tree.way);
    }
    Ok(())
}

/// The streams' colours and lengths, and the links that several of them share.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::new();
    let mut links: BTreeMap<((u32, u32), Port), Vec<&str>> = BTreeMap::new();
    for (i, e) in plan.edges.iter().enumerate() {
        let from = match e.source {
            Source::Input(_) => "input".to_string(),
            Source::Stored(stage, _) => format!("stage {stage}"),
            Source::Kernel(k) => plan.kernels[k].name.clone(),
        };
        let mut to: Vec<String> = e.to.iter().map(|k| plan.kernels[*k].name.clone()).collect();
        to.extend(
            plan.outputs
                .iter()
                .filter(|(_, u)| u.edge == i)
                .map(|(n, _)| format!("output {n}")),
        );
        let hops: usize = e.ways.iter().flat_map(|w| &w.routers).map(|r| r.2.len()).sum();
        let colors: Vec<String> = e.ways.iter().map(|w| w.color.to_string()).collect();
        out += &format!(
            "colour {:<11} {:<16} {from} -> {}  {hops} links, {} features x {} elements\n",
            colors.join(" "),
            e.name,
            to.join(", "),
            e.layout.features,
            e.layout.length()
        );
        for (at, _, outputs) in e.ways.iter().flat_map(|w| &w.routers) {
            for port in outputs {
                links.entry((*at, *port)).or_default().push(&e.name);
            }
        }
    }
    let mut shared: BTreeMap<String, usize> = BTreeMap::new();
    for names in links.values().filter(|n| n.len() > 1) {
        *shared.entry(names.join(", ")).or_default() += 1;
    }
    for (names, n) in shared {
        out += &format!("shared links: {n} carry {names}\n");
    }
    out += &format!(
        "inside every kernel: colour {} weights, {} and {} partial sums; {} colours on {}\n",
        colors::LOAD,
        colors::REDUCE[0],
        colors::REDUCE[1],
        machine.router.colors,
        machine.name
    );
    out
}
