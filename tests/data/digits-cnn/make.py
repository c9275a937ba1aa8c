#!/usr/bin/env python3
"""Train the digits CNN and write the test data of this folder and of ../external.

Made with Python 3.11 and the versions in requirements.txt:
    numpy==2.4.6 scikit-learn==1.9.1 onnx==1.23.2 onnxruntime==1.32.0

Usage:
    python -m pip install -r requirements.txt
    python make.py

Written here:      model.onnx, input.npz, output.npz, labels.txt, README.md
Written alongside: ../external/model.onnx, ../external/weights.bin (the same
                   network, all weights in an external data file), README.md

Training is plain numpy in float64, seeded; the weights are rounded to float32
once, before anything is measured or exported. Every figure in the README files is
measured by this script from the exported float32 model run by onnxruntime.
"""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

SEED = 20
TRAIN, TEST = 1400, 397
EPOCHS, BATCH = 30, 50
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9
ITEMS = 16
MIN_ACCURACY = 0.95

HERE = Path(__file__).resolve().parent
EXTERNAL = HERE.parent / "external"


# --- Layers: each forward returns (output, what its backward needs) -------------


def conv_forward(x, w, b=None):
    """3x3 convolution, stride 1, padding 1. x [N,C,H,W], w [K,C,3,3]."""
    n, c, h, wd = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    cols = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wd, c * 9)
    y = cols @ w.reshape(len(w), -1).T
    if b is not None:
        y = y + b
    return y.reshape(n, h, wd, len(w)).transpose(0, 3, 1, 2), (cols, x.shape)


def conv_backward(dy, w, saved):
    cols, (n, c, h, wd) = saved
    rows = dy.transpose(0, 2, 3, 1).reshape(n * h * wd, len(w))
    dw = (rows.T @ cols).reshape(w.shape)
    dcols = (rows @ w.reshape(len(w), -1)).reshape(n, h, wd, c, 3, 3)
    dpadded = np.zeros((n, c, h + 2, wd + 2), dy.dtype)
    for i in range(3):
        for j in range(3):
            dpadded[:, :, i : i + h, j : j + wd] += dcols[..., i, j].transpose(0, 3, 1, 2)
    return dpadded[:, :, 1:-1, 1:-1], dw, rows.sum(0)


def pool_forward(x):
    """2x2 max pooling, stride 2; the gradient goes to the first maximum."""
    n, c, h, w = x.shape
    windows = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    windows = windows.reshape(n, c, h // 2, w // 2, 4)
    return windows.max(-1), (windows.argmax(-1), x.shape)


def pool_backward(dy, saved):
    which, (n, c, h, w) = saved
    dx = np.zeros(dy.shape + (4,), dy.dtype)
    np.put_along_axis(dx, which[..., None], dy[..., None], -1)
    return dx.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def per_channel(v):
    return v[None, :, None, None]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# --- Training -------------------------------------------------------------------


def initial_parameters(rng):
    def he(*shape):
        return rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape)

    parameters = {
        "conv1.weight": he(8, 1, 3, 3),
        "bn1.scale": np.ones(8),
        "bn1.bias": np.zeros(8),
        "conv2.weight": he(16, 8, 3, 3),
        "conv2.bias": np.zeros(16),
        "fc.weight": he(10, 64),
        "fc.bias": np.zeros(10),
    }
    statistics = {"bn1.mean": np.zeros(8), "bn1.var": np.ones(8)}
    return parameters, statistics


