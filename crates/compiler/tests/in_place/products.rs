//! Products: over random shapes, masks and machines the results are the direct sums, and every weight that is sent is multiplied once for
//! each token and nothing else is.

use super::*;
use meshloom_compiler::CompileError;
use meshloom_compiler::in_place::{Bands, Mapped, Product, Replicate, Source, even_features};
use meshloom_simulator::text;
use std::cell::RefCell;

/// The address behind tensors.
fn behind(all: &[&Tensor]) -> u32 {
    let end = all.iter().map(|t| t.end()).max().unwrap_or(0);
    end.next_multiple_of(32) as u32
}

/// Holds results to the direct sums.
fn same_sums(got: &[f32], want: &[f64], ty: Ty) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} results, not {}", got.len(), want.len()));
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64)
        .sqrt()
        .max(1e-3);
    // what the sums in f32 lose, and what a result does in its own type
    let round = if ty == Ty::F32 { 0.0 } else { 2f64.powi(-11) };
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let e = (*g as f64 - w).abs();
        if e.is_nan() || e > 1e-5 * scale + round * w.abs() {
            return Err(format!("result {i} is {g}, not {w}"));
        }
    }
    Ok(())
}

/// Runs a product of values that lie on the mesh, in each band, and compares its results and its multiply-adds.
fn check(
    product: &Product,
    machine: &Machine,
    x: &[f32],
    before: Sram,
    timed: &Timed,
) -> Result<Mapped, String> {
    let Source::Edge {
        bands,
        weights,
        bias,
        lists,
    } = product.source
    else {
        return Err("weights do not enter".into());
    };
    let mapped = product.map(machine).map_err(|e| e.to_string())?;
    let (sram, outcome) = run_columns(timed, &mapped.program, machine, &before)?;
    if product.x.read(&sram) != product.x.read(&before) {
        return Err("X is not what it was".into());
    }
    let got = product.y.read(&sram);
    let tokens = product.x.tokens * (machine.mesh.width as usize - 1);
    let (k, m) = (product.x.all() / bands.len(), product.y.all());
    let (w, x) = (rounded(product.x.ty, weights), rounded(product.x.ty, x));
    let sum = |(token, output): (usize, usize)| {
        let sum: f64 = (0..k).map(|f| x[token * k + f] * w[output * k + f]).sum();
        let sum = sum + bias.map_or(0.0, |bias| bias[output] as f64);
        if product.relu { sum.max(0.0) } else { sum }
    };
    let want: Vec<f64> = (0..tokens * m).map(|i| sum((i / m, i % m))).collect();
    same_sums(&got, &want, product.y.ty)?;
    let sent = |w: &&f32| !lists || **w != 0.0;
    let theoretical = (weights.iter().filter(sent).count() * tokens) as u64;
    let executed: u64 = outcome.pes.iter().map(|pe| pe.operations[0]).sum();
    if executed != theoretical {
        return Err(format!("executed {executed} multiply-adds, not {theoretical}"));
    }
    Ok(mapped)
}

/// A product with random sizes on a random machine.
#[derive(Clone, Debug)]
struct Case {
    mesh: (u32, u32),
    each: usize,
    k: usize,
    m: usize,
    zeros: u64,
    lists: bool,
    types: [Ty; 2],
    bias: bool,
    relu: bool,
    split: bool,
    bands: usize,
    sets: Vec<String>,
    seed: u64,
}

