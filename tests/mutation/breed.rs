//! All corruptions of one program, each with the reason for which it can't be noticed, if there is one that the program itself shows.

use crate::Reason::{self, Perhaps, Surely, Timing};
use crate::change::{FREE, at_place, bump, descriptor, insert, less, plus};
use crate::trace::{Arrivals, Read, Trace, follow};
use crate::traffic::{self, Arrival, live};
use meshloom_compiler::Compiled;
use meshloom_compiler::kernels::colors;
use meshloom_simulator::program::*;
use meshloom_simulator::{Machine, Side};
use std::collections::{BTreeMap, BTreeSet};

/// One way to corrupt a program.
pub type Change<'a> = Box<dyn FnOnce(&mut Program) + Send + Sync + 'a>;
/// A number of a vector instruction.
type VectorField = fn(&mut Vector) -> &mut Val;
/// A number of a list of sparse elements.
type ListField = fn(&mut List) -> &mut Val;

/// One corruption.
pub struct Mutant<'a> {
    pub kind: &'static str,
    pub what: String,
    /// Ways to do it: the first that the verifier lets through, so that the engine has to notice; else the first.
    pub ways: Vec<Change<'a>>,
    /// What the program shows of it beforehand.
    pub excuse: Option<Reason>,
    /// The PEs whose code or weights it changes.
    pub changes: Option<Changed>,
}

/// PEs of a block whose code, or one bit of whose weights, is changed.
pub struct Changed {
    region: usize,
    block: usize,
    places: Vec<(u32, u32)>,
    /// A word and a bit of it.
    weight: Option<(usize, u32)>,
}

const ONE_POSITION: Reason = Surely("the hold of a switch with one position to stand at, or none");
const ONCE: Reason = Surely("the last hold of a stream that comes once");
const PASSES_NOTHING: Reason = Surely("a filter that passes nothing");
const NO_TRAFFIC: Reason = Perhaps("a route that nothing takes");
const EMPTY: Reason = Perhaps("a number of a list without elements");
const SAME_NUMBERS: Reason = Perhaps("the same numbers leave the PE, made in the same way");
/// A trace has microthreads do at once what they do meanwhile.
const APART: Reason = Timing("the same numbers leave the PE, if no microthread comes in between");
const ORDER: Reason = Timing("a wait for what may be there in time all the same");

/// Collects mutants of one program.
pub struct Breeder<'a> {
    compiled: &'a Compiled,
    machine: &'a Machine,
    /// What the code of every PE does, by region, block and place.
    traces: BTreeMap<(usize, usize, (u32, u32)), Trace>,
    /// Streams that all PEs they come to get whole.
    streams: BTreeMap<Color, Vec<u32>>,
    /// Where wavelets of each colour come in.
    arrivals: BTreeMap<Color, BTreeSet<Arrival>>,
    pub all: Vec<Mutant<'a>>,
}

