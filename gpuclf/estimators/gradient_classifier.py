"""What the classifiers trained by gradients share: input checks, training loop, prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from gpuclf.backend import Array, array_namespace, to_device, to_host
from gpuclf.features import Standardized
from gpuclf.linear import linear_scores
from gpuclf.losses import softmax
from gpuclf.training import History, minimize_lbfgs, minimize_sgd, one_cycle
from gpuclf.validation import check_finite, check_samples, check_weights

__all__ = ["GradientClassifier", "LinearClassifier", "ProbabilisticClassifier"]

Callback = Callable[[int, History], bool | None]  # (epochs done, history) -> stop?
ACCEPTED_DTYPES = (np.float64, np.float32, np.uint8)


class GradientClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
        self, params: dict[str, Array], X: Any, y: Array, reg: float, weights: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError

    def _scores(self, params: dict[str, Array], X: Any) -> Array:
        raise NotImplementedError

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
        X : array-like of shape (N, D), or Standardized
            uint8, float32 and float64 are used as they are, on the device where X is; other
            numbers are converted to float64. The model is computed in float64 for float64
            samples and in float32 for float32 and uint8, unless `precision` says otherwise.
            The mean and scale of Standardized samples are kept, for later samples that come raw.
        y : array-like of shape (N,)
            Class labels; on a device, integers on the same device.
        sample_weight : array-like of shape (N,), optional
            A sample of weight 2 counts as two samples.
        X_val, y_val : array-like, optional
            Samples whose accuracy is recorded after each epoch.
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
        samples, labels, weights = self._check_training_data(X, y, sample_weight, reset=True)
        self._number_classes(labels)
        features = self._learn_standardization(samples, weights)
        targets = self._targets(labels)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val belong together: pass both, or neither")
        self._rng = _generator(self.random_state)
        params = self._new_params(features)
        self.n_iter_ = 0
        self._velocity: dict[str, Array] | None = None

        def after_epoch(params: dict[str, Array], history: History) -> bool | None:
            # A copy: training goes on in place, and callbacks may keep what they see.
            self.params_ = {k: array_namespace(v).asarray(v, copy=True) for k, v in params.items()}
            self.n_iter_ += 1
            if X_val is not None:
                history.val_accuracy.append(self.score(X_val, y_val))
            return callback(self.n_iter_, history) if callback is not None else None

        if self.solver == "lbfgs":
            self.params_, history, self.n_iter_ = minimize_lbfgs(
                self._objective,
                params,
                features,
                targets,
                reg=self.reg,
                max_iter=self.max_iter,
                tol=self.tol,
                sample_weight=weights,
                on_iteration=None if X_val is None and callback is None else after_epoch,
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
        times `learning_rate_decay` for each epoch before this one (`n_iter_`); always by SGD.
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

    @contextmanager
    def _unchanged_if_it_fails(self) -> Iterator[None]:
        """Leave no half-trained model behind an error or an interruption."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

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
            self._objective,
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

    def _rate(self, n_samples: int) -> Callable[[int], float]:
        per_epoch = math.ceil(n_samples / self.batch_size)
        if self.schedule == "one_cycle":
            total = per_epoch * self.max_iter
            return lambda step: self.learning_rate * one_cycle(step, total)
        return lambda step: self.learning_rate * self.learning_rate_decay ** (step // per_epoch)

    def _record(self, history: History) -> None:
        self.history_ = history
        self.loss_history_ = history.loss
        self.val_accuracy_history_ = history.val_accuracy

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
        for name, kind, fits, wanted in checks:
            value = getattr(self, name)
            if not isinstance(value, kind) or not fits(value):
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if self.schedule not in ("exponential", "one_cycle"):
            raise ValueError(
                f"schedule must be 'exponential' or 'one_cycle', got {self.schedule!r}"
            )
        if self.precision not in (None, "float32", "float64"):
            raise ValueError(
                f"precision must be 'float32', 'float64' or None, got {self.precision!r}"
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
        best = xp.argmax(scores, axis=-1)
        if xp is np:
            return self.classes_[best]
        if self.classes_.dtype.kind not in "iub":
            raise TypeError(
                f"the labels are of type {self.classes_.dtype}, which only NumPy arrays can hold: "
                "pass X by gpuclf.to_host(X), or fit with integer labels"
            )
        return xp.take(to_device(self.classes_, like=scores), best)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of right predictions, as a float on the host.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized
        y : array-like of shape (N,)
            True labels.
        sample_weight : array-like of shape (N,), optional
        """
        predicted = to_host(self.predict(X))
        y, sample_weight = (to_host(v) if _is_checked_here(v) else v for v in (y, sample_weight))
        return float(accuracy_score(column_or_1d(y), predicted, sample_weight=sample_weight))

    def _class_scores(self, X: Any) -> Array:
        check_is_fitted(self, "params_")
        samples = self._check_samples(X, reset=False)
        features = self._features(samples)
        stored = features.X if isinstance(features, Standardized) else features
        return self._scores(to_device(self.params_, like=stored), features)

    # ----------------------------------------------------------------------- input checks

    def _check_samples(self, X: Any, *, reset: bool) -> Any:
        if not _is_checked_here(X):
            return validate_data(self, X, reset=reset, dtype=ACCEPTED_DTYPES)
        _, _, n_features = check_samples(X)
        if reset:
            self.n_features_in_ = n_features
            self.__dict__.pop("feature_names_in_", None)
        elif n_features != self.n_features_in_:
            raise ValueError(
                f"X has {n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        check_finite(X)
        return X

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Any, Any, Array | None]:
        if not _is_checked_here(X):
            for name, value in (("y", y), ("sample_weight", sample_weight)):
                if _is_checked_here(value):
                    array_namespace(**{"X": np.asarray(X), name: value})  # raises
            X, y = validate_data(self, X, y, reset=reset, dtype=ACCEPTED_DTYPES, multi_output=False)
            check_classification_targets(y)
            if sample_weight is not None:
                sample_weight = _check_sample_weight(
                    sample_weight, X, dtype=np.float64, ensure_non_negative=True
                )
            return X, y, sample_weight
        X = self._check_samples(X, reset=reset)
        stored = X.X if isinstance(X, Standardized) else X
        if isinstance(stored, np.ndarray):
            y = np.asarray(y)
            sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        xp = array_namespace(X=stored, y=y, sample_weight=sample_weight)
        if tuple(y.shape) != (stored.shape[0],):
            raise ValueError(
                f"y must have shape ({stored.shape[0]},), one label for each row of X, got "
                f"{tuple(y.shape)}"
            )
        if xp is np:
            check_classification_targets(y)
        elif not xp.isdtype(y.dtype, "integral"):
            raise TypeError(f"labels on a device must be integers, got {y.dtype}")
        return X, y, check_weights(sample_weight, X, xp.float64)

    def _number_classes(self, labels: Any) -> None:
        host = isinstance(labels, np.ndarray)
        found = np.unique(labels) if host else array_namespace(labels).unique_values(labels)
        self.classes_ = np.sort(np.asarray(to_host(found)))

    def _targets(self, labels: Array) -> Array:
        """Return the number of each label's class."""
        if isinstance(labels, np.ndarray):
            unknown = ~np.isin(labels, self.classes_)
            if unknown.any():
                raise ValueError(
                    f"y has the label {labels[unknown][0]!r}, which is not among the classes "
                    f"{self.classes_.tolist()}"
                )
            return np.searchsorted(self.classes_, labels)
        xp = array_namespace(labels)
        classes = xp.astype(to_device(self.classes_, like=labels), labels.dtype)
        numbers = xp.searchsorted(classes, labels)
        last = int(classes.shape[0]) - 1
        nearest = xp.where(numbers > last, xp.asarray(last, device=labels.device), numbers)
        # An unknown label gets a number that no class has, which makes the loss NaN.
        return xp.where(xp.take(classes, nearest) == labels, nearest, last + 1)

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
        dtype = self.precision or ("float64" if is_wide else "float32")
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
        return linear_scores(params, X)


def _is_checked_here(X: Any) -> bool:
    """Tell the inputs that scikit-learn's checks would refuse or copy to the host."""
    if isinstance(X, Standardized):
        return True
    if isinstance(X, np.ndarray):
        return False
    root = type(X).__module__.partition(".")[0]
    return root in ("cupy", "torch") or hasattr(X, "__array_namespace__")


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)
