"""Labels of any kind, as positions in a list of class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError

__all__ = ["encode_labels", "labels_by_name"]


def encode_labels(
    y: npt.NDArray[Any], y_test: npt.NDArray[Any] | None, where: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[str, ...]]:
    """Return labels 0..C-1 for training and test, and the name of each class.

    Classes are the distinct training labels, in their own order: numbers by size, text by its
    characters' codes. Labels 0..C-1 stay as they are.

    Raises
    ------
    DatasetError
        If a label is of no usable kind, or a test label is not among the training labels.
    """
    y = _one_axis(y, where)
    y_test = y[:0] if y_test is None else _one_axis(y_test, where)
    classes, encoded = np.unique(y, return_inverse=True)
    if (
        y_test.dtype.kind != y.dtype.kind
        and len(y_test)
        and "U" in y.dtype.kind + y_test.dtype.kind
    ):
        raise DatasetError(
            f"{where} has training labels of dtype {y.dtype} and test labels of {y_test.dtype}; "
            "use one kind for both."
        )
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        raise DatasetError(
            f"{where} has the test label {unknown[0]!s}, which no training sample has."
        )
    positions = np.searchsorted(classes, y_test)
    return (
        encoded.astype(np.int64),
        positions.astype(np.int64),
        tuple(str(name) for name in classes.tolist()),
    )


def _one_axis(y: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DatasetError(
            f"{where} has labels of shape {y.shape}, expected (N,), one a sample. Of one-hot "
            "labels, store y.argmax(axis=1)."
        )
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind == "f" and np.all(y == np.round(y)):
        return y.astype(np.int64)
    if y.dtype.kind not in "iubU":
        raise DatasetError(
            f"{where} has labels of dtype {y.dtype}, expected integers, text or booleans. Store "
            "them as such, y.astype(str) for instance."
        )
    return y


def labels_by_name(
    y: npt.NDArray[np.int64], names: Sequence[str], wanted: Sequence[str], where: str
) -> npt.NDArray[np.int64]:
    """Return labels that stand for `names` as positions in other class names."""
    position = {name: i for i, name in enumerate(wanted)}
    unknown = [names[label] for label in np.unique(y) if names[label] not in position]
    if unknown:
        raise DatasetError(
            f"{where} has the classes {', '.join(unknown[:10])}, which the training data do not "
            f"have; those are {', '.join(wanted[:10])}."
        )
    return np.array([position.get(name, -1) for name in names], np.int64)[y]
