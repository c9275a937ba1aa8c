//! Broadcast and four ways to reduce, on one row of PEs: times by the model of Luczynski et al., "Near-optimal wafer-scale reduce"
//! (HPDC 2024), with T_R = 2.
//!
//! Every PE holds `B` f32 elements. First each one writes its values and sets as many descriptors as any other, so that
//! all issue their first instruction in the same cycle; the time counts from the first wavelet sent.
//! In all reductions the last addition of a PE is one with its send: `out = in + own`.

use super::{Case, Clock, Kind, Point, SINK, Tolerance, fill, filled, read_out, sink};
use crate::assemble::Assembler;
use meshloom_simulator::Machine;
use meshloom_simulator::engine::Probe;
use meshloom_simulator::program::*;
use std::ops::Range;
use std::sync::Arc;

const SOURCE: &str = "Luczynski et al., HPDC 2024";

/// Register of the PE's own elements.
const OWN: u8 = 0;

/// Their address: they are the first buffer.
const OWN_AT: i64 = 0;

/// What one PE does: its routes, and its code as descriptors to set and instructions to run.
#[derive(Default)]
struct Member {
    routes: Vec<(Color, Vec<Position>)>,
    descriptors: Vec<(u8, Descriptor)>,
    work: Vec<Vector>,
}

impl Member {
    /// Wavelets of a colour pass through this PE's router.
    fn route(&mut self, color: Color, input: Port, outputs: &[Port]) {
        self.routes.push((
            color,
            vec![Position {
                input,
                outputs: outputs.to_vec(),
                hold: 1.into(),
            }],
        ));
    }

    /// Sets the next register but `OWN` to a stream of the fabric.
    fn stream(&mut self, place: Place, b: i64) -> u8 {
        let d = self.descriptors.len() as u8 + 1;
        self.descriptors.push((
            d,
            Descriptor {
                ty: Ty::F32,
                shape: vec![b.into()],
                place,
            },
        ));
        d
    }

    /// Adds what comes on the colours `from`, in this order, to the own elements; with `to`, the sum is not kept but sent there as
    /// the last addition makes it.
    fn reduce(&mut self, from: &[Color], to: Option<Color>, b: i64) {
        let out = to.map(|color| self.stream(Place::Out { color, flag: true }, b));
        for (i, &color) in from.iter().enumerate() {
            let d = self.stream(Place::In(color), b);
            self.add(out.filter(|_| i + 1 == from.len()).unwrap_or(OWN), d);
        }
        if let (Some(out), true) = (out, from.is_empty()) {
            self.copy(out, OWN);
        }
    }

    fn add(&mut self, dst: u8, a: u8) {
        let (a, b) = (Operand::Desc(a), Some(Operand::Desc(OWN)));
        self.work.push(Vector::Map {
            op: Op::Add,
            dst,
            a,
            b,
            count: Count::Reduce,
        });
    }

    fn copy(&mut self, dst: u8, a: u8) {
        self.work.push(Vector::Map {
            op: Op::Mov,
            dst,
            a: Operand::Desc(a),
            b: None,
            count: Count::None,
        });
    }
}

/// The members' program. `ends` are the PEs whose own elements are the result.
fn program(name: &str, members: Vec<Member>, b: i64, ends: &[u32]) -> Program {
    let p = members.len() as u32;
    let most = members.iter().map(|m| m.descriptors.len()).max().unwrap_or(0);
    let mut region = Region {
        name: name.into(),
        x: 0,
        y: 0,
        width: p,
        height: 1,
        routes: vec![],
        blocks: vec![],
    };
    for (x, m) in members.into_iter().enumerate() {
        let at = Lattice::rect(x as u32, 0, 1, 1);
        for (color, positions) in m.routes {
            region.routes.push(Route {
                color,
                stream: name.into(),
                at,
                positions,
                filters: vec![],
            });
        }
        let mut a = Assembler::new();
        a.task("start", Trigger::Start);
        let own = a.buffer("own", 4 * b as u32, 0);
        assert_eq!(own, OWN_AT);
        fill(&mut a, own, 8 * x as i64, b);
        a.memory(OWN, Ty::F32, own.into(), &[b.into()], &[1], false);
        // PEs with fewer descriptors set the first ones again, so that all are ready in the same cycle
        for i in 0..most {
            let (d, descriptor) = m.descriptors[i % m.descriptors.len()].clone();
            a.emit(Instr::Desc(d, descriptor));
        }
        m.work.into_iter().for_each(|v| a.emit(Instr::Vector(v)));
        if ends.contains(&(x as u32)) {
            read_out(&mut a, own, b);
            region.routes.push(sink(at));
        }
        a.emit(Instr::Halt);
        region.blocks.push(a.finish(at));
    }
    let stage = Stage {
        regions: vec![region],
        ..Stage::default()
    };
    Program::single(name, stage)
}

