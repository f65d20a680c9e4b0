"""What each elementwise op of the integer dialect becomes, on vectors: its numbers, and its code.

Sums that fit int32 in the end may wrap on their way, so constants are folded modulo 2^32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompile.kernels.arithmetic import INT32_MAX, RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, dtype_of, flip, splat
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.isa.base import WordScale, code_bytes
from qcompile.kernels.dialect import Type
from qcompile.kernels.ops.elementwise import FRACTION, PIECES
from qcompile.kernels.program import Node
from qcompile.targets.errors import CompileError


@dataclass
class Environment:
    """What a step's code may ask for."""

    isa: Isa
    lanes: int
    dtype: str  # of the result
    flags: tuple[str, ...]
    scalars: dict[str, Expr]

    def scalar(self, name: str) -> Expr:
        return self.scalars[name]

    def vector(self, name: str) -> Expr:
        return splat(self.scalar(name), "int32", self.lanes)

    def has(self, flag: str) -> bool:
        return flag in self.flags

    def saturate(self, x: Expr) -> Expr:
        return self.isa.saturate(x, self.scalar("zero_point"), self.scalar("qmin"), self.scalar("qmax"), self.dtype)

    def words(self, shift: Expr) -> WordScale:
        fraction, zero_point, qmin, qmax = (self.scalar(n) for n in ("fraction", *BOUNDS))
        return WordScale(shift, fraction, zero_point, qmin, qmax, self.dtype)

    def requantize(self, x: Expr, multiplier: Expr) -> Expr:
        pre = self.scalar("pre") if self.has("pre") else T.int32(0)
        shift, zero_point, qmin, qmax = (self.scalar(n) for n in ("shift", *BOUNDS))
        return self.isa.requantize(x, pre, multiplier, shift, zero_point, qmin, qmax, self.dtype)


@dataclass(frozen=True)
class Rule:
    """scalars(node, types) -> (numbers for the table, flags that change the code).

    emit(environment, *inputs) -> result. words: through 16 bits, from centred codes to centred codes.
    """

    scalars: Callable[[Node, list[Type]], tuple[dict[str, int], tuple[str, ...]]]
    emit: Callable[..., Expr]
    words: bool = False


def _wrap(value: int) -> int:
    """The int32 with the same low 32 bits: sums that fit int32 in the end may wrap on their way."""
    return (int(value) + 2**31) % 2**32 - 2**31


def _numbers(
    *names: str, optional: Sequence[str] = ()
) -> Callable[[Node, list[Type]], tuple[dict[str, int], tuple[str, ...]]]:
    """The attributes of these names; `optional` ones make no code where they are zero."""

    def scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
        used = [n for n in optional if node.attrs[n]]
        return {n: node.attrs[n] for n in (*names, *used)}, tuple(used)

    return scalars


BOUNDS = ("zero_point", "qmin", "qmax")


def _centred(e: Environment, x: Expr, zero_point: str) -> Expr:
    x = widen(x)
    return x - e.vector(zero_point) if e.has(zero_point) else x


def widen(x: Expr) -> Expr:
    """The lanes as int32."""
    return x if dtype_of(x) == "int32" else cast(x, "int32")


def _requantize(e: Environment, x: Expr, multiplier: Expr) -> Expr:
    return e.requantize(_centred(e, x, "x_zero_point"), multiplier)


def _requantize_word(e: Environment, x: Expr, multiplier: Expr) -> Expr:
    return _requantize_words(e, x, multiplier, e.scalar("shift"))


def _requantize_words(e: Environment, x: Expr, multiplier: Expr, shift: Expr) -> Expr:
    requantize = e.isa.requantize_to_word if e.dtype == "int16" else e.isa.requantize_word
    return requantize(x, multiplier, e.words(shift))


def _prelu(e: Environment, x: Expr, positive: Expr, negative: Expr) -> Expr:
    d = bind(_centred(e, x, "x_zero_point"))
    m = T.Select(d < splat(0, "int32", e.lanes), negative, positive)
    return e.requantize(d, m)


