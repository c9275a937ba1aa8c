//! Many steps at once against one step after another, on random instructions.

use super::*;
use crate::engine::core::vector::Phase;
use crate::engine::core::{Ports, Rules};
use crate::machine::Machine;
use proptest::prelude::*;
use std::collections::VecDeque;

/// Queues of which all wavelets have arrived.
struct Arrived(Vec<VecDeque<Wavelet>>);

impl Ports for Arrived {
    fn core_in(&self, _: u32, color: Color) -> u32 {
        color as u32
    }
    fn core_out(&self, _: u32, color: Color) -> u32 {
        color as u32
    }
    fn arrived(&self, queue: u32, _: u64) -> bool {
        !self.0[queue as usize].is_empty()
    }
    fn has_room(&self, _: u32, _: u64) -> bool {
        true
    }
    fn pop(&mut self, queue: u32, _: u64) -> Wavelet {
        self.0[queue as usize].pop_front().expect("it was looked at")
    }
    fn send(&mut self, _: u32, _: u64, _: Wavelet) {
        unreachable!("steps hand over what they send")
    }
}

const SIZE: i64 = 1 << 15;

/// Numbers of all kinds; memory is made of them.
fn number() -> impl Strategy<Value = f32> {
    let special = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        num::NAN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(0x007f_ffff),
        f32::MAX,
        65504.0,
        65520.0,
        6e-8,
        88.9,
        -103.9,
        0.55,
    ];
    prop_oneof![
        8 => -4f32..4.0,
        2 => (-4096i32..4096).prop_map(|i| i as f32 / 64.0),
        1 => prop::sample::select(special.to_vec()),
        1 => any::<u32>().prop_map(|b| Some(f32::from_bits(b)).filter(|x| !x.is_nan()).unwrap_or(num::NAN)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Mac),
        7 => prop::sample::select(vec![
            Op::Mov, Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min, Op::Exp, Op::Div, Op::Rsqrt, Op::Tanh,
        ]),
    ]
}

fn ty() -> impl Strategy<Value = Ty> {
    prop_oneof![2 => Just(Ty::F32), 1 => Just(Ty::F16)]
}

/// How an operand is laid out, before it is known where: strides in elements, and a place that is moved into memory.
fn layout(shape: [i64; 4]) -> impl Strategy<Value = [i64; 4]> {
    let [_, b, c, d] = shape;
    prop_oneof![
        4 => Just([b * c * d, c * d, d, 1]),
        1 => Just([b * c * (d + 3), c * (d + 3), d + 3, 1]),
        2 => Just([0, 0, 1, 0]),
        2 => Just([0, 0, 0, 1]),
        1 => Just([0, 0, 0, 0]),
        1 => Just([b * c * d, c * d, 1, c]),
        1 => Just([b * c * d, c * d, -d, -1]),
        2 => prop::array::uniform4(-4i64..5),
    ]
}

#[derive(Clone, Debug)]
enum Kind {
    Memory {
        ty: Ty,
        strides: [i64; 4],
        base: i64,
    },
    /// The destination's own place, so many bytes further.
    Shifted(i64),
    Fabric(Ty),
    Imm(f32),
}

fn memory(shape: [i64; 4]) -> impl Strategy<Value = Kind> {
    let base = prop_oneof![4 => (0i64..64).prop_map(|b| b * 8), 2 => 0..1024i64];
    (ty(), layout(shape), base).prop_map(|(ty, strides, base)| Kind::Memory { ty, strides, base })
}

fn source(shape: [i64; 4]) -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => memory(shape),
        1 => Just(Kind::Shifted(0)),
        1 => prop::sample::select(vec![-8, -4, -2, 2, 4, 8, 32]).prop_map(Kind::Shifted),
        2 => ty().prop_map(Kind::Fabric),
        1 => number().prop_map(Kind::Imm),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    op: Op,
    shape: [i64; 4],
    width: i64,
    cost: u32,
    dst: Kind,
    sources: [Kind; 2],
    memory: Vec<f32>,
    /// Slots used at once, again and again.
    leaps: Vec<u64>,
    payload: Vec<f32>,
}

