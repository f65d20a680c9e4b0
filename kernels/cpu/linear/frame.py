"""An image in blocks of 16 channels with its padding: taps of a depthwise filter then lie at constant distances."""

from __future__ import annotations

from collections.abc import Sequence

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, function, shuffle, splat
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.isa.taps import BLOCK
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Kernel, KernelCall, Workspace

PARALLEL_BYTES = 1 << 16  # of an image that is copied into its frame


def fill_frame(
    source: Buffer, x: Type, pads: Sequence[int], zero_point: int, isa: Isa
) -> tuple[Workspace, KernelCall]:
    """x [N, H, W, C] as [N, C/16, top+H+bottom, left+W+right, 16], `zero_point` around, and the call that makes it.

    pads = [top, left, bottom, right]. Reads may reach four pixels past the end.
    """
    n, h, w, c = x.shape
    top, left, bottom, right = pads
    blocks = -(-c // BLOCK)
    frame = Workspace("blocks", (n * blocks * (h + top + bottom) * (w + left + right) + left + 4) * BLOCK + SLACK_BYTES)
    image = (h, w, c, top, left, bottom, right)
    if not left + right:  # rows without margins between them are one long row
        image = (1, h * w, c, 0, top * w, 0, bottom * w)
    kernel = _frame_kernel(x.dtype, isa.name, x.size >= PARALLEL_BYTES)
    return frame, KernelCall(kernel, (source, frame, n, blocks, *image, zero_point))


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
                for b in range(4):
                    block = shuffle(pixels, [i * 64 + b * 16 + c for i in range(4) for c in range(16)])
                    y.store(at + b * plane + k * (4 * BLOCK), block)
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
