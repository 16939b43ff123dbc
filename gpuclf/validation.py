"""Checks of what callers pass in, with errors that name the value, what was expected and a remedy.

Shapes and dtypes are always checked. Values (labels in range, NaN) are looked at where that costs
nothing, which is on the host: on a device every look would stop the stream. There, a label out of
range or a NaN makes the loss NaN, and training reports it when it reads the losses.
"""

from __future__ import annotations

import math
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, values_are_on_host
from gpuclf.samples.short_floats import extremes, is_short_float
from gpuclf.samples.standardized import Standardized, check_total_weight, conversion_advice

__all__ = [
    "PRECISIONS",
    "check_finite",
    "check_label_count",
    "check_label_values",
    "check_labels",
    "check_params",
    "check_penalty",
    "check_precision",
    "check_result",
    "check_samples",
    "check_weights",
]

PRECISIONS = ("float32", "tf32", "float64")
LOOKED_AT = 1 << 20  # bytes at a time


def check_samples(
    X: Array | Standardized, name: str = "X", *, short_floats: bool = False
) -> tuple[Any, int, int]:
    """Check the samples; return their array library and (N, D).

    With `short_floats`, float16 and bfloat16 are accepted too.
    """
    stored = X.X if isinstance(X, Standardized) else X
    xp = array_namespace(stored)
    if stored.ndim != 2:
        colours_last = stored.ndim == 4 and stored.shape[-1] == 3 != stored.shape[1]
        order = "permute" if hasattr(stored, "permute") else "transpose"  # PyTorch's word for it
        planes = f".{order}(0, 3, 1, 2)" if colours_last else ""
        remedy = (
            f"make a single sample a row with {name}.reshape(1, -1)"
            if stored.ndim == 1
            else f"flatten images{', the planes first,' if planes else ''} with "
            f"{name}{planes}.reshape(len({name}), -1)"
        )
        raise ValueError(
            f"{name} must have shape (N, D), one sample a row, got {tuple(stored.shape)}; {remedy}"
        )
    n_samples, n_features = map(int, stored.shape)
    if n_samples == 0 or n_features == 0:
        raise ValueError(
            f"{name} is empty: shape ({n_samples}, {n_features}); at least one sample and one "
            "feature are needed"
        )
    accepted = _accepted(xp, "uint8", "float32", "float64")
    if stored.dtype not in accepted and not (short_floats and is_short_float(stored.dtype)):
        others = "float16, bfloat16, " if short_floats else ""
        raise TypeError(
            f"{name} must be uint8, {others}float32 or float64, got {stored.dtype}; "
            + conversion_advice(name, stored)
        )
    return xp, n_samples, n_features


@cache
def _accepted(xp: Any, *names: str) -> tuple[Any, ...]:
    # NumPy compares its dtypes with its types slowly, with other dtypes fast.
    return tuple(np.dtype(name) if xp is np else getattr(xp, name) for name in names)


