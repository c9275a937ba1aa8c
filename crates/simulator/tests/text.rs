//! The text form: a representative program as a snapshot, exact round trips of random programs, messages, and texts that are broken at
//! random.

use meshloom_simulator::expr::{Axes, Expr, Table};
use meshloom_simulator::machine::Side;
use meshloom_simulator::program::*;
use meshloom_simulator::text::{DataStore, data, parse, print};
use proptest::prelude::*;
use std::sync::Arc;

/// A small program with one of everything.
fn example() -> Program {
    let nnz = Arc::new(Table {
        name: "fc1.nnz".into(),
        axes: Axes::XY,
        width: 15,
        values: (0..480).map(|i| i * 7 % 31).collect(),
    });
    let rows = Expr::table("fc1.rows", Axes::Y, 0, vec![3, 4, 4, 5, -1]);
    let (x, y) = (|| Box::new(Expr::X), || Box::new(Expr::Y));
    let c = |n: i64| Box::new(Expr::Const(n));
    let mem = |base: Val, shape: [i64; 2], strides: [i64; 2], wide| Descriptor {
        ty: Ty::F32,
        shape: shape.map(Val::Imm).to_vec(),
        place: Place::Memory {
            base,
            strides: strides.map(Val::Imm).to_vec(),
            wide,
        },
    };
    let map = |op, dst, a, b, count| Vector::Map { op, dst, a, b, count };
    let axpy = |list| Vector::Axpy {
        y: 0,
        x: 1,
        list,
        modulo: Val::Imm(16),
        divisor: Val::Imm(4),
        y_step: Val::Imm(64),
        x_step: Val::Param(0),
        count: Count::Mac,
    };
    let code = vec![
        Instr::Set(2, Val::Imm(0)),
        Instr::Desc(0, mem(Val::Imm(1024), [16, 32], [32, 1], true)),
        Instr::Desc(1, mem(Val::Imm(64), [16, 32], [0, 1], false)),
        Instr::Desc(
            4,
            Descriptor {
                ty: Ty::F16,
                shape: vec![Val::Param(0), Val::Imm(32)],
                place: Place::In(5),
            },
        ),
        Instr::Desc(
            5,
            Descriptor {
                ty: Ty::F32,
                shape: vec![Val::Reg(3)],
                place: Place::Out { color: 6, flag: true },
            },
        ),
        Instr::Vector(map(Op::Mov, 0, Operand::Imm(-0.0), None, Count::None)),
        Instr::Vector(map(
            Op::Mac,
            0,
            Operand::Desc(1),
            Some(Operand::Reg(7)),
            Count::Mac,
        )),
        Instr::Vector(map(
            Op::Add,
            0,
            Operand::Desc(0),
            Some(Operand::Desc(4)),
            Count::Reduce,
        )),
        Instr::Vector(map(
            Op::Max,
            0,
            Operand::Desc(0),
            Some(Operand::Imm(f32::NEG_INFINITY)),
            Count::Other,
        )),
        Instr::Vector(map(Op::Exp, 0, Operand::Desc(0), None, Count::Other)),
        Instr::Vector(axpy(List::Fabric {
            color: 5,
            ty: Ty::F16,
        })),
        Instr::Vector(axpy(List::Memory {
            index: Val::Imm(4096),
            value: Val::Reg(9),
            count: Val::Param(1),
            ty: Ty::F32,
        })),
        Instr::Load(Word::U16, 2, Val::Reg(1), Val::Imm(4)),
        Instr::Store(Word::I32, Val::Reg(1), Val::Imm(-8), Val::Reg(2)),
        Instr::Base(0, Val::Imm(1024)),
        Instr::Advance(0, Val::Imm(128)),
        Instr::Add(2, Val::Reg(2), Val::Imm(1)),
        Instr::Branch(Cond::Lt, Val::Reg(2), Val::Param(0), 5),
        Instr::Async(1, map(Op::Mov, 5, Operand::Desc(0), None, Count::None), Some(2)),
        Instr::Wait(1, Some(Val::Reg(3))),
        Instr::Wait(1, None),
        Instr::Unblock(1),
        Instr::End,
        Instr::Mul(4, Val::Reg(0), Val::Imm(4)),
        Instr::End,
        Instr::Branch(Cond::Ne, Val::Reg(4), Val::Imm(0), 27),
        Instr::Activate(0),
        Instr::Halt,
    ];
    let wavelet = |bits, flag| Wavelet {
        bits,
        elements: 1,
        flag,
    };
    let stage = Stage {
        name: String::new(),
        priority: vec![6, 5],
        regions: vec![Region {
            name: "fc1".into(),
            x: 1,
            y: 2,
            width: 15,
            height: 32,
            routes: vec![
                Route {
                    color: 5,
                    stream: "x -> fc1".into(),
                    at: Lattice::rect(0, 0, 15, 32),
                    positions: vec![Position {
                        input: Port::West,
                        outputs: vec![Port::East, Port::Ramp],
                        hold: 1.into(),
                    }],
                    filters: vec![Filter {
                        output: Port::Ramp,
                        first: Expr::Mul(x(), c(16)),
                        count: 16.into(),
                        period: 784.into(),
                    }],
                },
                Route {
                    color: 6,
                    stream: "fc1 -> fc2".into(),
                    at: Lattice {
                        x: 0,
                        y: 0,
                        nx: 5,
                        ny: 32,
                        dx: 3,
                        dy: 1,
                    },
                    positions: vec![
                        Position {
                            input: Port::Ramp,
                            outputs: vec![Port::South],
                            hold: Expr::Sub(c(31), y()),
                        },
                        Position {
                            input: Port::North,
                            outputs: vec![Port::South, Port::Ramp],
                            hold: Expr::Min(Box::new(Expr::Add(x(), c(1))), Box::new(rows.clone())),
                        },
                    ],
                    filters: vec![],
                },
            ],
            blocks: vec![Block {
                at: Lattice::rect(0, 0, 15, 31),
                params: vec![
                    Param {
                        name: "k".into(),
                        value: Expr::Table(nnz.clone()),
                    },
                    Param {
                        name: "n".into(),
                        value: Expr::Mod(
                            Box::new(Expr::Mul(
                                Box::new(Expr::Sub(x(), Box::new(Expr::Sub(y(), c(-2))))),
                                Box::new(Expr::Div(y(), 3)),
                            )),
                            7,
                        ),
                    },
                ],
                memory: vec![
                    Buffer {
                        name: "x".into(),
                        address: 0,
                        bytes: 1024,
                    },
                    Buffer {
                        name: "acc".into(),
                        address: 1024,
                        bytes: 2048,
                    },
                    Buffer {
                        name: "weights".into(),
                        address: 4096,
                        bytes: 8192,
                    },
                ],
                tasks: vec![
                    Task {
                        name: "main".into(),
                        trigger: Trigger::Start,
                        blocked: false,
                        entry: 0,
                    },
                    Task {
                        name: "recv".into(),
                        trigger: Trigger::Data(5),
                        blocked: true,
                        entry: 23,
                    },
                    Task {
                        name: "sent".into(),
                        trigger: Trigger::Local,
                        blocked: false,
                        entry: 25,
                    },
                ],
                labels: vec![("loop".into(), 5), ("sent".into(), 25)],
                code,
            }],
        }],
        feeds: vec![
            Feed {
                name: "x".into(),
                side: Side::West,
                row: 2,
                color: 5,
                epoch: 1,
                data: FeedData::Host(Arc::new((0..784).map(|i| wavelet(i, false)).collect())),
            },
            Feed {
                name: "fc1.bias".into(),
                side: Side::East,
                row: 16,
                color: 3,
                epoch: 0,
                data: FeedData::from(vec![
                    wavelet(0x3f80_0000, false),
                    Wavelet {
                        bits: 0x3c00_3c00,
                        elements: 2,
                        flag: false,
                    },
                    wavelet(0, true),
                ]),
            },
        ],
        drains: vec![Drain {
            name: "y".into(),
            side: Side::East,
            row: 2,
            color: 6,
            wavelets: 10,
        }],
    };
    Program::single("example", stage)
}

