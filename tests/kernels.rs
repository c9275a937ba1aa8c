//! Every kernel alone, over random shapes, meshes, masks and machine settings: what the PEs compute agrees with the evaluator, and what
//! they execute is what the graph's counts say.

mod common;

use common::{Builder, conv, numbers};
use meshloom::rounding::Rounding;
use meshloom::simulate::{self, Job, expected};
use meshloom_compiler::Options;
use meshloom_models::{Graph, Mask, Op, sparsify};
use meshloom_simulator::engine::Engine;
use meshloom_simulator::numerics::{from_bits, to_bits};
use meshloom_simulator::program::Ty;
use meshloom_traces::report::RunName;
use proptest::prelude::*;

/// Compiles and runs a graph, and holds it to the evaluator. `Ok(false)`: refused because it does not fit.
fn check(
    graph: &Graph,
    sparse: bool,
    ty: Ty,
    items: usize,
    sets: &[String],
    seed: u64,
) -> Result<bool, String> {
    let machine = meshloom::machines::load("small", sets).map_err(|e| e.to_string())?;
    let graph = if sparse {
        sparsify(graph, 0.6, Mask::Uniform, seed).map_err(|e| e.to_string())?
    } else {
        graph.clone()
    };
    let inputs: Vec<_> = meshloom_models::seeded_inputs(&graph, seed, items)
        .into_iter()
        .collect();
    // the order of the graph's inputs
    let inputs: Vec<_> = graph
        .inputs()
        .iter()
        .map(|t| {
            inputs
                .iter()
                .find(|(n, _)| *n == graph.tensor(*t).name)
                .cloned()
                .ok_or("an input without values")
        })
        // what enters is rounded before a kernel sees it: that is no error of its own (a norm of few features can magnify it)
        .map(|one| {
            one.map(|(name, v)| {
                let rounded = v.into_iter().map(|v| from_bits(ty, to_bits(ty, v), 0));
                (name, rounded.collect())
            })
        })
        .collect::<Result<_, _>>()?;
    let want = expected(&graph, &inputs, items).map_err(|e| e.to_string())?;
    let job = Job {
        name: if sparse { RunName::Sparse } else { RunName::Dense },
        graph: &graph,
        machine: &machine,
        sparsity: if sparse { 0.6 } else { 0.0 },
        options: Options {
            ty,
            items,
            lanes: 1 << (seed % 3),
            seed,
            ..Options::default()
        },
        inputs: &inputs,
        expected: Some(&want),
        progress: None,
        max_cycles: None,
        engine: Engine::default(),
    };
    let finished = match simulate::run(&job) {
        Ok(f) => f,
        Err(e) if e.code() == 2 => return Ok(false),
        Err(e) => return Err(e.to_string()),
    };
    common::engines_agree(&finished.compiled, &machine)?;
    let flops = &finished.run.flops;
    if flops.executed.mac != flops.theoretical.mac {
        return Err(format!(
            "executed {} multiply-adds, not {}",
            flops.executed.mac, flops.theoretical.mac
        ));
    }
    let rounding = match ty {
        Ty::F32 => None,
        Ty::F16 => {
            Some(Rounding::of(&graph, &finished.compiled, &inputs, items, &want).map_err(|e| e.to_string())?)
        }
    };
    for (tensor, name, e) in finished.compared(&graph) {
        // as in tests/families.rs: where an evaluation with the same roundings is off by more than 1e-2, that is what it costs
        let most = match &rounding {
            Some(r) if r.error(tensor) > 1e-2 => r.most(tensor),
            Some(r) => r.most(tensor).min(2e-2),
            None => 1e-5 + means(&graph, &inputs),
        };
        if e > most {
            return Err(format!("tensor {name} is off by {e:.1e}, more than {most:.1e}"));
        }
    }
    Ok(true)
}

/// What rounding a row's mean to f32, and the sum before it, does to a norm of that row: large where a few features are nearly equal.
fn means(graph: &Graph, inputs: &[(String, Vec<f32>)]) -> f64 {
    let norms = graph.nodes_in_order().into_iter().map(|id| graph.node(id));
    let normed = norms
        .filter(|n| matches!(n.op, Op::LayerNorm { .. }))
        .map(|n| graph.tensor(n.inputs[0]));
    let rows = normed.flat_map(|t| {
        let values = inputs
            .iter()
            .find(|(name, _)| *name == t.name)
            .map_or(&[][..], |(_, v)| v);
        values.chunks_exact(*t.shape.last().expect("features"))
    });
    let over = |row: &[f32]| {
        let n = row.len() as f64;
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        mean.abs() / (variance + 1e-5).sqrt()
    };
    2.0 * f64::from(f32::EPSILON) * rows.map(over).fold(0.0, f64::max)
}

