"""The assignment's images: CIFAR-10 in its layout, a grid of pictures, features."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from gpuclf import image_features
from gpuclf.arrays import Array, array_namespace, to_host, values_are_on_host
from gpuclf.datasets import DatasetNotFoundError, load_cifar10
from gpuclf.devices.cupy import on_its_device

__all__ = [
    "color_histogram_hsv",
    "extract_features",
    "hog_feature",
    "load_CIFAR10",
    "visualize_grid",
]

REPORT_EVERY = 1000  # images


def load_CIFAR10(ROOT: str | os.PathLike[str]) -> tuple[Array, Array, Array, Array]:
    """Load CIFAR-10 in the course's layout.

    Parameters
    ----------
    ROOT : path-like
        The folder ``cifar-10-batches-py``, or the one that holds it.

    Returns
    -------
    X_train : float64 array of shape (50000, 32, 32, 3)
        Pixels 0..255. 1.2 GB; :func:`gpuclf.datasets.load_cifar10` has them as bytes.
    y_train : int64 array of shape (50000,)
    X_test : float64 array of shape (10000, 32, 32, 3)
    y_test : int64 array of shape (10000,)

    Raises
    ------
    gpuclf.datasets.DatasetError
        If CIFAR-10 is not there, or damaged.
    """
    try:
        X_train, y_train, X_test, y_test = load_cifar10(ROOT, download=False)
    except DatasetNotFoundError as error:
        error.add_note(
            "load_CIFAR10 does not download. gpuclf.datasets.load_cifar10(ROOT) does, to where "
            "load_CIFAR10(ROOT) finds it."
        )
        raise
    images, test_images = (
        rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float64, order="C")
        for rows in (X_train, X_test)
    )
    return images, y_train, test_images, y_test


def visualize_grid(Xs: Array, ubound: float = 255.0, padding: int = 1) -> np.ndarray:
    """Put images side by side in a square, each stretched to 0..ubound.

    Parameters
    ----------
    Xs : array of shape (N, height, width, channels)
    ubound : float
    padding : int
        Black pixels between images.

    Returns
    -------
    float64 NumPy array of shape (rows, columns, channels), for ``pyplot.imshow(grid / ubound)``.

    Examples
    --------
    >>> visualize_grid(np.zeros((3, 32, 32, 3))).shape
    (65, 65, 3)
    """
    images = np.asarray(to_host(Xs), dtype=np.float64)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"Xs must have shape (N, height, width, channels), got {images.shape}; of weights W1 "
            "(D, H) of images, pass W1.reshape(32, 32, 3, -1).transpose(3, 0, 1, 2)"
        )
    low = images.min(axis=(1, 2, 3), keepdims=True)
    spread = images.max(axis=(1, 2, 3), keepdims=True) - low
    n_images, height, width, channels = images.shape
    side = math.ceil(math.sqrt(n_images))
    tile = height + padding, width + padding
    tiles = np.zeros((side * side, *tile, channels))
    # Divided first: the brightest is ubound exactly, which imshow would otherwise complain of.
    stretched = (images - low) / np.where(spread == 0, 1, spread)
    tiles[:n_images, :height, :width] = ubound * stretched
    grid = tiles.reshape(side, side, *tile, channels).swapaxes(1, 2)
    return grid.reshape(side * tile[0], side * tile[1], channels)[
        : side * tile[0] - padding, : side * tile[1] - padding
    ]


@on_its_device
def extract_features(
    imgs: Array, feature_fns: Sequence[Callable[[Array], Array]], verbose: bool = False
) -> Array:
    """Compute features of images, one image after the other.

    Parameters
    ----------
    imgs : array of shape (N, height, width, 3)
        Pixels 0..255, as bytes or as floats.
    feature_fns : sequence of callable
        Each takes an image (height, width, 3) and returns a vector.
    verbose : bool
        Say every 1,000 images how many are done.

    Returns
    -------
    float64 array of shape (N, F)
        F is the length of the vectors together.

    See Also
    --------
    gpuclf.extract_features : the same features of many images at once, and much faster.

    Examples
    --------
    >>> images = np.zeros((2, 32, 32, 3))
    >>> extract_features(images, [hog_feature, color_histogram_hsv]).shape
    (2, 154)
    """
    xp = array_namespace(imgs)
    n_images = int(imgs.shape[0])
    rows = []
    for i in range(n_images):
        image = imgs[i, ...]
        vectors = [xp.astype(feature(image), xp.float64) for feature in feature_fns]
        rows.append(xp.concat(vectors))
        if verbose and (i + 1) % REPORT_EVERY == 0:
            print(f"Done extracting features for {i + 1} / {n_images} images")
    return xp.stack(rows)


@on_its_device
def hog_feature(im: Array) -> Array:
    """Histograms of oriented gradients of one image: see :func:`gpuclf.image_features.hog`.

    Not the course's numbers: differences are centred, and an edge counts whichever side of it is
    the brighter.

    Parameters
    ----------
    im : array of shape (height, width, 3), pixels 0..255
        Height and width multiples of 8.

    Returns
    -------
    float32 array of shape (9 * cells,)
        144 numbers for an image of 32 x 32.
    """
    return image_features.hog(*_as_row(im))[0, :]


@on_its_device
def color_histogram_hsv(im: Array, nbin: int = 10) -> Array:
    """Histogram of an image's hues: see :func:`gpuclf.image_features.hue_histogram`.

    Parameters
    ----------
    im : array of shape (height, width, 3), pixels 0..255
    nbin : int
        10, the number of bins that the library has; a ValueError for another.

    Returns
    -------
    float32 array of shape (10,), whose sum is 1
    """
    if nbin != image_features.N_HUES:
        raise ValueError(f"nbin must be {image_features.N_HUES}, got {nbin!r}")
    return image_features.hue_histogram(*_as_row(im))[0, :]


def _as_row(im: Array) -> tuple[Array, tuple[int, int, int]]:
    """Return an image as the library has it, bytes (1, D) with the planes first, and its shape."""
    xp = array_namespace(im)
    if im.ndim != 3 or im.shape[-1] != 3:
        raise ValueError(
            f"im must have shape (height, width, 3), one image, got {tuple(im.shape)}; one of many "
            "is imgs[i], and a flattened one becomes an image again by im.reshape(32, 32, 3)"
        )
    if values_are_on_host(im) and not np.array_equal(im, np.clip(np.round(im), 0, 255)):
        raise ValueError(
            f"im must hold pixels, whole numbers 0..255, got values from {im.min():g} to "
            f"{im.max():g}; extract features from the images as loaded, before the mean is "
            "subtracted or they are divided"
        )
    height, width = int(im.shape[0]), int(im.shape[1])
    planes = xp.permute_dims(xp.astype(im, xp.uint8), (2, 0, 1))
    return xp.reshape(planes, (1, -1)), (3, height, width)
