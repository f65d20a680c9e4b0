"""npz files: read with a clear error, written so that the same arrays give the same bytes."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping

import numpy as np
from qcompile.files import existing_file
from qcompile.targets.errors import CompileError


def read_npz(path: str | os.PathLike[str], what: str = "") -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name. CompileError, beginning with `what`, where it is none, or holds pickles."""
    file = existing_file(path, what, "give an npz file")
    label = f"{what} {path}".strip()
    try:
        loaded = np.load(file, allow_pickle=False)
        members = loaded.zip if isinstance(loaded, np.lib.npyio.NpzFile) else None
        if members is None:
            raise CompileError(f"{label}: is a single array; save it with numpy.savez under the input's name")
        with loaded as content:
            # by member: of arrays "a" and "a.npy", numpy gives the first for both names
            return {name.removesuffix(".npy"): np.asarray(content[name]) for name in members.namelist()}
    except CompileError:
        raise
    except Exception as e:  # zip, header and pickle errors each have their own type
        reason = (
            f"cannot be read ({e.strerror})"
            if isinstance(e, OSError) and e.strerror
            else (f"not a readable npz file of plain arrays ({type(e).__name__}); write it with numpy.savez")
        )
        raise CompileError(f"{label}: {reason}") from e


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`arrays` as an npz file, whatever their names."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return memory.getvalue()
