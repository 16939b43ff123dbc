"""What the pictures share: the import of matplotlib, new Axes, colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import to_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "DOTTED_LINE",
    "MARKERS",
    "TITLE",
    "as_numpy",
    "import_pyplot",
    "log_axis_with_ticks_at",
    "new_axes",
    "of_classifier",
]

# Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers too. With as
# many markers beside them, no picture depends on colour alone.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TITLE: dict[str, Any] = {"loc": "left", "fontsize": "medium"}
DOTTED_LINE: dict[str, Any] = {"marker": "o", "markersize": 4}


def import_pyplot() -> Any:
    """Return matplotlib.pyplot, or raise an ImportError with the command that installs it."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(
            "pictures need matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return pyplot


def new_axes(ax: Axes | None, figsize: tuple[float, float]) -> Any:
    """Return `ax` or the Axes of a new figure, without the spines that say nothing."""
    if ax is None:
        _, ax = import_pyplot().subplots(figsize=figsize, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def as_numpy(values: Any) -> np.ndarray:
    """Return a NumPy array of what a picture is given: arrays of any library, or lists."""
    return np.asarray(to_host(values) if hasattr(values, "dtype") else values)


def of_classifier(value: Any, attribute: str) -> Any:
    """Return an attribute of a fitted classifier, and anything else as it is."""
    if not hasattr(value, "get_params"):
        return value
    if not hasattr(value, attribute):
        raise TypeError(
            f"{type(value).__name__} has no {attribute} to draw: pass a classifier that is fitted "
            "and has it"
        )
    return getattr(value, attribute)


def log_axis_with_ticks_at(ax: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with these ticks only."""
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
