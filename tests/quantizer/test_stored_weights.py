"""Weights that the file has in 8 bits keep their codes, though dynamic quantization hands them on as floats."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from onnx import numpy_helper
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.frontend.blocks import dequantized
from qcompile.pipeline import quantize_graph
from qcompile.quantizer import QuantizeOptions
from qcompile.quantizer.stored import centred_codes, grid_step, stored_weight
from small_models import model

quantization = pytest.importorskip("onnxruntime.quantization")
FORMS = [(t, c, r) for t in ("QInt8", "QUInt8") for c in (False, True) for r in (False, True)]


def network():
    """Convolutions, one depthwise, and products with and without biases; channels of unlike magnitude."""
    rng = np.random.default_rng(3)

    def w(*shape, channel=0):
        spread = np.exp(rng.standard_normal(shape[channel])).reshape(
            [-1 if i == channel else 1 for i in range(len(shape))]
        )
        return (rng.standard_normal(shape) * spread / np.sqrt(np.prod(shape) / shape[channel])).astype(np.float32)

    constants = {"w1": w(8, 3, 3, 3), "w2": w(8, 1, 3, 3), "w3": w(8, 24, channel=1), "w4": w(24, 8, channel=1)}
    constants["b"] = rng.standard_normal(24).astype(np.float32)
    return model(
        ("Conv", ["x", "w1"], ["c1"], {"pads": [1] * 4}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {"pads": [1] * 4, "group": 8}),
        ("Transpose", ["c2"], ["t"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["t", "w3"], ["m3"], {}),
        ("Add", ["m3", "b"], ["a3"], {}),
        ("Relu", ["a3"], ["r3"], {}),
        ("MatMul", ["r3", "w4"], ["y"], {}),
        inputs={"x": [1, 3, 8, 8]},
        outputs=["y"],
        constants=constants,
    )


def samples(count, seed):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def dynamic(tmp_path, kind, per_channel, reduce_range):
    source, path = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    onnx.save(network(), source)
    quantization.quantize_dynamic(
        source, path, weight_type=quantization.QuantType[kind], per_channel=per_channel, reduce_range=reduce_range
    )
    return source, path


def noise(want, got):
    return sum(np.square(w - g).sum() for w, g in zip(want, got))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, per_channel, reduce_range", FORMS)
def test_dynamic_weights_keep_their_codes(tmp_path, kind, per_channel, reduce_range):
    _, path = dynamic(tmp_path, kind, per_channel, reduce_range)
    file = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(path).graph.initializer}
    graph, notes = Graph(load_model(path)), []
    normalise_graph(graph, {}, notes)
    quantize_graph(graph, samples(8, 0), QuantizeOptions(equalise=False), notes)
    got = [dequantized(n, graph.constants) for n in graph.nodes if n.input[0] in graph.constants]
    for name in ("w1", "w2", "w3", "w4"):
        scale, zero = file[f"{name}_scale"], file[f"{name}_zero_point"]
        along = (-1, 1, 1, 1) if name in ("w1", "w2") and scale.size > 1 else scale.shape
        want = (file[f"{name}_quantized"] - zero.reshape(along)) * scale.reshape(along)
        near = [np.abs(g - want).max() / scale.min() for g in got if g.shape == want.shape]
        assert min(near) < 1e-3, f"{name}: {min(near):.3f} of a step from the file's weights"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, per_channel, reduce_range", FORMS)
def test_noise_is_the_file_s_and_that_of_static_activations(tmp_path, kind, per_channel, reduce_range):
    """Weights are rounded once: by the file."""
    source, path = dynamic(tmp_path, kind, per_channel, reduce_range)
    feeds = samples(4, 9)
    want = [ort.InferenceSession(str(source)).run(None, f)[0] for f in feeds]
    graph = Graph(load_model(path))
    normalise_graph(graph, {}, [])
    file = ort.InferenceSession(graph.to_model().SerializeToString())  # the file's weights, activations as floats
    of_weights, ours, of_floats = (
        noise(want, [file.run(None, f)[0] for f in feeds]),
        *(
            noise(want, [run(f)["y"] for f in feeds])
            for p in (path, source)
            for run in [qcompile.load(qcompile.compile(p, calibration=samples(16, 0), output=tmp_path).path).run]
        ),
    )
    assert ours < 1.26 * (of_weights + of_floats), "more than 1 dB above both together"


@pytest.mark.parametrize("low, high", [(-127, 127), (-128, 127), (-3, 252), (-255, 0), (0, 255)])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_codes_are_found_in_floats(low, high, axis):
    rng = np.random.default_rng(7)
    codes = rng.integers(low, high + 1, (6, 9)).astype(np.int64)
    codes[0, 0], codes[5, 8] = low, high
    scale = np.float32(0.013) if axis is None else np.exp(rng.standard_normal(codes.shape[axis])).astype(np.float32)
    along = {None: (), 0: (-1, 1), 1: (1, -1)}[axis]
    weight = (codes * scale.reshape(along)).astype(np.float32)
    found = stored_weight(weight, axis)
    np.testing.assert_allclose(found.dequantized(), weight, rtol=1e-5)
    moved, zero = centred_codes(found)
    shape = along if axis is not None else ()
    moved = moved.astype(np.int64) - zero.astype(np.int64).reshape(shape)
    np.testing.assert_allclose(moved * found.scale.reshape(shape), weight, rtol=1e-5)


def test_other_floats_are_on_no_grid():
    rng = np.random.default_rng(8)
    assert grid_step(rng.standard_normal(9).astype(np.float32)) == 0
    assert stored_weight(rng.standard_normal((16, 9)).astype(np.float32), 0) is None
    assert stored_weight(np.arange(-200, 200, dtype=np.float32).reshape(1, -1), 0) is None  # 9 bits
    coarse = np.arange(-20, 20, dtype=np.float32).reshape(2, -1)
    assert stored_weight(coarse, 0).scale.max() < 0.2  # as fine as fits: biases are rounded to these steps
    assert stored_weight(coarse, 0, np.array([2.0, 2.0])) is None  # a step that is too fine for the bias
