"""Attention: spelled out, and the operators for it."""

from __future__ import annotations

import numpy as np

from fuzz.build import INTEGER, MICROSOFT, Build
from fuzz.operators import draws


def _sequence(b: Build) -> tuple[str, int, int, int]:
    """A tensor [batch, time, width] whose width heads divide."""
    x = b.take(ranks=(3,))
    batch, time, width = b.shape(x)
    if time > 40 or batch > 3:
        x = b.input([b.whole(1, 2), b.size(35), b.size(40)])
        batch, time, width = b.shape(x)
    low, high = b.span(x)
    if max(-low, high) > 5:  # scores of hundreds would make softmax a choice of one
        x = b.add("Mul", [x, b.constant(3 / max(-low, high), np.float32)])
    return x, batch, time, width


def _project(b: Build, x: str, out: int) -> str:
    width = b.shape(x)[-1]
    y = b.add("MatMul", [x, b.weight([width, out], width, axis=1)])
    return b.add("Add", [y, b.weight([out], 4)]) if b.chance(0.6) else y


@draws("AttentionBlock", weight=2.0)
def block(b: Build, op: str) -> str:
    """softmax(q k' * factor + mask) v for some heads, projected and added."""
    x, batch, time, width = _sequence(b)
    heads, size = b.one_of((1, 1, 2, 3)), b.one_of((1, 4, 5, 8, 16, 17))
    inner = heads * size

    def split(y: str, perm: list[int]) -> str:
        return b.add("Transpose", [b.add("Reshape", [y, b.ints([batch, time, heads, size])])], perm=perm)

    q = split(_project(b, x, inner), [0, 2, 1, 3])
    k = split(_project(b, x, inner), [0, 2, 3, 1])
    v = split(_project(b, x, inner), [0, 2, 1, 3])
    factor = b.constant(size**-0.5, np.float32)
    scores = b.add("Mul", [b.add("MatMul", [q, k]), factor])
    way = b.rng.random()
    if way < 0.3:
        mask = np.triu(np.full((time, time), b.one_of((-1e4, -1e9, -3.4e38))), 1)
        scores = b.add("Add", [scores, b.constant(mask, np.float32)])
    elif way < 0.5:
        kept = b.add("Cast", [b.input([batch, 1, 1, time], INTEGER, 2)], to=1)
        away = b.add("Sub", [b.constant(1.0, np.float32), kept])
        scores = b.add("Add", [scores, b.add("Mul", [away, b.constant(-1e4, np.float32)])])
    y = b.add("MatMul", [b.add("Softmax", [scores], axis=-1), v])
    flat = b.add("Reshape", [b.add("Transpose", [y], perm=[0, 2, 1, 3]), b.ints([batch, time, inner])])
    return b.add("Add", [x, _project(b, flat, width)]) if b.chance(0.6) else _project(b, flat, b.size(33))


@draws("Attention", weight=0.5, since=23)
def attention(b: Build, op: str) -> str:
    batch, heads, time, size = b.whole(1, 2), b.one_of((1, 2, 3)), b.size(33), b.one_of((4, 8, 17))
    q, k, v = (b.input([batch, heads, time, size]) for _ in range(3))
    return b.add(op, [q, k, v], is_causal=b.whole(0, 1))


@draws("MultiHeadAttention", weight=0.5)
def multi_head(b: Build, op: str) -> str:
    x, _, _, _ = _sequence(b)
    heads, size = b.one_of((1, 2, 3)), b.one_of((4, 8, 16))
    q, k, v = (_project(b, x, heads * size) for _ in range(3))
    return b.add(op, [q, k, v], domain=MICROSOFT, num_heads=heads)


@draws("EmbedLayerNormalization", weight=0.2)
def embeddings(b: Build, op: str) -> str:
    """Words, places and kinds, added and normalised."""
    batch, time, width, words = b.whole(1, 2), b.size(17), b.one_of((8, 16, 32)), b.size(100)
    ids, kinds = (b.input([batch, time], INTEGER, n, np.int32) for n in (words, 2))
    tables = [b.weight([n, width], 1) for n in (words, time, 2)]
    gamma = b.constant(1 + 0.3 * b.rng.standard_normal(width), np.float32)
    names = [ids, kinds, *tables, gamma, b.weight([width], 4)]
    return b.add("EmbedLayerNormalization", names, outputs=2, domain=MICROSOFT, epsilon=1e-5, keep=2)[0]


@draws("RotaryEmbedding", weight=0.4)
def rotary(b: Build, op: str) -> str:
    """ONNX Runtime's, or spelled out by halves."""
    batch, heads, time, size = b.whole(1, 2), b.one_of((1, 2)), b.size(17), b.one_of((4, 8, 16))
    angles = np.arange(time)[:, None] / 100.0 ** (np.arange(size // 2) / (size // 2))
    x = b.input([batch, heads, time, size])
    if b.chance(0.5):
        cos, sin = (b.constant(f(angles), np.float32) for f in (np.cos, np.sin))
        positions = b.constant(np.tile(np.arange(time), (batch, 1)), np.int64)
        return b.add(op, [x, positions, cos, sin], domain=MICROSOFT)
    first, second = b.add("Split", [x, b.ints([size // 2] * 2)], outputs=2, axis=-1)
    turned = b.add("Concat", [b.add("Neg", [second]), first], axis=-1)
    cos, sin = (b.constant(np.concatenate([f(angles)] * 2, -1), np.float32) for f in (np.cos, np.sin))
    return b.add("Add", [b.add("Mul", [x, cos]), b.add("Mul", [turned, sin])])
