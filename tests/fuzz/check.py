"""What must hold for one case: compiled or refused by name; reference = every target; no byte outside a buffer."""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from guarded import run_guarded

from fuzz.build import Unsuitable, session
from fuzz.case import Case
from fuzz.yardstick import rounded_graph

AGREES, REFUSED, LOW, INVALID = "agrees", "refused", "low", "invalid"
DIFFERENCE, OUTSIDE, CRASH, EXCEPTION, HANG, NAMELESS = (
    "difference",
    "out of bounds",
    "crash",
    "raw exception",
    "hang",
    "nameless refusal",
)
FINDINGS = (DIFFERENCE, OUTSIDE, CRASH, EXCEPTION, HANG, NAMELESS)
HARD = (DIFFERENCE, OUTSIDE, CRASH, EXCEPTION, HANG)
LEAST_DB = 20.0
MOST_DB = 120.0
RUNS = 3  # samples that machine code and the reference are compared on
ROOMS = ("compiler", "passes", "kernels", "targets", "runtime")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """kind: one of the names above; reason: of a refusal or finding; where: the place in the code, or the target;
    decibels: signal to noise of each output against ONNX Runtime; plain_decibels: where that is low, of the graph with
    every tensor rounded to 8 bits; notes: what the compiler remarked."""

    kind: str
    reason: str = ""
    where: str = ""
    decibels: dict[str, float] = field(default_factory=dict)
    plain_decibels: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v or k == "kind"}


class Found(Exception):
    """A finding, from wherever it is seen."""

    def __init__(self, kind: str, where: str, reason: str) -> None:
        super().__init__(reason)
        self.result = Result(kind, reason, where)


