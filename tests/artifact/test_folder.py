"""The artifact folder: its files, the same bytes every time, and whole or not there."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from qcompile.artifact import TensorInfo, build_artifact, c_identifier, write_folder
from qcompile.runtime import load
from qcompile.targets import CompileError
from sample_artifacts import build_multiply, build_parallel, multiply_spec


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_manifest_tells_everything(tmp_path):
    spec = replace(multiply_spec(tmp_path, "arm-a76"), extra={"bits": 8}, files={"kept/model.onnx": b"onnx"})
    artifact = build_artifact(spec, tmp_path / "build")
    assert artifact.path == tmp_path / "build" / "multiply-arm-a76"
    assert sorted(tree(artifact.path)) == ["kept/model.onnx", "libmultiply.so", "manifest.json", "multiply.h"]
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest == artifact.manifest
    assert manifest["inputs"] == [{"name": "input/x", "dtype": "int8", "shape": [1, 24], "scale": 0.5, "zero_point": 3}]
    expected = {
        "name": "multiply",
        "target": "arm-a76",
        "library": "libmultiply.so",
        "arena_bytes": 96,
        "macs": 24,
        "weights_bytes": 24,
        "bits": 8,
        "abi_version": 2,
        "kind": "cpu",
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["proof"]["float_instructions"] == manifest["proof"]["undefined_symbols"] == 0
    assert manifest["library_bytes"] == len((artifact.path / "libmultiply.so").read_bytes()) < 20_000


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_same_bytes_in_every_folder_and_home(tmp_path, target, monkeypatch):
    first = build_parallel(tmp_path / "a", target)
    monkeypatch.setenv("HOME", "/proc")  # not writable by anyone
    for variable in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = build_parallel(tmp_path / "another" / "folder", target)
    assert tree(first.path) == tree(second.path)
    assert str(tmp_path).encode() not in b"".join(tree(first.path).values()), "no path of this machine inside"
    assert not list((tmp_path / "elsewhere").iterdir()), "nothing dropped in the working directory"


def test_builds_side_by_side(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        artifacts = list(pool.map(lambda i: build_multiply(tmp_path / str(i), "arm-a53"), range(6)))
    assert len({bytes(b"".join(tree(artifact.path).values())) for artifact in artifacts}) == 1


def test_writers_of_one_folder_leave_one_whole_artifact(tmp_path):
    def write(i: int) -> None:
        manifest = {"abi_version": 1, "library_sha256": "", "library": "m.so", "header": "m.h", "files": {}, "i": i}
        write_folder(
            tmp_path / "build" / "m-host",
            {"manifest.json": json.dumps(manifest).encode(), "m.h": json.dumps(manifest).encode()},
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert os.listdir(tmp_path / "build") == ["m-host"]
    assert len(set(tree(tmp_path / "build" / "m-host").values())) == 1


def test_existing_artifact_is_replaced_whole(tmp_path):
    spec = multiply_spec(tmp_path, "arm-a76")
    build_artifact(replace(spec, files={"old.html": b"old"}), tmp_path / "build")
    artifact = build_artifact(spec, tmp_path / "build")
    assert sorted(tree(artifact.path)) == ["libmultiply.so", "manifest.json", "multiply.h"]
    assert os.listdir(tmp_path / "build") == ["multiply-arm-a76"]


@pytest.mark.parametrize("file", ["libmultiply.so", "manifest.json"])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, file):
    spec = multiply_spec(tmp_path, "arm-a76")
    artifact = build_artifact(spec, tmp_path / "build")
    before, write = tree(artifact.path), Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CompileError, match=r"cannot write .*No space left on device"):
        build_artifact(replace(spec, weights=b"other"), tmp_path / "build")
    assert os.listdir(tmp_path / "build") == ["multiply-arm-a76"] and tree(artifact.path) == before


def test_unwritable_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CompileError, match="cannot write"):
        build_artifact(multiply_spec(tmp_path, "arm-a76"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_folder_of_something_else_is_not_replaced(tmp_path):
    mine = tmp_path / "build" / "multiply-arm-a76"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(CompileError, match="is no artifact"):
        build_artifact(multiply_spec(tmp_path, "arm-a76"), tmp_path / "build")
    assert tree(mine) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model", "model"),
        ("My net-v2.1", "My_net_v2_1"),
        ("3d", "model_3d"),
        ("réseau", "reseau"),
        ("模型", "model"),
        ("class", "class_"),
        ("__x", "x"),
        ("", "model"),
    ],
)
def test_names_become_c_identifiers(text, word):
    assert c_identifier(text) == word


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"inputs": []}, "no inputs"),
        ({"objects": []}, "no code"),
        ({"files": {"../evil": b""}}, "not a file name"),
        ({"outputs": [TensorInfo("y", "float32", (1,))]}, "has type float32"),
        ({"outputs": [TensorInfo("y", "int8", (0, 4))]}, "every size must be"),
        ({"outputs": [TensorInfo("y", "int8", (4,), 0.0)]}, "positive and finite"),
        ({"outputs": [TensorInfo("y", "int8", (4,), [1.0, 2.0])]}, "2 scales along axis 0"),
        ({"inputs": [TensorInfo("x", "int8", (4,)), TensorInfo("x", "int8", (4,))]}, "two inputs are called 'x'"),
    ],
)
def test_impossible_specs_are_refused(tmp_path, change, fault):
    with pytest.raises(CompileError, match=fault):
        build_artifact(replace(multiply_spec(tmp_path), **change), tmp_path / "build")
    assert not (tmp_path / "build").exists()


ROOT = Path(__file__).parent.parent.parent
ODD = TensorInfo('odd "*/ name??/', "int8", (1, 24), 1 / 3, -7)


def zig(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cwd / "zig"), "ZIG_LOCAL_CACHE_DIR": str(cwd / "zig")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", [("-xc", "-std=c99"), ("-xc", "-std=c17"), ("-xc++", "-std=c++11")])
def test_header_stands_alone_in_c_and_cpp(tmp_path, language):
    spec = replace(multiply_spec(tmp_path), inputs=[ODD])
    one = build_artifact(spec, tmp_path / "build")
    build_artifact(replace(spec, name="second"), tmp_path / "build")
    main = tmp_path / "main.c"
    main.write_text(
        '#include "multiply.h"\n#include "second.h"\n#include "multiply.h"\n'
        "size_t use(void);\nsize_t use(void) { return multiply_arena_bytes() + "
        "(size_t)second_info()->outputs[0].dims[0]; }\n"
    )
    zig(
        "clang",
        *language,
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-ffreestanding",
        "-nostdinc",
        "-isystem",
        str(Path(__import__("ziglang").__file__).parent / "lib/include"),
        f"-I{one.path}",
        f"-I{tmp_path / 'build' / 'second-host'}",
        "-c",
        str(main),
        "-o",
        "main.o",
        cwd=tmp_path,
    )


def test_c_example_runs(tmp_path):
    artifact = build_multiply(tmp_path)
    library = artifact.path / "libmultiply.so"
    zig(
        "cc",
        "-O1",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DMODEL=multiply",
        '-DHEADER="multiply.h"',
        f"-I{artifact.path}",
        str(ROOT / "examples/c/main.c"),
        str(library),
        f"-Wl,-rpath,{artifact.path}",
        "-o",
        "main",
        cwd=tmp_path,
    )
    (tmp_path / "x.raw").write_bytes(bytes([2] * 24))
    printed = subprocess.run([tmp_path / "main", tmp_path / "x.raw"], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[1].split() == ["y:", *(f"{0.25 * 2 * w:g}" for w in (*range(-12, 0), 0, 1, 2, 3))]


@pytest.mark.parametrize(
    "name", ["model", "qc_model", "qc", "float", "run", "static", "launch", "my-net.v2", "2nd net"]
)
def test_any_model_name_links(tmp_path, name):
    spec = replace(multiply_spec(tmp_path / "objects", "host"), name=name)
    assert load(build_artifact(spec, tmp_path / "build").path).outputs
