//! Brings an attention's keys or values to column 0, from where they are streamed along the rows like weights ([`Source::West`]). Each band of
//! rows is a head. This program's columns are not copies of each other, and its PEs begin by themselves.
//!
//! *Keys* ([`By::Feature`]) go straight west: a row's PE in column 0 gets the row's features of all tokens, \[feature\]\[token\]. Columns send in
//! turn, the first one first: a router passes its own core's block, then those from the east.
//!
//! *Values* ([`By::Token`]) change their split on the way: a row's PE in column 0 gets all features of the head for some tokens,
//! \[token\]\[feature\], those of some consecutive columns, as many for each row as can be. In a column all values go up and down to the PE in
//! the row that gets its tokens, those from farthest away first: then nothing waits on the way, and a router passes all that comes to it in one piece. What comes up
//! has its features in falling order, in each PE, too. The row's core sends all of them on west when it has them: in one piece. (Not its router: on one colour
//! all the way each row's way west would wait for the columns that it passes, and so all columns for each other.) So the product with them is one whose inputs, the probabilities, lie on
//! different rows for different tokens, and its sums are few: a head's features. With the row's own features instead, each row would need
//! all probabilities of the head: more wavelets, and more SRAM, than there are sums.

use super::{Bands, Frame, Source, Tensor, declare};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::{Context, balanced, colors};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine};

/// Within a column.
const COLUMN: Color = colors::REDUCE[0];
/// West along a row.
const ROW: Color = colors::REDUCE[1];

/// What a row's PE in column 0 gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The row's features of all tokens, \[feature\]\[token\].
    Feature,
    /// The band's features of some tokens ([`key_features`]), \[token\]\[feature\].
    Token,
}

/// A tensor with as many features in each band, brought to column 0.
#[derive(Clone, Debug)]
pub struct Gather<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// The heads.
    pub bands: &'a Bands,
    /// What is gathered.
    pub x: &'a Tensor,
    /// How it lies in column 0.
    pub by: By,
    /// Its SRAM address in column 0, a multiple of 32.
    pub address: u32,
    /// SRAM of the other columns from this address on may be used; all tensors lie before it.
    pub scratch: u32,
}

/// A gather as a program, and what it leaves in column 0.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// A single stage on the whole mesh.
    pub program: Program,
    /// Type of the elements.
    pub ty: Ty,
    /// Their SRAM address.
    pub address: u32,
    /// Bytes from feature to feature, or from token to token.
    pub pitch: u32,
    /// The SRAM address behind them, where the most are.
    pub end: u32,
}

/// The first key of each row, and the end, of scores \[tokens, heads x tokens\]: those tokens whose values [`By::Token`] brings to the row.
/// `tokens` are those of a column.
pub fn key_features(machine: &Machine, bands: &Bands, tokens: usize) -> Vec<usize> {
    let columns = machine.mesh.width as usize - 1;
    let all = columns * tokens;
    let mut starts = Vec::new();
    for (band, (top, last)) in bands.each().enumerate() {
        let groups = balanced(columns, last - top);
        starts.extend(groups.iter().map(|c| band * all + c * tokens));
    }
    starts.push(bands.len() * all);
    starts
}

impl Gathered {
    /// What is in column 0 as a product's weights.
    pub fn source<'a>(&self, bands: &'a Bands) -> Source<'a> {
        Source::West {
            bands,
            ty: self.ty,
            address: self.address,
            pitch: self.pitch,
        }
    }
}

