#!/usr/bin/env python3
"""Train a small GPT on generated text and write the test data of this folder.

Made with Python 3.11 and the versions in requirements.txt.

Usage:
    python -m pip install -r requirements.txt
    python make.py          (no GPU is used; a CPU build of torch will do)

Written here: model.onnx, input.npz, output.npz, text.txt, README.md

The text comes from the four sentence forms in `sentences`; a tenth of the sentences of
each form is held out of training. Training is seeded and runs on one thread. Every
figure of the README is measured by this script on held-out text: those of the model
from the exported file run by onnxruntime.
"""

import copy
import platform
import random
import time
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
import torch.nn.functional as F
from torch import nn

SEED = 7
ALPHABET = " .:,+=0123456789abcdefghijklmnoprstuvyz"
LAYERS, WIDTH, HEADS, CONTEXT = 2, 32, 4, 32
TRAIN_SENTENCES, TEST_SENTENCES = 20000, 2000
STEPS, BATCH, WARM_UP = 6000, 64, 200
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.01
OPSET = 18
ITEMS = 4
MIN_GAIN = 0.5  # nats a character below the bigram model

HERE = Path(__file__).resolve().parent


# --- Text -----------------------------------------------------------------------


def sentences():
    """Every sentence of the language, by form."""
    names = ["ann", "ben", "eva", "ida", "jon", "kim", "leo", "mia", "pat", "sam", "tom", "zoe"]
    verbs = ["calls", "feeds", "helps", "likes", "meets", "pays"]
    syllables = [c + v for c, v in product("bdfgklmnprst", "aeiou")]
    return {
        # The names come back in the other order.
        "thanks": [f"{a} {v} {b}, {b} thanks {a}. " for a, v, b in product(names, verbs, names) if a != b],
        # A word of random syllables is repeated.
        "echo": [f"say {a}{b}: {a}{b}. " for a, b in product(syllables, syllables)],
        # Four numbers with a constant step.
        "count": [f"by {s}: {n} {n + s} {n + 2 * s} {n + 3 * s}. " for s, n in product(range(1, 6), range(10, 85))],
        "sum": [f"{a}+{b}={a + b}. " for a, b in product(range(10, 90), range(10))],
    }


def split(rng):
    """The sentences of each form, as (training, held out)."""
    parts = []
    for form in sentences().values():
        form = form[:]
        rng.shuffle(form)
        held_out = len(form) // 10
        parts.append((form[held_out:], form[:held_out]))
    return parts


def draw(rng, forms, count):
    """Sentences of the given forms: the form is drawn first, then one of its sentences."""
    return [rng.choice(rng.choice(forms)) for _ in range(count)]


def encode(text):
    return np.array([ALPHABET.index(c) for c in text], np.int64)


def ngram_losses(train, test):
    """Held-out nats a character of the unigram and bigram frequencies of `train` (add-one)."""
    size = len(ALPHABET)
    pairs = np.ones((size, size))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    single = np.bincount(train, minlength=size) + 1.0
    unigram = -np.log(single / single.sum())[test[1:]].mean()
    bigram = -np.log(pairs / pairs.sum(1, keepdims=True))[test[:-1], test[1:]].mean()
    return unigram, bigram


def grammar_loss(forms, drawn):
    """Nats a character of `drawn` under the true distribution, all earlier text known.

    A full stop ends each sentence and occurs nowhere else, so the text has one reading
    and its probability is the product of those of its sentences.
    """
    size = {sentence: len(form) for form in forms for sentence in form}
    return sum(np.log(len(forms) * size[s]) for s in drawn) / sum(map(len, drawn))


