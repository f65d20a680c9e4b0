"""Files that the real tools write: Brevitas, NNCF, ModelOpt, PT2E and neural-compressor, each where it is installed."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (1, 8, 32)


class Block(torch.nn.Module):
    """Attention and a feed-forward part around a stream that the tools leave in float."""

    def __init__(self):
        super().__init__()
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        self.before, self.qkv, self.out = norm(32), linear(32, 96), linear(32, 32)
        self.between, self.wide, self.narrow, self.head = norm(32), linear(32, 128), linear(128, 32), linear(32, 10)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-1, -2) * (d // 4) ** -0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return self.head(x + self.narrow(torch.nn.functional.gelu(self.wide(self.between(x)))))


class Mobile(torch.nn.Module):
    """Convolution, depthwise convolution in a residual branch, pooling, classifier."""

    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv2d
        self.first, self.depth, self.point = conv(3, 16, 3, 2, 1), conv(16, 16, 3, 1, 1, groups=16), conv(16, 16, 1)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.point(torch.relu(self.depth(x))))
        return self.head(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


def samples(shape, count=20):
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(3)))


def exported(net, shape, path, dynamo=False):
    options = {"external_data": False} if dynamo else {}
    torch.onnx.export(
        net, (samples(shape)[0],), path, dynamo=dynamo, opset_version=18 if dynamo else 17, input_names=["x"], **options
    )
    return path


def compare(path, shape, tmp_path, rel=0.03):
    """Compiles a tool's file and compares it with ONNX Runtime."""
    feeds = [{"x": x.numpy()} for x in samples(shape)]
    model = qcompile.load(qcompile.compile(path, output=tmp_path, calibration=feeds).path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options)
    ours = np.stack([next(iter(model.run(f).values())) for f in feeds])
    want = np.stack([session.run(None, f)[0] for f in feeds])
    assert np.sqrt(np.mean((ours - want) ** 2) / np.mean(want**2)) < rel


@pytest.fixture(params=["block", "mobile"])
def network(request):
    torch.manual_seed(0)
    return (Block(), SHAPE) if request.param == "block" else (Mobile(), (1, 3, 16, 16))


@pytest.mark.parametrize("weights, activations", [(8, 8), (4, 8), (4, 4), (2, 6)])
def test_brevitas(tmp_path, weights, activations):
    nn = pytest.importorskip("brevitas.nn")
    pytest.importorskip("onnxoptimizer")
    from brevitas.export import export_onnx_qcdq
    from brevitas.quant import Int8WeightPerChannelFloat

    torch.manual_seed(0)
    grid = {"weight_bit_width": weights, "weight_quant": Int8WeightPerChannelFloat}
    net = torch.nn.Sequential(
        nn.QuantIdentity(bit_width=8),
        nn.QuantConv2d(3, 16, 3, padding=1, **grid),
        torch.nn.BatchNorm2d(16),
        nn.QuantReLU(bit_width=activations),
        nn.QuantConv2d(16, 16, 3, groups=16, **grid),
        nn.QuantReLU(bit_width=activations),
        torch.nn.Flatten(),
        nn.QuantLinear(16 * 100, 10, bias=True, **grid),
    )
    shape = (1, 3, 12, 12)
    for x in samples(shape):
        net(x)
    path = tmp_path / "brevitas.onnx"
    export_onnx_qcdq(net.eval(), args=samples(shape)[0], export_path=str(path), input_names=["x"], dynamo=False)
    compare(path, shape, tmp_path, rel=0.03 if weights > 2 and activations > 4 else 0.06)


@pytest.mark.parametrize("kind", [None, "TRANSFORMER"])
def test_nncf(network, tmp_path, kind):
    nncf = pytest.importorskip("nncf")
    net, shape = network
    data = nncf.Dataset([{"x": x.numpy()} for x in samples(shape)])
    model = onnx.load(exported(net.eval(), shape, tmp_path / "float.onnx"))
    path = tmp_path / "nncf.onnx"
    onnx.save(nncf.quantize(model, data, model_type=kind and nncf.ModelType[kind]), path)
    compare(path, shape, tmp_path)


@pytest.mark.parametrize("mode", ["INT8_SYM", "INT8_ASYM", "INT4_SYM"])
def test_nncf_weights(tmp_path, mode):
    nncf = pytest.importorskip("nncf")
    torch.manual_seed(0)
    model = onnx.load(exported(Block().eval(), SHAPE, tmp_path / "float.onnx", dynamo=True))
    options = {"group_size": 16, "ratio": 1.0, "all_layers": True} if mode == "INT4_SYM" else {}
    path = tmp_path / "nncf.onnx"
    onnx.save(nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode], **options), path)
    compare(path, SHAPE, tmp_path)


@pytest.mark.parametrize("mode, method", [("int8", "max"), ("int4", "rtn_dq")])
def test_modelopt(network, tmp_path, mode, method):
    tool = pytest.importorskip("modelopt.onnx.quantization", exc_type=ImportError)
    net, shape = network
    path = tmp_path / "modelopt.onnx"
    tool.quantize(
        str(exported(net.eval(), shape, tmp_path / "float.onnx")),
        quantize_mode=mode,
        calibration_method=method,
        calibration_data={"x": np.concatenate([x.numpy() for x in samples(shape)])},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(path),
        **({"block_size": 16} if mode == "int4" else {}),
    )
    compare(path, shape, tmp_path)


def test_pt2e(network, tmp_path):
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    xnnpack = pytest.importorskip("torchao.testing.pt2e._xnnpack_quantizer")
    net, shape = network
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    net = pt2e.prepare_pt2e(torch.export.export(net.eval(), (samples(shape)[0],)).module(), quantizer)
    for x in samples(shape):
        net(x)
    compare(exported(pt2e.convert_pt2e(net), shape, tmp_path / "pt2e.onnx", dynamo=True), shape, tmp_path)


def test_neural_compressor(network, tmp_path):
    tool = pytest.importorskip("neural_compressor.torch.quantization", exc_type=ImportError)
    from neural_compressor.torch.export import export

    net, shape = network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = tool.prepare(export(net.eval(), example_inputs=(samples(shape)[0],)), tool.get_default_static_config())
        for x in samples(shape):
            net(x)
        net = tool.convert(net)
    compare(exported(net, shape, tmp_path / "inc.onnx", dynamo=True), shape, tmp_path)
