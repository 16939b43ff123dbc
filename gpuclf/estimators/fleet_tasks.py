"""A fleet of a search as a task: trained and scored here, or where joblib runs it."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn import config_context, get_config
from sklearn.metrics import accuracy_score

from gpuclf.arrays import array_namespace, describe_location, to_host, values_are_on_host
from gpuclf.devices.backends import to_device
from gpuclf.estimators.base import ArrayClassifier, on_host, select_rows
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.samples.holders import facts_of
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.training import stacked

__all__ = ["FleetTask", "check_jobs", "is_spread", "placed", "run_tasks"]

BACKENDS = (None, "auto", "numpy", "cupy")
SECONDS_FOR_WORKERS = 60.0  # of dask, where there is none
Data = tuple[Any, Any, Any]  # samples, labels, weights


@dataclass(frozen=True)
class FleetTask:
    """How a search trains and scores its fleets; called with the whole data, it picks its rows.

    Attributes
    ----------
    scorer : callable
    scoring : str, callable or None
        What the scorer was made of.
    error_score : "raise" or float
    return_train_score, penalty_path : bool
    backend : {"auto", "numpy", "cupy"} or None
        Where the rows are taken; None leaves them where they are.
    """

    scorer: Any
    scoring: Any
    error_score: Any
    return_train_score: bool
    penalty_path: bool
    backend: str | None

    def __call__(
        self, fleet: list[Any], rows: Sequence[Any], epochs: int | None, *data: Any
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Train a fleet on a fold; return what became of each model, and what goes on training.

        Parameters
        ----------
        fleet : list of classifiers
        rows : pair of arrays
            Numbers of the samples to train on, and of those to score.
        epochs : int, optional
            As for :func:`gpuclf.estimators.fleet_fitting.fit_together`; without it, no model is
            returned.
        *data : samples, labels, weights
            Of all folds.
        """
        X, y, sample_weight = data
        outcomes = self.outcomes(fleet, self.parts((X, y, sample_weight), rows), epochs)
        for outcome in outcomes:
            for name in ("error", "score_error"):
                outcome[name] = _portable(outcome[name])
        return outcomes, [] if epochs is None else fleet

    def parts(self, data: Data, rows: Sequence[Any]) -> list[list[Any]]:
        """Return the data of a fold to train on and to score, where they are computed with."""
        return [
            [placed(select_rows(values, part), self.backend) for values in data] for part in rows
        ]

    def outcomes(
        self,
        fleet: list[Any],
        parts: list[list[Any]],
        epochs: int | None,
        callback: Callable[[int], bool | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train models together on the first part; return what became of each."""
        train, test = parts
        start = time.perf_counter()
        errors = fit_together(
            fleet, *train, epochs=epochs, penalty_path=self.penalty_path, callback=callback
        )
        fitted = time.perf_counter()
        healthy = [m for m, error in zip(fleet, errors, strict=True) if error is None]
        scored_on = {"test_scores": test}
        if self.return_train_score:
            scored_on["train_scores"] = train
        scores = {name: iter(self._scores_of(healthy, *part)) for name, part in scored_on.items()}
        seconds = {
            "fit_time": (fitted - start) / len(fleet),
            "score_time": (time.perf_counter() - fitted) / len(fleet),
        }
        found = []
        for error in errors:
            scored = {name: error or next(scores[name]) for name in scores}
            wrong = [score for score in scored.values() if isinstance(score, Exception)]
            kept = {k: self.error_score if v in wrong else v for k, v in scored.items()}
            unscored = wrong[0] if wrong and error is None else None
            found.append(seconds | {"error": error, "score_error": unscored} | kept)
        return found

    def _scores_of(
        self, models: list[Any], X: Any, y: Any, sample_weight: Any
    ) -> list[float | Exception]:
        """Return the score of each model, or why it has none."""
        if len(models) > 1 and all(self._has_usual_accuracy(model) for model in models):
            with suppress(Exception):  # then one by one, to learn whose it is
                return self._accuracies(models, X, y, sample_weight)
        weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
        scores: list[float | Exception] = []
        for model in models:
            try:
                scores.append(float(self.scorer(model, X, y, **weighted)))
            except Exception as error:  # as in scikit-learn: the others have theirs
                scores.append(error)
        return scores

    def _has_usual_accuracy(self, model: Any) -> bool:
        own = type(model)
        return (
            self.scoring in (None, "accuracy")
            and own.score is ArrayClassifier.score
            and own.predict is GradientClassifier.predict
        )

    def _accuracies(
        self, models: list[Any], X: Any, y: Any, sample_weight: Any
    ) -> list[float | Exception]:
        first = models[0]
        of_classes = first.class_scores(X, stacked([model.params_ for model in models]))
        numbers = to_host(array_namespace(of_classes).argmax(of_classes, axis=-1))
        truth, sample_weight = on_host(y), on_host(sample_weight)
        return [
            float(accuracy_score(truth, first.classes_[of_model], sample_weight=sample_weight))
            for of_model in numbers
        ]


def placed(values: Any, backend: str | None) -> Any:
    """Return samples, labels or weights where they are to be computed with."""
    if backend is None or values is None:
        return values
    stored = values.X if isinstance(values, Standardized) else values
    if isinstance(stored, Streamed):
        there = Streamed(stored.host, backend, memory_budget=stored.memory_budget)
        if not isinstance(values, Standardized):
            return there
        return Standardized(there, to_host(values.mean), to_host(values.scale))
    is_array = isinstance(values, Standardized) or hasattr(values, "__array_namespace__")
    return to_device(values if is_array else np.asarray(values), backend)


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that another process can read: one that cannot be would end the search."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# ------------------------------------------------------------------------------------ joblib


def check_jobs(n_jobs: Any, worker_backend: Any) -> None:
    """Raise a ValueError for a number of jobs, or a backend of the workers, that cannot be."""
    is_number = isinstance(n_jobs, Integral) and not isinstance(n_jobs, bool)
    if n_jobs is not None and not (is_number and n_jobs != 0):
        raise ValueError(
            "n_jobs must be None, a number of workers such as 2, or -1 for as many as there are "
            f"processors, got {n_jobs!r}"
        )
    if worker_backend not in BACKENDS:
        raise ValueError(
            f"worker_backend must be None, 'auto', 'numpy' or 'cupy', got {worker_backend!r}"
        )


def is_spread(n_jobs: int | None) -> bool:
    """Tell whether tasks go to workers: if asked to, or within joblib's `parallel_config`."""
    from joblib import effective_n_jobs
    from joblib.parallel import get_active_backend

    if n_jobs is not None:
        return n_jobs != 1
    return hasattr(get_active_backend()[0], "client") or effective_n_jobs(None) > 1


def run_tasks(
    task: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    data: Mapping[str, Any],
    n_jobs: int | None,
    sent: Mapping[str, Any],
) -> list[Any]:
    """Return ``task(*of_one, *data)`` for each of the arguments, from joblib's workers or dask's.

    Parameters
    ----------
    task : callable
    arguments : sequence of tuple
    data : dict
        By the names that users know. Handed to the workers once: memory-mapped by processes on
        this machine, and to each of dask's workers, so that the loss of one loses none.
    n_jobs : int or None
    sent : dict
        What is sent along, by the names that users know it by.

    Raises
    ------
    TypeError
        If something cannot be sent to another process.
    ChildProcessError
        If a process of this machine was killed.
    TimeoutError
        If dask has no worker.
    RuntimeError
        If one of dask's has another gpuclf or NumPy, or all that had the data were lost.
    """
    from joblib.parallel import get_active_backend
    from sklearn.utils.parallel import Parallel, delayed

    backend, _ = get_active_backend()
    if not getattr(backend, "supports_sharedmem", False):
        for name, values in data.items():
            _refuse_device_arrays(name, values)
        for name, value in sent.items():
            _check_can_be_sent(name, value)
    if hasattr(backend, "client"):
        with backend.retrieval_context():  # of a task of dask, it lets others run meanwhile
            return _from_dask(backend.client, task, arguments, data.values())
    try:
        found: list[Any] = Parallel(n_jobs=n_jobs)(
            delayed(task)(*of_one, *data.values()) for of_one in arguments
        )
    except BrokenExecutor as error:
        raise ChildProcessError(
            f"a worker of n_jobs={n_jobs} was killed, or ended by itself; most often memory ran "
            "out: take fewer n_jobs or a smaller memory_budget, or n_jobs=None"
        ) from error
    return found


def _from_dask(client: Any, task: Any, arguments: Any, data: Iterable[Any]) -> list[Any]:
    """Do what joblib would, but for its one copy of the data, and its way around a lone worker."""
    facts_of(client, SECONDS_FOR_WORKERS)
    handed = [v if v is None else client.scatter(v, broadcast=True, hash=False) for v in data]
    try:
        found: list[Any] = client.gather(
            [
                client.submit(_configured, get_config(), task, *of_one, *handed, pure=False)
                for of_one in arguments
            ]
        )
    except CancelledError as error:
        raise RuntimeError(
            "all workers that had the samples of the search are lost; most often memory ran out: "
            "start it again, with more workers or more memory, memory_limit= of dask's cluster"
        ) from error
    return found


def _configured(config: dict[str, Any], task: Callable[..., Any], *args: Any) -> Any:
    with config_context(**config):
        return task(*args)


def _refuse_device_arrays(name: str, values: Any) -> None:
    stored = values.X if isinstance(values, Standardized) else values
    if isinstance(stored, Streamed):
        like = to_device(np.empty(0), like=stored)
        remedy = f'gpuclf.Streamed({name}.host, "numpy")'
    elif values_are_on_host(stored) or not hasattr(stored, "__array_namespace__"):
        return
    else:
        like, remedy = stored, f"gpuclf.to_host({name})"
    if not values_are_on_host(like):
        raise TypeError(
            f"{name} is {describe_location(like)}, and other processes get arrays of NumPy: pass "
            f"{remedy}; with worker_backend='cupy' each of them takes its rows to its GPU"
        )


def _check_can_be_sent(name: str, value: Any) -> None:
    from joblib.externals.loky.backend.reduction import dumps

    try:
        dumps(value)
    except Exception as error:
        raise TypeError(
            f"{name} cannot be sent to other processes ({type(error).__name__}: {error}): give it "
            "without open files, locks and generators, as a function of a module, or leave n_jobs "
            "None"
        ) from error
