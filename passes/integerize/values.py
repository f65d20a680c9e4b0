"""What a float tensor of the QDQ graph is in integers, while the graph is being read.

A value is either known (Real, a constant), integers with a scale (Quantized), or deferred: a computation whose result
is only made when a QuantizeLinear says on which grid. So bias, activation, clamp, residual sum and requantization
become one rounding, whatever order the exporter wrote them in. Transposes are deferred too: a value remembers how its
logical axes lie in memory (`axes`: logical = physical.transpose(axes)), and channels-last neighbours never see NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.targets.errors import CompileError

NO_CLAMP = (-np.inf, np.inf)
MASKED = -1e3  # scores lowered by more than this weigh nothing: exp(-1000) = 0 in any float format
TABLE_CODES = 1 << 16  # a function of more codes than this is not made a table


@dataclass(frozen=True)
class Grid:
    """Where a QuantizeLinear puts its result: real = scale * (q - zero_point), lo <= q <= hi."""

    scale: float
    zero_point: int
    dtype: str
    lo: int
    hi: int

    def clamp(self, clamp: tuple[float, float]) -> Grid:
        """The grid with codes limited to the reals in `clamp`."""
        lo, hi = (c if np.isinf(c) else np.rint(c / self.scale) + self.zero_point for c in clamp)
        return replace(self, lo=int(min(max(self.lo, lo), self.hi)), hi=int(max(min(self.hi, hi), self.lo)))

    def attrs(self) -> dict:
        return {"zero_point": self.zero_point, "qmin": self.lo, "qmax": self.hi, "dtype": self.dtype}


def symmetric_grid(low: float, high: float, dtype: str = "int16") -> Grid:
    """A grid without zero point that covers [low, high]."""
    top = RANGES[dtype][1]
    largest = max(abs(low), abs(high))
    return Grid(float(largest / top) if largest > 0 else 1.0, 0, dtype, -top, top)


@dataclass
class Real:
    """A constant. `step` (broadcast to the values' shape) is its quantization step where the model gives one."""

    values: np.ndarray
    step: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def map(self, f: Callable[[np.ndarray], np.ndarray]) -> Real:
        """Data movement on values and steps alike."""
        return Real(f(self.values), None if self.step is None else f(np.broadcast_to(self.step, self.values.shape)))


@dataclass
class Integers:
    """An integer tensor without a scale: ids, masks, indices; or a float input before its first QuantizeLinear."""

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    graph_input: bool = False  # a float input, not yet quantized
    root: str = ""  # the graph input whose integers these are, moved about


@dataclass
class Rows:
    """An output: integers with real = scale[i] * (q - zero_point) at index i of the logical `axis`."""

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    scale: np.ndarray
    zero_point: int
    axis: int


@dataclass
class Quantized:
    """Integers `name` with real = scale * (q - zero_point); scale a number or a vector along the last physical axis.

    channel_zeros: a zero point for each index of logical axis 1 instead, which convolutions read. role: "codes" of a
    QuantizeLinear that are not dequantized yet; "flags" where these are the integers themselves, whatever their scale.
    """

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    scale: float | np.ndarray
    zero_point: int
    dtype: str
    lo: int
    hi: int
    clamp: tuple[float, float] = NO_CLAMP
    channel_zeros: tuple[int, ...] = ()
    role: str = ""

    @property
    def per_tensor(self) -> bool:
        return np.ndim(self.scale) == 0

    @property
    def magnitude(self) -> int:
        """Largest |q - zero_point|."""
        return max(abs(q - z) for q in (self.lo, self.hi) for z in self.channel_zeros or (self.zero_point,))

    @property
    def zeros(self) -> int | list[int]:
        """The zero point as an attribute of convolutions."""
        return list(self.channel_zeros) or self.zero_point

    def range(self) -> tuple[float, float]:
        s = np.abs(self.scale).max()
        ends = sorted(((self.lo - self.zero_point) * s, (self.hi - self.zero_point) * s))
        if np.min(self.scale) < 0:
            ends = [-self.magnitude * s, self.magnitude * s]
        return max(ends[0], self.clamp[0]), min(ends[1], self.clamp[1])


def nearest(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each number of ``wanted``, which of the rising numbers ``places`` lies nearest; of two, the upper."""
    above = np.searchsorted(places, wanted).clip(0, len(places) - 1)
    below = (above - 1).clip(0)
    return np.where(np.abs(places[below] - wanted) < np.abs(places[above] - wanted), below, above)


@dataclass
class Function:
    """values[q - source.lo]: any function of one quantized tensor, kept exact until it is quantized.

    Codes outside of its domain have the value of the nearest within.
    """

    source: Quantized
    values: np.ndarray

    def __post_init__(self) -> None:
        outside = np.isnan(self.values)
        if outside.any():
            (inside,) = np.nonzero(~outside)
            places = np.arange(len(outside))
            found = inside[nearest(inside, places)] if inside.size else places
            self.values = np.nan_to_num(self.values[found], nan=0.0, posinf=np.inf, neginf=-np.inf)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def axes(self) -> tuple[int, ...]:
        return self.source.axes

    def range(self) -> tuple[float, float]:
        finite = self.values[np.isfinite(self.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


Emit = Callable[[np.ndarray | None], str]  # bias codes (or None) -> name of the result


@dataclass
class Accumulator:
    """An int32 sum with real = scale * acc + bias; emit(bias int32 vector or None) -> name makes it.

    scale: number or vector along the last physical axis; bias: real, number or vector along the same axis, folded into
    the kernel where `takes_bias`, else added after it. bound: proved largest |acc| without bias.
    """

    emit: Emit
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    scale: float | np.ndarray
    bound: float
    what: str
    bias: float | np.ndarray = 0.0
    takes_bias: bool = False
    clamp: tuple[float, float] = NO_CLAMP
    scores: tuple | None = None  # (query, key, transposed): a product that softmax may fuse
    coarsen: Callable[[np.ndarray], Emit] | None = None  # `emit` with channel c's weights on steps 2^k[c] times larger

    @property
    def whole(self) -> bool:
        """Whether the sums are what is meant, without scale and bias."""
        return bool(np.all(self.scale == 1)) and not np.any(self.bias)

    def through(self, move: Callable[[str], str], axes: tuple[int, ...], shape: tuple[int, ...]) -> Accumulator:
        """The same sums moved about by `move`, which keeps the last physical axis."""

        def after(emit: Emit) -> Emit:
            return lambda bias: move(emit(bias))

        coarsen, moved = self.coarsen, None
        if coarsen is not None:
            moved = lambda k: after(coarsen(k))  # noqa: E731
        return replace(self, emit=after(self.emit), coarsen=moved, axes=axes, shape=shape, scores=None)

    def range(self) -> tuple[float, float]:
        top = float(np.max(np.abs(self.scale) * self.bound + np.abs(self.bias)))
        return max(-top, self.clamp[0]), min(top, self.clamp[1])


@dataclass
class Sum:
    """a + b with one rounding; a and b are Quantized, Accumulator, Function or Real."""

    a: Value
    b: Value
    shape: tuple[int, ...]
    clamp: tuple[float, float] = NO_CLAMP

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape)))

    @property
    def masked(self) -> bool:
        """Whether a term has a mask's numbers, beside which nothing is left of others on one grid."""
        return any(
            t.masked if isinstance(t, Sum) else isinstance(t, Real | Function) and bool((t.values <= MASKED).any())
            for t in (self.a, self.b)
        )

    def range(self) -> tuple[float, float]:
        (al, ah), (bl, bh) = value_range(self.a), value_range(self.b)
        return max(al + bl, self.clamp[0]), min(ah + bh, self.clamp[1])


@dataclass
class Deferred:
    """Any other computation that ends in its own rounding: materialise(grid) -> name of the physical result."""

    make: Callable[[Grid], str]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    low: float
    high: float
    factor: float = 1.0  # the real value is factor times what `make` computes
    clamp: tuple[float, float] = NO_CLAMP

    def range(self) -> tuple[float, float]:
        ends = sorted((self.low * self.factor, self.high * self.factor))
        return max(ends[0], self.clamp[0]), min(ends[1], self.clamp[1])


@dataclass
class UnnormalisedSoftmax:
    """softmax(scores + mask) before anyone says whether it is normalised: attention keeps its numerators."""

    scores: Accumulator
    masks: list
    shape: tuple[int, ...]
    normalised: Deferred = field(repr=False)
    uniform: bool = False  # rows that are masked whole weigh all alike

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape)))

    def range(self) -> tuple[float, float]:
        return 0.0, 1.0


Value = Real | Integers | Quantized | Function | Accumulator | Sum | Deferred | UnnormalisedSoftmax


def unknown_range(name: str) -> CompileError:
    return CompileError(
        f"{name} is used as a float tensor but has no QuantizeLinear: its range is unknown; give samples with --calib, "
        "or quantize the model's inputs"
    )


def value_range(v: Value) -> tuple[float, float]:
    """Real range that the value provably stays in."""
    if isinstance(v, Real):
        finite = v.values[np.isfinite(v.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if isinstance(v, Integers):
        raise unknown_range(v.name)
    return v.range()


def identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))
