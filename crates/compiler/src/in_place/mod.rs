//! Operators in place: activations lie on the mesh at the start, results stay there, and nothing enters but weights. Each operator is a
//! program of its own, which finds in SRAM what the one before left ([`meshloom_simulator::engine::run_on`]), or a stage of one.
//!
//! Tokens are split over the columns of PEs but the first, features over the rows ([`Tensor`]). Column 0 holds no tokens: its routers lead what
//! enters in the west to the rows, and its PEs keep keys and values ([`Gather`]). Rows are in [`Bands`]: what the rows of a band add up goes south along
//! each column, PE by PE; the band's last row has no features, finishes the sums, and sends results north, past all rows of the band.
//!
//! *No PE does anything by itself*: each begins with the first wavelet of its row. So a column lives by what comes from the west
//! alone, one cycle after its neighbour, and all columns are exact copies of each other. The exception is [`Gather`], and column 0 where it sends.

mod choose;
mod decoder;
mod elementwise;
mod gather;
mod norm;
mod product;
mod replicate;
mod softmax;
mod transformer;

pub use decoder::Decoder;
pub use elementwise::{Pair, Unary};
pub use gather::{By, Gather, Gathered, key_features};
pub use norm::LayerNorm;
pub use product::{Mapped, Product, Source, even_features};
pub use replicate::Replicate;
pub use softmax::{Softmax, causal_mask};
pub use transformer::{Attention, Linear, Mlp, Operator};

use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::{balanced, colors, table};
use crate::passes::{limits, memory};
use half::f16;
use meshloom_simulator::engine::Sram;
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine, Side};

/// What begins a row, and its weights, from the edge or from column 0 on.
const WEIGHTS: Color = colors::LOAD;
/// Finished sums, from the last row of a band to the others.
const RESULTS: Color = colors::SPREAD;

/// A tensor \[tokens, features\] in the SRAM of a mesh: consecutive tokens in each column of PEs but the first, consecutive features in each row.
/// On a PE it is \[feature\]\[token\].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Type of its elements.
    pub ty: Ty,
    /// Tokens of each column but the first.
    pub tokens: usize,
    /// The first feature of each row of PEs, and the end: one number more than there are rows.
    pub features: Vec<usize>,
    /// SRAM address on each PE that has features, a multiple of 32.
    pub address: u32,
}

impl Tensor {
    /// Bytes from feature to feature.
    pub fn pitch(&self) -> u32 {
        let bytes = (self.tokens as u64).saturating_mul(self.ty.bytes() as u64);
        let pitch = bytes.checked_next_multiple_of(32).unwrap_or(bytes);
        u32::try_from(pitch).unwrap_or(u32::MAX)
    }

    /// Features of a row.
    pub fn of(&self, row: usize) -> usize {
        self.features[row + 1] - self.features[row]
    }

    /// Features of all rows.
    pub fn all(&self) -> usize {
        self.features.last().copied().unwrap_or(0)
    }

    /// Most features of a row.
    pub fn most(&self) -> usize {
        self.features.windows(2).map(|f| f[1] - f[0]).max().unwrap_or(0)
    }

    /// SRAM bytes on the PEs that have most.
    pub fn bytes(&self) -> u64 {
        (self.most() as u64).saturating_mul(self.pitch() as u64)
    }

    /// The SRAM address behind it.
    pub fn end(&self) -> u64 {
        self.bytes().saturating_add(self.address as u64)
    }

    /// The first address behind it where another tensor may lie; of what no SRAM has, which operators refuse, some address.
    fn behind(&self) -> u32 {
        let end = self.end().checked_next_multiple_of(32);
        end.and_then(|end| u32::try_from(end).ok()).unwrap_or(1 << 31)
    }

    /// Columns of a mesh with so many PEs.
    fn width(&self, pes: usize) -> usize {
        pes / (self.features.len() - 1)
    }

    /// Writes values \[tokens, features\] into the SRAM of every PE.
    ///
    /// # Panics
    /// There are not as many values as elements.
    pub fn place(&self, values: &[f32], sram: &mut Sram) {
        let all = self.all();
        assert_eq!(
            values.len(),
            self.tokens * (self.width(sram.pes()) - 1) * all,
            "values are [tokens, features]"
        );
        let mut bytes = Vec::new();
        self.each(sram.pes(), |pe, at, token, feature| {
            bytes.clear();
            for token in token..token + self.tokens {
                let value = values[token * all + feature];
                match self.ty {
                    Ty::F32 => bytes.extend(value.to_le_bytes()),
                    Ty::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                }
            }
            sram.write(pe, at, &bytes);
        });
    }

