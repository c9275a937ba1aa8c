//! The way of resident weights: from the edge's channels to the PEs that keep them, before a stage begins.
//!
//! All weights of a stage travel on one colour. Each channel serves a connected part of the mesh, on a tree that begins at its border
//! router: switches count flagged blocks, and let each PE take its own, then pass on what follows. As every channel enters a word a
//! cycle, the load takes as long as the channel with most words: so the parts are chosen such that their words, not their PEs, are
//! equally many ([`Parts::even`]).

use crate::kernels::{balanced, per_wavelet, rectangles, table};
use meshloom_simulator::program::*;
use meshloom_simulator::{Channel, Machine, Side};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const STEPS: [(Port, i64, i64); 4] = [
    (Port::East, 1, 0),
    (Port::West, -1, 0),
    (Port::South, 0, 1),
    (Port::North, 0, -1),
];

/// Most tiles along an edge of the mesh: PEs of a larger mesh are dealt out by tiles of several.
const TILES: u32 = 64;

/// A grid of tiles, each of which is served by one of the channels.
struct Parts {
    width: u32,
    height: u32,
    /// Words that each tile takes.
    words: Vec<u64>,
    /// The channel that serves each tile.
    of: Vec<usize>,
    /// Whether a channel enters here.
    root: Vec<bool>,
}

impl Parts {
    fn neighbour(&self, tile: usize, (_, dx, dy): (Port, i64, i64)) -> Option<usize> {
        let (x, y) = (
            (tile as u32 % self.width) as i64 + dx,
            (tile as u32 / self.width) as i64 + dy,
        );
        let inside = (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y);
        inside.then(|| (y * self.width as i64 + x) as usize)
    }

    /// Whether what is left of a tile's part is surely connected without it: its neighbours in the part are, around the tile.
    fn spare(&self, tile: usize) -> bool {
        let (x, y) = (
            (tile as u32 % self.width) as i64,
            (tile as u32 / self.width) as i64,
        );
        let own = |(dx, dy): (i64, i64)| {
            let (x, y) = (x + dx, y + dy);
            let inside = (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y);
            inside && self.of[(y * self.width as i64 + x) as usize] == self.of[tile]
        };
        // around the tile, the four neighbours at even places
        let ring = [
            (0, -1),
            (1, -1),
            (1, 0),
            (1, 1),
            (0, 1),
            (-1, 1),
            (-1, 0),
            (-1, -1),
        ]
        .map(own);
        let near = ring.iter().step_by(2).filter(|own| **own).count();
        let linked = (0..8)
            .step_by(2)
            .filter(|i| ring[*i] && ring[i + 1] && ring[(i + 2) % 8])
            .count();
        // n neighbours in a row around the tile have n - 1 links, four in a circle four
        !self.root[tile] && near > 0 && linked + 1 >= near
    }

    /// The words of each channel.
    fn loads(&self, channels: usize) -> Vec<u64> {
        let mut loads = vec![0; channels];
        for (tile, words) in self.words.iter().enumerate() {
            loads[self.of[tile]] += words;
        }
        loads
    }

    /// Evens out the channels' words, if that is worth while: parts as they are need few routes, so they stay unless others are better by
    /// a tenth, and by more than a few words. The search is repeated if the channel with most words has more than a tenth above the mean.
    fn even(&mut self, channels: usize) {
        const ATTEMPTS: u64 = 3;
        let most = |parts: &Parts| parts.loads(channels).into_iter().max().unwrap_or(0);
        let (start, before) = (self.of.clone(), most(self));
        let mean = self.words.iter().sum::<u64>() / channels as u64;
        let mut best = (before.saturating_sub((before / 10).max(64)), self.of.clone());
        for seed in 0..ATTEMPTS {
            if best.0 <= mean + mean / 10 {
                break;
            }
            self.of.clone_from(&start);
            self.exchange(channels, seed);
            let now = most(self);
            if now < best.0 {
                best = (now, self.of.clone());
            }
        }
        self.of = best.1;
    }

