//! Importing takes at most four times the file and 256 MB, whatever the file says of itself: an allocator that counts watches damaged files.

mod common;

use common::{File, Message, Size, constant, input, node, tensor};
use meshloom_models::ImportOptions;
use meshloom_models::onnx::import_bytes;
use peak_alloc::PeakAlloc;
use std::path::Path;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Bytes allocated beyond what was there before, at the highest, while importing.
fn peak(bytes: Vec<u8>) -> (usize, usize) {
    let size = bytes.len();
    let before = PEAK.current_usage().saturating_sub(size);
    PEAK.reset_peak_usage();
    let _ = import_bytes(bytes, Path::new("damaged.onnx"), &ImportOptions { batch: None });
    (PEAK.peak_usage().saturating_sub(before), size)
}

fn assert_bounded(bytes: Vec<u8>, what: &str) {
    let (peak, size) = peak(bytes);
    assert!(
        peak <= 4 * size + (256 << 20),
        "{what}: {peak} bytes for a file of {size}"
    );
}

/// A protobuf field of a length-delimited kind.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut n = content.len();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend(content);
    out
}

/// Small files that compute large constants of constants, over and over.
fn growing() -> Vec<File> {
    let whole = |name: &str, v: &[i64]| {
        v.iter()
            .fold(tensor(name, 7, &[v.len() as i64]), |t, v| t.int(7, *v))
    };
    let file = |mut nodes: Vec<Message>, last: &str| {
        nodes.push(node("Add", "end", &["x", last], &["y"]));
        File {
            nodes,
            constants: vec![
                whole("large", &[4096, 2048]),
                whole("zero", &[0]),
                whole("one", &[1]),
                whole("count", &[8 << 20]),
                constant("c", &[1], &[1.0]),
            ],
            inputs: vec![input("x", &[Size::Is(1)])],
            outputs: vec!["y"],
            opset: None,
        }
    };
    let chain = |op: &str, first: Message, more: &[&str]| {
        let mut nodes = vec![first];
        for i in 0..40 {
            let (from, to) = (format!("t{i}"), format!("t{}", i + 1));
            let inputs = match more {
                [] => vec![from.as_str(), from.as_str()],
                ["none"] => vec![from.as_str()],
                more => [&[from.as_str()], more].concat(),
            };
            nodes.push(node(op, &to, &inputs, &[&to]));
        }
        file(nodes, "t40")
    };
    let filled = || node("ConstantOfShape", "fill", &["large"], &["t0"]);
    let counted = || node("Range", "range", &["zero", "count", "one"], &["t0"]);
    let expanded = || node("Expand", "expand", &["c", "large"], &["t0"]);
    vec![
        chain("Add", filled(), &[]),
        chain("Mul", counted(), &[]),
        chain("Less", counted(), &[]),
        chain("Concat", expanded(), &[]),
        chain("Gather", expanded(), &["zero"]),
        chain("Pow", expanded(), &["c"]),
        chain("Trilu", filled(), &["one"]),
        chain("Not", counted(), &["none"]),
    ]
}

#[test]
fn memory_stays_bounded() {
    // one test: others in this binary would count too
    for case in common::cases() {
        let good = std::fs::read(common::data(&format!("{case}.onnx"))).expect(&case);
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..40 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                let at = s as usize % bytes.len();
                bytes[at] = (s >> 32) as u8;
            }
            assert_bounded(bytes, &case);
        }
    }
    for (i, file) in growing().into_iter().enumerate() {
        assert_bounded(file.bytes(), &format!("constants that grow, {i}"));
    }
    // millions of tiny messages: nodes, inputs, dimensions, attributes
    for (outer, inner) in [
        (7u8, field(1, &[])),
        (7, field(5, &[])),
        (7, field(11, &[])),
        (7, field(1, &field(5, &[]))),
        (8, Vec::new()),
    ] {
        let graph: Vec<u8> = std::iter::repeat_n(inner, 4_000_000).flatten().collect();
        assert_bounded(field(outer, &graph), "many small messages");
    }
}
