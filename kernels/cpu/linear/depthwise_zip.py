"""Depthwise convolutions on instructions that sum neighbouring bytes (sdot): taps are zipped once for many outputs.

Four input positions along one axis, the zip axis, are zipped by channel: an aligned group. An output that begins inside
a group uses it with its weights moved by as many taps, zeros where it has none, so all outputs of a pass share the
groups. For 3x3 with stride 1 a group of four rows serves two output rows and three output columns: four zips and twelve
dot products for the 9 x 16 products of an output. Which axis and how many outputs: `choose_walk`, by counting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, concat, function, local, resident, store_lanes
from qcompile.kernels.cpu.chain import Chain, Emitter
from qcompile.kernels.cpu.isa.taps import BLOCK, TAP_DOTS, TapDot
from qcompile.kernels.cpu.linear.padding import Frame, pad_image
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, Kernel, KernelCall, Workspace

PARALLEL_MACS = 1 << 17
PARALLEL_TASKS = 16
SIZES = ("tasks", "blocks", "chunks", "chunk_lines", "height", "width", "image", "pitch", "channels")
REGISTERS = 24  # for accumulators and zipped groups; the others hold weights and constants
LARGEST_PASS = 12  # outputs
UNROLLED_DOTS = 640
EPILOGUE_COST = 18.0  # instructions of the vector units to rescale an output, as many as dot products


@dataclass(frozen=True)
class Axis:
    """One axis of the window; `outputs` of a pass lie next to each other along it."""

    kernel: int
    stride: int
    dilation: int
    outputs: int = 1

    @property
    def positions(self) -> list[int]:
        """Input positions that the outputs of a pass read."""
        return sorted({o * self.stride + t * self.dilation for o in range(self.outputs) for t in range(self.kernel)})

    def reads(self, output: int) -> list[int]:
        return [output * self.stride + t * self.dilation for t in range(self.kernel)]

    def groups(self, size: int) -> int:
        """Aligned groups of `size` positions, `dilation` apart, that cover the outputs of a pass."""
        return -(-((self.outputs - 1) * self.stride // self.dilation + self.kernel) // size)

    def used(self, output: int, size: int) -> list[int]:
        """The groups that one output reads."""
        first = output * self.stride // self.dilation
        return list(range(first // size, (first + self.kernel - 1) // size + 1))


@dataclass(frozen=True)
class Walk:
    """What the code depends on: both axes, whether rows or columns are zipped, channels of a block that exist."""

    zipped: Axis
    other: Axis
    rows: bool  # the zip axis runs down the rows
    valid: int
    parallel: bool = False

    @property
    def lines(self) -> Axis:
        return self.zipped if self.rows else self.other

    @property
    def columns(self) -> Axis:
        return self.other if self.rows else self.zipped

    def dots(self, dot: TapDot) -> int:
        """Dot products of a pass."""
        used = sum(len(self.zipped.used(o, dot.group)) for o in range(self.zipped.outputs))
        return dot.units * used * self.other.outputs * self.other.kernel

    def gathers(self, dot: TapDot) -> bool:
        """All groups that an output column needs stay in registers until its last one is there."""
        kept = self.other.kernel * self.zipped.groups(dot.group) * dot.group
        return kept + dot.units * self.zipped.outputs <= REGISTERS

    def cost(self, dot: TapDot, sizes: tuple[int, int]) -> float:
        """Vector instructions per useful output of an image with sizes = outputs along (zip axis, other axis)."""
        passes = -(-sizes[0] // self.zipped.outputs) * -(-sizes[1] // self.other.outputs)
        zips = 2 * dot.group * self.zipped.groups(dot.group) * len(self.other.positions)
        outputs = self.zipped.outputs * self.other.outputs
        return passes * (zips + self.dots(dot) + EPILOGUE_COST * outputs) / (sizes[0] * sizes[1])

    def fits(self, dot: TapDot) -> bool:
        z, o = self.zipped, self.other
        if z.outputs > 1 and z.stride % z.dilation:
            return False
        if self.gathers(dot):
            return z.outputs * o.outputs <= LARGEST_PASS
        return dot.units * z.outputs * o.outputs <= REGISTERS - dot.group


def choose_walk(
    dot: TapDot,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    out: tuple[int, int],
    valid: int,
) -> Walk:
    """The walk of least cost; kernel ... out: (rows, columns)."""
    best: tuple[float, Walk] | None = None
    for z in (0, 1):
        sizes = out[z], out[1 - z]
        for p in range(1, min(4, sizes[0]) + 1):
            for c in range(1, min(6, sizes[1]) + 1):
                zipped, other = (Axis(kernel[a], strides[a], dilations[a], n) for a, n in ((z, p), (1 - z, c)))
                walk = Walk(zipped, other, rows=z == 0, valid=valid)
                if walk.fits(dot) or p == c == 1:
                    cost = walk.cost(dot, sizes)
                    if best is None or cost < best[0]:
                        best = cost, walk
    assert best
    return best[1]


def depthwise_zip_calls(
    chain: Chain, source: Buffer, x: Type, out: Type, weight: np.ndarray, bias: np.ndarray, a: dict
) -> list[KernelCall]:
    """conv2d with groups == C == O; weight int8 [C, KH, KW, 1], bias int32 with the zero point folded in."""
    n, h, w, c = x.shape
    oh, ow = out.shape[1:3]
    kernel, strides, dilations = weight.shape[1:3], tuple(a["strides"]), tuple(a["dilations"])
    pads, calls = list(a["pads"]), list[KernelCall]()
    data: Buffer | Workspace = source
    if any(pads):
        data, calls = pad_image(source, x.shape, pads, a["x_zero_point"], x.dtype)
        _, h, w, _ = Frame(tuple(pads), 0).shape(x.shape)
    taps = weight[..., 0]
    if w == ow == kernel[1] == 1:  # a column is a row, seen differently
        h, w, oh, ow, taps = w, h, ow, oh, taps.transpose(0, 2, 1)
        kernel, strides, dilations = kernel[::-1], strides[::-1], dilations[::-1]
    dot, valid = TAP_DOTS[chain.isa.name], min(c, BLOCK)
    walk = choose_walk(dot, kernel, strides, dilations, (oh, ow), valid)
    blocks, lines = -(-c // BLOCK), -(-oh // walk.lines.outputs)
    macs = n * oh * ow * c * kernel[0] * kernel[1]
    chunks = 1
    if macs >= PARALLEL_MACS:
        chunks = min(lines, -(-PARALLEL_TASKS // (n * blocks)))
    chunk_lines = -(-lines // chunks)
    chunks = -(-lines // chunk_lines)
    tasks = n * blocks * chunks
    walk = replace(walk, parallel=macs >= PARALLEL_MACS and tasks > 1)
    sizes = np.array([tasks, blocks, chunks, chunk_lines, oh, ow, h * w * c, w * c, c], np.int32)
    packed = _pack(taps if walk.rows else taps.transpose(0, 2, 1), walk, dot)
    operands = (data, Constant(packed), Constant(bias), Buffer(chain.result), Constant(sizes), *chain.operands)
    return [*calls, KernelCall(_kernel(walk, dot, chain, x.dtype), operands)]


def first_channels(channels: int) -> list[int]:
    """Where each block of 16 channels begins: the last one early, rather than being short."""
    return [max(0, min(b, channels - BLOCK)) for b in range(0, channels, BLOCK)]


def _pack(taps: np.ndarray, walk: Walk, dot: TapDot) -> np.ndarray:
    """int8 [C, KZ, KO] -> for each block, tap along the other axis, output along the zip axis: its groups' weights."""
    z, parts = walk.zipped, []
    full = np.zeros((max(len(taps), BLOCK), *taps.shape[1:]), np.int8)
    full[: len(taps)] = taps
    for channel in first_channels(len(taps)):
        for t in range(walk.other.kernel):
            for o in range(z.outputs):
                moved = np.zeros((BLOCK, z.groups(dot.group) * dot.group), np.int8)
                first = o * z.stride // z.dilation
                moved[:, first : first + z.kernel] = full[channel : channel + BLOCK, :, t]
                parts += [dot.pack(moved[:, g * dot.group : (g + 1) * dot.group]).ravel() for g in z.used(o, dot.group)]
    return np.concatenate(parts)


