"""What classifiers remember of the samples they were trained on, and hold against later ones."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import numpy as np

from gpuclf.arrays import Array, refuse_odd_arrays, to_host, values_are_on_host
from gpuclf.datasets.rows import LAYOUTS, ImageShape, as_rows
from gpuclf.samples.short_floats import extremes, widened
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed

__all__ = ["ImageSamples", "without_graph"]

ROWS_LOOKED_AT = 256  # evenly spaced
# With fewer features, samples are hardly images: counts may well be asked about by their means.
LEAST_PIXELS = 16
BYTES, FRACTIONS = "whole numbers of 0..255", "fractions of 0..1"
REMEDIES = {BYTES: "(X * 255).round()", FRACTIONS: "X / 255"}  # to what it was trained on


class ImageSamples:
    """Takes images as rows, and remembers shape, layout and range of what was trained on."""

    image_shape_: ImageShape | None
    layout_: str | None
    value_range_: tuple[float, float] | None

    def _as_rows(self, X: Any, *, reset: bool) -> Any:
        """Return images of three or four axes as rows (N, D), the planes first; others as is."""
        stored = X.X if isinstance(X, Standardized) else X
        refuse_odd_arrays(stored, "X")
        X = without_graph(_stacked(X))
        image_shape, layout = None, None
        if hasattr(X, "dtype") and getattr(X, "ndim", 2) in (3, 4):
            trained = None if reset else getattr(self, "image_shape_", None)
            if trained is None:
                X, image_shape, layout = as_rows(X)
            else:
                X = as_rows(X, self._layout_of(tuple(map(int, X.shape)), trained))[0]
        if reset:
            self.image_shape_, self.layout_ = image_shape, layout
        return X

    def _layout_of(self, shape: tuple[int, ...], trained: ImageShape) -> str:
        """Return the layout by which images are of the shape trained on; that of then first."""
        for layout in (cast(str, self.layout_), *LAYOUTS):
            if len(layout) == len(shape):
                size = dict(zip(layout, shape, strict=True))
                if (size.get("C", 1), size["H"], size["W"]) == trained:
                    return layout
        channels, height, width = trained
        raise ValueError(
            f"X of shape {shape} holds no images of {channels} channels, {height} x {width} pixels,"
            f" which {type(self).__name__} was trained on (layout {self.layout_!r}): give images of"
            f" that size, in any layout, or rows of {math.prod(trained)} numbers"
        )

    def _compare_values(self, X: Any, *, reset: bool) -> None:
        """Remember the values trained on; warn of others that cannot be of the same kind."""
        stored = X.X if isinstance(X, Standardized) else X
        stored = stored.host if isinstance(stored, Streamed) else stored
        on_host = values_are_on_host(stored)
        if reset:
            is_number = on_host and stored.dtype.kind in "uifb" and stored.size > 0
            self.value_range_ = extremes(stored) if is_number else None
            self._value_kind = _kind_of(stored, look=on_host)
            return
        trained = getattr(self, "_value_kind", None)
        # On a device a look waits for it: only where a model of bytes is asked about floats.
        asked = trained and _kind_of(stored, look=on_host or trained == BYTES)
        if trained and asked and asked != trained:
            warnings.warn(
                f"{type(self).__name__} was trained on {trained} and is asked about {asked}: the "
                f"answers mean nothing; pass {REMEDIES[trained]}, or train on {asked}",
                stacklevel=4,
            )


def _kind_of(stored: Array, *, look: bool) -> str | None:
    """Tell bytes and fractions of them from other values, by some of the rows."""
    if len(stored.shape) != 2 or stored.shape[1] < LEAST_PIXELS or stored.shape[0] == 0:
        return None
    if not look:
        return BYTES if str(stored.dtype).endswith("uint8") else None
    step = -(-int(stored.shape[0]) // ROWS_LOOKED_AT)
    some = np.asarray(to_host(stored[::step, :]))
    if some.dtype == np.float16:
        some = widened(some, np.float32)
    if some.dtype.kind not in "uif" or not (some.min() >= 0 and 1 < some.max() <= 255):
        is_fraction = some.dtype.kind == "f" and some.min() >= 0 and some.max() <= 1
        return FRACTIONS if is_fraction and np.any(some != np.floor(some)) else None
    return BYTES if some.dtype.kind != "f" or np.all(some == np.floor(some)) else None


def _stacked(X: Any) -> Any:
    """Return a list of images as one array; other lists are scikit-learn's to convert."""
    if hasattr(X, "__array__") and not hasattr(X, "shape"):
        return np.asarray(X)  # else it would have to be indexed as well
    if not isinstance(X, list | tuple) or not len(X):
        return X
    first = X[0]
    is_image = hasattr(first, "getbands") or getattr(first, "ndim", 0) in (2, 3)
    is_nested = isinstance(first, list | tuple) and first and isinstance(first[0], list | tuple)
    return np.asarray(X) if is_image or is_nested else X


def without_graph(values: Any) -> Any:
    """Return samples, labels or weights without the graph that PyTorch would keep of each step."""
    if isinstance(values, Streamed) or isinstance(getattr(values, "X", None), Streamed):
        return values  # on the host, where nothing has a graph
    if isinstance(values, Standardized):
        return values.map_arrays(without_graph)
    return values.detach() if getattr(values, "requires_grad", False) is True else values
