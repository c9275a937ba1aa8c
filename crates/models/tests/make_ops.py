"""Makes tests/data: one tiny ONNX file a case, with a random input and onnxruntime's output.

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


def case(name, x, nodes, constants=None, opset=17):
    """`nodes`: (op, inputs, outputs, attributes); the model reads `x` and gives `y`."""
    made = [h.make_node(op, i, o, name=f"{op.lower()}{n}", **a) for n, (op, i, o, a) in enumerate(nodes)]
    init = [nh.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = h.make_graph(
        made,
        name,
        [h.make_tensor_value_info("x", T.FLOAT, x)],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        init,
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], producer_name="make_ops")
    model.ir_version = 8
    # no optimisation: what the operators themselves give
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = RNG.standard_normal(x).astype(np.float32)
    (y,) = session.run(None, {"x": values})
    for size in y.shape:
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    (HERE / f"{name}.onnx").write_bytes(data)
    (HERE / f"{name}.x.f32").write_bytes(values.tobytes())
    (HERE / f"{name}.y.f32").write_bytes(y.astype("<f4").tobytes())
    CASES.append((name, nodes[0][0] if len(nodes) == 1 else ", ".join(n[0] for n in nodes), list(y.shape)))


def one(op, inputs, **attributes):
    return [(op, inputs, ["y"], attributes)]


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
