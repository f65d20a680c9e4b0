"""fuse: steps join the op that feeds them; the numbers stay."""

import numpy as np
import pytest
from programs import NETS, conv_chain, feeds, from_float
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program
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


def test_a_residual_is_added_to_the_sums_rather_than_to_codes_of_8_bits():
    """Both branches could take the sum of two: the one that would be stored in 32 bits has to."""
    rng = np.random.default_rng(8)
    conv = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "groups": 1, "x_zero_point": 0}
    scale = {"shift": 2, "fraction": 5, "zero_point": 0, "qmin": -128, "qmax": 127, "dtype": "int8"}
    nodes = [
        Node("short", "conv2d", ("x", "w", "b"), conv),
        Node("codes", "requantize_word", ("short", "m"), scale),
        Node("long", "conv2d", ("x", "w", "b"), conv),
        Node("y", "add_residual_word", ("long", "codes", "m"), {**scale, "r_zero_point": 0, "r_multiplier": 999}),
    ]
    constants = {
        "w": rng.integers(-127, 128, (16, 1, 1, 16)).astype(np.int8),
        "b": rng.integers(-999, 999, 16).astype(np.int32),
        "m": rng.integers(2**13, 2**15, 16).astype(np.int32),
    }
    fused = check_same(Program({"x": Type((1, 5, 5, 16), "int8")}, ["y"], constants, nodes), fusable)
    assert [[s.op for s in n.body] for n in fused.nodes] == [
        ["conv2d", "requantize_word"],
        ["conv2d", "add_residual_word"],
    ]


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
