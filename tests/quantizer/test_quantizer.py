"""The quantizer: where pairs are placed, what the numbers are, and that accuracy survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model, normalise
from qcompile.frontend.graph import Graph
from qcompile.quantizer import LayerBits, QuantizeOptions, load_calibration, quantize
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import Histogram, Quantization, affine, choose_8bit, choose_table
from qcompile.quantizer.prepare import prepare
from qcompile.quantizer.weights import quantize_weight
from qcompile.targets.errors import CompileError
from small_models import model

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"


def model_of(nodes, inputs, outputs, constants, dtypes=None):
    info = lambda n, s: helper.make_tensor_value_info(n, (dtypes or {}).get(n, TensorProto.FLOAT), s)  # noqa: E731
    graph = helper.make_graph([helper.make_node(t, i, o, name=o[0], **a) for t, i, o, a in nodes], "test",
                              [info(n, s) for n, s in inputs.items()], [info(n, s) for n, s in outputs.items()],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])  # fmt: skip
    return normalise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def conv_net(rng):
    w = lambda *s: rng.standard_normal(s).astype(np.float32) / np.sqrt(np.prod(s[1:])).astype(np.float32)  # noqa: E731
    nodes = [("Conv", ["x", "w0", "b0"], ["c0"], {"pads": [1, 1, 1, 1]}), ("Relu", ["c0"], ["r0"], {}),
             ("Conv", ["r0", "w1"], ["c1"], {"pads": [1, 1, 1, 1], "group": 8}), ("Relu", ["c1"], ["r1"], {}),
             ("Conv", ["r1", "w2"], ["c2"], {}), ("Add", ["c2", "r0"], ["a"], {}), ("Relu", ["a"], ["r2"], {}),
             ("GlobalAveragePool", ["r2"], ["g"], {}), ("Flatten", ["g"], ["f"], {}),
             ("MatMul", ["f", "w3"], ["m"], {}), ("Add", ["m", "b3"], ["y"], {})]  # fmt: skip
    constants = {"w0": w(8, 3, 3, 3), "b0": w(8, 1)[:, 0], "w1": w(8, 1, 3, 3), "w2": w(8, 8, 1, 1), "w3": w(8, 5),
                 "b3": w(5, 1)[:, 0]}  # fmt: skip
    constants["w0"] *= np.geomspace(0.05, 5, 8).astype(np.float32).reshape(-1, 1, 1, 1)  # channels of unlike range
    return model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, constants)


def attention_net(rng):
    w = lambda *s: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32)  # noqa: E731
    nodes = [("Gather", ["table", "ids"], ["e"], {}),
             ("LayerNormalization", ["e", "g", "b"], ["n"], {"axis": -1}), ("MatMul", ["n", "wqkv"], ["p"], {}),
             ("Add", ["p", "bqkv"], ["pb"], {}), ("Split", ["pb", "parts"], ["q", "k", "v"], {"axis": -1}),
             ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
             ("MatMul", ["q", "kt"], ["s"], {}),
             ("Mul", ["s", "scale"], ["ss"], {}), ("Cast", ["mask"], ["mf"], {"to": 1}),
             ("Sub", ["one", "mf"], ["mi"], {}), ("Mul", ["mi", "big"], ["mb"], {}), ("Add", ["ss", "mb"], ["sm"], {}),
             ("Softmax", ["sm"], ["pr"], {"axis": -1}), ("MatMul", ["pr", "v"], ["av"], {}),
             ("MatMul", ["av", "wo"], ["o"], {}), ("Add", ["o", "bo"], ["ob"], {}), ("Add", ["e", "ob"], ["r"], {}),
             ("LayerNormalization", ["r", "g", "b"], ["n2"], {"axis": -1}), ("MatMul", ["n2", "w1"], ["h"], {}),
             ("Gelu", ["h"], ["ge"], {}), ("MatMul", ["ge", "w2"], ["f"], {}), ("Add", ["r", "f"], ["y"],
             {})]  # fmt: skip
    spread = np.geomspace(0.1, 8, 16).astype(np.float32)
    constants = {"table": w(20, 16) * spread, "g": spread, "b": w(16, 1)[:, 0], "wqkv": w(16, 48), "bqkv": w(48,
        1)[:, 0],
                 "parts": np.array([16, 16, 16]), "scale": np.float32(0.25), "one": np.float32(1),
                 "big": np.float32(-1e4), "wo": w(16, 16), "bo": w(16, 1)[:, 0], "w1": w(16, 32), "w2": w(32,
                 16)}  # fmt: skip
    ids = {"ids": TensorProto.INT64, "mask": TensorProto.INT64}
    return model_of(nodes, {"ids": [1, 6], "mask": [1, 1, 6]}, {"y": [1, 6, 16]}, constants, ids)


def feeds_of(model, rng, count=12):
    def one(v):
        shape = [d.dim_value for d in v.type.tensor_type.shape.dim]
        if v.type.tensor_type.elem_type == TensorProto.FLOAT:
            return rng.standard_normal(shape).astype(np.float32)
        return rng.integers(0, 20, shape) if v.name == "ids" else np.arange(shape[-1]).reshape(shape) % 6 < 4

    return [{v.name: one(v).astype(np.float32 if v.type.tensor_type.elem_type == 1 else np.int64)
             for v in model.graph.input} for _ in range(count)]  # fmt: skip


def run(model, feed, optimise=True):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)


def snr(model, quantized, feeds):
    """Signal to noise in dB of the quantized model's first output."""
    pairs = [(run(model, f)[0], run(quantized, f)[0]) for f in feeds]
    return 10 * np.log10(sum((a**2).sum() for a, _ in pairs) / sum(((a - b) ** 2).sum() for a, b in pairs))


