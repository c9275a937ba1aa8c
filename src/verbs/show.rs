//! `meshloom show`: one machine, model or kernel.

use super::print;
use meshloom::error::Error;
use meshloom::{machines, models};
use meshloom_compiler::{kernels, passes};

/// Arguments of `show`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A name of `meshloom list`, a machine's .toml or an .onnx file.
    name: String,
    /// Replace a field of the machine that is shown.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    let name = a.name.as_str();
    if machines::BUILT_IN.iter().any(|(n, _)| *n == name) || name.ends_with(".toml") {
        if a.set.is_empty() {
            let (_, text) = machines::text(name)
                .map_err(|e| Error::Input(e.to_string().replacen("--machine", "show", 1)))?;
            return print(&text);
        }
        let machine = machines::load(name, &a.set)?;
        return print(
            &machine
                .fields()
                .iter()
                .map(|(f, v)| format!("{f} = {v}\n"))
                .collect::<String>(),
        );
    }
    if let Some((n, about)) = kernels::list().iter().find(|(n, _)| *n == name) {
        return print(&format!("kernel {n}: {about}"));
    }
    if let Some(p) = passes::PASSES.iter().find(|p| p.name == name) {
        return print(&format!("pass {}: {}", p.name, p.about));
    }
    match models::load(name, None, 0) {
        Ok(model) => print(&format!(
            "{}  {}\n{}",
            model.name,
            model.source,
            model.graph.to_text()
        )),
        Err(_) if !name.ends_with(".onnx") && !name.contains(':') => Err(Error::Input(format!(
            "show {name}: nothing of that name; see `meshloom list machines`, `models`, `kernels`, `passes`"
        ))),
        Err(e) => Err(e),
    }
}
