//! Tests of the import on small models made here.

use super::proto::{
    Attribute, Dim, Entry, GraphProto, OperatorSet, Shape, TensorProto, TensorType, TypeProto,
};
use super::*;
use crate::graph::Op;
use proptest::prelude::*;
use std::path::PathBuf;

fn value(name: &str, dims: &[i64]) -> ValueInfo {
    let dim = |d: &i64| Dim {
        value: (*d != 0).then_some(*d),
        param: (*d == 0).then(|| "N".to_owned()),
    };
    let shape = Some(Shape {
        dim: dims.iter().map(dim).collect(),
    });
    let kind = Some(TypeProto {
        tensor: Some(TensorType { elem_type: 1, shape }),
    });
    ValueInfo {
        name: name.into(),
        kind,
    }
}

fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    let raw: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        raw_data: raw.into(),
        ..Default::default()
    }
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) -> NodeProto {
    NodeProto {
        name: format!("{output}_node"),
        op_type: op.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute,
        domain: String::new(),
    }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute {
        name: name.into(),
        i: Some(i),
        kind: 2,
        ..Default::default()
    }
}

fn float(name: &str, f: f32) -> Attribute {
    Attribute {
        name: name.into(),
        f: Some(f),
        kind: 1,
        ..Default::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute {
        name: name.into(),
        ints: ints.to_vec(),
        kind: 7,
        ..Default::default()
    }
}

fn model(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, input: ValueInfo, output: ValueInfo) -> Model {
    let graph = GraphProto {
        node: nodes,
        name: "test".into(),
        initializer,
        input: vec![input],
        output: vec![output],
        sparse_initializer: vec![],
    };
    Model {
        opset_import: vec![OperatorSet {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
    }
}

/// A convolution, a normalisation, pools and a product: every kind of node that has settings.
fn sample() -> Model {
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![2],
        data_type: 7,
        int64_data: vec![Bytes::from_static(&[
            0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ])],
        ..Default::default()
    };
    let ones = |name: &str| floats(name, &[2], &[1.0, 1.0]);
    model(
        vec![
            node(
                "Conv",
                &["x", "cw", "cb"],
                "c",
                vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[1, 1])],
            ),
            node(
                "BatchNormalization",
                &["c", "s", "b", "m", "v"],
                "n",
                vec![float("epsilon", 1e-3)],
            ),
            node(
                "MaxPool",
                &["n"],
                "p",
                vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])],
            ),
            node("GlobalAveragePool", &["p"], "g", vec![]),
            node("Reshape", &["g", "shape"], "f", vec![]),
            node(
                "Gemm",
                &["f", "w", "wb"],
                "l",
                vec![float("alpha", 2.0), float("beta", 0.5)],
            ),
            node("Softmax", &["l"], "y", vec![int("axis", -1)]),
        ],
        vec![
            floats("cw", &[2, 1, 3, 3], &[0.5; 18]),
            ones("cb"),
            ones("s"),
            ones("b"),
            ones("m"),
            ones("v"),
            shape,
            floats("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            floats("wb", &[1], &[4.0]),
        ],
        value("x", &[0, 1, 4, 4]),
        value("y", &[0, 3]),
    )
}

fn load(model: &Model, batch: Option<usize>) -> Result<Graph, ImportError> {
    load_bytes(&model.encode_to_vec(), batch)
}

fn load_bytes(bytes: &[u8], batch: Option<usize>) -> Result<Graph, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, bytes).unwrap();
    import(&path, &ImportOptions { batch })
}

fn constant<'a>(graph: &'a Graph, name: &str) -> &'a crate::Tensor {
    graph.tensors().iter().find(|t| t.name == name).unwrap()
}

#[test]
fn sample_is_normalised() {
    let g = load(&sample(), Some(3)).unwrap();
    assert_eq!(g.tensor(g.outputs()[0]).shape, [3, 3]);
    let w = constant(&g, "w");
    assert_eq!(w.shape, [3, 2]);
    assert_eq!(**w.data.as_ref().unwrap(), [2.0, 8.0, 4.0, 10.0, 6.0, 12.0]);
    assert_eq!(**constant(&g, "wb").data.as_ref().unwrap(), [2.0; 3]);
    let ops: Vec<&str> = g.nodes_in_order().iter().map(|n| g.node(*n).op.name()).collect();
    assert_eq!(
        ops,
        [
            "Conv",
            "BatchNorm",
            "MaxPool",
            "AvgPool",
            "Reshape",
            "Linear",
            "Softmax"
        ]
    );
    assert_eq!(
        load(&sample(), None).unwrap().tensor(g.outputs()[0]).shape,
        [1, 3]
    );
}

