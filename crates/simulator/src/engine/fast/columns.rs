//! Equal columns timed once. In a stage whose columns of PEs have the same code and routes, are reached from the west by streams that pass
//! through them one after another, and exchange nothing else, each column does what its western neighbour does one hop later. The
//! westernmost one is then simulated, with the numbers of all of them (`core::columns`); their counters and arrivals follow from
//! its own. `docs/fast-engine.md` has the argument and its conditions, which [`Columns::find`] looks for.

use super::Simulation;
use crate::engine::core::extent;
use crate::engine::network::NONE;
use crate::engine::sram::Row;
use crate::engine::{Arrivals, Class, Paths, PeCounters, QueueKind};
use crate::machine::{Machine, Side};
use crate::program::*;

/// Columns of PEs that do the same, each `hop` cycles after the one to its west.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub first: u32,
    /// At least 2.
    pub count: u32,
    hop: u64,
    ramp: u64,
}

/// A route or a block of a stage, and the place in its region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    y: u32,
    /// Of a route.
    color: Color,
    region: u32,
    index: u32,
}

/// Routes or blocks by column of the mesh, each from the top to the bottom.
fn by_column<'s>(
    stage: &'s Stage,
    width: u32,
    parts: impl Fn(&'s Region) -> Vec<(Lattice, Color)>,
) -> Vec<Vec<Part>> {
    let mut all = vec![Vec::new(); width as usize];
    for (region, r) in (0..).zip(&stage.regions) {
        for (index, (at, color)) in (0..).zip(parts(r)) {
            for (x, y) in at.places() {
                all[(r.x + x) as usize].push(Part {
                    y: r.y + y,
                    color,
                    region,
                    index,
                });
            }
        }
    }
    all.iter_mut().for_each(|c: &mut Vec<Part>| c.sort_unstable());
    all
}

/// What a router does with a colour, but for what it sends east.
#[derive(PartialEq)]
struct Switch {
    positions: Vec<(Port, Vec<Port>, i64)>,
    filters: Vec<(Port, [i64; 3])>,
}

impl Columns {
    /// The columns of a stage that may be timed as one.
    pub fn find(stage: &Stage, machine: &Machine) -> Option<Columns> {
        let fed = |f: &Feed| f.side == Side::West && f.epoch > 0 && !f.data.is_empty();
        // nothing leaves
        if !stage.drains.is_empty() || !stage.feeds.iter().all(fed) {
            return None;
        }
        let width = machine.mesh.width;
        let code = by_column(stage, width, |r| r.blocks.iter().map(|b| (b.at, 0)).collect());
        let end = code.iter().rposition(|c| !c.is_empty())? + 1;
        // what the columns before them do is simulated as it is
        let first = code[..end]
            .iter()
            .rposition(|c| *c != code[end - 1])
            .map_or(0, |x| x + 1);
        if end - first < 2 {
            return None;
        }
        for part in &code[first] {
            let r = &stage.regions[part.region as usize];
            let block = &r.blocks[part.index as usize];
            // nothing happens by itself
            if block.tasks.iter().any(|t| t.trigger == Trigger::Start) {
                return None;
            }
            let params = &block.params;
            let varies = |p: &&Param| p.value.depends_on_x();
            let y = (part.y - r.y) as i64;
            for p in params.iter().filter(varies) {
                let at = |x: usize| p.value.at(x as i64 - r.x as i64, y);
                if (first + 1..end).any(|x| at(x) != at(first)) {
                    return None;
                }
            }
        }
        let routes = by_column(stage, width, |r| {
            r.routes.iter().map(|r| (r.at, r.color)).collect()
        });
        Self::streams_pass(stage, &routes, first, end).then_some(Columns {
            first: first as u32,
            count: (end - first) as u32,
            hop: machine.router.hop_cycles as u64,
            ramp: machine.router.ramp_cycles as u64,
        })
    }

