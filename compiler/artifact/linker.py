"""Objects, weights and shim become one freestanding shared library."""

import io
import re
import tempfile
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from qcompile.artifact.csource import render
from qcompile.artifact.elf import symbols
from qcompile.artifact.spec import ArtifactSpec
from qcompile.runtime.toolchain import ToolError, compile_c, link
from qcompile.targets import ARCHITECTURES, CompileError

PARALLEL_SLOT = "__TVMBackendParallelLaunch"
SEGMENT_ALIGNMENT = 16384  # Android 15 has pages of 16 KiB

_LINK_FLAGS = (
    "-shared",
    "-nostdlib",
    "--gc-sections",
    "--no-undefined",
    "-Bsymbolic",
    "--build-id=none",
    "--hash-style=both",
    "--strip-debug",
    "-z",
    f"max-page-size={SEGMENT_ALIGNMENT}",
    "-z",
    "text",
    "-z",
    "noexecstack",
    "-z",
    "relro",
    "-z",
    "now",
    "--version-script=exports.map",
)


def exported_symbols(name: str) -> list[str]:
    """The four functions of the artifact ``name``."""
    return [f"{name}_{function}" for function in ("arena_bytes", "info", "init", "run")]


def link_library(spec: ArtifactSpec, content_hash: str = "") -> tuple[bytes, str]:
    """(library, header) of ``spec``: the same bytes for the same spec, whatever the folder, time or user.

    Raises CompileError where an object is no ELF file for the target, a symbol is missing, or the tools fail.
    """
    defined = {symbol for i, data in enumerate(spec.objects) for symbol in _defined_symbols(data, i, spec)}
    if "qc_main" not in defined:
        raise CompileError(f"{spec.name}: the code does not define qc_main")
    header, shim = render(spec, content_hash, parallel=PARALLEL_SLOT in defined)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as temporary:
        folder = Path(temporary)
        objects = [f"{i}.o" for i in range(len(spec.objects))]
        exports = "".join(f" {symbol};" for symbol in exported_symbols(spec.name))
        for file, data in (
            *zip(objects, spec.objects),
            ("weights.bin", spec.weights),
            ("shim.c", shim.encode()),
            (f"{spec.name}.h", header.encode()),
            ("exports.map", f"{{ global:{exports} local: *; }};\n".encode()),
        ):
            (folder / file).write_bytes(data)
        try:
            compile_c(folder, "shim.c", "shim.o", spec.target.triple, spec.target.clang)
            link(folder, *_LINK_FLAGS, "-soname", f"lib{spec.name}.so", "-o", "library.so", "shim.o", *objects)
        except ToolError as error:
            raise CompileError(f"{spec.name}: {_first_missing_symbol(str(error)) or error}") from error
        return (folder / "library.so").read_bytes(), header


def _defined_symbols(data: bytes, index: int, spec: ArtifactSpec) -> set[str]:
    try:
        elf = ELFFile(io.BytesIO(data))
        machine = next((a.name for a in ARCHITECTURES.values() if a.elf == elf["e_machine"]), elf["e_machine"])
        found = symbols(elf, ".symtab")
    except (ELFError, ValueError) as error:
        raise CompileError(f"{spec.name}: object file {index} is not an ELF file ({error})") from error
    if machine != spec.target.arch:
        raise CompileError(f"{spec.name}: object file {index} is for {machine}, the target for {spec.target.arch}")
    return {symbol.name for symbol in found if symbol["st_shndx"] != "SHN_UNDEF"}


def _first_missing_symbol(message: str) -> str | None:
    missing = sorted(set(re.findall(r"undefined (?:hidden )?symbol: (\S+)", message)))
    return f"undefined symbols: {', '.join(missing)}; an artifact calls nothing outside itself" if missing else None
