"""The call list: shared weights, direct outputs, aliases; run as code, the numbers are the program's."""

import numpy as np
import pytest
from programs import LIMITS, conv_chain, feeds
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.backends import backend_for, generate
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes import tidy
from qcompile.runtime import load
from qcompile.targets import get_target


def built(program, folder, target="host"):
    """(what was generated, the loaded artifact) of a program as the integer passes leave it."""
    cpu = get_target(target)
    lowered = tidy(program)
    for _, run in backend_for(cpu).passes:
        lowered = run(lowered)
    code, types = generate(lowered, cpu), program.types()
    inputs = [TensorInfo(n, t.dtype, t.shape) for n, t in program.inputs.items()]
    outputs = [TensorInfo(f"{i}", types[n].dtype, types[n].shape) for i, n in enumerate(program.outputs)]
    spec = ArtifactSpec("p", cpu, code.objects, code.weights, code.arena_bytes, inputs, outputs, macs=0)
    return code, load(build_artifact(spec, folder).path)


def check(program, folder, target="host"):
    code, model = built(program, folder, target)
    for seed in range(3):
        x = feeds(program, seed)
        want = program.run(x)
        for got, name in zip(model.run_integer(x).values(), program.outputs):
            np.testing.assert_array_equal(got, want[name], err_msg=name)
    return code


@pytest.mark.parametrize("target", ["host", "arm-a76"])
@pytest.mark.parametrize("outputs", [("y",), ("y", "r"), ("flat", "t", "r"), ("c", "y")], ids=lambda o: "+".join(o))
def test_outputs_of_all_kinds(outputs, target, tmp_path):
    """Made by the last op, read inside as well, two views of one tensor, an int32 accumulator."""
    check(conv_chain(outputs), tmp_path, target)


def add(name, a, b):
    return Node(
        name,
        "add",
        (a, b),
        {"x_zero_point": 0, "x_multiplier": 512, "r_zero_point": 0, "r_multiplier": 512, "shift": 10, **LIMITS},
    )


def test_equal_weights_are_stored_once_and_memory_is_shared(tmp_path):
    table = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
    names = [f"t{i}" for i in range(12)]
    nodes = [Node(n, "transpose", (p,), {"axes": [1, 0]}) for n, p in zip(names, ["x", *names])]
    luts = [Node(f"l{i}", "lut", (n, f"table{i}"), {"first": -128}) for i, n in enumerate(names[:2])]
    program = Program(
        {"x": Type((64, 64), "int8")},
        [names[-1], "l0", "l1"],
        {"table0": table, "table1": table.copy()},
        [*nodes, *luts],
    )
    code = check(program, tmp_path)
    assert len(code.weights) <= 256 + 128, "the table occurs twice, and is stored once"
    assert code.arena_bytes < 6 * 64 * 64, "twelve tensors of 4096 bytes in turn"


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_names_that_look_like_the_callers_buffers(target, tmp_path):
    program = Program(
        {"in:0": Type((4, 8), "int8"), "0": Type((4, 8), "int8")},
        ["out:1", "out:0"],
        {},
        [
            add("in:1", "in:0", "0"),
            Node("*/ out:7 /*", "transpose", ("in:1",), {"axes": [1, 0]}),
            Node("out:0", "transpose", ("*/ out:7 /*",), {"axes": [1, 0]}),
            add("out:1", "out:0", "in:0"),
        ],
    )
    check(program, tmp_path, target)


def test_an_input_an_alias_and_a_constant_as_outputs(tmp_path):
    program = Program(
        {"x": Type((4, 8), "int8")},
        ["x", "view", "k"],
        {"k": np.arange(6, dtype=np.int8).reshape(2, 3)},
        [Node("view", "reshape", ("x",), {"shape": [32]})],
    )
    cpu = get_target("host")
    code = generate(program, cpu)
    types = program.types()
    spec = ArtifactSpec(
        "p",
        cpu,
        code.objects,
        code.weights,
        code.arena_bytes,
        [TensorInfo("x", "int8", (4, 8))],
        [TensorInfo(n, types[n].dtype, types[n].shape) for n in program.outputs],
        macs=0,
    )
    x = feeds(program)
    for name, values in load(build_artifact(spec, tmp_path).path).run_integer(x).items():
        np.testing.assert_array_equal(values, program.run(x)[name])


def test_generate_leaves_its_program_alone():
    program = Program(
        {"x": Type((4, 8), "int8")},
        ["y"],
        {"k": np.arange(32, dtype=np.int8)},
        [Node("kk", "reshape", ("k",), {"shape": [4, 8]}), add("y", "x", "kk")],
    )
    before = program.to_bytes()
    generate(program, get_target("host"))
    assert program.to_bytes() == before
