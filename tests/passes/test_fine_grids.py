"""Grids that are far finer than what is put on them: most of it saturates, and nothing is refused."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from qdq_models import Graph, check, random_feeds
from small_models import model

FINE = 2e-7


def product(g):
    x, y = (g.data(n, 3, 16, scale=1e-4, dtype="int16") for n in "xy")
    return g.q(g.op("Mul", x, y), FINE / 10, dtype="int16")


def broadcast_product(g):
    x, y = g.data("x", 3, 16, scale=1e-4, dtype="int16"), g.data("y", 3, 1, scale=1e-4, dtype="int16", zero_point=9)
    return g.q(g.op("Mul", x, y), FINE / 10, dtype="int16")


def rescaled(g):
    return g.q(g.data("x", 3, 16, zero_point=5), FINE)


def wide_rescaled(g):
    return g.q(g.data("x", 3, 16, scale=1e-3, zero_point=7, dtype="int16"), FINE, zero_point=-3, dtype="int16")


def total(g):
    return g.q(g.op("Add", g.data("x", 3, 16), g.data("y", 3, 16, scale=0.03, zero_point=4)), FINE)


def limited(g):
    """x less itself, nearly, with limits as fine as the grid."""
    x, y = g.data("x", 3, 16), g.data("y", 3, 16)
    ends = [g.const(np.float32(v)) for v in (-1e-6, 2e-6)]
    return g.q(g.op("Clip", g.op("Sub", x, y), *ends), 2.5e-10, dtype="int16")


def tiny_addend(g):
    """The operand of large steps would leave the multiplier of the other one two bits."""
    x = g.data("x", 3, 16, scale=1.0, dtype="int16")
    return g.q(g.op("Add", x, g.const(np.full(16, 0.625, np.float32))), 7e-5, dtype="int16")


def mean(g):
    return g.q(g.op("GlobalAveragePool", g.data("x", 1, 3, 4, 4)), FINE)


def layer(g):
    return g.q(g.op("MatMul", g.data("x", 3, 16), g.weight(16, 8, axis=1)), FINE / 100)


def far_bias(g):
    """Product of activations, and a constant beyond 32 bits of its steps."""
    x, y = g.data("x", 1, 4, 8, scale=1e-3), g.data("y", 1, 8, 4, scale=1e-3)
    return g.q(g.op("Add", g.op("MatMul", x, y), g.const(np.float32([0, 1e4, -1e4, 5]))), 1.0)


def normalised(g):
    gamma = [g.const(np.full(16, v, np.float32)) for v in (1, 0)]
    return g.q(g.op("LayerNormalization", g.data("x", 3, 16), *gamma), FINE)


def probabilities(g):
    return g.q(g.op("Softmax", g.data("x", 3, 16)), 1e-9)


FORMS = [
    product,
    broadcast_product,
    rescaled,
    wide_rescaled,
    total,
    limited,
    tiny_addend,
    mean,
    layer,
    far_bias,
    normalised,
    probabilities,
]


@pytest.mark.parametrize("form", FORMS)
def test_saturates_as_onnxruntime_does(form):
    g = Graph()
    made = g.model(form(g))
    feeds = random_feeds(made, 3)
    feeds += [{k: v * s for k, v in feed.items()} for feed in feeds for s in (1e-3, 1e-6)]
    check(made, 1, feeds, mean=1.1)  # products of codes are halves of a step, and ties go up here, to even there


@pytest.mark.parametrize("target", ["host", "arm-a72"])
def test_targets_agree(tmp_path, target):
    for form in (product, tiny_addend, wide_rescaled):
        g = Graph()
        made = g.model(form(g))
        loaded = qcompile.load(qcompile.compile(made, target, output=tmp_path, name=form.__name__).path)
        for feed in random_feeds(made, 3):
            got, want = loaded.run(feed), loaded.reference(feed)
            for name, value in want.items():
                np.testing.assert_array_equal(got[name], value, err_msg=form.__name__)


def enormous_scores(bias):
    """Attention whose scores have steps of 1e-6, beside numbers of 1e5."""
    g = Graph()
    q, k = (g.data(n, 1, 2, 8, 16, scale=1e-3) for n in "qk")
    v, b = g.data("v", 1, 2, 8, 16), g.const(bias)
    scores = g.op("Add", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), b)
    return g.model(g.q(g.op("MatMul", g.op("Softmax", scores), v)))


def test_scores_beside_large_numbers():
    """They were refused: "attention scores may not fit 32 bits"."""
    check(enormous_scores(np.where(np.arange(8) % 3, 0, 1e5).astype(np.float32)), 2, mean=0.3)


def test_scores_of_many_steps():
    """A softmax of its own, of sums of 28 bits."""
    g = Graph()
    x = g.data("x", 2, 16_384, scale=1e-3)
    w = g.op(
        "DequantizeLinear",
        *map(g.const, (g.rng.integers(-127, 128, (16_384, 8)).astype(np.int8), np.float32(1e-3), np.int8(0))),
    )
    logits = g.op("Add", g.op("MatMul", x, w), g.const(np.float32([[0] * 8, [3e3] * 8])))
    check(g.model(g.q(g.op("Softmax", logits), 1 / 255, zero_point=-128)), 2, mean=0.2)


@pytest.mark.parametrize(("low", "high"), [(2, 3), (0.5, 1), (100, 101), (-3, -2)])
def test_quotients_have_the_bits_of_their_operands(tmp_path, low, high):
    """18 to 34 dB: one grid of 16 bits held the reciprocals of the smallest and the largest code."""
    rng = np.random.default_rng(0)
    net = model(
        ("Mul", ["d", "one"], ["e"], {}),
        ("Div", ["x", "e"], ["y"], {}),
        inputs={"x": [4, 6], "d": [4, 6]},
        constants={"one": np.ones(6, np.float32)},
    )
    feeds = [
        {"x": rng.standard_normal((4, 6)).astype(np.float32), "d": rng.uniform(low, high, (4, 6)).astype(np.float32)}
        for _ in range(8)
    ]
    loaded = qcompile.load(qcompile.compile(net, calibration=feeds, output=tmp_path, name="n").path)
    exact = np.stack([f["x"] / f["d"] for f in feeds])
    noise = np.stack([loaded.run(f)["y"] for f in feeds]) - exact
    assert 10 * np.log10(np.square(exact).sum() / np.square(noise).sum()) > 37


def test_input_on_two_grids(tmp_path):
    """The coarser reader got what the finer one's grid holds: 9 dB."""
    g = Graph()
    x, dense = g.input("x", 4, 16), g.weight(16, 8, axis=1)
    fine, coarse = g.q(x, 0.01), g.q(g.op("Reshape", x, g.const(np.array([8, 8]))), 0.08)
    made = g.model(g.q(g.op("MatMul", fine, dense)), g.q(g.op("Relu", coarse), 0.08))
    feeds = [{"x": 4 * f["x"]} for f in random_feeds(made)]
    result = qcompile.compile(made, output=tmp_path, name="n")
    loaded, session = qcompile.load(result.path), ort.InferenceSession(made.SerializeToString())
    assert any("'x' is quantized on 2 grids" in note for note in result.notes), result.notes
    for feed in feeds:
        for output, want in zip(loaded.run(feed).values(), session.run(None, feed)):
            np.testing.assert_allclose(output, want, atol=0.09)
