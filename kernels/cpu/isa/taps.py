"""Depthwise convolution steps: taps of the same channels are zipped, then summed by the dot-product instructions.

A group is `group` taps of one kernel row; a tile is pixels x channels. Accumulators are in channel order.
"""
from __future__ import annotations

from collections.abc import Sequence

from qcompile.kernels.cpu.builder import Expr, Pointer, bind, cast, extract, intrinsic, shuffle
from qcompile.kernels.cpu.isa.dot import Dot, Tile
from qcompile.kernels.cpu.isa.neon import PREFIX

BLOCK = 16       # channels that are zipped at a time


class TapDot(Dot):
    """`zipped` and `accumulate` say how; the rest is common."""

    column_step = BLOCK
    rate = 1.0

    def loads(self, rows: int, columns: int) -> float:
        return rows * columns / BLOCK * (self.group + 4)

    @property
    def split_limit(self) -> int:
        return 1

    def step_taps(self, tile: Tile, acc: Pointer, x: Pointer, rows: Sequence[Expr], tap: Expr, w: Pointer, at: Expr, taps: int) -> None:
        """Adds one group of which `taps` taps exist; missing ones have zero weights and repeat the first."""
        for block in range(0, tile.columns, BLOCK):
            weights = self.weights(tile, w, at, block)
            for i, row in enumerate(rows):
                parts = [bind(x.load(row + (block + t * tap if t else block), BLOCK)) for t in range(taps)]
                parts += [parts[0]] * (self.group - taps)
                self.accumulate(acc, [self.index(tile, (i * tile.columns + block) // self.lanes + u) for u in range(BLOCK // self.lanes)],
                                parts, weights)

    def weights(self, tile: Tile, w: Pointer, at: Expr, block: int) -> list[Expr]:
        size = self.group * self.lanes
        return [bind(w.load(at + block * self.group + u * size, size)) for u in range(BLOCK // self.lanes)]

    def accumulate(self, acc: Pointer, units: list[int], parts: list[Expr], weights: list[Expr]) -> None:
        """Adds the products of the taps' 16 channels to the accumulators at `units`."""
        raise NotImplementedError


class VnniTaps(TapDot):
    """vpdpbusd over four zipped taps."""

    def __init__(self, name: str, lanes: int, tiles: tuple[tuple[int, int], ...]) -> None:
        self.name, self.lanes, self.tiles = name, lanes, tiles

    def accumulate(self, acc, units, parts, weights):
        size = 4 * self.lanes
        for u, (o, weight) in enumerate(zip(units, weights)):
            zipped = shuffle(parts, [t * BLOCK + u * self.lanes + c for c in range(self.lanes) for t in range(4)])
            acc.store(o, intrinsic(f"int32x{self.lanes}", f"llvm.x86.avx512.vpdpbusd.{size * 8}", acc.load(o, self.lanes), zipped, weight))


class MaddTaps(TapDot):
    """vpmaddwd over two zipped taps, widened to int16."""

    name = "madd_taps"
    group = 2
    lanes = 8
    tiles = ((4, 16), (2, 16), (1, 16))

    def accumulate(self, acc, units, parts, weights):
        for u, (o, weight) in enumerate(zip(units, weights)):
            zipped = shuffle(parts, [t * BLOCK + u * 8 + c for c in range(8) for t in range(2)])
            acc.store(o, acc.load(o, 8) + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", cast(zipped, "int16"), cast(weight, "int16")))


class SdotTaps(TapDot):
    """Two rounds of zips, then sdot."""

    name = "sdot_taps"
    tiles = ((4, 16), (2, 16), (1, 16))

    def accumulate(self, acc, units, parts, weights):
        for u, (o, weight) in enumerate(zip(units, _zip4(parts))):
            acc.store(o, intrinsic("int32x4", PREFIX + "sdot.v4i32.v16i8", acc.load(o, 4), weight, weights[u]))


def _zip(a: Expr, b: Expr, element: int) -> list[Expr]:
    """zip1 and zip2 of 16-byte registers with elements of `element` bytes."""
    units = [[s * 16 + (half * 8 // element + k) * element + e for k in range(8 // element) for s in (0, 1) for e in range(element)]
             for half in (0, 1)]
    return [bind(shuffle([a, b], lanes)) for lanes in units]


def _zip4(parts: list[Expr]) -> list[Expr]:
    ab, cd = _zip(parts[0], parts[1], 1), _zip(parts[2], parts[3], 1)
    return [*_zip(ab[0], cd[0], 2), *_zip(ab[1], cd[1], 2)]


class SmullTaps(TapDot):
    """ARMv8.0: two taps in an int16 sum, which |w| <= 127 keeps exact, then widened."""

    name = "smull_taps"
    group = 2
    interleaved = False
    tiles = ((4, 16), (2, 16), (1, 16))

    def weights(self, tile, w, at, block):
        return [bind(w.load(at + t * tile.columns + block + half * 8, 8)) for t in range(2) for half in range(2)]

    def accumulate(self, acc, units, parts, weights):
        for half in range(2):
            first, second = (intrinsic("int16x8", PREFIX + "smull.v8i16", extract(parts[t], 8 * half, 8), weights[2 * t + half])
                             for t in range(2))
            products = bind(first + second)
            for u in range(2):
                o = units[2 * half + u]
                acc.store(o, acc.load(o, 4) + cast(extract(products, 4 * u, 4), "int32"))


_SDOT = SdotTaps()
TAP_DOTS: dict[str, tuple[TapDot, ...]] = {
    "avx512vnni": (VnniTaps("vnni512_taps", 16, ((8, 16), (4, 16), (2, 16), (1, 16))),),
    "avx512vbmi": (VnniTaps("vnni512_taps", 16, ((8, 16), (4, 16), (2, 16), (1, 16))),),
    "avxvnni": (VnniTaps("vnni256_taps", 8, ((4, 16), (2, 16), (1, 16))),),
    "avx2": (MaddTaps(),), "neon": (SmullTaps(),), "neon_dotprod": (_SDOT,), "neon_i8mm": (_SDOT,),
}