fn assert_round_trip(p: &Program) {
    let text = print(p);
    let back = parse(&text, &data(p)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(print(&back), text);
    // NaN is not equal to itself; `Debug` shows the rest of it, and the text its bits.
    assert_eq!(format!("{back:?}"), format!("{p:?}"), "{text}");
}

#[test]
fn example_text() {
    let p = example();
    insta::assert_snapshot!(print(&p));
    assert_round_trip(&p);
    assert_eq!(parse(&print(&p), &data(&p)).unwrap(), p);
}

#[test]
fn comments_blank_lines_and_line_ends() {
    let p = example();
    let text = print(&p).replace('\n', "  // a comment\r\n\r\n");
    assert_eq!(parse(&text, &data(&p)).unwrap(), p);
}

#[test]
fn generated_labels_move_with_the_code() {
    let head = "program t\nregion r at 0, 0 size 1 x 1\nblock 0 x 0\n  task m start -> @0\n  @0:\n";
    let p = parse(
        &format!("{head}  set r1 = 2\n  @7:\n  end\n  jump @7\n"),
        &DataStore::default(),
    )
    .unwrap();
    assert_eq!(p.stages[0].regions[0].blocks[0].code[2], Instr::Jump(1));
    let p = parse(&format!("{head}  jump @7\n"), &DataStore::default()).unwrap();
    assert_eq!(p.stages[0].regions[0].blocks[0].code[0], Instr::Jump(7));
}

#[test]
fn float_bits_survive() {
    let floats = [
        0,
        0x8000_0000,
        1,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffc0_0000,
        0x7f80_0001,
        0x3f00_0000,
    ];
    for bits in floats {
        let mut p = example();
        p.stages[0].regions[0].blocks[0].code = vec![Instr::Vector(Vector::Map {
            op: Op::Mov,
            dst: 0,
            a: Operand::Imm(f32::from_bits(bits)),
            b: None,
            count: Count::Mac,
        })];
        let back = parse(&print(&p), &data(&p)).unwrap();
        let Instr::Vector(Vector::Map {
            a: Operand::Imm(f), ..
        }) = &back.stages[0].regions[0].blocks[0].code[0]
        else {
            panic!("{back:?}")
        };
        assert_eq!(f.to_bits(), bits);
    }
}

#[test]
fn messages() {
    let head = "program t\nregion r at 0, 0 size 1 x 1\n";
    let block = format!("{head}block 0 x 0\n  param k = 1\n");
    let cases = [
        String::new(),
        "region r\n".into(),
        "program t\nroute c1 s 0 x 0: west -> east\n".into(),
        format!("{head}route c256 s 0 x 0: west -> east\n"),
        format!("{head}route c1 s 0..4 by 0 x 0: west -> east\n"),
        format!("{head}route c1 s 0 x 0: west east\n"),
        format!("{head}route c1 s 0 x 0: west -> east hold x / y\n"),
        format!("{head}route c1 s 0 x 0: west -> east hold tab\n"),
        format!(
            "{head}route c1 s 0 x 0: west -> east hold {}x\n",
            "(".repeat(1000)
        ),
        format!(
            "{head}route c1 s 0 x 0: west -> east hold x{}\n",
            " + x".repeat(1000)
        ),
        format!("{block}  add r1 = $j + 1\n"),
        format!("{block}  add r1 = r2 + 9223372036854775808\n"),
        format!("{block}  jump nowhere\n"),
        format!("{block}  activate nobody\n"),
        format!("{block}  mov d0 = 1e99\n"),
        format!("{block}  mov d0 = d1 #macs\n"),
        format!("{block}  fly\n"),
        format!("{block}  desc d0 = mem f32 @acc [4] by [1]\n"),
        format!("{block}  set r1 = 1 2\n"),
        "program \"open\n".into(),
        "program t\nfeed x west row 0 c1 epoch 0: 5 wavelets #0123456789abcdef\n".into(),
        "program t\nfeed x west row 0 c1 epoch 0 = [12 xyz]\n".into(),
        "program t\ntable t by x: 5 entries #12\n".into(),
        "program t\n\u{e9}\n".into(),
    ];
    let all: Vec<String> = cases
        .iter()
        .map(|text| {
            let last: String = text.lines().last().unwrap_or("").chars().take(70).collect();
            format!("{last}\n  {}", parse(text, &DataStore::default()).unwrap_err())
        })
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

/// Texts that would build far more than their own size are refused, not built.
#[test]
fn budget() {
    let mut text = "program t\nregion r at 0, 0 size 1 x 1\nblock 0 x 0\n".to_string();
    text.push_str(&"end\n".repeat(4_000_000));
    let e = parse(&text, &DataStore::default()).unwrap_err();
    assert!(e.expected.contains("256 MB"), "{e}");
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9_]{0,5}(\\.[a-z0-9]{1,3})?",
        "[xyrdct][0-9]?|task|block|region|min|max|of|filter|none|end|label|inf|nan",
        "\\PC{0,6}",
        "[ \"\\\\\n\t/]{0,3}",
    ]
}