# --- Network: the GPT-2 block structure -------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (
            part.view(n, t, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.qkv(x).split(WIDTH, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(n, t, WIDTH))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(len(ALPHABET), WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET), bias=False)
        self.apply(self.initialise)
        for name, p in self.named_parameters():
            if name.endswith(("proj.weight", "mlp.2.weight")):  # the ends of the residual branches
                nn.init.normal_(p, std=0.02 / (2 * LAYERS) ** 0.5)
        self.head.weight = self.wte.weight  # tied, as in GPT-2

    @staticmethod
    def initialise(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


# --- Training -------------------------------------------------------------------


def rate(step):
    """Factor of the learning rate: linear warm-up, then a cosine to zero."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1.0 + np.cos(np.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def train(text):
    """AdamW on windows at random places of the text."""
    model = TinyGPT()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.99),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    windows = torch.from_numpy(text).unfold(0, CONTEXT + 1, 1)
    total = 0.0
    for step in range(STEPS):
        batch = windows[torch.randint(len(windows), (BATCH,))]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 500 == 499:
            print(f"step {step + 1:4}: mean training loss {total / 500:.4f}", flush=True)
            total = 0.0
    return model.eval()


# --- Export ---------------------------------------------------------------------


def export(model, path):
    """torch.onnx.export's graph as it is, less the notes on where in the source each node is from."""
    ids = torch.zeros(1, CONTEXT, dtype=torch.int64)
    program = torch.onnx.export(
        model, (ids,), dynamo=True, opset_version=OPSET, input_names=["ids"], output_names=["logits"], verbose=False
    )
    proto = program.model_proto
    for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in [*proto.graph.input, *proto.graph.output]:
        value.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)
    return proto


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session, ids):
    return session.run(["logits"], {"ids": ids})[0]


def nats(logits, targets):
    """-ln p(target), logits [..., vocabulary], targets [...]."""
    z = logits.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    return np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets[..., None], -1)[..., 0]


