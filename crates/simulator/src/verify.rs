//! What a machine refuses: a program is checked as a whole before it runs, so that what goes wrong at run time is only what depends on
//! data. Index and memory checks are made once for a rectangle of PEs; routes are checked on each PE, a colour at a time.

use crate::expr::{Axes, Expr, Table};
use crate::machine::{Machine, Side};
use crate::program::*;
use crate::text::{MAX_DEPTH, expr_tables, instruction_in, name, port, side, span};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// At most this many violations are reported.
pub const MAX_VIOLATIONS: usize = 20;
/// Scalar registers of a PE.
pub const SCALARS: u8 = 16;
/// Descriptor registers of a PE.
pub const DESCRIPTORS: u8 = 44;

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
    let mut c = Check {
        program,
        machine,
        found: vec![],
        ranges: HashMap::new(),
        tables: HashMap::new(),
        effort: EFFORT,
        colors: vec![Use::default(); machine.router.colors as usize],
    };
    c.priority();
    c.regions();
    c.edge();
    if !c.full() {
        c.network();
    }
    if c.found.is_empty() { Ok(()) } else { Err(c.found) }
}

/// Instructions of a block whose timing depends on data (the mark of rule M20): [`Vector::Axpy`], whose elements may be dropped by value;
/// and branches, waits, element counts, shapes, strides and addresses that come from a register which is somewhere loaded from SRAM or by
/// a data task. What is written behind a listed branch depends on it too: a block with any entry is to be timed with its data.
///
/// Without `skip.zero_operands` no element is dropped: see [`timing_depends_on_values_without_skip`].
pub fn timing_depends_on_values(block: &Block) -> Vec<u32> {
    value_dependent(block, true)
}

/// As [`timing_depends_on_values`], on a machine whose `skip.zero_operands` is off.
pub fn timing_depends_on_values_without_skip(block: &Block) -> Vec<u32> {
    value_dependent(block, false)
}

fn value_dependent(block: &Block, axpy: bool) -> Vec<u32> {
    let mut scalar = [false; 256];
    let mut vector = [false; 256];
    if block.tasks.iter().any(|t| matches!(t.trigger, Trigger::Data(_))) {
        (scalar[0], scalar[1]) = (true, true);
    }
    let from = |scalar: &[bool; 256], vals: &[Val]| {
        vals.iter()
            .any(|v| matches!(v, Val::Reg(r) if scalar[*r as usize]))
    };
    loop {
        let before = (scalar, vector);
        for i in &block.code {
            match i {
                Instr::Load(_, r, ..) => scalar[*r as usize] = true,
                Instr::Set(r, a) => scalar[*r as usize] |= from(&scalar, &[*a]),
                Instr::Add(r, a, b) | Instr::Sub(r, a, b) | Instr::Mul(r, a, b) => {
                    scalar[*r as usize] |= from(&scalar, &[*a, *b])
                }
                Instr::Base(d, v) | Instr::Advance(d, v) => vector[*d as usize] |= from(&scalar, &[*v]),
                Instr::Desc(d, desc) => {
                    vector[*d as usize] |= from(&scalar, &desc.shape);
                    if let Place::Memory { base, strides, .. } = &desc.place {
                        vector[*d as usize] |= from(&scalar, &[*base]) || from(&scalar, strides);
                    }
                }
                _ => {}
            }
        }
        if before == (scalar, vector) {
            break;
        }
    }
    let depends = |i: &Instr| match i {
        Instr::Branch(_, a, b, _) => from(&scalar, &[*a, *b]),
        Instr::Wait(_, Some(n)) => from(&scalar, &[*n]),
        Instr::Vector(v) | Instr::Async(_, v, _) => match v {
            Vector::Map { dst, a, b, .. } => {
                let desc = |o: &Operand| matches!(o, Operand::Desc(d) if vector[*d as usize]);
                vector[*dst as usize] || desc(a) || b.as_ref().is_some_and(desc)
            }
            Vector::Axpy {
                y,
                x,
                list,
                modulo,
                divisor,
                y_step,
                x_step,
                ..
            } => {
                let listed = match list {
                    List::Fabric { .. } => false,
                    List::Memory {
                        index, value, count, ..
                    } => from(&scalar, &[*index, *value, *count]),
                };
                axpy || listed
                    || vector[*y as usize]
                    || vector[*x as usize]
                    || from(&scalar, &[*modulo, *divisor, *y_step, *x_step])
            }
        },
        _ => false,
    };
    block
        .code
        .iter()
        .enumerate()
        .filter(|(_, i)| depends(i))
        .map(|(k, _)| k as u32)
        .collect()
}

