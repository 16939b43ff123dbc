"""Augmentations of image batches, on whatever device the batch lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace, describe_location
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.samples.standardized import Standardized

__all__ = ["augmented", "draw_flips", "horizontal_flip", "in_turn", "random_shift"]

CIFAR_SHAPE = (3, 32, 32)


@on_its_device
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


@on_its_device
def random_shift(
    X: Any,
    rng: np.random.Generator,
    image_shape: tuple[int, int, int] = CIFAR_SHAPE,
    pixels: int = 2,
) -> Any:
    """Move each image up or down, left or right, by at most `pixels`, each distance as likely.

    What enters repeats the pixels of the edge.

    Parameters
    ----------
    X : array of shape (N, D) or Standardized
        Rows are images of `image_shape`, flattened.
    rng : numpy.random.Generator
    image_shape : tuple of int
        (channels, height, width); their product is D.
    pixels : int, default 2

    Returns
    -------
    The batch in the same form; `X` is not changed.

    Examples
    --------
    >>> images = np.arange(12).reshape(4, 3)  # of one row each
    >>> random_shift(images, np.random.default_rng(1), image_shape=(1, 1, 3), pixels=1)
    array([[ 0,  0,  1],
           [ 3,  3,  4],
           [ 7,  8,  8],
           [10, 11, 11]])
    """
    if isinstance(X, Standardized):
        return X.with_samples(random_shift(X.X, rng, image_shape, pixels))
    xp = array_namespace(X)
    n_samples, (n_channels, height, width) = int(X.shape[0]), image_shape
    moves = to_device(rng.integers(-pixels, pixels + 1, (2, n_samples)), like=X)

    def moved(length: int, by: Any) -> Any:
        places = xp.arange(length, device=X.device)[None, :] + by[:, None]
        return xp.clip(places, 0, length - 1)

    planes = xp.reshape(X, (n_samples, n_channels, height * width))
    places = moved(height, moves[0, :])[:, :, None] * width + moved(width, moves[1, :])[:, None, :]
    planes_before = xp.arange(n_samples * n_channels, device=X.device) * (height * width)
    places = xp.reshape(planes_before, (n_samples, n_channels, 1)) + xp.reshape(
        places, (n_samples, 1, height * width)
    )
    taken = xp.take(xp.reshape(planes, (-1,)), xp.reshape(places, (-1,)))
    return xp.reshape(taken, X.shape)


def in_turn(X: Any, rng: np.random.Generator, steps: Sequence[Callable[[Any, Any], Any]]) -> Any:
    """Apply several augmentations, one after another.

    Parameters
    ----------
    X : array of shape (N, D) or Standardized
    rng : numpy.random.Generator
    steps : sequence of callable
        Each is called as ``step(X_batch, rng)``, and returns the batch for the next.

    Returns
    -------
    What the last one returns.

    Examples
    --------
    >>> from functools import partial
    >>> import gpuclf
    >>> steps = gpuclf.augment.horizontal_flip, partial(gpuclf.augment.random_shift, pixels=1)
    >>> net = gpuclf.TwoLayerNetClassifier(augment=partial(gpuclf.augment.in_turn, steps=steps))
    """
    for step in steps:
        X = step(X, rng)
    return X


def augmented(augment: Callable[[Any, Any], Any], X: Any, rng: np.random.Generator | None) -> Any:
    """Return ``augment(X, rng)``, after checking that it is a batch as X is.

    Raises
    ------
    ValueError
        If it has another shape, or is no array of the library and device of X: the labels of the
        batch would belong to other samples.
    """
    batch = augment(X, rng)
    wanted, found = tuple(X.shape), tuple(getattr(batch, "shape", ()))
    if found != wanted or (not hasattr(batch, "dtype") and not isinstance(batch, Standardized)):
        got = f"shape {found}" if hasattr(batch, "shape") else f"a {type(batch).__name__}"
        raise ValueError(
            f"augment must return a batch of the shape that it got, {wanted}, one row for each "
            f"label, got {got}"
        )
    stored, given = (v.X if isinstance(v, Standardized) else v for v in (batch, X))
    places = [describe_location(v) for v in (given, stored)]
    if places[0] != places[1]:
        raise ValueError(
            f"augment must return a batch where it got one, {places[0]}, got it in {places[1]}: "
            "compute with gpuclf.array_namespace(X_batch)"
        )
    return batch


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
