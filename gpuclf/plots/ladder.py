"""The picture of the measured ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuclf.files import format_seconds
from gpuclf.plots.drawing import COLOURS, TITLE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_ladder"]

OF_LIBRARY = {"python": "#8c8c8c", "numpy": COLOURS[0], "cupy": COLOURS[2]}


def plot_ladder(rows: list[dict[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw the times of one case as horizontal bars on a logarithmic scale.

    Parameters
    ----------
    rows : list of dict
        Rows of one case, as in the JSON of ``gpuclf bench``; those without a time are left out.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message has the command.
    """
    measured = [row for row in rows if row["median_s"] is not None]
    if not measured:
        raise ValueError("none of the rows has a time to draw")
    ax = new_axes(ax, (8, 0.5 + 0.45 * len(measured)))
    times = [row["median_s"] for row in measured]
    colours = [OF_LIBRARY[row["array_library"]] for row in measured]
    bars = ax.barh(range(len(measured)), times, color=colours, height=0.65)
    about = ("about " if row["extrapolated"] else "" for row in measured)
    ax.bar_label(
        bars, [a + format_seconds(t) for a, t in zip(about, times, strict=True)], padding=5
    )
    ax.set_xscale("log")
    ax.set_xlim(min(times) / 3, max(times) * 12)
    ax.set_yticks(range(len(measured)), [row["implementation"] for row in measured])
    ax.invert_yaxis()
    ax.set_xlabel("seconds a call, logarithmic scale (shorter is better)")
    ax.set_title(f"{measured[0]['operation']}, {measured[0]['samples']:,} samples", **TITLE)
    return ax
