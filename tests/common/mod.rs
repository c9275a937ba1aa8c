//! What several tests share: a machine, tiny models that cover every kernel, and their compiled programs.
#![allow(dead_code)] // each test uses its part

use meshloom_compiler::{Compiled, Options, compile};
use meshloom_models::{Graph, Op, TensorId, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Engine, Outcome, Paths, RunError};
use meshloom_simulator::program::{FeedData, Piece, Program, Stage, Ty};

/// The machine `small` with assignments as after `--set`.
pub fn small(sets: &[&str]) -> Machine {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    meshloom::machines::load("small", &sets).unwrap_or_else(|e| panic!("{e}"))
}

/// A mesh of 7 x 6 PEs with two channels on each side, on rows 0 and 4: rows share channels, unevenly.
pub fn tiny() -> Machine {
    small(&["mesh.width=7", "mesh.height=6", "edge.bits_per_second=108.8e9"])
}

/// The outcome without what depends on which PEs were visited.
pub fn comparable(o: Outcome) -> Outcome {
    Outcome {
        active_pe_cycles: 0,
        engine: Engine::Reference,
        paths: Paths::default(),
        ..o
    }
}

/// Puts another stage before all of a program's; what enters again is taken from the same stages as before.
pub fn behind(first: Stage, program: &Program) -> Program {
    let mut all = program.clone();
    for feed in all.stages.iter_mut().flat_map(|s| &mut s.feeds) {
        match &mut feed.data {
            FeedData::Host(_) => {}
            FeedData::Drained(spans) => spans.iter_mut().for_each(|s| s.stage += 1),
            FeedData::Cut(cut) => cut.pieces.iter_mut().for_each(|piece| match piece {
                Piece::Kept { stage, .. } => *stage += 1,
                Piece::Fill { .. } => {}
            }),
        }
    }
    all.stages.insert(0, first);
    all
}

/// Numbers drawn by proptest, taken one by one; 0 when they are used up, so that cases shrink to simple ones.
pub struct Choices<'a> {
    all: &'a [u16],
    at: usize,
}

impl Choices<'_> {
    pub fn new(all: &[u16]) -> Choices<'_> {
        Choices { all, at: 0 }
    }

    pub fn below(&mut self, n: u32) -> u32 {
        let c = self.all.get(self.at).copied().unwrap_or(0) as u32;
        self.at += 1;
        c % n.max(1)
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == n - 1
    }
}

/// Runs a program on both engines, which must agree in everything, down to the cycle of every arrival; the fast one by itself if the program ends well.
pub fn on_both(
    program: &Program,
    machine: &Machine,
    options: &engine::Options,
) -> Result<Result<Outcome, RunError>, String> {
    let run = |engine| {
        let options = engine::Options {
            engine,
            record: true,
            ..options.clone()
        };
        engine::run(program, machine, &options)
    };
    let (fast, reference) = (run(Engine::Fast), run(Engine::Reference).map(comparable));
    if fast.as_ref().is_ok_and(|o| o.engine != Engine::Fast) {
        return Err("the fast engine left a program that ends well to the reference engine".into());
    }
    let fast = fast.map(comparable);
    if fast == reference {
        return Ok(reference.map(|o| Outcome {
            arrivals: Vec::new(),
            ..o
        }));
    }
    Err(match (&fast, &reference) {
        (Ok(a), Ok(b)) => {
            let pe = a.pes.iter().zip(&b.pes).position(|(a, b)| a != b);
            let of = pe.map(|i| (i, a.pes[i], b.pes[i]));
            let arrivals = a.arrivals.iter().zip(&b.arrivals).filter(|(a, b)| a != b);
            // the queue in which the first wavelet is early or late
            let first = arrivals.min_by_key(|(a, b)| {
                let both = a.cycles.iter().zip(&b.cycles);
                let (a, b) = (&a.cycles, &b.cycles);
                let same = both.take_while(|(a, b)| a == b).count();
                a.get(same).into_iter().chain(b.get(same)).min().copied()
            });
            let equal = |name: &str, equal: bool| if equal { String::new() } else { format!(", {name}") };
            format!(
                "the engines differ: {} and {} cycles{}{}{}{}{}; the first PE that does, fast and reference: {of:?}; the first queue: \
                 {first:?}",
                a.cycles,
                b.cycles,
                equal("drains", a.drains == b.drains),
                equal("probes", a.probes == b.probes),
                equal("hops", a.hops == b.hops),
                equal("wavelets", a.wavelets == b.wavelets),
                equal("edge wavelets", a.edge_wavelets == b.edge_wavelets),
            )
        }
        (a, b) => format!(
            "the engines differ, fast and reference: {:?} and {:?}",
            a.as_ref().map(|o| o.cycles),
            b.as_ref().map(|o| o.cycles)
        ),
    })
}

