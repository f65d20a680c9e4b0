"""Kernels of long chains: small, compiled in moments, and right; what grows too large is refused by name."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Case, check_cases
from linear_cases import Cases
from qcompile.codegen.kernel_table import KernelTable
from qcompile.kernels.cpu import builder
from qcompile.kernels.cpu.compile import compile_module
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Kernel
from qcompile.kernels.program import Node, Program, infer_node
from qcompile.passes.fuse import LONGEST, fuse
from qcompile.targets import CompileError, Target, get_target

SHAPE = (6, 128)
SECONDS = 10
Step = tuple[Node, dict[str, np.ndarray], dict[str, np.ndarray]]  # with its operands and constants


def limits(dtype: str) -> dict:
    info = np.iinfo(dtype)
    return {"zero_point": 0, "qmin": int(info.min), "qmax": int(info.max), "dtype": dtype}


def add(name: str, value: str, dtype: str, rng: np.random.Generator) -> Step:
    attrs = {"x_multiplier": 90, "x_zero_point": 3, "r_multiplier": 40, "r_zero_point": -2, "shift": 7}
    operand = rng.integers(-100, 100, SHAPE).astype(dtype)
    return Node(name, "add", (value, name + "_r"), attrs | limits(dtype)), {name + "_r": operand}, {}


def rescale(op: str, name: str, value: str, dtype: str, rng: np.random.Generator) -> Step:
    """requantize, or prelu with two multipliers."""
    parameters = [f"{name}_m{k}" for k in range(2 if op == "prelu" else 1)]
    constants = {p: rng.integers(1 << 29, 1 << 30, SHAPE[-1]).astype(np.int32) for p in parameters}
    attrs = {"x_zero_point": 0, "pre": 1, "shift": 1} | limits(dtype)
    return Node(name, op, (value, *parameters), attrs), {}, constants


def lut(name: str, value: str, dtype: str, rng: np.random.Generator) -> Step:
    table = rng.permutation(256).astype(np.uint8).view(np.int8)
    return Node(name, "lut", (value, name + "_t"), {"first": -128}), {}, {name + "_t": table}


KINDS = {
    "add": add,
    "lut": lut,
    "requantize": lambda *a: rescale("requantize", *a),
    "prelu": lambda *a: rescale("prelu", *a),
}


def chain(kinds: list[str], dtype: str) -> Case:
    """One node of steps on x, each of which reads the step before it."""
    rng = np.random.default_rng(0)
    arrays, constants, body, value = {"x": rng.integers(-128, 128, SHAPE).astype(dtype)}, {}, [], "x"
    for k, kind in enumerate(kinds):
        step, operands, parameters = KINDS[kind](f"s{k}", value, dtype, rng)
        arrays, constants, value = arrays | operands, constants | parameters, step.name
        body.append(step)
    inner = {n.name for n in body}
    inputs = tuple(dict.fromkeys(i for n in body for i in n.inputs if i not in inner))
    return Case(Node(value, "fused", inputs, {}, tuple(body)), arrays, constants)


def test_chains_of_the_greatest_length(target: Target, tmp_path: Path) -> None:
    """Words that are added and rescaled by turns, and tables of tables: each step uses its value twice or more."""
    words = chain((["add", "prelu", "add", "requantize"] * LONGEST)[: LONGEST - 1], "int16")
    tables = chain(["lut"] * LONGEST, "int8")
    begin = time.process_time()
    check_cases([words, tables], target, tmp_path)
    assert time.process_time() - begin < SECONDS


def test_large_depthwise_windows_are_loops(target: Target, tmp_path: Path) -> None:
    """Written out, 31x31 taps would be 10^5 instructions."""
    c = Cases(target)
    windows = [(31, 31), (2, 300), (25, 25)]
    cases = [Case(*c.conv((1, kh + 2, kw + 3, 16), 16, (kh, kw), groups=16)) for kh, kw in windows]
    begin = time.process_time()
    check_cases(cases, target, tmp_path)
    assert time.process_time() - begin < 2 * SECONDS


def test_the_size_of_a_function_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "LARGEST_FUNCTION", 100)

    def body(x: builder.Pointer) -> None:
        for k in range(100):
            x.store(k, x.load(k + 1))

    kernels = KernelTable(get_target("x86-avx2"), check=False)
    kernels.add(Kernel("shift", (), lambda name: builder.function(name, [("x", "int8*")], body)), "the_node")
    with pytest.raises(CompileError, match=r"node 'the_node': kernel shift_.* 100 TIR nodes"):
        kernels.functions()


def test_terms_written_out_stay_small() -> None:
    """y = x doubled 60 times: with every name written out it would have 2^60 terms."""

    def body(x: builder.Pointer) -> None:
        value = x.load(0, 4)
        for _ in range(60):
            value = builder.bind(value + value)
        x.store(0, value)

    made = builder.function("double", [("x", "int32*")], body)
    assert builder.count_nodes(made, {}, 10**6) < 2000
    begin = time.process_time()
    compile_module({"double": made}, get_target("x86-avx2"))
    assert time.process_time() - begin < SECONDS


def test_groups_end() -> None:
    """A chain of 3 1/2 times the greatest length becomes four nodes, and means the same."""
    case = chain(["lut"] * (7 * LONGEST // 2), "int8")
    types = {n: Type(a.shape, str(a.dtype)) for n, a in case.arrays.items()}
    program = Program({"x": types["x"]}, [case.node.name], case.constants, list(case.node.body))
    fused = fuse(program, lambda *_: True)
    assert [len(n.body) for n in fused.nodes] == [LONGEST] * 3 + [LONGEST // 2]
    want, got = program.run(case.arrays), fused.run(case.arrays)
    np.testing.assert_array_equal(got[case.node.name], want[case.node.name])
    assert infer_node(case.node, types | {n: Type(a.shape, str(a.dtype)) for n, a in case.constants.items()})
