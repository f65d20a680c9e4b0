"""docs/operators.md from the outcomes of ONNX's node tests: what is supported, and why the rest is refused."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

HEADING = """# Operators

Made by `make conformance` from ONNX's own node tests: of each operator's cases, how many agree with ONNX, and
the reasons why others are refused. An operator without a line has no node test. Refusals name the node and
its tensor.

- **Integers that a graph declares** (int8 to uint64) are exact: arithmetic, bits, shifts, comparisons and
  choices wrap in the declared type as in C. Division by 0 gives 0. int64 and bool inputs enter as 32 and 8
  bits; the loader refuses numbers that these do not hold.
- **Integers of 4 and 2 bits** are held in bytes, at the border too; a Cast to fewer bits keeps the lowest.
- **TopK, ArgMax, ArgMin**: exact on codes, of equal elements the lower number first (the last with
  `select_last_index`).
- **Gather and scatter by computed numbers**: numbers outside of their axis are clamped to it, so that no
  foreign memory is reached. ScatterND and ScatterElements write in order: of equal places the last counts.
- **CumSum, CumProd** along a constant axis are exact on integers. **LpPool**: p = 1 and 2.
- **NonMaxSuppression** has as many rows as it can select, the others are -1: see [detection](detection.md).
- **Dropout** at inference gives its input and a mask of ones; one that drops at random is refused.
- **Outputs** may be constants or inputs; an output of an input's name is called NAME_output.
- **Resize**: every mode, any factor; refused where ONNX and ONNX Runtime differ (`align_corners` with scales
  that give no whole size).
- **GridSample**: every mode and padding, over two and three axes. Constant grids are exact to a 512th of a pixel,
  computed ones have 16 bits.
- **RoiAlign**: averages of a fixed number of samples (`sampling_ratio` above 0). **DeformConv**: over two axes, by
  constant weights.
- **NaN and infinities**: integers have none; IsNaN is constantly false.
- **Other shapes that depend on data** (NonZero, Unique, Compress by a computed condition) are refused, for a
  program of fixed buffers.

| operator | agree | refused because |
|---|---:|---|
"""
LONGEST = 160
NAMES = (
    (r"'[^']*'", "…"),
    (r"^(node|output|input) .*?(:|\)| is | has | holds )", r"\2"),
    (r"\d+(\.\d+)?(e[+-]?\d+)?", "n"),
)


def reason_of(text: str) -> str:
    """A refusal without what differs from case to case: names and numbers."""
    text = " ".join(text.split())
    for pattern, word in NAMES:
        text = re.sub(pattern, word, text)
    text = text.lstrip(": )").replace("|", "\\|")
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0] + " …"


def page(rows: list[dict[str, str]], operators: dict[str, str]) -> str:
    """The page; rows: name, outcome and reason of each case, operators: the operator of each."""
    counts: dict[str, Counter] = defaultdict(Counter)
    reasons: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        op = operators[row["name"]]
        counts[op][row["outcome"]] += 1
        if row["outcome"] == "refused":
            reasons[op][reason_of(row["reason"])] += 1
    lines = []
    for op in sorted(counts, key=str.lower):
        numbers = sum(counts[op].values()) - counts[op]["no numbers"]
        why = "; ".join(f"{text} ({n})" for text, n in reasons[op].most_common())
        lines.append(f"| {op} | {counts[op]['agrees']} of {numbers} | {why} |")
    return HEADING + "\n".join(lines) + "\n"
