"""Dot-product instructions: how a tile of MR pixels x NR channels is kept, fed and read out.

Each class packs `group` neighbouring elements of K per channel: the packed weights of one panel are
[K / group][NR][group], channels in the order of `order(nr)`. A step takes 1 or `unroll` groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    cast,
    concat,
    extract,
    intrinsic,
    local,
    reinterpret,
    shuffle,
    splat,
)
from qcompile.kernels.cpu.isa.neon import PREFIX

LOAD_PRESSURE = 0.1  # cycles that a load costs even where another unit is the bottleneck


@dataclass(frozen=True)
class Tile:
    """rows x columns of accumulators; `split` independent sums over K hide the latency of few accumulators."""

    rows: int
    columns: int
    split: int = 1


class Dot:
    """One family. `lanes`: int32 lanes of an accumulator register; `per_channel`: lanes that one channel takes."""

    name = ""
    group = 4
    unroll = 1
    lanes = 4
    registers = 32
    rate = 2.0  # dot products a cycle
    load_rate = 2.0  # vector loads a cycle
    latency = 4  # cycles from one accumulation to the next
    row_step = 1
    column_step = 4
    tiles: tuple[tuple[int, int], ...] = ()  # (rows, columns) that fit the registers

    def order(self, columns: int) -> list[int]:
        """Channel at each position of a panel."""
        return list(range(columns))

    def accumulators(self, rows: int, columns: int) -> int:
        return rows * columns // self.lanes

    def dots(self, rows: int, columns: int) -> float:
        """Dot-product instructions for one group."""
        return self.accumulators(rows, columns)

    def loads(self, rows: int, columns: int) -> float:
        """Loads, broadcasts and shuffles for one group."""
        return rows + columns / self.lanes

    def tile(self, rows: int, columns: int) -> Tile:
        """The tile, its sums split as far as it takes to keep the multipliers busy."""
        split = 1
        while self.accumulators(rows, columns) * split < self.latency * self.rate and split < self.split_limit:
            split *= 2
        return Tile(rows, columns, split)

    @property
    def split_limit(self) -> int:
        return 4

    def groups_a_step(self, tile: Tile) -> int:
        return max(self.unroll, tile.split)

    def cycles(self, tile: Tile) -> float:
        """Estimated cycles for one group of the whole tile."""
        r, c = tile.rows, tile.columns
        dots = self.dots(r, c)
        chains = self.latency * dots / max(1, self.accumulators(r, c) * tile.split)
        loads = self.loads(r, c)
        return max(dots / self.rate, loads / self.load_rate, chains) + LOAD_PRESSURE * loads

    # ---- code

    def index(self, tile: Tile, unit: int, g: int = 0) -> int:
        """Offset of accumulator `unit` in the local array, for group g of a step."""
        return ((g % tile.split) * self.accumulators(tile.rows, tile.columns) + unit) * self.lanes

    def start(self, tile: Tile) -> Pointer:
        """Cleared accumulators."""
        count = self.accumulators(tile.rows, tile.columns) * tile.split
        acc = local(count * self.lanes, "int32")
        for unit in range(count):
            acc.store(unit * self.lanes, splat(0, "int32", self.lanes))
        return acc

    def total(self, tile: Tile, acc: Pointer, unit: int) -> Expr:
        """An accumulator, its split sums added."""
        parts = [acc.load(self.index(tile, unit, s), self.lanes) for s in range(tile.split)]
        return sum(parts[1:], parts[0])

    def step(
        self, tile: Tile, acc: Pointer, x: Pointer, rows: Sequence[Expr], w: Pointer, at: Expr, groups: int
    ) -> None:
        """Adds `groups` groups; rows: offsets of the tile's pixels in x, at: offset in the packed weights."""
        raise NotImplementedError

    def finish(self, tile: Tile, acc: Pointer) -> list[list[Expr]]:
        """The sums as vectors of int32 in channel order: [row][vector]."""
        n = tile.columns // self.lanes
        return [[self.total(tile, acc, i * n + j) for j in range(n)] for i in range(tile.rows)]


