//! The machine description: what a TOML file in `machines/` says about the mesh, the processing elements (PEs),
//! their routers and the wafer's edge. Every rule in `docs/machine.md` that mentions a parameter names a field here.

use serde::{Deserialize, Serialize};

/// A 2D mesh of PEs. Times are in cycles of `clock_hz` unless a field says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Name shown in reports.
    pub name: String,
    /// Cycles per second.
    pub clock_hz: f64,
    /// Size of the mesh.
    pub mesh: Mesh,
    /// The processing element.
    pub pe: Pe,
    /// The router beside each PE.
    pub router: Router,
    /// A link between neighbours, and the ramp between a router and its PE.
    pub link: Link,
    /// Channels between the border routers and the outside.
    pub edge: Edge,
    /// Zero skipping (rule M14).
    pub skip: Skip,
    /// Energy per event; absent means that no energy is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
}

/// Columns and rows of PEs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// One processing element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pe {
    /// SRAM bytes, for data and code together.
    pub sram_bytes: u32,
    /// SRAM bytes that one instruction takes.
    pub instruction_bytes: u32,
    /// Threads: the main thread and `threads - 1` microthreads.
    pub threads: u32,
    /// Asynchronous moves that may wait in one microthread's queue.
    pub move_queue: u32,
    /// Whether asynchronous moves win the step slot over the main thread (rule M10).
    pub moves_first: bool,
    /// Depth of each colour's queue from the ramp into the core, in wavelets.
    pub input_queue_depth: u32,
    /// Depth of each colour's queue from the core to the ramp, in wavelets.
    pub output_queue_depth: u32,
    /// SRAM banks (rule M9).
    pub sram: Sram,
    /// Elements a step handles, by operation and type (rule M8).
    pub lanes: Lanes,
    /// Issue, launch and scalar costs in cycles (rules M10 to M12).
    pub cost: Cost,
    /// Cycles an element of the special functions (rule M19).
    pub special: Special,
}

/// SRAM organisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sram {
    /// Number of banks; bank(address) = (address / bank_bytes) mod banks.
    pub banks: u32,
    /// Bytes of one bank's row.
    pub bank_bytes: u32,
    /// Two memory sources conflict when their banks agree modulo this number.
    pub conflict_modulus: u32,
    /// Bits of a wide (paired) access; a plain access has 32.
    pub port_bits: u32,
}

/// Elements one step can handle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lanes {
    /// Multiply-accumulate, f32 operands and accumulator.
    pub f32: u32,
    /// Any other f32 operation (move, add, multiply, max, min).
    pub f32_simple: u32,
    /// Multiply-accumulate, an f16 operand, f32 accumulator.
    pub f16: u32,
    /// Multiply-accumulate, f16 operands and accumulator.
    pub f16_accumulate: u32,
    /// Any other operation on f16 operands.
    pub f16_simple: u32,
}

/// Costs in cycles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// From a vector instruction's start to its first step; holds the thread, not the slot.
    pub issue: u32,
    /// From a task's choice to its first instruction; holds the main thread, not the slot.
    pub task_launch: u32,
    /// Scalar load or store.
    pub load: u32,
    /// Scalar set, add, subtract; a descriptor's base moved; a task activated; an asynchronous move handed over.
    pub add: u32,
    /// Scalar multiply.
    pub multiply: u32,
    /// Compare and branch, or jump.
    pub branch: u32,
    /// Setting a whole descriptor.
    pub descriptor: u32,
}

/// Step slots an element of the special functions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Special {
    /// Exponential.
    pub exp: u32,
    /// Division.
    pub divide: u32,
    /// Reciprocal square root.
    pub rsqrt: u32,
    /// Hyperbolic tangent.
    pub tanh: u32,
}

/// The router beside each PE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Routable colours.
    pub colors: u32,
    /// Depth of the queue of each colour at each input port, in wavelets (the link's own latency is added, rule M3).
    pub queue_depth: u32,
    /// Latency of a link between neighbouring routers.
    pub hop_cycles: u32,
    /// Latency of the ramp, each way.
    pub ramp_cycles: u32,
    /// Switch positions a colour may have.
    pub switch_positions: u32,
    /// Wavelet filters a router has.
    pub filters: u32,
}

