"""Embeddings of quantized tables, as ONNX Runtime's quantize_dynamic writes them."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto
from qcompile.frontend import normalise
from small_models import model

RNG = np.random.default_rng(0)
TABLES = {
    "int8": (RNG.integers(-128, 128, (20, 12)).astype(np.int8), np.int8(3)),
    "uint8": (RNG.integers(0, 256, (20, 12)).astype(np.uint8), np.uint8(131)),
}


def embedding(dtype, *more):
    table, zero = TABLES[dtype]
    taken = "e" if not more else "r"
    return model(
        ("Gather", ["table", "ids"], ["e"], {}),
        *more,
        ("DequantizeLinear", [taken, "scale", "zero"], ["d"], {}),
        ("MatMul", ["d", "w"], ["y"], {}),
        inputs={"ids": [1, 5]},
        dtypes={"ids": TensorProto.INT64},
        constants={
            "table": table,
            "zero": zero,
            "scale": np.float32(0.02),
            "shape": np.array([5, 12]),
            "w": RNG.standard_normal((12, 7)).astype(np.float32),
        },
    )


@pytest.mark.parametrize("dtype", TABLES)
@pytest.mark.parametrize("more", [(), (("Reshape", ["e", "shape"], ["r"], {}),)], ids=["gather", "gather and reshape"])
def test_a_quantized_table_is_an_embedding(tmp_path, dtype, more):
    """DequantizeLinear of int32 is not supported: what Gather gave had lost its type."""
    net, ids = embedding(dtype, *more), RNG.integers(0, 20, (30, 1, 5))
    artifact = qcompile.load(qcompile.compile(net, calibration=[{"ids": i} for i in ids], output=tmp_path).path)
    got = np.concatenate([artifact.run({"ids": i})["y"] for i in ids])
    session = ort.InferenceSession(net.SerializeToString())
    want = np.concatenate([session.run(None, {"ids": i})[0] for i in ids])
    assert np.square(want).sum() > 2000 * np.square(got - want).sum()


def test_the_table_is_dequantized_before_it_is_read():
    nodes = normalise(embedding("int8"), {}, []).graph.node
    assert [n.op_type for n in nodes if n.op_type != "Cast"] == ["DequantizeLinear", "Gather", "MatMul"]
