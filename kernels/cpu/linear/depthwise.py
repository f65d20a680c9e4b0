"""Depthwise convolutions: one filter a channel.

The image is first copied into a frame of blocks [N, C/16, H, W, 16] with its padding, so that taps lie at constant
distances. The kernel then walks along rows with several output rows at once, which share what was zipped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, concat, extract, function, local, shuffle, splat, store_lanes
from qcompile.kernels.cpu.chain import Chain, Emitter
from qcompile.kernels.cpu.isa.taps import BLOCK, TAP_DOTS, TapDot
from qcompile.kernels.cpu.linear.depthwise_zip import depthwise_zip_calls
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, Kernel, KernelCall, Workspace

UNROLLED_GROUPS = 32  # taller kernels loop over their rows
PARALLEL_MACS = 1 << 17
PARALLEL_BYTES = 1 << 17  # of an image that is copied into its frame
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
    kernel = weight.shape[1], weight.shape[2]
    rows = max(r for r in (1, 2, 4) if r <= min(oh, dot.outputs)) if kernel[0] > 1 else 1
    columns = max(p for p in (1, 2, 4) if p <= min(ow, dot.outputs // rows))
    row_groups = -(-oh // rows)
    tasks = n * blocks * row_groups
    macs = n * oh * ow * c * kernel[0] * kernel[1]
    window = Window(
        kernel,
        tuple(a["strides"]),
        tuple(a["dilations"]),
        rows,
        columns,
        c % BLOCK,
        c < BLOCK,
        macs >= PARALLEL_MACS and tasks > 1,
    )
    if not window.unrolled and rows > 1:
        window = Window(
            kernel,
            window.strides,
            window.dilations,
            1,
            max(p for p in (1, 2, 4) if p <= min(ow, dot.outputs)),
            window.tail,
            window.only_tail,
            window.parallel,
        )
        row_groups = oh
        tasks = n * blocks * row_groups
    frame = Workspace("blocks", (n * blocks * height * width + left + 4) * BLOCK + SLACK_BYTES)
    sizes = np.array([tasks, blocks, row_groups, oh, ow, width * BLOCK, height * width * BLOCK, c], np.int32)
    image = (h, w, c, top, left, bottom, right)
    if not left + right:  # rows without margins between them are one long row
        image = (1, h * w, c, 0, top * w, 0, bottom * w)
    fill = KernelCall(
        _frame_kernel(x.dtype, chain.isa.name, x.size >= PARALLEL_BYTES), (source, frame, n, blocks, *image, a["x_zero_point"])
    )
    return [
        fill,
        KernelCall(
            _kernel(window, dot, chain, x.dtype),
            (
                frame,
                Constant(_pack(weight[..., 0], dot, blocks)),
                Constant(bias),
                Buffer(chain.result),
                Constant(sizes),
                *chain.operands,
            ),
        ),
    ]


def _pack(weight: np.ndarray, dot: TapDot, blocks: int) -> np.ndarray:
    """[C, KH, KW] -> [C/16][KH][KW/group] groups, zeros where nothing is."""
    c, kh, kw = weight.shape
    groups = -(-kw // dot.group)
    full = np.zeros((blocks * BLOCK, kh, groups * dot.group), np.int8)
    full[:c, :, :kw] = weight
    parts = full.reshape(blocks, BLOCK, kh, groups, dot.group)
    return np.stack(
        [dot.pack(parts[b, :, r, g]).reshape(-1) for b in range(blocks) for r in range(kh) for g in range(groups)]
    )


def _frame_kernel(dtype: str, isa: str, parallel: bool) -> Kernel:
    """x [N, H, W, C] -> frame [N, C/16, top+H+bottom, left+W+right, 16], `fill` around."""
    name = f"blocks_{dtype}_{isa}{'_p' if parallel else ''}"
    fours = isa.startswith("avx512")

    def body(
        x: Pointer,
        y: Pointer,
        images: Expr,
        blocks: Expr,
        rows: Expr,
        columns: Expr,
        channels: Expr,
        top: Expr,
        left: Expr,
        bottom: Expr,
        right: Expr,
        fill: Expr,
    ) -> None:
        blank = bind(splat(fill, dtype, BLOCK))
        pitch = bind((left + columns + right) * BLOCK)
        plane = bind((top + rows + bottom) * pitch)

        def blanks(at: Expr, count: Expr) -> None:
            with T.serial(0, count) as k:
                y.store(at + k * BLOCK, blank)

        def copy(source: Expr, at: Expr, first: Expr) -> None:
            with T.serial(first, columns) as k:
                y.store(at + k * BLOCK, x.load(source + k * channels, BLOCK))

        def copy_four(source: Expr, at: Expr) -> None:
            """Four blocks at once: four pixels by four blocks of 16 bytes, transposed in registers."""
            fours = bind(T.truncdiv(columns, T.int32(4)))
            with T.serial(0, fours) as k:
                pixels = [bind(x.load(source + (k * 4 + i) * channels, 4 * BLOCK)) for i in range(4)]
                quarters = [shuffle(pixels, [i * 64 + b * 16 + c for i in range(4) for c in range(16)]) for b in range(4)]
                for b, quarter in enumerate(quarters):
                    y.store(at + b * plane + k * (4 * BLOCK), quarter)
            for b in range(4):
                copy(source + b * BLOCK, bind(at + b * plane), fours * 4)

        with (T.parallel if parallel else T.serial)(0, images * rows) as number:
            i, r = bind(T.truncdiv(number, rows)), bind(T.truncmod(number, rows))
            line = bind(i * blocks * plane + (top + r) * pitch)
            source = bind(number * columns * channels)
            wide = bind(T.truncdiv(channels, T.int32(4 * BLOCK)) if fours else T.int32(0))
            if fours:
                with T.serial(0, wide) as b:
                    copy_four(bind(source + b * (4 * BLOCK)), bind(line + b * (4 * plane) + left * BLOCK))
            with T.serial(0, blocks - wide * 4) as k:
                b = bind(wide * 4 + k)
                copy(bind(source + b * BLOCK), bind(line + b * plane + left * BLOCK), T.int32(0))
            with T.serial(0, blocks) as b:
                # what the last row's margin writes past its plane is the next plane's own margin
                blanks(bind(line + b * plane + (left + columns) * BLOCK), left + right)
        with T.serial(0, images * blocks) as b:
            start = bind(b * plane)
            blanks(start, top * (left + columns + right) + left)
            blanks(start + (top + rows) * pitch, bottom * (left + columns + right))

    scalars = ("images", "blocks", "rows", "columns", "channels", "top", "left", "bottom", "right", "fill")
    return Kernel(
        name, lambda: function(name, [("x", dtype + "*"), ("y", dtype + "*"), *((s, "int32") for s in scalars)], body)
    )


def _kernel(window: Window, dot: TapDot, chain: Chain, dtype: str) -> Kernel:
    """Parameters: frame, packed weights, int32 bias (padded), y, int32 table of SIZES, then the chain's."""
    code = hashlib.sha256(repr((window, dot.name, chain.isa.name, chain.key, dtype)).encode()).hexdigest()[:10]
    (kh, kw), (sh, _) = window.kernel, window.strides
    name = f"depthwise_{dtype}_{kh}x{kw}s{sh}_{chain.isa.name}_{code}"

    def build() -> Any:
        parameters = [
            ("x", dtype + "*"),
            ("w", "int8*"),
            ("bias", "int32*"),
            ("y", chain.dtype + "*"),
            ("sizes", "int32*"),
            *chain.parameters,
        ]
        return function(
            name,
            parameters,
            lambda x, w, bias, y, sizes, *rest: _Body(window, dot, chain, x, w, bias, y, sizes, rest).emit(),
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
                    T.Shuffle([bias], list(range(u * dot.lanes, (u + 1) * dot.lanes))) if dot.units > 1 else bias,
                )
        group_bytes = dot.group * BLOCK
        row_bytes = -(-v.kernel[1] // dot.group) * group_bytes
        panel = bind(block * (v.kernel[0] * row_bytes))
        if v.unrolled:
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
