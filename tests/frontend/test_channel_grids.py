"""Activations with one scale per channel, as NNCF writes them before depthwise convolutions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from qcompile.frontend import normalise
from qcompile.targets.errors import CompileError

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import qdq_models

SCALES = np.array([0.01, 0.02, 0.005, 0.03], np.float32)


def network(depthwise, zeros, dtype="uint8"):
    """Conv, Relu, a residual around a layer whose input has a scale per channel."""
    g = qdq_models.Graph(2)
    x = g.op("Conv", g.data("x", 1, 3, 8, 8), g.weight(4, 3, 1, 1), g.const(g.normal(4)))
    x = g.op("Relu", x)
    grid = g.const(SCALES), g.const(np.asarray(zeros, dtype))
    y = g.op("DequantizeLinear", g.op("QuantizeLinear", x, *grid, axis=1), *grid, axis=1)
    weight = g.weight(4, 1, 3, 3) if depthwise else g.weight(4, 4, 3, 3)
    y = g.op("Conv", y, weight, pads=[1] * 4, group=4 if depthwise else 1)
    return g.model(g.q(g.op("Add", g.q(x), y), 0.05))


@pytest.mark.parametrize("zero, dtype", [(0, "uint8"), (-128, "int8"), (3, "int8")])
@pytest.mark.parametrize("depthwise", [True, False])
def test_scales_per_channel(depthwise, zero, dtype):
    model = network(depthwise, [zero] * 4, dtype)
    plain = normalise(model)
    scales = {i.name: i for i in plain.graph.initializer}
    activations = [n for n in plain.graph.node if n.op_type == "QuantizeLinear"]
    assert all(not scales[n.input[1]].dims for n in activations)
    assert sum(n.op_type == "Mul" for n in plain.graph.node) == (1 if depthwise else 2)
    for feed in qdq_models.random_feeds(model):
        want, ours = (ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (model, plain))
        assert np.abs(want - ours).max() <= 0.05 + 1e-6  # a step of the output
        assert np.mean(want != ours) < 0.01
    # an ordinary convolution reads the products of codes and factors, rounded to 8 bits
    qdq_models.check(model, steps=2 if depthwise else 4, mean=0.1 if depthwise else 0.75)


def test_zero_points_per_channel_are_refused():
    with pytest.raises(CompileError, match="per channel"):
        qdq_models.compiled(network(True, [0, 1, 2, 3]))
