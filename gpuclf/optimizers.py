"""The slow end of the optimisation ladder: random searches, and plain gradient descent.

They show what :mod:`gpuclf.training`'s SGD and L-BFGS are worth. All minimise the same kind of
objective, ``(params, X, y, reg, sample_weight) -> (loss, grads)``. The searches use the loss alone,
so an objective that leaves the gradients out, such as :func:`gpuclf.models.linear.linear_loss_only`, saves
them most of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.flat_params import flatten_params, unflatten_params
from gpuclf.samples.standardized import Standardized
from gpuclf.training import (
    DivergedError,
    History,
    Objective,
    Params,
    normalized_weights,
    quietly,
    raise_if_diverged,
)

__all__ = ["minimize_gd", "random_local_search", "random_search"]

CANDIDATE_BYTES = 1 << 26  # the candidates that are scored in one product

OnIteration = Callable[[Params, History], bool | None]


@quietly
def random_search(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    reg: float,
    n_candidates: int,
    scale: float,
    rng: np.random.Generator,
    sample_weight: Array | None = None,
    on_chunk: OnIteration | None = None,
) -> tuple[Params, History]:
    r"""Draw candidates at random, keep the best: :math:`w = w_0 + \sigma \epsilon`.

    Parameters
    ----------
    objective : callable
        ``(params, X, y, reg, sample_weight) -> (loss, grads)`` for parameters with a leading model
        axis. With :func:`gpuclf.models.linear.linear_loss_only`, a chunk of candidates is one product.
    params : dict of array
        :math:`w_0`; zeros for a search around the origin. Not changed, and no candidate itself.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    reg : float
    n_candidates : int
        At least 1.
    scale : float
        :math:`\sigma`, the standard deviation.
    rng : numpy.random.Generator
        The candidates are the same on every device, and however they are cut into chunks.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    on_chunk : callable, optional
        ``on_chunk(best params, history)``, called after each chunk of at most 64 MB of
        parameters; the search ends if it returns True.

    Returns
    -------
    params : dict of array
        The best candidate.
    history : History
        Its `loss` has the smallest loss so far, one value a candidate.

    Raises
    ------
    ValueError
        If there is to be no candidate.
    DivergedError
        If no candidate has a finite loss.

    Notes
    -----
    Source: Stanford CS231n, "Optimization", strategy 1; the best of 1,000 W reached 15.5 % on
    CIFAR-10's test set.
    """
    if n_candidates < 1:
        raise ValueError(f"n_candidates must be at least 1, got {n_candidates!r}")
    weights = normalized_weights(sample_weight, params)
    start = flatten_params(params)
    itemsize = sum(_bytes(value) for value in params.values())
    per_chunk = max(1, CANDIDATE_BYTES // itemsize)
    best, history = params, History()
    best_loss = math.inf
    for first in range(0, n_candidates, per_chunk):
        n_drawn = min(per_chunk, n_candidates - first)
        drawn = rng.standard_normal((n_drawn, start.size))
        drawn *= scale
        drawn += start
        losses, _ = objective(unflatten_params(drawn, params), X, y, reg, weights)
        found = np.asarray(to_host(losses))
        # fmin passes over NaN: such a candidate has only lost.
        so_far = np.fmin.accumulate(np.fmin(found, best_loss))
        if so_far[-1] < best_loss:
            best_loss = float(so_far[-1])
            best = unflatten_params(drawn[np.nanargmin(found)], params)
        history.loss += so_far.tolist()
        if on_chunk is not None and on_chunk(best, history):
            break
    _raise_if_not_finite(best_loss)
    return best, history


def _bytes(value: Array) -> int:
    bits = array_namespace(value).finfo(value.dtype).bits
    return int(math.prod(value.shape) * bits // 8)


def _raise_if_not_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss}: use a smaller scale or standardised features "
            "(gpuclf.Standardized.fit), and see that X and the parameters hold no NaN"
        )


@quietly
def random_local_search(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    reg: float,
    max_iter: int,
    scale: float,
    rng: np.random.Generator,
    sample_weight: Array | None = None,
    on_iteration: OnIteration | None = None,
) -> tuple[Params, History]:
    r"""Try a random step, and take it if it leads down: :math:`w + \sigma \epsilon`.

    Parameters
    ----------
    objective, X, y, reg, sample_weight
        As in :func:`random_search`; no model axis is needed.
    params : dict of array
        Where to start; not changed.
    max_iter : int
        How many steps to try.
    scale : float
        :math:`\sigma`, the standard deviation of a step.
    rng : numpy.random.Generator
    on_iteration : callable, optional
        ``on_iteration(params, history)``, after each try; the search ends if it returns True.

    Returns
    -------
    params : dict of array
    history : History
        Its `loss` has that of the start and, after each try, of where the search then is: it never
        rises.

    Raises
    ------
    DivergedError
        If the loss at the start is not finite.

    Notes
    -----
    Source: Stanford CS231n, "Optimization", strategy 2; 1,000 steps reached 21.4 % on CIFAR-10's
    test set.
    """
    weights = normalized_weights(sample_weight, params)
    here = flatten_params(params)
    history = History()

    def loss_at(params: Params) -> float:
        return float(to_host(objective(params, X, y, reg, weights)[0]))

    params = unflatten_params(here, params)
    lowest = loss_at(params)
    _raise_if_not_finite(lowest)
    history.loss.append(lowest)
    for _ in range(max_iter):
        there = here + scale * rng.standard_normal(here.size)
        tried = unflatten_params(there, params)
        loss = loss_at(tried)
        if loss < lowest:
            here, params, lowest = there, tried, loss
        history.loss.append(lowest)
        if on_iteration is not None and on_iteration(params, history):
            break
    return params, history


@quietly
def minimize_gd(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    rate: Callable[[int], float],
    reg: float,
    max_iter: int,
    sample_weight: Array | None = None,
    on_iteration: OnIteration | None = None,
) -> tuple[Params, History]:
    r"""Full-batch gradient descent, :math:`w \leftarrow w - \eta \nabla L`.

    Parameters
    ----------
    objective : callable
        ``(params, X, y, reg, sample_weight) -> (loss, grads)``.
    params : dict of array
        Where to start; not changed.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    rate : callable
        The learning rate :math:`\eta` of a step, counted from 0.
    reg : float
    max_iter : int
        How many steps to take.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    on_iteration : callable, optional
        ``on_iteration(params, history)``, after each step; the descent ends if it returns True.

    Returns
    -------
    params : dict of array
    history : History
        Its `loss` has one value a step, from before it.

    Raises
    ------
    DivergedError
        If the loss became NaN or infinite.

    Notes
    -----
    The same as :func:`gpuclf.training.minimize_sgd` with a batch of all samples and no momentum,
    without gathering the samples in a new order. Source: Stanford CS231n, "Optimization", vanilla
    gradient descent.
    """
    weights = normalized_weights(sample_weight, params)
    history = History()
    for step in range(max_iter):
        loss, grads = objective(params, X, y, reg, weights)
        learning_rate = rate(step)
        params = {name: value - learning_rate * grads[name] for name, value in params.items()}
        history.loss.append(float(to_host(loss)))
        history.learning_rate.append(learning_rate)
        raise_if_diverged(history, 1)
        if on_iteration is not None and on_iteration(params, history):
            break
    return params, history
