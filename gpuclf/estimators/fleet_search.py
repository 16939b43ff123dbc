"""Search by cross-validation, with all candidates of a fold trained in one pass."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import accuracy_score, check_scoring
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import _safe_indexing

from gpuclf.backend import Array, array_namespace, to_device, to_host
from gpuclf.estimators.array_classifier import _is_checked_here
from gpuclf.estimators.gradient_classifier import GradientClassifier, _generator
from gpuclf.features import Standardized, take_rows
from gpuclf.fleet import train_fleet
from gpuclf.streaming import Streamed

__all__ = ["MEMORY_BUDGET", "FleetSearchCV", "fit_together", "fleets_of"]

# What may differ between the models of a fleet; anything else makes fleets of their own.
OF_EACH_MODEL = {"learning_rate", "learning_rate_decay", "schedule", "momentum", "reg", "tol"}
MEMORY_BUDGET = 1 << 30  # bytes
COPIES_OF_PARAMETERS = 8  # start, velocity, gradient, folded, packed, and what is between them
COPIES_OF_ROWS = 6  # of a mini-batch's scores or hidden units


class FleetSearchCV(BaseSearchCV):  # type: ignore[misc]
    """scikit-learn's grid and random search, with candidates trained together instead of in turn.

    The candidates of a fold that see the same mini-batches are one wide product a step: see
    :mod:`gpuclf.fleet`. Those that differ in more than learning rate, its decay and schedule,
    momentum and penalty (batch size, epochs, hidden units, a solver without mini-batches) form
    fleets of their own, and the fleets run one after another.

    Parameters
    ----------
    estimator : SoftmaxClassifier, LinearSVMClassifier or TwoLayerNetClassifier
        Gives all other hyper-parameters; not changed.
    param_grid : dict or list of dict, optional
        As for :class:`sklearn.model_selection.GridSearchCV`.
    param_distributions : dict or list of dict, optional
        As for :class:`sklearn.model_selection.RandomizedSearchCV`; instead of `param_grid`.
    n_iter : int, default 10
        Candidates to draw from `param_distributions`.
    scoring : str or callable, optional
        One metric; by default the accuracy, which is computed for the whole fleet at once.
    refit : bool or callable, default True
        Train the best candidate on all samples. A callable takes `cv_results_` and returns the
        index of the best.
    cv : int, splitter or iterable, optional
        As in scikit-learn: five stratified folds by default.
    random_state : int, RandomState or None
        Where the candidates are drawn from.
    error_score : "raise" or float, default nan
        The score of a candidate that failed; the others go on.
    return_train_score : bool, default False
    memory_budget : int, default 1 GiB
        Bytes that the models of a fleet may take while they train; a larger fleet is split.
    verbose : int, default 0
        Above 0, print a line for each fleet.

    Attributes
    ----------
    cv_results_ : dict
        With the keys of GridSearchCV's. `mean_fit_time` and `mean_score_time` are the fleet's time
        divided by its models.
    best_params_ : dict
    best_score_ : float
    best_index_ : int
    best_estimator_ : classifier
        If `refit`.
    refit_time_ : float
        Seconds.
    n_splits_ : int
    scorer_ : callable

    See Also
    --------
    gpuclf.search.coarse_to_fine : rounds of random search on one validation set.

    Notes
    -----
    The folds run one after another: each candidate sees the standardisation and the mini-batches
    that it would see if it were trained alone on the fold's training samples. So scores and best
    candidate are those of GridSearchCV over the same estimator and folds but for rounding, if
    `random_state` of the estimator is fixed.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=0)
    >>> search = FleetSearchCV(model, {"learning_rate": [1e-4, 1e-3], "reg": [0.0, 1e-3]}, cv=3)
    >>> search.fit(X, y).n_splits_, len(search.cv_results_["params"])
    (3, 4)
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any = None,
        *,
        param_distributions: Any = None,
        n_iter: int = 10,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = None,
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        memory_budget: int = MEMORY_BUDGET,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.param_grid = param_grid
        self.param_distributions = param_distributions
        self.n_iter = n_iter
        self.scoring = scoring
        self.refit = refit
        self.cv = cv
        self.random_state = random_state
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.memory_budget = memory_budget
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, groups: Any = None, sample_weight: Any = None) -> Self:
        """Train and compare all candidates.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized or Streamed
            Standardized samples keep their mean and scale in every fold.
        y : array-like of shape (N,)
        groups : array-like of shape (N,), optional
            For splitters that ask for them.
        sample_weight : array-like of shape (N,), optional
            A sample of weight 2 counts as two samples, in training and in the scores.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the estimator is not trained by gradients.
        ValueError
            If all fits failed.
        """
        candidates = self._candidates()
        self.scorer_ = check_scoring(self.estimator, scoring=self.scoring)
        self.multimetric_ = False
        labels = _on_host(y)
        cv = check_cv(self.cv, labels, classifier=True)
        splits = list(cv.split(np.zeros((len(labels), 1)), labels, groups))
        self.n_splits_ = len(splits)
        outcomes: dict[tuple[int, int], dict[str, Any]] = {}
        for fold, (train, test) in enumerate(splits):
            samples = [
                tuple(None if v is None else _rows(v, part) for v in (X, y, sample_weight))
                for part in (train, test)
            ]
            for numbers, outcome in self._train(candidates, samples, fold):
                outcomes |= {(n, fold): o for n, o in zip(numbers, outcome, strict=True)}
        ordered = [outcomes[n, f] for n in range(len(candidates)) for f in range(len(splits))]
        self._report_failures([outcome.pop("error") for outcome in ordered])
        results = self._format_results(candidates, len(splits), ordered)
        if callable(self.refit):
            self.best_index_ = int(self.refit(results))
        else:
            self.best_index_ = int(results["rank_test_score"].argmin())
            self.best_score_ = results["mean_test_score"][self.best_index_]
        self.best_params_ = candidates[self.best_index_]
        self.cv_results_ = results
        if self.refit:
            start = time.perf_counter()
            self.best_estimator_ = self._model(self.best_params_)
            self.best_estimator_.fit(X, y, sample_weight=sample_weight)
            self.refit_time_ = time.perf_counter() - start
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        return self

    def _candidates(self) -> list[dict[str, Any]]:
        if not isinstance(self.estimator, GradientClassifier):
            raise TypeError(
                "FleetSearchCV trains SoftmaxClassifier, LinearSVMClassifier and "
                f"TwoLayerNetClassifier together, not {type(self.estimator).__name__}: use "
                "sklearn.model_selection.GridSearchCV"
            )
        if isinstance(self.scoring, list | tuple | set | dict):
            raise ValueError(f"scoring must be one metric, got {self.scoring!r}")
        if (self.param_grid is None) == (self.param_distributions is None):
            raise ValueError("pass either param_grid or param_distributions")
        if self.param_grid is not None:
            return list(ParameterGrid(self.param_grid))
        return list(
            ParameterSampler(self.param_distributions, self.n_iter, random_state=self.random_state)
        )

    def _model(self, candidate: dict[str, Any]) -> Any:
        return clone(self.estimator).set_params(**clone(candidate, safe=False))

    def _train(
        self, candidates: list[dict[str, Any]], samples: list[Any], fold: int
    ) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """Yield the numbers of a fleet's candidates, and what became of each."""
        X, y, weights = samples[0]
        failed = dict.fromkeys(("test_scores", "train_scores"), self.error_score)
        for numbers in fleets_of(self.estimator, candidates, X, y, self.memory_budget):
            fleet = [self._model(candidates[n]) for n in numbers]
            start = time.perf_counter()
            errors = fit_together(fleet, X, y, weights)
            fitted = time.perf_counter()
            healthy = [m for m, error in zip(fleet, errors, strict=True) if error is None]
            parts = {"test_scores": samples[1]}
            if self.return_train_score:
                parts["train_scores"] = samples[0]
            scores = {name: iter(self._scores_of(healthy, *part)) for name, part in parts.items()}
            seconds = {
                "fit_time": (fitted - start) / len(fleet),
                "score_time": (time.perf_counter() - fitted) / len(fleet),
            }
            if self.verbose > 0:
                print(
                    f"fold {fold + 1} of {self.n_splits_}: {len(fleet)} models in "
                    f"{fitted - start:.1f} s, {len(fleet) - len(healthy)} failed"
                )
            yield (
                numbers,
                [
                    seconds
                    | {"error": error}
                    | {name: failed[name] if error else next(scores[name]) for name in parts}
                    for error in errors
                ],
            )

    def _scores_of(self, models: list[Any], X: Any, y: Any, sample_weight: Any) -> list[float]:
        together = len(models) > 1 and all(model.solver == "sgd" for model in models)
        if not together or self.scoring not in (None, "accuracy"):
            weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
            return [float(self.scorer_(model, X, y, **weighted)) for model in models]
        first = models[0]
        features = first._features(first._check_samples(X, reset=False))
        xp = array_namespace(first.params_["b" if "b" in first.params_ else "b1"])
        params = {name: xp.stack([m.params_[name] for m in models]) for name in first.params_}
        numbers = to_host(xp.argmax(first._scores(params, features), axis=-1))
        truth, sample_weight = (_on_host(v) for v in (y, sample_weight))
        return [
            float(accuracy_score(truth, first.classes_[of_model], sample_weight=sample_weight))
            for of_model in numbers
        ]

    def _report_failures(self, errors: list[Exception | None]) -> None:
        failures = [error for error in errors if error is not None]
        if not failures:
            return
        if self.error_score == "raise":
            raise failures[0]
        message = f"{len(failures)} of {len(errors)} fits failed, the first: {failures[0]}"
        if len(failures) == len(errors):
            raise ValueError(message) from failures[0]
        warnings.warn(
            f"{message}; their score is error_score={self.error_score}",
            FitFailedWarning,
            stacklevel=3,
        )