fn settings() -> impl Strategy<Value = Vec<String>> {
    let sets = (4u32..14, 1u32..9, 1u32..4, prop::bool::ANY, 1u32..3, 1u32..3);
    sets.prop_map(|(w, h, depth, wide, lanes, hop)| {
        let bits = if wide { 64 } else { 32 };
        vec![
            format!("mesh.width={w}"),
            format!("mesh.height={h}"),
            format!("router.queue_depth={depth}"),
            format!("link.bits={bits}"),
            format!("pe.lanes.f32={lanes}"),
            format!("router.hop_cycles={hop}"),
            "edge.bits_per_second=5e12".into(),
        ]
    })
}

#[derive(Clone, Debug)]
struct Window {
    n: usize,
    c: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
}

fn window() -> impl Strategy<Value = Window> {
    let numbers = (
        1usize..4,
        1usize..9,
        [3usize..8, 3usize..8],
        [1usize..4, 1usize..4],
        [1usize..4, 1usize..4],
        [0usize..2, 0usize..2, 0usize..2, 0usize..2],
    );
    numbers.prop_map(|(n, c, size, kernel, strides, pads)| {
        // padding below the window, as the operators ask
        let pads = [
            pads[0].min(kernel[0] - 1),
            pads[1].min(kernel[1] - 1),
            pads[2].min(kernel[0] - 1),
            pads[3].min(kernel[1] - 1),
        ];
        Window {
            n,
            c,
            size,
            kernel,
            strides,
            pads,
        }
    })
}

/// Products and bias that nearly cancel wherever the ReLU lets them by: in f16 the tensor is off by half its deviation, by rounding alone (the
/// evaluation with the mesh's roundings is as far off).
#[test]
fn products_that_cancel_in_f16() {
    let mut b = Builder::new("conv");
    let x = b.input("x", &[1, 2, 4, 3]);
    let op = Op::Conv {
        strides: [3, 1],
        pads: [0; 4],
        dilations: [1, 1],
        groups: 2,
    };
    let y = b.weighted("conv", op, x, &[2, 1, 1, 1], 0);
    let y = b.op("relu", Op::Relu, &[y]);
    let graph = b.done(y);
    let sets = ["mesh.width=4", "mesh.height=2", "edge.bits_per_second=5e12"].map(String::from);
    for ty in [Ty::F32, Ty::F16] {
        assert_eq!(check(&graph, true, ty, 3, &sets, 467), Ok(true), "{ty:?}");
    }
}

