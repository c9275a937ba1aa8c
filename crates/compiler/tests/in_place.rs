//! Products in place: over random shapes, masks and machines both engines agree in everything, the results are the direct sums, every
//! weight that is sent is multiplied once for each token and nothing else is, and each column but the first does what its neighbour does, a
//! hop later.

use meshloom_compiler::CompileError;
use meshloom_compiler::in_place::{Mapped, Product};
use meshloom_simulator::engine::{self, Engine, Outcome, Paths, QueueKind};
use meshloom_simulator::program::*;
use meshloom_simulator::verify::verify;
use meshloom_simulator::{Expr, Machine, text};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    Machine::parse("machines/small.toml", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

fn mesh(width: u32, height: u32, more: &[&str]) -> Machine {
    let mesh = [format!("mesh.width={width}"), format!("mesh.height={height}")];
    let sets: Vec<String> = mesh
        .into_iter()
        .chain(more.iter().map(|s| s.to_string()))
        .collect();
    machine(&sets)
}

/// Well-mixed values from -0.5 to 0.5, of which `zeros` of 16 are 0.
fn values(n: usize, seed: u64, zeros: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s
    };
    (0..n)
        .map(|_| (next(), next()))
        .map(|(kept, value)| match kept >> 20 & 15 >= zeros {
            true => (value >> 40) as f32 / (1 << 24) as f32 - 0.5 + 1e-3,
            false => 0.0,
        })
        .collect()
}

/// What both engines make of it: the SRAM that is left, and the fast engine's outcome.
fn run(mapped: &Mapped, machine: &Machine, x: &[f32]) -> Result<(Vec<Vec<u8>>, Outcome), String> {
    if let Err(all) = verify(&mapped.program, machine) {
        return Err(all.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("\n"));
    }
    let one = |engine: Engine| -> Result<(Vec<Vec<u8>>, Outcome), String> {
        let options = engine::Options {
            engine,
            max_cycles: Some(2_000_000),
            record: true,
            ..engine::Options::default()
        };
        let mut sram = mapped.place(x);
        let outcome =
            engine::run_on(&mapped.program, machine, &options, &mut sram).map_err(|e| e.to_string())?;
        Ok((sram, outcome))
    };
    let (fast, reference) = (one(Engine::Fast)?, one(Engine::Reference)?);
    if fast.0 != reference.0 {
        return Err("the engines leave different SRAM".into());
    }
    let plain = |o: &Outcome| Outcome {
        engine: Engine::Reference,
        paths: Paths::default(),
        active_pe_cycles: 0,
        ..o.clone()
    };
    if plain(&fast.1) != plain(&reference.1) {
        return Err(format!("{:?}\nis not\n{:?}", fast.1, reference.1));
    }
    Ok(fast)
}

/// The values as an engine has them.
fn rounded(ty: Ty, all: &[f32]) -> Vec<f64> {
    let one = |v: &f32| match ty {
        Ty::F32 => *v as f64,
        Ty::F16 => half::f16::from_f32(*v).to_f64(),
    };
    all.iter().map(one).collect()
}

/// Runs a product, and compares its results and its multiply-adds.
fn check(product: &Product, machine: &Machine, x: &[f32]) -> Result<(Mapped, Outcome), String> {
    let mapped = product.map(machine).map_err(|e| e.to_string())?;
    alike(&mapped, machine)?;
    let (sram, outcome) = run(&mapped, machine, x)?;
    shifted(&outcome, machine)?;
    let got = mapped.read(&sram);
    let (tokens, k, m) = (product.tokens, product.k, product.m);
    let (w, x) = (rounded(product.ty, product.weights), rounded(product.ty, x));
    let sum = |(token, output): (usize, usize)| {
        let sum: f64 = (0..k).map(|f| x[token * k + f] * w[output * k + f]).sum();
        let sum = sum + product.bias.map_or(0.0, |bias| bias[output] as f64);
        if product.relu { sum.max(0.0) } else { sum }
    };
    let want: Vec<f64> = (0..tokens * m).map(|i| sum((i / m, i % m))).collect();
    if got.len() != want.len() {
        return Err(format!("{} results, not {}", got.len(), want.len()));
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64)
        .sqrt()
        .max(1e-3);
    // what the sums in f32 lose, and what a result does in its own type
    let round = if product.ty == Ty::F32 {
        0.0
    } else {
        2f64.powi(-11)
    };
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let e = (*g as f64 - w).abs();
        if e.is_nan() || e > 1e-5 * scale + round * w.abs() {
            return Err(format!("token {}, output {} is {g}, not {w}", i / m, i % m));
        }
    }
    let sent = |w: &&f32| !product.lists || **w != 0.0;
    let theoretical = (product.weights.iter().filter(sent).count() * tokens) as u64;
    let executed: u64 = outcome.pes.iter().map(|pe| pe.operations[0]).sum();
    if executed != theoretical {
        return Err(format!("executed {executed} multiply-adds, not {theoretical}"));
    }
    Ok((mapped, outcome))
}