fn tables() -> impl Strategy<Value = Vec<Arc<Table>>> {
    let axes = prop_oneof![Just(Axes::X), Just(Axes::Y), Just(Axes::XY)];
    let one = (name(), axes, 0u32..20, prop::collection::vec(any::<i64>(), 0..50)).prop_map(
        |(name, axes, width, values)| {
            Arc::new(Table {
                name,
                axes,
                width,
                values,
            })
        },
    );
    prop::collection::vec(one, 1..4)
}

fn expr(tables: Vec<Arc<Table>>) -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        (-9i64..9).prop_map(Expr::Const),
        any::<i64>().prop_map(Expr::Const),
        Just(Expr::X),
        Just(Expr::Y),
        prop::sample::select(tables).prop_map(Expr::Table),
    ];
    leaf.prop_recursive(5, 24, 2, |e| {
        let two = (e.clone(), e.clone()).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        prop_oneof![
            two.clone().prop_map(|(a, b)| Expr::Add(a, b)),
            two.clone().prop_map(|(a, b)| Expr::Sub(a, b)),
            two.clone().prop_map(|(a, b)| Expr::Mul(a, b)),
            two.clone().prop_map(|(a, b)| Expr::Min(a, b)),
            two.prop_map(|(a, b)| Expr::Max(a, b)),
            (e.clone(), any::<i64>()).prop_map(|(a, n)| Expr::Div(Box::new(a), n)),
            (e, 1i64..9).prop_map(|(a, n)| Expr::Mod(Box::new(a), n)),
        ]
    })
}

