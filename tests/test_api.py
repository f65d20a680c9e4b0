"""The Python interface: compile, load, run, and what it tells."""

import json

import numpy as np
import pytest
import qcompile
from onnx import TensorProto
from programs import attention_net, residual_net, weights
from qcompile.pipeline import STAGES
from small_models import dense, model, quantized_dense, save

X = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)


def test_from_file_to_numbers(tmp_path):
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 8)).astype(np.float32)} for i in range(8)]
    stages = []
    done = qcompile.compile(
        save(dense(), tmp_path / "net.onnx"), calibration=samples, output=tmp_path / "build", progress=stages.append
    )
    assert done.path == tmp_path / "build" / "net-host" and tuple(stages) == STAGES and set(done.seconds) == set(STAGES)
    assert json.loads((done.path / "manifest.json").read_text()) == done.manifest
    assert done.report["macs"] == 32 and done.report["proof"]["float_instructions"] == 0
    loaded = qcompile.load(done.path)
    (tensor,) = loaded.inputs
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", "int8", (1, 8))
    y = loaded.run({"x": X})["y"]
    np.testing.assert_array_equal(y, loaded.reference({"x": X})["y"])
    np.testing.assert_allclose(y, X @ np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4), atol=0.15)


def test_calibration_by_file_equals_calibration_by_samples(tmp_path):
    x = np.random.default_rng(3).standard_normal((6, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    by_file = qcompile.compile(dense(), calibration=tmp_path / "calib.npz", output=tmp_path / "a", name="net")
    by_samples = qcompile.compile(dense(), calibration=({"x": r[None]} for r in x), output=tmp_path / "b", name="net")
    assert (by_file.path / "libnet.so").read_bytes() == (by_samples.path / "libnet.so").read_bytes()


def test_no_calibration_is_said(tmp_path):
    assert any("synthetic" in note for note in qcompile.compile(dense(), output=tmp_path).notes)
    notes = qcompile.compile(quantized_dense(), bits=4, output=tmp_path).notes
    assert any("quantized already: the choice of --bits is not used" in note for note in notes)


def test_dynamic_axes_get_the_size_asked_for(tmp_path):
    net = model(("MatMul", ["x", "w"], ["y"], {}), inputs={"x": ["n", "length", 8]}, constants={"w": weights(8, 4)})
    path = qcompile.compile(net, shapes={"x": (2, 5, 8)}, output=tmp_path).path
    assert qcompile.load(path).outputs[0].shape == (2, 5, 4)


@pytest.mark.parametrize("keep", [False, True])
def test_keep_writes_the_program_of_every_stage(keep, tmp_path):
    path = qcompile.compile(residual_net(), output=tmp_path, keep=keep).path
    assert (path / "ir").is_dir() == keep
    assert {"manifest.json", "program.npz"} <= {f.name for f in path.iterdir()}


@pytest.mark.parametrize("target", ["host", "arm-a53", "arm-a76"])
def test_several_inputs_and_outputs_on_every_kind_of_cpu(target, tmp_path):
    net = attention_net()
    net.graph.output.append(type(net.graph.output[0])(name="n"))
    net.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    loaded = qcompile.load(qcompile.compile(net, target, output=tmp_path).path)
    assert [t.name for t in loaded.outputs] == ["y", "n"]
    for mask in ([1] * 6, [1, 1, 0, 0, 0, 0], [0] * 6):
        feeds = {"ids": np.array([[1, 9, 0, 3, 3, 7]]), "mask": np.array([[mask]])}
        got, want = loaded.run_integer(feeds), loaded.reference_integer(feeds)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values, err_msg=f"{name}, mask {mask}")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads, tmp_path):
    path = qcompile.compile(residual_net(), output=tmp_path).path
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    loaded = qcompile.load(path, threads=threads)
    np.testing.assert_array_equal(loaded.run(x)["y"], loaded.reference(x)["y"])


def test_an_artifact_is_replaced_whole(tmp_path):
    first = qcompile.compile(dense(), output=tmp_path, name="net", keep=True).path
    second = qcompile.compile(quantized_dense(), output=tmp_path, name="net").path
    assert first == second and not (second / "ir").exists() and [f.name for f in tmp_path.iterdir()] == ["net-host"]


def test_a_model_that_only_dequantizes(tmp_path):
    net = model(("DequantizeLinear", ["x", "s", "z"], ["y"], {}), inputs={"x": [4]}, dtypes={"x": TensorProto.UINT8},
                constants={"s": np.float32(2), "z": np.uint8(128)})  # fmt: skip
    loaded = qcompile.load(qcompile.compile(net, output=tmp_path).path)
    assert loaded.run({"x": np.arange(4, dtype=np.uint8)})["y"].tolist() == [-256, -254, -252, -250]
