"""Proofs about the final library: no floating-point instruction, nothing undefined, nothing exported but the API."""

import bisect
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import capstone
from elftools.elf.constants import SH_FLAGS
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from qcompile.artifact.elf import functions, symbols
from qcompile.artifact.linker import SEGMENT_ALIGNMENT
from qcompile.targets import ARCHITECTURES, CompileError
from qcompile.targets.architecture import Kind

_DF_TEXTREL = 0x4
_PF_X, _PF_W = 1, 2


@dataclass(frozen=True)
class Proof:
    """What was counted; the zeros are proved, since anything else raises."""

    instructions: int
    data_moves: int  # instructions named after floats that only carry bits; part of `instructions`
    code_bytes: int
    float_instructions: int = 0
    undefined_symbols: int = 0


def prove(library: bytes, arch: str, exports: list[str]) -> Proof:
    """Checks the ELF image ``library`` for 'x86_64' or 'aarch64'; ``exports`` are the symbols it is to offer.

    Raises CompileError naming the instruction, its address and its function, or the symbol or segment at fault.
    """
    architecture, elf = ARCHITECTURES[arch], ELFFile(io.BytesIO(library))
    _prove_self_contained(elf, exports)
    names = _Functions(elf)
    kinds: Counter[Kind] = Counter()
    code_bytes = 0
    seen: dict[str, Kind] = {}
    for section in elf.iter_sections():
        if not section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR:
            continue
        code_bytes += section["sh_size"]
        for address, mnemonic, operands in disassemble(section.data(), section["sh_addr"], arch, names):
            kind = seen.get(mnemonic) or seen.setdefault(mnemonic, architecture.classify(mnemonic))
            kinds[kind] += 1
            if kind is Kind.FLOAT:
                raise CompileError(
                    f"floating-point instruction '{mnemonic} {operands}' at {address:#x} in "
                    f"{names.at(address)}: the artifact would not be integer-only"
                )
    return Proof(kinds.total(), kinds[Kind.MOVE], code_bytes)


def disassemble(
    code: bytes, address: int, arch: str, names: "_Functions | None" = None
) -> Iterator[tuple[int, str, str]]:
    """(address, mnemonic, operands) of every instruction in ``code``; CompileError at bytes that are none."""
    architecture = ARCHITECTURES[arch]
    engine = capstone.Cs(*(getattr(capstone, name) for name in architecture.disassembler))
    offset = 0
    while offset < len(code):
        for at, size, mnemonic, operands in engine.disasm_lite(code[offset:], address + offset):
            yield at, mnemonic, operands
            offset = at + size - address
        if offset >= len(code):
            return
        size = architecture.unknown_length(code[offset:])
        if not size:
            where = names.at(address + offset) if names else "the code"
            raise CompileError(
                f"bytes {code[offset : offset + 8].hex(' ')} at {address + offset:#x} in {where} are no "
                "instruction that the disassembler knows, so nothing can be proved about them"
            )
        yield address + offset, "unknown", ""
        offset += size


class _Functions:
    """Names of the functions by address."""

    def __init__(self, elf: ELFFile) -> None:
        self._symbols = functions(elf)

    def at(self, address: int) -> str:
        """The function that holds ``address``."""
        index = bisect.bisect_right(self._symbols, (address, "\U0010ffff")) - 1
        return self._symbols[index][1] if index >= 0 else "the code"


def _prove_self_contained(elf: ELFFile, exports: list[str]) -> None:
    dynamic = [symbol for symbol in symbols(elf, ".dynsym") if symbol.name]
    undefined = sorted(symbol.name for symbol in dynamic if symbol["st_shndx"] == "SHN_UNDEF")
    exported = sorted(symbol.name for symbol in dynamic if symbol["st_shndx"] != "SHN_UNDEF")
    tags = [
        tag for section in elf.iter_sections() if isinstance(section, DynamicSection) for tag in section.iter_tags()
    ]
    needed = sorted(str(getattr(tag, "needed", "?")) for tag in tags if tag.entry.d_tag == "DT_NEEDED")
    text_relocations = any(
        tag.entry.d_tag == "DT_TEXTREL" or (tag.entry.d_tag == "DT_FLAGS" and tag.entry.d_val & _DF_TEXTREL)
        for tag in tags
    )
    segments = list(elf.iter_segments())
    loads = [segment for segment in segments if segment["p_type"] == "PT_LOAD"]
    faults = (
        (undefined, f"undefined symbols: {', '.join(undefined)}"),
        (needed, f"needs other libraries: {', '.join(needed)}"),
        (exported != sorted(exports), f"exports {', '.join(exported)} instead of {', '.join(sorted(exports))}"),
        (text_relocations, "has relocations in its code"),
        (any(segment["p_type"] == "PT_TLS" for segment in segments), "has thread-local storage"),
        (any(segment["p_align"] < SEGMENT_ALIGNMENT for segment in loads), "has segments not aligned to 16 KiB"),
        (any(segment["p_flags"] & _PF_X and segment["p_flags"] & _PF_W for segment in loads), "has writable code"),
    )
    for fault, message in faults:
        if fault:
            raise CompileError(f"the linked library {message}; an artifact stands on its own")
