"""What a plan comes to: rows for `report["layers"]`, and the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment
from qcompile.mixed.page import PAGE
from qcompile.mixed.plan import Plan, describe
from qcompile.quantizer.bits import LayerBits, stored_bytes

WIDTH, HEIGHT, MARGIN = 420, 260, 46  # of a plot, in pixels
TICKS = 4


def layer_rows(plan: Plan, noise: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """One row per layer: name, op, weights' and activations' bits, group, weights, bytes (of 8 bits too), MACs, time,
    and, where they are known, sensitivity and signal-to-noise ratio in dB."""
    rows = []
    for layer in plan.layers:
        bits = plan.bits[layer.name]
        rows.append(
            {
                "name": layer.name,
                "op": layer.op_type,
                "bits": describe(bits),
                "weight_bits": bits.weights,
                "activation_bits": bits.activations,
                "group": bits.group,
                "weights": layer.count,
                "bytes": stored_bytes(layer, bits),
                "bytes_8bit": stored_bytes(layer, LayerBits()),
                "macs": layer.macs,
                "time": _rounded(plan.times.get(layer.name)),
                "sensitivity": _rounded(plan.losses.get(layer.name)),
                "snr_db": None if noise is None else noise.get(layer.name),
            }
        )
    return rows


def plan_report(plan: Plan, noise: Mapping[str, float] | None) -> dict[str, Any]:
    """What the report says of a plan: "layers", "snr_db" of the outputs, "time_unit", "mixed" and "fronts"."""
    return {
        "layers": layer_rows(plan, noise),
        "snr_db": None if noise is None else noise.get(""),
        "time_unit": plan.unit,
        "mixed": plan.summary,
        "fronts": plan.fronts,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page without references to elsewhere: facts, plots of the fronts, table of layers."""
    plots = [
        plot(points, cost, report["mixed"]) for cost, points in (report.get("fronts") or {}).items() if len(points) > 1
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bar"] = lambda r, rows: round(100 * r["bytes"] / max(x["bytes"] for x in rows), 1)
    return environment.from_string(PAGE).render(r=report, plots=plots)


def plot(points: list[dict[str, Any]], cost: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A front as coordinates in the picture: cost across, loss upwards on a logarithmic scale."""
    every = [p for p in [*points, chosen] if p["loss"] > 0]
    if not every:
        return {"title": cost, "points": [], "line": "", "x": [], "y": [], "w": WIDTH, "h": HEIGHT, "m": MARGIN}
    low, high = (f(p[cost] for p in every) for f in (min, max))
    bottom, top = (f(math.log10(p["loss"]) for p in every) for f in (min, max))
    across, up = max(high - low, 1e-9), max(top - bottom, 1e-9)

    def place(share: float, loss: float) -> tuple[float, float]:
        x = MARGIN + (share - low) / across * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (math.log10(loss) - bottom) / up * (HEIGHT - 2 * MARGIN)
        return round(x, 1), round(y, 1)

    places = [
        {"at": place(p[cost], p["loss"]), "text": f"{cost} {100 * p[cost]:.1f} %, loss {p['loss']:.2g}"}
        for p in points
        if p["loss"] > 0
    ]
    steps = [i / TICKS for i in range(TICKS + 1)]
    return {
        "title": cost,
        "points": places,
        "line": " ".join(f"{x},{y}" for x, y in (p["at"] for p in places)),
        "chosen": place(chosen[cost], chosen["loss"]) if chosen["loss"] > 0 else None,
        "x": [(place(low + s * across, 10**bottom)[0], f"{100 * (low + s * across):.0f} %") for s in steps],
        "y": [(place(low, 10 ** (bottom + s * up))[1], f"{10 ** (bottom + s * up):.1g}") for s in steps],
        "w": WIDTH,
        "h": HEIGHT,
        "m": MARGIN,
    }
