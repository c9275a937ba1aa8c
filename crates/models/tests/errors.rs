//! Every message that a user can meet, with the file that causes it.

mod common;

use common::{File, Message, Size, constant, input, int, ints, node, tensor, typed_input};
use meshloom_models::onnx::import_bytes;
use meshloom_models::{Graph, ImportError, ImportOptions, Mask, builtin, evaluate, import, sparsify};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

fn try_import(bytes: Vec<u8>, batch: Option<usize>) -> Result<Graph, ImportError> {
    import_bytes(bytes, Path::new("model.onnx"), &ImportOptions { batch })
}

/// One case after another with its message.
#[derive(Default)]
struct Messages(String);

impl Messages {
    fn add(&mut self, case: &str, file: File) {
        self.bytes(case, file.bytes(), None);
    }

    fn bytes(&mut self, case: &str, bytes: Vec<u8>, batch: Option<usize>) {
        let message = match try_import(bytes, batch) {
            Ok(graph) => panic!("{case}: imported as\n{}", graph.to_text()),
            Err(e) => e.to_string(),
        };
        self.text(case, &message);
    }

    fn text(&mut self, case: &str, message: &str) {
        writeln!(self.0, "{case}\n    {message}").expect("a string takes all");
    }
}

fn x(sizes: &[i64]) -> Vec<Message> {
    vec![input(
        "x",
        &sizes.iter().map(|s| Size::Is(*s)).collect::<Vec<_>>(),
    )]
}

/// A model of nodes from `x` to `y`.
fn model(sizes: &[i64], nodes: Vec<Message>, constants: Vec<Message>) -> File {
    File {
        nodes,
        constants,
        inputs: x(sizes),
        outputs: vec!["y"],
        opset: None,
    }
}

fn relu(from: &str, to: &str) -> Message {
    node("Relu", &format!("to_{to}"), &[from], &[to])
}

#[test]
fn files() {
    let mut m = Messages::default();
    let good = || model(&[1, 2], vec![relu("x", "y")], vec![]);
    assert!(try_import(good().bytes(), None).is_ok());
    let bytes = good().bytes();
    m.bytes("an empty file", vec![], None);
    m.bytes("text", b"This is not a model at all, but a text.".to_vec(), None);
    m.bytes("cut off", bytes[..bytes.len() - 9].to_vec(), None);
    m.bytes("a wire type that does not exist", vec![7 << 3 | 2, 1, 15], None);
    m.bytes(
        "a name that is not UTF-8",
        Message::new().message(7, Message::new().bytes(2, &[255])).0,
        None,
    );
    m.bytes(
        "a million empty nodes",
        Message::new().bytes(7, &[10, 0].repeat(1 << 20)).0,
        None,
    );
    m.add(
        "no outputs",
        File {
            outputs: vec![],
            ..good()
        },
    );
    m.add(
        "too old",
        File {
            opset: Some(6),
            ..good()
        },
    );
    m.add(
        "from the future",
        File {
            opset: Some(1000),
            ..good()
        },
    );
    let folder = common::scratch("files");
    for (case, path) in [
        ("no such file", folder.join("none.onnx")),
        ("a folder", folder.clone()),
    ] {
        let message = import(&path, &ImportOptions::default()).unwrap_err().to_string();
        m.text(case, &message.replace(&folder.display().to_string(), "[folder]"));
    }
    insta::assert_snapshot!(m.0);
}

