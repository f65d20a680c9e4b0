"""Objects as TVM emits them: parallel loops through the slot, half-float helpers dropped by the linker."""

import numpy as np
import pytest
import tvm
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.runtime import load
from qcompile.targets import get_target
from sample_artifacts import c_object
from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx.build import codegen_build

MAIN = """
#include <stdint.h>
int32_t square(const void *x, void *y);
int32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, const uint8_t *weights) {
    (void)arena, (void)weights;
    return square(in[0], out[0]);
}
"""


def square_object(target, folder):
    """y[i] = x[i] squared over 4096 elements, in 64 parallel rows."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("square")
        T.func_attr({"global_symbol": "square", "tirx.noalias": True})
        x, y = T.arg("x", T.handle("uint8")), T.arg("y", T.handle("int32"))
        T.func_ret(tvm.ir.PrimType("int32"))
        source, result = T.decl_buffer((4096,), "uint8", data=x), T.decl_buffer((4096,), "int32", data=y)
        with T.parallel(64) as row, T.serial(64) as column:
            value = T.cast(source[row * 64 + column], "int32")
            T.buffer_store(result, value * value, [row * 64 + column])
        T.Return(T.int32(0))
    tvm_target = tvm.target.Target(target.llvm)
    lower = tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(tvm_target),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            tirx.transform.LowerIntrin(),
        ]
    )
    codegen_build(lower(tvm.IRModule({"square": builder.get()})), tvm_target).write_to_file(str(folder / "tvm.o"))
    return (folder / "tvm.o").read_bytes()


@pytest.mark.parametrize(("name", "threads"), [("host", 1), ("host", 3), ("arm-a76", 1), ("arm-a72", 1)])
def test_parallel_loop_runs_and_no_float_is_linked(tmp_path, name, threads):
    target = get_target(name)
    objects = [c_object(MAIN, tmp_path, name), square_object(target, tmp_path)]
    assert b"__truncsfhf2" in objects[1], "TVM's half-float helper is there, in floating point"
    artifact = build_artifact(
        ArtifactSpec(
            "squares", target, objects, b"", 0, [TensorInfo("x", "uint8", (4096,))], [TensorInfo("y", "int32", (4096,))]
        ),
        tmp_path / "build",
    )
    assert artifact.proof.float_instructions == 0
    x = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    model = load(artifact.path, threads=threads)
    for _ in range(20):
        np.testing.assert_array_equal(model.run_integer({"x": x})["y"], x.astype(np.int32) ** 2)
