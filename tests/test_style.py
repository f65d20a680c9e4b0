"""Lint, types, file sizes, and nothing of one machine in what is committed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("passes", "kernels", "targets", "runtime")
LONGEST_FILE = 500
HOOKS = ".pre-commit-config.yaml"
# Folders that exist on one machine only: absolute paths of homes, work folders and temporary files
MACHINE_PATH = re.compile(r"""(?<![\w.}/*-])/(?:home|root|work|Users|mnt|tmp)/\w""")


def sources(*suffixes):
    folders = ("compiler", *ROOMS, "tests", "benchmarks", "examples")
    return sorted(f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in suffixes and f.is_file())


def run(*command, cwd=ROOT):
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def test_lint(tmp_path):
    pytest.importorskip("ruff")
    run("ruff", "check", "--no-cache", ".")


def test_commits_are_checked_by_the_same_ruff():
    versions = {re.search(r'"ruff==([^"]+)"', (ROOT / n).read_text())[1] for n in ("pyproject.toml", HOOKS)}
    assert len(versions) == 1, versions


def test_types(tmp_path):
    """mypy needs the folders where they are imported: a tree of links stands for the installed package."""
    pytest.importorskip("mypy")
    package = tmp_path / "qcompile"
    package.mkdir()
    for entry in (*(ROOT / "compiler").iterdir(), *(ROOT / room for room in ROOMS)):
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    configuration = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"))
    run("mypy", *configuration, "-p", "qcompile", cwd=tmp_path)


def test_files_are_read_in_one_sitting():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in sources(".py", ".c", ".h")}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_paths_of_one_machine():
    found = {}
    for file in sources(".py", ".c", ".h", ".md", ".toml"):
        lines = [line for line in file.read_text().splitlines() if MACHINE_PATH.search(line)]
        if lines and file != Path(__file__):
            found[str(file.relative_to(ROOT))] = lines
    assert found == {}


def test_every_module_says_what_it_is():
    silent = [
        str(f.relative_to(ROOT)) for f in sources(".py") if not f.read_text().lstrip().startswith(('"""', 'r"""', "#!"))
    ]
    assert [name for name in silent if (ROOT / name).stat().st_size] == []


def test_rooms_import_only_what_lies_below():
    allowed = {
        "targets": {"targets"},
        "runtime": {"runtime"},
        "kernels": {"kernels", "targets"},
        "passes": {"passes", "kernels", "targets"},
    }
    lazy = {("runtime", "kernels")}  # the reference is loaded where asked for
    for room, rooms in allowed.items():
        for file in (ROOT / room).rglob("*.py"):
            for found in re.finditer(r"^(\s*)(?:from|import) qcompile\.?(\w*)", file.read_text(), re.M):
                other = found[2]
                assert other in rooms or (found[1] and (room, other) in lazy), (
                    f"{file.relative_to(ROOT)} imports qcompile.{other}"
                )
