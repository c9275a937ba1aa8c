//! The plots of made-up runs. They are also written to cargo's folder for tests' files, to be looked at.

mod common;

use common::*;
use meshloom_traces::plots::{MeshUse, Plot, cycles, speedup, split, utilisation};
use meshloom_traces::*;
use std::path::Path;

/// A run and what its PEs executed.
struct Made {
    run: Run,
    work: Vec<u64>,
}

impl Made {
    fn new(
        name: RunName,
        sparsity: f64,
        m: &meshloom_simulator::Machine,
        kernels: &[KernelRegion],
        story: &Story,
    ) -> Made {
        let outcome = outcome(m.mesh.width, m.mesh.height, kernels, story);
        Made {
            run: run(name, sparsity, m, kernels, story),
            work: outcome
                .pes
                .iter()
                .map(|p| p.operations[0] + p.operations[1])
                .collect(),
        }
    }

    fn mesh(&self) -> MeshUse<'_> {
        MeshUse {
            run: &self.run,
            multiply_adds: &self.work,
            lanes: 1,
        }
    }
}

/// Holds the plot to be a picture, and writes it where it can be looked at.
fn kept(name: &str, plot: Plot) -> Plot {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plots");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.svg")), &plot.svg).unwrap();
    std::fs::write(folder.join(format!("{name}.png")), &plot.png).unwrap();
    assert!(
        plot.svg.starts_with("<svg ") && plot.svg.trim_end().ends_with("</svg>"),
        "{name}"
    );
    assert!(plot.png.starts_with(b"\x89PNG\r\n\x1a\n"), "{name}");
    plot
}

/// `count` kernels in rows of ten on a mesh of this size.
fn many(count: u32, width: u32, height: u32) -> Vec<KernelRegion> {
    let (w, h) = (width / 10, height / count.div_ceil(10));
    (0..count)
        .map(|i| {
            let op = ["conv", "relu", "relayout", "add"][i as usize % 4];
            let name = format!("layer{}.{}.{op}{}", i / 8 + 1, i / 4 % 2, i % 4 + 1);
            kernel(&name, op, i % 10 * w, i / 10 * h, w, h)
        })
        .collect()
}

fn two(m: &meshloom_simulator::Machine, kernels: &[KernelRegion]) -> [Made; 2] {
    [
        Made::new(RunName::Dense, 0.0, m, kernels, &dense()),
        Made::new(RunName::Sparse, 0.75, m, kernels, &sparse()),
    ]
}

fn draw_both(name: &str, made: &[Made]) -> [Plot; 2] {
    let meshes: Vec<_> = made.iter().map(Made::mesh).collect();
    let runs: Vec<_> = made.iter().map(|m| &m.run).collect();
    [
        kept(
            &format!("{name}-utilisation"),
            utilisation("mlp", &meshes).unwrap(),
        ),
        kept(&format!("{name}-cycles"), cycles("mlp", &runs).unwrap()),
    ]
}

#[test]
fn three_kernels() {
    let m = machine("tiny", 6, 4);
    let kernels = [
        kernel("fc0", "matmul", 0, 0, 3, 4),
        kernel("relu", "relu", 3, 0, 1, 2),
        kernel("fc1", "matmul", 4, 0, 2, 3),
    ];
    let [heat, bars] = draw_both("three", &two(&m, &kernels));
    insta::assert_snapshot!("plots_heat", heat.svg);
    insta::assert_snapshot!("plots_bars", bars.svg);
}

#[test]
fn seven_kernels() {
    draw_both("seven", &two(&machine("small", 32, 32), &mlp()));
}

#[test]
fn forty_kernels() {
    let plots = draw_both("forty", &two(&machine("small", 64, 48), &many(40, 64, 48)));
    for name in ["layer1.0.conv1", "layer5.1.add4"] {
        assert!(
            plots.iter().all(|p| p.svg.contains(name)),
            "{name} is named in each"
        );
    }
}

#[test]
fn a_wafer_is_binned() {
    let m = machine("wafer", 750, 994);
    let [heat, _] = draw_both("wafer", &two(&m, &many(40, 750, 994)));
    assert!(heat.svg.contains("the mean of 4x4 PEs"));
    assert!(heat.svg.len() < 12_000_000, "{} bytes", heat.svg.len());
}

