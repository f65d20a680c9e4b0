"""Copies an image into a frame filled with its zero point, so that convolutions need no edge cases."""

from __future__ import annotations

from typing import Any

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, function, splat
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Kernel, KernelCall, Workspace

CHUNK = 16  # bytes written at a time; the overhang is overwritten by what comes next


def padded_shape(shape: tuple[int, ...], pads: list[int]) -> tuple[int, ...]:
    """[N, H, W, C] with pads = [top, left, bottom, right]."""
    n, h, w, c = shape
    top, left, bottom, right = pads
    return n, h + top + bottom, w + left + right, c


def pad_image(
    source: Buffer, shape: tuple[int, ...], pads: list[int], fill: int, dtype: str, isa: Isa
) -> tuple[Workspace, KernelCall]:
    """The framed image as a workspace, and the call that fills it. 8-bit dtypes."""
    n, h, w, c = shape
    top, left, bottom, right = pads
    _, _, width, _ = padded_shape(shape, pads)
    size = n * (h + top + bottom) * width * c
    chunk = max(CHUNK, isa.lanes * 4)
    frame = Workspace("padded", size + left * c + chunk + SLACK_BYTES)
    name = f"pad_{dtype}_{chunk}_{isa.name}"
    call = KernelCall(
        Kernel(name, lambda: _build(name, dtype, chunk)),
        (
            source,
            frame,
            n,
            h,
            top * width * c + left * c,
            w * c,
            (left + right) * c,
            bottom * width * c - left * c,
            fill,
        ),
    )
    return frame, call


def _build(name: str, dtype: str, chunk: int) -> Any:
    """Writes run along the frame: up to the first row, then each row and the gap to the next, then the end."""

    def body(
        x: Pointer,
        y: Pointer,
        images: Expr,
        rows: Expr,
        before: Expr,
        row: Expr,
        between: Expr,
        after: Expr,
        fill: Expr,
    ) -> None:
        blank = bind(splat(fill, dtype, chunk))

        def chunks(count: Expr) -> Expr:
            return bind(T.truncdiv(count + (chunk - 1), T.int32(chunk)))

        row_chunks, gap_chunks = chunks(row), chunks(between)
        before_chunks, after_chunks = chunks(before), chunks(after)
        image = bind(before + rows * (row + between) + after)
        with T.serial(0, images) as i:
            start = bind(i * image)
            with T.serial(0, before_chunks) as k:
                y.store(start + k * chunk, blank)
            with T.serial(0, rows) as r:
                at = bind(start + before + r * (row + between))
                source = bind((i * rows + r) * row)
                with T.serial(0, row_chunks) as k:
                    y.store(at + k * chunk, x.load(source + k * chunk, chunk))
                with T.serial(0, gap_chunks) as k:
                    y.store(at + row + k * chunk, blank)
            with T.serial(0, after_chunks) as k:
                y.store(start + before + rows * (row + between) + k * chunk, blank)

    parameters = [
        ("x", dtype + "*"),
        ("y", dtype + "*"),
        *((n, "int32") for n in ("images", "rows", "before", "row", "between", "after", "fill")),
    ]
    return function(name, parameters, body)
