"""What hyper-parameters may be, and how docstrings describe them."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import cleandoc
from numbers import Integral, Real
from typing import Any

import numpy as np

from gpuclf.estimators.surface import check_class_weight
from gpuclf.validation import PRECISIONS

__all__ = [
    "OF_EARLY_STOPPING",
    "OF_TRAINING",
    "Check",
    "auto_or",
    "generator_of",
    "one_of",
    "with_docs_of_base",
]

# The docstrings of subclasses have this line where the base class's parameters and attributes go.
AS_IN_BASE = "**others : as for GradientClassifier"

Check = tuple[str, Any, Callable[[Any], bool], str]  # name, kind, in range?, what is wanted


def one_of(name: str, *values: Any) -> Check:
    """Return the check of a choice."""
    *others, last = map(repr, values)
    return name, object, lambda v: v in values, f"{', '.join(others)} or {last}"


def auto_or(name: str, kind: type, fits: Callable[[Any], Any], wanted: str) -> Check:
    """Return the check of a number that may be left to the library."""

    def is_right(value: Any) -> bool:
        is_auto = isinstance(value, str) and value == "auto"
        return is_auto or (isinstance(value, kind) and bool(fits(value)))

    return name, object, is_right, f'{wanted}, or "auto"'


OF_TRAINING: tuple[Check, ...] = (
    auto_or("learning_rate", Real, lambda v: 0 < v < math.inf, "a finite number above 0"),
    ("learning_rate_decay", Real, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    ("max_iter", Integral, lambda v: v >= 1, "an integer, at least 1"),
    auto_or("batch_size", Integral, lambda v: v >= 1, "an integer, at least 1"),
    ("momentum", Real, lambda v: 0 <= v < 1, "a number, at least 0 and below 1"),
    ("reg", Real, lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    one_of("schedule", "exponential", "one_cycle"),
    one_of("precision", *PRECISIONS, None),
    one_of("solver", "sgd", "lbfgs"),
    (
        *("class_weight", object, check_class_weight),
        'a dict of finite weights by label, at least 0, or "balanced", or None',
    ),
    ("augment", object, lambda v: v is None or callable(v), "a function of a batch, or None"),
    ("warm_start", bool | np.bool_, lambda v: True, "True or False"),
    ("verbose", Integral | np.bool_, lambda v: v >= 0, "an integer, at least 0"),
)
OF_EARLY_STOPPING: tuple[Check, ...] = (
    ("n_iter_no_change", Integral, lambda v: v >= 1, "an integer, at least 1, or None"),
    ("validation_fraction", Real, lambda v: 0 < v < 1, "a number between 0 and 1"),
)


def generator_of(random_state: Any) -> np.random.Generator:
    """Return the generator that a `random_state` stands for."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError):
        raise ValueError(
            "random_state must be an integer, at least 0, a numpy.random.Generator, a RandomState, "
            f"or None, got {random_state!r}"
        ) from None


def with_docs_of_base(doc: str | None, of_base: str | None) -> str | None:
    """Put the base class's parameters and attributes into a docstring, where it asks for them."""
    if doc is None or of_base is None:  # python -OO
        return doc
    doc = cleandoc(doc)
    _, *sections = cleandoc(of_base).split("----------\n")
    for section in sections:
        doc = doc.replace(AS_IN_BASE, section.partition("\n\n")[0], 1)
    return doc
