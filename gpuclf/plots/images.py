"""Pictures made of images: class templates and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.plots.drawing import TITLE, as_numpy, import_pyplot, new_axes, of_classifier
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import check_label_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_pictures", "plot_samples", "plot_templates", "stretched"]

RIGHT, WRONG = "#222222", "#d55e00"


def plot_templates(
    W: Any,
    image_shape: Sequence[int] = (3, 32, 32),
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each column of the first layer's weights as an image.

    Parameters
    ----------
    W : array of shape (D, M), or classifier
        W of a linear classifier, one template a class, or W1 of a net, one a hidden unit; a
        fitted classifier's own.
    image_shape : (planes, height, width) or (height, width), default (3, 32, 32)
        How the D features lie in an image: 3 planes for red, green and blue, or 1 for grey.
    class_names : sequence of str, optional
        M titles; none by default.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        One image a column in `images`, each stretched by itself to 0..255.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the names are not M.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, softmax and two-layer network exercises.

    Examples
    --------
    >>> from gpuclf.plots import plot_templates
    >>> ax = plot_templates(classifier.params_["W"], class_names=names)  # doctest: +SKIP
    """
    params = of_classifier(W, "params_")
    if isinstance(params, dict):
        W = params["W1" if "W1" in params else "W"]
    W = as_numpy(W)
    if W.ndim != 2 or W.shape[1] == 0:
        raise ValueError(f"W must have shape (D, M), a column for each template, got {W.shape}")
    n_templates = W.shape[1]
    if class_names is not None and len(class_names) != n_templates:
        raise ValueError(
            f"class_names must be one name for each of {n_templates} templates, got "
            f"{len(class_names)}"
        )
    templates = [stretched(template) for template in W.T.astype(np.float64)]
    titles = [] if class_names is None else [str(name) for name in class_names]
    what = "templates" if class_names is None else "class templates"
    return _draw_grid(as_pictures(np.stack(templates), image_shape), titles, what, ax)


def plot_samples(
    X: Any,
    y: Any = None,
    predicted: Any = None,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] = (3, 32, 32),
    ax: Axes | None = None,
) -> Axes:
    """Draw samples as images, with what they are and what they were taken for.

    Parameters
    ----------
    X : array of shape (N, D), or Standardized
        All are drawn, so pass a few dozen. Bytes are drawn as they are, floats stretched together
        to 0..255.
    y : array-like of shape (N,), optional
        True labels.
    predicted : array-like of shape (N,), optional
        Predicted labels. Where they differ from `y`, the image is framed and its title says both.
    class_names : sequence of str, optional
        Then labels are positions in it.
    image_shape : (planes, height, width) or (height, width), default (3, 32, 32)
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> from gpuclf.plots import plot_samples
    >>> ax = plot_samples(X[:40], y[:40], classifier.predict(X[:40]))  # doctest: +SKIP
    """
    X = as_numpy(X.X if isinstance(X, Standardized) else X)
    if X.ndim != 2 or len(X) == 0:
        raise ValueError(f"X must have shape (N, D) with at least one sample, got {X.shape}")
    labels = {}
    for name, values in (("y", y), ("predicted", predicted)):
        if values is not None:
            labels[name] = as_numpy(values)
            check_label_count(labels[name], len(X), name)

    def name_of(label: Any) -> str:
        return str(label if class_names is None else class_names[label])

    what = "1 sample" if len(X) == 1 else f"{len(X):,} samples"
    titles = [name_of(label) for label in labels.get("predicted", labels.get("y", ()))]
    wrong: list[int] = []
    if len(labels) == 2:
        wrong = np.flatnonzero(labels["y"] != labels["predicted"]).tolist()
        for i in wrong:
            titles[i] += f"\nnot {name_of(labels['y'][i])}"
        what = f"predictions, {len(X) - len(wrong):,} of {len(X):,} right; wrong ones framed"
    pixels = X if X.dtype == np.uint8 else stretched(X.astype(np.float64))
    return _draw_grid(as_pictures(pixels, image_shape), titles, what, ax, wrong)


def stretched(values: np.ndarray) -> Any:
    """Return values as bytes, the smallest 0 and the largest 255."""
    low, high = values.min(), values.max()
    if high == low:
        return np.full(values.shape, 128, np.uint8)
    return np.rint(255 * (values - low) / (high - low)).astype(np.uint8)


def as_pictures(rows: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Bring rows of features to (N, height, width, 3), as matplotlib draws images."""
    planes, height, width = (1, *image_shape) if len(image_shape) == 2 else image_shape
    if planes not in (1, 3) or planes * height * width != rows.shape[1]:
        raise ValueError(
            f"image_shape must be (3, height, width), (1, height, width) or (height, width) with "
            f"{rows.shape[1]} values, one for each feature, got {tuple(image_shape)}"
        )
    images = rows.reshape(-1, planes, height, width).transpose(0, 2, 3, 1)
    return np.repeat(images, 3, axis=3) if planes == 1 else images


def _draw_grid(
    images: np.ndarray,
    titles: Sequence[str],
    what: str,
    ax: Axes | None,
    framed: Sequence[int] = (),
) -> Axes:
    """Draw images in rows, with their titles above them, into one Axes."""
    n_images, height, width = images.shape[:3]
    n_columns = (5 if n_images <= 10 else 8) if titles else math.ceil(math.sqrt(n_images))
    n_columns = min(n_images, n_columns)
    n_rows = math.ceil(n_images / n_columns)
    title_lines = max((title.count("\n") + 1 for title in titles), default=0)
    gap = 0.08
    step_x, step_y = width * (1 + gap), height * (1 + gap + 0.17 * title_lines)
    tile = 1.15 if titles else 0.75  # inches
    font_size = 8 if n_columns <= 5 else 7
    ax = new_axes(ax, (n_columns * tile, 0.4 + n_rows * tile * step_y / step_x))
    for i, image in enumerate(images):
        left, top = i % n_columns * step_x, i // n_columns * step_y
        extent = (left, left + width, top + height, top)
        ax.imshow(image, extent=extent, interpolation="nearest")
        colour = WRONG if i in framed else RIGHT
        if titles:
            text = ax.text(left + width / 2, top - 0.03 * height, titles[i], color=colour)
            text.set(ha="center", va="bottom", fontsize=font_size, linespacing=1.1)
        if i in framed:
            frame = import_pyplot().Rectangle((left, top), width, height, fill=False)
            ax.add_patch(frame).set(edgecolor=colour, linewidth=2.5)
    ax.set(xlim=(-gap * width, n_columns * step_x), aspect="equal")
    ax.set_ylim(n_rows * step_y - 0.17 * title_lines * height, -(gap + 0.17 * title_lines) * height)
    ax.set_axis_off()
    ax.set_title(what, **TITLE)
    return ax
