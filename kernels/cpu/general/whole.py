"""Arithmetic on declared integers: vectors in a type that holds them, cut to the result's type."""

from __future__ import annotations

from collections.abc import Callable

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, dtype_of, lanes_of, local, splat, store_lanes
from qcompile.kernels.cpu.general.common import (
    PARALLEL_WORK,
    loop,
    pin,
    select,
    static,
)
from qcompile.kernels.cpu.general.elementwise import BLOCK, whole_or_single
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, KernelCall, NodeContext
from qcompile.kernels.ops.whole import computed_in


def _number(value: int, like: Expr) -> Expr:
    return splat(value, dtype_of(like), lanes_of(like))


def _signed(x: Expr) -> bool:
    return not dtype_of(x).startswith("u")


def _divide(x: Expr, r: Expr) -> Expr:
    """Divisors for which the machine's division traps take another way; pinned, since TIR would see that the quotient
    by them is not chosen, and divide by them."""
    zero, one = _number(0, x), _number(1, x)
    if not _signed(x):
        return select(r == zero, zero, T.truncdiv(x, pin(select(r == zero, one, r))))
    minus = _number(-1, x)
    quotient = bind(T.truncdiv(x, pin(select(r == minus, one, bind(select(r == zero, one, r))))))
    return select(r == zero, zero, select(r == minus, zero - x, quotient))


def _remainder(x: Expr, r: Expr) -> Expr:
    return x - bind(_divide(x, r)) * r


def _modulo(x: Expr, r: Expr) -> Expr:
    rest, zero = bind(_remainder(x, r)), _number(0, x)
    if not _signed(x):
        return rest
    differ = bind(T.bitwise_xor(rest, r)) < zero
    return rest + select(rest == zero, zero, select(differ, r, zero))


def _power(x: Expr, r: Expr) -> Expr:
    """Squares and products, bit by bit of the exponent."""
    lanes, dtype = lanes_of(x), dtype_of(x)
    zero, one = _number(0, x), _number(1, x)
    result, base, left = (local(lanes, dtype) for _ in range(3))
    result.store(0, one)
    base.store(0, x)
    left.store(0, select(r < zero, zero, r) if _signed(x) else r)
    with T.serial(0, 64 if "64" in dtype else 32):
        factor, bits = bind(base.load(0, lanes)), bind(left.load(0, lanes))
        odd = bind(T.bitwise_and(bits, one)) == one
        result.store(0, result.load(0, lanes) * bind(select(odd, factor, one)))
        base.store(0, factor * factor)
        left.store(0, T.shift_right(bits, one))
    found = bind(result.load(0, lanes))
    if not _signed(x):
        return found
    minus = bind(select(bind(T.bitwise_and(r, one)) == one, _number(-1, x), one))
    reciprocal = bind(select(x == one, one, select(x == _number(-1, x), minus, zero)))
    return select(r < zero, reciprocal, found)


def _shift(left: bool) -> Callable[[Expr, Expr], Expr]:
    def shifted(x: Expr, r: Expr) -> Expr:
        zero, most = _number(0, x), _number((64 if "64" in dtype_of(x) else 32) - 1, x)
        if left:
            count = bind(T.max(T.min(r, most), zero)) if _signed(x) else bind(T.min(r, most))
            inside = select(r > most, zero, bind(T.shift_left(x, count)))
            return select(r < zero, zero, bind(inside)) if _signed(x) else inside
        if not _signed(x):
            return select(r > most, zero, bind(T.shift_right(x, bind(T.min(r, most)))))
        count = bind(select(r < zero, most, bind(T.min(r, most))))  # all bits: the sign is left
        return T.shift_right(x, count)

    return shifted


def _compared(test: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    return lambda x, r: select(test(x, r), _number(1, x), _number(0, x))


FUNCTIONS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda x, r: x + r,
    "subtract": lambda x, r: x - r,
    "multiply": lambda x, r: x * r,
    "divide": _divide,
    "mod": _remainder,
    "floor_mod": _modulo,
    "power": _power,
    "minimum": T.min,
    "maximum": T.max,
    "bitwise_and": T.bitwise_and,
    "bitwise_or": T.bitwise_or,
    "bitwise_xor": T.bitwise_xor,
    "left_shift": _shift(True),
    "right_shift": _shift(False),
    "equal": _compared(lambda x, r: x == r),
    "less": _compared(lambda x, r: x < r),
    "less_equal": _compared(lambda x, r: x <= r),
    "greater": _compared(lambda x, r: x > r),
    "greater_equal": _compared(lambda x, r: x >= r),
}


MAY_WRAP = ("add", "subtract", "multiply", "divide", "mod", "floor_mod", "power")


def _width_of(function: str, dtypes: list[str]) -> str:
    """The type that the code computes in: 64 bits for arithmetic whose results may leave 32, since TIR and LLVM take
    signed numbers for such that never wrap, and cutting off the upper half is the same."""
    inside = computed_in(*dtypes)
    narrow = all(d in ("int8", "uint8", "int16") for d in dtypes) and function != "power"
    return "int64" if inside == "int32" and function in MAY_WRAP and not narrow else inside


def lower_whole(ctx: NodeContext) -> list[KernelCall]:
    """Operands are whole tensors or single elements; others are broadcast to memory first."""
    isa, out = get_isa(ctx.target), ctx.out
    operands, kinds, calls = whole_or_single(ctx, isa)
    dtypes, function = [ctx.types[n].dtype for n in ctx.node.inputs], ctx.node.attrs["function"]
    inside = _width_of(function, [*dtypes, out.dtype])
    width, parallel = 16 if inside == "int32" else 8, out.size >= PARALLEL_WORK
    fixed = static(out.size, width)

    def body(x: Pointer, r: Pointer, y: Pointer, count: Expr) -> None:
        def vector(pointer: Pointer, kind: str, at: Expr) -> Expr:
            loaded = pointer.load(at, width) if kind == "v" else splat(pointer.load(0), pointer.dtype, width)
            return bind(loaded if pointer.dtype == inside else cast(loaded, inside))

        def result(at: Expr) -> Expr:
            value = FUNCTIONS[function](*(vector(p, k, at) for p, k in zip((x, r), kinds)))
            return value if out.dtype == inside else cast(bind(value), out.dtype)

        if fixed:
            store_lanes(y, T.int32(0), result(T.int32(0)), fixed)
            return
        block = BLOCK if parallel else width
        with loop(T.truncdiv(count + (block - 1), T.int32(block)), parallel) as b, T.serial(0, block // width) as t:
            at = bind(T.min(b * block + t * width, count - width))
            y.store(at, result(at))

    parameters = [*pointers(x=dtypes[0], r=dtypes[1], y=out.dtype), *scalars("count")]
    work = kernel("whole", (isa, function, tuple(kinds), inside, width, parallel, fixed), parameters, body)
    return [*calls, KernelCall(work, (*operands, Buffer(ctx.node.name), out.size))]


LOWERINGS = {"whole": lower_whole}
