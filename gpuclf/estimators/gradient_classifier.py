"""What the classifiers trained by gradients share: input checks, training loop, prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted

from gpuclf.backend import Array, array_namespace, to_device, to_host
from gpuclf.estimators.array_classifier import ArrayClassifier, on_host, select_rows
from gpuclf.losses import softmax
from gpuclf.models.linear import linear_scores
from gpuclf.samples.standardized import Standardized
from gpuclf.training import History, minimize_lbfgs, minimize_sgd, one_cycle
from gpuclf.validation import PRECISIONS

__all__ = ["GradientClassifier", "LinearClassifier", "ProbabilisticClassifier"]

Callback = Callable[[int, History], bool | None]  # (epochs done, history) -> stop?
Part = tuple[Any, Array, Array | None]  # samples, targets, weights


class GradientClassifier(ArrayClassifier):
    """Base of the classifiers that are trained by gradients.

    A subclass has the hyper-parameters as attributes and gives the model by `_initial_params`,
    `_objective` and `_scores`.
    """

    solver: str = "sgd"

    # ------------------------------------------------------------------------- the model

    def _initial_params(
        self, n_features: int, n_classes: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _objective(
        self,
        params: dict[str, Array],
        X: Any,
        y: Array,
        reg: float,
        weights: Array | None,
        *,
        precision: str,
    ) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError

    def _scores(self, params: dict[str, Array], X: Any) -> Array:
        raise NotImplementedError

    @property
    def _products(self) -> str:
        return self.precision or "float32"

    # -------------------------------------------------------------------------- training

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        callback: Callback | None = None,
    ) -> Self:
        """Train from scratch.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized or Streamed
            uint8, float32 and float64 are used as they are, on the device where X is; other
            numbers are converted to float64. The model is computed in float64 for float64
            samples and in float32 for float32 and uint8, unless `precision` says otherwise.
            The mean and scale of Standardized samples are kept, for later samples that come raw.
        y : array-like of shape (N,)
            Class labels; on a device, integers on the same device.
        sample_weight : array-like of shape (N,), optional
            A sample of weight 2 counts as two samples.
        X_val, y_val : array-like, optional
            Samples whose accuracy is recorded after each epoch, and beside it the accuracy on
            about as many training samples, evenly spaced. Early stopping goes by them too.
        callback : callable, optional
            ``callback(epoch, history)``, called after each epoch (or L-BFGS iteration); training
            ends when it returns True.

        Returns
        -------
        self

        Raises
        ------
        gpuclf.training.DivergedError
            If the loss becomes NaN or infinite.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If L-BFGS stopped at `max_iter`.
        """
        with self._unchanged_if_it_fails():
            self._fit(X, y, sample_weight, X_val, y_val, callback)
        return self

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any, callback: Callback | None
    ) -> None:
        self.check_hyperparameters()
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val belong together: pass both, or neither")
        stops_early = X_val is None and self.n_iter_no_change is not None
        (features, targets, weights), held_out = self._prepare(X, y, sample_weight, stops_early)
        self._rng = _generator(self.random_state)
        params = self._new_params(features)
        self.n_iter_ = 0
        self._velocity: dict[str, Array] | None = None
        if X_val is not None:
            n_val = y_val.shape[0] if hasattr(y_val, "shape") else len(y_val)
        elif held_out is not None:
            n_val = held_out[1].shape[0]
        validates = X_val is not None or held_out is not None
        if validates:
            seen = _spaced(features, targets, int(n_val))

        def after_epoch(params: dict[str, Array], history: History) -> bool:
            # A copy: training goes on in place, and callbacks may keep what they see.
            self.params_ = {k: array_namespace(v).asarray(v, copy=True) for k, v in params.items()}
            self.n_iter_ += 1
            if validates:
                history.val_accuracy.append(
                    self.score(X_val, y_val)
                    if held_out is None
                    else float(self._share_right(params, *held_out))
                )
                history.train_accuracy.append(float(self._share_right(params, *seen)))
            stop = callback is not None and callback(self.n_iter_, history)
            return bool(stop) or self._has_stalled(history)

        if self.solver == "lbfgs":
            self.params_, history, self.n_iter_ = minimize_lbfgs(
                self._training_objective(),
                params,
                features,
                targets,
                reg=self.reg,
                max_iter=self.max_iter,
                tol=self.tol,
                sample_weight=weights,
                on_iteration=after_epoch if validates or callback is not None else None,
            )
            if history.reached_max_iter:
                warnings.warn(
                    f"L-BFGS stopped at max_iter={self.max_iter} before it converged: raise "
                    "max_iter or tol, or standardise the features",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        else:
            history = self._run_sgd(
                params,
                features,
                targets,
                weights,
                History(),
                self._rate(int(targets.shape[0])),
                epochs=self.max_iter,
                on_epoch=after_epoch,
            )
        self._record(history)

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, hold_out: bool, *, reset: bool = True
    ) -> tuple[Part, Part | None]:
        """Check the training data; return what to train on, and what to validate on if wanted."""
        samples, labels, weights = self._check_training_data(X, y, sample_weight, reset=reset)
        if reset:
            self._number_classes(labels)
        held_out = None
        if hold_out:
            # The same for every random_state: what is compared is compared on the same samples.
            parts = train_test_split(
                np.arange(int(labels.shape[0])),
                test_size=self.validation_fraction,
                stratify=on_host(labels),
                random_state=0,
            )
            whole = samples, labels, weights
            (samples, labels, weights), held_out = (
                tuple(select_rows(values, np.sort(rows)) for values in whole) for rows in parts
            )
        features = (
            self._learn_standardization(samples, weights) if reset else self._features(samples)
        )
        if held_out is not None:
            held_out = self._features(held_out[0]), self._targets(held_out[1]), held_out[2]
        return (features, self._targets(labels), weights), held_out

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch over these samples, going on from where the model is.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized
        y : array-like of shape (N,)
        classes : array-like of shape (C,)
            All labels that will ever occur; needed at the first call.
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        self

        Notes
        -----
        The first call's samples set the standardisation. The learning rate is `learning_rate`,
        times `learning_rate_decay` for each epoch before this one (`n_iter_`); always by SGD, and
        without early stopping.
        """
        with self._unchanged_if_it_fails():
            self._partial_fit(X, y, classes, sample_weight)
        return self

    def _partial_fit(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> None:
        self.check_hyperparameters()
        first = not hasattr(self, "params_")
        samples, labels, weights = self._check_training_data(X, y, sample_weight, reset=first)
        if first:
            if classes is None:
                raise ValueError(
                    "the first call of partial_fit needs classes=, all labels that will ever occur"
                )
            self._number_classes(classes if hasattr(classes, "dtype") else np.asarray(classes))
            features = self._learn_standardization(samples, weights)
            self._rng = _generator(self.random_state)
            self.params_, self._velocity = self._new_params(features), None
            self.n_iter_, self.history_ = 0, History()
        else:
            if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes={np.unique(classes).tolist()} differ from those of the first call, "
                    f"{self.classes_.tolist()}"
                )
            features = self._features(samples)
        rate = self.learning_rate * self.learning_rate_decay**self.n_iter_
        history = self._run_sgd(
            self.params_,
            features,
            self._targets(labels),
            weights,
            deepcopy(self.history_),
            lambda _: rate,
            epochs=1,
        )
        self.n_iter_ += 1
        self._record(history)

    def _run_sgd(
        self,
        params: dict[str, Array],
        features: Any,
        targets: Array,
        weights: Array | None,
        history: History,
        rate: Callable[[int], float],
        epochs: int,
        on_epoch: Callable[[dict[str, Array], History], bool | None] | None = None,
    ) -> History:
        self.params_, self._velocity, history = minimize_sgd(
            self._training_objective(),
            to_device(params, like=targets),
            features,
            targets,
            rate=rate,
            reg=self.reg,
            momentum=self.momentum,
            nesterov=self.nesterov,
            batch_size=self.batch_size,
            epochs=epochs,
            rng=self._rng,
            velocity=None if self._velocity is None else to_device(self._velocity, like=targets),
            sample_weight=weights,
            augment=self.augment,
            on_epoch=on_epoch,
            history=history,
        )
        return history

    def _training_objective(self) -> Any:
        return partial(self._objective, precision=self._products)

    def _rate(self, n_samples: int) -> Callable[[int], float]:
        per_epoch = math.ceil(n_samples / self.batch_size)
        if self.schedule == "one_cycle":
            total = per_epoch * self.max_iter
            return lambda step: self.learning_rate * one_cycle(step, total)
        return lambda step: self.learning_rate * self.learning_rate_decay ** (step // per_epoch)

    def _has_stalled(self, history: History | None = None) -> bool:
        """Tell whether the best validation accuracy is `n_iter_no_change` epochs ago."""
        history = getattr(self, "history_", None) if history is None else history
        seen = [] if history is None else history.val_accuracy
        if self.n_iter_no_change is None or not seen:
            return False
        return bool(len(seen) - 1 - seen.index(max(seen)) >= self.n_iter_no_change)

    def _record(self, history: History) -> None:
        self.history_ = history
        self.loss_history_ = history.loss
        self.val_accuracy_history_ = history.val_accuracy
        self.train_accuracy_history_ = history.train_accuracy

    def check_hyperparameters(self) -> None:
        """Raise a ValueError that names the first hyper-parameter out of range."""
        checks: tuple[tuple[str, Any, Callable[[float], bool], str], ...] = (
            ("learning_rate", Real, lambda v: 0 < v < math.inf, "a finite number above 0"),
            ("learning_rate_decay", Real, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
            ("max_iter", Integral, lambda v: v >= 1, "an integer, at least 1"),
            ("batch_size", Integral, lambda v: v >= 1, "an integer, at least 1"),
            ("momentum", Real, lambda v: 0 <= v < 1, "a number, at least 0 and below 1"),
            ("reg", Real, lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
        )
        if self.n_iter_no_change is not None:
            checks += (
                ("n_iter_no_change", Integral, lambda v: v >= 1, "an integer, at least 1, or None"),
                ("validation_fraction", Real, lambda v: 0 < v < 1, "a number between 0 and 1"),
            )
        for name, kind, fits, wanted in checks:
            value = getattr(self, name)
            if not isinstance(value, kind) or not fits(value):
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if self.schedule not in ("exponential", "one_cycle"):
            raise ValueError(
                f"schedule must be 'exponential' or 'one_cycle', got {self.schedule!r}"
            )
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(
                f"precision must be 'float32', 'tf32', 'float64' or None, got {self.precision!r}"
            )
        if self.solver not in ("sgd", "lbfgs"):
            raise ValueError(f"solver must be 'sgd' or 'lbfgs', got {self.solver!r}")

    # ------------------------------------------------------------------------ prediction

    def decision_function(self, X: Any) -> Array:
        """Return the scores.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized

        Returns
        -------
        array of shape (N, C); for two classes (N,), the second score minus the first
            In the array library of X.
        """
        scores = self._class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """Return the labels of the highest scores, shape (N,), in the array library of X."""
        scores = self._class_scores(X)
        xp = array_namespace(scores)
        return self._labels(xp.argmax(scores, axis=-1))

    def _class_scores(self, X: Any) -> Array:
        check_is_fitted(self, "params_")
        samples = self._check_samples(X, reset=False)
        features = self._features(samples)
        stored = features.X if isinstance(features, Standardized) else features
        return self._scores(to_device(self.params_, like=stored), features)

    def _share_right(
        self, params: dict[str, Array], features: Any, targets: Array, weights: Array | None = None
    ) -> np.ndarray:
        """Return the accuracy, shape (...): one for each of several models."""
        xp = array_namespace(targets)
        predicted = xp.argmax(self._scores(params, features), axis=-1)
        right = xp.astype(predicted == targets, xp.float64)
        if weights is None:
            return np.asarray(to_host(xp.mean(right, axis=-1)))
        return np.asarray(to_host(right @ weights / xp.sum(weights)))

    def _learn_standardization(self, samples: Any, weights: Array | None) -> Any:
        self.mean_ = self.scale_ = None
        if self.standardize and not isinstance(samples, Standardized):
            samples = Standardized.fit(samples, weights)
        if isinstance(samples, Standardized):
            self.mean_, self.scale_ = to_host(samples.mean), to_host(samples.scale)
        return samples

    def _features(self, samples: Any) -> Any:
        if self.mean_ is None or isinstance(samples, Standardized):
            return samples
        return Standardized(samples, self.mean_, self.scale_)

    def _new_params(self, features: Any) -> dict[str, Array]:
        stored = features.X if isinstance(features, Standardized) else features
        is_wide = stored.dtype == array_namespace(stored).float64
        wide = self.precision == "float64" or (self.precision is None and is_wide)
        dtype = "float64" if wide else "float32"
        host = self._initial_params(self.n_features_in_, len(self.classes_), self._rng)
        params: dict[str, Array] = to_device(
            {name: value.astype(dtype) for name, value in host.items()}, like=stored
        )
        return params


class ProbabilisticClassifier(GradientClassifier):
    """Base of the classifiers whose scores are the logits of a softmax."""

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, shape (N, C), in the array library of X."""
        return softmax(self._class_scores(X))


class LinearClassifier(GradientClassifier):
    """Base of the classifiers with scores ``X @ W + b``, whatever their loss."""

    def _initial_params(
        self, n_features: int, n_classes: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        # The objective is convex: zero is as good a start as any, and the same on every machine.
        return {"W": np.zeros((n_features, n_classes)), "b": np.zeros(n_classes)}

    def _scores(self, params: dict[str, Array], X: Any) -> Array:
        return linear_scores(params, X, precision=self._products)


def _spaced(features: Any, targets: Array, count: int) -> tuple[Any, Array]:
    """Return about so many of the samples, evenly spaced."""
    rows = slice(None, None, max(1, int(targets.shape[0]) // max(1, count)))
    is_lazy = isinstance(features, Standardized)
    return features[rows] if is_lazy else features[rows, ...], targets[rows]


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)
