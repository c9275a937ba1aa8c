//! The path is real: every number that leaves the mesh is made by the routes, filters, switches, weights, descriptors, parameters and
//! operations that the compiler emitted, and by nothing beside them. For tiny models of every kernel each of these is corrupted, one at
//! a time. The corrupted program must be refused, must fail, or must give other outputs. Corruptions that cannot change anything are told
//! apart beforehand, each by one of few reasons ([`Reason`]), and must indeed change nothing (`Surely`), or may be noticed all the same
//! (`Perhaps`). What survives is counted in a snapshot, by kernel and reason. Names, on the other hand, have no effect at all.

mod common;

use common::{Model, comparable, kernels, residual, tiny};
use meshloom_compiler::Compiled;
use meshloom_compiler::kernels::colors;
use meshloom_compiler::plan::{Kernel, Kind, Layout};
use meshloom_simulator::engine::{self, Options, Outcome};
use meshloom_simulator::program::*;
use meshloom_simulator::{Axes, Expr, Machine, verify};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

/// At most this many mutants of one kind, taken at even distances.
const MOST: usize = 150;
/// Of the mutants without an excuse so many must be noticed, in percent.
const NOTICED: usize = 95;

/// One corruption.
struct Mutant {
    kind: &'static str,
    what: String,
    program: Program,
    excuse: Option<Reason>,
}

/// Why a corruption changes no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It has no effect: were it noticed, the reason would be wrong.
    Surely(&'static str),
    /// No output depends on it; but another check may notice it, such as one of shapes or of addresses.
    Perhaps(&'static str),
}
use Reason::{Perhaps, Surely};

/// One way to corrupt a program.
type Change = Box<dyn FnOnce(&mut Program)>;
/// A number of a vector instruction.
type VectorField = fn(&mut Vector) -> &mut Val;
/// A number of a list of sparse elements.
type ListField = fn(&mut List) -> &mut Val;

fn plus(e: &Expr, n: i64) -> Expr {
    Expr::Add(Box::new(e.clone()), Box::new(Expr::Const(n)))
}

/// One less, but not below 0, where the verifier would refuse it for another reason.
fn less(e: &Expr) -> Expr {
    Expr::Max(Box::new(plus(e, -1)), Box::new(Expr::Const(0)))
}

/// The expression with another value at one place of the region.
fn at_place(e: &Expr, region: &Region, place: (u32, u32), by: i64) -> Expr {
    let all = (0..region.height).flat_map(|y| (0..region.width).map(move |x| (x, y)));
    let values = all
        .map(|(x, y)| e.at(x as i64, y as i64) + if (x, y) == place { by } else { 0 })
        .collect();
    Expr::Table(Arc::new(meshloom_simulator::Table {
        name: "mutant".into(),
        axes: Axes::XY,
        width: region.width,
        values,
    }))
}

/// The number that a value has at a place, where no register decides it.
fn value(block: &Block, v: Val, (x, y): (u32, u32)) -> Option<i64> {
    match v {
        Val::Imm(n) => Some(n),
        Val::Param(p) => Some(block.params[p as usize].value.at(x as i64, y as i64)),
        Val::Reg(_) => None,
    }
}

/// Puts an instruction before the k-th; jumps to the k-th go to the new one if `caught`.
fn insert(block: &mut Block, k: usize, instr: Instr, caught: bool) {
    let moved = |t: u32| t as usize > k || (t as usize == k && !caught);
    for i in &mut block.code {
        if let Instr::Jump(t) | Instr::Branch(_, _, _, t) = i
            && moved(*t)
        {
            *t += 1;
        }
    }
    for t in block
        .tasks
        .iter_mut()
        .map(|t| &mut t.entry)
        .chain(block.labels.iter_mut().map(|l| &mut l.1))
    {
        *t += moved(*t) as u32;
    }
    block.code.insert(k, instr);
}

/// Adds to a value of the k-th instruction: to a constant in place, to a parameter by a new one, to a register by an instruction more.
fn bump(block: &mut Block, k: usize, by: i64, pick: impl Fn(&mut Instr) -> &mut Val) {
    const FREE: u8 = 15;
    let v = *pick(&mut block.code[k]);
    *pick(&mut block.code[k]) = match v {
        Val::Imm(n) => Val::Imm(n + by),
        Val::Param(p) => {
            let changed = if by < 0 {
                less(&block.params[p as usize].value)
            } else {
                plus(&block.params[p as usize].value, by)
            };
            block.params.push(Param {
                name: "mutant".into(),
                value: changed,
            });
            Val::Param(block.params.len() as u16 - 1)
        }
        Val::Reg(_) => Val::Reg(FREE),
    };
    if let Val::Reg(r) = v {
        assert_ne!(r, FREE, "the compiler uses the register that mutants need");
        insert(block, k, Instr::Add(FREE, Val::Reg(r), Val::Imm(by)), true);
    }
}

/// The positions of a route that are not passed over at a place.
fn live(route: &Route, (x, y): (u32, u32)) -> Vec<usize> {
    (0..route.positions.len())
        .filter(|k| route.positions.len() == 1 || route.positions[*k].hold.at(x as i64, y as i64) != 0)
        .collect()
}

fn descriptor(i: &mut Instr) -> &mut Descriptor {
    match i {
        Instr::Desc(_, d) => d,
        _ => unreachable!("picked as a descriptor"),
    }
}

/// Collects mutants of one program.
struct Breeder<'a> {
    compiled: &'a Compiled,
    machine: &'a Machine,
    all: Vec<Mutant>,
}