class View:
    """Maps of a QDQ model for assertions."""

    def __init__(self, model):
        self.producer = {o: n for n in model.graph.node for o in n.output}
        self.readers = {}
        for n in model.graph.node:
            for i in n.input:
                self.readers.setdefault(i, []).append(n)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes = list(model.graph.node)

    def of_type(self, op):
        return [n for n in self.nodes if n.op_type == op]

    def codes(self, name):
        """dtype of the codes that a dequantized tensor comes from, None where it is not dequantized."""
        dq = self.producer.get(name)
        if dq is None or dq.op_type != "DequantizeLinear":
            return None
        if dq.input[0] in self.constants:
            return self.constants[dq.input[0]].dtype
        return self.constants[self.producer[dq.input[0]].input[2]].dtype


@pytest.mark.parametrize("make", [conv_net, attention_net])
def test_accuracy_and_operand_widths(make):
    rng = np.random.default_rng(3)
    model = make(rng)
    quantized = quantize(model, feeds_of(model, rng))
    onnx.checker.check_model(quantized, full_check=True)
    assert quantized.opset_import[0].version == 21
    feeds = feeds_of(model, rng, 6)
    assert snr(model, quantized, feeds) > 28
    for f in feeds[:2]:
        np.testing.assert_allclose(run(quantized, f)[0], run(quantized, f, optimise=False)[0], atol=0.2)
    view = View(quantized)
    for n in view.nodes:
        if n.op_type in ("Conv", "MatMul"):
            assert [view.codes(i) for i in n.input[:2]] == [np.int8, np.int8], f"operands of {n.name}"
            assert len(n.input) < 3 or view.codes(n.input[2]) == np.int32, f"bias of {n.name}"


