//! Operators other than products.

use super::*;
use meshloom_compiler::in_place::{
    Bands, By, Gather, LayerNorm, Pair, Room, Softmax, Unary, causal_mask, key_features,
};
use meshloom_compiler::plan::Function;

/// Sizes of tensors on a random machine.
#[derive(Clone, Debug)]
struct Case {
    machine: Machine,
    /// Of a column.
    tokens: usize,
    all_tokens: usize,
    features: usize,
    types: [Ty; 2],
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let ty = || prop_oneof![Just(Ty::F32), Just(Ty::F16)];
    let sizes = ((2u32..7, 2u32..12), 1usize..9, 1usize..50);
    (sizes, (ty(), ty()), settings(), 0u64..1000).prop_map(|((mesh, tokens, features), types, sets, seed)| {
        let mut all = vec![
            format!("mesh.width={}", mesh.0),
            format!("mesh.height={}", mesh.1),
        ];
        all.extend(sets);
        Case {
            machine: machine(&all),
            tokens,
            all_tokens: tokens * (mesh.0 as usize - 1),
            features,
            types: [types.0, types.1],
            seed,
        }
    })
}

/// Numbers about 0 of deviation about 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    values(n, seed, 0).iter().map(|v| v * 3.4).collect()
}

/// A tensor and another one: elsewhere, or the same if asked and if it has its type.
fn two(case: &Case, features: &[usize], same: bool) -> (Tensor, Tensor, Room) {
    let mut room = Room::default();
    let x = room.tensor(case.types[0], case.tokens, features);
    let y = match same && case.types[0] == case.types[1] {
        true => x.clone(),
        false => room.tensor(case.types[1], case.tokens, features),
    };
    (x, y, room)
}

/// As it is in the machine's type.
fn given(ty: Ty, values: &[f32]) -> Vec<f64> {
    rounded(ty, values)
}

fn one_band(case: &Case) -> Result<Bands, String> {
    Bands::new(&case.machine, 1).map_err(|e| e.to_string())
}

#[test]
fn layer_norms() {
    let timed = Timed::default();
    let compared = std::cell::Cell::new(0);
    over(200, (cases(), prop::bool::ANY), |(case, same)| {
        let n = case.features;
        let (x, y, room) = two(&case, &one_band(&case)?.spread(n), same);
        let (scale, shift) = (numbers(n, case.seed + 1), numbers(n, case.seed + 2));
        // a mean that is large beside the deviation, sometimes
        let offset = [0.0, 5.0][case.seed as usize % 2];
        let input: Vec<f32> = numbers(case.all_tokens * n, case.seed)
            .iter()
            .map(|v| v + offset)
            .collect();
        let norm = LayerNorm {
            name: "norm",
            x: &x,
            y: &y,
            scale: &scale,
            shift: &shift,
            epsilon: 1e-5,
            scratch: room.end(),
        };
        let program = norm.map(&case.machine).map_err(|e| e.to_string())?;
        let (sram, _) = run_columns(
            &timed,
            &program,
            &case.machine,
            &placed(&case.machine, &[(&x, &input)]),
        )?;
        let want: Vec<f64> = given(x.ty, &input)
            .chunks(n)
            .flat_map(|x| {
                let mean = x.iter().sum::<f64>() / n as f64;
                let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
                let deviation = (variance + 1e-5).sqrt();
                let one = |(f, v): (usize, &f64)| (v - mean) / deviation * scale[f] as f64 + shift[f] as f64;
                x.iter().enumerate().map(one).collect::<Vec<_>>()
            })
            .collect();
        // where features of a token hardly differ their rounding shows: a case of its own is not held to the bounds
        let plain = given(x.ty, &input).chunks(n).all(|x| {
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
            variance.sqrt() > 0.1 * x.iter().fold(0.0, |most: f64, v| most.max(v.abs()))
        });
        if plain {
            compared.set(compared.get() + 1);
            compare(&y.read(&sram), &want, y.ty)?;
        }
        Ok(())
    });
    assert!(compared.get() > 0);
    timed.each();
}

