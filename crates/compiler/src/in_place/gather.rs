//! Brings an attention's keys and values to column 0, from where they are streamed along the rows like weights ([`super::Source::West`]).
//! Each band of rows is a head. This program's columns are not copies of each other, and its PEs begin by themselves.
//!
//! *Keys* go straight west: a row's PE in column 0 gets the row's features of all tokens, \[feature\]\[token\]. Columns send in turn, the first one
//! first: a router passes its own core's block, then those from the east.
//!
//! *Values* change their split on the way: a row's PE in column 0 gets all features of the head for some tokens, \[token\]\[feature\], those
//! of some consecutive columns, as many for each row as can be. In a column all values go up and down to the row that gets its
//! tokens, in the order of the rows, and turn west there, in the routers. So the product with them is one whose inputs, the probabilities, lie on different
//! rows for different tokens, and its sums are few: a head's features. With the row's own features instead, each row would need all
//! probabilities of the head: more wavelets, and more SRAM, than there are sums.

use super::{Bands, Frame, Source, Tensor};
use crate::CompileError;
use crate::assemble::Assembler;
use crate::kernels::{Context, balanced, colors};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine};

const KEYS: Color = colors::REDUCE[0];
const VALUES: Color = colors::REDUCE[1];

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
            let groups = balanced(columns, rows.1 - rows.0);
            let (gives, takes) = (
                |row: usize| [k.of(row) > 0, v.of(row) > 0],
                |row: usize| [k.of(row) > 0, groups[row - rows.0] < groups[row - rows.0 + 1]],
            );
            for (part, some) in alike(rows, gives) {
                region.blocks.push(self.giver(&frame, band, part, some));
            }
            for (part, some) in alike(rows, takes) {
                let block = self.taker(&frame, (band, rows.0, &groups), part, some, (keys, at, values));
                region.blocks.push(block);
            }
            self.key_routes(&frame, &mut region, rows);
            self.value_routes(&mut region, columns, rows);
        }
        let mut program = frame.finish(region, Vec::new())?;
        program.stages[0].priority = vec![VALUES, KEYS];
        Ok(Gathered {
            program,
            keys: (0, keys as u32),
            values: (at as u32, values as u32),
        })
    }

    /// The code of PEs that have keys, or values, or both.
    fn giver(&self, frame: &Frame, band: usize, (top, end): (usize, usize), some: [bool; 2]) -> Block {
        let at = frame.lattice(top, end, 1);
        let mut a = Assembler::new();
        let length = Val::Imm(self.keys.tokens as i64);
        let role = frame.of_band(&format!("giver{top}"), band);
        let all = [(0, KEYS, self.keys, "keys"), (2, VALUES, self.values, "values")];
        for ((_, _, tensor, what), _) in all.iter().zip(some).filter(|(_, some)| *some) {
            super::declare(&mut a, what, tensor);
        }
        a.task("main", Trigger::Start);
        for ((d, color, tensor, what), _) in all.into_iter().zip(some).filter(|(_, some)| *some) {
            let own = a.param(what, frame.number(&role, what, at, |row| tensor.of(row)));
            let base = Val::Imm(tensor.address as i64);
            let per = tensor.pitch() as i64 / 4;
            a.memory(d, Ty::F32, base, &[own, length], &[per, 1], false);
            a.output(d + 1, color, Ty::F32, &[own, length], true);
        }
        // both at once, element by element
        if some[0] {
            a.start(MOVE, Op::Mov, 1, Operand::Desc(0), None, Count::None);
        }
        if some[1] {
            a.map(Op::Mov, 3, Operand::Desc(2), None, Count::None);
        }
        a.emit(Instr::Wait(MOVE, None));
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The code of column 0: keys, bytes from feature to feature; values, where they are, and bytes from token to token.
    fn taker(
        &self,
        frame: &Frame,
        (band, first, groups): (usize, usize, &[usize]),
        (top, end): (usize, usize),
        some: [bool; 2],
        (keys, values, pitch): (u64, u64, u64),
    ) -> Block {
        let (k, v) = (self.keys, self.values);
        let columns = frame.machine.mesh.width as usize - 1;
        let at = Lattice::rect(0, top as u32, 1, (end - top) as u32);
        let width = v.all() / self.bands.len();
        let role = frame.of_band(&format!("taker{top}"), band);
        let mut a = Assembler::new();
        let imm = |n: usize| Val::Imm(n as i64);
        a.task("main", Trigger::Start);
        if some[0] {
            a.fixed("keys", 0, (k.most() as u64 * keys) as u32);
            let own = a.param("keys", frame.number(&role, "keys", at, |row| k.of(row)));
            let shape = [imm(columns), own, imm(k.tokens)];
            let strides = [k.tokens as i64, keys as i64 / 4, 1];
            a.memory(0, Ty::F32, imm(0), &shape, &strides, false);
            a.input(1, KEYS, Ty::F32, &shape);
            a.start(MOVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        }
        if some[1] {
            let own = |row: usize| groups[row - first + 1] - groups[row - first];
            let most = (top..end).map(own).max().unwrap_or(0);
            a.fixed("values", values as u32, (most * v.tokens) as u32 * pitch as u32);
            let from = a.param("columns", frame.number(&role, "columns", at, own));
            let shape = [from, imm(width), imm(v.tokens)];
            let per = pitch as i64 / 4;
            let strides = [v.tokens as i64 * per, 1, per];
            a.memory(2, Ty::F32, Val::Imm(values as i64), &shape, &strides, false);
            a.input(3, VALUES, Ty::F32, &shape);
            a.map(Op::Mov, 2, Operand::Desc(3), None, Count::None);
        }
        a.emit(Instr::Wait(MOVE, None));
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// West along the rows, a column's own block before those from the east.
    fn key_routes(&self, frame: &Frame, region: &mut Region, (top, last): (usize, usize)) {
        let width = frame.machine.mesh.width;
        let rows = |x: u32, nx: u32| Lattice::rect(x, top as u32, nx, (last - top) as u32);
        let behind = Expr::Sub(Box::new(Expr::Const(width as i64 - 1)), Box::new(Expr::X));
        let one = Expr::Const(1);
        let own = || position(Port::Ramp, Port::West, Expr::Const(1));
        let name = format!("{}: keys", self.name);
        for (at, positions) in [
            (rows(0, 1), vec![position(Port::East, Port::Ramp, one)]),
            (
                rows(1, width - 2),
                vec![own(), position(Port::East, Port::West, behind)],
            ),
            (rows(width - 1, 1), vec![own()]),
        ] {
            if at.nx > 0 {
                region.routes.push(Route {
                    color: KEYS,
                    stream: name.clone(),
                    at,
                    positions,
                    filters: Vec::new(),
                });
            }
        }
    }

    /// In each column up and down to the row that gets its tokens, and west along that row.
    fn value_routes(&self, region: &mut Region, columns: usize, (top, last): (usize, usize)) {
        let groups = balanced(columns, last - top);
        let gives = |row: usize| (self.values.of(row) > 0) as usize;
        let all: usize = (top..last).map(gives).sum();
        let number = |n: usize| Expr::Const(n as i64);
        for row in (top..last).filter(|row| groups[row - top] < groups[row - top + 1]) {
            region.routes.push(Route {
                color: VALUES,
                stream: format!("{}: values", self.name),
                at: Lattice::rect(0, row as u32, 1, 1),
                positions: vec![position(Port::East, Port::Ramp, Expr::Const(1))],
                filters: Vec::new(),
            });
        }
        let mut add = |row: usize, from: usize, to: usize, positions: Vec<Position>| {
            if from < to && !positions.is_empty() {
                region.routes.push(Route {
                    color: VALUES,
                    stream: format!("{}: values", self.name),
                    // column 0 has no tokens
                    at: Lattice::rect(1 + from as u32, row as u32, (to - from) as u32, 1),
                    positions,
                    filters: Vec::new(),
                });
            }
        };
        for row in top..last {
            let (from, to) = (groups[row - top], groups[row - top + 1]);
            let above: usize = (top..row).map(gives).sum();
            let below: usize = (row + 1..last).map(gives).sum();
            // inputs that nothing comes from are left out
            let some =
                |input: Port, output: Port, n: usize| (n > 0).then(|| position(input, output, number(n)));
            // columns whose tokens come to a row above: up, and then what the row gets passes
            let up = [
                some(Port::Ramp, Port::North, gives(row)),
                some(Port::South, Port::North, below),
                some(Port::East, Port::West, (to - from) * all),
            ];
            add(row, 0, from, up.into_iter().flatten().collect());
            let turn = |further: Option<Position>| {
                [
                    some(Port::North, Port::West, above),
                    some(Port::Ramp, Port::West, gives(row)),
                    some(Port::South, Port::West, below),
                    further,
                ]
                .into_iter()
                .flatten()
                .collect()
            };
            if from < to {
                let behind = Expr::Sub(Box::new(number(to)), Box::new(Expr::X));
                let blocks = Expr::Mul(Box::new(behind), Box::new(number(all)));
                add(
                    row,
                    from,
                    to - 1,
                    turn(Some(position(Port::East, Port::West, blocks))),
                );
                add(row, to - 1, to, turn(None));
            }
            let down = [
                some(Port::North, Port::South, above),
                some(Port::Ramp, Port::South, gives(row)),
            ];
            add(row, to, columns, down.into_iter().flatten().collect());
        }
    }
}

/// Runs of rows that are alike in what they do, without those that do nothing.
fn alike((top, last): (usize, usize), of: impl Fn(usize) -> [bool; 2]) -> Vec<((usize, usize), [bool; 2])> {
    let mut all: Vec<((usize, usize), [bool; 2])> = Vec::new();
    for row in top..last {
        match all.last_mut() {
            Some(((_, end), some)) if *some == of(row) => *end = row + 1,
            _ => all.push(((row, row + 1), of(row))),
        }
    }
    all.retain(|(_, some)| some.contains(&true));
    all
}

fn position(input: Port, output: Port, hold: Expr) -> Position {
    Position {
        input,
        outputs: vec![output],
        hold,
    }
}