impl Gather<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: tensors that do not lie as they have to; what does not fit column 0.
    pub fn map(&self, machine: &Machine) -> Result<Gathered, CompileError> {
        let x = self.x;
        let frame = Frame {
            name: self.name,
            machine,
            bands: self.bands,
        };
        frame.check(x, &[], self.scratch)?;
        if !self.address.is_multiple_of(32) {
            return frame.refuse(format!(
                "SRAM address {} in column 0: expected a multiple of 32",
                self.address
            ));
        }
        let Some(width) = frame.features_of_band(x).filter(|n| *n > 0) else {
            return frame.refuse(format!(
                "{} features: expected as many in each of {} bands, at least one",
                x.all(),
                self.bands.len()
            ));
        };
        let columns = machine.mesh.width as usize - 1;
        let heights = self.bands.each().map(|(top, last)| last - top);
        let (pitch, most) = match self.by {
            By::Feature => (Context::pitch(x.ty, columns * x.tokens), x.most()),
            By::Token => {
                let most = heights.map(|h| columns.div_ceil(h)).max().unwrap_or(0);
                (Context::pitch(x.ty, width), most * x.tokens)
            }
        };
        let end = self.address as u64 + most as u64 * pitch as u64;
        let end = match u32::try_from(end) {
            Ok(end) if end <= machine.pe.sram_bytes => end,
            _ => return Err(frame.too_large((0, 0), end)),
        };
        let mut region = frame.mesh(Vec::new());
        for (number, (top, last)) in self.bands.each().enumerate() {
            let band = Band {
                frame: &frame,
                x,
                number,
                top,
                last,
                groups: balanced(columns, last - top),
                address: self.address,
                pitch: pitch as u32,
                bytes: end - self.address,
                scratch: self.scratch,
            };
            match self.by {
                By::Feature => band.features(&mut region),
                By::Token => band.tokens(&mut region, width),
            }
        }
        frame.fits(&region.blocks)?;
        let mut program = frame.finish(region, Vec::new())?;
        program.stages[0].priority = vec![ROW, COLUMN];
        Ok(Gathered {
            program,
            ty: x.ty,
            address: self.address,
            pitch: pitch as u32,
            end,
        })
    }
}

/// What is gathered in a band.
struct Band<'a> {
    frame: &'a Frame<'a>,
    x: &'a Tensor,
    number: usize,
    top: usize,
    last: usize,
    /// The first column, of those with tokens, whose tokens come to each row, and the end.
    groups: Vec<usize>,
    /// In column 0: where it goes, bytes from feature to feature or token to token, bytes in all.
    address: u32,
    pitch: u32,
    bytes: u32,
    /// Free in the other columns.
    scratch: u32,
}

