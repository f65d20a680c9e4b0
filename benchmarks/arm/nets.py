"""What to measure: nets as programs on disk, with one real input and the outputs that the numpy meaning gives.

Compiling for a CPU starts from the program, so a change of a kernel is measured without quantizing again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qcompile
from cases import feed, load_cases
from qcompile.kernels.program import Program

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "bench-arm"
MEANING = ("compiler", "passes", "kernels")  # folders that decide what a program says


@dataclass(frozen=True)
class Net:
    """A quantized net. float_model: what it was quantized from; tflite: the same net for LiteRT, if there is one."""

    name: str
    folder: Path
    float_model: Path | None
    tflite: Path | None
    facts: dict[str, Any]

    @property
    def qdq_model(self) -> Path:
        return self.folder / "model.qdq.onnx"

    @property
    def program(self) -> Program:
        return Program.load(self.folder / "program.npz")

    @property
    def reals(self) -> Path:
        """npz of the input as real numbers (or ids), in the order of the net's inputs."""
        return self.folder / "reals.npz"

    def arrays(self, kind: str) -> list[np.ndarray]:
        """kind: integers (what the artifact reads), outputs (what it has to return) or reals (of those outputs)."""
        with np.load(self.folder / f"{kind}.npz") as z:
            return [z[name] for name in z.files]


def find(name: str) -> Net:
    """A net of ../shared/models by name, or any ONNX file by path; quantized and compiled once."""
    cases = load_cases() if not Path(name).suffix else {}
    if name in cases:
        case = cases[name]
        tflite = Path(case.model).with_name("int8.tflite")
        return _prepared(
            name, Path(case.model), tflite if tflite.exists() else None, case.calibration, lambda: case.inputs()[0]
        )
    if not Path(name).is_file():
        raise SystemExit(f"{name} is neither a file nor one of {', '.join(load_cases())}")
    return _prepared(Path(name).stem, Path(name), None, None, None)


def _prepared(
    name: str, model: Path, tflite: Path | None, calibration: Callable | None, sample: Callable | None
) -> Net:
    quantized = name.endswith("qdq") or _has_quantizers(model)
    digest = hashlib.sha256(file_hash(model).encode() + _meaning_hash().encode()).hexdigest()[:16]
    folder = CACHE / f"{name}-{digest}"
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(name, folder, model, quantized, calibration, sample)
    facts = json.loads((folder / "facts.json").read_text())
    return Net(name, folder, None if quantized else model, tflite, facts)


def _compile(
    name: str, folder: Path, model: Path, quantized: bool, calibration: Callable | None, sample: Callable | None
) -> None:
    with tempfile.TemporaryDirectory() as output:
        data = None if quantized or calibration is None else calibration()
        built = qcompile.compile(model, "arm-a76", calibration=data, output=output, name=name)
        loaded = qcompile.load(built.path, backend="unicorn")
        random = np.random.default_rng(0)
        given = feed(loaded, sample()) if sample else {t.name: _made_up(t, random) for t in loaded.inputs}
        integers = loaded.quantize(given)
        outputs = loaded.reference_integer(integers)
        # every contender reads what the artifact's integers stand for
        reals = {
            t.name: q if t.scale is None else ((q.astype(np.float64) - t.zero_point) * np.asarray(t.scale))
            for t, q in ((t, integers[t.name]) for t in loaded.inputs)
        }
        np.savez(folder / "reals.npz", **reals)
        np.savez(folder / "integers.npz", **integers)
        np.savez(folder / "outputs.npz", **outputs)
        np.savez(folder / "real_outputs.npz", **loaded.dequantize(outputs))
        for file in ("program.npz", "model.qdq.onnx"):
            (folder / file).write_bytes((built.path / file).read_bytes())
        (folder / "facts.json").write_text(json.dumps({"macs": built.manifest["macs"]}))


def _made_up(tensor: Any, random: np.random.Generator) -> np.ndarray:
    if tensor.scale is None:
        return np.ones(tensor.shape, tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    return random.integers(limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True)


def _has_quantizers(model: Path) -> bool:
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in graph.node)


def file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _meaning_hash() -> str:
    """Of the code that turns a model into a program: all but the kernels of CPUs and the writing of artifacts."""
    files = sorted(f for folder in MEANING for f in (ROOT / folder).rglob("*.py"))
    skip = {"cpu", "codegen", "artifact", "cli"}
    text = b"".join(f.read_bytes() for f in files if not skip & set(f.relative_to(ROOT).parts))
    return hashlib.sha256(text).hexdigest()
