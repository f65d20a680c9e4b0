"""The converter of Resize: every mode of ONNX, as weighted sums along each axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from qcompile.importer.converters import Converter, needs_constant, text
from qcompile.importer.resampling import Axis, taps
from qcompile.passes.source_ops import source_op
from qcompile.targets.errors import CompileError
from tvm import relax


def _axes(shape: list[int], inputs: Any, attr: dict) -> dict[int, Axis]:
    """What happens to each axis that the node names."""
    names = [int(a) % len(shape) for a in attr.get("axes", range(len(shape)))]
    scales, sizes = (
        needs_constant(inputs[i], "the size of Resize") if inputs[i] is not None else np.zeros(0) for i in (2, 3)
    )
    roi = needs_constant(inputs[1], "the region of Resize") if inputs[1] is not None else np.zeros(0)
    ends = [float(v) for v in roi] if roi.size == 2 * len(names) else [0.0] * len(names) + [1.0] * len(names)
    if not sizes.size:
        factors = [float(s) for s in scales]
        outs = [int(np.floor(shape[a] * s + 1e-9)) for a, s in zip(names, factors)]
    else:
        outs = [int(s) for s in sizes]
        factors = [o / shape[a] for a, o in zip(names, outs)]
        policy = text(attr, "keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(names)
            outs = [int(np.floor(shape[a] * f + 0.5)) for a, f in zip(names, factors)]
    return {
        a: Axis(shape[a], o, f, ends[k], ends[k + len(names)]) for k, (a, o, f) in enumerate(zip(names, outs, factors))
    }


COUNTING = ("align_corners", "tf_crop_and_resize")  # positions depend on the size of the result


class Resize(Converter):
    """source.resample(x, numbers and weights of each axis); see importer.resampling."""

    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        x = inputs[0]
        shape, dtype = [int(i) for i in x.ty.shape], str(x.ty.dtype)
        method, mode = text(attr, "mode", "nearest"), text(attr, "coordinate_transformation_mode", "half_pixel")
        tables, axes, inside, out = [], [], np.ones([1] * len(shape), bool), list(shape)
        for a, axis in sorted(_axes(shape, inputs, attr).items()):
            if mode in COUNTING and abs(axis.scale * axis.size - axis.out) > 1e-3:
                raise CompileError(
                    f"Resize of an axis of {axis.size} by {axis.scale:.4g} with {mode}: ONNX and ONNX Runtime differ "
                    "where that is no whole size; give sizes"
                )
            numbers, weights = taps(
                axis,
                method,
                mode,
                text(attr, "nearest_mode", "round_prefer_floor"),
                float(attr.get("cubic_coeff_a", -0.75)),
                bool(attr.get("antialias", 0)),
                bool(attr.get("exclude_outside", 0)),
            )
            out[a] = axis.out
            along = [-1 if i == a else 1 for i in range(len(shape))]
            inside = inside & (weights != 0).any(0).reshape(along)
            if axis.out == axis.size and weights.shape == (1, axis.size) and (numbers == np.arange(axis.size)).all():
                continue
            tables += [relax.const(numbers), relax.const(weights.astype(np.float32))]
            axes.append(a)
        y = source_op("resample", [x, *tables], out, dtype, axes=axes, nearest=int(method == "nearest")) if axes else x
        if inside.all() or not (value := float(attr.get("extrapolation_value", 0.0))):
            return y
        return relax.op.add(bb.normalize(y), relax.const(np.where(inside, 0, value).astype(dtype)))


OPERATORS = (Resize,)