/// Links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Payload bits of a wavelet.
    pub bits: u32,
}

/// The wafer's edge (rule M15).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Bandwidth of all channels together, bits per second, each way.
    pub bits_per_second: f64,
    /// Latency of a channel.
    pub latency_cycles: u32,
}

/// Which zeros are skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    /// Source filter: zero weights are neither stored nor sent.
    pub zero_weights: bool,
    /// Operand filter: an element of a weight stream whose value is zero is dropped before its multiplication.
    pub zero_operands: bool,
}

/// Energy per event, in picojoules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Energy {
    /// One multiply-add.
    pub multiply_add_pj: f64,
    /// Any other arithmetic operation.
    pub operation_pj: f64,
    /// One wavelet over one link.
    pub hop_pj: f64,
    /// One wavelet over an edge channel.
    pub edge_pj: f64,
    /// One PE for one cycle, whatever it does.
    pub pe_cycle_pj: f64,
}

/// What is wrong with a machine description. `file` is its path or name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MachineError {
    /// The text is not TOML of the expected form.
    #[error("{file}: not a machine description: {message}")]
    Syntax {
        /// Path or name of the description.
        file: String,
        /// The TOML reader's message, with line and column.
        message: String,
    },
    /// A field has a value that no machine can have.
    #[error("{file}: field `{field}` = {value}: {expected}")]
    Impossible {
        /// Path or name of the description.
        file: String,
        /// Dotted field name.
        field: String,
        /// The value found.
        value: String,
        /// What is possible.
        expected: String,
    },
    /// `--set` names a field that does not exist.
    #[error("--set {assignment}: the machine description has no field `{field}`; near it: {near}")]
    NoField {
        /// The whole assignment.
        assignment: String,
        /// The dotted name.
        field: String,
        /// Fields at the deepest level that exists.
        near: String,
    },
    /// `--set` is not FIELD=VALUE, or the value has the wrong type.
    #[error("--set {assignment}: {message}")]
    BadSet {
        /// The whole assignment.
        assignment: String,
        /// What was expected.
        message: String,
    },
}

/// West or east border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// Column 0.
    West,
    /// Column `width - 1`.
    East,
}

/// One edge channel: a port of a border router, used in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// Border.
    pub side: Side,
    /// Row of the border router.
    pub row: u32,
    /// Cycles between two wavelets.
    pub gap: u32,
}

impl Machine {
    /// Reads a description; `file` is only for messages; `sets` are `FIELD=VALUE` assignments that replace fields.
    pub fn parse(file: &str, text: &str, sets: &[String]) -> Result<Machine, MachineError> {
        let syntax = |e: toml::de::Error| MachineError::Syntax {
            file: file.into(),
            message: plain(e.to_string().trim_end()).replace('\n', "\n  "),
        };
        // the file alone first, so that its faults are not blamed on an assignment
        let mut machine: Machine = toml::from_str(text).map_err(syntax)?;
        if !sets.is_empty() {
            let mut value: toml::Table = toml::from_str(text).map_err(syntax)?;
            for set in sets {
                apply(&mut value, set)?;
            }
            let bad = |e: toml::de::Error| MachineError::BadSet {
                assignment: sets.join(" "),
                message: plain(e.message()),
            };
            machine = value.try_into().map_err(bad)?;
        }
        machine.check(file)?;
        Ok(machine)
    }

