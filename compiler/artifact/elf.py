"""Symbols of ELF files that pyelftools has opened."""

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol, SymbolTableSection


def symbols(elf: ELFFile, table: str) -> list[Symbol]:
    """The entries of the symbol table called ``table``; none where there is no such table."""
    section = elf.get_section_by_name(table)
    return list(section.iter_symbols()) if isinstance(section, SymbolTableSection) else []


def functions(elf: ELFFile) -> list[tuple[int, str]]:
    """(address, name) of every function, in order of address."""
    return sorted(
        (symbol["st_value"], symbol.name)
        for symbol in symbols(elf, ".symtab") or symbols(elf, ".dynsym")
        if symbol["st_info"]["type"] == "STT_FUNC"
    )
