"""Bits per layer as an integer linear programme, solved exactly (HAWQ-V3, Yao et al. 2021, section 3.4).

One binary variable per (layer, choice); each layer takes one choice; a total (the loss, or a cost) is minimised while
others stay within budgets; layers that are tied take choices of the same label (the same activation bits).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from qcompile.targets.errors import CompileError
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

LOSS = "loss"
# HiGHS stops at 1e-6, absolute: the objective and the budgets are brought to sizes where that is nothing
OBJECTIVE_RANGE, BUDGET_RANGE = 1e4, 1e3
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
    layers, choices = problem.loss.shape
    if not layers:
        return np.zeros(0, np.int64)
    objective = problem.values(minimise)
    lowest = np.where(problem.allowed, objective, np.inf).min(1, keepdims=True)
    objective = np.where(problem.allowed, objective - lowest, 0.0)
    objective = objective * (OBJECTIVE_RANGE / (objective.max() or 1.0))
    structure = _structure(problem)
    limits = dict(budgets)
    while True:
        rows, bounds = [], []
        for name, limit in limits.items():
            values = problem.values(name)
            scale = BUDGET_RANGE / max(abs(limit), float(np.abs(values[problem.allowed]).max()), 1e-300)
            rows.append(csr_array((values * scale).reshape(1, -1)))
            bounds.append(limit * scale)
        constraints = [structure] + ([LinearConstraint(vstack(rows), -np.inf, np.array(bounds))] if rows else [])
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
        over = {n: problem.total(n, chosen) - limit for n, limit in budgets.items()}
        exceeded = {n: o for n, o in over.items() if o > SLACK * max(abs(budgets[n]), 1e-300)}
        if not exceeded:
            return chosen
        for name, excess in exceeded.items():  # within the solver's tolerance, but over: ask for that much less
            limits[name] -= 2 * excess


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


def _structure(problem: Problem) -> LinearConstraint:
    """Each layer takes one choice; tied layers take choices of the same label."""
    layers, choices = problem.loss.shape
    row, column, value, right = [], [], [], []
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
    return LinearConstraint(matrix, np.array(right), np.array(right))