impl Breeder<'_> {
    fn add(
        &mut self,
        kind: &'static str,
        what: String,
        excuse: Option<Reason>,
        change: impl FnOnce(&mut Program),
    ) {
        let mut program = self.compiled.program.clone();
        change(&mut program);
        self.all.push(Mutant {
            kind,
            what,
            program,
            excuse,
        });
    }

    /// Of several ways to corrupt one thing the first that the verifier lets through, so that the engine has to notice; else the first.
    fn hardest(&mut self, kind: &'static str, what: String, excuse: Option<Reason>, ways: Vec<Change>) {
        let mut programs: Vec<Program> = ways
            .into_iter()
            .map(|w| {
                let mut p = self.compiled.program.clone();
                w(&mut p);
                p
            })
            .collect();
        let best = programs
            .iter()
            .position(|p| verify::verify(p, self.machine).is_ok())
            .unwrap_or(0);
        self.all.push(Mutant {
            kind,
            what,
            program: programs.swap_remove(best),
            excuse,
        });
    }

    /// Routes, their filters and holds.
    fn routes(&mut self) {
        let program = &self.compiled.program;
        for (r, region) in program.stages[0].regions.iter().enumerate() {
            for (i, route) in region.routes.iter().enumerate() {
                let name = format!("{} c{} ({}) route {i}", region.name, route.color, route.stream);
                self.add("route dropped", name.clone(), None, |p| {
                    drop(p.stages[0].regions[r].routes.remove(i))
                });
                for (k, position) in route.positions.iter().enumerate() {
                    let unused = if route
                        .at
                        .places()
                        .all(|(x, y)| position.hold.at(x as i64, y as i64) == 0)
                        && route.positions.len() > 1
                    {
                        Some(Surely("a switch position with hold 0"))
                    } else {
                        None
                    };
                    for o in 0..position.outputs.len() {
                        let what = format!("{name} position {k} without {:?}", position.outputs[o]);
                        self.add("output dropped", what, unused, |p| {
                            p.stages[0].regions[r].routes[i].positions[k].outputs.remove(o);
                        });
                    }
                    let ways = Port::ALL.into_iter().filter(|q| *q != position.input).map(|q| {
                        Box::new(move |p: &mut Program| {
                            p.stages[0].regions[r].routes[i].positions[k].input = q
                        }) as Box<dyn FnOnce(&mut Program)>
                    });
                    self.hardest(
                        "other input",
                        format!("{name} position {k}"),
                        unused,
                        ways.collect(),
                    );
                    let alone = |at| {
                        route.positions.len() == 1 || live(route, at) == [k] || live(route, at).is_empty()
                    };
                    let single = route.at.places().all(alone).then_some(ONE_POSITION);
                    // weights come once: nothing follows the flags of the last position
                    let last = |(x, y): (u32, u32)| {
                        route.positions[k + 1..]
                            .iter()
                            .all(|p| p.hold.at(x as i64, y as i64) == 0)
                    };
                    let over = (route.color == colors::LOAD && route.at.places().all(last))
                        .then_some(Surely("the last hold of a stream that comes once"));
                    self.add("hold", format!("{name} position {k}"), single.or(over), |p| {
                        let hold = &mut p.stages[0].regions[r].routes[i].positions[k].hold;
                        *hold = plus(hold, 1);
                    });
                    if route.positions.len() > 1 {
                        for place in route.at.places() {
                            let single = alone(place).then_some(ONE_POSITION);
                            let over = (route.color == colors::LOAD && last(place))
                                .then_some(Surely("the last hold of a stream that comes once"));
                            self.add(
                                "hold of a PE",
                                format!("{name} position {k} at {place:?}"),
                                single.or(over),
                                |p| {
                                    let hold = at_place(&position.hold, region, place, 1);
                                    p.stages[0].regions[r].routes[i].positions[k].hold = hold;
                                },
                            );
                        }
                    }
                }
                for (f, filter) in route.filters.iter().enumerate() {
                    let at = |e: &Expr, (x, y): (u32, u32)| e.at(x as i64, y as i64);
                    let nothing = |p: &(u32, u32)| at(&filter.count, *p) == 0;
                    let none = route
                        .at
                        .places()
                        .all(|p| nothing(&p))
                        .then_some(Surely("a filter that passes nothing"));
                    self.add("filter first", name.clone(), none, |p| {
                        let e = &mut p.stages[0].regions[r].routes[i].filters[f].first;
                        *e = plus(e, 1);
                    });
                    self.add("filter count", name.clone(), none, |p| {
                        let e = &mut p.stages[0].regions[r].routes[i].filters[f].count;
                        *e = less(e);
                    });
                    self.add("filter period", name.clone(), none, |p| {
                        let e = &mut p.stages[0].regions[r].routes[i].filters[f].period;
                        *e = plus(e, 1);
                    });
                    for place in route.at.places() {
                        let none = nothing(&place).then_some(Surely("a filter that passes nothing"));
                        let what = format!("{name} at {place:?}");
                        self.add("filter first of a PE", what.clone(), none, |p| {
                            p.stages[0].regions[r].routes[i].filters[f].first =
                                at_place(&filter.first, region, place, 1);
                        });
                        if none.is_none() {
                            self.add("filter count of a PE", what, None, |p| {
                                p.stages[0].regions[r].routes[i].filters[f].count =
                                    at_place(&filter.count, region, place, -1);
                            });
                        }
                    }
                }
            }
        }
    }

    /// Descriptors, vector instructions and parameters.
    fn blocks(&mut self) {
        let program = &self.compiled.program;
        for (r, region) in program.stages[0].regions.iter().enumerate() {
            for (b, block) in region.blocks.iter().enumerate() {
                let places: Vec<_> = block.at.places().collect();
                for (k, instr) in block.code.iter().enumerate() {
                    let what = format!(
                        "{} block {b} instruction {k} `{}`",
                        region.name,
                        meshloom_simulator::text::instruction(instr)
                    );
                    match instr {
                        Instr::Desc(_, d) => self.descriptor((r, b, k), d, block, &places, &what),
                        Instr::Vector(v) | Instr::Async(_, v, _) => {
                            self.vector((r, b, k), v, block, &places, &what)
                        }
                        _ => {}
                    }
                }
                for (q, param) in block.params.iter().enumerate() {
                    let what = format!("{} block {b} parameter {}", region.name, param.name);
                    let idle = |at: &(u32, u32)| self.idle_param(block, q as u16, *at);
                    let excuse = places.iter().all(idle).then_some(NO_ELEMENTS);
                    let unused = self
                        .idle(r, &places)
                        .then_some(NO_WEIGHTS)
                        .or(self.alike(r, &places, &param.name))
                        .or(self.unread(r, &places).then_some(NOT_READ));
                    self.add("parameter", what.clone(), excuse.or(unused), |p| {
                        let e = &mut p.stages[0].regions[r].blocks[b].params[q].value;
                        *e = plus(e, 1);
                    });
                    for &place in &places {
                        let excuse = self.idle_param(block, q as u16, place).then_some(NO_ELEMENTS);
                        let one = [place];
                        let unused = self
                            .idle(r, &one)
                            .then_some(NO_WEIGHTS)
                            .or(self.alike(r, &one, &param.name))
                            .or(self.unread(r, &one).then_some(NOT_READ));
                        self.add(
                            "parameter of a PE",
                            format!("{what} at {place:?}"),
                            excuse.or(unused),
                            |p| {
                                p.stages[0].regions[r].blocks[b].params[q].value =
                                    at_place(&param.value, region, place, 1);
                            },
                        );
                    }
                }
            }
        }
    }

    /// Whether a parameter is, at this place, only the address of operands and lists without elements.
    fn idle_param(&self, block: &Block, q: u16, place: (u32, u32)) -> bool {
        let is = |v: &Val| *v == Val::Param(q);
        block.code.iter().all(|i| match i {
            Instr::Desc(_, d) => {
                let empty = d.shape.iter().any(|n| value(block, *n, place) == Some(0));
                match &d.place {
                    Place::Memory { base, strides, .. } => {
                        !d.shape.iter().any(is)
                            && !strides.iter().any(|s| is(s) && !empty)
                            && (!is(base) || empty)
                    }
                    _ => !d.shape.iter().any(is),
                }
            }
            Instr::Set(_, a) => !is(a),
            Instr::Add(_, a, c) | Instr::Sub(_, a, c) | Instr::Mul(_, a, c) => !is(a) && !is(c),
            Instr::Branch(_, a, c, _) => !is(a) && !is(c),
            Instr::Vector(Vector::Axpy {
                modulo,
                divisor,
                y_step,
                x_step,
                ..
            }) => ![modulo, divisor, y_step, x_step].into_iter().any(is),
            _ => true,
        })
    }

    fn descriptor(
        &mut self,
        (r, b, k): (usize, usize, usize),
        d: &Descriptor,
        block: &Block,
        places: &[(u32, u32)],
        what: &str,
    ) {
        let extent = |i: usize, at: (u32, u32)| value(block, d.shape[i], at);
        let empty = places
            .iter()
            .all(|at| (0..d.shape.len()).any(|i| extent(i, *at) == Some(0)));
        let nothing = empty.then_some(NO_ELEMENTS);
        let idle = self.idle(r, places).then_some(NO_WEIGHTS);
        let Instr::Desc(n, _) = block.code[k] else {
            unreachable!("a descriptor")
        };
        let uses = |i: &Instr| match i {
            Instr::Vector(Vector::Map { dst, a, b, .. })
            | Instr::Async(_, Vector::Map { dst, a, b, .. }, _) => {
                *dst == n || *a == Operand::Desc(n) || *b == Some(Operand::Desc(n))
            }
            Instr::Base(m, _) | Instr::Advance(m, _) => *m == n,
            _ => false,
        };
        let based = block.code[k + 1..]
            .iter()
            .find(|i| uses(i))
            .is_some_and(|i| matches!(i, Instr::Base(..)));
        let based = based.then_some(Surely("a base that is set anew before use"));
        let unread = self.unread(r, places).then_some(NOT_READ);
        let own = self.only_use(block, d).then_some(Perhaps(
            "a buffer that is written and read through one descriptor",
        ));
        let list = self
            .axpy_behind(block, k)
            .and_then(|t| self.list_reason(r, places, t, "operand"));
        // moving on by the element's bytes right after the descriptor is set works for bases of any kind
        if let Place::Memory { strides, .. } = &d.place {
            self.add(
                "base",
                what.into(),
                nothing.or(based).or(own).or(list).or(idle).or(unread),
                |p| {
                    insert(
                        &mut p.stages[0].regions[r].blocks[b],
                        k + 1,
                        Instr::Advance(n, Val::Imm(d.ty.bytes() as i64)),
                        false,
                    )
                },
            );
            for i in 0..strides.len() {
                let one = places.iter().all(|at| extent(i, *at).is_some_and(|n| n <= 1));
                let register =
                    |v: Val| matches!(v, Val::Reg(r) if block.code.contains(&Instr::Set(r, Val::Imm(1))));
                let perhaps = register(d.shape[i])
                    .then_some(Perhaps("the stride of an extent that a register keeps at 1"));
                let excuse = nothing
                    .or(one.then_some(Surely("the stride of an extent of 1")))
                    .or(perhaps)
                    .or(own)
                    .or(list)
                    .or(idle)
                    .or(unread);
                self.add("stride", format!("{what} stride {i}"), excuse, |p| {
                    bump(
                        &mut p.stages[0].regions[r].blocks[b],
                        k,
                        1,
                        |i_| match &mut descriptor(i_).place {
                            Place::Memory { strides, .. } => &mut strides[i],
                            _ => unreachable!("a memory descriptor"),
                        },
                    );
                });
            }
        }
        for i in 0..d.shape.len() {
            let excuse = empty.then_some(Perhaps("an extent of an operand without elements"));
            self.add(
                "extent",
                format!("{what} extent {i}"),
                excuse.or(idle).or(unread),
                |p| {
                    bump(&mut p.stages[0].regions[r].blocks[b], k, -1, |i_| {
                        &mut descriptor(i_).shape[i]
                    });
                },
            );
        }
        self.add("type", what.into(), nothing.or(list).or(idle).or(unread), |p| {
            let ty = &mut descriptor(&mut p.stages[0].regions[r].blocks[b].code[k]).ty;
            *ty = if *ty == Ty::F32 { Ty::F16 } else { Ty::F32 };
        });
        if let Place::Out { color, flag: true } = d.place {
            let counted = places.iter().any(|at| self.counted(r, *at, color));
            let excuse = nothing.or((!counted).then_some(Surely("a flag that no switch counts")));
            self.add("flag", what.into(), excuse, |p| {
                if let Place::Out { flag, .. } =
                    &mut descriptor(&mut p.stages[0].regions[r].blocks[b].code[k]).place
                {
                    *flag = false;
                }
            });
        }
    }

    /// Whether a flag that the core at a place of a region sends is counted by any switch on its way.
    fn counted(&self, r: usize, (x, y): (u32, u32), color: Color) -> bool {
        let program = &self.compiled.program;
        let (x, y) = (
            program.stages[0].regions[r].x + x,
            program.stages[0].regions[r].y + y,
        );
        let mut to_see = vec![(x, y, Port::Ramp)];
        while let Some((x, y, from)) = to_see.pop() {
            let here = program.stages[0]
                .regions
                .iter()
                .filter(|g| g.x <= x && x < g.x + g.width && g.y <= y && y < g.y + g.height)
                .find_map(|g| {
                    let at = (x - g.x, y - g.y);
                    let route = g
                        .routes
                        .iter()
                        .find(|q| q.color == color && q.at.places().any(|p| p == at))?;
                    Some((route, live(route, at)))
                });
            let Some((route, live)) = here else { continue };
            if live.len() > 1 {
                return true;
            }
            for position in live
                .iter()
                .map(|k| &route.positions[*k])
                .filter(|p| p.input == from)
            {
                for o in &position.outputs {
                    let next = match o {
                        Port::North => (x, y - 1),
                        Port::South => (x, y + 1),
                        Port::East => (x + 1, y),
                        Port::West => (x - 1, y),
                        Port::Ramp => continue,
                    };
                    to_see.push((next.0, next.1, o.opposite()));
                }
            }
        }
        false
    }

    /// Whether no other descriptor points into the buffer of this one.
    fn only_use(&self, block: &Block, d: &Descriptor) -> bool {
        let buffer = |d: &Descriptor| match d.place {
            Place::Memory {
                base: Val::Imm(a), ..
            } => block
                .memory
                .iter()
                .position(|b| b.address as i64 <= a && a < b.address as i64 + b.bytes as i64),
            _ => None,
        };
        let here = buffer(d);
        let same = |i: &&Instr| matches!(i, Instr::Desc(_, e) if buffer(e) == here);
        here.is_some() && block.code.iter().filter(same).count() == 1
    }

    /// The number, in the order of the code, of the axpy whose operand the descriptor set by instruction k is.
    fn axpy_behind(&self, block: &Block, k: usize) -> Option<usize> {
        let Instr::Desc(n, _) = block.code[k] else {
            return None;
        };
        let axpy = |i: &Instr| matches!(i, Instr::Vector(Vector::Axpy { .. }));
        let next = block.code[k..]
            .iter()
            .find(|i| axpy(i) || matches!(i, Instr::Vector(_) | Instr::Async(..)))?;
        let Instr::Vector(Vector::Axpy { y, x, .. }) = next else {
            return None;
        };
        (*y == n || *x == n).then(|| block.code[..k].iter().filter(|i| axpy(i)).count())
    }

    /// The kernel of a region, and its weights at a place.
    fn kernel(&self, r: usize, (x, y): (u32, u32)) -> Option<(&Kernel, &[u32], Layout)> {
        let plan = &self.compiled.plan;
        let kernel = plan.kernels.get(r.checked_sub(1)?)?;
        let emitted = &plan.regions[r - 1];
        Some((
            kernel,
            &emitted.weights[(y * emitted.region.width + x) as usize],
            plan.edges[kernel.output].layout.clone(),
        ))
    }

    /// The stored (chunk, index) at a place, tap by tap.
    fn lists(&self, r: usize, at: (u32, u32)) -> Option<Vec<Vec<(usize, u32)>>> {
        let (kernel, words, layout) = self.kernel(r, at)?;
        let last = at.0 + 1 == self.compiled.plan.regions[r - 1].region.width;
        stored(&kernel.kind, words, last, layout.widest())
    }

    /// Whether the PEs of a kernel with lists have none.
    fn idle(&self, r: usize, places: &[(u32, u32)]) -> bool {
        places
            .iter()
            .all(|at| self.lists(r, *at).is_some_and(|l| l.iter().all(Vec::is_empty)))
    }

    /// Whether on all these PEs of a kernel with lists some feature is read by no stored weight.
    fn unread(&self, r: usize, places: &[(u32, u32)]) -> bool {
        places.iter().all(|at| {
            let (Some(lists), Some((kernel, _, layout))) = (self.lists(r, *at), self.kernel(r, *at)) else {
                return false;
            };
            let Kind::Mix(mix) = &kernel.kind else {
                return false;
            };
            let (w, x) = (
                self.compiled.plan.regions[r - 1].region.width as usize,
                at.0 as usize,
            );
            let features = (x + 1) * mix.k / w - x * mix.k / w;
            let outputs = layout.lane(at.1 as usize).max(1) as u32;
            let read: BTreeSet<_> = lists
                .iter()
                .flatten()
                .map(|(chunk, i)| (*chunk, i / outputs))
                .collect();
            read.len() < features
        })
    }

    /// Whether a field or parameter is the address of indices of which each PE has only equal ones.
    fn alike(&self, r: usize, places: &[(u32, u32)], field: &str) -> Option<Reason> {
        let equal =
            |l: Vec<Vec<(usize, u32)>>| l.iter().flatten().map(|e| e.1).collect::<BTreeSet<_>>().len() < 2;
        (field == "index" && places.iter().all(|at| self.lists(r, *at).is_some_and(equal))).then_some(ALIKE)
    }

    /// Why a field of the `t`-th list does not matter at these places: by the indices that it has there.
    fn list_reason(&self, r: usize, places: &[(u32, u32)], t: usize, field: &str) -> Option<Reason> {
        let mut all = Vec::new();
        for at in places {
            let (kernel, _, layout) = self.kernel(r, *at)?;
            let indices = self.lists(r, *at)?.get(t)?.clone();
            let (modulo, divisor) = match &kernel.kind {
                Kind::Depthwise(m) => (65536, (m.m / m.k) as u32),
                _ => (
                    layout.lane(at.1 as usize) as u32,
                    layout.lane(at.1 as usize) as u32,
                ),
            };
            all.extend(indices.into_iter().map(|(_, i)| (i, modulo, divisor)));
        }
        let holds = |f: fn(&(u32, u32, u32)) -> bool| all.iter().all(f);
        if all.is_empty() {
            return Some(Perhaps("a list that is empty on all its PEs"));
        }
        let selects = match field {
            "modulo" => holds(|&(i, m, _)| i % m == i % (m + 1)),
            "divisor" => holds(|&(i, _, d)| i / d == i / (d + 1)),
            "y step" => holds(|&(i, m, _)| i % m == 0),
            "x step" => holds(|&(i, _, d)| i / d == 0),
            _ => false,
        };
        // its own lists alike: the next one may be as well
        let alike = field == "index" && all.iter().all(|e| e.0 == all[0].0);
        selects
            .then_some(Surely(
                "a list's number that selects the same for all its indices",
            ))
            .or(alike.then_some(ALIKE))
    }

    fn vector(
        &mut self,
        (r, b, k): (usize, usize, usize),
        v: &Vector,
        block: &Block,
        places: &[(u32, u32)],
        what: &str,
    ) {
        fn vector(i: &mut Instr) -> &mut Vector {
            match i {
                Instr::Vector(v) | Instr::Async(_, v, _) => v,
                _ => unreachable!("picked as a vector instruction"),
            }
        }
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
                let Vector::Map { dst, .. } = v else {
                    unreachable!("a map")
                };
                let set = block.code[..k].iter().rev().find_map(|i| match i {
                    Instr::Desc(n, d) if n == dst => Some(d),
                    _ => None,
                });
                let none = |d: &Descriptor, at| d.shape.iter().any(|n| value(block, *n, at) == Some(0));
                let empty = set.is_some_and(|d| places.iter().all(|at| none(d, *at)));
                let idle = self.idle(r, places).then_some(NO_WEIGHTS);
                let unread = self.unread(r, places).then_some(NOT_READ);
                let macs = |i: &Instr| matches!(i, Instr::Vector(Vector::Map { op: Op::Mac, .. }));
                let zeros = |i: &Instr| {
                    matches!(
                        i,
                        Instr::Vector(Vector::Map {
                            op: Op::Mov,
                            a: Operand::Imm(0.0),
                            ..
                        })
                    )
                };
                let first = macs(&block.code[k])
                    && !block.code[..k].iter().any(macs)
                    && block.code[..k].iter().any(zeros);
                let first = first.then_some(Perhaps("the first product added to 0"));
                self.add(
                    "operation",
                    what.into(),
                    empty.then_some(NO_ELEMENTS).or(first).or(idle).or(unread),
                    |p| {
                        if let Vector::Map { op, .. } = vector(&mut p.stages[0].regions[r].blocks[b].code[k])
                        {
                            *op = other;
                        }
                    },
                );
            }
            Vector::Axpy { .. } => {
                let t = block.code[..k]
                    .iter()
                    .filter(|i| matches!(i, Instr::Vector(Vector::Axpy { .. })))
                    .count();
                let fields: [(&str, i64, VectorField); 4] = [
                    ("modulo", 1, |v| {
                        if let Vector::Axpy { modulo, .. } = v {
                            modulo
                        } else {
                            unreachable!()
                        }
                    }),
                    ("divisor", 1, |v| {
                        if let Vector::Axpy { divisor, .. } = v {
                            divisor
                        } else {
                            unreachable!()
                        }
                    }),
                    ("y step", 4, |v| {
                        if let Vector::Axpy { y_step, .. } = v {
                            y_step
                        } else {
                            unreachable!()
                        }
                    }),
                    ("x step", 4, |v| {
                        if let Vector::Axpy { x_step, .. } = v {
                            x_step
                        } else {
                            unreachable!()
                        }
                    }),
                ];
                for (name, by, pick) in fields {
                    let excuse = self.list_reason(r, places, t, name);
                    self.add("list", format!("{what} {name}"), excuse, |p| {
                        bump(&mut p.stages[0].regions[r].blocks[b], k, by, |i| pick(vector(i)))
                    });
                }
                let parts: [(&str, i64, ListField); 3] = [
                    ("index", 2, |l| {
                        if let List::Memory { index, .. } = l {
                            index
                        } else {
                            unreachable!()
                        }
                    }),
                    ("value", 4, |l| {
                        if let List::Memory { value, .. } = l {
                            value
                        } else {
                            unreachable!()
                        }
                    }),
                    ("count", -1, |l| {
                        if let List::Memory { count, .. } = l {
                            count
                        } else {
                            unreachable!()
                        }
                    }),
                ];
                for (name, by, pick) in parts {
                    let excuse = self.list_reason(r, places, t, name);
                    self.add("list", format!("{what} {name}"), excuse, |p| {
                        bump(&mut p.stages[0].regions[r].blocks[b], k, by, |i| {
                            match vector(i) {
                                Vector::Axpy { list, .. } => pick(list),
                                _ => unreachable!("an axpy"),
                            }
                        });
                    });
                }
            }
        }
    }

    /// Words of weights as they enter.
    fn weights(&mut self) {
        let program = &self.compiled.program.stages[0];
        let plan = &self.compiled.plan;
        for (f, feed) in program
            .feeds
            .iter()
            .enumerate()
            .filter(|(_, f)| f.color == colors::LOAD)
        {
            // the order of blocks in a feed: rows of its channel, in each the PEs from west to east
            let ends = program
                .feeds
                .iter()
                .filter(|o| o.color == colors::LOAD && o.row > feed.row)
                .map(|o| o.row)
                .min();
            let rows = feed.row..ends.unwrap_or(self.machine.mesh.height);
            let mut at = 0;
            for row in rows {
                for (e, (kernel, emitted)) in plan.kernels.iter().zip(&plan.regions).enumerate() {
                    let w = emitted.region.width;
                    for column in 0..w {
                        let words = &emitted.weights[(row * w + column) as usize];
                        let last = column + 1 == w;
                        let layout = &plan.edges[kernel.output].layout;
                        let roles = roles(
                            &kernel.kind,
                            words,
                            plan.ty,
                            last,
                            layout.lane(row as usize),
                            layout.widest(),
                        );
                        for (k, role) in roles.into_iter().enumerate() {
                            let name = format!("{} PE ({column}, {row}) word {k} ({role:?})", kernel.name);
                            for (bit, excuse) in role.bits() {
                                let idle = self.idle(e + 1, &[(column, row)]).then_some(NO_WEIGHTS);
                                self.add(role.kind(), format!("{name} bit {bit}"), excuse.or(idle), |p| {
                                    let mut data =
                                        p.stages[0].feeds[f].data.host().expect("weights").to_vec();
                                    data[at + k].bits ^= 1 << bit;
                                    p.stages[0].feeds[f].data = data.into();
                                });
                            }
                        }
                        at += words.len();
                    }
                }
            }
            assert_eq!(at as u64, feed.data.len(), "the blocks of a feed");
        }
    }
}

