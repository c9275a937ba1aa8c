//! The PE program (the ISA): stages that follow one another, each with regions of PEs, their routes and code, and the streams at the
//! wafer's edge.
//! `docs/machine.md` says what each part means; `text` gives the readable form; `verify` what is refused.

use crate::expr::Expr;
use crate::machine::Side;
use std::sync::Arc;

/// A colour: a virtual channel of the network, 0 to `router.colors - 1`.
pub type Color = u8;

/// All that the machine needs to run.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    /// Name of the model; has no effect.
    pub name: String,
    /// What is on the mesh, one after another (rule M16); at least one.
    pub stages: Vec<Stage>,
}

/// What is on the mesh together: rule M16 says what follows from one stage to the next.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Stage {
    /// Name; has no effect. Empty in a program of one stage, as a rule.
    pub name: String,
    /// Colours from the highest priority to the lowest (rule M6); colours not listed follow by number.
    pub priority: Vec<Color>,
    /// Rectangles of PEs, disjoint in their blocks.
    pub regions: Vec<Region>,
    /// What enters at the edge, in order within one channel.
    pub feeds: Vec<Feed>,
    /// What leaves at the edge.
    pub drains: Vec<Drain>,
}

/// A rectangle of the mesh that one kernel uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Kernel's name; has no effect.
    pub name: String,
    /// Left column.
    pub x: u32,
    /// Top row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Routes of colours through this region's routers.
    pub routes: Vec<Route>,
    /// Code of its PEs.
    pub blocks: Vec<Block>,
}

/// Every `dx`-th column and `dy`-th row of a rectangle, relative to the region's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lattice {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Number of columns.
    pub nx: u32,
    /// Number of rows.
    pub ny: u32,
    /// Column stride.
    pub dx: u32,
    /// Row stride.
    pub dy: u32,
}

impl Lattice {
    /// A full rectangle.
    pub fn rect(x: u32, y: u32, nx: u32, ny: u32) -> Lattice {
        Lattice {
            x,
            y,
            nx,
            ny,
            dx: 1,
            dy: 1,
        }
    }

    /// Its places (column, row) relative to the region, row by row.
    pub fn places(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let l = *self;
        (0..l.ny).flat_map(move |j| (0..l.nx).map(move |i| (l.x + i * l.dx, l.y + j * l.dy)))
    }
}

/// A port of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Row above.
    North,
    /// Column to the right.
    East,
    /// Row below.
    South,
    /// Column to the left.
    West,
    /// The PE's own core.
    Ramp,
}

impl Port {
    /// All five, in the order of their numbers.
    pub const ALL: [Port; 5] = [Port::North, Port::East, Port::South, Port::West, Port::Ramp];

    /// The port of the neighbour at which what leaves here arrives.
    pub fn opposite(self) -> Port {
        match self {
            Port::North => Port::South,
            Port::East => Port::West,
            Port::South => Port::North,
            Port::West => Port::East,
            Port::Ramp => Port::Ramp,
        }
    }
}

/// The route of one colour through the routers of a lattice (rules M4, M5, M7).
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The colour.
    pub color: Color,
    /// The graph edge or purpose that it carries; has no effect.
    pub stream: String,
    /// Where.
    pub at: Lattice,
    /// Switch positions, at least one. The router starts at the first whose hold is not 0, and after the last wraps around.
    pub positions: Vec<Position>,
    /// Filters, at most one an output.
    pub filters: Vec<Filter>,
}

/// One switch position: one input, one to five outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Where wavelets come from.
    pub input: Port,
    /// Where each goes, all in one cycle.
    pub outputs: Vec<Port>,
    /// Flagged wavelets that leave before the router moves on. A position with 0 is passed over. With one position it has no effect.
    pub hold: Expr,
}

/// Passes wavelets `first .. first + count` of every `period` that would leave by `output`; the others are dropped there.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// The output.
    pub output: Port,
    /// First wavelet passed.
    pub first: Expr,
    /// Number passed.
    pub count: Expr,
    /// Period; 0 passes everything.
    pub period: Expr,
}

/// Code for the PEs of a lattice.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Where.
    pub at: Lattice,
    /// Named numbers that differ from PE to PE.
    pub params: Vec<Param>,
    /// The PE's memory map; together with the code it must fit the SRAM.
    pub memory: Vec<Buffer>,
    /// Tasks; the index is the task's number and its priority.
    pub tasks: Vec<Task>,
    /// Names of places in `code`.
    pub labels: Vec<(String, u32)>,
    /// The instructions of all tasks.
    pub code: Vec<Instr>,
}

