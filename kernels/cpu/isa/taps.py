"""Depthwise steps: neighbouring taps of 16 channels are zipped together, then summed by the dot-product instructions.

Activations lie in blocks of 16 channels, so that the taps of a kernel row are 16 bytes apart. A zipped group serves
every output row that uses it. Accumulators are in channel order: 16 / lanes registers for one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, bind, cast, extract, intrinsic, shuffle
from qcompile.kernels.cpu.isa.neon import PREFIX

BLOCK = 16  # channels


class TapDot:
    """`group` taps make a step; `outputs`: pixels that one pass keeps in registers."""

    name = ""
    group = 4
    lanes = 4
    outputs = 4
    aligned_outputs = 0  # columns of a pass that share zipped groups, where kernel rows are long; see depthwise.py
    shared = False  # zipped groups serve outputs that begin anywhere in them; see linear/depthwise_zip.py

    @property
    def units(self) -> int:
        """Accumulators of one pixel."""
        return BLOCK // self.lanes

    def pack(self, taps: np.ndarray) -> np.ndarray:
        """Weights of one block, int8 [16, group] -> as `dots` reads them."""
        return taps

    def zipped(self, x: Pointer, at: Expr, distance: int, taps: int) -> list[Expr]:
        """`taps` taps of 16 channels, `distance` bytes apart; those missing from the group repeat the first."""
        parts = [bind(x.load(at + t * distance, BLOCK)) for t in range(taps)]
        return self.zip(parts + [parts[0]] * (self.group - taps))

    def zip(self, parts: list[Expr]) -> list[Expr]:
        raise NotImplementedError

    def weights(self, w: Pointer, at: Expr) -> list[Expr]:
        size = self.group * self.lanes
        return [bind(w.load(at + u * size, size)) for u in range(self.units)]

    def dots(self, acc: Pointer, first: int, zipped: Sequence[Expr], weights: Sequence[Expr]) -> None:
        """Adds one group to the accumulators of a pixel, which begin at lane `first`."""
        raise NotImplementedError


class VnniTaps(TapDot):
    """vpdpbusd over four zipped taps."""

    def __init__(self, name: str, lanes: int, aligned_outputs: int) -> None:
        self.name, self.lanes, self.aligned_outputs = name, lanes, aligned_outputs

    def zipped(self, x, at, distance, taps):
        if distance != BLOCK:
            return super().zipped(x, at, distance, taps)
        # one load; bytes of taps that do not exist meet zero weights
        return self.zip([bind(x.load(at, 4 * BLOCK))])

    def zip(self, parts):
        return [
            bind(shuffle(parts, [t * BLOCK + u * self.lanes + c for c in range(self.lanes) for t in range(4)]))
            for u in range(self.units)
        ]

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
    lanes = 8

    def zip(self, parts):
        return [
            bind(cast(shuffle(parts, [t * BLOCK + u * 8 + c for c in range(8) for t in range(2)]), "int16"))
            for u in range(2)
        ]

    def weights(self, w, at):
        return [bind(cast(w.load(at + u * 16, 16), "int16")) for u in range(2)]

    def dots(self, acc, first, zipped, weights):
        for u in range(2):
            o = first + u * 8
            acc.store(o, acc.load(o, 8) + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", zipped[u], weights[u]))


class SdotTaps(TapDot):
    """Two rounds of zips, then sdot."""

    name = "sdot_taps"
    shared = True

    def zip(self, parts):
        ab, cd = _zip(parts[0], parts[1], 1), _zip(parts[2], parts[3], 1)
        return [*_zip(ab[0], cd[0], 2), *_zip(ab[1], cd[1], 2)]

    def dots(self, acc, first, zipped, weights):
        for u in range(4):
            o = first + u * 4
            acc.store(o, intrinsic("int32x4", PREFIX + "sdot.v4i32.v16i8", acc.load(o, 4), zipped[u], weights[u]))


def _zip(a: Expr, b: Expr, size: int) -> list[Expr]:
    """zip1 and zip2 of 16-byte registers with elements of `size` bytes."""
    return [
        bind(
            shuffle(
                [a, b],
                [s * 16 + half * 8 + k * size + e for k in range(8 // size) for s in (0, 1) for e in range(size)],
            )
        )
        for half in (0, 1)
    ]


class SmullTaps(TapDot):
    """ARMv8.0: two taps in an int16 sum, which |w| <= 127 keeps exact, then widened. Nothing is zipped."""

    name = "smull_taps"
    group = 2

    def pack(self, taps):
        return taps.T

    def zip(self, parts):
        return [extract(p, 8 * half, 8) for half in range(2) for p in parts]

    def weights(self, w, at):
        return [bind(w.load(at + t * BLOCK + half * 8, 8)) for half in range(2) for t in range(2)]

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


_VNNI_512, _SDOT = VnniTaps("vnni512_taps", 16, 12), SdotTaps()
TAP_DOTS: dict[str, TapDot] = {
    "avx512vnni": _VNNI_512,
    "avx512vbmi": _VNNI_512,
    "avxvnni": VnniTaps("vnni256_taps", 8, 4),
    "avx2": MaddTaps(),
    "neon": SmullTaps(),
    "neon_dotprod": _SDOT,
    "neon_i8mm": _SDOT,
}
