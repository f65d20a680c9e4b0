"""Mixed precision: bits per layer, chosen by what they cost and what they lose."""

from qcompile.mixed.hessian import HessianTraces, hessian_trace
from qcompile.mixed.noise import layer_noise
from qcompile.mixed.plan import Plan, describe, make_plan
from qcompile.mixed.report import page, plan_report
from qcompile.mixed.request import Bits, BitsOptions, Budget, Request, read_request

__all__ = [
    "Bits",
    "BitsOptions",
    "Budget",
    "HessianTraces",
    "Plan",
    "Request",
    "describe",
    "hessian_trace",
    "layer_noise",
    "make_plan",
    "page",
    "plan_report",
    "read_request",
]
