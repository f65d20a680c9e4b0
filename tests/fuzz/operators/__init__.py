"""How each operator is drawn: a table by operator type, filled by the modules of this folder.

A draw takes the build and the operator's type and appends one node of it, or a few around it. `weight` is how often it
is chosen beside the others; `since` the opset that brought the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fuzz.build import Build


@dataclass(frozen=True)
class Draw:
    function: Callable[[Build, str], Any]
    weight: float
    since: int


DRAWS: dict[str, Draw] = {}
MODULES = (
    "elementwise",
    "products",
    "rows",
    "windows",
    "spectra",
    "moves",
    "integers",
    "codes",
    "recurrent",
    "attention",
    "control",
    "blocks",
)


def draws(*operators: str, weight: float = 1.0, since: int = 1) -> Callable:
    """Registers a function as the draw of `operators`."""

    def register(function: Callable[[Build, str], Any]) -> Callable[[Build, str], Any]:
        DRAWS.update({op: Draw(function, weight, since) for op in operators})
        return function

    return register


def all_draws() -> dict[str, Draw]:
    """The whole table."""
    for module in MODULES:
        import_module(f"fuzz.operators.{module}")
    return DRAWS
