//! What the code of one PE does, followed instruction by instruction: which elements its vector instructions work on, of what the numbers
//! are made that it sends, and how it uses its weights. Nothing here knows a kernel. The numbers that arrive are names, except weights
//! and streams given whole; code whose way depends on others can't be followed. Microthreads do at once what they are given.

use meshloom_simulator::Machine;
use meshloom_simulator::program::*;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// Instructions after which code counts as endless.
const ENDLESS: usize = 200_000;

/// What a word, or half of one, is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Read {
    Float,
    /// An f16: the lower or the upper half.
    Half(u8),
    /// A count or index: the lower or the upper half.
    Number(u8),
}

/// What the code of one PE did.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Of all that its vector instructions do: operations and the elements that they work on, one after another.
    pub steps: u64,
    /// Of what it sends: how each number is made of those that arrive and of weights, one after another, and the flags.
    pub sends: u64,
    /// Of what it waits for.
    pub waits: u64,
    /// How each word of weights was read.
    pub reads: Vec<BTreeSet<Read>>,
    /// Wavelets' elements sent, by colour.
    pub sent: BTreeMap<Color, u64>,
    /// The most elements of any list that an instruction, by its index, went through.
    pub lists: BTreeMap<usize, i64>,
}

/// What is known of what arrives: the words of weights, and streams that come whole.
pub struct Arrivals<'a> {
    pub load: Color,
    pub weights: &'a [u32],
    pub streams: &'a BTreeMap<Color, Vec<u32>>,
}

/// A number: its bits, if they are known, and how it is made.
#[derive(Clone, Copy)]
struct Number {
    bits: Option<u32>,
    made: u64,
}

fn hash(of: impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    of.hash(&mut h);
    h.finish()
}

impl Number {
    fn known(bits: u32, ty: Ty) -> Number {
        Number {
            bits: Some(bits),
            made: if bits == 0 { 0 } else { hash((bits, ty)) },
        }
    }

    fn made(of: impl Hash) -> Number {
        Number {
            bits: None,
            made: hash(of),
        }
    }

    fn zero(self) -> bool {
        self.bits == Some(0)
    }

    /// The same number as an element of another type.
    fn convert(self, from: Ty, to: Ty) -> Number {
        if from == to || self.zero() {
            self
        } else {
            Number::made((self.made, to))
        }
    }
}

/// A byte of SRAM.
#[derive(Clone, Copy)]
struct Cell {
    /// Its value, if it is known.
    value: Option<u8>,
    /// The number that it is a part of; which byte of how many.
    made: u64,
    part: (u8, u8),
    /// The word of weights that it is of, and the byte in it.
    weight: Option<(u32, u8)>,
}

/// A descriptor register.
#[derive(Clone)]
struct Vectors {
    ty: Ty,
    shape: Vec<i64>,
    place: Where,
}

#[derive(Clone)]
enum Where {
    Memory(i64, Vec<i64>),
    In(Color),
    Out(Color, bool),
}

impl Vectors {
    fn len(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Byte offsets of the elements from the base.
    fn offsets(&self) -> Vec<i64> {
        let Where::Memory(_, strides) = &self.place else {
            return vec![0; self.len() as usize];
        };
        let mut all = vec![0];
        for (n, stride) in self.shape.iter().zip(strides) {
            let step = stride * self.ty.bytes() as i64;
            all = all
                .iter()
                .flat_map(|at| (0..*n).map(move |i| at + i * step))
                .collect();
        }
        all
    }
}

struct Core<'a> {
    place: (i64, i64),
    block: &'a Block,
    known: &'a Arrivals<'a>,
    /// Words taken of each stream that is known.
    taken: BTreeMap<Color, usize>,
    registers: [i64; 16],
    descriptors: BTreeMap<u8, Vectors>,
    memory: Vec<Cell>,
    steps: DefaultHasher,
    sends: DefaultHasher,
    waits: DefaultHasher,
    trace: Trace,
}

/// Why code was not followed to its end.
type Lost = String;

/// Follows the code of the PE at a place of a block.
pub fn follow(block: &Block, place: (u32, u32), known: &Arrivals, machine: &Machine) -> Result<Trace, Lost> {
    let end = block
        .memory
        .iter()
        .map(|b| b.address + b.bytes)
        .max()
        .unwrap_or(0);
    let mut core = Core {
        place: (place.0 as i64, place.1 as i64),
        block,
        known,
        taken: BTreeMap::new(),
        registers: [0; 16],
        descriptors: BTreeMap::new(),
        memory: vec![
            Cell {
                value: Some(0),
                made: 0,
                part: (0, 1),
                weight: None,
            };
            end.min(machine.pe.sram_bytes) as usize
        ],
        steps: DefaultHasher::new(),
        sends: DefaultHasher::new(),
        waits: DefaultHasher::new(),
        trace: Trace {
            reads: vec![BTreeSet::new(); known.weights.len()],
            ..Trace::default()
        },
    };
    core.run()?;
    // what is not taken stays in the way of what follows
    core.taken.hash(&mut core.sends);
    core.trace.steps = core.steps.finish();
    core.trace.sends = core.sends.finish();
    core.trace.waits = core.waits.finish();
    Ok(core.trace)
}

