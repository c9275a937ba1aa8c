//! Writes a program as text.

use super::{INLINE_ENTRIES, INLINE_WAVELETS, feed_hash, like_register, plain, region_tables};
use crate::expr::{Axes, Expr, Table};
use crate::machine::Side;
use crate::program::*;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

/// Longest route that stays on one line.
const LINE: usize = 100;

pub(super) fn program(p: &Program) -> String {
    let mut out = format!("program {}\n", name(&p.name));
    let mut tables = Tables::default();
    let mut hashes = HashMap::new();
    for s in &p.stages {
        // one stage needs no line of its own
        if p.stages.len() > 1 || !s.name.is_empty() {
            writeln!(out, "\nstage {}", name(&s.name)).unwrap();
        }
        stage(&mut out, &mut tables, &mut hashes, s);
    }
    out
}

fn stage<'a>(
    out: &mut String,
    tables: &mut Tables<'a>,
    hashes: &mut HashMap<*const Vec<Wavelet>, u64>,
    p: &'a Stage,
) {
    if !p.priority.is_empty() {
        out.push_str("priority");
        for c in &p.priority {
            write!(out, " c{c}").unwrap();
        }
        out.push('\n');
    }
    for r in &p.regions {
        region(out, tables, r);
    }
    if !p.feeds.is_empty() {
        out.push('\n');
    }
    for f in &p.feeds {
        write!(
            out,
            "feed {} {} row {} c{} epoch {}",
            name(&f.name),
            side(f.side),
            f.row,
            f.color,
            f.epoch
        )
        .unwrap();
        let data = match &f.data {
            FeedData::Host(data) => data,
            FeedData::Drained(spans) => {
                drained(out, spans);
                continue;
            }
            FeedData::Cut(c) => {
                cut(out, c);
                continue;
            }
        };
        if data.len() <= INLINE_WAVELETS {
            out.push_str(" = [");
            separated(out, data.iter(), |out, w| {
                write!(out, "{:x}", w.bits).unwrap();
                if w.elements != 1 {
                    write!(out, "/{}", w.elements).unwrap();
                }
                if w.flag {
                    out.push('!');
                }
            });
            out.push_str("]\n");
        } else {
            let hash = *hashes.entry(Arc::as_ptr(data)).or_insert_with(|| feed_hash(data));
            writeln!(out, ": {} wavelets #{hash:016x}", data.len()).unwrap();
        }
    }
    if !p.drains.is_empty() {
        out.push('\n');
    }
    for d in &p.drains {
        let (n, s) = (name(&d.name), side(d.side));
        writeln!(
            out,
            "drain {n} {s} row {} c{}: {} wavelets",
            d.row, d.color, d.wavelets
        )
        .unwrap();
    }
}

/// What earlier stages drained: `drained [16 of stage 0 drain 1 from 4 flag 8, ...]`.
fn drained(out: &mut String, spans: &[Span]) {
    out.push_str(" drained [");
    for (i, s) in spans.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        let Span {
            stage,
            drain,
            first,
            count,
            flag_every,
        } = s;
        write!(out, "{count} of stage {stage} drain {drain}").unwrap();
        if *first != 0 {
            write!(out, " from {first}").unwrap();
        }
        if *flag_every != 0 {
            write!(out, " flag {flag_every}").unwrap();
        }
    }
    out.push_str("]\n");
}

/// What is cut anew of what earlier stages drained: `drained f16 by 2 rows 8 [16 of stage 0 drain 1 from 4 skip 1 step 9, 7 fill fc00]`.
fn cut(out: &mut String, c: &Cut) {
    write!(out, " drained {} by {} rows {} [", ty(c.ty), c.per, c.rows).unwrap();
    for (i, piece) in c.pieces.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        match piece {
            Piece::Fill { bits, count } => write!(out, "{count} fill {bits:x}").unwrap(),
            Piece::Kept {
                stage,
                drain,
                first,
                skip,
                count,
                step,
            } => {
                write!(out, "{count} of stage {stage} drain {drain}").unwrap();
                for (word, n) in [("from", first), ("skip", skip), ("step", step)] {
                    if *n != 0 {
                        write!(out, " {word} {n}").unwrap();
                    }
                }
            }
        }
    }
    out.push_str("]\n");
}

