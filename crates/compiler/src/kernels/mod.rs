//! The kernels: one file an operator. A kernel says how many columns of PEs it can use, what each width costs and needs, and emits the
//! code and inner routes of its rectangle. Adding an operator is adding a file here and a line in [`of`].
//!
//! Every kernel takes its inputs from lanes that come from the west and sends its output on lanes to the east: row r of the mesh carries
//! the features of lane r (see [`Layout`]). Inside a kernel's rectangle the colours of [`colors`] are its own.

mod binary;
mod depthwise;
mod flatten;
mod mix;
mod pool;
mod relu;
mod softmax;

use crate::assemble::Assembler;
use crate::plan::*;
use meshloom_simulator::program::*;
use meshloom_simulator::{Axes, Expr, Machine};

/// Colours that every kernel may use inside its own rectangle, and the one that brings weights. Lanes use the others.
pub mod colors {
    use meshloom_simulator::program::Color;
    /// Weights, from the edge to their PEs.
    pub const LOAD: Color = 0;
    /// Partial sums along a row, by parity of the column.
    pub const REDUCE: [Color; 2] = [1, 2];
    /// Exchange down a column.
    pub const SOUTH: Color = 3;
    /// Exchange up a column.
    pub const NORTH: Color = 4;
    /// First colour of lanes.
    pub const LANES: Color = 5;
}

/// What a kernel sees of its surroundings.
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Element type of activations and weights.
    pub ty: Ty,
    /// Tensors that come one after another.
    pub items: usize,
    /// Layouts of the inputs as this kernel sees them.
    pub inputs: Vec<Layout>,
    /// Lanes' colours of the inputs.
    pub input_colors: Vec<Color>,
    /// Items of each input that may have to wait for the other one (reconvergent paths).
    pub slack: Vec<usize>,
    /// Layout of the output.
    pub output: Layout,
    /// Lanes' colour of the output.
    pub output_color: Color,
}

/// What a width of a kernel costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Expected cycles an item of the busiest PE.
    pub cycles: u64,
    /// SRAM bytes of the fullest PE, code included.
    pub bytes: u64,
    /// Column and row of that PE in the kernel's rectangle.
    pub fullest: (u32, u32),
}

/// An operator's implementation.
pub trait Implementation {
    /// Operator name in reports.
    fn op(&self) -> &'static str;
    /// One line for `meshloom list kernels`.
    fn about(&self) -> &'static str;
    /// Layout of the output, given those of the inputs and the output's \[n, features, inner\] extents.
    fn layout(&self, inputs: &[Layout], n: usize, features: usize, inner: Vec<usize>) -> Layout;
    /// Most columns it can use.
    fn widest(&self, context: &Context) -> u32;
    /// Cost at a width.
    fn estimate(&self, context: &Context, width: u32) -> Estimate;
    /// Code, inner routes and weights; the region's origin is (0, 0), its height the number of lanes.
    fn emit(&self, name: &str, context: &Context, width: u32) -> Emitted;
}

/// The implementation of a kernel's operator.
pub fn of(kind: &Kind) -> Box<dyn Implementation + '_> {
    match kind {
        Kind::Mix(m) => Box::new(mix::MixKernel::new(m)),
        Kind::Depthwise(m) => Box::new(depthwise::DepthwiseKernel(m)),
        Kind::Pool(p) => Box::new(pool::PoolKernel(p)),
        Kind::Binary { multiply, relu } => Box::new(binary::BinaryKernel {
            multiply: *multiply,
            relu: *relu,
        }),
        Kind::Relu => Box::new(relu::ReluKernel),
        Kind::Softmax => Box::new(softmax::SoftmaxKernel),
        Kind::Flatten => Box::new(flatten::FlattenKernel),
    }
}

/// Names and descriptions of all kernels.
pub fn list() -> Vec<(&'static str, &'static str)> {
    let pool = Pool {
        max: true,
        count_padding: false,
        kernel: [1; 2],
        strides: [1; 2],
        pads: [0; 4],
        input: (1, 1),
        output: (1, 1),
    };
    let none = std::sync::Arc::new(Mix {
        k: 1,
        m: 1,
        groups: 1,
        window: 1,
        weights: Default::default(),
        bias: None,
        relu: false,
        taps: Vec::new(),
        input: (1, 1),
        output: (1, 1),
        samples: 1,
        sparse: false,
    });
    let all = [
        Kind::Mix(none.clone()),
        Kind::Depthwise(none),
        Kind::Pool(pool),
        Kind::Binary {
            multiply: false,
            relu: false,
        },
        Kind::Relu,
        Kind::Softmax,
        Kind::Flatten,
    ];
    all.iter().map(|k| (of(k).op(), of(k).about())).collect()
}