class Vnni(Dot):
    """vpdpbusd: four u8 x s8 products into each int32 lane; a lane is a channel, pixels are broadcast."""

    load_rate = 2.0

    def __init__(
        self, name: str, lanes: int, registers: int, latency: int, tiles: tuple[tuple[int, int], ...]
    ) -> None:
        self.name, self.lanes, self.registers, self.latency, self.tiles = name, lanes, registers, latency, tiles
        self.column_step = lanes

    def step(self, tile, acc, x, rows, w, at, groups):
        n, size = tile.columns // self.lanes, 4 * self.lanes
        for g in range(groups):
            panel = [bind(w.load(at + g * tile.columns * 4 + j * size, size)) for j in range(n)]
            for i, row in enumerate(rows):
                pixel = T.broadcast(T.reinterpret("int32", x.load(row + g * 4, 4)), self.lanes)
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


class Madd(Dot):
    """AVX2: bytes widened to int16, vpmaddwd, exact. An accumulator holds two partial sums of each of four channels."""

    name = "madd"
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

    def step(self, tile, acc, x, rows, w, at, groups):
        n = tile.columns // 4
        for g in range(groups):
            pixels = []
            for row in rows:
                four = T.broadcast(T.reinterpret("int32", x.load(row + g * 4, 4)), 4)
                pixels.append(bind(cast(reinterpret(four, x.dtype, 16), "int16")))
            for j in range(n):
                weights = bind(cast(w.load(at + g * tile.columns * 4 + j * 16, 16), "int16"))
                for i, pixel in enumerate(pixels):
                    o = self.index(tile, i * n + j, g)
                    acc.store(o, acc.load(o, 8) + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", pixel, weights))

    def finish(self, tile, acc):
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
            for i in range(tile.rows)
        ]


class Sdot(Dot):
    """sdot by element: four products into each int32 lane; a register holds four groups of one pixel."""

    name = "sdot"
    unroll = 4
    latency = 4
    tiles = (
        (8, 8),
        (7, 12),
        (6, 12),
        (4, 16),
        (7, 8),
        (6, 8),
        (5, 12),
        (5, 8),
        (4, 12),
        (4, 8),
        (3, 16),
        (3, 8),
        (2, 16),
        (2, 8),
        (1, 16),
        (1, 8),
        (8, 4),
        (4, 4),
        (2, 4),
        (1, 4),
    )

    def loads(self, rows: int, columns: int) -> float:
        return rows / 4 + columns / self.lanes

    def step(self, tile, acc, x, rows, w, at, groups):
        n = tile.columns // 4
        for first in range(0, groups, 4):
            count = min(4, groups - first)
            pixels = [bind(x.load(row + first * 4, 16) if count == 4 else self._four(x, row)) for row in rows]
            for g in range(count):
                for j in range(n):
                    weights = bind(w.load(at + ((first + g) * tile.columns + 4 * j) * 4, 16))
                    for i, pixel in enumerate(pixels):
                        o = self.index(tile, i * n + j, g)
                        acc.store(
                            o,
                            intrinsic(
                                "int32x4", PREFIX + "sdot.v4i32.v16i8", acc.load(o, 4), weights, _lane(pixel, g)
                            ),
                        )

    @staticmethod
    def _four(x: Pointer, row: Expr) -> Expr:
        return reinterpret(T.broadcast(T.reinterpret("int32", x.load(row, 4)), 4), "int8", 16)


def _lane(pixel: Expr, g: int) -> Expr:
    """Four bytes of a register in all lanes, which LLVM folds into the instruction's index."""
    return reinterpret(T.broadcast(extract(reinterpret(pixel, "int32", 4), g, 1), 4), "int8", 16)


