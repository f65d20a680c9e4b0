"""Windows over channels-last images, on vectors of channels: maxima, sums with an epilogue, linear interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, local, splat, store_lanes
from qcompile.kernels.cpu.chain import Chain, head_and_chain, widen
from qcompile.kernels.cpu.general.common import PARALLEL_WORK, ceil_div, loop, operand, static, vectors
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext

WINDOW = ("images", "h", "w", "c", "oh", "ow", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left")
LANES = 16  # channels of a vector of int32 sums
WRITTEN_OUT = 25  # taps of a window for which there is no loop
BYTES_IN_16_BITS = 128


def _first_and_count(at: Expr, size: Expr, taps: Expr, dilation: Expr) -> tuple[Expr, Expr]:
    """Of the taps at, at + dilation, ...: the first that lies in [0, size), and how many do."""
    first = bind(T.max(ceil_div(0 - at, dilation), T.int32(0)))
    end = T.max(T.min(ceil_div(size - at, dilation), taps), first)
    return first, bind(end - first)


@dataclass(frozen=True)
class Window:
    """The taps of one result that exist, for a vector of channels: `start`, that of the first; `rows` times `columns`
    of them, `row_step` and `column_step` apart. whole: (rows, columns) where the code knows that all taps exist."""

    start: Expr
    rows: Expr
    columns: Expr
    row_step: Expr
    column_step: Expr
    whole: tuple[int, int] | None

    @property
    def count(self) -> Expr:
        return T.int32(self.whole[0] * self.whole[1]) if self.whole else self.rows * self.columns

    def offsets(self) -> list[Expr]:
        """Of all taps of a whole window."""
        rows, columns = self.whole or (0, 0)
        lines = [bind(self.start + i * self.row_step) for i in range(rows)]
        return [bind(line + j * self.column_step) for line in lines for j in range(columns)]

    def visit(self, rows: Expr, columns: Expr, visit: Callable[[Expr], None], row: Expr, column: Expr) -> None:
        """Loops over rows * columns taps from (row, column) on."""
        corner = bind(self.start + row * self.row_step + column * self.column_step)
        with T.serial(0, rows) as i, T.serial(0, columns) as j:
            visit(bind(corner + i * self.row_step + j * self.column_step))


def _windows(
    sizes: dict[str, Expr],
    parallel: bool,
    lanes: int,
    fixed: int,
    whole: tuple[int, int] | None,
    emit: Callable[[Expr, Expr, Window], None],
) -> None:
    """Calls emit(pixel, channel, window) for each vector of the result; whole: the taps of windows that are written out
    where all of them exist."""
    s = sizes
    with loop(bind(s["images"] * s["oh"]), parallel) as line:
        image, oh = bind(T.truncdiv(line, s["oh"])), bind(T.truncmod(line, s["oh"]))
        y0 = bind(oh * s["sh"] - s["top"])
        row, rows = _first_and_count(y0, s["h"], s["kh"], s["dh"])
        column_step = bind(s["dw"] * s["c"])
        row_step = bind(s["dh"] * s["w"] * s["c"])
        with T.serial(0, s["ow"]) as ow:
            x0 = bind(ow * s["sw"] - s["left"])
            column, columns = _first_and_count(x0, s["w"], s["kw"], s["dw"])
            start = bind(((image * s["h"] + y0 + row * s["dh"]) * s["w"] + x0 + column * s["dw"]) * s["c"])
            pixel = bind(line * s["ow"] + ow)

            def vector(channel: Expr, known: tuple[int, int] | None) -> None:
                emit(pixel, channel, Window(bind(start + channel), rows, columns, row_step, column_step, known))

            def all_vectors(known: tuple[int, int] | None) -> None:
                if fixed:
                    vector(T.int32(0), known)
                else:
                    with vectors(s["c"], lanes) as channel:
                        vector(channel, known)

            if whole:
                with T.If(rows * columns == whole[0] * whole[1]):
                    with T.Then():
                        all_vectors(whole)
                    with T.Else():
                        all_vectors(None)
            else:
                all_vectors(None)


def _whole(numbers: dict[str, int]) -> tuple[int, int] | None:
    """The taps of a window that is small enough to be written out."""
    return (numbers["kh"], numbers["kw"]) if numbers["kh"] * numbers["kw"] <= WRITTEN_OUT else None


def _dense(numbers: dict[str, int]) -> bool:
    """Taps are neighbours: where a window leaves the image needs no division."""
    return numbers["dh"] == numbers["dw"] == 1


def _sizes(numbers: dict[str, int], arguments: Sequence[Expr]) -> dict[str, Expr]:
    known = {"dh": T.int32(1), "dw": T.int32(1)} if _dense(numbers) else {}
    return dict(zip(WINDOW, arguments)) | known


def _store(y: Pointer, at: Expr, value: Expr, fixed: int) -> None:
    store_lanes(y, at, value, fixed) if fixed else y.store(at, value)


def max_call(isa: Isa, dtype: str, numbers: dict[str, int], x: Any, y: Any, minimum: bool = False) -> KernelCall:
    """Maximum (or minimum) of windows; padding never wins."""
    lanes = min(isa.lanes * 4 // np.dtype(dtype).itemsize, 1 << (numbers["c"] - 1).bit_length())
    fixed, whole = static(numbers["c"], lanes), _whole(numbers)
    parallel = numbers["images"] * numbers["oh"] > 1 and _work(numbers) >= PARALLEL_WORK
    better = T.min if minimum else T.max
    worst = RANGES[dtype][1 if minimum else 0]

    def body(x: Pointer, y: Pointer, *sizes: Expr) -> None:
        def emit(pixel: Expr, channel: Expr, window: Window) -> None:
            at = bind(pixel * size["c"] + channel)
            if window.whole:
                taps = [bind(x.load(tap, lanes)) for tap in window.offsets()]
                _store(y, at, reduce(lambda a, b: bind(better(a, b)), taps), fixed)
                return
            best = local(lanes, dtype)
            best.store(0, splat(worst, dtype, lanes))

            def visit(tap: Expr) -> None:
                best.store(0, better(best.load(0, lanes), x.load(tap, lanes)))

            window.visit(window.rows, window.columns, visit, T.int32(0), T.int32(0))
            _store(y, at, best.load(0, lanes), fixed)

        size = _sizes(numbers, sizes)
        _windows(size, parallel, lanes, fixed, whole, emit)

    parameters = [*pointers(x=dtype, y=dtype), *scalars(*WINDOW)]
    spec = (isa, lanes, parallel, fixed, whole, _dense(numbers))
    work = kernel("window_min" if minimum else "window_max", spec, parameters, body)
    return KernelCall(work, (x, y, *(numbers[n] for n in WINDOW)))


def sum_call(
    isa: Isa, chain: Chain, dtype: str, zero_point: int, numbers: dict[str, int], x: Any, y: Any
) -> KernelCall:
    """Sums of (x - zero_point) over windows, padding counts 0, then the chain on [..., C] sums.

    Bytes are added up in 16 bits, as many as fit, before they go to the sums of 32.
    """
    narrow = "int16" if np.dtype(dtype).itemsize == 1 else "int32"
    code = chain.code
    widest = code.width if narrow == "int16" else LANES
    lanes = min(widest, max(LANES, 1 << (numbers["c"].bit_length() - 1)))
    fixed, whole = static(numbers["c"], lanes), _whole(numbers)
    parallel = numbers["images"] * numbers["oh"] > 1 and _work(numbers) >= PARALLEL_WORK
    columns_at_once = min(numbers["kw"], BYTES_IN_16_BITS)
    at_once = {"rows_at_once": BYTES_IN_16_BITS // columns_at_once, "columns_at_once": columns_at_once}

    def body(x: Pointer, y: Pointer, zero_point: Expr, rows_at_once: Expr, columns_at_once: Expr, *rest: Any) -> None:
        def load(tap: Expr) -> Expr:
            return bind(cast(x.load(tap, lanes), narrow))

        def emit(pixel: Expr, channel: Expr, window: Window) -> None:
            begin = splat(0 - zero_point * window.count, "int32", lanes)
            flat = bind(pixel * size["c"] + channel)
            if window.whole:
                some = reduce(lambda a, b: bind(a + b), [load(tap) for tap in window.offsets()])
                _store(y, flat, emitter.emit(widen(some) + begin, pixel, channel, flat), fixed)
                return
            acc, few = local(lanes, "int32"), local(lanes, narrow)
            acc.store(0, begin)
            pieces = bind(ceil_div(window.rows, rows_at_once)), bind(ceil_div(window.columns, columns_at_once))
            with T.serial(0, pieces[0]) as p, T.serial(0, pieces[1]) as q:
                few.store(0, splat(0, narrow, lanes))
                row, column = bind(p * rows_at_once), bind(q * columns_at_once)
                window.visit(
                    bind(T.min(rows_at_once, window.rows - row)),
                    bind(T.min(columns_at_once, window.columns - column)),
                    lambda tap: few.store(0, few.load(0, lanes) + load(tap)),
                    row,
                    column,
                )
                acc.store(0, acc.load(0, lanes) + widen(few.load(0, lanes)))
            _store(y, flat, emitter.emit(acc.load(0, lanes), pixel, channel, flat), fixed)

        size = _sizes(numbers, rest)
        emitter = code.start(rest[len(WINDOW) :])
        _windows(size, parallel, lanes, fixed, whole, emit)

    parameters = [*pointers(x=dtype, y=code.dtype), *scalars("zero_point", *at_once, *WINDOW), *code.parameters]
    return KernelCall(
        kernel("window_sum", (code, lanes, parallel, fixed, whole, _dense(numbers)), parameters, body),
        (x, y, zero_point, *at_once.values(), *(numbers[n] for n in WINDOW), *chain.operands),
    )


def _work(n: dict[str, int]) -> int:
    return n["images"] * n["oh"] * n["ow"] * n["c"] * n["kh"] * n["kw"]


def _numbers(x: tuple[int, ...], out: tuple[int, ...], a: dict[str, Any]) -> dict[str, int]:
    dilations = a.get("dilations", [1, 1])
    return dict(zip(WINDOW, (*x, out[1], out[2], *a["kernel"], *a["strides"], *dilations, a["pads"][0], a["pads"][1])))


def lower_max_pool2d(ctx: NodeContext) -> list[KernelCall]:
    (name,) = ctx.node.inputs
    numbers = _numbers(ctx.types[name].shape, ctx.out.shape, ctx.node.attrs)
    return [max_call(get_isa(ctx.target), ctx.out.dtype, numbers, operand(ctx, name), Buffer(ctx.node.name))]


def lower_sum_pool2d(ctx: NodeContext) -> list[KernelCall]:
    isa = get_isa(ctx.target)
    head, chain = head_and_chain(ctx, isa)
    type_ = ctx.types[head.inputs[0]]
    numbers = _numbers(type_.shape, chain.shape, head.attrs)
    return [
        sum_call(
            isa,
            chain,
            type_.dtype,
            head.attrs["x_zero_point"],
            numbers,
            operand(ctx, head.inputs[0]),
            Buffer(ctx.node.name),
        )
    ]


FEW = 4  # taps that are written out
RESIZE = ("images", "h", "w", "c", "oh", "ow")
BOUNDS = ("x_zero_point", "multiplier", "shift", "pre", "zero_point", "qmin", "qmax")


def lower_resize_linear(ctx: NodeContext) -> list[KernelCall]:
    """A few weighted pixels for each vector of channels; rows, columns and weights come as tables."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    x, *tables = ctx.node.inputs
    type_, out = ctx.types[x], ctx.out
    n, h, w, c = type_.shape
    _, oh, ow, _ = out.shape
    taps = [ctx.types[t].shape[0] for t in tables[::2]]
    fixed, parallel = static(c, LANES), n * oh > 1 and out.size >= PARALLEL_WORK

    def body(
        x: Pointer,
        y: Pointer,
        rows: Pointer,
        row_weights: Pointer,
        columns: Pointer,
        column_weights: Pointer,
        *rest: Expr,
    ) -> None:
        size, number = dict(zip(RESIZE, rest)), dict(zip(BOUNDS, rest[len(RESIZE) :]))
        with loop(bind(size["images"] * size["oh"]), parallel) as line:
            image, i = bind(T.truncdiv(line, size["oh"])), bind(T.truncmod(line, size["oh"]))

            def row(k: Expr | int) -> tuple[Expr, Expr]:
                start = bind((image * size["h"] + rows.load(k * size["oh"] + i)) * size["w"])
                return start, bind(row_weights.load(k * size["oh"] + i))

            few = [row(k) for k in range(taps[0])] if taps[0] <= FEW else []
            with T.serial(0, size["ow"]) as j:

                def column(k: Expr | int) -> tuple[Expr, Expr]:
                    return bind(columns.load(k * size["ow"] + j)), bind(column_weights.load(k * size["ow"] + j))

                beside = [column(k) for k in range(taps[1])] if taps[1] <= FEW else []

                def vector(channel: Expr) -> None:
                    zero = splat(number["x_zero_point"], "int32", LANES)
                    total = local(LANES, "int32")
                    total.store(0, splat(0, "int32", LANES))

                    def tap(start: Expr, upper: Expr, left: Expr, weight: Expr) -> None:
                        pixel = widen(x.load(bind((start + left) * size["c"] + channel), LANES)) - zero
                        total.store(0, total.load(0, LANES) + pixel * splat(bind(upper * weight), "int32", LANES))

                    def line_of(start: Expr, upper: Expr) -> None:
                        for left, weight in beside:
                            tap(start, upper, left, weight)
                        if not beside:
                            with T.serial(0, taps[1]) as k:
                                tap(start, upper, *column(k))

                    for start, upper in few:
                        line_of(start, upper)
                    if not few:
                        with T.serial(0, taps[0]) as k:
                            line_of(*row(k))
                    acc = bind(total.load(0, LANES))
                    acc = T.shift_left(acc, splat(number["pre"], "int32", LANES))
                    acc = isa.rescale(bind(acc), splat(number["multiplier"], "int32", LANES), number["shift"])
                    result = isa.saturate(acc, number["zero_point"], number["qmin"], number["qmax"], out.dtype)
                    _store(y, bind((line * size["ow"] + j) * size["c"] + channel), result, fixed)

                if fixed:
                    vector(T.int32(0))
                else:
                    with vectors(size["c"], LANES) as channel:
                        vector(channel)

    parameters = [
        *pointers(
            x=type_.dtype, y=out.dtype, rows="int32", row_weights="int32", columns="int32", column_weights="int32"
        ),
        *scalars(*RESIZE, *BOUNDS),
    ]
    constants = [Constant(np.ascontiguousarray(ctx.constants[t]).astype(np.int32)) for t in tables]
    return [
        KernelCall(
            kernel("resize_linear", (isa, *taps, fixed, parallel), parameters, body),
            (operand(ctx, x), Buffer(ctx.node.name), *constants, n, h, w, c, oh, ow, *(int(a[b]) for b in BOUNDS)),
        )
    ]


LOWERINGS = {"max_pool2d": lower_max_pool2d, "sum_pool2d": lower_sum_pool2d, "resize_linear": lower_resize_linear}
