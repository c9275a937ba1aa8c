//! The two halves of a transformer's block, operator after operator on what the one before left.

use super::*;
use meshloom_compiler::in_place::{Attention, Bands, Decoder, Linear, Mlp, Operator, Room, causal_mask};
use meshloom_compiler::plan::{Function, Norm};
use meshloom_models::{builtin, evaluate, seeded_inputs};
use std::sync::Arc;

/// Runs all operators, each by both engines.
fn run_all(all: &[Operator], machine: &Machine, mut sram: Sram, timed: &Timed) -> Result<Sram, String> {
    for o in all {
        let (left, outcome) = run(&o.program, machine, &sram).map_err(|e| format!("{}: {e}", o.name))?;
        // nothing begins by itself
        let starts = |b: &Block| b.tasks.iter().any(|t| t.trigger == Trigger::Start);
        let blocks = |s: &Stage| s.regions.iter().flat_map(|r| &r.blocks).any(starts);
        if !o.program.stages.iter().any(blocks) {
            timed.add(&outcome, machine);
        }
        sram = left;
        o.trim(machine, &mut sram);
    }
    Ok(sram)
}

fn norm(n: usize, seed: u64) -> Norm {
    Norm {
        scale: Arc::new(values(n, seed, 0).iter().map(|v| v + 1.0).collect()),
        shift: Arc::new(values(n, seed + 1, 0)),
        epsilon: 1e-5,
    }
}

/// A product's weights, of a size that keeps the deviation.
fn weights(k: usize, m: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let scale = 3.4 / (k as f32).sqrt();
    let weights = values(k * m, seed, 0).iter().map(|v| v * scale).collect();
    (weights, values(m, seed + 1, 0))
}

fn linear((weights, bias): &(Vec<f32>, Vec<f32>)) -> Linear<'_> {
    Linear {
        weights,
        bias: Some(bias),
        lists: false,
    }
}

/// In f64: \[tokens, k\] to \[tokens, m\].
fn product(x: &[f64], k: usize, (w, bias): &(Vec<f32>, Vec<f32>)) -> Vec<f64> {
    let one = |x: &[f64]| -> Vec<f64> {
        let rows = w.chunks(k).zip(bias);
        let sum = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * *w as f64).sum::<f64>();
        rows.map(|(w, b)| sum(w) + *b as f64).collect()
    };
    x.chunks(k).flat_map(one).collect()
}

fn normal(x: &[f64], norm: &Norm) -> Vec<f64> {
    let n = norm.scale.len();
    let one = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        let deviation = (variance + norm.epsilon as f64).sqrt();
        let of = |(f, v): (usize, &f64)| (v - mean) / deviation * norm.scale[f] as f64 + norm.shift[f] as f64;
        x.iter().enumerate().map(of).collect()
    };
    x.chunks(n).flat_map(one).collect()
}

/// Queries, keys and values \[tokens, heads x width\] to what the heads give, causal.
fn attend(q: &[f64], k: &[f64], v: &[f64], heads: usize, width: usize) -> Vec<f64> {
    let n = heads * width;
    let mut out = vec![0.0; q.len()];
    for i in 0..q.len() / n {
        for h in 0..heads {
            let of = |x: &[f64], token: usize| x[token * n + h * width..][..width].to_vec();
            let query = of(q, i);
            let dot = |j: usize| query.iter().zip(of(k, j)).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..=i).map(|j| dot(j) / (width as f64).sqrt()).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (j, s) in scores.iter().enumerate() {
                for (f, value) in of(v, j).iter().enumerate() {
                    out[i * n + h * width + f] += (s - most).exp() / sum * value;
                }
            }
        }
    }
    out
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

fn machines() -> impl Strategy<Value = Machine> {
    ((2u32..7, 3u32..12), settings()).prop_map(|(mesh, sets)| {
        let mut all = vec![
            format!("mesh.width={}", mesh.0),
            format!("mesh.height={}", mesh.1),
        ];
        all.extend(sets);
        machine(&all)
    })
}

