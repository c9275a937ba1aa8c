//! Each kernel without exchange, and those over positions and rows of a table, alone on a mesh of the size of its rectangle: over random
//! shapes, rectangles and machines its results agree with f64 arithmetic, and it needs no more SRAM than it says.

use super::*;
use crate::passes::memory;
use crate::passes::rewrite::{Window, taps};
use meshloom_simulator::engine::{self, Options};
use meshloom_simulator::numerics::{from_bits, to_bits};
use meshloom_simulator::{Side, verify};
use proptest::prelude::*;
use std::sync::Arc;

/// A kernel with its surroundings.
struct Case {
    kind: Kind,
    ty: Ty,
    inputs: Vec<Layout>,
    output: Layout,
    slack: Vec<usize>,
    items: usize,
    /// Columns and rows offered.
    area: (u32, u32),
    sets: Vec<String>,
}

/// What came of it.
struct Done {
    /// By item, in the order of the tensor.
    outputs: Vec<Vec<f32>>,
    estimate: Estimate,
    rect: (u32, u32),
    /// Cycles from item to item, if there are several.
    interval: Option<u64>,
}

/// Most lanes of a stream.
const LANES: usize = 4;

fn input_color(input: usize, lane: usize) -> Color {
    colors::STREAMS + (input * LANES + lane) as Color
}

fn output_color(lane: usize) -> Color {
    input_color(2, lane)
}

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../../machines/small.toml");
    let mut all = vec!["edge.bits_per_second=5e13".to_string()];
    all.extend(sets.iter().cloned());
    Machine::parse("machines/small.toml", text, &all).unwrap_or_else(|e| panic!("{e}"))
}

/// Wavelets of `per` elements of a feature.
fn wavelets(values: &[f32], ty: Ty, per: usize, out: &mut Vec<Wavelet>) {
    for chunk in values.chunks(per) {
        let bits = chunk
            .iter()
            .enumerate()
            .fold(0, |b, (i, v)| b | to_bits(ty, *v) << (ty.bits() as usize * i));
        out.push(Wavelet {
            bits,
            elements: chunk.len() as u8,
            flag: false,
        });
    }
}

