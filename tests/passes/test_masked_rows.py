"""Attention with rows that are masked whole, by each form of mask and each large number: as float has it."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, numpy_helper
from small_models import model

L, D = 8, 16
LOWEST = float(np.finfo(np.float32).min)
CAUSAL = np.tril(np.ones((L, L), np.float32))
CONSTANT = np.zeros((L, L), np.float32)
CONSTANT[:2], CONSTANT[3, 5:] = 1, 1  # two rows without a key, one with fewer


def attention(mask_nodes, masked, inner, fill, **constants):
    """mask_nodes make `keep` or its like; masked: what becomes of the scores s."""
    rng = np.random.default_rng(0)
    weights = {f"w{p}": (rng.standard_normal((D, D)) / 4).astype(np.float32) for p in "qkvo"}
    dynamic = {"dtypes": {"mask": TensorProto.INT64}} if inner else {}
    return model(
        *(("MatMul", ["x", f"w{p}"], [p], {}) for p in "qkv"),
        ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], ["s"], {}),
        *mask_nodes,
        masked,
        ("Softmax", ["m"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "v"], ["u"], {}),
        ("MatMul", ["u", "wo"], ["y"], {}),
        inputs={"x": [1, L, D], **({"mask": [1, 1, L]} if inner else {})},
        constants={**weights, "fill": np.float32(fill), **constants},
        **dynamic,
    )


KEEP = (("Cast", ["mask"], ["mf"], {"to": 1}), ("Mul", ["causal", "mf"], ["keep"], {}))


def added(fill):
    nodes = (*KEEP, ("Sub", ["one", "keep"], ["hide"], {}), ("Mul", ["hide", "fill"], ["low"], {}))
    return attention(nodes, ("Add", ["s", "low"], ["m"], {}), True, fill, causal=CAUSAL, one=np.float32(1))


def chosen(fill):
    nodes = (*KEEP, ("Cast", ["keep"], ["sees"], {"to": TensorProto.BOOL}))
    return attention(nodes, ("Where", ["sees", "s", "fill"], ["m"], {}), True, fill, causal=CAUSAL)


def constant(fill):
    return attention((), ("Add", ["s", "low"], ["m"], {}), False, fill, low=(CONSTANT * fill).astype(np.float32))


@pytest.mark.parametrize("fill", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("form", [added, chosen, constant])
def test_rows_without_a_key(tmp_path, form, fill):
    """They gave 0; float gives the mean of the values, or, where the number is small, what the scores say."""
    net, rng = form(fill), np.random.default_rng(1)
    mask = {} if form is constant else {"mask": np.array([[[0, 0, 1, 1, 1, 1, 1, 1]]])}
    feeds = [{"x": rng.standard_normal((1, L, D)).astype(np.float32), **mask} for _ in range(12)]
    artifact = qcompile.load(qcompile.compile(net, calibration=feeds, output=tmp_path, name="n").path)
    session = ort.InferenceSession(net.SerializeToString())
    got = np.concatenate([artifact.run(f)["y"] for f in feeds])
    want = np.concatenate([session.run(None, f)[0] for f in feeds])
    np.testing.assert_array_equal(got[:1], artifact.reference(feeds[0])["y"])
    for rows in (slice(0, 2), slice(2, L)):
        noise, power = np.square(got - want)[:, rows].sum(), np.square(want[:, rows]).sum()
        assert power > 10**2.4 * noise, f"rows {rows}: {10 * np.log10(power / noise):.1f} dB"


def test_a_guard_against_nan_gives_zero(tmp_path):
    """Softmax of a row of -inf is NaN; exporters put 0 in its place."""
    rng = np.random.default_rng(2)
    guard = (("IsNaN", ["p"], ["bad"], {}), ("Where", ["bad", "nothing", "p"], ["safe"], {}))
    net = chosen(-np.inf)
    nodes = list(net.graph.node)
    softmax = next(i for i, n in enumerate(nodes) if n.op_type == "Softmax")
    from onnx import helper

    nodes[softmax + 1].input[0] = "safe"
    nodes[softmax + 1 : softmax + 1] = [helper.make_node(op, i, o) for op, i, o, _ in guard]
    del net.graph.node[:]
    net.graph.node.extend(nodes)
    net.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    feeds = [
        {"x": rng.standard_normal((1, L, D)).astype(np.float32), "mask": np.array([[[0, 0, 1, 1, 1, 1, 1, 1]]])}
        for _ in range(4)
    ]
    artifact = qcompile.load(qcompile.compile(net, calibration=feeds, output=tmp_path, name="n").path)
    y = artifact.run(feeds[0])["y"]
    assert (y[0, :2] == 0).all() and (y[0, 2:] != 0).any()


def test_a_masked_softmax_of_its_own_has_no_float_instruction(tmp_path):
    """On cores with floats of 16 bits LLVM made the largest numerator by fneg, which the proof refuses."""
    nodes = (
        ("Cast", ["mask"], ["sees"], {"to": TensorProto.BOOL}),
        ("Where", ["sees", "x", "fill"], ["m"], {}),
        ("Softmax", ["m"], ["y"], {"axis": -1}),
    )
    net = model(
        *nodes,
        inputs={"x": [1, L, L], "mask": [1, 1, L]},
        dtypes={"mask": TensorProto.INT64},
        constants={"fill": np.float32(LOWEST)},
    )
    x = np.random.default_rng(3).standard_normal((1, L, L)).astype(np.float32)
    for mask in ([1, 0, 1, 1, 0, 1, 1, 1], [0] * L):
        feed = {"x": x, "mask": np.array([[mask]])}
        built = qcompile.compile(net, "arm-a76", calibration=[feed], output=tmp_path, name="n")
        loaded = qcompile.load(built.path)
        (want,) = ort.InferenceSession(net.SerializeToString()).run(None, feed)
        np.testing.assert_allclose(loaded.run(feed)["y"], want, atol=0.01)
        np.testing.assert_array_equal(loaded.run(feed)["y"], loaded.reference(feed)["y"])
