"""Whether a node is one that ONNX allows: asked when something else went wrong with it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper
from qcompile.frontend.graph import Graph

# a code, and where in its source ONNX Runtime is
PLACE = re.compile(r"^[: \d]*(?:[A-Z_]+ : )?(?:/\S+ .*?\) (?:\[with .*?\] )?)?")
OURS = ("NOT_IMPLEMENTED", "No Op registered", "Could not find an implementation")  # no fault of the node


def node_fault(node: NodeProto, graph: Graph) -> str:
    """What ONNX's inference or ONNX Runtime has against a node of `graph`, run on zeros; "" where it has nothing, or
    the types of its inputs are not known."""
    names = [i for i in dict.fromkeys(node.input) if i]
    constants = {i: graph.constants[i] for i in names if i in graph.constants}
    feeds: dict[str, np.ndarray] = {}
    for name in (i for i in names if i not in constants):
        shape, dtype = graph.shapes.get(name), graph.dtypes.get(name)
        if shape is None or dtype is None:
            return ""
        feeds[name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype))
    model = helper.make_model(
        helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(i, graph.dtypes[i], v.shape) for i, v in feeds.items()],
            [helper.make_empty_tensor_value_info(o) for o in node.output if o],
            [numpy_helper.from_array(np.ascontiguousarray(v).reshape(v.shape), i) for i, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid(d, v) for d, v in graph.opsets.items()],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception as e:  # both raise types of their own
        said = " ".join(str(e).split())
        if any(word in said for word in OURS):
            return ""
        said = said.rpartition("Error] ")[2].rpartition("Status Message: ")[2]
        return PLACE.sub("", said) or type(e).__name__
    return ""
