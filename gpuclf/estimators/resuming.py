"""A training that goes on from its checkpoints: what they hold, and what must be the same."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gpuclf.arrays import Array
from gpuclf.devices.backends import to_device
from gpuclf.models.model import Params
from gpuclf.saving.checkpoints import Checkpoints, fingerprint
from gpuclf.training import DivergedError, History, Member

__all__ = ["Resumable", "resumable"]

Generators = dict[int, np.random.Generator]


def resumable(
    fleet: Sequence[Any], folder: str | os.PathLike[str] | None, every: int, resume: bool
) -> Resumable | None:
    """Return the checkpoints of a fit that begins, before its generator is drawn from.

    Parameters
    ----------
    fleet : sequence of classifiers
    folder : str or path, or None for no checkpoints
    every : int
        Epochs from one checkpoint to the next.
    resume : bool

    Raises
    ------
    ValueError
        If the fleet cannot have checkpoints, or `every` is no number of epochs.
    """
    if folder is None:
        if resume:
            raise ValueError("resume=True needs checkpoint=, the folder to go on from")
        return None
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise ValueError(f"checkpoint_every must be an integer, at least 1, got {every!r}")
    if fleet[0].solver == "lbfgs":
        raise ValueError(
            "checkpoints are of solver='sgd' only: SciPy keeps what L-BFGS knows of the past to "
            "itself. Fit without checkpoint, or with solver='sgd'"
        )
    return Resumable(folder, int(every), resume, _settings_of(fleet))


class Resumable:
    """The checkpoints of one fit of a fleet, which may be of one.

    Parameters
    ----------
    folder : str or path
    every : int
        Epochs from one checkpoint to the next; the last epoch has one in any case.
    resume : bool
        Whether to go on where there are checkpoints, instead of refusing them.
    settings : dict
        What must be the same for a training to go on, beside the data.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int, resume: bool, settings: dict[str, Any]
    ) -> None:
        self._folder, self._every, self._resume = folder, every, resume
        self._settings = settings

    def begin(
        self,
        members: Sequence[Member],
        rng: np.random.Generator,
        generators: Generators,
        n_steps: int,
        n_epochs: int,
        *,
        like: Array,
        **data: Any,
    ) -> tuple[int, list[int]]:
        """Bring all to where the last checkpoint was taken, or write a first one.

        Parameters
        ----------
        members : sequence of Member
            At their start.
        rng : numpy.random.Generator
            Its state becomes that of the checkpoint.
        generators : dict
            Filled: those of the members that have stopped before the others.
        n_steps, n_epochs : int
            Steps of an epoch; epochs of the whole training.
        like : array
            Where the members train.
        **data
            What must be the same beside the settings: arrays, lists of them, or None.

        Returns
        -------
        n_done : int
            Epochs.
        numbers : list of int
            The members that train on.
        """
        for name, value in data.items():
            values = value if isinstance(value, list) else [value]
            is_there = any(v is not None for v in values)
            found = fingerprint(*values)[:32] if is_there else None
            self._settings[f"fingerprint of {name}"] = found
        self._checkpoints = Checkpoints(self._folder, self._settings)
        self._rng, self._generators, self._n_epochs = rng, generators, n_epochs
        everybody = list(range(len(members)))
        state = self._checkpoints.begin(resume=self._resume)
        if state is None:
            # Says before the first epoch whether there can be checkpoints.
            self._save(0, everybody, members)
            self.n_done = 0
            return 0, everybody
        try:
            numbers = _restore(state, members, generators, like, n_steps, n_epochs)
            rng.bit_generator.state = state["rng"].bit_generator.state
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the checkpoints in {self._folder} cannot be gone on from ({error!r}): train "
                "anew, in another folder"
            ) from error
        self.n_done = int(state["epoch"])
        return self.n_done, numbers

    def keep(self, numbers: list[int], snapshot: Callable[[], list[Member]]) -> None:
        """Write a checkpoint if it is time, as `keep` of :func:`gpuclf.training.train_sgd`."""
        self.n_done += 1
        if not numbers or self.n_done % self._every == 0 or self.n_done == self._n_epochs:
            self._save(self.n_done, numbers, snapshot())

    def _save(self, epoch: int, numbers: Sequence[int], members: Sequence[Member]) -> None:
        states = []
        for k, member in enumerate(members):
            state: dict[str, Any] = {"trains": k in numbers}
            state["generator"] = self._generators.get(k)
            if member.error is None:
                state["params"], state["velocity"] = member.params, member.velocity
                state["history"] = member.history
            else:  # its losses are not finite, and nobody asks for them
                state["error"] = str(member.error)
            states.append(state)
        self._checkpoints.save(epoch, {"epoch": epoch, "members": states, "rng": self._rng})


def _restore(
    state: Any,
    members: Sequence[Member],
    generators: Generators,
    like: Array,
    n_steps: int,
    n_epochs: int,
) -> list[int]:
    epoch, states = state["epoch"], state["members"]
    if type(epoch) is not int or not 0 <= epoch <= n_epochs or len(states) != len(members):
        raise ValueError(f"epoch {epoch!r} of {len(states)} models")
    for k, (member, found) in enumerate(zip(members, states, strict=True)):
        if "error" in found:
            member.error = DivergedError(found["error"])
            continue
        history, generator = found["history"], found["generator"]
        n_losses = len(history.loss)
        if type(history) is not History or n_losses % n_steps or n_losses > epoch * n_steps:
            raise ValueError(f"a history of {n_losses} losses")
        start = member.params
        member.params, member.history = _like(start, found["params"], like), history
        velocity = found["velocity"]
        member.velocity = None if velocity is None else _like(start, velocity, like)
        if generator is not None:
            generators[k] = generator
    return [k for k, found in enumerate(states) if found["trains"] is True]


def _like(start: Params, found: Params, like: Array) -> Params:
    moved: Params = to_device(found, like=like)
    for name, value in start.items():
        if moved[name].shape != value.shape or moved[name].dtype != value.dtype:
            raise ValueError(f"{name} of shape {moved[name].shape} and {moved[name].dtype}")
    return {name: moved[name] for name in start}


def _settings_of(fleet: Sequence[Any]) -> dict[str, Any]:
    """Return the hyper-parameters as JSON has them; those that differ between models are lists.

    Functions are known by their name, generators of random numbers by their state.
    """
    settings: dict[str, Any] = {"class": type(fleet[0]).__qualname__, "models": len(fleet)}
    of_models = [
        {name: _described(value) for name, value in model.get_params(deep=False).items()}
        for model in fleet
    ]
    for name, value in of_models[0].items():
        values = [described[name] for described in of_models]
        settings[name] = value if all(other == value for other in values) else values
    return settings


def _described(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.random.Generator):
        return _digest_of_state(value, value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _digest_of_state(value, value.get_state(legacy=False))
    if isinstance(value, functools.partial):
        return [_described(part) for part in (value.func, *value.args, value.keywords)]
    if isinstance(value, dict):
        return {str(name): _described(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _digest_of_state(value: Any, state: Any) -> str:
    with np.printoptions(threshold=1 << 20):
        return f"{value} at {hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"
