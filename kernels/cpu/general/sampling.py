"""Sampling of images at computed positions: taps and weights of a point once, then vectors of channels."""

from __future__ import annotations

import itertools

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, splat, store_lanes
from qcompile.kernels.cpu.general.common import PARALLEL_WORK, loop, operand, select, static, vectors
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext

LANES = 16  # channels of a vector of int32 sums


def reflect(at: Expr, low: Expr, high: Expr) -> Expr:
    """See kernels.ops.sampling.reflect."""
    size = bind(high - low)
    beyond = bind(T.max(T.max(low - at, at - high), T.int32(0)))
    turns = bind(T.truncdiv(beyond, T.max(size, T.int32(1))))
    left = bind(beyond - turns * size)
    even = T.bitwise_and(turns, T.int32(1)) == 0
    from_low = select(at < low, even, T.Not(even))
    inside = select(from_low, low + left, high - left)
    return bind(select(size == 0, low, select(beyond == 0, at, inside)))


def taps_along(
    at: Expr, size: Expr, table: Pointer, taps: int, fraction: int, padding: str, corners: bool
) -> list[tuple[Expr, Expr]]:
    """(pixel, weight) of each tap along one axis; see kernels.ops.sampling.taps_along."""
    one = 1 << fraction
    low = T.int32(0 if corners else -one // 2)
    high = bind((size - 1) * one - low)
    if taps == 1:
        at = bind(T.shift_right(at + one // 2, T.int32(fraction)) * one)
    first = bind(T.shift_right(at, T.int32(fraction)) - max(taps // 2 - 1, 0))
    row = bind(T.bitwise_and(at, T.int32(one - 1)) * taps)
    found = []
    for t in range(taps):
        pixel, weight = first + t, cast(table.load(row + t), "int32")
        if padding == "zeros":
            weight = select(T.And(pixel >= 0, pixel < size), weight, T.int32(0))
        elif padding == "reflection":
            pixel = T.shift_right(reflect(bind(pixel * one), low, high), T.int32(fraction))
        found.append((bind(T.max(T.min(pixel, size - 1), T.int32(0))), bind(weight)))
    return found


def lower_grid_sample(ctx: NodeContext) -> list[KernelCall]:
    x_name, grid_name, table_name = ctx.node.inputs
    a, isa = ctx.node.attrs, get_isa(ctx.target)
    x_type, grid_type = ctx.types[x_name], ctx.types[grid_name]
    table = ctx.constants[table_name]
    taps, axes = table.shape[1], grid_type.shape[-1]
    images, channels = x_type.shape[0], x_type.shape[-1]
    points = int(np.prod(grid_type.shape[1:-1], dtype=np.int64))
    fraction, padding, corners, shift = a["fraction"], a["padding"], bool(a["corners"]), a["shift"]
    fixed = static(channels, LANES)
    parallel = images * points * channels * taps**axes >= PARALLEL_WORK

    def body(x: Pointer, grid: Pointer, table: Pointer, y: Pointer, *numbers: Expr) -> None:
        images, points, c, zero_point, *rest = numbers
        sizes, multipliers, offsets = rest[:axes], rest[axes : 2 * axes], rest[2 * axes :]
        with loop(bind(images * points), parallel) as point:
            found = []
            for k in range(axes):
                code = cast(grid.load(point * axes + (axes - 1 - k)), "int64")
                half, by = T.IntImm("int64", 1 << (shift - 1)), T.IntImm("int64", shift)
                at = T.shift_right(code * cast(multipliers[k], "int64") + half, by)
                at = bind(cast(at, "int32") + offsets[k])
                found.append(taps_along(at, sizes[k], table, taps, fraction, padding, corners))
            image = bind(T.truncdiv(point, points))
            terms, total = [], T.int32(0)
            for chosen in itertools.product(*found):
                place, weight = image, T.int32(1)
                for size, (pixel, share) in zip(sizes, chosen):
                    place, weight = place * size + pixel, weight * share
                terms.append((bind(place * c), bind(weight)))
                total = bind(total + terms[-1][1])
            less = bind(total * zero_point)

            def vector(channel: Expr) -> None:
                acc = splat(0 - less, "int32", LANES)
                for place, weight in terms:
                    acc = bind(acc + cast(x.load(place + channel, LANES), "int32") * splat(weight, "int32", LANES))
                at = bind(point * c + channel)
                if fixed:
                    store_lanes(y, at, acc, fixed)
                else:
                    y.store(at, acc)

            if fixed:
                vector(T.int32(0))
            else:
                with vectors(c, LANES) as channel:
                    vector(channel)

    names = [f"{n}{k}" for n in ("size", "multiplier", "offset") for k in range(axes)]
    parameters = [
        *pointers(x=x_type.dtype, grid=grid_type.dtype, table="int16", y="int32"),
        *scalars("images", "points", "c", "zero_point", *names),
    ]
    spec = (isa, taps, axes, fraction, padding, corners, shift, fixed, parallel)
    work = kernel("grid_sample", spec, parameters, body)
    numbers = (images, points, channels, a["x_zero_point"], *x_type.shape[1:-1], *a["multipliers"], *a["offsets"])
    operands = (operand(ctx, x_name), operand(ctx, grid_name), Constant(np.ascontiguousarray(table)))
    return [KernelCall(work, (*operands, Buffer(ctx.node.name), *numbers))]


LOWERINGS = {"grid_sample": lower_grid_sample}
