"""Matrix tiles of x86: vpdpbusd, and vpmaddwd where it is missing."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import T, bind, cast, intrinsic, reinterpret, splat
from qcompile.kernels.cpu.isa.dot import Digits, Dot


class Vnni(Dot):
    """vpdpbusd: four u8 x s8 products into each int32 lane; a lane is a channel, pixels are broadcast."""

    load_rate = 2.0
    row_pointers = True
    prefetches = True

    def __init__(self, name: str, lanes: int, registers: int, latency: int, tiles: tuple[tuple[int, int], ...]) -> None:
        self.name, self.lanes, self.registers, self.latency, self.tiles = name, lanes, registers, latency, tiles
        self.column_step = lanes

    def step(self, tile, acc, rows, w, groups, first=0):
        n, size = tile.columns // self.lanes, 4 * self.lanes
        for g in range(groups):
            panel = self.weights(tile, w, g)
            for i, row in enumerate(rows, first):
                pixel = T.broadcast(T.reinterpret("int32", row.load(g * 4, 4)), self.lanes)
                pixel = bind(reinterpret(pixel, "uint8", size))
                for j in range(n):
                    o = self.index(tile, i * n + j, g)
                    acc.store(
                        o,
                        intrinsic(
                            f"int32x{self.lanes}",
                            f"llvm.x86.avx512.vpdpbusd.{size * 8}",
                            acc.load(o, self.lanes),
                            pixel,
                            panel[j],
                        ),
                    )


class VnniDigits(Digits, Vnni):
    """vpdpbusd with weights of 4 bits."""

    def __init__(self, dot: Vnni) -> None:
        tiles = tuple(t for t in dot.tiles if t[1] % (2 * dot.lanes) == 0)
        super().__init__(dot.name + "_digits", dot.lanes, dot.registers, dot.latency, tiles)
        self.column_step = 2 * dot.lanes


class Madd(Dot):
    """AVX2: bytes widened to int16, vpmaddwd, exact. An accumulator holds two partial sums of each of four channels."""

    name = "madd"
    row_pointers = True
    in_order = begins_at_bias = False
    lanes = 8
    registers = 16
    rate = 1.0  # a product and an addition
    load_rate = 1.5
    latency = 1
    column_step = 8
    tiles = ((4, 8), (3, 8), (2, 16), (2, 8), (1, 32), (1, 16), (1, 8))

    def order(self, columns: int) -> list[int]:
        # vphaddd of two accumulators then gives eight channels in order
        return [8 * (i // 8) + (0, 1, 4, 5, 2, 3, 6, 7)[i % 8] for i in range(columns)]

    def accumulators(self, rows: int, columns: int) -> int:
        return rows * columns // 4

    def loads(self, rows: int, columns: int) -> float:
        return rows * 1.5 + columns / 4

    def step(self, tile, acc, rows, w, groups, first=0):
        n = tile.columns // 4
        for g in range(groups):
            pixels = []
            for row in rows:
                four = T.broadcast(T.reinterpret("int32", row.load(g * 4, 4)), 4)
                pixels.append(bind(cast(reinterpret(four, row.dtype, 16), "int16")))
            for j, weights in enumerate(self.weights(tile, w, g)):
                for i, pixel in enumerate(pixels, first):
                    o = self.index(tile, i * n + j, g)
                    acc.store(o, acc.load(o, 8) + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", pixel, weights))

    def weights(self, tile, w, g):
        first, size = g * tile.columns * 4, 16
        return [bind(cast(w.load(first + at, size), "int16")) for at in range(0, tile.columns * 4, size)]

    def finish(self, tile, acc, rows=None):
        n = tile.columns // 4
        return [
            [
                intrinsic(
                    "int32x8",
                    "llvm.x86.avx2.phadd.d",
                    self.total(tile, acc, i * n + j),
                    self.total(tile, acc, i * n + j + 1),
                )
                for j in range(0, n, 2)
            ]
            for i in rows or range(tile.rows)
        ]


class MaddDigits(Madd):
    """vpmaddwd with weights of 4 bits: bytes are widened anyway, and what they become is taken apart exactly."""

    name = "madd_digits"
    digits = True
    digit_bytes = 16

    def weights(self, tile, w, g):
        four, twelve, eight = (splat(v, "int16", 16) for v in (4, 12, 8))
        vectors, first = [], g * tile.columns * 2
        for at in range(0, tile.columns * 2, 16):
            both = bind(cast(w.load(first + at, 16), "int16"))
            vectors += [
                bind(T.shift_right(T.shift_left(both, twelve), twelve)),
                bind(T.shift_right(both + eight, four)),
            ]
        return vectors


# More than ten pixels need more address registers than x86 has
VNNI_512 = Vnni(
    "vnni512",
    16,
    32,
    5,
    (
        (6, 64),
        (5, 64),
        (8, 48),
        (10, 32),
        (9, 32),
        (8, 32),
        (7, 48),
        (7, 32),
        (6, 48),
        (6, 32),
        (5, 48),
        (4, 64),
        (4, 48),
        (4, 32),
        (3, 64),
        (3, 48),
        (3, 32),
        (2, 64),
        (2, 48),
        (2, 32),
        (1, 64),
        (1, 48),
        (1, 32),
        (10, 16),
        (8, 16),
        (6, 16),
        (4, 16),
        (3, 16),
        (2, 16),
        (1, 16),
    ),
)
VNNI_256 = Vnni(
    "vnni256",
    8,
    16,
    5,
    (
        (6, 16),
        (4, 24),
        (5, 16),
        (4, 16),
        (3, 24),
        (3, 16),
        (2, 32),
        (2, 16),
        (1, 64),
        (1, 32),
        (1, 16),
        (10, 8),
        (8, 8),
        (6, 8),
        (4, 8),
        (2, 8),
        (1, 8),
    ),
)
VNNI_512_DIGITS = VnniDigits(VNNI_512)
VNNI_256_DIGITS = VnniDigits(VNNI_256)
