"""Search by cross-validation, with all candidates of a fold trained in one pass."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv

from gpuclf.estimators.base import count_samples, on_host, select_rows
from gpuclf.estimators.bases import BaseSearchCV
from gpuclf.estimators.fleet_fitting import (
    MEMORY_BUDGET,
    check_estimator,
    fleets_of,
    model_with,
    n_epochs_of,
    rows_of,
)
from gpuclf.estimators.fleet_tasks import FleetTask, check_jobs, is_spread, run_tasks
from gpuclf.estimators.keeping import Saved
from gpuclf.estimators.watching import as_told, part_task, root_task, sub_fit

__all__ = ["FleetSearchCV"]

OF_HALVING = (
    "n_iterations_",
    "n_candidates_",
    "n_resources_",
    "n_remaining_candidates_",
    "n_required_iterations_",
    "n_possible_iterations_",
    "min_resources_",
    "max_resources_",
)
Outcomes = dict[tuple[int, int], dict[str, Any]]  # by candidate and fold


@dataclass(eq=False, repr=False)
class FleetSearchCV(Saved, BaseSearchCV):
    """scikit-learn's grid and random search, with candidates trained together instead of in turn.

    The candidates of a fold that see the same mini-batches are one wide product a step: see
    :func:`gpuclf.training.train_sgd`. Those that differ in more than learning rate, its decay and
    schedule, momentum and penalty (batch size, epochs, hidden units, solver) form fleets of their
    own, and the fleets run one after another. Candidates of ``solver="lbfgs"`` share their passes
    over all samples, whatever their penalty, tolerance and iterations: see
    :func:`gpuclf.training.train_lbfgs`.

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
    factor : float, optional
        Successive halving, as in :class:`sklearn.model_selection.HalvingGridSearchCV` with epochs
        as the resource: now and then, only the best 1/`factor` of the candidates go on. By default
        all are trained to the end.
    min_resources : int, default 1
        Epochs before the first of them leave, with a `factor`.
    memory_budget : float, default 1 GiB
        Bytes that the models of a fleet may take while they train; a larger fleet is split.
    penalty_path : bool, default False
        With ``solver="lbfgs"``, train every fourth penalty of a fleet first, and start the others
        where the nearest of those ended. They then end elsewhere within their `tol`.
    n_jobs : int, optional
        Workers that share the fleets of all folds, through joblib: processes of this machine, or
        what ``joblib.parallel_config`` names, such as a cluster of dask. -1: as many as there are.
        By default all is done here, in turn; within a ``parallel_config``, as that says.
    worker_backend : {"auto", "numpy", "cupy"}, optional
        Where each worker takes its rows; by default they stay in the library that they came in.
    verbose : int, default 0
        Above 0, print a line for each fleet.

    Attributes
    ----------
    cv_results_ : dict
        With the keys of GridSearchCV's. `mean_fit_time` and `mean_score_time` are the fleet's time
        divided by its models. With a `factor` there is a row for each candidate in each round,
        and `iter` and `n_resources` tell the round and the epochs it was trained for.
    best_params_ : dict
    best_score_ : float
    best_index_ : int
    best_estimator_ : classifier
        If `refit`.
    refit_time_ : float
        Seconds.
    feature_names_in_ : NumPy array of shape (D,)
        If `refit`, and the samples came with names of columns.
    n_splits_ : int
    scorer_ : callable
    n_iterations_, n_remaining_candidates_ : int
        Rounds, and how many candidates would have gone on after the last; with a `factor`, like
        the next two.
    n_candidates_, n_resources_ : list of int
        Candidates in each round, and the epochs after which it ends. The last ends at `max_iter`.
    min_resources_, max_resources_ : int
        Epochs after which the first and the last round end; with a `factor`, like the next two.
    n_required_iterations_, n_possible_iterations_ : int
        Rounds until fewer than `factor` candidates are left, and rounds that there are epochs for
        above the parameter `min_resources`. The smaller is the number of rounds.

    See Also
    --------
    gpuclf.FleetEnsemble : a vote of the best candidates.
    gpuclf.search.coarse_to_fine : rounds of random search on one validation set.

    Notes
    -----
    The folds run one after another: each candidate sees the standardisation and the mini-batches
    that it would see if it were trained alone on the fold's training samples. So scores and best
    candidate are those of GridSearchCV over the same estimator and folds but for rounding, if
    `random_state` of the estimator is fixed. Sums in another order round differently, and the
    difference grows from step to step: at usual learning rates parameters agree to about 1e-12 in
    float64 and 1e-6 in float32; at very large ones, in float32, scores may differ visibly.

    A fleet uses all threads of its products, so on one machine without a GPU `n_jobs` gains
    little: it is for machines and GPUs. A task is a fleet in a fold. The data go to each worker
    once (processes of this machine share them), and the rows of a fold are chosen there; GPUs get
    NumPy arrays and ``worker_backend="cupy"``. A worker of dask that is lost has its tasks done by
    others; a process of this machine that is killed ends the search. Sums of as many threads are
    summed alike, so the scores are those without `n_jobs` where a worker has as many threads.

    Unlike GridSearchCV it has no `pre_dispatch`, and takes one metric. A score that fails is
    reported like there, by a warning. scikit-learn's callbacks (`set_callbacks`, of its version
    1.9) see each fold and, without `n_jobs`, its epochs.

    Seeds are searched like anything else, for the mean and the spread of the accuracy:
    ``{"random_state": range(5)}``. Other mini-batches are another fleet, so seeds cost their full
    price.

    With a `factor`, all folds reach a round's end before candidates are compared by their mean.
    The schedule of the learning rate is that of `max_iter` epochs throughout: a survivor ends with
    the parameters that it has without halving, and is compared half-way in the middle of its
    schedule. Between the rounds the parameters of all candidates of all folds are kept.
    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization" (2016).

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=0)
    >>> search = FleetSearchCV(model, {"learning_rate": [1e-4, 1e-3], "reg": [0.0, 1e-3]}, cv=3)
    >>> search.fit(X, y).n_splits_, len(search.cv_results_["params"])
    (3, 4)
    >>> search.set_params(factor=2).fit(X, y).n_candidates_, search.n_resources_
    ([4, 2], [1, 2])
    """

    estimator: Any
    param_grid: Any = None
    _: KW_ONLY
    param_distributions: Any = None
    n_iter: int = 10
    scoring: Any = None
    refit: Any = True
    cv: Any = None
    random_state: Any = None
    error_score: Any = np.nan
    return_train_score: bool = False
    factor: float | None = None
    min_resources: int = 1
    memory_budget: float = MEMORY_BUDGET
    penalty_path: bool = False
    n_jobs: int | None = None
    worker_backend: str | None = None
    verbose: int = 0

    def fit(self, X: Any, y: Any, *, groups: Any = None, sample_weight: Any = None) -> Self:
        """Train and compare all candidates.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized or Streamed
            Standardized samples keep their mean and scale in every fold. Not sparse.
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
            If the estimator is not trained by gradients, or `X` is sparse.
        ValueError
            If all fits failed, or if `X`, `y`, `groups` and `sample_weight` differ in length.
        ChildProcessError
            If a process of `n_jobs` was killed.
        """
        check_jobs(self.n_jobs, self.worker_backend)
        candidates = self._candidates()
        rungs = self._rungs(candidates)
        given = {"X": X, "y": y, "sample_weight": sample_weight, "groups": groups}
        X, y, sample_weight, groups = (rows_of(name, values) for name, values in given.items())
        _check_lengths(X, y=y, sample_weight=sample_weight, groups=groups)
        for name in OF_HALVING:
            self.__dict__.pop(name, None)
        self.scorer_ = check_scoring(self.estimator, scoring=self.scoring)
        self.multimetric_ = False
        labels = on_host(y)
        cv = check_cv(self.cv, labels, classifier=True)
        splits = list(cv.split(np.zeros((len(labels), 1)), labels, groups))
        self.n_splits_ = len(splits)
        n_parts = len(rungs) * len(splits) + (self.refit is not False)
        with root_task(self, n_parts, as_told(self, X, y, sample_weight)) as root:
            self._compare(candidates, rungs, splits, (X, y, sample_weight), root)
            if self.refit:
                self._refit((X, y, sample_weight), root)
        return self

    def _compare(
        self,
        candidates: list[dict[str, Any]],
        rungs: list[Any],
        splits: list[Any],
        data: tuple[Any, Any, Any],
        root: Any,
    ) -> None:
        """Train and score all candidates in all folds, and choose the best."""
        models: dict[tuple[int, int], Any] = {}  # what goes on in the next rung
        left, tried, outcomes = list(range(len(candidates))), [], []
        sizes: list[int] = []
        for epochs in rungs:
            found = self._evaluate(candidates, left, models, splits, data, epochs, root)
            tried += left
            sizes.append(len(left))
            outcomes += [found[n, f] for n in left for f in range(len(splits))]
            left = [] if self.factor is None else self._survivors(left, found, self.factor)
            models = {key: model for key, model in models.items() if key[0] in left}
            if not left:
                break
        errors = [outcome.pop("error") for outcome in outcomes]
        self._report_failures(errors, [outcome.pop("score_error") for outcome in outcomes])
        more = {}
        if self.factor is not None:
            self.n_iterations_, self.n_candidates_ = len(sizes), sizes
            self.n_resources_, self.n_remaining_candidates_ = rungs[: len(sizes)], len(left)
            self.min_resources_, self.max_resources_ = rungs[0], rungs[-1]
            self.n_required_iterations_ = self._n_required(len(candidates))
            self.n_possible_iterations_ = len(self._resources(rungs[-1]))
            more = {
                "iter": np.repeat(range(len(sizes)), sizes),
                "n_resources": np.repeat(self.n_resources_, sizes),
            }
        params = [candidates[n] for n in tried]
        results = self._format_results(params, len(splits), outcomes, more)
        if callable(self.refit):
            self.best_index_ = int(self.refit(results))
        else:
            rows = np.arange(len(tried))
            if self.factor is not None:  # those that were trained the longest, without a failure
                healthy = [not any(errors[i : i + len(splits)]) for i in rows * len(splits)]
                rounds = np.where(healthy, more["iter"], -1)
                rows = np.flatnonzero(rounds == rounds.max())
            self.best_index_ = int(rows[results["rank_test_score"][rows].argmin()])
            self.best_score_ = results["mean_test_score"][self.best_index_]
        self.best_params_ = params[self.best_index_]
        self.cv_results_ = results

    def _refit(self, data: tuple[Any, Any, Any], root: Any) -> None:
        """Train the best candidate on all samples."""
        X, y, sample_weight = data
        self.best_estimator_ = best = model_with(self.estimator, self.best_params_)
        with sub_fit(root, "refit-with-best-params", best, as_told(self, *data)):
            start = time.perf_counter()
            best.fit(X, y, sample_weight=sample_weight)
            self.refit_time_ = time.perf_counter() - start
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_

    def _candidates(self) -> list[dict[str, Any]]:
        check_estimator("FleetSearchCV", self.estimator, "sklearn.model_selection.GridSearchCV")
        if isinstance(self.scoring, list | tuple | set | dict):
            raise ValueError(f"scoring must be one metric, got {self.scoring!r}")
        if (self.param_grid is None) == (self.param_distributions is None):
            raise ValueError("pass either param_grid or param_distributions")
        if self.param_grid is not None:
            return list(ParameterGrid(self.param_grid))
        return list(
            ParameterSampler(self.param_distributions, self.n_iter, random_state=self.random_state)
        )

    def _rungs(self, candidates: list[dict[str, Any]]) -> list[Any]:
        """Return the epochs after which losers leave, and those of the end; None: no halving."""
        if self.factor is None:
            return [None]
        if not self.factor > 1:
            raise ValueError(f"factor must be a number above 1, or None, got {self.factor!r}")
        models = [model_with(self.estimator, candidate) for candidate in candidates]
        if any("max_iter" in candidate for candidate in candidates):
            raise ValueError("max_iter cannot be searched where epochs are halved (factor=)")
        if any(model.solver != "sgd" for model in models):
            raise ValueError("epochs are halved (factor=) with solver='sgd' only")
        last: int = self.estimator.max_iter
        if not 1 <= self.min_resources <= last:
            raise ValueError(
                f"min_resources must be at least 1 and at most max_iter={last} epochs, got "
                f"{self.min_resources!r}"
            )
        return self._resources(last)[-self._n_required(len(candidates)) :]

    def _n_required(self, n_candidates: int) -> int:
        """Return the rounds until fewer than `factor` of the candidates are left."""
        return 1 + math.floor(math.log(n_candidates) / math.log(self.factor or math.inf) + 1e-9)

    def _resources(self, last: int) -> list[int]:
        """Return the epochs of all rounds that `min_resources` allows."""
        epochs, factor = [last], self.factor or math.inf
        while epochs[0] // factor >= self.min_resources:
            epochs.insert(0, int(epochs[0] // factor))
        return epochs

    def _survivors(self, numbers: list[int], outcomes: Outcomes, factor: float) -> list[int]:
        """Return the best of the candidates that failed in no fold, in their order."""
        folds = range(self.n_splits_)
        scores = {
            n: np.mean([outcomes[n, fold]["test_scores"] for fold in folds])
            for n in numbers
            if not any(outcomes[n, f]["error"] or outcomes[n, f]["score_error"] for f in folds)
        }
        ranked = sorted(scores, key=lambda n: np.nan_to_num(scores[n], nan=-np.inf), reverse=True)
        return sorted(ranked[: math.ceil(len(numbers) / factor)])

    def _evaluate(
        self,
        candidates: list[dict[str, Any]],
        numbers: list[int],
        models: dict[tuple[int, int], Any],
        splits: list[Any],
        data: tuple[Any, Any, Any],
        epochs: int | None,
        root: Any = None,
    ) -> Outcomes:
        """Train these candidates in every fold; return what became of each, by number and fold."""
        task = FleetTask(
            *(self.scorer_, self.scoring, self.error_score),
            *(self.return_train_score, self.penalty_path, self.worker_backend),
        )
        outcomes: Outcomes = {}
        given = [candidates[n] for n in numbers]
        labels = on_host(data[1])
        of_folds = [
            fleets_of(self.estimator, given, *_like_rows(data[0], labels, rows), self.memory_budget)
            for rows, _ in splits
        ]

        def models_of(places: list[int], fold: int) -> list[Any]:
            fleet = [numbers[place] for place in places]
            return [
                models.get((n, fold)) or model_with(self.estimator, candidates[n]) for n in fleet
            ]

        spread = None
        if is_spread(self.n_jobs):
            spread = iter(
                run_tasks(
                    task,
                    [
                        (models_of(places, fold), splits[fold], epochs)
                        for fold, fleets in enumerate(of_folds)
                        for places in fleets
                    ],
                    dict(zip(("X", "y", "sample_weight"), data, strict=True)),
                    *(self.n_jobs, self._sent(given)),
                )
            )
        for fold, (rows, fleets) in enumerate(zip(splits, of_folds, strict=True)):
            n_epochs = n_epochs_of(self.estimator, [given[places[0]] for places in fleets])
            of_fold = [] if spread else task.parts(data, rows)
            with part_task(root, "fold", 0 if spread else n_epochs, as_told(self, *data)) as tasks:
                callback = None if tasks is None else lambda _, tasks=tasks: tasks.next()
                for places in fleets:
                    if spread:
                        found, of_fleet = next(spread)
                    else:
                        of_fleet = models_of(places, fold)
                        found = task.outcomes(of_fleet, of_fold, epochs, callback)
                    fleet = [(numbers[place], fold) for place in places]
                    outcomes |= dict(zip(fleet, found, strict=True))
                    if epochs is not None:
                        models |= dict(zip(fleet, of_fleet, strict=True))
                    self._say(fold, epochs, found)
        return outcomes

    def _sent(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what goes to other processes, by name."""
        sent: dict[str, Any] = self.estimator.get_params()
        for candidate in candidates:
            for name, value in candidate.items():
                sent[name] = [sent.get(name), value]
        return sent | {"scoring": self.scorer_}  # last: it may hold the estimator

    def _say(self, fold: int, epochs: int | None, found: list[dict[str, Any]]) -> None:
        """Print what became of a fleet, if that is wanted."""
        if self.verbose > 0:
            seconds = sum(outcome["fit_time"] for outcome in found)
            failed = sum(outcome["error"] is not None for outcome in found)
            until = "" if epochs is None else f" to epoch {epochs}"
            print(
                f"fold {fold + 1} of {self.n_splits_}: {len(found)} models{until} in "
                f"{seconds:.1f} s, {failed} failed"
            )

    def _report_failures(
        self, errors: list[Exception | None], score_errors: list[Exception | None]
    ) -> None:
        failures = [error for error in errors if error is not None]
        unscored = [error for error in score_errors if error is not None]
        if self.error_score == "raise" and (failures or unscored):
            raise (failures + unscored)[0]
        of_all, score = f"of {len(errors)} fits", f"their score is error_score={self.error_score}"
        if unscored:
            first = f"scoring failed for {len(unscored)} {of_all}, the first: {unscored[0]!r}"
            warnings.warn(f"{first}; {score}", stacklevel=4)
        if failures:
            first = f"{len(failures)} {of_all} failed, the first: {failures[0]}"
            if len(failures) == len(errors):
                raise ValueError(first) from failures[0]
            warnings.warn(f"{first}; {score}", FitFailedWarning, stacklevel=4)


def _like_rows(X: Any, labels: np.ndarray, rows: Any) -> tuple[Any, np.ndarray]:
    """Return samples of a fold's shape, without their values, and its labels."""
    labels = labels[rows]
    if not hasattr(X, "shape"):
        return select_rows(X, rows), labels
    return np.broadcast_to(np.uint8(0), (len(labels), *X.shape[1:])), labels


def _check_lengths(X: Any, **others: Any) -> None:
    if others["y"] is None:
        raise ValueError("FleetSearchCV requires y to be passed, but the target y is None")
    for name, values in others.items():
        if values is not None and count_samples(values) != count_samples(X):
            raise ValueError(
                f"X has {count_samples(X)} samples, but {name} has length {count_samples(values)}: "
                "pass one value for each sample"
            )
