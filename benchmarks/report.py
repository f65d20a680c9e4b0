"""The figures of bench.py as Markdown and as a plot; the README's part between its markers is replaced.

report.py [JSON] [--folder benchmarks/results] [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "x86.json"
PEERS = ("ORT fp32", "ORT S8S8", "ORT U8S8", "LiteRT")
RUNTIME = PEERS[:3]  # the goal is the fastest of ONNX Runtime's
COLOURS = ("#4477aa", "#ee6677", "#ccbb44", "#228833")
MEGABYTE = 1e6

Row = dict[str, Any]


def measured(results: Row) -> dict[str, Row]:
    """The nets that ran."""
    return {name: row for name, row in results["nets"].items() if "error" not in row}


def fastest(figures: Row, labels: Iterable[str] = RUNTIME, key: str = "median_us") -> tuple[str, float] | None:
    """(label, ratio) of the fastest of these peers; `key`: which of the times, as median_us or cpu_us."""
    found = [(label, figures["peers"][label][key] / figures[key]) for label in labels if label in figures["peers"]]
    return min(found, key=lambda f: f[1], default=None)


def share_of_peak(row: Row, count: str, results: Row) -> float:
    """MAC/s of the whole net over the measured peak of the dot product, with as many threads. Time that other processes
    took is left out where it is known."""
    figures = row["threads"][count]
    rate = row["macs"] / min(figures["median_us"], figures.get("cpu_us", math.inf)) / 1e3
    return rate / results["ceilings"][count]["gmacs_per_s"]


def memory_floor_us(row: Row, results: Row, count: str = "1") -> float:
    """Time to read weights and arena once from memory; nets that fit the caches need not."""
    return (row["weights_bytes"] + row["arena_bytes"]) / results["ceilings"][count]["read_gb_per_s"] / 1e3


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def speed_table(results: Row) -> str:
    """Latency with one thread and with all, and the ratio to every peer."""
    many = [c for c in _counts(results) if c != "1"]
    head = [
        "net",
        "GMAC",
        "µs",
        "of peak",
        *(f"vs {p}" for p in PEERS),
        "vs fastest ORT",
        *(h for c in many for h in (f"µs, {c} threads", "scaling", "vs fastest ORT")),
    ]
    rows = []
    for name, row in measured(results).items():
        if "1" not in row["threads"]:
            continue
        one = row["threads"]["1"]
        cells = [
            name,
            f"{row['macs'] / 1e9:.3g}",
            _number(one["median_us"]),
            f"{share_of_peak(row, '1', results):.0%}",
            *(_ratio(one["peers"].get(p)) for p in PEERS),
            _best(one),
        ]
        for count in many:
            figures = row["threads"][count]
            cells += [_number(figures["median_us"]), f"{one['median_us'] / figures['median_us']:.2f}", _best(figures)]
        rows.append(cells)
    return _markdown(head, rows)


def size_table(results: Row) -> str:
    """Memory, artifact, compilation, and what the time goes into."""
    head = [
        "net",
        "weights MB",
        "code KB",
        "arena KB",
        "over live set",
        "process MB",
        *(f"{p} MB" for p in PEERS),
        "compile s",
        "of it calibration",
        "compile MB",
        "outside matmuls",
        "memory floor µs",
    ]
    rows = []
    for name, row in measured(results).items():
        seconds = row["compile"]["seconds"]
        rows.append(
            [
                name,
                f"{row['weights_bytes'] / MEGABYTE:.2f}",
                f"{row['code_bytes'] / 1024:.0f}",
                f"{row['arena_bytes'] / 1024:.0f}",
                f"{row['arena_bytes'] / row['live_bytes'] - 1:+.1%}" if row["live_bytes"] else "-",
                *(f"{row['memory'][p] / MEGABYTE:.0f}" if p in row["memory"] else "-" for p in ("qcompile", *PEERS)),
                f"{row['compile']['total_s']:.1f}",
                f"{seconds.get('calibrate and quantize', 0):.1f}",
                f"{row['compile']['peak_bytes'] / MEGABYTE:.0f}",
                f"{row['profile']['outside_matmuls']:.0%}" if "profile" in row else "-",
                _number(memory_floor_us(row, results)),
            ]
        )
    return _markdown(head, rows)


def summary(results: Row) -> str:
    """Geometric means and the worst net, one line a number of threads."""
    lines = []
    for count in _counts(results):
        rows = {n: row["threads"][count] for n, row in measured(results).items() if count in row["threads"]}
        best, cpu = (
            {n: f[1] for n, row in rows.items() if key in row and (f := fastest(row, key=key))}
            for key in ("median_us", "cpu_us")
        )
        if best:
            worst = min(best, key=lambda n: best[n])
            lines.append(
                f"{count} thread{'s' * (count != '1')}: {geometric_mean(best.values()):.2f} times faster than "
                f"the fastest of ONNX Runtime's, geometric mean of {len(best)} nets; least {best[worst]:.2f} "
                f"({worst})."
                + (f" By CPU time, which leaves interruptions out: {geometric_mean(cpu.values()):.2f}." if cpu else "")
            )
    return "\n".join(lines)


def machine_line(results: Row) -> str:
    m, one = results["machine"], results["ceilings"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    peaks = "; ".join(
        f"{c} thread{'s' * (c != '1')} {v['gmacs_per_s']:.0f} GMAC/s, {v['read_gb_per_s']:.0f} GB/s"
        for c, v in one.items()
    )
    return (
        f"{m['cpu']} (family/model {m['family_model']}), {m['threads']} processors, {m['memory_gib']} GiB, "
        f"{m['system']}; target {results['target']}; {versions}. Measured ceilings: {peaks}."
    )


def document(results: Row, plot: str) -> str:
    """All tables, with how they were measured."""
    failures = [f"- {name}: {row['error']}" for name, row in results["nets"].items() if "error" in row]
    failures += [
        f"- {name}, {label}: {text}" for name, row in measured(results).items() for label, text in row["failed"].items()
    ]
    return "\n".join(
        [
            "# Whole nets on x86",
            "",
            machine_line(results),
            "",
            summary(results).replace("\n", "\n\n"),
            "",
            f"![ratios]({plot})",
            "",
            "## Speed",
            "",
            speed_table(results),
            "",
            "Medians; ratio = the peer's median / ours, in brackets its quartiles over the turns. All contenders of a "
            "net run in one process in turns of 5 ms or one call, with the same inputs. S8S8 is the QDQ model that the "
            "artifact was compiled from, U8S8 ONNX Runtime's own static quantization of the float model with the same "
            'calibration data. "of peak" is MACs over time over the rate of a loop of nothing but dot products.',
            "",
            "## Size, memory, compilation",
            "",
            size_table(results),
            "",
            "Process: peak resident memory of a Python process that loads one contender and runs it three times with "
            f"one thread; Python with numpy alone takes {results['python_bytes'] / MEGABYTE:.0f} MB. "
            '"over live set": arena over the most that is alive at any step. Compilation: all stages from the float '
            "model, calibration included. "
            '"outside matmuls": share of time that is neither convolution nor product; attention\'s products are taken '
            "to run at the rate of the net's dense layers, and what a product's kernel does to its own result counts "
            "as the product's. "
            '"memory floor": reading weights and arena once at the measured bandwidth.',
            *(["", "## Failures", "", *failures] if failures else []),
            "",
        ]
    )


def readme_part(results: Row, folder: str) -> str:
    return "\n".join(
        [
            summary(results).replace("\n", "\n\n"),
            "",
            f"![ratio of each peer's time to ours]({folder}/x86.svg)",
            "",
            machine_line(results),
            f"All figures: [{folder}/x86.md]({folder}/x86.md).",
        ]
    )


def replace_part(text: str, name: str, part: str) -> str:
    """The text with what is between <!-- NAME --> and <!-- /NAME --> replaced; ValueError without the markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no markers {begin} and {end}")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.DOTALL)