fn region<'a>(out: &mut String, tables: &mut Tables<'a>, r: &'a Region) {
    let n = name(&r.name);
    writeln!(
        out,
        "\nregion {n} at {}, {} size {} x {}",
        r.x, r.y, r.width, r.height
    )
    .unwrap();
    region_tables(r, &mut |t| {
        if let Some(reference) = tables.intern(t) {
            write!(out, "table {reference} by {}", axes(t.axes)).unwrap();
            if t.axes == Axes::XY || t.width != 0 {
                write!(out, " width {}", t.width).unwrap();
            }
            if t.values.len() <= INLINE_ENTRIES {
                out.push_str(" = [");
                separated(out, t.values.iter(), |out, v| write!(out, "{v}").unwrap());
                out.push_str("]\n");
            } else {
                writeln!(out, ": {} entries #{:016x}", t.values.len(), t.hash()).unwrap();
            }
        }
    });
    for route_ in &r.routes {
        route(out, tables, route_);
    }
    for b in &r.blocks {
        block(out, tables, b);
    }
}

fn route(out: &mut String, tables: &Tables, r: &Route) {
    let head = format!("route c{} {} {}:", r.color, quoted(&r.stream), lattice(&r.at));
    let mut parts = Vec::new();
    for p in &r.positions {
        let mut s = format!("{} ->", port(p.input));
        for o in &p.outputs {
            write!(s, " {}", port(*o)).unwrap();
        }
        if p.outputs.is_empty() {
            s.push_str(" none");
        }
        if p.hold != Expr::Const(1) {
            s.push_str(" hold ");
            expr(&mut s, tables, &p.hold, 0);
        }
        parts.push(s);
    }
    if parts.is_empty() {
        parts.push("none".into());
    }
    for f in &r.filters {
        let mut s = format!("filter {} pass ", port(f.output));
        expr(&mut s, tables, &f.count, 0);
        s.push_str(" of ");
        expr(&mut s, tables, &f.period, 0);
        s.push_str(" from ");
        expr(&mut s, tables, &f.first, 0);
        parts.push(s);
    }
    out.push_str(&head);
    let long = head.len() + parts.iter().map(|p| p.len() + 2).sum::<usize>() > LINE;
    let between = if long && parts.len() > 1 { "\n    " } else { " " };
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push(';');
        }
        out.push_str(between);
        out.push_str(part);
    }
    out.push('\n');
}

fn block(out: &mut String, tables: &Tables, b: &Block) {
    writeln!(out, "block {}", lattice(&b.at)).unwrap();
    let names = Names::new(b);
    for p in &b.params {
        write!(out, "  param {} = ", name(&p.name)).unwrap();
        expr(out, tables, &p.value, 0);
        out.push('\n');
    }
    for m in &b.memory {
        writeln!(out, "  memory {} @{} {} bytes", name(&m.name), m.address, m.bytes).unwrap();
    }
    for t in &b.tasks {
        write!(out, "  task {} ", name(&t.name)).unwrap();
        match t.trigger {
            Trigger::Start => out.push_str("start"),
            Trigger::Local => out.push_str("local"),
            Trigger::Data(c) => write!(out, "data c{c}").unwrap(),
        }
        if t.blocked {
            out.push_str(" blocked");
        }
        out.push_str(" -> ");
        names.target(out, t.entry);
        out.push('\n');
    }
    if !names.in_place {
        for (label, at) in &b.labels {
            writeln!(out, "  label {} = {at}", name(label)).unwrap();
        }
    }
    let mut targets: Vec<u32> = b.code.iter().filter_map(jump_target).collect();
    targets.extend(b.tasks.iter().map(|t| t.entry));
    targets.retain(|t| !names.at.contains_key(t));
    targets.sort_unstable();
    targets.dedup();
    let mut targets = targets.into_iter().peekable();
    let mut labels = if names.in_place { &b.labels[..] } else { &[] }.iter().peekable();
    for i in 0..=b.code.len() {
        while let Some((label, _)) = labels.next_if(|l| l.1 as usize == i) {
            writeln!(out, "  {}:", name(label)).unwrap();
        }
        if targets.next_if(|t| *t as usize == i).is_some() {
            writeln!(out, "  @{i}:").unwrap();
        }
        if let Some(instr) = b.code.get(i) {
            out.push_str("    ");
            names.instr(out, instr);
            out.push('\n');
        }
    }
}

