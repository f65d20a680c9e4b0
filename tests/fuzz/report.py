"""Results as lines of a file, and as the figures that people read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fuzz.check import AGREES, FINDINGS, HARD, INVALID, LEAST_DB, LOW, REFUSED, Result


def append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows; none where there is no file. A line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def row(seed: int, result: Result, options: dict[str, Any]) -> dict[str, Any]:
    return {"seed": seed, "options": options, **result.to_json()}


def is_hard(rows: Iterable[dict[str, Any]]) -> bool:
    """Whether something happened that must never happen."""
    return any(r["kind"] in HARD for r in rows)


def figures(rows: list[dict[str, Any]]) -> str:
    """The counts, refusals by reason, low ratios by cause, and each finding."""
    rows = [r for r in rows if r["kind"] != INVALID]
    kinds = Counter(r["kind"] for r in rows)
    answered = [r for r in rows if r["kind"] in (AGREES, LOW)]
    lines = [
        f"{len(rows)} graphs: {len(answered)} compiled and agree to the bit ({kinds[LOW]} of them under "
        f"{LEAST_DB:.0f} dB), {kinds[REFUSED]} refused by name, " + ", ".join(f"{kinds[k]} {k}" for k in FINDINGS),
        *_low(answered),
        "",
        "refused:",
        *_counted(r["where"] for r in rows if r["kind"] == REFUSED),
    ]
    found = [r for r in rows if r["kind"] in FINDINGS]
    if found:
        lines += ["", "findings:", *_counted(f"{r['kind']}: {r['where']}: {r['reason'][:100]}" for r in found)]
        lines += ["seeds: " + ", ".join(str(r["seed"]) for r in found)]
    return "\n".join(lines)


def _low(answered: list[dict[str, Any]]) -> list[str]:
    """Shares under LEAST_DB: of graphs at 8 bits with and without samples, and at fewer bits."""
    eight = [r for r in answered if str(r["options"].get("bits")) == "8"]
    of = {
        "8 bits, float graphs with samples": [r for r in eight if _form(r) == "float" and _sampled(r)],
        "8 bits, float graphs without samples": [r for r in eight if _form(r) == "float" and not _sampled(r)],
        "8 bits, quantized by ONNX Runtime": [r for r in eight if _form(r) not in ("float", "partly")],
        "8 bits, partly quantized": [r for r in eight if _form(r) == "partly"],
        "fewer bits": [r for r in answered if r not in eight],
    }
    lines = []
    for title, chosen in of.items():
        low = [r for r in chosen if r["kind"] == LOW]
        inherent = [r for r in low if min(r.get("plain_decibels", {}).values(), default=99.0) < LEAST_DB]
        said = [r for r in low if any("dB" in n for n in r.get("notes", []))]
        lines.append(
            f"{title}: {len(low)} of {len(chosen)} under {LEAST_DB:.0f} dB ({100 * len(low) / max(len(chosen), 1):.1f}"
            f" %); a note says so of {len(said)}; of {len(inherent)} rounding each tensor to 8 bits does that"
        )
    return lines


def _form(r: dict[str, Any]) -> str:
    return str(r["options"].get("form"))


def _sampled(r: dict[str, Any]) -> bool:
    return bool(r["options"]["calibrated"])


def _counted(texts: Iterable[str]) -> list[str]:
    return [f"{n:6d}  {text}" for text, n in Counter(texts).most_common()]
