//! Brings an attention's keys and values to column 0, from where they are streamed along the rows like weights ([`super::Source::West`]).
//! Each band of rows is a head. This program's columns are not copies of each other, and its PEs begin by themselves.
//!
//! *Keys* go straight west: a row's PE in column 0 gets the row's features of all tokens, \[feature\]\[token\]. Columns send in turn, the first one
//! first: a router passes its own core's block, then those from the east.
//!
//! *Values* change their split on the way: a row's PE in column 0 gets all features of the head for some tokens, \[token\]\[feature\], those
//! of some consecutive columns, as many for each row as can be. In a column all values go up and down to the PE in the row that gets its
//! tokens; its core sends them on west, in the order of the rows. (Not its router: values on one colour all the way would have each row's way west wait for the
//! columns that it passes, and so all columns for each other.) So the product with them is one whose inputs, the probabilities, lie on different
//! rows for different tokens, and its sums are few: a head's features. With the row's own features instead, each row would need all
//! probabilities of the head: more wavelets, and more SRAM, than there are sums.

use super::{Bands, Frame, Source, Tensor};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::{Context, balanced, colors};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine};

const KEYS: Color = colors::REDUCE[0];
/// Values, within a column.
const COLUMN: Color = colors::REDUCE[1];
/// Values, along a row.
const VALUES: Color = colors::SPREAD;

/// The microthread that moves keys.
const MOVE: u8 = 1;

/// Keys and values of all heads, f32, as they lie on the mesh; column 0's SRAM has nothing else.
#[derive(Clone, Debug)]
pub struct Gather<'a> {
    /// Of the region, its streams and tables.
    pub name: &'a str,
    /// The heads.
    pub bands: &'a Bands,
    /// Keys: as many features in each band.
    pub keys: &'a Tensor,
    /// Values: as many features in each band.
    pub values: &'a Tensor,
}

/// A gather as a program, and what it leaves.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// A single stage on the whole mesh.
    pub program: Program,
    /// SRAM address of the keys in column 0, and bytes from feature to feature.
    pub keys: (u32, u32),
    /// SRAM address of the values in column 0, and bytes from token to token.
    pub values: (u32, u32),
}

/// The first key of each row, and the end, of scores \[tokens, heads x tokens\]: those tokens whose values [`Gather`] brings to the row. `tokens` are those
/// of a column.
pub fn key_features(machine: &Machine, bands: &Bands, tokens: usize) -> Vec<usize> {
    let columns = machine.mesh.width as usize - 1;
    let all = columns * tokens;
    let mut starts = Vec::new();
    for (band, (top, last)) in bands.each().enumerate() {
        starts.extend(
            balanced(columns, last - top)
                .iter()
                .map(|c| band * all + c * tokens),
        );
    }
    starts.push(bands.len() * all);
    starts
}

impl Gathered {
    /// The keys as a product's weights.
    pub fn key_source<'a>(&self, bands: &'a Bands) -> Source<'a> {
        let (address, pitch) = self.keys;
        Source::West {
            bands,
            address,
            pitch,
        }
    }

    /// The values as a product's weights.
    pub fn value_source<'a>(&self, bands: &'a Bands) -> Source<'a> {
        let (address, pitch) = self.values;
        Source::West {
            bands,
            address,
            pitch,
        }
    }
}

