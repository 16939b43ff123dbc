import numpy as np
import pytest

from gpuclf import to_device
from gpuclf.arrays import array_namespace
from gpuclf.datasets import CourseSplit, ImageDataset, course_split


@pytest.fixture(scope="module")
def numbered():
    """60,000 tiny images that say where they come from."""
    X_train = np.arange(50_000, dtype=np.uint32).view(np.uint8).reshape(50_000, 4)
    X_test = np.arange(50_000, 60_000, dtype=np.uint32).view(np.uint8).reshape(10_000, 4)
    return ImageDataset(X_train, np.arange(50_000), X_test, np.arange(50_000, 60_000))


def numbers(X):
    return np.ascontiguousarray(X).view(np.uint32)[:, 0]


def test_the_course_s_parts(numbered):
    split = course_split(numbered)
    np.testing.assert_array_equal(split.y_train, np.arange(49_000))
    np.testing.assert_array_equal(split.y_val, np.arange(49_000, 50_000))
    np.testing.assert_array_equal(split.y_test, np.arange(50_000, 51_000))
    assert len(split.y_dev) == len(set(split.y_dev)) == 500
    assert split.y_dev.max() < 49_000
    for part in ("train", "val", "test", "dev"):
        X, y = getattr(split, f"X_{part}"), getattr(split, f"y_{part}")
        np.testing.assert_array_equal(numbers(X), y)


def test_the_large_parts_are_views(numbered):
    split = course_split(numbered)
    for part in (split.X_train, split.X_val):
        assert np.shares_memory(part, numbered.X_train)
    assert np.shares_memory(split.X_test, numbered.X_test)


def test_the_seed_chooses_the_development_images(numbered):
    once, again, other = (course_split(numbered, seed=seed).y_dev for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def test_it_unpacks_in_pairs(numbered):
    X_train, y_train, _, _, X_test, y_test, X_dev, _ = course_split(numbered, 10, 5, 3, 2)
    assert [len(part) for part in (X_train, y_train, X_test, y_test, X_dev)] == [10, 10, 3, 3, 2]


def test_parts_may_be_empty(numbered):
    split = course_split(numbered, 50_000, 0, 10_000, 0)
    assert [len(part) for part in split[::2]] == [50_000, 0, 10_000, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 49_001}, r"n_train \+ n_val = 50,001 is more than the 50,000 images"),
        ({"n_test": 10_001}, "n_test = 10,001 is more than the 10,000 images"),
        ({"n_train": 100, "n_dev": 101}, "n_dev = 101 is more than the 100 images"),
        ({"n_val": -1}, "n_val must be 0 or more, got -1"),
    ],
)
def test_numbers_that_do_not_fit(numbered, arguments, message):
    with pytest.raises(ValueError, match=message):
        course_split(numbered, **arguments)


def test_counts_are_integers(numbered):
    with pytest.raises(TypeError, match="integer"):
        course_split(numbered, n_train=0.98)


def test_a_split_moves_to_a_device_as_one(lib, numbered):
    split = course_split(numbered, 10, 5, 3, 2)
    moved = to_device(split, like=lib.asarray(np.zeros(1)))
    assert type(moved) is CourseSplit
    assert array_namespace(*moved) is array_namespace(lib.asarray(np.zeros(1)))
    for there, here in zip(moved, split, strict=True):
        np.testing.assert_array_equal(lib.to_numpy(there), here)
