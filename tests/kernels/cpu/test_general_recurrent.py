"""Recurrent cells against numpy on every instruction set: odd sizes, rows, directions, lengths, grids."""

from __future__ import annotations

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases
from qcompile.kernels.ops.recurrent import LIMIT, PIECES

CELLS = {"lstm": (4, ("hidden", "cell"), 3), "gru": (3, ("hidden",), 2), "rnn": (1, ("hidden",), 1)}


def tables(rng, count):
    """Random rising pieces whose results stay in 16 bits."""
    knots = np.sort(rng.integers(0, LIMIT, (count, PIECES + 1)), axis=1)
    return np.stack([knots[:, :-1], np.diff(knots)], 1).astype(np.int16)


def weights(rng, shape, bits, group):
    """Codes of `bits` bits, those of `group` neighbours times a multiplier of their own."""
    w = rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), shape)
    if group:
        w *= np.repeat(rng.integers(1, 19, (shape[0], shape[1] // group)), group, axis=1)
    return w.astype(np.int8)


def case(rng, name, op, steps, rows, units, lengths=None, initial=True, bits=8, group=0, **more):
    gates, states, functions = CELLS[op]
    x = edge_array(rng, (steps, rows, gates * units), "int16")
    constants = {
        "w": weights(rng, (gates * units, units), bits, group),
        "b": rng.integers(-20000, 20000, gates * units).astype(np.int32),
        "m": rng.integers(2**24, 2**27, gates * units).astype(np.int32),
        "t": tables(rng, functions),
    }
    arrays = {"x": x} | {s: edge_array(rng, (rows, units), "int16") for s in states}
    if not initial:
        constants |= {s: arrays.pop(s) for s in states}
    if lengths is not None:
        arrays["lengths"] = np.array(lengths, np.int32)
    attrs = {
        "reverse": False,
        "activations": ["half", "odd", "odd"][3 - functions if functions < 2 else 0 :][:functions],
        "x_multiplier": 2 << 4,
        "shift": 4,
        "pre": 1,
        "h_multiplier": 2**30 + 12345,
        "h_shift": 6,
        "h_pre": 0,
        "h_zero_point": -5,
        "h_qmin": -128,
        "h_qmax": 127,
    }
    attrs |= {"lstm": {"cell_bits": 11}, "gru": {"hidden_bits": 15, "reset_after": 0}}.get(op, {}) | more
    names = ["x", *states, "w", "b", "m", "t"] + (["lengths"] if lengths is not None else [])
    tensors = {f"{name}_{k}": v for k, v in arrays.items()}
    return Case(
        node(name, op, [f"{name}_{n}" for n in names], attrs),
        tensors,
        {f"{name}_{k}": v for k, v in constants.items()},
    )


def cases(rng):
    yield case(rng, "one", "lstm", 1, 1, 5, initial=False)
    yield case(rng, "small", "lstm", 9, 1, 20, cell_bits=12)
    yield case(rng, "tile", "lstm", 3, 2, 64, cell_bits=15, reverse=True)
    yield case(rng, "rows", "lstm", 4, 7, 33, cell_bits=9, lengths=[4, 1, 3, 2, 4, 4, 1])
    yield case(rng, "ends", "lstm", 5, 3, 48, lengths=[5, 2, 4], reverse=True)
    yield case(rng, "wide", "lstm", 2, 1, 190)
    yield case(rng, "before", "gru", 6, 1, 21)
    yield case(rng, "before_rows", "gru", 3, 5, 40, lengths=[3, 1, 2, 3, 3], hidden_bits=13, reverse=True)
    yield case(rng, "after", "gru", 6, 1, 32, reset_after=1)
    yield case(rng, "after_rows", "gru", 4, 3, 70, reset_after=3, lengths=[1, 4, 2], hidden_bits=14)
    yield case(rng, "plain", "rnn", 7, 2, 19, activations=["odd"])
    yield case(rng, "relu", "rnn", 4, 1, 50, activations=["relu"], reverse=True)
    yield case(rng, "digits", "lstm", 3, 1, 96, bits=4)
    yield case(rng, "digit_rows", "gru", 3, 9, 64, bits=4)
    yield case(rng, "groups", "lstm", 3, 2, 128, bits=4, group=32)
    yield case(rng, "ternary", "gru", 2, 1, 70, bits=2, reset_after=1)
    yield case(rng, "many", "lstm", 2, 130, 130)


def test_recurrent_cells(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(5))), target, tmp_path)
