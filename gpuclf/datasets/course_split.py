"""The parts that Stanford's CS231n cuts CIFAR-10 into."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpuclf.datasets.image_dataset import ImageDataset

__all__ = ["CourseSplit", "course_split"]


class CourseSplit(NamedTuple):
    """Images and labels to train on, to choose on, to report on, and to develop with.

    Attributes
    ----------
    X_train, X_val, X_test, X_dev : array of uint8, shape (N, D)
    y_train, y_val, y_test, y_dev : array of int, shape (N,)
    """

    X_train: Any
    y_train: Any
    X_val: Any
    y_val: Any
    X_test: Any
    y_test: Any
    X_dev: Any
    y_dev: Any

    def map_arrays(self, function: Callable[[Any], Any]) -> "CourseSplit":
        """Return a split of ``function(array)`` (:func:`gpuclf.to_device` moves a split by it)."""
        return CourseSplit(*map(function, self))


def course_split(
    dataset: ImageDataset,
    n_train: int = 49_000,
    n_val: int = 1_000,
    n_test: int = 1_000,
    n_dev: int = 500,
    seed: int = 0,
) -> CourseSplit:
    """Cut a data set as Stanford's CS231n does for its first assignment.

    Parameters
    ----------
    dataset : ImageDataset
    n_train, n_val : int
        The first `n_train` training images, and the `n_val` after them.
    n_test : int
        The first `n_test` test images.
    n_dev : int
        Images drawn from the first `n_train`, without repetition: few enough for a naive loop.
    seed : int, default 0
        Of the draw.

    Returns
    -------
    CourseSplit
        All but the development images are views of the data set's arrays.

    Raises
    ------
    ValueError
        If the data set has too few images, or a number is negative.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, softmax exercise.

    Examples
    --------
    >>> from gpuclf.datasets import ImageDataset, make_synthetic
    >>> X, y = make_synthetic(60)
    >>> split = course_split(ImageDataset(X[:50], y[:50], X[50:], y[50:]), 40, 10, 10, n_dev=5)
    >>> split.X_train.shape, split.X_val.shape, split.X_test.shape, split.X_dev.shape
    ((40, 3072), (10, 3072), (10, 3072), (5, 3072))
    """
    wanted = {"n_train": n_train, "n_val": n_val, "n_test": n_test, "n_dev": n_dev}
    for name, count in wanted.items():
        if operator.index(count) < 0:
            raise ValueError(f"{name} must be 0 or more, got {count}")
    X, y, X_test, y_test = dataset
    for what, count, there in (
        ("n_train + n_val", n_train + n_val, len(X)),
        ("n_test", n_test, len(X_test)),
        ("n_dev", n_dev, n_train),
    ):
        if count > there:
            raise ValueError(
                f"{what} = {count:,} is more than the {there:,} images there are; ask for fewer"
            )
    dev = np.random.default_rng(seed).choice(n_train, n_dev, replace=False)
    train, val = slice(n_train), slice(n_train, n_train + n_val)
    return CourseSplit(
        *(X[train], y[train], X[val], y[val]),
        *(X_test[:n_test], y_test[:n_test], X[dev], y[dev]),
    )
