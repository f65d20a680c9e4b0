"""bench.py end to end on a small net, and its report."""

import argparse
import json
import sys
import types
from pathlib import Path

import bench
import numpy as np
import pytest
import report
from host import machine, worker
from host.nets import BenchNet, bench_nets
from qcompile.targets import get_target
from small_models import dense, save


def times(median):
    return {"median_us": median, "min_us": median, "p95_us": median, "cpu_us": median / 2}


def figures(median, **ratios):
    """A row of one number of threads; the peers were interrupted half of the time, we were not."""
    ours = times(median) | {"cpu_us": median}
    return ours | {
        "peers": {
            label: times(median * r) | {"ratio": r, "ratio_quartiles": [r * 0.9, r * 1.2]}
            for label, r in ratios.items()
        }
    }


@pytest.fixture
def results():
    """Two nets that ran and one that did not."""
    row = {
        "library_bytes": 3000,
        "weights_bytes": 2_000_000,
        "code_bytes": 4096,
        "arena_bytes": 10304,
        "live_bytes": 10240,
        "macs": 400_000_000,
        "kernels": 3,
        "kernel_calls": 9,
        "failed": {"LiteRT": "no memory"},
        "compile": {"seconds": {"read": 0.5, "calibrate and quantize": 1.5}, "total_s": 2.0, "peak_bytes": 5e8},
        "memory": {"qcompile": 3e7, "ORT fp32": 9e7},
        "profile": {"outside_matmuls": 0.08},
        "threads": {
            "1": figures(2000.0, **{"ORT fp32": 4.0, "ORT S8S8": 6.0, "ORT U8S8": 2.0}),
            "2": figures(1000.0, **{"ORT fp32": 8.0}),
        },
    }
    other = json.loads(json.dumps(row)) | {"failed": {}}
    other["threads"]["1"] = figures(1000.0, **{"ORT fp32": 8.0, "LiteRT": 1.5})
    return {
        "machine": machine.describe(),
        "target": "x86-avx2",
        "seconds": 1.0,
        "python_bytes": 28e6,
        "ceilings": {c: {"gmacs_per_s": 400.0 * int(c), "read_gb_per_s": 20.0} for c in ("1", "2")},
        "nets": {"a": row, "b": other, "c": {"error": "it does not compile", "bench_s": 1}},
    }


def test_figures_of_the_report(results):
    row = results["nets"]["a"]
    assert report.fastest(row["threads"]["1"]) == ("ORT U8S8", 2.0)
    assert report.share_of_peak(row, "1", results) == pytest.approx(0.5)
    assert report.share_of_peak(row, "2", results) == pytest.approx(0.5)
    assert report.memory_floor_us(row, results) == pytest.approx(2_010_304 / 20e3)
    del row["threads"]["2"]["cpu_us"]
    row["threads"]["1"]["cpu_us"] = 1600.0
    assert report.share_of_peak(row, "1", results) == pytest.approx(0.625), "400 us of 2000 went to others"
    assert report.share_of_peak(row, "2", results) == pytest.approx(0.5)
    row["threads"]["1"]["cpu_us"] = 2000.0
    assert "4.00 times faster" in report.summary(results), "geometric mean of 2 and 8; LiteRT is not counted"
    assert "least 2.00 (a)" in report.summary(results)


def test_tables_plot_and_readme(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "r.json").write_text(json.dumps(results))
    (tmp_path / "README.md").write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "report.py",
            str(tmp_path / "r.json"),
            "--folder",
            str(tmp_path / "results"),
            "--readme",
            str(tmp_path / "README.md"),
        ],
    )
    plots = []
    for _ in range(2):
        report.main()
        plots.append((tmp_path / "results/x86.svg").read_bytes())
    assert plots[0] == plots[1], "the same figures give the same plot"
    text = (tmp_path / "results/x86.md").read_text()
    for part in (
        "| a | 0.4 | 2000 | 50% | 4.00 (3.60–4.80) |",
        "**2.00**",
        "+0.6%",
        "8%",
        "- c: it does not compile",
        "- a, LiteRT: no memory",
    ):
        assert part in text
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- bench -->\n") and readme.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in readme and "](results/x86.svg)" in readme
    with pytest.raises(ValueError, match="no markers"):
        report.replace_part("nothing", "bench", "")


