"""ONNX models in a few lines, for tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(*nodes, inputs=None, outputs=("y",), constants=None, dtypes=None, initializers=(), opset=17):
    """A model of nodes (op, inputs, outputs, attributes), each called the_ and its first output."""
    dtypes = dtypes or {}
    graph = helper.make_graph(
        [
            helper.make_node(op, reads, makes, name=f"the_{makes[0]}", **attributes)
            for op, reads, makes, attributes in nodes
        ],
        "small",
        [value(n, s, dtypes.get(n, FLOAT)) for n, s in ({"x": [1, 8]} if inputs is None else inputs).items()],
        [value(n, None, dtypes.get(n, FLOAT)) for n in outputs],
        [*(numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()), *initializers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


WEIGHT = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)


def dense(weight=WEIGHT):
    """y = x @ weight: float32 [1, 8] to [1, 4]."""
    return model(("MatMul", ["x", "w"], ["y"], {}), constants={"w": weight})


def quantized_dense(scale=0.1, weight_scale=0.03, **changed):
    """The same with Q/DQ pairs; `changed` replaces constants."""
    constants = {
        "s": np.float32(scale),
        "z": np.int8(0),
        "w": (WEIGHT * 30).astype(np.int8),
        "ws": np.float32(weight_scale),
        "wz": np.int8(0),
        "ys": np.float32(0.2),
    } | changed
    return model(
        ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
        ("DequantizeLinear", ["w", "ws", "wz"], ["wd"], {}),
        ("MatMul", ["d", "wd"], ["m"], {}),
        ("QuantizeLinear", ["m", "ys", "z"], ["yq"], {}),
        ("DequantizeLinear", ["yq", "ys", "z"], ["y"], {}),
        constants=constants,
    )


def embedding():
    """Rows of a table of 10, then a product: int64 ids [1, 3] to [1, 3, 4]."""
    table = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    return model(
        ("Gather", ["table", "ids"], ["e"], {}),
        ("MatMul", ["e", "w"], ["y"], {}),
        inputs={"ids": [1, 3]},
        dtypes={"ids": TensorProto.INT64},
        constants={"table": table, "w": WEIGHT},
    )


def with_dims(dims):
    """A weight of 1 number that claims the shape `dims`."""
    tensor = helper.make_tensor("w", FLOAT, [1], [1.0])
    tensor.dims[:] = dims
    return tensor


def save(net, path):
    onnx.save(net, str(path))
    return path
