//! Properties: damaged files end in an error or a graph, masks keep exact counts, batches change shapes and nothing else.

mod common;

use meshloom_models::onnx::import_bytes;
use meshloom_models::{
    Graph, ImportOptions, Mask, builders, builtin, evaluate, flops, raise, seeded_inputs, sparsify, sparsity,
};
use proptest::prelude::*;
use std::path::Path;

fn files() -> Vec<Vec<u8>> {
    common::cases()
        .iter()
        .map(|c| std::fs::read(common::data(&format!("{c}.onnx"))).expect(c))
        .collect()
}

fn try_import(bytes: Vec<u8>, batch: Option<usize>) -> Option<Graph> {
    let graph = import_bytes(bytes, Path::new("damaged.onnx"), &ImportOptions { batch }).ok()?;
    graph.verify().expect("what is imported is well-formed");
    let _ = (graph.to_text(), flops::total(&graph));
    Some(graph)
}

#[test]
fn files_cut_anywhere_are_refused_or_imported() {
    for bytes in files() {
        for n in 0..bytes.len() {
            try_import(bytes[..n].to_vec(), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn damaged_files_never_panic(
        file in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..8),
        batch in prop::option::of(0usize..5),
    ) {
        let mut bytes = file.get(&files()).clone();
        for (at, value, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                _ => bytes.insert(at, value),
            }
        }
        try_import(bytes, batch);
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        try_import(bytes, None);
    }

    #[test]
    fn masks_keep_exact_counts(
        layers in prop::collection::vec(1usize..20, 2..5),
        fraction in 0.0..1.0f64,
        seed in any::<u64>(),
        magnitude in any::<bool>(),
    ) {
        let graph = builders::mlp(&layers, 1, 3).unwrap();
        let mask = if magnitude { Mask::Magnitude } else { Mask::Uniform };
        let sparse = sparsify(&graph, fraction, mask, seed).unwrap();
        for t in sparsity::weights(&graph) {
            let (all, kept) = (graph.tensor(t).data.clone().unwrap(), sparse.tensor(t).data.clone().unwrap());
            let want = (all.len() as f64 * (1.0 - fraction)).round() as usize;
            prop_assert_eq!(kept.iter().filter(|v| **v != 0.0).count(), want);
            prop_assert!(kept.iter().zip(all.iter()).all(|(k, a)| *k == 0.0 || k == a));
        }
        let counts = flops::total(&sparse);
        prop_assert_eq!(counts.mac_dense, flops::total(&graph).mac_dense);
        prop_assert!(counts.mac_theoretical <= counts.mac_dense);
        let biases: usize = layers[1..].iter().sum();
        prop_assert_eq!(counts.mac_theoretical + biases as u64, sparse.nonzeros());
        prop_assert_eq!(sparsify(&sparse, 0.5, Mask::Existing, seed).unwrap().nonzeros(), sparse.nonzeros());
    }

    #[test]
    fn batches_scale_work_and_come_back(file in any::<prop::sample::Index>(), batch in 1usize..9) {
        let bytes = file.get(&files()).clone();
        let Some(one) = try_import(bytes, Some(1)) else { return Ok(()) };
        let Ok(many) = one.with_batch(batch) else { return Ok(()) };
        many.verify().unwrap();
        prop_assert_eq!(many.parameters(), one.parameters());
        let (a, b) = (flops::total(&one), flops::total(&many));
        prop_assert_eq!(b.mac_dense, a.mac_dense * batch as u64);
        prop_assert_eq!(b.mac_theoretical, a.mac_theoretical * batch as u64);
        prop_assert_eq!(b.other, a.other * batch as u64);
        let back = many.with_batch(1).unwrap();
        prop_assert_eq!(back.tensors(), one.tensors());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn models_of_any_parameters_are_sound(
        family in 0..4usize,
        sizes in prop::collection::vec(1usize..7, 6),
        flags in prop::collection::vec(any::<bool>(), 2),
        seed in any::<u64>(),
    ) {
        let [a, b, c, d, e, f] = sizes[..] else { return Ok(()) };
        let [g, h] = flags[..] else { return Ok(()) };
        let spec = match family {
            0 => format!("gpt:layers={a},width={},heads={b},seq={c},vocab={d},mlp={e},tied={g}", b * f),
            1 => format!("resnet{}:width={a},classes={b},size={}", [18, 34, 50][c % 3], 8 * d),
            2 => format!(
                "fabric:layers={},scales={},channels={c},classes={d},in_channels={e},banded={g},readout={}",
                a + 1, b.min(4), if h { "finest" } else { "coarsest" },
            ),
            _ => format!("mobilenetv2:width=0.{a},size={},classes={b}", 32 + c),
        };
        let built = builtin(&spec, 1, seed).unwrap();
        built.graph.verify().unwrap();
        prop_assert_eq!(&builtin(&built.resolved, 1, seed).unwrap().resolved, &built.resolved);
        let counts = flops::total(&built.graph);
        prop_assert!(counts.mac_theoretical <= counts.mac_dense && counts.mac_dense <= counts.mac_published);
        prop_assert!(counts.mac_act <= counts.mac_act_published);
        let inputs = seeded_inputs(&built.graph, seed, 1).into_iter();
        let inputs = inputs.map(|(name, v)| (name, v.into_iter().map(f64::from).collect())).collect();
        let values = evaluate(&built.graph, &inputs).unwrap();
        let y = values[built.graph.outputs()[0].0 as usize].as_ref().unwrap();
        prop_assert!(y.iter().all(|v| v.is_finite() && *v != 0.0), "{spec}");
        // raising what is built changes nothing but the ids
        prop_assert_eq!(raise(&built.graph).to_text(), built.graph.to_text());
    }
}
