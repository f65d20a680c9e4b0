"""What a kernel asks of an instruction set, with meanings that hold on all of them.

Values are vectors of any number of lanes (a multiple of `lanes` for int32): an instruction set cuts them into its
registers. Everything here is exact; each override returns the same bits by another road.
"""

from __future__ import annotations

from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    cast,
    dtype_of,
    lanes_of,
    reinterpret,
    splat,
)


class Isa:
    """The portable meaning of each vector operation.

    lanes: int32 lanes of a register; registers: how many; width: channels that an epilogue handles at a time.
    """

    name = "generic"
    lanes = 4
    registers = 16
    width = 16
    table_width = 1  # bytes that one table lookup of `lookup` serves; 1: byte by byte

    def mulhi(self, x: Expr, m: Expr) -> Expr:
    immediate_bounds = False  # `saturate` gains by knowing bounds that clamp nothing
    immediate_products = 0  # sums of up to so many products get epilogues whose shifts are part of the code
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

    def saturate(self, x: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str) -> Expr:
        """clamp(x + zero_point, qmin, qmax) in `dtype`; x int32 vector, the others int32 scalars, sum fits int32."""
        n = lanes_of(x)
    def requantize(
        self, x: Expr, m: Expr, shift: Expr, zero_point: Expr, qmin: Expr, qmax: Expr, dtype: str
    ) -> Expr:
        """saturate(rescale(x, m, shift), zero_point, qmin, qmax)."""
        return self.saturate(self.rescale(x, m, shift), zero_point, qmin, qmax, dtype)

        y = x + splat(zero_point, "int32", n)
        y = T.max(T.min(y, splat(qmax, "int32", n)), splat(qmin, "int32", n))
        return y if dtype == "int32" else cast(y, dtype)

    def lookup(self, table: Pointer, x: Expr) -> Expr:
        """table[x] for uint8 x and a table of 256 elements of any dtype."""
        return table.gather(cast(x, "int32"))


def code_bytes(x: Expr) -> Expr:
    """8-bit lanes as uint8, bits unchanged."""
    return x if dtype_of(x) == "uint8" else reinterpret(x, "uint8", lanes_of(x))
