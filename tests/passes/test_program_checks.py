"""The proof of 32-bit intervals, the stage checker and the Relax form, on one small program."""

from dataclasses import replace

import numpy as np
import pytest
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.bounds import prove_bounds
from qcompile.passes.check import check
from qcompile.passes.fuse import fuse
from qcompile.passes.relax_form import from_relax, to_relax
from qcompile.targets import CompileError

REQUANTIZE = {"x_zero_point": 0, "shift": 4, "pre": 0, "zero_point": 3, "qmin": -128, "qmax": 127, "dtype": "int8"}


def small_program(k: int = 5, **changes: int) -> Program:
    """dense -> requantize -> lut on [2, k]."""
    random = np.random.default_rng(0)
    constants = {
        "w": random.integers(-127, 128, (3, k), dtype=np.int8),
        "b": np.array([7, -9, 100], np.int32),
        "m": np.array([1 << 30, 1 << 29, 1 << 28], np.int32),
        "t": np.arange(-128, 128).astype(np.int8)[::-1].copy(),
    }
    nodes = [
        Node("acc", "dense", ("x", "w", "b"), {"x_zero_point": 4}),
        Node("q", "requantize", ("acc", "m"), REQUANTIZE | changes),
        Node("y", "lut", ("q", "t"), {"first": -128}),
    ]
    return Program({"x": Type((2, k), "int8")}, ["y"], constants, nodes, {"note": "kept"})


def inputs(program: Program) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {n: random.integers(-128, 128, t.shape).astype(t.dtype) for n, t in program.inputs.items()}


def test_dense_bounds_are_the_extremes_that_inputs_reach():
    program = small_program()
    low, high = prove_bounds(program)["acc"]
    w, b = program.constants["w"].astype(int), program.constants["b"].astype(int)
    extremes = [np.where(w > 0, e, f)[o] for o in range(3) for e, f in ((127, -128), (-128, 127))]
    reached = np.concatenate([((x - 4) * w).sum(1) + b for x in extremes])
    assert (low, high) == (reached.min(), reached.max())


def test_an_accumulator_that_may_overflow_is_refused_by_name():
    program = small_program()
    program.constants["b"] = np.array([2**31 - 5, 0, 0], np.int32)
    with pytest.raises(CompileError, match=r"acc: the accumulator of dense .* more than 32 bits"):
        prove_bounds(program)


def test_a_shift_that_may_overflow_is_refused():
    with pytest.raises(CompileError, match="q: the shifted input"):
        prove_bounds(small_program(pre=20))


@pytest.mark.parametrize("shift", [0, 32])
def test_a_shift_out_of_its_range_is_refused(shift):
    with pytest.raises(CompileError, match=f"q: shift of requantize is {shift}, not from 1 to 31"):
        prove_bounds(small_program(shift=shift))


def test_a_table_with_too_few_entries_is_refused():
    program = small_program()
    program.constants["t"] = program.constants["t"][:200]
    with pytest.raises(CompileError, match="leave the table of 200"):
        prove_bounds(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, nodes=p.nodes[::-1]), "not made before it"),
        (lambda p: replace(p, nodes=[*p.nodes, p.nodes[-1]]), "made twice"),
        (lambda p: replace(p, nodes=[replace(p.nodes[0], op="convolve"), *p.nodes[1:]]), "unknown op convolve"),
        (
            lambda p: replace(p, nodes=[p.nodes[0], replace(p.nodes[1], attrs=REQUANTIZE | {"qmax": 300}), p.nodes[2]]),
            "limits are in range",
        ),
        (lambda p: replace(p, outputs=["z"]), "output z is not made"),
    ],
)
def test_the_checker_names_stage_rule_and_node(change, message):
    check(small_program(), "start")
    with pytest.raises(TypeError, match=f"after test: .*{message}"):
        check(change(small_program()), "test")


@pytest.mark.parametrize("fused", [False, True])
def test_relax_form_round_trip(fused):
    program = small_program()
    if fused:
        program = fuse(program, fusable)
        assert [n.op for n in program.nodes] == ["fused"]
    module = to_relax(program)
    text = module.script(show_meta=False)
    assert ("qc.fused" if fused else "qc.requantize") in text
    back = from_relax(module, program.info)
    assert back.info == program.info and [n.op for n in back.nodes] == [n.op for n in program.nodes]
    x = inputs(program)
    assert np.array_equal(program.run(x)["y"], next(iter(back.run(x).values())))