def loss_and_gradients(p, s, x, labels):
    """Mean cross-entropy of one batch and its gradients; updates the statistics s."""
    c1, saved_c1 = conv_forward(x, p["conv1.weight"])
    mean, var = c1.mean((0, 2, 3)), c1.var((0, 2, 3))
    inv = 1.0 / np.sqrt(var + BN_EPSILON)
    norm = (c1 - per_channel(mean)) * per_channel(inv)
    count = c1.size // c1.shape[1]
    s["bn1.mean"] = BN_MOMENTUM * s["bn1.mean"] + (1 - BN_MOMENTUM) * mean
    s["bn1.var"] = BN_MOMENTUM * s["bn1.var"] + (1 - BN_MOMENTUM) * var * count / (count - 1)
    r1 = np.maximum(norm * per_channel(p["bn1.scale"]) + per_channel(p["bn1.bias"]), 0.0)
    p1, saved_p1 = pool_forward(r1)
    c2, saved_c2 = conv_forward(p1, p["conv2.weight"], p["conv2.bias"])
    r2 = np.maximum(c2, 0.0)
    p2, saved_p2 = pool_forward(r2)
    flat = p2.reshape(len(x), -1)
    probabilities = softmax(flat @ p["fc.weight"].T + p["fc.bias"])
    each = np.arange(len(x))
    loss = -np.log(probabilities[each, labels]).mean()

    g = {}
    dz = probabilities.copy()
    dz[each, labels] -= 1.0
    dz /= len(x)
    g["fc.weight"], g["fc.bias"] = dz.T @ flat, dz.sum(0)
    d = pool_backward((dz @ p["fc.weight"]).reshape(p2.shape), saved_p2) * (r2 > 0)
    d, g["conv2.weight"], g["conv2.bias"] = conv_backward(d, p["conv2.weight"], saved_c2)
    d = pool_backward(d, saved_p1) * (r1 > 0)
    g["bn1.scale"], g["bn1.bias"] = (d * norm).sum((0, 2, 3)), d.sum((0, 2, 3))
    d = per_channel(p["bn1.scale"] * inv) * (
        d - per_channel(g["bn1.bias"] / count) - norm * per_channel(g["bn1.scale"] / count)
    )
    _, g["conv1.weight"], _ = conv_backward(d, p["conv1.weight"], saved_c1)
    return loss, g


def train(rng, x, labels):
    """Adam with decoupled weight decay and a cosine learning rate; float32 weights."""
    p, s = initial_parameters(rng)
    first = {k: np.zeros_like(v) for k, v in p.items()}
    second = {k: np.zeros_like(v) for k, v in p.items()}
    step, steps = 0, EPOCHS * (len(x) // BATCH)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in rng.permutation(len(x)).reshape(-1, BATCH):
            loss, g = loss_and_gradients(p, s, x[batch], labels[batch])
            total += loss
            rate = LEARNING_RATE * 0.5 * (1.0 + np.cos(np.pi * step / steps))
            step += 1
            for k in p:
                first[k] = 0.9 * first[k] + 0.1 * g[k]
                second[k] = 0.999 * second[k] + 0.001 * g[k] ** 2
                update = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
                decay = WEIGHT_DECAY if k.endswith("weight") else 0.0
                p[k] = p[k] - rate * (update + decay * p[k])
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1:2}: mean training loss {total * BATCH / len(x):.4f}")
    return {k: v.astype(np.float32) for k, v in (p | s).items()}


def check_gradients(rng, x, labels):
    """Every gradient against a central difference at a few entries."""
    p, s = initial_parameters(rng)
    _, g = loss_and_gradients(p, dict(s), x, labels)
    for k in p:
        for _ in range(4):
            at = tuple(rng.integers(0, n) for n in p[k].shape)
            kept, sides = p[k][at], []
            for h in (1e-6, -1e-6):
                p[k][at] = kept + h
                sides.append(loss_and_gradients(p, dict(s), x, labels)[0])
            p[k][at] = kept
            difference = (sides[0] - sides[1]) / 2e-6
            assert abs(difference - g[k][at]) < 1e-6 + 1e-4 * abs(g[k][at]), (k, at, difference, g[k][at])