    /// Hands tiles from part to part until the words of all channels are about equally many: a random tile at a border goes over to
    /// its neighbour's part, if both parts stay connected, and the sum of the squares of the parts' words becomes smaller, or little
    /// larger (threshold accepting: Dueck and Scheuer, Journal of Computational Physics 90, 1990). Long borders count a little, as
    /// straight ones need fewer routes. At first each tile counts as if it had some words more, so that channels far from all weights
    /// find their way to them.
    fn exchange(&mut self, channels: usize, seed: u64) {
        const ROUNDS: usize = 24;
        const TRIES: usize = 32;
        let tiles = self.of.len();
        let all: u64 = self.words.iter().sum();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for round in 0..ROUNDS {
            let left = (ROUNDS - 4).saturating_sub(round) as f64 / (ROUNDS - 4) as f64;
            let extra = 0.5 * left * all as f64 / tiles as f64;
            let mean = (all as f64 + extra * tiles as f64) / channels as f64;
            let threshold = 0.004 * left;
            let border = 0.002 + 0.002 * left;
            let weights: Vec<f64> = self.words.iter().map(|w| (*w as f64 + extra) / mean).collect();
            let mut loads = vec![0.0; channels];
            for (tile, weight) in weights.iter().enumerate() {
                loads[self.of[tile]] += weight;
            }
            for _ in 0..TRIES * tiles {
                let tile = rng.random_range(0..tiles);
                let step = STEPS[rng.random_range(0..STEPS.len())];
                let Some(next) = self.neighbour(tile, step) else {
                    continue;
                };
                let (from, to) = (self.of[tile], self.of[next]);
                if from == to || !self.spare(tile) {
                    continue;
                }
                let w = weights[tile];
                // (to + w)^2 + (from - w)^2 - to^2 - from^2
                let squares = 2.0 * w * (loads[to] - loads[from] + w);
                let near = |part: usize| {
                    let all = STEPS.iter().filter_map(|s| self.neighbour(tile, *s));
                    all.filter(|n| self.of[*n] == part).count() as f64
                };
                if squares + border * (near(from) - near(to)) < threshold {
                    loads[from] -= w;
                    loads[to] += w;
                    self.of[tile] = to;
                }
            }
        }
    }
}

/// Column of the router by which a channel enters.
fn border(channel: &Channel, width: u32) -> u32 {
    match channel.side {
        Side::West => 0,
        Side::East => width - 1,
    }
}

/// The channel that serves each PE, row by row of the mesh; `words` are those of each PE.
fn serving(words: &[u64], channels: &[Channel], machine: &Machine) -> Vec<usize> {
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    // at first rows from a channel's own to the next one's, the west half from the west
    let sides = [Side::West, Side::East].map(|side| {
        let own = channels.iter().enumerate().filter(move |(_, c)| c.side == side);
        own.map(|(i, c)| (c.row, i)).collect::<Vec<_>>()
    });
    let middle = match (sides[0].is_empty(), sides[1].is_empty()) {
        (false, false) => width.div_ceil(2),
        (true, _) => 0,
        (_, true) => width,
    };
    let strip = |x: u32, y: u32| {
        let side = &sides[(x >= middle) as usize];
        let above = side.iter().rev().find(|(row, _)| *row <= y);
        above.or(side.first()).map_or(0, |(_, i)| *i)
    };
    let pes = || (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    // in other parts than these a PE may have to pass wavelets on to three neighbours
    if machine.router.switch_positions < 4 || channels.len() < 2 {
        return pes().map(|(x, y)| strip(x, y)).collect();
    }
    let tile = width.max(height).div_ceil(TILES);
    let (columns, rows) = (width.div_ceil(tile), height.div_ceil(tile));
    let place = |x: u32, y: u32| (y / tile * columns + x / tile) as usize;
    let tiles = (columns * rows) as usize;
    let mut parts = Parts {
        width: columns,
        height: rows,
        words: vec![0; tiles],
        of: (0..rows)
            .flat_map(|y| (0..columns).map(move |x| (x * tile, y * tile)))
            .map(|(x, y)| strip(x, y))
            .collect(),
        root: vec![false; tiles],
    };
    for ((x, y), own) in pes().zip(words) {
        parts.words[place(x, y)] += own;
    }
    for (i, c) in channels.iter().enumerate() {
        let at = place(border(c, width), c.row);
        (parts.root[at], parts.of[at]) = (true, i);
    }
    parts.even(channels.len());
    pes().map(|(x, y)| parts.of[place(x, y)]).collect()
}

/// The way of words from channels to PEs.
pub struct Way {
    /// Its routes, on the whole mesh.
    pub region: Region,
    /// What enters.
    pub feeds: Vec<Feed>,
}

/// What is brought to PEs.
pub struct Cargo<'a> {
    /// Name of what it is.
    pub name: &'a str,
    /// Words of each PE, row by row of the mesh.
    pub words: &'a [&'a [u32]],
    /// PEs without words whose code could take some: they have a route that brings nothing.
    pub idle: &'a [bool],
    /// Parts in which each PE that has any gets its words, all PEs in turn; none has fewer wavelets.
    pub rounds: usize,
    /// The colour of all words.
    pub color: Color,
    /// Their epoch.
    pub epoch: u32,
    /// The channels by which they enter.
    pub channels: &'a [Channel],
    /// Makes names of tables unique.
    pub prefix: &'a str,
}

