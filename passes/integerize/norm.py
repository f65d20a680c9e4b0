"""LayerNorm, RMSNorm, InstanceNorm, GroupNorm: rows along the last axis, exact sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, RANGES, TooFine
from qcompile.kernels.ops.norm import deviation
from qcompile.passes.integerize.reader import Reader, handles, integers, shape_of
from qcompile.passes.integerize.values import Deferred, Grid, Quantized, Real, identity
from qcompile.targets.errors import CompileError

MOST_SHIFT = 24  # of a result's steps
FINE = 1 / 32  # of a step of 8 bits: what a step of 16 bits may be that it is made from


def _normalise(
    r: Reader,
    x: Quantized,
    rows: tuple[int, ...],
    gamma: np.ndarray,
    beta: np.ndarray,
    epsilon: float,
    out: tuple[int, ...],
    rms: bool,
    per_row: bool,
) -> Deferred:
    """x in logical order, seen as `rows`; normalised along the last axis of `rows`."""
    d = rows[-1]
    if d * 65535 > INT32_MAX:
        raise CompileError(f"a normalisation over {d} elements overflows 32 bits")
    x = r.make.plain(x)
    name = r.builder.emit("reshape", [x.name], shape=list(rows))
    eps = min(int(np.rint(epsilon * d * d / float(x.scale) ** 2)), 1 << 60)
    gamma, beta = gamma.astype(np.float64).ravel(), beta.astype(np.float64).ravel()
    sign = float(np.sign(x.scale))

    key = (name, tuple(rows), eps, rms, per_row)

    def make(grid: Grid) -> str:
        wide = [] if per_row else r.normalised.get(key, [])
        for other in wide if grid.dtype == "int8" else []:
            same = _rescaled(other, gamma, beta, grid)
            if same:
                return r.make.quantize(same, grid).name
        factor = sign * gamma / (deviation(d) * grid.scale)
        largest = max(float(np.abs(factor).max()) / RANGES["int16"][1], float(np.abs(beta).max()) / grid.scale / 2**29)
        if largest > 1:
            raise TooFine("the output scale of a normalisation is too small for its scale and bias")
        shift = min(MOST_SHIFT, int(np.floor(-np.log2(largest)))) if largest else 0
        parameters = {"gamma": (factor, np.int16), "beta": (beta / grid.scale, np.int32)}
        y = r.builder.emit(
            "layer_norm",
            [name, *(r.builder.constant(np.rint(v * 2.0**shift).astype(t), n) for n, (v, t) in parameters.items())],
            x_zero_point=x.zero_point,
            epsilon=eps,
            rms=rms,
            per_row=per_row,
            shift=shift,
            **grid.attrs(),
        )
        y = r.builder.emit("reshape", [y], shape=list(out))
        if grid.dtype == "int16" and grid.zero_point == 0:
            numbers = grid.scale, grid.zero_point, grid.dtype, grid.lo, grid.hi
            made = Quantized(y, identity(len(out)), out, *numbers)
            r.normalised.setdefault(key, []).append((made, gamma, beta))
        return y

    top = float(np.abs(gamma).max() * min(np.sqrt(d), 16.0) + np.abs(beta).max())
    return Deferred(make, identity(len(out)), out, -top, top)


def _rescaled(
    wide: tuple[Quantized, np.ndarray, np.ndarray], gamma: np.ndarray, beta: np.ndarray, grid: Grid
) -> Quantized | None:
    """A normalisation as another one of 16 bits with factors for its channels, where that loses nothing: its codes are
    far finer than those of `grid`, and none of these lies where it is saturated."""
    made, other_gamma, other_beta = wide
    with np.errstate(all="ignore"):
        factor = gamma / other_gamma
    step = float(made.scale) * np.abs(factor) / grid.scale
    reach = max(abs(grid.lo + 1 - grid.zero_point), abs(grid.hi - 1 - grid.zero_point))
    if not (np.isfinite(factor).all() and (step <= FINE).all() and (step * made.magnitude >= reach).all()):
        return None
    if np.abs(beta - factor * other_beta).max() > FINE * grid.scale:
        return None
    one = np.ptp(factor) == 0
    return replace(made, scale=float(made.scale) * (float(factor.flat[0]) if one else factor))


def _parameter(v: Any, size: int, what: str) -> np.ndarray:
    if not isinstance(v, Real):
        raise CompileError(f"a normalisation with a computed {what} has no integer form")
    return np.broadcast_to(v.values.ravel(), (size,))


@handles("relax.nn.layer_norm", "relax.nn.rms_norm")
def layer_norm(r: Reader, call: Any, args: list[Any]) -> Deferred:
    out = shape_of(call)
    rank = len(out)
    axes = sorted(i % rank for i in integers(call.attrs.axes))
    if axes != list(range(axes[0], rank)):
        raise CompileError("a normalisation must run over the last axes; transpose the tensor")
    size = int(np.prod(out[axes[0] :]))
    rms = call.op.name == "relax.nn.rms_norm"
    gamma = _parameter(args[1], size, "scale")
    beta = np.zeros(size) if rms else _parameter(args[2], size, "bias")
    x = r.make.settle(r.settled(args[0], None))
    return _normalise(r, x, (*out[: axes[0]], size), gamma, beta, float(call.attrs.epsilon), out, rms, False)


@handles("relax.nn.instance_norm", "relax.nn.group_norm")
def group_norm(r: Reader, call: Any, args: list[Any]) -> Any:
    """Instance norm is group norm with one channel a group."""
    out = shape_of(call)
    n, c = out[:2]
    groups = int(call.attrs.num_groups) if call.op.name == "relax.nn.group_norm" else c
    gamma, beta = _parameter(args[1], c, "scale"), _parameter(args[2], c, "bias")
    x = r.make.settle(r.settled(args[0], None))
    size = int(np.prod(out[2:], dtype=np.int64))
    if groups == c:
        return _normalise(r, x, (n, c, size), gamma, beta, float(call.attrs.epsilon), out, False, True)
    per = c // groups
    return (
        _normalise(
            r,
            x,
            (n, groups, per * size),
            np.repeat(gamma, size),
            np.repeat(beta, size),
            float(call.attrs.epsilon),
            out,
            False,
            False,
        )
        if groups == 1
        else _grouped(r, x, n, groups, per, size, gamma, beta, float(call.attrs.epsilon), out)
    )


def _grouped(
    r: Reader,
    x: Quantized,
    n: int,
    groups: int,
    per: int,
    size: int,
    gamma: np.ndarray,
    beta: np.ndarray,
    epsilon: float,
    out: tuple[int, ...],
) -> Any:
    """Several groups: normalised without affine part on a 16-bit grid, then scaled per channel."""
    from qcompile.passes.integerize.elementwise import elementwise_product, plus
    from qcompile.passes.integerize.values import symmetric_grid

    unit = _normalise(
        r, x, (n, groups, per * size), np.ones(per * size), np.zeros(per * size), epsilon, out, False, False
    )
    q = r.make.quantize(unit, symmetric_grid(-16.0, 16.0))
    shape = (1, len(gamma)) + (1,) * (len(out) - 2)
    return plus(r, elementwise_product(r, q, Real(gamma.reshape(shape)), out), Real(beta.reshape(shape)))
