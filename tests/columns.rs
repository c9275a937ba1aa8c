//! Columns of PEs that do the same are timed as one by the fast engine. The programs here are random ones of that form: what comes from the
//! west passes through all columns, sums go south within each, results north. Both engines agree in everything: cycles, counters,
//! the cycle of every arrival, and all that is left in SRAM, where every column has numbers of its own.

mod common;

use common::{Choices, comparable, small};
use meshloom_simulator::engine::{Engine, Options, Outcome, RunError, Sram, run_on};
use meshloom_simulator::program::*;
use meshloom_simulator::text::{DataStore, parse};
use meshloom_simulator::verify::verify;
use meshloom_simulator::{Machine, Side};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use std::fmt::Write;

/// A random program and what is in SRAM before it.
struct Case {
    machine: Machine,
    program: Program,
    sram: Vec<Vec<u8>>,
    /// How often it runs, each time on what the time before left.
    times: usize,
    /// A PE's next instructions depend on a number that columns have of their own.
    decides: bool,
    threads: usize,
}

/// How a round's weights come.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Dense,
    /// A list in SRAM.
    List,
    /// A list that is multiplied as it comes.
    Fabric,
}

/// Wavelets of one f32 or of an index.
fn word(bits: u32, flag: bool) -> Wavelet {
    Wavelet {
        bits: bits as u64,
        elements: 1,
        flag,
    }
}

/// A number of many bits, none of them special.
fn number(seed: u32) -> f32 {
    let mixed = (seed ^ 0x9e37).wrapping_mul(0x85eb_ca6b);
    ((mixed ^ mixed >> 13) % 4001) as f32 / 1000.0 - 2.0
}

/// Some of them special.
fn any_number(seed: u32) -> f32 {
    let nan = f32::from_bits(0xffc0_1234);
    let special = [-0.0, 0.0, f32::INFINITY, nan, f32::MAX, f32::MIN_POSITIVE];
    match number(seed ^ 0x5555) {
        x if x < -1.9 => special[(seed % 6) as usize],
        _ => number(seed),
    }
}

