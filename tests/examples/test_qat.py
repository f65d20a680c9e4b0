"""The example of quantization-aware training: what is compiled is as good as what was trained."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import onnx
import pytest
import qcompile
from qcompile.frontend import normalise

EXAMPLE = Path(__file__).parents[2] / "examples" / "qat" / "qat.py"
POINTS = 0.003


@pytest.fixture(scope="module")
def qat():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("qat_example", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["qat_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(qat):
    """A small net that knows digits in float."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = qat.digits()
    net = qat.Net(qat.Bits(), width=16)
    qat.train(net, x[: qat.TRAINED_ON], y[: qat.TRAINED_ON], 24, 6e-3)
    return net.state_dict(), x, y


@pytest.mark.parametrize("weights, activations", [(4, 8), (4, 4)])
def test_the_artifact_is_as_good_as_the_training(qat, trained, tmp_path, weights, activations):
    state, x, y = trained
    net = qat.Net(qat.Bits(weights, activations), width=16)
    net.load_state_dict(state)
    qat.train_quantized(net, x[: qat.TRAINED_ON], y[: qat.TRAINED_ON], 5)
    unseen = x[qat.TRAINED_ON :], y[qat.TRAINED_ON :]
    fake = qat.torch_accuracy(net, *unseen)
    path = tmp_path / "digits.onnx"
    qat.export(net, path)
    pairs = [n.op_type for n in normalise(onnx.load(path)).graph.node]
    assert pairs.count("QuantizeLinear") == 6 and "Round" not in pairs
    model = qcompile.load(qcompile.compile(path, output=tmp_path).path)
    integer = qat.accuracy(lambda i: model.run({"image": i})["logits"], *unseen)
    assert fake > 0.8, f"the training failed: accuracy {fake}"
    assert integer >= fake - POINTS, f"accuracy {integer} of the artifact, {fake} with fake quantization"