fn jump_target(i: &Instr) -> Option<u32> {
    match i {
        Instr::Jump(t) | Instr::Branch(_, _, _, t) => Some(*t),
        _ => None,
    }
}

/// One instruction of a block as text, with the block's names; empty where there is none.
pub fn instruction_in(block: &Block, index: usize) -> String {
    let mut out = String::new();
    if let Some(i) = block.code.get(index) {
        Names::new(block).instr(&mut out, i);
    }
    out
}

/// An instruction as text without the names of a block: parameters, tasks and targets by number.
pub fn instruction(instr: &Instr) -> String {
    let block = Block {
        at: Lattice::rect(0, 0, 1, 1),
        params: vec![],
        memory: vec![],
        tasks: vec![],
        labels: vec![],
        code: vec![],
    };
    let mut out = String::new();
    Names::new(&block).instr(&mut out, instr);
    out
}

/// A lattice as text, ends exclusive: `0..15 x 0..30 by 2`.
pub fn lattice(l: &Lattice) -> String {
    format!("{} x {}", span(l.x, l.nx, l.dx), span(l.y, l.ny, l.dy))
}

/// One axis of a lattice as text.
pub(crate) fn span(first: u32, n: u32, d: u32) -> String {
    match (n, d) {
        (_, 0) => format!("{first} times {n} by 0"),
        (0, _) => format!("{first}..{first}{}", by(d)),
        (1, 1) => first.to_string(),
        _ => format!(
            "{first}..{}{}",
            first as u64 + (n as u64 - 1) * d as u64 + 1,
            by(d)
        ),
    }
}

fn by(d: u32) -> String {
    if d == 1 { String::new() } else { format!(" by {d}") }
}

/// How a block's parameters, tasks, labels and buffers are written: by name where that is unique, else by number.
struct Names<'a> {
    block: &'a Block,
    params: HashMap<&'a str, u32>,
    tasks: HashMap<&'a str, u32>,
    buffers: HashMap<&'a str, u32>,
    /// The first uniquely named label of each place.
    at: HashMap<u32, &'a str>,
    /// Whether the labels are in the order of the code, so that they can be written in it.
    in_place: bool,
}

