"""What `--approx` changes: which real function a table holds.

exact: the function itself, correctly rounded. ibert: I-BERT's second-order polynomials (Kim et al., 2021, equations 8,
12 and 13), for models that were fine-tuned with them; the tables then hold the polynomial, and nothing else differs.
pwl: sigmoid and tanh of iRNN's adaptive straight segments (`adaptive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from qcompile.passes.integerize.adaptive import adaptive

Function = Callable[[np.ndarray], np.ndarray]
TABLE_OCTAVES = 9.0  # 255 * 2^-9 < 0.5: numerators beyond are zero
STEPS = 255 / TABLE_OCTAVES  # table entries per octave


def i_erf(x: np.ndarray) -> np.ndarray:
    a, b = -0.2888, -1.769
    return np.sign(x) * (a * (np.minimum(np.abs(x), -b) + b) ** 2 + 1)


def i_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + i_erf(x / np.sqrt(2)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def i_exp(x: np.ndarray) -> np.ndarray:
    """exp of x <= 0: x = -z ln 2 + p, p in (-ln 2, 0]."""
    z = np.floor(-x / np.log(2))
    p = x + z * np.log(2)
    return (0.3585 * (p + 1.353) ** 2 + 0.344) * 2.0**-z


@dataclass(frozen=True)
class Approximation:
    """unary: Relax op -> the function that replaces it; exp: for the 8-bit numerators of attention."""

    exp: Function = np.exp
    unary: dict[str, Function] = field(default_factory=dict)

    def numerators(self) -> np.ndarray:
        """uint8 [256]: 255 exp(-t / STEPS octaves), the last entry 0 (everything further away)."""
        weights = self.exp(-np.arange(255) / STEPS * np.log(2))
        return np.append(np.minimum(np.rint(255 * weights), 255), 0).astype(np.uint8)


APPROXIMATIONS = {
    "exact": Approximation(),
    "pwl": Approximation(unary={"relax.sigmoid": adaptive(sigmoid), "relax.tanh": adaptive(np.tanh)}),
    "ibert": Approximation(i_exp, {"relax.nn.gelu": i_gelu, "relax.nn.gelu_tanh": i_gelu, "relax.erf": i_erf}),
}
