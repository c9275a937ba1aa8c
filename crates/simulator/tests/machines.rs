//! The shipped machine descriptions: they parse, each value says where it comes from, and what is wrong with a description or an
//! assignment is said in words (the messages as a snapshot).

use meshloom_simulator::{Machine, MachineError, Side};

const SMALL: (&str, &str) = (
    "machines/small.toml",
    include_str!("../../../machines/small.toml"),
);
const WSE2: (&str, &str) = ("machines/wse2.toml", include_str!("../../../machines/wse2.toml"));
const WSE3: (&str, &str) = ("machines/wse3.toml", include_str!("../../../machines/wse3.toml"));

/// Sources a comment may cite, and the marks of a value that has none.
const CITED: [&str; 8] = [
    "SDK docs",
    "Hot Chips 34",
    "HPDC'24",
    "spcl/spada",
    "SpMM study",
    "csl-examples",
    "*assumed*",
    "*uncalibrated*",
];

fn read(file: (&str, &str)) -> Machine {
    Machine::parse(file.0, file.1, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn set(assignments: &[&str]) -> Result<Machine, MachineError> {
    let sets: Vec<String> = assignments.iter().map(|s| s.to_string()).collect();
    Machine::parse(SMALL.0, SMALL.1, &sets)
}

/// Rows of the channels of one side.
fn rows(machine: &Machine, side: Side) -> Vec<u32> {
    let all = machine.channels();
    all.iter().filter(|c| c.side == side).map(|c| c.row).collect()
}

#[test]
fn every_value_has_a_unit_and_a_source_or_a_mark() {
    for (file, text) in [SMALL, WSE2, WSE3] {
        let mut values = 0;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            values += 1;
            let at = format!("{file}, line {}: {line}", i + 1);
            let (_, comment) = line.split_once('#').unwrap_or_else(|| panic!("{at}: no comment"));
            let (unit, source) = comment
                .split_once("; ")
                .unwrap_or_else(|| panic!("{at}: not `unit; source`"));
            assert!(!unit.trim().is_empty(), "{at}: no unit");
            assert!(
                CITED.iter().any(|c| source.contains(c)),
                "{at}: neither a source nor a mark"
            );
        }
        // one line a field, none left to a default
        let machine = read((file, text));
        assert_eq!(values, machine.fields().len(), "{file}");
        assert!(machine.energy.is_some(), "{file}");
        assert_eq!(file, format!("machines/{}.toml", machine.name));
    }
}

#[test]
fn energy_is_marked_uncalibrated() {
    for (file, text) in [SMALL, WSE2, WSE3] {
        for line in text.lines().filter(|l| l.contains("_pj = ")) {
            assert!(line.contains("*uncalibrated*"), "{file}: {line}");
        }
    }
}

#[test]
fn small_is_a_mesh_of_the_same_pes_as_wse2() {
    let (small, wse2) = (read(SMALL), read(WSE2));
    let Machine { name, mesh, edge, .. } = wse2.clone();
    assert_eq!(
        Machine {
            name,
            mesh,
            edge,
            ..small
        },
        wse2
    );
}

#[test]
fn channels_follow_the_bandwidth_and_lie_on_both_sides() {
    let small = read(SMALL);
    assert_eq!(rows(&small, Side::West), [0, 4, 8, 12, 16, 20, 24, 28]);
    assert_eq!(rows(&small, Side::East), rows(&small, Side::West));
    let wse2 = read(WSE2);
    assert_eq!(wse2.channels().len(), 44);
    for side in [Side::West, Side::East] {
        let rows = rows(&wse2, side);
        assert_eq!(rows.len(), 22);
        assert!(rows.iter().all(|r| r % 16 == 0 && *r < wse2.mesh.height));
        let gaps: Vec<u32> = rows.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps.iter().all(|g| [32, 48].contains(g)), "evenly: {rows:?}");
    }
    for machine in [small, wse2, read(WSE3)] {
        assert!(machine.channels().iter().all(|c| c.gap == 1), "{}", machine.name);
    }
    // an odd one goes west; wide links need more bandwidth each; below one channel there is one with a gap
    let odd = set(&["edge.bits_per_second=82e9"]).unwrap();
    assert_eq!(
        (rows(&odd, Side::West), rows(&odd, Side::East)),
        (vec![0, 16], vec![0])
    );
    assert_eq!(set(&["link.bits=64"]).unwrap().channels().len(), 8);
    let slow = set(&["edge.bits_per_second=10e9"]).unwrap().channels();
    assert_eq!(
        slow.iter().map(|c| (c.side, c.row, c.gap)).collect::<Vec<_>>(),
        [(Side::West, 0, 3)]
    );
    // never more than one a border router and side
    assert_eq!(set(&["edge.bits_per_second=1e15"]).unwrap().channels().len(), 64);
}

