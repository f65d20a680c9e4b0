"""A case as a file: the graph as `NAME.onnx`, the samples as `NAME.npz`, the options within the graph's metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

KEY = "fuzz"
DEFAULTS = {
    "targets": ["host"],
    "form": "float",
    "bits": "8",
    "budget": [],
    "calibrated": True,
    "approx": "exact",
    "threads": 1,
    "states": {},
}


@dataclass
class Case:
    """samples: {input: [samples, *shape]}; options: as DEFAULTS."""

    name: str
    model: onnx.ModelProto
    samples: dict[str, np.ndarray]
    options: dict[str, Any]

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """The samples one by one."""
        count = min((len(v) for v in self.samples.values()), default=0)
        return [{n: v[i] for n, v in self.samples.items()} for i in range(count)]

    def save(self, folder: Path) -> Path:
        """Writes NAME.onnx and NAME.npz; the path of the first."""
        folder.mkdir(parents=True, exist_ok=True)
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        onnx.helper.set_model_props(model, {KEY: json.dumps(self.options, sort_keys=True)})
        path = folder / f"{self.name}.onnx"
        onnx.save(model, str(path))
        np.savez_compressed(path.with_suffix(".npz"), **self.samples)  # type: ignore[arg-type]
        return path


def load(path: Path) -> Case:
    """Reads what `save` wrote; a file without options gets the defaults."""
    model = onnx.load(str(path))
    with np.load(path.with_suffix(".npz")) as file:
        samples = {n: file[n] for n in file.files}
    given = {p.key: p.value for p in model.metadata_props}.get(KEY, "{}")
    del model.metadata_props[:]
    return Case(path.stem, model, samples, {**DEFAULTS, **json.loads(given)})
