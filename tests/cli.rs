//! The command end to end: what it prints, the files that it writes, and that they are right.

mod command;

use command::{folder, meshloom, settled};
use meshloom::arrays;
use meshloom::simulate::difference;
use meshloom_traces::report::Report;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const MLP: &str = "mlp:layers=64-32-10 --sparsity 0.75 --batch 4";
const CNN: &str = "tests/data/digits-cnn/model.onnx";
const DIGITS: &str = "tests/data/digits-cnn/model.onnx --input tests/data/digits-cnn/input.npz";

/// All paths of a JSON value, `[]` for any element of a list.
fn paths(at: &str, value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(k, v)| {
            paths(
                &if at.is_empty() {
                    k.clone()
                } else {
                    format!("{at}.{k}")
                },
                v,
                all,
            )
        }),
        Value::Array(list) => list.iter().for_each(|v| paths(&format!("{at}[]"), v, all)),
        _ => drop(all.insert(at.into())),
    }
}

/// The keys that docs/report.md defines: those of tables whose first column is headed `Key`, and the runs' names.
fn documented() -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = ["runs[].name", "comparison"].map(String::from).into();
    let (mut prefix, mut table) = ("", false);
    for line in include_str!("../docs/report.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            prefix = match title {
                "A run" | "Operations" | "Outputs" => "runs[].",
                "Kernels" => "runs[].kernels[].",
                "Comparisons" => "comparisons[].",
                _ => "",
            };
        }
        table = (table || line.starts_with("| Key |")) && line.starts_with('|');
        if let Some(first) = line.split('|').nth(1).filter(|_| table) {
            keys.extend(
                first
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .map(|k| format!("{prefix}{k}")),
            );
        }
    }
    keys
}

/// Whether `path` is `key` or inside it.
fn inside(path: &str, key: &str) -> bool {
    path.strip_prefix(key)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[test]
fn a_table_of_three_runs() {
    let run = meshloom(&format!("run {MLP}"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    settled().bind(|| insta::assert_snapshot!(format!("{}---- standard error\n{}", run.out, run.err)));
}

#[test]
fn two_machines_in_one_table() {
    let out = meshloom("run mlp:layers=12-8-4 --batch 2 --sparsity 0.5 --items 3 --machine small --machine wse2 --set mesh.width=12 --set mesh.height=10").ok();
    settled().bind(|| insta::assert_snapshot!(out));
}

#[test]
fn a_machine_that_does_not_skip_has_no_run_that_does() {
    let report: Report =
        serde_json::from_str(&meshloom(&format!("run {MLP} --json --set skip.zero_weights=false")).ok())
            .expect("a report");
    let names: Vec<String> = report.runs.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["dense", "sparse-no-skip"]);
}

#[test]
fn the_report_has_every_documented_key_and_no_other() {
    let text = meshloom(&format!("run {MLP} --items 2 --json")).ok();
    let mut found = BTreeSet::new();
    paths("", &serde_json::from_str(&text).expect("JSON"), &mut found);
    let keys = documented();
    let missing: Vec<_> = keys
        .iter()
        .filter(|k| !found.iter().any(|p| inside(p, k)))
        .collect();
    let unknown: Vec<_> = found
        .iter()
        .filter(|p| !keys.iter().any(|k| inside(p, k)))
        .collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "documented, not in the report: {missing:?}; in the report, not documented: {unknown:?}"
    );
    let report: Report = serde_json::from_str(&text).expect("a report");
    report.validate().expect("a report that adds up");
    assert_eq!(
        report.to_json().trim_end(),
        text.trim_end(),
        "reading and writing again changes nothing"
    );
}

/// The files of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = std::fs::read_dir(folder).expect("the folder");
    all.map(|f| {
        let path = f.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("the file"))
    })
    .collect()
}