#[test]
fn graphs() {
    let mut m = Messages::default();
    let unknown = |op: &str, i: usize| node(op, &format!("n{i}"), &["x"], &[&format!("y{i}")]);
    let mut nodes: Vec<Message> = (0..7).map(|i| unknown("Loop", i)).collect();
    nodes.push(unknown("Erf", 7).text(7, "com.example"));
    nodes.push(relu("y0", "y"));
    m.add(
        "unsupported operators, all at once",
        model(&[1, 2], nodes, vec![]),
    );
    let nodes = vec![
        node("Add", "a", &["x", "c"], &["b"]),
        relu("b", "c"),
        relu("c", "y"),
    ];
    m.add("a cycle", model(&[1, 2], nodes, vec![]));
    m.add(
        "a node that reads itself",
        model(&[1, 2], vec![relu("y", "y")], vec![]),
    );
    m.add(
        "a tensor that nothing makes",
        model(&[1, 2], vec![relu("z", "y")], vec![]),
    );
    m.add(
        "an output that nothing makes",
        model(&[1, 2], vec![relu("x", "z")], vec![]),
    );
    m.add(
        "two nodes, one output",
        model(
            &[1, 2],
            vec![relu("x", "y"), node("Relu", "again", &["x"], &["y"])],
            vec![],
        ),
    );
    m.add(
        "a node that makes an initializer",
        model(&[1, 2], vec![relu("x", "y")], vec![constant("y", &[1], &[1.0])]),
    );
    let twice = vec![constant("w", &[1], &[1.0]), constant("w", &[1], &[2.0])];
    m.add(
        "two initializers, one name",
        model(&[1, 2], vec![relu("x", "y")], twice),
    );
    m.add(
        "an output twice",
        File {
            outputs: vec!["y", "y"],
            ..model(&[1, 2], vec![relu("x", "y")], vec![])
        },
    );
    let nodes = vec![
        node("Dropout", "drop", &["x"], &["a", "mask"]),
        node("Add", "add", &["a", "mask"], &["y"]),
    ];
    m.add("a second output in use", model(&[1, 2], nodes, vec![]));
    m.add(
        "too many inputs",
        model(&[1, 2], vec![node("Relu", "relu", &["x", "x"], &["y"])], vec![]),
    );
    m.add(
        "shapes that do not fit",
        model(
            &[1, 2],
            vec![node("Add", "add", &["x", "c"], &["y"])],
            vec![constant("c", &[3], &[0.0; 3])],
        ),
    );
    let long = format!("a\nname {}", "of many letters ".repeat(20));
    m.add(
        "a name that would spoil the terminal",
        model(&[1, 2], vec![relu(&long, "y")], vec![]),
    );
    insta::assert_snapshot!(m.0);
}

#[test]
fn inputs() {
    let mut m = Messages::default();
    let with = |inputs| File {
        inputs,
        ..model(&[1], vec![relu("x", "y")], vec![])
    };
    let sizes = [
        Size::Named("batch"),
        Size::Is(3),
        Size::Named("height"),
        Size::Named(""),
    ];
    m.add("sizes that are only named", with(vec![input("x", &sizes)]));
    m.add("a size of zero", with(x(&[1, 0])));
    m.add("a negative size", with(x(&[1, -5])));
    m.add("absurd sizes", with(x(&[1 << 40, 1 << 40, 2])));
    m.add("more axes than there are", with(x(&[1; 40])));
    m.add("no shape", with(vec![Message::new().text(1, "x")]));
    m.add("text", with(vec![typed_input("x", 8, &[Size::Is(1)])]));
    m.add(
        "ids that are no numbers",
        with(vec![typed_input("x", 7, &[Size::Is(1)])]),
    );
    let open = || with(vec![input("x", &[Size::Named("n"), Size::Is(3)])]).bytes();
    assert_eq!(try_import(open(), Some(4)).unwrap().tensors()[0].shape, [4, 3]);
    assert_eq!(try_import(open(), None).unwrap().tensors()[0].shape, [1, 3]);
    m.bytes("a batch of zero", open(), Some(0));
    m.bytes("an absurd batch", open(), Some(usize::MAX));
    m.bytes("a batch for a scalar", with(x(&[])).bytes(), Some(2));
    let turned = model(&[1, 3], vec![node("Transpose", "t", &["x"], &["y"])], vec![]);
    m.bytes("a batch that is transposed away", turned.bytes(), Some(2));
    let added = model(
        &[3, 1],
        vec![node("Add", "a", &["x", "c"], &["y"])],
        vec![constant("c", &[3, 1], &[1.0; 3])],
    );
    m.bytes("a batch that meets a constant of another", added.bytes(), Some(1));
    insta::assert_snapshot!(m.0);
}

