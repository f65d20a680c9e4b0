"""Synthetic calibration: distilled from BatchNorm's statistics, estimated from folded weights, and noise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend.graph import Graph
from qcompile.frontend.normalise import normalise_graph
from qcompile.quantizer import load_calibration
from qcompile.quantizer.quantize import quantize_graph
from qcompile.quantizer.synthetic import find_targets

torch = pytest.importorskip("torch")
DIGITS = Path(__file__).parents[2] / "examples" / "demo" / "digits.npz"


def blobs(rng, count):
    """Raw images 0 to 255, [count, 1, 16, 16], of four classes: oriented waves of random phase and brightness."""
    labels = np.arange(count) % 4
    y, x = np.mgrid[:16, :16]
    along = np.stack([x, y, x + y, x - y])[labels]
    phase, bright, contrast = (rng.uniform(a, b, (count, 1, 1)) for a, b in ((0, 6.3), (90, 150), (20, 60)))
    wave = bright + contrast * np.sin(along * 0.9 + phase) + 25 * rng.standard_normal(along.shape)
    return np.clip(wave, 0, 255)[:, None].astype(np.float32), labels


@pytest.fixture(scope="module")
def trained():
    """(a small trained convolutional net with BatchNorm, test images, their classes)"""
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    x, labels = map(torch.tensor, blobs(np.random.default_rng(0), 1024))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for i in range(120):
        some = slice(i % 16 * 64, i % 16 * 64 + 64)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[some]), labels[some]).backward()
        optimiser.step()
    return net.eval(), *blobs(np.random.default_rng(1), 400)


def onnx_of(net, folded):
    """The net as ONNX, with BatchNormalization nodes or with them folded into the convolutions' weights."""
    nodes, constants, x = [], {}, "x"
    layers = list(net)
    for i, layer in enumerate(layers):
        y = f"t{i}" if i < len(layers) - 1 else "y"
        values = {k: v.detach().numpy() for k, v in layer.state_dict().items()}
        if isinstance(layer, torch.nn.Conv2d):
            weight, names = values["weight"], [f"w{i}"]
            if folded:
                norm = layers[i + 1]
                factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
                weight = weight * factor.reshape(-1, 1, 1, 1)
                constants[f"b{i}"] = norm.bias.detach().numpy() - norm.running_mean.numpy() * factor
                names.append(f"b{i}")
            constants[f"w{i}"] = weight
            attributes = {"pads": list(layer.padding) * 2, "strides": list(layer.stride), "group": layer.groups}
            nodes.append(helper.make_node("Conv", [x, *names], [y], **attributes))
        elif isinstance(layer, torch.nn.BatchNorm2d):
            if folded:
                continue
            names = [f"{k}{i}" for k in ("weight", "bias", "running_mean", "running_var")]
            constants |= {n: values[n.removesuffix(str(i))] for n in names}
            nodes.append(helper.make_node("BatchNormalization", [x, *names], [y]))
        elif isinstance(layer, torch.nn.Linear):
            constants |= {"w": values["weight"], "b": values["bias"]}
            nodes.append(helper.make_node("Gemm", [x, "w", "b"], [y], transB=1))
        elif isinstance(layer, torch.nn.ReLU6):
            constants |= {"low": np.float32(0), "high": np.float32(6)}
            nodes.append(helper.make_node("Clip", [x, "low", "high"], [y]))
        else:
            kind = {"ReLU": "Relu", "AdaptiveAvgPool2d": "GlobalAveragePool", "Flatten": "Flatten"}
            nodes.append(helper.make_node(kind[type(layer).__name__], [x], [y]))
        x = y
    return model_of(nodes, constants, [1, 1, 16, 16], [1, 4])