    /// Whether the routes of columns `first..end` are the same, and what comes to them from the west is all that they share.
    fn streams_pass(stage: &Stage, routes: &[Vec<Part>], first: usize, end: usize) -> bool {
        let of = |p: &Part| &stage.regions[p.region as usize].routes[p.index as usize];
        let before = routes[..first].iter().flatten();
        if routes[end..].iter().any(|c| !c.is_empty())
            || before.into_iter().any(|p| !of(p).filters.is_empty())
        {
            return false;
        }
        for x in first..end {
            let same = routes[x].len() == routes[first].len();
            let mut last_passing = None;
            for (part, as_first) in routes[x].iter().zip(&routes[first]) {
                if !same || (part.y, part.color) != (as_first.y, as_first.color) {
                    return false;
                }
                let route = of(part);
                let uses = |port| {
                    let outputs = route.positions.iter().flat_map(|p| &p.outputs);
                    outputs
                        .chain(route.positions.iter().map(|p| &p.input))
                        .any(|p| *p == port)
                };
                let [only] = &route.positions[..] else {
                    if uses(Port::West)
                        || uses(Port::East)
                        || !Self::equal(stage, (part, x), (as_first, first))
                    {
                        return false;
                    }
                    continue;
                };
                if only.input == Port::West {
                    // it goes into the core, and on to the next column, if there is one; one such stream a router
                    let east = only.outputs.contains(&Port::East);
                    let passes =
                        only.outputs.contains(&Port::Ramp) && only.outputs.len() == 1 + east as usize;
                    if !passes
                        || east != (x + 1 < end)
                        || !route.filters.is_empty()
                        || last_passing == Some(part.y)
                    {
                        return false;
                    }
                    last_passing = Some(part.y);
                } else if uses(Port::West) || uses(Port::East) {
                    return false;
                }
                if !Self::equal(stage, (part, x), (as_first, first)) {
                    return false;
                }
            }
        }
        true
    }

    /// Whether two routers do the same with a colour, but for what they send east.
    fn equal(stage: &Stage, a: (&Part, usize), b: (&Part, usize)) -> bool {
        let switch = |(part, x): (&Part, usize)| {
            let r = &stage.regions[part.region as usize];
            let route = &r.routes[part.index as usize];
            let (x, y) = (x as i64 - r.x as i64, (part.y - r.y) as i64);
            let several = route.positions.len() > 1;
            let position = |p: &Position| {
                let outputs = p.outputs.iter().copied().filter(|o| *o != Port::East);
                (
                    p.input,
                    outputs.collect(),
                    if several { p.hold.at(x, y) } else { 0 },
                )
            };
            let filter = |f: &Filter| (f.output, [&f.first, &f.count, &f.period].map(|e| e.at(x, y)));
            Switch {
                positions: route.positions.iter().map(position).collect(),
                filters: route.filters.iter().map(filter).collect(),
            }
        };
        switch(a) == switch(b)
    }

    /// The PEs of each row that are timed with its first one, if it has code: in the order of rows.
    pub fn rows(&self, stage: &Stage, machine: &Machine) -> Vec<Row> {
        let mut rows = Vec::new();
        for region in &stage.regions {
            for block in &region.blocks {
                let (least, most) = extent(block, machine);
                for (_, y) in block.at.places().filter(|(x, _)| region.x + x == self.first) {
                    rows.push(Row {
                        first: ((region.y + y) * machine.mesh.width + self.first + 1) as usize,
                        n: self.count as usize - 1,
                        least,
                        most,
                    });
                }
            }
        }
        rows.sort_unstable_by_key(|row| row.first);
        rows
    }

    /// The stage with only the first of the columns, and nothing sent on to the others.
    pub fn fold(&self, stage: &Stage) -> Stage {
        let mut folded = stage.clone();
        for r in &mut folded.regions {
            let (first, x) = (self.first, r.x);
            r.blocks = std::mem::take(&mut r.blocks)
                .into_iter()
                .filter_map(|b| {
                    let at = part(b.at, x, 0, first + 1)?;
                    Some(Block { at, ..b })
                })
                .collect();
            r.routes = std::mem::take(&mut r.routes)
                .into_iter()
                .flat_map(|route| {
                    let before = part(route.at, x, 0, first).map(|at| Route { at, ..route.clone() });
                    let own = part(route.at, x, first, first + 1).map(|at| {
                        let mut own = Route { at, ..route };
                        for p in &mut own.positions {
                            p.outputs.retain(|o| *o != Port::East);
                        }
                        own
                    });
                    [before, own].into_iter().flatten()
                })
                .collect();
        }
        folded
    }

