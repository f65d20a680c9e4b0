"""Softmax and log-softmax of rows: maximum, powers of two, sum, and one division (or one logarithm) a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, extract, local, splat, store_lanes
from qcompile.kernels.cpu.chain import widen
from qcompile.kernels.cpu.general.common import (
    PARALLEL_WORK,
    TASKS,
    Source,
    across,
    add,
    ceil_div,
    exact_vectors,
    loop,
    operand,
    pin,
    rest,
    select,
    static,
    vectors,
)
from qcompile.kernels.cpu.general.division import division, quotient
from qcompile.kernels.cpu.general.movement import broadcast_calls, merge, strides
from qcompile.kernels.cpu.general.norm import bit_length
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, KernelCall, NodeContext, Workspace
from qcompile.kernels.ops.softmax import EXP2, LARGEST_EXPONENT, LOG_BITS, OCTAVE_BITS, total_shift

LANES = 16
ROW_LEVELS = 3  # a mask's rows may repeat and advance along this many axes
MASK_NUMBERS = 2 * ROW_LEVELS - 1  # that say where its rows lie


def exp2_negative(t: Expr, lanes: int) -> Expr:
    """2^-(t / 1024) in Q15 for 0 <= t <= LARGEST_EXPONENT, as in the op's definition."""

    def const(v):
        return splat(v, "int32", lanes)

    f = pin(T.bitwise_and(t, const((1 << OCTAVE_BITS) - 1)))
    y = const(EXP2[3])
    for coefficient in EXP2[2::-1]:
        y = const(coefficient) + T.shift_right(y * f, const(OCTAVE_BITS))
    return T.shift_right(y, T.shift_right(t, const(OCTAVE_BITS)))


def mask_rows(shape: tuple[int, ...], mask: tuple[int, ...]) -> list[int] | None:
    """[n1, n2, s0, s1, s2]: the mask of row r of `shape` [..., L] lies at offset

    (r / (n1*n2)) * s0 + (r / n2 % n1) * s1 + (r % n2) * s2; None where it repeats in a more complicated way.
    """
    full = (1,) * (len(shape) - len(mask)) + tuple(mask)
    if full[-1] != shape[-1]:
        return None
    lead = shape[:-1]
    loops = merge([(n, 0 if m == 1 else s, r) for n, m, s, r in zip(lead, full, strides(full), strides(lead))])
    if len(loops) > ROW_LEVELS:
        return None
    loops = [(1, 0, 0)] * (ROW_LEVELS - len(loops)) + loops
    return [loops[1][0], loops[2][0], *(d[1] for d in loops)]


def mask_offset(row: Expr, numbers: Sequence[Expr]) -> Expr:
    n1, n2, s0, s1, s2 = numbers
    outer = bind(T.truncdiv(row, n2))
    return bind(T.truncdiv(outer, n1) * s0 + T.truncmod(outer, n1) * s1 + T.truncmod(row, n2) * s2)


def mask_operand(ctx: NodeContext, name: str, shape: tuple[int, ...]) -> tuple[Source, list[int], list[KernelCall]]:
    """(where the mask lies, its numbers for mask_offset, calls that expand it first where need be)."""
    type_ = ctx.types[name]
    numbers = mask_rows(shape, type_.shape)
    if numbers:
        return operand(ctx, name), numbers, []
    full = Workspace(f"full {name}", Type(shape, type_.dtype).nbytes + 64)
    return (
        full,
        mask_rows(shape, shape) or [],
        broadcast_calls(get_isa(ctx.target), type_, shape, operand(ctx, name), full),
    )


