//! What a machine refuses: a program is checked as a whole before it runs, so that what goes wrong at run time is only what depends on
//! data. Index and memory checks are made once for a rectangle of PEs; routes are checked on each PE, a colour at a time.
//!
//! Here are the entry points, regions and lattices, and expressions; `network` checks routes and the edge, `code` blocks and instructions;
//! `marks` finds the blocks whose timing depends on values.

mod code;
mod marks;
mod network;

use crate::expr::{Axes, Expr, Table};
use crate::machine::Machine;
use crate::program::*;
use crate::text::{MAX_DEPTH, expr_tables, instruction_in, name, span, stage_name};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

pub use marks::{timing_depends_on_values, timing_depends_on_values_without_skip};

/// At most this many violations are reported.
pub const MAX_VIOLATIONS: usize = 20;
/// Scalar registers of a PE.
pub const SCALARS: u8 = 16;
/// Descriptor registers of a PE.
pub const DESCRIPTORS: u8 = 44;

/// Largest epoch of a feed: an engine keeps the cycle of each.
pub const MAX_EPOCH: u32 = 65535;

/// Most wavelets of a feed that is cut anew of what left before: a few words of text must not fill memory.
pub const MAX_CUT: u64 = 1 << 28;

/// Largest extent of a descriptor.
pub const MAX_EXTENT: i64 = 1 << 24;

/// Numbers evaluated PE by PE at most, over the whole program, where bounds alone do not decide.
const EFFORT: u64 = 200_000_000;

/// One thing that a machine refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Region, and block, route or instruction.
    pub place: String,
    /// The rule: `M` of `docs/machine.md`, `P` of `docs/program.md`.
    pub rule: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What would help.
    pub help: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{}: {} (rule {}); {}",
            self.place, self.problem, self.rule, self.help
        )
    }
}

/// Checks a program against a machine; returns the first [`MAX_VIOLATIONS`] violations.
pub fn verify(program: &Program, machine: &Machine) -> Result<(), Vec<Violation>> {
    let none = Stage::default();
    let mut c = Check {
        program,
        number: 0,
        stage: program.stages.first().unwrap_or(&none),
        machine,
        found: vec![],
        ranges: HashMap::new(),
        tables: HashMap::new(),
        effort: EFFORT,
        colors: vec![],
    };
    if program.stages.is_empty() {
        let help = "give it a stage, an empty one if nothing is to run";
        c.add("program", "M16", "it has no stage".into(), help);
    }
    for (number, stage) in program.stages.iter().enumerate() {
        if c.full() {
            break;
        }
        (c.number, c.stage) = (number, stage);
        c.colors = vec![Use::default(); machine.router.colors as usize];
        c.priority();
        c.regions();
        c.edge();
        if !c.full() {
            c.network();
        }
    }
    if c.found.is_empty() { Ok(()) } else { Err(c.found) }
}

/// Who uses a colour; routes and blocks by region and index, only those whose lattice is in order.
#[derive(Clone, Default)]
struct Use {
    routes: Vec<(usize, usize)>,
    /// Region, block, whether it is sent, and the instruction or task for messages.
    cores: Vec<(usize, usize, bool, String)>,
    feeds: Vec<usize>,
    drains: Vec<usize>,
}

struct Check<'a> {
    program: &'a Program,
    /// The stage that is looked at, and its number.
    stage: &'a Stage,
    number: usize,
    machine: &'a Machine,
    found: Vec<Violation>,
    /// Smallest and largest entry of the tables met.
    ranges: HashMap<*const Table, Option<(i64, i64)>>,
    /// The first table of each name.
    tables: HashMap<&'a str, &'a Arc<Table>>,
    effort: u64,
    colors: Vec<Use>,
}

impl<'a> Check<'a> {
    fn full(&self) -> bool {
        self.found.len() >= MAX_VIOLATIONS
    }

