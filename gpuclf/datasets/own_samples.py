"""Samples of any form that is known here, by their path alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gpuclf.datasets.cifar10 import load_cifar10
from gpuclf.datasets.cifar100 import find_cifar100, load_cifar100
from gpuclf.datasets.decoding import check_size
from gpuclf.datasets.idx import find_idx_files, read_idx_dataset
from gpuclf.datasets.image_dataset import DatasetError, DatasetNotFoundError, ImageDataset
from gpuclf.datasets.image_folder import looks_like_image_folder, read_image_folder
from gpuclf.datasets.labels import labels_by_name
from gpuclf.datasets.rows import resize_rows
from gpuclf.datasets.splitting import with_test_part
from gpuclf.datasets.stored_arrays import find_npy_pairs, read_npy, read_npy_folder, read_npz

__all__ = ["load_samples", "read_samples"]

_PICTURE_SIZE = (32, 32)
_FORMS = """
- a folder with a folder of images (PNG, JPEG, WebP, BMP) a class, or train/ and test/ with these
- .npz with X and y, or X_train, y_train, X_test, y_test
- X.npy with y.npy beside it, or a folder with X_train.npy, y_train.npy, X_test.npy, y_test.npy
- the IDX files of MNIST or Fashion-MNIST, .gz or not, or their folder
- the folder of CIFAR-10, or of CIFAR-100's Python version"""


def load_samples(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    *,
    test_data: str | os.PathLike[str] | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    layout: str | None = None,
) -> ImageDataset:
    """Load samples from a file or folder, whichever known form it has.

    Parameters
    ----------
    path : path-like
        One of:

        - a folder as for :func:`load_image_folder`
        - ``.npz`` with arrays X and y, or X_train, y_train, X_test and y_test (also as Keras,
          ``x_train``, and MedMNIST, ``train_images``, name them)
        - ``X.npy`` with ``y.npy`` beside it (``NAME.npy`` with ``NAME_labels.npy``), or a folder
          with ``X_train.npy``, ``y_train.npy`` and the same of test
        - the IDX files of MNIST or Fashion-MNIST, gzipped or not: their folder, or one of them
        - the folder of CIFAR-10 (any that :func:`load_cifar10` takes), or of CIFAR-100
    size : int or (height, width), optional
        What images are stretched to. By default pictures become 32 x 32, and what has one size
        already keeps it.
    test_data : path-like, optional
        Samples of any of these forms to test on: their test part if they have one, else all of
        them. Classes are matched by name.
    test_fraction : float, optional
        Part of each class to test on where there is no test part; by default 0.2. 0 for none.
    seed : int, default 0
        Of the draw of that part.
    layout : {"NHWC", "NCHW", "NHW"}, optional
        Of images in ``.npz`` and ``.npy``, where their shape has two readings.

    Returns
    -------
    ImageDataset
        Images as rows of bytes, by the rule of :func:`to_rows`. Arrays of two axes are rows
        already; floats in these are kept as they are, with an `image_shape` of None.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at that path.
    DatasetError
        It has none of the forms, or files are damaged.
    ValueError
        `size` is given for samples that are no images, or `test_fraction` where there is a test
        part.

    Examples
    --------
    >>> data = load_samples("fashion-mnist")  # doctest: +SKIP
    >>> data.image_shape, data.class_names[:2]  # doctest: +SKIP
    ((1, 28, 28), ('T-shirt/top', 'Trouser'))
    """
    dataset = read_samples(path, size, layout)
    if test_data is None:
        return with_test_part(dataset, test_fraction, seed)
    if test_fraction is not None:
        raise ValueError("give test_data or test_fraction, not both")
    return _with_test_data(dataset, read_samples(test_data, size, layout))


def read_samples(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    layout: str | None = None,
) -> ImageDataset:
    """Load samples as :func:`load_samples` does; without a test part of their own, it is empty."""
    wanted = check_size(size)
    return _resized(_read(Path(path).expanduser(), wanted, layout), wanted)


def _read(path: Path, size: tuple[int, int] | None, layout: str | None) -> ImageDataset:
    """Read a data set in its own size, but for pictures; it may have no test part."""
    if not path.exists():
        raise DatasetNotFoundError(f"there is no {path}. Known forms of samples:{_FORMS}")
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path, layout)
    if path.suffix.lower() == ".npy" and path.is_file():
        return read_npy(path, layout)
    if find_idx_files(path):
        return read_idx_dataset(path)
    if path.is_dir():
        if find_cifar100(path) is not None:
            return load_cifar100(path)
        try:
            return load_cifar10(path, download=False)
        except DatasetNotFoundError:
            pass
        if find_npy_pairs(path):
            return read_npy_folder(path, layout)
        if looks_like_image_folder(path):
            return read_image_folder(path, size or _PICTURE_SIZE)
    raise DatasetError(f"{path} is {_what_is_there(path)}. Known forms of samples:{_FORMS}")


def _what_is_there(path: Path) -> str:
    if path.is_file():
        hint = "; unpack archives first" if path.suffix in (".zip", ".gz", ".tgz", ".tar") else ""
        return f"a file{f' of type {path.suffix}' if path.suffix else ''}{hint}"
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in path.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"a folder with {shown}" if names else "an empty folder"


def _resized(dataset: ImageDataset, size: tuple[int, int] | None) -> ImageDataset:
    if size is None:
        return dataset
    shape = dataset.image_shape
    if shape is None:
        raise ValueError(
            f"size={size} has no use: the samples of {dataset.source} are rows of numbers, not "
            "images; leave size out, or store images with three or four axes"
        )
    return dataset._replace(
        X_train=resize_rows(dataset.X_train, shape, size),
        X_test=resize_rows(dataset.X_test, shape, size),
        image_shape=(shape[0], *size),
    )


def _with_test_data(dataset: ImageDataset, other: ImageDataset) -> ImageDataset:
    """Return a data set that is tested on another one."""
    own, others = ((d.X_train.shape[1], d.X_train.dtype, d.image_shape) for d in (dataset, other))
    if own != others:
        raise DatasetError(
            f"{other.source} has samples of {others[0]} numbers of {others[1]} (image shape "
            f"{others[2]}), {dataset.source} of {own[0]} of {own[1]} ({own[2]}). Images are made "
            "alike by size=(height, width)."
        )
    X, y = other[2:] if len(other.X_test) else other[:2]
    labels = labels_by_name(y, other.class_names, dataset.class_names, other.source)
    return dataset._replace(
        X_test=np.asarray(X), y_test=labels, source=f"{dataset.source}, tested on {other.source}"
    )
