"""Float LSTM, GRU and RNN: what the quantizer writes, and how near the integers stay."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from onnx import numpy_helper
from qcompile.frontend import normalise
from qcompile.frontend.graph import Graph
from qcompile.quantizer import quantize
from qcompile.quantizer.recurrent import state_ranges
from recurrent_models import RecurrentModel

CASES = {
    "lstm": dict(kind="LSTM", steps=20),
    "lstm, both, states, lengths": dict(kind="LSTM", direction="bidirectional", states=True, lengths=True),
    "lstm, batch first": dict(kind="LSTM", layout=1, states=True),
    "gru": dict(kind="GRU", steps=20),
    "gru, reset after, both": dict(kind="GRU", linear_before_reset=1, direction="bidirectional", lengths=True),
    "rnn": dict(kind="RNN", direction="reverse"),
    "rnn, relu": dict(kind="RNN", activations=["Relu"], states=True),
}


def float_outputs(made, feeds):
    """Of the plain form: ONNX Runtime knows no batch-first layout."""
    session = ort.InferenceSession(normalise(made.model()).SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, f) for f in feeds]


@pytest.mark.parametrize("case", CASES)
def test_integers_stay_near_the_float_cell(case, tmp_path):
    made = RecurrentModel(**CASES[case])
    feeds = [made.feed() for _ in range(24)]
    model = qcompile.load(qcompile.compile(made.model(), calibration=feeds[:16], output=tmp_path, name="cell").path)
    noise, power = np.zeros(len(model.outputs)), np.zeros(len(model.outputs))
    for feed, want in zip(feeds[16:], float_outputs(made, feeds[16:])):
        got = model.run(feed)
        for k, (w, g) in enumerate(zip(want, got.values())):
            noise[k], power[k] = noise[k] + np.square(w - g).sum(), power[k] + np.square(w).sum()
    ratios = dict(zip((t.name for t in model.outputs), np.round(10 * np.log10(power / noise), 1)))
    assert min(ratios.values()) > 30, f"{case}: {ratios} dB"
    integers = model.quantize(feeds[0])
    for name, value in model.run_integer(integers).items():
        assert np.array_equal(value, model.reference_integer(integers)[name]), name


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_weights_have_a_scale_for_each_gate_and_unit_and_onnxruntime_runs_it(kind):
    made = RecurrentModel(kind, states=True)
    feeds = [made.feed() for _ in range(4)]
    quantized = quantize(normalise(made.model()), feeds)
    constants = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    makers = {o: n for n in quantized.graph.node for o in n.output}
    cell = next(n for n in quantized.graph.node if n.op_type == kind)
    for name in cell.input[1:3]:
        maker = makers[name]
        assert maker.op_type == "DequantizeLinear" and constants[maker.input[0]].dtype == np.int8
        assert constants[maker.input[1]].shape == (constants[maker.input[0]].shape[1],)
    dtypes = {i: constants[makers[cell.input[i]].input[2]].dtype for i in (0, 5)}
    assert dtypes == {0: np.int8, 5: np.int16}
    got = ort.InferenceSession(quantized.SerializeToString()).run(None, feeds[0])
    for g, w in zip(got, float_outputs(made, feeds[:1])[0]):
        assert np.abs(g - w).max() < 0.05


def test_the_cell_that_calibration_runs_is_onnx_runtimes():
    for case, given in CASES.items():
        made = RecurrentModel(**given)
        graph, feed = Graph(normalise(made.model())), made.feed()
        cells = [n for n in graph.nodes if n.op_type == made.kind]
        model = graph.to_model()
        inner = {t for n in cells for t in (n.input[0], *n.input[5:7], *n.output[:1]) if t in graph.shapes}
        inner -= set(feed)
        del model.graph.output[:]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in sorted(inner))
        session = ort.InferenceSession(model.SerializeToString())
        values = {**graph.constants, **feed, **dict(zip(sorted(inner), session.run(sorted(inner), feed)))}
        for n in cells:
            indexed = {i: values[name] for i, name in enumerate(n.input) if name}
            start = np.abs(values[n.input[5]]).max() if len(n.input) > 5 else 0
            want = max(np.abs(values[n.output[0]]).max(), start)
            assert state_ranges(n, indexed)[0] == pytest.approx(want, rel=1e-4), case
