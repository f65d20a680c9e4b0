"""ONNX Runtime's own operators and the newest of ONNX: expanded, they compute what ONNX Runtime or ONNX computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qcompile.frontend import Graph, load_model, normalise, normalise_graph
from qcompile.frontend.blocks import stored_codes
from qcompile.targets.errors import CompileError

RNG = np.random.default_rng(11)
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
TYPES |= {np.dtype(np.int64): TensorProto.INT64, np.dtype(bool): TensorProto.BOOL}


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(op, inputs, constants, outputs=1, domain="com.microsoft", opset=21, **attrs):
    """One node; `inputs` and `constants` {position: array}."""
    last = max([*inputs, *constants]) + 1
    names = [f"x{i}" if i in inputs else f"c{i}" if i in constants else "" for i in range(last)]
    made = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
    node = helper.make_node(op, names, made, name="the_node", domain=domain, **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(f"x{i}", TYPES[v.dtype], v.shape) for i, v in inputs.items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in made if o],
        [numpy_helper.from_array(v, f"c{i}") for i, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)


def same(model, inputs, tolerance=2e-5, reference=None):
    normal = normalise(load_model(model))
    assert not {n.op_type for n in normal.graph.node if n.domain}, "operators of other domains are left"
    feed = {f"x{i}": v for i, v in inputs.items()}
    want = (reference or run)(model, feed)
    for ours, theirs in zip(run(normal, feed), want):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)
    return normal


@pytest.mark.parametrize(
    "op, inputs, constants, attrs",
    [
        ("Gelu", [(2, 8)], [], {}),
        ("BiasGelu", [(2, 8)], [(8,)], {}),
        ("FastGelu", [(2, 8)], [], {}),
        ("FastGelu", [(2, 8)], [(8,)], {}),
        ("QuickGelu", [(2, 8)], [], {"alpha": 1.702}),
        ("QuickGelu", [(2, 8)], [], {"alpha": 1.0}),
        ("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8)], [(8,), (8,), (8,)], {"epsilon": 1e-5}),
        ("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8)], [(8,)], {}),
        ("SkipSimplifiedLayerNormalization", [(2, 3, 8), (2, 3, 8)], [(8,), (8,)], {"epsilon": 1e-6}),
        ("FusedMatMul", [(2, 4, 8), (2, 4, 8)], [], {"transB": 1, "alpha": 0.5}),
        ("FusedMatMul", [(2, 8, 4)], [(8, 6)], {"transA": 1}),
        ("FusedConv", [(1, 4, 6, 6)], [(8, 4, 3, 3), (8,)], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
        ("FusedConv", [(1, 4, 6, 6)], [(8, 4, 1, 1), (8,)], {"activation": "LeakyRelu", "activation_params": [0.2]}),
        ("FusedGemm", [(2, 8)], [(8, 6), (6,)], {"activation": "Tanh"}),
    ],
)
def test_fused_operators(op, inputs, constants, attrs):
    given = {i: f32(*s) for i, s in enumerate(inputs)}
    weights = {len(inputs) + i: f32(*s) for i, s in enumerate(constants)}
    same(model_of(op, given, weights, **attrs), given)


def test_the_sum_of_a_skip_layer_norm_is_an_output():
    given = {0: f32(2, 3, 8), 1: f32(2, 3, 8)}
    same(model_of("SkipLayerNormalization", given, {2: f32(8), 3: f32(8)}, ["y0", "", "", "y3"]), given)


@pytest.mark.parametrize(
    "op, inputs, constants",
    [
        ("SimplifiedLayerNormalization", [(2, 3, 8)], [(8,)]),
        ("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8)], [(8,), (8,)]),
        ("SkipSimplifiedLayerNormalization", [(2, 3, 8), (2, 3, 8)], [(8,)]),
        ("BiasGelu", [(2, 8)], [(8,)]),
        ("FusedMatMul", [(2, 4, 8), (2, 8, 4)], []),
    ],
)
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_in_the_domain_of_onnx(op, inputs, constants, domain):
    """As exporters write them that leave the domain out: SimplifiedLayerNormalization is there in ONNX Runtime."""
    given = {i: f32(*s) for i, s in enumerate(inputs)}
    weights = {len(inputs) + i: f32(*s) for i, s in enumerate(constants)}
    model = model_of(op, given, weights, domain=domain)
    before = model.SerializeToString()

    def reference(_model, feed):
        own = "" if op == "SimplifiedLayerNormalization" else "com.microsoft"
        return run(model_of(op, given, weights, domain=own), feed)

    same(model, given, reference=reference)
    assert model.SerializeToString() == before, "the caller's model changed"


def test_a_norm_within_a_branch():
    given, weights = {0: f32(2, 3, 8)}, {1: f32(8)}
    norm = model_of("SimplifiedLayerNormalization", given, weights, domain="")
    result = [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)]
    branches = {name: helper.make_graph(norm.graph.node, name, [], result) for name in ("then_branch", "else_branch")}
    chosen = helper.make_node("If", ["go"], ["y0"], name="if", **branches)
    norm.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "go"))
    model = onnx.ModelProto()
    model.CopyFrom(norm)
    del model.graph.node[:]
    model.graph.node.append(chosen)
    same(model, given, reference=lambda _m, feed: run(norm, feed))


@pytest.mark.parametrize("segments", [False, True])
def test_embeddings(segments):
    ids = {0: RNG.integers(0, 20, (2, 5)).astype(np.int32)}
    tables = {2: f32(20, 8), 3: f32(6, 8), 5: f32(8), 6: f32(8)}
    if segments:
        ids[1] = RNG.integers(0, 2, (2, 5)).astype(np.int32)
        tables[4] = f32(2, 8)
    model = model_of("EmbedLayerNormalization", ids, tables, ["y0", "y1"])
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT32
    same(model, ids)


@pytest.mark.parametrize("mask", ["none", "keys", "ends", "both", "3d", "causal", "bias"])
def test_attention(mask):
    given = {0: f32(2, 5, 16)}
    attrs = {"num_heads": 4}
    if mask == "keys":
        given[3] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    elif mask == "ends":
        given[3] = np.array([3, 5], np.int32)
    elif mask == "both":
        given[3] = np.array([3, 5, 0, 2], np.int32)
    elif mask == "3d":
        given[3] = np.tril(np.ones((2, 5, 5), np.int32))
    elif mask == "causal":
        attrs["unidirectional"] = 1
    elif mask == "bias":
        given[5] = f32(2, 4, 5, 5)
    same(model_of("Attention", given, {1: f32(16, 48), 2: f32(48)}, **attrs), given)


def test_attention_with_a_past():
    given = {0: f32(1, 2, 16), 4: f32(2, 1, 4, 3, 4)}
    same(model_of("Attention", given, {1: f32(16, 48), 2: f32(48)}, 2, num_heads=4, unidirectional=1), given)


@pytest.mark.parametrize(
    "form", ["plain", "bias", "padding", "added", "packed", "packed_kv", "cross", "causal", "past"]
)
def test_multi_head_attention(form):
    given, weights, attrs = {0: f32(2, 5, 16), 1: f32(2, 7, 16), 2: f32(2, 7, 16)}, {}, {"num_heads": 4}
    outputs, check = 1, run
    if form == "bias":
        weights[3] = f32(48)
    elif form == "padding":
        given[4] = RNG.integers(0, 2, (2, 7)).astype(np.int32) | np.eye(2, 7, dtype=np.int32)
    elif form == "added":
        given[5] = f32(1, 4, 5, 7)
    elif form == "packed":
        given, check = {0: f32(2, 5, 4, 3, 4)}, unpacked
    elif form == "packed_kv":
        given, check = {0: f32(2, 5, 16), 1: f32(2, 7, 4, 2, 4)}, unpacked
    elif form == "cross":
        given[1], given[2] = f32(2, 4, 7, 4), f32(2, 4, 7, 4)
    elif form == "causal":
        given[1], given[2] = f32(2, 5, 16), f32(2, 5, 16)
        attrs["unidirectional"] = 1
    elif form == "past":
        given |= {1: f32(2, 5, 16), 2: f32(2, 5, 16), 6: f32(2, 4, 3, 4), 7: f32(2, 4, 3, 4)}
        outputs = 3
    same(model_of("MultiHeadAttention", given, weights, outputs, **attrs), given, reference=check)


def unpacked(model, feed):
    """ONNX Runtime's CPU kernels want query, key and value apart."""
    packed = next(v for v in feed.values() if v.ndim == 5)
    parts = [packed[:, :, :, i].reshape(*packed.shape[:2], -1) for i in range(packed.shape[3])]
    parts = parts if len(parts) == 3 else [feed["x0"], *parts]
    given = dict(enumerate(parts))
    return run(model_of("MultiHeadAttention", given, {}, num_heads=4), {f"x{i}": v for i, v in given.items()})


