"""16 bits where the samples ask for it: tensors between layers, and inputs of layers as two products."""

from __future__ import annotations

import numpy as np
import pytest
import qcompile
from accuracy import decibels, program_of, quantized, stacked
from qcompile.frontend import normalise
from qcompile.quantizer import QuantizeOptions, load_calibration, quantize, widths
from small_models import model


def samples(rng, shape, count=8, mean=0.0):
    return [{"x": (mean + rng.standard_normal(shape)).astype(np.float32)} for _ in range(count)]


def without(net, feeds):
    """The QDQ form with 8 bits throughout."""
    loaded = normalise(net)
    return normalise(quantize(loaded, load_calibration(feeds, loaded), QuantizeOptions(widening=False), []))


def ratios(net, qdq, feeds, name="y"):
    exact, actual = stacked(net, program_of(qdq), feeds)
    return decibels(exact[name], actual[name])


def balanced(rng, channels, taps):
    """Weights [channels, taps] that 8 bits hold, of which each channel's sum is 0."""
    half = rng.integers(-126, 127, (channels, taps // 2))
    half[:, 0] = 127
    return np.concatenate([half, -half], 1).astype(np.float32) / 127


def cancelling(kind, rng):
    """A layer whose weights cancel most of its input: rounding the input to 8 bits drowns what is left."""
    bias = np.ones(8, np.float32)
    if kind == "MatMul":
        return model(("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "bias"], ["y"], {}), inputs={"x": [1, 8, 9, 32]},
                     constants={"w": balanced(rng, 8, 32).T.copy(), "bias": bias})  # fmt: skip
    group = 8 if kind == "depthwise" else 1
    weight = balanced(rng, 8, 4 * 8 // group).reshape(8, 8 // group, 2, 2)
    op = "ConvTranspose" if kind == "ConvTranspose" else "Conv"
    weight = weight.swapaxes(0, 1).copy() if op == "ConvTranspose" else weight
    return model((op, ["x", "w", "bias"], ["y"], {"group": group}), inputs={"x": [1, 8, 9, 32]},
                 constants={"w": weight, "bias": bias})  # fmt: skip


@pytest.mark.parametrize("kind", ["MatMul", "Conv", "depthwise", "ConvTranspose"])
def test_layers_read_16_bits_where_8_drown_their_results(kind):
    rng = np.random.default_rng(1)
    net = cancelling(kind, rng)
    feeds, notes = samples(rng, [1, 8, 9, 32], mean=200.0), []
    qdq = quantized(net, feeds, notes)
    before, after = ratios(net, without(net, feeds), feeds), ratios(net, qdq, feeds)
    assert before < 20 and after > before + 15, f"{before:.1f} -> {after:.1f} dB"
    assert [n for n in notes if "layers read 16 bits" in n], notes
    weights = [t for t in qdq.graph.initializer if len(t.dims) == (2 if kind == "MatMul" else 4)]
    assert len(weights) == 1, "both products share the weights"


def test_tensors_between_layers_are_widened_where_they_lose_most():
    rng = np.random.default_rng(2)
    net = model(("Mul", ["x", "four"], ["a"], {}), ("Abs", ["a"], ["b"], {}), ("Sub", ["b", "two"], ["c"], {}),
                ("Cos", ["c"], ["d"], {}), ("Mul", ["d", "d"], ["e"], {}), ("Sub", ["e", "d"], ["y"], {}),
                inputs={"x": [1, 64]}, constants={"four": np.float32(40), "two": np.float32(2)})  # fmt: skip
    feeds, notes = samples(rng, [1, 64]), []
    before, after = ratios(net, without(net, feeds), feeds), ratios(net, quantized(net, feeds, notes), feeds)
    assert before < 20 and after > 26, f"{before:.1f} -> {after:.1f} dB"
    assert [n for n in notes if "tensors have 16 bits" in n], notes


def test_what_is_near_enough_stays_at_8_bits():
    rng = np.random.default_rng(3)
    net = model(("MatMul", ["x", "w"], ["a"], {}), ("Relu", ["a"], ["b"], {}), ("MatMul", ["b", "v"], ["c"], {}),
                ("Sigmoid", ["c"], ["y"], {}), inputs={"x": [4, 16]},
                constants={"w": rng.standard_normal((16, 16)).astype(np.float32),
                           "v": rng.standard_normal((16, 8)).astype(np.float32)})  # fmt: skip
    feeds, notes = samples(rng, [4, 16]), []
    assert quantized(net, feeds, notes).SerializeToString() == without(net, feeds).SerializeToString()
    assert not notes


def test_no_more_is_spent_on_layers_than_a_share_of_the_products(monkeypatch):
    """The noisy layer makes nearly all products of the network: it stays, and the output is said to be noisy."""
    rng = np.random.default_rng(4)
    weights = [rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2)]
    weights = [w - w.mean(0) for w in weights]
    net = model(("MatMul", ["x", "w"], ["b"], {}), ("MatMul", ["b", "v"], ["y"], {}), inputs={"x": [4, 32]},
                constants={"w": weights[0], "v": weights[1]})  # fmt: skip
    notes = []
    monkeypatch.setattr(widths, "FREE", 0)
    quantized(net, samples(rng, [4, 32], mean=100.0), notes)
    assert not [n for n in notes if "layers read" in n], notes


@pytest.mark.parametrize("target", ["x86-avx2", "x86-avx512vnni", "arm-a76", "arm-a53"])
def test_two_products_agree_on_every_target(target, tmp_path):
    rng = np.random.default_rng(5)
    net, feeds = cancelling("Conv", rng), samples(rng, [1, 8, 9, 32], mean=200.0)
    made = qcompile.compile(net, target, calibration=feeds, output=tmp_path, name="net")
    loaded = qcompile.load(made.path)
    for feed in feeds[:2]:
        codes = loaded.quantize(feed)
        assert (loaded.run_integer(codes)["y"] == loaded.reference_integer(codes)["y"]).all()
