"""What the classifiers trained by gradients share: training, alone or together, and prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import cleandoc
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.estimators.base import ArrayClassifier, count_samples, on_host, select_rows
from gpuclf.losses import softmax
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized
from gpuclf.training import History, LBFGSMember, Member, one_cycle, train_lbfgs, train_sgd
from gpuclf.validation import PRECISIONS

__all__ = ["Check", "GradientClassifier"]

LEARNED_FROM_SAMPLES = ("n_features_in_", "feature_names_in_", "classes_", "mean_", "scale_")
# The docstrings of subclasses have this line where the base class's parameters and attributes go.
AS_IN_BASE = "**others : as for GradientClassifier"

Callback = Callable[[int, History], bool | None]  # (epochs done, history) -> stop?
Check = tuple[str, type, Callable[[Any], bool], str]  # name, kind, in range?, what is wanted


class Part(NamedTuple):
    """Samples to train on, or to validate on."""

    samples: Any
    targets: Array
    weights: Array | None = None

    def spaced(self, count: int) -> Part:
        """Return about so many of the samples, evenly spaced, without weights."""
        rows = slice(None, None, max(1, int(self.targets.shape[0]) // max(1, count)))
        is_lazy = isinstance(self.samples, Standardized)
        return Part(self.samples[rows] if is_lazy else self.samples[rows, ...], self.targets[rows])


def _one_of(name: str, *values: Any) -> Check:
    *others, last = map(repr, values)
    return name, object, lambda v: v in values, f"{', '.join(others)} or {last}"


@dataclass(kw_only=True, eq=False, repr=False)
class GradientClassifier(ArrayClassifier):
    """Base of the classifiers that are trained by gradients.

    A subclass gives the model: scores, loss and first parameters. A loss of one's own is a subclass
    with another one, ``model = gpuclf.models.LinearModel("mine", my_loss)``. Hyper-parameters are
    the fields of a dataclass.

    Parameters
    ----------
    max_iter : int, default 20
        Epochs.
    learning_rate_decay : float, default 0.95
        Factor of the learning rate from one epoch to the next ("exponential" schedule).
    schedule : {"one_cycle", "exponential"}, default "one_cycle"
        One-cycle rises in a line over the first fifth of the steps, and falls to 0.
    momentum : float, default 0.9
    nesterov : bool, default True
    batch_size : int, default 200
    standardize : bool, default True
        Bring each feature to mean 0 and standard deviation 1 over the training set, without
        writing the standardised samples out. Samples passed as Standardized stay as they are.
    augment : callable, optional
        ``augment(X_batch, rng)`` returns the mini-batch to train on, for example
        :func:`gpuclf.augment.horizontal_flip`.
    precision : {"float32", "tf32", "float64"}, optional
        Floats to compute in; by default as `fit` says. "tf32" is "float32" whose products a GPU may
        do in its faster units, which keep 10 bits behind the point.
    random_state : int, RandomState, Generator or None
        Of the initial parameters, the order of the samples, augmentation and dropout.
    n_iter_no_change : int, optional
        Stop when the validation accuracy has had no new best for so many epochs. It is taken on
        `X_val` of `fit`, or else on a stratified share of the training samples, which then do not
        train. The parameters are those of the last epoch.
    validation_fraction : float, default 0.1
        That share, where there is an `n_iter_no_change`.

    Attributes
    ----------
    classes_ : NumPy array of shape (C,)
    mean_, scale_ : NumPy array of shape (D,), or None
        The standardisation.
    loss_history_ : list of float
        One value a step.
    val_accuracy_history_, train_accuracy_history_ : list of float
        One value an epoch, if there were validation samples; the second on about as many
        training samples.
    history_ : History
        All three, and the learning rate of each step.
    n_iter_, n_features_in_ : int
    """

    max_iter: int = 20
    learning_rate: float = 0.003
    learning_rate_decay: float = 0.95
    schedule: str = "one_cycle"
    momentum: float = 0.9
    nesterov: bool = True
    batch_size: int = 200
    reg: float = 1e-3
    standardize: bool = True
    augment: Any = None
    precision: str | None = None
    random_state: Any = None
    n_iter_no_change: int | None = None
    validation_fraction: float = 0.1

    model: ClassVar[Model]
    solver = "sgd"  # a hyper-parameter where a subclass makes it a field

    CHECKS: ClassVar[tuple[Check, ...]] = (
        ("learning_rate", Real, lambda v: 0 < v < math.inf, "a finite number above 0"),
        ("learning_rate_decay", Real, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
        ("max_iter", Integral, lambda v: v >= 1, "an integer, at least 1"),
        ("batch_size", Integral, lambda v: v >= 1, "an integer, at least 1"),
        ("momentum", Real, lambda v: 0 <= v < 1, "a number, at least 0 and below 1"),
        ("reg", Real, lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
        _one_of("schedule", "exponential", "one_cycle"),
        _one_of("precision", *PRECISIONS, None),
        _one_of("solver", "sgd", "lbfgs"),
    )
    CHECKS_OF_EARLY_STOPPING: ClassVar[tuple[Check, ...]] = (
        ("n_iter_no_change", Integral, lambda v: v >= 1, "an integer, at least 1, or None"),
        ("validation_fraction", Real, lambda v: 0 < v < 1, "a number between 0 and 1"),
    )

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = _with_docs_of_base(cls.__doc__)

    def check_hyperparameters(self) -> None:
        """Raise a ValueError that names the first hyper-parameter out of range."""
        of_stopping = () if self.n_iter_no_change is None else self.CHECKS_OF_EARLY_STOPPING
        for name, kind, fits, wanted in (*self.CHECKS, *of_stopping):
            value = getattr(self, name)
            if not isinstance(value, kind) or not fits(value):
                raise ValueError(f"{name} must be {wanted}, got {value!r}")

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
        warm_start: bool = False,
        callback: Callback | None = None,
    ) -> list[Exception | None]:
        """Train classifiers that see the same mini-batches in one pass; ``fit`` is a fleet of one.

        Parameters
        ----------
        fleet : sequence of classifiers
            They differ in learning rate, its decay and schedule, momentum and penalty at most, with
            L-BFGS in tolerance and iterations too; that is not checked
            (:func:`gpuclf.estimators.fleet_fitting.fit_together` does).
        X, y, sample_weight : array-like
            As for :meth:`fit`.
        X_val, y_val : array-like, optional
            As for :meth:`fit`; with one classifier only.
        epochs : int, optional
            Train on until so many epochs are done, of the `max_iter` that the schedules count with,
            from where the classifiers are. By default, train from scratch, to the end.
        warm_start : bool, default False
            As for :func:`gpuclf.training.train_lbfgs`.
        callback : callable, optional
            As for :meth:`fit`, with the history of the first of those that still train, or, of
            L-BFGS, that have come so far. The parameters so far are set for it with one classifier
            only.

        Returns
        -------
        list of Exception or None
            Why a classifier could not be trained; it gets no parameters then.
        """
        first, is_alone = fleet[0], len(fleet) == 1
        goes_on = epochs is not None and hasattr(first, "params_")
        validates = X_val is not None or first.n_iter_no_change is not None
        part, held_out = first._prepare(
            X, y, sample_weight, reset=not goes_on, holds_out=validates and X_val is None
        )
        start = None if goes_on else first._initial_params(part)
        members = [model._member(part, start) for model in fleet]
        n_steps, rng = first._n_steps(part), first._rng
        if validates:
            seen = part.spaced(count_samples(held_out.targets if held_out else y_val))
        generators: dict[int, np.random.Generator] = {}  # of those that stop before the others
        told, all_stop = 0, False

        def after_epoch(params: Params, numbers: list[int]) -> list[int]:
            nonlocal told, all_stop
            histories = [members[k].history for k in numbers]
            epoch = len(histories[0].loss) // n_steps
            if is_alone and (callback is not None or X_val is not None):
                # A copy: training goes on in place, and callbacks may keep what they see.
                copied = {k: array_namespace(v).asarray(v, copy=True) for k, v in params.items()}
                first._record(replace(members[0], params=copied, velocity=None), epoch)
            if validates:
                of_val = (
                    first._accuracies(params, held_out) if held_out else first.score(X_val, y_val)
                )
                of_train = first._accuracies(params, seen)
                for place, history in enumerate(histories):
                    history.val_accuracy.append(float(np.atleast_1d(of_val)[place]))
                    history.train_accuracy.append(float(np.atleast_1d(of_train)[place]))
            if callback is not None and epoch > told:
                told, all_stop = epoch, bool(callback(epoch, histories[0]))
            if all_stop:
                return numbers
            stopped = [k for k in numbers if fleet[k].has_stalled(members[k].history)]
            if not is_alone:
                generators.update((k, deepcopy(rng)) for k in stopped)
            return stopped

        if first.solver == "lbfgs":
            watched = after_epoch if validates or callback is not None else None
            first._run_lbfgs(fleet, members, part, watched, warm_start)
        else:
            n_epochs = (epochs or first.max_iter) - (first.n_iter_ if goes_on else 0)
            first._run_sgd(members, part, n_epochs, after_epoch)
        for k, (model, member) in enumerate(zip(fleet, members, strict=True)):
            if member.error is None:
                for name in LEARNED_FROM_SAMPLES:
                    if hasattr(first, name):
                        setattr(model, name, getattr(first, name))
                model._rng = generators.get(k) or (rng if k == 0 else deepcopy(rng))
                n_done = len(member.history.loss) // n_steps
                model._record(member, n_done - 1 if first.solver == "lbfgs" else n_done)
        return [member.error for member in members]

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
        starts = not hasattr(self, "params_")
        with self._unchanged_if_it_fails():
            self.check_hyperparameters()
            part, _ = self._prepare(
                X, y, sample_weight, reset=starts, in_parts=True, classes=classes
            )
            member = self._member(part, self._initial_params(part) if starts else None)
            n_done = 0 if starts else self.n_iter_
            rate = self.learning_rate * self.learning_rate_decay**n_done
            member.rate = lambda _: rate
            self._run_sgd([member], part, 1)
            if member.error is not None:
                raise member.error
            self._record(member, n_done + 1)
        return self

    def _check_classes(self, classes: Any, starts: bool) -> None:
        if starts and classes is None:
            raise ValueError(
                "the first call of partial_fit needs classes=, all labels that will ever occur"
            )
        if not starts and classes is not None:
            found = np.unique(classes)
            if not np.array_equal(found, self.classes_):
                raise ValueError(
                    f"classes={found.tolist()} differ from those of the first call, "
                    f"{self.classes_.tolist()}"
                )

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        reset: bool,
        holds_out: bool = False,
        in_parts: bool = False,
        classes: Any = None,
    ) -> tuple[Part, Part | None]:
        """Check training data; with `reset`, learn classes and standardisation from them.

        Return what to train on, and what to validate on where a share is held out.
        """
        samples, labels, weights = self._check_training_data(X, y, sample_weight, reset=reset)
        if in_parts:
            self._check_classes(classes, reset)
        if reset:
            self._number_classes(labels if classes is None else classes)
        whole = Part(samples, self._targets(labels), weights)
        held_out = None
        if holds_out:
            # The same for every random_state: what is compared is compared on the same samples.
            numbers = train_test_split(
                np.arange(int(labels.shape[0])),
                test_size=self.validation_fraction,
                stratify=on_host(labels),
                random_state=0,
            )
            whole, held_out = (
                Part(*(select_rows(values, np.sort(rows)) for values in whole)) for rows in numbers
            )
        learned = self._learn_standardization(whole) if reset else self._standardized(whole.samples)
        if held_out is not None:
            held_out = held_out._replace(samples=self._standardized(held_out.samples))
        return whole._replace(samples=learned), held_out

    def _learn_standardization(self, part: Part) -> Any:
        samples, _, weights = part
        self.mean_ = self.scale_ = None
        if self.standardize and not isinstance(samples, Standardized):
            samples = Standardized.fit(samples, weights)
        if isinstance(samples, Standardized):
            self.mean_, self.scale_ = to_host(samples.mean), to_host(samples.scale)
        return samples

    def _standardized(self, samples: Any) -> Any:
        if self.mean_ is None or isinstance(samples, Standardized):
            return samples
        return Standardized(samples, self.mean_, self.scale_)

    def _initial_params(self, part: Part) -> Params:
        """Seed the generator of the training and draw from it where to start."""
        self._rng = _generator(self.random_state)
        stored = part.samples.X if isinstance(part.samples, Standardized) else part.samples
        is_wide = stored.dtype == array_namespace(stored).float64
        wide = self.precision == "float64" or (self.precision is None and is_wide)
        dtype = "float64" if wide else "float32"
        host = self.model.initial_params(self.n_features_in_, len(self.classes_), self._rng)
        params: Params = to_device(
            {name: value.astype(dtype) for name, value in host.items()}, like=stored
        )
        return params

    def _n_steps(self, part: Part) -> int:
        n_samples = int(part.targets.shape[0])
        return 1 if self.solver == "lbfgs" else math.ceil(n_samples / int(self.batch_size))

    def _member(self, part: Part, start: Params | None) -> Member:
        """Gather what is this classifier's own in a fit from `start`, or, if None, as it is now."""
        n_steps, base = self._n_steps(part), self.learning_rate

        def rate(step: int) -> float:
            if self.schedule == "one_cycle":
                return float(base * one_cycle(step, n_steps * self.max_iter))
            return float(base * self.learning_rate_decay ** (step // n_steps))

        member = Member(start or self.params_, rate, self.reg, self.momentum)
        if start is None:
            member.velocity, member.history = self._velocity, deepcopy(self.history_)
        member.params = to_device(member.params, like=part.targets)
        member.velocity = member.velocity and to_device(member.velocity, like=part.targets)
        return member

    def _run_sgd(
        self, members: Sequence[Member], part: Part, epochs: int, on_epoch: Any = None
    ) -> None:
        train_sgd(
            self.model, members, part.samples, part.targets, batch_size=self.batch_size,
            epochs=epochs, nesterov=self.nesterov, rng=self._rng, precision=self._products,
            sample_weight=part.weights, augment=self.augment, on_epoch=on_epoch,
        )  # fmt: skip

    def _run_lbfgs(
        self, fleet: Sequence[Any], members: Sequence[Member], part: Part, on_epoch: Any,
        warm_start: bool,
    ) -> None:  # fmt: skip
        searches = [
            LBFGSMember(member.params, model.reg, model.max_iter, model.tol, member.history)
            for model, member in zip(fleet, members, strict=True)
        ]
        train_lbfgs(
            self.model, searches, part.samples, part.targets, precision=self._products,
            sample_weight=part.weights, warm_start=warm_start,
            on_iteration=on_epoch and (lambda k, params: bool(on_epoch(params, [k]))),
        )  # fmt: skip
        for member, search in zip(members, searches, strict=True):
            member.params, member.error = search.params, search.error
            if search.error is None and search.history.reached_max_iter:
                try:
                    warnings.warn(
                        f"L-BFGS stopped at max_iter={search.max_iter} before it converged "
                        f"(reg={search.reg:g}): raise max_iter or tol, or standardise the features",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
                except ConvergenceWarning as error:  # where warnings are errors, only this one's
                    member.error = error

    def _record(self, member: Member, n_iter: int) -> None:
        """Set what was learned, beside what `_prepare` learned from the samples."""
        self.params_, self._velocity, self.n_iter_ = member.params, member.velocity, n_iter
        self.history_ = history = member.history
        self.loss_history_ = history.loss
        self.val_accuracy_history_ = history.val_accuracy
        self.train_accuracy_history_ = history.train_accuracy

    def has_stalled(self, history: History | None = None) -> bool:
        """Tell whether the best validation accuracy is `n_iter_no_change` epochs ago."""
        history = getattr(self, "history_", None) if history is None else history
        seen = [] if history is None else history.val_accuracy
        if self.n_iter_no_change is None or not seen:
            return False
        return bool(len(seen) - 1 - seen.index(max(seen)) >= self.n_iter_no_change)

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
        samples = self._standardized(self._check_samples(X, reset=False))
        stored = samples.X if isinstance(samples, Standardized) else samples
        params = to_device(self.params_ if params is None else params, like=stored)
        return self._scores(params, samples)

    @available_if(lambda self: self.model.has_logits)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, shape (N, C), in the array library of X."""
        return softmax(self.class_scores(X))

    def _scores(self, params: Params, samples: Any) -> Array:
        return self.model.scores(params, samples, precision=self._products)

    @property
    def _products(self) -> str:
        return self.precision or "float32"

    def _accuracies(self, params: Params, part: Part) -> np.ndarray:
        """Return the accuracy, shape (...): one for each of several models."""
        xp = array_namespace(part.targets)
        predicted = xp.argmax(self._scores(params, part.samples), axis=-1)
        right = xp.astype(predicted == part.targets, xp.float64)
        if part.weights is None:
            return np.asarray(to_host(xp.mean(right, axis=-1)))
        return np.asarray(to_host(right @ part.weights / xp.sum(part.weights)))


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def _with_docs_of_base(doc: str | None) -> str | None:
    """Put the base class's parameters and attributes into a docstring, where it asks for them."""
    if doc is None or GradientClassifier.__doc__ is None:  # python -OO
        return doc
    doc = cleandoc(doc)
    _, *sections = cleandoc(GradientClassifier.__doc__).split("----------\n")
    for section in sections:
        doc = doc.replace(AS_IN_BASE, section.partition("\n\n")[0], 1)
    return doc