fn case() -> impl Strategy<Value = Case> {
    let shape = prop_oneof![
        2 => (1i64..3, 1i64..3, 1i64..5, 1i64..7).prop_map(|(a, b, c, d)| [a, b, c, d]),
        2 => (1i64..6, 1i64..40).prop_map(|(c, d)| [1, 1, c, d]),
        1 => (1i64..70).prop_map(|d| [1, 1, 1, d]),
    ];
    (op(), shape).prop_flat_map(|(op, shape)| {
        let dst = prop_oneof![4 => memory(shape), 2 => ty().prop_map(Kind::Fabric)];
        (
            prop::sample::select(vec![1i64, 1, 2, 4, 8]),
            prop::sample::select(vec![1u32, 1, 1, 2, 5]),
            dst,
            [source(shape), source(shape)],
            prop::collection::vec(number(), 512),
            prop::collection::vec(1u64..80, 1..6),
            prop::collection::vec(number(), 32),
        )
            .prop_map(move |(width, cost, mut dst, sources, memory, leaps, payload)| {
                if let (Op::Mac, Kind::Fabric(ty)) = (op, &dst) {
                    dst = Kind::Memory {
                        ty: *ty,
                        strides: [0, 0, 0, 1],
                        base: 64,
                    };
                }
                Case {
                    op,
                    shape,
                    width,
                    cost,
                    dst,
                    sources,
                    memory,
                    leaps,
                    payload,
                }
            })
    })
}

/// Products of matrices with all that they may meet: few and many of everything, gaps, windows that overlap, factors that share bytes
/// with accumulators, f16, factors from the fabric, long leaps.
fn product() -> impl Strategy<Value = Case> {
    let few = || prop_oneof![2 => Just(1i64), 3 => 2i64..4, 1 => 4i64..12];
    let many = prop_oneof![2 => Just(1i64), 3 => 2i64..20, 3 => 20i64..70, 1 => prop::sample::select(vec![16i64, 32, 64])];
    let shape = (few(), prop_oneof![3 => 1i64..16, 1 => 16i64..40], few(), many);
    let fits = shape.prop_filter("it fits", |(f, o, r, c)| {
        f * o * r * c <= 6000 && (o * r).max(f * r) * (c + 3) <= 1200
    });
    let layouts = fits.prop_flat_map(|(f, o, r, c)| {
        let gap = prop_oneof![3 => Just(0i64), 1 => 1i64..4];
        let y = (gap.clone(), gap.clone()).prop_map(move |(g, h)| [0, r * (c + g) + h, c + g, 1]);
        let y = prop_oneof![
            6 => y,
            1 => Just([0, 1, c * o, o]),
            1 => Just([0, r * c, -c, -1]),
            1 => Just([0, r * c, c, 0]),
            1 => Just([r * c, 0, c, 1]),
            1 => Just([1, r * c, c, 1]),
        ];
        let a = prop_oneof![5 => Just([o, 1, 0, 0]), 1 => Just([1, f, 0, 0]), 1 => Just([0, -1, 0, 0]), 1 => Just([0, 0, 0, 0])];
        let b = gap.prop_map(move |g| [r * (c + g), 0, c + g, 1]);
        let b = prop_oneof![
            6 => b,
            1 => Just([1, 0, c, 1]),
            1 => Just([2 * r * c, 0, 2 * c, 2]),
            1 => Just([-1, 0, -1, 1]),
            1 => Just([r * c, 0, c, 0]),
            1 => Just([o * r * c, r * c, c, 1]),
            1 => Just([0, 0, c, 1]),
        ];
        // a loop of one turn may be anywhere
        (Just([f, o, r, c]), y, a, b, 0..4usize)
    });
    layouts.prop_flat_map(|(shape, y, a, b, swap)| {
        let turned = |mut x: [i64; 4]| {
            if let (0..3, true) = (swap, shape[swap.min(3)] == 1) {
                x[..=swap].rotate_right(1);
            }
            x
        };
        let (y_end, a_end) = (
            4 * shape[1] * shape[2] * (shape[3] + 3) + 64,
            4 * shape[0] * shape[1] + 64,
        );
        let (shape, y, a, b) = (turned(shape), turned(y), turned(a), turned(b));
        let memory = |strides: [i64; 4], base: i64| {
            let base = prop_oneof![9 => Just(base), 1 => 0i64..64];
            (ty(), base).prop_map(move |(ty, base)| Kind::Memory { ty, strides, base })
        };
        let source = |strides: [i64; 4], base: i64| {
            prop_oneof![
                12 => memory(strides, base),
                1 => ty().prop_map(Kind::Fabric),
                1 => number().prop_map(Kind::Imm),
            ]
        };
        let dst = prop_oneof![12 => Just(Ty::F32), 1 => Just(Ty::F16)];
        let sources = (source(a, y_end), source(b, y_end + a_end), any::<bool>());
        (
            prop::sample::select(vec![1i64, 1, 2, 4, 8]),
            prop::sample::select(vec![1u32, 1, 2]),
            (dst, prop_oneof![3 => Just(0i64), 1 => 0..8i64]),
            sources,
            prop::collection::vec(number(), 512),
            prop::collection::vec(prop_oneof![1u64..80, 1u64..5000], 1..4),
            prop::collection::vec(number(), 32),
        )
            .prop_map(
                move |(width, cost, (ty, base), (a, b, swap), memory, leaps, payload)| Case {
                    op: Op::Mac,
                    shape,
                    width,
                    cost,
                    dst: Kind::Memory {
                        ty,
                        strides: y,
                        base: 4 * base,
                    },
                    sources: if swap { [b, a] } else { [a, b] },
                    memory,
                    leaps,
                    payload,
                },
            )
    })
}

