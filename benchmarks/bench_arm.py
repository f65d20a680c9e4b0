"""ARM without ARM: instructions and estimated cycles of whole nets beside ONNX Runtime and LiteRT, one thread.

bench_arm.py [--core CORE ...] [--calls] [--fast] [--no-peers] [--json FILE] [--markdown FILE] [net ...]

A net is one of ../shared/models by name or any ONNX file by path. Needs the ARM lab: see arm/lab.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from arm.lab import CORES, Core, Lab
from arm.nets import find
from arm.ours import measure
from arm.peers import measure_peers
from arm.table import calls_text, markdown, shares
from cases import load_cases


def measure_net(lab: Lab, name: str, core: Core, calls: bool, peers: bool) -> dict[str, Any]:
    """One row: figures of one inference of a net on a core."""
    net = find(name)
    ours = measure(lab, net, core, calls)
    if not ours.equal:
        raise SystemExit(f"{name} on {core.name}: the outputs are not the numpy meaning's; nothing was compared")
    unit = "cycles" if core.mca else "instructions"
    rivals = measure_peers(lab, net, core) if peers else []
    cost = getattr(ours.total, unit)
    best = min((getattr(p, unit) for p in rivals), default=0.0)
    listed = [
        {"node": c.node, "op": c.op, "kernel": c.kernel, "macs": c.macs, "cost": getattr(c.tally, unit)}
        for c in ours.calls
    ]
    return {
        "net": net.name,
        "core": core.name,
        "model": core.mca,
        "estimated": bool(core.mca),
        "macs": net.facts["macs"],
        "instructions": ours.total.instructions,
        "cycles": ours.total.cycles,
        "ratio": best / cost,
        "peers": [vars(p) for p in rivals],
        "ops": shares(listed),
        "calls": listed,
        "kernels": {name: getattr(t, unit) for name, t in ours.kernels.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*")
    parser.add_argument("--core", action="append", choices=CORES, help="default: cortex-a76; repeatable")
    parser.add_argument("--calls", action="store_true", help="print the costliest kernel calls of each net")
    parser.add_argument("--fast", action="store_true", help="totals only, not each call by itself")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    arguments = parser.parse_args()
    lab, rows = Lab(), []
    for core in [CORES[c] for c in arguments.core or ["cortex-a76"]]:
        for name in arguments.nets or load_cases():
            rows.append(measure_net(lab, name, core, not arguments.fast, not arguments.no_peers))
            if arguments.calls:
                print(calls_text(rows[-1]), flush=True)
    text = markdown(rows)
    print(text)
    for file, content in ((arguments.json, json.dumps(rows, indent=1) + "\n"), (arguments.markdown, text)):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)


if __name__ == "__main__":
    main()
