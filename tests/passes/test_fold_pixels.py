"""fold_pixels: neighbouring pixels as channels, the same numbers."""

import numpy as np
import pytest
from qcompile.kernels.cpu.linear.folds import fold_weights
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.fold_pixels import fold_pixels
from qcompile.statistics import macs
from qcompile.targets import get_target

ROUND = {"x_zero_point": 0, "shift": 8, "pre": 0, "zero_point": 4, "qmin": -128, "qmax": 127, "dtype": "int8"}
ADD = {"x_zero_point": 0, "x_multiplier": 3, "r_zero_point": 0, "r_multiplier": 5, "shift": 3, "zero_point": 0}
ADD |= {"qmin": -128, "qmax": 127, "dtype": "int8"}


def net(outputs, kernel=(3, 3), stride=1, width=24, channels=16, dilation=1, codes=127):
    rng = np.random.default_rng(outputs + width)
    attrs = {"strides": [1, stride], "dilations": [1, dilation], "pads": [1, 1, 1, 1], "groups": 1, "x_zero_point": 3}
    constants = {
        "w": rng.integers(-codes, codes + 1, (outputs, *kernel, channels)).astype(np.int8),
        "b": rng.integers(-999, 999, outputs).astype(np.int32),
        "m": rng.integers(1 << 28, 1 << 29, outputs).astype(np.int32),
        "t": rng.integers(-128, 128, 256).astype(np.int8),
    }
    nodes = [
        Node("sums", "conv2d", ("x", "w", "b"), attrs),
        Node("q", "requantize", ("sums", "m"), ROUND),
        Node("y", "lut", ("q", "t"), {"first": -128}),
    ]
    return Program({"x": Type((2, 9, width, channels), "int8")}, ["y"], constants, nodes)


def folded(program, target="x86-avx512vnni"):
    """The pass's result, which computes the same."""
    made, rng = fold_pixels(program, get_target(target)), np.random.default_rng(0)
    x = {n: rng.integers(-128, 128, t.shape).astype(np.int8) for n, t in program.inputs.items()}
    for name, value in program.run(x).items():
        np.testing.assert_array_equal(made.run(x)[name], value, err_msg=name)
    return made


@pytest.mark.parametrize("target", ["x86-avx512vbmi", "x86-avx2", "arm-a76", "arm-a72"])
@pytest.mark.parametrize(
    "shape",
    [
        {"outputs": 3},
        {"outputs": 1, "kernel": (7, 7), "width": 28},
        {"outputs": 4, "kernel": (5, 5), "stride": 2, "width": 41},
        {"outputs": 2, "kernel": (1, 9), "channels": 3},
    ],
    ids=str,
)
def test_numbers_stay(shape, target):
    folded(net(**shape), target)


def test_steps_move_before_the_reshape():
    made = folded(net(3))
    assert [n.op for n in made.nodes] == ["conv2d", "requantize", "lut", "reshape"]
    assert made.types()[made.nodes[0].name].shape[-1] > 3


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(net(64), id="many channels"),
        pytest.param(net(3, kernel=(3, 1)), id="columns of one tap"),
        pytest.param(net(3, width=19 + 4, kernel=(3, 3)), id="a prime width"),
        pytest.param(net(3, dilation=2, width=26), id="dilated"),
        pytest.param(net(3, codes=1), id="ternary weights, stored as such"),
    ],
)
def test_others_stay(program):
    assert folded(program).nodes == program.nodes


def test_sums_that_are_not_rounded_in_the_kernel_stay():
    program = net(3)
    nodes = [program.nodes[0], Node("y", "transpose", ("sums",), {"axes": [0, 3, 1, 2]})]
    program = Program(program.inputs, ["y"], program.constants, nodes)
    assert folded(program).nodes == nodes


def test_folded_weights_begin_a_stride_apart():
    wide = fold_weights(np.array([1, 2, 3], np.int8).reshape(1, 1, 3, 1), 2, 2)[:, 0, :, 0]
    np.testing.assert_array_equal(wide, [[1, 2, 3, 0, 0], [0, 0, 1, 2, 3]])


def test_products_with_zeros_do_not_count():
    assert macs(folded(net(3))) == macs(net(3)) > 0
