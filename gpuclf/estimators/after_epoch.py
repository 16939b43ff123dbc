"""What is done after each epoch of classifiers that are trained together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.estimators.base import Part
from gpuclf.models.model import Params
from gpuclf.training import History, Member

__all__ = ["AfterEpoch", "Callback"]

Callback = Callable[[int, History], bool | None]  # (epochs done, history) -> stop?


@dataclass
class AfterEpoch:
    """``after_epoch(params, numbers)`` returns the numbers of those that stop, as `on_epoch` does.

    Attributes
    ----------
    fleet : sequence of classifiers
    members : sequence of Member
    n_steps : int
        Of an epoch.
    rng : numpy.random.Generator
        Of the training.
    held_out, seen : Part or None
        What accuracies are taken on, of validation and of training; both or neither.
    callback : callable or None
    tell : callable or None
        ``tell(epoch, loss)`` shows progress.
    generators : dict of Generator
        The state of `rng` for those that stopped before the others.
    """

    fleet: Sequence[Any]
    members: Sequence[Member]
    n_steps: int
    rng: np.random.Generator
    held_out: Part | None
    seen: Part | None
    callback: Callback | None
    tell: Callable[[int, float], object] | None = None
    generators: dict[int, np.random.Generator] = field(default_factory=dict)
    _told: int = field(default=0, init=False)
    _all_stop: bool = field(default=False, init=False)

    def __call__(self, params: Params, numbers: list[int]) -> list[int]:
        """Show, record, validate and ask the callback, in this order."""
        histories = [self.members[k].history for k in numbers]
        epoch = len(histories[0].loss) // self.n_steps
        is_alone = len(self.fleet) == 1
        if self.tell is not None:
            self.tell(epoch, float(np.mean(histories[0].loss[-self.n_steps :])))
        if is_alone and self.callback is not None:
            # A copy: training goes on in place, and callbacks may keep what they see.
            copied = {k: array_namespace(v).asarray(v, copy=True) for k, v in params.items()}
            self.fleet[0]._record(replace(self.members[0], params=copied, velocity=None), epoch)
        if self.held_out is not None:
            self._validate(params, histories)
        if self.callback is not None and epoch > self._told:
            self._told, self._all_stop = epoch, bool(self.callback(epoch, histories[0]))
        if self._all_stop:
            return numbers
        stopped = [k for k in numbers if self.fleet[k].has_stalled(self.members[k].history)]
        if not is_alone:
            self.generators.update((k, deepcopy(self.rng)) for k in stopped)
        return stopped

    def _validate(self, params: Params, histories: list[History]) -> None:
        of_val, of_train = (
            np.atleast_1d(self.fleet[0]._accuracies(params, on))
            for on in (self.held_out, self.seen)
        )
        for place, history in enumerate(histories):
            history.val_accuracy.append(float(of_val[place]))
            history.train_accuracy.append(float(of_train[place]))