fn ty() -> impl Strategy<Value = Ty> {
    prop_oneof![3 => Just(Ty::F32), 1 => Just(Ty::F16)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(debug_assertions) { 12 } else { 60 }) })]

    #[test]
    fn convolutions(w in window(), m in 1usize..12, groups in 1usize..4, depthwise in prop::bool::ANY, relu in prop::bool::ANY,
                    sparse in prop::bool::ANY, ty in ty(), items in 1usize..4, sets in settings(), seed in 0u64..1000) {
        let groups = if depthwise { w.c } else { groups };
        let (c, m) = if depthwise { (w.c, w.c * (1 + m % 2)) } else { (w.c.next_multiple_of(groups), m.next_multiple_of(groups)) };
        let mut b = Builder::new("conv");
        let x = b.input("x", &[w.n, c, w.size[0], w.size[1]]);
        let op = Op::Conv { strides: w.strides, pads: w.pads, dilations: [1, 1], groups };
        let y = b.weighted("conv", op, x, &[m, c / groups, w.kernel[0], w.kernel[1]], 0);
        let y = if relu { b.op("relu", Op::Relu, &[y]) } else { y };
        let graph = b.done(y);
        let done = check(&graph, sparse, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn products(n in 1usize..12, k in 1usize..40, m in 1usize..30, sparse in prop::bool::ANY, ty in ty(), items in 1usize..4,
                sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("product");
        let x = b.input("x", &[n, k]);
        let y = b.weighted("fc", Op::Linear, x, &[m, k], 0);
        let done = check(&b.done(y), sparse, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn attention(heads in 1usize..6, width in 1usize..7, tokens in 1usize..20, causal in prop::bool::ANY, product in prop::bool::ANY,
                 ty in ty(), items in 1usize..4, sets in settings(), seed in 0u64..1000) {
        let d = heads * width;
        let mut b = Builder::new("attention");
        let x = b.input("x", &[1, tokens, 5]);
        let qkv = b.weighted("qkv", Op::Linear, x, &[3 * d, 5], 0);
        let third = |b: &mut Builder, name: &str, i: usize| {
            b.op(name, Op::Slice { axis: 2, start: i * d, end: (i + 1) * d }, &[qkv])
        };
        let all = [third(&mut b, "q", 0), third(&mut b, "k", 1), third(&mut b, "v", 2)];
        let y = b.op("attention", Op::Attention { heads, causal }, &all);
        let y = if product { b.weighted("proj", Op::Linear, y, &[d, d], 0) } else { y };
        let done = check(&b.done(y), false, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn pools(w in window(), max in prop::bool::ANY, counted in prop::bool::ANY, ty in ty(), items in 1usize..4, sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("pool");
        let x = b.input("x", &[w.n, w.c, w.size[0], w.size[1]]);
        let op = if max {
            Op::MaxPool { kernel: w.kernel, strides: w.strides, pads: w.pads }
        } else {
            Op::AvgPool { kernel: w.kernel, strides: w.strides, pads: w.pads, count_include_pad: counted }
        };
        let y = b.op("y", op, &[x]);
        let done = check(&b.done(y), false, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn element_wise(which in 0usize..8, n in 1usize..9, c in 1usize..20, p in 1usize..5, ty in ty(), items in 1usize..5,
                    sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("y");
        let x = b.input("x", &[n, c, p, 2]);
        let y = match which {
            0 => { let z = b.input("z", &[n, c, p, 2]); b.op("y", Op::Add, &[x, z]) }
            1 => { let z = b.input("z", &[n, c, p, 2]); let s = b.op("s", Op::Mul, &[x, z]); b.op("y", Op::Relu, &[s]) }
            2 => b.op("y", Op::Relu, &[x]),
            3 => b.op("y", Op::Gelu { tanh: true }, &[x]),
            4 => b.op("y", Op::Gelu { tanh: false }, &[x]),
            5 => b.op("y", Op::Clip { min: -0.7, max: 0.4 }, &[x]),
            6 => {
                let (min, max) = if seed % 2 == 0 { (-0.3, f32::MAX) } else { (f32::MIN, 0.6) };
                b.op("y", Op::Clip { min, max }, &[x])
            }
            _ => {
                // nothing before it could take it in
                let spread = numbers(c, 0).iter().map(|v| v * v + 0.1).collect();
                let mut constants = vec![x];
                for (i, values) in [numbers(c, 0), numbers(c + 3, 0)[3..].to_vec(), numbers(c + 9, 0)[9..].to_vec(), spread].into_iter().enumerate() {
                    constants.push(b.0.add_constant(format!("norm.{i}"), &[c], values).unwrap_or_else(|e| panic!("{e}")));
                }
                let y = b.op("norm", Op::BatchNorm { epsilon: 1e-5 }, &constants);
                if seed % 2 == 0 { b.op("y", Op::Relu, &[y]) } else { y }
            }
        };
        let done = check(&b.done(y), false, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn over_features(norm in prop::bool::ANY, n in 1usize..9, c in 2usize..40, p in 1usize..9, ty in ty(), items in 1usize..5,
                     sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("y");
        let y = if norm {
            let x = b.input("x", &[n, p, c]);
            let scale = b.0.add_constant("scale", &[c], numbers(c, 0)).unwrap_or_else(|e| panic!("{e}"));
            let shift = b.0.add_constant("shift", &[c], numbers(c + 5, 0)[5..].to_vec()).unwrap_or_else(|e| panic!("{e}"));
            b.op("y", Op::LayerNorm { epsilon: 1e-5 }, &[x, scale, shift])
        } else if seed % 2 == 0 {
            let x = b.input("x", &[n, c, p, 2]);
            b.op("y", Op::Softmax { axis: 1 }, &[x])
        } else {
            let x = b.input("x", &[n, c]);
            b.op("y", Op::Softmax { axis: 1 }, &[x])
        };
        let done = check(&b.done(y), false, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn embeddings(n in 1usize..3, tokens in 1usize..9, rows in 1usize..50, width in 1usize..24, positions in prop::bool::ANY, ty in ty(),
                  items in 1usize..4, sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("embedding");
        let ids = b.input("ids", &[n, tokens]);
        let table = b.0.add_constant("table", &[rows, width], numbers(rows * width, 0)).unwrap_or_else(|e| panic!("{e}"));
        let mut y = b.op("rows", Op::Gather, &[ids, table]);
        if positions {
            let start = numbers(tokens * width + 11, 0)[11..].to_vec();
            let start = b.0.add_constant("positions", &[tokens, width], start).unwrap_or_else(|e| panic!("{e}"));
            y = b.op("y", Op::Add, &[y, start]);
        }
        let done = check(&b.done(y), false, ty, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }

    #[test]
    fn residual_networks(c in 1usize..6, stride in 1usize..3, n in 1usize..3, sparse in prop::bool::ANY, items in 1usize..5, sets in settings(), seed in 0u64..1000) {
        let mut b = Builder::new("residual");
        let x = b.input("x", &[n, 3, 6, 5]);
        let stem = b.weighted("stem", conv([1, 1], [1; 4], 1), x, &[c, 3, 3, 3], 0);
        let stem = b.op("stem.relu", Op::Relu, &[stem]);
        let a = b.weighted("a", conv([stride, stride], [1; 4], 1), stem, &[2 * c, c, 3, 3], 0);
        let a = b.weighted("b", conv([1, 1], [1; 4], 1), a, &[2 * c, 2 * c, 3, 3], 0);
        let skip = b.weighted("skip", conv([stride, stride], [0; 4], 1), stem, &[2 * c, c, 1, 1], 0);
        let sum = b.op("sum", Op::Add, &[a, skip]);
        let y = b.op("y", Op::Relu, &[sum]);
        let mut sets = sets;
        sets.push("mesh.width=16".into());
        let done = check(&b.done(y), sparse, Ty::F32, items, &sets, seed).map_err(TestCaseError::fail)?;
        prop_assume!(done);
    }
}
