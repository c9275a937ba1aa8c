//! A machine, and made-up outcomes of an engine whose counters agree with each other.
#![allow(dead_code)]

use meshloom_simulator::Machine;
use meshloom_simulator::change::Change;
use meshloom_simulator::engine::{Landed, Outcome, PeCounters, StageOutcome};
use meshloom_simulator::machine::*;
use meshloom_simulator::program::Wavelet;
use meshloom_traces::*;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        (z ^ (z >> 31)) % n
    }
}

pub fn machine(name: &str, width: u32, height: u32) -> Machine {
    Machine {
        name: name.into(),
        clock_hz: 0.85e9,
        mesh: Mesh { width, height },
        pe: Pe {
            sram_bytes: 49_152,
            instruction_bytes: 8,
            threads: 9,
            move_queue: 2,
            moves_first: true,
            input_queue_depth: 8,
            output_queue_depth: 2,
            sram: Sram {
                banks: 8,
                bank_bytes: 8,
                conflict_modulus: 4,
                port_bits: 64,
            },
            lanes: Lanes {
                f32: 1,
                f32_simple: 2,
                f16: 2,
                f16_accumulate: 4,
                f16_simple: 4,
            },
            cost: Cost {
                issue: 6,
                task_launch: 5,
                load: 2,
                add: 1,
                multiply: 2,
                branch: 2,
                descriptor: 4,
            },
            special: Special {
                exp: 12,
                divide: 10,
                rsqrt: 10,
                tanh: 16,
            },
        },
        router: Router {
            colors: 24,
            queue_depth: 4,
            hop_cycles: 1,
            ramp_cycles: 1,
            switch_positions: 4,
            filters: 8,
        },
        link: Link { bits: 32 },
        edge: Edge {
            bits_per_second: 1.2e12,
            latency_cycles: 100,
        },
        skip: Skip {
            zero_weights: true,
            zero_operands: false,
        },
        energy: Some(Energy {
            multiply_add_pj: 1.0,
            operation_pj: 0.5,
            hop_pj: 2.0,
            edge_pj: 20.0,
            pe_cycle_pj: 0.1,
        }),
    }
}

/// What a made-up run is like.
pub struct Story {
    pub load: u64,
    pub total: u64,
    /// Shares in per cent of the total that a PE of the kernels launches, waits for room, waits for input.
    pub other: [u64; 3],
    /// Multiply-adds of a PE: from this many per cent of the total up to ...
    pub low: u64,
    /// ... this many per cent of it.
    pub high: u64,
    pub items: u64,
    pub seed: u64,
}

/// An outcome of `story` on a mesh of this size; PEs outside the kernels idle.
pub fn outcome(width: u32, height: u32, kernels: &[KernelRegion], story: &Story) -> Outcome {
    let Story { load, total, .. } = *story;
    let idle = PeCounters {
        classes: [0, 0, 0, 0, load + total],
        load_classes: [0, 0, 0, 0, load],
        ..Default::default()
    };
    let mut pes = vec![idle; (width * height) as usize];
    let mut random = Random(story.seed);
    for k in kernels {
        for y in k.rect.y..k.rect.y + k.rect.height {
            for x in k.rect.x..k.rect.x + k.rect.width {
                let pe = &mut pes[(y * width + x) as usize];
                let share = story.low + random.below(story.high - story.low + 1);
                let mac = if k.op == "relayout" {
                    0
                } else {
                    total * share / 100
                };
                let extra = total * 4 / 100;
                let [launch, room, input] = story.other.map(|p| total * p / 100);
                let first = total / 50;
                let busy = mac + extra;
                let used = busy + launch + room + input;
                assert!(used <= total, "a story of more than 100 per cent");
                pe.load_classes = [load / 3, 0, 0, load / 3, load - load / 3 * 2];
                let after = [busy, launch, room, input, total - used];
                for (sum, (a, b)) in pe.classes.iter_mut().zip(pe.load_classes.iter().zip(after)) {
                    *sum = a + b;
                }
                pe.operations = [mac, 0, extra / 4, extra / 8];
                pe.load_slots[0] = load / 3;
                pe.slots = [
                    load / 3 + busy - mac - extra / 4 - extra / 8,
                    mac,
                    0,
                    extra / 4,
                    extra / 8,
                    0,
                ];
                pe.first_busy = Some(load + first);
                pe.last_busy = load + total - total / 100;
            }
        }
    }
    // two drains; the last wavelet of the last item is the last event
    let step = total / 4 / story.items.max(1);
    let drain = |offset: u64| {
        (0..story.items)
            .flat_map(|i| {
                let done = load + total - offset - (story.items - 1 - i) * step;
                [done - step / 2, done].map(|cycle| Landed {
                    cycle,
                    wavelet: Wavelet::default(),
                })
            })
            .collect()
    };
    let stage = StageOutcome {
        change: Change::default(),
        begin: 0,
        load_end: load,
        end: load + total,
        epochs: vec![0, load, load + total / 2],
        pes: pes.clone().into(),
    };
    Outcome {
        engine: meshloom_simulator::engine::Engine::Fast,
        cycles: load + total,
        stages: vec![stage],
        pes,
        drains: vec![drain(0), drain(7)],
        probes: vec![],
        arrivals: vec![],
        wavelets: 52_340,
        hops: 871_220,
        edge_wavelets: 8_192,
        active_pe_cycles: 0,
        paths: Default::default(),
    }
}

