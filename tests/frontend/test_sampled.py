"""RoiAlign and DeformConv: what they become computes what ONNX computes, in floats and in integers."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from accuracy import decibels, program_of, quantized, stacked
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from qcompile.frontend import normalise
from qcompile.targets.errors import CompileError
from small_models import model


def smooth(rng, *shape):
    x = rng.standard_normal(shape)
    for axis in (2, 3):
        x = x + np.roll(x, 1, axis)
    return x.astype(np.float32)


def beside_floats(made, samples, want, at_least):
    """The normal form equals `want` of each sample; the integer program is `at_least` dB near."""
    normal = normalise(made)
    session = ort.InferenceSession(normal.SerializeToString())
    for sample, exact in zip(samples, want):
        np.testing.assert_allclose(session.run(None, sample)[0], exact, rtol=1e-3, atol=1e-3)
    floats, got = stacked(normal, program_of(quantized(made, samples)), samples)
    assert decibels(floats["y0"], got["y0"]) > at_least


@pytest.mark.parametrize(
    "groups, parts, attrs, more",
    [
        (1, 1, {}, 0),
        (2, 1, {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}, 1),
        (1, 2, {"pads": [1, 1, 1, 1]}, 2),
        (4, 4, {"strides": [1, 2], "pads": [0, 2, 1, 0]}, 2),
    ],
)
def test_deformable_convolutions(groups, parts, attrs, more):
    """more: a bias too, and a mask too."""
    rng = np.random.default_rng([groups, parts])
    x, weights = (2, 4, 8, 9), rng.standard_normal((8, 4 // groups, 3, 2)).astype(np.float32)
    pads, strides, dilations = (attrs.get(n, d) for n, d in (("pads", [0] * 4), ("strides", [1] * 2),
                                                             ("dilations", [1] * 2)))  # fmt: skip
    out = [
        (x[2 + i] + pads[i] + pads[i + 2] - dilations[i] * (weights.shape[2 + i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    ]
    shapes = {"x": list(x), "o": [2, parts * 12, *out]} | ({"m": [2, parts * 6, *out]} if more > 1 else {})
    names = ["x", "w", "o", *(["b"] if more else []), *(["m"] if more > 1 else [])]
    bias = {"b": rng.standard_normal(8).astype(np.float32)} if more else {}
    made = model(
        ("DeformConv", names, ["y0"], {"group": groups, "offset_group": parts, **attrs}),
        inputs=shapes,
        outputs=("y0",),
        constants={"w": weights} | bias,
        opset=19,
    )
    samples = [
        {"x": smooth(rng, *x), "o": rng.uniform(-3, 3, shapes["o"]).astype(np.float32)}
        | ({"m": rng.uniform(0, 1, shapes["m"]).astype(np.float32)} if more > 1 else {})
        for _ in range(4)
    ]
    reference = ReferenceEvaluator(made)
    beside_floats(made, samples, [reference.run(None, s)[0] for s in samples], 28)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("opset, attrs", [(10, {}), (16, {}), (16, {"coordinate_transformation_mode": "half_pixel"})])
def test_regions(images, opset, attrs):
    rng = np.random.default_rng([images, opset])
    attrs = {"output_height": 3, "output_width": 4, "sampling_ratio": 2, "spatial_scale": 0.5, **attrs}
    numbers = rng.integers(0, images, 5)
    made = model(
        ("RoiAlign", ["x", "rois", "numbers"], ["y0"], attrs),
        inputs={"x": [images, 3, 12, 10], "rois": [5, 4]},
        outputs=("y0",),
        constants={"numbers": numbers},
        opset=opset,
    )
    samples = []
    for _ in range(4):
        corner = rng.uniform(-4, 14, (5, 2))  # some more than a pixel outside
        rois = np.concatenate([corner, corner + rng.uniform(0.5, 12, (5, 2))], 1)
        samples.append({"x": smooth(rng, images, 3, 12, 10), "rois": rois.astype(np.float32)})
    session = ort.InferenceSession(made.SerializeToString())
    beside_floats(made, samples, [session.run(None, s)[0] for s in samples], 28)


@pytest.mark.parametrize(
    "attrs, said", [({}, "a sampling_ratio above 0"), ({"mode": "max", "sampling_ratio": 2}, "with mode avg")]
)
def test_regions_without_a_fixed_number_of_samples_are_refused(attrs, said, tmp_path):
    made = model(
        ("RoiAlign", ["x", "rois", "numbers"], ["y"], attrs),
        inputs={"x": [1, 2, 8, 8], "rois": [3, 4], "numbers": [3]},
        dtypes={"numbers": TensorProto.INT64},
    )
    with pytest.raises(CompileError, match=f"RoiAlign 'the_y'.*{said}"):
        qcompile.compile(made, output=tmp_path, name="n")


@pytest.mark.parametrize(
    "offsets, attrs, said",
    [
        ([1, 16, 7, 7], {}, r"input 'o' has shape \[1, 16, 7, 7\], not \[1, 8, 7, 7\]"),
        ([1, 8, 7, 7], {"offset_group": 3}, "'offset_group' is 3, which does not divide"),
        ([1, 8, 7, 7], {"group": 3}, "'group' is 3"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets, attrs, said, tmp_path):
    made = model(
        ("DeformConv", ["x", "w", "o"], ["y"], attrs),
        inputs={"x": [1, 4, 8, 8], "o": offsets},
        constants={"w": np.zeros((8, 4, 2, 2), np.float32)},
        opset=19,
    )
    with pytest.raises(CompileError, match=f"DeformConv 'the_y'.*{said}"):
        qcompile.compile(made, output=tmp_path, name="n")
