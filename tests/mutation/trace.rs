//! What the code of one PE does, followed instruction by instruction: where it goes, which bytes its vector instructions touch, and how
//! it uses its weights. Nothing here knows a kernel. The numbers that arrive are not known, except weights and streams given whole; code
//! whose way depends on others can't be followed.

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
    /// Of everything that decides which numbers leave the PE: operations, the elements they work on, one after another.
    pub steps: u64,
    /// How each word of weights was read.
    pub reads: Vec<BTreeSet<Read>>,
    /// The bytes touched through the descriptor that an instruction set, by its index.
    pub touched: BTreeMap<usize, BTreeSet<i64>>,
    /// Vector instructions, by index, each of whose results always started from a zero of its own.
    pub from_zero: BTreeMap<usize, bool>,
    /// Wavelets' elements sent, by colour.
    pub sent: BTreeMap<Color, u64>,
    /// Bytes that arrived and were not read.
    pub unread: bool,
    /// Lists of sparse elements that were worked through, and those with elements.
    pub lists: (usize, usize),
}

impl Trace {
    /// Whether all its lists of sparse elements are empty.
    pub fn idle(&self) -> bool {
        self.lists.0 > 0 && self.lists.1 == 0
    }
}

/// What is known of what arrives: the words of weights, and streams that come whole.
pub struct Arrivals<'a> {
    pub load: Color,
    pub weights: &'a [u32],
    pub streams: &'a BTreeMap<Color, Vec<u32>>,
}

/// A byte of SRAM.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Its value, unless it came of numbers that are not known.
    value: Option<u8>,
    /// The word of weights that it is of, and the byte in it.
    weight: Option<(u32, u8)>,
    /// It arrived, and has not been read yet.
    fresh: bool,
}

/// A descriptor register.
#[derive(Clone)]
struct Vectors {
    /// The instruction that set it.
    set: usize,
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
            all = all.iter().flat_map(|at| (0..*n).map(move |i| at + i * step)).collect();
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
    hash: DefaultHasher,
    trace: Trace,
}

/// Why code was not followed to its end.
type Lost = String;

