"""Whose array it is, and its way to the host.

The maths never receives a backend object: a function asks :func:`array_namespace` for the library
of its own inputs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "Array",
    "MixedDevicesError",
    "array_namespace",
    "describe_location",
    "device_of",
    "library_name",
    "library_of",
    "map_arrays",
    "refuse_odd_arrays",
    "to_host",
    "values_are_on_host",
]

Array: TypeAlias = Any  # an array of any library: NumPy, CuPy, PyTorch, array-api-strict, ...
_NUMPY = (np.ndarray, np.generic)
# By type, filled as types are met: within each mini-batch several questions are asked.
_libraries: dict[type, tuple[ModuleType, str]] = {}


class MixedDevicesError(TypeError):
    """Arrays of different libraries or devices met in one call."""


def library_of(x: Array) -> ModuleType:
    """Return the array library of one array; a TypeError says what `x` is if it is none."""
    return (_libraries.get(type(x)) or _ask(x))[0]


def library_name(x: Array) -> str:
    """Return the name of the library of an array, such as "numpy" or "cupy"."""
    try:
        return _libraries[type(x)][1]
    except KeyError:
        return _ask(x)[1]


def _ask(x: Array) -> tuple[ModuleType, str]:
    kind = type(x)
    refuse_odd_arrays(x)
    if values_are_on_host(x):
        xp: ModuleType = np  # NumPy 2 is the array API; wrapping it would only slow it down
    else:
        try:
            xp = _array_api_compat().array_namespace(x)
        except TypeError:
            raise TypeError(
                "expected an array (NumPy, CuPy or another array API library), got "
                f"{kind.__name__}; convert it with numpy.asarray first"
            ) from None
    found = xp, xp.__name__.rpartition(".")[2]
    # Others, as Streamed, stand for any library, and a tensor may be sparse.
    if kind.__module__.partition(".")[0] == found[1] != "torch":
        _libraries[kind] = found
    return found


def refuse_odd_arrays(x: Any, name: str | None = None) -> None:
    """Raise a TypeError for what looks like an array, but means something else by its values.

    Masks would be ignored, the product of a numpy.matrix is another one, sparse arrays have no
    values in most places, and those of JAX cannot be written in place. The message has the remedy.

    Parameters
    ----------
    x : object
        Anything; what is no such array passes.
    name : str, optional
        Of the argument.
    """
    kind = type(x)
    if kind is np.ndarray:
        return
    root, called = kind.__module__.partition(".")[0], name or "the array"
    given = name or "x"
    if isinstance(x, np.ma.MaskedArray):
        what = "a masked array, whose mask would be ignored"
        remedy = (  # a label that is made up is a wrong one
            "leave out the rows that it hides: "
            f"X, {given} = X[~numpy.ma.getmaskarray({given})], {given}.compressed()"
            if name == "y"
            else f"fill the gaps with a number, numpy.ma.filled({given}, 0), or leave those rows "
            "out"
        )
    elif isinstance(x, np.matrix):
        what = "a numpy.matrix, which multiplies and indexes otherwise than an array"
        remedy = f"pass numpy.asarray({given})" + (".ravel()" if x.shape[0] == 1 else "")
    elif root in ("scipy", "cupyx") and hasattr(x, "toarray"):
        what = f"sparse ({kind.__name__} of {'SciPy' if root == 'scipy' else 'CuPy'})"
        remedy = f"sparse samples are not supported: write the zeros out, {given}.toarray()"
    elif root == "pandas" and hasattr(x, "sparse"):
        what = f"a sparse {kind.__name__} of pandas"
        remedy = f"sparse samples are not supported: write the zeros out, {given}.sparse.to_dense()"
    elif root == "polars" and hasattr(x, "collect"):
        what = f"a {kind.__name__} of polars, which has no values yet"
        remedy = f"pass {given}.collect()"
    elif (
        root == "torch"
        and getattr(x, "layout", None) is not None
        and "strided" not in str(x.layout)
    ):
        what = f"a sparse tensor ({x.layout})"
        remedy = f"sparse samples are not supported: write the zeros out, {given}.to_dense()"
    elif root in ("dask", "dask_expr"):
        what = "of dask, and would be computed whole on this machine"
        remedy = (
            f"{given}.compute() where it fits; else gpuclf.Sharded({given}) for L-BFGS and nearest "
            "neighbours, with y as it is"
        )
    elif root in ("jax", "jaxlib"):
        what = "an array of JAX, which cannot be written in place"
        remedy = f"bring it, and what goes with it, to NumPy: numpy.asarray({given})"
    else:
        return
    raise TypeError(f"{called} is {what}; {remedy}")


@functools.cache
def _array_api_compat() -> ModuleType:
    try:
        return importlib.import_module("array_api_compat")
    except ImportError:  # scikit-learn carries a copy
        return importlib.import_module("sklearn.externals.array_api_compat")


def device_of(x: Array) -> Any:
    """Return the device of an array as its library has it; "cpu" for NumPy."""
    return "cpu" if values_are_on_host(x) else x.device


def values_are_on_host(x: Array) -> bool:
    """Tell whether looking at the values of `x` is free of a device synchronisation."""
    return isinstance(x, _NUMPY)


def describe_location(x: Array) -> str:
    """Say which library holds `x` and where, as error messages need it.

    Examples
    --------
    >>> describe_location(np.zeros(3))
    'numpy on cpu'
    """
    return f"{library_name(x)} on {device_of(x)}"


def array_namespace(*arrays: Array, **named: Array) -> ModuleType:
    """Return the one array library that all the arguments belong to.

    Parameters
    ----------
    *arrays, **named
        Arrays; those passed by name are called by it in the error. None is passed over.

    Returns
    -------
    module
        A namespace of the Python array API standard.

    Raises
    ------
    MixedDevicesError
        If two arrays live in different libraries or on different devices. Nothing is ever copied
        between devices silently.

    Examples
    --------
    >>> array_namespace(np.zeros(3)).__name__
    'numpy'
    """
    found = False
    for x in (*arrays, *named.values()) if named else arrays:
        if type(x) is np.ndarray:
            found = True
        elif x is not None:
            break
    else:
        if found:
            return np
    named = {f"argument {i}": x for i, x in enumerate(arrays)} | named
    present = [(name, x) for name, x in named.items() if x is not None]
    if not present:
        raise TypeError("array_namespace needs at least one array")
    for name, x in present:
        if type(x) not in _libraries:
            refuse_odd_arrays(x, None if name.startswith("argument ") else name)
            _refuse_others(name, x, [other for _, other in present])
    first_name, first = present[0]
    xp, device = library_of(first), device_of(first)
    for name, x in present[1:]:
        if library_of(x) is not xp or device_of(x) != device:
            raise MixedDevicesError(
                f"{first_name} is {describe_location(first)} but {name} is {describe_location(x)}; "
                + _ways_together({first_name: first, name: x})
            )
    return xp


def _ways_together(two: dict[str, Array]) -> str:
    """Say how two arrays of different devices come together."""
    stays, moves = two
    if values_are_on_host(two[stays]):
        stays, moves = moves, stays
    by_device = f"gpuclf.to_device({moves}, like={stays}) takes it to the other's device"
    if not values_are_on_host(two[moves]):
        return by_device
    return f"move one of them: gpuclf.to_host({stays}) brings an array to NumPy, {by_device}"


def _refuse_others(name: str, x: Any, present: list[Any]) -> None:
    """Raise for what is no array beside arrays of a device, where it has to go."""
    if hasattr(x, "dtype") and hasattr(x, "shape") and not hasattr(x, "iloc"):
        return
    like = [n for n in present if hasattr(n, "device") and not values_are_on_host(n)]
    if like and not name.startswith("argument ") and not hasattr(x, "__array_namespace__"):
        raise TypeError(
            f"expected an array for {name}, got {type(x).__name__}; the others are "
            f"{describe_location(like[0])}: convert it with "
            f"gpuclf.to_device(numpy.asarray({name}), like=...) and one of them"
        )


def to_host(x: Any) -> Any:
    """Return NumPy arrays for arrays of any library; NumPy arrays come back uncopied.

    Parameters
    ----------
    x : array, dict of arrays, Standardized, fitted classifier (a copy is moved), or scalar

    Examples
    --------
    >>> to_host({"W": np.ones(2)})
    {'W': array([1., 1.])}
    """
    return map_arrays(x, _array_to_host)


def _array_to_host(a: Array) -> Array:
    if values_are_on_host(a) or isinstance(a, bool | int | float):
        return a
    library = library_name(a)
    if library == "cupy":
        return a.get()
    if library == "torch":
        return a.detach().cpu().numpy()
    if library == "array_api_strict":
        return np.asarray(a.to_device(type(a.device)("CPU_DEVICE")))
    return np.from_dlpack(a)


def map_arrays(x: Any, function: Callable[[Array], Array]) -> Any:
    """Return x with each array in it replaced: in a dict, or in samples with a `map_arrays`."""
    if isinstance(x, dict):
        return {key: map_arrays(value, function) for key, value in x.items()}
    if hasattr(x, "map_arrays"):
        return x.map_arrays(function)
    return function(x)