def depthwise_function(name: str, chain: Chain, dtype: str, emit: Callable[..., None]) -> Any:
    """The PrimFunc of a depthwise kernel: emit(x, w, bias, y, sizes, the chain's arguments) writes its body."""
    pointers = [("x", dtype), ("w", "int8"), ("bias", "int32"), ("y", chain.dtype), ("sizes", "int32")]
    parameters = [*((n, d + "*") for n, d in pointers), *chain.parameters]
    return function(name, parameters, lambda x, w, bias, y, sizes, *rest: emit(x, w, bias, y, sizes, rest))


def _kernel(walk: Walk, dot: TapDot, chain: Chain, dtype: str) -> Kernel:
    """Parameters: x (padded), packed weights, int32 bias (padded), y, int32 table of SIZES, then the chain's."""
    code = hashlib.sha256(repr((walk, dot.name, chain.isa.name, chain.key, dtype)).encode()).hexdigest()[:10]
    (kh, kw), sh = (walk.lines.kernel, walk.columns.kernel), walk.lines.stride
    name = f"depthwise_zip_{dtype}_{kh}x{kw}s{sh}_{chain.isa.name}_{code}"

    def build() -> Any:
        return depthwise_function(name, chain, dtype, lambda *pointers: _Body(walk, dot, chain, *pointers).emit())

    return Kernel(name, build)


