"""The integer linear programme against brute force, and its speed at the size of ResNet50."""

import itertools
import time

import numpy as np
import pytest
from qcompile.mixed.solve import Problem, front, least, solve


def brute_force(problem, budgets, minimise="loss"):
    """The least total of `minimise` over all choices, None where none meets the budgets."""
    layers, choices = problem.loss.shape
    best = None
    for picked in itertools.product(range(choices), repeat=layers):
        chosen = np.array(picked)
        if (
            problem.allowed[np.arange(layers), chosen].all()
            and all(len({problem.labels[chosen[i]] for i in group}) == 1 for group in problem.ties)
            and all(problem.total(n, chosen) <= b for n, b in budgets.items())
        ):
            total = problem.total(minimise, chosen)
            best = total if best is None else min(best, total)
    return best


def random_problem(seed, layers=5, integers=False):
    """Widths 8, 4 and w4a4 with losses over six orders of magnitude; one layer may not have 4 bits."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(10, 4000, layers).astype(float)
    macs = weights * rng.integers(1, 50, layers)
    loss = 10.0 ** rng.uniform(-6, 0, (layers, 1)) * np.array([1 / 256, 1.0, 1.5])
    if integers:
        loss = rng.integers(0, 4, (layers, 3)).astype(float)
    costs = {
        "size": weights[:, None] * [1.0, 0.5, 0.5],
        "bops": macs[:, None] * [64.0, 32.0, 16.0],
        "latency": macs[:, None] * rng.uniform(0.5, 1.1, (layers, 3)),
    }
    allowed = np.ones((layers, 3), bool)
    allowed[rng.integers(layers), 1:] = False
    ties = [tuple(rng.choice(layers, 2, replace=False)), tuple(rng.choice(layers, 3, replace=False))]
    return Problem(loss, costs, allowed, (8, 8, 4), ties[: rng.integers(0, 3)])


@pytest.mark.parametrize("seed", range(30))
def test_equals_brute_force(seed):
    problem = random_problem(seed, integers=seed % 3 == 0)
    rng = np.random.default_rng(1000 + seed)
    full = {n: float(v[:, 0].sum()) for n, v in problem.costs.items()}
    names = rng.permutation(list(full))[: rng.integers(1, 4)]
    budgets = {n: full[n] * rng.uniform(0.4, 1.0) for n in names}
    for minimise, limits in (
        ("loss", budgets),
        ("size", {"loss": float(problem.loss.max(1).sum() * rng.uniform(0, 1))}),
    ):
        expected, chosen = brute_force(problem, limits, minimise), solve(problem, limits, minimise)
        if expected is None:
            assert chosen is None
            continue
        assert all(problem.total(n, chosen) <= b * (1 + 1e-9) for n, b in limits.items())
        assert problem.allowed[np.arange(len(chosen)), chosen].all()
        assert all(len({problem.labels[chosen[i]] for i in group}) == 1 for group in problem.ties)
        assert problem.total(minimise, chosen) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_budget_may_be_met_to_the_last_byte():
    problem = Problem(np.array([[0.0, 1.0]] * 3), {"size": np.array([[10.0, 5.0]] * 3)}, np.ones((3, 2), bool))
    for budget, losing in ((30, 0), (25, 1), (20, 2), (15, 3)):
        assert solve(problem, {"size": budget}).sum() == losing
    assert solve(problem, {"size": 14.999}) is None
    assert least(problem, "size") == 15


def test_a_front_falls_from_point_to_point():
    problem = random_problem(3, layers=8)
    for cost in ("size", "latency"):
        points = [(problem.total(cost, c), problem.total("loss", c)) for c in front(problem, cost)]
        assert len(points) > 2
        assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))


def test_no_layers():
    empty = np.zeros((0, 2))
    assert solve(Problem(empty, {"size": empty}, empty.astype(bool)), {"size": 1.0}).size == 0


def resnet50():
    """(weights, macs, tie groups) of ResNet50's 54 layers: the first of a stage's blocks has a parallel projection."""
    weights, macs, ties = [64 * 147], [64 * 147 * 112 * 112], []
    inputs = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        width, size = 64 << stage, (56 >> stage) ** 2
        for block in range(depth):
            ties.append((len(weights), len(weights) + 3) if not block else (len(weights),))
            shapes = [inputs * width, 9 * width * width, 4 * width * width] + [4 * inputs * width] * (not block)
            weights += shapes
            macs += [s * size for s in shapes]
            inputs = 4 * width
    return np.array([*weights, 2048e3]), np.array([*macs, 2048e3]), [t for t in ties if len(t) > 1]


def test_resnet50_with_three_widths_and_every_budget_in_seconds():
    weights, macs, ties = resnet50()
    assert len(weights) == 54 and 25e6 < weights.sum() < 26e6
    rng = np.random.default_rng(0)
    noise = 10.0 ** rng.uniform(-5, -2, (54, 1))
    costs = {
        "size": weights[:, None] * [1.0, 0.5, 0.5],
        "bops": macs[:, None] * [64.0, 32.0, 16.0],
        "latency": macs[:, None] / 64 * np.array([1.0, 0.8, 0.75]) + 1000 * rng.uniform(0, 1, (54, 3)),
    }
    problem = Problem(noise * [1 / 256, 1.0, 3.0], costs, np.ones((54, 3), bool), (8, 8, 4), ties)
    began = time.perf_counter()
    for share in (0.55, 0.6, 0.7, 0.8, 0.9):
        budgets = {n: share * float(v[:, 0].sum()) for n, v in costs.items()}
        for name in costs:
            solve(problem, {name: budgets[name]})
        solve(problem, budgets | {"latency": budgets["latency"] * 1.4})
        solve(problem, {"loss": share * problem.loss[:, 2].sum()}, "size")
    front(problem, "size")
    front(problem, "latency")
    assert time.perf_counter() - began < 5
