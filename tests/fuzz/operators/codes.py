"""Operators on codes: quantized products and what ONNX Runtime adds to them."""

from __future__ import annotations

import numpy as np

from fuzz.build import MICROSOFT, Build, Unsuitable
from fuzz.operators import draws


def _codes(b: Build, shape: tuple[int, ...], unsigned: bool) -> np.ndarray:
    low, high = (0, 256) if unsigned else (-128, 128)
    return b.rng.integers(low, high, shape).astype(np.uint8 if unsigned else np.int8)


@draws("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", weight=0.5)
def dynamic_product(b: Build, op: str) -> str:
    """As `quantize_dynamic` writes them: quantize, product of codes, back to floats."""
    x = b.take(ranks=(4,) if op == "ConvInteger" else (2, 3))
    codes, scale, zero = b.add("DynamicQuantizeLinear", [x], outputs=3)
    unsigned = b.chance(0.5)
    depth = b.shape(x)[1 if op == "ConvInteger" else -1]
    out = b.size(65)
    shape = (out, depth, 1, 1) if op == "ConvInteger" else (depth, out)
    if int(np.prod(b.shape(x))) * out > 4_000_000:
        raise Unsuitable("too many products")
    kind = np.uint8 if unsigned else np.int8
    w, wz = b.constant(_codes(b, shape, unsigned)), b.constant(b.one_of((0, 128)) if unsigned else 0, kind)
    op = "ConvInteger" if op == "ConvInteger" else "MatMulInteger"
    sums = b.add(op, [codes, w, zero, wz])
    factor = b.add("Mul", [scale, b.constant(b.real(0.001, 0.02), np.float32)])
    return b.add("Mul", [b.add("Cast", [sums], to=1), factor])


@draws("QLinearMatMul", "QLinearConv", "QuantizeLinear", "DequantizeLinear", weight=0.4)
def static_product(b: Build, op: str) -> str:
    """Q, a product of codes, DQ."""
    x = b.take(ranks=(4,) if op == "QLinearConv" else (2,))
    low, high = b.span(x)
    scale, zero = b.constant(max(high - low, 0.1) / 255, np.float32), b.constant(b.whole(-20, 20), np.int8)
    codes = b.add("QuantizeLinear", [x, scale, zero])
    if op in ("QLinearMatMul", "QLinearConv"):
        depth, out = b.shape(x)[1], b.size(65)
        shape = (out, depth, 1, 1) if op == "QLinearConv" else (depth, out)
        w, ws, wz = b.constant(_codes(b, shape, False)), b.constant(0.01, np.float32), b.constant(0, np.int8)
        ys, yz = b.constant(max(high - low, 0.1) * depth**0.5 / 255, np.float32), b.constant(0, np.int8)
        codes, scale, zero = b.add(op, [codes, scale, zero, w, ws, wz, ys, yz]), ys, yz
    return b.add("DequantizeLinear", [codes, scale, zero])


def _grid(b: Build, x: str, share: float = 1.0) -> list[str]:
    """(scale, zero point) of uint8 that hold `share` of the tensor's range."""
    low, high = b.span(x)
    return [b.constant(max(high - low, 0.1) * share / 255, np.float32), b.constant(b.whole(0, 255), np.uint8)]


@draws("QGemm", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", weight=0.2)
@draws("QLinearSoftmax", "QLinearWhere", weight=0.15)
def contrib(b: Build, op: str) -> str:
    """ONNX Runtime's operators on codes."""
    x = b.take(ranks=(2,))
    grid, wide = _grid(b, x), _grid(b, x, 4.0)
    codes = b.add("QuantizeLinear", [x, *grid])
    given = {}
    if op == "QGemm":
        n = b.size(33)
        w = b.constant(_codes(b, (b.shape(x)[1], n), False))
        inputs = [codes, *grid, w, b.constant(0.01, np.float32), b.constant(0, np.int8), "", *wide]
    elif op in ("QLinearAdd", "QLinearMul"):
        inputs = [codes, *grid, codes, *grid, *wide]
    elif op == "QLinearWhere":
        inputs = [b.constant(b.rng.random(b.shape(x)) < 0.5), codes, *grid, codes, *grid, *wide]
    elif op == "QLinearSoftmax":
        wide = [b.constant(1 / 256, np.float32), b.constant(0, np.uint8)]
        inputs, given = [codes, *grid, *wide], {"axis": -1, "opset": 13}
    else:
        inputs = [codes, *grid, *wide]
    return b.add("DequantizeLinear", [b.add(op, inputs, domain=MICROSOFT, **given), *wide])


@draws("QLinearAveragePool", "QLinearGlobalAveragePool", "NhwcMaxPool", weight=0.15)
def pools(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    grid = _grid(b, x)
    codes = b.add("QuantizeLinear", [x, *grid])
    kernel = [min(2, n) for n in b.shape(x)[2:]]
    if op == "NhwcMaxPool":
        last = b.add("Transpose", [codes], perm=[0, 2, 3, 1])
        kernel = [min(2, n) for n in b.shape(last)[1:3]]
        pooled = b.add("Transpose", [b.add(op, [last], domain=MICROSOFT, kernel_shape=kernel)], perm=[0, 3, 1, 2])
    else:
        given = {"kernel_shape": kernel} if op == "QLinearAveragePool" else {"channels_last": 0}
        pooled = b.add(op, [codes, *grid, *grid], domain=MICROSOFT, **given)
    return b.add("DequantizeLinear", [pooled, *grid])
