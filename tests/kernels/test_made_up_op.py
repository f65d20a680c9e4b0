"""An op that does not exist is added as a contributor would: one declaration and its kernel, and no table elsewhere.

It is bounded, checked, counted, stored unsigned, fused behind a product and run on each kind of CPU.
"""

from dataclasses import replace

import numpy as np
import pytest
from machines import need
from programs import LIMITS, feeds
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.backends import backend_for, generate
from qcompile.kernels import dialect
from qcompile.kernels.arithmetic import saturate
from qcompile.kernels.bounds import product
from qcompile.kernels.cpu import lowerings
from qcompile.kernels.cpu.builder import bind
from qcompile.kernels.cpu.general.elementwise import lower_elementwise
from qcompile.kernels.cpu.steps import BOUNDS, STEPS, Rule, widen
from qcompile.kernels.dialect import Type, integer_op
from qcompile.kernels.program import Node, Program
from qcompile.passes.bounds import prove_bounds
from qcompile.passes.check import check
from qcompile.runtime import load
from qcompile.statistics import macs
from qcompile.targets import CompileError, get_target


class Square:
    """y = clamp(zero_point + ((x - x_zero_point)^2 >> shift)), rounded down. x int8|uint8|int16 -> `dtype`."""

    @staticmethod
    def infer(x, *, x_zero_point, shift, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, *, x_zero_point, shift, zero_point, qmin, qmax, dtype):
        return saturate((x.astype(np.int64) - x_zero_point) ** 2 >> shift, zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c):
        c.fits("the square", *product(c.interval("x"), c.interval("x")))
        return c.clamped()


NUMBERS = ("x_zero_point", "shift", *BOUNDS)


def square_kernel(e, x):
    d = bind(widen(x) - e.vector("x_zero_point"))
    return e.isa.saturate_shifted(d * d, *(e.scalar(n) for n in ("shift", *BOUNDS)), e.dtype)


@pytest.fixture
def square(monkeypatch):
    monkeypatch.setitem(dialect.OPS, "square", None)  # ends with the test
    monkeypatch.setitem(STEPS, "square", Rule(lambda n, types: ({k: n.attrs[k] for k in NUMBERS}, ()), square_kernel))
    monkeypatch.setitem(lowerings(), "square", lower_elementwise)
    integer_op("square", kind="elementwise", elementwise=True, ranges={"shift": (0, 31)})(Square)


def net(**changes):
    """dense -> requantize -> square, and a square by itself."""
    rng = np.random.default_rng(5)
    attrs = {"x_zero_point": -3, "shift": 7, **LIMITS} | changes
    rescaled = {"x_zero_point": 0, "shift": 8, "pre": 0, **LIMITS}
    nodes = [
        Node("acc", "dense", ("x", "w", "b"), {"x_zero_point": 2}),
        Node("q", "requantize", ("acc", "m"), rescaled),
        Node("y", "square", ("q",), attrs),
        Node("z", "square", ("x",), attrs),
    ]
    constants = {
        "w": rng.integers(-127, 128, (20, 24)).astype(np.int8),
        "b": rng.integers(-999, 999, 20).astype(np.int32),
        "m": rng.integers(2**29, 2**30, 20).astype(np.int32),
    }
    return Program({"x": Type((3, 24), "int8")}, ["y", "z"], constants, nodes)


@pytest.mark.parametrize("target", ["host", "x86-avx2", "arm-a76", "arm-a53"])
def test_it_compiles_and_agrees(square, target, tmp_path):
    cpu, program = get_target(target), net()
    need(cpu)
    check(program, "start")
    assert prove_bounds(program)["y"] == (-128, 127)
    assert macs(program) == 3 * 20 * 24
    lowered = program
    for name, run in backend_for(cpu).passes:
        lowered = run(lowered)
        check(lowered, name)
    fused = [[step.op for step in node.body] for node in lowered.nodes]
    assert ["dense", "requantize", "square"] in [steps[:3] for steps in fused]
    code = generate(lowered, cpu)
    inputs = [TensorInfo(n, t.dtype, t.shape) for n, t in program.inputs.items()]
    outputs = [TensorInfo(n, "int8", program.types()[n].shape) for n in program.outputs]
    spec = ArtifactSpec("made_up", cpu, code.objects, code.weights, code.arena_bytes, inputs, outputs)
    model = load(build_artifact(spec, tmp_path).path)
    x = feeds(program)
    for name, got in model.run_integer(x).items():
        np.testing.assert_array_equal(got, program.run(x)[name], err_msg=name)


def test_what_it_says_of_its_numbers_is_checked(square):
    with pytest.raises(CompileError, match="z: shift of square is 32, not from 0 to 31"):
        prove_bounds(replace(net(shift=32), nodes=[net(shift=32).nodes[3]], outputs=["z"]))
    wide = replace(net(x_zero_point=-50000), nodes=[net(x_zero_point=-50000).nodes[3]], outputs=["z"])
    with pytest.raises(CompileError, match="z: the square of square may reach"):
        prove_bounds(wide)
