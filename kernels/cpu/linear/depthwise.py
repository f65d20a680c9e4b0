"""Depthwise convolutions: one filter a channel.

The image is first copied into a frame of blocks [N, C/16, H, W, 16] with its padding, so that taps lie at constant
distances. The kernel then walks along rows with several output rows at once, which share what was zipped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    concat,
    extract,
    local,
    store_lanes,
)
from qcompile.kernels.cpu.chain import Chain, Emitter
from qcompile.kernels.cpu.isa.taps import BLOCK, TAP_DOTS, TapDot
from qcompile.kernels.cpu.linear.depthwise_zip import depthwise_function, depthwise_zip_calls
from qcompile.kernels.cpu.linear.frame import fill_frame
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, Kernel, KernelCall

UNROLLED_GROUPS = 32  # taller kernels loop over their rows
PARALLEL_MACS = 1 << 15  # for each int32 lane of a register
SIZES = ("tasks", "blocks", "row_groups", "height", "width", "pitch", "block_bytes", "channels")


@dataclass(frozen=True)
class Window:
    """What the code depends on: the kernel, how it steps, and the rows x columns of outputs of one pass."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    rows: int
    columns: int
    tail: int  # valid channels of the last block, 0: all
    only_tail: bool
    parallel: bool
    aligned: bool = False  # zipped groups serve all columns of a pass, whose weights are moved by up to three taps

    def groups(self, size: int, moved: int = 0) -> int:
        """Groups of `size` taps that a kernel row takes, moved by so many taps."""
        return -(-(self.kernel[1] + moved) // size)

    @property
    def unrolled(self) -> bool:
        return self.kernel[0] * -(-self.kernel[1] // 2) <= UNROLLED_GROUPS


def depthwise_calls(
    chain: Chain, source: Buffer, x: Type, out: Type, weight: np.ndarray, bias: np.ndarray, a: dict
) -> list[KernelCall]:
    """conv2d with groups == C == O; weight int8 [C, KH, KW, 1], bias int32 with the zero point folded in."""
    if TAP_DOTS[chain.isa.name].shared:
        return depthwise_zip_calls(chain, source, x, out, weight, bias, a)
    n, h, w, c = x.shape
    _, oh, ow, _ = out.shape
    top, left, bottom, right = a["pads"]
    height, width = h + top + bottom, w + left + right
    blocks = -(-c // BLOCK)
    dot = TAP_DOTS[chain.isa.name]
    window = _choose_window(dot, weight.shape[1:3], x, out, a)
    row_groups = -(-oh // window.rows)
    tasks = n * blocks * row_groups
    window = replace(window, parallel=out.size * weight[0].size >= PARALLEL_MACS * chain.isa.lanes and tasks > 1)
    frame, fill = fill_frame(source, x, a["pads"], a["x_zero_point"], chain.isa)
    sizes = np.array([tasks, blocks, row_groups, oh, ow, width * BLOCK, height * width * BLOCK, c], np.int32)
    return [
        fill,
        KernelCall(
            _kernel(window, dot, chain, x.dtype),
            (
                frame,
                Constant(_pack(weight[..., 0], window, dot, blocks)),
                Constant(bias),
                Buffer(chain.result),
                Constant(sizes),
                *chain.operands,
            ),
        ),
    ]


def _choose_window(dot: TapDot, kernel: tuple[int, int], x: Type, out: Type, a: dict) -> Window:
    """Outputs of a pass: several rows share what was zipped, or, for long kernel rows, many columns do."""
    c, (_, oh, ow, _) = x.shape[-1], out.shape
    window = Window(kernel, tuple(a["strides"]), tuple(a["dilations"]), 1, 1, c % BLOCK, c < BLOCK, False)
    if dot.aligned_outputs and kernel[1] > dot.group and window.strides[1] == window.dilations[1] == 1:
        columns = max(p for p in range(1, dot.aligned_outputs + 1) if p <= ow)
        return replace(window, columns=columns, aligned=True)
    rows = max(r for r in (1, 2, 4) if r <= min(oh, dot.outputs)) if kernel[0] > 1 and window.unrolled else 1
    return replace(window, rows=rows, columns=max(p for p in (1, 2, 4) if p <= min(ow, dot.outputs // rows)))


def _pack(weight: np.ndarray, window: Window, dot: TapDot, blocks: int) -> np.ndarray:
    """[C, KH, KW] -> [C/16][KH][moved by 0 ... 3 taps][groups], zeros where nothing is."""
    c, kh, kw = weight.shape
    full = np.zeros((blocks * BLOCK, kh, kw + 2 * dot.group), np.int8)
    full[:c, :, dot.group : dot.group + kw] = weight
    parts = []
    for block in full.reshape(blocks, BLOCK, kh, -1):
        for row in range(kh):
            for moved in range(dot.group if window.aligned else 1):
                for g in range(window.groups(dot.group, moved)):
                    first = (g + 1) * dot.group - moved
                    parts.append(dot.pack(block[:, row, first : first + dot.group]).ravel())
    return np.concatenate(parts)


def _kernel(window: Window, dot: TapDot, chain: Chain, dtype: str) -> Kernel:
    """Parameters: frame, packed weights, int32 bias (padded), y, int32 table of SIZES, then the chain's."""
    code = hashlib.sha256(repr((window, dot.name, chain.isa.name, chain.key, dtype)).encode()).hexdigest()[:10]
    (kh, kw), (sh, _) = window.kernel, window.strides
    name = f"depthwise_{dtype}_{kh}x{kw}s{sh}_{chain.isa.name}_{code}"

    def build() -> Any:
        return depthwise_function(
            name, chain, dtype, lambda *pointers: _Body(window, dot, chain, *pointers).emit()
        )

    return Kernel(name, build)


@dataclass
class _Body:
    """Emission of one kernel."""

    window: Window
    dot: TapDot
    chain: Chain
    x: Pointer
    w: Pointer
    bias: Pointer
    y: Pointer
    sizes: Pointer
    chain_arguments: tuple

    def size(self, name: str) -> Expr:
        return self.sizes.load(SIZES.index(name))

    def emit(self) -> None:
        v = self.window
        tasks = bind(self.size("tasks"))
        with (T.parallel if v.parallel else T.serial)(0, tasks) as task:
            blocks, row_groups = bind(self.size("blocks")), bind(self.size("row_groups"))
            plane, group = bind(T.truncdiv(task, row_groups)), bind(T.truncmod(task, row_groups))
            image, block = bind(T.truncdiv(plane, blocks)), bind(T.truncmod(plane, blocks))
            height, width = bind(self.size("height")), bind(self.size("width"))
            line = bind(T.min(group * v.rows, height - v.rows))
            pitch = bind(self.size("pitch"))
            origin = bind(plane * self.size("block_bytes") + line * (v.strides[0] * pitch))
            emitter = self.chain.start(self.chain_arguments)
            pixel = bind((image * height + line) * width)
            passes = bind(T.truncdiv(width + (v.columns - 1), T.int32(v.columns)))

            def walk(valid: int) -> None:
                with T.serial(0, passes) as step:
                    column = bind(T.min(step * v.columns, width - v.columns))
                    self._pass(
                        bind(origin + column * (v.strides[1] * BLOCK)),
                        pitch,
                        block,
                        bind(pixel + column),
                        width,
                        valid,
                        emitter,
                    )

            if v.tail and not v.only_tail:
                with T.If(block < blocks - 1):
                    with T.Then():
                        walk(BLOCK)
                    with T.Else():
                        walk(v.tail)
            else:
                walk(v.tail or BLOCK)

    def _pass(
        self, origin: Expr, pitch: Expr, block: Expr, pixel: Expr, width: Expr, valid: int, emitter: Emitter
    ) -> None:
        v, dot = self.window, self.dot
        acc = local(v.rows * v.columns * BLOCK, "int32")
        bias = bind(self.bias.load(block * BLOCK, BLOCK))
        for o in range(v.rows * v.columns):
            for u in range(dot.units):
                acc.store(
                    o * BLOCK + u * dot.lanes,
                    extract(bias, u * dot.lanes, dot.lanes),
                )
        group_bytes = dot.group * BLOCK
        row_bytes = sum(v.groups(dot.group, m) for m in range(dot.group if v.aligned else 1)) * group_bytes
        panel = bind(block * (v.kernel[0] * row_bytes))
        if v.aligned:
            with T.serial(0, v.kernel[0]) as r:
                self._aligned_row(acc, bind(origin + r * (v.dilations[0] * pitch)), bind(panel + r * row_bytes))
        elif v.unrolled:
            # every input row serves the output rows that reach it
            reach: dict[int, list[tuple[int, int]]] = {}
            for o in range(v.rows):
                for r in range(v.kernel[0]):
                    reach.setdefault(o * v.strides[0] + r * v.dilations[0], []).append((o, r))
            for line, uses in sorted(reach.items()):
                self._row(acc, bind(origin + line * pitch), [(o, bind(panel + r * row_bytes)) for o, r in uses])
        else:
            with T.serial(0, v.kernel[0]) as r:
                self._row(acc, bind(origin + r * (v.dilations[0] * pitch)), [(0, bind(panel + r * row_bytes))])
        channels, channel = bind(self.size("channels")), block * BLOCK
        outputs = [(o, p) for o in range(v.rows) for p in range(v.columns)]
        together = max(1, self.chain.width // BLOCK)
        for at in range(0, len(outputs), together):
            few = outputs[at : at + together]
            sums = [
                acc.load((at + i) * BLOCK + u * dot.lanes, dot.lanes) for i in range(len(few)) for u in range(dot.units)
            ]
            rows = [bind(pixel + (o * width + p)) for o, p in few]
            pixels = [(row, bind(row * channels + channel)) for row in rows]
            result = bind(emitter.emit_pixels(concat(sums), pixels, channel))
            for i, (_, flat) in enumerate(pixels):
                store_lanes(self.y, flat, extract(result, i * BLOCK, BLOCK), valid)

    def _aligned_row(self, acc: Pointer, at: Expr, weights: Expr) -> None:
        """Adds one input row to all columns: column p begins p // 4 groups and p % 4 taps into the first group."""
        v, dot = self.window, self.dot
        size = dot.group
        begins = [sum(v.groups(size, m) for m in range(moved)) for moved in range(size)]
        for g in range((v.columns - 1) // size + v.groups(size, size - 1)):
            zipped = dot.zipped(self.x, at + g * (size * BLOCK), BLOCK, size)
            for p in range(v.columns):
                moved, own = p % size, g - p // size
                if 0 <= own < v.groups(size, moved):
                    panel = weights + (begins[moved] + own) * (size * BLOCK)
                    dot.dots(acc, p * BLOCK, zipped, dot.weights(self.w, panel))

    def _row(self, acc: Pointer, at: Expr, uses: list[tuple[int, Expr]]) -> None:
        """Adds one input row to each output row in `uses` (output row, offset of its kernel row's weights)."""
        v, dot = self.window, self.dot
        for g in range(-(-v.kernel[1] // dot.group)):
            taps = min(dot.group, v.kernel[1] - g * dot.group)
            distance = v.dilations[1] * BLOCK
            for p in range(v.columns):
                zipped = dot.zipped(
                    self.x, at + (p * v.strides[1] * BLOCK + g * dot.group * distance), distance, taps
                )
                for o, weights in uses:
                    dot.dots(
                        acc, (o * v.columns + p) * BLOCK, zipped, dot.weights(self.w, weights + g * dot.group * BLOCK)
                    )