#[test]
fn mlps() {
    let timed = Timed::default();
    // few features of a token may hardly differ: then layer norm shows their rounding
    let sizes = (1usize..5, 8usize..40, 1usize..70, prop::bool::ANY);
    over(
        60,
        (machines(), sizes, 0u64..1000),
        |(machine, (each, n, hidden, half), seed)| {
            let ty = if half { Ty::F16 } else { Ty::F32 };
            let mut room = Room::default();
            let bands = Bands::new(&machine, 1).map_err(|e| e.to_string())?;
            let x = room.tensor(ty, each, &bands.spread(n));
            let tokens = each * (machine.mesh.width as usize - 1);
            let (up, down) = (weights(n, hidden, seed + 1), weights(hidden, n, seed + 3));
            let norm = norm(n, seed + 5);
            let mlp = Mlp {
                name: "mlp",
                norm: &norm,
                up: linear(&up),
                function: &Function::Gelu { tanh: true },
                down: linear(&down),
            };
            let all = mlp.map(&machine, &x, room).map_err(|e| e.to_string())?;
            let input: Vec<f32> = values(tokens * n, seed, 0).iter().map(|v| v * 3.4).collect();
            let sram = run_all(&all, &machine, placed(&machine, &[(&x, &input)]), &timed)?;
            let given = rounded(ty, &input);
            let hidden_values: Vec<f64> = product(&normal(&given, &norm), n, &up)
                .into_iter()
                .map(gelu)
                .collect();
            let add = product(&hidden_values, hidden, &down);
            let want: Vec<f64> = given.iter().zip(add).map(|(x, y)| x + y).collect();
            compare(&x.read(&sram), &want, ty)
        },
    );
    timed.each();
}

#[test]
fn attentions() {
    let timed = Timed::default();
    let sizes = (1usize..5, 1usize..5, 1usize..12, prop::bool::ANY);
    over(
        80,
        (machines(), sizes, 0u64..1000),
        |(machine, (each, heads, width, half), seed)| {
            // of f16 two keys, or two features of a head, share an access
            let tokens = each * (machine.mesh.width as usize - 1);
            let heads = heads.min(machine.mesh.height as usize / 2);
            let width = width.max(8usize.div_ceil(heads));
            let ty = match half && tokens.is_multiple_of(2) && width.is_multiple_of(2) {
                true => Ty::F16,
                false => Ty::F32,
            };
            let n = heads * width;
            let mut room = Room::default();
            let bands = Bands::new(&machine, 1).map_err(|e| e.to_string())?;
            let x = room.tensor(ty, each, &bands.spread(n));
            let mask = Attention::mask(&machine, heads, each, &mut room).map_err(|e| e.to_string())?;
            let all: Vec<_> = (0..4).map(|i| weights(n, n, seed + 10 * i)).collect();
            let norm = norm(n, seed + 5);
            let attention = Attention {
                name: "attention",
                norm: &norm,
                query: linear(&all[0]),
                key: linear(&all[1]),
                value: linear(&all[2]),
                output: linear(&all[3]),
                heads,
                scale: (1.0 / (width as f64).sqrt()) as f32,
                mask: Some(&mask),
            };
            let operators = attention.map(&machine, &x, room).map_err(|e| e.to_string())?;
            let input: Vec<f32> = values(tokens * n, seed, 0).iter().map(|v| v * 3.4).collect();
            let causal = causal_mask(tokens, heads);
            let before = placed(&machine, &[(&x, &input), (&mask, &causal)]);
            let sram = run_all(&operators, &machine, before, &timed)?;
            let given = rounded(ty, &input);
            let y = normal(&given, &norm);
            let [q, k, v] = [0, 1, 2].map(|i| product(&y, n, &all[i]));
            let add = product(&attend(&q, &k, &v, heads, width), n, &all[3]);
            let want: Vec<f64> = given.iter().zip(add).map(|(x, y)| x + y).collect();
            if mask.read(&sram) != causal {
                return Err("the mask is not what it was".into());
            }
            compare(&x.read(&sram), &want, ty)
        },
    );
    timed.each();
}

