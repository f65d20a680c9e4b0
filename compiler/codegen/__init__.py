"""From the integer program to object code: kernels chosen, memory planned, one function that makes the calls."""

from qcompile.codegen.generate import Generated, generate

__all__ = ["Generated", "generate"]
