"""An artifact's library as it lies in memory, for the emulators."""

from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Symbol, SymbolTableSection
from qcompile.runtime.errors import ArtifactError

_RELATIVE, _SYMBOLIC = {1027}, {257, 1025, 1026}  # R_AARCH64_RELATIVE; ABS64, GLOB_DAT, JUMP_SLOT


@dataclass(frozen=True)
class ElfImage:
    """The loaded segments from address 0, what to relocate, and the functions.

    ``relocations``: (offset, value) means that the 64-bit word at ``offset`` is to hold load address + value.
    """

    data: bytes
    relocations: list[tuple[int, int]]
    exports: dict[str, int]
    functions: list[tuple[int, str]]

    def function_at(self, offset: int) -> str:
        """The name of the function that holds ``offset``."""
        return next((name for start, name in reversed(self.functions) if start <= offset), "the code")


def read_elf(path: Path) -> ElfImage:
    """Reads an aarch64 shared library; ArtifactError where it is damaged."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf.get_machine_arch() != "AArch64":
                raise ArtifactError(f"{path} is for {elf.get_machine_arch()}, and only AArch64 is emulated")
            loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
            image = bytearray(max(segment["p_vaddr"] + segment["p_memsz"] for segment in loads))
            for segment in loads:
                start = segment["p_vaddr"]
                image[start:start + segment["p_filesz"]] = segment.data()
            exports = {symbol.name: symbol["st_value"] for symbol in symbols(elf, ".dynsym") if symbol.name}
            return ElfImage(bytes(image), _relocations(elf), exports, functions(elf))
    except (ELFError, OSError, ValueError) as error:
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


def _relocations(elf: ELFFile) -> list[tuple[int, int]]:
    found = []
    dynamic = symbols(elf, ".dynsym")
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection):
            continue
        for entry in section.iter_relocations():
            value = entry["r_addend"]
            if entry["r_info_type"] in _SYMBOLIC:
                value += dynamic[entry["r_info_sym"]]["st_value"]
            elif entry["r_info_type"] not in _RELATIVE:
                raise ArtifactError(f"unknown relocation {entry['r_info_type']} in the library")
            found.append((entry["r_offset"], value))
    return found
