"""Camera images: what precedes the first layer, in any form, folds into it, right to the edges."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto as T
from qcompile.kernels.program import Program
from small_models import model

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import qdq_models

MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((8, 3, 3, 3)) * 0.2).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)
SIZE = 12


def arithmetic(kind, per_channel):
    """Nodes from "f" to "p", and their constants; per_channel: the shape of a constant of one number a channel."""
    mean, std = MEAN.reshape(per_channel), STD.reshape(per_channel)
    return {
        "div sub div": (
            [("Div", ["f", "k"], ["a"], {}), ("Sub", ["a", "m"], ["c"], {}), ("Div", ["c", "d"], ["p"], {})],
            {"k": np.float32(255), "m": mean, "d": std},
        ),
        "mul add": (
            [("Mul", ["f", "k"], ["a"], {}), ("Add", ["m", "a"], ["p"], {})],
            {"k": (1 / 255 / std).astype(np.float32), "m": -mean / std},
        ),
        "sub mul": (
            [("Sub", ["f", "m"], ["a"], {}), ("Mul", ["a", "d"], ["p"], {})],
            {"m": mean * 255, "d": (1 / std / 255).astype(np.float32)},
        ),
        "batch norm": (
            [("BatchNormalization", ["f", "g", "z", "m", "v"], ["p"], {})],
            {"g": np.ones(3, np.float32), "z": np.zeros(3, np.float32), "m": MEAN * 255, "v": (STD * 255) ** 2},
        ),
        "div": ([("Div", ["f", "k"], ["p"], {})], {"k": np.float32(255)}),
        "div sub": (
            [("Div", ["f", "k"], ["a"], {}), ("Sub", ["a", "o"], ["p"], {})],
            {"k": np.float32(127.5), "o": np.float32(1)},
        ),
        "negative": (
            [("Sub", ["k", "f"], ["a"], {}), ("Div", ["a", "k"], ["p"], {})],
            {"k": np.float32(255)},
        ),
    }[kind]


FLIPS = {
    "": ([], {}),
    "gather": ([("Gather", ["p", "order"], ["flipped"], {"axis": 1})], {"order": np.array([2, 1, 0])}),
    "slice": (
        [("Slice", ["p", "from", "to", "axis", "step"], ["flipped"], {})],
        {"from": np.array([-1]), "to": np.array([-4]), "axis": np.array([1]), "step": np.array([-1])},
    ),
    "split": (
        [("Split", ["p"], ["r", "g2", "b2"], {"axis": 1}), ("Concat", ["b2", "g2", "r"], ["flipped"], {"axis": 1})],
        {},
    ),
}


def camera(kind="div sub div", layout="nchw", flip="", pads=1, floats=False, enlarged=False, opset=17):
    """Images of bytes, or of floats from 0 to 255, through preprocessing and a convolution."""
    late = layout == "nhwc, turned late"
    nodes, constants = arithmetic(kind, (1, 1, 1, 3) if late else (1, 3, 1, 1))
    turned, swaps = FLIPS[flip]
    x, y = "x", "flipped" if flip else "p"
    head = []
    if enlarged:
        head.append(("Resize", ["x", "", "by"], ["large"], {"mode": "nearest"}))
        constants["by"], x = np.array([1, 1, 2, 2], np.float32), "large"
    if layout == "nhwc":
        head.append(("Transpose", [x], ["turned"], {"perm": [0, 3, 1, 2]}))
        x = "turned"
    head.append(("Identity" if floats else "Cast", [x], ["f"], {} if floats else {"to": T.FLOAT}))
    tail = [("Transpose", ["p"], ["late"], {"perm": [0, 3, 1, 2]})] if late else [*turned]
    tail.append(("Conv", ["late" if late else y, "w", "bias"], ["y"], {"pads": [pads] * 4}))
    shape = [1, 3, SIZE, SIZE] if layout == "nchw" else [1, SIZE, SIZE, 3]
    return model(
        *head, *nodes, *tail,
        inputs={"x": shape}, dtypes={"x": T.FLOAT if floats else T.UINT8}, opset=opset,
        constants=constants | swaps | {"w": WEIGHT, "bias": BIAS},
    )  # fmt: skip


def images(net, count=10):
    tensor = net.graph.input[0].type.tensor_type
    shape, rng = [d.dim_value for d in tensor.shape.dim], np.random.default_rng(1)
    dtype = np.uint8 if tensor.elem_type == T.UINT8 else np.float32
    waves = [127 + 90 * np.sin(np.arange(np.prod(shape)) / rng.uniform(2, 60)) for _ in range(count)]
    return [(w + rng.normal(0, 12, len(w))).clip(0, 255).astype(np.uint8).reshape(shape).astype(dtype) for w in waves]


def noise(net, folder, target="host"):
    """(loaded artifact, dB of signal to noise inside and at the edges of the result), after comparing bits."""
    samples = images(net)
    built = qcompile.compile(net, target, output=folder, name="camera", calibration=[{"x": x} for x in samples])
    loaded = qcompile.load(built.path)
    session = ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    want, got = [], []
    for x in samples[:4]:
        want.append(session.run(None, {"x": x})[0])
        got.append(loaded.run({"x": x})["y"])
        np.testing.assert_array_equal(got[-1], loaded.reference({"x": x})["y"])
    want, off = np.stack(want), np.stack(got) - np.stack(want)
    edge = np.ones(want.shape[-2:], bool)
    edge[1:-1, 1:-1] = False
    inside, edges = (10 * np.log10((want[..., m] ** 2).mean() / (off[..., m] ** 2).mean()) for m in (~edge, edge))
    return loaded, inside, edges


def arithmetic_before_first_layer(loaded):
    """The integer ops before the first convolution that compute something."""
    program = Program.load(loaded.manifest.folder / "program.npz")
    before = [n.op for n in program.nodes][: [n.op for n in program.nodes].index("conv2d")]
    return [op for op in before if op not in ("cast", "transpose", "slice", "concat", "take", "reshape")]


@pytest.mark.parametrize("kind", ["div sub div", "mul add", "sub mul", "batch norm", "div", "div sub", "negative"])
@pytest.mark.parametrize("floats", [False, True], ids=["uint8", "float"])
def test_arithmetic_on_pixels_costs_nothing(kind, floats, tmp_path):
    loaded, inside, edges = noise(camera(kind, floats=floats), tmp_path)
    assert inside > 42 and edges > 38, f"{inside:.1f} dB inside, {edges:.1f} dB at the edges"
    assert arithmetic_before_first_layer(loaded) == []
    tensor = loaded.inputs[0]
    assert (tensor.dtype, tensor.scale) == (("int8", 1.0) if floats else ("uint8", None))


FORMS = {
    "channels last": {"layout": "nhwc"},
    "channels last, turned late": {"layout": "nhwc, turned late"},
    "gather": {"flip": "gather"},
    "slice": {"flip": "slice"},
    "split": {"flip": "split"},
    "opset 11": {"opset": 11},
    "opset 13": {"opset": 13, "flip": "gather"},
    "enlarged": {"enlarged": True},
    "no padding": {"pads": 0},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_images(form, tmp_path):
    loaded, inside, edges = noise(camera(**FORMS[form]), tmp_path)
    assert inside > 42 and edges > 38, f"{inside:.1f} dB inside, {edges:.1f} dB at the edges"
    assert arithmetic_before_first_layer(loaded) == []


@pytest.mark.parametrize("target", ["arm-a76", "arm-a53", "x86-avx2"])
def test_padding_per_channel_on_all_targets(target, tmp_path):
    _, inside, edges = noise(camera(), tmp_path, target)
    assert inside > 42 and edges > 38, f"{inside:.1f} dB inside, {edges:.1f} dB at the edges"


def test_pixels_of_a_product(tmp_path):
    """No convolution: rows of bytes into a matrix product."""
    weight = RNG.standard_normal((SIZE, 6)).astype(np.float32)
    net = model(
        ("Cast", ["x"], ["f"], {"to": T.FLOAT}),
        ("Div", ["f", "k"], ["a"], {}),
        ("Sub", ["a", "m"], ["p"], {}),
        ("MatMul", ["p", "w"], ["y"], {}),
        inputs={"x": [4, SIZE]}, dtypes={"x": T.UINT8},
        constants={"k": np.float32(255), "m": np.float32(0.45), "w": weight},
    )  # fmt: skip
    samples = images(net)
    built = qcompile.compile(net, output=tmp_path, name="rows", calibration=[{"x": x} for x in samples])
    want, got = samples[0].astype(np.float32) / 255 - 0.45, qcompile.load(built.path).run({"x": samples[0]})["y"]
    want = want @ weight
    assert 10 * np.log10((want**2).mean() / ((got - want) ** 2).mean()) > 40


@pytest.mark.parametrize("per_channel", [False, True])
def test_pixels_are_quantized_once_where_the_model_says_how(per_channel):
    """A Q/DQ model keeps its own grid: one rounding of the whole arithmetic."""
    g = qdq_models.Graph(5)
    x = g.op("Cast", g.input("x", 1, 3, 6, 6, dtype=T.UINT8), to=T.FLOAT)
    x = g.op("Div", x, g.const(np.float32(255)))
    mean, std = (v.reshape(1, 3, 1, 1) if per_channel else v[:1] for v in (MEAN, STD))
    x = g.op("Div", g.op("Sub", x, g.const(mean)), g.const(std))
    x = g.q(x, 4.8 / 255, 114, "uint8")
    net = g.model(g.q(g.op("Conv", x, g.weight(4, 3, 3, 3), pads=[1] * 4), 0.05))
    rng = np.random.default_rng(2)
    qdq_models.check(net, feeds=[{"x": rng.integers(0, 256, (1, 3, 6, 6)).astype(np.uint8)} for _ in range(4)])


def test_codes_read_with_other_parameters():
    """DequantizeLinear says what codes mean, not the QuantizeLinear before it."""
    g = qdq_models.Graph(6)
    codes = g.op("QuantizeLinear", g.input("x", 1, 8), g.const(np.float32(1)), g.const(np.uint8(0)))
    real = g.op("DequantizeLinear", codes, g.const(np.float32(0.5)), g.const(np.uint8(20)))
    net = g.model(g.q(g.op("MatMul", real, g.weight(8, 4, axis=1)), 0.05))
    qdq_models.check(net, feeds=[{"x": np.linspace(0, 250, 8, dtype=np.float32)[None]}])