/// What an instruction names.
enum Part<'a> {
    Scalar(u8),
    Desc(u8),
    Val(&'a Val),
    /// A colour, and whether it is sent.
    Color(Color, bool),
    Task(u16),
    Thread(u8),
    Target(u32),
}

fn parts<'a>(i: &'a Instr, see: &mut dyn FnMut(Part<'a>)) {
    use Part::*;
    match i {
        Instr::Set(r, a) => {
            see(Scalar(*r));
            see(Val(a));
        }
        Instr::Add(r, a, b) | Instr::Sub(r, a, b) | Instr::Mul(r, a, b) | Instr::Load(_, r, a, b) => {
            see(Scalar(*r));
            see(Val(a));
            see(Val(b));
        }
        Instr::Store(_, a, b, v) => [a, b, v].into_iter().for_each(|v| see(Val(v))),
        Instr::Jump(t) => see(Target(*t)),
        Instr::Branch(_, a, b, t) => {
            see(Val(a));
            see(Val(b));
            see(Target(*t));
        }
        Instr::Desc(d, desc) => {
            see(Desc(*d));
            desc.shape.iter().for_each(|v| see(Val(v)));
            match &desc.place {
                Place::Memory { base, strides, .. } => {
                    see(Val(base));
                    strides.iter().for_each(|v| see(Val(v)));
                }
                Place::In(c) => see(Color(*c, false)),
                Place::Out { color, .. } => see(Color(*color, true)),
            }
        }
        Instr::Base(d, v) | Instr::Advance(d, v) => {
            see(Desc(*d));
            see(Val(v));
        }
        Instr::Vector(v) => vector_parts(v, see),
        Instr::Async(t, v, then) => {
            see(Thread(*t));
            vector_parts(v, see);
            then.iter().for_each(|t| see(Task(*t)));
        }
        Instr::Wait(t, n) => {
            see(Thread(*t));
            n.iter().for_each(|v| see(Val(v)));
        }
        Instr::Activate(t) | Instr::Block(t) | Instr::Unblock(t) => see(Task(*t)),
        Instr::End | Instr::Halt => {}
    }
}

