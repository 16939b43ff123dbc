"""Hand-made features of images: histograms of edge directions and of colours, a block at a time.

A classifier of raw pixels has to learn every edge at every place anew. These numbers say instead
which directions the edges of each small cell have, and which hues the image has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

from gpuclf.arrays import Array, array_namespace
from gpuclf.augment import CIFAR_SHAPE
from gpuclf.devices.cpu import single_threaded_blas
from gpuclf.devices.cupy import on_its_device
from gpuclf.samples.walk import block_rows, concat_row_blocks
from gpuclf.validation import check_samples

__all__ = ["extract_features", "hog", "hue_histogram"]

CELL = 8  # pixels, each way, as the course has it
N_ORIENTATIONS = 9
N_HUES = 10

Progress = Callable[[int, int], object]  # (images done, images in all)


@on_its_device
def extract_features(
    images: Array,
    image_shape: tuple[int, int, int] = CIFAR_SHAPE,
    *,
    cell: int = CELL,
    callback: Progress | None = None,
) -> Array:
    """Return the features of images: :func:`hog`, then :func:`hue_histogram`.

    Parameters
    ----------
    images : uint8 array of shape (N, D)
        One image a row: the red, green and blue plane, each row-major.
    image_shape : tuple of int
        (3, height, width), multiples of `cell` both; D is their product.
    cell : int
        Pixels of a cell of :func:`hog`, each way. Smaller cells keep more of where an edge is.
    callback : callable, optional
        ``callback(done, total)``, called with the number of images after each block of them.

    Returns
    -------
    float32 array of shape (N, 9 * cells + 10)
        154 numbers for an image of 32 x 32, 586 with cells of 4 pixels. In the array library of
        `images`.

    Raises
    ------
    TypeError
        If `images` is not uint8.
    ValueError
        If shapes do not fit.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, image features exercise, which then standardises them.
    The classifiers of this library do so by themselves.

    Examples
    --------
    >>> from gpuclf.datasets import make_synthetic
    >>> images, labels = make_synthetic(20)
    >>> extract_features(images).shape
    (20, 154)
    """
    planes = _check_images(images, image_shape, cell)

    def block(planes: Array) -> Array:
        of_both = [_hog(planes, cell), _hue_histogram(planes)]
        return array_namespace(planes).concat(of_both, axis=-1)

    return _over_blocks(block, planes, callback)


@on_its_device
def hog(
    images: Array, image_shape: tuple[int, int, int] = CIFAR_SHAPE, *, cell: int = CELL
) -> Array:
    r"""Histograms of oriented gradients: which directions the edges of each cell have.

    The image is made grey, 0.299 R + 0.587 G + 0.114 B. At each pixel, the differences
    :math:`g_x = I_{x+1} - I_{x-1}` and :math:`g_y` (0 at the border) have the magnitude
    :math:`\sqrt{g_x^2 + g_y^2}` and an orientation in [0, 180) degrees. A histogram of 9 bins, 20
    degrees each, holds the sum of the magnitudes over a cell, divided by its number of pixels.

    Parameters
    ----------
    images, image_shape, cell
        As for :func:`extract_features`.

    Returns
    -------
    float32 array of shape (N, 9 * cells)
        144 numbers for an image of 32 x 32 in cells of 8: 4 x 4 of them row by row, 9 orientations
        each.

    Notes
    -----
    Source: Dalal and Triggs, "Histograms of oriented gradients for human detection" (2005),
    without normalisation among neighbouring cells, as in Stanford CS231n, assignment 1. The same as
    ``skimage.feature.hog(grey, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(1, 1))``
    but for its normalisation of each cell.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.tile(np.arange(32, dtype=np.uint8), 3 * 32).reshape(1, -1)  # left to right
    >>> hog(ramp).reshape(4, 4, 9)[1, 1]  # a slope of 2 over two pixels, at 0 degrees
    array([2., 0., 0., 0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    planes = _check_images(images, image_shape, cell)
    return _over_blocks(lambda planes: _hog(planes, cell), planes)


@on_its_device
def hue_histogram(images: Array, image_shape: tuple[int, int, int] = CIFAR_SHAPE) -> Array:
    """Return the share of an image's pixels in each tenth of the colour wheel.

    Hue is that of HSV, from 0 (red) by green and blue to 1 (red again); grey pixels have hue 0.

    Parameters
    ----------
    images, image_shape
        As for :func:`extract_features`.

    Returns
    -------
    float32 array of shape (N, 10)
        Each row sums to 1.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, image features exercise.

    Examples
    --------
    >>> import numpy as np
    >>> green = np.repeat(np.array([0, 200, 0], dtype=np.uint8), 1024).reshape(1, -1)
    >>> hue_histogram(green)  # a third of the way round
    array([[0., 0., 0., 1., 0., 0., 0., 0., 0., 0.]], dtype=float32)
    """
    return _over_blocks(_hue_histogram, _check_images(images, image_shape, CELL))


def _check_images(images: Array, image_shape: tuple[int, int, int], cell: int) -> Array:
    """Return the images as (N, 3, height, width)."""
    xp = array_namespace(images)
    _, _, n_features = check_samples(images, "images")
    channels, height, width = image_shape
    if not isinstance(cell, Integral) or cell < 1:
        raise ValueError(f"cell must be an integer number of pixels, at least 1, got {cell!r}")
    if channels != 3 or height < cell or height % cell or width < cell or width % cell:
        raise ValueError(
            f"image_shape must be (3, height, width), both multiples of {cell}, got {image_shape}"
        )
    if n_features != math.prod(image_shape):
        raise ValueError(
            f"images must have shape (N, {math.prod(image_shape)}), one image of shape "
            f"{image_shape} a row, got {tuple(images.shape)}; give another size as "
            "image_shape=(3, height, width)"
        )
    if images.dtype != xp.uint8:
        raise TypeError(
            f"images must be uint8, pixels of 0..255, got {images.dtype}; convert fractions 0..1 "
            "or whole numbers with gpuclf.datasets.to_rows(images)"
        )
    return xp.reshape(images, (-1, *image_shape))


def _over_blocks(
    function: Callable[[Array], Array], planes: Array, callback: Progress | None = None
) -> Array:
    xp = array_namespace(planes)
    n_images, _, height, width = (int(n) for n in planes.shape)

    def part(rows: slice) -> Array:
        features = function(xp.astype(planes[rows, ...], xp.float32))
        if callback is not None:
            callback(rows.stop, n_images)
        return features

    like = xp.empty((0,), dtype=xp.float32, device=planes.device)
    step = block_rows(like, n_images, 14 * height * width, converted=True)
    with single_threaded_blas():  # threads would wait for each other at every small product
        return concat_row_blocks(part, n_images, step)


def _hog(planes: Array, cell: int) -> Array:
    xp = array_namespace(planes)
    n_images, _, height, width = planes.shape
    # In thousandths, grey is a whole number: float32 has it and its differences exactly, and every
    # library finds the same orientation, also at a bin's edge.
    grey = 299 * planes[:, 0, ...] + 587 * planes[:, 1, ...] + 114 * planes[:, 2, ...]
    zeros = xp.zeros_like(grey)
    dx = xp.concat([zeros[..., :1], grey[..., 2:] - grey[..., :-2], zeros[..., :1]], axis=-1)
    dy = xp.concat([zeros[:, :1, :], grey[:, 2:, :] - grey[:, :-2, :], zeros[:, :1, :]], axis=-2)
    magnitude = xp.sqrt(dx * dx + dy * dy) / 1000
    down = (dy < 0) | ((dy == 0) & (dx < 0))  # an edge has the same orientation seen from behind
    angle = xp.atan2(xp.abs(dy), xp.where(down, -dx, dx))
    bins = xp.floor(angle * (N_ORIENTATIONS / math.pi))
    cells = _cell_means(height, width, cell, like=grey)
    histograms = _histograms(bins, magnitude, cells, N_ORIENTATIONS)
    return xp.reshape(histograms, (n_images, -1))


def _cell_means(height: int, width: int, cell: int, like: Array) -> Array:
    """Return the (height * width, cells) matrix that takes pixels to the means of their cells."""
    xp = array_namespace(like)
    y = xp.arange(height, device=like.device)[:, None] // cell
    x = xp.arange(width, device=like.device)[None, :] // cell
    cell_of_pixel = xp.reshape(y * (width // cell) + x, (-1, 1))
    cells = xp.arange((height // cell) * (width // cell), device=like.device)
    return xp.astype(cell_of_pixel == cells, like.dtype) / cell**2


def _hue_histogram(planes: Array) -> Array:
    xp = array_namespace(planes)
    red, green, blue = (planes[:, i, ...] for i in range(3))
    brightest = xp.max(planes, axis=1)
    chroma = brightest - xp.min(planes, axis=1)
    # Six times the hue, times chroma: whole numbers, so that the quotient below is never rounded
    # across a bin's edge.
    sixfold = xp.where(
        brightest == red,
        green - blue + 6 * chroma * xp.astype(green < blue, chroma.dtype),
        xp.where(brightest == green, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    hue = N_HUES * sixfold / xp.maximum(6 * chroma, xp.ones_like(chroma))  # 0 where it is grey
    n_pixels = math.prod(hue.shape[1:])
    mean = xp.full((n_pixels, 1), 1 / n_pixels, dtype=hue.dtype, device=hue.device)
    return _histograms(xp.floor(hue), xp.ones_like(hue), mean, N_HUES)[:, 0, :]


def _histograms(bins: Array, weights: Array, means: Array, n_bins: int) -> Array:
    """Return (N, cells, n_bins): the means over each cell of the weights of each bin's pixels."""
    xp = array_namespace(bins)
    flat = (int(bins.shape[0]), -1)
    bins, weights = xp.reshape(bins, flat), xp.reshape(weights, flat)
    zero = xp.zeros((), dtype=weights.dtype, device=weights.device)
    of_bin = [xp.where(bins == k, weights, zero) @ means for k in range(n_bins)]
    return xp.stack(of_bin, axis=-1)
