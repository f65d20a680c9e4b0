"""Which tile of which instruction computes an [M, K] x [K, N] product in the fewest estimated cycles."""

from __future__ import annotations

from dataclasses import dataclass, field

from qcompile.kernels.cpu.codes import UNIT, Code
from qcompile.kernels.cpu.isa.dot import Dot, Tile

TILE_OVERHEAD = 12.0  # cycles to begin a tile: offsets, loop set-up
PANEL_OVERHEAD = 20.0
TOLERANCE = 1.04  # the first tile this near to the best is taken, so that more layers share a kernel
STORE_CYCLES = 4.0  # to rescale and store one accumulator vector
END_CYCLES = 2.0  # to multiply and add the sums of a group along K, for each vector
DECODED_BYTES = 1 << 17  # a panel of weights that is decoded to the stack takes no more


@dataclass(frozen=True)
class Tiling:
    """`tile` for whole panels of NR channels, `tail` (columns that fit what N leaves over) for the last one.

    code: panels are decoded from it into memory before their tiles, or, inline, in registers by every tile. cycles:
    the estimate for the whole product.
    """

    dot: Dot
    tile: Tile | None
    tail: Tile | None
    tail_valid: int
    code: Code | None = None
    inline: bool = False
    cycles: float = field(default=0.0, compare=False, repr=False)

    @property
    def widest(self) -> Tile:
        """The tile of whole panels, or the tail where there are none."""
        tile = self.tile or self.tail
        assert tile is not None
        return tile

    @property
    def rows(self) -> int:
        return self.widest.rows

    @property
    def columns(self) -> int:
        """Of the widest panel."""
        return self.widest.columns

    def panel_bytes(self, run: int, runs: int) -> int:
        """Of the widest panel, decoded, of weights of `runs` runs of `run` elements of K."""
        return runs * -(-run // self.dot.group) * self.dot.group * self.columns

    def panels(self, n: int) -> list[tuple[int, int]]:
        """(first channel, columns) of each panel."""
        step = self.tile.columns if self.tile else 0
        whole = n // step if step else 0
        return [(i * step, step) for i in range(whole)] + ([(whole * step, self.tail.columns)] if self.tail else [])


def choose_tiling(
    dots: tuple[Dot, ...],
    m: int,
    n: int,
    run: int,
    runs: int,
    uniform: bool = False,
    code: Code | None = None,
    inline: bool = False,
) -> Tiling:
    """The cheapest tiling for M rows, N channels and `runs` runs of `run` contiguous elements of K.

    uniform: the last panel is as wide as the others. code: the weights are decoded to panels of bytes, all equally
    wide, or, inline, to registers.
    """
    candidates = []
    for dot in dots:
        groups = runs * -(-run // dot.group)
        for rows, columns in _tiles(dot, m, 0 if inline else groups, code):
            tail = n % columns
            if n < columns and tail <= columns - dot.column_step:
                continue  # a narrower tile is in the list, or is its tail
            whole = n // columns
            tile = dot.tile(rows, columns) if whole else None
            same = uniform or code is not None
            tail_columns = columns if same else -(-tail // dot.column_step) * dot.column_step
            rest = dot.tile(rows, tail_columns) if tail else None
            tiles = -(-m // rows)
            cost = 0.0
            for t, count in ((tile, whole), (rest, 1)):
                if t:
                    store = STORE_CYCLES * rows * t.columns / dot.lanes
                    panel = PANEL_OVERHEAD + tiles * (groups * dot.cycles(t) + store + TILE_OVERHEAD)
                    vectors = groups * dot.packed_bytes(t.columns) / dot.vector_bytes
                    if inline and code:  # and the sums of the pixels, and multipliers at the end of each group
                        ends = rows * vectors * dot.group / code.group if code.group else 0
                        panel += tiles * (vectors * dot.unpack_cycles + rows * groups / dot.rate + ends * END_CYCLES)
                    elif code:
                        panel += vectors * dot.decode_cycles
                    cost += count * panel
            candidates.append((cost, Tiling(dot, tile, rest, tail, code, inline, cost)))
    best = min(cost for cost, _ in candidates)
    return next(tiling for cost, tiling in candidates if cost <= best * TOLERANCE)


def _tiles(dot: Dot, m: int, groups: int, code: Code | None) -> list[tuple[int, int]]:
    """The (rows, columns) that M rows can have; with a code those whose panel has 1, 2, 4 or 8 vectors for each group
    and fits the stack, or the narrowest."""
    tiles = [t for t in dot.tiles if t[0] <= m]
    if code is None:
        return tiles
    vectors = {t: t[1] * dot.group // dot.vector_bytes for t in tiles}
    tiles = [t for t in tiles if UNIT % vectors[t] == 0]
    if code.group:  # which begin with a whole unit
        tiles = [t for t in tiles if code.group * t[1] % (UNIT * dot.vector_bytes) == 0]
    small = [t for t in tiles if groups * t[1] * dot.group <= DECODED_BYTES]
    return small or [t for t in tiles if t[1] == min(c for _, c in tiles)]