class Smull(Dot):
    """ARMv8.0: smull, smlal, sadalp. Sixteen products in four partial sums of one channel; needs |w| <= 127."""

    name = "smull"
    group = 8
    unroll = 2
    rate = 0.5
    latency = 2
    tiles = ((4, 4), (3, 4), (2, 8), (2, 4), (1, 16), (1, 8), (1, 4))

    def accumulators(self, rows: int, columns: int) -> int:
        return rows * columns

    def loads(self, rows: int, columns: int) -> float:
        return (rows + columns) / 2

    @property
    def split_limit(self) -> int:
        return 1

    def step(self, tile, acc, x, rows, w, at, groups):
        pixels = [[bind(x.load(row + 8 * g, 8)) for g in range(groups)] for row in rows]
        for j in range(tile.columns):
            weights = [bind(w.load(at + (g * tile.columns + j) * 8, 8)) for g in range(groups)]
            for i, pixel in enumerate(pixels):
                products = [intrinsic("int16x8", PREFIX + "smull.v8i16", p, q) for p, q in zip(pixel, weights)]
                o = self.index(tile, i * tile.columns + j)
                pairs = intrinsic("int32x4", PREFIX + "saddlp.v4i32.v8i16", sum(products[1:], products[0]))
                acc.store(o, acc.load(o, 4) + pairs)

    def finish(self, tile, acc):
        def channels(i: int, j: int) -> Expr:
            sums = [self.total(tile, acc, i * tile.columns + j + c) for c in range(4)]
            while len(sums) > 1:
                sums = [intrinsic("int32x4", PREFIX + "addp.v4i32", a, b) for a, b in zip(sums[::2], sums[1::2])]
            return sums[0]

        return [[channels(i, j) for j in range(0, tile.columns, 4)] for i in range(tile.rows)]


class SmullAny(Smull):
    """For operands down to -128: every product is widened at once."""

    name = "smull_any"
    unroll = 1


class Smmla(Dot):
    """smmla: two pixels x two channels x eight products; an accumulator is [pixel][channel]."""

    name = "smmla"
    group = 8
    unroll = 2
    latency = 4
    row_step = 2
    tiles = ((8, 8), (4, 16), (6, 8), (4, 8), (2, 16), (2, 8), (8, 4), (4, 4), (2, 4))

    def loads(self, rows: int, columns: int) -> float:
        return rows + columns / 2

    def step(self, tile, acc, x, rows, w, at, groups):
        n = tile.columns // 2
        pairs = []
        for i in range(0, tile.rows, 2):
            a, b = (bind(x.load(row, 8 * groups)) for row in rows[i : i + 2])
            pairs.append([bind(concat([extract(a, 8 * g, 8), extract(b, 8 * g, 8)])) for g in range(groups)])
        for g in range(groups):
            for j in range(n):
                weights = bind(w.load(at + (g * tile.columns + 2 * j) * 8, 16))
                for i, pair in enumerate(pairs):
                    o = self.index(tile, i * n + j, g)
                    acc.store(o, intrinsic("int32x4", PREFIX + "smmla.v4i32.v16i8", acc.load(o, 4), pair[g], weights))

    def finish(self, tile, acc):
        n = tile.columns // 2

        def halves(i: int, j: int) -> Expr:
            pairs = [self.total(tile, acc, i // 2 * n + j + c) for c in range(2)]
            return shuffle(pairs, [0, 1, 4, 5] if i % 2 == 0 else [2, 3, 6, 7])

        return [[halves(i, j) for j in range(0, n, 2)] for i in range(tile.rows)]


# More than ten pixels need more address registers than x86 has
VNNI_512 = Vnni(
    "vnni512",
    16,
    32,
    5,
    (
        (8, 48),
        (10, 32),
        (9, 32),
        (8, 32),
        (7, 48),
        (7, 32),
        (6, 64),
        (6, 48),
        (6, 32),
        (5, 64),
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

DOTS: dict[str, tuple[Dot, ...]] = {
    "avx512vnni": (VNNI_512,),
    "avx512vbmi": (VNNI_512,),
    "avxvnni": (VNNI_256,),
    "avx2": (Madd(),),
    "neon": (Smull(),),
    "neon_dotprod": (Sdot(),),
    "neon_i8mm": (Smmla(), Sdot()),
}
# both operands are activations, which may be -128
ACTIVATION_DOTS: dict[str, tuple[Dot, ...]] = DOTS | {"neon": (SmullAny(),)}
