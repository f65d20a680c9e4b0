"""Pooling, resizing and reductions against numpy on every instruction set."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases

POOLS = [
    ((1, 9, 11, 3), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((2, 8, 8, 64), (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),
    ((1, 7, 6, 20), (3, 2), (1, 2), (2, 1), (2, 0, 1, 1)),
    ((1, 7, 7, 70), (7, 7), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((1, 1, 30, 16), (1, 4), (1, 3), (1, 2), (0, 3, 0, 2)),
    ((1, 3, 3, 1), (2, 2), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 40, 40, 32), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((1, 4, 4, 5), (2, 2), (3, 3), (1, 1), (0, 0, 3, 3)),
    ((1, 9, 9, 65), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    ((1, 3, 150, 24), (2, 140), (1, 3), (1, 1), (0, 0, 0, 0)),
    ((1, 30, 31, 64), (15, 14), (9, 9), (1, 1), (1, 0, 1, 1)),
]
REDUCTIONS = [
    (3, 7, 1),
    (2, 16, 1),
    (5, 197, 1),
    (2, 9, 3),
    (1, 49, 70),
    (4, 5, 16),
    (300, 300, 1),
    (1, 1, 1),
    (1, 1000, 1),
]
REQUANTIZE = {"x_zero_point": 0, "shift": 5, "pre": 0, "zero_point": 4, "qmin": -128, "qmax": 127, "dtype": "int8"}


def fused(case, name, rng, channels):
    """The case's op followed by a requantize per channel and a table, as one node."""
    head = replace(case.node, name=f"{name}_sum")
    body = (
        head,
        node(f"{name}_rq", "requantize", [head.name, f"{name}_m"], REQUANTIZE),
        node(name, "lut", [f"{name}_rq", f"{name}_t"], {"first": -128}),
    )
    constants = {
        f"{name}_m": rng.integers(-(2**31) + 1, 2**31 - 1, channels).astype(np.int32),
        f"{name}_t": rng.integers(-128, 128, 256).astype(np.int8),
    }
    return Case(replace(node(name, "fused", [*case.node.inputs, *constants], {}), body=body), case.arrays, constants)


def every_second(table):
    """Rows of the table with a number, and a dtype: each row with two of four dtypes."""
    pairs = itertools.product(enumerate(table), enumerate(("int8", "int16", "uint8", "int32")))
    return [((i, row), dtype) for (i, row), (k, dtype) in pairs if (i + k) % 2 == 0]


def cases(rng):
    for (i, (shape, kernel, strides, dilations, pads)), dtype in every_second(POOLS):
        x = {f"x{i}{dtype}": edge_array(rng, shape, dtype)}
        attrs = {"kernel": kernel, "strides": strides, "pads": pads}
        yield Case(node(f"max_{dtype}_{i}", "max_pool2d", list(x), attrs | {"dilations": dilations}), x)
        if dtype != "int32":
            case = Case(node(f"sum_{dtype}_{i}", "sum_pool2d", list(x), attrs | {"x_zero_point": 5}), x)
            yield case if i % 4 < 2 else fused(case, f"fused_{dtype}_{i}", rng, shape[-1])
    for (i, shape), dtype in every_second(REDUCTIONS):
        x = edge_array(rng, shape, dtype)
        ties = {f"r{i}{dtype}": x if i % 2 else x // 32}
        names = list(ties)
        for minimum in (False, True):
            yield Case(node(f"best_{dtype}_{i}_{minimum}", "reduce_max", names, {"minimum": minimum}), ties)
            for last in (False, True):
                yield Case(
                    node(f"arg_{dtype}_{i}_{minimum}_{last}", "argmax", names, {"minimum": minimum, "last": last}), ties
                )
        if dtype != "int32":
            case = Case(node(f"total_{dtype}_{i}", "reduce_sum", names, {"x_zero_point": -3}), ties)
            yield case
            yield fused(case, f"mean_{dtype}_{i}", rng, 1 if i % 2 else shape[2])
    for i, ((h, w, c), (oh, ow), dtype) in enumerate(
        [((5, 6, 7), (10, 12), "int8"), ((4, 4, 33), (8, 8), "uint8"), ((3, 5, 16), (6, 5), "int16")]
    ):
        tables = {}
        for axis, (n, m) in (("rows", (h, oh)), ("columns", (w, ow))):
            at = np.maximum((np.arange(m) + 0.5) * n / m - 0.5, 0)
            low = at.astype(np.int32)
            weight = np.rint((at - low) * 128).astype(np.int32)
            tables[f"{axis}{i}"] = np.stack([low, np.minimum(low + 1, n - 1)]).astype(np.int32)
            tables[f"{axis}_weights{i}"] = np.stack([128 - weight, weight]).astype(np.int32)
        attrs = {
            "x_zero_point": 7,
            "multiplier": 2**30 + 12345,
            "shift": 13 if dtype != "int16" else 15,
            "pre": i % 2 if dtype != "int16" else 0,
            "zero_point": -2,
            "qmin": -128,
            "qmax": 127,
            "dtype": "int8",
        }
        yield Case(
            node(f"resize_{i}", "resize_linear", [f"z{i}", *tables], attrs),
            {f"z{i}": edge_array(rng, (2, h, w, c), dtype)},
            tables,
        )
    for i, (rows, columns, c) in enumerate([(4, 4, 5), (7, 1, 40), (3, 6, 16)]):  # of any number of taps
        tables = {}
        for axis, taps, n, m in (("rows", rows, 6, 9), ("columns", columns, 8, 5)):
            tables[f"{axis}t{i}"] = rng.integers(0, n, (taps, m)).astype(np.int32)
            tables[f"{axis}_weights_t{i}"] = rng.integers(-200, 500, (taps, m)).astype(np.int32)
        yield Case(
            node(f"taps_{i}", "resize_linear", [f"zt{i}", *tables], attrs),
            {f"zt{i}": edge_array(rng, (2, 6, 8, c), "int8")},
            tables,
        )


def test_windows(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(3))), target, tmp_path)
