"""Augmentations of image batches, on whatever device the batch lives."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.devices.backends import to_device
from gpuclf.samples.standardized import Standardized

__all__ = ["draw_flips", "horizontal_flip"]

CIFAR_SHAPE = (3, 32, 32)


def horizontal_flip(
    X: Any, rng: np.random.Generator, image_shape: tuple[int, int, int] = CIFAR_SHAPE
) -> Any:
    """Mirror each image left to right with probability one half.

    Parameters
    ----------
    X : array of shape (N, D) or Standardized
        Rows are images of `image_shape`, flattened.
    rng : numpy.random.Generator
    image_shape : tuple of int
        (channels, height, width); their product is D.

    Returns
    -------
    The batch in the same form; `X` is not changed.
    """
    if isinstance(X, Standardized):
        return X.with_samples(horizontal_flip(X.X, rng, image_shape))
    xp = array_namespace(X)
    n_samples = int(X.shape[0])
    mirror = to_device(draw_flips(n_samples, rng), like=X)
    mirrored = xp.reshape(xp.flip(xp.reshape(X, (n_samples, *image_shape)), axis=-1), X.shape)
    return xp.where(mirror[:, None], mirrored, X)


def draw_flips(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw which images to mirror.

    Parameters
    ----------
    n_samples : int
    rng : numpy.random.Generator

    Returns
    -------
    NumPy array of bool, shape (N,)
        For several batches together what it would be for each, one after another.

    Examples
    --------
    >>> one, other = np.random.default_rng(0), np.random.default_rng(0)
    >>> draw_flips(5, one).tolist() == [*draw_flips(2, other), *draw_flips(3, other)]
    True
    """
    return rng.random(n_samples) < 0.5
