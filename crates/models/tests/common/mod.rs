//! ONNX files for tests, written field by field: also those that no exporter would write.

#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};

/// A protobuf message in the making.
#[derive(Clone, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    pub fn new() -> Self {
        Self::default()
    }

    fn varint(&mut self, mut v: u64) {
        while v > 127 {
            self.0.push((v & 127) as u8 | 128);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    pub fn int(mut self, field: u64, v: i64) -> Self {
        self.varint(field << 3);
        self.varint(v as u64);
        self
    }

    pub fn float(mut self, field: u64, v: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn bytes(mut self, field: u64, v: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend(v);
        self
    }

    pub fn text(self, field: u64, v: &str) -> Self {
        self.bytes(field, v.as_bytes())
    }

    pub fn message(self, field: u64, v: Message) -> Self {
        self.bytes(field, &v.0)
    }

    pub fn all(mut self, field: u64, v: Vec<Message>) -> Self {
        for m in v {
            self = self.message(field, m);
        }
        self
    }
}

/// A node without attributes.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Message {
    let mut m = Message::new();
    for i in inputs {
        m = m.text(1, i);
    }
    for o in outputs {
        m = m.text(2, o);
    }
    m.text(3, name).text(4, op)
}

/// An integer attribute.
pub fn int(name: &str, v: i64) -> Message {
    Message::new().text(1, name).int(3, v).int(20, 2)
}

/// A list attribute.
pub fn ints(name: &str, v: &[i64]) -> Message {
    v.iter()
        .fold(Message::new().text(1, name), |m, v| m.int(8, *v))
        .int(20, 7)
}

/// A tensor without data.
pub fn tensor(name: &str, data_type: i64, dims: &[i64]) -> Message {
    dims.iter()
        .fold(Message::new(), |m, d| m.int(1, *d))
        .int(2, data_type)
        .text(8, name)
}

/// A float32 constant with raw data.
pub fn constant(name: &str, dims: &[i64], data: &[f32]) -> Message {
    let raw: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, 1, dims).bytes(9, &raw)
}

/// A size: a number or a name.
pub enum Size {
    Is(i64),
    Named(&'static str),
}

/// A float32 graph input.
pub fn input(name: &str, sizes: &[Size]) -> Message {
    typed_input(name, 1, sizes)
}

pub fn typed_input(name: &str, data_type: i64, sizes: &[Size]) -> Message {
    let dims = sizes.iter().map(|s| match s {
        Size::Is(v) => Message::new().int(1, *v),
        Size::Named(n) => Message::new().text(2, n),
    });
    let shape = Message::new().all(1, dims.collect());
    let tensor = Message::new().int(1, data_type).message(2, shape);
    Message::new()
        .text(1, name)
        .message(2, Message::new().message(1, tensor))
}

/// A graph's parts.
#[derive(Default)]
pub struct File {
    pub nodes: Vec<Message>,
    pub constants: Vec<Message>,
    pub inputs: Vec<Message>,
    pub outputs: Vec<&'static str>,
    pub opset: Option<i64>,
}

impl File {
    /// The file's bytes.
    pub fn bytes(self) -> Vec<u8> {
        let outputs = self.outputs.iter().map(|o| Message::new().text(1, o)).collect();
        let graph = Message::new()
            .all(1, self.nodes)
            .text(2, "test")
            .all(5, self.constants)
            .all(11, self.inputs)
            .all(12, outputs);
        let opset = Message::new().text(1, "").int(2, self.opset.unwrap_or(17));
        Message::new().int(1, 8).message(7, graph).message(8, opset).0
    }
}

/// A new empty folder of this test.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("models-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

/// A file of tests/data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The names of the cases in tests/data.
pub fn cases() -> Vec<String> {
    let files = std::fs::read_dir(data("")).expect("tests/data");
    let names = files.filter_map(|f| f.ok()?.file_name().into_string().ok());
    let mut cases: Vec<String> = names
        .filter_map(|n| n.strip_suffix(".onnx").map(String::from))
        .collect();
    cases.sort();
    cases
}

/// Little-endian float32 values of a file of tests/data.
pub fn floats(name: &str) -> Vec<f64> {
    let bytes = std::fs::read(data(name)).expect(name);
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f64::from(f32::from_le_bytes(*b)))
        .collect()
}
