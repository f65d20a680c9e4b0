"""The operators that the compiler's tables accept, and those of them that are not drawn, each with its reason."""

from __future__ import annotations

from qcompile.frontend import expand_contrib, expand_functions, expand_operators, qoperators
from qcompile.importer.operators import CONVERTERS
from tvm.relax.frontend.onnx import onnx_frontend

SEQUENCES = "works on sequences or optionals, which the compiler refuses at once"
BORDER = "needs values that a random graph does not have: boxes, regions, indices of a pool"
RANDOM_SIZE = "the size of its result depends on values"
NEWER = "of an opset above those that are drawn; ONNX's own node tests cover it"
NO_YARDSTICK = "ONNX Runtime does not run it on this kind of machine"
DIFFERENT_NAME = "an older or inner name of an operator that is drawn"
UNDRAWN = {
    **dict.fromkeys(
        (
            "ConcatFromSequence",
            "Optional",
            "OptionalGetElement",
            "OptionalHasElement",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SplitToSequence",
        ),
        SEQUENCES,
    ),
    **dict.fromkeys(("AllClassNMS", "MaxRoiPool", "MaxUnpool", "RoiAlign"), BORDER),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique"), RANDOM_SIZE),
    "QLinearReduceMean": NO_YARDSTICK,
    "DeformConv": NO_YARDSTICK,
    **dict.fromkeys(("CausalConvWithState", "CumProd", "FlexAttention", "LinearAttention", "SwiGLU"), NEWER),
    **dict.fromkeys(("Constant", "MatMulInteger16", "QAttention", "Scatter", "Upsample"), DIFFERENT_NAME),
}


def accepted_operators() -> set[str]:
    """What some table of the frontend or the importer rewrites or converts."""
    tables = (
        onnx_frontend._get_convert_map(),
        CONVERTERS,
        expand_contrib.TABLE,
        expand_functions.EXPANDED,
        expand_operators.TABLE,
        qoperators.FORMS,
        qoperators.MOVES_CODES,
    )
    return {op for table in tables for op in table}