@pytest.mark.parametrize(
    "flat, interleaved, part", [(True, 0, 0), (False, 0, 0), (True, 1, 0), (False, 1, 0), (False, 0, 4)]
)
def test_rotary_embedding(flat, interleaved, part):
    x = f32(2, 5, 32) if flat else f32(2, 4, 5, 8)
    given = {0: x, 1: np.tile(np.arange(5), (2, 1))}
    half = (part or 8) // 2
    attrs = {"interleaved": interleaved} | ({"rotary_embedding_dim": part, "num_heads": 4} if part else {})
    same(model_of("RotaryEmbedding", given, {2: f32(10, half), 3: f32(10, half)}, **attrs), given)


def reference(model, feed):
    return ReferenceEvaluator(model).run(None, feed)


@pytest.mark.parametrize(
    "op, shapes, constants, opset, attrs",
    [
        ("Gelu", [(2, 8)], [], 20, {}),
        ("Swish", [(2, 8)], [], 24, {"alpha": 1.5}),
        ("RMSNormalization", [(2, 3, 8)], [(8,)], 23, {}),
        ("LayerNormalization", [(2, 3, 8)], [(8,), (8,)], 17, {}),
        ("GroupNormalization", [(2, 6, 4, 4)], [(6,), (6,)], 21, {"num_groups": 3}),
        ("Attention", [(2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)], [], 23, {}),
        ("Attention", [(2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)], [], 23, {"is_causal": 1}),
        ("Attention", [(2, 5, 32), (2, 6, 32), (2, 6, 32)], [], 23, {"q_num_heads": 4, "kv_num_heads": 4}),
        ("Attention", [(2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8), (5, 6)], [], 24, {"softcap": 2.0}),
        ("Celu", [(2, 8)], [], 12, {"alpha": 2.0}),
        ("Shrink", [(2, 8)], [], 9, {"bias": 0.5, "lambd": 0.5}),
        ("ThresholdedRelu", [(2, 8)], [], 22, {"alpha": 0.5}),
    ],
)
def test_newest_operators_of_onnx(op, shapes, constants, opset, attrs):
    given = {i: f32(*s) for i, s in enumerate(shapes)}
    weights = {len(shapes) + i: f32(*s) for i, s in enumerate(constants)}
    model = model_of(op, given, weights, domain="", opset=opset, **attrs)
    same(model, given, reference=reference)


