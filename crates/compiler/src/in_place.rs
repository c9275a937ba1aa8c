//! A matrix product in place: activations lie on the mesh at the start, results stay there, and nothing but weights enters. Every column of
//! PEs but the first does the same to its own tokens, so all columns are exact copies of each other, shifted in time.
//!
//! Y\[tokens, M\] = X\[tokens, K\] W\[K, M\] + bias, with ReLU if asked. Tokens are split over the columns, but the first, whose routers are the
//! trunk of the weights; input features over the rows, but the last, which finishes sums. Outputs are worked on in groups
//! ([`crate::kernels`], `blocks.rs`): each row gets a group's block in turn, to all its columns at once. Partial sums go south along each
//! column; the last row takes a group's sums whole, adds the bias, applies ReLU, and sends them north, past all rows of the column,
//! of which each keeps the outputs that it owns.
//!
//! *No PE does anything by itself*: each begins with the first wavelet of its row, which says how long the first block is. So a column lives
//! by what enters it in the west alone, one cycle after its neighbour.
//!
//! *No circle of waits.* Results are taken from the start on, by a microthread that waits for nothing else. A row takes block b in as soon as
//! block b - 2 is multiplied; that waits for sums of groups before b - 2 alone, in its own row and those south of it, and for the last
//! row, which asks for a group's biases when the sums of the group before the last are there. All of these are sums of groups up to b - 2,
//! whose blocks come before any block b on each channel; and the trunk gives the rows of a channel their blocks group by group.

use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::blocks::{self, FETCH, Products, RING, SUMS, TAKE};
use crate::kernels::{Context, balanced, colors, per_wavelet, table, wide};
use crate::passes::{limits, memory};
use half::f16;
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine, Side};

/// Weights and biases, from the edge to their rows.
const WEIGHTS: Color = colors::LOAD;
/// Finished sums, from the last row to those that own them.
const RESULTS: Color = colors::SPREAD;

/// Outputs of a group beyond which a block's own cycles, some tens, are below a hundredth of its work (measured: docs/streaming.md).
const GROUP: usize = 16;

/// What is multiplied.
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// Of the region, its streams and tables: another one for each product of a program.
    pub name: &'a str,
    /// Rows of X and Y: a multiple of the columns that have tokens, all of the mesh but one.
    pub tokens: usize,
    /// Input features.
    pub k: usize,
    /// Output features.
    pub m: usize,
    /// Type of X, W and Y. Sums and biases are f32.
    pub ty: Ty,
    /// \[m, k\], row by row.
    pub weights: &'a [f32],
    /// \[m\].
    pub bias: Option<&'a [f32]>,
    /// max(0, ·) of the sums.
    pub relu: bool,
    /// Zero weights are neither sent nor multiplied.
    pub lists: bool,
    /// The first output of each row of PEs but the last, and `m` at the end: the features of a product that follows. None for equal shares.
    pub outputs: Option<Vec<usize>>,
    /// SRAM address of X: 0, or where a product before left it ([`Mapped::y`]). Y lies before X if there is room, else behind it.
    pub x: u32,
}

/// A product as a program, and where its operands lie.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// A single stage on the whole mesh. It reads X where [`Mapped::place`] puts it, and leaves Y.
    pub program: Program,
    /// Outputs worked on at once.
    pub group: usize,
    /// The first input feature of each row of PEs but the last, and the end.
    pub features: Vec<usize>,
    /// The first output of each row of PEs but the last, and the end.
    pub outputs: Vec<usize>,
    /// Tokens of each column but the first.
    pub tokens: usize,
    /// SRAM address of X on each PE that has features: \[feature\]\[token\], `pitch` bytes from feature to feature.
    pub x: u32,
    /// SRAM address of Y, as X.
    pub y: u32,
    /// Bytes from feature to feature, and from output to output.
    pub pitch: u32,
    ty: Ty,
    width: usize,
}