#[test]
fn files_of_two_runs_are_equal_but_for_wall_time() {
    let tmp = folder("files");
    let run = |name: &str| {
        let out = tmp.join(name);
        meshloom(&format!("run {MLP} --out {}", out.display())).ok();
        files(&out)
    };
    let (a, b) = (run("a"), run("b"));
    let names: Vec<&str> = a.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "cycles.png",
            "cycles.svg",
            "outputs.npz",
            "placement.svg",
            "report.json",
            "utilisation.png",
            "utilisation.svg"
        ]
    );
    let timeless = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        text.lines()
            .filter(|l| {
                !["wall_seconds", "pe_cycles_per_second", "peak_memory_bytes"]
                    .iter()
                    .any(|f| l.contains(f))
            })
            .collect::<Vec<_>>()
            .join("\n")
    };
    for name in names {
        match name {
            "report.json" => assert_eq!(timeless(&a[name]), timeless(&b[name])),
            _ => assert!(a[name] == b[name], "{name}"),
        }
    }
    settled().bind(|| insta::assert_snapshot!("report_json", String::from_utf8_lossy(&a["report.json"])));
    // written over, not mixed with what was there
    meshloom(&format!(
        "run mlp:layers=4-3 --batch 1 --out {}",
        tmp.join("a").display()
    ))
    .ok();
    let again = arrays::read(&tmp.join("a/outputs.npz")).expect("outputs");
    assert_eq!(
        again
            .iter()
            .map(|(_, shape, _)| shape.clone())
            .collect::<Vec<_>>(),
        [vec![1, 3]]
    );
}

#[test]
fn several_sparsities_are_one_table_and_one_plot() {
    let out = folder("sparsities");
    let line = "run mlp:layers=64-32-10 --batch 4 --set mesh.width=12 --set mesh.height=8";
    let table = meshloom(&format!(
        "{line} --sparsity 0,0.5,0.75,0.9 --out {}",
        out.display()
    ))
    .ok();
    settled().bind(|| insta::assert_snapshot!(table));
    let written = files(&out);
    let text = |name: &str| String::from_utf8_lossy(&written[name]).into_owned();
    let report: Report = serde_json::from_str(&text("report.json")).expect("a report");
    let points: Vec<f64> = report.comparisons.iter().map(|c| c.sparsity).collect();
    assert_eq!(points, [0.0, 0.5, 0.75, 0.9]);
    // at 0 % nothing is masked: there is no run without skipping beside it
    assert_eq!(report.runs.len(), 1 + 1 + 3 * 2);
    assert_eq!(report.comparisons[0].theoretical_speedup, 1.0);
    for s in ["0%", "50%", "75%", "90%"] {
        assert!(
            text("speedup.svg").contains(&format!("\n{s}\n")),
            "{s} at the axis"
        );
    }
    for name in ["utilisation", "cycles", "speedup"] {
        assert!(
            written[&format!("{name}.png")].starts_with(b"\x89PNG"),
            "{name}.png"
        );
        assert!(
            text(&format!("{name}.svg")).contains(">\nmlp on small"),
            "{name}.svg"
        );
    }
    // the plot of other runs does not stay beside this report
    meshloom(&format!("{line} --sparsity 0.5 --out {}", out.display())).ok();
    let again = files(&out);
    assert!(
        again
            .keys()
            .all(|name| !name.starts_with("speedup.") && !name.starts_with('.'))
    );
    assert_eq!(again.len(), written.len() - 2);
}

#[test]
fn what_the_passes_make_of_an_mlp() {
    for emit in [
        "graph",
        "rewritten",
        "stages",
        "placement",
        "routes",
        "memory",
        "program",
    ] {
        let out = meshloom(&format!(
            "compile {MLP} --set mesh.height=6 --set mesh.width=12 --emit {emit}"
        ))
        .ok();
        settled().bind(|| insta::assert_snapshot!(format!("mlp_{emit}"), out));
    }
}

