"""The artifact folder, written whole or not at all."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qcompile.artifact.linker import exported_symbols, link_library
from qcompile.artifact.proof import Proof, prove
from qcompile.artifact.spec import ArtifactSpec, c_prefix
from qcompile.runtime.manifest import ABI_VERSION, MANIFEST
from qcompile.targets import CompileError


@dataclass(frozen=True)
class Artifact:
    """A written artifact: its folder, the contents of its manifest, and what was proved."""

    path: Path
    manifest: dict[str, object]
    proof: Proof


def build_artifact(spec: ArtifactSpec, output: str | Path) -> Artifact:
    """Links and proves ``spec`` and writes ``output/NAME-TARGET``; in C, NAME becomes an identifier.

    An artifact already there is replaced at the end, in one step; until then nothing is visible under its name.
    Raises CompileError where linking or a proof fails or the folder cannot be written.
    """
    label = spec.name if re.fullmatch(r"\w[\w.-]*", spec.name) else c_prefix(spec.name)
    spec = replace(spec, name=c_prefix(spec.name))
    spec.check()
    library, header = link_library(spec)
    proof = prove(library, spec.target.arch, exported_symbols(spec.name))
    manifest = _manifest(spec, library, proof)
    files = {**spec.files, f"lib{spec.name}.so": library, f"{spec.name}.h": header.encode(),
             MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}
    path = Path(output) / f"{label}-{spec.target.name}"
    write_folder(path, files)
    return Artifact(path, manifest, proof)


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Writes ``files`` (relative name -> bytes) as the folder ``path``, replacing an artifact that is there.

    Raises CompileError, leaving what was there, where it cannot be written or holds something else.
    """
    tag = secrets.token_hex(6)
    fresh, old = (path.with_name(f".{path.name}.{tag}.{state}") for state in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(data)
        with _one_writer(path.parent):
            _swap_in(fresh, path, old)
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _swap_in(fresh: Path, path: Path, old: Path) -> None:
    """Renames ``fresh`` to ``path``, and what was there to ``old``, or leaves it in place."""
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise CompileError(f"{path} exists and is no artifact; move it away or choose another output folder")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Holds a lock on ``folder``, so that compilers that run side by side replace artifacts one after the other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _manifest(spec: ArtifactSpec, library: bytes, proof: Proof) -> dict[str, object]:
    counts = asdict(proof)
    manifest = {
        "name": spec.name, "target": spec.target.name, "cpu": spec.target.cpu, "arch": spec.target.arch,
        "cpu_flags": list(spec.target.cpuinfo_flags), "emulation": spec.target.emulation,
        "library": f"lib{spec.name}.so", "header": f"{spec.name}.h", "abi_version": ABI_VERSION,
        "arena_bytes": spec.arena_bytes,
        "inputs": [tensor.to_manifest() for tensor in spec.inputs],
        "outputs": [tensor.to_manifest() for tensor in spec.outputs],
        "states": [list(pair) for pair in spec.states],
        "macs": spec.macs, "tool_version": tool_version(), "library_sha256": hashlib.sha256(library).hexdigest(),
        "library_bytes": len(library), "weights_bytes": len(spec.weights), "code_bytes": counts.pop("code_bytes"),
        "proof": counts,
    }
    if manifest.keys() & spec.extra.keys():
        raise ValueError(f"{', '.join(manifest.keys() & spec.extra.keys())}: the manifest has its own")
    return {**manifest, **spec.extra}


def tool_version() -> str:
    """The version of qcompile."""
    try:
        return importlib.metadata.version("qcompile")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