impl Case {
    /// An operand inside the memory.
    fn place(&self, ty: Ty, strides: [i64; 4], base: i64) -> Arg {
        let size = ty.bytes() as i64;
        let strides = strides.map(|s| s * size);
        let reach = |sign: i64| -> i64 {
            let of = |(s, n): (&i64, &i64)| (s * (n - 1) * sign).max(0) * sign;
            strides.iter().zip(&self.shape).map(of).sum()
        };
        let (low, high) = (reach(-1), reach(1) + size);
        let base = base.clamp(-low, SIZE - high);
        Arg::Memory {
            ty,
            base,
            strides,
            at: base,
        }
    }

    fn run(&self) -> Run {
        let dst = match self.dst {
            Kind::Memory { ty, strides, base } => self.place(ty, strides, base),
            Kind::Fabric(ty) => Arg::Out {
                ty,
                color: 2,
                queue: 2,
                flag: true,
            },
            _ => unreachable!("not drawn"),
        };
        let arg = |i: usize| match (&self.sources[i], dst) {
            (Kind::Memory { ty, strides, base }, _) => self.place(*ty, *strides, *base),
            (Kind::Shifted(by), Arg::Memory { ty, strides, at, .. }) => {
                self.place(ty, strides.map(|s| s / ty.bytes() as i64), at + by)
            }
            (Kind::Shifted(by), _) => self.place(Ty::F32, [0, 0, 0, 1], 128 + by),
            (Kind::Fabric(ty), _) => Arg::In {
                ty: *ty,
                color: i as u8,
                queue: i as u32,
            },
            (Kind::Imm(x), _) => Arg::Imm(*x),
        };
        let (a, b) = (arg(0), arg(1));
        // what a wavelet can carry
        let most = |arg: &Arg| match arg {
            Arg::In { ty, .. } | Arg::Out { ty, .. } => 64 / ty.bits() as i64,
            _ => 8,
        };
        let width = [&dst, &a, &b].into_iter().map(most).fold(self.width, i64::min);
        Run {
            pc: 0,
            op: self.op,
            dst,
            a,
            b,
            sparse: None,
            shape: self.shape,
            index: [0; 3],
            column: 0,
            width,
            cost: self.cost,
            paid: 0,
            count: if self.op == Op::Mac {
                Count::Mac
            } else {
                Count::Other
            },
            phase: Phase::Step,
            then: None,
        }
    }

