"""What a kernel asks of an instruction set, with meanings that hold on all of them.

Values are vectors of any number of lanes (a multiple of `lanes` for int32): an instruction set cuts them into its
registers. Everything here is exact; each override returns the same bits by another road.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    cast,
    dtype_of,
    intrinsic,
    lanes_of,
    reinterpret,
    shuffle,
    splat,
)
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.isa.taps import TapDot
from tvm.tirx import IntImm


@dataclass(frozen=True)
class WordScale:
    """How 16-bit words become codes: shift (an int32 scalar, or a vector like the sums), fraction, limits, dtype."""

    shift: Expr
    fraction: Expr
    zero_point: Expr
    qmin: Expr
    qmax: Expr
    dtype: str


class Isa:
    """The portable meaning of each vector operation, and the dot products that it offers.

    arch, features: of the targets that have it, features as LLVM calls them. dots: best first, exact for constant
    weights of which no two that share 16 bits are -128 (`Dot.pair`); activation_dots: exact whatever both operands
    hold; digit_dots: for weights that are signed digits of 4 bits. taps: of depthwise filters, exact for those with one
    weight of -128; exact_taps: for any.

    lanes: int32 lanes of a register; registers: how many; width: channels that an epilogue handles at a time.
    """

    name = "generic"
    arch = ""
    features: frozenset[str] = frozenset()
    dots: tuple[Dot, ...] = ()
    activation_dots: tuple[Dot, ...] = ()
    digit_dots: tuple[Dot, ...] = ()
    taps: TapDot
    exact_taps: TapDot
    lanes = 4
    registers = 16
    width = 16
    immediate_bounds = False  # `saturate` gains by knowing bounds that clamp nothing
    immediate_words = False  # `requantize_word` gains by knowing its shifts
    immediate_products = 0  # sums of up to so many products get epilogues whose shifts are part of the code
    joins_pixels = False  # an epilogue handles two pixels at a time where each has at most half of `width` channels
    selects = True  # scalars by comparisons; else by products, where LLVM makes branches of many selections
    loops_over_rows = False  # an epilogue goes through memory and a loop over pixels: a fifth of the code
    table_width = 1  # bytes that one table lookup of `lookup` serves; 1: byte by byte

    def __repr__(self) -> str:
        return self.name

    def weight_dots(self, weights: np.ndarray) -> tuple[Dot, ...]:
        """The dot products that are exact for weights int8 [..., run], whatever they multiply."""
        lowest = weights == -128
        pairs = {dot.pair for dot in self.dots} - {0}
        if any((lowest[..., :-pair] & lowest[..., pair:]).any() for pair in pairs):
            return self.activation_dots
        return self.dots

    def tap_dot(self, weights: np.ndarray) -> TapDot:
        """The instructions that are exact for weights int8 [C, ...] of one filter a channel."""
        lowest = (weights == -128).reshape(len(weights), -1).sum(1)
        return self.exact_taps if self.taps.shares_words and lowest.max(initial=0) > 1 else self.taps

    def mulhi(self, x: Expr, m: Expr) -> Expr:
        """floor(x * m / 2^32) of int32 vectors."""
        product = cast(x, "int64") * cast(m, "int64")
        return cast(T.shift_right(product, splat(32, "int64", lanes_of(x))), "int32")

    def round_shift(self, x: Expr, shift: Expr) -> Expr:
        """floor((x + 2^(shift-1)) / 2^shift) of int32 vectors; shift an int32 scalar in [1, 31]; the sum must fit."""
        rounding = T.shift_left(T.int32(1), shift - 1)
        n = lanes_of(x)
        return T.shift_right(x + splat(rounding, "int32", n), splat(shift, "int32", n))

    def rescale(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        """round_shift(mulhi(x, m), shift), shift in [1, 15]."""
        return self.round_shift(self.mulhi(x, m), shift)

    def requantize(
        self,
        x: Expr,
        pre: Expr,
        m: Expr,
        shift: Expr,
        zero_point: Expr,
        qmin: Expr,
        qmax: Expr,
        dtype: str,
    ) -> Expr:
        """saturate(rescale(x << pre, m, shift), zero_point, qmin, qmax); pre > 0 only where shift is 1."""
        return self.saturate(self.rescale(self.shift_left(x, pre), m, shift), zero_point, qmin, qmax, dtype)

    def requantize_word(self, x: Expr, m: Expr, to: WordScale) -> Expr:
        """saturate(round(word * m / 2^15) >> fraction, zero_point, qmin, qmax), word = x >> shift in 16 bits."""
        return self._saturate_word(self._fifteenth(self._word(self.shift_right(x, to.shift)), m), to)

    def add_residual_word(self, x: Expr, m: Expr, r: Expr, factor: Expr, to: WordScale) -> Expr:
        """The same with round(r word * factor / 2^15) added to the product, the sum in 16 bits; see residual_word."""
        word = self._word(self.shift_right(x, to.shift))
        residual = self._fifteenth(cast(residual_word(r), "int32"), splat(factor, "int32", lanes_of(x)))
        return self._saturate_word(self._word(self._fifteenth(word, m) + residual), to)

    def scaled_words(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        """round(word * m / 2^15) as int16, word = x >> shift saturated to 16 bits; m int32 lanes of 16 bits."""
        words = cast(self._word(self.shift_right(x, shift)), "int16")
        return self.mul_round(bind(words), bind(cast(m, "int16")))

    def requantize_to_word(self, x: Expr, m: Expr, to: WordScale) -> Expr:
        """requantize_word where the result has 16 bits."""
        return self._limited_word(self.scaled_words(x, m, to.shift), to)

    @staticmethod
    def _limited_word(words: Expr, to: WordScale) -> Expr:
        n = lanes_of(words)
        words = T.shift_right(words, splat(to.fraction, "int16", n))
        return T.max(T.min(words, splat(to.qmax, "int16", n)), splat(to.qmin, "int16", n))

    def narrow_word(self, x: Expr, m: Expr, offset: Expr, fraction: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """clamp((round(x * m / 2^15) + offset) >> fraction, qmin, qmax) of int16 lanes; the sum is saturated."""
        n = lanes_of(x)
        words = bind(self.mul_round(x, bind(cast(m, "int16"))))
        words = T.shift_right(bind(self.add_words(words, splat(offset, "int16", n))), splat(fraction, "int16", n))
        return cast(T.max(T.min(words, splat(qmax, "int16", n)), splat(qmin, "int16", n)), dtype)

    def _saturate_word(self, x: Expr, to: WordScale) -> Expr:
        return Isa.saturate_shifted(self, x, to.fraction, to.zero_point, to.qmin, to.qmax, to.dtype)

    @staticmethod
    def _word(x: Expr) -> Expr:
        """int32 lanes saturated to 16 bits."""
        low, high = (splat(T.int32(end), "int32", lanes_of(x)) for end in RANGES["int16"])
        return T.max(T.min(x, high), low)

    @staticmethod
    def _fifteenth(word: Expr, m: Expr) -> Expr:
        """round(word * m / 2^15) of int32 lanes that hold 16 bits."""
        n = lanes_of(word)
        return T.shift_right(word * m + splat(T.int32(1 << 14), "int32", n), splat(T.int32(15), "int32", n))

    @staticmethod
    def shift_right(x: Expr, distance: Expr) -> Expr:
        """x >> distance, an int32 scalar or a vector like x."""
        n = lanes_of(x)
        return T.shift_right(x, splat(distance, "int32", n) if lanes_of(distance) != n else distance)

    @staticmethod
    def shift_left(x: Expr, distance: Expr) -> Expr:
        """x << distance, an int32 scalar; no code where it is known to be 0."""
        if isinstance(distance, IntImm) and distance.value == 0:
            return x
        return T.shift_left(x, splat(distance, "int32", lanes_of(x)))

    def add_scaled(self, x: Expr, pre: Expr, m: Expr, r: Expr, factor: Expr, constant: Expr, narrow: bool) -> Expr:
        """mulhi(x << pre, m) + r * factor + constant as int32, r 8 or 16 bits; narrow: the factor fits int16."""
        n = lanes_of(x)
        scaled = cast(r, "int32") * splat(factor, "int32", n)
        return self.mulhi(self.shift_left(x, pre), m) + scaled + splat(constant, "int32", n)

    def saturate_shifted(self, x: Expr, shift: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """saturate(x >> shift, zero_point, qmin, qmax)."""
        shifted = T.shift_right(x, splat(shift, "int32", lanes_of(x)))
        return self.saturate(shifted, zero_point, qmin, qmax, dtype)

    def saturate(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """clamp(x + zero_point, qmin, qmax) in `dtype`; x int32 vector, the others int32 scalars, sum fits int32."""
        n = lanes_of(x)
        y = x + splat(zero_point, "int32", n)
        y = T.max(T.min(y, splat(qmax, "int32", n)), splat(qmin, "int32", n))
        return y if dtype == "int32" else cast(y, dtype)

    def lookup(self, table: Pointer, x: Expr) -> Expr:
        """table[x] for uint8 x and a table of 256 elements of any dtype."""
        return table.gather(cast(x, "int32"))

    def byte_sum_lanes(self, width: int) -> int:
        """Lanes of the int32 sums that add_bytes adds `width` bytes to."""
        return width

    def add_bytes(self, total: Expr, x: Expr) -> Expr:
        """The uint8 lanes added to int32 sums; which to which does not matter, since all are added up in the end."""
        return total + cast(x, "int32")

    def add_groups(self, total: Expr, x: Expr) -> Expr:
        """total[i] + x[4i] + x[4i+1] + x[4i+2] + x[4i+3] of int32 lanes and four times as many of 8 bits."""
        n = lanes_of(total)
        x = bind(x)
        parts = [cast(shuffle([x], range(e, 4 * n, 4)), "int32") for e in range(4)]
        return total + ((parts[0] + parts[1]) + (parts[2] + parts[3]))

    def scaled_groups(self, values: Sequence[Expr], m: Expr) -> Expr:
        """min(255, round(min(v, 32767) * m / 2^15)) of four int32 vectors as uint8, the four of a lane side by side;
        anything for v < 0, m an int32 scalar in [0, 32767]."""
        n = lanes_of(values[0])
        limit, multiplier = splat(RANGES["int16"][1], "int32", n), bind(splat(m, "int16", n))
        words = [bind(self.mul_round(bind(cast(T.min(v, limit), "int16")), multiplier)) for v in values]
        return interleave([bind(cast(T.min(w, splat(255, "int16", n)), "uint8")) for w in words])

    multiplies_pairs = False

    def pair_products(self, a: Expr, b: Expr) -> Expr:
        """a[2i] * b[2i] + a[2i+1] * b[2i+1] modulo 2^32, one register of int16; only where multiplies_pairs."""
        raise NotImplementedError

    def pieces(self, table: np.ndarray) -> np.ndarray:
        """The constant that look_up_piece reads, from an interpolated function's int16 [2, pieces]."""
        return table

    def look_up_piece(self, table: Pointer, piece: Expr, pieces: int) -> tuple[Expr, Expr]:
        """(base, slope) of each lane's piece; int16 vectors for a uint16 vector below `pieces`, 64 or 128."""
        index = bind(cast(piece, "int32"))
        return table.gather(index), table.gather(index + splat(pieces, "int32", lanes_of(piece)))

    def add_words(self, a: Expr, b: Expr) -> Expr:
        """The sum of int16 vectors, saturated to int16."""
        n = lanes_of(a)
        return intrinsic(f"int16x{n}", f"llvm.sadd.sat.v{n}i16", a, b)

    def mul_round(self, a: Expr, b: Expr) -> Expr:
        """floor((a * b + 2^14) / 2^15) of int16 vectors; b >= 0."""
        return cast(self._fifteenth(cast(a, "int32"), cast(b, "int32")), "int16")


