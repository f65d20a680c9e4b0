"""Which operators can be imported, and our converters of them."""

from __future__ import annotations

from qcompile.importer import converters, recurrent, resize, selection, windows
from tvm.relax.frontend.onnx import onnx_frontend

FAMILIES = (converters, windows, resize, selection, recurrent)
CONVERTERS = {c.__name__: c for family in FAMILIES for c in family.OPERATORS}


def is_importable(op_type: str) -> bool:
    """Whether some converter reads this operator."""
    return op_type in CONVERTERS or op_type in onnx_frontend._get_convert_map()
