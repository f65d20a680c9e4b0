"""The kernels of a program: each once, by name, and the check that a name stands for one function."""

from __future__ import annotations

import os
from typing import ClassVar

import tvm
import tvm_ffi
from qcompile.kernels.lowering import Kernel
from qcompile.targets import CompileError, Target

CHECK = "QCOMPILE_CHECK"  # environment variable: kernels of one name are all built, and compared


class KernelTable:
    """Kernels by name.

    check: whether every kernel that comes under a known name is built and compared with the first, in all programs of
    the process; as the environment says where it is None.
    """

    _built: ClassVar[dict[tuple[str, str], int]] = {}  # (target, name) -> structural hash of the function

    def __init__(self, target: Target, check: bool | None = None) -> None:
        self._target = target.name
        self._check = os.environ.get(CHECK, "0") not in ("", "0") if check is None else check
        self._kernels: dict[str, Kernel] = {}
        self._users: dict[str, str] = {}

    def add(self, kernel: Kernel, user: str = "") -> bool:
        """True where its name is new; `user`: the node that calls it. Raises CompileError where it has the name of a
        kernel that is not its equal."""
        known = self._kernels.setdefault(kernel.name, kernel)
        self._users.setdefault(kernel.name, user)
        if known != kernel:
            raise CompileError(f"two kernels share the name {kernel.name}: {known.spec} and {kernel.spec}")
        if self._check:
            found = tvm_ffi.structural_hash(kernel.build(), map_free_vars=True)
            if self._built.setdefault((self._target, kernel.name), found) != found:
                raise CompileError(
                    f"two functions share the name {kernel.name}: what tells them apart is missing from "
                    f"its spec {kernel.spec}"
                )
        return known is kernel

    def names(self) -> list[str]:
        return sorted(self._kernels)

    def functions(self) -> dict[str, tvm.tirx.PrimFunc]:
        """symbol -> its function, by name. Raises CompileError with the first node whose kernel cannot be built."""
        built = {}
        for name in self.names():
            try:
                built[name] = self._kernels[name].build()
            except CompileError as error:
                raise CompileError(f"node '{self._users[name]}': {error}") from error
        return built