const NO_ELEMENTS: Reason = Surely("an operand without elements");
const ONE_POSITION: Reason = Surely("the hold of a switch with one position to stand at, or none");
const NOT_READ: Reason = Perhaps("a feature that no stored weight of these PEs reads");
const ALIKE: Reason = Perhaps("an address of indices that are all alike");
const NO_WEIGHTS: Reason = Perhaps("products on PEs that have no weights");

/// What a word of weights is.
#[derive(Clone, Copy, Debug)]
enum Role {
    Float,
    /// Two f16, or the last one alone.
    Half(bool),
    /// Two counts or indices, or the last one alone.
    Pair(bool),
    Padding,
}

impl Role {
    fn kind(self) -> &'static str {
        if matches!(self, Role::Pair(_)) {
            "sparse index or count"
        } else {
            "weight"
        }
    }

    /// Bits to flip, and why one has no effect.
    fn bits(self) -> Vec<(u32, Option<Reason>)> {
        let odd = |both: bool| (!both).then_some(Surely("the upper half of a list of odd length"));
        match self {
            Role::Float => vec![(22, None)],
            Role::Half(both) => vec![(9, None), (25, odd(both))],
            Role::Pair(both) => vec![(0, None), (16, odd(both))],
            Role::Padding => vec![(
                22,
                Some(Surely("the bias of an output that the row does not have")),
            )],
        }
    }
}