class BytePieces(Isa):
    """Pieces as four tables of bytes (base low and high, slope low and high), for sets that permute bytes."""

    def pieces(self, table: np.ndarray) -> np.ndarray:
        planes = table.astype("<i2")[:, :, None].view(np.uint8).transpose(0, 2, 1)
        return np.ascontiguousarray(planes).reshape(-1)

    def look_up_piece(self, table: Pointer, piece: Expr, pieces: int) -> tuple[Expr, Expr]:
        index = bind(cast(piece, "uint8"))
        planes = [bind(self.look_up_byte(table, pieces * t, index, pieces)) for t in range(4)]
        return self._words(*planes[:2]), self._words(*planes[2:])

    def look_up_byte(self, table: Pointer, at: int, index: Expr, size: int) -> Expr:
        """table[at + index] for uint8 lanes below `size`, 64 or 128."""
        return table.gather(cast(index, "int32") + splat(at, "int32", lanes_of(index)))

    @staticmethod
    def _words(low: Expr, high: Expr) -> Expr:
        n = lanes_of(low)
        if n == 1:
            return cast(low, "int16") | T.shift_left(cast(high, "int16"), T.int16(8))
        # bytes side by side, 16 lanes at a time: one instruction (punpck, zip) for each half
        return reinterpret(shuffle([low, high], [i // 2 + n * (i % 2) for i in range(2 * n)]), "int16", n)


def residual_word(r: Expr) -> Expr:
    """int16 lanes of centred 16-bit codes, or of 8-bit codes from their zero point in the upper byte."""
    if dtype_of(r) == "int16":
        return r
    n = lanes_of(r)
    word = T.shift_left(cast(r, "int16"), splat(8, "int16", n))
    return word if dtype_of(r) == "int8" else T.bitwise_xor(word, splat(T.int16(-0x8000), "int16", n))


def code_bytes(x: Expr) -> Expr:
    """8-bit lanes as uint8, bits unchanged."""
    return x if dtype_of(x) == "uint8" else reinterpret(x, "uint8", lanes_of(x))


def interleave(parts: Sequence[Expr]) -> Expr:
    """Lane c of each part next to each other, by pairs: c of parts[0], c of parts[1], ..."""
    parts, size = list(parts), 1
    while len(parts) > 1:
        half = len(parts) // 2
        zipped = []
        for i in range(half):
            n = lanes_of(parts[2 * i])
            zipped.append(
                bind(
                    shuffle(
                        [parts[2 * i], parts[2 * i + 1]],
                        [s * n + u * size + e for u in range(n // size) for s in (0, 1) for e in range(size)],
                    )
                )
            )
        parts, size = zipped, size * 2
    return parts[0]