impl<'a> Breeder<'a> {
    /// All mutants of a program of one stage.
    pub fn new(compiled: &'a Compiled, machine: &'a Machine) -> Breeder<'a> {
        let mut b = Breeder {
            compiled,
            machine,
            traces: BTreeMap::new(),
            streams: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            all: Vec::new(),
        };
        let stage = b.stage();
        let all = stage.regions.iter().flat_map(|r| &r.routes);
        let filtered: BTreeSet<Color> = all.filter(|r| !r.filters.is_empty()).map(|r| r.color).collect();
        for feed in stage.feeds.iter().filter(|f| !filtered.contains(&f.color)) {
            let data = feed.data.host().expect("a feed of one stage");
            if data.iter().all(|w| w.elements == 1) {
                let words = data.iter().map(|w| w.bits as u32);
                b.streams.entry(feed.color).or_default().extend(words);
            }
        }
        let mut sources: BTreeMap<Color, Vec<Arrival>> = BTreeMap::new();
        for color in stage.feeds.iter().map(|f| f.color) {
            sources.insert(color, traffic::entries(stage, machine, color));
        }
        for (r, region) in stage.regions.iter().enumerate() {
            for (n, block) in region.blocks.iter().enumerate() {
                for at in block.at.places() {
                    let trace = b.follow(r, block, at, None);
                    let trace = trace.unwrap_or_else(|e| panic!("{} block {n} at {at:?}: {e}", region.name));
                    for color in trace.sent.keys() {
                        let ramp = (region.x + at.0, region.y + at.1, Port::Ramp);
                        sources.entry(*color).or_default().push(ramp);
                    }
                    b.traces.insert((r, n, at), trace);
                }
            }
        }
        for (color, from) in sources {
            b.arrivals.insert(color, traffic::reached(stage, color, from));
        }
        b.routes();
        b.blocks();
        b.weights();
        b
    }

    fn stage(&self) -> &'a Stage {
        &self.compiled.program.stages[0]
    }

    /// What a block's code does on the PE at a place of a region, with a bit of its weights flipped.
    fn follow(
        &self,
        r: usize,
        block: &Block,
        at: (u32, u32),
        weight: Option<(usize, u32)>,
    ) -> Result<Trace, String> {
        let emitted = &self.compiled.plans[0].regions[r];
        let mut weights = emitted.weights[(at.1 * emitted.region.width + at.0) as usize].clone();
        if let Some((word, bit)) = weight {
            weights[word] ^= 1 << bit;
        }
        let known = Arrivals {
            load: colors::LOAD,
            weights: &weights,
            streams: &self.streams,
        };
        follow(block, at, &known, self.machine)
    }

    /// Why a mutant can't be noticed, if the PEs that it changes do the same as before.
    pub fn same(&self, program: &Program, kind: &str, changed: &Changed) -> Option<Reason> {
        let (r, b) = (changed.region, changed.block);
        let block = &program.stages[0].regions[r].blocks[b];
        let (mut steps, mut waits) = (changed.weight.is_none(), true);
        for at in &changed.places {
            let before = &self.traces[&(r, b, *at)];
            let after = self.follow(r, block, *at, changed.weight).ok()?;
            if after.sends != before.sends {
                return None;
            }
            steps &= after.steps == before.steps;
            waits &= after.waits == before.waits;
        }
        Some(match (steps, waits) {
            // addresses of an empty list are checked
            (true, true) if kind.starts_with("parameter") => Perhaps(same_steps(kind)),
            (true, true) => Surely(same_steps(kind)),
            (false, true) if block.code.iter().any(|i| matches!(i, Instr::Async(..))) => APART,
            (false, true) => SAME_NUMBERS,
            (_, false) => ORDER,
        })
    }

    fn add(
        &mut self,
        kind: &'static str,
        what: String,
        excuse: Option<Reason>,
        change: impl FnOnce(&mut Program) + Send + Sync + 'a,
    ) {
        self.all.push(Mutant {
            kind,
            what,
            ways: vec![Box::new(change)],
            excuse,
            changes: None,
        });
    }

    /// A corruption of a block's code at some places.
    fn add_code(
        &mut self,
        kind: &'static str,
        what: String,
        excuse: Option<Reason>,
        (r, b, places): (usize, usize, &[(u32, u32)]),
        change: impl FnOnce(&mut Block) + Send + Sync + 'a,
    ) {
        self.add(kind, what, excuse, move |p| {
            change(&mut p.stages[0].regions[r].blocks[b])
        });
        self.all.last_mut().expect("just added").changes = Some(Changed {
            region: r,
            block: b,
            places: places.to_vec(),
            weight: None,
        });
    }

    /// Routes, their filters and holds.
    fn routes(&mut self) {
        for (r, region) in self.stage().regions.iter().enumerate() {
            for (i, route) in region.routes.iter().enumerate() {
                let name = format!("{} c{} ({}) route {i}", region.name, route.color, route.stream);
                self.add("route dropped", name.clone(), None, move |p| {
                    drop(p.stages[0].regions[r].routes.remove(i))
                });
                for k in 0..route.positions.len() {
                    self.position((r, i, k), region, route, &format!("{name} position {k}"));
                }
                for (f, filter) in route.filters.iter().enumerate() {
                    self.filter((r, i, f), region, route, filter, &name);
                }
            }
        }
    }

    fn position(
        &mut self,
        (r, i, k): (usize, usize, usize),
        region: &'a Region,
        route: &'a Route,
        name: &str,
    ) {
        let position = &route.positions[k];
        let hold = |k: usize, (x, y): (u32, u32)| route.positions[k].hold.at(x as i64, y as i64);
        let several = route.positions.len() > 1;
        let unused = several && route.at.places().all(|at| hold(k, at) == 0);
        let unused = unused.then_some(Surely("a switch position with hold 0"));
        let arrives = |(x, y): (u32, u32)| {
            let here = (region.x + x, region.y + y, position.input);
            self.arrivals.get(&route.color).is_some_and(|a| a.contains(&here))
        };
        let unused = unused.or((!route.at.places().any(arrives)).then_some(NO_TRAFFIC));
        for o in 0..position.outputs.len() {
            let what = format!("{name} without {:?}", position.outputs[o]);
            self.add("output dropped", what, unused, move |p| {
                p.stages[0].regions[r].routes[i].positions[k].outputs.remove(o);
            });
        }
        let others = Port::ALL.into_iter().filter(|q| *q != position.input);
        let way = |q: Port| -> Change<'a> {
            Box::new(move |p| p.stages[0].regions[r].routes[i].positions[k].input = q)
        };
        self.all.push(Mutant {
            kind: "other input",
            what: name.into(),
            ways: others.map(way).collect(),
            excuse: unused,
            changes: None,
        });
        let alone = |at| !several || live(route, at) == [k] || live(route, at).is_empty();
        let single = route.at.places().all(alone).then_some(ONE_POSITION);
        // weights come once: nothing follows the flags of the last position
        let last = |at| (k + 1..route.positions.len()).all(|p| hold(p, at) == 0);
        let once = route.color == colors::LOAD;
        let over = (once && route.at.places().all(last)).then_some(ONCE);
        self.add("hold", name.into(), single.or(over), move |p| {
            let hold = &mut p.stages[0].regions[r].routes[i].positions[k].hold;
            *hold = plus(hold, 1);
        });
        for place in route.at.places().filter(|_| several) {
            let single = alone(place).then_some(ONE_POSITION);
            let over = (once && last(place)).then_some(ONCE);
            let what = format!("{name} at {place:?}");
            self.add("hold of a PE", what, single.or(over), move |p| {
                let hold = at_place(&position.hold, region, place, 1);
                p.stages[0].regions[r].routes[i].positions[k].hold = hold;
            });
        }
    }

    fn filter(
        &mut self,
        (r, i, f): (usize, usize, usize),
        region: &'a Region,
        route: &'a Route,
        filter: &'a Filter,
        name: &str,
    ) {
        fn of(p: &mut Program, (r, i, f): (usize, usize, usize)) -> &mut Filter {
            &mut p.stages[0].regions[r].routes[i].filters[f]
        }
        let at = (r, i, f);
        let nothing = |(x, y): (u32, u32)| filter.count.at(x as i64, y as i64) == 0;
        let none = route.at.places().all(nothing).then_some(PASSES_NOTHING);
        self.add("filter first", name.into(), none, move |p| {
            let e = &mut of(p, at).first;
            *e = plus(e, 1);
        });
        self.add("filter count", name.into(), none, move |p| {
            let e = &mut of(p, at).count;
            *e = less(e);
        });
        self.add("filter period", name.into(), none, move |p| {
            let e = &mut of(p, at).period;
            *e = plus(e, 1);
        });
        for place in route.at.places() {
            let none = nothing(place).then_some(PASSES_NOTHING);
            let what = format!("{name} at {place:?}");
            self.add("filter first of a PE", what.clone(), none, move |p| {
                of(p, at).first = at_place(&filter.first, region, place, 1);
            });
            if none.is_none() {
                self.add("filter count of a PE", what, None, move |p| {
                    of(p, at).count = at_place(&filter.count, region, place, -1);
                });
            }
        }
    }

    /// Descriptors, vector instructions and parameters.
    fn blocks(&mut self) {
        for (r, region) in self.stage().regions.iter().enumerate() {
            for (b, block) in region.blocks.iter().enumerate() {
                let places: Vec<_> = block.at.places().collect();
                for (k, instr) in block.code.iter().enumerate() {
                    let text = meshloom_simulator::text::instruction(instr);
                    let what = format!("{} block {b} instruction {k} `{text}`", region.name);
                    match instr {
                        Instr::Desc(n, d) => self.descriptor((r, b, &places), (k, *n), d, &what),
                        Instr::Vector(v) | Instr::Async(_, v, _) => self.vector((r, b, &places), k, v, &what),
                        _ => {}
                    }
                    // waits keep an order, and without them things may come in it all the same; jumps and ends are the code's shape
                    if !matches!(instr, Instr::Wait(..) | Instr::Jump(_) | Instr::Halt) {
                        self.add_code("instruction dropped", what, None, (r, b, &places), move |block| {
                            block.code[k] = Instr::Set(FREE, Val::Imm(0));
                        });
                    }
                }
                for (q, param) in block.params.iter().enumerate() {
                    let what = format!("{} block {b} parameter {}", region.name, param.name);
                    self.add_code("parameter", what.clone(), None, (r, b, &places), move |block| {
                        let e = &mut block.params[q].value;
                        *e = plus(e, 1);
                    });
                    for &place in &places {
                        let what = format!("{what} at {place:?}");
                        self.add_code("parameter of a PE", what, None, (r, b, &[place]), move |block| {
                            block.params[q].value = at_place(&param.value, region, place, 1);
                        });
                    }
                }
            }
        }
    }

    fn descriptor(
        &mut self,
        at: (usize, usize, &[(u32, u32)]),
        (k, n): (usize, u8),
        d: &'a Descriptor,
        what: &str,
    ) {
        // moving on by the element's bytes right after the descriptor is set works for bases of any kind
        if let Place::Memory { strides, .. } = &d.place {
            let by = Instr::Advance(n, Val::Imm(d.ty.bytes() as i64));
            self.add_code("base", what.into(), None, at, move |block| {
                insert(block, k + 1, by, false)
            });
            for i in 0..strides.len() {
                let what = format!("{what} stride {i}");
                self.add_code("stride", what, None, at, move |block| {
                    bump(block, k, 1, |instr| match &mut descriptor(instr).place {
                        Place::Memory { strides, .. } => &mut strides[i],
                        _ => unreachable!("a memory descriptor"),
                    });
                });
            }
        }
        for i in 0..d.shape.len() {
            self.add_code("extent", format!("{what} extent {i}"), None, at, move |block| {
                bump(block, k, -1, |instr| &mut descriptor(instr).shape[i]);
            });
        }
        self.add_code("type", what.into(), None, at, move |block| {
            let ty = &mut descriptor(&mut block.code[k]).ty;
            *ty = if *ty == Ty::F32 { Ty::F16 } else { Ty::F32 };
        });
        if let Place::Out { color, flag: true } = d.place {
            let region = &self.stage().regions[at.0];
            let counted = |(x, y): &(u32, u32)| {
                let sends = self.traces[&(at.0, at.1, (*x, *y))].sent.contains_key(&color);
                sends && traffic::counted(self.stage(), (region.x + x, region.y + y), color)
            };
            let excuse = !at.2.iter().any(counted);
            let excuse = excuse.then_some(Surely("a flag that no switch counts"));
            self.add("flag", what.into(), excuse, move |p| {
                let block = &mut p.stages[0].regions[at.0].blocks[at.1];
                if let Place::Out { flag, .. } = &mut descriptor(&mut block.code[k]).place {
                    *flag = false;
                }
            });
        }
    }

    fn vector(&mut self, at: (usize, usize, &[(u32, u32)]), k: usize, v: &'a Vector, what: &str) {
        fn vector(i: &mut Instr) -> &mut Vector {
            match i {
                Instr::Vector(v) | Instr::Async(_, v, _) => v,
                _ => unreachable!("picked as a vector instruction"),
            }
        }
        let (r, b, places) = at;
        match v {
            Vector::Map { op, .. } => {
                let other = match op {
                    Op::Mov => Op::Rsqrt,
                    Op::Add => Op::Sub,
                    Op::Sub => Op::Add,
                    Op::Mul => Op::Add,
                    Op::Mac => Op::Mul,
                    Op::Max => Op::Min,
                    Op::Min => Op::Max,
                    Op::Div => Op::Mul,
                    Op::Exp | Op::Rsqrt | Op::Tanh => Op::Mov,
                };
                self.add_code("operation", what.into(), None, at, move |block| {
                    if let Vector::Map { op, .. } = vector(&mut block.code[k]) {
                        *op = other;
                    }
                });
            }
            Vector::Axpy { .. } => {
                macro_rules! field {
                    ($of:ident :: $variant:ident, $name:ident) => {
                        |v| match v {
                            $of::$variant { $name, .. } => $name,
                            _ => unreachable!("picked by its kind"),
                        }
                    };
                }
                // where there is nothing, addresses may be checked all the same
                let none = |at: &(u32, u32)| self.traces[&(r, b, *at)].lists.get(&k).is_none_or(|n| *n == 0);
                let empty = places.iter().all(none).then_some(EMPTY);
                let fields: [(&str, i64, VectorField); 4] = [
                    ("modulo", 1, field!(Vector::Axpy, modulo)),
                    ("divisor", 1, field!(Vector::Axpy, divisor)),
                    ("y step", 4, field!(Vector::Axpy, y_step)),
                    ("x step", 4, field!(Vector::Axpy, x_step)),
                ];
                for (name, by, pick) in fields {
                    self.add_code("list", format!("{what} {name}"), empty, at, move |block| {
                        bump(block, k, by, |i| pick(vector(i)))
                    });
                }
                let parts: [(&str, i64, ListField); 3] = [
                    ("index", 2, field!(List::Memory, index)),
                    ("value", 4, field!(List::Memory, value)),
                    ("count", -1, field!(List::Memory, count)),
                ];
                for (name, by, pick) in parts {
                    self.add_code("list", format!("{what} {name}"), empty, at, move |block| {
                        bump(block, k, by, |i| match vector(i) {
                            Vector::Axpy { list, .. } => pick(list),
                            _ => unreachable!("an axpy"),
                        });
                    });
                }
            }
        }
    }

    /// Words of weights as they enter.
    fn weights(&mut self) {
        let stage = self.stage();
        let width = self.machine.mesh.width;
        // where each router lets blocks of weights pass, in order
        let mut ways: BTreeMap<(u32, u32), Vec<Port>> = BTreeMap::new();
        for region in &stage.regions {
            for route in region.routes.iter().filter(|r| r.color == colors::LOAD) {
                for (x, y) in route.at.places() {
                    let passes = route
                        .positions
                        .iter()
                        .filter(|p| p.hold.at(x as i64, y as i64) > 0);
                    let outputs = passes.map(|p| p.outputs[0]).collect();
                    ways.insert((region.x + x, region.y + y), outputs);
                }
            }
        }
        for (f, feed) in stage
            .feeds
            .iter()
            .enumerate()
            .filter(|(_, f)| f.color == colors::LOAD)
        {
            let x = if feed.side == Side::West { 0 } else { width - 1 };
            let first = (x, feed.row);
            let mut at = 0;
            let mut left: Vec<_> = ways[&first].iter().rev().map(|port| (first, *port)).collect();
            while let Some(((x, y), port)) = left.pop() {
                let next = match port {
                    Port::Ramp => {
                        at += self.words(f, at, (x, y));
                        continue;
                    }
                    Port::North => (x, y - 1),
                    Port::South => (x, y + 1),
                    Port::West => (x - 1, y),
                    Port::East => (x + 1, y),
                };
                left.extend(ways[&next].iter().rev().map(|port| (next, *port)));
            }
            assert_eq!(at as u64, feed.data.len(), "the blocks of a feed");
        }
    }

    /// The words of the PE at a place of the mesh, the first of which is the `first` of a feed; their number.
    fn words(&mut self, f: usize, first: usize, (x, y): (u32, u32)) -> usize {
        let plan = &self.compiled.plans[0];
        for (r, emitted) in plan.regions.iter().enumerate() {
            let region = &emitted.region;
            let inside =
                region.x <= x && x < region.x + region.width && region.y <= y && y < region.y + region.height;
            if !inside {
                continue;
            }
            let place = (x - region.x, y - region.y);
            let n = emitted.weights[(place.1 * region.width + place.0) as usize].len();
            let of = |b: &usize| self.traces.contains_key(&(r, *b, place));
            let Some(block) = (0..region.blocks.len()).find(of) else {
                assert_eq!(n, 0, "weights of a PE without code");
                return 0;
            };
            let reads = self.traces[&(r, block, place)].reads.clone();
            for (word, reads) in reads.into_iter().enumerate() {
                let name = format!("{} PE {place:?} word {word} {reads:?}", region.name);
                for (kind, bit, excuse) in bits(&reads) {
                    self.add(kind, format!("{name} bit {bit}"), excuse, move |p| {
                        let mut data = p.stages[0].feeds[f].data.host().expect("weights").to_vec();
                        data[first + word].bits ^= 1 << bit;
                        p.stages[0].feeds[f].data = data.into();
                    });
                    self.all.last_mut().expect("just added").changes = Some(Changed {
                        region: r,
                        block,
                        places: vec![place],
                        weight: Some((word, bit)),
                    });
                }
            }
            return n;
        }
        0
    }
}

