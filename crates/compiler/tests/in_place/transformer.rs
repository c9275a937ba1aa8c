//! The two halves of a transformer's block, operator after operator on what the one before left.

use super::*;
use meshloom_compiler::in_place::{Attention, Bands, Linear, Mlp, Operator, Room, causal_mask};
use meshloom_compiler::plan::{Function, Norm};
use std::sync::Arc;

/// Runs all operators, each by both engines.
fn run_all(all: &[Operator], machine: &Machine, mut sram: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
    for o in all {
        let (left, outcome) = run(&o.program, machine, &sram).map_err(|e| format!("{}: {e}", o.name))?;
        // what nothing begins by itself
        let starts = |b: &Block| b.tasks.iter().any(|t| t.trigger == Trigger::Start);
        let blocks = |s: &Stage| s.regions.iter().flat_map(|r| &r.blocks).any(starts);
        if machine.mesh.width > 2 && outcome.paths.columns == 0 && !o.program.stages.iter().any(blocks) {
            return Err(format!("{}: columns were not timed as one", o.name));
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
            let sram = run_all(&all, &machine, placed(&machine, &[(&x, &input)]))?;
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
}

#[test]
fn attentions() {
    let sizes = (1usize..5, 1usize..5, 1usize..12, prop::bool::ANY);
    over(
        80,
        (machines(), sizes, 0u64..1000),
        |(machine, (each, heads, width, half), seed)| {
            // of f16 two keys, or two features of a head, share an access
            let tokens = each * (machine.mesh.width as usize - 1);
            let heads = heads.min(machine.mesh.height as usize / 2);
            let width = width.max(8usize.div_ceil(heads));
            let ty = match half && tokens % 2 == 0 && width % 2 == 0 {
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
            let sram = run_all(&operators, &machine, before)?;
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
}
