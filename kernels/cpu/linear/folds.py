"""Convolutions to few channels seen as ones that compute several neighbouring pixels as channels: the lanes of an
accumulator that would be empty hold them, at the price of products with zeros where their windows differ."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.codes import find_code
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.linear.tiles import choose_tiling
from qcompile.targets.target import CpuTarget

MOST_FOLDED = 16
LEAST_GAIN = 1.2  # in estimated cycles: what follows may read the folded pixels less well


def folded_pixels(target: CpuTarget, weight: np.ndarray, stride: int, rows: int, width: int) -> int:
    """How many pixels of a line to take together; 1: none.

    weight: int8 [O, KH, KW, C]; stride: of columns; rows, width: lines of the result in all, and pixels of each.
    """
    outputs, kh, kw, channels = weight.shape
    if find_code(weight.reshape(1, outputs, kh * kw, channels)):
        return 1  # zeros between the codes of fewer bits would take their place
    dots = get_isa(target).dots

    def cycles(fold: int) -> float:
        run = (kw + (fold - 1) * stride) * channels
        return choose_tiling(dots, rows * width // fold, fold * outputs, run, kh).cycles

    folds = [f for f in range(2, MOST_FOLDED + 1) if width % f == 0]
    best = min(folds, key=cycles, default=1)
    return best if best > 1 and cycles(1) >= LEAST_GAIN * cycles(best) else 1


def fold_weights(weight: np.ndarray, stride: int, fold: int) -> np.ndarray:
    """int8 [O, KH, KW, C] -> [fold * O, KH, KW + (fold - 1) * stride, C]: each pixel's window where it begins."""
    outputs, kh, kw, channels = weight.shape
    wide = np.zeros((fold, outputs, kh, kw + (fold - 1) * stride, channels), np.int8)
    for p in range(fold):
        wide[p, :, :, p * stride : p * stride + kw] = weight
    return wide.reshape(fold * outputs, *wide.shape[2:])


__all__ = ["fold_weights", "folded_pixels"]