/// Bits of a word to flip, by what it is read as, and why one has no effect.
fn bits(reads: &BTreeSet<Read>) -> Vec<(&'static str, u32, Option<Reason>)> {
    let unread = Some(Surely("a word of weights that no instruction reads"));
    let half = Some(Surely("the half of a word of weights that no instruction reads"));
    if reads.contains(&Read::Float) {
        return vec![("weight", 22, None)];
    }
    if reads.is_empty() {
        return vec![("weight", 22, unread)];
    }
    (0..2u8)
        .map(|h| {
            let number = reads.iter().any(|r| matches!(r, Read::Number(_)));
            let excuse = |read: Read| if reads.contains(&read) { None } else { half };
            match number {
                true => ("sparse index or count", 16 * h as u32, excuse(Read::Number(h))),
                false => ("weight", 9 + 16 * h as u32, excuse(Read::Half(h))),
            }
        })
        .collect()
}

/// Why code that does the same step by step was changed without effect.
fn same_steps(kind: &str) -> &'static str {
    match kind {
        "base" => "a base that is set anew before use, or of an operand without elements",
        "stride" => "the stride of an extent of 1, or of an operand without elements",
        "list" => "a number of a list that selects the same for all its indices",
        "instruction dropped" => "an instruction that sets what is so, or works on no elements",
        _ => "a number of an operand without elements",
    }
}