def model_of(nodes, constants, x, y, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def normalised(model):
    graph = Graph(model)
    normalise_graph(graph)
    return graph


def accuracy(model, x, labels):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.mean([session.run(None, {"x": v[None]})[0].argmax() == k for v, k in zip(x, labels)])


def quantized(model, calibration):
    graph, notes = normalised(model), []
    quantize_graph(graph, calibration, notes=notes)
    return graph.to_model(), notes


@pytest.mark.parametrize(("folded", "note"), [(False, "BatchNormalization"), (True, "weights and biases")])
def test_synthetic_int8_is_as_good_as_calibrated(trained, folded, note):
    net, x, labels = trained
    model = onnx_of(net, folded)
    calibrated, _ = quantized(model, [{"x": v[None]} for v in x[::20]])
    synthetic, notes = quantized(model, None)
    scores = [accuracy(m, x, labels) for m in (model, calibrated, synthetic)]
    assert scores[0] > 0.95 and scores[2] >= scores[1] - 0.01, f"float, calibrated, synthetic INT8: {scores}"
    assert any("synthetic" in n and note in n for n in notes), notes


def test_recorded_statistics_are_those_of_the_folded_layers(trained):
    net, _, _ = trained
    graph = normalised(onnx_of(net, False))
    assert not any(n.op_type in ("BatchNormalization", "Mul") for n in graph.nodes)
    targets = find_targets(graph)
    norms = [m for m in net if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(targets) == len(norms) and all(t.known for t in targets)
    for target, norm in zip(targets, norms):
        assert graph.producer(target.tensor, "Conv") is not None
        np.testing.assert_allclose(target.mean, norm.bias.detach(), rtol=1e-5)
        np.testing.assert_allclose(target.std, norm.weight.detach().abs(), rtol=1e-5)


def test_a_factor_behind_batch_norm_scales_its_statistics():
    rng = np.random.default_rng(0)
    constants = {k: rng.uniform(0.5, 2, 4).astype(np.float32) for k in ("gamma", "beta", "mean", "var")}
    constants |= {"w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32), "two": np.float32(-2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    graph = normalised(model_of(nodes, constants, [1, 2, 6, 6], [1, 4, 4, 4]))
    (target,) = find_targets(graph)
    np.testing.assert_allclose(target.mean, -2 * constants["beta"], rtol=1e-5)
    np.testing.assert_allclose(target.std, 2 * constants["gamma"], rtol=1e-5)


def test_batch_norm_of_the_inputs_tells_their_statistics():
    rng = np.random.default_rng(0)
    constants = {"gamma": np.ones(2), "beta": np.zeros(2), "mean": np.array([100, -5]), "var": np.array([900, 4])}
    constants = {k: v.astype(np.float32) for k, v in constants.items()}
    constants |= {"w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = normalised(model_of(nodes, constants, [1, 2, 12, 12], [1, 4, 10, 10]))
    made = np.stack([s["x"] for s in load_calibration(None, graph)])
    np.testing.assert_allclose(made.mean((0, 1, 3, 4)), constants["mean"], atol=1)
    np.testing.assert_allclose(made.std((0, 1, 3, 4)), np.sqrt(constants["var"]), rtol=0.1)


def test_synthetic_samples_are_deterministic(trained):
    first, second = (load_calibration(None, normalised(onnx_of(trained[0], False))).samples for _ in range(2))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second))


def test_folded_weights_tell_the_magnitude_of_raw_inputs(trained):
    net, x, _ = trained
    made = np.stack([s["x"] for s in load_calibration(None, normalised(onnx_of(net, True)))])
    assert 0.3 < made.std() / x.std() < 3, f"deviation {made.std():.1f}, of the data {x.std():.1f}"


def test_unknown_operators_and_integer_inputs_fall_back_to_noise():
    rng = np.random.default_rng(0)
    w = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "b": np.ones(8, np.float32)}
    nodes = [helper.make_node("Sin", ["x"], ["s"]), helper.make_node("Conv", ["s", "w", "b"], ["y"])]
    data = load_calibration(None, normalised(model_of(nodes, w, [1, 3, 8, 8], [1, 8, 6, 6])))
    assert len(data) == 16 and "noise" in data.notes[0]
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    table = {"table": rng.standard_normal((5, 4)).astype(np.float32)}
    data = load_calibration(None, normalised(model_of(nodes, table, [1, 3], [1, 3, 4], TensorProto.INT64)))
    assert max(s["x"].max() for s in data) < 5


def test_missing_torch_falls_back_to_noise(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    graph = normalised(onnx_of(trained[0], False))
    assert "torch is not installed" in load_calibration(None, graph).notes[0]


@pytest.mark.skipif(not DIGITS.exists(), reason="the demo's digits are not here")
def test_demo_model_gets_finite_samples():
    graph = normalised(onnx.load(DIGITS.with_name("vit_mnist.onnx")))
    assert all(np.isfinite(v).all() for s in load_calibration(None, graph) for v in s.values())