def fit_together(
    models: Sequence[Any], X: Any, y: Any, sample_weight: Any = None
) -> list[Exception | None]:
    """Fit classifiers that see the same mini-batches, each as its own ``fit`` would.

    Parameters
    ----------
    models : sequence of classifiers
        Of one kind; they may differ in learning rate, its decay and schedule, momentum and penalty.
        One alone may have any solver.
    X, y, sample_weight
        As for their ``fit``.

    Returns
    -------
    list of Exception or None
        Why a model could not be fitted; the others are, whatever happens to it.
    """
    errors: list[Exception | None] = [None] * len(models)
    for place, model in enumerate(models):
        try:
            model.check_hyperparameters()
        except ValueError as error:
            errors[place] = error
    fits = [place for place, error in enumerate(errors) if error is None]
    if not fits:
        return errors
    try:
        if len(fits) == 1:
            models[fits[0]].fit(X, y, sample_weight=sample_weight)
            return errors
        found = _fit_fleet([models[place] for place in fits], X, y, sample_weight)
    except (ValueError, TypeError, FloatingPointError) as error:
        found = [error] * len(fits)
    for place, outcome in zip(fits, found, strict=True):
        errors[place] = outcome
    return errors


def _fit_fleet(models: list[Any], X: Any, y: Any, sample_weight: Any) -> list[Exception | None]:
    first = models[0]
    samples, labels, weights = first._check_training_data(X, y, sample_weight, reset=True)
    first._number_classes(labels)
    features = first._learn_standardization(samples, weights)
    targets = first._targets(labels)
    learned = {
        name: first.__dict__[name]
        for name in ("n_features_in_", "feature_names_in_", "classes_", "mean_", "scale_")
        if name in first.__dict__
    }
    first._rng = _generator(first.random_state)
    start = first._new_params(features)
    members = train_fleet(
        partial(first._objective, precision=first._products),
        {
            name: array_namespace(value).stack([value] * len(models))
            for name, value in start.items()
        },
        features,
        targets,
        rates=[model._rate(int(targets.shape[0])) for model in models],
        reg=[model.reg for model in models],
        momentum=[model.momentum for model in models],
        nesterov=first.nesterov,
        batch_size=first.batch_size,
        epochs=first.max_iter,
        rng=first._rng,
        sample_weight=weights,
        augment=first.augment,
    )
    for model, member in zip(models, members, strict=True):
        if member.error is None:
            model.__dict__.update(learned)
            model.params_, model._velocity = member.params, member.velocity
            model._rng, model.n_iter_ = deepcopy(first._rng), model.max_iter
            model._record(member.history)
    return [member.error for member in members]