    /// Its values \[tokens, features\] in the SRAM of every PE. What is not there is 0.
    pub fn read(&self, sram: &Sram) -> Vec<f32> {
        let all = self.all();
        let element = self.ty.bytes() as usize;
        let mut values = vec![0.0; self.tokens * (self.width(sram.pes()) - 1) * all];
        let mut bytes = vec![0; self.tokens * element];
        self.each(sram.pes(), |pe, at, token, feature| {
            sram.read(pe, at, &mut bytes);
            for (token, from) in (token..).zip(bytes.chunks_exact(element)) {
                values[token * all + feature] = match *from {
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                    _ => 0.0,
                };
            }
        });
        values
    }

    /// Its rows of tokens: PE, address, first token, feature.
    fn each(&self, pes: usize, mut row_of: impl FnMut(usize, usize, usize, usize)) {
        let width = self.width(pes);
        for (row, features) in self.features.windows(2).enumerate() {
            for column in 0..width - 1 {
                for (i, feature) in (features[0]..features[1]).enumerate() {
                    let at = self.address as usize + i * self.pitch() as usize;
                    row_of(row * width + column + 1, at, column * self.tokens, feature);
                }
            }
        }
    }

    /// An operand in memory: all features of a PE. `features` is their number on a PE.
    fn operand(&self, a: &mut Assembler, d: u8, features: Val) {
        let per = self.pitch() as i64 / self.ty.bytes() as i64;
        let shape = [features, Val::Imm(self.tokens as i64)];
        a.memory(d, self.ty, Val::Imm(self.address as i64), &shape, &[per, 1], true);
    }
}

/// Gives tensors their addresses, one behind another; what comes last is the first to be given back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room(u32);

impl Room {
    /// A tensor behind all that there are.
    pub fn tensor(&mut self, ty: Ty, tokens: usize, features: &[usize]) -> Tensor {
        let tensor = Tensor {
            ty,
            tokens,
            features: features.to_vec(),
            address: self.0,
        };
        self.0 = tensor.behind();
        tensor
    }

    /// The address behind all tensors.
    pub fn end(&self) -> u32 {
        self.0
    }
}

/// The first feature of each of so many rows, and the end. Rows with one more than others lie evenly among them, so that channels of the edge, each of which serves some
/// rows, bring about as much; of fewer features than rows the first rows have one each.
fn over_rows(features: usize, rows: usize) -> Vec<usize> {
    match features < rows {
        true => balanced(features, rows),
        false => (0..=rows).map(|row| row * features / rows).collect(),
    }
}

/// Bands of rows of PEs. The last row of a band holds no features: it finishes what the others add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bands {
    /// The first row of each band, and the end.
    starts: Vec<usize>,
}

impl Bands {
    /// So many bands of as equal heights as can be.
    ///
    /// Errors: a band would have less than two rows.
    pub fn new(machine: &Machine, bands: usize) -> Result<Bands, CompileError> {
        let (width, height) = (machine.mesh.width, machine.mesh.height);
        if width < 2 || bands == 0 || (height as usize) < bands.saturating_mul(2) {
            return Err(CompileError::Unsupported {
                node: format!("{bands} bands of rows, in place"),
                message: format!(
                    "a mesh of {width} x {height} PEs: at least 2 columns, and 2 rows for each band, are needed"
                ),
            });
        }
        Ok(Bands {
            starts: balanced(height as usize, bands),
        })
    }

