"""x86-64: AVX2, AVX-VNNI and AVX512-VNNI."""

from __future__ import annotations

from collections.abc import Sequence

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
from qcompile.kernels.cpu.isa.base import BytePieces, Isa, WordScale, residual_word
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.isa.dot_x86 import VNNI_256, VNNI_256_DIGITS, VNNI_512, VNNI_512_DIGITS, Madd, MaddDigits
from qcompile.kernels.cpu.isa.taps import TapDot
from qcompile.kernels.cpu.isa.taps_x86 import MaddTaps, VnniTaps
from tvm.tirx import IntImm

SIGN = -128  # the bit that int8 and uint8 codes differ by


def _limit(x: Expr, qmin: Expr, qmax: Expr) -> Expr:
    """clamp(x, qmin, qmax); bounds that the code knows are those of the dtype."""
    n, dtype = lanes_of(x), dtype_of(x)
    x = x if isinstance(qmax, IntImm) else T.min(x, splat(qmax, dtype, n))
    return x if isinstance(qmin, IntImm) else T.max(x, splat(qmin, dtype, n))


def _recoded(codes: Expr, dtype: str) -> Expr:
    """int8 codes as those of `dtype`: uint8 codes are 128 more."""
    if dtype == "int8":
        return codes
    n = lanes_of(codes)
    return reinterpret(T.bitwise_xor(codes, splat(T.int8(SIGN), "int8", n)), "uint8", n)


def _centred(zero_point: Expr, dtype: str) -> bool:
    """Whether a result of signed codes only has to be recoded."""
    return isinstance(zero_point, IntImm) and zero_point.value == (0 if dtype == "int8" else -SIGN)


def _add_groups(isa: Isa, total: Expr, x: Expr) -> Expr:
    """vpdpbusd by ones."""
    size = min(isa.lanes, lanes_of(total))
    if size not in (4, 8, 16) or dtype_of(x) != "uint8":
        return Isa.add_groups(isa, total, x)
    name, x, total = f"llvm.x86.avx512.vpdpbusd.{32 * size}", bind(x), bind(total)
    ones = splat(1, "int8", 4 * size)

    def register(at: int) -> Expr:
        parts = extract(total, at, size), extract(x, 4 * at, 4 * size)
        return intrinsic(f"int32x{size}", name, *parts, ones)

    return concat([register(at) for at in range(0, lanes_of(total), size)])


