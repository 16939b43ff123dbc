"""Optimisers over a dictionary of parameters: mini-batch SGD and full-batch L-BFGS.

An objective is a function ``(params, X, y, reg, sample_weight) -> (loss, grads)``, for example
:func:`gpuclf.models.two_layer.two_layer_objective`. The order of the samples comes from the host's
random generator, so that a CPU run and a GPU run see the same mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuclf.backend import Array, array_namespace, to_device, to_host
from gpuclf.dispatch import fusable
from gpuclf.flat_params import flatten_params, unflatten_params
from gpuclf.samples.standardized import Standardized, is_streamed, take_rows
from gpuclf.samples.walk import row_slices

__all__ = [
    "DivergedError",
    "History",
    "minimize_lbfgs",
    "minimize_sgd",
    "one_cycle",
]

UPDATE_BYTES = 1 << 18  # of each of parameter, gradient, velocity and a temporary

Params = dict[str, Array]
EpochRunner = Callable[[np.ndarray, list[float] | Array], Array]
Objective = Callable[[Params, Any, Array, float, Array | None], tuple[Array, Params]]


class DivergedError(FloatingPointError):
    """The loss or the parameters became NaN or infinite during training."""


# Divergence is reported by DivergedError; NumPy's warnings on the way there would say it twice.
quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass
class History:
    """What training went through.

    Attributes
    ----------
    loss : list of float
        One value a step: the loss of the mini-batch (SGD), or of all samples before each step
        (gradient descent), after each iteration and once more at the end (L-BFGS), at the best
        parameters so far (random searches).
    learning_rate : list of float
        One value a step (SGD and gradient descent).
    val_accuracy : list of float
        One value an epoch, where validation samples were given.
    train_accuracy : list of float
        Beside it the accuracy on about as many training samples: the gap shows overfitting.
    reached_max_iter : bool
        Whether `max_iter` ended L-BFGS before its tolerance was met.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    reached_max_iter: bool = False
    train_accuracy: list[float] = field(default_factory=list)


def one_cycle(step: int, total_steps: int, warmup: float = 0.2) -> float:
    """Return the factor of the learning rate: a linear rise from 0 to 1, then a linear fall to 0.

    Source: Smith and Topin, "Super-convergence" (2017), with straight lines.

    Parameters
    ----------
    step, total_steps : int
    warmup : float
        The share of the steps that rise.

    Examples
    --------
    >>> [round(one_cycle(step, 10), 2) for step in (0, 1, 5, 9)]
    [0.5, 1.0, 0.56, 0.06]
    """
    done = (step + 0.5) / total_steps
    peak = max(warmup, 1e-9)
    return min(1.0, (step + 1) / (peak * total_steps)) if done < peak else (1 - done) / (1 - peak)


@quietly
def minimize_sgd(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    rate: Callable[[int], float],
    reg: float,
    momentum: float,
    nesterov: bool,
    batch_size: int,
    epochs: int,
    rng: np.random.Generator,
    velocity: Params | None = None,
    sample_weight: Array | None = None,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    on_epoch: Callable[[Params, History], bool | None] | None = None,
    history: History | None = None,
) -> tuple[Params, Params, History]:
    r"""Mini-batch stochastic gradient descent with momentum.

    .. math::

        v \leftarrow \mu v - \eta \nabla L, \qquad w \leftarrow w + v
        \quad\text{(Nesterov: } w \leftarrow w + \mu v - \eta \nabla L\text{)}

    Parameters
    ----------
    objective : callable
        ``(params, X, y, reg, sample_weight) -> (loss, grads)``.
    params : dict of array
        Where to start; not changed.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    rate : callable
        The learning rate of a step, counted from 0 over all epochs.
    reg : float
    momentum : float
        :math:`\mu`, in [0, 1).
    nesterov : bool
    batch_size : int
        The last batch of an epoch may be smaller.
    epochs : int
    rng : numpy.random.Generator
        Shuffles the samples anew for each epoch.
    velocity : dict of array, optional
        :math:`v` to go on with; zeros by default.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    augment : callable, optional
        ``augment(X_batch, rng)`` returns the batch to train on.
    on_epoch : callable, optional
        ``on_epoch(params, history)``, called after each epoch; training ends if it returns True.
    history : History, optional
        To go on with.

    Returns
    -------
    params, velocity : dict of array
    history : History

    Raises
    ------
    DivergedError
        If the loss became NaN or infinite, found when the losses of an epoch are read, or if the
        parameters are NaN or infinite at the end.

    Notes
    -----
    Source: Stanford CS231n, "Learning and evaluation", sections on SGD, momentum and Nesterov.
    """
    xp = array_namespace(y)
    # The updates run in place, on copies: the caller's arrays stay as they are.
    params = {name: xp.asarray(value, copy=True) for name, value in params.items()}
    velocity = {
        name: xp.zeros_like(value) if velocity is None else xp.asarray(velocity[name], copy=True)
        for name, value in params.items()
    }
    history = History() if history is None else history
    n_samples = int(y.shape[0])
    run_epoch = epoch_runner(
        _Objective(objective), params, velocity, X, y, batch_size=batch_size, reg=reg,
        momentum=momentum, nesterov=nesterov, shares=normalized_weights(sample_weight, params),
        augment=augment, rng=rng,
    )  # fmt: skip
    n_steps = len(row_slices(n_samples, batch_size))
    for _ in range(epochs):
        n_done = len(history.learning_rate)
        rates = [rate(step) for step in range(n_done, n_done + n_steps)]
        losses = run_epoch(rng.permutation(n_samples), rates)
        history.learning_rate += rates
        history.loss += [float(loss) for loss in to_host(losses)]
        raise_if_diverged(history, n_steps)
        if on_epoch is not None and on_epoch(params, history):
            break
    if not are_finite(params):
        raise diverged_at_the_end(history)
    return params, velocity, history


