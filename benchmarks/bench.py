"""Whole nets beside ONNX Runtime (fp32, int8 S8S8, int8 U8S8) and LiteRT on this machine, interleaved in one run.

bench.py [--resume] [--seconds S] [--threads N,M] [--target CPU] [--skip-peers] [--json FILE] [--list] [net ...]

For each net: latency with one thread and with all, each beside the peers, who take turns of a few milliseconds with it;
the ratio's quartiles over the turns; share of the machine's dot-product peak; time per kind of op; peak memory of a
process that runs one contender alone; sizes of the artifact; time and memory of the compilation. Figures are written
after each net; a net that fails is reported, and the rest go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host import machine
from host.nets import CACHE, BenchNet, bench_nets
from qcompile.targets import CompileError, get_target
from report import fastest, measured, share_of_peak, summary
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = CACHE / "results.json"
TIME_LIMIT = 900  # seconds for one step of one net
SIZES = ("library_bytes", "weights_bytes", "code_bytes", "arena_bytes", "live_bytes", "macs", "kernels", "kernel_calls")


class StepFailed(Exception):
    """A step of one net ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Contender:
    """label: as results name it; against: as qbench's --against takes it."""

    label: str
    runtime: str
    file: str

    @property
    def against(self) -> str:
        return f"{self.runtime}:{self.file}"


def step(*command: str) -> dict[str, Any]:
    """The JSON that a Python module prints in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"{command[0]}: more than {TIME_LIMIT} s") from error
    try:
        return json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as error:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise StepFailed(lines[-1][:300]) from error


def measure(net: BenchNet, options: argparse.Namespace, say: Any) -> dict[str, Any]:
    """All figures of one net; StepFailed where it does not compile or run."""
    say("compile")
    built = step("host.worker", "compile", net.name, options.target)
    manifest = json.loads((Path(built["path"]) / "manifest.json").read_text())
    row: dict[str, Any] = {key: manifest[key] for key in SIZES} | {
        "compile": {key: built[key] for key in ("seconds", "total_s", "peak_bytes")},
        "memory": {},
        "failed": {},
        "threads": {},
    }
    ours, rivals = Contender("qcompile", "qcompile", built["path"]), []
    for contender in (ours, *([] if options.skip_peers else _rivals(net, built, row["failed"], say))):
        say(f"memory of {contender.label}")
        try:
            report = step("host.worker", "run", contender.runtime, contender.file, ours.file)
            row["memory"][contender.label] = report["peak_bytes"]
            rivals += [contender] if contender is not ours else []
        except StepFailed as error:
            if contender is ours:
                raise
            row["failed"][contender.label] = str(error)
    for count in options.threads:
        say(f"latency, {count} thread{'s' * (count > 1)}")
        row["threads"][str(count)] = _latency(ours, rivals, count, options, profile=count == 1, row=row)
    return row


def _rivals(net: BenchNet, built: dict[str, Any], failed: dict[str, str], say: Any) -> list[Contender]:
    rivals = [
        Contender("ORT fp32", "onnxruntime", built["model"]),
        Contender("ORT S8S8", "onnxruntime", str(Path(built["path"]) / "model.qdq.onnx")),
    ]
    say("quantize for ONNX Runtime")
    try:
        rivals.append(Contender("ORT U8S8", "onnxruntime", step("host.worker", "quantize", net.name)["path"]))
    except StepFailed as error:
        failed["ORT U8S8"] = str(error)
    return rivals + ([Contender("LiteRT", "litert", str(net.tflite))] if net.tflite else [])


def _latency(
    ours: Contender,
    rivals: list[Contender],
    threads: int,
    options: argparse.Namespace,
    profile: bool,
    row: dict[str, Any],
) -> dict[str, Any]:
    """qbench's figures, the peers under their labels; the profile, summed up, goes to the row."""
    against = [part for rival in rivals for part in ("--against", rival.against)]
    report = step(
        "qcompile.cli.qbench",
        ours.file,
        *against,
        "--threads",
        str(threads),
        "--seconds",
        str(options.seconds),
        *(["--profile"] if profile else []),
        "--json",
        "-",
    )
    if profile:
        row["profile"] = {key: report["profile"][key] for key in ("total_us", "outside_matmuls", "kinds")}
    times = [key for key in ("median_us", "min_us", "p95_us", "cpu_us") if key in report]
    return {key: report[key] for key in times} | {
        "peers": {
            rival.label: {key: peer[key] for key in (*times, "ratio", "ratio_quartiles")}
            for rival, peer in zip(rivals, report["peers"])
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*")
    parser.add_argument("--list", action="store_true", help="names of the nets")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file has already")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time for each contender")
    parser.add_argument("--threads", type=lambda t: [int(n) for n in t.split(",")], help="default: 1 and all, as 1,2")
    parser.add_argument("--target", default="host")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file for all figures")
    options = parser.parse_args()
    options.threads = options.threads or sorted({1, machine.threads()})
    nets = bench_nets()
    if options.list:
        print("\n".join(nets))
        return
    unknown = [n for n in options.nets if n not in nets]
    if unknown:
        raise SystemExit(f"no net is called {', '.join(unknown)}; known are {', '.join(nets)}")
    try:
        target = get_target(options.target)
    except CompileError as error:
        raise SystemExit(str(error)) from error
    results = _begin(options, target)
    todo = [n for n in options.nets or nets if "error" in results["nets"].get(n, {"error": ""})]
    console = Console()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(todo))
        for name in todo:
            began = time.perf_counter()
            try:
                row = measure(
                    nets[name], options, lambda what, name=name: bar.update(task, description=f"{name}: {what}")
                )
            except StepFailed as error:
                row = {"error": str(error)}
            row["bench_s"] = round(time.perf_counter() - began, 1)
            results["nets"][name] = row
            _write(options.json, results)
            bar.advance(task)
            console.print(_line(name, row, results), highlight=False)
    console.print(table(results))
    console.print(summary(results), highlight=False)
    failed = [n for n, row in results["nets"].items() if "error" in row]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _begin(options: argparse.Namespace, target: Any) -> dict[str, Any]:
    facts = {"machine": machine.describe(), "target": target.cpu, "seconds": options.seconds}
    if options.resume and options.json.exists():
        results = json.loads(options.json.read_text())
        if {key: results.get(key) for key in facts} != facts:
            raise SystemExit(f"{options.json} is of another machine, target or setting: it cannot be resumed")
        return results
    base = step("host.worker", "run", "nothing", "-", "-")["peak_bytes"]
    return {**facts, "ceilings": machine.ceilings(target, options.threads), "python_bytes": base, "nets": {}}


