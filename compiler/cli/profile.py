"""Time per op: the artifact's program, generated anew with a time stamp around every kernel call, and run many times.

The artifact itself is not touched, and its kernels are the ones that run; what the stamps add is some ten nanoseconds a
call. What a kernel fuses (bias, requantization, tables, a residual sum) is counted as the kernel's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from qcompile.cli.tables import add_row, new_table, print_tables
from qcompile.kernels.dialect import MULTIPLYING, OPS
from qcompile.runtime import Model

if TYPE_CHECKING:
    from qcompile.backends import Timed

WARM_UP = 3  # runs that are not counted
LEAST = 5  # runs, however long they take
PROGRAM = "program.npz"
CHANGED = "note: the compiler has changed since the artifact was made; these are the kernels of today"


@dataclass(frozen=True)
class OpTime:
    """What one node spent in one kind of kernel.

    us: median over the runs; macs: 0 where the kernel only prepares operands (padding, packing); shapes: of the
    activations that it reads and of its result.
    """

    node: str
    op: str
    kind: str
    shapes: str
    kernel: str
    calls: int
    us: float
    share: float
    macs: int

    @property
    def gmacs_per_s(self) -> float | None:
        return round(self.macs / self.us / 1e3, 2) if self.macs and self.us else None


def profile(model: Model, inputs: Mapping[str, np.ndarray], seconds: float, threads: int = 1) -> dict[str, Any]:
    """Microseconds of each op of an artifact on this machine, measured for `seconds` on `inputs` (the integers).

    Returns runs, same_code (whether this compiler still makes the artifact's code), total_us (median of whole runs,
    stamps included), ops (rows of OpTime, in order), kinds (sums), and outside_matmuls: the share of time that is
    neither convolution nor product, where attention's own products are taken to run as fast as the net's dense layers.
    Raises ArtifactError where the artifact has no program.npz.
    """
    calls, timed = _timed(model, threads)
    for buffer, tensor in zip(timed.inputs, model.inputs):
        buffer[...] = inputs[tensor.name]
    stamps, us_per_tick = _sample(timed.run, seconds)
    spent = np.diff(stamps.astype(np.int64), axis=1) * us_per_tick  # [runs, calls]
    whole = float(np.median(spent.sum(1)))
    groups = [list(group) for _, group in groupby(calls, key=lambda c: (c["node"], c["kernel"]))]
    ends = np.cumsum([len(rows) for rows in groups])
    medians = [float(np.median(part.sum(1))) for part in np.split(spent, ends[:-1], axis=1)]
    # shares of their sum: a whole run is interrupted more often than one call
    ops = [
        OpTime(**rows[0], calls=len(rows), us=round(us, 3), share=round(us / sum(medians), 5))
        for rows, us in zip(groups, medians)
    ]
    return {
        "runs": len(stamps),
        "threads": threads,
        "same_code": timed.same_code,
        "total_us": round(whole, 3),
        "outside_matmuls": _outside_matmuls(ops),
        "kinds": _by_kind(ops),
        "ops": [{**asdict(o), "gmacs_per_s": o.gmacs_per_s} for o in ops],
    }


def _timed(model: Model, threads: int) -> tuple[list[dict[str, Any]], Timed]:
    """(what each call is for, the artifact's calls with a time stamp around each)."""
    from qcompile.backends import backend_for  # late: the compiler takes a second to import
    from qcompile.kernels.program import Program
    from qcompile.targets import get_target

    backend = backend_for(get_target(model.manifest.machine))
    program = Program.load(model.manifest.read_file(PROGRAM))
    for _, run in backend.passes:
        program = run(program)
    timed = backend.timed(program, model.manifest, threads)
    return _describe(program, timed.calls), timed


def _describe(program: Any, listing: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What each call is for: the fields of OpTime. A node's MACs are with the first call of its last kernel."""
    from qcompile.statistics import macs_by_node

    all_macs = macs_by_node(program)
    nodes, types = {n.name: n for n in program.nodes}, program.types()
    calls: list[dict[str, Any]] = []
    for name, group in groupby(listing, key=lambda c: c[0]):
        kernels = [kernel for _, kernel in group]
        node = nodes.get(name)
        if node is None:  # the copy of an input or an output
            calls += [
                {"node": name, "op": "copy", "kind": "copy", "shapes": "", "kernel": k, "macs": 0} for k in kernels
            ]
            continue
        head, macs = (node.body or (node,))[0], all_macs[name]
        kind = OPS[head.op].kind([types[i] for i in head.inputs], head.attrs)
        read = [types[i].shape for i in node.inputs if i not in program.constants]
        shapes = " ".join([*map(_short, read[:3]), "→", _short(types[name].shape)])
        for index, kernel in enumerate(kernels):
            computes = not macs or _family(kernel) == _family(kernels[-1])
            first = computes and not any(_family(k) == _family(kernel) for k in kernels[:index])
            calls.append(
                {
                    "node": name,
                    "op": "+".join(n.op for n in node.body) or node.op,
                    "shapes": shapes,
                    "kernel": kernel,
                    "kind": kind if computes else "layout",
                    "macs": macs if first else 0,
                }
            )
    return calls


def _family(kernel: str) -> str:
    """What a kernel does: conv, dense, depthwise, matmul, attention, pad, pack, ..."""
    return kernel.split("_")[0]


def _short(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _sample(run: Callable[[], np.ndarray], seconds: float) -> tuple[np.ndarray, float]:
    """(time stamps [runs, calls + 1], microseconds in a tick of their counter)."""
    first = 0
    for _ in range(WARM_UP):
        first = int(run()[-1])
    began = time.perf_counter_ns()
    runs: list[np.ndarray] = []
    while len(runs) < LEAST or time.perf_counter_ns() < began + seconds * 1e9:
        runs.append(run().copy())
    microseconds = (time.perf_counter_ns() - began) / 1e3
    return np.stack(runs), microseconds / max(1, int(runs[-1][-1]) - first)


def _by_kind(ops: list[OpTime]) -> dict[str, dict[str, Any]]:
    """kind -> sums over its ops, the largest first."""
    kinds: dict[str, dict[str, Any]] = {}
    for o in ops:
        row = kinds.setdefault(o.kind, {"us": 0.0, "share": 0.0, "calls": 0, "macs": 0})
        row["us"], row["share"] = round(row["us"] + o.us, 3), round(row["share"] + o.share, 5)
        row["calls"] += o.calls
        row["macs"] += o.macs
    for row in kinds.values():
        row["gmacs_per_s"] = round(row["macs"] / row["us"] / 1e3, 2) if row["macs"] and row["us"] else None
    return dict(sorted(kinds.items(), key=lambda k: -k[1]["us"]))


def _outside_matmuls(ops: list[OpTime]) -> float:
    """Share of time outside convolutions and products. Attention is one kernel, so that its softmax is not seen by
    itself: its products are taken to run at the rate of the net's dense layers, what remains of it is outside."""
    total = sum(o.us for o in ops)
    inside = sum(o.us for o in ops if o.kind in MULTIPLYING and o.kind != "attention")
    attention = [o for o in ops if o.kind == "attention"]
    dense = [o for o in ops if o.kind == "matmul" and o.macs and o.us]
    if attention:
        spent, macs = sum(o.us for o in attention), sum(o.macs for o in attention)
        rate = sum(o.macs for o in dense) / sum(o.us for o in dense) if dense else 0
        inside += min(spent, macs / rate) if rate else spent
    return round(1 - inside / total, 4) if total else 0.0


def print_profile(report: dict[str, Any], least_share: float = 0.003) -> None:
    """Tables of the ops in order (those of at least `least_share` of the time) and of the kinds."""
    table = new_table(
        "node",
        "op",
        "shapes",
        "kernel",
        ">µs",
        ">share",
        ">GMAC/s",
        title=f"time per op, {report['threads']} thread(s), median of {report['runs']} runs: "
        f"{report['total_us']:.1f} µs",
    )
    shown = [o for o in report["ops"] if o["share"] >= least_share]
    for o in shown:
        add_row(
            table,
            o["node"],
            o["op"],
            o["shapes"],
            o["kernel"],
            f"{o['us']:.1f}",
            f"{o['share']:.1%}",
            f"{o['gmacs_per_s']:.0f}" if o["gmacs_per_s"] else "",
        )
    if len(shown) < len(report["ops"]):
        rest = sum(o["us"] for o in report["ops"] if o["share"] < least_share)
        add_row(
            table,
            f"{len(report['ops']) - len(shown)} smaller ones",
            "",
            "",
            "",
            f"{rest:.1f}",
            f"{rest / report['total_us']:.1%}",
            "",
        )
    kinds = new_table("kind", ">calls", ">µs", ">share", ">GMAC/s", title="by kind of op")
    for kind, row in report["kinds"].items():
        add_row(
            kinds,
            kind,
            str(row["calls"]),
            f"{row['us']:.1f}",
            f"{row['share']:.1%}",
            f"{row['gmacs_per_s']:.0f}" if row["gmacs_per_s"] else "",
        )
    rate = " (attention's products at the dense layers' rate)" if "attention" in report["kinds"] else ""
    print_tables(
        "",
        table,
        "",
        kinds,
        "",
        *([] if report["same_code"] else [CHANGED]),
        f"outside convolutions and products: {report['outside_matmuls']:.1%}{rate}",
    )


__all__ = ["print_profile", "profile"]
