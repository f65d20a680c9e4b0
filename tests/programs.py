"""Integer programs built by hand and from small float networks, for tests of the passes."""

import numpy as np
from onnx import TensorProto
from qcompile.frontend import normalise
from qcompile.importer import import_onnx
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.integerize import integerize
from qcompile.quantizer import QuantizeOptions, load_calibration, quantize
from small_models import model

LIMITS = {"zero_point": -5, "qmin": -128, "qmax": 127, "dtype": "int8"}


def rescaled(shift=8, **changed):
    return {"x_zero_point": 0, "shift": shift, "pre": 0, **LIMITS, **changed}


def conv_chain(outputs=("y",)):
    """Conv, requantize, a reshape in the way, a table, a sum with the input."""
    rng = np.random.default_rng(3)
    conv = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "groups": 1, "x_zero_point": 3}
    nodes = [
        Node("c", "conv2d", ("x", "w", "b"), conv),
        Node("r", "requantize", ("c", "m"), rescaled()),
        Node("flat", "reshape", ("r",), {"shape": [36, 4]}),
        Node("t", "lut", ("flat", "table"), {"first": -128}),
        Node("xflat", "reshape", ("x",), {"shape": [36, 4]}),
        Node(
            "y",
            "add",
            ("t", "xflat"),
            {"x_zero_point": 1, "x_multiplier": 900, "r_zero_point": 3, "r_multiplier": -700, "shift": 10, **LIMITS},
        ),
        Node("dead", "reshape", ("c",), {"shape": [144]}),
    ]
    constants = {
        "w": rng.integers(-127, 128, (4, 3, 3, 4)).astype(np.int8),
        "b": rng.integers(-999, 999, 4).astype(np.int32),
        "m": rng.integers(2**28, 2**29, 4).astype(np.int32),
        "table": rng.permutation(256).astype(np.uint8).view(np.int8),
    }
    return Program({"x": Type((1, 6, 6, 4), "int8")}, list(outputs), constants, nodes)


def feeds(program, seed=0, high=None):
    """Random integers over the whole range of each input's type, or below `high`."""
    rng = np.random.default_rng(seed)
    return {
        n: rng.integers(
            np.iinfo(t.dtype).min if high is None else 0, high or np.iinfo(t.dtype).max + 1, t.shape
        ).astype(t.dtype)
        for n, t in program.inputs.items()
    }


def from_float(net):
    """The integer program of a float network, calibrated on noise, before any tidying."""
    notes = []
    loaded = normalise(net, {}, notes)
    qdq = normalise(quantize(loaded, load_calibration(None, loaded), QuantizeOptions(), notes), {}, notes)
    imported = import_onnx(qdq)
    return integerize(imported.module, imported.names, imported.outputs, "exact")


def weights(*shape):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def residual_net():
    """Convolutions, depthwise too, pooling, a residual sum and a classifier."""
    return model(
        ("Conv", ["x", "w0"], ["c0"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c0"], ["r0"], {}),
        ("Conv", ["r0", "w1"], ["c1"], {"pads": [1, 1, 1, 1], "group": 8}),
        ("Add", ["c1", "r0"], ["a"], {}),
        ("HardSwish", ["a"], ["h"], {}),
        ("MaxPool", ["h"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", ["p"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("MatMul", ["f", "w2"], ["y"], {}),
        inputs={"x": [1, 3, 8, 8]},
        constants={"w0": weights(8, 3, 3, 3), "w1": weights(8, 1, 3, 3), "w2": weights(8, 5)},
    )


def attention_net():
    """Masked attention over embeddings with its layer normalisation; ids and mask are inputs."""
    return model(
        ("Gather", ["table", "ids"], ["e"], {}),
        ("LayerNormalization", ["e", "g", "b"], ["n"], {"axis": -1}),
        *(("MatMul", ["n", f"w{p}"], [p], {}) for p in "qkv"),
        ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], ["s"], {}),
        ("Cast", ["mask"], ["mf"], {"to": 1}),
        ("Sub", ["one", "mf"], ["mi"], {}),
        ("Mul", ["mi", "big"], ["mb"], {}),
        ("Add", ["s", "mb"], ["sm"], {}),
        ("Softmax", ["sm"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "v"], ["u"], {}),
        ("MatMul", ["u", "wo"], ["o"], {}),
        ("Add", ["e", "o"], ["y"], {}),
        inputs={"ids": [1, 6], "mask": [1, 1, 6]},
        dtypes={"ids": TensorProto.INT64, "mask": TensorProto.INT64},
        constants={
            "table": weights(10, 16),
            "g": np.ones(16, np.float32),
            "b": np.zeros(16, np.float32),
            "wq": weights(16, 16),
            "wk": weights(16, 17)[:, 1:],
            "wv": weights(16, 18)[:, 2:],
            "wo": weights(16, 19)[:, 3:],
            "one": np.float32(1),
            "big": np.float32(-1e4),
        },
    )


NETS = {"residual": residual_net, "attention": attention_net}
