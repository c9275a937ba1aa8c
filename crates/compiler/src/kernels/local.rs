//! What kernels share that have no exchange between PEs: each PE takes its part of the stream, works on it alone, and gives its part of
//! the result. The parts are features ([`Split::Features`]) or positions ([`Split::Positions`], for streams of one lane).

use super::streams::distribute_lanes;
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
    /// First feature or position of the first input for each PE, row by row, and last + 1.
    pub shares: Vec<(usize, usize)>,
    /// Neighbours exchange sums on the colours of [`colors::REDUCE`]: the code is that of PEs whose column and row add up to an even number,
    /// in the others the two colours change places.
    pub exchange: bool,
    name: String,
}

/// The most lanes of any of the kernel's streams: rows are divided into as many groups, so that a PE's share is of one lane.
pub(super) fn lanes(c: &Context) -> usize {
    let all = c.inputs.iter().chain([&c.output]);
    all.map(|l| l.lanes).max().unwrap_or(1)
}

/// The shares of all PEs of a rectangle. Positions come in whole wavelets.
fn shares(c: &Context, split: Split, width: u32, height: u32) -> Vec<(usize, usize)> {
    let pairs = |starts: Vec<usize>, from: usize| -> Vec<(usize, usize)> {
        starts.windows(2).map(|s| (from + s[0], from + s[1])).collect()
    };
    match split {
        Split::Positions => {
            let (unit, length) = (c.per_wavelet() as usize, c.inputs[0].length());
            let starts = balanced(length.div_ceil(unit), (width * height) as usize);
            pairs(starts.into_iter().map(|s| (s * unit).min(length)).collect(), 0)
        }
        Split::Features => {
            let lanes = lanes(c);
            let each = c.inputs[0].features / lanes;
            (0..lanes)
                .flat_map(|lane| {
                    let rows = lane_row(lane + 1, lanes, height) - lane_row(lane, lanes, height);
                    pairs(balanced(each, (rows * width) as usize), lane * each)
                })
                .collect()
        }
    }
}

/// The part of a rectangle that a local kernel uses: as few PEs as bring no loss, in whole rows. A kernel that works on features needs a
/// row for each lane. `cost` gives cycles and SRAM bytes of a rectangle; neither grows with it.
pub(super) fn fit(
    c: &Context,
    split: Split,
    width: u32,
    height: u32,
    cost: impl Fn(u32, u32) -> (u64, u64),
) -> (u32, u32) {
    let lanes = match split {
        Split::Features => lanes(c) as u32,
        Split::Positions => 1,
    };
    let total = match split {
        Split::Features => c.inputs[0].features / lanes as usize,
        Split::Positions => c.inputs[0].length().div_ceil(c.per_wavelet() as usize),
    };
    // a lane's part for so many PEs
    let rows = (height / lanes).max(1);
    let shape = |pes: u32| {
        let w = pes.div_ceil(rows).min(width);
        (w, pes.div_ceil(w) * lanes)
    };
    let cost = |pes: u32| {
        let (w, h) = shape(pes);
        cost(w, h)
    };
    let most = fewest(total, width.saturating_mul(rows));
    let best = cost(most);
    let sram = (c.machine.pe.sram_bytes as u64).max(best.1);
    let enough = |pes: u32| {
        let (cycles, bytes) = cost(pes);
        cycles <= best.0 && bytes <= sram
    };
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    shape(high)
}

/// The largest share of a PE: features or positions of the first input.
pub(super) fn widest(c: &Context, split: Split, width: u32, height: u32) -> usize {
    match split {
        Split::Positions => {
            let (unit, length) = (c.per_wavelet() as usize, c.inputs[0].length());
            let wavelets = length.div_ceil(unit);
            (wavelets.div_ceil((width * height) as usize) * unit).min(length)
        }
        Split::Features => {
            let lanes = lanes(c);
            let rows = |lane| lane_row(lane + 1, lanes, height) - lane_row(lane, lanes, height);
            let pes = (0..lanes).map(|lane| (rows(lane) * width) as usize);
            let each = c.inputs[0].features / lanes;
            pes.map(|n| each.div_ceil(n)).max().unwrap_or(0)
        }
    }
}

/// The block for PEs of either parity, as lattices.
fn by_parity(block: Block) -> Vec<Block> {
    let mut all = Vec::new();
    for (dx, dy) in [(0, 0), (1, 1), (1, 0), (0, 1)] {
        let at = every_second(block.at, dx, dy);
        if at.nx * at.ny == 0 {
            continue;
        }
        let mut own = Block { at, ..block.clone() };
        if (at.x + at.y) % 2 == 1 {
            let [a, b] = colors::REDUCE;
            own.recolor(|c| {
                if c == a {
                    b
                } else if c == b {
                    a
                } else {
                    c
                }
            });
        }
        all.push(own);
    }
    all
}

impl<'a, 'c> Local<'a, 'c> {
    pub fn new(name: &str, c: &'a Context<'c>, split: Split, width: u32, height: u32) -> Local<'a, 'c> {
        Local {
            c,
            a: c.assembler(),
            width,
            height,
            split,
            shares: shares(c, split, width, height),
            exchange: false,
            name: name.into(),
        }
    }

