"""Data movement, windows and reductions."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_models import INT32, INT64, Graph, check, ops

ints = lambda *v: np.array(v, np.int64)  # noqa: E731

MOVES = {
    "slice": ("Slice", [ints(1, 8), ints(9, -20), ints(2, 3), ints(2, -1)], {}),
    "slice to the end": ("Slice", [ints(-3), ints(2**31), ints(-1)], {}),
    "flip": ("Slice", [ints(-1), ints(-(2**31)), ints(1), ints(-1)], {}),
    "pad": ("Pad", [ints(0, 1, 2, 1, 0, 0, 3, 1), np.float32(0.7)], {}),
    "pad edge": ("Pad", [ints(0, 1, 2, 1, 0, 0, 3, 1)], {"mode": "edge"}),
    "pad reflect": ("Pad", [ints(0, 1, 2, 1, 0, 0, 3, 1)], {"mode": "reflect"}),
    "crop": ("Pad", [ints(0, 0, -1, -2, 0, 0, 0, 1)], {}),
    "reshape": ("Reshape", [ints(2, 4, 100)], {}),
    "transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    "squeeze": ("Squeeze", [ints(0)], {}),
    "unsqueeze": ("Unsqueeze", [ints(1, 3)], {}),
    "expand": ("Expand", [ints(3, 8, 10, 10)], {}),
    "expand to a higher rank": ("Expand", [ints(2, 1, 8, 10, 10)], {}),
    "tile": ("Tile", [ints(1, 2, 3, 1)], {}),
    "flatten": ("Flatten", [], {}),
    "gather": ("Gather", [ints(3, 1, -1)], {"axis": 1}),
    "gather one": ("Gather", [np.int64(2)], {"axis": 1}),
    "gather neighbours": ("Gather", [np.array([[2, 3], [4, 5]])], {"axis": 2}),
    "space to depth": ("SpaceToDepth", [], {"blocksize": 2}),
    "depth to space": ("DepthToSpace", [], {"blocksize": 2}),
    "depth to space, columns first": ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
}


@pytest.mark.parametrize("name", MOVES)
def test_movement(name):
    kind, constants, attrs = MOVES[name]
    g = Graph()
    program = check(g.model(g.q(g.op(kind, g.data("x", 1, 8, 10, 10), *map(g.const, constants), **attrs))), steps=0)
    assert not {"requantize", "lut", "add", "mul"} & set(ops(program))


@pytest.mark.parametrize("axis", [1, -1])
def test_concat_of_different_grids_rescales_each_input_once(axis):
    g = Graph()
    parts = [
        g.data("x", 1, 4, 6, scale=0.03),
        g.data("y", 1, 4, 6, scale=0.05, zero_point=4),
        g.const(g.normal(1, 4, 6)),
    ]
    assert ops(check(g.model(g.q(g.op("Concat", *parts, axis=axis), 0.05, 4)))) == {"requantize": 1, "concat": 1}


def test_concat_of_accumulators_rounds_each_once():
    g = Graph()
    x = g.data("x", 1, 4, 6, 6)
    parts = [g.op("Conv", x, g.weight(n, 4, 1, 1)) for n in (3, 5)]
    program = check(g.model(g.q(g.op("Relu", g.op("Concat", *parts, axis=1)), 0.05, -128)))
    assert (
        ops(program) == {"transpose": 2, "conv2d": 2, "requantize": 2, "concat": 1} or ops(program)["requantize"] <= 3
    )


def test_split():
    g = Graph()
    a, b = g.op("Split", g.data("x", 1, 8, 10), g.const(ints(3, 7)), axis=2, outputs=2)
    check(g.model(g.q(g.op("Relu", a)), g.q(g.op("Sigmoid", b), 0.004, -128)))


def test_channel_shuffle_stays_between_two_transposes():
    g = Graph()
    c = g.q(g.op("Conv", g.data("x", 1, 8, 6, 6), g.weight(8, 8, 1, 1)), 0.2)
    v = g.q(g.op("Reshape", c, g.const(ints(1, 2, 4, 6, 6))), 0.2)
    v = g.q(g.op("Transpose", v, perm=[0, 2, 1, 3, 4]), 0.2)
    v = g.q(g.op("Reshape", v, g.const(ints(1, 8, 6, 6))), 0.2)
    check(g.model(g.q(g.op("Conv", v, g.weight(8, 8, 1, 1)), 0.5)))


@pytest.mark.parametrize("dtype", [INT64, INT32])
def test_embedding(dtype):
    g = Graph()
    table = g.op(
        "DequantizeLinear",
        g.const(g.rng.integers(-127, 128, (20, 16)).astype(np.int8)),
        g.const(np.float32(0.02)),
        g.const(np.int8(0)),
    )
    y = g.op("MatMul", g.q(g.op("Gather", table, g.input("ids", 1, 7, dtype=dtype)), 0.02), g.weight(16, 5, axis=1))
    assert ops(check(g.model(g.q(y, 0.1)))) == {"take": 1, "dense": 1, "requantize": 1}


POOLS = {
    "overlapping": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "ceil, padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0], "ceil_mode": 1},
    "same": {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER"},
    "plain": {"kernel_shape": [2, 2], "strides": [2, 2]},
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool over padding"])
def test_pool(name, kind):
    g = Graph()
    extra = {"count_include_pad": 1} if "over" in kind else {}
    check(
        g.model(g.q(g.op(kind.split()[0], g.data("x", 1, 4, 10, 9, zero_point=-5), **POOLS[name], **extra), 0.0371, -5))
    )


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pool_1d(kind):
    g = Graph()
    check(g.model(g.q(g.op(kind, g.data("x", 1, 4, 11), kernel_shape=[3], strides=[2], pads=[1, 1]), 0.0371)))


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 4, 9)])
def test_global_pool(kind, shape):
    g = Graph()
    check(g.model(g.q(g.op(kind, g.data("x", *shape)), 0.0371)))


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [(-1,), (2, 3), (1,), (1, 3)], ids=str)
@pytest.mark.parametrize("keep", [0, 1])
def test_reduce(kind, axes, keep):
    g = Graph()
    y = g.op(kind, g.data("x", 2, 3, 4, 5, zero_point=7), g.const(ints(*axes)), keepdims=keep)
    check(g.model(g.q(y, 0.05)))


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_argmax_is_an_integer_output(kind):
    g = Graph()
    scores = g.q(g.op("Conv", g.data("x", 1, 4, 5, 5), g.weight(6, 4, 1, 1)), 0.1)
    program = check(g.model(g.op(kind, scores, axis=1, keepdims=0), dtype=INT64), steps=0)
    assert program.info["outputs"] == {}


@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("size", [(20, 18), (15, 7), (5, 3)], ids=str)
def test_resize(mode, coordinates, size):
    g = Graph()
    y = g.op(
        "Resize",
        g.data("x", 1, 4, 10, 9),
        None,
        None,
        g.const(ints(1, 4, *size)),
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )
    check(g.model(g.q(y, 0.0371)), mean=0.2)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_1d(mode):
    g = Graph()
    y = g.op("Resize", g.data("x", 1, 4, 10), None, g.const(np.float32([1, 1, 2])), mode=mode)
    check(g.model(g.q(y, 0.0371)))
