"""What is wrong with the user's input: one line that names it, exit code 2, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import qcompile
from click.testing import CliRunner
from onnx import TensorProto, helper
from qcompile.cli import qcompile as command
from small_models import WEIGHT, dense, embedding, model, quantized_dense, save, value, with_dims

ROOT = Path(__file__).resolve().parents[1]


def conv(channels=2, **attributes):
    return model(
        ("Conv", ["x", "w"], ["y"], attributes),
        inputs={"x": [1, channels, 8, 8]},
        constants={"w": np.ones((4, 2, 3, 3), np.float32)},
    )


def unary(op, *extra, inputs=None, **constants):
    return model((op, ["x", *constants], ["y", *extra], {}), inputs=inputs, constants=constants)


def spoiled(number):
    weight = WEIGHT.copy()
    weight[3, 2] = number
    return dense(weight)


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Relu", ["v"], ["v2"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", [1, 8])],
        [value("c2", [], TensorProto.BOOL), value("v2", [1, 8])],
    )
    return model(
        ("Loop", ["times", "go", "x"], ["y"], {"body": body}),
        inputs={"x": [1, 8], "times": []},
        dtypes={"times": TensorProto.INT64},
        constants={"go": np.bool_(True)},
    )


BAD_MODELS = {
    "operator ONNX does not know": (model(("Frobnicate", ["x"], ["y"], {})), ["Frobnicate", "the_y"]),
    "unsupported operator": (unary("Det", inputs={"x": [1, 4, 4]}), ["the_y", "Det"]),
    "result size depends on data": (unary("NonZero"), ["NonZero 'the_y'"]),
    "control flow": (loop(), ["Loop 'the_y'", "control flow"]),
    "dynamic shape": (model(("Relu", ["x"], ["y"], {}), inputs={"x": [1, "n", 8]}), ["'x'", "axis 1", "--shapes x:"]),
    "unknown rank": (model(("Relu", ["x"], ["y"], {}), inputs={"x": None}), ["'x'", "--shapes x:"]),
    "NaN weight": (spoiled(np.nan), ["'w'", "NaN"]),
    "infinite weight": (spoiled(np.inf), ["'w'", "infinite"]),
    "minus infinity": (spoiled(-np.inf), ["'w'", "infinite"]),
    "weights that overflow": (spoiled(3e38), ["'y'", "infinite"]),
    "zero scale": (quantized_dense(scale=0), ["the_q", "'s'", "positive"]),
    "negative scale": (quantized_dense(scale=-1), ["'s'", "positive"]),
    "NaN scale": (quantized_dense(scale=np.nan), ["'s'", "NaN"]),
    "zero weight scale": (quantized_dense(weight_scale=0), ["the_wd", "'ws'", "positive"]),
    "no nodes": (helper.make_model(helper.make_graph([], "g", [value("x", [1])], [value("x", [1])])), ["empty graph"]),
    "no outputs": (model(("Relu", ["x"], ["y"], {}), outputs=()), ["empty graph"]),
    "no inputs": (model(("Relu", ["w"], ["y"], {}), inputs={}, constants={"w": WEIGHT}), ["y", "constant"]),
    "output twice": (model(("Relu", ["x"], ["y"], {}), outputs=("y", "y")), ["'y'", "twice"]),
    "text input": (
        model(("Identity", ["x"], ["y"], {}), dtypes={"x": TensorProto.STRING, "y": TensorProto.STRING}),
        ["'x'", "numbers"],
    ),
    "ancient opset": (model(("Relu", ["x"], ["y"], {}), opset=1), ["opset 1"]),
    "huge weight shape": (
        model(("Add", ["x", "w"], ["y"], {}), initializers=[with_dims([2**40, 2**30])]),
        ["'w'", "shape"],
    ),
    "negative weight shape": (
        model(("Add", ["x", "w"], ["y"], {}), initializers=[with_dims([-1])]),
        ["w", "egative dimension"],
    ),
    "huge input": (model(("Relu", ["x"], ["y"], {}), inputs={"x": [1, 2**40, 2**40]}), ["'x'", "elements"]),
    "negative input size": (model(("Relu", ["x"], ["y"], {}), inputs={"x": [1, -5]}), ["'x'", "axis 1"]),
    "empty input": (model(("Relu", ["x"], ["y"], {}), inputs={"x": [1, 0]}), ["'x'", "axis 1"]),
    "huge result": (unary("Expand", s=np.array([2**40, 8])), ["the_y", "elements"]),
    "cycle": (
        model(("Add", ["x", "b"], ["a"], {}), ("Relu", ["a"], ["b"], {}), ("Relu", ["b"], ["y"], {})),
        ["'b'", "sorted"],
    ),
    "name made twice": (
        model(("Relu", ["x"], ["a"], {}), ("Sigmoid", ["x"], ["a"], {}), ("Relu", ["a"], ["y"], {})),
        ["'a'", "multiple"],
    ),
    "missing tensor": (model(("Add", ["x", "nowhere"], ["y"], {})), ["'nowhere'"]),
    "missing output": (model(("Relu", ["x"], ["a"], {})), ["'y'"]),
    "reshape to another size": (unary("Reshape", s=np.array([3, 5])), ["the_y", "shape"]),
    "reshape to a remainder": (unary("Reshape", s=np.array([-1, 3])), ["Reshape 'the_y'", "shape"]),
    "product of unlike sizes": (
        model(("MatMul", ["x", "w"], ["y"], {}), constants={"w": np.ones((5, 4), np.float32)}),
        ["the_y", "shape"],
    ),
    "sum of unlike sizes": (
        model(("Add", ["x", "w"], ["y"], {}), constants={"w": np.ones(5, np.float32)}),
        ["the_y", "shape"],
    ),
    "wrong channels": (conv(channels=3), ["hannel"]),
    "zero groups": (conv(group=0), ["group"]),
    "zero stride": (conv(strides=[0, 0]), ["the_y", "stride"]),
    "huge padding": (conv(pads=[2**40] * 4), ["the_y", "pads"]),
    "axis out of range": (model(("Softmax", ["x"], ["y"], {"axis": 9})), ["the_y", "axis"]),
    "constant index out of range": (
        model(("Gather", ["x", "i"], ["y"], {"axis": 1}), constants={"i": np.array([100])}),
        ["the_y", "index"],
    ),
    "missing operand": (model(("MatMul", ["x"], ["y"], {})), ["the_y", "input"]),
}


def refused(folder, net, *words, **options):
    """Compiles what must not compile; checks the message, and that no folder came into being."""
    with pytest.raises(qcompile.CompileError) as failure:
        qcompile.compile(net, output=folder / "out", **options)
    message = str(failure.value)
    assert all(word in message for word in words) and "\n" not in message, message
    assert not (folder / "out").exists(), f"left behind: {sorted((folder / 'out').rglob('*'))}"


def run_command(*arguments):
    return CliRunner().invoke(command.main, [str(a) for a in arguments])


def refused_by_command(folder, arguments, *words):
    result = run_command(*arguments, "-o", folder / "out")
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert "error: " in line and all(word in line for word in words), line
    assert not (folder / "out").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(case, tmp_path):
    net, words = BAD_MODELS[case]
    refused(tmp_path, net, *words)


@pytest.mark.parametrize(
    "case", ["unsupported operator", "dynamic shape", "NaN weight", "zero scale", "cycle", "control flow"]
)
def test_bad_model_by_command(case, tmp_path):
    net, words = BAD_MODELS[case]
    refused_by_command(tmp_path, [save(net, tmp_path / "net.onnx")], *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, ["net.onnx", "no such file"]),
        (b"", ["empty graph"]),
        (dense().SerializeToString()[:-40], ["net.onnx", "truncated"]),
        (np.random.default_rng(0).bytes(3000), ["net.onnx", "not an ONNX model"]),
        (b"<html>" * 100, ["net.onnx", "not an ONNX model"]),
    ],
    ids=["missing", "empty", "truncated", "random bytes", "a web page"],
)
def test_bad_file(data, words, tmp_path):
    if data is not None:
        (tmp_path / "net.onnx").write_bytes(data)
    refused(tmp_path, tmp_path / "net.onnx", *words)
    refused_by_command(tmp_path, [tmp_path / "net.onnx"], *words)


def test_every_truncation_is_refused(tmp_path):
    data = quantized_dense().SerializeToString()
    for length in range(0, len(data) - 1, max(1, len(data) // 40)):
        (tmp_path / "net.onnx").write_bytes(data[:length])
        refused(tmp_path, tmp_path / "net.onnx")


BAD_CALIBRATION = {
    "wrong shape": ({"x": np.zeros((4, 7), np.float32)}, ["'x'", "shape"]),
    "missing input": ({"images": np.zeros((4, 8), np.float32)}, ["'x'", "images"]),
    "no samples": ({"x": np.zeros((0, 8), np.float32)}, ["no samples"]),
    "no arrays": ({}, ["'x'"]),
    "NaN": ({"x": np.full((4, 8), np.nan, np.float32)}, ["'x'", "NaN"]),
    "infinity": ({"x": np.full((4, 8), np.inf, np.float32)}, ["'x'", "infinite"]),
    "text": ({"x": np.full((4, 8), "a")}, ["'x'", "type"]),
}


@pytest.mark.parametrize("case", BAD_CALIBRATION)
def test_bad_calibration(case, tmp_path):
    arrays, words = BAD_CALIBRATION[case]
    np.savez(tmp_path / "calib.npz", **arrays)
    refused(tmp_path, dense(), *words, calibration=tmp_path / "calib.npz")
    rows = len(next(iter(arrays.values()), ()))
    refused(
        tmp_path,
        dense(),
        *([] if case == "no arrays" else words),
        calibration=[{name: array[i : i + 1] for name, array in arrays.items()} for i in range(rows)],
    )
    refused_by_command(tmp_path, [save(dense(), tmp_path / "net.onnx"), "--calib", tmp_path / "calib.npz"], *words)


def test_calibration_file_is_none(tmp_path):
    (tmp_path / "calib.npz").write_bytes(b"no zip")
    refused(tmp_path, dense(), "calib.npz", calibration=tmp_path / "calib.npz")
    refused(tmp_path, dense(), "none.npz", "no such file", calibration=tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "pdp-11"], ["pdp-11", "arm-a76"]),
        (["--bits", "7"], ["7", "8"]),
        (["--shapes", "x=1,8"], ["--shapes", "NAME:"]),
        (["--shapes", "z:1x8"], ["z", "x"]),
        (["--shapes", "x:1x9"], ["x:1x9", "contradicts"]),
        (["--shapes", "x:0x8"], ["--shapes"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_bad_option(options, words, tmp_path):
    refused_by_command(tmp_path, [save(dense(), tmp_path / "net.onnx"), *options], *words)


def test_bad_arguments_of_compile(tmp_path):
    refused(tmp_path, dense(), "pdp-11", target="pdp-11")
    refused(tmp_path, dense(), "7", bits=7)
    refused(tmp_path, dense(), "taylor", approx="taylor")


def test_output_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(qcompile.CompileError, match="cannot write"):
        qcompile.compile(dense(), output=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    result = run_command(save(dense(), tmp_path / "net.onnx"), "-o", tmp_path / "out")
    assert result.exit_code == 2 and "cannot write" in result.output.splitlines()[-1]


def test_output_folder_is_not_writable(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    if os.access(tmp_path / "out", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(qcompile.CompileError, match="cannot write"):
        qcompile.compile(dense(), output=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_foreign_folder_is_kept(tmp_path):
    mine = tmp_path / "out" / "net-host"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(qcompile.CompileError, match="no artifact"):
        qcompile.compile(dense(), output=tmp_path / "out", name="net")
    assert [f.name for f in (tmp_path / "out").rglob("*")] == ["net-host", "thesis.txt"]


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "replacing"])
def test_full_disk(earlier, tmp_path, monkeypatch):
    if earlier:
        qcompile.compile(quantized_dense(), output=tmp_path, name="net")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    write = Path.write_bytes

    def full(path, data):
        if path.name.startswith("lib") and tmp_path in path.parents:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(qcompile.CompileError, match="No space left"):
        qcompile.compile(dense(), output=tmp_path, name="net")
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_killed_while_writing(tmp_path):
    """SIGKILL in the middle of the library: no folder of the artifact's name, and the next compile succeeds."""
    script = (
        "import sys, time, pathlib, qcompile, small_models as s\nwrite = pathlib.Path.write_bytes\n"
        "def slow(path, data):\n"
        "    if path.name == 'libnet.so' and sys.argv[1] in str(path):\n"
        "        write(path, data[:100]); print('half', flush=True); time.sleep(60)\n"
        "    return write(path, data)\n"
        "pathlib.Path.write_bytes = slow\n"
        "qcompile.compile(s.quantized_dense(), output=sys.argv[1], name='net')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests")])},
    )
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "net-host").exists()
    assert qcompile.load(qcompile.compile(quantized_dense(), output=tmp_path, name="net").path)


