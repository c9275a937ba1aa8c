//! The machine is a function of its description and its program. Which PEs an engine visits, and in which order, must show nowhere: not
//! in the outcome, not in the faults and deadlocks, not in the report's bytes. Compiled models and random programs (links shared by
//! colours, multicasts, switches, filters, tasks, microthreads, queues of any depth) are run with every order. Each PE has one class in
//! each cycle, and a miscount of one is found.

mod common;

use common::{Choices, Model, behind, comparable, on_both, residual, small, tiny};
use meshloom::simulate::{self, Job};
use meshloom_compiler::compile;
use meshloom_models::{builders, flops, seeded_inputs};
use meshloom_simulator::engine::{self, Engine, Landed, Options, Outcome, Probe, RunError, Visit};
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine, Side, verify};
use meshloom_traces::count::{CountError, RunInput, count_run};
use meshloom_traces::report::{Operations, Report, RunName};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A colour that a PE may use, whether it arrives, and how many wavelets.
type Stream = (Color, bool, u32);
/// A counter of a report's kernel.
type Counter = fn(&mut meshloom_traces::report::Kernel) -> &mut u64;

const ORDERS: [Visit; 5] = [
    Visit::Active,
    Visit::All,
    Visit::Shuffled(1),
    Visit::Shuffled(0xfeed),
    Visit::Shuffled(77_777),
];

fn classes_add_up(o: &Outcome) -> Result<(), String> {
    for (i, pe) in o.pes.iter().enumerate() {
        let sum: u64 = pe.classes.iter().sum();
        let load: u64 = pe.load_classes.iter().sum();
        let loaded = o.load_before(o.cycles);
        if sum != o.cycles {
            return Err(format!(
                "PE number {i}: classes add up to {sum} of {} cycles",
                o.cycles
            ));
        }
        if load != loaded {
            return Err(format!(
                "PE number {i}: classes in load add up to {load} of {loaded} cycles"
            ));
        }
    }
    Ok(())
}

/// The result in every order, which must be one.
fn in_all_orders(
    program: &Program,
    machine: &Machine,
    options: &Options,
) -> Result<Result<Outcome, RunError>, String> {
    let run = |visit| {
        engine::run(
            program,
            machine,
            &Options {
                engine: Engine::Reference,
                visit,
                ..options.clone()
            },
        )
        .map(comparable)
    };
    let first = run(ORDERS[0]);
    for visit in &ORDERS[1..] {
        let other = run(*visit);
        if other != first {
            return Err(match (&first, &other) {
                (Ok(a), Ok(b)) => {
                    let pe = a.pes.iter().zip(&b.pes).position(|(a, b)| a != b);
                    let of = pe.map(|i| (i, a.pes[i], b.pes[i]));
                    format!(
                        "{visit:?}: {} and {} cycles, drains equal: {}, first PE that differs: {of:?}",
                        a.cycles,
                        b.cycles,
                        a.drains == b.drains
                    )
                }
                (a, b) => format!(
                    "{visit:?}: {:?} and {:?}",
                    a.as_ref().map(|o| o.cycles),
                    b.as_ref().map(|o| o.cycles)
                ),
            });
        }
    }
    if let Ok(o) = &first {
        classes_add_up(o)?;
    }
    if on_both(program, machine, options)? != first {
        return Err("not the same twice".into());
    }
    Ok(first)
}

fn mlp() -> Model {
    Model::new(
        "mlp",
        builders::mlp(&[12, 10, 7], 2, 1).unwrap_or_else(|e| panic!("{e}")),
        3,
        false,
        Ty::F32,
    )
}

fn models() -> Vec<(Model, Machine)> {
    vec![
        (mlp(), tiny()),
        (
            residual(),
            small(&["mesh.width=24", "mesh.height=5", "edge.bits_per_second=108.8e9"]),
        ),
    ]
}

