"""Time to read a model grows with its size, whatever it is made of."""

import importlib
import time
from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.importer import import_onnx
from small_models import model

normalise = importlib.import_module("qcompile.frontend.normalise")  # the package has a function of that name
NODES, SECONDS = 2000, 6.0  # on a slow machine; what grows with the square takes half a minute


def chain(op, **attributes):
    names = ["x", *(f"t{i}" for i in range(NODES - 1)), "y"]
    return model(*[(op, [a], [b], attributes) for a, b in pairwise(names)])


def repeated(block, period, constants):
    """`block(i, source, result)`: the nodes of one of NODES / period blocks."""
    count = NODES // period
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    nodes = [n for i, (a, b) in enumerate(pairwise(names)) for n in block(i, a, b)]
    return model(*nodes, constants=constants, opset=18)


def wide():
    """One tensor with very many readers."""
    constants = {f"c{i}": np.float32(i + 1) for i in range(NODES // 2)}
    products = [("Mul", ["r", name], [f"t{name}"], {}) for name in constants]
    total = ("Sum", [p[2][0] for p in products], ["y"], {})
    return model(("Relu", ["x"], ["r"], {}), *products, total, constants=constants)


def linear(i, a, b):
    statistics = ["one", "zero", "zero", "one"]
    return [
        ("Gemm", [a, "eye", f"b{i}"], [f"g{i}"], {}),
        ("BatchNormalization", [f"g{i}", *statistics], [f"n{i}"], {}),
        ("Sigmoid", [f"n{i}"], [f"s{i}"], {}),
        ("Mul", [f"n{i}", f"s{i}"], [b], {}),
    ]


def layer_norm(i, a, b):
    return [
        ("ReduceMean", [a, "axes"], [f"m{i}"], {}),
        ("Sub", [a, f"m{i}"], [f"d{i}"], {}),
        ("Pow", [f"d{i}", "two"], [f"q{i}"], {}),
        ("ReduceMean", [f"q{i}", "axes"], [f"v{i}"], {}),
        ("Add", [f"v{i}", "eps"], [f"e{i}"], {}),
        ("Sqrt", [f"e{i}"], [f"r{i}"], {}),
        ("Div", [f"d{i}", f"r{i}"], [b], {}),
    ]


def shapes(i, a, b):
    return [
        ("Shape", [a], [f"h{i}"], {}),
        ("Gather", [f"h{i}", "index"], [f"g{i}"], {}),
        ("Unsqueeze", [f"g{i}", "first"], [f"u{i}"], {}),
        ("Concat", [f"u{i}", "rest"], [f"v{i}"], {"axis": 0}),
        ("Reshape", [a, f"v{i}"], [b], {}),
    ]


def constants(i, a, b):
    return [("Constant", [], [f"c{i}"], {"value_floats": [float(i)] * 8}), ("Add", [a, f"c{i}"], [b], {})]


FLOATS = {"one": np.ones(8), "zero": np.zeros(8), "eye": np.eye(8), "two": np.array(2.0), "eps": np.array(1e-5)}
FLOATS = {name: value.astype(np.float32) for name, value in FLOATS.items()}
WHOLE = {"axes": np.array([-1]), "first": np.array([0]), "rest": np.array([-1]), "index": np.array(0)}
BIASES = {f"b{i}": np.ones(8, np.float32) for i in range(NODES // 4)}
VECTORS = {f"c{i}": np.full(8, i + 1, np.float32) for i in range(NODES)}
MODELS = {
    "activations": lambda: chain("Relu"),
    "identities": lambda: chain("Identity"),
    "casts": lambda: chain("Cast", to=1),
    "transposes": lambda: chain("Transpose", perm=[1, 0]),
    "one tensor read by all": wide,
    "initializers": lambda: repeated(lambda i, a, b: [("Add", [a, f"c{i}"], [b], {})], 1, VECTORS),
    "constant nodes": lambda: repeated(constants, 2, {}),
    "shapes": lambda: repeated(shapes, 5, WHOLE),
    "layers, norms and activations": lambda: repeated(linear, 4, FLOATS | BIASES),
    "layer norms": lambda: repeated(layer_norm, 7, FLOATS | WHOLE),
}


@pytest.mark.parametrize("name", MODELS)
def test_reading_takes_time_in_proportion(name: str) -> None:
    net = MODELS[name]()
    begin = time.process_time()
    normalise_graph(Graph(load_model(net)), {}, [])
    assert time.process_time() - begin < SECONDS


def test_a_sum_of_very_many(tmp_path):
    """Its additions would nest deeper than Python does."""
    net = wide()
    x = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    graph = Graph(load_model(net))
    normalise_graph(graph, {}, [])
    assert max(len(n.input) for n in graph.nodes) <= 16
    session = ort.InferenceSession(graph.to_model().SerializeToString())
    want = np.maximum(x, 0) * sum(range(1, NODES // 2 + 1))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-3)
    assert import_onnx(graph.to_model()).outputs == ["y"]


def test_what_is_in_normal_form_is_not_read_again(monkeypatch):
    """A pass that says it changed something, and did not, makes all passes run to their last round."""
    rounds = []
    monkeypatch.setattr(normalise, "PASSES", [*normalise.PASSES, lambda graph: rounds.append(graph.changed)])
    normalise_graph(Graph(load_model(model(("Sum", ["x", "x", "x"], ["y"], {})))), {}, [])
    assert len(rounds) <= 2, rounds
