"""Checks of files that a user names, before anything is read or imported."""

from __future__ import annotations

import os
from pathlib import Path

from qcompile.targets.errors import CompileError


def existing_file(path: str | os.PathLike[str], what: str = "", folder_hint: str = "give a file") -> Path:
    """`path`, which something other than a folder bears; CompileError, beginning with `what`, where nothing does."""
    file = Path(path)
    label = f"{what} {path}".strip()
    try:
        if not os.path.lexists(file):
            raise CompileError(f"{label}: no such file")
        if file.is_dir():
            raise CompileError(f"{label}: is a folder; {folder_hint}")
        file.stat()  # not so for a link to nowhere
    except (OSError, ValueError) as e:  # names that are too long, or hold a null character
        raise CompileError(f"{label}: {getattr(e, 'strerror', None) or e}") from e
    return file
