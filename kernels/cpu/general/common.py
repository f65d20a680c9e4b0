"""What the families share: loops over vectors, sums across lanes, threads, operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import (
    Expr,
    T,
    bind,
    extract,
    lanes_of,
    pin,
    splat,
)
from qcompile.kernels.lowering import Buffer, Constant, NodeContext, Workspace

PARALLEL_WORK = 1 << 16  # elements from which a loop is worth handing to threads
TASKS = 16  # blocks of rows where each needs its own scratch memory

Source = Buffer | Constant | Workspace


def operand(ctx: NodeContext, name: str) -> Buffer | Constant:
    """A tensor by name: constant data, or a buffer of the program."""
    return Constant(np.ascontiguousarray(ctx.constants[name])) if name in ctx.constants else Buffer(name)


def loop(count: Expr, parallel: bool = False) -> Any:
    return T.parallel(0, count) if parallel else T.serial(0, count)


def ceil_div(a: Expr, b: Expr | int) -> Expr:
    """For a > -b; toward zero below that."""
    return T.truncdiv(a + (b - 1), T.int32(b) if isinstance(b, int) else b)


@contextmanager
def vectors(count: Expr, width: int) -> Iterator[Expr]:
    """A loop over the starts of vectors that cover `count` >= width elements; the last starts early, not short."""
    with T.serial(0, ceil_div(count, width)) as t:
        yield bind(T.min(t * width, count - width))


@contextmanager
def exact_vectors(count: Expr, width: int) -> Iterator[Expr]:
    """A loop over the starts of the whole vectors in `count` elements; what is left over is for `rest`."""
    with T.serial(0, T.truncdiv(count, T.int32(width))) as t:
        yield bind(t * width)


def rest(count: Expr, width: int) -> tuple[Expr, Expr]:
    """(start of the last, partial vector, which lanes of it exist): what exact_vectors leaves over; none may exist."""
    at = bind(T.truncdiv(count, T.int32(width)) * width)
    left = bind(splat(count - at, "int32", width))
    return at, lane_numbers(width) < left


def lane_numbers(width: int) -> Expr:
    return T.ramp(T.int32(0), 1, width)


def static(size: int, width: int) -> int:
    """`size` where a vector of `width` is wider than it, so that the code has to know it, else 0."""
    return size if size < width else 0


def across(value: Expr, operation: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes combined to one scalar, in halves."""
    n = lanes_of(value)
    while n > 1:
        value = pin(value)
        n //= 2
        value = operation(extract(value, 0, n), extract(value, n, n))
    return value


def add(a: Expr, b: Expr) -> Expr:
    return a + b


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    return T.Select(condition, a, b)
