"""Sampling of an image at computed positions."""

from __future__ import annotations

import itertools

import numpy as np
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import Type, integer_op

PADDINGS = ("zeros", "border", "reflection")
FURTHEST = 1 << 30  # of a position in fractions of a pixel, so that sums with it fit 32 bits


@integer_op(
    "grid_sample",
    kind="resize",
    parameters=("table",),
    plain=("grid",),
    ranges={"shift": (1, 62), "fraction": (2, 12)},
)
class GridSample:
    """acc = sum over taps of weight * (x - x_zero_point) at positions of `grid`, int32.

    x [N, *sizes, C] int8|uint8|int16, grid [N, *out, axes] int16|int32, the last spatial axis of x first.
    Along axis a the position is ((grid * multipliers[a] + 2^(shift-1)) >> shift) + offsets[a], in 2^-fraction pixels.
    table int16 [2^fraction, taps], taps 1, 2 or 4: the weights of the pixels around a position, by its fraction; with
    1 the nearest pixel counts. padding: pixels beyond the image are zeros, those at its border, or its own reflected at
    the centres (corners) or the outer edges of its outermost pixels. -> [N, *out, C].
    """

    @staticmethod
    def infer(x, grid, table, *, multipliers, offsets, shift, fraction, padding, corners, x_zero_point):
        return Type((x.shape[0], *grid.shape[1:-1], x.shape[-1]), "int32")

    @staticmethod
    def evaluate(x, grid, table, *, multipliers, offsets, shift, fraction, padding, corners, x_zero_point):
        d, count = x.astype(np.int64) - x_zero_point, grid.shape[-1]
        axes = []
        for a in range(count):
            code = grid[..., count - 1 - a].astype(np.int64)
            at = ((code * multipliers[a] + (1 << (shift - 1))) >> shift) + offsets[a]
            axes.append(taps_along(at, x.shape[1 + a], table.astype(np.int64), fraction, padding, corners))
        image = np.arange(len(x)).reshape(-1, *[1] * count)
        acc = np.zeros((len(x), *grid.shape[1:-1], x.shape[-1]), np.int64)
        for chosen in itertools.product(range(table.shape[1]), repeat=count):
            weight = np.prod([axes[a][1][t] for a, t in enumerate(chosen)], axis=0)
            acc += weight[..., None] * d[(image, *(axes[a][0][t] for a, t in enumerate(chosen)))]
        return acc.astype(np.int32)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        a, (low, high), (first, last) = c.attrs, c.interval("x"), c.interval("grid")
        for m, o in zip(a["multipliers"], a["offsets"]):
            ends = [((g * m + (1 << (a["shift"] - 1))) >> a["shift"]) + o for g in (first, last)]
            if max(abs(e) for e in ends) > FURTHEST:
                raise c.refusal(f"a position lies {max(ends) >> a['fraction']} pixels away; limit the grid with Clip")
        reach = int(np.abs(c.constant("table")).sum(1).max()) ** len(a["multipliers"])
        top = max(abs(low), abs(high)) * reach
        c.fits("the accumulator", -top, top)
        return -top, top


def reflect(at: np.ndarray, low: int, high: int) -> np.ndarray:
    """Positions beyond [low, high] reflected into it."""
    size = high - low
    if size == 0:
        return np.full_like(at, low)
    beyond = np.maximum(np.maximum(low - at, at - high), 0)
    turns, left = beyond // size, beyond % size
    from_low = (at < low) == (turns % 2 == 0)
    return np.where(beyond == 0, at, np.where(from_low, low + left, high - left))


def taps_along(
    at: np.ndarray, size: int, table: np.ndarray, fraction: int, padding: str, corners: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(pixels, weights) of each tap along one axis."""
    one, taps = 1 << fraction, table.shape[1]
    low = 0 if corners else -one // 2
    high = (size - 1) * one - low
    if taps == 1:
        at = ((at + one // 2) >> fraction) << fraction
    weights, first = table[at & (one - 1)], (at >> fraction) - max(taps // 2 - 1, 0)
    pixels, shares = [], []
    for t in range(taps):
        pixel, share = first + t, weights[..., t]
        if padding == "zeros":
            share = np.where((pixel >= 0) & (pixel < size), share, 0)
        elif padding == "reflection":
            pixel = reflect(pixel * one, low, high) >> fraction
        pixels.append(np.clip(pixel, 0, size - 1))
        shares.append(share)
    return pixels, shares
