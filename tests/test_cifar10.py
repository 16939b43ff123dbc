import copy
import dataclasses
import functools
import hashlib
import http.server
import io
import os
import pickle
import re
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from gpuclf.datasets import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    cifar10,
    download,
    load_cifar10,
)

ROWS = 20
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
BATCHES = (*BATCHES, "test_batch")


@pytest.fixture(autouse=True)
def no_data_but_the_test_s_own(monkeypatch, tmp_path, request):
    if request.node.get_closest_marker("real_data"):
        return
    monkeypatch.delenv("GPUCLF_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "_ROWS_PER_BATCH", ROWS)


def make_batches():
    """Return six (data, labels) pairs of random content."""
    rng = np.random.default_rng(7)
    return [
        (rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.integers(0, 10, ROWS)) for _ in BATCHES
    ]


def string(text):
    return b"T" + struct.pack("<I", len(text)) + text


def python2_batch(data, labels):
    """Return the pickle that Python 2 and NumPy 1 wrote, opcode by opcode as in the original."""
    return b"".join(
        [
            b"\x80\x02}(",
            string(b"batch_label") + string(b"training batch 1 of 5"),
            string(b"labels") + b"](" + b"".join(b"K" + bytes([v]) for v in labels) + b"e",
            string(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85",
            string(b"b") + b"\x87R(K\x01",
            b"M" + struct.pack("<H", data.shape[0]) + b"M" + struct.pack("<H", data.shape[1]),
            b"\x86cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(data.tobytes()) + b"tb",
            b"u.",
        ]
    )


def python_files():
    files = {
        name: python2_batch(*batch) for name, batch in zip(BATCHES, make_batches(), strict=True)
    }
    meta = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    files["batches.meta"] = pickle.dumps(meta, protocol=2)
    return files


def binary_files():
    files = {
        f"{name}.bin": np.column_stack([labels.astype(np.uint8), data]).tobytes()
        for name, (data, labels) in zip(BATCHES, make_batches(), strict=True)
    }
    files["batches.meta.txt"] = ("\n".join(NAMES) + "\n\n").encode()
    return files


VERSIONS = {
    "python": ("cifar-10-batches-py", "cifar-10-python.tar.gz", python_files),
    "binary": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", binary_files),
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tar_of(members):
    """Return a .tar.gz of (TarInfo or name, content) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def archive_of(version):
    folder, _, files = VERSIONS[version]
    return tar_of(
        [(f"{folder}/readme.html", b"<p>"), *((f"{folder}/{k}", v) for k, v in files().items())]
    )


def trust(monkeypatch, content, version="python", url=None):
    """Make the checksum (and URL) of a version those of `content`."""
    changed = []
    for original in cifar10._VERSIONS:
        if original.name == version:
            md5 = hashlib.md5(content).hexdigest()
            original = dataclasses.replace(original, md5=md5, url=url or original.url)
        changed.append(original)
    monkeypatch.setattr(cifar10, "_VERSIONS", tuple(changed))


def assert_is_the_made_data(data):
    *train, test = make_batches()
    np.testing.assert_array_equal(data.X_train, np.concatenate([X for X, _ in train]))
    np.testing.assert_array_equal(data.y_train, np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(data.X_test, test[0])
    np.testing.assert_array_equal(data.y_test, test[1])
    assert [a.dtype for a in data] == [np.uint8, np.int64, np.uint8, np.int64]
    assert data.class_names == NAMES


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# --- finding and reading -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("nested", [True, False])
def test_both_versions_give_the_same_arrays(tmp_path, version, nested):
    name, _, files = VERSIONS[version]
    folder = write(tmp_path / name, files())
    data = load_cifar10(tmp_path if nested else folder, download=False)
    assert_is_the_made_data(data)
    assert data.name == "CIFAR-10"
    assert data.source == f"CIFAR-10, {version} version, {folder}"


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_batches_rewritten_by_python_3_are_read(tmp_path, module):
    for name, (data, labels) in zip(BATCHES, make_batches(), strict=True):
        content = pickle.dumps({b"data": data, b"labels": labels.tolist()}, protocol=2)
        content = content.replace(b"numpy._core.multiarray", module.encode())
        (tmp_path / name).write_bytes(content)
    assert_is_the_made_data(load_cifar10(tmp_path))


def test_column_major_arrays_are_read(tmp_path):
    write(tmp_path, python_files())
    data, labels = make_batches()[0]
    batch = {b"data": np.asfortranarray(data), b"labels": labels.tolist()}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    assert_is_the_made_data(load_cifar10(tmp_path))


@pytest.mark.parametrize("version", VERSIONS)
def test_class_names_have_a_default(tmp_path, version):
    files = VERSIONS[version][2]()
    del files["batches.meta" if version == "python" else "batches.meta.txt"]
    assert_is_the_made_data(load_cifar10(write(tmp_path, files)))


def test_unpacks_into_four_arrays_and_keeps_its_description(tmp_path):
    data = load_cifar10(write(tmp_path, binary_files()))
    X_train, _y_train, _X_test, y_test = data
    assert X_train is data.X_train
    assert y_test is data.y_test
    assert len(data) == 4
    for same in (copy.copy(data), pickle.loads(pickle.dumps(data))):
        assert isinstance(same, ImageDataset)
        assert (same.name, same.class_names, same.source) == ("CIFAR-10", NAMES, data.source)
    fewer = data._replace(X_train=X_train[:3], name="part")
    assert fewer.X_train.shape == (3, 3072)
    assert (fewer.name, fewer.source) == ("part", data.source)
    assert "X_train=(3, 3072)" in repr(fewer)


def test_environment_variable_names_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "there" / "cifar-10-batches-bin", binary_files())
    monkeypatch.setenv("GPUCLF_DATA", str(tmp_path / "there"))
    assert_is_the_made_data(load_cifar10())


def test_cache_folder_is_the_default(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("GPUCLF_DATA", "")
    write(tmp_path / "cache" / "gpuclf" / "cifar-10-batches-py", python_files())
    assert_is_the_made_data(load_cifar10(download=False))


def test_given_folder_without_data_is_not_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCLF_DATA", str(write(tmp_path / "there", binary_files())))
    with pytest.raises(DatasetNotFoundError):
        load_cifar10(tmp_path / "elsewhere", download=False)


def test_not_found_names_places_and_remedies(tmp_path):
    with pytest.raises(DatasetNotFoundError) as caught:
        load_cifar10(tmp_path, download=False)
    message = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ValueError)
    for place in (tmp_path, *(tmp_path / n for version in VERSIONS.values() for n in version[:2])):
        assert f"\n    {place}\n" in message
    for remedy in ("download=True", "data_dir=", "GPUCLF_DATA"):
        assert remedy in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_a_folder_is_refused(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match="is not a folder"):
        load_cifar10(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_incomplete_folder_names_what_is_missing(tmp_path, version):
    name, _, files = VERSIONS[version]
    files = files()
    missing = [n for n in files if n.startswith(("data_batch_3", "test_batch"))]
    for absent in missing:
        del files[absent]
    folder = write(tmp_path / name, files)
    with pytest.raises(DatasetError) as caught:
        load_cifar10(tmp_path)
    assert f"{folder} holds an incomplete CIFAR-10" in str(caught.value)
    assert f"{', '.join(missing)} are missing" in str(caught.value)


def test_complete_version_is_used_beside_an_incomplete_one(tmp_path):
    write(tmp_path / "cifar-10-batches-py", {"data_batch_1": b""})
    write(tmp_path / "cifar-10-batches-bin", binary_files())
    assert_is_the_made_data(load_cifar10(tmp_path))


# --- damaged files -------------------------------------------------------------------------------


def message_for(tmp_path, version, name, content):
    """Return the error message after one file of a good data set is replaced by `content`."""
    folder = write(tmp_path, VERSIONS[version][2]())
    (folder / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        load_cifar10(folder)
    message = str(caught.value)
    assert str(folder / name) in message
    assert "elete" in message
    return message


@pytest.mark.parametrize("change", [-1, 1, -ROWS * 3073])
def test_binary_file_of_wrong_size(tmp_path, change):
    size = ROWS * 3073
    message = message_for(tmp_path, "binary", "data_batch_4.bin", bytes(size + change))
    assert f"expected {size:,} bytes" in message
    assert f"found {size + change:,} bytes" in message


def test_binary_files_of_full_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_ROWS_PER_BATCH", 10_000)
    for name in BATCHES:
        with (tmp_path / f"{name}.bin").open("wb") as file:
            file.truncate(30_730_000)
    os.truncate(tmp_path / "test_batch.bin", 30_729_999)
    with pytest.raises(DatasetError, match=r"test_batch\.bin .* expected 30,730,000 bytes"):
        load_cifar10(tmp_path)
    os.truncate(tmp_path / "test_batch.bin", 30_730_000)
    data = load_cifar10(tmp_path)
    assert data.X_train.shape == (50_000, 3072)
    assert data.y_test.shape == (10_000,)


def test_binary_label_out_of_range(tmp_path):
    content = bytearray(ROWS * 3073)
    content[3073 * 6] = 10
    message = message_for(tmp_path, "binary", "test_batch.bin", bytes(content))
    assert "expected labels 0..9, found label 10 in record 6" in message


@pytest.mark.parametrize("content", [b"", b"cat\ndog\n", bytes([200, 10]) * 10])
@pytest.mark.parametrize("version", VERSIONS)
def test_damaged_class_names(tmp_path, version, content):
    name = "batches.meta" if version == "python" else "batches.meta.txt"
    message_for(tmp_path, version, name, content)


@pytest.mark.parametrize("names", [[b"cat"] * 9, ["cat"] * 10, None, [1] * 10])
def test_wrong_class_names_in_a_good_pickle(tmp_path, names):
    content = pickle.dumps({b"label_names": names}, protocol=2)
    if names == ["cat"] * 10:
        content = content.replace(b"X\x03\x00\x00\x00cat", b"X\x03\x00\x00\x00dog")
    message_for(tmp_path, "python", "batches.meta", content)


@pytest.mark.parametrize("kept", [0, 1, 40, 1000, ROWS * 3072, -1])
def test_python_file_cut_short(tmp_path, kept):
    content = python2_batch(*make_batches()[0])[:kept]
    message = message_for(tmp_path, "python", "data_batch_1", content)
    assert "expected a complete pickle" in message
    assert f"{len(content):,} bytes" in message


def test_python_file_far_too_large(tmp_path):
    folder = write(tmp_path, python_files())
    os.truncate(folder / "data_batch_2", 64 * 2**20 + 1)
    with pytest.raises(DatasetError, match=r"data_batch_2 .* at most 67,108,864 bytes"):
        load_cifar10(folder)


def batch_with(**changes):
    data, labels = make_batches()[0]
    batch = {b"data": data, b"labels": labels.tolist()}
    batch.update({key.encode(): value for key, value in changes.items()})
    return {key: value for key, value in batch.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        ([1, 2], "a pickled dict", "type list"),
        (batch_with(data=None), r"b'data' to be uint8 of shape \(20, 3072\)", "nothing"),
        (batch_with(data=b"abc"), "b'data' to be uint8", "type bytes"),
        (batch_with(data=np.zeros((ROWS, 3071), np.uint8)), "b'data'", r"shape \(20, 3071\)"),
        (batch_with(data=np.zeros((ROWS, 3072), np.int8)), "arrays of uint8", "dtype 'i1'"),
        (batch_with(data=np.zeros((ROWS, 3072), np.float32)), "arrays of uint8", "dtype 'f4'"),
        (batch_with(data=np.empty((ROWS, 3072), object)), "arrays of uint8", "dtype 'O8'"),
        (batch_with(labels=None), "b'labels' to be a list", "nothing"),
        (batch_with(labels=np.zeros(ROWS, np.uint8)), "b'labels' to be a list", "PickledArray"),
        (batch_with(labels=[1] * (ROWS - 1)), "a list of 20 integers", "19 of them"),
        (batch_with(labels=[1, 2, 10] + [0] * 17), r"integers 0\.\.9", "10 at position 2"),
        (batch_with(labels=[-1] + [0] * 19), r"integers 0\.\.9", "-1 at position 0"),
        (batch_with(labels=[0] * 19 + [True]), r"integers 0\.\.9", "type bool at position 19"),
        (batch_with(labels=[1.0] * 20), r"integers 0\.\.9", "type float at position 0"),
        (batch_with(labels=[10**5000] + [0] * 19), r"integers 0\.\.9", "type int at position 0"),
    ],
)
def test_wrong_content_of_a_good_pickle(tmp_path, content, expected, found):
    message = message_for(tmp_path, "python", "test_batch", pickle.dumps(content, protocol=2))
    assert re.search(f"expected .*{expected}.*, found .*{found}", message)


# --- hostile pickles -----------------------------------------------------------------------------


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (functools.partial, "functools.partial"),
        (np.load, "numpy.load"),
    ],
)
def test_calls_of_anything_else_are_refused_and_not_made(tmp_path, protocol, function, name):
    trace = tmp_path / "trace"
    command = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    nested = {b"data": [({b"x": Calls(function, command)},)], b"labels": []}
    message = message_for(
        tmp_path / "data", "python", "data_batch_2", pickle.dumps(nested, protocol=protocol)
    )
    assert "is not CIFAR-10" in message
    assert f"{name}, which" in message
    assert "Do not open this file with pickle" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0eobject.__new__\x93.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy.testing._private.utils\nrunstring\n.",
    ],
)
def test_every_opcode_that_names_a_global_is_refused(tmp_path, program):
    message = message_for(tmp_path, "python", "batches.meta", program)
    assert "is not CIFAR-10" in message


@pytest.mark.parametrize(
    "program",
    [
        # ndarray and dtype called, or given a state, as NumPy never writes it.
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy\nndarray\n}S'a'\nI1\nsb.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\ndtype\n((lS'u1'\nS'O'\nttR.",
        b"cnumpy\ndtype\n}S'a'\nI1\nsb.",
        b"cnumpy.core.multiarray\n_reconstruct\nN}S'__call__'\nI1\ns\x86b.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-1\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS''\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I9\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'a'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tRNb.",
        b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.",
        # Memory, memo and persistent objects.
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"h\x07.",
        b"S'a'\nQ.",
        b"\x82\x01.",
    ],
)
def test_forged_arrays_and_other_tricks_are_refused(tmp_path, program):
    message_for(tmp_path, "python", "batches.meta", program)


def test_arrays_without_a_state_are_refused(tmp_path):
    program = b"}(" + string(b"data") + b"cnumpy.core.multiarray\n_reconstruct\n(tRu."
    assert "expected b'data'" in message_for(tmp_path, "python", "data_batch_1", program)


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


def test_interrupted_unpacking_is_not_mistaken_for_the_data(tmp_path, monkeypatch):
    copy_member = cifar10._unpack_member
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        copy_member(*arguments)

    content = archive_of("python")
    monkeypatch.setattr(cifar10, "_unpack_member", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path, monkeypatch, content)
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert_is_the_made_data(unpack(tmp_path, monkeypatch, content))


def test_another_process_that_unpacked_first_is_no_error(tmp_path, monkeypatch):
    copy_member = cifar10._unpack_member
    target = tmp_path / "root" / "cifar-10-batches-py"

    def overtaken(*arguments):
        if not target.exists():
            write(target, python_files())
        copy_member(*arguments)

    monkeypatch.setattr(cifar10, "_unpack_member", overtaken)
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

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested = []
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
    assert "does not match the known hash" in message
    assert "Deleted download" in message
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


# --- the real thing ------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_data():
    data = load_cifar10(Path(os.environ["GPUCLF_DATA"]), download=False)
    assert data.X_train.shape == (50_000, 3072)
    assert data.X_test.shape == (10_000, 3072)
    np.testing.assert_array_equal(np.bincount(data.y_train), 5000)
    np.testing.assert_array_equal(np.bincount(data.y_test), 1000)
    assert data.class_names == NAMES
    # The mean colour of the training set is well known: 125.3, 123.0, 113.9.
    means = [data.X_train[:, i : i + 1024].mean() for i in (0, 1024, 2048)]
    np.testing.assert_allclose(means, [125.307, 122.950, 113.865], atol=1e-3)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in data)).hexdigest()
    assert digest == "9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df"
