//! No text makes the simulator panic. Texts of compiled kernels, of the manual's program and of deadlocks are damaged (bytes flipped,
//! lines dropped, doubled and swapped, numbers replaced by awkward ones), read, verified and run for a while. Whatever is wrong with
//! one is an error with a place, at the latest a fault of the run. Debug builds check arithmetic for overflow as well.

mod common;

use common::{kernels, small, tiny};
use meshloom_simulator::engine::{self, Options, RunError, Visit};
use meshloom_simulator::text::{self, DataStore};
use meshloom_simulator::{Machine, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// One damage; numbers select places modulo what there is.
#[derive(Clone, Debug)]
enum Damage {
    Flip(u32, u8),
    Drop(u32),
    Double(u32),
    Swap(u32, u32),
    Number(u32, u32),
    Cut(u32),
}

const AWKWARD: [u128; 22] = [
    0,
    1,
    2,
    3,
    7,
    15,
    16,
    44,
    255,
    256,
    65_535,
    65_536,
    1 << 24,
    (1 << 24) + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 62) + 3,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
];

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => (any::<u32>(), 1u8..=255).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        2 => any::<u32>().prop_map(Damage::Drop),
        1 => any::<u32>().prop_map(Damage::Double),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        8 => (any::<u32>(), any::<u32>()).prop_map(|(at, n)| Damage::Number(at, n)),
        1 => any::<u32>().prop_map(Damage::Cut),
    ]
}

/// The runs of digits.
fn numbers(text: &str) -> Vec<std::ops::Range<usize>> {
    let b = text.as_bytes();
    let mut all = Vec::new();
    let mut i = 0;
    while i < b.len() {
        let start = i;
        while i < b.len() && b[i].is_ascii_digit() {
            i += 1;
        }
        if i > start {
            all.push(start..i);
        } else {
            i += 1;
        }
    }
    all
}

fn damaged(text: &str, damage: &[Damage]) -> String {
    let mut text = text.to_string();
    for d in damage {
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        let n = lines.len().max(1);
        match *d {
            Damage::Flip(at, bits) => {
                let mut bytes = text.into_bytes();
                let n = bytes.len().max(1);
                if let Some(b) = bytes.get_mut(at as usize % n) {
                    *b ^= bits;
                }
                text = String::from_utf8_lossy(&bytes).into_owned();
                continue;
            }
            Damage::Drop(at) if !lines.is_empty() => drop(lines.remove(at as usize % n)),
            Damage::Double(at) if !lines.is_empty() => {
                let line = lines[at as usize % n].clone();
                lines.insert(at as usize % n, line);
            }
            Damage::Swap(a, b) if !lines.is_empty() => lines.swap(a as usize % n, b as usize % n),
            Damage::Cut(at) => lines.truncate(at as usize % n),
            Damage::Number(at, to) => {
                let all = numbers(&text);
                if all.is_empty() {
                    continue;
                }
                let place = all[at as usize % all.len()].clone();
                let old: u128 = text[place.clone()].parse().unwrap_or(0);
                let new = match to as usize % (AWKWARD.len() + 4) {
                    0 => old + 1,
                    1 => old.saturating_sub(1),
                    2 => old * 2,
                    3 => old.wrapping_add(64),
                    k => AWKWARD[k - 4],
                };
                // now and then a negative one
                let sign = if to.is_multiple_of(7) { "-" } else { "" };
                text.replace_range(place, &format!("{sign}{new}"));
                continue;
            }
            _ => continue,
        }
        text = lines.join("\n") + "\n";
    }
    text
}

const SERVER: &str = "program server
region pair at 0, 0 size 2 x 1
route c1 requests 0 x 0: ramp -> east hold 2; ramp -> east ramp
route c1 requests 1 x 0: west -> ramp; filter ramp pass 3 of 4 from 1
route c2 list 0 x 0: west -> ramp
block 0 x 0
  memory x @0 64 bytes
  task main start -> main
  task again local blocked -> again
  main:
    desc d0 = out c1 f16 [2 2] flag
    desc d1 = mem f32 @x [4] by [1]
    async t1 mov d0 = 0.5 then again
    axpy d1 += d1 * list c2 f32 modulo 1 divisor 2 y_step 0 x_step 4
    axpy d1 += d1 * list mem f16 index @8 value @x+16 count 2 modulo 1 divisor 9 y_step 4 x_step 4
    base d1 = @x+8
    advance d1 += -8
    wait t1 >= 4
    unblock again
    end
  again:
    store.i32 [4 + 8] = -5
    load.u16 r3 = [r2 + 8]
    tanh d1 = d1
    halt
