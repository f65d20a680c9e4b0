"""An artifact's library as it lies in memory.

The file is read by `struct` (System V ABI, "Object Files"; 64 bits, little-endian), so that a device that runs
artifacts needs no library for it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qcompile.runtime.errors import ArtifactError

_HEADER = struct.Struct("<4s BB10x HHIQ QQI HHHHHH")
_SEGMENT = struct.Struct("<II QQQ QQQ")
_SECTION = struct.Struct("<II QQQQ II QQ")
_SYMBOL = struct.Struct("<I BBH QQ")
_RELOCATION = struct.Struct("<Q II q")
_LOAD = 1
_SYMBOLS, _RELOCATIONS, _DYNAMIC_SYMBOLS = 2, 4, 11
_OTHER_RELOCATIONS = (9, 19)  # without addends, and packed: no artifact has them
_OBJECT, _FUNCTION = 1, 2
_ARCHS = {62: "x86_64", 183: "aarch64"}
# types of relocations: (RELATIVE, those of symbols: ABS64 or 64, GLOB_DAT, JUMP_SLOT)
_RELOCATION_TYPES = {"aarch64": ({1027}, {257, 1025, 1026}), "x86_64": ({8}, {1, 6, 7})}
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
        elf = _Elf(library)
        if elf.arch != arch:
            raise ArtifactError(f"{path} is for {elf.arch}, not for {arch}")
        dynamic, local = elf.symbols(_DYNAMIC_SYMBOLS), elf.symbols(_SYMBOLS)
        exports = {symbol.name: symbol.value for symbol in dynamic if symbol.name}
        functions = sorted((s.value, s.name) for s in local or dynamic if s.kind == _FUNCTION)
        objects = {s.name: s.value for s in local if s.kind == _OBJECT}
        return ElfImage(elf.image(), elf.relocations(dynamic), exports, functions, objects)
    except (ValueError, IndexError, struct.error) as error:
        raise ArtifactError(f"{path} is no readable ELF library: {error}") from error


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


class _Symbol(NamedTuple):
    name: str
    kind: int
    value: int


class _Elf:
    """The tables of an ELF file; ValueError, IndexError or struct.error where they lie outside of it."""

    def __init__(self, library: bytes) -> None:
        self.library = library
        magic, bits, order, _, machine, _, _, segments, sections, _, _, *counts, _ = _HEADER.unpack_from(library)
        if (magic, bits, order) != (b"\x7fELF", 2, 1):
            raise ValueError("it does not begin as one of 64 bits, little-endian")
        if counts[::2] != [_SEGMENT.size, _SECTION.size]:
            raise ValueError("its tables have entries of another size")
        self.arch = _ARCHS.get(machine, f"machine {machine}")
        self.segments = list(self._table(_SEGMENT, segments, counts[1]))
        self.sections = [_Section(*entry[:7]) for entry in self._table(_SECTION, sections, counts[3])]

    def image(self) -> bytearray:
        """The loaded segments where they lie from address 0."""
        loads = [
            (offset, address, file_size, size)
            for kind, _, offset, address, _, file_size, size, _ in self.segments
            if kind == _LOAD
        ]
        total = max((address + size for _, address, _, size in loads), default=0)
        if not 0 < total <= _LARGEST_IMAGE:
            raise ValueError(f"it takes {total} bytes of memory")
        image = bytearray(total)
        for offset, address, file_size, size in loads:
            if file_size > size or offset + file_size > len(self.library):
                raise ValueError(f"its segment at {address:#x} ends outside of it")
            image[address : address + file_size] = self.library[offset : offset + file_size]
        return image

    def symbols(self, kind: int) -> list[_Symbol]:
        """The entries of the symbol table of this type; none where there is no such table."""
        found = []
        for table in self._of_type(kind):
            names = self.sections[table.link]
            texts = self.library[names.offset : names.offset + names.size]
            for start, info, _, _, value, _ in self._entries(table, _SYMBOL):
                name = texts[start : texts.index(b"\0", start)].decode()
                found.append(_Symbol(name, info & 15, value))
        return found

    def relocations(self, symbols: list[_Symbol]) -> list[tuple[int, int]]:
        """(offset, value) of each; ``symbols`` are the dynamic ones, in the table's order."""
        relative, symbolic = _RELOCATION_TYPES[self.arch]
        if any(self._of_type(kind) for kind in _OTHER_RELOCATIONS):
            raise ValueError("its relocations have no addends")
        found = []
        for table in self._of_type(_RELOCATIONS):
            for offset, kind, symbol, addend in self._entries(table, _RELOCATION):
                if kind not in relative | symbolic:
                    raise ValueError(f"it has relocations of the unknown type {kind}")
                found.append((offset, addend + symbols[symbol].value if kind in symbolic else addend))
        return found

    def _of_type(self, kind: int) -> list[_Section]:
        return [section for section in self.sections if section.type == kind]

    def _entries(self, section: _Section, form: struct.Struct) -> Iterator[tuple]:
        return self._table(form, section.offset, section.size // form.size)

    def _table(self, form: struct.Struct, offset: int, count: int) -> Iterator[tuple]:
        if offset + count * form.size > len(self.library):
            raise ValueError("one of its tables ends outside of it")
        return form.iter_unpack(self.library[offset : offset + count * form.size])