/// The roles of one PE's words: biases where there are any (`last`), then weights, or counts, indices and values.
fn roles(kind: &Kind, words: &[u32], ty: Ty, last: bool, outputs: usize, widest: usize) -> Vec<Role> {
    let (mix, lists) = match kind {
        Kind::Mix(m) => (m, m.lists()),
        Kind::Depthwise(m) => (m, m.sparse),
        _ => return vec![Role::Float; words.len()],
    };
    let mut all = Vec::new();
    if words.is_empty() {
        return all;
    }
    if last {
        all.resize(outputs, Role::Float);
        all.resize(widest.next_multiple_of(8), Role::Padding);
    }
    let values = |n: usize, all: &mut Vec<Role>| match ty {
        Ty::F32 => all.resize(all.len() + n, Role::Float),
        Ty::F16 => (0..n.div_ceil(2)).for_each(|i| all.push(Role::Half(2 * i + 1 < n))),
    };
    if !lists {
        let rest = words.len() - all.len();
        match ty {
            Ty::F32 => values(rest, &mut all),
            // an odd number of halves leaves the last one's upper bits 0, which no weight is
            Ty::F16 => values(
                2 * rest - (words.last().is_some_and(|w| w >> 16 == 0)) as usize,
                &mut all,
            ),
        }
        return all;
    }
    let pairs =
        |n: usize, all: &mut Vec<Role>| (0..n.div_ceil(2)).for_each(|i| all.push(Role::Pair(2 * i + 1 < n)));
    let (n, sum) = counts(mix.taps.len(), &words[all.len()..]);
    pairs(n, &mut all);
    pairs(sum, &mut all);
    values(sum, &mut all);
    all
}

