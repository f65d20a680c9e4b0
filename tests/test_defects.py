"""An exception that nobody expected: one line that names stage and node, or its traceback where asked for."""

import numpy as np
import pytest
import qcompile
from qcompile.frontend import Graph, load_model
from qcompile.frontend.faults import node_fault
from qcompile.importer import converters
from qcompile.quantizer import emit
from qcompile.targets import Defect
from small_models import dense, model


@pytest.fixture
def broken(monkeypatch):
    def fails(self, node, **_):
        raise KeyError("t11")

    monkeypatch.setattr(emit.Emitter, "_layer", fails)
    monkeypatch.delenv("QCOMPILE_DEBUG", raising=False)
    samples = [{"x": np.ones((1, 8), np.float32)}]
    return lambda folder: qcompile.compile(dense(), calibration=samples, output=folder / "out")


def test_stage_and_node_are_named(broken, tmp_path):
    with pytest.raises(Defect) as failure:
        broken(tmp_path)
    message = str(failure.value)
    for words in (
        "node MatMul 'the_y'",
        "calibrating and quantizing",
        "KeyError: 't11'",
        "report it",
        "QCOMPILE_DEBUG=1",
    ):
        assert words in message, message
    assert isinstance(failure.value, qcompile.CompileError) and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_developers_see_the_exception(broken, tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPILE_DEBUG", "1")
    with pytest.raises(KeyError):
        broken(tmp_path)


def test_of_the_import(tmp_path, monkeypatch):
    """What a converter does not expect is a defect, not a refusal."""

    def fails(bb, inputs, attr, params):
        raise ValueError("shapes")

    monkeypatch.delenv("QCOMPILE_DEBUG", raising=False)
    monkeypatch.setattr(converters.Max, "convert", fails)
    net = model(("Max", ["x", "x"], ["y"], {}))
    with pytest.raises(Defect, match="node Max 'the_y': importing failed with ValueError: shapes"):
        qcompile.compile(net, calibration=[{"x": np.ones((1, 8), np.float32)}], output=tmp_path / "out")


def test_nodes_that_onnx_does_not_allow_are_no_defects(tmp_path, monkeypatch):
    """Where something unexpected comes from a node that ONNX Runtime does not take either, that is what is told."""
    monkeypatch.delenv("QCOMPILE_DEBUG", raising=False)
    net = model(("Reshape", ["x", "s"], ["y"], {}), constants={"s": np.array([3, 3], np.int64)})
    with pytest.raises(qcompile.CompileError, match=r"node Reshape 'the_y'.*requested shape") as failure:
        qcompile.compile(net, output=tmp_path / "out")
    assert not isinstance(failure.value, Defect) and "onnxruntime_src" not in str(failure.value)


def test_what_onnx_has_against_a_node():
    def fault(*node, **constants):
        graph = Graph(load_model(model(node, constants=constants)))
        return node_fault(graph.nodes[0], graph)

    assert "requested shape" in fault("Reshape", ["x", "s"], ["y"], {}, s=np.array([3, 3]))
    assert "/" not in fault("Reshape", ["x", "s"], ["y"], {}, s=np.array([3, 3]))
    assert not fault("Reshape", ["x", "s"], ["y"], {}, s=np.array([2, 4]))
    assert "imension" in fault("MatMul", ["x", "w"], ["y"], {}, w=np.ones((9, 4), np.float32))
