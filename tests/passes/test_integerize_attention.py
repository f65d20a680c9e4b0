"""Softmax, attention and normalisations: masks stay masks, scores stay sums, nothing is normalised in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_models import BOOL, FLOAT, INT64, Graph, check, ops

LARGE = np.float32(np.finfo(np.float32).min)


def attention(g, masked=lambda g, scores: scores, guard=False):
    """softmax(q k^T / 4 + mask) v with Q/DQ where a quantizer puts it."""
    q, k, v = (g.data(n, 1, 2, 8, 16, scale=0.03, zero_point=z) for n, z in zip("qkv", (0, 3, -5)))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = g.q(g.op("Softmax", masked(g, g.op("Mul", scores, g.const(np.float32(0.25)))), axis=-1), 1 / 255, -128)
    if guard:
        weights = g.op("Where", g.op("IsNaN", weights), g.const(np.float32(0)), weights)
        weights = g.q(weights, 1 / 255, -128)
    return g.q(g.op("MatMul", weights, v), 0.0311)


def add_padding(g, scores):
    mask = g.op("Cast", g.input("mask", 1, 1, 1, 8, dtype=INT64), to=FLOAT)
    return g.op("Add", scores, g.op("Mul", g.op("Sub", g.const(np.float32(1)), mask), g.const(LARGE)))


def where_padding(g, scores):
    return g.op("Where", g.input("mask", 1, 1, 1, 8, dtype=BOOL), scores, g.const(LARGE))


def fill_padding(g, scores):
    empty = g.op("Equal", g.input("mask", 1, 1, 1, 8, dtype=INT64), g.const(np.int64(0)))
    return g.op("Where", empty, g.const(np.float32(-np.inf)), scores)


def add_causal(g, scores):
    return g.op("Add", scores, g.const(np.triu(np.full((8, 8), -np.inf, np.float32), 1)))


def where_causal(g, scores):
    return g.op("Where", g.const(np.tri(8, dtype=bool)), scores, g.const(LARGE))


def relative_positions(g, scores):
    return g.op("Add", scores, g.const(g.normal(2, 8, 8)))


MASKS = [add_padding, where_padding, fill_padding, add_causal, where_causal]


def with_mask(model, count=4):
    rng = np.random.default_rng(3)
    feeds = []
    for length in range(8 - count + 1, 9):
        feed = {n: (rng.standard_normal((1, 2, 8, 16)) * 2).astype(np.float32) for n in "qkv"}
        for i in model.graph.input:
            if i.name == "mask":
                dtype = bool if i.type.tensor_type.elem_type == BOOL else np.int64
                feed["mask"] = (np.arange(8) < length).astype(dtype).reshape(1, 1, 1, 8)
        feeds.append(feed)
    return feeds


@pytest.mark.parametrize("masked", MASKS, ids=lambda f: f.__name__)
def test_masked_attention_is_one_op(masked):
    g = Graph()
    model = g.model(attention(g, masked))
    program = check(model, steps=2, feeds=with_mask(model), mean=0.4)
    count = ops(program)
    assert count["attention"] == 1 and not {"softmax", "matmul", "requantize"} & set(count)
    assert next(n for n in program.nodes if n.op == "attention").attrs["has_mask"]


def test_attention_with_position_bias():
    g = Graph()
    model = g.model(attention(g, relative_positions))
    program = check(model, steps=2, feeds=with_mask(model), mean=0.4)
    assert next(n for n in program.nodes if n.op == "attention").attrs["has_bias"]


def test_guards_against_nan_vanish():
    g = Graph()
    model = g.model(attention(g, where_padding, guard=True))
    assert "attention" in ops(check(model, steps=2, feeds=with_mask(model), mean=0.4))


def test_masked_scores_that_are_quantized_keep_their_mask():
    g = Graph()
    scores = g.data("x", 1, 2, 8, 8, scale=0.05)
    masked = g.q(where_causal(g, scores), 0.07)
    program = check(g.model(g.q(g.op("Softmax", masked, axis=-1), 1 / 255, -128)))
    assert ops(program)["where"] == 1


def test_a_mask_scale_beyond_any_score_leaves_equal_weights():
    """What a plain quantizer makes of masks of -3.4e38: every unmasked score becomes the same code."""
    g = Graph()
    masked = g.q(where_causal(g, g.data("x", 1, 2, 8, 8)), float(-LARGE) / 127)
    check(g.model(g.q(g.op("Softmax", masked, axis=-1), 1 / 255, -128)))


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_along_any_axis(kind, axis):
    g = Graph()
    y = g.op(kind, g.data("x", 2, 5, 6, 7, zero_point=9), axis=axis)
    check(g.model(g.q(y, *((1 / 255, -128) if kind == "Softmax" else (0.047, 127)))), mean=0.02)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm(dtype, axis):
    g = Graph()
    shape = (16,) if axis == -1 else (12, 16)
    y = g.op(
        "LayerNormalization",
        g.data("x", 2, 12, 16, zero_point=5),
        g.const(g.normal(*shape)),
        g.const(g.normal(*shape)),
        axis=axis,
    )
    # normalised words hold some 2^10 steps a deviation
    scale, steps, mean = (0.03, 1, 0.02) if dtype == "int8" else (0.002, 2, 0.3)
    program = check(g.model(g.q(y, scale, dtype=dtype)), steps=steps, mean=mean)
    assert ops(program)["layer_norm"] == 1


def test_rms_norm():
    g = Graph()
    y = g.op("RMSNormalization", g.data("x", 2, 12, 16), g.const(g.normal(16)), axis=-1)
    assert ops(check(g.model(g.q(y, 0.03), opset=23)))["layer_norm"] == 1


@pytest.mark.parametrize("shape", [(1, 8, 5, 6), (2, 8, 12)])
def test_instance_norm(shape):
    g = Graph()
    y = g.op("InstanceNormalization", g.data("x", *shape), g.const(g.normal(8)), g.const(g.normal(8)))
    assert ops(check(g.model(g.q(y, 0.03))))["layer_norm"] == 1


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_as_exporters_write_it(groups):
    g = Graph()
    x = g.op("Reshape", g.data("x", 1, 8, 5, 6), g.const(np.array([1, groups, -1])))
    y = g.op("InstanceNormalization", x, g.const(np.ones(groups, np.float32)), g.const(np.zeros(groups, np.float32)))
    y = g.op("Reshape", y, g.const(np.array([1, 8, 5, 6])))
    y = g.op("Add", g.op("Mul", y, g.const(g.normal(8, 1, 1))), g.const(g.normal(8, 1, 1)))
    check(g.model(g.q(y, 0.03)), steps=1, mean=0.1)
