"""A dictionary of parameters as one float64 vector on the host, and back."""

from __future__ import annotations

import math

import numpy as np

from gpuclf.arrays import Array, to_host
from gpuclf.devices.backends import to_device

__all__ = ["flatten_params", "unflatten_params"]


def flatten_params(params: dict[str, Array]) -> np.ndarray:
    """Return all values as one new float64 vector, in the order of the dictionary.

    Examples
    --------
    >>> flatten_params({"W": np.ones((1, 2)), "b": np.zeros(1)})
    array([1., 1., 0.])
    """
    return np.concatenate([np.asarray(to_host(p), np.float64).ravel() for p in params.values()])


def unflatten_params(
    flat: np.ndarray, like: dict[str, Array], dtype: type[np.floating] | None = None
) -> dict[str, Array]:
    """Undo :func:`flatten_params`.

    Parameters
    ----------
    flat : array of shape (..., number of values)
        Leading axes become leading axes of every parameter.
    like : dict of array
        Where names, shapes, libraries and dtypes are taken from.
    dtype : NumPy dtype, optional
        Floats to make instead.

    Returns
    -------
    dict of array
        Copies, that may be changed.
    """
    params, start = {}, 0
    for name, value in like.items():
        size = math.prod(value.shape)
        host = flat[..., start : start + size].reshape((*flat.shape[:-1], *value.shape))
        # The standard has no way from a library's dtype to NumPy's, but all print its name.
        host_dtype = dtype or np.dtype(str(value.dtype).rpartition(".")[2])
        params[name] = to_device(host.astype(host_dtype), like=value)
        start += size
    return params
