import copy
import dataclasses
import hashlib
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    BATCHES,
    NAMES,
    ROWS,
    VERSIONS,
    archive_of,
    assert_is_the_made_data,
    batch_with,
    binary_files,
    make_batches,
    message_for,
    no_data_but_the_test_s_own,  # noqa: F401
    python2_batch,
    python_files,
    trust,
    write,
)

from gpuclf.datasets import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    cifar10,
    load_cifar10,
)

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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("text_keys", [False, True])
def test_batches_saved_again_by_python_3_are_read(tmp_path, protocol, package, text_keys):
    names = {"label_names": list(NAMES)} if text_keys else {b"label_names": [b"x"] * 10}
    files = {"batches.meta": pickle.dumps(names, protocol)}
    for name, (data, labels) in zip(BATCHES, make_batches(), strict=True):
        batch = {b"batch_label": b"", b"data": data, b"labels": labels.tolist()}
        batch[b"filenames"] = [b"s_%d.png" % i for i in range(ROWS)]
        if text_keys:
            batch = {key.decode(): value for key, value in batch.items()}
        content = pickle.dumps(batch, protocol)
        content = content.replace(b"numpy._core.", package + b".")
        if protocol >= 4:  # names are counted strings, and within a counted frame
            for module in (b"multiarray", b"numeric"):
                long = b"numpy._core." + module
                short = package + b"." + module
                content = content.replace(bytes([len(long)]) + short, bytes([len(short)]) + short)
        files[name] = content
    data = load_cifar10(write(tmp_path, files))
    assert data.class_names == (NAMES if text_keys else ("x",) * 10)
    data.class_names = NAMES
    assert_is_the_made_data(data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_column_major_arrays_are_read(tmp_path, protocol):
    write(tmp_path, python_files())
    data, labels = make_batches()[0]
    batch = {b"data": np.asfortranarray(data), b"labels": labels.tolist()}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py/cifar-10-batches-py", "CIFAR", "a/b/cifar-10-batches-bin"]
)
def test_nested_and_renamed_folders_are_found(tmp_path, version, place):
    folder = write(tmp_path / place, VERSIONS[version][2]())
    write(tmp_path / "another" / "one", {"data_batch_1": b"", "notes.txt": b""})
    data = load_cifar10(tmp_path, download=False)
    assert_is_the_made_data(data)
    assert str(folder) in data.source


def test_the_usual_folder_goes_before_a_nested_one(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-bin", binary_files())
    write(tmp_path / "a", python_files())
    assert str(folder) in load_cifar10(tmp_path, download=False).source


def test_two_nested_copies_are_not_chosen_from(tmp_path):
    places = [write(tmp_path / name, python_files()) for name in ("one", "two")]
    with pytest.raises(DatasetError, match="more than once") as caught:
        load_cifar10(tmp_path, download=False)
    assert all(str(place) in str(caught.value) for place in places)
    assert_is_the_made_data(load_cifar10(places[1], download=False))


def test_two_ways_to_one_folder_are_no_copies(tmp_path):
    write(tmp_path / "one", python_files())
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "round").symlink_to(tmp_path)
    assert_is_the_made_data(load_cifar10(tmp_path, download=False))


def test_folders_far_down_and_hidden_ones_are_not_searched(tmp_path):
    write(tmp_path / "a/b/c/d", python_files())
    write(tmp_path / ".cifar-10-batches-py-x" / "cifar-10-batches-py", python_files())
    with pytest.raises(DatasetNotFoundError):
        load_cifar10(tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "clue"),
    [
        ("cifar-100-python/train", "cifar-100-python holds CIFAR-100"),
        ("train.bin", "holds CIFAR-100"),
        ("x/cifar-100-binary/train.bin", "cifar-100-binary holds CIFAR-100"),
        ("cifar-100-python.tar.gz", "is an archive of CIFAR-100"),
        ("cifar-10-python (1).tar.gz", r"\(1\)\.tar\.gz has not the name .* unpack it there"),
        ("CIFAR10.zip", "CIFAR10.zip has not the name"),
        ("x/data_batch_1.pkl", r"x holds data_batch_1\.pkl: the six files must be named"),
    ],
)
def test_what_lies_there_instead_is_named(tmp_path, name, clue):
    path = tmp_path / name
    write(path.parent, {path.name: b"\x80\x02}."})
    if "train" in name:
        others = ("test.bin", "fine_label_names.txt") if ".bin" in name else ("test", "meta")
        write(path.parent, dict.fromkeys(others, b""))
    with pytest.raises(DatasetNotFoundError, match=clue):
        load_cifar10(tmp_path, download=False)


