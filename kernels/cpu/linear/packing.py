"""Weights in the order that the micro-kernels stream them, and biases with the zero point folded in."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.chain import CONSTANT_PADDING
from qcompile.kernels.cpu.linear.tiles import Tiling
from qcompile.targets.errors import CompileError


def pack_weights(weights: np.ndarray, tiling: Tiling) -> np.ndarray:
    """int8 [N, runs, run] -> bytes: panel after panel of [runs][run / group][NR][group], zeros where nothing is."""
    n, runs, run = weights.shape
    dot = tiling.dot
    groups = -(-run // dot.group)
    full = np.zeros((n, runs, groups * dot.group), np.int8)
    full[:, :, :run] = weights
    panels = []
    for first, columns in tiling.panels(n):
        panel = np.zeros((columns, runs, groups, dot.group), np.int8)
        part = full[first : first + columns]
        panel[: len(part)] = part.reshape(len(part), runs, groups, dot.group)
        panels.append(panel[dot.order(columns)].transpose(1, 2, 0, 3).reshape(-1))
    return np.concatenate(panels)


def fold_bias(bias: np.ndarray, weights: np.ndarray, zero_point: int) -> np.ndarray:
    """bias - zero_point * sum(w) as int32 [N], padded for whole-vector reads.

    The constant may wrap: the accumulator's true value fits int32, so sums modulo 2^32 end right.
    """
    folded = bias.astype(np.int64) - zero_point * weights.reshape(len(weights), -1).sum(1, dtype=np.int64)
    wrapped = (folded + 2**31) % 2**32 - 2**31
    return np.concatenate([wrapped, np.zeros(CONSTANT_PADDING, np.int64)]).astype(np.int32)


def check_weights(name: str, weights: np.ndarray) -> None:
    """int8 in [-127, 127]: two products of -128 would overflow the 16-bit sums of some CPUs."""
    if weights.dtype != np.int8 or (weights.size and weights.min() < -127):
        raise CompileError(
            f"{name}: weights must be int8 in [-127, 127] to be compiled, got {weights.dtype} down to "
            f"{weights.min() if weights.size else 0}"
        )
