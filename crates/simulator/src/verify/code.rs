//! The code: blocks with their tasks and memory, and each instruction with its operands.

use super::{Check, DESCRIPTORS, MAX_EXTENT, SCALARS};
use crate::program::*;
use crate::text::name;
use std::collections::{HashMap, HashSet};

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

/// Kinds of operands, as bits.
const MEMORY: u8 = 1;
const INPUT: u8 = 2;
const OUTPUT: u8 = 4;

impl<'a> Check<'a> {
    pub(super) fn block(&mut self, r: usize, b: usize, ok: bool) {
        let block: &'a Block = &self.stage.regions[r].blocks[b];
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
        let region = &self.stage.regions[r];
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
        let block = &self.stage.regions[r].blocks[b];
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

fn end(m: &Buffer) -> u64 {
    m.address as u64 + m.bytes as u64
}

/// Bytes up to the end of the highest buffer.
fn data_bytes(block: &Block) -> u64 {
    block.memory.iter().map(end).max().unwrap_or(0)
}