    /// The first row and the last of each band.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize)> + Clone {
        self.starts.windows(2).map(|s| (s[0], s[1] - 1))
    }

    /// The first row of a band.
    fn top(&self, band: usize) -> usize {
        self.starts[band]
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of all.
    fn height(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The first feature of each row, and the end, of a tensor with so many features in each band, spread evenly over the rows that hold features.
    pub fn spread(&self, features: usize) -> Vec<usize> {
        let mut all = Vec::new();
        for (band, (top, last)) in self.each().enumerate() {
            let starts = over_rows(features, last - top);
            all.extend(starts.iter().map(|s| band * features + s));
        }
        // a band's end is the first feature of its last row
        all.push(self.len() * features);
        all
    }

    /// The first feature of each row, and the end, of a tensor whose features, so many in all, are spread evenly over the bands, and in each over the
    /// rows that hold features.
    pub fn share(&self, features: usize) -> Vec<usize> {
        let mut all = Vec::new();
        for ((top, last), of_band) in self.each().zip(balanced(features, self.len()).windows(2)) {
            let starts = over_rows(of_band[1] - of_band[0], last - top);
            all.extend(starts.iter().map(|s| of_band[0] + s));
        }
        all.push(features);
        all
    }
}

/// Rows of a band that share their code.
struct Role {
    /// Of tables.
    name: String,
    at: Lattice,
    /// One of the rows.
    row: usize,
    /// The first row of a band: no sums come to it.
    first: bool,
}

impl Role {
    /// The colour on which its sums go out.
    fn gives(&self) -> Color {
        colors::REDUCE[self.row % 2]
    }

    /// The colour on which sums come.
    fn takes(&self) -> Color {
        colors::REDUCE[(self.row + 1) % 2]
    }

    /// Descriptors of what goes down the band, what comes from the row above, if there is one, and what comes back from the last row.
    fn ways(&self, a: &mut Assembler, [out, above, back]: [u8; 3], length: Val) {
        a.output(out, self.gives(), Ty::F32, &[length], false);
        if !self.first {
            a.input(above, self.takes(), Ty::F32, &[length]);
        }
        a.input(back, RESULTS, Ty::F32, &[length]);
    }

    /// Each row's `own` goes down the band, joined by an operation; it becomes what the last row makes of all of them.
    fn exchange(&self, a: &mut Assembler, own: u8, [out, above, back]: [u8; 3], op: Op, count: Count) {
        let of = Operand::Desc;
        match self.first {
            true => a.map(Op::Mov, out, of(own), None, Count::None),
            false => a.map(op, out, of(above), Some(of(own)), count),
        }
        a.map(Op::Mov, own, of(back), None, Count::None);
    }
}

/// What the programs of operators have in common.
struct Frame<'a> {
    name: &'a str,
    machine: &'a Machine,
    bands: &'a Bands,
}

