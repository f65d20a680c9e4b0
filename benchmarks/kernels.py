"""How near each kernel comes to the ceiling, for a grid of shapes.

kernels.py [--target host | arm-a76] [--seconds S] [--json FILE] [--against FILE] [family or name ...]

Ceilings: products, the CPU's dot-product peak; everything else, reading its inputs and writing its result once. On this
machine both are measured, and kernels are timed; for arm-a76 the peak is 32 products and 32 bytes a cycle, and cycles
are estimated in the ARM lab (see arm/lab.py). Outputs are compared with the numpy meaning first. --against: an earlier
JSON file; kernels that lost more than a twentieth are listed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qcompile
from kernel_shapes import GRID, KernelCase, values
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.backends import backend_for, generate
from qcompile.kernels.program import Program
from qcompile.statistics import macs
from qcompile.targets import CpuTarget, get_target

ARM = {"arm-a76": "cortex-a76"}
ARM_PEAK = 32.0  # products, and bytes read and written, a cycle
LOSS = 1.05

Measure = Callable[[Program, list[np.ndarray], list[np.ndarray]], tuple[float, float, float]]


def arm_measure(target: str) -> Measure:
    """(program, inputs, outputs) -> (estimated cycles, peak products a cycle, peak bytes a cycle)."""
    from arm.lab import CORES, Lab
    from arm.ours import measure_program

    lab, core = Lab(), CORES[ARM[target]]

    def measure(program: Program, inputs: list, outputs: list) -> tuple[float, float, float]:
        found = measure_program(lab, program, inputs, outputs, core, calls=True)
        if not found.equal:
            raise SystemExit("the outputs are not the numpy meaning's")
        return sum(c.tally.cycles for c in found.calls if c.op != "border"), ARM_PEAK, ARM_PEAK

    return measure


def host_measure(target: CpuTarget, seconds: float) -> Measure:
    """(program, inputs, outputs) -> (microseconds, peak products and bytes a microsecond)."""
    from host.machine import ceilings
    from qcompile.cli.profile import profile

    peak = ceilings(target, [1])["1"]["gmacs_per_s"] * 1e3

    def measure(program: Program, inputs: list, outputs: list) -> tuple[float, float, float]:
        with tempfile.TemporaryDirectory() as folder:
            model = qcompile.load(build(program, target, folder), backend="native")
            given = dict(zip(program.inputs, inputs))
            if not all(np.array_equal(a, b) for a, b in zip(model.run_integer(given).values(), outputs)):
                raise SystemExit("the outputs are not the numpy meaning's")
            ops = profile(model, given, seconds)["ops"]
        copied = [(o["us"], 2 * x.nbytes) for o, x in zip([o for o in ops if o["op"] == "copy"], inputs)]
        bytes_peak = max(count / us for us, count in copied if us)  # the copy of the input into the arena
        return sum(o["us"] for o in ops if o["op"] != "copy"), peak, bytes_peak

    return measure


def build(program: Program, target: CpuTarget, folder: str) -> Path:
    """The artifact of a bare program; real numbers are its integers."""
    lowered, types = program, program.types()
    for _, run in backend_for(target).passes:
        lowered = run(lowered)
    code = generate(lowered, target)
    tensors = [[TensorInfo(n, types[n].dtype, types[n].shape, None, 0) for n in names]
               for names in (program.inputs, program.outputs)]  # fmt: skip
    files = {"program.npz": program.to_bytes()}
    spec = ArtifactSpec("kernel", target, code.objects, code.weights, code.arena_bytes, *tensors, files=files)
    return build_artifact(spec, folder).path


def measure_case(case: KernelCase, measure: Measure, unit: str) -> dict[str, Any]:
    program = case.program()
    inputs = values(program)
    results = program.run(dict(zip(program.inputs, inputs)))
    outputs = [results[n] for n in program.outputs]
    spent, mac_peak, byte_peak = measure(program, inputs, outputs)
    work, moved = macs(program), sum(a.nbytes for a in (*inputs, *outputs))
    amount, peak = (work, mac_peak) if work else (moved, byte_peak)
    return {
        "name": f"{case.family}: {case.name}",
        "family": case.family,
        unit: round(spent, 3),
        "macs": work,
        "bytes": moved,
        "rate": round(amount / spent, 3),
        "fraction": round(amount / spent / peak, 4),
    }


def markdown(rows: list[dict[str, Any]], unit: str, target: str) -> str:
    what = "estimated cycles" if unit == "cycles" else "microseconds"
    lines = [f"| kernel on {target} | {what} | MAC or byte/{unit[:5]} | of the ceiling |", "|---|---:|---:|---:|"]
    for r in rows:
        rate = f"{r['rate']:,.1f} {'MAC' if r['macs'] else 'B'}"
        lines.append(f"| {r['name']} | {r[unit]:,.0f} | {rate} | {100 * r['fraction']:.0f} % |")
    return "\n".join(lines)


def losses(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[str]:
    """Kernels that lost more than a twentieth of their fraction, as text."""
    before = {r["name"]: r["fraction"] for r in earlier}
    return [
        f"{r['name']}: {100 * before[r['name']]:.1f} % of the ceiling before, {100 * r['fraction']:.1f} % now"
        for r in rows
        if r["name"] in before and r["fraction"] * LOSS < before[r["name"]]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="parts of names; all by default")
    parser.add_argument("--target", default="host", help="host, or arm-a76 through the lab")
    parser.add_argument("--seconds", type=float, default=0.3, help="measuring time per kernel on this machine")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--against", type=Path, help="earlier JSON file to compare with")
    arguments = parser.parse_args()
    on_arm = arguments.target in ARM
    unit = "cycles" if on_arm else "us"
    measure = arm_measure(arguments.target) if on_arm else host_measure(get_target(arguments.target), arguments.seconds)
    rows = []
    for case in GRID:
        label = f"{case.family}: {case.name}"
        if not arguments.only or any(part in label for part in arguments.only):
            rows.append(measure_case(case, measure, unit))
            print(f"{label}: {100 * rows[-1]['fraction']:.1f} %", flush=True)
    print(markdown(rows, unit, arguments.target))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"target": arguments.target, "kernels": rows}, indent=1) + "\n")
    if arguments.against:
        lost = losses(rows, json.loads(arguments.against.read_text())["kernels"])
        if lost:
            raise SystemExit("slower than before:\n" + "\n".join(lost))


if __name__ == "__main__":
    main()