impl<'a> Names<'a> {
    fn new(block: &'a Block) -> Names<'a> {
        fn count<'a>(names: impl Iterator<Item = &'a String>) -> HashMap<&'a str, u32> {
            let mut all = HashMap::new();
            for n in names {
                *all.entry(n.as_str()).or_insert(0) += 1;
            }
            all
        }
        let labels = count(block.labels.iter().map(|l| &l.0));
        let mut at = HashMap::new();
        for (n, i) in &block.labels {
            if labels[n.as_str()] == 1 {
                at.entry(*i).or_insert(n.as_str());
            }
        }
        Names {
            block,
            params: count(block.params.iter().map(|p| &p.name)),
            tasks: count(block.tasks.iter().map(|t| &t.name)),
            buffers: count(block.memory.iter().map(|m| &m.name)),
            at,
            in_place: block.labels.is_sorted_by_key(|l| l.1)
                && block
                    .labels
                    .last()
                    .is_none_or(|l| l.1 as usize <= block.code.len()),
        }
    }

    fn target(&self, out: &mut String, index: u32) {
        match self.at.get(&index) {
            Some(label) => out.push_str(&name(label)),
            None => write!(out, "@{index}").unwrap(),
        }
    }

    fn task(&self, out: &mut String, index: u16) {
        match self.block.tasks.get(index as usize) {
            Some(t) if self.tasks[t.name.as_str()] == 1 => out.push_str(&name(&t.name)),
            _ => write!(out, "task {index}").unwrap(),
        }
    }

    fn val(&self, out: &mut String, v: &Val) {
        match v {
            Val::Imm(c) => write!(out, "{c}").unwrap(),
            Val::Reg(r) => write!(out, "r{r}").unwrap(),
            Val::Param(p) => match self.block.params.get(*p as usize) {
                Some(p) if self.params[p.name.as_str()] == 1 => write!(out, "${}", name(&p.name)).unwrap(),
                _ => write!(out, "${p}").unwrap(),
            },
        }
    }

    /// A byte address: where it lies in a buffer, by the buffer's name.
    fn address(&self, out: &mut String, v: &Val) {
        out.push('@');
        let Val::Imm(c) = v else { return self.val(out, v) };
        let inside = |m: &&Buffer| {
            let offset = c.wrapping_sub(m.address as i64);
            (offset == 0 || (offset > 0 && offset < m.bytes as i64)) && self.buffers[m.name.as_str()] == 1
        };
        match self.block.memory.iter().find(inside) {
            None => write!(out, "{c}").unwrap(),
            Some(m) => {
                out.push_str(&if like_register(&m.name) {
                    quoted(&m.name)
                } else {
                    name(&m.name)
                });
                if *c != m.address as i64 {
                    write!(out, "+{}", c - m.address as i64).unwrap();
                }
            }
        }
    }

    fn vals(&self, out: &mut String, vals: &[Val]) {
        out.push('[');
        separated(out, vals.iter(), |out, v| self.val(out, v));
        out.push(']');
    }

    /// `before a middle b after`
    fn pair(&self, out: &mut String, before: &str, a: &Val, middle: &str, b: &Val) {
        out.push_str(before);
        self.val(out, a);
        out.push_str(middle);
        self.val(out, b);
    }

    fn instr(&self, out: &mut String, instr: &Instr) {
        match instr {
            Instr::Set(r, v) => {
                write!(out, "set r{r} = ").unwrap();
                self.val(out, v);
            }
            Instr::Add(r, a, b) => self.pair(out, &format!("add r{r} = "), a, " + ", b),
            Instr::Sub(r, a, b) => self.pair(out, &format!("sub r{r} = "), a, " - ", b),
            Instr::Mul(r, a, b) => self.pair(out, &format!("mul r{r} = "), a, " * ", b),
            Instr::Load(w, r, a, b) => {
                self.pair(out, &format!("load.{} r{r} = [", word(*w)), a, " + ", b);
                out.push(']');
            }
            Instr::Store(w, a, b, v) => {
                self.pair(out, &format!("store.{} [", word(*w)), a, " + ", b);
                out.push_str("] = ");
                self.val(out, v);
            }
            Instr::Jump(t) => {
                out.push_str("jump ");
                self.target(out, *t);
            }
            Instr::Branch(c, a, b, t) => {
                let cond = match c {
                    Cond::Eq => " == ",
                    Cond::Ne => " != ",
                    Cond::Lt => " < ",
                    Cond::Ge => " >= ",
                };
                self.pair(out, "branch ", a, cond, b);
                out.push(' ');
                self.target(out, *t);
            }
            Instr::Desc(d, desc) => self.desc(out, *d, desc),
            Instr::Base(d, v) => {
                write!(out, "base d{d} = ").unwrap();
                self.address(out, v);
            }
            Instr::Advance(d, v) => {
                write!(out, "advance d{d} += ").unwrap();
                self.val(out, v);
            }
            Instr::Vector(v) => self.vector(out, v),
            Instr::Async(t, v, then) => {
                write!(out, "async t{t} ").unwrap();
                self.vector(out, v);
                if let Some(task) = then {
                    out.push_str(" then ");
                    self.task(out, *task);
                }
            }
            Instr::Wait(t, None) => write!(out, "wait t{t}").unwrap(),
            Instr::Wait(t, Some(n)) => {
                write!(out, "wait t{t} >= ").unwrap();
                self.val(out, n);
            }
            Instr::Activate(t) => {
                out.push_str("activate ");
                self.task(out, *t);
            }
            Instr::Block(t) => {
                out.push_str("block ");
                self.task(out, *t);
            }
            Instr::Unblock(t) => {
                out.push_str("unblock ");
                self.task(out, *t);
            }
            Instr::End => out.push_str("end"),
            Instr::Halt => out.push_str("halt"),
        }
    }

    fn desc(&self, out: &mut String, d: u8, desc: &Descriptor) {
        write!(out, "desc d{d} = ").unwrap();
        let ty = ty(desc.ty);
        match &desc.place {
            Place::Memory { base, strides, wide } => {
                write!(out, "mem {ty} ").unwrap();
                self.address(out, base);
                out.push(' ');
                self.vals(out, &desc.shape);
                out.push_str(" by ");
                self.vals(out, strides);
                if *wide {
                    out.push_str(" wide");
                }
            }
            Place::In(c) => {
                write!(out, "in c{c} {ty} ").unwrap();
                self.vals(out, &desc.shape);
            }
            Place::Out { color, flag } => {
                write!(out, "out c{color} {ty} ").unwrap();
                self.vals(out, &desc.shape);
                if *flag {
                    out.push_str(" flag");
                }
            }
        }
    }

    fn vector(&self, out: &mut String, v: &Vector) {
        let count = match v {
            Vector::Map { op, dst, a, b, count } => {
                let (mnemonic, separator) = op_form(*op);
                let assign = if *op == Op::Mac { "+=" } else { "=" };
                write!(out, "{mnemonic} d{dst} {assign} ").unwrap();
                operand(out, a);
                if let Some(b) = b {
                    write!(out, "{}{separator} ", if separator == "," { "" } else { " " }).unwrap();
                    operand(out, b);
                }
                count
            }
            Vector::Axpy {
                y,
                x,
                list,
                modulo,
                divisor,
                y_step,
                x_step,
                count,
            } => {
                write!(out, "axpy d{y} += d{x} * list ").unwrap();
                match list {
                    List::Fabric { color, ty: t } => write!(out, "c{color} {}", ty(*t)).unwrap(),
                    List::Memory {
                        index,
                        value,
                        count,
                        ty: t,
                    } => {
                        write!(out, "mem {} index ", ty(*t)).unwrap();
                        self.address(out, index);
                        out.push_str(" value ");
                        self.address(out, value);
                        out.push_str(" count ");
                        self.val(out, count);
                    }
                }
                self.pair(out, " modulo ", modulo, " divisor ", divisor);
                self.pair(out, " y_step ", y_step, " x_step ", x_step);
                count
            }
        };
        out.push_str(match count {
            Count::None => "",
            Count::Mac => " #mac",
            Count::MacAct => " #mac_act",
            Count::Reduce => " #reduce",
            Count::Other => " #other",
        });
    }
}

