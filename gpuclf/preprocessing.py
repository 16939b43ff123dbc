"""What is done to samples before a classifier sees them.

Nothing is written out where it need not be: subtracting the mean image or standardising gives
:class:`gpuclf.Standardized` samples, which stay the bytes that they are; the losses and the
classifiers trained by gradients take them as X. ``Standardized.fit(X)`` divides by the standard
deviation too, with the conventions of scikit-learn's StandardScaler (no degrees of freedom lost;
scale 1 for a constant feature), and ``.apply(X_test)`` of either does the same to other samples.

The bias trick puts the bias into W as its last row, with a feature that is always 1. It belongs to
formulas that have no b. Within this library the bias stays apart: it is not penalised.
"""

from __future__ import annotations

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device
from gpuclf.samples.standardized import Standardized

__all__ = ["add_bias_column", "mean_image", "split_bias", "subtract_mean_image"]


def mean_image(X: Array) -> Array:
    """Return the mean of the samples, shape (D,), in float64.

    Parameters
    ----------
    X : array of shape (N, D), uint8, float32 or float64

    Raises
    ------
    TypeError, ValueError
        If dtype or shape do not fit, or X has NaN.

    Examples
    --------
    >>> import numpy as np
    >>> mean_image(np.array([[0, 200], [10, 255]], dtype=np.uint8))
    array([  5. , 227.5])
    """
    return Standardized.fit(X).mean


def subtract_mean_image(X: Array) -> Standardized:
    """Return ``X - mean_image(X)``, lazily: X is not copied.

    Parameters
    ----------
    X : array of shape (N, D), uint8, float32 or float64
        The training samples.

    Returns
    -------
    Standardized
        With scale 1. Its ``apply(X_val)`` subtracts the same mean from other samples, and
        ``to_array()`` writes them out.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, which subtracts the mean of the training images from all
    parts.

    Examples
    --------
    >>> import numpy as np
    >>> train = subtract_mean_image(np.array([[0, 200], [10, 255]], dtype=np.uint8))
    >>> train.to_array()
    array([[ -5. , -27.5],
           [  5. ,  27.5]], dtype=float32)
    >>> train.apply(np.array([[5, 228]], dtype=np.uint8)).to_array()
    array([[0. , 0.5]], dtype=float32)
    """
    return Standardized(X, mean_image(X), 1.0)


@on_its_device
def add_bias_column(X: Array | Standardized) -> Array | Standardized:
    """Return the samples with one more feature, last, which is always 1.

    Parameters
    ----------
    X : array of shape (N, D), or Standardized

    Returns
    -------
    array of shape (N, D + 1), or Standardized
        A copy of the dtype of X.

    Notes
    -----
    With it, the scores ``X @ W + b`` are one product with the W of D + 1 rows whose last is b; see
    :func:`split_bias`. The loss is not the same: this library penalises every row of W, and no b.

    Examples
    --------
    >>> import numpy as np
    >>> add_bias_column(np.array([[3.0, 4.0]]))
    array([[3., 4., 1.]])
    """
    if isinstance(X, Standardized):
        xp = array_namespace(X.mean)
        one = xp.ones_like(X.mean[:1])
        mean, scale = xp.concat([X.mean, 0 * one]), xp.concat([X.scale, one])
        return Standardized(add_bias_column(X.X), mean, scale)
    xp = array_namespace(X)
    if X.ndim != 2:
        raise ValueError(f"X must have shape (N, D), one sample a row, got {tuple(X.shape)}")
    return xp.concat([X, xp.ones((X.shape[0], 1), dtype=X.dtype, device=X.device)], axis=1)


def split_bias(W: Array) -> tuple[Array, Array]:
    """Take the last row of W off, as the bias.

    Parameters
    ----------
    W : array of shape (..., D + 1, C)
        For samples with :func:`add_bias_column`.

    Returns
    -------
    W : array of shape (..., D, C)
    b : array of shape (..., C)
        Views, where the array library has views.

    Examples
    --------
    >>> import numpy as np
    >>> split_bias(np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]]))
    (array([[1., 2.],
           [3., 4.]]), array([10., 20.]))
    """
    array_namespace(W)
    if W.ndim < 2 or W.shape[-2] < 2:
        raise ValueError(
            "W must have shape (..., D + 1, C), the bias as its last row, got "
            + str(tuple(W.shape))
        )
    return W[..., :-1, :], W[..., -1, :]