impl Product<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: slices of another length than the sizes say, tokens that the columns do not divide, fewer features than rows; what does not fit
    /// (SRAM, switch positions, filters, threads).
    pub fn map(&self, machine: &Machine) -> Result<Mapped, CompileError> {
        let mut plan = self.plan(machine)?;
        // the largest group that fits and still gains; sums that don't fit by themselves need no closer look
        let (_, pitch) = blocks::pitches(self.ty, plan.tokens);
        let near = |group: &usize| {
            *group <= GROUP && (RING * group) as u64 * pitch as u64 <= machine.pe.sram_bytes as u64
        };
        let sizes = blocks::group_sizes(self.m, plan.widest(), self.lists).filter(near);
        let mut refused = plan.too_large(0, plan.least());
        for group in sizes {
            plan.group = group;
            let (emitted, x, y) = plan.blocks();
            match plan.fits(&emitted) {
                Ok(()) => return plan.finish(emitted, x, y),
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }

    fn refuse(&self, message: String) -> CompileError {
        CompileError::Unsupported {
            node: format!(
                "{}, a product in place of [{}, {}] and [{}, {}]",
                self.name, self.tokens, self.k, self.k, self.m
            ),
            message,
        }
    }

    fn plan<'b>(&'b self, machine: &'b Machine) -> Result<Plan<'b>, CompileError> {
        let (width, height) = (machine.mesh.width, machine.mesh.height);
        let bad = |message: String| Err(self.refuse(message));
        if width < 2 || height < 2 {
            return bad(format!(
                "a mesh of {width} x {height} PEs: at least 2 x 2 are needed"
            ));
        }
        let (columns, rows) = (width as usize - 1, height as usize - 1);
        if !self.x.is_multiple_of(32) {
            return bad(format!("X at SRAM address {}: expected a multiple of 32", self.x));
        }
        for (what, n) in [("tokens", self.tokens), ("outputs", self.m)] {
            if n == 0 {
                return bad(format!("no {what}: at least one is needed"));
            }
        }
        // extents of descriptors (M8)
        if self.tokens / columns > 1 << 24 {
            return bad(format!(
                "{} tokens in a column: at most {} are possible",
                self.tokens / columns,
                1 << 24
            ));
        }
        if !self.tokens.is_multiple_of(columns) {
            return bad(format!(
                "{} tokens are not equally many for {columns} columns: {} would be, the added ones of any value",
                self.tokens,
                self.tokens.next_multiple_of(columns)
            ));
        }
        if self.k < rows {
            return bad(format!(
                "{} input features for {rows} rows: at least one for each is needed; --set mesh.height={}",
                self.k,
                self.k + 1
            ));
        }
        if Some(self.weights.len()) != self.k.checked_mul(self.m) {
            return bad(format!("{} weights, expected m x k", self.weights.len()));
        }
        if let Some(bias) = self.bias
            && bias.len() != self.m
        {
            return bad(format!("{} biases, expected {}", bias.len(), self.m));
        }
        let outputs = match &self.outputs {
            None => balanced(self.m, rows),
            Some(given) => {
                let in_order = given.windows(2).all(|w| w[0] <= w[1]);
                if given.len() != rows + 1 || given[0] != 0 || given[rows] != self.m || !in_order {
                    return bad(format!(
                        "outputs by row {given:?}: expected {} numbers from 0 to {}, none smaller than the one before",
                        rows + 1,
                        self.m
                    ));
                }
                given.clone()
            }
        };
        let tokens = self.tokens / columns;
        let wavelets = tokens.div_ceil(per_wavelet(machine, self.ty) as usize);
        let features = if self.lists {
            let mut costs = vec![0u64; self.k];
            for row in self.weights.chunks(self.k) {
                for (cost, w) in costs.iter_mut().zip(row) {
                    *cost += (*w != 0.0) as u64;
                }
            }
            let lanes = match self.ty {
                Ty::F32 => machine.pe.lanes.f32,
                Ty::F16 => machine.pe.lanes.f16,
            };
            let each = (tokens as u64).div_ceil(lanes as u64) + machine.pe.cost.issue as u64;
            // equally many weights; features without any are spread, too
            let costs: Vec<u64> = costs.iter().map(|n| n * each + tokens as u64).collect();
            blocks::even(&costs, rows)
        } else {
            balanced(self.k, rows)
        };
        let stored = if self.lists {
            let count = |f: &[usize]| {
                let mut sum = 0;
                let mut sums = vec![0];
                for row in self.weights.chunks(self.k) {
                    sum += row[f[0]..f[1]].iter().filter(|w| **w != 0.0).count() as u64;
                    sums.push(sum);
                }
                sums
            };
            features.windows(2).map(count).collect()
        } else {
            Vec::new()
        };
        let plan = Plan {
            product: self,
            machine,
            features,
            outputs,
            stored,
            tokens,
            wavelets,
            group: 1,
        };
        if plan.least() > machine.pe.sram_bytes as u64 {
            return Err(plan.too_large(0, plan.least()));
        }
        // what registers, and a filter, count
        let most = tokens.max(2 * plan.widest() + blocks::HEADER);
        if self.m.checked_mul(most).is_none_or(|n| n > i32::MAX as usize) {
            return bad(format!(
                "{} outputs of {tokens} tokens and up to {} features a PE: with more than {} elements of sums, or words of weights, a PE can't count them",
                self.m,
                plan.widest(),
                i32::MAX
            ));
        }
        if self.lists && plan.widest() > blocks::INDICES {
            return bad(format!(
                "{} input features on a PE: an index of a list reaches {}",
                plan.widest(),
                blocks::INDICES
            ));
        }
        Ok(plan)
    }
}

/// How the work is cut.
struct Plan<'a> {
    product: &'a Product<'a>,
    machine: &'a Machine,
    features: Vec<usize>,
    outputs: Vec<usize>,
    /// Of each row with features, where blocks are lists: its nonzero weights for outputs before each one, and all.
    stored: Vec<Vec<u64>>,
    /// Tokens of a column.
    tokens: usize,
    /// Wavelets of an output of a column.
    wavelets: usize,
    /// Outputs of a group.
    group: usize,
}