impl Block {
    /// Replaces the colours of all streams that the code takes from and sends to.
    pub fn recolor(&mut self, color: impl Fn(Color) -> Color) {
        for instr in &mut self.code {
            match instr {
                Instr::Desc(_, d) => match &mut d.place {
                    Place::In(c) | Place::Out { color: c, .. } => *c = color(*c),
                    Place::Memory { .. } => {}
                },
                Instr::Vector(Vector::Axpy { list, .. }) | Instr::Async(_, Vector::Axpy { list, .. }, _) => {
                    if let List::Fabric { color: c, .. } = list {
                        *c = color(*c);
                    }
                }
                _ => {}
            }
        }
        for task in &mut self.tasks {
            if let Trigger::Data(c) = &mut task.trigger {
                *c = color(*c);
            }
        }
    }
}

/// A named number that differs from PE to PE.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name, unique in the block.
    pub name: String,
    /// Its value.
    pub value: Expr,
}

/// A named range of SRAM. All SRAM is zero at cycle 0, and a later stage finds in it what the stages before left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name, unique in the block.
    pub name: String,
    /// First byte.
    pub address: u32,
    /// Bytes.
    pub bytes: u32,
}

/// A task of the main thread (rule M12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Name, unique in the block.
    pub name: String,
    /// What makes it ready.
    pub trigger: Trigger,
    /// Whether it starts blocked.
    pub blocked: bool,
    /// Index of its first instruction.
    pub entry: u32,
}

/// What makes a task ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Active at cycle 0, and again whenever activated.
    Start,
    /// Only when activated.
    Local,
    /// A wavelet of this colour at the ramp: taken at launch, payload to r0, control flag to r1.
    Data(Color),
}

/// A scalar operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Val {
    /// A constant.
    Imm(i64),
    /// A scalar register, 0 to 15.
    Reg(u8),
    /// The block's parameter of this index.
    Param(u16),
}

impl From<i64> for Val {
    fn from(c: i64) -> Val {
        Val::Imm(c)
    }
}

/// Element types in SRAM and on the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
}

impl Ty {
    /// Bits of an element.
    pub fn bits(self) -> u32 {
        match self {
            Ty::F32 => 32,
            Ty::F16 => 16,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        self.bits() / 8
    }
}

/// A vector operand's shape and place (rule M8). All operands of an instruction have the same shape; the last dimension is innermost,
/// and a step never crosses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Element type.
    pub ty: Ty,
    /// One to four extents.
    pub shape: Vec<Val>,
    /// Where the elements are.
    pub place: Place,
}

/// Where a vector operand's elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// SRAM: byte address of the first element, strides in elements, `wide` for accesses of the port's full width.
    Memory {
        /// Byte address of the first element.
        base: Val,
        /// A stride for each extent, in elements.
        strides: Vec<Val>,
        /// Full port width instead of 32 bits.
        wide: bool,
    },
    /// Arriving wavelets of a colour.
    In(Color),
    /// Wavelets to send; `flag` marks the last one.
    Out {
        /// The colour.
        color: Color,
        /// Whether the last wavelet carries the control flag.
        flag: bool,
    },
}

/// A vector instruction's operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A descriptor register, 0 to 43.
    Desc(u8),
    /// A constant.
    Imm(f32),
    /// A scalar register's bits as f32.
    Reg(u8),
}

/// Element-wise operations. `Mac` is dst = a * b + dst, fused; the others dst = op(a, b).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// a
    Mov,
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// dst + a * b
    Mac,
    /// IEEE 754-2019 maximum
    Max,
    /// IEEE 754-2019 minimum
    Min,
    /// e to the a
    Exp,
    /// a / b
    Div,
    /// 1 / sqrt(a)
    Rsqrt,
    /// hyperbolic tangent of a
    Tanh,
}

/// Under which class an instruction's operations are counted (`docs/report.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Count {
    /// Not arithmetic.
    None,
    /// Products with weights.
    Mac,
    /// Products of activations.
    MacAct,
    /// Additions that exist only because work was split.
    Reduce,
    /// All else.
    Other,
}

