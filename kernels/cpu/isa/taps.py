"""Depthwise steps: neighbouring taps of a block of channels are zipped, then summed by the dot-product instructions.

A zipped group serves every output that reads any of its taps. Accumulators are registers of `lanes` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, bind, cast, extract, intrinsic, lanes_of, shuffle
from qcompile.kernels.cpu.isa.neon import PREFIX

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


class VnniTaps(TapDot):
    """vpdpbusd over four zipped taps of a whole register of channels."""

    stages = True
    zips_ahead = False

    def __init__(self, name: str, lanes: int, registers: int, longest: int) -> None:
        self.name, self.lanes, self.block = name, lanes, 4 * lanes
        self.registers, self.longest = registers, longest
        # zips work within 16 bytes: accumulator u has channels 4u ... 4u + 3 of each
        self.order = np.arange(self.block).reshape(-1, 4, 4).transpose(1, 0, 2).reshape(-1)

    def pack(self, taps):
        return taps[self.order]

    def dots(self, acc, first, zipped, weights):
        for u in range(self.units):
            o = first + u * self.lanes
            acc.store(
                o,
                intrinsic(
                    f"int32x{self.lanes}",
                    f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}",
                    acc.load(o, self.lanes),
                    zipped[u],
                    weights[u],
                ),
            )


class MaddTaps(TapDot):
    """vpmaddwd over two zipped taps, widened to int16."""

    name = "madd_taps"
    group = 2
    zips = 4
    lanes = 8
    registers = 12

    def zip(self, parts):
        return [
            bind(cast(shuffle(parts, [t * self.block + u * 8 + c for c in range(8) for t in range(2)]), "int16"))
            for u in range(2)
        ]

    def weights(self, w, at):
        return [bind(cast(w.load(at + u * 16, 16), "int16")) for u in range(2)]

    def dots(self, acc, first, zipped, weights):
        for u in range(2):
            o = first + u * 8
            acc.store(o, acc.load(o, 8) + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", zipped[u], weights[u]))


class SdotTaps(TapDot):
    """sdot over four zipped taps."""

    name = "sdot_taps"
    settles = True
    widest = 7  # lines of 7 and 14 pixels are common

    def dots(self, acc, first, zipped, weights):
        for u in range(4):
            o = first + u * 4
            acc.store(o, intrinsic("int32x4", PREFIX + "sdot.v4i32.v16i8", acc.load(o, 4), zipped[u], weights[u]))


class SmullTaps(TapDot):
    """ARMv8.0: two taps in an int16 sum, exact unless both weights are -128, then widened. Nothing is zipped."""

    name = "smull_taps"
    group = 2
    zips = 6

    def pack(self, taps):
        return taps.T

    def zip(self, parts):
        return [extract(p, 8 * half, 8) for half in range(2) for p in parts]

    def weights(self, w, at):
        return [bind(w.load(at + t * self.block + half * 8, 8)) for half in range(2) for t in range(2)]

    def dots(self, acc, first, zipped, weights):
        for half in range(2):
            a, b = (
                intrinsic("int16x8", PREFIX + "smull.v8i16", zipped[2 * half + t], weights[2 * half + t])
                for t in range(2)
            )
            products = bind(a + b)
            for u in range(2):
                o = first + (2 * half + u) * 4
                acc.store(o, acc.load(o, 4) + cast(extract(products, 4 * u, 4), "int32"))


class SmullTapsAny(SmullTaps):
    """Every product is widened at once."""

    name = "smull_any_taps"

    def dots(self, acc, first, zipped, weights):
        for half in range(2):
            for t in range(2):
                at = 2 * half + t
                products = bind(intrinsic("int16x8", PREFIX + "smull.v8i16", zipped[at], weights[at]))
                for u in range(2):
                    o = first + (2 * half + u) * 4
                    acc.store(o, acc.load(o, 4) + cast(extract(products, 4 * u, 4), "int32"))


_VNNI_512, _SDOT = VnniTaps("vnni512_taps", 16, 28, 4), SdotTaps()
TAP_DOTS: dict[str, TapDot] = {
    "avx512vnni": _VNNI_512,
    "avx512vbmi": _VNNI_512,
    "avxvnni": VnniTaps("vnni256_taps", 8, 13, 2),
    "avx2": MaddTaps(),
    "neon": SmullTaps(),
    "neon_dotprod": _SDOT,
    "neon_i8mm": _SDOT,
}


def tap_dot(isa: str, weights: np.ndarray) -> TapDot:
    """The instructions that are exact for weights int8 [C, ...] of one filter a channel."""
    dot, lowest = TAP_DOTS[isa], (weights == -128).reshape(len(weights), -1).sum(1)
    return SmullTapsAny() if isinstance(dot, SmullTaps) and lowest.max(initial=0) > 1 else dot
