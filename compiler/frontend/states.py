"""States: outputs of one call that are inputs of the next, which stay integers in between.

A pair says that the graph output is fed back as the graph input. The pairs go with the model as its metadata
"qcompile.states": {"h_in": "h_out", "c_in": "c_out"} as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import onnx
from qcompile.frontend.graph import Graph
from qcompile.targets.errors import CompileError

KEY = "qcompile.states"


def parse_states(texts: Iterable[str], graph: Graph) -> dict[str, str]:
    """("h_in:h_out", ...) as {"h_in": "h_out"}; names may hold colons and commas themselves ("h:0:out:0").

    CompileError where a text is written otherwise, or the model has no such input and output.
    """
    known = {f"{i.name}:{o.name}": (i.name, o.name) for i in graph.inputs for o in graph.outputs}
    pairs: dict[str, str] = {}
    for text in texts:
        for part in [text] if text in known else [part for part in text.split(",") if part] or [text]:
            source, target = known.get(part) or (part.rpartition(":")[0], part.rpartition(":")[2])
            if not source or not target:
                raise CompileError(f"--state {part!r} is not of the form INPUT:OUTPUT")
            if pairs.get(source, target) != target:
                raise CompileError(f"--state: input '{source}' is given two outputs, '{pairs[source]}' and '{target}'")
            pairs[source] = target
    return pairs


def declare_states(graph: Graph, given: Mapping[str, str] | Iterable[str]) -> None:
    """Note {input: output}, or the texts that `parse_states` reads, as the model's states. CompileError where one is
    unknown, used twice, or of another shape or type than its partner."""
    pairs = {**states(graph), **(given if isinstance(given, Mapping) else parse_states(given, graph))}
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
    graph.metadata.append(onnx.StringStringEntryProto(key=KEY, value=json.dumps(pairs)))


def states(graph: Graph) -> dict[str, str]:
    """The declared states, {input: output}."""
    pairs: dict[str, str] = {}
    for entry in (p.value for p in graph.metadata if p.key == KEY):
        try:
            pairs |= {str(source): str(target) for source, target in json.loads(entry).items()}
        except (ValueError, AttributeError, RecursionError) as e:
            raise CompileError(f"the model's metadata {KEY!r} is no JSON of {{input: output}}: {entry!r}") from e
    return pairs
