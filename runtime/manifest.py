"""`manifest.json`: what a folder claims to be, and the checks before any of its code runs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.runtime.errors import ArtifactError

ABI_VERSION = 1
MANIFEST = "manifest.json"
_REQUIRED = {"name": str, "target": str, "cpu": str, "arch": str, "cpu_flags": list, "emulation": str, "library": str,
             "abi_version": int, "arena_bytes": int, "inputs": list, "outputs": list, "library_sha256": str}


@dataclass(frozen=True)
class Tensor:
    """One input or output; real = scale * (q - zero_point), ``scale`` None for plain integers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | list[float] | None
    zero_point: int
    axis: int = 0


@dataclass(frozen=True)
class Manifest:
    """The checked contents of an artifact folder."""

    folder: Path
    library: Path
    name: str
    target: str
    cpu: str
    arch: str
    cpu_flags: tuple[str, ...]  # what /proc/cpuinfo of a machine that runs it must list
    emulation: str  # the core that an emulator stands in with
    arena_bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[tuple[str, str], ...] = ()  # (input, output) whose integers go from call to call


def read_manifest(path: str | Path) -> Manifest:
    """Reads and checks the artifact folder ``path`` (or its ``manifest.json``).

    Raises ArtifactError where the manifest is missing or damaged, of another ABI version, or the library is not the
    one that was written with it.
    """
    path = Path(path)
    folder = path.parent if path.name == MANIFEST else path
    raw = _read_json(folder)
    try:
        inputs, outputs = (tuple(_tensor(entry) for entry in raw[key]) for key in ("inputs", "outputs"))
        states = tuple((str(source), str(target)) for source, target in raw.get("states", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: bad tensor entry ({error!r})") from error
    library = folder / raw["library"]
    if library.parent != folder:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: library {raw['library']!r} lies outside the folder")
    try:
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {library}: {error.strerror or error}") from error
    if digest != raw["library_sha256"]:
        raise ArtifactError(f"{library} is damaged: its SHA-256 is not the one in {MANIFEST}; compile the model again")
    return Manifest(folder, library.resolve(), raw["name"], raw["target"], raw["cpu"], raw["arch"],
                    tuple(raw["cpu_flags"]), raw["emulation"], raw["arena_bytes"], inputs, outputs, states)


def _read_json(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{file} is damaged: not a JSON object")
    if raw.get("abi_version", ABI_VERSION) != ABI_VERSION:
        raise ArtifactError(f"{folder} has ABI version {raw['abi_version']}, this loader {ABI_VERSION}; "
                            "compile the model again or use the loader it came with")
    for key, kind in _REQUIRED.items():
        if not isinstance(raw.get(key), kind):
            raise ArtifactError(f"{file} is damaged: {key!r} is {'wrong' if key in raw else 'missing'}")
    return raw


def _tensor(entry: dict[str, Any]) -> Tensor:
    return Tensor(str(entry["name"]), str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), entry["scale"],
                  int(entry["zero_point"]), int(entry.get("axis", 0)))