def test_conv_placement():
    rng = np.random.default_rng(4)
    model = conv_net(rng)
    view = View(quantize(model, feeds_of(model, rng)))
    convs = view.of_type("Conv")
    assert [view.readers[c.output[0]][0].op_type for c in convs] == ["Relu", "Relu", "Add"], "one rounding per chain"
    for relu in view.of_type("Relu"):
        assert view.readers[relu.output[0]][0].op_type == "QuantizeLinear"
    weight = view.producer[convs[0].input[1]]
    scale, bias = view.constants[weight.input[1]], view.producer[convs[0].input[2]]
    data = view.producer[convs[0].input[0]]
    assert scale.shape == (8,) and np.abs(view.constants[weight.input[0]]).max() == 127
    np.testing.assert_allclose(view.constants[bias.input[1]], scale * view.constants[data.input[1]], rtol=1e-6)


def test_attention_placement():
    rng = np.random.default_rng(5)
    model = attention_net(rng)
    view = View(quantize(model, feeds_of(model, rng)))
    softmax = view.of_type("Softmax")[0]
    node, path = view.producer[softmax.input[0]], []
    while node.op_type != "MatMul":
        path.append(node.op_type)
        node = view.producer[node.input[0]]
    assert path == ["Add", "Mul"], "no pair between the score MatMul and Softmax"
    q = view.readers[softmax.output[0]][0]
    assert q.op_type == "QuantizeLinear" and view.constants[q.input[2]] == -128
    assert view.constants[q.input[1]] == np.float32(1 / 255)
    assert not view.of_type("Split"), "the fused projection is one MatMul per part"
    gelu = view.of_type("Gelu")[0]
    assert view.codes(gelu.input[0]) == np.int16
    clip = view.producer[view.producer[view.producer[gelu.input[0]].input[0]].input[0]]
    scale = view.constants[view.producer[gelu.input[0]].input[1]]
    low, high = (view.constants[i] for i in clip.input[1:])
    assert clip.op_type == "Clip" and round(float((high - low) / scale)) <= 4095
    for norm in view.of_type("LayerNormalization"):
        assert view.codes(norm.input[0]) == np.int16
        assert all(i in view.constants for i in norm.input[1:])
    assert view.constants[view.producer[view.of_type("Gather")[0].input[0]].input[0]].dtype == np.int16


def test_equalisation_across_convolutions():
    """Conv, Relu, depthwise Conv: channels of unlike range cost nothing once each has its own scale."""
    rng = np.random.default_rng(6)
    spread = np.geomspace(0.02, 5, 8).astype(np.float32).reshape(-1, 1, 1, 1)
    wide = spread * rng.standard_normal((8, 3, 1, 1)).astype(np.float32)
    depthwise = rng.standard_normal((8, 1, 3, 3)).astype(np.float32) / spread
    nodes = [("Conv", ["x", "w0"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Conv", ["r", "w1"], ["y"], {"group": 8})]
    model = model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 8, 6, 6]}, {"w0": wide, "w1": depthwise})
    feeds, fresh = feeds_of(model, rng), feeds_of(model, rng, 8)
    on, off = (quantize(model, feeds, QuantizeOptions(equalise=e, widening=False)) for e in (True, False))
    assert snr(model, on, fresh) > snr(model, off, fresh) + 6


def test_equalisation_after_layer_norm_and_gelu_keeps_the_function():
    """The rewritten float graph computes what it did before; readers other than linear layers are left alone."""
    rng = np.random.default_rng(10)
    model = attention_net(rng)
    feeds = feeds_of(model, rng)
    graph = Graph(model)
    prepare(graph)
    equalise(graph, Facts(graph), feeds)
    changed = graph.to_model()
    assert any("equalised" in t.name for t in changed.graph.initializer)
    for f in feeds[:3]:
        np.testing.assert_allclose(run(model, f)[0], run(changed, f)[0], rtol=1e-3, atol=1e-4)


