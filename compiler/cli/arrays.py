"""npz files, read with a clear error and written whole."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from qcompile.cli.messages import write_whole
from qcompile.runtime.errors import ArtifactError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; ArtifactError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ArtifactError(f"{path} is a single array; save it with numpy.savez under the input's name")
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except OSError as error:
        if error.errno is not None:  # a folder, no permission
            raise ArtifactError(f"{path}: {error.strerror}") from error
        raise _not_npz(path) from error
    except ArtifactError:
        raise
    except Exception as error:  # zip, header and pickle errors, each of its own type
        raise _not_npz(path) from error


def _not_npz(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is not a readable npz file of plain arrays")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays`` as an npz file, whatever their names; the same arrays give the same bytes."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    write_whole(path, memory.getvalue())
