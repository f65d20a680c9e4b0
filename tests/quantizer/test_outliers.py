"""One wild value among the samples is left out and said; a heavy tail is no wild value."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import both, decibels
from qcompile.quantizer import load_calibration
from qcompile.quantizer.outliers import without_wild
from qcompile.targets.errors import CompileError
from small_models import model


def dense(rng):
    w = rng.standard_normal((32, 8)).astype(np.float32)
    return model(("MatMul", ["x", "w"], ["m"], {}), ("Relu", ["m"], ["y"], {}), inputs={"x": [1, 32]},
                 constants={"w": w})  # fmt: skip


@pytest.mark.parametrize("count", [4, 32])
def test_a_wild_value_is_left_out_and_named(count):
    rng, notes = np.random.default_rng(9), []
    samples = [{"x": rng.standard_normal((1, 32)).astype(np.float32)} for _ in range(count)]
    tests = [{"x": rng.standard_normal((1, 32)).astype(np.float32)} for _ in range(4)]
    samples[2]["x"][0, 5] = 3e5
    net = dense(rng)
    exact, actual = both(net, samples, tests)
    assert decibels(exact["y"], actual["y"]) > 20, "three samples say little of the range, but far more than 0 dB"
    notes = load_calibration(samples, net).notes
    assert len(notes) == 1 and "sample 2" in notes[0] and "'x'" in notes[0] and "3e+05" in notes[0]


@pytest.mark.parametrize("tail", ["normal", "lognormal", "student", "sparse", "zeros"])
def test_heavy_tails_are_kept(tail):
    rng = np.random.default_rng(11)
    draw = {"normal": lambda: rng.standard_normal(256), "lognormal": lambda: rng.lognormal(0, 2, 256),
            "student": lambda: rng.standard_t(2, 256), "zeros": lambda: np.zeros(256),
            "sparse": lambda: rng.standard_normal(256) * (rng.random(256) < 0.02) * 50}[tail]  # fmt: skip
    for _ in range(100):
        samples, notes = [{"x": draw().astype(np.float32)} for _ in range(16)], []
        assert without_wild(samples, notes) == samples and not notes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(value):
    x = np.zeros((1, 32), np.float32)
    samples = [{"x": x}, {"x": np.where(np.arange(32) == 7, value, x).astype(np.float32)}]
    with pytest.raises(CompileError, match="sample 1: input 'x' has NaN or infinite values"):
        load_calibration(samples, dense(np.random.default_rng(0)))
