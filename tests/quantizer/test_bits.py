"""Layers of a network and the bits they get."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import normalise
from qcompile.frontend.graph import Graph
from qcompile.quantizer import LayerBits, bits_json, find_layers, read_bits, stored_bytes, uniform_bits
from qcompile.quantizer.prepare import prepare
from qcompile.targets.errors import CompileError


def graph_of(nodes, inputs, outputs, constants, types=None):
    info = lambda n, s: helper.make_tensor_value_info(n, (types or {}).get(n, TensorProto.FLOAT), s)  # noqa: E731
    made = [helper.make_node(t, i, o, **a) for t, i, o, a in nodes]
    g = helper.make_graph(
        made,
        "bits",
        [info(n, s) for n, s in inputs.items()],
        [info(n, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    graph = Graph(normalise(helper.make_model(g, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)))
    prepare(graph)
    return graph


def conv_graph():
    w = lambda *s: np.random.default_rng(0).standard_normal(s).astype(np.float32)  # noqa: E731
    nodes = [("Conv", ["x", "w0"], ["c0"], {"pads": [1, 1, 1, 1]}), ("Relu", ["c0"], ["r0"], {}),
             ("Conv", ["r0", "w1"], ["c1"], {"pads": [1, 1, 1, 1], "group": 32}),
             ("Conv", ["c1", "w2"], ["c2"], {}), ("Relu", ["c2"], ["r2"], {}),
             ("GlobalAveragePool", ["r2"], ["g"], {}), ("Flatten", ["g"], ["f"], {}),
             ("MatMul", ["f", "w3"], ["y"], {})]  # fmt: skip
    constants = {"w0": w(32, 3, 3, 3), "w1": w(32, 1, 3, 3), "w2": w(64, 32, 1, 1), "w3": w(64, 5)}
    return graph_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, constants)


def language_graph(width=64, words=20000):
    w = lambda *s: np.random.default_rng(0).standard_normal(s).astype(np.float32)  # noqa: E731
    nodes = [("Gather", ["table", "ids"], ["e"], {}), ("MatMul", ["e", "wqkv"], ["p"], {}),
             ("Split", ["p", "parts"], ["q", "k", "v"], {"axis": -1}), ("Add", ["q", "k"], ["s"], {}),
             ("Mul", ["s", "v"], ["m"], {}), ("MatMul", ["m", "w1"], ["h"], {}), ("Relu", ["h"], ["r"], {}),
             ("MatMul", ["r", "w2"], ["y"], {})]  # fmt: skip
    constants = {"table": w(words, width), "wqkv": w(width, 3 * width), "w1": w(width, width), "w2": w(width, 9),
                 "parts": np.array([width] * 3)}  # fmt: skip
    return graph_of(nodes, {"ids": [1, 6]}, {"y": [1, 6, 9]}, constants, {"ids": TensorProto.INT64})


def test_layers_of_a_convolutional_net():
    layers = find_layers(conv_graph())
    assert [x.name for x in layers] == ["c0", "c1", "c2", "y"]
    assert [x.depthwise for x in layers] == [False, True, False, False]
    assert [x.edge for x in layers] == [True, False, False, True]
    assert [x.macs for x in layers] == [32 * 64 * 27, 32 * 64 * 9, 64 * 64 * 32, 5 * 64]
    assert [(x.channels, x.rows, x.inputs) for x in layers] == [(32, 64, 3), (32, 64, 1), (64, 64, 32), (5, 1, 64)]


def test_names_are_stable_and_prepare_is_idempotent():
    first, again = language_graph(), language_graph()
    before = find_layers(first)
    prepare(again)
    prepare(again)
    assert find_layers(again) == before
    assert len({x.name for x in before}) == len(before) == 6, "one projection a part, and the table"
    assert before[0].table and before[0].edge and before[0].macs == 0


def test_uniform_bits_keep_edges_and_depthwise():
    layers, notes = find_layers(conv_graph()), []
    bits = uniform_bits(layers, 4, notes=notes)
    assert {k: b.weights for k, b in bits.items()} == {"c0": 8, "c1": 8, "c2": 4, "y": 8}
    assert len(notes) == 1 and "depthwise" in notes[0]
    bits = uniform_bits(layers, 4, 4, 32, edge=4)
    edge = LayerBits(4, 8, 32)
    assert bits == {"c0": edge, "c1": LayerBits(8, 4), "c2": LayerBits(4, 4, 32), "y": edge}
    assert set(uniform_bits(layers, 8).values()) == {LayerBits()}


def test_large_edges_are_narrowed():
    layers, notes = find_layers(language_graph()), []
    bits = uniform_bits(layers, 4, notes=notes)
    assert bits[layers[0].name] == LayerBits(4, 8, 32) and len(notes) == 1 and "99 %" in notes[0]
    assert bits["y"] == LayerBits()
    stored = sum(stored_bytes(x, bits[x.name]) for x in layers)
    assert stored <= 0.54 * sum(x.count for x in layers)
    assert uniform_bits(layers, 4, edge=8)[layers[0].name] == LayerBits()


def test_bits_files(tmp_path):
    layers = find_layers(conv_graph())
    bits, path = uniform_bits(layers, 4, 4), tmp_path / "bits.json"
    path.write_text(bits_json(bits))
    assert read_bits(path, layers) == bits
    path.write_text(json.dumps({"layers": {"c2": {"weights": 3, "group": 32}}}))
    assert read_bits(path, layers) == {**{x.name: LayerBits() for x in layers}, "c2": LayerBits(3, 8, 32)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": {"c9": {"weights": 4}}}', "no layer 'c9'"),
        ('{"layers": {"c2": {"wights": 4}}}', "layer 'c2' has 'wights'"),
        ('{"layers": {"c2": {"weights": 5}}}', "weights of layer 'c2' is 5"),
        ('{"layers": {"c2": {"activations": 2}}}', "activations of layer 'c2' is 2"),
        ('{"layers": {"c2": {"group": 16}}}', "group of layer 'c2' is 16"),
        ('{"layers": {"c2": 4}}', "layer 'c2' has 4"),
        ("[]", "expected"),
        ("{", "no JSON"),
    ],
)
def test_wrong_bits_files(text, message, tmp_path):
    path = tmp_path / "bits.json"
    path.write_text(text)
    with pytest.raises(CompileError, match=message):
        read_bits(path, find_layers(conv_graph()))
    with pytest.raises(CompileError, match="cannot be read"):
        read_bits(tmp_path / "none.json", find_layers(conv_graph()))
