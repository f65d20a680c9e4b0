"""`manifest.json`: what a folder claims to be, and the checks before any of its code runs."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.runtime.errors import ArtifactError

ABI_VERSION = 1  # of the library's C interface
MANIFEST_ABI = 2  # of the manifest: 2 has a kind, and a section for what is true of that kind only
FLOATS = ("float16", "bfloat16", "float32", "float64")
DECLARED = (*FLOATS, "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
MANIFEST = "manifest.json"
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
SEAL = "manifest_sha256"
# what is known only when the library has been linked; all else goes into the hash that the library holds
AFTER_LINKING = ("content_hash", "library_sha256", "library_bytes", "code_bytes", "proof", SEAL)
_REQUIRED = {
    "abi_version": int,
    "kind": str,
    "name": str,
    "target": str,
    "machine": str,
    "library": str,
    "arena_bytes": int,
    "inputs": list,
    "outputs": list,
    "library_sha256": str,
    "content_hash": str,
    "states": list,
    "files": dict,
    SEAL: str,
}
_MOST_BYTES = 1 << 40
_LARGEST_SCALE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tensor:
    """One input or output; real = scale * (q - zero_point), ``scale`` None for plain integers.

    ``declared`` is the type that the model gives it; without one, float32 where it has a scale, else ``dtype``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | list[float] | None
    zero_point: int
    axis: int = 0
    declared: str = ""


@dataclass(frozen=True)
class Manifest:
    """The checked contents of an artifact folder, whatever it was compiled for."""

    folder: Path
    library: Path
    name: str
    target: str
    machine: str  # the entry of the table of targets behind `target`, which may be "host"
    arena_bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[tuple[str, str], ...] = ()  # (input, output) whose integers go from call to call
    content_hash: str = ""  # of all that was known before the library was linked; the library holds it too
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the folder's other files, by name
    library_sha256: str = ""  # empty: a library that was made just now
    kind: str = ""  # of machine; says who opens it

    def read_library(self) -> bytes:
        """The library's file; ArtifactError where it is not the one that was written.

        Each reader asks anew: a compile may replace the folder at any time, and other code would run in these buffers.
        """
        return _read(self.library, self.library_sha256)

    def read_file(self, name: str) -> bytes:
        """A file of the folder; ArtifactError where it is missing or not the one that was written."""
        if name not in self.files:
            raise ArtifactError(f"{self.folder} has no {name}: it was written without it")
        return _read(self.folder / name, self.files[name])


@dataclass(frozen=True)
class CpuManifest(Manifest):
    """What is true of CPUs, too: the section "cpu"."""

    arch: str = ""
    cpu_flags: tuple[str, ...] = ()  # what /proc/cpuinfo of a machine that runs it must list
    emulation: str = "max"  # the core that an emulator stands in with


def _read(file: Path, digest: str) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror or error}; compile the model again") from error
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST}; compile the model again")
    return data


def content_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a manifest without what is known only after linking."""
    return _hash(facts, AFTER_LINKING)


def seal(facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a whole manifest, which holds it as its last entry."""
    return _hash(facts, (SEAL,))