    /// The largest share.
    pub fn widest(&self) -> usize {
        self.shares.iter().map(|(from, to)| to - from).max().unwrap_or(0)
    }

    /// A number that differs from PE to PE, given the first and last + 1 of its share.
    pub fn number(&mut self, what: &str, value: impl Fn(usize, usize) -> i64) -> Val {
        let (w, shares) = (self.width, &self.shares);
        let at = Lattice::rect(0, 0, w, self.height);
        let value = |x: u32, y: u32| {
            let (from, to) = shares[(y * w + x) as usize];
            value(from, to)
        };
        let table = table(&format!("{}.{what}", self.name), at, value);
        self.a.param(what, table)
    }

    /// A number that differs from PE to PE, given for each.
    pub fn each(&mut self, what: &str, values: &[i64]) -> Val {
        let w = self.width;
        let at = Lattice::rect(0, 0, w, self.height);
        let table = table(&format!("{}.{what}", self.name), at, |x, y| {
            values[(y * w + x) as usize]
        });
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

    /// Closes the loop and the block, and adds the streams' ways. `weights` are one a PE. The code uses the colours of the streams'
    /// first lanes; in the rows of other lanes they are replaced.
    pub fn finish(mut self, item: Label, weights: Vec<Vec<u32>>) -> Emitted {
        self.a.emit(Instr::Sub(0, Val::Reg(0), Val::Imm(1)));
        self.a.branch(Cond::Ne, Val::Reg(0), Val::Imm(0), item);
        self.a.emit(Instr::Halt);
        let (c, w, h) = (self.c, self.width, self.height);
        let mut region = region(&self.name, w, h);
        let block = self.a.finish(Lattice::rect(0, 0, w, h));
        let groups = match self.split {
            Split::Features => lanes(c),
            Split::Positions => 1,
        };
        let mut blocks: Vec<Block> = Vec::new();
        for group in 0..groups {
            let (from, to) = (lane_row(group, groups, h), lane_row(group + 1, groups, h));
            let mut own = block.clone();
            own.recolor(|color| {
                for (layout, colors) in c
                    .inputs
                    .iter()
                    .zip(&c.input_colors)
                    .chain([(&c.output, &c.output_colors)])
                {
                    if colors[0] == color {
                        return colors[group * layout.lanes / groups];
                    }
                }
                color
            });
            // the PEs with a share: whole rows, and a part of the next one
            let shares = &self.shares[(from * w) as usize..(to * w) as usize];
            let active = shares.iter().filter(|(from, to)| from < to).count() as u32;
            let (rows, rest) = (active / w, active % w);
            let whole = Lattice::rect(0, from, w, rows);
            match blocks.last_mut() {
                // rows of one code are one block
                Some(last) if last.code == own.code && (last.at.nx, last.at.y + last.at.ny) == (w, from) => {
                    last.at.ny += rows;
                }
                _ if rows > 0 => blocks.push(Block {
                    at: whole,
                    ..own.clone()
                }),
                _ => {}
            }
            if rest > 0 {
                let at = Lattice::rect(0, from + rows, rest, 1);
                blocks.push(Block { at, ..own });
            }
        }
        if self.exchange {
            blocks = blocks.into_iter().flat_map(by_parity).collect();
        }
        region.blocks = blocks;
        let parts: Vec<Option<Part>> = self
            .shares
            .iter()
            .map(|&(from, to)| {
                Some(match self.split {
                    Split::Features => Part::Features(from, to),
                    Split::Positions => Part::Positions(from, to),
                })
            })
            .collect();
        let mut entries = Vec::new();
        for i in 0..c.inputs.len() {
            entries.push(distribute_lanes(&mut region, &self.name, c, i, &parts));
        }
        let sends = |x: u32, y: u32| {
            let (from, to) = self.shares[(y * w + x) as usize];
            from < to
        };
        let stream = format!("{}: output", self.name);
        let exits = (0..c.output.lanes)
            .map(|lane| {
                let rows = lane_row(lane, c.output.lanes, h)..lane_row(lane + 1, c.output.lanes, h);
                collect(&mut region, &stream, c.output_colors[lane], rows, 0, sends)
            })
            .collect();
        // a PE may give several output features for each that it takes
        let times = c.output.features / c.inputs[0].features.max(1);
        let gives = (0..h * w)
            .map(|pe| {
                let (from, to) = self.shares[pe as usize];
                let at = (pe % w, pe / w);
                match self.split {
                    Split::Features => Give {
                        at,
                        features: (from * times, to * times),
                        turn: None,
                        positions: vec![(0, c.output.length())],
                    },
                    Split::Positions => Give {
                        at,
                        features: (0, c.output.features),
                        turn: None,
                        positions: vec![(from, to)],
                    },
                }
            })
            .collect();
        Emitted {
            region,
            weights,
            entries,
            exits,
            gives,
            streamed: None,
        }
    }
}
