"""Shared libraries opened from memory, each time anew."""

import ctypes
import os
from collections.abc import Callable


def open_library(data: bytes, name: str) -> tuple[ctypes.CDLL, Callable[[], None]]:
    """(library, function that unloads it) of the ELF image ``data``; OSError where the system will not load it.

    dlopen returns the library it has when a path or file comes again, even if the file was since replaced; an
    anonymous file per call gives each its own code and its own variables, and needs no writable or executable folder.
    """
    from _ctypes import dlclose  # not on every system that can read an artifact

    descriptor = os.memfd_create(name)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise
    handle = library._handle

    def close() -> None:
        dlclose(handle)
        os.close(descriptor)  # after dlclose: dlopen knows the library by this number

    return library, close