fn gelu(x: f64, tanh: bool) -> f64 {
    let of = if tanh {
        ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()
    } else {
        libm::erf(x / std::f64::consts::SQRT_2)
    };
    0.5 * x * (1.0 + of)
}

/// A function, and what it is in f64.
type Pointwise = (Function, fn(f64) -> f64);

#[test]
fn functions() {
    let timed = Timed::default();
    let all: [Pointwise; 6] = [
        (Function::Relu, |v| v.max(0.0)),
        (Function::Gelu { tanh: true }, |v| gelu(v, true)),
        (Function::Gelu { tanh: false }, |v| gelu(v, false)),
        (
            Function::Clip {
                least: -0.5,
                most: 0.75,
            },
            |v| v.clamp(-0.5, 0.75),
        ),
        (
            Function::Clip {
                least: -0.5,
                most: f32::INFINITY,
            },
            |v| v.max(-0.5),
        ),
        (
            Function::Clip {
                least: f32::NEG_INFINITY,
                most: 0.75,
            },
            |v| v.min(0.75),
        ),
    ];
    over(
        300,
        (cases(), 0..all.len(), prop::bool::ANY),
        |(case, which, same)| {
            let (x, y, room) = two(&case, &one_band(&case)?.spread(case.features), same);
            let (function, of) = &all[which];
            let input = numbers(case.all_tokens * case.features, case.seed);
            let unary = Unary {
                name: "function",
                function,
                x: &x,
                y: &y,
                scratch: room.end(),
            };
            let program = unary.map(&case.machine).map_err(|e| e.to_string())?;
            let before = placed(&case.machine, &[(&x, &input)]);
            let (sram, _) = run_columns(&timed, &program, &case.machine, &before)?;
            let want: Vec<f64> = given(x.ty, &input).iter().map(|v| of(*v)).collect();
            if x != y && x.read(&sram) != x.read(&before) {
                return Err("X is not what it was".into());
            }
            compare(&y.read(&sram), &want, y.ty)
        },
    );
    timed.each();
}

#[test]
fn pairs() {
    let timed = Timed::default();
    let how = (prop::bool::ANY, 0usize..3);
    over(200, (cases(), how), |(case, (multiply, place))| {
        let features = one_band(&case)?.spread(case.features);
        let mut room = Room::default();
        let x = case.types.map(|ty| room.tensor(ty, case.tokens, &features));
        let y = match place {
            2 => room.tensor(Ty::F32, case.tokens, &features),
            i => x[i].clone(),
        };
        let n = case.all_tokens * case.features;
        let inputs = [numbers(n, case.seed), numbers(n, case.seed + 1)];
        let pair = Pair {
            name: "pair",
            multiply,
            x: [&x[0], &x[1]],
            y: &y,
            scratch: room.end(),
        };
        let program = pair.map(&case.machine).map_err(|e| e.to_string())?;
        let before = placed(&case.machine, &[(&x[0], &inputs[0]), (&x[1], &inputs[1])]);
        let (sram, _) = run_columns(&timed, &program, &case.machine, &before)?;
        let both = given(x[0].ty, &inputs[0])
            .into_iter()
            .zip(given(x[1].ty, &inputs[1]));
        let want: Vec<f64> = both.map(|(a, b)| if multiply { a * b } else { a + b }).collect();
        compare(&y.read(&sram), &want, y.ty)
    });
    timed.each();
}