/// How many counts there are in the words of lists of f32, and their sum: as many, a multiple of the taps, as make the lengths agree.
fn counts(taps: usize, words: &[u32]) -> (usize, usize) {
    let sum = |n: usize| (0..n).map(|i| half(words, i) as usize).sum::<usize>();
    let agree =
        |n: &usize| n.is_multiple_of(taps) && n.div_ceil(2) + sum(*n).div_ceil(2) + sum(*n) == words.len();
    let n = (1..=2 * words.len())
        .find(agree)
        .expect("counts that agree with the words");
    (n, sum(n))
}

fn half(words: &[u32], i: usize) -> u32 {
    words[i / 2] >> (16 * (i % 2)) & 0xffff
}

/// The stored (chunk, index) of one PE, tap by tap, if its kernel has lists.
fn stored(kind: &Kind, words: &[u32], last: bool, widest: usize) -> Option<Vec<Vec<(usize, u32)>>> {
    let mix = match kind {
        Kind::Mix(m) if m.lists() => m,
        Kind::Depthwise(m) if m.sparse => m,
        _ => return None,
    };
    let mut all = vec![Vec::new(); mix.taps.len()];
    if !words.is_empty() {
        let rest = &words[if last { widest.next_multiple_of(8) } else { 0 }..];
        let (n, _) = counts(mix.taps.len(), rest);
        let mut at = 2 * n.div_ceil(2);
        for i in 0..n {
            let count = half(rest, i) as usize;
            all[i % mix.taps.len()].extend((at..at + count).map(|j| (i / mix.taps.len(), half(rest, j))));
            at += count;
        }
    }
    Some(all)
}

