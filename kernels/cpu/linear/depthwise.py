"""Depthwise convolutions: one filter a channel, on padded images [N, H, W, C].

Blocks of channels are walked one after another over a chunk of rows, whose lines of all channels stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    aligned_local,
    bind,
    concat,
    dtype_of,
    extract,
    local,
    reinterpret,
    resident,
    settle,
    shuffle,
    store_lanes,
)
from qcompile.kernels.cpu.chain import Chain, ChainCode, Emitter
from qcompile.kernels.cpu.isa.taps import TapDot
from qcompile.kernels.cpu.kernel import kernel, pointers
from qcompile.kernels.cpu.linear.depthwise_walk import Walk, block_channels, choose_walk, pack_taps, stage_bytes
from qcompile.kernels.cpu.linear.padding import Frame, pad_image
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, Kernel, KernelCall, Workspace

PARALLEL_MACS = 1 << 15  # for each int32 lane of a register
PARALLEL_TASKS = 16
CHUNK_BYTES = 1 << 17  # of the image that a chunk of rows reads, where blocks are many
SIZES = ("tasks", "blocks", "chunks", "chunk_lines", "height", "width", "image", "pitch", "channels")


def depthwise_calls(
    chain: Chain, source: Buffer, x: Type, out: Type, weight: np.ndarray, bias: np.ndarray, a: dict
) -> list[KernelCall]:
    """conv2d with groups == C == O; weight int8 [C, KH, KW, 1], bias int32 with the zero point folded in."""
    n, h, w, c = x.shape
    oh, ow = out.shape[1:3]
    size, strides, dilations = weight.shape[1:3], tuple(a["strides"]), tuple(a["dilations"])
    pads, calls = list(a["pads"]), list[KernelCall]()
    data: Buffer | Workspace = source
    if any(pads):
        data, calls = pad_image(source, x.shape, pads, a["x_zero_point"], x.dtype)
        _, h, w, _ = Frame(tuple(pads), 0).shape(x.shape)
    taps = weight[..., 0]
    if w == ow == size[1] == 1:  # a column is a row, seen differently
        h, w, oh, ow, taps = w, h, ow, oh, taps.transpose(0, 2, 1)
        size, strides, dilations = size[::-1], strides[::-1], dilations[::-1]
    dot, arranges = chain.isa.tap_dot(weight), chain.arranged(np.arange(c)) is not None
    walk = choose_walk(dot, size, strides, dilations, (oh, ow), c, folds=arranges)
    walk = replace(walk, stage=stage_bytes(walk, dot, w), whole=walk.columns.outputs * walk.fold == ow)
    channels = block_channels(c, walk, dot)
    places = channels if dot.order is None else channels[:, dot.order]
    operands = chain.operands
    if arranges and (walk.fold > 1 or dot.order is not None):
        walk, operands = replace(walk, arranged=True), chain.arranged(places.reshape(-1)) or []
    macs, blocks, lines = out.size * size[0] * size[1], len(channels), -(-oh // walk.lines.outputs)
    line_bytes = walk.lines.outputs * walk.lines.stride * w * c
    chunk_lines = max(1, CHUNK_BYTES // line_bytes) if blocks > 1 else lines
    parallel = macs >= PARALLEL_MACS * chain.isa.lanes
    if parallel:
        chunk_lines = min(chunk_lines, -(-lines * n * blocks // PARALLEL_TASKS))
    chunks = -(-lines // chunk_lines)
    tasks = n * blocks * chunks
    walk = replace(walk, parallel=parallel and tasks > 1)
    sizes = np.array([tasks, blocks, chunks, chunk_lines, oh, ow, h * w * c, w * c, c], np.int32)
    packed = pack_taps(taps if walk.rows else taps.transpose(0, 2, 1), walk, dot)
    constants = Constant(packed), Constant(bias[places.reshape(-1)]), Buffer(chain.result), Constant(sizes)
    return [*calls, KernelCall(_kernel(walk, dot, chain.code, x.dtype), (data, *constants, *operands))]


def _kernel(walk: Walk, dot: TapDot, chain: ChainCode, dtype: str) -> Kernel:
    """Parameters: x (padded), packed weights, int32 bias as accumulators lie, y, int32 table of SIZES, then the
    chain's."""
    (kh, kw), sh = (walk.lines.kernel, walk.columns.kernel), walk.lines.stride
    parameters = pointers(x=dtype, w="int8", bias="int32", y=chain.dtype, sizes="int32")

    def body(x: Pointer, w: Pointer, bias: Pointer, y: Pointer, sizes: Pointer, *rest: Any) -> None:
        _Body(walk, dot, chain, x, w, bias, y, sizes, rest).emit()

    family = f"depthwise_{dtype}_{kh}x{kw}s{sh}"
    return kernel(family, (walk, dot, chain), [*parameters, *chain.parameters], body)


