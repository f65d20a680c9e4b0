"""What the compiler knows about an architecture, whatever the CPU: one object each in `x86_64` and `aarch64`.

Instructions are told apart by their mnemonics, first match wins. INTEGER: works on integers, addresses, flags. MOVE:
carries a floating-point name (`vmovaps`, `fmov d0, d1`) but copies, shuffles, broadcasts or combines bits without
looking at them as numbers; LLVM picks these for integer vectors since they are shorter or run on a free port. FLOAT:
does floating-point arithmetic, comparison, rounding or conversion, or sets its modes. The lists are complete because
the disassembler's own list is finite: what it cannot decode is refused, never skipped (`compiler/artifact/proof.py`),
and a test walks over every mnemonic that it knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The class of an instruction."""

    INTEGER = "integer"
    MOVE = "data move"
    FLOAT = "floating-point"


def words(*patterns: str) -> re.Pattern[str]:
    """One pattern of several."""
    return re.compile("|".join(patterns))


@dataclass(frozen=True)
class Architecture:
    """elf: ELF's name of the machine. disassembler: capstone's names of architecture and mode. instructions: (class,
    pattern of whole mnemonics), whose last matches all. unknown_length: bytes of an instruction at the start of code
    that capstone does not know and that is INTEGER, else 0. fetched_bytes: a cycle, from beyond the L2 cache."""

    name: str
    elf: str
    disassembler: tuple[str, str]
    instructions: tuple[tuple[Kind, re.Pattern[str]], ...]
    fetched_bytes: float
    unknown_length: Callable[[bytes], int] = lambda code: 0

    def classify(self, mnemonic: str) -> Kind:
        """The class of ``mnemonic`` (capstone's spelling, prefixes allowed)."""
        word = mnemonic.split()[-1].split(".")[0]
        return next(kind for kind, pattern in self.instructions if pattern.fullmatch(word))
