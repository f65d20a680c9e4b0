"""Accuracy, bit-exactness and artifact sizes of all real nets, beside the goals.

check_models.py [--limit N] [--json FILE] [name ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import qcompile
from cases import GOALS, answer, feed, load_cases
from qcompile.runtime import ArtifactError
from rich.console import Console
from rich.table import Table

EMULATED = (("arm-a76", "unicorn", None), ("arm-a72", "qemu", "cortex-a72"), ("arm-a710", "qemu", None))


def onnxruntime_outputs(path: Path, inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    s = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in s.get_outputs()]
    return [dict(zip(names, s.run(names, x))) for x in inputs]


def check(name: str, case: Any, source: str, folder: str, limit: int | None, bits: int) -> dict[str, Any]:
    """One row: the case compiled from `source` ("float" or "qdq"), scored, and compared bit for bit on `bits`
    inputs."""
    path = case.model if source == "float" else case.quantized
    calibration = case.calibration() if source == "float" else None
    began = time.perf_counter()
    built = qcompile.compile(path, "host", calibration=calibration, output=folder, name=f"{name}_{source}")
    seconds = time.perf_counter() - began
    model = qcompile.load(built.path)
    inputs = case.inputs()[:limit]
    floats = onnxruntime_outputs(case.model, inputs)
    like = {k: v.shape for k, v in floats[0].items()}
    integers = [model.run_integer(model.quantize(feed(model, x))) for x in inputs]
    outputs = [answer(model, model.dequantize(y), like) for y in integers]
    metric = GOALS[name][0]
    score, float_score = case.score(outputs), case.score(floats)
    row = {
        "case": name,
        "source": source,
        "metric": metric,
        "score": score[metric],
        "float": float_score[metric],
        "scores": score,
        "inputs": len(inputs),
        "compile_s": round(sum(v for k, v in built.seconds.items() if not k.startswith("calib")), 2),
        "total_s": round(seconds, 2),
        "code_bytes": built.manifest["code_bytes"],
        "weights_bytes": built.manifest["weights_bytes"],
        "arena_bytes": built.manifest["arena_bytes"],
        "float_instructions": built.manifest["proof"]["float_instructions"],
    }
    few = list(range(0, len(inputs), max(1, len(inputs) // bits)))[:bits]

    def meaning(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return model.reference_integer(model.quantize(feed(model, x)))

    row["equal"] = {"reference": f"{sum(_same(meaning(inputs[i]), integers[i]) for i in few)}/{len(few)}"}
    for target, backend, core in EMULATED:
        try:
            arm_built = qcompile.compile(path, target, calibration=calibration, output=folder, name=f"{name}_{source}")
            arm = qcompile.load(arm_built.path, backend=backend, core=core)
            ok = sum(_same(arm.run_integer(arm.quantize(feed(arm, inputs[i]))), integers[i]) for i in few)
            row["equal"][f"{target} {backend}"] = f"{ok}/{len(few)}"
        except ArtifactError as e:
            row["equal"][f"{target} {backend}"] = f"skipped: {e}"
    peer = onnxruntime_outputs(
        built.path / "model.qdq.onnx", [_as_peer(built.path, model, feed(model, x)) for x in inputs[: max(bits, 20)]]
    )
    steps = [
        np.rint((np.asarray(p, np.float64) - m) / (t.scale or 1))
        if np.asarray(p).dtype.kind == "f"
        else np.asarray(p, np.float64) - q
        for x, y, i in zip(peer, [model.dequantize(y) for y in integers], integers)
        for p, m, q, t in zip(x.values(), y.values(), i.values(), model.outputs)
    ]
    steps = np.concatenate([np.abs(s).ravel() for s in steps])
    row["onnxruntime"] = {"equal": round(float((steps == 0).mean()), 4), "largest_step": int(steps.max())}
    goal = GOALS[name][1] if source == "float" else GOALS[name][2] or GOALS[name][1]
    row["holds"] = bool(goal(row["score"], row["float"])) and (name != "minilm_l6" or score["cosine_to_float"] >= 0.99)
    if source == "qdq" and GOALS[name][2] is None:
        row["holds"] = None  # no goal from this source
    return row


def _as_peer(folder: Path, model: Any, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs as the QDQ file takes them: floats, or integers where it begins with them."""
    import onnx

    kinds = {
        i.name: i.type.tensor_type.elem_type
        for i in onnx.load(folder / "model.qdq.onnx", load_external_data=False).graph.input
    }
    quantized = model.quantize(x)
    wanted = {
        onnx.TensorProto.FLOAT: np.float32,
        onnx.TensorProto.INT64: np.int64,
        onnx.TensorProto.INT32: np.int32,
        onnx.TensorProto.INT8: np.int8,
        onnx.TensorProto.UINT8: np.uint8,
        onnx.TensorProto.INT16: np.int16,
    }
    return {
        k: (np.asarray(x[k]) if t == onnx.TensorProto.FLOAT else quantized[k]).astype(wanted[t])
        for k, t in kinds.items()
    }


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--limit", type=int, help="inputs per case (default: all)")
    parser.add_argument("--bits", type=int, default=5, help="inputs compared bit for bit on every target")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    cases, rows = load_cases(), []
    table = Table(title="INT8 accuracy and bit-exactness")
    for heading in (
        "case",
        "from",
        "score",
        "float",
        "goal",
        "holds",
        "bits equal to x86",
        "= ORT / max",
        "compile s",
        "code",
        "float instr.",
    ):
        table.add_column(heading, overflow="fold")
    console = Console(width=200)
    for name in arguments.names or cases:
        for source in ("float", "qdq"):
            if source == "qdq" and not cases[name].quantized:
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = check(name, cases[name], source, folder, arguments.limit, arguments.bits)
            rows.append(row)
            console.print(f"{name} from {source}: {row['scores']} {row['equal']}", highlight=False)
            table.add_row(
                name,
                source,
                f"{row['metric']} {row['score']:.4f}",
                f"{row['float']:.4f}",
                GOALS[name][3],
                {True: "yes", False: "NO", None: "-"}[row["holds"]],
                " ".join(f"{k} {v[:20]}" for k, v in row["equal"].items()),
                f"{row['onnxruntime']['equal']:.3f} / {row['onnxruntime']['largest_step']}",
                f"{row['compile_s']:.1f}",
                f"{row['code_bytes']:,}",
                str(row["float_instructions"]),
            )
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    differ = [
        f"{r['case']} from {r['source']}"
        for r in rows
        for v in r["equal"].values()
        if not v.startswith("skipped") and len(set(v.split("/"))) != 1
    ]
    if differ or any(r["holds"] is False for r in rows):
        raise SystemExit(
            f"not held: {', '.join(differ + [r['case'] + ' from ' + r['source'] for r in rows if r['holds'] is False])}"
        )


if __name__ == "__main__":
    main()
