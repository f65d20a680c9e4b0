"""Converters that replace or add to those of TVM's ONNX frontend.

TVM writes Clip, Pad, Gather, Tile, Max and InstanceNormalization as several ops or as opaque TIR calls; here each is
one or two Relax ops. CompileErrors get the node's name where they are caught.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from qcompile.targets.errors import CompileError
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax.frontend.onnx import onnx_frontend as frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter


def _array(expr: Any) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def needs_constant(expr: Any, what: str) -> np.ndarray:
    value = _array(expr)
    if value is None:
        raise CompileError(f"{what} must be constant")
    return value


def text(attr: dict, name: str, default: str) -> str:
    """A string attribute."""
    value = attr.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


class Converter(OnnxOpConverter):
    """One converter for every opset: models arrive normalised."""

    @classmethod
    def get_converter(cls, opset: int) -> Any:
        return cls.convert


class Clip(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        low, high = (
            float(needs_constant(inputs[i], "a limit of Clip").reshape(-1)[0]) if inputs[i] is not None else default
            for i, default in ((1, -np.inf), (2, np.inf))
        )
        # one scalar op a limit: relax.clip cannot hold infinities
        x = inputs[0]
        if np.isfinite(low):
            x = relax.op.maximum(x, relax.const(low, x.ty.dtype))
        if np.isfinite(high):
            x = relax.op.minimum(bb.normalize(x), relax.const(high, inputs[0].ty.dtype))
        return x


class Pad(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x = inputs[0]
        pads = needs_constant(inputs[1], "Pad's amounts")
        rank = len(x.ty.shape)
        axes = range(rank) if inputs[3] is None else [int(a) % rank for a in needs_constant(inputs[3], "Pad's axes")]
        width = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            width[2 * axis], width[2 * axis + 1] = int(pads[i]), int(pads[i + len(pads) // 2])
        value = 0.0 if inputs[2] is None else float(needs_constant(inputs[2], "Pad's value").reshape(-1)[0])
        mode = text(attr, "mode", "constant")
        modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}  # numpy's name: TVM's
        if mode not in modes:
            raise CompileError(f"Pad with mode {mode} is not supported; use constant, edge or reflect")
        if min(width) < 0:  # negative amounts crop
            size = [int(i) for i in x.ty.shape]
            begin, end = [max(-w, 0) for w in width[0::2]], [n + min(w, 0) for n, w in zip(size, width[1::2])]
            x = bb.normalize(relax.op.strided_slice(x, list(range(rank)), begin, end))
        return relax.op.nn.pad(x, [max(w, 0) for w in width], modes[mode], value)


class Gather(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        axis = int(attr.get("axis", 0)) % len(inputs[0].ty.shape)
        return relax.op.take(inputs[0], inputs[1], axis)


class Cast(frontend.Cast):
    """Floats to integers without TVM's guard: what it asks of NaN and infinities has no meaning in integers."""

    @classmethod
    def get_converter(cls, opset: int) -> Any:
        return cls.convert

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        to = frontend.get_type(attr["to"])
        if _array(inputs[0]) is None and "int" in to and "float" in str(inputs[0].ty.dtype):
            return relax.op.astype(inputs[0], to)
        return super()._impl_v13(bb, inputs, attr, params)


class Tile(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return relax.op.tile(inputs[0], [int(i) for i in needs_constant(inputs[1], "Tile's repeats")])


class InstanceNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        rank = len(inputs[0].ty.shape)
        return relax.op.nn.instance_norm(
            inputs[0], inputs[1], inputs[2], 1, list(range(2, rank)), float(attr.get("epsilon", 1e-5))
        )


class GroupNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        rank = len(inputs[0].ty.shape)
        return relax.op.nn.group_norm(
            inputs[0],
            inputs[1],
            inputs[2],
            int(attr["num_groups"]),
            1,
            list(range(2, rank)),
            float(attr.get("epsilon", 1e-5)),
        )


class SimplifiedLayerNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return relax.op.nn.rms_norm(inputs[0], inputs[1], [int(attr.get("axis", -1))], float(attr.get("epsilon", 1e-5)))


class ArgMax(Converter):
    op = relax.op.argmax

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        if attr.get("select_last_index", 0):
            raise CompileError("select_last_index=1 is not supported; use 0")
        return cls.op(inputs[0], int(attr.get("axis", 0)), bool(attr.get("keepdims", 1)))


class ArgMin(ArgMax):
    op = relax.op.argmin


class Max(Converter):
    """Max, Min, Sum: one op for each further input."""

    op = relax.op.maximum

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        result, *rest = list(inputs)
        for x in rest:
            result = bb.normalize(cls.op(result, x))
        return result


class Min(Max):
    op = relax.op.minimum


class Sum(Max):
    op = relax.op.add


class Mean(Sum):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        total = super().convert(bb, inputs, attr, params)
        return relax.op.divide(total, relax.const(float(len(list(inputs))), total.ty.dtype))


OPERATORS = (
    Clip,
    Pad,
    Gather,
    Cast,
    Tile,
    InstanceNormalization,
    GroupNormalization,
    SimplifiedLayerNormalization,
    ArgMax,
    ArgMin,
    Max,
    Min,
    Sum,
    Mean,
)
