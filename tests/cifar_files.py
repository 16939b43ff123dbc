"""CIFAR-10 in small: the files of both versions, good and bad."""

import dataclasses
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from gpuclf.datasets import (
    DatasetError,
    cifar10,
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


def batch_with(**changes):
    data, labels = make_batches()[0]
    batch = {b"data": data, b"labels": labels.tolist()}
    batch.update({key.encode(): value for key, value in changes.items()})
    return {key: value for key, value in batch.items() if value is not None}
