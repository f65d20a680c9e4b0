"""Which tile of which instruction computes an [M, K] x [K, N] product in the fewest estimated cycles."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.kernels.cpu.isa.dot import Dot, Tile

TILE_OVERHEAD = 12.0  # cycles to begin a tile: offsets, loop set-up
PANEL_OVERHEAD = 20.0
TOLERANCE = 1.04  # the first tile this near to the best is taken, so that more layers share a kernel
STORE_CYCLES = 4.0  # to rescale and store one accumulator vector


@dataclass(frozen=True)
class Tiling:
    """`tile` for whole panels of NR channels, `tail` (columns that fit what N leaves over) for the last one."""

    dot: Dot
    tile: Tile | None
    tail: Tile | None
    tail_valid: int

    @property
    def rows(self) -> int:
        return (self.tile or self.tail).rows  # type: ignore[union-attr]

    def panels(self, n: int) -> list[tuple[int, int]]:
        """(first channel, columns) of each panel."""
        step = self.tile.columns if self.tile else 0
        whole = n // step if step else 0
        return [(i * step, step) for i in range(whole)] + ([(whole * step, self.tail.columns)] if self.tail else [])


def choose_tiling(dots: tuple[Dot, ...], m: int, n: int, run: int, runs: int, uniform: bool = False) -> Tiling:
    """The cheapest tiling for M rows, N channels and `runs` runs of `run` contiguous elements of K.

    uniform: the last panel is as wide as the others.
    """
    candidates = []
    for dot in dots:
        groups = runs * -(-run // dot.group)
        for rows, columns in dot.tiles:
            if rows > m:
                continue
            tail = n % columns
            if n < columns and tail <= columns - dot.column_step:
                continue  # a narrower tile is in the list, or is its tail
            whole = n // columns
            tile = dot.tile(rows, columns) if whole else None
            tail_columns = columns if uniform else -(-tail // dot.column_step) * dot.column_step
            rest = dot.tile(rows, tail_columns) if tail else None
            tiles = -(-m // rows)
            cost = 0.0
            for t, count in ((tile, whole), (rest, 1)):
                if t:
                    store = STORE_CYCLES * rows * t.columns / dot.lanes
                    cost += count * (PANEL_OVERHEAD + tiles * (groups * dot.cycles(t) + store + TILE_OVERHEAD))
            candidates.append((cost, Tiling(dot, tile, rest, tail)))
    best = min(cost for cost, _ in candidates)
    return next(tiling for cost, tiling in candidates if cost <= best * TOLERANCE)
