"""Functions of many codes as straight pieces: a table lookup of thousands of entries becomes one of 64 in registers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qcompile.kernels.ops.elementwise import FRACTION, PIECES, Interpolate
from qcompile.passes.integerize.values import Grid

TOLERANCE = 0.25  # codes of the result, beyond its own rounding
SMOOTH = 1024  # a function whose neighbouring codes differ by more than this part of its range jumps
MARGIN = 100  # codes beyond an 8-bit grid that pieces may take, so that a limit bends none of them


@dataclass(frozen=True)
class Pieces:
    """table int16 [2, 64 or 128] and bits, as the op `interpolate` takes them."""

    table: np.ndarray
    bits: int


def fit_pieces(values: np.ndarray, grid: Grid) -> Pieces | None:
    """The fewest pieces that approach values (real, one for each code from the first on); None where all miss.

    They may be off by TOLERANCE, or by as much as one code of the input changes a smooth function: the input is
    rounded to such codes anyway. Knots: least squares over all codes.
    """
    return next((found for n in PIECES if (found := _fit(values, grid, n))), None)


def _fit(values: np.ndarray, grid: Grid, pieces: int) -> Pieces | None:
    bits = max(1, int(np.ceil(np.log2(len(values) / pieces))))
    fraction = FRACTION[grid.dtype]
    if bits > 10 or not np.isfinite(values).all() or (grid.zero_point and not fraction):
        return None
    exact = values / grid.scale
    limits = (grid.lo - grid.zero_point, grid.hi - grid.zero_point)
    margin = MARGIN if fraction else 0
    knots = _least_squares(np.clip(exact, limits[0] - margin, limits[1] + margin), bits, pieces)
    fixed = np.clip(np.rint(knots * 2.0**fraction), -32768, 32767 - (1 << fraction)).astype(np.int64)
    slope = np.diff(fixed)
    if np.abs(slope).max() > 32767:
        return None
    table = np.array([fixed[:-1] + (1 << fraction >> 1), slope]).astype(np.int16)
    got = Interpolate.evaluate(
        np.arange(-32768, len(values) - 32768).astype(np.int16),
        table,
        first=-32768,
        bits=bits,
        **grid.attrs(),
    ).astype(np.int64)
    exact = np.clip(exact, *limits)
    change = min(float(np.abs(np.diff(exact)).max()), float(np.ptp(exact)) / SMOOTH)
    allowed = 0.5 + max(TOLERANCE, change)
    return Pieces(table, bits) if np.abs(got - grid.zero_point - exact).max() <= allowed else None


def _least_squares(values: np.ndarray, bits: int, pieces: int) -> np.ndarray:
    """Heights of the knots of the continuous broken line that is nearest to values."""
    at = np.arange(len(values))
    piece, weight = at >> bits, (at & ((1 << bits) - 1)) / (1 << bits)
    matrix = np.zeros((pieces + 1, pieces + 1))
    right = np.zeros(pieces + 1)
    hats = ((piece, 1 - weight), (piece + 1, weight))
    for i, u in hats:
        np.add.at(right, i, u * values)
        for j, v in hats:
            np.add.at(matrix, (i, j), u * v)
    # knots beyond the codes follow their neighbours
    used = max(int(piece[-1]) + 1, 1)
    line = np.linalg.lstsq(matrix[: used + 1, : used + 1], right[: used + 1], rcond=1e-9)[0]
    return np.concatenate([line, np.full(pieces - used, line[-1])])
