"""Every algebraic form of a normalisation is read as the ONNX operator, and computes the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from qcompile.frontend import normalise
from small_models import model

ort.set_default_logger_severity(3)
SHAPE = (2, 6, 16)
EPS = np.float32(1e-3)
AXIS, SCALE = np.array([-1]), np.linspace(0.5, 2, 16, dtype=np.float32)
BIAS = np.linspace(-1, 1, 16, dtype=np.float32)
CONSTANTS = {"eps": EPS, "axis": AXIS, "g": SCALE, "b": BIAS, "two": np.float32(2), "half": np.float32(0.5),
             "minus": np.float32(-0.5), "one": np.float32(1), "zero": np.float32(0), "n": np.float32(16),
             "less": np.float32(16 / 15), "small": np.float32(1e-6), "column": np.array([2, 6, 1]),
             "minus_one": np.float32(-1)}  # fmt: skip

MEAN = [("ReduceMean", ["x", "axis"], ["m"], {})]
CENTRED = [*MEAN, ("Sub", ["x", "m"], ["d"], {})]
SQUARES = {
    "pow": [*CENTRED, ("Pow", ["d", "two"], ["dd"], {}), ("ReduceMean", ["dd", "axis"], ["v"], {})],
    "mul": [*CENTRED, ("Mul", ["d", "d"], ["dd"], {}), ("ReduceMean", ["dd", "axis"], ["v"], {})],
    "sum": [*CENTRED, ("ReduceSumSquare", ["d", "axis"], ["s"], {}), ("Div", ["s", "n"], ["v"], {})],
    "unbiased": [*CENTRED, ("Mul", ["d", "d"], ["dd"], {}), ("ReduceMean", ["dd", "axis"], ["u"], {}),
                 ("Mul", ["u", "less"], ["v"], {})],
    "moments": [*CENTRED, ("Mul", ["x", "x"], ["xx"], {}), ("ReduceMean", ["xx", "axis"], ["q"], {}),
                ("Mul", ["m", "m"], ["mm"], {}), ("Sub", ["q", "mm"], ["v"], {})],
    "guarded": [*CENTRED, ("Mul", ["x", "x"], ["xx"], {}), ("ReduceMean", ["xx", "axis"], ["q"], {}),
                ("Pow", ["m", "two"], ["mm"], {}), ("Sub", ["q", "mm"], ["w"], {}), ("Max", ["w", "zero"], ["v"], {})],
    "relu": [*CENTRED, ("Mul", ["x", "x"], ["xx"], {}), ("ReduceMean", ["xx", "axis"], ["q"], {}),
             ("Mul", ["m", "m"], ["mm"], {}), ("Sub", ["q", "mm"], ["w"], {}), ("Relu", ["w"], ["v"], {})],
    "flat": [("ReduceMean", ["x", "axis"], ["m0"], {"keepdims": 0}), ("Reshape", ["m0", "column"], ["m"], {}),
             ("Sub", ["x", "m"], ["d"], {}), ("Mul", ["x", "x"], ["xx"], {}),
             ("ReduceMean", ["xx", "axis"], ["q"], {"keepdims": 0}), ("Mul", ["m0", "m0"], ["mm"], {}),
             ("Sub", ["q", "mm"], ["w"], {}), ("Max", ["w", "zero"], ["c"], {}),
             ("Reshape", ["c", "column"], ["v"], {})],
    "rms": [("Mul", ["x", "x"], ["xx"], {}), ("ReduceMean", ["xx", "axis"], ["v"], {}),
            ("Mul", ["x", "one"], ["d"], {})],
}  # fmt: skip
ROOTS = {
    "div sqrt": [("Add", ["v", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}), ("Div", ["d", "r"], ["t"], {}),
                 ("Mul", ["t", "g"], ["s1"], {})],
    "reciprocal": [("Add", ["eps", "v"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}), ("Reciprocal", ["r"], ["i"], {}),
                   ("Mul", ["i", "d"], ["t"], {}), ("Mul", ["g", "t"], ["s1"], {})],
    "scale first": [("Add", ["v", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}), ("Reciprocal", ["r"], ["i"], {}),
                    ("Mul", ["i", "g"], ["t"], {}), ("Mul", ["d", "t"], ["s1"], {})],
    "power": [("Add", ["v", "eps"], ["e"], {}), ("Pow", ["e", "minus"], ["i"], {}), ("Mul", ["d", "g"], ["t"], {}),
              ("Mul", ["t", "i"], ["s1"], {})],
    "one over": [("Add", ["v", "eps"], ["e"], {}), ("Pow", ["e", "half"], ["r"], {}), ("Div", ["one", "r"], ["i"], {}),
                 ("Mul", ["d", "i"], ["t"], {}), ("Mul", ["t", "g"], ["s1"], {})],
    "behind the root": [("Sqrt", ["v"], ["r0"], {}), ("Add", ["r0", "small"], ["r"], {}),
                        ("Div", ["d", "r"], ["t"], {}), ("Mul", ["t", "g"], ["s1"], {})],
    "scaled before": [("Mul", ["d", "g"], ["t"], {}), ("Add", ["v", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}),
                      ("Div", ["t", "r"], ["s1"], {})],
}  # fmt: skip
BEHIND = {"bias": [("Add", ["s1", "b"], ["y"], {})], "bias first": [("Add", ["b", "s1"], ["y"], {})],
          "less": [("Sub", ["s1", "b"], ["y"], {})], "none": [("Mul", ["s1", "minus_one"], ["y"], {})]}  # fmt: skip


def run(net, x):
    return ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def fused(nodes, kind, shape=SHAPE, **constants):
    """The kinds of nodes after normalisation, which must compute the same."""
    net = model(*nodes, inputs={"x": list(shape)}, constants=CONSTANTS | constants, opset=18)
    normal = normalise(net)
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32) * 2 + 0.5
    assert np.allclose(run(net, x), run(normal, x), rtol=1e-3, atol=1e-3)
    kinds = [n.op_type for n in normal.graph.node]
    assert kind in kinds and not {"Sqrt", "Reciprocal", "ReduceMean", "Pow", "Div"} & set(kinds), kinds
    return kinds


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
def test_forms_of_layer_norm(square, root):
    kind = "RMSNormalization" if square == "rms" else "LayerNormalization"
    for behind in BEHIND.values():
        fused([*SQUARES[square], *ROOTS[root], *behind], kind)


def test_tensorflows_form():
    """x * a + (beta - mean * a), a = gamma / deviation."""
    fused([*MEAN, ("Sub", ["x", "m"], ["d"], {}), ("Mul", ["d", "d"], ["dd"], {}),
           ("ReduceMean", ["dd", "axis"], ["v"], {}), ("Add", ["v", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}),
           ("Reciprocal", ["r"], ["i"], {}), ("Mul", ["i", "g"], ["a"], {}), ("Mul", ["x", "a"], ["xa"], {}),
           ("Mul", ["m", "a"], ["ma"], {}), ("Sub", ["b", "ma"], ["o"], {}), ("Add", ["xa", "o"], ["y"], {})],
          "LayerNormalization")  # fmt: skip


def test_sums_as_jax_writes_them():
    """Over axis 1, sums without it times 1 / n, the factor with gamma in it."""
    fused([("ReduceSum", ["x", "axis"], ["s"], {"keepdims": 0}), ("Mul", ["s", "n"], ["m0"], {}),
           ("Reshape", ["m0", "row"], ["m"], {}), ("Sub", ["x", "m"], ["d"], {}), ("Mul", ["x", "x"], ["xx"], {}),
           ("ReduceSum", ["xx", "axis"], ["s2"], {"keepdims": 0}), ("Mul", ["s2", "n"], ["q"], {}),
           ("Mul", ["m0", "m0"], ["mm"], {}), ("Sub", ["q", "mm"], ["w"], {}), ("Max", ["zero", "w"], ["c"], {}),
           ("Reshape", ["c", "row"], ["v"], {}), *ROOTS["scale first"], *BEHIND["bias"]], "LayerNormalization",
          axis=np.array([1]), row=np.array([2, 1, 16]), n=np.float32(1 / 6), g=SCALE[:6, None],
          b=BIAS[:6, None])  # fmt: skip


@pytest.mark.parametrize("form", ["div", "mul", "plain", "log"])
def test_softmax_of_exponentials(form):
    shifted = [("ReduceMax", ["x", "axis"], ["h0"], {"keepdims": 0}), ("Max", ["low", "h0"], ["h1"], {}),
               ("Reshape", ["h1", "column"], ["h"], {}), ("Sub", ["x", "h"], ["u"], {})]  # fmt: skip
    nodes = [*shifted, ("Exp", ["u"], ["e"], {}), ("ReduceSum", ["e", "axis"], ["s0"], {"keepdims": 0}),
             ("Reshape", ["s0", "column"], ["s"], {})]  # fmt: skip
    ends = {"div": [("Div", ["e", "s"], ["y"], {})], "log": [("Log", ["s"], ["l"], {}), ("Sub", ["u", "l"], ["y"], {})],
            "mul": [("Reciprocal", ["s"], ["i"], {}), ("Mul", ["i", "e"], ["y"], {})],
            "plain": [("Div", ["e", "s"], ["y"], {})]}  # fmt: skip
    if form == "plain":
        nodes = [("Exp", ["x"], ["e"], {}), *nodes[-2:]]
    kind = "LogSoftmax" if form == "log" else "Softmax"
    kinds = fused([*nodes, *ends[form]], kind, low=np.float32(-1e30), axis=AXIS)
    assert kinds == [kind]


@pytest.mark.parametrize("axes, shape, affine, kind", [
    ([1], (2, 8, 4, 5), (8, 1, 1), "LayerNormalization"), ([2, 3], (2, 8, 4, 5), (8, 1, 1), "InstanceNormalization"),
    ([1, 2], (2, 6, 16), (6, 16), "LayerNormalization"), ([2, 3], (2, 8, 4, 5), (4, 5), "LayerNormalization"),
])  # fmt: skip
def test_axes(axes, shape, affine, kind):
    rng = np.random.default_rng(3)
    g, b = rng.uniform(0.5, 2, affine).astype(np.float32), rng.standard_normal(affine).astype(np.float32)
    nodes = [*SQUARES["guarded"], *ROOTS["reciprocal"], *BEHIND["bias"]]
    kinds = fused(nodes, kind, shape, axis=np.array(axes), g=g, b=b)
    assert kinds.count("Transpose") == (2 if axes == [1] else 0)


def test_casts_do_not_hide_it():
    to = lambda kind: {"to": kind}  # noqa: E731
    fused([("Cast", ["x"], ["xd"], to(TensorProto.DOUBLE)), ("ReduceMean", ["xd", "axis"], ["m"], {}),
           ("Sub", ["xd", "m"], ["d"], {}), ("Mul", ["d", "d"], ["dd"], {}), ("ReduceMean", ["dd", "axis"], ["v"], {}),
           ("Cast", ["v"], ["vf"], to(1)), ("Add", ["vf", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}),
           ("Cast", ["d"], ["df"], to(1)), ("Div", ["df", "r"], ["y"], {})], "LayerNormalization")  # fmt: skip


@pytest.mark.parametrize("change", ["other mean", "large epsilon", "other axes"])
def test_what_is_none_stays(change):
    nodes = [*SQUARES["moments"], *ROOTS["div sqrt"], *BEHIND["bias"]]
    if change == "other mean":
        nodes = [("Mul", ["x", "half"], ["h"], {}), ("ReduceMean", ["h", "axis"], ["m"], {}), *nodes[1:]]
    elif change == "large epsilon":
        nodes = [*SQUARES["pow"], ("Sqrt", ["v"], ["r0"], {}), ("Add", ["r0", "half"], ["r"], {}),
                 ("Div", ["d", "r"], ["y"], {})]  # fmt: skip
    else:
        nodes = [("ReduceMean", ["x", "first"], ["m"], {}), *nodes[1:]]
    net = model(*nodes, inputs={"x": [2, 16, 16]}, constants=CONSTANTS | {"first": np.array([1])}, opset=18)
    assert "LayerNormalization" not in {n.op_type for n in normalise(net).graph.node}