/// The way by which each PE gets its words.
pub fn run(cargo: &Cargo, machine: &Machine) -> Way {
    let Cargo {
        words,
        channels,
        prefix,
        ..
    } = *cargo;
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    let mut region = Region {
        name: cargo.name.into(),
        x: 0,
        y: 0,
        width,
        height,
        routes: Vec::new(),
        blocks: Vec::new(),
    };
    if words.iter().all(|w| w.is_empty()) && !cargo.idle.contains(&true) {
        return Way {
            region,
            feeds: Vec::new(),
        };
    }
    let pes = (width * height) as usize;
    let tile = width.max(height).div_ceil(TILES);
    // channels that enter in one tile have the same way: one of them is enough
    let mut channels = channels.to_vec();
    channels.dedup_by_key(|c| (c.side, c.row / tile));
    let lengths: Vec<u64> = words.iter().map(|w| w.len() as u64).collect();
    let of = serving(&lengths, &channels, machine);
    let step = |pe: usize, (_, dx, dy): (Port, i64, i64)| {
        let (x, y) = ((pe as u32 % width) as i64 + dx, (pe as u32 / width) as i64 + dy);
        let inside = (0..width as i64).contains(&x) && (0..height as i64).contains(&y);
        inside.then(|| (y * width as i64 + x) as usize)
    };
    // a tree for each channel: shortest ways, along rows rather than columns at their ends
    let mut input: Vec<Option<Port>> = vec![None; pes];
    let mut order: Vec<usize> = Vec::with_capacity(pes);
    for (i, c) in channels.iter().enumerate() {
        let (root, outer) = match c.side {
            Side::West => (c.row * width, Port::West),
            Side::East => ((c.row + 1) * width - 1, Port::East),
        };
        input[root as usize] = Some(outer);
        let mut ring = vec![root as usize];
        while !ring.is_empty() {
            let mut next = Vec::new();
            for s in STEPS {
                for &pe in &ring {
                    let Some(n) = step(pe, s).filter(|n| of[*n] == i && input[*n].is_none()) else {
                        continue;
                    };
                    input[n] = Some(s.0.opposite());
                    next.push(n);
                }
            }
            order.append(&mut ring);
            next.sort_unstable();
            ring = next;
        }
    }
    // blocks that go by each of a PE's outputs: its own, and those of the PEs beyond its neighbours
    let mut holds = vec![[0i64; 5]; pes];
    for &pe in order.iter().rev() {
        holds[pe][Port::Ramp as usize] = !words[pe].is_empty() as i64;
        let all = holds[pe].iter().sum::<i64>();
        let Some(from) = input[pe] else { continue };
        let before = STEPS.iter().find(|s| s.0 == from).and_then(|s| step(pe, *s));
        if let Some(before) = before.filter(|n| of[*n] == of[pe]) {
            holds[before][from.opposite() as usize] = all;
        }
    }
    let outputs = [Port::Ramp, Port::East, Port::West, Port::South, Port::North];
    let sent = &holds;
    let ports = |pe: usize| {
        outputs.into_iter().filter(move |o| {
            let idle = *o == Port::Ramp && cargo.idle.get(pe) == Some(&true);
            idle || sent[pe][*o as usize] > 0
        })
    };
    let key = |x: u32, y: u32| {
        let pe = (y * width + x) as usize;
        let used: Vec<Port> = ports(pe).collect();
        input[pe].filter(|_| !used.is_empty()).map(|input| (input, used))
    };
    for (n, (at, (input, used))) in rectangles(width, height, key).into_iter().enumerate() {
        let position = |output: &Port| {
            let name = format!("{prefix}{}.{n}.{output:?}", cargo.name.replace(' ', ".")).to_lowercase();
            let hold = |x: u32, y: u32| holds[(y * width + x) as usize][*output as usize];
            Position {
                input,
                outputs: vec![*output],
                hold: table(&name, at, hold),
            }
        };
        region.routes.push(Route {
            color: cargo.color,
            stream: cargo.name.into(),
            at,
            positions: used.iter().map(position).collect(),
            filters: Vec::new(),
        });
    }
    let per = per_wavelet(machine, Ty::F32) as usize;
    let mut feeds = Vec::new();
    for c in &channels {
        // the PEs that it serves, in the order in which switches let blocks pass
        let mut served: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut left = vec![(c.row * width + border(c, width)) as usize];
        while let Some(pe) = left.pop() {
            if !words[pe].is_empty() {
                served.push((pe, balanced(words[pe].len().div_ceil(per), cargo.rounds)));
            }
            // the last is taken next
            let beyond: Vec<Port> = ports(pe).filter(|o| *o != Port::Ramp).collect();
            left.extend(beyond.iter().rev().filter_map(|o| {
                let s = STEPS.iter().find(|s| s.0 == *o)?;
                step(pe, *s)
            }));
        }
        let mut data: Vec<Wavelet> = Vec::new();
        for round in 0..cargo.rounds {
            for (pe, starts) in &served {
                let own = words[*pe].chunks(per);
                let (from, to) = (starts[round], starts[round + 1]);
                data.extend(own.skip(from).take(to - from).map(|chunk| Wavelet {
                    bits: chunk.iter().rev().fold(0, |b, w| b << 32 | *w as u64),
                    elements: chunk.len() as u8,
                    flag: false,
                }));
                if let Some(last) = data.last_mut() {
                    last.flag = true;
                }
            }
        }
        if !data.is_empty() {
            feeds.push(Feed {
                name: cargo.name.into(),
                side: c.side,
                row: c.row,
                color: cargo.color,
                epoch: cargo.epoch,
                data: data.into(),
            });
        }
    }
    Way { region, feeds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn machine(sets: &[&str]) -> Machine {
        let text = include_str!("../../../../machines/small.toml");
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Machine::parse("machines/small.toml", text, &sets).unwrap()
    }

    /// The words that each PE gets, by what its program says: switches are followed from the edge, block by block.
    fn received(way: &Way, width: u32) -> BTreeMap<(u32, u32), Vec<u32>> {
        let mut routes = BTreeMap::new();
        for r in &way.region.routes {
            for (x, y) in r.at.places() {
                let hold = |p: &Position| p.hold.at(x as i64, y as i64);
                let positions: Vec<_> = r
                    .positions
                    .iter()
                    .map(|p| (p.input, p.outputs[0], hold(p)))
                    .collect();
                assert!(routes.insert((x, y), (positions, 0usize, 0i64)).is_none());
            }
        }
        let mut got: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
        for feed in &way.feeds {
            let (x, enters) = match feed.side {
                Side::West => (0, Port::West),
                Side::East => (width - 1, Port::East),
            };
            for w in feed.data.host().unwrap().iter() {
                let (mut at, mut input) = ((x, feed.row), enters);
                loop {
                    let (positions, now, count) = routes.get_mut(&at).unwrap();
                    let (from, output, hold) = positions[*now];
                    assert_eq!(from, input);
                    if w.flag {
                        *count += 1;
                    }
                    if *count == hold {
                        (*now, *count) = ((*now + 1) % positions.len(), 0);
                    }
                    if output == Port::Ramp {
                        got.entry(at).or_default().push(w.bits as u32);
                        break;
                    }
                    let (_, dx, dy) = STEPS[STEPS.iter().position(|s| s.0 == output).unwrap()];
                    at = ((at.0 as i64 + dx) as u32, (at.1 as i64 + dy) as u32);
                    input = output.opposite();
                }
            }
        }
        got
    }

    fn cargo<'a>(words: &'a [&'a [u32]], channels: &'a [Channel]) -> Cargo<'a> {
        Cargo {
            name: "weights",
            words,
            idle: &[],
            rounds: 1,
            color: 0,
            epoch: 0,
            channels,
            prefix: "",
        }
    }

    /// Blocks of different words in a rectangle of the mesh.
    fn words(machine: &Machine, at: Lattice) -> Vec<Vec<u32>> {
        let (width, height) = (machine.mesh.width, machine.mesh.height);
        let mut all = vec![Vec::new(); (width * height) as usize];
        for (i, (x, y)) in at.places().enumerate() {
            let n = 50 + (i * 37 % 101) as u32;
            all[(y * width + x) as usize] = (0..n).map(|w| (i as u32) << 16 | w).collect();
        }
        all
    }

    /// Runs it, checks that every PE gets its own words in order, and returns those of the channel with most over the mean.
    fn unevenness(machine: &Machine, at: Lattice) -> f64 {
        let words = words(machine, at);
        let parts: Vec<&[u32]> = words.iter().map(|w| &w[..]).collect();
        let channels = machine.channels();
        let way = run(&cargo(&parts, &channels), machine);
        for ((x, y), got) in received(&way, machine.mesh.width) {
            assert_eq!(got, words[(y * machine.mesh.width + x) as usize], "PE ({x}, {y})");
        }
        let all: u64 = way.feeds.iter().map(|f| f.data.len()).sum();
        assert_eq!(all, words.iter().map(|w| w.len() as u64).sum::<u64>());
        let most = way.feeds.iter().map(|f| f.data.len()).max().unwrap();
        most as f64 * channels.len() as f64 / all as f64
    }

    // about seven PEs a channel in each: one PE more than the others is a seventh
    #[test]
    fn words_of_a_few_rows_enter_by_all_channels() {
        let m = machine(&[]);
        for at in [
            Lattice::rect(2, 25, 29, 4),
            Lattice::rect(1, 1, 8, 30),
            Lattice::rect(12, 10, 10, 12),
        ] {
            let found = unevenness(&m, at);
            assert!(
                found < 1.3,
                "{at:?}: the fullest channel has {found} times the mean"
            );
        }
    }

    #[test]
    fn a_mesh_of_tiles_gets_its_words() {
        let m = machine(&["mesh.width=150", "mesh.height=90"]);
        let found = unevenness(&m, Lattice::rect(20, 40, 100, 20));
        assert!(found < 1.25, "the fullest channel has {found} times the mean");
    }

    #[test]
    fn few_switch_positions_are_enough() {
        let m = machine(&["router.switch_positions=3"]);
        let words = words(&m, Lattice::rect(2, 25, 29, 4));
        let parts: Vec<&[u32]> = words.iter().map(|w| &w[..]).collect();
        let channels = m.channels();
        let way = run(&cargo(&parts, &channels), &m);
        assert!(way.region.routes.iter().all(|r| r.positions.len() <= 3));
        assert_eq!(received(&way, m.mesh.width).len(), 29 * 4);
    }
}