    fn add(
        &mut self,
        place: impl Into<String>,
        rule: &'static str,
        problem: String,
        help: impl Into<String>,
    ) {
        if !self.full() {
            let mut place = place.into();
            if self.program.stages.len() > 1 {
                place = format!("{}, {place}", stage_name(self.program, self.number));
            }
            self.found.push(Violation {
                place,
                rule,
                problem,
                help: help.into(),
            });
        }
    }

    // ---- places for messages

    fn region_place(&self, r: usize) -> String {
        format!("region {}", name(&self.stage.regions[r].name))
    }

    fn route_place(&self, r: usize, i: usize) -> String {
        let q = &self.stage.regions[r].routes[i];
        format!(
            "{}, route {i} (c{} {:?}, {})",
            self.region_place(r),
            q.color,
            q.stream,
            ranges(&q.at)
        )
    }

    fn block_place(&self, r: usize, i: usize) -> String {
        format!(
            "{}, block {i} ({})",
            self.region_place(r),
            ranges(&self.stage.regions[r].blocks[i].at)
        )
    }

    fn instr_place(&self, r: usize, b: usize, i: usize) -> String {
        let text = instruction_in(&self.stage.regions[r].blocks[b], i);
        format!("{}, instruction {i} \"{text}\"", self.block_place(r, b))
    }

    // ---- regions, lattices, blocks

    fn priority(&mut self) {
        let colors = self.machine.router.colors;
        let mut seen = [false; 256];
        for c in &self.stage.priority {
            if *c as u32 >= colors {
                let problem = format!("c{c} does not exist");
                self.add(
                    "priority",
                    "M6",
                    problem,
                    format!("the machine has the colours c0 to c{}", colors - 1),
                );
            } else if std::mem::replace(&mut seen[*c as usize], true) {
                self.add(
                    "priority",
                    "M6",
                    format!("c{c} is listed twice"),
                    "list each colour once",
                );
            }
        }
    }

    fn regions(&mut self) {
        let (width, height) = (self.machine.mesh.width, self.machine.mesh.height);
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        for (r, region) in self.stage.regions.iter().enumerate() {
            if self.full() {
                return;
            }
            let inside = |at: u32, n: u32, most: u32| n > 0 && at as u64 + n as u64 <= most as u64;
            if !inside(region.x, region.width, width) || !inside(region.y, region.height, height) {
                let problem = format!(
                    "{} x {} PEs at ({}, {}) are not inside the mesh of {width} x {height}",
                    region.width, region.height, region.x, region.y
                );
                self.add(
                    self.region_place(r),
                    "P1",
                    problem,
                    "move or shrink the region, or use a larger mesh",
                );
                continue;
            }
            for (i, route) in region.routes.iter().enumerate() {
                let ok = self.lattice(region, &route.at, |c| c.route_place(r, i));
                self.route(r, i, ok);
            }
            for (i, block) in region.blocks.iter().enumerate() {
                let ok = self.lattice(region, &block.at, |c| c.block_place(r, i));
                if ok {
                    blocks.push((r, i));
                }
                self.block(r, i, ok);
            }
        }
        self.disjoint(&blocks);
        self.filters();
    }

    fn lattice(&mut self, region: &Region, l: &Lattice, place: impl Fn(&Self) -> String) -> bool {
        let problem = if l.nx == 0 || l.ny == 0 || l.dx == 0 || l.dy == 0 {
            "a lattice has at least one column and row, and strides of at least 1".to_string()
        } else {
            let (x, y) = last(l);
            if x < region.width as u64 && y < region.height as u64 {
                return true;
            }
            format!(
                "its last PE ({x}, {y}) is not inside the region of {} x {}",
                region.width, region.height
            )
        };
        self.add(
            place(self),
            "P1",
            problem,
            "change the lattice or the region's size",
        );
        false
    }

