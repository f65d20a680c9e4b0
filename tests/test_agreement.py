"""Every compile with samples says how near its outputs are to the float model's."""

import json

import numpy as np
import onnx
import pytest
import qcompile
from click.testing import CliRunner
from onnx import TensorProto, helper
from qcompile import pipeline
from qcompile.agreement import measured_samples
from qcompile.cli.qcompile import main
from qcompile.frontend import normalise, normalise_graph
from qcompile.frontend.graph import Graph
from qcompile.passes.integerize.reader import HANDLERS
from qcompile.quantizer import load_calibration
from small_models import model


def compiled(folder, net, feeds, **options):
    built = qcompile.compile(net, calibration=feeds, output=folder, name="n", **options)
    return built, json.loads((built.path / "manifest.json").read_text())["agreement_db"]


def net(spread):
    """A layer whose channels differ by `spread`, the sum of which cancels all but the smallest."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 2)).astype(np.float32)
    w[:, 1] = w[:, 0] * (1 + 1 / spread)
    return model(
        ("MatMul", ["x", "w"], ["a"], {}),
        ("MatMul", ["a", "d"], ["y"], {}),
        inputs={"x": [1, 8]},
        constants={"w": w, "d": np.array([[-1.0], [1.0]], np.float32)},
    )


def feeds(count=16):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def test_a_network_that_keeps_its_accuracy_says_so(tmp_path):
    built, found = compiled(tmp_path, net(1.0), feeds())
    assert found["y"] > 25 and not [n for n in built.notes if "noisy" in n]


def test_a_network_that_loses_it_is_noted(tmp_path):
    """The difference of two nearly equal codes: nothing but noise, and nobody was told."""
    built, found = compiled(tmp_path, net(1e5), feeds())
    (note,) = [n for n in built.notes if "noisy" in n]
    assert found["y"] < 10 and f"output 'y' is noisy: {found['y']:.1f} dB" in note and "16 of the samples" in note


def test_one_score_a_sample_is_measured_on_many(tmp_path):
    """Four numbers may be near by chance."""
    net = model(("MatMul", ["x", "w"], ["y"], {}), constants={"w": np.ones((8, 1), np.float32)})
    many = feeds(80)
    graph = Graph(normalise(net, {}))
    assert len(measured_samples(graph, load_calibration(many, graph), 8)) == 64
    large = Graph(normalise(model(("Expand", ["x", "s"], ["y"], {}), constants={"s": np.array([512, 8])}), {}))
    assert len(measured_samples(large, load_calibration(many, large), 8)) == 4
    assert len(measured_samples(graph, load_calibration(many, graph), 10**10)) == 1


@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_made_up_samples_are_called_so(tmp_path, spread):
    """Without samples there was neither a figure nor a note, however noisy the artifact was."""
    built, found = compiled(tmp_path, net(spread), None, report=True)
    notes = [n for n in built.notes if "noisy" in n]
    assert built.manifest["agreement_of"] == "made-up inputs" and (found["y"] < 20) == bool(notes) == (spread > 1)
    assert all("made-up inputs" in n and "--calib" in n for n in notes)
    page = (built.path / "report.html").read_text()
    assert f"<b>{found['y']:.1f} dB</b>" in page and "made-up inputs; give samples with --calib" in page


def test_the_table_says_what_was_measured(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(net(1.0), path)
    found = CliRunner().invoke(main, [str(path), "-o", str(tmp_path / "out")])
    assert "signal to noise" in found.output and "made-up inputs: give --calib" in found.output, found.output


def test_faults_of_the_frontend_show(tmp_path, monkeypatch):
    """Both sides were measured behind the normalisation, so that its faults were on both."""

    def wrong(graph, *args):
        for node in graph.nodes:
            node.op_type = node.op_type.replace("Cos", "Sin")
        return normalise_graph(graph, *args)

    monkeypatch.setattr(pipeline, "normalise_graph", wrong)
    built, found = compiled(tmp_path, model(("Cos", ["x"], ["y"], {}), inputs={"x": [1, 8]}), feeds())
    assert found["y"] < 5 and [n for n in built.notes if "output 'y' is noisy" in n]


def test_the_model_is_run_as_it_was_given(tmp_path):
    """From its file, with the fixed inputs, in its own types, with an input that nothing reads."""
    made = model(
        ("Mul", ["x", "gain"], ["a"], {}),
        ("MatMul", ["a", "w"], ["y"], {}),
        inputs={"x": ["batch", 8], "gain": [1], "idle": [2]},
        constants={"w": np.ones((8, 4), np.float16)},
        dtypes=dict.fromkeys(["x", "gain", "y"], TensorProto.FLOAT16),
    )
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    data = [{"x": f["x"], "idle": np.zeros(2, np.float32)} for f in feeds()]
    built, found = compiled(tmp_path, path, data, constants={"gain": 3}, shapes={"x": (1, 8)})
    assert found["y"] > 30 and built.manifest["agreement_of"] == "samples" and not built.notes, built.notes


def test_a_model_that_onnxruntime_does_not_know_is_measured_behind_the_frontend(tmp_path):
    w = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    made = model(
        ("Quant", ["w", "s", "z", "b"], ["q"], {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}),
        ("MatMul", ["x", "q"], ["y"], {}),
        inputs={"x": [1, 8]},
        constants={"w": w, "s": np.float32(1 / 127), "z": np.float32(0), "b": np.float32(8)},
    )
    made.graph.node[0].domain = "qonnx.custom_op.general"
    made.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    built, found = compiled(tmp_path, made, feeds())
    assert found["y"] > 30 and [n for n in built.notes if "beside the model as it was given" in n]


def test_parts_of_an_output_are_judged_alone(tmp_path):
    """Boxes in pixels beside scores that are lost: the whole output is near, the scores are not."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((8, 1)).astype(np.float32)
    made = model(
        ("MatMul", ["x", "b"], ["boxes"], {}),
        ("MatMul", ["x", "w"], ["a"], {}),
        ("MatMul", ["a", "d"], ["scores"], {}),
        ("Concat", ["boxes", "scores"], ["y"], {"axis": 1}),
        inputs={"x": [1, 8]},
        constants={
            "b": 300 * rng.standard_normal((8, 4)).astype(np.float32),
            "w": np.concatenate([w, w * 1.000003], 1),
            "d": np.array([[-1.0], [1.0]], np.float32),
        },
    )
    built, found = compiled(tmp_path, made, feeds())
    assert found["y"] < 10 and [n for n in built.notes if "output 'y' is noisy" in n]


def test_the_program_itself_is_measured(tmp_path, monkeypatch):
    """A fault of a pass behind the quantizer, which the quantized graph does not show."""
    zero = HANDLERS["relax.abs"], HANDLERS["relax.negative"]
    monkeypatch.setitem(HANDLERS, "relax.tanh", lambda r, call, args: zero[1](r, call, [zero[0](r, call, args)]))
    built, found = compiled(tmp_path, model(("Tanh", ["x"], ["y"], {}), inputs={"x": [1, 8]}), feeds())
    assert found["y"] < 5 and [n for n in built.notes if "output 'y' is noisy" in n]
