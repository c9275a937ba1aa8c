//! The verifier: a program that is in order, one small change for every violation (the messages as a snapshot), the mark of rule M20, a
//! region of a million PEs, and random changes, on which it may never panic.

use meshloom_simulator::Machine;
use meshloom_simulator::engine::{Options, run};
use meshloom_simulator::program::*;
use meshloom_simulator::text::{DataStore, parse};
use meshloom_simulator::verify::{
    MAX_VIOLATIONS, timing_depends_on_values, timing_depends_on_values_without_skip, verify,
};
use proptest::prelude::*;

/// 8 x 4 PEs; channels at rows 0 and 2 of both sides.
const MACHINE: &str = r#"
name = "small"
clock_hz = 1e9
[mesh]
width = 8
height = 4
[pe]
sram_bytes = 1024
instruction_bytes = 4
threads = 3
move_queue = 2
moves_first = true
input_queue_depth = 2
output_queue_depth = 2
sram = { banks = 8, bank_bytes = 8, conflict_modulus = 4, port_bits = 64 }
lanes = { f32 = 1, f32_simple = 1, f16 = 2, f16_accumulate = 4, f16_simple = 2 }
cost = { issue = 2, task_launch = 2, load = 2, add = 1, multiply = 3, branch = 2, descriptor = 3 }
special = { exp = 10, divide = 8, rsqrt = 9, tanh = 12 }
[router]
colors = 8
queue_depth = 2
hop_cycles = 1
ramp_cycles = 2
switch_positions = 2
filters = 1
[link]
bits = 32
[edge]
bits_per_second = 128e9
latency_cycles = 10
[skip]
zero_weights = true
zero_operands = false
"#;

const PROGRAM: &str = r#"
program t
priority c2 c1

region line at 0, 0 size 8 x 1
table k by x = [1 2 3 4 5 6 7 8]
route c1 "x -> line" 0..7 x 0: west -> east ramp; filter ramp pass 16 of 128 from x * 16
route c1 "x -> line" 7 x 0: west -> ramp
route c2 "line -> y" 0 x 0: ramp -> east
route c2 "line -> y" 1..8 x 0: west -> east hold x; ramp -> east
block 0..8 x 0
  param k = k
  param n = x + 1
  memory x @0 64 bytes
  memory acc @64 64 bytes
  task main start -> main
  task done local -> done
  main:
    desc d0 = mem f32 @acc [16] by [1]
    desc d1 = mem f32 @x [16] by [1] wide
    desc d2 = in c1 f32 [16]
    desc d3 = out c2 f32 [16] flag
    mov d1 = d2
    mac d0 += d1 * 2.0 #mac
    mov d3 = d0
    set r2 = 0
  loop:
    add r2 = r2 + 1
    branch r2 < $k loop
    axpy d0 += d1 * list mem f32 index @x value @x count 4 modulo $n divisor 1 y_step 0 x_step 0 #mac
    load.i32 r3 = [60 + 0]
    async t1 mov d0 = d1 then done
    wait t1
    end
  done:
    halt

region columns at 0, 2 size 8 x 2
route c3 "down" 0..8 by 2 x 0: ramp -> south
route c3 "down" 0..8 by 2 x 1: north -> ramp
block 0..8 by 2 x 0
  memory b @0 32 bytes
  task main start -> main
  main:
    desc d0 = out c3 f32 [8] flag
    mov d0 = 1.0
    halt
block 0..8 by 2 x 1
  task main data c3 -> main
  main:
    end

feed x west row 0 c1 epoch 0 = [3f800000]
drain y east row 0 c2: 128 wavelets
"#;

fn machine() -> Machine {
    Machine::parse("small", MACHINE, &[]).unwrap()
}