def check(case: Case, stage: Callable[[str], None]) -> Result:
    """Compiles and runs the case. `stage` is told what is about to be done, so that a death has a place."""
    from qcompile import CompileError

    os.environ |= {"QCOMPILE_CHECK": "1", "QCOMPILE_DEBUG": "1"}  # defects come as the exceptions they are
    stage("ONNX Runtime")
    try:
        expected = _onnxruntime(case, case.feeds())
    except Exception as e:
        return Result(INVALID, f"{type(e).__name__}: {e}"[:300])
    result = Result(AGREES)
    programs: dict[str, bytes] = {}
    for target in case.options["targets"]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path, notes = _compile(case, target, Path(folder), stage)
            except CompileError as e:
                return refusal(case, str(e))
            except Exception as e:
                return Result(EXCEPTION, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", _frame(e))
            try:
                ratios = _run(case, target, path, expected, stage)
            except Found as found:
                return found.result
            except Exception as e:
                return Result(EXCEPTION, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", _frame(e))
            programs[target] = (path / "program.npz").read_bytes()
        if not result.decibels:
            result.decibels, result.notes = ratios, notes
    if case.options["bits"] != "mixed" and len(set(programs.values())) > 1:
        return Result(DIFFERENCE, "the programs of two targets differ", "/".join(programs))
    if min(result.decibels.values(), default=MOST_DB) < LEAST_DB:
        result.kind = LOW
        stage("8-bit graph")
        result.plain_decibels = _plain(case, expected)
    return result


def _compile(case: Case, target: str, folder: Path, stage: Callable[[str], None]) -> tuple[Path, list[str]]:
    import qcompile

    stage(f"compile {target}")
    options = case.options
    made = qcompile.compile(
        case.model,
        target,
        bits=options["bits"],
        budget=tuple(options["budget"]),
        calibration=case.feeds() if options["calibrated"] else None,
        output=folder,
        name="net",
        approx=options["approx"],
        threads=options["threads"],
        states=options["states"],
    )
    return made.path, made.notes


def _run(
    case: Case, target: str, path: Path, expected: list[dict[str, np.ndarray]], stage: Callable[[str], None]
) -> dict[str, float]:
    """Compares machine code with the reference; the signal to noise of the reference's outputs."""
    import qcompile

    stage(f"load {target}")
    model = qcompile.load(path)
    feeds = case.feeds()
    codes = [model.quantize(f) for f in feeds]
    stage(f"reference {target}")
    wanted = [model.reference_integer(c) for c in codes]
    tried = [*zip(codes, wanted)][:RUNS]
    extreme = _extreme(model.inputs, codes[0])
    if extreme is not None:
        tried.append((extreme, model.reference_integer(extreme)))
    native = model.engine.name == "native"
    stage(f"run {target}")
    for code, want in tried:
        _same(want, model.run_integer(code), target)
    for code, want in (tried[0], tried[-1]) if native else ():
        _same(want, _guarded(model, code, case.options["threads"], target), f"{target}, between guard pages")
    if native and case.options["threads"] > 1:
        stage(f"threads {target}")
        threaded = qcompile.load(path, threads=case.options["threads"])
        for code, want in tried:
            _same(want, threaded.run_integer(code), f"{target}, {case.options['threads']} threads")
    if case.options["states"]:
        stage(f"stream {target}")
        _check_stream(model, feeds, target)
    whole = {n for n, v in expected[0].items() if v.dtype.kind in "iub"}  # codes are what the graph itself returns
    real = [{n: w[n] if n in whole else v for n, v in model.dequantize(w).items()} for w in wanted]
    return decibels(expected, real)


def _plain(case: Case, expected: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Signal to noise of the graph with every tensor rounded to 8 bits; nothing where that cannot be made."""
    try:
        run = session(rounded_graph(case.model, case.feeds()))
        names = [o.name for o in case.model.graph.output]
        return decibels(expected, [dict(zip(names, run.run(None, f))) for f in case.feeds()])
    except Exception:
        return {}


def _guarded(model: Any, codes: dict[str, np.ndarray], threads: int, target: str) -> dict[str, np.ndarray]:
    """Outputs of a run between unreadable pages, over memory and a stack that hold junk."""
    inputs = [np.asarray(codes[t.name], t.dtype) for t in model.inputs]
    try:
        results = run_guarded(model.manifest, inputs, threads)
    except AssertionError as e:
        text = str(e)
        kind = DIFFERENCE if "depends on" in text else OUTSIDE
        raise Found(kind, f"run {target}", text) from e
    return {t.name: r for t, r in zip(model.outputs, results)}


def _extreme(inputs: Any, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Codes over the whole range of each input that stands for floats; None where there is none."""
    rng = np.random.default_rng(1)
    wide = {
        t.name: rng.integers(np.iinfo(t.dtype).min, np.iinfo(t.dtype).max, t.shape, endpoint=True, dtype=np.int64)
        for t in inputs
        if t.scale is not None
    }
    return {t.name: wide.get(t.name, codes[t.name]).astype(t.dtype) for t in inputs} if wide else None


def _same(want: dict[str, np.ndarray], got: dict[str, np.ndarray], where: str) -> None:
    for name, w in want.items():
        if not np.array_equal(w, got[name]):
            off = int((np.asarray(w) != got[name]).sum())
            raise Found(DIFFERENCE, where, f"{name}: {off} of {w.size} values differ from the reference")


def _check_stream(model: Any, feeds: list[dict[str, np.ndarray]], target: str) -> None:
    """Three calls in a row equal the reference's, fed by hand."""
    stream = model.stream()
    state = {t.name: np.array(stream.state[t.name]) for t in model.inputs if t.name in stream.pairs}
    for feed in feeds[:RUNS]:
        codes = {n: v for n, v in model.quantize(feed).items() if n not in state}
        want = model.reference_integer({**codes, **state})
        got = stream.run_integer(codes)
        _same({n: want[n] for n in got}, got, f"{target}, stream")
        state = {i: want[o] for i, o in stream.pairs.items()}


def _onnxruntime(case: Case, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What the graph itself gives."""
    run = session(case.model)
    names = [o.name for o in run.get_outputs()]
    wanted = {i.name for i in run.get_inputs()}
    found = [dict(zip(names, run.run(names, {n: v for n, v in f.items() if n in wanted}))) for f in feeds]
    if not all(np.isfinite(v).all() for f in found for v in f.values() if v.dtype.kind == "f"):
        raise Unsuitable("its outputs are not finite")
    return found


def decibels(want: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Signal to noise of each output over all samples, at most MOST_DB; an output of zeros counts as one of ones."""
    found = {}
    for name in want[0]:
        w, g = (np.stack([np.asarray(f[name], np.float64) for f in side]) for side in (want, got))
        signal, noise = float((w * w).mean()), float(((w - g) ** 2).mean())
        signal = signal or 1.0
        found[name] = round(float(10 * np.log10(signal / max(noise, signal * 10 ** (-MOST_DB / 10)))), 2)
    return found


def refusal(case: Case, message: str) -> Result:
    """A refusal, or a finding where its message names no node, tensor or option."""
    graph = case.model.graph
    names = {n.name for n in graph.node} | {t for n in graph.node for t in [*n.input, *n.output]}
    names |= {i.name for i in [*graph.input, *graph.output, *graph.initializer]}
    named = any(re.search(rf"(?<!\w){re.escape(n)}", message) for n in names if n) or "--" in message
    return Result(REFUSED if named else NAMELESS, message, plain(message))


def plain(message: str) -> str:
    """A message without what is particular to one graph: reasons are counted by it."""
    text = " ".join(message.split()).replace("'", "")
    text = re.sub(r"\(node [^)]*\)", "", text)
    text = re.sub(r"[\w./:]*_\d+[\w./:]*", "*", text)
    return re.sub(r"-?\d[\d.e+^,]*", "#", text)[:160]


def _frame(error: BaseException) -> str:
    """The innermost function of the project that an exception passed."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ROOMS:
            found = f"{file.relative_to(ROOT)}:{frame.name}"
    return found or "outside the project"
