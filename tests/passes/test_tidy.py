"""tidy: dead nodes go, reshapes step aside, numbers stay."""

import numpy as np
import pytest
from programs import NETS, conv_chain, feeds, from_float
from qcompile.kernels.program import Node
from qcompile.passes.tidy import merge_reshapes, remove_dead, tidy


def same_numbers(before, after, seeds=3, high=None):
    assert before.outputs == after.outputs
    assert [before.types()[o] for o in before.outputs] == [after.types()[o] for o in after.outputs]
    for seed in range(seeds):
        x = feeds(before, seed, high)
        want, got = before.run(x), after.run(x)
        for name in before.outputs:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def reshape(name, source, *shape):
    return Node(name, "reshape", (source,), {"shape": list(shape)})


def test_dead_nodes_and_constants_go():
    program = conv_chain()
    program.constants["unread"] = np.zeros(3, np.int8)
    lean = remove_dead(program)
    assert [n.name for n in lean.nodes] == ["c", "r", "flat", "t", "xflat", "y"]
    assert set(lean.constants) == {"w", "b", "m", "table"}
    same_numbers(program, lean)


def test_reshapes_merge_and_vanish():
    program = conv_chain(outputs=("back",))
    program.nodes += [reshape("mid", "y", 9, 16), reshape("same", "mid", 9, 16), reshape("back", "same", 1, 6, 6, 4)]
    merged = merge_reshapes(program)
    left = [(n.name, n.inputs[0]) for n in merged.nodes if n.op == "reshape"]
    assert left == [("flat", "r"), ("xflat", "x"), ("back", "y")]
    same_numbers(program, merged)


def test_a_reshape_that_is_an_output_stays():
    program = conv_chain(outputs=("y", "twin"))
    program.nodes.append(reshape("twin", "y", 36, 4))
    same_numbers(program, tidy(program))


def test_reshape_leaves_the_way_of_elementwise_steps():
    program = conv_chain()
    lean = tidy(program)
    same_numbers(program, lean)
    by_name = {n.name: n for n in lean.nodes}
    chain, name = [], "y"
    while name in by_name:
        chain.append(by_name[name].op)
        name = by_name[name].inputs[0]
    assert chain == ["reshape", "add", "lut", "requantize", "conv2d"]


@pytest.mark.parametrize("outputs", [("y", "flat"), ("flat", "t"), ("y", "r")], ids=lambda o: "+".join(o))
def test_tensors_that_are_outputs_keep_their_names(outputs):
    same_numbers(conv_chain(outputs), tidy(conv_chain(outputs)))


@pytest.mark.parametrize("net", NETS)
def test_networks_keep_their_numbers(net):
    program = from_float(NETS[net]())
    lean = tidy(program)
    same_numbers(program, lean, high=2 if net == "attention" else None)
    assert len(lean.nodes) <= len(program.nodes)
    assert [n.name for n in tidy(lean).nodes] == [n.name for n in lean.nodes], "a second time changes nothing"
