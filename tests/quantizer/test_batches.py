"""Calibration samples of one row for a network compiled for a batch."""

import numpy as np
import pytest
import qcompile
from accuracy import decibels
from qcompile.frontend import normalise
from qcompile.quantizer import load_calibration
from qcompile.targets import CompileError
from small_models import WEIGHT, model

SHAPES = {"x": (3, 8), "state": (2, 3, 4)}  # the batch is the second axis of a state


def net():
    return model(
        ("MatMul", ["x", "w"], ["m"], {}),
        ("Add", ["m", "state"], ["a"], {}),
        ("Mul", ["a", "gain"], ["y"], {}),
        inputs={"x": ["n", 8], "state": [2, "n", 4], "gain": []},
        constants={"w": WEIGHT},
    )


def rows(count, rng):
    return {
        "x": rng.standard_normal((count, 8)).astype(np.float32),
        "state": rng.standard_normal((count, 2, 1, 4)).astype(np.float32),
        "gain": rng.uniform(1, 2, count).astype(np.float32),
    }


def loaded(source, shapes=None):
    return load_calibration(source, normalise(net(), shapes or SHAPES)).samples


@pytest.mark.parametrize("form", ["npz", "feeds"])
def test_rows_are_joined(form, tmp_path):
    data = rows(7, np.random.default_rng(0))
    if form == "npz":
        np.savez(tmp_path / "calib.npz", **data)
        source = tmp_path / "calib.npz"
    else:
        source = [{"x": data["x"][i : i + 1], "state": data["state"][i], "gain": data["gain"][i]} for i in range(7)]
    samples = loaded(source)
    assert len(samples) == 3
    np.testing.assert_array_equal(samples[1]["x"], data["x"][3:6])
    np.testing.assert_array_equal(samples[1]["state"], np.concatenate(data["state"][3:6], 1))
    np.testing.assert_array_equal(samples[2]["x"], data["x"][[6, 0, 1]])  # filled up
    assert samples[1]["gain"] == data["gain"][3]


def test_a_batch_is_compiled_from_rows(tmp_path):
    data = rows(30, np.random.default_rng(1))
    np.savez(tmp_path / "calib.npz", **data)
    made = qcompile.compile(net(), calibration=tmp_path / "calib.npz", shapes=SHAPES, output=tmp_path, name="n")
    x, state, gain = data["x"][:3], np.concatenate(data["state"][:3], 1), data["gain"][0]
    got = qcompile.load(made.path).run({"x": x, "state": state, "gain": gain})["y"]
    assert decibels((x @ WEIGHT + state) * gain, got) > 30


MISFITS = {
    "two rows": {"x": (2, 8), "state": (2, 3, 4), "gain": ()},
    "another width": {"x": (1, 7), "state": (2, 3, 4), "gain": ()},
    "no batch": {"x": (3, 8), "state": (2, 3, 1), "gain": ()},
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_is_no_row_is_refused(case):
    with pytest.raises(CompileError, match="has shape"):
        loaded([{n: np.zeros(s, np.float32) for n, s in MISFITS[case].items()}])
