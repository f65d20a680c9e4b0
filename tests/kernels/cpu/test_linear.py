"""Linear kernels against their numpy meaning, bit for bit, on every instruction set that can run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Case, check_cases
from linear_cases import Cases, epilogue_cases
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, infer_node
from qcompile.targets import Target


def plain(heads) -> list[Case]:
    return [Case(*head) for head in heads]


def test_dense(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    heads = [
        c.dense(m, k, n)
        for m, k, n in (
            (1, 1, 1),
            (1, 640, 128),
            (1, 64, 10),
            (2, 7, 3),
            (3, 33, 17),
            (5, 64, 64),
            (7, 100, 100),
            (9, 17, 48),
            (9, 76, 24),
            (8, 300, 20),
            (31, 128, 49),
            (130, 32, 96),
            (1, 4096, 16),
        )
    ]
    check_cases(plain([*heads, c.dense(4, 1024, 33, edges=True), c.dense(1, 2048, 8, edges=True)]), target, tmp_path)


def test_conv(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    table = (
        (1, 8, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1),
        (3, 16, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1), 1),
        (4, 5, (5, 3), (1, 1), (1, 2), (4, 0, 3, 2), 1),
        (5, 64, (2, 2), (1, 2), (2, 1), (0, 1, 2, 3), 1),
        (16, 17, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
        (16, 12, (5, 3), (1, 1), (1, 1), (2, 1, 2, 1), 1),
        (17, 100, (1, 1), (2, 2), (1, 1), (0, 0, 0, 0), 1),
        (32, 48, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
        (64, 16, (7, 9), (1, 1), (1, 1), (0, 0, 0, 0), 1),
        (100, 3, (3, 1), (1, 1), (1, 1), (1, 0, 1, 0), 1),
        (8, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 2),
        (12, 12, (3, 3), (2, 1), (1, 2), (1, 2, 1, 2), 4),
        (4, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4),
    )
    heads = [c.conv((1, 7, 9, channels), *rest) for channels, *rest in table]
    heads.append(c.conv((3, 1, 40, 6), 9, (1, 9), (1, 2), (1, 1), (0, 4, 0, 4)))
    heads.append(c.conv((2, 5, 5, 64), 32, (3, 3), pads=(1, 1, 1, 1), edges=True))
    check_cases(plain(heads), target, tmp_path)


def test_depthwise(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    table = (
        (1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (3, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1)),
        (16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (17, (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
        (32, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
        (100, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
        (64, (1, 4), (1, 1), (1, 1), (0, 1, 0, 2)),
        (5, (7, 2), (1, 3), (1, 1), (3, 0, 3, 1)),
        (8, (8, 11), (1, 1), (1, 1), (0, 0, 0, 0)),
    )
    heads = [c.conv((2, 8, 11, channels), channels, *rest, channels) for channels, *rest in table]
    heads.append(c.conv((1, 1, 50, 24), 24, (1, 33), pads=(0, 16, 0, 16), groups=24))
    heads.append(c.conv((1, 24, 24, 32), 32, (3, 3), pads=(1, 1, 1, 1), groups=32))  # large enough for threads
    heads.append(c.conv((2, 30, 1, 40), 40, (10, 1), groups=40))  # a column
    heads.append(c.conv((1, 30, 3, 16), 16, (9, 1), (2, 1), (2, 1), (3, 0, 5, 0), groups=16))
    heads.append(c.conv((1, 4, 40, 16), 16, (1, 5), (1, 2), (1, 3), (0, 6, 0, 6), groups=16))  # stride no multiple
    heads.append(c.conv((1, 16, 16, 20), 20, (15, 15), pads=(7, 7, 7, 7), groups=20))  # too many taps to unroll
    heads.append(c.conv((1, 6, 6, 32), 32, (3, 3), pads=(1, 1, 1, 1), groups=32, edges=True))
    for channels, strides in ((8, (2, 2)), (32, (1, 2)), (24, (1, 1)), (144, (1, 1)), (96, (2, 2)), (70, (1, 1))):
        heads.append(c.conv((2, 9, 13, channels), channels, (3, 3), strides, pads=(1, 1, 1, 1), groups=channels))
    heads.append(c.conv((2, 3, 40, 80), 80, (1, 21), (1, 2), (1, 2), (0, 20, 0, 20), 80))  # lines that are staged
    heads.append(c.conv((1, 1, 33, 64), 64, (1, 33), groups=64))
    check_cases(plain(heads), target, tmp_path)


def test_depthwise_operands(target: Target, tmp_path: Path) -> None:
    """Epilogues with constants of a channel, in the kernel's order, and with operands that must lie as they do."""
    c = Cases(target)
    cases = []
    for channels in (16, 24, 64, 100):
        head = c.conv((2, 6, 7, channels), channels, (3, 3), pads=(1, 1, 1, 1), groups=channels)
        rq, constants = c.requantize(head[0].name, channels, shift=12)
        lut, table = c.lut(rq.name)
        cases.append(c.fuse(head, [rq, lut], {}, constants | table))
        for dtype in ("int16", "int32"):
            head = c.conv((1, 6, 7, channels), channels, (3, 3), groups=channels)
            rq, constants = c.requantize(head[0].name, channels, shift=1, dtype=dtype)
            cases.append(c.fuse(head, [rq], {}, constants))
        head = c.conv((2, 6, 7, channels), channels, (3, 3), pads=(1, 1, 1, 1), groups=channels)
        name = c.name("res")
        attrs = {"r_zero_point": c.low + 9, "r_multiplier": 5000, "shift": 11, "pre": 1, **c.bounds()}
        add = Node(name, "add_residual", (head[0].name, name + "_r", name + "_m"), attrs)
        residual = {name + "_r": c.activation((2, 6, 7, channels))}
        cases.append(c.fuse(head, [add], residual, {name + "_m": c.multiplier(channels) // 8}))
    check_cases(cases, target, tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 9, 20, 33, 70])
def test_wide_operands_of_few_channels(channels: int, target: Target, tmp_path: Path) -> None:
    """Vectors of 32-bit sums that hold more lanes than there are channels must not reach beyond the slack."""
    c = Cases(target)
    pool = {"kernel": [2, 3], "strides": [2, 2], "pads": [0, 0, 0, 0], "x_zero_point": c.low + 9}
    heads = [
        c.conv((2, 6, 7, channels), channels, (3, 2), (2, 1), groups=channels),
        c.conv((1, 6, 7, channels), channels, (1, 1), groups=channels),
        c.conv((2, 6, 7, 8), channels, (3, 3)),
        c.conv((2, 6, 7, 8), channels, (1, 1)),
        c.dense(5, 7, channels),
        c.matmul((2, 9, 12), (2, 12, channels), False, (3, 250)),
        (Node(c.name("pool"), "sum_pool2d", ("x",), pool), {"x": c.activation((1, 6, 7, channels))}, {}),
    ]
    cases = []
    for node, arrays, constants in heads:
        shape = infer_node(node, {n: Type(v.shape, str(v.dtype)) for n, v in (arrays | constants).items()}).shape
        name = c.name("sum")
        add = Node(name, "add_sums", (node.name, f"{name}_r", f"{name}_f"), {})
        bias = Node(c.name("bias"), "bias_add", (name, f"{name}_b"), {})
        sums = {f"{name}_r": c.rng.integers(-1000, 1000, shape).astype(np.int32)}
        channel = {f"{name}_b": c.rng.integers(-1000, 1000, channels).astype(np.int32)}
        factor = {f"{name}_f": c.rng.integers(-9, 9, channels).astype(np.int32)}
        requantize, multiplier = c.requantize(bias.name, channels)
        steps = [add, bias, requantize]
        cases.append(c.fuse((node, arrays, constants), steps, sums | channel, factor | multiplier))
    check_cases(cases, target, tmp_path)


def test_matmul(target: Target, tmp_path: Path) -> None:
    c = Cases(target)
    shapes = (
        ((3, 17, 32), (3, 32, 20), False),
        ((3, 17, 33), (3, 20, 33), True),
        ((2, 5, 64), (64, 7), False),
        ((1, 7), (7, 16), False),
        ((1, 2, 9, 30), (1, 2, 30, 100), False),
        ((40, 64), (3, 64, 64), True),
        ((2, 2, 1, 3), (2, 2, 5, 3), True),
        ((2, 40, 64), (2, 64, 64), False),
        ((2, 1, 9, 33), (1, 3, 33, 20), False),
        ((3, 1, 4, 32), (2, 8, 32), True),
    )
    heads = [c.matmul(a, b, t, zp) for a, b, t in shapes for zp in ((128, 128), (3, 250))]
    heads += [
        c.matmul((4, 512), (512, 8), False, (0, 255), edges=True),
        c.matmul((4, 512), (8, 512), True, (255, 0), edges=True),
    ]
    check_cases(plain(heads), target, tmp_path)


def test_epilogues(target: Target, tmp_path: Path) -> None:
    check_cases(list(epilogue_cases(Cases(target))), target, tmp_path)