#[test]
fn constants() {
    let mut m = Messages::default();
    let with = |c: Message| model(&[1, 2], vec![node("Add", "add", &["x", "c"], &["y"])], vec![c]);
    assert!(try_import(with(constant("c", &[2], &[1.0, 2.0])).bytes(), None).is_ok());
    assert!(try_import(with(tensor("c", 1, &[1]).float(4, 1.5)).bytes(), None).is_ok());
    m.add("NaN", with(constant("c", &[2], &[1.0, f32::NAN])));
    m.add("infinite", with(constant("c", &[2], &[f32::NEG_INFINITY, 1.0])));
    m.add(
        "too large for float32",
        with(tensor("c", 11, &[1]).bytes(9, &1e300f64.to_le_bytes())),
    );
    m.add("too few bytes", with(constant("c", &[2, 3], &[1.0; 5])));
    m.add(
        "too many values",
        with(tensor("c", 1, &[1]).float(4, 1.0).float(4, 2.0)),
    );
    m.add("no data", with(tensor("c", 1, &[2])));
    m.add("gigabytes claimed", with(tensor("c", 1, &[1 << 30])));
    m.add(
        "sizes that overflow",
        with(tensor("c", 1, &[1 << 62, 1 << 62, 1 << 62])),
    );
    m.add("a negative size", with(tensor("c", 1, &[-2])));
    m.add("integers", with(tensor("c", 7, &[1]).int(7, 3)));
    m.add("quantised", with(tensor("c", 3, &[2]).bytes(9, &[1, 2])));
    m.add("a type that does not exist", with(tensor("c", 99, &[2])));
    insta::assert_snapshot!(m.0);
}

