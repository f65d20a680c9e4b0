"""The grid of kernel shapes, and how a loss is seen."""

from __future__ import annotations

import pytest
from kernel_shapes import GRID, KernelCase, dense, softmax, values
from qcompile.statistics import macs
from qcompile.targets import get_target

import kernels

WITHOUT_MACS = {"softmax", "layer_norm", "elementwise", "pool"}


def test_every_program_of_the_grid_is_well_typed_and_named_once():
    names = [f"{c.family}: {c.name}" for c in GRID]
    assert len(set(names)) == len(names)
    for case in GRID:
        program = case.program()
        types = program.types()
        assert all(types[name].dtype == "int8" for name in program.outputs), case.name
        assert (macs(program) > 0) == (case.family not in WITHOUT_MACS), case.name
        assert [x.shape for x in values(program)] == [t.shape for t in program.inputs.values()]


def test_a_kernel_is_measured_against_its_ceiling():
    def measure(program, inputs, outputs):
        return 1024.0, 32.0, 16.0

    products = kernels.measure_case(KernelCase("m", "matmul", lambda: dense(8, 64, 32)), measure, "cycles")
    assert products["rate"] == 16 and products["fraction"] == 0.5
    moved = kernels.measure_case(KernelCase("s", "softmax", lambda: softmax(64, 64)), measure, "cycles")
    assert moved["macs"] == 0 and moved["rate"] == 8 and moved["fraction"] == 0.5
    text = kernels.markdown([products, moved], "cycles", "arm-a76")
    assert "estimated cycles" in text and "| matmul: m | 1,024 | 16.0 MAC | 50 % |" in text


def test_losses_of_more_than_a_twentieth_are_listed():
    now = [{"name": n, "fraction": f} for n, f in (("a", 0.9), ("b", 0.5), ("new", 0.1))]
    before = [{"name": n, "fraction": f} for n, f in (("a", 0.93), ("b", 0.6))]
    assert kernels.losses(now, before) == ["b: 60.0 % of the ceiling before, 50.0 % now"]


def test_a_kernel_is_timed_on_this_machine():
    target = get_target("host")
    measure = kernels.host_measure(target, 0.02)
    row = kernels.measure_case(KernelCase("64x64x64", "matmul", lambda: dense(64, 64, 64)), measure, "us")
    assert row["us"] > 0 and 0 < row["fraction"] < 1.5


def test_a_wrong_result_ends_the_program(monkeypatch):
    measure = kernels.host_measure(get_target("host"), 0.02)
    program = dense(4, 16, 8)
    with pytest.raises(SystemExit, match="numpy meaning"):
        measure(program, values(program), [values(program)[0]])