    /// The cycles by which the last column is behind the first.
    pub fn behind(&self) -> u64 {
        (self.count as u64 - 1) * self.hop
    }

    /// What the same PE of the `i`th column counts in the whole stage, given what it counts in the first one alone, up to its end.
    pub fn counters(&self, own: &PeCounters, waits: Class, i: u32) -> PeCounters {
        let mut c = *own;
        let shift = i as u64 * self.hop;
        c.classes[waits as usize] += shift;
        c.classes[Class::Idle as usize] += self.behind() - shift;
        c.shift(shift);
        c
    }

    /// The class of a PE to which nothing has come yet.
    pub fn waits(block: &Block) -> Class {
        let wait = |t: &Task| matches!(t.trigger, Trigger::Data(_)) && !t.blocked;
        match block.tasks.iter().any(wait) {
            true => Class::WaitInput,
            false => Class::Idle,
        }
    }

    /// What happens in the other columns: the work in their PEs and on their links, and the wavelets that they send.
    pub fn rest(&self, s: &Simulation) -> (Paths, u64) {
        let others = self.count as u64 - 1;
        let moved = |queue: u32| s.queues[queue as usize].puts.before(u64::MAX - 1);
        // each stream from the west makes a hop to each, and those within a column make theirs
        let (mut hops, mut sent, mut work) = (0, 0, 0);
        let own = (0..s.cores.len() as u32).filter(|pe| pe % s.net.width == self.first);
        for pe in own {
            let positions = s.net.router(pe).iter().flat_map(|r| s.net.positions(r));
            let mut queues: Vec<u32> = positions
                .filter(|p| p.input != Port::Ramp && p.queue != NONE)
                .map(|p| p.queue)
                .collect();
            queues.sort_unstable();
            queues.dedup();
            hops += queues.into_iter().map(moved).sum::<u64>();
            if let Some(pe) = &s.cores[pe as usize] {
                let classes = &pe.core.counters.classes;
                work += classes[Class::Busy as usize] + classes[Class::Launch as usize];
            }
            let out = s.net.ramps[pe as usize].iter().map(|(out, _)| moved(*out));
            sent += out.sum::<u64>();
        }
        let paths = Paths {
            columns: others * work,
            hops_columns: others * hops,
            ..Paths::default()
        };
        (paths, others * sent)
    }

    /// Arrivals in all columns from those in the first one.
    pub fn arrivals(&self, all: Vec<Arrivals>) -> Vec<Arrivals> {
        let mut every = Vec::new();
        for a in &all {
            if a.x != self.first {
                continue;
            }
            for i in 1..self.count {
                let shift = i as u64 * self.hop;
                // what passes goes on when it goes into the core
                let from = match a.queue {
                    QueueKind::Router(Port::West) => all
                        .iter()
                        .find(|b| (b.x, b.y, b.color, b.queue) == (a.x, a.y, a.color, QueueKind::CoreInput)),
                    _ => None,
                };
                let cycles = match from {
                    Some(core) => core.cycles.iter().map(|c| c - self.ramp + shift).collect(),
                    None => a.cycles.iter().map(|c| c + shift).collect(),
                };
                every.push(Arrivals {
                    x: a.x + i,
                    cycles,
                    ..a.clone()
                });
            }
        }
        every.extend(all);
        every.sort_by_key(|a| (a.y, a.x));
        every
    }
}