impl Plan<'_> {
    /// Rows with features.
    fn rows(&self) -> usize {
        self.features.len() - 1
    }

    fn features(&self, row: usize) -> usize {
        self.features[row + 1] - self.features[row]
    }

    fn outputs(&self, row: usize) -> usize {
        self.outputs[row + 1] - self.outputs[row]
    }

    fn widest(&self) -> usize {
        (0..self.rows()).map(|row| self.features(row)).max().unwrap_or(0)
    }

    /// Most outputs of a row.
    fn most(&self) -> usize {
        (0..self.rows()).map(|row| self.outputs(row)).max().unwrap_or(0)
    }

    /// Whether Y lies before X.
    fn y_first(&self) -> bool {
        let pitch = Context::pitch(self.product.ty, self.tokens) as u64;
        self.most() as u64 * pitch <= self.product.x as u64
    }

    /// The first output of each group, and the one after its last.
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> + Clone {
        let m = self.product.m;
        (0..m)
            .step_by(self.group)
            .map(move |from| (from, (from + self.group).min(m)))
    }

    /// Elements of a row's block for these outputs, as they are counted when it is taken in.
    fn elements(&self, row: usize, (from, to): (usize, usize)) -> u64 {
        if row == self.rows() {
            return if self.product.bias.is_some() {
                (to - from) as u64
            } else {
                1
            };
        }
        match self.stored.get(row) {
            Some(sums) => blocks::list_words(self.product.ty, sums[to] - sums[from]),
            None => ((to - from) * self.features(row)) as u64,
        }
    }

    /// Bytes of a buffer for a block, as many for all rows with features.
    fn block_bytes(&self) -> u32 {
        let all = (0..self.rows()).flat_map(|row| self.groups().map(move |group| self.elements(row, group)));
        let element = if self.product.lists {
            4
        } else {
            self.product.ty.bytes() as u64
        };
        let bytes = all.max().unwrap_or(0) * element;
        u32::try_from(bytes.next_multiple_of(32)).unwrap_or(u32::MAX / 4)
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

    /// All code, and the addresses of X and Y.
    fn blocks(&self) -> (Vec<Block>, u32, u32) {
        let (mut all, mut at) = (Vec::new(), (0, 0));
        // rows of one way of sending share their code; no sums come to the first
        for (name, from, end, dy) in [
            ("first", 0, 1, 1),
            ("odd", 1, self.rows(), 2),
            ("even", 2, self.rows(), 2),
        ] {
            let lattice = self.lattice(from, end, dy);
            if lattice.ny > 0 {
                let (block, x, y) = self.working(name, from, lattice);
                all.push(block);
                at = (x, y);
            }
        }
        all.push(self.last(self.lattice(self.rows(), self.rows() + 1, 1)));
        (all, at.0, at.1)
    }

    /// The code of rows with features, of which `from` is one.
    fn working(&self, name: &str, from: usize, at: Lattice) -> (Block, u32, u32) {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let product = self.product;
        let (pitch_x, pitch_y) = blocks::pitches(product.ty, self.tokens);
        let mut a = Assembler::new();
        // X and the accumulators start in different banks (M9)
        let bytes = self.widest() as u32 * pitch_x as u32;
        let (x, y) = if self.y_first() {
            let y = a.buffer("y", product.x, 0);
            (a.buffer("x", bytes, 0), y)
        } else {
            a = Assembler::from(product.x);
            let x = a.buffer("x", bytes, 0);
            (x, a.buffer("y", (self.most() as i64 * pitch_x) as u32, 0))
        };
        let sums = a.buffer("sums", (RING * self.group) as u32 * pitch_y as u32, 16);
        let block_bytes = self.block_bytes();
        let weights = a.buffer("weights", block_bytes, 0);
        let next = a.buffer("weights.next", block_bytes, 0);
        let number = |what: &str, f: &dyn Fn(usize) -> usize| {
            table(&format!("{}.{name}.{what}", self.product.name), at, |_, y| {
                f(y as usize) as i64
            })
        };
        let features = a.param("features", number("features", &|row| self.features(row)));
        let outputs = a.param("outputs", number("outputs", &|row| self.outputs(row)));
        let length = imm(self.tokens);
        let products = Products {
            ty: product.ty,
            wide: wide(self.machine, product.ty),
            lists: product.lists,
            color: WEIGHTS,
            m: product.m,
            group: self.group,
            features,
            each: features,
            length,
            pitch_x,
            pitch_y,
            x: Val::Imm(x),
            y: sums,
            both: weights + next,
            parity: from % 2,
            first: from == 0,
            items: false,
        };
        a.task("main", Trigger::Data(WEIGHTS));
        // r0 elements of the first block
        a.emit(Instr::Set(15, reg(0)));
        a.emit(Instr::Set(3, Val::Imm(weights)));
        products.fetch(&mut a, reg(3));
        a.memory(
            0,
            product.ty,
            Val::Imm(y),
            &[outputs, length],
            &[pitch_x / product.ty.bytes() as i64, 1],
            wide(self.machine, product.ty),
        );
        a.input(1, RESULTS, product.ty, &[outputs, length]);
        a.start(TAKE, Op::Mov, 0, of(1), None, Count::None);
        if product.lists {
            a.memory(11, Ty::F32, Val::Imm(sums), &[length], &[1], true);
            a.memory(12, product.ty, Val::Imm(x), &[length], &[1], true);
        }
        a.emit(Instr::Set(6, Val::Imm(sums)));
        products.groups(&mut a);
        a.emit(Instr::Halt);
        (a.finish(at), x as u32, y as u32)
    }

    /// The code of the last row.
    fn last(&self, at: Lattice) -> Block {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let product = self.product;
        let bias = product.bias.is_some();
        let pitch = Context::pitch(Ty::F32, self.tokens);
        let length = imm(self.tokens);
        let mut a = Assembler::new();
        let bytes = (self.group as i64 * pitch) as u32;
        let sums = a.buffer("sums", bytes, 0);
        let both = sums + a.buffer("sums.next", bytes, 0);
        let block_bytes = if bias { self.group as u32 * 4 } else { 4 }.next_multiple_of(32);
        let biases = a.buffer("bias", block_bytes, 0);
        let both_biases = biases + a.buffer("bias.next", block_bytes, 0);
        // sends the sums of r1 outputs that are not at r6
        let send = |a: &mut Assembler| {
            a.emit(Instr::Sub(6, Val::Imm(both), reg(6)));
            a.memory(4, Ty::F32, reg(6), &[reg(1), length], &[pitch / 4, 1], true);
            a.output(5, RESULTS, product.ty, &[reg(1), length], false);
            let (op, zero, count) = match product.relu {
                true => (Op::Max, Some(Operand::Imm(0.0)), Count::Other),
                false => (Op::Mov, None, Count::None),
            };
            a.map(op, 5, of(4), zero, count);
        };
        a.task("main", Trigger::Data(WEIGHTS));
        // r0 elements of the first block; r3 biases; r4 outputs left; r5 those of this group; r6 its sums; r1 outputs of the group before
        a.emit(Instr::Set(15, reg(0)));
        a.emit(Instr::Set(3, Val::Imm(biases)));
        blocks::fetch(&mut a, WEIGHTS, Ty::F32, true, reg(3));
        // it had the first wavelet's flag
        a.emit(Instr::Set(1, imm(0)));
        a.emit(Instr::Set(4, imm(product.m)));
        a.emit(Instr::Set(5, imm(self.group)));
        a.emit(Instr::Set(6, Val::Imm(sums)));
        let group = a.here("group");
        let (full, none, whole) = (a.label("full"), a.label("none"), a.label("whole"));
        // r2 sums taken in, when all that were asked for are there
        a.emit(Instr::Wait(SUMS, Some(reg(2))));
        a.emit(Instr::Wait(FETCH, Some(reg(14))));
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Set(5, reg(4)));
        a.bind(full);
        a.memory(0, Ty::F32, reg(6), &[reg(5), length], &[pitch / 4, 1], true);
        a.input(
            1,
            colors::REDUCE[(self.rows() - 1) % 2],
            Ty::F32,
            &[reg(5), length],
        );
        if bias {
            a.memory(2, Ty::F32, reg(3), &[reg(5), length], &[1, 0], true);
            a.start(SUMS, Op::Add, 0, of(1), Some(of(2)), Count::Other);
        } else {
            a.start(SUMS, Op::Mov, 0, of(1), None, Count::None);
        }
        a.emit(Instr::Mul(7, reg(5), length));
        a.emit(Instr::Add(2, reg(2), reg(7)));
        // the next block, where the one of the group before was
        a.emit(Instr::Sub(3, Val::Imm(both_biases), reg(3)));
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Eq, reg(4), imm(0), none);
        if bias {
            a.emit(Instr::Set(15, imm(self.group)));
            a.branch(Cond::Ge, reg(4), reg(15), whole);
            a.emit(Instr::Set(15, reg(4)));
            a.bind(whole);
        } else {
            a.emit(Instr::Set(15, imm(1)));
            a.bind(whole);
        }
        blocks::fetch(&mut a, WEIGHTS, Ty::F32, true, reg(3));
        a.bind(none);
        send(&mut a);
        a.emit(Instr::Set(1, reg(5)));
        a.branch(Cond::Ne, reg(4), imm(0), group);
        a.emit(Instr::Wait(SUMS, Some(reg(2))));
        send(&mut a);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// Bytes without which no PE can do: X, Y, and the sums of groups of one output.
    fn least(&self) -> u64 {
        let (pitch_x, pitch_y) = blocks::pitches(self.product.ty, self.tokens);
        let behind = if self.y_first() { 0 } else { self.most() };
        self.product.x as u64
            + (self.widest() + behind) as u64 * pitch_x as u64
            + RING as u64 * pitch_y as u64
    }

    /// Whether every PE's data and code fit its SRAM.
    fn fits(&self, emitted: &[Block]) -> Result<(), CompileError> {
        let bytes = |block: &Block| (memory::bytes(block, self.machine), block.at.y);
        match emitted
            .iter()
            .map(bytes)
            .max_by_key(|(bytes, y)| (*bytes, u32::MAX - y))
        {
            Some((bytes, y)) if bytes > self.machine.pe.sram_bytes as u64 => Err(self.too_large(y, bytes)),
            _ => Ok(()),
        }
    }

    fn too_large(&self, y: u32, bytes: u64) -> CompileError {
        CompileError::DoesNotFit {
            what: format!("{}, a product in place, on PE (1, {y})", self.product.name),
            needs: format!("{bytes} bytes of SRAM"),
            has: format!("{} bytes on {}", self.machine.pe.sram_bytes, self.machine.name),
            helps: format!(
                "fewer tokens at once, a larger mesh, or --set pe.sram_bytes={}",
                bytes.next_multiple_of(1024)
            ),
        }
    }

    fn finish(self, emitted: Vec<Block>, x: u32, y: u32) -> Result<Mapped, CompileError> {
        let (width, height) = (self.machine.mesh.width, self.machine.mesh.height);
        let channels = self.channels();
        let mut region = Region {
            name: self.product.name.into(),
            x: 0,
            y: 0,
            width,
            height,
            routes: Vec::new(),
            blocks: emitted,
        };
        for channel in &channels {
            self.trunk(&mut region, *channel);
        }
        self.rows_and_columns(&mut region);
        let feeds = channels.iter().map(|channel| Feed {
            name: format!("{}: weights by row {}", self.product.name, channel.1),
            side: Side::West,
            row: channel.1 as u32,
            color: WEIGHTS,
            epoch: 1,
            data: self.stream(*channel).into(),
        });
        let stage = Stage {
            priority: vec![RESULTS, colors::REDUCE[0], colors::REDUCE[1], WEIGHTS],
            feeds: feeds.collect(),
            regions: vec![region],
            ..Stage::default()
        };
        let program = Program::single(self.product.name, stage);
        limits::run(&program, self.machine)?;
        Ok(Mapped {
            program,
            group: self.group,
            tokens: self.tokens,
            x,
            y,
            pitch: Context::pitch(self.product.ty, self.tokens) as u32,
            ty: self.product.ty,
            width: width as usize,
            features: self.features,
            outputs: self.outputs,
        })
    }

    /// The first row that each channel in the west serves, its own row, and the row after the last.
    fn channels(&self) -> Vec<(usize, usize, usize)> {
        let channels = self.machine.channels();
        let rows: Vec<usize> = channels
            .iter()
            .filter(|c| c.side == Side::West)
            .map(|c| c.row as usize)
            .collect();
        let height = self.rows() + 1;
        // equal shares, as long as each has its channel's row
        let equal = balanced(height, rows.len());
        let start = |i: usize| match i {
            0 => 0,
            i if i == rows.len() => height,
            i => equal[i].clamp(rows[i - 1] + 1, rows[i]),
        };
        (0..rows.len())
            .map(|i| (start(i), rows[i], start(i + 1)))
            .collect()
    }

    /// The rows of a channel in the order in which they get blocks.
    fn in_turn((top, own, end): (usize, usize, usize)) -> impl Iterator<Item = usize> {
        (top..own + 1).rev().chain(own + 1..end)
    }

    /// The routers of column 0 that lead a channel's stream to its rows: a row's own block turns off to the east, then those of the rows
    /// behind it pass.
    fn trunk(&self, region: &mut Region, (top, own, end): (usize, usize, usize)) {
        let mut add = |from: usize, to: usize, positions: Vec<(Port, Port, Expr)>| {
            if from < to {
                let position = |(input, output, hold)| Position {
                    input,
                    outputs: vec![output],
                    hold,
                };
                region.routes.push(Route {
                    color: WEIGHTS,
                    stream: format!("{}: weights", self.product.name),
                    at: Lattice::rect(0, from as u32, 1, (to - from) as u32),
                    positions: positions.into_iter().map(position).collect(),
                    filters: Vec::new(),
                });
            }
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

    /// The routers of the columns with tokens.
    fn rows_and_columns(&self, region: &mut Region) {
        let (width, rows) = (self.machine.mesh.width, self.rows());
        let mut add =
            |color: Color, stream: &str, at: Lattice, way: (Port, &[Port]), filters: Vec<Filter>| {
                if at.nx > 0 && at.ny > 0 {
                    region.routes.push(Route {
                        color,
                        stream: format!("{}: {stream}", self.product.name),
                        at,
                        positions: vec![Position {
                            input: way.0,
                            outputs: way.1.to_vec(),
                            hold: Expr::Const(1),
                        }],
                        filters,
                    });
                }
            };
        let height = rows as u32 + 1;
        let all = [Port::Ramp, Port::East];
        let (near, far) = (
            Lattice::rect(1, 0, width - 2, height),
            Lattice::rect(width - 1, 0, 1, height),
        );
        add(WEIGHTS, "weights", near, (Port::West, &all), Vec::new());
        add(WEIGHTS, "weights", far, (Port::West, &all[..1]), Vec::new());
        for parity in 0..2 {
            for (from, way) in [
                (parity, (Port::Ramp, &[Port::South])),
                (parity + 1, (Port::North, &[Port::Ramp])),
            ] {
                let at = self.lattice(from, from + rows - parity, 2);
                let stream = "partial sums";
                add(colors::REDUCE[parity], stream, at, (way.0, way.1), Vec::new());
            }
        }
        add(
            RESULTS,
            "results",
            self.lattice(rows, rows + 1, 1),
            (Port::Ramp, &[Port::North]),
            Vec::new(),
        );
        for (name, from, end, outputs) in [
            ("results", 1, rows, &[Port::North, Port::Ramp][..]),
            ("results.first", 0, 1, &[Port::Ramp]),
        ] {
            let at = self.lattice(from, end, 1);
            if at.ny == 0 {
                continue;
            }
            let number = |what: &str, f: &dyn Fn(usize) -> usize| {
                table(&format!("{}.{name}.{what}", self.product.name), at, |_, y| {
                    (f(y as usize) * self.wavelets) as i64
                })
            };
            let filter = Filter {
                output: Port::Ramp,
                first: number("before", &|row| self.outputs[row]),
                count: number("own", &|row| self.outputs(row)),
                period: Expr::Const((self.product.m * self.wavelets) as i64),
            };
            add(RESULTS, "results", at, (Port::South, outputs), vec![filter]);
        }
    }

    /// What enters by a channel: for each of its rows the wavelet that begins it, then the rows' blocks in turn, all flagged at their ends.
    fn stream(&self, channel: (usize, usize, usize)) -> Vec<Wavelet> {
        let groups: Vec<(usize, usize)> = self.groups().collect();
        let mut all = Vec::new();
        for row in Self::in_turn(channel) {
            all.push(Wavelet {
                bits: self.elements(row, groups[0]),
                elements: 1,
                flag: true,
            });
        }
        for (i, group) in groups.iter().enumerate() {
            for row in Self::in_turn(channel) {
                all.extend(self.block(row, *group, groups.get(i + 1)));
                if let Some(last) = all.last_mut() {
                    last.flag = true;
                }
            }
        }
        all
    }

    /// A row's block for these outputs, and those of the block after it.
    fn block(&self, row: usize, (from, to): (usize, usize), next: Option<&(usize, usize)>) -> Vec<Wavelet> {
        let Product { ty, k, weights, .. } = *self.product;
        if row == self.rows() {
            let biases: Vec<u32> = match self.product.bias {
                Some(bias) => bias[from..to].iter().map(|b| b.to_bits()).collect(),
                None => vec![0],
            };
            return blocks::wavelets(self.machine, Ty::F32, &biases);
        }
        let features = self.features[row]..self.features[row + 1];
        let outputs: Vec<usize> = (from..to).collect();
        if self.product.lists {
            let weight = |m: usize, f: usize| Some(weights[m * k + f]).filter(|w| *w != 0.0);
            let mut words = blocks::list(ty, features, &outputs, self.group, weight);
            words[1] = next.map_or(0, |next| self.elements(row, *next) as u32);
            blocks::wavelets(self.machine, Ty::F32, &words)
        } else {
            let length = features.len() * outputs.len();
            let values = blocks::dense(ty, features, &outputs, length, |m, f| weights[m * k + f]);
            blocks::wavelets(self.machine, ty, &values)
        }
    }
}

impl Mapped {
    /// The SRAM of every PE, row by row of the mesh, with X \[tokens, k\] in it.
    ///
    /// # Panics
    /// `x` has another number of elements.
    pub fn place(&self, x: &[f32]) -> Vec<Vec<u8>> {
        let k = self.features[self.features.len() - 1];
        let columns = self.width - 1;
        assert_eq!(x.len(), self.tokens * columns * k, "X is [tokens, k]");
        let element = self.ty.bytes() as usize;
        let mut sram = vec![Vec::new(); self.width * self.features.len()];
        for (row, features) in self.features.windows(2).enumerate() {
            for column in 0..columns {
                let bytes = &mut sram[row * self.width + column + 1];
                bytes.resize(
                    self.x as usize + (features[1] - features[0]) * self.pitch as usize,
                    0,
                );
                for feature in features[0]..features[1] {
                    let at = self.x as usize + (feature - features[0]) * self.pitch as usize;
                    for token in 0..self.tokens {
                        let value = x[(column * self.tokens + token) * k + feature];
                        let to = &mut bytes[at + token * element..][..element];
                        match self.ty {
                            Ty::F32 => to.copy_from_slice(&value.to_le_bytes()),
                            Ty::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                        }
                    }
                }
            }
        }
        sram
    }

    /// Y \[tokens, m\] from the SRAM of every PE, row by row of the mesh, that the program left. What is not there is 0.
    pub fn read(&self, sram: &[Vec<u8>]) -> Vec<f32> {
        let m = self.outputs[self.outputs.len() - 1];
        let columns = self.width - 1;
        let element = self.ty.bytes() as usize;
        let mut y = vec![0.0; self.tokens * columns * m];
        for (row, outputs) in self.outputs.windows(2).enumerate() {
            for column in 0..columns {
                let Some(bytes) = sram.get(row * self.width + column + 1) else {
                    continue;
                };
                for output in outputs[0]..outputs[1] {
                    let at = self.y as usize + (output - outputs[0]) * self.pitch as usize;
                    for token in 0..self.tokens {
                        let Some(from) = bytes.get(at + token * element..at + (token + 1) * element) else {
                            continue;
                        };
                        y[(column * self.tokens + token) * m + output] = match *from {
                            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                            [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                            _ => 0.0,
                        };
                    }
                }
            }
        }
        y
    }
}
