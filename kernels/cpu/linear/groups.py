"""Grouped convolutions seen as ones of fewer groups: products with zeros cost less than accumulators part of whose
lanes nobody reads."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.codes import find_code
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.linear.tiles import choose_tiling
from qcompile.targets.target import CpuTarget


def merged_groups(target: CpuTarget, weight: np.ndarray, groups: int, rows: int, contiguous: bool) -> int:
    """How many neighbouring groups to take as one, by the estimated cycles; 1: as they are.

    weight: int8 [O, KH, KW, C of a group]; rows: pixels of a result; contiguous: the columns of the kernel are
    neighbours in the image, so that one group of all channels reads them in one run.
    """
    outputs, kh, kw, channels = weight.shape
    outputs //= groups
    if find_code(weight.reshape(groups, outputs, kh * kw, channels)):
        return 1  # zeros between the codes of fewer bits would take their place
    dots = get_isa(target).dots

    def cycles(merged: int) -> float:
        run, runs = merged * channels, kh * kw
        if merged == groups and contiguous:
            run, runs = run * kw, kh
        return groups // merged * choose_tiling(dots, rows, merged * outputs, run, runs).cycles

    return min((m for m in range(1, groups + 1) if groups % m == 0), key=cycles)


def merge_weights(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """int8 [O, KH, KW, C of a group] -> [O, KH, KW, merged * C of a group], zero where a channel is another group's."""
    outputs, kh, kw, channels = weight.shape
    wide = np.zeros((groups // merged, merged, outputs // groups, kh, kw, merged, channels), np.int8)
    parts = weight.reshape(groups // merged, merged, outputs // groups, kh, kw, channels)
    for m in range(merged):
        wide[:, m, ..., m, :] = parts[:, m]
    return wide.reshape(outputs, kh, kw, merged * channels)


__all__ = ["merge_weights", "merged_groups"]
