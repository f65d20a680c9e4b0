"""Every compile with samples says how near its outputs are to the float model's."""

import json

import numpy as np
import qcompile
from qcompile.agreement import measured_samples
from qcompile.frontend import normalise
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
    return model(("MatMul", ["x", "w"], ["a"], {}), ("MatMul", ["a", "d"], ["y"], {}), inputs={"x": [1, 8]},
                 constants={"w": w, "d": np.array([[-1.0], [1.0]], np.float32)})


def feeds(count=16):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def test_a_network_that_keeps_its_accuracy_says_so(tmp_path):
    built, found = compiled(tmp_path, net(1.0), feeds())
    assert found["y"] > 25 and not [n for n in built.notes if "noisy" in n]


def test_a_network_that_loses_it_is_noted(tmp_path):
    """The difference of two nearly equal codes: nothing but noise, and nobody was told."""
    built, found = compiled(tmp_path, net(1000.0), feeds())
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


def test_made_up_samples_say_nothing(tmp_path):
    built, found = compiled(tmp_path, net(1000.0), None)
    assert found == {} and not [n for n in built.notes if "noisy" in n]


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
        constants={"b": 300 * rng.standard_normal((8, 4)).astype(np.float32),
                   "w": np.concatenate([w, w * 1.001], 1), "d": np.array([[-1.0], [1.0]], np.float32)})
    built, found = compiled(tmp_path, made, feeds())
    assert found["y"] < 10 and [n for n in built.notes if "output 'y' is noisy" in n]


def test_the_program_itself_is_measured(tmp_path, monkeypatch):
    """A fault of a pass behind the quantizer, which the quantized graph does not show."""
    zero = HANDLERS["relax.abs"], HANDLERS["relax.negative"]
    monkeypatch.setitem(HANDLERS, "relax.tanh", lambda r, call, args: zero[1](r, call, [zero[0](r, call, args)]))
    built, found = compiled(tmp_path, model(("Tanh", ["x"], ["y"], {}), inputs={"x": [1, 8]}), feeds())
    assert found["y"] < 5 and [n for n in built.notes if "output 'y' is noisy" in n]
