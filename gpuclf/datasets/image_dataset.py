"""A data set of images in memory, and what is wrong with files that should hold one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

__all__ = [
    "DatasetError",
    "DatasetNotFoundError",
    "ImageDataset",
    "damaged",
    "file_md5",
    "file_size",
    "reading",
]


class DatasetError(ValueError):
    """Files of a data set are damaged, incomplete, not what they claim, or cannot be had."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """A data set is in none of the places where it was looked for."""


class _Splits(NamedTuple):
    X_train: npt.NDArray[Any]
    y_train: npt.NDArray[np.int64]
    X_test: npt.NDArray[Any]
    y_test: npt.NDArray[np.int64]


class ImageDataset(_Splits):
    """Images and labels for training and testing; unpacks into exactly four arrays.

    Attributes
    ----------
    X_train, X_test : ndarray, shape (N, D)
        Images of uint8, one a row: the red, green and blue plane (or a single grey one), each
        row-major. Or other samples, of floats.
    y_train, y_test : ndarray of int64, shape (N,)
        Labels, positions in `class_names`.
    name : str
        Which data set, such as "CIFAR-10".
    class_names : tuple of str
        Name of each label.
    source : str
        Where the data came from, in a few words, for anything that reports a result.
    image_shape : tuple of int or None
        (channels, height, width), their product being D; None of samples that are no images.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.zeros((2, 3072), np.uint8), np.array([0, 1])
    >>> data = ImageDataset(X, y, X[:1], y[:1], name="black", class_names=("a", "b"))
    >>> X_train, y_train, X_test, y_test = data
    >>> data
    ImageDataset(name='black', X_train=(2, 3072), X_test=(1, 3072), source='unknown')
    """

    name: str
    class_names: tuple[str, ...]
    source: str
    image_shape: tuple[int, int, int] | None

    def __new__(
        cls,
        X_train: npt.NDArray[Any],
        y_train: npt.NDArray[np.int64],
        X_test: npt.NDArray[Any],
        y_test: npt.NDArray[np.int64],
        *,
        name: str = "unnamed",
        class_names: tuple[str, ...] = (),
        source: str = "unknown",
        image_shape: tuple[int, int, int] | None = None,
    ) -> Self:
        """Attach a description to the four arrays."""
        self = super().__new__(cls, X_train, y_train, X_test, y_test)
        self.name = name
        self.class_names = class_names
        self.source = source
        self.image_shape = image_shape
        return self

    def _replace(self, **changes: Any) -> Self:
        # The inherited one knows the four arrays alone and would drop where they came from.
        return type(self)(**{**self._asdict(), **vars(self), **changes})

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, X_train={self.X_train.shape}, "
            f"X_test={self.X_test.shape}, source={self.source!r})"
        )


def damaged(path: Path, expected: str, found: str) -> NoReturn:
    """Raise that a file of CIFAR-10 does not hold what it should."""
    raise DatasetError(
        f"{path} is damaged or not part of CIFAR-10: expected {expected}, found {found}. "
        "Delete it and download or unpack CIFAR-10 again."
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a DatasetError where the file cannot be read."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error


def file_size(path: Path) -> int:
    """Return the number of bytes."""
    with reading(path):
        return path.stat().st_size


def file_md5(path: Path) -> str:
    """Return the MD5 of the content, in hexadecimal."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
