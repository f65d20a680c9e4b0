"""Converters of what picks and places elements by number."""

from __future__ import annotations

from typing import Any

from qcompile.importer.converters import Converter, needs_constant, text
from qcompile.passes.source_ops import source_op
from qcompile.targets.errors import CompileError
from tvm import relax


def _shape(x: Any) -> list[int]:
    return [int(i) for i in x.ty.shape]


class GatherElements(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, indices = inputs[0], inputs[1]
        axis = int(attr.get("axis", 0)) % len(_shape(x))
        return source_op("gather_elements", [x, indices], _shape(indices), str(x.ty.dtype), axis=axis)


class GatherND(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, indices, batch = inputs[0], inputs[1], int(attr.get("batch_dims", 0))
        at = _shape(indices)
        out = [*at[:-1], *_shape(x)[batch + at[-1] :]]
        return source_op("gather_nd", [x, indices], out, str(x.ty.dtype), batch=batch)


class ScatterElements(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x = inputs[0]
        axis, reduction = int(attr.get("axis", 0)) % len(_shape(x)), text(attr, "reduction", "none")
        return source_op("scatter_elements", inputs[:3], _shape(x), str(x.ty.dtype), axis=axis, reduction=reduction)


class Scatter(ScatterElements):
    """The operator's name before opset 11."""


class ScatterND(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x = inputs[0]
        return source_op(
            "scatter_nd", inputs[:3], _shape(x), str(x.ty.dtype), reduction=text(attr, "reduction", "none")
        )


class TopK(Converter):
    """(values, numbers), sorted whether or not that is asked for."""

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, k = inputs[0], int(needs_constant(inputs[1], "TopK's k").reshape(-1)[0])
        out, dtype = _shape(x), str(x.ty.dtype)
        axis = int(attr.get("axis", -1)) % len(out)
        if not 0 < k <= out[axis]:
            raise CompileError(f"TopK of {k} elements of an axis of {out[axis]}")
        out[axis] = k
        numbers = bb.emit(source_op("top_k", [x], out, "int64", axis=axis, k=k, largest=int(attr.get("largest", 1))))
        values = bb.emit(source_op("gather_elements", [x, numbers], out, dtype, axis=axis))
        return relax.Tuple([values, numbers])


class GridSample(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x, grid = inputs[:2]
        out = [*_shape(x)[:2], *_shape(grid)[1:-1]]
        mode, padding = text(attr, "mode", "linear"), text(attr, "padding_mode", "zeros")
        given = {"mode": mode, "padding": padding, "corners": int(attr.get("align_corners", 0))}
        return source_op("grid_sample", [x, grid], out, str(x.ty.dtype), **given)


class NonMaxSuppression(Converter):
    """Of our own domain: rows of numbers, -1 where nothing is selected."""

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        if "shape" not in attr:
            raise CompileError("the shapes of its boxes and scores are unknown; export the model with fixed shapes")
        rows = [int(n) for n in attr["shape"]]
        overlap, least = (float(needs_constant(inputs[i], "a threshold").reshape(-1)[0]) for i in (3, 4))
        centers = int(attr.get("center_point_box", 0))
        given = {"overlap": overlap, "least": least, "centers": centers}
        return source_op("non_max_suppression", inputs[:2], rows, "int64", **given)


OPERATORS = (GatherElements, GatherND, GridSample, NonMaxSuppression, ScatterElements, Scatter, ScatterND, TopK)