impl Core<'_> {
    fn value(&self, v: Val) -> i64 {
        match v {
            Val::Imm(n) => n,
            Val::Reg(r) => self.registers[r as usize],
            Val::Param(p) => self.block.params[p as usize].value.at(self.place.0, self.place.1),
        }
    }

    fn set(&mut self, r: u8, value: i64) {
        self.registers[r as usize] = value as i32 as i64;
    }

    fn run(&mut self) -> Result<(), Lost> {
        let [task] = &self.block.tasks[..] else {
            return Err("several tasks".into());
        };
        let mut at = task.entry as usize;
        for _ in 0..ENDLESS {
            let Some(instr) = self.block.code.get(at) else {
                return Err("the code ends".into());
            };
            let here = at;
            at += 1;
            match instr {
                Instr::Set(r, a) => self.set(*r, self.value(*a)),
                Instr::Add(r, a, b) => self.set(*r, self.value(*a) + self.value(*b)),
                Instr::Sub(r, a, b) => self.set(*r, self.value(*a) - self.value(*b)),
                Instr::Mul(r, a, b) => self.set(*r, self.value(*a).wrapping_mul(self.value(*b))),
                Instr::Load(word, r, a, b) => {
                    let address = self.value(*a) + self.value(*b);
                    let value = match word {
                        Word::U16 => self.number(address)? as i64,
                        Word::I32 => self.word(address)? as i32 as i64,
                    };
                    self.set(*r, value);
                }
                Instr::Jump(to) => at = *to as usize,
                Instr::Branch(cond, a, b, to) => {
                    let (a, b) = (self.value(*a), self.value(*b));
                    let holds = match cond {
                        Cond::Eq => a == b,
                        Cond::Ne => a != b,
                        Cond::Lt => a < b,
                        Cond::Ge => a >= b,
                    };
                    if holds {
                        at = *to as usize;
                    }
                }
                Instr::Desc(d, of) => {
                    let of = self.resolve(of)?;
                    self.descriptors.insert(*d, of);
                }
                Instr::Base(d, v) => {
                    let base = self.value(*v);
                    *self.base(*d)? = base;
                }
                Instr::Advance(d, v) => {
                    let by = self.value(*v);
                    *self.base(*d)? += by;
                }
                Instr::Vector(v) => self.vector(here, 0, v)?,
                Instr::Async(thread, v, None) => self.vector(here, *thread, v)?,
                Instr::Wait(thread, count) => {
                    (*thread, count.map(|c| self.value(c))).hash(&mut self.waits);
                }
                Instr::Halt => return Ok(()),
                other => return Err(format!("{other:?} is not followed")),
            }
        }
        Err("endless".into())
    }

    fn resolve(&self, d: &Descriptor) -> Result<Vectors, Lost> {
        let shape: Vec<i64> = d.shape.iter().map(|n| self.value(*n)).collect();
        if shape.iter().any(|n| !(0..=100_000).contains(n)) {
            return Err(format!("extents {shape:?}"));
        }
        let place = match &d.place {
            Place::Memory { base, strides, .. } => Where::Memory(
                self.value(*base),
                strides.iter().map(|s| self.value(*s)).collect(),
            ),
            Place::In(color) => Where::In(*color),
            Place::Out { color, flag } => Where::Out(*color, *flag),
        };
        Ok(Vectors {
            ty: d.ty,
            shape,
            place,
        })
    }

    fn base(&mut self, d: u8) -> Result<&mut i64, Lost> {
        match self.descriptors.get_mut(&d) {
            Some(Vectors {
                place: Where::Memory(base, _),
                ..
            }) => Ok(base),
            _ => Err(format!("d{d} is not in memory")),
        }
    }

    fn descriptor(&self, d: u8) -> Result<Vectors, Lost> {
        self.descriptors
            .get(&d)
            .cloned()
            .ok_or(format!("d{d} is not set"))
    }

    /// The bytes from an address on.
    fn bytes(&mut self, address: i64, n: usize) -> Result<&mut [Cell], Lost> {
        let at = usize::try_from(address).map_err(|_| "a negative address")?;
        if at + n > self.memory.len() {
            return Err(format!("address {address}"));
        }
        Ok(&mut self.memory[at..at + n])
    }

    /// Reads an element; `kind` is what is told for weights, by the half of the word at which it begins.
    fn read(&mut self, address: i64, ty: Ty, kind: fn(u8) -> Read) -> Result<Number, Lost> {
        let n = ty.bytes() as usize;
        let cells = self.bytes(address, n)?;
        let weight = cells[0].weight;
        let bits = cells
            .iter()
            .enumerate()
            .try_fold(0, |all, (i, c)| c.value.map(|v| all | (v as u32) << (8 * i)));
        let whole = |(i, c): (usize, &Cell)| c.made == cells[0].made && c.part == (i as u8, n as u8);
        let number = match bits {
            Some(bits) => Number::known(bits, ty),
            None if cells.iter().enumerate().all(whole) => Number {
                bits: None,
                made: cells[0].made,
            },
            None => {
                let parts: Vec<_> = cells.iter().map(|c| (c.made, c.part, c.value)).collect();
                Number::made(parts)
            }
        };
        if let Some((word, byte)) = weight {
            self.trace.reads[word as usize].insert(kind(byte / 2));
        }
        Ok(number)
    }

    fn element(&mut self, address: i64, ty: Ty) -> Result<Number, Lost> {
        match ty {
            Ty::F32 => self.read(address, ty, |_| Read::Float),
            Ty::F16 => self.read(address, ty, Read::Half),
        }
    }

    /// An unsigned number of 16 bits.
    fn number(&mut self, address: i64) -> Result<u32, Lost> {
        let number = self.read(address, Ty::F16, Read::Number)?;
        number.bits.ok_or("a number that is not known".into())
    }

    fn word(&mut self, address: i64) -> Result<u32, Lost> {
        let number = self.read(address, Ty::F32, |_| Read::Float)?;
        number.bits.ok_or("a number that is not known".into())
    }

    fn write(&mut self, address: i64, ty: Ty, number: Number) -> Result<(), Lost> {
        let n = ty.bytes() as u8;
        let cells = self.bytes(address, n as usize)?;
        for (i, c) in (0..n).zip(cells) {
            *c = Cell {
                value: number.bits.map(|v| (v >> (8 * i)) as u8),
                made: number.made,
                part: (i, n),
                weight: None,
            };
        }
        Ok(())
    }

    fn vector(&mut self, here: usize, thread: u8, v: &Vector) -> Result<(), Lost> {
        match v {
            Vector::Map { op, dst, a, b, .. } => {
                let dst = self.descriptor(*dst)?;
                if dst.len() == 0 {
                    return Ok(());
                }
                (thread, *op).hash(&mut self.steps);
                self.map(*op, &dst, *a, *b)
            }
            Vector::Axpy {
                y,
                x,
                list:
                    List::Memory {
                        index,
                        value,
                        count,
                        ty,
                    },
                modulo,
                divisor,
                y_step,
                x_step,
                ..
            } => {
                let (y, x) = (self.descriptor(*y)?, self.descriptor(*x)?);
                let [index, value, count, modulo, divisor, y_step, x_step] =
                    [index, value, count, modulo, divisor, y_step, x_step].map(|v| self.value(*v));
                if modulo < 1 || divisor < 1 || count < 0 || y.shape != x.shape {
                    return Err("an axpy that fails".into());
                }
                let most = self.trace.lists.entry(here).or_default();
                *most = count.max(*most);
                let (Where::Memory(base_y, _), Where::Memory(base_x, _)) = (&y.place, &x.place) else {
                    return Err("an axpy of streams".into());
                };
                let (to, from) = (y.offsets(), x.offsets());
                for i in 0..count {
                    let n = self.number(index + 2 * i)? as i64;
                    let weight = self.element(value + i * ty.bytes() as i64, *ty)?;
                    (thread, *ty, weight.made).hash(&mut self.steps);
                    let (to_y, from_x) = (base_y + n % modulo * y_step, base_x + n / divisor * x_step);
                    for (a, b) in to.iter().zip(&from) {
                        let (a, b) = (to_y + a, from_x + b);
                        (y.ty, a, x.ty, b).hash(&mut self.steps);
                        let (x, before) = (self.element(b, x.ty)?, self.element(a, y.ty)?);
                        let after = result(Op::Mac, y.ty, weight, Some(x), before);
                        self.write(a, y.ty, after)?;
                    }
                }
                Ok(())
            }
            other => Err(format!("{other:?} is not followed")),
        }
    }

    /// The elements of a source, and their type.
    fn source(&mut self, o: Operand, shape: &[i64]) -> Result<(Ty, Vec<Number>), Lost> {
        let n = shape.iter().product::<i64>() as usize;
        let constant = |bits: u32| (Ty::F32, vec![Number::known(bits, Ty::F32); n]);
        let d = match o {
            Operand::Desc(d) => self.descriptor(d)?,
            Operand::Imm(v) => {
                v.to_bits().hash(&mut self.steps);
                return Ok(constant(v.to_bits()));
            }
            Operand::Reg(r) => {
                let bits = self.registers[r as usize] as u32;
                bits.hash(&mut self.steps);
                return Ok(constant(bits));
            }
        };
        if d.shape != shape {
            return Err("shapes differ".into());
        }
        d.ty.hash(&mut self.steps);
        let mut all = Vec::with_capacity(n);
        match &d.place {
            Where::Memory(base, _) => {
                for offset in d.offsets() {
                    let at = base + offset;
                    at.hash(&mut self.steps);
                    all.push(self.element(at, d.ty)?);
                }
            }
            Where::In(color) => {
                (*color, n).hash(&mut self.steps);
                let stream = match *color == self.known.load {
                    true => Some(self.known.weights),
                    false => self.known.streams.get(color).map(|s| &s[..]),
                };
                let first = self.taken.entry(*color).or_default();
                let from = *first;
                *first += n;
                match stream.filter(|_| d.ty == Ty::F32) {
                    Some(s) => {
                        let words = s.get(from..from + n).ok_or("more than arrives")?;
                        all.extend(words.iter().map(|w| Number::known(*w, Ty::F32)));
                    }
                    None => all.extend((from..from + n).map(|i| Number::made((*color, i, d.ty)))),
                }
            }
            Where::Out(..) => return Err("a source that sends".into()),
        }
        Ok((d.ty, all))
    }

    /// The first word of weights that an instruction takes in, if it does.
    fn loads(&self, op: Op, a: Operand) -> Option<usize> {
        let (Op::Mov, Operand::Desc(d)) = (op, a) else {
            return None;
        };
        let load = self.known.load;
        let arrives = matches!(self.descriptors.get(&d)?.place, Where::In(color) if color == load);
        arrives.then(|| self.taken.get(&load).copied().unwrap_or(0))
    }

    fn map(&mut self, op: Op, dst: &Vectors, a: Operand, b: Option<Operand>) -> Result<(), Lost> {
        let weights = self.loads(op, a);
        let (a_ty, a) = self.source(a, &dst.shape)?;
        let b = match b {
            Some(b) => Some(self.source(b, &dst.shape)?.1),
            None => None,
        };
        let of = |i: usize, before: Number| match op {
            Op::Mov => a[i].convert(a_ty, dst.ty),
            _ => result(op, dst.ty, a[i], b.as_ref().map(|b| b[i]), before),
        };
        dst.ty.hash(&mut self.steps);
        match &dst.place {
            Where::In(_) => return Err("a destination that receives".into()),
            Where::Out(color, flag) => {
                (*color, *flag, dst.len()).hash(&mut self.steps);
                (*color, *flag, dst.len(), dst.ty).hash(&mut self.sends);
                for i in 0..a.len() {
                    of(i, Number::known(0, dst.ty)).made.hash(&mut self.sends);
                }
                *self.trace.sent.entry(*color).or_default() += dst.len() as u64;
            }
            Where::Memory(base, _) => {
                for (i, offset) in dst.offsets().into_iter().enumerate() {
                    let at = base + offset;
                    at.hash(&mut self.steps);
                    let before = match op {
                        Op::Mac => self.element(at, dst.ty)?,
                        _ => Number::known(0, dst.ty),
                    };
                    self.write(at, dst.ty, of(i, before))?;
                    if let Some(first) = weights {
                        let cells = self.bytes(at, dst.ty.bytes() as usize)?;
                        for (byte, c) in cells.iter_mut().enumerate() {
                            c.weight = Some(((first + i) as u32, byte as u8));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// What an operation other than `Mov` makes. Adding 0 changes nothing but the sign of a 0.
fn result(op: Op, ty: Ty, a: Number, b: Option<Number>, before: Number) -> Number {
    let bits = |n: Option<Number>| n.and_then(|n| n.bits).map(f32::from_bits);
    match (op, bits(Some(a)), bits(b)) {
        (Op::Add, Some(x), Some(y)) if ty == Ty::F32 => Number::known((x + y).to_bits(), ty),
        (Op::Mac, ..) if a.zero() || b.is_some_and(Number::zero) => before,
        (Op::Mac, ..) if before.zero() => result(Op::Mul, ty, a, b, before),
        (Op::Mac, ..) => Number::made((op, ty, a.made, b.map(|b| b.made), before.made)),
        _ => Number::made((op, ty, a.made, b.map(|b| b.made))),
    }
}
