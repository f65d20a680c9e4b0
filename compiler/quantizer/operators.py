"""The operators as the quantizer sees them: classes of ONNX operators, and what data movement passes on."""

from __future__ import annotations

from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.recurrent import CELL, HIDDEN

LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
STREAM_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"}
NORMS = STREAM_NORMS | {"InstanceNormalization", "GroupNormalization", "LpNormalization"}
SOFTMAX = {"Softmax", "LogSoftmax"}
TAKES_HIGHEST = SOFTMAX | {"ReduceMax", "MaxPool", "GlobalMaxPool", "TopK", "ArgMax", "Max", "ReduceLogSumExp"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Min", "Max"}
REDUCING = {"ReduceMean", "ReduceSum", "AveragePool", "GlobalAveragePool"}
CLAMPS = {"Relu", "Clip"}
SUMS_OF_SQUARES = ("Add", "Sub", "Mul", "ReduceMean", "AveragePool")
SMOOTH = {"Gelu", "Mish", "Sigmoid", "Tanh", "Erf", "HardSwish"}
RECURRENT_KINDS = {0: "i8", HIDDEN: "i16", CELL: "i16"}  # of the inputs of LSTM, GRU and RNN
GATES = {"Sigmoid", "HardSigmoid", "Tanh", "Erf"}
STEEP = {"Reciprocal", "Exp", "Log", "Pow", "Tan", "Sinh", "Cosh", "Atanh", "Acosh"}  # 8 bits say little of an end
STEPS = {"Round", "Floor", "Ceil", "Sign"}  # functions that jump: noise before them is decided upon
COMPARING = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "Hardmax", "Cast"}
DECIDING = {"GridSample": (1,), "NonMaxSuppression": (0, 1)}  # inputs that say where to look, and what to keep
MOVERS = {  # op type: indices of the data inputs; None means all
    **dict.fromkeys(
        (
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Slice",
            "Split",
            "Gather",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "MaxPool",
            "GlobalMaxPool",
            "Identity",
            "Pad",
            "GatherND",
            "GatherElements",
            "ReduceMax",
            "ReduceMin",
            "Trilu",
            "ReverseSequence",
            "TopK",
        ),
        (0,),
    ),
    "Concat": None,
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
WIDE_TABLE_FLOOR = {"Gelu": -6.0, "Mul": -12.0, "Mish": -12.0}  # below, the activation is zero to 16 bits


def mover_inputs(node: NodeProto) -> list[int]:
    """Indices of the inputs a data movement op passes on; empty for other ops."""
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "nearest":
        return [0]
    if node.op_type not in MOVERS or attribute(node, "reduction", "none") != "none":
        return []
    return list(range(len(node.input)) if MOVERS[node.op_type] is None else MOVERS[node.op_type])


def is_bias_add(graph: Graph, node: NodeProto) -> bool:
    """Add of a constant vector to a MatMul by a constant that nothing else reads."""
    if node.op_type != "Add":
        return False
    for i in (0, 1):
        layer = graph.producer(node.input[i], "MatMul")
        vector = graph.constants.get(node.input[1 - i])
        if (
            layer is not None
            and vector is not None
            and layer.input[1] in graph.constants
            and graph.only_consumer(node.input[i]) is node
            and vector.shape[-1:] == (vector.size,) == graph.shape(node.output[0])[-1:]
        ):
            return True
    return False
