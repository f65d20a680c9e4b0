"""Control flow: branches of equal shapes, loops of a constant number of steps, scans over the first axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from fuzz.build import BOOL, Build
from fuzz.operators import draws


def _info(b: Build, name: str, like: str, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(b.dtype(like))
    return helper.make_tensor_value_info(name, dtype, b.shape(like) if shape is None else shape)


def _body(name: str, nodes: list[onnx.NodeProto], inputs: list, outputs: list) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, outputs)


@draws("If", weight=0.5)
def branch(b: Build, op: str) -> str:
    """On a constant, an input, or something computed."""
    x = b.take()
    way = b.rng.random()
    if way < 0.4:
        condition = b.constant(b.chance(0.5), bool)
    elif way < 0.7:
        condition = b.input([], BOOL)
    else:
        mean = b.add("ReduceMean", [x], keepdims=0)
        condition = b.add("Greater", [mean, b.constant(0.0, np.float32)])
    bodies = {}
    for side, inner in (("then", "Relu"), ("else", b.one_of(("Neg", "Sigmoid")))):
        y = b.name(f"{side}_y")
        node = helper.make_node(inner, [x], [y], name=b.name(inner))
        bodies[f"{side}_branch"] = _body(side, [node], [], [_info(b, y, x)])
    return b.add(op, [condition], **bodies)


@draws("Loop", weight=0.3)
def loop(b: Build, op: str) -> str:
    """state = tanh(state + x), a few times."""
    x = b.take()
    step, going, state, total, after = (b.name(n) for n in ("step", "going", "state", "total", "after"))
    nodes = [
        helper.make_node("Add", [state, x], [total], name=b.name("Add")),
        helper.make_node("Tanh", [total], [after], name=b.name("Tanh")),
    ]
    inputs = [
        helper.make_tensor_value_info(step, TensorProto.INT64, []),
        helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        _info(b, state, x),
    ]
    same = b.name("same")
    nodes.append(helper.make_node("Identity", [going], [same], name=b.name("Identity")))
    outputs = [helper.make_tensor_value_info(same, TensorProto.BOOL, []), _info(b, after, x)]
    start = b.weight(b.shape(x))
    trips = b.constant(b.whole(1, 5), np.int64)
    return b.add(op, [trips, b.constant(True, bool), start], body=_body("body", nodes, inputs, outputs))


@draws("Scan", weight=0.3)
def scan(b: Build, op: str) -> list[str]:
    """A running sum through tanh over the first axis."""
    x = b.take(ranks=(2, 3))
    if b.shape(x)[0] > 20:
        x = b.add("Slice", [x, *(b.ints([v]) for v in (0, 5, 0, 1))])
    row = b.shape(x)[1:]
    state, part, after, seen, total = (b.name(n) for n in ("state", "part", "after", "seen", "total"))
    nodes = [
        helper.make_node("Add", [state, part], [total], name=b.name("Add")),
        helper.make_node("Tanh", [total], [after], name=b.name("Tanh")),
        helper.make_node("Identity", [after], [seen], name=b.name("Identity")),
    ]
    infos = [_info(b, n, x, row) for n in (state, part, after, seen)]
    body = _body("body", nodes, infos[:2], infos[2:])
    return b.add(op, [b.weight(row), x], outputs=2, body=body, num_scan_inputs=1)
