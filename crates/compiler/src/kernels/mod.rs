//! The kernels: one file an operator. A kernel says what a rectangle of PEs costs and needs, and emits the code and inner routes of its
//! rectangle. Adding an operator is adding a file here and a line in [`of`].
//!
//! A tensor comes as one or several lanes of features (see [`Layout`]); a lane enters the rectangle at its west side, runs east along a
//! row and up and down the columns; filters choose what each PE takes ([`distribute`]). Results are gathered towards the lane's exit by
//! switches that count flagged blocks ([`collect`]). Where a rectangle lies, and which way streams go between rectangles, no kernel
//! knows. The colours of [`colors`] below `STREAMS` are each kernel's own.

mod attention;
mod bands;
mod binary;
pub(crate) mod blocks;
mod depthwise;
mod embedding;
mod flatten;
mod layernorm;
mod local;
mod mix;
pub(crate) mod pointwise;
mod pool;
mod positions;
mod softmax;
mod streamed;
mod streams;
#[cfg(test)]
mod tests;

use crate::assemble::Assembler;
use crate::plan::*;
use local::{Local, Split};
use meshloom_simulator::program::*;
use meshloom_simulator::{Axes, Expr, Machine};
pub(crate) use mix::shares;
use streams::{Part, collect, distribute, every_second, lane_row, snake, sum_along_snake};
pub(crate) use streams::{rectangles, table};

/// Colours that every kernel may use inside its own rectangle, and the one that brings weights. Streams between kernels use the others.
pub mod colors {
    use meshloom_simulator::program::Color;
    /// Weights, from the edge to their PEs.
    pub const LOAD: Color = 0;
    /// Partial sums along a row, by parity of the column.
    pub const REDUCE: [Color; 2] = [1, 2];
    /// Results of sums, back to all that have a part in them.
    pub const SPREAD: Color = 3;
    /// Stands for the colour of a column's streamed weights until they have a way.
    pub const WEIGHTS: Color = 90;
    /// First colour of streams.
    pub const STREAMS: Color = 4;
}

/// What a kernel sees of its surroundings.
#[derive(Clone)]
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Element type of activations and weights.
    pub ty: Ty,
    /// Tensors that come one after another.
    pub items: usize,
    /// The inputs as this kernel sees them.
    pub inputs: Vec<Layout>,
    /// Colours of the inputs, one a lane.
    pub input_colors: Vec<Vec<Color>>,
    /// Items of each input that may have to wait for the other one (reconvergent paths).
    pub slack: Vec<usize>,
    /// What has to wait for another path has SRAM for as many items as that path holds; otherwise for as many as there is room for.
    pub keep_all: bool,
    /// The output.
    pub output: Layout,
    /// Colours of the output, one a lane.
    pub output_colors: Vec<Color>,
    /// SRAM bytes from address 0 on that are left alone, a multiple of 64: data of other stages.
    pub base: u32,
}

/// What a rectangle of a kernel costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Expected cycles an item of the busiest PE, or of the slowest stream.
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
    /// The largest part of a rectangle (columns, rows) that it can use; what is left over stays idle.
    fn fit(&self, context: &Context, width: u32, height: u32) -> (u32, u32);
    /// Cost of a rectangle that [`Implementation::fit`] gave; `None` if there is none of this shape (too few columns or rows).
    fn estimate(&self, context: &Context, width: u32, height: u32) -> Option<Estimate>;
    /// Code, inner routes and weights of such a rectangle; the region's origin is (0, 0).
    fn emit(&self, name: &str, context: &Context, width: u32, height: u32) -> Emitted;
    /// Column of the exits, as in [`Emitted::exits`].
    fn exit(&self, _width: u32) -> u32 {
        0
    }
}

/// The implementation of a kernel's operator.
pub fn of(kind: &Kind) -> Box<dyn Implementation + '_> {
    match kind {
        Kind::Mix(m) => Box::new(mix::MixKernel::new(m)),
        Kind::Streamed(m) => Box::new(streamed::StreamedKernel::new(m)),
        Kind::Depthwise(m) => Box::new(depthwise::DepthwiseKernel(m)),
        Kind::Pool(p) => Box::new(pool::PoolKernel(p)),
        Kind::Binary { multiply, relu } => Box::new(binary::BinaryKernel {
            multiply: *multiply,
            relu: *relu,
        }),
        Kind::Pointwise(f) => Box::new(pointwise::PointwiseKernel(f)),
        Kind::Softmax => Box::new(softmax::SoftmaxKernel),
        Kind::LayerNorm(n) => Box::new(layernorm::LayerNormKernel(n)),
        Kind::Attention(a) => Box::new(attention::AttentionKernel::new(a)),
        Kind::Embedding(t) => Box::new(embedding::EmbeddingKernel(t)),
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
    let none = std::sync::Arc::new(Linear {
        k: 1,
        m: 1,
        groups: 1,
        window: 1,
        weights: Default::default(),
        input: (1, 1),
        output: (1, 1),
        samples: 1,
        ..Default::default()
    });
    let mix = std::sync::Arc::new(Mix {
        terms: vec![(*none).clone()],
        bias: None,
        relu: false,
    });
    let all = [
        Kind::Mix(mix.clone()),
        Kind::Streamed(mix),
        Kind::Depthwise(none),
        Kind::Pool(pool),
        Kind::Binary {
            multiply: false,
            relu: false,
        },
        Kind::Pointwise(Function::Relu),
        Kind::Pointwise(Function::Clip {
            least: 0.0,
            most: 6.0,
        }),
        Kind::Pointwise(Function::Gelu { tanh: true }),
        Kind::Pointwise(Function::Affine {
            scale: Default::default(),
            shift: Default::default(),
            relu: false,
        }),
        Kind::Softmax,
        Kind::LayerNorm(Default::default()),
        Kind::Attention(Attention {
            heads: 1,
            width: 1,
            causal: true,
            tokens: 1,
            groups: 1,
        }),
        Kind::Embedding(Default::default()),
        Kind::Flatten,
    ];
    all.iter().map(|k| (of(k).op(), of(k).about())).collect()
}

