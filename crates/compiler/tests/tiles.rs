//! Tiles: over random convolutions, pools, products and element-wise operators on PEs whose SRAM is too small for whole planes, results and
//! all tensors between kernels agree with the f64 evaluator, both engines agree, and the multiply-adds executed are exactly the graph's own.
//! What can't be cut is refused, and why.

use meshloom_compiler::{CompileError, Compiled, Options, Stages, Weights, compile};
use meshloom_models::{Graph, Op, TensorId, evaluate::evaluate, flops, seeded_inputs};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::{self, Engine, Outcome};
use meshloom_simulator::program::Ty;
use meshloom_simulator::text;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// An operator that follows another.
#[derive(Clone, Debug)]
enum Layer {
    /// Output features, window, strides, pads, distance of taps, zeros among weights (one of so many; none if 0), ReLU.
    Conv(usize, [usize; 2], [usize; 2], [usize; 4], usize, usize, bool),
    /// Each feature by itself: window, strides, pads, zeros among weights.
    Depthwise([usize; 2], [usize; 2], [usize; 4], usize),
    /// Maximum, or average with padding counted or not: window, strides, pads.
    Pool(Option<bool>, [usize; 2], [usize; 2], [usize; 4]),
    /// A convolution and another one of the same tensor with a 1x1 window, added.
    Residual(usize, usize),
    /// Sum with a convolution of itself.
    Skip,
    /// A product of each sample's elements, with so many output features.
    Head(usize),
    /// Of sequences: output features, zeros among weights.
    Linear(usize, usize),
    Gelu,
    Norm,
}

