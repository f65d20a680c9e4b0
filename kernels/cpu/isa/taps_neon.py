"""Depthwise steps of 64-bit ARM: sdot and smull."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import bind, cast, extract, intrinsic
from qcompile.kernels.cpu.isa.dot_neon import PREFIX
from qcompile.kernels.cpu.isa.taps import TapDot


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
    shares_words = True
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
    shares_words = False

    def dots(self, acc, first, zipped, weights):
        for half in range(2):
            for t in range(2):
                at = 2 * half + t
                products = bind(intrinsic("int16x8", PREFIX + "smull.v8i16", zipped[at], weights[at]))
                for u in range(2):
                    o = first + (2 * half + u) * 4
                    acc.store(o, acc.load(o, 4) + cast(extract(products, 4 * u, 4), "int32"))
