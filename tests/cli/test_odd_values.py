"""Odd values of the commands' options: one clear line, exit code 2, and nothing written."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest
import qcompile
from click.testing import CliRunner
from qcompile.cli import qbench, qrun
from qcompile.cli import qcompile as qcompile_command
from qcompile.kernels.cpu.compile import compile_module
from qcompile.targets import get_target
from small_models import dense, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    onnx.save(dense(), folder / "m.onnx")
    ids = model(
        ("MatMul", ["a", "w"], ["y"], {}),
        ("Mul", ["y", "k"], ["z"], {}),
        inputs={"a": ["n", 8], "k": [1]},
        outputs=["y", "z"],
        constants={"w": np.ones((8, 8), np.float32)},
    )
    onnx.save(ids, folder / "k.onnx")
    qcompile.compile(dense(), output=folder, name="art")
    np.savez(folder / "i.npz", x=np.ones((1, 8), np.float32))
    (folder / "folder").mkdir()
    return folder


def files(folder):
    return {f: f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


def refused(command, folder, arguments, monkeypatch, capfd):
    """The one line that a command ends with; it leaves the folder as it was."""
    monkeypatch.chdir(folder)
    before = files(folder)
    with pytest.raises(SystemExit) as end:
        command(arguments)
    error = capfd.readouterr().err.strip()
    assert end.value.code == 2 and "unexpected" not in error and "Traceback" not in error, error
    assert files(folder) == before
    return error


COMPILE = [
    (["m.onnx", "--json", "folder"], "it is a folder"),
    (["m.onnx", "--json", ""], "it is a folder"),
    (["m.onnx", "--json", "none/x.json"], "no folder none"),
    (["m.onnx", "--json", "m.onnx"], "it is read too"),
    (["m.onnx", "--json", "folder/../m.onnx"], "it is read too"),
    (["m.onnx", "--calib", "i.npz", "--json", "i.npz"], "it is read too"),
    (["m.onnx", "--json", "x" * 300], "File name too long"),
    (["m.onnx", "--name", ""], "--name is empty"),
    (["m.onnx", "--threads", "9" * 30], "--threads"),
    (["m.onnx", "--state", ""], "not of the form INPUT:OUTPUT"),
    (["k.onnx", "--state", "a:y,a:z", "--shapes", "a:1x8"], "'a' is given two outputs"),
    (["k.onnx", "--shapes", "a:1x8", "--shapes", "a:2x8"], "--shapes a is given twice"),
    (["k.onnx", "--set", "k=1", "--set", "k=2"], "--set k is given twice"),
    *((["k.onnx", "--set", f"k={v}"], "NaN and infinity") for v in ("NaN", "-Infinity", "1e400")),
    (["/dev/zero"], "is a device"),
    (["m.onnx", "--calib", "/dev/zero"], "is a device"),
]


@pytest.mark.parametrize(("arguments", "words"), COMPILE, ids=[" ".join(a)[:40] for a, _ in COMPILE])
def test_qcompile(arguments, words, folder, monkeypatch, capfd):
    assert words in refused(qcompile_command.main, folder, [*arguments, "-o", "out"], monkeypatch, capfd)


RUN = [
    (["--output", ""], "it is a folder"),
    (["--output", "none/x"], "no folder none"),
    (["--output", "i.npz"], "it is read too"),
    (["--output", "o.npz", "--threads", "9" * 30], "--threads"),
    (["--output", "o.npz", "--threads", "0"], "--threads"),
    (["--output", "o.npz", "--core", ""], "--core needs --backend qemu"),
]


@pytest.mark.parametrize(("arguments", "words"), RUN)
def test_qrun(arguments, words, folder, monkeypatch, capfd):
    arguments = ["art-host", "--input", "i.npz", *arguments]
    assert words in refused(qrun.main, folder, arguments, monkeypatch, capfd)


BENCH = [
    (["--json", "folder"], "it is a folder"),
    (["--json", ""], "it is a folder"),
    (["--threads", "9" * 30], "--threads"),
    (["--json", "i.npz", "--input", "i.npz"], "it is read too"),
]


@pytest.mark.parametrize(("arguments", "words"), BENCH)
def test_qbench(arguments, words, folder, monkeypatch, capfd):
    assert words in refused(qbench.main, folder, ["art-host", *arguments], monkeypatch, capfd)


def test_devices_and_links_stay_what_they_are(folder, tmp_path):
    """/dev/null became a file of its own, where the user may write to /dev."""
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.json", "pipe"):
        end = CliRunner().invoke(
            qbench.main, [str(folder / "art-host"), "--seconds", "0.01", "--json", str(tmp_path / name)]
        )
        assert end.exit_code == 0, end.output
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text())
    assert (tmp_path / "pipe").is_fifo() and json.loads(os.read(reader, 1 << 20))
    os.close(reader)


def test_a_model_may_come_from_a_pipe(folder, tmp_path):
    """It is read once: what needs the file again does without."""
    command = f"cat {folder / 'm.onnx'} | {sys.executable} -m qcompile.cli.qcompile /dev/stdin -o {tmp_path} --name m"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "comes from a pipe" in done.stderr, done.stderr


def test_no_room_for_temporary_files(folder, tmp_path, monkeypatch):
    """LLVM ended the process where it could not write its object, and what other steps said was a raw OSError."""
    artifact = qcompile.compile(str(folder / "m.onnx"), output=tmp_path).path
    before = files(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "none"))
    target = get_target("host")
    assert compile_module({}, target)[:4] == b"\x7fELF"  # in memory, on Linux
    with pytest.raises(qcompile.CompileError, match=r"none.*No such file"):
        qcompile.compile(str(folder / "m.onnx"), output=tmp_path)
    assert files(tmp_path) == before and qcompile.load(artifact)