# --- damaged files -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("names", [[b"cat"] * 9, None, [1] * 10])
def test_wrong_class_names_in_a_good_pickle(tmp_path, names):
    content = pickle.dumps({b"label_names": names}, protocol=2)
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
        (batch_with(labels=[0, 1, None] + [0] * 17), r"integers 0\.\.9", "nothing at position 2"),
        ({b"fine_labels": [1] * ROWS, b"data": batch_with()[b"data"]}, "b'labels'", "CIFAR-100"),
    ],
)
def test_wrong_content_of_a_good_pickle(tmp_path, content, expected, found):
    message = message_for(tmp_path, "python", "test_batch", pickle.dumps(content, protocol=2))
    assert re.search(f"expected .*{expected}.*, found .*{found}", message)


# --- copies of the published files ---------------------------------------------------------------


@pytest.fixture(params=VERSIONS)
def published(request, monkeypatch):
    """Make the small files of a version the published ones, and return them."""
    files = VERSIONS[request.param][2]()
    sums = {name: (len(text), hashlib.md5(text).hexdigest()) for name, text in files.items()}
    changed = [
        dataclasses.replace(v, published=sums) if v.name == request.param else v
        for v in cifar10._VERSIONS
    ]
    monkeypatch.setattr(cifar10, "_VERSIONS", tuple(changed))
    return request.param, files


def flipped(content):
    return content[:-300] + bytes([content[-300] ^ 1]) + content[-299:]


def test_a_flipped_bit_of_a_published_file_is_noticed(tmp_path, published):
    _, files = published
    name = next(name for name in files if name.startswith("data_batch_3"))
    write(tmp_path, files | {name: flipped(files[name])})
    with pytest.raises(DatasetError, match="damaged copy of the published file") as caught:
        load_cifar10(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    altered = load_cifar10(tmp_path, verify=False)
    write(tmp_path, files)
    data = load_cifar10(tmp_path)
    assert_is_the_made_data(data)
    assert np.sum(data.X_train != altered.X_train) == 1


def test_a_file_is_summed_once_until_it_changes(tmp_path, published, monkeypatch):
    _, files = published
    write(tmp_path, files)
    summed = []
    md5 = cifar10.file_md5
    monkeypatch.setattr(cifar10, "file_md5", lambda path: summed.append(path.name) or md5(path))
    for _ in range(2):
        load_cifar10(tmp_path)
    assert sorted(summed) == sorted(files)
    name = next(iter(files))
    (tmp_path / name).write_bytes(flipped(files[name]))
    os.utime(tmp_path / name, ns=(1, 1))
    with pytest.raises(DatasetError, match="damaged copy"):
        load_cifar10(tmp_path)
    assert len(summed) == len(files) + 1


def test_data_of_one_s_own_in_the_same_form_are_read(tmp_path, published):
    version, files = published
    own = {name: text if "meta" in name else flipped(text) for name, text in files.items()}
    write(tmp_path, own)
    if version == "binary":  # whose sizes are those of any data
        load_cifar10(tmp_path)
        return
    with pytest.raises(DatasetError, match="damaged copy"):
        load_cifar10(tmp_path)
    # The names of other data in the pickles make another size.
    for name, (data, labels) in zip(BATCHES, make_batches(), strict=True):
        batch = {b"data": data ^ 1, b"labels": labels.tolist(), b"note": b"mine"}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    np.testing.assert_array_equal(load_cifar10(tmp_path).X_test, make_batches()[5][0] ^ 1)


def test_a_copy_is_mended_as_the_message_says(tmp_path, published, monkeypatch):
    version, files = published
    content = archive_of(version)
    trust(monkeypatch, content, version)
    folder, archive, _ = VERSIONS[version]
    name = next(iter(files))
    write(tmp_path / folder, files | {name: flipped(files[name]), "readme.html": b"<p>"})
    (tmp_path / archive).write_bytes(content)
    with pytest.raises(DatasetError, match=f"Delete the six batch files in {tmp_path / folder}"):
        load_cifar10(tmp_path)
    for path in (tmp_path / folder).glob("*_batch*"):
        path.unlink()
    assert_is_the_made_data(load_cifar10(tmp_path))


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


@pytest.mark.real_data
@pytest.mark.skipif(
    not os.environ.get("GPUCLF_DATA"),
    reason="set GPUCLF_DATA to a folder with CIFAR-10 to run this",
)
def test_the_published_sums_are_those_of_the_real_data(tmp_path):
    folder = cifar10._find_batches(Path(os.environ["GPUCLF_DATA"]))[1]
    found = {path.name: (path.stat().st_size, cifar10.file_md5(path)) for path in folder.iterdir()}
    python, binary = (dict(version.published) for version in cifar10._VERSIONS)
    assert {name: found[name] for name in python} == python
    data = load_cifar10(folder)
    X, y = np.concatenate([data.X_train, data.X_test]), np.concatenate([data.y_train, data.y_test])
    records = np.column_stack([y.astype(np.uint8), X]).reshape(6, -1)
    assert [hashlib.md5(r).hexdigest() for r in records] == [md5 for _, md5 in binary.values()]
