"""Results that kernels write into a frame, margins included, against their numpy meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from kernel_harness import Case, check_cases
from linear_cases import Cases
from qcompile.kernels.program import Node
from qcompile.targets import Target

ONE = (1, 1, 1, 1)


def framed(c: Cases, head: tuple[Node, dict, dict], channels: int, pads: tuple[int, ...], **requantize) -> Case:
    """The head, a requantize and a pad."""
    rq, constants = c.requantize(head[0].name, channels, shift=12, **requantize)
    return c.fuse(head, [rq, pad(c, rq.name, pads)], {}, constants)


def pad(c: Cases, value: str, pads: tuple[int, ...], fill: int = 33) -> Node:
    top, left, bottom, right = pads
    attrs = {"before": [0, top, left, 0], "after": [0, bottom, right, 0], "mode": "constant", "value": c.low + fill}
    return Node(c.name("pad"), "pad", (value,), attrs)


def dense(c: Cases, shape: tuple[int, ...], channels: int, bits: int = 8) -> tuple[Node, dict, dict]:
    """On an image [N, H, W, C]."""
    node, _, constants = c.dense(1, shape[-1], channels)
    if bits < 8:
        constants["w"] = few_bits(c, constants["w"], bits)
    return node, {"x": c.activation(shape)}, constants


def few_bits(c: Cases, weights: np.ndarray, bits: int) -> np.ndarray:
    limit = 2 ** (bits - 1) - 1
    return c.rng.integers(-limit, limit + 1, weights.shape).astype(np.int8)


def test_pointwise(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    cases = []
    for shape, channels, pads in (
        ((1, 8, 16, 32), 64, ONE),  # rows of whole tiles
        ((1, 5, 7, 16), 24, ONE),  # rows that end inside tiles
        ((2, 9, 3, 16), 37, (0, 1, 1, 2)),  # several rows in a tile, several images
        ((3, 6, 1, 20), 5, (2, 0, 0, 0)),
        ((1, 1, 1, 8), 3, ONE),
        ((1, 1, 50, 16), 16, (0, 16, 0, 16)),
        ((2, 4, 4, 8), 1, (1, 0, 0, 1)),
        ((1, 2, 2, 4), 2, (3, 3, 3, 3)),
        ((1, 30, 34, 8), 96, ONE),  # large enough for threads
        ((2, 24, 21, 64), 100, ONE),
    ):
        cases.append(framed(c, c.conv(shape, channels, (1, 1)), channels, pads))
        cases.append(framed(c, dense(c, shape, channels), channels, pads))
    check_cases(cases, target, tmp_path)


def test_convolutions(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    cases = []
    for shape, channels, kernel, rest, pads in (
        ((1, 8, 8, 16), 32, (3, 3), {"pads": ONE}, ONE),
        ((2, 7, 9, 3), 16, (3, 3), {"strides": (2, 2), "pads": (0, 0, 1, 1)}, ONE),
        ((1, 11, 9, 1), 64, (10, 4), {"strides": (2, 2), "pads": (5, 1, 5, 1)}, ONE),
        ((2, 9, 9, 8), 40, (3, 3), {"dilations": (2, 2)}, (2, 1, 0, 3)),
        ((2, 6, 7, 12), 12, (3, 3), {"groups": 4, "pads": ONE}, ONE),
        ((1, 6, 7, 32), 64, (1, 1), {"groups": 2}, ONE),
        ((1, 9, 9, 16), 33, (1, 1), {"strides": (2, 2)}, ONE),
        ((2, 20, 13, 16), 50, (3, 3), {"pads": ONE}, (2, 2, 2, 2)),
    ):
        cases.append(framed(c, c.conv(shape, channels, kernel, **rest), channels, pads))
    for dtype in ("int8", "uint8"):
        head = c.conv((1, 5, 6, 16), 20, (1, 1))
        rq, constants = c.requantize(head[0].name, 20, shift=12, dtype=dtype)
        last = pad(c, rq.name, ONE)
        last.attrs["value"] = int(np.iinfo(dtype).min) + 200
        cases.append(c.fuse(head, [rq, last], {}, constants))
    check_cases(cases, target, tmp_path)


def test_few_bits(target: Target, tmp_path: Path) -> None:
    """Weights that are decoded first, in registers, or multiplied as digits."""
    c = Cases(target)
    cases = []
    for bits in (2, 3, 4):
        for shape in ((1, 6, 7, 64), (2, 1, 1, 64), (1, 1, 2, 128), (1, 2, 3, 256)):
            cases.append(framed(c, dense(c, shape, 48, bits), 48, ONE))
        node, arrays, constants = c.conv((2, 6, 7, 32), 48, (3, 3))
        constants["w"] = few_bits(c, constants["w"], bits)
        cases.append(framed(c, (node, arrays, constants), 48, ONE))
    check_cases(cases, target, tmp_path)


def test_operands(target: Target, tmp_path: Path) -> None:
    """Operands of the epilogue lie as they do without a frame."""
    c = Cases(target)
    cases = []
    for channels in (16, 37, 64):
        head = c.conv((2, 5, 6, 16), channels, (1, 1))
        name = c.name("res")
        attrs = {"r_zero_point": c.low + 9, "r_multiplier": 5000, "shift": 11, "pre": 1, **c.bounds()}
        add = Node(name, "add_residual", (head[0].name, name + "_r", name + "_m"), attrs)
        lut, table = c.lut(name)
        residual = {name + "_r": c.activation((2, 5, 6, channels))}
        constants = {name + "_m": c.multiplier(channels) // 8} | table
        cases.append(c.fuse(head, [add, lut, pad(c, lut.name, ONE)], residual, constants))
    check_cases(cases, target, tmp_path)