@dataclass
class _Body:
    """Emission of one kernel."""

    walk: Walk
    dot: TapDot
    chain: ChainCode
    x: Pointer
    w: Pointer
    bias: Pointer
    y: Pointer
    sizes: Pointer
    chain_arguments: tuple

    def emit(self) -> None:
        walk, size = self.walk, {name: self.sizes.load(i) for i, name in enumerate(SIZES)}
        rows, columns = walk.lines.outputs, walk.columns.outputs
        with (T.parallel if walk.parallel else T.serial)(0, bind(size["tasks"])) as task:
            blocks, chunks = bind(size["blocks"]), bind(size["chunks"])
            rest, block = bind(T.truncdiv(task, blocks)), bind(T.truncmod(task, blocks))
            image, chunk = bind(T.truncdiv(rest, chunks)), bind(T.truncmod(rest, chunks))
            height, width = bind(size["height"]), bind(size["width"])
            self.pitch, self.channels = bind(size["pitch"]), bind(size["channels"])
            lanes, size_b = bind(self.channels * walk.fold), self.dot.block
            channel = bind(T.min(block * size_b, lanes - size_b) if walk.valid == size_b else T.int32(0))
            weights = bind(block * (walk.other.kernel * walk.panels(self.dot)[1]))
            self.constants = bind(block * size_b)
            start = bind(image * size["image"] + channel)
            emitter = self.chain.start(self.chain_arguments)
            self.bias_here = resident(
                [self.bias.load(self.constants + at, self.dot.lanes) for at in range(0, size_b, self.dot.lanes)]
            )
            first, lines = bind(chunk * size["chunk_lines"]), bind(T.truncdiv(height + (rows - 1), T.int32(rows)))
            self.source, self.step = self.x, self.channels
            if walk.stage:
                self.source, self.step = aligned_local(walk.stage, self.x.dtype), T.int32(self.dot.block)
            span = columns * walk.fold
            passes = bind(T.truncdiv(width + (span - 1), T.int32(span)))
            with T.serial(0, T.min(size["chunk_lines"], lines - first)) as i:
                line = bind(T.min((first + i) * rows, height - rows))
                origin = bind(start + line * (walk.lines.stride * self.pitch))
                pixel = bind((image * height + line) * width)
                if walk.stage:
                    self._stage(origin)
                    origin = T.int32(0)
                if walk.whole:
                    self._pass(origin, weights, channel, pixel, width, emitter)
                else:
                    with T.serial(0, passes) as step:
                        column = bind(T.min(step * span, width - span))
                        at = bind(origin + column * (walk.columns.stride // walk.fold * self.step))
                        self._pass(at, weights, channel, bind(pixel + column), width, emitter)

    def _pass(self, at: Expr, weights: Expr, channel: Expr, pixel: Expr, width: Expr, emitter: Emitter) -> None:
        """All outputs of a pass, one after another along the other axis."""
        walk, dot = self.walk, self.dot
        z, o = walk.zipped, walk.other
        z_pixels, o_pixels = (width, T.int32(walk.fold)) if walk.rows else (T.int32(walk.fold), width)
        groups, (panel, total), size = z.groups(dot.group), walk.panels(dot), z.outputs * dot.block

        def add(acc: Pointer, g: int, parts: list[Expr], tap: Expr | int) -> None:
            w = (self.w.fresh if dot.settles else self.w.moved)(weights)
            for j in range(z.outputs):
                if (j, g) in panel:
                    dot.dots(acc, j * dot.block, parts, dot.weights(w, tap * total + panel[j, g]))

        def finish(acc: Pointer, k: int) -> None:
            together = max(1, self.chain.width // dot.block)
            for first in range(0, z.outputs, together):
                outputs = range(first, min(first + together, z.outputs))
                sums = [
                    concat([acc.load(j * dot.block + u * dot.lanes, dot.lanes) for u in range(dot.units)])
                    for j in outputs
                ]
                rows = [bind(pixel + (j * z_pixels + k * o_pixels)) for j in outputs]
                pixels = [(row, bind(row * self.channels + channel)) for row in rows]
                for (_, flat), result in zip(pixels, self._results(emitter, sums, pixels, channel)):
                    store_lanes(self.y, flat, result, walk.valid)

        if walk.loops(dot):
            acc = self._start()
            with T.serial(0, o.kernel) as t:
                zipped = self._zipper(bind(at + t * (o.dilation * (self.step if walk.rows else self.pitch))), [0])
                for g in range(groups):
                    add(acc, g, zipped(g, 0), t)
            finish(acc, 0)
            return
        zipped = self._zipper(at, o.positions)
        sums: dict[int, Pointer] = {}
        kept: dict[int, list[list[Expr]]] = {}
        gathers = walk.gathers(dot)
        for position in o.positions:
            if gathers:
                kept[position] = [zipped(g, position) for g in range(groups)]
                for k in range(o.outputs):
                    if position == o.reads(k)[-1]:
                        sums[k] = self._start()
                        for tap, p in enumerate(o.reads(k)):
                            for g in range(groups):
                                add(sums[k], g, kept[p][g], tap)
                        finish(sums[k], k)
                continue
            for some in [range(groups)] if dot.zips_ahead else [range(g, g + 1) for g in range(groups)]:
                here = {g: zipped(g, position) for g in some}
                for k in [k for k in range(o.outputs) if position in o.reads(k)]:
                    tap = o.reads(k).index(position)
                    if tap == some[0] == 0:
                        sums[k] = self._start()
                    for g in some:
                        add(sums[k], g, here[g], tap)
                    if position == o.reads(k)[-1] and some[-1] == groups - 1:
                        finish(sums.pop(k), k)
                if dot.settles:
                    settle([acc.load(at, dot.lanes) for acc in sums.values() for at in range(0, size, dot.lanes)])

    def _zipper(self, at: Expr, positions: Sequence[int]) -> Callable[[int, int], list[Expr]]:
        """(group along the zip axis, position along the other one) -> the zipped taps of a pass that begins at `at`."""
        walk, dot, z = self.walk, self.dot, self.walk.zipped
        z_step, o_step = (self.pitch, self.step) if walk.rows else (self.step, self.pitch)
        distance = bind(z_step * z.dilation)
        starts = {position: bind(at + position * o_step) for position in positions}
        pieces, apart = walk.pieces, walk.columns.stride // walk.fold

        def part(begin: Expr) -> Expr:
            """One tap of a block, that of folded pixels put together where they are no neighbours."""
            at = [begin + i * apart * self.step for i in range(pieces)]
            return bind(concat([self.source.load(a, dot.block // pieces) for a in at]))

        def zipped(g: int, position: int) -> list[Expr]:
            first = bind(starts[position] + g * dot.group * distance)
            parts = [part(first + t * distance) for t in range(min(dot.group, z.span - g * dot.group))]
            return dot.zip(parts + parts[:1] * (dot.group - len(parts)))  # what is missing meets zero weights

        return zipped

    def _stage(self, origin: Expr) -> None:
        """Copies a block's part of a line to the stack."""
        block = self.dot.block
        with T.serial(0, T.truncdiv(self.pitch, self.channels)) as k:
            self.source.store(k * block, self.x.load(origin + k * self.channels, block))

    def _start(self) -> Pointer:
        """Accumulators of the outputs along the zip axis, at the bias."""
        outputs, lanes = self.walk.zipped.outputs, self.dot.lanes
        acc = local(outputs * self.dot.block, "int32")
        for j in range(outputs):
            for u in range(self.dot.units):
                acc.store(j * self.dot.block + u * lanes, self.bias_here.load(u * lanes, lanes))
        return acc

    def _results(
        self, emitter: Emitter, sums: Sequence[Expr], pixels: Sequence[tuple[Expr, Expr]], channel: Expr
    ) -> list[Expr]:
        """What becomes of the accumulators of pixels, given by their rows and flats: their channels in order."""
        dot = self.dot
        width = self.chain.width_for(self.walk.valid, min(dot.block, self.chain.width))
        at = self.constants if self.walk.arranged else channel
        sums = [bind(value if self.walk.arranged else self._in_order(value)) for value in sums]
        parts = []
        for p in range(0, dot.block, width):
            value = concat([extract(value, p, width) for value in sums])
            parts.append(bind(emitter.emit_pixels(value, [(row, flat + p) for row, flat in pixels], at + p)))
        results = [concat([extract(part, i * width, width) for part in parts]) for i in range(len(sums))]
        return [self._in_order(result) if self.walk.arranged else result for result in results]

    def _in_order(self, value: Expr) -> Expr:
        if self.dot.order is None:
            return value
        value, places = bind(value), np.argsort(self.dot.order)
        if dtype_of(value) not in ("int8", "uint8"):
            return bind(shuffle([value], places.tolist()))
        # four channels at a time: one instruction, or none where the epilogue ends with its like
        fours = reinterpret(value, "int32", self.dot.block // 4)
        return bind(reinterpret(shuffle([fours], (places[::4] // 4).tolist()), dtype_of(value), self.dot.block))
