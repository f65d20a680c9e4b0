"""Learned rounding: integer codes that change a layer's outputs least, from the second moments of its inputs.

For each output channel the codes q minimise (w - d q) H (w - d q)^T, where H = E[x x^T] and d are the steps of the
grid, which are chosen before. GPTQ (Frantar et al. 2023) rounds one column after the other and lets the columns that
follow make up for the error; coordinate descent then visits each code again with all others fixed, and the scale of
each channel is fitted to the codes in closed form.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

DAMPING = 0.01  # of the mean diagonal of H, added to it: few samples must not be believed entirely
BLOCK = 128  # columns that are rounded before the others hear of their errors
SWEEPS = 4


def damped(h: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """H [K, K] with a share of its mean diagonal added; inputs that never speak get 1."""
    h = h.copy()
    diagonal = np.einsum("ii->i", h)
    silent = diagonal <= 1e-9 * max(float(diagonal.max(initial=0)), 1e-30)
    diagonal += damping * float(diagonal.mean()) + 1e-30
    diagonal[silent] = max(float(diagonal.mean()), 1e-30)
    return h


def learn(
    w: np.ndarray, h: np.ndarray, steps: np.ndarray, qmax: int, sweeps: int = SWEEPS, least: np.ndarray | None = None
):
    """(codes int8 [N, K], gain [N]) for weights `w` [N, K], damped `h` [K, K] and `steps` [N, K] (float32).

    The steps of channel n are to be multiplied by gain[n], but no gain is below `least` [N].
    """
    codes = gptq(w, h, steps, qmax)
    gain = np.ones((len(w), 1), np.float32)
    for _ in range(sweeps):
        fitted = _gain(w, h, codes * steps)
        gain = fitted if least is None else np.maximum(fitted, least[:, None])
        changed = descend(w, h, steps * gain, codes, qmax)
        if not changed:
            break
    return codes.astype(np.int8), gain[:, 0]


def gptq(w: np.ndarray, h: np.ndarray, steps: np.ndarray, qmax: int) -> np.ndarray:
    """Codes [N, K] as float32, the columns of the largest inputs first."""
    order = np.argsort(-np.diag(h), kind="stable")
    upper = _inverse_factor(h[np.ix_(order, order)])
    w, steps = w[:, order].astype(np.float32), steps[:, order]
    codes = np.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = np.empty((len(w), stop - start), np.float32)
        for k in range(start, stop):
            codes[:, k] = np.clip(np.rint(w[:, k] / steps[:, k]), -qmax, qmax)
            errors[:, k - start] = (w[:, k] - codes[:, k] * steps[:, k]) / upper[k, k]
            w[:, k + 1 : stop] -= errors[:, k - start, None] * upper[k, k + 1 : stop]
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.empty_like(codes)
    back[:, order] = codes
    return back


def _inverse_factor(h: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of H^-1."""
    extra = 0.0
    for _ in range(6):
        try:
            lower = linalg.cholesky(h + extra * np.eye(len(h), dtype=h.dtype), lower=True, check_finite=False)
            inverse = (
                linalg.lapack.dpotri(lower, lower=1)[0]
                if h.dtype == np.float64
                else linalg.lapack.spotri(lower, lower=1)[0]
            )
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            return linalg.cholesky(inverse, lower=False, check_finite=False)
        except linalg.LinAlgError:
            extra = max(extra * 10, DAMPING * float(np.diag(h).mean()))
    return np.diag(1 / np.sqrt(np.diag(h))).astype(h.dtype)


def _gain(w: np.ndarray, h: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The factor [N, 1] for `v` that brings it nearest to `w` in the metric H."""
    hv = v @ h
    below = np.einsum("nk,nk->n", hv, v)
    factor = np.einsum("nk,nk->n", hv, w) / np.maximum(below, 1e-30)
    return np.where((below > 0) & (factor > 0.5) & (factor < 2), factor, 1.0).astype(np.float32)[:, None]


def descend(w: np.ndarray, h: np.ndarray, steps: np.ndarray, codes: np.ndarray, qmax: int) -> int:
    """One round of coordinate descent over `codes` in place; returns how many changed."""
    slope = (w - codes * steps) @ h  # half the negative gradient by each weight
    diagonal, changed = np.diag(h), 0
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        moves = np.zeros((len(w), stop - start), np.float32)
        for k in range(start, stop):
            wish = codes[:, k] + slope[:, k] / (diagonal[k] * steps[:, k])
            new = np.clip(np.rint(wish), -qmax, qmax)
            move = (new - codes[:, k]) * steps[:, k]
            if move.any():
                changed += int(np.count_nonzero(move))
                codes[:, k] = new
                moves[:, k - start] = move
                slope[:, k + 1 : stop] -= move[:, None] * h[k, k + 1 : stop]
        slope[:, stop:] -= moves @ h[start:stop, stop:]
    return changed
