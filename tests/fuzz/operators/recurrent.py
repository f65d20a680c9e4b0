"""LSTM, GRU and RNN: directions, initial states, sequence lengths, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.build import Build
from fuzz.operators import draws

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@draws("LSTM", "GRU", "RNN", weight=1.2)
def recurrent(b: Build, op: str) -> list[str]:
    x = b.take(ranks=(3,))
    time, batch, size = b.shape(x)
    if time > 20:
        x = b.add("Slice", [x, *(b.ints([v]) for v in (0, 7, 0, 1))])
        time = 7
    hidden, gates = b.size(65), GATES[op]
    direction = b.one_of(("forward", "forward", "reverse", "bidirectional"))
    n = 2 if direction == "bidirectional" else 1
    w = b.weight([n, gates * hidden, size], size, axis=1)
    r = b.weight([n, gates * hidden, hidden], hidden, axis=1)
    bias = b.weight([n, 2 * gates * hidden], 4, axis=1) if b.chance(0.8) else ""
    lengths = b.constant(b.rng.integers(1, time + 1, batch), np.int32) if b.chance(0.15) else ""
    states = [""] * (2 if op == "LSTM" else 1)
    if b.chance(0.3):
        states = [b.weight([n, batch, hidden], 2) if b.chance(0.5) else b.input([n, batch, hidden]) for _ in states]
    given: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        given["linear_before_reset"] = b.whole(0, 1)
    if op == "RNN" and b.chance(0.3):
        given["activations"] = ["Relu"] * n
    count = 1 + len(states)
    return b.add(op, [x, w, r, bias, lengths, *states], outputs=count, keep=b.whole(1, count), **given)