pub fn kernel(name: &str, op: &str, x: u32, y: u32, width: u32, height: u32) -> KernelRegion {
    let rect = Rect { x, y, width, height };
    KernelRegion {
        name: name.into(),
        op: op.into(),
        stage: 0,
        rect,
        estimated_cycles: 40_000,
    }
}

pub fn mlp() -> Vec<KernelRegion> {
    vec![
        kernel("in", "relayout", 0, 0, 2, 32),
        kernel("fc1", "matmul", 2, 0, 14, 32),
        kernel("relu1", "relu", 16, 0, 1, 32),
        kernel("fc2", "matmul", 17, 0, 10, 32),
        kernel("relu2", "relu", 27, 0, 1, 32),
        kernel("fc3", "matmul", 28, 0, 3, 16),
        kernel("out", "relayout", 31, 0, 1, 8),
    ]
}

/// A run of `story`, with theoretical operations that fit its name.
pub fn run(name: RunName, sparsity: f64, machine: &Machine, kernels: &[KernelRegion], story: &Story) -> Run {
    let outcome = outcome(machine.mesh.width, machine.mesh.height, kernels, story);
    let mac: u64 = outcome.pes.iter().map(|p| p.operations[0]).sum();
    let of = |mac| Operations {
        mac,
        mac_act: 0,
        reduce: 0,
        other: 16_896,
    };
    let all = (mac as f64
        / if name == RunName::Sparse {
            1.0 - sparsity
        } else {
            1.0
        }) as u64;
    let theoretical = if name == RunName::SparseNoSkip {
        (mac as f64 * (1.0 - sparsity)) as u64
    } else {
        mac
    };
    let input = RunInput {
        name,
        machine,
        engine: "reference",
        sparsity,
        lanes: multiply_add_lanes(machine, "f32", false).unwrap(),
        pes_in_use: kernels.iter().map(|k| k.rect.area()).sum(),
        kernels,
        output_drains: &[0, 1],
        items: story.items,
        dense: of(all),
        theoretical: of(theoretical),
        published: all + all / 10,
        peak_pe_bytes: 31_288,
        outputs: Some(Outputs {
            max_abs_error: 2.4e-7,
            max_rel_error: 3.1e-7,
            worst_tensor: "logits".into(),
            first_departing: None,
        }),
        wall_seconds: 1.25,
        peak_memory_bytes: Some(48 << 20),
        stage_seconds: &[1.25],
    };
    count_run(&outcome, input).unwrap()
}

pub fn dense() -> Story {
    Story {
        load: 24_310,
        total: 118_204,
        other: [9, 3, 20],
        low: 50,
        high: 55,
        items: 1,
        seed: 1,
    }
}

pub fn no_skip() -> Story {
    Story {
        total: 121_950,
        seed: 2,
        ..dense()
    }
}

pub fn sparse() -> Story {
    Story {
        load: 7_007,
        total: 51_020,
        other: [24, 3, 18],
        low: 18,
        high: 38,
        items: 1,
        seed: 3,
    }
}

pub fn three_runs(machine: &Machine, items: u64) -> Vec<Run> {
    let kernels = mlp();
    vec![
        run(
            RunName::Dense,
            0.0,
            machine,
            &kernels,
            &Story { items, ..dense() },
        ),
        run(
            RunName::SparseNoSkip,
            0.75,
            machine,
            &kernels,
            &Story { items, ..no_skip() },
        ),
        run(
            RunName::Sparse,
            0.75,
            machine,
            &kernels,
            &Story { items, ..sparse() },
        ),
    ]
}

pub fn report(items: u64, runs: Vec<Run>) -> Report {
    let model = Model {
        name: "mlp".into(),
        source: "784-512-512-10".into(),
        parameters: 669_706,
        nonzeros: 669_706,
    };
    Report::new(model, "f32", 32, items, 0, "seeded", runs)
}
