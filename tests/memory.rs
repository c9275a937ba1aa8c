//! No kernel relies on what SRAM holds where it did not write: the machine starts with zeros (rule M2), but later stages find what
//! earlier ones left.

mod common;

use common::{kernels, tiny};
use meshloom_compiler::assemble::Assembler;
use meshloom_simulator::engine::{self, Options, Outcome};
use meshloom_simulator::program::{
    Count, FeedData, Instr, Lattice, Op, Operand, Program, Region, Stage, Trigger, Ty, Val, Wavelet,
};
use meshloom_simulator::{Machine, edge, verify};

/// A stage in which every PE fills its SRAM, but for what its code takes, with a number.
fn filling(machine: &Machine, value: f32) -> Stage {
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    let code = 8 * machine.pe.instruction_bytes;
    let words = (machine.pe.sram_bytes - code) / 4;
    let mut a = Assembler::new();
    let at = a.buffer("all", 4 * words, 0);
    a.task("main", Trigger::Start);
    a.memory(
        0,
        Ty::F32,
        Val::Imm(at),
        &[Val::Imm(i64::from(words))],
        &[1],
        true,
    );
    a.map(Op::Mov, 0, Operand::Imm(value), None, Count::None);
    a.emit(Instr::Halt);
    assert!(a.len() <= 8);
    let region = Region {
        name: "filling".into(),
        x: 0,
        y: 0,
        width,
        height,
        routes: Vec::new(),
        blocks: vec![a.finish(Lattice::rect(0, 0, width, height))],
    };
    Stage {
        name: "filling".into(),
        priority: Vec::new(),
        regions: vec![region],
        feeds: Vec::new(),
        drains: Vec::new(),
    }
}

/// The program behind another stage.
fn behind(first: Stage, program: &Program) -> Program {
    let mut all = program.clone();
    let spans = all
        .stages
        .iter_mut()
        .flat_map(|s| &mut s.feeds)
        .filter_map(|f| match &mut f.data {
            FeedData::Drained(spans) => Some(spans),
            FeedData::Host(_) => None,
        });
    spans.flatten().for_each(|s| s.stage += 1);
    all.stages.insert(0, first);
    all
}

fn left(outcome: &Outcome) -> Vec<Vec<Wavelet>> {
    let drains = outcome.drains.iter();
    drains.map(|d| d.iter().map(|l| l.wavelet).collect()).collect()
}

#[test]
fn kernels_give_the_same_on_memory_that_was_used() {
    let machine = tiny();
    for model in kernels() {
        let program = model.compile(&machine).program;
        let run = |p: &Program| {
            verify::verify(p, &machine).unwrap_or_else(|e| panic!("{}: {e:?}", model.name));
            engine::run(p, &machine, &Options::default()).unwrap_or_else(|e| panic!("{}: {e}", model.name))
        };
        let clean = run(&program);
        // one that spreads, one that looks like any other number
        for value in [f32::NAN, -1234.5] {
            let used = run(&behind(filling(&machine, value), &program));
            assert!(
                left(&used) == left(&clean),
                "{} reads SRAM that it did not write ({value})",
                model.name
            );
            let times: Vec<u64> = used.stages[1..].iter().map(|s| s.end - s.begin).collect();
            let before: Vec<u64> = clean.stages.iter().map(|s| s.end - s.begin).collect();
            assert_eq!(
                times, before,
                "{}: its time depends on what SRAM held",
                model.name
            );
        }
        assert!(
            edge::entering(&program, &machine) <= clean.cycles,
            "{}",
            model.name
        );
    }
}

/// Where the edge is what everything waits for, what enters by it takes nearly all cycles.
#[test]
fn a_slow_edge_takes_the_cycles_that_are_foretold() {
    let machine = common::small(&["edge.bits_per_second=1e8"]);
    assert!(machine.channels()[0].gap > 100);
    for model in kernels().into_iter().step_by(5) {
        let program = model.compile(&machine).program;
        let outcome = engine::run(&program, &machine, &Options::default())
            .unwrap_or_else(|e| panic!("{}: {e}", model.name));
        let least = edge::entering(&program, &machine);
        // what leaves has the same gap
        let leaving: u64 = outcome.drains.iter().map(|d| d.len() as u64).sum();
        let most = least + leaving * u64::from(machine.channels()[0].gap) + 3000;
        assert!(
            (least..=most).contains(&outcome.cycles),
            "{}: {least} {} {most}",
            model.name,
            outcome.cycles
        );
    }
}