impl Context<'_> {
    /// Bytes between two features of `length` elements in SRAM: a multiple of 32, so that bank conflicts do not depend on the feature (M9).
    pub fn pitch(ty: Ty, length: usize) -> i64 {
        (length as u64 * ty.bytes() as u64).next_multiple_of(32) as i64
    }

    /// Elements a wavelet of a lane carries.
    pub fn per_wavelet(&self) -> u64 {
        per_wavelet(self.machine, self.ty)
    }

    /// Whether operands in SRAM that feed lanes, or are fed by them, are accessed wide: not where that would take more elements a step
    /// than a wavelet carries (f16 on 64-bit links, where f32 accumulators on the other end give two a step).
    pub fn wide(&self) -> bool {
        let bits = self.per_wavelet() as u32 * self.ty.bits();
        bits == self.machine.link.bits || bits > 32
    }

    /// Rows of the mesh.
    pub fn lanes(&self) -> usize {
        self.output.starts.len() - 1
    }

    /// Slots that moving `features` features of `length` elements over the fabric takes.
    pub fn move_slots(&self, features: usize, length: usize) -> u64 {
        features as u64 * (length as u64).div_ceil(self.per_wavelet())
    }
}

/// Elements that a wavelet of dense elements carries (rules M3, M8).
pub fn per_wavelet(machine: &Machine, ty: Ty) -> u64 {
    let l = &machine.pe.lanes;
    let lanes = if ty == Ty::F32 { l.f32_simple } else { l.f16_simple };
    // f16 results are converted from f32 accumulators on their way out, which a wide access can feed
    let memory = machine.pe.sram.port_bits / 32;
    (machine.link.bits / ty.bits()).min(lanes).min(memory) as u64
}

/// An empty region of a kernel.
fn region(name: &str, width: u32, height: usize) -> Region {
    Region {
        name: name.into(),
        x: 0,
        y: 0,
        width,
        height: height as u32,
        routes: Vec::new(),
        blocks: Vec::new(),
    }
}

/// A position with a hold of one flag.
fn position(input: Port, outputs: &[Port], hold: impl Into<Expr>) -> Position {
    Position {
        input,
        outputs: outputs.to_vec(),
        hold: hold.into(),
    }
}

/// A route without filters.
fn route(color: Color, stream: &str, at: Lattice, positions: Vec<Position>) -> Route {
    Route {
        color,
        stream: stream.into(),
        at,
        positions,
        filters: Vec::new(),
    }
}

/// A table by row, or a constant.
fn by_row(name: String, values: Vec<i64>) -> Expr {
    Expr::table(&name, Axes::Y, 0, values)
}

/// The first instructions of a PE that has weights: take them from the fabric into `buffer`.
fn load_weights(a: &mut Assembler, words: Val, address: i64) {
    a.memory(0, Ty::F32, Val::Imm(address), &[words], &[1], true);
    a.input(1, colors::LOAD, Ty::F32, &[words]);
    a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
}

/// Writes values as 32-bit words of elements of `ty`, two f16 a word.
fn pack(ty: Ty, values: &[f32]) -> Vec<u32> {
    match ty {
        Ty::F32 => values.iter().map(|v| v.to_bits()).collect(),
        Ty::F16 => values
            .chunks(2)
            .map(|c| {
                c.iter().enumerate().fold(0, |w, (i, v)| {
                    w | (half::f16::from_f32(*v).to_bits() as u32) << (16 * i)
                })
            })
            .collect(),
    }
}

/// Writes 16-bit numbers, two a word.
fn pack_u16(values: &[u16]) -> Vec<u32> {
    values
        .chunks(2)
        .map(|c| {
            c.iter()
                .enumerate()
                .fold(0, |w, (i, v)| w | (*v as u32) << (16 * i))
        })
        .collect()
}

/// The parts that kernels one column wide share: each row takes its lane's features, works on them alone, and sends its lane on.
struct RowLocal<'a, 'c> {
    c: &'a Context<'c>,
    a: Assembler,
    rows: usize,
}

impl<'a, 'c> RowLocal<'a, 'c> {
    fn new(c: &'a Context<'c>) -> RowLocal<'a, 'c> {
        RowLocal {
            c,
            a: Assembler::new(),
            rows: c.output.rows(),
        }
    }

    /// Features of this row in a layout.
    fn features(&mut self, name: &str, what: &str, layout: &Layout) -> Val {
        let table = by_row(format!("{name}.{what}"), layout.counts()[..self.rows].to_vec());
        self.a.param(what, table)
    }

    /// Opens the loop over items; weights and descriptors come before.
    fn begin_items(&mut self) -> crate::assemble::Label {
        self.a.emit(Instr::Set(0, Val::Imm(self.c.items as i64)));
        self.a.here("item")
    }

    /// Closes the loop, and the block.
    fn finish(mut self, name: &str, item: crate::assemble::Label, weights: Vec<Vec<u32>>) -> Emitted {
        self.a.emit(Instr::Sub(0, Val::Reg(0), Val::Imm(1)));
        self.a.branch(Cond::Ne, Val::Reg(0), Val::Imm(0), item);
        self.a.emit(Instr::Halt);
        let mut region = region(name, 1, self.c.lanes());
        region
            .blocks
            .push(self.a.finish(Lattice::rect(0, 0, 1, self.rows as u32)));
        let taps = self
            .c
            .inputs
            .iter()
            .map(|_| LaneTap {
                parts: Vec::new(),
                columns: 1,
            })
            .collect();
        Emitted {
            region,
            weights,
            taps,
        }
    }
}

/// SRAM bytes of the code and small change of a row-local kernel of about `instructions`.
fn code_bytes(machine: &Machine, instructions: usize) -> u64 {
    instructions as u64 * machine.pe.instruction_bytes as u64 + 128
}
