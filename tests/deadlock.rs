//! A run that cannot go on ends, and says why: with the circle of waits, or the chain of waits down to what never comes, with the
//! wavelets that are left, or with the instruction that did what the rules forbid (rule M17). Nothing here may hang: each program is
//! run with every order of visits and ends by itself, long before the limit.

mod common;

use common::{comparable, on_both, small};
use meshloom_simulator::engine::{self, Engine, Options, RunError, Visit};
use meshloom_simulator::{Machine, text, verify};

/// A row of PEs with a channel at each end.
fn row(width: u32) -> Machine {
    small(&[&format!("mesh.width={width}"), "mesh.height=1"])
}

/// How a program that must fail fails.
fn failure_on(machine: &Machine, program: &str) -> RunError {
    let program = text::parse(program, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    if let Err(all) = verify::verify(&program, machine) {
        panic!(
            "refused: {}",
            all.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("\n")
        );
    }
    let run = |visit| {
        engine::run(
            &program,
            machine,
            &Options {
                engine: Engine::Reference,
                visit,
                max_cycles: Some(100_000),
                ..Options::default()
            },
        )
        .map(comparable)
    };
    let first = run(Visit::Active);
    for visit in [Visit::All, Visit::Shuffled(3)] {
        assert_eq!(run(visit), first, "{visit:?}");
    }
    let both = on_both(&program, machine, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(both, first, "on the fast engine");
    let error = first.expect_err("a program that cannot end well");
    assert!(!matches!(error, RunError::TooLong { .. }), "it hangs");
    error
}

fn deadlock(width: u32, program: &str) -> String {
    match failure_on(&row(width), program) {
        e @ RunError::Deadlock { .. } => e.to_string(),
        e => panic!("expected a deadlock: {e}"),
    }
}

fn left_over(width: u32, program: &str) -> String {
    match failure_on(&row(width), program) {
        e @ RunError::LeftOver { .. } => e.to_string(),
        e => panic!("expected wavelets left over: {e}"),
    }
}

fn fault(program: &str) -> String {
    match failure_on(&row(2), program) {
        e @ RunError::Fault { .. } => e.to_string(),
        e => panic!("expected a fault: {e}"),
    }
}

/// Two streams of this many elements from PE 0 to PE 1, which takes the second one first.
fn wrong_order(elements: u32) -> String {
    format!(
        "program shallow
region pair at 0, 0 size 2 x 1
route c1 first 0 x 0: ramp -> east
route c1 first 1 x 0: west -> ramp
route c2 second 0 x 0: ramp -> east
route c2 second 1 x 0: west -> ramp
block 0 x 0
  task main start -> main
  main:
    desc d0 = out c1 f32 [{elements}]
    desc d1 = out c2 f32 [{elements}]
    mov d0 = 1.0
    mov d1 = 2.0
    halt
block 1 x 0
  memory x @0 400 bytes
  task main start -> main
  main:
    desc d0 = in c2 f32 [{elements}]
    desc d1 = in c1 f32 [{elements}]
    desc d2 = mem f32 @x [{elements}] by [1]
    mov d2 = d0
    mov d2 = d1
    halt
"
    )
}

#[test]
fn a_queue_too_shallow_is_a_circle() {
    insta::assert_snapshot!(deadlock(2, &wrong_order(40)));
    // what fits the queues on the way does no harm: 3 places out of the core, 4 up the ramp, 3 over the link, 4 down the ramp
    let places = 3 + 4 + 3 + 4;
    let ends = |n| {
        let program = text::parse(&wrong_order(n), &Default::default()).unwrap_or_else(|e| panic!("{e}"));
        engine::run(&program, &row(2), &Options::default()).is_ok()
    };
    assert!(ends(places) && !ends(places + 1));
}

#[test]
fn a_missing_sender_is_a_chain() {
    let program = |sender: &str| {
        format!(
            "program missing
region row at 0, 0 size 3 x 1
route c1 parts 0 x 0: ramp -> east
route c1 parts 1 x 0: west -> east
route c1 parts 2 x 0: west -> ramp
{sender}
block 2 x 0
  memory x @0 16 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [4]
    desc d1 = mem f32 @x [4] by [1]
    async t3 mov d1 = d0
    wait t3
    halt
"
        )
    };
    let with_code = |code: &str| {
        program(&format!(
            "block 0 x 0\n  task main start -> main\n  main:\n{code}"
        ))
    };
    insta::assert_snapshot!("no_code", deadlock(3, &program("")));
    insta::assert_snapshot!(
        "halted",
        deadlock(
            3,
            &with_code("    desc d0 = out c1 f32 [3]\n    mov d0 = 1.0\n    halt")
        )
    );
    insta::assert_snapshot!(
        "no_task",
        deadlock(
            3,
            &with_code("    desc d0 = out c1 f32 [3]\n    mov d0 = 1.0\n    end")
        )
    );
    let waits = "    desc d0 = out c1 f32 [3]\n    mov d0 = 1.0\n    wait t1 >= 5\n    halt";
    insta::assert_snapshot!("idle_microthread", deadlock(3, &with_code(waits)));
}

#[test]
fn two_that_wait_for_each_other_are_a_circle() {
    let program = "program mutual
region pair at 0, 0 size 2 x 1
route c1 there 0 x 0: ramp -> east
route c1 there 1 x 0: west -> ramp
route c2 back 1 x 0: ramp -> west
route c2 back 0 x 0: east -> ramp
block 0 x 0
  memory x @0 16 bytes
  task main start -> main
  main:
    desc d0 = in c2 f32 [4]
    desc d1 = mem f32 @x [4] by [1]
    desc d2 = out c1 f32 [4]
    mov d1 = d0
    mov d2 = d1
    halt
block 1 x 0
  memory x @0 16 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [4]
    desc d1 = mem f32 @x [4] by [1]
    desc d2 = out c2 f32 [4]
    mov d1 = d0
    mov d2 = d1
    halt
";
    insta::assert_snapshot!(deadlock(2, program));
}

/// PEs 0 and 1 send a block each to PE 2; at PE 1 its own goes first.
fn gather(hold: u32, flag: &str) -> String {
    format!(
        "program gather
region row at 0, 0 size 3 x 1
route c1 blocks 0 x 0: ramp -> east
route c1 blocks 1 x 0: ramp -> east hold {hold}; west -> east hold 1
route c1 blocks 2 x 0: west -> ramp
block 0..2 x 0
  task main start -> main
  main:
    desc d0 = out c1 f32 [20] {flag}
    mov d0 = 1.0
    halt
block 2 x 0
  memory x @0 160 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [40]
    desc d1 = mem f32 @x [40] by [1]
    mov d1 = d0
    halt
"
    )
}

#[test]
fn a_switch_that_never_advances_is_a_chain() {
    insta::assert_snapshot!("hold_too_long", deadlock(3, &gather(2, "flag")));
    insta::assert_snapshot!("no_flag", deadlock(3, &gather(1, "")));
    let program = text::parse(&gather(1, "flag"), &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(engine::run(&program, &row(3), &Options::default()).is_ok());
}

fn fed(core: &str, wavelets: usize) -> String {
    format!(
        "program fed
region row at 0, 0 size 2 x 1
route c1 \"in -> row\" 0 x 0: west -> east
route c1 \"in -> row\" 1 x 0: west -> ramp
block 1 x 0
  memory x @0 64 bytes
  task main start -> main
  main:
{core}
feed in west row 0 c1 epoch 0 = [{}]
feed later west row 0 c1 epoch 1 = [3f800000 40000000]
",
        "3f800000 ".repeat(wavelets)
    )
}

#[test]
fn a_feed_that_never_drains_is_a_deadlock() {
    // the PE takes two and is done with it
    let takes = "    desc d0 = in c1 f32 [2]\n    desc d1 = mem f32 @x [2] by [1]\n    mov d1 = d0\n    halt";
    insta::assert_snapshot!("taker_halted", deadlock(2, &fed(takes, 40)));
    let waits = "    desc d0 = in c1 f32 [2]\n    desc d1 = mem f32 @x [2] by [1]\n    mov d1 = d0\n    end";
    insta::assert_snapshot!("taker_without_task", deadlock(2, &fed(waits, 40)));
    // more is wanted than all feeds bring
    let wants =
        "    desc d0 = in c1 f32 [16]\n    desc d1 = mem f32 @x [16] by [1]\n    mov d1 = d0\n    halt";
    insta::assert_snapshot!("feeds_end", deadlock(2, &fed(wants, 3)));
}

#[test]
fn a_data_task_that_waits_is_named() {
    let program = "program server
region pair at 0, 0 size 2 x 1
route c1 requests 0 x 0: ramp -> east
route c1 requests 1 x 0: west -> ramp
block 0 x 0
  task main start -> main
  main:
    halt
block 1 x 0
  task serve data c1 -> serve
  serve:
    end
";
    insta::assert_snapshot!(deadlock(2, program));
}

#[test]
fn a_wait_for_a_microthread_that_is_stuck_names_its_instruction() {
    let program = "program behind
region pair at 0, 0 size 2 x 1
route c1 never 0 x 0: ramp -> east
route c1 never 1 x 0: west -> ramp
route c2 answer 1 x 0: ramp -> west
route c2 answer 0 x 0: east -> ramp
block 0 x 0
  memory x @0 16 bytes
  task main start -> main
  main:
    desc d0 = in c2 f32 [4]
    desc d1 = mem f32 @x [4] by [1]
    async t1 mov d1 = d0
    wait t1
    desc d2 = out c1 f32 [4]
    mov d2 = d1
    halt
block 1 x 0
  memory x @0 16 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [4]
    desc d1 = mem f32 @x [4] by [1]
    desc d2 = out c2 f32 [4]
    async t1 mov d1 = d0
    wait t1 >= 3
    mov d2 = d1
    halt
";
    insta::assert_snapshot!(deadlock(2, program));
}

#[test]
fn a_priority_cannot_hide_a_multicast_that_is_stuck() {
    // PE 1 takes nothing of the multicast, so PE 2 does not get it either
    let program = "program multicast
region row at 0, 0 size 3 x 1
route c1 all 0 x 0: ramp -> east
route c1 all 1 x 0: west -> ramp east
route c1 all 2 x 0: west -> ramp
block 0 x 0
  task main start -> main
  main:
    desc d0 = out c1 f32 [30]
    mov d0 = 1.0
    halt
block 1 x 0
  task main start -> main
  task never local -> main
  main:
    end
block 2 x 0
  memory x @0 120 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [30]
    desc d1 = mem f32 @x [30] by [1]
    mov d1 = d0
    halt
";
    insta::assert_snapshot!(deadlock(3, program));
}

#[test]
fn a_switch_whose_holds_are_all_0_grants_nothing() {
    let program = |hold: u32| {
        format!(
            "program nowhere
region one at 0, 0 size 1 x 1
route c1 own 0 x 0: ramp -> ramp hold 0; ramp -> ramp hold {hold}
block 0 x 0
  memory x @0 8 bytes
  task main start -> main
  main:
    desc d0 = out c1 f32 [2]
    desc d1 = in c1 f32 [2]
    desc d2 = mem f32 @x [2] by [1]
    async t1 mov d0 = 1.0
    mov d2 = d1
    halt
"
        )
    };
    insta::assert_snapshot!(deadlock(2, &program(0)));
    let program = text::parse(&program(1), &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(engine::run(&program, &row(2), &Options::default()).is_ok());
}

#[test]
fn what_is_left_is_an_error() {
    let program = |taken: u32, sent: u32, drain: u32| {
        format!(
            "program left
region pair at 0, 0 size 2 x 1
route c1 parts 0 x 0: ramp -> east
route c1 parts 1 x 0: west -> ramp
route c2 result 1 x 0: ramp -> east
block 0 x 0
  task main start -> main
  main:
    desc d0 = out c1 f32 [5]
    mov d0 = 1.0
    halt
block 1 x 0
  memory x @0 20 bytes
  task main start -> main
  main:
    desc d0 = in c1 f32 [{taken}]
    desc d1 = mem f32 @x [{taken}] by [1]
    mov d1 = d0
    desc d2 = out c2 f32 [{sent}]
    mov d2 = 1.0
    halt
drain y east row 0 c2: {drain} wavelets
"
        )
    };
    insta::assert_snapshot!("wavelet_left", left_over(2, &program(4, 3, 3)));
    insta::assert_snapshot!("drain_has_too_few", left_over(2, &program(5, 2, 3)));
    insta::assert_snapshot!("drain_has_too_many", left_over(2, &program(5, 4, 3)));
    insta::assert_snapshot!("all_of_it", left_over(2, &program(1, 4, 0)));
    let program = text::parse(&program(5, 3, 3), &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(engine::run(&program, &row(2), &Options::default()).is_ok());
}

/// PE 1 runs this code; PE 0 sends it two wavelets of one element.
fn faulty(code: &str) -> String {
    let code: String = code.lines().map(|l| format!("    {}\n", l.trim())).collect();
    format!(
        "program faulty
region sender at 0, 0 size 1 x 1
route c1 parts 0 x 0: ramp -> east
block 0 x 0
  task main start -> main
  main:
    desc d0 = out c1 f32 [2]
    mov d0 = 1.0
    halt
region taker at 1, 0 size 1 x 1
route c1 parts 0 x 0: west -> ramp
block 0 x 0
  memory x @0 64 bytes
  task main start -> main
  main:
{code}    halt
"
    )
}

#[test]
fn faults_name_the_pe_the_region_and_the_instruction() {
    let cases = [
        (
            "unset",
            "jump set\nback:\nmov d1 = d0\nset:\nset r2 = 1\nbranch r2 == 1 back\ndesc d0 = in c1 f32 [2]\ndesc d1 = mem f32 @x [2] by [1]",
        ),
        (
            "extents",
            "set r2 = 3\ndesc d0 = in c1 f32 [2]\ndesc d1 = mem f32 @x [r2] by [1]\nmov d1 = d0",
        ),
        (
            "memory",
            "set r2 = 60\ndesc d0 = in c1 f32 [2]\ndesc d1 = mem f32 @r2 [2] by [1]\nmov d1 = d0",
        ),
        (
            "memory_in_a_microthread",
            "set r2 = 60\ndesc d0 = in c1 f32 [2]\ndesc d1 = mem f32 @r2 [2] by [1]\nasync t2 mov d1 = d0\nwait t2",
        ),
        ("extent", "set r2 = -1\ndesc d0 = in c1 f32 [r2]"),
        ("address", "set r2 = 62\nload.i32 r3 = [r2 + 0]"),
        (
            "elements",
            "desc d0 = in c1 f16 [2]\ndesc d1 = mem f16 @x [2] by [1]\nmov d1 = d0",
        ),
        (
            "elements_in_a_microthread",
            "desc d0 = in c1 f16 [2]\ndesc d1 = mem f16 @x [2] by [1]\nasync t1 mov d1 = d0\nwait t1",
        ),
        (
            "modulo",
            "set r2 = 0\ndesc d0 = mem f32 @x [2] by [1]\naxpy d0 += d0 * list mem f32 index @0 value @0 count 1 modulo r2 divisor 1 y_step 4 x_step 4",
        ),
        (
            "list",
            "set r2 = 30\ndesc d0 = mem f32 @x [2] by [1]\naxpy d0 += d0 * list mem f32 index @0 value @0 count r2 modulo 1 divisor 1 y_step 4 x_step 4",
        ),
        (
            "index",
            "set r2 = 99\nstore.u16 [0 + 0] = r2\ndesc d0 = mem f32 @x [2] by [1]\naxpy d0 += d0 * list mem f32 index @0 value @4 count 1 modulo 100 divisor 1 y_step 4 x_step 4",
        ),
    ];
    let all: Vec<String> = cases
        .iter()
        .map(|(name, code)| format!("{name}: {}", fault(&faulty(code))))
        .collect();
    for text in &all {
        assert!(
            text.contains("PE (1, 0)") && text.contains("region taker") && text.contains("instruction "),
            "{text}"
        );
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn of_two_faults_in_one_cycle_the_first_in_row_order_is_told() {
    let program = "program twice
region row at 0, 0 size 3 x 1
block 0..3 x 0
  task main start -> main
  memory x @0 8 bytes
  main:
    set r2 = 9
    desc d0 = mem f32 @r2 [2] by [1]
    mov d0 = 1.0
    halt
";
    let RunError::Fault { x, y, cycle, .. } = failure_on(&row(3), program) else {
        panic!("a fault")
    };
    assert_eq!((x, y, cycle), (0, 0, 1 + 9));
}
