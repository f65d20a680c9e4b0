"""What the pages name is there: files that they link to, tests that show what they promise, paths in the text."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
PLACE = re.compile(r"`((?:compiler|passes|kernels|targets|runtime|tests|benchmarks|examples|docs)/[\w./]*)`")

WILDCARD = re.compile(r"\b[A-Z]+\b")  # stands for any name: `kernels/KIND/`


@cache
def functions(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def missing(page):
    """What `page` names and the repository lacks."""
    text = page.read_text("utf-8")
    for target in LINK.findall(text):
        if not (page.parent / target).exists():
            yield f"link to {target}"
    for name in PLACE.findall(text):
        if not WILDCARD.search(name) and not (ROOT / name).exists():
            yield name
    for name, function in TEST.findall(text):
        file = ROOT / name
        if not file.exists() or (function and function not in functions(file)):
            yield f"{name}::{function}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_name_what_is_there(page):
    assert list(missing(page)) == []


def test_pages_are_found_from_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    assert [p.name for p in PAGES if p.parent.name == "docs" and f"docs/{p.name}" not in text] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see [x](nowhere.md)", "link to nowhere.md"),
        ("in `kernels/nowhere.py`", "kernels/nowhere.py"),
        ("`tests/test_docs.py::test_nothing`", "tests/test_docs.py::test_nothing"),
    ],
)
def test_what_is_missing_is_found(text, fault, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert list(missing(page)) == [fault]
