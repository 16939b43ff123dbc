import gzip
import struct

import numpy as np
import pytest

from gpuclf.datasets import DatasetError, load_samples
from gpuclf.datasets.idx import read_idx

RNG = np.random.default_rng(5)
PARTS = {
    "train": (RNG.integers(0, 256, (30, 6, 5), np.uint8), np.arange(30, dtype=np.uint8) % 10),
    "t10k": (RNG.integers(0, 256, (20, 6, 5), np.uint8), np.arange(20, dtype=np.uint8) % 10),
}


def idx(values, kind=8):
    """Return an IDX file by the format's definition."""
    header = bytes([0, 0, kind, values.ndim]) + b"".join(struct.pack(">I", n) for n in values.shape)
    return header + values.tobytes()


def add(folder, zipped=False, dot="-", prefix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for part, (X, y) in PARTS.items():
        for name, values in ((f"images{dot}idx3", X), (f"labels{dot}idx1", y)):
            path = folder / f"{prefix}{part}-{name}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(idx(values)) if zipped else idx(values))
    return folder


def assert_is_the_made_data(data):
    for X, y, (images, labels) in zip(data[::2], data[1::2], PARTS.values(), strict=True):
        np.testing.assert_array_equal(X, images.reshape(len(images), -1))
        np.testing.assert_array_equal(y, labels)
        assert (X.dtype, y.dtype) == (np.uint8, np.int64)
    assert data.image_shape == (1, 6, 5)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_mnist(tmp_path, zipped, dot, place):
    add(tmp_path / place, zipped, dot)
    data = load_samples(tmp_path)
    assert_is_the_made_data(data)
    assert data.class_names == tuple("0123456789")
    assert data.name == "MNIST"


def test_fashion_mnist_is_known_by_its_folder(tmp_path):
    data = load_samples(add(tmp_path / "FashionMNIST" / "raw"))
    assert data.name == "Fashion-MNIST"
    assert (data.class_names[0], data.class_names[9]) == ("T-shirt/top", "Ankle boot")


def test_one_of_the_files_stands_for_all(tmp_path):
    add(tmp_path, zipped=True)
    assert_is_the_made_data(load_samples(tmp_path / "train-images-idx3-ubyte.gz"))


def test_several_data_sets_in_a_folder(tmp_path):
    add(tmp_path, prefix="emnist-digits-")
    add(tmp_path, prefix="emnist-mnist-")
    with pytest.raises(DatasetError, match=r"'emnist-digits-', 'emnist-mnist-'.*Give one of"):
        load_samples(tmp_path)
    assert_is_the_made_data(load_samples(tmp_path / "emnist-mnist-train-labels-idx1-ubyte"))


def test_training_files_alone_give_the_test_part(tmp_path):
    add(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    data = load_samples(tmp_path, test_fraction=1 / 3)
    assert np.bincount(data.y_train).tolist() == [2] * 10
    assert np.bincount(data.y_test).tolist() == [1] * 10


def test_images_without_labels(tmp_path):
    add(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match="not the labels of the test part"):
        load_samples(tmp_path)


def test_images_of_another_number_than_labels(tmp_path):
    add(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx(PARTS["train"][1][:29]))
    with pytest.raises(DatasetError, match=r"has 30 images, .* 29 labels"):
        load_samples(tmp_path)


def test_images_are_stretched(tmp_path):
    data = load_samples(add(tmp_path), size=(12, 10))
    assert (data.image_shape, data.X_test.shape) == ((1, 12, 10), (20, 120))


# --- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found none"),
        (b"\0\0\x08", "found 00 00 08"),
        (idx(np.zeros((2, 3, 4), np.uint8), kind=13), "00 00 08 03, of images, found 00 00 0d 03"),
        (idx(np.zeros(5, np.uint8)), "found 00 00 08 01"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:10], "3 lengths of axes, found 6 bytes"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:-1], "24 bytes of values.* found 23"),
        (idx(np.zeros((2, 3, 4), np.uint8)) + b"x", "24 bytes of values.* found (25|more)"),
        (idx(np.zeros((2, 0, 4), np.uint8)), r"at least 1, found shape \(2, 0, 4\)"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"x" * 99, "found 99"),
    ],
)
def test_what_the_header_says_must_be_there(tmp_path, content, expected, zipped):
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DatasetError, match=expected) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path, monkeypatch):
    """The file says 2**60 values; nothing of the kind may be allocated."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\x00\x10\0\0" * 3 + b"x" * 99))
    monkeypatch.setattr(np, "empty", lambda *args: pytest.fail(f"allocated {args}"))
    with pytest.raises(DatasetError, match="1,152,921,504,606,846,976 bytes of values"):
        read_idx(path, 3)


def test_every_cut_of_a_zipped_file_is_refused(tmp_path):
    whole = gzip.compress(idx(PARTS["train"][0]))
    path = tmp_path / "a.gz"
    for i in range(0, len(whole), 11):
        path.write_bytes(whole[:i])
        with pytest.raises(DatasetError):
            read_idx(path, 3)


def test_a_changed_bit_of_a_zipped_file_is_refused_or_meaningless(tmp_path):
    whole = bytearray(gzip.compress(idx(PARTS["train"][0])))
    path = tmp_path / "a.gz"
    for i in range(10, len(whole), 13):
        changed = whole.copy()
        changed[i] ^= 16
        path.write_bytes(changed)
        try:
            values = read_idx(path, 3)
        except DatasetError:
            continue
        np.testing.assert_array_equal(values, PARTS["train"][0])  # a bit that pads


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_idx(tmp_path / "a", 3)
