//! What a user meets who gives what can't be used: exit code 2, nothing on standard output, and a message that names what was given,
//! what was expected and what to do. Nothing is half-written.

mod command;

use command::{folder, meshloom, settled};
use ndarray::{Array, ArrayD, IxDyn};
use ndarray_npy::{NpzWriter, WritableElement};
use std::fs::File;
use std::path::{Path, PathBuf};

const SMALL: &str = "run mlp:layers=6-4 --batch 2";

/// All messages, one after another.
fn refused(lines: &[String]) -> String {
    lines.iter().map(|l| meshloom(l).refused()).collect()
}

fn lines(start: &str, ends: &[&str]) -> Vec<String> {
    ends.iter().map(|e| format!("{start} {e}")).collect()
}

#[test]
fn models() {
    let (tmp, repository) = (folder("errors-models"), Path::new(env!("CARGO_MANIFEST_DIR")));
    let model = std::fs::read(repository.join("tests/data/digits-cnn/model.onnx")).expect("the model");
    let file = |name: &str, bytes: &[u8]| {
        let path = tmp.join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    };
    let missing = tmp.join("missing.onnx").display().to_string();
    let folder = tmp.join("folder.onnx");
    std::fs::create_dir(&folder).expect("a folder");
    let external = tmp.join("external.onnx").display().to_string();
    std::fs::copy(repository.join("tests/data/external/model.onnx"), &external).expect("a copy");
    let all: Vec<String> = [
        missing,
        folder.display().to_string(),
        file("empty.onnx", b""),
        file("text.onnx", b"this is a text, not a model\n"),
        file("truncated.onnx", &model[..model.len() / 2]),
        file("short.onnx", &model[..40]),
        file("model.pb", &model),
        external,
        "cnn".into(),
        "Mlp".into(),
        "mlp:depth=3".into(),
        "mlp:layers".into(),
        "mlp:layers=".into(),
        "mlp:layers=64".into(),
        "mlp:layers=64-0-10".into(),
        "mlp:layers=64--10".into(),
        "mlp:layers=64-x".into(),
        "mlp:layers=-64-10".into(),
        "mlp:layers=64,10".into(),
        "mlp:layers=64-10,layers=3-2".into(),
        "mlp:layers=99999999-99999999".into(),
        "mlp:layers=65536-65536".into(),
        "mlp:layers=99999999999999999999-2".into(),
    ]
    .iter()
    .map(|m| format!("run {m}"))
    .chain([
        "show nothing".into(),
        "show mlp:layers=1".into(),
        "show nothing.toml".into(),
        "show nothing.onnx".into(),
    ])
    .collect();
    settled().bind(|| insta::assert_snapshot!(refused(&all)));
}

#[test]
fn settings() {
    let tmp = folder("errors-settings");
    let file = tmp.join("file");
    std::fs::write(&file, "here first").expect("a file");
    let mut all = lines(
        "run mlp:layers=6-4",
        &[
            "--batch 0",
            "--batch 99999999999999",
            "--batch -1",
            "--items 0",
            "--items 99999999999",
            "--sparsity 1",
            "--sparsity -0.1",
            "--sparsity nan",
            "--sparsity 0.5,2",
            "--sparsity 0.5,0,0.5",
            "--sparsity half",
            "--sparsity 0.5 --mask existing",
            "--mask smallest",
            "--dtype f64",
            "--seed -3",
            "--batch two",
            "--threads 0",
            "--no-check --check-kernels",
            "--machine small --machine wse2 --machine small",
            "--max-cycles 10",
            "--max-cycles 100000 --set edge.bits_per_second=1e7",
            "--max-cycles many",
            "--set edge.bits_per_second=1",
            "--out",
        ],
    );
    all.push(format!("{SMALL} --out {}", file.display()));
    all.push(format!("{SMALL} --out {}", file.join("below").display()));
    all.push("compile mlp:layers=6-4 --batch 2 --emit object".into());
    all.push("compile mlp:layers=6-4 --batch 2 --sparsity 0.5,0.9".into());
    all.push("list people".into());
    all.push("fly".into());
    settled().bind(|| insta::assert_snapshot!(refused(&all)));
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "here first");
}

/// Writes an .npz with one array.
fn npz<T: WritableElement>(path: PathBuf, name: &str, shape: &[usize], values: Vec<T>) -> String {
    let mut npz = NpzWriter::new(File::create(&path).expect("a file"));
    let array: ArrayD<T> = Array::from_shape_vec(IxDyn(shape), values).expect("a shape");
    npz.add_array(name, &array).expect("an array");
    npz.finish().expect("a file");
    path.display().to_string()
}

