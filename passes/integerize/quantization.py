"""QuantizeLinear and DequantizeLinear: where deferred values get their grid, and where integers become values."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.passes.integerize.reader import Reader, grid_of, handles
from qcompile.passes.integerize.values import NO_CLAMP, Function, Integers, Quantized, Real, Weights
from qcompile.targets.errors import CompileError
from tvm import relax


@handles("relax.quantize")
def quantize(r: Reader, call: Any, args: list[Any]) -> Any:
    v, grid = args[0], grid_of(call)
    if isinstance(v, Real):
        scale, zero = np.asarray(args[1].values, np.float64), np.asarray(args[2].values, np.int64)
        info = np.iinfo(str(call.attrs.out_dtype))
        codes = np.rint(v.values / _along(scale, v, call)) + _along(zero, v, call)
        return Real(np.clip(codes, info.min, info.max).astype(str(call.attrs.out_dtype)))
    if grid is None:
        raise CompileError("activations quantized per channel are not supported; use one scale per activation tensor")
    if isinstance(v, Integers):
        if not v.graph_input:
            raise CompileError("an integer tensor goes into QuantizeLinear; cast it to float or quantize it before")
        return r.quantize_input(v, grid)
    if isinstance(v, Weights) and _only_feeds_matmul(r, r.call_var):
        return v                                    # attention keeps the numerators instead
    return r.make.quantize(v, grid)


def _along(p: np.ndarray, v: Real, call: Any) -> np.ndarray:
    if p.size == 1:
        return p.reshape(())
    shape = [1] * v.values.ndim
    shape[int(call.attrs.axis)] = p.size
    return p.reshape(shape)


def _only_feeds_matmul(r: Reader, var: Any) -> bool:
    """True if the quantized softmax is only dequantized again, as the first operand of products."""
    if not r.users.get(var):
        return False
    for binding in r.users[var]:
        if getattr(binding.value.op, "name", "") != "relax.dequantize":
            return False
        for user in r.users.get(binding.var, []):
            call = user.value
            if not isinstance(call, relax.Call) or call.op.name != "relax.matmul" or not call.args[0].same_as(binding.var):
                return False
    return True


@handles("relax.dequantize")
def dequantize(r: Reader, call: Any, args: list[Any]) -> Any:
    v, scale, zero = args[0], np.asarray(args[1].values, np.float64), np.asarray(args[2].values).astype(np.int64)
    if isinstance(v, Real):
        scale, zero = _along(scale, v, call), _along(zero, v, call)
        return Real(((v.values.astype(np.int64) - zero) * scale).astype(np.float64), scale)
    if isinstance(v, Weights | Function):
        return v
    if scale.size != 1:
        raise CompileError("activations dequantized per channel are not supported")
    s = float(scale.ravel()[0])
    if isinstance(v, Quantized):
        return replace(v, clamp=NO_CLAMP)           # quantize and dequantize carry the same parameters
    dtype = r.builder.types[v.name].dtype
    if dtype not in ("int8", "int16"):
        raise CompileError(f"DequantizeLinear of {dtype} is not supported; use 8 or 16 bits")
    info, z = np.iinfo(dtype), int(zero.ravel()[0])
    if v.root:
        r.builder.program.info.setdefault("inputs", {})[v.root] = [s, z]
    if str(call.args[0].ty.dtype) == "uint8":
        z -= 128
    return Quantized(v.name, v.axes, v.shape, s, z, dtype, int(info.min), int(info.max))
