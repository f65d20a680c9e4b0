"""Messages about integer nodes speak of the model's nodes."""

import numpy as np
import pytest
import qcompile
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.bounds import prove_bounds
from qcompile.passes.origins import naming, with_origins
from qcompile.targets import CompileError, Defect
from small_models import model

ORIGINS = {"lut_9": "node Sigmoid 'a_9'", "bias_add_4": "node Sub 'the_y'"}


@pytest.mark.parametrize(
    "message, told",
    [
        ("lut_9: codes leave the table", "node Sigmoid 'a_9': codes leave the table"),
        ("lut_9_flat: codes", "node Sigmoid 'a_9': codes"),
        ("bias_add_4_u8_s8 reads lut_9", "node Sub 'the_y' reads node Sigmoid 'a_9'"),
        ("lut_10: no such node; output 'lut_9' and x/lut_9 are the model's", None),
    ],
)
def test_names(message, told):
    assert with_origins(message, ORIGINS) == (told or message)


def test_sums_that_overflow():
    x = {"x": Type((4,), "int32"), "b": Type((4,), "int32")}
    program = Program(x, ["bias_add_4"], {}, [Node("bias_add_4", "bias_add", ("x", "b"), {})])
    told = r"^node Sub 'the_y': the sum .* may reach .*; split it, or bound"
    with pytest.raises(CompileError, match=told), naming(ORIGINS):
        prove_bounds(program)
    with pytest.raises(Defect, match="lut_9"), naming(ORIGINS):
        raise Defect("lut_9 fails")


def test_programs_are_the_same(tmp_path):
    """Where nodes come from is no part of a program."""
    net = model(("Relu", ["x"], ["y"], {}))
    made = qcompile.compile(net, calibration=[{"x": np.ones((1, 8), np.float32)}], output=tmp_path)
    assert b"origins" not in (made.path / "program.npz").read_bytes()
