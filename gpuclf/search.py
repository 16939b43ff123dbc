"""Search for hyper-parameters on validation samples, coarse to fine."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from gpuclf.training import DivergedError

__all__ = [
    "SearchResult",
    "best_row",
    "check_search",
    "coarse_to_fine",
    "n_candidates",
    "train_candidates",
]

NARROWING = 0.4  # how wide a round's ranges are, on the logarithmic scale, beside those before

Space = Mapping[str, "tuple[float, float] | list[Any]"]
Row = dict[str, Any]
OnEpoch = Callable[[int, int], None]


@dataclass
class SearchResult:
    """What a search found.

    Attributes
    ----------
    results : list of dict
        One row a candidate, in the order of training: `params` (dict), `val_accuracy`,
        `train_accuracy` (both None if it failed), `seconds` (training and scoring), `fit_seconds`
        (training; an equal share where candidates are trained together), `diverged`, `error` (why
        it failed, None if it did not) and `round`, counted from 0.
    best_params : dict
        Of the highest validation accuracy; of equals, the first.
    best_val_accuracy : float
    best_estimator : classifier or None
        Trained with them, if the search was to refit.
    """

    results: list[Row]
    best_params: dict[str, Any]
    best_val_accuracy: float
    best_estimator: Any = None


def coarse_to_fine(
    classifier: Any,
    space: Space,
    X_train: Any,
    y_train: Any,
    X_val: Any,
    y_val: Any,
    *,
    rounds: int = 3,
    per_round: int = 8,
    rng: np.random.Generator | int | None = None,
    callback: Callable[[list[Row]], bool | None] | None = None,
    on_epoch: OnEpoch | None = None,
    refit: bool = True,
    n_jobs: int | None = None,
    worker_backend: str | None = None,
) -> SearchResult:
    """Try hyper-parameters at random, each round in narrower ranges around the best so far.

    Parameters
    ----------
    classifier : estimator
        Gives all other hyper-parameters, the seed among them; not changed.
    space : dict
        For each hyper-parameter to search either ``(low, high)``, a range that is drawn from
        evenly on the logarithmic scale, or a list of values. Where both ends and the classifier's
        own value are whole numbers, so are those drawn. Where there are lists only, each
        combination is tried once, in one round.
    X_train, y_train : array-like
        What the candidates are trained on.
    X_val, y_val : array-like
        What they are compared on.
    rounds : int, default 3
    per_round : int, default 8
        Candidates a round. Their values are spread over the ranges as a Latin hypercube, so that
        few candidates leave no large gap.
    rng : numpy.random.Generator, int or None
        Where the candidates come from; a seed makes them the same on every run.
    callback : callable, optional
        ``callback(results)``, called after each candidate with the rows so far; the search ends
        when it returns True.
    on_epoch : callable, optional
        ``on_epoch(count, epoch)``, called while so many candidates are trained together, after
        each epoch; for classifiers that are trained by gradients. Not with `n_jobs`.
    refit : bool, default True
        Train the best candidate again, and keep it.
    n_jobs : int, optional
        Workers that share the candidates of a round, as :class:`gpuclf.FleetSearchCV` has them:
        as many are trained together as there are for each worker.
    worker_backend : {"auto", "numpy", "cupy"}, optional
        Where each worker takes the samples; by default they stay in the library they came in.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        If the space is empty, holds a name that the classifier does not have, or a range that is
        not positive and finite.
    gpuclf.training.DivergedError
        If every candidate diverged. If every one failed, by whatever, the first one's error.

    Notes
    -----
    A candidate that is impossible (more neighbours than samples, for example) raises a ValueError;
    it is kept as failed, and the search goes on.

    Source: Bergstra and Bengio, "Random search for hyper-parameter optimization" (2012), and
    Stanford CS231n, "Learning and evaluation", section on hyper-parameter optimisation.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> found = coarse_to_fine(
    ...     gpuclf.SoftmaxClassifier(max_iter=2, random_state=0),
    ...     {"learning_rate": (1e-4, 1e-1), "reg": [0.0, 1e-3]},
    ...     X[:200], y[:200], X[200:], y[200:], rounds=2, per_round=3, rng=0)
    >>> len(found.results), sorted(found.best_params)
    (6, ['learning_rate', 'reg'])
    """
    from gpuclf.estimators.fleet_fitting import model_with

    check_search(classifier, space, rounds, per_round)
    whole = _whole_numbers(classifier, space)
    rng = np.random.default_rng(rng)
    results: list[Row] = []

    def rows() -> Iterator[Row]:
        for number in range(rounds if _has_ranges(space) else 1):
            narrowed = _narrowed(space, best_row(results), NARROWING**number)
            drawn = _draw(narrowed, per_round, rng, whole) if _has_ranges(space) else _grid(space)
            data = X_train, y_train, X_val, y_val
            rows = train_candidates(
                *(classifier, drawn, *data), on_epoch=on_epoch, n_jobs=n_jobs,
                worker_backend=worker_backend,
            )  # fmt: skip
            for row in rows:
                yield {"round": number} | row

    for row in rows():
        results.append(row)
        if callback is not None and callback(results):
            break
    best = best_row(results)
    if best is None and not all(row["diverged"] for row in results):
        error = next(row["error"] for row in results if not row["diverged"])
        raise ValueError(f"all {len(results)} candidates failed, the first: {error}")
    if best is None:
        tried = ", ".join(f"{name} in {values}" for name, values in space.items())
        raise DivergedError(
            f"all {len(results)} candidates diverged ({tried}): search smaller learning rates and "
            "penalties, and standardise the features"
        )
    found = SearchResult(results, best["params"], best["val_accuracy"])
    if refit:
        found.best_estimator = model_with(classifier, found.best_params).fit(X_train, y_train)
    return found


def train_candidates(
    classifier: Any,
    candidates: Iterable[dict[str, Any]],
    X_train: Any,
    y_train: Any,
    X_val: Any,
    y_val: Any,
    *,
    on_epoch: OnEpoch | None = None,
    n_jobs: int | None = None,
    worker_backend: str | None = None,
) -> Iterator[Row]:
    """Train one classifier for each candidate and yield its row, without the round.

    Candidates that see the same mini-batches are trained together, in one pass
    (:func:`gpuclf.training.train_sgd`), and their rows come one after another at its end.

    Parameters
    ----------
    classifier : estimator
        Not changed.
    candidates : iterable of dict
        Hyper-parameters to set.
    X_train, y_train, X_val, y_val : array-like
        The accuracy on the training samples is taken on about as many as there are to validate
        on, evenly spaced: to see overfitting, a full pass would be too much.
    on_epoch, n_jobs, worker_backend
        As in :func:`coarse_to_fine`.

    Yields
    ------
    dict
        As :class:`SearchResult` describes.
    """
    from gpuclf.estimators.fleet_fitting import MEMORY_BUDGET, fleets_of
    from gpuclf.estimators.fleet_tasks import check_jobs, is_spread, run_tasks
    from gpuclf.estimators.gradient_classifier import GradientClassifier

    check_jobs(n_jobs, worker_backend)
    candidates = list(candidates)
    fleets = [[number] for number in range(len(candidates))]
    if isinstance(classifier, GradientClassifier):
        fleets = fleets_of(classifier, candidates, X_train, y_train, MEMORY_BUDGET)
    data = {"X_train": X_train, "y_train": y_train, "X_val": X_val, "y_val": y_val}
    if not is_spread(n_jobs):
        for numbers in fleets:
            of_fleet = [candidates[n] for n in numbers]
            yield from _rows_of_fleet(
                *(classifier, of_fleet, worker_backend, *data.values()), on_epoch=on_epoch
            )
        return
    from joblib import effective_n_jobs

    size = max(1, math.ceil(len(candidates) / effective_n_jobs(n_jobs)))
    tasks = [
        (classifier, [candidates[n] for n in numbers[first : first + size]], worker_backend)
        for numbers in fleets
        for first in range(0, len(numbers), size)
    ]
    for rows in run_tasks(_as_list, tasks, data, n_jobs, classifier.get_params()):
        yield from rows


def _as_list(*args: Any) -> list[Row]:
    return list(_rows_of_fleet(*args))


def _rows_of_fleet(
    classifier: Any,
    candidates: list[dict[str, Any]],
    backend: str | None,
    *data: Any,
    on_epoch: OnEpoch | None = None,
) -> Iterator[Row]:
    """Train candidates together, or the only one, and yield their rows."""
    from gpuclf.estimators.base import count_samples
    from gpuclf.estimators.fleet_fitting import fit_together, model_with
    from gpuclf.estimators.fleet_tasks import placed
    from gpuclf.estimators.gradient_classifier import GradientClassifier

    X_train, y_train, X_val, y_val = (placed(values, backend) for values in data)
    step = max(1, count_samples(y_train) // max(1, count_samples(y_val)))
    start = time.perf_counter()
    fleet = [model_with(classifier, candidate) for candidate in candidates]
    if isinstance(classifier, GradientClassifier):
        tell = on_epoch and partial(on_epoch, len(fleet))
        errors = fit_together(fleet, X_train, y_train, callback=tell)
    else:
        errors = [_error_of_fit(fleet[0], X_train, y_train)]
    fit_seconds = (time.perf_counter() - start) / len(fleet)
    for candidate, model, error in zip(candidates, fleet, errors, strict=True):
        start = time.perf_counter()
        val_accuracy = train_accuracy = None
        try:
            if error is None:
                val_accuracy = model.score(X_val, y_val)
                train_accuracy = model.score(_every(step, X_train), _every(step, y_train))
        except (DivergedError, ValueError) as caught:
            val_accuracy, error = None, caught
        yield {
            "params": candidate,
            "val_accuracy": val_accuracy,
            "train_accuracy": train_accuracy,
            "seconds": fit_seconds + time.perf_counter() - start,
            "fit_seconds": fit_seconds,
            "diverged": isinstance(error, DivergedError),
            "error": None if error is None else str(error),
        }


def _error_of_fit(model: Any, X: Any, y: Any) -> Exception | None:
    try:
        model.fit(X, y)
    except (DivergedError, ValueError) as error:
        return error
    return None


def best_row(results: Sequence[Row]) -> Row | None:
    """Return the row of the highest validation accuracy, the first of equals, None of none."""
    trained = (row for row in results if row["val_accuracy"] is not None)
    return max(trained, key=lambda row: float(row["val_accuracy"]), default=None)


def n_candidates(space: Space, rounds: int, per_round: int) -> int:
    """Return how many candidates a search will train."""
    return rounds * per_round if _has_ranges(space) else len(_grid(space))


def _every(step: int, samples: Any) -> Any:
    # The array API standard wants all axes named; lists and Standardized know rows only.
    is_array = hasattr(samples, "__array_namespace__")
    return samples[::step, ...] if is_array else samples[::step]


def _has_ranges(space: Space) -> bool:
    return any(isinstance(values, tuple) for values in space.values())


def _grid(space: Space) -> list[dict[str, Any]]:
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def _narrowed(space: Space, best: Row | None, width: float) -> Space:
    """Shrink the ranges around the best candidate; they stay within the first ones."""
    if best is None:
        return space
    narrowed = dict(space)
    for name, values in space.items():
        if isinstance(values, tuple):
            low, high = values
            reach = (high / low) ** (width / 2)
            centre = best["params"][name]
            narrowed[name] = max(low, centre / reach), min(high, centre * reach)
    return narrowed


def _whole_numbers(classifier: Any, space: Space) -> set[str]:
    """Name the ranges of which a fraction would make no sense."""
    ends = {name: values for name, values in space.items() if isinstance(values, tuple)}
    own = classifier.get_params()
    return {
        name
        for name, values in ends.items()
        if all(isinstance(v, Integral) for v in (*values, own[name]))
    }


def _draw(
    space: Space, count: int, rng: np.random.Generator, whole: set[str]
) -> list[dict[str, Any]]:
    drawn: dict[str, list[Any]] = {}
    for name, values in space.items():
        if isinstance(values, tuple):
            low, high = values
            shares = (rng.permutation(count) + rng.random(count)) / count  # a Latin hypercube
            # Three digits, so that the figures of a table are the whole truth.
            rounded = (float(f"{low * (high / low) ** share:.3g}") for share in shares)
            values = [min(max(value, low), high) for value in rounded]
            drawn[name] = [round(value) for value in values] if name in whole else values
        else:
            drawn[name] = [values[i] for i in rng.integers(len(values), size=count)]
    return [dict(zip(drawn, row, strict=True)) for row in zip(*drawn.values(), strict=True)]


def check_search(classifier: Any, space: Space, rounds: int, per_round: int) -> None:
    """Raise a ValueError if :func:`coarse_to_fine` could not search this."""
    if not space:
        raise ValueError("space must name at least one hyper-parameter to search")
    unknown = sorted(set(space) - set(classifier.get_params()))
    if unknown:
        raise ValueError(
            f"{type(classifier).__name__} has no hyper-parameter {unknown[0]!r}; it has "
            f"{', '.join(sorted(classifier.get_params()))}"
        )
    for name, values in space.items():
        if isinstance(values, list) and values:
            continue
        if not (
            isinstance(values, tuple) and len(values) == 2 and 0 < values[0] <= values[1] < math.inf
        ):
            raise ValueError(
                f"{name} must be searched in (low, high) with 0 < low <= high < infinity, or in "
                f"a list of values, got {values!r}"
            )
    for what, count in (("rounds", rounds), ("per_round", per_round)):
        if count < 1:
            raise ValueError(f"{what} must be at least 1, got {count!r}")
