"""One job in a process of its own, so that its memory can be read off: python -m host.worker JOB ARGUMENT ...

compile NAME TARGET        compiles the net; prints the artifact's folder, seconds a stage, peak memory
quantize NAME              the float model by ONNX Runtime's quantizer: uint8 activations, int8 weights per channel
run RUNTIME FILE ARTIFACT  loads one contender and runs it a few times, one thread; prints the peak memory
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 3


def peak_bytes() -> int:
    """The most memory that this process, or one it waited for, has had at any time (not that of its parent, which
    getrusage inherits)."""
    own = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * max(int(own[1]) if own else 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def compile(name: str, target: str) -> dict[str, Any]:
    import qcompile

    from host.nets import bench_nets

    net = bench_nets()[name]
    model, calibration = net.model(), net.calibration()
    before = peak_bytes()
    built = qcompile.compile(model, target, calibration=calibration, output=net.folder, name=name)
    return {
        "path": str(built.path),
        "model": str(model),
        "seconds": {k: round(v, 3) for k, v in built.seconds.items()},
        "total_s": round(sum(built.seconds.values()), 2),
        "peak_bytes": peak_bytes(),
        "before_bytes": before,
    }


def quantize(name: str) -> dict[str, Any]:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from host.nets import bench_nets

    logging.disable(logging.WARNING)
    net = bench_nets()[name]
    model, result = net.model(), net.folder / "u8s8.onnx"
    result.parent.mkdir(parents=True, exist_ok=True)
    if result.exists() and result.stat().st_mtime > model.stat().st_mtime:
        return {"path": str(result)}
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(model), str(prepared))
        except Exception:  # its symbolic shape inference gives up on some nets, which then go as they are
            prepared = model
        fresh = result.with_suffix(".new")
        quantize_static(
            str(prepared),
            str(fresh),
            _Reader(net.calibration()),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        fresh.replace(result)
    return {"path": str(result)}


class _Reader:
    """Calibration feeds as ONNX Runtime's quantizer asks for them."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def run(runtime: str, file: str, artifact: str) -> dict[str, Any]:
    """`runtime` may be nothing: what Python and numpy take by themselves."""
    if runtime != "nothing":
        RUNTIMES[runtime](Path(file), json.loads((Path(artifact) / "manifest.json").read_text()))
    return {"peak_bytes": peak_bytes()}


def _run_artifact(folder: Path, manifest: dict[str, Any]) -> None:
    """As a C program would: the library opened from its file, memory from the caller."""
    library = ctypes.CDLL(str(folder / manifest["library"]))
    sides = [
        [np.ones(int(np.prod(t["shape"])) * np.dtype(t["dtype"]).itemsize + 64, np.uint8) for t in manifest[side]]
        for side in ("inputs", "outputs")
    ]
    arena = np.empty(manifest["arena_bytes"] + 64, np.uint8)

    def address(array: np.ndarray) -> int:
        return array.ctypes.data + -array.ctypes.data % 64

    pointers = [(ctypes.c_void_p * len(side))(*map(address, side)) for side in sides]
    for _ in range(RUNS):
        if library[f"{manifest['name']}_run"](*pointers, ctypes.c_void_p(address(arena))):
            raise RuntimeError("the artifact returned an error")


def _run_onnxruntime(file: Path, manifest: dict[str, Any]) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    shapes = {t["name"]: t["shape"] for t in manifest["inputs"]}
    types = {"tensor(float)": "float32", "tensor(double)": "float64"}
    feeds = {i.name: np.ones(shapes[i.name], types.get(i.type) or i.type[7:-1]) for i in session.get_inputs()}
    for _ in range(RUNS):
        session.run(None, feeds)


def _run_litert(file: Path, manifest: dict[str, Any]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], np.ones(details["shape"], details["dtype"]))
    for _ in range(RUNS):
        interpreter.invoke()


RUNTIMES = {"qcompile": _run_artifact, "onnxruntime": _run_onnxruntime, "litert": _run_litert}
JOBS = {job.__name__: job for job in (compile, quantize, run)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
