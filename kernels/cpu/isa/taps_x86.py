"""Depthwise steps of x86-64: vpdpbusd and vpmaddwd."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.builder import bind, cast, intrinsic, shuffle
from qcompile.kernels.cpu.isa.taps import TapDot


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
