//! No kernel relies on what SRAM holds where it did not write: the machine starts with zeros (rule M2), but later stages find what
//! earlier ones left.

mod common;

use common::{Model, behind, kernels, tiny};
use meshloom_compiler::assemble::Assembler;
use meshloom_models::builtin;
use meshloom_simulator::engine::{self, Options, Outcome};
use meshloom_simulator::program::{
    Count, Instr, Lattice, Op, Operand, Program, Region, Stage, Trigger, Ty, Val, Vector, Wavelet,
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

fn left(outcome: &Outcome) -> Vec<Vec<Wavelet>> {
    let drains = outcome.drains.iter();
    drains.map(|d| d.iter().map(|l| l.wavelet).collect()).collect()
}

/// Whole models in several stages, with kernels that have more than a few elements a PE: an attention that needs its mask.
fn models() -> Vec<Model> {
    [
        "gpt:layers=1,width=8,heads=2,seq=24,vocab=11",
        "resnet18:width=1,size=8,classes=3",
        "fabric:layers=2,scales=2,channels=2",
    ]
    .into_iter()
    .map(|name| {
        let graph = builtin(name, 1, 0)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .graph;
        Model::new(name, graph, 2, false, Ty::F32)
    })
    .collect()
}

#[test]
fn a_kernel_that_clears_nothing_is_noticed() {
    let machine = tiny();
    let model = kernels()
        .into_iter()
        .find(|m| m.name == "maxpool")
        .expect("a pool");
    let mut program = model.compile(&machine).program;
    let blocks = program
        .stages
        .iter_mut()
        .flat_map(|s| &mut s.regions)
        .flat_map(|r| &mut r.blocks);
    let mut clearing: Vec<&mut Instr> = blocks
        .flat_map(|b| &mut b.code)
        .filter(|i| match i {
            Instr::Vector(Vector::Map {
                op: Op::Mov,
                a: Operand::Imm(v),
                ..
            }) => *v == f32::NEG_INFINITY,
            _ => false,
        })
        .collect();
    assert!(!clearing.is_empty());
    clearing
        .iter_mut()
        .for_each(|i| **i = Instr::Set(15, Val::Imm(0)));
    let run = |p: &Program| engine::run(p, &machine, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    for value in [f32::NAN, 1234.5] {
        assert!(left(&run(&behind(filling(&machine, value), &program))) != left(&run(&program)));
    }
}

#[test]
fn kernels_give_the_same_on_memory_that_was_used() {
    let machine = tiny();
    for model in kernels().into_iter().chain(models()) {
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
