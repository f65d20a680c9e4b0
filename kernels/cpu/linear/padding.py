"""Images inside a frame filled with their zero point, so that convolutions need no edge cases.

Either the kernel that makes an image writes it straight into its frame, or a copy does. The margins are filled first:
what is written past them lies in the interior, which is written afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, splat
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, Kernel, KernelCall, NodeContext, Workspace

CHUNK = 64  # bytes written at a time, where there are so many
PARALLEL_BYTES = 1 << 16  # of an image whose rows are copied on several threads


@dataclass(frozen=True)
class Frame:
    """pads = (top, left, bottom, right) around each image [H, W, C], of the value `fill`, or one for each channel."""

    pads: tuple[int, int, int, int]
    fill: int | tuple[int, ...]

    def gap(self, channels: int) -> int:
        """Elements between two rows of the image."""
        return (self.pads[1] + self.pads[3]) * channels

    def first(self, width: int, channels: int) -> int:
        """Where the image begins."""
        top, left, _, right = self.pads
        return (top * (left + width + right) + left) * channels

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the whole: [N, top + H + bottom, left + W + right, C]."""
        n, h, w, c = shape
        top, left, bottom, right = self.pads
        return n, top + h + bottom, left + w + right, c


def split_frame(ctx: NodeContext) -> tuple[NodeContext, Frame | None]:
    """A node without the `pad` that ends its body, and the frame that this pad puts around [N, H, W, C]."""
    if not ctx.node.body or ctx.node.body[-1].op != "pad":
        return ctx, None
    a = ctx.node.body[-1].attrs
    (_, top, left, _), (_, bottom, right, _) = a["before"], a["after"]
    return replace(ctx, node=replace(ctx.node, body=ctx.node.body[:-1])), Frame((top, left, bottom, right), a["value"])


def pad_image(
    source: Buffer, shape: tuple[int, ...], pads: Sequence[int], fill: int | list[int], dtype: str
) -> tuple[Workspace, list[KernelCall]]:
    """The framed image [N, H, W, C] of 8 bits as a workspace, and the calls that fill it."""
    n, h, w, c = shape
    frame = Frame(tuple(pads), tuple(fill) if isinstance(fill, list) else fill)  # type: ignore[arg-type]
    _, height, width, _ = frame.shape(shape)
    y = Workspace("padded", n * height * width * c + SLACK_BYTES)
    if not frame.gap(c):  # all rows are one
        lines, row = 1, h * w * c
    else:
        lines, row = h, w * c
    chunk, parallel = _chunk(row), n * h * w * c >= PARALLEL_BYTES
    sizes = (n * lines, lines, row, frame.first(w, c), height * width * c, width * c)
    copy = KernelCall(_copy_rows(dtype, chunk, parallel), (source, y, *sizes))
    return y, [fill_margins(y, shape, frame, dtype), copy]


def fill_margins(y: Buffer | Workspace, shape: tuple[int, ...], frame: Frame, dtype: str) -> KernelCall:
    """Fills the frame around images [N, H, W, C] of 8 bits; writes into their interior too, never outside of y."""
    n, h, w, c = shape
    _, _, bottom, right = frame.pads
    _, height, width, _ = frame.shape(shape)
    total = n * height * width * c
    chunk = _chunk(total)
    before, gap, after = frame.first(w, c), frame.gap(c), (bottom * width + right) * c
    sizes = (n, h - 1, before, w * c, gap, after, total - chunk)
    if isinstance(frame.fill, tuple):
        repeated = np.resize(np.array(frame.fill, dtype), c + chunk)
        return KernelCall(_fill(dtype, chunk, channels=True), (y, *sizes, Constant(repeated), c))
    return KernelCall(_fill(dtype, chunk), (y, *sizes, frame.fill))


def _chunk(count: int) -> int:
    """The largest power of two of bytes that fits in `count`, up to CHUNK."""
    return min(CHUNK, 1 << (count.bit_length() - 1))


def _copy_rows(dtype: str, chunk: int, parallel: bool) -> Kernel:
    """Rows of images into their frames; the last chunk of a row begins early rather than being short."""

    def body(x: Pointer, y: Pointer, tasks: Expr, rows: Expr, row: Expr, first: Expr, image: Expr, pitch: Expr) -> None:
        with (T.parallel if parallel else T.serial)(0, tasks) as task:
            i, r = bind(T.truncdiv(task, rows)), bind(T.truncmod(task, rows))
            source, to = bind(task * row), bind(first + i * image + r * pitch)
            with T.serial(0, T.truncdiv(row + (chunk - 1), T.int32(chunk))) as k:
                at = bind(T.min(k * chunk, row - chunk))
                y.store(to + at, x.load(source + at, chunk))

    parameters = [*pointers(x=dtype, y=dtype), *scalars("tasks", "rows", "row", "first", "image", "pitch")]
    return kernel("pad", (chunk, parallel), parameters, body)


def _fill(dtype: str, chunk: int, channels: bool = False) -> Kernel:
    """The margin before the first row, those between rows, and that after the last; `last`: where a chunk may begin.

    fill: their value, or with `channels` those of so many channels, repeated for a chunk more.
    """

    def body(
        y: Pointer, images: Expr, gaps: Expr, before: Expr, row: Expr, gap: Expr, after: Expr, last: Expr, *fill: Any
    ) -> None:
        blank = None if channels else bind(splat(fill[0], dtype, chunk))

        def chunks(count: Expr) -> Expr:
            return bind(T.truncdiv(count + (chunk - 1), T.int32(chunk)))

        def write(at: Expr, count: Expr) -> None:
            with T.serial(0, count) as k:
                begin = bind(T.min(at + k * chunk, last))
                y.store(begin, fill[0].load(T.truncmod(begin, fill[1]), chunk) if channels else blank)

        counts = [chunks(n) for n in (before, gap, after)]
        image = bind(before + row + gaps * (row + gap) + after)
        with T.serial(0, images) as i:
            start = bind(i * image)
            write(start, counts[0])
            with T.serial(0, gaps) as r:
                write(bind(start + before + row + r * (row + gap)), counts[1])
            write(bind(start + image - after), counts[2])

    numbers = scalars("images", "gaps", "before", "row", "gap", "after", "last")
    filling = [*pointers(fill=dtype), *scalars("channels")] if channels else scalars("fill")
    return kernel("margins", (chunk, channels), [*pointers(y=dtype), *numbers, *filling], body)
