"""Recurrent cells over whole sequences: int8 recurrent weights, int16 gates and states (iRNN, Sari et al., 2021).

Shared conventions. T steps, N rows (sequences), H units, G gates in ONNX order.
- x int16 [T, N, G*H]: the projected inputs of all gates with their biases.
- hidden int16 [N, H]: the initial state in steps of 2^-15 (or `hidden_bits`, or a step of the model's own for relu).
- The recurrent product sees the state as h8 = clamp(h_zero_point + rescale(h, h_multiplier, h_shift, h_pre)), int8.
- Pre-activations are rounded once, to int16 in steps of 2^-GATE_BITS, within [-LIMIT, LIMIT]:
  gate = floor((mulhi(acc << pre, multiplier) + x * x_multiplier + 2^(shift-1)) / 2^shift),
  0 < x_multiplier < 2^15, acc = bias + sum (h8 - h_zero_point) * weight, int32.
- `activations` name the kind of each function, `tables` int16 [functions, 2, PIECES] hold their straight pieces (see
  `activate`). Results are in steps of 2^-15.
- lengths int32 [N], if given: from step lengths[n] on, row n gives zeros and keeps its state. `reverse` walks the
  steps from the last to the first.

The result is int16 [T + S, N, H]: the hidden states of all steps, then the S final states (hidden, then cell if any).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from qcompile.kernels.arithmetic import RANGES, checked_int32, integer_matmul, mulhi, rescale, round_shift, saturate
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import Type, integer_op

GATE_BITS = 12  # fraction bits of pre-activations
UNIT_BITS = 15  # fraction bits of what activations return
PIECES = 128  # of an activation, over magnitudes of 16 bits
PIECE_BITS = 8
LIMIT = 32767
MOST_STEPS = 10  # log2 of the step of x in steps of a gate
PARAMETERS = ("weight", "bias", "multiplier", "tables")
SCALES = {
    "x_multiplier": (1, 2**15 - 1), "shift": (1, 31), "pre": (0, 31),
    "h_multiplier": RANGES["int32"], "h_shift": (1, 31), "h_pre": (0, 31),
}  # fmt: skip
CELL_MARGIN = 1.25  # by which a cell state may leave the range seen in calibration


def cell_bits(top: float) -> int:
    """Fraction bits of a cell state of magnitude up to `top`."""
    return int(np.clip(UNIT_BITS - np.ceil(np.log2(max(top, 2.0**-UNIT_BITS))), 0, UNIT_BITS))


def activate(x: np.ndarray, table: np.ndarray, kind: str) -> np.ndarray:
    """An activation of int16 x in [-LIMIT, LIMIT], int64 result.

    odd: f(-x) = -f(x); half: f(-x) = 1 - f(x); both read straight pieces of f for |x|, table int16 [2, PIECES]:
    y = base[i] + floor((slope[i] * f + 2^14) / 2^15), i = |x| >> 8, f = (|x| mod 256) << 7. relu: max(x, 0).
    """
    x = x.astype(np.int64)
    if kind == "relu":
        return np.maximum(x, 0)
    base, slope = table.astype(np.int64)
    magnitude = np.abs(x)
    i, f = magnitude >> PIECE_BITS, (magnitude & ((1 << PIECE_BITS) - 1)) << (UNIT_BITS - PIECE_BITS)
    y = base[i] + round_shift(slope[i] * f, UNIT_BITS)
    return np.where(x < 0, (-y if kind == "odd" else (1 << UNIT_BITS) - y), y)


def limited(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LIMIT, LIMIT)


def to_gate_grid(c: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with `bits` fraction bits as pre-activations."""
    if bits >= GATE_BITS:
        return limited(round_shift(c, bits - GATE_BITS))
    reach = LIMIT >> (GATE_BITS - bits)
    return np.clip(c, -reach, reach) << (GATE_BITS - bits)


def _steps(count: int, reverse: bool) -> Iterator[int]:
    return iter(range(count - 1, -1, -1) if reverse else range(count))


def _result(x: Type, hidden: Type, states: int) -> Type:
    return Type((x.shape[0] + states, *hidden.shape), "int16")


