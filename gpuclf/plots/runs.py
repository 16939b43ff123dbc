"""The picture that compares trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpuclf.plots.drawing import COLOURS, MARKERS, TITLE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_runs"]


def plot_runs(
    runs: Mapping[str, Sequence[float]], what: str = "validation accuracy", ax: Axes | None = None
) -> Axes:
    """Draw a line for each training, over its epochs.

    Parameters
    ----------
    runs : dict of str to sequence of float
        For each training's name one value an epoch.
    what : str
        What the values are.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If no training has a value.

    Examples
    --------
    >>> from gpuclf.plots import plot_runs
    >>> fitted = {"softmax": softmax, "net": net}  # doctest: +SKIP
    >>> ax = plot_runs({k: v.val_accuracy_history_ for k, v in fitted.items()})  # doctest: +SKIP
    """
    drawn = {name: list(values) for name, values in runs.items() if len(values)}
    if not drawn:
        raise ValueError(f"no training has a {what} to draw: there is nothing to compare")
    ax = new_axes(ax, (7, 4.2))
    longest = max(map(len, drawn.values()))
    for i, (name, values) in enumerate(drawn.items()):
        look: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3],
        }
        ax.plot(range(1, len(values) + 1), values, markersize=4, label=name, **look)
    if longest <= 20:
        ax.set_xticks(range(1, longest + 1))
    ax.set(xlabel="epoch", ylabel=what)
    ax.grid(axis="y", alpha=0.25)
    ax.set_title(f"{what} of {len(drawn)} training{'' if len(drawn) == 1 else 's'}", **TITLE)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax
