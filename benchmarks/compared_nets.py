"""The networks of `compare_libraries`: small ones, which between them take every family of kernels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto
from programs import attention_net, residual_net, weights
from small_models import model


def separable() -> onnx.ModelProto:
    """A stem with stride, depthwise convolutions of 3 and 5 taps, pointwise ones, a squeeze-and-excite gate."""
    return model(
        ("Conv", ["x", "w0"], ["c0"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Clip", ["c0", "zero", "six"], ["r0"], {}),
        ("Conv", ["r0", "d3"], ["c1"], {"pads": [1, 1, 1, 1], "group": 16}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "p1"], ["c2"], {}),
        ("HardSwish", ["c2"], ["r2"], {}),
        ("Conv", ["r2", "d5"], ["c3"], {"pads": [2, 2, 2, 2], "group": 40, "strides": [2, 2]}),
        ("GlobalAveragePool", ["c3"], ["g"], {}),
        ("Conv", ["g", "s"], ["gate"], {}),
        ("HardSigmoid", ["gate"], ["hs"], {}),
        ("Mul", ["c3", "hs"], ["scaled"], {}),
        ("Conv", ["scaled", "grouped"], ["c4"], {"pads": [1, 1, 1, 1], "group": 4}),
        ("AveragePool", ["c4"], ["y"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        inputs={"x": [1, 3, 32, 32]},
        constants={
            "w0": weights(16, 3, 3, 3),
            "zero": np.float32(0),
            "six": np.float32(6),
            "d3": weights(16, 1, 3, 3),
            "p1": weights(40, 16, 1, 1),
            "d5": weights(40, 1, 5, 5),
            "s": weights(40, 40, 1, 1),
            "grouped": weights(24, 10, 3, 3),
        },
    )


def perceptron() -> onnx.ModelProto:
    """Dense layers of odd sizes with GELU and a softmax."""
    return model(
        ("Gemm", ["x", "w0", "b0"], ["a"], {}),
        ("Gelu", ["a"], ["h"], {"approximate": "tanh"}),
        ("Gemm", ["h", "w1", "b1"], ["b"], {}),
        ("Softmax", ["b"], ["y"], {"axis": -1}),
        inputs={"x": [5, 70]},
        constants={"w0": weights(70, 131), "b0": weights(131), "w1": weights(131, 17), "b1": weights(17)},
        opset=20,
    )


def encoder() -> onnx.ModelProto:
    """A transformer's layer of two heads, its products of activations, its norms and its feed-forward part."""
    heads = (("Reshape", [p, "heads"], [f"{p}h"], {}) for p in "qkv")
    split = (("Transpose", [f"{p}h"], [f"{p}t"], {"perm": [0, 2, 1, 3]}) for p in "qv")
    return model(
        *(("MatMul", ["x", f"w{p}"], [p], {}) for p in "qkv"),
        *heads,
        *split,
        ("Transpose", ["kh"], ["kt"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["qt", "kt"], ["s"], {}),
        ("Softmax", ["s"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "vt"], ["o"], {}),
        ("Transpose", ["o"], ["ot"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["ot", "flat"], ["of"], {}),
        ("MatMul", ["of", "wo"], ["a"], {}),
        ("Add", ["a", "x"], ["r"], {}),
        ("LayerNormalization", ["r", "g", "b"], ["n"], {"axis": -1}),
        ("MatMul", ["n", "up"], ["u"], {}),
        ("Gelu", ["u"], ["h"], {}),
        ("MatMul", ["h", "down"], ["d"], {}),
        ("Add", ["d", "n"], ["y"], {}),
        inputs={"x": [1, 10, 32]},
        constants={
            **{f"w{p}": weights(32, 32 + i)[:, i:] for i, p in enumerate("qkvo")},
            "heads": np.array([1, 10, 2, 16]),
            "flat": np.array([1, 10, 32]),
            "g": np.ones(32, np.float32),
            "b": weights(32),
            "up": weights(32, 64),
            "down": weights(64, 32),
        },
        opset=20,
    )


def recurrent() -> onnx.ModelProto:
    """An LSTM that feeds a GRU that goes both ways, and that a plain cell."""
    return model(
        ("LSTM", ["x", "lw", "lr", "lb"], ["l"], {"hidden_size": 12}),
        ("Squeeze", ["l", "one"], ["ls"], {}),
        ("GRU", ["ls", "gw", "gr"], ["g"], {"hidden_size": 8, "direction": "bidirectional", "linear_before_reset": 1}),
        ("Transpose", ["g"], ["gt"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["gt", "flat"], ["gf"], {}),
        ("RNN", ["gf", "rw", "rr"], ["r"], {"hidden_size": 8, "direction": "reverse"}),
        ("Squeeze", ["r", "one"], ["rs"], {}),
        ("MatMul", ["rs", "wo"], ["y"], {}),
        inputs={"x": [6, 2, 10]},
        constants={
            "lw": weights(1, 48, 10),
            "lr": weights(1, 48, 12) / 3,
            "lb": weights(1, 96),
            "one": np.array([1]),
            "gw": weights(2, 24, 12),
            "gr": weights(2, 24, 8) / 3,
            "flat": np.array([6, 2, 16]),
            "rw": weights(1, 8, 16),
            "rr": weights(1, 8, 8) / 3,
            "wo": weights(8, 4),
        },
    )


def chain() -> onnx.ModelProto:
    """Many elementwise ops behind one product, of two operands and of one, with broadcast ones; a product of two
    activations."""
    return model(
        ("MatMul", ["x", "w"], ["m"], {}),
        ("Sigmoid", ["m"], ["s"], {}),
        ("Mul", ["m", "s"], ["silu"], {}),
        ("Add", ["silu", "r"], ["a"], {}),
        ("Tanh", ["a"], ["t"], {}),
        ("Sub", ["t", "row"], ["d"], {}),
        ("PRelu", ["d", "slope"], ["p"], {}),
        ("Exp", ["p"], ["e"], {}),
        ("Sqrt", ["e"], ["q"], {}),
        ("Div", ["q", "c"], ["v"], {}),
        ("Max", ["v", "t"], ["z"], {}),
        ("Transpose", ["r"], ["rt"], {"perm": [1, 0]}),
        ("MatMul", ["z", "rt"], ["y"], {}),
        inputs={"x": [4, 24], "r": [4, 20], "row": [4, 1]},
        constants={"w": weights(24, 20), "slope": np.abs(weights(20)), "c": np.abs(weights(20)) + 1},
    )


def four_bits() -> onnx.ModelProto:
    """Weights of 4 bits: convolution, depthwise convolution and products, between layers of 8."""
    return model(
        ("Conv", ["x", "w0"], ["c0"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c0"], ["r0"], {}),
        ("Conv", ["r0", "w1"], ["c1"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "d"], ["c2"], {"pads": [1, 1, 1, 1], "group": 32}),
        ("Relu", ["c2"], ["r2"], {}),
        ("Flatten", ["r2"], ["f"], {}),
        ("MatMul", ["f", "m0"], ["h"], {}),
        ("Relu", ["h"], ["r3"], {}),
        ("MatMul", ["r3", "m1"], ["y"], {}),
        inputs={"x": [1, 4, 6, 6]},
        constants={
            "w0": weights(32, 4, 3, 3),
            "w1": weights(32, 32, 3, 3),
            "d": weights(32, 1, 3, 3),
            "m0": weights(1152, 64),
            "m1": weights(64, 10),
        },
    )


def movement() -> onnx.ModelProto:
    """What moves, reduces, selects and interpolates."""
    return model(
        ("Resize", ["x", "", "scales"], ["big"], {"mode": "linear"}),
        ("Pad", ["big", "pads"], ["p"], {"mode": "reflect"}),
        ("MaxPool", ["p"], ["m"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("Slice", ["m", "from", "to", "axes", "by"], ["s"], {}),
        ("Concat", ["m", "s"], ["c"], {"axis": 1}),
        ("ReduceMean", ["c"], ["r"], {"axes": [2, 3], "keepdims": 1}),
        ("InstanceNormalization", ["c", "g", "b"], ["n"], {}),
        ("Sub", ["n", "r"], ["d"], {}),
        ("Less", ["d", "zero"], ["less"], {}),
        ("Where", ["less", "r", "n"], ["w"], {}),
        ("ReduceMax", ["w"], ["top"], {"axes": [3], "keepdims": 0}),
        ("LogSoftmax", ["top"], ["y"], {"axis": -1}),
        ("ArgMax", ["top"], ["best"], {"axis": -1}),
        inputs={"x": [1, 4, 6, 6]},
        outputs=("y", "best"),
        dtypes={"best": TensorProto.INT64},
        constants={
            "scales": np.array([1, 1, 2, 2], np.float32),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "from": np.array([0]),
            "to": np.array([4]),
            "axes": np.array([1]),
            "by": np.array([2]),
            "g": np.ones(6, np.float32),
            "b": weights(6),
            "zero": np.float32(0),
        },
        opset=13,
    )


def integers() -> onnx.ModelProto:
    """Arithmetic on integers that the graph declares, rows taken and placed by number."""
    return model(
        ("Add", ["ids", "one"], ["next"], {}),
        ("Mod", ["next", "ten"], ["m"], {}),
        ("Gather", ["table", "m"], ["e"], {}),
        ("MatMul", ["e", "w"], ["h"], {}),
        ("TopK", ["h", "k"], ["values", "numbers"], {"axis": -1}),
        ("Mul", ["numbers", "one"], ["scaled"], {}),
        ("ScatterND", ["base", "place", "m"], ["placed"], {}),
        inputs={"ids": [6], "place": [6, 1]},
        outputs=("values", "scaled", "placed"),
        dtypes={n: TensorProto.INT64 for n in ("ids", "place", "scaled", "placed")},
        constants={
            "one": np.array(1),
            "ten": np.array(10),
            "table": weights(10, 12),
            "w": weights(12, 9),
            "k": np.array([3]),
            "base": np.zeros(8, np.int64),
        },
    )


NETS = {
    "residual": residual_net,
    "separable": separable,
    "perceptron": perceptron,
    "attention": attention_net,
    "encoder": encoder,
    "recurrent": recurrent,
    "chain": chain,
    "four_bits": four_bits,
    "movement": movement,
    "integers": integers,
}
