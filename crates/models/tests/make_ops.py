"""Makes tests/data: one tiny ONNX file a case, with a random input and onnxruntime's output.

Cases called block_* are parts of networks as exporters write them; see blocks().

Run from anywhere with the packages named in tests/data/README.md: python make_ops.py
"""

import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

HERE = pathlib.Path(__file__).parent / "data"
RNG = np.random.default_rng(11)
CASES = []


def weights(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def case(name, x, nodes, constants=None, opset=17, ids=None):
    """`nodes`: (op, inputs, outputs, attributes); the model reads `x` and gives `y`.

    With `ids`, `x` holds int64 values less than it (and the file of inputs the same as float32).
    """
    made = [h.make_node(op, i, o, name=f"{op.lower()}{n}", **a) for n, (op, i, o, a) in enumerate(nodes)]
    init = [nh.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = h.make_graph(
        made,
        name,
        [h.make_tensor_value_info("x", T.INT64 if ids else T.FLOAT, x)],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        init,
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], producer_name="make_ops")
    model.ir_version = 8
    # no optimisation: what the operators themselves give
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = RNG.integers(0, ids, x) if ids else RNG.standard_normal(x).astype(np.float32)
    (y,) = session.run(None, {"x": values})
    for size in y.shape:
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    (HERE / f"{name}.onnx").write_bytes(data)
    (HERE / f"{name}.x.f32").write_bytes(values.astype("<f4").tobytes())
    (HERE / f"{name}.y.f32").write_bytes(y.astype("<f4").tobytes())
    CASES.append((name, nodes[0][0] if len(nodes) == 1 else ", ".join(n[0] for n in nodes), list(y.shape)))


def one(op, inputs, **attributes):
    return [(op, inputs, ["y"], attributes)]


def ints(*values):
    return np.array(values, np.int64)


def singles():
    """Operators of transformers, one by one."""
    norm = {"s": 1 + weights(6, scale=0.1), "b": weights(6)}
    case("layernorm", [2, 3, 6], one("LayerNormalization", ["x", "s", "b"], epsilon=0.01), norm)
    case("layernorm_no_bias", [2, 6], one("LayerNormalization", ["x", "s"], axis=1), {"s": norm["s"]})
    case("gather_ids", [2, 5], one("Gather", ["w", "x"]), {"w": weights(7, 3)}, ids=7)
    case("gather_last", [2, 3, 4], one("Gather", ["x", "i"], axis=1), {"i": np.int64(-1)})
    case("gelu", [3, 7], one("Gelu", ["x"]), opset=20)
    case("gelu_tanh", [3, 7], one("Gelu", ["x"], approximate="tanh"), opset=20)
    case("erf", [3, 7], one("Erf", ["x"]))
    case("tanh", [3, 7], one("Tanh", ["x"]))
    case("pow", [3, 7], one("Pow", ["x", "e"]), {"e": np.float32(3)})
    case("sqrt", [3, 7], [("Pow", ["x", "e"], ["t"], {}), ("Sqrt", ["t"], ["y"], {})], {"e": np.float32(2)})
    case("sub", [2, 3], one("Sub", ["c", "x"]), {"c": weights(3)})
    case("div", [2, 3], one("Div", ["x", "c"]), {"c": 2 + np.abs(weights(2, 1))})
    case("where", [2, 2, 3], one("Where", ["m", "x", "c"]), {"m": np.array([[True, False, True]]), "c": weights(2, 1)})
    case("clip", [3, 7], one("Clip", ["x", "low", "high"]), {"low": np.float32(-0.5), "high": np.float32(0.75)})
    case("reducemean", [2, 3, 4], one("ReduceMean", ["x"], axes=[-1]))
    case("reducemean_input", [2, 3, 4, 5], one("ReduceMean", ["x", "a"], keepdims=0), {"a": ints(1, -1)}, opset=18)
    case("reducemean_plane", [2, 3, 4, 5], one("ReduceMean", ["x"], axes=[2, 3], keepdims=0))
    case("slice", [2, 5, 6], one("Slice", ["x", "a", "b", "c"]), {"a": ints(1, -4), "b": ints(2**62, -1), "c": ints(1, 2)})
    case("matmul_batched", [2, 3, 4], [("Transpose", ["x"], ["t"], {"perm": [0, 2, 1]}), ("MatMul", ["x", "t"], ["y"], {})])
    case("matmul_left", [2, 3, 4], one("MatMul", ["w", "x"]), {"w": weights(5, 3)})
    case("linear_rows", [2, 3, 5], [("MatMul", ["x", "w"], ["t"], {}), ("Add", ["b", "t"], ["y"], {})], {"w": weights(5, 4), "b": weights(4)})
    parts = [("Split", ["x"], ["a", "b"], {"axis": 1}), ("Mul", ["b", "a"], ["y"], {})]
    case("split", [2, 6, 3], parts)
    uneven = [("Split", ["x", "s"], ["a", "b", "c"], {"axis": -1}), ("Sub", ["c", "a"], ["y"], {})]
    case("split_sizes", [2, 6], uneven, {"s": ints(2, 2, 2)})


def norm_written_out(x, y, d, opset):
    """The nodes and constants of a layer norm from its parts."""
    axes = {"axes": [-1]} if opset < 18 else {}
    more = [] if opset < 18 else [f"{y}.axes"]
    nodes = [
        ("ReduceMean", [x, *more], [f"{y}.mean"], axes),
        ("Sub", [x, f"{y}.mean"], [f"{y}.d"], {}),
        ("Pow", [f"{y}.d", f"{y}.two"], [f"{y}.sq"], {}),
        ("ReduceMean", [f"{y}.sq", *more], [f"{y}.var"], axes),
        ("Add", [f"{y}.var", f"{y}.eps"], [f"{y}.e"], {}),
        ("Sqrt", [f"{y}.e"], [f"{y}.root"], {}),
        ("Div", [f"{y}.d", f"{y}.root"], [f"{y}.n"], {}),
        ("Mul", [f"{y}.n", f"{y}.scale"], [f"{y}.s"], {}),
        ("Add", [f"{y}.s", f"{y}.bias"], [y], {}),
    ]
    constants = {
        f"{y}.two": np.float32(2),
        f"{y}.eps": np.float32(1e-5),
        f"{y}.scale": 1 + weights(d, scale=0.1),
        f"{y}.bias": weights(d),
    }
    return nodes, constants | ({} if opset < 18 else {f"{y}.axes": ints(-1)})


def gelu_written_out(x, y):
    """GPT-2's, by tanh."""
    nodes = [
        ("Mul", [x, f"{y}.half"], [f"{y}.h"], {}),
        ("Pow", [x, f"{y}.three"], [f"{y}.p"], {}),
        ("Mul", [f"{y}.p", f"{y}.c"], [f"{y}.cp"], {}),
        ("Add", [x, f"{y}.cp"], [f"{y}.sum"], {}),
        ("Mul", [f"{y}.sum", f"{y}.k"], [f"{y}.u"], {}),
        ("Tanh", [f"{y}.u"], [f"{y}.t"], {}),
        ("Add", [f"{y}.t", f"{y}.one"], [f"{y}.t1"], {}),
        ("Mul", [f"{y}.h", f"{y}.t1"], [y], {}),
    ]
    values = {"half": 0.5, "three": 3, "c": 0.044715, "k": (2 / np.pi) ** 0.5, "one": 1}
    return nodes, {f"{y}.{k}": np.float32(v) for k, v in values.items()}


def blocks():
    """Parts of networks as exporters write them, for what raises them to single operators."""
    t, d, heads, vocab = 6, 8, 2, 11
    hd = d // heads
    causal = np.tril(np.ones((t, t), bool))

    # as PyTorch's exporter since 2.5 writes GPT-2: everything flat around products, masks folded to constants
    gelu, gelu_constants = gelu_written_out("fc", "act")
    nodes = [
        ("Reshape", ["x", "flat_ids"], ["ids"], {"allowzero": 1}),
        ("Gather", ["wte", "ids"], ["tokens"], {"axis": 0}),
        ("Add", ["tokens", "wpe"], ["h0"], {}),
        ("LayerNormalization", ["h0", "ln1.w", "ln1.b"], ["ln1"], {"axis": -1, "epsilon": 1e-5}),
        ("Reshape", ["ln1", "flat"], ["ln1_flat"], {"allowzero": 1}),
        ("Gemm", ["ln1_flat", "attn.w", "attn.b"], ["qkv_flat"], {}),
        ("Reshape", ["qkv_flat", "rows3"], ["qkv"], {}),
        ("Split", ["qkv"], ["q", "k", "v"], {"axis": 2, "num_outputs": 3}),
        *[("Reshape", [n, "split_heads"], [f"{n}4"], {}) for n in "kvq"],
        ("Transpose", ["v4"], ["vt"], {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["q4"], ["qt"], {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["k4"], ["kt"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["qt", "kt"], ["scores"], {}),
        ("Mul", ["scores", "scale"], ["scaled"], {}),
        ("Add", ["scaled", "mask"], ["masked"], {}),
        ("Softmax", ["masked"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "vt"], ["mixed"], {}),
        ("Transpose", ["mixed"], ["mixed_t"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["mixed_t", "flat2"], ["mixed_flat"], {}),
        ("Gemm", ["mixed_flat", "proj.w", "proj.b"], ["proj_flat"], {}),
        ("Reshape", ["proj_flat", "rows"], ["proj"], {}),
        ("Add", ["proj", "h0"], ["h1"], {}),
        ("LayerNormalization", ["h1", "ln2.w", "ln2.b"], ["ln2"], {"axis": -1, "epsilon": 1e-5}),
        ("Reshape", ["ln2", "flat"], ["ln2_flat"], {}),
        ("Gemm", ["ln2_flat", "fc.w", "fc.b"], ["fc_flat"], {}),
        ("Reshape", ["fc_flat", "rows4"], ["fc"], {}),
        *gelu,
        ("Reshape", ["act", "flat4"], ["act_flat"], {}),
        ("Gemm", ["act_flat", "out.w", "out.b"], ["out_flat"], {}),
        ("Reshape", ["out_flat", "rows"], ["out"], {}),
        ("Add", ["h1", "out"], ["h2"], {}),
        ("LayerNormalization", ["h2", "lnf.w", "lnf.b"], ["lnf"], {"axis": -1, "epsilon": 1e-5}),
        ("Reshape", ["lnf", "rows"], ["lnf_rows"], {}),
        ("MatMul", ["lnf_rows", "head"], ["y"], {}),
    ]
    constants = {
        "flat_ids": ints(-1, t), "flat": ints(-1, d), "flat2": ints(t, d), "flat4": ints(-1, 4 * d),
        "rows": ints(1, t, d), "rows3": ints(1, t, 3 * d), "rows4": ints(1, t, 4 * d),
        "split_heads": ints(1, t, -1, hd), "scale": np.float32(hd**-0.5),
        "mask": np.where(causal, 0, -np.inf).astype(np.float32)[None, None],
        "wte": weights(vocab, d), "wpe": weights(1, t, d), "head": weights(d, vocab),
        **{f"{n}.w": 1 + weights(d, scale=0.1) for n in ["ln1", "ln2", "lnf"]},
        **{f"{n}.b": weights(d) for n in ["ln1", "ln2", "lnf"]},
        "attn.w": weights(d, 3 * d), "attn.b": weights(3 * d), "proj.w": weights(d, d), "proj.b": weights(d),
        "fc.w": weights(d, 4 * d), "fc.b": weights(4 * d), "out.w": weights(4 * d, d), "out.b": weights(d),
        **gelu_constants,
    }
    case("block_gpt2", [1, t], nodes, constants, opset=18, ids=vocab)

    # as its older exporter does: shapes and positions computed, the mask cut from a buffer, norms written out
    norm, norm_constants = norm_written_out("h0", "ln1", d, 13)
    nodes = [
        ("Shape", ["x"], ["shape"], {}),
        ("Gather", ["shape", "one"], ["length"], {}),
        ("Range", ["zero", "length", "one"], ["positions"], {}),
        ("Unsqueeze", ["positions", "axis0"], ["positions2"], {}),
        ("Gather", ["wte", "x"], ["tokens"], {}),
        ("Gather", ["wpe", "positions2"], ["places"], {}),
        ("Add", ["tokens", "places"], ["h0"], {}),
        *norm,
        ("MatMul", ["ln1", "attn.w"], ["qkv0"], {}),
        ("Add", ["qkv0", "attn.b"], ["qkv"], {}),
        ("Split", ["qkv", "thirds"], ["q", "k", "v"], {"axis": -1}),
        *[
            node
            for n in "qkv"
            for node in [
                ("Shape", [n], [f"{n}.shape"], {}),
                ("Slice", [f"{n}.shape", "axis0", "two"], [f"{n}.lead"], {}),
                ("Concat", [f"{n}.lead", "heads"], [f"{n}.to"], {"axis": 0}),
                ("Reshape", [n, f"{n}.to"], [f"{n}4"], {}),
                ("Transpose", [f"{n}4"], [f"{n}t"], {"perm": [0, 2, 1, 3]}),
            ]
        ],
        ("Transpose", ["kt"], ["ktt"], {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["qt", "ktt"], ["scores"], {}),
        ("Cast", ["width"], ["widthf"], {"to": T.FLOAT}),
        ("Sqrt", ["widthf"], ["root"], {}),
        ("Div", ["scores", "root"], ["scaled"], {}),
        ("Unsqueeze", ["length", "axis0"], ["length1"], {}),
        ("Slice", ["buffer", "axis0", "length1", "rowsaxis"], ["buffer1"], {}),
        ("Slice", ["buffer1", "axis0", "length1", "three"], ["buffer2"], {}),
        ("Where", ["buffer2", "scaled", "low"], ["masked"], {}),
        ("Softmax", ["masked"], ["p"], {"axis": 3}),
        ("MatMul", ["p", "vt"], ["mixed"], {}),
        ("Transpose", ["mixed"], ["mixed_t"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["mixed_t", "join"], ["joined"], {}),
        ("MatMul", ["joined", "proj.w"], ["proj"], {}),
        ("Add", ["h0", "proj"], ["y"], {}),
    ]
    constants = {
        "one": np.int64(1), "zero": np.int64(0), "axis0": ints(0), "two": ints(2), "three": ints(3), "rowsaxis": ints(2),
        "thirds": ints(d, d, d), "heads": ints(heads, hd), "width": np.int64(hd), "join": ints(0, 0, -1),
        "buffer": np.tril(np.ones((1, 1, 16, 16), bool)), "low": np.float32(-1e4),
        "wte": weights(vocab, d), "wpe": weights(16, d),
        "attn.w": weights(d, 3 * d), "attn.b": weights(3 * d), "proj.w": weights(d, d),
        **norm_constants,
    }
    case("block_gpt2_old", [1, t], nodes, constants, opset=13, ids=vocab)

    # scaled_dot_product_attention: the root of the scale on both sides, the mask from comparisons; GELU by erf
    norm, norm_constants = norm_written_out("x", "ln", d, 18)
    nodes = [
        *norm,
        *[n for p in "qkv" for n in [
            ("MatMul", ["ln", f"{p}.w"], [f"{p}0"], {}),
            ("Add", [f"{p}0", f"{p}.b"], [p], {}),
            ("Reshape", [p, "heads"], [f"{p}4"], {}),
            ("Transpose", [f"{p}4"], [f"{p}t"], {"perm": [0, 2, 1, 3]}),
        ]],
        ("Mul", ["qt", "half_scale"], ["qs"], {}),
        ("Transpose", ["kt"], ["ktt"], {"perm": [0, 1, 3, 2]}),
        ("Mul", ["ktt", "half_scale"], ["ks"], {}),
        ("Range", ["zero", "tokens", "one"], ["r"], {}),
        ("Unsqueeze", ["r", "axis1"], ["column"], {}),
        ("LessOrEqual", ["r", "column"], ["seen"], {}),
        ("Where", ["seen", "zerof", "low"], ["mask"], {}),
        ("MatMul", ["qs", "ks"], ["scores"], {}),
        ("Add", ["mask", "scores"], ["masked"], {}),
        ("Softmax", ["masked"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "vt"], ["mixed"], {}),
        ("Transpose", ["mixed"], ["mixed_t"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["mixed_t", "join"], ["joined"], {}),
        ("Div", ["joined", "root2"], ["e0"], {}),
        ("Erf", ["e0"], ["e1"], {}),
        ("Add", ["e1", "onef"], ["e2"], {}),
        ("Mul", ["joined", "e2"], ["e3"], {}),
        ("Mul", ["e3", "half"], ["y"], {}),
    ]
    constants = {
        **norm_constants, **{f"{p}.w": weights(d, d) for p in "qkv"}, **{f"{p}.b": weights(d) for p in "qkv"},
        "heads": ints(0, 0, heads, hd), "join": ints(0, 0, d), "half_scale": np.float32(hd**-0.25),
        "zero": np.int64(0), "one": np.int64(1), "tokens": np.int64(t), "axis1": ints(1),
        "zerof": np.float32(0), "low": np.float32(-np.inf), "root2": np.float32(2**0.5), "onef": np.float32(1), "half": np.float32(0.5),
    }
    case("block_sdpa", [2, t, d], nodes, constants, opset=18)

    # what looks like attention and is none: its scale is not that of its width
    nodes = [
        ("Reshape", ["x", "heads"], ["x4"], {}),
        ("Transpose", ["x4"], ["xt"], {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["x4"], ["xk"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["xt", "xk"], ["scores"], {}),
        ("Mul", ["scores", "scale"], ["scaled"], {}),
        ("Softmax", ["scaled"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "xt"], ["mixed"], {}),
        ("Transpose", ["mixed"], ["mixed_t"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["mixed_t", "join"], ["y"], {}),
    ]
    constants = {"heads": ints(0, 0, heads, hd), "join": ints(0, 0, d), "scale": np.float32(0.3)}
    case("block_not_attention", [2, t, d], nodes, constants)
    band = np.abs(np.subtract.outer(np.arange(t), np.arange(t))) <= 1
    nodes[4:6] = [
        ("Mul", ["scores", "scale"], ["scaled0"], {}),
        ("Where", ["band", "scaled0", "low"], ["scaled"], {}),
        ("Softmax", ["scaled"], ["p"], {"axis": -1}),
    ]
    constants |= {"scale": np.float32(hd**-0.5), "band": band, "low": np.float32(-1e9)}
    case("block_not_causal", [2, t, d], nodes, constants)

    # a residual network as PyTorch writes it, norms not folded
    norm = lambda n, c: {f"{n}.s": 1 + weights(c, scale=0.1), f"{n}.b": weights(c), f"{n}.m": weights(c), f"{n}.v": np.abs(weights(c)) + np.float32(0.5)}
    bn = lambda x, n: ("BatchNormalization", [x, f"{n}.s", f"{n}.b", f"{n}.m", f"{n}.v"], [n], {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0})
    conv = lambda x, n, k, s: ("Conv", [x, f"{n}.w"], [n], {"dilations": [1, 1], "group": 1, "kernel_shape": [k, k], "pads": [k // 2] * 4, "strides": [s, s]})
    nodes = [
        conv("x", "c1", 7, 2), bn("c1", "b1"), ("Relu", ["b1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2], "dilations": [1, 1], "ceil_mode": 0}),
        conv("p1", "c2", 3, 2), bn("c2", "b2"), ("Relu", ["b2"], ["r2"], {}),
        conv("r2", "c3", 3, 1), bn("c3", "b3"),
        conv("p1", "c4", 1, 2), bn("c4", "b4"),
        ("Add", ["b3", "b4"], ["sum"], {}), ("Relu", ["sum"], ["r3"], {}),
        ("GlobalAveragePool", ["r3"], ["pool"], {}), ("Flatten", ["pool"], ["flat"], {"axis": 1}),
        ("Gemm", ["flat", "fc.w", "fc.b"], ["y"], {"alpha": 1.0, "beta": 1.0, "transB": 1}),
    ]
    constants = {
        "c1.w": weights(4, 3, 7, 7, scale=0.1), "c2.w": weights(6, 4, 3, 3), "c3.w": weights(6, 6, 3, 3), "c4.w": weights(6, 4, 1, 1),
        **norm("b1", 4), **norm("b2", 6), **norm("b3", 6), **norm("b4", 6), "fc.w": weights(5, 6), "fc.b": weights(5),
    }
    case("block_resnet", [1, 3, 24, 24], nodes, constants)


def main():
    HERE.mkdir(exist_ok=True)
    for old in [*HERE.glob("*.onnx"), *HERE.glob("*.f32")]:
        old.unlink()
    conv = {"w": weights(4, 3, 3, 2), "b": weights(4)}
    case("conv", [2, 3, 5, 6], one("Conv", ["x", "w", "b"]), conv)
    case("conv_stride_pad", [1, 3, 7, 6], one("Conv", ["x", "w", "b"], strides=[2, 3], pads=[1, 0, 2, 1]), conv)
    case("conv_dilation", [1, 3, 8, 7], one("Conv", ["x", "w"], dilations=[2, 3], pads=[2, 1, 0, 3]), {"w": conv["w"]})
    case("conv_groups", [1, 4, 5, 5], one("Conv", ["x", "w", "b"], group=2, pads=[1] * 4), {"w": weights(6, 2, 3, 3), "b": weights(6)})
    case("conv_depthwise", [1, 4, 6, 5], one("Conv", ["x", "w"], group=4, strides=[2, 2], pads=[1] * 4), {"w": weights(8, 1, 3, 3)})
    case("conv_same_upper", [1, 2, 6, 7], one("Conv", ["x", "w"], auto_pad="SAME_UPPER", strides=[2, 3]), {"w": weights(3, 2, 3, 4)})
    case("conv_same_lower", [1, 2, 6, 7], one("Conv", ["x", "w"], auto_pad="SAME_LOWER", strides=[2, 1]), {"w": weights(3, 2, 3, 4)})
    case("conv_valid", [1, 2, 6, 7], one("Conv", ["x", "w"], auto_pad="VALID", strides=[2, 2]), {"w": weights(3, 2, 3, 4)})
    case("maxpool", [1, 2, 6, 5], one("MaxPool", ["x"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0]))
    case("maxpool_ceil", [1, 2, 6, 7], one("MaxPool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 0, 1], ceil_mode=1))
    case("avgpool", [1, 2, 5, 6], one("AveragePool", ["x"], kernel_shape=[2, 3], strides=[2, 2]))
    case("avgpool_pads", [1, 2, 5, 6], one("AveragePool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 2, 1, 0]))
    case("avgpool_pads_counted", [1, 2, 5, 6], one("AveragePool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 2, 1, 0], count_include_pad=1))
    case("avgpool_same", [1, 2, 5, 6], one("AveragePool", ["x"], kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"))
    case("global_avgpool", [2, 3, 4, 5], one("GlobalAveragePool", ["x"]))
    case("softmax_last", [2, 3, 4], one("Softmax", ["x"]))
    case("softmax_middle", [2, 3, 4], one("Softmax", ["x"], axis=1))
    case("softmax_first", [2, 3, 4], one("Softmax", ["x"], axis=-3))
    case("softmax_old", [3, 5], one("Softmax", ["x"]), opset=11)
    gemm = {"w": weights(5, 4), "b": weights(4)}
    case("gemm", [3, 5], one("Gemm", ["x", "w", "b"]), gemm)
    case("gemm_transposed", [5, 3], one("Gemm", ["x", "w", "b"], transA=1, transB=1), {"w": weights(4, 5), "b": weights(1, 4)})
    case("gemm_alpha_beta", [3, 5], one("Gemm", ["x", "w", "b"], alpha=0.5, beta=-2.0), gemm)
    case("gemm_scalar", [3, 5], one("Gemm", ["x", "w", "b"], alpha=0.25, transB=1), {"w": weights(4, 5), "b": np.float32(0.75)})
    case("gemm_column", [3, 5], one("Gemm", ["x", "w", "b"], beta=3.0), {"w": gemm["w"], "b": weights(3, 1)})
    case("gemm_bare", [3, 5], one("Gemm", ["x", "w"]), {"w": gemm["w"]})
    norm = {"s": weights(3), "b": weights(3), "m": weights(3), "v": np.abs(weights(3)) + np.float32(0.1)}
    case("batchnorm", [2, 3, 2, 4], one("BatchNormalization", ["x", "s", "b", "m", "v"], epsilon=0.01), norm)
    case("transpose", [2, 3, 4, 5], one("Transpose", ["x"], perm=[0, 3, 1, 2]))
    case("transpose_reversed", [2, 3, 4], one("Transpose", ["x"]))
    case("flatten", [2, 3, 4], one("Flatten", ["x"]))
    case("flatten_last", [2, 3, 4], one("Flatten", ["x"], axis=-1))
    case("relu", [3, 7], one("Relu", ["x"]))
    case("clip_relu", [3, 7], one("Clip", ["x", "low"]), {"low": np.float32(0)})
    case("add_broadcast", [2, 3, 4], one("Add", ["c", "x"]), {"c": weights(3, 1)})
    case("mul_self", [2, 3], one("Mul", ["x", "x"]))
    case("reshape", [2, 3, 4], one("Reshape", ["x", "to"]), {"to": np.array([0, -1, 2], np.int64)})
    case(
        "matmul_bias",
        [2, 5],
        [
            ("MatMul", ["x", "w"], ["t"], {}),
            ("Add", ["t", "b"], ["u"], {}),
            ("Dropout", ["u"], ["v"], {}),
            ("Identity", ["v"], ["y"], {}),
        ],
        gemm,
    )
    case(
        "constants",
        [1, 2, 3, 3],
        [
            ("Constant", [], ["to"], {"value_ints": [1, 18]}),
            ("Constant", [], ["axes"], {"value": nh.from_array(np.array([1, 2], np.int64))}),
            ("Reshape", ["x", "to"], ["t"], {}),
            ("Unsqueeze", ["t", "axes"], ["u"], {}),
            ("Squeeze", ["u", "axes"], ["y"], {}),
        ],
    )
    singles()
    blocks()
    readme = [
        "# Single operators",
        "",
        "<!-- Written by ../make_ops.py; edit there. -->",
        "",
        "One tiny model a case (`.onnx`), its input (`.x.f32`) and what onnxruntime gives for it without optimisation",
        "(`.y.f32`); both little-endian float32 in row-major order. Weights and inputs are seeded random numbers; nothing",
        "here comes from anywhere else.",
        "",
        f"Made with numpy {np.__version__}, onnx {onnx.__version__}, onnxruntime {ort.__version__}.",
        "",
        "| case | operators | output |",
        "|---|---|---|",
        *[f"| {n} | {op} | {' x '.join(map(str, s))} |" for n, op, s in CASES],
    ]
    (HERE / "README.md").write_text("\n".join(readme) + "\n")


if __name__ == "__main__":
    main()
