//! Masks as the command's user asks for them: which weights they reach, how many stay, and what is refused.

mod command;

use command::{folder, meshloom, settled};

const DIGITS: &str = "tests/data/digits-cnn/model.onnx";

/// The weights of a compiled model's graph, each with its nonzero and all values.
fn weights(options: &str) -> String {
    let out = meshloom(&format!("compile {DIGITS} --emit graph {options}")).ok();
    let mut found = Vec::new();
    for name in ["conv1.weight", "conv2.weight", "fc.weight"] {
        let line = out.lines().find(|l| l.contains(name)).expect("the weight");
        let rest = line.split(name).nth(1).and_then(|r| r.split(['[', ']']).nth(1));
        found.push(format!("{name} {}", rest.expect("its values")));
    }
    found.join(", ")
}

#[test]
fn stem_and_head_stay_dense_unless_asked() {
    let half = "conv1.weight 72/72, conv2.weight 576/1152, fc.weight 640/640";
    assert_eq!(weights("--sparsity 0.5"), half);
    assert_eq!(weights("--sparsity 0.5 --mask magnitude"), half);
    assert_eq!(weights("--mask 2:4"), half);
    assert_eq!(weights("--mask 2:4 --sparsity 0.5"), half);
    assert_eq!(weights("--mask skewed:0.3 --sparsity 0.5"), half);
    assert_eq!(
        weights("--mask-all --sparsity 0.5"),
        "conv1.weight 36/72, conv2.weight 576/1152, fc.weight 320/640"
    );
    assert_eq!(
        weights("--sparsity-file tests/data/sparsity/digits.toml"),
        "conv1.weight 72/72, conv2.weight 576/1152, fc.weight 160/640"
    );
}

#[test]
fn every_mask_runs_and_agrees_with_the_evaluator() {
    for options in [
        "--mask 1:4",
        "--mask skewed:1.0 --sparsity 0.75",
        "--sparsity-file tests/data/sparsity/digits.toml",
    ] {
        let run = meshloom(&format!("run {DIGITS} {options}"));
        assert_eq!(run.code, Some(0), "{options}\n{}", run.err);
        let skewed = options.contains("skewed");
        assert_eq!(
            run.err.contains("mask skewed:1: coefficient of variation"),
            skewed
        );
    }
}

#[test]
fn what_cannot_be_masked_so_is_refused() {
    let tmp = folder("masks");
    let mut all: Vec<String> = [
        "--mask 2:4 --sparsity 0.6",
        "--mask 4:2",
        "--mask 0:2",
        "--mask skewed",
        "--mask skewed:-1 --sparsity 0.5",
        "--mask block",
        "--mask magnitude",
        "--mask-all --mask skewed:0.3",
        "--sparsity-file missing.toml",
        "--sparsity-file tests/data/sparsity/digits.toml --sparsity 0.5",
    ]
    .iter()
    .map(|o| format!("run {DIGITS} {o}"))
    .collect();
    for (name, text) in [
        ("empty", ""),
        ("text", "half of all"),
        ("field", "[[layers]]\nweights = '*'\ndensity = 0.5\n"),
        ("mask", "[[layers]]\nweights = '*'\nmask = '4:2'\n"),
        ("fraction", "[[layers]]\nweights = '*'\nsparsity = 1.0\n"),
        ("no-fraction", "[[layers]]\nweights = '*'\n"),
        (
            "contradiction",
            "[[layers]]\nweights = '*'\nmask = '2:4'\nsparsity = 0.75\n",
        ),
        ("no-match", "[[layers]]\nweights = 'layer1.*'\nsparsity = 0.5\n"),
        ("head", "[[layers]]\nweights = 'fc.*'\nsparsity = 0.5\n"),
        (
            "include",
            "include = ['head']\n[[layers]]\nweights = '*'\nsparsity = 0.5\n",
        ),
        (
            "unmatched",
            "include = ['*']\n[[layers]]\nweights = 'conv*'\nsparsity = 0.5\n",
        ),
        (
            "shadowed",
            "[[layers]]\nweights = '*'\nsparsity = 0.5\n[[layers]]\nweights = 'conv2.*'\nsparsity = 0.9\n",
        ),
    ] {
        let path = tmp.join(format!("{name}.toml"));
        std::fs::write(&path, text).expect("a file");
        all.push(format!("run {DIGITS} --sparsity-file {}", path.display()));
    }
    let text: String = all.iter().map(|l| meshloom(l).refused()).collect();
    settled().bind(|| insta::assert_snapshot!(text));
}