fn operand(out: &mut String, o: &Operand) {
    match o {
        Operand::Desc(d) => write!(out, "d{d}").unwrap(),
        Operand::Reg(r) => write!(out, "r{r}").unwrap(),
        Operand::Imm(f) if f.is_nan() && f.to_bits() == 0x7fc0_0000 => out.push_str("nan"),
        Operand::Imm(f) if f.is_nan() => write!(out, "nan#{:08x}", f.to_bits()).unwrap(),
        Operand::Imm(f) => write!(out, "{f:?}").unwrap(),
    }
}

/// Mnemonic, and what stands between two sources.
pub(super) fn op_form(op: Op) -> (&'static str, &'static str) {
    match op {
        Op::Mov => ("mov", ","),
        Op::Add => ("add", "+"),
        Op::Sub => ("sub", "-"),
        Op::Mul => ("mul", "*"),
        Op::Mac => ("mac", "*"),
        Op::Max => ("max", ","),
        Op::Min => ("min", ","),
        Op::Exp => ("exp", ","),
        Op::Div => ("div", "/"),
        Op::Rsqrt => ("rsqrt", ","),
        Op::Tanh => ("tanh", ","),
    }
}

/// The tables met so far, and how each is referred to.
#[derive(Default)]
struct Tables<'a> {
    by_place: HashMap<*const Table, usize>,
    by_name: HashMap<&'a str, Vec<usize>>,
    all: Vec<(&'a Table, String)>,
}

