"""The one error that users see; it lives in the lowest room so that every room can raise it."""


class CompileError(Exception):
    """A model, option or file that cannot be compiled; the message says which and what to do about it.

    Programs catch this one class; the command line prints the message and exits with code 2.
    """


class Defect(CompileError):
    """A fault of the compiler itself, which the user can but report; the exception behind it is its cause."""
