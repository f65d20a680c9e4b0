"""The integer dialect: a registry of ops, each with all that is true of it on every target.

An op is declared once, in kernels/ops/, and is then a Relax op `qc.<name>` (type rule), an executable numpy function
(meaning), and a key for the kernels that implement it on each kind of target:

    @integer_op("scale_by", kind="elementwise", parameters=("factor",), elementwise=True)
    class ScaleBy:
        "y = x * factor + offset, int32"

        @staticmethod
        def infer(x, factor, *, offset):            # Type(shape, dtype) in, Type out
            return Type(x.shape, "int32")

        @staticmethod
        def evaluate(x, factor, *, offset):         # numpy arrays in and out
            return (x.astype(np.int32) * factor + offset).astype(np.int32)

        @staticmethod
        def bound(c):                               # intervals in and out (see kernels/bounds.py)
            low, high = product(c.interval("x"), c.interval("factor"))
            return low + c.attrs["offset"], high + c.attrs["offset"]

Arguments are tensors, keyword-only arguments are attributes (integers, strings, booleans and lists of them). Every op
has one result. Passes, statistics and the profile read these declarations and have no tables of their own, and
docs/ops.md is written from them; what a declaration lacks is a TypeError when it is imported.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from qcompile.kernels.bounds import BoundCall, Interval

Attrs = Mapping[str, Any]
# Kinds of ops, as the profile sums them up; those of the first row multiply and accumulate, so they say how often
MULTIPLYING = ("conv", "depthwise", "matmul", "attention")
KINDS = (*MULTIPLYING, "elementwise", "softmax", "norm", "pool", "reduce", "resize", "layout")
RESULT = "result"  # stands for the result where arguments are listed
# Attributes whose name ends so must have a range
FACTORS = ("shift", "pre", "fraction", "multiplier", "numerator", "bits")


@dataclass(frozen=True)
class Type:
    """Shape (static) and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class IntegerOp:
    """parameters: the arguments that are weights, tables or multipliers rather than activations. ranges: what an
    attribute, or the elements of a parameter, may be: shifts, multipliers."""

    name: str  # without the "qc." prefix
    doc: str  # what it computes, of which shapes and dtypes
    infer: Callable[..., Type]
    evaluate: Callable[..., np.ndarray]
    bound: Callable[[BoundCall], Interval]
    arguments: tuple[str, ...]
    attributes: tuple[str, ...]
    parameters: frozenset[str]
    ranges: dict[str, Interval]
    elementwise: bool  # result[i] depends on the same position of its first argument only: can be fused
    heads_fusion: bool  # its sums stay in registers for the elementwise ops that follow it
    _kind: str | Callable[[list[Type], Attrs], str]
    _macs: Callable[[list[Type], Type], int] | None
    _plain: tuple[str, ...] | Callable[[Attrs], tuple[str, ...]]

    def infer_type(self, types: list[Type], attrs: dict[str, Any]) -> Type:
        return self.infer(*types, **attrs)

    def run(self, arrays: list[np.ndarray], attrs: dict[str, Any]) -> np.ndarray:
        """The op's meaning; checks that the result has the type that the type rule promised."""
        out = np.asarray(self.evaluate(*arrays, **attrs), order="C")
        want = self.infer_type([Type(a.shape, str(a.dtype)) for a in arrays], attrs)
        if want.shape == () and out.size == 1:  # a constant of one element adds an axis to a scalar
            out = out.reshape(())
        if (out.shape, str(out.dtype)) != (want.shape, want.dtype):
            raise TypeError(
                f"qc.{self.name} gave {out.dtype}{list(out.shape)}, its type rule says {want.dtype}{list(want.shape)}"
            )
        return out

    def kind(self, types: list[Type], attrs: Attrs) -> str:
        """One of KINDS; types: of the arguments."""
        return self._kind if isinstance(self._kind, str) else self._kind(types, attrs)

    def macs(self, types: list[Type], out: Type) -> int:
        """Multiply-accumulates of one call with arguments of `types`."""
        return self._macs(types, out) if self._macs else 0

    def plain(self, attrs: Attrs) -> tuple[str, ...]:
        """The arguments, and "result", that are flags or numbers and mean themselves, rather than distances from a
        zero point."""
        return self._plain(attrs) if callable(self._plain) else self._plain

    def argument(self, position: int) -> str:
        """The name of an argument; the last one may stand for several."""
        return self.arguments[min(position, len(self.arguments) - 1)]


OPS: dict[str, IntegerOp] = {}


def integer_op(
    name: str,
    kind: str | Callable[[list[Type], Attrs], str],
    parameters: tuple[str, ...] = (),
    elementwise: bool = False,
    heads_fusion: bool = False,
    ranges: Mapping[str, Interval] | None = None,
    plain: tuple[str, ...] | Callable[[Attrs], tuple[str, ...]] = (),
) -> Callable[[type], IntegerOp]:
    """Class decorator: registers a class with the functions `infer`, `evaluate`, `bound` and, where its kind
    multiplies, `macs`, as an IntegerOp. Raises TypeError naming what is missing."""

    def register(cls: type) -> IntegerOp:
        doc = inspect.getdoc(cls)
        multiplies = not isinstance(kind, str) or kind in MULTIPLYING
        functions = {n: getattr(cls, n, None) for n in ("infer", "evaluate", "bound", "macs")}
        missing = [n for n, f in functions.items() if f is None and (n != "macs" or multiplies)]
        missing += [] if doc else ["a docstring"]
        infer, evaluate, bound, macs = functions.values()
        if infer is None or evaluate is None or bound is None or missing:
            raise TypeError(f"qc.{name} lacks {', '.join(missing)}")
        signature = inspect.signature(evaluate).parameters.values()
        op = IntegerOp(
            name,
            doc or "",
            infer,
            evaluate,
            bound,
            tuple(p.name for p in signature if p.kind is not inspect.Parameter.KEYWORD_ONLY),
            tuple(p.name for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY),
            frozenset(parameters),
            dict(ranges or {}),
            elementwise,
            heads_fusion,
            kind,
            macs,
            plain,
        )
        for fault in _faults(op):
            raise TypeError(f"qc.{name}: {fault}")
        OPS[name] = op
        return op

    return register


def _faults(op: IntegerOp) -> list[str]:
    """What a declaration says of arguments and attributes that do not exist, and leaves open of those that do."""
    known = {*op.arguments, *op.attributes}
    faults = [f"{n} is neither argument nor attribute" for n in (*op.parameters, *op.ranges) if n not in known]
    faults += [f"{n} has no range" for n in op.attributes if n.split("_")[-1] in FACTORS and n not in op.ranges]
    if isinstance(op._plain, tuple):
        faults += [f"{n} is no argument" for n in op._plain if n not in (*op.arguments, RESULT)]
    if isinstance(op._kind, str) and op._kind not in KINDS:
        faults.append(f"kind {op._kind} is none of {', '.join(KINDS)}")
    if op._macs and isinstance(op._kind, str) and op._kind not in MULTIPLYING:
        faults.append(f"has macs, which kind {op._kind} has not")
    return faults
