//! Kernels of one PE against cycles that the vendor's simulator measured for a WSE-2 PE (a public study of sparse and dense
//! products): element-wise products, a product with a matrix in compressed sparse rows (CSR), and a dense one.
//!
//! The two matrix products are scalar loops around one multiply-accumulate. Addresses are recomputed from the loops' counters where
//! a tighter loop would add to a pointer; how often is what was fitted, to one number each: the row of C for every nonzero
//! (a multiplication and an addition), and both factors' addresses for every column of the dense product.

use super::{Case, Clock, Kind, Point, SINK, Tolerance, fill, filled, read_out, sink};
use crate::assemble::Assembler;
use meshloom_simulator::engine::Probe;
use meshloom_simulator::program::*;
use std::sync::Arc;

const SOURCE: &str = "SpMM study, vendor's simulator, WSE-2";

/// A case on one PE; `code` writes the program, with its timed part if it is told to.
fn case(
    name: &str,
    parameters: String,
    published: f64,
    kind: Kind,
    share: f64,
    expected: Vec<f32>,
    code: impl Fn(bool) -> Block,
) -> Case {
    let at = Lattice::rect(0, 0, 1, 1);
    let program = |timed| {
        let region = Region {
            name: name.into(),
            x: 0,
            y: 0,
            width: 1,
            height: 1,
            routes: vec![sink(at)],
            blocks: vec![code(timed)],
        };
        let stage = Stage {
            regions: vec![region],
            ..Stage::default()
        };
        Program::single(name, stage)
    };
    Case {
        point: Point {
            name: name.into(),
            parameters,
            source: SOURCE.into(),
            published,
            measured: 0,
            tolerance: Tolerance { cycles: 0.0, share },
            kind,
        },
        mesh: (1, 1),
        program: program(true),
        clock: Clock::Beyond(program(false)),
        probes: vec![Probe {
            stage: 0,
            x: 0,
            y: 0,
            color: SINK,
        }],
        expected: Arc::new(expected),
    }
}

/// How the element-wise product reads memory.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    Conflict,
    Apart,
    /// 64 bits at a time, with the descriptors' setting timed.
    Paired,
}

/// a = a * b of `n` elements (three vectors of this length would not fit the SRAM).
fn multiply(n: i64, access: Access, published: f64, kind: Kind) -> Case {
    let parameters = match access {
        Access::Conflict => format!("n = {n}, banks in conflict"),
        Access::Apart => format!("n = {n}, no conflict"),
        Access::Paired => format!("n = {n}, no conflict, paired access, descriptors set"),
    };
    let expected = filled(0, n).zip(filled(1, n)).map(|(a, b)| a * b).collect();
    case(
        "vector multiply",
        parameters,
        published,
        kind,
        0.01,
        expected,
        |timed| {
            let mut s = Assembler::new();
            s.task("start", Trigger::Start);
            let a = s.buffer("a", 4 * n as u32, 0);
            let b = s.buffer("b", 4 * n as u32, if access == Access::Conflict { 0 } else { 8 });
            fill(&mut s, a, 0, n);
            fill(&mut s, b, 1, n);
            let wide = access == Access::Paired;
            if timed || !wide {
                for (d, base) in [(0, a), (1, b), (2, a)] {
                    s.memory(d, Ty::F32, base.into(), &[n.into()], &[1], wide);
                }
            }
            if timed {
                s.map(Op::Mul, 2, Operand::Desc(0), Some(Operand::Desc(1)), Count::Other);
            }
            finish(s, a, n)
        },
    )
}

/// The end of a block: reads the result out.
fn finish(mut s: Assembler, base: i64, n: i64) -> Block {
    read_out(&mut s, base, n);
    s.emit(Instr::Halt);
    s.finish(Lattice::rect(0, 0, 1, 1))
}

fn reg(r: u8) -> Val {
    Val::Reg(r)
}

/// Counts register `r` from 0 to `n - 1` around `body`.
fn count(s: &mut Assembler, name: &str, r: u8, n: i64, body: impl FnOnce(&mut Assembler)) {
    s.emit(Instr::Set(r, 0.into()));
    let top = s.here(name);
    body(s);
    s.emit(Instr::Add(r, reg(r), 1.into()));
    s.branch(Cond::Lt, reg(r), n.into(), top);
}

