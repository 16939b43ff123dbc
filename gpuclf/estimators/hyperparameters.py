"""What hyper-parameters may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Check", "auto_or", "one_of"]

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
