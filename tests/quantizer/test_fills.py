"""Numbers that Where puts in the place of others have a grid that holds them, and leave that of the others alone."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from small_models import model


@pytest.mark.parametrize("number, least", [(-40.0, 30), (7.0, 30), (0.0, 30), (-1000.0, 25)])
@pytest.mark.parametrize("first", [False, True])
def test_where_of_a_number(tmp_path, number, least, first):
    rng = np.random.default_rng(2)
    picks = ["chosen", "x", "n"] if first else ["chosen", "n", "x"]
    constants = {"n": np.float32(number), "half": np.float32(0.5)}
    constants["chosen"] = rng.random((24, 16)) < 0.5
    constants["w"] = (rng.standard_normal((16, 8)) / 4).astype(np.float32)
    net = model(
        ("Where", picks, ["filled"], {}),
        ("MatMul", ["filled", "w"], ["y"], {}),
        ("Mul", ["x", "half"], ["z"], {}),
        inputs={"x": [24, 16]},
        outputs=["y", "z"],
        constants=constants,
    )
    feeds = [{"x": np.random.default_rng(s).standard_normal((24, 16)).astype(np.float32)} for s in range(12)]
    loaded = qcompile.load(qcompile.compile(net, calibration=feeds[:8], output=tmp_path, name="net").path)
    session = ort.InferenceSession(net.SerializeToString())
    for k, name in enumerate(("y", "z")):
        want = np.stack([session.run(None, f)[k] for f in feeds[8:]])
        got = np.stack([loaded.run(f)[name] for f in feeds[8:]])
        ratio = 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())
        assert ratio > least, f"{name}: {ratio:.1f} dB"
