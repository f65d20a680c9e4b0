"""Weights in the order that the micro-kernels stream them, and biases with the zero point folded in."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.chain import CONSTANT_PADDING
from qcompile.kernels.cpu.codes import Coded, encode, encode_digits
from qcompile.kernels.cpu.linear.tiles import Tiling
from qcompile.targets.errors import CompileError


def pack_weights(weights: np.ndarray, tiling: Tiling) -> np.ndarray:
    """int8 [N, runs, run] -> bytes: panel after panel of [runs][run / group][NR][group], zeros where nothing is."""
    panels = _panels(weights, tiling, 0)
    if tiling.dot.digits:
        panels = [encode_digits(p, tiling.dot.digit_bytes) for p in panels]
    return np.concatenate(panels)


def pack_codes(coded: Coded, tiling: Tiling) -> np.ndarray:
    """Weights [N, runs, run] of a code -> bytes: for each panel its codes, then for each group along K the multipliers
    of its columns, then their zeros if they have their own."""
    vector, parts = tiling.dot.vector_bytes, []
    shares = [a for a in (coded.multipliers, coded.zeros) if a is not None]
    tables = [[_share_panel(a, first, columns, tiling) for first, columns in tiling.panels(len(a))] for a in shares]
    for i, panel in enumerate(_panels(coded.values, tiling, coded.code.middle)):
        if tiling.dot.digits:
            digits = panel.astype(np.int8) - coded.code.middle
            parts.append(encode_digits(digits, tiling.dot.digit_bytes).view(np.uint8))
        else:
            parts.append(encode(panel, coded.code, vector))
        if tables:
            parts.append(np.stack([table[i] for table in tables], 1).reshape(-1))
    return np.concatenate(parts)


def _panels(weights: np.ndarray, tiling: Tiling, fill: int) -> list[np.ndarray]:
    """[N, runs, run] -> for each panel [runs * run / group * NR * group], `fill` where nothing is."""
    n, runs, run = weights.shape
    dot = tiling.dot
    groups = -(-run // dot.group)
    full = np.full((n, runs, groups * dot.group), fill, weights.dtype)
    full[:, :, :run] = weights
    panels = []
    for first, columns in tiling.panels(n):
        panel = np.full((columns, runs, groups, dot.group), fill, weights.dtype)
        part = full[first : first + columns]
        panel[: len(part)] = part.reshape(len(part), runs, groups, dot.group)
        panels.append(panel[dot.order(columns)].transpose(1, 2, 0, 3).reshape(-1))
    return panels


def _share_panel(shares: np.ndarray, first: int, columns: int, tiling: Tiling) -> np.ndarray:
    """[N, runs, groups of a run] -> [runs * groups, NR] of the panel that begins at channel `first`, 1 past N."""
    part = shares[first : first + columns].reshape(-1, shares[0].size)
    panel = np.ones((columns, part.shape[1]), np.uint8)
    panel[: len(part)] = part
    return panel[tiling.dot.order(columns)].T


def fold_bias(bias: np.ndarray, weights: np.ndarray, zero_point: int | list[int], groups: int = 1) -> np.ndarray:
    """bias - sum(zero_point * w) as int32 [N], padded for whole-vector reads.

    weights [N, ..., channels of a group]; zero_point: one, or one for each channel of all groups. The constant may
    wrap: the accumulator's true value fits int32, so sums modulo 2^32 end right.
    """
    taps = weights.reshape(groups, len(weights) // groups, -1, weights.shape[-1]).sum(2, dtype=np.int64)
    zeros = np.broadcast_to(np.asarray(zero_point, np.int64), (groups * weights.shape[-1],))
    folded = bias.astype(np.int64) - (taps * zeros.reshape(groups, 1, -1)).sum(2).reshape(-1)
    wrapped = (folded + 2**31) % 2**32 - 2**31
    return np.concatenate([wrapped, np.zeros(CONSTANT_PADDING, np.int64)]).astype(np.int32)


def check_weights(name: str, weights: np.ndarray) -> None:
    if weights.dtype != np.int8:
        raise CompileError(f"{name}: weights must be int8 to be compiled, got {weights.dtype}")
