"""Weights in other files: read wherever a tensor stands in a model, and from the model's folder only."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model
from qcompile.targets import CompileError

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)


def external(name, location="w.bin", offset=0, length=WEIGHTS.nbytes):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(name, tensor):
    return helper.make_node("Constant", [], [name], value=tensor)


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def product(weight="w", out="y"):
    return helper.make_node("MatMul", ["x", weight], [out], name="product")


def model(nodes, initializers=(), functions=(), **more):
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3])], [value("y", [1, 2])], list(initializers), **more)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def in_branch(tensor):
    branches = [
        helper.make_graph([constant("b", t), product("b", "out")], name, [], [value("out", [1, 2])])
        for name, t in (("then", tensor), ("else", numpy_helper.from_array(-WEIGHTS, "e")))
    ]
    choice = constant("yes", numpy_helper.from_array(np.array(True), "yes"))
    return model([choice, helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])])


def in_branch_initializer(tensor):
    made = in_branch(numpy_helper.from_array(WEIGHTS, "t"))
    branch = next(a.g for a in made.graph.node[1].attribute if a.name == "then_branch")
    del branch.node[0]
    tensor.name = "b"
    branch.initializer.append(tensor)
    return made


def in_function(tensor):
    body = helper.make_function(
        "own", "Product", ["x"], ["y"], [constant("w", tensor), product()], [helper.make_opsetid("", 18)]
    )
    return model([helper.make_node("Product", ["x"], ["y"], domain="own")], functions=[body])


PLACES = {
    "initializer": lambda t: model([product()], [t]),
    "constant": lambda t: model([constant("w", t), product()]),
    "branch": in_branch,
    "branch's initializer": in_branch_initializer,
    "function": in_function,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The model's folder, beside it a secret; the current folder is another one, with a file of the same name."""
    made, other = tmp_path / "model", tmp_path / "elsewhere"
    made.mkdir(), other.mkdir()
    (made / "w.bin").write_bytes(WEIGHTS.tobytes())
    (other / "w.bin").write_bytes((99 + WEIGHTS).tobytes())
    (tmp_path / "secret").write_bytes(bytes(1000))
    monkeypatch.chdir(other)
    return made


def save(folder, proto):
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("place", PLACES)
def test_data_is_read_from_beside_the_model(folder, place):
    loaded = load_model(save(folder, PLACES[place](external("w"))))
    assert b"external_data" not in loaded.SerializeToString()
    assert WEIGHTS.tobytes() in loaded.SerializeToString(), "the model's file, not the current folder's"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("../secret", "outside the model's folder"),
        ("SECRET", "outside the model's folder"),
        ("link", "outside the model's folder"),
        ("below/../../secret", "outside the model's folder"),
        ("none.bin", "missing beside the model"),
        (".", "missing beside the model"),
        ("pipe", "missing beside the model"),
        ("circle", "missing beside the model|has no path"),
        ("a\0b", "has no path"),
        ("x" * 5000, "has no path|missing"),
    ],
)
def test_data_from_elsewhere_is_refused(folder, place, location, fault):
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    location = str(folder.parent / "secret") if location == "SECRET" else location
    with pytest.raises(CompileError, match=f"weight '[wb]': .*({fault})"):
        load_model(save(folder, PLACES[place](external("w", location))))


@pytest.mark.parametrize(
    ("offset", "length", "fault"),
    [
        (0, 25, "too short"),
        (8, 24, "too short"),
        (-4, 24, "too short"),
        (0, -1, "too short"),
        (1 << 70, None, "too short"),
        ("x", 24, "not a number"),
        (0, "", "not a number"),
    ],
)
def test_parts_that_are_not_there_are_refused(folder, offset, length, fault):
    with pytest.raises(CompileError, match=f"weight 'w': .*{fault}"):
        load_model(save(folder, PLACES["initializer"](external("w", offset=offset, length=length))))


@pytest.mark.parametrize("length", [None, 1 << 39], ids=["to its end", "said"])
def test_a_file_larger_than_the_weight_is_not_read(folder, length):
    os.truncate(folder / "w.bin", 1 << 40)  # holds no blocks, and would not fit into memory
    with pytest.raises(CompileError, match=r"weight 'w': .* has \d+ bytes, more than its shape \[3, 2\]"):
        load_model(save(folder, PLACES["initializer"](external("w", length=length))))


@pytest.mark.parametrize("place", PLACES)
def test_a_model_in_memory_reads_no_file(folder, place):
    with pytest.raises(CompileError, match=r"weight '[wb]': a model in memory has its data in a file; .*onnx.load"):
        load_model(PLACES[place](external("w")))


def test_models_of_a_hubs_cache_are_read(folder, tmp_path):
    """Both files are links to a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), snapshot.mkdir()
    save(folder, PLACES["initializer"](external("w"))).rename(blobs / "1f")
    (folder / "w.bin").rename(blobs / "2e")
    for name, blob in (("m.onnx", "1f"), ("w.bin", "2e")):
        (snapshot / name).symlink_to(blobs / blob)
    (tensor,) = load_model(snapshot / "m.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHTS)


def test_what_onnx_reads_itself_is_taken(folder):
    path = save(folder, PLACES["initializer"](external("w")))
    assert load_model(onnx.load(path)).graph.initializer[0].raw_data == WEIGHTS.tobytes()
