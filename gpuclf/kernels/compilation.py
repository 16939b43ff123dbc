"""When and how loops are compiled: by numba (the extra ``fast``), at their first use."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

__all__ = ["compiled", "numba_is_installed"]


@cache
def numba_is_installed() -> bool:
    """Tell whether there is numba, without the half second that importing it takes."""
    return find_spec("numba") is not None


def compiled(function: Any) -> Any:
    """Compile at the first call, without the interpreter's lock; keep the result if possible.

    numba keeps it in __pycache__ and looks at the date of the function's own file only.
    """
    from numba import njit

    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that could be written to
        return njit(**options)(function)
