"""Converters of the operators that slide windows over an image or a sequence: convolutions and pools.

1-D transposed convolutions and pools become 2-D ones of height 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qcompile.importer.converters import Converter, text
from qcompile.targets.errors import CompileError
from tvm import relax


def _integers(attr: dict, name: str, default: list[int]) -> list[int]:
    return [int(i) for i in attr.get(name, default)]


def _size(x: Any) -> list[int]:
    return [int(i) for i in x.ty.shape][2:]


def _check_rank(x: Any) -> int:
    """The number of spatial axes, 1 or 2."""
    n = len(x.ty.shape) - 2
    if n not in (1, 2):
        raise CompileError(f"an input of {n + 2} axes is not supported; use 1-D or 2-D windows")
    return n


def _halves(total: list[int], upper: bool) -> list[int]:
    """Padding split into [*before, *after], the larger half after if `upper`."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*small, *large] if upper else [*large, *small]


def window_pads(attr: dict, size: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """[*before, *after] as pads or auto_pad say."""
    auto = text(attr, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        return _integers(attr, "pads", [0] * 2 * len(size))
    if auto == "VALID":
        return [0] * 2 * len(size)
    total = [
        max((-(-s // st) - 1) * st + d * (k - 1) + 1 - s, 0) for s, st, d, k in zip(size, strides, dilations, kernel)
    ]
    return _halves(total, auto == "SAME_UPPER")


def as_2d(bb: Any, x: Any, op: Callable[[Any], Any]) -> Any:
    """op on [N, C, L] seen as [N, C, 1, L]."""
    return relax.op.squeeze(bb.normalize(op(bb.normalize(relax.op.expand_dims(x, 2)))), [2])


def _with_bias(bb: Any, y: Any, bias: Any) -> Any:
    if bias is None:
        return y
    y = bb.normalize(y)
    return relax.op.add(y, bb.normalize(relax.op.reshape(bias, [1, -1] + [1] * (len(y.ty.shape) - 2))))


class Conv(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, w = inputs[0], inputs[1]
        n = _check_rank(x)
        strides, dilations = (_integers(attr, k, [1] * n) for k in ("strides", "dilations"))
        pads = window_pads(attr, _size(x), _size(w), strides, dilations)
        op = relax.op.nn.conv1d if n == 1 else relax.op.nn.conv2d
        return _with_bias(bb, op(x, w, strides, pads, dilations, int(attr.get("group", 1))), inputs[2])


class ConvTranspose(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, w = inputs[0], inputs[1]
        n = _check_rank(x)
        strides, dilations = (_integers(attr, k, [1] * n) for k in ("strides", "dilations"))
        extra = _integers(attr, "output_padding", [0] * n)
        auto = text(attr, "auto_pad", "NOTSET")
        pads = [0] * 2 * n if auto == "VALID" else _integers(attr, "pads", [0] * 2 * n)
        if "output_shape" in attr or auto.startswith("SAME"):
            out = _integers(attr, "output_shape", [s * st for s, st in zip(_size(x), strides)])[-n:]
            total = [
                st * (s - 1) + e + d * (k - 1) + 1 - o
                for st, s, e, d, k, o in zip(strides, _size(x), extra, dilations, _size(w), out)
            ]
            pads = _halves([max(t, 0) for t in total], auto == "SAME_UPPER")
            extra = [e + max(-t, 0) for e, t in zip(extra, total)]
        groups = int(attr.get("group", 1))
        if n == 2:
            return _with_bias(
                bb, relax.op.nn.conv2d_transpose(x, w, strides, pads, extra, dilations, groups), inputs[2]
            )
        w4 = bb.normalize(relax.op.expand_dims(w, 2))

        def op(x4: Any) -> Any:
            return relax.op.nn.conv2d_transpose(
                x4,
                w4,
                [1, *strides],
                [0, pads[0], 0, pads[1]],
                [0, *extra],
                [1, *dilations],
                groups,
            )

        return as_2d(bb, x, lambda x4: _with_bias(bb, op(x4), inputs[2]))


def _pool(op: Any, bb: Any, x: Any, attr: dict, **extra: Any) -> Any:
    n, kernel = _check_rank(x), _integers(attr, "kernel_shape", [])
    strides, dilations = (_integers(attr, k, [1] * n) for k in ("strides", "dilations"))
    pads = window_pads(attr, _size(x), kernel, strides, dilations)
    ceil = bool(attr.get("ceil_mode", 0))
    if n == 2:
        return op(x, kernel, strides, pads, dilations, ceil, **extra)
    return as_2d(
        bb, x, lambda x4: op(x4, [1, *kernel], [1, *strides], [0, pads[0], 0, pads[1]], [1, *dilations], ceil, **extra)
    )


class MaxPool(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return _pool(relax.op.nn.max_pool2d, bb, inputs[0], attr)


class AveragePool(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        return _pool(
            relax.op.nn.avg_pool2d, bb, inputs[0], attr, count_include_pad=bool(attr.get("count_include_pad", 0))
        )


OPERATORS = (Conv, ConvTranspose, MaxPool, AveragePool)
