"""The page of the integer ops, docs/ops.md, made from their declarations.

python -m qcompile.kernels.reference docs/ops.md
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import qcompile.kernels.ops  # noqa: F401  (registers the ops)
from qcompile.kernels.dialect import OPS, IntegerOp

INTRODUCTION = """# Integer ops

Written by `make docs` from the declarations in `kernels/ops/`, where each op's type rule, exact numpy meaning and
bounds stand; a test compares. A program is a list of calls of these ops (`program.npz` in an artifact's folder), and
every target returns their bits.

A tensor means `scale * (q - zero_point)`; scales are known to the compiler only. In the formulas, `clamp` limits to
`[qmin, qmax]` and converts to `dtype`, `mulhi(a, b)` is `floor(a * b / 2^32)`, and

    rescale(a) = floor(((a << pre) * multiplier + 2^(31 + shift)) / 2^(32 + shift))

exactly, ties up (`kernels/arithmetic.py`). Multipliers of more than one element lie along the last axis. Arguments are
tensors, in the order given; attributes stand behind the semicolon.
"""


def page() -> str:
    """The page as Markdown: a section for each family, an entry for each op."""
    families: dict[str, list[IntegerOp]] = {}
    for op in OPS.values():
        families.setdefault(op.infer.__module__, []).append(op)
    parts = [INTRODUCTION]
    for module, ops in sorted(families.items()):
        about = (import_module(module).__doc__ or "").strip()
        parts.append(f"## {module.rpartition('.')[2]}\n{about}\n")
        parts += [_entry(op) for op in ops]
    return "\n".join(parts)


def _entry(op: IntegerOp) -> str:
    attributes = f"; {', '.join(op.attributes)}" if op.attributes else ""
    facts = [
        f"Constants: {', '.join(a for a in op.arguments if a in op.parameters)}." if op.parameters else "",
        f"Ranges: {', '.join(f'{name} {low} to {high}' for name, (low, high) in op.ranges.items())}."
        if op.ranges
        else "",
        "Fuses into the op before it." if op.elementwise else "",
        "Its sums stay in registers for the elementwise ops after it." if op.heads_fusion else "",
    ]
    said = " ".join(fact for fact in facts if fact)
    head = f"### {op.name}\n`{op.name}({', '.join(op.arguments)}{attributes})`"
    return f"{head}\n\n```text\n{op.doc}\n```\n" + (f"{said}\n" if said else "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
