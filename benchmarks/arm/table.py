"""The figures as Markdown, and what they add up to."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

TINY = ("kws_dscnn", "ic_resnet8", "vww_mobilenetv1_025", "ad_autoencoder", "sww_dsconv1d")  # MLPerf Tiny


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table a core, and where the cycles of each net go."""
    parts = []
    for core in dict.fromkeys(r["core"] for r in rows):
        parts.append(_core(core, [r for r in rows if r["core"] == core]))
    return "\n\n".join(parts) + "\n"


def _core(core: str, rows: list[dict[str, Any]]) -> str:
    unit = "cycles" if rows[0]["cycles"] else "instructions"
    peers = list(dict.fromkeys(p["name"] for r in rows for p in r["peers"]))
    title = f"### {core}: estimated cycles, one thread" if unit == "cycles" else f"### {core}: instructions, one thread"
    model = f" by llvm-mca's {rows[0]['model']}, every load from the first cache" if unit == "cycles" else ""
    lines = [
        title,
        "",
        f"One inference in millions of {unit}, counted under emulation{', estimated' + model if model else ''}; "
        "ratio = the better peer over qcompile.",
        "",
        "| net | qcompile | MAC/" + ("cycle" if model else "instruction") + " | " + " | ".join(peers)
        + " | ratio | where it goes |",
        "|---|" + "---:|" * (len(peers) + 3) + "---|",
    ]  # fmt: skip
    for r in rows:
        theirs = {p["name"]: p[unit] for p in r["peers"]}
        cells = [f"{theirs[p] / 1e6:.3f}" if p in theirs else "–" for p in peers]
        ratio = f"{r['ratio']:.2f}" if r["ratio"] else "–"
        where = ", ".join(f"{op} {100 * share:.0f} %" for op, share in list(r["ops"].items())[:4])
        own = f"{r[unit] / 1e6:.4f} | {r['macs'] / r[unit]:.1f}"
        lines.append(f"| {r['net']} | {own} | {' | '.join(cells)} | {ratio} | {where} |")
    for label, names in (("all", None), ("MLPerf Tiny", TINY)):
        ratios = [r["ratio"] for r in rows if r["ratio"] and (names is None or r["net"] in names)]
        if len(ratios) > 1:
            lines.append(f"\nGeometric mean of the ratios, {label}: {geometric_mean(ratios):.2f} ({len(ratios)} nets).")
    return "\n".join(lines)


def calls_text(row: dict[str, Any], largest: int = 40) -> str:
    """The costliest kernel calls of a net, for a terminal."""
    total = row["cycles"] or row["instructions"]
    lines = [f"{row['net']} on {row['core']}"]
    for c in sorted(row["calls"], key=lambda c: -c["cost"])[:largest]:
        rate = f"{c['macs'] / c['cost']:5.1f}" if c["macs"] and c["cost"] else "     "
        lines.append(
            f"  {100 * c['cost'] / total:5.1f} % {c['cost']:10.0f} {rate}  {c['op']:12.12s} {c['kernel'][:64]:64s} "
            f"{c['node'][:40]}"
        )
    return "\n".join(lines)


def shares(calls: list[dict[str, Any]]) -> dict[str, float]:
    """op -> its part of the cost, the largest first; copies and frames count for the op that needs them."""
    cost: collections.Counter[str] = collections.Counter()
    for c in calls:
        cost[c["op"]] += c["cost"]
    total = sum(cost.values()) or 1
    return {op: v / total for op, v in cost.most_common()}