/// Sets a descriptor of one contiguous row whose address is in a register.
fn row(s: &mut Assembler, d: u8, at: u8, n: i64) {
    s.memory(d, Ty::F32, reg(at), &[n.into()], &[1], false);
}

/// d0 = d0 + d1 * the number in a register.
fn multiply_add(s: &mut Assembler, by: u8) {
    s.map(Op::Mac, 0, Operand::Desc(1), Some(Operand::Reg(by)), Count::Mac);
}

/// C += A B with A in compressed rows: `rows` rows of `cols` nonzeros; rows of B and C have `m` elements, padded to
/// multiples of 32 bytes, so that they always conflict.
fn csr(rows: i64, cols: i64, m: i64, published: f64, kind: Kind) -> Case {
    let pitch = (m as u64).next_multiple_of(8) as i64;
    let (values, b): (Vec<f32>, Vec<f32>) = (
        filled(0, rows * cols).collect(),
        filled(0, cols * pitch).collect(),
    );
    let mut c = vec![0f32; (rows * pitch) as usize];
    for (r, k, j) in triples(rows, cols, m) {
        let at = r * pitch as usize + j;
        c[at] = b[k * pitch as usize + j].mul_add(values[r * cols as usize + k], c[at]);
    }
    let parameters = format!("{} nonzeros in {rows} rows, M = {m}", rows * cols);
    case(
        "CSR product",
        parameters,
        published,
        kind,
        if kind == Kind::Fitted { 0.01 } else { 0.06 },
        c,
        |timed| {
            let mut s = Assembler::new();
            s.task("start", Trigger::Start);
            let c = s.buffer("c", 4 * (rows * pitch) as u32, 0);
            let b = s.buffer("b", 4 * (cols * pitch) as u32, 0);
            let value = s.buffer("value", 4 * (rows * cols) as u32, 0);
            let index = s.buffer("index", 2 * (rows * cols) as u32, 0);
            let start = s.buffer("start", 2 * (rows as u32 + 1), 0);
            fill(&mut s, b, 0, cols * pitch);
            fill(&mut s, value, 0, rows * cols);
            s.emit(Instr::Set(2, 0.into()));
            count(&mut s, "write_row", 0, rows, |s| {
                count(s, "write_column", 1, cols, |s| {
                    s.emit(Instr::Store(Word::U16, index.into(), reg(2), reg(1)));
                    s.emit(Instr::Add(2, reg(2), 2.into()));
                });
                s.emit(Instr::Mul(3, reg(0), 2.into()));
                s.emit(Instr::Mul(4, reg(0), cols.into()));
                s.emit(Instr::Store(Word::U16, start.into(), reg(3), reg(4)));
            });
            s.emit(Instr::Store(
                Word::U16,
                start.into(),
                (2 * rows).into(),
                (rows * cols).into(),
            ));
            if timed {
                // r0: row; r1: nonzero; r2: the row's last nonzero + 1
                count(&mut s, "row", 0, rows, |s| {
                    s.emit(Instr::Add(3, reg(0), reg(0)));
                    s.emit(Instr::Load(Word::U16, 1, start.into(), reg(3)));
                    s.emit(Instr::Add(3, reg(3), 2.into()));
                    s.emit(Instr::Load(Word::U16, 2, start.into(), reg(3)));
                    let done = s.label("row_done");
                    s.branch(Cond::Ge, reg(1), reg(2), done);
                    let nonzero = s.here("nonzero");
                    s.emit(Instr::Add(3, reg(1), reg(1)));
                    s.emit(Instr::Load(Word::U16, 4, index.into(), reg(3)));
                    s.emit(Instr::Add(3, reg(3), reg(3)));
                    s.emit(Instr::Load(Word::I32, 5, value.into(), reg(3)));
                    s.emit(Instr::Mul(4, reg(4), (4 * pitch).into()));
                    s.emit(Instr::Add(4, reg(4), b.into()));
                    s.emit(Instr::Mul(6, reg(0), (4 * pitch).into()));
                    s.emit(Instr::Add(6, reg(6), c.into()));
                    row(s, 0, 6, m);
                    row(s, 1, 4, m);
                    multiply_add(s, 5);
                    s.emit(Instr::Add(1, reg(1), 1.into()));
                    s.branch(Cond::Lt, reg(1), reg(2), nonzero);
                    s.bind(done);
                });
            }
            finish(s, c, rows * pitch)
        },
    )
}

