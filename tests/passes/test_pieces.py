"""Functions of many codes as straight pieces."""

import numpy as np
import pytest
from qcompile.kernels.ops.elementwise import Interpolate
from qcompile.passes.integerize.functions import gelu, sigmoid
from qcompile.passes.integerize.pieces import fit_pieces
from qcompile.passes.integerize.values import Grid


def evaluate(pieces, codes: int, grid: Grid) -> np.ndarray:
    x = np.arange(-32768, codes - 32768).astype(np.int16)
    return Interpolate.evaluate(x, pieces.table, first=-32768, bits=pieces.bits, **grid.attrs())


@pytest.mark.parametrize("f", [gelu, sigmoid, np.tanh])
@pytest.mark.parametrize(
    "grid",
    [
        Grid(12 / 255, -124, "int8", -128, 127),
        Grid(12 / 255, 4, "uint8", 0, 200),
        Grid(12 / 32767, 0, "int16", -32767, 32767),
    ],
)
@pytest.mark.parametrize("low, high", [(-6.0, 12.0), (-3.0, 3.0), (-4.0, 12.0)])
def test_smooth_functions_stay_within_a_code_of_their_input(f, grid, low, high):
    x = np.linspace(low, high, 4096)
    pieces = fit_pieces(f(x), grid)
    assert pieces is not None
    exact = np.clip(f(x) / grid.scale + grid.zero_point, grid.lo, grid.hi)
    error = np.abs(evaluate(pieces, len(x), grid) - exact)
    assert error.max() <= 0.5 + max(0.25, np.abs(np.diff(exact)).max())
    rounding = 0.25 if grid.dtype != "int16" else 4.0
    assert error.mean() <= rounding + 0.1, "on average hardly more than rounding itself"


def test_narrow_tables_have_fewer_pieces_than_wide_ones():
    grid = Grid(30 / 32767, 0, "int16", -32767, 32767)
    assert fit_pieces(gelu(np.linspace(-3, 3, 4096)), grid).table.shape == (2, 64)
    assert fit_pieces(gelu(np.linspace(-6, 30, 4096)), grid).table.shape == (2, 128)


@pytest.mark.parametrize("f", [np.sign, np.floor, lambda x: np.sin(200 * x)])
def test_functions_that_jump_keep_their_table(f):
    for grid in (Grid(1 / 32, 0, "int8", -128, 127), Grid(1 / 4096, 0, "int16", -32767, 32767)):
        assert fit_pieces(np.asarray(f(np.linspace(-4, 4, 4096)), float), grid) is None


def test_values_that_are_not_finite_keep_their_table():
    with np.errstate(divide="ignore"):
        values = np.log(np.linspace(0, 4, 4096))
    assert fit_pieces(values, Grid(0.1, 0, "int8", -128, 127)) is None
