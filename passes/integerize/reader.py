"""Walks the float Relax function in order and asks a handler per op what each tensor becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.dialect import Type
from qcompile.passes.integerize.approximations import APPROXIMATIONS
from qcompile.passes.integerize.builder import Builder
from qcompile.passes.integerize.maker import Maker
from qcompile.passes.integerize.values import (
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    Sum,
    Value,
    identity,
    unknown_range,
    value_range,
)
from qcompile.passes.origins import with_origins
from qcompile.targets.errors import CompileError
from tvm import relax
from tvm.ir.expr import GenericConst

Handler = Callable[["Reader", Any, list[Any]], Any]
HANDLERS: dict[str, Handler] = {}

MOVEMENT = {
    "relax.reshape",
    "relax.permute_dims",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.strided_slice",
    "relax.split",
    "relax.concat",
    "relax.broadcast_to",
    "relax.flatten",
    "relax.nn.max_pool2d",
    "relax.take",
    "relax.nn.pad",
    "relax.tile",
}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for Relax ops; it gets (reader, call, values of the arguments)."""

    def register(f: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, f))
        return f

    return register


def shape_of(expr: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in expr.ty.shape)


def integers(seq: Any) -> list[int]:
    return [int(i) for i in seq]


def scalar(expr: Any) -> float:
    """A constant scalar argument."""
    if isinstance(expr, GenericConst):
        return float(expr.value.numpy())
    return float(expr.value if hasattr(expr, "value") else expr)


def is_whole(expr: Any) -> bool:
    """Whether a tensor holds integers or truth values, not reals."""
    dtype = str(getattr(getattr(expr, "ty", None), "dtype", ""))
    return dtype == "bool" or "int" in dtype


def whole_grid() -> Grid:
    """16 bits of scale 1: arithmetic on integers saturates there."""
    return Grid(1.0, 0, "int16", -32768, 32767)


