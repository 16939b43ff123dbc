import subprocess
import sys

import numpy as np
import pytest

from gpuclf import datasets
from gpuclf.datasets import DatasetError, DatasetNotFoundError, load_dataset, make_synthetic


@pytest.fixture
def calls(monkeypatch):
    """Replace load_cifar10, and note how it is called; it raises `calls.error` if there is one."""

    class Calls(list):
        error = None

    calls = Calls()

    def load_cifar10(data_dir=None, download=True):
        calls.append((data_dir, download))
        if calls.error is not None:
            raise calls.error
        return "CIFAR-10"

    monkeypatch.setattr(datasets, "load_cifar10", load_cifar10)
    return calls


@pytest.fixture
def short_synthetic(monkeypatch):
    """Make 30 synthetic images whatever is asked for, and note what was."""
    make = datasets.make_synthetic
    sizes = []

    def make_few(n, seed):
        sizes.append(n)
        return make(30, seed)

    monkeypatch.setattr(datasets, "make_synthetic", make_few)
    return sizes


def test_synthetic(calls):
    data = load_dataset("synthetic", seed=3)
    assert [len(array) for array in data] == [50_000, 50_000, 10_000, 10_000]
    X, y = make_synthetic(300, seed=3)
    np.testing.assert_array_equal(data.X_train[:300], X)
    np.testing.assert_array_equal(data.y_train[:300], y)
    assert not np.array_equal(data.y_test[:300], y)
    assert data.name == "synthetic (CIFAR-shaped)"
    assert data.source == "synthetic, seed 3"
    assert len(data.class_names) == 10
    assert calls == []


def test_cifar10_may_download(calls):
    assert load_dataset("cifar10", "folder") == "CIFAR-10"
    assert calls == [("folder", True)]


def test_cifar10_never_falls_back(calls):
    calls.error = DatasetNotFoundError("nowhere")
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        load_dataset("cifar10")


@pytest.mark.parametrize("data_dir", [None, "folder"])
def test_auto_takes_cifar10_that_is_on_disk(calls, data_dir):
    assert load_dataset(data_dir=data_dir) == "CIFAR-10"
    assert calls == [(data_dir, False)]


def test_auto_falls_back_and_says_so(calls, short_synthetic):
    calls.error = DatasetNotFoundError("nowhere")
    data = load_dataset("auto", seed=4)
    assert short_synthetic == [60_000]
    assert data.name == "synthetic (CIFAR-shaped)"
    assert data.source.startswith("synthetic, seed 4 (CIFAR-10 was not found")
    assert "load_cifar10()" in data.source
    assert "GPUCLF_DATA" in data.source


def test_auto_does_not_fall_back_from_a_given_folder(calls):
    calls.error = DatasetNotFoundError("nowhere")
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        load_dataset("auto", data_dir="folder")


def test_auto_does_not_fall_back_from_damaged_files(calls):
    calls.error = DatasetError("damaged")
    with pytest.raises(DatasetError, match="damaged"):
        load_dataset("auto")


@pytest.mark.parametrize("name", ["mnist", "", "CIFAR10", None])
def test_unknown_names_list_the_choices(name):
    with pytest.raises(ValueError, match="'auto', 'cifar10', 'synthetic'"):
        load_dataset(name)


def test_import_is_light():
    heavy = {"pooch", "requests", "rich", "sklearn", "cupy"}
    code = f"import sys, gpuclf.datasets; print(*{heavy!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