/// What leaves, bit for bit, without times and flags.
fn payloads(o: &Outcome) -> Vec<Vec<(u64, u8)>> {
    o.drains
        .iter()
        .map(|d| d.iter().map(|l| (l.wavelet.bits, l.wavelet.elements)).collect())
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Refused,
    Failed,
    Differs,
    Survived,
}

fn fate(mutant: &Mutant, machine: &Machine, expected: &[Vec<(u64, u8)>], max_cycles: u64) -> Fate {
    if verify::verify(&mutant.program, machine).is_err() {
        return Fate::Refused;
    }
    match engine::run(
        &mutant.program,
        machine,
        &Options {
            max_cycles: Some(max_cycles),
            ..Options::default()
        },
    ) {
        Err(_) => Fate::Failed,
        Ok(o) if payloads(&o) != expected => Fate::Differs,
        Ok(_) => Fate::Survived,
    }
}

/// A kernel's mutants: a line for the table, what survived, and what is wrong.
fn trial(model: &Model, machine: &Machine) -> (String, BTreeMap<String, usize>, Vec<String>) {
    let compiled = model.compile(machine);
    let outcome = engine::run(&compiled.program, machine, &Options::default())
        .unwrap_or_else(|e| panic!("{}: {e}", model.name));
    let expected = payloads(&outcome);
    let mut breeder = Breeder {
        compiled: &compiled,
        machine,
        all: Vec::new(),
    };
    breeder.routes();
    breeder.blocks();
    breeder.weights();
    // at even distances, kind by kind
    let mut by_kind: BTreeMap<&str, Vec<Mutant>> = BTreeMap::new();
    breeder
        .all
        .into_iter()
        .for_each(|m| by_kind.entry(m.kind).or_default().push(m));
    let bred: usize = by_kind.values().map(Vec::len).sum();
    let sample: Vec<Mutant> = by_kind
        .into_values()
        .flat_map(|all| {
            let step = all.len().div_ceil(MOST);
            all.into_iter().step_by(step).collect::<Vec<_>>()
        })
        .collect();
    let max = 3 * outcome.cycles + 5000;
    let fates: Vec<Fate> = sample
        .par_iter()
        .map(|m| fate(m, machine, &expected, max))
        .collect();

    let mut counts = [0usize; 4];
    let mut survivors: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut excused = 0;
    for (m, f) in sample.iter().zip(&fates) {
        match (m.excuse, f) {
            (Some(Surely(why)), Fate::Survived) => {
                excused += 1;
                *survivors.entry(why.into()).or_default() += 1;
            }
            // refusing what would not matter is no error
            (Some(Surely(_)), Fate::Refused) => excused += 1,
            (Some(Perhaps(why)), Fate::Survived) => {
                excused += 1;
                *survivors.entry(format!("{why} (perhaps)")).or_default() += 1;
            }
            (Some(Perhaps(_)), f) => counts[*f as usize] += 1,
            (Some(Surely(why)), f) => wrong.push(format!(
                "{}: {}: {}: {f:?}, though it is {why}",
                model.name, m.kind, m.what
            )),
            (None, f) => {
                counts[*f as usize] += 1;
                if *f == Fate::Survived {
                    *survivors.entry(format!("NO REASON: {}", m.kind)).or_default() += 1;
                    if std::env::var_os("SURVIVORS").is_some() {
                        println!("{}: {}: {}", model.name, m.kind, m.what);
                    }
                }
            }
        }
    }
    let [refused, failed, differs, survived] = counts;
    let total: usize = counts.iter().sum();
    if (total - survived) * 100 < NOTICED * total {
        wrong.push(format!(
            "{}: only {} of {total} mutants were noticed",
            model.name,
            total - survived
        ));
    }
    let line = format!(
        "{:<30} {bred:>5} {:>6} {refused:>8} {failed:>7} {differs:>8} {survived:>9} {excused:>8}",
        model.name,
        sample.len()
    );
    (line, survivors, wrong)
}

