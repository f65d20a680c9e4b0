"""QuantizeLinear and DequantizeLinear: where deferred values get their grid, and where integers become values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.passes.integerize.functions import apply, integers_on
from qcompile.passes.integerize.reader import Reader, grid_of, handles
from qcompile.passes.integerize.values import (
    NO_CLAMP,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    Rows,
    Sum,
    UnnormalisedSoftmax,
)
from qcompile.targets.errors import CompileError
from tvm import relax

CONVOLUTIONS = ("relax.nn.conv2d", "relax.nn.conv1d")
MASK = 1e6  # a scale above this belongs to a mask's lowest numbers


@handles("relax.quantize")
def quantize(r: Reader, call: Any, args: list[Any]) -> Any:
    v, grid = args[0], grid_of(call)
    _check_constant(args)
    if isinstance(v, Real):
        scale, zero = np.asarray(args[1].values, np.float64), np.asarray(args[2].values, np.int64)
        info = np.iinfo(str(call.attrs.out_dtype))
        codes = np.rint(v.values / _along(scale, v, call)) + _along(zero, v, call)
        return Real(np.clip(codes, info.min, info.max).astype(str(call.attrs.out_dtype)))
    if grid is None:
        raise CompileError("activations quantized per channel are not supported; use one scale per activation tensor")
    if isinstance(v, Integers):
        if v.graph_input:
            return replace(r.quantize_input(v, grid), role="codes")
        whole = _whole_numbers(grid)
        return replace(integers_on(r, v, whole or grid), role="flags" if whole else "codes")
    if isinstance(v, Sum) and grid.scale > MASK and not all(_mask_like(t) for t in (v.a, v.b)):
        raise CompileError(
            "large negative numbers of a mask are added to other numbers before they meet the scores; add them to the "
            "scores one after the other"
        )
    if isinstance(v, UnnormalisedSoftmax) and _only_feeds_matmul(r, r.call_var):
        return v  # attention keeps the numerators instead
    return replace(r.make.quantize(v, grid), role="codes")


def _check_constant(args: list[Any]) -> None:
    if not all(isinstance(a, Real) for a in args[1:3]):
        raise CompileError("its scale or zero point is computed (dynamic quantization); quantize the model statically")


def _mask_like(v: Any) -> bool:
    """Whether a term has no numbers between 0 and those of masks."""
    if isinstance(v, Real | Function):
        return bool(((v.values == 0) | (np.abs(v.values) > MASK)).all())
    return isinstance(v, Quantized) and v.per_tensor and abs(float(v.scale)) * v.magnitude > MASK


def _whole_numbers(grid: Grid) -> Grid | None:
    """The grid of scale 1 with the integers of `grid`, if `grid` has all integers of its range: flags stay 0 and 1."""
    steps = round(1 / grid.scale)
    if abs(steps * grid.scale - 1) > 1e-5:
        return None
    lo, hi = ((q - grid.zero_point) / steps for q in (grid.lo, grid.hi))
    lo, hi = int(np.ceil(lo)), int(np.floor(hi))
    return Grid(1.0, 0, "int8", lo, hi) if -128 <= lo <= hi <= 127 else None


def _along(p: np.ndarray, v: Real, call: Any) -> np.ndarray:
    if p.size == 1:
        return p.reshape(())
    shape = [1] * v.values.ndim
    shape[int(call.attrs.axis)] = p.size
    return p.reshape(shape)


def _only_feeds_matmul(r: Reader, var: Any) -> bool:
    """True if the softmax ends as first operand of products, through Q/DQ pairs and guards against NaN."""
    users = [
        (b.var, b.value)
        for b in r.users.get(var, [])
        if getattr(getattr(b.value, "op", None), "name", "") != "relax.isnan"
    ]
    for result, call in users:
        name = call.op.name if isinstance(call, relax.Call) else ""
        if name == "relax.matmul" and call.args[0].same_as(var) and not call.args[1].same_as(var):
            continue
        passed_on = name in ("relax.quantize", "relax.dequantize") or (
            name == "relax.where" and call.args[2].same_as(var)
        )
        if not passed_on or not _only_feeds_matmul(r, result):
            return False
    return bool(users)


@handles("relax.dequantize")
def dequantize(r: Reader, call: Any, args: list[Any]) -> Any:
    _check_constant(args)
    v, scale, zero = args[0], np.asarray(args[1].values, np.float64), np.asarray(args[2].values).astype(np.int64)
    if isinstance(v, Real):
        # float32, as ONNX has it, gives 8 and 16 bits back exactly; sums of 32 bits and the numbers of masks need more
        narrow = v.values.dtype.itemsize <= 2 and scale.max(initial=0) < MASK
        real = np.float32 if narrow else np.float64
        scale, values = _along(scale, v, call), v.values.astype(real)
        if zero.any():
            np.subtract(values, _along(zero, v, call).astype(real), out=values)
        np.multiply(values, scale.astype(real), out=values)
        return Real(values, np.abs(scale))
    if isinstance(v, UnnormalisedSoftmax):
        return v
    if isinstance(v, Function):
        return apply(r, lambda x: (x - float(zero.flat[0])) * float(scale.flat[0]), v)
    if (scale != scale.flat[0]).any():
        return _per_index(r, v, scale, zero, call)
    s, z = float(scale.flat[0]), int(zero.flat[0])
    zeros = _channel_zeros(r, call, zero)
    if isinstance(v, Quantized):
        if v.role == "flags":
            return replace(v, role="", clamp=NO_CLAMP)
        if v.role == "codes":
            offset = RANGES[str(call.args[0].ty.dtype)][0] - RANGES[v.dtype][0]
        else:  # the integers themselves
            offset = -v.zero_point
        zeros = tuple(i - offset for i in zeros)
        return replace(v, clamp=NO_CLAMP, scale=s, zero_point=z - offset, channel_zeros=zeros, role="")
    dtype = r.builder.types[v.name].dtype.removeprefix("u")
    if dtype not in ("int8", "int16"):
        raise CompileError(f"DequantizeLinear of {dtype} is not supported; use 8 or 16 bits")
    if v.root and not zeros:
        r.builder.program.info.setdefault("inputs", {})[v.root] = [s, z]
    name, offset = r.signed(v)
    zeros = tuple(i + offset for i in zeros)
    info = np.iinfo(dtype)
    ends = int(info.min), int(info.max)
    return Quantized(name, v.axes, v.shape, s, z + offset, dtype, *ends, channel_zeros=zeros)


def _per_index(r: Reader, v: Any, scale: np.ndarray, zero: np.ndarray, call: Any) -> Rows:
    """Codes with a scale for each index along an axis: what an output may be, with one zero point."""
    read = [b for b in r.users.get(r.call_var, []) if not isinstance(b.value, relax.Tuple | relax.Var)]
    if read or not isinstance(v, Integers | Quantized) or zero.min() != zero.max():
        raise CompileError(
            "activations dequantized per channel are not supported, except for outputs with one zero point; use one "
            "scale per activation tensor"
        )
    name, offset = r.signed(v) if isinstance(v, Integers) else (v.name, 0)
    if isinstance(v, Quantized):
        offset = -{"uint8": 128, "uint16": 32768}.get(str(call.args[0].ty.dtype), 0)
    return Rows(name, v.axes, v.shape, scale.ravel(), int(zero.flat[0]) + offset, int(call.attrs.axis) % len(v.shape))


def _channel_zeros(r: Reader, call: Any, zero: np.ndarray) -> tuple[int, ...]:
    """Zero points that differ from channel to channel, for convolutions, whose padding is made of them."""
    if (zero == zero.flat[0]).all():
        return ()
    readers = [b.value for b in r.users.get(r.call_var, [])]
    layers = [c for c in readers if getattr(getattr(c, "op", None), "name", "") in CONVOLUTIONS]
    data = all(c.args[0].same_as(r.call_var) for c in layers)
    if len(layers) != len(readers) or int(call.attrs.axis) != 1 or not data:
        raise CompileError("activations with zero points per channel are supported as input of a convolution only")
    return tuple(int(i) for i in zero.ravel())
