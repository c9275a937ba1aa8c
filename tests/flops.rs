//! `meshloom flops`: its table, its JSON, and what it refuses.

mod command;

use command::{meshloom, settled};
use serde_json::Value;
use std::collections::BTreeSet;

fn json(line: &str) -> Value {
    serde_json::from_str(&meshloom(&format!("flops {line} --json")).ok()).expect("JSON")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key} in {value}"))
}

#[test]
fn tables() {
    let mut text = String::new();
    for line in [
        "gpt3-xl --sparsity 0.75 --tokens 26e9",
        "gpt2-small --seq 2048",
        "resnet18:stem=imagenet --sparsity 0.5 --transform wide",
        "gpt2-small --sparsity 0.75 --transform doped --sequences 1000",
        "mobilenetv2-cifar --sparsity 0.5 --transform factorized",
        "mlp --sparsity 0.9 --transform parallel",
        "tests/data/digits-cnn/model.onnx --mask 2:4 --layers",
        "fabric:banded=true --sparsity 0.5 --mask skewed:0.3",
        "gpt:layers=1 --sparsity 0.5 --mask-all --layers --convention spdf",
    ] {
        text += &format!(
            "$ meshloom flops {line}\n{}\n",
            meshloom(&format!("flops {line}")).ok()
        );
    }
    settled().bind(|| insta::assert_snapshot!(text));
}

#[test]
fn json_has_the_keys_that_are_documented() {
    let keys = |value: &Value| -> BTreeSet<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let plain = [
        "training_flops_per_sequence",
        "inference_flops_per_sequence",
        "parameters",
        "nonzeros",
        "convention",
    ];
    assert_eq!(
        keys(&json("mlp")),
        plain.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>()
    );
    let all = json("gpt3-xl --sparsity 0.75 --seq 2048 --tokens 26e9");
    let expected = plain.iter().chain(&["sequences", "training_flops_total"]);
    assert_eq!(
        keys(&all),
        expected.map(|s| s.to_string()).collect::<BTreeSet<_>>()
    );
    assert_eq!(all["convention"], "spdf");
    assert_eq!(number(&all, "sequences"), 26e9 / 2048.0);
    assert_eq!(
        number(&all, "training_flops_total"),
        number(&all, "training_flops_per_sequence") * 26e9 / 2048.0
    );
    // the published 94.76 exaFLOPs
    assert!((number(&all, "training_flops_total") / 94.76e18 - 1.0).abs() < 0.01);
    for (model, convention) in [
        ("gpt2-small", "spdf"),
        ("gpt2-small --convention engine", "engine"),
        ("mediswift-xl", "engine"),
        ("resnet50", "engine"),
        ("resnet50 --convention sparse-ift", "sparse-ift"),
    ] {
        assert_eq!(json(model)["convention"], convention, "{model}");
    }
}

#[test]
fn sparsity_lowers_what_it_masks_and_nothing_else() {
    let (dense, half) = (json("gpt2-small"), json("gpt2-small --sparsity 0.5"));
    assert_eq!(number(&dense, "parameters"), number(&half, "parameters"));
    let masked = 12.0 * 12.0 * 768.0 * 768.0 / 2.0;
    assert_eq!(number(&dense, "nonzeros") - number(&half, "nonzeros"), masked);
    let saved = number(&dense, "training_flops_per_sequence") - number(&half, "training_flops_per_sequence");
    assert_eq!(saved, 6.0 * 1024.0 * masked);
    // a transformed model has the dense layers' nonzeros
    let doped = json("gpt2-small --sparsity 0.5 --transform doped");
    assert_eq!(number(&doped, "nonzeros"), number(&dense, "nonzeros"));
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let text: String = [
        "gpt4",
        "gpt2-small --sparsity 1.5",
        "gpt2-small --sparsity 0.5,0.75",
        "gpt2-small --seq 0",
        "gpt2-small:seq=128 --seq 64",
        "resnet18 --seq 64",
        "resnet18 --tokens 1e9",
        "gpt2-small --tokens 0",
        "gpt2-small --tokens nan",
        "gpt2-small --sequences -5",
        "gpt2-small --tokens 1e9 --sequences 10",
        "gpt2-small --transform wide",
        "gpt2-small --transform thin --sparsity 0.5",
        "gpt2-small --transform doped --sparsity 0",
        "gpt2-small --transform doped --sparsity 0.5,0.75",
        "gpt2-small --transform doped --sparsity 0.5 --mask 2:4",
        "fabric:channels=2 --transform wide --sparsity 0.3",
        "gpt2-small --convention cs2",
        "gpt2-small --json --layers",
        "tests/data/digits-cnn/model.onnx --seq 8",
        "missing.onnx",
    ]
    .iter()
    .map(|l| meshloom(&format!("flops {l}")).refused())
    .collect();
    settled().bind(|| insta::assert_snapshot!(text));
}