#[test]
fn nodes_may_come_in_any_order() {
    let mut m = sample();
    m.graph.as_mut().unwrap().node.reverse();
    assert_eq!(load(&m, None).unwrap().nodes_in_order().len(), 7);
}

#[test]
fn constants_and_aliases() {
    let one = Attribute {
        name: "value".into(),
        t: Some(Box::new(floats("", &[2], &[1.0, 2.0]))),
        kind: 4,
        ..Default::default()
    };
    let m = model(
        vec![
            node("Constant", &[], "k", vec![one]),
            node("Identity", &["k"], "k2", vec![]),
            node("Add", &["x", "k2"], "a", vec![]),
            node("Mul", &["a", "k"], "m", vec![]),
            node("Unsqueeze", &["m", "ax"], "u", vec![]),
            node("Squeeze", &["u", "ax"], "q", vec![]),
            node("Identity", &["q"], "y", vec![]),
        ],
        vec![TensorProto {
            name: "ax".into(),
            dims: vec![1],
            data_type: 7,
            raw_data: Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0]),
            ..Default::default()
        }],
        value("x", &[4, 2]),
        value("y", &[4, 2]),
    );
    let g = load(&m, Some(6)).unwrap();
    assert_eq!(g.parameters(), 2);
    assert_eq!(g.tensor(g.outputs()[0]).name, "y");
    assert_eq!(g.tensor(g.outputs()[0]).shape, [6, 2]);
}

#[test]
fn automatic_padding() {
    for (auto, expected) in [("SAME_UPPER", [0, 0, 1, 1]), ("SAME_LOWER", [1, 1, 0, 0])] {
        let mut m = sample();
        let pad = Attribute {
            name: "auto_pad".into(),
            s: Some(Bytes::from(auto)),
            kind: 3,
            ..Default::default()
        };
        m.graph.as_mut().unwrap().node[0].attribute = vec![pad, ints("strides", &[2, 2])];
        let g = load(&m, None).unwrap();
        assert!(matches!(g.node(crate::NodeId(0)).op, Op::Conv { pads, .. } if pads == expected));
    }
}

/// Changes the sample and gives the error's message.
fn broken(change: impl FnOnce(&mut GraphProto)) -> ImportError {
    let mut m = sample();
    change(m.graph.as_mut().unwrap());
    let error = load(&m, None).unwrap_err();
    assert!(error.to_string().contains("m.onnx: "), "{error}");
    error
}

#[test]
fn all_unsupported_operators_are_named() {
    let error = broken(|g| {
        g.node[0].op_type = "Einsum".into();
        g.node[2].op_type = "Loop".into();
        g.node[3].op_type = "Loop".into();
        g.node[4].domain = "com.example".into();
    });
    let ImportError::UnsupportedOperators { operators, .. } = &error else {
        panic!("{error}")
    };
    let names: Vec<(&str, usize)> = operators.iter().map(|o| (o.op_type.as_str(), o.count)).collect();
    assert_eq!(names, [("Einsum", 1), ("Loop", 2), ("com.example.Reshape", 1)]);
}

