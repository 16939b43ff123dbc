import gzip
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cifar_files import (
    BATCHES,
    ROWS,
    VERSIONS,
    archive_of,
    assert_is_the_made_data,
    leftovers,
    no_data_but_the_test_s_own,  # noqa: F401
    python_files,
    tar_of,
    trust,
    write,
)

from gpuclf.datasets import (
    DatasetError,
    archive,
    cifar10,
    download,
    load_cifar10,
)

# --- archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_archive_is_checked_and_unpacked(tmp_path, monkeypatch, version):
    folder, archive, files = VERSIONS[version]
    content = archive_of(version)
    trust(monkeypatch, content, version)
    (tmp_path / archive).write_bytes(content)
    assert_is_the_made_data(load_cifar10(tmp_path, download=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder, archive]
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(files())

    (tmp_path / archive).unlink()
    assert_is_the_made_data(load_cifar10(tmp_path, download=False))


def test_archive_with_a_wrong_checksum(tmp_path):
    content = archive_of("python")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        load_cifar10(tmp_path)
    message = str(caught.value)
    assert "cifar-10-python.tar.gz" in message
    assert "expected MD5 c58f30108f718f92721af3b95e74349a" in message
    assert f"found MD5 {hashlib.md5(content).hexdigest()} ({len(content):,} bytes)" in message
    assert "Delete it" in message
    assert not (tmp_path / "cifar-10-batches-py").exists()


def unpack(tmp_path, monkeypatch, content):
    root = tmp_path / "root"
    write(root, {"cifar-10-python.tar.gz": content})
    trust(monkeypatch, content)
    try:
        return load_cifar10(root)
    finally:
        assert leftovers(root) == []


def test_only_expected_members_reach_the_disk(tmp_path, monkeypatch):
    folder = "cifar-10-batches-py"
    link = tarfile.TarInfo(folder)
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    meta = tarfile.TarInfo(f"{folder}/batches.meta")
    meta.type, meta.linkname = tarfile.SYMTYPE, "/etc/hostname"
    hostile = [
        (link, b""),
        ("../outside", b"x"),
        (str(tmp_path / "absolute"), b"x"),
        (f"{folder}/../../outside", b"x"),
        (f"{folder}/nested/data_batch_1", b"x"),
        (f"{folder}/other", b"x"),
        (meta, b""),
    ]
    files = python_files()
    del files["batches.meta"]
    good = [(f"{folder}/{name}", content) for name, content in files.items()]
    assert_is_the_made_data(unpack(tmp_path, monkeypatch, tar_of(hostile + good)))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert sorted(path.name for path in (tmp_path / "root" / folder).iterdir()) == sorted(BATCHES)
    assert not (tmp_path / "root" / folder).is_symlink()


def test_batches_that_are_links_in_the_archive_count_as_missing(tmp_path, monkeypatch):
    link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    files = python_files()
    del files["test_batch"]
    good = [(f"cifar-10-batches-py/{name}", content) for name, content in files.items()]
    with pytest.raises(DatasetError, match=r"cifar-10-python\.tar\.gz .* found no test_batch"):
        unpack(tmp_path, monkeypatch, tar_of([*good, (link, b"")]))
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()


@pytest.mark.parametrize("damage", ["not a tar", "cut short", "flipped"])
def test_archive_that_cannot_be_unpacked_leaves_nothing(tmp_path, monkeypatch, damage):
    content = archive_of("python")
    if damage == "not a tar":
        content = b"not a tar"
    elif damage == "cut short":
        content = content[: len(content) // 2]
    else:
        content = content[:-100] + bytes(100)
    with pytest.raises(DatasetError, match="expected a complete gzipped tar archive"):
        unpack(tmp_path, monkeypatch, content)
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["cifar-10-python.tar.gz"]


def test_members_of_absurd_size_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(DatasetError, match="would take"):
        unpack(tmp_path, monkeypatch, archive_of("python"))


def block(name, size=b"00000000000", kind=b"0", checksum=None):
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[148:156] = b" " * 8
    header[156:157] = kind
    total = b"%06o\0 " % sum(header)
    header[148:156] = total if checksum is None else checksum
    return bytes(header)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (block(b"a")[:-1], "within a header"),
        (block(b"a", checksum=b"000001\0 "), "wrong checksum"),
        (block(b"a", checksum=b"-00001\0 "), "other than a number"),
        (block(b"a", size=b"-0000000001"), "other than a number"),
        (block(b"a", size=b"\x80" + bytes(10) + b"\x01"), "other than a number"),
        (block(b"a", size=b"0x1"), "other than a number"),
        (block(b"a", size=b"77777777777") + bytes(512), "within a member"),
        (block(b"a", size=b"77777777777") + bytes(300 << 20), "more than 268,435,456 bytes"),
        (block(b"a", size=b"00000001000", kind=b"x") + bytes(300), "within a member"),
        (block(b"a") * 1001, "more than 1,000 members"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_are_none(tmp_path, content, found):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(archive.ArchiveError, match=found):
        archive.extract(tmp_path / "a.tar.gz", {}, 1000)


@pytest.mark.parametrize("records", ["many", "long", "malformed"])
def test_extended_headers_are_passed_over(tmp_path, monkeypatch, records):
    """Python's tarfile takes 518 MB for 400 KB of these, and fails on the malformed ones."""
    text = {"many": b"6 a=b\n" * 70_000, "long": b"a" * 400_000, "malformed": b"99 path=\n"}[
        records
    ]
    header = block(b"pax", size=b"%011o" % len(text), kind=b"x")
    content = header + text + bytes(-len(text) % 512) + gzip.decompress(archive_of("python"))
    content = gzip.compress(content, 1)
    tracemalloc.start()
    try:
        assert_is_the_made_data(unpack(tmp_path, monkeypatch, content))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_what_tarfile_reads_is_read(tmp_path, monkeypatch):
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        folder, _, files = VERSIONS["python"]
        n = 30 if format == tarfile.USTAR_FORMAT else 90
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz", format=format) as tar:
            for name, content in {"é" * n: b"x", "n" * 2 * n: b"y", **files()}.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size, info.mtime, info.uname = len(content), 1.5, "ü"
                tar.addfile(info, io.BytesIO(content))
        root = tmp_path / str(format)
        assert_is_the_made_data(unpack(root, monkeypatch, stream.getvalue()))


def test_what_a_killed_process_left_is_swept(tmp_path, monkeypatch):
    write(tmp_path / "root" / ".cifar-10-batches-py-abc" / "cifar-10-batches-py", {"x": b"x"})
    assert_is_the_made_data(unpack(tmp_path, monkeypatch, archive_of("python")))


def test_interrupted_unpacking_is_not_mistaken_for_the_data(tmp_path, monkeypatch):
    copy = archive._Bounded.copy
    written = []

    def interrupt(self, n, target):
        copy(self, n, target)
        written.append(target)
        if len(list(filter(None, written))) == 4:
            raise KeyboardInterrupt

    content = archive_of("python")
    with monkeypatch.context() as patch:
        patch.setattr(archive._Bounded, "copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path, monkeypatch, content)
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert_is_the_made_data(unpack(tmp_path, monkeypatch, content))


def test_another_process_that_unpacked_first_is_no_error(tmp_path, monkeypatch):
    extract = cifar10.extract
    target = tmp_path / "root" / "cifar-10-batches-py"

    def overtaken(*arguments):
        if not target.exists():
            write(target, python_files())
        extract(*arguments)

    monkeypatch.setattr(cifar10, "extract", overtaken)
    assert_is_the_made_data(unpack(tmp_path, monkeypatch, archive_of("python")))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="needs POSIX modes")
def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    content = archive_of("python")
    trust(monkeypatch, content)
    write(tmp_path / "root", {"cifar-10-python.tar.gz": content})
    (tmp_path / "root").chmod(0o500)
    with pytest.raises(DatasetError, match=r"could not be unpacked into .* Make that folder"):
        load_cifar10(tmp_path / "root")


# --- download ------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, as badly as asked for, and notes the ranges that were requested."""

    daemon_threads = True
    content = b""
    status = None
    ranges = True
    break_after = ()
    pause_after = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested = []
        self.paused, self.go_on = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requested.append(wanted)
        attempt = len(server.requested) - 1
        if server.status is not None:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        total = len(server.content)
        if wanted and server.ranges and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = server.break_after[attempt] if attempt < len(server.break_after) else total
        if server.pause_after is not None:
            self.wfile.write(server.content[start : server.pause_after])
            start = server.pause_after
            server.paused.set()
            server.go_on.wait(60)
        with suppress(ConnectionError):  # whoever asked may have been killed
            self.wfile.write(server.content[start:end])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_RETRY_WAIT_S", 0.0)
    # What arrived of a chunk that broke off is lost, so these divide the tests' breaking points.
    monkeypatch.setattr(download, "_CHUNK_BYTES", 500)
    with Server() as server:
        server.content = archive_of("python")
        trust(monkeypatch, server.content, url=server.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download_message(root):
    with pytest.raises(DatasetError) as caught:
        load_cifar10(root)
    return str(caught.value)


PART = "cifar-10-python.tar.gz.part"
PAIRS = 5


def test_download_into_a_new_folder(tmp_path, server):
    root = tmp_path / "new" / "folder"
    assert_is_the_made_data(load_cifar10(root))
    assert server.requested == [None]
    assert sorted(p.name for p in root.iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    assert_is_the_made_data(load_cifar10(root))
    assert len(server.requested) == 1


def test_download_goes_where_the_environment_variable_says(tmp_path, server, monkeypatch):
    monkeypatch.setenv("GPUCLF_DATA", str(tmp_path / "there"))
    assert_is_the_made_data(load_cifar10())
    assert (tmp_path / "there" / "cifar-10-batches-py").is_dir()


def test_download_that_breaks_off_is_continued(tmp_path, server):
    server.break_after = (1000, 5000)
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [None, "bytes=1000-", "bytes=5000-"]


def test_download_is_continued_by_the_next_call(tmp_path, server):
    server.break_after = (1000,) * 4
    message = download_message(tmp_path)
    assert server.url in message
    assert "1,000 bytes that arrived are kept" in message
    assert f"put it into {tmp_path}" in message
    assert (tmp_path / PART).stat().st_size == 1000
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested[-1] == "bytes=1000-"
    assert not (tmp_path / PART).exists()


def test_server_without_ranges_sends_everything_again(tmp_path, server):
    server.ranges = False
    server.break_after = (1000,)
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [None, "bytes=1000-"]


def test_partial_file_that_is_complete_is_only_checked(tmp_path, server):
    (tmp_path / PART).write_bytes(server.content)
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [f"bytes={len(server.content)}-"]


def test_partial_file_that_is_too_long_is_dropped(tmp_path, server):
    (tmp_path / PART).write_bytes(server.content + b"more")
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [f"bytes={len(server.content) + 4}-", None]


@pytest.mark.parametrize("stale", [False, True])
def test_wrong_checksum_removes_the_download(tmp_path, server, stale):
    if stale:
        (tmp_path / PART).write_bytes(b"something else")
    else:
        server.content = server.content[:-1] + b"x"
    message = download_message(tmp_path)
    assert server.url in message
    assert re.search("is not CIFAR-10: expected MD5 [0-9a-f]{32}, found [0-9a-f]{32}", message)
    assert "deleted" in message
    assert list(tmp_path.iterdir()) == []
    assert len(server.requested) == 1


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (503, 4)])
def test_server_errors_are_reported(tmp_path, server, status, attempts):
    server.status = status
    message = download_message(tmp_path)
    assert str(status) in message
    assert server.url in message
    assert "other means" in message
    assert len(server.requested) == attempts


def test_no_network(tmp_path, server, monkeypatch):
    trust(monkeypatch, b"", url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    message = download_message(tmp_path)
    assert "could not be downloaded from http://127.0.0.1:9/" in message
    assert "kept" not in message


def test_download_folder_that_cannot_be_made(tmp_path, server):
    (tmp_path / "file").write_bytes(b"")
    assert "could not be written to" in download_message(tmp_path / "file" / "folder")


@pytest.mark.parametrize("suffix", [".part", ".tmp"])
def test_old_parts_of_others_are_swept(tmp_path, server, suffix):
    old, new = (tmp_path / f".cifar-10-python.tar.gz.{name}{suffix}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    load_cifar10(tmp_path)
    assert old.exists() == (suffix == ".tmp")
    assert new.exists()


def without_locks(monkeypatch):
    @contextmanager
    def alone_in(folder):
        yield False

    monkeypatch.setattr(cifar10, "alone_in", alone_in)


def test_download_where_there_are_no_locks(tmp_path, server, monkeypatch):
    without_locks(monkeypatch)
    server.break_after = (1000,)
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [None, "bytes=1000-"]


def test_without_locks_a_failed_download_leaves_nothing(tmp_path, server, monkeypatch):
    without_locks(monkeypatch)
    server.break_after = (1000,) * 4
    assert "kept" not in download_message(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_waited_for_the_folder_finds_the_data_in_it(tmp_path, server, caplog):
    root = tmp_path / "new"
    with ThreadPoolExecutor(4) as pool:
        for data in pool.map(load_cifar10, [root] * 4):
            assert_is_the_made_data(data)
    assert server.requested == [None]
    assert "another process is at work" in caplog.text


LOADS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dataclasses
from gpuclf.datasets import cifar10, download, load_cifar10
cifar10._ROWS_PER_BATCH = {rows}
download._CHUNK_BYTES = 500
python, binary = cifar10._VERSIONS
cifar10._VERSIONS = dataclasses.replace(python, md5={md5!r}, url={url!r}), binary
if {without_locks}:
    import contextlib
    cifar10.alone_in = lambda folder: contextlib.nullcontext(False)
load_cifar10(Path(sys.argv[1]))
print("loaded")
"""


def process_that_loads(folder, server, without_locks=False):
    script = LOADS.format(
        tests=str(Path(__file__).parent),
        rows=ROWS,
        md5=hashlib.md5(server.content).hexdigest(),
        url=server.url,
        without_locks=without_locks,
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.essential_cases(1, in_ci=1)
@pytest.mark.slow
@pytest.mark.parametrize("without_locks", [False, True])
def test_two_processes_download_into_one_empty_folder(tmp_path, server, without_locks):
    for pair in range(PAIRS):
        root = tmp_path / str(pair)
        processes = [process_that_loads(root, server, without_locks) for _ in range(2)]
        for process in processes:
            output, errors = process.communicate(timeout=60)
            assert output == "loaded\n", errors
        assert sorted(p.name for p in root.iterdir()) == [
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
        ]


@pytest.mark.slow
def test_a_killed_download_is_continued(tmp_path, server):
    server.pause_after = 20_000
    process = process_that_loads(tmp_path, server)
    server.paused.wait(60)
    while not (tmp_path / PART).exists() or (tmp_path / PART).stat().st_size < 10_000:
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    server.pause_after = None
    server.go_on.set()
    kept = (tmp_path / PART).stat().st_size
    assert_is_the_made_data(load_cifar10(tmp_path))
    assert server.requested == [None, f"bytes={kept}-"]
    assert leftovers(tmp_path) == []
