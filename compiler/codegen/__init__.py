"""From the integer program to object code: a plan of calls and memory, and what prints it for a CPU."""

from qcompile.codegen.emit_c import Generated, emit
from qcompile.codegen.plan import ExecutionPlan, plan_execution

__all__ = ["ExecutionPlan", "Generated", "emit", "plan_execution"]
