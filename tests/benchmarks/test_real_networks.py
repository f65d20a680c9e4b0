"""real_networks.py on a folder of small networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from small_models import WEIGHT, model

ROOT = Path(__file__).parents[2]


def put(folder, net, options, rng):
    folder.mkdir()
    onnx.save(net, folder / "model.onnx")
    for file in ("calib.npz", "test.npz"):
        np.savez(folder / file, x=rng.standard_normal((8, 8)).astype(np.float32))
    (folder / "options.json").write_text(json.dumps(options))


def test_a_folder_of_networks(tmp_path):
    """One agrees, of two rows and a fixed input; one is refused by name, which is no failure."""
    rng = np.random.default_rng(0)
    gained = model(
        ("MatMul", ["x", "w"], ["m"], {}),
        ("Mul", ["m", "gain"], ["y"], {}),
        inputs={"x": ["n", 8], "gain": []},
        constants={"w": WEIGHT},
    )
    put(tmp_path / "gained", gained, {"shapes": {"x": [1, 8]}, "constants": {"gain": 2.0}}, rng)
    put(tmp_path / "unknown", model(("NonZero", ["x"], ["y"], {}), dtypes={"y": onnx.TensorProto.INT64}), {}, rng)
    command = [sys.executable, ROOT / "benchmarks" / "real_networks.py", "--folder", tmp_path,
               "--markdown", tmp_path / "table.md", "gained", "unknown"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")})
    assert run.returncode == 0, run.stderr
    first, second = (line.split(" | ") for line in run.stdout.splitlines())
    assert (first[0], first[4], first[5]) == ("gained", "0", "agrees") and float(first[2]) > 25
    assert second[0] == "unknown" and second[5].startswith("refused: node NonZero 'the_y'")
    assert "| gained |" in (tmp_path / "table.md").read_text()