def infer(w, x):
    """The exported network in float64 numpy, to check onnxruntime against."""
    w = {k: v.astype(np.float64) for k, v in w.items()}
    y, _ = conv_forward(x.astype(np.float64), w["conv1.weight"])
    y = (y - per_channel(w["bn1.mean"])) / np.sqrt(per_channel(w["bn1.var"]) + BN_EPSILON)
    y = y * per_channel(w["bn1.scale"]) + per_channel(w["bn1.bias"])
    y, _ = pool_forward(np.maximum(y, 0.0))
    y, _ = conv_forward(y, w["conv2.weight"], w["conv2.bias"])
    y, _ = pool_forward(np.maximum(y, 0.0))
    return softmax(y.reshape(len(x), -1) @ w["fc.weight"].T + w["fc.bias"])


# --- Export ---------------------------------------------------------------------


def build_model(w):
    conv = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    pool = dict(kernel_shape=[2, 2], strides=[2, 2])
    bn = ["bn1.scale", "bn1.bias", "bn1.mean", "bn1.var"]
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "conv1.weight"], ["conv1"], name="conv1", **conv),
        node("BatchNormalization", ["conv1", *bn], ["bn1"], name="bn1", epsilon=BN_EPSILON, momentum=BN_MOMENTUM),
        node("Relu", ["bn1"], ["relu1"], name="relu1"),
        node("MaxPool", ["relu1"], ["pool1"], name="pool1", **pool),
        node("Conv", ["pool1", "conv2.weight", "conv2.bias"], ["conv2"], name="conv2", **conv),
        node("Relu", ["conv2"], ["relu2"], name="relu2"),
        node("MaxPool", ["relu2"], ["pool2"], name="pool2", **pool),
        node("Flatten", ["pool2"], ["flatten"], name="flatten", axis=1),
        node("Gemm", ["flatten", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
        node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    order = ["conv1.weight", *bn, "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"]
    graph = helper.make_graph(
        nodes,
        "digits-cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(w[k], k) for k in order],
    )
    model = helper.make_model(
        graph, producer_name="meshloom-tests", ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run(session, x):
    return session.run(["probabilities"], {"image": x})[0]


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main():
    rng = np.random.default_rng(SEED)
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target
    assert images.shape == (TRAIN + TEST, 1, 8, 8)
    order = rng.permutation(len(images))
    train_set, test_set = order[:TRAIN], order[TRAIN:]

    check_gradients(np.random.default_rng(SEED + 1), images[train_set[:20]].astype(np.float64), labels[train_set[:20]])
    w = train(rng, images[train_set].astype(np.float64), labels[train_set])
    model = build_model(w)

    onnx.save_model(model, HERE / "model.onnx")
    session = open_session(HERE / "model.onnx")
    result = run(session, images[test_set])
    worst = np.abs(result - infer(w, images[test_set])).max()
    assert worst < 1e-5, worst
    right = int((result.argmax(1) == labels[test_set]).sum())
    right_train = int((run(session, images[train_set]).argmax(1) == labels[train_set]).sum())
    accuracy = right / TEST
    print(f"test accuracy {right}/{TEST} = {accuracy:.4f} (training {right_train}/{TRAIN})")
    print(f"largest difference, onnxruntime float32 to numpy float64: {worst:.1e}")
    assert accuracy >= MIN_ACCURACY, accuracy

    # The first ITEMS images of the test split, each at batch 1.
    chosen = test_set[:ITEMS]
    items = images[chosen][:, None]
    outputs = np.stack([run(session, item) for item in items])
    predictions = outputs[:, 0].argmax(1)
    np.savez(HERE / "input.npz", image=items)
    np.savez(HERE / "output.npz", probabilities=outputs)
    (HERE / "labels.txt").write_text("".join(f"{labels[i]}\n" for i in chosen))

    EXTERNAL.mkdir(exist_ok=True)
    (EXTERNAL / "weights.bin").unlink(missing_ok=True)  # save_model appends to a file already there
    onnx.save_model(
        model,
        EXTERNAL / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    onnx.checker.check_model(str(EXTERNAL / "model.onnx"), full_check=True)
    external = open_session(EXTERNAL / "model.onnx")
    assert all(np.array_equal(run(external, item), out) for item, out in zip(items, outputs))

    parameters = sum(v.size for v in w.values())
    (HERE / "README.md").write_text(
        README.format(
            parameters=parameters,
            accuracy=f"{right}/{TEST} = {accuracy:.4f}",
            train_accuracy=f"{right_train}/{TRAIN} = {right_train / TRAIN:.4f}",
            worst=f"{worst:.1e}",
            items=ITEMS,
            labels=" ".join(str(labels[i]) for i in chosen),
            predictions=" ".join(str(i) for i in predictions),
            indices=" ".join(str(i) for i in chosen),
            seed=SEED,
            epochs=EPOCHS,
            batch=BATCH,
            train=TRAIN,
            test=TEST,
            python=platform.python_version(),
            numpy=np.__version__,
            sklearn=sklearn.__version__,
            onnx=onnx.__version__,
            ort=onnxruntime.__version__,
        )
    )
    (EXTERNAL / "README.md").write_text(EXTERNAL_README)


README = """\
# digits-cnn

<!-- Written by make.py; edit there. -->

A small trained CNN on the 8x8 handwritten digits, with inputs and expected outputs.

| File | Content |
|---|---|
| `make.py` | trains the network and writes everything else here except `requirements.txt` |
| `requirements.txt` | the versions used |
| `model.onnx` | the network, {parameters} float32 values in initializers; opset 17, IR 8; input `image` [N,1,8,8], output `probabilities` [N,10], N symbolic |
| `input.npz` | `image`, float32 [{items},1,1,8,8]: {items} test images; the first axis is the item, each item has batch 1 |
| `output.npz` | `probabilities`, float32 [{items},1,10]: onnxruntime's outputs, each item run alone |
| `labels.txt` | the true digit of each item, one a line |

## Network

Conv 1->8 3x3 pad 1 (no bias), BatchNormalization (its own node, running statistics), Relu, MaxPool 2x2,
Conv 8->16 3x3 pad 1 (bias), Relu, MaxPool 2x2, Flatten, Gemm 64->10 (transB=1), Softmax.

## Accuracy

Measured on the exported float32 model run by onnxruntime:

- test: {accuracy}
- training: {train_accuracy}
- largest difference over the test split between onnxruntime (float32) and numpy (float64, same weights): {worst}

The {items} items are the first {items} of the test split:

- indices in the data set: {indices}
- labels: {labels}
- predictions: {predictions}

## How it was made

`python make.py`, with seed {seed} for the {train}/{test} split, the initial weights and the batch order. Pixels
are divided by 16. Training is plain numpy in float64 (Adam, {epochs} epochs of batches of {batch}, cosine
learning rate), rounded to float32 at the end. The same versions on the same kind of machine give the same
files; other versions or another BLAS may differ in the last digits of the weights.

Made with Python {python}, numpy {numpy}, scikit-learn {sklearn}, onnx {onnx}, onnxruntime {ort}.

## Origin and licence

The images are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine
Learning Repository, <https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits>), licensed
CC BY 4.0, as distributed with scikit-learn (BSD-3-Clause, `sklearn.datasets.load_digits`). Changes: pixels scaled
to 0..1, {items} of 1797 images kept.
The network was trained by `make.py` and carries this project's licence.
"""

EXTERNAL_README = """\
# external

<!-- Written by ../digits-cnn/make.py; edit there. -->

The network of `../digits-cnn` with every initializer in the external data file `weights.bin`
(`onnx.save_model(..., save_as_external_data=True, size_threshold=0)`). Its outputs for
`../digits-cnn/input.npz` in onnxruntime are identical to `../digits-cnn/output.npz`.
Origin and licence: see `../digits-cnn/README.md`.
"""


if __name__ == "__main__":
    main()
