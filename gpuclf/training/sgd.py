"""Mini-batch SGD of K models at once: one walk over the samples, one wide product a step.

A linear model multiplies a mini-batch by ten columns, which leaves most of a processor idle. K
models that see the same mini-batches are one product (B, D) x (D, K C) forward and one backward.
Each has its own learning rates, penalty, momentum, start and sample weights. One model alone has no
model axis, so that every kernel for one serves it.

The order of the samples comes from the host's random generator, so that a CPU run and a GPU run see
the same mini-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.augment import augmented
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.dispatch import fusable
from gpuclf.layers import apart, side_by_side
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized, is_streamed, take_rows
from gpuclf.samples.walk import row_slices
from gpuclf.training.history import (
    History,
    divergence,
    normalized_weights,
    quietly,
)

__all__ = ["Member", "epoch_runner", "momentum_step", "stacked", "train_sgd"]

UPDATE_BYTES = 1 << 18  # of each of parameter, gradient, velocity and a temporary

EpochRunner = Callable[[np.ndarray, list[float] | Array], Array]
Augment = Callable[[Any, Any], Any]
# (numbers of those that train on, what returns all members as they are now)
Keep = Callable[[list[int], "Callable[[], list[Member]]"], None]


@dataclass(eq=False)
class Member:
    r"""One of the models that :func:`train_sgd` trains together, before and after.

    Attributes
    ----------
    params : dict of array
        Where it starts, and then where it ended; the arrays themselves are not changed.
    rate : callable
        The learning rate of a step, counted from 0 over all epochs of `history`.
    reg, momentum : float
        The penalty, and :math:`\mu` in [0, 1).
    velocity : dict of array, optional
        To go on with; zeros by default.
    history : History
        To go on with.
    error : Exception or None
        Why the model was set aside. It keeps the parameters and the velocity that it came with.
    """

    params: Params
    rate: Callable[[int], float]
    reg: float
    momentum: float
    velocity: Params | None = None
    history: History = field(default_factory=History)
    error: Exception | None = None


@quietly
@on_its_device
def train_sgd(
    model: Model,
    members: Sequence[Member],
    X: Array | Standardized,
    y: Array,
    *,
    batch_size: int,
    epochs: int,
    nesterov: bool,
    rng: np.random.Generator,
    precision: str = "float32",
    sample_weight: Array | None = None,
    augment: Augment | None = None,
    on_epoch: Callable[[Params, list[int]], Collection[int] | None] | None = None,
    numbers: Sequence[int] | None = None,
    keep: Keep | None = None,
) -> None:
    r"""Train K models by mini-batch stochastic gradient descent with momentum, each as if alone.

    .. math::

        v \leftarrow \mu v - \eta \nabla L, \qquad w \leftarrow w + v
        \quad\text{(Nesterov: } w \leftarrow w + \mu v - \eta \nabla L\text{)}

    Parameters
    ----------
    model : Model
    members : sequence of Member
        What is each model's own. They are brought up to date when they leave: at the end, where
        they stop, or with an error where the loss of a step or the last parameters are NaN or
        infinite. Together with `rng`, they are all that a later call needs to go on, with as few
        of them as are given.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    batch_size : int
        The last batch of an epoch may be smaller.
    epochs : int
    nesterov : bool
    rng : numpy.random.Generator
        Shuffles the samples anew for each epoch, alike for all models; then `augment` and the model
        draw from it.
    precision : {"float32", "tf32", "float64"}, default "float32"
        As for :meth:`gpuclf.models.Model.objective`.
    sample_weight : array of shape (N,) or (K, N), optional
        Non-negative; a sample of weight 2 counts as two samples. Samples of weight 0 do not train
        that model: a fold to validate on.
    augment : callable, optional
        ``augment(X_batch, rng)`` returns the batch to train on.
    on_epoch : callable, optional
        ``on_epoch(params, numbers)``, called after each epoch with the numbers of the models that
        still train, and their parameters: with a leading model axis, or without one where there is
        only one. The arrays change in the next epoch. The numbers that it returns stop there.
    numbers : sequence of int, optional
        Those of the members that train; by default all.
    keep : callable, optional
        ``keep(numbers, snapshot)``, called after `on_epoch` with the numbers of the models that
        train on. ``snapshot()`` returns all members, brought up to date in arrays of their own:
        with the state of `rng` what a later call needs to end with the bits of this one.

    Notes
    -----
    Source: Stanford CS231n, "Learning and evaluation", sections on SGD, momentum and Nesterov.

    Examples
    --------
    >>> from gpuclf.models import SOFTMAX
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> start = {"W": np.zeros((1, 2)), "b": np.zeros(2)}
    >>> slow, fast = (Member(start, lambda step, rate=rate: rate, reg=0.0, momentum=0.9)
    ...               for rate in (0.01, 1.0))
    >>> train_sgd(SOFTMAX, [slow, fast], X, y, batch_size=4, epochs=20, nesterov=False,
    ...           rng=np.random.default_rng(0))
    >>> slow.history.loss[-1] > fast.history.loss[-1]
    True
    """
    n_samples = int(y.shape[0])
    n_steps = len(row_slices(n_samples, batch_size))
    shares = normalized_weights(sample_weight, members[0].params)
    numbers = list(range(len(members)) if numbers is None else numbers)
    if not numbers:
        return
    group = _Group.of(numbers, members, shares, int(X.shape[1]))
    running = None
    for _ in range(epochs):
        if group is not running:  # else the runner has all that it needs
            running, run_epoch = group, epoch_runner(
                model, group.params, group.velocity, X, y, batch_size=batch_size,
                reg=group.factors([member.reg for member in group.members]),
                momentum=group.factors([member.momentum for member in group.members], narrow=True),
                nesterov=nesterov, precision=precision, shares=group.shares, augment=augment,
                rng=rng,
            )  # fmt: skip
        rates = [_next_rates(member, n_steps) for member in group.members]
        losses = to_host(run_epoch(rng.permutation(n_samples), group.factors(rates, narrow=True)))
        of_members = zip(group.members, rates, losses.reshape(n_steps, -1).T, strict=True)
        for member, of_steps, losses_of_member in of_members:
            member.history.learning_rate += of_steps
            member.history.loss += losses_of_member.tolist()
            member.error = divergence(member.history, n_steps)
        group = group.only([k for k in group.numbers if members[k].error is None])
        if on_epoch is not None and group.numbers:
            stopped = on_epoch(group.params, group.numbers) or ()
            group.end(stopped)
            group = group.only([k for k in group.numbers if k not in stopped])
        if keep is not None:
            keep(group.numbers, group.snapshot)
        if not group.numbers:
            return
    group.end(group.numbers)


def _next_rates(member: Member, n_steps: int) -> list[float]:
    n_done = len(member.history.learning_rate)
    return [member.rate(step) for step in range(n_done, n_done + n_steps)]


@dataclass(eq=False)
class _Group:
    """The models that still train, side by side in memory where they multiply the samples.

    Several have a leading model axis, one has none.
    """

    numbers: list[int]
    everybody: Sequence[Member]
    params: Params
    velocity: Params
    shares_of_everybody: Array | None
    n_features: int

    @classmethod
    def of(
        cls, numbers: list[int], everybody: Sequence[Member], shares: Array | None, n_features: int
    ) -> _Group:
        def together(values: list[Params]) -> Params:
            if len(values) == 1:
                return {name: _copy(value) for name, value in values[0].items()}
            stacks = stacked(values)
            return {name: _laid_out(stack, n_features) for name, stack in stacks.items()}

        members = [everybody[k] for k in numbers]
        zeros = {n: array_namespace(v).zeros_like(v) for n, v in members[0].params.items()}
        velocity = together([zeros if m.velocity is None else m.velocity for m in members])
        params = together([member.params for member in members])
        return cls(numbers, everybody, params, velocity, shares, n_features)

    @property
    def members(self) -> list[Member]:
        return [self.everybody[k] for k in self.numbers]

    @property
    def shares(self) -> Array | None:
        """The weights of the samples: of all models, or of each, like the parameters."""
        shares = self.shares_of_everybody
        if shares is None or shares.ndim == 1:
            return shares
        if len(self.numbers) == 1:
            return shares[self.numbers[0], :]
        places = to_device(np.asarray(self.numbers), like=shares)
        return array_namespace(shares).take(shares, places, axis=0)

    def factors(self, of_members: list[Any], *, narrow: bool = False) -> Any:
        """Return an array (..., K), with `narrow` in the floats of the parameters, or one's own."""
        if len(of_members) == 1:
            return of_members[0]
        like = next(iter(self.params.values()))
        factors = to_device(np.asarray(of_members, dtype=np.float64).T, like=like)
        return array_namespace(like).astype(factors, like.dtype) if narrow else factors

    def only(self, kept: list[int]) -> _Group:
        """Return a group of these models, without the columns of the others."""
        if kept == self.numbers:
            return self
        if not kept:
            return replace(self, numbers=kept)
        self._hand_back(kept)
        return _Group.of(kept, self.everybody, self.shares_of_everybody, self.n_features)

    def end(self, numbers: Collection[int]) -> None:
        """Bring models up to date, and set those aside whose parameters are not finite."""
        if not numbers:
            return
        finite = np.atleast_1d(_are_finite(self.params, of_models=len(self.numbers) > 1))
        of_numbers = dict(zip(self.numbers, finite, strict=True))
        for k in numbers:
            if not of_numbers[k]:
                self.everybody[k].error = divergence(self.everybody[k].history)
        self._hand_back([k for k in numbers if of_numbers[k]])

    def snapshot(self) -> list[Member]:
        """Return all members as they are now; what trains on does not change them."""
        now = list(self.everybody)
        for k in self.numbers:
            params, velocity = self._of_model(k)
            now[k] = replace(now[k], params=params, velocity=velocity)
        return now

    def _hand_back(self, numbers: list[int]) -> None:
        for k in numbers:
            self.everybody[k].params, self.everybody[k].velocity = self._of_model(k)

    def _of_model(self, k: int) -> tuple[Params, Params]:
        # Alone, Ellipsis takes the whole array; a model's part becomes an array of its own.
        part = (self.numbers.index(k), ...) if len(self.numbers) > 1 else ...
        params, velocity = (
            {name: _copy(value[part]) for name, value in values.items()}
            for values in (self.params, self.velocity)
        )
        return params, velocity


