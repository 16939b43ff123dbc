"""What the pictures share: the import of matplotlib, new Axes, colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.backend import to_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "MARKERS", "as_numpy", "log_axis_with_ticks_at", "new_axes"]

# Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers too. With as
# many markers beside them, no picture depends on colour alone.
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
    "#f0e442",
    "#000000",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def new_axes(ax: Axes | None, figsize: tuple[float, float]) -> Any:
    """Return `ax` or the Axes of a new figure, without the spines that say nothing."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ImportError(
                "pictures need matplotlib, which is not installed: pip install 'gpuclf[plots]'"
            ) from None
        _, ax = pyplot.subplots(figsize=figsize, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def as_numpy(values: Any) -> np.ndarray:
    """Return a NumPy array of what a picture is given: arrays of any library, or lists."""
    return np.asarray(to_host(values) if hasattr(values, "dtype") else values)


def log_axis_with_ticks_at(ax: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with these ticks only."""
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