impl Frame<'_> {
    /// A number that differs from row to row.
    fn number(&self, role: &str, what: &str, at: Lattice, value: impl Fn(usize) -> usize) -> Expr {
        let name = format!("{}.{role}.{what}", self.name);
        table(&name, at, |_, y| value(y as usize) as i64)
    }

    /// The columns with tokens in every `dy`-th row from `y` to before `end`.
    fn lattice(&self, y: usize, end: usize, dy: usize) -> Lattice {
        let ny = end.saturating_sub(y).div_ceil(dy) as u32;
        Lattice {
            x: 1,
            y: y as u32,
            nx: self.machine.mesh.width - 1,
            ny,
            dx: 1,
            dy: if ny > 1 { dy as u32 } else { 1 },
        }
    }

    /// A band's part of a name.
    fn of_band(&self, what: &str, band: usize) -> String {
        match self.bands.len() {
            1 => what.into(),
            _ => format!("{what}.{band}"),
        }
    }

    /// The rows that hold features. Rows of one way of sending share their code; no sums come to the first.
    fn working(&self) -> Vec<Role> {
        let mut all = Vec::new();
        for (band, (top, last)) in self.bands.each().enumerate() {
            for (name, row, end, dy) in [
                ("first", top, top + 1, 1),
                ("odd", top + 1, last, 2),
                ("even", top + 2, last, 2),
            ] {
                let at = self.lattice(row, end, dy);
                if at.ny > 0 {
                    all.push(Role {
                        name: self.of_band(name, band),
                        at,
                        row,
                        first: row == top,
                    });
                }
            }
        }
        all
    }

    /// The rows that finish sums.
    fn last(&self) -> Vec<Role> {
        let last = |(band, (_, row))| Role {
            name: self.of_band("last", band),
            at: self.lattice(row, row + 1, 1),
            row,
            first: false,
        };
        self.bands.each().enumerate().map(last).collect()
    }

    /// The whole mesh, without routes.
    fn mesh(&self, blocks: Vec<Block>) -> Region {
        Region {
            name: self.name.into(),
            x: 0,
            y: 0,
            width: self.machine.mesh.width,
            height: self.machine.mesh.height,
            routes: Vec::new(),
            blocks,
        }
    }

    /// The whole mesh, with the ways of what comes along the rows, from column 0 on.
    fn region(&self, blocks: Vec<Block>) -> Region {
        let (width, height) = (self.machine.mesh.width, self.machine.mesh.height);
        let mut region = self.mesh(blocks);
        let all = [Port::Ramp, Port::East];
        let near = Lattice::rect(1, 0, width - 2, height);
        let far = Lattice::rect(width - 1, 0, 1, height);
        self.route(
            &mut region,
            WEIGHTS,
            "weights",
            near,
            (Port::West, &all),
            Vec::new(),
        );
        self.route(
            &mut region,
            WEIGHTS,
            "weights",
            far,
            (Port::West, &all[..1]),
            Vec::new(),
        );
        region
    }

    fn route(
        &self,
        region: &mut Region,
        color: Color,
        stream: &str,
        at: Lattice,
        (input, outputs): (Port, &[Port]),
        filters: Vec<Filter>,
    ) {
        if at.nx > 0 && at.ny > 0 {
            region.routes.push(Route {
                color,
                stream: format!("{}: {stream}", self.name),
                at,
                positions: vec![Position {
                    input,
                    outputs: outputs.to_vec(),
                    hold: Expr::Const(1),
                }],
                filters,
            });
        }
    }

    /// The ways of sums down the bands, from row to row.
    fn partial_sums(&self, region: &mut Region) {
        for (top, last) in self.bands.each() {
            for parity in 0..2 {
                let from = top + (top + parity) % 2;
                let color = colors::REDUCE[parity];
                let at = self.lattice(from, last, 2);
                self.route(
                    region,
                    color,
                    "partial sums",
                    at,
                    (Port::Ramp, &[Port::South]),
                    Vec::new(),
                );
                let at = self.lattice(from + 1, last + 1, 2);
                self.route(
                    region,
                    color,
                    "partial sums",
                    at,
                    (Port::North, &[Port::Ramp]),
                    Vec::new(),
                );
            }
        }
    }

    /// The ways of results up the bands, from their last rows. `own` is the first wavelet of the results that a row takes, their number, and that of all
    /// results of its band; without it each row takes all.
    fn results(&self, region: &mut Region, own: Option<&dyn Fn(usize) -> [usize; 3]>) {
        for (band, (top, last)) in self.bands.each().enumerate() {
            let at = self.lattice(last, last + 1, 1);
            self.route(
                region,
                RESULTS,
                "results",
                at,
                (Port::Ramp, &[Port::North]),
                Vec::new(),
            );
            for (name, from, end, outputs) in [
                ("results", top + 1, last, &[Port::North, Port::Ramp][..]),
                ("results.first", top, top + 1, &[Port::Ramp]),
            ] {
                let at = self.lattice(from, end, 1);
                if at.ny == 0 {
                    continue;
                }
                let name = self.of_band(name, band);
                let filters = own.map(|own| Filter {
                    output: Port::Ramp,
                    first: self.number(&name, "before", at, |row| own(row)[0]),
                    count: self.number(&name, "own", at, |row| own(row)[1]),
                    period: Expr::Const(own(top)[2] as i64),
                });
                self.route(
                    region,
                    RESULTS,
                    "results",
                    at,
                    (Port::South, outputs),
                    filters.into_iter().collect(),
                );
            }
        }
    }

    /// What enters, from the edge to the rows: for each round and row a block, at least a wavelet; its last one is flagged.
    fn enter(
        &self,
        region: &mut Region,
        rounds: usize,
        block: impl Fn(usize, usize) -> Vec<Wavelet>,
    ) -> Vec<Feed> {
        let trunk = Trunk::new(self.machine, self.bands.height());
        let mut feeds = Vec::new();
        for channel in &trunk.channels {
            trunk.routes(region, &format!("{}: weights", self.name), *channel);
            let mut all = Vec::new();
            for round in 0..rounds {
                for row in Trunk::in_turn(*channel) {
                    all.extend(block(round, row));
                    if let Some(last) = all.last_mut() {
                        last.flag = true;
                    }
                }
            }
            feeds.push(Feed {
                name: format!("{}: weights by row {}", self.name, channel.1),
                side: Side::West,
                row: channel.1 as u32,
                color: WEIGHTS,
                epoch: 1,
                data: all.into(),
            });
        }
        feeds
    }

    /// The program, if every PE's data and code fit its SRAM.
    fn finish(&self, region: Region, feeds: Vec<Feed>) -> Result<Program, CompileError> {
        self.fits(&region.blocks)?;
        let stage = Stage {
            name: String::new(),
            priority: vec![RESULTS, colors::REDUCE[0], colors::REDUCE[1], WEIGHTS],
            feeds,
            regions: vec![region],
            ..Stage::default()
        };
        let program = Program::single(self.name, stage);
        limits::run(&program, self.machine)?;
        Ok(program)
    }

    /// Whether every PE's data and code fit its SRAM.
    fn fits(&self, blocks: &[Block]) -> Result<(), CompileError> {
        let bytes = |block: &Block| (memory::bytes(block, self.machine), block.at);
        match blocks
            .iter()
            .map(bytes)
            .max_by_key(|(bytes, at)| (*bytes, u32::MAX - at.y))
        {
            Some((bytes, at)) if bytes > self.machine.pe.sram_bytes as u64 => {
                Err(self.too_large((at.x, at.y), bytes))
            }
            _ => Ok(()),
        }
    }

    fn too_large(&self, (x, y): (u32, u32), bytes: u64) -> CompileError {
        CompileError::DoesNotFit {
            what: format!("{}, in place, on PE ({x}, {y})", self.name),
            needs: format!("{bytes} bytes of SRAM"),
            has: format!("{} bytes on {}", self.machine.pe.sram_bytes, self.machine.name),
            helps: format!(
                "fewer tokens at once, a larger mesh, or --set pe.sram_bytes={}",
                bytes.checked_next_multiple_of(1024).unwrap_or(bytes)
            ),
        }
    }

    /// A tensor's features in a band, if they are as many in each.
    fn features_of_band(&self, t: &Tensor) -> Option<usize> {
        let each = t.all() / self.bands.len();
        let ends = |(band, (_, last)): (usize, (usize, usize))| t.features[last] == (band + 1) * each;
        self.bands.each().enumerate().all(ends).then_some(each)
    }

    fn refuse<T>(&self, message: String) -> Result<T, CompileError> {
        Err(CompileError::Unsupported {
            node: format!("{}, in place", self.name),
            message,
        })
    }

    /// Checks tensors, of as many tokens each: what is written and what is read, which do not overlap unless they are the same; all below
    /// `scratch`.
    fn check(&self, written: &Tensor, read: &[&Tensor], scratch: u32) -> Result<(), CompileError> {
        let height = self.bands.height();
        let mesh = &self.machine.mesh;
        if mesh.width < 2 || mesh.height as usize != height {
            return self.refuse(format!(
                "bands of {height} rows in all on a mesh of {} x {} PEs: expected as many rows, and 2 columns at least",
                mesh.width, mesh.height
            ));
        }
        if scratch > self.machine.pe.sram_bytes {
            return Err(self.too_large((1, 0), scratch as u64));
        }
        for t in [written].into_iter().chain(read.iter().copied()) {
            let in_order = t.features.windows(2).all(|w| w[0] <= w[1]);
            if t.features.len() != height + 1 || t.features[0] != 0 || !in_order {
                return self.refuse(format!(
                    "features by row {:?}: expected {} numbers from 0 on, none smaller than the one before",
                    t.features,
                    height + 1
                ));
            }
            if let Some((_, row)) = self.bands.each().find(|(_, row)| t.of(*row) > 0) {
                return self.refuse(format!(
                    "{} features on row {row}, which finishes sums: expected none",
                    t.of(row)
                ));
            }
            if !t.address.is_multiple_of(32) || !scratch.is_multiple_of(32) {
                return self.refuse(format!(
                    "tensors at SRAM address {}, scratch from {scratch} on: expected multiples of 32",
                    t.address
                ));
            }
            // extents of descriptors (M8)
            if t.tokens == 0 || t.tokens > 1 << 24 || t.tokens != written.tokens {
                return self.refuse(format!(
                    "{} tokens in a column: expected as many in all tensors, and from 1 to {}",
                    t.tokens,
                    1 << 24
                ));
            }
            if t.end() > self.machine.pe.sram_bytes as u64 {
                return Err(self.too_large((1, 0), t.end()));
            }
            if t.end() > scratch as u64 {
                return self.refuse(format!(
                    "a tensor up to SRAM address {}, scratch from {scratch} on: expected all tensors before it",
                    t.end()
                ));
            }
        }
        let overlaps = |t: &&&Tensor| {
            let apart = t.end() <= written.address as u64 || written.end() <= t.address as u64;
            !apart && ***t != *written
        };
        if let Some(t) = read.iter().find(overlaps) {
            return self.refuse(format!(
                "a tensor that is read at SRAM address {}, and one that is written at {}: expected one place, or two that do not overlap",
                t.address, written.address
            ));
        }
        Ok(())
    }
}

