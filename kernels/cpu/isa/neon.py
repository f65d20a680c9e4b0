"""64-bit ARM: NEON, with dot products (ARMv8.2) and matrix products (i8mm)."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    by_parts,
    cast,
    concat,
    dtype_of,
    extract,
    intrinsic,
    lanes_of,
    reinterpret,
    shuffle,
    splat,
)
from qcompile.kernels.cpu.isa.base import BytePieces, WordScale, residual_word
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.isa.dot_neon import PREFIX, Sdot, SdotDigits, Smmla, SmmlaDigits, Smull, SmullAny
from qcompile.kernels.cpu.isa.taps import TapDot
from qcompile.kernels.cpu.isa.taps_neon import SdotTaps, SmullTaps, SmullTapsAny
from tvm.tirx import IntImm


def _narrows(x: Expr) -> bool:
    """Whole registers, or half of one once narrowed."""
    return lanes_of(x) % 8 == 0 or lanes_of(x) == 4


class Neon(BytePieces):
    name = "neon"
    arch = "aarch64"
    features = frozenset({"neon"})
    dots: tuple[Dot, ...] = (Smull(),)
    activation_dots: tuple[Dot, ...] = (SmullAny(),)
    taps: TapDot = SmullTaps()
    exact_taps: TapDot = SmullTapsAny()
    lanes = 4
    registers = 32
    width = 16
    joins_pixels = True
    selects = False
    immediate_bounds = True
    immediate_words = True
    immediate_products = 256
    table_width = 16

    def round_shift(self, x: Expr, shift: Expr) -> Expr:
        """srshl rounds without overflow."""
        if lanes_of(x) < self.lanes:
            return super().round_shift(x, shift)
        right = bind(splat(0 - shift, "int32", 4))
        return by_parts(4, lambda part: intrinsic("int32x4", PREFIX + "srshl.v4i32", part, right), x)

    def rescale(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        """sqdmulh gives floor(2 x m / 2^32), one bit more than mulhi; the rounding shift drops it: floors compose."""
        if lanes_of(x) < self.lanes:
            return super().rescale(x, m, shift)
        return self.round_shift(self._doubled_mulhi(x, m), shift + 1)

    @staticmethod
    def _doubled_mulhi(x: Expr, m: Expr) -> Expr:
        return by_parts(4, lambda a, b: intrinsic("int32x4", PREFIX + "sqdmulh.v4i32", a, b), x, m)

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
        """int8 with shifts that the code knows: sqrshrn shifts, rounds and saturates to int16 in one.

        x << pre comes with a shift of 1, and is not needed: of floor((x * 2^pre * m + 2^32) / 2^33), pre 1 is a
        shorter shift and pre 2 a rounding product, sqrdmulh = floor((2 x m + 2^31) / 2^32).
        """
        if dtype != "int8" or not _narrows(x) or not (isinstance(shift, IntImm) and isinstance(pre, IntImm)):
            return super().requantize(x, pre, m, shift, zero_point, qmin, qmax, dtype)
        if pre.value < 2:
            distance = T.int32(shift.value + 1 - pre.value)
            words = by_parts(
                4,
                lambda part: intrinsic("int16x4", PREFIX + "sqrshrn.v4i16", part, distance),
                self._doubled_mulhi(x, m),
            )
        else:
            x = bind(self.shift_left(x, T.int32(pre.value - 2)))
            words = self._saturated_words(
                by_parts(4, lambda a, b: intrinsic("int32x4", PREFIX + "sqrdmulh.v4i32", a, b), x, m)
            )
        return self._saturate_words(words, zero_point, qmin, qmax)

    def requantize_word(self, x: Expr, m: Expr, to: WordScale) -> Expr:
        """sqshrn narrows with the shift, sqrdmulh rounds."""
        if not self._takes_words(x, to):
            return super().requantize_word(x, m, to)
        return self._codes(self._product_words(x, m, to.shift), to)

    def add_residual_word(self, x: Expr, m: Expr, r: Expr, factor: Expr, to: WordScale) -> Expr:
        if not self._takes_words(x, to):
            return super().add_residual_word(x, m, r, factor, to)
        residual = self.mul_round(bind(residual_word(r)), splat(factor, "int16", lanes_of(x)))
        total = by_parts(
            8,
            lambda a, b: intrinsic("int16x8", PREFIX + "sqadd.v8i16", a, b),
            self._product_words(x, m, to.shift),
            bind(residual),
        )
        return self._codes(bind(total), to)

    @staticmethod
    def _takes_words(x: Expr, to: WordScale) -> bool:
        known = isinstance(to.shift, IntImm) or lanes_of(to.shift) == lanes_of(x)
        known = known and isinstance(to.fraction, IntImm) and isinstance(to.zero_point, IntImm)
        return to.dtype == "int8" and lanes_of(x) % 8 == 0 and known and to.zero_point.value == 0

    def _product_words(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        if not isinstance(shift, IntImm):
            words = self._words_of_channels(x, shift)
        else:
            words = self._shifted_words(x, shift) if shift.value else self._saturated_words(x)
        return bind(self.mul_round(words, cast(m, "int16")))

    def _codes(self, words: Expr, to: WordScale) -> Expr:
        """int8 of words with a fraction; one of 8 bits leaves the upper byte."""
        fraction = to.fraction.value

        def upper_bytes(part: Expr) -> Expr:
            registers = [reinterpret(extract(part, at, 8), "int8", 16) for at in range(0, lanes_of(part), 8)]
            return shuffle(registers, [2 * i + 1 for i in range(lanes_of(part))])

        def shifted(part: Expr) -> Expr:
            return intrinsic("int8x8", PREFIX + "sqshrn.v8i8", part, to.fraction)

        if not fraction:
            return self._saturate_words(words, to.zero_point, to.qmin, to.qmax)
        y = by_parts(min(lanes_of(words), 16), upper_bytes, words) if fraction == 8 else by_parts(8, shifted, words)
        return self._limit(y, to.qmin, to.qmax)

    @staticmethod
    def _words_of_channels(x: Expr, shift: Expr) -> Expr:
        """x >> shift saturated to 16 bits, each by its own: a saturating left shift leaves it in the upper half."""
        left = bind(splat(T.int32(16), "int32", lanes_of(x)) - shift)
        upper = by_parts(4, lambda a, b: intrinsic("int32x4", PREFIX + "sqshl.v4i32", a, b), x, left)

        def halves(part: Expr) -> Expr:
            registers = [reinterpret(extract(part, at, 4), "int16", 8) for at in (0, 4)]
            return shuffle(registers, [2 * i + 1 for i in range(8)])

        return by_parts(8, halves, bind(upper))

    @staticmethod
    def _shifted_words(x: Expr, shift: Expr) -> Expr:
        return by_parts(4, lambda part: intrinsic("int16x4", PREFIX + "sqshrn.v4i16", part, shift), bind(x))

    def add_scaled(self, x: Expr, pre: Expr, m: Expr, r: Expr, factor: Expr, constant: Expr, narrow: bool) -> Expr:
        """sqdmulh doubles what it multiplies: one left shift less; the other product is one of 16 bits."""
        n, words = lanes_of(x), dtype_of(r) in ("int8", "uint8", "int16")
        if n % 4 or not (narrow and words and isinstance(pre, IntImm) and pre.value):
            return super().add_scaled(x, pre, m, r, factor, constant, narrow)
        doubled = self._doubled_mulhi(bind(self.shift_left(x, T.int32(pre.value - 1))), m)
        scalar = bind(splat(factor, "int16", 4))
        scaled = by_parts(4, lambda part: intrinsic("int32x4", PREFIX + "smull.v4i32", part, scalar), cast(r, "int16"))
        return doubled + scaled + splat(constant, "int32", n)

    def saturate_shifted(self, x: Expr, shift: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        known = isinstance(shift, IntImm) and shift.value <= 16
        plain = isinstance(zero_point, IntImm) and zero_point.value == 0
        if not known or not (_narrows(x) if dtype == "int8" else dtype == "int16" and plain and lanes_of(x) % 4 == 0):
            return super().saturate_shifted(x, shift, zero_point, qmin, qmax, dtype)
        words = self._shifted_words(x, shift)
        if dtype == "int16":
            n = lanes_of(x)
            return T.max(T.min(words, splat(qmax, "int16", n)), splat(qmin, "int16", n))
        return self._saturate_words(words, zero_point, qmin, qmax)

    @staticmethod
    def _saturated_words(x: Expr) -> Expr:
        return by_parts(4, lambda part: intrinsic("int16x4", PREFIX + "sqxtn.v4i16", part), x)

    def saturate(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """int8: through saturated int16, where the zero point is added; saturating early changes no clamped result."""
        if dtype != "int8" or not _narrows(x):
            return super().saturate(x, zero_point, qmin, qmax, dtype)
        return self._saturate_words(self._saturated_words(x), zero_point, qmin, qmax)

    @staticmethod
    def _saturate_words(x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr) -> Expr:
        """int8 of saturated int16."""
        width = min(8, lanes_of(x))
        plain = isinstance(zero_point, IntImm) and zero_point.value == 0
        zp = bind(splat(zero_point, "int16", width))

        def narrow(part: Expr) -> Expr:
            if not plain:
                part = bind(intrinsic(f"int16x{width}", f"{PREFIX}sqadd.v{width}i16", part, zp))
            whole = intrinsic("int8x8", PREFIX + "sqxtn.v8i8", part if width == 8 else concat([part, part]))
            return extract(whole, 0, width)

        return Neon._limit(by_parts(width, narrow, x), qmin, qmax)

    @staticmethod
    def _limit(y: Expr, qmin: Expr, qmax: Expr) -> Expr:
        """clamp(y, qmin, qmax) of int8 lanes; bounds that the code knows are those of int8."""
        n = lanes_of(y)
        y = y if isinstance(qmax, IntImm) else T.min(y, splat(qmax, "int8", n))
        return y if isinstance(qmin, IntImm) else T.max(y, splat(qmin, "int8", n))

    def lookup(self, table: Pointer, x: Expr) -> Expr:
        """Byte permutes of registers that hold the table."""
        n = lanes_of(x)
        if table.dtype not in ("int8", "uint8") or n not in (8, 16, 32, 64):
            return super().lookup(table, x)
        rows = [bind(table.load(16 * i, 16)) for i in range(16)]
        return by_parts(16, lambda part: self._lookup_register(rows, part), x)

    def look_up_byte(self, table: Pointer, at: int, index: Expr, size: int) -> Expr:
        n = lanes_of(index)
        if n < 8:
            return super().look_up_byte(table, at, index, size)
        rows = [bind(table.load(at + i, 16)) for i in range(0, size, 16)]
        return by_parts(16, lambda part: self._lookup_register(rows, part), index)

    def mul_round(self, a: Expr, b: Expr) -> Expr:
        if lanes_of(a) < 8:
            return super().mul_round(a, b)
        return by_parts(8, lambda u, v: intrinsic("int16x8", PREFIX + "sqrdmulh.v8i16", u, v), a, b)

    def _lookup_register(self, rows: list[Expr], x: Expr) -> Expr:
        """tbl over four registers of the table at a time; each gives zero where the index lies outside of them."""
        n, index = lanes_of(x), bind(x)
        kind = f"{dtype_of(rows[0])}x{n}"
        y = None
        for at in range(0, len(rows), 4):
            moved = index - splat(16 * at, "uint8", n) if at else index
            part = bind(intrinsic(kind, f"{PREFIX}tbl4.v{n}i8", *rows[at : at + 4], moved))
            y = part if y is None else bind(T.bitwise_or(y, part))
        return y


class NeonDotprod(Neon):
    name = "neon_dotprod"
    features = frozenset({"neon", "dotprod"})
    dots: tuple[Dot, ...] = (Sdot(),)
    activation_dots: tuple[Dot, ...] = dots
    digit_dots: tuple[Dot, ...] = (SdotDigits(),)
    taps = exact_taps = SdotTaps()


class NeonI8mm(NeonDotprod):
    name = "neon_i8mm"
    features = frozenset({"neon", "dotprod", "i8mm"})
    dots = activation_dots = (Smmla(), Sdot())
    digit_dots = (SmmlaDigits(), SdotDigits())


ISAS = (NeonI8mm(), NeonDotprod(), Neon())  # best first
