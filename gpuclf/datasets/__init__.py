"""Data sets: CIFAR-10 and 100, stand-ins made in memory, MNIST, the spiral, and one's own samples.

Images are rows in one layout everywhere: the planes one after another, each row-major.
"""

import os

from gpuclf.datasets.cifar10 import load_cifar10
from gpuclf.datasets.cifar100 import load_cifar100
from gpuclf.datasets.course_split import CourseSplit, course_split
from gpuclf.datasets.embeddings import make_embeddings
from gpuclf.datasets.image_dataset import DatasetError, DatasetNotFoundError, ImageDataset
from gpuclf.datasets.image_folder import load_image_folder
from gpuclf.datasets.own_samples import load_samples
from gpuclf.datasets.rows import to_rows
from gpuclf.datasets.spiral import make_spiral
from gpuclf.datasets.synthetic import make_synthetic

__all__ = [
    "CourseSplit",
    "DatasetError",
    "DatasetNotFoundError",
    "ImageDataset",
    "course_split",
    "load_cifar10",
    "load_cifar100",
    "load_dataset",
    "load_image_folder",
    "load_samples",
    "make_embeddings",
    "make_spiral",
    "make_synthetic",
    "to_rows",
]

_CHOICES = ("auto", "cifar10", "synthetic")


def load_dataset(
    name: str = "auto", data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> ImageDataset:
    """Load a data set by name.

    Parameters
    ----------
    name : {"auto", "cifar10", "synthetic"}, default "auto"
        "cifar10" loads CIFAR-10 and downloads it where it is not on disk. "synthetic" makes
        50,000 training and 10,000 test images in memory. "auto" never downloads: it loads CIFAR-10
        if that is on disk and falls back on "synthetic" if not.
    data_dir : path-like, optional
        Folder with CIFAR-10, as for :func:`load_cifar10`. With "auto", a folder given here that
        does not have CIFAR-10 is an error.
    seed : int, default 0
        Chooses the samples of "synthetic".

    Returns
    -------
    ImageDataset
        Four arrays. Its `source` tells which data they are and, after a fallback, how to get the
        real ones.

    Raises
    ------
    ValueError
        If `name` is not one of the choices, or `seed` is negative.
    DatasetError
        As :func:`load_cifar10`. Damaged files are an error with "auto" too.

    Examples
    --------
    >>> data = load_dataset("synthetic", seed=3)  # doctest: +SKIP
    >>> data.source  # doctest: +SKIP
    'synthetic, seed 3'
    """
    if name == "cifar10":
        return load_cifar10(data_dir)
    if name == "synthetic":
        return _synthetic_dataset(seed)
    if name == "auto":
        try:
            return load_cifar10(data_dir, download=False)
        except DatasetNotFoundError:
            if data_dir is not None:
                raise
        return _synthetic_dataset(
            seed,
            f" (CIFAR-10 was not found {_where_looked()}: load_cifar10() downloads it, or set "
            "GPUCLF_DATA to the folder that has it)",
        )
    raise ValueError(f"name must be one of {', '.join(map(repr, _CHOICES))}, got {name!r}")


def _where_looked() -> str:
    folder = os.environ.get("GPUCLF_DATA")
    return f"in GPUCLF_DATA={folder}" if folder else "on this machine"


def _synthetic_dataset(seed: int, remark: str = "") -> ImageDataset:
    n_train, n_test = 50_000, 10_000
    # Cut from one draw, the two parts cannot share a sample whatever the seed is.
    X, y = make_synthetic(n_train + n_test, seed)
    return ImageDataset(
        *(X[:n_train], y[:n_train], X[n_train:], y[n_train:]),
        name="synthetic (CIFAR-shaped)",
        class_names=tuple(f"class {label}" for label in range(10)),
        source=f"synthetic, seed {seed}{remark}",
        image_shape=(3, 32, 32),
    )
