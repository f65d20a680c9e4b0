"""What the commands share: failures as one line and exit code 2, files written whole or not at all."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcompile.targets.errors import CompileError, one_line

MOST_THREADS = 1024


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns failures of ``command`` that are the user's to mend into ``PROGRAM: error: ...`` and exit code 2."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except BrokenPipeError:
            raise
        except Exception as error:
            message = _message(error)
            if message is None:  # a defect of ours, but a user's terminal is no place for its traceback
                if os.environ.get("QCOMPILE_DEBUG"):
                    raise
                message = (
                    f"unexpected {type(error).__name__}: {error}; this is a defect of qcompile "
                    "(QCOMPILE_DEBUG=1 shows where)"
                )
        print(f"{Path(sys.argv[0]).stem}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)

    return wrapped


def _message(error: Exception) -> str | None:
    """What to tell the user of a failure that is his to mend, else None."""
    if isinstance(error, CompileError):
        return str(error)
    from qcompile.runtime.errors import ArtifactError  # late: its package imports numpy

    if isinstance(error, ArtifactError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return "out of memory" if isinstance(error, MemoryError) else None


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file ``path`` in one step; on failure, whatever was there stays. Pipes and devices are written to."""
    from qcompile.runtime.errors import ArtifactError

    target = Path(os.path.realpath(path))  # a link stays one
    fresh = target.with_name(f".{os.getpid()}.new")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        fresh.write_bytes(data)
        os.replace(fresh, target)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
