"""LSTM, GRU and RNN with Q/DQ pairs against ONNX Runtime, which runs them in float between the pairs."""

import numpy as np
import onnxruntime as ort
import pytest
from qcompile.frontend import normalise
from qcompile.importer import import_onnx
from qcompile.kernels.ops.recurrent import PIECE_BITS, PIECES, activate
from qcompile.passes.integerize import integerize
from qcompile.passes.integerize.adaptive import SEGMENTS
from qcompile.passes.integerize.approximations import APPROXIMATIONS
from qcompile.passes.integerize.recurrent import activation, activation_table
from qcompile.targets import CompileError
from qdq_models import compiled, run_program
from recurrent_models import RecurrentModel

CASES = {
    "lstm": dict(kind="LSTM"),
    "lstm, one row": dict(kind="LSTM", steps=12, rows=1),
    "lstm, initial states, reverse": dict(kind="LSTM", states=True, direction="reverse"),
    "lstm, both directions, lengths": dict(kind="LSTM", rows=3, lengths=True, direction="bidirectional"),
    "lstm, no bias": dict(kind="LSTM", bias=False),
    "lstm, clip": dict(kind="LSTM", clip=0.7),
    "lstm, other functions": dict(kind="LSTM", activations=["HardSigmoid", "Softsign", "Tanh"]),
    "gru": dict(kind="GRU"),
    "gru, reset after": dict(kind="GRU", linear_before_reset=1, states=True),
    "gru, both directions": dict(kind="GRU", direction="bidirectional", lengths=True),
    "rnn": dict(kind="RNN", direction="bidirectional", states=True),
    "rnn, relu": dict(kind="RNN", activations=["Relu"], bias=False),
}


@pytest.mark.parametrize("case", CASES)
def test_as_onnxruntime(case):
    made = RecurrentModel(qdq=True, seed=len(case), **CASES[case])
    model, feed = made.model(), made.feed()
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    got = run_program(compiled(model), feed)
    for name, w, g in zip(("Y", "Y_h", "Y_c"), want, got):
        error = np.abs(w - g)
        # the hidden state is rounded to 8 bits at every step here, never there
        assert error.max() <= (1.01 / 127 if name == "Y" else 0.012), f"{case}: {name} is off by {error.max():.4f}"
        assert error.mean() < 0.002, f"{case}: {name} is off by {error.mean():.4f} on average"


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Softsign", "HardSigmoid"])
def test_activation_is_within_its_tolerance_at_every_code(name):
    a = activation(name, None, None, APPROXIMATIONS["exact"], "LSTM")
    x = np.arange(-(PIECES << PIECE_BITS) + 1, PIECES << PIECE_BITS)
    got = activate(x, activation_table(a, 0.0), a.kind) / 2.0**15
    below = a.function(np.abs(x) / 4096)
    want = np.where(x < 0, -below if a.kind == "odd" else 1 - below, below)
    assert np.abs(got - want).max() < 8e-4  # a tenth of an 8-bit step
    assert got[len(x) // 2] == {"odd": 0.0, "half": 0.5}[a.kind], "the function is not exact at 0"


@pytest.mark.parametrize("kind,attrs,words", [
    ("LSTM", dict(activations=["Sigmoid", "Relu", "Tanh"]), "activation Relu"),
    ("GRU", dict(activations=["HardSigmoid", "Tanh"], activation_beta=[0.2]), "HardSigmoid"),
])  # fmt: skip
def test_functions_without_integer_form_are_refused_by_name(kind, attrs, words):
    with pytest.raises(CompileError, match=words) as error:
        compiled(RecurrentModel(kind, qdq=True, **attrs).model())
    assert "cell" in str(error.value)


@pytest.mark.parametrize("name,f", [("Sigmoid", lambda x: 1 / (1 + np.exp(-x))), ("Tanh", np.tanh)])
def test_adaptive_segments_lie_on_few_knots(name, f):
    line = activation(name, None, None, APPROXIMATIONS["pwl"], "LSTM").function
    x = np.arange(0, 8, 1 / 64)
    bends = np.abs(np.diff(line(x), 2)) > 1e-9
    assert bends.sum() <= SEGMENTS - 1
    assert np.abs(line(x) - f(x)).max() < 0.004
    even = np.interp(x, np.linspace(0, 8, SEGMENTS + 1), f(np.linspace(0, 8, SEGMENTS + 1)))
    assert np.square(line(x) - f(x)).mean() < np.square(even - f(x)).mean() / 3, "knots are no better than even ones"


def test_pwl_cells_stay_near_the_float_ones():
    made = RecurrentModel("LSTM", qdq=True, steps=10)
    model, feed = made.model(), made.feed()
    want = ort.InferenceSession(model.SerializeToString()).run(None, feed)
    imported = import_onnx(normalise(model))
    got = run_program(integerize(imported.module, imported.names, imported.outputs, "pwl"), feed)
    assert max(np.abs(w - g).max() for w, g in zip(want, got)) < 0.03
