"""The last net: an exception that nobody expected becomes an error that says where it happened.

QCOMPILE_DEBUG=1 lets it through instead, with its traceback.
"""

from __future__ import annotations

import functools
import os
import tempfile
import traceback
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

from onnx import ModelProto, NodeProto
from qcompile.frontend.faults import node_fault
from qcompile.frontend.graph import Graph, label
from qcompile.kernels.program import Node
from qcompile.runtime.errors import ArtifactError
from qcompile.targets import CompileError, Defect

DEBUG = "QCOMPILE_DEBUG"
EXPECTED = (CompileError, ArtifactError, MemoryError)
STAGES = {  # by the package that the exception comes from
    "frontend": "reading the model",
    "quantizer": "calibrating and quantizing",
    "mixed": "choosing bits",
    "importer": "importing",
    "passes": "integerizing",
    "kernels": "lowering",
    "codegen": "generating code",
    "artifact": "linking and proving",
}
P = ParamSpec("P")
R = TypeVar("R")


def reports_defects(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises Defect for every exception that is none of EXPECTED, and CompileError for what the
    system refuses: a full disk, a folder that may not be written to."""

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except EXPECTED:
            raise
        except OSError as error:
            file = error.filename or f"a temporary file in {tempfile.gettempdir()} (TMPDIR names another folder)"
            raise CompileError(f"{file}: {error.strerror or error}") from error
        except Exception as error:
            if os.environ.get(DEBUG, "0") not in ("", "0"):
                raise
            raise refusal(error) or Defect(describe(error)) from error

    return wrapped


def refusal(error: Exception) -> CompileError | None:
    """The error for a node that ONNX does not allow either, where that is what the exception comes from."""
    node: NodeProto | None = None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        found, source = frame.f_locals.get("node"), frame.f_locals.get("graph", frame.f_locals.get("model"))
        node = found if node is None and isinstance(found, NodeProto) else node
        if node is not None and isinstance(source, Graph | ModelProto):  # the innermost that has it
            fault = node_fault(node, source if isinstance(source, Graph) else Graph(source))
            told = f"node {label(node)}: {fault}; correct the model, or export it again"
            return CompileError(told) if fault else None
    return None


def describe(error: Exception) -> str:
    """One line: the stage and the node that an exception comes from, what it says, and what to do."""
    ours = [
        (frame, line, parts[1])
        for frame, line in traceback.walk_tb(error.__traceback__)
        if (parts := str(frame.f_globals.get("__name__", "")).split("."))[0] == "qcompile" and len(parts) > 1
    ]
    stage = next((STAGES[part] for _, _, part in ours if part in STAGES), "compiling")
    node = next((name for frame, _, _ in reversed(ours) if (name := _node(frame))), "")
    place = f" ({ours[-1][0].f_globals['__name__']}, line {ours[-1][1]})" if ours else ""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return (
        f"{f'node {node}: ' if node else ''}{stage} failed with {said}{place}; this is a defect "
        f"of qcompile: please report it with the model ({DEBUG}=1 shows the traceback)"
    )


def _node(frame: FrameType) -> str:
    """What the frame works on, where it calls it `node` or `layer`; else nothing."""
    for name in ("node", "layer"):
        value = frame.f_locals.get(name)
        if isinstance(value, NodeProto):
            return label(value)
        if isinstance(value, Node):
            return f"{value.op} '{value.name}'"
    return ""
