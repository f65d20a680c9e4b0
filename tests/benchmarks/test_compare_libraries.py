"""compare_libraries.py: what it finds, and that it runs the code of the checkout that it says."""

import json
import subprocess
import sys
from pathlib import Path

import compare_libraries as compare
import onnx
from compared_nets import NETS

ROOT = Path(__file__).resolve().parents[2]


def artifact(folder, name, **manifest):
    (folder / name).mkdir(parents=True)
    (folder / name / "libnet.so").write_bytes(b"code")
    (folder / name / "manifest.json").write_text(json.dumps({"arena_bytes": 64, "name": "net"} | manifest))


def test_equal_folders_have_no_differences(tmp_path):
    for side in ("before", "after"):
        artifact(tmp_path / side, "net-arm-a76")
    assert compare.compare_folders(tmp_path / "before", tmp_path / "after") == []


def test_each_difference_is_named(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    artifact(before, "net-arm-a76")
    artifact(after, "net-arm-a76", arena_bytes=128)
    artifact(before, "net-arm-a53")
    (after / "net-arm-a76" / "libnet.so").write_bytes(b"cord")
    found = {(d.artifact, d.file): d.detail for d in compare.compare_folders(before, after)}
    assert found == {
        ("net-arm-a53", "libnet.so"): "only before",
        ("net-arm-a53", "manifest.json"): "only before",
        ("net-arm-a76", "libnet.so"): "4 bytes, others",
        ("net-arm-a76", "manifest.json"): "entries arena_bytes",
    }


def test_libraries_of_the_same_parts_differ_by_the_hash_alone(tmp_path):
    parts = {"objects_sha256": ["1"], "weights_sha256": "2", "library_bytes": 4, "code_bytes": 3, "header": "net.h"}
    for side, weights in (("before", "2"), ("after", "2"), ("other", "3")):
        artifact(tmp_path / side, "net", **parts | {"weights_sha256": weights, "content_hash": f"hash of {side:>6}"})
        (tmp_path / side / "net" / "net.h").write_text(f'#define HASH "hash of {side:>6}"')
        (tmp_path / side / "net" / "libnet.so").write_bytes(side.encode())
    found = compare.compare_folders(tmp_path / "before", tmp_path / "after")
    assert [(d.file, d.detail) for d in found] == [("manifest.json", "entries that follow from others")]
    found = compare.compare_folders(tmp_path / "before", tmp_path / "other")
    assert "libnet.so" in [d.file for d in found]


def test_a_linked_package_is_the_checkouts(tmp_path):
    package = compare.linked_package(ROOT, tmp_path)
    code = "import qcompile.targets as t, qcompile; print(qcompile.__file__, t.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(file).is_relative_to(package) for file in done.stdout.split())


def test_the_networks_are_valid():
    for make in NETS.values():
        onnx.shape_inference.infer_shapes(make(), strict_mode=True)