#[test]
fn compiled_models_do_not_depend_on_the_visits() {
    for (model, machine) in models() {
        let compiled = model.compile(&machine);
        let probes = compiled
            .probes
            .iter()
            .flat_map(|p| p.at.iter().copied())
            .collect();
        let outcome = in_all_orders(
            &compiled.program,
            &machine,
            &Options {
                probes,
                ..Options::default()
            },
        );
        let outcome = outcome
            .and_then(|r| r.map_err(|e| e.to_string()))
            .unwrap_or_else(|e| panic!("{}: {e}", model.name));
        assert!(outcome.cycles > 100 && outcome.probes.iter().any(|p| !p.is_empty()));
    }
}

/// A machine with queues of any depth, few or many channels, and a program of one to three stages for it.
fn random(all: &[u16]) -> (Machine, Program, Vec<Probe>) {
    let c = &mut Choices::new(all);
    let (w, h) = (1 + c.below(5), 1 + c.below(4));
    let channels = c.below(2 * h + 1);
    let sets = [
        format!("mesh.width={w}"),
        format!("mesh.height={h}"),
        format!("pe.input_queue_depth={}", 1 + c.below(8)),
        format!("pe.output_queue_depth={}", 1 + c.below(8)),
        format!("router.queue_depth={}", 1 + c.below(8)),
        format!("router.hop_cycles={}", 1 + c.below(3)),
        format!("router.ramp_cycles={}", 1 + c.below(3)),
        format!("pe.moves_first={}", c.below(2) == 0),
        format!("pe.move_queue={}", 1 + c.below(4)),
        format!("pe.cost.task_launch={}", c.below(3)),
        format!("edge.latency_cycles={}", 1 + c.below(9)),
        // no channel's worth gives one channel with a gap
        format!("edge.bits_per_second={}", 27.2e9 * channels as f64 + 9.1e9),
    ];
    let machine = small(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    let mut stages: Vec<Stage> = Vec::new();
    let mut probes = Vec::new();
    let count = if c.one_in(3) { 2 + c.below(2) } else { 1 };
    for number in 0..count {
        // now and then the same again, all of it resident
        let next = match stages.last() {
            Some(before) if c.one_in(5) => before.clone(),
            _ => {
                let (stage, sent) = random_stage(c, &machine, &stages);
                probes.extend(sent.into_iter().map(|p| Probe { stage: number, ..p }));
                stage
            }
        };
        stages.push(next);
    }
    let name = "random".into();
    (machine, Program { name, stages }, probes)
}

/// Stage, drain and wavelets of all drains that get any.
fn drained(stages: &[Stage]) -> Vec<(u32, u32, u32)> {
    let of = |(s, stage): (usize, &Stage)| {
        let drains = stage.drains.iter().enumerate();
        let all = drains.map(move |(d, drain)| (s as u32, d as u32, drain.wavelets as u32));
        all.collect::<Vec<_>>()
    };
    let all = stages.iter().enumerate().flat_map(of);
    all.filter(|d| d.2 > 0).collect()
}

/// Any spans of one of these.
fn random_spans(c: &mut Choices, drained: &[(u32, u32, u32)]) -> Vec<Span> {
    let (stage, drain, all) = drained[c.below(drained.len() as u32) as usize];
    let first = c.below(all + 1);
    let count = c.below(all - first + 1);
    let span = |first, count, flag_every| Span {
        stage,
        drain,
        first,
        count,
        flag_every,
    };
    let tail = span(first.into(), count.into(), c.below(4).into());
    vec![span(0, first.into(), first.into()), tail]
}

/// Rows of pieces of what left before, put together anew.
fn random_cut(c: &mut Choices, drained: &[(u32, u32, u32)]) -> Cut {
    let (ty, per) = match c.below(12) {
        10 => (Ty::F16, 1),
        11 => (Ty::F16, 2),
        _ => (Ty::F32, 1),
    };
    let rows = 1 + c.below(3);
    let pieces = (0..1 + c.below(3)).map(|_| {
        if c.one_in(4) {
            let (bits, count) = (0x3c00 + c.below(9), c.below(4).into());
            return Piece::Fill { bits, count };
        }
        let (stage, drain, all) = drained[c.below(drained.len() as u32) as usize];
        let step = c.below(all / rows + 1);
        let room = all - (rows - 1) * step;
        let first = c.below(room + 1);
        let elements = (room - first) * per;
        let skip = c.below(elements.min(3) + 1);
        Piece::Kept {
            stage,
            drain,
            first: first.into(),
            skip: skip.into(),
            count: c.below(elements - skip + 1).into(),
            step: step.into(),
        }
    });
    Cut {
        ty,
        per,
        rows: rows.into(),
        pieces: pieces.collect(),
    }
}

/// A stage for the machine: trees of routes, code that sends and receives, feeds from the host and from the stages before.
fn random_stage(c: &mut Choices, machine: &Machine, before: &[Stage]) -> (Stage, Vec<Probe>) {
    let (w, h) = (machine.mesh.width, machine.mesh.height);
    let edge = machine.channels();
    let back = drained(before);
    let mut stage = Stage::default();
    let mut region = Region {
        name: "r".into(),
        x: 0,
        y: 0,
        width: w,
        height: h,
        routes: Vec::new(),
        blocks: Vec::new(),
    };
    // what each PE may send and receive, by colour, with the stream's length
    let mut may: BTreeMap<(u32, u32), Vec<Stream>> = BTreeMap::new();
    let streams = 1 + c.below(5);
    for color in 0..streams as Color {
        let mut length = match c.below(6) {
            0 => 0,
            n => n * 3 + c.below(3),
        };
        let fed_back = !back.is_empty() && c.below(4) > 0;
        let from_edge = fed_back || c.one_in(3);
        let (x, y) = if from_edge {
            let channel = &edge[c.below(edge.len() as u32) as usize];
            let port = if channel.side == Side::West {
                Port::West
            } else {
                Port::East
            };
            let data = if fed_back && c.one_in(3) {
                FeedData::Cut(random_cut(c, &back))
            } else if fed_back {
                FeedData::Drained(random_spans(c, &back))
            } else {
                let one = |i| Wavelet {
                    bits: (i as f32 + 0.5).to_bits() as u64,
                    elements: 1,
                    flag: c.one_in(3),
                };
                FeedData::from((0..length).map(one).collect::<Vec<_>>())
            };
            length = data.len() as u32;
            stage.feeds.push(Feed {
                name: "f".into(),
                side: channel.side,
                row: channel.row,
                color,
                epoch: c.below(2),
                data,
            });
            (
                (if channel.side == Side::West { 0 } else { w - 1 }, port),
                channel.row,
            )
        } else {
            ((c.below(w), Port::Ramp), c.below(h))
        };
        let (x, input) = x;
        if input == Port::Ramp {
            may.entry((x, y)).or_default().push((color, true, length));
        }
        // a tree: each router sends to the ramp, to neighbours that are not in it yet, or out
        let mut seen = vec![(x, y)];
        let mut ahead = vec![(x, y, input)];
        while let Some((x, y, input)) = ahead.pop() {
            let mut outputs = Vec::new();
            for p in Port::ALL {
                let to = match p {
                    Port::North if y > 0 => (x, y - 1),
                    Port::East if x + 1 < w => (x + 1, y),
                    Port::South if y + 1 < h => (x, y + 1),
                    Port::West if x > 0 => (x - 1, y),
                    Port::East | Port::West => {
                        let side = if p == Port::West { Side::West } else { Side::East };
                        if p != input && edge.iter().any(|c| c.side == side && c.row == y) && c.one_in(2) {
                            outputs.push(p);
                            let wavelets = if c.one_in(6) { c.below(20) } else { length };
                            stage.drains.push(Drain {
                                name: "d".into(),
                                side,
                                row: y,
                                color,
                                wavelets: wavelets as u64,
                            });
                        }
                        continue;
                    }
                    _ => continue,
                };
                if p != input && p != Port::Ramp && !seen.contains(&to) && c.below(5) < 2 {
                    seen.push(to);
                    ahead.push((to.0, to.1, p.opposite()));
                    outputs.push(p);
                }
            }
            if outputs.is_empty() || c.one_in(2) {
                outputs.push(Port::Ramp);
                may.entry((x, y)).or_default().push((color, false, length));
            }
            let hold = |c: &mut Choices| {
                if c.one_in(3) {
                    Expr::X
                } else {
                    Expr::Const(1 + c.below(3) as i64)
                }
            };
            let mut positions = vec![Position {
                input,
                outputs: outputs.clone(),
                hold: hold(c),
            }];
            if c.one_in(4) {
                // fewer outputs for a while
                let n = 1 + c.below(outputs.len() as u32) as usize;
                positions.push(Position {
                    input,
                    outputs: outputs[..n].to_vec(),
                    hold: hold(c),
                });
            }
            if c.one_in(6) && input != Port::Ramp {
                // another sender joins
                positions.push(Position {
                    input: Port::Ramp,
                    outputs: outputs.clone(),
                    hold: hold(c),
                });
                may.entry((x, y)).or_default().push((color, true, c.below(6)));
            }
            let mut filters = Vec::new();
            if c.one_in(5) {
                let output = outputs[c.below(outputs.len() as u32) as usize];
                let (first, count, period) = (c.below(4), c.below(6), c.below(8));
                filters.push(Filter {
                    output,
                    first: (first as i64).into(),
                    count: (count as i64).into(),
                    period: (period as i64).into(),
                });
            }
            region.routes.push(Route {
                color,
                stream: format!("s{color}"),
                at: Lattice::rect(x, y, 1, 1),
                positions,
                filters,
            });
        }
    }
    if c.one_in(2) {
        stage.priority = vec![(streams - 1) as Color];
    }
    let mut probes = Vec::new();
    for ((x, y), ports) in may {
        probes.extend(ports.iter().filter(|p| p.1).map(|p| Probe {
            stage: 0,
            x,
            y,
            color: p.0,
        }));
        if c.one_in(12) {
            continue;
        }
        region.blocks.push(code(c, Lattice::rect(x, y, 1, 1), &ports));
    }
    stage.regions.push(region);
    (stage, probes)
}

/// Sends and receives in the main thread, in microthreads and in data tasks.
fn code(c: &mut Choices, at: Lattice, ports: &[(Color, bool, u32)]) -> Block {
    const SPAN: u32 = 64;
    let mut code = Vec::new();
    let mut tasks = vec![Task {
        name: "main".into(),
        trigger: Trigger::Start,
        blocked: false,
        entry: 0,
    }];
    let mut received: Vec<(Color, u32)> = Vec::new();
    let memory = |i: usize, n: u32| Descriptor {
        ty: Ty::F32,
        shape: vec![Val::Imm(n as i64)],
        place: Place::Memory {
            base: Val::Imm((i as u32 * 4 * SPAN) as i64),
            strides: vec![Val::Imm(1)],
            wide: i.is_multiple_of(2),
        },
    };
    let fabric = |color, n: u32, out: Option<bool>| Descriptor {
        ty: Ty::F32,
        shape: vec![Val::Imm(n as i64)],
        place: out.map_or(Place::In(color), |flag| Place::Out { color, flag }),
    };
    let mut data_tasks = Vec::new();
    let mut waits = Vec::new();
    for (i, &(color, sends, length)) in ports.iter().enumerate() {
        // now and then another number than the stream's
        let n = if c.one_in(12) { c.below(20) } else { length };
        if !sends && c.one_in(5) {
            data_tasks.push((color, n));
            continue;
        }
        let (a, b) = (2 * i as u8, 2 * i as u8 + 1);
        code.push(Instr::Desc(a, memory(i, n)));
        let flag = c.one_in(2);
        let mut stream = fabric(color, n, sends.then_some(flag));
        match c.below(60) {
            // a fault that the verifier cannot foresee: another extent from a register, or halves where words come
            58 => {
                code.push(Instr::Set(7, Val::Imm(n as i64 + 1)));
                stream.shape = vec![Val::Reg(7)];
            }
            59 => stream.ty = Ty::F16,
            _ => {}
        }
        code.push(Instr::Desc(b, stream));
        let op = [Op::Mov, Op::Add, Op::Max, Op::Exp][c.below(4) as usize];
        let other = (!matches!(op, Op::Mov | Op::Exp)).then_some(Operand::Imm(0.25));
        let (dst, from) = if sends { (b, a) } else { (a, b) };
        // passing on what another port receives
        let source = match received.iter().find(|(_, m)| *m == n) {
            Some(&(other, _)) if sends && c.one_in(3) => {
                code.push(Instr::Desc(40, fabric(other, n, None)));
                Operand::Desc(40)
            }
            _ => Operand::Desc(from),
        };
        if !sends {
            received.push((color, n));
        }
        let v = Vector::Map {
            op,
            dst,
            a: source,
            b: other,
            count: Count::Other,
        };
        if c.one_in(2) {
            let thread = 1 + c.below(3) as u8;
            code.push(Instr::Async(thread, v, None));
            if c.one_in(2) {
                waits.push(Instr::Wait(
                    thread,
                    if c.one_in(2) {
                        Some(Val::Imm(c.below(n + 1) as i64))
                    } else {
                        None
                    },
                ));
            }
        } else {
            code.push(Instr::Vector(v));
        }
        if c.one_in(3) {
            code.push(Instr::Set(3, Val::Imm(c.below(9) as i64)));
            code.push(Instr::Mul(4, Val::Reg(3), Val::Imm(7)));
        }
        if c.one_in(4) && !waits.is_empty() {
            code.push(waits.remove(0));
        }
    }
    code.append(&mut waits);
    if data_tasks.is_empty() {
        code.push(Instr::Halt);
    } else {
        // r5 counts down what is still to come
        let all: u32 = data_tasks.iter().map(|t| t.1).sum();
        code.push(Instr::Set(5, Val::Imm(all as i64)));
        code.push(if all == 0 { Instr::Halt } else { Instr::End });
        for (k, (color, _)) in data_tasks.iter().enumerate() {
            let entry = code.len() as u32;
            // they may begin before the main task ends: the count must be there first
            tasks.push(Task {
                name: format!("t{k}"),
                trigger: Trigger::Data(*color),
                blocked: false,
                entry,
            });
            code.push(Instr::Sub(5, Val::Reg(5), Val::Imm(1)));
            code.push(Instr::Add(6, Val::Reg(6), Val::Reg(0)));
            code.push(Instr::Branch(Cond::Ne, Val::Reg(5), Val::Imm(0), entry + 4));
            code.push(Instr::Halt);
            code.push(Instr::End);
        }
    }
    let memory = vec![Buffer {
        name: "m".into(),
        address: 0,
        bytes: 4 * SPAN * (ports.len() as u32 + 1),
    }];
    Block {
        at,
        params: Vec::new(),
        memory,
        tasks,
        labels: Vec::new(),
        code,
    }
}

fn fed_back(feed: &Feed) -> bool {
    !feed.data.is_empty() && !matches!(feed.data, FeedData::Host(_))
}

/// Behind an empty stage all of the program happens as before, only later (rule M2).
fn begun_later(program: &Program, machine: &Machine, o: &Outcome) -> Result<(), String> {
    let late = behind(Stage::default(), program);
    let late = engine::run(&late, machine, &Options::default()).map_err(|e| e.to_string())?;
    let by = late.stages[1].begin;
    let earlier = |l: &Landed| Landed {
        cycle: l.cycle - by,
        ..*l
    };
    let drains: Vec<Vec<Landed>> = late
        .drains
        .iter()
        .map(|d| d.iter().map(earlier).collect())
        .collect();
    if drains != o.drains || late.cycles != o.cycles + by {
        return Err(format!(
            "begun {by} cycles later, {} became {}",
            o.cycles, late.cycles
        ));
    }
    for (a, b) in o.stages.iter().zip(&late.stages[1..]) {
        let epochs = |e: &[u64], by| e.iter().map(|e| e - by).collect::<Vec<_>>();
        let same = epochs(&a.epochs, 0) == epochs(&b.epochs, by)
            && (a.begin + by, a.load_end + by, a.end + by) == (b.begin, b.load_end, b.end)
            && a.pes.iter().zip(b.pes.iter()).all(|(a, b)| {
                (a.classes, a.load_classes, a.slots) == (b.classes, b.load_classes, b.slots)
                    && a.first_busy.map(|c| c + by) == b.first_busy
                    && a.last_write.map(|c| c + by) == b.last_write
            });
        if !same {
            return Err(format!(
                "a stage that began in {} differs {by} cycles later",
                a.begin
            ));
        }
    }
    Ok(())
}

#[test]
fn random_programs_do_not_depend_on_the_visits() {
    let kinds = RefCell::new(BTreeMap::<&str, u32>::new());
    let config = Config {
        cases: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&prop::collection::vec(any::<u16>(), 0..250), |all| {
        let (machine, program, probes) = random(&all);
        let kind = if let Err(v) = verify::verify(&program, &machine) {
            prop_assert!(!v.is_empty());
            if std::env::var_os("REFUSED").is_some() {
                println!("{}", v[0]);
            }
            "refused"
        } else {
            let options = Options {
                probes,
                max_cycles: Some(1500),
                ..Options::default()
            };
            let text = || meshloom_simulator::text::print(&program);
            match in_all_orders(&program, &machine, &options) {
                Err(e) => return Err(TestCaseError::fail(format!("{e}\n{}", text()))),
                Ok(Ok(o)) => {
                    if let Err(e) = begun_later(&program, &machine, &o) {
                        return Err(TestCaseError::fail(format!("{e}\n{}", text())));
                    }
                    match &o.stages[..] {
                        [_] => "done",
                        [_, later @ ..] if later.iter().all(|s| s.change.bytes == 0) => "done, all resident",
                        _ if program.stages.iter().flat_map(|s| &s.feeds).any(fed_back) => "done, fed back",
                        _ => "done, several stages",
                    }
                }
                Ok(Err(RunError::Fault { .. })) => "fault",
                Ok(Err(RunError::Deadlock { .. })) => "deadlock",
                Ok(Err(RunError::LeftOver { .. })) => "left over",
                Ok(Err(RunError::TooLong { .. })) => "too long",
            }
        };
        *kinds.borrow_mut().entry(kind).or_default() += 1;
        Ok(())
    });
    let kinds = kinds.into_inner();
    println!("{kinds:?}");
    result.unwrap_or_else(|e| panic!("{e}"));
    for kind in [
        "done",
        "done, several stages",
        "done, all resident",
        "done, fed back",
        "fault",
        "deadlock",
        "left over",
    ] {
        assert!(
            kinds.get(kind).is_some_and(|n| *n >= 30),
            "too few that end in `{kind}`: {kinds:?}"
        );
    }
    assert!(
        kinds.get("refused").is_none_or(|n| *n < 5000),
        "too many refused: {kinds:?}"
    );
}

fn report(machine: &Machine, model: &Model) -> Report {
    let expected = simulate::expected(&model.graph, &model.inputs, model.options.items)
        .unwrap_or_else(|e| panic!("{e}"));
    let run = |name| {
        let job = Job {
            name,
            graph: &model.graph,
            machine,
            sparsity: 0.0,
            options: model.options.clone(),
            inputs: &model.inputs,
            expected: Some(&expected),
            progress: None,
            max_cycles: None,
            engine: Engine::Reference,
        };
        simulate::run(&job).unwrap_or_else(|e| panic!("{e}")).run
    };
    let about = meshloom_traces::report::Model {
        name: model.name.into(),
        source: "test".into(),
        parameters: model.graph.parameters(),
        nonzeros: model.graph.nonzeros(),
    };
    Report::new(
        about,
        "f32",
        2,
        model.options.items as u64,
        5,
        "seeded",
        vec![run(RunName::Dense), run(RunName::Sparse)],
    )
}

#[test]
fn the_same_run_gives_the_same_report() {
    for (model, machine) in models() {
        let timeless = || {
            let mut r = report(&machine, &model);
            r.validate().unwrap_or_else(|e| panic!("{}: {e}", model.name));
            for run in &mut r.runs {
                (run.wall_seconds, run.pe_cycles_per_second) = (0.0, 0.0);
                run.peak_memory_bytes = None;
                run.cycles.stages.iter_mut().for_each(|s| s.wall_seconds = 0.0);
            }
            r.to_json()
        };
        assert!(timeless() == timeless(), "{}", model.name);
    }
}

#[test]
fn a_miscount_of_one_is_found() {
    let machine = tiny();
    let model = mlp();
    let seeded = seeded_inputs(&model.graph, 5, 3);
    let inputs: Vec<_> = seeded.into_iter().collect();
    let compiled = compile(&model.graph, &machine, &model.options, &inputs).unwrap_or_else(|e| panic!("{e}"));
    let outcome =
        engine::run(&compiled.program, &machine, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let counts = flops::total(&model.graph);
    let operations = |mac: u64| Operations {
        mac: mac * 3,
        mac_act: 0,
        reduce: 0,
        other: counts.other * 3,
    };
    let drains: Vec<usize> = compiled
        .outputs
        .iter()
        .flat_map(|o| o.drains.iter().map(|d| compiled.program.drain_index(o.stage, *d)))
        .collect();
    let count = |o: &Outcome| {
        let input = RunInput {
            name: RunName::Dense,
            machine: &machine,
            engine: "reference",
            sparsity: 0.0,
            lanes: 1,
            pes_in_use: 1,
            kernels: &[],
            output_drains: &drains,
            items: 3,
            dense: operations(counts.mac_dense),
            theoretical: operations(counts.mac_theoretical),
            published: counts.mac_published,
            peak_pe_bytes: 0,
            outputs: None,
            wall_seconds: 0.0,
            peak_memory_bytes: None,
            stage_seconds: &[],
        };
        count_run(o, input)
    };
    count(&outcome).unwrap_or_else(|e| panic!("{e}"));
    for pe in 0..outcome.pes.len() {
        for class in 0..5 {
            let mut more = outcome.clone();
            more.pes[pe].classes[class] += 1;
            assert!(
                matches!(count(&more), Err(CountError::Classes { .. })),
                "one more {class} on {pe}"
            );
            let mut load = outcome.clone();
            load.pes[pe].load_classes[class] += 1;
            let found = count(&load);
            assert!(
                matches!(
                    found,
                    Err(CountError::Classes { .. } | CountError::Backwards { .. })
                ),
                "one more {class} before epoch 1 on {pe}"
            );
        }
    }
    let mut fewer = outcome.clone();
    fewer.cycles += 1;
    assert!(count(&fewer).is_err(), "a cycle that no PE counted");

    // the same in a report that was written down
    let good = report(&machine, &model);
    let planted: [(&str, Counter); 5] = [
        ("busy", |k| &mut k.busy),
        ("wait_input", |k| &mut k.wait_input),
        ("wait_room", |k| &mut k.wait_room),
        ("launch", |k| &mut k.launch),
        ("idle", |k| &mut k.idle),
    ];
    for (name, pick) in planted {
        for kernel in 0..good.runs[0].kernels.len() {
            let mut bad = good.clone();
            *pick(&mut bad.runs[0].kernels[kernel]) += 1;
            assert!(bad.validate().is_err(), "{name} of kernel {kernel}");
        }
    }
    let mut bad = good.clone();
    bad.runs[0].kernels[0].executed.mac += 1;
    assert!(bad.validate().is_err(), "a multiply-add more in one kernel");
}
