"""Matrix tiles of 64-bit ARM: sdot, smull and smlal, smmla."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import Expr, T, bind, concat, extract, intrinsic, reinterpret, shuffle
from qcompile.kernels.cpu.isa.dot import Digits, Dot, Walk

PREFIX = "llvm.aarch64.neon."  # of intrinsics
# Speed against the size of the code: a loop begins and ends a tile 10 to 25 cycles later than code without
STRAIGHT_STEPS = 4  # a run of no more steps is code without a loop
STRAIGHT_RUNS = 12  # and so are several runs of no more
APART_STEPS = 16  # up to here the first and the last step are no part of the loop


class Sdot(Dot):
    """sdot by element: four products into each int32 lane; a register holds four groups of one pixel."""

    name = "sdot"
    multiplies_bytes = True
    resident_bias = True
    unroll = 4
    part_rows = 4
    latency = 4
    tiles: tuple[tuple[int, int], ...] = (
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
        (1, 64),
        (1, 32),
        (1, 16),
        (1, 8),
        (8, 4),
        (4, 4),
        (2, 4),
        (1, 4),
    )

    def loads(self, rows: int, columns: int) -> float:
        return rows / 4 + columns / self.lanes

    def walk(self, groups: int, runs: int = 1, taps: int = 1) -> Walk:
        whole, left = divmod(groups, self.unroll)
        several, steps = runs * taps > 1, -(-groups // self.unroll)
        straight = runs * taps * steps <= STRAIGHT_RUNS if several else steps <= STRAIGHT_STEPS
        known = straight or (several and whole <= STRAIGHT_STEPS)
        apart = not known and not several and steps <= APART_STEPS
        return Walk(whole if known else None, left, (runs, taps) if straight else None, apart)

    def step(self, tile, acc, rows, w, groups, first=0):
        n = tile.columns // 4
        for at in range(0, groups, 4):
            count = min(4, groups - at)
            # fewer groups: what the load reads beyond them is not used
            loads = [row.load(at * 4, 16) for row in rows]
            pixels = [bind(_whole(load) if count == 1 else load) for load in loads]
            for g in range(count):
                for j, weights in enumerate(self.weights(tile, w, at + g)):
                    for i, pixel in enumerate(pixels, first):
                        o = self.index(tile, i * n + j, g)
                        acc.store(
                            o,
                            intrinsic("int32x4", PREFIX + "sdot.v4i32.v16i8", acc.load(o, 4), weights, _lane(pixel, g)),
                        )


class SdotDigits(Digits, Sdot):
    """sdot with weights of 4 bits."""

    name = "sdot_digits"
    column_step = 8
    tiles = tuple(t for t in Sdot.tiles if t[1] % 8 == 0)


def _lane(pixel: Expr, g: int) -> Expr:
    """Four bytes of a register in all lanes, which LLVM folds into the instruction's index."""
    return reinterpret(T.broadcast(extract(reinterpret(pixel, "int32", 4), g, 1), 4), "int8", 16)


def _whole(load: Expr) -> Expr:
    """The load of a register of which one lane is used: LLVM would load that lane into all, which takes a slot of the
    vector units. A fence is no instruction; it is there for floats, whose bits pass unchanged."""
    fenced = intrinsic("float32x4", "llvm.arithmetic.fence", reinterpret(load, "float32", 4))
    return reinterpret(fenced, "int8", 16)


class Smull(Dot):
    """ARMv8.0: smull, smlal, sadalp. Sixteen products in four partial sums of one channel.

    Two products of -128 and w, -128 and v are at most 128 * 255 in 16 bits unless w = v = -128.
    """

    name = "smull"
    multiplies_bytes = True
    in_order = begins_at_bias = False
    group = pair = 8
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

    def step(self, tile, acc, rows, w, groups, first=0):
        pixels = [[bind(row.load(8 * g, 8)) for g in range(groups)] for row in rows]
        for j in range(tile.columns):
            weights = [bind(w.load((g * tile.columns + j) * 8, 8)) for g in range(groups)]
            for i, pixel in enumerate(pixels, first):
                products = [intrinsic("int16x8", PREFIX + "smull.v8i16", p, q) for p, q in zip(pixel, weights)]
                o = self.index(tile, i * tile.columns + j)
                pairs = intrinsic("int32x4", PREFIX + "saddlp.v4i32.v8i16", sum(products[1:], products[0]))
                acc.store(o, acc.load(o, 4) + pairs)

    def finish(self, tile, acc, rows=None):
        def channels(i: int, j: int) -> Expr:
            sums = [self.total(tile, acc, i * tile.columns + j + c) for c in range(4)]
            while len(sums) > 1:
                sums = [intrinsic("int32x4", PREFIX + "addp.v4i32", a, b) for a, b in zip(sums[::2], sums[1::2])]
            return sums[0]

        return [[channels(i, j) for j in range(0, tile.columns, 4)] for i in rows or range(tile.rows)]


class SmullAny(Smull):
    """For operands that are -128 side by side: every product is widened at once."""

    name = "smull_any"
    unroll = 1
    pair = 0


class Smmla(Dot):
    """smmla: two pixels x two channels x eight products; an accumulator is [pixel][channel]."""

    name = "smmla"
    multiplies_bytes = True
    in_order = begins_at_bias = False
    group = 8
    unroll = 2
    latency = 4
    row_step = 2
    tiles = ((8, 8), (4, 16), (6, 8), (4, 8), (2, 16), (2, 8), (8, 4), (4, 4), (2, 4))

    def loads(self, rows: int, columns: int) -> float:
        return rows + columns / 2

    def step(self, tile, acc, rows, w, groups, first=0):
        n = tile.columns // 2
        pairs = []
        for i in range(0, len(rows), 2):
            a, b = (bind(row.load(0, 8 * groups)) for row in rows[i : i + 2])
            pairs.append([bind(concat([extract(a, 8 * g, 8), extract(b, 8 * g, 8)])) for g in range(groups)])
        for g in range(groups):
            for j, weights in enumerate(self.weights(tile, w, g)):
                for i, pair in enumerate(pairs, first // 2):
                    o = self.index(tile, i * n + j, g)
                    acc.store(o, intrinsic("int32x4", PREFIX + "smmla.v4i32.v16i8", acc.load(o, 4), pair[g], weights))

    def finish(self, tile, acc, rows=None):
        n = tile.columns // 2

        def halves(i: int, j: int) -> Expr:
            pairs = [self.total(tile, acc, i // 2 * n + j + c) for c in range(2)]
            return shuffle(pairs, [0, 1, 4, 5] if i % 2 == 0 else [2, 3, 6, 7])

        return [[halves(i, j) for j in range(0, n, 2)] for i in rows or range(tile.rows)]


class SmmlaDigits(Digits, Smmla):
    """smmla with weights of 4 bits."""

    name = "smmla_digits"