impl Band<'_> {
    fn columns(&self) -> usize {
        self.frame.machine.mesh.width as usize - 1
    }

    /// The columns whose tokens come to a row.
    fn group(&self, row: usize) -> (usize, usize) {
        (self.groups[row - self.top], self.groups[row - self.top + 1])
    }

    /// Rows that have features: before a row, the row itself, behind it.
    fn with_features(&self, row: usize) -> [usize; 3] {
        let n = |from: usize, to: usize| (from..to).filter(|row| self.x.of(*row) > 0).count();
        [n(self.top, row), n(row, row + 1), n(row + 1, self.last)]
    }

    /// A number of each row, not a constant where only some rows have code: so these rows' code is the same.
    fn param(&self, a: &mut Assembler, what: &str, value: impl Fn(usize) -> usize) -> Val {
        let at = self.frame.lattice(self.top, self.last, 1);
        let role = self.frame.of_band("rows", self.number);
        a.param(what, self.frame.number(&role, what, at, value))
    }

    /// Columns `from..to`, of those with tokens, in rows from `row` on.
    fn rows(row: usize, ny: usize, (from, to): (usize, usize)) -> Lattice {
        // column 0 has no tokens
        let nx = to.saturating_sub(from);
        Lattice::rect(1 + from as u32, row as u32, nx as u32, ny as u32)
    }

    /// Sends a PE's features, element by element if asked, else as its SRAM gives them; the last wavelet is flagged if asked.
    fn send(&self, a: &mut Assembler, color: Color, single: bool, flag: bool) {
        let x = self.x;
        declare(a, "x", x);
        let own = self.param(a, "own", |row| x.of(row));
        let per = x.pitch() as i64 / x.ty.bytes() as i64;
        self.send_from(a, color, single, flag, (own, Val::Imm(x.address as i64), per));
    }

    /// The same, element by element, from the last feature to the first, of PEs that have some.
    fn send_falling(&self, a: &mut Assembler, color: Color) {
        let x = self.x;
        declare(a, "x", x);
        let own = self.param(a, "own", |row| x.of(row));
        let at = |row| x.address as usize + x.of(row).saturating_sub(1) * x.pitch() as usize;
        let last = self.param(a, "last", at);
        let per = x.pitch() as i64 / x.ty.bytes() as i64;
        self.send_from(a, color, true, true, (own, last, -per));
    }

    /// So many features from an address on, so many elements apart.
    fn send_from(
        &self,
        a: &mut Assembler,
        color: Color,
        single: bool,
        flag: bool,
        (features, at, per): (Val, Val, i64),
    ) {
        let x = self.x;
        let (shape, strides) = rows_of(single, &[features, Val::Imm(x.tokens as i64)], &[per, 1]);
        a.memory(0, x.ty, at, &shape, &strides, false);
        a.output(1, color, x.ty, &shape, flag);
        a.map(Op::Mov, 1, Operand::Desc(0), None, Count::None);
    }

    /// Takes in, in column 0, from an address on.
    fn take(&self, a: &mut Assembler, base: Val, (shape, strides): (Vec<Val>, Vec<i64>)) {
        a.memory(0, self.x.ty, base, &shape, &strides, false);
        a.input(1, ROW, self.x.ty, &shape);
        a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
    }

    /// Each row's features of all columns.
    fn features(&self, region: &mut Region) {
        // rows that have features are the first ones, or there are some without
        let mut row = self.top;
        while row < self.last {
            let end = (row..self.last).find(|r| (self.x.of(*r) > 0) != (self.x.of(row) > 0));
            let end = end.unwrap_or(self.last);
            if self.x.of(row) > 0 {
                self.rows_of_features(region, row, end - row);
            }
            row = end;
        }
    }

    fn rows_of_features(&self, region: &mut Region, row: usize, ny: usize) {
        let all = (0, self.columns());
        // two f16 of a wavelet lie where one access reaches them, or each has a wavelet
        let single = self.x.tokens % 2 == 1;
        let mut a = Assembler::new();
        a.task("main", Trigger::Start);
        self.send(&mut a, ROW, single, true);
        a.emit(Instr::Halt);
        region.blocks.push(a.finish(Self::rows(row, ny, all)));
        let mut a = Assembler::new();
        a.task("main", Trigger::Start);
        let (length, per) = (self.x.tokens as i64, (self.pitch / self.x.ty.bytes()) as i64);
        let own = self.param(&mut a, "own", |row| self.x.of(row));
        let shape = [Val::Imm(self.columns() as i64), own, Val::Imm(length)];
        a.fixed("x", self.address, self.bytes);
        let base = Val::Imm(self.address as i64);
        self.take(&mut a, base, rows_of(single, &shape, &[length, per, 1]));
        a.emit(Instr::Halt);
        let column_0 = Lattice::rect(0, row as u32, 1, ny as u32);
        region.blocks.push(a.finish(column_0));
        self.west(region, row, ny, all);
    }

    /// All features of each row's columns.
    fn tokens(&self, region: &mut Region, width: usize) {
        for row in self.top..self.last {
            let (from, to) = self.group(row);
            let [above, own, below] = self.with_features(row);
            let sides = [(0, from), (to, self.columns())].map(|columns| Self::rows(row, 1, columns));
            for (at, rises) in sides.into_iter().zip([true, false]) {
                if at.nx == 0 || own == 0 {
                    continue;
                }
                let mut a = Assembler::new();
                a.task("main", Trigger::Start);
                match rises {
                    true => self.send_falling(&mut a, COLUMN),
                    false => self.send(&mut a, COLUMN, true, true),
                }
                a.emit(Instr::Halt);
                region.blocks.push(a.finish(at));
            }
            // inputs that nothing comes from are left out
            let up = [
                some(below, Port::South, Port::North),
                some(own, Port::Ramp, Port::North),
            ];
            let here = [
                some(above, Port::North, Port::Ramp),
                some(below, Port::South, Port::Ramp),
            ];
            let down = [
                some(above, Port::North, Port::South),
                some(own, Port::Ramp, Port::South),
            ];
            self.add(region, COLUMN, sides[0], up);
            self.add(region, COLUMN, Self::rows(row, 1, (from, to)), here);
            self.add(region, COLUMN, sides[1], down);
            if from < to {
                region.blocks.push(self.turn(row, width));
                region.blocks.push(self.taker(row, width));
                self.west(region, row, 1, (from, to));
            }
        }
    }

    /// The code of PEs that send their column's features west: all are taken in first, so that they go in one piece.
    fn turn(&self, row: usize, width: usize) -> Block {
        let (x, tokens, element) = (self.x, self.x.tokens, self.x.ty.bytes());
        let counts = [
            x.features[row] - x.features[self.top],
            x.of(row),
            x.features[self.last] - x.features[row + 1],
        ];
        let mut a = Assembler::from(self.scratch);
        a.task("main", Trigger::Start);
        declare(&mut a, "x", x);
        let all = a.buffer("all", (width * tokens) as u32 * element, 0);
        let tokens = tokens as i64;
        let wavelets = |n: Val, pitch: i64| rows_of(true, &[n, Val::Imm(tokens)], &[pitch, 1]);
        let below = |row: usize| x.features[self.last] - x.features[row + 1];
        let numbers: [(&str, &dyn Fn(usize) -> usize); 3] = [
            ("above", &|row| x.features[row] - x.features[self.top]),
            ("own", &|row| x.of(row)),
            ("below", &below),
        ];
        // the first feature that comes, and how they go on
        let order = [(0, tokens), (counts[0], tokens), (width - 1, -tokens)];
        for (i, (what, number)) in numbers.into_iter().enumerate() {
            if counts[i] == 0 {
                continue;
            }
            let (first, pitch) = order[i];
            let (shape, strides) = wavelets(self.param(&mut a, what, number), pitch);
            let at = all + first as i64 * tokens * element as i64;
            a.memory(2, x.ty, Val::Imm(at), &shape, &strides, false);
            match i {
                1 => {
                    let per = x.pitch() as i64 / element as i64;
                    let at = Val::Imm(x.address as i64);
                    a.memory(3, x.ty, at, &shape, &[per, 1, 1], false);
                }
                _ => a.input(3, COLUMN, x.ty, &shape),
            }
            a.map(Op::Mov, 2, Operand::Desc(3), None, Count::None);
        }
        let (shape, strides) = wavelets(Val::Imm(width as i64), tokens);
        a.memory(0, x.ty, Val::Imm(all), &shape, &strides, false);
        a.output(1, ROW, x.ty, &shape, true);
        a.map(Op::Mov, 1, Operand::Desc(0), None, Count::None);
        a.emit(Instr::Halt);
        a.finish(Self::rows(row, 1, self.group(row)))
    }

    /// The code of column 0 in a row that gets all features of some tokens.
    fn taker(&self, row: usize, width: usize) -> Block {
        let mut a = Assembler::new();
        a.task("main", Trigger::Start);
        a.fixed("x", self.address, self.bytes);
        let (length, per) = (self.x.tokens as i64, (self.pitch / self.x.ty.bytes()) as i64);
        let columns = self.param(&mut a, "columns", |row| self.group(row).1 - self.group(row).0);
        let shape = [columns, Val::Imm(width as i64), Val::Imm(length)];
        let base = Val::Imm(self.address as i64);
        self.take(&mut a, base, rows_of(true, &shape, &[length * per, 1, per]));
        a.emit(Instr::Halt);
        a.finish(Lattice::rect(0, row as u32, 1, 1))
    }

    fn add<const N: usize>(
        &self,
        region: &mut Region,
        color: Color,
        at: Lattice,
        positions: [Option<Position>; N],
    ) {
        let positions: Vec<Position> = positions.into_iter().flatten().collect();
        if at.nx > 0 && at.ny > 0 && !positions.is_empty() {
            region.routes.push(Route {
                color,
                stream: format!("{}: x", self.frame.name),
                at,
                positions,
                filters: Vec::new(),
            });
        }
    }

    /// West along rows: some columns' own blocks in turn, the first column's first.
    fn west(&self, region: &mut Region, row: usize, ny: usize, (from, to): (usize, usize)) {
        let at = |columns| Self::rows(row, ny, columns);
        let column_0 = Lattice::rect(0, row as u32, 1, ny as u32);
        let pass = some(1, Port::East, Port::West);
        let own = || some(1, Port::Ramp, Port::West);
        // at 1 + column, so many columns are behind it
        let behind = Position {
            input: Port::East,
            outputs: vec![Port::West],
            hold: Expr::Sub(Box::new(Expr::Const(to as i64)), Box::new(Expr::X)),
        };
        self.add(region, ROW, column_0, [some(1, Port::East, Port::Ramp)]);
        self.add(region, ROW, at((0, from)), [pass]);
        self.add(region, ROW, at((from, to - 1)), [own(), Some(behind)]);
        self.add(region, ROW, at((to - 1, to)), [own()]);
    }
}

/// A shape and its strides, if asked with an element in each innermost row: then each has a wavelet of its own.
fn rows_of(single: bool, shape: &[Val], strides: &[i64]) -> (Vec<Val>, Vec<i64>) {
    let (mut shape, mut strides) = (shape.to_vec(), strides.to_vec());
    if single {
        shape.push(Val::Imm(1));
        strides.push(1);
    }
    (shape, strides)
}

/// A position for so many blocks, if there are any.
fn some(blocks: usize, input: Port, output: Port) -> Option<Position> {
    (blocks > 0).then(|| Position {
        input,
        outputs: vec![output],
        hold: Expr::Const(blocks as i64),
    })
}
