"""The walk along K: what the tiles of a matrix-product kernel add up.

A run is a stretch of contiguous bytes that all pixels of a tile read at the same distance from their own offsets, taken
in steps of a few groups. How much of the walk is code without loops is the instruction set's choice (`Dot.walk`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind
from qcompile.kernels.cpu.isa.dot import Dot, Tile, Walk

Last = Callable[[range], None]  # adds the last step to the sums of some rows


@dataclass(frozen=True)
class Stretch:
    """A run of a tile: where its pixels begin, its weights, and those that are fetched ahead."""

    rows: Sequence[Pointer]
    weights: Expr
    ahead: Expr


@dataclass
class Summation:
    """The walk of one tile. runs, taps: whether there are several, as for `Geometry`; size: of the kernel's table;
    offsets: of the tile's pixels in x; weights: where the tile's begin in `panel`; ahead: where in w those begin that
    are fetched ahead."""

    dot: Dot
    walk: Walk | None
    runs: bool
    taps: bool
    size: Callable[[str], Expr]
    x: Pointer
    w: Pointer
    panel: Pointer
    tile: Tile
    acc: Pointer
    offsets: Sequence[Expr]
    weights: Expr
    ahead: Expr

    def emit(self) -> Last | None:
        """Emits the walk. Where its last step is code of its own that is left out, and returned."""
        walk, dot = self.walk, self.dot
        self.many = dot.groups_a_step(self.tile)
        self.groups, self.group_ahead = bind(self.size("run_groups")), bind(self.size("group_ahead"))
        self.group_bytes = dot.packed_bytes(self.tile.columns)
        run_groups = self.groups
        if walk and walk.steps is not None:
            run_groups = T.int32(walk.steps * self.many + walk.left)
        self.run_bytes, self.run_ahead = bind(run_groups * self.group_bytes), bind(run_groups * self.group_ahead)
        if walk:
            self.pixels = [self.x.fresh(o) for o in self.offsets]
        zero, last = T.int32(0), None
        if walk and walk.straight:
            runs, taps = walk.straight
            for number in range(runs * taps):
                at = self._stretch(*(T.int32(i) for i in (number // taps, number % taps, number)))
                last = self._straight(at, walk, but_last=number == runs * taps - 1)
        elif not self.runs:
            last = self._run(self._stretch(zero, zero, zero))
        elif not self.taps:
            with T.serial(0, T.max(self.size("runs"), T.int32(1))) as run:
                self._run(self._stretch(run, zero, run))
        else:
            taps = bind(self.size("taps"))
            with T.serial(0, T.max(self.size("runs"), T.int32(1))) as run, T.serial(0, taps) as tap:
                self._run(self._stretch(run, tap, bind(run * taps + tap)))
        return last

    def _stretch(self, run: Expr, tap: Expr, number: Expr) -> Stretch:
        """The run of that number."""
        x_at: Expr = T.int32(0)
        if self.runs:
            x_at = run * self.size("run_step")
            x_at = bind(x_at + tap * self.size("tap_step") if self.taps else x_at)
        rows: Sequence[Pointer]
        if self.walk:
            rows = [pixel.moved(x_at) for pixel in self.pixels]
        else:
            point = self.x.pointed if self.dot.row_pointers else self.x.moved
            rows = [point(o + x_at) for o in self.offsets]
        return Stretch(rows, bind(self.weights + number * self.run_bytes), bind(self.ahead + number * self.run_ahead))

    def _run(self, at: Stretch) -> Last | None:
        """One run in loops."""
        walk, many = self.walk, self.many
        if walk and walk.steps is not None:
            return self._straight(at, walk)
        if walk is None:
            whole = bind(T.truncdiv(self.groups, T.int32(many))) if many > 1 else self.groups
            with T.serial(0, whole) as s:
                self._step(at, s * many, many)
            if many > 1:
                with T.serial(0, self.groups - whole * many) as s:
                    self._step(at, whole * many + s, 1)
            return None
        # a loop that runs at least once needs no test before it
        whole = bind(T.max(T.truncdiv(self.groups, many), 1))
        first = 1 if walk.apart else 0
        ends = 0 if walk.left else first  # whole steps at the end that are no part of the loop
        if walk.apart:
            self._step(at, T.int32(0), many)
        with T.serial(0, whole - (first + ends)) as s:
            self._step(at, (s + first) * many, many)
        done, count = bind((whole - ends) * many), many if ends else walk.left
        if walk.apart:
            return lambda rows: self._step(at, done, count, rows)
        if count:
            self._step(at, done, count)
        return None

    def _straight(self, at: Stretch, walk: Walk, but_last: bool = False) -> Last | None:
        """One run in code without a loop."""
        assert walk.steps is not None
        counts = [self.many] * walk.steps + [walk.left] * bool(walk.left)
        for s, count in enumerate(counts[: len(counts) - but_last]):
            self._step(at, T.int32(s * self.many), count)
        if but_last:
            return lambda rows: self._step(at, T.int32((len(counts) - 1) * self.many), counts[-1], rows)
        return None

    def _step(self, at: Stretch, done: Expr, count: int, rows: range | None = None) -> None:
        """Adds `count` groups, after `done` of the run, to the sums of rows, or of all."""
        dot, some = self.dot, rows or range(self.tile.rows)
        if dot.prefetches:
            self.w.prefetch(at.ahead + done * self.group_ahead)
        pixels = [at.rows[i].moved(done * dot.group) for i in some]
        panel = (self.panel.fresh if self.walk else self.panel.moved)(at.weights + done * self.group_bytes)
        dot.step(self.tile, self.acc, pixels, panel, count, some.start)
        if self.walk and rows is None:
            dot.settle(self.tile, self.acc)
