"""The graph's outputs in the integer types that it declares."""

from __future__ import annotations

from qcompile.kernels.arithmetic import RANGES
from qcompile.passes.integerize.reader import Reader

STORED = {"int64": "int32", "uint32": "int32", "uint64": "int32", "bool": "int8"}  # what an artifact has instead


def of_declared_type(r: Reader, name: str, declared: str, codes: bool) -> tuple[str, int]:
    """(the output tensor in its declared type, by how much its numbers moved).

    Codes without sign are kept with one inside, and move back with their zero point; other integers keep their values.
    Floats stay codes of whatever type.
    """
    wanted, have = STORED.get(declared, declared), r.builder.types[name].dtype
    if declared.startswith("float") or have in (wanted, declared):
        return name, 0
    offset = RANGES[wanted][0] - RANGES[have][0] if codes and wanted.removeprefix("u") == have else 0
    return r.builder.emit("cast", [name], offset=offset, dtype=wanted), offset