class Notes(list):
    """Remarks for the user, each with the node that it is about."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def append(self, note: str) -> None:
        super().append(f"{self.reader.where}: {note}")


class Reader:
    """The state of one reading: values by variable, users of each variable, names for messages, notes for the user."""

    def __init__(self, function: Any, names: dict[str, str], approx: str = "exact") -> None:
        self.function = function
        self.names = names  # Relax variable -> ONNX tensor
        self.approximation = APPROXIMATIONS[approx]
        self.where = ""
        self.builder = Builder((names.get(p.name, p.name) for p in function.params), lambda: self.where)
        self.make = Maker(self.builder)
        self.values: dict[Any, Any] = {}
        self.users: dict[Any, list[Any]] = {}
        self.input_grids: dict[str, Quantized] = {}  # float inputs as their first QuantizeLinear made them
        self.normalised: dict[Any, list[Any]] = {}  # what is normalised, and how -> results of 16 bits
        self.tuples = {b.var: b.value for b in self.bindings() if isinstance(b.value, relax.Tuple)}
        self.sums: dict[str, Accumulator] = {}  # by the int32 tensor that holds them
        self.notes = Notes(self)
        for binding in self.bindings():
            for arg in self._vars(binding.value):
                self.users.setdefault(arg, []).append(binding)

    def bindings(self) -> list[Any]:
        return [b for block in self.function.body.blocks for b in block.bindings]

    @staticmethod
    def _vars(expr: Any) -> list[Any]:
        if isinstance(expr, relax.Var):
            return [expr]
        if isinstance(expr, relax.TupleGetItem):
            return Reader._vars(expr.tuple_value)
        if isinstance(expr, relax.Tuple):
            return [v for f in expr.fields for v in Reader._vars(f)]
        if isinstance(expr, relax.Call):
            return [v for a in expr.args for v in Reader._vars(a)]
        return []

    def read(self) -> None:
        for param in self.function.params:
            self.values[param] = self._graph_input(param)
        for binding in self.bindings():
            self.where = self.names.get(binding.var.name, binding.var.name)
            with self.naming():
                value = self._value(binding.value, binding.var)
                whole = is_whole(binding.var) and isinstance(value, Sum | Deferred)
                if isinstance(value, Accumulator) and value.whole and is_whole(binding.var):
                    value = value if self._only_cast_to_floats(binding.var) else self.exact_sums(value)
                self.values[binding.var] = self.whole_numbers(value) if whole else value

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Errors in here name what is being read, and what made the integers that they speak of."""
        try:
            yield
        except CompileError as e:
            told = with_origins(str(e), self.builder.origins)
            raise CompileError(told if self.where in told else f"{self.where}: {told}") from e

    def _graph_input(self, param: Any) -> Integers:
        shape, dtype = shape_of(param), str(param.ty.dtype)
        name = self.names.get(param.name, param.name)
        stored = {"float32": "int8", "float16": "int8", "float64": "int8", "int64": "int32", "bool": "int8"}.get(
            dtype, dtype
        )
        if stored not in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"):
            raise CompileError(f"input {name} has type {dtype}; inputs are float, integers of 8 to 64 bits, or bool")
        if dtype.startswith("float"):
            return Integers(name, identity(len(shape)), shape, graph_input=True)  # typed by its first QuantizeLinear
        self.builder.input(name, Type(shape, stored))
        return Integers(name, identity(len(shape)), shape, root=name)

    def signed(self, v: Integers) -> tuple[str, int]:
        """(an integer tensor of 8 or 16 bits in a type with sign, what 0 is in it)."""
        dtype = self.builder.types[v.name].dtype
        if dtype not in ("uint8", "uint16"):
            return v.name, 0
        offset = RANGES[dtype.removeprefix("u")][0]
        return self.builder.emit("cast", [v.name], offset=offset, dtype=dtype.removeprefix("u")), offset

    def _value(self, expr: Any, var: Any = None) -> Any:
        if isinstance(expr, relax.Var):
            return self.values[expr]
        if isinstance(expr, GenericConst):
            return Real(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return [self._value(f) for f in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.Call):
            self.call_var = var
            name = expr.op.name if hasattr(expr.op, "name") else str(expr.op)
            if name not in HANDLERS:
                what = "this operator" if name == "relax.call_tir" else name.removeprefix("relax.")
                raise CompileError(
                    f"{self.where}: {what} has no integer form; replace it, or leave it out of the exported model"
                )
            return HANDLERS[name](self, expr, [self._value(a) for a in expr.args])
        return expr  # shapes and attribute-like arguments

    # ---- looking ahead -----------------------------------------------------------------------------------------------
    def upcoming_grid(self, var: Any, through: AbstractSet[str] = frozenset()) -> Grid | None:
        """The grid on which every reader quantizes `var`, through data movement and the ops `through`; None where they
        do not agree."""
        grids = set()
        for binding in self.users.get(var, []):
            call = binding.value
            if isinstance(call, relax.TupleGetItem) and not self._is_read(binding.var):
                continue
            if isinstance(call, relax.TupleGetItem) or (
                isinstance(call, relax.Call) and getattr(call.op, "name", "") in MOVEMENT | through
            ):
                grids.add(self.upcoming_grid(binding.var, through))
            elif isinstance(call, relax.Call) and call.op.name == "relax.quantize":
                grids.add(grid_of(call))
            else:
                return None
        return grids.pop() if len(grids) == 1 else None

    def _is_read(self, var: Any) -> bool:
        """Whether anything reads the variable, or it is a result."""
        body = self.function.body.body
        results = body.fields if isinstance(body, relax.Tuple) else [body]
        return bool(self.users.get(var)) or any(var.same_as(r) for r in results)

    def settled(self, v: Value, var: Any) -> Value:
        """`v` ready to be moved about: constants, integers and quantized tensors as they are; what is deferred is made
        now, on the grid that is asked for later if that is known. Raises CompileError for a float input of which it is
        not."""
        if isinstance(v, Integers) and v.graph_input:
            grid = self.upcoming_grid(var) if var is not None else None
            if grid is None:
                raise unknown_range(v.name)
            return self.quantize_input(v, grid)
        if isinstance(v, Real | Integers | Quantized):
            return v
        if isinstance(v, Function) and len(v.values) <= 256:
            return v
        grid = self.upcoming_grid(var) if var is not None else None
        return self.make.quantize(v, grid) if grid else self.make.settle(v)

    def whole_numbers(self, v: Value) -> Quantized:
        """The result of arithmetic on integers."""
        low, high = value_range(v)
        if low < -32768 or high > 32767:
            self.notes.append("arithmetic on integers saturates at 16 bits")
        return self.make.quantize(v, whole_grid())

    def exact_sums(self, v: Accumulator) -> Integers:
        """The int32 tensor of sums that are integers themselves; casts to floats find the sums again."""
        name, _ = self.make.accumulate(v)
        self.sums[name] = v
        self.builder.intervals[name] = (-int(v.bound), int(v.bound))
        return Integers(name, v.axes, v.shape)

    def _only_cast_to_floats(self, var: Any) -> bool:
        calls = [b.value for b in self.users.get(var, [])]
        casts = [c for c in calls if getattr(getattr(c, "op", None), "name", "") == "relax.astype"]
        return bool(calls) and len(casts) == len(calls) and all("float" in str(c.attrs.dtype) for c in casts)

    def type_of(self, body: Any, index: int) -> Any:
        """What carries the type of the function's result `index`."""
        if isinstance(body, relax.Var) and body in self.tuples:
            body = self.tuples[body]
        return body.fields[index] if isinstance(body, relax.Tuple) else body

    def whole(self, v: Value) -> Value:
        """A result of integer type as plain integers, except for codes, which have their QuantizeLinear's scale."""
        if isinstance(v, Accumulator) and v.whole:
            return self.exact_sums(v)
        if isinstance(v, Quantized) and not (v.per_tensor and v.scale == 1 and v.zero_point == 0):
            return v
        q = self.whole_numbers(v)
        return Integers(q.name, q.axes, q.shape)

    def keep_input(self, param: Any) -> None:
        """An input that nothing reads stays an input (int8, scale 1), so that callers need not change."""
        name = self.names.get(param.name, param.name)
        if name not in self.builder.program.inputs:
            self.builder.input(name, Type(shape_of(param), "int8"))
            self.builder.program.info.setdefault("inputs", {})[name] = [1.0, 0]

    def quantize_input(self, v: Integers, grid: Grid) -> Quantized:
        """A float graph input on the grid of its first (or its first 16-bit) QuantizeLinear; others rescale it."""
        if v.name in self.input_grids:
            return self.make.quantize(replace(self.input_grids[v.name], axes=v.axes), grid)
        widest = max([grid, *self._input_grids_asked(v.name)], key=lambda g: np.dtype(g.dtype).itemsize)
        if widest != grid:
            self.quantize_input(v, widest)
            return self.quantize_input(v, grid)
        self.builder.input(v.name, Type(v.shape, grid.dtype))
        self.builder.program.info.setdefault("inputs", {})[v.name] = [grid.scale, grid.zero_point]
        q = Quantized(v.name, v.axes, v.shape, grid.scale, grid.zero_point, grid.dtype, grid.lo, grid.hi)
        self.input_grids[v.name] = q
        return q

    def _input_grids_asked(self, name: str) -> list[Grid]:
        """The grids on which a graph input is quantized directly."""
        params = [p for p in self.function.params if self.names.get(p.name, p.name) == name]
        calls = [b.value for p in params for b in self.users.get(p, [])]
        grids = [
            grid_of(c) for c in calls if isinstance(c, relax.Call) and getattr(c.op, "name", "") == "relax.quantize"
        ]
        return [g for g in grids if g is not None]

    def operand(self, v: Value, what: str) -> Quantized:
        """An 8-bit per-tensor operand of a product, without a pending clamp."""
        if isinstance(v, Integers):
            raise CompileError(f"{self.where}: {what} {v.name} is float but has no QuantizeLinear; calibrate the model")
        if isinstance(v, Quantized) and v.dtype == "int16" and v.hi - v.lo > 255:
            self.notes.append(f"its 16-bit {what} is rounded to 8 bits, which is what products take")
        return self.make.settle(v, "int8")


def grid_of(call: Any) -> Grid | None:
    """The Grid of a relax.quantize call; None if its scale is per channel."""
    scale, zero_point = (np.asarray(a.value.numpy()) if isinstance(a, GenericConst) else None for a in call.args[1:3])
    if scale is None or zero_point is None:
        raise CompileError(
            "a QuantizeLinear has a computed scale (dynamic quantization); quantize the model statically"
        )
    if scale.size != 1 and not (scale == scale.ravel()[0]).all():
        return None
    s, z, dtype = float(scale.ravel()[0]), int(zero_point.ravel()[0]), str(call.attrs.out_dtype)
    if not np.isfinite(s) or s <= 0:
        raise CompileError(f"a QuantizeLinear has scale {s}; scales must be positive")
    if dtype not in ("int8", "uint8", "int16", "uint16"):
        raise CompileError(f"QuantizeLinear to {dtype} is not supported; use 8 or 16 bits")
    lo, hi = RANGES[dtype]
    offset = {"uint8": 128, "uint16": 32768}.get(dtype, 0)
    return Grid(s, z - offset, dtype.removeprefix("u"), lo - offset, hi - offset)
