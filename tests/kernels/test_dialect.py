"""The registry of ops: one declaration gives all that is true of an op, and what it lacks is an error."""

import numpy as np
import pytest
from qcompile.kernels import dialect
from qcompile.kernels.cpu import lowerings
from qcompile.kernels.dialect import KINDS, MULTIPLYING, OPS, Type, integer_op

HANDLED_BY_THE_PLANNER = {"reshape"}


@pytest.fixture
def scratch(monkeypatch):
    """Declarations of the test end with it."""
    monkeypatch.setattr(dialect, "OPS", {})
    return dialect.OPS


class ScaleBy:
    """y = x * weight + offset."""

    @staticmethod
    def infer(x, weight, *, offset):
        return Type(x.shape, "int32")

    @staticmethod
    def evaluate(x, weight, *, offset):
        return (x.astype(np.int32) * weight + offset).astype(np.int32)

    @staticmethod
    def bound(c):
        return c.intervals[0]


def declared(base=ScaleBy, **facts):
    """ScaleBy as an op, with its functions in a class of its own; facts replace those of the declaration."""
    facts = {"kind": "elementwise", "parameters": ("weight",), "elementwise": True} | facts
    return integer_op("scale_by", **facts)(type("Op", (base,), {}))


def test_a_declaration_is_an_op(scratch):
    op = declared()
    assert dialect.OPS["scale_by"] is op
    assert (op.arguments, op.attributes, op.parameters) == (("x", "weight"), ("offset",), {"weight"})
    assert op.run([np.int8([1, -2]), np.int32([3, 3])], {"offset": 1}).tolist() == [4, -5]
    assert (op.kind([], {}), op.macs([], Type((2,), "int32")), op.plain({})) == ("elementwise", 0, ())


class Unbounded:
    """Lacks its bound."""

    infer, evaluate = staticmethod(ScaleBy.infer), staticmethod(ScaleBy.evaluate)


class Shifted(ScaleBy):
    """Has a shift."""

    @staticmethod
    def evaluate(x, weight, *, out_shift):
        return x >> out_shift


class Counted(ScaleBy):
    """Says how often it multiplies."""

    @staticmethod
    def macs(types, out):
        return out.size


@pytest.mark.parametrize(
    ("base", "facts", "message"),
    [
        (Unbounded, {}, "lacks bound"),
        (ScaleBy, {"kind": "conv"}, "lacks macs"),
        (Unbounded, {"kind": lambda types, attrs: "conv"}, "lacks bound, macs"),
        (ScaleBy, {"kind": "sum"}, "kind sum is none of conv, "),
        (Counted, {}, "has macs, which kind elementwise has not"),
        (Shifted, {}, "out_shift has no range"),
        (ScaleBy, {"ranges": {"shift": (1, 31)}}, "shift is neither argument nor attribute"),
        (ScaleBy, {"parameters": ("table",)}, "table is neither argument nor attribute"),
        (ScaleBy, {"plain": ("mask",)}, "mask is no argument"),
    ],
)
def test_what_a_declaration_lacks_is_named(scratch, base, facts, message):
    with pytest.raises(TypeError, match=f"qc.scale_by.*{message}"):
        declared(base, **facts)
    assert dialect.OPS == {}


def test_every_op_runs_on_every_cpu():
    assert set(OPS) - set(lowerings()) == HANDLED_BY_THE_PLANNER


def test_elementwise_ops_keep_the_shape_of_their_first_argument():
    for op in OPS.values():
        if op.elementwise:
            assert op.arguments[0] == "x", op.name


def test_multiplying_kinds_come_first():
    assert KINDS[: len(MULTIPLYING)] == MULTIPLYING
