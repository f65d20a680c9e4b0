"""Large weights: looked at in blocks, lent to ONNX Runtime where they are, and never copied more often than needed."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer import equalise, weights
from qcompile.quantizer.collect import observe


def dense(*sizes, seed=0):
    """MatMul and Relu, one after the other, with weights [sizes[i], sizes[i + 1]]."""
    rng, nodes, constants, name = np.random.default_rng(seed), [], [], "x"
    for i, (k, n) in enumerate(pairwise(sizes)):
        constants.append(numpy_helper.from_array((rng.standard_normal((k, n)) / k**0.5).astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"]),
            helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
        ]
        name = f"r{i}"
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", sizes[0]), (name, sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", info[:1], info[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_observed_tensors_are_those_of_the_model():
    model, x = dense(64, 96, 32), {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}
    graph, seen = Graph(model), {}
    graph.shapes |= {"m0": (1, 96), "r0": (1, 96)}
    graph.dtypes |= {"m0": TensorProto.FLOAT, "r0": TensorProto.FLOAT}
    w = graph.constants["w0"]
    graph.constants["w0"] = np.asfortranarray(w)  # a view that is not contiguous, as transposed or split weights are
    observe(graph, ["x", "m0", "r0", "r1"], [x], seen.__setitem__, "")
    np.testing.assert_allclose(seen["m0"], x["x"] @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen["r1"], ort.InferenceSession(model.SerializeToString()).run(None, x)[0], atol=1e-5)


def test_external_constants_are_declared_and_not_carried():
    graph = Graph(dense(64, 96, 32))
    model = graph.to_model(external=["w0"])
    declared, carried = model.graph.initializer
    assert declared.data_location == TensorProto.EXTERNAL and not declared.HasField("raw_data")
    assert list(declared.dims) == [64, 96] and declared.data_type == TensorProto.FLOAT
    np.testing.assert_array_equal(numpy_helper.to_array(carried), graph.constants["w1"])


MEMORY = """
import sys
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.quantizer import quantize_graph
import numpy as np

def memory(kind):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kind))

before, path, size = memory("VmRSS"), sys.argv[1], int(sys.argv[2])
graph = Graph(load_model(path))
normalise_graph(graph)
quantize_graph(graph, [{"x": np.ones((1, size), np.float32)}])
graph.to_model()
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells its memory otherwise")
def test_memory_stays_below_three_times_the_weights(tmp_path):
    size, file = 2048, tmp_path / "dense.onnx"
    onnx.save(dense(*[size] * 6), str(file))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(file), str(size)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 3 * file.stat().st_size


def predicted_error(w, low, high, square, s):
    """The noise model of equalisation, term by term, for weights [groups, outputs, inputs, taps]."""
    step = ((high / s).max() - (low / s).min()) / 255
    scaled = w * s.reshape(w.shape[0], 1, w.shape[2], 1)
    energy = (square / s**2).reshape(w.shape[0], 1, w.shape[2], 1)
    weight_step = np.abs(scaled).max((2, 3), keepdims=True) / 127
    noise = step**2 / 12 * (scaled**2).sum() + (weight_step**2 / 12 * energy * w.shape[3]).sum()
    return noise / (scaled**2 * energy).sum()


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "order"),
    [
        ("Conv", {"group": 2}, (6, 4, 3, 3), None),
        ("MatMul", {}, (8, 30), (1, 0)),
        ("Gemm", {"transB": 1}, (30, 8), (0, 1)),
    ],
)
@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_predicted_errors_do_not_depend_on_blocks(op, attributes, shape, order, block, monkeypatch):
    monkeypatch.setattr(equalise, "BLOCK", block)
    rng = np.random.default_rng(2)
    w = rng.standard_normal(shape).astype(np.float32)
    graph = Graph(onnx.ModelProto())
    graph.constants["w"] = w
    layer = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    columns = (w.reshape(2, 3, 4, 9) if order is None else w.transpose(order)[None, :, :, None]).astype(np.float64)
    low, high, square = -rng.random(8), rng.random(8), rng.random(8)
    candidates = [np.ones(8), *rng.uniform(0.2, 3, (4, 8))]
    site = equalise.Site("x", 1, [layer], low, high)
    errors = equalise._errors(site, [equalise.Columns.of(graph, layer)], square, candidates)
    np.testing.assert_allclose(errors, [predicted_error(columns, low, high, square, s) for s in candidates], rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 3, 3), 0), ((5, 6, 3, 3), 1), ((40, 12), 1), ((7, 9), None)])
def test_weight_scales_do_not_depend_on_blocks(shape, axis, monkeypatch):
    rng = np.random.default_rng(3)
    w = rng.uniform(-1, 1, shape).astype(np.float32)
    share = np.ones([1 if i == axis else n for i, n in enumerate(shape)])
    first = (slice(None),) * (axis == 0) + (0,)  # an input of large weights that hardly ever speaks
    w[first] = 1.4
    share[first] = 1e-6
    whole = weights.quantize_weight(w, axis, share)
    monkeypatch.setattr(weights, "BLOCK", 50)
    parts = weights.quantize_weight(w, axis, share)
    np.testing.assert_array_equal(whole.scale, parts.scale)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    rest = tuple(i for i in range(w.ndim) if i != axis)
    peak = np.abs(w).max(rest).astype(np.float64)
    error = lambda scale: (share * (w - np.clip(np.rint(w / scale), -127, 127) * scale) ** 2).sum(rest)  # noqa: E731
    along = (lambda a: a) if axis is None else (lambda a: a.reshape([-1 if i == axis else 1 for i in range(w.ndim)]))
    assert (error(along(whole.scale)) <= error(along(peak / 127)) * 1.0001).all()
    assert (whole.scale < 0.99 * peak / 127).any(), "a narrower range serves the others better"
