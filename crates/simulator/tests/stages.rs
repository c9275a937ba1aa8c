//! Programs of several stages (rule M16): the worked example of `docs/machine.md` with the numbers derived there by hand, what stays over
//! a change and what does not, what a change costs, feeds from earlier drains, and what is refused or fails, with its stage named.

use meshloom_simulator::Machine;
use meshloom_simulator::change::Change;
use meshloom_simulator::engine::{Options, Outcome, Probe, RunError, Visit, run};
use meshloom_simulator::program::*;
use meshloom_simulator::text::{DataStore, data, parse, print};
use meshloom_simulator::verify::verify;

fn machine(sets: &[&str]) -> Machine {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Machine::parse("small", include_str!("../../../machines/small.toml"), &sets).unwrap()
}

/// Reads a text and holds the printed form against it.
fn program(text: &str) -> Program {
    let p = parse(text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(parse(&print(&p), &data(&p)), Ok(p.clone()));
    p
}

/// The outcome, which is that of every order of visits.
fn outcome(p: &Program, m: &Machine) -> Result<Outcome, RunError> {
    assert_eq!(verify(p, m), Ok(()));
    let one = |visit| {
        let options = Options {
            visit,
            ..Options::default()
        };
        run(p, m, &options).map(|o| Outcome {
            active_pe_cycles: 0,
            paths: Default::default(),
            ..o
        })
    };
    let first = one(Visit::Active);
    for visit in [Visit::All, Visit::Shuffled(5)] {
        assert_eq!(one(visit), first, "{visit:?}");
    }
    if let Ok(o) = &first {
        for pe in &o.pes {
            assert_eq!(pe.classes.iter().sum::<u64>(), o.cycles);
            assert_eq!(pe.load_classes.iter().sum::<u64>(), o.load_before(o.cycles));
            assert_eq!(pe.slots.iter().sum::<u64>(), pe.classes[0]);
        }
    }
    first
}

fn bits(o: &Outcome, drain: usize) -> Vec<u64> {
    o.drains[drain].iter().map(|l| l.wavelet.bits).collect()
}

fn cycles(o: &Outcome, drain: usize) -> Vec<u64> {
    o.drains[drain].iter().map(|l| l.cycle).collect()
}

/// Every number of this test is derived in the document.
#[test]
fn worked_example() {
    let page = include_str!("../../../docs/machine.md");
    let text = page
        .split("```text\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let p = program(text);
    let m = machine(&["mesh.width=2", "mesh.height=1"]);
    let o = outcome(&p, &m).unwrap();
    assert_eq!(o.cycles, 112);
    let [first, second] = &o.stages[..] else {
        panic!("two stages")
    };
    assert_eq!((first.begin, first.load_end, first.end), (0, 0, 55));
    assert_eq!(first.change, Change::default());
    let change = Change {
        barrier: 3,
        bytes: 48,
        enter: 6,
        write: 1,
    };
    assert_eq!(second.change, change);
    assert_eq!((second.begin, second.load_end, second.end), (65, 65, 112));
    assert_eq!(
        (&first.epochs[..], &second.epochs[..]),
        (&[0, 0, 3][..], &[65, 65, 68][..])
    );
    assert_eq!(o.load_before(o.cycles), 10);
    assert_eq!(cycles(&o, 0), [53, 54, 55]);
    assert_eq!(cycles(&o, p.drain_index(1, 0)), [110, 111, 112]);
    let squares = [1.0f32, 4.0, 9.0].map(|v| v.to_bits() as u64);
    assert_eq!(bits(&o, 1), squares);
    // busy, launch, waits, idle
    assert_eq!(first.pes[0].classes, [33, 12, 0, 0, 10]);
    assert_eq!(second.pes[0].classes, [30, 6, 0, 0, 11]);
    assert_eq!(o.pes[0].classes, [63, 18, 0, 0, 31]);
    assert_eq!(o.pes[0].load_classes, [0, 0, 0, 0, 10]);
    assert_eq!(o.pes[1].classes, [0, 0, 0, 0, 112]);
    assert_eq!((o.pes[0].first_busy, o.pes[0].last_busy), (Some(0), 100));
    assert_eq!((o.pes[0].first_send, o.pes[0].last_write), (Some(42), Some(35)));
    assert_eq!(
        (second.pes[0].first_busy, second.pes[0].first_send),
        (Some(65), Some(98))
    );
    // 3 enter and 3 are sent in each; from (0, 0) to (1, 0) three cross a link, and each leaves by a channel
    assert_eq!((o.wavelets, o.edge_wavelets), (12, 12));
}

#[test]
fn probes_are_of_a_stage() {
    let page = include_str!("../../../docs/machine.md");
    let text = page
        .split("```text\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let (p, m) = (program(text), machine(&["mesh.width=2", "mesh.height=1"]));
    let at = |stage| Probe {
        stage,
        x: 0,
        y: 0,
        color: 2,
    };
    let options = Options {
        probes: vec![at(1), at(0)],
        ..Options::default()
    };
    let o = run(&p, &m, &options).unwrap();
    let third = |probe: usize| f32::from_bits(o.probes[probe][2].bits as u32);
    assert_eq!((third(0), third(1)), (9.0, 3.0));
    assert_eq!((o.probes[0].len(), o.probes[1].len()), (3, 3));
    // the limit is one of the run: with 70 cycles the second stage has begun
    for limit in [30, 60, 70] {
        let options = Options {
            max_cycles: Some(limit),
            ..Options::default()
        };
        assert_eq!(run(&p, &m, &options), Err(RunError::TooLong { cycles: limit }));
    }
}

/// A PE of 96 bytes. The first stage fills a buffer from 0 to 72, by a microthread and by stores; the second has four instructions (32
/// bytes) and runs where nothing of it is known; the third has no code there; the fourth reads.
const KEPT: &str = "program kept

stage fill
region a at 0, 0 size 1 x 1
route c1 w 0 x 0: west -> ramp
block 0 x 0
  memory w @0 56 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [14]
    desc d1 = mem f32 @w [14] by [1]
    async t1 mov d1 = d0
    wait t1
    halt
feed w west row 0 c1 epoch 0 = [1 2 3 4 5 6 7 8 9 a b c d e]

stage other
region a at 0, 0 size 1 x 1
block 0 x 0
  memory own @0 4 bytes
  task main start -> main
  main:
    set r3 = 99
    add r3 = r3 + 1
    store.i32 [0 + 0] = r3
    set r3 = 0
    set r4 = 0
    set r5 = 0
    halt

stage none

stage read
region a at 0, 0 size 1 x 1
route c2 y 0 x 0: ramp -> east
block 0 x 0
  memory w @0 56 bytes
  task main start -> main
  main:
    desc d0 = mem f32 @w [14] by [1]
    desc d1 = out c2 f32 [14]
    mov d1 = d0
    add r3 = r3 + 0
    halt
drain y east row 0 c2: 14 wavelets
";

#[test]
fn sram_stays_and_nothing_else() {
    let m = machine(&["mesh.width=1", "mesh.height=1", "pe.sram_bytes=96"]);
    let o = outcome(&program(KEPT), &m).unwrap();
    // word 0 was written again; of 96 bytes the code of stage `other` covered those from 96 - 7 x 8 = 40 on, so words 10 to 13
    let mut expected: Vec<u64> = (1..=14).collect();
    expected[0] = 100;
    expected[10..].fill(0);
    assert_eq!(bits(&o, 0), expected);
    // with more SRAM no code comes where data lie
    let roomy = machine(&["mesh.width=1", "mesh.height=1"]);
    expected[10..].copy_from_slice(&[11, 12, 13, 14]);
    assert_eq!(bits(&outcome(&program(KEPT), &roomy).unwrap(), 0), expected);
    // the weights are load, up to their last wavelet; stages without feeds have none
    let loads: Vec<u64> = o.stages.iter().map(|s| s.load_end - s.begin).collect();
    assert_eq!(loads, [14, 0, 0, 0]);
    // a stage in which nothing is to do takes no cycle; its change is the barrier
    let none = &o.stages[2];
    assert_eq!((none.change.cycles(), none.end - none.begin), (2, 0));

    // registers start anew: what r3 was before is not sent
    let text = KEPT
        .replace("    add r3 = r3 + 0\n", "")
        .replace("    mov d1 = d0\n", "    mov d1 = r3\n");
    let o = outcome(&program(&text), &roomy).unwrap();
    assert_eq!(bits(&o, 0), [0; 14]);
    // so do descriptors: what is not set in the stage is a fault, or refused before
    let text = text.replace("    desc d0 = mem f32 @w [14] by [1]\n    desc d1", "    desc d1");
    let text = text.replace("mov d1 = r3", "mov d1 = d0");
    let refused = verify(&program(&text), &roomy).unwrap_err();
    assert!(
        refused[0].to_string().contains("stage 3 (read), region a"),
        "{}",
        refused[0]
    );
}

/// Two streams leave; a third stage gets parts of both, with flags of its own, and sends payload and flag of each wavelet.
#[test]
fn drains_are_fed_back() {
    let p = program(
        "program back
stage one
region a at 0, 0 size 1 x 1
route c1 x 0 x 0: west -> east
feed x west row 0 c1 epoch 0 = [a1 a2! a3 a4!]
drain unused west row 0 c5: 0 wavelets
route c5 none 0 x 0: ramp -> west
drain x east row 0 c1: 4 wavelets
stage two
region a at 0, 0 size 1 x 1
route c1 x 0 x 0: east -> west
feed x east row 0 c1 epoch 3 = [b1! b2!]
drain x west row 0 c1: 2 wavelets
stage three
region a at 0, 0 size 1 x 1
route c1 x 0 x 0: west -> ramp
route c2 y 0 x 0: ramp -> east
block 0 x 0
  task each data c1 -> each
  each:
    desc d0 = out c2 f32 [1]
    mov d0 = r0
    mov d0 = r1
    sub r2 = r2 - 1
    branch r2 != -7 on
    halt
  on:
    end
feed x west row 0 c1 epoch 0 drained [3 of stage 0 drain 1 from 1 flag 2,
    2 of stage 1 drain 0]
feed x west row 0 c1 epoch 1 drained []
feed x west row 0 c1 epoch 1 drained [0 of stage 0 drain 0 flag 1, 2 of stage 0 drain 1 flag 2]
drain y east row 0 c2: 14 wavelets
",
    );
    let m = machine(&["mesh.width=1", "mesh.height=1"]);
    let o = outcome(&p, &m).unwrap();
    let sent = bits(&o, p.drain_index(2, 0));
    let pairs: Vec<(u64, u64)> = sent.chunks(2).map(|c| (c[0], c[1])).collect();
    let expected = [
        (0xa2, 0),
        (0xa3, 1),
        (0xa4, 0),
        (0xb1, 0),
        (0xb2, 0),
        (0xa1, 0),
        (0xa2, 1),
    ];
    assert_eq!(pairs, expected);
    // they left with the flags that they had
    let flags = |d: usize| o.drains[d].iter().map(|l| l.wavelet.flag).collect::<Vec<_>>();
    assert_eq!(
        (flags(1), flags(2)),
        (vec![false, true, false, true], vec![true, true])
    );
    // epochs are each stage's own: 1 to 3 of the second begin with it
    let (two, three) = (&o.stages[1], &o.stages[2]);
    assert_eq!(two.epochs[..4], [two.begin; 4]);
    assert_eq!(three.load_end - three.begin, 5);
}

/// A stage's text, and the next's: what the change costs, counted by hand. 8 x 4 PEs: four rows with a channel on each side, 8 channels of
/// 4 bytes a cycle; instructions of 8 bytes; the barrier takes 8 + 4 = 12 cycles.
#[test]
fn what_a_change_costs() {
    const BASE: &str = "region a at 0, 0 size 8 x 4
table t by x = [0 1 2 3 4 5 6 7]
route c1 s 0..7 x 0..4: west -> east ramp hold 2; filter ramp pass 1 of 8 from x
route c1 s 7 x 0..4: west -> ramp
block 0..4 x 0..4
  param n = x
  memory m @0 16 bytes
  task main start -> main
  main:
    set r1 = $n
    set r2 = 5
    halt
block 4..8 x 0..4
  param n = t
  memory m @0 16 bytes
  task main start -> main
  main:
    set r1 = 1
    halt
";
    let m = machine(&["mesh.width=8", "mesh.height=4"]);
    let change = |first: &str, second: &str| {
        let second = second.replace("table t", "table u").replace("= t\n", "= u\n");
        let p = program(&format!("program p\nstage s\n{first}stage t\n{second}"));
        assert_eq!(verify(&p, &m), Ok(()));
        Change::to(&p, 1, &m)
    };
    let after = |edits: &[(&str, &str)]| {
        let mut text = BASE.to_string();
        for (from, to) in edits {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        let c = change(BASE, &text);
        assert_eq!(c.barrier, 12);
        (c.bytes, c.enter, c.write)
    };
    // the same again, under other names
    assert_eq!(after(&[]), (0, 0, 0));
    assert_eq!(
        after(&[
            ("main", "other"),
            ("memory m", "memory q"),
            ("region a", "region b")
        ]),
        (0, 0, 0)
    );
    // from nothing: 3 + 2 instructions are 40 bytes, three route words 12, together 52 over 32 bytes a cycle; two words on a PE
    let c = change("", BASE);
    assert_eq!((c.bytes, c.enter, c.write), (52, 2, 2));
    assert_eq!(c.cycles(), 12 + 2 + 2);
    assert_eq!(
        change(BASE, ""),
        Change {
            barrier: 12,
            ..Change::default()
        }
    );
    // one instruction, a task's trigger, a buffer: that block's code; a list that both blocks have enters once
    assert_eq!(after(&[("set r2 = 5", "set r2 = 6")]), (24, 1, 0));
    assert_eq!(after(&[("set r2 = 5", "set r2 = 5\n    set r2 = 5")]), (32, 1, 0));
    assert_eq!(after(&[("memory m @0 16", "memory m @0 20")]), (40, 2, 0));
    assert_eq!(
        after(&[
            ("set r1 = $n\n    set r2 = 5", "set r1 = 3"),
            ("set r1 = 1", "set r1 = 3")
        ]),
        (16, 1, 0)
    );
    // a parameter's value: x and the table are equal, so only another number enters anew
    assert_eq!(after(&[("param n = t", "param n = x")]), (0, 0, 0));
    assert_eq!(after(&[("param n = x\n", "param n = t\n")]), (0, 0, 0));
    assert_eq!(after(&[("param n = x\n", "param n = min(x, 2)\n")]), (24, 1, 0));
    // the hold and the filter of a route: all of its words
    assert_eq!(after(&[("hold 2", "hold 3")]), (8, 1, 2));
    assert_eq!(after(&[("from x", "from x + 1")]), (8, 1, 2));
    assert_eq!(
        after(&[(
            "7 x 0..4: west -> ramp",
            "7 x 0..4: west -> ramp; west -> ramp hold 0"
        )]),
        (8, 1, 2)
    );
    // of another colour: both routes' three words
    assert_eq!(after(&[("route c1", "route c3")]), (12, 1, 2));
    // the same route in two pieces is one
    let pieces = (
        "route c1 s 7 x 0..4",
        "route c1 s 7 x 0..2: west -> ramp\nroute c1 s 7 x 2..4",
    );
    assert_eq!(after(&[pieces]), (0, 0, 0));
    let both = [
        pieces,
        ("route c1 s 7 x", "route c2 s 7 x"),
        ("-> east ramp", "-> ramp"),
    ];
    assert_eq!(after(&both), (12, 1, 2));
    // one channel with a gap of 10: 4 bytes in 10 cycles
    let slow = machine(&[
        "mesh.width=8",
        "mesh.height=4",
        "edge.bits_per_second=2.72e9",
        "router.hop_cycles=3",
    ]);
    let p = program(&format!("program p\nstage s\nstage t\n{BASE}"));
    let c = Change::to(&p, 1, &slow);
    assert_eq!((c.barrier, c.bytes, c.enter, c.write), (36, 52, 130, 2));
}

#[test]
fn early_weights_are_for_the_next_stage() {
    // while it works, the first stage receives what the second multiplies with
    let p = program(
        "program early
stage work
region a at 0, 0 size 1 x 1
route c1 w 0 x 0: west -> ramp
block 0 x 0
  memory w @64 16 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [4]
    desc d1 = mem f32 @w [4] by [1]
    async t1 mov d1 = d0
    set r1 = 50
  loop:
    sub r1 = r1 - 1
    branch r1 != 0 loop
    halt
feed w west row 0 c1 epoch 1 = [3f800000 40000000 40400000 40800000]
stage next
region a at 0, 0 size 1 x 1
route c2 y 0 x 0: ramp -> east
block 0 x 0
  memory weights @64 16 bytes
  task main start -> main
  main:
    desc d0 = mem f32 @weights [4] by [1]
    desc d1 = out c2 f32 [4]
    mul d1 = d0 * 2.0
    halt
drain y east row 0 c2: 4 wavelets
",
    );
    let o = outcome(&p, &machine(&["mesh.width=1", "mesh.height=1"])).unwrap();
    let values: Vec<f32> = bits(&o, 0).iter().map(|b| f32::from_bits(*b as u32)).collect();
    assert_eq!(values, [2.0, 4.0, 6.0, 8.0]);
}

/// Rows of three f16 elements, two a wavelet, leave; of each the last two enter again, behind one that fills, packed anew.
#[test]
fn elements_that_left_are_packed_anew() {
    let p = program(
        "program cut
stage a
region a at 0, 0 size 2 x 1
route c1 s 0..2 x 0: west -> east
feed x west row 0 c1 epoch 0 = [20001/2 3 50004/2 6!]
drain y east row 0 c1: 4 wavelets
stage b
region a at 0, 0 size 2 x 1
route c1 s 0..2 x 0: west -> east
feed z west row 0 c1 epoch 0 drained f16 by 2 rows 2 [1 fill fc00, 2 of stage 0 drain 0 skip 1 step 2]
feed z west row 0 c1 epoch 0 drained f16 by 1 rows 1 [3 of stage 0 drain 0 from 1]
drain w east row 0 c1: 7 wavelets
",
    );
    let o = outcome(&p, &machine(&["mesh.width=2", "mesh.height=1"])).unwrap();
    let got: Vec<(u64, u8, bool)> = o.drains[1]
        .iter()
        .map(|l| (l.wavelet.bits, l.wavelet.elements, l.wavelet.flag))
        .collect();
    let pair = |a: u64, b: u64| (a | b << 16, 2, false);
    let one = |a: u64| (a, 1, false);
    assert_eq!(
        got,
        [
            pair(0xfc00, 2),
            one(3),
            pair(0xfc00, 5),
            one(6),
            one(3),
            one(4),
            one(6)
        ]
    );
}

/// Three stages, the second to be replaced: each way to fail, and what is said.
#[test]
fn errors_name_the_stage() {
    let text = |middle: &str| {
        format!(
            "program p
stage a
region a at 0, 0 size 2 x 1
route c1 s 0..2 x 0: west -> east
feed x west row 0 c1 epoch 0 = [1 2 3]
drain y east row 0 c1: 3 wavelets
stage b
{middle}
stage c
"
        )
    };
    let m = machine(&["mesh.width=2", "mesh.height=1"]);
    let mut all = String::new();
    let fed = |spans: &str| {
        format!(
            "region a at 0, 0 size 2 x 1\nroute c1 s 0..2 x 0: west -> east\nfeed x west row 0 c1 epoch 0 drained [{spans}]\ndrain y east row 0 c1: 1 wavelets"
        )
    };
    let cut = |data: &str| fed("").replace("drained []", &format!("drained {data}"));
    for (what, middle) in [
        ("its own stage", fed("1 of stage 1 drain 0")),
        ("a later stage", fed("1 of stage 2 drain 0")),
        ("no such stage", fed("1 of stage 9 drain 0")),
        ("no such drain", fed("1 of stage 0 drain 1")),
        (
            "too many",
            fed("1 of stage 0 drain 0, 2 of stage 0 drain 0 from 2"),
        ),
        (
            "beyond numbers",
            fed("18446744073709551615 of stage 0 drain 0 from 1"),
        ),
        ("a colour", "priority c99".into()),
        (
            "a cut of its own stage",
            cut("f32 by 1 rows 1 [1 of stage 1 drain 0]"),
        ),
        (
            "a cut of too many",
            cut("f32 by 1 rows 2 [1 fill 0, 1 of stage 0 drain 0 from 1 step 2]"),
        ),
        (
            "a cut beyond numbers",
            cut("f32 by 1 rows 18446744073709551615 [1 of stage 0 drain 0 step 2]"),
        ),
        (
            "a cut into wide wavelets",
            cut("f32 by 2 rows 1 [2 of stage 0 drain 0]"),
        ),
        (
            "a cut into nothing",
            cut("f16 by 0 rows 1 [2 of stage 0 drain 0]"),
        ),
        ("a fill that is no element", cut("f16 by 2 rows 1 [2 fill 12345]")),
    ] {
        let found = verify(&program(&text(&middle)), &m).expect_err(what);
        all += &format!("{what}\n");
        found.iter().for_each(|v| all += &format!("    {v}\n"));
    }
    let none = Program::default();
    all += &format!("none\n    {}\n", verify(&none, &m).unwrap_err()[0]);
    let block = |code: &str| {
        format!(
            "region a at 0, 0 size 2 x 1
route c1 s 0 x 0: west -> ramp
route c2 s 0 x 0: ramp -> east
route c2 s 1 x 0: west -> ramp
block 0 x 0
  task main start -> main
  main:
{code}
feed x west row 0 c1 epoch 0 drained [2 of stage 0 drain 0]"
        )
    };
    for (what, code) in [
        ("left over", "    halt"),
        (
            "deadlock",
            "    desc d0 = in c1 f32 [3]\n    desc d1 = out c2 f32 [3]\n    mov d1 = d0\n    halt",
        ),
        ("fault", "    set r1 = -4\n    store.i32 [r1 + 0] = 1\n    halt"),
        (
            "one way out",
            "    desc d0 = in c1 f32 [2]\n    desc d1 = out c2 f32 [2]\n    mov d1 = d0\n    halt",
        ),
    ] {
        let error = outcome(&program(&text(&block(code))), &m).expect_err(what);
        all += &format!("{what}\n    {error}\n");
    }
    insta::assert_snapshot!(all);
}

#[test]
fn texts_of_stages() {
    // a stage opens before all of its lines, and a single one without a name has no line of its own
    let single = program("program p\n\nregion a at 0, 0 size 1 x 1\n");
    assert_eq!(
        (single.stages.len(), print(&single).contains("stage")),
        (1, false)
    );
    assert_eq!(
        program(&print(&program("program p\nstage s\n"))).stages[0].name,
        "s"
    );
    let two = program("program p\nstage \"\"\nstage \"\"\npriority c1\n");
    assert_eq!((two.stages.len(), &two.stages[1].priority[..]), (2, &[1][..]));
    // a table is one of the program
    let shared = program(
        "program p
stage a
region a at 0, 0 size 2 x 1
table t by x = [1 2]
route c1 s 0..2 x 0: west -> ramp hold t; west -> ramp
stage b
region a at 0, 0 size 2 x 1
route c1 s 0..2 x 0: west -> ramp hold t; west -> ramp
",
    );
    assert_eq!(print(&shared).matches("table").count(), 1);
    for (text, line) in [
        ("program p\npriority c1\nstage s\n", 3),
        ("program p\nstage\n", 2),
        ("program p\nstage s\nroute c1 s 0 x 0: west -> ramp\n", 3),
        (
            "program p\nfeed x west row 0 c1 epoch 0 drained [1 of stage 0 drain]\n",
            2,
        ),
        (
            "program p\nfeed x west row 0 c1 epoch 0 drained [1 of stage 0 drain 0 2 of stage 0 drain 0]\n",
            2,
        ),
    ] {
        assert_eq!(
            parse(text, &DataStore::default()).unwrap_err().line,
            line,
            "{text}"
        );
    }
}
