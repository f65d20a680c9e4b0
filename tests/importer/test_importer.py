"""Importing keeps names, reads every padding, and refuses by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.importer import import_onnx
from qcompile.targets.errors import CompileError


def model(kind, shape, constants=(), outputs=1, extra_inputs=(), opset=21, **attrs):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    names = ["x"]
    weights = []
    for i, c in enumerate(constants):
        names.append("" if c is None else f"c{i}")
        if c is not None:
            weights.append(numpy_helper.from_array(np.asarray(c), f"c{i}"))
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, names, results, name="the_node", **attrs)
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info(r, TensorProto.FLOAT, None) for r in results], weights
    )
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def calls(imported):
    return [
        b.value.op.name
        for block in imported.module["main"].body.blocks
        for b in block.bindings
        if hasattr(b.value, "op")
    ]


def output_shape(imported):
    return [int(i) for i in imported.module["main"].ret_ty.shape]


def test_every_variable_knows_its_node():
    imported = import_onnx(model("Clip", (2, 3), [np.float32(-1), np.float32(1)]))
    variables = [
        b.var.name for block in imported.module["main"].body.blocks for b in block.bindings if hasattr(b.value, "op")
    ]
    assert variables and all(imported.names[v] == "node Clip 'the_node'" for v in variables)
    assert imported.names[imported.module["main"].params[0].name] == "x" and imported.outputs == ["y0"]


@pytest.mark.parametrize("auto, want", [("SAME_UPPER", 5), ("SAME_LOWER", 5), ("VALID", 4), ("NOTSET", 4)])
def test_auto_pad_of_a_convolution(auto, want):
    imported = import_onnx(
        model("Conv", (1, 4, 10, 10), [np.zeros((6, 4, 3, 3), np.float32)], auto_pad=auto, strides=[2, 2])
    )
    assert output_shape(imported) == [1, 6, want, want] and calls(imported) == ["relax.nn.conv2d"]


def test_output_shape_of_a_transposed_convolution():
    imported = import_onnx(
        model(
            "ConvTranspose", (1, 4, 5, 5), [np.zeros((4, 6, 3, 3), np.float32)], strides=[2, 2], output_shape=[10, 10]
        )
    )
    assert output_shape(imported) == [1, 6, 10, 10]


@pytest.mark.parametrize(
    "kind, constants, attrs, length",
    [
        ("ConvTranspose", [np.zeros((4, 6, 3), np.float32), np.zeros(6, np.float32)], {"strides": [2]}, 21),
        ("MaxPool", [], {"kernel_shape": [2], "strides": [2]}, 5),
        ("AveragePool", [], {"kernel_shape": [3], "pads": [1, 1]}, 10),
    ],
)
def test_sequences_are_images_of_height_one(kind, constants, attrs, length):
    imported = import_onnx(model(kind, (1, 4, 10), constants, **attrs))
    assert output_shape(imported)[2] == length and calls(imported)[0] == "relax.expand_dims"


def test_negative_pads_crop():
    imported = import_onnx(model("Pad", (1, 8), [np.array([0, -2, 0, 3])]))
    assert calls(imported) == ["relax.strided_slice", "relax.nn.pad"] and output_shape(imported) == [1, 9]


@pytest.mark.parametrize(
    "kind, constants, attrs, words",
    [
        ("Pad", [np.array([0, 1, 0, 1])], {"mode": "wrap"}, "mode wrap"),
        ("ArgMax", [], {"select_last_index": 1}, "select_last_index"),
        ("Det", [], {}, "Det"),
    ],
)
def test_refusals_name_the_node(kind, constants, attrs, words):
    with pytest.raises(CompileError, match="the_node") as caught:
        import_onnx(model(kind, (4, 4), constants, **attrs))
    assert words in str(caught.value)