fn case(name: &str, p: u32, b: i64, published: f64, share: f64, members: Vec<Member>) -> Case {
    let broadcast = name == "broadcast";
    let ends: Vec<u32> = if broadcast { (1..p).collect() } else { vec![0] };
    // the sum over x of 1 + (8 x + i) / 8192
    let sum = |i: i64| {
        (0..p as i64)
            .map(|x| 1.0 + (8 * x + i) as f64 / 8192.0)
            .sum::<f64>() as f32
    };
    let expected = if broadcast {
        filled(0, b).collect()
    } else {
        (0..b).map(sum).collect()
    };
    Case {
        point: Point {
            name: name.into(),
            parameters: format!("P = {p}, B = {b}"),
            source: SOURCE.into(),
            published,
            measured: 0,
            tolerance: Tolerance { cycles: 2.0, share },
            kind: Kind::Predicted,
        },
        mesh: (p, 1),
        program: program(name, members, b, &ends),
        clock: Clock::Exchange,
        probes: ends
            .iter()
            .map(|&x| Probe {
                stage: 0,
                x,
                y: 0,
                color: SINK,
            })
            .collect(),
        expected: Arc::new(expected),
    }
}

fn members(p: u32) -> Vec<Member> {
    (0..p).map(|_| Member::default()).collect()
}

/// From PE 0 to all others, each router passing on and down at once.
fn broadcast(p: u32, b: i64) -> Vec<Member> {
    let mut all = members(p);
    for (x, m) in all.iter_mut().enumerate() {
        if x == 0 {
            m.route(0, Port::Ramp, &[Port::East]);
            m.reduce(&[], Some(0), b);
        } else {
            let last = x as u32 + 1 == p;
            m.route(
                0,
                Port::West,
                if last {
                    &[Port::Ramp]
                } else {
                    &[Port::East, Port::Ramp]
                },
            );
            let d = m.stream(Place::In(0), b);
            m.copy(OWN, d);
        }
    }
    all
}

/// All send to PE 0 on one colour: each router passes its own core's elements first, then those of the PEs beyond.
fn star(p: u32, b: i64) -> Vec<Member> {
    let mut all = members(p);
    let others = p as i64 - 1;
    for (x, m) in all.iter_mut().enumerate() {
        let beyond = others - x as i64;
        if x == 0 {
            m.route(0, Port::East, &[Port::Ramp]);
            // one instruction for all blocks: own's stride over the blocks is 0
            let shape = vec![others.into(), b.into()];
            let place = Place::Memory {
                base: OWN_AT.into(),
                strides: vec![0.into(), 1.into()],
                wide: false,
            };
            m.descriptors.push((
                1,
                Descriptor {
                    ty: Ty::F32,
                    shape: shape.clone(),
                    place,
                },
            ));
            m.descriptors.push((
                2,
                Descriptor {
                    ty: Ty::F32,
                    shape,
                    place: Place::In(0),
                },
            ));
            let (a, b) = (Operand::Desc(2), Some(Operand::Desc(1)));
            m.work.push(Vector::Map {
                op: Op::Add,
                dst: 1,
                a,
                b,
                count: Count::Reduce,
            });
        } else {
            let mut positions = vec![Position {
                input: Port::Ramp,
                outputs: vec![Port::West],
                hold: 1.into(),
            }];
            if beyond > 0 {
                positions.push(Position {
                    input: Port::East,
                    outputs: vec![Port::West],
                    hold: beyond.into(),
                });
            }
            m.routes.push((0, positions));
            m.reduce(&[], Some(0), b);
        }
    }
    all
}

