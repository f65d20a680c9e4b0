"""LSTM on this machine beside ONNX Runtime's float LSTM and its DynamicQuantizeLSTM, one thread, turn by turn.

recurrent.py [--repeat N] [--json FILE] [case ...]

Cases: a step of a language model (2 layers of 650, states in and out) and a sequence of 32 steps through 2 layers of
1024. Weights are random: they cost what trained ones do. Times are medians and least times of calls that take turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import qcompile
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console
from rich.table import Table

CASES = {  # steps, units, layers, whether states are inputs and outputs
    "step_650": (1, 650, 2, True),
    "step_1024": (1, 1024, 2, True),
    "sequence_1024": (32, 1024, 2, False),
}


def lstm(steps: int, units: int, layers: int, states: bool, seed: int = 0) -> onnx.ModelProto:
    """x [steps, 1, units] through `layers` LSTMs of as many units."""
    rng, reach = np.random.default_rng(seed), 2 / np.sqrt(units)
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    nodes, inputs, outputs, source = [], [value("x", steps, 1, units)], [], "x"
    constants = {"axis": np.array([1])}
    for k in range(layers):
        for name, shape in (("W", (1, 4 * units, units)), ("R", (1, 4 * units, units)), ("B", (1, 8 * units))):
            constants[f"{name}{k}"] = rng.uniform(-reach, reach, shape).astype(np.float32)
        given, made = [source, f"W{k}", f"R{k}", f"B{k}"], [f"Y{k}"]
        if states:
            given, made = [*given, "", f"h{k}", f"c{k}"], [*made, f"h{k}_next", f"c{k}_next"]
            inputs += [value(name, 1, 1, units) for name in given[-2:]]
            outputs += [value(name, 1, 1, units) for name in made[-2:]]
        nodes.append(helper.make_node("LSTM", given, made, hidden_size=units))
        nodes.append(helper.make_node("Squeeze", [f"Y{k}", "axis"], [f"y{k}"]))
        source = f"y{k}"
    outputs.insert(0, value(source, steps, 1, units))
    initializers = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(model: onnx.ModelProto, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return [
        {n: np.clip(rng.normal(0, 0.5, s), -1, 1).astype(np.float32) for n, s in shapes.items()} for _ in range(count)
    ]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def bound(s: ort.InferenceSession, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
    """A call of a session without copies at its border."""
    binding = s.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for output in s.get_outputs():
        binding.bind_output(output.name)
    return lambda: s.run_with_iobinding(binding)


def measure(name: str, repeat: int) -> dict[str, Any]:
    """One row: microseconds of each contender, sizes, and distances from the float results."""
    model = lstm(*CASES[name])
    samples = feeds(model, 8)
    with tempfile.TemporaryDirectory() as folder:
        exact, dynamic = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(model, exact)
        quantize_dynamic(exact, dynamic, per_channel=True, weight_type=QuantType.QInt8)
        built = qcompile.compile(exact, calibration=samples, output=folder, name=name)
        ours = qcompile.load(built.path)
        peers = {"float": session(exact), "dynamic": session(dynamic)}
        integers = ours.quantize(samples[0])
        want = peers["float"].run(None, samples[0])[0]
        got = ours.dequantize(ours.run_integer(integers))[ours.outputs[0].name]
        engine = ours.engine
        engine.run([integers[t.name] for t in ours.inputs])
        calls = {"qcompile": lambda: engine.function(*engine.arguments)}
        calls |= {n: bound(s, samples[0]) for n, s in peers.items()}
        seconds: dict[str, list[float]] = {n: [] for n in calls}
        for _ in range(repeat):
            for contender, call in calls.items():
                call()
                began = time.perf_counter()
                call()
                seconds[contender].append(time.perf_counter() - began)
        return {
            "case": name,
            "median_us": {n: round(float(np.median(t)) * 1e6, 1) for n, t in seconds.items()},
            "least_us": {n: round(min(t) * 1e6, 1) for n, t in seconds.items()},
            "float_bytes": sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer),
            "weights_bytes": built.manifest["weights_bytes"],
            "code_bytes": built.manifest["code_bytes"],
            "error": {
                "qcompile": float(np.abs(got - want).max()),
                "dynamic": float(np.abs(peers["dynamic"].run(None, samples[0])[0] - want).max()),
            },
            "exact": bool(
                all(np.array_equal(a, b) for a, b in zip(
                    ours.run_integer(integers).values(), ours.reference_integer(integers).values()))
            ),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--repeat", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.repeat) for name in arguments.cases]
    table = Table("case", "qcompile us", "float us", "dynamic us", "x float", "x dynamic", "bytes", "x less", "error")
    for r in rows:
        m, least = r["median_us"], r["least_us"]
        table.add_row(
            r["case"],
            *(f"{m[n]:.0f} ({least[n]:.0f})" for n in m),
            *(f"{m[n] / m['qcompile']:.2f} ({least[n] / least['qcompile']:.2f})" for n in ("float", "dynamic")),
            f"{r['weights_bytes']:,}",
            f"{r['float_bytes'] / r['weights_bytes']:.2f}",
            " / ".join(f"{e:.4f}" for e in r["error"].values()) + ("" if r["exact"] else " NOT EXACT"),
        )
    Console(width=150).print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
