"""Damaged and hostile files: one clear CompileError, never a raw exception or a defect, and nothing written."""

import io
import zipfile

import numpy as np
import onnx
import pytest
import qcompile
from click.testing import CliRunner
from onnx import AttributeProto, TensorProto, helper
from programs import residual_net
from qcompile.cli import qcompile as command
from qcompile.frontend import Graph, load_model, normalise_graph
from qcompile.quantizer import load_calibration
from qcompile.targets.errors import Defect
from small_models import dense, embedding, model, quantized_dense, save, value

MUTATIONS = 96  # of each kind of file, in the tests; any number by hand


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three faults: a bit or a byte changed, bytes lost, bytes put in, a huge number, the end cut off."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, count = int(rng.integers(0, len(found))), int(rng.integers(1, 9))
        match rng.integers(0, 7):
            case 0 | 1:
                found[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                found[at] = int(rng.integers(0, 256))
            case 3:
                del found[at : at + count]
            case 4:
                found[at:at] = rng.bytes(count)
            case 5:
                found[at : at + 4] = b"\xff\xff\xff\x7f"
            case 6:
                del found[max(1, len(found) - count) :]
    return bytes(found)


def compiled_or_refused(source, folder, **options):
    """The message of a refusal that is one, or None where the model compiles."""
    try:
        qcompile.compile(source, output=folder / "out", name="net", **options)
    except Defect as error:
        raise AssertionError(error) from error
    except qcompile.CompileError as error:
        assert not (folder / "out").exists()
        return str(error)
    for file in (folder / "out" / "net-host").iterdir():
        file.unlink()
    (folder / "out" / "net-host").rmdir()
    (folder / "out").rmdir()
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [dense, quantized_dense, embedding, residual_net], ids=lambda f: f.__name__)
def test_mutations_of_a_model(make, tmp_path):
    data, refusals = make().SerializeToString(), 0
    for seed in range(MUTATIONS // 4):
        file = tmp_path / "net.onnx"
        file.write_bytes(mutated(data, np.random.default_rng([seed, len(data)])))
        try:
            refusals += compiled_or_refused(file, tmp_path) is not None
        except Exception as error:
            raise AssertionError(f"seed {seed} of {make.__name__}: {type(error).__name__}: {error}") from error
    assert refusals > MUTATIONS // 16


def changed(change, base=None):
    net = onnx.ModelProto()
    net.CopyFrom(base or dense())
    change(net)
    return net


def weight(**fields):
    def change(net):
        for name, new in fields.items():
            if name == "dims":
                net.graph.initializer[0].dims[:] = new
            else:
                setattr(net.graph.initializer[0], name, new)

    return changed(change)


def input_type(elem_type):
    return changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", elem_type))


def with_functions(*calls):
    """Functions f.F, f.G, ..., the n-th of which calls what `calls` names."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function("f", name, ["a"], ["b"], [helper.make_node(op, ["a"], ["b"], domain="f")], opsets)
        for name, op in calls
    ]
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="f")], "g", [value("x", [1, 8])], [value("y", [1, 8])]
    )
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def bytes_for_text(old, new, base=None):
    """The file of a model with a name that is no UTF-8."""
    data = (base or dense()).SerializeToString()
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


HOSTILE = {
    "raw data too short": (weight(raw_data=b"123"), "does not fit its shape"),
    "raw data too long": (weight(raw_data=b"1" * 1000), "does not fit its shape"),
    "no raw data": (weight(raw_data=b""), "does not fit its shape"),
    "negative sizes": (weight(dims=[-8, -4]), "w"),
    "sizes that overflow": (weight(dims=[2**62, 2**62]), "w"),
    "99 axes": (weight(dims=[1] * 99 + [32]), "w"),
    "unknown weight type": (weight(data_type=999), "ONNX has no type 999"),
    "negative weight type": (weight(data_type=-1), "ONNX has no type -1"),
    "weights of text": (weight(data_type=TensorProto.STRING), "w"),
    "complex weights": (weight(data_type=TensorProto.COMPLEX64), "w"),
    "weight without name": (weight(name=""), ""),
    "weight called as the output": (weight(name="y"), "y"),
    "weight twice": (changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "w"),
    "unknown input type": (input_type(999), "x"),
    "input type 0": (input_type(0), "x"),
    "complex input": (input_type(TensorProto.COMPLEX128), "x"),
    "opset 0": (changed(lambda m: setattr(m.opset_import[0], "version", 0)), "opset"),
    "negative opset": (changed(lambda m: setattr(m.opset_import[0], "version", -5)), "opset"),
    "opset of the future": (changed(lambda m: setattr(m.opset_import[0], "version", 99)), "opset 99"),
    "no opset": (changed(lambda m: m.opset_import.pop()), "opset"),
    "IR version 9999": (changed(lambda m: setattr(m, "ir_version", 9999)), "ir_version"),
    "node without op": (changed(lambda m: setattr(m.graph.node[0], "op_type", "")), ""),
    "node without outputs": (changed(lambda m: m.graph.node[0].output.pop()), ""),
    "node of its own output": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "y")), "y"),
    "input without type": (changed(lambda m: m.graph.input[0].ClearField("type")), "x"),
    "attribute without value": (
        changed(lambda m: m.graph.node[0].attribute.add(name="axis", type=AttributeProto.GRAPH)),
        "axis",
    ),
    "attribute of a function outside": (
        changed(lambda m: m.graph.node[0].attribute.add(name="a", type=AttributeProto.INT, ref_attr_name="b")),
        "",
    ),
    "function of itself": (with_functions(("F", "F")), "functions cannot be expanded"),
    "functions of each other": (with_functions(("F", "G"), ("G", "F")), "functions cannot be expanded"),
    "function twice": (with_functions(("F", "H"), ("F", "H")), "functions cannot be expanded"),
    "states that are no JSON": (
        changed(lambda m: m.metadata_props.add(key="qcompile.states", value="[" * 100_000)),
        "qcompile.states",
    ),
    "scale per channel of another count": (quantized_dense(ws=np.ones(3, np.float32)), "the_wd"),
    "empty scale": (quantized_dense(s=np.zeros(0, np.float32)), "'s'"),
    "scale of integers": (quantized_dense(s=np.int32(1)), "the_"),
    "name that is no text": (bytes_for_text(b"the_y", b"the\xff\xfe"), "no UTF-8 text"),
    "tensor that is no text": (bytes_for_text(b"x", b"\xff"), "no UTF-8 text"),
    "deep nesting": (b"\x3a\x80\x80\x80\x08" * 500, "not an ONNX model"),
    "a length beyond the end": (b"\x3a\xff\xff\xff\xff\x0f", "not an ONNX model"),
    "nothing": (b"", "empty graph"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_models(case, tmp_path):
    source, words = HOSTILE[case]
    file = tmp_path / "net.onnx"
    file.write_bytes(source if isinstance(source, bytes) else source.SerializeToString())
    forms = [file] if isinstance(source, bytes) else [file, source]
    for form in forms:
        message = compiled_or_refused(form, tmp_path)
        assert message is not None and words in message and "\n" not in message, message
    result = CliRunner().invoke(command.main, [str(file), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("path", ["", ".", "a\0b", "n" * 5000, "link", "/dev/null"])
def test_paths_that_are_no_files(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    message = compiled_or_refused(path, tmp_path)
    assert message and len(message) < 700
    (tmp_path / "net.onnx").write_bytes(dense().SerializeToString())
    assert compiled_or_refused(tmp_path / "net.onnx", tmp_path, calibration=path)


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, allow_pickle=True, **arrays)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return out.getvalue()


X = np.zeros((4, 8), np.float32)
BOMB = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 8), }".ljust(
    118
)
BAD_CALIBRATION = {
    "nothing": (b"", "not a readable npz"),
    "an empty zip": (zipped(), "'x'"),
    "one array": (npy(X), "single array"),
    "objects": (npz(x=np.array([{"a": 1}, None], object)), "not a readable npz"),
    "a pickle": (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.", "not a readable npz"),
    "a member that is no array": (zipped(x=b"hello"), "'x'"),
    "an array of 32 TB that is not there": (zipped(x=BOMB), "not a readable npz"),
    "a structure": (npz(x=np.zeros((4, 8), [("a", "f4")])), "type"),
    "dates": (npz(x=np.zeros((4, 8), "M8[s]")), "type"),
    "complex numbers": (npz(x=np.zeros((4, 8), complex)), "type"),
    "a number": (npz(x=np.float32(3)), "shape"),
    "samples of no size": (npz(x=np.zeros((4, 0), np.float32)), "shape"),
    "doubles that overflow": (npz(x=np.full((4, 8), 1e300)), "infinite"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD_CALIBRATION)
def test_bad_calibration(case, tmp_path):
    data, words = BAD_CALIBRATION[case]
    (tmp_path / "calib.npz").write_bytes(data)
    message = compiled_or_refused(dense(), tmp_path, calibration=tmp_path / "calib.npz")
    assert message is not None and words in message, message
    net = save(dense(), tmp_path / "net.onnx")
    arguments = [net, "--calib", tmp_path / "calib.npz", "-o", tmp_path / "out"]
    result = CliRunner().invoke(command.main, [str(a) for a in arguments])
    assert result.exit_code == 2 and words in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "samples", [5, [5], [None], ["x"], [[X[:1]]], [{"x": "text"}], [{"x": [[1], [2, 3]]}], [{5: X}]]
)
def test_samples_that_are_none(samples, tmp_path):
    assert "calibration" in (compiled_or_refused(dense(), tmp_path, calibration=samples) or "")


@pytest.mark.filterwarnings("ignore")
def test_mutations_of_calibration(tmp_path):
    """The file is read as it is, or refused: its arrays have a checksum in the zip."""
    graph = Graph(load_model(model(("Relu", ["x"], ["y"], {}))))
    normalise_graph(graph)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    data, refusals = npz(x=x), 0
    for seed in range(MUTATIONS):
        (tmp_path / "calib.npz").write_bytes(mutated(data, np.random.default_rng(seed)))
        try:
            read = load_calibration(tmp_path / "calib.npz", graph).samples
        except qcompile.CompileError:
            refusals += 1
        else:
            assert all(s["x"].shape == (1, 8) and np.isfinite(s["x"]).all() for s in read), seed
    assert refusals > MUTATIONS // 2
