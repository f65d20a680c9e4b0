"""A name of a kernel stands for one spec and one function."""

import numpy as np
import pytest
from guarded import run_guarded
from programs import LIMITS
from qcompile.codegen.kernel_table import CHECK, KernelTable
from qcompile.kernels.cpu.builder import T
from qcompile.kernels.cpu.kernel import kernel, pointers
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Kernel
from qcompile.kernels.program import Node, Program
from qcompile.targets import CompileError, get_target
from test_generate import built

HOST = get_target("host")


def store(value, *spec):
    """A kernel that stores a number, which its spec may name or leave out."""
    return kernel("store", spec, pointers(y="int32"), lambda y: y.store(0, T.int32(value)))


def test_equal_specs_share_a_kernel_and_unequal_ones_do_not():
    table = KernelTable(HOST, check=True)
    assert [table.add(store(v, v)) for v in (1, 2, 1)] == [True, True, False]
    assert len(table.names()) == 2


def test_a_spec_that_leaves_something_out_is_found(monkeypatch):
    table = KernelTable(HOST, check=True)
    table.add(store(3, "of a test"))
    with pytest.raises(CompileError, match="two functions share the name store_"):
        table.add(store(4, "of a test"))
    monkeypatch.setenv(CHECK, "1")
    with pytest.raises(CompileError, match="two functions share the name store_"):
        KernelTable(HOST).add(store(4, "of a test"))


def test_unequal_specs_under_one_name_are_an_error(monkeypatch):
    monkeypatch.setattr(Kernel, "name", "same")
    table = KernelTable(HOST)
    table.add(store(1, 1))
    with pytest.raises(CompileError, match="two kernels share the name same"):
        table.add(store(2, 2))


def test_chains_of_several_widths_in_one_program(tmp_path):
    """Of a chain over 70 bytes and one over 35 the wide kernel ran for both, from 29 bytes before the buffer."""
    rng = np.random.default_rng(0)
    nodes, inputs, constants = [], {}, {"m": np.array([2**30], np.int32)}
    for size in (35, 70, 5):
        constants[f"t{size}"] = rng.integers(-128, 128, 256).astype(np.int8)
        inputs[f"x{size}"] = Type((size,), "int32")
        limits = {"x_zero_point": 0, "shift": 9, "pre": 0, **LIMITS}
        nodes += [
            Node(f"r{size}", "requantize", (f"x{size}", "m"), limits),
            Node(f"y{size}", "lut", (f"r{size}", f"t{size}"), {"first": -128}),
        ]
    program = Program(inputs, [f"y{size}" for size in (35, 70, 5)], constants, nodes)
    _, model = built(program, tmp_path)
    x = {n: rng.integers(-(2**31), 2**31, t.shape).astype(np.int32) for n, t in inputs.items()}
    want = program.run(x)
    for got, name in zip(run_guarded(model.manifest, list(x.values())), program.outputs):
        np.testing.assert_array_equal(got, want[name], err_msg=name)
