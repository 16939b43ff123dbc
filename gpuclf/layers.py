"""The layers that the models are made of, each with its backward pass.

Every function takes leading model axes: X (N, D) or (..., N, D), W (..., D, M), b (..., M).
"""

from __future__ import annotations

import math

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device

__all__ = ["affine", "affine_backward", "apart", "relu", "relu_backward", "side_by_side"]


@on_its_device
def affine(X: Array, W: Array, b: Array | None = None) -> Array:
    """Return ``X @ W + b``.

    Parameters
    ----------
    X : array of shape (..., N, D)
    W : array of shape (..., D, M)
    b : array of shape (..., M), optional

    Returns
    -------
    array of shape (..., N, M)

    Examples
    --------
    >>> import numpy as np
    >>> affine(np.ones((1, 2)), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([10.0, 20.0]))
    array([[14., 26.]])
    """
    XW = X @ W
    return XW if b is None else XW + b[..., None, :]


@on_its_device
def affine_backward(dY: Array, X: Array, W: Array) -> tuple[Array, Array, Array]:
    """Gradients of :func:`affine` with respect to X, W and b.

    Parameters
    ----------
    dY : array of shape (..., N, M)
        Gradient of the loss with respect to the output.
    X : array of shape (..., N, D)
    W : array of shape (..., D, M)

    Returns
    -------
    dX : array of shape (..., N, D)
        ``dY @ W^T``.
    dW : array of shape (..., D, M)
        ``X^T @ dY``.
    db : array of shape (..., M)
        The sum of dY over the samples.

    Notes
    -----
    Source: Stanford CS231n, "Backpropagation", section on matrix products. Where the input is
    data, dX is not needed: see :meth:`gpuclf.samples.folding.RowBlock.affine_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> dX, dW, db = affine_backward(np.ones((3, 2)), np.ones((3, 4)), np.ones((4, 2)))
    >>> dX.shape, dW.shape, db
    ((3, 4), (4, 2), array([3., 3.]))
    """
    xp = array_namespace(dY=dY, X=X)
    return dY @ _transposed(W), _transposed(X) @ dY, xp.sum(dY, axis=-2)


def _transposed(X: Array) -> Array:
    return X.T if X.ndim == 2 else array_namespace(X).matrix_transpose(X)


@on_its_device
def relu(Z: Array) -> Array:
    """Return ``max(Z, 0)``, elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    xp = array_namespace(Z)
    return xp.maximum(Z, xp.zeros((), dtype=Z.dtype, device=Z.device))


@on_its_device
def relu_backward(dA: Array, A: Array) -> Array:
    """Gradient of :func:`relu` with respect to its input.

    Parameters
    ----------
    dA : array
        Gradient with respect to the output.
    A : array
        The output (or the input: only its sign is used). At exactly 0 the gradient is 0.
    """
    xp = array_namespace(dA=dA, A=A)
    return dA * xp.astype(A > 0, dA.dtype)


@on_its_device
def side_by_side(stack: Array) -> Array:
    """Put the matrices of K models next to each other, so that one product serves them all.

    Parameters
    ----------
    stack : array of shape (..., M, C)

    Returns
    -------
    array of shape (M, K C)
        Without a copy where :func:`apart` made the stack; a matrix is returned as it is.

    Examples
    --------
    >>> import numpy as np
    >>> side_by_side(np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]))
    array([[1, 2, 5, 6],
           [3, 4, 7, 8]])
    """
    if stack.ndim == 2:
        return stack
    xp = array_namespace(stack)
    n_rows, n_columns = stack.shape[-2:]
    models = xp.reshape(stack, (math.prod(stack.shape[:-2]), n_rows, n_columns))
    return xp.reshape(xp.permute_dims(models, (1, 0, 2)), (n_rows, -1))


def apart(wide: Array, models: tuple[int, ...]) -> Array:
    """Undo :func:`side_by_side`.

    Parameters
    ----------
    wide : array of shape (M, K C)
    models : tuple of int
        The leading axes; their product is K. ``()`` stands for one model without an axis.

    Returns
    -------
    array of shape (..., M, C), the axes of `models` first
        Where the library has views, one of `wide`: the models stay side by side in memory.
    """
    if not models:
        return wide
    xp = array_namespace(wide)
    n_rows = int(wide.shape[0])
    split = xp.reshape(wide, (n_rows, math.prod(models), -1))
    return xp.reshape(xp.permute_dims(split, (1, 0, 2)), (*models, n_rows, -1))
