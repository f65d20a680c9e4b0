"""Floats between the Q/DQ pairs of a partly quantized model: 16 bits with ranges from samples, or a word without."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.quantizer import QuantizeOptions, load_calibration
from qcompile.quantizer.islands import islands, quantize_islands

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import qdq_models

WIDTH, WIDE = 32, 64


def products(blocks=3):
    """Blocks of LayerNormalization, MatMul, Gelu, MatMul and residual Add, of which the MatMuls' operands are
    quantized: what tools write that quantize products only."""
    g = qdq_models.Graph(5)
    x = g.data("x", 1, 6, WIDTH)
    for _ in range(blocks):
        y = g.op("LayerNormalization", x, g.const(np.ones(WIDTH, np.float32)), g.const(g.normal(WIDTH) * 0.1))
        y = g.op("Add", g.op("MatMul", g.q(y, 0.03), g.weight(WIDTH, WIDE, axis=1)), g.const(g.normal(WIDE)))
        y = g.op("MatMul", g.q(g.op("Gelu", y), 0.06), g.weight(WIDE, WIDTH, axis=1))
        x = g.op("Add", x, y)
    return g.model(x)


def attention():
    """Softmax, its mask and the scores in float between quantized products."""
    g = qdq_models.Graph(6)
    x = g.data("x", 1, 12, WIDTH)
    q, k, v = (g.op("MatMul", x, g.weight(WIDTH, WIDTH, axis=1)) for _ in range(3))
    scores = g.op("MatMul", g.q(q, 0.03), g.op("Transpose", g.q(k, 0.03), perm=[0, 2, 1]))
    weights = g.op("Softmax", g.op("Mul", scores, g.const(np.float32(0.1))))
    y = g.op("MatMul", g.q(weights, 1 / 255, -128), g.q(v, 0.03))
    return g.model(g.op("LayerNormalization", g.op("Add", y, x), g.const(np.ones(WIDTH, np.float32))))


def elementwise():
    """Float arithmetic and functions between two quantized convolutions, far smaller than what is possible."""
    g = qdq_models.Graph(7)
    y = g.op("Conv", g.data("x", 1, 8, 6, 6), g.weight(8, 8, 3, 3), pads=[1] * 4)
    y = g.op("Mul", g.op("Sigmoid", y), g.op("Tanh", g.op("Mul", y, g.const(np.float32(0.1)))))
    y = g.op("Sqrt", g.op("Add", g.op("Mul", y, y), g.const(np.float32(0.01))))
    return g.model(g.op("Conv", g.q(y, 0.005, -128), g.weight(4, 8, 1, 1)))


MODELS = {"products": products, "attention": attention, "elementwise": elementwise}


def feeds(model, count, seed):
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("name", MODELS)
def test_islands_lie_on_grids_of_samples(tmp_path, name):
    model = MODELS[name]()
    built = qcompile.compile(model, calibration=feeds(model, 8, 0), output=tmp_path, name="net")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    loaded, session = qcompile.load(built.path), ort.InferenceSession(model.SerializeToString(), options)
    tests = feeds(model, 4, 1)
    want = np.stack([session.run(None, f)[0] for f in tests])
    got = np.stack([loaded.run(f)[model.graph.output[0].name] for f in tests])
    ratio = 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())
    assert ratio > 30, f"{ratio:.1f} dB beside ONNX Runtime's run of the file"
    assert min(built.manifest["agreement_db"].values()) > 30
    assert not any("not used" in n for n in built.notes)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_file_quantizes_stays(name):
    model = MODELS[name]()
    graph = Graph(load_model(model))
    normalise_graph(graph, {}, [])
    before = {n.output[0]: [graph.constants.get(i) for i in n.input] for n in graph.nodes if "Linear" in n.op_type}
    made = quantize_islands(graph, load_calibration(feeds(model, 8, 0), graph), QuantizeOptions(), [])
    after = {n.output[0]: [graph.constants.get(i) for i in n.input] for n in graph.nodes if "Linear" in n.op_type}
    assert made and len(after) > len(before)
    for tensor, constants in before.items():
        for a, b in zip(constants, after[tensor]):
            np.testing.assert_array_equal(a, b, err_msg=tensor)
    assert islands(graph) == [], "what has a grid now is no island"


def test_without_samples_a_note_names_them(tmp_path):
    built = qcompile.compile(products(1), output=tmp_path, name="net")
    assert any("are floats" in n and "--calib" in n for n in built.notes), built.notes


def test_a_model_that_is_quantized_throughout_has_none():
    g = qdq_models.Graph()
    y = g.op("Relu", g.op("Conv", g.data("x", 1, 8, 6, 6), g.weight(8, 8, 3, 3)))
    model = g.model(g.q(g.op("Add", g.q(y), g.q(g.op("MaxPool", g.q(y), kernel_shape=[1, 1])))))
    graph = Graph(load_model(model))
    normalise_graph(graph, {}, [])
    assert islands(graph) == []


def test_wide_activations_of_products_are_measured(tmp_path):
    """16 bits in front of products: rounded to 8 by the range of the samples, not by that of all 16 bits, and told."""
    g = qdq_models.Graph(8)
    x = g.data("x", 1, 6, WIDTH, scale=2**-11, dtype="int16")
    y = g.op("Relu", g.op("MatMul", x, g.weight(WIDTH, WIDE, axis=1)))
    y = g.q(y, 0.01, dtype="int16")  # up to 327; a few are seen
    model = g.model(g.q(g.op("MatMul", y, g.weight(WIDE, 8, axis=1)), 0.01, dtype="int16"))
    built = qcompile.compile(model, calibration=feeds(model, 8, 0), output=tmp_path, name="net")
    assert sum("16-bit input" in n and "rounded to 8 bits" in n for n in built.notes) == 2, built.notes
    assert 35 < built.manifest["agreement_db"][model.graph.output[0].name] < 99