    /// No PE has two blocks.
    fn disjoint(&mut self, blocks: &[(usize, usize)]) {
        let width = self.machine.mesh.width as usize;
        let mut owner = vec![0u32; width * self.machine.mesh.height as usize];
        for (k, &(r, b)) in blocks.iter().enumerate() {
            let region = &self.stage.regions[r];
            for (x, y) in region.blocks[b].at.places() {
                let (x, y) = (region.x + x, region.y + y);
                let cell = &mut owner[y as usize * width + x as usize];
                if *cell != 0 {
                    let (r0, b0) = blocks[*cell as usize - 1];
                    let problem = format!("PE ({x}, {y}) already belongs to {}", self.block_place(r0, b0));
                    self.add(self.block_place(r, b), "P1", problem, "give each PE one block");
                    break;
                }
                *cell = k as u32 + 1;
            }
            if self.full() {
                return;
            }
        }
    }

    // ---- expressions

    /// Checks an expression; `at` is where it is evaluated, if that is in order.
    fn expr(&mut self, e: &'a Expr, at: Option<&Lattice>, place: &str, what: &str) {
        if depth(e) > MAX_DEPTH {
            let problem = format!("{what} is nested more than {MAX_DEPTH} deep");
            self.add(place, "P4", problem, "use a table");
            return;
        }
        if let Some(n) = bad_divisor(e) {
            self.add(
                place,
                "P4",
                format!("{what} divides by {n}"),
                "divide by a positive constant",
            );
        }
        let mut tables = Vec::new();
        expr_tables(e, &mut |t| tables.push(t));
        for t in tables {
            let first = *self.tables.entry(t.name.as_str()).or_insert(t);
            if !Arc::ptr_eq(first, t) && first != t {
                let problem = format!("there are two different tables named {}", name(&t.name));
                self.add(place, "P2", problem, "give each table its own name");
            }
            if let Some(l) = at
                && !covers(t, l)
            {
                let (x, y) = last(l);
                let problem = format!(
                    "table {} ({} entries{}) ends before ({x}, {y})",
                    name(&t.name),
                    t.values.len(),
                    if t.axes == Axes::XY {
                        format!(", width {}", t.width)
                    } else {
                        String::new()
                    },
                );
                self.add(
                    place,
                    "P4",
                    problem,
                    "give it an entry for every column or row of the lattice",
                );
            }
        }
    }

    /// Bounds of an expression over a lattice; `None` where they are not known.
    fn range(&mut self, e: &Expr, l: &Lattice) -> Option<(i64, i64)> {
        let four = |a: (i64, i64), b: (i64, i64), f: fn(i64, i64) -> Option<i64>| {
            let all = [f(a.0, b.0)?, f(a.0, b.1)?, f(a.1, b.0)?, f(a.1, b.1)?];
            Some((*all.iter().min()?, *all.iter().max()?))
        };
        match e {
            Expr::Const(c) => Some((*c, *c)),
            Expr::X => Some((l.x as i64, last(l).0 as i64)),
            Expr::Y => Some((l.y as i64, last(l).1 as i64)),
            Expr::Add(a, b) => four(self.range(a, l)?, self.range(b, l)?, i64::checked_add),
            Expr::Sub(a, b) => four(self.range(a, l)?, self.range(b, l)?, i64::checked_sub),
            Expr::Mul(a, b) => four(self.range(a, l)?, self.range(b, l)?, i64::checked_mul),
            Expr::Min(a, b) => four(self.range(a, l)?, self.range(b, l)?, |a, b| Some(a.min(b))),
            Expr::Max(a, b) => four(self.range(a, l)?, self.range(b, l)?, |a, b| Some(a.max(b))),
            Expr::Div(a, n) if *n > 0 => {
                let (lo, hi) = self.range(a, l)?;
                Some((lo.div_euclid(*n), hi.div_euclid(*n)))
            }
            Expr::Mod(a, n) if *n > 0 => {
                let (lo, hi) = self.range(a, l)?;
                let same = lo.div_euclid(*n) == hi.div_euclid(*n);
                Some(if same {
                    (lo.rem_euclid(*n), hi.rem_euclid(*n))
                } else {
                    (0, n - 1)
                })
            }
            Expr::Div(..) | Expr::Mod(..) => None,
            Expr::Table(t) if covers(t, l) => *self
                .ranges
                .entry(Arc::as_ptr(t))
                .or_insert_with(|| Some((*t.values.iter().min()?, *t.values.iter().max()?))),
            Expr::Table(_) => None,
        }
    }

