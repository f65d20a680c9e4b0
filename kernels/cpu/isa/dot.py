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
    lanes_of,
    local,
    reinterpret,
    settle,
    splat,
)

RESERVED = 4  # registers for weights and pixels beside the accumulators
LOAD_PRESSURE = 0.1  # cycles that a load costs even where another unit is the bottleneck


@dataclass(frozen=True)
class Tile:
    """rows x columns of accumulators; `split` independent sums over K hide the latency of few accumulators."""

    rows: int
    columns: int
    split: int = 1


@dataclass(frozen=True)
class Walk:
    """What code knows of the walk along K. steps: whole steps of a run, None: a loop of at least one; left: groups
    that they leave over; straight: (runs, taps) where all of it is code without a loop; apart: the only run's first and
    last step are code of their own, which the scheduler of the CPU can mix with what begins and ends a tile."""

    steps: int | None
    left: int
    straight: tuple[int, int] | None = None
    apart: bool = False


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
    resident_bias = False  # accumulators are loaded with the bias, not copied from registers that hold it
    prefetches = False  # weights of the next panel are asked for while one is at work
    row_pointers = False  # pixels have address registers of their own
    in_order = True  # an accumulator's lanes are neighbouring channels of one pixel
    begins_at_bias = True  # of those channels
    multiplies_bytes = False  # vectors of bytes, each modulo 256
    part_rows = 0  # pixels whose sums are finished, and begin to be rescaled, before the next ones'; 0: all at once
    pair = 0  # distance along K of two products that share 16 bits, which two of -128 times -128 overflow; 0: none do
    digits = False  # packed weights are signed digits of 4 bits, a byte two of them
    decode_cycles = 3.0  # to bring one vector of coded weights to a panel of bytes
    unpack_cycles = 1.0  # to a register

    def __repr__(self) -> str:
        return self.name

    @property
    def vector_bytes(self) -> int:
        """Bytes of a register."""
        return 4 * self.lanes

    @property
    def digit_bytes(self) -> int:
        """Bytes of the vectors that pairs of digits are of."""
        return self.vector_bytes

    def packed_bytes(self, columns: int) -> int:
        """Bytes of one group of a panel."""
        return columns * self.group // (2 if self.digits else 1)

    @property
    def macs_a_cycle(self) -> float:
        """Products in a cycle at best."""
        return self.rate * self.lanes * self.group

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
        """The tile, its sums split as far as it takes to keep the multipliers busy, and as registers allow."""
        split, units = 1, self.accumulators(rows, columns)
        while (
            units * split < self.latency * self.rate
            and split < self.split_limit
            and 2 * units * split <= self.registers - RESERVED
        ):
            split *= 2
        return Tile(rows, columns, split)

    @property
    def split_limit(self) -> int:
        return 4

    def walk(self, groups: int, runs: int = 1, taps: int = 1) -> Walk | None:
        """What the code is to know of the walk along K, runs * taps runs of `groups` each; None: nothing."""
        return None

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

    def start(self, tile: Tile, bias: Sequence[Expr] = ()) -> Pointer:
        """Accumulators that begin at zero; at `bias` (vectors of one pixel's channels) where they are in order."""
        units = self.accumulators(tile.rows, tile.columns)
        acc = local(units * tile.split * self.lanes, "int32")
        for unit in range(units * tile.split):
            biased = bias and unit < units
            acc.store(unit * self.lanes, bias[unit % len(bias)] if biased else splat(0, "int32", self.lanes))
        return acc

    def settle(self, tile: Tile, acc: Pointer) -> None:
        """All accumulators are what they are here: no sum is put off."""
        units = self.accumulators(tile.rows, tile.columns) * tile.split
        settle([acc.load(unit * self.lanes, self.lanes) for unit in range(units)])

    def total(self, tile: Tile, acc: Pointer, unit: int) -> Expr:
        """An accumulator, its split sums added."""
        parts = [acc.load(self.index(tile, unit, s), self.lanes) for s in range(tile.split)]
        return sum(parts[1:], parts[0])

    def weights(self, tile: Tile, w: Pointer | Sequence[Expr], g: int) -> Sequence[Expr]:
        """The vectors of packed weights of group g, loaded or as they are given."""
        if not isinstance(w, Pointer):
            n = tile.columns * self.group // self.vector_bytes
            return w[g * n : (g + 1) * n]
        size, first = self.vector_bytes, g * self.packed_bytes(tile.columns)
        return [bind(w.load(first + at, size)) for at in range(0, self.packed_bytes(tile.columns), size)]

    def parts(self, tile: Tile) -> list[range]:
        """The rows of a tile as they are finished."""
        size = self.part_rows or tile.rows
        return [range(at, min(at + size, tile.rows)) for at in range(0, tile.rows, size)]

    def step(
        self,
        tile: Tile,
        acc: Pointer,
        rows: Sequence[Pointer],
        w: Pointer | Sequence[Expr],
        groups: int,
        first: int = 0,
    ) -> None:
        """Adds `groups` groups; rows: where pixels `first`, first + 1, ... of the tile begin; w: where the packed
        weights do, or (where accumulators are in order) their vectors."""
        raise NotImplementedError

    def finish(self, tile: Tile, acc: Pointer, rows: Sequence[int] | None = None) -> list[list[Expr]]:
        """The sums as vectors of int32 in channel order: [row][vector]; rows: of these only."""
        n = tile.columns // self.lanes
        return [[self.total(tile, acc, i * n + j) for j in range(n)] for i in rows or range(tile.rows)]


class Digits(Dot):
    """A dot product whose weights are signed digits: a byte is 16 * odd + even, of two neighbouring vectors.

    Shifted left by 4 it is 16 * even, as it is it adds 16 * odd + even: two instructions for both vectors instead of
    five. The sums are set right at the end: S_even = a >> 4, S_odd = (b - S_even) >> 4.
    """

    digits = True
    begins_at_bias = False  # but at zero: the bias is added to what the sums become
    resident_bias = False
    digit_cycles = 0.5  # to take a register of digits apart

    def cycles(self, tile: Tile) -> float:
        return super().cycles(tile) + self.packed_bytes(tile.columns) / self.vector_bytes * self.digit_cycles

    def weights(self, tile: Tile, w: Pointer | Sequence[Expr], g: int) -> Sequence[Expr]:
        vectors: list[Expr] = []
        for both in super().weights(tile, w, g):
            vectors += [bind(self.even_digits(both)), both]
        return vectors

    def even_digits(self, both: Expr) -> Expr:
        """16 * even of each byte."""
        n = lanes_of(both)
        return reinterpret(T.shift_left(reinterpret(both, "uint8", n), splat(4, "uint8", n)), "int8", n)

    def total(self, tile: Tile, acc: Pointer, unit: int) -> Expr:
        four = splat(4, "int32", self.lanes)
        even = bind(T.shift_right(super().total(tile, acc, unit & ~1), four))
        return T.shift_right(super().total(tile, acc, unit) - even, four) if unit & 1 else even
