"""A folder in the place of another: killed writers, files of somebody else, kernels that cannot exchange."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from qcompile.artifact import replace, write_folder
from qcompile.targets import CompileError


def files(i=0, **more):
    listed = {name: "0" for name in more}
    manifest = {"abi_version": 1, "library_sha256": "", "library": "m.so", "header": "m.h", "files": listed, "i": i}
    return {"manifest.json": json.dumps(manifest).encode(), "m.so": b"%d" % i, **more}


def read(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.fixture(params=["at once", "in steps"])
def exchange(request, monkeypatch):
    """As Linux does it, and as it is done where that is missing."""
    if request.param == "in steps":
        monkeypatch.setattr(replace, "_exchange_at_once", lambda a, b: False)


def test_an_artifact_replaces_another(tmp_path, exchange):
    path = tmp_path / "m-host"
    write_folder(path, files(1, **{"ir/1.txt": b"old", "old.npz": b"old"}))
    write_folder(path, files(2, **{"ir/2.txt": b"new"}))
    assert read(path) == files(2, **{"ir/2.txt": b"new"})
    assert os.listdir(tmp_path) == ["m-host"]


def test_files_of_somebody_else_stay(tmp_path, exchange):
    path = tmp_path / "m-host"
    write_folder(path, files(1, **{"program.npz": b"1"}))
    (path / "y.npz").write_bytes(b"my outputs")
    (path / "notes" / "a").mkdir(parents=True)
    (path / "notes" / "a" / "b.txt").write_text("years of work")
    (path / "link").symlink_to("notes")
    (path / "report.html").write_text("written with --report")
    write_folder(path, files(2))
    assert {**read(path), "notes/a/b.txt": b""} == {**files(2), "y.npz": b"my outputs", "notes/a/b.txt": b""}
    assert (path / "notes/a/b.txt").read_text() == "years of work" and os.readlink(path / "link") == "notes"


@pytest.mark.parametrize("theirs", ["program.npz", "ir/1.txt/deeper", "ir"])
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, theirs):
    path = tmp_path / "m-host"
    write_folder(path, files(1))
    (path / theirs).parent.mkdir(exist_ok=True, parents=True)
    (path / theirs).write_text("theirs")
    with pytest.raises(CompileError, match=r"was not written by qcompile|cannot write"):
        write_folder(path, files(2, **{"program.npz": b"2", "ir/1.txt": b"2"}))
    assert read(path) == {**files(1), theirs: b"theirs"} and os.listdir(tmp_path) == ["m-host"]


@pytest.mark.parametrize(
    "manifest",
    ['{"name": "my web app", "icons": []}', "{", "[]", '{"files": ["thesis.tex"]}', "[" * 100_000],
    ids=lambda m: m[:9],
)
def test_a_folder_with_another_manifest_is_none_of_ours(tmp_path, manifest):
    (tmp_path / "m-host").mkdir()
    (tmp_path / "m-host" / "manifest.json").write_text(manifest)
    (tmp_path / "m-host" / "thesis.tex").write_text("years of work")
    with pytest.raises(CompileError, match="exists and is no artifact"):
        write_folder(tmp_path / "m-host", files())
    assert read(tmp_path / "m-host") == {"manifest.json": manifest.encode(), "thesis.tex": b"years of work"}
    assert os.listdir(tmp_path) == ["m-host"]


def test_a_link_to_an_artifact_stays_a_link(tmp_path):
    write_folder(tmp_path / "disk" / "m-host", files(1))
    (tmp_path / "m-host").symlink_to(tmp_path / "disk" / "m-host")
    write_folder(tmp_path / "m-host", files(2))
    assert (tmp_path / "m-host").is_symlink() and read(tmp_path / "disk" / "m-host") == files(2)
    assert os.listdir(tmp_path / "disk") == ["m-host"]


def test_readers_always_find_a_whole_artifact(tmp_path):
    """While it is replaced again and again, on a kernel that exchanges at once."""
    path, missing = tmp_path / "m-host", []
    write_folder(path, files(0))
    if not _exchanges(tmp_path):
        pytest.skip("this file system cannot exchange folders at once")
    stop = threading.Event()

    def look():
        while not stop.is_set():
            try:
                (path / "manifest.json").read_bytes()
            except OSError as error:
                missing.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(150):
        write_folder(path, files(i))
    stop.set()
    reader.join()
    assert not [e for e in missing if e.errno == errno.ENOENT and not path.exists()]
    assert len(missing) <= 150, "a reader may meet a folder that is going, never a missing name for long"


def _exchanges(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
    try:
        return replace._exchange_at_once(folder / "a", folder / "b")
    finally:
        for name in ("a", "b"):
            (folder / name).rmdir()


def test_what_a_killed_writer_left_goes(tmp_path):
    """A process that is killed while it writes; a live one's folder stays."""
    script = (
        "import sys, time; from pathlib import Path; from qcompile.artifact import replace\n"
        "def wait(*_): print('ready', flush=True); time.sleep(60)\n"
        "Path.write_bytes = wait; replace.write_folder(Path(sys.argv[1]), {'manifest.json': b'{}'})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"m{i}-host")], stdout=subprocess.PIPE)
        for i in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    assert len(os.listdir(tmp_path)) == 2
    write_folder(tmp_path / "m-host", files())
    left = [name for name in os.listdir(tmp_path) if name != "m-host"]
    assert len(left) == 1 and left[0].startswith(".m1-host."), "the live writer's folder is there, the killed one's not"
    writers[1].send_signal(signal.SIGKILL)
    writers[1].wait()
    write_folder(tmp_path / "m-host", files(1))
    assert os.listdir(tmp_path) == ["m-host"]
    for writer in writers:
        writer.stdout.close()


def test_an_artifact_that_a_killed_writer_took_away_comes_back(tmp_path):
    """Where a kernel cannot exchange, a writer may die between its renames."""
    write_folder(tmp_path / "other-host", files(1))
    (tmp_path / "other-host").rename(tmp_path / ".other-host.0123456789ab.old")
    (tmp_path / ".other-host.0123456789ab.new").mkdir()
    (tmp_path / ".not-ours.old").mkdir()
    write_folder(tmp_path / "m-host", files(2))
    assert sorted(os.listdir(tmp_path)) == [".not-ours.old", "m-host", "other-host"]
    assert read(tmp_path / "other-host") == files(1)


def test_without_locks_only_old_folders_go(tmp_path, monkeypatch):
    """As on some network file systems: what a live writer fills is not told from what a killed one left."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(replace.fcntl, "flock", no_locks)
    young, old = (tmp_path / f".{name}-host.0123456789ab.new" for name in ("young", "old"))
    young.mkdir(), old.mkdir()
    os.utime(old, (1e9, 1e9))
    write_folder(tmp_path / "m-host", files())
    assert sorted(os.listdir(tmp_path)) == [young.name, "m-host"] and read(tmp_path / "m-host") == files()


def test_a_failed_exchange_leaves_what_was_there(tmp_path, monkeypatch):
    path, rename, calls = tmp_path / "m-host", os.rename, []
    write_folder(path, files(1))
    monkeypatch.setattr(replace, "_exchange_at_once", lambda a, b: False)

    def second_fails(a, b):
        calls.append((a, b))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CompileError, match="No space left"):
        write_folder(path, files(2))
    assert read(path) == files(1) and os.listdir(tmp_path) == ["m-host"]


def test_a_really_full_disk(tmp_path):
    """The kernel's own refusal: a limit on the size of files."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from qcompile.artifact import write_folder\n"
        "from qcompile.targets import CompileError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_folder(Path(sys.argv[1]), {'manifest.json': b'{}', 'm.so': bytes(9999)})\n"
        "except CompileError as e: print(e)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m-host")], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("cannot write") and "File too large" in said
    assert os.listdir(tmp_path) == []


def test_a_folder_that_nobody_may_write_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(CompileError, match="Permission denied"):
        write_folder(tmp_path / "out" / "m-host", files())
