"""Biases and masks that are added up before they meet the scores of attention."""

import numpy as np
import onnxruntime as ort
import pytest
from accuracy import both, decibels
from qcompile.frontend import normalise
from small_models import model

SHAPE, TOKENS = [1, 2, 6, 8], 6
TRIANGLE = np.triu(np.full((TOKENS, TOKENS), -np.inf, np.float32), 1)


def attention(*before, bias, constants=None, inputs=None):
    """Softmax(Q K' + bias) V."""
    return model(
        *before,
        ("Transpose", ["k"], ["turned"], {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["q", "turned"], ["product"], {}),
        ("Mul", ["product", "scale"], ["scaled"], {}),
        ("Add", ["scaled", bias], ["scores"], {}),
        ("Softmax", ["scores"], ["weights"], {}),
        ("MatMul", ["weights", "v"], ["y"], {}),
        inputs={"q": SHAPE, "k": SHAPE, "v": SHAPE} | (inputs or {}),
        constants={"scale": np.float32(8**-0.5)} | (constants or {}),
    )


def samples_of(made, rng):
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input}
    return [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(8)]


BIAS = np.random.default_rng(0).standard_normal((2, TOKENS, TOKENS)).astype(np.float32)
FORMS = {
    "a bias and a triangle": attention(
        ("Add", ["bias", "triangle"], ["sum"], {}),
        bias="sum",
        constants={"triangle": TRIANGLE},
        inputs={"bias": [1, 2, 6, 6]},
    ),
    "a triangle and a bias": attention(
        ("Add", ["triangle", "bias"], ["sum"], {}),
        bias="sum",
        constants={"triangle": TRIANGLE},
        inputs={"bias": [6, 6]},
    ),
    "two masks and a bias": attention(
        ("Add", ["triangle", "bias"], ["sum"], {}),
        ("Add", ["sum", "last"], ["all"], {}),
        bias="all",
        constants={"triangle": TRIANGLE, "last": np.float32([0, 0, 0, 0, 0, -1e9])},
        inputs={"bias": [6, 6]},
    ),
    "a constant of both": attention(
        bias="both", constants={"both": np.where(np.isinf(TRIANGLE), -1e9, BIAS).astype(np.float32)}
    ),
    "a bias alone": attention(bias="bias", inputs={"bias": [1, 2, 6, 6]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_biases_keep_their_bits_beside_masks(form):
    made = FORMS[form]
    samples = samples_of(made, np.random.default_rng(1))
    normal = normalise(made)
    for sample in samples[:2]:
        got, want = (ort.InferenceSession(m.SerializeToString()).run(None, sample)[0] for m in (normal, made))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    want, got = both(made, samples)
    assert decibels(want["y"], got["y"]) > 30
