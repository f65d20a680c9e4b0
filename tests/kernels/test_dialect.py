"""The registry of ops: one declaration gives the type rule, the meaning and the names of its operands."""

import numpy as np
import pytest
from qcompile.kernels import dialect
from qcompile.kernels.cpu import lowerings
from qcompile.kernels.dialect import OPS, Type, integer_op

HANDLED_BY_THE_PLANNER = {"reshape"}


@pytest.fixture
def scratch(monkeypatch):
    """Declarations of the test end with it."""
    monkeypatch.setattr(dialect, "OPS", {})
    return dialect.OPS


def test_a_declaration_is_an_op(scratch):
    @integer_op("scale_by", parameters=("weight",), elementwise=True)
    class ScaleBy:
        """y = x * weight + offset."""

        def infer(x, weight, *, offset):
            return Type(x.shape, "int32")

        def evaluate(x, weight, *, offset):
            return (x.astype(np.int32) * weight + offset).astype(np.int32)

    assert dialect.OPS["scale_by"] is ScaleBy
    assert (ScaleBy.arguments, ScaleBy.attributes, ScaleBy.parameters) == (("x", "weight"), ("offset",), {"weight"})
    assert ScaleBy.run([np.int8([1, -2]), np.int32([3, 3])], {"offset": 1}).tolist() == [4, -5]


def test_every_op_runs_on_every_cpu():
    assert set(OPS) - set(lowerings()) == HANDLED_BY_THE_PLANNER


def test_elementwise_ops_keep_the_shape_of_their_first_argument():
    for op in OPS.values():
        if op.elementwise:
            assert op.arguments[0] == "x", op.name