def options(tmp_path, **changed):
    return argparse.Namespace(
        **{
            "nets": [],
            "list": False,
            "resume": False,
            "seconds": 0.02,
            "threads": [1],
            "target": "host",
            "skip_peers": False,
            "json": tmp_path / "r.json",
        }
        | changed
    )


def test_one_net_from_compilation_to_latency(tmp_path, monkeypatch):
    """The worker's jobs run here rather than in processes of their own, so that they see a net made for the test."""
    model = save(dense(), tmp_path / "net.onnx")
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 8)).astype(np.float32)} for i in range(4)]
    monkeypatch.setattr("host.nets.CACHE", tmp_path)
    net = BenchNet("net", lambda: Path(model), lambda: feeds)
    monkeypatch.setattr("host.nets.bench_nets", lambda: {"net": net})
    processes = bench.step

    def step(*command):
        return worker.JOBS[command[1]](*command[2:]) if command[0] == "host.worker" else processes(*command)

    monkeypatch.setattr(bench, "step", step)
    row = bench.measure(net, options(tmp_path), lambda what: None)
    assert row["macs"] == 32 and row["failed"] == {} and row["compile"]["seconds"]
    assert set(row["memory"]) == {"qcompile", "ORT fp32", "ORT S8S8", "ORT U8S8"}
    assert min(row["memory"].values()) > 1e6 and 0 < row["profile"]["outside_matmuls"] <= 1
    one = row["threads"]["1"]
    assert one["median_us"] > 0 and set(one["peers"]) == {"ORT fp32", "ORT S8S8", "ORT U8S8"}
    for peer in one["peers"].values():
        assert peer["ratio"] > 0 and peer["ratio_quartiles"][0] <= peer["ratio_quartiles"][1]
    assert str(tmp_path) not in json.dumps(row), "results name no folder of this machine"


def test_a_net_that_fails_is_reported_and_the_rest_go_on(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(net, *_):
        calls.append(net.name)
        if net.name == "bad":
            raise bench.StepFailed("Softplus is not supported")
        return {"macs": 1000, "threads": {"1": figures(10.0, **{"ORT fp32": 3.0})}, "failed": {}}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "bench_nets", lambda: {n: types.SimpleNamespace(name=n) for n in ("bad", "good")})
    monkeypatch.setattr(machine, "ceilings", lambda target, counts: {"1": {"gmacs_per_s": 9.0, "read_gb_per_s": 1.0}})
    file = tmp_path / "r.json"
    for arguments, ran in ((["--threads", "1"], ["bad", "good"]), (["--threads", "1", "--resume"], ["bad"])):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["bench.py", "--json", str(file), *arguments])
        with pytest.raises(SystemExit, match="failed: bad"):
            bench.main()
        assert calls == ran
        assert json.loads(file.read_text())["nets"]["bad"]["error"] == "Softplus is not supported"
    assert "Softplus is not supported" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench.py", "--json", str(file), "--resume", "--seconds", "9"])
    with pytest.raises(SystemExit, match="cannot be resumed"):
        bench.main()


def test_a_step_that_fails_says_why(tmp_path):
    with pytest.raises(bench.StepFailed, match="artifact"):
        bench.step("qcompile.cli.qbench", str(tmp_path), "--json", "-")


def test_nets_by_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--list"])
    bench.main()
    assert {"resnet50", "gpt2_64"} <= set(capsys.readouterr().out.split()) == set(bench_nets())
    for arguments, message in ((["resnet51"], "no net is called resnet51"), (["--target", "z80"], "unknown target")):
        monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            bench.main()


def test_ceilings_of_this_machine(monkeypatch):
    monkeypatch.setattr(machine, "STEPS", 2000)
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 24)
    found = machine.ceilings(get_target("host"), [1])
    assert 1 < found["1"]["gmacs_per_s"] < 10_000 and 0.1 < found["1"]["read_gb_per_s"] < 10_000
