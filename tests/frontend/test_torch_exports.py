"""Plain float nets by both exporters of torch and many opsets: one normal form."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from qcompile.frontend import load_model, normalise

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    """Convolutions, norms, attention, GELU, pooling, slices."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.batch = torch.nn.BatchNorm2d(16)
        self.group = torch.nn.GroupNorm(4, 16)
        self.qkv = torch.nn.Linear(16, 48)
        self.norm = torch.nn.LayerNorm(16)
        self.up = torch.nn.Linear(16, 32)
        self.down = torch.nn.Linear(32, 10)

    def forward(self, x):
        x = torch.nn.functional.silu(self.batch(self.conv(x)))
        x = torch.nn.functional.hardswish(self.group(x)) + x
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(1, -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1) @ v
        x = self.norm(x + a.transpose(1, 2).reshape(x.shape))
        x = self.down(torch.nn.functional.gelu(self.up(x)))
        return torch.softmax(x[:, 1:-1].mean(1), -1)


EXPORTS = [(False, o) for o in (9, 11, 13, 15, 17, 20)] + [(True, o) for o in (18, 20, 21, 23)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo, opset", EXPORTS)
def test_every_export_computes_the_same(dynamo, opset):
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    net.batch.running_mean.normal_()
    net.batch.running_var.uniform_(0.5, 2)
    buffer = io.BytesIO()
    try:
        with torch.no_grad():
            torch.onnx.export(net, (x,), buffer, opset_version=opset, dynamo=dynamo, verbose=False)
    except torch.onnx.errors.UnsupportedOperatorError as e:
        pytest.skip(str(e)[:80])
    model = onnx.load_from_string(buffer.getvalue())
    normal = normalise(load_model(model))
    kinds = {n.op_type for n in normal.graph.node}
    assert {"LayerNormalization", "Gelu", "HardSwish", "Conv"} <= kinds
    assert not kinds & {"BatchNormalization", "Erf", "Sqrt", "Shape", "Identity", "ReduceSum"}
    feed = {normal.graph.input[0].name: x.numpy()}
    got = ort.InferenceSession(normal.SerializeToString()).run(None, feed)[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, net(x).numpy(), rtol=1e-3, atol=1e-5)
