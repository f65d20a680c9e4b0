"""--bits and what belongs to it, as a user calls it."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
import qcompile as api
from click.testing import CliRunner
from onnx import numpy_helper
from qcompile.cli import qcompile
from qcompile.mixed.hessian import Trace
from small_models import dense, model, quantized_dense, save

RNG = np.random.default_rng(0)


def call(*arguments):
    return CliRunner().invoke(qcompile.main, [str(a) for a in arguments])


def values(*shape):
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four products in a row as net.onnx, and samples as calib.npz."""
    folder = tmp_path_factory.mktemp("bits")
    sizes = (8, 64, 64, 64, 4)
    nodes, constants = [], {}
    for i, (k, n) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        nodes.append(("Gemm", [f"r{i}" if i else "x", f"w{i}", f"b{i}"], ["y" if last else f"g{i}"], {}))
        constants |= {f"w{i}": values(k, n), f"b{i}": values(n)}
        if not last:
            nodes.append(("Relu", [f"g{i}"], [f"r{i + 1}"], {}))
    save(model(*nodes, constants=constants), folder / "net.onnx")
    np.savez(folder / "calib.npz", x=RNG.standard_normal((32, 8)).astype(np.float32))
    return folder


def compiled(folder, *arguments, name="net"):
    out = folder / "build"
    options = ("--calib", folder / "calib.npz", "-o", out, "--name", name, "--json", folder / f"{name}.json")
    result = call(folder / "net.onnx", *options, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads((folder / f"{name}.json").read_text()), result


def bits_of(report):
    return {x["name"]: x["bits"] for x in report["layers"]}


def test_uniform_widths(folder):
    eight, _ = compiled(folder, name="eight")
    assert eight["bits"] == 8 and set(bits_of(eight).values()) == {"w8"} and eight["mixed"] is None
    four, _ = compiled(folder, "--bits", 4, name="four")
    assert four["bits"] == 4 and list(bits_of(four).values()) == ["w8", "w4", "w4", "w8"]
    assert sum(x["bytes"] for x in four["layers"]) < sum(x["bytes_8bit"] for x in four["layers"])
    assert four["snr_db"] < eight["snr_db"] and all(x["snr_db"] > 15 for x in four["layers"])
    edge, _ = compiled(folder, "--bits", 4, "--bits-edge", 4, "--group", 32, name="edge")
    assert list(bits_of(edge).values())[1:3] == ["w4 groups of 32"] * 2 and "w8" not in bits_of(edge).values()
    narrow, _ = compiled(folder, "--bits", "w4a4", name="narrow")
    assert narrow["bits"] == "w4a4" and "w4a4" in bits_of(narrow).values()
    for name in ("four", "edge", "narrow"):
        built = api.load(folder / "build" / f"{name}-host")
        x = built.quantize({"x": values(1, 8)})
        for key, value in built.run_integer(x).items():
            np.testing.assert_array_equal(value, built.reference_integer(x)[key])


def test_mixed_bits_are_kept_and_given_again(folder):
    report, result = compiled(folder, "--bits", "mixed", "--budget", "size=60%", "--keep", "-v", name="mixed")
    assert report["bits"] == "mixed" and report["mixed"]["size"] <= 0.6
    assert {"size", "latency"} == set(report["fronts"]) and len(report["fronts"]["size"]) > 2
    assert all(x["sensitivity"] >= 0 and x["time"] > 0 and x["snr_db"] > 10 for x in report["layers"])
    assert "mixed bits" in result.output and "sensitivity" in result.output and "SNR, dB" in result.output
    kept = folder / "build" / "mixed-host"
    html = (kept / "report.html").read_text()
    assert html.count("<svg") == sum(len(f) > 1 for f in report["fronts"].values()) > 0 and all(
        x["name"] in html for x in report["layers"]
    )
    again, _ = compiled(folder, "--bits", kept / "bits.json", name="again")
    assert again["bits"] == "custom" and bits_of(again) == bits_of(report)
    programs = [(folder / "build" / f"{n}-host" / "program.npz").read_bytes() for n in ("mixed", "again")]
    assert programs[0] == programs[1]


def test_python_takes_the_same(folder, tmp_path):
    options = {"calibration": folder / "calib.npz", "output": tmp_path}
    report = api.compile(folder / "net.onnx", bits="mixed", budget={"bops": 0.6}, report=True, **options).report
    assert report["mixed"]["bops"] <= 0.6 and (tmp_path / "net-host" / "report.html").exists()
    name = report["layers"][1]["name"]
    done = api.compile(folder / "net.onnx", bits={name: api.LayerBits(4)}, **options)
    assert bits_of(done.report)[name] == "w4" and done.report["snr_db"] is None


def test_techniques_can_be_switched_off(folder):
    plain, _ = compiled(folder, "--bits", 4, "--without", "learned-rounding", "--without", "equalise", name="plain")
    assert bits_of(plain)
    result = call(folder / "net.onnx", "--without", "luck")
    assert result.exit_code == 2 and "learned-rounding" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "5"), "--bits 5 is not supported"),
        (("--bits", "4", "--budget", "size=60%"), "--budget needs --bits mixed"),
        (("--bits", "mixed", "--budget", "size=10%"), "--budget size=10% cannot be reached: the least is 5"),
        (("--bits", "absent.json"), "bits file absent.json: cannot be read"),
        (("--bits", "mixed", "--sensitivity", "absent.json"), "--sensitivity absent.json: No such file"),
        (("--bits", "mixed", "--widths", "16"), "--widths 16"),
    ],
)
def test_refusals_are_one_line(folder, tmp_path, arguments, message):
    result = call(folder / "net.onnx", "--calib", folder / "calib.npz", "-o", tmp_path, *arguments)
    assert result.exit_code == 2 and message in result.output and not list(tmp_path.iterdir()), result.output


