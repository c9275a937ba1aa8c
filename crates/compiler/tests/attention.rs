//! The attention kernel alone, straight from its emission: over random shapes, rectangles and machine settings, what its PEs compute
//! agrees with the evaluator, what each PE sends is what the kernel says, and its cost is near what it said.

use meshloom_compiler::kernels::{self, Context, Estimate};
use meshloom_compiler::plan::{Attention, Give, Kind, Layout};
use meshloom_models::{self as models, Graph, evaluate, seeded_inputs};
use meshloom_simulator::engine::{Options, Outcome, Probe, run};
use meshloom_simulator::numerics::{from_bits, to_bits};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine, Side, verify};
use proptest::prelude::*;
use std::sync::Arc;

/// A channel on every row, on both sides.
const EDGE: &str = "edge.bits_per_second=5e12";
/// Colours of the first lanes; those of the others follow.
const INPUT: Color = 3;
const OUTPUT: Color = 7;
const RELAYED: Color = 11;

/// A run of the kernel.
struct Run {
    /// Columns and rows that it used.
    shape: (u32, u32),
    /// What it said of its cost.
    estimate: Estimate,
    /// What came of it.
    outcome: Outcome,
    /// Largest deviation from the evaluator in standard deviations.
    error: f64,
}

fn machine(sets: &[String]) -> Machine {
    let text = include_str!("../../../machines/small.toml");
    Machine::parse("small", text, sets).unwrap_or_else(|e| panic!("{e}"))
}

/// The elements of a wavelet.
fn elements(ty: Ty, w: &Wavelet) -> impl Iterator<Item = f64> + use<> {
    let bits = w.bits;
    (0..w.elements as u32).map(move |i| from_bits(ty, bits, i) as f64)
}

/// The PE between the edge and a lane's entry and exit: lets the input pass, and takes the output and sends it on; if it is slow, it
/// holds the output back.
fn relay(ty: Ty, slow: bool, lane: Color, y: u32, rows: usize, tokens: usize) -> Region {
    let at = Lattice::rect(0, 0, 1, 1);
    let route = |color, input, output| Route {
        color,
        stream: String::new(),
        at,
        positions: vec![Position {
            input,
            outputs: vec![output],
            hold: Expr::Const(1),
        }],
        filters: Vec::new(),
    };
    let (turns, rows, delay) = if slow { (rows, 1, 200) } else { (1, rows, 1) };
    let desc = |place| Descriptor {
        ty,
        shape: vec![Val::Imm(rows as i64), Val::Imm(tokens as i64)],
        place,
    };
    let again = |r: u8, to: u32| {
        let left = Instr::Sub(r, Val::Reg(r), Val::Imm(1));
        [left, Instr::Branch(Cond::Ne, Val::Reg(r), Val::Imm(0), to)]
    };
    let mut code = vec![
        Instr::Desc(
            0,
            desc(Place::Out {
                color: RELAYED + lane,
                flag: false,
            }),
        ),
        Instr::Desc(1, desc(Place::In(OUTPUT + lane))),
        Instr::Set(0, Val::Imm(turns as i64)),
        Instr::Vector(Vector::Map {
            op: Op::Mov,
            dst: 0,
            a: Operand::Desc(1),
            b: None,
            count: Count::None,
        }),
        Instr::Set(1, Val::Imm(delay)),
    ];
    code.extend(again(1, 5));
    code.extend(again(0, 3));
    code.push(Instr::Halt);
    Region {
        name: "relay".into(),
        x: 0,
        y,
        width: 1,
        height: 1,
        routes: vec![
            route(INPUT + lane, Port::West, Port::East),
            route(OUTPUT + lane, Port::East, Port::Ramp),
            route(RELAYED + lane, Port::Ramp, Port::West),
        ],
        blocks: vec![Block {
            at,
            params: Vec::new(),
            memory: Vec::new(),
            tasks: vec![Task {
                name: "main".into(),
                trigger: Trigger::Start,
                blocked: false,
                entry: 0,
            }],
            labels: Vec::new(),
            code,
        }],
    }
}

