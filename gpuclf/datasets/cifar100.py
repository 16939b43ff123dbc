"""CIFAR-100 from the files of its Python version."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError, DatasetNotFoundError, ImageDataset
from gpuclf.datasets.pickled_batches import read_python_batch, read_python_class_names

__all__ = ["find_cifar100", "load_cifar100"]

_FOLDER = "cifar-100-python"
_PIXELS = 3072
_ROWS = {"train": 50_000, "test": 10_000}
_N_CLASSES = {"fine": 100, "coarse": 20}


def load_cifar100(path: str | os.PathLike[str], labels: str = "fine") -> ImageDataset:
    """Load CIFAR-100 from disk.

    Parameters
    ----------
    path : path-like
        Folder with the files ``train``, ``test`` and ``meta`` of the Python version, or with
        ``cifar-100-python/``, which has them.
    labels : {"fine", "coarse"}, default "fine"
        One of 100 classes, or of the 20 groups of five classes each.

    Returns
    -------
    ImageDataset
        50,000 training and 10,000 test images as bytes, in the order of the files.

    Raises
    ------
    DatasetNotFoundError
        The files are not there.
    DatasetError
        A file is damaged, or not what it should be.

    Notes
    -----
    Files are read as those of CIFAR-10, without the powers of :func:`pickle.load`.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html

    Examples
    --------
    >>> data = load_cifar100("data", labels="coarse")  # doctest: +SKIP
    >>> len(data.class_names), data.X_train.shape  # doctest: +SKIP
    (20, (50000, 3072))
    """
    if labels not in _N_CLASSES:
        raise ValueError(f"labels must be 'fine' or 'coarse', got {labels!r}")
    folder = find_cifar100(Path(path).expanduser())
    if folder is None:
        raise DatasetNotFoundError(
            f"CIFAR-100 was not found in {path}: expected the files train, test and meta, or the "
            f"folder {_FOLDER} with them. Unpack https://www.cs.toronto.edu/~kriz/"
            "cifar-100-python.tar.gz there."
        )
    parts: list[npt.NDArray[Any]] = []
    try:
        for part, n in _ROWS.items():
            X, y = np.empty((n, _PIXELS), np.uint8), np.empty(n, np.int64)
            key = f"{labels}_labels".encode()
            read_python_batch(folder / part, X, y, key, _N_CLASSES[labels])
            parts += [X, y]
        names = read_python_class_names(folder / "meta", f"{labels}_label_names".encode())
    except DatasetError as error:  # in the words of CIFAR-10's reader
        raise DatasetError(re.sub(r"CIFAR-10\b", "CIFAR-100", str(error))) from error
    if len(names) != _N_CLASSES[labels]:
        raise DatasetError(
            f"{folder / 'meta'} names {len(names)} {labels} classes, expected "
            f"{_N_CLASSES[labels]}. Unpack CIFAR-100 again."
        )
    return ImageDataset(
        *parts,
        name="CIFAR-100" + (", coarse labels" if labels == "coarse" else ""),
        class_names=names,
        source=f"CIFAR-100, {labels} labels, {folder}",
        image_shape=(3, 32, 32),
    )


def find_cifar100(root: Path) -> Path | None:
    """Return the folder with the files, `root` or one in it, or None."""
    for folder in (root, root / _FOLDER):
        if all((folder / name).is_file() for name in (*_ROWS, "meta")):
            return folder
    return None
