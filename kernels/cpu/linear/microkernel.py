"""The one generator of matrix-product kernels: dense layers, convolutions and products of two activations.

For each task (image, group, block of pixels, panel of channels), for each tile of pixels: begin with the bias, walk
along K (summation.py), run the epilogue, store. K is one run for a dense layer; each kernel row of a convolution is a
run, or each tap of a dilated or grouped one. The last tile of pixels starts early rather than being short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.kernels.cpu.builder import (
    Argument,
    Expr,
    Pointer,
    T,
    aligned_local,
    bind,
    concat,
    extract,
    resident,
    splat,
    store_lanes,
    store_part,
)
from qcompile.kernels.cpu.chain import ChainCode, Emitter
from qcompile.kernels.cpu.isa.dot import Tile, Walk
from qcompile.kernels.cpu.kernel import kernel
from qcompile.kernels.cpu.linear.decode import decode_panel, digit_sums, inline_sums
from qcompile.kernels.cpu.linear.pixels import PixelWalk, tile_places
from qcompile.kernels.cpu.linear.summation import Summation
from qcompile.kernels.cpu.linear.tiles import Tiling
from qcompile.kernels.lowering import Kernel

# the table of sizes that a kernel reads, in this order; offsets and steps in elements
SIZES = (
    "tasks",
    "panels",
    "blocks",
    "groups",
    "rows",
    "block_tiles",
    "width",
    "row_step",
    "pixel_step",
    "x_image",
    "x_group",
    "runs",
    "run_step",
    "taps",
    "tap_step",
    "run_groups",
    "panel_bytes",
    "w_image",
    "w_group",
    "group_channels",
    "channels",
    "bias_image",
    "tile_ahead",
    "group_ahead",
    "code_units",
    "code_blocks",
    "factor",
    "y_first",
    "y_image",
    "y_gap",
)


@dataclass(frozen=True)
class Geometry:
    """What the loops look like.

    single: all pixels are one tile; image: pixels are read from rows of an image; framed: they are written to rows of
    an image, `y_gap` elements apart; wraps: the pixels of a tile may lie on several rows;
    runs: K has more than one run; taps: two loops of runs; walk: what the code knows of them; outer: several images or
    groups; parallel: tasks may run on several threads; row_term: one more int32 per pixel is added to all its channels;
    factor: sums are multiplied by a number before the bias is added.
    """

    single: bool = False
    image: bool = False
    framed: bool = False
    wraps: bool = False
    runs: bool = False
    taps: bool = False
    walk: Walk | None = None
    outer: bool = False
    parallel: bool = False
    row_term: bool = False
    factor: bool = False


def matrix_kernel(
    kind: str, tiling: Tiling, geometry: Geometry, chain: ChainCode, x_dtype: str, decoded_bytes: int = 0
) -> Kernel:
    """The kernel for a tiling, a geometry and an epilogue; decoded_bytes: room for a panel of coded weights.

    Its parameters: x, packed weights, int32 bias (padded), y, int32 table of SIZES, int32 row terms if the geometry
    says so, then the chain's.
    """
    dot = tiling.dot
    shape = f"{tiling.rows}x{tiling.columns}"
    bits = f"_w{tiling.code.bits}" if tiling.code else "_w4" if dot.digits else ""
    parameters = [
        ("x", x_dtype + "*"),
        ("w", "uint8*" if tiling.code else "int8*"),
        ("bias", "int32*"),
        ("y", chain.dtype + "*"),
        ("sizes", "int32*"),
        *([("row_terms", "int32*")] if geometry.row_term else []),
        *chain.parameters,
    ]

    def body(x: Pointer, w: Pointer, bias: Pointer, y: Pointer, sizes: Pointer, *rest: Argument) -> None:
        terms, others = (rest[0], rest[1:]) if geometry.row_term else (None, rest)
        Body(tiling, geometry, chain, x, w, bias, y, sizes, terms, others, decoded_bytes).emit()

    return kernel(f"{kind}_{x_dtype}{bits}_{shape}", (tiling, geometry, chain, decoded_bytes), parameters, body)


@dataclass
class Place:
    """Where a tile reads and writes: offsets of its pixels in x, of its weights and of those of the next panel that it
    fetches ahead; its first pixel within the image (also as line and column) and among all, its first channel; where
    the image begins in y."""

    offsets: list[Expr]
    weights: Expr
    ahead: Expr
    start: Expr
    line: Expr
    column: Expr
    row: Expr
    channel: Expr
    image: Expr


@dataclass
class Body:
    """Emission of one kernel."""

    tiling: Tiling
    geometry: Geometry
    chain: ChainCode
    x: Pointer
    w: Pointer
    bias: Pointer
    y: Pointer
    sizes: Pointer
    row_terms: Pointer | None
    chain_arguments: Sequence[Argument]
    decoded_bytes: int = 0

    def size(self, name: str) -> Expr:
        return self.sizes.load(SIZES.index(name))

    def emit(self) -> None:
        tasks = bind(self.size("tasks"))
        with (T.parallel if self.geometry.parallel else T.serial)(0, tasks) as task:
            self._task(task)

    def _task(self, task: Expr) -> None:
        rows = self.tiling.rows
        panels, blocks = bind(self.size("panels")), bind(self.size("blocks"))
        panel, rest = bind(T.truncmod(task, panels)), bind(T.truncdiv(task, panels))
        x_base: Expr = T.int32(0)
        w_base: Expr = panel * self.size("panel_bytes")
        first_row: Expr = T.int32(0)
        first_channel: Expr = T.int32(0)
        self.bias_base: Expr = T.int32(0)
        y_image: Expr = bind(self.size("y_first")) if self.geometry.framed else T.int32(0)
        if self.geometry.outer:
            outer, rest = bind(T.truncdiv(rest, blocks)), bind(T.truncmod(rest, blocks))
            groups = bind(self.size("groups"))
            image, group = bind(T.truncdiv(outer, groups)), bind(T.truncmod(outer, groups))
            x_base = bind(image * self.size("x_image") + group * self.size("x_group"))
            w_base = w_base + image * self.size("w_image") + group * self.size("w_group")
            first_row = bind(image * self.size("rows"))
            self.bias_base = bind(image * self.size("bias_image"))
            y_image = bind(y_image + image * self.size("y_image")) if self.geometry.framed else y_image
            first_channel = group * self.size("group_channels")
        w_base = bind(w_base)
        block_tiles = bind(self.size("block_tiles"))
        tiles = bind(T.truncdiv(self.size("rows") + (rows - 1), T.int32(rows)))
        emitter = self.chain.start(self.chain_arguments)
        self.panel, first_weight = self.w, w_base
        if self.tiling.code and not self.tiling.inline:
            self.panel, first_weight = aligned_local(self.decoded_bytes, "int8"), T.int32(0)
            units, count = bind(self.size("code_units")), bind(self.size("code_blocks"))
            decode_panel(
                self.tiling.dot, self.tiling.code, self.tiling.columns, self.w, w_base, self.panel, units, count
            )
        step, widest = (t.columns if t else 0 for t in (self.tiling.tile, self.tiling.tile or self.tiling.tail))
        channel = bind(first_channel + panel * step)
        self.begins_at_bias = not (self.tiling.inline or self.geometry.factor) and self.tiling.dot.begins_at_bias
        keep = self.tiling.dot.resident_bias and self.begins_at_bias and not self.geometry.single
        self.resident_bias = resident(self._bias(channel, widest)) if keep else None
        if self.chain.isa.loops_over_rows:
            self.cell = aligned_local(rows * max(self.chain.width, self.tiling.dot.lanes), "int32")

        def one_tile(t: Expr, number: Expr, start: Expr, line: Expr, column: Expr) -> None:
            offsets = self._offsets(number, line, column, x_base)
            ahead = bind(w_base + self.size("panel_bytes") + t * self.size("tile_ahead"))
            here = Place(offsets, first_weight, ahead, start, line, column, bind(first_row + start), channel, y_image)
            tile, tail = self.tiling.tile, self.tiling.tail
            if tile and tail:
                with T.If(panel < panels - 1):
                    with T.Then():
                        self._tile(tile, step, here, emitter)
                    with T.Else():
                        self._tile(tail, self.tiling.tail_valid, here, emitter)
            elif tile:
                self._tile(tile, step, here, emitter)
            elif tail:
                self._tile(tail, self.tiling.tail_valid, here, emitter)

        if self.geometry.single:
            one_tile(*[T.int32(0)] * 5)
            return
        image = self.geometry.image or self.geometry.framed
        width, last = bind(self.size("width")), bind(self.size("rows") - rows)
        places = tile_places(bind(rest * block_tiles * rows), rows, width, self.geometry.wraps) if image else None
        with T.serial(0, T.min(block_tiles, tiles - rest * block_tiles)) as t:
            number = bind(rest * block_tiles + t)
            start = bind(T.min(number * rows, last))
            one_tile(t, number, start, *(places(start) if places else (T.int32(0), T.int32(0))))

    def _offsets(self, number: Expr, line: Expr, column: Expr, base: Expr) -> list[Expr]:
        """Where each pixel of the tile of that number, which begins at a line and a column, begins in x."""
        pixel_step = bind(self.size("pixel_step"))
        if not self.geometry.image:
            # the products do not change from tile to tile, and LLVM cannot merge them with the sums
            limit = (self.size("rows") - self.tiling.rows) * pixel_step
            first = bind(base + T.min(number * (self.tiling.rows * pixel_step), limit))
            return [bind(first + i * pixel_step) for i in range(self.tiling.rows)]
        width, row_step = bind(self.size("width")), bind(self.size("row_step"))
        wrap_step = bind(row_step - (width - 1) * pixel_step) if self.geometry.wraps else None
        selects = self.chain.isa.selects
        walk = PixelWalk(base + line * row_step + column * pixel_step, column, width, pixel_step, wrap_step, selects)
        return walk.offsets(self.tiling.rows)

    def _written(self, here: Place) -> PixelWalk | None:
        """Where the pixels of a tile lie in a framed y; None: one after the other."""
        if not self.geometry.framed:
            return None
        channels, width = self.size("channels"), bind(self.size("width"))
        gap = bind(self.size("y_gap"))
        first = here.image + here.channel + here.start * channels + here.line * gap
        wrap_step = bind(channels + gap) if self.geometry.wraps else None
        return PixelWalk(first, here.column, width, channels, wrap_step, self.chain.isa.selects)

    def _tile(self, tile: Tile, valid: int, here: Place, emitter: Emitter) -> None:
        """Computes and stores one tile, of whose channels `valid` exist."""
        dot, written = self.tiling.dot, self._written(here)

        def pixel_places() -> list[Expr] | None:
            return written.offsets(tile.rows) if written and not self._loops(tile) else None

        if self.tiling.code and self.tiling.inline:
            units, blocks = bind(self.size("code_units")), bind(self.size("code_blocks"))
            pixels = [(self.x.pointed if dot.row_pointers else self.x.moved)(o) for o in here.offsets]
            add = digit_sums if dot.digits else inline_sums
            sums = add(dot, self.tiling.code, tile, self.w, here.weights, pixels, units, blocks)
            self._epilogue(sums, range(tile.rows), tile, valid, here, emitter, written, pixel_places())
            return
        bias = []
        if self.resident_bias:
            bias = [self.resident_bias.load(at, dot.lanes) for at in range(0, tile.columns, dot.lanes)]
        elif self.begins_at_bias:
            bias = self._bias(here.channel, tile.columns)
        acc = dot.start(tile, bias)
        last = self._summation(tile, acc, here).emit()
        places = pixel_places()
        for rows in dot.parts(tile):
            if last:
                last(rows)
            self._epilogue(dot.finish(tile, acc, rows), rows, tile, valid, here, emitter, written, places)

    def _summation(self, tile: Tile, acc: Pointer, here: Place) -> Summation:
        geometry = self.geometry
        return Summation(
            self.tiling.dot,
            geometry.walk,
            geometry.runs,
            geometry.taps,
            self.size,
            self.x,
            self.w,
            self.panel,
            tile,
            acc,
            here.offsets,
            here.weights,
            here.ahead,
        )

    def _bias(self, channel: Expr, columns: int) -> list[Expr]:
        first, lanes = bind(self.bias_base + channel), self.tiling.dot.lanes
        return [bind(self.bias.load(first + at, lanes)) for at in range(0, columns, lanes)]

    def _epilogue(
        self,
        sums: list[list[Expr]],
        rows: range,
        tile: Tile,
        valid: int,
        here: Place,
        emitter: Emitter,
        written: PixelWalk | None,
        places: list[Expr] | None,
    ) -> None:
        """Rescales and stores the sums of some rows."""
        lanes, row, channel = tile.columns // len(sums[0]), here.row, here.channel
        channels = bind(self.size("channels"))
        first = bind(row * channels + channel)
        for at, count in self._groups(valid, lanes):
            bias = None if self.begins_at_bias else bind(self.bias.load(self.bias_base + channel + at, count))
            factor = bind(splat(self.size("factor"), "int32", count)) if self.geometry.factor else None

            def finish(
                part: list[int],
                values: list[Expr],
                places: list[Expr],
                at: int = at,
                count: int = count,
                bias: Expr = bias,
                factor: Expr = factor,
            ) -> None:
                values = values if factor is None else [v * factor for v in values]
                values = values if bias is None else [v + bias for v in values]
                if self.row_terms:
                    values = [v + splat(self.row_terms.load(row + i), "int32", count) for i, v in zip(part, values)]
                pixels = [(row + i, bind(first + (i * channels + at))) for i in part]
                result = emitter.emit_pixels(concat(values), pixels, channel + at)
                result = bind(result) if len(part) > 1 else result
                for k, (_, flat) in enumerate(pixels):
                    place = bind(places[k] + at) if places else flat
                    if valid - at >= count:
                        store_part(self.y, place, result, k * count, count)
                    else:
                        store_lanes(self.y, place, extract(result, k * count, count), valid - at)

            pick = slice(at // lanes, (at + count) // lanes)
            if self._loops(tile):
                cell = self.cell
                for i, vectors in enumerate(sums):
                    cell.store(i * count, concat(vectors[pick]))
                following = written.steps() if written else None
                # LLVM does not come to an end over parts of parts of a joined vector
                fits = max(1, self.chain.isa.width // count) if valid - at >= count else 1
                together = next(n for n in (4, 2, 1) if n <= fits and len(sums) % n == 0)
                with T.serial(0, len(sums) // together) as i:
                    part = [bind(i * together + j) for j in range(together)]
                    finish(part, [cell.load(j * count, count) for j in part], following(together) if following else [])
            else:
                # two pixels take as many instructions as one; more than two would have to be taken apart to be stored
                together = 2 if self.chain.isa.joins_pixels and 2 * count <= self.chain.isa.width else 1
                for start in range(0, len(rows), together):
                    part = list(rows[start : start + together])
                    values = [concat(s[pick]) for s in sums[start : start + together]]
                    finish(part, values, [places[i] for i in part] if places else [])

    def _loops(self, tile: Tile) -> bool:
        """Results are rescaled by a loop over the rows."""
        return self.chain.isa.loops_over_rows and tile.rows > 1

    def _groups(self, valid: int, lanes: int) -> list[tuple[int, int]]:
        """(first channel, channels) of what the chain handles at a time: vectors that hold valid channels, powers of
        two."""
        width, at, groups = max(self.chain.width, lanes), 0, []
        while at < valid:
            count = min(width, -(-(valid - at) // lanes) * lanes)
            while count & (count - 1) and count > lanes:
                count -= lanes
            groups.append((at, count))
            at += count
        return groups
