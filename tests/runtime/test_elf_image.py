"""The reader of libraries beside pyelftools, and on damaged files."""

import io
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from qcompile.artifact.elf import functions, symbols
from qcompile.runtime import ArtifactError
from qcompile.runtime.elf_image import parse_elf
from sample_artifacts import build_parallel

MUTATIONS = 2000


@pytest.fixture(scope="module", params=["x86-avx2", "arm-a72"])
def library(request, tmp_path_factory):
    """(bytes, architecture) of a library with functions, data and relocations."""
    data = (build_parallel(tmp_path_factory.mktemp("elf"), request.param).path / "libsquares.so").read_bytes()
    return data, "x86_64" if request.param.startswith("x86") else "aarch64"


def test_it_reads_what_pyelftools_reads(library):
    data, arch = library
    image, elf = parse_elf(data, Path("lib.so"), arch), ELFFile(io.BytesIO(data))
    assert image.functions == functions(elf) != []
    assert image.exports == {s.name: s["st_value"] for s in symbols(elf, ".dynsym") if s.name}
    names = [s for s in symbols(elf, ".symtab") if s["st_info"]["type"] == "STT_OBJECT"]
    assert image.objects == {s.name: s["st_value"] for s in names} and "qc_static_info" in image.objects
    entries = [e for s in elf.iter_sections() if s["sh_type"] == "SHT_RELA" for e in s.iter_relocations()]
    assert image.relocations == [(e["r_offset"], e["r_addend"]) for e in entries] != []
    for segment in elf.iter_segments("PT_LOAD"):
        start = segment["p_vaddr"]
        assert image.data[start : start + segment["p_filesz"]] == segment.data()


def test_damaged_libraries_are_refused_by_name(library):
    data, arch = library
    with pytest.raises(ArtifactError, match=f"lib.so is for {arch}, not for "):
        parse_elf(data, Path("lib.so"), {"x86_64": "aarch64", "aarch64": "x86_64"}[arch])
    rng, refused = np.random.default_rng(8), 0
    tables = int.from_bytes(data[40:48], "little")
    for _ in range(MUTATIONS):
        damaged = bytearray(data)
        for start, end in ((0, 64), (64, 700), (tables, len(data))):
            damaged[rng.integers(start, end)] = rng.integers(256)
        end = rng.integers(len(data)) if rng.random() < 0.2 else len(data)
        try:
            parse_elf(bytes(damaged[:end]), Path("lib.so"), arch)
        except ArtifactError as error:
            assert "lib.so is " in str(error)
            refused += 1
    assert refused > MUTATIONS / 4