/// Names the place of a tensor in a block's memory map.
fn declare(a: &mut Assembler, name: &str, tensor: &Tensor) {
    a.fixed(name, tensor.address, tensor.bytes() as u32);
}

/// Routers that take positions in turn: from where, to where, and for how many blocks.
fn switch(region: &mut Region, color: Color, stream: &str, at: Lattice, positions: Vec<(Port, Port, Expr)>) {
    if at.nx == 0 || at.ny == 0 {
        return;
    }
    let position = |(input, output, hold)| Position {
        input,
        outputs: vec![output],
        hold,
    };
    region.routes.push(Route {
        color,
        stream: stream.into(),
        at,
        positions: positions.into_iter().map(position).collect(),
        filters: Vec::new(),
    });
}

/// The routers of column 0, which lead what enters in the west to the rows.
struct Trunk {
    /// The first row that each channel serves, its own row, and the row after the last.
    channels: Vec<(usize, usize, usize)>,
}

impl Trunk {
    fn new(machine: &Machine, height: usize) -> Trunk {
        let channels = machine.channels();
        let rows: Vec<usize> = channels
            .iter()
            .filter(|c| c.side == Side::West)
            .map(|c| c.row as usize)
            .collect();
        // equal shares, as long as each has its channel's row
        let equal = balanced(height, rows.len());
        let start = |i: usize| match i {
            0 => 0,
            i if i == rows.len() => height,
            i => equal[i].clamp(rows[i - 1] + 1, rows[i]),
        };
        let channels = (0..rows.len()).map(|i| (start(i), rows[i], start(i + 1)));
        Trunk {
            channels: channels.collect(),
        }
    }

