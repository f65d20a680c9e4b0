"""Where neighbouring pixels of an image lie in memory, when they go over the ends of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, local


@dataclass(frozen=True)
class PixelWalk:
    """Neighbouring pixels on rows of an image: `step` apart, `wrap_step` where the next one begins a row; None: all
    lie on one row. `column`: of the first pixel."""

    first: Expr
    column: Expr
    width: Expr
    step: Expr
    wrap_step: Expr | None

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

    def steps(self) -> Iterator[Expr]:
        """For a loop over pixels: first its pixel's offset, then (no value) the code that moves to the next."""
        offsets, columns = local(1, "int32"), local(1, "int32")
        offsets.store(0, self.first)
        columns.store(0, self.column)

        def walk() -> Iterator[Expr]:
            yield bind(offsets.load(0))
            self._advance(offsets, columns, 0, 0)
            yield None

        return walk()

    def _advance(self, offsets: Pointer, columns: Pointer, here: int, there: int) -> None:
        if self.wrap_step is None:
            offsets.store(there, offsets.load(here) + self.step)
            return
        wraps = bind(columns.load(here) + 1 >= self.width)
        offsets.store(there, offsets.load(here) + T.Select(wraps, self.wrap_step, self.step))
        columns.store(there, T.Select(wraps, T.int32(0), columns.load(here) + 1))