#[test]
fn inputs() {
    let tmp = folder("errors-inputs");
    let at = |name: &str| tmp.join(name);
    let good = npz(at("good.npz"), "x", &[3, 2, 6], vec![0.5f32; 36]);
    let bytes = std::fs::read(&good).expect("the file");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(at(name), bytes).expect("a file");
        at(name).display().to_string()
    };
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let mut nan = vec![0.5f32; 12];
    nan[7] = f32::NAN;
    let files = [
        at("missing.npz").display().to_string(),
        tmp.display().to_string(),
        write("empty.npz", b""),
        write("text.npz", b"numbers"),
        write("truncated.npz", &bytes[..bytes.len() / 2]),
        write("flipped.npz", &flipped),
        npz(at("shape.npz"), "x", &[2, 5], vec![0.5f32; 10]),
        npz(at("transposed.npz"), "x", &[6, 2], vec![0.5f32; 12]),
        npz(at("no-items.npz"), "x", &[0, 2, 6], Vec::<f32>::new()),
        npz(at("name.npz"), "image", &[2, 6], vec![0.5f32; 12]),
        npz(at("integers.npz"), "x", &[2, 6], vec![1i32; 12]),
        npz(at("nan.npz"), "x", &[2, 6], nan),
        npz(at("infinite.npz"), "x", &[2, 6], vec![f64::INFINITY; 12]),
        npz(at("too-large.npz"), "x", &[2, 6], vec![1e300f64; 12]),
    ];
    let mut all: Vec<String> = files.iter().map(|f| format!("{SMALL} --input {f}")).collect();
    let ids = [
        npz(
            at("large-id.npz"),
            "ids",
            &[1, 4],
            vec![1i64, 2, (1 << 24) + 1, 3],
        ),
        npz(at("no-row.npz"), "ids", &[1, 4], vec![1i64, 8, 9, 0]),
        npz(at("negative.npz"), "ids", &[1, 4], vec![1i32, -1, 2, 0]),
        npz(at("between.npz"), "ids", &[1, 4], vec![1.5f32; 4]),
        npz(at("bytes.npz"), "ids", &[1, 4], vec![1u8; 4]),
    ];
    let gpt = "run gpt:layers=1,width=4,heads=1,seq=4,vocab=9";
    all.extend(ids.iter().map(|f| format!("{gpt} --input {f}")));
    for good in [
        npz(at("int32.npz"), "ids", &[1, 4], vec![1i32, 8, 2, 0]),
        npz(at("int64.npz"), "ids", &[1, 4], vec![1i64, 8, 2, 0]),
        npz(at("float.npz"), "ids", &[1, 4], vec![1f32, 8.0, 2.0, 0.0]),
    ] {
        meshloom(&format!("{gpt} --input {good}")).ok();
    }
    all.push(format!("{SMALL} --input {good} --items 2"));
    assert_eq!(
        meshloom(&format!("{SMALL} --input {good} --items 3")).code,
        Some(0)
    );
    settled().bind(|| insta::assert_snapshot!(refused(&all)));
}

#[test]
fn machines() {
    let tmp = folder("errors-machines");
    let small = include_str!("../machines/small.toml");
    let file = |name: &str, text: &str| {
        let path = tmp.join(name);
        std::fs::write(&path, text).expect("a file");
        format!("--machine {}", path.display())
    };
    let line = |field: &str| small.lines().find(|l| l.starts_with(field)).expect("the field");
    let without = |field: &str| small.replacen(line(field), "", 1);
    let with = |field: &str, text: &str| small.replacen(line(field), text, 1);
    let mut all: Vec<String> = [
        "--machine wse9".into(),
        format!("--machine {}", tmp.join("missing.toml").display()),
        file("empty.toml", ""),
        file("text.toml", "a machine"),
        file("missing-field.toml", &without("width")),
        file("missing-table.toml", &small.replacen("[router]", "[rooter]", 1)),
        file("unknown-field.toml", &with("width", "width = 32\ndepth = 2")),
        file("type.toml", &with("width", "width = \"wide\"")),
        file("zero.toml", &with("width", "width = 0")),
        file("negative.toml", &with("threads", "threads = -1")),
        file("bits.toml", &with("bits ", "bits = 48")),
        file("clock.toml", &with("clock_hz", "clock_hz = nan")),
    ]
    .iter()
    .map(|m| format!("{SMALL} {m}"))
    .collect();
    all.extend(lines(
        SMALL,
        &[
            "--set link.width=64",
            "--set linc.bits=64",
            "--set link=64",
            "--set link.bits",
            "--set =64",
            "--set link.bits=wide",
            "--set link.bits=33",
            "--set link.bits=64.5",
            "--set pe.moves_first=1",
            "--set pe.threads=0",
            "--set mesh.width=5000",
            "--set clock_hz=0",
            "--set edge.bits_per_second=nan",
            "--set edge.bits_per_second=inf",
        ],
    ));
    settled().bind(|| insta::assert_snapshot!(refused(&all)));
}