def test_same_input_same_model():
    rng = np.random.default_rng(8)
    model = attention_net(rng)
    feeds = feeds_of(model, rng)
    assert quantize(model, feeds).SerializeToString() == quantize(model, feeds).SerializeToString()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolutions_in_groups_keep_their_biases(groups):
    rng = np.random.default_rng(6)
    constants = {"w": rng.standard_normal((8, 8 // groups, 4, 4)).astype(np.float32) / 8,
                 "b": rng.standard_normal(8).astype(np.float32)}  # fmt: skip
    attrs = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": groups}
    nodes = [("ConvTranspose", ["x", "w", "b"], ["c"], attrs), ("Relu", ["c"], ["y"], {})]
    model = model_of(nodes, {"x": [1, 8, 5, 6]}, {"y": [1, 8, 10, 12]}, constants)
    feeds = feeds_of(model, rng)
    assert snr(model, quantize(model, feeds), feeds) > 33


def test_concat_parts_share_their_scale():
    rng = np.random.default_rng(9)
    c = lambda *s: rng.standard_normal(s).astype(np.float32)  # noqa: E731
    model = model_of([("Conv", ["x", "w0"], ["a"], {}), ("Conv", ["x", "w1"], ["b"], {}),
                      ("Concat", ["a", "b"], ["c"], {"axis": 1}), ("Conv", ["c", "w2"], ["y"], {})],
                     {"x": [1, 3, 5, 5]}, {"y": [1, 2, 5, 5]},
                     {"w0": c(4, 3, 1, 1), "w1": 3 * c(4, 3, 1, 1), "w2": c(2, 8, 1, 1)})  # fmt: skip
    view = View(quantize(model, feeds_of(model, rng), QuantizeOptions(equalise=False)))
    concat = view.of_type("Concat")[0]
    after = view.readers[concat.output[0]][0]
    assert len({tuple(view.producer[i].input[1:]) for i in concat.input} | {tuple(after.input[1:])}) == 1


def test_histogram_grows_and_merges():
    rng = np.random.default_rng(0)
    small, large = Histogram(), Histogram()
    small.add(rng.standard_normal(5000).astype(np.float32))
    for k in range(4):
        large.add((10.0**k * rng.standard_normal(2000)).astype(np.float32))
    assert large.counts.sum() == 8000 and large.width * 4096 >= max(-large.low, large.high)
    large.merge(small)
    assert large.counts.sum() == 13000


def test_range_choice_lowers_the_error_of_outliers():
    rng = np.random.default_rng(1)
    h = Histogram()
    h.add(np.append(rng.standard_normal(30000), 60.0).astype(np.float32))
    assert h.error(choose_8bit(h, "auto")) < h.error(choose_8bit(h, "minmax"))


def test_zero_is_exact_and_tables_are_small():
    for low, high in [(-1.3, 5.1), (0.0, 6.0), (-4.0, 0.0), (-2.0, 2.1), (1.0, 3.0)]:
        q = affine(low, high)
        assert (q.quantize(np.zeros(1, np.float32)) == q.zero_point).all() and -128 <= q.zero_point <= 127
    h = Histogram()
    h.add(np.linspace(-20, 30, 10000).astype(np.float32))
    q = choose_table(h, -6.0)
    assert q.qmax - q.qmin + 1 <= 4096 and q.qmin * q.scale <= -5.9 and q.qmax * q.scale >= 30
    assert isinstance(q, Quantization) and q.clipped


def test_weight_codes():
    w = np.random.default_rng(2).standard_normal((6, 40))
    q = quantize_weight(w, 0, clip=False)
    assert q.codes.dtype == np.int8 and (np.abs(q.codes).max(1) == 127).all()
    assert np.abs(q.dequantized() - w).max() <= q.scale.max() / 2 + 1e-6
    assert (quantize_weight(np.zeros((2, 3)), 0).codes == 0).all()


def test_calibration_files(tmp_path):
    model = conv_net(np.random.default_rng(0))
    x = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    path = tmp_path / "c.npz"
    np.savez(path, x=x)
    assert len(load_calibration(path, model)) == 7 and next(iter(load_calibration(path, model)))["x"].shape == (
        1,
        3,
        8,
        8,
    )
    np.savez(path, x=x[:, None])
    assert len(load_calibration(str(path), model)) == 7
    bad = {"no array named 'x'": {"z": x}, "shape": {"x": x[:, :2]}, "no samples": {"x": x[:0]},
           "NaN": {"x": np.where(x > 1, np.nan, x)}, "type": {"x": x.astype(complex)}}  # fmt: skip
    for message, arrays in bad.items():
        np.savez(path, **arrays)
        with pytest.raises(CompileError, match=message):
            load_calibration(path, model)
    path.write_bytes(b"PK no zip")
    with pytest.raises(CompileError, match="not a readable npz"):
        load_calibration(path, model)
    with pytest.raises(CompileError, match="no such file"):
        load_calibration(tmp_path / "none.npz", model)
    with pytest.raises(CompileError, match="'x' is missing"):
        load_calibration([{"z": x[:1]}], model)


def test_synthetic_inputs_respect_tables():
    data = load_calibration(None, attention_net(np.random.default_rng(0)))
    assert data.notes and max(s["ids"].max() for s in data) < 20


def test_options_are_checked():
    model = conv_net(np.random.default_rng(0))
    with pytest.raises(CompileError, match="no layer 'none'"):
        quantize(model, None, QuantizeOptions(bits={"none": LayerBits(4)}))
    with pytest.raises(CompileError, match="ranges"):
        quantize(model, None, QuantizeOptions(ranges="best"))


@pytest.mark.skipif(not MODELS.exists(), reason="shared models are absent")
@pytest.mark.parametrize(("file", "name", "least"), [("vit_mnist/float.onnx", "image", 0.96),
                                                     ("vit_mnist/float_dynamo_op20.onnx", "image", 0.96)])  # fmt: skip
def test_vision_transformer_agrees_with_float(file, name, least):
    model = normalise(load_model(MODELS / file))
    data = np.load(MODELS / "vit_mnist" / "io.npz")

    def images(key, n):
        return [{name: x[None, None] / np.float32(255)} for x in data[key][:n].astype(np.float32)]

    quantized = quantize(model, images("calib", 64))
    sessions = [ort.InferenceSession(m.SerializeToString()) for m in (model, quantized)]
    a, b = (np.concatenate([s.run(None, f)[0] for f in images("x", 200)]).argmax(1) for s in sessions)
    assert (a == b).mean() >= least


def signal_to_noise(net, feeds, folder):
    """Decibels of the only output against ONNX Runtime, over all feeds."""
    compiled = qcompile.load(qcompile.compile(net, calibration=feeds, output=folder, name="net").path)
    session = ort.InferenceSession(net.SerializeToString())
    want = np.stack([session.run(None, f)[0] for f in feeds])
    got = np.stack([next(iter(compiled.run(f).values())) for f in feeds])
    return 10 * np.log10(np.mean(want**2) / np.mean((want - got) ** 2))


def test_a_flat_softmax_has_fine_codes(tmp_path):
    """Results of about 1/127 on codes of 1/255 were 18 dB."""
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.uniform(-1, 1, (4, 127)).astype(np.float32)} for _ in range(4)]
    net = model(("Softmax", ["x"], ["y"], {"axis": -1}), inputs={"x": [4, 127]})
    assert signal_to_noise(net, feeds, tmp_path) > 32


def test_padding_by_a_value_out_of_range_is_kept(tmp_path):
    """A tensor that is never negative has codes for nothing below 0; what is put beside it was cut off there."""
    rng = np.random.default_rng(6)
    feeds = [{"x": rng.uniform(0, 4, (2, 9)).astype(np.float32)} for _ in range(4)]
    pads = {"pads": np.array([1, 0, 1, 2]), "value": np.float32(-3)}
    net = model(("Pad", ["x", "pads", "value"], ["y"], {}), inputs={"x": [2, 9]}, constants=pads)
    assert signal_to_noise(net, feeds, tmp_path) > 40