#[test]
fn operators() {
    let mut m = Messages::default();
    let image = [1, 2, 6, 6];
    let w = || vec![constant("w", &[4, 2, 3, 3], &[0.5; 72])];
    let conv = |attributes: Vec<Message>| vec![node("Conv", "conv", &["x", "w"], &["y"]).all(5, attributes)];
    assert!(try_import(model(&image, conv(vec![]), w()).bytes(), None).is_ok());
    m.add(
        "negative pads",
        model(&image, conv(vec![ints("pads", &[1, -1, 0, 0])]), w()),
    );
    m.add(
        "one stride",
        model(&image, conv(vec![ints("strides", &[2])]), w()),
    );
    m.add(
        "a stride of zero",
        model(&image, conv(vec![ints("strides", &[0, 1])]), w()),
    );
    m.add(
        "a kernel that is not the weight's",
        model(&image, conv(vec![ints("kernel_shape", &[5, 5])]), w()),
    );
    m.add(
        "an attribute of a wrong type",
        model(&image, conv(vec![int("strides", 2)]), w()),
    );
    m.add("a padding mode that does not exist", {
        let mode = Message::new().text(1, "auto_pad").text(4, "MIRROR").int(20, 3);
        model(&image, conv(vec![mode]), w())
    });
    m.add(
        "groups that do not divide",
        model(&image, conv(vec![int("group", 3)]), w()),
    );
    m.add(
        "a window beyond the input",
        model(&[1, 2, 2, 2], conv(vec![]), w()),
    );
    m.add("one dimension", model(&[1, 2, 6], conv(vec![]), w()));
    m.add("wrong channels", model(&[1, 3, 6, 6], conv(vec![]), w()));
    let pool = |attributes: Vec<Message>| vec![node("MaxPool", "pool", &["x"], &["y"]).all(5, attributes)];
    m.add("no kernel", model(&image, pool(vec![]), vec![]));
    let wide = vec![ints("kernel_shape", &[2, 2]), ints("pads", &[2, 0, 0, 0])];
    m.add("padding as wide as the kernel", model(&image, pool(wide), vec![]));
    let dilated = vec![ints("kernel_shape", &[2, 2]), ints("dilations", &[2, 2])];
    m.add("a dilated pooling", model(&image, pool(dilated), vec![]));
    let one = |op: &str, more: &[&str], attributes: Vec<Message>| {
        vec![node(op, "n", &[&["x"], more].concat(), &["y"]).all(5, attributes)]
    };
    m.add(
        "activations multiplied that do not fit",
        model(&[2, 3], one("MatMul", &["x"], vec![]), vec![]),
    );
    m.add(
        "a product of one axis",
        model(
            &[2],
            one("MatMul", &["w"], vec![]),
            vec![constant("w", &[2, 1], &[1.0; 2])],
        ),
    );
    m.add(
        "a product that does not fit",
        model(
            &[1, 3],
            one("Gemm", &["w"], vec![]),
            vec![constant("w", &[2, 1], &[1.0; 2])],
        ),
    );
    let to = |v: &[i64]| {
        vec![
            v.iter()
                .fold(tensor("to", 7, &[v.len() as i64]), |t, v| t.int(7, *v)),
        ]
    };
    m.add(
        "a reshape to a computed shape",
        model(&[2, 2], one("Reshape", &["x"], vec![]), vec![]),
    );
    m.add(
        "a reshape that does not fit",
        model(&[2, 2], one("Reshape", &["to"], vec![]), to(&[3, -1])),
    );
    m.add(
        "a reshape with two open sizes",
        model(&[2, 2], one("Reshape", &["to"], vec![]), to(&[-1, -1])),
    );
    m.add(
        "an absurd reshape",
        model(
            &[2, 2],
            one("Reshape", &["to"], vec![]),
            to(&[i64::MAX, i64::MAX]),
        ),
    );
    m.add(
        "a squeeze of what is not 1",
        model(&[2, 2], one("Squeeze", &["to"], vec![]), to(&[1])),
    );
    m.add(
        "a squeeze without axes",
        model(&[1, 2], one("Squeeze", &[], vec![]), vec![]),
    );
    m.add(
        "an unsqueeze twice at one place",
        model(&[1, 2], one("Unsqueeze", &["to"], vec![]), to(&[0, -4])),
    );
    m.add(
        "a softmax over no axis",
        model(&[1, 2], one("Softmax", &[], vec![int("axis", 2)]), vec![]),
    );
    let old = model(&[1, 2, 3], one("Softmax", &[], vec![]), vec![]);
    m.add(
        "an old softmax over several axes",
        File {
            opset: Some(12),
            ..old
        },
    );
    m.add(
        "no permutation",
        model(
            &[1, 2],
            one("Transpose", &[], vec![ints("perm", &[0, 0])]),
            vec![],
        ),
    );
    let six = || vec![constant("low", &[], &[0.0]), constant("high", &[], &[6.0])];
    m.add(
        "a clip with its limits exchanged",
        model(&[1, 2], one("Clip", &["high", "low"], vec![]), six()),
    );
    let flag = vec![
        tensor("seed", 1, &[]).float(4, 0.5),
        tensor("on", 9, &[]).bytes(9, &[1]),
    ];
    m.add(
        "a dropout in training",
        model(&[1, 2], one("Dropout", &["seed", "on"], vec![]), flag),
    );
    let names = ["s", "b", "m", "v"];
    let norm = names.iter().map(|n| constant(n, &[2], &[-1.0; 2])).collect();
    m.add(
        "a negative variance",
        model(&[1, 2], one("BatchNormalization", &names, vec![]), norm),
    );
    m.add(
        "a constant without value",
        model(&[1, 2], vec![node("Constant", "c", &[], &["y"])], vec![]),
    );
    insta::assert_snapshot!(m.0);
}

