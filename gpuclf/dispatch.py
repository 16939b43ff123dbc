"""One shared body for a function, and the faster versions that replace it, named at the function.

The body of a :func:`fusable` function is the reference: array API code that runs on every library.
What is named for a library may replace it: it looks at its arguments and either returns the result
or declines with ``NotImplemented``; then the next is asked, and in the end the body runs. All of
them run on the device of the arrays, whichever is current.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol, cast

from gpuclf.arrays import library_name
from gpuclf.devices.cupy import other_device

__all__ = ["REPEATED", "SEAMS", "Fusable", "fusable", "machine_code_of"]

Function = Callable[..., Any]
SEAMS: dict[str, Fusable] = {}  # every function that something may replace, by its name
# By a model's class, for whole losses on a device: ``(model, params, X, y, reg, precision)`` gives
# what Model.loss does, or NotImplemented unless such a call was checked and made before. Kernels
# put themselves here when they are imported.
REPEATED: dict[type, Function] = {}


class Fusable(Protocol):
    """A function with a shared body and, for some libraries, faster versions.

    Attributes
    ----------
    reference : callable
        The body.
    replacements : dict of tuple of str
        For each library the versions to ask, as ``"operation.module:function"`` in
        :mod:`gpuclf.kernels`.
    kernels : dict of tuple of callable
        The same, imported: filled in at the first call with an array of the library.
    machine_code : str or None
        Of a data loss: the name under which kernels of whole passes hold it.
    """

    __name__: str
    reference: Function
    replacements: dict[str, tuple[str, ...]]
    kernels: dict[str, tuple[Function, ...]]
    machine_code: str | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what replaces the body for the first argument's library, or else the body."""


def fusable(
    *, by: str | None = None, machine_code: str | None = None, **replacements: str | tuple[str, ...]
) -> Callable[[Function], Fusable]:
    """Let the named functions of :mod:`gpuclf.kernels` replace a function's body.

    Parameters
    ----------
    by : str, optional
        The argument whose library decides; by default the first.
    machine_code : str, optional
        Of a data loss: the name under which kernels of whole passes hold it.
    **replacements : str or tuple of str
        By that library, such as ``numpy="losses.on_cpu:class_major"``.
        Nothing is imported before the first call with an array of that library.

    Examples
    --------
    >>> import numpy as np
    >>> @fusable()
    ... def double(x):
    ...     return x + x
    >>> double.kernels["numpy"] = (lambda x: 2 * x if len(x) > 1000 else NotImplemented,)
    >>> double(np.ones(2)), double.reference(np.ones(2))
    (array([2., 2.]), array([2., 2.]))
    """

    def decorate(reference: Function) -> Fusable:
        kernels: dict[str, tuple[Function, ...]] = {}
        named = {
            library: (one,) if isinstance(one, str) else one
            for library, one in replacements.items()
        }
        names = list(inspect.signature(reference).parameters)
        name = by or names[0]
        place = names.index(name)

        @functools.wraps(reference)
        def dispatched(*args: Any, **kwargs: Any) -> Any:
            library = library_name(args[place] if place < len(args) else kwargs[name])
            if library not in kernels:
                kernels[library] = tuple(map(_imported, named.get(library, ())))
            if library == "cupy" and (device := other_device(*args, *kwargs.values())):
                with device:
                    return dispatched(*args, **kwargs)
            for kernel in kernels[library]:
                result = kernel(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            return reference(*args, **kwargs)

        function = cast(Fusable, dispatched)
        function.reference, function.kernels = reference, kernels
        function.machine_code = machine_code
        function.replacements = named
        if replacements:
            SEAMS[reference.__name__] = function
        return function

    return decorate


def machine_code_of(function: Function) -> str | None:
    """Return the name under which kernels hold a data loss, None if they do not.

    What wraps one of theirs has its attributes (:func:`functools.wraps`), and is another loss.
    """
    known: str | None = getattr(function, "machine_code", None)
    return known if SEAMS.get(getattr(function, "__name__", "")) is function else None


def _imported(name: str) -> Function:
    module, _, function = name.partition(":")
    found: Function = getattr(importlib.import_module(f"gpuclf.kernels.{module}"), function)
    return found