/// Runs the kernel in the part of a rectangle that it uses; `None` where it has no use for such a rectangle.
#[allow(clippy::too_many_arguments)] // what a test may vary
fn attend(
    a: &Attention,
    machine: &Machine,
    ty: Ty,
    lanes: usize,
    items: usize,
    (width, height): (u32, u32),
    slow: bool,
    seed: u64,
) -> Result<Option<Run>, String> {
    let features = a.heads * a.width;
    let mut graph = Graph::new("attention");
    let x: Vec<_> = ["q", "k", "v"]
        .iter()
        .map(|n| graph.add_input(*n, &[1, a.tokens, features]))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    let op = models::Op::Attention {
        heads: a.heads,
        causal: a.causal,
    };
    let y = graph.add_node("y", op, &x, "y").map_err(|e| e.to_string())?;
    graph.add_output(y).map_err(|e| e.to_string())?;
    let inputs = seeded_inputs(&graph, seed, items);

    let kind = Kind::Attention(a.clone());
    let kernel = kernels::of(&kind);
    let layout = |features: usize, order: Vec<usize>| Layout {
        outer: a.tokens,
        features,
        inner: 1,
        order: Some(Arc::new(order)),
        lanes,
        bands: None,
    };
    let c = Context {
        machine,
        ty,
        items,
        inputs: vec![layout(3 * features, a.input_order())],
        input_colors: vec![(0..lanes as Color).map(|l| INPUT + l).collect()],
        slack: vec![1],
        keep_all: false,
        output: layout(features, a.output_order()),
        output_colors: (0..lanes as Color).map(|l| OUTPUT + l).collect(),
        base: 0,
    };
    let (w, h) = kernel.fit(&c, width, height);
    if w > width || h > height {
        return Ok(None);
    }
    let Some(estimate) = kernel.estimate(&c, w, h) else {
        return Err(format!("{w} x {h} fits, but has no estimate"));
    };
    let mut emitted = kernel.emit("attention", &c, w, h);
    for block in &emitted.region.blocks {
        let data = block
            .memory
            .iter()
            .map(|b| b.address + b.bytes)
            .max()
            .unwrap_or(0);
        let bytes = data as u64 + block.code.len() as u64 * machine.pe.instruction_bytes as u64;
        if bytes != estimate.bytes {
            return Err(format!("{bytes} bytes, said to be {}", estimate.bytes));
        }
    }

    // beside the relays: the lanes come from there, and go there
    emitted.region.x = 1;
    let per = kernels::per_wavelet(machine, ty) as usize;
    let tokens: Vec<usize> = (0..a.tokens).collect();
    let mut stage = meshloom_simulator::program::Stage::default();
    for lane in 0..lanes {
        let color = lane as Color;
        let (entry, exit) = (emitted.entries[0][lane], &emitted.exits[lane]);
        if entry.0 != 0 || exit.at != entry {
            return Err(format!("enters at {entry:?}, leaves at {:?}", exit.at));
        }
        let at = |r: &&mut Route| r.color == INPUT + color && r.at.places().any(|p| p == entry);
        let route = emitted.region.routes.iter_mut().find(at).ok_or("no entry")?;
        route.positions[0].input = Port::West;
        let positions = exit.from.iter().map(|(input, hold)| Position {
            input: *input,
            outputs: vec![Port::West],
            hold: hold.clone(),
        });
        emitted.region.routes.push(Route {
            color: OUTPUT + color,
            stream: "y".into(),
            at: Lattice::rect(0, exit.at.1, 1, 1),
            positions: positions.collect(),
            filters: Vec::new(),
        });
        let l = &c.inputs[0];
        let mut data = Vec::new();
        for item in 0..items {
            let value = |place: usize, token: usize| {
                let feature = l.index(place, token) % (3 * features);
                let of = &inputs[["q", "k", "v"][feature / features]];
                of[(item * a.tokens + token) * features + feature % features]
            };
            for place in l.lane(lane).0..l.lane(lane).1 {
                for some in tokens.chunks(per) {
                    let bits = some.iter().enumerate().fold(0, |bits, (i, t)| {
                        bits | to_bits(ty, value(place, *t)) << (i as u32 * ty.bits())
                    });
                    data.push(Wavelet {
                        bits,
                        elements: some.len() as u8,
                        // where the producer's blocks end does not matter
                        flag: (place + some[0]).is_multiple_of(3),
                    });
                }
            }
        }
        stage.feeds.push(Feed {
            name: "x".into(),
            side: Side::West,
            row: entry.1,
            color: INPUT + color,
            epoch: 0,
            data: data.into(),
        });
        stage.drains.push(Drain {
            name: "y".into(),
            side: Side::West,
            row: entry.1,
            color: RELAYED + color,
            wavelets: (items * features / lanes * a.tokens.div_ceil(per)) as u64,
        });
        stage.regions.push(relay(
            ty,
            slow,
            color,
            entry.1,
            items * features / lanes,
            a.tokens,
        ));
    }
    stage.regions.push(emitted.region);
    let program = Program::single("attention", stage);
    verify::verify(&program, machine).map_err(|all| {
        let all: Vec<String> = all.iter().map(|v| v.to_string()).collect();
        all.join("\n")
    })?;
    let probes = emitted.gives.iter().map(|g| Probe {
        stage: 0,
        x: 1 + g.at.0,
        y: g.at.1,
        color: OUTPUT + (g.features.0 / (features / lanes)) as Color,
    });
    let options = Options {
        probes: probes.collect(),
        ..Options::default()
    };
    let outcome = run(&program, machine, &options).map_err(|e| e.to_string())?;

    let size = a.tokens * features;
    let mut got = vec![f64::NAN; items * size];
    for (lane, drain) in outcome.drains.iter().enumerate() {
        let (first, end) = c.output.lane(lane);
        let places = (0..items).flat_map(|item| (first..end).map(move |place| (item, place)));
        let mut at = places.flat_map(|(item, place)| (0..a.tokens).map(move |t| (item, place, t)));
        for v in drain.iter().flat_map(|l| elements(ty, &l.wavelet)) {
            let (item, place, token) = at.next().ok_or("more results than asked for")?;
            got[item * size + c.output.index(place, token)] = v;
        }
    }
    check_gives(&emitted.gives, &outcome, &c, &got)?;

    let mut want = Vec::new();
    for item in 0..items {
        let round = |v: &f32| from_bits(ty, to_bits(ty, *v), 0) as f64;
        let of_item = |v: &Vec<f32>| v[item * size..(item + 1) * size].iter().map(round).collect();
        let inputs = inputs.iter().map(|(n, v)| (n.clone(), of_item(v))).collect();
        let all = evaluate(&graph, &inputs).map_err(|e| e.to_string())?;
        want.extend(all[y.0 as usize].clone().ok_or("no result")?);
    }
    // the standard deviation around 0, their expected mean: of two or three results around their own it may be as good as 0
    let deviation = (want.iter().map(|v| v.powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let off = want.iter().zip(&got).map(|(w, g)| (w - g).abs() / deviation);
    // a missing result is as wrong as can be
    let error = off.fold(
        0.0,
        |most: f64, e| if e.is_nan() { f64::INFINITY } else { most.max(e) },
    );
    Ok(Some(Run {
        shape: (w, h),
        estimate,
        outcome,
        error,
    }))
}

/// What each PE sends is what the kernel says that it gives, and all is given.
fn check_gives(gives: &[Give], outcome: &Outcome, c: &Context, got: &[f64]) -> Result<(), String> {
    let layout = &c.output;
    let size = layout.features * layout.length();
    let mut given = 0;
    for (give, sent) in gives.iter().zip(&outcome.probes) {
        let mut sent = sent.iter().flat_map(|w| elements(c.ty, w));
        for item in 0..c.items {
            for feature in give.places() {
                for position in give.positions.iter().flat_map(|(from, to)| *from..*to) {
                    let v = sent.next().ok_or("a PE sends less than it gives")?;
                    let g = got[item * size + layout.index(feature, position)];
                    if v != g {
                        return Err(format!("{:?} gives {v}, not {g}", give.at));
                    }
                    given += 1;
                }
            }
        }
        if sent.next().is_some() {
            return Err(format!("{:?} sends more than it gives", give.at));
        }
    }
    match given == got.len() {
        true => Ok(()),
        false => Err(format!("{given} of {} results are given", got.len())),
    }
}

/// Multiply-adds of activations that the PEs executed.
fn products(outcome: &Outcome) -> u64 {
    outcome.pes.iter().map(|p| p.operations[1]).sum()
}

/// Those that attention asks for.
fn asked(a: &Attention, items: usize) -> u64 {
    let pairs = match a.causal {
        true => a.tokens * (a.tokens + 1) / 2,
        false => a.tokens * a.tokens,
    };
    (2 * items * a.heads * a.width * pairs) as u64
}

fn settings() -> impl Strategy<Value = Vec<String>> {
    let network = (1u32..4, prop::bool::ANY, 1u32..3, 1u32..4, 1u32..4);
    let ports = prop::sample::select(vec![64u32, 128]);
    let core = (1u32..9, 1u32..5, ports, 1u32..3, prop::bool::ANY);
    (network, core).prop_map(
        |((depth, wide, hop, ramp, input), (issue, queue, port, lanes, first))| {
            vec![
                EDGE.into(),
                format!("router.queue_depth={depth}"),
                format!("link.bits={}", if wide { 64 } else { 32 }),
                format!("router.hop_cycles={hop}"),
                format!("router.ramp_cycles={ramp}"),
                format!("pe.input_queue_depth={input}"),
                format!("pe.cost.issue={issue}"),
                format!("pe.move_queue={queue}"),
                format!("pe.sram.port_bits={port}"),
                format!("pe.lanes.f32={lanes}"),
                format!("pe.moves_first={first}"),
            ]
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn agrees_with_the_evaluator(
        heads in 1usize..6,
        groups in prop::sample::select(vec![1usize, 2, 4]),
        lanes in prop::sample::select(vec![1usize, 2, 4]),
        width in 1usize..7,
        tokens in 2usize..28,
        causal in prop::bool::ANY,
        half in prop::bool::ANY,
        items in 1usize..4,
        columns in 1u32..15,
        rows in 1u32..13,
        sets in settings(),
        slow in prop::bool::ANY,
        seed in 0u64..1000,
    ) {
        // heads in equal groups, groups in equal lanes
        let (groups, lanes) = (groups.max(lanes), lanes);
        let heads = heads * groups;
        prop_assume!(heads <= 8);
        let a = Attention { heads, width, causal, tokens, groups };
        let ty = if half { Ty::F16 } else { Ty::F32 };
        let machine = machine(&sets);
        let run = attend(&a, &machine, ty, lanes, items, (columns, rows), slow, seed).map_err(TestCaseError::fail)?;
        let least_rows = if (columns as usize) < heads / groups { 2 } else { 1 };
        let fits = rows as usize >= lanes * least_rows;
        prop_assert_eq!(run.is_some(), fits, "a rectangle {} x {}", columns, rows);
        let Some(run) = run else { return Ok(()) };
        let most = if ty == Ty::F32 { 1e-5 } else { 2e-2 };
        prop_assert!(run.error <= most, "off by {:.1e} on {:?}", run.error, run.shape);
        let (did, least) = (products(&run.outcome), asked(&a, items));
        let all = asked(&Attention { causal: false, ..a }, items);
        prop_assert!(least <= did && did <= all, "{} products, asked for {} of {}", did, least, all);
    }
}

/// A run, and the cycles between two items.
fn interval(a: &Attention, machine: &Machine, ty: Ty, lanes: usize, rectangle: (u32, u32)) -> (Run, u64) {
    let of = |items| {
        attend(a, machine, ty, lanes, items, rectangle, false, 1)
            .unwrap_or_else(|e| panic!("{e}"))
            .expect("a rectangle that fits")
    };
    let (one, three) = (of(1), of(3));
    let cycles = (three.outcome.cycles - one.outcome.cycles) / 2;
    (three, cycles)
}

#[test]
fn estimate_is_near_what_is_simulated() {
    let machine = machine(&[EDGE.into()]);
    let a = |heads, width, tokens, causal, groups| Attention {
        heads,
        width,
        causal,
        tokens,
        groups,
    };
    let (gpt, four) = (a(4, 32, 64, true, 1), a(4, 32, 64, true, 4));
    let cases = [
        (&gpt, Ty::F32, 1, (4, 4)),
        (&gpt, Ty::F32, 1, (4, 8)),
        (&gpt, Ty::F32, 1, (4, 16)),
        (&gpt, Ty::F32, 1, (8, 4)),
        (&gpt, Ty::F32, 1, (1, 16)),
        (&gpt, Ty::F32, 1, (2, 16)),
        (&gpt, Ty::F16, 1, (4, 8)),
        (&a(4, 32, 64, true, 2), Ty::F32, 2, (4, 8)),
        (&four, Ty::F32, 4, (4, 4)),
        (&four, Ty::F32, 4, (4, 8)),
        (&four, Ty::F32, 4, (8, 8)),
        (&four, Ty::F32, 4, (4, 16)),
        (&four, Ty::F32, 4, (8, 16)),
        (&four, Ty::F32, 1, (4, 8)),
        (&a(4, 32, 64, false, 1), Ty::F32, 1, (4, 8)),
        (&a(2, 16, 128, true, 1), Ty::F32, 1, (2, 8)),
        (&a(2, 16, 128, true, 2), Ty::F32, 2, (4, 8)),
    ];
    println!(
        "heads width tokens causal groups lanes type  used  interval  estimate  ratio  products/asked  utilisation  bytes"
    );
    for (a, ty, lanes, rectangle) in cases {
        let (run, cycles) = interval(a, &machine, ty, lanes, rectangle);
        let ratio = run.estimate.cycles as f64 / cycles as f64;
        let multipliers = match ty {
            Ty::F32 => machine.pe.lanes.f32,
            Ty::F16 => machine.pe.lanes.f16,
        } as f64;
        let least = asked(a, 1) as f64;
        let pes = (run.shape.0 * run.shape.1) as f64;
        println!(
            "{:>5} {:>5} {:>6} {:>6} {:>6} {lanes:>5} {ty:?} {:>3}x{:<3} {cycles:>8} {:>9}  {ratio:>5.2} {:>15.3} {:>11.1}% {:>6}",
            a.heads,
            a.width,
            a.tokens,
            a.causal,
            a.groups,
            run.shape.0,
            run.shape.1,
            run.estimate.cycles,
            products(&run.outcome) as f64 / 3.0 / least,
            100.0 * least / (cycles as f64 * pes * multipliers),
            run.estimate.bytes
        );
        assert!((0.85..=1.15).contains(&ratio), "{a:?} on {:?}", run.shape);
    }
}