/// The part of a lattice in columns `from..to` of the mesh.
fn part(at: Lattice, region: u32, from: u32, to: u32) -> Option<Lattice> {
    let inside = |i: &u32| (from..to).contains(&(region + at.x + i * at.dx));
    let first = (0..at.nx).find(inside)?;
    let n = (first..at.nx).take_while(inside).count() as u32;
    Some(Lattice {
        x: at.x + first * at.dx,
        nx: n,
        ..at
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{DataStore, parse};

    const TEXT: &str = r#"program columns
feed weights west row 0 c0 epoch 1 = [1 2]

region trunk at 0, 0 size 1 x 2
route c0 "weights" 0 x 0: west -> east

region columns at 1, 0 size 3 x 2
table t by x = [7 7 7]
route c0 "weights" 0..2 x 0: west -> ramp east
route c0 "weights" 2 x 0: west -> ramp
route c1 "sums" 0..3 x 0: ramp -> south
route c1 "sums" 0..3 x 1: north -> ramp
block 0..3 x 0
  param p = t
  task main data c0 -> @0
  @0:
    halt
block 0..3 x 1
  task main data c1 -> @0
  @0:
    halt
"#;

    fn find(text: &str) -> Option<(u32, u32)> {
        let sets = ["mesh.width=5", "mesh.height=2"].map(String::from);
        let machine = Machine::parse("small", include_str!("../../../../../machines/small.toml"), &sets);
        let program = parse(text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"));
        Columns::find(&program.stages[0], &machine.unwrap()).map(|c| (c.first, c.count))
    }

    #[test]
    fn each_condition_counts() {
        assert_eq!(find(TEXT), Some((1, 3)));
        let passing = "route c0 \"weights\" 0..2 x 0: west -> ramp east";
        let second = "route c2 \"more\" 0..2 x 0: west -> ramp east\nroute c2 \"more\" 2 x 0: west -> ramp\nblock 0..3 x 0";
        for (from, to, why) in [
            ("data c1", "start", "begins by itself"),
            (
                "block 0..3 x 0",
                "block 0..2 x 0\n  param p = t\n  task main data c0 -> @0\n  @0:\n    end\nblock 2 x 0",
                "has other code in the last column",
            ),
            ("epoch 1 =", "epoch 0 =", "is load"),
            ("west row", "east row", "comes from the other side"),
            ("[7 7 7]", "[7 7 8]", "has another parameter"),
            ("block 0..3 x 1", "block 0..2 x 1", "has no code in one column"),
            (
                passing,
                "route c0 \"weights\" 0..2 x 0: west -> east",
                "does not take what passes",
            ),
            (
                passing,
                "route c0 \"weights\" 0..2 x 0: west -> ramp east south",
                "sends what passes south, too",
            ),
            (
                "\"weights\" 2 x 0: west -> ramp",
                "\"weights\" 2 x 0: west -> ramp; filter ramp pass 1 of 2 from 0",
                "has a filter",
            ),
            (
                "block 0..3 x 0",
                second,
                "has two streams from the west in one router",
            ),
            (
                "0..3 x 0: ramp -> south",
                "0..3 x 0: ramp -> south west",
                "sends west",
            ),
            (
                "0..3 x 1: north -> ramp",
                "0..2 x 1: north -> ramp",
                "lacks a route in one column",
            ),
            (
                "0..3 x 1: north -> ramp",
                "0..3 x 1: north -> ramp hold 1; west -> ramp hold 1",
                "switches to the west",
            ),
            (
                "0..3 x 1: north -> ramp",
                "0..3 x 1: north -> ramp; filter ramp pass 1 of 2 from x",
                "filters by column",
            ),
            (
                "0 x 0: west -> east",
                "0 x 0: west -> east; filter east pass 1 of 2 from 0",
                "filters before the columns",
            ),
            (
                "block 0..3 x 0",
                "route c3 \"on\" 3 x 0: west -> ramp\nblock 0..3 x 0",
                "goes on behind the columns",
            ),
            (
                "\nregion trunk",
                "drain y west row 0 c3: 1 wavelets\n\nregion trunk",
                "has a drain",
            ),
        ] {
            assert!(TEXT.contains(from), "{from}");
            let text = TEXT.replacen(from, to, 1).replace("3 x 2\n", "4 x 2\n");
            assert_eq!(find(&text), None, "{why}");
        }
    }
}