/// Runs a kernel on its inputs (by input and item, in the order of the tensor); `None` if it says that it does not fit.
fn run(case: &Case, inputs: &[Vec<Vec<f32>>]) -> Result<Option<Done>, String> {
    let mut machine = machine(&case.sets);
    let c = Context {
        machine: &machine.clone(),
        ty: case.ty,
        items: case.items,
        inputs: case.inputs.clone(),
        input_colors: (0..case.inputs.len())
            .map(|i| (0..LANES).map(|lane| input_color(i, lane)).collect())
            .collect(),
        slack: case.slack.clone(),
        keep_all: false,
        output: case.output.clone(),
        output_colors: (0..LANES).map(output_color).collect(),
        base: 0,
    };
    let kernel = of(&case.kind);
    let (w, h) = kernel.fit(&c, case.area.0, case.area.1);
    let lanes = case
        .inputs
        .iter()
        .chain([&case.output])
        .map(|l| l.lanes as u32)
        .max()
        .unwrap_or(1);
    if w > case.area.0 || h > case.area.1.max(lanes) || w == 0 || h == 0 {
        return Err(format!("{w} x {h} PEs of {:?}", case.area));
    }
    let estimate = kernel.estimate(&c, w, h).ok_or("no estimate")?;
    if estimate.bytes > machine.pe.sram_bytes as u64 {
        return Ok(None);
    }
    let mut emitted = kernel.emit("k", &c, w, h);
    let fullest = emitted
        .region
        .blocks
        .iter()
        .map(|b| memory::bytes(b, &machine))
        .max();
    let fullest = fullest.unwrap_or(0);
    if fullest > estimate.bytes || estimate.bytes > fullest + 512 {
        return Err(format!("{fullest} bytes of SRAM, not {}", estimate.bytes));
    }
    // one row above the rectangle: the second input comes from there
    (machine.mesh.width, machine.mesh.height) = (w, h + 1);
    let region = &mut emitted.region;
    region.y = 1;
    // the second input comes from there, if it has one lane
    let from_above = |input: usize| input == 1 && case.inputs[1].lanes == 1;
    let way = position(Port::West, &[Port::South], 1);
    let way = route(input_color(1, 0), "input 1", Lattice::rect(0, 0, 1, 1), vec![way]);
    let above = Region {
        routes: if case.inputs.len() > 1 && from_above(1) {
            vec![way]
        } else {
            Vec::new()
        },
        ..super::region("above", w, 1)
    };
    for (i, entries) in emitted.entries.iter().enumerate() {
        if entries.len() != case.inputs[i].lanes {
            return Err(format!("{} entries of input {i}", entries.len()));
        }
        for (lane, entry) in entries.iter().enumerate() {
            let route = region.routes.iter_mut().find(|r| {
                r.color == input_color(i, lane)
                    && (r.at.x, r.at.y) == *entry
                    && r.positions[0].input == Port::Ramp
            });
            let port = if from_above(i) { Port::North } else { Port::West };
            route.ok_or("an input without an entry")?.positions[0].input = port;
        }
    }
    let per = per_wavelet(&machine, case.ty);
    let each =
        case.output.features / case.output.lanes * (case.output.length() as u64).div_ceil(per) as usize;
    let mut drains = Vec::new();
    for (lane, exit) in emitted.exits.iter().enumerate() {
        let (port, side) = if exit.at.0 == 0 {
            (Port::West, Side::West)
        } else {
            (Port::East, Side::East)
        };
        let positions = exit
            .from
            .iter()
            .map(|(from, hold)| position(*from, &[port], hold.clone()));
        let at = Lattice::rect(exit.at.0, exit.at.1, 1, 1);
        region
            .routes
            .push(route(output_color(lane), "output", at, positions.collect()));
        drains.push(Drain {
            name: format!("output {lane}"),
            side,
            row: exit.at.1 + 1,
            color: output_color(lane),
            wavelets: (each * case.items) as u64,
        });
    }
    // each row's weights come along the row
    let mut feeds = Vec::new();
    let per_word = per_wavelet(&machine, Ty::F32) as usize;
    for y in 0..h {
        let words: Vec<&Vec<u32>> = (0..w).map(|x| &emitted.weights[(y * w + x) as usize]).collect();
        let mut data = Vec::new();
        for x in 0..w as usize {
            let beyond = words[x + 1..].iter().filter(|w| !w.is_empty()).count() as i64;
            let own = !words[x].is_empty() as i64;
            let all = [(Port::Ramp, own), (Port::East, beyond)];
            let used: Vec<_> = all.iter().filter(|(_, n)| *n > 0).collect();
            if !used.is_empty() {
                let positions = used
                    .iter()
                    .map(|(to, n)| position(Port::West, &[*to], *n))
                    .collect();
                region.routes.push(route(
                    colors::LOAD,
                    "weights",
                    Lattice::rect(x as u32, y, 1, 1),
                    positions,
                ));
            }
            let values: Vec<f32> = words[x].iter().map(|w| f32::from_bits(*w)).collect();
            for chunk in values.chunks(per_word) {
                let bits = chunk.iter().enumerate();
                data.push(Wavelet {
                    bits: bits.fold(0, |b, (i, v)| b | (v.to_bits() as u64) << (32 * i)),
                    elements: chunk.len() as u8,
                    flag: false,
                });
            }
            if own > 0 {
                data.last_mut().ok_or("no weights")?.flag = true;
            }
        }
        if data.is_empty() {
            continue;
        }
        feeds.push(Feed {
            name: "weights".into(),
            side: Side::West,
            row: y + 1,
            color: colors::LOAD,
            epoch: 0,
            data: FeedData::Host(Arc::new(data)),
        });
    }
    let input_ty = if matches!(case.kind, Kind::Embedding(_)) {
        Ty::F32
    } else {
        case.ty
    };
    // of two inputs that share channels, the one that is kept comes first
    let mut order: Vec<usize> = (0..case.inputs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(case.slack[*i]));
    for (item, &i) in (0..case.items).flat_map(|item| order.iter().map(move |i| (item, i))) {
        let layout = &case.inputs[i];
        for (lane, entry) in emitted.entries[i].iter().enumerate() {
            let mut data = Vec::new();
            let (from, to) = layout.lane(lane);
            for place in from..to {
                let values: Vec<f32> = (0..layout.length())
                    .map(|p| inputs[i][item][layout.index(place, p)])
                    .collect();
                wavelets(
                    &values,
                    input_ty,
                    per_wavelet(&machine, input_ty) as usize,
                    &mut data,
                );
            }
            feeds.push(Feed {
                name: format!("input {i}"),
                side: Side::West,
                row: if from_above(i) { 0 } else { entry.1 + 1 },
                color: input_color(i, lane),
                epoch: 1,
                data: FeedData::Host(Arc::new(data)),
            });
        }
    }
    let program = Program {
        name: "alone".into(),
        stages: vec![Stage {
            name: String::new(),
            priority: colors::REDUCE.to_vec(),
            regions: vec![emitted.region, above],
            feeds,
            drains,
        }],
    };
    verify::verify(&program, &machine).map_err(|v| format!("{v:?}"))?;
    let outcome = engine::run(&program, &machine, &Options::default()).map_err(|e| e.to_string())?;
    let size = case.output.features * case.output.length();
    let mut outputs = vec![vec![0.0; size]; case.items];
    for (lane, landed) in outcome.drains.iter().enumerate() {
        let first = case.output.lane(lane).0;
        for (tensor, item) in outputs.iter_mut().zip(landed.chunks(each)) {
            let elements = item.iter().flat_map(|l| {
                (0..l.wavelet.elements as u32).map(move |i| from_bits(case.ty, l.wavelet.bits, i))
            });
            let stream: Vec<f32> = elements.collect();
            if stream.len() * case.output.lanes != size {
                return Err(format!("{} elements on a lane of {size}", stream.len()));
            }
            for (i, v) in stream.into_iter().enumerate() {
                let (feature, position) = (first + i / case.output.length(), i % case.output.length());
                tensor[case.output.index(feature, position)] = v;
            }
        }
    }
    let interval = (case.items > 1).then(|| {
        let last = |item: usize| {
            outcome
                .drains
                .iter()
                .map(|d| d[(item + 1) * each - 1].cycle)
                .max()
                .unwrap_or(0)
        };
        (last(case.items - 1) - last(0)) / (case.items as u64 - 1)
    });
    Ok(Some(Done {
        outputs,
        estimate,
        rect: (w, h),
        interval,
    }))
}

