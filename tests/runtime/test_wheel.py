"""The wheel without extras: what a device installs to run an artifact, with numpy as its only dependency."""

import shutil
import subprocess
import sys
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from qcompile.pipeline import compile
from small_models import quantized_dense

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("compiler", "passes", "kernels", "targets", "runtime", "pyproject.toml", "README.md", "LICENSE")
USE = """
import sys
import numpy as np
import qcompile
x = np.load(sys.argv[2])["x"]
model = qcompile.load(sys.argv[1])
y = model.run({"x": x})["y"]
assert np.array_equal(y, model.reference({"x": x})["y"])
assert np.array_equal(y, np.load(sys.argv[3])["y"])
try:
    qcompile.compile
except ImportError as error:
    print(error)
"""


def run(*command, code=0):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def copy_of_numpy(site):
    """Puts the numpy of this environment into the folder `site`, so that nothing is fetched."""
    for file in distribution("numpy").files or ():
        if ".." not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(file.locate())


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """(python, folder of commands) of an environment that holds the wheel and numpy."""
    missing = [name for name in ("pip", "setuptools", "venv") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    if tuple(map(int, version("setuptools").split(".")[:2])) < (70, 1) and not find_spec("wheel"):
        pytest.skip("setuptools before 70.1 builds no wheel without the package wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    programs = folder / "venv/bin"
    copy_of_numpy(next((folder / "venv/lib").glob("python*/site-packages")))
    run(*pip, "--python", programs / "python", "install", "--no-index", next(folder.glob("*.whl")))
    return programs


def test_an_artifact_runs_where_only_numpy_is(device, tmp_path):
    built = compile(quantized_dense(), output=tmp_path, name="net")
    np.savez(tmp_path / "x.npz", x=np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 8))
    run(device / "qrun", built.path, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    said = run(device / "python", "-c", USE, built.path, tmp_path / "x.npz", tmp_path / "y.npz")
    assert "pip install 'qcompile[compiler]'" in said


@pytest.mark.parametrize("command", ["qcompile", "qbench"])
def test_what_is_not_installed_is_named(device, command):
    said = run(device / command, "--help", code=1)
    assert "pip install 'qcompile[compiler]' (click is missing)" in said and len(said.splitlines()) == 1


def test_an_artifact_for_arm_names_the_emulator(device, tmp_path):
    built = compile(quantized_dense(), "arm-a72", output=tmp_path, name="net")
    script = f"import qcompile; qcompile.load({str(built.path)!r}, backend='unicorn')"
    said = run(device / "python", "-c", script, code=1)
    assert "unicorn is not installed: pip install 'qcompile[emulation]'" in said