impl Case {
    fn new(c: &mut Choices) -> Case {
        // now and then more than are worked on at once
        let columns = if c.one_in(40) {
            30 + c.below(70)
        } else {
            2 + c.below(3)
        };
        let rows = 1 + c.below(4);
        let first = c.below(2);
        let idle = c.below(2);
        let sets = [
            format!("mesh.width={}", first + columns + idle),
            format!("mesh.height={rows}"),
            "edge.bits_per_second=1e14".into(),
            format!("router.queue_depth={}", 1 + c.below(4)),
            format!("router.hop_cycles={}", 1 + c.below(3)),
            format!("router.ramp_cycles={}", 1 + c.below(3)),
            format!("edge.latency_cycles={}", 1 + c.below(3)),
            format!("pe.input_queue_depth={}", 1 + c.below(5)),
            format!("pe.output_queue_depth={}", 1 + c.below(3)),
            format!("pe.cost.issue={}", c.below(7)),
            format!("pe.moves_first={}", c.below(2) == 0),
        ];
        let machine = small(&sets.each_ref().map(String::as_str));
        let half = c.one_in(4);
        let number = if c.one_in(4) { any_number } else { number };
        let (ty, size) = if half { ("f16", 2) } else { ("f32", 4) };
        let tokens = match c.below(8) {
            0 => 1 + c.below(300),
            1 | 2 => 1 + c.below(40),
            _ => 1 + c.below(9),
        };
        let wide = if c.one_in(2) { " wide" } else { "" };
        // elements from one row to the next; some are not aligned
        let pitch = tokens + c.below(3) + if wide.is_empty() { 0 } else { 8 - tokens % 8 };
        let rounds: Vec<u32> = (0..1 + c.below(4)).map(|_| 1 + c.below(6)).collect();
        let most = rounds.iter().max().copied().unwrap_or(1);
        let results = rounds.iter().sum::<u32>() * tokens;
        let chain = rows > 1;
        let mut text = String::from("program columns\n");
        let orders = ["c3 c1 c2 c0", "c0 c1 c2 c3", "c1 c2 c0 c3", "c3 c0 c2 c1"];
        let order = orders[c.below(4) as usize];
        writeln!(text, "priority {order}").unwrap();
        // the routers before the columns, and cores there that send on what comes to them
        let mut trunk = format!("\nregion trunk at 0, 0 size 1 x {rows}\n");
        let mut pumps = String::new();
        writeln!(text, "\nregion columns at {first}, 0 size {columns} x {rows}").unwrap();
        let last = columns - 1;
        writeln!(
            text,
            "route c0 \"weights\" 0..{last} x 0..{rows}: west -> ramp east"
        )
        .unwrap();
        writeln!(text, "route c0 \"weights\" {last} x 0..{rows}: west -> ramp").unwrap();
        let bottom = rows - 1;
        let mut ends: Vec<u32> = (1..bottom).map(|_| c.below(results + 1)).collect();
        ends.push(results);
        ends.sort_unstable();
        // rows whose switch hands the first rounds' results to the core
        let until: Vec<Option<u32>> = (0..rows)
            .map(|y| (y > 0 && y < bottom && c.one_in(3)).then(|| 1 + c.below(rounds.len() as u32)))
            .collect();
        let own = |y: u32| {
            let y = y as usize;
            if let Some(n) = until[y] {
                return (0, rounds[..n as usize].iter().sum::<u32>() * tokens);
            }
            let from = if y == 0 { 0 } else { ends[y - 1] };
            (from, ends[y] - from)
        };
        for y in 0..bottom {
            let color = 1 + y % 2;
            writeln!(text, "route c{color} \"sums\" 0..{columns} x {y}: ramp -> south").unwrap();
            let y = y + 1;
            writeln!(text, "route c{color} \"sums\" 0..{columns} x {y}: north -> ramp").unwrap();
        }
        if chain {
            writeln!(
                text,
                "route c3 \"results\" 0..{columns} x {bottom}: ramp -> north"
            )
            .unwrap();
            for y in 0..bottom {
                let (from, n) = own(y);
                let on = if y == 0 { "" } else { " north" };
                if let Some(taken) = until[y as usize] {
                    let rest = rounds.len() as u32 - taken;
                    writeln!(
                        text,
                        "route c3 \"results\" 0..{columns} x {y}: south -> ramp north hold {taken}; south -> north hold {rest}"
                    )
                    .unwrap();
                    continue;
                }
                writeln!(
                    text,
                    "route c3 \"results\" 0..{columns} x {y}: south -> ramp{on}; filter ramp pass {n} of {results} from {from}"
                )
                .unwrap();
            }
        }
        let switches = until.iter().any(Option::is_some);
        let (mut feeds, mut decides) = (Vec::new(), false);
        // the last row begins when the row above it has sent a word: one of the weights, or of its own numbers
        let early = chain && c.one_in(4);
        let (above, word_of_x) = (bottom.wrapping_sub(1), c.one_in(2));
        if early {
            decides |= word_of_x;
            writeln!(text, "route c4 \"early\" 0..{columns} x {above}: ramp -> south").unwrap();
            writeln!(text, "route c4 \"early\" 0..{columns} x {bottom}: north -> ramp").unwrap();
        }
        for y in 0..rows {
            let mut data = vec![word(c.below(9), false)];
            let features = 1 + c.below(5);
            let finishes = chain && y == bottom;
            let x_bytes = features * pitch * size;
            let y_bytes = most * pitch * 4;
            let at = |from: u32| from.next_multiple_of(8);
            let sums = at(x_bytes) + 8 * c.below(4);
            let weights = at(sums + y_bytes);
            let weight_bytes = 12 + 6 * features * most;
            let kept = at(weights + weight_bytes);
            writeln!(text, "block 0..{columns} x {y}").unwrap();
            writeln!(text, "  memory x @0 {x_bytes} bytes").unwrap();
            writeln!(text, "  memory y @{sums} {y_bytes} bytes").unwrap();
            writeln!(text, "  memory w @{weights} {weight_bytes} bytes").unwrap();
            writeln!(text, "  memory z @{kept} {} bytes", 4 * results).unwrap();
            let copy = at(kept + 4 * results);
            writeln!(text, "  memory s @{copy} {weight_bytes} bytes").unwrap();
            match early && finishes {
                true => {
                    writeln!(
                        text,
                        "  task main data c0 blocked -> main\n  task early data c4 -> @0"
                    )
                    .unwrap();
                    writeln!(text, "  @0:\n    store.i32 [{kept} + 0] = r0").unwrap();
                    writeln!(text, "    block early\n    unblock main\n    end\n  main:").unwrap();
                }
                false => writeln!(text, "  task main data c0 -> @0\n  @0:").unwrap(),
            }
            if early && y == above {
                data.push(word(c.below(9), false));
                let from = if word_of_x { "@x" } else { "@w" };
                writeln!(
                    text,
                    "    desc d0 = mem f32 @w [1] by [1]\n    desc d1 = in c0 f32 [1]"
                )
                .unwrap();
                writeln!(text, "    mov d0 = d1\n    desc d2 = mem f32 {from} [1] by [1]").unwrap();
                writeln!(text, "    desc d3 = out c4 f32 [1]\n    mov d3 = d2").unwrap();
            }
            if chain && !finishes && own(y).1 > 0 {
                let n = own(y).1;
                writeln!(text, "    desc d20 = mem f32 @z [{n}] by [1]").unwrap();
                writeln!(text, "    desc d21 = in c3 f32 [{n}]").unwrap();
                writeln!(text, "    async t3 mov d20 = d21").unwrap();
            }
            if c.one_in(10) {
                decides = true;
                writeln!(text, "    load.i32 r7 = [0 + 0]").unwrap();
                writeln!(text, "    branch r7 < 0 negative").unwrap();
                writeln!(text, "    set r8 = 1\n    set r8 = 2").unwrap();
                writeln!(text, "  negative:").unwrap();
            }
            for (round, &m) in rounds.iter().enumerate() {
                let shape = format!("[{m} {tokens}]");
                writeln!(text, "    desc d2 = mem f32 @y {shape} by [{pitch} 1]{wide}").unwrap();
                let background = c.one_in(2);
                let run = |text: &mut String, thread: u32, what: &str| match background {
                    true => writeln!(text, "    async t{thread} {what}\n    wait t{thread}").unwrap(),
                    false => writeln!(text, "    {what}").unwrap(),
                };
                if finishes {
                    data.push(word(number(round as u32).to_bits(), c.one_in(3)));
                    writeln!(text, "    desc d0 = mem f32 @w [1] by [1]").unwrap();
                    writeln!(text, "    desc d1 = in c0 f32 [1]\n    mov d0 = d1").unwrap();
                    writeln!(text, "    desc d3 = in c{} f32 {shape}", 1 + (y - 1) % 2).unwrap();
                    run(&mut text, 1, "mov d2 = d3");
                    let flag = match switches || c.one_in(2) {
                        true => " flag",
                        false => "",
                    };
                    writeln!(text, "    desc d4 = out c3 f32 {shape}{flag}").unwrap();
                    writeln!(text, "    load.i32 r5 = [{weights} + 0]").unwrap();
                    run(&mut text, 2, "add d4 = d2 + r5 #other");
                    continue;
                }
                let form = [Form::Dense, Form::List, Form::Fabric][c.below(3) as usize];
                let values = |i: u32| number(i + 17 * y + 100 * round as u32).to_bits();
                let all = features * m;
                // the sums of the round before are on their way
                writeln!(text, "    wait t1").unwrap();
                if c.one_in(4) {
                    data.extend((0..m * tokens).map(|i| word(values(i + 7), false)));
                    writeln!(text, "    desc d12 = in c0 f32 {shape}\n    mov d2 = d12").unwrap();
                } else {
                    writeln!(text, "    mov d2 = 0.0").unwrap();
                }
                writeln!(text, "    desc d7 = mem f32 @y [{tokens}] by [1]{wide}").unwrap();
                writeln!(text, "    desc d8 = mem {ty} @x [{tokens}] by [1]{wide}").unwrap();
                let steps = format!(
                    "modulo {m} divisor {m} y_step {} x_step {} #mac",
                    4 * pitch,
                    size * pitch
                );
                let mut fetch = 0;
                match form {
                    Form::Dense => {
                        fetch = all;
                        data.extend((0..all).map(|i| word(values(i), i + 1 == all)));
                    }
                    Form::List => {
                        let indices: Vec<u32> = (0..all).filter(|_| c.one_in(2)).collect();
                        data.push(word(indices.len() as u32, false));
                        data.extend(indices.iter().map(|i| word(values(*i), false)));
                        let pair = |p: &[u32]| word(p[0] | p.get(1).map_or(0, |h| h << 16), false);
                        data.extend(indices.chunks(2).map(pair));
                        fetch = 1 + indices.len() as u32 + (indices.len() as u32).div_ceil(2);
                    }
                    Form::Fabric => {
                        let mut indices: Vec<u32> = (0..all).filter(|_| c.one_in(2)).collect();
                        indices.push(all - 1);
                        for (n, i) in indices.iter().enumerate() {
                            data.push(word(*i, false));
                            data.push(word(values(*i), n + 1 == indices.len()));
                        }
                    }
                }
                if fetch > 0 {
                    writeln!(text, "    desc d0 = mem f32 @w [{fetch}] by [1]{wide}").unwrap();
                    writeln!(text, "    desc d1 = in c0 f32 [{fetch}]").unwrap();
                    if c.one_in(3) {
                        // copied, or partly written again, while it comes
                        writeln!(text, "    async t2 mov d0 = d1").unwrap();
                        (0..c.below(4)).for_each(|i| writeln!(text, "    set r9 = {i}").unwrap());
                        let (from, n) = (c.below(fetch), 1 + c.below(fetch));
                        let n = n.min(fetch - from);
                        // the last element may be half a weight, and half what was there
                        let odd = if c.one_in(3) { 2 } else { 0 };
                        let at = weights + 4 * from + odd;
                        writeln!(text, "    desc d13 = mem f32 @{at} [{n}] by [1]").unwrap();
                        writeln!(text, "    desc d14 = mem f32 @s [{n}] by [1]\n    mov d14 = d13").unwrap();
                        writeln!(text, "    wait t2").unwrap();
                    } else {
                        run(&mut text, 2, "mov d0 = d1");
                    }
                }
                // sums are copied while they are made, or afterwards
                let copied = (m * pitch).min(weight_bytes / 4);
                let copy = format!(
                    "    desc d15 = mem f32 @y [{copied}] by [1]\n    desc d16 = mem f32 @s [{copied}] by [1]"
                );
                let (during, after) = (c.one_in(4), c.one_in(6));
                if during {
                    writeln!(text, "{copy}\n    async t2 mov d16 = d15").unwrap();
                }
                match form {
                    Form::Dense => {
                        let all = format!("[{features} {m} {tokens}]");
                        writeln!(text, "    desc d4 = mem {ty} @x {all} by [{pitch} 0 1]{wide}").unwrap();
                        writeln!(text, "    desc d5 = mem f32 @w {all} by [{m} 1 0]").unwrap();
                        writeln!(text, "    desc d6 = mem f32 @y {all} by [0 {pitch} 1]{wide}").unwrap();
                        if c.one_in(2) {
                            // sums begin with the first feature
                            writeln!(text, "    desc d17 = mem {ty} @x {shape} by [0 1]{wide}").unwrap();
                            writeln!(text, "    desc d18 = mem f32 @w {shape} by [1 0]").unwrap();
                            writeln!(text, "    desc d19 = mem f32 @y {shape} by [{pitch} 1]{wide}").unwrap();
                            let factors = ["d18 * d17", "d17 * d18"][c.below(2) as usize];
                            writeln!(text, "    mul d19 = {factors} #mac").unwrap();
                        }
                        writeln!(text, "    mac d6 += d5 * d4 #mac").unwrap();
                    }
                    Form::List => {
                        writeln!(
                            text,
                            "    load.i32 r4 = [{weights} + 0]\n    set r6 = {}",
                            weights + 4
                        )
                        .unwrap();
                        writeln!(text, "    mul r5 = r4 * 4\n    add r5 = r5 + r6").unwrap();
                        writeln!(
                            text,
                            "    axpy d7 += d8 * list mem f32 index @r5 value @r6 count r4 {steps}"
                        )
                        .unwrap();
                    }
                    Form::Fabric => writeln!(text, "    axpy d7 += d8 * list c0 f32 {steps}").unwrap(),
                }
                if during {
                    writeln!(text, "    wait t2").unwrap();
                } else if after {
                    writeln!(text, "{copy}\n    mov d16 = d15").unwrap();
                }
                if c.one_in(4) {
                    data.extend((0..m * tokens).map(|i| word(values(i + 3), false)));
                    writeln!(
                        text,
                        "    desc d12 = in c0 f32 {shape}\n    add d2 = d2 + d12 #other"
                    )
                    .unwrap();
                }
                if chain {
                    let flag = if c.one_in(2) { " flag" } else { "" };
                    writeln!(text, "    desc d11 = out c{} f32 {shape}{flag}", 1 + y % 2).unwrap();
                    let sends = match y {
                        0 => "mov d11 = d2",
                        _ => {
                            writeln!(text, "    desc d10 = in c{} f32 {shape}", 1 + (y - 1) % 2).unwrap();
                            "add d11 = d10 + d2 #reduce"
                        }
                    };
                    let thread = if c.one_in(3) { "" } else { "async t1 " };
                    writeln!(text, "    {thread}{sends}").unwrap();
                }
            }
            writeln!(text, "    halt").unwrap();
            let pumped = first > 0 && c.one_in(3);
            if pumped {
                writeln!(trunk, "route c6 \"weights\" 0 x {y}: west -> ramp").unwrap();
                writeln!(trunk, "route c0 \"weights\" 0 x {y}: ramp -> east").unwrap();
                writeln!(pumps, "block 0 x {y}\n  task main start -> @0\n  @0:").unwrap();
                let mut part = 0;
                for (i, w) in data.iter().enumerate() {
                    part += 1;
                    if w.flag || i + 1 == data.len() {
                        let flag = if w.flag { " flag" } else { "" };
                        writeln!(pumps, "    desc d0 = in c6 f32 [{part}]").unwrap();
                        writeln!(pumps, "    desc d1 = out c0 f32 [{part}]{flag}").unwrap();
                        let thread = if c.one_in(3) { "async t1 " } else { "" };
                        writeln!(pumps, "    wait t1\n    {thread}mov d1 = d0").unwrap();
                        part = 0;
                    }
                }
                writeln!(pumps, "    halt").unwrap();
            } else {
                writeln!(trunk, "route c0 \"weights\" 0 x {y}: west -> east").unwrap();
            }
            // in one or several feeds, and epochs
            let cut = c.below(data.len() as u32) as usize;
            let rest = data.split_off(cut);
            // a later epoch often waits for a row that waits for this one
            let later = if c.one_in(4) { 2 } else { 1 };
            for (data, epoch) in [(data, 1), (rest, later)] {
                if !data.is_empty() {
                    feeds.push(Feed {
                        name: "weights".into(),
                        side: Side::West,
                        row: y,
                        color: if pumped { 6 } else { 0 },
                        epoch,
                        data: data.into(),
                    });
                }
            }
        }
        if first > 0 {
            text += &(trunk + &pumps);
        }
        let mut program = parse(&text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"));
        feeds.sort_by_key(|f| f.epoch);
        program.stages[0].feeds = feeds;
        let pes = (first + columns + idle) * rows;
        let fill = |pe: u32| -> Vec<u8> {
            let number = |i: u32| number(i * 31 + pe * 7919);
            match half {
                false => (0..2000).flat_map(|i| number(i).to_le_bytes()).collect(),
                // from 0.5 to 2, of either sign
                true => (0..4000)
                    .map(|i| number(i).to_bits() >> 8)
                    .flat_map(|b| ((0x3800 + b % 0x800) as u16 | (b as u16 & 0x800) << 4).to_le_bytes())
                    .collect(),
            }
        };
        Case {
            machine,
            program,
            sram: (0..pes).map(fill).collect(),
            times: 1 + c.below(2) as usize,
            decides,
            threads: 1 + c.below(2) as usize,
        }
    }

    /// What each run gives, and leaves.
    fn run(&self, engine: Engine) -> Result<Vec<(Outcome, Sram)>, RunError> {
        let options = Options {
            engine,
            record: true,
            threads: self.threads,
            ..Options::default()
        };
        let mut sram = Sram::new(&self.machine);
        for (pe, bytes) in self.sram.iter().enumerate() {
            sram.write(pe, 0, bytes);
        }
        let once = |_| {
            let outcome = run_on(&self.program, &self.machine, &options, &mut sram)?;
            Ok((outcome, sram.clone()))
        };
        (0..self.times).map(once).collect()
    }

    /// Whether both engines leave the same SRAM, the fast one with its columns timed as one.
    fn is_equal_as_one(&self) -> bool {
        let [(fast, left), (_, wanted)] = [Engine::Fast, Engine::Reference].map(|engine| {
            let mut all = self.run(engine).unwrap_or_else(|e| panic!("{e}"));
            all.remove(0)
        });
        assert!(fast.paths.columns > 0);
        left == wanted
    }
}

/// What differs first.
fn difference(fast: &Outcome, reference: &Outcome) -> Option<String> {
    let (a, b) = (fast, reference);
    let pe = a.pes.iter().zip(&b.pes).position(|(a, b)| a != b);
    let queue = a.arrivals.iter().zip(&b.arrivals).find(|(a, b)| a != b);
    (a != b).then(|| {
        format!(
            "cycles {} {}, hops {} {}, wavelets {} {}, PE {:?}, queue {queue:?}",
            a.cycles,
            b.cycles,
            a.hops,
            b.hops,
            a.wavelets,
            b.wavelets,
            pe.map(|i| (i, a.pes[i], b.pes[i])),
        )
    })
}

fn many(cases: u32) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    // how many ended well and were timed as one
    let (ended, together) = (Cell::new(0), Cell::new(0));
    TestRunner::new_with_rng(config, rng)
        .run(&prop::collection::vec(any::<u16>(), 1000), |choices| {
            let case = Case::new(&mut Choices::new(&choices));
            let text = || meshloom_simulator::text::print(&case.program);
            prop_assert_eq!(verify(&case.program, &case.machine), Ok(()), "{}", text());
            let (fast, reference) = (case.run(Engine::Fast), case.run(Engine::Reference));
            match (fast, reference) {
                (Ok(fast), Ok(reference)) => {
                    ended.set(ended.get() + 1);
                    let as_one = fast.iter().all(|(outcome, _)| outcome.paths.columns > 0);
                    prop_assert!(case.decides || as_one, "not timed as one\n{}", text());
                    together.set(together.get() + as_one as u32);
                    for (fast, reference) in fast.into_iter().zip(reference) {
                        let differs = difference(&comparable(fast.0), &comparable(reference.0));
                        prop_assert_eq!(differs, None, "{}", text());
                        prop_assert!(fast.1 == reference.1, "SRAM differs\n{}", text());
                    }
                }
                (a, b) => prop_assert_eq!(a.err(), b.err()),
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(
        ended.get() * 10 > cases * 8,
        "{} of {cases} ended well",
        ended.get()
    );
    assert!(
        together.get() * 10 > cases * 6,
        "{} of {cases} were timed as one",
        together.get()
    );
}

#[test]
fn equal_columns_are_equal_on_both_engines() {
    many(1500);
}

#[test]
#[ignore = "long"]
fn equal_columns_are_equal_on_both_engines_in_long() {
    many(30_000);
}

/// A copy of bytes that came from the west is under way when bytes beside them are about to change: the other columns get all of them
/// first, and then copy.
#[test]
fn bytes_from_the_west_come_before_what_needs_them() {
    let machine = small(&["mesh.width=3", "mesh.height=1"]);
    let text = String::from(
        r#"program columns
region trunk at 0, 0 size 1 x 1
route c0 "weights" 0 x 0: west -> east
region columns at 1, 0 size 2 x 1
route c0 "weights" 0 x 0: west -> ramp east
route c0 "weights" 1 x 0: west -> ramp
block 0..2 x 0
  memory x @0 20 bytes
  memory y @32 60 bytes
  memory s @96 40 bytes
  task main data c0 -> @0
  @0:
    desc d0 = mem f32 @y [15] by [1]
    desc d1 = in c0 f32 [15]
    mov d0 = d1
    desc d2 = mem f32 @y [10] by [1]
    desc d3 = mem f32 @s [10] by [1]
    desc d4 = mem f32 @x [5] by [1]
    desc d5 = mem f32 @56 [5] by [1]
    desc d6 = mem f32 @s [2 5] by [5 1]
    desc d7 = mem f32 @y [2 5] by [1 0]
    desc d8 = mem f32 @x [2 5] by [0 1]
"#,
    );
    let cases = [
        // read by two at once
        ("mov d3 = d2", "add d4 = d4 + d5"),
        // a factor that the columns have not got, of multiply-adds that another one cuts
        ("mac d6 += d7 * d8", "add d3 = d3 + d2"),
        // the same of sums that begin
        ("mul d6 = d7 * d8", "add d3 = d3 + d2"),
    ];
    // at each of its cycles
    for (later, (first, second)) in (0..12).flat_map(|later| cases.map(|case| (later, case))) {
        let mut program = text.clone();
        writeln!(program, "    async t2 {first}").unwrap();
        (0..later).for_each(|i| writeln!(program, "    set r9 = {i}").unwrap());
        writeln!(
            program,
            "    async t1 {second}\n    wait t1\n    wait t2\n    halt"
        )
        .unwrap();
        let mut program = parse(&program, &DataStore::default()).unwrap_or_else(|e| panic!("{e}"));
        program.stages[0].feeds.push(Feed {
            name: "weights".into(),
            side: Side::West,
            row: 0,
            color: 0,
            epoch: 1,
            data: (0..16)
                .map(|i| word(number(i).to_bits(), false))
                .collect::<Vec<_>>()
                .into(),
        });
        let fill = |pe: u32| (0..50).flat_map(|i| number(i + 100 * pe).to_le_bytes()).collect();
        let case = Case {
            machine: machine.clone(),
            program,
            sram: (0..3).map(fill).collect(),
            times: 1,
            decides: false,
            threads: 1,
        };
        assert!(
            case.is_equal_as_one(),
            "{second}, {later} instructions later than {first}"
        );
    }
}

/// More is sent than is done again at once: what was not taken yet is there the next time.
#[test]
fn streams_go_on_from_one_part_of_the_record_to_the_next() {
    let text = r#"program columns
region trunk at 0, 0 size 1 x 2
route c0 "weights" 0 x 0..2: west -> east
region columns at 1, 0 size 2 x 2
route c0 "weights" 0 x 0..2: west -> ramp east
route c0 "weights" 1 x 0..2: west -> ramp
route c1 "numbers" 0..2 x 0: ramp -> south
route c1 "numbers" 0..2 x 1: north -> ramp
block 0..2 x 0
  memory x @0 400 bytes
  task main data c0 -> @0
  @0:
    set r4 = 6000
  again:
    desc d0 = mem f32 @x [10] by [1]
    desc d1 = out c1 f32 [10]
    mov d1 = d0
    sub r4 = r4 - 1
    branch r4 != 0 again
    halt
block 0..2 x 1
  memory y @0 400 bytes
  task main data c0 -> @0
  @0:
    set r4 = 6000
  again:
    desc d0 = mem f32 @y [10] by [1]
    desc d1 = in c1 f32 [10]
    sub d0 = d1 - d0
    sub r4 = r4 - 1
    branch r4 != 0 again
    halt
"#;
    let mut program = parse(text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}"));
    for row in 0..2 {
        program.stages[0].feeds.push(Feed {
            name: "weights".into(),
            side: Side::West,
            row,
            color: 0,
            epoch: 1,
            data: vec![word(1, false)].into(),
        });
    }
    let fill = |pe: u32| {
        (0..100)
            .flat_map(|i| number(i + 100 * pe).to_le_bytes())
            .collect()
    };
    let case = Case {
        machine: small(&["mesh.width=3", "mesh.height=2"]),
        program,
        sram: (0..6).map(fill).collect(),
        times: 1,
        decides: false,
        threads: 1,
    };
    assert!(case.is_equal_as_one());
}
