"""Layers in every layout one behind the other: equalisation keeps the float function, and all bits quantize."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from qcompile.backends import backend_for
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.mixed import read_request
from qcompile.pipeline import _quantize
from qcompile.quantizer import QuantizeOptions, load_calibration
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.prepare import prepare
from qcompile.targets import CompileError, get_target
from small_models import model

IMAGES, ROWS = (2, 4, 6), (6, 4)
# op, shape of its weight for an input's shape, attributes, whether the weight comes first
LAYOUTS = {
    "conv": ("Conv", lambda s: (6, s[1], 3), {"pads": [1, 1]}, False),
    "grouped conv": ("Conv", lambda s: (2 * s[1], s[1] // 2, 3), {"pads": [1, 1], "group": 2}, False),
    "transposed": ("ConvTranspose", lambda s: (s[1], 4, 3), {"pads": [1, 1]}, False),
    "grouped transposed": ("ConvTranspose", lambda s: (s[1], 4, 3), {"pads": [1, 1], "group": 2}, False),
    "matmul": ("MatMul", lambda s: (s[-1], 5), {}, False),
    "left": ("MatMul", lambda s: (4, s[-2]), {}, True),
    "batched": ("MatMul", lambda s: (2, s[-1], 5), {}, False),
    "gemm": ("Gemm", lambda s: (s[1], 5), {"alpha": 0.5}, False),
    "gemm transB": ("Gemm", lambda s: (5, s[1]), {"transB": 1}, False),
    "gemm transA": ("Gemm", lambda s: (s[0], 5), {"transA": 1}, False),
}
BIASES = {"no": None, "rank 0": (), "one": (1,), "vector": (-1,), "rank 3": (1, 1, -1)}
COUNTED = {"conv", "grouped conv", "transposed", "grouped transposed", "batched"}  # need the rank of IMAGES


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Their ranges differ from channel to channel, along each axis."""
    value = rng.standard_normal(shape)
    for axis, n in enumerate(shape):
        value *= np.exp(1.5 * rng.standard_normal(n)).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return value.astype(np.float32)


def two_layers(first: str, second: str, bias: str, between: str, shared: bool = False):
    """(model x -> y, shape of x); None where the ranks do not fit."""
    rng = np.random.default_rng(0)
    shape = start = ROWS if "gemm" in first + second else IMAGES
    if shape == ROWS and (first in COUNTED or second in COUNTED):
        return None
    nodes, constants, value = [], {}, "x"
    for k, kind in enumerate((first, second)):
        op, weight, attributes, left = LAYOUTS[kind]
        constants[f"w{k}"] = weights(rng, weight(shape))
        reads = [f"w{k}", value] if left else [value, f"w{k}"]
        nodes.append((op, reads, [f"m{k}"], attributes))
        shape = ort_shape(nodes, constants, start, f"m{k}")
        value = f"m{k}"
        if BIASES[bias] is not None:
            channels = shape[-1] if op in ("MatMul", "Gemm") else shape[1]
            form = [channels if n == -1 else n for n in BIASES[bias]][-len(shape) :]
            if op not in ("MatMul", "Gemm") and form:
                form = [channels, 1]
            constants[f"b{k}"] = weights(rng, tuple(form)) + np.float32(0.1)
            nodes.append(("Add", [value, f"b{k}"], [f"a{k}"], {}))
            value = f"a{k}"
            shape = ort_shape(nodes, constants, start, value)
        if k == 0 and between:
            nodes.append((between, [value], ["h"], {}))
            value = "h"
    nodes.append(("Identity", [value], ["y"], {}))
    outputs = ["y"]
    if shared:
        nodes.append(("Identity", ["w1"], ["z"], {}))
        outputs.append("z")
    return model(*nodes, inputs={"x": list(start)}, outputs=outputs, constants=constants, opset=20), start


def ort_shape(nodes, constants, start, name):
    net = model(*nodes, inputs={"x": list(start)}, outputs=(name,), constants=constants, opset=20)
    session = ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"x": np.zeros(start, np.float32)})[0].shape


def prepared(net) -> Graph:
    graph = Graph(load_model(net))
    normalise_graph(graph, {}, [])
    return graph


def samples_of(shape) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {"x": (rng.standard_normal(shape) * [1, 30, 3, 0.1, 9, 1][: shape[-1]]).astype(np.float32)} for _ in range(4)
    ]


def run(net, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(net.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


PAIRS = list(itertools.product(LAYOUTS, LAYOUTS))


@pytest.mark.parametrize("bias", BIASES)
def test_equalisation_keeps_the_function(bias: str) -> None:
    for k, (first, second) in enumerate(PAIRS):
        made = two_layers(first, second, bias, ("", "Relu", "LeakyRelu", "Gelu")[k % 4], shared=k % 3 == 0)
        if made is None:
            continue
        net, shape = made
        samples, graph = samples_of(shape), prepared(net)
        prepare(graph)
        equalise(graph, Facts(graph), samples)
        want, got = (run(m, samples[0]["x"]) for m in (net, graph.to_model()))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max(), err_msg=f"{first}, {second}")


@pytest.mark.parametrize("bits", [8, 4, "w4a4", "mixed"])
def test_every_layout_quantizes(bits) -> None:
    for k, (first, second) in enumerate(PAIRS):
        made = two_layers(first, second, list(BIASES)[k % 5], ("Relu", "", "Gelu")[k % 3], shared=k % 2 == 0)
        if made is None or (k % 5 != 0 if bits == "mixed" else k % 3 == {8: 0, 4: 1, "w4a4": 2}[bits]):
            continue
        net, shape = made
        samples, graph = samples_of(shape), prepared(net)
        try:
            request = read_request(bits, {"size": 0.9} if bits == "mixed" else (), None)
            data = load_calibration(samples, graph)
            _quantize(graph, data, QuantizeOptions(), request, backend_for(get_target("x86-avx2")), False, [])
        except CompileError as refusal:
            assert "cannot be reached" in str(refusal) or "no layers" in str(refusal), (first, second)
            continue
        want, got = (run(m, samples[0]["x"]) for m in (net, graph.to_model()))
        ratio = 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())
        assert ratio > (15 if bits == 8 else 3), f"{first}, {second}: {ratio:.1f} dB"


def test_where_of_two_numbers_has_codes_of_its_own() -> None:
    net = model(
        ("Greater", ["x", "zero"], ["up"], {}),
        ("Where", ["up", "a", "b"], ["s"], {}),
        ("Transpose", ["s"], ["t"], {"perm": [1, 0]}),
        ("MatMul", ["t", "w"], ["y"], {}),
        inputs={"x": [4, 3]},
        constants={"zero": np.float32(0), "a": np.float32(2), "b": np.float32(-3), "w": np.eye(4, 5, dtype=np.float32)},
    )
    graph, samples = prepared(net), samples_of((4, 3))
    data = load_calibration(samples, graph)
    _quantize(graph, data, QuantizeOptions(), read_request(8, (), None), backend_for(get_target("x86-avx2")), False, [])
    np.testing.assert_allclose(run(graph.to_model(), samples[0]["x"]), run(net, samples[0]["x"]), atol=0.05)
