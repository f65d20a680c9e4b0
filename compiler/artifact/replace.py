"""A folder in the place of another: in one step where the kernel can, whole or not at all, nobody else's files lost.

A writer fills a hidden folder beside the place and holds a lock on it, so that what a killed one left is told from what
a live one fills.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from qcompile.runtime.manifest import MANIFEST
from qcompile.targets import CompileError

REPORT = "report.html"
# what artifacts hold beside the files that their manifest lists, and what those did that had no such list
ALWAYS = ("library", "header")
UNLISTED = ("program.npz", "model.qdq.onnx", "bits.json")
_HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.(?P<state>new|old)")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LONGEST_COMPILE = 24 * 3600.0  # seconds


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes ``files`` (relative name -> bytes, a manifest among them) as the folder ``path``.

    Of an artifact that is there, what its manifest lists is replaced and other files stay. Raises CompileError, leaving
    what was there, where it cannot be written, holds no artifact, or a file of somebody else's has the name of a new
    one.
    """
    path = path.resolve() if path.is_symlink() else path
    tag = secrets.token_hex(6)
    fresh = path.with_name(f".{path.name}.{tag}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent):
            _clean(path.parent)
            fresh.mkdir()
            held, _ = _hold(fresh)
        try:
            for name, data in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(data)
            with _lock(path.parent):
                _replace(fresh, path, files)
        finally:
            os.close(held)
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(fresh: Path, path: Path, files: Mapping[str, bytes]) -> None:
    """Puts ``fresh`` in the place of ``path``; ``fresh`` then holds what was there and goes."""
    if not path.exists() and not path.is_symlink():
        os.rename(fresh, path)
        return
    kept = _others(path, _ours(path))
    clash = next((name for name in kept if name in files or any(f.startswith(f"{name}/") for f in files)), None)
    if clash:
        raise CompileError(f"{path / clash} was not written by qcompile and has the name of a new file; move it away")
    for name in kept:
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        _keep(path / name, fresh / name)
    exchange(fresh, path)


def _keep(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(file, copy, follow_symlinks=False)


def exchange(a: Path, b: Path) -> None:
    """Each takes the other's name: at once on Linux; elsewhere in three steps, between which neither may be there."""
    if _exchange_at_once(a, b):
        return
    aside = b.with_name(re.sub(r"\.new$", ".old", a.name))
    os.rename(b, aside)
    try:
        os.rename(a, b)
    except OSError:
        os.rename(aside, b)
        raise
    os.rename(aside, a)


def _exchange_at_once(a: Path, b: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if not rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # an old kernel, or a file system without it
        return False
    raise OSError(number, os.strerror(number))


def _ours(path: Path) -> set[str]:
    """Names of the files in the folder that its manifest says are qcompile's. Raises CompileError where it has none."""
    manifest: object = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    if not isinstance(manifest, dict) or not {"library_sha256", "abi_version"} <= manifest.keys():
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            return set()
        raise CompileError(f"{path} exists and is no artifact; move it away or choose another output folder")
    listed = manifest.get("files")
    names = set(listed) if isinstance(listed, dict) else {n for n in _all(path) if n in UNLISTED or n.startswith("ir/")}
    return names | {str(manifest.get(key)) for key in ALWAYS} | {MANIFEST, REPORT}


def _others(path: Path, ours: set[str]) -> list[str]:
    return [name for name in _all(path) if name not in ours]


def _all(path: Path) -> list[str]:
    """Relative names of all that is no folder."""
    found = []
    for folder, inner, names in os.walk(path):
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), path) for name in (*names, *links)]
    return sorted(found)


def _clean(folder: Path) -> None:
    """Removes the hidden folders that killed writers left; where one took an artifact away, it comes back.

    Without locks, where a killed writer's folder is not told from a live one's, those of the last day stay.
    """
    for entry in folder.iterdir():
        match = _HIDDEN.fullmatch(entry.name)
        if not match or entry.is_symlink() or not entry.is_dir():
            continue
        with contextlib.suppress(OSError):
            held, locked = _hold(entry)
            try:
                if not locked and time.time() - entry.stat().st_mtime < _LONGEST_COMPILE:
                    continue
                if match["state"] == "old" and not (folder / match["name"]).exists():
                    os.rename(entry, folder / match["name"])
                else:
                    shutil.rmtree(entry, ignore_errors=True)
            finally:
                os.close(held)


def _hold(folder: Path) -> tuple[int, bool]:
    """(a descriptor that locks the folder until it is closed, whether the file system has locks); OSError where
    somebody else's does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network file systems have no locks
        return descriptor, False
    return descriptor, True


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds a lock on ``folder``, so that compilers that run side by side replace artifacts one after the other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
