"""An artifact's library as it lies in memory."""

import io
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Symbol, SymbolTableSection
from qcompile.runtime.errors import ArtifactError

# numbers of relocations: (RELATIVE, those of symbols: ABS64 or 64, GLOB_DAT, JUMP_SLOT)
_RELOCATIONS = {"aarch64": ({1027}, {257, 1025, 1026}), "x86_64": ({8}, {1, 6, 7})}
_ARCHS = {"AArch64": "aarch64", "x64": "x86_64"}  # by pyelftools' names
_LARGEST_IMAGE = 1 << 34


@dataclass(frozen=True)
class ElfImage:
    """The loaded segments from address 0, what to relocate, functions and named data.

    ``relocations``: (offset, value) means that the 64-bit word at ``offset`` is to hold load address + value.
    """

    data: bytearray
    relocations: list[tuple[int, int]]
    exports: dict[str, int]
    functions: list[tuple[int, str]]
    objects: dict[str, int]

    def function_at(self, offset: int) -> str:
        """The name of the function that holds ``offset``."""
        return next((name for start, name in reversed(self.functions) if start <= offset), "the code")


def parse_elf(library: bytes, path: Path, arch: str = "aarch64") -> ElfImage:
    """The image of a shared library for ``arch`` (``path`` is for messages); ArtifactError where it is for another
    machine or damaged."""
    try:
        with io.BytesIO(library) as file:
            elf = ELFFile(file)
            found = _ARCHS.get(elf.get_machine_arch(), elf.get_machine_arch())
            if found != arch:
                raise ArtifactError(f"{path} is for {found}, not for {arch}")
            loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
            size = max(segment["p_vaddr"] + segment["p_memsz"] for segment in loads)
            if size > _LARGEST_IMAGE:
                raise ValueError(f"it takes {size} bytes of memory")
            image = bytearray(size)
            for segment in loads:
                start = segment["p_vaddr"]
                image[start:start + segment["p_filesz"]] = segment.data()
            exports = {symbol.name: symbol["st_value"] for symbol in symbols(elf, ".dynsym") if symbol.name}
            objects = {s.name: s["st_value"] for s in symbols(elf, ".symtab") if s["st_info"]["type"] == "STT_OBJECT"}
            return ElfImage(image, _relocations(elf, arch), exports, functions(elf), objects)
    except ArtifactError:
        raise
    except Exception as error:  # pyelftools raises what its parts raise on damaged files
        raise ArtifactError(f"{path} is no readable ELF library: {error}") from error


def symbols(elf: ELFFile, table: str) -> list[Symbol]:
    """The entries of the symbol table called ``table``; none where there is no such table."""
    section = elf.get_section_by_name(table)
    return list(section.iter_symbols()) if isinstance(section, SymbolTableSection) else []


def functions(elf: ELFFile) -> list[tuple[int, str]]:
    """(address, name) of every function, in order of address."""
    return sorted((symbol["st_value"], symbol.name)
                  for symbol in symbols(elf, ".symtab") or symbols(elf, ".dynsym")
                  if symbol["st_info"]["type"] == "STT_FUNC")


def _relocations(elf: ELFFile, arch: str) -> list[tuple[int, int]]:
    found = []
    relative, symbolic = _RELOCATIONS[arch]
    dynamic = symbols(elf, ".dynsym")
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection):
            continue
        for entry in section.iter_relocations():
            value = entry["r_addend"]
            if entry["r_info_type"] in symbolic:
                value += dynamic[entry["r_info_sym"]]["st_value"]
            elif entry["r_info_type"] not in relative:
                raise ArtifactError(f"unknown relocation {entry['r_info_type']} in the library")
            found.append((entry["r_offset"], value))
    return found