/// A compiled model on both engines, with every stream that is probed.
pub fn engines_agree(compiled: &Compiled, machine: &Machine) -> Result<(), String> {
    let options = engine::Options {
        probes: compiled
            .probes
            .iter()
            .flat_map(|p| p.at.iter().copied())
            .collect(),
        ..engine::Options::default()
    };
    let outcome = on_both(&compiled.program, machine, &options)?;
    outcome.map(|_| ()).map_err(|e| e.to_string())
}

/// A model small enough to run thousands of times.
pub struct Model {
    /// What it covers.
    pub name: &'static str,
    pub graph: Graph,
    pub options: Options,
    pub inputs: Vec<(String, Vec<f32>)>,
}

impl Model {
    pub fn new(name: &'static str, graph: Graph, items: usize, skip_zeros: bool, ty: Ty) -> Model {
        let seeded = seeded_inputs(&graph, 5, items);
        let inputs = graph
            .inputs()
            .iter()
            .map(|t| graph.tensor(*t).name.clone())
            .map(|n| (n.clone(), seeded[&n].clone()))
            .collect();
        Model {
            name,
            graph,
            options: Options {
                ty,
                items,
                skip_zeros,
                ..Options::default()
            },
            inputs,
        }
    }

    pub fn compile(&self, machine: &Machine) -> Compiled {
        compile(&self.graph, machine, &self.options, &self.inputs)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Numbers of either sign, none near 0; every `zero`-th (from the second) is 0, if that is not 0.
pub fn numbers(n: usize, zero: usize) -> Vec<f32> {
    let mut s = 0x9e37_79b9_7f4a_7c15u64;
    (0..n)
        .map(|i| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            let size = 0.25 + (s >> 40) as f32 / (1 << 24) as f32;
            if zero > 0 && i % zero == 1 {
                0.0
            } else if s & 1 == 0 {
                size
            } else {
                -size
            }
        })
        .collect()
}

/// A graph under construction.
pub struct Builder(pub Graph);

impl Builder {
    pub fn new(name: &str) -> Builder {
        Builder(Graph::new(name))
    }

