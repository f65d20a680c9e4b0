"""States that stay integers from call to call, in Python and in C."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.kernels.program import Program
from qcompile.runtime import ArtifactError
from qcompile.targets import CompileError

UNITS, INPUTS, STEPS = 24, 10, 30
STATES = {"h": "h_next", "c": "c_next"}


def tensor(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(steps):
    """y = Gemm of the hidden states of `steps` steps; the states are inputs and outputs."""
    rng = np.random.default_rng(3)
    sizes = {"W": (1, 4 * UNITS, INPUTS), "R": (1, 4 * UNITS, UNITS), "B": (1, 8 * UNITS), "G": (UNITS, 5)}
    constants = {n: rng.uniform(-0.35, 0.35, s).astype(np.float32) for n, s in sizes.items()}
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], ["Y", "h_next", "c_next"], hidden_size=UNITS),
        helper.make_node("Squeeze", ["Y", "axes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "G"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(v, n) for n, v in (constants | {"axes": np.array([1, 2])}).items()]
    state = (1, 1, UNITS)
    graph = helper.make_graph(
        nodes, "step", [tensor("x", steps, 1, INPUTS), tensor("h", *state), tensor("c", *state)],
        [tensor("y", steps, 5), tensor("h_next", *state), tensor("c_next", *state)], initializers)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def sequence():
    return np.random.default_rng(7).normal(0, 1, (STEPS, 1, INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def feeds(sequence):
    """What the step is calibrated on: the states as the float model gives them."""
    session = ort.InferenceSession(model(1).SerializeToString())
    h = c = np.zeros((1, 1, UNITS), np.float32)
    made = []
    for x in sequence:
        made.append({"x": x[None], "h": h, "c": c})
        _, h, c = session.run(None, made[-1])
    return made


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, feeds):
    return qcompile.compile(model(1), calibration=feeds, output=tmp_path_factory.mktemp("s"), states=STATES).path


def test_a_stream_follows_the_float_model(artifact, sequence):
    want = ort.InferenceSession(model(STEPS).SerializeToString()).run(
        ["y"], {"x": sequence, "h": np.zeros((1, 1, UNITS), np.float32), "c": np.zeros((1, 1, UNITS), np.float32)}
    )[0]
    stream = qcompile.load(artifact).stream()
    got = np.stack([stream.run({"x": x[None]})["y"][0] for x in sequence])
    assert got.shape == want.shape and set(stream.state) == set(STATES)
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max() + 0.02
    stream.reset()
    assert np.array_equal(stream.run({"x": sequence[:1]})["y"][0], got[0]), "reset does not begin anew"


def test_both_ends_have_one_scale_and_nothing_is_converted(artifact):
    loaded = qcompile.load(artifact)
    ends = {t.name: t for t in (*loaded.inputs, *loaded.outputs)}
    for source, target in STATES.items():
        a, b = ends[source], ends[target]
        assert (a.dtype, a.scale, a.zero_point) == (b.dtype, b.scale, b.zero_point) and a.dtype == "int16"
    program = Program.load(artifact / "program.npz")
    touching = [n.op for n in program.nodes if set(n.inputs) & {"h", "c"} or n.name in program.outputs[1:]]
    assert set(touching) <= {"lstm", "reshape", "slice"}, f"states are converted by {touching}"


def test_a_stream_is_the_reference_called_again_and_again(artifact, sequence):
    loaded = qcompile.load(artifact)
    stream = loaded.stream({"h": np.full((1, 1, UNITS), 0.25)})
    state = dict(stream.state)
    for x in sequence[:5]:
        x = loaded.quantize_one(loaded.inputs[0], x[None])
        want = loaded.reference_integer({"x": x, **state})
        got = stream.run_integer({"x": x})
        assert np.array_equal(got["y"], want["y"])
        state = {source: want[target] for source, target in STATES.items()}
        assert all(np.array_equal(stream.state[name], state[name]) for name in STATES)


def test_one_buffer_may_serve_both_ends(artifact, sequence):
    """As a C program would keep its states: the same pointer in and out."""
    import ctypes

    loaded = qcompile.load(artifact)
    engine, stream = loaded.engine, qcompile.load(artifact).stream()
    inputs, outputs, arena = engine.arguments
    shared = (ctypes.c_void_p * len(outputs))(*outputs)
    for i, o in ((1, 1), (2, 2)):
        shared[o] = inputs[i]
        engine.inputs[i][...] = 0
    for x in sequence[:6]:
        q = loaded.quantize_one(loaded.inputs[0], x[None])
        engine.inputs[0][...] = q
        assert engine.function(inputs, shared, arena) == 0
        got = engine.outputs[0].copy(), engine.inputs[1].copy(), engine.inputs[2].copy()
        want = qcompile.load(artifact).run_integer({"x": q, **stream.state})
        stream.run_integer({"x": q})
        for g, w in zip(got, want.values()):
            assert np.array_equal(g, w)
    header = next(artifact.glob("*.h")).read_text()
    assert "inputs[1] and outputs[1] may be one buffer" in header


def test_a_quantized_model_gets_equal_ends_too(artifact, feeds, tmp_path):
    quantized = onnx.load(artifact / "model.qdq.onnx")
    assert STATES in [json.loads(p.value) for p in quantized.metadata_props if p.key == "qcompile.states"]
    again = qcompile.load(qcompile.compile(quantized, output=tmp_path, name="again").path)
    assert again.manifest.states == tuple(STATES.items())


@pytest.mark.parametrize("states,words", [
    ({"g": "h_next"}, "no input 'g'"), ({"h": "z"}, "no output 'z'"), ({"h": "y"}, "keeps its shape"),
    ({"h": "h_next", "c": "h_next"}, "more than one input"),
])  # fmt: skip
def test_states_that_do_not_fit_are_refused(states, words, feeds, tmp_path):
    with pytest.raises(CompileError, match=words):
        qcompile.compile(model(1), calibration=feeds[:2], output=tmp_path, states=states)


def test_what_a_stream_refuses(artifact, feeds, tmp_path):
    stream = qcompile.load(artifact).stream()
    with pytest.raises(ArtifactError, match="is a state"):
        stream.run_integer({"x": np.zeros((1, 1, INPUTS), np.int8), "h": np.zeros((1, 1, UNITS), np.int16)})
    with pytest.raises(ArtifactError, match="'x' is no state"):
        stream.reset({"x": np.zeros(1)})
    plain = qcompile.compile(model(1), calibration=feeds[:4], output=tmp_path)
    with pytest.raises(ArtifactError, match="--state"):
        qcompile.load(plain.path).stream()
