"""What the commands share: failures as one line and exit code 2, files written whole or not at all."""

import functools
import io
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from qcompile.runtime.errors import ArtifactError
from qcompile.targets.errors import CompileError


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns failures of ``command`` that are the user's to mend into ``PROGRAM: error: ...`` and exit code 2."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except (CompileError, ArtifactError) as error:
            message = str(error)
        except (BrokenPipeError, click.ClickException, click.Abort):
            raise
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except MemoryError:
            message = "out of memory"
        except Exception as error:  # a defect of ours, but a user's terminal is no place for its traceback
            if os.environ.get("QCOMPILE_DEBUG"):
                raise
            message = (f"unexpected {type(error).__name__}: {error}; this is a defect of qcompile "
                       "(QCOMPILE_DEBUG=1 shows where)")
        click.echo(f"{Path(sys.argv[0]).stem}: error: {' '.join(message.split())}", err=True)
        sys.exit(2)

    return wrapped


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; ArtifactError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ArtifactError(f"{path} is a single array; save it with numpy.savez under the input's name")
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is not a readable npz file of plain arrays") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays`` as an npz file, whatever their names; the same arrays give the same bytes."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    write_whole(path, memory.getvalue())


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file ``path`` in one step; on failure, whatever was there stays."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)
