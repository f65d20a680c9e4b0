"""States that go from call to call: both ends in one type, on one scale."""

from __future__ import annotations

import numpy as np
from qcompile.passes.integerize.reader import Reader
from qcompile.passes.integerize.values import Grid, Quantized, Value
from qcompile.targets.errors import CompileError


def settled_state(r: Reader, v: Value, source: str | None) -> Quantized:
    """A graph output as integers: like the input `source` that it is fed back to, else on its own grid.

    Where the model has the same scale at both ends, as our quantizer writes it, nothing is converted.
    """
    if source is None:
        return r.make.settle(v)
    scales = r.builder.program.info.get("inputs", {}).get(source)
    if scales is None or source not in r.builder.types:
        raise CompileError(f"state {source} is not quantized: nothing reads it")
    dtype = r.builder.types[source].dtype
    if dtype not in ("int8", "int16"):
        raise CompileError(f"state {source} has type {dtype}; states are int8 or int16")
    info = np.iinfo(dtype)
    return r.make.quantize(v, Grid(scales[0], scales[1], dtype, int(info.min), int(info.max)))
