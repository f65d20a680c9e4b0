"""Resize's weights along an axis against ONNX's reference, in all modes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from qcompile.importer.resampling import Axis, taps

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
SIZES = ((5, 8, 1.7), (8, 5, 0.64), (6, 3, 0.5), (4, 8, 2.0), (7, 1, 0.2), (3, 3, 1.0))
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def reference(x, scale, size, roi, **attrs):
    """By the scale, or by the size where that is given."""
    names = ["x", "roi" if roi is not None else "", "" if size else "scales", *(["sizes"] if size else [])]
    given = {"roi": np.asarray(roi, np.float32)} if roi is not None else {}
    feed = {"x": x, **given, **({"sizes": np.array([size])} if size else {"scales": np.array([scale], np.float32)})}
    node = helper.make_node("Resize", names, ["y"], axes=[0], **attrs)
    inputs = [helper.make_tensor_value_info(n, 7 if n == "sizes" else 1, v.shape) for n, v in feed.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ReferenceEvaluator(model).run(None, feed)[0]


def resized(x, axis, *args):
    numbers, weights = taps(axis, *args)
    return (x[numbers] * weights).sum(0)


@pytest.mark.parametrize("mode", COORDINATES)
def test_every_mode(mode):
    rng = np.random.default_rng(5)
    for size, out, scale in SIZES:
        wanted = None
        if mode in ("pytorch_half_pixel", "align_corners", "tf_crop_and_resize"):
            if mode == "pytorch_half_pixel" and out == 1:
                continue  # ONNX's text and ONNX Runtime take the first element, the reference another
            scale, wanted = out / size, out  # the reference takes size * scale for the number of elements
        x = rng.standard_normal(size).astype(np.float32)
        begin, end = (0.25, 0.875) if mode == "tf_crop_and_resize" else (0.0, 1.0)
        axis = Axis(size, out, scale if wanted else float(np.float32(scale)), begin, end)
        roi = [begin, end] if mode == "tf_crop_and_resize" else None
        for method, antialias, exclude in itertools.product(("linear", "cubic"), (False, True), (False, True)):
            if antialias and (mode != "half_pixel" or scale >= 1):
                continue
            attrs = {
                "mode": method,
                "coordinate_transformation_mode": mode,
                "antialias": int(antialias),
                "exclude_outside": int(exclude),
                "cubic_coeff_a": -0.5,
            }
            want = reference(x, scale, wanted, roi, **attrs)
            got = resized(x, axis, method, mode, "floor", -0.5, antialias, exclude)
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{size} to {out}, {attrs}")
        for nearest in NEAREST:
            attrs = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
            want = reference(x, scale, wanted, roi, **attrs)
            got = resized(x, axis, "nearest", mode, nearest, -0.75, False, False)
            np.testing.assert_allclose(got, want, err_msg=f"{size} to {out}, {attrs}")
