//! The mesh in letters and as SVG.

mod common;

use common::*;
use meshloom_traces::map::{ascii, svg};
use meshloom_traces::*;

fn map(machine: &str, width: u32, height: u32, kernels: Vec<KernelRegion>) -> MeshMap {
    let kernels = kernels
        .into_iter()
        .map(|k| Placed {
            name: k.name,
            op: k.op,
            rect: k.rect,
        })
        .collect();
    MeshMap {
        model: "mlp".into(),
        machine: machine.into(),
        width,
        height,
        kernels,
    }
}

/// Twenty kernels of full height, side by side, some a single column.
fn slabs() -> MeshMap {
    let ops = ["conv", "relu", "relayout", "add"];
    let mut x = 0;
    let kernels = (0..20u32).map(|i| {
        let width = [1, 2, 1, 3, 1][i as usize % 5];
        x += width;
        kernel(
            &format!("layer{}.{}.conv{}", i / 6 + 1, i / 3 % 2, i % 3 + 1),
            ops[i as usize % 4],
            x - width,
            0,
            width,
            32,
        )
    });
    let kernels = kernels.collect();
    map("small", 32, 32, kernels)
}

/// A wafer with one large kernel, one small one, and one that no character shows.
fn wafer() -> MeshMap {
    let kernels = vec![
        kernel("matmul", "matmul", 0, 0, 700, 994),
        kernel("softmax", "softmax", 700, 100, 50, 300),
        kernel("loss", "reduce", 0, 990, 2, 2),
        kernel("tiny", "add", 740, 990, 2, 2),
    ];
    map("wafer", 750, 994, kernels)
}

#[test]
fn letters() {
    insta::assert_snapshot!("ascii_mlp", ascii(&map("small", 32, 32, mlp())));
    insta::assert_snapshot!("ascii_slabs", ascii(&slabs()));
}

#[test]
fn letters_to_scale() {
    let text = ascii(&wafer());
    assert!(text.lines().all(|l| l.chars().count() <= 90));
    insta::assert_snapshot!("ascii_wafer", text);
}

#[test]
fn every_letter_is_its_kernels_pes() {
    let map = map("small", 32, 32, mlp());
    let text = ascii(&map);
    for (k, sign) in map.kernels.iter().zip('A'..) {
        let count: usize = text
            .lines()
            .filter(|l| l.ends_with('|'))
            .map(|l| l.matches(sign).count())
            .sum();
        assert_eq!(count as u64, k.rect.area(), "{}", k.name);
    }
}

#[test]
fn pictures() {
    insta::assert_snapshot!("svg_mlp", svg(&map("small", 32, 32, mlp())));
    insta::assert_snapshot!("svg_slabs", svg(&slabs()));
    insta::assert_snapshot!("svg_wafer", svg(&wafer()));
}

#[test]
fn names_are_escaped_and_an_empty_mesh_is_drawn() {
    let text = svg(&map(
        "a<b>&\"c\"\u{1}",
        4,
        4,
        vec![kernel("<&>", "conv", 0, 0, 4, 4)],
    ));
    assert!(
        text.contains("mlp on a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}") && text.contains("&lt;&amp;&gt;"),
        "{text}"
    );
    assert!(!text.contains("<&>"));
    let empty = map("none", 3, 1, vec![]);
    assert!(svg(&empty).ends_with("</svg>\n"));
    assert!(ascii(&empty).contains("|...|"));
    if let Ok(folder) = std::env::var("MESHLOOM_PICTURES") {
        // to look at them
        let all = [
            ("mlp", map("small", 32, 32, mlp())),
            ("slabs", slabs()),
            ("wafer", wafer()),
            ("empty", empty),
        ];
        for (name, map) in all {
            std::fs::write(format!("{folder}/{name}.svg"), svg(&map)).unwrap();
        }
    }
}