    /// Refuses values that no machine can have.
    pub fn check(&self, file: &str) -> Result<(), MachineError> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(MachineError::Impossible {
                file: file.into(),
                field: field.into(),
                value,
                expected: expected.into(),
            })
        };
        let positive: [(&str, u32, u32); 31] = [
            ("mesh.width", self.mesh.width, 4096),
            ("mesh.height", self.mesh.height, 4096),
            ("pe.sram_bytes", self.pe.sram_bytes, 1 << 30),
            ("pe.instruction_bytes", self.pe.instruction_bytes, 256),
            ("pe.threads", self.pe.threads, 64),
            ("pe.move_queue", self.pe.move_queue, 64),
            ("pe.input_queue_depth", self.pe.input_queue_depth, 65536),
            ("pe.output_queue_depth", self.pe.output_queue_depth, 65536),
            ("pe.sram.banks", self.pe.sram.banks, 1024),
            ("pe.sram.bank_bytes", self.pe.sram.bank_bytes, 1024),
            ("pe.sram.conflict_modulus", self.pe.sram.conflict_modulus, 1024),
            ("pe.lanes.f32", self.pe.lanes.f32, 64),
            ("pe.lanes.f32_simple", self.pe.lanes.f32_simple, 64),
            ("pe.lanes.f16", self.pe.lanes.f16, 64),
            ("pe.lanes.f16_accumulate", self.pe.lanes.f16_accumulate, 64),
            ("pe.lanes.f16_simple", self.pe.lanes.f16_simple, 64),
            ("pe.cost.load", self.pe.cost.load, 10_000),
            ("pe.cost.add", self.pe.cost.add, 10_000),
            ("pe.cost.multiply", self.pe.cost.multiply, 10_000),
            ("pe.cost.branch", self.pe.cost.branch, 10_000),
            ("pe.cost.descriptor", self.pe.cost.descriptor, 10_000),
            ("pe.special.exp", self.pe.special.exp, 10_000),
            ("pe.special.divide", self.pe.special.divide, 10_000),
            ("pe.special.rsqrt", self.pe.special.rsqrt, 10_000),
            ("pe.special.tanh", self.pe.special.tanh, 10_000),
            ("router.colors", self.router.colors, 255),
            ("router.queue_depth", self.router.queue_depth, 65536),
            ("router.hop_cycles", self.router.hop_cycles, 10_000),
            ("router.ramp_cycles", self.router.ramp_cycles, 10_000),
            ("router.switch_positions", self.router.switch_positions, 64),
            ("edge.latency_cycles", self.edge.latency_cycles, 1_000_000),
        ];
        for (field, value, most) in positive {
            if value == 0 || value > most {
                return bad(field, value.to_string(), &format!("expected 1 to {most}"));
            }
        }
        for (field, value) in [
            ("pe.cost.issue", self.pe.cost.issue),
            ("pe.cost.task_launch", self.pe.cost.task_launch),
        ] {
            if value > 10_000 {
                return bad(field, value.to_string(), "expected 0 to 10000");
            }
        }
        if ![32, 64].contains(&self.link.bits) {
            return bad("link.bits", self.link.bits.to_string(), "expected 32 or 64");
        }
        if ![64, 128].contains(&self.pe.sram.port_bits) {
            return bad(
                "pe.sram.port_bits",
                self.pe.sram.port_bits.to_string(),
                "expected 64 or 128",
            );
        }
        for (field, value) in [
            ("clock_hz", self.clock_hz),
            ("edge.bits_per_second", self.edge.bits_per_second),
        ] {
            if !(1.0..=1e18).contains(&value) {
                return bad(
                    field,
                    value.to_string(),
                    "expected a positive number of at most 1e18",
                );
            }
        }
        if let Some(e) = &self.energy {
            let all = [
                ("energy.multiply_add_pj", e.multiply_add_pj),
                ("energy.operation_pj", e.operation_pj),
                ("energy.hop_pj", e.hop_pj),
                ("energy.edge_pj", e.edge_pj),
                ("energy.pe_cycle_pj", e.pe_cycle_pj),
            ];
            for (field, value) in all {
                if !(value.is_finite() && value >= 0.0) {
                    return bad(field, value.to_string(), "expected a number of at least 0");
                }
            }
        }
        Ok(())
    }

    /// The edge channels by rule M15, sorted by side and row.
    pub fn channels(&self) -> Vec<Channel> {
        let per_channel = self.link.bits as f64 * self.clock_hz;
        let wanted = (self.edge.bits_per_second / per_channel).floor();
        if wanted < 1.0 {
            let gap = (per_channel / self.edge.bits_per_second)
                .ceil()
                .min(u32::MAX as f64) as u32;
            return vec![Channel {
                side: Side::West,
                row: 0,
                gap,
            }];
        }
        let h = self.mesh.height;
        let wanted = wanted.min(2.0 * h as f64) as u32;
        let mut stride = 16u32;
        while stride > 1 && 2 * h.div_ceil(stride) < wanted {
            stride /= 2;
        }
        let ports = h.div_ceil(stride);
        let mut all = Vec::new();
        for (side, n) in [(Side::West, wanted.div_ceil(2)), (Side::East, wanted / 2)] {
            for i in 0..n {
                all.push(Channel {
                    side,
                    row: (i as u64 * ports as u64 / n as u64) as u32 * stride,
                    gap: 1,
                });
            }
        }
        all
    }

    /// All field names, dotted, in the file's order, with their values as TOML text.
    pub fn fields(&self) -> Vec<(String, String)> {
        fn walk(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
            match value {
                toml::Value::Table(t) => {
                    for (k, v) in t {
                        walk(
                            &if prefix.is_empty() {
                                k.clone()
                            } else {
                                format!("{prefix}.{k}")
                            },
                            v,
                            out,
                        );
                    }
                }
                v => out.push((prefix.to_string(), v.to_string())),
            }
        }
        let mut out = Vec::new();
        if let Ok(v) = toml::Value::try_from(self) {
            walk("", &v, &mut out);
        }
        out
    }
}