/// Holds results to what is wanted, relative to its standard deviation (or root mean square, where there is none).
fn compare(got: &[Vec<f32>], want: &[Vec<f64>], ty: Ty) -> Result<(), String> {
    let most = if ty == Ty::F32 { 1e-5 } else { 2e-2 };
    for (got, want) in got.iter().zip(want) {
        let n = want.len() as f64;
        let mean = want.iter().sum::<f64>() / n;
        let sd = (want.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
        let rms = (want.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        let scale = if n < 16.0 || sd < 1e-9 { rms.max(1e-9) } else { sd };
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let e = (*g as f64 - w).abs() / scale;
            if e.is_nan() || e > most {
                return Err(format!("element {i} is {g}, not {w}: off by {e:.1e}"));
            }
        }
    }
    Ok(())
}

/// Numbers about 0 of deviation about 1.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.7f32..1.7)).collect()
}

/// Numbers as they are in the machine's type.
fn rounded(values: Vec<f32>, ty: Ty) -> Vec<f32> {
    values
        .into_iter()
        .map(|v| from_bits(ty, to_bits(ty, v), 0))
        .collect()
}

/// A shape [outer, features, inner] with, sometimes, its features in another order.
fn layout(outer: usize, features: usize, inner: usize, shuffled: bool) -> Layout {
    let step = (1..features).rev().find(|s| gcd(*s, features) == 1).unwrap_or(1);
    let order = (0..features).map(|i| (i * step + 1) % features).collect();
    Layout {
        outer,
        features,
        inner,
        order: shuffled.then(|| Arc::new(order)),
        lanes: 1,
        bands: None,
    }
}

/// A layout on at most so many lanes.
fn on_lanes(l: Layout, lanes: usize) -> Layout {
    let lanes = if l.features.is_multiple_of(lanes) {
        lanes
    } else {
        1
    };
    Layout { lanes, ..l }
}

fn lanes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(4)]
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The index of (outer, feature, inner) in a tensor.
fn at(l: &Layout, o: usize, f: usize, i: usize) -> usize {
    (o * l.features + f) * l.inner + i
}

