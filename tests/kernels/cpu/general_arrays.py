"""What the tests of the general kernels share: nodes, and arrays with edge values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qcompile.kernels.program import Node


def node(name: str, op: str, inputs: Sequence[str], attrs: dict[str, Any]) -> Node:
    return Node(name, op, tuple(inputs), attrs)


def edge_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Uniform over the dtype's range, with its ends among the elements."""
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, endpoint=True, dtype=np.int64).astype(dtype)
    flat = x.reshape(-1)
    flat[0] = info.min
    flat[-1] = info.max
    return x


def arrays_of(
    rng: np.random.Generator, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: str
) -> dict[str, np.ndarray]:
    return {n: edge_array(rng, s, dtype) for n, s in zip(names, shapes)}
