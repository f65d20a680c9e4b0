"""Converters that replace or add to those of TVM's ONNX frontend.

TVM writes Clip, Pad, Gather, Tile and InstanceNormalization as several ops or as opaque TIR calls; here each is one Relax op.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter


def _array(expr: Any) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def _needs_constant(expr: Any, what: str) -> np.ndarray:
    value = _array(expr)
    if value is None:
        raise ValueError(f"{what} must be constant")
    return value


class Converter(OnnxOpConverter):
    """One converter for every opset: models arrive normalised."""

    @classmethod
    def get_converter(cls, opset: int) -> Any:
        return cls.convert


class Clip(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        low, high = (float(_needs_constant(inputs[i], "a limit of Clip")) if inputs[i] is not None else default
                     for i, default in ((1, -np.inf), (2, np.inf)))
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
        pads = _needs_constant(inputs[1], "Pad's amounts")
        rank = len(inputs[0].ty.shape)
        axes = range(rank) if inputs[3] is None else [int(a) % rank for a in _needs_constant(inputs[3], "Pad's axes")]
        width = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            width[2 * axis], width[2 * axis + 1] = int(pads[i]), int(pads[i + len(pads) // 2])
        value = 0.0 if inputs[2] is None else float(_needs_constant(inputs[2], "Pad's value"))
        mode = attr.get("mode", b"constant")
        mode = mode.decode() if isinstance(mode, bytes) else mode
        if min(width) < 0 or mode not in ("constant", "edge", "reflect"):
            raise ValueError(f"Pad with mode {mode} or negative amounts is not supported; use constant, edge or reflect")
        call = relax.op.nn.pad(inputs[0], width, "constant", value)
        if mode == "constant":
            return call
        return relax.op.nn.pad(inputs[0], width, "reflect" if mode == "reflect" else "replicate", value)


class Gather(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        axis = int(attr.get("axis", 0)) % len(inputs[0].ty.shape)
        return relax.op.take(inputs[0], inputs[1], axis)


class Tile(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return relax.op.tile(inputs[0], [int(i) for i in _needs_constant(inputs[1], "Tile's repeats")])


class InstanceNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        rank = len(inputs[0].ty.shape)
        return relax.op.nn.instance_norm(inputs[0], inputs[1], inputs[2], 1, list(range(2, rank)), float(attr.get("epsilon", 1e-5)))


class GroupNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        rank = len(inputs[0].ty.shape)
        return relax.op.nn.group_norm(inputs[0], inputs[1], inputs[2], int(attr["num_groups"]), 1, list(range(2, rank)),
                                      float(attr.get("epsilon", 1e-5)))


class SimplifiedLayerNormalization(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return relax.op.nn.rms_norm(inputs[0], inputs[1], [int(attr.get("axis", -1))], float(attr.get("epsilon", 1e-5)))


class MaxPool(Converter):
    """1-D and 2-D; 1-D pools are 2-D ones of height 1."""

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return pool(relax.op.nn.max_pool2d, bb, inputs[0], attr)


class AveragePool(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return pool(relax.op.nn.avg_pool2d, bb, inputs[0], attr, count_include_pad=bool(attr.get("count_include_pad", 0)))


def pool(op: Any, bb: Any, x: Any, attr: dict, **extra: Any) -> Any:
    kernel = [int(i) for i in attr["kernel_shape"]]
    n = len(kernel)
    if n > 2:
        raise ValueError("3-D pooling is not supported")
    strides, dilations = ([int(i) for i in attr.get(k, [1] * n)] for k in ("strides", "dilations"))
    size = [int(i) for i in x.ty.shape][2:]
    auto = attr.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    pads = [int(i) for i in attr.get("pads", [0] * 2 * n)] if auto in ("NOTSET", "VALID") else []
    if auto == "VALID":
        pads = [0] * 2 * n
    if not pads:
        total = [max((-(-s // st) - 1) * st + d * (k - 1) + 1 - s, 0) for s, st, d, k in zip(size, strides, dilations, kernel)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    ceil = bool(attr.get("ceil_mode", 0))
    if n == 2:
        return op(x, kernel, strides, pads, dilations, ceil, **extra)
    x4 = bb.normalize(relax.op.expand_dims(x, 2))
    y = bb.normalize(op(x4, [1, *kernel], [1, *strides], [0, pads[0], 0, pads[1]], [1, *dilations], ceil, **extra))
    return relax.op.squeeze(y, [2])


CONVERTERS = {c.__name__: c for c in (Clip, Pad, Gather, Tile, InstanceNormalization, GroupNormalization,
                                      SimplifiedLayerNormalization, MaxPool, AveragePool)}
