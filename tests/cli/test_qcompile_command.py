"""qcompile as a user calls it, and qrun on what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from programs import residual_net
from qcompile.cli import qbench, qcompile, qrun
from qcompile.pipeline import compile as qcompile_api
from small_models import dense, model, save


@pytest.fixture
def net(tmp_path):
    return save(dense(), tmp_path / "net.onnx")


def test_the_whole_way(net, tmp_path):
    x = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    outputs = {}
    for target in ("host", "arm-a76"):
        result = call(qcompile, net, "--target", target, "--calib", tmp_path / "calib.npz", "-o", tmp_path / "build")
        assert result.exit_code == 0, result.output
        assert "0 float instructions in" in result.output and f"net-{target}" in result.output
        folder = tmp_path / "build" / f"net-{target}"
        result = call(qrun, folder, "--input", tmp_path / "calib.npz", "--output", tmp_path / "y.npz")
        assert result.exit_code == 0, result.output
        outputs[target] = (tmp_path / "y.npz").read_bytes()
    assert outputs["host"] == outputs["arm-a76"]
    result = call(qbench, tmp_path / "build/net-host", "--against", "onnxruntime", "--seconds", 0.05, "--json", "-")
    assert result.exit_code == 0 and json.loads(result.stdout)["peers"][0]["ratio"] > 0, result.output


def test_json_on_standard_output_and_to_a_file(net, tmp_path):
    result = call(qcompile, net, "-o", tmp_path / "build", "--json", "-")
    report = json.loads(result.stdout)
    assert report["proof"]["float_instructions"] == 0 and report["macs"] == 32 and report["tool_version"]
    assert any("synthetic" in note for note in report["notes"])
    result = call(qcompile, net, "-o", tmp_path / "build", "--json", tmp_path / "report.json")
    assert result.exit_code == 0 and json.loads((tmp_path / "report.json").read_text())["path"] == report["path"]


def test_options_reach_the_compiler(tmp_path):
    path = save(model(("Relu", ["x"], ["y"], {}), inputs={"x": [1, "n"]}), tmp_path / "relu.onnx")
    result = call(
        qcompile, path, "-o", tmp_path, "--shapes", "x:1x12", "--name", "other", "--keep", "--threads", 2, "-v"
    )
    assert result.exit_code == 0 and "time: " in result.output, result.output
    manifest = json.loads((tmp_path / "other-host" / "manifest.json").read_text())
    assert manifest["inputs"][0]["shape"] == [1, 12] and manifest["threads"] == 2 and manifest["name"] == "other"
    assert (tmp_path / "other-host" / "ir").is_dir()


def test_help_needs_no_model():
    result = call(qcompile, "--help")
    assert result.exit_code == 0 and all(o in result.output for o in ("--target", "--calib", "--shapes", "--keep"))


def test_both_approximations_compile(tmp_path):
    path = save(residual_net(), tmp_path / "net.onnx")
    for approximation in ("exact", "ibert"):
        result = call(qcompile, path, "-o", tmp_path / approximation, "--approx", approximation)
        assert result.exit_code == 0, result.output


def test_a_defect_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys):
    import qcompile.pipeline
    from qcompile.cli.qcompile import main

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(qcompile.pipeline, "compile", fails)
    monkeypatch.delenv("QCOMPILE_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([str(save(dense(), tmp_path / "net.onnx"))])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1 and "unexpected ZeroDivisionError: by zero" in message


def test_litert_is_a_peer(tmp_path):
    """The tflite file of a real net, fed through its own scale and shape."""
    pytest.importorskip("ai_edge_litert")
    case = Path(__file__).resolve().parents[3] / "shared/models/kws_dscnn"
    if not case.exists():
        pytest.skip("needs ../shared/models")
    built = qcompile_api(case / "float.onnx", output=tmp_path, name="kws").path
    against = ("--against", f"litert:{case / 'int8.tflite'}")
    result = call(qbench, built, *against, "--against", "onnxruntime", "--seconds", 0.05, "--json", "-")
    assert result.exit_code == 0, result.output
    litert, onnxruntime = json.loads(result.stdout)["peers"]
    assert (litert["name"], onnxruntime["name"]) == ("litert", "onnxruntime") and litert["ratio"] > 0
    low, high = litert["ratio_quartiles"]
    assert 0 < low <= high
    result = call(qbench, built, "--against", f"litert:{case / 'float.onnx'}", "--seconds", 0.05)
    assert result.exit_code == 2 and "litert cannot run" in result.output