impl Context<'_> {
    /// Whether a kernel costs the same in both, on the same machine.
    pub fn alike(&self, other: &Context) -> bool {
        let of = |c: &Context| (c.ty, c.items, c.keep_all, c.base);
        of(self) == of(other)
            && (&self.slack, &self.inputs, &self.output) == (&other.slack, &other.inputs, &other.output)
    }

    /// Bytes between two features of `length` elements in SRAM: a multiple of 32, so that bank conflicts do not depend on the feature (M9).
    pub fn pitch(ty: Ty, length: usize) -> i64 {
        (length as u64 * ty.bytes() as u64).next_multiple_of(32) as i64
    }

    /// An empty block, whose buffers begin behind what is left alone.
    fn assembler(&self) -> Assembler {
        Assembler::from(self.base)
    }

    /// Elements a wavelet of a stream carries.
    pub fn per_wavelet(&self) -> u64 {
        per_wavelet(self.machine, self.ty)
    }

    /// Whether operands in SRAM that feed streams, or are fed by them, are accessed wide.
    pub fn wide(&self) -> bool {
        wide(self.machine, self.ty)
    }

    /// Slots that moving `features` features of `length` elements over the fabric takes.
    pub fn move_slots(&self, features: usize, length: usize) -> u64 {
        features as u64 * (length as u64).div_ceil(self.per_wavelet())
    }

    /// Cycles that the longest of the kernel's streams takes.
    pub fn stream_cycles(&self) -> u64 {
        let all = self.inputs.iter().chain([&self.output]);
        all.map(|l| self.move_slots(l.features / l.lanes, l.length()))
            .max()
            .unwrap_or(0)
    }

    /// Lanes of a multiply-add.
    pub fn multiply_lanes(&self) -> u64 {
        match self.ty {
            Ty::F32 => self.machine.pe.lanes.f32 as u64,
            Ty::F16 => self.machine.pe.lanes.f16 as u64,
        }
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

/// Whether operands in SRAM that feed streams, or are fed by them, are accessed wide: not where that would take more elements a step
/// than a wavelet carries (f16 on 64-bit links, where f32 accumulators on the other end give two a step).
pub(crate) fn wide(machine: &Machine, ty: Ty) -> bool {
    let bits = per_wavelet(machine, ty) as u32 * ty.bits();
    bits == machine.link.bits || bits > 32
}

/// An empty region of a kernel.
fn region(name: &str, width: u32, height: u32) -> Region {
    Region {
        name: name.into(),
        x: 0,
        y: 0,
        width,
        height,
        routes: Vec::new(),
        blocks: Vec::new(),
    }
}

/// Starts of `parts` balanced shares of `total`, and the end; the longer shares first.
pub fn balanced(total: usize, parts: usize) -> Vec<usize> {
    let (each, extra) = (total / parts, total % parts);
    (0..=parts).map(|p| p * each + p.min(extra)).collect()
}

/// The fewest parts, at most `most`, whose largest share of `total` is as small.
pub fn fewest(total: usize, most: u32) -> u32 {
    let most = (most as usize).clamp(1, total.max(1));
    total.max(1).div_ceil(total.max(1).div_ceil(most)) as u32
}

/// A position of a switch.
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

/// The first instructions of a PE that has weights: take them from the fabric into `buffer`.
fn load_weights(a: &mut Assembler, words: Val, address: i64) {
    a.memory(0, Ty::F32, Val::Imm(address), &[words], &[1], true);
    a.input(1, colors::LOAD, Ty::F32, &[words]);
    a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
}

/// Whether two operands that begin at these addresses are read from one bank, which makes every step take two slots (M9).
fn conflict(machine: &Machine, one: i64, other: i64) -> bool {
    let s = &machine.pe.sram;
    let bank = |at: i64| (at / s.bank_bytes as i64).rem_euclid(s.banks as i64) % s.conflict_modulus as i64;
    bank(one) == bank(other)
}

/// Where results of windows begin modulo 32, and the cycles of their steps, so that few instructions read two operands in one bank (M9):
/// `all` has each instruction's first result and first input as bytes from where these begin (inputs at a multiple of 32), and its steps.
fn phase(machine: &Machine, all: &[(i64, i64, u64)]) -> (u32, u64) {
    let cycles = |phase: u32| -> u64 {
        let slots = |(y, x, _): &(i64, i64, u64)| match conflict(machine, y + phase as i64, *x) {
            true => 2,
            false => 1,
        };
        all.iter().map(|one| one.2 * slots(one)).sum()
    };
    // where it is no multiple of a wide access, none is wide (M8)
    let aligned = |p: &u32| p.is_multiple_of(machine.pe.sram.port_bits / 8);
    let phases = [16, 8, 24, 0].into_iter().filter(aligned).map(|p| (p, cycles(p)));
    phases.min_by_key(|p| p.1).unwrap_or((0, cycles(0)))
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

/// SRAM bytes of the code and small change of a row-local kernel of about `instructions`.
fn code_bytes(machine: &Machine, instructions: usize) -> u64 {
    instructions as u64 * machine.pe.instruction_bytes as u64 + 128
}
