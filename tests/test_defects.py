"""An exception that nobody expected: one line that names stage and node, or its traceback where asked for."""

import numpy as np
import pytest
import qcompile
from qcompile.quantizer import emit
from qcompile.targets import Defect
from small_models import dense


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
