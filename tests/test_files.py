import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuclf import files
from gpuclf.files import alone_in, sweep, write_json, write_whole

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("one", "zwölf"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["a.txt"]


def test_numbers_of_a_list_stand_in_one_line(tmp_path):
    content = {"times_s": [1.0, 2.5], "name": "a"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == content
    assert "[1.0, 2.5]" in (tmp_path / "a.json").read_text()


def test_the_longest_name_can_be_written(tmp_path):
    for name in ("n" * 255, "é" * 127):
        write_whole(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    with pytest.raises(OSError, match="too long"):
        write_whole(tmp_path / ("n" * 256), "text")
    assert len(names(tmp_path)) == 2


@posix
def test_a_link_stays_one_and_permissions_stay(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "there").chmod(0o640)
    (tmp_path / "link").symlink_to("there")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o640


@posix
def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").write_text("text")
    write_whole(tmp_path / "new", "text")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


@posix
def test_a_pipe_is_written_to(tmp_path):
    read, write = os.pipe()
    write_whole(files.Path(f"/dev/fd/{write}"), "through a pipe without a name")
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "through a pipe without a name"
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit((tmp_path / "fifo").read_text)
        write_whole(tmp_path / "fifo", "through one with a name")
        assert text.result() == "through one with a name"
    assert names(tmp_path) == ["fifo"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    (tmp_path / "a").write_text("old")

    def fail(handle):
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_several_writers_leave_the_whole_text_of_one(tmp_path):
    texts = [letter * 100_000 for letter in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: write_whole(tmp_path / "a", text), texts * 5))
    assert (tmp_path / "a").read_text() in texts
    assert names(tmp_path) == ["a"]


def test_files_of_writers_killed_long_ago_are_swept(tmp_path):
    for name in (".a.0.unfinished", ".a.1.unfinished", ".b.0.unfinished", "a.unfinished"):
        (tmp_path / name).write_text("text")
        if name != ".a.1.unfinished":
            os.utime(tmp_path / name, (0, 0))
    write_whole(tmp_path / "a", "text")
    assert names(tmp_path) == [".a.1.unfinished", ".b.0.unfinished", "a", "a.unfinished"]
    sweep(tmp_path / "nowhere", "", "")


WRITES = """
import sys
from pathlib import Path
from gpuclf.files import write_whole
letter = "a"
print("ready", flush=True)
while True:
    letter = "b" if letter == "a" else "a"
    write_whole(Path(sys.argv[1]), letter * 300_000)
    print(letter, flush=True)
"""


@posix
@pytest.mark.slow
def test_a_killed_writer_leaves_no_torn_file(tmp_path):
    path = tmp_path / "a"
    for kill in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2 + kill % 5):
            process.stdout.readline()
        for _ in range(3_000 * kill):  # any moment within a write
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        text = path.read_text()
        assert text in ("a" * 300_000, "b" * 300_000)


@posix
def test_a_folder_is_held_by_one_at_a_time(tmp_path, caplog):
    inside, most = [], []
    start = threading.Barrier(4)

    def hold(_):
        start.wait()
        with alone_in(tmp_path) as alone:
            assert alone
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))
    assert most == [1] * 4
    assert "another process is at work in" in caplog.text
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path):
    with alone_in(tmp_path / "nowhere") as alone:
        assert not alone


@posix
def test_a_folder_is_free_again_after_an_error(tmp_path):
    with contextlib.suppress(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path) as alone:
        assert alone