fn program(text: &str) -> Program {
    parse(text, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn changed(from: &str, to: &str) -> String {
    let from = from.replace("|", "\n");
    assert!(PROGRAM.contains(&from), "{from}");
    PROGRAM.replacen(&from, &to.replace("|", "\n"), 1)
}

#[test]
fn in_order() {
    assert_eq!(verify(&program(PROGRAM), &machine()), Ok(()));
}

#[test]
fn every_violation() {
    // `|` stands for the end of a line.
    let cases = [
        ("priority c2 c1", "priority c2 c2 c9"),
        ("at 0, 0 size 8 x 1", "at 1, 0 size 8 x 1"),
        ("at 0, 0 size 8 x 1", "at 0, 0 size 0 x 1"),
        ("block 0..8 x 0", "block 0..9 by 2 x 0"),
        ("block 0..8 x 0", "block 0 times 0 by 1 x 0"),
        ("block 0..8 by 2 x 1", "block 0..8 by 2 x 0"),
        ("at 0, 2 size 8 x 2", "at 0, 0 size 8 x 2"),
        ("route c1 \"x -> line\" 7", "route c8 \"x -> line\" 7"),
        ("7 x 0: west -> ramp", "6..8 x 0: west -> ramp"),
        ("hold x; ramp -> east", "hold x; ramp -> east; ramp -> east"),
        ("7 x 0: west -> ramp", "7 x 0: none"),
        ("7 x 0: west -> ramp", "7 x 0: west -> none"),
        ("7 x 0: west -> ramp", "7 x 0: west -> ramp ramp west"),
        ("hold x;", "hold x - 3;"),
        ("filter ramp pass", "filter south pass"),
        (
            "pass 16 of 128 from x * 16",
            "pass 16 of 128 from x * 16 - 1; filter ramp pass 0 of 0 from 0",
        ),
        (
            "ramp; filter ramp",
            "ramp; filter east pass 1 of 2 from 0; filter ramp",
        ),
        ("7 x 0: west -> ramp", "7 x 0: ramp -> ramp"),
        (
            "0..8 by 2 x 1: north -> ramp",
            "0..7 by 2 x 1: north -> ramp south",
        ),
        ("0..8 by 2 x 1: north", "0..5 by 2 x 1: north"),
        (
            "1..8 x 0: west -> east hold x; ramp -> east",
            "1..8 x 0: ramp -> west",
        ),
        ("drain y east row 0", "drain y east row 1"),
        ("drain y east row 0", "drain y west row 0"),
        ("drain y", "drain z east row 0 c2: 1 wavelets|drain y"),
        ("feed x west row 0 c1", "feed x west row 3 c1"),
        ("feed x west row 0 c1", "feed x west row 0 c3"),
        ("[3f800000]", "[3f800000 1/4 100000000]"),
        (
            "route c3 \"down\" 0..8 by 2 x 0: ramp -> south",
            "route c4 a 0 x 0: south -> east; ramp -> east|route c4 a 1 x 0: west -> south|\
             route c4 a 0 x 1: east -> north|route c4 a 1 x 1: north -> west|\
             route c3 \"down\" 0..8 by 2 x 0: ramp -> south",
        ),
        ("set r2 = 0", "set r16 = 0"),
        ("set r2 = 0", "set r2 = $2"),
        ("set r2 = 0", "desc d44 = in c1 f32 [1]"),
        ("set r2 = 0", "activate task 2"),
        ("set r2 = 0", "jump @16"),
        ("set r2 = 0", "wait t3"),
        ("task main start -> main", "task main start -> @16"),
        (
            "task main start -> main",
            "task main start -> main|  label far = 99",
        ),
        ("  done:|    halt", "  done:|    wait t1"),
        ("set r2 = 0", "mov d2 = d0"),
        ("set r2 = 0", "mov d0 = d3"),
        ("set r2 = 0", "mac d3 += d0 * d1"),
        ("set r2 = 0", "mov d0 = d7"),
        ("set r2 = 0", "add d0 = d1"),
        ("set r2 = 0", "exp d0 = d1, d1"),
        ("set r2 = 0", "base d2 = @x"),
        (
            "set r2 = 0",
            "desc d9 = mem f32 @x [4 4] by [4 1]|    mov d0 = d9",
        ),
        ("in c1 f32 [16]", "in c4 f32 [16]"),
        ("out c2 f32 [16]", "out c9 f32 [16]"),
        (
            "0..7 x 0: west -> east ramp; filter ramp pass 16 of 128 from x * 16",
            "0..7 x 0: west -> east",
        ),
        ("data c3 -> main", "data c5 -> main"),
        ("set r2 = 0", "desc d9 = mem f32 @x [] by []"),
        ("set r2 = 0", "desc d9 = mem f32 @x [16 -1] by [1 1]"),
        ("set r2 = 0", "desc d9 = mem f32 @x [16 1] by [1]"),
        ("set r2 = 0", "desc d9 = mem f32 @acc [17] by [1]"),
        ("set r2 = 0", "desc d9 = mem f32 @acc [$n] by [-3]"),
        ("modulo $n divisor 1", "modulo 0 divisor 1"),
        ("param n = x + 1", "param n = x % 8"),
        ("count 4 modulo", "count 33 modulo"),
        ("[60 + 0]", "[126 + 0]"),
        ("param n = x + 1", "param n = x / 0 + 1"),
        ("[1 2 3 4 5 6 7 8]", "[1 2 3 4 5 6 7]"),
        ("param n = x + 1", "param k = x + 1|  param n = 1"),
        (
            "region columns",
            "region columns_|table k~2 by y = [1 2]|region columns",
        ),
        ("memory acc @64 64 bytes", "memory acc @60 64 bytes"),
        (
            "memory acc @64 64 bytes",
            "memory acc @64 64 bytes|  memory x @200 1 bytes",
        ),
        ("memory acc @64 64 bytes", "memory acc @64 900 bytes"),
    ];
    let mut all = String::new();
    for (from, to) in cases {
        let mut text = changed(from, to);
        if to.contains("x @200") {
            text = text.replace("@x", "@0");
        }
        if to.contains("param k = x") {
            text = text.replace("$k", "$0");
        }
        if to.contains("k~2") {
            text = text
                .replace("region columns_\n", "")
                .replace("  memory b", "  param k = k~2\n  memory b");
        }
        let found = match verify(&program(&text), &machine()) {
            Ok(()) => panic!("not found: {from} => {to}"),
            Err(found) => found,
        };
        all.push_str(&format!("{from}  =>  {to}\n"));
        for v in found {
            all.push_str(&format!("    {v}\n"));
        }
    }
    insta::assert_snapshot!(all);
}

/// The example of `docs/program.md` is read, verified and run, on a mesh of its width.
#[test]
fn documented_example() {
    let page = include_str!("../../../docs/program.md");
    let text = page
        .split("```text\n")
        .nth(1)
        .and_then(|t| t.split("```").next())
        .unwrap();
    let p = program(text);
    let machine = Machine::parse("small", MACHINE, &["mesh.width=4".into()]).unwrap();
    assert_eq!(verify(&p, &machine), Ok(()));
    let outcome = run(&p, &machine, &Options::default()).unwrap();
    let numbers: Vec<f32> = outcome.drains[0]
        .iter()
        .map(|l| f32::from_bits(l.wavelet.bits as u32))
        .collect();
    assert_eq!(
        numbers,
        [2., 4., 6., 8., 2., 4., 6., 8., 4., 8., 12., 16., 4., 8., 12., 16.]
    );
}

#[test]
fn at_most_twenty() {
    let text = changed("set r2 = 0", &"set r99 = 0|".repeat(100));
    assert_eq!(
        verify(&program(&text), &machine()).unwrap_err().len(),
        MAX_VIOLATIONS
    );
}

#[test]
fn a_million_pes() {
    let sets = ["mesh.width=1000", "mesh.height=1000"].map(String::from);
    let machine = Machine::parse("large", MACHINE, &sets).unwrap();
    let text = "program t
region all at 0, 0 size 1000 x 1000
route c1 x 0..999 x 0..1000: west -> east ramp; filter ramp pass 1 of 1000 from x
route c1 x 999 x 0..1000: west -> ramp
route c2 y 0..1000 x 0..1: ramp -> south
route c2 y 0..1000 x 1..999: north -> south hold y * 3 - (x * 7 + y) % 2; ramp -> south
route c2 y 0..1000 x 999: north -> ramp
block 0..1000 x 0..1000
  param n = min(x % 17, 9) + y / 500
  memory a @0 64 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [4]
    desc d1 = mem f32 @a [$n] by [1]
    mov d1 = d0
    halt
feed x west row 0 c1 epoch 0 = [0]
";
    assert_eq!(verify(&program(text), &machine), Ok(()));
    let found = verify(
        &program(&text.replace("999: north -> ramp", "999: south -> ramp")),
        &machine,
    );
    assert!(found.unwrap_err()[0].to_string().contains("and 999 more PEs"));
}

#[test]
fn values_that_decide_times() {
    let at = |code: &str| {
        let text = format!(
            "program t\nregion r at 0, 0 size 1 x 1\nblock 0 x 0\n  task a data c1 -> a\n  a:\n{code}\n"
        );
        let p = program(&text);
        let b = &p.stages[0].regions[0].blocks[0];
        (
            timing_depends_on_values(b),
            timing_depends_on_values_without_skip(b),
        )
    };
    let none = |v: Vec<u32>| (v.clone(), v);
    assert_eq!(
        at("set r2 = 5\nbranch r2 < 5 a\nwait t1 >= r2\nend"),
        none(vec![])
    );
    assert_eq!(at("add r2 = r0 + 1\nbranch r2 < 5 a\nend"), none(vec![1]));
    assert_eq!(
        at("load.u16 r4 = [r2 + 0]\nmul r5 = r4 * 2\nwait t1 >= r5\nend"),
        none(vec![2])
    );
    // The shape comes from a load further down, over the loop.
    let code = "desc d1 = mem f32 @0 [r6] by [1]\nmov d1 = 0\nset r6 = r5\nload.i32 r5 = [0 + 0]\njump a";
    assert_eq!(at(code), none(vec![1]));
    assert_eq!(
        at("desc d1 = mem f32 @0 [4] by [1]\nadvance d1 += r1\nasync t1 mov d2 = d1\nend"),
        none(vec![2])
    );
    let axpy = "axpy d0 += d1 * list c1 f16 modulo 4 divisor 1 y_step 4 x_step 0\nend";
    assert_eq!(at(axpy), (vec![0], vec![]));
    let listed =
        "axpy d0 += d1 * list mem f16 index @0 value @8 count r0 modulo 4 divisor 1 y_step 4 x_step 0";
    assert_eq!(at(&format!("{listed}\nend")), none(vec![0]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn random_changes_never_panic(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0i64..20, any::<u32>().prop_map(i64::from), any::<i64>()]),
            1..5,
        ),
    ) {
        let mut text = PROGRAM.to_string();
        for (at, n) in edits {
            let bytes = text.as_bytes();
            let starts: Vec<usize> = (1..bytes.len())
                .filter(|i| bytes[*i].is_ascii_digit() && !bytes[*i - 1].is_ascii_digit())
                .collect();
            let start = starts[at.index(starts.len())];
            let end = start + bytes[start..].iter().take_while(|c| c.is_ascii_digit()).count();
            text.replace_range(start..end, &n.to_string());
        }
        if let Ok(p) = parse(&text, &DataStore::default())
            && let Err(found) = verify(&p, &machine())
        {
            prop_assert!(!found.is_empty() && found.len() <= MAX_VIOLATIONS);
        }
    }
}
