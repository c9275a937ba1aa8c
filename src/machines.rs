//! Machine descriptions: those that come with the tool, by name, and files.

use crate::error::Error;
use meshloom_simulator::Machine;

/// The descriptions in `machines/`.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("small", include_str!("../machines/small.toml")),
    ("wse2", include_str!("../machines/wse2.toml")),
    ("wse3", include_str!("../machines/wse3.toml")),
];

/// The text of a description, by name or path, with what to call it in messages.
pub fn text(name: &str) -> Result<(String, String), Error> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
        return Ok((name.into(), text.to_string()));
    }
    if !name.ends_with(".toml") && !std::path::Path::new(name).exists() {
        let names: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
        return Err(Error::Input(format!(
            "--machine {name}: no such machine; there are {}, or give the path of a .toml file",
            names.join(", ")
        )));
    }
    match std::fs::read_to_string(name) {
        Ok(text) => Ok((name.into(), text)),
        Err(e) => Err(Error::Input(format!(
            "--machine {name}: can't read the file: {e}"
        ))),
    }
}

/// A description with the `--set` assignments applied.
pub fn load(name: &str, sets: &[String]) -> Result<Machine, Error> {
    let (file, text) = text(name)?;
    Machine::parse(&file, &text, sets).map_err(Error::input)
}
