"""Kernels made of parameters and a body, and lists of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qcompile.kernels.cpu.builder import function
from qcompile.kernels.lowering import Kernel


def kernel(
    family: str, spec: tuple[Any, ...], parameters: Sequence[tuple[str, str]], body: Callable[..., None]
) -> Kernel:
    """A kernel whose function is built when it is asked for; spec: all that `body` depends on beside its parameters."""
    return Kernel(family, (*spec, tuple(parameters)), lambda name: function(name, parameters, body))


def pointers(**dtypes: str) -> list[tuple[str, str]]:
    return [(n, d + "*") for n, d in dtypes.items()]


def scalars(*names: str) -> list[tuple[str, str]]:
    return [(n, "int32") for n in names]
