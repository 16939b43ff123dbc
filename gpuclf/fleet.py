"""Many models trained at once: one walk over the samples, one wide product a step.

A linear model multiplies a mini-batch by ten columns, which leaves most of a processor idle. K
models that see the same mini-batches are one product (B, D) x (D, K C) forward and one backward.
Each has its own learning rates, penalty, momentum, start and sample weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpuclf.backend import Array, array_namespace, to_device, to_host
from gpuclf.layers import apart, side_by_side
from gpuclf.samples.standardized import Standardized
from gpuclf.training import (
    DivergedError,
    History,
    Objective,
    Params,
    are_finite,
    diverged_at_the_end,
    epoch_runner,
    normalized_weights,
    quietly,
    raise_if_diverged,
)

__all__ = ["Member", "train_fleet"]

Rate = Callable[[int], float]


@dataclass
class Member:
    """What became of one model of a fleet.

    Attributes
    ----------
    params, velocity : dict of array, or None
        Without the model axis; None if the model diverged.
    history : History
    error : DivergedError or None
        Why the model was set aside.
    """

    params: Params | None = None
    velocity: Params | None = None
    history: History = field(default_factory=History)
    error: DivergedError | None = None


@quietly
def train_fleet(
    objective: Objective,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    rates: Sequence[Rate],
    reg: Sequence[float],
    momentum: Sequence[float],
    nesterov: bool,
    batch_size: int,
    epochs: int,
    rng: np.random.Generator,
    velocity: Params | None = None,
    sample_weight: Array | None = None,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    on_epoch: Callable[[Params, list[int], list[History]], Collection[int] | None] | None = None,
    histories: Sequence[History] | None = None,
) -> list[Member]:
    """Train K models by mini-batch SGD, as :func:`gpuclf.training.minimize_sgd` would each alone.

    Parameters
    ----------
    objective : callable
        As for :func:`gpuclf.training.minimize_sgd`; parameters, `reg` and losses have a leading
        model axis.
    params : dict of array
        Where to start, each of shape (K, ...); not changed. An initial scale of its own is a factor
        in here.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    rates : sequence of K callables
        The learning rate of a step, counted from 0 over all epochs.
    reg, momentum : sequence of K floats
    nesterov : bool
    batch_size, epochs : int
    rng : numpy.random.Generator
        Shuffles the samples anew for each epoch, alike for all models.
    velocity : dict of array, optional
        To go on with, like `params`; zeros by default.
    sample_weight : array of shape (N,) or (K, N), optional
        Non-negative. Samples of weight 0 do not train that model: a fold to validate on.
    augment : callable, optional
        ``augment(X_batch, rng)`` returns the batch to train on.
    on_epoch : callable, optional
        ``on_epoch(params, numbers, histories)``, called after each epoch with the models that still
        train. The numbers that it returns stop there, and the others go on without their columns.
    histories : sequence of K History, optional
        To go on with. Together with the parameters, the velocity and `rng` that an earlier call
        left they continue it as if it had not ended, with as few of its models as are given.

    Returns
    -------
    list of Member
        In the order of the models. One whose loss is no longer finite at the end of an epoch, or
        whose parameters are not at its end, is set aside, with its error; the others do not notice.

    Examples
    --------
    >>> from functools import partial
    >>> from gpuclf.models.linear import linear_loss
    >>> from gpuclf.losses import softmax_cross_entropy
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> start = {"W": np.zeros((2, 1, 2)), "b": np.zeros((2, 2))}
    >>> slow, fast = train_fleet(
    ...     partial(linear_loss, softmax_cross_entropy), start, X, y,
    ...     rates=[lambda step: 0.01, lambda step: 1.0], reg=[0.0, 0.0], momentum=[0.9, 0.9],
    ...     nesterov=False, batch_size=4, epochs=20, rng=np.random.default_rng(0))
    >>> slow.history.loss[-1] > fast.history.loss[-1]
    True
    """
    n_models = int(next(iter(params.values())).shape[0])
    for name, values in (("rates", rates), ("reg", reg), ("momentum", momentum)):
        if len(values) != n_models:
            raise ValueError(
                f"{name} must have one value for each of the {n_models} models, got {len(values)}"
            )
    xp = array_namespace(y)
    dtype = next(iter(params.values())).dtype
    n_steps = math.ceil(int(y.shape[0]) / batch_size)
    members = [Member(history=h) for h in histories or [History() for _ in range(n_models)]]
    if velocity is None:
        velocity = {name: xp.zeros_like(value) for name, value in params.items()}
    n_features = int(X.shape[1])
    fleet = _Fleet(
        list(range(n_models)),
        {name: _laid_out(value, n_features) for name, value in params.items()},
        {name: _laid_out(value, n_features) for name, value in velocity.items()},
        normalized_weights(sample_weight, params),
        n_features,
    )

    def of_models(values: Any) -> Array:
        return to_device(np.asarray(values, dtype=np.float64), like=y)

    def end(numbers: Collection[int]) -> None:
        finite = are_finite(fleet.params, of_models=True) if numbers else ()
        for k in numbers:
            if finite[fleet.numbers.index(k)]:
                members[k].params, members[k].velocity = fleet.model(k)
            else:
                members[k].error = diverged_at_the_end(members[k].history)

    in_training: list[int] = []
    for _ in range(epochs):
        n_done = [len(member.history.learning_rate) for member in members]
        given = np.asarray(
            [[rates[k](n_done[k] + step) for k in fleet.numbers] for step in range(n_steps)]
        )
        if fleet.numbers != in_training:  # else the runner has all that it needs
            in_training = list(fleet.numbers)
            run_epoch = epoch_runner(
                *(y, X, fleet.params, fleet.velocity),
                objective=objective,
                reg=of_models([reg[k] for k in fleet.numbers]),
                momentum=xp.astype(of_models([momentum[k] for k in fleet.numbers]), dtype),
                nesterov=nesterov,
                batch_size=batch_size,
                rng=rng,
                shares=fleet.shares,
                augment=augment,
            )
        losses = run_epoch(rng.permutation(int(y.shape[0])), xp.astype(of_models(given), dtype))
        of_members = zip(fleet.numbers, to_host(losses).T, given.T, strict=True)
        for k, losses_of_member, rates_of_member in of_members:
            history = members[k].history
            history.loss += losses_of_member.tolist()
            history.learning_rate += rates_of_member.tolist()
            try:
                raise_if_diverged(history, n_steps)
            except DivergedError as error:
                members[k].error = error
        fleet = fleet.only(k for k in fleet.numbers if members[k].error is None)
        stopped: Collection[int] = ()
        if on_epoch is not None and fleet.numbers:
            histories = [members[k].history for k in fleet.numbers]
            stopped = on_epoch(fleet.params, fleet.numbers, histories) or ()
        end(stopped)
        fleet = fleet.only(k for k in fleet.numbers if k not in stopped)
        if not fleet.numbers:
            break
    end(fleet.numbers)
    return members


@dataclass
class _Fleet:
    """The models that still train, side by side in memory where they multiply the samples."""

    numbers: list[int]
    params: Params
    velocity: Params
    shares: Array | None
    n_features: int

    def only(self, numbers: Iterable[int]) -> _Fleet:
        """Return a fleet of these models, without the columns of the others."""
        kept = list(numbers)
        if kept == self.numbers or not kept:
            return replace(self, numbers=kept)
        first = next(iter(self.params.values()))
        places = to_device(np.asarray([self.numbers.index(k) for k in kept]), like=first)

        def of_kept(value: Array) -> Array:
            return array_namespace(value).take(value, places, axis=0)

        params, velocity = (
            {name: _laid_out(of_kept(value), self.n_features) for name, value in values.items()}
            for values in (self.params, self.velocity)
        )
        shares = self.shares
        if shares is not None and shares.ndim == 2:
            shares = of_kept(shares)
        return _Fleet(kept, params, velocity, shares, self.n_features)

    def model(self, number: int) -> tuple[Params, Params]:
        """Return one model's parameters and velocity, as arrays of their own."""
        place = self.numbers.index(number)
        params, velocity = (
            {name: _copy(value[place, ...]) for name, value in values.items()}
            for values in (self.params, self.velocity)
        )
        return params, velocity


def _laid_out(stack: Array, n_features: int) -> Array:
    """Copy a stack; the matrices that multiply samples come to lie side by side in memory."""
    if stack.ndim == 3 and stack.shape[1] == n_features:
        return apart(_copy(side_by_side(stack)), (int(stack.shape[0]),))
    return _copy(stack)


def _copy(value: Array) -> Array:
    xp = array_namespace(value)
    # asarray would keep the order of a model's columns in the memory of the fleet.
    return value.copy() if xp is np else xp.asarray(value, copy=True)
