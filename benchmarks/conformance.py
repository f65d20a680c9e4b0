"""ONNX's own node tests: each compiles and agrees, or is refused by name; none crashes, hangs or is silently wrong.

conformance.py [--reference] [--json FILE] [--markdown FILE] [--page FILE] [--timeout SECONDS] [word ...]

A case is compiled with all its inputs as inputs; where that is refused, with its parameters (shapes, scales, axes, then
everything but the first input) as constants. Float models are calibrated on the case's own inputs. Float results may
be off by what a step of the inputs changes, and two steps of the output; integers must be equal, either to the test's
or to what the reference gives for the quantized inputs. --reference runs the numpy meaning instead of machine code.
Cases run in a process of their own kind, which is started again where one kills it.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from operators import page

OUTCOMES = ("agrees", "refused", "wrong", "crashed", "hung", "no numbers")
FAILURES = ("wrong", "crashed", "hung")
STEPS, SHARE = 2.5, 0.012  # of an output step; of the output's range, for weights and inner tensors of 8 bits
PERTURBATIONS = 6
HEADING = """ONNX's own node tests (`make conformance`): *agrees*: compiled to integer machine code with equal
results, within the quantization error for floats; *refused*: by name; *no numbers*: NaN, strings, types of no numbers.
"""
START = 180  # seconds until the first case is read


# --- one case, in the worker ------------------------------------------------------------------------------------------
@dataclass
class Result:
    outcome: str
    reason: str = ""


def run_case(case: Any, reference: bool) -> Result:
    """Compile and compare; exceptions that are no refusals count as crashes."""
    from qcompile.targets.errors import CompileError

    inputs, expected = ([_array(v) for v in part] for part in case.data_sets[0])
    if not all(_plain(v) for v in [*inputs, *expected]):
        return _unlike_numbers(case)
    feed = dict(zip((i.name for i in case.model.graph.input), inputs))
    if any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in feed.values()):
        return Result("no numbers", "an input is NaN or infinite")
    reason = ""
    for constants in _bindings(case.model, feed):
        try:
            model = _bound(case.model, {k: feed[k] for k in constants})
            rest = {k: _in_bytes(v) for k, v in feed.items() if k not in constants}
            return _compare(case, model, rest, expected, reference)
        except CompileError as e:
            reason = reason or str(e)
    return Result("refused", reason)


def _array(value: Any) -> Any:
    """A tensor as numpy has it; bfloat16 as float32."""
    from onnx import TensorProto, numpy_helper

    value = numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
    return value.astype(np.float32) if getattr(value, "dtype", None) == "bfloat16" else value


def _in_bytes(value: np.ndarray) -> np.ndarray:
    """Numbers of 4 and 2 bits as artifacts take them."""
    return value.astype(np.int8 if value.dtype.name.startswith("i") else np.uint8) if _narrow(value) else value


def _narrow(value: np.ndarray) -> bool:
    return value.dtype.name in ("int4", "uint4", "int2", "uint2")


def _unlike_numbers(case: Any) -> Result:
    """Strings, sequences, optionals and floats of 8 bits: compiled, not compared."""
    from qcompile.frontend import normalise
    from qcompile.importer import import_onnx
    from qcompile.targets.errors import CompileError

    try:
        import_onnx(normalise(case.model))
    except CompileError as e:
        return Result("refused", str(e))
    return Result("no numbers", "its values are no numbers that could be compared")


def _plain(value: Any) -> bool:
    if not isinstance(value, np.ndarray | np.generic):
        return False
    dtype = np.asarray(value).dtype
    return (dtype.kind in "fiub" and not dtype.name.startswith("float8")) or _narrow(value)


def _bindings(model: Any, feed: dict[str, np.ndarray]) -> list[list[str]]:
    """Which inputs become constants, in the order of trial."""
    first = next((i for i in model.graph.node[0].input if i in feed), None)
    exact = [n for n, v in feed.items() if n != first and v.dtype.kind in "iub" and v.ndim < 2]
    others = [n for n in feed if n != first]
    tail = [n for n in feed if n != next(reversed(feed), None)]
    choices: list[list[str]] = []
    for choice in ([], exact, others, tail):
        if choice not in choices:
            choices.append(choice)
    return choices


def _bound(model: Any, constants: dict[str, np.ndarray]) -> Any:
    from onnx import ModelProto, numpy_helper

    copy = ModelProto.FromString(model.SerializeToString())
    kept = [i for i in copy.graph.input if i.name not in constants]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return copy


def _compare(case: Any, model: Any, feed: dict[str, np.ndarray], expected: list, reference: bool) -> Result:
    runner = (_reference if reference else _artifact)(model, feed)
    results, quantized, steps = runner
    nearby = _nearby(case, quantized, feed, steps)
    for name, want, (value, scale) in zip((o.name for o in model.graph.output), expected, results):
        want = np.asarray(want)
        problem = _difference(want, value, scale, [n[name] for n in nearby if name in n])
        if problem:
            return Result("wrong", f"{name}: {problem}")
    return Result("agrees")


def _difference(want: np.ndarray, value: np.ndarray, scale: float | None, nearby: list[np.ndarray]) -> str:
    """What is wrong with a result, empty if nothing."""
    if want.ndim and value.shape[1:] == want.shape[1:] and (value[len(want) :] == -1).all():
        value = value[: len(want)]  # NonMaxSuppression has as many rows as it can select
    if tuple(value.shape) != tuple(want.shape):
        return f"shape {value.shape} instead of {want.shape}"
    if want.dtype.kind in "iub" or _narrow(want):
        alternatives = [want, *nearby[:1]]
        offsets = (0, 128, 32768) if scale is not None else (0,)  # unsigned codes are stored signed
        if any((value + o == a.astype(np.int64)).all() for a in alternatives for o in offsets):
            return ""
        return f"{int((value != want.astype(np.int64)).sum())} of {want.size} integers differ"
    want = want.astype(np.float64)
    known = np.isfinite(want)
    if not known.any():
        return ""
    nearby = [n for n in nearby if n.shape == want.shape]
    spread = np.max([np.nan_to_num(np.abs(n - want), posinf=1e9) for n in nearby], axis=0) if nearby else 0.0
    range_ = float(want[known].max() - min(want[known].min(), 0.0))
    allowed = STEPS * (scale or 0.0) + SHARE * max(range_, np.abs(want[known]).max()) + 3.0 * spread + 1e-7
    off = np.abs(np.where(known, value - want, 0.0))
    worst = float((off - allowed).max(initial=0.0))
    if worst <= 0:
        return ""
    i = int(np.argmax(off - allowed))
    return f"{value.ravel()[i]:.4g} instead of {want.ravel()[i]:.4g} in a range of {range_:.3g}"


def _nearby(case: Any, quantized: dict, feed: dict, steps: dict[str, float]) -> list[dict[str, np.ndarray]]:
    """Results of the reference for the quantized inputs, and for inputs a step away."""
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    names = [o.name for o in case.model.graph.output]
    given = dict(zip((i.name for i in case.model.graph.input), case.data_sets[0][0]))
    found = []
    try:
        evaluator = ReferenceEvaluator(case.model)
        for k in range(PERTURBATIONS + 1):
            moved = dict(given)
            for n, v in given.items():
                if v.dtype.kind != "f" or (n not in feed and v.ndim < 2):
                    continue
                step = steps.get(n, float(np.abs(v).max(initial=0)) / 127)
                if k == 0:
                    moved[n] = quantized.get(n, v).astype(v.dtype)
                else:
                    moved[n] = (v + step * rng.choice([-1.0, 1.0], v.shape)).astype(v.dtype)
            found.append(dict(zip(names, (np.asarray(r) for r in evaluator.run(None, moved)))))
    except Exception:  # no reference for this operator, or none for these values
        return found
    return found


def _options() -> Any:
    """Ranges hold every value: a case is compared element by element, not by its noise."""
    from qcompile.quantizer import QuantizeOptions

    return QuantizeOptions(ranges="minmax")


def _prepared(model: Any, feed: dict[str, np.ndarray]) -> Any:
    """The QDQ model that compile() would make."""
    from qcompile.frontend import Graph, is_quantized, load_model, normalise_graph
    from qcompile.quantizer import quantize_graph

    graph, notes = Graph(load_model(model)), []
    normalise_graph(graph, {}, notes)
    if not is_quantized(graph):
        quantize_graph(graph, [feed], _options(), notes)
        normalise_graph(graph, {}, notes)
    return graph.to_model()


def _reference(model: Any, feed: dict[str, np.ndarray]) -> tuple[list, dict, dict]:
    from qcompile.importer import import_onnx
    from qcompile.passes import tidy
    from qcompile.passes.bounds import prove_bounds
    from qcompile.passes.check import check
    from qcompile.passes.integerize import integerize

    imported = import_onnx(_prepared(model, feed))
    program = tidy(integerize(imported.module, imported.names, imported.outputs))
    check(program, "integerize")
    prove_bounds(program)
    given, quantized, steps = {}, {}, {}
    for name, type_ in program.inputs.items():
        value = feed[name]
        if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            scale, zero = program.info.get("inputs", {}).get(name, (1.0, 0))
            info = np.iinfo(type_.dtype)
            codes = np.clip(np.rint(value.astype(np.float32) / np.float32(scale)) + zero, info.min, info.max)
            quantized[name], steps[name] = (codes - zero) * scale, scale
            given[name] = codes.astype(type_.dtype)
        else:
            given[name] = value.astype(type_.dtype)
    values, results = program.run(given), []
    for name, tensor in zip(program.info["output_names"], program.outputs):
        scale = program.info["outputs"].get(name)
        results.append(_real(model, name, values[tensor], *(scale or (None, 0))))
    return results, quantized, steps


def _real(model: Any, name: str, codes: np.ndarray, scale: Any, zero: int, axis: int = 0) -> tuple[np.ndarray, Any]:
    """A result as the ONNX model has it: floats, or integers as they are; and its largest step."""
    output = next(o for o in model.graph.output if o.name == name)
    is_float = output.type.tensor_type.elem_type in (0, 1, 10, 11, 16)
    if is_float and scale is not None:
        along = [-1 if i == axis else 1 for i in range(codes.ndim)]
        steps = np.asarray(scale).reshape(along if np.size(scale) > 1 else ())
        return (codes.astype(np.float64) - zero) * steps, float(np.max(scale))
    return codes.astype(np.float64 if is_float else np.int64), scale


def _artifact(model: Any, feed: dict[str, np.ndarray]) -> tuple[list, dict, dict]:
    import qcompile

    with tempfile.TemporaryDirectory() as folder:
        built = qcompile.compile(model, "host", calibration=[feed], output=folder, name="node", options=_options())
        loaded = qcompile.load(built.path)
        codes = loaded.quantize({i.name: feed[i.name] for i in loaded.inputs})
        outputs = loaded.run_integer(codes)
        quantized, steps = {}, {}
        for i in loaded.inputs:
            if i.scale and feed[i.name].dtype.kind == "f":
                quantized[i.name] = (codes[i.name].astype(np.float64) - i.zero_point) * i.scale
                steps[i.name] = i.scale
        results = [_real(model, o.name, outputs[o.name], o.scale, o.zero_point, o.axis) for o in loaded.outputs]
    return results, quantized, steps


def worker(reference: bool) -> None:
    """Reads names of cases, one a line; writes one JSON line for each."""
    warnings.filterwarnings("ignore")
    out = sys.stdout
    sys.stdout = sys.stderr
    cases = {c.name: c for c in _cases()}
    print(json.dumps({"ready": len(cases)}), file=out, flush=True)
    for line in sys.stdin:
        try:
            result = run_case(cases[line.strip()], reference)
        except Exception as e:
            where = _last_frame(e)
            result = Result("crashed", f"{type(e).__name__} in {where}: {' '.join(str(e).split())[:160]}")
        print(
            json.dumps({"name": line.strip(), "outcome": result.outcome, "reason": result.reason}), file=out, flush=True
        )


def _last_frame(error: BaseException) -> str:
    """Where in the project an exception passed last."""
    found, tb = "", error.__traceback__
    root = str(Path(__file__).resolve().parents[1])
    while tb is not None:
        file = str(Path(tb.tb_frame.f_code.co_filename).resolve())
        if file.startswith(root) and "benchmarks" not in file:
            found = f"{Path(file).relative_to(root)}:{tb.tb_lineno}"
        tb = tb.tb_next
    return found or "the conformance program"


def _cases() -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


# --- all cases, in the parent -----------------------------------------------------------------------------------------
class Process:
    """A worker, started again after a case that it did not survive."""

    def __init__(self, reference: bool) -> None:
        self.command = [sys.executable, __file__, "--worker", *(["--reference"] if reference else [])]
        self.child: subprocess.Popen[str] | None = None

    def _start(self) -> None:
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self.child, self.lines), daemon=True).start()
        self.lines.get(timeout=START)

    @staticmethod
    def _read(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert child.stdout
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    def run(self, name: str, timeout: float) -> dict[str, str]:
        if self.child is None or self.child.poll() is not None:
            self._start()
        assert self.child and self.child.stdin
        self.child.stdin.write(name + "\n")
        self.child.stdin.flush()
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            return {"name": name, "outcome": "hung", "reason": f"more than {timeout:.0f} s"}
        if not line:
            code = self.child.wait()
            self.child = None
            return {"name": name, "outcome": "crashed", "reason": f"the process ended with {code}"}
        return json.loads(line)

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


def operators() -> dict[str, str]:
    """Case name: the operator it is about."""
    return {c.name: c.model.graph.node[0].op_type if len(c.model.graph.node) == 1 else _about(c) for c in _cases()}


def _about(case: Any) -> str:
    name = case.name.removeprefix("test_")
    return f"{name.split('_')[0]} (expanded)" if "expanded" in name else case.model.graph.node[-1].op_type


def report(rows: list[dict[str, str]], ops: dict[str, str]) -> str:
    """A Markdown table by operator, and the failures one by one."""
    table: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        table[ops[row["name"]]][row["outcome"]] += 1
    total = Counter(r["outcome"] for r in rows)
    lines = ["| operator | " + " | ".join(OUTCOMES) + " |", "|---|" + "---:|" * len(OUTCOMES)]
    for op in sorted(table, key=str.lower):
        lines.append(f"| {op} | " + " | ".join(str(table[op][o] or "") for o in OUTCOMES) + " |")
    lines.append(f"| **all {len(rows)}** | " + " | ".join(str(total[o]) for o in OUTCOMES) + " |")
    bad = [r for r in rows if r["outcome"] in FAILURES]
    return "\n".join(lines + [""] + [f"{r['outcome']}: {r['name']}: {r['reason']}" for r in bad])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose names contain one of these")
    parser.add_argument("--reference", action="store_true", help="the numpy meaning instead of machine code")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the table there, where all cases ran")
    parser.add_argument("--page", type=Path, help="write docs/operators.md there, where all cases ran")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one case")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.reference)
        return 0
    ops = operators()
    names = [n for n in ops if not options.words or any(w in n for w in options.words)]
    process, rows, began = Process(options.reference), [], time.monotonic()
    for k, name in enumerate(names):
        rows.append(process.run(name, options.timeout))
        if sys.stderr.isatty():
            print(f"\r{k + 1}/{len(names)} {name:60.60}", end="", file=sys.stderr, flush=True)
    process.stop()
    print(report(rows, ops))
    print(f"\n{len(rows)} cases in {time.monotonic() - began:.0f} s")
    if options.markdown and not options.words:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(f"{HEADING}\n{report(rows, ops)}")
    if options.page and not options.words:
        options.page.write_text(page(rows, ops))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(r["outcome"] in FAILURES for r in rows))


if __name__ == "__main__":
    sys.exit(main())
