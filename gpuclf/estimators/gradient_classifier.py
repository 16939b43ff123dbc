"""What the classifiers trained by gradients share: training, alone or together, and prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.estimators.base import ArrayClassifier, on_host, select_rows
from gpuclf.losses import softmax
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized
from gpuclf.training import History, Member, minimize_lbfgs, one_cycle, train_sgd
from gpuclf.validation import PRECISIONS

__all__ = ["GradientClassifier"]

LEARNED_FROM_SAMPLES = ("n_features_in_", "feature_names_in_", "classes_", "mean_", "scale_")

Callback = Callable[[int, History], bool | None]  # (epochs done, history) -> stop?
Part = tuple[Any, Array, Array | None]  # samples, targets, weights


class GradientClassifier(ArrayClassifier):
    """Base of the classifiers that are trained by gradients.

    A subclass has the hyper-parameters as attributes and gives the model.

    Attributes
    ----------
    model : Model
        Scores, loss and first parameters. A loss of one's own is a subclass with another one,
        ``model = gpuclf.models.LinearModel("mine", my_loss)``.
    """

    model: Model
    solver: str = "sgd"

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
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val belong together: pass both, or neither")
        with self._unchanged_if_it_fails():
            self.check_hyperparameters()
            (error,) = self.fit_fleet(
                *([self], X, y, sample_weight), X_val=X_val, y_val=y_val, callback=callback
            )
            if error is not None:
                raise error
        return self

    @staticmethod
    def fit_fleet(
        fleet: Sequence[Any],
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        epochs: int | None = None,
        callback: Callback | None = None,
    ) -> list[Exception | None]:
        """Train classifiers that see the same mini-batches in one pass; ``fit`` is a fleet of one.

        Parameters
        ----------
        fleet : sequence of classifiers
            They differ in learning rate, its decay and schedule, momentum and penalty at most; that
            is not checked (:func:`gpuclf.estimators.fleet_fitting.fit_together` does).
        X, y, sample_weight : array-like
            As for :meth:`fit`.
        X_val, y_val : array-like, optional
            As for :meth:`fit`; with one classifier only.
        epochs : int, optional
            Train on until so many epochs are done, of the `max_iter` that the schedules count with,
            from where the classifiers are. By default, train from scratch, to the end.
        callback : callable, optional
            As for :meth:`fit`, with the history of the first of those that still train. The
            parameters so far are set for it with one classifier only.

        Returns
        -------
        list of Exception or None
            Why a classifier could not be trained; it gets no parameters then.
        """
        first, is_alone = fleet[0], len(fleet) == 1
        goes_on = epochs is not None and hasattr(first, "params_")
        validates = X_val is not None or first.n_iter_no_change is not None
        holds_out = validates and X_val is None
        part, held_out = first._prepare(X, y, sample_weight, holds_out, reset=not goes_on)
        features, targets, _ = part
        n_steps = first._n_steps(targets)
        if not goes_on:
            first._rng = _generator(first.random_state)
            start = first._new_params(features)
        members = [
            model._member(targets, model.params_, model._velocity, deepcopy(model.history_))
            if goes_on
            else model._member(targets, start, None, History())
            for model in fleet
        ]
        if validates:
            n_val = _length(y_val) if held_out is None else int(held_out[1].shape[0])
            seen = _spaced(features, targets, n_val)
        rng = first._rng
        generators: dict[int, np.random.Generator] = {}  # of those that stop before the others

        def after_epoch(params: Params, numbers: list[int]) -> list[int]:
            histories = [members[k].history for k in numbers]
            epoch = len(histories[0].loss) // n_steps
            if is_alone and (callback is not None or X_val is not None):
                # A copy: training goes on in place, and callbacks may keep what they see.
                copied = {k: array_namespace(v).asarray(v, copy=True) for k, v in params.items()}
                first._record(replace(members[0], params=copied, velocity=None))
                first.n_iter_ = epoch
            if validates:
                if held_out is None:
                    of_val = first.score(X_val, y_val)
                else:
                    of_val = first._share_right(params, *held_out)
                of_train = first._share_right(params, *seen)
                for place, history in enumerate(histories):
                    history.val_accuracy.append(float(np.atleast_1d(of_val)[place]))
                    history.train_accuracy.append(float(np.atleast_1d(of_train)[place]))
            if callback is not None and callback(epoch, histories[0]):
                return numbers
            stopped = [k for k in numbers if fleet[k].has_stalled(members[k].history)]
            if not is_alone:
                generators.update((k, deepcopy(rng)) for k in stopped)
            return stopped

        if first.solver == "lbfgs":
            watches = validates or callback is not None
            n_iter = first._run_lbfgs(members[0], part, after_epoch if watches else None)
        else:
            n_epochs = (epochs or first.max_iter) - (first.n_iter_ if goes_on else 0)
            first._run_sgd(members, part, n_epochs, after_epoch)
        for k, (model, member) in enumerate(zip(fleet, members, strict=True)):
            if member.error is None:
                for name in LEARNED_FROM_SAMPLES:
                    if hasattr(first, name):
                        setattr(model, name, getattr(first, name))
                model._rng = generators.get(k) or (rng if k == 0 else deepcopy(rng))
                model.n_iter_ = len(member.history.loss) // n_steps
                model._record(member)
        if first.solver == "lbfgs":
            first.n_iter_ = n_iter
        return [member.error for member in members]

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
            self.params_ = self._new_params(features)
            self._velocity: Params | None = None
            self.n_iter_, self.history_ = 0, History()
        else:
            if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes={np.unique(classes).tolist()} differ from those of the first call, "
                    f"{self.classes_.tolist()}"
                )
            features = self._features(samples)
        rate = self.learning_rate * self.learning_rate_decay**self.n_iter_
        targets = self._targets(labels)
        member = self._member(targets, self.params_, self._velocity, deepcopy(self.history_))
        member.rate = lambda _: rate
        self._run_sgd([member], (features, targets, weights), 1)
        if member.error is not None:
            raise member.error
        self.n_iter_ += 1
        self._record(member)

    def _member(
        self, targets: Array, params: Params, velocity: Params | None, history: History
    ) -> Member:
        n_steps, base = self._n_steps(targets), self.learning_rate

        def rate(step: int) -> float:
            if self.schedule == "one_cycle":
                return float(base * one_cycle(step, n_steps * self.max_iter))
            return float(base * self.learning_rate_decay ** (step // n_steps))

        params = to_device(params, like=targets)
        velocity = None if velocity is None else to_device(velocity, like=targets)
        return Member(params, rate, self.reg, self.momentum, velocity, history)

    def _n_steps(self, targets: Array) -> int:
        n_samples = int(targets.shape[0])
        return 1 if self.solver == "lbfgs" else math.ceil(n_samples / int(self.batch_size))

    def _run_sgd(
        self, members: Sequence[Member], part: Part, epochs: int, on_epoch: Any = None
    ) -> None:
        features, targets, weights = part
        train_sgd(
            self.model, members, features, targets, batch_size=self.batch_size, epochs=epochs,
            nesterov=self.nesterov, rng=self._rng, precision=self._products, sample_weight=weights,
            augment=self.augment, on_epoch=on_epoch,
        )  # fmt: skip

    def _run_lbfgs(self, member: Member, part: Part, on_epoch: Any) -> int:
        features, targets, weights = part
        member.params, history, n_iter = minimize_lbfgs(
            self.model, member.params, features, targets, reg=self.reg, max_iter=self.max_iter,
            tol=self.tol, precision=self._products, sample_weight=weights, history=member.history,
            on_iteration=on_epoch and (lambda params, _: bool(on_epoch(params, [0]))),
        )  # fmt: skip
        if history.reached_max_iter:
            warnings.warn(
                f"L-BFGS stopped at max_iter={self.max_iter} before it converged: raise "
                "max_iter or tol, or standardise the features",
                ConvergenceWarning,
                stacklevel=4,
            )
        return n_iter

    def has_stalled(self, history: History | None = None) -> bool:
        """Tell whether the best validation accuracy is `n_iter_no_change` epochs ago."""
        history = getattr(self, "history_", None) if history is None else history
        seen = [] if history is None else history.val_accuracy
        if self.n_iter_no_change is None or not seen:
            return False
        return bool(len(seen) - 1 - seen.index(max(seen)) >= self.n_iter_no_change)

    def _record(self, member: Member) -> None:
        self.params_, self._velocity = member.params, member.velocity
        self.history_ = history = member.history
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
        scores = self.class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """Return the labels of the highest scores, shape (N,), in the array library of X."""
        scores = self.class_scores(X)
        xp = array_namespace(scores)
        return self._labels(xp.argmax(scores, axis=-1))

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
        features = self._features(self._check_samples(X, reset=False))
        stored = features.X if isinstance(features, Standardized) else features
        params = to_device(self.params_ if params is None else params, like=stored)
        return self._scores(params, features)

    @available_if(lambda self: self.model.has_logits)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, shape (N, C), in the array library of X."""
        return softmax(self.class_scores(X))

    def _scores(self, params: Params, features: Any) -> Array:
        return self.model.scores(params, features, precision=self._products)

    @property
    def _products(self) -> str:
        return self.precision or "float32"

    def _share_right(
        self, params: Params, features: Any, targets: Array, weights: Array | None = None
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

    def _new_params(self, features: Any) -> Params:
        stored = features.X if isinstance(features, Standardized) else features
        is_wide = stored.dtype == array_namespace(stored).float64
        wide = self.precision == "float64" or (self.precision is None and is_wide)
        dtype = "float64" if wide else "float32"
        host = self.model.initial_params(self.n_features_in_, len(self.classes_), self._rng)
        params: Params = to_device(
            {name: value.astype(dtype) for name, value in host.items()}, like=stored
        )
        return params


def _spaced(features: Any, targets: Array, count: int) -> tuple[Any, Array]:
    """Return about so many of the samples, evenly spaced."""
    rows = slice(None, None, max(1, int(targets.shape[0]) // max(1, count)))
    is_lazy = isinstance(features, Standardized)
    return features[rows] if is_lazy else features[rows, ...], targets[rows]


def _length(values: Any) -> int:
    return int(values.shape[0]) if hasattr(values, "shape") else len(values)


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)
