"""qrun and qbench, as a user calls them."""

import json

import numpy as np
import pytest
from commands import call
from onnx import TensorProto, helper, save
from qcompile.cli import qbench, qrun
from sample_artifacts import WEIGHTS, build_multiply

WEIGHT_VALUES = np.frombuffer(WEIGHTS, np.int8).astype(np.int32)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The sample artifact for this machine."""
    return build_multiply(tmp_path_factory.mktemp("host")).path


def run(path, folder, x, *options):
    np.savez(folder / "x.npz", **{"input/x": x, "labels": np.zeros(3)})
    result = call(qrun, path, "--input", folder / "x.npz", "--output", folder / "y.npz", *options)
    assert result.exit_code == 0, result.output
    with np.load(folder / "y.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 24), (1, 24)), ((5, 1, 24), (5, 1, 24)), ((5, 24), (5, 24)), ((1, 1, 24), (1, 1, 24))]
)
def test_one_inference_or_many(host, tmp_path, shape, expected):
    x = np.random.default_rng(4).integers(-128, 128, shape)
    y = run(host, tmp_path, x, "--integer")["y"]
    assert y.shape == expected and y.dtype == np.int32
    np.testing.assert_array_equal(y, x * WEIGHT_VALUES)
    reals = run(host, tmp_path, (x - 3) * 0.5)["y"]
    np.testing.assert_array_equal(reals, np.float32(0.25) * y.astype(np.float32))


def test_same_bytes_native_threaded_and_emulated(host, tmp_path):
    x = np.random.default_rng(5).normal(size=(4, 1, 24)) * 20
    files = []
    for path, options in ((host, ()), (host, ("--threads", 2)), (build_multiply(tmp_path, "arm-a72").path, ())):
        run(path, tmp_path, x, *options)
        files.append((tmp_path / "y.npz").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize(
    ("arrays", "options", "fault"),
    [
        ({"other": np.zeros(1)}, (), "no array 'input/x'; it has other"),
        ({"input/x": np.zeros((3, 7))}, (), "shape [3, 7]; the model takes [1, 24]"),
        ({"input/x": np.zeros((0, 1, 24))}, (), "shape [0, 1, 24]"),
        ({"input/x": np.zeros((1, 24))}, ("--integer",), "takes int8, not float64"),
        ({"input/x": np.zeros((1, 24))}, ("--reference",), "has no program.npz"),
        ({"input/x": np.zeros((1, 24))}, ("--backend", "unicorn"), "only aarch64 is emulated"),
        ({"input/x": np.zeros((1, 24))}, ("--core", "cortex-a72"), "--core needs --backend qemu"),
    ],
)
def test_qrun_says_what_is_wrong_in_one_line(host, tmp_path, arrays, options, fault):
    np.savez(tmp_path / "x.npz", **arrays)
    result = call(qrun, host, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz", *options)
    assert result.exit_code == 2 and fault in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / "y.npz").exists()


def test_bad_files_are_named(host, tmp_path):
    (tmp_path / "junk.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "x.npz", **{"input/x": np.zeros((1, 24))})
    for source, target, fault in (
        (tmp_path / "junk.npz", tmp_path / "y", "not a readable npz"),
        (tmp_path / "none.npz", tmp_path / "y", "no such file"),
        (tmp_path / "x.npz", tmp_path / "no" / "y", "cannot write"),
    ):
        result = call(qrun, host, "--input", source, "--output", target)
        assert result.exit_code == 2 and fault in result.output and len(result.output.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["junk.npz", "x.npz"]


@pytest.fixture
def peer(tmp_path):
    """An ONNX model of the same input and output."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input/x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("input/x", TensorProto.FLOAT, [1, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 24])],
        [helper.make_tensor("w", TensorProto.FLOAT, [24], WEIGHT_VALUES.astype(float))],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "peer.onnx")
    return tmp_path / "peer.onnx"


def test_qbench_reports_latency_and_ratio(host, peer, tmp_path):
    result = call(qbench, host, "--against", f"onnxruntime:{peer}", "--repeat", 30, "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["target"] == "host" and report["threads"] == 1 and report["calls"] == 30
    assert 0 < report["min_us"] <= report["median_us"] <= report["p95_us"]
    (other,) = report["peers"]
    assert (other["name"], other["model"], other["calls"]) == ("onnxruntime", str(peer), 30)
    assert other["ratio"] == pytest.approx(other["median_us"] / report["median_us"], rel=1e-3)
    np.savez(tmp_path / "x.npz", **{"input/x": np.zeros((3, 24))})
    result = call(qbench, host, "--input", tmp_path / "x.npz", "--seconds", 0.02, "--json", tmp_path / "report.json")
    assert result.exit_code == 0 and "median" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["peers"] == []


def test_qbench_says_what_is_wrong(host, tmp_path):
    arm = build_multiply(tmp_path, "arm-a76").path
    for path, options, fault in (
        (host, ("--against", "onnxruntime"), "no model.qdq.onnx: compile with --keep"),
        (host, ("--against", "onnxruntime:none.onnx"), "none.onnx does not exist"),
        (host, ("--against", "tflite"), "unknown peer 'tflite'"),
        (arm, (), "cannot run natively"),
    ):
        result = call(qbench, path, *options)
        assert result.exit_code == 2 and fault in result.output and len(result.output.splitlines()) == 1


def test_cpu_time_is_of_one_thread_only(host, peer):
    for threads in (1, 2):
        result = call(
            qbench, host, "--against", f"onnxruntime:{peer}", "--seconds", 0.02, "--threads", threads, "--json", "-"
        )
        report = json.loads(result.output)
        for row in (report, *report["peers"]):
            assert ("cpu_us" in row) == (threads == 1) and row.get("cpu_us", 1) > 0
        low, high = report["peers"][0]["ratio_quartiles"]
        assert 0 < low <= high