def _hash(facts: Mapping[str, Any], without: tuple[str, ...]) -> str:
    kept = {key: value for key, value in facts.items() if key not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Reads and checks the artifact folder ``path`` (or its ``manifest.json``).

    Raises ArtifactError where the manifest is missing or damaged, or of another ABI version. Whether the library is the
    one that was written with it, and says the same of the tensors, is for `check_library`.
    """
    path = Path(path)
    folder = path.parent if path.name == MANIFEST else path
    raw = _read_json(folder)
    try:
        inputs, outputs = (tuple(_tensor(entry) for entry in raw[key]) for key in ("inputs", "outputs"))
        states = _states(raw["states"], inputs, outputs)
        _check_words(raw)
        whole = seal(raw) == raw[SEAL] and content_hash(raw) == raw["content_hash"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: {error!r}") from error
    if not whole:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: it is not what was written; compile the model again")
    common = Manifest(
        folder,
        (folder / raw["library"]).resolve(),
        raw["name"],
        raw["target"],
        raw["machine"],
        raw["arena_bytes"],
        inputs,
        outputs,
        states,
        raw["content_hash"],
        raw["files"],
        raw["library_sha256"],
        raw["kind"],
    )
    try:
        return _SECTIONS[raw["kind"]](common, raw[raw["kind"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: {error!r}") from error


def _cpu(common: Manifest, section: dict[str, Any]) -> CpuManifest:
    arch, flags, emulation = (section[k] for k in ("arch", "cpu_flags", "emulation"))
    if not all(isinstance(word, str) for word in (arch, emulation, *flags)) or not isinstance(flags, list):
        raise ValueError(f"cpu {section}")
    return CpuManifest(**vars(common), arch=arch, cpu_flags=tuple(flags), emulation=emulation)


_SECTIONS = {"cpu": _cpu}  # kind -> what makes its manifest of the common facts and its section


def _read_json(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is damaged: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{file} is damaged: not a JSON object")
    if raw.get("abi_version", MANIFEST_ABI) != MANIFEST_ABI:
        raise ArtifactError(
            f"{file} has ABI version {raw['abi_version']}, this loader {MANIFEST_ABI}; "
            "compile the model again or use the loader it came with"
        )
    if isinstance(raw.get("kind"), str) and raw["kind"] not in _SECTIONS:
        raise ArtifactError(
            f"{file} is for a machine of kind {raw['kind']!r}, which this loader does not know "
            f"(it opens {', '.join(_SECTIONS)}); use a newer one"
        )
    for key, kind in _REQUIRED.items():
        if type(raw.get(key)) is not kind:
            raise ArtifactError(f"{file} is damaged: {key!r} is {'wrong' if key in raw else 'missing'}")
    return raw


def _check_words(raw: dict[str, Any]) -> None:
    """Raises ValueError for names that are none and for sizes that no machine has."""
    if not re.fullmatch(r"[A-Za-z_]\w*", raw["name"], re.ASCII) or raw["library"] != f"lib{raw['name']}.so":
        raise ValueError(f"name {raw['name']!r}, library {raw['library']!r}")
    if not raw["library_sha256"]:
        raise ValueError("library_sha256 is empty")
    if not 0 <= raw["arena_bytes"] < _MOST_BYTES:
        raise ValueError(f"arena_bytes {raw['arena_bytes']}")
    for name, digest in raw["files"].items():
        if not isinstance(digest, str) or not digest or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", name):
            raise ValueError(f"file {name!r}")


def _states(pairs: list[Any], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[tuple[str, str], ...]:
    """(input, output) pairs of equal types."""
    ends = [{t.name: (t.dtype, t.shape) for t in tensors} for tensors in (inputs, outputs)]
    for source, target in pairs:
        if ends[0][source] != ends[1][target]:
            raise ValueError(f"state {source!r} has another type than {target!r}")
    return tuple((source, target) for source, target in pairs)


def _tensor(entry: dict[str, Any]) -> Tensor:
    name, dtype, shape, scale, zero_point = (entry[k] for k in ("name", "dtype", "shape", "scale", "zero_point"))
    tensor = Tensor(name, dtype, tuple(shape), scale, zero_point, entry.get("axis", 0), entry.get("declared", ""))
    whole = [zero_point, tensor.axis, *shape]
    if tensor.declared not in ("", *DECLARED):
        raise ValueError(f"type {tensor.declared!r} of {name!r}")
    if not isinstance(name, str) or dtype not in DTYPES or not all(type(n) is int for n in whole):
        raise ValueError(f"tensor {entry}")
    if not all(n > 0 for n in shape) or math.prod(shape) > _MOST_BYTES:
        raise ValueError(f"shape {shape} of {name!r}")
    scales = scale if isinstance(scale, list) else [] if scale is None else [scale]
    if not all(type(s) in (int, float) and 0 < s <= _LARGEST_SCALE for s in scales):
        raise ValueError(f"scale {scale} of {name!r}")
    if isinstance(scale, list) and not (0 <= tensor.axis < len(shape) and len(scale) == shape[tensor.axis]):
        raise ValueError(f"{len(scale)} scales along axis {tensor.axis} of {name!r}")
    limits = np.iinfo("uint8" if dtype == "bool" else dtype)
    if not limits.min <= zero_point <= limits.max:
        raise ValueError(f"zero point {zero_point} of {name!r}, {dtype}")
    return tensor
