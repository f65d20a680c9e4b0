"""Shows that a change changes nothing: a fixed set of networks, compiled by two checkouts and compared byte for byte.

    make compare                      the working tree against main
    make compare COMPARE="--base HEAD~3 --nets attention recurrent --targets arm-a53"

Every artifact's files are compared: library, program.npz, header (without the hash of the manifest that they hold), and
the manifest, whose entries that differ are named. The networks are small and cover convolutions, products, attention,
norms, recurrent cells, chains of elementwise ops, 4-bit weights, movement and integers that the graph declares. Exit
code 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("passes", "kernels", "targets", "runtime")
TARGETS = ("x86-avx512vnni", "x86-avx2", "arm-a76", "arm-a72", "arm-a53")
BITS = {"four_bits": 4}  # other networks: 8
REFUSED = "refused.txt"
DERIVED = ("content_hash", "library_sha256", "manifest_sha256")  # of other entries


@dataclass(frozen=True)
class Difference:
    """artifact: NET-TARGET; file: of its folder; detail: what of it differs."""

    artifact: str
    file: str
    detail: str = ""


def linked_package(checkout: Path, folder: Path) -> Path:
    """A folder in which `import qcompile` means the code of `checkout`, whose rooms lie elsewhere than installed."""
    package = folder / "qcompile"
    package.mkdir()
    entries = (*(checkout / "compiler").iterdir(), *(checkout / room for room in ROOMS))
    for entry in entries:
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    return folder


def extract(revision: str, folder: Path) -> Path:
    """The files of a revision of this repository, in `folder`."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    return folder


def write_nets(folder: Path, names: list[str]) -> None:
    """The networks as NAME.onnx, written once, so that both checkouts read the same bytes."""
    import onnx
    from compared_nets import NETS

    for name in names or NETS:
        onnx.save(NETS[name](), str(folder / f"{name}.onnx"))


def compile_nets(nets: Path, output: Path, targets: list[str]) -> None:
    """What runs in a process of each checkout: every network of the folder for every target, into `output`."""
    import qcompile

    for net in sorted(nets.glob("*.onnx")):
        for target in targets:
            try:
                qcompile.compile(net, target, bits=BITS.get(net.stem, 8), output=output)
            except qcompile.CompileError as error:
                folder = output / f"{net.stem}-{target}"
                folder.mkdir(parents=True)
                (folder / REFUSED).write_text(f"{error}\n")


def compile_with(checkout: Path, nets: Path, output: Path, targets: list[str]) -> None:
    """`compile_nets` by the code of `checkout`."""
    with tempfile.TemporaryDirectory() as folder:
        package = linked_package(checkout, Path(folder))
        script = (
            f"import sys; sys.path[:0] = [{str(package)!r}, {str(Path(__file__).parent)!r}]\n"
            "from pathlib import Path\nimport qcompile, compare_libraries\n"
            f"assert Path(qcompile.__file__).is_relative_to({str(package)!r}), qcompile.__file__\n"
            f"compare_libraries.compile_nets(Path({str(nets)!r}), Path({str(output)!r}), {targets!r})\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


def compare_folders(before: Path, after: Path) -> list[Difference]:
    """What differs between two folders of artifacts."""
    found = []
    for artifact in sorted({p.name for folder in (before, after) for p in folder.iterdir()}):
        files = [_files(folder / artifact) for folder in (before, after)]
        for name in sorted({*files[0], *files[1]}):
            old, new = (f.get(name) for f in files)
            if old != new and not (name.endswith(".so") and _linked_alike(*files)):
                found.append(Difference(artifact, name, _detail(name, old, new)))
    return found


def _linked_alike(before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether two libraries differ by the hash of the manifest alone, by which the linker orders strings: made of the
    same objects, weights and shim, whose facts the header has."""
    old, new = (json.loads(files.get("manifest.json", b"{}")) for files in (before, after))
    parts = ("objects_sha256", "weights_sha256", "library_bytes", "code_bytes", "header")
    same = all(old.get(part) == new.get(part) is not None for part in parts)
    return same and old["content_hash"] != new["content_hash"] and before[old["header"]] == after[new["header"]]


def _files(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files.get("manifest.json", b"{}"))
    digest = str(manifest.get("content_hash", "")).encode()
    if digest:  # library and header hold a hash of the manifest, which is compared by itself
        files |= {n: data.replace(digest, b"0" * len(digest)) for n, data in files.items() if n != "manifest.json"}
    return files


def _detail(name: str, old: bytes | None, new: bytes | None) -> str:
    if old is None or new is None:
        return "only after" if old is None else "only before"
    if name != "manifest.json":
        return f"{len(old)} bytes, now {len(new)}" if len(old) != len(new) else f"{len(old)} bytes, others"
    before, after = json.loads(old), json.loads(new)
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k) and k not in DERIVED]
    return f"entries {', '.join(changed)}" if changed else "entries that follow from others"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="main", help="revision, or folder of a checkout, to compare with")
    parser.add_argument("--nets", nargs="*", default=[], help="some of the networks")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        nets, before, after, files = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"compare-{use}-")))
            for use in ("nets", "before", "after", "files")
        )
        write_nets(nets, arguments.nets)
        base = Path(arguments.base).resolve() if Path(arguments.base).is_dir() else extract(arguments.base, files)
        with ThreadPoolExecutor(2) as pool:
            sides = ((base, before), (ROOT, after))
            list(pool.map(lambda side: compile_with(side[0], nets, side[1], arguments.targets), sides))
        found = compare_folders(before, after)
        count = len(list(after.iterdir()))
        refused = sorted(f"{p.parent.name}: {p.read_text().strip()}" for p in after.rglob(REFUSED))
    for difference in found:
        print(f"{difference.artifact}/{difference.file}: {difference.detail}")
    for text in refused:
        print(f"refused: {text}")
    different = len({d.artifact for d in found})
    print(f"{count} artifacts of {arguments.base} and of the working tree: {different} differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
