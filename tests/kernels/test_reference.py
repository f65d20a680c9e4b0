"""docs/ops.md says what the ops' declarations say."""

from pathlib import Path

from qcompile.kernels.dialect import OPS
from qcompile.kernels.reference import page

PAGE = Path(__file__).resolve().parents[2] / "docs/ops.md"


def test_the_page_is_what_the_declarations_say():
    assert PAGE.read_text("utf-8") == page(), "the declarations changed: write docs/ops.md anew with `make docs`"


def test_every_op_has_an_entry():
    text = PAGE.read_text("utf-8")
    assert [name for name, op in OPS.items() if f"### {name}\n" not in text or op.doc not in text] == []
