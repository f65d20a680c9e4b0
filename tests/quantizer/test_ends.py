"""Values at the ends: of a function's domain, beside a range, and of a recurrent node's gates."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import both, decibels
from small_models import model


def normal(rng, shape, count=4, scale=1.0):
    return [{"x": (scale * rng.standard_normal(shape)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("value", [5.0, -3.0, 100.0])
@pytest.mark.parametrize("first", [True, False])
def test_where_keeps_a_number_beyond_the_range(value, first):
    rng = np.random.default_rng(3)
    v, choice = np.float32(value), ["x", "v"] if first else ["v", "x"]
    net = model(("Greater", ["x", "zero"], ["c"], {}), ("Where", ["c", *choice], ["y"], {}), inputs={"x": [1, 64]},
                constants={"v": v, "zero": np.float32(0)})  # fmt: skip
    exact, actual = both(net, normal(rng, (1, 64)), normal(rng, (1, 64)))
    assert decibels(exact["y"], actual["y"]) > 30


def test_where_leaves_the_range_to_the_values_beside_a_mask():
    rng = np.random.default_rng(4)
    net = model(("Greater", ["x", "zero"], ["c"], {}), ("Where", ["c", "x", "v"], ["w"], {}),
                ("ReduceMax", ["w"], ["y"], {"axes": [1], "keepdims": 0}), inputs={"x": [1, 64]},
                constants={"v": np.float32(-1e4), "zero": np.float32(0)})  # fmt: skip
    exact, actual = both(net, normal(rng, (1, 64)), normal(rng, (1, 64)))
    assert decibels(exact["y"], actual["y"]) > 20


@pytest.mark.parametrize("op", ["Asin", "Acos", "Atan", "Log", "Sqrt"])
@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_functions_at_the_ends_of_their_domain(op, shift):
    rng = np.random.default_rng(5)
    low = {"Log": 0.5, "Sqrt": 0.0}.get(op, -1.0)
    net = model(("Clip", ["x", "low", "high"], ["c"], {}), (op, ["c"], ["y"], {}), inputs={"x": [1, 64]},
                constants={"low": np.float32(low), "high": np.float32(1.0)})  # fmt: skip
    samples = [{"x": s["x"].clip(-2, 2) + np.float32(shift)} for s in normal(rng, (1, 64))]
    exact, actual = both(net, samples, samples)
    assert np.abs(exact["y"] - actual["y"]).max() < 0.01 * max(np.abs(exact["y"]).max(), 1)


def test_powers_outside_of_their_domain_have_its_nearest_value():
    rng = np.random.default_rng(6)
    net = model(("Relu", ["x"], ["r"], {}), ("Add", ["r", "x"], ["a"], {}), ("Relu", ["a"], ["b"], {}),
                ("Pow", ["b", "e"], ["y"], {}), inputs={"x": [1, 64]}, constants={"e": np.float32(0.5)})  # fmt: skip
    exact, actual = both(net, normal(rng, (1, 64)), normal(rng, (1, 64)))
    assert decibels(exact["y"], actual["y"]) > 30


@pytest.mark.parametrize("cell,open_gates", [("RNN", []), ("GRU", [0.0, 8.0]), ("LSTM", [4.0, 4.0, -4.0])])
@pytest.mark.parametrize("after", [0, 1])
def test_large_gate_inputs_are_called_back_by_the_recurrent_product(cell, open_gates, after):
    """The bias alone would saturate a gate of 16 bits: the state takes it back to where the function is steep."""
    rng, units, gates = np.random.default_rng(7), 4, len(open_gates) + 1
    w = (0.1 * rng.standard_normal((1, gates * units, 8))).astype(np.float32)
    r, bias = np.zeros((1, gates * units, units), np.float32), np.zeros((1, 2 * gates * units), np.float32)
    r[0, -units:] = -23.0 * np.eye(units)
    bias[0, : gates * units] = np.repeat([*open_gates, 23.0], units)
    attrs = {"hidden_size": units} | ({"linear_before_reset": after} if cell == "GRU" else {})
    net = model((cell, ["x", "w", "r", "b"], ["y"], attrs), inputs={"x": [6, 1, 8]},
                constants={"w": w, "r": r, "b": bias})  # fmt: skip
    exact, actual = both(net, normal(rng, (6, 1, 8)), normal(rng, (6, 1, 8)))
    assert decibels(exact["y"], actual["y"]) > 15