fn types() -> impl Strategy<Value = [Ty; 2]> {
    prop_oneof![
        Just([Ty::F32; 2]),
        Just([Ty::F16; 2]),
        Just([Ty::F32, Ty::F16]),
        Just([Ty::F16, Ty::F32]),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let how = (
        prop::bool::ANY,
        types(),
        prop::bool::ANY,
        prop::bool::ANY,
        prop::bool::ANY,
    );
    let sizes = (
        1usize..20,
        0usize..40,
        1usize..70,
        prop_oneof![0u64..17, Just(16u64), Just(0u64)],
    );
    let mesh = (2u32..8, prop_oneof![2u32..9, 9u32..20]);
    (mesh, sizes, how, 1usize..7, settings(), 0u64..1000).prop_map(
        |(mesh, (each, k, m, zeros), (lists, types, bias, relu, split), bands, sets, seed)| Case {
            mesh,
            each,
            // sometimes fewer features than rows
            k: k + if seed % 4 == 0 { 1 } else { mesh.1 as usize - 1 },
            m,
            zeros,
            lists,
            types,
            bias,
            relu,
            split,
            bands: if seed % 3 == 0 { 1 } else { bands },
            sets,
            seed,
        },
    )
}

#[test]
fn products() {
    let timed = Timed::default();
    // what was met: dense blocks, lists, lists without elements, several groups, rows without outputs, rows without features, a channel in the
    // middle of its rows, f16, two types, features spread by weights; several bands, of them some with more outputs than others, of several groups, of lists, with
    // biases, of f16
    let met: RefCell<[usize; 16]> = Default::default();
    over(450, cases(), |case| {
        let mut sets = vec![
            format!("mesh.width={}", case.mesh.0),
            format!("mesh.height={}", case.mesh.1),
        ];
        sets.extend(case.sets.clone());
        let machine = machine(&sets);
        let (columns, rows) = (case.mesh.0 as usize - 1, case.mesh.1 as usize - 1);
        let tokens = columns * case.each;
        let weights = values(case.k * case.m, case.seed + 1, case.zeros);
        let bias = values(case.m, case.seed + 2, 0);
        let n = case.bands.min(case.mesh.1 as usize / 2).min(case.m);
        let bands = Bands::new(&machine, n).map_err(|e| e.to_string())?;
        let even = n == 1 && case.lists && case.k >= rows;
        let features = match even {
            true => even_features(&machine, case.types[0], case.each, case.k, &weights)
                .map_err(|e| e.to_string())?,
            false => bands.spread(case.k),
        };
        // most in the first rows
        let at = |row: usize| case.m - case.m * (rows - row) * (rows - row) / (rows * rows);
        let outputs = match case.split && n == 1 {
            true => (0..=rows).map(at).chain([case.m]).collect(),
            false => bands.share(case.m),
        };
        let mut x = Tensor {
            ty: case.types[0],
            tokens: case.each,
            features,
            address: [0, 32, 8192][case.seed as usize % 3],
        };
        let mut y = Tensor {
            ty: case.types[1],
            tokens: case.each,
            features: outputs,
            address: 0,
        };
        // before X, if there is room
        if y.end() > x.address as u64 {
            y.address = behind(&[&x]);
        }
        if case.seed % 5 == 0 {
            // far from each other
            x.address += 1024;
            y.address = behind(&[&x, &y]);
        }
        // all features are brought to each band
        let one = Bands::new(&machine, 1).map_err(|e| e.to_string())?;
        let given = Tensor {
            features: one.spread(case.k),
            address: behind(&[&x, &y]),
            ..x.clone()
        };
        let input = values(tokens * case.k, case.seed + 3, 1);
        let before = match n {
            1 => placed(&machine, &[(&x, &input)]),
            _ => {
                let replicate = Replicate {
                    name: "replicate",
                    bands: &bands,
                    x: &given,
                    y: &x,
                };
                let program = replicate.map(&machine).map_err(|e| e.to_string())?;
                run_columns(&timed, &program, &machine, &placed(&machine, &[(&given, &input)]))?.0
            }
        };
        let product = Product {
            name: "product",
            x: &x,
            y: &y,
            source: Source::Edge {
                bands: &bands,
                weights: &weights,
                bias: case.bias.then_some(&bias[..]),
                lists: case.lists,
            },
            relu: case.relu,
            scratch: behind(&[&x, &y]),
        };
        let mapped = check(&product, &machine, &input, before, &timed)?;
        let mut met = met.borrow_mut();
        met[0] += !case.lists as usize;
        met[1] += case.lists as usize;
        met[2] += (case.lists && weights.iter().all(|w| *w == 0.0)) as usize;
        met[3] += (mapped.group < case.m) as usize;
        met[4] += (0..rows).any(|row| y.of(row) == 0) as usize;
        met[5] += (0..rows).any(|row| x.of(row) == 0) as usize;
        let feeds = &mapped.program.stages[0].feeds;
        met[6] += feeds.iter().any(|f| f.row > 0) as usize;
        met[7] += (x.ty == Ty::F16) as usize;
        met[8] += (x.ty != y.ty) as usize;
        met[9] += even as usize;
        met[10] += (n > 1) as usize;
        met[11] += (n > 1 && !case.m.is_multiple_of(n)) as usize;
        met[12] += (n > 1 && mapped.group < case.m / n) as usize;
        met[13] += (n > 1 && case.lists) as usize;
        met[14] += (n > 1 && case.bias) as usize;
        met[15] += (n > 1 && x.ty == Ty::F16) as usize;
        Ok(())
    });
    let met = met.into_inner();
    eprintln!("{met:?}");
    assert!(met.iter().all(|n| *n > 0), "{met:?}");
    timed.each();
}

/// Products in bands of rows, whose weights lie in column 0.
#[test]
fn products_of_column_0() {
    let sizes = ((2u32..7, 2u32..12), 1usize..5, 1usize..9, 1usize..40, 1usize..40);
    // what was met: several bands, several groups, rows without features, f16, two types
    let met: RefCell<[usize; 5]> = Default::default();
    over(
        200,
        (sizes, settings(), prop::bool::ANY, 0u64..1000),
        |((mesh, bands, each, k, m), sets, half, seed)| {
            let mut all = vec![
                format!("mesh.width={}", mesh.0),
                format!("mesh.height={}", mesh.1),
            ];
            all.extend(sets);
            let machine = machine(&all);
            let n = bands.min(mesh.1 as usize / 2);
            let bands = Bands::new(&machine, n).map_err(|e| e.to_string())?;
            let tokens = (mesh.0 as usize - 1) * each;
            let mut room = meshloom_compiler::in_place::Room::default();
            let x = room.tensor(
                if seed % 2 == 0 { Ty::F16 } else { Ty::F32 },
                each,
                &bands.spread(k),
            );
            let weight_ty = if half && m % 2 == 0 { Ty::F16 } else { Ty::F32 };
            let bytes = weight_ty.bytes() as usize;
            let y = room.tensor(
                if seed % 3 == 0 { Ty::F16 } else { Ty::F32 },
                each,
                &bands.spread(m),
            );
            // [feature of all bands][output]
            let weights = values(n * k * m, seed, 2);
            let input = values(tokens * n * k, seed + 1, 2);
            let (address, pitch) = (64 * (seed % 3) as u32, (bytes * m).next_multiple_of(32) as u32);
            let mut sram = placed(&machine, &[(&x, &input)]);
            for row in 0..mesh.1 as usize {
                let pe = row * mesh.0 as usize;
                for f in x.features[row]..x.features[row + 1] {
                    let to = address as usize + (f - x.features[row]) * pitch as usize;
                    for (o, w) in weights[f * m..(f + 1) * m].iter().enumerate() {
                        match weight_ty {
                            Ty::F32 => sram.write(pe, to + 4 * o, &w.to_le_bytes()),
                            Ty::F16 => {
                                sram.write(pe, to + 2 * o, &half::f16::from_f32(*w).to_le_bytes());
                            }
                        }
                    }
                }
            }
            let source = Source::West {
                bands: &bands,
                ty: weight_ty,
                address,
                pitch,
            };
            let product = Product {
                name: "product",
                x: &x,
                y: &y,
                source,
                relu: false,
                scratch: room.end(),
            };
            let mapped = product.map(&machine).map_err(|e| e.to_string())?;
            let (sram, outcome) = run(&mapped.program, &machine, &sram)?;
            let (given, sent) = (rounded(x.ty, &input), rounded(weight_ty, &weights));
            let sum = |(token, output): (usize, usize)| -> f64 {
                let (band, o) = (output / m, output % m);
                let product = |f: usize| given[token * n * k + f] * sent[f * m + o];
                (band * k..(band + 1) * k).map(product).sum()
            };
            let want: Vec<f64> = (0..tokens * n * m)
                .map(|i| sum((i / (n * m), i % (n * m))))
                .collect();
            same_sums(&y.read(&sram), &want, y.ty)?;
            let executed: u64 = outcome.pes.iter().map(|pe| pe.operations[1]).sum();
            if executed != (tokens * n * k * m) as u64 {
                return Err(format!("executed {executed} multiply-adds"));
            }
            let mut met = met.borrow_mut();
            met[0] += (n > 1) as usize;
            met[1] += (mapped.group < m) as usize;
            met[3] += (weight_ty == Ty::F16) as usize;
            met[4] += (weight_ty != x.ty) as usize;
            met[2] += bands
                .each()
                .any(|(top, last)| (top..last).any(|row| x.of(row) == 0)) as usize;
            Ok(())
        },
    );
    let met = met.into_inner();
    assert!(met.iter().all(|n| *n > 0), "{met:?}");
}

/// Products one after another, each of which finds what the one before left: by themselves, and as stages of one program.
#[test]
fn a_chain() {
    let machine = mesh(5, 6, &["edge.bits_per_second=60e9"]);
    for (ty, lists) in [(Ty::F32, true), (Ty::F16, false), (Ty::F16, true)] {
        let (sizes, tokens) = ([24, 50, 30, 17], 12);
        let all: Vec<Vec<f32>> = (0..3)
            .map(|i| values(sizes[i] * sizes[i + 1], i as u64 + 1, 5))
            .collect();
        let biases: Vec<Vec<f32>> = (0..3).map(|i| values(sizes[i + 1], i as u64 + 7, 0)).collect();
        let mut room = meshloom_compiler::in_place::Room::default();
        let tensors: Vec<Tensor> = (0..4)
            .map(|i| {
                let features = match i {
                    3 => Bands::new(&machine, 1).unwrap().spread(sizes[i]),
                    _ => even_features(&machine, ty, 3, sizes[i], &all[i]).unwrap(),
                };
                room.tensor(ty, 3, &features)
            })
            .collect();
        let bands = Bands::new(&machine, 1).unwrap();
        let one = |i: usize| Product {
            name: ["first", "second", "third"][i],
            x: &tensors[i],
            y: &tensors[i + 1],
            source: Source::Edge {
                bands: &bands,
                weights: &all[i],
                bias: Some(&biases[i]),
                lists,
            },
            relu: i < 2,
            scratch: room.end(),
        };
        let mapped: Vec<Mapped> = (0..3)
            .map(|i| one(i).map(&machine).unwrap_or_else(|e| panic!("{e}")))
            .collect();
        let x = values(tokens * sizes[0], 20, 0);
        let before = placed(&machine, &[(&tensors[0], &x)]);
        let mut sram = before.clone();
        let mut want = rounded(ty, &x);
        for (i, m) in mapped.iter().enumerate() {
            let options = engine::Options::default();
            engine::run_on(&m.program, &machine, &options, &mut sram).unwrap_or_else(|e| panic!("{e}"));
            let (w, k, m) = (rounded(ty, &all[i]), sizes[i], sizes[i + 1]);
            want = (0..tokens * m)
                .map(|at| {
                    let (token, output) = (at / m, at % m);
                    let sum: f64 = (0..k).map(|f| want[token * k + f] * w[output * k + f]).sum();
                    let sum = sum + biases[i][output] as f64;
                    if i < 2 { sum.max(0.0) } else { sum }
                })
                .collect();
        }
        let got = tensors[3].read(&sram);
        let most = if ty == Ty::F32 { 1e-5 } else { 1e-2 };
        for (g, w) in got.iter().zip(&want) {
            assert!((*g as f64 - w).abs() < most * w.abs().max(1.0), "{g}, not {w}");
        }
        let program = Program {
            name: "chain".into(),
            stages: mapped.iter().map(|m| m.program.stages[0].clone()).collect(),
        };
        assert_eq!(verify(&program, &machine), Ok(()));
        for engine in [Engine::Fast, Engine::Reference] {
            let options = engine::Options {
                engine,
                ..engine::Options::default()
            };
            let mut left = before.clone();
            engine::run_on(&program, &machine, &options, &mut left).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(tensors[3].read(&left), got);
        }
    }
}

/// X, Y and the address behind them, of a product on a mesh of 4 rows.
fn tensors(machine: &Machine, tokens: usize, k: usize, m: usize) -> (Tensor, Tensor, u32) {
    let bands = Bands::new(machine, 1).unwrap_or_else(|e| panic!("{e}"));
    let mut room = meshloom_compiler::in_place::Room::default();
    let x = room.tensor(Ty::F32, tokens, &bands.spread(k));
    let y = room.tensor(Ty::F32, tokens, &bands.spread(m));
    (x, y, room.end())
}

/// A small product's program.
#[test]
fn program() {
    let machine = mesh(3, 6, &["edge.bits_per_second=60e9"]);
    let weights = values(12 * 8, 1, 8);
    let bias = values(12, 2, 0);
    let (mut x, y, scratch) = tensors(&machine, 4, 8, 12);
    x.features = even_features(&machine, Ty::F32, 4, 8, &weights).unwrap();
    let product = Product {
        name: "product",
        x: &x,
        y: &y,
        source: Source::Edge {
            bands: &Bands::new(&machine, 1).unwrap(),
            weights: &weights,
            bias: Some(&bias),
            lists: true,
        },
        relu: true,
        scratch,
    };
    let input = values(64, 3, 0);
    let before = placed(&machine, &[(&x, &input)]);
    check(&product, &machine, &input, before, &Timed::default()).unwrap_or_else(|e| panic!("{e}"));
    let mapped = product.map(&machine).unwrap();
    insta::assert_snapshot!(text::print(&mapped.program));
}

#[test]
fn what_does_not_fit_is_refused() {
    let all = vec![1.0; 64 * 64];
    let small = mesh(4, 4, &[]);
    let (x, y, scratch) = tensors(&small, 4, 64, 64);
    let one = Bands::new(&small, 1).unwrap();
    let edge = |weights, bias| Source::Edge {
        bands: &one,
        weights,
        bias,
        lists: true,
    };
    let product = Product {
        name: "product",
        x: &x,
        y: &y,
        source: edge(&all, None),
        relu: false,
        scratch,
    };
    let error = |product: &Product, machine: &Machine| match product.map(machine) {
        Ok(_) => panic!("it fits"),
        Err(e @ (CompileError::DoesNotFit { .. } | CompileError::Unsupported { .. })) => e.to_string(),
        Err(e) => panic!("{e}"),
    };
    assert!(product.map(&small).is_ok());
    let with_x = |x: &Tensor, machine: &Machine| error(&Product { x, ..product.clone() }, machine);
    let changed = |change: &dyn Fn(&mut Tensor)| {
        let mut x = x.clone();
        change(&mut x);
        with_x(&x, &small)
    };
    let with = |source| {
        error(
            &Product {
                source,
                ..product.clone()
            },
            &small,
        )
    };
    let (many_x, many_y, many) = tensors(&small, 1000, 64, 64);
    let bands = Bands::new(&small, 2).unwrap();
    // weights of column 0, for tensors that lie in these bands
    let with_bands = |bands: &Bands, address: u32, pitch: u32| {
        let mut room = meshloom_compiler::in_place::Room::default();
        let [x, y] = [(); 2].map(|()| room.tensor(Ty::F32, 4, &bands.spread(64)));
        let source = Source::West {
            bands,
            ty: Ty::F32,
            address,
            pitch,
        };
        error(
            &Product {
                x: &x,
                y: &y,
                source,
                scratch: room.end(),
                ..product.clone()
            },
            &small,
        )
    };
    let in_bands = |outputs: Vec<usize>| {
        let mut room = meshloom_compiler::in_place::Room::default();
        let x = room.tensor(Ty::F32, 4, &bands.spread(64));
        let y = room.tensor(Ty::F32, 4, &outputs);
        let source = Source::Edge {
            bands: &bands,
            weights: &all,
            bias: None,
            lists: false,
        };
        error(
            &Product {
                x: &x,
                y: &y,
                source,
                scratch: room.end(),
                ..product.clone()
            },
            &small,
        )
    };
    let texts = [
        changed(&|x| x.tokens = 0),
        changed(&|x| x.tokens = 5),
        changed(&|x| x.tokens = usize::MAX),
        changed(&|x| x.features = vec![0, 64]),
        changed(&|x| x.features = vec![0, 65, 64, 64, 64]),
        changed(&|x| x.features = vec![0, 16, 32, 48, 64]),
        changed(&|x| x.address = 8),
        changed(&|x| x.address = 1 << 20),
        changed(&|x| x.address = y.address),
        changed(&|x| x.address = y.address - 32),
        changed(&|x| x.features = vec![0; 5]),
        with(edge(&all[1..], None)),
        with(edge(&all, Some(&[1.0]))),
        with(Source::West {
            bands: &bands,
            ty: Ty::F32,
            address: 0,
            pitch: 256,
        }),
        with_bands(&bands, 0, 128),
        with_bands(&bands, 0, 250),
        with_bands(&bands, 48 * 1024, 256),
        error(
            &Product {
                scratch: u32::MAX - 31,
                ..product.clone()
            },
            &small,
        ),
        error(
            &Product {
                scratch: 32,
                ..product.clone()
            },
            &small,
        ),
        error(
            &Product {
                x: &many_x,
                y: &many_y,
                scratch: many,
                ..product.clone()
            },
            &small,
        ),
        error(&product, &mesh(4, 4, &["pe.sram_bytes=1024"])),
        error(&product, &mesh(4, 4, &["pe.sram_bytes=2048"])),
        error(&product, &mesh(4, 4, &["pe.threads=2"])),
        error(&product, &mesh(4, 4, &["router.filters=0"])),
        error(
            &product,
            &mesh(4, 4, &["router.switch_positions=1", "edge.bits_per_second=60e9"]),
        ),
        error(&product, &mesh(1, 4, &[])),
        error(&product, &mesh(4, 5, &[])),
        // weights from the edge in bands: X only once, an output on a band's last row, a band without, one with too few
        with(Source::Edge {
            bands: &bands,
            weights: &all,
            bias: None,
            lists: false,
        }),
        in_bands(vec![0, 32, 64, 64, 64]),
        in_bands(vec![0, 64, 64, 64, 64]),
        in_bands(vec![0, 62, 62, 64, 64]),
        even_features(&small, Ty::F32, 4, 2, &all[..2])
            .unwrap_err()
            .to_string(),
        Bands::new(&small, 3).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}
