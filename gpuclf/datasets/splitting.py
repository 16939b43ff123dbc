"""A test part for data that come without one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import ImageDataset

__all__ = ["DEFAULT_TEST_FRACTION", "stratified_split", "with_test_part"]

DEFAULT_TEST_FRACTION = 0.2


def stratified_split(
    y: npt.NDArray[np.int64], test_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw the same fraction of each class.

    Parameters
    ----------
    y : ndarray of int64, shape (N,)
    test_fraction : float
        Of each class's samples, rounded, and at least one where the class has two; one always
        stays to train on. In 0..1, both excluded; 0 draws none.
    seed : int
        Of the draw.

    Returns
    -------
    train, test : ndarray of int64
        Positions, each in rising order.

    Examples
    --------
    >>> y = np.array([0, 0, 0, 0, 1, 1])
    >>> train, test = stratified_split(y, 0.5, seed=0)
    >>> y[train].tolist(), y[test].tolist()
    ([0, 0, 1], [0, 0, 1])
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(
            f"test_fraction must be at least 0 and less than 1, such as 0.2, got {test_fraction!r}"
        )
    is_test = np.zeros(len(y), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(y):
        of_class = np.flatnonzero(y == label)
        n_test = min(max(round(test_fraction * len(of_class)), 1), len(of_class) - 1)
        if test_fraction > 0:
            is_test[rng.permutation(of_class)[:n_test]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def with_test_part(
    dataset: ImageDataset, test_fraction: float | None = None, seed: int = 0
) -> ImageDataset:
    """Return the data set, with a part of its training samples for testing if it has none."""
    if len(dataset.X_test):
        if test_fraction is not None:
            raise ValueError(
                f"test_fraction={test_fraction:g} has no use: {dataset.source} has a test part of "
                f"{len(dataset.X_test):,} samples; leave test_fraction out"
            )
        return dataset
    fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
    train, test = stratified_split(dataset.y_train, fraction, seed)
    if fraction and not len(test):
        raise ValueError(
            f"{dataset.source} has one sample a class, none to spare for a test part; give the "
            "test samples as test_data=, or test_fraction=0 to go without"
        )
    X, y = dataset.X_train, dataset.y_train
    source = dataset.source + (f", {fraction:g} of each class for testing" if fraction else "")
    return dataset._replace(
        X_train=X[train], y_train=y[train], X_test=X[test], y_test=y[test], source=source
    )