def main():
    start = time.perf_counter()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    parts = split(rng)
    drawn = draw(rng, [p[0] for p in parts], TRAIN_SENTENCES)
    test_drawn = draw(rng, [p[1] for p in parts], TEST_SENTENCES)
    assert not set(drawn) & set(test_drawn)
    assert set("".join(drawn)) == set(ALPHABET), sorted(set(ALPHABET) - set("".join(drawn)))
    text, test = encode("".join(drawn)), encode("".join(test_drawn))
    unigram, bigram = ngram_losses(text, test)
    grammar = grammar_loss(list(sentences().values()), test_drawn)
    print(f"nats a character: unigram {unigram:.4f}, bigram {bigram:.4f}, the grammar itself {grammar:.4f}")

    model = train(text)
    seconds = time.perf_counter() - start
    proto = export(model, HERE / "model.onnx")
    session = open_session(HERE / "model.onnx")

    # All of the held-out text, in windows that follow one another.
    count = (len(test) - 1) // CONTEXT
    ids = test[: count * CONTEXT].reshape(count, 1, CONTEXT)
    targets = test[1 : count * CONTEXT + 1].reshape(count, 1, CONTEXT)
    logits = np.stack([run(session, item) for item in ids])
    losses = nats(logits, targets)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(torch.from_numpy(ids[:, 0])).numpy()[:, None]
    worst = np.abs(logits - exact).max()
    loss, second_half = losses.mean(), losses[..., CONTEXT // 2 :].mean()
    correct = (logits.argmax(-1) == targets).mean()
    print(f"model: {loss:.4f}, second half of the windows {second_half:.4f}, correct {correct:.4f}, {seconds:.0f} s")
    print(f"largest difference, onnxruntime float32 to PyTorch float64: {worst:.1e}")
    assert worst < 1e-3, worst
    assert loss < bigram - MIN_GAIN, (loss, bigram)

    np.savez(HERE / "input.npz", ids=ids[:ITEMS])
    np.savez(HERE / "output.npz", logits=logits[:ITEMS])
    windows = ["".join(ALPHABET[i] for i in [*item[0], last[0, -1]]) for item, last in zip(ids[:ITEMS], targets)]
    (HERE / "text.txt").write_text("".join(f"\"{w}\"\n" for w in windows))

    kinds = [n.op_type for n in proto.graph.node]
    (HERE / "README.md").write_text(
        README.format(
            parameters=sum(p.numel() for p in model.parameters()),
            layers=LAYERS,
            width=WIDTH,
            heads=HEADS,
            context=CONTEXT,
            hidden=4 * WIDTH,
            vocabulary=len(ALPHABET),
            alphabet=ALPHABET,
            items=ITEMS,
            after=CONTEXT + 1,
            opset=proto.opset_import[0].version,
            ir=proto.ir_version,
            nodes=", ".join(f"{k} {kinds.count(k)}" for k in sorted(set(kinds))),
            node_count=len(kinds),
            examples=" ".join(draw(random.Random(0), [f], 1)[0].strip() for f in sentences().values()),
            sizes=", ".join(f"{k} {len(f)}" for k, f in sentences().items()),
            train_characters=len(text),
            test_characters=len(test),
            windows=count,
            unigram=f"{unigram:.4f}",
            bigram=f"{bigram:.4f}",
            loss=f"{loss:.4f}",
            second_half=f"{second_half:.4f}",
            grammar=f"{grammar:.4f}",
            correct=f"{correct:.4f}",
            worst=f"{worst:.1e}",
            item_losses=" ".join(f"{v:.4f}" for v in losses[:ITEMS].mean((1, 2))),
            seed=SEED,
            steps=STEPS,
            batch=BATCH,
            python=platform.python_version(),
            torch=torch.__version__.split("+")[0],
            numpy=np.__version__,
            onnx=onnx.__version__,
            onnxscript=onnxscript.__version__,
            ort=onnxruntime.__version__,
        )
    )


README = """\
# tiny-gpt

<!-- Written by make.py; edit there. -->

A small trained GPT with character tokens, exported by PyTorch, with inputs and expected outputs.

| File | Content |
|---|---|
| `make.py` | makes the text, trains the network and writes everything else here except `requirements.txt` |
| `requirements.txt` | the versions used |
| `model.onnx` | the network, {parameters} float32 parameters; opset {opset}, IR {ir}; input `ids` int64 [1,{context}], output `logits` float32 [1,{context},{vocabulary}] |
| `input.npz` | `ids`, int64 [{items},1,{context}]: {items} windows of held-out text; the first axis is the item, each item has batch 1 |
| `output.npz` | `logits`, float32 [{items},1,{context},{vocabulary}]: onnxruntime's outputs, each item run alone |
| `text.txt` | the {items} windows as text, one a line in quotes, each with the character that follows it ({after} characters): `logits` at position i predict character i + 1, counted from 0 |

Token i is the character at place i of this alphabet of {vocabulary} (the first is the space):

    "{alphabet}"

## Network

GPT-2's structure: token embedding (tied to the output matrix) plus learned positions, {layers} blocks of
pre-LayerNorm causal attention ({heads} heads) and MLP ({width} -> {hidden} -> {width}, GELU by tanh), a last
LayerNorm. Width {width}, context {context}.

`torch.onnx.export` (the default exporter, static shapes) wrote the graph; only its notes on source lines were
removed. It has {node_count} nodes:
{nodes}.
The tied matrix is stored twice, once transposed.

## Loss

Nats a character on {test_characters} characters of held-out text, in {windows} windows of {context} that follow one another
(the first characters of a window are predicted with little context):

| | nats a character |
|---|---|
| unigram frequencies of the training text | {unigram} |
| bigram frequencies of the training text | {bigram} |
| **the exported float32 model, run by onnxruntime** | **{loss}** |
| the same, second half of each window only | {second_half} |
| the grammar itself, with all earlier text known (computed, not trained) | {grammar} |

The most likely character is the right one for {correct} of them. Mean loss of the {items} items: {item_losses}.
Largest difference over the held-out text between onnxruntime (float32) and PyTorch (float64, same weights): {worst}.

## How it was made

`python make.py`, with seed {seed} for the text, the initial weights and the batches. The text is a row of random
sentences of four forms ({sizes} different
sentences), each form as likely as the others. Examples:

    {examples}

A tenth of the sentences of each form is held out: none of them is in the {train_characters} characters of training
text. Training is PyTorch on one thread of a CPU, float32 (AdamW, {steps} steps of {batch} windows, warm-up and
cosine learning rate), a few minutes. The same versions on the same kind of machine give the same files; others may differ in
the digits of the weights, and a little in the loss.

Made with Python {python}, torch {torch}, numpy {numpy}, onnx {onnx}, onnxscript {onnxscript}, onnxruntime {ort}.

## Origin and licence

Text, network and weights were all made by `make.py`, from nothing but its own source; they carry this project's
licence.
"""


if __name__ == "__main__":
    main()