/// All (outer, feature, inner) in order.
fn all(l: &Layout) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let (o, f, i) = (l.outer, l.features, l.inner);
    (0..o).flat_map(move |a| (0..f).flat_map(move |b| (0..i).map(move |d| (a, b, d))))
}

fn gelu(x: f64, tanh: bool) -> f64 {
    let of = if tanh {
        ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()
    } else {
        libm::erf(x / std::f64::consts::SQRT_2)
    };
    0.5 * x * (1.0 + of)
}

/// Softmax over features, or their normal form.
fn over_features(x: &[f32], l: &Layout, of: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for o in 0..l.outer {
        for i in 0..l.inner {
            let column: Vec<f64> = (0..l.features).map(|f| x[at(l, o, f, i)] as f64).collect();
            for (f, v) in of(&column).into_iter().enumerate() {
                y[at(l, o, f, i)] = v;
            }
        }
    }
    y
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|v| (v - most).exp()).sum();
    x.iter().map(|v| (v - most).exp() / sum).collect()
}

fn layer_norm(x: &[f64], norm: &Norm) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let deviation = (variance + norm.epsilon as f64).sqrt();
    let of = |(f, v): (usize, &f64)| (v - mean) / deviation * norm.scale[f] as f64 + norm.shift[f] as f64;
    x.iter().enumerate().map(of).collect()
}

/// What a kernel computes, in f64.
type Reference = Box<dyn Fn(&[f32]) -> Vec<f64>>;

/// A kernel of one input of its output's shape, with what it computes.
fn same_shape(which: usize, x: &Layout, seed: u64) -> (Kind, Reference) {
    let l = x.clone();
    let each =
        |f: fn(f64) -> f64| Box::new(move |x: &[f32]| x.iter().map(|v| f(*v as f64)).collect()) as Reference;
    let (scale, shift) = (
        Arc::new(numbers(seed + 7, l.features)),
        Arc::new(numbers(seed + 8, l.features)),
    );
    match which {
        0 => (Kind::Pointwise(Function::Relu), each(|v| v.max(0.0))),
        1 => (
            Kind::Pointwise(Function::Gelu { tanh: true }),
            each(|v| gelu(v, true)),
        ),
        2 => (
            Kind::Pointwise(Function::Gelu { tanh: false }),
            each(|v| gelu(v, false)),
        ),
        3 | 4 => {
            let relu = which == 4;
            let function = Function::Affine {
                scale: scale.clone(),
                shift: shift.clone(),
                relu,
            };
            let of = move |x: &[f32]| {
                let value = |(o, f, i)| {
                    let v = x[at(&l, o, f, i)] as f64 * scale[f] as f64 + shift[f] as f64;
                    if relu { v.max(0.0) } else { v }
                };
                all(&l).map(value).collect()
            };
            (Kind::Pointwise(function), Box::new(of))
        }
        7..10 => {
            let (least, most) = [(-0.4, 0.5), (-0.4, f32::INFINITY), (f32::NEG_INFINITY, 0.5)][which - 7];
            let clip = move |v: &f32| f64::from(v.max(least).min(most));
            let function = Function::Clip { least, most };
            (
                Kind::Pointwise(function),
                Box::new(move |x: &[f32]| x.iter().map(clip).collect()),
            )
        }
        5 => (Kind::Softmax, Box::new(move |x| over_features(x, &l, softmax))),
        _ => {
            let norm = Arc::new(Norm {
                scale,
                shift,
                epsilon: 1e-5,
            });
            let of = norm.clone();
            (
                Kind::LayerNorm(norm),
                Box::new(move |x| over_features(x, &l, |v| layer_norm(v, &of))),
            )
        }
    }
}

fn settings() -> impl Strategy<Value = Vec<String>> {
    let sets = (
        1u32..4,
        prop::bool::ANY,
        1u32..3,
        1u32..9,
        prop::bool::ANY,
        prop::bool::ANY,
    );
    sets.prop_map(|(depth, wide, simple, queue, first, small)| {
        vec![
            format!("router.queue_depth={depth}"),
            format!("pe.input_queue_depth={depth}"),
            format!("link.bits={}", if wide { 64 } else { 32 }),
            format!("pe.lanes.f32_simple={simple}"),
            format!("pe.move_queue={queue}"),
            format!("pe.moves_first={first}"),
            // small enough for the shapes to need all that SRAM offers
            format!("pe.sram_bytes={}", if small { 2048 } else { 49152 }),
        ]
    })
}

