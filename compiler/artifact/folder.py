"""The artifact folder, written whole or not at all."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qcompile.artifact.proof import Proof
from qcompile.artifact.replace import REPORT, write_folder
from qcompile.artifact.spec import ArtifactSpec, c_prefix, folder_name
from qcompile.backends import backend_for
from qcompile.runtime.manifest import MANIFEST, MANIFEST_ABI, SEAL, content_hash, seal


@dataclass(frozen=True)
class Artifact:
    """A written artifact: its folder, the contents of its manifest, and what was proved."""

    path: Path
    manifest: dict[str, object]
    proof: Proof


def build_artifact(
    spec: ArtifactSpec, output: str | Path, page: Callable[[Path, Mapping[str, object]], str] | None = None
) -> Artifact:
    """Links and proves ``spec`` and writes ``output/NAME-TARGET``; in C, NAME becomes an identifier.

    An artifact already there is replaced at the end, in one step; until then nothing is visible under its name.
    page(folder, manifest) is the text of its report. Raises CompileError where linking or a proof fails or the folder
    cannot be written.
    """
    label = folder_name(spec.name)
    spec = replace(spec, name=c_prefix(spec.name))
    spec.check()
    backend = backend_for(spec.target)
    facts = _facts(spec, backend.facts(spec))
    digest = content_hash(facts)
    library, header, proof = backend.link(spec, digest)
    manifest = {**facts, "content_hash": digest, **_after_linking(library, proof)}
    manifest[SEAL] = seal(manifest)
    files = {
        **spec.files,
        f"lib{spec.name}.so": library,
        f"{spec.name}.h": header.encode(),
        MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode(),
    }
    path = Path(output) / f"{label}-{spec.target.name}"
    if page:
        files[REPORT] = page(path, manifest).encode()
    write_folder(path, files)
    return Artifact(path, manifest, proof)


def _facts(spec: ArtifactSpec, section: dict[str, object]) -> dict[str, object]:
    """What the manifest says that is known before linking, with the `section` of its kind: the library holds its
    hash."""
    kind = spec.target.kind
    facts = {
        "abi_version": MANIFEST_ABI,
        "kind": kind,
        "name": spec.name,
        "target": spec.target.name,
        "machine": spec.target.machine,
        kind: section,
        "library": f"lib{spec.name}.so",
        "header": f"{spec.name}.h",
        "arena_bytes": spec.arena_bytes,
        "inputs": [tensor.to_manifest() for tensor in spec.inputs],
        "outputs": [tensor.to_manifest() for tensor in spec.outputs],
        "states": [list(pair) for pair in spec.states],
        "macs": spec.macs,
        "tool_version": tool_version(),
        "weights_bytes": len(spec.weights),
        "files": {name: _sha256(data) for name, data in spec.files.items()},
        "weights_sha256": _sha256(spec.weights),
        "objects_sha256": [_sha256(data) for data in spec.objects],
    }
    if facts.keys() & spec.extra.keys():
        raise ValueError(f"{', '.join(facts.keys() & spec.extra.keys())}: the manifest has its own")
    return json.loads(json.dumps({**facts, **spec.extra}))  # as it will be read


def _after_linking(library: bytes, proof: Proof) -> dict[str, object]:
    counts = asdict(proof)
    return {
        "library_sha256": _sha256(library),
        "library_bytes": len(library),
        "code_bytes": counts.pop("code_bytes"),
        "proof": counts,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tool_version() -> str:
    """The version of qcompile."""
    try:
        return importlib.metadata.version("qcompile")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