#[derive(Clone, Debug)]
struct Case {
    /// Of the input: images or sequences.
    shape: Vec<usize>,
    layers: Vec<Layer>,
    ty: Ty,
    items: usize,
    stages: Stages,
    weights: Weights,
    sets: Vec<String>,
}

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    Machine::parse("machines/small.toml", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

/// Adds constants and nodes to a graph.
struct Maker {
    graph: Graph,
    next: usize,
}

impl Maker {
    fn constant(&mut self, shape: &[usize], zeros: usize) -> TensorId {
        self.next += 1;
        let seed = self.next;
        let value = |j: usize| match zeros > 0 && j.is_multiple_of(zeros) {
            true => 0.0,
            false => (((j * 7919 + seed * 31) % 127) as f32 + 0.5) / 64.0 - 1.0,
        };
        let all = (0..shape.iter().product()).map(value).collect();
        self.graph.add_constant(format!("c{seed}"), shape, all).unwrap()
    }

    fn node(&mut self, op: Op, inputs: &[TensorId]) -> Option<TensorId> {
        self.next += 1;
        let name = format!("{}{}", op.name(), self.next).to_lowercase();
        self.graph.add_node(name.clone(), op, inputs, name).ok()
    }

    fn features(&self, x: TensorId) -> usize {
        let shape = &self.graph.tensor(x).shape;
        if shape.len() == 4 {
            shape[1]
        } else {
            shape[shape.len() - 1]
        }
    }

    fn conv(
        &mut self,
        x: TensorId,
        (m, groups): (usize, usize),
        (kernel, strides, pads): ([usize; 2], [usize; 2], [usize; 4]),
        dilation: usize,
        zeros: usize,
    ) -> Option<TensorId> {
        let k = self.features(x) / groups;
        let w = self.constant(&[m, k, kernel[0], kernel[1]], zeros);
        let b = self.constant(&[m], 0);
        let op = Op::Conv {
            strides,
            pads,
            dilations: [dilation; 2],
            groups,
        };
        self.node(op, &[x, w, b])
    }

    /// `None` if the layer can't follow.
    fn layer(&mut self, x: TensorId, layer: &Layer) -> Option<TensorId> {
        let f = self.features(x);
        match *layer {
            Layer::Conv(m, kernel, strides, pads, dilation, zeros, relu) => {
                let y = self.conv(x, (m, 1), (kernel, strides, pads), dilation, zeros)?;
                if relu { self.node(Op::Relu, &[y]) } else { Some(y) }
            }
            Layer::Depthwise(kernel, strides, pads, zeros) => {
                self.conv(x, (f, f), (kernel, strides, pads), 1, zeros)
            }
            Layer::Pool(None, kernel, strides, pads) => self.node(
                Op::MaxPool {
                    kernel,
                    strides,
                    pads,
                },
                &[x],
            ),
            Layer::Pool(Some(count_include_pad), kernel, strides, pads) => self.node(
                Op::AvgPool {
                    kernel,
                    strides,
                    pads,
                    count_include_pad,
                },
                &[x],
            ),
            Layer::Residual(m, stride) => {
                let inner = self.conv(x, (f, 1), ([3, 3], [1, 1], [1; 4]), 1, 0)?;
                let a = self.conv(inner, (m, 1), ([3, 3], [stride; 2], [1; 4]), 1, 0)?;
                let b = self.conv(x, (m, 1), ([1, 1], [stride; 2], [0; 4]), 1, 0)?;
                self.node(Op::Add, &[a, b])
            }
            Layer::Skip => {
                let y = self.conv(x, (f, 1), ([3, 3], [1, 1], [1; 4]), 1, 0)?;
                self.node(Op::Add, &[x, y])
            }
            Layer::Head(m) => {
                let shape = self.graph.tensor(x).shape.clone();
                let all: usize = shape[1..].iter().product();
                if shape.len() != 4 {
                    return None;
                }
                self.next += 1;
                let name = format!("flatten{}", self.next);
                let y = self
                    .graph
                    .add_reshape(name.clone(), x, name, &[shape[0], all])
                    .ok()?;
                let (w, b) = (self.constant(&[m, all], 0), self.constant(&[m], 0));
                self.node(Op::Linear, &[y, w, b])
            }
            Layer::Linear(m, zeros) => {
                let (w, b) = (self.constant(&[m, f], zeros), self.constant(&[m], 0));
                self.node(Op::Linear, &[x, w, b])
            }
            Layer::Gelu => self.node(Op::Gelu { tanh: true }, &[x]),
            Layer::Norm => {
                let (scale, shift) = (self.constant(&[f], 0), self.constant(&[f], 0));
                self.node(Op::LayerNorm { epsilon: 1e-5 }, &[x, scale, shift])
            }
        }
    }
}

fn graph(case: &Case) -> Option<Graph> {
    let mut maker = Maker {
        graph: Graph::new("layers"),
        next: 0,
    };
    let mut x = maker.graph.add_input("x", &case.shape).unwrap();
    for layer in &case.layers {
        x = maker.layer(x, layer)?;
    }
    maker.graph.add_output(x).unwrap();
    Some(maker.graph)
}

/// The largest difference from the evaluator's tensors, over the root of their mean square.
fn error(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    let all = got
        .iter()
        .zip(want)
        .map(|(g, w)| (*g as f64 - w).abs() / scale.max(1e-3));
    all.fold(
        0.0,
        |most, e| if e.is_finite() { e.max(most) } else { f64::INFINITY },
    )
}

/// Compiles, runs on both engines and checks it; `None` if it does not fit.
fn run(case: &Case) -> Result<Option<(Compiled, Outcome)>, String> {
    let Some(graph) = graph(case) else { return Ok(None) };
    let machine = machine(&case.sets);
    let inputs: Vec<(String, Vec<f32>)> = seeded_inputs(&graph, 5, case.items).into_iter().collect();
    let options = Options {
        ty: case.ty,
        items: case.items,
        stages: case.stages,
        weights: case.weights,
        ..Options::default()
    };
    let compiled = match compile(&graph, &machine, &options, &inputs) {
        Ok(compiled) => compiled,
        Err(CompileError::DoesNotFit { .. }) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let shown = text::print(&compiled.program);
    let again = text::parse(&shown, &text::data(&compiled.program)).map_err(|e| e.to_string())?;
    if again != compiled.program {
        return Err("the program's text gives another program".into());
    }
    let probes: Vec<engine::Probe> = compiled.probes.iter().flat_map(|p| p.at.clone()).collect();
    let on = |engine| {
        let options = engine::Options {
            engine,
            probes: probes.clone(),
            ..Default::default()
        };
        engine::run(&compiled.program, &machine, &options).map_err(|e| e.to_string())
    };
    let outcome = on(Engine::Fast)?;
    if outcome.engine != Engine::Fast {
        return Err("the fast engine left it to the reference engine".into());
    }
    let reference = on(Engine::Reference)?;
    if (&outcome.pes, &outcome.drains, outcome.cycles)
        != (&reference.pes, &reference.drains, reference.cycles)
    {
        return Err(format!(
            "{} cycles, by the reference engine {}",
            outcome.cycles, reference.cycles
        ));
    }
    let mut want: Vec<Vec<f64>> = Vec::new();
    for item in inputs[0].1.chunks(inputs[0].1.len() / case.items) {
        let one = BTreeMap::from([(inputs[0].0.clone(), item.iter().map(|v| *v as f64).collect())]);
        let all = evaluate(&graph, &one).map_err(|e| e.to_string())?;
        want.resize(all.len(), Vec::new());
        for (sum, one) in want.iter_mut().zip(all) {
            sum.extend(one.unwrap_or_default());
        }
    }
    let most = if case.ty == Ty::F32 { 2e-5 } else { 4e-2 };
    let mut at = 0;
    for p in &compiled.probes {
        let recorded = &outcome.probes[at..at + p.at.len()];
        at += p.at.len();
        let e = error(&p.values(recorded, case.items), &want[p.tensor.0 as usize]);
        if e > most {
            return Err(format!("{} is off by {e}", p.name));
        }
    }
    let (got, _) = compiled.outputs[0].values(&compiled.program, &outcome.drains, case.items);
    let e = error(&got, &want[graph.outputs()[0].0 as usize]);
    if e > most {
        return Err(format!("the output is off by {e}"));
    }
    let executed: u64 = outcome.pes.iter().map(|pe| pe.operations[0]).sum();
    let counted = flops::total(&graph).mac_theoretical * case.items as u64;
    if executed != counted {
        return Err(format!("{executed} multiply-adds, but the graph has {counted}"));
    }
    Ok(Some((compiled, outcome)))
}

/// Windows, strides and pads that follow from one another.
fn window(most: usize) -> impl Strategy<Value = ([usize; 2], [usize; 2], [usize; 4])> {
    let pad = |n: usize| (n..=n).prop_flat_map(|n| [0..n, 0..n, 0..n, 0..n]);
    ([1..=most, 1..=most], [1usize..4, 1usize..4]).prop_flat_map(move |(kernel, strides)| {
        let own = (pad(kernel[0]), pad(kernel[1]), prop::bool::ANY);
        own.prop_map(move |(a, b, same)| {
            let pads = match same {
                true => [kernel[0] / 2, kernel[1] / 2, kernel[0] / 2, kernel[1] / 2],
                false => [a[0], b[0], a[1], b[1]],
            };
            (kernel, strides, pads)
        })
    })
}

fn layer() -> impl Strategy<Value = Layer> {
    let conv = (1usize..9, window(7), 1usize..3, 0usize..4, prop::bool::ANY);
    let conv = conv.prop_map(|(m, (kernel, strides, pads), dilation, zeros, relu)| {
        Layer::Conv(m, kernel, strides, pads, dilation, zeros, relu)
    });
    let depthwise = (window(5), 0usize..4).prop_map(|((k, s, p), zeros)| Layer::Depthwise(k, s, p, zeros));
    let pool =
        (prop::option::of(prop::bool::ANY), window(4)).prop_map(|(how, (k, s, p))| Layer::Pool(how, k, s, p));
    prop_oneof![
        4 => conv,
        1 => depthwise,
        2 => pool,
        1 => (1usize..6, 1usize..3).prop_map(|(m, stride)| Layer::Residual(m, stride)),
        1 => Just(Layer::Skip),
        1 => (1usize..12).prop_map(Layer::Head),
    ]
}

fn token_layer() -> impl Strategy<Value = Layer> {
    prop_oneof![
        3 => (4usize..40, 0usize..4).prop_map(|(m, zeros)| Layer::Linear(m, zeros)),
        1 => Just(Layer::Gelu),
        1 => Just(Layer::Norm),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let images = (1usize..4, 1usize..5, 6usize..40, 6usize..40).prop_map(|(n, c, h, w)| vec![n, c, h, w]);
    let images = (images, prop::collection::vec(layer(), 1..3));
    let tokens = (1usize..3, 64usize..400, 4usize..30).prop_map(|(n, t, d)| vec![n, t, d]);
    let tokens = (tokens, prop::collection::vec(token_layer(), 1..3));
    let what = prop_oneof![4 => images, 1 => tokens];
    let sets = (4u32..9, 4u32..9, prop::bool::ANY, 0usize..4).prop_map(|(w, h, wide, sram)| {
        vec![
            format!("mesh.width={w}"),
            format!("mesh.height={h}"),
            format!("link.bits={}", if wide { 64 } else { 32 }),
            format!("pe.sram_bytes={}", [4096, 6144, 8192, 12288][sram]),
        ]
    });
    let how = (prop::bool::ANY, prop::bool::ANY, 0usize..3, 1usize..3);
    (what, how, sets).prop_map(|((shape, layers), (half, layer, weights, items), sets)| Case {
        shape,
        layers,
        ty: if half { Ty::F16 } else { Ty::F32 },
        items,
        stages: if layer { Stages::Layer } else { Stages::Auto },
        weights: [Weights::Auto, Weights::Resident, Weights::Streamed][weights],
        sets,
    })
}

#[test]
fn what_does_not_fit_runs_in_tiles() {
    let cases_n = if cfg!(debug_assertions) { 60 } else { 400 };
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::with_cases(cases_n)
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    // what was met in tiles, and how often
    let met: RefCell<BTreeMap<&str, usize>> = Default::default();
    let result = runner.run(&cases(), |case| {
        let done = run(&case).map_err(TestCaseError::fail)?;
        let mut met = met.borrow_mut();
        let mut count = |what: &'static str, yes: bool| *met.entry(what).or_default() += usize::from(yes);
        for plan in done.iter().flat_map(|(compiled, _)| &compiled.plans) {
            let tiled = plan.tiles > 1;
            count("whole", !tiled);
            let op = meshloom_compiler::kernels::of(&plan.kernels[0].kind).op();
            for (what, is) in [
                ("convolution", op == "conv"),
                ("depthwise", op == "depthwise"),
                ("maximum", op == "maxpool"),
                ("average", op == "avgpool"),
                ("sum", op == "add"),
                ("product", op == "matmul"),
                ("streamed", op == "streamed matmul"),
                ("f16", case.ty == Ty::F16),
                ("items", case.items > 1),
                ("samples", case.shape.len() == 4 && case.shape[0] > 1),
            ] {
                count(what, tiled && is);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let met = met.into_inner();
    // few cases do not meet all
    assert!(cfg!(debug_assertions) || met.values().all(|n| *n > 0), "{met:?}");
}

/// Samples of a batch are tiles for what needs all positions of a sample.
#[test]
fn a_large_batch_is_cut_by_samples() {
    for ty in [Ty::F32, Ty::F16] {
        let case = Case {
            shape: vec![24, 3, 12, 12],
            layers: vec![Layer::Conv(4, [3, 3], [1, 1], [1; 4], 1, 0, true), Layer::Head(5)],
            ty,
            items: 2,
            stages: Stages::Layer,
            weights: Weights::Resident,
            sets: ["mesh.width=6", "mesh.height=6", "pe.sram_bytes=12288"]
                .map(String::from)
                .to_vec(),
        };
        let done = run(&case).unwrap_or_else(|e| panic!("{e}"));
        let (compiled, _) = done.expect("it fits");
        let tiles: Vec<usize> = compiled.plans.iter().map(|p| p.tiles).collect();
        // the convolution, the flattening
        assert!(tiles[0] > 1 && tiles[1] > 1, "{tiles:?}");
    }
}