impl Gather<'_> {
    /// The program for the whole mesh of a machine.
    ///
    /// Errors: tensors that do not lie as they have to; keys and values that do not fit column 0.
    pub fn map(&self, machine: &Machine) -> Result<Gathered, CompileError> {
        let (k, v) = (self.keys, self.values);
        let frame = Frame {
            name: self.name,
            machine,
            bands: self.bands,
        };
        let scratch = u32::try_from(k.end().max(v.end()).next_multiple_of(32)).unwrap_or(u32::MAX - 31);
        frame.check(k, &[v], scratch)?;
        if (k.ty, v.ty) != (Ty::F32, Ty::F32) {
            return frame.refuse("keys or values of f16: expected f32".into());
        }
        let columns = machine.mesh.width as usize - 1;
        let width = v.all() / self.bands.len();
        let starts = |(i, (_, last)): (usize, (usize, usize))| v.features[last] == (i + 1) * width;
        if width == 0 || !self.bands.each().enumerate().all(starts) {
            return frame.refuse(format!(
                "{} features of values: expected as many in each of {} bands, at least one",
                v.all(),
                self.bands.len()
            ));
        }
        // where they are in column 0
        let keys = Context::pitch(Ty::F32, columns * k.tokens) as u64;
        let values = Context::pitch(Ty::F32, width) as u64;
        let heights = self.bands.each().map(|(top, last)| columns.div_ceil(last - top));
        let most = (heights.max().unwrap_or(0) * v.tokens) as u64;
        let at = k.most() as u64 * keys;
        let end = at + most * values;
        if end > machine.pe.sram_bytes as u64 {
            return Err(frame.too_large((0, 0), end));
        }
        let mut region = Region {
            name: self.name.into(),
            x: 0,
            y: 0,
            width: machine.mesh.width,
            height: machine.mesh.height,
            routes: Vec::new(),
            blocks: Vec::new(),
        };
        for (band, rows) in self.bands.each().enumerate() {
            let band = Band {
                frame: &frame,
                keys: k,
                values: v,
                number: band,
                top: rows.0,
                last: rows.1,
                groups: balanced(columns, rows.1 - rows.0),
            };
            region.blocks.extend(band.givers());
            region.blocks.extend(band.takers(width, (keys, at, values)));
            band.key_routes(&mut region);
            band.value_routes(&mut region);
        }
        let mut program = frame.finish(region, Vec::new())?;
        program.stages[0].priority = vec![VALUES, COLUMN, KEYS];
        Ok(Gathered {
            program,
            keys: (0, keys as u32),
            values: (at as u32, values as u32),
        })
    }
}

/// What is gathered in a band.
struct Band<'a> {
    frame: &'a Frame<'a>,
    keys: &'a Tensor,
    values: &'a Tensor,
    number: usize,
    top: usize,
    last: usize,
    /// The first column, of those with tokens, whose values come to each row, and the end.
    groups: Vec<usize>,
}