fn ty() -> impl Strategy<Value = Ty> {
    prop_oneof![3 => Just(Ty::F32), 1 => Just(Ty::F16)]
}

fn area() -> impl Strategy<Value = (u32, u32)> {
    (1u32..10, 1u32..10)
}

/// Inputs by item.
fn items(seed: u64, n: usize, items: usize, ty: Ty) -> Vec<Vec<f32>> {
    (0..items)
        .map(|i| rounded(numbers(seed + 100 + i as u64, n), ty))
        .collect()
}

/// Runs a case and compares; does not count if it is refused.
fn check(case: &Case, inputs: Vec<Vec<Vec<f32>>>, want: Vec<Vec<f64>>) -> Result<(), TestCaseError> {
    let Some(done) = run(case, &inputs).map_err(TestCaseError::fail)? else {
        return Err(TestCaseError::reject("does not fit"));
    };
    compare(&done.outputs, &want, case.ty).map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_global_rejects: 100_000,
        ..ProptestConfig::with_cases(if cfg!(debug_assertions) { 24 } else { 250 })
    })]

    #[test]
    fn functions_softmax_and_norms(which in 0usize..10, outer in 1usize..4, features in 1usize..24, inner in 1usize..9, shuffled: bool,
                                   lanes in (lanes(), lanes()), ty in ty(), items_n in 1usize..4, area in area(), sets in settings(), seed in 0u64..1000) {
        let l = layout(outer, features, inner, shuffled);
        let (kind, of) = same_shape(which, &l, seed);
        // softmax works on positions: its streams have one lane
        let lanes = if which == 5 { (1, 1) } else { lanes };
        let x = items(seed, features * l.length(), items_n, ty);
        let want = x.iter().map(|x| of(x)).collect();
        // a norm of one feature is its shift alone, whatever the noise
        prop_assume!(which != 6 || features > 1);
        let inputs = vec![on_lanes(l.clone(), lanes.0)];
        let case = Case { kind, ty, inputs, output: on_lanes(l, lanes.1), slack: vec![1], items: items_n, area, sets };
        check(&case, vec![x], want)?;
    }

    #[test]
    fn binary(multiply: bool, relu: bool, outer in 1usize..4, features in 1usize..24, inner in 1usize..9, ty in ty(), items_n in 1usize..6,
              lanes in (lanes(), lanes(), lanes()), slack in (1usize..5, 1usize..5), area in area(), sets in settings(), seed in 0u64..1000) {
        let l = layout(outer, features, inner, false);
        let (x, z) = (items(seed, features * l.length(), items_n, ty), items(seed + 50, features * l.length(), items_n, ty));
        let of = |(x, z): (&f32, &f32)| {
            let v = if multiply { *x as f64 * *z as f64 } else { *x as f64 + *z as f64 };
            if relu { v.max(0.0) } else { v }
        };
        let want = x.iter().zip(&z).map(|(x, z)| x.iter().zip(z).map(of).collect()).collect();
        let case = Case {
            kind: Kind::Binary { multiply, relu }, ty,
            inputs: vec![on_lanes(l.clone(), lanes.0), on_lanes(l.clone(), lanes.1)], output: on_lanes(l, lanes.2),
            slack: vec![slack.0, slack.1], items: items_n, area, sets,
        };
        check(&case, vec![x, z], want)?;
    }

    #[test]
    fn flatten(outer in 1usize..5, features in 1usize..20, inner in 1usize..9, shuffled: bool, ty in ty(), items_n in 1usize..4,
               area in area(), sets in settings(), seed in 0u64..1000) {
        let l = layout(outer, features, inner, shuffled);
        let x = items(seed, features * l.length(), items_n, ty);
        let want = x.iter().map(|x| x.iter().map(|v| *v as f64).collect()).collect();
        let case = Case {
            kind: Kind::Flatten, ty, inputs: vec![l.clone()], output: l.flattened(), slack: vec![1], items: items_n, area, sets,
        };
        check(&case, vec![x], want)?;
    }

    #[test]
    fn windows(which in 0usize..3, sparse: bool, relu: bool, outer in 1usize..3, features in 1usize..10, size in [2usize..8, 2usize..8],
               kernel in [1usize..4, 1usize..4], strides in [1usize..3, 1usize..3], pads in [0usize..2, 0usize..2, 0usize..2, 0usize..2],
               zeros in [1usize..3, 1usize..3], multiplier in 1usize..4, lanes in (lanes(), lanes()), shuffled: bool, counted: bool, ty in ty(), items_n in 1usize..4,
               area in area(), sets in settings(), seed in 0u64..1000) {
        let pads = [0, 1, 2, 3].map(|i| pads[i].min(kernel[i % 2] - 1));
        let zeros = if which == 2 { zeros } else { [1, 1] };
        let plane = [0, 1].map(|a| (size[a] - 1) * zeros[a] + 1);
        prop_assume!((0..2).all(|a| plane[a] + pads[a] + pads[a + 2] >= kernel[a]));
        let out = [0, 1].map(|a| (plane[a] + pads[a] + pads[a + 2] - kernel[a]) / strides[a] + 1);
        let (input, output) = ((size[0], size[1]), (out[0], out[1]));
        let x = layout(outer, features, size[0] * size[1], shuffled);
        let times = if which == 2 { multiplier } else { 1 };
        // an output feature lies where the input feature that it reads does
        let order = x.order.as_ref().map(|o| Arc::new(o.iter().flat_map(|f| (0..times).map(move |j| f * times + j)).collect()));
        let y = Layout { order, ..layout(outer, features * times, out[0] * out[1], false) };
        let weights: Vec<f32> = numbers(seed, y.features * kernel[0] * kernel[1])
            .into_iter().enumerate().map(|(i, v)| if sparse && i % 3 == 1 { 0.0 } else { v }).collect();
        let weights = rounded(weights, ty);
        let bias = numbers(seed + 1, y.features);
        let window = Window { kernel, strides, pads, dilations: [1, 1], zeros };
        let kind = match which {
            0 | 1 => Kind::Pool(Pool { max: which == 0, count_padding: counted, kernel, strides, pads, input, output }),
            _ => Kind::Depthwise(Arc::new(Linear {
                k: features, m: y.features, groups: features, window: kernel[0] * kernel[1], weights: Arc::new(weights.clone()),
                bias: Some(Arc::new(bias.clone())), relu, taps: taps(&window, input, output), input, output, samples: outer, sparse,
                ..Default::default()
            })),
        };
        let values = items(seed, features * x.length(), items_n, ty);
        let of = |v: &Vec<f32>| -> Vec<f64> {
            all(&y).map(|(o, m, p)| {
                let (mut sum, mut most, mut hits, mut covered) = (0.0, f64::NEG_INFINITY, 0, 0);
                for (a, b) in (0..kernel[0]).flat_map(|a| (0..kernel[1]).map(move |b| (a, b))) {
                    let place = |axis: usize, o: usize, tap: usize| (o * strides[axis] + tap) as i64 - pads[axis] as i64;
                    let (r, s) = (place(0, p / out[1], a), place(1, p % out[1], b));
                    covered += 1;
                    if r < 0 || s < 0 || r >= plane[0] as i64 || s >= plane[1] as i64 { continue; }
                    let (r, s) = (r as usize, s as usize);
                    if r % zeros[0] != 0 || s % zeros[1] != 0 { continue; }
                    let value = v[at(&x, o, m / times, r / zeros[0] * size[1] + s / zeros[1])] as f64;
                    hits += 1;
                    most = most.max(value);
                    sum += if which == 2 { value * weights[m * kernel[0] * kernel[1] + a * kernel[1] + b] as f64 } else { value };
                }
                match which {
                    0 => most,
                    1 => sum / if counted { covered } else { hits } as f64,
                    _ => { let v = sum + bias[m] as f64; if relu { v.max(0.0) } else { v } }
                }
            }).collect()
        };
        let want: Vec<Vec<f64>> = values.iter().map(of).collect();
        // a window wholly in the padding has no largest element
        prop_assume!(want.iter().flatten().all(|v| v.is_finite()));
        // a PE's share of inputs gives outputs of one lane
        let given = if features.is_multiple_of(lanes.1) { lanes.1 } else { 1 };
        let (x, y) = (on_lanes(x, lanes.0), on_lanes(y, given));
        let case = Case { kind, ty, inputs: vec![x], output: y, slack: vec![1], items: items_n, area, sets };
        check(&case, vec![values], want)?;
    }

    #[test]
    fn embedding(rows in 1usize..40, width in 1usize..20, samples in 1usize..3, tokens in 1usize..9, started: bool, starts in 1usize..3, shuffled: bool,
                 stray: bool, lanes in lanes(), ty in ty(), items_n in 1usize..4, area in area(), sets in settings(), seed in 0u64..1000) {
        let n = samples * tokens;
        let x = layout(n, 1, 1, false);
        let y = on_lanes(layout(n, width, 1, shuffled), lanes);
        let values = rounded(numbers(seed, rows * width), ty);
        let start = started.then(|| rounded(numbers(seed + 1, starts * n * width), ty));
        let ids: Vec<Vec<f32>> = (0..items_n)
            .map(|i| (0..n).map(|t| ((t * 7 + i * 3 + seed as usize) % rows) as f32).collect())
            .collect();
        // what is no row gives nothing, and reads nothing outside of the table
        let mut fed = ids.clone();
        if stray {
            let id = [-1.0, rows as f32, 8e6, 3e38, -3e38][seed as usize % 5];
            fed.iter_mut().for_each(|ids| ids[0] = id);
        }
        let want = (0..items_n)
            .map(|i| {
                (0..n * width)
                    .map(|e| {
                        let (t, f) = (e / width, e % width);
                        let row = if stray && t == 0 { 0.0 } else { values[ids[i][t] as usize * width + f] as f64 };
                        row + start.as_ref().map_or(0.0, |s| s[(i % starts * n + t) * width + f] as f64)
                    })
                    .collect()
            })
            .collect();
        let table = Table { rows, width, values: Arc::new(values), start: start.map(Arc::new), starts };
        let case = Case {
            kind: Kind::Embedding(Arc::new(table)), ty, inputs: vec![x], output: y, slack: vec![1], items: items_n, area, sets,
        };
        check(&case, vec![fed], want)?;
    }
}