def check_params(
    params: dict[str, Array],
    axes: dict[str, str],
    X: Array | Standardized,
    precision: str,
    optional: tuple[str, ...] = (),
) -> tuple[dict[str, Array], int]:
    """Check a model's parameters against the samples and each other.

    Parameters
    ----------
    params : dict of array
    axes : dict of str
        The trailing axes of each parameter, a letter an axis: D features, C classes; equal letters
        are equal sizes.
    X : array or Standardized
    precision : str
    optional : tuple of str
        Parameters that may be missing.

    Returns
    -------
    params : dict of array
        In the one dtype to compute in.
    n_classes : int
    """
    if not isinstance(params, dict):
        names = f"{', '.join([*axes][:-1])} and {[*axes][-1]}"
        raise TypeError(f"params must be a dict of {names}, got {type(params).__name__}")
    missing = [name for name in axes if name not in params and name not in optional]
    if missing:
        shapes = [f"{name} ({', '.join(of)}{',' * (len(of) == 1)})" for name, of in axes.items()]
        raise ValueError(
            f"params must hold {', '.join(shapes[:-1])} and {shapes[-1]}; missing: "
            f"{', '.join(missing)}"
        )
    _, _, n_features = check_samples(X, short_floats=True)
    given = {name: params[name] for name in axes if name in params}
    for name, value in given.items():
        if value is None:
            _refuse_none(name)
    stored = X.X if isinstance(X, Standardized) else X
    xp = array_namespace(X=stored, **given)
    sizes, dtype, model_axes = {"D": n_features}, None, set()
    for name, value in given.items():
        of = axes[name]
        found = _check_parameter(xp, name, value, stored, tuple(map(sizes.get, of, [-1] * len(of))))
        dtype = found if dtype is None or dtype == found else xp.result_type(dtype, found)
        sizes.update(zip(of, value.shape[-len(of) :], strict=True))
        model_axes.add(tuple(value.shape[: -len(of)]))
    if len(model_axes) > 1:
        found = {name: tuple(value.shape) for name, value in given.items()}
        raise ValueError(f"all parameters must have the same leading model axes, got {found}")
    dtype = check_precision(precision, dtype, xp)
    for name, value in given.items():
        if value.dtype != dtype:
            given[name] = xp.astype(value, dtype)
    return given, int(sizes["C"])


def _check_parameter(
    xp: Any, name: str, value: Array, stored: Array, shape: tuple[int, ...]
) -> Any:
    """Check one parameter, with -1 for sizes yet unknown; return the dtype to compute in."""
    floats = _accepted(xp, "float32", "float64")
    if value.dtype not in floats:
        raise TypeError(
            f"{name} must be float32 or float64, got {value.dtype}; "
            + conversion_advice(name, value)
        )
    found = tuple(value.shape[-len(shape) :])
    fits = len(found) == len(shape) and 0 not in found
    for n, wanted in zip(found, shape, strict=False):
        fits = fits and wanted in (-1, n)
    if not fits:
        wanted_shape = "(" + ", ".join("any" if n == -1 else str(n) for n in shape)
        wanted_shape += ",)" if len(shape) == 1 else ")"
        raise ValueError(
            f"{name} must have shape {wanted_shape} to fit X of shape {tuple(stored.shape)} and "
            f"the other parameters, got {tuple(value.shape)}"
            f"{_transposed_hint(name, found, shape)}"
        )
    # What float32 and float64 promote to is the wider one; bytes follow the parameter.
    return stored.dtype if stored.dtype == floats[1] else value.dtype


