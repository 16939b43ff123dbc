"""What the classifiers trained by gradients share: training, alone or together, and prediction."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from gpuclf.arrays import array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.after_epoch import AfterEpoch, Callback
from gpuclf.estimators.base import Part, count_samples, on_host, select_rows
from gpuclf.estimators.bases import CallbackSupportMixin
from gpuclf.estimators.hyperparameters import (
    OF_EARLY_STOPPING,
    OF_TRAINING,
    Check,
    generator_of,
    with_docs_of_base,
)
from gpuclf.estimators.prediction import ScoreClassifier
from gpuclf.estimators.resuming import resumable
from gpuclf.estimators.surface import (
    Start,
    check_classes,
    check_partial,
    labels_of,
    weights_by_class,
)
from gpuclf.estimators.watching import shown, watched
from gpuclf.models.model import Model, Params
from gpuclf.samples.standardized import Standardized
from gpuclf.training import History, LBFGSMember, Member, one_cycle, train_lbfgs, train_sgd
from gpuclf.training.history import still_falls

__all__ = ["Check", "GradientClassifier"]

LEARNED_FROM_SAMPLES = (
    *("n_features_in_", "feature_names_in_", "classes_", "mean_", "scale_"),
    *("image_shape_", "layout_", "value_range_", "_value_kind"),
)
MANY = 1 << 30  # samples


@dataclass(kw_only=True, eq=False, repr=False)
class GradientClassifier(CallbackSupportMixin, ScoreClassifier):
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
    batch_size : int or "auto", default "auto"
        Samples of a step. "auto" is a tenth of the training samples, at least 16 and at most 200,
        so that few samples give enough steps too; in :meth:`partial_fit`, 200.
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
    class_weight : dict or "balanced", optional
        A factor for each class, by label; 1 for those that a dict does not name. "balanced" is
        ``N / (C * samples of the class)``, with weights for samples where there are any. As if
        each sample's `sample_weight` had been multiplied by that of its class, in the
        standardisation and in early stopping too.
    warm_start : bool, default False
        Whether `fit` starts from where the last one ended, as the same function of the features,
        instead of anew. Velocity, learning rate, `random_state` and history do begin again.
    verbose : int, default 0
        Above 0, `fit` shows epochs and loss on the standard error: a bar on a terminal, elsewhere
        a line after each two seconds.

    Attributes
    ----------
    classes_ : NumPy array of shape (C,)
    mean_, scale_ : NumPy array of shape (D,), or None
        The standardisation.
    image_shape_ : tuple of int, or None
        (channels, height, width) of images that came with three or four axes. They were flattened
        by the planes; later ones of that size are, whatever their layout.
    layout_ : {"NHWC", "NCHW", "NHW"}, or None
        Of these images.
    value_range_ : tuple of float, or None
        Least and largest value trained on, where that was on the host. Samples that cannot be of
        the same kind (fractions of 0..1 after bytes, or the other way round) bring a warning.
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
    learning_rate: float | str = "auto"
    learning_rate_decay: float = 0.95
    schedule: str = "one_cycle"
    momentum: float = 0.9
    nesterov: bool = True
    batch_size: int | str = "auto"
    reg: float = 1e-3
    standardize: bool = True
    augment: Any = None
    precision: str | None = None
    random_state: Any = None
    n_iter_no_change: int | None = None
    validation_fraction: float = 0.1
    class_weight: Any = None
    warm_start: bool = False
    verbose: int = 0

    model: ClassVar[Model]
    _keeps_short_floats = True
    solver = "sgd"  # a hyper-parameter where a subclass makes it a field, like the next one
    tol = 1e-5
    # What learning_rate="auto" is for so many features, and how fast it rises with fewer.
    auto_rate: ClassVar[float] = 0.003
    auto_rate_features: ClassVar[int] = 3072
    auto_rate_power: ClassVar[float] = 0.75

    CHECKS: ClassVar[tuple[Check, ...]] = OF_TRAINING

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = with_docs_of_base(cls.__doc__, GradientClassifier.__doc__)

    def check_hyperparameters(self) -> None:
        """Raise a ValueError that names the first hyper-parameter out of range."""
        of_stopping = () if self.n_iter_no_change is None else OF_EARLY_STOPPING
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
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> Self:
        """Train from scratch, or go on from a checkpoint.

        Parameters
        ----------
        X : array-like of shape (N, D), Standardized, Streamed or Sharded (by L-BFGS)
            uint8 and floats are used as they are, on the device where X is; other numbers are
            converted to float64. The model is computed in float64 for float64 samples, else in
            float32 (bytes and floats of two bytes too), unless `precision` says otherwise.
            The mean and scale of Standardized samples are kept, for later samples that come raw.
            Sparse samples are not supported: ``X.toarray()``.
        y : array-like of shape (N,)
            Class labels; on a device, integers on the same device. For several outputs there is
            :class:`sklearn.multioutput.MultiOutputClassifier`.
        sample_weight : array-like of shape (N,), optional
            A sample of weight 2 counts as two samples.
        X_val, y_val : array-like, optional
            Samples whose accuracy is recorded after each epoch, and beside it the accuracy on
            about as many training samples, evenly spaced. Early stopping goes by them too.
        callback : callable, optional
            ``callback(epoch, history)``, called after each epoch (or L-BFGS iteration); training
            ends when it returns True.
        checkpoint : str or path, optional
            A folder for the checkpoints of this training; the last two are kept. By SGD only.
        checkpoint_every : int, default 1
            Epochs from one checkpoint to the next.
        resume : bool, default False
            Go on from the last checkpoint that can be read, if there is one, and end with the bits
            of a training that was never interrupted (on the same machine). One that had ended
            gives its model.

        Returns
        -------
        self

        Raises
        ------
        gpuclf.training.DivergedError
            If the loss becomes NaN or infinite.
        FileExistsError
            Without `resume`, if the folder has checkpoints.
        ValueError
            If the checkpoints are of other data or settings, or none can be read. Functions such as
            `augment` are known by their names only.

        Warns
        -----
        UserWarning
            For a checkpoint that cannot be read, where the one before can.
        sklearn.exceptions.ConvergenceWarning
            If L-BFGS stopped at `max_iter`, or SGD did after fewer than 200 steps, while the loss
            was still falling.
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val belong together: pass both, or neither")
        self.check_hyperparameters()
        watching = watched(self, X, y, sample_weight, callback)
        with watching as watch, self._unchanged_if_it_fails():
            (error,) = self.fit_fleet(
                *([self], X, y, sample_weight), X_val=X_val, y_val=y_val, callback=watch,
                checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume,
            )  # fmt: skip
            if error is not None:
                raise error
        if self.solver == "sgd" and self.n_iter_ == self.max_iter and still_falls(self.history_):
            warnings.warn(
                f"SGD stopped at max_iter={self.max_iter} after {len(self.loss_history_)} steps, "
                "while the loss was still falling: raise max_iter or learning_rate, or lower "
                "batch_size",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    @staticmethod
    @on_its_device
    def fit_fleet(
        fleet: Sequence[Any],
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        epochs: int | None = None,
        penalty_path: bool = False,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
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
            As for :meth:`fit`.
        epochs : int, optional
            Train on until so many epochs are done, of the `max_iter` that the schedules count with,
            from where the classifiers are. By default, train from scratch, to the end.
        penalty_path : bool, default False
            As for :func:`gpuclf.training.train_lbfgs`.
        callback : callable, optional
            As for :meth:`fit`, with the history of the first of those that still train, or, of
            L-BFGS, that have come so far. The parameters so far are set for it with one classifier
            only.
        checkpoint, checkpoint_every, resume
            As for :meth:`fit`; not together with `epochs`.

        Returns
        -------
        list of Exception or None
            Why a classifier could not be trained; it gets no parameters then.
        """
        if callback is not None and not callable(callback):  # better known before the first epoch
            raise TypeError(f"callback must be a function, got {callback!r}")
        first = fleet[0]
        goes_on = epochs is not None and hasattr(first, "params_")
        training = resumable(fleet, checkpoint, checkpoint_every, resume)
        validates = X_val is not None or first.n_iter_no_change is not None
        starts = [None if goes_on else Start.of(model) for model in fleet]
        part, held_out = first._prepare(
            X, y, sample_weight, reset=not goes_on, holds_out=validates and X_val is None
        )
        if X_val is not None:
            held_out = first._to_validate_on(X_val, y_val, like=part.targets)
        anew: Any = None if goes_on else first._initial_params(part)
        members = [
            model._member(part, anew if start is None else start.continued(first, anew))
            for model, start in zip(fleet, starts, strict=True)
        ]
        n_steps, rng = first._n_steps(part), first._rng
        seen = part.spaced(count_samples(held_out.targets)) if held_out is not None else None
        after_epoch = AfterEpoch(fleet, members, n_steps, rng, held_out, seen, callback)
        last, numbers = epochs or first.max_iter, None
        n_done = first.n_iter_ if goes_on else 0
        if training:
            n_done, numbers = training.begin(
                *(members, rng, after_epoch.generators, n_steps, first.max_iter), like=part.targets,
                X=part.samples, y=[part.targets, first.classes_], sample_weight=part.weights,
                validation=list(held_out or ()),
            )  # fmt: skip
        title = f"training {type(first).__name__}"
        title += f" {len(fleet)} times" if len(fleet) > 1 else ""
        with shown(title, last) if first.verbose > 0 else nullcontext() as tell:
            after_epoch.tell = tell
            if first.solver == "lbfgs":
                watches = validates or callback is not None or tell is not None
                on_epoch = after_epoch if watches else None
                first._run_lbfgs(fleet, members, part, on_epoch, penalty_path)
            else:
                first._run_sgd(
                    *(members, part, last - n_done), on_epoch=after_epoch,
                    numbers=numbers, keep=training and training.keep,
                )  # fmt: skip
        for k, (model, member) in enumerate(zip(fleet, members, strict=True)):
            if member.error is None:
                for name in LEARNED_FROM_SAMPLES:
                    if hasattr(first, name):
                        setattr(model, name, getattr(first, name))
                model._rng = after_epoch.generators.get(k) or (rng if k == 0 else deepcopy(rng))
                n_iter = len(member.history.loss) // n_steps
                model._record(member, n_iter - 1 if first.solver == "lbfgs" else n_iter)
        return [member.error for member in members]

    @on_its_device
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train on these samples, once, going on from where the model is.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized
        y : array-like of shape (N,)
        classes : array-like of shape (C,), or set
            All labels that will ever occur; needed at the first call.
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        self

        Notes
        -----
        The first call's samples set the standardisation. A call is a piece of a stream, of which
        nobody knows how long it is, and no epoch: the learning rate is `learning_rate` in every
        call, whatever `schedule` and `learning_rate_decay` say, and momentum goes on from the call
        before. Lower it towards the end with ``set_params(learning_rate=...)``. Always by SGD, and
        without early stopping; `n_iter_` counts the calls.
        """
        starts = not hasattr(self, "params_")
        with self._unchanged_if_it_fails():
            self.check_hyperparameters()
            part, _ = self._prepare(
                *(X, y, sample_weight),
                reset=starts,
                in_parts=True,
                classes=None if classes is None else labels_of(classes),
            )
            member = self._member(part, self._initial_params(part) if starts else None)
            member.rate = lambda _: self._base_rate(part)
            # As of a long stream: how long the pieces are says nothing about it.
            self._run_sgd([member], part, 1, n_samples=MANY)
            if member.error is not None:
                raise member.error
            self._record(member, 1 if starts else self.n_iter_ + 1)
        return self

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
            check_classes(classes, None if reset else self.classes_)
            check_partial(self.class_weight)
        if reset:
            self._number_classes(labels if classes is None else classes)
        targets = self._targets(labels)
        weights = weights_by_class(self.class_weight, self.classes_, targets, weights)
        whole = Part(samples, targets, weights)
        held_out = None
        if holds_out:
            # The same for every random_state: what is compared is compared on the same samples.
            try:
                numbers = train_test_split(
                    np.arange(int(labels.shape[0])),
                    test_size=self.validation_fraction,
                    stratify=on_host(labels),
                    random_state=0,
                )
            except ValueError as error:
                raise ValueError(
                    f"early stopping cannot hold out validation_fraction={self.validation_fraction}"
                    f" of {int(labels.shape[0])} samples of {len(self.classes_)} classes: {error}; "
                    "change it, or pass X_val and y_val"
                ) from None
            whole, held_out = (
                Part(*(select_rows(values, np.sort(rows)) for values in whole)) for rows in numbers
            )
            for part, purpose in ((whole, "train on"), (held_out, "stop by")):
                if part.weights is not None and not np.any(to_host(part.weights) > 0):
                    raise ValueError(
                        f"sample_weight is 0 for all {int(part.targets.shape[0])} samples to "
                        f"{purpose}: early stopping holds out validation_fraction="
                        f"{self.validation_fraction}; change it, pass X_val and y_val, or leave "
                        "out the samples of weight 0"
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

    def _initial_params(self, part: Part) -> Params:
        """Seed the generator of the training and draw from it where to start."""
        self._rng = generator_of(self.random_state)
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
        return (
            1 if self.solver == "lbfgs" else math.ceil(n_samples / self.samples_of_step(n_samples))
        )

    def samples_of_step(self, n_samples: int) -> int:
        """Return the `batch_size` for so many training samples."""
        if self.batch_size == "auto":
            return min(200, max(16, math.ceil(n_samples / 10)))
        return int(self.batch_size)

    def _base_rate(self, part: Part) -> float:
        """Return the largest learning rate.

        Standardised features have curvatures of up to their number: the fewer there are, the longer
        a step may be. The default was found on CIFAR-10, and stays what it is for as many features
        and more, and for features of a scale that is not known.
        """
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        fewer = self.auto_rate_features / int(part.samples.shape[1])
        is_scaled = isinstance(part.samples, Standardized)
        return self.auto_rate * (max(1.0, fewer) ** self.auto_rate_power if is_scaled else 1.0)

    def _member(self, part: Part, start: Params | None) -> Member:
        """Gather what is this classifier's own in a fit from `start`, or, if None, as it is now."""
        n_steps, base = self._n_steps(part), self._base_rate(part)

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
        self,
        members: Sequence[Member],
        part: Part,
        epochs: int,
        *,
        n_samples: int | None = None,
        **options: Any,
    ) -> None:
        batch_size = self.samples_of_step(n_samples or int(part.targets.shape[0]))
        train_sgd(
            self.model, members, part.samples, part.targets, batch_size=batch_size,
            epochs=epochs, nesterov=self.nesterov, rng=self._rng, precision=self._product_precision,
            sample_weight=part.weights, augment=self.augment, **options,
        )  # fmt: skip

    def _run_lbfgs(
        self, fleet: Sequence[Any], members: Sequence[Member], part: Part, on_epoch: Any,
        penalty_path: bool,
    ) -> None:  # fmt: skip
        searches = [
            LBFGSMember(member.params, model.reg, model.max_iter, model.tol, member.history)
            for model, member in zip(fleet, members, strict=True)
        ]
        train_lbfgs(
            self.model, searches, part.samples, part.targets, precision=self._product_precision,
            sample_weight=part.weights, penalty_path=penalty_path,
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
                        stacklevel=5,
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