def fleets_of(
    estimator: Any, candidates: Sequence[dict[str, Any]], X: Any, y: Any, memory_budget: int
) -> list[list[int]]:
    """Return the numbers of the candidates that can be trained together.

    Parameters
    ----------
    estimator : SoftmaxClassifier, LinearSVMClassifier or TwoLayerNetClassifier
        Gives the hyper-parameters that the candidates do not.
    candidates : sequence of dict
    X, y : array-like
        What they will be trained on.
    memory_budget : int
        Bytes that a fleet's models may take.
    """
    groups: list[tuple[dict[str, Any], list[int]]] = []
    own = estimator.get_params()
    for number, candidate in enumerate(candidates):
        settings = own | candidate
        common = {k: v for k, v in settings.items() if k not in OF_EACH_MODEL}
        alone = settings.get("solver", "sgd") != "sgd"
        group = next((numbers for c, numbers in groups if not alone and _same(c, common)), None)
        if group is None:
            groups.append((common, [number]))
        else:
            group.append(number)
    fleets = []
    for _, numbers in groups:
        model = clone(estimator).set_params(**clone(candidates[numbers[0]], safe=False))
        size = _models_that_fit(model, X, y, memory_budget) if len(numbers) > 1 else 1
        fleets += [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return fleets


def _same(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(
        value is others[name] or (type(value) is type(others[name]) and value == others[name])
        for name, value in some.items()
    )


def _models_that_fit(model: Any, X: Any, y: Any, budget: int) -> int:
    n_features = int(X.shape[1]) if hasattr(X, "shape") else np.asarray(X).shape[1]
    n_classes = len(np.unique(_on_host(y)))
    shapes = model._initial_params(n_features, n_classes, np.random.default_rng(0))
    n_numbers = sum(math.prod(value.shape) for value in shapes.values())
    widest = max(value.shape[-1] for value in shapes.values())
    of_rows = COPIES_OF_ROWS * model.batch_size * widest
    n_models: int = budget // (8 * (COPIES_OF_PARAMETERS * n_numbers + of_rows))
    return max(1, n_models)


def _rows(values: Any, numbers: np.ndarray) -> Any:
    if not _is_checked_here(values):
        return _safe_indexing(values, numbers)
    stored = values.X if isinstance(values, Standardized) else values
    if isinstance(stored, Streamed):  # a fold may be as much too large for the device as the whole
        part = stored.select(numbers)
        return values.with_samples(part) if isinstance(values, Standardized) else part
    places: Array = to_device(numbers, like=stored)
    return take_rows(values, places)


def _on_host(values: Any) -> Any:
    return (
        values
        if values is None
        else np.asarray(to_host(values) if _is_checked_here(values) else values)
    )