class _Objective:
    def __init__(self, objective: Any) -> None:
        self._objective, self.data_loss = objective, None

    def objective(self, *args: Any, **_: Any) -> Any:
        return self._objective(*args)


@fusable(
    by="y", cupy=("epochs.linear_on_gpu:linear_epochs", "epochs.two_layer_on_gpu:two_layer_epochs")
)
def epoch_runner(
    model: Any,
    params: Params,
    velocity: Params,
    X: Array | Standardized,
    y: Array,
    *,
    batch_size: int,
    reg: float | Array,
    momentum: float | Array,
    nesterov: bool,
    precision: str = "float32",
    shares: Array | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
    rng: np.random.Generator | None = None,
) -> EpochRunner:
    """Return a function that trains for one epoch, as :func:`minimize_sgd` says.

    A runner, and not a function for an epoch, so that what a device needs for an epoch is prepared
    once for all of them.

    Parameters
    ----------
    y, X, objective, batch_size, nesterov, augment, rng
        As in :func:`minimize_sgd`.
    params, velocity : dict of array
        Changed in place by each epoch. With a leading axis where there are K models: they see the
        same mini-batches.
    reg, momentum : float, or array of shape (K,)
    shares : array of shape (N,) or (K, N), optional
        Weights of the samples, with sum 1.

    Returns
    -------
    callable
        ``(order, rates) -> losses``: a permutation of the samples on the host and the learning
        rate of each step (a list of numbers, or an array of shape (n_steps, K)), to the loss of
        each step, shape (n_steps,) or (n_steps, K). The losses belong to the runner, until its next
        call.
    """
    xp = array_namespace(y)
    n_samples = int(y.shape[0])

    def run(on_host: np.ndarray, rates: list[float] | Array) -> Array:
        losses = []
        # Uploaded once an epoch; samples that stay on the host are gathered there.
        order = to_device(on_host, like=y)
        for step, rows in enumerate(row_slices(n_samples, batch_size)):
            batch = order[rows]
            X_batch = take_rows(X, on_host[rows] if is_streamed(X) else batch)
            if augment is not None:
                X_batch = augment(X_batch, rng)
            weights = None
            if shares is not None:
                weights = xp.take(shares, batch, axis=-1) * (n_samples / int(batch.shape[0]))
            learning_rate = rates[step] if isinstance(rates, list) else rates[step, :]
            loss, grads = model.objective(
                params, X_batch, xp.take(y, batch), reg, weights, precision=precision, rng=rng
            )
            for name, value in params.items():
                factors = (_for_models(factor, value) for factor in (learning_rate, momentum))
                momentum_step(value, grads[name], velocity[name], *factors, nesterov)
            losses.append(loss)
        return xp.stack(losses)

    return run


