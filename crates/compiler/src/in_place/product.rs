//! A matrix product in place.
//!
//! Y\[tokens, M\] = X\[tokens, K\] W\[K, M\] + bias, with ReLU if asked. Outputs are worked on in groups
//! ([`crate::kernels`], `blocks.rs`): each row gets a group's block in turn, to all its columns at once. Partial sums go south along each
//! column; the last row takes a group's sums whole, adds the bias, applies ReLU, and sends them north, past all rows of the column,
//! of which each keeps the outputs that it owns. A row's first wavelet says how long its first block is.
//!
//! Weights enter at the edge, or lie in column 0, whose PEs send them ([`Source`]). In each band of rows runs a product of its own. With weights from the
//! edge all bands have the same features, each all of them, and each has some of the outputs: sums then pass the rows of a band, not of the mesh
//! ([`super::replicate`] brings the features to all bands, [`super::choose`] says how many bands pay).
//!
//! *No circle of waits.* Results are taken from the start on, by a microthread that waits for nothing else. A row takes block b in as soon as
//! block b - 2 is multiplied; that waits for sums of groups before b - 2 alone, in its own row and those south of it, and for the last
//! row, which asks for a group's biases when the sums of the group before the last are there. All of these are sums of groups up to b - 2,
//! whose blocks come before any block b on each channel; and the trunk gives the rows of a channel their blocks group by group, in all bands: they have as many groups.

use super::{Bands, Frame, RESULTS, Role, Tensor, WEIGHTS, declare};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::blocks::{self, FETCH, Products, RING, SUMS, TAKE};
use crate::kernels::{Context, per_wavelet, wide};
use meshloom_simulator::Machine;
use meshloom_simulator::program::*;

/// Multiply-adds of a PE for a block beyond which the block's own cycles, about a hundred, are below a hundredth of its work; larger blocks take SRAM for nothing.
const WORK: u64 = 1 << 14;
/// Bytes of a PE's sums beyond which larger groups gain little (measured: docs/streaming.md), but take SRAM, and a simulation's memory.
const RING_BYTES: u64 = 4096;
/// Outputs that a group has at any rate, if it can.
const SMALL: u64 = 16;

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// From the edge: one product, whose outputs are shared by bands of rows. X has all K features in each band, again and again ([`super::Replicate`]);
    /// a band makes the outputs that Y has in it, at least one.
    Edge {
        /// The bands.
        bands: &'a Bands,
        /// \[m, k\], row by row.
        weights: &'a [f32],
        /// \[m\].
        bias: Option<&'a [f32]>,
        /// Zero weights are neither sent nor multiplied.
        lists: bool,
    },
    /// From column 0, whose PE in a row has the weights of the row's features, \[feature\]\[output\]: in each band of rows a product of the band's own,
    /// of X's features in the band and with as many outputs in each.
    West {
        /// The bands.
        bands: &'a Bands,
        /// Type of the weights. Of f16 outputs are even in number: two lie where one access reaches them.
        ty: Ty,
        /// SRAM address in column 0.
        address: u32,
        /// Bytes from feature to feature.
        pitch: u32,
    },
}

/// What is multiplied. Sums and biases are f32.
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// Of the region, its streams and tables: another one for each product of a program.
    pub name: &'a str,
    /// Its type is that of weights that enter, too.
    pub x: &'a Tensor,
    /// Where results go.
    pub y: &'a Tensor,
    /// Weights and biases.
    pub source: Source<'a>,
    /// max(0, ·) of the sums.
    pub relu: bool,
    /// SRAM from this address on may be used; all tensors lie before it.
    pub scratch: u32,
}

/// A product as a program.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// A single stage on the whole mesh.
    pub program: Program,
    /// Outputs worked on at once.
    pub group: usize,
}