def _mul(e: Environment, x: Expr, r: Expr, multiplier: Expr) -> Expr:
    product = _centred(e, x, "x_zero_point") * _centred(e, r, "r_zero_point")
    return e.requantize(product, multiplier)


def _add_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    a = node.attrs
    constant = (1 << a["shift"] >> 1) - a["x_zero_point"] * a["x_multiplier"] - a["r_zero_point"] * a["r_multiplier"]
    return {
        "x_multiplier": a["x_multiplier"],
        "r_multiplier": a["r_multiplier"],
        "constant": _wrap(constant),
        "shift": a["shift"],
        **{n: a[n] for n in BOUNDS},
    }, ()


def _add(e: Environment, x: Expr, r: Expr) -> Expr:
    acc = widen(x) * e.vector("x_multiplier") + widen(r) * e.vector("r_multiplier") + e.vector("constant")
    return e.saturate(T.shift_right(acc, e.vector("shift")))


def _residual_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    a = node.attrs
    constant = (1 << (a["shift"] - 1)) - a["r_zero_point"] * a["r_multiplier"]
    pre = {"pre": a["pre"]} if a["pre"] else {}
    narrow = ("narrow",) if abs(a["r_multiplier"]) < 1 << 15 else ()
    return {
        "r_multiplier": a["r_multiplier"],
        "constant": _wrap(constant),
        "shift": a["shift"],
        **pre,
        **{n: a[n] for n in BOUNDS},
    }, (*pre, *narrow)


def _add_residual(e: Environment, x: Expr, r: Expr, multiplier: Expr) -> Expr:
    pre = e.scalar("pre") if e.has("pre") else T.int32(0)
    factor, constant = e.scalar("r_multiplier"), e.scalar("constant")
    acc = e.isa.add_scaled(widen(x), pre, multiplier, r, factor, constant, e.has("narrow"))
    shift, zero_point, qmin, qmax = (e.scalar(n) for n in ("shift", *BOUNDS))
    return e.isa.saturate_shifted(acc, shift, zero_point, qmin, qmax, e.dtype)


def _add_residual_word(e: Environment, x: Expr, r: Expr, multiplier: Expr) -> Expr:
    return e.isa.add_residual_word(x, multiplier, r, e.scalar("r_multiplier"), e.words(e.scalar("shift")))


def _add_residual_low(e: Environment, x: Expr, r: Expr, multiplier: Expr) -> Expr:
    # a factor of 16 bits: pmaddwd, smlal
    factor = bind(cast(splat(e.scalar("r_multiplier"), "int16", e.lanes), "int32"))
    product = bind(e.isa.shift_right(widen(x), e.scalar("x_shift"))) * multiplier
    acc = bind(product + bind(_centred(e, r, "r_zero_point")) * factor)
    zero_point = e.scalar("zero_point") if e.has("zero_point") else T.int32(0)
    return e.isa.saturate_shifted(acc, e.scalar("shift"), zero_point, e.scalar("qmin"), e.scalar("qmax"), e.dtype)


def _narrow_word_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    a = node.attrs
    offset = (a["zero_point"] << a["fraction"]) + (1 << a["fraction"] >> 1)
    return {"offset": offset, **{n: a[n] for n in ("fraction", "qmin", "qmax")}}, ()


def _narrow_word(e: Environment, x: Expr, multiplier: Expr) -> Expr:
    offset, fraction, qmin, qmax = (e.scalar(n) for n in ("offset", "fraction", "qmin", "qmax"))
    return e.isa.narrow_word(x, multiplier, offset, fraction, qmin, qmax, e.dtype)


def _lut_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    x, table = types
    if x.dtype in ("int8", "uint8"):
        if table.size != 256 or node.attrs["first"] != RANGES[x.dtype][0]:
            raise CompileError(f"{node.name}: a table for {x.dtype} has 256 elements from {RANGES[x.dtype][0]} on")
        return {}, ("bytes",)
    return {"first": node.attrs["first"], "last": table.size - 1}, ()