#[test]
fn faults_have_their_own_errors() {
    assert!(matches!(
        broken(|g| g.node.clear()),
        ImportError::Empty { missing: "nodes", .. }
    ));
    assert!(matches!(
        broken(|g| g.output.clear()),
        ImportError::Empty {
            missing: "outputs",
            ..
        }
    ));
    assert!(matches!(
        broken(|g| g.input.clear()),
        ImportError::Empty {
            missing: "inputs",
            ..
        }
    ));
    assert!(matches!(
        broken(|g| g.node[1].input[0] = "zz".into()),
        ImportError::NeverMade { .. }
    ));
    assert!(matches!(
        broken(|g| g.output[0].name = "zz".into()),
        ImportError::NeverMade { .. }
    ));
    let error = broken(|g| g.node[1].input[0] = "f".into());
    let ImportError::Cycle { first, count: 6, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        ["n_node", "p_node", "g_node", "f_node"]
            .iter()
            .any(|n| first.contains(n)),
        "{first}"
    );
    assert!(matches!(
        broken(|g| g.node[1].output[0] = "c".into()),
        ImportError::Duplicate { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[1].name = "cw".into()),
        ImportError::Duplicate { .. }
    ));
    assert!(matches!(
        broken(|g| g.input.push(g.input[0].clone())),
        ImportError::Duplicate { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[0].data_type = 10),
        ImportError::Dtype { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[6].data_type = 1),
        ImportError::Dtype { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[0].dims[0] = -2),
        ImportError::Dimension { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[0].dims = vec![1 << 40; 4]),
        ImportError::Dimension { .. }
    ));
    assert!(matches!(
        broken(|g| g.initializer[0].dims[0] = 1 << 20),
        ImportError::DataLength { .. }
    ));
    assert!(matches!(
        broken(|g| g.input[0] = value("x", &[1, 1, 1 << 20, 1 << 20])),
        ImportError::Dimension { .. }
    ));
    assert!(matches!(
        broken(|g| g.output[0] = value("y", &[0, 4])),
        ImportError::Dimension { .. }
    ));
    assert!(matches!(
        broken(|g| g.node[0].attribute.push(int("zz", 1))),
        ImportError::UnsupportedForm { .. }
    ));
    assert!(matches!(
        broken(|g| g.node[0].input[1] = "x".into()),
        ImportError::UnsupportedForm { .. }
    ));
    assert!(matches!(
        broken(|g| g.node[2].attribute[0].ints = vec![9, 9]),
        ImportError::Graph { .. }
    ));
    let error = broken(|g| {
        g.initializer[7] = floats("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0]);
    });
    assert!(matches!(error, ImportError::NonFinite { index: 4, ref tensor, .. } if tensor == "\"w\""));
}

#[test]
fn large_activations_are_errors() {
    let error = broken(|g| {
        g.input[0] = value("x", &[1, 1, 1 << 15, 1 << 15]);
        g.node[0].attribute[0].ints = vec![1 << 15; 4];
    });
    assert!(matches!(error, ImportError::Graph { .. }), "{error}");
    assert!(matches!(
        load(&sample(), Some(1 << 40)),
        Err(ImportError::Dimension { .. })
    ));
}

#[test]
fn damaged_files() {
    let bytes = sample().encode_to_vec();
    for end in 0..bytes.len() {
        assert!(load_bytes(&bytes[..end], None).is_err(), "{end}");
    }
    assert!(matches!(
        load_bytes(&bytes[..bytes.len() / 2], None),
        Err(ImportError::Truncated { .. })
    ));
    assert!(matches!(
        load_bytes(b"", None),
        Err(ImportError::Empty { missing: "graph", .. })
    ));
    assert!(matches!(
        load_bytes(b"# Readme\nnot a model", None),
        Err(ImportError::Malformed { .. })
    ));
    let options = ImportOptions::default();
    assert!(matches!(
        import(Path::new("/nowhere/m.onnx"), &options),
        Err(ImportError::Read { .. })
    ));
    assert!(matches!(
        import(&std::env::temp_dir(), &options),
        Err(ImportError::NotAFile { .. })
    ));
}

#[test]
fn one_constant_in_many_forms_is_bounded() {
    let n = 1500usize;
    let mut nodes = Vec::new();
    for i in 0..40 {
        let alpha = float("alpha", 1.0 + i as f32);
        nodes.push(node("Gemm", &["x", "w"], &format!("y{i}"), vec![alpha]));
    }
    let w = floats("w", &[n as i64, n as i64], &vec![1.0; n * n]);
    let m = model(
        nodes,
        vec![w],
        value("x", &[1, n as i64]),
        value("y0", &[1, n as i64]),
    );
    assert!(matches!(load(&m, None), Err(ImportError::TooLarge { .. })));
}

/// A model whose only weights are in `location`, in a folder with `weights.bin` of 32 bytes.
fn external(entries: &[(&str, &str)], prepare: impl Fn(&Path)) -> Result<Graph, ImportError> {
    let root = tempfile::tempdir().unwrap();
    let folder: PathBuf = root.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let data: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(folder.join("weights.bin"), &data).unwrap();
    std::fs::write(root.path().join("outside.bin"), &data).unwrap();
    prepare(&folder);
    let mut w = floats("w", &[2, 2], &[]);
    w.data_location = 1;
    w.external_data = entries
        .iter()
        .map(|(k, v)| Entry {
            key: k.to_string(),
            value: v.to_string(),
        })
        .collect();
    let gemm = node("Gemm", &["x", "w"], "y", vec![int("transB", 1)]);
    let m = model(vec![gemm], vec![w], value("x", &[1, 2]), value("y", &[1, 2]));
    let path = folder.join("m.onnx");
    std::fs::write(&path, m.encode_to_vec()).unwrap();
    import(&path, &ImportOptions::default())
}

#[test]
fn external_data() {
    let ok = [("location", "weights.bin"), ("offset", "8"), ("length", "16")];
    let g = external(&ok, |_| {}).unwrap();
    assert_eq!(**constant(&g, "w").data.as_ref().unwrap(), [2.0, 3.0, 4.0, 5.0]);
    let with = |location: &str, offset: &str, length: &str| {
        external(
            &[("location", location), ("offset", offset), ("length", length)],
            |_| {},
        )
    };
    for (location, offset, length) in [
        ("../outside.bin", "0", "16"),
        ("./../model/weights.bin", "0", "16"),
        ("/etc/hostname", "0", "16"),
        ("", "0", "16"),
        (".", "0", "16"),
        ("a\0b", "0", "16"),
        ("nothing.bin", "0", "16"),
        ("weights.bin", "24", "16"),
        ("weights.bin", "33", "0"),
        ("weights.bin", "18446744073709551615", "16"),
        ("weights.bin", "0", "18446744073709551615"),
        ("weights.bin", "-1", "16"),
        ("weights.bin", "0", "12"),
    ] {
        let result = with(location, offset, length);
        assert!(
            matches!(result, Err(ImportError::External { .. })),
            "{location} {offset} {length}: {result:?}"
        );
    }
}

#[cfg(unix)]
#[test]
fn symlinks_must_stay_inside() {
    use std::os::unix::fs::symlink;
    let entries = [("location", "link.bin"), ("length", "16"), ("offset", "0")];
    let out = external(&entries, |f| {
        symlink("../outside.bin", f.join("link.bin")).unwrap()
    });
    assert!(matches!(out, Err(ImportError::External { .. })), "{out:?}");
    external(&entries, |f| symlink("weights.bin", f.join("link.bin")).unwrap()).unwrap();
    let entries = [("location", "sub/outside.bin"), ("length", "16")];
    let out = external(&entries, |f| symlink("..", f.join("sub")).unwrap());
    assert!(matches!(out, Err(ImportError::External { .. })), "{out:?}");
}

fn load_memory(bytes: &[u8]) {
    // Without a file in between, so that many cases are quick.
    if wire::scan(bytes).is_ok()
        && let Ok(model) = Model::decode(Bytes::copy_from_slice(bytes))
    {
        let path = Path::new("/nowhere/m.onnx");
        let store = Store::new(path, "m.onnx".into(), bytes.len() as u64);
        if let Ok(graph) = build(&model, store, ImportOptions::default()) {
            graph.verify().unwrap();
            let _ = (graph.to_text(), crate::flops::total(&graph), graph.with_batch(3));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn mutated_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)
    ) {
        let mut bytes = sample().encode_to_vec();
        for (at, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        load_memory(&bytes);
    }

    #[test]
    fn mutated_fields_never_panic(
        which in 0usize..7,
        attribute in prop::sample::select(vec!["pads", "strides", "dilations", "group", "kernel_shape", "axis", "axes",
            "transB", "alpha", "epsilon", "perm", "auto_pad"]),
        op in prop::sample::select(SUPPORTED.to_vec()),
        numbers in prop::collection::vec(prop_oneof![-3i64..9, any::<i64>(), Just(1i64 << 31)], 0..6),
        dims in prop::collection::vec(prop_oneof![-1i64..9, any::<i64>(), Just(1i64 << 31)], 0..6),
        target in 0usize..9,
    ) {
        let mut m = sample();
        let g = m.graph.as_mut().unwrap();
        let mut a = ints(attribute, &numbers);
        a.i = numbers.first().copied();
        a.f = numbers.first().map(|v| *v as f32);
        a.s = Some(Bytes::from_static(b"SAME_UPPER"));
        a.kind = 0;
        g.node[which].attribute.retain(|old| old.name != attribute);
        g.node[which].attribute.push(a);
        load_memory(&m.encode_to_vec());
        let g = m.graph.as_mut().unwrap();
        g.node[which].op_type = op.into();
        load_memory(&m.encode_to_vec());
        let g = m.graph.as_mut().unwrap();
        g.initializer[target].dims = dims.clone();
        load_memory(&m.encode_to_vec());
        let mut m = sample();
        let g = m.graph.as_mut().unwrap();
        g.input[0] = value("x", &dims);
        g.initializer[6].int64_data = numbers.iter().map(|n| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(n.cast_unsigned(), &mut bytes);
            Bytes::from(bytes)
        }).collect();
        g.initializer[6].dims = vec![numbers.len() as i64];
        load_memory(&m.encode_to_vec());
    }
}