#[test]
fn every_corruption_is_noticed() {
    let machine = tiny();
    let mut table = format!(
        "{:<30} {:>5} {:>6} {:>8} {:>7} {:>8} {:>9} {:>8}\n",
        "kernel", "bred", "tried", "refused", "failed", "differs", "survived", "excused"
    );
    let (mut why, mut shown) = (String::new(), String::new());
    let mut wrong = Vec::new();
    for model in kernels() {
        let (line, survivors, bad) = trial(&model, &machine);
        writeln!(table, "{}", line.trim_end()).expect("a string");
        writeln!(shown, "{}", model.name).expect("a string");
        for (category, n) in survivors {
            writeln!(why, "{:<30} {n:>5} {category}", model.name).expect("a string");
            // numbers follow every change of the compiler; the categories should not
            writeln!(shown, "  {category}").expect("a string");
        }
        wrong.extend(bad);
    }
    println!("{table}\n{why}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    insta::assert_snapshot!("survivors", shown);
}

/// The program with all names replaced by numbers, so that nothing of them is left.
fn nameless(program: &Program) -> Program {
    fn expr(e: &Expr) -> Expr {
        let of = |e: &Expr| Box::new(expr(e));
        match e {
            Expr::Const(_) | Expr::X | Expr::Y => e.clone(),
            Expr::Add(a, b) => Expr::Add(of(a), of(b)),
            Expr::Sub(a, b) => Expr::Sub(of(a), of(b)),
            Expr::Mul(a, b) => Expr::Mul(of(a), of(b)),
            Expr::Min(a, b) => Expr::Min(of(a), of(b)),
            Expr::Max(a, b) => Expr::Max(of(a), of(b)),
            Expr::Div(a, n) => Expr::Div(of(a), *n),
            Expr::Mod(a, n) => Expr::Mod(of(a), *n),
            Expr::Table(t) => Expr::Table(Arc::new(meshloom_simulator::Table {
                name: String::new(),
                ..(**t).clone()
            })),
        }
    }
    let mut p = program.clone();
    p.name.clear();
    for region in p.stages.iter_mut().flat_map(|s| &mut s.regions) {
        region.name.clear();
        for route in &mut region.routes {
            route.stream.clear();
            route.positions.iter_mut().for_each(|p| p.hold = expr(&p.hold));
            route
                .filters
                .iter_mut()
                .flat_map(|f| [&mut f.first, &mut f.count, &mut f.period])
                .for_each(|e| *e = expr(e));
        }
        for block in &mut region.blocks {
            block.labels.clear();
            block.memory.iter_mut().for_each(|b| b.name.clear());
            block.tasks.iter_mut().for_each(|t| t.name.clear());
            for param in &mut block.params {
                param.name.clear();
                param.value = expr(&param.value);
            }
        }
    }
    for stage in &mut p.stages {
        stage.name.clear();
        stage.feeds.iter_mut().for_each(|f| f.name.clear());
        stage.drains.iter_mut().for_each(|d| d.name.clear());
    }
    p
}

#[test]
fn names_have_no_effect() {
    let machine = tiny();
    let wide = common::small(&["mesh.width=24", "mesh.height=6"]);
    let all = kernels()
        .into_iter()
        .map(|m| (m, &machine))
        .chain([(residual(), &wide)]);
    for (model, machine) in all {
        let program = model.compile(machine).program;
        let run = |p: &Program| engine::run(p, machine, &Options::default()).map(comparable);
        let stripped = nameless(&program);
        assert_ne!(stripped, program);
        let text = format!("{stripped:?}");
        assert!(
            !text.contains("name: \"x") && !text.contains("weights"),
            "{}: a name is left",
            model.name
        );
        assert!(run(&stripped) == run(&program), "{}", model.name);
    }
}