@dataclass
class _Body:
    """Emission of one kernel."""

    walk: Walk
    dot: TapDot
    chain: Chain
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
            plane, chunk = bind(T.truncdiv(task, chunks)), bind(T.truncmod(task, chunks))
            image, block = bind(T.truncdiv(plane, blocks)), bind(T.truncmod(plane, blocks))
            height, width = bind(size["height"]), bind(size["width"])
            self.pitch, self.channels = bind(size["pitch"]), bind(size["channels"])
            channel = bind(T.min(block * BLOCK, self.channels - BLOCK) if walk.valid == BLOCK else T.int32(0))
            weights = bind(block * self._block_bytes())
            start = bind(image * size["image"] + channel)
            emitter = self.chain.start(self.chain_arguments)
            lanes = self.dot.lanes
            self.bias_here = resident([self.bias.load(channel + u * lanes, lanes) for u in range(self.dot.units)])
            first, lines = bind(chunk * size["chunk_lines"]), bind(T.truncdiv(height + (rows - 1), T.int32(rows)))
            passes = bind(T.truncdiv(width + (columns - 1), T.int32(columns)))
            with T.serial(0, T.min(size["chunk_lines"], lines - first)) as i:
                line = bind(T.min((first + i) * rows, height - rows))
                origin = bind(start + line * (walk.lines.stride * self.pitch))
                pixel = bind((image * height + line) * width)
                with T.serial(0, passes) as step:
                    column = bind(T.min(step * columns, width - columns))
                    at = bind(origin + column * (walk.columns.stride * self.channels))
                    self._pass(at, weights, channel, bind(pixel + column), width, emitter)

    def _block_bytes(self) -> int:
        used = sum(len(self.walk.zipped.used(o, self.dot.group)) for o in range(self.walk.zipped.outputs))
        return self.walk.other.kernel * used * self.dot.group * BLOCK

    def _pass(self, at: Expr, weights: Expr, channel: Expr, pixel: Expr, width: Expr, emitter: Emitter) -> None:
        """All outputs of a pass, one after another along the other axis."""
        walk, dot = self.walk, self.dot
        z, o = walk.zipped, walk.other
        z_step, o_step = (self.pitch, self.channels) if walk.rows else (self.channels, self.pitch)
        z_pixels, o_pixels = (width, T.int32(1)) if walk.rows else (T.int32(1), width)
        group_bytes, groups = dot.group * BLOCK, z.groups(dot.group)
        span = (z.outputs - 1) * z.stride // z.dilation + z.kernel
        distance = bind(z_step * z.dilation)

        def zipped(start: Expr, g: int) -> list[Expr]:
            return dot.zipped(self.x, bind(start + g * dot.group * distance), distance, min(dot.group, span - 4 * g))

        offsets, total = {}, 0  # where the weights of (output, group) lie for the first tap of the other axis
        for j in range(z.outputs):
            for g in z.used(j, dot.group):
                offsets[j, g] = total
                total += group_bytes

        def add(acc: Pointer, g: int, parts: list[Expr], tap: Expr | int) -> None:
            for j in range(z.outputs):
                if (j, g) in offsets:
                    dot.dots(acc, j * BLOCK, parts, dot.weights(self.w, weights + (tap * total + offsets[j, g])))

        def finish(acc: Pointer, k: int) -> None:
            for j in range(z.outputs):
                value = concat([acc.load(j * BLOCK + u * dot.lanes, dot.lanes) for u in range(dot.units)])
                row = bind(pixel + (j * z_pixels + k * o_pixels))
                flat = bind(row * self.channels + channel)
                store_lanes(self.y, flat, emitter.emit(value, row, channel, flat), walk.valid)

        if walk.dots(dot) > UNROLLED_DOTS and o.outputs == 1:
            acc = self._start()
            with T.serial(0, o.kernel) as t:
                start = bind(at + t * (o_step * o.dilation))
                for g in range(groups):
                    add(acc, g, zipped(start, g), t)
            finish(acc, 0)
            return
        sums: dict[int, Pointer] = {}
        kept: dict[int, list[list[Expr]]] = {}
        gathers = walk.gathers(dot)
        for position in o.positions:
            start = bind(at + position * o_step)
            kept[position] = [zipped(start, g) for g in range(groups)]
            for k in range(o.outputs):
                reads = o.reads(k)
                here = [position] if position in reads else []
                for p in (reads if position == reads[-1] else []) if gathers else here:
                    if p == reads[0]:
                        sums[k] = self._start()
                    for g in range(groups):
                        add(sums[k], g, kept[p][g], reads.index(p))
                if position == reads[-1]:
                    finish(sums[k], k)

    def _start(self) -> Pointer:
        """Accumulators of the outputs along the zip axis, at the bias."""
        outputs, lanes = self.walk.zipped.outputs, self.dot.lanes
        acc = local(outputs * BLOCK, "int32")
        for j in range(outputs):
            for u in range(self.dot.units):
                acc.store(j * BLOCK + u * lanes, self.bias_here.load(u * lanes, lanes))
        return acc


__all__ = ["choose_walk", "depthwise_function", "depthwise_zip_calls", "first_channels"]
