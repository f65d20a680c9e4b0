"""Einsum of one or two operands as Transpose, ReduceSum, Reshape and MatMul."""

from __future__ import annotations

import string

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.targets.errors import CompileError


def expand_einsum(graph: Graph, node: NodeProto) -> None:
    """ONNX Einsum-12. Raises CompileError for three operands and more, and for an index that one operand repeats."""
    shapes = [graph.shape(i) for i in node.input]
    if any(s is None for s in shapes):
        return
    known = [s for s in shapes if s is not None]
    terms, result = _terms(node, [len(s) for s in known])
    size = {c: n for term, shape in zip(terms, known) for c, n in zip(term, shape) if n != 1}
    size |= {c: 1 for term in terms for c in term if c not in size}
    if len(terms) > 2 or any(len(set(t)) != len(t) for t in terms):
        raise CompileError(
            f"node {label(node)}: '{attribute(node, 'equation')}' has three operands or repeats an index; "
            "write it with MatMul and Transpose"
        )
    y, made = node.output[0], []
    for k, (term, name) in enumerate(zip(terms, node.input)):
        others = set(result) | {c for j, t in enumerate(terms) if j != k for c in t}
        gone = [i for i, c in enumerate(term) if c not in others]
        if gone:
            axes = graph.constant(f"{y}_axes", np.array(gone, np.int64))
            name = graph.add("ReduceSum", [name, axes], f"{y}_reduced{k}", keepdims=0)
        made.append((name, "".join(c for c in term if c in others)))
    if len(made) == 1:
        (name, term), order = made[0], result
        _permuted(graph, node, name, term, order)
        return
    (a, at), (b, bt) = made
    batch = [c for c in result if c in at and c in bt]
    summed = [c for c in at if c in bt and c not in result]
    left, right = ([c for c in result if c in t and c not in batch] for t in (at, bt))
    count = lambda part: int(np.prod([size[c] for c in part], dtype=np.int64))  # noqa: E731
    lead = [size[c] for c in batch]
    x = _operand(graph, y, a, at, [*batch, *left, *summed], [*lead, count(left), count(summed)], "a")
    w = _operand(graph, y, b, bt, [*batch, *summed, *right], [*lead, count(summed), count(right)], "b")
    product = graph.add("MatMul", [x, w], f"{y}_product")
    term = "".join([*batch, *left, *right])
    shape = graph.constant(f"{y}_shape", np.array([size[c] for c in term], np.int64))
    _permuted(graph, node, graph.add("Reshape", [product, shape], f"{y}_shaped"), term, result)


def _terms(node: NodeProto, ranks: list[int]) -> tuple[list[str], str]:
    """The indices of each operand and of the result, ellipses written out with capital letters not in use."""
    equation = "".join(str(attribute(node, "equation")).split())
    left, arrow, right = equation.partition("->")
    given = left.split(",")
    free = [c for c in string.ascii_letters[::-1] if c not in equation]
    widest = max((r - len(t.replace("...", "")) for t, r in zip(given, ranks) if "..." in t), default=0)
    dots = "".join(free[:widest])

    def written(term: str, rank: int) -> str:
        own = rank - len(term.replace("...", ""))
        return term.replace("...", dots[len(dots) - own :] if own else "")

    terms = [written(t, r) for t, r in zip(given, ranks)]
    if arrow:
        return terms, right.replace("...", dots)
    once = sorted(c for c in set("".join(given)) - {"."} if "".join(given).count(c) == 1)
    return terms, dots + "".join(once)


def _operand(graph: Graph, y: str, name: str, term: str, order: list[str], shape: list[int], hint: str) -> str:
    if list(term) != order:
        name = graph.add("Transpose", [name], f"{y}_{hint}_turned", perm=[term.index(c) for c in order])
    return graph.add("Reshape", [name, graph.constant(f"{y}_{hint}_shape", np.array(shape, np.int64))], f"{y}_{hint}")


def _permuted(graph: Graph, node: NodeProto, name: str, term: str, order: str) -> None:
    if term == order:
        graph.replace(node, "Identity", [name])
    else:
        graph.replace(node, "Transpose", [name], perm=[term.index(c) for c in order])
