//! What kernels share that have no exchange between PEs: each PE takes its part of the stream, works on it alone, and gives its part of
//! the result. The parts are features ([`Split::Features`]) or positions ([`Split::Positions`]).

use super::*;
use crate::assemble::Label;

/// How a kernel's work is divided over its PEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// Each PE has some features, whole.
    Features,
    /// Each PE has some positions of every feature.
    Positions,
}

/// A kernel without exchange, under construction.
pub(super) struct Local<'a, 'c> {
    pub c: &'a Context<'c>,
    pub a: Assembler,
    pub width: u32,
    pub height: u32,
    pub split: Split,
    /// First feature or position of the first input for each PE, and the end.
    pub starts: Vec<usize>,
    name: String,
}

/// Shares of `total` in units of `unit`, over `parts`.
fn shares(total: usize, unit: usize, parts: usize) -> Vec<usize> {
    balanced(total.div_ceil(unit), parts)
        .into_iter()
        .map(|s| (s * unit).min(total))
        .collect()
}

/// The part of a rectangle that a local kernel uses: whole rows, as few PEs as make the largest share no larger.
pub(super) fn fit(c: &Context, split: Split, width: u32, height: u32) -> (u32, u32) {
    let total = match split {
        Split::Features => c.inputs[0].features,
        Split::Positions => c.inputs[0].length().div_ceil(c.per_wavelet() as usize),
    };
    let pes = fewest(total, width.saturating_mul(height));
    if pes <= height {
        return (1, pes);
    }
    let w = pes.div_ceil(height).min(width);
    (w, pes.div_ceil(w))
}

/// The largest share of a PE: features or positions of the first input.
pub(super) fn widest(c: &Context, split: Split, pes: u32) -> usize {
    let starts = match split {
        Split::Features => shares(c.inputs[0].features, 1, pes as usize),
        Split::Positions => shares(c.inputs[0].length(), c.per_wavelet() as usize, pes as usize),
    };
    starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0)
}

impl<'a, 'c> Local<'a, 'c> {
    pub fn new(name: &str, c: &'a Context<'c>, split: Split, width: u32, height: u32) -> Local<'a, 'c> {
        let pes = (width * height) as usize;
        let starts = match split {
            Split::Features => shares(c.inputs[0].features, 1, pes),
            Split::Positions => shares(c.inputs[0].length(), c.per_wavelet() as usize, pes),
        };
        Local {
            c,
            a: Assembler::new(),
            width,
            height,
            split,
            starts,
            name: name.into(),
        }
    }

    /// The largest share.
    pub fn widest(&self) -> usize {
        self.starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0)
    }

    /// A number that differs from PE to PE, given the first and last + 1 of its share.
    pub fn number(&mut self, what: &str, value: impl Fn(usize, usize) -> i64) -> Val {
        let (w, starts) = (self.width, &self.starts);
        let at = Lattice::rect(0, 0, w, self.height);
        let value = |x: u32, y: u32| {
            let pe = (y * w + x) as usize;
            value(starts[pe], starts[pe + 1])
        };
        let table = table(&format!("{}.{what}", self.name), at, value);
        self.a.param(what, table)
    }

    /// The number of features or positions in the share.
    pub fn share(&mut self, what: &str) -> Val {
        self.number(what, |from, to| (to - from) as i64)
    }

    /// Opens the loop over items; weights and descriptors come before.
    pub fn begin_items(&mut self) -> Label {
        self.a.emit(Instr::Set(0, Val::Imm(self.c.items as i64)));
        self.a.here("item")
    }

    /// Closes the loop and the block, and adds the streams' ways. `weights` are one a PE.
    pub fn finish(mut self, item: Label, weights: Vec<Vec<u32>>) -> Emitted {
        self.a.emit(Instr::Sub(0, Val::Reg(0), Val::Imm(1)));
        self.a.branch(Cond::Ne, Val::Reg(0), Val::Imm(0), item);
        self.a.emit(Instr::Halt);
        let c = self.c;
        let mut region = region(&self.name, self.width, self.height);
        let at = Lattice::rect(0, 0, self.width, self.height);
        region.blocks.push(self.a.finish(at));
        let parts: Vec<Option<Part>> = self
            .starts
            .windows(2)
            .map(|s| {
                Some(match self.split {
                    Split::Features => Part::Features(s[0], s[1]),
                    Split::Positions => Part::Positions(s[0], s[1]),
                })
            })
            .collect();
        for (i, input) in c.inputs.iter().enumerate() {
            let stream = format!("{}: input {i}", self.name);
            distribute(&mut region, &stream, c.input_colors[i], input, c.per_wavelet(), &parts);
        }
        let w = self.width;
        let sends = |x: u32, y: u32| {
            let pe = (y * w + x) as usize;
            self.starts[pe] < self.starts[pe + 1]
        };
        let stream = format!("{}: output", self.name);
        let exit = collect(&mut region, &stream, c.output_color, 0, sends);
        // a PE may give several output features for each that it takes
        let times = c.output.features / c.inputs[0].features.max(1);
        let gives = (0..self.height * self.width)
            .map(|pe| {
                let (from, to) = (self.starts[pe as usize], self.starts[pe as usize + 1]);
                let at = (pe % w, pe / w);
                match self.split {
                    Split::Features => Give {
                        at,
                        features: (from * times, to * times),
                        period: c.output.features,
                        positions: vec![(0, c.output.length())],
                    },
                    Split::Positions => Give {
                        at,
                        features: (0, c.output.features),
                        period: c.output.features,
                        positions: vec![(from, to)],
                    },
                }
            })
            .collect();
        Emitted {
            region,
            weights,
            exit,
            gives,
        }
    }
}
