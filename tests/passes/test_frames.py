"""frames: padding moves from the readers of an image to what makes it; the numbers stay."""

import numpy as np
import pytest
from programs import LIMITS, NETS, feeds, from_float, rescaled
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.cpu.linear.conv import framable
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.frames import frames
from qcompile.passes.fuse import fuse
from qcompile.passes.storage import unsigned_activations
from qcompile.passes.tidy import tidy

ONE = [1, 1, 1, 1]


class Net:
    """Convolutions by name; each is conv2d and a requantize to int8."""

    def __init__(self, channels=8):
        self.rng, self.channels = np.random.default_rng(5), channels
        self.program = Program({"x": Type((2, 5, 6, channels), "int8")}, [], {}, [])

    def conv(self, name, source, kernel=3, pads=ONE, zero_point=-5, groups=1):
        c = self.channels
        self.program.constants |= {
            f"{name}_w": self.rng.integers(-127, 128, (c, kernel, kernel, c // groups)).astype(np.int8),
            f"{name}_b": self.rng.integers(-999, 999, c).astype(np.int32),
            f"{name}_m": self.rng.integers(2**28, 2**29, c).astype(np.int32),
        }
        attrs = {"strides": [1, 1], "dilations": [1, 1], "pads": list(pads), "groups": groups}
        inputs = (source, f"{name}_w", f"{name}_b")
        self.program.nodes += [
            Node(f"{name}_sum", "conv2d", inputs, {**attrs, "x_zero_point": zero_point}),
            Node(name, "requantize", (f"{name}_sum", f"{name}_m"), rescaled()),
        ]
        return name

    def point(self, name, source):
        return self.conv(name, source, 1, [0, 0, 0, 0])

    def lowered(self, *outputs):
        """(fused program, the same with frames): equal in all they return."""
        self.program.outputs = list(outputs)
        return both(self.program)


def both(program):
    program = fuse(tidy(program), fusable)
    framed = frames(program, framable)
    for seed in range(2):
        want, got = program.run(feeds(program, seed)), framed.run(feeds(program, seed))
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    return program, framed


def made_in_frames(program):
    return [n.name for n in program.nodes if n.body and n.body[-1].op == "pad"]


def pads(program, name):
    node = next(n for n in program.nodes if n.name == name)
    return (node.body or (node,))[0].attrs["pads"]


def test_what_makes_an_image_pads_it():
    net = Net()
    net.conv("y", net.conv("d", net.point("e", "x"), groups=net.channels))
    before, after = net.lowered("y")
    assert made_in_frames(after) == ["e"], "a depthwise kernel writes no frame"
    assert pads(after, "d") == [0, 0, 0, 0] and pads(after, "y") == ONE
    assert before.types()["e"].shape == (2, 5, 6, 8) and after.types()["e"].shape == (2, 7, 8, 8)
    assert after.types()["d"] == before.types()["d"]
    pad = next(n for n in after.nodes if n.name == "e").body[-1]
    assert pad.name == "e" and pad.attrs["value"] == -5 and pad.inputs == ("e_inner",)


def test_several_readers_that_agree():
    net = Net()
    e = net.point("e", "x")
    net.conv("y", e)
    net.conv("z", e, groups=2)
    assert made_in_frames(net.lowered("y", "z")[1]) == ["e"]


@pytest.mark.parametrize("difference", ["pads", "zero point", "no pads", "output", "residual"])
def test_readers_that_do_not_agree(difference):
    net = Net()
    e = net.point("e", "x")
    outputs = [net.conv("y", e)]
    if difference == "pads":
        outputs.append(net.conv("z", e, pads=[0, 1, 2, 1]))
    elif difference == "zero point":
        outputs.append(net.conv("z", e, zero_point=7))
    elif difference == "no pads":
        outputs.append(net.point("z", e))
    elif difference == "output":
        outputs.append("e")
    else:
        scales = {"x_multiplier": 900, "r_multiplier": -700, "x_zero_point": 1, "r_zero_point": 3, "shift": 10}
        net.program.nodes.append(Node("s", "add", ("y", "e"), {**scales, **LIMITS}))
        outputs = ["s"]
    assert not made_in_frames(net.lowered(*outputs)[1])


def test_images_that_no_convolution_makes():
    net = Net()
    net.program.nodes.append(Node("t", "lut", ("x", "table"), {"first": -128}))
    net.program.constants["table"] = net.rng.permutation(256).astype(np.uint8).view(np.int8)
    net.conv("y", "t")
    net.conv("z", "x")
    assert not made_in_frames(net.lowered("y", "z")[1])


def test_names_stay_distinct():
    net = Net()
    net.point("e_inner", net.point("e", "x"))
    net.program.nodes = [n for n in net.program.nodes if not n.name.startswith("e_inner")]
    net.conv("e_inner", "e")
    after = net.lowered("e_inner")[1]
    names = [s.name for n in after.nodes for s in (n.body or (n,))]
    assert made_in_frames(after) == ["e"] and len(set(names)) == len(names)


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
@pytest.mark.parametrize("net", [n for n in NETS if n != "attention"])
def test_networks(net, unsigned):
    program = tidy(from_float(NETS[net]()))
    both(unsigned_activations(program) if unsigned else program)
