"""Weights and activations of few bits: codes, learned rounding, embedding tables, whole nets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import normalise
from qcompile.frontend.graph import Graph
from qcompile.quantizer import LayerBits, QuantizeOptions, find_layers, quantize, uniform_bits
from qcompile.quantizer.columns import Columns
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import Histogram, choose_narrow
from qcompile.quantizer.prepare import prepare
from qcompile.quantizer.rounding import damped, descend, gptq, learn
from qcompile.quantizer.weights import choose_steps, narrow_weight, quantize_table


def model_of(nodes, inputs, outputs, constants, types=None):
    info = lambda n, s: helper.make_tensor_value_info(n, (types or {}).get(n, TensorProto.FLOAT), s)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node(t, i, o, name=o[0], **a) for t, i, o, a in nodes],
        "narrow",
        [info(n, s) for n, s in inputs.items()],
        [info(n, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return normalise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def weights_of(rng, *shape):
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def conv_net(rng):
    nodes = [("Conv", ["x", "w0"], ["c0"], {"pads": [1, 1, 1, 1]}), ("Relu", ["c0"], ["r0"], {}),
             ("Conv", ["r0", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
             ("Relu", ["c1"], ["r1"], {}),
             ("Conv", ["r1", "w2"], ["c2"], {"group": 2}), ("Relu", ["c2"], ["r2"], {}),
             ("GlobalAveragePool", ["r2"], ["g"], {}), ("Flatten", ["g"], ["f"], {}),
             ("MatMul", ["f", "w3"], ["m"], {}), ("Relu", ["m"], ["rm"], {}),
             ("Gemm", ["rm", "w4"], ["y"], {})]  # fmt: skip
    shapes = {"w0": (32, 3, 3, 3), "w1": (64, 32, 3, 3), "w2": (64, 32, 1, 1), "w3": (64, 64), "w4": (64, 10)}
    constants = {k: weights_of(rng, *s) for k, s in shapes.items()} | {"b1": rng.standard_normal(64).astype(np.float32)}
    constants["w3"], constants["w4"] = constants["w3"] * 3, constants["w4"] * 3
    return model_of(nodes, {"x": [1, 3, 12, 12]}, {"y": [1, 10]}, constants)


def images(rng, count):
    """Correlated inputs: neighbouring pixels and channels are alike, as in photographs."""
    x = rng.standard_normal((count, 1, 3, 12, 12)).cumsum(-1).cumsum(-2) + rng.standard_normal((count, 1, 1, 12, 12))
    return [{"x": (v / 4).astype(np.float32)} for v in x]


def run(model, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)[0]


def snr(model, quantized, feeds):
    pairs = [(run(model, f), run(quantized, f)) for f in feeds]
    return 10 * np.log10(sum((a**2).sum() for a, _ in pairs) / sum(((a - b) ** 2).sum() for a, b in pairs))


def layers_of(model):
    graph = Graph(model)
    prepare(graph)
    return find_layers(graph)


def rows_and_weights(rng, rows=4000, inputs=64, outputs=24):
    mix = rng.standard_normal((inputs, inputs)) @ np.diag(np.geomspace(1, 0.02, inputs))
    x = np.maximum(rng.standard_normal((rows, inputs)) @ mix, 0).astype(np.float32)
    return x, weights_of(rng, outputs, inputs)


def test_learned_rounding_beats_rounding_to_nearest():
    x, w = rows_and_weights(np.random.default_rng(0))
    h = damped(x.T @ x / len(x))
    steps = np.broadcast_to(np.abs(w).max(1, keepdims=True) / 7, w.shape).astype(np.float32)
    error = lambda v: float(((x @ (w - v).T) ** 2).mean())  # noqa: E731
    nearest, greedy = np.rint(w / steps), gptq(w, h, steps, 7)
    codes, gain = learn(w, h, steps, 7)
    assert np.abs(greedy).max() <= 7 and np.abs(codes).max() <= 7 and codes.dtype == np.int8
    assert error(greedy * steps) < 0.5 * error(nearest * steps)
    assert error(codes * steps * gain[:, None]) < 0.97 * error(greedy * steps)


def test_descent_never_raises_the_error():
    rng = np.random.default_rng(1)
    x, w = rows_and_weights(rng, inputs=200)
    h = damped(x.T @ x / len(x))
    steps = np.full_like(w, np.abs(w).max() / 7)
    codes = np.rint(w / steps)
    loss = lambda: float(np.einsum("nk,kj,nj->", w - codes * steps, h, w - codes * steps))  # noqa: E731
    losses = [loss()]
    while descend(w, h, steps, codes, 7) and len(losses) < 30:
        losses.append(loss())
    assert all(b <= a * 1.0001 for a, b in pairwise(losses)) and losses[-1] < losses[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [0, 32])
def test_steps_are_integer_multiples(bits, group):
    rng = np.random.default_rng(2)
    w = rng.standard_normal((6, 64, 9)).astype(np.float32) * np.geomspace(1, 8, 64).reshape(1, 64, 1).astype(np.float32)
    scale, m = choose_steps(w, np.ones((64, 9), np.float32), bits, group)
    qmax = 2 ** (bits - 1) - 1
    assert scale.shape == (6,) and m.shape == ((6, 2, 9) if group else (6, 1, 1))
    assert m.min() >= 1 and m.max() * qmax <= 127
    steps = scale[:, None, None] * m.repeat(64 // m.shape[1], 1)
    error = ((w - np.clip(np.rint(w / steps), -qmax, qmax) * steps) ** 2).sum()
    plain = np.abs(w).max((1, 2), keepdims=True) / qmax
    assert error < ((w - np.rint(w / plain) * plain) ** 2).sum()


CASES = [
    ("Conv", (6, 32, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 1], "dilations": [1, 2]}, (2, 32, 9, 8)),
    ("Conv", (8, 16, 5), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2]}, (1, 32, 11)),
    ("MatMul", (32, 7), {}, (2, 5, 32)),
    ("Gemm", (7, 32), {"transB": 1}, (4, 32)),
    ("Gemm", (32, 7), {}, (4, 32)),
]


@pytest.mark.parametrize(("op", "shape", "attributes", "data"), CASES)
def test_rows_times_matrix_is_the_layer(op, shape, attributes, data):
    rng = np.random.default_rng(3)
    w, x = weights_of(rng, *shape), rng.standard_normal(data).astype(np.float32)
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    columns = Columns.of(node, w)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, data)],
                              [helper.make_tensor_value_info("y", 1, None)],
                              [numpy_helper.from_array(w, "w")])  # fmt: skip
    y = run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), {"x": x})
    matrix = columns.matrix(w)
    np.testing.assert_array_equal(columns.weight(matrix), w)
    rows = columns.rows(x, 10**6, rng)
    assert rows.shape[2] == columns.depth
    product = np.einsum("gpk,gnk->pgn", rows, matrix.reshape(*matrix.shape[:2], -1)).reshape(rows.shape[1], -1)
    want = np.moveaxis(y, 1, -1) if op == "Conv" else y
    np.testing.assert_allclose(product, want.reshape(rows.shape[1], -1), rtol=1e-4, atol=1e-5)
    assert columns.rows(x, 3, rng).shape[1] == 3


def test_groups_keep_the_layout():
    rng = np.random.default_rng(4)
    for op, shape, attributes in [
        ("Conv", (5, 64, 3, 3), {}),
        ("MatMul", (64, 5), {}),
        ("Gemm", (5, 64), {"transB": 1}),
    ]:
        w = weights_of(rng, *shape)
        columns = Columns.of(helper.make_node(op, ["x", "w"], ["y"], **attributes), w)
        matrix = columns.matrix(w)
        scale, m = choose_steps(matrix[0], np.ones((64, matrix.shape[3])), 4, 32)
        codes = np.rint(matrix / (scale[:, None, None] * m.repeat(32, 1))).astype(np.int8)
        q = narrow_weight(columns, codes, scale, m[None], LayerBits(4, 8, 32))
        assert q.codes.shape == shape and np.abs(q.dequantized() - w).max() < 0.2 * np.abs(w).max()


@pytest.mark.parametrize("limit", [127, 255 * 8])
def test_tables(limit):
    table = np.random.default_rng(5).standard_normal((300, 64)).astype(np.float32)
    table *= np.geomspace(0.2, 3, 300).reshape(-1, 1).astype(np.float32)
    q = quantize_table(table, LayerBits(4, 8, 32), limit)
    assert q.multipliers.shape == (300, 2) and q.scale.size == 1 and np.abs(q.codes).max() <= 7
    assert np.abs(q.codes * q.multipliers.repeat(32, 1)).max() <= limit
    assert ((q.dequantized() - table) ** 2).mean() < 0.015 * (table**2).mean()


def test_ranges_of_few_codes():
    rng = np.random.default_rng(6)
    positive, signed = Histogram(), Histogram()
    positive.add(np.maximum(rng.standard_normal(20000), 0).astype(np.float32))
    signed.add(rng.standard_normal(20000).astype(np.float32))
    q, s = choose_narrow(positive, "auto"), choose_narrow(signed, "auto")
    assert (q.qmin, q.qmax, q.zero_point) == (0, 15, 0) and q.clipped
    assert s.qmin < 0 < s.qmax and s.qmax - s.qmin == 15 and s.zero_point == 0
    assert positive.error(q) < positive.error(choose_narrow(positive, "minmax"))


@pytest.mark.parametrize("group", [0, 32])
def test_whole_net_with_four_bits(group):
    rng = np.random.default_rng(7)
    model = conv_net(rng)
    bits = uniform_bits(layers_of(model), 4, 8, group)
    feeds, fresh = images(rng, 60), images(rng, 20)
    quantized = quantize(model, feeds, QuantizeOptions(bits=bits))
    onnx.checker.check_model(quantized, full_check=True)
    kinds = {t.name: t.data_type for t in quantized.graph.initializer}
    assert sum(k == TensorProto.INT4 for k in kinds.values()) == 3, "the layers between the edges"
    blocked = [n for n in quantized.graph.node for a in n.attribute if a.name == "block_size"]
    assert len(blocked) == (2 if group else 0), "a group of 32 inputs without taps has one scale"
    plain = QuantizeOptions(bits=bits, learned_rounding=False, error_feedback=False, bias_correction=False)
    assert snr(model, quantized, fresh) > snr(model, quantize(model, feeds, plain), fresh) + 3
    assert quantize(model, feeds, QuantizeOptions(bits=bits)).SerializeToString() == quantized.SerializeToString()


@pytest.mark.parametrize("width", [2, 3])
def test_two_and_three_bits_are_narrow_int8(width):
    rng = np.random.default_rng(8)
    model = conv_net(rng)
    quantized = quantize(model, images(rng, 20), QuantizeOptions(bits={"c1": LayerBits(width, 8, 0)}))
    codes = next(
        numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.startswith("w1") and "_q" in t.name
    )
    assert codes.dtype == np.int8 and np.abs(codes).max() == 2 ** (width - 1) - 1
    assert np.isfinite(run(quantized, images(rng, 1)[0])).all()


def test_four_bit_activations_are_clipped():
    rng = np.random.default_rng(9)
    model = conv_net(rng)
    quantized = quantize(model, images(rng, 30), QuantizeOptions(bits=uniform_bits(layers_of(model), 4, 4)))
    clips = [n for n in quantized.graph.node if n.op_type == "Clip"]
    assert len(clips) == 3, "the inputs of the layers between the edges"
    constants = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    for clip in clips:
        q = next(n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == clip.output[0])
        codes = [round(float(constants[i] / constants[q.input[1]])) for i in clip.input[1:]]
        assert codes == [0, 15] and constants[q.input[2]] == 0, "unsigned after Relu"


def test_table_net():
    rng = np.random.default_rng(10)
    nodes = [("Gather", ["table", "ids"], ["e"], {}), ("LayerNormalization", ["e", "g", "b"], ["n"], {"axis": -1}),
             ("MatMul", ["n", "w0"], ["h"], {}), ("Add", ["e", "h"], ["r"], {}),
             ("LayerNormalization", ["r", "g", "b"], ["y"], {"axis": -1})]  # fmt: skip
    constants = {"table": rng.standard_normal((50, 64)).astype(np.float32), "w0": weights_of(rng, 64, 64),
                 "g": np.ones(64, np.float32), "b": np.zeros(64, np.float32)}  # fmt: skip
    model = model_of(nodes, {"ids": [1, 7]}, {"y": [1, 7, 64]}, constants, {"ids": TensorProto.INT64})
    feeds = [{"ids": rng.integers(0, 50, (1, 7))} for _ in range(20)]
    quantized = quantize(model, feeds, QuantizeOptions(bits={"e": LayerBits(4, 8, 32)}))
    table = next(
        t for t in quantized.graph.initializer if t.name.startswith("table") and t.data_type == TensorProto.INT4
    )
    assert list(table.dims) == [50, 64]
    assert snr(model, quantized, feeds[:5]) > 18


def test_groups_and_rows_of_zeros_do_not_coarsen_the_others():
    w = weights_of(np.random.default_rng(5), 4, 64, 1) / 100
    w[:, :32] = 0
    scale, multipliers = choose_steps(w, np.ones((64, 1)), 4, 32)
    assert (scale[:, None] * multipliers[:, 1, 0, None] < 0.6 * np.abs(w).max((1, 2))[:, None]).all()
    table = weights_of(np.random.default_rng(6), 20, 64) / 1000
    full = quantize_table(table, LayerBits(4, 8, 32), 32767)
    table[0] = 0  # a padding token
    padded = quantize_table(table, LayerBits(4, 8, 32), 32767)
    off = [np.square(q.dequantized()[1:] - table[1:]).mean() for q in (full, padded)]
    assert off[1] < 1.2 * off[0] and not padded.codes[0].any()


def test_unused_channels_do_not_move_the_others_when_channels_are_equalised():
    """A convolution whose outputs are mostly dead behind a Relu: a factor for the living ones must stay moderate."""
    rng = np.random.default_rng(7)
    w0, bias = weights_of(rng, 32, 8, 1, 1), np.zeros(32, np.float32)
    bias[8:] = -100  # never above zero
    w0[:4] *= 20
    nodes = [("Conv", ["x", "w0", "b0"], ["c0"], {}), ("Relu", ["c0"], ["r0"], {}), ("Conv", ["r0", "w1"], ["y"], {})]
    net = model_of(nodes, {"x": [1, 8, 6, 6]}, {"y": [1, 16, 6, 6]},
                   {"w0": w0, "b0": bias, "w1": weights_of(rng, 16, 32, 1, 1)})  # fmt: skip
    feeds = [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(8)]
    graph = Graph(net)
    equalise(graph, Facts(graph), feeds)
    ratio = np.abs(graph.constants[graph.nodes[0].input[1]]).reshape(32, -1).max(1) / np.abs(w0).reshape(32, -1).max(1)
    assert ratio.max() < 30 and ratio.min() > 1 / 30, ratio