#[test]
fn models_that_do_not_fit() {
    let mut all = lines(
        "run mlp:layers=64-32-10 --batch 4",
        &[
            "--set mesh.width=1 --set mesh.height=1",
            "--set mesh.width=3 --set mesh.height=1",
            "--set mesh.width=2 --set mesh.height=2 --stages one",
            "--set pe.sram_bytes=256",
            "--set pe.sram_bytes=256 --dtype f16 --sparsity 0.5",
            "--set router.colors=1",
            "--set router.colors=4",
            "--set router.switch_positions=1",
            "--set router.filters=0",
            "--set pe.threads=1",
            "--set pe.threads=2",
        ],
    );
    // in tiles, the most there can be; and not even in tiles
    all.push("run resnet18:stem=imagenet,width=8,size=48 --batch 1 --set pe.sram_bytes=6144".into());
    all.push("run gpt:layers=1,width=64,seq=256 --batch 1 --set pe.sram_bytes=2048".into());
    all.push("run tests/data/digits-cnn/model.onnx --batch 1000 --stages one".into());
    all.push(
        "run tests/data/digits-cnn/model.onnx --set mesh.width=3 --set mesh.height=3 --stages one".into(),
    );
    all.push("compile mlp:layers=4096-4096 --batch 1 --weights resident".into());
    all.push("compile gpt:layers=12,width=256 --stages one".into());
    settled().bind(|| insta::assert_snapshot!(refused(&all)));
}

#[test]
fn what_would_help_helps() {
    // each of the refusals above, with its advice taken
    for sets in [
        "mesh.width=4 mesh.height=2",
        "mesh.width=6 mesh.height=2",
        "mesh.width=2 mesh.height=2",
        "pe.sram_bytes=2048",
        "router.colors=12",
        "router.switch_positions=2",
        "router.filters=2",
        "pe.threads=3",
    ] {
        let sets: String = sets.split(' ').map(|s| format!(" --set {s}")).collect();
        meshloom(&format!("run mlp:layers=64-32-10 --batch 4{sets}")).ok();
    }
}

#[test]
fn nothing_is_written_by_a_command_that_fails() {
    let tmp = folder("errors-out");
    for (i, end) in [
        "--sparsity 2",
        "--set pe.sram_bytes=64",
        "--machine wse9",
        "--input missing.npz",
        "--set mesh.width=1",
    ]
    .iter()
    .enumerate()
    {
        let out = tmp.join(i.to_string());
        meshloom(&format!("{SMALL} --out {} {end}", out.display())).refused();
        assert!(!out.exists(), "{end}");
    }
    // a folder that can't be made or written to
    let file = tmp.join("file");
    std::fs::write(&file, "").expect("a file");
    meshloom(&format!(
        "bench machine --quick --out {}",
        file.join("page.md").display()
    ))
    .refused();
    // a name that is taken by a folder: the files beside it are not touched
    let out = tmp.join("taken");
    std::fs::create_dir_all(out.join("placement.svg")).expect("a folder");
    meshloom(&format!("{SMALL} --out {}", out.display())).refused();
    let names: Vec<_> = std::fs::read_dir(&out)
        .expect("the folder")
        .map(|f| f.expect("a file").file_name())
        .collect();
    assert_eq!(names, ["placement.svg"]);
}

/// A run that is too long is refused if the edge alone shows it, else stopped; the advice of either makes it end.
#[test]
fn long_runs_end() {
    let line = "run mlp:layers=64-32-10 --batch 4";
    let advice = |message: &str, option: &str| -> String {
        let at = message
            .rfind(option)
            .unwrap_or_else(|| panic!("{option} in {message}"));
        let words: Vec<&str> = message[at..].split_whitespace().take(2).collect();
        words.join(" ").trim_end_matches([',', '.']).to_string()
    };
    let refused = meshloom(&format!(
        "{line} --set edge.bits_per_second=1e7 --max-cycles 4000000"
    ))
    .refused();
    meshloom(&format!(
        "{line} --set edge.bits_per_second=1e7 {}",
        advice(&refused, "--max-cycles")
    ))
    .ok();
    meshloom(&format!(
        "{line} --max-cycles 8000000 {}",
        advice(&refused, "--set")
    ))
    .ok();
    let stopped = meshloom(&format!("{line} --max-cycles 600"));
    assert_eq!(stopped.code, Some(3), "{}", stopped.err);
    assert!(
        stopped.err.contains("is not finished after 600 cycles"),
        "{}",
        stopped.err
    );
    meshloom(&format!("{line} {}", advice(&stopped.err, "--max-cycles"))).ok();
}