impl Band<'_> {
    fn columns(&self) -> usize {
        self.frame.machine.mesh.width as usize - 1
    }

    fn tokens(&self) -> i64 {
        self.keys.tokens as i64
    }

    /// The columns whose values come to a row.
    fn group(&self, row: usize) -> (usize, usize) {
        (self.groups[row - self.top], self.groups[row - self.top + 1])
    }

    /// Rows that have values: before a row, the row itself, behind it.
    fn with_values(&self, row: usize) -> [usize; 3] {
        let n = |from: usize, to: usize| (from..to).filter(|row| self.values.of(*row) > 0).count();
        [n(self.top, row), n(row, row + 1), n(row + 1, self.last)]
    }

    /// A number of each row, not a constant where only some rows have code: so these rows' code is the same.
    fn param(&self, a: &mut Assembler, what: &str, value: impl Fn(usize) -> usize) -> Val {
        let at = self.frame.lattice(self.top, self.last, 1);
        let role = self.frame.of_band("rows", self.number);
        a.param(what, self.frame.number(&role, what, at, value))
    }

    /// Columns `from..to`, of those with tokens, in a row.
    fn row(row: usize, (from, to): (usize, usize)) -> Lattice {
        // column 0 has no tokens
        Lattice::rect(1 + from as u32, row as u32, to.saturating_sub(from) as u32, 1)
    }

    /// The code of PEs that have keys or values, or send values on.
    fn givers(&self) -> Vec<Block> {
        let mut all = Vec::new();
        for row in self.top..self.last {
            let (from, to) = self.group(row);
            let sides = [(0, from), (from, to), (to, self.columns())];
            for (columns, west) in sides.into_iter().zip([false, true, false]) {
                let at = Self::row(row, columns);
                let has = self.keys.of(row) + self.values.of(row) > 0;
                if at.nx > 0 && (west || has) {
                    all.push(self.giver(row, at, west));
                }
            }
        }
        all
    }

    /// The code of PEs in a row: in columns whose values go west there, or others.
    fn giver(&self, row: usize, at: Lattice, west: bool) -> Block {
        let (imm, of) = (Val::Imm, Operand::Desc);
        let (k, v, length) = (self.keys, self.values, imm(self.tokens()));
        let [above, own, below] = self.with_values(row).map(|n| n > 0);
        let mut a = Assembler::new();
        a.task("main", Trigger::Start);
        let operand = |a: &mut Assembler, d: u8, what: &str, t: &Tensor| -> [Val; 2] {
            super::declare(a, what, t);
            let features = self.param(a, what, |row| t.of(row));
            let (base, per) = (imm(t.address as i64), t.pitch() as i64 / 4);
            a.memory(d, Ty::F32, base, &[features, length], &[per, 1], false);
            [features, length]
        };
        if k.of(row) > 0 {
            let shape = operand(&mut a, 0, "keys", k);
            a.output(1, KEYS, Ty::F32, &shape, true);
            a.start(MOVE, Op::Mov, 1, of(0), None, Count::None);
        }
        // all of the head's values, the last one flagged, one after another: rows of one element, a wavelet each on links that have room for two, too
        let pass = |a: &mut Assembler, what: &str, n: &dyn Fn(usize) -> usize, flag: bool| {
            let shape = [self.param(a, what, |row| n(row) * v.tokens), imm(1)];
            a.input(3, COLUMN, Ty::F32, &shape);
            a.output(4, VALUES, Ty::F32, &shape, flag);
            a.map(Op::Mov, 4, of(3), None, Count::None);
        };
        if west && above {
            let n = |row: usize| v.features[row] - v.features[self.top];
            pass(&mut a, "above", &n, !own && !below);
        }
        if own {
            let shape = operand(&mut a, 2, "values", v);
            let color = if west { VALUES } else { COLUMN };
            a.output(4, color, Ty::F32, &shape, !west || !below);
            a.map(Op::Mov, 4, of(2), None, Count::None);
        }
        if west && below {
            let n = |row: usize| v.features[self.last] - v.features[row + 1];
            pass(&mut a, "below", &n, true);
        }
        a.emit(Instr::Wait(MOVE, None));
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The code of column 0, for values of so many features: keys, bytes from feature to feature; values, where they are, and bytes from token to
    /// token.
    fn takers(&self, width: usize, (keys, values, pitch): (u64, u64, u64)) -> Vec<Block> {
        let takes = |row: usize| [self.keys.of(row) > 0, self.group(row).0 < self.group(row).1];
        let mut all: Vec<Block> = Vec::new();
        let mut first = self.top;
        // rows that take the same are one block
        for end in self.top + 1..self.last + 1 {
            if end < self.last && takes(end) == takes(first) {
                continue;
            }
            let at = Lattice::rect(0, first as u32, 1, (end - first) as u32);
            let [has_keys, has_values] = takes(first);
            first = end;
            if !has_keys && !has_values {
                continue;
            }
            let mut a = Assembler::new();
            let (imm, length) = (|n: usize| Val::Imm(n as i64), self.tokens());
            a.task("main", Trigger::Start);
            if has_keys {
                a.fixed("keys", 0, (self.keys.most() as u64 * keys) as u32);
                let own = self.param(&mut a, "keys", |row| self.keys.of(row));
                let shape = [imm(self.columns()), own, Val::Imm(length)];
                a.memory(0, Ty::F32, imm(0), &shape, &[length, keys as i64 / 4, 1], false);
                a.input(1, KEYS, Ty::F32, &shape);
                a.start(MOVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
            }
            if has_values {
                let own = |row: usize| self.group(row).1 - self.group(row).0;
                let most = (self.top..self.last).map(own).max().unwrap_or(0) as u32;
                a.fixed("values", values as u32, most * length as u32 * pitch as u32);
                let from = self.param(&mut a, "columns", own);
                let shape = [from, imm(width), Val::Imm(length)];
                let per = pitch as i64 / 4;
                let base = Val::Imm(values as i64);
                a.memory(2, Ty::F32, base, &shape, &[length * per, 1, per], false);
                a.input(3, VALUES, Ty::F32, &shape);
                a.map(Op::Mov, 2, Operand::Desc(3), None, Count::None);
            }
            a.emit(Instr::Wait(MOVE, None));
            a.emit(Instr::Halt);
            all.push(a.finish(at));
        }
        all
    }

    fn add(&self, region: &mut Region, color: Color, at: Lattice, positions: Vec<Option<Position>>) {
        let positions: Vec<Position> = positions.into_iter().flatten().collect();
        if at.nx > 0 && at.ny > 0 && !positions.is_empty() {
            region.routes.push(Route {
                color,
                stream: match color {
                    KEYS => format!("{}: keys", self.frame.name),
                    _ => format!("{}: values", self.frame.name),
                },
                at,
                positions,
                filters: Vec::new(),
            });
        }
    }

    /// West along rows from `columns` on: those columns' own blocks in turn, the first column's first.
    fn west(&self, region: &mut Region, color: Color, row: usize, ny: usize, (from, to): (usize, usize)) {
        let lattice = |columns| Lattice {
            ny: ny as u32,
            ..Self::row(row, columns)
        };
        let own = || some(1, Port::Ramp, Port::West);
        let pass = |hold| {
            Some(Position {
                input: Port::East,
                outputs: vec![Port::West],
                hold,
            })
        };
        // at 1 + column, so many columns are behind it
        let behind = Expr::Sub(Box::new(Expr::Const(to as i64)), Box::new(Expr::X));
        let column_0 = Lattice {
            x: 0,
            ..lattice((0, 1))
        };
        self.add(region, color, column_0, vec![some(1, Port::East, Port::Ramp)]);
        self.add(region, color, lattice((0, from)), vec![pass(Expr::Const(1))]);
        self.add(region, color, lattice((from, to - 1)), vec![own(), pass(behind)]);
        self.add(region, color, lattice((to - 1, to)), vec![own()]);
    }

    fn key_routes(&self, region: &mut Region) {
        let all = (0, self.columns());
        self.west(region, KEYS, self.top, self.last - self.top, all);
    }

    /// In each column up and down to the row that gets its tokens, and west along that row.
    fn value_routes(&self, region: &mut Region) {
        for row in self.top..self.last {
            let (from, to) = self.group(row);
            let [above, own, below] = self.with_values(row);
            // inputs that nothing comes from are left out
            let up = vec![
                some(own, Port::Ramp, Port::North),
                some(below, Port::South, Port::North),
            ];
            self.add(region, COLUMN, Self::row(row, (0, from)), up);
            let here = vec![
                some(above, Port::North, Port::Ramp),
                some(below, Port::South, Port::Ramp),
            ];
            self.add(region, COLUMN, Self::row(row, (from, to)), here);
            let down = vec![
                some(above, Port::North, Port::South),
                some(own, Port::Ramp, Port::South),
            ];
            self.add(region, COLUMN, Self::row(row, (to, self.columns())), down);
            if from < to {
                self.west(region, VALUES, row, 1, (from, to));
            }
        }
    }
}

/// A position for so many blocks, if there are any.
fn some(blocks: usize, input: Port, output: Port) -> Option<Position> {
    (blocks > 0).then(|| Position {
        input,
        outputs: vec![output],
        hold: Expr::Const(blocks as i64),
    })
}
