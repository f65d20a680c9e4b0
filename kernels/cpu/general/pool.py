"""Windows over channels-last images, on vectors of channels: maxima, sums with an epilogue, linear interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, local, splat, store_lanes
from qcompile.kernels.cpu.chain import Chain, head_and_chain, widen
from qcompile.kernels.cpu.general.common import (
    PARALLEL_WORK,
    ceil_div,
    kernel,
    loop,
    operand,
    pointers,
    scalars,
    static,
    symbol,
    vectors,
)
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext

WINDOW = ("images", "h", "w", "c", "oh", "ow", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left")
LANES = 16  # channels of a vector of int32 sums


def _first_and_count(at: Expr, size: Expr, taps: Expr, dilation: Expr) -> tuple[Expr, Expr]:
    """Of the taps at, at + dilation, ...: the first that lies in [0, size), and how many do."""
    first = bind(T.max(ceil_div(0 - at, dilation), T.int32(0)))
    end = T.max(T.min(ceil_div(size - at, dilation), taps), first)
    return first, bind(end - first)


def _windows(
    sizes: dict[str, Expr],
    parallel: bool,
    lanes: int,
    fixed: int,
    emit: Callable[[Expr, Expr, Callable[[Callable[[Expr], None]], None], Expr], None],
) -> None:
    """Calls emit(pixel, channel, taps, count) for each vector of the result.

    taps(visit) writes the loops over the window that call visit(offset in x); count: the taps that are not padding.
    """
    s = sizes
    with loop(bind(s["images"] * s["oh"]), parallel) as line:
        image, oh = bind(T.truncdiv(line, s["oh"])), bind(T.truncmod(line, s["oh"]))
        y0 = bind(oh * s["sh"] - s["top"])
        row, rows = _first_and_count(y0, s["h"], s["kh"], s["dh"])
        with T.serial(0, s["ow"]) as ow:
            x0 = bind(ow * s["sw"] - s["left"])
            column, columns = _first_and_count(x0, s["w"], s["kw"], s["dw"])
            start = bind(((image * s["h"] + y0 + row * s["dh"]) * s["w"] + x0 + column * s["dw"]) * s["c"])
            pixel = bind(line * s["ow"] + ow)

            def taps(visit: Callable[[Expr], None], channel: Expr) -> None:
                with T.serial(0, rows) as i, T.serial(0, columns) as j:
                    visit(bind(start + i * (s["dh"] * s["w"] * s["c"]) + j * (s["dw"] * s["c"]) + channel))

            if fixed:
                emit(pixel, T.int32(0), lambda visit: taps(visit, T.int32(0)), rows * columns)
            else:
                with vectors(s["c"], lanes) as channel:
                    emit(pixel, channel, lambda visit: taps(visit, channel), rows * columns)


def _store(y: Pointer, at: Expr, value: Expr, fixed: int) -> None:
    store_lanes(y, at, value, fixed) if fixed else y.store(at, value)


def max_call(isa: Isa, dtype: str, numbers: dict[str, int], x: Any, y: Any, minimum: bool = False) -> KernelCall:
    """Maximum (or minimum) of windows; padding never wins."""
    lanes = isa.lanes * 4 // np.dtype(dtype).itemsize
    fixed = static(numbers["c"], lanes)
    parallel = numbers["images"] * numbers["oh"] > 1 and _work(numbers) >= PARALLEL_WORK
    better = T.min if minimum else T.max
    worst = RANGES[dtype][1 if minimum else 0]

    def body(x: Pointer, y: Pointer, *sizes: Expr) -> None:
        def emit(pixel: Expr, channel: Expr, taps: Any, count: Expr) -> None:
            best = local(lanes, dtype)
            best.store(0, splat(worst, dtype, lanes))
            taps(lambda at: best.store(0, better(best.load(0, lanes), x.load(at, lanes))))
            _store(y, bind(pixel * size["c"] + channel), best.load(0, lanes), fixed)

        size = dict(zip(WINDOW, sizes))
        _windows(size, parallel, lanes, fixed, emit)

    name = "_".join(
        [
            "window_min" if minimum else "window_max",
            isa.name,
            dtype,
            *(["p"] if parallel else []),
            *([str(fixed)] if fixed else []),
        ]
    )
    parameters = [*pointers(x=dtype, y=dtype), *scalars(*WINDOW)]
    return KernelCall(kernel(name, parameters, body), (x, y, *(numbers[n] for n in WINDOW)))


def sum_call(
    isa: Isa, chain: Chain, dtype: str, zero_point: int, numbers: dict[str, int], x: Any, y: Any
) -> KernelCall:
    """Sums of (x - zero_point) over windows, padding counts 0, then the chain on [..., C] sums."""
    fixed = static(numbers["c"], LANES)
    parallel = numbers["images"] * numbers["oh"] > 1 and _work(numbers) >= PARALLEL_WORK

    def body(x: Pointer, y: Pointer, zero_point: Expr, *rest: Any) -> None:
        def emit(pixel: Expr, channel: Expr, taps: Any, count: Expr) -> None:
            acc = local(LANES, "int32")
            acc.store(0, splat(0 - zero_point * count, "int32", LANES))
            taps(lambda at: acc.store(0, acc.load(0, LANES) + widen(x.load(at, LANES))))
            flat = bind(pixel * size["c"] + channel)
            _store(y, flat, emitter.emit(acc.load(0, LANES), pixel, channel, flat), fixed)

        size = dict(zip(WINDOW, rest))
        emitter = chain.start(rest[len(WINDOW) :])
        _windows(size, parallel, LANES, fixed, emit)

    name = "_".join(
        [
            "window_sum",
            isa.name,
            dtype,
            *(["p"] if parallel else []),
            *([str(fixed)] if fixed else []),
            *([f"i{chain.channels}"] if "image:" in chain.key else []),
            chain.key,
        ]
    )
    parameters = [*pointers(x=dtype, y=chain.dtype), *scalars("zero_point", *WINDOW), *chain.parameters]
    return KernelCall(
        kernel(symbol(name), parameters, body), (x, y, zero_point, *(numbers[n] for n in WINDOW), *chain.operands)
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


RESIZE = ("images", "h", "w", "c", "oh", "ow")
BOUNDS = ("x_zero_point", "multiplier", "shift", "pre", "zero_point", "qmin", "qmax")


def lower_resize_linear(ctx: NodeContext) -> list[KernelCall]:
    """Four weighted pixels for each vector of channels; rows, columns and weights come as tables."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    x, *tables = ctx.node.inputs
    type_, out = ctx.types[x], ctx.out
    n, h, w, c = type_.shape
    _, oh, ow, _ = out.shape
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
            starts = [bind((image * size["h"] + rows.load(k * size["oh"] + i)) * size["w"]) for k in range(2)]
            upper = [bind(row_weights.load(k * size["oh"] + i)) for k in range(2)]
            with T.serial(0, size["ow"]) as j:
                lefts = [bind(columns.load(k * size["ow"] + j)) for k in range(2)]
                weights = [bind(column_weights.load(k * size["ow"] + j)) for k in range(2)]

                def vector(channel: Expr) -> None:
                    zero = splat(number["x_zero_point"], "int32", LANES)
                    acc = splat(0, "int32", LANES)
                    for r in range(2):
                        for s in range(2):
                            pixel = widen(x.load(bind((starts[r] + lefts[s]) * size["c"] + channel), LANES)) - zero
                            acc = acc + pixel * splat(bind(upper[r] * weights[s]), "int32", LANES)
                    acc = T.shift_left(acc, splat(number["pre"], "int32", LANES))
                    acc = isa.rescale(bind(acc), splat(number["multiplier"], "int32", LANES), number["shift"])
                    result = isa.saturate(acc, number["zero_point"], number["qmin"], number["qmax"], out.dtype)
                    _store(y, bind((line * size["ow"] + j) * size["c"] + channel), result, fixed)

                if fixed:
                    vector(T.int32(0))
                else:
                    with vectors(size["c"], LANES) as channel:
                        vector(channel)

    name = "_".join(
        [
            "resize_linear",
            isa.name,
            type_.dtype,
            out.dtype,
            *(["p"] if parallel else []),
            *([str(fixed)] if fixed else []),
        ]
    )
    parameters = [
        *pointers(
            x=type_.dtype, y=out.dtype, rows="int32", row_weights="int32", columns="int32", column_weights="int32"
        ),
        *scalars(*RESIZE, *BOUNDS),
    ]
    constants = [Constant(np.ascontiguousarray(ctx.constants[t]).astype(np.int32)) for t in tables]
    return [
        KernelCall(
            kernel(name, parameters, body),
            (operand(ctx, x), Buffer(ctx.node.name), *constants, n, h, w, c, oh, ow, *(int(a[b]) for b in BOUNDS)),
        )
    ]


LOWERINGS = {"max_pool2d": lower_max_pool2d, "sum_pool2d": lower_sum_pool2d, "resize_linear": lower_resize_linear}