def test_rotary_embedding_of_onnx():
    given = {0: f32(2, 4, 5, 8), 3: np.tile(np.arange(5), (2, 1))}
    model = model_of("RotaryEmbedding", given, {1: f32(10, 4), 2: f32(10, 4)}, domain="", opset=23)
    same(model, given, reference=reference)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", ["plain", "zeros", "float zeros", "groups", "bias"])
def test_packed_weights(bits, form):
    n, k, block = 6, 80, 32
    count = -(-k // block)
    packed = RNG.integers(0, 256, (n, count, block * bits // 8)).astype(np.uint8)
    weights = {1: packed, 2: 0.01 + 0.01 * np.abs(f32(n * count))}
    if form == "zeros":
        weights[3] = RNG.integers(0, 256, n * -(-count * bits // 8)).astype(np.uint8)
    elif form == "float zeros":
        weights[3] = (RNG.random(n * count) * (1 << bits)).astype(np.float32)
    elif form == "groups":
        weights[4] = RNG.permutation(np.arange(count * block) // block)[:k].astype(np.int32)
    elif form == "bias":
        weights[5] = f32(n)
    if form == "groups" and bits == 2:
        pytest.skip("ONNX Runtime reads such zero points as those of 4 bits")
    given = {0: f32(3, k)}
    model = model_of("MatMulNBits", given, weights, K=k, N=n, bits=bits, block_size=block)
    normal = normalise(load_model(model))
    try:
        want = run(model, {"x0": given[0]})[0]
    except Exception as e:  # widths and forms that this ONNX Runtime lacks
        pytest.skip(str(e)[:80])
    np.testing.assert_allclose(run(normal, {"x0": given[0]})[0], want, rtol=1e-3, atol=2e-2 if bits == 8 else 2e-3)


def test_a_table_in_packed_blocks():
    data = RNG.integers(0, 256, (10, 32)).astype(np.uint8)
    given = {1: RNG.integers(0, 10, (2, 3))}
    model = model_of(
        "GatherBlockQuantized", given, {0: data, 2: np.abs(f32(10, 2))}, bits=4, block_size=32, quantize_axis=1
    )
    same(model, given)


@pytest.mark.parametrize(
    "op, given, weights, attrs, words",
    [
        ("Attention", {0: (1, 4, 8)}, {1: (8, 24), 2: (24,)}, {"num_heads": 2, "do_rotary": 1}, "do_rotary"),
        ("FusedConv", {0: (1, 4, 6, 6)}, {1: (8, 4, 1, 1)}, {"activation": "Elu"}, "Elu"),
    ],
)
def test_refusals_name_the_node(op, given, weights, attrs, words):
    inputs, constants = ({i: f32(*s) for i, s in part.items()} for part in (given, weights))
    with pytest.raises(CompileError, match="the_node") as caught:
        normalise(model_of(op, inputs, constants, **attrs))
    assert words in str(caught.value)


def test_the_checker_knows_them():
    onnx.checker.check_model(normalise(model_of("BiasGelu", {0: f32(2, 8)}, {1: f32(8)})))


def test_the_codes_of_packed_weights_can_be_kept():
    packed = RNG.integers(0, 256, (6, 4, 16)).astype(np.uint8)
    multiples = RNG.integers(3, 9, (6, 4))
    scales = (np.float32(0.002 + 0.002 * RNG.random((6, 1))) * multiples).astype(np.float32)
    graph = Graph(
        model_of("MatMulNBits", {0: f32(3, 128)}, {1: packed, 2: scales.reshape(-1)}, K=128, N=6, bits=4, block_size=32)
    )
    normalise_graph(graph)
    (name,) = graph.blocks
    codes, scale, multipliers, block, axis = stored_codes(graph, name)
    assert (block, axis) == (32, 0) and codes.min() >= -8 and codes.max() <= 7
    value = codes * scale * np.repeat(multipliers, 32, axis=0)
    np.testing.assert_allclose(value, graph.constants[name], rtol=1e-5)
    graph.constants[name] = graph.constants[name] * 1.3
    assert stored_codes(graph, name) is None, "weights that were changed lie on no stored grid"