/// Routes a colour from one PE's core west to another's.
fn west(all: &mut [Member], from: u32, to: u32, color: Color) {
    all[from as usize].route(color, Port::Ramp, &[Port::West]);
    all[to as usize].route(color, Port::East, &[Port::Ramp]);
    all[to as usize + 1..from as usize]
        .iter_mut()
        .for_each(|m| m.route(color, Port::East, &[Port::West]));
}

/// Each PE adds its own elements to what comes from the east and passes the sum on; neighbouring hops have different colours.
fn chain(p: u32, b: i64) -> Vec<Member> {
    let mut all = members(p);
    let from = chain_to_first(&mut all, 0..p, b);
    all[0].reduce(&from, None, b);
    all
}

/// A chain on colours 0 and 1 up to the last hop; returns on which colour, if any, the first PE gets the others' sum.
fn chain_to_first(all: &mut [Member], pes: Range<u32>, b: i64) -> Vec<Color> {
    let color = |x: u32| ((x - pes.start) % 2) as Color;
    let from = |x: u32| {
        if x + 1 < pes.end {
            vec![color(x + 1)]
        } else {
            vec![]
        }
    };
    for x in pes.start + 1..pes.end {
        west(all, x, x - 1, color(x));
        all[x as usize].reduce(&from(x), Some(color(x)), b);
    }
    from(pes.start)
}

/// A binary tree: in level l the PEs at odd multiples of 2^l send to the multiple of 2^(l+1) west of them, on colour l.
fn tree(p: u32, b: i64) -> Vec<Member> {
    let mut all = members(p);
    for x in 0..p {
        let level = (x | p).trailing_zeros();
        if x > 0 {
            west(&mut all, x, x - (1 << level), level as Color);
        }
        let to = (x > 0).then_some(level as Color);
        all[x as usize].reduce(&(0..level as Color).collect::<Vec<_>>(), to, b);
    }
    all
}

/// Chains within groups of about sqrt(P) PEs, then a chain over the groups' first PEs on colours 2 and 3.
fn two_phase(p: u32, b: i64) -> Vec<Member> {
    let mut all = members(p);
    let group = (p as f64).sqrt().round() as u32;
    let groups = p.div_ceil(group);
    let color = |g: u32| 2 + (g % 2) as Color;
    for g in 0..groups {
        let first = g * group;
        let mut from = chain_to_first(&mut all, first..p.min(first + group), b);
        if g + 1 < groups {
            from.push(color(g + 1));
        }
        if g > 0 {
            west(&mut all, first, first - group, color(g));
        }
        all[first as usize].reduce(&from, (g > 0).then_some(color(g)), b);
    }
    all
}

/// Broadcast, star, chain, tree and two-phase reduce over rows and lengths.
pub(super) fn all(machine: &Machine, quick: bool) -> Vec<Case> {
    let ramp = machine.router.ramp_cycles as f64;
    let depth = 2.0 * ramp + 1.0;
    let mut cases = Vec::new();
    for b in [1i64, 64, 4096] {
        for p in [2u32, 3, 4, 8, 16, 64, 128, 512] {
            let (pf, bf) = (p as f64, b as f64);
            cases.push(case(
                "broadcast",
                p,
                b,
                bf + pf + 2.0 * ramp,
                0.01,
                broadcast(p, b),
            ));
            // the longest star keeps 512 routers busy for two million cycles
            if !quick || p as i64 * b <= 1 << 17 {
                cases.push(case(
                    "star reduce",
                    p,
                    b,
                    bf * (pf - 1.0) + depth,
                    0.01,
                    star(p, b),
                ));
            }
            cases.push(case(
                "chain reduce",
                p,
                b,
                bf + (depth + 1.0) * (pf - 1.0),
                0.01,
                chain(p, b),
            ));
            if p.is_power_of_two() {
                let log = pf.log2();
                let published = (bf * log).max(bf * pf * log / (2.0 * (pf - 1.0)) + pf - 1.0) + depth * log;
                cases.push(case("tree reduce", p, b, published, 0.08, tree(p, b)));
            }
            // two PEs are a chain, and sqrt(3) is no group
            if p >= 4 {
                let root = pf.sqrt();
                let published =
                    (2.0 * bf).max(2.0 * bf - 2.0 * bf / root + pf - 1.0) + depth * (2.0 * root - 2.0);
                cases.push(case("two-phase reduce", p, b, published, 0.08, two_phase(p, b)));
            }
        }
    }
    cases
}