#[test]
fn what_the_passes_make_of_a_cnn() {
    for emit in [
        "graph",
        "rewritten",
        "stages",
        "placement",
        "routes",
        "memory",
        "program",
    ] {
        let out = meshloom(&format!("compile {CNN} --emit {emit}")).ok();
        settled().bind(|| insta::assert_snapshot!(format!("cnn_{emit}"), out));
    }
}

/// A small one of each family, on a small mesh.
const FAMILIES: [(&str, &str); 3] = [
    (
        "gpt",
        "gpt:layers=1,width=8,heads=2,seq=6,vocab=12 --set mesh.width=16 --set mesh.height=12",
    ),
    (
        "resnet18",
        "resnet18:width=2,size=8 --set mesh.width=24 --set mesh.height=20 --sparsity 0.75",
    ),
    (
        "fabric",
        "fabric:layers=2,scales=2,channels=2 --set mesh.width=14 --set mesh.height=12",
    ),
];

#[test]
fn what_the_passes_make_of_each_family() {
    for (family, line) in FAMILIES {
        for emit in ["rewritten", "stages", "placement", "routes", "memory"] {
            let out = meshloom(&format!("compile {line} --emit {emit}")).ok();
            settled().bind(|| insta::assert_snapshot!(format!("{family}_{emit}"), out));
        }
        let out = meshloom(&format!("compile {line} --stages layer --emit placement")).ok();
        settled().bind(|| insta::assert_snapshot!(format!("{family}_layer_placement"), out));
    }
}

/// Planes that are too large for a PE: how the stages are cut, where kernels lie, and what memory outside feeds them.
#[test]
fn what_does_not_fit_is_cut_in_tiles() {
    let line = "resnet18:stem=imagenet,width=4,classes=10,size=128 --batch 1 --set mesh.width=10 --set mesh.height=10 \
                --set pe.sram_bytes=14336";
    let mut text = String::new();
    for emit in ["stages", "placement"] {
        text += &meshloom(&format!("compile {line} --emit {emit}")).ok();
    }
    let program = meshloom(&format!("compile {line} --emit program")).ok();
    let feeds: Vec<&str> = program.lines().filter(|l| l.contains(" drained ")).collect();
    assert!(feeds.iter().any(|l| l.contains(" fill ")));
    text += &feeds.join("\n");
    settled().bind(|| insta::assert_snapshot!(text));
    let run = meshloom(&format!("run {line} --json")).ok();
    let report: Report = serde_json::from_str(&run).expect("a report");
    assert!(report.runs[0].kernels.iter().any(|k| k.stage > 0));
}

#[test]
fn a_layer_at_a_time_runs_too() {
    for (_, line) in FAMILIES {
        meshloom(&format!("run {line} --stages layer")).ok();
    }
}

#[test]
fn lists_and_descriptions() {
    let mut text = String::new();
    for line in [
        "list machines",
        "list models",
        "list kernels",
        "list passes",
        "show matmul",
        "show routes",
        "show mlp:layers=4-3-2",
        "show small --set link.bits=64 --set mesh.width=7",
    ] {
        text += &format!("$ meshloom {line}\n{}\n", meshloom(line).ok());
    }
    settled().bind(|| insta::assert_snapshot!(text));
    assert_eq!(meshloom("show wse2").ok(), include_str!("../machines/wse2.toml"));
}

#[test]
fn assignments_change_the_machine() {
    let cycles = |sets: &str| {
        let report: Report =
            serde_json::from_str(&meshloom(&format!("run {MLP} --json {sets}")).ok()).expect("a report");
        (report.runs[0].machine.height, report.runs[0].cycles.total)
    };
    let (plain, slow) = (
        cycles(""),
        cycles("--set mesh.height=4 --set router.hop_cycles=7"),
    );
    assert_eq!((plain.0, slow.0), (32, 4));
    assert!(slow.1 > plain.1);
}

