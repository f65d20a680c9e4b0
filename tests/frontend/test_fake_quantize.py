"""Fake quantization as exporters write it becomes Q/DQ pairs with the same meaning."""

from __future__ import annotations

import io
import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model, normalise

RNG = np.random.default_rng(5)


def run(model, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)[0]


def decomposed(scale, zero, low, high, inverse, zero_inside, clip):
    """(clip(round(x / s) + z) - z) * s, in the order that the flags say."""
    numbers = {"s": scale, "r": 1 / np.float32(scale), "z": zero, "low": low, "high": high}
    nodes = [("Mul", ["x", "r"]) if inverse else ("Div", ["x", "s"])]
    inner = [("Round", []), ("Add", ["z"])]
    nodes += (inner[::-1] if zero_inside else inner) if zero else inner[:1]
    nodes += [("Clip", ["low", "high"])] if clip else [("Max", ["low"]), ("Min", ["high"])]
    nodes += [("Sub", ["z"])] if zero else []
    nodes += [("Mul", ["s"])]
    made, name = [], ""
    for k, (op, extra) in enumerate(nodes):
        made.append(helper.make_node(op, ([name] if name else []) + extra, [f"t{k}"]))
        name = f"t{k}"
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(v), k) for k, v in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("inverse, inside, clip", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(
    "zero, low, high, codes", [(0, -8, 7, "int8"), (3, 0, 15, "int8"), (9, 0, 255, "uint8"), (5, 0, 1023, "int16")]
)
def test_decomposed_forms(inverse, inside, clip, zero, low, high, codes):
    model = decomposed(0.25, zero, low, high, inverse, inside, clip)
    normal = normalise(model)
    full = (low, high) in ((-128, 127), (0, 255))
    assert [n.op_type for n in normal.graph.node] == ["Clip"] * (not full) + ["QuantizeLinear", "DequantizeLinear"]
    types = {t.name: numpy_helper.to_array(t).dtype.name for t in normal.graph.initializer}
    assert types[normal.graph.node[-1].input[2]] == codes
    x = 6 * RNG.standard_normal((64, 32)).astype(np.float32)
    np.testing.assert_allclose(run(normal, {"x": x}), run(model, {"x": x}), atol=1e-6)


@pytest.mark.parametrize("scales", [(0.25, 0.5), (0.25, 0.3)])
def test_other_arithmetic_stays(scales):
    model = decomposed(scales[0], 0, -8, 7, False, False, True)
    model.graph.node[-1].input[1] = "other"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scales[1]), "other"))
    assert "QuantizeLinear" not in [n.op_type for n in normalise(model).graph.node]


def exported(module, x, dynamo):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.onnx.export(module, (x,), buffer, opset_version=18, dynamo=dynamo, verbose=False)
    return load_model(onnx.load_from_string(buffer.getvalue()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_a_torch_module_with_fake_quantization(dynamo):
    torch = pytest.importorskip("torch")

    def fake(x, scale, zero, low, high):
        return (torch.clamp(torch.round(x / scale) + zero, low, high) - zero) * scale

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.scale = torch.nn.Parameter(torch.rand(8, 1, 1, 1) * 0.02 + 0.02)

        def forward(self, x):
            weight = fake(self.conv.weight, self.scale, 0, -8, 7)
            y = torch.relu(torch.nn.functional.conv2d(fake(x, 0.3, 1.0, -8, 7), weight, self.conv.bias))
            return fake(y, 0.2, 0, 0, 15)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = exported(Net().eval(), x, dynamo)
    normal = normalise(model)
    assert [n.op_type for n in normal.graph.node].count("QuantizeLinear") == 2
    feed = {model.graph.input[0].name: x.numpy()}
    off = np.abs(run(normal, feed) - run(model, feed))
    assert off.max() <= 0.2001 and (off > 1e-3).mean() < 1e-3, "a tie may round the other way"


@pytest.mark.filterwarnings("ignore")
def test_fake_quantize_modules_of_torch():
    """8 bits: the TorchScript exporter refuses other ranges."""
    torch = pytest.importorskip("torch")
    from torch.ao import quantization as q

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.input = q.FakeQuantize.with_args(observer=q.MinMaxObserver, quant_min=0, quant_max=255)()
            self.weight = q.FakeQuantize.with_args(
                observer=q.PerChannelMinMaxObserver,
                quant_min=-128,
                quant_max=127,
                dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric,
            )()

        def forward(self, x):
            return torch.nn.functional.conv2d(self.input(x), self.weight(self.conv.weight), self.conv.bias)

    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 8, 8)
    net(x)
    net.eval().apply(q.disable_observer)
    model = exported(net, x, dynamo=False)
    normal = normalise(model)
    assert [n.op_type for n in normal.graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
    ]
    feed = {model.graph.input[0].name: x.numpy()}
    np.testing.assert_allclose(run(normal, feed), run(model, feed), atol=1e-5)


@pytest.mark.parametrize("opset", [21, 23, 25, 28])
def test_attributes_of_newer_opsets(opset):
    """Opset 23 gave DequantizeLinear an output type, QuantizeLinear a precision, opset 24 Cast a rounding mode."""
    new = opset >= 23
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **({"precision": 1} if new else {})),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **({"output_dtype": 1} if new else {})),
        helper.make_node("Cast", ["d"], ["y"], to=1, **({"round_mode": "up"} if opset >= 24 else {})),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(3), "z")],
    )
    normal = normalise(
        load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    )
    assert normal.opset_import[0].version == 21
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    np.testing.assert_allclose(run(normal, {"x": x}), np.clip(np.rint(x / np.float32(0.1)), -131, 124) * 0.1, atol=1e-6)