/// A message of the TOML reader without names of Rust types.
fn plain(message: &str) -> String {
    message
        .replace("expected u32", "expected a whole number, at least 0")
        .replace("expected f64", "expected a number")
}

/// Replaces one field of the TOML tree by `FIELD=VALUE`, keeping the field's type.
fn apply(root: &mut toml::Table, set: &str) -> Result<(), MachineError> {
    let bad = |message: String| MachineError::BadSet {
        assignment: set.into(),
        message,
    };
    let (field, text) = set
        .split_once('=')
        .ok_or_else(|| bad("expected FIELD=VALUE, for example link.bits=64".into()))?;
    let (field, text) = (field.trim(), text.trim());
    let parts: Vec<&str> = field.split('.').collect();
    let mut table = root;
    for (i, part) in parts.iter().enumerate() {
        let near = || table_keys(table, &parts[..i].join("."));
        if i + 1 < parts.len() {
            if !table.get(*part).is_some_and(|v| v.is_table()) {
                return Err(MachineError::NoField {
                    assignment: set.into(),
                    field: field.into(),
                    near: near(),
                });
            }
            table = table
                .get_mut(*part)
                .and_then(|v| v.as_table_mut())
                .expect("just checked");
            continue;
        }
        let Some(old) = table.get(*part).filter(|v| !v.is_table()) else {
            return Err(MachineError::NoField {
                assignment: set.into(),
                field: field.into(),
                near: near(),
            });
        };
        let number = |t: &str| t.parse::<f64>().ok().filter(|n| n.is_finite());
        let new = match old {
            toml::Value::Integer(_) => {
                let whole = text.parse::<i64>().ok().or_else(|| {
                    number(text)
                        .filter(|n| n.fract() == 0.0 && n.abs() < 1e15)
                        .map(|n| n as i64)
                });
                match (whole, number(text)) {
                    (Some(n), _) => toml::Value::Integer(n),
                    // clock and bandwidth may be written as whole numbers in the file
                    (None, Some(x)) => toml::Value::Float(x),
                    _ => return Err(bad(format!("`{field}` is a number, `{text}` is not"))),
                }
            }
            toml::Value::Float(_) => toml::Value::Float(
                number(text).ok_or_else(|| bad(format!("`{field}` is a number, `{text}` is not")))?,
            ),
            toml::Value::Boolean(_) => toml::Value::Boolean(
                text.parse()
                    .map_err(|_| bad(format!("`{field}` is true or false, not `{text}`")))?,
            ),
            _ => toml::Value::String(text.into()),
        };
        table.insert(part.to_string(), new);
    }
    Ok(())
}

fn table_keys(table: &toml::Table, prefix: &str) -> String {
    let dot = if prefix.is_empty() { "" } else { "." };
    table
        .keys()
        .map(|k| format!("{prefix}{dot}{k}"))
        .collect::<Vec<_>>()
        .join(", ")
}
