"""Where neighbouring pixels of an image lie in memory, when they go over the ends of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, local


@dataclass(frozen=True)
class PixelWalk:
    """Neighbouring pixels on rows of an image: `step` apart, `wrap_step` where the next one begins a row; None: all
    lie on one row. `column`: of the first pixel. selects: by selections rather than products: see `Isa`."""

    first: Expr
    column: Expr
    width: Expr
    step: Expr
    wrap_step: Expr | None
    selects: bool = True

    def offsets(self, count: int) -> list[Expr]:
        """Of each pixel, in code without branches."""
        if self.wrap_step is None:
            first = bind(self.first)
            return [bind(first + i * self.step) for i in range(count)]
        # in memory rather than bound: TIR's analyzer would follow the chain of selections, at exponential cost
        offsets, columns = local(count, "int32"), local(count, "int32")
        offsets.store(0, self.first)
        columns.store(0, self.column)
        for i in range(1, count):
            self._advance(offsets, columns, i - 1, i)
        return [bind(offsets.load(i)) for i in range(count)]

    def steps(self) -> Callable[[int], list[Expr]]:
        """For a loop over pixels: the offsets of the next so many."""
        offsets, columns = local(1, "int32"), local(1, "int32")
        offsets.store(0, self.first)
        columns.store(0, self.column)

        def walk(count: int) -> list[Expr]:
            places = []
            for _ in range(count):
                places.append(bind(offsets.load(0)))
                self._advance(offsets, columns, 0, 0)
            return places

        return walk

    def _advance(self, offsets: Pointer, columns: Pointer, here: int, there: int) -> None:
        if self.wrap_step is None:
            offsets.store(there, offsets.load(here) + self.step)
            return
        if self.selects:
            wraps = bind(columns.load(here) + 1 >= self.width)
            offsets.store(there, offsets.load(here) + T.Select(wraps, self.wrap_step, self.step))
            columns.store(there, T.Select(wraps, T.int32(0), columns.load(here) + 1))
        else:
            column = columns.load(here) + 1
            ends = bind(T.max(column - (self.width - 1), T.int32(0)))  # 1 where a row ends
            offsets.store(there, offsets.load(here) + self.step + ends * (self.wrap_step - self.step))
            columns.store(there, column - ends * self.width)


def tile_places(first: Expr, rows: int, width: Expr, wraps: bool) -> Callable[[Expr], tuple[Expr, Expr]]:
    """(line, column) where tiles of `rows` pixels begin, by their first pixels, `first` being that of the first tile
    asked for. wraps: the pixels of a tile may lie on several lines.

    Where lines are whole tiles, one follows the other, and they are counted: a division takes longer than all else
    that begins a tile.
    """
    if wraps:
        return lambda start: (bind(T.truncdiv(start, width)), bind(T.truncmod(start, width)))
    counted = local(2, "int32")
    counted.store(0, T.truncdiv(first, width))
    counted.store(1, T.truncmod(first, width))

    def place(start: Expr) -> tuple[Expr, Expr]:
        line, column = bind(counted.load(0)), bind(counted.load(1))
        over = bind(column + rows >= width)
        counted.store(0, T.Select(over, line + 1, line))
        counted.store(1, T.Select(over, T.int32(0), column + rows))
        return line, column

    return place
