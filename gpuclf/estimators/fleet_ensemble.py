"""A vote of classifiers that are trained together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.base import ArrayClassifier
from gpuclf.estimators.bases import CallbackSupportMixin
from gpuclf.estimators.fleet_fitting import (
    MEMORY_BUDGET,
    check_estimator,
    fit_together,
    fleets_of,
    model_with,
    n_epochs_of,
    rows_of,
)
from gpuclf.estimators.prediction import as_decisions
from gpuclf.estimators.watching import as_told, part_task, root_task
from gpuclf.losses import one_hot

__all__ = ["FleetEnsemble"]


class FleetEnsemble(CallbackSupportMixin, ArrayClassifier):
    """Classifiers of one kind that vote.

    Parameters
    ----------
    estimator : SoftmaxClassifier, LinearSVMClassifier or TwoLayerNetClassifier
        Gives all other hyper-parameters; not changed.
    param_list : iterable of dict
        The hyper-parameters of each member: candidates of a search (:meth:`from_search`), or seeds,
        ``[{"random_state": seed} for seed in range(5)]``.
    voting : {"soft", "hard"}, optional
        "soft": the highest mean probability wins. "hard": most votes, of equals the smaller label.
        By default soft where there are probabilities, and hard for the SVM.

    Attributes
    ----------
    estimators_ : list of classifier
        Each as if fitted alone.
    classes_ : NumPy array of shape (C,)
    n_features_in_ : int
    feature_names_in_ : NumPy array of shape (D,)
        If the samples came with names of columns.

    See Also
    --------
    sklearn.ensemble.VotingClassifier : of any classifiers, on the host.

    Notes
    -----
    Members that see the same mini-batches (that differ in learning rate, its decay and schedule,
    momentum and penalty only) are trained in one pass: five cost little more than one. Seeds change
    the mini-batches, so members of different seeds are trained one after another; those of a linear
    model differ in nothing else.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=0)
    >>> search = gpuclf.FleetSearchCV(model, {"learning_rate": [1e-4, 1e-3, 3e-3]}, cv=3).fit(X, y)
    >>> ensemble = FleetEnsemble.from_search(search, 2).fit(X, y)
    >>> len(ensemble.estimators_), ensemble.member_scores(X, y).shape
    (2, (2,))
    """

    def __init__(
        self, estimator: Any, param_list: Iterable[dict[str, Any]], *, voting: str | None = None
    ) -> None:
        self.estimator = estimator
        # A generator is used up once; anything else stays as it is, for scikit-learn's clone.
        self.param_list = list(param_list) if isinstance(param_list, Iterator) else param_list
        self.voting = voting

    @classmethod
    def from_search(cls, search: Any, n_estimators: int = 5, *, voting: str | None = None) -> Self:
        """Return an ensemble of a finished search's best candidates, to be fitted.

        Parameters
        ----------
        search : FleetSearchCV
            Fitted, or any other search of scikit-learn's over such an estimator.
        n_estimators : int, default 5
            All, if the search has fewer that were trained to the end.
        voting : {"soft", "hard"}, optional
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        scores = results["mean_test_score"]
        if "iter" in results:  # of halving, only those that were trained the longest compare
            rounds = np.where(np.isfinite(scores), results["iter"], -1)
            scores = np.where(rounds == max(rounds), scores, np.nan)
        usable = [int(n) for n in np.argsort(-scores, kind="stable") if np.isfinite(scores[n])]
        if not usable:
            raise ValueError("the search has no candidate with a finite score to make members of")
        if not isinstance(n_estimators, Integral) or n_estimators < 1:
            raise ValueError(f"n_estimators must be an integer, at least 1, got {n_estimators!r}")
        best = [results["params"][n] for n in usable[:n_estimators]]
        return cls(search.estimator, best, voting=voting)

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> Self:
        """Train all members on all samples, or go on from checkpoints.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized or Streamed
        y : array-like of shape (N,)
        sample_weight : array-like of shape (N,), optional
        checkpoint, checkpoint_every, resume : optional
            As for the members' ``fit``; those that are trained together have a folder within
            `checkpoint`.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the estimator is not trained by gradients, or `X` is sparse.
        gpuclf.training.DivergedError
            If a member's loss or parameters become NaN or infinite.
        """
        check_estimator("FleetEnsemble", self.estimator, "sklearn.ensemble.VotingClassifier")
        param_list = self._param_list()
        if self.voting not in (None, "soft", "hard"):
            raise ValueError(f"voting must be 'soft', 'hard' or None, got {self.voting!r}")
        if self.voting == "soft" and not hasattr(self.estimator, "predict_proba"):
            raise ValueError(
                f"{type(self.estimator).__name__} has no probabilities: use voting='hard'"
            )
        given = {"X": X, "y": y, "sample_weight": sample_weight}
        X, y, sample_weight = (rows_of(name, values) for name, values in given.items())
        members = [model_with(self.estimator, params) for params in param_list]
        fleets = fleets_of(self.estimator, param_list, X, y, MEMORY_BUDGET)
        n_epochs = n_epochs_of(self.estimator, [param_list[fleet[0]] for fleet in fleets])
        told = as_told(self, X, y, sample_weight)
        with root_task(self, 1, told) as root, part_task(root, "members", n_epochs, told) as tasks:
            for place, numbers in enumerate(fleets):
                errors = fit_together(
                    *([members[n] for n in numbers], X, y, sample_weight),
                    callback=None if tasks is None else lambda _: tasks.next(),
                    checkpoint=checkpoint and Path(checkpoint) / f"fleet-{place}",
                    checkpoint_every=checkpoint_every,
                    resume=resume,
                )
                for error in filter(None, errors):
                    raise error
        self.estimators_ = members
        self.__dict__.pop("feature_names_in_", None)
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            if hasattr(members[0], name):
                setattr(self, name, getattr(members[0], name))
        return self

    def _param_list(self) -> list[dict[str, Any]]:
        given: Any = self.param_list
        if isinstance(given, Mapping | str) or not isinstance(given, Iterable):
            raise ValueError(
                "param_list must be a list of dicts, the hyper-parameters of one member each, got "
                f"{given!r}: a dict for one member goes into a list"
            )
        found = list(given)
        if not found:
            raise ValueError("param_list must hold the hyper-parameters of at least one member")
        wrong = [params for params in found if not isinstance(params, Mapping)]
        if wrong:
            raise ValueError(f"param_list must be a list of dicts, got one with {wrong[0]!r}")
        return found

    @on_its_device
    def predict(self, X: Any) -> Array:
        """Return the labels that win the vote, shape (N,), in the array library of X."""
        return self._winners(self._votes(X))

    @available_if(lambda self: self._is_soft())  # type: ignore[untyped-decorator]
    @on_its_device
    def predict_proba(self, X: Any) -> Array:
        """Return the mean of the members' probabilities, shape (N, C); with soft voting only."""
        return self._votes(X)

    @available_if(lambda self: self._is_soft())  # type: ignore[untyped-decorator]
    @on_its_device
    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the mean probabilities, finite also where those round to 0."""
        check_is_fitted(self, "estimators_")
        of_members = [model.predict_log_proba(X) for model in self.estimators_]
        xp = array_namespace(of_members[0])
        logs = xp.stack(of_members)
        highest = xp.max(logs, axis=0)
        return highest + xp.log(xp.mean(xp.exp(logs - highest), axis=0))

    @on_its_device
    def decision_function(self, X: Any) -> Array:
        """Return how the vote goes: mean probabilities (soft) or shares of the votes (hard).

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized

        Returns
        -------
        array of shape (N, C); for two classes (N,), the second share minus the first
            In the array library of X. `predict` takes the highest, of equals the first.
        """
        return as_decisions(self._votes(X))

    def member_scores(self, X: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
        """Return each member's accuracy, shape (n_members,): with seeds, their mean and spread."""
        check_is_fitted(self, "estimators_")
        return np.array([model.score(X, y, sample_weight) for model in self.estimators_])

    def _votes(self, X: Any) -> Array:
        check_is_fitted(self, "estimators_")
        vote = type(self.estimator).predict_proba if self._is_soft() else _choices
        return sum(vote(model, X) for model in self.estimators_) / len(self.estimators_)

    def _is_soft(self) -> bool:
        can_be = hasattr(self.estimator, "predict_proba")
        return can_be if self.voting is None else self.voting == "soft"


def _choices(model: Any, X: Any) -> Array:
    scores = model.class_scores(X)
    choices = array_namespace(scores).argmax(scores, axis=-1)
    return one_hot(choices, int(scores.shape[-1]), dtype=scores.dtype)
