"""LSTM, GRU and RNN: one product for the inputs of all steps, then the cell over the sequence.

Grids (as in iRNN; all but three are fixed): pre-activations have GATE_BITS fraction bits, the projected inputs one
less, or fewer where the recurrent product may call larger ones back; activations and hidden states 15. The state that
the recurrent product sees is 8 bits on the range seen in calibration, [-1, 1] where nobody looked; the cell state has
as many fraction bits as its range leaves of 16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, MAX_SHIFT, dyadic
from qcompile.kernels.ops.recurrent import (
    CELL_MARGIN,
    GATE_BITS,
    LIMIT,
    MOST_STEPS,
    PIECE_BITS,
    PIECES,
    UNIT_BITS,
    cell_bits,
)
from qcompile.passes.integerize.functions import sigmoid
from qcompile.passes.integerize.linear import accumulator, weight_codes
from qcompile.passes.integerize.reader import Reader, handles, integers, shape_of
from qcompile.passes.integerize.values import Accumulator, Grid, Integers, Quantized, Real, identity, value_range
from qcompile.targets.errors import CompileError
from tvm import relax

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
CELL_RANGE = 16.0  # of a cell state that nobody looked at
INPUT_MARGIN = 1.25  # by which projected inputs may leave the range seen in calibration
BIAS_BITS = 26  # of a bias inside the recurrent product


@dataclass(frozen=True)
class Activation:
    """f for x >= 0, and how it continues below (`ops.recurrent.activate`)."""

    kind: str
    function: Any


def activation(name: str, alpha: float | None, beta: float | None, approximation: Any, what: str) -> Activation:
    """The activation of that name; CompileError where it is not symmetric or leaves [-1, 1]."""
    unary = approximation.unary
    if name == "Sigmoid":
        return Activation("half", unary.get("relax.sigmoid", sigmoid))
    if name == "Tanh":
        return Activation("odd", unary.get("relax.tanh", np.tanh))
    if name == "Softsign":
        return Activation("odd", lambda x: x / (1 + np.abs(x)))
    a, b = alpha, beta
    if name == "HardSigmoid" and (0.5 if b is None else b) == 0.5:
        slope = 0.2 if a is None else a
        return Activation("half", lambda x: np.clip(slope * x + 0.5, 0, 1))
    if name == "ScaledTanh" and abs(1.0 if a is None else a) <= 1:
        high, slope = 1.0 if a is None else a, 1.0 if b is None else b
        return Activation("odd", lambda x: high * np.tanh(slope * x))
    if name == "Relu" and what == "RNN":
        return Activation("relu", None)
    raise CompileError(
        f"{what} with activation {name} has no integer form; known are Sigmoid, Tanh, Softsign, HardSigmoid with "
        "beta 0.5, ScaledTanh up to 1, and Relu for RNN"
    )


def activation_table(a: Activation, clip: float) -> np.ndarray:
    """int16 [2, PIECES]: straight pieces of the function of |x|, exact at 0, with inputs limited to `clip`."""
    if a.kind == "relu":
        return np.zeros((2, PIECES), np.int16)
    x = np.arange(PIECES << PIECE_BITS) / 2.0**GATE_BITS
    values = np.asarray(a.function(np.minimum(x, clip) if clip > 0 else x), np.float64) * 2.0**UNIT_BITS
    knots = np.clip(np.rint(broken_line(values, PIECES)), -LIMIT, LIMIT)
    return np.stack([knots[:-1], np.diff(knots)]).astype(np.int16)


def broken_line(values: np.ndarray, pieces: int) -> np.ndarray:
    """Heights of the pieces + 1 knots of the continuous broken line nearest to values that begins at values[0]."""
    width = len(values) // pieces
    at = np.arange(len(values))
    piece, weight = at // width, at % width / width
    matrix, right = np.zeros((pieces + 1, pieces + 1)), np.zeros(pieces + 1)
    hats = ((piece, 1 - weight), (piece + 1, weight))
    for i, u in hats:
        np.add.at(right, i, u * values)
        for j, v in hats:
            np.add.at(matrix, (i, j), u * v)
    first = values[0]
    rest = np.linalg.solve(matrix[1:, 1:], right[1:] - matrix[1:, 0] * first)
    return np.concatenate([[first], rest])


@handles("qcompile.recurrent")
def recurrent(r: Reader, call: Any, args: list[Any]) -> list[Quantized]:
    """Y [T, 1, N, H], Y_h [1, N, H], Y_c [1, N, H] (as Y_h for cells without it), 16 bits each."""
    a = call.attrs
    given = dict(zip([str(n) for n in a["arguments"]], args))
    for name in ("weight", "recurrent", "bias"):
        if not isinstance(given.get(name, Real(np.zeros(1))), Real):
            raise CompileError(f"the {name} input must be constant")
    return _Layer(r, call, str(a["cell"]), given).results()


class _Layer:
    """One recurrent layer while it is read."""

    def __init__(self, r: Reader, call: Any, cell: str, given: dict[str, Any]) -> None:
        self.r, self.call, self.attrs, self.cell, self.given = r, call, call.attrs, cell, given
        self.steps, self.rows, _ = shape_of(call.args[0])
        self.units = given["recurrent"].values.shape[2]
        self.gates = GATES[cell]
        self.reset_after = cell == "GRU" and bool(self.attrs["reset_after"])
        self.functions = self._functions()
        self.relu = self.functions[0].kind == "relu"
        self.x_step = 1
        self.hidden_top, self.hidden_grid, self.narrow = self._hidden_grids()

    # ---- grids and functions
    def _functions(self) -> list[Activation]:
        names = [str(n) for n in self.attrs["activations"]] or list(DEFAULTS[self.cell])
        alpha, beta = ([float(str(v)) for v in self.attrs[k]] for k in ("alpha", "beta"))
        found = []
        for name in names:
            uses = {"HardSigmoid": 2, "ScaledTanh": 2, "LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1, "Affine": 2}
            first = alpha.pop(0) if uses.get(name, 0) > 0 and alpha else None
            second = beta.pop(0) if uses.get(name, 0) > 1 and beta else None
            found.append(activation(name, first, second, self.r.approximation, self.cell))
        return found

    def _observed(self, name: str) -> float:
        """Largest magnitude seen in calibration, 0 where nobody looked."""
        text = str(self.attrs[name])
        return float(text) if text else 0.0

    def _initial(self, name: str) -> Any:
        """An initial state, None for zeros."""
        v = self.given.get(name)
        if isinstance(v, Integers):
            raise CompileError(f"its initial state {v.name} is float but has no QuantizeLinear; calibrate the model")
        return v if v is None or isinstance(v, Real) else self.r.make.settle(v)

    def _initial_range(self, name: str) -> float:
        v = self._initial(name)
        if v is None:
            return 0.0
        return float(np.abs(v.values).max()) if isinstance(v, Real) else float(max(map(abs, v.range())))

    def _hidden_grids(self) -> tuple[float, Grid, Grid]:
        """(largest hidden state, its 16-bit grid, the 8-bit grid of the recurrent product)."""
        seen, start = self._observed("hidden_range"), self._initial_range("hidden")
        asked = self._asked_grid()
        if self.relu:
            seen = seen or (0.0 if asked is None else (asked.hi - asked.zero_point) * asked.scale)
            if seen <= 0:
                raise CompileError("RNN with Relu needs a QuantizeLinear on its output Y: its range is unknown")
            scale = max(seen, start) / LIMIT
            wide = Grid(scale, 0, "int16", -LIMIT, LIMIT)
        else:
            bits = UNIT_BITS if self.cell != "GRU" or start <= 1 else UNIT_BITS - int(np.ceil(np.log2(start)))
            wide = Grid(2.0**-bits, 0, "int16", -LIMIT, LIMIT)
            if start > 1.01 * 2.0 ** (UNIT_BITS - bits):
                self.r.notes.append(
                    f"its initial hidden state reaches {start:.4g}, but {self.cell} keeps states within "
                    "1, as all later ones are; scale the state into its recurrent weights"
                )
        if seen <= 0 and asked is not None:
            return asked.scale * 127, wide, asked
        top = max(seen or 1.0, start)
        return top, wide, Grid(top / 127, 0, "int8", -127, 127)

    def _asked_grid(self) -> Grid | None:
        """The 8-bit grid of the QuantizeLinear on Y, if there is one."""
        for binding in self.r.users.get(self.r.call_var, []):
            if isinstance(binding.value, relax.TupleGetItem) and int(binding.value.index) == 0:
                grid = self.r.upcoming_grid(binding.var)
                if grid is not None and grid.dtype == "int8":
                    return grid
        return None

    def _cell_bits(self) -> int:
        top = max(self._observed("cell_range") * CELL_MARGIN or CELL_RANGE, self._initial_range("cell"))
        return cell_bits(top)

    @property
    def gate_step(self) -> float:
        return self.hidden_grid.scale if self.relu else 2.0**-GATE_BITS

    # ---- the parts
    def results(self) -> list[Quantized]:
        b = self.r.builder
        states = [self._state("hidden", self.hidden_grid)]
        attrs: dict[str, Any] = {}
        if self.cell == "LSTM":
            bits = self._cell_bits()
            cell_grid = Grid(2.0**-bits, 0, "int16", -LIMIT, LIMIT)
            states.append(self._state("cell", cell_grid))
            attrs["cell_bits"] = bits
        x = self._projected()
        if self.cell == "GRU":
            after = self.x_step if self.reset_after else 0
            attrs |= {"hidden_bits": round(-np.log2(self.hidden_grid.scale)), "reset_after": after}
        weight, bias, multiplier, numbers = self._recurrent()
        clip = float(str(self.attrs["clip"]))
        tables = np.stack([activation_table(f, clip) for f in self.functions])
        constants = [b.constant(v, n) for v, n in ((weight, "weight"), (bias, "bias"), (multiplier, "multiplier"),
                                                   (tables, "tables"))]  # fmt: skip
        out = b.emit(
            self.cell.lower(),
            [x, *states, *constants, *self._lengths()],
            reverse=bool(self.attrs["reverse"]),
            activations=[f.kind for f in self.functions],
            **attrs,
            **numbers,
        )
        grids = [self.hidden_grid, cell_grid if self.cell == "LSTM" else self.hidden_grid]
        rows = [(0, self.steps), (self.steps, 1), (self.steps + len(states) - 1, 1)]
        wanted = [self.hidden_grid, *grids]
        results = []
        for (first, count), grid, shape in zip(rows, wanted, map(_shape, self.call.ty.fields)):
            part = b.emit(
                "slice", [out], begin=[first, 0, 0], end=[first + count, self.rows, self.units], step=[1, 1, 1]
            )
            name = b.emit("reshape", [part], shape=list(shape))
            least = -LIMIT - (self._initial("hidden") is not None)  # a given state may have all codes
            results.append(Quantized(name, identity(len(shape)), shape, grid.scale, 0, "int16", least, LIMIT))
        return results

    def _state(self, name: str, grid: Grid) -> str:
        v, shape = self._initial(name), (self.rows, self.units)
        if v is None:
            return self.r.builder.constant(np.zeros(shape, np.int16), name)
        q = self.r.make.plain(self.r.make.quantize(v, replace(grid, lo=-32768, hi=32767)))
        return self.r.builder.emit("reshape", [q.name], shape=list(shape))

    def _lengths(self) -> list[str]:
        v = self.given.get("lengths")
        if v is None:
            return []
        if isinstance(v, Real):
            return [self.r.builder.constant(v.values.astype(np.int32), "lengths")]
        return [self.r.builder.emit("cast", [v.name], offset=0, dtype="int32")]

    def _biases(self) -> tuple[np.ndarray, np.ndarray]:
        """(added to the projected inputs, added to the recurrent product), real."""
        count = self.gates * self.units
        given = self.given.get("bias")
        both = np.zeros(2 * count) if given is None else given.values.astype(np.float64).reshape(-1)
        inputs, recurrent = both[:count].copy(), both[count:].copy()
        kept = slice(2 * self.units, None) if self.reset_after else slice(count, None)
        inside = np.zeros(count)
        inside[kept] = recurrent[kept]
        return inputs + recurrent - inside, inside

    def _projected(self) -> str:
        """int16 [T, N, gates * H]: the inputs of all steps through their weights, in steps of 2^x_step of a gate's."""
        r, w = self.r, self.given["weight"].map(lambda v: v[0])
        x = r.make.plain(r.operand(self.given["x"], "input"))
        codes, scale = weight_codes(w.values, w.step, r.notes)
        out = (self.steps, self.rows, self.gates * self.units)

        def call_op(codes: np.ndarray, bias: str) -> str:
            weight = r.builder.constant(codes, "weight")
            return r.builder.emit("dense", [x.name, weight, bias], x_zero_point=x.zero_point)

        acc = replace(accumulator(r, x, codes, scale, call_op, identity(3), out), bias=self._biases()[0])
        while self.x_step < MOST_STEPS and self._needed_range(acc) > 32768 * self.gate_step * 2**self.x_step:
            self.x_step += 1
        return r.make.quantize(acc, Grid(self.gate_step * 2**self.x_step, 0, "int16", -32768, 32767)).name

    def _needed_range(self, acc: Accumulator) -> float:
        """The largest projected input that is to keep its value: beyond, the gate is at its end whatever is added."""
        w, inside = self.given["recurrent"].values[0], self._biases()[1]
        called_back = float((np.abs(w).sum(1) * self.hidden_top + np.abs(inside)).max())
        reach = [float(max(map(abs, value_range(acc)))), LIMIT * self.gate_step + called_back]
        if seen := self._observed("input_range"):
            reach.append(INPUT_MARGIN * seen)
        return min(reach)

    def _recurrent(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
        """Codes int8 [G*H, H], bias and multiplier int32 [G*H], and the numbers of the roundings."""
        w, narrow = self.given["recurrent"].map(lambda v: v[0]), self.narrow
        codes, scale = weight_codes(w.values, w.step, self.r.notes, offsets=False)
        inside = self._biases()[1]
        codes, scale = _coarse_enough(codes, scale, np.abs(inside) / (2.0**BIAS_BITS * narrow.scale))
        sums = scale * narrow.scale
        bias = np.rint(inside / sums).astype(np.int32)
        factor = sums / self.gate_step
        if self.reset_after:
            factor[2 * self.units :] /= 2**self.x_step
        reach = max(narrow.hi - narrow.zero_point, narrow.zero_point - narrow.lo)
        bound = np.abs(codes.astype(np.int64)).sum(1) * reach + np.abs(bias.astype(np.int64))
        top = float((factor * bound).max()) + 2**self.x_step * 32768 + 2
        shift = int(min(MAX_SHIFT - 2, 14 - self.x_step, np.floor(np.log2(INT32_MAX / top))))
        while shift >= 1:
            pre = max(1, int(np.floor(np.log2(max(factor.max(), 1e-30)))) + 2 + shift)  # |multiplier| < 2^31
            if float(bound.max()) * 2.0**pre <= INT32_MAX:
                break
            shift -= 1
        else:
            raise CompileError("its recurrent weights are too large for pre-activations of 16 bits")
        multiplier = np.rint(factor * 2.0 ** (32 + shift - pre)).astype(np.int32)
        h = dyadic(self.hidden_grid.scale / narrow.scale, LIMIT + 1)
        numbers = {
            "x_multiplier": 1 << self.x_step + shift,
            "shift": shift,
            "pre": pre,
            "h_multiplier": int(h.multiplier[0]),
            "h_shift": h.shift,
            "h_pre": h.pre,
            "h_zero_point": narrow.zero_point,
            "h_qmin": narrow.lo,
            "h_qmax": narrow.hi,
        }
        return codes, bias, multiplier, numbers


def _coarse_enough(codes: np.ndarray, scale: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose scale is below `least` on that scale; rows of zeros on the largest of the others."""
    used = codes.any(1)
    wanted = np.maximum(np.where(used, scale, scale[used].max(initial=1e-6)), least)
    moved = np.rint(codes * (scale / wanted)[:, None]).astype(np.int8)
    return np.where((wanted == scale)[:, None], codes, moved), wanted


def _shape(ty: Any) -> tuple[int, ...]:
    return tuple(integers(ty.shape))
