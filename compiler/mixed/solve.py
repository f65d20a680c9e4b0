"""Bits per layer as an integer linear programme, solved exactly (HAWQ-V3, Yao et al. 2021, section 3.4).

One binary variable per (layer, choice); each layer takes one choice; a total (the loss, or a cost) is minimised while
others stay within budgets; layers that are tied take choices of the same label (the same activation bits).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qcompile.targets.errors import CompileError
from scipy.sparse import coo_array, csr_array, vstack

LOSS = "loss"
OBJECTIVE_RANGE = 1e4  # of the largest coefficient: HiGHS stops within 1e-6 of the optimum
SLACK = 1e-9  # relative; a plan that meets a budget to the last byte meets it
SECONDS = 120.0


@dataclass(frozen=True)
class Problem:
    """What the choices of each layer lose and cost.

    `loss` and each of `costs`: float [layers, choices]; `allowed`: bool, likewise; `labels`: one per choice; `ties`:
    groups of layers (indices) whose choices must have the same label.
    """

    loss: np.ndarray
    costs: Mapping[str, np.ndarray]
    allowed: np.ndarray
    labels: Sequence[Hashable] = ()
    ties: Sequence[Sequence[int]] = field(default=())

    def values(self, name: str) -> np.ndarray:
        """The loss or a cost, [layers, choices]."""
        return self.loss if name == LOSS else self.costs[name]

    def total(self, name: str, chosen: np.ndarray) -> float:
        """Sum over the layers of `values(name)` at the indices of their choices."""
        return float(np.take_along_axis(self.values(name), chosen[:, None], 1).sum())


def solve(problem: Problem, budgets: Mapping[str, float], minimise: str = LOSS) -> np.ndarray | None:
    """The choice of each layer, int [layers], that minimises `minimise` with every total in `budgets` at most its
    budget; None where no choice meets them.

    `minimise` and the keys of `budgets` are "loss" or names of costs.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # late: they take a second

    layers, choices = problem.loss.shape
    if not layers:
        return np.zeros(0, np.int64)
    objective = problem.values(minimise)
    lowest = np.where(problem.allowed, objective, np.inf).min(1, keepdims=True)
    objective = np.where(problem.allowed, objective - lowest, 0.0)
    objective = objective * (OBJECTIVE_RANGE / (objective.max() or 1.0))
    rows, limits = [], []
    for name, budget in budgets.items():
        values = np.where(problem.allowed, problem.values(name), 0.0)
        scale = 1 / max(float(np.abs(values).max()), 1e-300)
        rows.append(csr_array((values * scale).reshape(1, -1)))
        limits.append(budget * scale)
    matrix, right = _structure(problem)
    structure = LinearConstraint(matrix, right, right)
    while True:
        constraints = [structure] + ([LinearConstraint(vstack(rows), -np.inf, np.array(limits))] if rows else [])
        with _quiet():
            result = milp(
                objective.reshape(-1),
                integrality=np.ones(layers * choices),
                bounds=Bounds(0, problem.allowed.reshape(-1).astype(float)),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
            )
        if result.status == 2:
            return None
        if result.status != 0:
            raise CompileError(f"the solver found no bits per layer in {SECONDS:.0f} s; give fewer --widths or budgets")
        chosen = result.x.reshape(layers, choices).argmax(1)
        if all(problem.total(n, chosen) <= b + SLACK * abs(b) for n, b in budgets.items()):
            return chosen
        # over a budget by less than the solver's tolerance: never this one again
        picked = coo_array((np.ones(layers), (np.zeros(layers, int), np.arange(layers) * choices + chosen)))
        picked.resize(1, layers * choices)
        rows.append(csr_array(picked))
        limits.append(layers - 1)


def least(problem: Problem, name: str) -> float:
    """The least total of the loss or of a cost that any choice reaches."""
    chosen = solve(problem, {}, name)
    if chosen is None:
        raise CompileError("layers that must have the same activation bits have no width in common; change --widths")
    return problem.total(name, chosen)


def front(problem: Problem, cost: str, points: int = 16) -> list[np.ndarray]:
    """Choices of least loss for budgets of `cost`, evenly spaced from the least reachable up to where more does not
    help; no choice twice."""
    best = solve(problem, {})
    if best is None:
        return []
    low, high = least(problem, cost), problem.total(cost, best)
    found: list[np.ndarray] = []
    for budget in np.linspace(low, max(low, high), points):
        chosen = solve(problem, {cost: float(budget)})
        if chosen is not None and not any(np.array_equal(chosen, f) for f in found):
            found.append(chosen)
    return found


def _structure(problem: Problem) -> tuple[Any, np.ndarray]:
    """Each layer takes one choice; tied layers take choices of the same label: a matrix, and what it must give."""
    layers, choices = problem.loss.shape
    row: list[int] = []
    column: list[int] = []
    value: list[float] = []
    right: list[float] = []
    for layer in range(layers):
        row += [layer] * choices
        column += range(layer * choices, (layer + 1) * choices)
        value += [1.0] * choices
        right.append(1.0)
    for group in problem.ties:
        for layer in group[1:]:
            for label in dict.fromkeys(problem.labels):
                same = [c for c in range(choices) if problem.labels[c] == label]
                for member, sign in ((group[0], 1.0), (layer, -1.0)):
                    row += [len(right)] * len(same)
                    column += [member * choices + c for c in same]
                    value += [sign] * len(same)
                right.append(0.0)
    matrix = coo_array((value, (row, column)), shape=(len(right), layers * choices)).tocsr()
    return matrix, np.array(right)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard output: HiGHS now and then prints a line of its own there, where `--json -` writes."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
