"""The picture of a search for hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.plots.drawing import COLOURS, DOTTED_LINE, TITLE, log_axis_with_ticks_at, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_search"]

SURFACE_POINTS = 120  # along each axis of a heat map
LEAST_SHOWN = 0.05  # what the colours span at least, or noise would look like peaks
ACCURACY_SHOWN = 0.1  # below the best: one hopeless candidate should not flatten all others
MOST_TICKS = 12


def plot_search(
    results: Sequence[Mapping[str, Any]],
    x: str = "learning_rate",
    y: str | None = "reg",
    ax: Axes | None = None,
) -> Axes:
    """Draw a search's validation accuracies as a heat map over two hyper-parameters.

    Parameters
    ----------
    results : list of dict
        As :func:`gpuclf.search.coarse_to_fine` gives: `params`, `val_accuracy`, `diverged`.
    x, y : str
        The hyper-parameters along the axes, both logarithmic. Without `y` the accuracy itself is
        drawn over `x`.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        The candidates are points, those that diverged crosses, the best one a star. Between the
        candidates the colour is their mean, weighted by the inverse cube of the distance;
        those that diverged count as much as the worst.

    Raises
    ------
    ValueError
        If no candidate was trained without diverging, or one lacks a hyper-parameter.

    Examples
    --------
    >>> from gpuclf.plots import plot_search
    >>> ax = plot_search(found.results)  # doctest: +SKIP
    """
    wanted = (x,) if y is None else (x, y)
    for row in results:
        lacking = [name for name in wanted if name not in row["params"]]
        if lacking:
            raise ValueError(
                f"the candidates have no {lacking[0]}, only {', '.join(row['params'])}: pass the "
                "names to draw over as x= and y="
            )
        unfit = [name for name in wanted if not row["params"][name] > 0]
        if unfit:
            raise ValueError(
                f"the axes are logarithmic, but a candidate has {unfit[0]} "
                f"{row['params'][unfit[0]]!r}: leave it out"
            )
    trained = [row for row in results if row["val_accuracy"] is not None]
    if not trained:
        raise ValueError("no candidate was trained to the end: there is nothing to draw")
    best = max(trained, key=lambda row: float(row["val_accuracy"]))
    failed = [row for row in results if row["val_accuracy"] is None]
    accuracy = np.array([row["val_accuracy"] for row in trained])
    ax = new_axes(ax, (7, 5) if y else (7, 4.2))
    ax.set_xscale("log")
    ax.set_xlabel(x.replace("_", " "))
    if y is None:
        at = np.array([row["params"][x] for row in trained])
        if len(np.unique(at)) <= MOST_TICKS:
            log_axis_with_ticks_at(ax, np.unique(at).tolist())
        order = np.argsort(at, kind="stable")
        ax.plot(at[order], accuracy[order], color=COLOURS[0], **DOTTED_LINE)
        top = best["val_accuracy"]
        ax.set_ylabel("validation accuracy")
    else:
        at = np.array([[row["params"][name] for name in wanted] for row in trained])
        ax.set_yscale("log")
        ax.set_ylabel(y.replace("_", " "))
        image = _draw_surface(ax, results, accuracy, wanted)
        ax.scatter(
            at[:, 0], at[:, 1], c=accuracy, cmap=image.cmap, norm=image.norm, s=36,
            edgecolors="white", linewidths=0.8,
        )  # fmt: skip
        if failed:
            x_failed, y_failed = ([row["params"][name] for row in failed] for name in wanted)
            label = "diverged" if all(row["diverged"] for row in failed) else "failed"
            ax.scatter(x_failed, y_failed, marker="x", s=40, color=COLOURS[3], label=label)
        extend = "min" if accuracy.min() < image.norm.vmin else "neither"
        ax.figure.colorbar(image, ax=ax, label="validation accuracy", extend=extend)
        top = best["params"][y]
    ax.scatter(
        [best["params"][x]], [top], marker="*", s=260, color=COLOURS[3], edgecolors="white",
        label="best", zorder=3,
    )  # fmt: skip
    where = ", ".join(f"{name.replace('_', ' ')} {best['params'][name]:.3g}" for name in wanted)
    ax.set_title(f"best {best['val_accuracy']:.3f} at {where}", **TITLE)
    # Beside the axis' name: within the axes it would cover candidates.
    ax.legend(
        fontsize="small", loc="upper right", bbox_to_anchor=(1, -0.06), ncols=2, frameon=False,
        borderaxespad=0.2, handletextpad=0.2, columnspacing=0.8,
    )  # fmt: skip
    return ax


def _draw_surface(
    ax: Any, results: Sequence[Mapping[str, Any]], accuracy: np.ndarray, names: Sequence[str]
) -> Any:
    known = np.log10([[row["params"][name] for name in names] for row in results])
    worst = float(accuracy.min())
    values = np.array(
        [worst if row["val_accuracy"] is None else row["val_accuracy"] for row in results]
    )
    low, high = known.min(axis=0), known.max(axis=0)
    size = np.where(high > low, high - low, 1)
    edges = [
        np.linspace(a - 0.06 * s, b + 0.06 * s, SURFACE_POINTS)
        for a, b, s in zip(low, high, size, strict=True)
    ]
    mesh = np.stack(np.meshgrid(*edges), axis=-1)
    distance = np.linalg.norm((mesh[:, :, None, :] - known) / size, axis=-1)
    weights = 1 / np.maximum(distance, 1e-3) ** 3
    surface = weights @ values / weights.sum(axis=-1)
    return ax.pcolormesh(
        *(10 ** edges[0], 10 ** edges[1], surface),
        cmap="cividis",
        shading="gouraud",
        vmin=accuracy.max() - np.clip(np.ptp(accuracy), LEAST_SHOWN, ACCURACY_SHOWN),
        vmax=accuracy.max(),
        rasterized=True,
    )
