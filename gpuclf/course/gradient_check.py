"""The assignment's gradient checks, which move x in place."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "grad_check_sparse",
    "rel_error",
]


@on_its_device
def eval_numerical_gradient(
    f: Callable[[Array], Any], x: Array, verbose: bool = True, h: float = 1e-5
) -> Array:
    r"""Gradient of f at x by centred differences.

    .. math:: \frac{\partial f}{\partial x_i} \approx \frac{f(x + h e_i) - f(x - h e_i)}{2h}

    Parameters
    ----------
    f : callable
        Returns one number. As in the course it may ignore its argument and read `x` itself, as in
        ``lambda W: net.loss(X, y)[0]`` with ``x = net.params["W1"]``.
    x : float array of any shape
        Moved in place, one number after the other, and put back. float64: in float32 rounding
        drowns the differences.
    verbose : bool
        Print each value.
    h : float
        The step.

    Returns
    -------
    array of the shape and dtype of `x`

    Raises
    ------
    TypeError, ValueError
        If `x` is no array of floats, or is read-only, or f returns a tuple.

    See Also
    --------
    gpuclf.numeric_gradient, gpuclf.grad_check : for functions of their argument alone.

    Examples
    --------
    >>> x = np.array([1.0, -3.0])
    >>> eval_numerical_gradient(lambda _: (x**2).sum(), x, verbose=False).round(6)
    array([ 2., -6.])
    """
    return _numerical_gradient(f, x, h, verbose)


@on_its_device
def eval_numerical_gradient_array(
    f: Callable[[Array], Array], x: Array, df: Array, h: float = 1e-5
) -> Array:
    """Gradient of ``sum(f(x) * df)`` for an f that returns an array.

    Parameters
    ----------
    f, x, h
        As for :func:`eval_numerical_gradient`.
    df : array of the shape of f(x)
        The gradient that comes from above.

    Returns
    -------
    array of the shape and dtype of `x`

    Examples
    --------
    >>> x = np.array([1.0, -3.0])
    >>> eval_numerical_gradient_array(lambda x: x**2, x, np.array([10.0, 1.0])).round(6)
    array([20., -6.])
    """
    return _numerical_gradient(f, x, h, False, df)


@on_its_device
def grad_check_sparse(
    f: Callable[[Array], Any],
    x: Array,
    analytic_grad: Array,
    num_checks: int = 10,
    h: float = 1e-5,
) -> None:
    """Print numerical and analytic gradient, and their relative error, at places drawn at random.

    Parameters
    ----------
    f, x, h
        As for :func:`eval_numerical_gradient`.
    analytic_grad : array of the shape of `x`
    num_checks : int
        Places, drawn from Python's global generator (``random.seed``), as in the course.

    See Also
    --------
    gpuclf.grad_check : judges the errors, and tells kinks from mistakes.

    Examples
    --------
    >>> x = np.array([3.0])
    >>> grad_check_sparse(lambda x: (x**2).sum(), x, 2 * x, num_checks=1)
    numerical: 6.000000 analytic: 6.000000, relative error: ...
    """
    if tuple(analytic_grad.shape) != tuple(x.shape):
        raise ValueError(
            f"analytic_grad must have the shape of x, {tuple(x.shape)}, got "
            f"{tuple(analytic_grad.shape)}"
        )
    for _ in range(num_checks):
        at = tuple(random.randrange(n) for n in x.shape)
        numerical = float(to_host(_difference(f, x, at, h))) / (2 * h)
        analytic = float(to_host(analytic_grad[at]))
        total = abs(numerical) + abs(analytic)
        error = abs(numerical - analytic) / total if total else 0.0
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


def rel_error(x: Array, y: Array) -> float:
    """Return the largest relative error, ``|x - y| / max(1e-8, |x| + |y|)``.

    Examples
    --------
    >>> rel_error(np.array([1.0, 0.0]), np.array([3.0, 0.0]))
    0.5
    """
    a, b = (np.asarray(to_host(value), dtype=np.float64) for value in (x, y))
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b))))


def _numerical_gradient(
    f: Callable[[Array], Any], x: Array, h: float, verbose: bool, df: Array = None
) -> Array:
    # Not gpuclf.numeric_gradient, which hands f copies: the course's f may read x itself.
    gradient = np.zeros(tuple(x.shape))
    for at in np.ndindex(gradient.shape):
        difference = _difference(f, x, at, h)
        if df is not None:
            difference = array_namespace(df).sum(difference * df)
        gradient[at] = float(to_host(difference)) / (2 * h)
        if verbose:
            print(at, gradient[at])
    xp = array_namespace(x)
    return xp.astype(to_device(gradient, like=x), x.dtype)


def _difference(f: Callable[[Array], Any], x: Array, at: tuple[int, ...], h: float) -> Any:
    """Return f(x + h) - f(x - h), where only ``x[at]`` moves, and put it back."""
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"x must be an array of floats, which a step of h = {h:g} can move, got {x.dtype}; "
            "convert it with x.astype(float)"
        )
    if xp is np and not x.flags.writeable:
        raise ValueError("x is moved in place, but this one is read-only; pass x.copy()")
    before = float(to_host(x[at]))
    try:
        x[at] = before + h
        above = f(x)
        if isinstance(above, tuple):
            raise TypeError(
                f"f must return one value, got a tuple of {len(above)}; of (loss, gradient) take "
                "the loss: lambda W: loss(W)[0]"
            )
        above = above * 1.0  # a copy: f may return x itself, or a view of it
        x[at] = before - h
        return above - f(x)
    finally:
        x[at] = before
