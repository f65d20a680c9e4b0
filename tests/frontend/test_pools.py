"""Pools with ceil_mode and auto_pad: as many windows as ONNX Runtime counts, each over what ONNX says."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from accuracy import both, decibels, float_samples
from onnx import helper
from qcompile.frontend import normalise
from qcompile.targets.errors import CompileError
from test_operators import model_of


def windows(op, size, kernel, strides, pads, dilations):
    """For each axis, for each window, the places of its taps."""
    return [
        np.arange(-(-(s + b + a - d * (k - 1) - 1) // st) + 1)[:, None] * st - b + np.arange(k) * d
        for s, k, st, (b, a), d in zip(size, kernel, strides, pads, dilations)
    ]


def drawn(rng, op, axes, opset):
    """A random pool with ceil_mode that sees some of the image in every window, and the shape of its input."""
    while True:
        size, kernel, strides = (rng.integers(1, high, axes) for high in (10, 4, 5))
        dilations = rng.integers(1, 3, axes) if op != "AveragePool" or opset >= 19 else np.ones(axes, int)
        pads = np.minimum(rng.integers(0, 3, (axes, 2)), kernel[:, None] - 1)
        places = windows(op, size, kernel, strides, pads, dilations)
        counted = [p[p[:, 0] < s] for p, s in zip(places, size)]
        if all(((p >= 0) & (p < s)).any(1).all() and len(p) for p, s in zip(counted, size)) and all(
            s + sum(p) > d * (k - 1) for s, p, d, k in zip(size, pads, dilations, kernel)
        ):
            break
    attrs = {"kernel_shape": kernel.tolist(), "strides": strides.tolist(), "ceil_mode": 1}
    attrs["pads"] = [*pads[:, 0].tolist(), *pads[:, 1].tolist()]
    if op != "AveragePool" or opset >= 19:
        attrs["dilations"] = dilations.tolist()
    if op == "AveragePool":
        attrs["count_include_pad"] = int(rng.integers(2))
    if op == "LpPool":
        attrs["p"] = int(rng.integers(1, 3))
    return (1, 2, *size.tolist()), attrs


def followed(model):
    """The model with another node behind its pool, which reads the pool's shape."""
    model.graph.node[0].output[0] = "pooled"
    model.graph.node.append(helper.make_node("Relu", ["pooled"], ["y0"]))
    return model


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_of_ceil_mode(op, axes):
    rng = np.random.default_rng([axes, len(op)])
    for i in range(60):
        opset = (18, 21, 22)[i % 3]
        shape, attrs = drawn(rng, op, axes, opset)
        model = followed(model_of(op, [shape], opset=opset, **attrs))
        x = rng.standard_normal(shape).astype(np.float32)
        normal = normalise(model)
        want, got = (ort.InferenceSession(m.SerializeToString()).run(None, {"x0": x})[0] for m in (model, normal))
        said = [d.dim_value for d in normal.graph.output[0].type.tensor_type.shape.dim]
        assert (said, got.shape) == (list(want.shape), want.shape), attrs
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(attrs))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_of_ceil_mode_on_integers(op):
    rng = np.random.default_rng(len(op))
    for i in range(12):
        shape, attrs = drawn(rng, op, 1 + i % 3, 19)
        model = followed(model_of(op, [shape], opset=19, **attrs))
        want, got = both(model, float_samples(model, rng))
        assert decibels(want["y0"], got["y0"]) > 25, attrs


@pytest.mark.parametrize("auto, pads", [("SAME_UPPER", [1, 2, 2, 2]), ("SAME_LOWER", [2, 2, 1, 2])])
def test_padding_of_dilated_windows(auto, pads):
    """ONNX Runtime gives a result of another shape for the dilated pool with auto_pad itself."""
    attrs = {"kernel_shape": [3, 3], "dilations": [2, 2], "strides": [2, 1]}
    x = np.random.default_rng(1).standard_normal((1, 2, 8, 7)).astype(np.float32)
    models = [model_of("MaxPool", [x.shape], **given, **attrs) for given in ({"auto_pad": auto}, {"pads": pads})]
    models[0] = normalise(models[0])
    got, want = (ort.InferenceSession(m.SerializeToString()).run(None, {"x0": x})[0] for m in models)
    assert got.shape == (1, 2, 4, 7)
    np.testing.assert_array_equal(got, want)


def test_a_window_that_sees_nothing_but_padding_is_refused(tmp_path):
    model = model_of("MaxPool", [(1, 1, 1)], kernel_shape=[2], dilations=[2], pads=[1, 1])
    with pytest.raises(CompileError, match=r"'the_node'.*'dilations' has a window along axis 2 that sees nothing but"):
        qcompile.compile(model, output=tmp_path, name="n")