def _for_models(factor: Any, value: Array) -> Any:
    """Give factors of shape (K,) the axes of a parameter; one factor stays as it is."""
    return factor[(..., *[None] * (value.ndim - 1))] if getattr(factor, "ndim", 0) else factor


@fusable(numpy="elementwise.on_cpu:compiled_momentum_step")
def momentum_step(
    value: Array,
    gradient: Array,
    velocity: Array,
    learning_rate: float | Array,
    momentum: float | Array,
    nesterov: bool,
) -> None:
    """Update one parameter and its velocity in place, as :func:`minimize_sgd` says.

    Learning rate and momentum are numbers, or arrays that broadcast against the parameter. The
    gradient may be overwritten.
    """
    one_for_all = not getattr(learning_rate, "ndim", 0)
    for rows in _update_slices(value) if one_for_all else [slice(None)]:
        w, step, v = value[rows, ...], gradient[rows, ...], velocity[rows, ...]
        step *= learning_rate
        v *= momentum
        v -= step
        if nesterov:
            w -= step
            w += momentum * v
        else:
            w += v


def _update_slices(param: Array) -> list[slice]:
    """Cut a large parameter so that the six passes of an update find it in the cache."""
    n_rows = int(param.shape[0])
    if array_namespace(param) is not np or param.nbytes < 4 * UPDATE_BYTES:
        return [slice(0, n_rows)]
    return row_slices(n_rows, max(1, UPDATE_BYTES * n_rows // param.nbytes))


def normalized_weights(sample_weight: Array | None, params: Params) -> Array | None:
    """Scale the weights to sum 1, in the dtype that the losses are computed in."""
    if sample_weight is None:
        return None
    xp = array_namespace(sample_weight)
    dtype = next(iter(params.values())).dtype
    wide = xp.astype(sample_weight, xp.float64)
    return xp.astype(wide / xp.sum(wide, axis=-1, keepdims=True), dtype)


def raise_if_diverged(history: History, n_new: int) -> None:
    """Raise if one of the last `n_new` losses is not finite."""
    wrong = [loss for loss in history.loss[-n_new:] if not math.isfinite(loss)]
    if wrong:
        raise _diverged(f"the loss became {wrong[0]}", history)


def are_finite(params: Params, *, of_models: bool = False) -> np.ndarray:
    """Tell whether all parameters are finite, of each model if they have a leading model axis."""
    xp = array_namespace(*params.values())
    first = int(of_models)
    found = [
        xp.all(xp.isfinite(value), axis=tuple(range(first, value.ndim)))
        for value in params.values()
    ]
    return np.asarray(np.all(to_host(xp.stack(found)), axis=0))  # waits for the device once


def diverged_at_the_end(history: History) -> DivergedError:
    """Return the error of parameters that no later loss could betray."""
    return _diverged("the parameters became NaN or infinite", history)


def _diverged(what: str, history: History) -> DivergedError:
    rate = f" (it was {history.learning_rate[-1]:g})" if history.learning_rate else ""
    return DivergedError(
        f"{what} within {len(history.loss)} steps: use a smaller learning_rate{rate}, a smaller "
        "reg, or standardised features (gpuclf.Standardized.fit), and see that X holds no NaN"
    )


@quietly
def minimize_lbfgs(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    reg: float,
    max_iter: int,
    tol: float,
    sample_weight: Array | None = None,
    on_iteration: Callable[[Params, History], bool | None] | None = None,
) -> tuple[Params, History, int]:
    """Full-batch L-BFGS, SciPy's, with loss and gradient computed where X lives.

    Parameters
    ----------
    objective, params, X, y, reg
        As in :func:`minimize_sgd`.
    max_iter : int
    tol : float
        Stop when no component of the gradient is larger.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    on_iteration : callable, optional
        ``on_iteration(params, history)``; the search ends if it returns True.

    Returns
    -------
    params : dict of array
    history : History
    n_iter : int

    Notes
    -----
    The parameters and the gradient (123 KB for CIFAR-10 in float32) travel between host and device
    at each evaluation; X does not.
    """
    from scipy.optimize import minimize

    history = History()
    weights = normalized_weights(sample_weight, params)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grads = objective(unflatten_params(flat, params), X, y, reg, weights)
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
    raise_if_diverged(history, 1)
    history.reached_max_iter = found.status == 1
    return unflatten_params(found.x, params), history, int(found.nit)
