"""qbench --profile: every op with its time, the products apart from the rest, and the artifact untouched."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from programs import residual_net
from qcompile.cli import qbench
from qcompile.cli.profile import OpTime, _by_kind, _outside_matmuls, profile
from qcompile.pipeline import compile
from qcompile.runtime import load
from sample_artifacts import build_multiply
from small_models import save


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    return compile(save(residual_net(), folder / "net.onnx"), output=folder).path


def bench(*arguments):
    return CliRunner().invoke(qbench.main, [str(a) for a in arguments])


@pytest.mark.parametrize("threads", [1, 2])
def test_all_ops_and_all_macs_are_listed(artifact, threads):
    model = load(artifact)
    inputs = {t.name: np.ones(t.shape, t.dtype) for t in model.inputs}
    report = profile(model, inputs, 0.02, threads)
    manifest = json.loads((artifact / "manifest.json").read_text())
    ops = report["ops"]
    assert sum(o["calls"] for o in ops) == manifest["kernel_calls"]
    assert sum(o["macs"] for o in ops) == sum(k["macs"] for k in report["kinds"].values()) == manifest["macs"] > 0
    assert all(o["us"] >= 0 and 0 <= o["share"] < 1 for o in ops) and report["total_us"] > 0 and report["runs"] >= 5
    assert sum(k["share"] for k in report["kinds"].values()) == pytest.approx(1, abs=0.01)
    assert report["same_code"], "the kernels are the artifact's own"
    assert {"conv", "copy"} <= set(report["kinds"]) and 0 < report["outside_matmuls"] < 1
    assert all((o["gmacs_per_s"] is not None) == bool(o["macs"] and o["us"]) for o in ops)


def test_the_command_prints_it_and_leaves_the_artifact_alone(artifact, tmp_path):
    before = {f.name: f.read_bytes() for f in artifact.iterdir() if f.is_file()}
    result = bench(artifact, "--profile", "--seconds", 0.02, "--json", tmp_path / "report.json")
    assert result.exit_code == 0 and "time per op" in result.output and "by kind of op" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["profile"]["ops"]
    assert {f.name: f.read_bytes() for f in artifact.iterdir() if f.is_file()} == before


def test_a_compiler_that_has_changed_is_noted(artifact, monkeypatch):
    from qcompile.backends import cpu

    monkeypatch.setattr(cpu, "PASSES", [p for p in cpu.PASSES if p[0] != "fuse"])
    result = bench(artifact, "--profile", "--seconds", 0.02)
    assert result.exit_code == 0 and "the compiler has changed since" in result.output


def test_an_artifact_without_its_program_is_named(tmp_path):
    result = bench(build_multiply(tmp_path).path, "--profile", "--seconds", 0.01)
    assert result.exit_code == 2 and "has no program.npz" in result.output


def test_what_lies_outside_the_products():
    """Attention counts as its products at the dense layers' rate; without dense layers, as a product."""

    def op(kind, us, macs=0):
        return OpTime("n", "op", kind, "", "k", 1, us, us / 100, macs)

    dense, attention, norm = op("matmul", 50.0, 5000), op("attention", 30.0, 1000), op("norm", 20.0)
    assert _outside_matmuls([dense, attention, norm]) == pytest.approx(0.4)
    assert _outside_matmuls([attention, norm]) == pytest.approx(0.4)
    assert _outside_matmuls([dense]) == 0 and _outside_matmuls([]) == 0
    kinds = _by_kind([norm, dense, dense])
    assert list(kinds) == ["matmul", "norm"] and kinds["matmul"]["macs"] == 10000 and kinds["matmul"]["calls"] == 2