@fusable(
    by="y", cupy=("epochs.linear_on_gpu:linear_epochs", "epochs.two_layer_on_gpu:two_layer_epochs")
)
def epoch_runner(
    model: Model,
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
    augment: Augment | None = None,
    rng: np.random.Generator | None = None,
) -> EpochRunner:
    """Return a function that trains for one epoch, as :func:`train_sgd` says.

    A runner, and not a function for an epoch, so that what a device needs for an epoch is prepared
    once for all of them.

    Parameters
    ----------
    model, X, y, batch_size, nesterov, precision, augment, rng
        As in :func:`train_sgd`.
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

    @on_its_device  # that of y: an order and rates may lie on the host
    def run(y: Array, on_host: np.ndarray, rates: list[float] | Array) -> Array:
        losses = []
        # Uploaded once an epoch; samples that stay on the host are gathered there.
        order = to_device(on_host, like=y)
        for step, rows in enumerate(row_slices(n_samples, batch_size)):
            batch = order[rows]
            X_batch = take_rows(X, on_host[rows] if is_streamed(X) else batch)
            if augment is not None:
                X_batch = augmented(augment, X_batch, rng)
            weights = None
            if shares is not None:
                weights = xp.take(shares, batch, axis=-1) * (n_samples / int(batch.shape[0]))
            learning_rate = rates[step] if isinstance(rates, list) else rates[step, :]
            y_batch = xp.take(y, batch)
            loss, grads = model.objective(
                params, X_batch, y_batch, reg, weights, precision=precision, rng=rng
            )
            for name, value in params.items():
                factors = (_for_models(factor, value) for factor in (learning_rate, momentum))
                momentum_step(value, grads[name], velocity[name], *factors, nesterov)
            losses.append(loss)
        return xp.stack(losses)

    return partial(run, y)


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
    """Update one parameter and its velocity in place, as :func:`train_sgd` says.

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


def _are_finite(params: Params, *, of_models: bool = False) -> np.ndarray:
    """Tell whether all parameters are finite, of each model if they have a leading model axis."""
    xp = array_namespace(*params.values())
    first = int(of_models)
    found = [
        xp.all(xp.isfinite(value), axis=tuple(range(first, value.ndim)))
        for value in params.values()
    ]
    return np.asarray(np.all(to_host(xp.stack(found)), axis=0))  # waits for the device once


def stacked(values: Sequence[Params]) -> Params:
    """Give the parameters of several models a leading model axis."""
    return {
        name: array_namespace(value).stack([params[name] for params in values])
        for name, value in values[0].items()
    }


def _laid_out(stack: Array, n_features: int) -> Array:
    """Copy a stack; the matrices that multiply samples come to lie side by side in memory."""
    if stack.ndim == 3 and stack.shape[1] == n_features:
        return apart(_copy(side_by_side(stack)), (int(stack.shape[0]),))
    return _copy(stack)


def _copy(value: Array) -> Array:
    xp = array_namespace(value)
    # asarray would keep the order of a model's columns in the memory of the fleet.
    return value.copy() if xp is np else xp.asarray(value, copy=True)