def _run(
    x: np.ndarray,
    states: list[np.ndarray],
    lengths: np.ndarray | None,
    reverse: bool,
    step: Callable[[np.ndarray, list[np.ndarray]], list[np.ndarray]],
) -> np.ndarray:
    """Walks the steps; step(x of a step, states) -> new states, the hidden state first."""
    states = [s.astype(np.int64) for s in states]
    out = np.zeros((len(x) + len(states), *states[0].shape), np.int16)
    for t in _steps(len(x), reverse):
        active = np.ones((len(states[0]), 1), bool) if lengths is None else (t < lengths)[:, None]
        new = step(x[t].astype(np.int64), states)
        states = [np.where(active, n, s) for n, s in zip(new, states)]
        out[t] = np.where(active, states[0], 0)
    out[len(x) :] = states
    return out


class _Recurrence:
    """The recurrent product of a cell and the roundings around it."""

    def __init__(self, arguments: dict):
        """arguments: those of the cell's evaluate, by name."""
        self.weight, self.bias, self.multiplier = (arguments[n] for n in ("weight", "bias", "multiplier"))
        self.a = arguments

    def narrow(self, h):
        a = self.a
        y = rescale(h, a["h_multiplier"], a["h_shift"], a["h_pre"])
        return saturate(y, a["h_zero_point"], a["h_qmin"], a["h_qmax"], "int8")

    def product(self, h8, rows=slice(None)):
        """mulhi(acc << pre, multiplier) of the gates in `rows`."""
        acc = integer_matmul(h8.astype(np.int32) - self.a["h_zero_point"], self.weight[rows].T) + self.bias[rows]
        return mulhi(checked_int32(acc << self.a["pre"], "recurrent product"), self.multiplier[rows])

    def gates(self, product, x):
        total = product + x * self.a["x_multiplier"]
        checked_int32(total + (1 << (self.a["shift"] - 1)), "pre-activation")
        return limited(round_shift(total, self.a["shift"]))


def recurrent_bound(c: BoundCall) -> Interval:
    """Every recurrent product, shifted and rescaled, plus the largest input; the tables."""
    weight, bias, multiplier, tables = (c.constant(n) for n in PARAMETERS)
    a = c.attrs
    reach = max(abs(a["h_qmin"] - a["h_zero_point"]), abs(a["h_qmax"] - a["h_zero_point"]))
    acc = (np.abs(weight).sum(1) * reach + np.abs(bias)) << a["pre"]
    c.fits("the recurrent product", 0, int(acc.max()))
    x = max(abs(i) for i in c.interval("x")) * a["x_multiplier"]
    total = (acc * np.abs(multiplier) >> 32) + 1 + x + (1 << (a["shift"] - 1))
    c.fits("the pre-activation", 0, int(total.max()))
    base, slope = tables[:, 0], tables[:, 1]
    ends = np.concatenate([base, base + slope])
    if tables.shape[1:] != (2, PIECES) or ends.min() < -LIMIT or ends.max() > LIMIT:
        raise c.refusal(f"an activation of {c.op} leaves 16 bits")
    return min(-LIMIT, c.interval("hidden")[0]), LIMIT


def recurrent_macs(types: list[Type], out: Type) -> int:
    return types[0].size * out.shape[-1]