fn lattice() -> impl Strategy<Value = Lattice> {
    let n = || prop_oneof![0u32..40, any::<u32>()];
    (n(), n(), n(), n(), n(), n()).prop_map(|(x, y, nx, ny, dx, dy)| Lattice { x, y, nx, ny, dx, dy })
}

fn val() -> impl Strategy<Value = Val> {
    prop_oneof![
        (-20i64..200).prop_map(Val::Imm),
        any::<i64>().prop_map(Val::Imm),
        any::<u8>().prop_map(Val::Reg),
        (0u16..5).prop_map(Val::Param),
    ]
}

fn ty() -> impl Strategy<Value = Ty> {
    prop_oneof![Just(Ty::F32), Just(Ty::F16)]
}

fn vector() -> impl Strategy<Value = Vector> {
    use Op::*;
    let count = prop::sample::select(vec![
        Count::None,
        Count::Mac,
        Count::MacAct,
        Count::Reduce,
        Count::Other,
    ]);
    let op = prop::sample::select(vec![Mov, Add, Sub, Mul, Mac, Max, Min, Exp, Div, Rsqrt, Tanh]);
    let operand = || {
        prop_oneof![
            any::<u8>().prop_map(Operand::Desc),
            any::<u8>().prop_map(Operand::Reg),
            any::<u32>().prop_map(|b| Operand::Imm(f32::from_bits(b))),
            (-4i32..4).prop_map(|f| Operand::Imm(f as f32)),
        ]
    };
    let list = prop_oneof![
        (any::<u8>(), ty()).prop_map(|(color, ty)| List::Fabric { color, ty }),
        (val(), val(), val(), ty()).prop_map(|(index, value, count, ty)| List::Memory {
            index,
            value,
            count,
            ty
        }),
    ];
    prop_oneof![
        (
            op,
            any::<u8>(),
            operand(),
            prop::option::of(operand()),
            count.clone()
        )
            .prop_map(|(op, dst, a, b, count)| Vector::Map { op, dst, a, b, count }),
        (any::<u8>(), any::<u8>(), list, val(), val(), val(), val(), count).prop_map(
            |(y, x, list, modulo, divisor, y_step, x_step, count)| Vector::Axpy {
                y,
                x,
                list,
                modulo,
                divisor,
                y_step,
                x_step,
                count
            }
        ),
    ]
}

