//! The command as its user has it: the binary, run in the repository's folder.
#![allow(dead_code)] // each test uses its part

use std::path::PathBuf;
use std::process::Command;

/// How a run of the command ended.
pub struct Ended {
    /// The command line after `meshloom`.
    pub line: String,
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Standard output of a run that must have gone well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "meshloom {}\n{}", self.line, self.err);
        self.out
    }

    /// Command line, exit code and message of a run that must have been refused for what its user gave.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_eq!(
            self.code,
            Some(2),
            "meshloom {}\n{}\n{}",
            self.line,
            self.out,
            self.err
        );
        assert_eq!(self.out, "", "meshloom {}", self.line);
        format!("$ meshloom {}\n{}\n", self.line, self.err)
    }
}

/// Runs the command with the words of `line`.
pub fn meshloom(line: &str) -> Ended {
    let out = Command::new(env!("CARGO_BIN_EXE_meshloom"))
        .args(line.split_whitespace())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("COLUMNS", "100")
        .output()
        .unwrap_or_else(|e| panic!("meshloom {line}: {e}"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|e| panic!("meshloom {line}: {e}"));
    Ended {
        line: line.into(),
        code: out.status.code(),
        out: text(out.stdout),
        err: text(out.stderr),
    }
}

/// An empty folder of a test's own.
pub fn folder(test: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// Snapshot settings in which folders and times are always the same.
pub fn settled() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(&regex_escape(env!("CARGO_TARGET_TMPDIR")), "[tmp]");
    settings.add_filter(r"in [\d.]+ (ns|us|ms|s|min) with", "in [time] with");
    settings.add_filter(r"[\d.]+ [kMGT]? ?PE-cycles/s", "[speed]");
    settings.add_filter(
        r#""(wall_seconds|pe_cycles_per_second)": [\d.e+-]+"#,
        r#""$1": "[time]""#,
    );
    settings.add_filter(
        r#""peak_memory_bytes": (\d+|null)"#,
        r#""peak_memory_bytes": "[memory]""#,
    );
    // how the engine went about it may change; that the shares are some is checked with the report
    settings.add_filter(
        r#""((cycles|hops)_(single|leap|ahead|flow))": [\d.e+-]+"#,
        r#""$1": "[share]""#,
    );
    // the evaluator's products are fused, or not, by what the processor has: that changes the last digits of what is compared with them
    settings.add_filter(
        r#""(max_abs_error|max_rel_error)": (\d\.\d{9})\d*(e-\d+)"#,
        r#""$1": $2...$3"#,
    );
    settings
}

fn regex_escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_alphanumeric() || c == '/' {
                vec![c]
            } else {
                vec!['\\', c]
            }
        })
        .collect()
}
