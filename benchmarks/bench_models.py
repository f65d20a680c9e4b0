"""Latency of all real nets beside ONNX Runtime fp32 and int8, one thread, interleaved in one run.

bench_models.py [--seconds S] [--json FILE] [name ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import qcompile
from cases import load_cases
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--target", default="host")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time per contender")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    cases, rows = load_cases(), []
    table = Table(title=f"median latency in microseconds, one thread, {arguments.target}; ratio = peer / qcompile")
    for heading in ("case", "qcompile", "ORT fp32", "ratio", "ORT int8", "ratio"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for name in arguments.names or cases:
        case = cases[name]
        with tempfile.TemporaryDirectory() as folder:
            built = qcompile.compile(
                case.model, arguments.target, calibration=case.calibration(), output=folder, name=name
            )
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "qcompile.cli.qbench",
                    str(built.path),
                    "--against",
                    f"onnxruntime:{case.model}",
                    "--against",
                    "onnxruntime",
                    "--seconds",
                    str(arguments.seconds),
                    "--json",
                    "-",
                ],
                capture_output=True,
                text=True,
                check=True,
            )
        report = json.loads(done.stdout)
        fp32, int8 = report["peers"]
        rows.append(report)
        table.add_row(
            name,
            *(f"{v:.1f}" for v in (report["median_us"], fp32["median_us"])),
            f"{fp32['ratio']:.2f}",
            f"{int8['median_us']:.1f}",
            f"{int8['ratio']:.2f}",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
