//! Who may know whom. The manifests and sources are read as files, so that a convenient dependency cannot creep in: models and the
//! simulator stand alone, the compiler rests on both, traces on the simulator, and the compiler cannot run what it compiles.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The meshloom crates in all dependency tables of a manifest, those of targets, builds and tests included.
fn own_dependencies(manifest: &Path) -> BTreeSet<String> {
    fn walk(table: &toml::Table, found: &mut BTreeSet<String>) {
        for (key, value) in table {
            let Some(inner) = value.as_table() else { continue };
            if key.ends_with("dependencies") {
                for (name, what) in inner {
                    // a renamed dependency says its package's name inside, a local one its path
                    let real = what.get("package").and_then(|p| p.as_str()).unwrap_or(name);
                    if real.starts_with("meshloom") || what.get("path").is_some() {
                        found.insert(real.to_string());
                    }
                }
            } else {
                walk(inner, found);
            }
        }
    }
    let text = read(manifest);
    let table: toml::Table = text
        .parse()
        .unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
    let mut found = BTreeSet::new();
    walk(&table, &mut found);
    found
}

#[test]
fn crates_know_only_those_they_may() {
    let allowed = [
        ("models", &[][..]),
        ("simulator", &[]),
        ("compiler", &["meshloom-models", "meshloom-simulator"]),
        ("traces", &["meshloom-simulator"]),
    ];
    let mut there: Vec<String> = std::fs::read_dir(root().join("crates"))
        .expect("the crates' folder")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    there.sort();
    assert_eq!(
        there,
        ["compiler", "models", "simulator", "traces"],
        "a crate that this test does not know"
    );
    for (name, allowed) in allowed {
        let found = own_dependencies(&root().join("crates").join(name).join("Cargo.toml"));
        let allowed: BTreeSet<String> = allowed.iter().map(|s| s.to_string()).collect();
        assert_eq!(found, allowed, "crates/{name}");
    }
}

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
}

/// Whether a source names the function that runs a program, by its path or by an import.
fn names_run(text: &str) -> bool {
    // comments, and spaces within paths, do not count
    let code: String = text
        .lines()
        .map(|l| l.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join(" ");
    let words: String = code
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" ::", "::")
        .replace(":: ", "::");
    let word_ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let direct = words.match_indices("engine::").any(|(i, m)| {
        let rest = &words[i + m.len()..];
        let after = |rest: &str, name: &str| rest.strip_prefix(name).is_some_and(word_ends);
        let listed = rest
            .strip_prefix('{')
            .and_then(|r| r.split('}').next())
            .is_some_and(|list| {
                list.split(',')
                    .map(str::trim)
                    .any(|n| after(n, "run") || n == "*" || after(n, "self"))
            });
        after(rest, "run") || after(rest, "reference") || rest.starts_with('*') || listed
    });
    // the module itself, imported whole or under another name, would allow the rest
    let module = words.match_indices("engine").any(|(i, m)| {
        let (before, rest) = (&words[..i], &words[i + m.len()..]);
        let named = before.ends_with("simulator::")
            || before.ends_with("simulator::{")
            || (before.ends_with(", ") && words.contains("simulator::{"));
        named && !rest.starts_with("::") && word_ends(rest)
    });
    direct || module
}

#[test]
fn the_compiler_never_runs_a_program() {
    let mut all = Vec::new();
    sources(&root().join("crates/compiler/src"), &mut all);
    assert!(all.len() > 10, "the compiler's sources");
    // its own tests may: they are no part of it
    all.retain(|p| !p.ends_with("kernels/tests.rs"));
    let guilty: Vec<_> = all.iter().filter(|p| names_run(&read(p))).collect();
    assert!(guilty.is_empty(), "these name the engine's `run`: {guilty:?}");
}

#[test]
fn the_search_finds_what_it_looks_for() {
    for text in [
        "let o = meshloom_simulator::engine::run(&p, &m, &o)?;",
        "use meshloom_simulator::engine::{Outcome, run};",
        "use meshloom_simulator::engine::*;",
        "use meshloom_simulator::engine;",
        "use meshloom_simulator::engine as e;",
        "use meshloom_simulator::{Machine, engine};",
        "use meshloom_simulator::engine::{self, Probe};",
        "use meshloom_simulator::\n    engine::\n    run;",
    ] {
        assert!(names_run(text), "{text}");
    }
    for text in [
        "use meshloom_simulator::engine::{Landed, Probe};",
        "// engine::run is for others",
        "use meshloom_simulator::engine::Probe; fn run() {}",
        "let x = engine::runner;",
    ] {
        assert!(!names_run(text), "{text}");
    }
}