/// C += A B, dense: A has `nt` rows and `kt` columns, B has `m` columns; A and C are stored by columns, B by rows. One
/// multiply-accumulate of length `nt` for each column of B and of A.
fn gemm(nt: i64, kt: i64, m: i64, grid: &str, published: f64, kind: Kind) -> Case {
    let (a, b): (Vec<f32>, Vec<f32>) = (filled(0, kt * nt).collect(), filled(0, kt * m).collect());
    let mut c = vec![0f32; (m * nt) as usize];
    for (j, k, i) in triples(m, kt, nt) {
        let at = j * nt as usize + i;
        c[at] = a[k * nt as usize + i].mul_add(b[k * m as usize + j], c[at]);
    }
    let parameters = format!("{grid}, Nt = {nt}, Kt = {kt}, M = {m}");
    case(
        "GEMM",
        parameters,
        published,
        kind,
        if kind == Kind::Fitted { 0.01 } else { 0.06 },
        c,
        |timed| {
            let mut s = Assembler::new();
            s.task("start", Trigger::Start);
            let c = s.buffer("c", 4 * (m * nt) as u32, 0);
            let a = s.buffer("a", 4 * (kt * nt) as u32, 0);
            let b = s.buffer("b", 4 * (kt * m) as u32, 0);
            fill(&mut s, a, 0, kt * nt);
            fill(&mut s, b, 0, kt * m);
            if timed {
                // r0: column of B and C; r1: its offset in a row of B; r2: address of C's column; r3: column of A
                s.emit(Instr::Set(1, 0.into()));
                s.emit(Instr::Set(2, c.into()));
                count(&mut s, "column", 0, m, |s| {
                    row(s, 0, 2, nt);
                    count(s, "k", 3, kt, |s| {
                        s.emit(Instr::Mul(4, reg(3), (4 * m).into()));
                        s.emit(Instr::Add(4, reg(4), reg(1)));
                        s.emit(Instr::Load(Word::I32, 5, b.into(), reg(4)));
                        s.emit(Instr::Mul(4, reg(3), (4 * nt).into()));
                        s.emit(Instr::Add(4, reg(4), a.into()));
                        row(s, 1, 4, nt);
                        multiply_add(s, 5);
                    });
                    s.emit(Instr::Add(1, reg(1), 4.into()));
                    s.emit(Instr::Add(2, reg(2), (4 * nt).into()));
                });
            }
            finish(s, c, m * nt)
        },
    )
}

fn triples(l: i64, m: i64, n: i64) -> impl Iterator<Item = (usize, usize, usize)> {
    let (l, m, n) = (l as usize, m as usize, n as usize);
    (0..l).flat_map(move |i| (0..m).flat_map(move |j| (0..n).map(move |k| (i, j, k))))
}

/// All local points. The machine's issue time, descriptor cost and lanes are from the two fitted vector products. Tiles of the
/// dense product: Nt = N / height, Kt = K / width of the grid.
pub(super) fn all() -> Vec<Case> {
    use Kind::{Fitted, Predicted};
    vec![
        multiply(5124, Access::Conflict, 10254.0, Predicted),
        multiply(5124, Access::Apart, 5130.0, Fitted),
        multiply(5124, Access::Paired, 2597.0, Fitted),
        multiply(1028, Access::Conflict, 2062.0, Predicted),
        multiply(1028, Access::Apart, 1034.0, Predicted),
        csr(32, 32, 36, 114_490.0, Fitted),
        csr(32, 32, 132, 311_098.0, Predicted),
        csr(8, 8, 36, 7522.0, Predicted),
        csr(8, 8, 132, 19_810.0, Predicted),
        gemm(64, 48, 64, "16 x 12 PEs, 768 x 768", 476_866.0, Fitted),
        gemm(32, 32, 32, "2 x 2 PEs, 64 x 64", 88_795.0, Predicted),
        gemm(32, 32, 128, "2 x 2 PEs, 64 x 64", 357_853.0, Predicted),
        gemm(128, 8, 64, "128 x 8 PEs, 1024 x 1024", 150_760.0, Predicted),
    ]
}
