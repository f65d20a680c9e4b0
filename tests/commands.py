"""The commands as a user calls them, in this process."""

import contextlib
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command printed, in all and on standard output, and its exit code."""

    output: str
    stdout: str
    exit_code: int


class _Both(io.StringIO):
    """Standard output or error, which writes into a joint text too."""

    def __init__(self, joint: io.StringIO) -> None:
        super().__init__()
        self.joint = joint

    def write(self, text: str) -> int:
        self.joint.write(text)
        return super().write(text)


def call(command, *arguments: object) -> Result:
    """Runs `command`, a module of qcompile.cli, with the arguments."""
    joint = io.StringIO()
    stdout, code = _Both(joint), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(_Both(joint)):
        try:
            command.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
    return Result(joint.getvalue(), stdout.getvalue(), code)
