"""Classifiers fitted together, as one wide product a step, and which of them can be."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone

from gpuclf.arrays import refuse_odd_arrays
from gpuclf.estimators.base import on_host
from gpuclf.estimators.gradient_classifier import GradientClassifier

__all__ = [
    "MEMORY_BUDGET",
    "check_estimator",
    "fit_together",
    "fleets_of",
    "model_with",
    "n_epochs_of",
    "rows_of",
]

# What may differ between the models of a fleet; anything else makes fleets of their own.
OF_EACH_MODEL = {"learning_rate", "learning_rate_decay", "schedule", "momentum", "reg", "tol"}
OF_EACH_LBFGS_MODEL = OF_EACH_MODEL | {"max_iter"}
MEMORY_BUDGET = 1 << 30  # bytes
COPIES_OF_PARAMETERS = 8  # start, velocity, gradient, folded, packed, and what is between them
COPIES_IN_LBFGS = 48  # SciPy's 25, its own copies, and those; 42 measured
COPIES_OF_ROWS = 6  # of a mini-batch's scores or hidden units


def fit_together(
    models: Sequence[Any],
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    epochs: int | None = None,
    penalty_path: bool = False,
    callback: Callable[[int], bool | None] | None = None,
    **checkpoints: Any,
) -> list[Exception | None]:
    """Fit classifiers that see the same mini-batches, each as its own ``fit`` would.

    Parameters
    ----------
    models : sequence of classifiers
        Of one kind; they may differ in learning rate, its decay and schedule, momentum and penalty,
        with solver="lbfgs" in `tol` and `max_iter` too.
    X, y, sample_weight
        As for their ``fit``.
    epochs : int, optional
        Train on until so many epochs are done, of the `max_iter` that the schedules count with.
        Models that this function has left at an earlier epoch go on from there, on the same
        samples, unless they have stopped early. By default, fit from scratch, to the end.
    penalty_path : bool, default False
        As for :func:`gpuclf.training.train_lbfgs`; nothing with "sgd".
    callback : callable, optional
        ``callback(epoch)``, called after each epoch, or L-BFGS iteration of the model that has done
        the most; all stop when it returns True.
    checkpoint, checkpoint_every, resume : optional
        As for their ``fit``, of all models together; without `epochs`.

    Returns
    -------
    list of Exception or None
        Why a model could not be fitted; the others are, whatever happens to it.

    Raises
    ------
    ValueError
        If the models cannot be trained together.
    """
    _check_alike(models)
    if any(getattr(model, "_skl_callbacks", None) for model in models):
        warnings.warn(
            "the estimator's callbacks are not called where classifiers train together: set them "
            "on the search or the ensemble, with its set_callbacks",
            stacklevel=2,
        )
    errors: list[Exception | None] = [None] * len(models)
    for place, model in enumerate(models):
        try:
            model.check_hyperparameters()
        except Exception as error:  # whatever it is, it is this model's alone
            errors[place] = error
    fits = [
        place
        for place, error in enumerate(errors)
        if error is None and not (epochs is not None and models[place].has_stalled())
    ]
    if not fits:
        return errors
    fleet = [models[place] for place in fits]
    on_epoch = None if callback is None else lambda epoch, _: callback(epoch)
    try:
        found = fleet[0].fit_fleet(
            *(fleet, X, y, sample_weight),
            epochs=epochs,
            penalty_path=penalty_path,
            callback=on_epoch,
            **checkpoints,
        )
    except Exception as error:  # as in scikit-learn: a fit that fails ends no search
        found = [error] * len(fits)
    for place, outcome in zip(fits, found, strict=True):
        errors[place] = outcome
    return errors


def check_estimator(owner: str, estimator: Any, instead: str) -> None:
    """Raise a TypeError for an estimator that fleets do not know, and name what takes it."""
    if not isinstance(estimator, GradientClassifier):
        raise TypeError(
            f"{owner} trains SoftmaxClassifier, LinearSVMClassifier and TwoLayerNetClassifier "
            f"together, not {type(estimator).__name__}: use {instead}"
        )


def model_with(estimator: Any, params: Mapping[str, Any]) -> Any:
    """Return a new estimator with other hyper-parameters; nothing that was given is shared."""
    return clone(estimator).set_params(**clone(params, safe=False))


def n_epochs_of(estimator: Any, candidates: Sequence[Mapping[str, Any]]) -> int:
    """Return how many epochs all candidates take one after another, at most."""
    given = (params.get("max_iter", estimator.max_iter) for params in candidates)
    return sum(max(0, int(n)) for n in given if isinstance(n, Integral))  # others do not train


def rows_of(name: str, values: Any) -> Any:
    """Return samples, labels or weights in a form that can be indexed by rows.

    Raises
    ------
    TypeError
        If they are sparse, or nothing that has rows.
    """
    refuse_odd_arrays(values, name)
    if hasattr(values, "shape") or (values is None and name != "X"):
        return values
    if hasattr(values, "__array__"):
        return np.asarray(values)
    if not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise TypeError(f"{name} must be an array or a list, got {type(values).__name__}")
    return values


def fleets_of(
    estimator: Any, candidates: Sequence[dict[str, Any]], X: Any, y: Any, memory_budget: float
) -> list[list[int]]:
    """Return the numbers of the candidates that can be trained together.

    Parameters
    ----------
    estimator : SoftmaxClassifier, LinearSVMClassifier or TwoLayerNetClassifier
        Gives the hyper-parameters that the candidates do not.
    candidates : sequence of dict
    X, y : array-like
        What they will be trained on.
    memory_budget : float
        Bytes that a fleet's models may take.

    Raises
    ------
    ValueError
        If `memory_budget` is not a finite number above 0.
    """
    if (
        not isinstance(memory_budget, Real)
        or isinstance(memory_budget, bool)
        or not 0 < memory_budget < math.inf
    ):
        raise ValueError(
            "memory_budget must be a number of bytes, finite and above 0, such as 1e9, got "
            f"{memory_budget!r}"
        )
    groups: list[tuple[dict[str, Any], list[int]]] = []
    own = estimator.get_params()
    for number, candidate in enumerate(candidates):
        settings = own | candidate
        common = {k: v for k, v in settings.items() if k not in _of_each_model(settings)}
        group = next((numbers for c, numbers in groups if _same(c, common)), None)
        if group is None:
            groups.append((common, [number]))
        else:
            group.append(number)
    fleets = []
    for _, numbers in groups:
        model = model_with(estimator, candidates[numbers[0]])
        size = _models_that_fit(model, X, y, memory_budget) if len(numbers) > 1 else 1
        fleets += [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return fleets


def _of_each_model(settings: Mapping[str, Any]) -> set[str]:
    return OF_EACH_LBFGS_MODEL if settings.get("solver") == "lbfgs" else OF_EACH_MODEL


def _same(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(_equal(v, others[k]) for k, v in some.items())


def _equal(value: Any, other: Any, *, in_doubt: bool = False) -> bool:
    """Tell whether two settings are the same; `in_doubt` is the answer where nobody can tell."""
    if value is other or type(value) is not type(other):
        return value is other
    if isinstance(value, bool | int | float | str):
        return bool(value == other)
    try:  # arrays and generators of random numbers: by content
        return pickle.dumps(value) == pickle.dumps(other)
    except Exception:  # what cannot be pickled
        return in_doubt


def _check_alike(models: Sequence[Any]) -> None:
    if len(models) < 2:
        return
    kinds = list(dict.fromkeys(type(model).__name__ for model in models))
    if len({type(model) for model in models}) > 1:
        raise ValueError(f"models trained together must be of one kind, got {', '.join(kinds)}")
    first, *others = (model.get_params() for model in models)
    for name, value in first.items():
        # Copies of one object that cannot be compared are what a search's clones have.
        odd = [o[name] for o in others if not _equal(value, o[name], in_doubt=True)]
        if odd and name not in _of_each_model(first):
            raise ValueError(
                f"models trained together must have the same {name}, got {value!r} and {odd[0]!r}: "
                "fit them one by one"
            )


def _models_that_fit(model: Any, X: Any, y: Any, budget: float) -> int:
    n_classes = len(np.unique(on_host(y)))
    try:
        shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
        n_features = math.prod(shape[1:])
        shapes = model.model.initial_params(int(n_features), n_classes, np.random.default_rng(0))
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        return 1  # no samples, or no such net: fitting says it better
    n_numbers = sum(math.prod(value.shape) for value in shapes.values())
    widest = max(value.shape[-1] for value in shapes.values())
    if model.solver == "lbfgs":  # walked in blocks that grow no longer with more models
        n_bytes = 8 * COPIES_IN_LBFGS * n_numbers
    else:
        of_rows = COPIES_OF_ROWS * model.samples_of_step(int(shape[0])) * widest
        n_bytes = 8 * (COPIES_OF_PARAMETERS * n_numbers + of_rows)
    return max(1, int(budget // max(1, n_bytes)))