def _lut(e: Environment, x: Expr, table: Pointer) -> Expr:
    if e.has("bytes"):
        return e.isa.lookup(table, code_bytes(x))
    index = bind(T.max(T.min(widen(x) - e.vector("first"), e.vector("last")), splat(0, "int32", e.lanes)))
    return table.gather(index)


def _interpolate_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    return {n: node.attrs[n] for n in ("first", "bits", *BOUNDS)}, (
        f"fraction{FRACTION[node.attrs['dtype']]}",
        f"pieces{types[1].shape[1]}",
    )


def _interpolate(e: Environment, x: Expr, table: Pointer) -> Expr:
    def word(name: str) -> Expr:
        return splat(e.scalar(name), "int16", e.lanes)

    c = bind(cast(x - word("first"), "uint16"))
    piece = bind(T.shift_right(c, splat(e.scalar("bits"), "uint16", e.lanes)))
    # the bits below, at the top of 15
    offset = T.shift_left(c, splat(16 - e.scalar("bits"), "uint16", e.lanes))
    offset = cast(T.shift_right(offset, splat(1, "uint16", e.lanes)), "int16")
    base, slope = e.isa.look_up_piece(table, piece, next(n for n in PIECES if e.has(f"pieces{n}")))
    y = base + e.isa.mul_round(slope, bind(offset))
    fraction = FRACTION[e.dtype]
    y = T.shift_right(y, splat(fraction, "int16", e.lanes)) if fraction else y
    y = T.max(T.min(y + word("zero_point"), word("qmax")), word("qmin"))
    return y if e.dtype == "int16" else cast(y, e.dtype)


def _cast_scalars(node: Node, types: list[Type]) -> tuple[dict[str, int], tuple[str, ...]]:
    low, high = RANGES[node.attrs["dtype"]]
    offset = node.attrs["offset"]
    if (types[0].dtype, offset, node.attrs["dtype"]) in (("int8", 128, "uint8"), ("uint8", -128, "int8")):
        return {}, ("sign",)
    low, high = (min(max(v - offset, -INT32_MAX - 1), INT32_MAX) for v in (low, high))
    return {"low": low, "high": high, "offset": offset}, ()


def _cast(e: Environment, x: Expr) -> Expr:
    if e.has("sign"):  # the codes differ by their upper bit
        return flip(x, e.dtype)
    y = T.max(T.min(widen(x), e.vector("high")), e.vector("low")) + e.vector("offset")
    return y if e.dtype == "int32" else cast(y, e.dtype)


STEPS: dict[str, Rule] = {
    "requantize": Rule(_numbers("shift", *BOUNDS, optional=("x_zero_point", "pre")), _requantize),
    "requantize_word": Rule(_numbers("shift", "fraction", *BOUNDS), _requantize_word, words=True),
    "requantize_words": Rule(_numbers("fraction", *BOUNDS), _requantize_words, words=True),
    "prelu": Rule(_numbers("shift", *BOUNDS, optional=("x_zero_point", "pre")), _prelu),
    "mul": Rule(_numbers("shift", *BOUNDS, optional=("x_zero_point", "r_zero_point", "pre")), _mul),
    "add": Rule(_add_scalars, _add),
    "add_residual": Rule(_residual_scalars, _add_residual),
    "add_residual_word": Rule(_numbers("r_multiplier", "shift", "fraction", *BOUNDS), _add_residual_word, words=True),
    "add_residual_low": Rule(
        _numbers("x_shift", "r_multiplier", "shift", "qmin", "qmax", optional=("r_zero_point", "zero_point")),
        _add_residual_low,
    ),
    "narrow_word": Rule(_narrow_word_scalars, _narrow_word),
    "lut": Rule(_lut_scalars, _lut),
    "interpolate": Rule(_interpolate_scalars, _interpolate),
    "cast": Rule(_cast_scalars, _cast),
    "bias_add": Rule(_numbers(), lambda e, x, bias: widen(x) + widen(bias)),
    "add_sums": Rule(_numbers(), lambda e, x, sums, factor: widen(x) + widen(sums) * factor),
}