fn instr() -> impl Strategy<Value = Instr> {
    let r = any::<u8>;
    let task = || 0u16..5;
    let target = || prop_oneof![0u32..12, any::<u32>()];
    let word = || prop_oneof![Just(Word::U16), Just(Word::I32)];
    let cond = prop::sample::select(vec![Cond::Eq, Cond::Ne, Cond::Lt, Cond::Ge]);
    let vals = || prop::collection::vec(val(), 0..5);
    let place = prop_oneof![
        (val(), vals(), any::<bool>()).prop_map(|(base, strides, wide)| Place::Memory {
            base,
            strides,
            wide
        }),
        r().prop_map(Place::In),
        (r(), any::<bool>()).prop_map(|(color, flag)| Place::Out { color, flag }),
    ];
    prop_oneof![
        (r(), val()).prop_map(|(r, v)| Instr::Set(r, v)),
        (r(), val(), val()).prop_map(|(r, a, b)| Instr::Add(r, a, b)),
        (r(), val(), val()).prop_map(|(r, a, b)| Instr::Sub(r, a, b)),
        (r(), val(), val()).prop_map(|(r, a, b)| Instr::Mul(r, a, b)),
        (word(), r(), val(), val()).prop_map(|(w, r, a, b)| Instr::Load(w, r, a, b)),
        (word(), val(), val(), val()).prop_map(|(w, a, b, v)| Instr::Store(w, a, b, v)),
        target().prop_map(Instr::Jump),
        (cond, val(), val(), target()).prop_map(|(c, a, b, t)| Instr::Branch(c, a, b, t)),
        (r(), ty(), vals(), place)
            .prop_map(|(d, ty, shape, place)| Instr::Desc(d, Descriptor { ty, shape, place })),
        (r(), val()).prop_map(|(d, v)| Instr::Base(d, v)),
        (r(), val()).prop_map(|(d, v)| Instr::Advance(d, v)),
        vector().prop_map(Instr::Vector),
        (r(), vector(), prop::option::of(task())).prop_map(|(t, v, then)| Instr::Async(t, v, then)),
        (r(), prop::option::of(val())).prop_map(|(t, v)| Instr::Wait(t, v)),
        task().prop_map(Instr::Activate),
        task().prop_map(Instr::Block),
        task().prop_map(Instr::Unblock),
        Just(Instr::End),
        Just(Instr::Halt),
    ]
}

fn block(tables: Vec<Arc<Table>>) -> impl Strategy<Value = Block> {
    let trigger = prop_oneof![
        Just(Trigger::Start),
        Just(Trigger::Local),
        any::<u8>().prop_map(Trigger::Data)
    ];
    let task = (name(), trigger, any::<bool>(), 0u32..12).prop_map(|(name, trigger, blocked, entry)| Task {
        name,
        trigger,
        blocked,
        entry,
    });
    let param = (name(), expr(tables)).prop_map(|(name, value)| Param { name, value });
    let buffer =
        (name(), 0u32..200, 0u32..100).prop_map(|(name, address, bytes)| Buffer { name, address, bytes });
    use prop::collection::vec;
    let labels = (vec((name(), 0u32..12), 0..4), any::<bool>()).prop_map(|(mut l, sort)| {
        if sort {
            l.sort_by_key(|l| l.1);
        }
        l
    });
    (
        lattice(),
        vec(param, 0..4),
        vec(buffer, 0..4),
        vec(task, 0..4),
        labels,
        vec(instr(), 0..16),
    )
        .prop_map(|(at, params, memory, tasks, labels, code)| Block {
            at,
            params,
            memory,
            tasks,
            labels,
            code,
        })
}

fn route(tables: Vec<Arc<Table>>) -> impl Strategy<Value = Route> {
    use prop::collection::vec;
    let port = || prop::sample::select(Port::ALL.to_vec());
    let position = (port(), vec(port(), 0..4), expr(tables.clone()))
        .prop_map(|(input, outputs, hold)| Position { input, outputs, hold });
    let filter = (port(), expr(tables.clone()), expr(tables.clone()), expr(tables)).prop_map(
        |(output, first, count, period)| Filter {
            output,
            first,
            count,
            period,
        },
    );
    (
        any::<u8>(),
        name(),
        lattice(),
        vec(position, 0..4),
        vec(filter, 0..3),
    )
        .prop_map(|(color, stream, at, positions, filters)| Route {
            color,
            stream,
            at,
            positions,
            filters,
        })
}

