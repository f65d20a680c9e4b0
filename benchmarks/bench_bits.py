"""Whole nets with weights of 4 bits beside the same nets with weights of 8, in turns: time and weight bytes.

bench_bits.py [--bits 4] [--seconds S] [--json FILE] [net ...]

Weights are rounded to nearest (learned rounding would take minutes and change neither time nor bytes).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import qcompile
from host.nets import BenchNet, bench_nets
from qcompile.quantizer import QuantizeOptions
from rich.console import Console
from rich.table import Table

NETS = ("resnet18", "resnet50", "mobilenet_v2", "bert_base_128", "gpt2_64", "deit_s")
ROUNDED = QuantizeOptions(learned_rounding=False, error_feedback=False, equalise=False)
TURN = 0.05  # seconds


def measure(net: BenchNet, bits: str, seconds: float) -> dict[str, Any]:
    """Medians over turns of both, and the median of the turns' ratios."""
    with tempfile.TemporaryDirectory() as folder:
        models, sizes, samples = [], [], net.calibration()
        for width in ("8", bits):
            built = qcompile.compile(
                net.model(), "host", bits=width, calibration=samples, output=folder,
                name=f"{net.name}_{width}", options=ROUNDED,
            )  # fmt: skip
            models.append(qcompile.load(built.path, backend="native"))
            sizes.append(built.manifest["weights_bytes"])
            layers = built.report.get("layers", [])
        given = [m.quantize(samples[0]) for m in models]
        turns: list[list[float]] = [[], []]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(turns[0]) < 5:
            for taken, model, x in zip(turns, models, given):
                model.run_integer(x)
                began, runs = time.perf_counter(), 0
                while runs == 0 or time.perf_counter() - began < TURN:
                    model.run_integer(x)
                    runs += 1
                taken.append((time.perf_counter() - began) / runs)
    return {
        "net": net.name,
        "ms": [round(1e3 * median(t), 4) for t in turns],
        "ratio": round(median(b / a for a, b in zip(*turns)), 4),
        "weights_bytes": sizes,
        "bytes_ratio": round(sizes[1] / sizes[0], 4),
        "codes_ratio": round(sum(x["bytes"] for x in layers) / sum(x["bytes_8bit"] for x in layers), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--bits", default="4", help="what to measure beside 8")
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time per net")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    nets, rows = bench_nets(), []
    table = Table(title=f"Weights of {arguments.bits} bits beside 8")
    headings = ("net", "ms at 8 bits", f"ms at {arguments.bits}", "time ratio", "constants", "ratio", "weights alone")
    for heading in headings:
        table.add_column(heading)
    for name in arguments.names or NETS:
        row = measure(nets[name], arguments.bits, arguments.seconds)
        rows.append(row)
        eight, fewer = row["ms"]
        table.add_row(name, f"{eight:.3f}", f"{fewer:.3f}", f"{row['ratio']:.3f}", f"{row['weights_bytes'][1]:,}",
                      f"{row['bytes_ratio']:.3f}", f"{row['codes_ratio']:.3f}")  # fmt: skip
        print(f"{name}: {row['ratio']:.3f} of the time, {row['bytes_ratio']:.3f} of the bytes", flush=True)
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
