"""Depthwise steps: neighbouring taps of a block of channels are zipped, then summed by the dot-product instructions.

A zipped group serves every output that reads any of its taps. Accumulators are registers of `lanes` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, bind, lanes_of, shuffle

QUARTER = 16  # bytes within which registers of any size are zipped


class TapDot:
    """`group` taps make a step for `block` channels, which lie in accumulators of `lanes` channels.

    registers: for accumulators and zipped groups; the others hold weights and constants. longest, widest: outputs of a
    pass along the zipped axis and along the other one. order: the channel of a block at each place in the accumulators,
    None: in order. zips: instructions to zip a group.
    """

    name = ""
    group = 4
    lanes = 4
    block = 16
    registers = 24
    longest = 4
    widest = 6
    zips = 8
    order: np.ndarray | None = None
    stages = False  # long lines of one block are copied next to each other first: see Walk.stage
    settles = False  # pieces of code that LLVM is not to mix: weights are loaded where they are used
    shares_words = False  # two products share 16 bits, which those of two weights of -128 overflow
    zips_ahead = True  # all groups of a line are zipped before the first is used, rather than each when it is

    def __repr__(self) -> str:
        return self.name

    @property
    def units(self) -> int:
        """Accumulators of one pixel."""
        return self.block // self.lanes

    def pack(self, taps: np.ndarray) -> np.ndarray:
        """Weights of one block, int8 [block, group] -> as `dots` reads them."""
        return taps

    def zip(self, parts: list[Expr]) -> list[Expr]:
        """The taps of a group as operands of `dots`, by two rounds of zips."""
        ab, cd = _zip(parts[0], parts[1], 1), _zip(parts[2], parts[3], 1)
        return [*_zip(ab[0], cd[0], 2), *_zip(ab[1], cd[1], 2)]

    def weights(self, w: Pointer, at: Expr) -> list[Expr]:
        size = self.group * self.lanes
        return [bind(w.load(at + u * size, size)) for u in range(self.units)]

    def dots(self, acc: Pointer, first: int, zipped: Sequence[Expr], weights: Sequence[Expr]) -> None:
        """Adds one group to the accumulators of a pixel, which begin at lane `first`."""
        raise NotImplementedError


def _zip(a: Expr, b: Expr, size: int) -> list[Expr]:
    """Elements of `size` bytes of the lower and of the upper halves of each 16 bytes, those of a and b by turns."""
    n = lanes_of(a)

    def lanes(half: int) -> list[int]:
        firsts = [q + half + k for q in range(0, n, QUARTER) for k in range(0, QUARTER // 2, size)]
        return [s * n + first + e for first in firsts for s in (0, 1) for e in range(size)]

    return [bind(shuffle([a, b], lanes(half))) for half in (0, QUARTER // 2)]
