"""Loading and running: the same integers on every backend, and clear refusals."""

import json
import shutil

import numpy as np
import onnxruntime as ort
import pytest
from machines import needs_qemu
from onnx import TensorProto, helper
from qcompile.runtime import ArtifactError, Tensor, load
from qcompile.runtime.borders import dequantize, quantize
from sample_artifacts import MULTIPLY, WEIGHTS, build_multiply, build_parallel

WEIGHT_VALUES = np.frombuffer(WEIGHTS, np.int8).astype(np.int32)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The sample artifact for this machine."""
    return build_multiply(tmp_path_factory.mktemp("host")).path


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """The sample artifact for a Cortex-A72."""
    return build_multiply(tmp_path_factory.mktemp("arm"), "arm-a72").path


@pytest.fixture
def copy(host, tmp_path):
    """A copy of the artifact for this machine, to be damaged."""
    return shutil.copytree(host, tmp_path / "copy")


def edit(folder, **changes):
    file = folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


@pytest.mark.parametrize(
    ("target", "backend"),
    [
        ("host", "native"),
        ("arm-a72", "unicorn"),
        ("arm-a53", "unicorn"),
        ("arm-a76", "unicorn"),
        ("apple-m1", "auto"),
        pytest.param("arm-a72", "qemu", marks=needs_qemu),
        pytest.param("arm-a710", "auto", marks=needs_qemu),
    ],
)
def test_every_backend_returns_the_same_integers(tmp_path, target, backend):
    model = load(build_multiply(tmp_path, target).path, backend=backend)
    random = np.random.default_rng(1)
    for x in random.integers(-128, 128, (20, 1, 24), np.int8):
        outputs = model.run_integer({"input/x": x})
        assert outputs["y"].dtype == np.int32
        np.testing.assert_array_equal(outputs["y"], x.astype(np.int32) * WEIGHT_VALUES)


def test_real_numbers_go_in_and_out(host):
    model = load(host)
    assert (model.arena_bytes, model.inputs[0].scale, model.outputs[0].name) == (96, 0.5, "y")
    x = np.linspace(-70, 70, 24, dtype=np.float64).reshape(1, 24)
    q = np.clip(np.rint(x.astype(np.float32) / np.float32(0.5)) + 3, -128, 127)
    y = model.run({"input/x": x})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.float32(0.25) * (q * WEIGHT_VALUES).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "onnx_type"),
    [
        ("int8", TensorProto.INT8),
        ("uint8", TensorProto.UINT8),
        ("int16", TensorProto.INT16),
        ("uint16", TensorProto.UINT16),
    ],
)
def test_quantize_as_onnxruntime_does(dtype, onnx_type):
    limits = np.iinfo(dtype)
    scale, zero_point = 0.0371, (limits.min + limits.max) // 2 + 5
    tensor = Tensor("x", dtype, (8192,), scale, zero_point)
    steps = np.random.default_rng(2).uniform(limits.min - 99, limits.max + 99, 8192) - zero_point
    x = (steps * scale).astype(np.float32)
    x[:2000] = ((np.round(steps[:2000]) + 0.5) * np.float32(scale)).astype(np.float32)  # ties and next to ties
    x[-2:] = np.inf, -np.inf
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8192])],
        [
            helper.make_tensor_value_info("q", onnx_type, [8192]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [8192]),
        ],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]), helper.make_tensor("z", onnx_type, [], [zero_point])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    q, y = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(quantize(tensor, x), q)
    np.testing.assert_array_equal(dequantize(tensor, q), y)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(tmp_path, threads):
    model = load(build_parallel(tmp_path).path, threads=threads)
    random = np.random.default_rng(3)
    for _ in range(50):
        x = random.integers(0, 256, 4096, np.uint8)
        np.testing.assert_array_equal(model.run_integer({"x": x})["y"], x.astype(np.int32) ** 2)


def test_models_of_one_artifact_keep_their_own_threads(tmp_path):
    path = build_parallel(tmp_path).path
    single, double = load(path), load(path, threads=2)
    x = np.arange(4096).astype(np.uint8)
    first = double.run_integer({"x": x})["y"]
    del double  # its threads end; the other model must not wait for them
    np.testing.assert_array_equal(single.run_integer({"x": x})["y"], first)


@pytest.mark.unguarded
def test_artifact_written_again_is_loaded_anew(tmp_path):
    x = {"input/x": np.full((1, 24), 5, np.int8)}
    before = load(build_multiply(tmp_path).path)
    after = load(build_multiply(tmp_path, source=MULTIPLY.replace("x[i] * w[i]", "x[i] + w[i]")).path)
    np.testing.assert_array_equal(before.run_integer(x)["y"][0], 5 * WEIGHT_VALUES)
    np.testing.assert_array_equal(after.run_integer(x)["y"][0], 5 + WEIGHT_VALUES)


@pytest.mark.parametrize("backend", ["unicorn", pytest.param("qemu", marks=needs_qemu)])
def test_parallel_code_is_emulated_on_one_thread(tmp_path, backend):
    model = load(build_parallel(tmp_path, "arm-a76").path, threads=4, backend=backend)
    x = np.arange(4096).astype(np.uint8)
    np.testing.assert_array_equal(model.run_integer({"x": x})["y"], x.astype(np.int32) ** 2)


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        ({}, "input 'input/x' is missing"),
        ({"input/x": np.zeros((1, 24)), "z": 1}, "no input 'z'; its inputs are input/x"),
        ({"input/x": np.zeros((24,))}, r"shape \[24\], the model takes \[1, 24\]"),
        ({"input/x": np.full((1, 24), np.nan)}, "holds NaN"),
        ({"input/x": np.full((1, 24), 128)}, "holds 128, which int8 cannot hold"),
        ({"input/x": np.full((1, 24), "a")}, "takes int8, not <U1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(host, inputs, fault):
    with pytest.raises(ArtifactError, match=fault):
        load(host).run(inputs)


def test_wider_integers_are_narrowed_and_floats_are_no_integers(host):
    model = load(host)
    np.testing.assert_array_equal(
        model.run_integer({"input/x": np.full((1, 24), -7, np.int64)})["y"][0], -7 * WEIGHT_VALUES
    )
    with pytest.raises(ArtifactError, match="takes int8, not float64"):
        model.run_integer({"input/x": np.zeros((1, 24))})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"abi_version": 99}, "ABI version 99, this loader 2"),
        ({"library_sha256": "0" * 64}, "is not what was written"),
        ({"library": "../x.so"}, "is damaged: ValueError.*'../x.so'"),
        ({"library": "none.so"}, "is damaged.*'none.so'"),
        ({"arena_bytes": None}, "'arena_bytes' is missing"),
        ({"inputs": [{"name": "x"}]}, "is damaged: KeyError.*dtype"),
        ({"inputs": "x"}, "'inputs' is wrong"),
        ({"cpu": {"arch": "riscv64"}}, "is not what was written"),
        ({"cpu": {"cpu_flags": ["avx9000"]}}, "is not what was written"),
        ({"abi_version": 1}, "ABI version 1, this loader 2; compile the model again"),
        ({"kind": "abacus"}, "of kind 'abacus', which this loader does not know .it opens cpu."),
        ({"name": "other"}, "is damaged: ValueError.*'other'"),
    ],
)
def test_damaged_or_foreign_manifest_is_refused(copy, changes, fault):
    edit(copy, **changes)
    with pytest.raises(ArtifactError, match=fault):
        load(copy)


@pytest.mark.parametrize(
    ("machine", "fault"),
    [
        (("riscv64", frozenset()), "it is for x86_64 and this machine is riscv64"),
        (("x86_64", frozenset(["fpu"])), "this CPU lacks "),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_why(tmp_path, monkeypatch, machine, fault):
    monkeypatch.setattr("qcompile.runtime.native._machine", lambda: machine)
    with pytest.raises(ArtifactError, match=fault):
        load(build_multiply(tmp_path, "x86-avx2").path)


def test_damaged_files_are_refused(copy, tmp_path):
    library = copy / "libmultiply.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"libmultiply.so is damaged"):
        load(copy)
    (copy / "manifest.json").write_text('{"name": "mul')
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged: not JSON"):
        load(copy)
    with pytest.raises(ArtifactError, match=r"is not an artifact: it has no manifest.json"):
        load(tmp_path / "nowhere")


def test_backends_say_why_they_cannot(host, arm, monkeypatch):
    with pytest.raises(ArtifactError, match="only aarch64 is emulated, not x86_64"):
        load(host, backend="unicorn")
    with pytest.raises(ArtifactError, match="cannot run natively: it is for aarch64"):
        load(arm, backend="native")
    with pytest.raises(ArtifactError, match="unknown backend 'gpu'"):
        load(arm, backend="gpu")
    with pytest.raises(ArtifactError, match="threads must be at least 1"):
        load(arm, threads=0)
    with pytest.raises(ArtifactError, match=r"has no program.npz"):
        load(host).reference({"input/x": np.zeros((1, 24))})
    monkeypatch.setattr("qcompile.runtime.qemu_engine.qemu_program", lambda: None)
    with pytest.raises(ArtifactError, match="apt install qemu-user"):
        load(arm, backend="qemu")


def test_i8mm_needs_qemu(tmp_path, monkeypatch):
    path = build_multiply(tmp_path, "arm-a710").path
    monkeypatch.setattr("qcompile.runtime.qemu_engine.qemu_program", lambda: None)
    with pytest.raises(ArtifactError, match="unicorn does not emulate i8mm; qemu-aarch64 is not installed"):
        load(path)


@pytest.mark.parametrize("backend", ["unicorn", pytest.param("qemu", marks=needs_qemu)])
def test_instruction_that_the_core_lacks_is_reported(tmp_path, backend):
    source = MULTIPLY.replace("return 0;", '__asm__ volatile("sdot v0.4s, v1.16b, v2.16b"); return 0;')
    model = load(build_multiply(tmp_path, "arm-a72", source, ("-march=armv8.2-a+dotprod",)).path, backend=backend)
    with pytest.raises(ArtifactError, match=r"qc_main.*cortex-a72.* no such|illegal instruction.*cortex-a72"):
        model.run_integer({"input/x": np.zeros((1, 24), np.int8)})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("y[i] = products[i]", "y[i] = x[i + 64]"), "qc_main .* reads"),
        (("y[i] = products[i]", "y[i + 16] = products[i]"), "qc_main .* writes"),
        (("return 0;", "return -7;"), "error -7"),
    ],
)
def test_emulator_watches_memory(tmp_path, change, fault):
    model = load(build_multiply(tmp_path, "arm-a76", MULTIPLY.replace(*change)).path)
    with pytest.raises(ArtifactError, match=fault):
        model.run_integer({"input/x": np.zeros((1, 24), np.int8)})


def test_emulator_clears_nothing_for_the_model(tmp_path):
    source = MULTIPLY.replace("products[i] = x[i] * w[i]", "products[i] += x[i] * w[i]")
    model = load(build_multiply(tmp_path, "arm-a76", source).path)
    for _ in range(2):
        y = model.run_integer({"input/x": np.zeros((1, 24), np.int8)})["y"]
        assert (y.view(np.uint32) == 0xA5A5A5A5).all(), "memory that the model did not set holds junk, every time"


def test_misaligned_buffers_are_refused(host):
    model = load(host)
    arena = model.engine.arguments[2]
    status = model.engine.function(*model.engine.arguments[:2], type(arena)(arena.value + 8))
    assert status == -1
