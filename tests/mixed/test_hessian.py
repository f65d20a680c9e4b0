"""Hessian traces against the exact Hessian, and their way to the layers of exported networks."""

import json
import warnings

import numpy as np
import pytest
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.mixed.hessian import HessianTraces, Trace, hessian_trace
from qcompile.mixed.match import match_traces
from qcompile.quantizer.bits import find_layers
from qcompile.quantizer.prepare import prepare
from qcompile.targets import CompileError

torch = pytest.importorskip("torch")
nn = torch.nn


class Block(nn.Module):
    """A convolution with BatchNorm and a Linear over channels, which becomes MatMul and Add."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return x + self.fc(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.layers = nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


def cross_entropy(module, batch):
    x, y = batch
    return nn.functional.cross_entropy(module(x), y)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 3)
                m.running_var.uniform_(0.2, 2)
                m.running_mean.normal_()
    return net.eval()


@pytest.fixture(scope="module")
def traces(net):
    torch.manual_seed(1)
    return hessian_trace(net, [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,)))], cross_entropy, vectors=4)


def exported(net, path, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {} if dynamo else {"opset_version": 17}
        torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=dynamo, verbose=False, **options)
    graph = Graph(load_model(path))
    normalise_graph(graph)
    prepare(graph)
    return graph, find_layers(graph)


def test_the_trace_is_that_of_the_hessian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    batch = (torch.randn(5, 3, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1]))
    found = hessian_trace(net, [batch], cross_entropy, vectors=600)
    for name, weight in (("0.weight", net[0].weight), ("2.weight", net[2].weight)):

        def loss(w, name=name):
            parameters = {k: w if k == name else p.detach() for k, p in net.named_parameters()}
            return nn.functional.cross_entropy(torch.func.functional_call(net, parameters, batch[0]), batch[1])

        hessian = torch.autograd.functional.hessian(loss, weight.detach()).reshape(weight.numel(), -1)
        exact = float(hessian.trace()) / weight.numel()
        assert abs(found[name].average - exact) < 4 * found[name].error + 1e-12
        assert found[name].error < 0.1 * abs(exact) and found[name].shape == tuple(weight.shape)


def test_the_module_is_left_as_it_was_and_the_seed_decides(net):
    torch.manual_seed(1)
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([1, 3])) for _ in range(2)]
    net.train()
    mean = net.stem[1].running_mean.clone()
    first, again = (hessian_trace(net, batches, cross_entropy, vectors=2) for _ in range(2))
    assert net.training and torch.equal(mean, net.stem[1].running_mean)
    net.eval()
    assert first == again and all(p.grad is None for p in net.parameters())


def test_what_cannot_be_traced_is_refused(net):
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="no batches"):
        hessian_trace(net, [], cross_entropy)
    with pytest.raises(ValueError, match="one finite number"):
        hessian_trace(net, [x], lambda module, batch: module(batch))
    with pytest.raises(ValueError, match="no weights"):
        hessian_trace(nn.BatchNorm1d(3), [x], lambda module, batch: module(batch))


def test_traces_are_saved_and_loaded(traces, tmp_path):
    traces.save(tmp_path / "traces.json")
    assert HessianTraces.load(tmp_path / "traces.json") == traces
    (tmp_path / "other.json").write_text(json.dumps({"layers": {}}))
    for name, message in (("other.json", "not a file of Hessian traces"), ("absent.json", "No such file")):
        with pytest.raises(CompileError, match=message):
            HessianTraces.load(tmp_path / name)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_each_exporters_layers_are_found(net, traces, tmp_path, dynamo):
    """In graph order, the parameters are those of the modules in order; folding BatchNorm is undone channel by
    channel."""
    graph, layers = exported(net, tmp_path / "net.onnx", dynamo)
    matched = match_traces(traces, graph, layers)
    assert [matched[x.name][0] for x in layers] == list(traces.values()) and len(layers) == 6
    conv, norm = net.layers[1].conv1, net.layers[1].bn1
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    (layer,) = [x for x in layers if matched[x.name][0] is traces["layers.1.conv1.weight"]]
    np.testing.assert_allclose(matched[layer.name][1].reshape(-1), factor**-2.0, rtol=1e-4)
    folded = conv.weight.detach().numpy() * factor[:, None, None, None]
    np.testing.assert_allclose(graph.constants[layer.weight], folded, rtol=1e-4, atol=1e-6)
    linear = next(x for x in layers if matched[x.name][0] is traces["layers.0.fc.weight"])
    np.testing.assert_allclose(matched[linear.name][1], 1, rtol=1e-4)


def test_a_wrapped_module_and_one_without_names(net, traces, tmp_path):
    graph, layers = exported(nn.Sequential(net), tmp_path / "net.onnx", False)
    matched = match_traces(traces, graph, layers)
    assert [matched[x.name][0] for x in layers] == list(traces.values())
    nameless = HessianTraces({f"p{i}": t for i, t in enumerate(traces.values())})
    matched = match_traces(nameless, graph, layers)
    assert [matched[x.name][0] for x in layers] == list(traces.values())


def test_a_layer_without_a_parameter_is_named(net, traces, tmp_path):
    graph, layers = exported(net, tmp_path / "net.onnx", False)
    few = HessianTraces({k: v for k, v in traces.items() if k != "head.weight"})
    with pytest.raises(CompileError, match=r"no parameter of the module fits layer '/head/Gemm'"):
        match_traces(few, graph, layers)
    wrong = HessianTraces({**traces, "head.weight": Trace(1.0, 0.0, (9, 9), (1.0,) * 9)})
    with pytest.raises(CompileError, match="no parameter of the module fits"):
        match_traces(wrong, graph, layers)


def test_fused_projections_share_their_parameters_trace(tmp_path):
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

        def forward(self, x):
            q, k, v = self.qkv(x).split(6, -1)
            return self.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)

    net = Fused().eval()
    traces = hessian_trace(net, [torch.randn(2, 5, 6)], lambda m, x: m(x).square().mean(), vectors=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 5, 6),), str(tmp_path / "n.onnx"), dynamo=False, opset_version=17, verbose=False
        )
    graph = Graph(load_model(tmp_path / "n.onnx"))
    normalise_graph(graph)
    prepare(graph)
    layers = find_layers(graph)
    matched = match_traces(traces, graph, layers)
    assert [matched[x.name][0] for x in layers] == [traces["qkv.weight"]] * 3 + [traces["out.weight"]]