def _transposed_hint(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if len(found) == 2 and len(shape) == 2 and found[1] == shape[0] != found[0]:
        return f"; it looks transposed: pass {name}.T"
    return ""


def check_label_count(y: Array, n_samples: int, name: str = "y") -> None:
    """Raise if there is not one label for each sample."""
    if tuple(y.shape) != (n_samples,):
        raise ValueError(
            f"{name} must have shape ({n_samples},), one label for each row of X, got "
            f"{tuple(y.shape)}"
        )


def check_labels(y: Array, X: Array | Standardized, n_classes: int) -> Array:
    """Check the labels and return them as an array in the library of X."""
    stored = X.X if isinstance(X, Standardized) else X
    if isinstance(y, list | tuple | range):
        xp = array_namespace(stored)
        y = xp.asarray(np.asarray(y), device=stored.device)
    if y is None:
        _refuse_none("y")
    xp = array_namespace(X=stored, y=y)
    check_label_count(y, int(stored.shape[0]))
    if not (y.dtype.kind in "iu" if xp is np else xp.isdtype(y.dtype, "integral")):
        raise TypeError(
            f"labels must be integers 0..{n_classes - 1}, got {y.dtype}; convert them with "
            "y.astype(int), or number them with numpy.unique(y, return_inverse=True)"
        )
    if values_are_on_host(y):
        check_label_values(y, n_classes)
    return y


def check_label_values(y: np.ndarray, n_classes: int) -> None:
    """Raise if a label on the host is out of range."""
    if not 0 <= np.minimum.reduce(y) <= np.maximum.reduce(y) < n_classes:
        wrong = np.flatnonzero((y < 0) | (y >= n_classes))
        raise ValueError(
            f"labels must be in 0..{n_classes - 1} (W has {n_classes} columns), got "
            f"y[{wrong[0]}] = {y[wrong[0]]}"
            + (f" and {wrong.size - 1} more" if wrong.size > 1 else "")
            + "; number the classes from 0, or give W more columns"
        )


def check_weights(sample_weight: Array | None, X: Array | Standardized, dtype: Any) -> Array | None:
    """Check the sample weights and scale them so that they sum to 1 (a weighted mean)."""
    if sample_weight is None:
        return None
    stored = X.X if isinstance(X, Standardized) else X
    xp = array_namespace(X=stored, sample_weight=sample_weight)
    n_samples = int(stored.shape[0])
    if tuple(sample_weight.shape) != (n_samples,):
        raise ValueError(
            f"sample_weight must have shape ({n_samples},), one for each row of X, got "
            f"{tuple(sample_weight.shape)}"
        )
    weights = xp.astype(sample_weight, xp.float64)
    check_total_weight(weights)
    return xp.astype(weights / xp.sum(weights), dtype)


def _refuse_none(name: str) -> None:
    raise TypeError(f"expected an array for {name}, got None")


def check_penalty(reg: float) -> None:
    """Check the factor of the penalty."""
    # A float is found at once; asking the abstract class takes two calls.
    if not isinstance(reg, (float, Real)) or not 0 <= reg < math.inf:
        raise ValueError(f"reg must be a finite number, at least 0, got {reg!r}")


def check_precision(precision: str, dtype: Any, xp: Any) -> Any:
    """Check the precision; return the dtype to compute in, where the inputs alone give `dtype`."""
    if precision not in PRECISIONS:
        choices = "'float32', 'tf32' or 'float64'"
        raise ValueError(f"precision must be {choices}, got {precision!r}")
    return xp.float64 if precision == "float64" else dtype


def check_finite(X: Array | Standardized, name: str = "X") -> None:
    """Raise if samples on the host hold a NaN or an infinity."""
    stored = X.X if isinstance(X, Standardized) else X
    if values_are_on_host(stored):
        # In stretches: a truth value a number would be half of what short floats take.
        rows = max(1, LOOKED_AT // max(1, int(stored[:1].nbytes)))
        for first in range(0, len(stored), rows):
            some = stored[first : first + rows]
            if some.dtype == np.float16 and some.size:  # as NumPy looks at each of these alone
                is_finite = all(map(math.isfinite, extremes(some)))
            else:
                is_finite = np.isfinite(some).all()
            if not is_finite:
                _raise_if_not_finite(name, stored)


def _raise_if_not_finite(name: str, value: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(value))
    if len(wrong):
        where = ", ".join(str(i) for i in wrong[0])
        raise ValueError(
            f"{name} has {len(wrong)} NaN or infinite values, the first at {name}[{where}]; "
            f"remove or replace them, for example with numpy.nan_to_num({name})"
        )


def check_result(
    loss: Array, gradient: Array, X: Array | Standardized, **parameters: Array
) -> None:
    """Raise if a result is not finite, naming the input that made it so (host arrays only).

    A NaN or an infinity anywhere in the inputs reaches the loss or, where ReLU stops it on the
    way, the gradient of the first layer; looking at those saves a pass over X.
    """
    if not values_are_on_host(loss):
        return
    total = loss + gradient.sum()
    if np.isfinite(total).all() if total.ndim else math.isfinite(total):
        return
    stored = X.X if isinstance(X, Standardized) else X
    for name, value in {"X": stored, **parameters}.items():
        _raise_if_not_finite(name, value)
    raise FloatingPointError(
        f"the result is {np.sum(loss)}, but X and the parameters are finite: something overflows; "
        "use smaller parameters, standardised features, or float64"
    )