#[test]
fn softmaxes() {
    let timed = Timed::default();
    over(
        200,
        (cases(), 1usize..5, prop::bool::ANY),
        |(case, bands, masked)| {
            let n = bands.min(case.machine.mesh.height as usize / 2);
            let bands = Bands::new(&case.machine, n).map_err(|e| e.to_string())?;
            let mut room = Room::default();
            let keys = case.all_tokens;
            let x = room.tensor(
                Ty::F32,
                case.tokens,
                &key_features(&case.machine, &bands, case.tokens),
            );
            let mask = room.tensor(Ty::F32, case.tokens, &x.features);
            let values = numbers(keys * n * keys, case.seed);
            let mask_values = causal_mask(keys, n);
            let softmax = Softmax {
                name: "softmax",
                bands: &bands,
                x: &x,
                scale: 0.75,
                mask: masked.then_some(&mask),
                scratch: room.end(),
            };
            let program = softmax.map(&case.machine).map_err(|e| e.to_string())?;
            let before = placed(&case.machine, &[(&x, &values), (&mask, &mask_values)]);
            let (sram, _) = run_columns(&timed, &program, &case.machine, &before)?;
            let want: Vec<f64> = values
                .chunks(keys)
                .enumerate()
                .flat_map(|(i, x)| {
                    let sees = if masked { i / n + 1 } else { keys };
                    let all: Vec<f64> = x[..sees].iter().map(|v| *v as f64 * 0.75).collect();
                    let most = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = all.iter().map(|v| (v - most).exp()).sum();
                    let mut row: Vec<f64> = all.iter().map(|v| (v - most).exp() / sum).collect();
                    row.resize(keys, 0.0);
                    row
                })
                .collect();
            // as attention's results, its probabilities are held to their size
            for (g, w) in x.read(&sram).iter().zip(&want) {
                if (*g as f64 - w).abs() > 1e-5 * w.max(1e-2) {
                    return Err(format!("{g}, not {w}"));
                }
            }
            Ok(())
        },
    );
    timed.each();
}

/// Every key and value comes to its place in column 0.
#[test]
fn gathers() {
    let by = prop_oneof![Just(By::Feature), Just(By::Token)];
    over(300, (cases(), 1usize..5, by), |(case, bands, by)| {
        let (w, h) = (
            case.machine.mesh.width as usize,
            case.machine.mesh.height as usize,
        );
        let n = bands.min(h / 2);
        let bands = Bands::new(&case.machine, n).map_err(|e| e.to_string())?;
        let ty = case.types[0];
        let mut room = Room::default();
        let x = room.tensor(ty, case.tokens, &bands.spread(case.features));
        let (tokens, all) = (case.all_tokens, n * case.features);
        let input = numbers(tokens * all, case.seed);
        let gather = Gather {
            name: "gather",
            bands: &bands,
            x: &x,
            by,
            address: 32 * (case.seed % 3) as u32,
            scratch: room.end(),
        };
        let done = gather.map(&case.machine).map_err(|e| e.to_string())?;
        let before = placed(&case.machine, &[(&x, &input)]);
        let (sram, _) = run(&done.program, &case.machine, &before)?;
        let split = key_features(&case.machine, &bands, case.tokens);
        let given = rounded(ty, &input);
        let bytes = ty.bytes() as usize;
        for (band, (top, last)) in bands.each().enumerate() {
            for row in top..last {
                let holds = |outer: usize, inner: usize, token: usize, feature: usize| {
                    let at = done.address as usize + outer * done.pitch as usize + inner * bytes;
                    let mut found = [0; 4];
                    sram.read(row * w, at, &mut found[..bytes]);
                    let [a, b, ..] = found;
                    let got = match ty {
                        Ty::F16 => half::f16::from_le_bytes([a, b]).to_f64(),
                        Ty::F32 => f32::from_le_bytes(found) as f64,
                    };
                    match got == given[token * all + feature] {
                        true => Ok(()),
                        false => Err(format!("row {row}: feature {feature} of token {token} is {got}")),
                    }
                };
                match by {
                    By::Feature => {
                        for f in x.features[row]..x.features[row + 1] {
                            (0..tokens).try_for_each(|t| holds(f - x.features[row], t, t, f))?;
                        }
                    }
                    By::Token => {
                        for key in split[row]..split[row + 1] {
                            let token = key - band * tokens;
                            (0..case.features).try_for_each(|f| {
                                holds(key - split[row], f, token, band * case.features + f)
                            })?;
                        }
                    }
                }
            }
        }
        Ok(())
    });
}