/// The operators of transformers and what exporters leave of shapes.
#[test]
fn selections() {
    let mut m = Messages::default();
    let whole = |name: &str, v: &[i64]| {
        v.iter()
            .fold(tensor(name, 7, &[v.len() as i64]), |t, v| t.int(7, *v))
    };
    let mut add = |case: &str, op: &str, more: &[&str], attributes: Vec<Message>, constants: Vec<Message>| {
        let nodes = vec![node(op, "n", &[&["x"], more].concat(), &["y"]).all(5, attributes)];
        m.add(case, model(&[1, 2, 4], nodes, constants));
    };
    let c = || vec![constant("c", &[4], &[1.0; 4])];
    add("ids that are computed", "Gather", &["x"], vec![], vec![]);
    add(
        "an index beyond the axis",
        "Gather",
        &["i"],
        vec![int("axis", 2)],
        vec![whole("i", &[4])],
    );
    add(
        "indices apart",
        "Gather",
        &["i"],
        vec![int("axis", 2)],
        vec![whole("i", &[0, 2])],
    );
    let ends = || {
        vec![
            whole("a", &[0]),
            whole("b", &[9]),
            whole("axes", &[2]),
            whole("steps", &[2]),
        ]
    };
    add(
        "a slice with steps",
        "Slice",
        &["a", "b", "axes", "steps"],
        vec![],
        ends(),
    );
    add("an empty slice", "Slice", &["a", "a"], vec![], ends());
    add("a slice without ends", "Slice", &["a"], vec![], ends());
    add(
        "a split that does not fit",
        "Split",
        &["s"],
        vec![int("axis", 2)],
        vec![whole("s", &[1])],
    );
    add(
        "computed tensors put together",
        "Concat",
        &["x"],
        vec![int("axis", 0)],
        vec![],
    );
    add(
        "a norm over other axes",
        "LayerNormalization",
        &["c"],
        vec![int("axis", 1)],
        c(),
    );
    add(
        "a norm of other features",
        "LayerNormalization",
        &["c"],
        vec![],
        vec![constant("c", &[2], &[1.0; 2])],
    );
    add("a computed exponent", "Pow", &["x"], vec![], vec![]);
    add(
        "a mean over no axis",
        "ReduceMean",
        &[],
        vec![ints("axes", &[3])],
        vec![],
    );
    add("numbers made integers", "Cast", &[], vec![int("to", 7)], vec![]);
    add("numbers made text", "Cast", &[], vec![int("to", 8)], vec![]);
    add(
        "a computed tensor repeated",
        "Expand",
        &["s"],
        vec![],
        vec![whole("s", &[3, 2, 4])],
    );
    add("a triangle of a computed tensor", "Trilu", &[], vec![], vec![]);
    add("numbers compared", "Less", &["x"], vec![], vec![]);
    add("a choice by numbers", "Where", &["x", "x"], vec![], vec![]);
    add(
        "a GELU of another kind",
        "Gelu",
        &[],
        vec![
            Message::new()
                .text(1, "approximate")
                .text(4, "sigmoid")
                .int(20, 3),
        ],
        vec![],
    );
    let range = |v: [i64; 3]| {
        let names = ["a", "b", "c"];
        let constants = names.iter().zip(v).map(|(n, v)| whole(n, &[v])).collect();
        let nodes = vec![
            node("Range", "range", &names, &["r"]),
            node("Cast", "cast", &["r"], &["f"]).all(5, vec![int("to", 1)]),
            node("Add", "add", &["x", "f"], &["y"]),
        ];
        model(&[1, 3], nodes, constants)
    };
    assert!(try_import(range([0, 3, 1]).bytes(), None).is_ok());
    m.add("a range without steps", range([0, 3, 0]));
    m.add("an endless range", range([0, i64::MAX, 1]));
    m.add("a range of another length", range([9, 0, -2]));
    m.add("an empty range", range([3, 0, 1]));
    let zero = vec![
        node("Div", "divide", &["a", "b"], &["s"]),
        node("Reshape", "reshape", &["x", "s"], &["y"]),
    ];
    m.add(
        "sizes divided by zero",
        model(&[1], zero, vec![whole("a", &[1]), whole("b", &[0])]),
    );
    let overflow = vec![
        node("Div", "divide", &["a", "b"], &["c"]),
        node("Add", "add", &["x", "c"], &["y"]),
    ];
    let constants = vec![constant("a", &[1], &[1.0]), constant("b", &[1], &[0.0])];
    m.add("constants divided by zero", model(&[1], overflow, constants));
    let inf = constant("c", &[2], &[1.0, f32::NEG_INFINITY]);
    m.add(
        "a weight of -inf",
        model(&[2], vec![node("Add", "add", &["x", "c"], &["y"])], vec![inf]),
    );
    insta::assert_snapshot!(m.0);
}

