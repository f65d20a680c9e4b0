"""The zoo has the published nets' parameters and multiply-accumulates, and exports what ONNX Runtime runs."""

import numpy as np
import pytest
from zoo import ZOO, Input, Net, onnx_file, samples

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ZOO)
def test_parameters_and_macs_are_the_published_ones(name):
    from torch.utils.flop_counter import FlopCounterMode

    net = ZOO[name]
    with torch.device("meta"):
        module = net.build()
        inputs = [
            torch.empty(i.shape, dtype=torch.float32 if i.kind == "real" else torch.int64) for i in net.inputs.values()
        ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    assert sum(p.numel() for p in module.parameters()) == net.params
    assert counter.get_total_flops() / 2e9 == pytest.approx(net.gmacs, rel=5e-3)


def test_samples_are_repeatable_and_fit():
    net = ZOO["minilm_l6_32"]
    first, second = samples(net), samples(net)
    for a, b in zip(first, second):
        assert all(np.array_equal(a[n], b[n]) for n in net.inputs)
    masks = np.concatenate([f["attention_mask"] for f in first])
    assert masks[0].all() and (masks[1:].sum(1) == 24).all()
    assert first[0]["input_ids"].shape == (1, 32) and first[0]["input_ids"].max() < 30522
    assert not np.array_equal(first[0]["input_ids"], first[1]["input_ids"])


def test_an_exported_net_runs_and_is_kept(tmp_path, monkeypatch):
    """A convolution with batch norm: its values keep their size, and a second call exports nothing."""
    import onnxruntime
    import zoo
    from zoo import convolutional

    monkeypatch.setattr(
        convolutional,
        "small",
        lambda: torch.nn.Sequential(*(convolutional.conv(8 if i else 3, 8, 3, padding=1) for i in range(6))),
        raising=False,
    )
    monkeypatch.setitem(zoo.ZOO, "small", Net("convolutional", "small", {"image": Input((1, 3, 16, 16))}, 0, 0))
    file = onnx_file("small", tmp_path)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, samples(ZOO["small"], 1)[0])
    assert y.shape == (1, 8, 16, 16) and 0.1 < y.std() < 10, "values neither fade nor explode"
    written = file.stat().st_mtime_ns
    assert onnx_file("small", tmp_path).stat().st_mtime_ns == written and not list(tmp_path.glob("*.new"))
