"""Relax operators that TVM lacks, of the float graph: what the importer writes and `integerize` reads.

Each has its arguments as Relax expressions, and its result's shape and dtype among its attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Op, register_op_attr

PREFIX = "source."


def source_op(name: str, args: Sequence[Any], shape: Sequence[int], dtype: str, **attrs: Any) -> Any:
    """A call of `source.<name>`; attributes are integers, strings, floats and lists of them."""
    given = tvm.ir.make_node("ir.DictAttrs", shape=[int(n) for n in shape], dtype=dtype, **attrs)
    return relax.Call(_register(PREFIX + name), list(args), given)


@cache
def _register(name: str) -> Any:
    def infer(call: Any, _builder: Any) -> Any:
        return relax.TensorType([int(n) for n in call.attrs["shape"]], str(call.attrs["dtype"]))

    register_op_attr(name, "FInferType", infer)
    register_op_attr(name, "FPurity", True)
    return Op.get(name)
