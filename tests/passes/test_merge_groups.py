"""merge_groups: fewer, wider groups, the same numbers."""

import numpy as np
import pytest
from qcompile.kernels.cpu.linear.groups import merge_weights
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.merge_groups import merge_groups
from qcompile.statistics import macs
from qcompile.targets import get_target


def grouped(channels, outputs, groups, kernel=3, codes=127, dilations=(1, 1)):
    rng = np.random.default_rng(channels + outputs + groups)
    attrs = {"strides": [1, 1], "dilations": list(dilations), "pads": [1, 1, 1, 1], "groups": groups}
    constants = {
        "w": rng.integers(-codes, codes + 1, (outputs, kernel, kernel, channels // groups)).astype(np.int8),
        "b": rng.integers(-999, 999, outputs).astype(np.int32),
    }
    node = Node("y", "conv2d", ("x", "w", "b"), {**attrs, "x_zero_point": 3})
    return Program({"x": Type((2, 13, 14, channels), "int8")}, ["y"], constants, [node])


def run(program):
    x = np.random.default_rng(0).integers(-128, 128, program.inputs["x"].shape).astype(np.int8)
    return program.run({"x": x})["y"]


@pytest.mark.parametrize("target", ["x86-avx512vbmi", "x86-avx2", "arm-a76", "arm-a72"])
@pytest.mark.parametrize("shape", [(64, 64, 16), (48, 48, 6), (32, 64, 32), (128, 128, 32), (36, 12, 3)], ids=str)
def test_sums_stay(shape, target):
    program = grouped(*shape)
    merged = merge_groups(program, get_target(target))
    assert shape[2] % merged.nodes[0].attrs["groups"] == 0
    np.testing.assert_array_equal(run(merged), run(program))


def test_narrow_groups_fill_the_lanes_of_an_accumulator():
    merged = merge_groups(grouped(128, 128, 32), get_target("x86-avx512vnni"))
    assert merged.nodes[0].attrs["groups"] <= 8


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(grouped(32, 32, 32), id="depthwise"),
        pytest.param(grouped(256, 256, 2), id="wide groups"),
        pytest.param(grouped(64, 64, 1), id="one group"),
        pytest.param(grouped(64, 64, 16, codes=1), id="ternary weights, stored as such"),
    ],
)
def test_others_stay(program):
    assert merge_groups(program, get_target("x86-avx512vnni")).nodes == program.nodes


def test_merged_weights_are_zero_between_groups():
    weight = np.arange(1, 9, dtype=np.int8).reshape(4, 1, 1, 2)  # 4 outputs, 4 groups of 2 channels
    wide = merge_weights(weight, 4, 2)[:, 0, 0]
    np.testing.assert_array_equal(wide, [[1, 2, 0, 0], [0, 0, 3, 4], [5, 6, 0, 0], [0, 0, 7, 8]])


def test_products_with_zeros_do_not_count():
    program = grouped(128, 128, 32)
    assert macs(merge_groups(program, get_target("x86-avx512vnni"))) == macs(program) > 0
