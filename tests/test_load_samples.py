import io
import itertools
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from gpuclf.datasets import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    cifar10,
    cifar100,
    load_cifar100,
    load_samples,
    to_rows,
)
from gpuclf.datasets.splitting import stratified_split, with_test_part

RNG = np.random.default_rng(11)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)
LABELS = np.arange(20) % 4
FEATURES = RNG.standard_normal((20, 7)).astype(np.float32)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# --- arrays --------------------------------------------------------------------------------------


def test_npz_of_images_and_labels(tmp_path):
    np.savez(tmp_path / "a.npz", X=IMAGES, y=LABELS)
    data = load_samples(tmp_path / "a.npz", test_fraction=0)
    np.testing.assert_array_equal(data.X_train, to_rows(IMAGES))
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.class_names == ("0", "1", "2", "3")
    assert (data.name, data.image_shape, len(data.X_test)) == ("a", (3, 6, 5), 0)


@pytest.mark.parametrize(
    "names",
    [
        ("X_train", "y_train", "X_test", "y_test"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X", "y", "X_test", "y_test"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_a_test_part(tmp_path, names, save):
    labels = LABELS.reshape(-1, 1)  # as Keras and MedMNIST store them
    save(
        tmp_path / "a.npz",
        **dict(zip(names, (IMAGES, labels, IMAGES[:3], labels[:3]), strict=True)),
    )
    data = load_samples(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.X_train, to_rows(IMAGES))
    np.testing.assert_array_equal(data.X_test, to_rows(IMAGES[:3]))
    assert data.y_test.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_of_floats_are_kept_as_they_are(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", X=FEATURES.astype(dtype), y=LABELS)
    data = load_samples(tmp_path / "a.npz", test_fraction=0)
    np.testing.assert_array_equal(data.X_train, FEATURES.astype(dtype))
    assert (data.X_train.dtype, data.image_shape) == (np.dtype(dtype), None)
    with pytest.raises(ValueError, match=r"rows of numbers, not images; leave size out"):
        load_samples(tmp_path / "a.npz", size=4)


def test_images_of_floats_become_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", X=IMAGES / 255, y=LABELS)
    np.testing.assert_array_equal(
        load_samples(tmp_path / "a.npz", test_fraction=0).X_train, to_rows(IMAGES)
    )
    np.savez(tmp_path / "a.npz", X=IMAGES / 100, y=LABELS)
    with pytest.raises(DatasetError, match=r"a\.npz: X are .*, neither fractions"):
        load_samples(tmp_path / "a.npz")


def test_a_layout_that_the_shape_does_not_tell(tmp_path):
    images = IMAGES[:, :3]
    np.savez(tmp_path / "a.npz", X=images, y=LABELS)
    with pytest.raises(DatasetError, match="give layout='NCHW' for the first"):
        load_samples(tmp_path / "a.npz")
    data = load_samples(tmp_path / "a.npz", test_fraction=0, layout="NHWC")
    np.testing.assert_array_equal(data.X_train, to_rows(images, layout="NHWC"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["|u1", ">i4", "<i8"])
def test_orders_of_memory_and_bytes(tmp_path, order, dtype):
    stored = np.array(IMAGES, dtype=dtype, order=order)
    np.savez(tmp_path / "a.npz", X=stored, y=LABELS.astype(">i2"))
    data = load_samples(tmp_path / "a.npz", test_fraction=0)
    np.testing.assert_array_equal(data.X_train, to_rows(IMAGES))
    np.testing.assert_array_equal(data.y_train, LABELS)


@pytest.mark.parametrize(
    ("labels", "names", "encoded"),
    [
        (["cat", "ant", "cat", "bee"], ("ant", "bee", "cat"), [2, 0, 2, 1]),
        ([b"cat", b"ant", b"cat", b"bee"], ("ant", "bee", "cat"), [2, 0, 2, 1]),
        ([10, 9, 10, -1], ("-1", "9", "10"), [2, 1, 2, 0]),
        ([1.0, 0.0, 1.0, 2.0], ("0", "1", "2"), [1, 0, 1, 2]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_labels_of_any_kind(tmp_path, labels, names, encoded):
    np.savez(tmp_path / "a.npz", X=FEATURES[:4], y=np.array(labels))
    data = load_samples(tmp_path / "a.npz", test_fraction=0)
    assert (data.class_names, data.y_train.tolist()) == (names, encoded)
    assert data.y_train.dtype == np.int64


def test_test_labels_count_in_the_classes_of_training(tmp_path):
    y, y_test = np.array(["cat", "ant", "cat", "bee"]), np.array(["cat", "bee"])
    np.savez(tmp_path / "a.npz", X=FEATURES[:4], y=y, X_test=FEATURES[:2], y_test=y_test)
    data = load_samples(tmp_path / "a.npz")
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([2, 0, 2, 1], [2, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": FEATURES}, "holds 'a'; expected X and y"),
        ({"X": FEATURES, "y": LABELS, "X_test": FEATURES}, "one of .* is missing"),
        ({"X": FEATURES, "y": LABELS[:5]}, r"\(20, 7\) samples and \(5,\) labels"),
        ({"X": FEATURES, "y": LABELS / 3}, "labels of dtype float64, expected integers"),
        ({"X": FEATURES, "y": np.eye(20)}, r"shape \(20, 20\).*y.argmax\(axis=1\)"),
        ({"X": IMAGES[0], "y": LABELS[:6]}, "6 grey images of 5 x 3"),
        (
            {"X": FEATURES, "y": LABELS, "X_test": FEATURES[:1], "y_test": np.array([7])},
            "test label 7, which no training sample has",
        ),
        (
            {"X": FEATURES, "y": LABELS, "X_test": FEATURES[:1, :3], "y_test": LABELS[:1]},
            r"shape \(7,\) and test samples of \(3,\)",
        ),
        (
            {"X": FEATURES, "y": LABELS, "X_test": FEATURES.astype(float), "y_test": LABELS},
            "of float32 and test samples of float64",
        ),
        (
            {"X": FEATURES, "y": LABELS, "X_test": FEATURES, "y_test": LABELS.astype(str)},
            "use one kind for both",
        ),
        ({"X": FEATURES, "y": np.array(["a", 1] * 10, object)}, "Objects are never loaded"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        load_samples(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("samples", "labels"),
    [
        ("X.npy", "y.npy"),
        ("X_train.npy", "y_train.npy"),
        ("train_images.npy", "train_labels.npy"),
        ("digits.npy", "digits_labels.npy"),
        ("digits.npy", "digits_y.npy"),
        ("digits.npy", "labels.npy"),
        ("digits.npy", "y.npy"),
    ],
)
def test_npy_with_its_labels_beside_it(tmp_path, samples, labels):
    np.save(tmp_path / samples, IMAGES)
    np.save(tmp_path / labels, LABELS)
    data = load_samples(tmp_path / samples, test_fraction=0)
    np.testing.assert_array_equal(data.X_train, to_rows(IMAGES))
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_npy_without_labels_says_where_it_looked(tmp_path):
    np.save(tmp_path / "X.npy", IMAGES)
    with pytest.raises(DatasetNotFoundError, match=r"expected y\.npy or X_labels\.npy"):
        load_samples(tmp_path / "X.npy")


def test_a_folder_of_npy_files(tmp_path):
    for part, n in (("train", 20), ("test", 5)):
        np.save(tmp_path / f"X_{part}.npy", IMAGES[:n])
        np.save(tmp_path / f"y_{part}.npy", LABELS[:n])
    data = load_samples(tmp_path)
    assert (len(data.X_train), len(data.X_test), data.name) == (20, 5, tmp_path.name)
    for name in ("X_train", "y_train"):
        (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(DatasetError, match=r"has X_test\.npy, but nothing to train on"):
        load_samples(tmp_path)


def header(text):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        npy(FEATURES)[:-1],
        npy(FEATURES) + b"x",
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -20)}") + bytes(20),
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + pickle.dumps([1]),
        header("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,)}") + b"1",
        header("{'descr': '|u1'"),
        header("(" * 90),
        b"\x93NUMPY\x09\x00" + bytes(200),
    ],
)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_altered_arrays_are_refused_before_they_are_read(tmp_path, content, form):
    path = tmp_path / f"X.{form}"
    if form == "npy":
        path.write_bytes(content)
        np.save(tmp_path / "y.npy", LABELS)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("X.npy", content)
            archive.writestr("y.npy", npy(LABELS))
    with pytest.raises(DatasetError, match=r"X\.np"):
        load_samples(path)


def test_every_cut_and_changed_archive_is_refused_or_the_same(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, X=FEATURES, y=LABELS)
    whole = path.read_bytes()
    for i in range(0, len(whole), 9):
        path.write_bytes(whole[:i])
        with pytest.raises(DatasetError):
            load_samples(path)
        changed = bytearray(whole)
        changed[i] ^= 32
        path.write_bytes(changed)
        try:
            data = load_samples(path, test_fraction=0)
        except DatasetError:
            continue
        np.testing.assert_array_equal(data.X_train, FEATURES)  # a date or the like was changed


def test_an_archive_that_claims_more_than_it_can_hold(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", npy(FEATURES))
        archive.writestr("y.npy", npy(LABELS))
        archive.infolist()[0].file_size = 1 << 31
    with pytest.raises(DatasetError, match="cannot hold 2,147,483,648"):
        load_samples(path)


# --- CIFAR ---------------------------------------------------------------------------------------


@pytest.fixture
def short_cifar(monkeypatch):
    monkeypatch.setattr(cifar10, "_ROWS_PER_BATCH", 10)
    monkeypatch.setattr(cifar100, "_ROWS", {"train": 20, "test": 10})


def python2_pickle(content):
    """Return the pickle of a dict as Python 2 and NumPy 1 wrote it, of lists and one array."""
    n_memos = itertools.count()

    def memo():
        n = next(n_memos)
        return b"q" + bytes([n]) if n < 256 else b"r" + struct.pack("<I", n)

    def string(text):
        short = len(text) < 256
        length = b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<I", len(text))
        return length + text + memo()

    def array(values):
        lengths = b"".join(b"J" + struct.pack("<i", n) for n in values.shape)
        return b"".join(
            [
                b"cnumpy.core.multiarray\n_reconstruct\n" + memo() + b"cnumpy\nndarray\n" + memo(),
                b"K\x00\x85" + memo() + string(b"b") + b"\x87" + memo() + b"R" + memo(),
                b"(K\x01" + lengths + b"\x86" + memo() + b"cnumpy\ndtype\n" + memo(),
                string(b"u1") + b"K\x00K\x01\x87" + memo() + b"R" + memo(),
                b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + memo(),
                b"b\x89" + string(values.tobytes()) + b"t" + memo() + b"b",
            ]
        )

    def value(v):
        if isinstance(v, np.ndarray):
            return array(v)
        empty = b"]" + memo()
        items = [string(i) if isinstance(i, bytes) else b"K" + bytes([i]) for i in v]
        appended = (b"(" + b"".join(items[i : i + 1000]) + b"e" for i in range(0, len(v), 1000))
        return empty + b"".join(appended)

    start = b"\x80\x02}" + memo() + b"("
    return start + b"".join(string(k) + value(v) for k, v in content.items()) + b"u."


def add_cifar100(folder, n_train=20, n_test=10, n_pixels=3072):
    folder.mkdir(parents=True)
    made = {}
    for part, n in (("train", n_train), ("test", n_test)):
        X = RNG.integers(0, 256, (n, n_pixels), np.uint8)
        fine = RNG.integers(0, 100, n)
        made[part] = X, fine
        content = {
            b"filenames": [b"%06d.png" % i for i in range(n)],
            b"fine_labels": fine.tolist(),
            b"coarse_labels": (fine // 5).tolist(),
            b"data": X,
        }
        (folder / part).write_bytes(python2_pickle(content))
    names = {
        b"fine_label_names": [b"f%d" % i for i in range(100)],
        b"coarse_label_names": [b"c%d" % i for i in range(20)],
    }
    (folder / "meta").write_bytes(python2_pickle(names))
    return made


@pytest.mark.parametrize("place", ["cifar-100-python", "elsewhere"])
def test_cifar100(tmp_path, short_cifar, place):
    made = add_cifar100(tmp_path / place)
    path = tmp_path if place == "cifar-100-python" else tmp_path / place
    data = load_samples(path)
    coarse = load_cifar100(path, labels="coarse")
    for X, y, part in ((*data[:2], "train"), (*data[2:], "test")):
        np.testing.assert_array_equal(X, made[part][0])
        np.testing.assert_array_equal(y, made[part][1])
    np.testing.assert_array_equal(coarse.y_train, made["train"][1] // 5)
    assert (data.class_names[99], coarse.class_names[19]) == ("f99", "c19")
    assert (data.name, data.image_shape) == ("CIFAR-100", (3, 32, 32))


def test_as_many_images_and_names_as_cifar100_has(tmp_path, monkeypatch):
    """The reader bounds what a pickle may do: the published files must be within."""
    monkeypatch.setattr(cifar100, "_PIXELS", 3)
    made = add_cifar100(tmp_path / "a", 50_000, 10_000, n_pixels=3)
    np.testing.assert_array_equal(load_samples(tmp_path / "a").y_train, made["train"][1])


def test_a_label_beyond_the_classes_of_cifar100(tmp_path, short_cifar):
    add_cifar100(tmp_path / "a")
    content = (tmp_path / "a" / "test").read_bytes()
    at = content.index(b"(K", content.index(b"fine_labels")) + 2
    (tmp_path / "a" / "test").write_bytes(content[:at] + b"\xc8" + content[at + 1 :])
    with pytest.raises(
        DatasetError, match=r"not part of CIFAR-100: .* 0\.\.99, found 200"
    ) as error:
        load_samples(tmp_path / "a")
    assert "CIFAR-10 " not in str(error.value)


def test_cifar100_that_is_not_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="train, test and meta"):
        load_cifar100(tmp_path)
    with pytest.raises(ValueError, match="labels must be 'fine' or 'coarse', got 'all'"):
        load_cifar100(tmp_path, labels="all")


def test_cifar10(tmp_path, short_cifar):
    records = RNG.integers(0, 10, (60, 3073), np.uint8)
    for i in range(6):
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        (tmp_path / name).write_bytes(records[10 * i : 10 * i + 10].tobytes())
    data = load_samples(tmp_path)
    np.testing.assert_array_equal(data.X_train, records[:50, 1:])
    assert (data.name, data.image_shape) == ("CIFAR-10", (3, 32, 32))
    assert load_samples(tmp_path, size=8).X_test.shape == (10, 192)


# --- whichever it is -----------------------------------------------------------------------------


def add_pictures(root, classes, n=4):
    for value, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (6, 6), (value, i, 0)).save(root / name / f"{i}.png")
    return root


def test_a_folder_of_pictures(tmp_path):
    data = load_samples(add_pictures(tmp_path, ("a", "b")))
    assert (data.image_shape, data.class_names) == ((3, 32, 32), ("a", "b"))
    assert (len(data.X_train), len(data.X_test)) == (6, 2)
    assert load_samples(tmp_path, size=(6, 7)).image_shape == (3, 6, 7)


def test_what_is_not_there_or_not_known_lists_the_known_forms(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "b.zip").write_text("")
    (tmp_path / "folder").mkdir()
    for path, found in (
        ("missing", "there is no "),
        ("a.csv", "is a file of type .csv"),
        ("b.zip", "unpack archives first"),
        (".", "is a folder with a.csv, b.zip, folder/"),
        ("folder", "is an empty folder"),
    ):
        with pytest.raises(DatasetError) as error:
            load_samples(tmp_path / path)
        assert found in str(error.value)
        for form in (".npz with X and y", "X.npy with y.npy", "IDX", "CIFAR-100", "PNG, JPEG"):
            assert form in str(error.value)


def test_test_data_of_another_form_are_matched_by_the_classes_names(tmp_path):
    add_pictures(tmp_path / "own", ("ant", "bee", "cow"))
    rows = np.full((2, 32, 32, 3), 7, np.uint8)
    np.savez(tmp_path / "test.npz", X=rows, y=np.array(["cow", "bee"]))
    data = load_samples(tmp_path / "own", test_data=tmp_path / "test.npz")
    assert (len(data.X_train), data.y_test.tolist()) == (12, [2, 1])
    np.testing.assert_array_equal(data.X_test, to_rows(rows))
    assert "tested on" in data.source

    np.savez(tmp_path / "test.npz", X=rows, y=np.array(["cow", "dog"]))
    with pytest.raises(DatasetError, match="classes dog, which the training data do not have"):
        load_samples(tmp_path / "own", test_data=tmp_path / "test.npz")
    with pytest.raises(ValueError, match="test_data or test_fraction, not both"):
        load_samples(tmp_path / "own", test_data=tmp_path / "test.npz", test_fraction=0.1)


def test_test_data_of_another_size(tmp_path):
    add_pictures(tmp_path / "own", ("0", "1"))
    np.savez(tmp_path / "test.npz", X=IMAGES, y=LABELS % 2)
    with pytest.raises(DatasetError, match=r"\(3, 6, 5\).*size=\(height, width\)"):
        load_samples(tmp_path / "own", test_data=tmp_path / "test.npz")
    data = load_samples(tmp_path / "own", size=8, test_data=tmp_path / "test.npz")
    assert data.X_test.shape == (20, 192)


def test_the_test_part_of_test_data_is_taken_where_it_has_one(tmp_path):
    np.savez(tmp_path / "a.npz", X=FEATURES, y=LABELS)
    np.savez(tmp_path / "b.npz", X=FEATURES, y=LABELS, X_test=FEATURES[3:5], y_test=LABELS[3:5])
    data = load_samples(tmp_path / "a.npz", test_data=tmp_path / "b.npz")
    np.testing.assert_array_equal(data.X_test, FEATURES[3:5])


# --- the test part -------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.99])
def test_the_draw_is_stratified_and_each_class_keeps_one(fraction):
    y = np.repeat([0, 1, 2, 3], [1, 2, 10, 100])
    train, test = stratified_split(y, fraction, seed=4)
    assert sorted([*train, *test]) == list(range(len(y)))
    drawn = np.bincount(y[test], minlength=4)
    assert drawn[0] == 0  # one sample is to train on
    assert drawn[1] == 1
    assert drawn[2:].tolist() == [min(round(fraction * 10), 9), min(round(fraction * 100), 99)]
    assert list(train) == sorted(train)
    assert list(test) == sorted(test)


def test_no_test_part_on_request():
    train, test = stratified_split(LABELS, 0, seed=0)
    assert (len(train), len(test)) == (20, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fractions_out_of_range(fraction):
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        stratified_split(LABELS, fraction, seed=0)


def test_a_sample_a_class_leaves_none_to_test_on():
    data = ImageDataset(FEATURES[:4], LABELS[:4], FEATURES[:0], LABELS[:0], source="few")
    with pytest.raises(ValueError, match=r"few has one sample a class.* test_fraction=0"):
        with_test_part(data)
    assert len(with_test_part(data, 0).X_train) == 4


def test_a_data_set_keeps_what_describes_it():
    data = ImageDataset(FEATURES, LABELS, FEATURES, LABELS, image_shape=(1, 7, 1))
    assert data._replace(y_test=LABELS).image_shape == (1, 7, 1)
    assert pickle.loads(pickle.dumps(data)).image_shape == (1, 7, 1)
