"""The integer dialect: a registry of ops, each with its type rule and its exact numpy meaning.

An op is declared once, in kernels/ops/, and is then a Relax op `qc.<name>` (type rule), an executable numpy function
(meaning), and a key for the kernels that implement it on each kind of target:

    @integer_op("relu", parameters=("slope",))
    class Relu:
        def infer(x, *, zero_point): return x                        # Type(shape, dtype) in, Type out
        def evaluate(x, *, zero_point): return np.maximum(x, zero_point)

Arguments are tensors, keyword-only arguments are attributes (integers, strings, booleans and lists of them).
`parameters` names the arguments that are weights, tables or multipliers rather than activations. Every op has one
result.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    name: str  # without the "qc." prefix
    infer: Callable[..., Type]
    evaluate: Callable[..., np.ndarray]
    arguments: tuple[str, ...]
    attributes: tuple[str, ...]
    parameters: frozenset[str]
    elementwise: bool  # result[i] depends on the same position of its first argument only: can be fused

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


OPS: dict[str, IntegerOp] = {}


def integer_op(name: str, parameters: tuple[str, ...] = (), elementwise: bool = False) -> Callable[[type], IntegerOp]:
    """Class decorator: turns a class with `infer` and `evaluate` functions into a registered IntegerOp."""

    def register(cls: type) -> IntegerOp:
        evaluate = cls.__dict__["evaluate"]
        params = inspect.signature(evaluate).parameters.values()
        op = IntegerOp(
            name,
            cls.__dict__["infer"],
            evaluate,
            tuple(p.name for p in params if p.kind is not inspect.Parameter.KEYWORD_ONLY),
            tuple(p.name for p in params if p.kind is inspect.Parameter.KEYWORD_ONLY),
            frozenset(parameters),
            elementwise,
        )
        OPS[name] = op
        return op

    return register
