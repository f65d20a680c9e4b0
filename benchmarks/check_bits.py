"""Accuracy and weight bytes of the real nets at fewer bits, beside the goals; calibrated and without data.

check_bits.py [--limit N] [--modes 8,4,w4a4,mixed,synthetic] [--json FILE] [name ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import qcompile
from cases import GOALS, answer, feed, load_cases
from check_models import onnxruntime_outputs
from rich.console import Console
from rich.table import Table

BUDGET = "size=60%"  # of mixed
W4A8 = {  # case -> (holds for (score, float score), how the goal reads)
    "kws_dscnn": (lambda s, f: s >= 0.895, ">= 0.895"),
    "ic_resnet8": (lambda s, f: s >= f - 0.015, "within 0.015 of float"),
    "vww_mobilenetv1_025": (lambda s, f: s >= 0.97, ">= 0.97"),
    "fsdd_quartz_ctc": (lambda s, f: s <= 0.025, "<= 0.025"),
    "vit_mnist": (lambda s, f: s >= 0.945, ">= 0.945"),
    "minilm_l6": (lambda s, f: s >= 80.5, ">= 80.5"),
}
POINT = {"anomaly_score": 0.1, "sts_spearman": 1.0}  # what counts as one point of a metric; 0.01 of shares
LESS_IS_BETTER = {"wer"}
MODES: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "4": {"bits": 4},
    "w4a4": {"bits": "w4a4"},
    "mixed": {"bits": "mixed", "budget": [BUDGET]},
    "synthetic": {"bits": 8, "calibration": None},
}


def measure(name: str, case: Any, mode: str, limit: int | None) -> dict[str, Any]:
    """One net compiled in one mode: its score, bytes, and whether artifact and numpy meaning agree on some inputs."""
    inputs = case.inputs()[:limit]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = {"calibration": case.calibration()} | MODES[mode]
        built = qcompile.compile(case.model, "host", output=folder, name=name, **options)
        seconds = time.perf_counter() - began
        model = qcompile.load(built.path)
        floats = onnxruntime_outputs(case.model, inputs)
        like = {k: v.shape for k, v in floats[0].items()}
        given = [model.quantize(feed(model, x)) for x in inputs]
        integers = [model.run_integer(x) for x in given]
        outputs = [answer(model, model.dequantize(y), like) for y in integers]
        few = range(0, len(inputs), max(1, len(inputs) // 3))
        equal = all(
            np.array_equal(a, integers[i][k]) for i in few for k, a in model.reference_integer(given[i]).items()
        )
    metric = GOALS[name][0]
    return {
        "case": name,
        "mode": mode,
        "metric": metric,
        "score": case.score(outputs)[metric],
        "float": case.score(floats)[metric],
        "weights_bytes": built.manifest["weights_bytes"],
        "seconds": round(seconds, 1),
        "equal": equal,
        "notes": built.notes,
    }


def loss(row: dict[str, Any]) -> float:
    """Points that the score is worse than the float net's."""
    metric = row["metric"]
    difference = row["float"] - row["score"]
    difference = -difference if metric in LESS_IS_BETTER else abs(difference) if metric in POINT else difference
    return difference / POINT.get(metric, 0.01)


def verdict(rows: dict[str, dict[str, Any]], mode: str) -> tuple[str, bool | None]:
    """(the goal, whether it holds; None where there is none) of a case's row in one mode, from all of its rows."""
    row = rows[mode]
    if mode == "4" and row["case"] in W4A8:
        holds, text = W4A8[row["case"]]
        return text, holds(row["score"], row["float"])
    if mode == "mixed" and {"4", "8"} <= set(rows):  # mixed bits lie between both: what counts is the loss beside 8
        lost = loss(rows["4"]) - loss(rows["8"])
        if lost > 0.5:
            holds = loss(row) - loss(rows["8"]) <= lost / 3
            return f"a third of the {lost:.2f} points that 4 bits lose beside 8", holds
    if mode == "synthetic" and "8" in rows:
        return "within 1 point of calibrated", loss(row) - loss(rows["8"]) <= 1
    return "", None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--limit", type=int, help="inputs per case (default: all)")
    parser.add_argument("--modes", default=",".join(MODES), help="some of " + ", ".join(MODES))
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if set(modes) - set(MODES):
        parser.error(f"--modes: {', '.join(set(modes) - set(MODES))} are unknown; known are {', '.join(MODES)}")
    cases, every = load_cases(), []
    table = Table(title="Accuracy at fewer bits")
    for heading in ("case", "mode", "score", "float", "points lost", "weight bytes", "goal", "holds", "= meaning", "s"):
        table.add_column(heading, overflow="fold")
    console = Console(width=180)
    for name in arguments.names or cases:
        rows: dict[str, dict[str, Any]] = {}
        for mode in modes:
            rows[mode] = measure(name, cases[name], mode, arguments.limit)
            row = rows[mode]
            row["goal"], row["holds"] = verdict(rows, mode)
            console.print(f"{name} {mode}: {row['metric']} {row['score']:.4f} in {row['seconds']} s", highlight=False)
            share = row["weights_bytes"] / rows["8"]["weights_bytes"] if "8" in rows else 0
            table.add_row(
                name,
                mode,
                f"{row['metric']} {row['score']:.4f}",
                f"{row['float']:.4f}",
                f"{loss(row):.2f}",
                f"{row['weights_bytes']:,}" + (f" ({share:.2f})" if share else ""),
                row["goal"],
                {True: "yes", False: "NO", None: "-"}[row["holds"]],
                "yes" if row["equal"] else "NO",
                str(row["seconds"]),
            )
        every += rows.values()
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(every, indent=2) + "\n")
    failed = [f"{r['case']} {r['mode']}" for r in every if r["holds"] is False or not r["equal"]]
    if failed:
        raise SystemExit(f"not held: {', '.join(failed)}")


if __name__ == "__main__":
    main()
