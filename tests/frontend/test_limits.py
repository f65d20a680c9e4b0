"""Infinite limits say that there is none."""

import numpy as np
import pytest
import qcompile
from accuracy import both, decibels, float_samples
from qcompile.targets import CompileError
from small_models import WEIGHT, model

INF, ZERO = np.float32(np.inf), np.float32(0)
PRODUCT = ("MatMul", ["x", "w"], ["m"], {})
FORMS = {
    "Clip from below": ("Clip", ["m", "zero", "inf"], ["y"], {}),
    "Clip from above": ("Clip", ["m", "minus", "zero"], ["y"], {}),
    "Clip of nothing": ("Clip", ["m", "minus", "inf"], ["y"], {}),
    "Max": ("Max", ["minus", "m", "zero"], ["y"], {}),
    "Min": ("Min", ["m", "inf"], ["y"], {}),
}


def net(node, **constants):
    known = {"w": WEIGHT, "zero": ZERO, "inf": INF, "minus": -INF, **constants}
    return model(PRODUCT, node, constants={n: v for n, v in known.items() if n == "w" or n in node[1]})


COMPUTED = {
    "floor": [("Clip", ["m", "least", "inf"], ["y"], {})],
    "ceiling": [("Clip", ["m", "", "least"], ["y"], {})],
    "both": [("Neg", ["least"], ["most"], {}), ("Clip", ["m", "least", "most"], ["y"], {})],
}


@pytest.mark.parametrize("form", COMPUTED)
def test_computed_limits(form):
    """As a spectrogram is limited to 80 dB below its peak."""
    made = model(
        PRODUCT,
        ("ReduceMax", ["m"], ["peak"], {"keepdims": 0}),
        ("Sub", ["peak", "range"], ["least"], {}),
        *COMPUTED[form],
        constants={"w": WEIGHT, "range": np.float32(2), **({"inf": INF} if form == "floor" else {})},
    )
    want, got = both(made, float_samples(made, np.random.default_rng(3)))
    assert decibels(want["y"], got["y"]) > 28


@pytest.mark.parametrize("form", FORMS)
def test_infinite_limits(form):
    samples = float_samples(net(FORMS[form]), np.random.default_rng(1))
    want, got = both(net(FORMS[form]), samples)
    assert decibels(want["y"], got["y"]) > 30


def test_an_operand_that_is_partly_infinite_is_refused(tmp_path):
    some = np.array([1, np.inf, 2, 3], np.float32)
    with pytest.raises(CompileError, match="'some': has NaN or infinite values"):
        qcompile.compile(net(("Min", ["m", "some"], ["y"], {}), some=some), output=tmp_path, name="n")
