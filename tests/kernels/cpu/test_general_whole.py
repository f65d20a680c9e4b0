"""Arithmetic on declared integers against numpy, every function in every type, on every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases
from qcompile.kernels.ops.whole import COMPARISONS, FUNCTIONS

SHAPES = [((3, 41), (3, 41)), ((5,), (5,)), ((2, 3, 4), (3, 1)), ((70,), (1,))]
NARROW = ("int8", "uint8", "int16", "uint16", "int32")
WIDE = ("int64", "uint64", "uint32")


def cases(rng, dtypes):
    for (k, function), dtype in itertools.product(enumerate(FUNCTIONS), dtypes):
        a, b = SHAPES[k % len(SHAPES)]
        name = f"{function}_{dtype}"
        x, r = edge_array64(rng, a, dtype), edge_array64(rng, b, dtype)
        flat = r.reshape(-1)  # small counts, exponents and divisors, 0 and -1 among them
        flat[: flat.size // 2 + 1] = rng.integers(0, 70 if np.dtype(dtype).itemsize > 1 else 9, flat.size // 2 + 1)
        flat[:3] = np.array([-1, 0, 2])[: flat.size].astype(dtype)
        attrs = {"function": function, "dtype": "int8" if function in COMPARISONS else dtype}
        yield Case(node(name, "whole", [f"x_{name}", f"r_{name}"], attrs), {f"x_{name}": x, f"r_{name}": r})


def edge_array64(rng, shape, dtype):
    if dtype != "uint64":
        return edge_array(rng, shape, dtype)
    return edge_array(rng, shape, "int64").astype(np.uint64)


@pytest.mark.parametrize("dtypes", [NARROW, WIDE], ids=["narrow", "wide"])
def test_whole_arithmetic(target, dtypes, tmp_path):
    check_cases(list(cases(np.random.default_rng(3), dtypes)), target, tmp_path)
