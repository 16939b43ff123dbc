"""The picture of what spoke for and against a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.plots.drawing import COLOURS, TITLE, new_axes
from gpuclf.plots.images import as_pictures, stretched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gpuclf.explanation import Explanation

__all__ = ["plot_explanation"]

MOST_BARS = 15


def plot_explanation(
    explanation: Explanation,
    names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what of an image spoke for and against a class, beside the image.

    Parameters
    ----------
    explanation : Explanation
        Of :func:`gpuclf.explain`.
    names : sequence of str, optional
        D names of the features, where they are no pixels.
    image_shape : (channels, height, width) or (height, width), optional
        By default as the explanation knows it. Where it does not, the features of the largest
        contributions are drawn as bars.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        Blue spoke for the class, orange against it, with dashes where it did so clearly; the
        contributions of a pixel's channels are added up.

    Raises
    ------
    ValueError
        If the shape or the names do not fit.

    Examples
    --------
    >>> from gpuclf.plots import plot_explanation
    >>> ax = plot_explanation(gpuclf.explain(classifier, X[0]))  # doctest: +SKIP
    """
    contributions = explanation.contributions
    shape = explanation.image_shape if image_shape is None else tuple(image_shape)
    if names is not None and len(names) != len(contributions):
        raise ValueError(
            f"names must be one for each of {len(contributions)} features, got {len(names)}"
        )
    if shape is None:
        ax = _draw_bars(contributions, names, ax)
    else:
        ax = _draw_image(explanation, shape, ax)
    verb = "leads" if explanation.lead >= 0 else "trails"
    title = f"what spoke for {explanation.label}, which {verb} {explanation.against} by "
    ax.set_title(f"{title}{abs(explanation.lead):.3g}", **TITLE)
    return ax


def _draw_image(explanation: Explanation, shape: Sequence[int], ax: Any) -> Any:
    x = explanation.x[None, :]
    pixels = x if x.dtype == np.uint8 else stretched(x.astype(np.float64))
    (image,) = as_pictures(pixels, shape)
    height, width = image.shape[:2]
    heat = explanation.contributions.reshape(-1, height, width).sum(axis=0)
    ax = new_axes(ax, (7, 0.6 + 3 * height / width))
    from matplotlib.colors import LinearSegmentedColormap

    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    colours = LinearSegmentedColormap.from_list("for", [COLOURS[3], "white", COLOURS[0]])
    largest = np.abs(heat).max() or 1.0
    left = 1.06 * width
    drawn = ax.imshow(
        heat, extent=(left, left + width, height, 0), interpolation="nearest", cmap=colours,
        vmin=-largest, vmax=largest,
    )  # fmt: skip
    # In grey the two ends look alike: dashes mark what spoke clearly against the class.
    rows, columns = np.nonzero(heat < -largest / 4)
    size = (0.3 * 72 * 3 / width) ** 2
    dashes = {"marker": "_", "s": size, "color": "#222222", "linewidths": 0.8}
    ax.scatter(left + columns + 0.5, rows + 0.5, **dashes)
    ax.set(xlim=(0, left + width), ylim=(height, 0), aspect="equal")
    ax.set_axis_off()
    label = f"for {explanation.label} (blue), against it (orange, dashes)"
    ax.figure.colorbar(drawn, ax=ax, label=label, fraction=0.03)
    return ax


def _draw_bars(contributions: np.ndarray, names: Sequence[str] | None, ax: Any) -> Any:
    order = np.argsort(-np.abs(contributions), kind="stable")[:MOST_BARS]
    ax = new_axes(ax, (6, 1 + 0.25 * len(order)))
    colours = [COLOURS[0] if contributions[d] > 0 else COLOURS[3] for d in order]
    ax.barh(range(len(order)), contributions[order], color=colours, height=0.7)
    labels = [f"feature {d}" if names is None else str(names[d]) for d in order]
    ax.set_yticks(range(len(order)), labels)
    ax.invert_yaxis()
    ax.axvline(0, color="#222222", linewidth=0.8)
    ax.set_xlabel("share of the lead")
    return ax
