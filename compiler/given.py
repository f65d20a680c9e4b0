"""The model as it was given, run by ONNX Runtime: what an artifact is measured beside, so that faults of the frontend's
own rewriting show too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from qcompile.quantizer.calibration import Feed
from qcompile.targets.errors import CompileError

TYPES = {"float": "float32", "double": "float64", "bool": "bool"}  # that ONNX Runtime calls otherwise than numpy


class GivenModel:
    """A model's file, or the model itself, and the values of the inputs that it was compiled for."""

    def __init__(self, model: str | os.PathLike[str] | onnx.ModelProto, fixed: Mapping[str, np.ndarray]) -> None:
        self.model, self.fixed = model, fixed

    def stream(self, outputs: Sequence[str], samples: Sequence[Feed]) -> Iterator[dict[str, np.ndarray]]:
        """{name: array} of `outputs` for each sample; samples have the types and shapes that the compiler gave to the
        inputs. Raises CompileError with the reason where ONNX Runtime cannot run the model, and where a result has NaN
        or infinity."""
        try:
            session = self._session()
            for sample in samples:
                made = dict(zip(outputs, session.run(list(outputs), self._feed(session, sample))))
                for name, value in made.items():
                    if not np.isfinite(value).all():
                        raise CompileError(f"output '{name}' has NaN or infinite values")
                yield made
        except CompileError:
            raise
        except Exception as e:  # ONNX Runtime's exception types are not public
            raise CompileError(str(e).splitlines()[0] if str(e) else type(e).__name__) from e

    def _session(self) -> ort.InferenceSession:
        """Without optimisations, which compute Q/DQ pairs in other ways than they say."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not isinstance(self.model, onnx.ModelProto) and not Path(self.model).is_file():
            raise CompileError("it comes from a pipe, which is read once")
        source = self.model.SerializeToString() if isinstance(self.model, onnx.ModelProto) else str(Path(self.model))
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def _feed(self, session: ort.InferenceSession, sample: Feed) -> Feed:
        known, feed = {**sample, **self.fixed}, {}
        for i in session.get_inputs():
            kind = i.type.removeprefix("tensor(").removesuffix(")")
            value = known.get(i.name)
            if value is None:  # an input that nothing reads
                value = np.zeros([n if isinstance(n, int) else 1 for n in i.shape])
            feed[i.name] = value.astype(TYPES.get(kind, kind))
        return feed