class Rows:
    """The parts of one row that softmax and log-softmax share; `mask(at)`: which lanes count (None: all)."""

    def __init__(
        self,
        isa: Isa,
        x: Pointer,
        start: Expr,
        count: Expr,
        mask: Callable[[Expr], Expr] | None,
        multiplier: Expr,
        shift: Expr,
        pre: Expr,
    ) -> None:
        self.isa, self.x, self.start, self.count, self.mask = isa, x, start, count, mask
        self.multiplier, self.shift, self.pre = (
            bind(splat(multiplier, "int32", LANES)),
            shift,
            bind(splat(pre, "int32", LANES)),
        )
        self.top: Expr = None

    def each(self, visit: Callable[[Expr, Callable[[Expr, int], Expr]], None]) -> None:
        """visit(at, only) for all vectors; only(value, other): `other` in lanes that are masked or past the end."""

        def only(at: Expr, exists: Expr | None) -> Callable[[Expr, int], Expr]:
            def chosen(value: Expr, other: int) -> Expr:
                if exists is not None:
                    value = select(exists, value, splat(other, "int32", LANES))
                return select(self.mask(at), value, splat(other, "int32", LANES)) if self.mask else value

            return chosen

        with exact_vectors(self.count, LANES) as at:
            visit(at, only(at, None))
        at, exists = rest(self.count, LANES)
        with T.If(at < self.count), T.Then():
            visit(at, only(at, exists))

    def find_top(self) -> None:
        lowest = RANGES["int32"][0]
        top = local(LANES, "int32")
        top.store(0, splat(lowest, "int32", LANES))
        self.each(lambda at, only: top.store(0, T.max(top.load(0, LANES), only(self.load(at), lowest))))
        self.top = bind(splat(pin(across(top.load(0, LANES), T.max)), "int32", LANES))

    def load(self, at: Expr) -> Expr:
        return widen(self.x.load(self.start + at, LANES))

    def numerators(self, at: Expr, only: Callable[[Expr, int], Expr]) -> Expr:
        d = T.shift_left(pin(only(self.top - self.load(at), 0)), self.pre)
        t = T.min(self.isa.rescale(pin(d), self.multiplier, self.shift), splat(LARGEST_EXPONENT, "int32", LANES))
        return pin(only(exp2_negative(pin(t), LANES), 0))

    def total(self, keep: Callable[[Expr, Expr], None] | None = None) -> Expr:
        """Sum of the numerators, int64; keep(at, e) sees each vector of them."""
        total = local(LANES, "int32")
        total.store(0, splat(0, "int32", LANES))

        def visit(at: Expr, only: Callable[[Expr, int], Expr]) -> None:
            e = self.numerators(at, only)
            if keep:
                keep(at, e)
            total.store(0, total.load(0, LANES) + e)

        self.each(visit)
        return pin(across(cast(total.load(0, LANES), "int64"), add))


def log2_fixed(value: Expr) -> Expr:
    """log2 of an int64 in [1, 2^31) with 16 fraction bits, bit by bit as in the op's definition; int64."""
    const = T.int64
    log = pin(T.cast(bit_length(T.cast(value, "uint64")) - 1, "int64"))
    mantissa = pin(T.shift_left(value, const(30) - log))
    for _ in range(LOG_BITS):
        square = pin(T.shift_right(mantissa * mantissa, const(30)))
        bit = pin(T.shift_right(square, const(31)))
        mantissa, log = pin(T.shift_right(square, bit)), pin(T.bitwise_or(T.shift_left(log, const(1)), bit))
    return log


def _store(y: Pointer, start: Expr, count: Expr, fixed: int, result: Callable[[Expr], Expr]) -> None:
    if fixed:
        store_lanes(y, start, result(T.int32(0)), fixed)
        return
    with vectors(count, LANES) as at:
        y.store(start + at, result(at))


BOUNDS = ("out_shift", "zero_point", "qmin", "qmax")


