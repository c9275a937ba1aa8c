//! What an element costs in the fast engine, against a plain native loop over the same numbers: one PE that executes an instruction
//! again and again. `cargo bench --bench numbers`; the quotient of a form's two throughputs is its distance from native. The engine's
//! figure includes all that it does for the instruction (issue, the loop around it, its timing).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fearless_simd::{Level, Simd, dispatch};
use meshloom_simulator::engine::{self, Engine, Options};
use meshloom_simulator::program::{Feed, FeedData, Program, Wavelet};
use meshloom_simulator::text::{DataStore, parse};
use meshloom_simulator::{Machine, numerics, verify};
use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
use std::hint::black_box;
use std::sync::Arc;

const TURNS: usize = 200;
const ROWS: usize = 64;
const COLUMNS: usize = 32;
const N: usize = ROWS * COLUMNS;

/// A PE that executes `instruction` in each of its turns; what it takes on colour 1 and sends on colour 2 is fed and drained.
fn program(instruction: &str) -> Program {
    let takes = instruction.contains("d4");
    let sends = instruction.contains("d5");
    let stream = |used: bool, d: &str| match used {
        true => format!("    desc {d} f32 [{ROWS} {COLUMNS}]\n"),
        false => String::new(),
    };
    let (input, output) = (stream(takes, "d4 = in c1"), stream(sends, "d5 = out c2"));
    let comes = if takes {
        "route c1 x 0 x 0: west -> ramp\n"
    } else {
        ""
    };
    let goes = if sends {
        "route c2 y 0 x 0: ramp -> west\n"
    } else {
        ""
    };
    let mut text = format!(
        "program numbers
region a at 0, 0 size 1 x 1
{comes}{goes}block 0 x 0
  memory y @0 8192 bytes
  memory x @8192 256 bytes
  memory w @8448 256 bytes
  memory z @8704 8192 bytes
  memory i @16896 128 bytes
  task main start -> main
  main:
    desc d0 = mem f32 @y [{ROWS} {COLUMNS}] by [{COLUMNS} 1] wide
    desc d1 = mem f32 @w [{ROWS} {COLUMNS}] by [1 0]
    desc d2 = mem f32 @x [{ROWS} {COLUMNS}] by [0 1] wide
    desc d3 = mem f32 @z [{ROWS} {COLUMNS}] by [{COLUMNS} 1] wide
{input}{output}    desc d6 = mem f16 @w [{ROWS} {COLUMNS}] by [1 0]
    desc d7 = mem f16 @x [{ROWS} {COLUMNS}] by [0 1] wide
    desc d8 = mem f32 @y [{COLUMNS}] by [1] wide
    desc d9 = mem f32 @x [{COLUMNS}] by [1] wide
    desc d10 = mem f16 @z [{ROWS} {COLUMNS}] by [{COLUMNS} 1] wide
    set r0 = 0
  loop:
    {instruction}
    add r0 = r0 + 1
    branch r0 < {TURNS} loop
    halt
"
    );
    if takes {
        text += "feed x west row 0 c1 epoch 1 = [3f800000]\n";
    }
    if sends {
        text += &format!("drain y west row 0 c2: {} wavelets\n", N * TURNS);
    }
    let mut p = parse(&text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    for Feed { data, .. } in &mut p.stages[0].feeds {
        let wavelet = |i: usize| Wavelet {
            bits: (i as f32 * 1e-3).to_bits() as u64,
            elements: 1,
            flag: false,
        };
        *data = FeedData::Host(Arc::new((0..N * TURNS).map(wavelet).collect()));
    }
    p
}

/// A product of matrices: accumulators [outputs, rows, columns] that take features, each times weights [features, outputs].
#[derive(Clone, Copy)]
struct Shape {
    features: usize,
    outputs: usize,
    rows: usize,
    columns: usize,
    /// Elements from row to row.
    pitch: usize,
}

impl Shape {
    fn elements(&self) -> usize {
        self.features * self.outputs * self.rows * self.columns
    }

    /// A PE that executes the product in each of its turns, as the compiler writes it.
    fn program(&self, ty: &str) -> Program {
        let Shape {
            features: f,
            outputs: o,
            rows: r,
            columns: c,
            pitch,
        } = *self;
        let plane = r * pitch;
        let bytes = if ty == "f16" { 2 } else { 4 };
        let (y, w, x) = (o * plane * 4, f * o * bytes, f * plane * bytes);
        let at = |n: usize| n.next_multiple_of(16);
        let (w_at, x_at) = (at(y), at(y) + at(w));
        let text = format!(
            "program numbers
region a at 0, 0 size 1 x 1
block 0 x 0
  memory y @0 {y} bytes
  memory w @{w_at} {w} bytes
  memory x @{x_at} {x} bytes
  task main start -> main
  main:
    desc d0 = mem f32 @y [{f} {o} {r} {c}] by [0 {plane} {pitch} 1] wide
    desc d1 = mem {ty} @w [{f} {o} {r} {c}] by [{o} 1 0 0]
    desc d2 = mem {ty} @x [{f} {o} {r} {c}] by [{plane} 0 {pitch} 1] wide
    set r0 = 0
  loop:
    mac d0 += d1 * d2 #mac
    add r0 = r0 + 1
    branch r0 < {TURNS} loop
    halt
"
        );
        parse(&text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    /// The same by a native GEMM, positions close together.
    fn native(&self) -> impl FnMut() + use<> {
        let positions = self.rows * self.columns;
        let mut y = Array2::<f32>::zeros((self.outputs, positions));
        let w = Array2::from_elem((self.features, self.outputs), 0.25f32);
        let x = Array2::from_elem((self.features, positions), 0.5f32);
        move || general_mat_mul(1.0, &black_box(&w).t(), black_box(&x), 1.0, black_box(&mut y))
    }
}

/// The native loop of a form, on y, x, w, z.
type Native = fn(&mut [f32], &[f32], &[f32], &[f32]);

#[inline(always)]
fn outer(y: &mut [f32], x: &[f32], w: &[f32], _: &[f32]) {
    for (y, w) in y.chunks_exact_mut(COLUMNS).zip(w) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = w.mul_add(*x, *y);
        }
    }
}

#[inline(always)]
fn axpys(y: &mut [f32], x: &[f32], w: &[f32], _: &[f32]) {
    for w in w {
        for (y, x) in y[..COLUMNS].iter_mut().zip(x) {
            *y = w.mul_add(*x, *y);
        }
        // each is an instruction of its own
        black_box(&mut *y);
    }
}

#[inline(always)]
fn sum(y: &mut [f32], _: &[f32], _: &[f32], z: &[f32]) {
    y.iter_mut().zip(z).for_each(|(y, z)| *y += z);
}

#[inline(always)]
fn copy(y: &mut [f32], _: &[f32], _: &[f32], z: &[f32]) {
    y.copy_from_slice(z);
}

#[inline(always)]
fn exp(y: &mut [f32], _: &[f32], _: &[f32], z: &[f32]) {
    y.iter_mut().zip(z).for_each(|(y, z)| *y = numerics::exp(*z));
}

#[inline(always)]
fn tanh(y: &mut [f32], _: &[f32], _: &[f32], z: &[f32]) {
    y.iter_mut().zip(z).for_each(|(y, z)| *y = numerics::tanh(*z));
}

#[inline(always)]
fn rsqrt(y: &mut [f32], _: &[f32], _: &[f32], z: &[f32]) {
    y.iter_mut().zip(z).for_each(|(y, z)| *y = 1.0 / z.sqrt());
}

macro_rules! native {
    ($f:ident) => {{
        fn vectorised(y: &mut [f32], x: &[f32], w: &[f32], z: &[f32]) {
            dispatch!(Level::new(), simd => simd.vectorize(#[inline(always)] || $f(y, x, w, z)));
        }
        vectorised as Native
    }};
}

fn benches(c: &mut Criterion) {
    let small = include_str!("../machines/small.toml");
    let sets = ["mesh.width=1".to_string(), "mesh.height=1".to_string()];
    let machine = Machine::parse("small", small, &sets).expect("a machine of ours");
    let axpy = format!(
        "axpy d8 += d9 * list mem f32 index @i value @w count {ROWS} modulo 1 divisor 1 y_step 32 x_step 0 #mac"
    );
    let forms: [(&str, &str, Native); 11] = [
        ("mac, outer product", "mac d0 += d1 * d2 #mac", native!(outer)),
        (
            "mac, outer product of f16",
            "mac d0 += d6 * d7 #mac",
            native!(outer),
        ),
        ("mac into f16", "mac d10 += d1 * d2 #mac", native!(outer)),
        ("axpy", &axpy, native!(axpys)),
        ("add", "add d0 = d0 + d3", native!(sum)),
        ("mov from the fabric", "mov d0 = d4", native!(copy)),
        ("mov to the fabric", "mov d5 = d3", native!(copy)),
        ("add in a stream", "add d5 = d4 + d3 #reduce", native!(sum)),
        ("exp", "exp d0 = d3 #other", native!(exp)),
        ("tanh", "tanh d0 = d3 #other", native!(tanh)),
        ("rsqrt", "rsqrt d0 = d3 #other", native!(rsqrt)),
    ];
    let products = [
        ("matrix product", "f32", [96, 48, 1, 32, 32]),
        ("matrix product of f16", "f16", [96, 48, 1, 32, 32]),
        ("matrix product, 3 features", "f32", [3, 71, 1, 32, 32]),
        ("matrix product, 1 feature", "f32", [1, 71, 1, 32, 32]),
        ("matrix product, 1 position", "f32", [96, 96, 1, 1, 1]),
        ("tap of a convolution", "f32", [24, 32, 8, 14, 16]),
        ("tap of a convolution, short rows", "f32", [24, 32, 7, 7, 9]),
    ];
    for (name, ty, [features, outputs, rows, columns, pitch]) in products {
        let shape = Shape {
            features,
            outputs,
            rows,
            columns,
            pitch,
        };
        let p = shape.program(ty);
        let mut native = shape.native();
        compare(c, name, &p, &machine, shape.elements(), &mut native);
    }
    let x = vec![0.5f32; COLUMNS];
    let w = vec![0.25f32; ROWS];
    let z: Vec<f32> = (0..N).map(|i| i as f32 * 1e-3).collect();
    let mut y = vec![0f32; N];
    for (name, instruction, native) in forms {
        let p = program(instruction);
        let mut native = || native(black_box(&mut y), black_box(&x), black_box(&w), black_box(&z));
        compare(c, name, &p, &machine, N, &mut native);
    }
}

/// Both engine and native code, `TURNS` times so many elements.
fn compare(
    c: &mut Criterion,
    name: &str,
    p: &Program,
    machine: &Machine,
    elements: usize,
    mut native: impl FnMut(),
) {
    verify::verify(p, machine).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let options = Options {
        engine: Engine::Fast,
        ..Options::default()
    };
    let mut group = c.benchmark_group(name);
    group
        .sample_size(10)
        .throughput(Throughput::Elements((elements * TURNS) as u64));
    group.bench_function("engine", |b| {
        b.iter(|| black_box(engine::run(p, machine, &options)).expect("it runs"));
    });
    group.bench_function("native", |b| b.iter(|| (0..TURNS).for_each(|_| native())));
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