/// The first feature of each row, and the end, of an X whose product, by lists of weights \[m, k\], takes all rows about equally long: nonzero weights, not
/// features, are spread. `tokens` are those of a column.
///
/// Errors: fewer features than rows, or another number of weights than a multiple of `k`.
pub fn even_features(
    machine: &Machine,
    ty: Ty,
    tokens: usize,
    k: usize,
    weights: &[f32],
) -> Result<Vec<usize>, CompileError> {
    let rows = machine.mesh.height as usize - 1;
    if k < rows.max(1) || rows == 0 || !weights.len().is_multiple_of(k) {
        return Err(CompileError::Unsupported {
            node: format!("{} weights of {k} input features, in place", weights.len()),
            message: format!(
                "a feature for each of {rows} rows, at least one, and as many weights for each, are needed"
            ),
        });
    }
    let mut costs = vec![0u64; k];
    for row in weights.chunks(k) {
        for (cost, w) in costs.iter_mut().zip(row) {
            *cost += (*w != 0.0) as u64;
        }
    }
    let each = (tokens as u64).div_ceil(mac_lanes(machine, ty)) + machine.pe.cost.issue as u64;
    // equally many weights; features without any are spread, too
    let costs: Vec<u64> = costs.iter().map(|n| n * each + tokens as u64).collect();
    let mut starts = blocks::even(&costs, rows);
    starts.push(k);
    Ok(starts)
}

/// Multiply-adds of a PE a cycle, with accumulators of f32.
pub(super) fn mac_lanes(machine: &Machine, ty: Ty) -> u64 {
    let lanes = &machine.pe.lanes;
    (if ty == Ty::F32 { lanes.f32 } else { lanes.f16 }) as u64
}

/// Outputs of a group beyond which a larger one gains little, given a PE's multiply-adds for an output.
pub(super) fn enough(work: u64, ty: Ty, tokens: usize) -> u64 {
    let (_, pitch) = blocks::pitches(ty, tokens);
    let in_sums = RING_BYTES / (RING as u64 * pitch as u64);
    WORK.div_ceil(work.max(1)).min(in_sums).max(SMALL)
}

