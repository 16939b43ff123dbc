"""What a classifier that scores every class answers: scores, labels, probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.base import ArrayClassifier, Part, count_samples, on_host
from gpuclf.estimators.shards import class_numbers, class_scores
from gpuclf.losses import log_softmax, softmax
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized, is_sharded
from gpuclf.samples.streamed import Streamed
from gpuclf.validation import check_label_count

__all__ = ["ScoreClassifier", "as_decisions"]


def as_decisions(scores: Array) -> Array:
    """Return scores (N, C) as scikit-learn wants them: (N,) of two classes, second minus first."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


class ScoreClassifier(ArrayClassifier):
    """Base of the classifiers whose :class:`gpuclf.models.Model` scores every class."""

    model: ClassVar[Model]
    params_: Params
    mean_: np.ndarray | None
    scale_: np.ndarray | None
    precision: str | None

    @on_its_device
    def decision_function(self, X: Any) -> Array:
        """Return the scores.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized, Streamed or Sharded

        Returns
        -------
        array of shape (N, C); for two classes (N,), the second score minus the first
            In the array library of X.
        """
        return as_decisions(self.class_scores(X))

    def predict(self, X: Any) -> Array:
        """Return the labels of the highest scores, shape (N,), in the array library of X."""
        if is_sharded(X):
            check_is_fitted(self, "params_")
            return self._labels(class_numbers(self, X))
        return self._winners(self.class_scores(X))

    @on_its_device
    def class_scores(self, X: Any, params: Params | None = None) -> Array:
        """Return one score for each class, also of two, in the array library of X.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized
        params : dict of array, optional
            To use instead of `params_`: those of several such classifiers, fitted on the same
            samples, with a leading model axis (:func:`gpuclf.training.stacked`).

        Returns
        -------
        array of shape (N, C), or (K, N, C)
        """
        check_is_fitted(self, "params_")
        if is_sharded(X):
            return class_scores(self, X, params)
        samples = self._standardized(self._check_samples(X, reset=False))
        stored = samples.X if isinstance(samples, Standardized) else samples
        params = to_device(self.params_ if params is None else params, like=stored)
        return self._scores(params, samples)

    @available_if(lambda self: self.model.has_logits)  # type: ignore[untyped-decorator]
    @on_its_device
    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, shape (N, C), in the array library of X."""
        return softmax(self.class_scores(X))

    @available_if(lambda self: self.model.has_logits)  # type: ignore[untyped-decorator]
    @on_its_device
    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the probabilities, finite also where those round to 0."""
        return log_softmax(self.class_scores(X))

    def _standardized(self, samples: Any) -> Any:
        if self.mean_ is None or isinstance(samples, Standardized):
            return samples
        return Standardized(samples, self.mean_, self.scale_)

    def _scores(self, params: Params, samples: Any) -> Array:
        return self.model.scores(params, samples, precision=self._product_precision)

    @property
    def _product_precision(self) -> str:
        return self.precision or "float32"

    def _to_validate_on(self, X: Any, y: Any, *, like: Any) -> Part:
        """Return samples and labels to validate on, checked; a label of no class is never met."""
        try:
            samples = self._check_samples(X, reset=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"X_val cannot be validated on: {error}") from None
        labels = column_or_1d(on_host(y))
        check_label_count(labels, count_samples(samples), "y_val")
        known = np.isin(labels, self.classes_)
        if not known.any():  # an accuracy of 0, which early stopping would stop by
            raise ValueError(
                f"y_val has no label of y: {np.unique(labels)[:5].tolist()} of {labels.dtype}, "
                f"where y has {self.classes_[:5].tolist()} of {self.classes_.dtype}"
            )
        numbers = np.where(known, np.searchsorted(self.classes_, labels), -1)
        stored = samples.X if isinstance(samples, Standardized) else samples
        if not isinstance(stored, Streamed):
            samples = to_device(samples, like=like)
        return Part(self._standardized(samples), to_device(numbers, like=like))

    def _accuracies(self, params: Params, part: Part) -> np.ndarray:
        """Return the accuracy, shape (...): one for each of several models."""
        xp = array_namespace(part.targets)
        predicted = xp.argmax(self._scores(params, part.samples), axis=-1)
        right = xp.astype(predicted == part.targets, xp.float64)
        if part.weights is None:
            return np.asarray(to_host(xp.mean(right, axis=-1)))
        return np.asarray(to_host(right @ part.weights / xp.sum(part.weights)))