    pub fn input(&mut self, name: &str, shape: &[usize]) -> TensorId {
        self.0.add_input(name, shape).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn op(&mut self, name: &str, op: Op, inputs: &[TensorId]) -> TensorId {
        self.0
            .add_node(name, op, inputs, name)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// A linear operator with weights of this shape and biases; every `zero`-th weight is 0.
    pub fn weighted(&mut self, name: &str, op: Op, x: TensorId, weights: &[usize], zero: usize) -> TensorId {
        let w = self
            .0
            .add_constant(
                format!("{name}.w"),
                weights,
                numbers(weights.iter().product(), zero),
            )
            .unwrap_or_else(|e| panic!("{e}"));
        let b = self
            .0
            .add_constant(
                format!("{name}.b"),
                &weights[..1],
                numbers(weights[0] + 5, 0)[5..].to_vec(),
            )
            .unwrap_or_else(|e| panic!("{e}"));
        self.op(name, op, &[x, w, b])
    }

    pub fn done(mut self, output: TensorId) -> Graph {
        self.0.add_output(output).unwrap_or_else(|e| panic!("{e}"));
        self.0
    }
}

pub fn conv(strides: [usize; 2], pads: [usize; 4], groups: usize) -> Op {
    Op::Conv {
        strides,
        pads,
        dilations: [1, 1],
        groups,
    }
}

fn linear(name: &'static str, shape: [usize; 2], m: usize, zero: usize, ty: Ty) -> Model {
    let mut b = Builder::new(name);
    let x = b.input("x", &shape);
    let y = b.weighted("fc", Op::Linear, x, &[m, shape[1]], zero);
    Model::new(name, b.done(y), 2, zero > 0, ty)
}

fn convolution(name: &'static str, shape: [usize; 4], op: Op, weights: [usize; 4], zero: usize) -> Model {
    let mut b = Builder::new(name);
    let x = b.input("x", &shape);
    let y = b.weighted("conv", op, x, &weights, zero);
    Model::new(name, b.done(y), 2, zero > 0, Ty::F32)
}

fn alone(name: &'static str, op: Op, inputs: &[&[usize]]) -> Model {
    alone_with(name, op, inputs, 2)
}

/// The same with so many items.
fn alone_with(name: &'static str, op: Op, inputs: &[&[usize]], items: usize) -> Model {
    let mut b = Builder::new(name);
    let x: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, s)| b.input(&format!("x{i}"), s))
        .collect();
    let y = b.op("y", op, &x);
    Model::new(name, b.done(y), items, false, Ty::F32)
}

/// Constants of an operator, each `[n]`.
fn constants(b: &mut Builder, names: &[&str], n: usize) -> Vec<TensorId> {
    let one = |(i, name): (usize, &&str)| {
        let values = numbers(n * (i + 1), 0)[n * i..].to_vec();
        // variances and scales of one sign
        let values = if *name == "var" {
            values.iter().map(|v| v.abs()).collect()
        } else {
            values
        };
        b.0.add_constant(*name, &[n], values)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    names.iter().enumerate().map(one).collect()
}

/// A norm of an input with constants of these names, each `[n]`; four items.
fn normed(name: &'static str, op: Op, shape: &[usize], names: &[&str], n: usize, ty: Ty) -> Model {
    let mut b = Builder::new(name);
    let mut inputs = vec![b.input("x", shape)];
    inputs.extend(constants(&mut b, names, n));
    let y = b.op("y", op, &inputs);
    Model::new(name, b.done(y), 4, false, ty)
}

/// Queries, keys and values of one product, and what attends to them.
fn attention(name: &'static str, tokens: usize, width: usize, heads: usize) -> Model {
    let mut b = Builder::new(name);
    let x = b.input("x", &[1, tokens, 2]);
    let all = b.weighted("qkv", Op::Linear, x, &[3 * width, 2], 0);
    let parts = ["q", "k", "v"].into_iter().enumerate().map(|(i, part)| {
        let (start, end) = (i * width, (i + 1) * width);
        b.op(part, Op::Slice { axis: 2, start, end }, &[all])
    });
    let parts: Vec<_> = parts.collect();
    let y = b.op("attention", Op::Attention { heads, causal: true }, &parts);
    Model::new(name, b.done(y), 2, false, Ty::F32)
}

/// Rows of a table, each of which some id chooses, with what is added at each position.
fn embedding(name: &'static str, tokens: usize, rows: usize, width: usize) -> Model {
    let mut b = Builder::new(name);
    let ids = b.input("ids", &[1, tokens]);
    let mut constant = |name: &str, shape: [usize; 2], skip: usize| {
        let values = numbers(shape[0] * shape[1] + skip, 0)[skip..].to_vec();
        b.0.add_constant(name, &shape, values)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let (table, start) = (
        constant("table", [rows, width], 0),
        constant("start", [tokens, width], 9),
    );
    let chosen = b.op("rows", Op::Gather, &[ids, table]);
    let y = b.op("y", Op::Add, &[chosen, start]);
    let mut model = Model::new(name, b.done(y), 2, false, Ty::F32);
    model.inputs[0].1 = (0..2 * tokens).map(|i| (3 * i % rows) as f32).collect();
    model
}

/// One model a kernel and mode, each with two items or more.
pub fn kernels() -> Vec<Model> {
    let sum = {
        let mut b = Builder::new("conv sum");
        let (x, z) = (b.input("x", &[1, 3, 3, 4]), b.input("z", &[1, 2, 3, 4]));
        let left = b.weighted("left", conv([1, 1], [1; 4], 1), x, &[4, 3, 3, 3], 0);
        let right = b.weighted("right", conv([1, 1], [0; 4], 1), z, &[4, 2, 1, 1], 3);
        let s = b.op("s", Op::Add, &[left, right]);
        let y = b.op("y", Op::Relu, &[s]);
        Model::new("conv sum", b.done(y), 2, true, Ty::F32)
    };
    let zeros = {
        let mut b = Builder::new("conv of inserted zeros");
        let x = b.input("x", &[1, 3, 2, 3]);
        let z = b.op("z", Op::ZeroInsert { factor: [2, 2] }, &[x]);
        let y = b.weighted("conv", conv([1, 1], [1; 4], 1), z, &[4, 3, 3, 3], 0);
        Model::new("conv of inserted zeros", b.done(y), 2, false, Ty::F32)
    };
    let flatten = {
        let mut b = Builder::new("flatten");
        let x = b.input("x", &[2, 7, 2, 3]);
        let y =
            b.0.add_reshape("y", x, "y", &[2, 42])
                .unwrap_or_else(|e| panic!("{e}"));
        Model::new("flatten", b.done(y), 2, false, Ty::F32)
    };
    let fused = {
        let mut b = Builder::new("add with relu");
        let (x, z) = (b.input("x", &[1, 7, 3, 1]), b.input("z", &[1, 7, 3, 1]));
        let s = b.op("s", Op::Add, &[x, z]);
        let y = b.op("y", Op::Relu, &[s]);
        Model::new("add with relu", b.done(y), 2, false, Ty::F32)
    };
    let four: &[usize] = &[2, 7, 2, 2];
    // a feature is a slot of a ring, which four items go around
    let plane: &[usize] = &[1, 3, 8, 8];
    let large: &[usize] = &[1, 4, 16, 16];
    vec![
        linear("matmul dense", [2, 9], 8, 0, Ty::F32),
        linear("matmul dense f16", [2, 9], 8, 0, Ty::F16),
        linear("matmul dense, fewer rows out", [1, 12], 4, 0, Ty::F32),
        linear("matmul dense, fewer rows in", [1, 4], 8, 0, Ty::F32),
        linear("matmul sparse", [2, 9], 8, 2, Ty::F32),
        linear("matmul sparse, fewer rows out", [1, 12], 4, 3, Ty::F32),
        convolution(
            "conv dense",
            [1, 3, 4, 5],
            conv([2, 1], [1, 0, 1, 1], 1),
            [7, 3, 3, 2],
            0,
        ),
        convolution(
            "conv dense batch",
            [2, 3, 3, 3],
            conv([1, 1], [0, 1, 1, 0], 1),
            [4, 3, 2, 2],
            0,
        ),
        convolution(
            "conv sparse",
            [2, 3, 4, 3],
            conv([1, 2], [1, 1, 0, 0], 1),
            [7, 3, 2, 2],
            3,
        ),
        convolution(
            "conv groups",
            [2, 4, 3, 4],
            conv([2, 2], [1, 1, 1, 1], 2),
            [6, 2, 3, 3],
            0,
        ),
        convolution(
            "depthwise dense",
            [2, 7, 3, 3],
            conv([1, 1], [1, 0, 0, 1], 7),
            [7, 1, 2, 2],
            0,
        ),
        convolution(
            "depthwise dense twofold",
            [1, 4, 4, 3],
            conv([2, 1], [1, 1, 0, 0], 4),
            [8, 1, 3, 2],
            0,
        ),
        convolution(
            "depthwise sparse",
            [2, 4, 3, 3],
            conv([1, 1], [1, 1, 1, 1], 4),
            [8, 1, 3, 3],
            2,
        ),
        alone(
            "maxpool",
            Op::MaxPool {
                kernel: [3, 3],
                strides: [2, 2],
                pads: [1, 1, 1, 1],
            },
            &[&[2, 7, 5, 5]],
        ),
        alone(
            "maxpool by position",
            Op::MaxPool {
                kernel: [3, 3],
                strides: [3, 3],
                pads: [0; 4],
            },
            &[&[2, 7, 3, 6]],
        ),
        alone(
            "avgpool",
            Op::AvgPool {
                kernel: [2, 2],
                strides: [2, 2],
                pads: [0; 4],
                count_include_pad: false,
            },
            &[&[2, 7, 4, 6]],
        ),
        alone(
            "avgpool padded",
            Op::AvgPool {
                kernel: [3, 2],
                strides: [2, 1],
                pads: [1, 1, 1, 0],
                count_include_pad: false,
            },
            &[&[2, 7, 4, 3]],
        ),
        alone("add", Op::Add, &[four, four]),
        alone("mul", Op::Mul, &[four, four]),
        fused,
        alone("relu", Op::Relu, &[four]),
        alone("clip", Op::Clip { min: -0.5, max: 0.5 }, &[four]),
        sum,
        zeros,
        alone_with("gelu by tanh", Op::Gelu { tanh: true }, &[plane], 4),
        alone_with("gelu", Op::Gelu { tanh: false }, &[plane], 4),
        normed(
            "batch norm",
            Op::BatchNorm { epsilon: 1e-5 },
            plane,
            &["scale", "bias", "mean", "var"],
            3,
            Ty::F32,
        ),
        normed(
            "batch norm f16",
            Op::BatchNorm { epsilon: 1e-5 },
            plane,
            &["scale", "bias", "mean", "var"],
            3,
            Ty::F16,
        ),
        normed(
            "layer norm",
            Op::LayerNorm { epsilon: 1e-5 },
            &[3, 13],
            &["scale", "bias"],
            13,
            Ty::F32,
        ),
        attention("attention", 6, 6, 2),
        attention("attention, heads share columns", 4, 8, 8),
        embedding("embedding", 8, 7, 5),
        alone("add on two lanes", Op::Add, &[large, large]),
        convolution(
            "conv on two lanes",
            [1, 4, 16, 16],
            conv([1, 1], [0; 4], 1),
            [4, 4, 1, 1],
            0,
        ),
        alone("softmax", Op::Softmax { axis: 1 }, &[&[2, 9]]),
        flatten,
    ]
}

/// A residual block with a strided branch, pooled and classified: paths part and meet again.
pub fn residual() -> Model {
    let mut b = Builder::new("residual");
    let x = b.input("x", &[2, 3, 5, 5]);
    let stem = b.weighted("stem", conv([1, 1], [1; 4], 1), x, &[4, 3, 3, 3], 0);
    let stem = b.op("stem.relu", Op::Relu, &[stem]);
    let left = b.weighted("left", conv([2, 2], [1; 4], 1), stem, &[4, 4, 3, 3], 3);
    let right = b.weighted("right", conv([2, 2], [0; 4], 1), stem, &[4, 4, 1, 1], 0);
    let sum = b.op("sum", Op::Add, &[left, right]);
    let sum = b.op("sum.relu", Op::Relu, &[sum]);
    let pool = b.op(
        "pool",
        Op::AvgPool {
            kernel: [3, 3],
            strides: [1, 1],
            pads: [0; 4],
            count_include_pad: false,
        },
        &[sum],
    );
    let flat =
        b.0.add_reshape("flat", pool, "flat", &[2, 4])
            .unwrap_or_else(|e| panic!("{e}"));
    let y = b.weighted("fc", Op::Linear, flat, &[5, 4], 0);
    let y = b.op("y", Op::Softmax { axis: 1 }, &[y]);
    Model::new("residual", b.done(y), 3, true, Ty::F32)
}