@pytest.fixture(scope="module")
def words_model(tmp_path_factory):
    return qcompile.load(qcompile.compile(embedding(), output=tmp_path_factory.mktemp("ids")).path)


def test_ids_out_of_range_cannot_read_foreign_memory(words_model):
    tensor = words_model.inputs[0]
    extremes = np.iinfo(tensor.dtype)
    for ids in ([0, 9, 5], [-1, 10, 1 << 20], [extremes.min, extremes.max, 3]):
        ids = np.array([ids])
        row = np.clip(np.where(ids < 0, ids + 10, ids), 0, 9)
        got, want = (run({"ids": ids})["y"] for run in (words_model.run_integer, words_model.reference_integer))
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, words_model.run_integer({"ids": row})["y"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"ids": np.zeros((1, 4), np.int64)}, "shape"),
        ({"ids": np.zeros((1, 3), np.float32)}, "ids"),
        ({}, "missing"),
        ({"ids": np.zeros((1, 3), np.int64), "mask": np.ones(3)}, "mask"),
    ],
    ids=["shape", "type", "missing", "unknown"],
)
def test_bad_values_at_run_time(words_model, inputs, words):
    with pytest.raises(qcompile.ArtifactError, match=words):
        words_model.run(inputs)


@pytest.mark.parametrize("damage", ["manifest.json", "libnet.so", "program.npz"])
def test_damaged_artifact(damage, tmp_path):
    path = qcompile.compile(quantized_dense(), output=tmp_path, name="net").path
    data = (path / damage).read_bytes()
    (path / damage).write_bytes(data[: len(data) // 2])
    with pytest.raises(qcompile.ArtifactError, match=damage):
        qcompile.load(path).reference({"x": np.zeros((1, 8), np.float32)})
    (path / damage).unlink()
    with pytest.raises(qcompile.ArtifactError):
        qcompile.load(path).reference({"x": np.zeros((1, 8), np.float32)})


def test_a_bad_model_costs_no_time(tmp_path):
    """Errors that need no compiler come at once."""
    begin = time.perf_counter()
    refused(tmp_path, spoiled(np.nan))
    assert time.perf_counter() - begin < 2


def test_half_precision_and_names_from_hell_compile(tmp_path):
    half = onnx.helper.make_model(
        dense(WEIGHT.astype(np.float16)).graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    for tensor in (*half.graph.input, *half.graph.output):
        tensor.type.tensor_type.elem_type = TensorProto.FLOAT16
    names = model(
        ("MatMul", ["in:0", "w"], ["a*/b"], {}),
        ("Softmax", ["a*/b"], ['/* c\n"\\'], {}),
        ("MatMul", ['/* c\n"\\', "v"], ["out:0"], {}),
        inputs={"in:0": [1, 8]},
        outputs=("out:0",),
        constants={"w": WEIGHT, "v": WEIGHT.T.copy()},
    )
    for net, name in ((half, "x"), (names, "in:0")):
        loaded = qcompile.load(qcompile.compile(net, output=tmp_path).path)
        x = {name: np.ones((1, 8), np.float32)}
        for output, values in loaded.run(x).items():
            np.testing.assert_array_equal(values, loaded.reference(x)[output])