/// GELU where exp and powers leave the range of f32: no NaN, and the identity or zero.
#[test]
fn gelu_far_out() {
    let values: Vec<f32> = [
        0.0, -0.0, 1e-30, 5.0, -5.0, 9.0, -9.0, 20.0, -20.0, 88.9, -88.9, 1e4, -1e4, 1e10, -1e10, 1e-4,
    ]
    .to_vec();
    for tanh in [true, false] {
        let l = layout(1, 4, 4, false);
        let case = Case {
            kind: Kind::Pointwise(Function::Gelu { tanh }),
            ty: Ty::F32,
            inputs: vec![l.clone()],
            output: l,
            slack: vec![1],
            items: 1,
            area: (2, 2),
            sets: Vec::new(),
        };
        let done = run(&case, &[vec![values.clone()]]).unwrap_or_else(|e| panic!("{e}"));
        for (x, y) in values.iter().zip(&done.expect("it fits").outputs[0]) {
            let want = gelu(*x as f64, tanh);
            let e = (*y as f64 - want).abs();
            assert!(e <= 1e-6 * want.abs().max(1.0), "gelu({x}) = {y}, not {want}");
        }
    }
}

/// Expected beside simulated cycles an item, at steady state; the estimates steer placement and may be off by a third.
#[test]
fn estimates_are_near() {
    let mut table = String::new();
    let mut bad = Vec::new();
    let mut one = |name: &str, case: Case, inputs: Vec<Vec<Vec<f32>>>| {
        let done = run(&case, &inputs)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .expect("it fits");
        let (expected, measured) = (done.estimate.cycles, done.interval.expect("several items"));
        table += &format!(
            "{name:<44} {:>2}x{:<2} {expected:>7} {measured:>7}\n",
            done.rect.0, done.rect.1
        );
        if expected * 3 < measured * 2 || expected * 2 > measured * 3 {
            bad.push(name.to_string());
        }
    };
    let shapes = [
        (1, 64, 64, (8, 4)),
        (1, 64, 64, (1, 1)),
        (16, 128, 1, (4, 4)),
        (1, 16, 256, (2, 2)),
    ];
    for (outer, features, inner, area) in shapes {
        let l = layout(outer, features, inner, false);
        let size = features * l.length();
        let names = [
            "relu",
            "gelu tanh",
            "gelu",
            "affine",
            "affine, relu",
            "softmax",
            "layernorm",
        ];
        for (which, name) in names.into_iter().enumerate() {
            let (kind, _) = same_shape(which, &l, 1);
            let case = Case {
                kind,
                ty: Ty::F32,
                inputs: vec![l.clone()],
                output: l.clone(),
                slack: vec![1],
                items: 5,
                area,
                sets: Vec::new(),
            };
            one(
                &format!("{name} [{outer}, {features}, {inner}] of {area:?}"),
                case,
                vec![items(3, size, 5, Ty::F32)],
            );
        }
    }
    for (outer, features, size, area) in [(1, 16, 16, (4, 4)), (2, 32, 8, (1, 4)), (1, 9, 12, (2, 2))] {
        for (which, name) in [
            "maxpool",
            "avgpool",
            "depthwise",
            "depthwise, lists",
            "flatten",
            "add",
            "add, relu",
        ]
        .into_iter()
        .enumerate()
        {
            let plane = size * size;
            let (kernel, pads) = ([3, 3], [1, 1, 1, 1]);
            let (input, output) = ((size, size), (size, size));
            let l = layout(outer, features, plane, false);
            let window = Window {
                kernel,
                strides: [1, 1],
                pads,
                dilations: [1, 1],
                zeros: [1, 1],
            };
            let pool = |max: bool| {
                Kind::Pool(Pool {
                    max,
                    count_padding: false,
                    kernel,
                    strides: [1, 1],
                    pads,
                    input,
                    output,
                })
            };
            let depthwise = |sparse: bool| {
                Kind::Depthwise(Arc::new(Linear {
                    k: features,
                    m: features,
                    groups: features,
                    window: 9,
                    weights: Arc::new(numbers(5, features * 9)),
                    bias: None,
                    relu: false,
                    taps: taps(&window, input, output),
                    input,
                    output,
                    samples: outer,
                    sparse,
                    ..Default::default()
                }))
            };
            let binary = |relu: bool| Kind::Binary {
                multiply: false,
                relu,
            };
            let kind = match which {
                0 | 1 => pool(which == 0),
                2 | 3 => depthwise(which == 3),
                4 => Kind::Flatten,
                _ => binary(which == 6),
            };
            let inputs = if which > 4 { 2 } else { 1 };
            let case = Case {
                kind,
                ty: Ty::F32,
                inputs: vec![l.clone(); inputs],
                output: if which == 4 { l.flattened() } else { l.clone() },
                slack: vec![2, 1],
                items: 5,
                area,
                sets: Vec::new(),
            };
            let values = vec![items(3, features * l.length(), 5, Ty::F32); inputs];
            one(
                &format!("{name} [{outer}, {features}, {size}, {size}] of {area:?}"),
                case,
                values,
            );
        }
    }
    for (tokens, rows, width, area) in [
        (64, 256, 128, (4, 8)),
        (64, 65, 64, (2, 2)),
        (128, 256, 256, (8, 16)),
    ] {
        let table = Table {
            rows,
            width,
            values: Arc::new(numbers(1, rows * width)),
            start: Some(Arc::new(numbers(2, tokens * width))),
            starts: 1,
        };
        let ids = |i: usize| {
            (0..tokens)
                .map(|t| ((t * 37 + i * 11) % rows) as f32)
                .collect::<Vec<_>>()
        };
        let case = Case {
            kind: Kind::Embedding(Arc::new(table)),
            ty: Ty::F32,
            inputs: vec![layout(tokens, 1, 1, false)],
            output: layout(tokens, width, 1, false),
            slack: vec![1],
            items: 5,
            area,
            sets: Vec::new(),
        };
        one(
            &format!("embedding {tokens} of [{rows}, {width}] of {area:?}"),
            case,
            vec![(0..5).map(ids).collect()],
        );
    }
    println!("{table}");
    assert!(bad.is_empty(), "more than a third off: {bad:?}\n{table}");
}