/// Follows the code of the PE at a place of a block.
pub fn follow(
    block: &Block,
    place: (u32, u32),
    known: &Arrivals,
    machine: &Machine,
) -> Result<Trace, Lost> {
    let end = block.memory.iter().map(|b| b.address + b.bytes).max().unwrap_or(0);
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
                ..Cell::default()
            };
            end.min(machine.pe.sram_bytes) as usize
        ],
        hash: DefaultHasher::new(),
        trace: Trace {
            reads: vec![BTreeSet::new(); known.weights.len()],
            ..Trace::default()
        },
    };
    core.run()?;
    core.trace.unread |= core.memory.iter().any(|c| c.fresh);
    core.trace.steps = core.hash.finish();
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
                    let of = self.resolve(here, of)?;
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
                    (*thread, count.map(|c| self.value(c))).hash(&mut self.hash);
                }
                Instr::Halt => return Ok(()),
                other => return Err(format!("{other:?} is not followed")),
            }
        }
        Err("endless".into())
    }

    fn resolve(&self, set: usize, d: &Descriptor) -> Result<Vectors, Lost> {
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
            set,
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
        self.descriptors.get(&d).cloned().ok_or(format!("d{d} is not set"))
    }

    /// The bytes from an address on, which is a multiple of their number.
    fn bytes(&mut self, address: i64, n: usize) -> Result<&mut [Cell], Lost> {
        let at = usize::try_from(address).map_err(|_| "a negative address")?;
        if !at.is_multiple_of(n) || at + n > self.memory.len() {
            return Err(format!("address {address}"));
        }
        Ok(&mut self.memory[at..at + n])
    }

    /// Reads bytes, as what is told for weights by the byte at which they begin in their word; the value, if it is known.
    fn read(&mut self, address: i64, n: usize, kind: fn(u8) -> Read) -> Result<Option<u32>, Lost> {
        let cells = self.bytes(address, n)?;
        cells.iter_mut().for_each(|c| c.fresh = false);
        let weight = cells[0].weight;
        let value = cells.iter().enumerate().try_fold(0, |all, (i, c)| {
            c.value.map(|v| all | (v as u32) << (8 * i))
        });
        if let Some((word, byte)) = weight {
            self.trace.reads[word as usize].insert(kind(byte / 2));
        }
        Ok(value)
    }

    fn element(&mut self, address: i64, ty: Ty) -> Result<Option<u32>, Lost> {
        match ty {
            Ty::F32 => self.read(address, 4, |_| Read::Float),
            Ty::F16 => self.read(address, 2, Read::Half),
        }
    }

    fn number(&mut self, address: i64) -> Result<u32, Lost> {
        let value = self.read(address, 2, Read::Number)?;
        value.ok_or("a number that is not known".into())
    }

    fn word(&mut self, address: i64) -> Result<u32, Lost> {
        let value = self.read(address, 4, |_| Read::Float)?;
        value.ok_or("a number that is not known".into())
    }

    fn touch(&mut self, d: &Vectors, address: i64) {
        let bytes = address..address + d.ty.bytes() as i64;
        self.trace.touched.entry(d.set).or_default().extend(bytes);
    }

    fn vector(&mut self, here: usize, thread: u8, v: &Vector) -> Result<(), Lost> {
        match v {
            Vector::Map { op, dst, a, b, .. } => {
                let dst = self.descriptor(*dst)?;
                if dst.len() == 0 {
                    return Ok(());
                }
                (thread, *op).hash(&mut self.hash);
                self.map(here, *op, &dst, *a, *b)
            }
            Vector::Axpy {
                y,
                x,
                list: List::Memory { index, value, count, ty },
                modulo,
                divisor,
                y_step,
                x_step,
                ..
            } => {
                let (y, x) = (self.descriptor(*y)?, self.descriptor(*x)?);
                let [index, value, count, modulo, divisor, y_step, x_step] =
                    [index, value, count, modulo, divisor, y_step, x_step].map(|v| self.value(*v));
                self.trace.lists.0 += 1;
                self.trace.lists.1 += (count > 0) as usize;
                if modulo < 1 || divisor < 1 || y.shape != x.shape {
                    return Err("an axpy that fails".into());
                }
                let (Where::Memory(base_y, _), Where::Memory(base_x, _)) = (&y.place, &x.place) else {
                    return Err("an axpy of streams".into());
                };
                let (to, from) = (y.offsets(), x.offsets());
                for i in 0..count {
                    let n = self.number(index + 2 * i)? as i64;
                    let weight = self.element(value + i * ty.bytes() as i64, *ty)?;
                    (thread, *ty, weight).hash(&mut self.hash);
                    let (to_y, from_x) = (base_y + n % modulo * y_step, base_x + n / divisor * x_step);
                    for (a, b) in to.iter().zip(&from) {
                        let (a, b) = (to_y + a, from_x + b);
                        (y.ty, a, x.ty, b).hash(&mut self.hash);
                        self.element(b, x.ty)?;
                        self.element(a, y.ty)?;
                        self.write(a, y.ty, None, false)?;
                        self.touch(&y, a);
                        self.touch(&x, b);
                    }
                }
                Ok(())
            }
            other => Err(format!("{other:?} is not followed")),
        }
    }

    fn write(&mut self, address: i64, ty: Ty, value: Option<u32>, fresh: bool) -> Result<(), Lost> {
        let cells = self.bytes(address, ty.bytes() as usize)?;
        let mut lost = false;
        for (i, c) in cells.iter_mut().enumerate() {
            lost |= fresh && c.fresh;
            *c = Cell {
                value: value.map(|v| (v >> (8 * i)) as u8),
                weight: None,
                fresh,
            };
        }
        self.trace.unread |= lost;
        Ok(())
    }

    /// The elements of a source: for each its value, if that is known. Also whether they are weights arriving.
    fn source(&mut self, o: Operand, shape: &[i64]) -> Result<Vec<Option<u32>>, Lost> {
        let n = shape.iter().product::<i64>() as usize;
        let d = match o {
            Operand::Desc(d) => self.descriptor(d)?,
            Operand::Imm(v) => {
                v.to_bits().hash(&mut self.hash);
                return Ok(vec![Some(v.to_bits()); n]);
            }
            Operand::Reg(r) => {
                let bits = self.registers[r as usize] as u32;
                bits.hash(&mut self.hash);
                return Ok(vec![Some(bits); n]);
            }
        };
        if d.shape != shape {
            return Err("shapes differ".into());
        }
        d.ty.hash(&mut self.hash);
        match &d.place {
            Where::Memory(base, _) => {
                let mut all = Vec::with_capacity(n);
                for offset in d.offsets() {
                    let at = base + offset;
                    at.hash(&mut self.hash);
                    self.touch(&d, at);
                    let value = self.element(at, d.ty)?;
                    all.push(value.filter(|_| d.ty == Ty::F32));
                }
                Ok(all)
            }
            Where::In(color) => {
                (*color, n).hash(&mut self.hash);
                let stream = match *color == self.known.load {
                    true => Some(self.known.weights),
                    false => self.known.streams.get(color).map(|s| &s[..]),
                };
                let first = self.taken.entry(*color).or_default();
                let from = *first;
                *first += n;
                match stream {
                    Some(s) => {
                        let all = s.get(from..from + n).ok_or("more than arrives")?;
                        Ok(all.iter().copied().map(Some).collect())
                    }
                    None => Ok(vec![None; n]),
                }
            }
            Where::Out(..) => Err("a source that sends".into()),
        }
    }

    fn map(&mut self, here: usize, op: Op, dst: &Vectors, a: Operand, b: Option<Operand>) -> Result<(), Lost> {
        let stream = |o: Operand| match o {
            Operand::Desc(d) => match self.descriptors.get(&d).map(|d| &d.place) {
                Some(Where::In(color)) => Some(*color),
                _ => None,
            },
            _ => None,
        };
        let from = stream(a);
        let first = from.map_or(0, |c| self.taken.get(&c).copied().unwrap_or(0));
        let a = self.source(a, &dst.shape)?;
        let b = match b {
            Some(b) => Some(self.source(b, &dst.shape)?),
            None => None,
        };
        dst.ty.hash(&mut self.hash);
        match &dst.place {
            Where::In(_) => return Err("a destination that receives".into()),
            Where::Out(color, flag) => {
                (*color, *flag, dst.len()).hash(&mut self.hash);
                *self.trace.sent.entry(*color).or_default() += dst.len() as u64;
            }
            Where::Memory(base, _) => {
                let weights = op == Op::Mov && from == Some(self.known.load);
                let mut own = BTreeSet::new();
                let mut zeros = true;
                for (i, offset) in dst.offsets().into_iter().enumerate() {
                    let at = base + offset;
                    at.hash(&mut self.hash);
                    self.touch(dst, at);
                    if op == Op::Mac {
                        zeros &= self.element(at, dst.ty)? == Some(0) && own.insert(at);
                    }
                    let value = match (op, a[i], &b) {
                        (Op::Mov, v, _) => v,
                        (Op::Add, Some(v), Some(b)) => {
                            b[i].map(|w| (f32::from_bits(v) + f32::from_bits(w)).to_bits())
                        }
                        _ => None,
                    };
                    let known = value.filter(|v| dst.ty == Ty::F32 || *v == 0);
                    self.write(at, dst.ty, known, from.is_some() && !weights)?;
                    if weights {
                        let cells = self.bytes(at, dst.ty.bytes() as usize)?;
                        for (byte, c) in cells.iter_mut().enumerate() {
                            c.weight = Some(((first + i) as u32, byte as u8));
                        }
                    }
                }
                if op == Op::Mac {
                    let before = self.trace.from_zero.entry(here).or_insert(true);
                    *before &= zeros;
                }
            }
        }
        Ok(())
    }
}
