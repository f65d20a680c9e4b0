"""Commands start at once: help and refusals that need no model import nothing of the compiler."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from qcompile.cli.qcompile import TECHNIQUES
from qcompile.pipeline import compile
from qcompile.quantizer import QuantizeOptions
from small_models import quantized_dense

HEAVY = {"tvm", "tvm_ffi", "onnx", "onnxruntime", "scipy", "torch", "numpy", "rich", "jinja2"}


@pytest.mark.parametrize(
    ("command", "arguments", "code", "heavy"),
    [
        ("qcompile", ["--help"], 0, set()),
        ("qrun", ["--help"], 0, set()),
        ("qbench", ["--help"], 0, set()),
        ("qcompile", ["none.onnx"], 2, set()),
        ("qcompile", [__file__, "--target", "pdp-11"], 2, set()),
        ("qcompile", [__file__, "--shapes", "x:axb"], 2, set()),
        ("qcompile", [__file__, "--calib", "none.npz"], 2, set()),
        ("qcompile", [__file__, "--frobnicate"], 2, set()),
        ("qrun", ["none", "--input", "x.npz", "--output", "y.npz"], 2, {"numpy"}),
        ("qbench", ["none"], 2, {"numpy", "rich"}),
    ],
    ids=lambda v: " ".join(v).replace(__file__, "FILE") if isinstance(v, list) else "" if isinstance(v, set) else v,
)
def test_what_a_command_imports(command, arguments, code, heavy, tmp_path):
    script = (
        f"import sys; from qcompile.cli.{command} import main\ntry: main(sys.argv[1:])\nfinally: "
        f"print(*({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == code, done.stderr
    assert set(done.stderr.splitlines()[-1].split()) <= heavy and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small artifact for this machine and a file of its input."""
    folder = tmp_path_factory.mktemp("start")
    np.savez(folder / "x.npz", x=np.ones((1, 8), np.float32))
    return compile(quantized_dense(), output=folder).path, folder / "x.npz"


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("import qcompile; qcompile.load", set()),
        ("import qcompile; qcompile.load({0!r})", set()),
        ("from qcompile.cli.qrun import main; main([{0!r}, '--input', {1!r}, '--output', {1!r} + '.out'])", set()),
        ("import qcompile; qcompile.load({0!r}).reference(dict(x=[[1.0] * 8]))", {"qcompile.kernels"}),
    ],
    ids=["load", "load an artifact", "qrun", "the reference"],
)
def test_running_an_artifact_loads_numpy_only(built, script, allowed):
    """Nothing of the compiler, and no package but numpy: what else is loaded comes with Python."""
    script = script.format(*map(str, built))
    script = f"import sys; start = set(sys.modules); {script}; print(*set(sys.modules) - start)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert {name for name in packages if not name.startswith("_")} <= {"qcompile", "numpy"}
    rooms = {".".join(name.split(".")[:2]) for name in names if name.startswith("qcompile.")}
    assert rooms - allowed <= {f"qcompile.{room}" for room in ("cli", "files", "npz", "runtime", "targets")}


def test_every_name_of_the_package_is_there():
    import qcompile

    assert {name for name in qcompile.__all__ if not hasattr(qcompile, name)} == set()
    assert set(qcompile.__all__) <= set(dir(qcompile))
    with pytest.raises(AttributeError, match="no attribute 'complie'"):
        qcompile.complie  # noqa: B018


def test_without_lists_the_switches_of_the_quantizer():
    assert set(TECHNIQUES) == {f.name.replace("_", "-") for f in fields(QuantizeOptions) if f.default is True}