    /// The rows of a channel in the order in which they get blocks.
    fn in_turn((top, own, end): (usize, usize, usize)) -> impl Iterator<Item = usize> {
        (top..own + 1).rev().chain(own + 1..end)
    }

    /// The routers that lead a channel's stream to its rows: a row's own block turns off to the east, then those of the rows
    /// behind it pass.
    fn routes(&self, region: &mut Region, stream: &str, (top, own, end): (usize, usize, usize)) {
        let mut add = |from: usize, to: usize, positions: Vec<(Port, Port, Expr)>| {
            let at = Lattice::rect(0, from as u32, 1, to.saturating_sub(from) as u32);
            switch(region, WEIGHTS, stream, at, positions);
        };
        let one = || Expr::Const(1);
        let number = |n: usize| Expr::Const(n as i64);
        let minus = |a: Expr, b: Expr| Expr::Sub(Box::new(a), Box::new(b));
        let mut at_own = vec![(Port::West, Port::East, one())];
        if top < own {
            at_own.push((Port::West, Port::North, number(own - top)));
        }
        if own + 1 < end {
            at_own.push((Port::West, Port::South, number(end - 1 - own)));
        }
        add(own, own + 1, at_own);
        add(
            top + 1,
            own,
            vec![
                (Port::South, Port::East, one()),
                (Port::South, Port::North, minus(Expr::Y, number(top))),
            ],
        );
        if top < own {
            add(top, top + 1, vec![(Port::South, Port::East, one())]);
        }
        add(
            own + 1,
            end - 1,
            vec![
                (Port::North, Port::East, one()),
                (Port::North, Port::South, minus(number(end - 1), Expr::Y)),
            ],
        );
        if own + 1 < end {
            add(end - 1, end, vec![(Port::North, Port::East, one())]);
        }
    }
}
