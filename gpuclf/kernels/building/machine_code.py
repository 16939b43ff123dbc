"""When and how loops are compiled: by numba (the extra ``fast``), at their first use."""

from __future__ import annotations

import ctypes
import logging
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

__all__ = [
    "byte_dots_are_usable",
    "compiled",
    "matrix_unit_is_usable",
    "numba_is_usable",
    "processor_features",
    "vector_unit",
]

logger = logging.getLogger(__name__)
damaged_caches: set[str] = set()
announced: set[tuple[str, bool]] = set()  # operations, and whether once more
# By operation, or by module: what compiling its first function takes on one core of 2 to 3 GHz, in
# words. What is not here takes a second.
DURATIONS = {
    "byte_products": "some seconds",
    "linear_pass": "about 6 s",
    "losses": "about 2 s",
    "nearest": "about 2 s",
    "open_loops": "about 9 s",
    "wide_products": "about 2 s",
}
NAMES = {
    "losses": "loss of mini-batches and fleets",
    "nearest": "neighbours of bytes",
    "open_loops": "neighbours of floats",
    "wide_products": "products of bytes and wide parameters",
}

# Linux's numbers on x86-64.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


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


@cache
def processor_features() -> dict[str, bool]:
    """Return what the processor can, by LLVM's names; empty if numba compiles for another one.

    An instruction that numba's target lacks would end the process.
    """
    from llvmlite.binding import get_host_cpu_features
    from numba import config

    if config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return {}
    return dict(get_host_cpu_features())


@cache
def matrix_unit_is_usable() -> bool:
    """Tell whether the processor multiplies tiles of bytes (AMX), and ask Linux for their use.

    Linux grants a process the 8 KiB of registers only when it asks (Documentation/arch/x86/
    xstate.rst).
    """
    if not (sys.platform == "linux" and numba_is_usable()):
        return False
    features = processor_features()
    if not all(features.get(name) for name in ("amx-tile", "amx-int8", "avx512bw", "avx512vnni")):
        return False
    ask = ctypes.CDLL(None).syscall
    return bool(ask(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)


@cache
def byte_dots_are_usable() -> bool:
    """Tell whether the processor adds products of bytes, 64 at once (AVX-512 VNNI)."""
    if not numba_is_usable():
        return False
    features = processor_features()
    return all(features.get(name, False) for name in ("avx512bw", "avx512vnni"))


@cache
def vector_unit() -> str:
    """Name the processor's units that compiled passes multiply with, as reports do."""
    if not numba_is_usable():
        return "none: NumPy alone"
    features = processor_features()
    units = [("avx512f", "AVX-512"), ("avx2", "AVX2"), ("neon", "NEON")]
    vectors = next((name for flag, name in units if features.get(flag)), "short vectors")
    if matrix_unit_is_usable():
        return f"{vectors}, AMX for bytes"
    return f"{vectors}, VNNI for bytes" if byte_dots_are_usable() else vectors


def compiled(function: Any, **options: Any) -> Any:
    """Compile at the first call, without the interpreter's lock; keep the result if possible.

    numba keeps it in __pycache__ until the function's own file changes, whatever else that calls.
    What has `options` of its own, as numba has them, is a part of others, and not announced.
    """
    from numba import njit

    is_part, options = bool(options), {"nogil": True, "error_model": "numpy"} | options
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that could be written to
        dispatcher = njit(**options)(function)
        kept = "for this process only: set NUMBA_CACHE_DIR to a folder that can be written to"
        if not is_part:
            dispatcher._cache.load_overload = _announcing(lambda *_: None, function, kept)
        return dispatcher
    store = dispatcher._cache
    for name in ("load_overload", "save_overload"):
        setattr(store, name, _forgiving(getattr(store, name), store))
    kept = f"kept in {store.cache_path}; gpuclf info --warm-up does it ahead"
    if not is_part:
        store.load_overload = _announcing(store.load_overload, function, kept)
    return dispatcher


def _announcing(load: Any, function: Any, kept: str) -> Any:
    """Say that an operation is going to be compiled, where nothing kept was found.

    Once for the first arrays, and once more when there are others: read-only ones, or slices.
    """
    package, _, module = function.__module__.rpartition(".")
    operation = module if module in DURATIONS else package.rpartition(".")[2]
    n_compiled = 0

    def call(*arguments: Any) -> Any:
        nonlocal n_compiled
        found = load(*arguments)
        if found is not None or operation not in DURATIONS:
            return found
        said, n_compiled = (operation, n_compiled > 0), n_compiled + 1
        if said not in announced:
            announced.add(said)
            name, duration = NAMES.get(operation, operation.replace("_", " ")), DURATIONS[operation]
            if n_compiled == 1:
                logger.warning("compiling the %s once, %s (%s)", name, duration, kept)
            else:
                logger.warning(
                    "compiling the %s once more, for another kind of arrays: at most %s",
                    *(name, duration.removeprefix("about ")),
                )
        return found

    return call


def _forgiving(method: Any, store: Any) -> Any:
    """Let a damaged file in numba's cache cost a compilation, where it would end every call."""

    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as reason:  # unpickling what is damaged raises nearly anything
            _say_that_it_is_damaged(store.cache_path, f"{type(reason).__name__}: {reason}")
        try:
            store.flush()  # so that the next process need not compile
        except Exception:
            store.disable()
        return None

    return call


def _say_that_it_is_damaged(folder: str, reason: str) -> None:
    logger.log(
        logging.DEBUG if damaged_caches else logging.WARNING,
        "numba's cache in %s is damaged or cannot be used (%s): compiling without it. If this "
        "is said again, delete that folder",
        folder,
        reason,
    )
    damaged_caches.add(folder)
