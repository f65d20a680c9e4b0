"""Each case in a process of its own, forked from one that has imported everything: a crash or a hang is a result."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.case import Case
from fuzz.check import CRASH, EXCEPTION, HANG, INVALID, OUTSIDE, Found, Result, check

LIMIT = 60.0  # seconds for each stage: compiling for one target, or running
DRAWING = 20.0  # seconds for a graph and its samples
MEMORY = 6 << 30  # bytes of address space beyond what the parent has
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
SIGNALS = {s.value: s.name for s in signal.Signals}


NOT_OURS = ("drawing", "ONNX Runtime", "8-bit graph")  # where ONNX Runtime works, or its quantizer


@dataclass
class Child:
    """A running case: its key, process, pipe, the last stage that it told, and until when the next must come."""

    key: int
    pid: int
    pipe: int
    until: float
    stage: str = "drawing"
    text: str = ""
    result: Result | None = None


def warm(targets: Iterable[str]) -> None:
    """Imports and compiles once for each target, so that no child has to; must leave no threads behind."""
    import tempfile

    import numpy as np
    import qcompile
    from onnx import TensorProto, helper

    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:]), ir_version=10)
    for target in targets:
        with tempfile.TemporaryDirectory() as folder:
            made = qcompile.compile(model, target, output=folder, name="warm")
            qcompile.load(made.path).run({"x": np.zeros((1, 8), np.float32)})


def run_cases(
    cases: Iterable[tuple[int, Callable[[], Case]]], jobs: int = 1, limit: float = LIMIT, folder: Path | None = None
) -> Iterator[tuple[int, Result]]:
    """(key, result) of each case as it ends; a case is made within its process by the function given with its key.

    folder: gets the files of a case before it is compiled, as KEY.onnx and KEY.npz.
    """
    waiting, running = iter(cases), {}  # type: ignore[var-annotated]
    while True:
        while len(running) < jobs and (following := next(waiting, None)) is not None:
            child = _start(*following, limit, folder)
            running[child.pipe] = child
        if not running:
            return
        now = time.monotonic()
        ready, _, _ = select.select(list(running), [], [], max(0.0, min(c.until for c in running.values()) - now))
        for pipe in ready:
            if not _read(running[pipe], limit):
                child = running.pop(pipe)
                yield child.key, _ended(child)
        for child in [c for c in running.values() if c.until < time.monotonic()]:
            del running[child.pipe]
            os.kill(child.pid, signal.SIGKILL)
            _ended(child)
            kind = INVALID if child.stage in NOT_OURS else HANG
            yield child.key, Result(kind, f"more than {limit:.0f} s in {child.stage}", child.stage)


def _start(key: int, make: Callable[[], Case], limit: float, folder: Path | None) -> Child:
    reader, writer = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's threads are idle
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            _work(key, make, writer, folder)
        finally:
            os._exit(0)
    os.close(writer)
    return Child(key, pid, reader, time.monotonic() + min(limit, DRAWING))


def _work(key: int, make: Callable[[], Case], writer: int, folder: Path | None) -> None:
    """In the child: lines of JSON, a stage each, and last the result."""
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.filterwarnings("ignore")
    began = time.monotonic()

    def tell(**what: object) -> None:
        os.write(writer, (json.dumps(what) + "\n").encode())

    try:
        case = make()
        if folder is not None:
            case.name = str(key)
            case.save(folder)
        result = check(case, lambda stage: tell(stage=stage))
    except Found as found:
        result = found.result
    except BaseException as e:
        from fuzz.check import _frame

        result = Result(EXCEPTION, f"{type(e).__name__}: {e}"[:300], _frame(e))
    result.seconds["all"] = round(time.monotonic() - began, 2)
    tell(result=result.to_json())


def _read(child: Child, limit: float) -> bool:
    """Takes what the child says; False when it has ended."""
    data = os.read(child.pipe, 1 << 16)
    child.text += data.decode()
    *lines, child.text = child.text.split("\n")
    for line in map(json.loads, lines):
        if "result" in line:
            child.result = Result(**line["result"])
        else:
            child.stage, child.until = line["stage"], time.monotonic() + limit
    return bool(data)


def _ended(child: Child) -> Result:
    """Reaps the child; its result, or what its death means."""
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    if child.result is not None:
        return child.result
    cause = (
        SIGNALS.get(os.WTERMSIG(status), "a signal") if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
    )
    if child.stage in NOT_OURS:
        return Result(INVALID, f"{cause} in {child.stage}", child.stage)
    outside = cause in ("SIGSEGV", "SIGBUS") and child.stage.startswith(("run", "threads", "stream"))
    return Result(OUTSIDE if outside else CRASH, f"{cause} in {child.stage}", child.stage)
