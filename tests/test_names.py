"""Names in a model may be anything: they never change a result, and never meet in C, in files or in the program."""

import json
import re

import numpy as np
import onnx
import pytest
import qcompile
from commands import call
from onnx import helper, numpy_helper
from qcompile.artifact.spec import LONGEST_NAME, c_prefix, c_variables, folder_name
from qcompile.cli import qrun
from qcompile.kernels.program import Program
from small_models import model, save, value

ODD = [
    'a"b\'c\\', "a\nb\r\nc", "*/ int x; /*", "??/ ??)", "日本語 é", "🙂", "/a/b/../c", " ", "%s%d%n", "{x} {{ y }}",
    "<b>&amp;", "..", "int", "0", "\x1b[31m", "a:b,c=d", "\u202e\ufeff", "[](){}*+?", "qc_main", "inputs", "arena",
    "n" * 5000, "n" * 5000 + "x", "a.b", "a_b", "a b", "a-b", "a_b_2", "a_b_3", "x.npy", "x", "const_1", "quantize_2",
]  # fmt: skip


def net(names):
    """A product of its own for each input; all nodes have the first of the names."""
    nodes, constants, rng = [], [], np.random.default_rng(0)
    for i, name in enumerate(names):
        constants.append(numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), f"{name}w"))
        nodes.append(helper.make_node("MatMul", [name, f"{name}w"], [f"{name}m"], name=names[0]))
        nodes.append(helper.make_node("Relu" if i % 2 else "Sigmoid", [f"{name}m"], [f"{name}/y"], name=names[0]))
    graph = helper.make_graph(
        nodes, names[0], [value(n, [1, 8]) for n in names], [value(f"{n}/y", [1, 4]) for n in names], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(1).standard_normal((4, len(ODD), 1, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def built(tmp_path_factory, samples):
    """The net under plain names, and under odd ones, of mixed bits: {"plain" or "odd": artifact}."""
    folder, made = tmp_path_factory.mktemp("names"), {}
    for kind, names in (("plain", [f"plain{i}" for i in range(len(ODD))]), ("odd", ODD)):
        feeds = [dict(zip(names, sample)) for sample in samples]
        made[kind] = qcompile.compile(net(names), calibration=feeds, output=folder / kind, bits=4, keep=True)
    return made


def test_names_do_not_change_a_bit(built, samples):
    x, y = samples[0], {}
    for kind, artifact in built.items():
        loaded = qcompile.load(artifact.path)
        feed = dict(zip((t.name for t in loaded.inputs), x))
        y[kind] = list(loaded.run_integer(loaded.quantize(feed)).values())
        reference = loaded.reference_integer(loaded.quantize(feed)).values()
        assert all(np.array_equal(a, b) for a, b in zip(y[kind], reference))
    assert all(np.array_equal(a, b) for a, b in zip(y["plain"], y["odd"], strict=True))


def test_names_are_kept_where_they_are_text(built):
    manifest = json.loads((built["odd"].path / "manifest.json").read_text())
    assert [t["name"] for t in manifest["inputs"]] == ODD and [t["name"] for t in manifest["outputs"]] == [
        f"{n}/y" for n in ODD
    ]
    page = (built["odd"].path / "report.html").read_text()
    assert "<b>&amp;" not in page
    assert all(len(file.name) < 200 for file in built["odd"].path.rglob("*"))


def test_names_are_different_identifiers_in_c(built):
    (header,) = built["odd"].path.glob("*.h")
    lines = re.findall(r"puts\[\] = \{ (.*) \};", header.read_text())
    names = [name for line in lines for name in line.split(", ")]
    assert len(names) == len(set(names)) == 2 * len(ODD) and all(re.fullmatch(r"[A-Za-z_]\w*", n, re.A) for n in names)


def test_every_layer_keeps_its_bits_where_all_have_one_name(built):
    bits = json.loads((built["odd"].path / "bits.json").read_text())["layers"]
    assert len(bits) == len(ODD)
    names = [n.name for n in onnx.load(built["odd"].path / "model.qdq.onnx").graph.node]
    assert len(set(names)) == len(names)


def test_npz_files_hold_every_name(built, samples, tmp_path):
    np.savez(tmp_path / "x.npz", **dict(zip(ODD, samples[0])))
    arguments = [built["odd"].path, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"]
    result = call(qrun, *arguments)
    assert result.exit_code == 0, result.output
    want = qcompile.load(built["odd"].path).run(dict(zip(ODD, samples[0])))
    with np.load(tmp_path / "y.npz") as file:
        assert all(np.array_equal(file[name], y) for name, y in want.items())


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_inputs_called_as_what_the_compiler_makes(target, tmp_path):
    """Whatever names the program of a net has: as names of its inputs, they give the same program."""
    plain = qcompile.compile(net(["p", "q", "r"]), target, output=tmp_path / "plain", name="n")
    program = Program.load((plain.path / "program.npz").read_bytes())
    taken = [*(n.name for n in program.nodes), *program.constants, "p_u8", "p_s8"]
    x = np.random.default_rng(2).standard_normal((3, 1, 8)).astype(np.float32)
    want = list(qcompile.load(plain.path).run(dict(zip("pqr", x))).values())
    for i in range(0, len(taken), 3):
        names = ["p", *taken[i : i + 2]] if "p_u8" in taken[i : i + 2] else taken[i : i + 3]
        names += [f"more{k}" for k in range(3 - len(names))]
        again = qcompile.load(qcompile.compile(net(names), target, output=tmp_path / str(i), name="n").path)
        for got in (again.run(dict(zip(names, x))), again.reference(dict(zip(names, x)))):
            assert all(np.array_equal(a, b) for a, b in zip(got.values(), want, strict=True)), names


@pytest.mark.parametrize("names", [["a\0b"], ["n" * 70_000]], ids=["null character", "70,000 characters"])
def test_names_that_no_file_can_hold_are_refused(names, tmp_path):
    with pytest.raises(qcompile.CompileError, match="rename it") as failure:
        qcompile.compile(net(names), output=tmp_path / "out")
    assert len(str(failure.value)) < 2100 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n" * 5000, "../../etc", "a/b", "", ".", "..", "日" * 90, "\0", "con fig"])
def test_names_of_artifacts_are_names_of_folders(name, tmp_path):
    path = qcompile.compile(net(["x"]), output=tmp_path / "out", name=name or None).path
    assert path.parent == tmp_path / "out" and len(path.name.encode()) <= LONGEST_NAME + len("-host")
    assert [f.name for f in tmp_path.iterdir()] == ["out"] and qcompile.load(path)


def test_long_names_stay_different():
    for shortened in (c_prefix, folder_name):
        a, b = shortened("n" * 5000), shortened("n" * 5001)
        assert a != b and len(a) == len(b) == LONGEST_NAME
    assert c_variables(["a_2", "a", "a!", "a?"], taken=["a_3"]) == ["a_2", "a", "a_4", "a_5"]


def test_states_whose_names_hold_colons(tmp_path):
    proto = model(
        ("Add", ["x:0", "h:0,c"], ["s:0"], {}),
        ("Tanh", ["s:0"], ["out:0,d"], {}),
        inputs={"x:0": [1, 8], "h:0,c": [1, 8]},
        outputs=("out:0,d",),
    )
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    del proto.graph.output[:]
    proto.graph.output.append(value("out:0,d", [1, 8]))
    made = qcompile.compile(save(proto, tmp_path / "n.onnx"), output=tmp_path, states=("h:0,c:out:0,d",))
    assert made.manifest["states"] == [["h:0,c", "out:0,d"]]
    again = qcompile.compile(made.path / "model.qdq.onnx", output=tmp_path / "again")
    assert again.manifest["states"] == [["h:0,c", "out:0,d"]]
