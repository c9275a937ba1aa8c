//! A small assembler: builds one block of PE code with named buffers, parameters and labels.

use meshloom_simulator::Expr;
use meshloom_simulator::program::*;

/// Replaces `remove` instructions of a finished block from index `at` on by others. What led to one of those removed, or to the one in
/// whose place others come, leads behind the new ones.
pub fn splice(block: &mut Block, at: usize, remove: usize, insert: Vec<Instr>) {
    let (first, after, added) = (at as u32, (at + remove) as u32, insert.len() as u32);
    let place = |to: &mut u32| {
        *to = match *to {
            t if t < first => t,
            t if t < after => first + added,
            t => t - (after - first) + added,
        }
    };
    block.code.splice(at..at + remove, insert);
    for i in block
        .code
        .iter_mut()
        .enumerate()
        .filter(|(i, _)| !(at..at + added as usize).contains(i))
    {
        if let Instr::Jump(to) | Instr::Branch(_, _, _, to) = i.1 {
            place(to);
        }
    }
    block.labels.iter_mut().for_each(|(_, to)| place(to));
    block.tasks.iter_mut().for_each(|t| place(&mut t.entry));
}

/// A place in the code, possibly not reached yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A block under construction.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    params: Vec<Param>,
    memory: Vec<Buffer>,
    tasks: Vec<Task>,
    labels: Vec<(String, Option<u32>)>,
    code: Vec<Instr>,
    end: u32,
}

impl Assembler {
    /// An empty block.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// An empty block whose buffers begin at this address.
    pub fn from(address: u32) -> Assembler {
        Assembler {
            end: address,
            ..Assembler::default()
        }
    }

    /// A number that differs from PE to PE; a constant expression stays a constant.
    pub fn param(&mut self, name: &str, value: Expr) -> Val {
        if let Some(c) = value.constant() {
            return Val::Imm(c);
        }
        if let Some(i) = self.params.iter().position(|p| p.name == name) {
            assert_eq!(self.params[i].value, value, "parameter {name} has two values");
            return Val::Param(i as u16);
        }
        self.params.push(Param {
            name: name.into(),
            value,
        });
        Val::Param(self.params.len() as u16 - 1)
    }

    /// Reserves SRAM; its address is `phase` modulo 32, so that operands of one instruction can be kept in different banks (rule M9).
    pub fn buffer(&mut self, name: &str, bytes: u32, phase: u32) -> i64 {
        let address = self.end.next_multiple_of(32) + phase;
        let address = if address >= self.end + 32 {
            address - 32
        } else {
            address
        };
        self.memory.push(Buffer {
            name: name.into(),
            address,
            bytes,
        });
        self.end = address + bytes;
        address as i64
    }

    /// Names SRAM at a given address, where another program put something; other buffers do not move.
    pub fn fixed(&mut self, name: &str, address: u32, bytes: u32) {
        self.memory.push(Buffer {
            name: name.into(),
            address,
            bytes,
        });
    }

    /// SRAM bytes taken so far by buffers.
    pub fn bytes(&self) -> u32 {
        self.end
    }

    /// A new label, to be bound later.
    pub fn label(&mut self, name: &str) -> Label {
        let same = self
            .labels
            .iter()
            .filter(|(n, _)| n.split('.').next() == Some(name))
            .count();
        self.labels.push((
            if same == 0 {
                name.to_string()
            } else {
                format!("{name}.{same}")
            },
            None,
        ));
        Label(self.labels.len() - 1)
    }

    /// Binds a label to the next instruction.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0].1 = Some(self.code.len() as u32);
    }

    /// A label bound here.
    pub fn here(&mut self, name: &str) -> Label {
        let l = self.label(name);
        self.bind(l);
        l
    }

    /// Declares a task that begins at the next instruction; its number is returned.
    pub fn task(&mut self, name: &str, trigger: Trigger) -> u16 {
        self.tasks.push(Task {
            name: name.into(),
            trigger,
            blocked: false,
            entry: self.code.len() as u32,
        });
        self.tasks.len() as u16 - 1
    }

    /// Appends an instruction.
    pub fn emit(&mut self, instr: Instr) {
        self.code.push(instr);
    }

    /// Jump to a label.
    pub fn jump(&mut self, to: Label) {
        self.emit(Instr::Jump(to.0 as u32));
    }

    /// Branch to a label.
    pub fn branch(&mut self, cond: Cond, a: Val, b: Val, to: Label) {
        self.emit(Instr::Branch(cond, a, b, to.0 as u32));
    }

    /// Sets a memory descriptor; strides in elements.
    #[allow(clippy::too_many_arguments)] // the fields of a descriptor
    pub fn memory(&mut self, d: u8, ty: Ty, base: Val, shape: &[Val], strides: &[i64], wide: bool) {
        let strides = strides.iter().map(|s| Val::Imm(*s)).collect();
        self.emit(Instr::Desc(
            d,
            Descriptor {
                ty,
                shape: shape.to_vec(),
                place: Place::Memory { base, strides, wide },
            },
        ));
    }

    /// Sets a descriptor of arriving wavelets.
    pub fn input(&mut self, d: u8, color: Color, ty: Ty, shape: &[Val]) {
        self.emit(Instr::Desc(
            d,
            Descriptor {
                ty,
                shape: shape.to_vec(),
                place: Place::In(color),
            },
        ));
    }

    /// Sets a descriptor of wavelets to send; `flag` marks the last.
    pub fn output(&mut self, d: u8, color: Color, ty: Ty, shape: &[Val], flag: bool) {
        self.emit(Instr::Desc(
            d,
            Descriptor {
                ty,
                shape: shape.to_vec(),
                place: Place::Out { color, flag },
            },
        ));
    }

    /// Runs dst = op(a, b).
    pub fn map(&mut self, op: Op, dst: u8, a: Operand, b: Option<Operand>, count: Count) {
        self.emit(Instr::Vector(Vector::Map { op, dst, a, b, count }));
    }

    /// Hands dst = op(a, b) to a microthread.
    pub fn start(&mut self, thread: u8, op: Op, dst: u8, a: Operand, b: Option<Operand>, count: Count) {
        self.emit(Instr::Async(thread, Vector::Map { op, dst, a, b, count }, None));
    }

    /// Instructions so far.
    pub fn len(&self) -> usize {
        self.code.len()
    }

    /// Whether there is no instruction yet.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// The finished block. Labels that nothing jumps to are dropped.
    pub fn finish(mut self, at: Lattice) -> Block {
        let places: Vec<u32> = self
            .labels
            .iter()
            .map(|(n, at)| at.unwrap_or_else(|| panic!("label {n} was never bound")))
            .collect();
        let mut used = vec![false; places.len()];
        for i in &mut self.code {
            if let Instr::Jump(to) | Instr::Branch(_, _, _, to) = i {
                used[*to as usize] = true;
                *to = places[*to as usize];
            }
        }
        let mut labels: Vec<(String, u32)> = self
            .labels
            .into_iter()
            .zip(used)
            .filter(|(_, u)| *u)
            .map(|((n, at), _)| (n, at.unwrap_or(0)))
            .collect();
        labels.sort_by_key(|(_, at)| *at);
        Block {
            at,
            params: self.params,
            memory: self.memory,
            tasks: self.tasks,
            labels,
            code: self.code,
        }
    }
}