fn program() -> impl Strategy<Value = Program> {
    use prop::collection::vec;
    tables().prop_flat_map(|t| {
        let n = any::<u32>;
        let side = || prop_oneof![Just(Side::West), Just(Side::East)];
        let region = (
            name(),
            n(),
            n(),
            n(),
            n(),
            vec(route(t.clone()), 0..3),
            vec(block(t), 0..3),
        )
            .prop_map(|(name, x, y, width, height, routes, blocks)| Region {
                name,
                x,
                y,
                width,
                height,
                routes,
                blocks,
            });
        let wavelet = (prop_oneof![any::<u64>(), 0u64..300], any::<u8>(), any::<bool>())
            .prop_map(|(bits, elements, flag)| Wavelet { bits, elements, flag });
        let span = (
            n(),
            n(),
            any::<u64>(),
            any::<u64>(),
            prop_oneof![Just(0), any::<u64>()],
        )
            .prop_map(|(stage, drain, first, count, flag_every)| Span {
                stage,
                drain,
                first,
                count,
                flag_every,
            });
        let kept = (
            n(),
            n(),
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            prop_oneof![Just(0), any::<u64>()],
        );
        let piece = prop_oneof![
            (any::<u32>(), any::<u64>()).prop_map(|(bits, count)| Piece::Fill { bits, count }),
            kept.prop_map(|(stage, drain, first, skip, count, step)| Piece::Kept {
                stage,
                drain,
                first,
                skip,
                count,
                step,
            }),
        ];
        let data = prop_oneof![
            vec(wavelet, 0..24).prop_map(FeedData::from),
            vec(span, 0..4).prop_map(FeedData::Drained),
            (ty(), n(), any::<u64>(), vec(piece, 0..4)).prop_map(|(ty, per, rows, pieces)| {
                FeedData::Cut(Cut {
                    ty,
                    per,
                    rows,
                    pieces,
                })
            }),
        ];
        let feed = (name(), side(), n(), any::<u8>(), n(), data).prop_map(
            |(name, side, row, color, epoch, data)| Feed {
                name,
                side,
                row,
                color,
                epoch,
                data,
            },
        );
        let drain = (name(), side(), n(), any::<u8>(), any::<u64>()).prop_map(
            |(name, side, row, color, wavelets)| Drain {
                name,
                side,
                row,
                color,
                wavelets,
            },
        );
        let stage = (
            prop_oneof![Just(String::new()), name()],
            vec(any::<u8>(), 0..4),
            vec(region, 0..3),
            vec(feed, 0..3),
            vec(drain, 0..3),
        )
            .prop_map(|(name, priority, regions, feeds, drains)| Stage {
                name,
                priority,
                regions,
                feeds,
                drains,
            });
        (name(), vec(stage, 1..4)).prop_map(|(name, stages)| Program { name, stages })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_round_trip(p in program()) {
        assert_round_trip(&p);
    }

    #[test]
    fn broken_texts_never_panic(
        p in program(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, "\\PC|[0-9 \\n\"#@$~.=/()\\-]{1,4}|[a-z]{1,3}"), 1..8),
    ) {
        let store = data(&p);
        for start in [print(&p), print(&example())] {
            let mut text: Vec<char> = start.chars().collect();
            for (at, kind, new) in &edits {
                let i = at.index(text.len() + 1);
                match kind {
                    0 => drop(text.splice(i..i, new.chars())),
                    1 => drop(text.splice(i..(i + 1).min(text.len()), new.chars())),
                    2 => drop(text.drain(i..(i + new.len()).min(text.len()))),
                    _ => text.truncate(i.max(1)),
                }
            }
            let text: String = text.into_iter().collect();
            match parse(&text, &store) {
                Ok(p) => {
                    let again = parse(&print(&p), &data(&p)).unwrap();
                    prop_assert_eq!(print(&again), print(&p));
                }
                Err(e) => prop_assert!(e.line >= 1 && e.column >= 1 && !e.to_string().is_empty()),
            }
        }
    }
}
