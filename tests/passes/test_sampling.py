"""GridSample on integers beside ONNX Runtime, by constant and by computed grids."""

import numpy as np
import pytest
import qcompile
from accuracy import both, decibels
from qcompile.targets.errors import CompileError
from small_models import model


def net(shape, grid, modes, computed, opset=20):
    """Images sampled at `grid`, which is an input where it is computed."""
    inputs = {"x": list(shape)} | ({"g": list(grid.shape)} if computed else {})
    return model(
        ("GridSample", ["x", "g"], ["y"], modes),
        inputs=inputs,
        constants={} if computed else {"g": grid},
        opset=opset,
    )


def samples_of(rng, shape, grid, computed):
    """Smooth images: what a position is off by counts as it does in pictures."""
    made = []
    for _ in range(6):
        x = rng.standard_normal(shape).astype(np.float32)
        for axis in range(2, len(shape)):
            x = (x + np.roll(x, 1, axis)) / 2
        made.append({"x": x} | ({"g": grid + np.float32(0.01) * rng.standard_normal()} if computed else {}))
    return [{k: v.astype(np.float32) for k, v in s.items()} for s in made]


@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_images(mode, padding, computed):
    rng = np.random.default_rng([len(mode), len(padding)])
    for corners, shape in ((0, (2, 3, 9, 12)), (1, (1, 20, 7, 5))):
        grid = rng.uniform(-1.7, 1.7, (shape[0], 8, 9, 2)).astype(np.float32)
        made = net(shape, grid, {"mode": mode, "padding_mode": padding, "align_corners": corners}, computed)
        want, got = both(made, samples_of(rng, shape, grid, computed))
        assert decibels(want["y"], got["y"]) > (15 if computed and mode == "nearest" else 32)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_volumes(mode, padding):
    rng = np.random.default_rng(3)
    shape, grid = (1, 2, 4, 5, 6), rng.uniform(-1.3, 1.3, (1, 3, 4, 5, 3)).astype(np.float32)
    for computed in (False, True):
        made = net(shape, grid, {"mode": mode, "padding_mode": padding}, computed)
        want, got = both(made, samples_of(rng, shape, grid, computed))
        assert decibels(want["y"], got["y"]) > (15 if computed and mode == "nearest" else 32)


def test_the_image_itself_is_exact():
    """A grid of all pixels' centres, as AffineGrid makes it of the identity."""
    theta = np.float32([[[1, 0, 0], [0, 1, 0]]])
    made = model(
        ("AffineGrid", ["theta", "size"], ["g"], {}),
        ("GridSample", ["x", "g"], ["y"], {}),
        inputs={"x": [1, 3, 8, 12]},
        constants={"theta": theta, "size": np.array([1, 3, 8, 12])},
        opset=20,
    )
    rng = np.random.default_rng(2)
    samples = [{"x": rng.standard_normal((1, 3, 8, 12)).astype(np.float32)} for _ in range(4)]
    want, got = both(made, samples)
    assert decibels(want["y"], got["y"]) > 40


def test_modes_of_opset_16():
    rng = np.random.default_rng(4)
    grid = rng.uniform(-1, 1, (1, 4, 5, 2)).astype(np.float32)
    for mode in ("bilinear", "bicubic"):
        made = net((1, 3, 8, 6), grid, {"mode": mode}, False, opset=16)
        want, got = both(made, samples_of(rng, (1, 3, 8, 6), grid, False))
        assert decibels(want["y"], got["y"]) > 32


@pytest.mark.parametrize(
    "shapes, attrs, said",
    [
        (([1, 2, 4, 4], [2, 3, 3, 2]), {}, r"has shape \[2, 3, 3, 2\], which is no grid"),
        (([1, 2, 4, 4], [1, 3, 3, 3]), {}, "which is no grid"),
        (([1, 2, 4], [1, 3, 1]), {}, "has rank 3"),
        (([1, 2, 4, 4, 4], [1, 3, 3, 3, 3]), {"mode": "cubic"}, "is cubic"),
        (([1, 2, 4, 4], [1, 3, 3, 2]), {"align_corners": 2}, "'align_corners' is 2"),
    ],
)
def test_what_means_nothing_is_refused(shapes, attrs, said, tmp_path):
    made = model(("GridSample", ["x", "g"], ["y"], attrs), inputs=dict(zip("xg", shapes)), opset=20)
    with pytest.raises(CompileError, match=f"GridSample 'the_y'.*{said}"):
        qcompile.compile(made, output=tmp_path, name="n")
