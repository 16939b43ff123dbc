"""Full-batch L-BFGS, SciPy's, with loss and gradient computed where the samples live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.flat_params import flatten_params, unflatten_params
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized
from gpuclf.training.history import History, divergence, normalized_weights, quietly

__all__ = ["minimize_lbfgs"]


@quietly
def minimize_lbfgs(
    model: Model,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    reg: float,
    max_iter: int,
    tol: float,
    precision: str = "float32",
    sample_weight: Array | None = None,
    on_iteration: Callable[[Params, History], bool | None] | None = None,
    history: History | None = None,
) -> tuple[Params, History, int]:
    """Full-batch L-BFGS, SciPy's, with loss and gradient computed where X lives.

    Parameters
    ----------
    model : Model
    params : dict of array
        Where to start; not changed.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    reg : float
    max_iter : int
    tol : float
        Stop when no component of the gradient is larger.
    precision : {"float32", "tf32", "float64"}, default "float32"
        As for :meth:`gpuclf.models.Model.objective`.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    on_iteration : callable, optional
        ``on_iteration(params, history)``; the search ends if it returns True.
    history : History, optional
        To go on with.

    Returns
    -------
    params : dict of array
    history : History
    n_iter : int

    Raises
    ------
    ValueError
        If the gradient of the model's loss has jumps.
    DivergedError
        If the loss is NaN or infinite at the end.

    Notes
    -----
    The parameters and the gradient (123 KB for CIFAR-10 in float32) travel between host and device
    at each evaluation; X does not.
    """
    from scipy.optimize import minimize

    if not model.is_smooth:
        raise ValueError(
            f"L-BFGS needs a gradient without jumps, which the loss of {model.name!r} does not "
            "have: use SGD"
        )
    history = History() if history is None else history
    weights = normalized_weights(sample_weight, params)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        here = unflatten_params(flat, params)
        loss, grads = model.objective(here, X, y, reg, weights, precision=precision)
        return float(to_host(loss)), flatten_params({name: grads[name] for name in params})

    def after_iteration(intermediate_result: Any) -> None:
        history.loss.append(float(intermediate_result.fun))
        now = intermediate_result.x
        if on_iteration is not None and on_iteration(unflatten_params(now, params), history):
            raise StopIteration

    first = next(iter(params.values()))
    rounding = float(array_namespace(first).finfo(first.dtype).eps)
    found = minimize(
        evaluate,
        flatten_params(params),
        jac=True,
        method="L-BFGS-B",
        callback=after_iteration,
        options={"maxiter": max_iter, "gtol": tol, "ftol": 4 * rounding},
    )
    history.loss.append(float(found.fun))
    if error := divergence(history, 1):
        raise error
    history.reached_max_iter = found.status == 1
    return unflatten_params(found.x, params), history, int(found.nit)
