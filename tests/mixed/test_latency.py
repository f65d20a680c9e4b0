"""Time per layer: the cost model's, and this machine's."""

import numpy as np
import pytest
from qcompile.backends import backend_for
from qcompile.frontend import Graph, normalise_graph
from qcompile.mixed import latency
from qcompile.pipeline import layer_builder
from qcompile.quantizer import LayerBits, find_layers
from qcompile.targets import CompileError, get_target
from small_models import model


@pytest.fixture(scope="module")
def net():
    """Two equal products by 256 KB, one small one, and a table."""
    shapes = {"w1": (512, 512), "w2": (512, 512), "w3": (512, 8)}
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    graph = Graph(
        model(
            ("Gather", ["table", "ids"], ["e"], {}),
            ("MatMul", ["e", "w1"], ["a"], {}),
            ("Relu", ["a"], ["r"], {}),
            ("MatMul", ["r", "w2"], ["b"], {}),
            ("MatMul", ["b", "w3"], ["y"], {}),
            inputs={"ids": [1, 4]},
            dtypes={"ids": 7},
            constants={**constants, "table": rng.standard_normal((10, 512)).astype(np.float32)},
        )
    )
    normalise_graph(graph)
    return graph


CHOICES = [LayerBits(8), LayerBits(4)]


def measured(target, *arguments):
    return latency.measured(backend_for(get_target(target)), layer_builder(target), *arguments)


@pytest.mark.parametrize("target", ["arm-a76", "x86-avx512vnni"])
def test_the_model_counts_cycles(net, target):
    layers = find_layers(net)
    table = latency.modelled(backend_for(get_target(target)), layers, CHOICES)
    assert layers[0].table and (table[0] == 0).all() and (table[1:] > 0).all()
    assert (table[1] == table[2]).all() and (table[3] < table[1] / 8).all()


def test_this_machine_is_measured_once_for_equal_layers(net, monkeypatch):
    layers = find_layers(net)
    calls = []
    inner = latency._microseconds

    def counted(backend, build, graph, node, bits, evicted):
        calls.append((node.name, bits))
        return inner(backend, build, graph, node, bits, evicted)

    monkeypatch.setattr(latency, "_microseconds", counted)
    monkeypatch.setattr(latency, "SECONDS", 0.002)
    allowed = np.ones((4, 2), bool)
    allowed[3, 1] = False
    table = measured("host", net, layers, CHOICES, allowed)
    assert [name for name, _ in calls] == [layers[1].name, layers[1].name, layers[3].name]
    assert (table[1] == table[2]).all() and (table[1] > 0).all() and (table[0] == 0).all()
    assert table[3, 0] < table[1, 0] and table[3, 1] == 0


def test_a_foreign_target_cannot_be_measured(net):
    foreign = get_target("arm-a53" if get_target("host").arch == "x86_64" else "x86-avx2")
    with pytest.raises(CompileError, match="this machine cannot run"):
        measured(foreign.name, net, find_layers(net), CHOICES, np.ones((4, 2), bool))


def test_the_targets_own_code_is_measured(net, monkeypatch):
    """Every x86 or ARM target that this machine runs is built as itself, not as the host."""
    from qcompile.runtime import native
    from qcompile.targets import TARGETS, supports

    made = []
    begin = native.NativeEngine.__init__

    def noted(engine, manifest, threads):
        made.append(manifest.machine)
        begin(engine, manifest, threads)

    monkeypatch.setattr(native.NativeEngine, "__init__", noted)
    monkeypatch.setattr(latency, "SECONDS", 0.001)
    layers, allowed = find_layers(net), np.zeros((4, 2), bool)
    allowed[3, 0] = True
    for name in [n for n, t in TARGETS.items() if supports(t)]:
        made.clear()
        assert measured(name, net, layers, CHOICES, allowed)[3, 0] > 0
        assert set(made) == {name}