    /// The first PE (relative to the region) where an expression is not in `lo..=hi`, and its value there.
    fn outside(&mut self, e: &Expr, l: &Lattice, lo: i64, hi: i64) -> Option<(u32, u32, i64)> {
        if self.range(e, l).is_some_and(|(a, b)| lo <= a && b <= hi) {
            return None;
        }
        let (by_x, by_y) = axes_of(e);
        let l = Lattice {
            nx: if by_x { l.nx } else { 1 },
            ny: if by_y { l.ny } else { 1 },
            ..*l
        };
        if !self.afford(&l) {
            return None;
        }
        l.places()
            .map(|(x, y)| (x, y, e.at(x as i64, y as i64)))
            .find(|(_, _, v)| !(lo..=hi).contains(v))
    }

    /// Whether all PEs of a lattice may still be visited.
    fn afford(&mut self, l: &Lattice) -> bool {
        let n = l.nx as u64 * l.ny as u64;
        let yes = n <= self.effort;
        self.effort = self.effort.saturating_sub(n);
        yes
    }

    fn color(&mut self, c: Color, place: &str) -> bool {
        let colors = self.machine.router.colors;
        if (c as u32) < colors {
            return true;
        }
        let help = format!("the machine has the colours c0 to c{}", colors - 1);
        self.add(place, "M3", format!("colour c{c} does not exist"), help);
        false
    }
}

/// The last place of a lattice.
fn last(l: &Lattice) -> (u64, u64) {
    let end = |x: u32, n: u32, d: u32| x as u64 + (n as u64).saturating_sub(1) * d as u64;
    (end(l.x, l.nx, l.dx), end(l.y, l.ny, l.dy))
}

/// `x 0..14, y 3`
fn ranges(l: &Lattice) -> String {
    format!("x {}, y {}", span(l.x, l.nx, l.dx), span(l.y, l.ny, l.dy))
}

/// Whether a table has an entry for every PE of a lattice.
fn covers(t: &Table, l: &Lattice) -> bool {
    let (x, y) = last(l);
    let n = t.values.len() as u64;
    match t.axes {
        Axes::X => x < n,
        Axes::Y => y < n,
        Axes::XY => x < t.width as u64 && y * (t.width as u64) + x < n,
    }
}

fn operands_of(e: &Expr) -> (Option<&Expr>, Option<&Expr>) {
    match e {
        Expr::Const(_) | Expr::X | Expr::Y | Expr::Table(_) => (None, None),
        Expr::Div(a, _) | Expr::Mod(a, _) => (Some(a), None),
        Expr::Add(a, b) | Expr::Sub(a, b) | Expr::Mul(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
            (Some(a), Some(b))
        }
    }
}

/// Levels of an expression's tree; looks no deeper than needed.
fn depth(e: &Expr) -> usize {
    let mut level = vec![e];
    let mut depth = 0;
    while !level.is_empty() && depth <= MAX_DEPTH {
        depth += 1;
        level = level
            .into_iter()
            .map(operands_of)
            .flat_map(|(a, b)| a.into_iter().chain(b))
            .collect();
    }
    depth
}

fn bad_divisor(e: &Expr) -> Option<i64> {
    if let Expr::Div(_, n) | Expr::Mod(_, n) = e
        && *n <= 0
    {
        return Some(*n);
    }
    let (a, b) = operands_of(e);
    a.and_then(bad_divisor).or_else(|| b.and_then(bad_divisor))
}

/// Whether an expression depends on x and on y.
fn axes_of(e: &Expr) -> (bool, bool) {
    match e {
        Expr::X => (true, false),
        Expr::Y => (false, true),
        Expr::Table(t) => (t.axes != Axes::Y, t.axes != Axes::X),
        _ => {
            let (a, b) = operands_of(e);
            let or = |e: Option<&Expr>| e.map_or((false, false), axes_of);
            let (a, b) = (or(a), or(b));
            (a.0 || b.0, a.1 || b.1)
        }
    }
}
