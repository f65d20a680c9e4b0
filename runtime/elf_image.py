"""An artifact's library as it lies in memory, for the emulators."""

from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
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
            dynsym = elf.get_section_by_name(".dynsym")
            table = elf.get_section_by_name(".symtab") or dynsym
            return ElfImage(bytes(image), _relocations(elf, dynsym),
                            {symbol.name: symbol["st_value"] for symbol in dynsym.iter_symbols() if symbol.name},
                            sorted((symbol["st_value"], symbol.name) for symbol in table.iter_symbols()
                                   if symbol["st_info"]["type"] == "STT_FUNC"))
    except (ELFError, OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no readable ELF library: {error}") from error


def _relocations(elf: ELFFile, dynsym: object) -> list[tuple[int, int]]:
    found = []
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_RELA":
            continue
        for entry in section.iter_relocations():
            value = entry["r_addend"]
            if entry["r_info_type"] in _SYMBOLIC:
                value += dynsym.get_symbol(entry["r_info_sym"])["st_value"]  # type: ignore[attr-defined]
            elif entry["r_info_type"] not in _RELATIVE:
                raise ArtifactError(f"unknown relocation {entry['r_info_type']} in the library")
            found.append((entry["r_offset"], value))
    return found
