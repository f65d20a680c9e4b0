"""Messages about the integer program name the model's nodes: integer nodes have names of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qcompile.targets.errors import CompileError, Defect

# names of integer nodes: an op and a number, and what passes add
WORD = re.compile(r"(?<![\w'/.])[a-z]\w*_\d+(?:_+\w*)?")


def with_origins(message: str, origins: Mapping[str, str]) -> str:
    """`message` with what each integer node was made from, as the model calls it, in place of the node's name."""

    def named(match: re.Match[str]) -> str:
        word = match.group()
        known = word if word in origins else re.sub(r"(?<=\d)_.*", "", word)
        return origins.get(known) or word

    return WORD.sub(named, message)


@contextmanager
def naming(origins: Mapping[str, str]) -> Iterator[None]:
    """CompileErrors of what is done in here speak of the model's nodes."""
    try:
        yield
    except Defect:
        raise
    except CompileError as e:
        raise CompileError(with_origins(str(e), origins)) from e