impl<'a> Tables<'a> {
    /// Its reference, if it was not met before.
    fn intern(&mut self, t: &'a Arc<Table>) -> Option<&str> {
        if self.by_place.contains_key(&Arc::as_ptr(t)) {
            return None;
        }
        let same = self.by_name.entry(&t.name).or_default();
        if let Some(i) = same.iter().find(|i| *self.all[**i].0 == **t) {
            self.by_place.insert(Arc::as_ptr(t), *i);
            return None;
        }
        let mut reference = match t.name.as_str() {
            "x" | "y" | "min" | "max" => quoted(&t.name),
            n => name(n),
        };
        if !same.is_empty() {
            write!(reference, "~{}", same.len() + 1).unwrap();
        }
        self.by_place.insert(Arc::as_ptr(t), self.all.len());
        same.push(self.all.len());
        self.all.push((t, reference));
        self.all.last().map(|t| t.1.as_str())
    }
}

/// `level`: 0 where a sum may stand, 1 where a product may, 2 where neither.
fn expr(out: &mut String, tables: &Tables, e: &Expr, level: u8) {
    let own = match e {
        Expr::Add(..) | Expr::Sub(..) => 0,
        Expr::Mul(..) | Expr::Div(..) | Expr::Mod(..) => 1,
        _ => 2,
    };
    if own < level {
        out.push('(');
        expr(out, tables, e, 0);
        out.push(')');
        return;
    }
    let mut two = |a: &Expr, sign: &str, b: &Expr| {
        expr(out, tables, a, own);
        out.push_str(sign);
        expr(out, tables, b, own + 1);
    };
    match e {
        Expr::Const(c) => write!(out, "{c}").unwrap(),
        Expr::X => out.push('x'),
        Expr::Y => out.push('y'),
        Expr::Add(a, b) => two(a, " + ", b),
        Expr::Sub(a, b) => two(a, " - ", b),
        Expr::Mul(a, b) => two(a, " * ", b),
        Expr::Div(a, n) => two(a, " / ", &Expr::Const(*n)),
        Expr::Mod(a, n) => two(a, " % ", &Expr::Const(*n)),
        Expr::Min(a, b) | Expr::Max(a, b) => {
            out.push_str(if matches!(e, Expr::Min(..)) {
                "min("
            } else {
                "max("
            });
            expr(out, tables, a, 0);
            out.push_str(", ");
            expr(out, tables, b, 0);
            out.push(')');
        }
        Expr::Table(t) => match tables.by_place.get(&Arc::as_ptr(t)) {
            Some(i) => out.push_str(&tables.all[*i].1),
            None => out.push_str(&name(&t.name)),
        },
    }
}

fn separated<T>(out: &mut String, items: impl Iterator<Item = T>, mut one: impl FnMut(&mut String, T)) {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(' ');
        }
        one(out, item);
    }
}

/// `stage 1 (second)`
pub(crate) fn stage_name(program: &Program, number: usize) -> String {
    match &program.stages[number].name[..] {
        "" => format!("stage {number}"),
        n => format!("stage {number} ({})", name(n)),
    }
}

pub(crate) fn name(n: &str) -> String {
    if plain(n) { n.into() } else { quoted(n) }
}

fn quoted(n: &str) -> String {
    let mut out = String::with_capacity(n.len() + 2);
    out.push('"');
    for c in n.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => write!(out, "\\u{{{:x}}}", c as u32).unwrap(),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(crate) fn port(p: Port) -> &'static str {
    match p {
        Port::North => "north",
        Port::East => "east",
        Port::South => "south",
        Port::West => "west",
        Port::Ramp => "ramp",
    }
}

pub(crate) fn side(s: Side) -> &'static str {
    match s {
        Side::West => "west",
        Side::East => "east",
    }
}

fn ty(t: Ty) -> &'static str {
    match t {
        Ty::F32 => "f32",
        Ty::F16 => "f16",
    }
}

fn word(w: Word) -> &'static str {
    match w {
        Word::U16 => "u16",
        Word::I32 => "i32",
    }
}

fn axes(a: Axes) -> &'static str {
    match a {
        Axes::X => "x",
        Axes::Y => "y",
        Axes::XY => "xy",
    }
}