/// A vector instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Vector {
    /// dst = op(a, b), element by element.
    Map {
        /// The operation.
        op: Op,
        /// Destination: a memory or `Out` descriptor.
        dst: u8,
        /// First source.
        a: Operand,
        /// Second source, for the operations that have one.
        b: Option<Operand>,
        /// Accounting.
        count: Count,
    },
    /// Rule M12: for each (index, value) of `list`: y\[(index mod modulo) * y_step\] += value * x\[(index div divisor) * x_step\],
    /// over the shape that `y` and `x` share; steps in bytes.
    Axpy {
        /// Accumulators: a memory descriptor.
        y: u8,
        /// Operand: a memory descriptor.
        x: u8,
        /// The sparse elements.
        list: List,
        /// The index modulo this selects the accumulator; at least 1.
        modulo: Val,
        /// The index divided by this, rounded down, selects the operand; at least 1.
        divisor: Val,
        /// Bytes between accumulators.
        y_step: Val,
        /// Bytes between operands.
        x_step: Val,
        /// Accounting.
        count: Count,
    },
}

/// Where the sparse elements of an [`Vector::Axpy`] come from (rule M13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// Wavelets of a colour, up to and with the first flagged element.
    Fabric {
        /// The colour.
        color: Color,
        /// Type of the values.
        ty: Ty,
    },
    /// SRAM: `count` indices of 16 bits at `index` and as many values at `value`.
    Memory {
        /// Byte address of the indices.
        index: Val,
        /// Byte address of the values.
        value: Val,
        /// Elements.
        count: Val,
        /// Type of the values.
        ty: Ty,
    },
}

/// Comparison of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cond {
    /// a = b
    Eq,
    /// a != b
    Ne,
    /// a < b
    Lt,
    /// a >= b
    Ge,
}

/// Width of a scalar load or store; `U16` is zero-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// 16 bits, unsigned.
    U16,
    /// 32 bits.
    I32,
}

/// One instruction of the main thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Instr {
    /// dst = a
    Set(u8, Val),
    /// dst = a + b
    Add(u8, Val, Val),
    /// dst = a - b
    Sub(u8, Val, Val),
    /// dst = a * b
    Mul(u8, Val, Val),
    /// dst = SRAM at byte address a + b
    Load(Word, u8, Val, Val),
    /// SRAM at byte address a + b = the third
    Store(Word, Val, Val, Val),
    /// Continue at this index of the code.
    Jump(u32),
    /// Continue there if the condition holds.
    Branch(Cond, Val, Val, u32),
    /// Set a descriptor register.
    Desc(u8, Descriptor),
    /// Set a memory descriptor's base address.
    Base(u8, Val),
    /// Add bytes to a memory descriptor's base address.
    Advance(u8, Val),
    /// Run a vector instruction to its end.
    Vector(Vector),
    /// Hand a vector instruction to a microthread's queue (1 to `pe.threads - 1`), and activate a task when it is done.
    Async(u8, Vector, Option<u16>),
    /// Wait until a microthread has handled this many elements since cycle 0; without a number, until it is idle.
    Wait(u8, Option<Val>),
    /// Make a task ready (it remembers one activation).
    Activate(u16),
    /// A blocked task does not start.
    Block(u16),
    /// Undo `Block`.
    Unblock(u16),
    /// The task ends; the next ready one starts.
    End,
    /// The main thread ends for good.
    Halt,
}

/// Wavelets that enter through one channel, one after another, on one colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// Name of what enters (a graph input, or weights); has no effect.
    pub name: String,
    /// Border.
    pub side: Side,
    /// Row of the channel.
    pub row: u32,
    /// The colour.
    pub color: Color,
    /// Feeds of epoch e + 1 start when all of epoch e have entered.
    pub epoch: u32,
    /// The wavelets.
    pub data: FeedData,
}

/// Where a feed's wavelets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedData {
    /// From the host: inputs and weights.
    Host(Arc<Vec<Wavelet>>),
    /// What left by drains of earlier stages, kept in memory outside: these spans one after another, bits as they left.
    Drained(Vec<Span>),
    /// Elements of what left by drains of earlier stages, put together anew.
    Cut(Cut),
}

