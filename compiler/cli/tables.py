"""Tables on standard output, of which nothing is cut."""

from qcompile.targets.errors import one_line
from rich.console import Console
from rich.table import Table


def new_table(*headings: str, title: str | None = None) -> Table:
    """A table with these columns; those whose heading begins with ">" are aligned to the right."""
    table = Table(
        title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(headings)
    )
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading[:1] == ">" else "left", no_wrap=True)
    return table


def add_row(table: Table, *cells: str) -> None:
    """Appends a row; names, which may hold anything, become one line each."""
    table.add_row(*map(one_line, cells))


def print_tables(*parts: Table | str) -> None:
    """Prints tables and lines of text as wide as they are: a terminal that is narrower wraps whole lines, so that names
    stay whole for whoever reads or searches the output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for part in parts:
        if isinstance(part, Table):
            unbounded = console.options.update(width=10**6)
            console.width = max(console.width, console.measure(part, options=unbounded).maximum)
        console.print(part)
