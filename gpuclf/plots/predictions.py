"""Pictures of what a classifier predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.plots.drawing import COLOURS, MARKERS, TITLE, as_numpy, new_axes, of_classifier
from gpuclf.validation import check_label_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_confusion_matrix", "plot_decision_boundary"]

MESH_POINTS = 400  # along each axis of a decision boundary


def plot_decision_boundary(predict: Any, X: Any, y: Any, ax: Axes | None = None) -> Axes:
    """Colour the plane by the predicted label, under samples of two features.

    Parameters
    ----------
    predict : classifier or callable
        A fitted classifier, or what takes a NumPy array of shape (M, 2) and returns M labels.
    X : array-like of shape (N, 2)
    y : array-like of shape (N,)
        The true labels.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If X has not two features, or `predict` or `y` does not fit it.

    Notes
    -----
    Source: Stanford CS231n, "Putting it together: Minimal Neural Network Case Study".

    Examples
    --------
    >>> from gpuclf.plots import plot_decision_boundary
    >>> ax = plot_decision_boundary(classifier.predict, X, y)  # doctest: +SKIP
    >>> ax.figure.savefig("boundary.png")  # doctest: +SKIP
    """
    predict = of_classifier(predict, "predict")
    if not callable(predict):
        raise TypeError(
            f"predict must be a fitted classifier or its predict, got {type(predict).__name__}"
        )
    X, y = as_numpy(X), as_numpy(y)
    if X.ndim != 2 or X.shape[1] != 2 or len(X) == 0:
        raise ValueError(f"X must have shape (N, 2), two features to draw, got {X.shape}")
    check_label_count(y, len(X))
    ax = new_axes(ax, (6, 5.5))
    from matplotlib.colors import ListedColormap

    low, high = X.min(axis=0), X.max(axis=0)
    margin = 0.08 * np.where(high > low, high - low, 1)
    (left, bottom), (right, top) = low - margin, high + margin
    columns, rows = np.meshgrid(
        np.linspace(left, right, MESH_POINTS), np.linspace(bottom, top, MESH_POINTS)
    )
    mesh = np.column_stack([columns.ravel(), rows.ravel()]).astype(X.dtype, copy=False)
    predicted = as_numpy(predict(mesh))
    if predicted.shape != (len(mesh),):
        raise ValueError(
            f"predict must return one label for each of {len(mesh)} rows, got {predicted.shape}"
        )
    labels = np.unique(np.concatenate([y, predicted]))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(labels))]
    regions = np.searchsorted(labels, predicted).reshape(columns.shape)
    ax.imshow(
        regions, extent=(left, right, bottom, top), origin="lower", aspect="auto", alpha=0.3,
        interpolation="nearest", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(labels) - 0.5,
    )  # fmt: skip
    for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        ax.scatter(
            X[y == label, 0], X[y == label, 1], s=24, label=str(label), color=colour,
            marker=MARKERS[i % len(MARKERS)], edgecolors="white", linewidths=0.6,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="feature 0", ylabel="feature 1")
    right_share = np.mean(as_numpy(predict(X)) == y)
    ax.set_title(f"decision boundary, {right_share:.1%} of {len(X):,} samples right", **TITLE)
    ax.legend(title="label", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def plot_confusion_matrix(
    y_true: Any,
    y_pred: Any,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many samples of each label were taken for each label.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (N,)
        True and predicted labels. With `class_names`, integers that are positions in it.
    class_names : sequence of str, optional
        By default the labels themselves, of those that occur.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        Counts are written into the cells; the colour is the share of the true label's samples.

    Raises
    ------
    ValueError
        If the labels differ in number, there are none, or one has no name.
    """
    y_true, y_pred = as_numpy(y_true), as_numpy(y_pred)
    if y_true.ndim != 1 or y_true.shape != y_pred.shape or len(y_true) == 0:
        raise ValueError(
            "y_true and y_pred must have the same shape (N,), at least one sample, got "
            f"{y_true.shape} and {y_pred.shape}"
        )
    labels = np.unique(np.concatenate([y_true, y_pred]))
    if class_names is None:
        names = [str(label) for label in labels]
    else:
        names = list(class_names)
        unnamed = [label for label in labels if label not in range(len(names))]
        if unnamed:
            raise ValueError(f"class_names has {len(names)} names, none for label {unnamed[0]}")
        labels = np.arange(len(names))
    n_classes = len(labels)
    counts = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(counts, (np.searchsorted(labels, y_true), np.searchsorted(labels, y_pred)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    ax = new_axes(ax, (2.5 + 0.55 * n_classes, 1.7 + 0.5 * n_classes))
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "#222222"
        text = ax.text(column, row, f"{count:,}", color=colour, fontsize="small")
        text.set(ha="center", va="center")
    ax.set_xticks(range(n_classes), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n_classes), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="predicted", ylabel="true")
    ax.set_title(f"{np.mean(y_true == y_pred):.1%} of {len(y_true):,} samples right", **TITLE)
    ax.figure.colorbar(image, ax=ax, label="share of the true label's samples")
    return ax