class X86(Isa):
    """vpmuldq multiplies the even lanes, so a product of all lanes is two of them: even and odd."""

    arch = "x86_64"
    multiplies_pairs = True
    immediate_bounds = True

    def pair_products(self, a: Expr, b: Expr) -> Expr:
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[self.lanes]
        return intrinsic(f"int32x{self.lanes}", name, a, b)

    def mulhi(self, x: Expr, m: Expr) -> Expr:
        return by_parts(self.lanes, self._mulhi_register, x, m)

    def _mulhi_register(self, x: Expr, m: Expr) -> Expr:
        half = lanes_of(x) // 2
        if not half:
            return super().mulhi(x, m)
        bits = splat(32, "int64", half)

        def product(a: Expr, b: Expr) -> Expr:
            # the low half of each 64-bit lane with its sign: the form that LLVM takes for an operand of vpmuldq
            low = [T.shift_right(T.shift_left(reinterpret(v, "int64", half), bits), bits) for v in (a, b)]
            return low[0] * low[1]

        x, m = bind(x), bind(m)
        odd_lanes = [i | 1 for i in range(2 * half)]
        even = reinterpret(product(x, m), "int32", 2 * half)
        odd = reinterpret(product(shuffle([x], odd_lanes), shuffle([m], odd_lanes)), "int32", 2 * half)
        # the upper half of each product
        return shuffle([even, odd], [i + 1 if i % 2 == 0 else 2 * half + i for i in range(2 * half)])

    def requantize_word(self, x: Expr, m: Expr, to: WordScale) -> Expr:
        if lanes_of(x) != 16 or not _centred(to.zero_point, to.dtype):
            return super().requantize_word(x, m, to)
        return self._codes_16(self._product_16(x, m, to.shift), to)

    def add_residual_word(self, x: Expr, m: Expr, r: Expr, factor: Expr, to: WordScale) -> Expr:
        if lanes_of(x) != 16 or not _centred(to.zero_point, to.dtype):
            return super().add_residual_word(x, m, r, factor, to)
        residual = bind(self.mul_round(bind(residual_word(r)), splat(factor, "int16", 16)))
        words = self._product_16(x, m, to.shift)
        return self._codes_16(self.add_words(words, residual), to)

    def scaled_words(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        return self._product_16(x, m, shift) if lanes_of(x) == 16 else super().scaled_words(x, m, shift)

    def _product_16(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        words = self._narrowed(self.shift_right(x, shift))
        return bind(self.mul_round(words, cast(m, "int16")))

    @staticmethod
    def _codes_16(words: Expr, to: WordScale) -> Expr:
        """16 codes of words with a fraction."""
        words = bind(T.shift_right(words, splat(cast(to.fraction, "int16"), "int16", 16)))
        codes = intrinsic("int8x16", "llvm.x86.sse2.packsswb.128", extract(words, 0, 8), extract(words, 8, 8))
        return _limit(_recoded(codes, to.dtype), to.qmin, to.qmax)

    @staticmethod
    def _narrowed(x: Expr) -> Expr:
        """16 lanes as saturated int16; vpackssdw works within 128-bit halves: quarters 1 and 2 trade places."""
        x = bind(x)
        packed = intrinsic("int16x16", "llvm.x86.avx2.packssdw", extract(x, 0, 8), extract(x, 8, 8))
        return reinterpret(shuffle([reinterpret(packed, "int64", 4)], (0, 2, 1, 3)), "int16", 16)


class Avx2(BytePieces, X86):
    name = "avx2"
    features = frozenset({"avx2"})
    dots: tuple[Dot, ...] = (Madd(),)
    activation_dots: tuple[Dot, ...] = dots
    digit_dots: tuple[Dot, ...] = (MaddDigits(),)
    taps: TapDot = MaddTaps()
    exact_taps: TapDot = taps
    lanes = 8
    registers = 16
    width = 16

    def saturate(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """8 bits: through saturated int16, where the rest takes half the registers; no clamped result changes."""
        if dtype not in ("uint8", "int8") or lanes_of(x) != 16:
            return super().saturate(x, zero_point, qmin, qmax, dtype)
        y = self.add_words(self._narrowed(x), splat(zero_point, "int16", 16))
        y = bind(_limit(y, qmin, qmax))
        pack = "llvm.x86.sse2.packuswb.128" if dtype == "uint8" else "llvm.x86.sse2.packsswb.128"
        return intrinsic(f"{dtype}x16", pack, extract(y, 0, 8), extract(y, 8, 8))

    def look_up_byte(self, table: Pointer, at: int, index: Expr, size: int) -> Expr:
        """pshufb over 16 bytes of the table each; the upper bits of the index choose among them."""
        if lanes_of(index) < 16:
            return super().look_up_byte(table, at, index, size)
        rows = [bind(table.load(at + i, 16)) for i in range(0, size, 16)]

        def look_up(part: Expr) -> Expr:
            part = bind(part)
            found = [bind(intrinsic("uint8x16", "llvm.x86.ssse3.pshuf.b.128", row, part)) for row in rows]
            bit = 16
            while len(found) > 1:
                odd = T.bitwise_and(part, splat(bit, "uint8", 16)) != splat(0, "uint8", 16)
                found = [bind(T.Select(odd, b, a)) for a, b in zip(found[::2], found[1::2])]
                bit *= 2
            return found[0]

        return by_parts(16, look_up, index)

    def mul_round(self, a: Expr, b: Expr) -> Expr:
        n = lanes_of(a)
        if n < 8:
            return super().mul_round(a, b)
        name = "llvm.x86.ssse3.pmul.hr.sw.128" if n == 8 else "llvm.x86.avx2.pmul.hr.sw"
        return by_parts(16, lambda u, v: intrinsic(f"int16x{min(n, 16)}", name, u, v), a, b)


class AvxVnni(Avx2):
    name = "avxvnni"
    features = frozenset({"avx2", "avxvnni"})
    dots = activation_dots = (VNNI_256,)
    digit_dots = (VNNI_256_DIGITS,)
    taps = exact_taps = VnniTaps("vnni256_taps", 8, 13, 2)

    def add_groups(self, total: Expr, x: Expr) -> Expr:
        return _add_groups(self, total, x)


class Avx512(X86):
    name = "avx512vnni"
    features = frozenset({"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"})
    dots = activation_dots = (VNNI_512,)
    digit_dots = (VNNI_512_DIGITS,)
    taps = exact_taps = VnniTaps("vnni512_taps", 16, 28, 4)
    lanes = 16
    registers = 32
    width = 64
    loops_over_rows = True

    def byte_sum_lanes(self, width: int) -> int:
        return max(1, width // 4)

    def add_bytes(self, total: Expr, x: Expr) -> Expr:
        n = lanes_of(x)
        if n < 16:
            return total + sum(cast(extract(x, i * (n // 4), n // 4), "int32") for i in range(4))
        name = f"llvm.x86.avx512.vpdpbusd.{8 * n}"
        return intrinsic(f"int32x{n // 4}", name, total, x, splat(1, "int8", n))

    def add_groups(self, total: Expr, x: Expr) -> Expr:
        return _add_groups(self, total, x)

    def scaled_groups(self, values: Sequence[Expr], m: Expr) -> Expr:
        if lanes_of(values[0]) != 16:
            return super().scaled_groups(values, m)
        multiplier = bind(splat(m, "int16", 32))
        words = [bind(self.mul_round(bind(self._pack_words(*values[i : i + 2])), multiplier)) for i in (0, 2)]
        # within each 128-bit quarter: four bytes of one vector after the other
        places = [16 * (i // 16) + 4 * (i % 4) + i % 16 // 4 for i in range(64)]
        return shuffle([self._pack_bytes(words, "uint8")], places)

    def saturate(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """Narrows two or more registers by saturating packs: a third of the instructions of one by one."""
        n = lanes_of(x)
        if dtype not in ("int8", "uint8", "int16") or n not in (32, 64):
            return super().saturate(x, zero_point, qmin, qmax, dtype)
        if dtype == "int16":
            return by_parts(32, lambda part: self._saturate_16(part, zero_point, qmin, qmax), x)
        # saturated int16 plus a zero point of 8 bits: no clamped result changes
        words = [self.add_words(pair, splat(zero_point, "int16", 32)) for pair in self._words(x)]
        return self._in_order(bind(_limit(self._pack_bytes(words, dtype), qmin, qmax)), n)

    def requantize_word(self, x: Expr, m: Expr, to: WordScale) -> Expr:
        if lanes_of(x) not in (32, 64) or not _centred(to.zero_point, to.dtype):
            return super().requantize_word(x, m, to)
        return self._codes(self._product_words(x, m, to.shift), to, lanes_of(x))

    def add_residual_word(self, x: Expr, m: Expr, r: Expr, factor: Expr, to: WordScale) -> Expr:
        if lanes_of(x) not in (32, 64) or not _centred(to.zero_point, to.dtype):
            return super().add_residual_word(x, m, r, factor, to)
        scalar = bind(splat(factor, "int16", 32))
        words = [
            self.add_words(w, bind(self.mul_round(k, scalar)))
            for w, k in zip(self._product_words(x, m, to.shift), self._residual_words(bind(r)))
        ]
        return self._codes(words, to, lanes_of(x))

    def scaled_words(self, x: Expr, m: Expr, shift: Expr) -> Expr:
        if lanes_of(x) not in (32, 64):
            return super().scaled_words(x, m, shift)
        return concat([self._words_in_order(w) for w in self._product_words(x, m, shift)])

    def _product_words(self, x: Expr, m: Expr, shift: Expr) -> list[Expr]:
        words = self._words(self.shift_right(x, shift))
        # multipliers take the same order as words
        return [bind(self.mul_round(w, k)) for w, k in zip(words, self._words(m))]

    def _codes(self, words: list[Expr], to: WordScale, n: int) -> Expr:
        """n codes of words with a fraction, in the order of _words."""
        bits = bind(splat(cast(to.fraction, "int16"), "int16", 32))
        codes = bind(_recoded(self._pack_bytes([bind(T.shift_right(w, bits)) for w in words], "int8"), to.dtype))
        return self._in_order(bind(_limit(codes, to.qmin, to.qmax)), n)

    @staticmethod
    def _residual_words(r: Expr) -> list[Expr]:
        """residual_word in the order of _words."""
        n = lanes_of(r)
        if dtype_of(r) == "int16":
            halves = [reinterpret(extract(r, at, 32), "int64", 8) for at in range(0, n, 32)]
            return [bind(reinterpret(shuffle([h], (0, 4, 1, 5, 2, 6, 3, 7)), "int16", 32)) for h in halves]
        r = bind(concat([r] * (64 // n)))
        dwords = shuffle([reinterpret(r, "int32", 16)], [4 * (i % 4) + i // 4 for i in range(16)])
        codes = bind(_recoded(reinterpret(dwords, "int8", 64), dtype_of(r)))
        codes, zeros = bind(reinterpret(codes, "int8", 64)), bind(splat(0, "int8", 64))
        # unpacks work within 128-bit quarters, and give their lower or upper 8 bytes
        bytes_of = [[16 * (i // 8) + 8 * half + i % 8 for i in range(32)] for half in range(n // 32)]
        pairs = [shuffle([zeros, codes], [j for i in part for j in (i, 64 + i)]) for part in bytes_of]
        return [bind(reinterpret(pair, "int16", 32)) for pair in pairs]

    def _words(self, x: Expr) -> list[Expr]:
        """Pairs of registers as saturated int16, in the order that packs give."""
        x = bind(x)
        registers = [bind(extract(x, at, 16)) for at in range(0, lanes_of(x), 16)]
        return [bind(self._pack_words(a, b)) for a, b in zip(registers[::2], registers[1::2])]

    @staticmethod
    def _pack_bytes(words: list[Expr], dtype: str) -> Expr:
        """64 saturated bytes of int16 in the order of _words."""
        pack = "llvm.x86.avx512.packuswb.512" if dtype == "uint8" else "llvm.x86.avx512.packsswb.512"
        return bind(intrinsic(f"{dtype}x64", pack, words[0], words[-1]))

    @staticmethod
    def _in_order(packed: Expr, n: int) -> Expr:
        """Packs work within 128-bit quarters: of quarter q, dword v is register v's."""
        dwords = reinterpret(packed, "int32", 16)
        ordered = reinterpret(shuffle([dwords], [4 * (i % 4) + i // 4 for i in range(16)]), dtype_of(packed), 64)
        return extract(ordered, 0, n)

    def _saturate_16(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr) -> Expr:
        if lanes_of(x) != 32:
            return super().saturate(x, zero_point, qmin, qmax, "int16")
        x = bind(x + splat(zero_point, "int32", 32))
        packed = self._pack_words(extract(x, 0, 16), extract(x, 16, 16))
        return self._words_in_order(bind(_limit(packed, qmin, qmax)))

    @staticmethod
    def _words_in_order(packed: Expr) -> Expr:
        """32 words in the order that packs give, put in that of their sources."""
        quads = shuffle([reinterpret(packed, "int64", 8)], (0, 2, 4, 6, 1, 3, 5, 7))
        return reinterpret(quads, "int16", 32)

    def look_up_piece(self, table: Pointer, piece: Expr, pieces: int) -> tuple[Expr, Expr]:
        if lanes_of(piece) < 8:
            return super().look_up_piece(table, piece, pieces)
        piece = bind(piece)

        def permute(at: int) -> Expr:
            rows = [bind(table.load(at + i, 32)) for i in range(0, pieces, 32)]
            return by_parts(32, lambda part: self._permute_words(rows, part), piece)

        return permute(0), permute(pieces)

    @staticmethod
    def _permute_words(rows: list[Expr], piece: Expr) -> Expr:
        n = lanes_of(piece)
        index = bind(reinterpret(piece if n == 32 else concat([piece] * (32 // n)), "int16", 32))
        found = [
            intrinsic("int16x32", "llvm.x86.avx512.vpermi2var.hi.512", low, index, high)
            for low, high in zip(rows[::2], rows[1::2])
        ]
        if len(found) > 1:
            found = [T.Select(index < splat(64, "int16", 32), *found)]
        return extract(found[0], 0, n)

    def mul_round(self, a: Expr, b: Expr) -> Expr:
        n = lanes_of(a)
        if n < 8:
            return super().mul_round(a, b)
        name = {8: "llvm.x86.ssse3.pmul.hr.sw.128", 16: "llvm.x86.avx2.pmul.hr.sw"}.get(
            n, "llvm.x86.avx512.pmul.hr.sw.512"
        )
        return by_parts(32, lambda u, v: intrinsic(f"int16x{min(n, 32)}", name, u, v), a, b)

    @staticmethod
    def _pack_words(a: Expr, b: Expr) -> Expr:
        return intrinsic("int16x32", "llvm.x86.avx512.packssdw.512", a, b)


class Avx512Vbmi(Avx512):
    """Adds byte permutes across the register: a table of 256 bytes is two vpermi2b and a blend."""

    name = "avx512vbmi"
    features = Avx512.features | {"avx512vbmi"}
    table_width = 64

    def lookup(self, table: Pointer, x: Expr) -> Expr:
        if table.dtype not in ("int8", "uint8"):
            return super().lookup(table, x)
        quarters = [bind(table.load(64 * i, 64)) for i in range(4)]
        return by_parts(64, lambda part: self._lookup_register(quarters, part), x)

    def _lookup_register(self, quarters: list[Expr], x: Expr) -> Expr:
        n = lanes_of(x)
        x = bind(x)
        index = bind(x if n == 64 else concat([x] * (64 // n)))
        dtype = f"{dtype_of(quarters[0])}x64"
        low, high = (
            intrinsic(dtype, "llvm.x86.avx512.vpermi2var.qi.512", a, index, b) for a, b in (quarters[:2], quarters[2:])
        )
        # the top bit of the index selects the half of the table
        chosen = T.Select(index < splat(128, "uint8", 64), low, high)
        return chosen if n == 64 else T.Shuffle([chosen], list(range(n)))


ISAS = (Avx512Vbmi(), Avx512(), AvxVnni(), Avx2())  # best first
