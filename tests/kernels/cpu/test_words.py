"""Rescaling of sums through 16-bit words, at the end of products of all widths, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Case, check_cases
from linear_cases import Cases
from qcompile.kernels.program import Node
from qcompile.targets import Target


def rescaled(c: Cases, value: str, channels: int, shifts: dict, narrow: bool) -> tuple[Node, dict[str, np.ndarray]]:
    """Sums of some 2^17 come to some hundred codes: many lie inside their limits, and many are clamped."""
    name = c.name("rs")
    limit = min(1 << 19 - shifts["shift"] + shifts["fraction"], 32767)
    multiplier = c.rng.integers(-limit, limit, channels).astype(np.int32)
    multiplier[:1] = 32767
    attrs = shifts | {
        "zero_point": c.low + 128,
        "qmin": c.low + (20 if narrow else 0),
        "qmax": c.low + 255 - (9 if narrow else 0),
        "dtype": c.dtype,
    }
    return Node(name, "requantize_word", (value, name + "_m"), attrs), {name + "_m": multiplier}


def of_channels(c: Cases, step: Node, channels: int) -> tuple[Node, dict[str, np.ndarray]]:
    """The same with a shift for each channel."""
    attrs = {k: v for k, v in step.attrs.items() if k != "shift"}
    shift = c.rng.integers(0, 17, channels).astype(np.int32)
    return Node(step.name, "requantize_words", (*step.inputs, step.name + "_s"), attrs), {step.name + "_s": shift}


SHIFTS = [{"shift": s, "fraction": f} for s, f in ((0, 0), (3, 8), (5, 3))]


def names(shifts: dict[str, int]) -> str:
    return "-".join(map(str, shifts.values()))


@pytest.mark.parametrize("one", [True, False], ids=["one-shift", "shifts"])
@pytest.mark.parametrize("shifts", SHIFTS, ids=names)
def test_rescaled_sums(target: Target, tmp_path: Path, shifts: dict[str, int], one: bool) -> None:
    c = Cases(target)
    cases: list[Case] = []
    for k, (m, n) in enumerate(((1, 1), (1, 64), (2, 3), (3, 8), (5, 17), (9, 48), (7, 100), (4, 128))):
        head = c.dense(m, 30, n)
        step, constants = rescaled(c, head[0].name, n if k % 3 else 1, shifts, narrow=bool(k % 2))
        if not one:
            step, more = of_channels(c, step, n if k % 4 else 1)
            constants |= more
        cases.append(c.fuse(head, [step], {}, constants))
    for channels in (24, 8, 5):
        head = c.conv((1, 6, 7, channels), channels, (3, 3), pads=(1, 1, 1, 1), groups=channels)
        step, constants = rescaled(c, head[0].name, channels, shifts, narrow=False)
        if not one:
            step, more = of_channels(c, step, channels)
            constants |= more
        lut, table = c.lut(step.name)
        steps, constants = ([step, lut], constants | table) if channels > 8 else ([step], constants)
        cases.append(c.fuse(head, steps, {}, constants))
    check_cases(cases, target, tmp_path)


@pytest.mark.parametrize("shifts", SHIFTS, ids=names)
def test_sums_with_residuals(target: Target, tmp_path: Path, shifts: dict[str, int]) -> None:
    c = Cases(target)
    cases: list[Case] = []
    for k, (m, n) in enumerate(((1, 1), (1, 64), (2, 3), (3, 8), (5, 17), (9, 48), (7, 100), (4, 128))):
        head = c.dense(m, 30, n)
        step, constants = rescaled(c, head[0].name, n if k % 3 else 1, shifts, narrow=bool(k % 2))
        wide = k % 2
        r = c.rng.integers(-32768, 32768, (m, n)).astype(np.int16) if wide else c.activation((m, n))
        more = {"r_zero_point": 0 if wide else c.low + 128, "r_multiplier": int(c.rng.integers(-32767, 32768))}
        step = Node(step.name, "add_residual_word", (step.inputs[0], "r", step.inputs[1]), step.attrs | more)
        cases.append(c.fuse(head, [step], {"r": r}, constants))
    check_cases(cases, target, tmp_path)


def wide(step: Node, narrow: bool) -> Node:
    """The same step with a result of 16 bits."""
    limits = {"qmin": -2232 if narrow else -32768, "qmax": 1863 if narrow else 32767}
    return Node(step.name, step.op, step.inputs, step.attrs | limits | {"zero_point": 0, "dtype": "int16"})


def narrowed(c: Cases, value: str, channels: int, fraction: int) -> tuple[Node, dict[str, np.ndarray]]:
    """16-bit codes come to 8 bits, many of them inside their limits."""
    name = c.name("nw")
    multiplier = c.rng.integers(-(1 << 7 + fraction), 1 << 7 + fraction, channels).astype(np.int32)
    multiplier[:1] = 32767
    attrs = {"fraction": fraction, "zero_point": c.low + 101, "qmin": c.low + 3, "qmax": c.low + 255, "dtype": c.dtype}
    return Node(name, "narrow_word", (value, name + "_m"), attrs), {name + "_m": multiplier}


@pytest.mark.parametrize("shifts", [SHIFTS[0], SHIFTS[2]], ids=names)
def test_words_of_results(target: Target, tmp_path: Path, shifts: dict[str, int]) -> None:
    """Sums to 16 bits, alone and with residuals, and on to 8 bits."""
    c = Cases(target)
    cases: list[Case] = []
    for k, (m, n) in enumerate(((1, 1), (1, 64), (2, 3), (3, 8), (5, 17), (9, 48), (7, 100), (4, 128))):
        head = c.dense(m, 30, n)
        step, constants = rescaled(c, head[0].name, n if k % 3 else 1, shifts, narrow=False)
        step, inputs = wide(step, narrow=bool(k % 2)), {}
        if k % 4 < 2:
            inputs = {"r": c.rng.integers(-32768, 32768, (m, n)).astype(np.int16) if k % 4 else c.activation((m, n))}
            attrs = {key: step.attrs[key] for key in ("qmin", "qmax", "zero_point", "dtype")}
            attrs |= {"r_multiplier": int(c.rng.integers(-32767, 32768)), "r_zero_point": 0 if k % 4 else c.low + 128}
            attrs |= {"x_shift": 5 + shifts["shift"], "shift": 14 - shifts["shift"]}
            step = Node(step.name, "add_residual_low", (step.inputs[0], "r", step.inputs[1]), attrs)
        steps = [step]
        if k % 3:
            last, also = narrowed(c, step.name, n if k % 2 else 1, k)
            steps, constants = [step, last], constants | also
        cases.append(c.fuse(head, steps, inputs, constants))
    check_cases(cases, target, tmp_path)
