"""Windows over three axes and Fourier transforms: what they become computes what ONNX computes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from qcompile.frontend import load_model, normalise
from test_operators import f32, model_of, same

VOLUME = (2, 4, 7, 6, 5)
WINDOWS = [
    {"kernel_shape": [3, 2, 2]},
    {"kernel_shape": [2, 3, 3], "strides": [2, 1, 2], "pads": [1, 1, 0, 0, 1, 2]},
    {"kernel_shape": [3, 3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2, 2]},
    {"kernel_shape": [3, 2, 3], "ceil_mode": 1, "strides": [2, 2, 2]},
]


@pytest.mark.parametrize("attrs", WINDOWS, ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_over_three_axes(op, attrs):
    model = model_of(op, [VOLUME], **attrs)
    same(model, {"x0": f32(*VOLUME)}, "Conv")
    if op == "AveragePool" and "pads" in attrs:
        same(model_of(op, [VOLUME], **attrs, count_include_pad=1), {"x0": f32(*VOLUME)}, "Conv")


@pytest.mark.parametrize(
    "channels, attrs",
    [
        (4, {}),
        (2, {"group": 2, "strides": [2, 1, 1], "pads": [1, 0, 1, 1, 1, 0]}),
        (4, {"dilations": [2, 1, 2], "pads": [2, 1, 0, 1, 0, 2]}),
        (4, {"auto_pad": "SAME_LOWER"}),
    ],
)
def test_convolutions_over_three_axes(channels, attrs):
    model = model_of("Conv", [VOLUME], [f32(6, channels, 3, 2, 2), f32(6)], **attrs)
    normal = normalise(load_model(model))
    assert all(len(t.dims) == 4 for t in normal.graph.initializer if t.name.endswith("flat") and len(t.dims) > 3)
    feed = {"x0": f32(*VOLUME)}
    results = [ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (normal, model)]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape, constants, attrs",
    [
        ((2, 10, 1), [None, np.array(1)], {}),
        ((2, 10, 2), [np.array(12), np.array(1)], {"inverse": 1}),
        ((2, 10, 1), [np.array(7), np.array(1)], {"onesided": 1}),
        ((3, 9, 4, 2), [None, np.array(1)], {}),
        ((3, 9, 4, 2), [np.array(4), np.array(-2)], {"inverse": 1}),
    ],
)
def test_fourier_transforms(shape, constants, attrs):
    model = model_of("DFT", [shape], constants, opset=20, **attrs)
    feed = {"x0": f32(*shape)}
    normal = normalise(load_model(model))
    assert "DFT" not in {n.op_type for n in normal.graph.node}
    (got,) = ort.InferenceSession(normal.SerializeToString()).run(None, feed)
    (want,) = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, np.hanning(16).astype(np.float32)])
def test_short_time_fourier_transforms(window):
    constants = [np.array(5), window, np.array(16)]
    model = model_of("STFT", [(2, 60, 1)], constants, opset=17)
    same(model, {"x0": f32(2, 60, 1)}, "STFT")


@pytest.mark.parametrize(
    "groups, attrs",
    [
        (1, {}),
        (2, {"strides": [2, 1, 3], "pads": [1, 0, 1, 0, 1, 0], "output_padding": [1, 0, 2]}),
        (1, {"strides": [3, 2, 1], "dilations": [2, 1, 2]}),
        (1, {"strides": [2, 2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_transposed_convolutions_over_three_axes(groups, attrs):
    model = model_of("ConvTranspose", [VOLUME], [f32(4, 3, 3, 2, 2), f32(3 * groups)], group=groups, **attrs)
    feed = {"x0": f32(*VOLUME)}
    normal = normalise(load_model(model))
    assert all(len(v.type.tensor_type.shape.dim) == 4 for v in normal.graph.value_info if v.name.endswith("_images"))
    results = [ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (normal, model)]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [2, 3], "p": 1, "strides": [2, 1], "pads": [1, 0, 0, 2]},
        {"kernel_shape": [2, 2], "dilations": [2, 3]},
    ],
    ids=str,
)
def test_lp_pools(attrs):
    same(model_of("LpPool", [(2, 3, 9, 8)], **attrs), {"x0": f32(2, 3, 9, 8)}, "LpPool")


@pytest.mark.parametrize(
    "shape, attrs",
    [
        ((2, 3, 9, 8), {"kernel_shape": [2, 3], "dilations": [3, 2]}),
        ((2, 3, 9, 8), {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 2, 0, 1], "strides": [2, 1]}),
        ((2, 3, 9, 8), {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ((1, 2, 11), {"kernel_shape": [3], "dilations": [2], "strides": [3], "ceil_mode": 1}),
        (VOLUME, {"kernel_shape": [2, 2, 2], "dilations": [3, 2, 1], "pads": [1, 0, 1, 0, 1, 0]}),
    ],
    ids=str,
)
def test_dilated_averages(shape, attrs):
    model = model_of("AveragePool", [shape], opset=21, **attrs)
    feed, normal = {"x0": f32(*shape)}, normalise(load_model(model))
    assert not any(
        a.name == "dilations" and set(a.ints) != {1}
        for n in normal.graph.node
        for a in n.attribute
        if n.op_type == "AveragePool"
    )
    (got,) = ort.InferenceSession(normal.SerializeToString()).run(None, feed)
    (want,) = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "channels, block, image, attrs",
    [
        (2, [2, 3], [5, 6], {}),
        (1, [2, 2], [6, 7], {"strides": [2, 3], "pads": [1, 0, 1, 2]}),
        (2, [2, 2], [7, 5], {"dilations": [2, 1], "strides": [1, 2]}),
    ],
)
def test_columns_to_images(channels, block, image, attrs):
    pads, strides, dilations = (
        attrs.get(k, d) for k, d in (("pads", [0] * 4), ("strides", [1, 1]), ("dilations", [1, 1]))
    )
    count = np.prod(
        [(image[i] + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(2)]
    )
    shape = (2, channels * int(np.prod(block)), int(count))
    same(model_of("Col2Im", [shape], [np.array(image), np.array(block)], **attrs), {"x0": f32(*shape)}, "Col2Im")