impl Product<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: slices of another length than the sizes say, tensors that do not lie as they have to; what does not fit (SRAM, switch
    /// positions, filters, threads).
    pub fn map(&self, machine: &Machine) -> Result<Mapped, CompileError> {
        let (Source::Edge { bands, .. } | Source::West { bands, .. }) = self.source;
        let frame = Frame {
            name: self.name,
            machine,
            bands,
        };
        let mut plan = self.plan(frame)?;
        // the largest group that fits and still gains; sums that don't fit by themselves need no closer look
        let (_, pitch) = blocks::pitches(self.x.ty, self.x.tokens);
        let enough = enough(plan.work(), self.x.ty, self.x.tokens);
        let near = |group: &usize| {
            *group as u64 <= enough && (RING * group) as u64 * pitch as u64 <= machine.pe.sram_bytes as u64
        };
        // of f16 two outputs share an access of column 0's
        let unit = if !plan.enters && plan.weights == Ty::F16 {
            2
        } else {
            1
        };
        let (most, least) = (plan.most(), plan.m.iter().copied().min().unwrap_or(0));
        // all bands have as many groups
        let alike = |group: &usize| most.div_ceil(*group) == least.div_ceil(*group);
        let small = blocks::group_sizes(most, self.x.most(), plan.lists);
        let larger = small.clone().next().map_or(0, |group| group + 1)..=most;
        let larger = larger.filter(|group| least < most && group * self.x.most() <= blocks::INDICES);
        let sizes = small
            .map(|group| group.next_multiple_of(unit))
            .filter(alike)
            .chain(larger.filter(alike).take(1))
            .filter(near);
        let mut refused = match least < most {
            false => plan.frame.too_large((1, 0), plan.least()),
            true => CompileError::DoesNotFit {
                what: format!("{}, in place, in {} bands", self.name, plan.m.len()),
                needs: format!("as many groups of outputs in each, of {least} to {most} outputs"),
                has: format!("groups of up to {enough} outputs"),
                helps: "bands with more equal numbers of outputs".into(),
            },
        };
        for group in sizes {
            plan.group = group;
            let emitted = plan.blocks();
            match plan.frame.fits(&emitted) {
                Ok(()) => return plan.finish(emitted),
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }

    fn plan<'b>(&'b self, frame: Frame<'b>) -> Result<Plan<'b>, CompileError> {
        let (x, y) = (self.x, self.y);
        frame.check(y, &[x], self.scratch)?;
        if x.address == y.address && y.most() > 0 && x.most() > 0 {
            return frame.refuse("X and Y at the same place: expected two".into());
        }
        let bands = frame.bands.len();
        let of_band = |(top, last): (usize, usize)| y.features[last] - y.features[top];
        let m: Vec<usize> = frame.bands.each().map(of_band).collect();
        let (most, least) = (
            m.iter().copied().max().unwrap_or(0),
            m.iter().copied().min().unwrap_or(0),
        );
        let from_edge = matches!(self.source, Source::Edge { .. });
        let Some(k) = frame.features_of_band(x).filter(|_| from_edge || least == most) else {
            return frame.refuse(format!(
                "X and Y have {} and {} features: expected as many in each of {bands} bands",
                x.all(),
                y.all()
            ));
        };
        if k == 0 || least == 0 {
            return frame.refuse(format!(
                "{k} input features and {least} outputs of a band: at least one of each is needed"
            ));
        }
        let mut stored = Vec::new();
        let (mut lists, mut enters) = (false, false);
        if let Source::Edge {
            weights,
            bias,
            lists: by_lists,
            ..
        } = self.source
        {
            (lists, enters) = (by_lists, true);
            let all = y.all();
            if Some(weights.len()) != k.checked_mul(all) {
                return frame.refuse(format!("{} weights, expected {all} x {k}", weights.len()));
            }
            if let Some(bias) = bias
                && bias.len() != all
            {
                return frame.refuse(format!("{} biases, expected {all}", bias.len()));
            }
            if lists {
                for (band, (top, last)) in frame.bands.each().enumerate() {
                    for row in top..=last {
                        let [from, to] = [row, row + 1].map(|row| x.features[row] - band * k);
                        let mut sum = 0;
                        let mut sums = vec![0];
                        for of_output in weights[y.features[top] * k..y.features[last] * k].chunks(k) {
                            sum += of_output[from..to].iter().filter(|w| **w != 0.0).count() as u64;
                            sums.push(sum);
                        }
                        stored.push(sums);
                    }
                }
            }
        }
        let mut weights = x.ty;
        if let Source::West {
            ty, address, pitch, ..
        } = self.source
        {
            weights = ty;
            if ty == Ty::F16 && !most.is_multiple_of(2) {
                return frame.refuse(format!(
                    "{most} outputs of weights of f16 in column 0: expected a multiple of 2"
                ));
            }
            if !address.is_multiple_of(32) || !pitch.is_multiple_of(32) {
                return frame.refuse(format!(
                    "weights at SRAM address {address} in column 0, {pitch} bytes from feature to feature: expected multiples of 32"
                ));
            }
            let row = most as u64 * ty.bytes() as u64;
            let end = address as u64 + x.most() as u64 * pitch as u64;
            if row > pitch as u64 {
                return frame.refuse(format!(
                    "{most} weights of a feature in column 0 in {pitch} bytes: expected {row} bytes at least"
                ));
            }
            if end > frame.machine.pe.sram_bytes as u64 {
                return Err(frame.too_large((0, 0), end));
            }
        }
        let plan = Plan {
            product: self,
            frame,
            k,
            m,
            weights,
            lists,
            enters,
            stored,
            group: 1,
        };
        if plan.least() > plan.frame.machine.pe.sram_bytes as u64 {
            return Err(plan.frame.too_large((1, 0), plan.least()));
        }
        // what registers, and a filter, count
        let elements = x.tokens.max(2 * x.most() + blocks::HEADER);
        if most.checked_mul(elements).is_none_or(|n| n > i32::MAX as usize) {
            return plan.frame.refuse(format!(
                "{most} outputs of {} tokens and up to {} features a PE: with more than {} elements of sums, or words of weights, a PE can't count them",
                x.tokens,
                x.most(),
                i32::MAX
            ));
        }
        if lists && x.most() > blocks::INDICES {
            return plan.frame.refuse(format!(
                "{} input features on a PE: an index of a list reaches {}",
                x.most(),
                blocks::INDICES
            ));
        }
        Ok(plan)
    }
}

/// How the work is cut.
struct Plan<'a> {
    product: &'a Product<'a>,
    frame: Frame<'a>,
    /// Features of X in each band.
    k: usize,
    /// Outputs of each band.
    m: Vec<usize>,
    /// Type of the weights.
    weights: Ty,
    lists: bool,
    /// Weights enter at the edge.
    enters: bool,
    /// Of each row, where blocks are lists: its nonzero weights for the band's outputs before each one, and all.
    stored: Vec<Vec<u64>>,
    /// Outputs of a group.
    group: usize,
}

impl Plan<'_> {
    /// Most outputs of a band.
    fn most(&self) -> usize {
        self.m.iter().copied().max().unwrap_or(0)
    }

    /// The band of a row.
    fn band(&self, row: usize) -> usize {
        let before = self.frame.bands.each().take_while(|(_, last)| *last < row);
        before.count()
    }

    /// The first output of each group of a band, and the one after its last, counted from the band's first.
    fn groups(&self, band: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let m = self.m[band];
        (0..m)
            .step_by(self.group)
            .map(move |from| (from, (from + self.group).min(m)))
    }

    /// Elements of a dense block for each output: what enters has one at least, since its last one is flagged.
    fn each(&self, row: usize) -> usize {
        self.product.x.of(row).max(self.enters as usize)
    }

    /// Multiply-adds for an output on the PEs that have most.
    fn work(&self) -> u64 {
        let stored = self.stored.iter().filter_map(|sums| sums.last());
        let weights = match stored.max() {
            Some(most) => most.div_ceil(self.most() as u64),
            None => self.product.x.most() as u64,
        };
        weights * self.product.x.tokens as u64
    }

    fn bias(&self) -> Option<&[f32]> {
        match self.product.source {
            Source::Edge { bias, .. } => bias,
            Source::West { .. } => None,
        }
    }

    fn finishes(&self, row: usize) -> bool {
        self.frame.bands.each().any(|(_, last)| last == row)
    }

    /// Elements of a row's block for these outputs of its band, as they are counted when it is taken in.
    fn elements(&self, row: usize, (from, to): (usize, usize)) -> u64 {
        if self.finishes(row) {
            return if self.bias().is_some() {
                (to - from) as u64
            } else {
                self.enters as u64
            };
        }
        match self.stored.get(row) {
            Some(sums) => blocks::list_words(self.product.x.ty, sums[to] - sums[from]),
            None => ((to - from) * self.each(row)) as u64,
        }
    }

    /// Bytes of a buffer for a block, as many for all rows with features.
    fn block_bytes(&self) -> u32 {
        let bands = self.frame.bands.each().enumerate();
        let rows = bands.flat_map(|(band, (top, last))| (top..last).map(move |row| (band, row)));
        let all = rows.flat_map(|(band, row)| self.groups(band).map(move |group| self.elements(row, group)));
        let element = if self.lists {
            4
        } else {
            self.weights.bytes() as u64
        };
        let bytes = all.max().unwrap_or(0) * element;
        u32::try_from(bytes.next_multiple_of(32)).unwrap_or(u32::MAX / 4)
    }

    /// All code.
    fn blocks(&self) -> Vec<Block> {
        let mut all: Vec<Block> = self.frame.working().iter().map(|r| self.working(r)).collect();
        all.extend(self.frame.last().iter().map(|r| self.last(r)));
        if let Source::West { address, pitch, .. } = self.product.source {
            for (band, (top, last)) in self.frame.bands.each().enumerate() {
                all.push(self.sender(band, (top, last), (address, pitch)));
                all.push(self.starter(last));
            }
        }
        all
    }

    /// The code of rows with features.
    fn working(&self, role: &Role) -> Block {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let Product { x, y: results, .. } = *self.product;
        let machine = self.frame.machine;
        let (pitch_x, pitch_y) = blocks::pitches(x.ty, x.tokens);
        let mut a = Assembler::from(self.product.scratch);
        declare(&mut a, "x", x);
        declare(&mut a, "y", results);
        // X and the accumulators start in different banks (M9)
        let sums = a.buffer("sums", (RING * self.group) as u32 * pitch_y as u32, 16);
        let block_bytes = self.block_bytes();
        let weights = a.buffer("weights", block_bytes, 0);
        let next = a.buffer("weights.next", block_bytes, 0);
        let number = |what: &str, f: &dyn Fn(usize) -> usize| self.frame.number(&role.name, what, role.at, f);
        let features = a.param("features", number("features", &|row| x.of(row)));
        let outputs = a.param("outputs", number("outputs", &|row| results.of(row)));
        let each = match role
            .at
            .places()
            .all(|(_, y)| self.each(y as usize) == x.of(y as usize))
        {
            true => features,
            false => a.param("each", number("each", &|row| self.each(row))),
        };
        let length = imm(x.tokens);
        let products = Products {
            ty: x.ty,
            // column 0 sends what a narrow access gives
            wide: self.enters && wide(machine, x.ty),
            weights: self.weights,
            lists: self.lists,
            color: WEIGHTS,
            m: self.m[self.band(role.row)],
            group: self.group,
            features,
            each,
            length,
            pitch_x,
            pitch_y,
            x: Val::Imm(x.address as i64),
            y: sums,
            both: weights + next,
            parity: role.row % 2,
            first: role.first,
            items: false,
            fresh: Some(role.at.places().any(|(_, y)| x.of(y as usize) == 0)),
            count: if self.enters { Count::Mac } else { Count::MacAct },
        };
        a.task("main", Trigger::Data(WEIGHTS));
        // r0 elements of the first block
        a.emit(Instr::Set(15, reg(0)));
        a.emit(Instr::Set(3, Val::Imm(weights)));
        products.fetch(&mut a, reg(3));
        a.memory(
            0,
            results.ty,
            Val::Imm(results.address as i64),
            &[outputs, length],
            &[results.pitch() as i64 / results.ty.bytes() as i64, 1],
            wide(machine, results.ty),
        );
        a.input(1, RESULTS, results.ty, &[outputs, length]);
        a.start(TAKE, Op::Mov, 0, of(1), None, Count::None);
        if self.lists {
            a.memory(11, Ty::F32, Val::Imm(sums), &[length], &[1], true);
            a.memory(12, x.ty, Val::Imm(x.address as i64), &[length], &[1], true);
        }
        a.emit(Instr::Set(6, Val::Imm(sums)));
        products.groups(&mut a);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }

    /// The code of a band's last row.
    fn last(&self, role: &Role) -> Block {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let Product { y: results, relu, .. } = *self.product;
        let bias = self.bias().is_some();
        let pitch = Context::pitch(Ty::F32, results.tokens);
        let length = imm(results.tokens);
        let mut a = Assembler::from(self.product.scratch);
        let bytes = (self.group as i64 * pitch) as u32;
        let sums = a.buffer("sums", bytes, 0);
        let both = sums + a.buffer("sums.next", bytes, 0);
        let (mut biases, mut both_biases) = (0, 0);
        if self.enters {
            let block_bytes = if bias { self.group as u32 * 4 } else { 4 }.next_multiple_of(32);
            biases = a.buffer("bias", block_bytes, 0);
            both_biases = biases + a.buffer("bias.next", block_bytes, 0);
        }
        // sends the sums of r1 outputs that are not at r6
        let send = |a: &mut Assembler| {
            a.emit(Instr::Sub(6, Val::Imm(both), reg(6)));
            a.memory(4, Ty::F32, reg(6), &[reg(1), length], &[pitch / 4, 1], true);
            a.output(5, RESULTS, results.ty, &[reg(1), length], false);
            let (op, zero, count) = match relu {
                true => (Op::Max, Some(Operand::Imm(0.0)), Count::Other),
                false => (Op::Mov, None, Count::None),
            };
            a.map(op, 5, of(4), zero, count);
        };
        a.task("main", Trigger::Data(WEIGHTS));
        // r0 elements of the first block; r3 biases; r4 outputs left; r5 those of this group; r6 its sums; r1 outputs of the group before
        if self.enters {
            a.emit(Instr::Set(15, reg(0)));
            a.emit(Instr::Set(3, Val::Imm(biases)));
            blocks::fetch(&mut a, WEIGHTS, Ty::F32, true, reg(3));
        }
        // it had the first wavelet's flag
        a.emit(Instr::Set(1, imm(0)));
        a.emit(Instr::Set(4, imm(self.m[self.band(role.row)])));
        a.emit(Instr::Set(5, imm(self.group)));
        a.emit(Instr::Set(6, Val::Imm(sums)));
        let group = a.here("group");
        let (full, none, whole) = (a.label("full"), a.label("none"), a.label("whole"));
        // r2 sums taken in, when all that were asked for are there
        a.emit(Instr::Wait(SUMS, Some(reg(2))));
        if self.enters {
            a.emit(Instr::Wait(FETCH, Some(reg(14))));
        }
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Set(5, reg(4)));
        a.bind(full);
        a.memory(0, Ty::F32, reg(6), &[reg(5), length], &[pitch / 4, 1], true);
        a.input(1, role.takes(), Ty::F32, &[reg(5), length]);
        if bias {
            a.memory(2, Ty::F32, reg(3), &[reg(5), length], &[1, 0], true);
            a.start(SUMS, Op::Add, 0, of(1), Some(of(2)), Count::Other);
        } else {
            a.start(SUMS, Op::Mov, 0, of(1), None, Count::None);
        }
        a.emit(Instr::Mul(7, reg(5), length));
        a.emit(Instr::Add(2, reg(2), reg(7)));
        if self.enters {
            // the next block, where the one of the group before was
            a.emit(Instr::Sub(3, Val::Imm(both_biases), reg(3)));
        }
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        if self.enters {
            a.branch(Cond::Eq, reg(4), imm(0), none);
            if bias {
                a.emit(Instr::Set(15, imm(self.group)));
                a.branch(Cond::Ge, reg(4), reg(15), whole);
                a.emit(Instr::Set(15, reg(4)));
            } else {
                a.emit(Instr::Set(15, imm(1)));
            }
            a.bind(whole);
            blocks::fetch(&mut a, WEIGHTS, Ty::F32, true, reg(3));
        } else {
            a.bind(whole);
        }
        a.bind(none);
        send(&mut a);
        a.emit(Instr::Set(1, reg(5)));
        a.branch(Cond::Ne, reg(4), imm(0), group);
        a.emit(Instr::Wait(SUMS, Some(reg(2))));
        send(&mut a);
        a.emit(Instr::Halt);
        a.finish(role.at)
    }

    /// The code of column 0 in the rows that hold features: it sends what a stream from the edge would bring.
    fn sender(&self, band: usize, (top, last): (usize, usize), (address, pitch): (u32, u32)) -> Block {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let x = self.product.x;
        let at = Lattice::rect(0, top as u32, 1, (last - top) as u32);
        let most = (top..last).map(|row| x.of(row)).max().unwrap_or(0);
        let mut a = Assembler::new();
        a.fixed("weights", address, most as u32 * pitch);
        let name = self.frame.of_band("sender", band);
        let features = a.param(
            "features",
            self.frame.number(&name, "features", at, |row| x.of(row)),
        );
        a.task("main", Trigger::Start);
        // r4 outputs left; r5 those of this group; r6 their weights
        a.emit(Instr::Set(4, imm(self.m[band])));
        a.emit(Instr::Set(5, imm(self.group.min(self.m[band]))));
        a.emit(Instr::Set(6, imm(address as usize)));
        a.emit(Instr::Mul(0, features, reg(5)));
        a.output(0, WEIGHTS, Ty::F32, &[imm(1)], false);
        a.map(Op::Mov, 0, Operand::Reg(0), None, Count::None);
        let group = a.here("group");
        let full = a.label("full");
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Set(5, reg(4)));
        a.bind(full);
        let (ty, bytes) = (self.weights, self.weights.bytes());
        let shape = [features, reg(5)];
        a.memory(1, ty, reg(6), &shape, &[(pitch / bytes) as i64, 1], false);
        a.output(2, WEIGHTS, ty, &shape, false);
        a.map(Op::Mov, 2, Operand::Desc(1), None, Count::None);
        a.emit(Instr::Add(6, reg(6), imm(bytes as usize * self.group)));
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), imm(0), group);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The code of column 0 in a band's last row, which has no weights.
    fn starter(&self, row: usize) -> Block {
        let mut a = Assembler::new();
        a.task("main", Trigger::Start);
        a.output(0, WEIGHTS, Ty::F32, &[Val::Imm(1)], false);
        a.map(Op::Mov, 0, Operand::Imm(0.0), None, Count::None);
        a.emit(Instr::Halt);
        a.finish(Lattice::rect(0, row as u32, 1, 1))
    }

    /// Bytes without which no PE can do: what lies before, and the sums of groups of one output.
    fn least(&self) -> u64 {
        let (_, pitch_y) = blocks::pitches(self.product.x.ty, self.product.x.tokens);
        self.product.scratch as u64 + RING as u64 * pitch_y as u64
    }

    fn finish(self, emitted: Vec<Block>) -> Result<Mapped, CompileError> {
        let y = self.product.y;
        let mut region = self.frame.region(emitted);
        let mut feeds = Vec::new();
        match self.product.source {
            Source::Edge { .. } => {
                let groups: Vec<Vec<(usize, usize)>> = (0..self.m.len())
                    .map(|band| self.groups(band).collect())
                    .collect();
                // a wavelet begins a row
                feeds = self.frame.enter(&mut region, groups[0].len() + 1, |round, row| {
                    let groups = &groups[self.band(row)];
                    match round {
                        0 => vec![Wavelet {
                            bits: self.elements(row, groups[0]),
                            elements: 1,
                            flag: true,
                        }],
                        i => self.block(row, groups[i - 1], groups.get(i)),
                    }
                });
            }
            Source::West { .. } => {
                let at = Lattice::rect(0, 0, 1, self.frame.machine.mesh.height);
                let way = (Port::Ramp, &[Port::East][..]);
                self.frame
                    .route(&mut region, WEIGHTS, "weights", at, way, Vec::new());
            }
        }
        let wavelets = y.tokens.div_ceil(per_wavelet(self.frame.machine, y.ty) as usize);
        let own = |row: usize| {
            let band = self.band(row);
            let top = self.frame.bands.top(band);
            let before = y.features[row] - y.features[top];
            [before, y.of(row), self.m[band]].map(|n| n * wavelets)
        };
        self.frame.partial_sums(&mut region);
        self.frame.results(&mut region, Some(&own));
        Ok(Mapped {
            program: self.frame.finish(region, feeds)?,
            group: self.group,
        })
    }

    /// A row's block for these outputs of its band, and the length of the block after it.
    fn block(&self, row: usize, (from, to): (usize, usize), next: Option<&(usize, usize)>) -> Vec<Wavelet> {
        let Product { x, source, .. } = *self.product;
        let machine = self.frame.machine;
        let Source::Edge { weights, bias, .. } = source else {
            return Vec::new();
        };
        let band = self.band(row);
        let first = self.product.y.features[self.frame.bands.top(band)];
        if self.finishes(row) {
            let biases: Vec<u32> = match bias {
                Some(bias) => bias[first + from..first + to]
                    .iter()
                    .map(|b| b.to_bits())
                    .collect(),
                None => vec![0],
            };
            return blocks::wavelets(machine, Ty::F32, &biases);
        }
        let k = self.k;
        let features = x.features[row] - band * k..x.features[row + 1] - band * k;
        let outputs: Vec<usize> = (first + from..first + to).collect();
        if self.lists {
            let weight = |m: usize, f: usize| Some(weights[m * k + f]).filter(|w| *w != 0.0);
            let mut words = blocks::list(x.ty, features, &outputs, self.group, weight);
            words[1] = next.map_or(0, |next| self.elements(row, *next) as u32);
            blocks::wavelets(machine, Ty::F32, &words)
        } else {
            let length = self.each(row) * outputs.len();
            let values = blocks::dense(x.ty, features, &outputs, length, |m, f| weights[m * k + f]);
            blocks::wavelets(machine, x.ty, &values)
        }
    }
}
