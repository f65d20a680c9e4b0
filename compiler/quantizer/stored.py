"""Weights that were rounded before: float constants whose values lie on a grid of 8 bits keep their codes.

Dynamically quantized models, weight-only models and fake-quantized exports hand such floats to the quantizer; rounding
them again, on grids of our own, would add our error to the file's.
"""

from __future__ import annotations

import numpy as np
from qcompile.quantizer.weights import QuantizedWeight, channels_first

CODES = 255  # from the smallest to the largest code
INT8 = 127
FEWEST = 4  # numbers that say whether they lie on a grid
NEAR = 1e-3  # of a step; products of codes and a float32 scale lie much nearer
FEW = 8  # numbers that rule out most steps


def stored_weight(weight: np.ndarray, axis: int | None, least: np.ndarray | None = None) -> QuantizedWeight | None:
    """The codes of a float `weight` with one scale for each index of `axis` or for all; None where some channel has no
    grid, or a grid finer than `least`. Codes beyond int8 (those of uint8 with zero points) are int16, at most CODES
    from the smallest to the largest of a channel."""
    channels = channels_first(weight, axis)
    rows = np.ascontiguousarray(channels).reshape(len(channels), -1)
    if not rows.size or not np.isfinite(rows).all():
        return None
    scale = grid_steps(rows)
    if scale is None or (least is not None and (scale < least.reshape(-1)).any()):
        return None
    codes = np.rint(rows / scale[:, None])
    finer = np.maximum(INT8 // np.maximum(np.abs(codes).max(1), 1), 1)  # steps that biases are rounded to, too
    if least is not None:
        finer = np.minimum(finer, np.maximum(scale // np.maximum(least.reshape(-1), 1e-30), 1))
    codes, scale = codes * finer[:, None], scale / finer
    low, high = float(codes.min()), float(codes.max())
    dtype = np.int8 if low >= -INT8 - 1 and high <= INT8 else np.int16
    stored = np.empty(weight.shape, dtype)
    channels_first(stored, axis)[...] = codes.reshape(channels.shape)
    return QuantizedWeight(stored, scale.astype(np.float32) if axis is not None else np.float32(scale[0]), axis)


def grid_steps(rows: np.ndarray) -> np.ndarray | None:
    """The largest step [N] of which all numbers of each row [N, K] are multiples, at most CODES apart; rows too short
    to tell, and rows of zeros, have the step of all others. None where a row has none."""
    if not _few(rows[0]):
        return None
    whole = _common_step(rows)
    if whole:
        return np.full(len(rows), whole)
    if rows.shape[1] < FEWEST:
        return None
    steps = np.zeros(len(rows))
    for i, row in enumerate(rows):
        steps[i] = grid_step(row)
        if not steps[i]:
            return None
    finite = steps[np.isfinite(steps)]
    return np.where(np.isfinite(steps), steps, finite.min(initial=1.0))


def _few(row: np.ndarray) -> bool:
    """Whether a row has no more values than codes."""
    return len(np.unique(row)) <= CODES + 1


def _common_step(rows: np.ndarray) -> float:
    """The step of all rows together; 0 if there is none, or not enough to tell."""
    sample = rows.reshape(-1)[:: max(1, rows.size // 4096)]
    if rows.size < FEWEST or not _few(sample):
        return 0.0
    step = grid_step(np.unique(rows))
    return step if np.isfinite(step) else 1.0


def grid_step(row: np.ndarray) -> float:
    """The largest step of which all numbers of `row` are multiples, at most CODES apart: 0 if there is none, inf for
    zeros."""
    levels = np.unique(np.abs(row)).astype(np.float64)
    top = levels[-1]
    if top == 0:
        return np.inf
    if len(levels) > CODES + 1:
        return 0.0
    apart = max(float(np.ptp(row)), top) / top
    counts = np.arange(1, int(CODES / apart + NEAR) + 1)  # of steps up to the largest number
    for some in (levels[-FEW:], levels):
        ratio = some * (counts[:, None] / top)
        counts = counts[(np.abs(ratio - np.rint(ratio)) <= NEAR).all(1)]
    return float(top / counts[0]) if counts.size else 0.0


def centred_codes(w: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes, int8 zero point for each channel or for all) that are the codes of `w`."""
    if w.codes.dtype == np.int8:
        return w.codes, np.zeros(w.scale.shape, np.int8)
    rows = channels_first(w.codes, w.axis)
    rest = tuple(range(1, rows.ndim))
    low, high = rows.min(rest).astype(np.int16), rows.max(rest).astype(np.int16)
    zero = np.where(low < -INT8 - 1, -INT8 - 1 - low, np.where(high > INT8, INT8 - high, 0)).astype(np.int16)
    moved = (rows + zero.reshape(-1, *(1,) * len(rest))).astype(np.int8)
    codes = np.empty(w.codes.shape, np.int8)
    channels_first(codes, w.axis)[...] = moved
    return codes, zero.astype(np.int8).reshape(w.scale.shape)
