"""The execution plan as data: what lies where, that nothing alive overlaps, and that it reads as a table."""

import re
from itertools import combinations

import numpy as np
import pytest
from programs import LIMITS, conv_chain
from qcompile.backends import backend_for
from qcompile.codegen import plan_execution
from qcompile.codegen.plan import Address
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES
from qcompile.kernels.program import Node, Program
from qcompile.targets import get_target


def planned(program, target="arm-a76"):
    backend = backend_for(get_target(target))
    for _, run in backend.passes:
        program = run(program)
    return plan_execution(program, backend)


def rescaled(name, source):
    return Node(name, "requantize", (source, "m"), {"x_zero_point": 0, "shift": 8, "pre": 0, **LIMITS})


@pytest.mark.parametrize("target", ["arm-a76", "x86-avx2"])
def test_no_two_buffers_that_are_alive_overlap(target):
    plan = planned(conv_chain(("y", "r", "c")), target)
    for a, b in combinations(plan.buffers, 2):
        apart = a.lifetime.last < b.lifetime.first or b.lifetime.last < a.lifetime.first
        ends = [x.offset + x.lifetime.nbytes for x in (a, b)]
        assert apart or ends[0] <= b.offset or ends[1] <= a.offset, (a, b)
    assert plan.arena_bytes >= max(x.offset + x.lifetime.nbytes for x in plan.buffers) + SLACK_BYTES
    assert plan.live_bytes <= plan.arena_bytes


def test_operands_lie_in_the_memory_that_the_plan_gives():
    plan = planned(conv_chain())
    limits = {"weights": len(plan.weights), "arena": plan.arena_bytes}
    addresses = [o for call in plan.calls for o in call.operands if isinstance(o, Address)]
    assert {a.space for a in addresses} == {"inputs", "arena", "weights", "outputs"}
    assert all(0 <= a.offset < limits.get(a.space, 1 << 30) for a in addresses)
    assert [c.node for c in plan.calls if c.node.startswith("input ")] == ["input x"]
    assert not [c for c in plan.calls if c.node.startswith("output ")], "the last op writes the caller's buffer"


def test_a_reshape_costs_nothing_and_an_output_that_is_read_is_copied():
    nodes = [rescaled("a", "x"), Node("flat", "reshape", ("a",), {"shape": [32]}), rescaled("y", "flat")]
    constants = {"m": np.array([1 << 29], np.int32)}
    plan = plan_execution(
        Program({"x": Type((4, 8), "int8")}, ["flat", "y"], constants, nodes), backend_for(get_target("arm-a53"))
    )
    assert [c.node for c in plan.calls] == ["input x", "a", "y", "output 0"]
    made, read = plan.calls[1].operands, plan.calls[2].operands
    assert made[1] == read[0] and made[1].space == "arena"
    assert Address("outputs", 0, 1) in read and Address("outputs", 0, 0) in plan.calls[3].operands


def test_the_table_names_every_call_buffer_and_kernel():
    plan = planned(conv_chain())
    text = plan.table()
    for call in plan.calls:
        assert re.search(rf"^\d+ +{re.escape(call.node)} +{call.kernel.name} ", text, re.M), call
    for buffer in plan.buffers:
        line = rf"^\+{buffer.offset} +{buffer.lifetime.nbytes} +\d+\.\.\d+ +{re.escape(buffer.lifetime.name)}$"
        assert re.search(line, text, re.M), buffer
    assert all(re.search(rf"^{name} +\(", text, re.M) for name in plan.kernels)