/// Columns that hold tokens are copies of each other, and live by what comes from the west alone.
fn alike(mapped: &Mapped, machine: &Machine) -> Result<(), String> {
    let stage = &mapped.program.stages[0];
    let [region] = &stage.regions[..] else {
        return Err("not one region".into());
    };
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    if !stage.drains.is_empty()
        || stage
            .feeds
            .iter()
            .any(|f| f.epoch != 1 || f.side != meshloom_simulator::Side::West)
    {
        return Err("something else than weights from the west".into());
    }
    let columns = |l: &Lattice| l.places().map(|p| p.0).collect::<std::collections::BTreeSet<_>>();
    let all: std::collections::BTreeSet<u32> = (1..width).collect();
    for block in &region.blocks {
        if columns(&block.at) != all {
            return Err(format!("a block at {:?}", block.at));
        }
        for param in &block.params {
            for (x, y) in block.at.places() {
                if param.value.at(x as i64, y as i64) != param.value.at(1, y as i64) {
                    return Err(format!("parameter {} differs", param.name));
                }
            }
        }
        if block.tasks.iter().any(|t| t.trigger == Trigger::Start) {
            return Err("a task that starts by itself".into());
        }
    }
    // of each router beyond column 0 all routes with their numbers, but for the way east
    let router = |x: u32, y: u32| {
        let number = |e: &Expr| e.at(x as i64, y as i64);
        let here = region
            .routes
            .iter()
            .filter(|r| r.at.places().any(|p| p == (x, y)));
        let mut here: Vec<_> = here
            .map(|r| {
                let positions: Vec<_> = r
                    .positions
                    .iter()
                    .map(|p| {
                        let mut outputs = p.outputs.clone();
                        outputs.retain(|o| *o != Port::East);
                        (p.input, outputs, number(&p.hold))
                    })
                    .collect();
                let filters: Vec<_> = r
                    .filters
                    .iter()
                    .map(|f| (f.output, number(&f.first), number(&f.count), number(&f.period)))
                    .collect();
                let east = r.positions.iter().any(|p| p.outputs.contains(&Port::East));
                let west = r
                    .positions
                    .iter()
                    .any(|p| p.input == Port::West || p.outputs.contains(&Port::West));
                (r.color, positions, filters, east, west)
            })
            .collect();
        here.sort_by_key(|r| r.0);
        here
    };
    for y in 0..height {
        let first: Vec<_> = router(1, y);
        for x in 1..width {
            let here = router(x, y);
            if !here
                .iter()
                .zip(&first)
                .all(|(a, b)| (&a.0, &a.1, &a.2) == (&b.0, &b.1, &b.2))
                || here.len() != first.len()
            {
                return Err(format!("router ({x}, {y}) differs"));
            }
            let east: Vec<_> = here.iter().filter(|r| r.3).collect();
            let whole = east.iter().all(|r| r.1.len() == 1 && r.1[0].1 == [Port::Ramp]);
            if east.len() != (x + 1 < width) as usize || !whole || here.iter().filter(|r| r.4).count() != 1 {
                return Err(format!("router ({x}, {y}) leads elsewhere than east"));
            }
        }
    }
    Ok(())
}

