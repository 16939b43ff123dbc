"""Vectors like those that an image network gives, made in memory."""

import operator

import numpy as np
import numpy.typing as npt

__all__ = ["make_embeddings"]

_DTYPES = ("float16", "float32", "float64")
_BLOCK_ROWS = 1024


def make_embeddings(
    n_samples: int = 10_000,
    n_features: int = 512,
    n_classes: int = 100,
    *,
    class_sep: float = 6.0,
    unit_length: bool = True,
    dtype: str = "float32",
    seed: int = 0,
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
    r"""Make samples around a centre for each class, in the shape of a network's embeddings.

    .. math:: x_i = s\, c_{y_i} + z_i, \qquad c_j \text{ on the unit sphere}, \quad
        z_i \sim N(0, I)

    Parameters
    ----------
    n_samples : int, default 10,000
        At least 1. Cut training and test samples from one call: another seed has other classes.
    n_features : int, default 512
        At least 1.
    n_classes : int, default 100
        At least 1.
    class_sep : float, default 6.0
        The length s of a class's centre, in standard deviations of a feature within a class. Two
        classes overlap by :math:`\Phi(-s / \sqrt 2)` in many dimensions, 1e-5 for the default.
    unit_length : bool, default True
        Divide each sample by its length, as is usual where cosines are compared.
    dtype : {"float32", "float16", "float64"}, default "float32"
    seed : int, default 0

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
    y : ndarray of int64, shape (n_samples,)
        Labels 0..n_classes-1, drawn independently and uniformly.

    Raises
    ------
    TypeError
        If a number of samples, features or classes, or the seed, is not an integer.
    ValueError
        If one of the arguments is out of range.

    Notes
    -----
    Embeddings of real networks lie in fewer dimensions than they have, and their classes are not
    equally far apart: how long a method takes carries over, how many are right does not.

    Examples
    --------
    >>> X, y = make_embeddings(1000, n_features=64, n_classes=10)
    >>> X.shape, X.dtype.name, y.shape
    ((1000, 64), 'float32', (1000,))
    >>> bool(abs((X * X).sum(axis=1) - 1).max() < 1e-6)
    True
    """
    sizes = {"n_samples": n_samples, "n_features": n_features, "n_classes": n_classes}
    for name, size in sizes.items():
        if operator.index(size) < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not 0 <= class_sep < np.inf:
        raise ValueError(f"class_sep must be a finite number, at least 0, got {class_sep!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    rng = np.random.default_rng(seed)
    working = np.float64 if dtype == "float64" else np.float32  # float16 only at the end
    centres = rng.standard_normal((n_classes, n_features))
    centres *= class_sep / np.linalg.norm(centres, axis=1, keepdims=True)
    centres = centres.astype(working)
    y = rng.integers(n_classes, size=n_samples)
    X = np.empty((n_samples, n_features), dtype)
    for start in range(0, n_samples, _BLOCK_ROWS):
        labels = y[start : start + _BLOCK_ROWS]
        rows = rng.standard_normal((len(labels), n_features), dtype=working)
        rows += centres[labels]
        if unit_length:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        X[start : start + _BLOCK_ROWS] = rows
    return X, y
