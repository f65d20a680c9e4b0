"""Checks of files that a user names, before anything is read, imported or computed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qcompile.targets.errors import CompileError


def existing_file(path: str | os.PathLike[str], what: str = "", folder_hint: str = "give a file") -> Path:
    """`path`, which something other than a folder or device bears; CompileError, beginning with `what`, elsewhere."""
    file = Path(path)
    label = f"{what} {path}".strip()
    try:
        if not os.path.lexists(file):
            raise CompileError(f"{label}: no such file")
        if file.is_dir():
            raise CompileError(f"{label}: is a folder; {folder_hint}")
        mode = file.stat().st_mode  # none for a link to nowhere
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # which may have no end
            raise CompileError(f"{label}: is a device; {folder_hint}")
    except (OSError, ValueError) as e:  # names that are too long, or hold a null character
        raise CompileError(f"{label}: {getattr(e, 'strerror', None) or e}") from e
    return file


def output_file(path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> Path:
    """`path`, to which a file can be written that is none of `inputs`; CompileError elsewhere."""
    file = Path(path)
    try:
        if file.is_dir():
            raise CompileError(f"cannot write {file}: it is a folder; name a file")
        if not file.parent.is_dir():
            raise CompileError(f"cannot write {file}: there is no folder {file.parent}")
        if any(i is not None and file.exists() and Path(i).exists() and file.samefile(i) for i in inputs):
            raise CompileError(f"cannot write {file}: it is read too; name another file")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise CompileError(f"cannot write {file}: Permission denied")
    except (OSError, ValueError) as e:  # names that are too long, or hold a null character
        raise CompileError(f"cannot write {str(file)!r}: {getattr(e, 'strerror', None) or e}") from e
    return file