    /// All wavelets that a source takes.
    fn wavelets(&self, run: &Run, arg: &Arg) -> Vec<Wavelet> {
        let Arg::In { ty, .. } = arg else {
            return Vec::new();
        };
        let rows = self.shape[0] * self.shape[1] * self.shape[2];
        let mut values = self.payload.iter().cycle();
        let mut all = Vec::new();
        for _ in 0..rows {
            let mut left = self.shape[3];
            while left > 0 {
                let n = left.min(run.width);
                let bits = (0..n).fold(0, |bits, i| {
                    bits | num::to_bits(*ty, *values.next().expect("a cycle")) << (ty.bits() as i64 * i)
                });
                all.push(Wavelet {
                    bits,
                    elements: n as u8,
                    flag: false,
                });
                left -= n;
            }
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn many_steps_are_one_after_another(case in case()) {
        compare(&case)?;
    }

    #[test]
    fn products_are_one_step_after_another(case in product()) {
        compare(&case)?;
    }
}

/// Executes a case step by step, and in its leaps.
fn compare(case: &Case) -> Result<(), TestCaseError> {
    let small = include_str!("../../../../../../machines/small.toml");
    let machine = Machine::parse("small", small, &[]).expect("a machine of ours");
    let rules = Rules { machine: &machine };
    let fresh = case.run();
    let inputs = [&fresh.a, &fresh.b].map(|arg| case.wavelets(&fresh, arg));
    let before: Vec<u8> = case
        .memory
        .iter()
        .cycle()
        .take(SIZE as usize / 4)
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let last = fresh.slots_left() - 1;

    // one after another
    let (mut run, mut memory) = (fresh.clone(), before.clone());
    let mut net = Arrived(inputs.iter().map(|w| w.iter().copied().collect()).collect());
    let (mut counters, mut want, mut elements) = (PeCounters::default(), Vec::new(), 0);
    for now in 0..last {
        let mut sent = None;
        elements += run
            .slot(&mut memory, &mut net, &rules, now, &mut counters, &mut sent, None)
            .expect("equal widths");
        want.extend(sent.map(|(_, w)| w));
    }

    // many at once
    let (mut other, mut bulk) = (fresh, before);
    let (mut counted, mut got, mut handled) = (PeCounters::default(), Wavelets::default(), 0);
    let mut scratch = Scratch::default();
    let (mut now, mut taken) = (0, 0);
    for slots in case.leaps.iter().cycle() {
        let slots = (last - now).min(*slots);
        let steps = ((other.paid as u64 + slots) / other.cost as u64) as usize;
        let mut part = [&inputs[0], &inputs[1]].map(|w| {
            let mut part = Wavelets::default();
            part.add_all(w.get(taken..taken + steps).unwrap_or_default());
            part
        });
        handled += other
            .leap(
                now,
                slots,
                &mut bulk,
                &mut part,
                &mut got,
                &mut counted,
                &mut scratch,
            )
            .expect("equal widths");
        taken += steps;
        now += slots;
        if now == last {
            break;
        }
    }
    counted.last_busy = counters.last_busy; // the caller's
    prop_assert!(want.iter().copied().eq(got.iter()));
    prop_assert_eq!(elements as u64, handled);
    prop_assert_eq!(format!("{counters:?}"), format!("{counted:?}"));
    let state = |r: &Run| {
        (
            r.index,
            r.column,
            r.paid,
            [r.dst, r.a, r.b].map(|arg| match arg {
                Arg::Memory { at, .. } => at,
                _ => 0,
            }),
        )
    };
    prop_assert_eq!(state(&run), state(&other));
    prop_assert_eq!(memory, bulk);
    Ok(())
}
