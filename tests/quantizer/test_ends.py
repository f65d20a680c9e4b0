"""Values at the ends: of a function's domain, beside a range, and of a recurrent node's gates."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import both, decibels
from onnx import TensorProto
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


FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DECIDING = {  # op: attributes, number of inputs, type of the result
    "Round": ({}, 1, FLOAT), "Sign": ({}, 1, FLOAT), "Floor": ({}, 1, FLOAT), "ArgMax": ({"axis": 1}, 1, INT64),
    "ArgMin": ({"axis": 1}, 1, INT64), "Hardmax": ({"axis": 1}, 1, FLOAT), "Greater": ({}, 2, BOOL),
    "Cast": ({"to": INT64}, 1, INT64),
}  # fmt: skip


@pytest.mark.parametrize("op", DECIDING)
def test_what_is_decided_on_has_more_than_8_bits(op):
    """Of a layer norm's results, which are exact to 16 bits: a decision on 8 bits is another for every hundredth."""
    rng = np.random.default_rng(8)
    attrs, count, dtype = DECIDING[op]
    net = model(("LayerNormalization", ["x", "g"], ["n"], {}), (op, ["n", "zero"][:count], ["y"], attrs),
                inputs={"x": [4, 64]}, dtypes={"y": dtype},
                constants={"g": np.full(64, 2, np.float32), "zero": np.float32(0.1)})  # fmt: skip
    exact, actual = both(net, normal(rng, (4, 64), 16), normal(rng, (4, 64), 16))
    assert (exact["y"].astype(float) == actual["y"].round()).mean() > 0.995


def test_places_of_topk_are_found_on_16_bits():
    rng = np.random.default_rng(9)
    net = model(("LayerNormalization", ["x", "g"], ["n"], {}), ("TopK", ["n", "k"], ["v", "y"], {}),
                inputs={"x": [4, 64]}, dtypes={"y": INT64},
                constants={"g": np.ones(64, np.float32), "k": np.array([8])})  # fmt: skip
    exact, actual = both(net, normal(rng, (4, 64), 16), normal(rng, (4, 64), 16))
    assert (exact["y"] == actual["y"]).mean() > 0.99


@pytest.mark.parametrize("op", ["Reciprocal", "Exp", "Log", "Div"])
def test_steep_functions_keep_their_small_arguments(op):
    rng = np.random.default_rng(10)
    inputs = ["one", "c"] if op == "Div" else ["c"]
    net = model(("Clip", ["x", "low", "high"], ["c"], {}), (op, inputs, ["y"], {}), inputs={"x": [1, 256]},
                constants={"low": np.float32(0.05), "high": np.float32(6), "one": np.float32(1)})  # fmt: skip
    exact, actual = both(net, normal(rng, (1, 256), 8, 2.0))
    assert decibels(exact["y"], actual["y"]) > 30


def test_a_number_computed_with_a_number_has_no_axis():
    net = model(("ArgMax", ["x"], ["a"], {"axis": 0, "keepdims": 0}), ("Sub", ["four", "a"], ["y"], {}),
                inputs={"x": [5]}, dtypes={"y": INT64}, constants={"four": np.array(4)})  # fmt: skip
    rng = np.random.default_rng(11)
    exact, actual = both(net, normal(rng, (5,)), normal(rng, (5,)))
    assert actual["y"].shape == exact["y"].shape and np.array_equal(exact["y"], actual["y"])


@pytest.mark.parametrize("cell,gates", [("RNN", 1), ("LSTM", 4), ("GRU", 3)])
def test_initial_states_beyond_one_are_kept_or_noted(cell, gates):
    rng, notes = np.random.default_rng(12), []
    net = model((cell, ["x", "w", "r", "", "", "h"], ["y"], {"hidden_size": 4}), inputs={"x": [3, 1, 8]},
                constants={"w": rng.standard_normal((1, gates * 4, 8)).astype(np.float32) / 4,
                           "r": rng.standard_normal((1, gates * 4, 4)).astype(np.float32) / 4,
                           "h": np.full((1, 1, 4), 3, np.float32)})  # fmt: skip
    exact, actual = both(net, normal(rng, (3, 1, 8)), notes=notes)
    told = any("initial hidden state reaches 3" in n for n in notes)
    assert told == (cell != "GRU") and (told or decibels(exact["y"], actual["y"]) > 25)
