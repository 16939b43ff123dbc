"""Points on the arms of a spiral: the smallest problem that no linear classifier solves."""

import operator

import numpy as np
import numpy.typing as npt

__all__ = ["make_spiral"]

_RADIANS_PER_ARM = 4.0


def make_spiral(
    n_per_class: int = 100, n_classes: int = 3, noise: float = 0.2, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    r"""Make points in the plane, each class on an arm of a spiral.

    Arm j has the points :math:`(r \sin t, r \cos t)` with the radius r rising evenly from 0 to 1
    and the angle t from 4 j to 4 (j + 1) radians, plus normal noise on the angle.

    Parameters
    ----------
    n_per_class : int, default 100
        Points on each arm, at least 1.
    n_classes : int, default 3
        Number of arms, at least 1.
    noise : float, default 0.2
        Standard deviation of the noise, in radians.
    seed : int, default 0

    Returns
    -------
    X : ndarray of float64, shape (n_per_class * n_classes, 2)
    y : ndarray of int64, shape (n_per_class * n_classes,)
        Labels 0..n_classes-1, one arm after the other.

    Raises
    ------
    TypeError
        If a number of points or classes, or the seed, is not an integer.
    ValueError
        If one of the arguments is out of range.

    Notes
    -----
    Source: Stanford CS231n, "Putting it together: minimal neural network case study".

    Examples
    --------
    >>> X, y = make_spiral()
    >>> X.shape, y.shape
    ((300, 2), (300,))
    >>> make_spiral(n_per_class=3, n_classes=1, noise=0)[0].round(2)  # half round, then 4 radians
    array([[ 0.  ,  0.  ],
           [ 0.45, -0.21],
           [-0.76, -0.65]])
    """
    n_per_class, n_classes = operator.index(n_per_class), operator.index(n_classes)
    if n_per_class < 1 or n_classes < 1:
        raise ValueError(
            f"n_per_class and n_classes must be at least 1, got {n_per_class} and {n_classes}"
        )
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be a finite number of radians, at least 0, got {noise!r}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    rng = np.random.default_rng(seed)
    arms = np.arange(n_classes)[:, np.newaxis]
    radius = np.linspace(0, 1, n_per_class)
    turned = np.linspace(0, _RADIANS_PER_ARM, n_per_class)
    angle = _RADIANS_PER_ARM * arms + turned + noise * rng.standard_normal((n_classes, n_per_class))
    X = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)
    return X.reshape(-1, 2), np.repeat(arms, n_per_class)