fn vector_parts<'a>(v: &'a Vector, see: &mut dyn FnMut(Part<'a>)) {
    match v {
        Vector::Map { dst, a, b, .. } => {
            see(Part::Desc(*dst));
            for o in [Some(a), b.as_ref()].into_iter().flatten() {
                match o {
                    Operand::Desc(d) => see(Part::Desc(*d)),
                    Operand::Reg(r) => see(Part::Scalar(*r)),
                    Operand::Imm(_) => {}
                }
            }
        }
        Vector::Axpy {
            y,
            x,
            list,
            modulo,
            divisor,
            y_step,
            x_step,
            ..
        } => {
            see(Part::Desc(*y));
            see(Part::Desc(*x));
            match list {
                List::Fabric { color, .. } => see(Part::Color(*color, false)),
                List::Memory {
                    index, value, count, ..
                } => {
                    [index, value, count].into_iter().for_each(|v| see(Part::Val(v)));
                }
            }
            [modulo, divisor, y_step, x_step]
                .into_iter()
                .for_each(|v| see(Part::Val(v)));
        }
    }
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

const RAMP: u8 = 1 << Port::Ramp as u8;

/// Kinds of operands, as bits.
const MEMORY: u8 = 1;
const INPUT: u8 = 2;
const OUTPUT: u8 = 4;

struct Check<'a> {
    program: &'a Program,
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
            self.found.push(Violation {
                place: place.into(),
                rule,
                problem,
                help: help.into(),
            });
        }
    }

    // ---- places for messages

    fn region_place(&self, r: usize) -> String {
        format!("region {}", name(&self.program.regions[r].name))
    }

    fn route_place(&self, r: usize, i: usize) -> String {
        let q = &self.program.regions[r].routes[i];
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
            ranges(&self.program.regions[r].blocks[i].at)
        )
    }

    fn instr_place(&self, r: usize, b: usize, i: usize) -> String {
        let text = instruction_in(&self.program.regions[r].blocks[b], i);
        format!("{}, instruction {i} \"{text}\"", self.block_place(r, b))
    }

    // ---- regions, lattices, blocks

    fn priority(&mut self) {
        let colors = self.machine.router.colors;
        let mut seen = [false; 256];
        for c in &self.program.priority {
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
        for (r, region) in self.program.regions.iter().enumerate() {
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
            let region = &self.program.regions[r];
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

    /// Filters of all colours together.
    fn filters(&mut self) {
        let (width, most) = (self.machine.mesh.width as usize, self.machine.router.filters);
        let mut count: Vec<u16> = Vec::new();
        for c in 0..self.colors.len() {
            for k in 0..self.colors[c].routes.len() {
                let (r, i) = self.colors[c].routes[k];
                let region = &self.program.regions[r];
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

    // ---- routes

    fn route(&mut self, r: usize, i: usize, ok: bool) {
        let route: &'a Route = &self.program.regions[r].routes[i];
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

    fn color(&mut self, c: Color, place: &str) -> bool {
        let colors = self.machine.router.colors;
        if (c as u32) < colors {
            return true;
        }
        let help = format!("the machine has the colours c0 to c{}", colors - 1);
        self.add(place, "M3", format!("colour c{c} does not exist"), help);
        false
    }

    // ---- feeds and drains

    fn edge(&mut self) {
        let channels: HashSet<(Side, u32)> =
            self.machine.channels().iter().map(|c| (c.side, c.row)).collect();
        let bits = self.machine.link.bits;
        let mut drained = HashSet::new();
        let mut seen: HashSet<*const Vec<Wavelet>> = HashSet::new();
        let mut epochs: HashMap<(Side, u32), u32> = HashMap::new();
        for (i, f) in self.program.feeds.iter().enumerate() {
            let place = feed_place(f);
            let before = epochs.insert((f.side, f.row), f.epoch).unwrap_or(0);
            if f.epoch < before {
                let problem = format!("epoch {} comes after epoch {before} on the same channel: it can never enter", f.epoch);
                self.add(&place, "M15", problem, "order a channel's feeds by epoch");
            }
            if self.channel(&channels, f.side, f.row, &place) & self.color(f.color, &place) {
                self.colors[f.color as usize].feeds.push(i);
            }
            let fits = |w: &Wavelet| w.elements as u32 <= bits / 16 && (bits >= 64 || w.bits >> bits == 0);
            if seen.insert(Arc::as_ptr(&f.data))
                && let Some(k) = f.data.iter().position(|w| !fits(w))
            {
                let w = &f.data[k];
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
        for (i, d) in self.program.drains.iter().enumerate() {
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

    fn network(&mut self) {
        let mut net = Net::new(self.machine.mesh.width, self.machine.mesh.height);
        for c in 0..self.colors.len() {
            let used = std::mem::take(&mut self.colors[c]);
            for (k, &(r, i)) in used.routes.iter().enumerate() {
                self.lay(&mut net, &used.routes, k, r, i);
            }
            let ends: HashSet<(Side, u32)> = used
                .drains
                .iter()
                .map(|d| (self.program.drains[*d].side, self.program.drains[*d].row))
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
                let region = &self.program.regions[r];
                for (x, y) in region.routes[i].at.places() {
                    let cell = net.cell(region.x + x, region.y + y);
                    (net.owner[cell], net.ins[cell], net.outs[cell], net.degree[cell]) = (0, 0, 0, 0);
                }
            }
        }
    }

    /// Enters a route's ports on its PEs.
    fn lay(&mut self, net: &mut Net, routes: &[(usize, usize)], k: usize, r: usize, i: usize) {
        let region = &self.program.regions[r];
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
        let region = &self.program.regions[r];
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
            let region = &self.program.regions[*r];
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
            let region = &self.program.regions[*r];
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
            let f = &self.program.feeds[*f];
            let (x, p) = border(f.side);
            if net.ins[net.cell(x, f.row)] & (1 << p as u8) == 0 {
                let problem = format!("PE ({x}, {}) takes no c{c} from {}", f.row, port(p));
                let help = format!("add a route of c{c} there with input {}", port(p));
                self.add(feed_place(f), "M15", problem, help);
            }
        }
        for d in &used.drains {
            let d = &self.program.drains[*d];
            let (x, p) = border(d.side);
            if net.outs[net.cell(x, d.row)] & (1 << p as u8) == 0 {
                let problem = format!("PE ({x}, {}) sends no c{c} to {}", d.row, port(p));
                let help = format!("add a route of c{c} there with output {}", port(p));
                self.add(drain_place(d), "M15", problem, help);
            }
        }
        for (r, b, sends, what) in &used.cores {
            let region = &self.program.regions[*r];
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

    // ---- blocks

    fn block(&mut self, r: usize, b: usize, ok: bool) {
        let block: &'a Block = &self.program.regions[r].blocks[b];
        let place = self.block_place(r, b);
        let at = ok.then_some(&block.at);
        for p in &block.params {
            self.expr(&p.value, at, &place, &format!("parameter {}", name(&p.name)));
        }
        self.unique(&place, "parameters", block.params.iter().map(|p| &p.name));
        self.unique(&place, "buffers", block.memory.iter().map(|m| &m.name));
        self.unique(&place, "tasks", block.tasks.iter().map(|t| &t.name));
        self.unique(&place, "labels", block.labels.iter().map(|l| &l.0));
        self.memory(r, b, &place);
        let length = block.code.len();
        for (label, at) in block.labels.iter().filter(|l| l.1 as usize > length) {
            let problem = format!(
                "label {} is at {at}, the code has {length} instructions",
                name(label)
            );
            self.add(&place, "P3", problem, "move the label into the code");
        }
        // The first use of each colour in each direction.
        let mut uses: HashMap<(Color, bool), String> = HashMap::new();
        for (i, t) in block.tasks.iter().enumerate() {
            let place = format!("{place}, task {i} ({})", name(&t.name));
            if t.entry as usize >= length {
                let problem = format!("it starts at {}, the code has {length} instructions", t.entry);
                self.add(&place, "P3", problem, "start it inside the code");
            }
            if let Trigger::Data(c) = t.trigger
                && self.color(c, &place)
            {
                uses.entry((c, false)).or_insert(place);
            }
        }
        if let Some(last) = block.code.last()
            && !matches!(last, Instr::Jump(_) | Instr::End | Instr::Halt)
        {
            let place = self.instr_place(r, b, length - 1);
            self.add(
                place,
                "M12",
                "the code goes on past its last instruction".into(),
                "finish it with end, halt or jump",
            );
        }
        self.code(r, b, at, &mut uses);
        if ok {
            let mut uses: Vec<_> = uses.into_iter().collect();
            uses.sort();
            for ((c, sends), what) in uses {
                self.colors[c as usize].cores.push((r, b, sends, what));
            }
        }
    }

    fn unique<'s>(&mut self, place: &str, what: &str, names: impl Iterator<Item = &'s String>) {
        let mut seen = HashSet::new();
        for n in names {
            if !seen.insert(n) {
                let problem = format!("two {what} are named {}", name(n));
                self.add(place, "P2", problem, "give each its own name");
                return;
            }
        }
    }

    fn memory(&mut self, r: usize, b: usize, place: &str) {
        let region = &self.program.regions[r];
        let block = &region.blocks[b];
        let sram = self.machine.pe.sram_bytes as u64;
        let mut by_address: Vec<&Buffer> = block.memory.iter().filter(|m| m.bytes > 0).collect();
        by_address.sort_by_key(|m| (m.address, m.bytes));
        for pair in by_address.windows(2) {
            if end(pair[0]) > pair[1].address as u64 {
                let problem = format!(
                    "buffers {} ({}..{}) and {} ({}..{}) overlap",
                    name(&pair[0].name),
                    pair[0].address,
                    end(pair[0]),
                    name(&pair[1].name),
                    pair[1].address,
                    end(pair[1])
                );
                self.add(place, "P5", problem, "place buffers side by side");
            }
        }
        let data = data_bytes(block);
        let each = self.machine.pe.instruction_bytes as u64;
        let code = block.code.len() as u64 * each;
        if data + code > sram {
            let (x, y) = (
                region.x as u64 + block.at.x as u64,
                region.y as u64 + block.at.y as u64,
            );
            let largest = block.memory.iter().max_by_key(|m| m.bytes);
            let problem = format!(
                "PE ({x}, {y}) needs {} bytes ({data} of data, {} instructions of {each}), it has {sram}",
                data + code,
                block.code.len()
            );
            let largest = match largest {
                Some(m) => format!(
                    " (its largest buffer is {} with {} bytes)",
                    name(&m.name),
                    m.bytes
                ),
                None => String::new(),
            };
            let help = format!(
                "spread the kernel over more PEs or stream its weights{largest}, or raise pe.sram_bytes by {}",
                data + code - sram
            );
            self.add(place, "P5", problem, help);
        }
    }

    fn code(&mut self, r: usize, b: usize, at: Option<&Lattice>, uses: &mut HashMap<(Color, bool), String>) {
        let block = &self.program.regions[r].blocks[b];
        let threads = self.machine.pe.threads;
        let descs = Descs::new(block);
        for (i, instr) in block.code.iter().enumerate() {
            if self.full() {
                return;
            }
            let mut wrong: Vec<(&'static str, String, String)> = Vec::new();
            let mut seen: Vec<(Color, bool)> = Vec::new();
            parts(instr, &mut |part| {
                let (rule, what, n, most) = match part {
                    Part::Scalar(r) => ("P3", "scalar register r", r as u64, SCALARS as u64),
                    Part::Val(Val::Reg(r)) => ("P3", "scalar register r", *r as u64, SCALARS as u64),
                    Part::Val(Val::Param(p)) => ("P3", "parameter ", *p as u64, block.params.len() as u64),
                    Part::Val(Val::Imm(_)) => return,
                    Part::Desc(d) => ("P3", "descriptor register d", d as u64, DESCRIPTORS as u64),
                    Part::Task(t) => ("P3", "task ", t as u64, block.tasks.len() as u64),
                    Part::Target(t) => ("P3", "the jump's target ", t as u64, block.code.len() as u64),
                    Part::Thread(t) if t == 0 || t as u32 >= threads => {
                        let help = match threads {
                            1 => "the machine has no microthreads: raise pe.threads".into(),
                            n => format!("the machine has the microthreads t1 to t{}", n - 1),
                        };
                        wrong.push(("M10", format!("microthread t{t} does not exist"), help));
                        return;
                    }
                    Part::Thread(_) => return,
                    Part::Color(c, sends) => {
                        seen.push((c, sends));
                        return;
                    }
                };
                if n >= most {
                    let help = match most {
                        0 => "there is none in this block".into(),
                        _ => format!("expected 0 to {}", most - 1),
                    };
                    wrong.push((rule, format!("{what}{n} does not exist"), help));
                }
            });
            self.operands(block, instr, &descs, at, &mut wrong);
            let place = |c: &Self| c.instr_place(r, b, i);
            for (rule, problem, help) in wrong {
                self.add(place(self), rule, problem, help);
            }
            for key in seen {
                if (key.0 as u32) < self.machine.router.colors {
                    uses.entry(key).or_insert_with(|| place(self));
                } else {
                    let place = place(self);
                    self.color(key.0, &place);
                }
            }
        }
    }

    /// Descriptors and vector operands of one instruction.
    fn operands(
        &mut self,
        block: &'a Block,
        instr: &'a Instr,
        descs: &Descs,
        at: Option<&Lattice>,
        wrong: &mut Vec<(&'static str, String, String)>,
    ) {
        let mut bad = |rule, problem: String, help: &str| wrong.push((rule, problem, help.to_string()));
        // The memory map's bytes are all that code may reach.
        let size = data_bytes(block) as i64;
        match instr {
            Instr::Desc(d, desc) => {
                let n = desc.shape.len();
                if !(1..=4).contains(&n) {
                    bad("M8", format!("it has {n} extents"), "a shape has 1 to 4 extents");
                }
                let extent = |v: &Val| match v {
                    Val::Imm(c) => !(0..=MAX_EXTENT).contains(c),
                    _ => false,
                };
                if let Some(Val::Imm(c)) = desc.shape.iter().find(|v| extent(v)) {
                    bad(
                        "M8",
                        format!("{c} is no extent"),
                        &format!("extents are 0 to {MAX_EXTENT}"),
                    );
                } else if let Place::Memory { base, strides, .. } = &desc.place {
                    if strides.len() != n {
                        bad(
                            "M8",
                            format!("it has {n} extents and {} strides", strides.len()),
                            "one stride an extent",
                        );
                    } else if !descs.moved[*d as usize]
                        && let Some((x, y, lo, hi)) =
                            self.reach(block, desc.ty, base, &desc.shape, strides, at)
                    {
                        let where_ = if at.is_some() {
                            format!(" at x {x}, y {y} of the region")
                        } else {
                            String::new()
                        };
                        let problem =
                            format!("it reaches bytes {lo}..{hi}{where_}, the buffers cover 0..{size}");
                        bad("M8", problem, "keep it inside a buffer");
                    }
                }
            }
            Instr::Base(d, _) | Instr::Advance(d, _) => {
                descs.is(*d, MEMORY, "descriptor", "a memory descriptor", &mut bad);
            }
            Instr::Load(w, _, Val::Imm(a), Val::Imm(b)) | Instr::Store(w, Val::Imm(a), Val::Imm(b), _) => {
                let bytes = if *w == Word::U16 { 2 } else { 4 };
                let first = a.saturating_add(*b);
                if first < 0 || first > size - bytes {
                    bad(
                        "M9",
                        format!(
                            "its {bytes} bytes at {first} are not in the 0..{size} that the buffers cover"
                        ),
                        "keep it inside a buffer",
                    );
                }
            }
            Instr::Vector(v) | Instr::Async(_, v, _) => match v {
                Vector::Map { op, dst, a, b, .. } => {
                    let unary = matches!(op, Op::Mov | Op::Exp | Op::Rsqrt | Op::Tanh);
                    if unary == b.is_some() {
                        let (found, asked) = if unary {
                            ("two sources", "one")
                        } else {
                            ("one source", "two")
                        };
                        bad(
                            "M8",
                            format!("it has {found}"),
                            &format!("this operation has {asked}"),
                        );
                    }
                    let (kinds, text) = match op {
                        Op::Mac => (MEMORY, "a memory descriptor"),
                        _ => (MEMORY | OUTPUT, "a memory or `out` descriptor"),
                    };
                    descs.is(*dst, kinds, "the destination", text, &mut bad);
                    for o in [Some(a), b.as_ref()].into_iter().flatten() {
                        if let Operand::Desc(d) = o {
                            descs.is(
                                *d,
                                MEMORY | INPUT,
                                "the source",
                                "a memory or `in` descriptor",
                                &mut bad,
                            );
                            descs.same_shape(*dst, *d, &mut bad);
                        }
                    }
                }
                Vector::Axpy {
                    y,
                    x,
                    list,
                    modulo,
                    divisor,
                    ..
                } => {
                    descs.is(*y, MEMORY, "the accumulator", "a memory descriptor", &mut bad);
                    descs.is(*x, MEMORY, "the operand", "a memory descriptor", &mut bad);
                    descs.same_shape(*y, *x, &mut bad);
                    for (what, v) in [("modulo", modulo), ("divisor", divisor)] {
                        let least = match (v, at) {
                            (Val::Imm(c), _) => (*c < 1).then(|| format!("its {what} is {c}")),
                            (Val::Param(p), Some(l)) => block.params.get(*p as usize).and_then(|p| {
                                let (x, y, v) = self.outside(&p.value, l, 1, i64::MAX)?;
                                Some(format!("its {what} is {v} at x {x}, y {y} of the region"))
                            }),
                            _ => None,
                        };
                        if let Some(problem) = least {
                            bad("M12", problem, &format!("a {what} is at least 1"));
                        }
                    }
                    if let List::Memory {
                        index,
                        value,
                        count,
                        ty,
                    } = list
                    {
                        for (name, base, bytes) in
                            [("indices", index, 2), ("values", value, ty.bytes() as i64)]
                        {
                            if let (Val::Imm(base), Val::Imm(count)) = (base, count)
                                && (*base < 0 || base.saturating_add(count.saturating_mul(bytes)) > size)
                            {
                                let problem = format!(
                                    "its {count} {name} at {base} are not in the 0..{size} that the buffers cover"
                                );
                                bad("M8", problem, "keep them inside a buffer");
                            }
                        }
                    }
                }
            },
            _ => {}
        }
    }

    /// A PE where a memory operand leaves the buffers, and the bytes it reaches there; `None` where there is none or registers decide.
    fn reach(
        &mut self,
        block: &'a Block,
        ty: Ty,
        base: &Val,
        shape: &[Val],
        strides: &[Val],
        at: Option<&Lattice>,
    ) -> Option<(u32, u32, i128, i128)> {
        let size = data_bytes(block) as i128;
        let value = |v: &Val, x: u32, y: u32| -> Option<i128> {
            match v {
                Val::Imm(c) => Some(*c as i128),
                Val::Reg(_) => None,
                Val::Param(p) => Some(block.params.get(*p as usize)?.value.at(x as i64, y as i64) as i128),
            }
        };
        let bytes = |x: u32, y: u32| -> Option<(i128, i128)> {
            let (mut lo, mut hi) = (0i128, 0i128);
            for (n, s) in shape.iter().zip(strides) {
                let n = value(n, x, y)?;
                let far = (n - 1).checked_mul(value(s, x, y)?)?;
                if n < 1 {
                    return None;
                }
                (lo, hi) = (lo.saturating_add(far.min(0)), hi.saturating_add(far.max(0)));
            }
            let (base, each) = (value(base, x, y)?, ty.bytes() as i128);
            let to = |e: i128| base.saturating_add(e.saturating_mul(each));
            Some((to(lo), to(hi.saturating_add(1))))
        };
        let outside = |b: &(i128, i128)| b.0 < 0 || b.1 > size;
        let by_place = [base]
            .into_iter()
            .chain(shape)
            .chain(strides)
            .any(|v| matches!(v, Val::Param(_)));
        let Some(l) = at.filter(|_| by_place) else {
            if by_place {
                return None;
            }
            let (x, y) = at.map_or((0, 0), |l| (l.x, l.y));
            return bytes(x, y).filter(outside).map(|(lo, hi)| (x, y, lo, hi));
        };
        // First by bounds over the whole lattice, then PE by PE where they leave it open.
        let mut bound = |v: &Val| -> Option<(i128, i128)> {
            match v {
                Val::Imm(c) => Some((*c as i128, *c as i128)),
                Val::Reg(_) => None,
                Val::Param(p) => {
                    let e = &block.params.get(*p as usize)?.value;
                    self.range(e, l).map(|(a, b)| (a as i128, b as i128))
                }
            }
        };
        let mut bounds = || -> Option<(i128, i128)> {
            let (mut lo, mut hi) = (0i128, 0i128);
            for (n, s) in shape.iter().zip(strides) {
                let most = bound(n)?.1.max(1) - 1;
                let s = bound(s)?;
                (lo, hi) = (
                    lo.saturating_add((most * s.0).min(0)),
                    hi.saturating_add((most * s.1).max(0)),
                );
            }
            let (base, each) = (bound(base)?, ty.bytes() as i128);
            Some((
                base.0.saturating_add(lo.saturating_mul(each)),
                base.1.saturating_add(hi.saturating_add(1).saturating_mul(each)),
            ))
        };
        if bounds().is_some_and(|b| !outside(&b)) || !self.afford(l) {
            return None;
        }
        l.places()
            .find_map(|(x, y)| bytes(x, y).filter(outside).map(|(lo, hi)| (x, y, lo, hi)))
    }
}

/// What a block's descriptor registers are set to.
struct Descs<'a> {
    /// Kinds, as bits.
    kinds: [u8; 256],
    /// The shape, where it is set once.
    shape: Vec<Option<&'a [Val]>>,
    /// Whether the base is moved anywhere.
    moved: [bool; 256],
}

impl<'a> Descs<'a> {
    fn new(block: &'a Block) -> Descs<'a> {
        let mut all = Descs {
            kinds: [0; 256],
            shape: vec![None; 256],
            moved: [false; 256],
        };
        for i in &block.code {
            match i {
                Instr::Desc(d, desc) => {
                    let d = *d as usize;
                    all.shape[d] = (all.kinds[d] == 0).then_some(&desc.shape[..]);
                    all.kinds[d] |= match desc.place {
                        Place::Memory { .. } => MEMORY,
                        Place::In(_) => INPUT,
                        Place::Out { .. } => OUTPUT,
                    };
                }
                Instr::Base(d, _) | Instr::Advance(d, _) => all.moved[*d as usize] = true,
                _ => {}
            }
        }
        all
    }

    fn is(
        &self,
        d: u8,
        kinds: u8,
        what: &str,
        expected: &str,
        bad: &mut impl FnMut(&'static str, String, &str),
    ) {
        let found = match self.kinds[d as usize] {
            0 => "never set in this block",
            k if k & kinds != 0 => return,
            MEMORY => "in memory",
            INPUT => "an input",
            OUTPUT => "an output",
            _ => "of other kinds",
        };
        if d < DESCRIPTORS {
            bad(
                "M8",
                format!("{what} d{d} is {found}"),
                &format!("set it to {expected}"),
            );
        }
    }

    fn same_shape(&self, a: u8, b: u8, bad: &mut impl FnMut(&'static str, String, &str)) {
        let (Some(p), Some(q)) = (self.shape[a as usize], self.shape[b as usize]) else {
            return;
        };
        // Missing outer extents count as 1.
        let at = |shape: &[Val], i: usize| shape.len().checked_sub(i + 1).map_or(Val::Imm(1), |i| shape[i]);
        let differ = |i| matches!((at(p, i), at(q, i)), (Val::Imm(p), Val::Imm(q)) if p != q);
        if (0..p.len().max(q.len())).any(differ) {
            bad(
                "M8",
                format!("d{a} and d{b} have different shapes"),
                "give all operands one shape",
            );
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

fn end(m: &Buffer) -> u64 {
    m.address as u64 + m.bytes as u64
}

/// Bytes up to the end of the highest buffer.
fn data_bytes(block: &Block) -> u64 {
    block.memory.iter().map(end).max().unwrap_or(0)
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