/// Runs a model and holds the outputs that it wrote against those recorded from another runtime.
fn agree(name: &str, line: &str, recorded: &Path, tolerance: f64) {
    let out = folder(name);
    meshloom(&format!("run {line} --out {}", out.display())).ok();
    let got = arrays::read(&out.join("outputs.npz")).expect("outputs");
    let want = arrays::read(recorded).expect("recorded outputs");
    assert_eq!(got.len(), want.len());
    for (name, shape, values) in &want {
        let (_, got_shape, got) = got
            .iter()
            .find(|(n, ..)| n == name)
            .unwrap_or_else(|| panic!("no output {name}"));
        assert_eq!(got_shape, shape, "{name}");
        let want: Vec<f64> = values.iter().map(|v| *v as f64).collect();
        let (_, relative) = difference(got, &want);
        assert!(
            relative <= tolerance,
            "{line}: {name} is off by {relative:.1e} of its standard deviation"
        );
    }
}

#[test]
fn the_cnn_gives_what_onnxruntime_gave() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/digits-cnn/output.npz");
    agree("cnn-f32", DIGITS, &recorded, 1e-4);
    agree("cnn-f16", &format!("{DIGITS} --dtype f16"), &recorded, 2e-2);
    agree(
        "cnn-external",
        &DIGITS.replacen("digits-cnn", "external", 1),
        &recorded,
        1e-4,
    );
    agree(
        "cnn-external-f16",
        &format!("{} --dtype f16", DIGITS.replacen("digits-cnn", "external", 1)),
        &recorded,
        2e-2,
    );
}

#[test]
fn a_cnn_is_right_on_odd_machines() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/digits-cnn/output.npz");
    for (i, sets) in [
        "mesh.width=2 mesh.height=2",
        "mesh.width=9 mesh.height=2",
        "mesh.width=9 mesh.height=3",
        "link.bits=64",
        "link.bits=64 pe.sram.port_bits=128 pe.lanes.f32_simple=64 pe.lanes.f16_simple=3",
        "link.bits=64 pe.lanes.f32_simple=1 pe.lanes.f16_simple=1",
        "pe.lanes.f32=2 pe.lanes.f16=64",
        "router.queue_depth=1 pe.input_queue_depth=1 pe.output_queue_depth=1",
        "router.colors=7 router.switch_positions=2 router.filters=2 pe.threads=5",
        "pe.move_queue=1",
        "pe.moves_first=false pe.cost.issue=0 pe.sram.banks=1",
        "edge.bits_per_second=54.4e9 edge.latency_cycles=1 router.ramp_cycles=1",
    ]
    .iter()
    .enumerate()
    {
        let sets: String = sets.split(' ').map(|s| format!(" --set {s}")).collect();
        agree(&format!("odd-{i}"), &format!("{DIGITS}{sets}"), &recorded, 1e-4);
        agree(
            &format!("odd-{i}-f16"),
            &format!("{DIGITS}{sets} --dtype f16"),
            &recorded,
            2e-2,
        );
    }
}

#[test]
fn every_kernel_alone_agrees_too() {
    let out = meshloom(&format!("run {DIGITS} --check-kernels --sparsity 0.5")).ok();
    assert_eq!(
        out.lines()
            .filter(|l| l.contains(" alone: largest error "))
            .count()
            % 3,
        0
    );
    assert!(out.contains("kernel "), "{out}");
}

#[test]
fn a_model_of_a_few_cycles_is_placed() {
    // the search for a pace once never ended below 200 cycles
    meshloom("compile mlp:layers=2-2-2 --batch 1 --emit placement").ok();
}

#[test]
fn a_departure_in_f16_is_explained() {
    // one channel, of which ReLU leaves a few elements
    let line = "run resnet18:stem=cifar,width=1,classes=2,size=12 --batch 1 --seed 6";
    meshloom(line).ok();
    let ended = meshloom(&format!("{line} --dtype f16"));
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let cause = "so f16 is too narrow for this model, and no kernel adds to it";
    assert!(ended.err.contains(cause), "{}", ended.err);
}
