"""What hyper-parameters may be, and how docstrings describe them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import numpy as np

__all__ = ["Check", "auto_or", "generator_of", "one_of", "with_docs_of_base"]

# The docstrings of subclasses have this line where the base class's parameters and attributes go.
AS_IN_BASE = "**others : as for GradientClassifier"

Check = tuple[str, type, Callable[[Any], bool], str]  # name, kind, in range?, what is wanted


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


def generator_of(random_state: Any) -> np.random.Generator:
    """Return the generator that a `random_state` stands for."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def with_docs_of_base(doc: str | None, of_base: str | None) -> str | None:
    """Put the base class's parameters and attributes into a docstring, where it asks for them."""
    if doc is None or of_base is None:  # python -OO
        return doc
    doc = cleandoc(doc)
    _, *sections = cleandoc(of_base).split("----------\n")
    for section in sections:
        doc = doc.replace(AS_IN_BASE, section.partition("\n\n")[0], 1)
    return doc
