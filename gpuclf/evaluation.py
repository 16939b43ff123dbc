"""How good predictions are: a confusion matrix, precision and recall, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Calibration", "calibration", "confusion_matrix", "precision_and_recall"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def confusion_matrix(y_true: Counts, y_pred: Counts, n_classes: int) -> Counts:
    """Count how many samples of each class were taken for each class.

    Parameters
    ----------
    y_true, y_pred : integer ndarray of shape (N,), values in 0..C-1
    n_classes : int

    Returns
    -------
    ndarray of int64, shape (C, C)
        A row for each true class, a column for each predicted one.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    for name, labels in (("y_true", y_true), ("y_pred", y_pred)):
        if labels.shape != y_true.shape or labels.ndim != 1:
            raise ValueError(
                f"y_true and y_pred must both have shape (N,), got {y_true.shape} and "
                f"{y_pred.shape}"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
            raise ValueError(
                f"{name} must be in 0..{n_classes - 1}, got {labels.min()}..{labels.max()}"
            )
    counts = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(counts, (y_true, y_pred), 1)
    return counts


def precision_and_recall(counts: Counts) -> tuple[Floats, Floats]:
    r"""Return precision and recall of each class.

    .. math::
        \text{precision}_c = \frac{n_{cc}}{\sum_i n_{ic}}, \qquad
        \text{recall}_c = \frac{n_{cc}}{\sum_j n_{cj}}

    Parameters
    ----------
    counts : ndarray of shape (C, C)
        As :func:`confusion_matrix` returns it.

    Returns
    -------
    precision, recall : ndarray of float64, shape (C,)
        NaN for a class that was never predicted, or that has no sample.

    Examples
    --------
    >>> precision_and_recall(np.array([[1, 1], [0, 2]]))
    (array([1.        , 0.66666667]), array([0.5, 1. ]))
    """
    right = np.diagonal(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return right / counts.sum(axis=0), right / counts.sum(axis=1)


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities are what they say.

    Attributes
    ----------
    error : float
        The expected calibration error, 0 at best.
    edges : ndarray of shape (M + 1,)
        Of the bins, each without its lower and with its upper edge.
    count : ndarray of int64, shape (M,)
        Samples whose highest probability is in each bin.
    confidence, accuracy : ndarray of shape (M,)
        The mean of these probabilities, and the share of right predictions; NaN in empty bins.
    """

    error: float
    edges: Floats
    count: Counts
    confidence: Floats
    accuracy: Floats


def calibration(probabilities: Floats, y_true: Counts, n_bins: int = 10) -> Calibration:
    r"""Compare the probabilities of the predicted classes with how often these are right.

    .. math:: \text{ECE} = \sum_m \frac{|B_m|}{N} \left| \text{acc}(B_m) - \text{conf}(B_m) \right|

    Parameters
    ----------
    probabilities : ndarray of shape (N, C)
    y_true : integer ndarray of shape (N,), values in 0..C-1
    n_bins : int, default 10
        Bins B of equal width, which the highest probability of a sample falls into.

    Returns
    -------
    Calibration

    Notes
    -----
    Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017),
    equation 3.

    Examples
    --------
    >>> found = calibration(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    >>> round(found.error, 6)  # 0.9 sure, half of them right
    0.4
    """
    if probabilities.ndim != 2 or probabilities.shape[:1] != y_true.shape or not len(y_true):
        raise ValueError(
            "probabilities and y_true must have shapes (N, C) and (N,), at least one sample, got "
            f"{probabilities.shape} and {y_true.shape}"
        )
    predicted = probabilities.argmax(axis=1)
    highest = np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0].astype(np.float64)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges[1:-1], highest, side="left")
    count, confidence, right = (
        np.bincount(bins, weights, n_bins) for weights in (None, highest, predicted == y_true)
    )
    error = float(np.abs(right - confidence).sum() / len(y_true))
    with np.errstate(invalid="ignore"):
        return Calibration(error, edges, count, confidence / count, right / count)
