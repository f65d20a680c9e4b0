"""The largest elements of rows and rows written by number, against numpy on every instruction set."""

from __future__ import annotations

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases
from qcompile.kernels.ops.selection import REDUCTIONS


def cases(rng):
    for dtype in ("int8", "int16", "int32", "int64"):
        for i, (rows, n, k) in enumerate([(1, 5, 5), (3, 16, 4), (2, 100, 7), (40, 3, 1)]):
            x = edge_array(rng, (rows, n), dtype)
            x[-1] //= np.iinfo(dtype).max // 3  # ties
            for minimum in (False, True):
                name = f"top_{dtype}_{i}_{minimum}"
                yield Case(node(name, "top_k", [f"x_{name}"], {"k": k, "minimum": minimum}), {f"x_{name}": x})
        for i, reduction in enumerate(REDUCTIONS):
            name = f"scatter_{dtype}_{reduction}"
            rows, size, count = ((5, 1, 9), (6, 20, 4), (1, 3, 2))[i % 3]
            low = 1 << (8 if dtype in ("int32", "int64") else 3)  # sums and products stay within their type
            data = edge_array(rng, (rows, size), dtype) if reduction in ("none", "max", "min") else None
            x = rng.integers(-low, low, (rows, size)).astype(dtype) if data is None else data
            updates = rng.integers(-2, 3, (count, size)).astype(dtype)
            numbers = rng.integers(-1, rows + 1, count).astype(np.int32)
            inputs = {f"x_{name}": x, f"n_{name}": numbers, f"u_{name}": updates}
            yield Case(node(name, "scatter", list(inputs), {"reduction": reduction}), inputs)


def boxes_of(rng, dtype, shape, centers):
    """Boxes that overlap often; some of equal places, some without area, some turned about."""
    top = np.iinfo(dtype).max
    boxes = rng.integers(-top // 2, top // 2, (*shape, 4))
    boxes[:, 1::3] = boxes[:, ::3][:, : boxes[:, 1::3].shape[1]]
    boxes[:, 2::5] += rng.integers(-top // 20, top // 20 + 1, boxes[:, 2::5].shape)
    if not centers:
        boxes[:, 3::7, 2:] = boxes[:, 3::7, :2]
    return boxes.astype(dtype)


def suppressions(rng):
    for i, (images, classes, n, most) in enumerate([(1, 1, 1, 1), (2, 3, 40, 5), (1, 2, 17, 17), (3, 1, 64, 9)]):
        for dtype in ("int8", "int16"):
            for centers in (False, True):
                name = f"nms_{dtype}_{i}_{centers}"
                limits = np.iinfo(dtype)
                scores = edge_array(rng, (images, classes, n), dtype) // 16  # ties
                inputs = {f"b_{name}": boxes_of(rng, dtype, (images, n), centers), f"s_{name}": scores}
                attrs = {"most": most, "overlap_multiplier": (0, 1 << 25, 60397977, 1 << 27)[i], "centers": centers}
                attrs |= {"limit": (-1, limits.min // 20, 0, limits.min)[i]}
                attrs |= {"boxes_zero_point": (0, 3, -100, 7)[i], "scores_zero_point": (0, -2, 5, -1)[i]}
                yield Case(node(name, "non_max_suppression", list(inputs), attrs), inputs)


def test_suppression(target, tmp_path):
    found = list(suppressions(np.random.default_rng(5)))
    check_cases(found, target, tmp_path)


def test_selection(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(4))), target, tmp_path)
