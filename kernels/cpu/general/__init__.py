"""Kernels of every op that is not a matrix product or a convolution, one family a file."""

from __future__ import annotations

from qcompile.kernels.cpu.general import (
    attention,
    elementwise,
    movement,
    norm,
    pool,
    recurrent,
    reduce,
    sampling,
    selection,
    softmax,
    suppression,
    table,
    whole,
)
from qcompile.kernels.lowering import Lowering

LOWERINGS: dict[str, Lowering] = {}
FAMILIES = (
    elementwise, movement, pool, reduce, norm, softmax, attention, recurrent, table, whole,
    selection, suppression, sampling,
)  # fmt: skip
for _family in FAMILIES:
    LOWERINGS |= _family.LOWERINGS

__all__ = ["LOWERINGS"]