/// In each column but the first everything comes one hop later than in the one before, but for weights at the routers of the first with
/// tokens: these alone wait there for all columns.
fn shifted(outcome: &Outcome, machine: &Machine) -> Result<(), String> {
    let (width, hop) = (machine.mesh.width, machine.router.hop_cycles as u64);
    let west = QueueKind::Router(Port::West);
    let column = |x: u32| {
        outcome
            .arrivals
            .iter()
            .filter(move |a| a.x == x && a.queue != west)
    };
    for x in 2..width {
        let later = (x - 1) as u64 * hop;
        if column(x).count() != column(1).count() {
            return Err(format!("column {x} has other queues than column 1"));
        }
        for (here, first) in column(x).zip(column(1)) {
            let same = (here.y, here.color, here.queue) == (first.y, first.color, first.queue);
            if !same
                || !here
                    .cycles
                    .iter()
                    .copied()
                    .eq(first.cycles.iter().map(|c| c + later))
            {
                return Err(format!("{here:?}\nis not {later} cycles after\n{first:?}"));
            }
        }
        for y in 0..machine.mesh.height {
            let pe = |x: u32| &outcome.pes[(y * width + x) as usize];
            let (here, first) = (pe(x), pe(1));
            let counts = (here.operations, here.slots) == (first.operations, first.slots);
            let times = here.last_busy == first.last_busy + later
                && here.first_busy == first.first_busy.map(|c| c + later)
                && here.first_send == first.first_send.map(|c| c + later)
                && here.last_write == first.last_write.map(|c| c + later);
            if !counts || !times || here.classes[..3] != first.classes[..3] {
                return Err(format!(
                    "PE ({x}, {y}): {here:?}\nis not {later} cycles after\n{first:?}"
                ));
            }
        }
    }
    Ok(())
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
    half: bool,
    bias: bool,
    relu: bool,
    split: bool,
    sets: Vec<String>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sets = (
        1u32..4,
        prop::bool::ANY,
        1u32..3,
        0usize..4,
        1u32..3,
        prop::bool::ANY,
        1u32..4,
    );
    let sets = sets.prop_map(|(depth, long, lanes, edge, input, moves, hop)| {
        // from one slow channel to one in each row
        let edge = ["20e9", "60e9", "220e9", "5e12"][edge];
        vec![
            format!("router.queue_depth={depth}"),
            format!("link.bits={}", if long { 64 } else { 32 }),
            format!("pe.lanes.f32={lanes}"),
            format!("edge.bits_per_second={edge}"),
            format!("pe.input_queue_depth={input}"),
            format!("router.hop_cycles={hop}"),
            format!("pe.moves_first={moves}"),
        ]
    });
    let how = (
        prop::bool::ANY,
        prop::bool::ANY,
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
    ((2u32..8, 2u32..9), sizes, how, sets, 0u64..1000).prop_map(
        |(mesh, (each, k, m, zeros), (lists, half, bias, relu, split), sets, seed)| Case {
            mesh,
            each,
            k: k + mesh.1 as usize - 1,
            m,
            zeros,
            lists,
            half,
            bias,
            relu,
            split,
            sets,
            seed,
        },
    )
}

#[test]
fn products() {
    let cases_n = if cfg!(debug_assertions) { 40 } else { 300 };
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases_n)
    });
    // what was met: dense blocks, lists, lists without elements, several groups, rows without outputs, a channel in the middle of its rows, f16
    let met: RefCell<[usize; 7]> = Default::default();
    let result = runner.run(&cases(), |case| {
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
        let product = Product {
            name: "product",
            tokens,
            k: case.k,
            m: case.m,
            ty: if case.half { Ty::F16 } else { Ty::F32 },
            weights: &weights,
            bias: case.bias.then_some(&bias[..]),
            relu: case.relu,
            lists: case.lists,
            // most in the first rows
            outputs: case.split.then(|| {
                let at = |row: usize| case.m - case.m * (rows - row) * (rows - row) / (rows * rows);
                (0..=rows).map(at).collect()
            }),
            // no room before it for Y, or as much as there is in all
            x: [0, 32, 8192][case.seed as usize % 3],
        };
        let x = values(tokens * case.k, case.seed + 3, 1);
        let (mapped, _) = check(&product, &machine, &x).map_err(TestCaseError::fail)?;
        let mut met = met.borrow_mut();
        met[0] += !case.lists as usize;
        met[1] += case.lists as usize;
        met[2] += (case.lists && weights.iter().all(|w| *w == 0.0)) as usize;
        met[3] += (mapped.group < case.m) as usize;
        met[4] += mapped.outputs.windows(2).any(|o| o[0] == o[1]) as usize;
        let feeds = &mapped.program.stages[0].feeds;
        met[5] += feeds.iter().any(|f| f.row > 0) as usize;
        met[6] += case.half as usize;
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let met = met.into_inner();
    eprintln!("{met:?}");
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
        let one = |i: usize| Product {
            name: ["first", "second", "third"][i],
            tokens,
            k: sizes[i],
            m: sizes[i + 1],
            ty,
            weights: &all[i],
            bias: Some(&biases[i]),
            relu: i < 2,
            lists,
            outputs: None,
            x: 0,
        };
        let mut mapped: Vec<Mapped> = Vec::new();
        for i in 0..3 {
            // how a product splits its features does not depend on where they lie
            let next = (i < 2).then(|| one(i + 1).map(&machine).unwrap().features);
            let x = mapped.last().map_or(0, |m| m.y);
            let product = Product {
                outputs: next,
                x,
                ..one(i)
            };
            mapped.push(product.map(&machine).unwrap_or_else(|e| panic!("{e}")));
        }
        assert_eq!((mapped[1].x, mapped[2].x), (mapped[0].y, mapped[1].y));
        let x = values(tokens * sizes[0], 20, 0);
        let mut sram = mapped[0].place(&x);
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
        let got = mapped[2].read(&sram);
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
            let mut left = mapped[0].place(&x);
            engine::run_on(&program, &machine, &options, &mut left).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(mapped[2].read(&left), got);
        }
    }
}

