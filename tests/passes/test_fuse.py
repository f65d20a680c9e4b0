"""fuse: steps join the op that feeds them; the numbers stay."""

import numpy as np
import pytest
from programs import NETS, conv_chain, feeds, from_float
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.dialect import OPS
from qcompile.passes.fuse import fuse
from qcompile.passes.storage import unsigned_activations
from qcompile.passes.tidy import tidy


def anything(step, value, types):
    return True


def nothing(step, value, types):
    return False


def check_same(program, rule, high=None):
    fused = fuse(program, rule)
    assert fused.outputs == program.outputs and fused.types()[fused.outputs[0]] == program.types()[program.outputs[0]]
    for seed in range(3):
        x = feeds(program, seed, high)
        want, got = program.run(x), fused.run(x)
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    inside = [s.name for n in fused.nodes for s in (n.body or (n,))]
    assert sorted(inside) == sorted(n.name for n in program.nodes), "every node is run once"
    return fused


def test_a_convolution_takes_the_steps_behind_it():
    group = next(n for n in check_same(tidy(conv_chain()), anything).nodes if n.op == "fused")
    assert [s.op for s in group.body] == ["conv2d", "requantize", "lut", "add"]
    assert group.name == group.body[-1].name and set(group.inputs) >= {"x", "w", "b", "m", "table"}


def test_nothing_joins_what_the_kernels_cannot_run():
    program = tidy(conv_chain())
    assert [n.name for n in check_same(program, nothing).nodes] == [n.name for n in program.nodes]


def test_a_tensor_with_other_readers_ends_the_group():
    fused = check_same(tidy(conv_chain(outputs=("y", "r"))), anything)
    group = next(n for n in fused.nodes if n.op == "fused" and n.body[0].op == "conv2d")
    assert group.name == "r", "r is an output, so it must exist"


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
@pytest.mark.parametrize("net", NETS)
def test_networks(net, unsigned):
    program = tidy(from_float(NETS[net]()))
    program = unsigned_activations(program) if unsigned else program
    fused = check_same(program, fusable, high=2 if net == "attention" else None)
    for node in fused.nodes:
        if node.op == "fused":
            assert all(OPS[s.op].elementwise for s in node.body[1:])
            assert all(a.name in b.inputs for a, b in zip(node.body, node.body[1:])), "a chain, in order"
