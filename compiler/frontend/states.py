"""States: outputs of one call that are inputs of the next, which stay integers in between.

A pair says that the graph output is fed back as the graph input. The pairs go with the model as its metadata
"qcompile.states", "h_in:h_out,c_in:c_out".
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from qcompile.frontend.graph import Graph
from qcompile.targets.errors import CompileError

KEY = "qcompile.states"


def parse_states(texts: tuple[str, ...]) -> dict[str, str]:
    """("h_in:h_out", ...) as {"h_in": "h_out"}; CompileError where it is written otherwise."""
    pairs: dict[str, str] = {}
    for text in (part for t in texts for part in t.split(",") if part):
        source, _, target = text.rpartition(":")
        if not source or not target:
            raise CompileError(f"--state {text!r} is not of the form INPUT:OUTPUT")
        pairs[source] = target
    return pairs


def declare_states(graph: Graph, pairs: Mapping[str, str]) -> None:
    """Note {input: output} as the model's states. CompileError where one is unknown, used twice, or of another shape or
    type than its partner."""
    pairs = {**states(graph), **pairs}
    if not pairs:
        return
    names = [v.name for v in graph.inputs]
    for source, target in pairs.items():
        if source not in names:
            raise CompileError(f"--state {source}:{target}: the model has no input '{source}', only {', '.join(names)}")
        if target not in graph.output_names:
            raise CompileError(
                f"--state {source}:{target}: the model has no output '{target}', only {', '.join(graph.output_names)}"
            )
        ends = [(graph.shape(name), graph.dtypes.get(name)) for name in (source, target)]
        if ends[0] != ends[1]:
            raise CompileError(
                f"--state {source}:{target}: the input has shape {ends[0][0]} and the output {ends[1][0]}; a state "
                "keeps its shape and type"
            )
    twice = [t for t in pairs.values() if list(pairs.values()).count(t) > 1]
    if twice:
        raise CompileError(f"--state: output '{twice[0]}' is fed back to more than one input")
    graph.metadata = [p for p in graph.metadata if p.key != KEY]
    text = ",".join(f"{source}:{target}" for source, target in pairs.items())
    graph.metadata.append(onnx.StringStringEntryProto(key=KEY, value=text))


def states(graph: Graph) -> dict[str, str]:
    """The declared states, {input: output}."""
    return parse_states(tuple(p.value for p in graph.metadata if p.key == KEY))
