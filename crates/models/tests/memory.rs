//! Importing takes at most four times the file and 256 MB, whatever the file says of itself: an allocator that counts watches damaged files.

mod common;

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