@integer_op(
    "lstm", kind="matmul", parameters=PARAMETERS, ranges=SCALES | {"cell_bits": (0, UNIT_BITS)}, plain=("lengths",)
)
class Lstm:
    """Gates i, o, f, g; functions: of i, o, f; of g; of the cell. cell int16 [N, H] has `cell_bits` fraction bits.

    c' = limited(floor((f * c + ((i * g) >> (15 - cell_bits)) + 2^14) / 2^15)); h = limited(floor((o * tanh(c') + 2^14)
    / 2^15)), with c' brought to the grid of pre-activations for its function. cell_bits in [0, 15]. S = 2.
    """

    @staticmethod
    def infer(
        x, hidden, cell, weight, bias, multiplier, tables, lengths=None, *, reverse, activations, cell_bits,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        return _result(x, hidden, 2)

    @staticmethod
    def evaluate(
        x, hidden, cell, weight, bias, multiplier, tables, lengths=None, *, reverse, activations, cell_bits,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        r = _Recurrence(locals())

        def step(x, states):
            h, c = states
            gates = np.split(r.gates(r.product(r.narrow(h)), x), 4, axis=1)
            i, o, f, g = (activate(v, tables[k], activations[k]) for v, k in zip(gates, (0, 0, 0, 1)))
            c = limited(round_shift(f * c + ((i * g) >> (UNIT_BITS - cell_bits)), UNIT_BITS))
            h = o * activate(to_gate_grid(c, cell_bits), tables[2], activations[2])
            return [limited(round_shift(h, UNIT_BITS)), c]

        return _run(x, [hidden, cell], lengths, reverse, step)

    bound = staticmethod(recurrent_bound)
    macs = staticmethod(recurrent_macs)


@integer_op(
    "gru",
    kind="matmul",
    parameters=PARAMETERS,
    ranges=SCALES | {"hidden_bits": (0, UNIT_BITS), "reset_after": (0, MOST_STEPS)},
    plain=("lengths",),
)
class Gru:
    """Gates z, r, n; functions: of z, r; of n. The hidden state has `hidden_bits` fraction bits, at most 15. S = 1.

    reset_after s > 0 (ONNX linear_before_reset): n's recurrent product, rounded to steps of 2^(s - GATE_BITS) like x,
    is multiplied by r: n = gate of x * 2^s + floor((r * rn + 2^(14-s)) / 2^(15-s)), s at most MOST_STEPS. 0: n's
    product is of r * h, narrowed like the state.
    h' = limited(floor((((2^15 - z) * n >> (15 - hidden_bits)) + z * h + 2^14) / 2^15)).
    """

    @staticmethod
    def infer(
        x, hidden, weight, bias, multiplier, tables, lengths=None, *, reverse, activations, hidden_bits, reset_after,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        return _result(x, hidden, 1)

    @staticmethod
    def evaluate(
        x, hidden, weight, bias, multiplier, tables, lengths=None, *, reverse, activations, hidden_bits, reset_after,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        r = _Recurrence(locals())
        units = hidden.shape[1]
        first, last = slice(0, 2 * units), slice(2 * units, None)

        def step(x, states):
            h = states[0]
            h8 = r.narrow(h)
            gates = r.gates(r.product(h8, first), x[:, first])
            z, reset = (activate(v, tables[0], activations[0]) for v in np.split(gates, 2, axis=1))
            if reset_after:
                rn = limited(round_shift(r.product(h8, last), shift))
                n = limited((x[:, last] << reset_after) + round_shift(reset * rn, UNIT_BITS - reset_after))
            else:
                n = r.gates(r.product(r.narrow(round_shift(reset * h, UNIT_BITS)), last), x[:, last])
            n = activate(n, tables[1], activations[1])
            kept = (((1 << UNIT_BITS) - z) * n >> (UNIT_BITS - hidden_bits)) + z * h
            return [limited(round_shift(kept, UNIT_BITS))]

        return _run(x, [hidden], lengths, reverse, step)

    bound = staticmethod(recurrent_bound)
    macs = staticmethod(recurrent_macs)


@integer_op("rnn", kind="matmul", parameters=PARAMETERS, ranges=SCALES, plain=("lengths",))
class Rnn:
    """One gate, whose function's result is the state; relu: state and gate share the grid that x is given on. S = 1."""

    @staticmethod
    def infer(
        x, hidden, weight, bias, multiplier, tables, lengths=None, *, reverse, activations,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        return _result(x, hidden, 1)

    @staticmethod
    def evaluate(
        x, hidden, weight, bias, multiplier, tables, lengths=None, *, reverse, activations,
        x_multiplier, shift, pre, h_multiplier, h_shift, h_pre, h_zero_point, h_qmin, h_qmax,
    ):  # fmt: skip
        r = _Recurrence(locals())

        def step(x, states):
            return [activate(r.gates(r.product(r.narrow(states[0])), x), tables[0], activations[0])]

        return _run(x, [hidden], lengths, reverse, step)

    bound = staticmethod(recurrent_bound)
    macs = staticmethod(recurrent_macs)
