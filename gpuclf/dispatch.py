"""One shared body for a function, and room for faster versions of it.

The body of a :func:`fusable` function is the reference: array API code that runs on every library.
A library's kernel module may register a faster version, which looks at its arguments and either
returns the result or declines with ``NotImplemented``; then the body runs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from gpuclf.backend import library_name

__all__ = ["Fusable", "fusable"]

# Imported at the first call with an array of that library, never before.
KERNEL_MODULES = {
    "numpy": (
        "gpuclf.kernels.on_numpy",
        "gpuclf.kernels.compiled_bytes",
        "gpuclf.kernels.compiled_linear",
        "gpuclf.kernels.compiled_elementwise",
        "gpuclf.kernels.neighbors_on_numpy",
    ),
    "cupy": (
        "gpuclf.kernels.losses_on_cupy",
        "gpuclf.kernels.linear_pass_on_cupy",
        "gpuclf.kernels.neighbors_on_cupy",
        "gpuclf.kernels.linear_step_on_cupy",
        "gpuclf.kernels.two_layer_step_on_cupy",
        "gpuclf.kernels.two_layer_pass_on_cupy",
    ),
}


class Fusable(Protocol):
    """A function with a shared body and, for some libraries, faster versions."""

    reference: Callable[..., Any]
    kernels: dict[str, Callable[..., Any]]
    register: Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the faster version for the first argument's library, or else the body."""


def fusable(reference: Callable[..., Any]) -> Fusable:
    """Let libraries register faster versions of a function; the first argument decides which.

    Where a library registers several, the next is asked when one declines.

    Examples
    --------
    >>> import numpy as np
    >>> @fusable
    ... def double(x):
    ...     return x + x
    >>> @double.register("numpy")
    ... def double_long(x):
    ...     return np.multiply(x, 2) if len(x) > 1000 else NotImplemented
    >>> double(np.ones(2)), double.reference(np.ones(2))
    (array([2., 2.]), array([2., 2.]))
    """
    kernels: dict[str, Callable[..., Any]] = {}

    @functools.wraps(reference)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        library = library_name(args[0] if args else next(iter(kwargs.values())))
        _load_kernels(library)
        kernel = kernels.get(library)
        if kernel is not None:
            result = kernel(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return reference(*args, **kwargs)

    def register(library: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(kernel: Callable[..., Any]) -> Callable[..., Any]:
            before = kernels.get(library)
            kernels[library] = kernel if before is None else _in_turn(before, kernel)
            return kernel

        return decorate

    function = cast(Fusable, dispatched)
    function.reference = reference
    function.kernels = kernels
    function.register = register
    return function


def _in_turn(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        result = first(*args, **kwargs)
        return second(*args, **kwargs) if result is NotImplemented else result

    return kernel


@functools.cache
def _load_kernels(library: str) -> None:
    for module in KERNEL_MODULES.get(library, ()):
        importlib.import_module(module)