def _write(file: Path, results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(file)


def _line(name: str, row: dict[str, Any], results: dict[str, Any]) -> str:
    if "error" in row:
        return f"[red]{name}: {row['error']}[/red]"
    parts = []
    for count, figures in row["threads"].items():
        peers = ", ".join(f"{label} {p['ratio']:.2f}" for label, p in figures["peers"].items())
        parts.append(
            f"{count} thread{'s' * (count != '1')} {figures['median_us']:.0f} µs, "
            f"{share_of_peak(row, count, results):.0%} of peak; {peers}"
        )
    return f"{name}: " + " | ".join(parts + [f"{k} failed: {v}" for k, v in row["failed"].items()])


def table(results: dict[str, Any]) -> Table:
    """Latency of all nets, and the ratio (peer / qcompile) to the fastest of ONNX Runtime's."""
    counts = sorted({c for row in measured(results).values() for c in row["threads"]}, key=int)
    out = Table(title="by number of threads; ratio = fastest of ONNX Runtime's / qcompile")
    for heading in ("net", *(f"{c}: {what}" for c in counts for what in ("µs", "of peak", "ratio"))):
        out.add_column(heading, justify="left" if heading == "net" else "right")
    for name, row in measured(results).items():
        cells = []
        for c in counts:
            best = fastest(row["threads"][c]) if c in row["threads"] else None
            cells += (
                [f"{row['threads'][c]['median_us']:.1f}", f"{share_of_peak(row, c, results):.0%}"]
                if c in row["threads"]
                else ["-", "-"]
            )
            cells.append(f"{best[1]:.2f} {best[0].removeprefix('ORT ')}" if best else "-")
        out.add_row(name, *cells)
    return out


if __name__ == "__main__":
    main()
