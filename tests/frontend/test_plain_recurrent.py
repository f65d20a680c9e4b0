"""LSTM, GRU and RNN in one form, and what is refused."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from qcompile.frontend import normalise
from qcompile.targets import CompileError
from recurrent_models import RecurrentModel


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("attrs", [dict(layout=1), dict(direction="bidirectional")], ids=str)
def test_one_direction_time_first(kind, attrs):
    made = RecurrentModel(kind, states=True, **attrs)
    feed, model = made.feed(), made.model()
    plain = normalise(model)
    cells = [n for n in plain.graph.node if n.op_type == kind]
    assert len(cells) == (2 if "direction" in attrs else 1)
    assert not {a.name for n in cells for a in n.attribute} & {"layout"}
    if "direction" in attrs and kind != "LSTM":
        return  # ONNX's reference knows one direction
    if "direction" in attrs:
        run = [ort.InferenceSession(m.SerializeToString()).run(None, feed) for m in (model, plain)]
    else:
        run = [ReferenceEvaluator(m).run(None, feed) for m in (model, plain)]
    for a, b in zip(*run):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_activations_of_both_directions_keep_their_parameters():
    names = ["HardSigmoid", "Tanh", "ScaledTanh", "Sigmoid", "Tanh", "ScaledTanh"]
    made = RecurrentModel("LSTM", direction="bidirectional", activations=names, activation_alpha=[0.1, 0.7, 0.9],
                          activation_beta=[0.5, 1.1, 1.2])  # fmt: skip
    forward, reverse = (
        {a.name: list(a.floats) for a in n.attribute if a.floats}
        for n in normalise(made.model()).graph.node
        if n.op_type == "LSTM"
    )
    np.testing.assert_allclose(forward["activation_alpha"], [0.1, 0.7], rtol=1e-6)
    np.testing.assert_allclose(reverse["activation_alpha"], [0.9], rtol=1e-6)
    np.testing.assert_allclose(reverse["activation_beta"], [1.2], rtol=1e-6)


def test_peepholes_of_zeros_vanish_and_others_are_refused():
    zeros = np.zeros((1, 60), np.float32)
    node = next(n for n in normalise(RecurrentModel("LSTM", peepholes=zeros).model()).graph.node if n.op_type == "LSTM")
    assert len(node.input) == 4
    with pytest.raises(CompileError, match="'cell': peephole"):
        normalise(RecurrentModel("LSTM", peepholes=zeros + 1).model())


def test_coupled_gates_are_refused():
    with pytest.raises(CompileError, match="input_forget"):
        normalise(RecurrentModel("LSTM", input_forget=1).model())


def test_weights_that_are_inputs_are_refused():
    made = RecurrentModel("GRU")
    made.constants = [c for c in made.constants if c.name != "R"]
    made.input("R", (1, 60, 20))
    with pytest.raises(CompileError, match="weights 'R' are computed"):
        normalise(made.model())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_dynamic_quantize_lstm_becomes_a_plain_one(per_channel, direction, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    made = RecurrentModel("LSTM", steps=5, rows=1, direction=direction)
    onnx.save(made.model(), tmp_path / "float.onnx")
    quantization.quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "dynamic.onnx", weight_type=quantization.QuantType.QInt8,
        per_channel=per_channel)  # fmt: skip
    dynamic = onnx.load(tmp_path / "dynamic.onnx")
    assert "DynamicQuantizeLSTM" in {n.op_type for n in dynamic.graph.node}
    notes = []
    plain, feed = normalise(dynamic, notes=notes), made.feed()
    assert any("DynamicQuantizeLSTM" in n for n in notes)
    want, got = (ort.InferenceSession(m.SerializeToString()).run(None, feed) for m in (made.model(), plain))
    for w, g in zip(want, got):
        np.testing.assert_allclose(g, w, atol=0.03)