block 1 x 0
  memory sum @32 8 bytes
  task serve data c1 -> serve
  serve:
    add r5 = r5 + 1
    branch r5 >= 1 out
    end
  out:
    halt
feed list west row 0 c2 epoch 0 = [1 3f800000 1 0 0 40000000!]
";

/// The program of a page of docs/, as a reader would copy it.
fn manual(page: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    let page = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let code = page
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    code.expect("a program").to_string()
}

#[test]
fn no_text_makes_it_panic() {
    let (machine, four) = (tiny(), small(&["mesh.width=4", "mesh.height=2"]));
    let two = small(&["mesh.width=2", "mesh.height=1"]);
    let mut texts: Vec<(String, DataStore, &Machine)> = kernels()
        .iter()
        .map(|m| m.compile(&machine).program)
        .map(|p| (text::print(&p), text::data(&p), &machine))
        .collect();
    for (own, machine) in [
        (SERVER.to_string(), &machine),
        (manual("program.md"), &four),
        (manual("machine.md"), &two),
    ] {
        let p = text::parse(&own, &DataStore::default()).unwrap_or_else(|e| panic!("{e}\n{own}"));
        if let Err(v) = verify::verify(&p, machine) {
            panic!("{}", v[0]);
        }
        // short ones are hit more often
        texts.extend((0..6).map(|_| (own.clone(), DataStore::default(), machine)));
    }
    let reached = RefCell::new(BTreeMap::<&str, u32>::new());
    let cases = if cfg!(debug_assertions) { 4000 } else { 12_000 };
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let case = (any::<u32>(), prop::collection::vec(damage(), 1..6));
    let result = runner.run(&case, |(which, damage)| {
        let (text, data, machine) = &texts[which as usize % texts.len()];
        let text = damaged(text, &damage);
        let end = |what| *reached.borrow_mut().entry(what).or_default() += 1;
        let Ok(program) = text::parse(&text, data) else {
            end("unreadable");
            return Ok(());
        };
        // what can be read can be written and read again
        let again = text::parse(&text::print(&program), &text::data(&program));
        prop_assert!(
            again
                .as_ref()
                .is_ok_and(|a| format!("{a:?}") == format!("{program:?}")),
            "{again:?}"
        );
        if let Err(all) = verify::verify(&program, machine) {
            prop_assert!(!all.is_empty() && all.iter().all(|v| !v.to_string().is_empty()));
            end("refused");
            return Ok(());
        }
        let run = |visit| {
            engine::run(
                &program,
                machine,
                &Options {
                    visit,
                    max_cycles: Some(2000),
                    ..Options::default()
                },
            )
        };
        let outcome = run(Visit::Active);
        end(match &outcome {
            Ok(_) => "done",
            Err(RunError::Fault { .. }) => "fault",
            Err(RunError::Deadlock { .. }) => "deadlock",
            Err(RunError::LeftOver { .. }) => "left over",
            Err(RunError::TooLong { .. }) => "too long",
        });
        if let Err(e) = outcome {
            prop_assert!(!e.to_string().is_empty());
            prop_assert_eq!(run(Visit::Shuffled(9)).err(), Some(e));
        }
        Ok(())
    });
    let reached = reached.into_inner();
    println!("{reached:?}");
    result.unwrap_or_else(|e| panic!("{e}"));
    for stage in [
        "unreadable",
        "refused",
        "done",
        "fault",
        "deadlock",
        "left over",
        "too long",
    ] {
        assert!(
            reached.get(stage).is_some_and(|n| *n >= 5),
            "too few end as {stage}: {reached:?}"
        );
    }
}