/// A small product's program.
#[test]
fn program() {
    let machine = mesh(3, 6, &["edge.bits_per_second=60e9"]);
    let weights = values(12 * 8, 1, 8);
    let bias = values(12, 2, 0);
    let product = Product {
        name: "product",
        tokens: 8,
        k: 8,
        m: 12,
        ty: Ty::F32,
        weights: &weights,
        bias: Some(&bias),
        relu: true,
        lists: true,
        outputs: None,
        x: 0,
    };
    check(&product, &machine, &values(64, 3, 0)).unwrap_or_else(|e| panic!("{e}"));
    let mapped = product.map(&machine).unwrap();
    insta::assert_snapshot!(text::print(&mapped.program));
}

#[test]
fn what_does_not_fit_is_refused() {
    let weights = vec![1.0; 64 * 64];
    let product = Product {
        name: "product",
        tokens: 12,
        k: 64,
        m: 64,
        ty: Ty::F32,
        weights: &weights,
        bias: None,
        relu: false,
        lists: true,
        outputs: None,
        x: 0,
    };
    let error = |product: &Product, machine: &Machine| match product.map(machine) {
        Ok(_) => panic!("it fits"),
        Err(e @ (CompileError::DoesNotFit { .. } | CompileError::Unsupported { .. })) => e.to_string(),
        Err(e) => panic!("{e}"),
    };
    let machine = mesh(4, 4, &[]);
    assert!(product.map(&machine).is_ok());
    let all = [
        error(
            &Product {
                tokens: 13,
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                tokens: 0,
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                k: 2,
                m: 2048,
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                weights: &weights[1..],
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                bias: Some(&[1.0]),
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                outputs: Some(vec![0, 64]),
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                outputs: Some(vec![0, 65, 64, 64]),
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                tokens: 3000,
                ..product.clone()
            },
            &machine,
        ),
        error(
            &Product {
                tokens: usize::MAX,
                ..product.clone()
            },
            &mesh(2, 4, &[]),
        ),
        error(&product, &mesh(4, 4, &["pe.sram_bytes=1024"])),
        error(&product, &mesh(4, 4, &["pe.threads=2"])),
        error(&product, &mesh(4, 4, &["router.filters=0"])),
        error(
            &product,
            &mesh(4, 4, &["router.switch_positions=1", "edge.bits_per_second=60e9"]),
        ),
        error(&product, &mesh(1, 4, &[])),
        error(
            &Product {
                x: 8,
                ..product.clone()
            },
            &machine,
        ),
    ];
    insta::assert_snapshot!(all.join("\n"));
}