#[test]
fn meshes_of_every_shape() {
    for (w, h) in [(1, 1), (9, 1), (1, 40), (1000, 1), (1, 3000)] {
        let m = machine("odd", w, h);
        draw_both(
            &format!("odd-{w}x{h}"),
            &two(&m, &[kernel("all", "matmul", 0, 0, w, h)]),
        );
    }
    draw_both("none", &two(&machine("tiny", 4, 4), &[]));
    assert!(utilisation("mlp", &[]).is_ok() && cycles("mlp", &[]).is_ok());
}

#[test]
fn names_of_any_length_and_letters_stay_on_the_page() {
    let m = machine(&"m".repeat(300), 6, 4);
    let long = "n".repeat(2000);
    let kernels = [
        kernel("a<b>&\"c\"\u{1}\n", "matmul", 0, 0, 3, 4),
        kernel(&long, "matmul", 3, 0, 3, 4),
    ];
    for plot in draw_both("names", &two(&m, &kernels)) {
        assert!(!plot.svg.contains("<b>") && !plot.svg.contains('\u{1}'));
        assert!(!plot.svg.contains(&long) && plot.svg.contains("nnn…nnn"));
        let width: u32 = plot.svg[12..].split('"').next().unwrap().parse().unwrap();
        assert!(width < 1600, "{width}");
    }
}

#[test]
fn kernels_that_lie_on_one_another_are_not_named() {
    let m = machine("small", 16, 16);
    let kernels = [
        kernel("first", "matmul", 0, 0, 16, 16),
        kernel("second", "matmul", 0, 0, 16, 12),
    ];
    let mut made = two(&m, &kernels);
    made.iter_mut().for_each(|m| m.run.kernels[1].stage = 1);
    let [heat, _] = draw_both("stages", &made);
    assert!(heat.svg.contains("2 stages, one after another"));
    assert!(!heat.svg.contains("second"));
}

#[test]
fn hundreds_of_kernels_are_cut_to_those_that_work_longest() {
    let m = machine("large", 100, 300);
    let [_, bars] = draw_both("hundreds", &two(&m, &many(300, 100, 300)));
    assert!(bars.svg.contains("the 240 of 300 kernels that work longest"));
}

#[test]
fn the_same_runs_give_the_same_bytes() {
    let m = machine("small", 32, 32);
    assert_eq!(
        draw_both("again", &two(&m, &mlp())),
        draw_both("again", &two(&m, &mlp()))
    );
}

#[test]
fn the_shares_of_a_bar_add_up() {
    for made in two(&machine("small", 32, 32), &mlp()) {
        for k in &made.run.kernels {
            let parts = split(k);
            assert_eq!(parts.iter().sum::<u64>(), k.pe_cycles());
            assert_eq!(k.pe_cycles(), k.region.area() * made.run.cycles.total);
            // one lane: a slot a multiply-add
            assert_eq!(parts[0], k.executed.mac);
            assert_eq!(
                parts[1..],
                [
                    k.busy - k.executed.mac,
                    k.launch,
                    k.wait_input,
                    k.wait_room,
                    k.idle
                ]
            );
        }
    }
}

fn sparsities(m: &meshloom_simulator::Machine, factor: u64) -> Vec<Run> {
    let mut runs = vec![run(RunName::Dense, 0.0, m, &mlp(), &dense())];
    for (sparsity, total, high) in [
        (0.0, 130_000, 50),
        (0.5, 80_000, 40),
        (0.75, 51_020, 30),
        (0.9, 35_000, 20),
    ] {
        let story = Story {
            total: total * factor / 10,
            low: high / 2,
            high,
            ..sparse()
        };
        runs.push(run(RunName::Sparse, sparsity, m, &mlp(), &story));
    }
    runs
}

#[test]
fn speed_up_against_sparsity() {
    let mut runs = sparsities(&machine("small", 32, 32), 10);
    let one = kept("one-speedup", speedup(&report(1, runs.clone())).unwrap().unwrap());
    insta::assert_snapshot!("plots_speedup", one.svg);
    runs.extend(sparsities(&machine("wide", 40, 32), 8));
    runs.extend(sparsities(&machine("high", 32, 40), 14));
    kept("three-speedup", speedup(&report(1, runs)).unwrap().unwrap());
}

#[test]
fn one_sparsity_is_no_line() {
    let report = report(1, three_runs(&machine("small", 32, 32), 1));
    assert_eq!(speedup(&report).unwrap(), None);
}