def lower_softmax(ctx: NodeContext) -> list[KernelCall]:
    """One kernel; blocks of rows run in parallel, each with memory for the numerators of one row."""
    isa, a, count = get_isa(ctx.target), ctx.node.attrs, ctx.out.shape[-1]
    rows, x_dtype, y_dtype = ctx.out.size // count, ctx.types[ctx.node.inputs[0]].dtype, ctx.out.dtype
    masked, fixed = len(ctx.node.inputs) > 1, static(count, LANES)
    uniform = masked and bool(a.get("uniform", False))
    parallel, cut = rows > 1 and ctx.out.size >= PARALLEL_WORK, total_shift(count)
    tasks = min(TASKS, rows) if parallel else 1
    mask, numbers, calls = mask_operand(ctx, ctx.node.inputs[1], ctx.out.shape) if masked else (None, [], [])
    stride = -(-count // LANES) * LANES

    def body(x: Pointer, y: Pointer, numerator: Pointer, scratch: Pointer, *others: Any) -> None:
        mask: Any = None
        if masked:
            mask, others = others[0], others[1:]
        rows, count, stride, tasks, multiplier, shift, pre, out_shift, zero_point, qmin, qmax, *mask_numbers = others
        block = bind(ceil_div(rows, tasks))
        with loop(tasks, parallel) as task, T.serial(0, T.min(block, rows - task * block)) as r:
            row, keep = bind(task * block + r), bind(task * stride)
            start = bind(row * count)
            at_mask = mask_offset(row, mask_numbers[:MASK_NUMBERS]) if masked else None
            read = (lambda at: mask.load(at_mask + at, LANES) != splat(0, "int8", LANES)) if masked else None
            parts = Rows(isa, x, start, count, read, multiplier, shift, pre)
            parts.find_top()
            total = parts.total(lambda at, e: scratch.store(keep + at, cast(e, "int16")))
            if uniform:
                with T.If(total == T.int64(0)), T.Then():
                    # an operand: of the constant LLVM makes fneg of its complement, where there are floats of 16 bits
                    alike = bind(splat(T.cast(mask_numbers[-1], "int16"), "int16", LANES))
                    parts.each(lambda at, _: scratch.store(keep + at, alike))
                every = T.cast(count, "int64") * T.int64(EXP2[0])
                total = pin(T.Select(total == T.int64(0), every, total))
            ratio = bind(splat(quotient(numerator, T.shift_right(total, T.int64(cut))), "int32", LANES))

            def result(at: Expr) -> Expr:
                e = T.shift_left(widen(scratch.load(keep + at, LANES)), splat(15, "int32", LANES))
                return isa.saturate(isa.rescale(bind(e), ratio, out_shift), zero_point, qmin, qmax, y_dtype)

            _store(y, start, count, fixed, result)

    parameters = [
        *pointers(x=x_dtype, y=y_dtype, numerator="int64", scratch="int16"),
        *(pointers(mask="int8") if masked else []),
        *scalars(
            "rows",
            "count",
            "stride",
            "tasks",
            "multiplier",
            "shift",
            "pre",
            *BOUNDS,
            *(f"m{i}" for i in range(len(numbers))),
            *(["alike"] if uniform else []),
        ),
    ]
    work = kernel("softmax", (isa, masked, uniform, parallel, fixed, cut), parameters, body)
    operands = (
        operand(ctx, ctx.node.inputs[0]),
        Buffer(ctx.node.name),
        division(int(a["numerator"]) >> cut),
        Workspace("numerators", tasks * stride * 2 + 64),
        *([mask] if mask is not None else []),
        rows,
        count,
        stride,
        tasks,
        *(int(a[n]) for n in ("multiplier", "shift", "pre", *BOUNDS)),
        *numbers,
        *([EXP2[0]] if uniform else []),
    )
    return [*calls, KernelCall(work, operands)]


BLOCK = 8  # rows
LOG_NUMBERS = ("multiplier", "shift", "pre", "x_multiplier", "x_pre", "log_multiplier", "log_pre", *BOUNDS)


def lower_log_softmax(ctx: NodeContext) -> list[KernelCall]:
    """One kernel; the differences are computed again for the result rather than kept."""
    isa, a, count = get_isa(ctx.target), ctx.node.attrs, ctx.out.shape[-1]
    rows, fixed = ctx.out.size // count, static(count, LANES)
    x_dtype, y_dtype = ctx.types[ctx.node.inputs[0]].dtype, ctx.out.dtype
    parallel, cut = rows > 1 and ctx.out.size >= PARALLEL_WORK, total_shift(ctx.out.shape[-1])

    def body(x: Pointer, y: Pointer, rows: Expr, count: Expr, *numbers: Expr) -> None:
        v = dict(zip(LOG_NUMBERS, numbers))

        def row_parts(start: Expr) -> Rows:
            return Rows(isa, x, start, count, None, v["multiplier"], v["shift"], v["pre"])

        def row_term(total: Expr) -> Expr:
            log = pin(log2_fixed(T.shift_right(total, T.int64(cut))) + T.int64((cut - 15) << LOG_BITS))
            scaled = T.shift_left(log, T.cast(v["log_pre"], "int64")) * T.cast(v["log_multiplier"], "int64")
            return T.cast(T.shift_right(scaled, T.int64(32)), "int32")

        def write(start: Expr, top: Expr, term: Expr) -> None:
            parts = row_parts(start)
            parts.top, log_term = (bind(splat(number, "int32", LANES)) for number in (top, term))

            def vector(name):
                return bind(splat(v[name], "int32", LANES))

            x_pre, x_multiplier = vector("x_pre"), vector("x_multiplier")

            def result(at: Expr) -> Expr:
                d = bind(T.shift_left(parts.top - parts.load(at), x_pre))
                acc = splat(0, "int32", LANES) - isa.mulhi(d, x_multiplier) - log_term
                return isa.saturate(
                    isa.round_shift(bind(acc), v["out_shift"]), v["zero_point"], v["qmin"], v["qmax"], y_dtype
                )

            _store(y, start, count, fixed, result)

        # a pass over a few rows before the next, so that the logarithms, which are long chains, overlap
        with loop(ceil_div(rows, BLOCK), parallel) as block:
            first = bind(block * BLOCK)
            few = bind(T.min(rows - first, T.int32(BLOCK)))
            tops, terms, totals = local(BLOCK, "int32"), local(BLOCK, "int32"), local(BLOCK, "int64")
            with T.serial(0, few) as i:
                parts = row_parts(bind((first + i) * count))
                parts.find_top()
                tops.store(i, extract(parts.top, 0, 1))
                totals.store(i, parts.total())
            with T.serial(0, few) as i:
                terms.store(i, row_term(bind(totals.load(i))))
            with T.serial(0, few) as i:
                write(bind((first + i) * count), bind(tops.load(i)), bind(terms.load(i)))

    parameters = [*pointers(x=x_dtype, y=y_dtype), *scalars("rows", "count", *LOG_NUMBERS)]
    work = kernel("log_softmax", (isa, parallel, fixed, cut), parameters, body)
    return [
        KernelCall(
            work,
            (operand(ctx, ctx.node.inputs[0]), Buffer(ctx.node.name), rows, count, *(int(a[n]) for n in LOG_NUMBERS)),
        )
    ]


LOWERINGS = {"softmax": lower_softmax, "log_softmax": lower_log_softmax}
