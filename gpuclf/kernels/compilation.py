"""When and how loops are compiled: by numba (the extra ``fast``), at their first use."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

__all__ = ["compiled", "numba_is_usable"]

logger = logging.getLogger(__name__)


@cache
def numba_is_usable() -> bool:
    """Tell whether the modules with compiled loops can be imported.

    The first answer takes the half second in which numba is imported, so ask last: for little work
    it is not worth that.
    """
    if find_spec("numba") is None:
        return False
    try:
        import numba
    except ImportError as reason:  # it refuses versions of NumPy that it does not know
        logger.warning("numba is installed but cannot be imported (%s): using NumPy alone", reason)
        return False
    return not numba.config.DISABLE_JIT


def compiled(function: Any) -> Any:
    """Compile at the first call, without the interpreter's lock; keep the result if possible.

    numba keeps it in __pycache__ until the function's own file changes, whatever else that calls.
    """
    from numba import njit

    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that could be written to
        return njit(**options)(function)
