"""A model that is called again and again, with states that stay integers from call to call."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from qcompile.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from qcompile.runtime.model import Model


class Stream:
    """What ``Model.stream`` returns: inputs and outputs without the states, which are kept here as they are.

    A stream belongs to the thread that calls it first, until ``reset``; a call from another raises ArtifactError, since
    their samples would run into one state. Threads may share the model and have a stream each.
    """

    def __init__(self, model: Model, start: Mapping[str, Any] | None = None) -> None:
        if not model.manifest.states:
            raise ArtifactError("the model has no states; compile it with --state INPUT:OUTPUT for each")
        self.model = model
        self.pairs = dict(model.manifest.states)
        self.state: dict[str, np.ndarray] = {}
        self._owner: int | None = None
        self._owning = threading.Lock()
        self.reset(start)

    def reset(self, start: Mapping[str, Any] | None = None) -> None:
        """Begins anew from ``start`` (states by input name, real or integer), zeros where it has none."""
        for name in start or {}:
            if name not in self.pairs:
                raise ArtifactError(f"{name!r} is no state; the states are {', '.join(self.pairs)}")
        self._owner = None
        for tensor in self.model.inputs:
            if tensor.name in self.pairs:
                given = np.asarray((start or {}).get(tensor.name, np.zeros(tensor.shape, np.float32)))
                if tensor.scale is None and given.dtype.kind == "f":
                    given = given.astype(tensor.dtype)
                self.state[tensor.name] = self.model.quantize_one(tensor, given)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One call, real numbers in and out."""
        results = self.run_integer({t.name: self.model.quantize_one(t, np.asarray(inputs[t.name]))
                                    for t in self.model.inputs if t.name in inputs})
        return {t.name: self.model.dequantize_one(t, results[t.name])
                for t in self.model.outputs if t.name in results}

    def run_integer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One call, integers in and out."""
        with self._owning:
            self._owner = self._owner or threading.get_ident()
        if self._owner != threading.get_ident():
            raise ArtifactError("this stream belongs to another thread; make a stream for each, or begin anew with "
                                "reset")
        clash = [name for name in inputs if name in self.pairs]
        if clash:
            raise ArtifactError(f"{clash[0]!r} is a state, which the stream keeps; begin anew with reset")
        results = self.model.run_integer({**inputs, **self.state})
        for source, target in self.pairs.items():
            self.state[source] = results.pop(target)
        return results
