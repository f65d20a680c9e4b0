"""A model that is called again and again, with states that stay integers from call to call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from qcompile.runtime.borders import as_array
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import Manifest, Tensor


class Called(Protocol):
    """What a stream asks of the model that it calls."""

    manifest: Manifest

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def outputs(self) -> tuple[Tensor, ...]: ...
    def quantize_one(self, tensor: Tensor, array: np.ndarray) -> np.ndarray: ...
    def dequantize_one(self, tensor: Tensor, array: np.ndarray) -> np.ndarray: ...
    def run_integer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]: ...


class Stream:
    """What ``Model.stream`` returns: inputs and outputs without the states, which are kept here as they are.

    A stream belongs to the thread that calls it first, until ``reset``; a call from another raises ArtifactError, since
    their samples would run into one state, and so does a ``reset`` while a call runs. Threads may share the model and
    have a stream each.
    """

    def __init__(self, model: Called, start: Mapping[str, Any] | None = None) -> None:
        if not model.manifest.states:
            raise ArtifactError("the model has no states; compile it with --state INPUT:OUTPUT for each")
        self.model = model
        self.pairs = dict(model.manifest.states)
        self.state: dict[str, np.ndarray] = {}
        self._owner: int | None = None
        self._busy = threading.Lock()
        self.reset(start)

    def reset(self, start: Mapping[str, Any] | None = None) -> None:
        """Begins anew from ``start`` (states by input name, real or integer), zeros where it has none."""
        for name in start or {}:
            if name not in self.pairs:
                raise ArtifactError(f"{name!r} is no state; the states are {', '.join(self.pairs)}")
        with self._alone():
            self._owner = None
            self.state = self._begin(start or {})

    def _begin(self, start: Mapping[str, Any]) -> dict[str, np.ndarray]:
        state = {}
        for tensor in self.model.inputs:
            if tensor.name in self.pairs:
                given = as_array(tensor.name, start.get(tensor.name, np.zeros(tensor.shape, np.float32)))
                if tensor.scale is None and given.dtype.kind == "f":
                    given = given.astype(tensor.dtype)
                state[tensor.name] = self.model.quantize_one(tensor, given)
        return state

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One call, real numbers in and out."""
        known = {t.name: t for t in self.model.inputs}  # what is unknown goes on, and is refused there
        results = self.run_integer(
            {n: self.model.quantize_one(known[n], as_array(n, x)) if n in known else x for n, x in inputs.items()}
        )
        return {t.name: self.model.dequantize_one(t, results[t.name]) for t in self.model.outputs if t.name in results}

    def run_integer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One call, integers in and out."""
        with self._alone():
            self._owner = self._owner or threading.get_ident()
            if self._owner != threading.get_ident():
                raise ArtifactError(
                    "this stream belongs to another thread; make a stream for each, or begin anew with reset"
                )
            return self._run(inputs)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise ArtifactError(
                "a call of this stream still runs, so it belongs to another thread; make a stream for each"
            )
        try:
            yield
        finally:
            self._busy.release()

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        clash = [name for name in inputs if name in self.pairs]
        if clash:
            raise ArtifactError(f"{clash[0]!r} is a state, which the stream keeps; begin anew with reset")
        results = self.model.run_integer({**inputs, **self.state})
        for source, target in self.pairs.items():
            self.state[source] = results.pop(target)
        return results
