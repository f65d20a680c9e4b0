"""Operators of the domain `qcompile`: what ONNX writes with shapes that depend on data, in shapes that do not.

A model that holds one carries its body as a function, so that ONNX, ONNX Runtime and Netron understand it.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import AttributeProto, FunctionProto, NodeProto, helper

DOMAIN = "qcompile"


def _of_attribute(name: str, own: str, kind: int) -> AttributeProto:
    """An attribute `name` of a node in a function that is the function's attribute `own`."""
    return AttributeProto(name=name, ref_attr_name=own, type=kind)  # type: ignore[arg-type]


def _non_max_suppression(opset: int) -> FunctionProto:
    """ONNX's NonMaxSuppression, then rows of -1 up to `shape`."""
    inputs = ["boxes", "scores", "most", "overlap", "least"]
    select = helper.make_node("NonMaxSuppression", inputs, ["found"])
    select.attribute.append(_of_attribute("center_point_box", "center_point_box", AttributeProto.INT))
    shape = helper.make_node("Constant", [], ["size"])
    shape.attribute.append(_of_attribute("value_ints", "shape", AttributeProto.INTS))
    nodes = [
        select,
        shape,
        helper.make_node("Constant", [], ["none"], value_ints=[-1]),
        helper.make_node("Constant", [], ["start"], value_ints=[0]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Expand", ["none", "size"], ["rest"]),
        helper.make_node("Concat", ["found", "rest"], ["all"], axis=0),
        helper.make_node("Slice", ["size", "start", "one", "start"], ["count"]),
        helper.make_node("Slice", ["all", "start", "count", "start"], ["cut"]),
        helper.make_node("Reshape", ["cut", "size"], ["rows"]),
    ]
    return helper.make_function(
        DOMAIN,
        "NonMaxSuppression",
        inputs,
        ["rows"],
        nodes,
        [helper.make_opsetid("", opset)],
        ["center_point_box", "shape"],
    )


FUNCTIONS = {"NonMaxSuppression": _non_max_suppression}


def local_functions(nodes: Iterable[NodeProto], opset: int) -> list[FunctionProto]:
    """The bodies of the operators of our domain among `nodes`; opset: of the model."""
    return [FUNCTIONS[kind](opset) for kind in sorted({n.op_type for n in nodes if n.domain == DOMAIN})]
