"""Float inputs that are moved about before a QuantizeLinear reads them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from qcompile.targets import CompileError
from small_models import model

GRID = {"s": np.float32(0.05), "z": np.int8(3), "t": np.float32(0.02), "u": np.int8(-5)}
CUT = {"from": np.array([7]), "to": np.array([-9]), "axis": np.array([1]), "step": np.array([-2])}
SLICE = ("Slice", ["x", "from", "to", "axis", "step"], ["part"], {})


def quantized(source, name, scale="s", zero="z"):
    return (
        ("QuantizeLinear", [source, scale, zero], [f"{name}_codes"], {}),
        ("DequantizeLinear", [f"{name}_codes", scale, zero], [name], {}),
    )


MOVES = {
    "slice": [SLICE],
    "gather": [("Gather", ["x", "rows"], ["part"], {"axis": 1})],
    "tile": [("Tile", ["x", "twice"], ["part"], {})],
    "split": [("Split", ["x"], ["part", "rest"], {"axis": 1, "num_outputs": 2})],
    "slice, reshape": [("Slice", SLICE[1], ["cut"], {}), ("Reshape", ["cut", "flat"], ["part"], {})],
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another grid"])
def test_moved_then_quantized(tmp_path, name, beside):
    outputs = ("y", "w") if beside else ("y",)
    other = quantized("x", "w", "t", "u") if beside else ()
    constants = {**GRID, **CUT, "rows": np.array([5, 0, 5]), "twice": np.array([1, 2]), "flat": np.array([-1])}
    net = model(*MOVES[name], *quantized("part", "y"), *other, outputs=outputs, constants=constants, opset=21)
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 8)
    got = qcompile.load(qcompile.compile(net, output=tmp_path, name="net").path).run({"x": x})
    want = dict(zip(outputs, ort.InferenceSession(net.SerializeToString()).run(None, {"x": x})))
    for output, step in zip(outputs, (0.05, 0.02)):
        np.testing.assert_allclose(
            got[output], want[output], atol=0.05 if beside else step * 1e-3
        )  # one grid serves both


def test_an_input_that_is_only_moved_needs_samples(tmp_path):
    net = model(SLICE, *quantized("x", "w"), outputs=("part", "w"), constants={**GRID, **CUT})
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 8)
    with pytest.raises(CompileError, match=r"x is used as a float.*--calib"):
        qcompile.compile(net, output=tmp_path, name="net")
    got = qcompile.load(qcompile.compile(net, calibration=[{"x": x}], output=tmp_path, name="net").path).run({"x": x})
    np.testing.assert_allclose(got["part"], x[:, ::-2], atol=0.01)