/// Elements of tensors that memory outside keeps, packed anew: rows of pieces, each row a number of wavelets of its own. No wavelet is flagged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Type of the elements.
    pub ty: Ty,
    /// Elements a wavelet, where they left and where they enter; the last one of a row may carry fewer.
    pub per: u32,
    /// Rows.
    pub rows: u64,
    /// What each row consists of, one after another.
    pub pieces: Vec<Piece>,
}

/// A piece of the rows of a [`Cut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Elements that left by a drain. What a wavelet did not carry is 0.
    Kept {
        /// The stage of the drain, from 0.
        stage: u32,
        /// The drain of that stage, from 0.
        drain: u32,
        /// The first row's first wavelet.
        first: u64,
        /// Elements of that wavelet, and of those after it, that come before the piece.
        skip: u64,
        /// Elements.
        count: u64,
        /// Wavelets from row to row.
        step: u64,
    },
    /// The same element so many times: what surrounds a tensor.
    Fill {
        /// Its bits.
        bits: u32,
        /// Elements.
        count: u64,
    },
}

impl Piece {
    /// Elements a row.
    pub fn count(&self) -> u64 {
        match self {
            Piece::Kept { count, .. } | Piece::Fill { count, .. } => *count,
        }
    }
}

impl Cut {
    /// Wavelets in it.
    pub fn wavelets(&self) -> u64 {
        let row = self.pieces.iter().fold(0u64, |n, p| n.saturating_add(p.count()));
        row.div_ceil(u64::from(self.per.max(1))).saturating_mul(self.rows)
    }
}

/// Wavelets `first .. first + count` of a drain of an earlier stage, in the order in which they left. Their flags are those that this
/// span sets, not those with which they left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The stage of the drain, from 0.
    pub stage: u32,
    /// The drain of that stage, from 0.
    pub drain: u32,
    /// The first wavelet.
    pub first: u64,
    /// Wavelets.
    pub count: u64,
    /// Each wavelet that completes so many of the span is flagged: the length of its blocks. 0 flags none; `count` flags the last.
    pub flag_every: u64,
}

impl FeedData {
    /// Wavelets in it.
    pub fn len(&self) -> u64 {
        match self {
            FeedData::Host(data) => data.len() as u64,
            FeedData::Drained(spans) => spans.iter().fold(0, |n, s| n.saturating_add(s.count)),
            FeedData::Cut(cut) => cut.wavelets(),
        }
    }

    /// Whether nothing enters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The wavelets that the host gives, if it does.
    pub fn host(&self) -> Option<&Arc<Vec<Wavelet>>> {
        match self {
            FeedData::Host(data) => Some(data),
            FeedData::Drained(_) | FeedData::Cut(_) => None,
        }
    }
}

impl From<Vec<Wavelet>> for FeedData {
    fn from(data: Vec<Wavelet>) -> FeedData {
        FeedData::Host(Arc::new(data))
    }
}

/// What leaves through one channel on one colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Name of what leaves (a graph output); has no effect.
    pub name: String,
    /// Border.
    pub side: Side,
    /// Row of the channel.
    pub row: u32,
    /// The colour.
    pub color: Color,
    /// Wavelets that will leave; more or fewer is an error.
    pub wavelets: u64,
}

/// A wavelet's payload: up to 64 bits, lowest element first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Wavelet {
    /// The payload.
    pub bits: u64,
    /// Elements in it; kept beside the payload to check that sender and receiver agree, not a field of the machine's.
    pub elements: u8,
    /// Control flag.
    pub flag: bool,
}

impl Program {
    /// A program of one stage.
    pub fn single(name: impl Into<String>, stage: Stage) -> Program {
        Program {
            name: name.into(),
            stages: vec![stage],
        }
    }

    /// The regions of all stages, in order.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.stages.iter().flat_map(|s| &s.regions)
    }

    /// The place of a stage's drain among the drains of all stages, which is that of its list in an outcome.
    pub fn drain_index(&self, stage: usize, drain: usize) -> usize {
        self.stages[..stage].iter().map(|s| s.drains.len()).sum::<usize>() + drain
    }
}

impl Stage {
    /// The colours of `0..colors` from the highest priority to the lowest.
    pub fn priority_order(&self, colors: u32) -> Vec<Color> {
        let mut order: Vec<Color> = self
            .priority
            .iter()
            .copied()
            .filter(|c| (*c as u32) < colors)
            .collect();
        order.extend((0..colors as Color).filter(|c| !self.priority.contains(c)));
        order
    }
}
