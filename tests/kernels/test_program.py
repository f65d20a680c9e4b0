"""Programs as data: types, running, storing."""

import json

import numpy as np
import pytest
from programs import NETS, conv_chain, feeds, from_float
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.fuse import fuse
from qcompile.passes.tidy import tidy


@pytest.mark.parametrize(
    "make",
    [conv_chain, lambda: fuse(tidy(conv_chain()), fusable), lambda: from_float(NETS["residual"]())],
    ids=["chain", "fused", "network"],
)
def test_round_trip(make):
    program = make()
    data = program.to_bytes()
    again = Program.load(data)
    assert (again.inputs, again.outputs, again.nodes, again.info) == (
        program.inputs,
        program.outputs,
        [Node.from_json(json.loads(json.dumps(n.to_json()))) for n in program.nodes],
        json.loads(json.dumps(program.info)),
    )
    assert again.to_bytes() == data, "the same program gives the same bytes"
    x = feeds(program)
    for name, values in program.run(x).items():
        np.testing.assert_array_equal(again.run(x)[name], values)


@pytest.mark.parametrize(
    "spoil",
    [lambda d: d[:200], lambda d: b"", lambda d: b"PK" + d[4:], lambda d: d[: len(d) // 2] + d[len(d) // 2 + 9 :]],
    ids=["short", "empty", "no zip", "bytes lost"],
)
def test_damaged_bytes_are_refused(spoil):
    with pytest.raises(ValueError, match="not a stored program"):
        Program.load(spoil(conv_chain().to_bytes()))


def test_every_tensor_has_the_type_that_was_inferred():
    program = from_float(NETS["residual"]())
    types = program.types()
    for name, values in program.run(feeds(program), keep=True).items():
        assert (values.shape, str(values.dtype)) == (types[name].shape, types[name].dtype), name


def test_reading_before_writing_is_an_error():
    program = conv_chain()
    program.nodes.reverse()
    with pytest.raises(KeyError):
        program.types()


def test_an_op_that_breaks_its_type_rule_is_caught():
    x = np.zeros((2, 3), np.int8)
    with pytest.raises(TypeError, match="type rule"):
        OPS["lut"].run([x, np.zeros((256,), np.int8)[:, None]], {"first": -128})


def test_ops_document_themselves():
    for op in OPS.values():
        assert op.arguments and not set(op.arguments) & set(op.attributes), op.name


def test_input_outputs_and_sizes():
    program = Program({"x": Type((2, 3), "int16")}, ["x"], {}, [])
    x = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.testing.assert_array_equal(program.run({"x": x})["x"], x)
    assert Type((2, 3), "int16").nbytes == 12 and Type((), "int32").size == 1
