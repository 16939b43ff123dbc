"""The layers that the models are made of, each with its backward pass.

Every function takes leading model axes: X (N, D) or (..., N, D), W (..., D, M), b (..., M).
"""

from __future__ import annotations

from gpuclf.backend import Array, array_namespace
from gpuclf.dispatch import fusable

__all__ = ["affine", "affine_backward", "relu", "relu_backward"]


@fusable
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
    data, dX is not needed; the models then use :func:`affine_backward_params`.

    Examples
    --------
    >>> import numpy as np
    >>> dX, dW, db = affine_backward(np.ones((3, 2)), np.ones((3, 4)), np.ones((4, 2)))
    >>> dX.shape, dW.shape, db
    ((3, 4), (4, 2), array([3., 3.]))
    """
    xp = array_namespace(dY=dY, X=X, W=W)
    dW, db = affine_backward_params(dY, X)
    return dY @ xp.matrix_transpose(W), dW, db


@fusable
def affine_backward_params(dY: Array, X: Array) -> tuple[Array, Array]:
    """Gradients of :func:`affine` with respect to W and b only.

    Parameters
    ----------
    dY : array of shape (..., N, M)
    X : array of shape (..., N, D)

    Returns
    -------
    dW : array of shape (..., D, M)
    db : array of shape (..., M)
    """
    xp = array_namespace(dY=dY, X=X)
    return xp.matrix_transpose(X) @ dY, xp.sum(dY, axis=-2)


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