/// A whole model, but for its embedding, against its graph's evaluation; dense and with zero weights skipped, tokens that the columns do not
/// divide; products in one band of rows and in several.
#[test]
fn decoders() {
    let timed = Timed::default();
    // the products that have several bands
    let (mut several, mut all) = (Vec::new(), 0);
    for (sets, ty, sparse) in [
        (&["mesh.width=6", "mesh.height=9"][..], Ty::F32, false),
        (
            &["mesh.width=5", "mesh.height=14", "edge.bits_per_second=60e9"],
            Ty::F32,
            true,
        ),
        (&["mesh.width=6", "mesh.height=9"], Ty::F16, true),
        (
            &["mesh.width=6", "mesh.height=54", "edge.bits_per_second=5e12"],
            Ty::F32,
            false,
        ),
        (
            &["mesh.width=4", "mesh.height=36", "edge.bits_per_second=5e12"],
            Ty::F16,
            true,
        ),
    ] {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let machine = machine(&sets);
        let graph = builtin("gpt:layers=2,width=24,heads=3,seq=18,vocab=50", 1, 7)
            .unwrap_or_else(|e| panic!("{e}"))
            .graph;
        let graph = match sparse {
            true => meshloom_models::sparsify(&graph, 0.6, meshloom_models::Mask::Uniform, 1).unwrap(),
            false => graph,
        };
        let wide = |(name, values): (String, Vec<f32>)| (name, values.into_iter().map(f64::from).collect());
        let inputs = seeded_inputs(&graph, 1, 1).into_iter().map(wide).collect();
        let values = evaluate::evaluate(&graph, &inputs).unwrap();
        let of = |t: meshloom_models::TensorId| values[t.0 as usize].as_ref().unwrap();
        let decoder = Decoder::new(&graph, &machine, ty, sparse).unwrap_or_else(|e| panic!("{e}"));
        let start: Vec<f32> = of(decoder.start).iter().map(|v| *v as f32).collect();
        let mut sram = decoder.place(&start);
        assert_eq!(decoder.parts(), 5);
        for i in 0..decoder.parts() {
            let operators = decoder.part(i).unwrap_or_else(|e| panic!("{e}"));
            sram = run_all(&operators, &machine, sram, &timed).unwrap_or_else(|e| panic!("{e}"));
            let what = |o: &Operator| o.name.split_once(' ').map_or(String::new(), |n| n.1.into());
            let names: Vec<String> = operators.iter().map(what).collect();
            let replicated = names.iter().filter_map(|n| n.strip_prefix("replicate for "));
            several.extend(replicated.map(String::from));
            // queries, keys and values are one
            let products = ["queries", "output", "up", "down", "product"];
            all += names.iter().filter(|n| products.contains(&n.as_str())).count();
        }
        compare(&decoder.read(&sram), of(graph.outputs()[0]), ty).unwrap_or_else(|e| panic!("{e}"));
    }
    timed.each();
    for what in ["queries", "output", "up", "down", "product"] {
        assert!(several.iter().any(|n| n == what), "{what}: {several:?}");
    }
    assert!(several.len() < all, "{several:?} of {all}");
}

#[test]
fn other_graphs_are_refused() {
    let machine = mesh(6, 9, &[]);
    let refused = |model: &str| {
        let graph = builtin(model, 1, 7).unwrap_or_else(|e| panic!("{e}")).graph;
        match Decoder::new(&graph, &machine, Ty::F32, false) {
            Ok(_) => panic!("{model} is no such model"),
            Err(e) => e.to_string(),
        }
    };
    assert!(refused("resnet18:stem=cifar,width=8").contains("no layer norm"));
    let few = refused("gpt:layers=1,width=40,heads=5,seq=18,vocab=50");
    assert!(few.contains("5 bands of rows"), "{few}");
}