def test_a_file_for_another_model_is_refused(folder, tmp_path):
    (tmp_path / "bits.json").write_text('{"layers": {"conv9": {"weights": 4}}}')
    result = call(folder / "net.onnx", "--bits", tmp_path / "bits.json", "-o", tmp_path / "build")
    assert result.exit_code == 2 and "no layer 'conv9'" in result.output


def test_a_quantized_model_keeps_its_bits(tmp_path):
    result = call(save(quantized_dense(), tmp_path / "q.onnx"), "--bits", "4", "-o", tmp_path)
    assert result.exit_code == 0 and "quantized already: the choice of --bits is not used" in result.output
    assert json.loads((tmp_path / "q-host" / "manifest.json").read_text())["bits"] == 8


def test_latency_measured_on_this_machine(folder, monkeypatch):
    from qcompile.mixed import latency

    monkeypatch.setattr(latency, "SECONDS", 0.002)
    report, _ = compiled(folder, "--bits", "mixed", "--budget", "size=70%", "--latency", "measured", name="timed")
    assert report["time_unit"] == "us" and all(0 < x["time"] < 1e5 for x in report["layers"])


def test_a_file_of_traces_decides(folder, tmp_path):
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "net.onnx").graph.initializer}
    traces = api.HessianTraces()
    for i, precious in enumerate((1e-6, 1.0, 1e-6, 1e-6)):
        w = weights[f"w{i}"].T
        traces[f"module.w{i}"] = Trace(precious, 0.0, w.shape, tuple(np.square(w, dtype=float).sum(1)))
    traces.save(tmp_path / "traces.json")
    budget = ("--budget", "size=80%", "--sensitivity", tmp_path / "traces.json")
    report, _ = compiled(folder, "--bits", "mixed", *budget, name="traced")
    assert report["layers"][1]["weight_bits"] == 8 and report["layers"][2]["weight_bits"] == 4
    assert report["mixed"]["measure"].startswith("Hessian trace")


def test_synthetic_samples_serve_too(tmp_path):
    result = call(save(dense(), tmp_path / "net.onnx"), "--bits", "mixed", "--budget", "size=100%", "-o", tmp_path)
    assert result.exit_code == 0, result.output