#[test]
fn assignments_replace_fields_and_keep_their_types() {
    let plain = read(SMALL);
    let m = set(&[
        "link.bits=64",
        "pe.cost.issue = 0",
        "clock_hz=1e9",
        "skip.zero_operands=true",
    ])
    .unwrap();
    assert_eq!(
        (m.link.bits, m.pe.cost.issue, m.clock_hz, m.skip.zero_operands),
        (64, 0, 1e9, true)
    );
    assert_eq!(m.pe.sram, plain.pe.sram);
    // the later of two wins; a whole number may be written with an exponent, and a rate without one
    let m = set(&["mesh.width=8", "mesh.width=1e2", "clock_hz=1000000000"]).unwrap();
    assert_eq!((m.mesh.width, m.clock_hz), (100, 1e9));
    assert_eq!(set(&["name=other"]).unwrap().name, "other");
    // every field can be assigned its own value
    for (field, value) in plain.fields() {
        let value = value.trim_matches('"');
        assert_eq!(set(&[&format!("{field}={value}")]), Ok(plain.clone()), "{field}");
    }
}

#[test]
fn messages() {
    let mut all = Vec::new();
    let mut say = |what: &str, result: Result<Machine, MachineError>| {
        let message = match result {
            Ok(_) => "accepted".to_string(),
            Err(e) => e.to_string(),
        };
        all.push(format!("{what}\n  {}", message.replace('\n', "\n  ")));
    };
    for s in [
        // impossible values
        "link.bits=48",
        "link.bits=0",
        "link.bits=128",
        "pe.sram.port_bits=32",
        "pe.move_queue=0",
        "pe.lanes.f16=65",
        "pe.cost.issue=10001",
        "pe.cost.load=0",
        "router.ramp_cycles=0",
        "mesh.height=5000",
        "clock_hz=0",
        "clock_hz=-1",
        "edge.bits_per_second=0",
        "energy.hop_pj=-0.5",
        // values of the wrong type
        "link.bits=2.5",
        "link.bits=-32",
        "link.bits=wide",
        "clock_hz=fast",
        "clock_hz=inf",
        "pe.moves_first=1",
        // fields that do not exist
        "link.width=64",
        "links.bits=64",
        "pe.cost=3",
        "pe.sram.banks.count=8",
        "bits=64",
        "=64",
        // not an assignment
        "link.bits",
        "",
    ] {
        say(&format!("--set {s}"), set(&[s]));
    }
    let text = |from: &str, to: &str| {
        assert!(SMALL.1.contains(from), "{from}");
        Machine::parse(SMALL.0, &SMALL.1.replacen(from, to, 1), &[])
    };
    say("an unknown field", text("bits = 32", "bit = 32"));
    say("an unknown section", text("[link]", "[links]"));
    say("a missing field", text("hop_cycles = 1", "# hop_cycles = 1"));
    say("a negative number", text("hop_cycles = 1", "hop_cycles = -1"));
    say("not TOML", text("[link]", "[link"));
    let unknown = SMALL.1.replacen("bits = 32", "bit = 32", 1);
    say(
        "an unknown field, and --set",
        Machine::parse(SMALL.0, &unknown, &["mesh.width=8".into()]),
    );
    insta::assert_snapshot!(all.join("\n"));
}
