"""The commands: qcompile, qrun, qbench, as the package installs them."""

import sys
from importlib import import_module


def qcompile_command() -> None:
    """Compiles a model."""
    _start("qcompile")


def qrun_command() -> None:
    """Runs an artifact."""
    _start("qrun")


def qbench_command() -> None:
    """Measures an artifact."""
    _start("qbench")


def _start(name: str) -> None:
    from qcompile import NO_COMPILER

    try:
        main = import_module(f"{__name__}.{name}").main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qcompile"):
            raise
        sys.exit(f"{name}: error: {NO_COMPILER} ({error.name} is missing)")
    main()