#[test]
fn external_data() {
    let mut m = Messages::default();
    let folder = common::scratch("external");
    let inside = folder.join("model");
    std::fs::create_dir_all(&inside).unwrap();
    let values: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(inside.join("weights.bin"), &values).unwrap();
    std::fs::write(folder.join("secret.bin"), &values).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.join("secret.bin"), inside.join("link.bin")).unwrap();
    let entry = |k: &str, v: &str| Message::new().text(1, k).text(2, v);
    let read = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(k, v)| entry(k, v)).collect();
        let c = tensor("c", 1, &[2]).all(13, entries).int(14, 1);
        let file = model(&[1, 2], vec![node("Add", "add", &["x", "c"], &["y"])], vec![c]);
        std::fs::write(inside.join("model.onnx"), file.bytes()).unwrap();
        import(inside.join("model.onnx"), &ImportOptions::default())
    };
    let good = read(&[("location", "weights.bin"), ("offset", "4"), ("length", "8")]).unwrap();
    assert_eq!(
        *good.tensor(good.constants()[0]).data.clone().unwrap(),
        [2.0, 3.0]
    );
    // a link to a file beside it is nothing special, nor is a link to the folder of the model
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(inside.join("weights.bin"), inside.join("beside.bin")).unwrap();
        assert!(read(&[("location", "beside.bin"), ("length", "8")]).is_ok());
        std::os::unix::fs::symlink(&inside, folder.join("door")).unwrap();
        assert!(import(folder.join("door/model.onnx"), &ImportOptions::default()).is_ok());
    }
    let absolute = folder.join("secret.bin").display().to_string();
    for (case, entries) in [
        ("no location", vec![]),
        ("a folder above", vec![("location", "../secret.bin")]),
        ("an absolute path", vec![("location", absolute.as_str())]),
        ("a backslash", vec![("location", "..\\secret.bin")]),
        #[cfg(unix)]
        (
            "a link that leads out",
            vec![("location", "link.bin"), ("length", "8")],
        ),
        ("no such file", vec![("location", "none.bin")]),
        ("the folder itself", vec![("location", ".")]),
        (
            "beyond the end",
            vec![("location", "weights.bin"), ("offset", "8"), ("length", "8")],
        ),
        (
            "an overflow",
            vec![
                ("location", "weights.bin"),
                ("offset", "18446744073709551615"),
                ("length", "8"),
            ],
        ),
        (
            "a negative offset",
            vec![("location", "weights.bin"), ("offset", "-4")],
        ),
        ("too much data", vec![("location", "weights.bin")]),
    ] {
        let message = read(&entries).unwrap_err().to_string();
        m.text(case, &message.replace(&folder.display().to_string(), "[folder]"));
    }
    insta::assert_snapshot!(m.0);
}

#[test]
fn everything_else() {
    let mut m = Messages::default();
    for spec in [
        "bert",
        "gpt:heads=3",
        "gpt:depth=3",
        "fabric:readout=middle",
        "mlp:depth=3",
        "mlp:layers=64",
        "mlp:layers=64-0-10",
        "mlp:layers=4-2,layers=4-2",
        "mlp:layers",
    ] {
        m.text(spec, &builtin(spec, 1, 0).unwrap_err().to_string());
    }
    m.text("a batch of zero", &builtin("mlp", 0, 0).unwrap_err().to_string());
    m.text(
        "absurd layers",
        &builtin("mlp:layers=99999999-99999999", 1, 0)
            .unwrap_err()
            .to_string(),
    );
    let graph = builtin("mlp:layers=4-2", 1, 0).unwrap().graph;
    for fraction in [1.0, -0.5, f64::NAN] {
        m.text(
            "a sparsity",
            &sparsify(&graph, fraction, Mask::Uniform, 0)
                .unwrap_err()
                .to_string(),
        );
    }
    m.text("a mask", &"block".parse::<Mask>().unwrap_err().to_string());
    let give = |name: &str, n: usize| evaluate(&graph, &BTreeMap::from([(name.to_string(), vec![0.0; n])]));
    m.text("an unknown input", &give("y", 4).unwrap_err().to_string());
    m.text("too few values", &give("x", 3).unwrap_err().to_string());
    m.text(
        "no inputs",
        &evaluate(&graph, &BTreeMap::new()).unwrap_err().to_string(),
    );
    insta::assert_snapshot!(m.0);
}
