"""Pictures of training and of cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.plots.drawing import (
    COLOURS,
    DOTTED_LINE,
    TITLE,
    log_axis_with_ticks_at,
    new_axes,
    of_classifier,
)
from gpuclf.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_history", "plot_knn_cross_validation"]


def plot_history(history: Any, ax: Axes | None = None) -> Axes:
    """Draw the loss of each step with its running mean, and the accuracies.

    Parameters
    ----------
    history : classifier or History
        A fitted classifier, or its `history_`.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        The loss's; the accuracies, where there are any, have their own at the right.

    Raises
    ------
    TypeError
        If it is neither, or the classifier is not fitted.
    ValueError
        If the history is empty.

    Examples
    --------
    >>> from gpuclf.plots import plot_history
    >>> ax = plot_history(classifier.history_)  # doctest: +SKIP
    """
    history = of_classifier(history, "history_")
    if not isinstance(history, History):
        raise TypeError(f"pass a fitted classifier or its history_, got {type(history).__name__}")
    if not history.loss:
        raise ValueError("the history has no loss to draw: fit the classifier first")
    ax = new_axes(ax, (7, 4.2))
    loss = np.asarray(history.loss, np.float64)
    steps = np.arange(1, len(loss) + 1)
    n_averaged = max(1, len(loss) // 50)
    blue, orange = COLOURS[0], COLOURS[3]
    lines: list[Any] = []
    if n_averaged > 1:
        ax.plot(steps, loss, color=blue, alpha=0.25, linewidth=0.8, label="loss of a mini-batch")
        smooth = f"loss, mean of {n_averaged} steps"
        lines += ax.plot(steps, _running_mean(loss, n_averaged), color=blue, label=smooth)
    else:
        lines += ax.plot(steps, loss, color=blue, label="loss")
    ax.set_xlabel("step" if history.learning_rate else "iteration")
    ax.set_ylabel("loss", color=blue)
    ax.set_title("training", **TITLE)
    ax.grid(axis="y", alpha=0.25)
    if history.val_accuracy:
        n_epochs = len(history.val_accuracy)
        steps_per_epoch = len(history.learning_rate) / n_epochs if history.learning_rate else 1
        ends = steps_per_epoch * np.arange(1, n_epochs + 1)
        right: Any = ax.twinx()
        dots: dict[str, Any] = {"color": orange, **DOTTED_LINE}
        lines += right.plot(ends, history.val_accuracy, "-", label="validation accuracy", **dots)
        if history.train_accuracy:
            lines += right.plot(ends, history.train_accuracy, ":", label="train accuracy", **dots)
        right.set_ylabel("accuracy", color=orange)
        right.spines[["top", "left"]].set_visible(False)
    ax.legend(
        handles=lines, loc="lower left", bbox_to_anchor=(0.25, 1.0), ncols=2, frameon=False,
        borderaxespad=0.2,
    )  # fmt: skip
    return ax


def plot_knn_cross_validation(
    accuracies: Mapping[int, Sequence[float]], ax: Axes | None = None
) -> Axes:
    """Draw the accuracy of each fold over the number of neighbours, with mean and deviation.

    Parameters
    ----------
    accuracies : dict of int to list of float
        For each number of neighbours, the accuracies of the folds.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        The bars are one standard deviation up and down; the best mean is marked.

    Raises
    ------
    ValueError
        If there is nothing to draw.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, k-nearest-neighbour exercise.

    Examples
    --------
    >>> from gpuclf.plots import plot_knn_cross_validation
    >>> ax = plot_knn_cross_validation({1: [0.26, 0.25], 10: [0.28, 0.29]})  # doctest: +SKIP
    """
    if not accuracies or not all(len(folds) for folds in accuracies.values()):
        raise ValueError(f"each number of neighbours needs its accuracies, got {accuracies!r}")
    ax = new_axes(ax, (7, 4.2))
    ks = sorted(accuracies)
    for k in ks:
        folds = accuracies[k]
        label = "a fold" if k == ks[0] else None
        ax.scatter([k] * len(folds), folds, s=18, color=COLOURS[1], alpha=0.8, label=label)
    mean = np.array([np.mean(accuracies[k]) for k in ks])
    deviation = [np.std(accuracies[k]) for k in ks]
    line: dict[str, Any] = {"color": COLOURS[0], **DOTTED_LINE}
    ax.errorbar(ks, mean, deviation, capsize=3, label="mean and standard deviation", **line)
    best = int(np.argmax(mean))
    ax.axvline(ks[best], color="#8c8c8c", linestyle=":", zorder=0)
    log_axis_with_ticks_at(ax, ks)
    ax.set(xlabel="number of neighbours", ylabel="accuracy")
    ax.set_title(f"cross-validation: best mean {mean[best]:.3f} at k = {ks[best]}", **TITLE)
    ax.legend(frameon=False)
    return ax


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average each value with its neighbours; at the ends with those that there are."""
    ones = np.ones(window)
    counts = np.convolve(np.ones_like(values), ones, mode="same")
    mean: np.ndarray = np.convolve(values, ones, mode="same") / counts
    return mean