def plot(results: Row, file: Path) -> None:
    """Ratios of all nets and peers with one thread as dots on a logarithmic axis, their quartiles as bars."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    from matplotlib import pyplot

    rows = {n: r["threads"]["1"]["peers"] for n, r in measured(results).items() if "1" in r["threads"]}
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    for offset, (label, colour) in enumerate(zip(PEERS, COLOURS)):
        points = [(i, peers[label]) for i, peers in enumerate(rows.values()) if label in peers]
        if not points:
            continue
        heights = [i + (offset - 1.5) * 0.17 for i, _ in points]
        ratios = [p["ratio"] for _, p in points]
        spread = [
            [max(0, r - p["ratio_quartiles"][0]) for r, (_, p) in zip(ratios, points)],
            [max(0, p["ratio_quartiles"][1] - r) for r, (_, p) in zip(ratios, points)],
        ]
        axes.errorbar(ratios, heights, xerr=spread, fmt="o", markersize=4, color=colour, label=label, linewidth=1)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(ticks := [0.5, 1, 2, 3, 5, 10, 20], [f"{t:g}" for t in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4)
    axes.set_xlabel("time / qcompile's time, one thread (right of 1: qcompile is faster)")
    figure.legend(loc="outside upper center", ncols=len(PEERS), frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _counts(results: Row) -> list[str]:
    return sorted({c for row in measured(results).values() for c in row["threads"]}, key=int)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(peer: Row | None) -> str:
    return f"{peer['ratio']:.2f} ({peer['ratio_quartiles'][0]:.2f}–{peer['ratio_quartiles'][1]:.2f})" if peer else "-"


def _best(figures: Row) -> str:
    best = fastest(figures)
    return f"**{best[1]:.2f}**" if best else "-"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line: Callable[[Iterable[str]], str] = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---", *("---:" for _ in head[1:])]), *map(line, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=RESULTS.parent)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    results = json.loads(options.json.read_text())
    options.folder.mkdir(parents=True, exist_ok=True)
    plot(results, options.folder / "x86.svg")
    (options.folder / "x86.md").write_text(document(results, "x86.svg"))
    folder = options.folder.resolve().relative_to(options.readme.resolve().parent).as_posix()
    options.readme.write_text(replace_part(options.readme.read_text(), "bench", readme_part(results, folder)))
    print(summary(results))


if __name__ == "__main__":
    main()
