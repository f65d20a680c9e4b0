"""What an op says of its numbers: given the intervals of its arguments, that of its result, or that they do not fit.

The bound of an op stands beside its meaning in `ops/`; `passes/bounds.py` walks a program with it. Intervals are of
whole tensors; padding counts as zero_point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.targets.errors import CompileError

if TYPE_CHECKING:
    from qcompile.kernels.dialect import Type

Interval = tuple[int, int]
REMEDY = "split it, or bound what it reads (by Clip, or by calibration samples)"


@dataclass(frozen=True)
class BoundCall:
    """One call of an op whose numbers are to be bounded: its node's name, and what is known of each argument."""

    node: str
    op: str
    arguments: tuple[str, ...]
    attrs: dict[str, Any]
    intervals: list[Interval]
    constants: list[np.ndarray | None]
    types: list[Type]

    def interval(self, argument: str) -> Interval:
        """Of an argument, less the attribute that is its zero point, if the op has one."""
        low, high = self.intervals[self.arguments.index(argument)]
        zero_point = self.attrs.get(f"{argument}_zero_point", 0)
        return low - zero_point, high - zero_point

    def constant(self, argument: str) -> np.ndarray:
        """The values of a parameter, int64. CompileError where it is computed."""
        found = self.constants[self.arguments.index(argument)]
        if found is None:
            raise self.refusal(f"{argument} of {self.op} must be constant")
        return found.astype(np.int64)

    def type(self, argument: str) -> Type:
        return self.types[self.arguments.index(argument)]

    def clamped(self) -> Interval:
        """From qmin to qmax."""
        return int(self.attrs["qmin"]), int(self.attrs["qmax"])

    def fits(self, what: str, low: float, high: float) -> None:
        """CompileError where numbers of this interval, called `what`, may leave 32 bits."""
        if low < -INT32_MAX - 1 or high > INT32_MAX:
            raise self.refusal(
                f"{what} of {self.op} may reach [{low:.4g}, {high:.4g}], more than 32 bits hold; {REMEDY}"
            )

    def refusal(self, text: str) -> CompileError:
        """To be raised."""
        return CompileError(f"{self.node}: {text}")


def product(a: Interval, b: Interval) -> Interval:
    """Of a number in `a` and one in `b`."""
    ends = [p * q for p in a for q in b]
    return min(ends), max(ends)


def ends(constant: np.ndarray) -> Interval:
    """The least and the largest of a constant's elements; of none, 0."""
    return (int(constant.min()), int(constant.max())) if constant.size else (0, 0)


def clamped(c: BoundCall) -> Interval:
    """Results that are clamped, whatever the arguments."""
    return c.clamped()


def unchanged(c: BoundCall) -> Interval:
    """Results that are elements of the first argument."""
    return c.intervals[0]


def hull(c: BoundCall) -> Interval:
    """Results that are elements of any argument."""
    return min(i[0] for i in c.intervals), max(i[1] for i in c.intervals)
