"""Tables show names whole, whatever they hold and however narrow the terminal is."""

import pytest
from qcompile.cli.tables import add_row, new_table, print_tables


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_nothing_is_cut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    names = ["onnxruntime: " + "m" * 100, "[red]é日本[/red] :smile:", "a\nb\t\x1b[31mc", "w " * 60]
    table = new_table("name", ">figure", title="a title that is longer than twenty columns are")
    for i, name in enumerate(names):
        add_row(table, name, f"{i}.5")
    print_tables(table, "a line " * 30)
    lines = capsys.readouterr().out.splitlines()
    shown = ["onnxruntime: " + "m" * 100, "[red]é日本[/red] :smile:", "a b \\x1b[31mc", ("w " * 60).strip()]
    assert lines[0] == "a title that is longer than twenty columns are" and lines[1].split() == ["name", "figure"]
    for i, (line, name) in enumerate(zip(lines[2:], shown)):
        assert line.startswith(name) and line.endswith(f" {i}.5"), line
    assert lines[6].strip() == ("a line " * 30).strip() and len(lines) == 7
