"""The one error that users see; it lives in the lowest room so that every room can raise it."""

LONGEST_WORD, LONGEST_MESSAGE = 300, 2000  # characters; names of tensors, nodes and files may have any number


class CompileError(Exception):
    """A model, option or file that cannot be compiled; the message says which and what to do about it.

    The message is one printable line, whatever names it quotes. Programs catch this one class; the command line prints
    the message and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


class Defect(CompileError):
    """A fault of the compiler itself, which the user can but report; the exception behind it is its cause."""


def one_line(text: str) -> str:
    """`text` without line breaks, with control characters escaped, and with the middle of long words, and of what is
    long even so, left out."""
    printable = " ".join("".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text).split())
    return shorten(" ".join(shorten(word, LONGEST_WORD) for word in printable.split(" ")), LONGEST_MESSAGE)


def shorten(text: str, most: int) -> str:
    """`text`, with its middle left out where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"
