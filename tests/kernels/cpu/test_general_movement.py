"""Data movement against numpy on every instruction set: all element sizes, runs of all kinds, hostile row numbers."""

from __future__ import annotations

import itertools

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases

TRANSPOSES = [
    ((7, 5), (1, 0)),
    ((64, 48), (1, 0)),
    ((33, 17), (1, 0)),
    ((2, 19, 40), (0, 2, 1)),
    ((3, 4, 5, 6), (0, 2, 1, 3)),
    ((2, 3, 20, 21), (0, 2, 3, 1)),
    ((2, 20, 21, 3), (0, 3, 1, 2)),
    ((2, 3, 4, 5, 2), (4, 2, 0, 3, 1)),
    ((1, 12, 1), (2, 0, 1)),
    ((1, 32, 12, 32), (0, 2, 1, 3)),
    ((5, 16, 70), (2, 0, 1)),
    ((3, 100), (1, 0)),
    ((100, 2), (1, 0)),
    ((4, 3, 90), (2, 1, 0)),
    ((9, 2, 58), (0, 2, 1)),
    ((3, 3, 70, 4), (0, 3, 2, 1)),
    ((5, 130), (1, 0)),
    ((8, 4), (1, 0)),
    ((130, 7), (1, 0)),
    ((6, 5, 33, 2, 2), (0, 3, 1, 4, 2)),
    ((6, 2, 5, 2, 33), (0, 2, 4, 1, 3)),
    ((21, 300), (1, 0)),
    ((300, 21), (1, 0)),
]
SLICES = [
    ((10, 12), (2, 0), (9, 12), (1, 1)),
    ((10, 12), (0, 3), (10, 8), (1, 1)),
    ((10, 70), (9, 69), (-11, -71), (-1, -1)),
    ((4, 6, 66), (0, 1, 0), (4, 6, 66), (2, 3, 1)),
    ((9, 8), (1, 1), (9, 8), (2, 3)),
    ((40,), (5,), (38,), (1,)),
    ((3, 5, 2), (0, 4, 0), (3, -6, 2), (1, -2, 1)),
    ((6, 5, 130), (1, 0, 1), (6, 5, 130), (1, 1, 1)),
]
PADS = [
    ((2, 5, 7, 3), (0, 1, 2, 0), (0, 2, 1, 0)),
    ((5, 30), (0, 9), (0, 4)),
    ((4, 4), (3, 0), (2, 0)),
    ((1, 40), (0, 1), (0, 0)),
    ((3,), (0,), (0,)),
    ((3, 4), (7, 0), (5, 9)),
    ((2, 9, 8, 20), (0, 3, 3, 0), (0, 3, 3, 0)),
]
BROADCASTS = [
    ((5, 1), (5, 40)),
    ((1, 7), (6, 7)),
    ((3, 1, 4), (2, 3, 5, 4)),
    ((1,), (3, 50)),
    ((2, 1, 1), (2, 3, 2)),
    ((70,), (3, 70)),
]


def cases(rng):
    for dtype in ("int8", "int16", "int32", "int64"):
        for i, (shape, axes) in enumerate(TRANSPOSES[:: 3 if dtype == "int64" else 1]):
            yield Case(
                node(f"transpose_{dtype}_{i}", "transpose", [f"t{dtype}{i}"], {"axes": list(axes)}),
                {f"t{dtype}{i}": edge_array(rng, shape, dtype)},
            )
        for i, (shape, begin, end, step) in enumerate(SLICES):
            yield Case(
                node(f"slice_{dtype}_{i}", "slice", [f"s{dtype}{i}"], {"begin": begin, "end": end, "step": step}),
                {f"s{dtype}{i}": edge_array(rng, shape, dtype)},
            )
        for (i, (shape, before, after)), mode in itertools.product(enumerate(PADS), ("constant", "edge", "reflect")):
            yield Case(
                node(
                    f"pad_{mode}_{dtype}_{i}",
                    "pad",
                    [f"p{dtype}{i}"],
                    {"before": before, "after": after, "mode": mode, "value": -3},
                ),
                {f"p{dtype}{i}": edge_array(rng, shape, dtype)},
            )
        for i, (shape, out) in enumerate(BROADCASTS):
            yield Case(
                node(f"broadcast_{dtype}_{i}", "broadcast", [f"b{dtype}{i}"], {"shape": out}),
                {f"b{dtype}{i}": edge_array(rng, shape, dtype)},
            )
        for i, (shapes, axis) in enumerate(
            [
                (((2, 3), (2, 5), (2, 70)), 1),
                (((2, 9, 4), (1, 9, 4)), 0),
                (((2, 3, 5), (2, 1, 5)), 1),
                (((4,), (1,)), 0),
            ]
        ):
            inputs = {f"c{dtype}{i}{k}": edge_array(rng, s, dtype) for k, s in enumerate(shapes)}
            yield Case(node(f"concat_{dtype}_{i}", "concat", list(inputs), {"axis": axis}), inputs)
    for i, (index, shape, where, axis) in enumerate(
        [
            ("int64", (30, 16), (7,), 0),
            ("int32", (30, 100), (3, 4), 0),
            ("int8", (4, 90, 5), (6,), 1),
            ("int32", (5, 9), (4,), 1),
            ("int16", (50, 3), (2, 2), 0),
            ("uint8", (300, 2), (5,), 0),
            ("int32", (6,), (1,), 0),
        ]
    ):
        info = np.iinfo(index)
        rows = rng.integers(0, min(shape[axis], info.max), where).astype(index)
        rows.reshape(-1)[:4] = [v for v in (info.max, info.min, shape[axis] // 2, 1 << 33 if index == "int64" else 0)][
            : rows.size
        ]
        for dtype in ("int8", "int16"):
            x = edge_array(rng, shape, dtype)
            yield Case(
                node(f"take_{dtype}_{i}", "take", [f"x{dtype}{i}", f"r{dtype}{i}"], {"axis": axis}),
                {f"r{dtype}{i}": rows} | ({} if i % 2 else {f"x{dtype}{i}": x}),
                {f"x{dtype}{i}": x} if i % 2 else {},
            )
    big = edge_array(rng, (5, 300, 200), "int8")
    for i, axes in enumerate([(0, 2, 1), (1, 0, 2)]):
        yield Case(node(f"big{i}", "transpose", ["big"], {"axes": list(axes)}), {"big": big})


def test_movement(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(2))), target, tmp_path)
